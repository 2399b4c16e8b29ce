import numpy as np
import pytest
from scipy import ndimage
from skimage.restoration import inpaint_biharmonic

from bids_lesionfill import baselines

INTERPOLATORS = [baselines.membrane, baselines.biharmonic]


def hole_in(shape, start=5, stop=9):
    mask = np.zeros(shape, dtype=bool)
    mask[start:stop, start : stop + 1, start : stop - 1] = True
    return mask


def smooth_image(shape, rng, sigma=2.0):
    image = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
    return (image - image.min()) / np.ptp(image)


@pytest.mark.parametrize('fill', INTERPOLATORS)
def test_fill_equals_the_image_outside_the_mask(phantom, fill):
    filled = fill(phantom.t1w, phantom.lesion_mask)
    assert filled.dtype == phantom.t1w.dtype
    assert np.array_equal(filled[~phantom.lesion_mask], phantom.t1w[~phantom.lesion_mask])
    assert (filled[phantom.lesion_mask] != phantom.t1w[phantom.lesion_mask]).all()


@pytest.mark.parametrize('fill', INTERPOLATORS)
def test_fill_of_an_empty_mask_is_an_equal_copy(phantom, fill):
    filled = fill(phantom.t1w, np.zeros_like(phantom.lesion_mask))
    assert np.array_equal(filled, phantom.t1w)
    filled[:] = 0
    assert phantom.t1w.any()


@pytest.mark.parametrize('fill', INTERPOLATORS)
@pytest.mark.parametrize('garbage', [np.nan, np.inf, 1e6])
def test_fill_never_reads_the_image_inside_the_mask(phantom, fill, garbage):
    spoilt = np.where(phantom.lesion_mask, np.float32(garbage), phantom.t1w)
    assert np.array_equal(fill(spoilt, phantom.lesion_mask), fill(phantom.t1w, phantom.lesion_mask))


@pytest.mark.parametrize('fill', INTERPOLATORS)
def test_fill_leaves_its_arguments_alone(phantom, fill):
    t1w, lesion_mask = phantom.t1w.copy(), phantom.lesion_mask.copy()
    fill(phantom.t1w, phantom.lesion_mask)
    assert np.array_equal(phantom.t1w, t1w)
    assert np.array_equal(phantom.lesion_mask, lesion_mask)


@pytest.mark.parametrize('fill', INTERPOLATORS)
@pytest.mark.parametrize('direction', [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.4, -0.3, 0.2)])
def test_linear_ramp_is_reproduced(fill, direction):
    x, y, z = np.meshgrid(*map(np.arange, (14, 15, 13)), indexing='ij')
    ramp = direction[0] * x + direction[1] * y + direction[2] * z + 3.0
    mask = hole_in(ramp.shape)
    filled = fill(np.where(mask, 0, ramp), mask)
    np.testing.assert_allclose(filled[mask], ramp[mask], atol=2e-3)


@pytest.mark.parametrize('fill', INTERPOLATORS)
def test_constant_image_is_reproduced_up_to_the_border_of_the_volume(fill):
    image = np.full((8, 8, 8), 0.5)
    mask = np.zeros(image.shape, dtype=bool)
    mask[:3, 2:5, 6:] = True  # a lesion in the edge of the volume
    np.testing.assert_allclose(fill(np.where(mask, -9, image), mask), image, atol=1e-3)


def test_membrane_of_one_voxel_is_the_mean_of_its_six_neighbours(rng):
    image = rng.random((5, 5, 5))
    mask = np.zeros(image.shape, dtype=bool)
    mask[2, 2, 2] = True
    neighbours = [image[1, 2, 2], image[3, 2, 2], image[2, 1, 2], image[2, 3, 2], image[2, 2, 1], image[2, 2, 3]]
    assert baselines.membrane(image, mask)[2, 2, 2] == pytest.approx(np.mean(neighbours), abs=1e-4)


def test_membrane_at_the_border_is_the_mean_of_the_neighbours_that_exist(rng):
    image = rng.random((5, 5, 5))
    mask = np.zeros(image.shape, dtype=bool)
    mask[0, 0, 2] = True
    neighbours = [image[1, 0, 2], image[0, 1, 2], image[0, 0, 1], image[0, 0, 3]]
    assert baselines.membrane(image, mask)[0, 0, 2] == pytest.approx(np.mean(neighbours), abs=1e-4)


def test_membrane_stays_between_the_smallest_and_largest_neighbour(rng):
    image = rng.random((14, 14, 14))
    mask = hole_in(image.shape)
    ring = image[ndimage.binary_dilation(mask) & ~mask]
    inside = baselines.membrane(image, mask)[mask]
    assert ring.min() <= inside.min() <= inside.max() <= ring.max()


def test_biharmonic_agrees_with_scikit_image(rng):
    image = smooth_image((14, 15, 13), rng)
    mask = hole_in(image.shape)
    reference = inpaint_biharmonic(image, mask)
    np.testing.assert_allclose(baselines.biharmonic(image, mask)[mask], reference[mask], atol=2e-3)
    assert np.abs(baselines.membrane(image, mask)[mask] - reference[mask]).max() > 0.02  # the membrane is another


def test_biharmonic_reproduces_a_bowl_that_the_membrane_flattens():
    # A quadratic has curvature, but its Laplacian is constant, thus its bi-Laplacian is zero.
    x, y, z = np.meshgrid(*map(np.arange, (14, 15, 13)), indexing='ij')
    bowl = ((x - 6.5) ** 2 + (y - 7) ** 2 - (z - 6) ** 2) / 40
    mask = hole_in(bowl.shape)
    np.testing.assert_allclose(baselines.biharmonic(bowl, mask)[mask], bowl[mask], atol=5e-3)
    assert np.abs(baselines.membrane(bowl, mask)[mask] - bowl[mask]).max() > 0.05


def test_two_lesions_are_filled_as_each_alone(phantom):
    first = phantom.lesion_mask.copy()
    first[20:] = False
    second = phantom.lesion_mask & ~first
    assert first.any()
    assert second.any()
    both = baselines.biharmonic(phantom.t1w, phantom.lesion_mask)
    np.testing.assert_allclose(both[first], baselines.biharmonic(phantom.t1w, first)[first], atol=1)
    np.testing.assert_allclose(both[second], baselines.biharmonic(phantom.t1w, second)[second], atol=1)


# Local white matter


def test_local_white_matter_of_flat_white_matter_is_its_value(phantom):
    image = np.where(phantom.wm_mask, np.float32(0.5), np.float32(-7))
    mean = baselines.local_white_matter(image, phantom.lesion_mask, phantom.wm_mask)
    assert mean.dtype == np.float32
    assert mean.shape == image.shape
    np.testing.assert_allclose(mean, 0.5, atol=1e-4)


@pytest.mark.parametrize('garbage', [np.nan, 1e6])
def test_local_white_matter_reads_neither_lesion_nor_grey_matter(phantom, garbage):
    usual = baselines.local_white_matter(phantom.t1w, phantom.lesion_mask, phantom.wm_mask)
    hidden = phantom.lesion_mask | ~phantom.wm_mask
    spoilt = np.where(hidden, np.float32(garbage), phantom.t1w)
    assert np.array_equal(baselines.local_white_matter(spoilt, phantom.lesion_mask, phantom.wm_mask), usual)


def test_local_white_matter_does_not_trust_the_gap_around_the_lesion(phantom):
    usual = baselines.local_white_matter(phantom.t1w, phantom.lesion_mask, phantom.wm_mask, gap_voxels=2)
    gap = ndimage.binary_dilation(phantom.lesion_mask, iterations=2)
    spoilt = np.where(gap, np.float32(1e6), phantom.t1w)
    assert np.array_equal(
        baselines.local_white_matter(spoilt, phantom.lesion_mask, phantom.wm_mask, gap_voxels=2), usual
    )
    further = np.where(ndimage.binary_dilation(gap), np.float32(1e6), phantom.t1w)
    assert not np.array_equal(
        baselines.local_white_matter(further, phantom.lesion_mask, phantom.wm_mask, gap_voxels=2), usual
    )


def test_local_white_matter_is_local():
    image = np.zeros((60, 12, 12), dtype=np.float32)
    image[30:] = 1
    mask = np.zeros(image.shape, dtype=bool)
    mask[8:10, 5:7, 5:7] = mask[50:52, 5:7, 5:7] = True
    mean = baselines.local_white_matter(image, mask, np.ones_like(mask))
    np.testing.assert_allclose(mean[8:10, 5:7, 5:7], 0, atol=1e-4)
    np.testing.assert_allclose(mean[50:52, 5:7, 5:7], 1, atol=1e-4)


def test_local_white_matter_far_from_all_white_matter_is_the_global_mean():
    image = np.full((40, 8, 8), 5.0, dtype=np.float32)
    wm_mask = np.zeros(image.shape, dtype=bool)
    wm_mask[:4] = True
    image[:2] = 1
    image[2:4] = 2
    mean = baselines.local_white_matter(image, np.zeros_like(wm_mask), wm_mask)
    np.testing.assert_allclose(mean[30:], 1.5, atol=1e-4)


def test_local_white_matter_uses_the_gap_where_there_is_nothing_else():
    wm_mask = np.zeros((9, 9, 9), dtype=bool)
    wm_mask[3:6, 3:6, 4] = True  # all within the gap of two
    lesion_mask = np.zeros_like(wm_mask)
    lesion_mask[4, 4, 4] = True
    image = np.where(wm_mask, np.float32(2), np.float32(0))
    np.testing.assert_allclose(baselines.local_white_matter(image, lesion_mask, wm_mask), 2, atol=1e-4)


def test_local_white_matter_without_healthy_white_matter_says_so(phantom):
    with pytest.raises(ValueError, match='wm_mask'):
        baselines.local_white_matter(phantom.t1w, phantom.wm_mask, phantom.wm_mask)
