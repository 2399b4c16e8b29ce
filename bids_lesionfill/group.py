"""The group level: tables of thickness of all participants -> reproducibility error, its noise and its interval."""

import logging

import numpy as np

from . import group_page, layout, reproducibility
from .thickness import HEMISPHERES, REGIONS

logger = logging.getLogger('bids_lesionfill')

OK, NOTHING_TO_DO = 0, 66
ALL, WITHOUT = 'all', 'without juxtacortical'
VALUES = (*(f'{hemisphere}_MeanThickness' for hemisphere in HEMISPHERES), *REGIONS)


def run(options):
    """Aggregate the tables in the output folder, and in other folders given with `--derivatives`; the exit code.

    Participants that lack a table, or whose table lacks a hemisphere's mean, are left out and listed with the reason.
    """
    folders = [options.output_dir, *(options.derivatives or {}).values()]
    entries = [
        entry
        for entry in layout.read_thickness(folders)
        if not options.participant_labels or entry['participant'].removeprefix('sub-') in options.participant_labels
    ]
    if not entries:
        logger.error('nothing to do: no table of thickness (sub-*_seg-DK_desc-*_morph.tsv) in %s', options.output_dir)
        return NOTHING_TO_DO
    scans, excluded = pair_scans(entries, options.juxta_min_voxels)
    excluded = missing_participants(options, entries) + excluded
    rng = np.random.default_rng(options.random_seed)
    engines = list(dict.fromkeys(scan['engine'] for scan in scans))
    summaries = [summarise(scans, engine, subset, rng) for engine in engines for subset in (ALL, WITHOUT)]
    rows = [summary['row'] for summary in summaries]
    region_rows = [row for summary in summaries for row in summary['region_rows']]
    content = {
        'version': options.version,
        'command': options.command,
        'rows': rows,
        'excluded': excluded,
        'juxta_min_voxels': options.juxta_min_voxels,
        'engines': [describe_engine(scans, engine, summaries) for engine in engines],
        'n_participants': len({scan['participant'] for scan in scans}),
        'n_scans': len({scan['scan'] for scan in scans}),
    }
    with layout.lock(options.output_dir, shared=True):
        layout.write_group(options.output_dir, [phenotype_row(scan) for scan in scans], rows, region_rows)
        group_page.write(options.output_dir / 'group.html', content)
    logger.info('%d scans of %d engine(s): %s', len(scans), len(engines), options.output_dir / 'group.html')
    return OK


def values_of(entry):
    """Thickness of both hemispheres and all regions, mm; (70,) array, NaN where missing."""
    return np.array([entry['thickness_mm'].get(name) for name in VALUES], dtype=np.float64)


def pair_scans(entries, juxta_min_voxels):
    """Put the original, filled and rerun measurement of a scan by an engine together.

    Returns
    -------
    scans : list of dict
        `participant`, `session`, `scan`, `engine`, `original`, `filled`, `rerun` ((70,) arrays; rerun may be all NaN),
        `juxtacortical_voxels` (None if unknown) and `juxtacortical`.
    excluded : list of dict
        `participant`, `scan`, `engine`, `reason`.
    """
    by_scan = {}
    for entry in entries:
        by_scan.setdefault((entry['scan'], entry['engine']), {})[entry['desc']] = entry
    scans, excluded = [], []
    for (name, engine), found in sorted(by_scan.items()):
        first = next(iter(found.values()))
        reasons = [f'no table of the {desc} image' for desc in ('original', 'filled') if desc not in found]
        values = {desc: values_of(entry) for desc, entry in found.items()}
        reasons += [
            f'no mean thickness of both hemispheres in the {desc} image'
            for desc in ('original', 'filled')
            if desc in values and not np.isfinite(values[desc][:2]).all()
        ]
        if reasons:
            who = {'participant': first['participant'], 'scan': name, 'engine': engine}
            excluded.append(who | {'reason': '; '.join(reasons)})
            continue
        n_voxels = found['filled']['about'].get('LesionVoxels', {}).get('outside_white_matter')
        scans.append(
            {
                'participant': first['participant'],
                'session': first['session'],
                'scan': name,
                'engine': engine,
                'original': values['original'],
                'filled': values['filled'],
                'rerun': values.get('rerun', np.full(len(VALUES), np.nan)),
                'juxtacortical_voxels': n_voxels,
                'juxtacortical': None if n_voxels is None else n_voxels >= juxta_min_voxels,
            }
        )
    return scans, excluded


def missing_participants(options, entries):
    """Participants of the dataset without any table, with the reason that their own run gave."""
    measured = {entry['participant'] for entry in entries}
    status_file = options.output_dir / 'participants.tsv'
    statuses = layout.read_tsv(status_file) if status_file.is_file() else []
    reasons = {row['participant_id']: row for row in statuses}
    wanted = [f'sub-{label}' for label in options.participant_labels] or layout.list_participants(options.bids_dir)
    return [
        {'participant': name, 'scan': None, 'engine': None, 'reason': reason_of(reasons.get(name))}
        for name in sorted(set(wanted) | set(reasons) if not options.participant_labels else wanted)
        if name not in measured
    ]


def reason_of(status):
    """Why a participant has no table, from its row in participants.tsv."""
    if status is None:
        return 'not run at participant level'
    if status['status'] in ('filled', 'copied'):
        return 'filled, but thickness was not measured'
    return ': '.join(str(status[key]) for key in ('status', 'message') if status.get(key))


def summarise(scans, engine, subset, rng):
    """Errors of an engine over participants: a row of the table of errors, and one row per region.

    A participant has juxtacortical lesions if one of its scans has; where that is not known it is not in the subset
    without.
    """
    scans = [scan for scan in scans if scan['engine'] == engine]
    if subset == WITHOUT:
        touched = {scan['participant'] for scan in scans if scan['juxtacortical'] is not False}
        scans = [scan for scan in scans if scan['participant'] not in touched]
    row = {'engine': engine, 'participants': subset, 'n': 0, 'n_scans': len(scans)}
    if not scans:
        return {'row': row, 'region_rows': [], 'errors': None, 'noise': None}
    participants = [scan['participant'] for scan in scans]
    original, filled, rerun = (np.array([scan[desc] for scan in scans]) for desc in ('original', 'filled', 'rerun'))
    errors = reproducibility.participant_errors(participants, original, filled)
    noise = reproducibility.participant_errors(participants, original, rerun)
    columns = np.column_stack([errors.overall, errors.region_average, errors.regions])
    mean, low, high = reproducibility.mean_and_interval(columns, rng)
    noise_columns = np.column_stack([noise.overall, noise.region_average, noise.regions])
    noise_mean = reproducibility.nan_mean(noise_columns, axis=0)
    row['n'] = len(errors.participants)
    row['n_noise'] = int(np.isfinite(noise.overall).sum())
    for column, name in enumerate(('global', 'roi')):
        row[f'error_{name}_percent'] = float(mean[column])
        row[f'error_{name}_low'], row[f'error_{name}_high'] = float(low[column]), float(high[column])
        row[f'noise_{name}_percent'] = float(noise_mean[column])
    region_rows = [
        {
            'engine': engine,
            'participants': subset,
            'region': region,
            'n': int(np.isfinite(errors.regions[:, number]).sum()),
            'error_percent': float(mean[2 + number]),
            'error_low': float(low[2 + number]),
            'error_high': float(high[2 + number]),
            'noise_percent': float(noise_mean[2 + number]),
        }
        for number, region in enumerate(REGIONS)
    ]
    return {'row': row, 'region_rows': region_rows, 'errors': errors, 'noise': noise}


def phenotype_row(scan):
    """A scan's row of phenotype/thickness.tsv."""
    means = {desc: float(scan[desc][:2].mean()) for desc in ('original', 'filled', 'rerun')}
    error, noise = (reproducibility.error_percent(scan['original'], scan[desc]) for desc in ('filled', 'rerun'))
    return {
        'participant_id': scan['participant'],
        'session_id': scan['session'],
        'scan': scan['scan'],
        'engine': scan['engine'],
        'original_mm': means['original'],
        'filled_mm': means['filled'],
        'rerun_mm': means['rerun'],
        'error_global_percent': float(reproducibility.error_percent(means['original'], means['filled'])),
        'error_roi_percent': float(reproducibility.nan_mean(error[2:], 0)),
        'noise_global_percent': float(reproducibility.error_percent(means['original'], means['rerun'])),
        'noise_roi_percent': float(reproducibility.nan_mean(noise[2:], 0)),
        'juxtacortical_voxels': scan['juxtacortical_voxels'],
        'juxtacortical': None if scan['juxtacortical'] is None else str(scan['juxtacortical']).lower(),
    }


def describe_engine(scans, engine, summaries):
    """What the page draws of an engine: mean error of each region, and every participant's errors."""
    summary = next(s for s in summaries if s['row']['engine'] == engine and s['row']['participants'] == ALL)
    left_out = sorted({s['scan'] for s in scans if s['engine'] == engine and s['juxtacortical'] is not False})
    return {
        'engine': engine,
        'region_errors': np.array([row['error_percent'] for row in summary['region_rows']]),
        'participant_errors': summary['errors'].region_average,
        'participant_noise': summary['noise'].region_average,
        'juxtacortical_scans': left_out,
    }
