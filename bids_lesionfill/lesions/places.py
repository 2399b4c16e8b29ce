"""Places of lesions: periventricular, juxtacortical, infratentorial, deep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from ..images import masks, registration, tissues

if TYPE_CHECKING:
    from .library import LesionLibrary

VENTRICLES_MM = (4, 10)  # around the template's ventricles: CSF is a ventricle's, enlarged ventricles end
# No lateral ventricle: fissure between the hemispheres and third ventricle, cisterns behind; (low, high) corners.
MIDLINE_MM = (((-3, -99, -99), (3, 99, 99)), ((-13, -99, -99), (13, -31, 99)))
NUCLEI_BOX_MM = ((-33, -34, -14), (33, 22, 24))  # grey matter in it is deep nuclei (or insula's edge), not cortex


def inside_box(points_mm: np.ndarray, box_mm: tuple[tuple[int, ...], tuple[int, ...]]) -> np.ndarray:
    """Return True for each of the points (..., 3) that lies between two corners."""
    return np.all((points_mm > np.array(box_mm[0])) & (points_mm < np.array(box_mm[1])), axis=-1)


def is_infratentorial(points_mm: np.ndarray) -> bool | np.ndarray:
    """Return True for points of the template below the tentorium: brain stem or cerebellum.

    No tissue segmentation tells the cerebellum from the brain, so this is a surface in the space of the library, read
    off its template: the tentorium is a tent that falls from its ridge to both sides and to the back, to where the
    temporal and occipital lobes rest on it; in front of it the brain stem is a column.

    Parameters
    ----------
    points_mm : (..., 3) array

    Returns
    -------
    (...) bool array
    """
    x, y, z = np.moveaxis(np.asarray(points_mm, dtype=float), -1, 0)
    tent = np.maximum(-19, np.minimum(2 - 0.5 * np.abs(x), 2 - 0.9 * np.maximum(0, -60 - y)))
    cerebellum = ((y < -36) & (z < tent)) | ((y < -28) & (z < -22))
    brain_stem = (np.abs(x) < 15) & (y < -8) & (z < -4)
    return cerebellum | brain_stem


def locate(
    library: LesionLibrary, tissue_seg: np.ndarray, voxel_to_template: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute places and lesion frequency on a participant's grid.

    Parameters
    ----------
    library : LesionLibrary
    tissue_seg : (X, Y, Z) int array
        Old lesions should be white matter in it, or what is next to them counts as next to cortex.
    voxel_to_template : (4, 4) array
        Voxel of the subject to world of the template, see `registration.affine_to_template`.

    Returns
    -------
    places : (X, Y, Z) uint8 array, see `tissues.map_places`
    frequency : (X, Y, Z) float32 array
    ventricles : (X, Y, Z) bool array
    """

    def on_subject(volume: np.ndarray) -> np.ndarray:
        return registration.from_template(volume, library.affine, voxel_to_template, tissue_seg.shape, np.eye(4))

    distance = ndimage.distance_transform_edt(library.ventricles == 0, sampling=np.diag(library.affine)[:3])
    near_mm = on_subject(distance)
    points_mm = apply_affine(voxel_to_template, np.moveaxis(np.indices(tissue_seg.shape), 0, -1))
    possible = on_subject(np.ones(library.ventricles.shape)) > 0.5  # beyond the template's edge is no ventricle
    for box_mm in MIDLINE_MM:
        possible &= ~inside_box(points_mm, box_mm)
    zones = (possible & (near_mm <= end) for end in (0, *VENTRICLES_MM))
    ventricles = find_lateral_ventricles(tissue_seg, *zones)
    cortex = (tissue_seg == tissues.GREY_MATTER) & ~inside_box(points_mm, NUCLEI_BOX_MM)
    places = map_places(ventricles, cortex, is_infratentorial(points_mm))
    return places, on_subject(library.frequency), ventricles


PLACES = {'infratentorial': 1, 'periventricular': 2, 'juxtacortical': 3, 'deep': 4}  # of lesions; the first one counts
PERIVENTRICULAR_VOXELS = 3


def find_lateral_ventricles(
    tissue_seg: np.ndarray, expected: np.ndarray, near: np.ndarray, far: np.ndarray
) -> np.ndarray:
    """Find the lateral ventricles: the components of CSF at their expected location.

    Parameters
    ----------
    tissue_seg : (X, Y, Z) int array
    expected, near, far : (X, Y, Z) bool array
        A template's ventricles and two surroundings. In `near` all CSF counts, in `far` what is thicker than two
        voxels: enlarged ventricles are, sulci are not. A part that meets `expected` in a corner only, less than a
        tenth as much as the part that does most, is a fissure beside it.

    Returns
    -------
    (X, Y, Z) bool array
    """
    csf = tissue_seg == tissues.CSF
    bulk = ndimage.binary_opening(csf, masks.FULL_CONNECTIVITY)
    parts, _ = ndimage.label(csf & (near | expected) | bulk & far)
    met = np.bincount(parts[expected], minlength=parts.max() + 1)
    met[0] = 0
    return ((met > 0) & (10 * met >= met.max()))[parts]


def map_places(
    ventricles: np.ndarray, cortex: np.ndarray, infratentorial: np.ndarray | bool | None = None
) -> np.ndarray:
    """Map each voxel to the place (`PLACES`) of a lesion that reaches it; the first one counts.

    Parameters
    ----------
    ventricles, cortex : (X, Y, Z) bool array
    infratentorial : (X, Y, Z) bool array, optional

    Returns
    -------
    (X, Y, Z) uint8 array
        2 within 3 voxels of the ventricles (steps along the axes), 3 where cortex touches (26 neighbours), 1 below the
        tentorium, else 4.
    """
    places = np.full(ventricles.shape, PLACES['deep'], dtype=np.uint8)
    places[ndimage.binary_dilation(cortex, structure=masks.FULL_CONNECTIVITY)] = PLACES['juxtacortical']
    near_ventricles = ndimage.binary_dilation(ventricles, iterations=PERIVENTRICULAR_VOXELS)
    places[near_ventricles] = PLACES['periventricular']
    if infratentorial is not None:
        places[infratentorial] = PLACES['infratentorial']
    return places


def place_of(lesion_mask: np.ndarray, places: np.ndarray) -> int:
    """Place of a lesion (a value of `PLACES`) on a map of `map_places`.

    `infratentorial` if most of it lies there, else `periventricular` or `juxtacortical` if any of it does, else `deep`.
    """
    counts = np.bincount(places[lesion_mask], minlength=5)
    if 2 * counts[PLACES['infratentorial']] > counts.sum():
        return PLACES['infratentorial']
    return next((place for place in (PLACES['periventricular'], PLACES['juxtacortical']) if counts[place]), 4)


def voxels_beside_white_matter(
    lesion_mask: np.ndarray, tissue_seg: np.ndarray, ribbon: np.ndarray | None = None
) -> dict[str, int]:
    """Return how far a lesion mask reaches out of white matter, and into the cortex: what makes it juxtacortical.

    The mask is dilated by one voxel along the axes and laid over the tissue classes of the *filled* image: in the
    original, lesions themselves are called grey matter.

    Parameters
    ----------
    lesion_mask : (X, Y, Z) bool array
    tissue_seg : (X, Y, Z) int array
    ribbon : (X, Y, Z) bool array, optional
        Grey matter of the cortex: without deep nuclei, and without the partial volume at the ventricles.

    Returns
    -------
    dict of int
        `outside_white_matter`: voxels of the dilated mask that are not white matter (the rule of the thesis, 3.5);
        `grey_matter`: those of them that are grey matter; `cortex`: those that are in the ribbon, where it is known.
    """
    dilated = ndimage.binary_dilation(lesion_mask)
    return {
        'outside_white_matter': int((dilated & (tissue_seg != tissues.WHITE_MATTER)).sum()),
        'grey_matter': int((dilated & (tissue_seg == tissues.GREY_MATTER)).sum()),
        **({} if ribbon is None else {'cortex': int((dilated & ribbon).sum())}),
    }
