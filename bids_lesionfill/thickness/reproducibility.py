"""The reproducibility error of thickness (thesis 3.5, tables 4.3 and 4.4), its noise floor and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import statistics

FLOOR_PERCENTILE = 95
FEWEST_PARTICIPANTS = 4  # for an interval: a percentile bootstrap over fewer says nothing


def error_percent(first: float | np.ndarray, second: float | np.ndarray) -> np.ndarray:
    """Compute half the absolute difference of two measurements relative to their mean, in percent.

    With two measurements m1, m2 and mu their mean, 100 * (|m1 - mu| + |m2 - mu|) / (2 * mu) = 100 * |m1 - m2| /
    (m1 + m2): 4.76 % for 2.0 and 2.2 mm.

    Parameters
    ----------
    first, second : array_like of one shape, mm

    Returns
    -------
    float64 array; NaN where a measurement is missing or both are zero
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    total = first + second
    return np.where(total > 0, 100 * np.abs(first - second) / np.where(total > 0, total, 1), np.nan)


def change_percent(first: float, second: float) -> np.ndarray:
    """Compute the change from first to second measurement, in percent of the first; NaN if missing."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    return np.where(first > 0, 100 * (second - first) / np.where(first > 0, first, 1), np.nan)


@dataclass(frozen=True)
class Errors:
    """Errors of one engine over participants, in percent."""

    participants: tuple
    overall: np.ndarray  # (participants,): of the global mean, that is, the mean of both hemispheres
    change: np.ndarray  # (participants,): signed, of the global mean
    regions: np.ndarray  # (participants, regions)

    @property
    def region_average(self) -> np.ndarray:
        """Mean over the regions that are known; (participants,) array."""
        return nan_mean(self.regions, axis=1)


def participant_errors(participants: Sequence[str], first: np.ndarray, second: np.ndarray) -> Errors:
    """Compute errors between two measurements, averaged over the scans of each participant.

    Parameters
    ----------
    participants : (scans,) sequence of str
        Whose scan it is.
    first, second : (scans, 2 + regions) array_like
        Both hemispheres, then the regions, mm; NaN where missing.

    Returns
    -------
    Errors
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    overall = first[:, :2].mean(axis=1), second[:, :2].mean(axis=1)
    errors = np.column_stack(
        [error_percent(*overall), change_percent(*overall), error_percent(first[:, 2:], second[:, 2:])]
    )
    names, owner = np.unique(np.asarray(participants, dtype=str), return_inverse=True)
    known = np.isfinite(errors)
    sums, counts = np.zeros((2, len(names), errors.shape[1]))
    np.add.at(sums, owner, np.where(known, errors, 0))
    np.add.at(counts, owner, known)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return Errors(tuple(names.tolist()), means[:, 0], means[:, 1], means[:, 2:])


def mean_and_interval(values: np.ndarray, rng: np.random.Generator, n_resamples: int = 2000) -> np.ndarray:
    """Compute means over participants with 95 % percentile bootstrap intervals (shared resamples).

    Parameters
    ----------
    values : (participants, columns) array; NaN where missing
    rng : numpy.random.Generator
    n_resamples : int

    Returns
    -------
    (3, columns) array
        Mean, low, high; the interval is NaN for fewer than four participants (`FEWEST_PARTICIPANTS`) with a value.
    """
    values = np.asarray(values, dtype=np.float64)
    means = nan_mean(values, axis=0)
    if len(values) < FEWEST_PARTICIPANTS:
        return np.stack([means, np.full_like(means, np.nan), np.full_like(means, np.nan)])
    known = np.isfinite(values)
    weights = statistics.bootstrap_weights(np.zeros(len(values), dtype=int), rng, n_resamples)
    totals = weights @ known.astype(np.float64)
    resampled = np.where(totals > 0, weights @ np.where(known, values, 0) / np.maximum(totals, 1), np.nan)
    bounds = np.full((2, values.shape[1]), np.nan)
    if (enough := known.sum(axis=0) >= FEWEST_PARTICIPANTS).any():
        bounds[:, enough] = np.nanpercentile(resampled[:, enough], (2.5, 97.5), axis=0)
    return np.stack([means, *bounds])


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Compute the mean of known values, NaN (without a warning) where there are none."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=axis) / np.maximum(count, 1), np.nan)


def noise_floor(rerun_regions_percent: np.ndarray) -> float:
    """Compute the smallest regional change of a participant above the engine's noise, in percent.

    The 95th percentile over the regions' errors between two runs on the same image; NaN if none is known.
    """
    known = np.asarray(rerun_regions_percent, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(np.percentile(known, FLOOR_PERCENTILE)) if known.size else np.nan
