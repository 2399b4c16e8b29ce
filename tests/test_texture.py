"""The texture of a filling: seeded, inside the hole alone, with the covariance of the white matter around."""

import numpy as np
import pytest
from scipy import ndimage

from bids_lesionfill.lesions import texture

SHAPE = (44, 40, 36)


def phantom(smooth=(0.8, 0.8, 0.8), noise=5.0, level=100.0, seed=0):
    """Return an image of noisy white matter in an ellipsoid, its mean filling, the hole and the white-matter mask."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), smooth)
    centre = [(n - 1) / 2 for n in SHAPE]
    radius = np.sqrt(sum(((i - c) / c) ** 2 for i, c in zip(np.indices(SHAPE), centre)))
    wm_mask = radius < 0.98
    hole = radius < 0.4
    image = np.where(wm_mask, level + noise * field / field.std(), 0.0)
    return image, np.full(SHAPE, level), hole, wm_mask


def correlation(values, mask, step):
    """Return the correlation of neighbours at a lag inside a mask."""
    here = tuple(slice(0, n - s) for n, s in zip(values.shape, step))
    there = tuple(slice(s, None) for s in step)
    both = mask[here] & mask[there]
    return np.corrcoef(values[here][both], values[there][both])[0, 1]


def test_one_seed_gives_the_same_bytes_and_another_does_not():
    case = phantom()
    once, again, other = (texture.add_texture(*case, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert once.tobytes() == again.tobytes()
    assert not np.array_equal(once, other)


def test_nothing_changes_outside_the_hole():
    image, mean, hole, wm_mask = phantom()
    filled = texture.add_texture(image, mean, hole, wm_mask, np.random.default_rng(0))
    assert np.array_equal(filled[~hole], image[~hole])
    assert (filled[hole] != mean[hole]).mean() > 0.99


def test_values_of_the_lesion_are_not_read():
    image, mean, hole, wm_mask = phantom()
    filled = texture.add_texture(image, mean, hole, wm_mask, np.random.default_rng(0))
    other_lesion = np.where(hole, 1e6, image)
    assert np.array_equal(filled, texture.add_texture(other_lesion, mean, hole, wm_mask, np.random.default_rng(0)))
    assert np.array_equal(filled, texture.add_texture(image, mean, hole, wm_mask & ~hole, np.random.default_rng(0)))


@pytest.mark.parametrize('smooth', [(0.8, 0.8, 0.8), (0.4, 0.4, 0.4), (1.2, 0.8, 0.01)])
def test_level_and_spectrum_are_those_of_white_matter(smooth):
    """Compared with the noise that the hole had before it was cut."""
    image, mean, hole, wm_mask = phantom(smooth)
    filled = texture.add_texture(image, mean, hole, wm_mask, np.random.default_rng(0))
    deep = ndimage.binary_erosion(hole, iterations=2)
    after, before = (a - texture.smooth_within(a, wm_mask, [texture.TREND_MM] * 3) for a in (filled, image))
    assert after[deep].std() == pytest.approx(before[deep].std(), rel=0.1)
    for step in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 0, 0)):
        assert correlation(after, deep, step) == pytest.approx(correlation(before, deep, step), abs=0.12)


def test_noise_level_is_local():
    image, mean, hole, wm_mask = phantom((0.5,) * 3)
    wide = [np.concatenate([a, b]) for a, b in zip(phantom((0.5,) * 3, noise=2.0), (image, mean, hole, wm_mask))]
    filled = texture.add_texture(*wide, np.random.default_rng(0))
    quiet, noisy = filled[: SHAPE[0]][hole].std(), filled[SHAPE[0] :][hole].std()
    assert quiet < 0.75 * noisy


def test_covariance_of_a_known_field_is_found_through_a_mask():
    sigma = (1.0, 0.7, 0.5)
    field = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal((64, 64, 64)), sigma, mode='wrap')
    field *= 3 / field.std()
    mask = np.random.default_rng(2).random(field.shape) < 0.5
    covariance = texture.estimate_covariance(field, mask)
    centre = texture.MAX_LAG
    assert covariance[(centre,) * 3] == pytest.approx(9, rel=0.05)
    for axis, s in enumerate(sigma):
        step = np.full(3, centre)
        step[axis] += 1
        expected = (np.roll(field, 1, axis) * field).mean() / 9
        assert covariance[tuple(step)] / 9 == pytest.approx(expected, abs=0.03), s
    spectrum = np.fft.fftn(np.fft.ifftshift(np.pad(covariance, 8))).real
    assert spectrum.min() > -0.02 * spectrum.max()


def test_field_has_the_covariance_asked_for():
    sigma = (1.2, 0.8, 0.5)
    source = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal((64, 64, 64)), sigma, mode='wrap')
    covariance = texture.estimate_covariance(source, np.ones(source.shape, bool))
    field = texture.gaussian_field(covariance, (61, 64, 50), np.random.default_rng(0))
    again = texture.estimate_covariance(field, np.ones(field.shape, bool))
    centre = texture.MAX_LAG
    near = (slice(centre - 2, centre + 3),) * 3
    np.testing.assert_allclose(again[near], covariance[near], atol=0.06 * covariance.max())


def test_sample_continues_the_known_voxels():
    """Across the border neighbours correlate as the covariance says; without conditioning they would not at all."""
    sigma = (1.0, 1.0, 1.0)
    rng = np.random.default_rng(5)
    field = ndimage.gaussian_filter(rng.standard_normal((52, 52, 46)), sigma, mode='wrap')
    field /= field.std()
    covariance = texture.estimate_covariance(field, np.ones(field.shape, bool))
    hole = np.zeros(field.shape, bool)
    hole[6:46, 6:46, 14:20] = hole[6:46, 6:46, 28:34] = True
    shell = ndimage.binary_dilation(hole, np.ones((3, 3, 3)), iterations=2) & ~hole
    sample = texture.sample_given(field, hole, shell, covariance, np.random.default_rng(0))
    joined = np.where(hole, sample, field)
    inside, outside = joined[8:44, 8:44, 14], joined[8:44, 8:44, 13]
    expected = covariance[6, 6, 7] / covariance[6, 6, 6]
    assert expected > 0.6
    assert np.corrcoef(inside.ravel(), outside.ravel())[0, 1] == pytest.approx(expected, abs=0.06)
    assert joined[hole].std() == pytest.approx(1, rel=0.06)


def test_kriging_is_the_textbook_formula():
    field = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((40, 40, 40)), 0.9, mode='wrap')
    covariance = texture.estimate_covariance(field / field.std(), np.ones(field.shape, bool))
    known, targets = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    known[3:6, 3:6, 3], targets[3:6, 3:6, 4:6] = True, True
    values = np.random.default_rng(1).standard_normal(known.sum())

    def between(a, b):
        lag = np.argwhere(a)[:, None] - np.argwhere(b)[None] + texture.MAX_LAG
        return covariance[tuple(np.moveaxis(lag, -1, 0))]

    inner = between(known, known)
    expected = between(targets, known) @ np.linalg.solve(
        inner + texture.nugget_of(covariance) * np.eye(len(inner)), values
    )
    np.testing.assert_allclose(texture.kriging(values, known, targets, covariance), expected, atol=0.02)


def test_image_without_noise_keeps_the_mean():
    image, mean, hole, wm_mask = phantom(noise=0.0)
    mean = mean + np.linspace(0, 1, SHAPE[0])[:, None, None]
    filled = texture.add_texture(image, mean, hole, wm_mask, np.random.default_rng(0))
    assert np.array_equal(filled[hole], mean[hole])


def test_too_little_white_matter_keeps_the_mean():
    image, mean, hole, wm_mask = phantom()
    shell = ndimage.binary_dilation(hole) & ~hole
    shell[:, : SHAPE[1] // 2] = False
    shell[: SHAPE[0] // 2] = False
    assert 0 < shell.sum() < texture.FEWEST_VOXELS
    filled = texture.add_texture(image, mean, hole, shell, np.random.default_rng(0))
    assert np.array_equal(filled[hole], mean[hole])


def test_empty_hole_changes_nothing():
    image, mean, hole, wm_mask = phantom()
    filled = texture.add_texture(image, mean, np.zeros_like(hole), wm_mask, np.random.default_rng(0))
    assert np.array_equal(filled, image)


def test_unit_of_the_image_does_not_matter():
    image, mean, hole, wm_mask = phantom()
    filled = texture.add_texture(image, mean, hole, wm_mask, np.random.default_rng(0))
    scaled = texture.add_texture(1024 * image, 1024 * mean, hole, wm_mask, np.random.default_rng(0))
    np.testing.assert_allclose(scaled, 1024 * filled, rtol=1e-4)


def test_detail_of_the_mean_is_replaced_and_structure_stays():
    """Noise that the mean filling has already is not counted twice; a wall in it remains."""
    image, mean, hole, wm_mask = phantom()
    noisy_mean = mean + 3 * np.random.default_rng(9).standard_normal(SHAPE)
    plain, noisy = (
        texture.add_texture(image, m, hole, wm_mask, np.random.default_rng(0))[hole].std() for m in (mean, noisy_mean)
    )
    assert noisy == pytest.approx(plain, rel=0.05)
    wall = np.where(np.arange(SHAPE[0])[:, None, None] < 22, mean, 20.0)
    filled = texture.add_texture(image, wall, hole, wm_mask, np.random.default_rng(0))
    beside = hole[21] & hole[22]
    assert (filled[21] - filled[22])[beside].mean() > 0.7 * 80


def test_few_grey_levels_and_a_bright_vessel():
    image, mean, hole, wm_mask = phantom(noise=0.6)
    image = np.rint(image)
    filled = texture.add_texture(image, mean, hole, wm_mask, np.random.default_rng(0))
    vessel = image.copy()
    vessel[4:40, 30:32, 30:32] = 300.0
    with_vessel = texture.add_texture(vessel, mean, hole, wm_mask, np.random.default_rng(0))
    assert 0.4 < filled[hole].std() < 0.8
    assert with_vessel[hole].std() == pytest.approx(filled[hole].std(), rel=0.2)


def test_thick_slices():
    image, mean, hole, wm_mask = phantom((1.0, 1.0, 0.01))
    thin = [a[:, :, ::5] for a in (image, mean, hole, wm_mask)]
    filled = texture.add_texture(*thin, np.random.default_rng(0), voxel_mm=(1.0, 1.0, 5.0))
    inside = thin[2]
    assert correlation(filled, inside, (1, 0, 0)) > 0.45
    assert abs(correlation(filled, inside, (0, 0, 1))) < 0.25
