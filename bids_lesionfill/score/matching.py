"""Match predicted with true lesions, lesion by lesion; scores of voxels; changes between two visits.

Masks are `(X, Y, Z)` bool arrays on one grid. A lesion is a connected component (26 neighbours).

Two rules decide whether a lesion is detected. Neither forces pairs: a lesion that is split into several predicted ones,
or merged with others into one, is judged as a whole.

- `overlap`: a lesion is detected if one predicted voxel lies in it. A predicted lesion is right if one of its voxels
  lies in a true one. This is the rule of the ISBI 2015 challenge (Carass et al. 2017). It forgives predictions that are
  far too large.
- `iou`: the intersection over union between a lesion and the union of the lesions of the other mask that belong to it
  is at least `MIN_IOU`. A predicted lesion belongs to the true lesion that it shares most voxels with, if these are at
  least `MIN_SHARE` of its own voxels; then it is one part of a split lesion. A true lesion belongs to a predicted one
  in the same way; then it is one part of a merged lesion. The better of the two counts.

`MIN_SHARE` is the overlap that Commowick et al. (2018) demand of a detected lesion (alpha of animaSegPerfAnalyzer, the
tool of MSSEG and MSSEG-2). Sensitivity, precision and F1 are defined as there. Their limit on how far a prediction
reaches out of a lesion is the threshold of the union here. BraTS-METS (Moawad et al. 2023) instead dilates the true
lesions by one voxel, so that parts next to each other are one lesion, and takes the Dice coefficient of each.

References
----------
Carass et al. 2017, NeuroImage 148:77, doi:10.1016/j.neuroimage.2016.12.064.
Commowick et al. 2018, Scientific Reports 8:13650, doi:10.1038/s41598-018-31911-7.
Moawad et al. 2023, arXiv:2306.00838.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..images import masks

RULES = ('overlap', 'iou')
MIN_IOU = 0.1
MIN_SHARE = 0.1
CHANGES = ('new', 'grown', 'shrunk', 'resolved')


@dataclass(frozen=True)
class Matching:
    """True and predicted lesions, numbered, and which of them match."""

    truth_labels: np.ndarray  # (X, Y, Z) int: 0, and the number of each true lesion from 1
    prediction_labels: np.ndarray  # the same of the prediction
    truth: list  # one dict per true lesion, see `match`
    predictions: list  # one dict per predicted lesion


def match(
    truth: np.ndarray,
    prediction: np.ndarray,
    ignored: np.ndarray | None = None,
    min_voxels: int = 1,
    min_iou: float = MIN_IOU,
) -> Matching:
    """Match the lesions of two masks by both rules of this module.

    Parameters
    ----------
    truth, prediction : (X, Y, Z) bool array
    ignored : (X, Y, Z) bool array, optional
        Real lesions that are not part of the truth. What is predicted there is neither right nor false.
    min_voxels : int
        Smaller lesions are left out. A predicted lesion that meets only left-out true lesions is ignored.
    min_iou : float

    Returns
    -------
    Matching
        `truth` has `label`, `voxels`, `overlap_voxels`, `iou`, `n_parts` (predicted lesions that it is split into),
        `detected_overlap` and `detected_iou`. `predictions` has the same, with `n_parts` true lesions that it merges,
        and `right_overlap`, `right_iou`, `ignored`.
    """
    ignored = np.zeros(truth.shape, dtype=bool) if ignored is None else ignored & ~truth
    truth_labels = label_components(truth, min_voxels)
    prediction_labels = label_components(prediction, min_voxels)
    ignored = ignored | (truth & (truth_labels == 0))
    n_truth, n_predicted = truth_labels.max(initial=0), prediction_labels.max(initial=0)
    shared = count_pairs(truth_labels, prediction_labels, n_truth, n_predicted)
    in_ignored = np.bincount(prediction_labels[ignored], minlength=n_predicted + 1)[1:]
    truth_sizes = np.bincount(truth_labels.flat, minlength=n_truth + 1)[1:]
    sizes = np.bincount(prediction_labels.flat, minlength=n_predicted + 1)[1:] - in_ignored
    parts, split_iou = join_parts(shared, truth_sizes, sizes)
    merged, merge_iou = join_parts(shared.T, sizes, truth_sizes)
    truth_iou = np.maximum(split_iou, (merged * merge_iou[:, None]).max(axis=0, initial=0))
    iou = np.maximum(merge_iou, (parts * split_iou[:, None]).max(axis=0, initial=0))
    excused = (in_ignored > 0) & ~shared.any(axis=0)
    truth_rows = [
        {
            'label': i + 1,
            'voxels': int(truth_sizes[i]),
            'overlap_voxels': int(shared[i].sum()),
            'iou': float(truth_iou[i]),
            'n_parts': int(parts[i].sum()),
            'detected_overlap': bool(shared[i].any()),
            'detected_iou': bool(truth_iou[i] >= min_iou),
        }
        for i in range(n_truth)
    ]
    rows = [
        {
            'label': j + 1,
            'voxels': int(sizes[j]),
            'overlap_voxels': int(shared[:, j].sum()),
            'iou': float(iou[j]),
            'n_parts': int(merged[j].sum()),
            'right_overlap': bool(shared[:, j].any()),
            'right_iou': bool(iou[j] >= min_iou),
            'ignored': bool(excused[j]),
        }
        for j in range(n_predicted)
    ]
    return Matching(truth_labels, prediction_labels, truth_rows, rows)


def label_components(mask: np.ndarray, min_voxels: int = 1) -> np.ndarray:
    """Label the connected lesions with at least `min_voxels` voxels from 1; (X, Y, Z) int array."""
    labels, n_lesions = masks.label_lesions(mask)
    kept = np.bincount(labels.flat, minlength=n_lesions + 1) >= min_voxels
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0)[labels]


def count_pairs(labels: np.ndarray, other_labels: np.ndarray, n: int, n_other: int) -> np.ndarray:
    """Count the voxels that each lesion shares with each of another mask; (n, n_other) int array."""
    both = (labels > 0) & (other_labels > 0)
    pairs = labels[both] * (n_other + 1) + other_labels[both]
    counts = np.bincount(pairs, minlength=(n + 1) * (n_other + 1))
    return counts.reshape(n + 1, n_other + 1)[1:, 1:]


def join_parts(
    shared: np.ndarray, sizes: np.ndarray, other_sizes: np.ndarray, min_share: float = MIN_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the intersection over union of each lesion with all lesions of the other mask that belong to it.

    Parameters
    ----------
    shared : (n, m) int array
        Voxels that each pair shares.
    sizes, other_sizes : (n,) and (m,) int array
        Voxels of the lesions.
    min_share : float
        Share of its own voxels that one of the m must have inside a lesion to belong to it.

    Returns
    -------
    belongs : (n, m) bool array
        A lesion of the other mask belongs to at most one.
    iou : (n,) float array
    """
    belongs = np.zeros(shared.shape, dtype=bool)
    if shared.size:
        columns = np.arange(shared.shape[1])
        largest = shared.argmax(axis=0)
        most = shared[largest, columns]
        belongs[largest, columns] = (most > 0) & (most >= min_share * other_sizes)
    inside = (shared * belongs).sum(axis=1)
    union = sizes + belongs @ other_sizes - inside
    return belongs, inside / np.maximum(union, 1)


def count_matches(matching: Matching, rule: str) -> dict[str, Any]:
    """Count lesions by a rule of `RULES`.

    Returns
    -------
    dict
        `n_lesions`, `detected`, `n_predicted` (without ignored ones), `false_lesions`, `sensitivity`, `precision` and
        `f1`, their harmonic mean (Commowick et al. 2018). Without true lesions sensitivity and F1 are NaN; without
        predicted ones precision is NaN and F1 is 0.
    """
    detected = [row[f'detected_{rule}'] for row in matching.truth]
    right = [row[f'right_{rule}'] for row in matching.predictions if not row['ignored']]
    sensitivity = np.mean(detected) if detected else np.nan
    precision = np.mean(right) if right else np.nan
    if not detected:
        f1 = np.nan
    elif not any(detected) or not any(right):
        f1 = 0.0
    else:
        f1 = 2 * sensitivity * precision / (sensitivity + precision)
    return {
        'n_lesions': len(detected),
        'detected': sum(detected),
        'n_predicted': len(right),
        'false_lesions': len(right) - sum(right),
        'sensitivity': float(sensitivity),
        'precision': float(precision),
        'f1': float(f1),
    }


def score_voxels(
    truth: np.ndarray, prediction: np.ndarray, ignored: np.ndarray | None = None, voxel_mm3: float = 1.0
) -> dict[str, Any]:
    """Compute the Dice coefficient and the volume error outside what is ignored.

    Predicted lesions that touch an ignored lesion and no true one are left out whole.

    Parameters
    ----------
    truth, prediction, ignored : (X, Y, Z) bool array
    voxel_mm3 : float

    Returns
    -------
    dict
        `dice` (NaN if the truth is empty), `volume_truth_ml`, `volume_predicted_ml`, `volume_error_ml` (predicted minus
        true), `volume_error_absolute_ml`, and `volume_error_percent`, absolute (NaN if the truth is empty).
    """
    if ignored is not None:
        ignored = ignored & ~truth
        labels = label_components(prediction)
        left_out = np.setdiff1d(labels[ignored], labels[truth])
        prediction = prediction & ~ignored & ~np.isin(labels, left_out[left_out > 0])
    ml = voxel_mm3 / 1000
    n_truth, n_predicted = np.count_nonzero(truth), np.count_nonzero(prediction)
    both = np.count_nonzero(truth & prediction)
    error = (n_predicted - n_truth) * ml
    return {
        'dice': 2 * both / (n_truth + n_predicted) if n_truth else np.nan,
        'volume_truth_ml': n_truth * ml,
        'volume_predicted_ml': n_predicted * ml,
        'volume_error_ml': error,
        'volume_error_absolute_ml': abs(error),
        'volume_error_percent': 100 * abs(n_predicted - n_truth) / n_truth if n_truth else np.nan,
    }


def find_changes(
    baseline: np.ndarray, followup: np.ndarray, min_change: float = 0.25, min_voxels: int = 1
) -> dict[str, np.ndarray]:
    """Find the lesions that changed between two visits.

    Lesions of the two visits that overlap, directly or by way of others, are one lesion, so that one that splits or
    merges has not changed by that alone.

    Parameters
    ----------
    baseline, followup : (X, Y, Z) bool array
    min_change : float
        A lesion has grown if its volume is at least `1 + min_change` times that of baseline, and has shrunk if that of
        baseline is at least `1 + min_change` times its volume. At least `min_voxels` must have come or gone.
    min_voxels : int
        Smaller lesions are left out.

    Returns
    -------
    dict of (X, Y, Z) bool array
        By `CHANGES`. `new`: lesions of the follow-up that meet none of baseline; `grown`: those of the follow-up;
        `shrunk` and `resolved` (met by none of the follow-up): those of baseline.
    """
    before, after = label_components(baseline, min_voxels), label_components(followup, min_voxels)
    groups = group_overlapping(before, after)
    n_groups = max(group.max() for group in groups)
    of_before, of_after = groups[0][before], groups[1][after]
    sizes = [np.bincount(group.flat, minlength=n_groups + 1) for group in (of_before, of_after)]
    enough = np.abs(sizes[1] - sizes[0]) >= min_voxels
    kinds = {
        'new': (sizes[0] == 0, of_after),
        'grown': ((sizes[0] > 0) & (sizes[1] >= (1 + min_change) * sizes[0]) & enough, of_after),
        'shrunk': ((sizes[1] > 0) & (sizes[0] >= (1 + min_change) * sizes[1]) & enough, of_before),
        'resolved': (sizes[1] == 0, of_before),
    }
    return {name: chosen[group] & (group > 0) for name, (chosen, group) in kinds.items()}


def group_overlapping(labels: np.ndarray, other_labels: np.ndarray) -> tuple[Any, ...]:
    """Label groups of lesions of two visits that overlap, from 1.

    Returns
    -------
    (n + 1,) and (m + 1,) int array
        Group of each lesion of the first and of the second mask, by its number; 0 for the background.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n, n_other = labels.max(initial=0), other_labels.max(initial=0)
    rows, columns = np.nonzero(count_pairs(labels, other_labels, n, n_other))
    links = coo_matrix((np.ones(len(rows)), (rows, n + columns)), shape=(n + n_other, n + n_other))
    numbers = 1 + connected_components(links, directed=False)[1] if n + n_other else np.zeros(0, dtype=int)
    return tuple(np.concatenate([[0], part]).astype(int) for part in (numbers[:n], numbers[n:]))
