"""The group level: tables of thickness of all participants -> reproducibility error, its noise and its interval."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import text_files
from ..layout import derivatives, files, indexing, ownership
from ..layout import tables as layout_tables
from ..report import group
from ..thickness import comparison
from . import study

if TYPE_CHECKING:
    from .options import Options

logger = logging.getLogger('bids_lesionfill')


OK, NOTHING_TO_DO = 0, 66


def run(options: Options) -> int:
    """Aggregate the tables in the output folder, and in other folders given with `--derivatives`; the exit code.

    Who lacks a table, or of whom nothing was filled, is left out of the errors and listed with the reason. The page of
    the study (`index.html`) shows all images, measured or not.
    """
    folders = [options.output_dir, *(options.derivatives or {}).values()]
    tables = layout_tables.read_thickness(folders)
    entries = [entry for entry in tables if is_wanted(entry, options)]
    if not entries:
        if study.write(options) and not tables:
            return OK
        whose = ' of the participants and sessions asked for' if tables else ''
        words = 'nothing to do: no table of thickness (sub-*_seg-DK_desc-*_morph.tsv)%s in %s'
        logger.error(words, whose, ', '.join(map(str, folders)))
        return NOTHING_TO_DO
    scans, unpaired = comparison.pair_scans(entries, options.juxta_min_voxels, options.juxta_rule)
    statuses = read_statuses(options.output_dir)
    excluded = missing_participants(options, tables, entries, statuses) + missing_tables(entries, statuses) + unpaired
    excluded += [comparison.left_out(scan, 'nothing was filled') for scan in scans if not scan['is_filled']]
    rng = np.random.default_rng(options.random_seed)
    engines = list(dict.fromkeys(scan['engine'] for scan in scans))
    summaries = [
        comparison.summarise(scans, engine, subset, rng)
        for engine in engines
        for subset in (comparison.ALL, comparison.WITHOUT)
    ]
    rows = [summary['row'] for summary in summaries]
    region_rows = [row for summary in summaries for row in summary['region_rows']]
    content = {
        'version': options.version,
        'command': options.command,
        'rows': rows,
        'excluded': excluded,
        'juxta_min_voxels': options.juxta_min_voxels,
        'juxta_rule': options.juxta_rule,
        'engines': [group.describe_engine(scans, engine, summaries) for engine in engines],
        'n_participants': len({scan['participant'] for scan in scans}),
        'n_scans': len({scan['scan'] for scan in scans}),
    }
    with files.lock(options.output_dir, shared=True):
        if not (options.output_dir / 'dataset_description.json').is_file():  # tables of other folders alone
            source = ownership.note_source(options.bids_dir)
            derivatives.write_description(options.output_dir, options.bids_dir, {}, options.version, source)
        layout_tables.write_group(
            options.output_dir, [comparison.phenotype_row(scan) for scan in scans], rows, region_rows
        )
        group.write(options.output_dir / 'group.html', content)
    study.write(options)
    logger.info('%d scans of %d engine(s): %s', len(scans), len(engines), options.output_dir / 'group.html')
    return OK


def is_wanted(entry: dict[str, Any], options: Options) -> bool:
    """Return True if a table matches `--participant-label` and `--session-label`."""
    participant, session = entry['participant'].removeprefix('sub-'), (entry['session'] or '').removeprefix('ses-')
    asked_for = ((participant, options.participant_labels), (session, options.session_labels))
    return all(not labels or label in labels for label, labels in asked_for)


def read_statuses(output_dir: Path) -> dict[str, dict[str, Any]]:
    """Read the rows of participants.tsv by participant; empty if the file does not exist."""
    status_file = output_dir / 'participants.tsv'
    try:
        rows = text_files.read_tsv(status_file) if status_file.is_file() else []
    except text_files.UnreadableError as error:
        logger.warning('%s', error)
        return {}
    if not all({'participant_id', 'status', 'message'} <= set(row) for row in rows):
        logger.warning('%s is not the table that participant runs write: it says nothing of them', status_file)
        return {}
    return {row['participant_id']: row for row in rows}


def missing_participants(
    options: Options, tables: list[dict[str, Any]], entries: list[dict[str, Any]], statuses: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """List participants without any requested table, with the reason that their own run logged."""
    measured, counted = ({entry['participant'] for entry in found} for found in (tables, entries))
    wanted = [f'sub-{label}' for label in options.participant_labels]
    wanted = wanted or {*indexing.list_participants(options.bids_dir), *statuses, *measured}
    return [
        {'participant': name, 'scan': None, 'engine': None, 'reason': reason_of(statuses.get(name), name in measured)}
        for name in sorted(wanted)
        if name not in counted
    ]


def missing_tables(entries: list[dict[str, Any]], statuses: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """List scans measured by one engine but not by another, with the message of a failed run."""
    measured = {(entry['scan'], entry['engine']) for entry in entries}
    scans = {entry['scan']: entry for entry in entries}
    return [
        comparison.left_out(scans[scan] | {'engine': engine}, no_table(statuses.get(scans[scan]['participant'])))
        for scan in sorted(scans)
        for engine in sorted({engine for _, engine in measured})
        if (scan, engine) not in measured
    ]


def no_table(status: dict[str, Any] | None) -> str:
    """Return the reason why a scan has no table of an engine."""
    reason = 'no table of this engine'
    message = status['message'] if status and status['status'] == 'failed' else None
    return f'{reason} (failed: {message})' if message else reason


def reason_of(status: dict[str, Any] | None, is_measured: bool) -> str:
    """Return the reason why a participant has no requested table, from its row in participants.tsv."""
    if is_measured and (status is None or status['status'] != 'failed'):
        return 'no table of the sessions asked for'
    if status is None:
        return 'not run at participant level'
    if status['status'] in ('filled', 'copied'):
        return 'filled, but thickness was not measured'
    return ': '.join(str(status[key]) for key in ('status', 'message') if status.get(key))
