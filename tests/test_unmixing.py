"""Unmixing: shares of fluid and lesion on phantoms whose shares are known."""

from typing import NamedTuple

import numpy as np
import pytest
from scipy import ndimage

from bids_lesionfill.lesions import fluids, unmixing

WM, CSF, NOISE = 100.0, 20.0, 2.0


class Painted(NamedTuple):
    """White matter with a ventricle and a soft lesion; `(X, Y, Z)` arrays."""

    image: np.ndarray
    healthy: np.ndarray
    lesion: np.ndarray  # share of lesion in the tissue
    fluid: np.ndarray  # share of fluid
    mask: np.ndarray  # of the rater: the half maximum of the lesion, and the fluid next to it if it overlaps
    wm_mask: np.ndarray
    brain: np.ndarray


def paint(contrast=-40.0, at=(36, 24, 24), voxel_mm=(1.0, 1.0, 1.0), overlap=False, edge_mm=0.9):
    """Return a lesion of 6 mm radius in a box of white matter with a ventricle of 8 mm radius in its corner."""
    shape = tuple(int(48 / size) for size in voxel_mm)
    x, y, z = (np.arange(n)[(...,) + (None,) * (2 - axis)] * voxel_mm[axis] for axis, n in enumerate(shape))
    sigma = edge_mm / np.asarray(voxel_mm)
    ventricle = np.broadcast_to((x - 18) ** 2 + (y - 24) ** 2 < 64, shape) & (abs(z - 24) < 18)
    body = (x - at[0]) ** 2 + (y - at[1]) ** 2 + (z - at[2]) ** 2 < 36
    fluid = ndimage.gaussian_filter(ventricle.astype(float), 0.6 / np.asarray(voxel_mm))
    fluid[fluid < 1e-3] = 0
    lesion = ndimage.gaussian_filter(body.astype(float), sigma)
    healthy = fluid * CSF + (1 - fluid) * WM
    noise = np.random.default_rng(0).normal(0, NOISE, shape)
    image = healthy + (1 - fluid) * lesion * contrast + noise
    mask = (lesion > 0.5) & (np.ones(shape, bool) if overlap else fluid < 0.5)
    brain = ndimage.binary_erosion(np.ones(shape, bool), iterations=2)
    wm_mask = brain & (fluid < 0.5) & ~mask
    return Painted(image, healthy + noise, lesion, fluid, mask & brain, wm_mask, brain)


def unmix(painted, voxel_mm=(1.0, 1.0, 1.0), **more):
    return unmixing.unmix(painted.image, painted.mask, painted.wm_mask, painted.brain, voxel_mm, **more)


@pytest.mark.parametrize('voxel_mm', [(1.0, 1.0, 1.0), (1.0, 0.8, 1.5)])
def test_share_of_lesion_is_recovered(voxel_mm):
    painted = paint(voxel_mm=voxel_mm)
    mix = unmix(painted, voxel_mm)
    near = painted.lesion > 0.05
    assert np.abs(mix.lesion - painted.lesion)[near].mean() < 0.08
    assert mix.contrast[painted.lesion > 0.9].mean() == pytest.approx(-40, rel=0.1)


def test_mask_that_is_too_tight_grows_to_the_lesion():
    painted = paint()
    tight = painted._replace(mask=ndimage.binary_erosion(painted.mask))
    tight = tight._replace(wm_mask=painted.wm_mask | (painted.mask & ~tight.mask))
    missed = painted.mask & ~tight.mask
    assert unmix(tight).touched[missed].mean() > 0.9


def test_bright_lesions_are_unmixed_as_dark_ones():
    # A FLAIR: the share of fluid comes from the T1w.
    painted = paint(contrast=60.0)
    mix = unmix(painted, fluid=(painted.fluid.astype(np.float32), CSF))
    assert np.abs(mix.lesion - painted.lesion)[painted.lesion > 0.05].mean() < 0.08
    assert mix.contrast[painted.lesion > 0.9].mean() == pytest.approx(60, rel=0.1)


def test_fluid_of_the_t1w_that_looks_like_lesion_on_the_flair_is_filled():
    # The FLAIR lies four voxels beside the T1w: what the T1w calls fluid is bright lesion there.
    painted = paint(contrast=60.0, at=(30, 24, 24))
    shifted = np.roll(painted.fluid, 4, axis=0).astype(np.float32)
    overlapped = painted.mask & (shifted > 0.9) & (painted.fluid < 0.1)
    assert overlapped.sum() > 10
    mix = unmix(painted, fluid=(shifted, CSF))
    result = unmixing.blend(painted.image, np.full_like(painted.image, WM), mix)
    assert np.abs(result - WM)[overlapped].mean() < 10
    both = (shifted == 1) & (painted.fluid > 0.99)
    assert (result == painted.image)[both].all()


def test_units_change_nothing():
    painted = paint()
    mix, scaled = unmix(painted), unmix(painted._replace(image=painted.image * 1e4))
    np.testing.assert_allclose(scaled.lesion, mix.lesion, atol=1e-3)
    np.testing.assert_allclose(scaled.fluid, mix.fluid, atol=1e-3)


def test_rim_without_its_lesion_keeps_the_noise_of_the_image():
    painted = paint()
    mix = unmix(painted)
    rim = (mix.lesion > unmixing.TOUCHED) & (mix.lesion < 0.5) & (mix.fluid == 0)
    assert rim.sum() > 200
    cleaned = unmixing.without_lesion(painted.image, mix)
    noise = painted.healthy - WM
    assert np.corrcoef(cleaned[rim], noise[rim])[0, 1] > 0.6
    assert (cleaned - WM)[rim].std() == pytest.approx(NOISE, rel=0.4)
    assert np.abs(cleaned - painted.healthy)[rim].mean() < np.abs(painted.image - painted.healthy)[rim].mean() / 3


def test_fluid_inside_the_mask_stays_bit_for_bit():
    painted = paint(at=(28, 24, 24), overlap=True)
    overlapped = painted.mask & (painted.fluid > 0.95)
    assert overlapped.sum() > 20
    mix = unmix(painted)
    result = unmixing.blend(painted.image, np.full_like(painted.image, WM), mix)
    assert (mix.fluid[overlapped] > 0.9).mean() > 0.95
    assert (result == painted.image)[mix.fluid == 1].all()
    kept = (painted.mask & (painted.fluid > 0.5)).sum()
    assert unmixing.describe(mix, painted.mask)['FluidVoxelsKept'] == pytest.approx(kept, rel=0.2)


def test_wall_of_a_ventricle_stays_where_it_is():
    painted = paint(at=(28, 24, 24), overlap=True)
    mix = unmix(painted)
    result = unmixing.blend(painted.image, np.full_like(painted.image, WM), mix)
    half_way = (WM + CSF) / 2
    before, after = ((image < half_way) & painted.brain for image in (painted.healthy, result))
    assert after.sum() == pytest.approx(before.sum(), rel=0.03)
    assert (
        np.abs(result - painted.healthy)[painted.mask].mean()
        < 0.25 * np.abs(painted.image - painted.healthy)[painted.mask].mean()
    )


def test_ventricles_do_not_change_where_white_matter_alone_was_masked():
    painted = paint(at=(36, 24, 24))
    result = unmixing.blend(painted.image, np.full_like(painted.image, WM), unmix(painted))
    half_way = (WM + CSF) / 2
    ventricle = painted.fluid > 0.3
    before, after = (((image < half_way) & ventricle).sum() for image in (painted.image, result))
    assert abs(int(after) - int(before)) <= 0.005 * before


def test_black_hole_inside_white_matter_is_filled_as_dark_as_it_may_be():
    painted = paint(contrast=CSF - WM)
    mix = unmix(painted)
    inside = painted.lesion > 0.9
    assert mix.fluid[inside].max() == 0
    assert mix.replaced[inside].all()


def test_lesion_in_voxels_larger_than_its_rim_is_filled():
    painted = paint(voxel_mm=(4.0, 4.0, 4.0), edge_mm=0.1)
    mix = unmix(painted, (4.0, 4.0, 4.0))
    assert mix.replaced[painted.mask].all()


def test_image_says_nothing_of_a_lesion_that_is_not_to_be_seen_or_of_the_other_sign():
    painted = paint()
    away = painted.wm_mask & (painted.fluid == 0) & ~ndimage.binary_dilation(painted.mask, iterations=6)
    tissue = painted.wm_mask | painted.mask
    for times, expected in ((-0.5, 0), (-1.5, 0.5), (-3, 1)):
        contrast = np.full(painted.image.shape, times * NOISE)
        contrast[:, :, :4] = 10 * NOISE  # a bright spot far from the lesion
        seen = unmixing.visibility(painted.image - WM, contrast, painted.mask, tissue, away)
        assert seen[painted.mask].mean() == pytest.approx(expected, abs=0.1)
        assert not seen[:, :, :4].any()


def test_wall_does_not_get_darker_where_grey_matter_is_filled_in():
    painted = paint(at=(28, 24, 24), overlap=True)
    mix = unmix(painted)
    result = unmixing.blend(painted.image, np.full_like(painted.image, WM - 60), mix)
    wall = mix.touched & (mix.fluid > 0) & (mix.contrast < 0)
    assert wall.sum() > 50
    assert (result >= painted.image)[wall].all()


def test_nothing_changes_far_from_the_lesion():
    painted = paint()
    mix = unmix(painted)
    far = ndimage.distance_transform_edt(~painted.mask) > 6
    result = unmixing.blend(painted.image, np.full_like(painted.image, WM), mix)
    assert (result == painted.image)[far].all()
    assert not mix.touched[far].any()


def test_filler_sees_neither_rim_nor_fluid_next_to_what_it_fills():
    painted = paint(at=(28, 24, 24), overlap=True)
    mix = unmix(painted)
    seen = unmixing.tissue_alone(painted.image, mix)
    shell = ndimage.binary_dilation(mix.filled, iterations=2) & ~mix.filled & painted.brain
    assert np.abs(seen - WM)[shell].mean() < 3 * NOISE


def test_image_without_white_matter_around_is_refused():
    painted = paint()
    with pytest.raises(ValueError, match='no white matter outside the lesions'):
        unmixing.local_level(painted.image, np.zeros_like(painted.mask), (1, 1, 1))


def black_beside_ventricle():
    """Return a lesion as dark as fluid at the wall of the ventricle, and the FLAIR of both."""
    painted = paint(contrast=-80.0, at=(31, 24, 24), edge_mm=0.6)
    flair = painted.fluid * 15 + (1 - painted.fluid) * (WM + 60 * painted.lesion)
    return painted, flair


def test_lesion_as_dark_as_fluid_is_told_from_it_by_the_flair():
    painted, flair = black_beside_ventricle()
    alone = unmix(painted)
    told = unmix(painted, flair=flair)
    black = painted.mask & (painted.lesion > 0.8) & (painted.fluid < 0.01)
    assert (alone.fluid[black] > 0.5).mean() > 0.3  # this is the fault
    assert (told.fluid[black] > 0.5).mean() < 0.02
    ventricle = painted.fluid > 0.99
    assert told.fluid[ventricle].min() == 1


@pytest.mark.parametrize('image', ['T1w', 'constant'])
def test_image_whose_fluid_is_not_dark_is_not_taken_for_a_flair(image):
    painted, _ = black_beside_ventricle()
    flair = np.full_like(painted.image, 50) if image == 'constant' else 200 - painted.image
    assert not fluids.solid_on_flair(flair, painted.fluid, painted.wm_mask, painted.mask, painted.brain).any()


def test_dark_rim_is_claimed_where_masks_are_too_tight():
    pale, dark = paint(at=(36, 12, 24), contrast=-25.0), paint(at=(36, 36, 24), contrast=-50.0)
    image = pale.image + dark.lesion * (1 - dark.fluid) * -50
    lesion = np.maximum(pale.lesion, dark.lesion)
    tight = ndimage.distance_transform_edt(lesion > 0.5) > 1.5
    wm_mask = pale.brain & (pale.fluid < 0.5) & ~tight & (image > 70)  # the dark rim is grey matter to a classifier
    mix = unmix(pale._replace(image=image, mask=tight, wm_mask=wm_mask))
    rim = (dark.lesion > 0.7) & ~tight
    assert wm_mask[rim].mean() < 0.1
    assert mix.tight
    assert mix.filled[rim].mean() > 0.95


def test_grey_matter_beside_a_mask_that_holds_the_lesion_is_not_claimed():
    painted = paint(at=(34, 24, 24))
    x = np.arange(48)[:, None, None]
    grey = (x >= 41) & (x < 44) & painted.brain
    image = np.where(grey, 65.0, painted.image)
    larger = ndimage.binary_dilation(painted.mask) & ~grey
    mix = unmix(painted._replace(image=image, mask=larger, wm_mask=painted.wm_mask & ~grey & ~larger))
    assert not mix.tight
    assert not mix.filled[grey].any()
