import numpy as np
import pytest
from scipy import ndimage

from bids_lesionfill.lesions import contrasts as lesions_contrasts
from bids_lesionfill.modality import T1W


def paint(phantom, contrast=0.3, edge_voxels=0.8):
    return lesions_contrasts.paint_lesion(
        phantom.normalised_healthy, phantom.lesion_mask, phantom.wm_mask, contrast, edge_voxels
    )


def test_painting_changes_white_matter_only(phantom):
    painted, alpha = paint(phantom)
    assert np.array_equal(painted[~phantom.wm_mask], phantom.normalised_healthy[~phantom.wm_mask])
    assert not alpha[~phantom.wm_mask].any()


def test_painting_subtracts_contrast_times_alpha(phantom):
    painted, alpha = paint(phantom, contrast=0.3)
    np.testing.assert_allclose(phantom.normalised_healthy - painted, 0.3 * alpha, atol=1e-6)
    assert (phantom.normalised_healthy - painted).max() == pytest.approx(0.3, rel=0.11)  # alpha peaks at .9 or more


def test_alpha_runs_from_zero_to_one_and_is_highest_inside_the_mask(phantom):
    _, alpha = paint(phantom)
    assert alpha.min() == 0
    assert 0.9 <= alpha.max() <= 1
    assert phantom.lesion_mask[np.unravel_index(alpha.argmax(), alpha.shape)]
    assert alpha[phantom.lesion_mask].mean() > 0.5


def test_soft_edge_reaches_beyond_the_mask_and_a_harder_one_less(phantom):
    beyond = phantom.wm_mask & ~phantom.lesion_mask
    soft, hard = paint(phantom, edge_voxels=1.3)[1], paint(phantom, edge_voxels=0.5)[1]
    assert soft[beyond].sum() > 1.5 * hard[beyond].sum() > 0


def test_edge_without_blur_is_the_mask_itself(phantom):
    _, alpha = paint(phantom, edge_voxels=0)
    assert np.array_equal(alpha, phantom.lesion_mask.astype(np.float32))


def test_small_lesion_does_not_lose_its_peak_to_the_blur():
    lesion_mask = np.zeros((11, 11, 11), dtype=bool)
    lesion_mask[5, 5, 5] = True
    image = np.zeros(lesion_mask.shape, dtype=np.float32)
    _, alpha = lesions_contrasts.paint_lesion(image, lesion_mask, np.ones_like(lesion_mask), 0.3, edge_voxels=1.3)
    assert alpha[5, 5, 5] == pytest.approx(0.9)


def test_painting_an_empty_mask_changes_nothing(phantom):
    empty = np.zeros_like(phantom.lesion_mask)
    painted, alpha = lesions_contrasts.paint_lesion(phantom.normalised_healthy, empty, phantom.wm_mask, 0.3, 0.8)
    assert np.array_equal(painted, phantom.normalised_healthy)
    assert not alpha.any()


def test_painting_leaves_the_image_alone_and_keeps_single_precision(phantom):
    image = phantom.normalised_healthy
    before = image.copy()
    painted, alpha = lesions_contrasts.paint_lesion(image, phantom.lesion_mask, phantom.wm_mask, 0.3, 0.8)
    assert np.array_equal(image, before)
    assert painted.dtype == alpha.dtype == np.float32


@pytest.mark.parametrize('edge_voxels', [0.5, 0.8, 1.3])
@pytest.mark.parametrize('gap', [2, 3, 8])
def test_lone_voxel_beside_a_big_lesion_keeps_its_peak_too(edge_voxels, gap):
    lesion_mask = np.zeros((30, 20, 20), dtype=bool)
    lesion_mask[3:12, 5:14, 5:14] = True
    lone = 11 + 1 + gap, 9, 9
    image, wm_mask = np.zeros(lesion_mask.shape, dtype=np.float32), np.ones_like(lesion_mask)
    _, without = lesions_contrasts.paint_lesion(image, lesion_mask, wm_mask, 0.3, edge_voxels)
    lesion_mask[lone] = True
    _, alpha = lesions_contrasts.paint_lesion(image, lesion_mask, wm_mask, 0.3, edge_voxels)
    assert alpha[lone] == pytest.approx(0.9, abs=0.05)
    assert alpha[12 : lone[0]].max() < alpha[lone]  # what lies between, outside the mask, is not painted over
    assert alpha.max() <= 1
    np.testing.assert_allclose(alpha[:9], without[:9], atol=0.02)  # the big lesion is what it was


def test_big_lesion_is_its_blurred_mask():
    lesion_mask = np.zeros((24, 22, 20), dtype=bool)
    lesion_mask[7:17, 6:15, 5:15] = True
    image = np.zeros(lesion_mask.shape, dtype=np.float32)
    for mask in (lesion_mask, np.roll(lesion_mask, (-7, 0, -5), axis=(0, 1, 2))):  # inside, and cut by the border
        _, alpha = lesions_contrasts.paint_lesion(image, mask, np.ones_like(mask), 0.3, 0.9)
        np.testing.assert_allclose(alpha, ndimage.gaussian_filter(mask.astype(np.float32), 0.9), atol=1e-5)


def test_soft_edges_of_neighbouring_lesions_add_up_to_one_at_most():
    mask = np.zeros((26, 17, 17), dtype=bool)
    mask[4:12, 4:13, 4:13] = mask[13:22, 4:13, 4:13] = True
    image = np.zeros(mask.shape, dtype=np.float32)
    _, alpha = lesions_contrasts.paint_lesion(image, mask, np.ones_like(mask), 0.3, 0.9)
    np.testing.assert_allclose(alpha, ndimage.gaussian_filter(mask.astype(np.float32), 0.9), atol=1e-5)

    lone_voxels = np.zeros_like(mask)
    lone_voxels[[8, 10], 8, 8] = True
    _, alpha = lesions_contrasts.paint_lesion(image, lone_voxels, np.ones_like(mask), 0.3, 1.3)
    assert alpha.max() == 1


@pytest.mark.parametrize('edge_voxels', [0.56, 1.3])
def test_lesion_outside_white_matter_does_not_flood_it(edge_voxels):
    lesion_mask = np.zeros((20, 20, 20), dtype=bool)
    lesion_mask[12, 10, 10] = True
    wm_mask = np.zeros_like(lesion_mask)
    wm_mask[:11] = True
    image = np.zeros(lesion_mask.shape, dtype=np.float32)
    _, alpha = lesions_contrasts.paint_lesion(image, lesion_mask, wm_mask, 0.3, edge_voxels)
    assert (alpha > 0.5).sum() < 10


# Contrast and coarse lesions


def test_drawn_contrast_is_one_of_visible_measured_lesions(rng):
    drawn = np.array([lesions_contrasts.draw_contrast(rng) for _ in range(4000)])
    assert 0.15 <= drawn.min() < 0.17
    assert 0.68 < drawn.max() <= 0.706
    # 0.15 is percentile 22.3; the middle between that and the last one, 95, is 58.7.
    assert np.median(drawn) == pytest.approx(0.326 + (0.518 - 0.326) * (58.66 - 50) / 25, abs=0.02)


def test_drawn_contrast_follows_the_measured_percentiles_if_all_are_allowed(rng):
    drawn = np.array([lesions_contrasts.draw_contrast(rng, lowest=0) for _ in range(4000)])
    assert 0.041 <= drawn.min() < 0.06
    for percentile in (25, 50, 75):
        share = (drawn < T1W.contrast_percentiles[percentile]).mean()
        assert share == pytest.approx((percentile - 5) / 90, abs=0.03)


def test_contrast_is_reproducible_and_a_plain_number():
    first, again, other = (lesions_contrasts.draw_contrast(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert type(first) is float


@pytest.mark.parametrize(
    ('intensity', 'expected'),
    [('first-quartile', 10), ('mean', 32), ('median', 20), ('third-quartile', 30), ('percentile-99', 97.2)],
)
def test_coarse_lesion_by_hand(phantom, intensity, expected):
    image = phantom.normalised_healthy
    before = image.copy()
    intensities = np.array([30.0, 0, 100, 10, 20])
    painted = lesions_contrasts.coarse_lesion(image, phantom.lesion_mask, intensities, intensity)
    np.testing.assert_allclose(painted[phantom.lesion_mask], expected, rtol=1e-6)
    assert np.array_equal(painted[~phantom.lesion_mask], before[~phantom.lesion_mask])
    assert np.array_equal(image, before)
    assert painted.dtype == np.float32


def test_coarse_lesion_is_the_median_if_nothing_is_said(phantom):
    arguments = phantom.normalised, phantom.lesion_mask, np.array([1.0, 2, 9])
    assert np.array_equal(
        lesions_contrasts.coarse_lesion(*arguments), lesions_contrasts.coarse_lesion(*arguments, 'median')
    )


def test_unknown_intensity_names_those_that_exist(phantom):
    with pytest.raises(ValueError, match="'mode'.*first-quartile.*mean.*median.*percentile-99.*third-quartile"):
        lesions_contrasts.coarse_lesion(phantom.normalised, phantom.lesion_mask, np.ones(3), 'mode')


def test_coarse_lesion_without_intensities_is_refused(phantom):
    with pytest.raises(ValueError, match='no lesion intensities'):
        lesions_contrasts.coarse_lesion(phantom.normalised, phantom.lesion_mask, np.array([]))


# Contrasts that are asked for

FIVE = np.full(5, 10.0), np.array([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize('sign', [1, -1], ids=['FLAIR', 'T1w'])
def test_asked_strength_is_the_quantile_of_known_contrasts_away_from_white_matter(sign):
    volumes, contrasts = FIVE
    found = lesions_contrasts.choose_contrasts([10] * 4, [0, 0.5, 0.625, 1], volumes, sign * contrasts, sign)
    np.testing.assert_allclose(found, sign * np.array([0.2, 0.6, 0.7, 1.0]))


def test_contrast_is_that_of_lesions_of_about_the_same_size():
    known_volumes = np.repeat([10.0, 1000], 20)
    known_contrasts = np.repeat([0.3, 0.9], 20)
    volumes = [5, 90, 110, 5000]  # 100 is as far from both, on a scale of factors
    found = lesions_contrasts.choose_contrasts(volumes, [0.5] * 4, known_volumes, known_contrasts, 1)
    np.testing.assert_allclose(found, [0.3, 0.3, 0.9, 0.9])


def test_new_lesions_are_never_of_the_wrong_sign():
    volumes, contrasts = FIVE
    bright = lesions_contrasts.choose_contrasts([10, 10], [0, 0.9], volumes, contrasts - 0.9, 1)
    dark = lesions_contrasts.choose_contrasts([10, 10], [0, 0.9], volumes, contrasts + 0.1, -1)
    np.testing.assert_allclose(bright, [0.1, 0.1])
    np.testing.assert_allclose(dark, [0, 0])
