"""The visual report: image arrays and tables become PNG pictures and one HTML page per participant.

A page stands alone: pictures are inside it, and nothing in it has an address on a network.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import page
from .closeup import Masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_SLICES = 8
MAX_LESIONS = 3
ZOOM_MM = 70  # side of a view through a lesion
GREYS = colormaps['gray'].resampled(128)  # as smooth to the eye as 256 levels, and a third less to store
OUTLINE = patheffects.withStroke(linewidth=2, foreground='black')
ON_IMAGE: dict[str, Any] = {'color': 'white', 'fontsize': 9, 'path_effects': [OUTLINE]}
ON_BLACK: dict[str, Any] = {'color': 'white', 'fontsize': 9}
DPI = 100
GAP_PX = 4

# Radiological convention: the horizontal axis (x, or y in sagittal views) runs from right to left of the picture.
VIEWS = {'axial': (2, 'R', 'L'), 'coronal': (1, 'R', 'L'), 'sagittal': (0, 'A', 'P')}


class Panel(NamedTuple):
    """One slice of a picture and the part of it that is seen."""

    view: str  # key of VIEWS
    index: int  # type: ignore[assignment]  # slice; `tuple.index` is not asked for
    label: str
    limits_mm: Sequence[tuple[float, float]]  # (low, high) of the horizontal, of the vertical axis; voxel 0 is at 0 mm


def fill_figures(
    before: np.ndarray,
    lesion_mask: np.ndarray,
    after: np.ndarray,
    voxel_sizes_mm: Sequence[float] | np.ndarray,
    lesions: list[dict[str, Any]],
    given_mask: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Plot an image before and after filling: overview, unusual lesions, most changed lesions.

    Parameters
    ----------
    before, after : (X, Y, Z) float array
        RAS+ orientation, raw intensities.
    lesion_mask : (X, Y, Z) bool array
        The mask that was filled; may be empty.
    voxel_sizes_mm : 3 floats
    lesions : list of dict
        `label`, `centre_voxel` (3 ints, this grid), `mean_before`, `mean_after`, `volume_mm3` of each lesion; maybe
        `suspicion` (above 1: unusual) and `reason` (why, a sentence).
    given_mask : (X, Y, Z) bool array, optional
        The mask that was given: its outline is drawn, too.

    Returns
    -------
    list of dict
        `name`, `title`, `caption`, and as PNG bytes `before`, `mask`, `after`: of one size and one grey window.
    """
    if not before.shape == lesion_mask.shape == after.shape:
        raise ValueError(f'shapes differ: before {before.shape}, mask {lesion_mask.shape}, after {after.shape}')
    before, after = np.nan_to_num(before), np.nan_to_num(after)
    lesion_mask = np.asarray(lesion_mask, dtype=bool)
    head = foreground(before)
    grey_max = grey_maximum(before, head, lesion_mask)
    pictured = sorted(lesions, key=worth_a_picture, reverse=True)[:MAX_LESIONS]
    both = Masks(lesion_mask, given_mask)
    return [overview(before, both, after, voxel_sizes_mm, head | lesion_mask, grey_max)] + [
        zoom(before, both, after, voxel_sizes_mm, lesion, grey_max) for lesion in pictured
    ]


def overlay_figures(
    volume: np.ndarray,
    other: np.ndarray,
    lesion_mask: np.ndarray,
    voxel_sizes_mm: Sequence[float] | np.ndarray,
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Plot two registered images of a visit on one grid, as pairs that alternate like before and after.

    Parameters
    ----------
    volume, other : (X, Y, Z) float array, RAS+
    lesion_mask : (X, Y, Z) bool array
    voxel_sizes_mm : 3 floats
    names : (str, str)
        Modalities of the two.

    Returns
    -------
    list of one dict, as `fill_figures`, with `tags`: what the pictures show.
    """
    volume, other = np.nan_to_num(volume), np.nan_to_num(other)
    head = foreground(volume)
    limits_mm = [crop_limits(head | lesion_mask, axis, voxel_sizes_mm[axis]) for axis in (0, 1)]
    slices = lesion_slices(lesion_mask) if lesion_mask.any() else evenly_spread(head)
    panels = [Panel('axial', int(z), f'z {z}', limits_mm) for z in slices]

    def draw(image: np.ndarray, outlines: list[Any]) -> bytes:
        grey_max = grey_maximum(image, foreground(image), np.zeros_like(lesion_mask))
        legend = 'patient left = image right\nz: slice, 0 = lowest'
        return draw_panels(image, outlines, voxel_sizes_mm, panels, legend, 50, grey_max, 3, 200)

    return [
        {
            'name': 'overlay',
            'title': f'{names[0]} and {names[1]} after registration',
            'caption': f'The {names[1]} was moved to the {names[0]}, because their headers do not agree. Edges of the '
            'brain and of the ventricles should not jump between the two.',
            'tags': (names[0], names[1], f'{names[0]} + mask'),
            'before': draw(volume, []),
            'mask': draw(volume, Masks(lesion_mask).outlines),
            'after': draw(other, []),
        }
    ]


def overview(
    before: np.ndarray,
    lesion_masks: Masks,
    after: np.ndarray,
    voxel_sizes_mm: Sequence[float] | np.ndarray,
    head: np.ndarray,
    grey_max: float,
) -> dict[str, Any]:
    """Plot up to eight axial slices, cropped by a mask; other arguments as in `fill_figures`."""
    lesion_mask = lesion_masks.used
    limits_mm = [crop_limits(head, axis, voxel_sizes_mm[axis]) for axis in (0, 1)]
    slices = lesion_slices(lesion_mask) if lesion_mask.any() else evenly_spread(head)
    panels = [Panel('axial', int(z), f'z {z}', limits_mm) for z in slices]
    legend = f'patient left = image right\nz: slice, 0 = lowest\ngrey 0 to {page.readable(grey_max)}'
    chosen = 'The axial slices that hold most of the mask' if lesion_mask.any() else 'Axial slices (the mask is empty)'
    return {
        'name': 'overview',
        'title': 'Overview',
        'caption': f'{chosen}, cropped to the head. {convention(grey_max)}',
        **draw_three(before, lesion_masks, after, voxel_sizes_mm, panels, legend, 50, grey_max, 3, width_px=200),
    }


def zoom(
    before: np.ndarray,
    lesion_masks: Masks,
    after: np.ndarray,
    voxel_sizes_mm: Sequence[float] | np.ndarray,
    lesion: dict[str, Any],
    grey_max: float,
) -> dict[str, Any]:
    """Plot three views through the centre of one lesion; arguments as in `fill_figures`."""
    centre = np.clip(np.rint(lesion['centre_voxel']).astype(int), 0, np.array(before.shape) - 1)
    limits_mm = [(middle - ZOOM_MM / 2, middle + ZOOM_MM / 2) for middle in centre * np.asarray(voxel_sizes_mm)]
    panels = []
    for view, (axis, _, _) in VIEWS.items():
        seen = tuple(limits_mm[a] for a in range(3) if a != axis)
        panels.append(Panel(view, int(centre[axis]), view, seen))
    volume = f'{lesion["volume_mm3"]:.{0 if lesion["volume_mm3"] >= 10 else 1}f} mm³'
    name = f'Lesion {lesion["label"]}: {volume}'
    means = f'{page.readable(lesion["mean_before"])} to {page.readable(lesion["mean_after"])}'
    legend = f'{name}\nmean {means}\n\npatient left = image right\ngrey 0 to {page.readable(grey_max)}'
    return {
        'name': f'lesion-{lesion["label"]}',
        'label': lesion['label'],
        'title': name,
        'reason': lesion.get('reason', ''),
        'caption': f'Mean intensity in the lesion from {means}. The lesion is in the middle of each view, '
        f'{ZOOM_MM} mm wide; sagittal views have anterior on the left. {convention(grey_max)}',
        **draw_three(before, lesion_masks, after, voxel_sizes_mm, panels, legend, 10, grey_max, 2, width_px=300),
    }


def convention(grey_max: float) -> str:
    """Return the sentences that end every caption."""
    return (
        "Radiological convention: the patient's left is on the right. "
        f'Grey window 0 to {page.readable(grey_max)} in all three pictures.'
    )


def worth_a_picture(lesion: dict[str, Any]) -> tuple[float, float]:
    """Return the sort key of lesions: the most unusual first, then the most changed."""
    suspicion = lesion.get('suspicion') or 0
    return (suspicion if suspicion > 1 else 0), intensity_moved(lesion)


def intensity_moved(lesion: dict[str, Any]) -> float:
    """Compute how much a fill changed a lesion: mean change times volume; 0 if a mean is unknown."""
    means = lesion['mean_before'], lesion['mean_after']
    return abs(means[1] - means[0]) * lesion['volume_mm3'] if all(map(page.is_number, means)) else 0.0


def foreground(volume: np.ndarray) -> np.ndarray:
    """Find the head (or skull-stripped brain) on a dark background; (X, Y, Z) bool array."""
    positive = volume[volume > 0]
    if positive.size == 0:
        return np.zeros(volume.shape, dtype=bool)
    return volume > 0.1 * np.percentile(positive, 99)  # air is below, CSF on T1w and FLAIR above


def grey_maximum(image: np.ndarray, head: np.ndarray, lesion_mask: np.ndarray) -> float:
    """Compute the upper end of the grey window: the 99.5th percentile, robust to a few bright voxels.

    That of the lesions, if it is higher: on FLAIR they are the brightest tissue, and few lesions are less than 0.5 %
    of a head. Arrays are `(X, Y, Z)`.
    """
    if not head.any():
        return 1.0
    return max(float(np.percentile(image[part], 99.5)) for part in (head, lesion_mask) if part.any())


def crop_limits(head: np.ndarray, axis: int, voxel_size_mm: float, margin_mm: int = 3) -> tuple[float, float]:
    """Compute the extent of the head along one axis in mm, (low, high); the whole axis without a head."""
    profile = head.mean(axis=tuple(a for a in range(3) if a != axis))
    # specks of noise in the air must not widen the crop
    filled = np.flatnonzero(profile > 0.02 * profile.max()) if profile.any() else np.arange(len(profile))
    return (filled[0] - 0.5) * voxel_size_mm - margin_mm, (filled[-1] + 0.5) * voxel_size_mm + margin_mm


def lesion_slices(lesion_mask: np.ndarray) -> list[int]:
    """Find up to eight axial slices: the one with most mask voxels in each group of neighbours."""
    counts = lesion_mask.sum(axis=(0, 1))
    groups = np.array_split(np.flatnonzero(counts), min(MAX_SLICES, int(np.count_nonzero(counts))))
    return [group[np.argmax(counts[group])] for group in groups]


def evenly_spread(head: np.ndarray) -> np.ndarray:
    """Return up to eight axial slices through the inner part of the head, or else of the volume."""
    filled = np.flatnonzero(head.any(axis=(0, 1))) if head.any() else np.arange(head.shape[2])
    return np.unique(np.linspace(filled[0], filled[-1], MAX_SLICES + 2)[1:-1].round().astype(int))


def draw_three(
    before: np.ndarray,
    lesion_masks: Masks,
    after: np.ndarray,
    voxel_sizes_mm: Sequence[float] | np.ndarray,
    panels: Sequence[Panel],
    legend: str,
    scale_bar_mm: float,
    grey_max: float,
    columns: int,
    width_px: int,
) -> dict[str, bytes]:
    """Plot the three pictures of one entry, which differ only in image and outline."""

    def draw(volume: np.ndarray, outlines: list[Any]) -> bytes:
        return draw_panels(volume, outlines, voxel_sizes_mm, panels, legend, scale_bar_mm, grey_max, columns, width_px)

    return {'before': draw(before, []), 'mask': draw(before, lesion_masks.outlines), 'after': draw(after, [])}


def draw_panels(
    volume: np.ndarray,
    outlines: list[Any],
    voxel_sizes_mm: Sequence[float] | np.ndarray,
    panels: Sequence[Panel],
    legend: str,
    scale_bar_mm: float,
    grey_max: float,
    columns: int,
    width_px: int,
) -> bytes:
    """Draw slices on black, and a legend with a scale bar in the cell after the last one.

    Parameters
    ----------
    volume : (X, Y, Z) float array, RAS+
    outlines : list of ((X, Y, Z) bool array, colour)
    panels : list of Panel
        All with limits of one size.
    width_px : int
        Width of a panel in pixels; its height follows from the limits, so that a mm is as long on both axes.

    Returns
    -------
    bytes, a PNG
    """
    (left, right), (low, high) = panels[0].limits_mm
    height_px = round(width_px * (high - low) / (right - left))
    cells = len(panels) + 1
    columns = min(columns, cells)
    rows = -(-cells // columns)
    page_px = columns * (width_px + GAP_PX) - GAP_PX, rows * (height_px + GAP_PX) - GAP_PX
    figure = Figure(figsize=(page_px[0] / DPI, page_px[1] / DPI), dpi=DPI, facecolor='black')
    for cell in range(cells):
        row, column = divmod(cell, columns)
        corner_px = column * (width_px + GAP_PX), page_px[1] - row * (height_px + GAP_PX) - height_px
        box = (corner_px[0] / page_px[0], corner_px[1] / page_px[1], width_px / page_px[0], height_px / page_px[1])
        axes = figure.add_axes(box, facecolor='black')
        axes.set_axis_off()
        if cell < len(panels):
            draw_slice(axes, volume, outlines, voxel_sizes_mm, panels[cell], grey_max)
        else:
            draw_legend(axes, legend, scale_bar_mm, right - left)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={'Software': None})
    return file.getvalue()


def draw_slice(
    axes: Axes,
    volume: np.ndarray,
    outlines: list[Any],
    voxel_sizes_mm: Sequence[float] | np.ndarray,
    panel: Panel,
    grey_max: float,
) -> None:
    """Draw one slice, its outline and its letters; arguments as in `draw_panels`."""
    axis, left_letter, right_letter = VIEWS[panel.view]
    across, up = (a for a in range(3) if a != axis)
    size_x, size_y = voxel_sizes_mm[across], voxel_sizes_mm[up]
    n_x, n_y = volume.shape[across], volume.shape[up]
    extent_mm = (-0.5 * size_x, (n_x - 0.5) * size_x, -0.5 * size_y, (n_y - 0.5) * size_y)
    grey = np.moveaxis(volume, axis, 0)[panel.index].T
    axes.imshow(
        grey,
        cmap=GREYS,
        vmin=0,
        vmax=grey_max,
        origin='lower',
        extent=extent_mm,
        interpolation='bicubic',
        interpolation_stage='data',
    )
    for lesion_mask, colour in outlines:
        mask = np.moveaxis(lesion_mask, axis, 0)[panel.index].T
        if mask.any() and min(mask.shape) > 1:
            x_mm, y_mm = np.arange(n_x) * size_x, np.arange(n_y) * size_y
            axes.contour(x_mm, y_mm, mask.astype(float), levels=[0.5], colors=[colour], linewidths=1)
    (low_x, high_x), limits_y = panel.limits_mm
    axes.set(xlim=(high_x, low_x), ylim=limits_y, aspect='equal')  # inverted: radiological
    for x, y, text, align in (
        (0.02, 0.5, left_letter, 'left'),
        (0.98, 0.5, right_letter, 'right'),
        (0.02, 0.98, panel.label, 'left'),
    ):
        vertical = 'center' if y == 0.5 else 'top'
        axes.text(x, y, text, ha=align, va=vertical, transform=axes.transAxes, **ON_IMAGE)


def draw_legend(axes: Axes, legend: str, scale_bar_mm: float, width_mm: float) -> None:
    """Write the legend and a scale bar into a cell that is `width_mm` wide."""
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0.06, 0.94, legend, va='top', linespacing=1.5, **ON_BLACK)
    axes.plot([0.06, 0.06 + scale_bar_mm / width_mm], [0.3, 0.3], color='white', linewidth=2)
    axes.text(0.06, 0.32, f'{scale_bar_mm} mm', va='bottom', **ON_BLACK)


def png_files(figures: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """Return PNG bytes of all entries by file stem: `overview_before`, `lesion-3_after`, ..."""
    return {f'{figure["name"]}_{picture}': figure[picture] for figure in figures for picture in page.PICTURES}
