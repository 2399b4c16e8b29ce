"""Measures of a filling that need no ground truth: grain, glow, walls of ventricles, outline.

Arrays are `(X, Y, Z)`, RAS, 1 mm, so that a voxel is a mm. *Untouched* is what the fill left as it was. The measures
are those of a reader's complaints: flat patches (grain), patches that are too bright or too dark (mean, glow, dark),
walls of ventricles that became a gradient (wall), and a rim of lesion around the fill (outline). `evaluate.real` counts
them by groups of lesions of all patients, `checks` holds a filling against limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from ..images import masks, mixture, tissues

BAR_ML = 0.5  # lesions from here on are held to limits of grain; smaller ones have too little inside
GRAIN_SIGMA, GRAIN_DEPTH, MIN_GRAIN_VOXELS = 1.2, 2, 50
LOCAL_SIGMA, REACH_MM, MEAN_REACH_MM = 6, 12, 6
WALL_MM = 2  # from fluid
TAIL_PERCENT = 0.5
PLACE_SHIFT_MM = 6
MIN_VOXELS = 100  # of tissue, to compare with
MIN_FLUID_VOXELS = 20  # a speck of dark voxels is noise, not fluid
MEASURES = (
    *('grain', 'grain_inside', 'mean_sd', 'glow', 'dark', 'bright_3sd', 'dark_3sd'),
    *('wall_between', 'wall_between_elsewhere', 'wall_steepness', 'outline_sd'),
)


class Untouched(NamedTuple):
    """Tissues of the T1w outside the filled mask: `(X, Y, Z)` bool arrays."""

    brain: np.ndarray
    fluid: np.ndarray
    fluid_seen: np.ndarray  # the same, and what of it was filled but not given
    white_matter: np.ndarray  # all of it, up to the filled mask
    inside: np.ndarray  # white matter one voxel from other tissue and three from the filled mask
    means: np.ndarray  # of fluid, grey and white matter on the T1w

    def cropped(self, box: tuple[slice, ...]) -> Untouched:
        """Return the same in a part of the image; `box` is a tuple of slices."""
        return Untouched(*(array[box] for array in self[:-1]), self.means)  # type: ignore[call-arg]


def see_untouched(
    t1w: np.ndarray, brain_mask: np.ndarray, wm_mask: np.ndarray, given_mask: np.ndarray, used_mask: np.ndarray
) -> Untouched:
    """Find fluid outside a filled mask, and what of the anatomy's white matter lies far from all else.

    Parameters
    ----------
    t1w : (X, Y, Z) float array
        Before filling.
    brain_mask, wm_mask, given_mask, used_mask : (X, Y, Z) bool array
        White matter; lesions as they were given, and what was filled.

    Returns
    -------
    Untouched

    Raises
    ------
    ValueError
        If there is too little white matter to compare with.
    """
    outside = brain_mask & ~used_mask
    means = tissue_means(t1w[outside])
    fluid_seen = drop_specks(brain_mask & ~given_mask & (t1w < means[:2].mean()))
    white = wm_mask & ~used_mask
    inside = ndimage.binary_erosion(white & ~ndimage.binary_dilation(used_mask, iterations=2))
    if inside.sum() < MIN_VOXELS:
        raise ValueError('no white matter was found outside the filled mask')
    return Untouched(brain_mask, fluid_seen & outside, fluid_seen, white, inside, means)


def tissue_means(values: np.ndarray) -> np.ndarray:
    """Return the levels of fluid, grey and white matter in the T1w of a brain outside a filled mask; (3,) array.

    Raises
    ------
    ValueError
        If there are too few voxels, or of one level.
    """
    if len(values) < MIN_VOXELS:
        raise ValueError(f'{len(values)} voxels of the brain lie outside the filled mask, expected most of a brain')
    # Vessels after contrast agent are no class.
    values = values[(values > np.percentile(values, 0.5)) & (values < np.percentile(values, 99))]
    if len(np.unique(values)) < MIN_VOXELS:
        raise ValueError('the brain has no contrast')
    return mixture.fit(values, np.percentile(values, (8, 45, 85)))[1]


def drop_specks(mask: np.ndarray, min_voxels: int = MIN_FLUID_VOXELS) -> np.ndarray:
    """Remove the components of a mask (6 neighbours) with fewer than `min_voxels` voxels."""
    labels, _ = ndimage.label(mask)
    kept = np.bincount(labels.flat) >= min_voxels
    kept[0] = False
    return kept[labels]


def robust_deviation(values: np.ndarray) -> float:
    """Compute the SD from the median absolute deviation, at least a quarter of the plain SD."""
    return max(1.4826 * np.median(np.abs(values - np.median(values))), values.std() / 4)


def grain(image: np.ndarray, region: np.ndarray) -> float:
    """Compute the SD of the residual of local smoothing inside a region; see `grains`."""
    return grains([image], region)[0]


def grains(images: Sequence[Any], region: np.ndarray) -> list[float]:
    """Compute the SD of the residual of local smoothing of each image inside a region.

    The Gaussian (1.2 voxels) averages over the region alone, so that its edge leaves no step; what counts lies two
    voxels and more inside.

    Returns
    -------
    list of float; NaN if fewer than 50 voxels count.
    """
    if not region.any():
        return [np.nan] * len(images)
    box = masks.bounding_box(region, int(4 * GRAIN_SIGMA + 1))
    part = region[box]
    inner = ndimage.binary_erosion(part, iterations=GRAIN_DEPTH)
    if inner.sum() <= MIN_GRAIN_VOXELS:
        return [np.nan] * len(images)
    weight = np.maximum(ndimage.gaussian_filter(part.astype(np.float32), GRAIN_SIGMA), 1e-4)
    found = []
    for image in images:
        values = image[box].astype(np.float32)
        smooth = ndimage.gaussian_filter(np.where(part, values, 0), GRAIN_SIGMA) / weight
        found.append(float((values - smooth)[inner].std(dtype=np.float64)))
    return found


def local_mean(image: np.ndarray, where: np.ndarray, sigma: float = LOCAL_SIGMA) -> tuple[np.ndarray, np.ndarray]:
    """Compute the Gaussian mean of an image over a mask, and its weight: (X, Y, Z) float32 arrays."""
    weight = ndimage.gaussian_filter(where.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(where, image, 0).astype(np.float32), sigma)
    return total / np.maximum(weight, 1e-4), weight


def between(image: np.ndarray, mask: np.ndarray, means: np.ndarray) -> float:
    """Compute the share of a mask at 30 to 70 % between fluid and white matter; NaN if it is empty."""
    low, high = means[0] + np.array((0.3, 0.7)) * (means[2] - means[0])
    return mean_of((image > low) & (image < high), mask)


def wall_faces(
    image: np.ndarray, edge: float, near: np.ndarray, touched: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of an image over the faces (6 neighbours) that cross the edge of fluid.

    Parameters
    ----------
    image : (X, Y, Z) float array
    edge : float
        Intensity between fluid and white matter.
    near : (X, Y, Z) bool array
        Where walls are looked for: both voxels of a face lie in it.
    touched : (X, Y, Z) bool array

    Returns
    -------
    at_fill, elsewhere : float arrays
        Absolute differences over faces with a touched voxel, and over those without.
    """
    steps = ([], [])
    bright = image > edge
    for axis in range(3):
        values, above, counted, filled = (np.moveaxis(array, axis, 0) for array in (image, bright, near, touched))
        crossing = (above[1:] != above[:-1]) & counted[1:] & counted[:-1]
        at_fill = filled[1:] | filled[:-1]
        difference = np.abs(values[1:].astype(np.float64) - values[:-1])
        steps[0].append(difference[crossing & at_fill])
        steps[1].append(difference[crossing & ~at_fill])
    return tuple(np.concatenate(part) for part in steps)


class Picture:
    """All that does not depend on the group of lesions: local means, limits, and the masks of walls and rims.

    Parameters
    ----------
    original : (X, Y, Z) float array, before filling
    used_mask : (X, Y, Z) bool array
    untouched : Untouched
    lesion_sign : {1, -1}
        Lesions are brighter than white matter, or darker.
    has_dark_fluid : bool
        The image is a T1w: half-way voxels of a FLAIR are as much grey matter's.
    """

    def __init__(
        self, original: np.ndarray, used_mask: np.ndarray, untouched: Untouched, lesion_sign: Any, has_dark_fluid: bool
    ) -> None:
        self.original, self.used_mask = original, used_mask
        self.lesion_sign, self.has_dark_fluid = lesion_sign, has_dark_fluid
        self.inside, self.means = untouched.inside, untouched.means
        self.deviation = robust_deviation(original[self.inside])
        self.distance = ndimage.distance_transform_edt(~used_mask)
        near = self.inside & (self.distance < REACH_MM)
        near = near if near.any() else self.inside
        mean, weight = local_mean(original, near)
        self.known = weight > 0.01
        self.local_mean, self.off_before = mean, (original - mean) / self.deviation
        self.tails = np.percentile(self.off_before[near], (TAIL_PERCENT, 100 - TAIL_PERCENT))
        self.near_fluid = ndimage.binary_dilation(untouched.fluid, iterations=WALL_MM)
        at_white = ndimage.binary_dilation(self.inside, iterations=3)
        self.at_wall = self.near_fluid & (at_white | ndimage.binary_dilation(used_mask, iterations=2))
        self.levels = [np.median(original[mask]) if mask.any() else np.nan for mask in (untouched.fluid, self.inside)]
        fluid, white = self.levels  # a third of the way no grey matter crosses
        self.edge = fluid + (white - fluid) / 3
        elsewhere = self.near_fluid & at_white & ~untouched.fluid & ~used_mask
        self.between_elsewhere = between(original, elsewhere, self.means)
        self.steps_elsewhere = wall_faces(original, self.edge, self.at_wall, used_mask)[1]
        self.grain_of_tissue = grain(original, self.inside)
        rim = tissues.claim_rim(untouched.white_matter, used_mask, untouched.brain)
        self.rim = rim & ~used_mask & ~self.near_fluid

    def measure(self, images: Sequence[Any], region: np.ndarray) -> list[dict[str, Any]]:
        """Compute all measures of images in a part of the filled mask: list of dict, see `measure_fills`."""
        box = masks.bounding_box(region, MEAN_REACH_MM + 2)
        images = [image[box] for image in images]
        region, near_fluid, known = (array[box] for array in (region, self.near_fluid, self.known))
        distance = ndimage.distance_transform_edt(~region)
        tissue, everywhere = region & ~near_fluid & known, region & known
        beside = mean_of(self.original[box], self.inside[box] & (distance <= MEAN_REACH_MM))
        outline = self.outline(region, distance, box)
        pairs = zip(grains(images, region), grains(images, region & ~near_fluid))
        measured = []
        for filled, (everything, inside) in zip(images, pairs):
            off = (filled - self.local_mean[box]) / self.deviation
            values = {'grain': everything / self.grain_of_tissue, 'grain_inside': inside / self.grain_of_tissue}
            values['mean_sd'] = (mean_of(filled, tissue) - beside) / float(self.deviation)
            low, high = self.tails
            values['glow'], values['dark'] = mean_of(off > high, tissue), mean_of(off < low, tissue)
            values['bright_3sd'], values['dark_3sd'] = mean_of(off > 3, everywhere), mean_of(off < -3, everywhere)
            values |= dict.fromkeys(('wall_between', 'wall_between_elsewhere', 'wall_steepness'), np.nan)
            if self.has_dark_fluid:
                values['wall_between'] = between(filled, region & near_fluid, self.means)
                values['wall_between_elsewhere'] = self.between_elsewhere
            steps = wall_faces(filled, self.edge, self.at_wall[box], region)[0]
            if steps.size and self.steps_elsewhere.size:
                values['wall_steepness'] = float(np.median(steps) / np.median(self.steps_elsewhere))
            measured.append(values | {'outline_sd': outline})
        return measured

    def outline(self, region: np.ndarray, distance: np.ndarray, box: Sequence[slice]) -> float:
        """Compute the lesion-like contrast of a region's border to white matter 3 to 6 mm away, in SD."""
        rim = self.rim[box]
        touching = ndimage.binary_dilation(region, masks.FULL_CONNECTIVITY) & rim
        beyond = rim & (distance > 3) & (distance <= 6) & (self.distance[box] > 3)
        off_before = self.off_before[box]
        return self.lesion_sign * (mean_of(off_before, touching) - mean_of(off_before, beyond))


def mean_of(values: np.ndarray, mask: np.ndarray) -> float:
    """Compute the mean of values (the share of a condition) in a mask; NaN if the mask is empty."""
    return float(values[mask].mean()) if mask.any() else np.nan


class Seen(NamedTuple):
    """Measures of a filling; a value that cannot be computed is missing."""

    whole: dict[str, float]  # of all filled voxels: `grain`, `glow`, `wall`, `outline`; `step`, `step_moved`, `left`
    lesions: dict[int, dict[str, float]]  # the same by lesion, of those with `BAR_ML` and more


NAMES = {'grain': 'grain_inside', 'glow': 'glow', 'wall': 'wall_steepness', 'outline': 'outline_sd'}


def look_at(
    original: np.ndarray, filled: np.ndarray, labels: np.ndarray, untouched: Untouched, lesion_sign: Any, is_t1w: bool
) -> Seen:
    """Measure a filling as a whole and lesion by lesion.

    Parameters
    ----------
    original, filled : (X, Y, Z) float array
    labels : (X, Y, Z) int array
        Number of the lesion to which a filled voxel belongs; 0 where nothing was filled.
    untouched : Untouched
    lesion_sign : {1, -1}
    is_t1w : bool
        Walls are judged on a T1w alone: those of a FLAIR have the lesions and rims of its ventricles.

    Returns
    -------
    Seen
        `grain`: SD of the residual of local smoothing against that of white matter; `glow`: share above the local
        99.5th percentile of white matter, both away from fluid; `wall`: median step over walls of ventricles at the
        filling against that elsewhere; `outline`: how much more like a lesion the white matter that touches the
        filling is than that 3 to 6 mm away, in SD.
    """
    box = masks.bounding_box(untouched.brain | (labels > 0), LOCAL_SIGMA)
    original, filled, labels = original[box], filled[box], labels[box]
    picture = Picture(original, labels > 0, untouched.cropped(box), lesion_sign, is_t1w)

    def measure(region: np.ndarray) -> Any:
        (values,) = picture.measure([filled], region)
        names = {name: column for name, column in NAMES.items() if is_t1w or name != 'wall'}
        return {name: values[column] for name, column in names.items() if np.isfinite(values[column])}

    large = np.flatnonzero(np.bincount(labels.flat)[1:] >= 1000 * BAR_ML) + 1
    return Seen(measure(labels > 0), {int(label): measure(labels == label) for label in large})


def place_of_mask(
    image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, tissue_mask: np.ndarray, lesion_sign: int
) -> tuple[float, float]:
    """Compute the step of an image at the border of a mask of lesions, and the largest of the mask moved by 6 mm.

    A mask at its place has the larger step where it is; one that lies elsewhere has none, or a larger one where it was
    meant to be. Lesions that are faint on the image make both small: their difference still tells.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask : (X, Y, Z) bool array
    wm_mask : (X, Y, Z) bool array
        White matter: gives the local mean and the SD.
    tissue_mask : (X, Y, Z) bool array
        Brain without fluid, in which steps count.
    lesion_sign : {1, -1}

    Returns
    -------
    at_place, elsewhere : float
        Mean inside the mask minus that of the two voxels around, in SD of white matter (values beyond 3 SD count as
        3); NaN where it cannot be told.
    """
    healthy = wm_mask & ~lesion_mask
    if healthy.sum() < MIN_VOXELS or not lesion_mask.any():
        return np.nan, np.nan
    deviation = robust_deviation(image[healthy])
    if deviation <= 0:
        return np.nan, np.nan
    box = masks.bounding_box(lesion_mask, 2 * LOCAL_SIGMA + PLACE_SHIFT_MM)
    image, lesion_mask, healthy, tissue_mask = (array[box] for array in (image, lesion_mask, healthy, tissue_mask))
    mean, weight = local_mean(image, healthy)
    off = np.clip(lesion_sign * (image - mean) / deviation, -3, 3)
    counted = tissue_mask & (weight > 0.01)

    def step(mask: np.ndarray) -> float:
        around = (ndimage.maximum_filter(mask.astype(np.uint8), 5) > 0) & ~mask
        return mean_of(off, mask & counted) - mean_of(off, around & counted)

    moves = [np.roll(row, axis) for axis in range(3) for row in ((PLACE_SHIFT_MM, 0, 0), (-PLACE_SHIFT_MM, 0, 0))]
    steps = np.array([step(shifted(lesion_mask, move)) for move in moves])
    known = steps[np.isfinite(steps)]
    return step(lesion_mask), float(known.max()) if known.size else np.nan


def left_behind(filled: np.ndarray, given_mask: np.ndarray, wm_mask: np.ndarray) -> float:
    """Compute the share of a given mask that is still bright after filling: over 3 SD above the white matter around.

    What a filler takes for fluid and leaves is no part of the filling, so no other measure sees it. Of images with
    bright lesions alone: there fluid is dark.

    Parameters
    ----------
    filled : (X, Y, Z) float array
    given_mask, wm_mask : (X, Y, Z) bool array

    Returns
    -------
    float
        NaN where it cannot be told.
    """
    healthy = wm_mask & ~given_mask
    if healthy.sum() < MIN_VOXELS or not given_mask.any():
        return np.nan
    deviation = robust_deviation(filled[healthy])
    box = masks.bounding_box(given_mask, 2 * LOCAL_SIGMA)
    mean, weight = local_mean(filled[box], healthy[box])
    return mean_of(filled[box] - mean > 3 * deviation, given_mask[box] & (weight > 0.01))


def shifted(mask: np.ndarray, move: Any) -> np.ndarray:
    """Return a mask moved by whole voxels along each axis; what leaves the array is lost."""
    return ndimage.shift(mask.astype(np.uint8), move, order=0) > 0
