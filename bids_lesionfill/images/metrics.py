"""Measures of a fill: image quality by two definitions, the border and texture it leaves, and intervals over cases.

M1 is the thesis' definition (3.5, table 3.3; axial slices), M2 that of the BraTS inpainting challenge (volumes).
Scores of M1 and M2 must never be compared with each other. At the end: what readers find, against guessing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.metrics import structural_similarity

DATA_RANGE = 2.0  # normalised images run from -1 to 1


def mean_squared_error(image_true: np.ndarray, image_test: np.ndarray, mask: np.ndarray) -> float:
    """Return mean squared difference over the mask; arrays of any one shape."""
    return float(np.mean((image_true[mask] - image_test[mask]) ** 2))


def peak_signal_to_noise_ratio(mse: Any, data_range: Any) -> float:
    """Return PSNR in dB; equal images get the finite value of an MSE of 1e-12, a data range of 0 gives NaN."""
    return float(10 * np.log10(data_range**2 / max(mse, 1e-12))) if data_range > 0 else np.nan


def similarity_map(image_true: np.ndarray, image_test: np.ndarray) -> np.ndarray:
    """Return SSIM at every pixel of one slice (7x7 uniform window, data range 2); (H, W) arrays, H and W at least 7."""
    return structural_similarity(image_true, image_test, data_range=DATA_RANGE, full=True)[1]


def region_scores(image_true: np.ndarray, image_test: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Return M1 of a volume by region: MSE, PSNR and SSIM per axial slice, averaged over the slices that have a mask.

    The thesis' table 3.3: inside the mask, outside of it and over the whole slice.

    Parameters
    ----------
    image_true, image_test : (X, Y, Z) float array, normalised; X and Y at least 7
    mask : (X, Y, Z) bool array

    Returns
    -------
    dict with `mse_in`, `psnr_in` (dB), `ssim_in`, and the same with `_out` and `_whole`; all NaN if the mask is empty,
    and a slice that the mask covers entirely does not count for `_out`.
    """
    scores = {'in': [], 'out': [], 'whole': []}
    for z in np.flatnonzero(mask.any(axis=(0, 1))):
        true, test, inside = image_true[..., z], image_test[..., z], mask[..., z]
        ssim_map = similarity_map(true, test)
        for name, region in zip(scores, (inside, ~inside, np.ones_like(inside))):
            if region.any():
                mse = mean_squared_error(true, test, region)
                scores[name].append((mse, peak_signal_to_noise_ratio(mse, DATA_RANGE), ssim_map[region].mean()))
    means = {name: np.mean(rows, axis=0) if rows else np.full(3, np.nan) for name, rows in scores.items()}
    return {
        f'{metric}_{name}': float(value)
        for name, mean in means.items()
        for metric, value in zip(('mse', 'psnr', 'ssim'), mean)
    }


def slice_scores(image_true: np.ndarray, image_test: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Return M1 of a volume.

    MSE, PSNR and SSIM inside the mask per axial slice, averaged over the slices that have a mask.

    Parameters
    ----------
    image_true, image_test : (X, Y, Z) float array, normalised; X and Y at least 7
    mask : (X, Y, Z) bool array

    Returns
    -------
    dict with `mse`, `psnr` (dB), `ssim`; NaN if the mask is empty.
    """
    scores = region_scores(image_true, image_test, mask)
    return {metric: scores[f'{metric}_in'] for metric in ('mse', 'psnr', 'ssim')}


def brats_scores(
    image_true: np.ndarray, image_test: np.ndarray, mask: np.ndarray, window: Sequence[float] | np.ndarray | None = None
) -> dict[str, float]:
    """Return M2 of a volume.

    MSE, PSNR and 3D SSIM inside the mask, as in the BraTS inpainting challenge (Kofler et al. 2023).

    Both images are scaled to [0, 1] by the 0.5 and 99.5 percentiles of the voided image (the truth outside the mask),
    clipped, and set to 0 outside the mask; SSIM with a Gaussian window of sigma 1.5 voxels (11 wide) and data range 1.
    Written from the published definition; the challenge's own package is AGPL.

    Parameters
    ----------
    image_true, image_test : (X, Y, Z) float array, any units; X, Y and Z at least 11
    mask : (X, Y, Z) bool array
    window : (low, high), optional
        The two percentiles, where the images are a part of the volume only; see `brats_window`.

    Returns
    -------
    dict with `mse`, `psnr` (dB; the data range is that of the truth in the mask, NaN if it is constant) and `ssim`;
    all NaN if the mask is empty or leaves nothing outside.
    """
    if mask.all() or not mask.any():
        return dict.fromkeys(('mse', 'psnr', 'ssim'), np.nan)
    low, high = brats_window(image_true, mask) if window is None else window
    scale = max(high - low, 1e-12)
    true, test = (np.where(mask, np.clip((image - low) / scale, 0, 1), 0) for image in (image_true, image_test))
    mse = mean_squared_error(true, test, mask)
    _, ssim_map = structural_similarity(
        true, test, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    psnr = peak_signal_to_noise_ratio(mse, np.ptp(true[mask]))
    return {'mse': mse, 'psnr': psnr, 'ssim': float(ssim_map[mask].mean())}


def brats_window(image_true: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the 0.5 and 99.5 percentiles of a volume outside the mask, which M2 scales to 0 and 1."""
    return np.percentile(image_true[~mask], (0.5, 99.5))


def _face_differences(image: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return absolute differences over the faces (6-neighbours) between a voxel of `one` and a voxel of `other`."""
    differences = []
    for axis in range(image.ndim):
        values, a, b = (np.moveaxis(array, axis, 0) for array in (image, one, other))
        faces = (a[1:] & b[:-1]) | (b[1:] & a[:-1])
        differences.append(np.abs(values[1:] - values[:-1])[faces])
    return np.concatenate(differences)


def border_ratio(image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, reach_voxels: int = 5) -> float:
    """Measure how much of the lesion's border is visible; needs no truth.

    1: as much contrast as in white matter nearby.

    The mean absolute difference over the faces between a filled voxel and white matter outside the mask, divided by
    that over the faces between two voxels of white matter near the mask.

    Parameters
    ----------
    image : (X, Y, Z) float array, filled; any units
    lesion_mask, wm_mask : (X, Y, Z) bool array
    reach_voxels : float
        White matter is near up to this (Euclidean) distance from the mask, in voxels.

    Returns
    -------
    float; NaN if either kind of face is missing, or if the white matter nearby is constant.
    """
    outside = wm_mask & ~lesion_mask
    border = _face_differences(image, lesion_mask, outside)
    near = outside & (ndimage.distance_transform_edt(~lesion_mask) <= reach_voxels)
    nearby = _face_differences(image, near, near)
    return float(border.mean() / nearby.mean()) if border.size and nearby.any() else np.nan


def texture_ratio(image_true: np.ndarray, image_test: np.ndarray, mask: np.ndarray) -> float:
    """Return standard deviation inside the mask against the truth's: below 1 the fill is too smooth.

    Parameters
    ----------
    image_true, image_test : float arrays of one shape
    mask : bool array of that shape

    Returns
    -------
    float; NaN if the mask is empty or the truth constant.
    """
    true, test = image_true[mask], image_test[mask]
    return float(test.std() / true.std()) if true.size and np.ptp(true) > 0 else np.nan
