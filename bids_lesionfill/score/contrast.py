"""Measure how visible a lesion is in an image. Arrays are `(X, Y, Z)`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from ..modality import get

SHELL_MM = (3, 6)  # distance of the tissue that a lesion is compared with: beyond its soft edge
MIN_SHELL_VOXELS = 20
WHITE_MATTER_SHARE = 0.87  # of the T1w intensity of white matter; grey matter has at most 0.8 of it
VISIBLE_SD = 2  # times the spread of the surrounding tissue


def measure_contrast(
    image: np.ndarray,
    lesion: np.ndarray,
    lesions: np.ndarray,
    voxel_sizes_mm: Sequence[float] | np.ndarray,
    t1w: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute the contrast of a lesion against the white matter around it.

    The tissue is the shell between `SHELL_MM` around the lesion, without other lesions and without background (0). With
    a T1w it is the white matter of that shell: what is brighter than `WHITE_MATTER_SHARE` of the 90th percentile, which
    holds while at least a fifth of the shell is white matter. Without one cortex and ventricles count, too. The median
    and 1.4826 times the median absolute deviation are taken.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion : (X, Y, Z) bool array
        This lesion alone, not empty.
    lesions : (X, Y, Z) bool array
        All lesions.
    voxel_sizes_mm : 3 floats
    t1w : (X, Y, Z) float array, optional

    Returns
    -------
    dict
        `percent`: 100 (mean of the lesion - tissue) / tissue; `sd`: the difference in units of the spread of the
        tissue. NaN if there is too little tissue, or none with a spread.
    """
    margin = [int(np.ceil(SHELL_MM[1] / size)) + 1 for size in voxel_sizes_mm]
    (box,) = ndimage.find_objects(lesion.astype(np.uint8))
    box = tuple(slice(max(side.start - n, 0), side.stop + n) for side, n in zip(box, margin))
    image, lesion, lesions = image[box], lesion[box], lesions[box]
    distance_mm = ndimage.distance_transform_edt(~lesion, sampling=voxel_sizes_mm)
    shell = (distance_mm > SHELL_MM[0]) & (distance_mm <= SHELL_MM[1]) & ~lesions & (image != 0)
    if t1w is not None and shell.any():
        shell &= t1w[box] > WHITE_MATTER_SHARE * np.percentile(t1w[box][shell], 90)
    if shell.sum() < MIN_SHELL_VOXELS:
        return {'percent': np.nan, 'sd': np.nan}
    tissue = float(np.median(image[shell]))
    spread = 1.4826 * float(np.median(np.abs(image[shell] - tissue)))
    difference = float(image[lesion].mean()) - tissue
    return {
        'percent': 100 * difference / tissue if tissue > 0 else np.nan,
        'sd': difference / spread if spread > 0 else np.nan,
    }


def is_visible(contrast_sd: float, modality: str) -> bool:
    """Return True if a lesion is at least `VISIBLE_SD` darker (T1w) or brighter (others) than the tissue around it."""
    return bool(get(modality).lesion_sign * contrast_sd >= VISIBLE_SD)  # type: ignore[operator]
