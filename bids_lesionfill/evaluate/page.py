"""The page of an evaluation: scores of lesion fillers become figures, tables and one HTML file that stands alone.

Pictures are inside the page as well as under `figures/`, and nothing in it has an address on a network.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..layout import files
from . import pictures
from .tables import COLOURS, FAMILY_WORDS, KINDS, describe_kind, in_order

TEMPLATE = 'page.html.jinja'


def write_page(
    output_dir: Path,
    summary: Sequence[dict[str, Any]],
    comparisons: Sequence[dict[str, Any]],
    examples: Sequence[dict[str, Any]],
    info: dict[str, Any],
    artefacts: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write `evaluation.html` and the pictures under `figures/`; each file is whole or absent.

    Parameters
    ----------
    output_dir : path
    summary : list of dict
        One per kind, dilation, group and method: `kind`, `dilation`, `group`, `method`, `family` ('model', 'baseline'
        or 'control'), `n`, and for each of `METRICS` its key, and the key with `_low` and `_high`; may be NaN.
    comparisons : list of dict
        `kind`, `dilation`, `metric`, `method`, `other`, `difference` (method - other), `low`, `high`, `n`.
    examples : list of dict
        `title`, `kind`, `mask` ((X, Y, Z) bool, RAS), `images`: dict of name -> (X, Y, Z) float array, white matter
        at +0.5, background at -1. The first image is the one that the others are compared with.
    info : dict
        What the table of provenance says, by its titles. Two keys are read here: `dilation` (dict of kind -> the
        dilation that is shown first; otherwise the smallest) and `kinds` (dict of kind -> what it is, in words).
    artefacts : list of dict
        Like `examples`, with `caption`, `view` ('axial' or 'sagittal') and, to show some images only, `methods`.

    Returns
    -------
    Path of the page
    """
    output_dir = Path(output_dir)
    families = {row['method']: row['family'] for row in summary}
    kinds = [
        describe_kind(kind, summary, comparisons, info) for kind in in_order([row['kind'] for row in summary], KINDS)
    ]
    gallery = [
        (f'example-{n}', example, pictures.draw_example(example, families))
        for n, example in enumerate(examples, start=1)
    ]
    figures = {name: png for name, _, png in gallery}
    panels = [kind for kind in kinds if kind['plotted']]
    if panels:
        figures['scores'] = pictures.draw_scores(panels)
    if artefacts:
        figures['artefacts'] = pictures.draw_artefacts(artefacts, families)
    for name, png in figures.items():
        files.write_bytes(output_dir / 'figures' / f'{name}.png', png)
    page = page_template().render(
        kinds=kinds,
        panels=panels,
        gallery=[(name, example) for name, example, _ in gallery],
        artefacts=artefacts,
        figures=figures,
        families=in_order(families.values(), COLOURS),
        family_words=FAMILY_WORDS,
        colours=COLOURS,
        n_methods=len(families),
        provenance={title: flat(value) for title, value in info.items() if title not in ('dilation', 'kinds')},
        grey_window=window_words(pictures.GREY_WINDOW),
        artefact_window=window_words(pictures.ARTEFACT_WINDOW),
        difference=pictures.DIFFERENCE,
    )
    page_file = output_dir / 'evaluation.html'
    files.write_bytes(page_file, page.encode('utf-8'))
    return page_file


def page_template() -> jinja2.Template:
    """Return the template of the page, which escapes every value."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters['data_uri'] = lambda png: f'data:image/png;base64,{base64.b64encode(png).decode("ascii")}'
    return environment.get_template(TEMPLATE)


def window_words(window: tuple[float, float]) -> str:
    """Format the ends of a grey window as text."""
    return ' to '.join(f'{end:g}' for end in window).replace('-', '−')


def flat(value: int | str) -> str:
    """Format a value of the provenance as lines of text."""
    if isinstance(value, dict):
        return '\n'.join(f'{key}: {item}' for key, item in value.items())
    return '\n'.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
