"""Statistics: bootstrap intervals, exact binomial intervals, agreement of raters."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats


def bootstrap_weights(
    clusters: Sequence[Any] | np.ndarray, rng: np.random.Generator, n_resamples: int = 2000
) -> np.ndarray:
    """Sample how often each case is drawn in each resample: people are drawn first, then cases within each person.

    Lesions of one person are alike: intervals that take them for independent are too narrow (Field and Welsh 2007).
    With one cluster it is the ordinary bootstrap (Efron 1979).

    Parameters
    ----------
    clusters : (cases,) sequence
        Whose case it is.
    rng : numpy.random.Generator
    n_resamples : int

    Returns
    -------
    (n_resamples, cases) int array
    """
    numbers = np.unique(clusters, return_inverse=True)[1]
    n_clusters = numbers.max() + 1
    drawn = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), n_resamples)
    weights = np.zeros((n_resamples, len(numbers)), dtype=int)
    for cluster in range(n_clusters):
        members = np.flatnonzero(numbers == cluster)
        share = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(drawn[:, cluster] * len(members), share)
    return weights


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    rng: np.random.Generator,
    n_resamples: int = 2000,
    clusters: Sequence[Any] | np.ndarray | None = None,
) -> tuple[float, ...]:
    """Return mean over cases with its 95 % percentile bootstrap interval.

    Parameters
    ----------
    values : (cases,) array_like; what is not finite is left out
    rng : numpy.random.Generator
    n_resamples : int
    clusters : (cases,) sequence, optional
        See `bootstrap_weights`; all cases are independent if not given.

    Returns
    -------
    mean, low, high : float; NaN if there are no values.
    """
    values = np.asarray(values, dtype=np.float64)
    clusters = np.zeros(len(values), dtype=int) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    known = np.isfinite(values)
    if not known.any():
        return np.nan, np.nan, np.nan
    values = values[known]
    weights = bootstrap_weights(clusters[known], rng, n_resamples)
    means = weights @ values / weights.sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def paired_bootstrap(
    values: Sequence[float] | np.ndarray,
    other_values: Sequence[float] | np.ndarray,
    rng: np.random.Generator,
    n_resamples: int = 2000,
    clusters: Sequence[Any] | np.ndarray | None = None,
) -> tuple[float, ...]:
    """Return mean of the differences case by case with its 95 % percentile bootstrap interval.

    Parameters
    ----------
    values, other_values : (cases,) array_like
        Of two methods on the same cases, in the same order; cases that either lacks (NaN) are left out.
    rng, n_resamples, clusters : see `bootstrap_mean`

    Returns
    -------
    mean difference, low, high : float; NaN if no case has both.
    """
    values, other_values = (np.asarray(array, dtype=np.float64) for array in (values, other_values))
    return bootstrap_mean(values - other_values, rng, n_resamples, clusters)


def clopper_pearson(n_hits: int, n_cases: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return exact interval of a proportion (Clopper and Pearson 1934): low, high, floats from 0 to 1.

    Parameters
    ----------
    n_hits, n_cases : int
        At least one case.
    confidence : float
    """
    interval = stats.binomtest(n_hits, n_cases).proportion_ci(confidence, method='exact')
    return float(interval.low), float(interval.high)


def chance_of_hits(n_hits: int, chances: Iterable[Any]) -> float:
    """Return the probability of at least `n_hits` hits by guessing, each case with its own chance (Poisson-binomial).

    Parameters
    ----------
    n_hits : int
    chances : (cases,) sequence of floats from 0 to 1
    """
    probabilities: Any = np.ones(1)
    for chance in chances:
        probabilities = np.convolve(probabilities, [1 - chance, chance])
    return min(float(probabilities[n_hits:].sum()), 1.0)


def score_hits(hits: Sequence[bool], chances: Sequence[float]) -> dict[str, float]:
    """Return a reader's hits with their exact 95 % interval, and the expectation of guessing.

    Parameters
    ----------
    hits : (cases,) sequence of bool
    chances : (cases,) sequence of floats
        Of a guess.

    Returns
    -------
    dict with `cases`, `hits`, `hit_percent`, `low_percent`, `high_percent` (Clopper-Pearson), `hits_by_chance`
    (expected) and `p_value`: the probability that guessing hits as often or more.
    """
    low, high = clopper_pearson(sum(hits), len(hits))
    percents = {'hit_percent': sum(hits) / len(hits), 'low_percent': low, 'high_percent': high}
    return {
        'cases': len(hits),
        'hits': sum(hits),
        **{name: round(100 * share, 2) for name, share in percents.items()},
        'hits_by_chance': round(sum(chances), 3),
        'p_value': round(chance_of_hits(sum(hits), chances), 5),
    }


def cohen_kappa(one: Sequence[Any] | np.ndarray, other: Sequence[Any] | np.ndarray) -> float:
    """Return the agreement of two readers beyond chance (Cohen 1960); NaN if both always say the same thing.

    Parameters
    ----------
    one, other : (cases,) sequences of categories
        Such as bool, or words; at least one case.
    """
    one, other = np.asarray(one), np.asarray(other)
    observed = (one == other).mean()
    expected = sum((one == category).mean() * (other == category).mean() for category in np.union1d(one, other))
    return float((observed - expected) / (1 - expected)) if expected < 1 else np.nan
