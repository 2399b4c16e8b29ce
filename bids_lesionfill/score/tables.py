"""Tables of scores: one row per lesion, per scan, per class of lesions and per pair of visits. No files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from .. import statistics
from ..images import masks
from ..modality import get
from . import contrast, matching

if TYPE_CHECKING:
    from .loading import Loaded

VOLUME_EDGES_ML = (0.01, 0.1, 1.0)
CONTRAST_EDGES_SD = (2.0, 4.0)
SAME_LESION_MM = 2  # of centres of mass, between a mask and the table of its synthesis
MIN_FOR_INTERVAL = 4  # participants
UNKNOWN = 'unknown'
ALL = 'all'
N_RESAMPLES = 2000

SCAN = {
    'participant_id': {'Description': 'participant'},
    'session_id': {'Description': 'session'},
    'scan': {'Description': 'first part of the names of the files of the scan'},
}
LESIONS = {
    **SCAN,
    'label': {'Description': 'number of the true lesion in its scan'},
    'volume_mm3': {'Description': 'volume', 'Units': 'mm^3'},
    'x_mm': {'Description': 'centre of mass, to the right, in scanner space', 'Units': 'mm'},
    'y_mm': {'Description': 'centre of mass, to the front, in scanner space', 'Units': 'mm'},
    'z_mm': {'Description': 'centre of mass, upwards, in scanner space', 'Units': 'mm'},
    'volume_class': {'Description': 'class of volume'},
    'place': {'Description': 'place of the lesion, if the table of its synthesis has it'},
    'contrast_T1w_percent': {'Description': 'mean of the lesion against the tissue 3 to 6 mm away', 'Units': '%'},
    'contrast_T1w_sd': {'Description': 'the same in units of the spread of that tissue'},
    'contrast_FLAIR_percent': {'Description': 'as contrast_T1w_percent, FLAIR', 'Units': '%'},
    'contrast_FLAIR_sd': {'Description': 'as contrast_T1w_sd, FLAIR'},
    'visibility': {'Description': 'images on which the contrast is at least 2 (T1w: darker, FLAIR: brighter)'},
    'detected_overlap': {'Description': '1 if a predicted voxel lies in the lesion'},
    'detected_iou': {'Description': '1 if its intersection over union reaches the threshold'},
    'iou': {'Description': 'intersection over union, split and merged lesions joined'},
    'covered_percent': {'Description': 'share of its voxels that are predicted', 'Units': '%'},
    'n_parts': {'Description': 'predicted lesions that it is split into'},
}
FALSE_LESIONS = {
    **SCAN,
    **{name: LESIONS[name] for name in ('label', 'volume_mm3', 'x_mm', 'y_mm', 'z_mm', 'iou')},
    'label': {'Description': 'number of the predicted lesion in its scan'},
    'false_overlap': {'Description': '1 if none of its voxels lies in a true lesion'},
    'false_iou': {'Description': '1 if intersection over union with true lesions is below the threshold'},
}
SCORES = {
    'dice': {'Description': 'Dice coefficient of the voxels; n/a without true lesions'},
    'volume_truth_ml': {'Description': 'volume of the true lesions', 'Units': 'mL'},
    'volume_predicted_ml': {'Description': 'predicted volume, without what is ignored', 'Units': 'mL'},
    'volume_error_ml': {'Description': 'predicted minus true volume', 'Units': 'mL'},
    'volume_error_absolute_ml': {'Description': 'absolute difference of the volumes', 'Units': 'mL'},
    'volume_error_percent': {'Description': 'the same in percent of the true volume', 'Units': '%'},
    'n_lesions': {'Description': 'true lesions'},
    'n_predicted': {'Description': 'predicted lesions, without ignored ones'},
    'n_ignored': {'Description': 'predicted lesions that lie on lesions that are not part of the truth'},
    'n_split': {'Description': 'true lesions that are split into several predicted ones'},
    'n_merging': {'Description': 'predicted lesions that merge several true ones'},
    **{
        f'{name}_{rule}': {'Description': f'{words}, rule {rule}'}
        for rule in matching.RULES
        for name, words in (
            ('detected', 'true lesions that are detected'),
            ('false_lesions', 'predicted lesions that are false'),
            ('sensitivity', 'share of the true lesions that is detected'),
            ('precision', 'share of the predicted lesions that is right'),
            ('f1', 'harmonic mean of sensitivity and precision'),
        )
    },
}
SCANS = {**SCAN, 'status': {'Description': 'scored, or why not'}, **SCORES}
DETECTION = {
    'participant_id': {'Description': 'participant, or all'},
    'group': {'Description': 'by what lesions are grouped'},
    'class': {'Description': 'class of lesions'},
    'n_lesions': SCORES['n_lesions'],
    **{
        name: words
        for rule in matching.RULES
        for name, words in (
            (f'detected_{rule}', SCORES[f'detected_{rule}']),
            (f'sensitivity_{rule}', SCORES[f'sensitivity_{rule}']),
            (f'sensitivity_{rule}_low', {'Description': 'lower end of its 95 % bootstrap interval over participants'}),
            (f'sensitivity_{rule}_high', {'Description': 'upper end of it; n/a for fewer than four participants'}),
        )
    },
}
CHANGES = {
    'participant_id': SCAN['participant_id'],
    'baseline': {'Description': 'scan of baseline'},
    'followup': {'Description': 'scan of the follow-up'},
    'change': {'Description': 'new, grown, shrunk or resolved lesions'},
    'volume_truth_ml': {'Description': 'volume of the lesions that truly changed so', 'Units': 'mL'},
    'volume_predicted_ml': {'Description': 'volume of those that changed so in the prediction', 'Units': 'mL'},
    'n_lesions': {'Description': 'lesions that truly changed so'},
    'n_predicted': {'Description': 'lesions that changed so in the prediction'},
    **{name: words for name, words in SCORES.items() if name.startswith(('detected', 'false', 'sensit', 'prec', 'f1'))},
}
GROUPS = {
    ALL: 'All lesions',
    'volume': 'By volume',
    'place': 'By place',
    'visibility': 'By visibility',
    'contrast_T1w': 'By contrast on T1w (darker, in multiples of the spread of the tissue around)',
    'contrast_FLAIR': 'By contrast on FLAIR (brighter, in multiples of the spread of the tissue around)',
}


def score_scan(
    loaded: Loaded,
    min_volume_mm3: float = 3.0,
    min_iou: float = matching.MIN_IOU,
    volume_edges_ml: Sequence[float] = VOLUME_EDGES_ML,
    known: Sequence[dict[str, Any]] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]], matching.Matching]:
    """Score one scan.

    Parameters
    ----------
    loaded : loading.Loaded
    min_volume_mm3 : float
        Smaller lesions, true or predicted, are left out of everything but Dice and volumes.
    min_iou : float
    volume_edges_ml : floats, rising
        Between classes of volume.
    known : list of dict
        Rows of the table of a synthesis, with `x_mm`, `y_mm`, `z_mm` and maybe `place`.

    Returns
    -------
    scores : dict, see `SCORES`
    lesions : list of dict, see `LESIONS`
    false_lesions : list of dict, see `FALSE_LESIONS`
    matched : matching.Matching
    """
    voxel_mm3 = float(np.prod(loaded.voxel_sizes_mm))
    min_voxels = max(1, int(np.ceil(min_volume_mm3 / voxel_mm3 - 1e-6)))
    matched = matching.match(loaded.truth, loaded.prediction, loaded.ignored, min_voxels, min_iou)
    scores = matching.score_voxels(loaded.truth, loaded.prediction, loaded.ignored, voxel_mm3)
    for rule in matching.RULES:
        counts = matching.count_matches(matched, rule)
        scores |= {name: counts.pop(name) for name in ('n_lesions', 'n_predicted')}
        scores |= {f'{name}_{rule}': value for name, value in counts.items()}
    scores['n_ignored'] = sum(row['ignored'] for row in matched.predictions)
    scores['n_split'] = sum(row['n_parts'] > 1 for row in matched.truth)
    scores['n_merging'] = sum(row['n_parts'] > 1 for row in matched.predictions)
    lesions = describe_lesions(loaded, matched, voxel_mm3, volume_edges_ml, known)
    return scores, lesions, describe_false(loaded, matched, voxel_mm3), matched


def describe_lesions(
    loaded: Loaded,
    matched: matching.Matching,
    voxel_mm3: float,
    volume_edges_ml: Sequence[float],
    known: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Describe each true lesion of a scan; list of dict, see `LESIONS`."""
    centres = centres_mm(matched.truth_labels, loaded.affine)
    everything = loaded.truth | loaded.ignored
    margin = int(np.ceil(contrast.SHELL_MM[1] / min(loaded.voxel_sizes_mm))) + 1
    boxes = [masks.widen(box, margin) for box in ndimage.find_objects(matched.truth_labels)]
    rows = []
    for found, centre, box in zip(matched.truth, centres, boxes):
        inside = matched.truth_labels[box] == found['label']
        row = {'label': found['label'], 'volume_mm3': found['voxels'] * voxel_mm3}
        row |= dict(zip(('x_mm', 'y_mm', 'z_mm'), (float(value) for value in centre)))
        row['volume_class'] = class_of(row['volume_mm3'] / 1000, volume_edges_ml, 'ml')
        row['place'] = place_of(centre, known)
        row |= contrasts_of(loaded, inside, box, everything)
        row |= {f'detected_{rule}': int(found[f'detected_{rule}']) for rule in matching.RULES}
        row |= {'iou': found['iou'], 'covered_percent': 100 * found['overlap_voxels'] / found['voxels']}
        rows.append(row | {'n_parts': found['n_parts']})
    return rows


def centres_mm(labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the centre of mass of each numbered lesion in scanner space; (n, 3) array."""
    n_lesions = labels.max(initial=0)
    if not n_lesions:
        return np.zeros((0, 3))
    centres = ndimage.center_of_mass(labels > 0, labels, range(1, n_lesions + 1))
    return apply_affine(affine, np.array(centres))


def contrasts_of(loaded: Loaded, lesion: np.ndarray, box: tuple[slice, ...], everything: np.ndarray) -> dict[str, Any]:
    """Measure a lesion on all images of its scan: columns `contrast_...` and `visibility` of `LESIONS`."""
    row, seen = {}, {}
    t1w = loaded.images['T1w'][box] if 'T1w' in loaded.images else None
    for modality, image in loaded.images.items():
        measured = contrast.measure_contrast(image[box], lesion, everything[box], loaded.voxel_sizes_mm, t1w)
        row |= {f'contrast_{modality}_{name}': value for name, value in measured.items()}
        if np.isfinite(measured['sd']):
            seen[modality] = contrast.is_visible(measured['sd'], modality)
    return row | {'visibility': describe_visibility(seen)}


def describe_visibility(seen: dict[str, bool]) -> str:
    """Describe on which images a lesion is visible.

    Parameters
    ----------
    seen : dict of modality -> bool
        Without images on which it could not be measured.

    Returns
    -------
    str
        `T1w and FLAIR`, `FLAIR, not T1w`, `not T1w`, ...; `unknown` without images.
    """
    visible = [modality for modality, is_seen in seen.items() if is_seen]
    hidden = [modality for modality, is_seen in seen.items() if not is_seen]
    parts = [' and '.join(visible)] if visible else []
    parts += [('not ' if len(hidden) == 1 else 'neither ') + ' nor '.join(hidden)] if hidden else []
    return ', '.join(parts) or UNKNOWN


def place_of(centre_mm: Sequence[float] | np.ndarray, known: Sequence[dict[str, Any]]) -> str:
    """Return the `place` of the lesion of a table that has this centre; `unknown` if there is none."""
    rows = [row for row in known if row.get('place') is not None]
    if not rows:
        return UNKNOWN
    distances = [np.linalg.norm(np.array([row['x_mm'], row['y_mm'], row['z_mm']]) - centre_mm) for row in rows]
    nearest = int(np.argmin(distances))
    return str(rows[nearest]['place']) if distances[nearest] <= SAME_LESION_MM else UNKNOWN


def class_of(value: float, edges: Sequence[float], unit: str) -> str:
    """Return the name of the class of a value: `< 0.1 ml`, `0.1 to 1 ml`, `>= 1 ml`; each begins at its lower edge."""
    if not np.isfinite(value):
        return UNKNOWN
    return class_names(edges, unit)[int(np.searchsorted(edges, value, side='right'))]


def class_names(edges: Sequence[float], unit: str) -> list[str]:
    """Return the names of the classes between edges, from the lowest on."""
    names = [f'< {edges[0]:g} {unit}']
    names += [f'{low:g} to {high:g} {unit}' for low, high in zip(edges[:-1], edges[1:])]
    return [*names, f'>= {edges[-1]:g} {unit}']


def describe_false(loaded: Loaded, matched: matching.Matching, voxel_mm3: float) -> list[dict[str, Any]]:
    """Describe each predicted lesion of a scan that is false by a rule; list of dict, see `FALSE_LESIONS`."""
    centres = centres_mm(matched.prediction_labels, loaded.affine)
    return [
        {
            'label': row['label'],
            'volume_mm3': row['voxels'] * voxel_mm3,
            **dict(zip(('x_mm', 'y_mm', 'z_mm'), (float(value) for value in centre))),
            'iou': row['iou'],
            **{f'false_{rule}': int(not row[f'right_{rule}']) for rule in matching.RULES},
        }
        for row, centre in zip(matched.predictions, centres)
        if not row['ignored'] and not (row['right_overlap'] and row['right_iou'])
    ]


def group_lesions(
    lesions: list[dict[str, Any]], volume_edges_ml: Sequence[float] = VOLUME_EDGES_ML
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Sort lesions into classes: dict of group (`GROUPS`) -> dict of class -> list of rows; empty classes are left out.

    Groups of which nothing is known are left out.
    """
    found = {ALL: {ALL: lesions}}
    for group, key in (('volume', 'volume_class'), ('place', 'place'), ('visibility', 'visibility')):
        found[group] = collect(lesions, lambda row, key=key: row.get(key, UNKNOWN))  # type: ignore[misc]
    for modality in ('T1w', 'FLAIR'):
        sign = get(modality).lesion_sign
        key = f'contrast_{modality}_sd'
        found[f'contrast_{modality}'] = collect(
            lesions, lambda row, key=key, sign=sign: class_of(sign * row.get(key, np.nan), CONTRAST_EDGES_SD, 'SD')  # type: ignore[misc]
        )
    order = class_names(volume_edges_ml, 'ml') + class_names(CONTRAST_EDGES_SD, 'SD')

    def rank(item: Any) -> Any:
        return order.index(item[0]) if item[0] in order else len(order), item[0]

    return {
        group: dict(sorted(classes.items(), key=rank))
        for group, classes in found.items()
        if set(classes) - {UNKNOWN} or group == ALL
    }


def collect(rows: list[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> dict[Any, list[dict[str, Any]]]:
    """Collect rows by the value of a function: dict of value -> list of rows."""
    found = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def detection_rows(
    lesions: list[dict[str, Any]],
    volume_edges_ml: Sequence[float] = VOLUME_EDGES_ML,
    participant: str = ALL,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compute the sensitivity of each class of lesions; list of dict, see `DETECTION`.

    Intervals draw participants first, then lesions of each: those of one participant are alike.
    """
    rows = []
    for group, classes in group_lesions(lesions, volume_edges_ml).items():
        for name, members in classes.items():
            row = {'participant_id': participant, 'group': group, 'class': name, 'n_lesions': len(members)}
            people = [member['participant_id'] for member in members]
            for rule in matching.RULES:
                hits = np.array([member[f'detected_{rule}'] for member in members], dtype=float)
                row[f'detected_{rule}'] = int(hits.sum())
                row[f'sensitivity_{rule}'] = float(hits.mean()) if len(hits) else np.nan
                if len(set(people)) >= MIN_FOR_INTERVAL:
                    rng = np.random.default_rng(seed)
                    _, low, high = statistics.bootstrap_mean(hits, rng, N_RESAMPLES, clusters=people)
                    row |= {f'sensitivity_{rule}_low': low, f'sensitivity_{rule}_high': high}
            rows.append(row)
    return rows


def summarise(scans: list[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Compute the mean over scans of each score, with its interval over participants.

    Parameters
    ----------
    scans : list of dict
        Rows of scans that were scored, see `SCANS`.

    Returns
    -------
    dict of score -> dict with `mean`, `median`, `low`, `high` (NaN for fewer than four participants), `n`
        Scans on which a score is not defined are left out of it.
    """
    summary = {}
    for name in SCORES:
        known = [(row[name], row['participant_id']) for row in scans if np.isfinite(row.get(name, np.nan))]
        values, people = [value for value, _ in known], [person for _, person in known]
        entry = {'mean': np.nan, 'median': np.nan, 'low': np.nan, 'high': np.nan, 'n': len(values)}
        if values:
            entry |= {'mean': float(np.mean(values)), 'median': float(np.median(values))}
        if len(set(people)) >= MIN_FOR_INTERVAL:
            rng = np.random.default_rng(seed)
            _, entry['low'], entry['high'] = statistics.bootstrap_mean(values, rng, N_RESAMPLES, clusters=people)
        summary[name] = entry
    return summary


def score_changes(
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    voxel_mm3: float,
    min_volume_mm3: float = 3.0,
    min_iou: float = matching.MIN_IOU,
    min_change: float = 0.25,
) -> list[dict[str, Any]]:
    """Score the lesions that changed between two visits; one dict per kind of change, see `CHANGES`.

    Parameters
    ----------
    truths, predictions : (baseline, follow-up)
        `(X, Y, Z)` bool arrays, all on one grid.
    voxel_mm3, min_volume_mm3, min_iou : float
    min_change : float
        See `matching.find_changes`.
    """
    min_voxels = max(1, int(np.ceil(min_volume_mm3 / voxel_mm3 - 1e-6)))
    true, predicted = (
        matching.find_changes(baseline, followup, min_change=min_change, min_voxels=min_voxels)
        for baseline, followup in (truths, predictions)
    )
    rows = []
    for change in matching.CHANGES:
        matched = matching.match(true[change], predicted[change], None, min_voxels, min_iou)
        row = {
            'change': change,
            'volume_truth_ml': np.count_nonzero(true[change]) * voxel_mm3 / 1000,
            'volume_predicted_ml': np.count_nonzero(predicted[change]) * voxel_mm3 / 1000,
        }
        for rule in matching.RULES:
            counts = matching.count_matches(matched, rule)
            row |= {name: counts.pop(name) for name in ('n_lesions', 'n_predicted')}
            row |= {f'{name}_{rule}': value for name, value in counts.items()}
        rows.append(row)
    return rows
