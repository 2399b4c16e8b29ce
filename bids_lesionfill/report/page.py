"""Report of a participant as one HTML page."""

import base64
import functools
import json
import math
import re
import urllib.parse
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np

from ..layout import derivatives, files
from ..lesions import checks, measures

OUTLINE_COLOUR = '#ffa000'  # orange on grey: seen in protan, deutan and tritan colour blindness
GIVEN_COLOUR = '#40b4ff'  # blue: told from the orange in all three, too
TEMPLATE = 'report.html.jinja'
PICTURES = ('before', 'mask', 'after')  # of a figure
NIIVUE = Path(__file__).parent / 'niivue'  # as published, see its LICENSE
MAX_PAGE_BYTES = 15_000_000
TAG_BYTES = 200  # what stands around the data of a part, at most

STATUS_LOOKS = {'filled': 'good', 'synthesized': 'good', 'failed': 'bad'}
COLUMN_TITLES = {
    **{'label': 'Lesion', 'x_mm': 'x', 'y_mm': 'y', 'z_mm': 'z', 'mean_surrounding': 'Mean of surroundings'},
    **{'mean_touching': 'Mean next to it', 'mean_beyond': 'Mean beyond'},
}
UNITS = {'_mm3': 'mm³', '_mm': 'mm', '_ml': 'ml', '_percent': '%', '_voxels': 'voxels', '_voxel': 'voxel', '_s': 's'}


def write_participant(path: Path, participant: dict[str, Any]) -> None:
    """Write a participant's page, one self-contained HTML file of at most 15 MB; it is whole or absent.

    Of a larger one, the last pictures and volumes are written to files beside it, in `sub-01/figures`.

    Parameters
    ----------
    path : path
    participant : dict
        `label`, `version`, `command`, `status`, `message`, `methods`, maybe `key` (see `read_key`), and `images`: a
        list of dicts with `name`, `status` and any of `output`, `message`, `warnings`, `checks` (list of
        verdict.Check), `figures`, `viewer` (see `viewer.pack`), `stem` (how its files begin), `lesions`, `summary`,
        `provenance`.
    """
    html = render(arrange(participant, path.stem, math.inf))
    if len(html) > MAX_PAGE_BYTES:
        text_bytes = len(render(arrange(participant, path.stem, 0)))
        arranged = arrange(participant, path.stem, MAX_PAGE_BYTES - text_bytes)
        for name, data in files_beside(arranged).items():
            files.write_bytes(path.parent / name, data)
        html = render(arranged)
    files.write_bytes(path, html)


def arrange(participant: dict[str, Any], folder: str, room: float) -> dict[str, Any]:
    """Return the content of a page in which each part has a place: inside, as long as there is room, or `beside`.

    Parameters
    ----------
    participant : dict
        See `write_participant`.
    folder : str
        Next to the page.
    room : float
        Bytes for pictures, and then volumes.
    """
    images = [dict(image) for image in participant.get('images') or ()]

    def place(part: dict[str, Any], name: str, size: int) -> dict[str, Any]:
        nonlocal room
        needed = base64_bytes(size) + TAG_BYTES
        is_inside = needed <= room
        room -= needed if is_inside else 0
        return part | {'beside': None if is_inside else f'{folder}/figures/{name}'}

    stems = [image.get('stem') or image.get('name') for image in images]
    for image, stem in zip(images, stems, strict=True):
        image['figures'] = [
            place(figure, f'{stem}_{figure["name"]}', sum(len(figure[picture]) for picture in PICTURES))
            for figure in image.get('figures') or ()
        ]
    for image, stem in zip(images, stems, strict=True):
        if image.get('viewer'):
            image['viewer'] = place(image['viewer'], f'{stem}_viewer.js', len(image['viewer']['data']))
    return participant | {'images': images}


def base64_bytes(size: int) -> int:
    """Return the length of bytes in base64."""
    return 4 * -(-size // 3)


def files_beside(participant: dict[str, Any]) -> dict[str, bytes]:
    """Return the files that a page from `arrange` refers to, by their paths relative to it."""
    found = {}
    for image in participant['images']:
        for figure in image['figures']:
            if figure['beside']:
                found |= {f'{figure["beside"]}_{picture}.png': figure[picture] for picture in PICTURES}
        viewer = image.get('viewer')
        if viewer and viewer['beside']:
            # a script, since browsers read no other file for a page that was opened from a disk
            text = f'(window.volumes ??= {{}})[{json.dumps(viewer["beside"])}] = "{as_base64(viewer["data"])}";\n'
            found[viewer['beside']] = text.encode()
    return found


def render(participant: dict[str, Any]) -> bytes:
    """Return the page of a participant, whose content is from `arrange`, as HTML."""
    has_viewer = any(image.get('viewer') for image in participant['images'])
    html = page_template().render(
        participant=participant,
        outline_colour=OUTLINE_COLOUR,
        given_colour=GIVEN_COLOUR,
        niivue=niivue() if has_viewer else None,
        has_files=bool(files_beside(participant)),
    )
    return html.encode()


@functools.cache
def niivue() -> dict[str, str]:
    """Return NiiVue: `code`, compressed, in base64; and its `license`."""
    code = as_base64((NIIVUE / 'niivue.umd.js.gz').read_bytes())
    return {'code': code, 'license': (NIIVUE / 'LICENSE').read_text(encoding='utf-8')}


def read_key(path: Path) -> str | None:
    """Return the `key` with which a page was written, which tells what is in it; None if there is no page."""
    try:
        with open(path, encoding='utf-8') as file:
            found = re.search(r'<meta name="key" content="([0-9a-f]+)">', file.read(2000))
    except (OSError, ValueError):
        return None
    return found and found[1]


@functools.cache
def page_template() -> jinja2.Template:
    """Return the template of the page; all inserted values are escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        source=source,
        in_base64=as_base64,
        look=status_look,
        readable=readable,
        as_json=as_json,
        lesion_table=lesion_table,
        mostly_kept=mostly_kept,
        linked=linked,
    )
    environment.globals.update(min_judged_mm3=checks.MIN_JUDGED_MM3, bar_ml=measures.BAR_ML)
    return environment.get_template(TEMPLATE)


def source(figure: dict[str, Any], picture: str) -> str:
    """Return the address of a picture: a data URI that holds its bytes, or that of a file; see `arrange`."""
    if figure.get('beside'):
        return urllib.parse.quote(f'{figure["beside"]}_{picture}.png')
    return data_uri(figure[picture])


def data_uri(png: bytes) -> str:
    """Return a picture as a data URI that holds its bytes."""
    return f'data:image/png;base64,{as_base64(png)}'


def as_base64(data: bytes) -> str:
    """Return bytes as text in base64."""
    return base64.b64encode(data).decode('ascii')


def linked(sentence: str, number: int, figures: Sequence[dict[str, Any]]) -> str:
    """Return a sentence with lesions linked to their picture in image `number`, or to their table row."""
    pictured = {figure['name'] for figure in figures or ()}

    def link(match: re.Match) -> str:
        label = match[0]
        place = f'lesion-{label}' if f'lesion-{label}' in pictured else f'row-{label}'
        return f'<a href="#image-{number}-{place}">{label}</a>'

    def links(match: re.Match) -> str:
        return match[1] + re.sub(r'\d+', link, match[2])

    # Safe: what is put in is escaped first, and only numbers become links.
    escaped = str(markupsafe.escape(sentence))
    return markupsafe.Markup(re.sub(r'\b(Lesions? )(\d+(?:, \d+)*)', links, escaped))  # noqa: S704


def status_look(status: str) -> str:
    """Return the badge of a status: `good`, `bad` or `neutral`."""
    return STATUS_LOOKS.get(status, 'neutral')


def as_json(value: dict[str, Any]) -> str:
    """Return indented JSON; unsupported types (paths, numpy numbers) become text."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def readable(value: Any) -> str:
    """Return a summary value as text with a reasonable number of digits; `n/a` if unknown."""
    if isinstance(value, (bool, np.bool_)):
        return 'yes' if value else 'no'
    if is_number(value):
        return number_text(value, decimals_for([value]))
    if isinstance(value, (list, tuple, np.ndarray)):
        return ', '.join(readable(item) for item in value)
    return 'n/a' if value is None or isinstance(value, Real) else str(value)


def is_number(value: Any) -> bool:
    """Return True if a value is a finite int or float, of Python or numpy."""
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and math.isfinite(value)


def decimals_for(numbers: Sequence[float]) -> int:
    """Return the number of decimals to show: 0 for whole or large numbers, more for small ones."""
    if all(number == round(number) for number in numbers):
        return 0
    largest = max(abs(number) for number in numbers)
    return next((decimals for bound, decimals in ((200, 0), (10, 1), (1, 2), (0.01, 4)) if largest >= bound), 6)


def number_text(number: float, decimals: int) -> str:
    """Return a number as text with fixed decimals; never `-0.0`."""
    return f'{round(float(number), decimals) + 0.0:.{decimals}f}' if decimals else str(round(number))


def lesion_table(lesions: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return rows of lesions as a printable table, with all keys in order of appearance.

    Returns
    -------
    dict
        `titles`: list of str; `notes`: list of str, what the columns mean, '' if unknown; `rows`: one
        list per lesion of cells (`text`, `value`), where `value` is what the table is sorted by: the number, or ''
        if it is unknown, or the text.
    """
    keys = list(dict.fromkeys(key for lesion in lesions for key in lesion))
    columns = [lesion_cells([lesion.get(key) for lesion in lesions]) for key in keys]
    titles = [column_title(key) for key in keys]
    if 'given_volume_mm3' in keys:
        titles[keys.index('volume_mm3')] = 'Filled volume (mm³)'
    notes = [derivatives.LESION_COLUMNS.get(key, {}).get('Description', '') for key in keys]
    return {'titles': titles, 'notes': notes, 'rows': list(zip(*columns, strict=True))}


def mostly_kept(lesions: list[dict[str, Any]]) -> list[int]:
    """Return the labels of lesions of which less than half of the given mask was filled; the rest is fluid."""
    return [
        int(row['label'])
        for row in lesions
        if is_number(row.get('given_volume_mm3')) and row['volume_mm3'] < row['given_volume_mm3'] / 2
    ]


def lesion_cells(values: Sequence[Any]) -> list[Any]:
    """Return the cells of one column, all with the same number of decimals."""
    numbers = [value for value in values if is_number(value)]
    decimals = decimals_for(numbers) if numbers else 0
    return [
        (number_text(value, decimals), float(value)) if is_number(value) else text_cell(readable(value))
        for value in values
    ]


def text_cell(text: Any) -> Any:
    """Return a cell without a number; an unknown value is not sorted."""
    return text, '' if text == 'n/a' else text


def column_title(key: str) -> str:
    """Return a column title: `mean_before` gives 'Mean before', `volume_mm3` 'Volume (mm³)'."""
    suffix = next((suffix for suffix in UNITS if key.endswith(suffix)), '')
    words = key.removesuffix(suffix).replace('_', ' ')
    title = COLUMN_TITLES.get(key, words[:1].upper() + words[1:])
    title = 'SD' + title[2:] if title.startswith('Sd ') else title
    return f'{title} ({UNITS[suffix]})' if suffix else title
