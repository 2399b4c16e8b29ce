"""What the app is expected to write, as lists of files, and ways to compare and validate it."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DATASET_FILES = [
    '.bidsignore', 'README.md', 'dataset_description.json', 'descriptions.json', 'descriptions.tsv', 'dseg.tsv',
    'images.json', 'images.tsv', 'logs/CITATION.bib', 'logs/CITATION.md', 'participants.json', 'participants.tsv',
    'prov/provenance.json', 'prov/provenance.tsv',
]  # fmt: skip
FIGURES = [f'{entry}_{picture}.png' for entry in ('overview', 'closeup', 'lesion-1', 'lesion-2')
           for picture in ('before', 'mask', 'after')]  # fmt: skip


def image_files(stem, folder, modality):
    space = '' if modality == 'T1w' else f'space-{modality}_'
    return [f'{folder}anat/{stem}_{name}' for name in (
        f'desc-filled_{modality}.json', f'desc-filled_{modality}.nii.gz',
        f'{space}desc-lesions_qc.json', f'{space}desc-lesions_qc.tsv',
        f'{space}label-lesion_desc-used_mask.json', f'{space}label-lesion_desc-used_mask.nii.gz')]  # fmt: skip


def subject_files(subject, session=None, modality='T1w'):
    stem = f'sub-{subject}' + (f'_ses-{session}' if session else '')
    folder = f'sub-{subject}/' + (f'ses-{session}/' if session else '')
    figures = [f'sub-{subject}/figures/{stem}_{modality}_{name}' for name in FIGURES]
    return [*image_files(stem, folder, modality), *figures, f'sub-{subject}/log/RUN/time-{stem}_{modality}.json']


def closing_files(subject, has_results=True):
    made_by = [f'prov/prov-sub{subject}_{kind}.json' for kind in ('act', 'ent', 'soft') if has_results]
    return [f'sub-{subject}.html', f'sub-{subject}/log/RUN/config.toml', f'sub-{subject}/log/RUN/status.json', *made_by]


def data_hashes(folder, pattern='**/*'):
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.glob(pattern)) if path.is_file()}  # fmt: skip


def validator():
    return shutil.which('bids-validator-deno', path=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
