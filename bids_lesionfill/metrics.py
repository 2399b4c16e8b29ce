"""Image quality inside the mask, on axial slices (M1: the thesis' definition, 3.5 and table 3.3)."""

import numpy as np
from skimage.metrics import structural_similarity

DATA_RANGE = 2.0  # normalised images run from -1 to 1


def mean_squared_error(image_true, image_test, mask):
    """Mean squared difference over the mask; arrays of any one shape."""
    return float(np.mean((image_true[mask] - image_test[mask]) ** 2))


def structural_similarity_inside(image_true, image_test, mask):
    """SSIM map of one slice (7x7 uniform window, data range 2), averaged over the mask's pixels; (H, W) arrays."""
    _, ssim_map = structural_similarity(image_true, image_test, data_range=DATA_RANGE, full=True)
    return float(ssim_map[mask].mean())


def slice_scores(image_true, image_test, mask):
    """M1 of a volume: MSE, PSNR and SSIM inside the mask per axial slice, averaged over the slices that have a mask.

    Parameters
    ----------
    image_true, image_test : (X, Y, Z) float array, normalised; X and Y at least 7
    mask : (X, Y, Z) bool array

    Returns
    -------
    dict with `mse`, `psnr` (dB), `ssim`; NaN if the mask is empty.
    """
    scores = []
    for z in np.flatnonzero(mask.any(axis=(0, 1))):
        true, test, inside = image_true[..., z], image_test[..., z], mask[..., z]
        mse = mean_squared_error(true, test, inside)
        psnr = 10 * np.log10(DATA_RANGE**2 / max(mse, 1e-12))
        scores.append((mse, psnr, structural_similarity_inside(true, test, inside)))
    mean = np.mean(scores, axis=0) if scores else np.full(3, np.nan)
    return dict(zip(('mse', 'psnr', 'ssim'), map(float, mean)))
