"""Paired cases for an evaluation: healthy brains, real lesion shapes, masks as raters draw them. The truth is known.

`clean`: real lesion shapes inside white matter, painted with a hard edge; the mask is exact (the thesis' setting).
`rim`: a lesion is painted there, with the contrast and the soft edge of real ones; the mask handed over is one voxel
too tight or ragged, and scores count every voxel that the painted lesion touched.
`patient`: all lesions of a patient's mask are moved into the brain and painted; the mask is their half maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from ..images import masks, tissues
from ..lesions import contrasts as lesions_contrasts
from ..lesions import places as lesions_places
from ..modality import get

TOUCHED = 0.02  # share of the lesion in a voxel from which on the painted lesion touched it
EDGE_VOXELS = (0.4, 0.9)  # around the edge of real lesions: .56 mm, benchmarks/lesion_contrast.py
SEPARATION_VOXELS = 10  # between lesions that are scored apart, so that no score sees two
VOLUMES_ML = ((0.0, 0.1), (0.1, 1.0), (1.0, np.inf))  # of lesion shapes, before white matter cuts them
# The brains in which the Ljubljana masks were drawn (mean of their bounding boxes in the database's space), mm.
LESION_MASKS_BRAIN_BOX_MM = ((-64.0, -97.3, -52.7), (64.0, 60.0, 69.0))


@dataclass(frozen=True)
class Unit:
    """A case that is scored as a whole: a lesion, or all lesions of a patient. Volumes in ml."""

    number: int
    score_mask: np.ndarray  # on the whole grid
    lesion_mask: np.ndarray
    volume_ml: float
    place: str


@dataclass(frozen=True)
class Case:
    """A brain with lesions to be filled; `(X, Y, Z)` arrays, normalised, 1 mm."""

    kind: str
    dilation: int | str  # how the mask that was handed over has been grown, see `grow`
    subject: str
    image: np.ndarray  # the healthy truth
    seen: np.ndarray  # what the filler is given
    lesion_mask: np.ndarray  # what it is told to fill
    wm_mask: np.ndarray
    units: tuple


def find_ventricles(tissue_seg: np.ndarray, depth_voxels: int = 28) -> np.ndarray:
    """Find the lateral and third ventricles: the largest CSF component deeper than any sulcus."""
    brain = ndimage.binary_closing(np.pad(tissue_seg > 0, 6), iterations=6)[6:-6, 6:-6, 6:-6]
    labels, n_parts = ndimage.label(
        (tissue_seg == tissues.CSF) & (ndimage.distance_transform_edt(brain) > depth_voxels)
    )
    return labels == 1 + np.bincount(labels.flat)[1:].argmax() if n_parts else np.zeros(tissue_seg.shape, dtype=bool)


def scatter_lesions(
    tissue_seg: np.ndarray,
    ventricles: np.ndarray,
    shapes: Sequence[np.ndarray],
    rng: np.random.Generator,
    n_lesions: int,
    min_voxels: int = 8,
    tries: int = 3000,
) -> np.ndarray:
    """Sample places in white matter for real lesion shapes, cut to it and far from one another.

    Most lesions are tiny, most of the lesion volume is not, and a random place mostly touches cortex: shapes are drawn
    from each of `VOLUMES_ML` in turn, and centres near the ventricles, near grey matter and far from both in turn.

    Parameters
    ----------
    tissue_seg : (X, Y, Z) int array
    ventricles : (X, Y, Z) bool array
    shapes : list of bool arrays, see `masks.split_lesions`
    rng : numpy.random.Generator
    n_lesions, min_voxels, tries : int

    Returns
    -------
    (X, Y, Z) int array
        0, and the number of each lesion from 1.

    Raises
    ------
    ValueError
        If fewer than `n_lesions` found a place.
    """
    wm_mask = tissue_seg == tissues.WHITE_MATTER
    labels = np.zeros(wm_mask.shape, dtype=int)
    taken = np.zeros(wm_mask.shape, dtype=bool)
    by_volume = [[s for s in shapes if low <= s.sum() / 1000 < high] for low, high in VOLUMES_ML]
    by_volume = [group for group in by_volume if group]
    near_ventricles = ndimage.binary_dilation(ventricles, iterations=4)
    near_cortex = ndimage.binary_dilation(tissue_seg == tissues.GREY_MATTER, iterations=3)
    by_place = (wm_mask & near_ventricles, wm_mask & ~near_ventricles & ~near_cortex, wm_mask & near_cortex)
    by_place = [np.argwhere(mask) for mask in by_place if mask.any()]
    number = 0
    for attempt in range(tries if by_place and by_volume else 0):
        if number == n_lesions:
            return labels
        group = by_volume[attempt % len(by_volume)]
        centres = by_place[attempt // len(by_volume) % len(by_place)]
        shape = masks.random_orientation(group[rng.integers(len(group))], rng)
        lesion = masks.place(shape, centres[rng.integers(len(centres))], wm_mask.shape) & wm_mask
        parts, _ = masks.label_lesions(lesion)
        if not lesion.any():
            continue
        lesion = parts == 1 + np.bincount(parts.flat)[1:].argmax()  # white matter may cut a shape in two
        if lesion.sum() < min_voxels or (lesion & taken).any():
            continue
        number += 1
        labels[lesion] = number
        taken[masks.bounding_box(lesion, SEPARATION_VOXELS)] = True
    if number == n_lesions:
        return labels
    raise ValueError(
        f'{number} of {n_lesions} lesions of {len(shapes)} shapes found a place '
        f'in {wm_mask.sum()} voxels of white matter'
    )


def grow(
    lesion_mask: np.ndarray, image: np.ndarray, wm_mask: np.ndarray, dilation: int | str, modality: str = 'T1w'
) -> np.ndarray:
    """Grow a mask within white matter as the app does.

    Parameters
    ----------
    lesion_mask, wm_mask : (X, Y, Z) bool array
    image : (X, Y, Z) float array
        With the lesion.
    dilation : int or str
        Voxels everywhere; `'1+2'` is one voxel everywhere, then up to two into the rim (`inpaint.grow_to_rim`).
    modality : {'T1w', 'FLAIR'}
    """
    everywhere, _, rim_voxels = str(dilation).partition('+')
    grown = masks.dilate_within(lesion_mask, wm_mask, int(everywhere))
    return lesions_contrasts.grow_to_rim(image, grown, wm_mask, int(rim_voxels or 0), get(modality).lesion_sign == 1)


def paint(
    image: np.ndarray,
    labels: np.ndarray,
    wm_mask: np.ndarray,
    rng: np.random.Generator,
    edge_voxels: tuple[float, float] = EDGE_VOXELS,
    modality: str = 'T1w',
) -> tuple[np.ndarray, np.ndarray]:
    """Insert lesions, each with its own contrast and one soft edge; return the image and their share."""
    contrasts = [0.0] + [lesions_contrasts.draw_contrast(rng, modality=modality) for _ in range(labels.max())]
    contrasts = np.array(contrasts)
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    contrast = contrasts[labels[tuple(nearest)]].astype(np.float32)
    return lesions_contrasts.paint_lesion(image, labels > 0, wm_mask, contrast, rng.uniform(*edge_voxels))


def tighten(lesion_mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrink a lesion mask by one voxel or drop half of its border, at random; never leave it empty.

    A lesion without a core is ragged always.
    """
    tight = ndimage.binary_erosion(lesion_mask)
    if rng.random() < 0.5 or not tight.any():
        tight |= lesion_mask & (rng.random(lesion_mask.shape) < 0.5)
    if not tight.any() and lesion_mask.any():
        tight.flat[rng.choice(np.flatnonzero(lesion_mask))] = True
    return tight


def move_lesions(lesion_mask: np.ndarray, affine: np.ndarray, brain_mask: np.ndarray) -> np.ndarray:
    """Transform a patient's lesions into another brain by aligning the bounding boxes of both brains.

    Parameters
    ----------
    lesion_mask : (X, Y, Z) bool array
        In the space of the Ljubljana database.
    affine : (4, 4) array
        Of the mask.
    brain_mask : (X, Y, Z) bool array
        Of the other brain, RAS, 1 mm.

    Returns
    -------
    bool array on that brain's grid
    """
    voxels = np.argwhere(ndimage.binary_opening(brain_mask, iterations=2))
    low, high = LESION_MASKS_BRAIN_BOX_MM
    scale = (np.array(high) - low) / (voxels.max(axis=0) - voxels.min(axis=0))
    # From the brain's voxels to the database's millimetres, to the mask's voxels.
    to_mm = np.diag([*scale, 1.0])
    to_mm[:3, 3] = low - scale * voxels.min(axis=0)
    to_mask = np.linalg.inv(affine) @ to_mm
    share = ndimage.affine_transform(
        lesion_mask.astype(np.float32), to_mask[:3, :3], to_mask[:3, 3], output_shape=brain_mask.shape, order=1
    )
    return share >= 0.5


def make_units(
    labels: np.ndarray, touched: np.ndarray, lesion_mask: np.ndarray, ventricles: np.ndarray, tissue_seg: np.ndarray
) -> tuple[Unit, ...]:
    """Return one unit per label, its part of the touched or filled voxels; deep nuclei count as cortex."""
    places = lesions_places.map_places(ventricles, tissue_seg == tissues.GREY_MATTER)
    names = {place: name for name, place in lesions_places.PLACES.items()}
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    owner = labels[tuple(nearest)]
    scored = touched | lesion_mask
    return tuple(
        Unit(
            number,
            scored & (owner == number),
            lesion_mask & (owner == number),
            float((labels == number).sum() / 1000),
            names[lesions_places.place_of(labels == number, places)],
        )
        for number in range(1, labels.max() + 1)
    )


def draw_cases(
    subject: str,
    image: np.ndarray,
    tissue_seg: np.ndarray,
    shapes: Sequence[np.ndarray],
    rng: np.random.Generator,
    n_lesions: int,
    kind: str,
    dilations: Sequence[Any],
    modality: str = 'T1w',
) -> list[Case]:
    """Synthesize the `clean` or `rim` case of a brain, once per dilation of the mask.

    Parameters
    ----------
    subject : str
    image : (X, Y, Z) float array, normalised
    tissue_seg : (X, Y, Z) int array
    shapes : list of bool arrays, see `masks.split_lesions`
    rng : numpy.random.Generator
    n_lesions : int
    kind : {'clean', 'rim'}
    dilations : list, see `grow`
    modality : {'T1w', 'FLAIR'}

    Returns
    -------
    list of Case
    """
    wm_mask = tissue_seg == tissues.WHITE_MATTER
    ventricles = find_ventricles(tissue_seg)
    labels = scatter_lesions(tissue_seg, ventricles, shapes, rng, n_lesions)
    touched = handed = labels > 0
    seen, alpha = paint(image, labels, wm_mask, rng, EDGE_VOXELS if kind == 'rim' else (0, 0), modality)
    if kind == 'rim':
        touched = alpha > TOUCHED
        handed = np.zeros_like(touched)
        for number in range(1, n_lesions + 1):
            handed |= tighten((labels == number) & (alpha > 0.5), rng)
    cases = []
    for dilation in dilations:
        mask = grow(handed, seen, wm_mask, dilation, modality)
        units = make_units(labels, touched, mask, ventricles, tissue_seg)
        cases.append(Case(kind, dilation, subject, image, seen, mask, wm_mask, units))
    return cases


def patient_case(
    subject: str,
    image: np.ndarray,
    tissue_seg: np.ndarray,
    lesion_mask: np.ndarray,
    rng: np.random.Generator,
    dilation: int | str = 1,
    min_voxels: int = 4,
    modality: str = 'T1w',
) -> Case:
    """Synthesize the `patient` case of a brain.

    Parameters
    ----------
    lesion_mask : (X, Y, Z) bool array
        All lesions of a patient, moved into the brain (`move_lesions`); cut to its white matter here.

    Raises
    ------
    ValueError
        If nothing of the lesions lies in white matter.
    """
    wm_mask = tissue_seg == tissues.WHITE_MATTER
    labels, _ = masks.label_lesions(lesion_mask & wm_mask)
    sizes = np.bincount(labels.flat)
    labels = np.where(sizes[labels] >= min_voxels, labels, 0)
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    if not labels.any():
        raise ValueError(f'{subject}: none of the {lesion_mask.sum()} lesion voxels lies in white matter')
    seen, alpha = paint(image, labels, wm_mask, rng, modality=modality)
    mask = grow(alpha > 0.5, seen, wm_mask, dilation, modality)
    score_mask = mask | (alpha > TOUCHED)
    unit = Unit(1, score_mask, mask, float((labels > 0).sum() / 1000), 'all')
    return Case('patient', dilation, subject, image, seen, mask, wm_mask, (unit,))
