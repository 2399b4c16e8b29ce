"""What a fill of a real patient looks like, in numbers: no truth is needed. Pure functions.

Arrays are `(X, Y, Z)`, RAS, 1 mm, so that a voxel is a mm. *Untouched* is what the fill left as it was. The measures
are those of a reader's complaints: flat patches (grain), patches that are too bright or too dark (mean, glow, dark),
walls of ventricles that became a gradient (wall), and a rim of lesion around the fill (outline).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from ..images import masks, tissues
from ..modality import T1W, get

VOLUMES_ML = ((0.0, 0.1), (0.1, 1.0), (1.0, np.inf))
BAR_ML = 0.5  # lesions from here on are held to limits of grain; smaller ones have too little inside
GRAIN_SIGMA, GRAIN_DEPTH, MIN_GRAIN_VOXELS = 1.2, 2, 50
LOCAL_SIGMA, REACH_MM, MEAN_REACH_MM = 6, 12, 6
WALL_MM = 2  # from fluid
TAIL_PERCENT = 0.5
MIN_FLUID_VOXELS = 20  # a speck of dark voxels is noise, not fluid
MEASURES = (
    *('grain', 'grain_inside', 'mean_sd', 'glow', 'dark', 'bright_3sd', 'dark_3sd'),
    *('wall_between', 'wall_between_elsewhere', 'wall_steepness', 'outline_sd'),
)


class Untouched(NamedTuple):
    """What the T1w shows outside the filled mask: `(X, Y, Z)` bool arrays."""

    brain: np.ndarray
    fluid: np.ndarray
    fluid_seen: np.ndarray  # the same, and what of it was filled but not given
    white_matter: np.ndarray  # all of it, up to the filled mask
    inside: np.ndarray  # white matter one voxel from other tissue and three from the filled mask
    means: np.ndarray  # of fluid, grey and white matter on the T1w


def find_untouched(
    t1w: np.ndarray, brain_mask: np.ndarray, given_mask: np.ndarray, used_mask: np.ndarray, max_voxels: int = 40_000
) -> Untouched:
    """Find fluid and white matter outside a filled mask, by a mixture of three normal distributions on the T1w.

    Parameters
    ----------
    t1w : (X, Y, Z) float array
        Before filling.
    brain_mask, given_mask, used_mask : (X, Y, Z) bool array
        Lesions as they were given, and what was filled.
    max_voxels : int
        That the mixture is fitted to.

    Returns
    -------
    Untouched

    Raises
    ------
    ValueError
        If there is no white matter.
    """
    from sklearn.mixture import GaussianMixture

    deep = ndimage.binary_erosion(brain_mask, iterations=3)
    values = t1w[deep & ~used_mask]
    if len(values) < 100:
        raise ValueError(f'{len(values)} voxels of the brain lie outside the filled mask, expected most of a brain')
    # Vessels after contrast agent are no class.
    values = values[(values > np.percentile(values, 0.5)) & (values < np.percentile(values, 99))]
    sample = np.random.default_rng(0).choice(values, min(max_voxels, len(values)), replace=False)
    mixture = GaussianMixture(3, random_state=0).fit(sample[:, None].astype(np.float64))
    fluid_mean, grey_mean, white_mean = means = np.sort(mixture.means_.ravel())
    outside = brain_mask & ~used_mask
    fluid_seen = drop_specks(brain_mask & ~given_mask & (t1w < (fluid_mean + grey_mean) / 2))
    fluid = fluid_seen & outside
    bright_end = white_mean + 2.5 * (white_mean - grey_mean)
    white = outside & (t1w > (grey_mean + white_mean) / 2) & (t1w < bright_end)
    inside = ndimage.binary_erosion(white & ~ndimage.binary_dilation(used_mask, iterations=2))
    if not inside.any():
        raise ValueError('no white matter was found outside the filled mask')
    return Untouched(brain_mask, fluid, fluid_seen, white, inside, means)


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


def grains(images: Sequence[np.ndarray], region: np.ndarray) -> list[float]:
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


def local_mean(image: np.ndarray, where: np.ndarray, sigma: int = LOCAL_SIGMA) -> tuple[np.ndarray, np.ndarray]:
    """Compute the Gaussian mean of an image over a mask, and its weight: (X, Y, Z) float32 arrays."""
    weight = ndimage.gaussian_filter(where.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(where, image, 0).astype(np.float32), sigma)
    return total / np.maximum(weight, 1e-4), weight


def owners(given_mask: np.ndarray, used_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assign each filled voxel to the nearest given lesion (26 neighbours): (labels, volumes).

    Returns
    -------
    labels : (X, Y, Z) int array, 0 outside `used_mask`
    volumes_ml : (n,) array
        Of the lesions as they were given: growing by one more voxel must not move a lesion to another class.
    """
    labels, n_lesions = masks.label_lesions(given_mask)
    volumes_ml = np.bincount(labels.flat, minlength=n_lesions + 1)[1:] / 1000
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return np.where(used_mask, labels[tuple(nearest)], 0), volumes_ml


def group_lesions(
    given_mask: np.ndarray, used_mask: np.ndarray, fluid: np.ndarray
) -> dict[str, tuple[np.ndarray, int]]:
    """Group filled voxels by lesion volume and contact with fluid: dict of name -> (mask, count).

    A lesion is in contact with fluid if it touches it (26 neighbours) as it was given: growing its mask is no contact.
    """
    labels, volumes_ml = owners(given_mask, used_mask)
    present = np.zeros(len(volumes_ml) + 1, dtype=bool)
    present[np.unique(labels)] = True
    volumes_ml = np.append(-1, volumes_ml)
    at_fluid = np.zeros(len(volumes_ml), dtype=bool)
    at_fluid[np.unique(labels[given_mask & ndimage.binary_dilation(fluid, masks.FULL_CONNECTIVITY)])] = True
    chosen = {'all': volumes_ml >= 0, f'over {BAR_ML:g} ml': volumes_ml > BAR_ML}
    for low, high in VOLUMES_ML:
        chosen[volume_name(low, high)] = (volumes_ml > low) & (volumes_ml <= high)
    chosen |= {'touches fluid': at_fluid, 'away from fluid': ~at_fluid}
    groups = {}
    for name, members in chosen.items():
        members = members & present
        members[0] = False
        if members.any():
            groups[name] = members[labels], int(members.sum())
    return groups


def volume_name(low: float, high: float) -> str:
    """Return the name of a volume class."""
    return f'volume {low:g} to {high:g} ml' if np.isfinite(high) else f'volume over {low:g} ml'


def between(image: np.ndarray, mask: np.ndarray, means: np.ndarray) -> float:
    """Compute the share of a mask at 30 to 70 % between fluid and white matter; NaN if it is empty."""
    low, high = means[0] + np.array((0.3, 0.7)) * (means[2] - means[0])
    return mean_of((image > low) & (image < high), mask)


def wall_faces(image: np.ndarray, edge: float, near: np.ndarray, touched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    """All that does not depend on the group of lesions: local means, limits, and the masks of walls and rims."""

    def __init__(self, original: np.ndarray, used_mask: np.ndarray, untouched: Untouched, modality: str) -> None:
        self.original, self.used_mask, self.modality = original, used_mask, modality
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

    def measure(self, images: Sequence[np.ndarray], region: np.ndarray) -> list[dict[str, float]]:
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
            if self.modality == T1W.name:  # half-way voxels of a FLAIR are as much grey matter's
                values['wall_between'] = between(filled, region & near_fluid, self.means)
                values['wall_between_elsewhere'] = self.between_elsewhere
            steps = wall_faces(filled, self.edge, self.at_wall[box], region)[0]
            if steps.size and self.steps_elsewhere.size:
                values['wall_steepness'] = float(np.median(steps) / np.median(self.steps_elsewhere))
            measured.append(values | {'outline_sd': outline})
        return measured

    def outline(self, region: np.ndarray, distance: np.ndarray, box: Sequence[slice]) -> float:
        """Compute the lesion-like contrast of a region's border to white matter 3 to 6 mm away, in SD."""
        rim, sign = self.rim[box], get(self.modality).lesion_sign
        touching = ndimage.binary_dilation(region, masks.FULL_CONNECTIVITY) & rim
        beyond = rim & (distance > 3) & (distance <= 6) & (self.distance[box] > 3)
        off_before = self.off_before[box]
        return sign * (mean_of(off_before, touching) - mean_of(off_before, beyond))  # type: ignore[operator]


def mean_of(values: np.ndarray, mask: np.ndarray) -> float:
    """Compute the mean of values (the share of a condition) in a mask; NaN if the mask is empty."""
    return float(values[mask].mean()) if mask.any() else np.nan


def measure_fills(
    original: np.ndarray,
    fillings: dict[str, np.ndarray],
    given_mask: np.ndarray,
    used_mask: np.ndarray,
    untouched: Untouched,
    modality: str,
) -> list[dict[str, Any]]:
    """Measure fillings of one image by groups of lesions: list of dict.

    Parameters
    ----------
    original : (X, Y, Z) float array, before filling
    fillings : dict of name of the method -> (X, Y, Z) float array
    given_mask, used_mask : (X, Y, Z) bool array
        As it was given, and what was filled.
    untouched : Untouched
    modality : {'T1w', 'FLAIR'}

    Returns
    -------
    list of dict: `method`, `group`, `lesions`, `voxels` and, NaN where too little is there to tell,
        `grain` against untouched white matter (1 is alike), `grain_inside` the same without what is near fluid;
        `mean_sd` filled mean minus that of the white matter within 6 mm, in its SD, without what is near fluid;
        `glow`, `dark` shares above the local 99.5th and below the local 0.5th percentile of white matter (0.005 is
        alike), without what is near fluid; `bright_3sd`, `dark_3sd` shares more than 3 SD off the local mean;
        `wall_between` share of half-way voxels within 2 mm of fluid, `wall_between_elsewhere` where nothing was
        filled (T1w alone); `wall_steepness` median step over the wall against that of walls elsewhere;
        `outline_sd` how much more like a lesion the tissue that touches the fill is than that 3 to 6 mm away.
    """
    box = masks.bounding_box(untouched.brain | used_mask, LOCAL_SIGMA)
    original, given_mask, used_mask = (array[box] for array in (original, given_mask, used_mask))
    untouched = Untouched(*(array[box] for array in untouched[:-1]), untouched.means)  # type: ignore[call-arg]
    picture = Picture(original, used_mask, untouched, modality)
    fillings = {method: filled[box] for method, filled in fillings.items()}
    rows = []
    for name, (region, n_lesions) in group_lesions(given_mask, used_mask, untouched.fluid_seen).items():
        common = {'group': name, 'lesions': n_lesions, 'voxels': int(region.sum())}
        for method, values in zip(fillings, picture.measure(list(fillings.values()), region)):
            rows.append({'method': method} | common | values)
    return rows


def patch_grounds(
    original: np.ndarray, used_mask: np.ndarray, untouched: Untouched
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """Return the input of `discriminability.draw_patches`: local mean, its SD, and allowed places.

    Patches keep a voxel away from fluid and grey matter, filled and untouched ones alike: near them it is the anatomy
    that a classifier would tell apart.

    Parameters
    ----------
    original : (X, Y, Z) float array
    used_mask : (X, Y, Z) bool array
    untouched : Untouched

    Returns
    -------
    mean : (X, Y, Z) float array, of the white matter around
    deviation : float
    filled_mask, untouched_mask : (X, Y, Z) bool arrays
    """
    mean, weight = local_mean(original, untouched.inside)
    other = untouched.brain & ~untouched.white_matter & ~used_mask
    away = untouched.brain & ~ndimage.binary_dilation(drop_specks(other)) & (weight > 0.01)
    clear = ~ndimage.binary_dilation(used_mask, iterations=2)
    deviation = robust_deviation(original[untouched.inside])
    return mean, deviation, used_mask & away, untouched.white_matter & away & clear
