"""Comparison of thickness before and after filling over participants."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import reproducibility
from .tables import HEMISPHERES, REGIONS

ALL, WITHOUT = 'all', 'without juxtacortical'
# Which voxels of the dilated lesion mask make a lesion juxtacortical: counts of `places.voxels_beside_white_matter`,
# the first that is known. Engines that know no ribbon, and older outputs, count all grey matter.
JUXTA_RULES = {'cortex': ('cortex', 'grey_matter'), 'thesis': ('outside_white_matter',)}
VALUES = (*(f'{hemisphere}_MeanThickness' for hemisphere in HEMISPHERES), *REGIONS)


def left_out(scan: dict[str, Any], reason: str) -> dict[str, Any]:
    """Return a row of the list of excluded scans, for a scan or one of its tables."""
    return {name: scan[name] for name in ('participant', 'scan', 'engine')} | {'reason': reason}


def values_of(entry: dict[str, Any]) -> np.ndarray:
    """Return thickness of both hemispheres and all regions, mm; (70,) array, NaN where missing."""
    return np.array([entry['thickness_mm'].get(name) for name in VALUES], dtype=np.float64)


def pair_scans(
    entries: list[dict[str, Any]], juxta_min_voxels: float, juxta_rule: str = 'cortex'
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Combine the original, filled and rerun measurement of each scan by an engine.

    Parameters
    ----------
    entries : list of dict
        Of `layout.tables.read_thickness`.
    juxta_min_voxels : int
    juxta_rule : str
        Key of `JUXTA_RULES`.

    Returns
    -------
    scans : list of dict
        `participant`, `session`, `scan`, `engine`, `original`, `filled`, `rerun` ((70,) arrays; rerun may be all NaN),
        `is_filled` (False if it is known that nothing was filled), `juxtacortical_voxels` (None if unknown) and
        `juxtacortical`.
    excluded : list of dict
        `participant`, `scan`, `engine`, `reason`.
    """
    by_scan = {}
    for entry in entries:
        by_scan.setdefault((entry['scan'], entry['engine']), {})[entry['desc']] = entry
    scans, excluded = [], []
    for (name, engine), found in sorted(by_scan.items()):
        first = next(iter(found.values()))
        values = {desc: values_of(entry) for desc, entry in found.items()}
        if reasons := reasons_against(found, values):
            excluded.append(left_out(first, '; '.join(reasons)))
            continue
        about = found['filled']['about']
        counts = about.get('LesionVoxels', {})
        n_voxels = next((counts[name] for name in JUXTA_RULES[juxta_rule] if name in counts), None)
        scans.append(
            {
                'participant': first['participant'],
                'session': first['session'],
                'scan': name,
                'engine': engine,
                'original': values['original'],
                'filled': values['filled'],
                'rerun': values.get('rerun', np.full(len(VALUES), np.nan)),
                'is_filled': about.get('FilledVoxels') != 0,  # older outputs do not say it
                'juxtacortical_voxels': n_voxels,
                'juxtacortical': None if n_voxels is None else n_voxels >= juxta_min_voxels,
            }
        )
    return scans, excluded


def reasons_against(found: dict[str, Any], values: dict[str, np.ndarray]) -> list[str]:
    """List why the original and filled image of a scan cannot be compared; empty if they can."""
    both = ('original', 'filled')
    reasons = [f'no table of the {desc} image' for desc in both if desc not in found]
    reasons += [
        f'no mean thickness of both hemispheres in the {desc} image'
        for desc in both
        if desc in found and not np.isfinite(values[desc][:2]).all()
    ]
    seeds = {found[desc]['about'].get('RandomSeed') for desc in both if desc in found} - {None}
    return reasons + ['original and filled were measured with different seeds'] * (len(seeds) > 1)


def summarise(scans: list[dict[str, Any]], engine: str, subset: str, rng: np.random.Generator) -> dict[str, Any]:
    """Summarise an engine's errors over participants: a row of the table, and one row per region.

    A participant has juxtacortical lesions if one of its scans has; where that is not known it is not in the subset
    without. A scan in which nothing was filled is a copy, whose error of exactly 0 says nothing: it counts for the
    noise alone.
    """
    scans = [scan for scan in scans if scan['engine'] == engine]
    if subset == WITHOUT:
        touched = {scan['participant'] for scan in scans if scan['juxtacortical'] is not False}
        scans = [scan for scan in scans if scan['participant'] not in touched]
    filled_scans = [scan for scan in scans if scan['is_filled']]
    errors, noise = errors_of(filled_scans, 'filled'), errors_of(scans, 'rerun')
    columns = np.column_stack([errors.overall, errors.region_average, errors.change, errors.regions])
    estimates = reproducibility.mean_and_interval(columns, rng)
    row = {'engine': engine, 'participants': subset, 'n': len(errors.participants), 'n_scans': len(filled_scans)}
    for number, name in enumerate(('error_global', 'error_roi', 'change_global')):
        row |= estimate(name, estimates[:, number])
    row['noise_global_percent'] = float(reproducibility.nan_mean(noise.overall, axis=0))
    row['noise_roi_percent'] = float(reproducibility.nan_mean(noise.region_average, axis=0))
    row['n_noise'] = int(np.isfinite(noise.overall).sum())
    noise_mean = reproducibility.nan_mean(noise.regions, axis=0)
    region_rows = [
        {
            'engine': engine,
            'participants': subset,
            'region': region,
            'n': int(np.isfinite(errors.regions[:, number]).sum()),
            **estimate('error', estimates[:, 3 + number]),
            'noise_percent': float(noise_mean[number]),
        }
        for number, region in enumerate(REGIONS)
    ]
    return {'row': row, 'region_rows': region_rows, 'errors': errors, 'noise': noise}


def estimate(name: str, values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Return the columns of a table: a mean and the two ends of its interval."""
    return {f'{name}_{end}': float(value) for end, value in zip(('percent', 'low', 'high'), values)}


def errors_of(scans: list[dict[str, Any]], desc: str) -> reproducibility.Errors:
    """Compute errors between the original image of scans and the `filled` image or the `rerun`."""
    original, other = (np.reshape([scan[name] for scan in scans], (-1, len(VALUES))) for name in ('original', desc))
    return reproducibility.participant_errors([scan['participant'] for scan in scans], original, other)


def phenotype_row(scan: dict[str, Any]) -> dict[str, Any]:
    """Return a scan's row of phenotype/thickness.tsv."""
    means = {desc: float(scan[desc][:2].mean()) for desc in ('original', 'filled', 'rerun')}
    filled = scan['filled'] if scan['is_filled'] else np.full(len(VALUES), np.nan)
    error, noise = errors_of([scan | {'filled': filled}], 'filled'), errors_of([scan], 'rerun')
    return {
        'participant_id': scan['participant'],
        'session_id': scan['session'],
        'scan': scan['scan'],
        'engine': scan['engine'],
        'original_mm': means['original'],
        'filled_mm': means['filled'],
        'rerun_mm': means['rerun'],
        'error_global_percent': float(error.overall[0]),
        'error_roi_percent': float(error.region_average[0]),
        'change_global_percent': float(error.change[0]),
        'noise_global_percent': float(noise.overall[0]),
        'noise_roi_percent': float(noise.region_average[0]),
        'juxtacortical_voxels': scan['juxtacortical_voxels'],
        'juxtacortical': None if scan['juxtacortical'] is None else str(scan['juxtacortical']).lower(),
    }
