"""Lesions painted into tissue: healthy tissue, so that the truth beneath is known, or as the start of a synthesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from ..diffusion import classical
from ..images import grid, masks
from ..modality import get
from . import sampling

if TYPE_CHECKING:
    import nibabel as nib

    from ..diffusion.models import Model
    from ..images.anatomy import Anatomy
    from .synthesis import NewLesions


def contrast_of(
    image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute how much brighter each lesion is than surrounding white matter, on its mean voxel.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
        White matter outside any lesion.

    Returns
    -------
    contrast : (X, Y, Z) float32 array
        Of the voxel's lesion; 0 outside; below zero if the lesion is darker.
    volumes, contrasts : (n,) arrays
        Voxels and contrast of every lesion, by its number in `masks.label_lesions`.
    """
    labels, n_lesions = masks.label_lesions(lesion_mask)
    brighter = image - classical.local_white_matter(image, lesion_mask, wm_mask)
    volumes = np.bincount(labels.flat, minlength=n_lesions + 1)
    sums = np.bincount(labels.flat, np.where(lesion_mask, brighter, 0).flat, minlength=n_lesions + 1)
    contrasts = (sums / np.maximum(volumes, 1)).astype(np.float32)
    contrasts[0] = 0
    return contrasts[labels], volumes[1:], contrasts[1:]


def sign_of(contrasts: np.ndarray) -> int:
    """Return 1 if lesions of some contrasts are mostly brighter than white matter, -1 if they are darker."""
    return 1 if np.median(contrasts) > 0 else -1


SIGN_GAP_VOXELS, SIGN_WIDTH_VOXELS = 2, 15  # white matter that lesions are compared with


def lesion_sign(image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, usual: int | None = None) -> int:
    """Measure whether lesions are brighter (1) or darker (-1) than the white matter around them.

    The sign is that of the mean, over the voxels of the mask, of the difference to the mean of the white matter in a
    cube of 15 voxels around; voxels next to the mask may belong to a lesion and do not count.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
    usual : int, optional
        What is returned where nothing can be measured; -1 if not given.
    """
    if not lesion_mask.any():
        return usual or -1
    box = masks.bounding_box(lesion_mask, SIGN_WIDTH_VOXELS // 2)
    mask = lesion_mask[box]
    healthy = wm_mask[box] & ~ndimage.binary_dilation(mask, iterations=SIGN_GAP_VOXELS)
    share, level = (
        ndimage.uniform_filter(values.astype(np.float64), SIGN_WIDTH_VOXELS, mode='constant')
        for values in (healthy, np.where(healthy, image[box], 0))
    )
    known = mask & (share > 1e-3)  # three voxels of the cube
    if not known.any():
        return usual or -1
    return 1 if (image[box][known] - level[known] / share[known]).mean() > 0 else -1


def grow_to_rim(
    image: np.ndarray,
    lesion_mask: np.ndarray,
    wm_mask: np.ndarray,
    rim_voxels: int = 2,
    bright_lesions: bool = False,
    deviations: float = 2.5,
) -> np.ndarray:
    """Grow a lesion mask into the rim of its lesions that it missed; see `masks.grow_while_dark`.

    What counts as rim is `deviations` (robust standard deviations of the white matter) darker than the white matter
    around, which is averaged at least four voxels from the mask.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
    rim_voxels : int
        Growth ends here; 0 grows nothing.
    bright_lesions : bool
        True where lesions are brighter than white matter; see `lesion_sign`.
    deviations : float
    """
    far = wm_mask & ~ndimage.binary_dilation(lesion_mask, iterations=4)
    if not rim_voxels or not lesion_mask.any() or not far.any():
        return lesion_mask.copy()
    darker = classical.local_white_matter(image, lesion_mask, wm_mask, gap_voxels=4) - image
    darker = -darker if bright_lesions else darker
    deviation = 1.4826 * np.median(np.abs(darker[far] - np.median(darker[far])))
    return masks.grow_while_dark(lesion_mask, wm_mask, darker, deviations * deviation, rim_voxels)


MIN_OWN_LESIONS = 10  # from here on a patient's own lesions say how new ones look


def draw_strengths(rng: np.random.Generator, n_lesions: int, intensity: Any) -> np.ndarray:
    """Return a quantile for each lesion: the requested one, or a random one each ('auto')."""
    if intensity == 'auto':
        return rng.uniform(0.05, 0.95, n_lesions)
    if not 0 <= intensity <= 1:
        raise ValueError(f"lesion intensity is {intensity}, expected a quantile from 0 to 1, or 'auto'")
    return np.full(n_lesions, float(intensity))


def choose_halo(
    lesion_halo: Any, image: np.ndarray, anatomy: Anatomy, model: Model, min_lesions: int = MIN_OWN_LESIONS
) -> float:
    """Choose the share of contrast left 1 mm outside a new lesion: given, the patient's or usual.

    Raises
    ------
    ValueError
        If what is asked for is no share.
    """
    if lesion_halo != 'auto':
        if not 0 <= lesion_halo <= 1:
            raise ValueError(f"lesion halo is {lesion_halo}, expected a share from 0 to 1, or 'auto'")
        return float(lesion_halo)
    if anatomy.old_lesions.any():
        shares = halo_shares(image, anatomy.old_lesions & anatomy.brain_mask, anatomy.wm_mask)
        if len(shares) >= min_lesions:
            return float(np.clip(np.median(shares), 0, 1))
    return get(model.modality).halo_share


def contrast_volume(
    image: np.ndarray, hole: np.ndarray, anatomy: Anatomy, new: NewLesions, model: Model
) -> tuple[np.ndarray | None, str]:
    """Choose how much brighter than white matter each new lesion is, and describe the reference.

    Lesions are as those of their size, the patient's own if there are enough; see `synthesis.choose_contrasts`.

    Parameters
    ----------
    image : (X, Y, Z) float array, normalised, on the grid of the anatomy
    hole : (X, Y, Z) bool array
        Where lesions are painted.
    anatomy : Anatomy
    new : NewLesions
    model : weights.Model

    Returns
    -------
    contrast : (X, Y, Z) float32 array, 0 outside the hole; None if the model takes none
    source : str
    """
    if not (model.form.asks_contrast or model.form.kind == 'unconditional'):
        return None, 'what the model has learnt: it cannot be asked for a contrast'
    reference, source = reference_contrasts(image, anatomy.old_lesions, anatomy.wm_mask, model)
    contrasts = choose_contrasts(volumes_of(new), new.strengths, *reference, sign_of(reference[1]))
    numbers = nearest_numbers(new.mask_img, anatomy.grid_img)
    return np.where(hole, np.append(0, contrasts)[numbers], 0).astype(np.float32), source


def nearest_numbers(mask_img: nib.Nifti1Image, grid_img: nib.Nifti1Image) -> np.ndarray:
    """Find the number of the nearest lesion at every voxel of a grid; (X, Y, Z) int array."""
    labels = grid.resample_to(mask_img, grid_img, order=0).astype(int)
    if not labels.any():
        raise ValueError('the new lesions lie outside the T1w: their world coordinates do not overlap')
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]


def volumes_of(new: NewLesions) -> np.ndarray:
    """Compute the volume of each new lesion by number, in mm3."""
    labels = np.asarray(new.mask_img.dataobj)
    voxel_mm3 = abs(np.linalg.det(new.mask_img.affine[:3, :3]))
    return np.bincount(labels.flat, minlength=len(new.strengths) + 1)[1:] * voxel_mm3


def reference_contrasts(
    image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, model: Model, min_lesions: int = MIN_OWN_LESIONS
) -> tuple[tuple[np.ndarray, np.ndarray], str]:
    """Return ((volumes in mm3, contrasts), words) of real lesions, the patient's or the model's.

    Parameters
    ----------
    image : (X, Y, Z) float array, normalised
    lesion_mask, wm_mask : (X, Y, Z) bool array
        The patient's own lesions; white matter outside them.
    model : weights.Model
    min_lesions : int
        Patients with fewer lesions (of 3 voxels and more) of their own get such as the model was trained on.

    Raises
    ------
    ValueError
        If there is neither.
    """
    if lesion_mask.any():
        _, volumes, contrasts = contrast_of(image, lesion_mask, wm_mask)
        own = volumes >= sampling.MIN_VOXELS
        if own.sum() >= min_lesions:
            return (volumes[own], contrasts[own]), f'{own.sum()} lesions of the patient'
    if model.contrasts is None:
        raise ValueError(
            f'model {model.name} brings no contrasts of lesions (lesion_contrasts.json), and the patient has fewer '
            f'than {min_lesions} lesions to take them from'
        )
    return model.contrasts, f'{len(model.contrasts[0])} lesions that the model was trained on'


# The coarse lesions of the thesis' unconditional synthesis (3.2, SDEdit): quantiles of the patient's lesions; None is
# their mean.
COARSE_INTENSITIES = {
    'first-quartile': 0.25,
    'mean': None,
    'median': 0.5,
    'third-quartile': 0.75,
    'percentile-99': 0.99,
}


def draw_contrast(rng: np.random.Generator, lowest: float = 0.15, modality: str = 'T1w') -> float:
    """Sample the contrast of a lesion from that of real, visible ones (at least `lowest`).

    It is how much darker than white matter a lesion is: below zero where lesions are bright (FLAIR).
    """
    table = get(modality).contrast_percentiles
    if table is None:
        raise ValueError(f'contrasts of lesions on {modality} have not been measured: give T1w or FLAIR')
    percentiles, contrasts = list(table.keys()), list(table.values())
    start = np.interp(lowest, contrasts, percentiles)
    contrast = float(np.interp(rng.uniform(start, max(percentiles)), percentiles, contrasts))
    return -get(modality).lesion_sign * contrast  # type: ignore[operator]


SIMILAR_LESIONS = 20  # those of about one size, of which a quantile is taken
LEAST_CONTRAST = {1: 0.1, -1: 0.0}  # bright lesions (FLAIR) stay bright; dark ones (T1w) may be hardly seen


def choose_contrasts(
    volumes: Sequence[float] | np.ndarray,
    strengths: np.ndarray,
    known_volumes: np.ndarray,
    known_contrasts: np.ndarray,
    sign: Any,
) -> np.ndarray:
    """Choose contrasts of new lesions as quantiles of those of real lesions of similar size.

    Parameters
    ----------
    volumes : (n,) array, mm3
    strengths : (n,) array
        Quantiles, 0 to 1; 1 is the most different from white matter.
    known_volumes, known_contrasts : (m,) arrays
        Of real lesions, see `inpaint.contrast_of`.
    sign : int
        1 for lesions that are brighter than white matter, -1 for darker ones.

    Returns
    -------
    (n,) array
    """
    known_strengths = sign * np.asarray(known_contrasts)
    contrasts = np.empty(len(volumes))
    for number, (volume, strength) in enumerate(zip(volumes, strengths)):
        distance = np.abs(np.log(np.asarray(known_volumes) / volume))
        similar = np.argsort(distance, kind='stable')[:SIMILAR_LESIONS]
        contrasts[number] = max(np.quantile(known_strengths[similar], strength), LEAST_CONTRAST[sign])
    return sign * contrasts


def match_contrast(
    image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, contrast: np.ndarray, edge_voxels: float = 0.8
) -> np.ndarray:
    """Shift the intensities of every lesion so that its mean contrast is the one asked for.

    A network that was trained on few patients paints lesions that are a fifth too faint (benchmarks/intensity.md).
    The shift is full in the middle of a lesion and softer towards its edge.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
    contrast : (X, Y, Z) float array
        What is asked for, see `inpaint.contrast_of`.
    edge_voxels : float
        Standard deviation of the Gaussian edge, in voxels.

    Returns
    -------
    (X, Y, Z) float array, equal outside the mask
    """
    labels, n_lesions = masks.label_lesions(lesion_mask)
    obtained = contrast_of(image, lesion_mask, wm_mask)[2]
    alpha = ndimage.gaussian_filter(lesion_mask.astype(np.float32), edge_voxels) * lesion_mask
    numbers = np.arange(1, n_lesions + 1)
    asked, share = (np.asarray(ndimage.mean(values, labels, numbers)) for values in (contrast, alpha))
    shift = np.append(0, (asked - obtained) / share)
    return (image + shift[labels] * alpha).astype(image.dtype)


# A rater's mask ends where a lesion is about half as bright, not where the lesion ends. How far it takes the contrast
# outside (`Modality.halo_share`) to fall by e (benchmarks/lesion_contrast.py), and where it ends.
HALO_LENGTH_MM, HALO_REACH_MM = 1.2, 4.0


def halo_shares(
    image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, min_voxels: int = 3, min_contrast: float = 0.1
) -> np.ndarray:
    """Compute the share of each lesion's contrast that is left in the white matter that touches it.

    Parameters
    ----------
    image : (X, Y, Z) float array, normalised
    lesion_mask, wm_mask : (X, Y, Z) bool array
        Lesions as a rater drew them; white matter outside them.
    min_voxels, min_contrast : int, float
        Lesions that are smaller, fainter, or touch less white matter do not count.

    Returns
    -------
    (n,) float array
    """
    labels, n_lesions = masks.label_lesions(lesion_mask)
    brighter = image - classical.local_white_matter(image, lesion_mask, wm_mask, gap_voxels=4)
    distance, nearest = ndimage.distance_transform_edt(~lesion_mask, return_indices=True)
    touching = np.where((distance == 1) & wm_mask, labels[tuple(nearest)], 0)
    counts, sums = (
        [np.bincount(part.flat, weights, minlength=n_lesions + 1)[1:] for part in (labels, touching)]
        for weights in (None, brighter.flat)
    )
    inside, outside = (total / np.maximum(count, 1) for total, count in zip(sums, counts))
    usable = (np.minimum(*counts) >= min_voxels) & (np.abs(inside) >= min_contrast)
    return outside[usable] / inside[usable]


def fade_out(
    image: np.ndarray,
    lesion_mask: np.ndarray,
    wm_mask: np.ndarray,
    share: float,
    voxel_mm: Sequence[float] | np.ndarray = (1, 1, 1),
) -> np.ndarray:
    """Fade new lesions into surrounding white matter as real ones do; keep their mean contrast.

    Parameters
    ----------
    image : (X, Y, Z) float array
        With the lesions.
    lesion_mask, wm_mask : (X, Y, Z) bool array
        White matter outside any lesion.
    share : float
        Of the contrast of the lesion, 1 mm outside its mask; 0 leaves the image as it is.
    voxel_mm : sequence of 3 floats
        Size of the voxels.

    Returns
    -------
    (X, Y, Z) float array, equal outside white matter and more than `HALO_REACH_MM` away from the lesions
    """
    if not share:
        return image
    labels, _ = masks.label_lesions(lesion_mask)
    contrast, _, contrasts = contrast_of(image, lesion_mask, wm_mask)
    distance, nearest = ndimage.distance_transform_edt(~lesion_mask, sampling=voxel_mm, return_indices=True)
    ring = wm_mask & (distance > 0) & (distance <= HALO_REACH_MM)
    left = np.minimum(share * np.exp((1 - distance) / HALO_LENGTH_MM), 1)
    halo = np.where(ring, np.append(0, contrasts)[labels[tuple(nearest)]] * left, 0)
    # The white matter that a lesion is compared with has a halo now, as it has around real ones.
    return match_contrast((image + halo).astype(image.dtype), lesion_mask, wm_mask, contrast)


def coarse_lesion(
    image: np.ndarray, lesion_mask: np.ndarray, lesion_intensities: np.ndarray, intensity: float | str = 'median'
) -> np.ndarray:
    """Insert a lesion of one intensity, the start of SDEdit (Meng et al. 2022; thesis 3.2).

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask : (X, Y, Z) bool array
    lesion_intensities : (n,) float array
        Of the patient's own lesions, for example `image[real_lesion_mask]`.
    intensity : str
        One of `COARSE_INTENSITIES`.

    Raises
    ------
    ValueError
        If the intensity is not known, or there are none to take it from.
    """
    if intensity not in COARSE_INTENSITIES:
        raise ValueError(f'intensity is {intensity!r}, expected one of {sorted(COARSE_INTENSITIES)}')
    if not len(lesion_intensities):
        raise ValueError('there are no lesion intensities to take the coarse lesion from')
    quantile = COARSE_INTENSITIES[intensity]
    value = np.mean(lesion_intensities) if quantile is None else np.quantile(lesion_intensities, quantile)
    return np.where(lesion_mask, value, image).astype(image.dtype)


def paint_lesion(
    image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, contrast: float | np.ndarray, edge_voxels: float
) -> tuple[np.ndarray, np.ndarray]:
    """Darken a soft-edged lesion in a T1w image; return the image and the lesion share per voxel.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
        The lesion is the mask blurred; it stays inside white matter.
    contrast : float
        What is subtracted where the lesion is full, in units of the image; below zero for bright lesions.
    edge_voxels : float
        Standard deviation of the Gaussian edge, in voxels.

    Returns
    -------
    painted : (X, Y, Z) float array
    alpha : (X, Y, Z) float array, 0 to 1
    """
    alpha = np.zeros(lesion_mask.shape, dtype=np.float32)
    labels, _ = masks.label_lesions(lesion_mask)
    reach = int(4 * edge_voxels + 0.5)  # where scipy cuts its Gaussian off
    for number, bound in enumerate(ndimage.find_objects(labels), start=1):
        box = masks.widen(bound, reach)
        share = ndimage.gaussian_filter((labels[box] == number).astype(np.float32), edge_voxels) * wm_mask[box]
        peak = share.max()
        if peak > 0:  # a small lesion loses its peak to the blur; real small lesions do not
            alpha[box] += share / min(peak, 0.9) * 0.9
    alpha = np.minimum(alpha, 1)
    return image - contrast * alpha, alpha
