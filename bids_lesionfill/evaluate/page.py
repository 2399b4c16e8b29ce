"""The page of an evaluation: scores of lesion fillers become figures, tables and one HTML file that stands alone.

Pictures are inside the page as well as under `figures/`, and nothing in it has an address on a network.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Collection, Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np

from ..layout import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPLATE = 'page.html.jinja'
DPI = 100
INK, SOFT = '#1c2430', '#5b6675'
COLOURS = {'model': '#1f6fd6', 'baseline': '#d0730f', 'control': '#7d8590'}  # apart in every colour blindness
FAMILY_WORDS = {'model': 'learned model', 'baseline': 'classical filler', 'control': 'control, nothing filled'}
OUTLINE_COLOUR = '#ffa000'
GREY_WINDOW = (-1, 1)
ARTEFACT_WINDOW = (-0.25, 0.8)  # grey to white matter, so that small deviations are seen
DIFFERENCE = 0.25
METHODS_PER_BAND = 6
CELL_PX = 190  # about the side of a picture in a gallery; every voxel is a whole number of pixels
ARTEFACT_PX = 300
ARTEFACT_MARGIN_VOXELS = 6
GAP_PX = 4
LABEL_PX = 24
TITLE_PX = 38
DASH = '–'

KINDS = {
    'clean': 'shapes of real lesions in healthy white matter; the mask is exact',
    'rim': 'painted lesions with soft edges; the mask that the method is given is too tight or ragged',
    'confluent': 'masks of patients and large lesions, registered into healthy brains; painted up to ventricles and '
    'cortex, into which the mask laps as masks of raters do; filled by the app, and in the mask that it used',
    'confluent-tight': 'the same, with a mask that is too tight or ragged',
    'patient': "all lesions of a patient, painted into a healthy brain; the mask is the painted lesions' half maximum",
}


class Metric(NamedTuple):
    """A column of the table of scores."""

    key: str
    title: str
    hint: str
    decimals: int
    goal: str  # 'low', 'high' or 'one': which value is the best


METRICS = (
    Metric('mse', 'MSE', 'M1, low is good', 5, 'low'),
    Metric('psnr', 'PSNR', 'M1, dB, high is good', 1, 'high'),
    Metric('ssim', 'SSIM', 'M1, high is good', 3, 'high'),
    Metric('m2_mse', 'M2 MSE', 'low is good', 5, 'low'),
    Metric('m2_psnr', 'M2 PSNR', 'dB, high is good', 1, 'high'),
    Metric('m2_ssim', 'M2 SSIM', 'high is good', 3, 'high'),
    Metric('border', 'Border', 'ratio, 1 is good', 2, 'one'),
    Metric('texture', 'Texture', 'ratio, 1 is good', 2, 'one'),
    Metric('seconds', 'Seconds', 'per case', 1, 'low'),
)
METRIC = {metric.key: metric for metric in METRICS}


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
        (f'example-{n}', example, draw_example(example, families)) for n, example in enumerate(examples, start=1)
    ]
    figures = {name: png for name, _, png in gallery}
    panels = [kind for kind in kinds if kind['plotted']]
    if panels:
        figures['scores'] = draw_scores(panels)
    if artefacts:
        figures['artefacts'] = draw_artefacts(artefacts, families)
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
        grey_window=window_words(GREY_WINDOW),
        artefact_window=window_words(ARTEFACT_WINDOW),
        difference=DIFFERENCE,
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


# Numbers and tables


def describe_kind(
    kind: str, summary: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]], info: dict[str, Any]
) -> dict[str, Any]:
    """Return all content of the page about one kind of case, as a dict."""
    rows = [row for row in summary if row['kind'] == kind]
    dilations = sorted({row['dilation'] for row in rows}, key=str)
    chosen = (info.get('dilation') or {}).get(kind)
    dilation = chosen if chosen in dilations else dilations[0]
    overall = {other: ranked([r for r in rows if (r['dilation'], r['group']) == (other, 'all')]) for other in dilations}
    main = overall.pop(dilation)
    here = [row for row in rows if row['dilation'] == dilation]
    paired = pairs(row for row in comparisons if (row['kind'], row['dilation']) == (kind, dilation))
    methods = in_order([row['method'] for row in main + here])
    groups = in_order([row['group'] for row in here if row['group'] != 'all'])
    by_volume = [group for group in groups if group.startswith('volume')]
    by_place = [group for group in groups if group not in by_volume]
    return {
        'name': kind,
        'words': (info.get('kinds') or {}).get(kind, KINDS.get(kind, '')),
        'mask': mask_words(dilation),
        'cases': counts(main),
        'headline': headline(main, paired),
        'plotted': [row for row in main if is_number(row['mse']) and row['mse'] > 0],
        'table': score_table(main),
        'others': [(mask_words(other), score_table(table)) for other, table in overall.items() if table],
        'groups': [
            (title, group_table(here, columns, methods))
            for title, columns in (('volume', by_volume), ('place', by_place))
            if columns
        ],
        'matrix': matrix(methods, paired),
    }


def mask_words(dilation: int | str | None) -> str:
    """Describe the mask that the methods were given, such as its dilation."""
    if not dilation:
        return 'mask not dilated'
    if dilation == 'app':
        return 'mask as the app used it'
    everywhere, _, rim = str(dilation).partition('+')
    if rim:
        return f'mask dilated by {everywhere}, rim by {rim} more'
    return f'mask dilated by {everywhere} voxel{"s" if everywhere != "1" else ""}'


def window_words(window: tuple[float, float]) -> str:
    """Format the ends of a grey window as text."""
    return ' to '.join(f'{end:g}' for end in window).replace('-', '−')


def headline(rows: list[dict[str, Any]], paired: Any) -> dict[str, str]:
    """Compare the best model with the best classical filler: text, and 'good', 'bad' or 'neutral'."""
    metric = next((m for m in (METRIC['mse'], METRIC['border']) if any(is_number(row[m.key]) for row in rows)), None)
    if metric is None:
        return {'text': 'there is nothing to compare.', 'verdict': 'neutral'}
    best: dict[str, Any] = {
        family: best_row([row for row in rows if row['family'] == family], metric) for family in COLOURS
    }
    words = [
        f'best {name} {best[family]["method"]}, {metric.title}{" ratio" if metric.goal == "one" else ""} '
        f'{with_interval(best[family], metric)}'
        if best[family]
        else f'no {name} was scored'
        for family, name in (('model', 'model'), ('baseline', 'classical filler'))
    ]
    text, verdict = '; '.join(words) + '.', 'neutral'
    if metric.key != 'mse':
        return {'text': f'no error was measured. Nearest to 1: {text}', 'verdict': verdict}
    if best['model'] and best['baseline']:
        pair = paired.get((best['model']['method'], best['baseline']['method']))
        if pair is None:
            return {'text': f'{text} They were not compared case by case.', 'verdict': verdict}
        verdict = {'low': 'good', 'high': 'bad', 'none': 'neutral'}[side(pair)]
        meaning = {
            'low': 'the interval excludes zero, the model is better.',
            'high': 'the interval excludes zero, the classical filler is better.',
            'none': 'the interval does not exclude zero, neither is shown to be better.',
        }[side(pair)]
        difference, low, high = (number(pair[key], metric.decimals) for key in ('difference', 'low', 'high'))
        text += f' Difference case by case {difference} ({low} to {high}, {pair["n"]} cases): {meaning}'
    return {'text': text, 'verdict': verdict}


def score_table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return methods by metrics, without metrics that have no value, and mark the best filler of each."""
    metrics = [metric for metric in METRICS if any(is_number(row.get(metric.key)) for row in rows)]
    best = {metric: best_row([row for row in rows if row['family'] != 'control'], metric) for metric in metrics}
    return {
        'metrics': metrics,
        'rows': [row | {'cells': [cell(row, metric, best[metric]) for metric in metrics]} for row in rows],
    }


def group_table(rows: list[dict[str, Any]], groups: Sequence[str], methods: Sequence[str]) -> dict[str, list[Any]]:
    """Return the table of methods by groups of cases, MSE only."""
    metric = METRIC['mse']
    columns = []
    for group in groups:
        members = {row['method']: row for row in rows if row['group'] == group}
        best = best_row([row for row in members.values() if row['family'] != 'control'], metric)
        title = group.removeprefix('volume').strip()
        columns.append((title, counts(members.values()), [cell(members.get(m), metric, best) for m in methods]))
    families = {row['method']: row['family'] for row in rows}
    return {
        'columns': [(title, cases) for title, cases, _ in columns],
        'rows': [
            {'method': method, 'family': families[method], 'cells': [cells[n] for _, _, cells in columns]}
            for n, method in enumerate(methods)
        ],
    }


def cell(row: dict[str, Any] | None, metric: Metric, best: dict[str, Any] | None) -> dict[str, Any]:
    """Return one score: its text, interval, sort value, and a flag if no filler is better."""
    row = row or {}
    value: Any = row.get(metric.key)
    low, high = (row.get(f'{metric.key}_{end}') for end in ('low', 'high'))
    known = is_number(value)
    return {
        'text': number(value, metric.decimals),
        'interval': f'{number(low, metric.decimals)}–{number(high, metric.decimals)}' if is_number(low, high) else '',
        'value': float(value) if known else '',
        'best': known and best is not None and row['family'] != 'control' and value == best[metric.key],
    }


def matrix(methods: Sequence[str], paired: dict[tuple[str, str], dict[str, Any]]) -> dict[str, list[Any]] | None:
    """Return MSE differences, row method minus column method; None if there is no pair."""
    methods = [method for method in methods if any((method, other) in paired for other in methods)]
    rows = [(method, [difference_cell(paired.get((method, other))) for other in methods]) for method in methods]
    return {'methods': methods, 'rows': rows} if rows else None


def difference_cell(pair: Any) -> dict[str, Any] | None:
    """Return one paired difference as text with its colour class; None if nothing was compared."""
    if pair is None:
        return None
    difference, low, high = (number(pair[key], METRIC['mse'].decimals) for key in ('difference', 'low', 'high'))
    sign = '+' if is_number(pair['difference']) and pair['difference'] > 0 else ''
    return {'text': sign + difference, 'side': side(pair), 'interval': f'{low} to {high}, {pair["n"]} cases'}


def pairs(comparisons: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return paired MSE differences by (method, other), in both directions."""
    found = {}
    for row in comparisons:
        if row['metric'] == 'mse':
            back = {'difference': -row['difference'], 'low': -row['high'], 'high': -row['low'], 'n': row['n']}
            found[row['method'], row['other']] = row
            found.setdefault((row['other'], row['method']), back)
    return found


def side(pair: dict[str, Any]) -> str:
    """Return the side of zero of an interval: 'low', 'high', or 'none' (contains it, or unknown)."""
    if not is_number(pair['low'], pair['high']):
        return 'none'
    return 'low' if pair['high'] < 0 else 'high' if pair['low'] > 0 else 'none'


def ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows by MSE, the best first and unknown ones last."""
    return sorted(rows, key=lambda row: row['mse'] if is_number(row['mse']) else math.inf)


def best_row(rows: Iterable[dict[str, Any]], metric: Metric) -> dict[str, Any] | None:
    """Return the row with the best value of a metric; None if no row has a value."""
    badness = {'low': float, 'high': lambda value: -value, 'one': lambda value: abs(value - 1)}[metric.goal]
    known = [row for row in rows if is_number(row.get(metric.key))]
    return min(known, key=lambda row: badness(row[metric.key]), default=None)


def with_interval(row: dict[str, Any], metric: Metric) -> str:
    """Format a score as `0.00121 (0.00101 to 0.00143)`, or the value alone."""
    value, low, high = (row.get(key) for key in (metric.key, f'{metric.key}_low', f'{metric.key}_high'))
    interval = f' ({number(low, metric.decimals)} to {number(high, metric.decimals)})' if is_number(low, high) else ''
    return number(value, metric.decimals) + interval


def counts(rows: Collection[dict[str, Any]]) -> str:
    """Return the number of cases, as a range if the methods differ."""
    numbers = sorted({row['n'] for row in rows})
    return ' to '.join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1]))) if numbers else '0'


def number(value: Any, decimals: int) -> str:
    """Format a number with fixed decimals and a true minus sign, never `-0.0`; a dash if unknown."""
    return f'{round(float(value), decimals) + 0.0:.{decimals}f}'.replace('-', '−') if is_number(value) else DASH


def is_number(*values: Any) -> bool:
    """Return True if all values are finite ints or floats, of Python or numpy."""
    return all(isinstance(value, Real) and math.isfinite(value) for value in values)


def in_order(names: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """Return unique names: known ones in their order, then the others as they appear."""
    names = list(dict.fromkeys(names))
    return [name for name in known if name in names] + [name for name in names if name not in known]


def flat(value: int | str) -> str:
    """Format a value of the provenance as lines of text."""
    if isinstance(value, dict):
        return '\n'.join(f'{key}: {item}' for key, item in value.items())
    return '\n'.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


# Pictures


def new_figure(width_px: int, height_px: int) -> Figure:
    """Return an empty figure, drawn by Agg regardless of the user's settings."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor='white')


def png_of(figure: Figure, dpi: float = DPI) -> bytes:
    """Return a figure as the bytes of a reproducible PNG."""
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=dpi, metadata={'Software': None})
    return file.getvalue()


def place(figure: Figure, left_px: float, top_px: float, width_px: float, height_px: int) -> Axes:
    """Add axes without frame, positioned from the upper left corner."""
    across_px, up_px = figure.get_size_inches() * DPI
    bottom = 1 - (top_px + height_px) / up_px
    axes = figure.add_axes((left_px / across_px, bottom, width_px / across_px, height_px / up_px))
    axes.set_axis_off()
    return axes


def write(figure: Figure, left_px: float, top_px: float, text: str, **options: Any) -> None:
    """Write text positioned from the upper left corner, without parsing names as formulae."""
    page_px = figure.get_size_inches() * DPI
    style: dict[str, Any] = {'fontsize': 8, 'color': INK, 'ha': 'center', 'va': 'center', 'parse_math': False}
    figure.text(left_px / page_px[0], 1 - top_px / page_px[1], text, **(style | options))


def draw_scores(kinds: Sequence[dict[str, Any]]) -> bytes:
    """Plot MSE with 95 % intervals, one panel per kind, and a line at the best classical filler.

    Parameters
    ----------
    kinds : list of dict
        From `describe_kind`.

    Returns
    -------
    bytes, a PNG
    """
    names_px, panel_px, row_px, head_px, foot_px = 205, 285, 27, 62, 78
    n_rows = max(len(kind['plotted']) for kind in kinds)
    width_px = max(len(kinds) * (names_px + panel_px) + 20, 760)
    figure = new_figure(width_px, head_px + n_rows * row_px + foot_px)
    for n, kind in enumerate(kinds):
        rows = kind['plotted']
        left_px = n * (names_px + panel_px)
        axes = place(figure, left_px + names_px, head_px, panel_px, len(rows) * row_px)
        axes.set_axis_on()
        draw_panel(axes, rows)
        write(figure, left_px + names_px, 20, kind['name'], ha='left', fontsize=13, fontweight='bold')
        note = f'{kind["cases"]} cases, {kind["mask"]}'
        write(figure, left_px + names_px, 41, note, ha='left', fontsize=9, color=SOFT)
        for position, row in enumerate(rows):
            where = left_px + names_px - 10, head_px + (position + 0.5) * row_px
            name = shortened(row['method'], 27)
            write(figure, *where, name, ha='right', fontsize=9, color=COLOURS[row['family']])
    present = in_order([row['family'] for kind in kinds for row in kind['plotted']], COLOURS)
    keys = [('●', FAMILY_WORDS[family], COLOURS[family]) for family in present]
    if 'baseline' in present:
        keys.append(('|', 'best classical filler: what lies left of it is better', COLOURS['baseline']))
    for n, (sign, words, colour) in enumerate(keys):
        where = 30 + n * 165, head_px + n_rows * row_px + 60
        write(figure, *where, sign, color=colour, fontsize=10, fontweight='bold')
        write(figure, where[0] + 11, where[1], words, ha='left', fontsize=9, color=colour)
    return png_of(figure, dpi=1.6 * DPI)


def shortened(name: str, length: int) -> str:
    """Shorten a name to fit next to a panel."""
    return name if len(name) <= length else name[: length - 1] + '…'


def draw_panel(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Plot the dots and intervals of one kind, the first row at the top."""
    best = best_row([row for row in rows if row['family'] == 'baseline'], METRIC['mse'])
    values = np.array([row['mse'] for row in rows])
    ends = [row[f'mse_{end}'] for row in rows for end in ('low', 'high')]
    seen = np.concatenate([values, [end for end in ends if is_number(end) and end > 0]])
    low, high = max(seen.min(), values.min() / 10) / 1.25, seen.max() * 1.25
    axes.set(xscale='log', xlim=(low, high), ylim=(len(rows) - 0.5, -0.5), yticks=[])
    axes.hlines(range(len(rows)), low, high, color='#eceff3', linewidth=0.8, zorder=0)
    if best:
        axes.axvspan(low, best['mse'], color='#eaf2fc', zorder=-1, linewidth=0)
        axes.axvline(best['mse'], color=COLOURS['baseline'], linewidth=1, zorder=1)
    for position, row in enumerate(rows):
        colour = COLOURS[row['family']]
        if is_number(row['mse_low'], row['mse_high']):
            interval = max(row['mse_low'], low), row['mse_high']
            axes.plot(interval, (position, position), color=colour, linewidth=2.2, alpha=0.55, solid_capstyle='round')
        axes.plot(row['mse'], position, 'o', color=colour, markersize=6.5, markeredgecolor='white', zorder=3)
    draw_log_ticks(axes, low, high)
    for spine in ('top', 'left', 'right'):
        axes.spines[spine].set_visible(False)
    axes.spines['bottom'].set_color('#98a1ad')
    axes.set_xlabel('MSE inside the mask (M1), 95 % interval', fontsize=8.5, color=SOFT)


def draw_log_ticks(axes: Axes, low: float, high: float) -> None:
    """Draw plain-number ticks at 1, 2 and 5 of every decade, or at powers of ten if there are many."""
    steps = (1, 2, 5) if high / low < 60 else (1, 3) if high / low < 1000 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    axes.minorticks_off()
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set_xticklabels([f'{tick:.6f}'.rstrip('0').rstrip('.') for tick in axes.get_xticks()], fontsize=8, color=SOFT)
    axes.tick_params(length=3, color='#98a1ad')


def draw_example(example: dict[str, Any], families: dict[str, str]) -> bytes:
    """Draw one case by all methods, axial, sagittal and difference from the first image: PNG bytes."""
    mask, images = np.asarray(example['mask'], dtype=bool), example['images']
    reference, *others = images
    n_bands = max(1, -(-len(others) // METHODS_PER_BAND))
    per_band = max(1, -(-len(others) // n_bands))
    n_x, n_y, n_z = mask.shape
    scale = max(1, round(CELL_PX / max(n_x, n_y)))
    width_px, rows_px = max(n_x, n_y) * scale, (n_y * scale, n_z * scale, n_y * scale)
    band_px = TITLE_PX + sum(rows_px) + 3 * GAP_PX + 8
    figure = new_figure(LABEL_PX + (per_band + 1) * (width_px + GAP_PX), n_bands * band_px)
    tops_px = TITLE_PX + np.cumsum((0, *rows_px[:2])) + np.arange(3) * GAP_PX
    for band in range(n_bands):
        names = [reference, *others[band * per_band : (band + 1) * per_band]]
        for top_px, height_px, label in zip(tops_px, rows_px, ('axial', 'sagittal', 'difference')):
            write(figure, LABEL_PX / 2, band * band_px + top_px + height_px / 2, label, rotation=90, color=SOFT)
        for column, name in enumerate(names):
            left_px = LABEL_PX + column * (width_px + GAP_PX)
            title = two_lines(name, width_px)
            colour = COLOURS.get(families.get(name, ''), INK)
            where = left_px + width_px / 2, band * band_px + TITLE_PX / 2
            write(figure, *where, title, fontsize=9, color=colour, fontweight='bold')
            difference = images[name] - images[reference]
            for row, (top_px, height_px) in enumerate(zip(tops_px, rows_px)):
                box = left_px, band * band_px + top_px, width_px, height_px
                if row == 2 and column == 0:
                    draw_difference_key(figure, box, reference)
                    continue
                axes = place(figure, *box)
                look = {'vmin': GREY_WINDOW[0], 'vmax': GREY_WINDOW[1], 'cmap': 'gray'}
                if row == 2:
                    look = {'vmin': -DIFFERENCE, 'vmax': DIFFERENCE, 'cmap': 'RdBu_r'}
                volume = difference if row == 2 else images[name]
                view = 'sagittal' if row == 1 else 'axial'
                draw_slice(axes, volume, mask, view, outline=column == 0, **look)
    return png_of(figure)


def two_lines(name: str, width_px: int) -> str:
    """Wrap a name above a picture to two lines, in bold letters of 9 or 10 points."""
    return '\n'.join(textwrap.wrap(name, max(width_px // 9, 8), max_lines=2, placeholder='…'))


def draw_difference_key(figure: Figure, box: Sequence[int], reference: str) -> None:
    """Draw the colour key of the differences in the unused difference cell of the reference."""
    left_px, top_px, width_px, height_px = box
    middle_px = left_px + width_px / 2
    axes = place(figure, left_px + width_px * 0.15, top_px + height_px / 2, width_px * 0.7, 8)
    axes.imshow(np.linspace(-1, 1, 101)[None], cmap='RdBu_r', aspect='auto')
    text = '\n'.join(textwrap.wrap(f'image minus {reference}', max(width_px // 7, 8)))
    write(figure, middle_px, top_px + height_px / 2 - 18, text, color=SOFT)
    for position, tick in ((0.15, -DIFFERENCE), (0.5, 0), (0.85, DIFFERENCE)):
        where = left_px + position * width_px, top_px + height_px / 2 + 20
        write(figure, *where, f'{tick:+g}'.replace('-', '−') if tick else '0', color=SOFT)


def draw_artefacts(artefacts: Sequence[dict[str, Any]], families: dict[str, str]) -> bytes:
    """Draw artefacts enlarged around the mask, one row each below its title and caption: PNG bytes."""
    methods = [list(artefact.get('methods') or artefact['images']) for artefact in artefacts]
    page_px = max(2, *map(len, methods)) * (ARTEFACT_PX + GAP_PX)
    layout, top_px = [], 0
    for artefact in artefacts:
        mask = np.asarray(artefact['mask'], dtype=bool)
        box = around(mask)
        n_x, n_y, n_z = mask[box].shape
        shape = (n_y, n_z) if artefact['view'] == 'sagittal' else (n_x, n_y)
        scale = max(1, ARTEFACT_PX // max(shape))
        caption = '\n'.join(textwrap.wrap(artefact.get('caption', ''), page_px // 7))
        image_px = top_px + 34 + 15 * len(caption.splitlines()) + TITLE_PX
        layout.append((mask[box], box, caption, top_px, image_px, shape[0] * scale, shape[1] * scale))
        top_px = image_px + shape[1] * scale + 14
    figure = new_figure(page_px, top_px)
    look = {'vmin': ARTEFACT_WINDOW[0], 'vmax': ARTEFACT_WINDOW[1], 'cmap': 'gray'}
    for artefact, names, (mask, box, caption, top_px, image_px, width_px, height_px) in zip(artefacts, methods, layout):
        write(figure, 4, top_px + 18, artefact['title'], ha='left', fontsize=12, fontweight='bold')
        write(figure, 4, top_px + 32, caption, ha='left', va='top', fontsize=9, color=SOFT)
        for column, name in enumerate(names):
            left_px = column * (width_px + GAP_PX)
            title = two_lines(name, width_px)
            colour = COLOURS.get(families.get(name, ''), INK)
            where = left_px + width_px / 2, image_px - TITLE_PX / 2
            write(figure, *where, title, fontsize=10, fontweight='bold', color=colour)
            axes = place(figure, left_px, image_px, width_px, height_px)
            draw_slice(axes, artefact['images'][name][box], mask, artefact['view'], outline=column == 0, **look)
    return png_of(figure)


def around(mask: np.ndarray) -> tuple[slice, ...]:
    """Return slices of the box of a mask plus a few voxels; the full array if the mask is empty."""
    if not mask.any():
        return tuple(slice(0, size) for size in mask.shape)
    margin = ARTEFACT_MARGIN_VOXELS
    return tuple(
        slice(max(int(found.min()) - margin, 0), min(int(found.max()) + margin + 1, size))
        for found, size in zip(np.nonzero(mask), mask.shape)
    )


def draw_slice(axes: Axes, volume: np.ndarray, mask: np.ndarray, view: str, outline: bool, **look: Any) -> None:
    """Draw the slice with most of the mask, voxel by voxel; patient's left, or back, is on the right."""
    axis = {'sagittal': 0, 'axial': 2}[view]
    counts = mask.sum(axis=tuple(a for a in range(3) if a != axis))
    index = int(counts.argmax()) if mask.any() else len(counts) // 2
    axes.imshow(np.take(volume, index, axis).T[:, ::-1], origin='lower', interpolation='nearest', **look)
    within = np.take(mask, index, axis).T[:, ::-1]
    if outline and within.any():
        fine = np.kron(within, np.ones((8, 8)))  # so that the outline follows the voxels' sides
        across, up = ((np.arange(size) + 0.5) / 8 - 0.5 for size in fine.shape[::-1])
        axes.contour(across, up, fine, levels=[0.5], colors=[OUTLINE_COLOUR], linewidths=0.8)
