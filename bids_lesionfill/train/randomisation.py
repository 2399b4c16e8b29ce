"""Random contrasts of a normalised image: training by domain randomisation (Billot et al. 2023, SynthSeg).

A network that has seen grey matter and fluid brighter and darker than white matter, in noise and slices of many kinds,
has no contrast that it takes for granted. Images are `(X, Y, Z)` arrays: white matter +0.5, background -1. White matter
stays at +0.5: every image is normalised to that before it is filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..images import masks, tissues

WHITE_MATTER, BACKGROUND = 0.5, -1.0
INTENSITIES = np.linspace(-1.5, 4.0, 1101, dtype=np.float32)  # at which a remapping is tabulated


class Levels(NamedTuple):
    """Median intensities of a T1w, normalised; fluid is the darkest, white matter is at +0.5."""

    csf: float
    grey_matter: float


class Remapping(NamedTuple):
    """Two tables of new intensities at `INTENSITIES`; both map white matter to itself."""

    through_grey: np.ndarray  # between fluid and white matter lies grey matter
    direct: np.ndarray  # partial volume of fluid and white matter alone: at the ventricles


def measure_levels(image: np.ndarray, tissue_seg: np.ndarray) -> Levels | None:
    """Measure median intensities of fluid and grey matter in a T1w: `Levels`; None if not in a T1w's order."""
    csf, grey_matter = (
        float(np.median(image[tissue_seg == label])) if (tissue_seg == label).any() else np.nan
        for label in (tissues.CSF, tissues.GREY_MATTER)
    )
    in_order = BACKGROUND < csf < grey_matter - 0.05 and grey_matter < WHITE_MATTER - 0.05
    return Levels(csf, grey_matter) if in_order else None


def draw_remapping(levels: Levels, rng: np.random.Generator) -> Remapping:
    """Draw new contrasts of grey matter and fluid to white matter, each of either sign: a `Remapping`.

    Parameters
    ----------
    levels : Levels
        Of the image that is to be remapped.
    rng : numpy.random.Generator
    """
    sign = rng.choice((-1, 1))
    grey_matter = WHITE_MATTER + sign * rng.uniform(0.05, 0.8)
    csf = rng.uniform(-0.95, 0.2) if rng.random() < 0.5 else rng.uniform(0.8, 3.0)
    # What is brighter than white matter on the T1w mostly goes on as grey matter to white matter did.
    beyond = WHITE_MATTER + rng.choice((-1, 1), p=(0.8, 0.2)) * sign * rng.uniform(0.05, 0.6)
    middle = (grey_matter + WHITE_MATTER) / 2 + rng.uniform(-0.25, 0.25) * (grey_matter - WHITE_MATTER)
    known = [levels.csf, levels.grey_matter, (levels.grey_matter + WHITE_MATTER) / 2, WHITE_MATTER, 1.0]
    new = [csf, grey_matter, middle, WHITE_MATTER, beyond]
    tables = []
    for chosen in ((0, 1, 2, 3, 4), (0, 3, 4)):
        table = np.interp(INTENSITIES, [known[n] for n in chosen], [new[n] for n in chosen])
        table = ndimage.gaussian_filter1d(table, 10, mode='nearest')  # 0.05: no kinks
        tables.append(table + WHITE_MATTER - np.interp(WHITE_MATTER, INTENSITIES, table))
    return Remapping(*(table.astype(np.float32) for table in tables))


def share_of_grey(tissue_seg: np.ndarray) -> np.ndarray:
    """Return the share of the neighbourhood that is grey matter thicker than a voxel, 0 to 1; (X, Y, Z) float32 array.

    A sheet of voxels between a ventricle and white matter is called grey matter for its intensity alone.
    """
    thick = ndimage.binary_opening(tissue_seg == tissues.GREY_MATTER, masks.FULL_CONNECTIVITY[:2, :2, :2])
    return np.clip(3 * ndimage.gaussian_filter(thick.astype(np.float32), 1.5), 0, 1)


def remap(image: np.ndarray, tissue_seg: np.ndarray, remapping: Remapping) -> np.ndarray:
    """Return a T1w in another contrast; background stays at -1.

    Parameters
    ----------
    image : (X, Y, Z) float array, normalised
    tissue_seg : (X, Y, Z) int array
    remapping : Remapping

    Returns
    -------
    (X, Y, Z) float32 array
    """
    through_grey, direct = (np.interp(image, INTENSITIES, table) for table in remapping)
    share = share_of_grey(tissue_seg)
    new = share * through_grey + (1 - share) * direct
    return np.where(image <= BACKGROUND + 1e-3, BACKGROUND, np.maximum(new, BACKGROUND)).astype(np.float32)


def add_texture(image: np.ndarray, deviation: float, smoothness_voxels: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise of a standard deviation and a smoothness (Gaussian sigma, voxels) to all but the background."""
    noise = rng.normal(size=image.shape).astype(np.float32)
    if smoothness_voxels:
        noise = ndimage.gaussian_filter(noise, smoothness_voxels)
        noise /= max(noise.std(), 1e-6)
    return np.where(image > BACKGROUND + 1e-3, image + deviation * noise, image).astype(np.float32)


def thicken_slices(image: np.ndarray, thickness_voxels: float, rng: np.random.Generator, axis: int = 2) -> np.ndarray:
    """Simulate an acquisition in thick slices that was interpolated back; same shape.

    Parameters
    ----------
    image : (X, Y, Z) float array
    thickness_voxels : float
        Of the slices, which touch each other; their profile is a box. Their places are drawn.
    rng : numpy.random.Generator
    axis : int
        Across the slices.
    """
    if thickness_voxels <= 1:
        return image
    volume = np.moveaxis(image, axis, -1)
    n_slices = volume.shape[-1]
    edges = np.arange(-rng.random() * thickness_voxels, n_slices + thickness_voxels, thickness_voxels)
    sums = np.concatenate([np.zeros((*volume.shape[:2], 1)), np.cumsum(volume, axis=-1, dtype=np.float64)], axis=-1)
    edges = np.unique(np.clip(edges, 0, n_slices))
    lower = np.minimum(edges.astype(int), n_slices - 1)
    at_edges = sums[..., lower] + (edges - lower) * volume[..., lower]
    acquired = np.diff(at_edges, axis=-1) / np.diff(edges)
    centres = (edges[:-1] + edges[1:]) / 2 - 0.5
    places = np.clip(np.interp(np.arange(n_slices), centres, np.arange(len(centres))), 0, len(centres) - 1)
    before = np.minimum(places.astype(int), max(len(centres) - 2, 0))
    after = np.minimum(before + 1, len(centres) - 1)
    share = places - before
    resampled = (1 - share) * acquired[..., before] + share * acquired[..., after]
    return np.ascontiguousarray(np.moveaxis(resampled, -1, axis), dtype=np.float32)


def pool_slices(array: np.ndarray, n_slices: int) -> np.ndarray:
    """Average every `n_slices` axial slices (last axis): an image on the grid of thick slices.

    A mask keeps the voxels of which it holds more than half; of integer labels the middle slice is taken.
    """
    if n_slices == 1:
        return array
    parts = array.reshape(*array.shape[:-1], array.shape[-1] // n_slices, n_slices)
    if array.dtype == bool:
        return parts.mean(axis=-1) > 0.5
    if np.issubdtype(array.dtype, np.integer):
        return np.ascontiguousarray(parts[..., n_slices // 2])
    return parts.mean(axis=-1).astype(array.dtype)


def randomise_contrast(
    image: np.ndarray, tissue_seg: np.ndarray, levels: Levels, rng: np.random.Generator
) -> np.ndarray:
    """Sample another contrast, with structure in the white matter that the T1w does not have; see `draw_remapping`."""
    image = remap(image, tissue_seg, draw_remapping(levels, rng))
    return add_texture(image, rng.uniform(0, 0.06), rng.uniform(2, 6), rng) if rng.random() < 0.5 else image


def randomise_acquisition(image: np.ndarray, rng: np.random.Generator, thick: bool = True) -> np.ndarray:
    """Sample another resolution, noise and bias field; in a third of the cases thick slices, interpolated back.

    Parameters
    ----------
    image : (X, Y, Z) float array, normalised
    rng : numpy.random.Generator
    thick : bool
        False for what has thick slices already.

    Returns
    -------
    (X, Y, Z) float32 array
    """
    background = image <= BACKGROUND + 1e-3
    if rng.random() < 0.5:
        image = ndimage.gaussian_filter(image, rng.uniform(0.2, 0.9))
    if rng.random() < 0.7:
        image = add_texture(image, rng.uniform(0, 0.1), rng.choice((0, rng.uniform(0.3, 1.0))), rng)
    if thick and rng.random() < 1 / 3:
        image = thicken_slices(image, rng.uniform(1.5, 6), rng, axis=2 if rng.random() < 0.8 else int(rng.integers(2)))
    if rng.random() < 0.4:
        axis = int(rng.integers(3))
        shape = [1, 1, 1]
        shape[axis] = image.shape[axis]
        ramp = np.linspace(-1, 1, image.shape[axis]).reshape(shape) * rng.uniform(-0.1, 0.1)
        image = (image - BACKGROUND) * (1 + ramp) + BACKGROUND
    return np.where(background, BACKGROUND, image).astype(np.float32)


def draw_confluent_mask(
    allowed: np.ndarray,
    large_lesions: Sequence[np.ndarray],
    rng: np.random.Generator,
    max_lesions: int = 4,
    max_share: float = 0.6,
) -> np.ndarray:
    """Sample a mask of several large lesions that grew together near the middle of a crop.

    Parameters
    ----------
    allowed : (X, Y, Z) bool array
        Where the mask may be: white matter, and what a rater's mask overlaps of its neighbours.
    large_lesions : list of bool arrays
    rng : numpy.random.Generator
    max_lesions : int
        Two to so many shapes are merged; one of two thirds of the cases.
    max_share : float
        Of the allowed voxels that the mask holds at most: something must be left to fill from.

    Returns
    -------
    (X, Y, Z) bool array, empty if there is no place
    """
    mask = np.zeros(allowed.shape, dtype=bool)
    shape = np.array(allowed.shape)
    middle = allowed.copy()
    for axis, n_voxels in enumerate(shape):
        middle[(slice(None),) * axis + (slice(0, n_voxels // 4),)] = False
        middle[(slice(None),) * axis + (slice(n_voxels - n_voxels // 4, None),)] = False
    centres = np.argwhere(middle)
    n_lesions = rng.integers(2, max_lesions + 1) if rng.random() < 2 / 3 else 1
    for _ in range(n_lesions if len(centres) else 0):
        lesion = masks.random_orientation(large_lesions[int(rng.integers(len(large_lesions)))], rng)
        grown = mask | (masks.place(lesion, centres[rng.integers(len(centres))], allowed.shape) & allowed)
        if grown.sum() <= max_share * allowed.sum():
            mask = grown
    return mask
