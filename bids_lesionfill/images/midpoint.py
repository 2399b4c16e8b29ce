"""The space between several images of one head: mean of rigid transforms. World is RAS, mm; transforms are (4, 4)."""

from collections.abc import Sequence

import numpy as np
from scipy import linalg

TOLERANCE = 1e-10  # of a step, mm and radians
MOST_STEPS = 50


def mean_of(transforms: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of rigid transforms: that from which their logarithms sum to zero.

    Moving all of them by one transform, from the left or the right, moves the mean by it, and the mean of inverses is
    the inverse of the mean (Pennec and Arsigny 2013, doi:10.1007/978-1-4471-4820-5_13). Of two it is half the way.
    """
    mean = np.asarray(transforms[0], dtype=np.float64)
    for _ in range(MOST_STEPS):
        step = np.mean([linalg.logm(np.linalg.inv(mean) @ each).real for each in transforms], axis=0)
        mean = mean @ linalg.expm(step)
        if np.abs(step).max() < TOLERANCE:
            break
    return mean


def to_midpoint(to_reference: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the transforms of images to the space in their middle, from those to one of them.

    Which image is the reference makes no difference, nor does their order.

    Parameters
    ----------
    to_reference : list of (4, 4) arrays
        World of each image to that of the reference; of the reference itself it is the identity.

    Returns
    -------
    list of (4, 4) arrays
        World of each image to that of the midpoint.
    """
    to_middle = np.linalg.inv(mean_of(to_reference))
    return [to_middle @ each for each in to_reference]
