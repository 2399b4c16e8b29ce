"""Measures of a fill of a real patient that need no ground truth. Pure functions.

Arrays are `(X, Y, Z)`, RAS, 1 mm, so that a voxel is a mm. *Untouched* is what the fill left as it was. The measures
are defined in `lesions.measures`, which the report of a participant shares. White matter is found here by other means
than the app's.
"""

from typing import Any

import numpy as np
from scipy import ndimage

from ..images import masks
from ..lesions.measures import (
    BAR_ML,
    LOCAL_SIGMA,
    Picture,
    Untouched,
    drop_specks,
    local_mean,
    robust_deviation,
    tissue_means,
)
from ..modality import T1W, get

VOLUMES_ML = ((0.0, 0.1), (0.1, 1.0), (1.0, np.inf))


def find_untouched(
    t1w: np.ndarray, brain_mask: np.ndarray, given_mask: np.ndarray, used_mask: np.ndarray
) -> Untouched:
    """Find fluid and white matter outside a filled mask, by a mixture of three normal distributions on the T1w.

    Parameters
    ----------
    t1w : (X, Y, Z) float array
        Before filling.
    brain_mask, given_mask, used_mask : (X, Y, Z) bool array
        Lesions as they were given, and what was filled.

    Returns
    -------
    Untouched

    Raises
    ------
    ValueError
        If there is no white matter.
    """
    deep = ndimage.binary_erosion(brain_mask, iterations=3)
    fluid_mean, grey_mean, white_mean = means = tissue_means(t1w[deep & ~used_mask])
    outside = brain_mask & ~used_mask
    fluid_seen = drop_specks(brain_mask & ~given_mask & (t1w < (fluid_mean + grey_mean) / 2))
    fluid = fluid_seen & outside
    bright_end = white_mean + 2.5 * (white_mean - grey_mean)
    white = outside & (t1w > (grey_mean + white_mean) / 2) & (t1w < bright_end)
    inside = ndimage.binary_erosion(white & ~ndimage.binary_dilation(used_mask, iterations=2))
    if not inside.any():
        raise ValueError('no white matter was found outside the filled mask')
    return Untouched(brain_mask, fluid, fluid_seen, white, inside, means)


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
    sign = get(modality).lesion_sign
    picture = Picture(original, used_mask, untouched.cropped(box), sign, modality == T1W.name)
    fillings = {method: filled[box] for method, filled in fillings.items()}
    rows = []
    for name, (region, n_lesions) in group_lesions(given_mask, used_mask, untouched.fluid_seen[box]).items():
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
