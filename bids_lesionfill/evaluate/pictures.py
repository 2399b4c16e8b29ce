"""Pictures of an evaluation: scores, cases by all methods, artefacts; bytes of PNG."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .tables import COLOURS, FAMILY_WORDS, METRIC, best_row, in_order, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
INK, SOFT = '#1c2430', '#5b6675'
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


def draw_difference_key(figure: Figure, box: Sequence[float], reference: str) -> None:
    """Draw the colour key of the differences in the unused difference cell of the reference."""
    left_px, top_px, width_px, height_px = box
    middle_px = left_px + width_px / 2
    axes = place(figure, left_px + width_px * 0.15, top_px + height_px / 2, width_px * 0.7, 8)
    axes.imshow(np.linspace(-1, 1, 101)[None], cmap='RdBu_r', aspect='auto')
    text = '\n'.join(textwrap.wrap(f'image minus {reference}', max(int(width_px) // 7, 8)))
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
