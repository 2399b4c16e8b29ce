"""Filled lesions in and beside regions of the cortex and lobes: which measurements lesions may have touched."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from .tables import HEMISPHERES, REGION_NAMES, REGIONS

# Lobes of FreeSurfer (`mri_annotation2label --lobesStrict`): cingulate cortex and insula are in none of the four.
LOBES = {
    'frontal': (
        *('superiorfrontal', 'rostralmiddlefrontal', 'caudalmiddlefrontal', 'parsopercularis', 'parstriangularis'),
        *('parsorbitalis', 'lateralorbitofrontal', 'medialorbitofrontal', 'precentral', 'paracentral', 'frontalpole'),
    ),
    'parietal': ('superiorparietal', 'inferiorparietal', 'supramarginal', 'postcentral', 'precuneus'),
    'temporal': (
        *('superiortemporal', 'middletemporal', 'inferiortemporal', 'bankssts', 'fusiform', 'transversetemporal'),
        *('entorhinal', 'temporalpole', 'parahippocampal'),
    ),
    'occipital': ('lateraloccipital', 'lingual', 'cuneus', 'pericalcarine'),
    'cingulate': (
        *('rostralanteriorcingulate', 'caudalanteriorcingulate', 'posteriorcingulate', 'isthmuscingulate'),
    ),
    'insula': ('insula',),
}
FACES = tuple((axis, step) for axis in range(3) for step in (-1, 1))  # the six neighbours of a voxel


def state_of(n_inside: int, n_beside: int, n_region: int) -> str | None:
    """Return what a lesion does to a region, in the words of neuroLIT (Deep-MI/neurolit 0.7.0).

    Parameters
    ----------
    n_inside, n_beside : int
        Lesion voxels in the region, and those outside that touch it.
    n_region : int
        All voxels of the region, lesions included.

    Returns
    -------
    str or None
        `replaced` (all of it is lesion), `reduced` (part of it), `adjacent`, `none`; None for a region without a voxel.
    """
    if not n_region:
        return None
    if n_inside:
        return 'replaced' if n_inside == n_region else 'reduced'
    return 'adjacent' if n_beside else 'none'


def lesions_by_region(lesion_mask: np.ndarray, regions: np.ndarray, voxel_mm3: float) -> list[dict[str, Any]]:
    """Compute the lesion volume in and beside each region, lobe and hemisphere.

    Parameters
    ----------
    lesion_mask : (X, Y, Z) bool array
    regions : (X, Y, Z) int array
        1..68 on the cortex, as in `tables.REGIONS`; else 0.
    voxel_mm3 : float

    Returns
    -------
    list of dict
        `level`, `name`, `hemisphere`, `lobe`, `region_mm3`, `lesion` (see `state_of`), `lesion_mm3`,
        `lesion_beside_mm3`: 68 regions, then 12 lobes, then the two hemispheres.
    """
    beside = neighbours_of(lesion_mask, regions)
    own = regions[lesion_mask].astype(int)
    sizes = np.bincount(regions.flat, minlength=len(REGIONS) + 1)

    def row(level: str, name: str, lobe: str | None, members: Collection[str]) -> dict[str, Any]:
        numbers = [1 + REGIONS.index(member) for member in members]
        is_inside = np.isin(own, numbers)
        n_inside = int(is_inside.sum())
        n_beside = int((np.isin(beside, numbers).any(axis=1) & ~is_inside).sum())
        n_region = int(sizes[numbers].sum())
        return {
            'level': level,
            'name': name,
            'hemisphere': name[0].upper(),
            'lobe': lobe,
            'region_mm3': round(n_region * voxel_mm3, 3),
            'lesion': state_of(n_inside, n_beside, n_region),
            'lesion_mm3': round(n_inside * voxel_mm3, 3),
            'lesion_beside_mm3': round(n_beside * voxel_mm3, 3),
        }

    lobe_of = {member: lobe for lobe, members in LOBES.items() for member in members}
    rows = [row('region', region, lobe_of[region.partition('_')[2]], [region]) for region in REGIONS]
    for side in HEMISPHERES:
        for lobe, members in LOBES.items():
            rows.append(row('lobe', f'{side}_{lobe}_lobe', lobe, [f'{side}_{name}' for name in members]))
    for side in HEMISPHERES:
        rows.append(row('hemisphere', f'{side}_cortex', None, [f'{side}_{name}' for name in REGION_NAMES]))
    return rows


def neighbours_of(lesion_mask: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Return the regions of the six neighbours of each lesion voxel; (lesion voxels, 6) int array, 0 outside."""
    padded = np.pad(regions, 1)
    inner = (slice(1, -1),) * 3
    return np.stack(
        [np.roll(padded, step, axis=axis)[inner][lesion_mask] for axis, step in FACES], axis=1, dtype=int
    )
