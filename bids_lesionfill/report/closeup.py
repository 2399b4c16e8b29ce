"""A lesion at true voxels: each is a block of pixels of one grey, and outlines run along the edges of voxels.

No smoothing, neither here nor by a browser (`image-rendering: pixelated`): grain, walls and outlines are seen as they
are in the file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from ..images import masks
from . import page

SIDE_MM = 30  # of a view: three are as wide as half a page
PX_PER_MM = 6
GAP_PX = 6
WINDOW_PERCENT = 1, 99.5  # of the original in the view: narrow, so that grain is seen
SLICED = 2, 1, 0  # axes along which views are cut: axial, coronal, sagittal


class Beside(NamedTuple):
    """Another image of the visit, on the voxels of the one that is shown."""

    name: str  # its modality
    before: np.ndarray  # (X, Y, Z) float
    after: np.ndarray | None  # the same filled; None if it was not
    is_resampled: bool = False


class Masks(NamedTuple):
    """Masks of what was filled and of what had been given; (X, Y, Z) bool arrays."""

    used: np.ndarray
    given: np.ndarray | None = None  # None if it is not known

    @property
    def outlines(self) -> list:
        """Masks with the colours of their outlines."""
        known = [(self.used, page.OUTLINE_COLOUR), (self.given, page.GIVEN_COLOUR)]
        return [(mask, colour) for mask, colour in known if mask is not None]


def closeup(
    before: np.ndarray,
    after: np.ndarray,
    lesion_masks: Masks,
    voxel_sizes_mm: Sequence[float] | np.ndarray,
    lesion: dict,
    name: str,
    beside: Beside | None = None,
) -> dict:
    """Draw one lesion at true voxels in three views, and another image of the visit below it.

    Parameters
    ----------
    before, after : (X, Y, Z) float array, RAS+
    lesion_masks : Masks
    voxel_sizes_mm : 3 floats
    lesion : dict
        `label`, `centre_voxel`, maybe `reason`; see `pictures.fill_figures`.
    name : str
        Modality of the image.
    beside : Beside, optional

    Returns
    -------
    dict, as those of `pictures.fill_figures`, with `is_at_true_voxels`
    """
    voxel_sizes_mm = np.asarray(voxel_sizes_mm, dtype=float)
    zoom = np.maximum(1, np.rint(PX_PER_MM * voxel_sizes_mm)).astype(int)
    reach = np.maximum(1, np.rint(SIDE_MM / 2 / voxel_sizes_mm)).astype(int)
    centre = fullest_place(lesion_masks, lesion['centre_voxel'], reach)
    rows = [(before, after)]
    if beside is not None:
        rows.append((beside.before, beside.before if beside.after is None else beside.after))

    def draw(which: int, outlines: Any) -> Any:
        lines = []
        for pair in rows:
            window = grey_window(pair[0], centre, reach)
            lines.append(draw_views(pair[which], outlines, centre, reach, zoom, window))
        return png(stack(lines, axis=0))

    size = ' × '.join(f'{size:.3g}' for size in voxel_sizes_mm)
    return {
        'name': 'closeup',
        'label': lesion['label'],
        'title': f'Close-up: lesion {lesion["label"]} at true voxels',
        'reason': lesion.get('reason', ''),
        'caption': f'Voxels of {size} mm, each a block of {zoom[0]} × {zoom[1]} × {zoom[2]} pixels, nothing smoothed. '
        f'Axial, coronal and sagittal slice{rows_text(name, beside)}. '
        "The patient's left is on the right; sagittal views have anterior on the left. The grey window is narrow.",
        'is_at_true_voxels': True,
        'before': draw(0, []),
        'mask': draw(0, lesion_masks.outlines),
        'after': draw(1, []),
    }


def rows_text(name: str, beside: Beside | None) -> str:
    """Return which image is in which row, in words; empty of one image."""
    if beside is None:
        return ''
    parts = [f'the {name} above', f'the {beside.name} of the visit below']
    if beside.is_resampled:
        parts[1] += f' (on the voxels of the {name})'
    if beside.after is None:
        parts[1] += ', as it is: it was not filled'
    return f'; {" and ".join(parts)}'


def fullest_place(lesion_masks: Masks, centre_voxel: Any, reach: Any) -> np.ndarray:
    """Find the voxel of a lesion around which most of it is seen: 3 ints; the nearest voxel of a mask leads to it.

    Parameters
    ----------
    lesion_masks : Masks
    centre_voxel : 3 ints
        Centre of mass, which may lie outside.
    reach : 3 ints
        Half a view, in voxels.
    """
    mask = lesion_masks.used if lesion_masks.given is None else lesion_masks.used & lesion_masks.given
    last = np.array(mask.shape) - 1
    centre = np.clip(np.rint(centre_voxel).astype(int), 0, last)
    if not mask.any():
        return centre
    points = np.argwhere(mask)
    nearest = points[((points - centre) ** 2).sum(axis=1).argmin()]
    labels, _ = masks.label_lesions(mask)
    lesion = labels == labels[tuple(nearest)]
    seen = ndimage.uniform_filter(lesion.astype(np.float32), 2 * np.asarray(reach) + 1, mode='constant')
    voxels = np.argwhere(lesion)
    shares = np.round(seen[lesion], 6)  # ties go to the voxel that is nearest to the centre
    best = voxels[shares == shares.max()]
    return best[((best - centre) ** 2).sum(axis=1).argmin()]


def grey_window(image: np.ndarray, centre: Any, reach: Any) -> tuple[float, float]:
    """Compute the grey window of a view from the original: (low, high)."""
    block = image[tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(centre, reach))]
    low, high = np.percentile(block, WINDOW_PERCENT)
    return float(low), float(high) if high > low else float(low) + 1


def draw_views(
    image: np.ndarray, outlines: Any, centre: Any, reach: Any, zoom: Any, window: tuple[float, float]
) -> np.ndarray:
    """Draw three slices side by side; (height, width, 3) uint8 array.

    Parameters
    ----------
    image : (X, Y, Z) float array
    outlines : list of ((X, Y, Z) bool array, colour)
    centre, reach, zoom : 3 ints
        The voxel in the middle, voxels from there to an edge, pixels of a voxel along each axis.
    window : (float, float)
    """
    low, high = window
    grey = np.clip(255 * (image - low) / (high - low), 0, 255).astype(np.uint8)
    views = []
    for axis in SLICED:
        picture = np.repeat(enlarged(grey, axis, centre, reach, zoom)[..., None], 3, axis=2)
        for depth, (mask, colour) in enumerate(outlines):
            seen = enlarged(mask, axis, centre, reach, zoom)
            picture[ring(seen, depth)] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        views.append(picture)
    return stack(views, axis=1)


def enlarged(volume: np.ndarray, axis: int, centre: Any, reach: Any, zoom: Any) -> np.ndarray:
    """Return the part of a slice that is seen, each voxel a block of pixels; patient right and front on the left."""
    across, up = (a for a in range(3) if a != axis)
    plane = np.moveaxis(volume, axis, 0)[centre[axis]]
    padded = np.pad(plane, [(reach[across],) * 2, (reach[up],) * 2])
    part = padded[centre[across] : centre[across] + 2 * reach[across] + 1, centre[up] : centre[up] + 2 * reach[up] + 1]
    return np.repeat(np.repeat(part.T[::-1, ::-1], zoom[up], axis=0), zoom[across], axis=1)


def ring(mask: np.ndarray, depth: int) -> np.ndarray:
    """Return the pixels of a mask that lie `depth` pixels inside its edge, so that two outlines are both seen."""
    inner = ndimage.binary_erosion(mask, iterations=depth, border_value=1) if depth else mask
    return inner & ~ndimage.binary_erosion(inner, border_value=1)


def stack(pictures: Any, axis: int) -> np.ndarray:
    """Join pictures along an axis with black gaps; shorter ones are filled up with black below or to the right."""
    height, width = (max(picture.shape[a] for picture in pictures) for a in (0, 1))
    parts = []
    for picture in pictures:
        grown = [(0, (height, width)[a] - picture.shape[a] if a != axis else GAP_PX) for a in (0, 1)]
        parts.append(np.pad(picture, [*grown, (0, 0)]))
    joined = np.concatenate(parts, axis=axis)
    return joined[:-GAP_PX] if axis == 0 else joined[:, :-GAP_PX]


def png(picture: np.ndarray) -> bytes:
    """Return an RGB picture as PNG; the same pixels give the same bytes."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, 'png', optimize=True)
    return file.getvalue()
