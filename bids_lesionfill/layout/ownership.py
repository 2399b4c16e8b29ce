"""Whose folder it is: the app writes into a folder that is new, empty, or its own of the same dataset; no other.

Its own is known by `GeneratedBy` in `dataset_description.json`; the dataset that it was made from by `DatasetLinks`
and, where paths say nothing (all datasets are `/data` in a container; one was moved), by the first images.
"""

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from .. import text_files
from . import files
from .errors import UsageError
from .naming import APP_NAME

ELSE = 'nothing was written; name a new folder'
ELSE_FILE = 'nothing was written; name a new file, or remove it'
# What may lie in a folder that counts as empty: version control, file systems, and what a shell or a scheduler logs.
BESIDES = ('.git', '.gitattributes', '.gitignore', '.gitmodules', '.datalad', '.snapshot', '.DS_Store', 'lost+found')
LOGS = ('.log', '.out', '.err')
GROUP_FILES = ('group.html', 'group_reproducibility', 'phenotype')  # what `group` wrote alone into a new folder


def check_output(output_dir: Path, bids_dir: Path, raw_dir: Path | None = None, others: Iterable[Path] = ()) -> None:
    """Raise UsageError unless the output folder is empty or new, or ours of the same dataset.

    Parameters
    ----------
    output_dir : path
        Of the derivatives.
    bids_dir : path
    raw_dir : path, optional
        The raw dataset of `--output-layout raw`, in which `output_dir` is.
    others : sequence of path
        Folders in the output that the user named for something else, such as `--work-dir`.
    """
    output_dir, bids_dir = Path(output_dir), Path(bids_dir)
    if raw_dir is not None:
        check_raw(Path(raw_dir), output_dir, others)
    description = describe(output_dir)
    if description is None:
        if not (is_empty(output_dir, others) or is_of_group(output_dir)):
            refuse_foreign(output_dir)
        return
    if not is_ours(description, 'derivative'):
        refuse_foreign(output_dir, description)
    made_from = source_of(description)
    if made_from is not None and not is_same_dataset(description, made_from, bids_dir):
        raise UsageError(
            f'OUTPUT_DIR {output_dir} is the output of {APP_NAME} for another dataset, {made_from}, not for '
            f'{bids_dir.resolve()}: {ELSE} (if that dataset was moved here, write its new place into '
            f'DatasetLinks of {output_dir / "dataset_description.json"})'
        )


def check_raw(raw_dir: Path, output_dir: Path, others: Iterable[Path]) -> None:
    """Raise UsageError unless the folder of a raw dataset is empty, or was written by `--output-layout raw`."""
    description = describe(raw_dir)
    if description is not None and not is_ours(description, 'raw'):
        refuse_foreign(raw_dir, description)
    own = [output_dir] if (describe(output_dir) or {}).get('GeneratedBy') else []
    if description is None and not is_empty(raw_dir, [*others, *own]):
        refuse_foreign(raw_dir)
    if description is not None and not own:
        raise UsageError(
            f'OUTPUT_DIR {raw_dir} is a raw dataset without the derivatives of {APP_NAME} in {output_dir} that say '
            f'what it was made from: {ELSE}'
        )


def describe(folder: Path) -> Any:
    """Return `dataset_description.json` of a folder; None if it has none. UsageError if it cannot be read."""
    path = Path(folder, 'dataset_description.json')
    if not os.path.lexists(path):
        return None
    try:
        return text_files.read_json(path)
    except (OSError, text_files.UnreadableError) as error:
        raise UsageError(f'whose folder OUTPUT_DIR {folder} is cannot be told: {error}') from None


def makers_of(description: Any) -> list[str]:
    """Return the names in `GeneratedBy`, the last maker last; list of str."""
    entries = description.get('GeneratedBy')
    entries = entries if isinstance(entries, list) else []
    return [str(entry.get('Name')) for entry in entries if isinstance(entry, dict)]


def is_ours(description: Any, dataset_type: str) -> bool:
    """Tell whether a dataset was made by this app last, and is of a type (`derivative` or `raw`)."""
    return makers_of(description)[-1:] == [APP_NAME] and description.get('DatasetType') == dataset_type


def refuse_foreign(folder: Path, description: Any = None) -> None:
    """Raise UsageError with a sentence that says whose a folder is."""
    if description is None:
        first = min(path.name for path in Path(folder).iterdir())
        whose = f'holds files of others ({first}, ...) and no dataset_description.json by {APP_NAME}'
    else:
        makers = ', '.join(makers_of(description)) or 'nobody known'
        kind = description.get('DatasetType') or 'raw'
        whose = f'is another {kind} dataset ({str(description.get("Name"))[:60]!r}, made by {makers})'
    raise UsageError(f'OUTPUT_DIR {folder} {whose}: {ELSE}')


def is_empty(folder: Path, others: Iterable[Path] = ()) -> bool:
    """Tell whether a folder is not there, or holds no file of anybody but what is in `others`, `BESIDES` and `LOGS`."""
    folder, others = Path(folder), [Path(other).resolve() for other in others]
    if not folder.is_dir():
        return True
    for path in folder.iterdir():
        known = path.name in BESIDES or path.name.endswith(LOGS) or files.TEMPORARY.fullmatch(path.name)
        if known or path.resolve() in others or is_citation(path):
            continue
        if path.is_symlink() or not path.is_dir() or not is_empty(path, others):
            return False
    return True


def is_citation(path: Path) -> bool:
    """Tell whether a file is what `--boilerplate-only` writes, which describes no dataset."""
    return path.parent.name == 'logs' and path.name in ('CITATION.md', 'CITATION.bib')


def is_of_group(folder: Path) -> bool:
    """Tell whether a folder holds the tables and the page of the group level of this app, and nothing else."""
    page = Path(folder, 'group.html')
    strange = [path.name for path in Path(folder).iterdir() if not path.name.startswith(GROUP_FILES)]
    return page.is_file() and APP_NAME in text_files.read_text(page) and not strange


# ------------------------------------------------------------------------------------------------- the same dataset


def source_of(description: Any) -> Path | None:
    """Return the folder that a derivative of this app was made from, as it was called then; None if it does not say."""
    links = description.get('DatasetLinks')
    link = links.get('raw') if isinstance(links, dict) else None
    return Path(unquote(urlparse(link).path)) if isinstance(link, str) and link.startswith('file:') else None


def is_same_dataset(description: Any, made_from: Path, bids_dir: Path) -> bool:
    """Tell whether a dataset is the one that an output was made from.

    The same folder is the same dataset, whatever has changed in it. If the path or (in a container, where every dataset
    is `/data`) the inode is another, then one of the images that were noted must be there with the same bytes. Outputs
    of 0.2.0 note none: their path decides.
    """
    same_path = made_from == bids_dir.resolve()
    noted = description.get('SourceImages')
    noted = noted if isinstance(noted, dict) else {}
    images: Any = noted.get('Sha256')
    if same_path and noted.get('Inode') in (None, bids_dir.stat().st_ino):
        return True
    found = {name: hash_of(bids_dir / name) for name in images} if isinstance(images, dict) else {}
    found = {name: value for name, value in found.items() if value is not None}
    return any(images[name] == value for name, value in found.items()) if found else same_path


def note_source(bids_dir: Path, n_images: int = 5) -> dict[str, Any]:
    """Return what tells a dataset from others of its path, for `dataset_description.json`: see `is_same_dataset`."""
    bids_dir, images = Path(bids_dir), {}
    for folder in sorted(bids_dir.glob('sub-*')):
        first = min([*folder.glob('anat/*.nii*'), *folder.glob('ses-*/anat/*.nii*')], default=None)
        if first is not None and (value := hash_of(first)):
            images[first.relative_to(bids_dir).as_posix()] = value
        if len(images) == n_images:
            break
    return {'Inode': bids_dir.stat().st_ino, 'Sha256': images}


def hash_of(path: Path, n_bytes: int = 2**18) -> str | None:
    """Return the SHA-256 of the beginning of a file with its size; None if it is not there, or not fetched."""
    try:
        with open(path, 'rb') as file:
            head = file.read(n_bytes)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return None
    return None if files.ANNEX_POINTER in head[:100] else hashlib.sha256(b'%d:' % size + head).hexdigest()


# ------------------------------------------------------------------------------------- folders that are no BIDS dataset


def check_folder(folder: Path, mark: str, keys: Collection[str], made_by: str, never: str | None = None) -> None:
    """Raise UsageError unless a folder is empty or new, or holds what a program of ours wrote.

    Parameters
    ----------
    folder : path
    mark : str
        Name of the JSON file that the program writes first.
    keys : sequence of str
        What that file holds.
    made_by : str
        Name of the program.
    never : str, optional
        What never lies beside that file: a finished model has a `plan.json` too.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f'OUT {folder} is a file, expected a folder: {ELSE}')
    if is_empty(folder):
        return
    try:
        content = text_files.read_json(folder / mark)
    except (OSError, text_files.UnreadableError):
        content = {}
    strange = [name for name in ('dataset_description.json', never) if name and (folder / name).exists()]
    if strange or not set(keys) <= set(content):
        first = min(path.name for path in folder.iterdir())
        raise UsageError(
            f'OUT {folder} holds files of others ({first}, ...) and no {mark} by {made_by}: nothing is replaced there; '
            f'{ELSE}'
        )


# ----------------------------------------------------------------------------------------------- files without a folder


def record_of(path: str | Path) -> Any:
    """Return the path of the JSON file beside an image that says what was written with it."""
    path = Path(path)
    return path.with_name(f'{path.name.removesuffix(".gz").removesuffix(".nii")}.json')


def check_single(paths: Iterable[Path], record: Any, may_replace: bool = False) -> None:
    """Raise UsageError if one of some files, or their record, is there and was not written by us as it stands.

    Parameters
    ----------
    paths : sequence of Path
        To be written.
    record : Path
        See `record_of`; its `FilesSHA256` knows what was written.
    may_replace : bool
        False: what we wrote is not replaced either.
    """
    written = set()
    if os.path.lexists(record):
        try:
            content = text_files.read_json(record)
        except (OSError, text_files.UnreadableError):
            content = {}
        if makers_of(content)[-1:] != [APP_NAME]:
            raise UsageError(f'{record} is there and was not written by {APP_NAME}: {ELSE_FILE}')
        written = set(hashes_in(record).values())
    for path in (path for path in paths if os.path.lexists(path)):
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() not in written:
            raise UsageError(f'{path} is there and was not written by {APP_NAME} as it stands: {ELSE_FILE}')
        if not may_replace:
            raise UsageError(f'{path} is there already; use --overwrite')


def hashes_in(record: Any) -> Any:
    """Return the SHA-256 of the files that a record knows, by name; empty if it cannot be read or knows none."""
    try:
        hashes = text_files.read_json(record).get('FilesSHA256')
    except (OSError, text_files.UnreadableError):
        return {}
    return {name: value for name, value in hashes.items() if isinstance(value, str)} if isinstance(hashes, dict) else {}
