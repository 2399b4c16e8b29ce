"""A mixture of three normal distributions on the histogram of a brain, with priors on shares and variances.

Maximum likelihood alone has no good end: on OASIS brains with manual tissue classes, iterated until nothing changes,
one distribution takes fluid and grey matter together and two share the white matter (Dice of grey matter 0.03). What
saves such a fit is stopping early, and where it stops is left to rounding. With conjugate priors (MAP, Bishop 2006,
9.2 and 10.2) the same iteration has an end that is good, and is followed to it.
"""

from typing import Any

import numpy as np

N_BINS = 1000
# Of CSF, grey and white matter in a brain mask, and their variances as shares of that of the whole brain. They count
# as much as the brain itself. Chosen on five brains of OASIS, for the Dice of all tissues.
PRIOR_SHARES = np.array([0.2, 0.46, 0.34])
PRIOR_VARIANCES = np.array([0.15, 0.12, 0.08])
TOLERANCE = 1e-7  # of means and deviations, in standard deviations of the brain
MAX_ITERATIONS = 5000  # 28 to 155 are needed on brains


def fit(intensities: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit three normal distributions by expectation maximisation, to the end.

    Parameters
    ----------
    intensities : (n,) float array
    means : 3 floats
        Where the fit starts, rising.

    Returns
    -------
    shares, means, deviations : (3,) float64 arrays
    """
    levels, weights, offset, scale = histogram(intensities)
    means = (np.asarray(means, dtype=np.float64) - offset) / scale
    shares, variances = PRIOR_SHARES, PRIOR_VARIANCES
    for _ in range(MAX_ITERATIONS):
        density = shares * np.exp(-0.5 * (levels[:, None] - means) ** 2 / variances) / np.sqrt(variances)
        posterior = weights[:, None] * density / np.maximum(density.sum(axis=1, keepdims=True), 1e-300)
        totals = posterior.sum(axis=0)
        before = np.concatenate([means, np.sqrt(variances)])
        means = levels @ posterior / np.maximum(totals, 1e-12)
        squares = (posterior * (levels[:, None] - means) ** 2).sum(axis=0)
        variances = (squares + PRIOR_SHARES * PRIOR_VARIANCES) / (totals + PRIOR_SHARES)
        shares = (totals + PRIOR_SHARES) / 2
        if np.abs(np.concatenate([means, np.sqrt(variances)]) - before).max() < TOLERANCE:
            break
    order = np.argsort(means)
    return shares[order], offset + scale * means[order], scale * np.sqrt(variances[order])


def histogram(intensities: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any, Any]:
    """Return levels in standard deviations from the mean, the share of each, mean and deviation; free of units.

    Returns
    -------
    levels, weights : (bins,) float64 arrays, mean 0 and variance 1
    offset, scale : float
    """
    low, high = float(intensities.min()), float(intensities.max())
    bins = np.clip((intensities - np.float64(low)) / (high - low) * N_BINS, 0, N_BINS - 1).astype(int)
    weights = np.bincount(bins, minlength=N_BINS) / len(intensities)
    levels = np.arange(N_BINS) + 0.5
    mean = weights @ levels
    deviation = np.sqrt(weights @ (levels - mean) ** 2)
    step = (high - low) / N_BINS
    return (levels - mean) / deviation, weights, low + step * mean, step * deviation


def borders(shares: np.ndarray, means: np.ndarray, deviations: np.ndarray) -> list[float]:
    """Return the two intensities between neighbouring classes, where the next one becomes more probable."""
    found = []
    for lower, upper in ((0, 1), (1, 2)):
        levels = np.linspace(means[lower], means[upper], 4097)
        density = [
            np.log(shares[k] / deviations[k]) - 0.5 * ((levels - means[k]) / deviations[k]) ** 2 for k in (lower, upper)
        ]
        more = density[1] > density[0]
        found.append(levels[more.argmax()] if more.any() else levels[-1])
    return found
