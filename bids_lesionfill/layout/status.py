"""Status and crash files of the participants of a run."""

import logging
import time
import traceback
import uuid
from pathlib import Path

from .. import text_files
from . import errors, files, inputs, naming

logger = logging.getLogger('bids_lesionfill')


def new_run_id():
    """Identifies a run, sortable by time."""
    return f'{time.strftime("%Y%m%d-%H%M%S")}_{uuid.uuid4()}'


def note_crash(error, name, subject, run_id, output_dir):
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


def write_config(output_dir, subject, run_id, text):
    """Write the options of a run to a participant's log."""
    if text:
        files.write_bytes(naming.log_dir(output_dir, subject, run_id) / 'config.toml', text.encode())


def find_statuses(output_dir):
    """Statuses of all participants and runs, the latest run last: list of paths."""
    return sorted(Path(output_dir).glob('sub-*/log/*/status.json'), key=lambda path: (path.parent.name, path))


def has_status(output_dir, subject, run_id):
    """Whether a participant came to its end in a run, good or bad."""
    return (naming.log_dir(output_dir, subject, run_id) / 'status.json').is_file()


def read_status(output_dir, subject, run_id):
    """What became of a participant in a run; `failed` if the run did not come to its end."""
    path = naming.log_dir(output_dir, subject, run_id) / 'status.json'
    return read_statuses([path])[0]['status'] if path.is_file() else 'failed'


def read_statuses(paths):
    """What `write_status` wrote, a dict for each file; `failed` where it is damaged."""
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


def write_status(output_dir, subject, run_id, status):
    """Write what became of a participant, then the table of all participants, also those of other runs."""
    files.write_json(
        naming.log_dir(output_dir, subject, run_id) / 'status.json', {'participant_id': f'sub-{subject}', **status}
    )
    known = None
    while known != (known := find_statuses(output_dir)):  # another process may have written one meanwhile
        latest = {path.parts[-4]: status for path, status in zip(known, read_statuses(known))}
        files.write_tsv(
            Path(output_dir) / 'participants.tsv', [latest[name] for name in sorted(latest)], STATUS_COLUMNS
        )
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
