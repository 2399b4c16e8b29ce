import numpy as np
import pytest

from bids_lesionfill import synthesis


def paint(phantom, contrast=0.3, edge_voxels=0.8):
    return synthesis.paint_lesion(
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
    _, alpha = synthesis.paint_lesion(image, lesion_mask, np.ones_like(lesion_mask), 0.3, edge_voxels=1.3)
    assert alpha[5, 5, 5] == pytest.approx(0.9)


def test_painting_an_empty_mask_changes_nothing(phantom):
    empty = np.zeros_like(phantom.lesion_mask)
    painted, alpha = synthesis.paint_lesion(phantom.normalised_healthy, empty, phantom.wm_mask, 0.3, 0.8)
    assert np.array_equal(painted, phantom.normalised_healthy)
    assert not alpha.any()


def test_painting_leaves_the_image_alone_and_keeps_single_precision(phantom):
    image = phantom.normalised_healthy
    before = image.copy()
    painted, alpha = synthesis.paint_lesion(image, phantom.lesion_mask, phantom.wm_mask, 0.3, 0.8)
    assert np.array_equal(image, before)
    assert painted.dtype == alpha.dtype == np.float32
