"""The group level: tables of thickness of all participants -> reproducibility error, its noise and its interval."""

import logging

import numpy as np

from . import group_page, layout, ownership, reproducibility, text_files
from .thickness import HEMISPHERES, REGIONS

logger = logging.getLogger('bids_lesionfill')

OK, NOTHING_TO_DO = 0, 66
ALL, WITHOUT = 'all', 'without juxtacortical'
VALUES = (*(f'{hemisphere}_MeanThickness' for hemisphere in HEMISPHERES), *REGIONS)


def run(options):
    """Aggregate the tables in the output folder, and in other folders given with `--derivatives`; the exit code.

    Who lacks a table, or of whom nothing was filled, is left out of the errors and listed with the reason.
    """
    folders = [options.output_dir, *(options.derivatives or {}).values()]
    tables = layout.read_thickness(folders)
    entries = [entry for entry in tables if is_wanted(entry, options)]
    if not entries:
        whose = ' of the participants and sessions asked for' if tables else ''
        words = 'nothing to do: no table of thickness (sub-*_seg-DK_desc-*_morph.tsv)%s in %s'
        logger.error(words, whose, ', '.join(map(str, folders)))
        return NOTHING_TO_DO
    scans, unpaired = pair_scans(entries, options.juxta_min_voxels)
    statuses = read_statuses(options.output_dir)
    excluded = missing_participants(options, tables, entries, statuses) + missing_tables(entries, statuses) + unpaired
    excluded += [left_out(scan, 'nothing was filled') for scan in scans if not scan['is_filled']]
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
        if not (options.output_dir / 'dataset_description.json').is_file():  # tables of other folders alone
            source = ownership.note_source(options.bids_dir)
            layout.write_description(options.output_dir, options.bids_dir, {}, options.version, source)
        layout.write_group(options.output_dir, [phenotype_row(scan) for scan in scans], rows, region_rows)
        group_page.write(options.output_dir / 'group.html', content)
    logger.info('%d scans of %d engine(s): %s', len(scans), len(engines), options.output_dir / 'group.html')
    return OK


def is_wanted(entry, options):
    """Whether a table is of a participant and session asked for (`--participant-label`, `--session-label`)."""
    participant, session = entry['participant'].removeprefix('sub-'), (entry['session'] or '').removeprefix('ses-')
    asked_for = ((participant, options.participant_labels), (session, options.session_labels))
    return all(not labels or label in labels for label, labels in asked_for)


def left_out(scan, reason):
    """A row of the list of those who are left out; of a scan or of one of its tables."""
    return {name: scan[name] for name in ('participant', 'scan', 'engine')} | {'reason': reason}


def values_of(entry):
    """Thickness of both hemispheres and all regions, mm; (70,) array, NaN where missing."""
    return np.array([entry['thickness_mm'].get(name) for name in VALUES], dtype=np.float64)


def pair_scans(entries, juxta_min_voxels):
    """Put the original, filled and rerun measurement of a scan by an engine together.

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
        n_voxels = about.get('LesionVoxels', {}).get('outside_white_matter')
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


def reasons_against(found, values):
    """Why the original and the filled image of a scan cannot be compared; list of str, empty if they can."""
    both = ('original', 'filled')
    reasons = [f'no table of the {desc} image' for desc in both if desc not in found]
    reasons += [
        f'no mean thickness of both hemispheres in the {desc} image'
        for desc in both
        if desc in found and not np.isfinite(values[desc][:2]).all()
    ]
    seeds = {found[desc]['about'].get('RandomSeed') for desc in both if desc in found} - {None}
    return reasons + ['original and filled were measured with different seeds'] * (len(seeds) > 1)


def read_statuses(output_dir):
    """Rows of participants.tsv by participant; empty if it is not there."""
    status_file = output_dir / 'participants.tsv'
    try:
        rows = layout.read_tsv(status_file) if status_file.is_file() else []
    except text_files.UnreadableError as error:
        logger.warning('%s', error)
        return {}
    if not all({'participant_id', 'status', 'message'} <= set(row) for row in rows):
        logger.warning('%s is not the table that participant runs write: it says nothing of them', status_file)
        return {}
    return {row['participant_id']: row for row in rows}


def missing_participants(options, tables, entries, statuses):
    """Participants of the dataset without any table that is wanted, with the reason that their own run gave."""
    measured, counted = ({entry['participant'] for entry in found} for found in (tables, entries))
    wanted = [f'sub-{label}' for label in options.participant_labels]
    wanted = wanted or {*layout.list_participants(options.bids_dir), *statuses, *measured}
    return [
        {'participant': name, 'scan': None, 'engine': None, 'reason': reason_of(statuses.get(name), name in measured)}
        for name in sorted(wanted)
        if name not in counted
    ]


def missing_tables(entries, statuses):
    """Scans that one engine measured and another did not, with what the participant's own run said if it failed."""
    measured = {(entry['scan'], entry['engine']) for entry in entries}
    scans = {entry['scan']: entry for entry in entries}
    return [
        left_out(scans[scan] | {'engine': engine}, no_table(statuses.get(scans[scan]['participant'])))
        for scan in sorted(scans)
        for engine in sorted({engine for _, engine in measured})
        if (scan, engine) not in measured
    ]


def no_table(status):
    """Why a scan has no table of an engine."""
    reason = 'no table of this engine'
    failed = status and status['status'] == 'failed' and status['message']
    return f'{reason} (failed: {status["message"]})' if failed else reason


def reason_of(status, is_measured):
    """Why a participant has no table, from its row in participants.tsv; it may have some of other sessions."""
    if is_measured and (status is None or status['status'] != 'failed'):
        return 'no table of the sessions asked for'
    if status is None:
        return 'not run at participant level'
    if status['status'] in ('filled', 'copied'):
        return 'filled, but thickness was not measured'
    return ': '.join(str(status[key]) for key in ('status', 'message') if status.get(key))


def summarise(scans, engine, subset, rng):
    """Errors of an engine over participants: a row of the table of errors, and one row per region.

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


def estimate(name, values):
    """Columns of a table: a mean and the two ends of its interval."""
    return {f'{name}_{end}': float(value) for end, value in zip(('percent', 'low', 'high'), values)}


def errors_of(scans, desc):
    """Errors between the original image of scans and the `filled` image or the `rerun`."""
    original, other = (np.reshape([scan[name] for scan in scans], (-1, len(VALUES))) for name in ('original', desc))
    return reproducibility.participant_errors([scan['participant'] for scan in scans], original, other)


def phenotype_row(scan):
    """A scan's row of phenotype/thickness.tsv."""
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


def describe_engine(scans, engine, summaries):
    """What the page draws of an engine: mean error of each region, and every participant's errors."""
    summary = next(s for s in summaries if s['row']['engine'] == engine and s['row']['participants'] == ALL)
    touched = sorted({s['scan'] for s in scans if s['engine'] == engine and s['juxtacortical'] is not False})
    return {
        'engine': engine,
        'region_errors': np.array([row['error_percent'] for row in summary['region_rows']]),
        'participant_errors': summary['errors'].region_average,
        'participant_noise': summary['noise'].region_average,
        'juxtacortical_scans': touched,
    }
