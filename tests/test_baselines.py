import numpy as np
import pytest
from scipy import ndimage
from skimage.restoration import inpaint_biharmonic

from bids_lesionfill.diffusion import classical

INTERPOLATORS = [classical.membrane, classical.biharmonic]


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
    assert classical.membrane(image, mask)[2, 2, 2] == pytest.approx(np.mean(neighbours), abs=1e-4)


def test_membrane_at_the_border_is_the_mean_of_the_neighbours_that_exist(rng):
    image = rng.random((5, 5, 5))
    mask = np.zeros(image.shape, dtype=bool)
    mask[0, 0, 2] = True
    neighbours = [image[1, 0, 2], image[0, 1, 2], image[0, 0, 1], image[0, 0, 3]]
    assert classical.membrane(image, mask)[0, 0, 2] == pytest.approx(np.mean(neighbours), abs=1e-4)


def test_membrane_stays_between_the_smallest_and_largest_neighbour(rng):
    image = rng.random((14, 14, 14))
    mask = hole_in(image.shape)
    ring = image[ndimage.binary_dilation(mask) & ~mask]
    inside = classical.membrane(image, mask)[mask]
    assert ring.min() <= inside.min() <= inside.max() <= ring.max()


def test_biharmonic_agrees_with_scikit_image(rng):
    image = smooth_image((14, 15, 13), rng)
    mask = hole_in(image.shape)
    reference = inpaint_biharmonic(image, mask)
    np.testing.assert_allclose(classical.biharmonic(image, mask)[mask], reference[mask], atol=2e-3)
    assert np.abs(classical.membrane(image, mask)[mask] - reference[mask]).max() > 0.02  # the membrane is another


def test_biharmonic_reproduces_a_bowl_that_the_membrane_flattens():
    # A quadratic has curvature, but its Laplacian is constant, thus its bi-Laplacian is zero.
    x, y, z = np.meshgrid(*map(np.arange, (14, 15, 13)), indexing='ij')
    bowl = ((x - 6.5) ** 2 + (y - 7) ** 2 - (z - 6) ** 2) / 40
    mask = hole_in(bowl.shape)
    np.testing.assert_allclose(classical.biharmonic(bowl, mask)[mask], bowl[mask], atol=5e-3)
    assert np.abs(classical.membrane(bowl, mask)[mask] - bowl[mask]).max() > 0.05


def test_two_lesions_are_filled_as_each_alone(phantom):
    first = phantom.lesion_mask.copy()
    first[20:] = False
    second = phantom.lesion_mask & ~first
    assert first.any()
    assert second.any()
    both = classical.biharmonic(phantom.t1w, phantom.lesion_mask)
    np.testing.assert_allclose(both[first], classical.biharmonic(phantom.t1w, first)[first], atol=1)
    np.testing.assert_allclose(both[second], classical.biharmonic(phantom.t1w, second)[second], atol=1)


# Local white matter


def test_local_white_matter_of_flat_white_matter_is_its_value(phantom):
    image = np.where(phantom.wm_mask, np.float32(0.5), np.float32(-7))
    mean = classical.local_white_matter(image, phantom.lesion_mask, phantom.wm_mask)
    assert mean.dtype == np.float32
    assert mean.shape == image.shape
    np.testing.assert_allclose(mean, 0.5, atol=1e-4)


@pytest.mark.parametrize('garbage', [np.nan, 1e6])
def test_local_white_matter_reads_neither_lesion_nor_grey_matter(phantom, garbage):
    usual = classical.local_white_matter(phantom.t1w, phantom.lesion_mask, phantom.wm_mask)
    hidden = phantom.lesion_mask | ~phantom.wm_mask
    spoilt = np.where(hidden, np.float32(garbage), phantom.t1w)
    assert np.array_equal(classical.local_white_matter(spoilt, phantom.lesion_mask, phantom.wm_mask), usual)


def test_local_white_matter_does_not_trust_the_gap_around_the_lesion(phantom):
    usual = classical.local_white_matter(phantom.t1w, phantom.lesion_mask, phantom.wm_mask, gap_voxels=2)
    gap = ndimage.binary_dilation(phantom.lesion_mask, iterations=2)
    spoilt = np.where(gap, np.float32(1e6), phantom.t1w)
    assert np.array_equal(
        classical.local_white_matter(spoilt, phantom.lesion_mask, phantom.wm_mask, gap_voxels=2), usual
    )
    further = np.where(ndimage.binary_dilation(gap), np.float32(1e6), phantom.t1w)
    assert not np.array_equal(
        classical.local_white_matter(further, phantom.lesion_mask, phantom.wm_mask, gap_voxels=2), usual
    )


def test_local_white_matter_is_local():
    image = np.zeros((60, 12, 12), dtype=np.float32)
    image[30:] = 1
    mask = np.zeros(image.shape, dtype=bool)
    mask[8:10, 5:7, 5:7] = mask[50:52, 5:7, 5:7] = True
    mean = classical.local_white_matter(image, mask, np.ones_like(mask))
    np.testing.assert_allclose(mean[8:10, 5:7, 5:7], 0, atol=1e-4)
    np.testing.assert_allclose(mean[50:52, 5:7, 5:7], 1, atol=1e-4)


def test_local_white_matter_far_from_all_white_matter_is_the_global_mean():
    image = np.full((40, 8, 8), 5.0, dtype=np.float32)
    wm_mask = np.zeros(image.shape, dtype=bool)
    wm_mask[:4] = True
    image[:2] = 1
    image[2:4] = 2
    mean = classical.local_white_matter(image, np.zeros_like(wm_mask), wm_mask)
    np.testing.assert_allclose(mean[30:], 1.5, atol=1e-4)


def test_local_white_matter_uses_the_gap_where_there_is_nothing_else():
    wm_mask = np.zeros((9, 9, 9), dtype=bool)
    wm_mask[3:6, 3:6, 4] = True  # all within the gap of two
    lesion_mask = np.zeros_like(wm_mask)
    lesion_mask[4, 4, 4] = True
    image = np.where(wm_mask, np.float32(2), np.float32(0))
    np.testing.assert_allclose(classical.local_white_matter(image, lesion_mask, wm_mask), 2, atol=1e-4)


def test_local_white_matter_without_healthy_white_matter_says_so(phantom):
    with pytest.raises(ValueError, match='wm_mask'):
        classical.local_white_matter(phantom.t1w, phantom.wm_mask, phantom.wm_mask)


# Fillers that take their values from the white matter

BLIND_FILLERS = [classical.normal_white_matter, classical.local_white_matter_voxels, classical.patch_match]
FILLERS = [*BLIND_FILLERS, classical.ants_rule]  # ANTs' rule reads the lesion


def seeded(seed=1):
    return np.random.default_rng(seed)


@pytest.mark.parametrize('fill', FILLERS)
def test_filler_changes_all_of_the_lesion_and_nothing_else(phantom, fill):
    image, mask = phantom.normalised, phantom.lesion_mask.copy()
    filled = fill(image, phantom.lesion_mask, phantom.wm_mask, seeded())
    assert filled.dtype == image.dtype
    assert np.array_equal(filled[~mask], phantom.normalised[~mask])
    assert (filled[mask] > image[mask].max()).all()  # the phantom's lesions are dark
    assert np.array_equal(image, phantom.normalised)  # nor the arguments
    assert np.array_equal(phantom.lesion_mask, mask)


@pytest.mark.parametrize('fill', BLIND_FILLERS)
@pytest.mark.parametrize('garbage', [np.nan, 1e6])
def test_filler_never_reads_the_image_inside_the_mask(phantom, fill, garbage):
    spoilt = np.where(phantom.lesion_mask, np.float32(garbage), phantom.normalised)
    masks = phantom.lesion_mask, phantom.wm_mask
    assert np.array_equal(fill(spoilt, *masks, seeded()), fill(phantom.normalised, *masks, seeded()))


@pytest.mark.parametrize('fill', FILLERS)
def test_filler_draws_anew_with_another_seed_only(phantom, fill):
    arguments = phantom.normalised, phantom.lesion_mask, phantom.wm_mask
    assert np.array_equal(fill(*arguments, seeded(1)), fill(*arguments, seeded(1)))
    assert not np.array_equal(fill(*arguments, seeded(1)), fill(*arguments, seeded(2)))


@pytest.mark.parametrize('fill', FILLERS)
def test_filler_puts_the_value_of_flat_white_matter_whatever_surrounds_it(phantom, fill):
    image = np.where(phantom.wm_mask, np.float32(0.5), np.float32(-7))
    filled = fill(np.where(phantom.lesion_mask, np.float32(0), image), phantom.lesion_mask, phantom.wm_mask, seeded())
    assert np.array_equal(filled, image)


@pytest.mark.parametrize('fill', FILLERS)
def test_filler_of_an_empty_mask_is_an_equal_copy(phantom, fill):
    image = phantom.normalised
    filled = fill(image, np.zeros_like(phantom.lesion_mask), phantom.wm_mask, seeded())
    assert np.array_equal(filled, image)
    assert not np.shares_memory(filled, image)


@pytest.mark.parametrize('fill', FILLERS)
def test_filler_without_healthy_white_matter_says_so(phantom, fill):
    with pytest.raises(ValueError, match='wm_mask'):
        fill(phantom.normalised, phantom.wm_mask, phantom.wm_mask, seeded())


@pytest.mark.parametrize('fill', FILLERS)
def test_filler_reaches_into_the_corners_of_the_volume(fill):
    image = np.full((12, 11, 10), 0.5, dtype=np.float32)
    mask = np.zeros(image.shape, dtype=bool)
    mask[:3, :2, :3] = mask[-2:, -3:, -1:] = True
    assert np.array_equal(fill(np.where(mask, np.float32(0), image), mask, np.ones_like(mask), seeded()), image)


@pytest.mark.parametrize('fill', FILLERS)
def test_filler_makes_do_with_one_white_matter_voxel(fill):
    mask = np.zeros((9, 9, 9), dtype=bool)
    mask[2:7, 2:7, 2:7] = True
    wm_mask = mask.copy()
    wm_mask[1, 4, 4] = True
    image = np.where(wm_mask & ~mask, np.float32(0.5), np.float32(-1))
    assert (fill(image, mask, wm_mask, seeded())[mask] == 0.5).all()


@pytest.fixture
def two_tones(rng):
    """Noisy white matter, dark (0.2) before and bright (0.8) behind the middle of the last axis; a lesion in each."""
    image = np.full((20, 20, 40), 0.2) + (np.arange(40) >= 20) * 0.6 + rng.normal(0, 0.02, (20, 20, 40))
    mask = np.zeros(image.shape, dtype=bool)
    mask[5:15, 5:15, 5:10] = mask[5:15, 5:15, 30:35] = True
    return np.where(mask, 0.0, image), mask


@pytest.mark.parametrize('fill', FILLERS)
def test_filler_takes_white_matter_from_nearby(two_tones, fill):
    image, mask = two_tones
    filled = fill(image, mask, np.ones_like(mask), seeded())
    np.testing.assert_allclose(filled[5:15, 5:15, 5:10], 0.2, atol=0.15)
    np.testing.assert_allclose(filled[5:15, 5:15, 30:35], 0.8, atol=0.15)


@pytest.mark.parametrize('share', [0.5, 1.0])
def test_normal_white_matter_has_the_mean_and_the_share_of_deviation_of_its_slice(two_tones, share):
    image, mask = two_tones
    filled = classical.normal_white_matter(image, mask, np.ones_like(mask), seeded(), deviation_share=share)
    for z in (6, 32):
        white_matter, lesion = image[..., z][~mask[..., z]], filled[..., z][mask[..., z]]
        assert lesion.mean() == pytest.approx(white_matter.mean(), abs=0.01)
        assert lesion.std() == pytest.approx(share * white_matter.std(), rel=0.3)


def test_normal_white_matter_of_a_slice_with_hardly_any_is_that_of_the_volume(two_tones):
    image, mask = two_tones
    wm_mask = np.ones_like(mask)
    wm_mask[..., 6] = False
    wm_mask[0, :19, 6] = True  # 19 voxels
    few = classical.normal_white_matter(image, mask, wm_mask, seeded(), deviation_share=0)
    np.testing.assert_allclose(few[..., 6][mask[..., 6]], image[wm_mask & ~mask].mean(), atol=1e-6)
    wm_mask[0, 19, 6] = True  # 20
    enough = classical.normal_white_matter(image, mask, wm_mask, seeded(), deviation_share=0)
    np.testing.assert_allclose(enough[..., 6][mask[..., 6]], image[0, :, 6].mean(), atol=1e-6)


def test_local_voxels_are_values_of_the_white_matter_within_the_radius_of_each_lesion(phantom):
    image = phantom.normalised
    filled = classical.local_white_matter_voxels(image, phantom.lesion_mask, phantom.wm_mask, seeded())
    labels, n_lesions = ndimage.label(phantom.lesion_mask)
    assert n_lesions == 2
    for number in (1, 2):
        ball = ndimage.distance_transform_edt(labels != number) <= 3
        assert np.isin(filled[labels == number], image[ball & phantom.wm_mask & ~phantom.lesion_mask]).all()


def test_local_voxels_look_further_where_white_matter_is_sparse():
    mask = np.zeros((40, 9, 9), dtype=bool)
    mask[2:4] = True
    wm_mask = np.zeros_like(mask)
    wm_mask[20:] = True  # 17 voxels away
    image = np.where(np.arange(40)[:, None, None] <= 27, 1.0, 2.0) * wm_mask
    filled = classical.local_white_matter_voxels(image, mask, wm_mask, seeded())
    assert (filled[mask] == 1).all()  # the doubled radius, 24 voxels, reaches no further than that


def test_ants_rule_leaves_a_lesion_brighter_than_its_surroundings(phantom):
    bright = phantom.lesion_mask.copy()
    bright[:20] = False  # one of the two
    assert bright.any()
    image = np.where(bright, np.float32(0.51), phantom.normalised)  # brighter than most of them, but not than all
    filled = classical.ants_rule(image, phantom.lesion_mask, phantom.wm_mask, seeded())
    dark = phantom.lesion_mask & ~bright
    assert np.array_equal(filled[~dark], image[~dark])
    assert (filled[dark] > image[dark].mean()).all()


def test_ants_rule_draws_from_adjacent_white_matter_brighter_than_the_lesion(rng):
    image = rng.uniform(0, 1, (16, 16, 16))
    mask = np.zeros(image.shape, dtype=bool)
    mask[5:11, 5:11, 5:11] = True
    image[mask] = rng.uniform(0.3, 0.4, mask.sum())  # brighter than a third of its surroundings
    filled = classical.ants_rule(image, mask, np.ones_like(mask), seeded())
    edge = image[ndimage.binary_dilation(mask, structure=np.ones((3, 3, 3))) & ~mask]
    assert set(filled[mask]) <= set(edge[edge > image[mask].mean()])
    assert len(set(filled[mask])) > 50


def test_ants_rule_leaves_a_lesion_that_touches_no_white_matter(phantom):
    wm_mask = phantom.wm_mask & ~ndimage.binary_dilation(phantom.lesion_mask, structure=np.ones((3, 3, 3)))
    filled = classical.ants_rule(phantom.normalised, phantom.lesion_mask, wm_mask, seeded())
    assert np.array_equal(filled, phantom.normalised)


def stripes(shape):
    return 0.5 + 0.2 * np.sin(2 * np.pi * (np.arange(shape[0]) + 0.25) / 6)[:, None, None] * np.ones(shape)


def ramp(shape):
    return 0.3 + 0.02 * np.arange(shape[1])[:, None] * np.ones(shape)


@pytest.mark.parametrize(('pattern', 'share_of_error'), [(stripes, 0.05), (ramp, 0.2)])
def test_patch_match_continues_a_pattern(rng, pattern, share_of_error):
    truth = pattern((30, 26, 24))
    image = truth + rng.normal(0, 0.01, truth.shape)
    mask = np.zeros(truth.shape, dtype=bool)
    mask[11:19, 9:16, 9:15] = True

    def error(fill):
        return ((fill(np.where(mask, -1, image), mask, np.ones_like(mask), seeded()) - truth)[mask] ** 2).mean()

    assert error(classical.patch_match) < share_of_error * error(classical.normal_white_matter)


def test_patch_match_copies_white_matter_only(phantom):
    filled = classical.patch_match(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, seeded())
    white_matter = phantom.normalised[phantom.wm_mask & ~phantom.lesion_mask]
    assert np.isin(filled[phantom.lesion_mask], white_matter).all()
    assert len(np.unique(filled[phantom.lesion_mask])) > 0.3 * phantom.lesion_mask.sum()  # not one for all


def test_patch_match_of_the_core_builds_on_the_layers_filled_before(rng):
    # Every slab along the second axis is another grey: a small patch in the core sees only what was filled before it.
    truth = np.repeat(rng.permutation(26) / 26, 24).reshape(1, 26, 24) * np.ones((30, 1, 1))
    truth = truth.astype(np.float32)
    mask = np.zeros(truth.shape, dtype=bool)
    mask[11:18, 9:16, 9:16] = True
    filled = classical.patch_match(
        np.where(mask, -1, truth), mask, np.ones_like(mask), seeded(), radius_voxels=1, n_candidates=2000
    )
    assert (filled[mask] == truth[mask]).mean() > 0.9
