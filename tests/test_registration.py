import nibabel as nib
import numpy as np
import pytest
from conftest import ellipsoid
from heads import on_grid, turned
from nibabel.affines import apply_affine

from bids_lesionfill.images import registration

TEMPLATE_AFFINE = np.array([[2.0, 0, 0, -60], [0, 2, 0, -70], [0, 0, 2, -50], [0, 0, 0, 1]])
TEMPLATE_SHAPE = (60, 70, 56)


@pytest.fixture(scope='module')
def template():
    return on_grid(TEMPLATE_SHAPE, TEMPLATE_AFFINE)


@pytest.mark.parametrize(
    'world',
    [
        np.eye(4),
        turned((8, -5, 6), (0.88, 0.92, 0.95), (70, 90, 60)),
        turned((-10, 4, -7), (1.08, 1.0, 1.1), (-20, 15, 8)),
    ],
    ids=['none', 'smaller', 'larger'],
)
def test_known_affine_is_found_to_a_mm_at_the_corners_of_the_brain(template, world, rng):
    shape = (120, 140, 120)
    grid = nib.affines.from_matvec(np.eye(3), apply_affine(np.linalg.inv(world), (0, 0, 4)) - np.array(shape) / 2)
    t1w = on_grid(shape, grid, world)
    brain_mask = t1w > 0
    t1w = 0.7 * t1w + rng.normal(0, 10, shape).astype(np.float32)  # another scanner
    found = registration.affine_to_template(t1w, brain_mask, grid, template, TEMPLATE_AFFINE)
    voxels = np.argwhere(brain_mask)
    low, high = voxels.min(axis=0), voxels.max(axis=0)
    corners = apply_affine(
        grid, [(x, y, z) for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
    )
    errors_mm = np.linalg.norm(apply_affine(found, corners) - apply_affine(world, corners), axis=1)
    assert errors_mm.max() < 1


def test_same_images_same_bytes(template):
    shape, grid = (60, 70, 60), nib.affines.from_matvec(2 * np.eye(3), (-62, -67, -50))
    t1w = on_grid(shape, grid)
    first, again = (registration.affine_to_template(t1w, t1w > 0, grid, template, TEMPLATE_AFFINE) for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_what_is_outside_the_brain_mask_plays_no_part(template):
    shape, grid = (60, 70, 60), nib.affines.from_matvec(2 * np.eye(3), (-62, -67, -50))
    t1w = on_grid(shape, grid)
    brain_mask = t1w > 0
    skull = np.where(brain_mask, t1w, 3000)
    bare, dressed = (
        registration.affine_to_template(image, brain_mask, grid, template, TEMPLATE_AFFINE) for image in (t1w, skull)
    )
    assert np.array_equal(bare, dressed)


def test_empty_brain_mask_is_refused(template):
    with pytest.raises(ValueError, match='brain mask is empty'):
        registration.affine_to_template(template, np.zeros(template.shape, bool), TEMPLATE_AFFINE, template, np.eye(4))


def test_volume_of_the_template_lands_where_the_world_says():
    """2 mm voxels of the template, 1 mm voxels of a subject that is flipped and lies 6 mm to the left."""
    volume = np.zeros((10, 10, 10))
    volume[4, 5, 6] = 1  # at (8, 10, 12) mm of the template
    to_template = nib.affines.from_matvec(np.eye(3), (6, 0, 0))
    affine = nib.affines.from_matvec(np.diag([-1.0, 1, 1]), (12, 0, 0))  # so (2, 10, 12) mm, voxel (10, 10, 12)
    found = registration.from_template(volume, np.diag([2.0, 2, 2, 1]), to_template, (14, 20, 20), affine)
    assert found.shape == (14, 20, 20)
    assert np.unravel_index(found.argmax(), found.shape) == (10, 10, 12)
    assert found.max() == 1
    assert found[9, 10, 12] == found[10, 11, 12] == found[11, 10, 12] == 0.5


def test_beyond_the_template_is_zero():
    found = registration.from_template(np.ones((5, 5, 5)), np.eye(4), np.eye(4), (8, 5, 5), np.eye(4))
    assert found[:5].min() == 1
    assert found[5:].max() == 0


def test_world_of_itk_is_that_of_nibabel_in_units_of_60_mm():
    """An oblique, flipped, anisotropic grid."""
    affine = turned((12, -20, 33), (-0.9, 1.0, 1.2), (17, -21, -13))
    image = registration.to_itk(ellipsoid((6, 5, 4), (3, 2, 1), (2, 2, 2)), affine)
    assert image.GetSize() == (6, 5, 4)
    np.testing.assert_allclose(
        60 * np.array(image.TransformIndexToPhysicalPoint((5, 3, 2))), apply_affine(affine, (5, 3, 2)), atol=1e-5
    )
    assert image.GetPixel(5, 2, 1) == 1
    assert image.GetPixel(0, 2, 1) == 0


# Displacements


@pytest.mark.parametrize('start', [(0, 0, 0), (1, 0, 1)])
def test_halved_grid_has_the_means_of_eight_voxels_and_starts_where_it_is_told(start):
    volume = np.zeros((6, 4, 4))
    volume[2, 2, 2] = 8
    halved = registration.halve(volume, start)
    where = tuple((2 + before) // 2 for before in start)
    assert halved[where] == 1
    assert halved.sum() == 1


@pytest.mark.parametrize('start', [(0, 0, 0), (1, 0, 1)])
def test_displacement_of_a_halved_grid_is_doubled_and_lies_at_the_same_place(start):
    shape = (12, 10, 8)
    ramp = registration.halve(np.indices(shape)[0].astype(float), start)  # each coarse voxel knows where it lies
    displacement = np.stack([ramp, np.full(ramp.shape, 0.5), np.zeros(ramp.shape)], axis=-1)
    doubled = registration.double(displacement, shape, start)
    assert doubled.shape == (*shape, 3)
    inner = doubled[3:-3, 3:-3, 3:-3]
    expected = 2 * np.indices(shape)[0][3:-3, 3:-3, 3:-3]
    np.testing.assert_allclose(inner[..., 0], expected, atol=1e-5)
    assert (inner[..., 1] == 1).all()
    assert (inner[..., 2] == 0).all()


def test_displaced_voxels_are_sampled_where_the_world_says():
    """One voxel, moved by half a voxel along y, on a grid of 2 mm whose world is shifted; 1 mm volume with a ramp."""
    mask = np.zeros((3, 3, 3), dtype=bool)
    mask[1, 1, 2] = True
    displacement = np.zeros((3, 3, 3, 3))
    displacement[..., 1] = 0.5
    points_mm = registration.displaced_points(mask, displacement, nib.affines.from_matvec(2 * np.eye(3), (-4, 0, 1)))
    assert points_mm.tolist() == [[-2, 3, 5]]
    ramp = np.indices((8, 8, 8))[2].astype(np.float32)
    assert registration.sample(ramp, nib.affines.from_matvec(np.eye(3), (-6, 0, 2)), points_mm, order=1).tolist() == [3]
    assert registration.sample(ramp, np.eye(4), points_mm, order=0).tolist() == [0]  # outside
