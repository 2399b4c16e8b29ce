"""Filled volume in and beside regions of the cortex."""

import numpy as np
import pytest

from bids_lesionfill.thickness import lesion_regions
from bids_lesionfill.thickness.tables import HEMISPHERES, REGION_NAMES, REGIONS

FAR, NEAR, PART, ALL = 2, 3, 4, 35  # numbers of regions; 35 is the first of the right hemisphere


@pytest.fixture
def rows():
    """A lesion of six voxels in a row, from white matter through a region's edge and all of another."""
    regions = np.zeros((12, 4, 4), dtype=np.uint8)
    regions[9:, 3, 3] = FAR
    regions[0, 1, 1] = NEAR
    regions[3:5, 1, 1:3] = PART
    regions[6, 1, 1] = ALL
    lesion_mask = np.zeros(regions.shape, dtype=bool)
    lesion_mask[1:7, 1, 1] = True
    return {row['name']: row for row in lesion_regions.lesions_by_region(lesion_mask, regions, 2.0)}


@pytest.mark.parametrize(('number', 'state', 'inside', 'beside'), [
    (FAR, 'none', 0, 0), (NEAR, 'adjacent', 0, 2), (PART, 'reduced', 4, 4), (ALL, 'replaced', 2, 2),
])  # fmt: skip
def test_volume_in_and_beside_a_region(rows, number, state, inside, beside):
    row = rows[REGIONS[number - 1]]
    assert (row['lesion'], row['lesion_mm3'], row['lesion_beside_mm3']) == (state, inside, beside)


def test_a_region_that_is_not_there_has_no_state(rows):
    assert rows[REGIONS[10]]['lesion'] is None
    assert rows[REGIONS[10]]['region_mm3'] == 0


def test_a_voxel_beside_two_regions_of_a_lobe_counts_once():
    regions = np.zeros((3, 3, 3), dtype=np.uint8)
    lateral, cuneus = (1 + REGIONS.index(f'lh_{name}') for name in ('lateraloccipital', 'cuneus'))
    regions[0, 1, 1], regions[2, 1, 1] = lateral, cuneus
    lesion_mask = np.zeros(regions.shape, dtype=bool)
    lesion_mask[1, 1, 1] = True
    rows = {row['name']: row for row in lesion_regions.lesions_by_region(lesion_mask, regions, 1.0)}
    names = ('lh_lateraloccipital', 'lh_cuneus', 'lh_occipital_lobe', 'lh_cortex')
    assert [rows[name]['lesion_beside_mm3'] for name in names] == [1, 1, 1, 1]
    assert [rows[name]['lesion'] for name in names] == ['adjacent'] * 4


def test_lesions_at_the_edge_of_the_image_have_no_neighbours_on_the_other_side():
    regions = np.zeros((4, 3, 3), dtype=np.uint8)
    regions[-1] = NEAR
    lesion_mask = np.zeros(regions.shape, dtype=bool)
    lesion_mask[0, 1, 1] = True
    rows = lesion_regions.lesions_by_region(lesion_mask, regions, 1.0)
    assert {row['lesion'] for row in rows if row['lesion']} == {'none'}


def test_every_region_is_in_one_lobe():
    members = [name for names in lesion_regions.LOBES.values() for name in names]
    assert sorted(members) == sorted(REGION_NAMES)


def test_lobes_and_hemispheres_are_the_sums_of_their_regions(rows):
    for side in HEMISPHERES:
        of_side = [row for row in rows.values() if row['level'] == 'region' and row['hemisphere'] == side[0].upper()]
        lobes = [rows[f'{side}_{lobe}_lobe'] for lobe in lesion_regions.LOBES]
        for key in ('region_mm3', 'lesion_mm3'):
            assert rows[f'{side}_cortex'][key] == sum(row[key] for row in of_side) == sum(row[key] for row in lobes)


def test_nothing_filled_is_none_everywhere():
    regions = np.full((3, 3, 3), NEAR, dtype=np.uint8)
    rows = lesion_regions.lesions_by_region(np.zeros((3, 3, 3), dtype=bool), regions, 1.0)
    assert {row['lesion'] for row in rows} == {'none', None}
