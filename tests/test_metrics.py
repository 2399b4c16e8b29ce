import numpy as np
import pytest

from bids_lesionfill import metrics


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
    everywhere = np.ones((9, 9), dtype=bool)
    score = metrics.structural_similarity_inside(np.full((9, 9), a), np.full((9, 9), b), everywhere)
    assert score == pytest.approx((2 * a * b + c) / (a**2 + b**2 + c))


def test_ssim_sees_a_window_of_7x7_pixels(rng):
    true = rng.uniform(-1, 1, (21, 21))
    mask = np.zeros((21, 21), dtype=bool)
    mask[10, 10] = True
    for distance, seen in ((3, True), (4, False)):
        test = true.copy()
        test[10 + distance, 10 + distance] += 1
        score = metrics.structural_similarity_inside(true, test, mask)
        assert (score < 1 - 1e-4) == seen


def test_ssim_is_averaged_over_the_mask_alone(rng):
    true = rng.uniform(-1, 1, (24, 24))
    test = true + np.where(np.arange(24) < 12, 0, rng.normal(0, 0.5, (24, 24)))
    clean, noisy = np.zeros((2, 24, 24), dtype=bool)
    clean[8:16, 2:8] = True  # 4 pixels away from the noise
    noisy[8:16, 16:22] = True
    assert metrics.structural_similarity_inside(true, test, clean) == pytest.approx(1)
    score = metrics.structural_similarity_inside(true, test, noisy)
    assert score < 0.95
    assert metrics.structural_similarity_inside(true, test, clean | noisy) == pytest.approx((1 + score) / 2)


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
