"""The page of a study, from the derivatives in the output folder alone: read them, write `index.html` and ratings."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import text_files
from ..layout import derivatives, files, indexing, naming
from ..layout import status as layout_status
from ..report import study

if TYPE_CHECKING:
    from .options import Options

logger = logging.getLogger('bids_lesionfill')

RATINGS_FILE = 'desc-qc_ratings.tsv'
RATINGS_PATTERN = '*desc-qc_ratings*.tsv'  # of several raters; browsers number files of one name: ratings (1).tsv
RESULT = re.compile(
    r'(?P<scan>sub-.+)_desc-(?P<desc>filled|synth\d*)_(?!mask|dseg|probseg|qc|morph)(?P<modality>[A-Za-z0-9]+)\.json'
)


def write(options: Options) -> int:
    """Write `index.html` of all that was done in the output folder, whoever was asked for; return the rows.

    Nothing is written, and 0 returned, where no participant was run.
    """
    output_dir = options.output_dir
    table = read_table(output_dir / 'participants.tsv', 'participant_id', 'status', 'message')
    statuses = {row['participant_id']: row for row in table}
    rows = [read_image(path, output_dir) for path in find_results(output_dir)]
    if not rows and not statuses:
        return 0
    unknown = {row['participant']: {'status': 'not run', 'message': ''} for row in rows}
    not_run = {name: {'status': 'not run', 'message': ''} for name in indexing.list_participants(options.bids_dir)}
    statuses = not_run | unknown | statuses
    rows = study.with_failures(rows, statuses, find_crashes(output_dir))
    for row in rows:
        row.setdefault('session', session_of(row['name']))
        report = output_dir / f'{row["participant"]}.html'
        row['report'] = report.name if report.is_file() else None
    with files.lock(output_dir, shared=True):
        ratings = merge_ratings(output_dir)
        html = study.render({
            'name': study_name(options.bids_dir),
            'version': options.version,
            'command': options.command,
            'rows': rows,
            'ratings': ratings,
            'has_group': (output_dir / 'group.html').is_file(),
        })  # fmt: skip
        files.write_bytes(output_dir / 'index.html', html.encode())
    logger.info('%d image(s), %d rating(s): %s', len(rows), len(ratings), output_dir / 'index.html')
    return len(rows)


def study_name(bids_dir: Path) -> str:
    """Return the name of the dataset; that of its folder if it has none."""
    file = Path(bids_dir, 'dataset_description.json')
    try:
        return str(text_files.read_json(file).get('Name') or Path(bids_dir).resolve().name)
    except (OSError, text_files.UnreadableError):
        return Path(bids_dir).resolve().name


def find_results(output_dir: Path) -> list[Path]:
    """Return the sidecars of filled and synthesized images, in order of their names."""
    return sorted(path for path in Path(output_dir).glob('sub-*/**/anat/*.json') if RESULT.fullmatch(path.name))


def read_image(sidecar: Path, output_dir: Path) -> dict:
    """Return the row of an image from its sidecar; where that is of something else or damaged, a row that says so."""
    parts = RESULT.fullmatch(sidecar.name).groupdict()  # type: ignore[union-attr]
    scan, desc, modality = parts['scan'], parts['desc'], parts['modality']
    entities = naming.name_entities(scan)
    name, participant = f'{scan}_{modality}', f'sub-{entities["sub"]}'
    whose = {'participant': participant}
    info = derivatives.read_sidecar(sidecar.with_suffix('.nii.gz'))
    table = 'lesions' if desc == 'filled' else f'{desc}lesions'
    space = naming.space_entity(modality)
    lesions = read_table(sidecar.with_name(f'{scan}{space}_desc-{table}_qc.tsv'), 'label', 'volume_mm3')
    if not {'RunHash', 'Warnings'} <= set(info):
        return whose | {
            'name': name,
            'status': 'failed',
            'message': f'{sidecar.name} is damaged, or of another program',
        }
    row = whose | study.describe_image(name, desc, modality, info, lesions)
    stem = name if desc == 'filled' else f'{name}_{desc}'
    row |= read_thumbnail(Path(output_dir, participant, 'figures'), stem, study.worst_first(lesions, info, modality))
    return row | {'seconds': layout_status.read_seconds(output_dir, entities['sub'], stem)}


def session_of(name: str) -> str | None:
    """Return the session in the name of an image; None without."""
    session = naming.name_entities(name).get('ses')
    return f'ses-{session}' if session else None


def read_thumbnail(folder: Path, stem: str, labels: Iterable[int]) -> dict:
    """Return thumbnail and label of the first of some lesions that the report pictured; None where none is."""
    for label in labels:
        before, after = (folder / f'{stem}_lesion-{label}_{picture}.png' for picture in ('before', 'after'))
        try:
            return {'thumbnail': study.thumbnail(before.read_bytes(), after.read_bytes()), 'worst': label}
        except FileNotFoundError:
            continue
        except OSError as error:  # also what Pillow raises of a damaged picture
            logger.warning('%s and its fellow cannot be shown: %s', before, error)
    return {'thumbnail': None, 'worst': None}


def find_crashes(output_dir: Path) -> dict[str, list[str]]:
    """Return the names of what crashed in the latest run of each participant, by participant."""
    latest = {path.parts[-4]: path.parent for path in layout_status.find_statuses(output_dir)}
    return {
        participant: sorted(path.stem.removeprefix('crash-') for path in folder.glob('crash-*.txt'))
        for participant, folder in latest.items()
    }


def read_table(path: Path, *columns: str) -> list[dict]:
    """Return the rows of a table that has some columns; none, with a warning, if it cannot be read or lacks one."""
    try:
        rows = text_files.read_tsv(path)
    except FileNotFoundError:
        return []
    except (OSError, text_files.UnreadableError) as error:
        logger.warning('%s: the file is ignored', error)
        return []
    if not all(set(columns) <= set(row) for row in rows):
        logger.warning('%s lacks a column, expected %s: the file is ignored', path, ', '.join(columns))
        return []
    return rows


def merge_ratings(output_dir: Path) -> list[dict]:
    """Merge all tables of ratings in a folder into one, and return it; every rating of every rater stays in it."""
    found = sorted(Path(output_dir).glob(RATINGS_PATTERN))
    ratings = study.merge_ratings([row for path in found for row in read_table(path, 'image', 'rating')])
    if ratings:
        known = [{name: value or None for name, value in row.items()} for row in ratings]
        files.write_tsv(Path(output_dir, RATINGS_FILE), known, study.RATING_COLUMNS)
        pairs = study.agreement(ratings)
        about = study.RATING_COLUMNS | ({'Agreement': [agreement_text(pair) for pair in pairs]} if pairs else {})
        files.write_json(Path(output_dir, RATINGS_FILE).with_suffix('.json'), about)
        for pair in pairs:
            logger.info('%s', agreement_text(pair))
    return ratings


def agreement_text(pair: dict[str, Any]) -> str:
    """Return the agreement of two raters as a sentence."""
    kappa = study.number(pair['kappa']) or 'not defined, as both always said the same'
    return f"{' and '.join(pair['raters'])}: {pair['agree']} of {pair['n']} images rated alike, Cohen's kappa {kappa}"
