"""One brain in another; grids of displacements are in test_registration.py."""

import sys

import numpy as np
import pytest
from heads import on_grid, turned
from nibabel.affines import apply_affine, from_matvec

from bids_lesionfill.images import syn


@pytest.mark.slow
def test_lesion_of_another_brain_lies_where_that_brain_says():
    """Another world and another size, which a deformation must leave as the affine part finds them."""
    pytest.importorskip('ants')
    shape, grid = (96, 124, 96), from_matvec(np.eye(3), (-48, -60, -40))
    template_grid = from_matvec(2 * np.eye(3), (-62, -67, -50))
    world = turned((4, -3, 5), (0.95, 1.05, 0.97), (6, -4, 5))
    t1w, template = on_grid(shape, grid, world), on_grid((60, 70, 60), template_grid)
    points_mm, info = syn.find_in(t1w, t1w > 0, grid, template, template_grid)
    expected = apply_affine(world, apply_affine(grid, np.argwhere(t1w > 0)))
    assert np.percentile(np.linalg.norm(points_mm - expected, axis=1), 95) < 1.5
    assert info['LargestDisplacementVoxels'] < 6
    again, _ = syn.find_in(t1w, t1w > 0, grid, template, template_grid)
    assert np.array_equal(points_mm, again)


def test_without_antspyx_brains_are_not_registered(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ants', None)
    with pytest.raises(ValueError, match='needs antspyx, which is not installed'):
        syn.deform(np.ones((8, 8, 8)), np.ones((8, 8, 8)), (0, 0, 0))
