"""Fluid in and around lesions: its level, its voxels, and its share in the voxels at a wall.

Arrays are `(X, Y, Z)` on any one grid; distances in mm.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from ..images import masks

FLUID_BELOW = 0.3  # of the way from fluid to white matter: darker is fluid. The darkest lesions lie at 0.4
LEAST_FLUID_ML = 0.3  # outside the mask: ventricles and the space around the brain are larger, black holes smaller
WALL_MM = 1.8  # how far from fluid a voxel may be partly fluid
THIN_FLUID, THIN_MM = 0.4, 4.0  # share of fluid of a thin horn, and how far from fluid it may end
# Of the way from fluid to white matter on a FLAIR: a voxel that is mostly fluid is darker. And at most so bright is
# fluid, relative to white matter, on what is a FLAIR.
SOLID_ABOVE, FLAIR_FLUID_BELOW = 0.7, 0.7


def fluid_level(relative: np.ndarray, outside: np.ndarray, voxel_mm: Sequence[float] | np.ndarray) -> float:
    """Find the level of fluid: the middle of what is dark and two mm inside it.

    Parameters
    ----------
    relative : (X, Y, Z) float array
        A T1w, white matter at 1.
    outside : (X, Y, Z) bool array
        The brain without lesions.
    voxel_mm : sequence of 3 floats
    """
    box = masks.bounding_box(outside, 1) if outside.any() else ...
    relative, outside = relative[box], outside[box]
    csf = 0.3  # on most T1w images
    for _ in range(3):
        dark = outside & (relative < dark_below(csf))
        deep = ndimage.distance_transform_edt(dark, sampling=voxel_mm) > 2
        deep = deep if deep.any() else dark
        csf = float(np.median(relative[deep])) if deep.any() else csf
    return csf


def fluid_core(
    relative: np.ndarray, csf: float, lesion_mask: np.ndarray, may_be_fluid: np.ndarray, voxel_mm: Any
) -> np.ndarray:
    """Find the voxels of fluid: dark, and connected to fluid outside the mask.

    A black hole inside white matter is no fluid, as dark as it may be: nothing connects it to a ventricle or a sulcus.

    Parameters
    ----------
    relative, csf : (X, Y, Z) float array and float
        A T1w, white matter at 1; see `fluid_level`.
    lesion_mask, may_be_fluid : (X, Y, Z) bool array
        Lesions; the brain, maybe without what another image shows to be no fluid.
    voxel_mm : sequence of 3 floats

    Returns
    -------
    (X, Y, Z) bool array
    """
    dark = may_be_fluid & (relative < dark_below(csf))
    labels, n_parts = ndimage.label(dark & ~lesion_mask)
    volumes_ml = np.bincount(labels.flat, minlength=n_parts + 1) * np.prod(voxel_mm) / 1000
    seeds = (volumes_ml >= LEAST_FLUID_ML)[labels] & (labels > 0)
    return ndimage.binary_propagation(seeds, mask=dark) if seeds.any() else seeds


def dark_below(csf: float) -> float:
    """Return the level below which a voxel of a T1w is fluid, from that of fluid; white matter is at 1."""
    return csf + FLUID_BELOW * (1 - csf)


def fluid_share(
    image: np.ndarray,
    core: np.ndarray,
    csf: float,
    tissue: np.ndarray,
    brain_mask: np.ndarray,
    voxel_mm: Sequence[float] | np.ndarray,
    may_be_fluid: np.ndarray | bool = True,
) -> np.ndarray:
    """Estimate the fluid share of every voxel at the wall of fluid: fluid or the expected tissue.

    Parameters
    ----------
    image : (X, Y, Z) float array
    core, brain_mask : (X, Y, Z) bool array
    csf : float
    tissue : (X, Y, Z) float array
        What the voxel would be without fluid.
    voxel_mm : sequence of 3 floats
    may_be_fluid : (X, Y, Z) bool array, optional
        Elsewhere no horn reaches.

    Returns
    -------
    (X, Y, Z) float32 array: 1 in fluid and outside the brain, 0 away from fluid
    """
    share = np.clip((tissue - image) / np.maximum(tissue - csf, 1e-6), 0, 1)
    # The roof of a ventricle, a thin horn: partly fluid all through, and one with what is fluid.
    thin = (share > THIN_FLUID) & near(core, THIN_MM, voxel_mm) & may_be_fluid
    body = ndimage.binary_propagation(core, mask=core | thin)
    # A point spread function cannot carry fluid farther than this: what is darker there is lesion.
    most = 1.5 * ndimage.gaussian_filter(body.astype(np.float32), np.divide(0.8, voxel_mm))
    share = np.where(near(body, WALL_MM, voxel_mm), np.minimum(share, np.where(body, 1, most)), 0)
    return np.where(core | ~brain_mask, 1, share).astype(np.float32)


def own_fluid(image: np.ndarray, tissue: np.ndarray, csf: float) -> np.ndarray:
    """Return the most fluid that a voxel can hold by this image, where another image says how much it holds.

    Inside a lesion the two may differ, by a shift or by thicker slices: what looks like tissue here is none of the
    other's fluid, else a bright lesion would stay on the wall, or a dark wall be drawn that is not in the image.

    Parameters
    ----------
    image, tissue : (X, Y, Z) float array
        What a voxel is, and what it would be without fluid.
    csf : float

    Returns
    -------
    (X, Y, Z) float32 array, 0 to 1
    """
    way = csf - tissue
    way = np.where(np.abs(way) < 1e-6, 1e-6, way)
    return np.clip((image - tissue) / way / (1 - FLUID_BELOW), 0, 1).astype(np.float32)


def solid_on_flair(
    flair: np.ndarray, fluid: np.ndarray, wm_mask: np.ndarray, lesion_mask: np.ndarray, brain_mask: np.ndarray
) -> np.ndarray:
    """Find voxels of lesions that a FLAIR shows to be no fluid: there fluid is dark, and a black hole hardly is.

    Parameters
    ----------
    flair : (X, Y, Z) float array, in any unit
    fluid : (X, Y, Z) bool or float array
        Fluid by the T1w.
    wm_mask, lesion_mask, brain_mask : (X, Y, Z) bool array

    Returns
    -------
    (X, Y, Z) bool array; all False if the FLAIR does not tell fluid from white matter.
    """
    csf = level_in_fluid(flair, np.where(lesion_mask, 0, fluid), brain_mask)
    white_matter = float(np.median(flair[wm_mask & ~lesion_mask]))
    if csf > FLAIR_FLUID_BELOW * white_matter:
        return np.zeros_like(lesion_mask)
    bright = lesion_mask & (flair > csf + SOLID_ABOVE * (white_matter - csf))
    return ndimage.binary_closing(np.pad(bright, 1))[1:-1, 1:-1, 1:-1] & lesion_mask


def level_in_fluid(image: np.ndarray, fluid: np.ndarray, brain_mask: np.ndarray) -> float:
    """Compute the fluid level of an image with known fluid shares: the median of voxels all fluid."""
    whole = brain_mask & (fluid > 0.99)
    inner = ndimage.binary_erosion(whole)
    inner = inner if inner.any() else whole
    return float(np.median(image[inner])) if inner.any() else 0.0


def near(mask: np.ndarray, reach_mm: float, voxel_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Find voxels whose centre is within a distance of one of a mask; (X, Y, Z) bool array."""
    if not mask.any():
        return np.zeros_like(mask)
    return ndimage.distance_transform_edt(~mask, sampling=voxel_mm) <= reach_mm
