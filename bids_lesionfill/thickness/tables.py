"""Thickness of regions and hemispheres: names, and the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

REGION_NAMES = (
    *('bankssts', 'caudalanteriorcingulate', 'caudalmiddlefrontal', 'cuneus', 'entorhinal', 'fusiform'),
    *('inferiorparietal', 'inferiortemporal', 'isthmuscingulate', 'lateraloccipital', 'lateralorbitofrontal'),
    *('lingual', 'medialorbitofrontal', 'middletemporal', 'parahippocampal', 'paracentral', 'parsopercularis'),
    *('parsorbitalis', 'parstriangularis', 'pericalcarine', 'postcentral', 'posteriorcingulate', 'precentral'),
    *('precuneus', 'rostralanteriorcingulate', 'rostralmiddlefrontal', 'superiorfrontal', 'superiorparietal'),
    *('superiortemporal', 'supramarginal', 'frontalpole', 'temporalpole', 'transversetemporal', 'insula'),
)
HEMISPHERES = ('lh', 'rh')
REGIONS = tuple(f'{hemisphere}_{name}' for hemisphere in HEMISPHERES for name in REGION_NAMES)  # Desikan-Killiany, 68
# Of FreeSurfer, which counts the corpus callosum as 1004.
_NUMBERS = (1001, 1002, 1003, *range(1005, 1036), 2001, 2002, 2003, *range(2005, 2036))
FREESURFER_INDEX = dict(zip(REGIONS, _NUMBERS))


@dataclass(frozen=True)
class ThicknessTable:
    """Mean thickness of 68 regions and two hemispheres, in mm; NaN where it is not known."""

    thickness_mm: dict  # of REGIONS, in that order
    n_voxels: dict  # of REGIONS: voxels (vertices, for surfaces) that were averaged; 0 where it is not known
    hemisphere_mm: dict  # of HEMISPHERES

    def __post_init__(self) -> None:
        if tuple(self.thickness_mm) != REGIONS or tuple(self.n_voxels) != REGIONS:
            raise ValueError(f'a table of {len(self.thickness_mm)} regions, expected the {len(REGIONS)} of REGIONS')
        if tuple(self.hemisphere_mm) != HEMISPHERES:
            raise ValueError(f'hemispheres {list(self.hemisphere_mm)}, expected {list(HEMISPHERES)}')

    @property
    def global_mm(self) -> float:
        """Mean of both hemispheres (thesis 3.5); NaN if one is not known."""
        return sum(self.hemisphere_mm.values()) / 2


def table_of(regions: dict[str, Any], hemispheres: dict[str, Any]) -> ThicknessTable:
    """Build a table from the values that an engine provides.

    Parameters
    ----------
    regions : dict of region -> (mm, voxels)
        Those that are missing become NaN and 0.
    hemispheres : dict of hemisphere -> mm
    """
    known = {name: regions.get(name, (math.nan, 0)) for name in REGIONS}
    return ThicknessTable(
        {name: float(mm) for name, (mm, _) in known.items()},
        {name: int(n) for name, (_, n) in known.items()},
        {name: float(hemispheres.get(name, math.nan)) for name in HEMISPHERES},
    )


HEMISPHERE_MEAN = 'MeanThickness'
NAMES = (*(f'{hemisphere}_{HEMISPHERE_MEAN}' for hemisphere in HEMISPHERES), *REGIONS)


LESION_STATES = ('lesion', 'lesion_mm3', 'lesion_beside_mm3')  # columns, see `lesion_regions.lesions_by_region`


def table_rows(
    table: ThicknessTable, engine: str, lesions: Iterable[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Return a table as rows of the file: 68 regions and two hemispheres.

    Parameters
    ----------
    table : ThicknessTable
    engine : str
    lesions : iterable of dict, optional
        Rows of `lesion_regions.lesions_by_region`; those of regions and hemispheres are taken over.
    """
    touched = {row['name']: row for row in lesions or ()}
    rows = []
    for hemisphere in HEMISPHERES:
        mean, regions = f'{hemisphere}_{HEMISPHERE_MEAN}', [f'{hemisphere}_{name}' for name in REGION_NAMES]
        values = {name: (table.thickness_mm[name], table.n_voxels[name]) for name in regions}
        values[mean] = table.hemisphere_mm[hemisphere], sum(table.n_voxels[name] for name in regions)
        for name, (mm, n_voxels) in values.items():
            lesion = touched.get(f'{hemisphere}_cortex' if name == mean else name, {})
            rows.append(
                {
                    'engine': engine,
                    'index': FREESURFER_INDEX.get(name),
                    'name': name,
                    'hemisphere': hemisphere[0].upper(),
                    'thickness_mm': round(mm, 6),
                    'n_voxels': n_voxels,
                    **{column: lesion.get(column) for column in LESION_STATES},
                }
            )
    return rows
