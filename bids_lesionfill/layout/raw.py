"""`--output-layout raw`: a raw dataset whose images are the filled ones, for tools that know nothing of lesions.

What was not filled is linked, or copied in a container, where links would lead out of it. The derivatives that the app
always writes are in `derivatives/bids_lesionfill`, and tell what was done.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import text_files
from . import derivatives, files, indexing, naming

if TYPE_CHECKING:
    from .inputs import Inputs

logger = logging.getLogger('bids_lesionfill')


LEFT_OUT = ('derivatives', 'sourcedata', 'code', '.git', '.datalad', '.bidsignore')
DERIVATIVES = Path('derivatives', naming.APP_NAME)


def write_top(raw_dir: Path, bids_dir: Path, version: str) -> None:
    """Write what describes the dataset: as in the one it comes from, with a word on what was done."""
    description = indexing.read_description(bids_dir, is_derivative=False)
    made_by = {'Name': naming.APP_NAME, 'Version': version, 'Description': 'lesions of T1w or FLAIR images were filled'}
    makers = description.get('GeneratedBy')
    description |= {
        'Name': f'{description.get("Name", "dataset")}, lesions filled',
        'DatasetType': 'raw',
        'GeneratedBy': [*(makers if isinstance(makers, list) else []), made_by],
    }
    files.write_json(Path(raw_dir, 'dataset_description.json'), description)
    for path in Path(bids_dir).iterdir():
        own = path.name in ('dataset_description.json', 'participants.tsv')
        if path.is_file() and not own and path.name not in LEFT_OUT:
            place(path, Path(raw_dir, path.name))
    if not any(Path(bids_dir).glob('README*')):
        files.write_bytes(Path(raw_dir, 'README.md'), f'# {description["Name"]}\n'.encode())


def write_participant(
    raw_dir: Path,
    bids_dir: Path,
    output_dir: Path,
    subject: str,
    images: Sequence[Inputs],
    session_labels: Collection[str] = (),
) -> None:
    """Write one participant: filled images where there are any, and links to all else.

    Parameters
    ----------
    output_dir : path
        Of the derivatives.
    images : list of layout.Inputs
    session_labels : sequence of str
        Other sessions are left out; all are taken if empty.
    """
    bids_dir, raw_dir = Path(bids_dir), Path(raw_dir)
    filled = {image.relative_path: naming.output_files(output_dir, image)['filled'] for image in images}
    filled = {name: path for name, path in filled.items() if derivatives.read_sidecar(path)}
    sidecars = {naming.strip_extension(name) + '.json': path for name, path in filled.items()}
    contents = {name: sidecar_content(bids_dir / name, path) for name, path in sidecars.items()}  # may fail: first
    not_fetched = []
    for name, path in files_of(bids_dir, subject, session_labels).items():
        if naming.lesion_kind(path.name) is not None or name in sidecars:
            continue
        if name in filled:
            write_filled(path, raw_dir / name, filled[name])
        else:
            place(path, raw_dir / name)
            not_fetched += [path] if not path.exists() else []
    if not_fetched and in_container():
        words = '%d files of sub-%s are links to what is not there (%s, ...): they are links in %s, too'
        logger.warning(words, len(not_fetched), subject, not_fetched[0], raw_dir)
    for name, content in contents.items():
        files.write_json(raw_dir / name, content)
    write_participants(raw_dir, bids_dir)


def files_of(bids_dir: Path, subject: str, session_labels: Collection[str] = ()) -> dict[str, Path]:
    """Return the files of a participant in the dataset, of the sessions asked for: dict of relative path -> path."""
    found = {}
    for path in sorted((bids_dir / f'sub-{subject}').rglob('*')):
        name = path.relative_to(bids_dir)
        session = next((part for part in name.parts if part.startswith('ses-')), None)
        is_other = session and session_labels and session.removeprefix('ses-') not in session_labels
        if not (path.is_dir() or is_other):
            found[name.as_posix()] = path
    return found


def sidecar_content(original: Path, filled: Path) -> dict[str, Any]:
    """Return the sidecar of a filled image: that of the original, if there is one, with what was done."""
    content = text_files.read_json(original) if original.is_file() else {}
    about = derivatives.read_sidecar(filled)
    return {'SkullStripped': about['SkullStripped']} | content | {'LesionsFilled': about.get('Lesions', 0)}


def remove_participant(raw_dir: Path, bids_dir: Path, subject: str, session_labels: Collection[str] = ()) -> None:
    """Remove what `write_participant` wrote of a participant, who failed: other tools would take it for done.

    Files that have no counterpart in the dataset are not the app's and stay.
    """
    bids_dir, raw_dir = Path(bids_dir), Path(raw_dir)
    names = list(files_of(bids_dir, subject, session_labels))
    images = [name for name in names if name.endswith(('.nii', '.nii.gz'))]
    for name in [*names, *(naming.strip_extension(image) + '.json' for image in images)]:
        (raw_dir / name).unlink(missing_ok=True)
    folder = raw_dir / f'sub-{subject}'
    for path in sorted((path for path in folder.rglob('*') if path.is_dir()), reverse=True) + [folder]:
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
    write_participants(raw_dir, bids_dir)


def write_filled(original: Path, target: Path, filled: Path) -> None:
    """Write a filled image under its original's name, compressed if the original is."""
    if original.name.endswith('.gz'):
        place(filled, target)
    else:
        files.write_bytes(target, gzip.decompress(filled.read_bytes()))


def write_participants(raw_dir: Path, bids_dir: Path) -> None:
    """Write the rows of `participants.tsv` whose participants are there."""
    table = Path(bids_dir, 'participants.tsv')
    if not table.is_file():
        return
    first, *lines = text_files.read_text(table).rstrip('\n').split('\n')
    known = None
    while known != (known := {path.name for path in Path(raw_dir).glob('sub-*')}):  # others write beside this one
        rows = [line for line in lines if line.split('\t')[0] in known]
        files.write_bytes(Path(raw_dir, 'participants.tsv'), '\n'.join([first, *rows, '']).encode())


def in_container() -> bool:
    """Return True if the app runs in a container, where links would lead out and files are copied."""
    return bool(derivatives.container()) or 'IS_DOCKER_8395080871' in os.environ


def place(source: Path, target: Path) -> None:
    """Link a file (copy it in a container), atomically replacing the target; broken links stay links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = files.temporary_name(target)
    try:
        if not source.exists() and in_container():  # of DataLad, not fetched
            temporary.symlink_to(os.readlink(source))
        elif in_container():
            shutil.copyfile(source, temporary)
        else:
            temporary.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
