"""Thickness of the cortex on label volumes, and its average by region. Arrays are `(X, Y, Z)`, voxels of 1 mm."""

import itertools

import numpy as np
from scipy import ndimage

OUTSIDE, CORTEX, INSIDE = 0, 1, 2  # of the ribbon: fluid and background; grey matter; all that it encloses
NEAREST_VOXELS = np.sqrt(3)  # a label that is farther away is that of something else (DL+DiReCT: the same)

STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]


def projection_thickness(ribbon: np.ndarray) -> np.ndarray:
    """Compute projection-based cortical thickness (Dahnke et al. 2013, NeuroImage 65), in voxels.

    The distance to white matter is greatest at the outer border of the cortex, or in the middle of a sulcus whose
    banks touch: there it is the thickness. From there it is projected inwards, from neighbour to neighbour along the
    growing distance, so that banks that touch are not taken for one thick cortex.

    Parameters
    ----------
    ribbon : (X, Y, Z) int array
        0 outside, 1 cortex, 2 inside (white matter and what lies in it).

    Returns
    -------
    (X, Y, Z) float32 array, 0 where there is no cortex

    Raises
    ------
    ValueError
        If there is cortex, but nothing inside of it.
    """
    ribbon = np.pad(ribbon, 1)  # so that every voxel has 26 neighbours
    cortex = ribbon == CORTEX
    thickness = np.zeros(ribbon.shape, dtype=np.float32)
    if not cortex.any():
        return thickness[1:-1, 1:-1, 1:-1]
    if not (ribbon == INSIDE).any():
        raise ValueError('the cortex encloses no white matter: its thickness is not defined')
    # From centre to centre: half a voxel too long on the inner side, half a voxel too short on the outer.
    to_white = ndimage.distance_transform_edt(ribbon != INSIDE).astype(np.float32)
    thickness[cortex] = to_white[cortex]

    # From the outer border inwards: all that lies farther out is known when a distance has its turn.
    strides = np.array([ribbon.shape[1] * ribbon.shape[2], ribbon.shape[2], 1])
    offsets = [int(np.dot(step, strides)) for step in STEPS]
    lengths = [np.linalg.norm(step) for step in STEPS]
    flat_thickness, flat_white, flat_cortex = thickness.ravel(), to_white.ravel(), cortex.ravel()
    voxels = np.flatnonzero(flat_cortex)
    voxels = voxels[np.argsort(-flat_white[voxels], kind='stable')]
    turns = np.flatnonzero(np.diff(flat_white[voxels])) + 1
    for shell in np.split(voxels, turns):
        total, count = np.zeros(len(shell), dtype=np.float32), np.zeros(len(shell), dtype=np.float32)
        for offset, length in zip(offsets, lengths):
            ahead = shell + offset
            follows = flat_cortex[ahead] & (flat_white[ahead] - flat_white[shell] > 0.5 * length)
            total += np.where(follows, flat_thickness[ahead], 0)
            count += follows
        flat_thickness[shell] = np.where(count > 0, total / np.maximum(count, 1), flat_thickness[shell])
    return thickness[1:-1, 1:-1, 1:-1]


def nearest_labels(labels: np.ndarray, mask: np.ndarray, farthest_voxels: float = NEAREST_VOXELS) -> np.ndarray:
    """Find the nearest label of each voxel of a mask; (X, Y, Z) array like `labels`, else 0.

    Parameters
    ----------
    labels : (X, Y, Z) int array, 0 = no label
    mask : (X, Y, Z) bool array
    farthest_voxels : float
    """
    if not labels.any():
        return np.zeros_like(labels)
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return np.where(mask & (distance <= farthest_voxels), labels[tuple(nearest)], 0)


def average_by_label(
    values: np.ndarray, labels: np.ndarray, n_labels: int, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and count of positive values at a mask's inner boundary, by label (thesis 3.5).

    A mean over all voxels would count thick cortex, which has more of them, too often.

    Parameters
    ----------
    values : (X, Y, Z) float array
    labels : (X, Y, Z) int array, 0 = no label
    n_labels : int
        Labels run from 1 to this.
    mask : (X, Y, Z) bool array

    Returns
    -------
    means : (n_labels,) float64 array, NaN where there is no voxel
    counts : (n_labels,) int array
    """
    boundary = mask & ~ndimage.binary_erosion(mask, border_value=1) & (values > 0) & (labels > 0)
    counts = np.bincount(labels[boundary], minlength=n_labels + 1)[1:]
    sums = np.bincount(labels[boundary], weights=values[boundary], minlength=n_labels + 1)[1:]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), counts
