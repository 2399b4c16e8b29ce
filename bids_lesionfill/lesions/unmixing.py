"""Partial volume of lesions: what of a voxel is fluid, what is lesion, and how to take the lesion out of it.

A voxel is a mixture, ``v = f csf + (1 - f) (w + a c) + noise``: `f` is its share of fluid, `w` the white matter around,
`a` the share of lesion in its tissue and `c` the lesion's contrast to white matter (partial volume as in Shattuck et
al. 2001; three classes). Fluid stays, tissue that is mostly lesion (`a` above one half) is to be filled, and from
the rim the lesion is subtracted, so that the image's own noise stays. Arrays are `(X, Y, Z)` on any one grid;
distances in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage, optimize, special

from ..images import masks
from . import fluids

DRAWN_MM = 0.5  # softness of the edge of a lesion that the mask alone shows
SIGMAS_MM = (0.8, 0.4)  # at which lesions are seen to depart from their usual profile: coarse to fine
EDGES_MM = (1.0, 0.8)  # widths of the Gaussian of `soft_distance`: the first evens out ragged masks
MARGIN_MM = 20  # around the lesions, of the box that is worked on
REACH_MM = 4.0  # of rims; beyond, white matter is trusted
# Shares of lesion from which on a voxel counts as lesion; as touched by it; and is not trusted when it is unmixed.
REPLACED, TOUCHED, TRUSTED = 0.5, 0.1, 0.2
TOO_TIGHT = 0.55  # mean share of lesion just outside of masks from which on they are drawn too tightly


class Unmixing(NamedTuple):
    """Shares of fluid and lesion in every voxel, and the levels that belong to them; `(X, Y, Z)` float32 arrays."""

    fluid: np.ndarray  # 0 to 1; 1 outside the brain
    lesion: np.ndarray  # 0 to 1, of the tissue
    white_matter: np.ndarray  # local level
    contrast: np.ndarray  # local level of the lesion minus that of white matter
    csf: float  # level of fluid
    tight: bool = False  # masks are drawn too tightly: lesions reach beyond them

    @property
    def touched(self) -> np.ndarray:
        """Tissue that holds lesion, much or little: every voxel that changes; (X, Y, Z) bool array."""
        return (self.lesion > TOUCHED) & (self.fluid < 1)

    @property
    def filled(self) -> np.ndarray:
        """Tissue of which too much is lesion to be trusted when that is taken out; (X, Y, Z) bool array."""
        return (self.lesion > TRUSTED) & (self.fluid < 1)

    @property
    def replaced(self) -> np.ndarray:
        """Tissue that is mostly lesion; (X, Y, Z) bool array."""
        return (self.lesion > REPLACED) & (self.fluid < 1)


def unmix(
    image: np.ndarray,
    lesion_mask: np.ndarray,
    wm_mask: np.ndarray,
    brain_mask: np.ndarray,
    voxel_mm: Sequence[float] | np.ndarray = (1, 1, 1),
    fluid: tuple[np.ndarray, float] | None = None,
    flair: np.ndarray | None = None,
) -> Unmixing:
    """Estimate shares of fluid and lesion around a lesion mask.

    Parameters
    ----------
    image : (X, Y, Z) float array, any units
    lesion_mask, wm_mask, brain_mask : (X, Y, Z) bool array
        Lesions as drawn; white matter outside of them, with their rims; the brain.
    voxel_mm : sequence of 3 floats
        Size of the voxels.
    fluid : (X, Y, Z) float array and float, optional
        Share of fluid, where another image shows it better (a T1w for a FLAIR), and its level in this image; both are
        found in this image, a T1w, if not given.
    flair : (X, Y, Z) float array, optional
        The FLAIR of a T1w, any units: it shows which parts of lesions are no fluid, as dark as they may be on the T1w.

    Returns
    -------
    Unmixing
    """
    image = np.asarray(image, dtype=np.float32)
    core, solid = None, np.zeros_like(brain_mask)
    if fluid is None:
        white_matter = float(np.median(image[wm_mask & ~lesion_mask]))
        relative = image / white_matter
        level = fluids.fluid_level(relative, brain_mask & ~lesion_mask, voxel_mm)
        core, csf = fluids.fluid_core(relative, level, lesion_mask, brain_mask, voxel_mm), level * white_matter
        if flair is not None:
            solid = fluids.solid_on_flair(flair, core, wm_mask, lesion_mask, brain_mask)
            core = fluids.fluid_core(relative, level, lesion_mask, brain_mask & ~solid, voxel_mm)
        share = (core | ~brain_mask).astype(np.float32)
    else:
        share, csf = fluid
    # Only the box around the lesions is worked on.
    margin = tuple(int(np.ceil(MARGIN_MM / size)) for size in voxel_mm)
    low, high = np.argwhere(lesion_mask).min(axis=0), np.argwhere(lesion_mask).max(axis=0) + 1
    box = tuple(slice(max(a - m, 0), b + m) for a, b, m in zip(low, high, margin))
    own = None if core is None else (core[box], ~solid[box])
    *found, tight = unmix_box(
        image[box], lesion_mask[box], wm_mask[box], brain_mask[box], share[box], csf, own, voxel_mm
    )
    whole = [np.zeros(image.shape, dtype=np.float32) for _ in range(4)]
    whole[0][:] = share
    for array, part in zip(whole, found):
        array[box] = part
    return Unmixing(whole[0], whole[1], whole[2], whole[3], csf, tight)


def unmix_box(
    image: np.ndarray,
    lesion_mask: np.ndarray,
    wm_mask: np.ndarray,
    brain_mask: np.ndarray,
    fluid: np.ndarray,
    csf: float,
    own: tuple[np.ndarray, np.ndarray] | None,
    voxel_mm: Sequence[float] | np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:  # what `unmix` knows: eight things
    """Compute `Unmixing` fields, except fluid level, in a box around the lesions, in their order; see `unmix`.

    `own` is None, or what the image itself shows to be fluid, and where fluid may be.
    """
    drawn = lesion_mask
    distance = soft_distance(lesion_mask, voxel_mm, EDGES_MM[0])
    far = wm_mask & (distance <= -REACH_MM)
    white_matter = local_level(image, far if far.any() else wm_mask & ~lesion_mask, voxel_mm)
    difference = image - white_matter
    if own is not None:
        core, may_be_fluid = own
        # Without knowing the rim: the lesion as it is beyond the wall, its edge as soft as that of most.
        beyond = lesion_mask & ~fluids.near(core, fluids.WALL_MM, voxel_mm)
        guess = special.ndtr(distance / 0.8).astype(np.float32)
        contrast = local_contrast(difference, guess, beyond if beyond.any() else lesion_mask, voxel_mm)
        tissue = white_matter + guess * contrast
        fluid = fluids.fluid_share(image, core, csf, tissue, brain_mask, voxel_mm, may_be_fluid)
    lesion, contrast = lesion_share(difference, distance, wm_mask, lesion_mask, fluid, voxel_mm)
    # Again, from the edge that was found.
    reach_mm = reach_beyond(lesion, distance, wm_mask & ~lesion_mask)
    if reach_mm > 0:
        grey = brain_mask & (fluid < REPLACED) & ~wm_mask & ~lesion_mask
        wm_mask = wm_mask | dark_rims(grey, lesion_mask, distance, reach_mm, voxel_mm)
    lesion_mask = lesion_mask | ((lesion > REPLACED) & (fluid < REPLACED))
    distance = soft_distance(lesion_mask, voxel_mm, EDGES_MM[1])
    lesion, contrast = lesion_share(difference, distance, wm_mask, lesion_mask, fluid, voxel_mm)
    tissue = white_matter + lesion * contrast
    if own is not None:
        fluid = fluids.fluid_share(image, core, csf, tissue, brain_mask, voxel_mm, may_be_fluid)
    else:
        agreed = np.minimum(fluid, fluids.own_fluid(image, tissue, csf))
        fluid = np.where((drawn | (lesion > TOUCHED)) & brain_mask, agreed, fluid)
    return fluid, lesion, white_matter, contrast, reach_mm > 0


def reach_beyond(lesion: Any, distance: np.ndarray, white_matter: np.ndarray) -> float:
    """Measure how far lesions reach beyond their masks: as far as most of the white matter there is lesion.

    Parameters
    ----------
    lesion, distance : (X, Y, Z) float array
        Share of lesion; see `soft_distance`, mm.
    white_matter : (X, Y, Z) bool array
        Outside of the masks.

    Returns
    -------
    float
        In mm, by halves; 0 if masks hold their lesions.
    """
    outside, n_bins = white_matter & (distance > -REACH_MM), int(2 * REACH_MM)
    bins = np.floor(-distance[outside] * 2).astype(int).clip(0, n_bins - 1)
    counts, shares = (np.bincount(bins, weights, minlength=n_bins) for weights in (None, lesion[outside]))
    mostly = shares > TOO_TIGHT * np.maximum(counts, 1)
    within = int(np.argmin(np.append(mostly | (counts == 0), False)))  # an empty bin says nothing
    return within / 2 if mostly[:within].any() else 0.0


def dark_rims(
    grey: Any, lesion_mask: np.ndarray, distance: np.ndarray, reach_mm: float, voxel_mm: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Find rims as dark as grey matter, which a classifier takes for it, where masks are drawn too tightly.

    What is nearer to the mask than to grey matter further away is taken for rim.

    Parameters
    ----------
    grey, lesion_mask : (X, Y, Z) bool array
        Tissue that is no white matter, outside the mask; lesions as drawn.
    distance : (X, Y, Z) float array
        See `soft_distance`, mm.
    reach_mm : float
        See `reach_beyond`.
    voxel_mm : sequence of 3 floats

    Returns
    -------
    (X, Y, Z) bool array
    """
    further = grey & (distance <= -reach_mm - 1)
    to_mask = ndimage.distance_transform_edt(~lesion_mask, sampling=voxel_mm)
    to_grey = ndimage.distance_transform_edt(~further, sampling=voxel_mm) if further.any() else np.inf
    return grey & ~further & (to_mask < to_grey)


def without_lesion(image: np.ndarray, mix: Unmixing) -> np.ndarray:
    """Subtract the lesion, ``v - (1 - f) a c``, and keep the noise; (X, Y, Z) float array."""
    return np.where(mix.touched, image - (1 - mix.fluid) * mix.lesion * mix.contrast, image)


def tissue_alone(image: np.ndarray, mix: Unmixing, reach_voxels: int = 3) -> np.ndarray:
    """Prepare a filler's input: no rims, and white matter instead of fluid next to the filled region.

    It would take the wall of a ventricle for a slope that goes on into the lesion.

    Parameters
    ----------
    image : (X, Y, Z) float array
    mix : Unmixing
    reach_voxels : int
        How far from what is filled.

    Returns
    -------
    (X, Y, Z) float32 array
    """
    beside = ndimage.binary_dilation(mix.filled, masks.FULL_CONNECTIVITY, iterations=reach_voxels)
    beside &= ~mix.filled & (mix.fluid > REPLACED) & (mix.white_matter != 0)
    return np.where(beside, mix.white_matter, without_lesion(image, mix)).astype(np.float32)


def blend(image: np.ndarray, filled: np.ndarray, mix: Unmixing) -> np.ndarray:
    """Blend filled tissue (mostly lesion) with the image without its lesion (little lesion).

    Parameters
    ----------
    image, filled : (X, Y, Z) float array
        With the lesion; filled, as if there were no fluid.
    mix : Unmixing

    Returns
    -------
    (X, Y, Z) float array, equal to `image` where nothing is touched
    """
    weight = np.where(mix.filled, np.clip(mix.lesion / (2 * TRUSTED), 0, 1), 0)
    with_fluid = mix.fluid * mix.csf + (1 - mix.fluid) * filled
    mixed = weight * with_fluid + (1 - weight) * without_lesion(image, mix)
    # Without its lesion no wall lies deeper in the lesion's own direction: what is filled beside deep grey matter is
    # grey, and a share of fluid that was told from white matter would make it darker than it was.
    deeper = (mix.fluid > 0) & ((mixed - image) * mix.contrast > 0)
    return np.where(mix.touched & ~deeper, mixed, image)


def describe(mix: Unmixing, given_mask: np.ndarray) -> dict[str, int]:
    """Describe an unmixing for the sidecar: numbers of voxels."""
    return {
        'LesionVoxelsReplaced': int(mix.replaced.sum()),
        'LesionVoxelsUnmixed': int((mix.touched & ~mix.replaced).sum()),
        'FluidVoxelsKept': int((given_mask & (mix.fluid > REPLACED)).sum()),
    }


def average(
    values: np.ndarray, weights: np.ndarray, sigma_mm: float, voxel_mm: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the weighted Gaussian average (normalised convolution) of values, and its weight."""
    sigma = np.divide(sigma_mm, voxel_mm)
    weight = ndimage.gaussian_filter(weights.astype(np.float32), sigma, truncate=3)
    total = ndimage.gaussian_filter((weights * values).astype(np.float32), sigma, truncate=3)
    return total / np.maximum(weight, 1e-6), weight


def local_level(
    image: np.ndarray,
    trusted: np.ndarray,
    voxel_mm: Sequence[float] | np.ndarray,
    sigmas_mm: Sequence[int] = (12, 6, 3),
) -> np.ndarray:
    """Estimate tissue level around every voxel by Gaussian average, wider where trusted data are few.

    Parameters
    ----------
    image : (X, Y, Z) float array
    trusted : (X, Y, Z) bool array
    voxel_mm, sigmas_mm : sequences of floats

    Returns
    -------
    (X, Y, Z) float32 array, defined everywhere

    Raises
    ------
    ValueError
        If nothing is trusted.
    """
    if not trusted.any():
        raise ValueError('there is no white matter outside the lesions to compare them with')
    level = np.full(image.shape, np.median(image[trusted]), dtype=np.float32)
    for sigma_mm in sigmas_mm:
        mean, weight = average(np.where(trusted, image, 0), trusted, sigma_mm, voxel_mm)
        trust = np.clip(weight / 0.05, 0, 1)
        level = trust * mean + (1 - trust) * level
    return level


def local_contrast(
    difference: np.ndarray,
    share: Any,
    trusted: np.ndarray,
    voxel_mm: Sequence[float] | np.ndarray,
    sigma_mm: float = 3.0,
) -> np.ndarray:
    """Estimate lesion contrast per voxel: ``difference = share * contrast`` in a Gaussian window.

    Where no lesion is near, that of all lesions.

    Parameters
    ----------
    difference : (X, Y, Z) float array
        Image minus white matter.
    share : (X, Y, Z) float array
        Of lesion.
    trusted : (X, Y, Z) bool array
        Voxels that take part.
    voxel_mm, sigma_mm : floats

    Returns
    -------
    (X, Y, Z) float32 array
    """
    weight = share**2 * trusted
    overall = float((weight * difference).sum() / max((weight * share).sum(), 1e-6))
    ratio = np.divide(difference, share, out=np.zeros_like(difference), where=share > TOUCHED)
    mean, found = average(ratio, weight, sigma_mm, voxel_mm)
    trust = np.clip(found / 1e-3, 0, 1)
    return (trust * mean + (1 - trust) * overall).astype(np.float32)


def soft_distance(
    lesion_mask: np.ndarray, voxel_mm: Sequence[float] | np.ndarray, sigma_mm: float = EDGES_MM[0]
) -> np.ndarray:
    """Compute the signed distance to the edge of a ragged (rater's) mask; mm, positive inside.

    Every lesion is blurred and scaled so that its middle is inside; at a straight edge, the probit of a blurred mask is
    the distance over the width of the blur.

    Parameters
    ----------
    lesion_mask : (X, Y, Z) bool array
    voxel_mm : sequence of 3 floats
    sigma_mm : float

    Returns
    -------
    (X, Y, Z) float32 array, from -5 to 5 times `sigma_mm`
    """
    sigma = np.divide(sigma_mm, voxel_mm)
    share = np.zeros(lesion_mask.shape, dtype=np.float32)
    labels, _ = masks.label_lesions(lesion_mask)
    for number, bound in enumerate(ndimage.find_objects(labels), start=1):
        box = masks.widen(bound, int(5 * sigma.max()) + 1)
        blurred = ndimage.gaussian_filter((labels[box] == number).astype(np.float32), sigma, truncate=5)
        share[box] += blurred / min(blurred.max(), 0.9) * 0.9
    return (sigma_mm * special.ndtri(np.clip(share, 3e-7, 1 - 3e-7))).astype(np.float32)


def by_depth(difference: np.ndarray, tissue: np.ndarray, away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute usual difference to white matter and its deviation, by depth below its surface.

    At its surface white matter is partly grey matter: darker, and more so here than there. That is no lesion.

    Parameters
    ----------
    difference : (X, Y, Z) float array
    tissue, away : (X, Y, Z) bool array
        White matter and lesions; white matter far from lesions, from which both are taken.

    Returns
    -------
    usual, deviation : (X, Y, Z) float32 arrays
        Median, and robust standard deviation; infinite where nothing is known.
    """
    depth = ndimage.distance_transform_cdt(np.pad(tissue, 1), 'chessboard')[1:-1, 1:-1, 1:-1].clip(max=3)
    usual, deviation = np.zeros(4, dtype=np.float32), np.full(4, np.inf, dtype=np.float32)
    for level in range(1, 4):
        values = difference[away & (depth == level)]
        if len(values) > 100:
            usual[level] = np.median(values)
            deviation[level] = 1.4826 * np.median(np.abs(values - usual[level]))
    return usual[depth], deviation[depth]


def visibility(
    difference: np.ndarray, contrast: np.ndarray, lesion_mask: np.ndarray, tissue: np.ndarray, away: np.ndarray
) -> np.ndarray:
    """Return how far the image, not the mask alone, says where a lesion is: 0 where its contrast drowns in noise.

    Of a lesion that is not to be seen, or is bright among dark ones, noise and anatomy over its contrast would be taken
    for its share.

    Parameters
    ----------
    difference, contrast : (X, Y, Z) float array
        Image minus white matter; the contrast of the lesion.
    lesion_mask, tissue, away : (X, Y, Z) bool array
        Lesions; white matter and lesions; white matter far from lesions.

    Returns
    -------
    (X, Y, Z) float array: rises from 0 at one standard deviation of white matter to 1 at two
    """
    deviation = by_depth(difference, tissue, away)[1]
    known = np.isfinite(deviation)
    noise = deviation[known].min() if known.any() else 0.0  # inside white matter, where no other tissue adds to it
    if not noise > 0:
        return np.ones_like(contrast)
    sign = np.sign(np.median(contrast[lesion_mask]))
    return np.clip(sign * contrast / noise - 1, 0, 1)


def lesion_share(
    difference: np.ndarray,
    distance: np.ndarray,
    wm_mask: np.ndarray,
    lesion_mask: np.ndarray,
    fluid: Any,
    voxel_mm: Sequence[float] | np.ndarray,
    sigmas_mm: tuple[float, float] = SIGMAS_MM,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the share of lesion in the tissue of every voxel, and the contrast of the lesion.

    First the profile that the lesions of this image have on average, falling monotonously with the distance to the edge
    of the mask: it says how far masks are off and how soft lesions end.
    Then what this lesion departs from it, coarse and then fine, shrunk by as much as white matter far from lesions
    departs from its own level (empirical Bayes): noise is not taken for lesion.

    Parameters
    ----------
    difference : (X, Y, Z) float array
        Image minus local white matter.
    distance : (X, Y, Z) float array
        See `soft_distance`, mm.
    wm_mask, lesion_mask : (X, Y, Z) bool array
    fluid : (X, Y, Z) float array
        Share of fluid; voxels that have any take no part in the estimates.
    voxel_mm : sequence of 3 floats
    sigmas_mm : sequence of floats
        Of the smoothing.

    Returns
    -------
    share, contrast : (X, Y, Z) float32 arrays
    """
    tissue = wm_mask | lesion_mask
    seen = tissue & (fluid < 0.05)
    band = distance > max(-REACH_MM, distance.min())
    away = seen & ~band
    difference = difference - np.where(lesion_mask, 0, by_depth(difference, tissue, away)[0])
    bins = np.clip(np.rint((distance + REACH_MM) * 4), 0, 8 * REACH_MM).astype(int)
    n_bins = bins.max() + 1
    used = seen & band

    def per_bin(values: np.ndarray) -> np.ndarray:
        return np.bincount(bins[used], values[used], minlength=n_bins)

    share = special.ndtr(distance / 0.8).astype(np.float32)
    for _ in range(3):
        contrast = local_contrast(difference, share, seen & lesion_mask, voxel_mm)
        products, squares = per_bin(contrast * difference), per_bin(contrast**2)
        known = squares > 0
        if not known.any():  # all is partly fluid: there is nothing to learn from, and the mask is taken at its word
            break
        # Beyond the outermost bin there is no lesion: where voxels are large, no other voxel says so.
        places = np.concatenate([[-1], np.flatnonzero(known)])
        profile = np.interp(np.arange(n_bins), places, np.concatenate([[0], products[known] / squares[known]]))
        profile = optimize.isotonic_regression(profile, weights=squares + 1e-3 * squares.max()).x
        profile = np.clip((profile - profile[0]) / max(profile[-1] - profile[0], 1e-6), 0, 1)
        share = np.where(band, profile[bins], 0).astype(np.float32)
    inner = share * (distance > 0)  # a lesion that is pale in its middle is a lesion
    for sigma_mm in sigmas_mm:
        rest, _ = average(np.where(seen, difference - share * contrast, 0), seen, sigma_mm, voxel_mm)
        noise = by_depth(rest, tissue, away)[1] ** 2
        noise_share = np.divide(noise, contrast**2, out=np.full_like(rest, np.inf), where=contrast != 0)
        spread = per_bin(contrast**2 * np.maximum(np.where(np.isfinite(noise), rest**2 - noise, 0), -noise))
        spread = (np.maximum(spread, 0) / np.maximum(per_bin(contrast**4), 1e-12))[bins]  # variance of the share
        gain = np.divide(spread, spread + noise_share, out=np.zeros_like(rest), where=spread > 0)
        departure = np.divide(gain * rest, contrast, out=np.zeros_like(rest), where=contrast != 0)
        share = np.clip(np.maximum(share + departure * band, inner), 0, 1).astype(np.float32)
    drawn = special.ndtr(distance / DRAWN_MM)
    visible = visibility(difference, contrast, lesion_mask, tissue, away)
    share = (visible * share + (1 - visible) * drawn).astype(np.float32)
    # A wall is tissue that is partly fluid, one voxel thick; thicker is cortex.
    tissue |= ndimage.binary_dilation(tissue) & (fluid > 0)
    return np.where(band & tissue, share, 0).astype(np.float32), contrast
