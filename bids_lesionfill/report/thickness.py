"""Report section on cortical thickness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..layout import naming
from ..layout import tables as layout_tables
from ..thickness import reproducibility
from ..thickness import tables as thickness_tables
from ..thickness.tables import REGIONS

if TYPE_CHECKING:
    from ..layout.inputs import Inputs


def describe_thickness(image: Inputs, output_dir: Path) -> list[dict[str, Any]]:
    """Read an image's thickness tables for the report; return a list with one dict per engine.

    `engine`, `sentence` and `regions`: rows of region, before, after, change and whether it exceeds the noise.
    """
    files = naming.thickness_files(output_dir, image)
    tables = {}
    for desc in naming.THICKNESS_DESCS:
        tables[desc], _ = layout_tables.whole_rows(files[f'morph_{desc}'])
    engines = dict.fromkeys(row['engine'] for row in tables['filled'])
    return [describe_engine(engine, tables) for engine in engines]


def describe_engine(engine: str, tables: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return one engine's part of the report.

    A region exceeds the noise if its error is above the floor of all regions; a hemisphere, whose mean is far less
    noisy, if it is above its own rerun error.
    """
    values = {
        desc: {row['name']: row['thickness_mm'] for row in rows if row['engine'] == engine}
        for desc, rows in tables.items()
    }
    before, after, again = (
        np.array([values[desc].get(name) for name in thickness_tables.NAMES], dtype=float)
        for desc in ('original', 'filled', 'rerun')
    )
    noise, errors = (reproducibility.error_percent(before, other) for other in (again, after))
    floor = reproducibility.noise_floor(noise[2:])
    limits = [*noise[:2], *[floor] * len(REGIONS)]
    rows = []
    for name, old, new, error, limit in zip(thickness_tables.NAMES, before, after, errors, limits):
        above = 'n/a' if np.isnan(limit) or np.isnan(error) else 'yes' if error > limit else 'no'
        rows.append(
            {
                'region': name,
                'before_mm': round(float(old), 3),
                'after_mm': round(float(new), 3),
                'change_percent': round(float(reproducibility.change_percent(old, new)), 3),
                'error_percent': round(float(error), 3),
                'exceeds_noise_floor': above,
            }
        )
    verdicts = [row['exceeds_noise_floor'] for row in rows[2:]]
    sentence = ' '.join([global_sentence(before, after, again), floor_sentence(verdicts, floor)])
    return {'engine': engine, 'sentence': sentence, 'regions': rows}


def global_sentence(before: np.ndarray, after: np.ndarray, again: np.ndarray) -> str:
    """Return a sentence on global means and errors of filling and, if there is one, of the rerun."""
    old, new, rerun = (values[:2].mean() for values in (before, after, again))
    error, noise = (known(reproducibility.error_percent(old, other), '%') for other in (new, rerun))
    beside = '' if np.isnan(again).all() else f'; {noise} between two runs on the original image'
    of_regions = reproducibility.nan_mean(reproducibility.error_percent(before, after)[2:], 0)
    return (
        f'Global mean thickness {known(old, "mm")} before and {known(new, "mm")} after filling '
        f'(error {error}{beside}); mean error of the regions {known(of_regions, "%")}.'
    )


def floor_sentence(verdicts: Sequence[Any], floor: float) -> str:
    """Return a sentence: number of regions that exceed the noise floor, and number expected by chance."""
    if np.isnan(floor):
        return 'No rerun was measured, so there is no noise floor to compare with.'
    n_known = len(verdicts) - verdicts.count('n/a')
    by_chance = round((1 - reproducibility.FLOOR_PERCENTILE / 100) * n_known)
    return (
        f'Of {n_known} regions {verdicts.count("yes")} change by more than the noise floor of {floor:.3f} %, the '
        f"{reproducibility.FLOOR_PERCENTILE}th percentile of the regions' errors between two runs on the original "
        f'image (about {by_chance} are expected by chance, where filling changes no more than another seed does).'
    )


def known(value: float | np.ndarray, unit: str) -> str:
    """Return a measured value with its unit, or `n/a`."""
    return 'n/a' if np.isnan(value) else f'{value:.3f} {unit}'
