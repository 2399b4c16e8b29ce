"""Masks of new lesions: real shapes, at places where lesions are, without registration of whole masks.

The thesis warps the masks of patients into other brains and leaves a generator open (thesis 3.3 *Mask Generation*).
Here a lesion is one of the library, varied, at its own place if it is large or hugs the ventricles (so that it keeps
its direction to them), else turned and flipped at a place drawn by how often lesions are there; white matter cuts it.
Arrays are `(X, Y, Z)`, RAS, 1 mm; the space of the library is called *template*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from ..images import masks
from . import places as lesions_places
from .library import LesionLibrary

LARGE_VOXELS = 1000  # lesions from here on are confluent ones, shaped by the anatomy around them
AVOID_VOXELS = 3  # that new lesions keep away from old ones
MIN_VOXELS = 3  # of a new lesion; smaller ones of the 30 masks are crumbs of larger ones
KEPT_SHARE = 0.6  # of a shape that must lie in free white matter, else another place
LARGE_KEPT_SHARE = 0.4  # of large ones: no two brains fold alike
REACH_VOXELS = 3  # how far from its shape a lesion may regain what white matter cuts away
SIMILAR = 8  # shapes that are nearest in volume, of which one is drawn
TRIES = 60  # places for a lesion; every tenth time another shape
HALVINGS = 3  # of the volume of a lesion for which there is no place
PULL_VOXELS = 2  # how much more a voxel at the ventricles belongs to a shape beside it, so that no sliver is left


def deform(shape: Any, linear: np.ndarray, rng: np.random.Generator, strength: float = 0.25) -> np.ndarray:
    """Rotate, scale and bend a shape; return its signed distance in voxels, positive inside.

    The displacement is Gaussian noise, smoothed by a quarter of the shape's extent (1.5 to 8 voxels).

    Parameters
    ----------
    shape : (X, Y, Z) bool array
    linear : (3, 3) array
        From voxels of the result to voxels of the shape, about the middle of both (voxel `size // 2`).
    rng : numpy.random.Generator
    strength : float
        Standard deviation of the displacement, in smoothing lengths; 0 bends nothing.

    Returns
    -------
    (X, Y, Z) float array
    """
    margin = 2 * REACH_VOXELS
    padded = np.pad(shape, margin)
    distance = np.where(padded, ndimage.distance_transform_edt(padded), -ndimage.distance_transform_edt(~padded))
    distance -= 0.5 * np.sign(distance)  # the border runs between voxels
    extent = np.abs(np.linalg.inv(linear)) @ shape.shape
    size = 2 * (np.ceil(extent / 2).astype(int) + REACH_VOXELS + 1) + 1
    points = np.tensordot(linear, np.indices(size) - (size // 2).reshape(3, 1, 1, 1), axes=1)
    smoothing = np.clip(extent.mean() / 4, 1.5, 8)
    for axis in range(3):
        noise = ndimage.gaussian_filter(rng.standard_normal(size), smoothing)
        points[axis] += strength * smoothing * noise / noise.std() + padded.shape[axis] // 2
    return ndimage.map_coordinates(distance, points, order=1, cval=distance.min())


def cut(
    level: np.ndarray,
    centre: Sequence[int] | np.ndarray,
    free: np.ndarray,
    volume: np.ndarray,
    pull: np.ndarray | None = None,
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Cut a lesion, one component, from a signed distance: `volume` highest free white-matter voxels.

    Parameters
    ----------
    level : (X, Y, Z) float array, see `deform`
    centre : 3 ints
        The voxel on which voxel `size // 2` of `level` comes to lie.
    free : (X, Y, Z) bool array
        Where a lesion may be.
    volume : int
        Voxels; what `free` cuts away is regained at the border, within `REACH_VOXELS`.
    pull : (X, Y, Z) bool array, optional
        Where voxels count `PULL_VOXELS` higher than they are.

    Returns
    -------
    box : slices into `free`
    lesion : bool array of the box; empty if less than `KEPT_SHARE` of the shape lies in `free`, or if the lesion
        would have less than three quarters of its volume
    """
    start = np.asarray(centre) - np.asarray(level.shape) // 2
    box = tuple(slice(max(s, 0), max(min(s + n, size), 0)) for s, n, size in zip(start, level.shape, free.shape))
    level_box = level[tuple(slice(b.start - s, max(b.stop - s, 0)) for b, s in zip(box, start))]
    nothing = np.zeros(level_box.shape, dtype=bool)
    highest = np.partition(level.ravel(), -volume)[-volume] if volume < level.size else level.min()
    core = level_box >= max(highest, -REACH_VOXELS)
    kept_share = KEPT_SHARE if volume < LARGE_VOXELS else LARGE_KEPT_SHARE
    if (core & free[box]).sum() < kept_share * volume:
        return box, nothing
    if pull is not None:
        level_box = level_box + PULL_VOXELS * pull[box]
    candidates = np.flatnonzero(free[box] & (level_box > -REACH_VOXELS))
    order = candidates[np.argsort(-level_box.ravel()[candidates], kind='stable')]
    wanted, lesion = volume, nothing
    for _ in range(4):  # white matter may cut a shape in pieces: the largest grows on
        lesion = nothing.copy()
        lesion.ravel()[order[:wanted]] = True
        lesion = largest_part(lesion)
        if lesion.sum() >= volume or wanted > len(order):
            break
        wanted += volume - int(lesion.sum())
    return box, lesion if lesion.sum() >= 0.75 * volume else nothing


def largest_part(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected component of a mask that is not empty."""
    parts, _ = masks.label_lesions(mask)
    return parts == 1 + np.bincount(parts.flat)[1:].argmax()


def draw_volumes(
    library: LesionLibrary,
    rng: np.random.Generator,
    n_lesions: int | None = None,
    load_ml: float | None = None,
    locations: Sequence[str] = tuple(lesions_places.PLACES),
) -> tuple[np.ndarray, np.ndarray]:
    """Sample number, volumes and places of lesions: those of one library patient, varied.

    Counts, volumes and load of a patient depend on each other, so a patient is drawn: any, or one of the three who come
    nearest to the count and load that are asked for.

    Parameters
    ----------
    library : LesionLibrary
    rng : numpy.random.Generator
    n_lesions : int, optional
        If not given, the patient's own, varied by a fifth.
    load_ml : float, optional
        All volumes are scaled to this sum; if not given, the patient's own, each varied by a sixth.
    locations : subset of `tissues.PLACES`

    Returns
    -------
    volumes : (n,) int array, voxels of 1 mm3, largest first
    places : (n,) int array

    Raises
    ------
    ValueError
        If a location is not known, the library has no lesions there, or the load is too small for so many lesions.
    """
    unknown = set(locations) - set(lesions_places.PLACES)
    if unknown or not locations:
        raise ValueError(f'locations are {sorted(locations)}, expected some of {sorted(lesions_places.PLACES)}')
    if (n_lesions is not None and n_lesions < 1) or (load_ml is not None and not load_ml > 0):
        raise ValueError(f'n_lesions is {n_lesions} and load_ml {load_ml}, expected more than 0 of both')
    volumes = library.volumes
    eligible = np.isin(library.places, [lesions_places.PLACES[name] for name in locations]) & (volumes >= MIN_VOXELS)
    if not eligible.any():
        raise ValueError(f'the library has no lesion in {sorted(locations)}')
    counts = np.bincount(library.patients[eligible])
    loads = np.bincount(library.patients[eligible], volumes[eligible])
    have = np.flatnonzero(counts)
    distance = np.zeros(len(have))
    if n_lesions is not None:
        distance += np.abs(np.log(counts[have] / n_lesions))
    if load_ml is not None:
        distance += np.abs(np.log(loads[have] / (1000 * load_ml)))
    nearest = have if not distance.any() else have[np.argsort(distance, kind='stable')[:3]]
    own = np.flatnonzero(eligible & (library.patients == rng.choice(nearest)))
    if n_lesions is None:
        n_lesions = max(1, round(len(own) * np.exp(rng.normal(0, 0.2))))
        if load_ml is not None:
            n_lesions = min(n_lesions, max(1, int(1000 * load_ml / (2 * MIN_VOXELS))))
    own = rng.permutation(own)
    small = own[volumes[own] < LARGE_VOXELS] if (volumes[own] < LARGE_VOXELS).any() else own
    own = np.concatenate([own[:n_lesions], rng.choice(small, max(0, n_lesions - len(own)))])  # no confluent one twice
    drawn = np.minimum(volumes[own] * np.exp(rng.normal(0, 0.15, len(own))), volumes.max())
    if load_ml is not None:
        if 1000 * load_ml < MIN_VOXELS * n_lesions:
            raise ValueError(
                f'{load_ml:g} ml for {n_lesions} lesions are {1000 * load_ml / n_lesions:.2g} mm3 for each, '
                f'expected at least {MIN_VOXELS}'
            )
        drawn = scale_to(drawn, 1000 * load_ml)
    order = np.argsort(-drawn, kind='stable')
    return np.maximum(np.rint(drawn), MIN_VOXELS).astype(int)[order], library.places[own][order]


def scale_to(volumes: np.ndarray, total: float) -> np.ndarray:
    """Scale volumes to a sum with none below `MIN_VOXELS`; the larger ones compensate."""
    small = np.zeros(len(volumes), dtype=bool)
    while True:
        scaled = volumes * (total - MIN_VOXELS * small.sum()) / max(volumes[~small].sum(), 1e-9)
        new = (scaled < MIN_VOXELS) & ~small
        if not new.any():
            return np.where(small, MIN_VOXELS, scaled)
        small |= new


def away_from(avoid: np.ndarray, wm_mask: np.ndarray, avoid_voxels: int = AVOID_VOXELS) -> np.ndarray:
    """Return white matter more than a number of voxels away from a mask; (X, Y, Z) bool array."""
    return wm_mask & ~masks.dilate_within(avoid, np.ones_like(avoid), avoid_voxels)


@dataclass(frozen=True)
class Atlas:
    """Frequency of lesions, registered to one anatomy; see `places.locate`."""

    library: LesionLibrary
    places: np.ndarray  # (X, Y, Z) int
    frequency: np.ndarray  # (X, Y, Z) float
    voxel_to_template: np.ndarray  # (4, 4), voxel to world of the template


def draw_lesion_mask(
    atlas: Atlas,
    wm_mask: np.ndarray,
    rng: np.random.Generator,
    n_lesions: int | None = None,
    load_ml: float | None = None,
    locations: Sequence[str] = tuple(lesions_places.PLACES),
    avoid: np.ndarray | None = None,
    avoid_voxels: int = AVOID_VOXELS,
    strength: float = 0.25,
) -> np.ndarray:  # many arguments: what is to be drawn, each of them optional
    """Draw new lesions into the white matter of a brain.

    Parameters
    ----------
    atlas : Atlas
    wm_mask : (X, Y, Z) bool array
    rng : numpy.random.Generator
    n_lesions : int, optional
    load_ml : float, optional
        If neither is given, both are those of a patient of the library, see `draw_volumes`.
    locations : subset of `tissues.PLACES`
        Every lesion lies in one of them, as `tissues.place_of` says.
    avoid : (X, Y, Z) bool array, optional
        Old lesions; new ones keep `avoid_voxels` away.
    strength : float
        Of the deformation, see `deform`.

    Returns
    -------
    (X, Y, Z) int array
        0, and the number of each lesion from 1; two lesions never touch.

    Raises
    ------
    ValueError
        See `draw_volumes`; if so many lesions, or such a load (within 10 %), find no place; if none does.
    """
    volumes, wanted_places = draw_volumes(atlas.library, rng, n_lesions, load_ml, locations)
    allowed = [lesions_places.PLACES[name] for name in locations]
    labels = np.zeros(wm_mask.shape, dtype=int)
    free = wm_mask.copy() if avoid is None else away_from(avoid, wm_mask, avoid_voxels)
    space = int(free.sum())
    if load_ml is not None and 1000 * load_ml > space:
        raise ValueError(f'{load_ml:g} ml of lesions do not fit into {space / 1000:.3g} ml of free white matter')
    number, placed, drawn_ml = 0, 0, volumes.sum() / 1000
    for rank, place in enumerate(wanted_places):
        if load_ml is not None:  # what found no place so far, but for a twentieth, is for the lesions that are left
            left = 1000 * load_ml - placed + 50 * load_ml * np.array((-1, 1))
            left = max(np.clip(volumes[rank:].sum(), *left), MIN_VOXELS * (len(volumes) - rank))
            volumes[rank:] = np.rint(scale_to(volumes[rank:], left))
        for halvings in range(HALVINGS + 1):
            volume = max(volumes[rank] >> halvings, MIN_VOXELS)
            box, lesion = place_lesion(atlas, volume, place, allowed, free, rng, strength)
            if lesion.any():
                break
        else:
            continue
        number += 1
        placed += int(lesion.sum())
        labels[box][lesion] = number
        around = masks.widen(box, 1)
        free[around] &= ~ndimage.binary_dilation(labels[around] == number, structure=masks.FULL_CONNECTIVITY)
    if number == 0 or (n_lesions is not None and number < n_lesions):
        raise ValueError(
            f'{number} of {len(volumes)} lesions ({drawn_ml:.3g} ml) in {sorted(locations)} found a place '
            f'in {space / 1000:.3g} ml of free white matter'
        )
    if load_ml is not None and abs(placed / 1000 - load_ml) > 0.1 * load_ml:
        raise ValueError(
            f'{placed / 1000:.3g} ml of {load_ml:g} ml of lesions in {sorted(locations)} found a place '
            f'in {space / 1000:.3g} ml of free white matter'
        )
    return labels


def place_lesion(
    atlas: Atlas,
    volume: np.ndarray,
    place: int,
    allowed: Sequence[int],
    free: np.ndarray,
    rng: np.random.Generator,
    strength: float,
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Place one lesion: try shapes and places until one fits, later in any allowed place.

    Returns
    -------
    box : slices
    lesion : bool array of the box, empty if nothing fits
    """
    library, places, voxel_to_template = atlas.library, atlas.places, atlas.voxel_to_template
    at_ventricles = place == lesions_places.PLACES['periventricular']
    near_ventricles = places == place if at_ventricles else None
    at_home = at_ventricles or volume >= LARGE_VOXELS
    candidates = similar_lesions(library, volume, place)
    centres: np.ndarray | None = None
    chances = np.empty(0)
    for attempt in range(TRIES):
        if attempt == TRIES // 2:
            at_home, centres = False, None
        accepted = [place] if attempt < TRIES // 2 else allowed
        if attempt % 10 == 0:
            chosen = candidates[rng.integers(len(candidates))]
            shape = library.shapes[chosen]
            if at_home:
                mirror = np.diag([rng.choice((-1.0, 1.0)), 1.0, 1.0])
                to_shape = voxel_to_template[:3, :3]
                level = deform(shape[:: int(mirror[0, 0])], to_shape, rng, strength)
                home = np.linalg.inv(to_shape) @ (mirror @ library.centres_mm[chosen] - voxel_to_template[:3, 3])
            else:
                zoom = (volume / shape.sum()) ** (-1 / 3)
                level = deform(masks.random_orientation(shape, rng), zoom * np.eye(3), rng, strength)
        if at_home:
            centre = np.rint(home + rng.normal(0, 1.5 + 0.05 * attempt, 3)).astype(int)
        else:
            if centres is None:
                centres = np.flatnonzero(free)
                centres = centres[np.isin(places.ravel()[centres], accepted)]
                chances = np.cumsum(atlas.frequency.ravel()[centres].astype(float) + 0.5)  # nowhere is quite impossible
            if not len(centres):
                continue
            drawn = np.searchsorted(chances, rng.random() * chances[-1], side='right')
            centre = np.unravel_index(centres[min(drawn, len(centres) - 1)], free.shape)
        box, lesion = cut(level, centre, free, volume, near_ventricles if at_home else None)
        if lesion.any() and lesions_places.place_of(lesion, places[box]) in accepted:
            return box, lesion
    return (slice(0, 0),) * 3, np.zeros((0, 0, 0), dtype=bool)


def similar_lesions(library: LesionLibrary, volume: np.ndarray, place: int) -> np.ndarray:
    """Find library lesions of similar volume in the same place (any place if large); indices."""
    volumes = library.volumes
    candidates = np.flatnonzero((library.places == place) | (min(volume, volumes.max()) >= LARGE_VOXELS))
    distance = np.abs(np.log(volumes[candidates] / volume))
    return candidates[np.argsort(distance, kind='stable')[:SIMILAR]]
