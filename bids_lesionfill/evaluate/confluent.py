"""Cases as patients have them: confluent lesions that touch ventricles and cortex, in healthy brains. Pure functions.

Whole masks of patients, and single lesions of 1 to 20 ml, come into a healthy brain by deformable registration, so that
they lie on its ventricles as on the patient's. They are painted into white matter with soft edges; fluid and grey
matter stay what they are in the truth, while the mask that is handed over laps into them as raters' masks do. A filler
is scored over everything that the lesion touched and everything that it filled. Arrays are `(X, Y, Z)`, RAS, 1 mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from ..images import masks, registration, tissues
from ..lesions import contrasts as lesions_contrasts
from . import cases

LARGE_ML = (1.0, 20.0)
HELD_OUT_OF = 5  # every fifth single lesion is kept for evaluations: training must leave it out
SMALL_ML = 0.1  # lesions up to here are scored together: there are dozens
LAP_VOXELS = 2  # how far the mask laps into fluid and grey matter, at most
MIN_VOXELS = 4  # of a painted lesion
CONTRAST_SPREAD, CONTRAST_VOXELS = 0.2, 3  # of the contrast within a lesion, and over what distance it varies
CONTACT, NO_CONTACT = 'touches fluid', 'away from fluid'


class Drawn(NamedTuple):
    """A healthy brain with painted confluent lesions; the truth is known."""

    image: np.ndarray  # the healthy truth, normalised
    seen: np.ndarray
    given_mask: np.ndarray  # as a rater would hand it over
    touched: np.ndarray  # what the painted lesions reached
    labels: np.ndarray  # 0, and the number of each lesion
    at_fluid: np.ndarray  # (n,) bool: whether lesion 1, 2, ... touches fluid
    wm_mask: np.ndarray
    fluid_mask: np.ndarray


def unpack_lesions(
    archive: dict[str, np.ndarray], volume_ml: tuple[float, float] = LARGE_ML, held_out: bool = True
) -> list[Any]:
    """Read single lesions from a `lesion-shapes` archive: list of (first voxel, bool array).

    Parameters
    ----------
    archive : dict of arrays
        `offset`, `shape`, `nvox`, `bits`, `ptr`.
    volume_ml : (low, high)
    held_out : bool
        Those kept for evaluations, every fifth of the archive, or all others.
    """
    low, high = volume_ml
    lesions = []
    for number, n_voxels in enumerate(archive['nvox']):
        if low < n_voxels / 1000 <= high and (number % HELD_OUT_OF == HELD_OUT_OF - 1) == held_out:
            shape = archive['shape'][number].astype(int)
            bits = archive['bits'][archive['ptr'][number] : archive['ptr'][number + 1]]
            lesion = np.unpackbits(bits, count=int(shape.prod())).reshape(shape).astype(bool)
            lesions.append((archive['offset'][number].astype(int), lesion))
    return lesions


def gather_lesions(
    lesions: Sequence[tuple[np.ndarray, np.ndarray]],
    shape: Sequence[int] | np.ndarray,
    rng: np.random.Generator,
    n_lesions: int = 3,
) -> np.ndarray:
    """Sample lesions that do not touch into one mask, at their own places: (X, Y, Z) bool array."""
    mask = np.zeros(shape, dtype=bool)
    placed = 0
    for chosen in rng.permutation(len(lesions)):
        offset, lesion = lesions[chosen]
        box = tuple(slice(start, start + size) for start, size in zip(offset, lesion.shape))
        around = masks.widen(box, 2)
        if placed < n_lesions and not mask[around].any():
            mask[box] |= lesion
            placed += 1
    return mask


def warp_mask(mask: np.ndarray, affine: np.ndarray, points_mm: np.ndarray, brain_mask: np.ndarray) -> np.ndarray:
    """Warp a mask from template space to a brain, thresholded at half a voxel: (X, Y, Z) bool array.

    Parameters
    ----------
    mask : (X', Y', Z') bool array
    affine : (4, 4) array, of the mask
    points_mm : (voxels, 3) array
        Where the voxels of the brain mask lie in the template's world, see `deformable.find_in`.
    brain_mask : (X, Y, Z) bool array
    """
    warped = np.zeros(brain_mask.shape, dtype=bool)
    warped[brain_mask] = registration.sample(mask.astype(np.float32), affine, points_mm, order=1) >= 0.5
    return warped


def draw_case(
    image: np.ndarray, tissue_seg: np.ndarray, warped_mask: np.ndarray, rng: np.random.Generator, tight: bool = False
) -> Drawn:
    """Insert the lesions of a mask into white matter and delineate them as a rater does: Drawn.

    Parameters
    ----------
    image : (X, Y, Z) float array, normalised T1w
    tissue_seg : (X, Y, Z) int array
    warped_mask : (X, Y, Z) bool array
        See `warp_mask`.
    rng : numpy.random.Generator
    tight : bool
        The mask is a voxel too tight, or ragged; see `evaluation_cases.tighten`.

    Raises
    ------
    ValueError
        If nothing of the mask lies in white matter.
    """
    wm_mask, fluid_mask = tissue_seg == tissues.WHITE_MATTER, tissue_seg == tissues.CSF
    labels, _ = masks.label_lesions(warped_mask & wm_mask)
    sizes = np.bincount(labels.flat)
    kept = sizes >= MIN_VOXELS
    kept[0] = False
    if not kept.any():
        raise ValueError(f'none of the {warped_mask.sum()} voxels of the mask lies in white matter')
    labels = np.where(kept, np.cumsum(kept), 0)[labels]
    contrasts = np.array([0.0] + [lesions_contrasts.draw_contrast(rng) for _ in range(labels.max())])
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    owner = labels[tuple(nearest)]
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape), CONTRAST_VOXELS)
    varied = np.clip(1 + CONTRAST_SPREAD * noise / noise.std(), 0.3, 1.7)  # tissue within a lesion is not of one kind
    contrast = (contrasts[owner] * varied).astype(np.float32)
    edge = rng.uniform(*cases.EDGE_VOXELS)
    seen, alpha = lesions_contrasts.paint_lesion(image, labels > 0, wm_mask, contrast, edge)
    touched = alpha > cases.TOUCHED
    lap = warped_mask & ~wm_mask & masks.dilate_within(labels > 0, np.ones_like(wm_mask), LAP_VOXELS)
    given_mask = (alpha > 0.5) | lap
    at_fluid = np.zeros(labels.max() + 1, dtype=bool)
    at_fluid[np.unique(labels[ndimage.binary_dilation(fluid_mask, masks.FULL_CONNECTIVITY)])] = True
    if tight:
        drawn = np.zeros_like(given_mask)
        for number in range(1, labels.max() + 1):
            drawn |= cases.tighten(given_mask & (owner == number), rng)
        given_mask = drawn
    return Drawn(image, seen, given_mask, touched, labels, at_fluid[1:], wm_mask, fluid_mask)


def make_case(drawn: Drawn, used_mask: np.ndarray, kind: str, subject: str, dilation: str) -> cases.Case:
    """Return the case of a filler with its own mask, scored where it filled or the lesions touched.

    Units are the lesions, those up to 0.1 ml together; their place says whether they touch fluid.

    Parameters
    ----------
    drawn : Drawn
    used_mask : (X, Y, Z) bool array
    kind, subject, dilation : as of `evaluation_cases.Case`

    Returns
    -------
    evaluation_cases.Case
    """
    volumes_ml = np.bincount(drawn.labels.flat)[1:] / 1000
    nearest = ndimage.distance_transform_edt(drawn.labels == 0, return_distances=False, return_indices=True)
    owner = drawn.labels[tuple(nearest)]
    scored = drawn.touched | drawn.given_mask | used_mask
    small = volumes_ml <= SMALL_ML
    members: list[Any] = [[number] for number in np.flatnonzero(~small)]
    members += [np.flatnonzero(small & contact) for contact in (drawn.at_fluid, ~drawn.at_fluid)]
    units = []
    for number, of_unit in enumerate((group for group in members if len(group)), start=1):
        belongs = np.isin(owner, np.asarray(of_unit) + 1)
        place = CONTACT if drawn.at_fluid[of_unit[0]] else NO_CONTACT
        volume_ml = float(volumes_ml[of_unit].mean())
        units.append(cases.Unit(number, scored & belongs, used_mask & belongs, volume_ml, place))
    return cases.Case(kind, dilation, subject, drawn.image, drawn.seen, used_mask, drawn.wm_mask, tuple(units))
