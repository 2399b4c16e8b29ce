"""Tissue fractions with a template's priors: a mixture of normal distributions on a random field."""

import numpy as np
from scipy import ndimage

N_ITERATIONS = 8
PRIOR_WEIGHT = 0.1
SMOOTHNESS = 0.1  # of the Markov random field, per neighbour (Atropos in antsCorticalThickness.sh)
FIT_SHARE = 0.25  # of the brain's voxels, drawn at random, take part in the fit
PURE, MIXED = [0, 2, 4], [1, 3]  # CSF, CSF with grey matter, grey matter, grey with white matter, white matter


def segment(t1w: np.ndarray, brain_mask: np.ndarray, priors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Segment a bias-corrected T1w into CSF, grey and white matter (as Tohka et al. 2004).

    Each class has a normal distribution, the template's prior to the power of `PRIOR_WEIGHT`, and neighbours that it
    rather has too, as in Atropos (Avants et al. 2011). Atropos itself gives other classes every time it runs; this
    gives the same for the same `rng`, and knows that most voxels of a sulcus are part fluid, part cortex. Lesions are
    not known to it: what a lesion does to a segmentation is what is to be measured.

    Parameters
    ----------
    t1w : (X, Y, Z) float array
    brain_mask : (X, Y, Z) bool array
    priors : (3, X, Y, Z) float array
        Of CSF, grey and white matter.
    rng : numpy.random.Generator
        Draws the voxels to which the distributions are fitted.

    Returns
    -------
    (3, X, Y, Z) float32 array
        Fraction of each tissue; 0 outside the brain.

    Raises
    ------
    ValueError
        If the brain mask is empty, or a class has no voxel.
    """
    if not brain_mask.any():
        raise ValueError('brain mask is empty, expected a brain to segment')
    intensities = in_units_of_their_own(t1w[brain_mask])
    prior = with_mixed_classes(np.maximum(priors[:, brain_mask], 1e-3).astype(np.float32))
    log_prior = PRIOR_WEIGHT * np.log(prior)
    fitted = rng.random(len(intensities)) < FIT_SHARE
    posterior = prior
    volume = np.zeros((len(prior), *t1w.shape), dtype=np.float32)
    for _ in range(N_ITERATIONS):
        means, variances = fit(intensities[fitted], posterior[:, fitted])
        log_likelihood = -0.5 * ((intensities - means) ** 2 / variances + np.log(variances))
        volume[:, brain_mask] = posterior
        neighbours = np.stack([neighbour_sum(share)[brain_mask] for share in volume])
        posterior = softmax((1 - PRIOR_WEIGHT) * log_likelihood + log_prior + SMOOTHNESS * neighbours)
    fractions = np.zeros((3, *t1w.shape), dtype=np.float32)
    fractions[:, brain_mask] = unmix(intensities, posterior, means)
    return fractions


def in_units_of_their_own(intensities: np.ndarray) -> np.ndarray:
    """Normalise intensities by their median and interquartile range; float32 array.

    Then the unit of the image, and what was added to it, change nothing but rounding.
    """
    values = intensities.astype(np.float64)
    low, median, high = np.percentile(values, (25, 50, 75))
    return ((values - median) / ((high - low) or 1)).astype(np.float32)


def with_mixed_classes(prior: np.ndarray) -> np.ndarray:
    """Compute priors of five classes from those of CSF, grey and white matter; (5, voxels) array.

    A mixed class is likely where both of its tissues are.
    """
    prior = prior / prior.sum(axis=0)
    fluid, grey, white = prior
    prior = np.stack([fluid, 2 * np.sqrt(fluid * grey), grey, 2 * np.sqrt(grey * white), white])
    return prior / prior.sum(axis=0)


def fit(intensities: np.ndarray, posterior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit means and variances of the five classes; two (5, 1) float32 arrays.

    A mixed class lies between its two tissues: half of its variance is theirs, the rest is the range of the mixtures.
    """
    weights, values = posterior.astype(np.float64), intensities.astype(np.float64)
    totals = weights.sum(axis=1)
    if not (totals[PURE] > 1).all():
        raise ValueError(f'classes of {totals[PURE].round(1).tolist()} voxels, expected CSF, grey and white matter')
    means = weights @ values / np.maximum(totals, 1e-12)
    variances = (weights * (values - means[:, None]) ** 2).sum(axis=1) / np.maximum(totals, 1e-12)
    variances = np.maximum(variances, 1e-6 * values.var() + 1e-12)
    for mixed in MIXED:
        low, high = means[mixed - 1], means[mixed + 1]
        means[mixed] = (low + high) / 2
        variances[mixed] = (variances[mixed - 1] + variances[mixed + 1]) / 2 + (high - low) ** 2 / 36
    return means[:, None].astype(np.float32), variances[:, None].astype(np.float32)


def unmix(intensities: np.ndarray, posterior: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Compute tissue fractions (3, voxels); split mixed classes by intensity between both tissues."""
    fractions = posterior[PURE].copy()
    for mixed in MIXED:
        low, high = means[mixed - 1], means[mixed + 1]
        upper = np.clip((intensities - low) / np.where(high == low, 1, high - low), 0, 1)
        fractions[mixed // 2] += posterior[mixed] * (1 - upper)
        fractions[mixed // 2 + 1] += posterior[mixed] * upper
    return fractions


def neighbour_sum(share: np.ndarray) -> np.ndarray:
    """Compute the sum over the 26 neighbours of each voxel, zero beyond the border."""
    total = share
    for axis in range(3):
        total = ndimage.correlate1d(total, np.ones(3, dtype=np.float32), axis=axis, mode='constant')
    return total - share


def softmax(log_weights: np.ndarray) -> np.ndarray:
    """Compute weights along the first axis that sum to one."""
    weights = np.exp(log_weights - log_weights.max(axis=0))
    return weights / weights.sum(axis=0)
