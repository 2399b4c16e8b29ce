"""Lesions that appear between two visits: a real before and after. Pure functions.

The second visit is filled where a lesion appeared, and compared with the first, after its intensities are matched in
the tissue around. Two scans of unchanged tissue differ as well: the same error around the lesion is what a perfect
fill would have. Arrays are `(X, Y, Z)` on one grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..images import masks

NEAR_MM, GAP_MM = 12, 2  # around a lesion, where intensities are matched and unchanged tissue is compared
MIN_NEAR_VOXELS = 50
APPEARED_SD = 1.0  # how much more a lesion must differ from white matter at the second visit than at the first
ABSENT_SD = 1.0  # how little it may differ at the first
APPEARED, GREW, VANISHED, UNCLEAR = 'appeared', 'grew', 'vanished', 'unclear'


class Change(NamedTuple):
    """A lesion of a mask of changes; contrasts in SD of the white matter around, above zero as lesions have it."""

    number: int  # its connected part of the mask: what is left out moves no number
    volume_ml: float
    voxel: tuple  # its middle
    contrast_first: float
    contrast_second: float
    verdict: str  # of the numbers; a person looks before it counts


def tissue_around(
    lesion_mask: np.ndarray, changed_mask: np.ndarray, wm_mask: np.ndarray, voxel_mm: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Return unchanged white matter 2 to 12 mm from a lesion, or all brain there if it is scarce."""
    distance = ndimage.distance_transform_edt(~lesion_mask, sampling=voxel_mm)
    clear = ~ndimage.binary_dilation(changed_mask, masks.FULL_CONNECTIVITY)
    return (distance > GAP_MM) & (distance <= NEAR_MM) & wm_mask & clear


def box_around(lesion_mask: np.ndarray, voxel_mm: Sequence[float] | np.ndarray) -> tuple[slice, ...]:
    """Return slices of the box around a lesion and its comparison tissue."""
    margins = np.ceil(NEAR_MM / np.asarray(voxel_mm)).astype(int) + 3
    bounds = ndimage.find_objects(lesion_mask.astype(np.uint8))[0]
    return tuple(slice(max(side.start - n, 0), side.stop + n) for side, n in zip(bounds, margins))


def match(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Match the median and robust spread of an image to a reference within a mask.

    The spread is that of smooth structure, not of noise: noise of the two scans is independent and is compared, not
    matched (`score`).

    Parameters
    ----------
    image, reference : (X, Y, Z) float array
    mask : (X, Y, Z) bool array
        Unchanged tissue.

    Returns
    -------
    (X, Y, Z) float array
    """
    smooth = [ndimage.gaussian_filter(np.asarray(volume, dtype=np.float64), 1.0)[mask] for volume in (image, reference)]
    middles = [np.median(values) for values in smooth]
    spreads = [np.subtract(*np.percentile(values, (90, 10))) for values in smooth]
    gain = spreads[1] / spreads[0] if min(spreads) > 0 else 1.0
    return middles[1] + gain * (image - middles[0])


def contrast(image: np.ndarray, lesion_mask: np.ndarray, around: np.ndarray, sign: int) -> float:
    """Compute the contrast of a lesion to the white matter around it, in robust SD of the latter."""
    values = image[around]
    deviation = max(1.4826 * np.median(np.abs(values - np.median(values))), values.std() / 4, 1e-12)
    return float(sign * (image[lesion_mask].mean() - np.median(values)) / deviation)


def judge(contrast_first: float, contrast_second: float) -> str:
    """Classify a change from its two contrasts: appeared, grew, vanished or unclear."""
    if contrast_first - contrast_second >= APPEARED_SD:
        return VANISHED
    if contrast_second - contrast_first < APPEARED_SD:
        return UNCLEAR
    return APPEARED if abs(contrast_first) <= ABSENT_SD else GREW


def find_changes(
    first: np.ndarray,
    second: np.ndarray,
    changed_mask: np.ndarray,
    wm_mask: np.ndarray,
    voxel_mm: Sequence[float] | np.ndarray,
    min_voxels: int = 4,
    sign: int = 1,
) -> tuple[np.ndarray, list[Change]]:
    """Find and classify the lesions of a change mask: (labels, list of Change).

    Parameters
    ----------
    first, second : (X, Y, Z) float array
        The image in which lesions are seen best (FLAIR) of both visits.
    changed_mask, wm_mask : (X, Y, Z) bool array
    voxel_mm : 3 floats
    min_voxels : int
        Smaller changes are left out.
    sign : {1, -1}
        Lesions are bright, or dark.
    """
    labels, n_lesions = masks.label_lesions(changed_mask)
    changes = []
    for number in range(1, n_lesions + 1):
        whole = labels == number
        box = box_around(whole, voxel_mm)
        lesion = whole[box]
        around = tissue_around(lesion, changed_mask[box], wm_mask[box], voxel_mm)
        if lesion.sum() < min_voxels or around.sum() < MIN_NEAR_VOXELS:
            continue
        contrasts = [contrast(image[box], lesion, around, sign) for image in (first, second)]
        voxel = tuple(int(n) for n in np.rint(np.argwhere(whole).mean(axis=0)))
        volume_ml = float(lesion.sum() * np.prod(voxel_mm) / 1000)
        changes.append(Change(number, volume_ml, voxel, contrasts[0], contrasts[1], judge(*contrasts)))
    return labels, changes


def score(
    first: np.ndarray,
    filled: np.ndarray,
    second: np.ndarray,
    lesion_mask: np.ndarray,
    changed_mask: np.ndarray,
    wm_mask: np.ndarray,
    voxel_mm: Sequence[float] | np.ndarray,
) -> dict[str, float]:
    """Score a filled follow-up image against the first visit: dict, NaN if unchanged tissue is scarce.

    Parameters
    ----------
    first, filled, second : (X, Y, Z) float array
        The first visit; the second one filled, and as it was. The three share a grid.
    lesion_mask, changed_mask, wm_mask : (X, Y, Z) bool array
        One lesion as it was given; all changes and all that was filled; white matter.
    voxel_mm : 3 floats

    Returns
    -------
    dict, in units of the standard deviation of the white matter around the lesion (second visit): `error` root mean
    squared difference to the matched first visit, `bias` mean difference; `error_unfilled` as the lesion was left;
    `error_tissue` the same of unchanged white matter around: what two scans of one tissue differ by; `ratio` of
    `error` and `error_tissue`, 1 is a perfect fill with the noise of a second scan.
    """
    box = box_around(lesion_mask, voxel_mm)
    first, filled, second, lesion_mask, changed_mask, wm_mask = (
        array[box] for array in (first, filled, second, lesion_mask, changed_mask, wm_mask)
    )
    around = tissue_around(lesion_mask, changed_mask, wm_mask, voxel_mm)
    names = ('error', 'bias', 'error_unfilled', 'error_tissue', 'ratio')
    if around.sum() < MIN_NEAR_VOXELS:
        return dict.fromkeys(names, np.nan)
    matched = match(first, second, around)
    deviation = second[around].std()

    def root_mean_square(image: np.ndarray, mask: np.ndarray) -> float:
        return float(np.sqrt(np.mean((image[mask] - matched[mask]) ** 2)) / deviation)

    error, tissue = root_mean_square(filled, lesion_mask), root_mean_square(second, around)
    bias = float((filled[lesion_mask] - matched[lesion_mask]).mean() / deviation)
    return dict(zip(names, (error, bias, root_mean_square(second, lesion_mask), tissue, error / tissue)))
