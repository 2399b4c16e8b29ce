"""The page of a study: one row per image to sort, filter and rate, and the ratings of several raters.

Everything comes from derivatives: sidecars, tables of lesions, statuses and the pictures of the reports. The page
stands alone: thumbnails are inside it, and nothing in it has an address on a network.
"""

import base64
import io
import itertools
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from .. import sidecars, statistics
from ..lesions import checks, records
from . import page, pictures

TEMPLATE = 'study.html.jinja'
THUMBNAIL_PX = 96  # side of one of the two views; 3 to 5 kB for both as JPEG
THUMBNAIL_SHARE = 0.6  # of the view of a lesion, in its middle: 42 mm
JPEG_QUALITY = 72

RATINGS = ('accept', 'doubt', 'reject')
RATING_COLUMNS = {
    'participant_id': {'Description': 'participant'},
    'session_id': {'Description': 'session'},
    'image': {'Description': 'image that was rated, as the page of the study (index.html) names it'},
    'rater': {'Description': 'name or initials that the rater gave'},
    'rating': {
        'Description': 'verdict on the image after filling or synthesis; n/a: withdrawn, or a comment alone',
        'Levels': {
            'accept': 'usable as it is',
            'doubt': 'to be seen by somebody else, or to be used with care',
            'reject': 'not usable',
        },
    },
    'comment': {'Description': 'free text'},
    'rated_at': {'Description': 'when, UTC, ISO 8601; of two ratings of an image by one rater, the later one counts'},
    'run_hash': {'Description': 'first digits of RunHash in the sidecar of the image that was rated'},
}
HASH_DIGITS = 12


# -------------------------------------------------------------------------------------------------- rows


def describe_image(name: str, desc: str, modality: str, info: dict, lesions: list[dict]) -> dict:
    """Return the row of an image, from its sidecar and its table of lesions.

    Parameters
    ----------
    name : str
        Of the input, as `sub-01_ses-1_T1w`.
    desc : str
        `filled`, or `synth` with its number.
    info : dict
        The sidecar.
    lesions : list of dict
        Rows of the table of lesions.

    Returns
    -------
    dict with `name` (of the image; of a synthesized one with its desc), `modality`, `status`, `warnings`,
    `n_lesions`, `given_ml` (volume of the mask as it was given; None where not known), `used_ml` (that after it
    grew), `run_hash`.
    """
    is_fill = desc == 'filled'
    used_ml = sum(row['volume_mm3'] for row in lesions) / 1000
    status = ('filled' if lesions else 'copied') if is_fill else 'synthesized'
    return {
        'name': name if is_fill else f'{name}_{desc}',
        'modality': modality,
        'status': status,
        'warnings': list(info.get('Warnings', [])),
        'n_lesions': len(lesions),
        'given_ml': given_ml(info, used_ml) if is_fill else None,
        'used_ml': used_ml,
        'run_hash': str(info.get('RunHash', ''))[:HASH_DIGITS],
    }


def given_ml(info: dict, used_ml: float) -> float | None:
    """Return the volume of the mask as it was given (ml), from voxel counts of a sidecar and the volume it grew to."""
    record = sidecars.read(records.FillRecord, info)
    given, used = record.lesion_voxels_given, record.lesion_voxels_used
    if given == 0:
        return 0.0
    return given * used_ml / used if given and used else None


def worst_first(lesions: list[dict], info: dict, modality: str) -> list[int]:
    """Return the labels of lesions in the order in which reports picture them: most unusual, then most changed."""
    record = sidecars.read(records.FillRecord, info)
    worths = {
        int(row['label']): pictures.worth_a_picture(row | {'suspicion': checks.suspicion(row, record, modality)})
        for row in lesions
    }
    return sorted(worths, key=lambda label: worths[label], reverse=True)


def thumbnail(before_png: bytes, after_png: bytes) -> bytes:
    """Return the middle of the axial view of two pictures of a lesion (`pictures.zoom`), side by side, as JPEG."""
    strip = Image.new('L', (2 * THUMBNAIL_PX, THUMBNAIL_PX))
    for column, png in enumerate((before_png, after_png)):
        with Image.open(io.BytesIO(png)) as picture:
            side = (picture.width - pictures.GAP_PX) // 2  # views lie in two columns; the axial one comes first
            margin = round(side * (1 - THUMBNAIL_SHARE) / 2)
            view = picture.convert('L').crop((margin, margin, side - margin, side - margin))
        strip.paste(view.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS), (column * THUMBNAIL_PX, 0))
    file = io.BytesIO()
    strip.save(file, 'JPEG', quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()


def with_failures(rows: list[dict], statuses: dict[str, dict], crashes: dict[str, list[str]]) -> list[dict]:
    """Return the rows of images with what failed marked, and a row for each participant without any image.

    Parameters
    ----------
    rows : list of dict
        With `participant` and `name`.
    statuses : dict of participant -> row of participants.tsv
    crashes : dict of participant -> names
        Of what failed in the latest run: of an image, or of an image and `_thickness`; or of something else, which
        says nothing of an image.
    """
    crashes = {whose: [name for name in found if name.startswith('sub-')] for whose, found in crashes.items()}
    names = {row['name'] for row in rows}
    marked = []
    for row in rows:
        failed, message = crashes.get(row['participant'], []), message_of(statuses.get(row['participant']))
        if row['name'] in failed:
            row = row | {'status': 'failed', 'message': message}
        elif f'{row["name"]}_thickness' in failed:
            row = row | {'warnings': [*row['warnings'], f'Its thickness was not measured: {message}']}
        marked.append(row)
    for participant, status in statuses.items():
        lost = [name for name in crashes.get(participant, []) if not name.endswith('_thickness') and name not in names]
        if not lost and not any(row['participant'] == participant for row in rows):
            lost = [participant]
        elif not lost and status['status'] == 'failed' and not crashes.get(participant):
            lost = [participant]  # an image that could not be read at all leaves no crash file
        marked += [
            {'participant': participant, 'name': name, 'status': status['status'], 'message': message_of(status)}
            for name in lost
        ]
    return sorted(marked, key=lambda row: (row['participant'], row['name']))


def message_of(status: dict | None) -> str:
    """Return what the run said of a participant; empty if nothing."""
    return str((status or {}).get('message') or '')


# -------------------------------------------------------------------------------------------------- ratings


def merge_ratings(rows: list[dict]) -> list[dict]:
    """Return ratings with one row per image and rater, the latest; sorted by image and rater.

    Rows without an image or with an unknown rating are left out; a rater without a name is `rater`.
    """
    latest = {}
    for row in rows:
        row = {column: text_of(row.get(column)) for column in RATING_COLUMNS}
        row['rater'] = row['rater'] or 'rater'
        key = row['image'], row['rater']
        if not row['image'] or row['rating'] not in ('', *RATINGS):
            continue
        if key not in latest or row['rated_at'] >= latest[key]['rated_at']:
            latest[key] = row
    return [latest[key] for key in sorted(latest)]


def text_of(value: float | str | None) -> str:
    """Return a cell of a table as text on one line; empty if unknown. Whole numbers were perhaps labels such as `2`."""
    if value is None or value == 'n/a':
        return ''
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return ' '.join(str(value).split())


def agreement(ratings: list[dict]) -> list[dict]:
    """Return the agreement of each two raters on the images that both rated, three categories.

    Parameters
    ----------
    ratings : list of dict
        As `merge_ratings` returns.

    Returns
    -------
    list of dict with `raters` (two names), `n` images, `agree` (of them), `kappa` (Cohen 1960; NaN if not defined).
    Two ratings of one image count only if they are of the same filling (`run_hash`).
    """
    by_rater = {}
    for row in ratings:
        if row['rating']:
            by_rater.setdefault(row['rater'], {})[row['image'], row['run_hash']] = row['rating']
    found = []
    for one, other in itertools.combinations(sorted(by_rater), 2):
        images = sorted(by_rater[one].keys() & by_rater[other].keys())
        if images:
            pair = [[by_rater[rater][image] for image in images] for rater in (one, other)]
            agree = int(np.sum(np.equal(pair[0], pair[1])))
            found.append({'raters': (one, other), 'n': len(images), 'agree': agree})
            found[-1]['kappa'] = statistics.cohen_kappa(*pair)
    return found


# -------------------------------------------------------------------------------------------------- page


def render(content: dict) -> str:
    """Return the page.

    Parameters
    ----------
    content : dict
        `name` of the study, `version`, `command`, `rows` (see `describe_image`, with `participant`, `session`,
        `report`: a relative address or None, `thumbnail`: JPEG bytes or None, `worst`: label, `seconds`), `ratings`
        (see `merge_ratings`), `has_group`: whether there is a `group.html`.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(look=page.status_look, jpeg_uri=jpeg_uri, number=number)
    rows = [row | {'index': index} for index, row in enumerate(content['rows'])]
    return environment.get_template(TEMPLATE).render(
        **content | {'rows': rows},
        counts=count(rows),
        agreement=agreement(content['ratings']),
        columns=list(RATING_COLUMNS),
        rating_names=RATINGS,
        thumbnail_px=THUMBNAIL_PX,
    )


def count(rows: list[dict]) -> dict[str, int]:
    """Return how many rows have each status, the most frequent first."""
    statuses = [row['status'] for row in rows]
    return dict(sorted(((status, statuses.count(status)) for status in set(statuses)), key=lambda item: -item[1]))


def jpeg_uri(jpeg: bytes) -> str:
    """Return a picture as an address that holds its own bytes."""
    return f'data:image/jpeg;base64,{base64.b64encode(jpeg).decode("ascii")}'


def number(value: float | None, decimals: int = 2) -> str:
    """Return a number with fixed decimals; empty if it is not known."""
    return f'{value:.{decimals}f}' if page.is_number(value) else ''
