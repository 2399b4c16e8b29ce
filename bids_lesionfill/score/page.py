"""The page of scores: one HTML file with tables, missed and false lesions in pictures. It needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from nibabel.affines import apply_affine

from ..layout import files
from ..report import page
from ..report import pictures as report_pictures
from . import matching, tables

if TYPE_CHECKING:
    from .loading import Loaded

TEMPLATE = 'page.html.jinja'
WIDTH_PX = 220  # of one view
ORDER = ('FLAIR', 'T1w')  # of pictures
HEADLINES = {
    'dice': ('Dice coefficient', 2),
    'volume_error_absolute_ml': ('absolute volume error, ml', 2),
    'n_lesions': ('true lesions per scan', 1),
    **{f'sensitivity_{rule}': (f'sensitivity ({rule})', 2) for rule in matching.RULES},
    **{f'precision_{rule}': (f'precision ({rule})', 2) for rule in matching.RULES},
    **{f'f1_{rule}': (f'lesion-wise F1 ({rule})', 2) for rule in matching.RULES},
    **{f'false_lesions_{rule}': (f'false lesions per scan ({rule})', 1) for rule in matching.RULES},
}
SCAN_COLUMNS = (
    *('dice', 'volume_truth_ml', 'volume_predicted_ml', 'n_lesions', 'detected_overlap', 'detected_iou'),
    *('false_lesions_overlap', 'false_lesions_iou', 'f1_overlap', 'f1_iou', 'n_split', 'n_merging', 'n_ignored'),
)


def picture_lesion(loaded: Loaded, centre_mm: Sequence[float] | np.ndarray, outlines: Any) -> list[dict[str, Any]]:
    """Picture a lesion in three views through the voxel of it that is nearest to its centre, plain and with outlines.

    Parameters
    ----------
    loaded : loading.Loaded
    centre_mm : 3 floats, scanner space
    outlines : dict of words -> (X, Y, Z) bool array
        The first is the mask that holds the lesion.

    Returns
    -------
    list of dict with `title` and `png` (bytes); empty without images
    """
    voxels = np.argwhere(next(iter(outlines.values())))
    from_centre = apply_affine(loaded.affine, voxels) - centre_mm
    centre = voxels[np.linalg.norm(from_centre, axis=1).argmin()]
    half_mm = report_pictures.ZOOM_MM / 2
    limits_mm = [(middle - half_mm, middle + half_mm) for middle in centre * np.asarray(loaded.voxel_sizes_mm)]
    panels = [
        report_pictures.Panel(view, int(centre[axis]), view, tuple(limits_mm[a] for a in range(3) if a != axis))
        for view, (axis, _, _) in report_pictures.VIEWS.items()
    ]
    pictures = []
    for modality in (name for name in ORDER if name in loaded.images):
        image = np.nan_to_num(loaded.images[modality])
        nothing = np.zeros(image.shape, dtype=bool)
        grey_max = report_pictures.grey_maximum(image, report_pictures.foreground(image), nothing)
        for words, mask in {'': None, **outlines}.items():
            title = f'{modality}, {words}' if words else modality
            legend = f'{modality}\n{words}\n\npatient left = image right'
            outlined = [] if mask is None else [(mask, page.OUTLINE_COLOUR)]
            png = report_pictures.draw_panels(
                image, outlined, loaded.voxel_sizes_mm, panels, legend, 10, grey_max, 4, WIDTH_PX
            )
            pictures.append({'title': title, 'png': png})
    return pictures


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the page.

    Parameters
    ----------
    path : path
    content : dict
        `version`, `command`, `settings` (dict), `scans`, `summary`, `detection`, `changes` (rows, see `tables`),
        `missed` and `wrong`: dicts with `title`, `caption`, `pictures`; `n_missed`, `n_false`.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(data_uri=page.data_uri, number=number, readable=page.readable)
    html = environment.get_template(TEMPLATE).render(
        **content,
        headlines=HEADLINES,
        scan_columns=[(name, title_of(name)) for name in SCAN_COLUMNS],
        groups=group_rows(content['detection']),
        rules=matching.RULES,
        descriptions=tables.SCORES,
        min_for_interval=tables.MIN_FOR_INTERVAL,
    )
    files.write_bytes(path, html.encode())


def title_of(column: str) -> str:
    """Return the title of a column of scores: `f1_iou` is 'F1 (iou)'."""
    for rule in matching.RULES:
        if column.endswith(f'_{rule}'):
            return f'{title_of(column.removesuffix(f"_{rule}"))} ({rule})'
    words = column.removesuffix('_ml').replace('_', ' ')
    words = 'F1' if words == 'f1' else words.removeprefix('n ')
    return f'{words}, ml' if column.endswith('_ml') else words


def group_rows(detection: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Arrange the rows of all participants together: list of (title, rows)."""
    found = {}
    for row in detection:
        if row['participant_id'] == tables.ALL:
            found.setdefault(row['group'], []).append(row)
    return [(tables.GROUPS[group], rows) for group, rows in found.items()]


def number(value: Any, decimals: int = 2) -> str:
    """Format a number; `n/a` where it is not known."""
    return page.number_text(value, decimals) if page.is_number(value) else 'n/a'
