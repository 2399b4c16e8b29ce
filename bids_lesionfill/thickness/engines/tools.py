"""Shared code of engines that call other programs: nipype without a network, and results in derivatives."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from ...images import grid
from ..registry import desc_in
from ..tables import FREESURFER_INDEX

if TYPE_CHECKING:
    from ..engine import Scan


def nipype_interface(module: str, name: str) -> Any:
    """Return a nipype interface class, with its (forbidden) network check for updates disabled."""
    os.environ['NO_ET'] = '1'
    return getattr(importlib.import_module(f'nipype.interfaces.{module}'), name)


def find_results(
    roots: dict[str, Path], scan: Scan, filename: str, is_ours: Callable[[Path], bool] = lambda folder: True
) -> Path:
    """Find a file of another tool's results on one image.

    Parameters
    ----------
    roots : dict of name -> path
        Folders of the tool, each with a folder per image, under the names that `--derivatives` gave them.
    scan : Scan
        Its folder is `sub-01_desc-filled` in any root or, in a root of which the given name or else the name on disk
        says `original` or `filled`, `sub-01`. What a root without such a word calls `sub-01` is the original.
    filename : str
        Below that folder.
    is_ours : callable
        Whether a folder is one of the tool at all.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        It says where it looked.
    ValueError
        If several are there.
    """
    names = dict.fromkeys(filter(None, [scan.name, scan.visit]))
    folders = [Path(root) / f'{name}_desc-{scan.desc}' for root in roots.values() for name in names]
    # A tool that was run on the raw dataset knows nothing of desc.
    descs = {given: desc_in(given, Path(root).name) or 'original' for given, root in roots.items()}
    folders += [Path(root) / name for given, root in roots.items() if descs[given] == scan.desc for name in names]
    found = [folder / filename for folder in folders if (folder / filename).is_file() and is_ours(folder)]
    if len(found) > 1:
        raise ValueError(
            f'{len(found)} files for {scan.name} ({scan.desc}): {", ".join(map(str, found))}; expected one'
        )
    if not found:
        looked = ', '.join(str(folder / filename) for folder in folders) or 'no folder: give one with --derivatives'
        raise FileNotFoundError(f'{filename} of {scan.name} ({scan.desc}) is not there; looked at {looked}')
    return found[0]


def regions_on_grid(label_file: Path, scan: Scan) -> nib.Nifti1Image | None:
    """Return the regions of the cortex (1..68) of a label volume of FreeSurfer on the grid of a scan; uint8 image.

    None if the file is not there, or has none of the regions in the space of the scan.
    """
    if not label_file.is_file():
        return None
    labels = np.rint(grid.resample_to(nib.load(label_file), scan.t1w_img, order=0)).astype(int)
    regions = np.zeros(labels.shape, dtype=np.uint8)
    for number, label in enumerate(FREESURFER_INDEX.values(), start=1):
        regions[labels == label] = number
    return nib.Nifti1Image(regions, scan.t1w_img.affine) if regions.any() else None
