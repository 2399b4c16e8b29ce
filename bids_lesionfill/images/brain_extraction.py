"""Brain extraction by the networks of deepbet (Fisch et al. 2024): one finds the box of the brain, one its mask.

Weights (TorchScript), and the steps around them, are those of deepbet 1.0.2 (MIT, see `deepbet/LICENSE`). Its package
is not used: it installs a graphical interface and libraries under the LGPL.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from . import masks

if TYPE_CHECKING:
    import torch

WEIGHTS_DIR = Path(__file__).parent / 'deepbet'
BOX_GRID, BRAIN_GRID = (128, 128, 128), (256, 256, 256)  # voxels of the input of each network
BOX_MARGIN = 0.1  # of the brain's extent, on each side
MIN_SLICE_SHARE = 0.02  # of a slice of the coarse mask that is brain, for the slice to count
WINDOW = (0.005, 0.995)  # quantiles


def extract_brain(t1w: np.ndarray) -> np.ndarray:
    """Extract the brain of a whole head.

    Parameters
    ----------
    t1w : (X, Y, Z) float array, RAS
        In any unit: its own quantiles are the window.

    Returns
    -------
    (X, Y, Z) bool array

    Raises
    ------
    ValueError
        If there is no brain.
    """
    import torch

    volume = torch.nan_to_num(torch.from_numpy(np.ascontiguousarray(t1w, dtype=np.float32)))
    coarse = resize(volume, BOX_GRID)
    window = coarse.quantile(WINDOW[0]), coarse.quantile(WINDOW[1])
    box = box_of(largest_part(predict('box', coarse, window).numpy() > 0.5), t1w.shape)
    fine = predict('brain', resize(volume[box], BRAIN_GRID), window)
    mask = np.zeros(t1w.shape, dtype=bool)
    mask[box] = ndimage.binary_fill_holes(largest_part(resize(fine, volume[box].shape).numpy() > 0.5))
    return mask


@cache
def load(name: str) -> torch.jit.ScriptModule:
    """Load a network (`box`, `brain`) on the CPU."""
    import torch

    return torch.jit.load(WEIGHTS_DIR / f'{name}.pt', map_location='cpu').eval()


def resize(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Resize a volume (tensor) to a shape by its nearest voxels."""
    from torch.nn import functional

    return functional.interpolate(volume[None, None], tuple(shape), mode='nearest-exact')[0, 0]


def predict(name: str, volume: torch.Tensor, window: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the probability of brain by a network; tensor of the shape of the volume."""
    import torch

    low, high = window
    volume = ((volume - low) / (high - low)).clamp(min=0, max=1)
    volume = 0.226 * (volume - volume.mean()) / volume.std() + 0.449
    with torch.no_grad():
        return load(name)(volume[None, None])[0, 1]


def largest_part(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected component of a mask (bool array).

    Raises
    ------
    ValueError
        If the mask is empty.
    """
    parts, n_parts = ndimage.label(mask, masks.FULL_CONNECTIVITY)
    if not n_parts:
        raise ValueError('no brain was found in the T1w: is it one of a head?')
    return parts == 1 + np.bincount(parts.flat)[1:].argmax()


def box_of(coarse: np.ndarray, shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the box (slices) of a brain in an image of a shape, with a margin, from its mask on the coarse grid."""
    box = []
    for axis, size in enumerate(shape):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(coarse.mean(others) > MIN_SLICE_SHARE)
        if not len(found):
            raise ValueError('no brain was found in the T1w: is it one of a head?')
        scale = size / coarse.shape[axis]
        centre = np.rint(scale * (found[-1] + 1 + found[0]) / 2)
        extent = np.rint((1 + 2 * BOX_MARGIN) * scale * (found[-1] + 1 - found[0]))
        box.append(slice(max(0, int(centre - extent / 2)), min(size, int(centre + extent / 2))))
    return tuple(box)
