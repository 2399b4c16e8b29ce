"""Lesions painted into healthy tissue: where the truth beneath a lesion is known."""

import numpy as np
from scipy import ndimage


def paint_lesion(image, lesion_mask, wm_mask, contrast, edge_voxels):
    """Darken a lesion with a soft edge into a T1w image; return the image and the lesion's share in every voxel.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
        The lesion is the mask blurred; it stays inside white matter.
    contrast : float
        What is subtracted where the lesion is full, in units of the image.
    edge_voxels : float
        Standard deviation of the Gaussian edge, in voxels.

    Returns
    -------
    painted : (X, Y, Z) float array
    alpha : (X, Y, Z) float array, 0 to 1
    """
    alpha = ndimage.gaussian_filter(lesion_mask.astype(np.float32), edge_voxels) * wm_mask
    peak = alpha.max()
    if peak > 0:  # a small lesion loses its peak to the blur; real small lesions do not
        alpha = np.minimum(alpha / min(peak, 0.9) * 0.9, 1.0)
    return image - contrast * alpha, alpha
