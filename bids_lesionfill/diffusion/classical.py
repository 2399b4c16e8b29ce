"""Classical lesion fillers: what a learned model has to beat, and what the compact model starts from.

The functions take an image and a `lesion_mask` on the same grid and return a new image, equal outside the mask. The
classes at the end make fillers of them (see `registry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import linalg
from scipy.spatial import cKDTree

from ..images import masks
from .filler import Record, Sampling

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SIX_NEIGHBOURS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])


def _laplacian_at(voxels: np.ndarray, shape: Sequence[int] | np.ndarray) -> csr_matrix:
    """Return the 6-neighbour Laplacian's rows at `voxels` (flat indices), with zero flux at the borders."""
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


def _solve(matrix: csr_matrix, right_hand_side: np.ndarray, start: np.ndarray) -> np.ndarray:
    preconditioner = sparse.diags_array(1.0 / matrix.diagonal())
    solution, _ = linalg.cg(matrix, right_hand_side, x0=start, rtol=1e-4, maxiter=400, M=preconditioner)
    return solution


def membrane(image: np.ndarray, lesion_mask: np.ndarray) -> np.ndarray:
    """Fill by the harmonic function with the surrounding values: no curvature (Laplace's equation).

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask : (X, Y, Z) bool array
    """
    return _interpolate(image, lesion_mask, biharmonic_energy=False)


def biharmonic(
    image: np.ndarray, lesion_mask: np.ndarray, bounds: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Fill by the surface of least bending, min |Laplacian(u)|^2: `skimage.restoration.inpaint_biharmonic` in 3D.

    Solved by conjugate gradients, so that a lesion of 50 ml takes seconds where skimage's direct solver takes hours.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask : (X, Y, Z) bool array
    bounds : (lowest, highest), optional
        (X, Y, Z) float arrays between which the filling stays, see `white_matter_bounds`: the surface carries on the
        slopes at the edge of the mask, and glows or darkens far beyond any tissue. What the membrane reaches, which
        overshoots nothing, may be darker: cortex beside the lesion.
    """
    return _interpolate(image, lesion_mask, biharmonic_energy=True, bounds=bounds)


def white_matter_bounds(
    image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, white_matter: np.ndarray, deviations: float = 2.5
) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds of white matter: its local mean plus or minus some robust standard deviations.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
    white_matter : (X, Y, Z) float array
        See `local_white_matter`.
    deviations : float

    Returns
    -------
    lowest, highest : (X, Y, Z) float arrays
    """
    difference = (image - white_matter)[_healthy_white_matter(lesion_mask, wm_mask)]
    width = deviations * 1.4826 * np.median(np.abs(difference - np.median(difference)))
    return white_matter - width, white_matter + width


def _interpolate(
    image: np.ndarray,
    lesion_mask: np.ndarray,
    biharmonic_energy: bool,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
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
        flat = solution
        solution = _solve((inner.T @ inner).tocsr(), -(inner.T @ (laplacian @ known)), flat)
        if bounds is not None:
            lowest, highest = (bound[lesion_mask] for bound in bounds)
            solution = np.clip(solution, np.minimum(lowest, flat), highest)
    filled.flat[hole] = solution
    return filled.astype(image.dtype)


def _healthy_white_matter(lesion_mask: np.ndarray, wm_mask: np.ndarray) -> np.ndarray:
    healthy = wm_mask & ~lesion_mask
    if not healthy.any():
        raise ValueError('wm_mask holds no white matter outside the lesions')
    return healthy


def local_white_matter(
    image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, gap_voxels: int = 2, sigma_voxels: float = 3.0
) -> np.ndarray:
    """Compute the mean of the white matter around every voxel, at some distance from the lesion.

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
    trusted = _healthy_white_matter(lesion_mask, wm_mask)
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


def normal_white_matter(
    image: np.ndarray,
    lesion_mask: np.ndarray,
    wm_mask: np.ndarray,
    rng: np.random.Generator,
    deviation_share: float = 0.5,
    min_voxels: int = 20,
) -> np.ndarray:
    """Fill from the normal distribution of the white matter in the same slice (SLF, Valverde et al. 2014).

    Slices are those of the last axis: axial in an image that is close to RAS.

    SLF takes the mean and half of the standard deviation of the slice's normal-appearing white matter, and so do we:
    the deviation over a whole slice holds bias field and partial volume as well, and is thus more than the grain of
    the tissue around one lesion. `deviation_share=1` draws with the whole deviation. SLF's own estimate of the white
    matter, by clustering, is replaced by `wm_mask`.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
    rng : numpy.random.Generator
    deviation_share : float
        Share of the slice's standard deviation to draw with.
    min_voxels : int
        A slice with less white matter takes the mean and deviation of the whole volume.

    Returns
    -------
    (X, Y, Z) array of the image's dtype, equal outside the mask. So do the three fillers below.

    Raises
    ------
    ValueError
        If there is no white matter outside the lesions.
    """
    healthy = _healthy_white_matter(lesion_mask, wm_mask)
    everywhere = image[healthy]
    filled = image.copy()
    for z in np.flatnonzero(lesion_mask.any(axis=(0, 1))):
        white_matter = image[..., z][healthy[..., z]]
        white_matter = white_matter if len(white_matter) >= min_voxels else everywhere
        lesion = lesion_mask[..., z]
        filled[..., z][lesion] = rng.normal(white_matter.mean(), deviation_share * white_matter.std(), lesion.sum())
    return filled


def local_white_matter_voxels(
    image: np.ndarray,
    lesion_mask: np.ndarray,
    wm_mask: np.ndarray,
    rng: np.random.Generator,
    radius_voxels: int = 3,
    min_voxels: int = 50,
) -> np.ndarray:
    """Fill every lesion with values drawn from the white matter around it (as FSL's, Battaglini et al. 2012).

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
    rng : numpy.random.Generator
    radius_voxels : int
        White matter up to this far from the lesion is its neighbourhood; doubled until that holds enough.
    min_voxels : int
        Enough: so many white matter voxels (or all that there are).
    """
    healthy = _healthy_white_matter(lesion_mask, wm_mask)
    enough = min(min_voxels, healthy.sum())
    filled = image.copy()
    labels, _ = masks.label_lesions(lesion_mask)
    for number, bound in enumerate(ndimage.find_objects(labels), start=1):
        radius, n_found = radius_voxels, 0
        while n_found < enough:
            box = masks.widen(bound, radius)
            lesion = labels[box] == number
            neighbourhood = healthy[box] & (ndimage.distance_transform_edt(~lesion) <= radius)
            radius, n_found = 2 * radius, neighbourhood.sum()
        filled[box][lesion] = rng.choice(image[box][neighbourhood], lesion.sum())
    return filled


def ants_rule(image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill dark lesions with values of the adjacent white matter brighter than they are (as ANTs' `LesionFilling`).

    A lesion is filled only if its mean is below that of the white matter that touches it (26 neighbours), each voxel
    with a random one of those neighbours that are brighter than the lesion's mean; a lesion without any stays as it
    is. ANTs takes neighbours of any tissue, and leaves a lesion only if none of them is as bright as its mean; it
    joins no lesions at corners, and counts no further than 255. The one filler that reads the image inside the mask.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
    rng : numpy.random.Generator
    """
    healthy = _healthy_white_matter(lesion_mask, wm_mask)
    filled = image.copy()
    labels, _ = masks.label_lesions(lesion_mask)
    for number, bound in enumerate(ndimage.find_objects(labels), start=1):
        box = masks.widen(bound, 1)
        lesion = labels[box] == number
        edge = image[box][healthy[box] & ndimage.binary_dilation(lesion, structure=masks.FULL_CONNECTIVITY)]
        lesion_mean = image[box][lesion].mean()
        brighter = edge[edge > lesion_mean]
        if len(brighter) and lesion_mean < edge.mean():
            filled[box][lesion] = rng.choice(brighter, lesion.sum())
    return filled


def patch_match(
    image: np.ndarray,
    lesion_mask: np.ndarray,
    wm_mask: np.ndarray,
    rng: np.random.Generator,
    radius_voxels: int = 2,
    n_candidates: int = 200,
    exemplar_share: float = 0.25,
) -> np.ndarray:
    """Fill from the rim inwards with the centres of the patches that look most alike (after Prados et al. 2016).

    Every voxel of an onion layer gets the value of the white matter voxel whose patch differs least (mean squared
    difference) from the patch around it, over what is known of that: healthy tissue and the layers filled before.
    Candidates are the nearest of a random share of the white matter voxels whose patch holds no lesion, so the
    search window grows by itself inside large lesions. The single best is copied, not a mean of several: that keeps the
    grain of the tissue. Of NiftySeg's `seg_FillLesions` this is the idea, without its time points and smoothing.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
    rng : numpy.random.Generator
    radius_voxels : int
        Half the width of a patch: 2 is 5 x 5 x 5 voxels.
    n_candidates : int
        Patches to choose from, per voxel.
    exemplar_share : float
        Share of the white matter voxels that may be candidates.
    """
    healthy = _healthy_white_matter(lesion_mask, wm_mask)
    filled = image.copy()
    if not lesion_mask.any():
        return filled
    whole = healthy & (ndimage.distance_transform_cdt(~lesion_mask, metric='chessboard') > radius_voxels)
    exemplars = rng.permutation(np.argwhere(whole if whole.any() else healthy))
    exemplars = exemplars[: max(n_candidates, int(exemplar_share * len(exemplars)))]
    values = image[tuple(exemplars.T)]
    tree, nearest = cKDTree(exemplars), np.arange(1, min(n_candidates, len(exemplars)) + 1)

    known = np.pad(~lesion_mask, radius_voxels)
    padded = np.pad(np.where(lesion_mask, image[healthy].mean(), image).astype(np.float32), radius_voxels, mode='edge')
    offsets = np.indices((2 * radius_voxels + 1,) * 3).reshape(3, -1)

    # (n, 3) voxels of the unpadded volume -> (n, voxels of a patch) of the padded array
    def patches(array: np.ndarray, centres: np.ndarray) -> np.ndarray:
        corner = np.ravel_multi_index(tuple(centres.T), array.shape)
        return array.ravel()[corner[:, None] + np.ravel_multi_index(tuple(offsets), array.shape)]

    depth = ndimage.distance_transform_cdt(lesion_mask, metric='chessboard')
    for layer in range(1, depth.max() + 1):
        voxels = np.argwhere(depth == layer)
        best = []
        for chunk in np.array_split(voxels, len(voxels) // 256 + 1):
            candidates = tree.query(chunk, k=nearest)[1]
            used, place = np.unique(candidates, return_inverse=True)  # neighbours share most candidates
            exemplar_patches = patches(padded, exemplars[used])[place.reshape(candidates.shape)]
            difference = exemplar_patches - patches(padded, chunk)[:, None]
            compared = patches(known, chunk).astype(np.float32)
            distance = np.einsum('nmk,nmk,nk->nm', difference, difference, compared)
            best.append(np.take_along_axis(candidates, distance.argmin(axis=1)[:, None], axis=1)[:, 0])
        at = tuple(voxels.T)
        filled[at] = values[np.concatenate(best)]
        inner = tuple(voxels.T + radius_voxels)
        padded[inner], known[inner] = filled[at], True
    return filled


# fillers


class ClassicalFiller:
    """Base of the classical fillers; a subclass says its names and fills one volume."""

    name = label = ''  # of the registry; of tables
    words = ''  # see `Filler.methods`
    references: tuple[str, ...] = ()
    sha256 = ''
    has_texture = False
    bright_lesions = True  # whether it fills lesions that are brighter than white matter

    def __init__(self, modality: str | None = None) -> None:
        self.modality = modality

    def filled(
        self, image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the filled (X, Y, Z) image; only values inside the mask count."""
        raise NotImplementedError

    def fill(self, volume: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, sampling: Sampling) -> np.ndarray:
        """Fill the lesions of a volume, once per seed; see `filler.Filler.fill`."""
        generators = [np.random.default_rng(seed) for seed in sampling.seeds]
        return np.stack([self.filled(volume, lesion_mask, wm_mask, rng)[lesion_mask] for rng in generators])

    def record(self, sampling: Sampling) -> Record:
        """Return what the sidecar tells of a filling."""
        return Record(self.name, random_seed=sampling.seeds[0])

    def methods(self) -> tuple[str, tuple[str, ...]]:
        """Return how it fills, for a paper, and the keys of its references."""
        return self.words, self.references


class Biharmonic(ClassicalFiller):
    """`biharmonic`."""

    name = label = 'biharmonic'
    words = 'biharmonic interpolation'

    def filled(
        self, image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the filled (X, Y, Z) image; see `biharmonic`."""
        return biharmonic(image, lesion_mask)


class Membrane(ClassicalFiller):
    """`membrane`."""

    name = label = 'membrane'
    words = 'harmonic interpolation'

    def filled(
        self, image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the filled (X, Y, Z) image; see `membrane`."""
        return membrane(image, lesion_mask)


class WhiteMatterNormal(ClassicalFiller):
    """`normal_white_matter`."""

    name, label = 'white-matter-normal', 'white-matter normal'
    has_texture = True
    words = 'values of a normal distribution of the white matter of each slice (as in SLF; Valverde et al., 2014)'
    references = ('valverde2014',)

    def filled(
        self, image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the filled (X, Y, Z) image; see `normal_white_matter`."""
        return normal_white_matter(image, lesion_mask, wm_mask, rng)


class LocalWhiteMatterVoxels(ClassicalFiller):
    """`local_white_matter_voxels`."""

    name, label = 'local-white-matter-voxels', 'local white-matter voxels'
    has_texture = True
    words = 'values sampled from the white matter around each lesion (as in FSL; Battaglini et al., 2012)'
    references = ('battaglini2012',)

    def filled(
        self, image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the filled (X, Y, Z) image; see `local_white_matter_voxels`."""
        return local_white_matter_voxels(image, lesion_mask, wm_mask, rng)


class LocalWhiteMatterMean(ClassicalFiller):
    """`local_white_matter`."""

    name, label = 'local-white-matter-mean', 'local white-matter mean'
    words = 'the Gaussian average of the white matter around each voxel'

    def filled(
        self, image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the filled (X, Y, Z) image; see `local_white_matter`."""
        return local_white_matter(image, lesion_mask, wm_mask)


class AntsRule(ClassicalFiller):
    """`ants_rule`."""

    name, label = 'ants-rule', 'ANTs rule'
    has_texture = True
    words = 'values of brighter white matter that touches each lesion (as the program LesionFilling of ANTs)'
    bright_lesions = False

    def filled(
        self, image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the filled (X, Y, Z) image; see `ants_rule`."""
        return ants_rule(image, lesion_mask, wm_mask, rng)


class PatchMatch(ClassicalFiller):
    """`patch_match`."""

    name, label = 'patch-match', 'patch match'
    has_texture = True
    words = 'the centres of similar patches of the white matter (after Prados et al., 2016)'
    references = ('prados2016',)

    def filled(
        self, image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the filled (X, Y, Z) image; see `patch_match`."""
        return patch_match(image, lesion_mask, wm_mask, rng)
