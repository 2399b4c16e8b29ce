"""Lesion masks: restrict and grow them within white matter, split them, draw new ones for training.

Everywhere a mask is a bool array on the image's grid, True = lesion = to be filled.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

FULL_CONNECTIVITY = np.ones((3, 3, 3), dtype=bool)  # 26 neighbours: lesions that touch at a corner are one
THICKEST_STEP_MM = 2  # growth takes no step along an axis whose voxels are longer


def label_lesions(lesion_mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Label the connected lesions (26 neighbours); return the labels (int array) and their count."""
    return ndimage.label(lesion_mask, structure=FULL_CONNECTIVITY)


def widen(box: Sequence[slice], margin_voxels: int) -> tuple[slice, ...]:
    """Return a box (slices) with a margin on every side, cut at the lower borders as slicing cuts at the upper ones."""
    return tuple(slice(max(side.start - margin_voxels, 0), side.stop + margin_voxels) for side in box)


def bounding_box(mask: np.ndarray, margin_voxels: int) -> tuple[slice, ...]:
    """Return the box (slices) around a mask that is not empty, with a margin; see `widen`."""
    return widen(ndimage.find_objects(mask.astype(np.uint8))[0], margin_voxels)


def split_lesions(lesion_mask: np.ndarray, min_voxels: int = 1) -> list[np.ndarray]:
    """Return connected lesions of a mask, each cropped to its bounding box (thesis 3.3, *Mask Generation*).

    Parameters
    ----------
    lesion_mask : (X, Y, Z) bool array
    min_voxels : int
        Smaller components are left out.

    Returns
    -------
    list of bool arrays
    """
    labels, _ = label_lesions(lesion_mask)
    boxes = ndimage.find_objects(labels)
    lesions = [labels[box] == number for number, box in enumerate(boxes, start=1)]
    return [lesion for lesion in lesions if lesion.sum() >= min_voxels]


def largest_lesions(lesion_mask: np.ndarray, n_largest: int) -> np.ndarray:
    """Label the largest connected lesions by falling volume, from 1; (X, Y, Z) int array, 0 in all smaller ones."""
    labels, n_lesions = label_lesions(lesion_mask)
    falling = np.argsort(-np.bincount(labels.flat)[1:], kind='stable')[:n_largest]
    number = np.zeros(n_lesions + 1, dtype=int)
    number[1 + falling] = np.arange(1, len(falling) + 1)
    return number[labels]


def one_step(voxel_sizes_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the neighbours that one step of growth takes: 26, but within the slice where slices are thick.

    A rim of a millimetre that a rater missed is no reason to take all of the next slice, 5 mm away.

    Parameters
    ----------
    voxel_sizes_mm : 3 floats

    Returns
    -------
    (3, 3, 3) bool array
    """
    structure = FULL_CONNECTIVITY.copy()
    for axis, size_mm in enumerate(voxel_sizes_mm):
        if size_mm > THICKEST_STEP_MM:
            structure &= np.arange(3).reshape(np.roll((3, 1, 1), axis)) == 1
    return structure


def dilate_within(
    lesion_mask: np.ndarray, wm_mask: np.ndarray, n_voxels: int = 1, structure: np.ndarray = FULL_CONNECTIVITY
) -> np.ndarray:
    """Grow a lesion mask by `n_voxels`, but only into white matter.

    A tight annotation leaves a rim of lesion that shows as a border after filling (thesis 3.5, *Mask Dilation*).
    One step of growth takes the 26 neighbours; a mask never shrinks.

    Parameters
    ----------
    lesion_mask, wm_mask : (X, Y, Z) bool array
    n_voxels : int
    structure : (3, 3, 3) bool array
        Neighbours that one step takes; see `one_step` for images with thick slices.
    """
    grown = lesion_mask.copy()
    for _ in range(n_voxels):
        grown |= ndimage.binary_dilation(grown, structure=structure) & wm_mask
    return grown


def grow_while_dark(
    lesion_mask: np.ndarray, wm_mask: np.ndarray, darker: np.ndarray, threshold: float, n_voxels: int = 2
) -> np.ndarray:
    """Grow a lesion mask, shell by shell, into the white matter that is as dark as a lesion's rim.

    Raters draw lesions too tight. Where their edge is soft, what is left of it in the image spoils a fill more than
    all else (measured: README of benchmarks); growing everywhere would throw healthy tissue away.

    Parameters
    ----------
    lesion_mask, wm_mask : (X, Y, Z) bool array
    darker : (X, Y, Z) float array
        How much darker than healthy white matter at that place a voxel is; on FLAIR images how much brighter.
    threshold : float
        From this on a voxel is taken, in units of `darker`.
    n_voxels : int
        Shells (26 neighbours); a shell grows only from what the one before has taken.

    Returns
    -------
    (X, Y, Z) bool array
    """
    grown = lesion_mask.copy()
    dark = wm_mask & (darker > threshold)
    for _ in range(n_voxels):
        grown |= ndimage.binary_dilation(grown, structure=FULL_CONNECTIVITY) & dark
    return grown


def restrict_to_white_matter(lesion_mask: np.ndarray, wm_mask: np.ndarray) -> np.ndarray:
    """Keep the connected lesions that lie in white matter or touch it; drop the others whole.

    A lesion is kept or dropped as a whole, not voxel by voxel: on a T1w image dark lesions are often classified
    as grey matter, and cutting those voxels away would leave the lesion in the image that the mask was drawn for.

    Parameters
    ----------
    lesion_mask, wm_mask : (X, Y, Z) bool array

    Returns
    -------
    (X, Y, Z) bool array
    """
    labels, n_lesions = label_lesions(lesion_mask)
    near_wm = ndimage.binary_dilation(wm_mask, structure=FULL_CONNECTIVITY)
    touching = np.zeros(n_lesions + 1, dtype=bool)
    touching[np.unique(labels[near_wm])] = True
    touching[0] = False
    return touching[labels]


def random_orientation(lesion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one of the 48 flips and quarter turns of a lesion, drawn at random."""
    lesion = lesion.transpose(rng.permutation(3))
    return lesion[tuple(slice(None, None, int(rng.choice((-1, 1)))) for _ in range(3))]


def random_ellipsoid(rng: np.random.Generator, radii_voxels: tuple[float, float] = (1.5, 8.0)) -> np.ndarray:
    """Return a filled ellipsoid with random radii.

    The 3D form of the thesis' random circles (3.3, *Mask Generation*).
    """
    radii = np.exp(rng.uniform(*np.log(radii_voxels))) * rng.uniform(0.6, 1.4, 3)
    half = np.ceil(radii).astype(int)
    x, y, z = np.ogrid[tuple(slice(-h, h + 1) for h in half)]
    return (x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2 <= 1


def place(lesion: np.ndarray, centre: Sequence[int] | np.ndarray, shape: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return a mask of `shape` that holds `lesion` (a cropped bool array) centred on voxel `centre`.

    Cut at the borders.
    """
    mask = np.zeros(shape, dtype=bool)
    start = np.asarray(centre) - np.asarray(lesion.shape) // 2
    target = tuple(slice(max(s, 0), max(min(s + n, size), 0)) for s, n, size in zip(start, lesion.shape, shape))
    source = tuple(slice(t.start - s, t.stop - s) for t, s in zip(target, start))
    mask[target] = lesion[source]
    return mask


def sample_training_mask(
    wm_mask: np.ndarray,
    lesions: Sequence[np.ndarray],
    rng: np.random.Generator,
    ellipsoid_share: float = 0.5,
    max_lesions: int = 3,
    min_voxels: int = 6,
    tries: int = 20,
    radii_voxels: tuple[float, float] = (1.5, 8.0),
) -> np.ndarray:
    """Draw lesions at random places of the white matter (the thesis' *mixture*, without registration).

    Parameters
    ----------
    wm_mask : (X, Y, Z) bool array
    lesions : list of bool arrays
        Connected lesions of real masks, see `split_lesions`; may be empty if `ellipsoid_share` is 1.
    rng : numpy.random.Generator
    ellipsoid_share : float
        Chance that all lesions of this mask are ellipsoids instead of real shapes: 0 is the thesis' *lesions*,
        1 its *circles*, 0.5 its *mixture*.
    max_lesions : int
        Between 1 and this many lesions are placed.
    min_voxels : int
        Fewer voxels inside white matter do not count, and another place is tried, `tries` times.
    radii_voxels : (smallest, largest)
        Of the ellipsoids.

    Returns
    -------
    (X, Y, Z) bool array, empty if no place was found.
    """
    if not len(lesions) and ellipsoid_share < 1:
        raise ValueError(
            f'there are no lesion shapes to draw from; expected some for ellipsoid_share {ellipsoid_share:g}'
        )
    centres = np.argwhere(wm_mask)
    mask = np.zeros(wm_mask.shape, dtype=bool)
    ellipsoids = rng.random() < ellipsoid_share
    wanted = rng.integers(1, max_lesions + 1)
    for _ in range(tries if len(centres) else 0):
        lesion = random_ellipsoid(rng, radii_voxels) if ellipsoids else lesions[int(rng.integers(len(lesions)))]
        lesion = place(random_orientation(lesion, rng), centres[rng.integers(len(centres))], wm_mask.shape) & wm_mask
        if lesion.sum() >= min_voxels:
            mask |= lesion
            wanted -= 1
        if wanted == 0:
            break
    return mask
