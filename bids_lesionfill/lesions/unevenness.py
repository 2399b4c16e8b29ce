"""Texture of new lesions: the noise that the image has there already, and the unevenness of real lesions.

A network that was trained for hours paints the mean of lesions well in one step, and their texture badly in many. The
lesion is therefore added to the tissue: its mean, smoothed, takes the place of the tissue's trend, and what is left of
the tissue, its noise, stays. So the noise of the image goes on through the border of the lesion. Inside, real lesions
are uneven beyond noise, in proportion to their contrast (`Modality.unevenness`).

Arrays are `(X, Y, Z)` on the working grid of 1 mm.
"""

import numpy as np
from scipy import ndimage

from ..images import masks
from . import texture

TREND_MM = 1.5  # standard deviation of the Gaussian that separates the noise of the tissue from its trend
MEAN_MM = 0.6  # of the one that takes the network's own grain off its mean
PATCH_MM = 1.7  # of the one that makes white noise into the patches of a lesion: their correlation is 0.6 at 2 mm
EDGE_MM = 0.8  # of the soft edge to which unevenness falls


def add_texture(
    image: np.ndarray,
    mean: np.ndarray,
    hole: np.ndarray,
    tissue: np.ndarray,
    contrast: np.ndarray,
    unevenness: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return an image with new lesions that have a texture; equal to `image` outside the hole.

    Parameters
    ----------
    image : (X, Y, Z) float array
        With the tissue that is in the place of the lesions.
    mean : (X, Y, Z) float array
        With the lesions as the network means them.
    hole, tissue : (X, Y, Z) bool array
        The new lesions; white matter without other lesions.
    contrast : (X, Y, Z) float array
        Asked for, in units of the image; 0 outside the hole.
    unevenness : float
        Standard deviation of a lesion beyond noise, as a share of its contrast.
    rng : numpy.random.Generator

    Returns
    -------
    (X, Y, Z) float32 array
    """
    box = masks.bounding_box(hole, int(np.ceil(4 * TREND_MM)))
    image_box, inside = image[box], hole[box]
    noise = image_box - texture.smooth_within(image_box, tissue[box] | inside, np.full(3, TREND_MM))
    smooth = ndimage.gaussian_filter(np.where(inside, mean[box], image_box), MEAN_MM)
    alpha = ndimage.gaussian_filter(inside.astype(np.float32), EDGE_MM)
    uneven = patches(inside.shape, rng) * unevenness * np.abs(contrast[box]) * alpha
    painted = np.array(image, dtype=np.float32)
    painted[box] = np.where(inside, smooth + noise + uneven, image_box)
    return painted


def patches(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw smooth noise of mean 0 and standard deviation 1; float32 array."""
    drawn = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), PATCH_MM, mode='wrap')
    return drawn * (4 * np.pi * PATCH_MM**2) ** 0.75  # what a Gaussian leaves of white noise in three dimensions
