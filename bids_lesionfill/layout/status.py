"""Status and crash files of the participants of a run."""

import csv
import logging
import os
import time
import traceback
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import text_files
from . import errors, files, inputs, naming

logger = logging.getLogger('bids_lesionfill')


def new_run_id() -> str:
    """Return a new identifier of a run, sortable by time."""
    return f'{time.strftime("%Y%m%d-%H%M%S")}_{uuid.uuid4()}'


def note_crash(error: BaseException, name: str, subject: str, run_id: str, output_dir: Path) -> str:
    """Write the traceback of the current exception to the participant's log; return the error as one line."""
    sentence = errors.in_words(error)
    logger.error('%s: %s', name, sentence)
    try:
        files.write_bytes(
            naming.log_dir(output_dir, subject, run_id) / f'crash-{name}.txt', traceback.format_exc().encode()
        )
    except OSError as failure:  # a full disk, perhaps
        logger.error('%s: the crash file cannot be written: %s', name, failure)
    return sentence


def note_seconds(seconds: float, name: str, subject: str, run_id: str, output_dir: Path) -> None:
    """Write how long the work on an image took to the participant's log."""
    path = naming.log_dir(output_dir, subject, run_id) / f'time-{name}.json'
    files.write_json(path, {'seconds': round(seconds, 1)})


def read_seconds(output_dir: Path, subject: str, name: str) -> float | None:
    """Return how long the work on an image took in the latest run that did it (s); None if that is not known."""
    found = sorted(Path(output_dir, f'sub-{subject}').glob(f'log/*/time-{name}.json'))
    try:
        return text_files.read_json(found[-1]).get('seconds') if found else None
    except (OSError, text_files.UnreadableError) as error:
        logger.warning('%s', error)
        return None


def write_config(output_dir: Path, subject: str, run_id: str, text: str) -> None:
    """Write the options of a run to a participant's log."""
    if text:
        files.write_bytes(naming.log_dir(output_dir, subject, run_id) / 'config.toml', text.encode())


def find_statuses(output_dir: Path) -> list[Path]:
    """Return the status file of the latest run of each participant, ordered by participant.

    Only names are listed, and one file per participant is read later: the cost does not grow with the number of runs.
    """
    folders = sorted(folder for folder in os.listdir(output_dir) if folder.startswith('sub-'))
    found = (latest_status(Path(output_dir, folder, 'log')) for folder in folders)
    return [path for path in found if path is not None]


def latest_status(log_dir: Path) -> Path | None:
    """Return the status file of the latest run in the log of a participant, by name of the run; None without."""
    try:
        runs = sorted(os.listdir(log_dir), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return next((path for run in runs if (path := Path(log_dir, run, 'status.json')).is_file()), None)


def has_status(output_dir: Path, subject: str, run_id: str) -> bool:
    """Return True if a participant finished in a run, successfully or not."""
    return (naming.log_dir(output_dir, subject, run_id) / 'status.json').is_file()


def read_status(output_dir: Path, subject: str, run_id: str) -> str:
    """Read the status of a participant in a run; `failed` if the run did not finish."""
    path = naming.log_dir(output_dir, subject, run_id) / 'status.json'
    return read_statuses([path])[0]['status'] if path.is_file() else 'failed'


def read_statuses(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read files of `write_status`, one dict per file; status `failed` if a file is damaged."""
    statuses = []
    for path in paths:
        try:
            status = text_files.read_json(path)
            if not {'participant_id', 'status'} <= set(status):
                raise text_files.UnreadableError(f'{path} lacks participant_id or status')
        except text_files.UnreadableError as error:
            logger.warning('%s', error)
            status = {'participant_id': path.parts[-4], 'status': 'failed', 'message': f'{error}'}
        statuses.append(status)
    return statuses


STATUS_COLUMNS = ['participant_id', 'status', 'images', 'warnings', 'message']  # of images: images.tsv


def write_status(output_dir: Path, subject: str, run_id: str, status: dict) -> None:
    """Write what became of a participant in a run, and its row in the table of all participants.

    Only the row is replaced: the cost of a run does not grow with the runs before. Where two processes cannot lock a
    folder, a row may be lost; `write_table` at the end of a run finds it again.
    """
    status = {'participant_id': f'sub-{subject}', **status}
    files.write_json(naming.log_dir(output_dir, subject, run_id) / 'status.json', status)
    table_file = Path(output_dir) / 'participants.tsv'
    with files.lock(Path(output_dir) / 'logs', quiet=True):
        rows = read_rows(table_file)
        if rows is None:
            write_table(output_dir)
        else:
            files.write_tsv(table_file, sorted_rows(rows | {status['participant_id']: status}), STATUS_COLUMNS)
            write_columns(output_dir)


def read_rows(table_file: Path) -> dict[str, dict] | None:
    """Return the rows of the table of participants as text, by participant; None if it is not there or damaged."""
    try:
        first, *lines = text_files.read_text(table_file).splitlines()
    except (OSError, ValueError):
        return None
    rows = [dict(zip(STATUS_COLUMNS, line)) for line in csv.reader(lines, delimiter='\t')]
    is_whole = first.split('\t') == STATUS_COLUMNS and all(len(row) == len(STATUS_COLUMNS) for row in rows)
    return {row['participant_id']: row for row in rows} if is_whole else None


def sorted_rows(rows: dict[str, dict]) -> list[dict]:
    """Return rows by participant, ordered by participant."""
    return [rows[name] for name in sorted(rows)]


def write_table(output_dir: Path) -> None:
    """Write the table of all participants anew, from the status of the latest run of each."""
    statuses = read_statuses(find_statuses(output_dir))
    rows = {status['participant_id']: status for status in statuses}
    files.write_tsv(Path(output_dir) / 'participants.tsv', sorted_rows(rows), STATUS_COLUMNS)
    write_columns(output_dir)


def write_columns(output_dir: Path) -> None:
    """Write what the columns of the table of participants mean."""
    files.write_json(
        Path(output_dir) / 'participants.json',
        {
            'status': {
                'Description': 'what became of the participant in the latest run',
                'Levels': {
                    'filled': 'lesions were filled',
                    'synthesized': 'new lesions were painted',
                    'copied': 'the mask holds no lesion: the output is a copy of the input',
                    'no lesion mask': 'no lesion mask was found, nothing was written',
                    'no image': 'no image of the modalities was found, nothing was written',
                    inputs.DONOR: 'its lesions were painted into the others (--mask-from), nothing was written',
                    'failed': 'see message and the crash file',
                },
            },
            'images': {'Description': 'number of its images that are there (images.tsv), of this and earlier runs'},
            'warnings': {'Description': 'number of things to look at before images are used; the report names them'},
            'message': {'Description': 'why, if the participant was not done'},
        },
    )
