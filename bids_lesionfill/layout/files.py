"""Files: write atomically, lock folders, read tables, check what is read."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import gzip
import io
import json
import logging
import math
import os
import re
import shlex
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import errors

if TYPE_CHECKING:
    import nibabel as nib

    from .inputs import Inputs

logger = logging.getLogger('bids_lesionfill')

ANNEX_POINTER = b'/annex/objects/'  # what a file of git-annex begins with whose content was not fetched


# -------------------------------------------------------------------------------------------------- writing outputs


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file that is whole or absent, with its folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, 'xb') as file:  # x: not through a link that lies there
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:  # a full disk names no file, or the temporary one
        raise OSError(error.errno, error.strerror or f'{error}', str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


TEMPORARY = re.compile(r'\..+\.\d+-[0-9a-f]{8}\.tmp')  # what `temporary_name` gives


def temporary_name(path: Path) -> Path:
    """Return a temporary path alongside a file, with a name that no other process has."""
    return path.with_name(f'.{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp')


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON; what is no number is null, since JSON has no NaN."""
    write_bytes(path, (json.dumps(without_nan(content), indent=2, allow_nan=False) + '\n').encode())


def without_nan(content: Any) -> Any:
    """Return content with None in place of numbers that are not finite; numbers of numpy become those of Python."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_nan(value) for value in content]
    content = content.item() if hasattr(content, 'item') else content  # of numpy, which takes time to import
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_tsv(path: Path, rows: list[dict[str, Any]], columns: Iterable[str]) -> None:
    """Write a table (list of dicts) as BIDS TSV; missing values are `n/a`."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter='\t', lineterminator='\n')
    writer.writerow(columns)
    for row in rows:
        values = [row.get(column) for column in columns]
        writer.writerow(['n/a' if value is None or value != value else value for value in values])
    write_bytes(path, text.getvalue().encode())


def write_image(path: Path, img: nib.Nifti1Image) -> None:
    """Write a NIfTI image as it is (stored values, scaling), compressed, with the same bytes for the same image."""
    write_bytes(path, gzip.compress(img.to_bytes(), compresslevel=6, mtime=0))


def check_links(output_dir: Path, bids_dir: str | Path) -> None:
    """Raise UsageError if a folder in the output is a link into the dataset, which is never written to."""
    output_dir, bids_dir = Path(output_dir).resolve(), Path(bids_dir).resolve()
    for folder, names, _ in os.walk(output_dir):
        for link in (Path(folder, name) for name in names if Path(folder, name).is_symlink()):
            target = link.resolve()
            if target.is_relative_to(bids_dir) and not target.is_relative_to(output_dir):
                raise errors.UsageError(
                    f'{link} is a link to {target}, in BIDS_DIR, which is never written to: remove it'
                )


def check_folders(output_dir: Path, subjects: dict[str, list[Inputs]]) -> None:
    """Raise UsageError if what is to be the folder of a participant is a file."""
    for folder in (Path(output_dir) / f'sub-{subject}' for subject in subjects):
        if folder.exists() and not folder.is_dir():
            raise errors.UsageError(f'{folder} is a file, expected a folder: remove it')


@contextlib.contextmanager
def lock(folder: Path, shared: bool = False, quiet: bool = False) -> Iterator[None]:
    """Hold a folder, for oneself or with others who share it; wait until it is free, and say so unless `quiet`.

    The lock is one of the system (flock) on the folder itself: no file is left behind, and it ends with the process,
    however that ends. On a file system without such locks nothing is held.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    kind, descriptor = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not quiet:
                    logger.info('another run writes to %s: waiting for it', folder)
                fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(output_dir: Path, older_than_seconds: int = 3600) -> None:
    """Delete temporary files of killed runs: all if no other run holds the folder (see `lock`), else old ones."""
    descriptor, alone = os.open(output_dir, os.O_RDONLY), False
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a run that starts now waits until all is deleted
            alone = True
        for temporary in Path(output_dir).rglob('.*.tmp'):
            with contextlib.suppress(FileNotFoundError):  # it got its name meanwhile
                old = time.time() - temporary.lstat().st_mtime > older_than_seconds
                if TEMPORARY.fullmatch(temporary.name) and (alone or old):
                    temporary.unlink()
    finally:
        os.close(descriptor)


def check_content(path: str | Path) -> None:
    """Raise ValueError, with a sentence that names it, if a file has no content here or cannot be read.

    DataLad and git-annex leave a link to nowhere, or a file that holds the path of its content, until that is fetched.
    """
    path = Path(path)
    try:
        with open(path, 'rb') as file:
            is_pointer = file.read(len(ANNEX_POINTER)) == ANNEX_POINTER
    except FileNotFoundError:
        if not path.is_symlink():
            raise ValueError(f'{path} is not a file') from None
        is_pointer = True
    except OSError as error:
        raise ValueError(f'{path} cannot be read by user {os.geteuid()}: {error.strerror}') from None
    if is_pointer:
        kind = f'a link to {os.readlink(path)}, which is not there' if path.is_symlink() else 'a pointer of git-annex'
        raise ValueError(f'{path} is {kind}: fetch its content, with DataLad by: datalad get {shlex.quote(str(path))}')


def open_image(path: str | Path) -> nib.Nifti1Image:
    """Open an image file, of which the header is read.

    Raises
    ------
    ValueError
        If that is not possible; the sentence names the file.
    """
    import nibabel as nib  # here: `--help` must not wait for it
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    check_content(path)
    try:
        return nib.load(path)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise ValueError(f'{Path(path).name} cannot be read as an image: {error}') from None
