import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from scipy import ndimage

from bids_lesionfill.images import grid
from bids_lesionfill.images.grid import Scaling


def rotation(degrees, axis):
    angle = np.deg2rad(degrees)
    first, second = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def centre_of_mass_mm(img, threshold=None):
    data = img.get_fdata()
    data = data if threshold is None else data > threshold
    return apply_affine(img.affine, ndimage.center_of_mass(data))


def lesion_centre_mm(mask_img, side):
    voxels_mm = apply_affine(mask_img.affine, np.argwhere(mask_img.get_fdata() > 0))
    return voxels_mm[np.sign(voxels_mm[:, 0]) == side].mean(axis=0)


def blob_img(shape, affine, centre_mm=(3.0, -5.0, 4.0), sigma_mm=3.0):
    """A smooth blob (float32) whose values depend on world coordinates alone."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), axis=-1)
    distance = np.linalg.norm(apply_affine(affine, voxels) - centre_mm, axis=-1)
    return nib.Nifti1Image((100 * np.exp(-((distance / sigma_mm) ** 2) / 2)).astype(np.float32), affine)


def centred(matrix, shape):
    return from_matvec(matrix, -matrix @ ((np.array(shape) - 1) / 2))


# Intensities


def test_scaling_and_its_inverse_give_the_intensities_back(rng):
    scaling = Scaling(slope=1.5 / 812, intercept=-1.0)
    intensities = rng.uniform(0, 2000, (5, 6, 7)).astype(np.float32)
    normalised = scaling.apply(intensities)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(scaling.invert(normalised), intensities, atol=1e-3)
    assert scaling.invert(normalised).dtype == np.float64


def test_white_matter_is_mapped_to_one_half_and_background_to_minus_one(phantom):
    scaling = grid.white_matter_scaling(phantom.t1w, phantom.wm_mask)
    normalised = scaling.apply(phantom.t1w)
    assert np.median(normalised[phantom.wm_mask]) == pytest.approx(0.5, abs=1e-5)
    assert (normalised[~phantom.brain_mask] == -1).all()
    assert scaling.invert(0.5) == pytest.approx(np.median(phantom.t1w[phantom.wm_mask]))


def test_hot_voxel_does_not_change_the_scaling(phantom):
    usual = grid.white_matter_scaling(phantom.t1w, phantom.wm_mask)
    phantom.t1w[0, 0, 0] = 1e6
    assert grid.white_matter_scaling(phantom.t1w, phantom.wm_mask) == usual
    hot = np.argwhere(phantom.wm_mask)[0]
    phantom.t1w[tuple(hot)] = 1e6
    assert grid.white_matter_scaling(phantom.t1w, phantom.wm_mask).slope == pytest.approx(usual.slope, rel=1e-3)


def test_lesions_hardly_change_the_scaling(phantom):
    with_lesions = grid.white_matter_scaling(phantom.t1w, phantom.wm_mask)
    assert with_lesions.slope == pytest.approx(
        grid.white_matter_scaling(phantom.healthy, phantom.wm_mask).slope, rel=5e-3
    )


def test_scaling_refuses_empty_white_matter(phantom):
    with pytest.raises(ValueError, match='0 voxels'):
        grid.white_matter_scaling(phantom.t1w, np.zeros_like(phantom.wm_mask))


@pytest.mark.parametrize('value', [0, -3, np.nan])
def test_scaling_refuses_white_matter_that_is_not_positive(phantom, value):
    with pytest.raises(ValueError, match='positive'):
        grid.white_matter_scaling(np.full_like(phantom.t1w, value), phantom.wm_mask)


# The working grid


@pytest.mark.parametrize('signs', [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_1mm_image_is_only_flipped_and_reordered(rng, signs, order):
    # Voxel axis i runs along world axis order[i]: canonical data are known without any library.
    data = rng.normal(size=(5, 6, 7)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for voxel_axis, (world_axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world_axis, voxel_axis] = sign
    affine[:3, 3] = 10, -20, 30
    expected = data[tuple(slice(None, None, sign) for sign in signs)].transpose(np.argsort(order))
    conformed = grid.conform(nib.Nifti1Image(data, affine))
    assert conformed.get_data_dtype() == np.float32
    assert np.array_equal(np.asarray(conformed.dataobj), expected)
    assert np.array_equal(conformed.affine[:3, :3], np.eye(3))
    np.testing.assert_allclose(centre_of_mass_mm(conformed), centre_of_mass_mm(nib.Nifti1Image(data, affine)))


def test_1mm_image_in_ras_is_left_as_it_is(rng):
    data = rng.integers(0, 1000, (5, 6, 7)).astype(np.int16)
    conformed = grid.conform(nib.Nifti1Image(data, np.eye(4)))
    assert conformed.get_data_dtype() == np.int16
    assert np.array_equal(np.asarray(conformed.dataobj), data)


def test_voxels_of_almost_1mm_are_not_interpolated(rng):
    data = rng.normal(size=(5, 6, 7)).astype(np.float32)
    affine = np.diag([0.9999, 1.002, 1.0, 1])
    conformed = grid.conform(nib.Nifti1Image(data, affine))
    assert np.array_equal(np.asarray(conformed.dataobj), data)
    assert np.array_equal(conformed.affine, affine)


@pytest.mark.parametrize(
    ('sizes', 'shape'),
    [((0.7, 0.7, 0.7), (44, 50, 40)), ((-0.9, 1.0, 1.2), (36, 40, 30)), ((0.5, -0.5, 3.0), (60, 70, 14))],
)
def test_other_voxel_sizes_become_1mm_at_the_same_world_coordinates(sizes, shape):
    img = blob_img(shape, centred(np.diag(sizes).astype(float), shape))
    conformed = grid.conform(img)
    np.testing.assert_allclose(voxel_sizes(conformed.affine), 1)
    assert nib.aff2axcodes(conformed.affine) == ('R', 'A', 'S')
    np.testing.assert_allclose(centre_of_mass_mm(conformed), centre_of_mass_mm(img), atol=0.1)
    expected = blob_img(conformed.shape, conformed.affine).get_fdata()
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(conformed.get_fdata()[inner], expected[inner], atol=2)  # of 100


def test_working_grid_covers_the_field_of_view_and_no_more(phantom):
    shape, affine = grid.working_grid(phantom.t1w_img)
    assert shape == (36, 36, 36)
    corners = apply_affine(affine, [(-0.5, -0.5, -0.5), np.array(shape) - 0.5])
    mm = apply_affine(phantom.affine, [(39.5, -0.5, -0.5), (-0.5, 35.5, 29.5)])
    np.testing.assert_allclose(corners, mm, atol=1e-6)


def test_working_grid_rounds_the_field_of_view_up():
    img = nib.Nifti1Image(np.zeros((10, 11, 13), np.float32), np.diag([0.7, 0.7, 0.7, 1]))
    shape, affine = grid.working_grid(img)
    assert shape == (7, 8, 10)  # 7, 7.7 and 9.1 mm
    centre = apply_affine(affine, (np.array(shape) - 1) / 2)
    np.testing.assert_allclose(centre, 0.7 * np.array((4.5, 5, 6)))


def test_a_grid_that_is_coarser_than_a_mask_is_touched_by_each_of_its_voxels():
    fine = nib.Nifti1Image(np.zeros((20, 20, 20), np.uint8), np.diag([0.4, 0.4, 0.4, 1]))
    coarse = nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4))
    for voxel in ((7, 7, 7), (8, 9, 10), (0, 18, 3)):
        mask = np.zeros(fine.shape, np.uint8)
        mask[voxel] = 1
        touched = grid.touched_by(nib.Nifti1Image(mask, fine.affine), coarse)
        assert touched[tuple(np.rint(0.4 * np.array(voxel)).astype(int))]
        assert touched.sum() <= 8


def test_conforming_the_phantom_keeps_brain_and_lesions_in_place(phantom):
    conformed = grid.conform(phantom.t1w_img)
    np.testing.assert_allclose(centre_of_mass_mm(conformed, 100), centre_of_mass_mm(phantom.t1w_img, 100), atol=0.5)
    mask = grid.conform(phantom.lesion_mask_img, order=0)
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1}
    for side in (-1, 1):  # one lesion in each half of the head
        np.testing.assert_allclose(*(lesion_centre_mm(img, side) for img in (mask, phantom.lesion_mask_img)), atol=0.5)


@pytest.mark.parametrize('size', [0.8, 1.0])
def test_oblique_affine_keeps_its_rotation(size):
    turn = rotation(12, axis=2) @ rotation(-7, axis=0)
    shape = (40, 44, 38)
    img = blob_img(shape, centred(turn @ np.diag([-size, size, size]), shape))
    conformed = grid.conform(img)
    np.testing.assert_allclose(conformed.affine[:3, :3], turn, atol=1e-6)
    np.testing.assert_allclose(centre_of_mass_mm(conformed), centre_of_mass_mm(img), atol=0.1)


def test_conform_of_unsigned_integers_does_not_wrap_around():
    data = np.zeros((20, 20, 20), dtype=np.uint8)
    data[6:14, 6:14, 6:14] = 250  # a spline over- and undershoots at the edges
    conformed = grid.conform(nib.Nifti1Image(data, np.diag([0.7, 0.7, 0.7, 1])))
    result = conformed.get_fdata()
    world = apply_affine(conformed.affine, np.argwhere(result > -1))
    outside = ((world < 0.7 * 4) | (world > 0.7 * 15)).any(axis=1)
    assert np.abs(result.ravel()[outside]).max() < 25
    inside = ((world > 0.7 * 7.5) & (world < 0.7 * 11.5)).all(axis=1)
    assert result.ravel()[inside].min() > 200


# From grid to grid


def test_resampling_to_the_same_grid_is_bitwise_equal(phantom):
    same = grid.resample_to(phantom.t1w_img, phantom.lesion_mask_img, order=3)
    assert same.dtype == np.float32
    assert np.array_equal(same, phantom.t1w)


def test_resampling_to_the_canonical_grid_is_bitwise_equal(phantom):
    canonical = nib.as_closest_canonical(phantom.t1w_img)
    assert np.array_equal(grid.resample_to(phantom.t1w_img, canonical, order=3), phantom.t1w[::-1])


def test_resampling_a_canonical_image_back_to_the_flipped_grid_is_bitwise_equal(phantom):
    canonical = nib.as_closest_canonical(phantom.t1w_img)
    assert np.array_equal(grid.resample_to(canonical, phantom.t1w_img, order=1), phantom.t1w)


def test_resampling_between_orders_of_axes_is_bitwise_equal(phantom):
    asr = nib.orientations.ornt_transform(
        nib.io_orientation(phantom.affine), nib.orientations.axcodes2ornt(('A', 'S', 'R'))
    )
    sagittal = phantom.t1w_img.as_reoriented(asr)
    assert sagittal.shape == (36, 30, 40)
    assert np.array_equal(grid.resample_to(sagittal, phantom.t1w_img, order=3), phantom.t1w)
    assert np.array_equal(grid.resample_to(phantom.t1w_img, sagittal, order=3), sagittal.get_fdata())


def test_resampling_of_integers_does_not_round():
    img = nib.Nifti1Image(np.arange(8, dtype=np.int16)[:, None, None] * np.ones((1, 4, 4), np.int16), np.eye(4))
    target = nib.Nifti1Image(np.zeros((7, 4, 4), np.float32), from_matvec(np.eye(3), (0.5, 0, 0)))
    np.testing.assert_allclose(grid.resample_to(img, target, order=1)[:, 1, 1], np.arange(7) + 0.5)


def test_resampling_is_by_world_coordinates(phantom):
    shape = (44, 40, 36)
    target = nib.Nifti1Image(np.zeros(shape, np.float32), centred(rotation(20, axis=1), shape))
    img = blob_img(phantom.t1w.shape, phantom.affine, centre_mm=(1, 0, 2))
    resampled = grid.resample_to(img, target, order=3)
    expected = blob_img(shape, target.affine, centre_mm=(1, 0, 2)).get_fdata()
    assert resampled.shape == shape
    np.testing.assert_allclose(resampled, expected, atol=2)


def test_resampling_gives_zero_outside_the_field_of_view(phantom):
    far = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), from_matvec(np.eye(3), (500, 500, 500)))
    assert not grid.resample_to(phantom.t1w_img, far, order=1).any()


def test_mask_on_its_own_grid_is_equal(phantom):
    mask = grid.conform_mask(phantom.lesion_mask_img, phantom.t1w_img)
    assert mask.dtype == bool
    assert np.array_equal(mask, phantom.lesion_mask)


def test_label_picks_one_class_of_a_segmentation(phantom):
    mask = grid.conform_mask(phantom.tissue_seg_img, phantom.t1w_img, label=2)
    assert np.array_equal(mask, phantom.tissue_seg == 2)


def test_mask_without_label_is_everything_above_zero(phantom):
    mask = grid.conform_mask(phantom.tissue_seg_img, phantom.t1w_img)
    assert np.array_equal(mask, phantom.brain_mask)


def test_label_on_another_grid_keeps_place_and_volume(phantom):
    target = grid.conform(phantom.t1w_img)
    mask = grid.conform_mask(phantom.tissue_seg_img, target, label=3)
    assert mask.shape == target.shape
    assert mask.sum() == pytest.approx(phantom.wm_mask.sum() * 0.9 * 1.0 * 1.2, rel=0.03)
    there = apply_affine(target.affine, ndimage.center_of_mass(mask))
    np.testing.assert_allclose(there, centre_of_mass_mm(phantom.wm_mask_img), atol=0.5)


def test_label_between_its_neighbours_is_not_a_mix_of_them():
    # Interpolating the numbers would put label 2 between 1 and 3.
    labels = np.ones((10, 4, 4), dtype=np.uint8)
    labels[5:] = 3
    target = nib.Nifti1Image(np.zeros((9, 4, 4), np.float32), from_matvec(np.eye(3), (0.4, 0, 0)))
    img = nib.Nifti1Image(labels, np.eye(4))
    assert not grid.conform_mask(img, target, label=2).any()
    assert np.array_equal(grid.conform_mask(img, target, label=3)[:, 1, 1], np.arange(9) >= 5)


def test_higher_threshold_gives_a_smaller_mask(phantom):
    target = grid.conform(phantom.t1w_img)
    low, high = (grid.conform_mask(phantom.lesion_mask_img, target, threshold=t) for t in (0.1, 0.9))
    assert not (high & ~low).any()
    assert 0 < high.sum() < low.sum()


# Spikes


def test_spikes_are_bounded_and_tissue_is_left_as_it_is(phantom):
    assert grid.without_spikes(phantom.t1w).tobytes() == phantom.t1w.tobytes()
    spiky = phantom.t1w.copy()
    spiky[20, 10, 14], spiky[0, 0, 0] = 1e8, -1e8
    bounded = grid.without_spikes(spiky)
    changed = bounded != spiky
    assert changed.sum() == 2
    assert np.abs(bounded[changed]).max() < 10 * 900
    assert not grid.without_spikes(np.zeros((3, 3, 3), np.float32)).any()
