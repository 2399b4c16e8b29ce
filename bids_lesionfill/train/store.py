"""Brains on disk, mapped into memory: training data may be larger than memory, and is read once."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from .brains import Brain


class Store:
    """A folder of brains, each an array per file (.npy), that is mapped and read where it is needed.

    What was read before from the same files by the same function is there already; a brain is whole or absent.

    Parameters
    ----------
    folder : path
        Made if it is not there. It may be removed when no training runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __call__(self, files: Iterable[str | Path], read: Callable[[], Brain | None], what: str = '') -> Brain | None:
        """Return a brain, from disk or by `read`; None if `read` gives none.

        Parameters
        ----------
        files : paths of what it is made from
        read : callable
            Gives the brain, without `levels`.
        what : str
            All else that it depends on.
        """
        there = self.folder / key_of(files, what)
        if not there.is_dir():
            self.write(there, read())
        arrays = {path.stem: np.load(path, mmap_mode='r') for path in sorted(there.glob('*.npy'))}
        return Brain(**arrays) if arrays else None

    def write(self, there: Path, brain: Brain | None) -> None:
        """Write the arrays of a brain; an empty folder stands for none."""
        new = there.with_name(f'{there.name}.{os.getpid()}.new')
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for name, array in (brain._asdict() if brain is not None else {}).items():
            if array is not None:
                np.save(new / f'{name}.npy', np.ascontiguousarray(array))
        try:
            os.replace(new, there)
        except OSError:  # another process was faster
            shutil.rmtree(new, ignore_errors=True)
            if not there.is_dir():
                raise


def key_of(files: Iterable[str | Path], what: str) -> str:
    """Return what tells brains apart: paths, sizes and times of their files, and what was done with them."""
    about = [(str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([what, about]).encode()).hexdigest()[:24]
