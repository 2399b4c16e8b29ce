import math

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import cohen_kappa_score

from bids_lesionfill import statistics
from bids_lesionfill.images import metrics


@pytest.fixture
def truth(rng):
    return rng.uniform(-1, 1, (16, 18, 5))


@pytest.fixture
def mask():
    mask = np.zeros((16, 18, 5), dtype=bool)
    mask[4:8, 5:10, 1] = True
    mask[9:12, 5:9, 3] = True
    return mask


def test_equal_images_have_no_error_and_full_similarity(truth, mask):
    scores = metrics.slice_scores(truth, truth.copy(), mask)
    assert scores['mse'] == 0
    assert scores['ssim'] == pytest.approx(1)
    assert scores['psnr'] > 100
    assert np.isfinite(scores['psnr'])


def test_mse_and_psnr_by_hand(truth, mask):
    # A difference of 0.1 everywhere: MSE 0.01, PSNR 10 log10(2^2 / 0.01) = 26.02 dB.
    scores = metrics.slice_scores(truth, truth + 0.1, mask)
    assert scores['mse'] == pytest.approx(0.01)
    assert scores['psnr'] == pytest.approx(26.0206, abs=1e-4)


def test_mean_squared_error_reads_the_mask_only():
    true = np.zeros((4, 4))
    test = np.full((4, 4), 7.0)
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, :2] = True
    test[0, :2] = 1, 3
    assert metrics.mean_squared_error(true, test, mask) == pytest.approx((1 + 9) / 2)


def test_slices_count_equally_whatever_their_share_of_the_mask(truth, mask):
    test = truth.copy()
    test[..., 1] += 0.1  # 20 voxels of mask: MSE 0.01, 26.02 dB
    test[..., 3] += 0.2  # 12 voxels of mask: MSE 0.04, 20 dB
    scores = metrics.slice_scores(truth, test, mask)
    assert scores['mse'] == pytest.approx(0.025)
    assert scores['psnr'] == pytest.approx((26.0206 + 20) / 2, abs=1e-4)  # not the PSNR of the mean MSE


def test_slices_without_mask_are_skipped(truth, mask):
    test = truth.copy()
    test[..., [0, 2, 4]] = 9
    assert metrics.slice_scores(truth, test, mask) == metrics.slice_scores(truth, truth, mask)


def test_empty_mask_gives_nan(truth, mask):
    scores = metrics.slice_scores(truth, truth, np.zeros_like(mask))
    assert sorted(scores) == ['mse', 'psnr', 'ssim']
    assert all(np.isnan(value) for value in scores.values())


def test_ssim_of_two_flat_images_by_hand():
    # Without variance SSIM is (2 a b + c) / (a^2 + b^2 + c) with c = (0.01 * data range)^2 and data range 2.
    a, b, c = 0.02, 0.05, (0.01 * 2) ** 2
    ssim_map = metrics.similarity_map(np.full((9, 9), a), np.full((9, 9), b))
    assert ssim_map == pytest.approx((2 * a * b + c) / (a**2 + b**2 + c))


def test_ssim_sees_a_window_of_7x7_pixels(rng):
    true = rng.uniform(-1, 1, (21, 21))
    for distance, seen in ((3, True), (4, False)):
        test = true.copy()
        test[10 + distance, 10 + distance] += 1
        score = metrics.similarity_map(true, test)[10, 10]
        assert (score < 1 - 1e-4) == seen


def test_ssim_is_averaged_over_the_mask_alone(rng):
    true = rng.uniform(-1, 1, (24, 24, 1))
    test = true.copy()
    test[:, 12:] += rng.normal(0, 0.5, (24, 12, 1))
    clean, noisy = np.zeros((2, 24, 24, 1), dtype=bool)
    clean[8:16, 2:8] = True  # 4 pixels away from the noise
    noisy[8:16, 16:22] = True
    assert metrics.slice_scores(true, test, clean)['ssim'] == pytest.approx(1)
    score = metrics.slice_scores(true, test, noisy)['ssim']
    assert score < 0.95
    assert metrics.slice_scores(true, test, clean | noisy)['ssim'] == pytest.approx((1 + score) / 2)


def test_scores_fall_as_noise_grows(truth, mask, rng):
    noise = rng.normal(size=truth.shape)
    little, much = (metrics.slice_scores(truth, truth + sigma * noise, mask) for sigma in (0.05, 0.3))
    assert little['mse'] < much['mse']
    assert little['psnr'] > much['psnr']
    assert little['ssim'] > much['ssim']


def test_slices_are_axial(truth):
    mask = np.zeros(truth.shape, dtype=bool)
    mask[4, 5:9, :] = True
    test = truth.copy()
    test[..., 0] += 0.4
    # One of five axial slices is wrong: PSNR of the other four is at the ceiling. Along X there is but one slice.
    perfect = metrics.slice_scores(truth, truth, mask)['psnr']
    wrong = 10 * np.log10(4 / 0.16)
    assert metrics.slice_scores(truth, test, mask)['psnr'] == pytest.approx((4 * perfect + wrong) / 5)


def test_regions_by_hand(truth, mask):
    # Off by 0.2 inside the mask and by 0.1 outside of it; the mask has 20 and 12 of a slice's 288 pixels.
    scores = metrics.region_scores(truth, truth + np.where(mask, 0.2, 0.1), mask)
    whole = [(n * 0.04 + (288 - n) * 0.01) / 288 for n in (20, 12)]
    assert scores['mse_in'] == pytest.approx(0.04)
    assert scores['mse_out'] == pytest.approx(0.01)
    assert scores['mse_whole'] == pytest.approx(np.mean(whole))
    assert scores['psnr_in'] == pytest.approx(20)
    assert scores['psnr_out'] == pytest.approx(26.0206, abs=1e-4)
    assert scores['psnr_whole'] == pytest.approx(np.mean(10 * np.log10(4 / np.array(whole))))


def test_ssim_of_the_regions_adds_up_to_the_whole(truth, rng):
    mask = np.zeros(truth.shape, dtype=bool)
    mask[4:8, 5:10, 2] = True
    scores = metrics.region_scores(truth, truth + rng.normal(0, 0.3, truth.shape), mask)
    share = 20 / 288
    assert scores['ssim_whole'] == pytest.approx(share * scores['ssim_in'] + (1 - share) * scores['ssim_out'])
    assert scores['ssim_in'] != pytest.approx(scores['ssim_out'], abs=1e-3)


def test_inside_is_what_slice_scores_reports(truth, mask, rng):
    test = truth + rng.normal(0, 0.2, truth.shape)
    regions = metrics.region_scores(truth, test, mask)
    assert ' '.join(regions) == 'mse_in psnr_in ssim_in mse_out psnr_out ssim_out mse_whole psnr_whole ssim_whole'
    for metric, value in metrics.slice_scores(truth, test, mask).items():
        assert regions[f'{metric}_in'] == value


def test_a_change_inside_the_mask_leaves_the_error_outside_at_zero(truth, mask):
    scores = metrics.region_scores(truth, np.where(mask, truth + 0.5, truth), mask)
    assert scores['mse_out'] == 0
    assert scores['mse_in'] == pytest.approx(0.25)
    assert scores['ssim_in'] < scores['ssim_whole'] < scores['ssim_out'] < 1  # windows of 7x7 reach across the border


def test_a_slice_full_of_mask_has_no_outside(truth, mask):
    full = np.zeros_like(mask)
    full[..., 0] = True
    scores = metrics.region_scores(truth, truth + 0.1, full)
    assert all(np.isnan(scores[f'{metric}_out']) for metric in ('mse', 'psnr', 'ssim'))
    assert scores['mse_in'] == scores['mse_whole'] == pytest.approx(0.01)
    test = truth + 0.1
    test[..., 0] += 5
    outside = metrics.region_scores(truth, test, mask | full)  # slices 1 and 3 alone have an outside
    assert outside['mse_out'] == pytest.approx(0.01)


@pytest.fixture
def brats():
    """A truth of percentiles 0 and 1 outside the mask: half of it 0, half 1; inside 0.2 and 0.6."""
    image = np.zeros((14, 16, 18))
    image[7:] = 1
    mask = np.zeros(image.shape, dtype=bool)
    mask[5:9, 6:10, 7:11] = True
    image[mask] = 0.2
    image[5:9, 6:10, 7:9] = 0.6
    return image, mask


def test_brats_error_by_hand(brats):
    true, mask = brats
    scores = metrics.brats_scores(true, true + 0.1, mask)
    assert scores['mse'] == pytest.approx(0.01)
    assert scores['psnr'] == pytest.approx(10 * np.log10(0.4**2 / 0.01))  # 12.04 dB: the truth's range is 0.4


def test_brats_images_are_clipped_to_the_percentiles(brats):
    true, mask = brats
    test = np.where(true == 0.2, 7.0, true)  # becomes 1: half of the mask is off by 0.8
    test[5, 6, 7] = -3  # becomes 0: one of 64 voxels off by 0.6
    scores = metrics.brats_scores(true, test, mask)
    assert scores['mse'] == pytest.approx((32 * 0.64 + 0.36) / 64)
    # A bright lesion in the truth does not set the scale: 3 and 1 are both clipped to 1.
    bright, white = (np.where(true == 0.6, value, true) for value in (3, 1))
    assert metrics.brats_scores(bright, white, mask)['mse'] == 0


def test_brats_scores_do_not_depend_on_units(brats, rng):
    true, mask = brats
    test = true + rng.normal(0, 0.1, true.shape)
    assert metrics.brats_scores(300 * true - 40, 300 * test - 40, mask) == pytest.approx(
        metrics.brats_scores(true, test, mask)
    )


def test_brats_scores_read_the_mask_only(brats, rng):
    true, mask = brats
    test = true + rng.normal(0, 0.1, true.shape)
    other_true, other_test = true.copy(), np.where(mask, test, 99)
    other_true[~mask] = rng.permutation(true[~mask])  # the same percentiles
    assert metrics.brats_scores(other_true, other_test, mask) == metrics.brats_scores(true, test, mask)
    stretched = np.where(mask, true, 2 * true)  # the voided image sets the scale: errors are halved
    assert metrics.brats_scores(stretched, true + np.where(mask, 0.1, 0), mask)['mse'] == pytest.approx(0.0025)


def test_brats_ssim_is_the_formula_in_3d(brats, rng):
    true, mask = brats
    test = true + rng.normal(0, 0.1, true.shape)

    def average(image):
        return ndimage.gaussian_filter(image, 1.5, radius=5)

    x, y = np.where(mask, true, 0), np.where(mask, np.clip(test, 0, 1), 0)
    mean_x, mean_y = average(x), average(y)
    variances = average(x * x) - mean_x**2 + average(y * y) - mean_y**2
    covariance = average(x * y) - mean_x * mean_y
    ssim = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    ssim /= (mean_x**2 + mean_y**2 + 1e-4) * (variances + 9e-4)
    assert metrics.brats_scores(true, test, mask)['ssim'] == pytest.approx(ssim[mask].mean(), rel=1e-9)
    assert 0.1 < ssim[mask].mean() < 0.99


def test_brats_scores_at_the_limits(brats):
    true, mask = brats
    scores = metrics.brats_scores(true, true.copy(), mask)
    assert scores['mse'] == 0
    assert scores['ssim'] == pytest.approx(1)
    assert 100 < scores['psnr'] < np.inf
    for nothing in (np.zeros_like(mask), np.ones_like(mask)):
        assert all(np.isnan(value) for value in metrics.brats_scores(true, true, nothing).values())
    flat = np.where(mask, 0.4, true)
    scores = metrics.brats_scores(flat, flat + 0.1, mask)
    assert np.isnan(scores['psnr'])
    assert scores['mse'] == pytest.approx(0.01)


def line(*values):
    return np.array(values)[:, None, None]


def test_border_by_hand():
    # Filled: 5 and 5. Border faces 5-2 and 5-4: mean 2. Near white matter: faces 1-2 and 4-1; 1-9 is out of reach,
    # and the last voxel is no white matter.
    image = line(9.0, 1, 2, 5, 5, 4, 1, 70)
    lesion_mask = line(0, 0, 0, 1, 1, 0, 0, 0) > 0
    wm_mask = line(1, 1, 1, 0, 0, 1, 1, 0) > 0
    assert metrics.border_ratio(image, lesion_mask, wm_mask, reach_voxels=2) == pytest.approx(2 / ((1 + 3) / 2))
    assert metrics.border_ratio(image, lesion_mask, wm_mask, reach_voxels=3) == pytest.approx(2 / ((1 + 3 + 8) / 3))
    # White matter beneath the lesion changes nothing.
    assert metrics.border_ratio(image, lesion_mask, wm_mask | lesion_mask, reach_voxels=2) == pytest.approx(1)


@pytest.mark.parametrize('axes', [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
def test_border_is_seen_along_all_axes(axes):
    image, lesion_mask = (np.transpose(line(*values), axes) for values in ((1.0, 2, 5), (False, False, True)))
    assert metrics.border_ratio(image, lesion_mask, ~lesion_mask) == pytest.approx(3)


def test_white_noise_has_no_border_and_an_offset_has_one(rng):
    image = rng.normal(0, 0.1, (40, 40, 40))
    lesion_mask, wm_mask = np.zeros((2, 40, 40, 40), dtype=bool)
    lesion_mask[12:28, 12:28, 12:28] = True
    wm_mask[4:36, 4:36, 4:36] = True
    assert metrics.border_ratio(image, lesion_mask, wm_mask) == pytest.approx(1, abs=0.1)
    # Noise of 0.1 differs by 0.1 * 2 / sqrt(pi) = 0.1128 between neighbours, the border by about 0.5.
    offset = np.where(lesion_mask, image + 0.5, image)
    assert metrics.border_ratio(offset, lesion_mask, wm_mask) == pytest.approx(0.5 / 0.1128, rel=0.05)


def test_border_without_faces_is_nan():
    image, lesion_mask = line(1.0, 2, 5, 3), line(0, 0, 1, 0) > 0
    assert np.isfinite(metrics.border_ratio(image, lesion_mask, ~lesion_mask))
    assert np.isnan(metrics.border_ratio(image, lesion_mask, lesion_mask))  # no white matter
    assert np.isnan(metrics.border_ratio(image, np.zeros_like(lesion_mask), ~lesion_mask))  # no lesion
    assert np.isnan(metrics.border_ratio(image, lesion_mask, line(0, 0, 0, 1) > 0))  # no pair of white matter
    assert np.isnan(metrics.border_ratio(line(1.0, 1, 5, 1), lesion_mask, ~lesion_mask))  # flat white matter


def test_texture_by_hand():
    mask = line(1, 1, 0) > 0
    assert metrics.texture_ratio(line(0.0, 4, 9), line(5.0, 6, 99), mask) == pytest.approx(0.5 / 2)


def test_texture_of_a_flat_truth_is_nan():
    flat = np.full((300, 1, 1), 0.1, dtype=np.float32)  # its standard deviation is not 0 but rounding
    noisy = flat + line(*range(300))
    everything = np.ones(flat.shape, dtype=bool)
    assert np.isnan(metrics.texture_ratio(flat, noisy, everything))
    assert metrics.texture_ratio(noisy, flat, everything) == pytest.approx(0, abs=1e-6)
    assert np.isnan(metrics.texture_ratio(noisy, noisy, ~everything))


def test_bootstrap_interval_is_that_of_the_normal_distribution(rng):
    values = rng.normal(3, 2, 400)
    mean, low, high = statistics.bootstrap_mean(values, rng)
    assert mean == pytest.approx(values.mean())
    half_width = 1.96 * values.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((mean - half_width, mean + half_width), abs=0.1 * half_width)


def test_bootstrap_ignores_nan_and_follows_its_generator():
    values = [1.0, 2.0, 5.0, 8.0]
    runs = [statistics.bootstrap_mean(v, np.random.default_rng(1), 50) for v in (values, [np.nan, *values, np.nan])]
    assert runs[0] == runs[1]
    assert statistics.bootstrap_mean(values, np.random.default_rng(2), 50)[1:] != runs[0][1:]
    assert statistics.bootstrap_mean([7.0, np.nan], np.random.default_rng(1)) == (7, 7, 7)
    assert np.isnan(statistics.bootstrap_mean([np.nan], np.random.default_rng(1))).all()


def test_paired_bootstrap_of_a_constant_difference_has_no_width(rng):
    values = rng.integers(0, 100, 30) / 4  # differences are exact in binary
    assert statistics.paired_bootstrap(values + 0.5, values, rng) == (0.5, 0.5, 0.5)
    _, low, high = statistics.bootstrap_mean(values + 0.5, rng)
    assert high - low > 1  # the cases themselves do vary


def test_paired_bootstrap_leaves_out_incomplete_pairs():
    values, others = [1, 2, np.nan, 4, np.inf, 9.0], [0, 4, 3, np.nan, 1, 5.0]
    complete = statistics.paired_bootstrap([1, 2, 9.0], [0, 4, 5.0], np.random.default_rng(0))
    assert statistics.paired_bootstrap(values, others, np.random.default_rng(0)) == complete
    mean, low, high = complete
    assert mean == pytest.approx((1 - 2 + 4) / 3)
    assert low < mean < high
    assert (low, high) == pytest.approx((-2, 4))  # of 27 resamples one is (-2, -2, -2), one (4, 4, 4): 3.7 % each


def test_resamples_draw_people_first_and_then_their_cases():
    clusters = ['a', 'a', 'a', 'b', 'c', 'c']
    weights = statistics.bootstrap_weights(clusters, np.random.default_rng(0), 4000)
    assert weights.shape == (4000, 6)
    per_person = np.stack([weights[:, :3].sum(axis=1), weights[:, 3], weights[:, 4:].sum(axis=1)])
    people = per_person / np.array([[3], [1], [2]])  # a person brings as many cases as there are of that person
    assert np.array_equal(people, people.round())
    assert (people.sum(axis=0) == 3).all()
    assert (people == 0).any()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.1)


def test_interval_over_people_is_wider_than_over_lesions_where_people_differ(rng):
    people = np.repeat(np.arange(4), 30)
    values = rng.normal(size=4)[people] + 0.1 * rng.normal(size=120)
    _, low, high = statistics.bootstrap_mean(values, rng)
    _, low_of_people, high_of_people = statistics.bootstrap_mean(values, rng, clusters=people)
    assert high_of_people - low_of_people > 2 * (high - low)


def test_one_person_gives_the_ordinary_bootstrap(rng):
    values = rng.normal(size=30)
    one = statistics.bootstrap_mean(values, np.random.default_rng(1), clusters=['me'] * 30)
    assert one == statistics.bootstrap_mean(values, np.random.default_rng(1))


def test_missing_values_leave_their_person_as_it_is():
    values, people = [1.0, np.nan, 3.0, 5.0], ['a', 'a', 'b', 'b']
    complete = statistics.bootstrap_mean([1.0, 3.0, 5.0], np.random.default_rng(0), clusters=['a', 'b', 'b'])
    assert statistics.bootstrap_mean(values, np.random.default_rng(0), clusters=people) == complete


# Readers


def tail(n, p, at_least):
    """Binomial probability of at least so many hits, written out."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(at_least, n + 1))


@pytest.mark.parametrize(('n_hits', 'low', 'high'), [(3, 0.0321, 0.3789), (1, 0.0013, 0.2487)])
def test_exact_intervals_of_the_thesis_readers(n_hits, low, high):
    """3 and 1 of 20 (4.1). By definition so many hits or more, so few or fewer, have probability 2.5 % at the ends."""
    interval = statistics.clopper_pearson(n_hits, 20)
    assert interval == pytest.approx((low, high), abs=5e-5)
    assert tail(20, interval[0], n_hits) == pytest.approx(0.025, rel=1e-6)
    assert 1 - tail(20, interval[1], n_hits + 1) == pytest.approx(0.025, rel=1e-6)


def test_exact_interval_of_none_and_all():
    assert statistics.clopper_pearson(0, 20) == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    assert statistics.clopper_pearson(20, 20) == pytest.approx((0.025 ** (1 / 20), 1))


def test_chance_of_hits_by_hand():
    # Two cases, of two and of three lesions: both missed 1/2 * 2/3, both hit 1/2 * 1/3.
    assert statistics.chance_of_hits(0, [1 / 2, 1 / 3]) == pytest.approx(1)
    assert statistics.chance_of_hits(1, [1 / 2, 1 / 3]) == pytest.approx(2 / 3)
    assert statistics.chance_of_hits(2, [1 / 2, 1 / 3]) == pytest.approx(1 / 6)
    assert statistics.chance_of_hits(3, [1 / 2, 1 / 3]) == 0


def test_chance_of_hits_is_binomial_where_all_chances_are_equal():
    for n_hits in range(21):
        assert statistics.chance_of_hits(n_hits, [0.1] * 20) == pytest.approx(tail(20, 0.1, n_hits), rel=1e-6)


def test_chance_of_hits_counts_every_pattern(rng):
    chances = rng.uniform(0, 1, 6)
    patterns = np.array(list(np.ndindex(*[2] * 6)))
    weights = np.where(patterns, chances, 1 - chances).prod(axis=1)
    for n_hits in range(7):
        expected = weights[patterns.sum(axis=1) >= n_hits].sum()
        assert statistics.chance_of_hits(n_hits, chances) == pytest.approx(expected)


def test_score_of_a_reader_names_what_guessing_would_do():
    scores = statistics.score_hits([True, False, True], [1 / 2, 1 / 4, 1 / 4])
    assert (scores['cases'], scores['hits'], scores['hit_percent'], scores['hits_by_chance']) == (3, 2, 66.67, 1)
    # Two or three hits: 1/2 * 1/4 * 3/4 twice, 1/2 * 1/4 * 1/4 for the last two, 1/2 * 1/4 * 1/4 for all.
    assert scores['p_value'] == pytest.approx(2 * 3 / 32 + 1 / 32 + 1 / 32)


def test_kappa_by_hand_and_as_sklearn(rng):
    # Agreement in 2 of 4 cases, and 1/4 * 3/4 + 3/4 * 1/4 = 3/8 by chance: (1/2 - 3/8) / (1 - 3/8).
    assert statistics.cohen_kappa([1, 0, 0, 0], [1, 1, 1, 0]) == pytest.approx(0.2)
    assert statistics.cohen_kappa([1, 0, 0], [1, 0, 0]) == 1
    assert statistics.cohen_kappa([1, 0], [0, 1]) == -1
    assert np.isnan(statistics.cohen_kappa([0, 0], [0, 0]))
    one, other = rng.random((2, 30)) < 0.4
    assert statistics.cohen_kappa(one, other) == pytest.approx(cohen_kappa_score(one, other))
