"""Texture of new lesions: the tissue's own noise, and patches in proportion to the contrast."""

import numpy as np
import pytest

from bids_lesionfill.lesions import unevenness

SHAPE = (40, 36, 32)
HOLE = np.zeros(SHAPE, dtype=bool)
HOLE[12:26, 12:24, 10:22] = True
TISSUE = np.ones(SHAPE, dtype=bool)
NOISE = np.random.default_rng(5).normal(0, 0.1, SHAPE)


def paint(uneven, contrast=0.6, noise=NOISE, seed=0):
    """Return an image of even tissue at 0.5 with noise, and the same with a lesion of even contrast."""
    image = (0.5 + noise).astype(np.float32)
    mean = np.where(HOLE, 0.5 + contrast, image)
    asked = np.where(HOLE, contrast, 0)
    rng = np.random.default_rng(seed)
    return image, unevenness.add_texture(image, mean, HOLE, TISSUE & ~HOLE, asked, uneven, rng)


def middle(array):
    return array[16:22, 16:20, 14:18]


def test_outside_the_lesions_nothing_changes():
    image, painted = paint(0.5)
    assert np.array_equal(painted[~HOLE], image[~HOLE])
    assert painted.dtype == np.float32


def test_a_lesion_keeps_the_noise_of_the_tissue_voxel_by_voxel():
    _, painted = paint(0.0)
    inside = middle(painted) - 1.1
    assert np.corrcoef(inside.ravel(), middle(NOISE).ravel())[0, 1] > 0.95
    assert inside.std() == pytest.approx(middle(NOISE).std(), rel=0.15)


def test_a_lesion_without_noise_is_as_the_network_means_it():
    _, painted = paint(0.0, noise=0 * NOISE)
    assert np.allclose(middle(painted), 1.1, atol=1e-5)


@pytest.mark.parametrize('contrast', [0.6, -0.3])
def test_unevenness_is_in_proportion_to_the_contrast(contrast):
    drawn = [middle(paint(0.5, contrast, 0 * NOISE, seed)[1]) - 0.5 - contrast for seed in range(30)]
    assert np.std(drawn) == pytest.approx(0.5 * abs(contrast), rel=0.2)


def test_patches_have_a_deviation_of_one_and_the_length_of_real_ones():
    drawn = unevenness.patches((60, 60, 60), np.random.default_rng(1))
    assert drawn.std() == pytest.approx(1, rel=0.1)
    correlation = np.corrcoef(drawn[2:].ravel(), drawn[:-2].ravel())[0, 1]
    assert correlation == pytest.approx(np.exp(-4 / (4 * 1.7**2)), abs=0.06)


def test_a_seed_gives_the_same_lesion_again_and_another_one_another():
    first, again, other = (paint(0.5, seed=seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
