"""Classical lesion fillers: what a learned model has to beat, and what the compact model starts from.

All take an image and a `lesion_mask` on the same grid and return a new image, equal outside the mask.
"""

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import linalg

SIX_NEIGHBOURS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])


def _laplacian_at(voxels, shape):
    """Rows of the 6-neighbour Laplacian at `voxels` (flat indices) over the flat volume; zero flux at the borders."""
    coordinates = np.stack(np.unravel_index(voxels, shape), axis=1)
    rows, columns = [], []
    for step in SIX_NEIGHBOURS:
        neighbour = coordinates + step
        inside = ((neighbour >= 0) & (neighbour < shape)).all(axis=1)
        rows.append(np.flatnonzero(inside))
        columns.append(np.ravel_multi_index(tuple(neighbour[inside].T), shape))
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    n_voxels, size = len(voxels), int(np.prod(shape))
    neighbours = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(n_voxels, size))
    centre = sparse.csr_array((neighbours.sum(axis=1), (np.arange(n_voxels), voxels)), shape=(n_voxels, size))
    return neighbours - centre


def _solve(matrix, right_hand_side, start):
    preconditioner = sparse.diags_array(1.0 / matrix.diagonal())
    solution, _ = linalg.cg(matrix, right_hand_side, x0=start, rtol=1e-4, maxiter=400, M=preconditioner)
    return solution


def membrane(image, lesion_mask):
    """Fill by the harmonic function with the surrounding values: no curvature (Laplace's equation).

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask : (X, Y, Z) bool array
    """
    return _interpolate(image, lesion_mask, biharmonic_energy=False)


def biharmonic(image, lesion_mask):
    """Fill by the surface of least bending, min |Laplacian(u)|^2: `skimage.restoration.inpaint_biharmonic` in 3D.

    Solved by conjugate gradients, so that a lesion of 50 ml takes seconds where skimage's direct solver takes hours.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask : (X, Y, Z) bool array
    """
    return _interpolate(image, lesion_mask, biharmonic_energy=True)


def _interpolate(image, lesion_mask, biharmonic_energy):
    filled = np.array(image, dtype=np.float64)
    if not lesion_mask.any():
        return filled.astype(image.dtype)
    shape = np.array(image.shape)
    hole = np.flatnonzero(lesion_mask)
    known = np.where(lesion_mask, 0.0, filled).ravel()
    start = np.full(len(hole), filled[ndimage.binary_dilation(lesion_mask) & ~lesion_mask].mean())
    laplacian = _laplacian_at(hole, shape)
    solution = _solve(-laplacian[:, hole], laplacian @ known, start)
    if biharmonic_energy:
        near = np.flatnonzero(ndimage.binary_dilation(lesion_mask))
        laplacian = _laplacian_at(near, shape)
        inner = laplacian[:, hole]
        solution = _solve((inner.T @ inner).tocsr(), -(inner.T @ (laplacian @ known)), solution)
    filled.flat[hole] = solution
    return filled.astype(image.dtype)


def local_white_matter(image, lesion_mask, wm_mask, gap_voxels=2, sigma_voxels=3.0):
    """Mean of the white matter around every voxel, taken at some distance from the lesion.

    Normalised convolution: a Gaussian average of the white matter that is at least `gap_voxels` away from the mask,
    since a rater's mask misses the lesion's soft rim; where there is none near, a wider Gaussian.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
    gap_voxels : int
        Voxels around the mask that are not trusted.
    sigma_voxels : float
        Standard deviation of the Gaussian, in voxels.

    Returns
    -------
    (X, Y, Z) float32 array, defined everywhere (not only in the lesion).

    Raises
    ------
    ValueError
        If there is no white matter outside the lesions.
    """
    trusted = wm_mask & ~lesion_mask
    if not trusted.any():
        raise ValueError('wm_mask holds no white matter outside the lesions')
    far = trusted & ~ndimage.binary_dilation(lesion_mask, iterations=gap_voxels)
    trusted = far if far.any() else trusted
    values = np.where(trusted, image, 0).astype(np.float32)
    weights = trusted.astype(np.float32)
    mean = np.full(image.shape, image[trusted].mean(), dtype=np.float32)
    for sigma in (2 * sigma_voxels, sigma_voxels):  # finer where enough is known
        weight = ndimage.gaussian_filter(weights, sigma, truncate=2.5)
        average = ndimage.gaussian_filter(values, sigma, truncate=2.5) / np.maximum(weight, 1e-6)
        trust = np.clip(weight / 0.02, 0, 1)
        mean = trust * average + (1 - trust) * mean
    return mean
