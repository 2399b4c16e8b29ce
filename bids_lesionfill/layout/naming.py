"""Names of BIDS files: entities, spaces, kinds of masks, derivatives, URIs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..modality import MODALITIES, T1W

if TYPE_CHECKING:
    from .indexing import IndexedFile
    from .inputs import Inputs

NIFTI = ['.nii', '.nii.gz']
MASK_LABELS = ('lesion', 'L')
APP_NAME = 'bids_lesionfill'


# Tell the images of one session and modality apart.
SCAN_KEYS = ('run', 'acquisition', 'ceagent', 'reconstruction', 'echo', 'part', 'inv', 'flip')
IMAGE_KEYS = ('session', *SCAN_KEYS)


MASK_KINDS = ('mask', 'roi', 'dseg', 'probseg')  # the plainest first: of two for an image, it is taken
# Spaces that a mask may name; a template's is none of them.
SPACES = {name.casefold(): name for name in MODALITIES} | {'t1': T1W.name, 'anat': T1W.name}
NATIVE_SPACES = ('orig', 'native', 'individual', 'scanner')


def lesion_kind(filename: str, mask_labels: Sequence[str] = MASK_LABELS) -> str | None:
    """Return the one of `MASK_KINDS` that a file name matches; None if it is no lesion mask.

    A lesion mask is a `_mask`, `_dseg`, `_probseg` or (old fMRIPrep) `_roi` with `label-`, or else `desc-` or `seg-`,
    for lesions, whatever the case of the letters; or `seg-lst` of LST-AI.
    """
    entities, suffix = name_entities(filename), strip_extension(filename).rpartition('_')[2]
    if suffix == 'seg-lst':
        return 'dseg' if entities.get('desc') == 'annotated' else 'mask'
    label = entities.get('label', entities.get('desc', entities.get('seg', '')))
    accepted = {name.casefold() for name in mask_labels}
    if tuple(mask_labels) == MASK_LABELS:
        accepted |= {'lesions', 'lst'}
    return suffix if suffix in MASK_KINDS and label.casefold() in accepted else None


def space_of(filename: str) -> str | None:
    """Return `T1w`, `FLAIR`, ... if the name of a file tells that it is in the space of that image; else None."""
    return SPACES.get(name_entities(filename).get('space', '').casefold())


OTHER_DATATYPES = ('dwi', 'fmap', 'func', 'mrs', 'perf', 'pet')


def is_anatomical(file: IndexedFile) -> bool:
    """Return True if a file is not of a functional run or another datatype with its own masks."""
    folder = Path(file.path).parent.name  # pybids looks for the datatype in the whole path, above the dataset too
    return folder not in OTHER_DATATYPES and 'task' not in name_entities(file.filename)


def is_magnitude(filename: str) -> bool:
    """Return False for the phase, real or imaginary part of an image."""
    return name_entities(filename).get('part', 'mag') == 'mag'


def name_entities(filename: str) -> dict[str, str]:
    """Read the entities in a file name, also `label` and `desc`, unknown to pybids in raw datasets."""
    return dict(part.split('-', 1) for part in strip_extension(filename).split('_') if '-' in part)


def uri(path: str | Path, roots: dict[str, Path], raw_root: str | Path) -> str:
    """Return the BIDS URI of a file in a derivative or the raw dataset; a `file:` URI elsewhere.

    A file is where its own name is; where its links lead counts if that is in no dataset.
    """
    for place in (os.path.abspath, os.path.realpath):
        for dataset, root in [*roots.items(), ('raw', raw_root)]:
            if Path(place(path)).is_relative_to(place(root)):
                return f'bids:{dataset}:{Path(place(path)).relative_to(place(root)).as_posix()}'
    return Path(path).absolute().as_uri()


def suffix_of(filename: str) -> str:
    """Return the suffix of a file name: T1w, FLAIR, mask."""
    return strip_extension(filename).rpartition('_')[2]


def strip_extension(filename: str) -> str:
    """Return a file name without `.nii` or `.nii.gz`."""
    return filename.removesuffix('.gz').removesuffix('.nii')


def anat_dir(output_dir: str | Path, inputs: Inputs) -> Path:
    """Return the folder of an image's derivatives."""
    session = [f'ses-{inputs.session}'] if inputs.session else []
    return Path(output_dir, f'sub-{inputs.subject}', *session, 'anat')


def scan_name(inputs: Inputs) -> str:
    """Return the common prefix of an image's files: sub-01_ses-1_run-2."""
    return inputs.name.removesuffix(f'_{inputs.modality}')


def space_entity(modality: str | None) -> str:
    """Return `_space-FLAIR` for files on the grid of a FLAIR; '' of a T1w: their names would be the same otherwise."""
    return '' if modality in (None, T1W.suffix) else f'_space-{modality}'


def output_files(output_dir: str | Path, inputs: Inputs, n_samples: int = 1) -> dict[str, Path]:
    """Return the paths of all outputs of an image: dict of name -> path."""
    modality, stem = inputs.modality, scan_name(inputs)
    space = space_entity(modality)
    folder = anat_dir(output_dir, inputs)
    files = {
        'filled': folder / f'{stem}_desc-filled_{modality}.nii.gz',
        'used_mask': folder / f'{stem}{space}_label-lesion_desc-used_mask.nii.gz',
        'lesions': folder / f'{stem}{space}_desc-lesions_qc.tsv',
    }
    if n_samples > 1:
        files['sd'] = folder / f'{stem}_desc-filledsd_{modality}.nii.gz'
    return files


def synth_files(output_dir: str | Path, inputs: Inputs, desc: str = 'synth') -> dict[str, Path]:
    """Return the paths of all outputs of an image with new lesions; see `output_files`."""
    filled = output_files(output_dir, inputs)
    image, mask, lesions = (filled[name].name for name in ('filled', 'used_mask', 'lesions'))
    folder = anat_dir(output_dir, inputs)
    return {
        'synth': folder / image.replace('desc-filled', f'desc-{desc}'),
        'mask': folder / mask.replace('desc-used', f'desc-{desc}'),
        'new_mask': folder / mask.replace('desc-used', f'desc-{desc}new'),
        'changed_mask': folder / mask.replace('desc-used', f'desc-{desc}changed'),
        'lesions': folder / lesions.replace('desc-lesions', f'desc-{desc}lesions'),
    }


def segmented_mask(output_dir: str | Path, inputs: Inputs, image_file: Path, desc: str) -> Path:
    """Return the path of the lesion mask of a segmenter, on the grid of an image of the visit."""
    modality = suffix_of(image_file.name)
    stem = strip_extension(image_file.name).removesuffix(f'_{modality}')
    return anat_dir(output_dir, inputs) / f'{stem}{space_entity(modality)}_label-lesion_desc-{desc}_mask.nii.gz'


def xfm_source(inputs: Inputs) -> str:
    """Return the suffix of the image that was registered to the T1w for an image: itself, or `drawn_on` of a T1w."""
    return inputs.drawn_on if inputs.modality == T1W.suffix else inputs.modality


def xfm_file(output_dir: Path, inputs: Inputs) -> Path:
    """Return the path of the transform to the T1w that was needed for an image, of a T1w that from its FLAIR."""
    source = xfm_source(inputs)
    desc = '' if inputs.modality == T1W.suffix else f'_desc-{source}'  # of the FLAIR's own filling
    return anat_dir(output_dir, inputs) / f'{scan_name(inputs)}_from-{source}_to-T1w_mode-image{desc}_xfm.txt'


def sidecar(path: Path) -> Path:
    """Return the path of the JSON sidecar of a file."""
    path = path.with_suffix('') if path.name.endswith('_xfm.txt') else path
    return path.with_name(strip_extension(path.name).removesuffix('.tsv') + '.json')


def log_dir(output_dir: Path, subject: str, run_id: str) -> Path:
    """Return the folder of a participant's logs of one run."""
    return Path(output_dir, f'sub-{subject}', 'log', run_id)


# -------------------------------------------------------------------------------------------------- cortical thickness

THICKNESS_DESCS = ('original', 'filled', 'rerun')  # the rerun is of the original, with another seed


def thickness_files(output_dir: Path, inputs: Inputs) -> dict[str, Path]:
    """Return paths of an image's thickness and tissue tables: dict of `morph_DESC`, `dseg_DESC`."""
    folder, stem = anat_dir(output_dir, inputs), scan_name(inputs)
    files = {f'morph_{desc}': folder / f'{stem}_seg-DK_desc-{desc}_morph.tsv' for desc in THICKNESS_DESCS}
    return files | {f'dseg_{desc}': folder / f'{stem}_desc-{desc}_dseg.nii.gz' for desc in THICKNESS_DESCS[:2]}
