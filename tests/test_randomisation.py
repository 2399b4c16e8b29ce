"""Random contrasts and confluent lesions of training cases."""

from dataclasses import replace

import numpy as np
import pytest

from bids_lesionfill.diffusion import forms
from bids_lesionfill.images import tissues
from bids_lesionfill.train import randomisation
from bids_lesionfill.train.brains import Brain
from bids_lesionfill.train.cases import CasePlan, TrainingCases

SHAPE = (40, 40, 40)


@pytest.fixture
def head():
    """A ball of white matter with a ventricle, in grey matter, in fluid; normalised T1w and its tissue classes."""
    radius = np.linalg.norm(np.indices(SHAPE) - np.reshape((19.5, 19.5, 19.5), (3, 1, 1, 1)), axis=0)
    tissue_seg = np.zeros(SHAPE, dtype=np.uint8)
    for label, below in ((tissues.CSF, 19), (tissues.GREY_MATTER, 17), (tissues.WHITE_MATTER, 14), (tissues.CSF, 4)):
        tissue_seg[radius < below] = label
    values = np.array([-1, -0.6, 0.1, 0.5], dtype=np.float32)
    return values[tissue_seg], tissue_seg


@pytest.fixture
def levels(head):
    return randomisation.measure_levels(*head)


def of(image, tissue_seg, label):
    return float(np.median(image[tissue_seg == label]))


def test_levels_are_the_medians_of_a_t1w_and_none_of_other_contrasts(head):
    image, tissue_seg = head
    assert randomisation.measure_levels(image, tissue_seg) == pytest.approx((-0.6, 0.1))
    bright_fluid = np.where(tissue_seg == tissues.CSF, 2.0, image)
    assert randomisation.measure_levels(bright_fluid, tissue_seg) is None
    assert randomisation.measure_levels(image, np.zeros_like(tissue_seg)) is None


def test_white_matter_and_background_stay_where_they_are(head, levels):
    image, tissue_seg = head
    for seed in range(20):
        remapped = randomisation.remap(
            image, tissue_seg, randomisation.draw_remapping(levels, np.random.default_rng(seed))
        )
        np.testing.assert_allclose(remapped[tissue_seg == tissues.WHITE_MATTER], 0.5, atol=1e-5)
        assert (remapped[tissue_seg == 0] == -1).all()
        assert np.isfinite(remapped).all()
        assert remapped.min() >= -1


def test_grey_matter_and_fluid_become_brighter_and_darker_than_white_matter(head, levels, rng):
    image, tissue_seg = head
    drawn = [randomisation.remap(image, tissue_seg, randomisation.draw_remapping(levels, rng)) for _ in range(40)]
    signs = {(of(i, tissue_seg, tissues.GREY_MATTER) > 0.5, of(i, tissue_seg, tissues.CSF) > 0.5) for i in drawn}
    assert signs == {(True, True), (True, False), (False, True), (False, False)}


def test_partial_volume_at_a_ventricle_lies_between_fluid_and_white_matter(head):
    """On a FLAIR grey matter is the brightest: a voxel half fluid, half white matter is not."""
    image, tissue_seg = head
    wall = (20, 20, 24)
    image[wall] = (-0.6 + 0.5) / 2  # as bright as grey matter, nearly
    tissue_seg[wall] = tissues.GREY_MATTER
    flair = np.interp(randomisation.INTENSITIES, [-0.6, 0.1, 0.5], [-0.8, 1.2, 0.5])
    direct = np.interp(randomisation.INTENSITIES, [-0.6, 0.5], [-0.8, 0.5])
    remapped = randomisation.remap(image, tissue_seg, randomisation.Remapping(flair, direct))
    assert -0.8 < remapped[wall] < 0.5
    cortex = (20, 20, 35)
    assert tissue_seg[cortex] == tissues.GREY_MATTER
    assert remapped[cortex] > 0.9


def test_white_matter_keeps_its_mean_and_background_its_value_in_every_acquisition(head, rng):
    image, tissue_seg = head
    inner = tissue_seg == tissues.WHITE_MATTER
    for _ in range(10):
        acquired = randomisation.randomise_acquisition(image, rng)
        assert acquired.shape == SHAPE
        assert acquired.dtype == np.float32
        assert (acquired[tissue_seg == 0] == -1).all()
        assert abs(np.median(acquired[inner]) - 0.5) < 0.15


def test_noise_has_the_deviation_asked_for_and_more_smoothness_correlates_neighbours(rng):
    flat = np.full(SHAPE, 0.5, dtype=np.float32)
    rough, smooth = (randomisation.add_texture(flat, 0.1, sigma, rng) for sigma in (0, 1))
    for noisy in (rough, smooth):
        assert noisy.std() == pytest.approx(0.1, rel=0.05)
    neighbours = [np.corrcoef(i[1:].ravel(), i[:-1].ravel())[0, 1] for i in (rough, smooth)]
    assert abs(neighbours[0]) < 0.05
    assert neighbours[1] > 0.5


@pytest.mark.parametrize('axis', [0, 2])
def test_thick_slices_keep_shape_and_mean_and_lose_detail_across_them_alone(axis, rng):
    stripes = np.zeros((24, 30, 24), dtype=np.float32)
    stripes[1::2] = 1
    stripes = np.moveaxis(stripes, 0, axis)
    thick = randomisation.thicken_slices(stripes, 4, rng, axis)
    other = randomisation.thicken_slices(stripes, 4, rng, axis=1)
    assert thick.shape == other.shape == stripes.shape
    assert thick.mean() == pytest.approx(0.5, abs=0.03)
    assert thick.std() < 0.2
    np.testing.assert_allclose(other, stripes, atol=1e-6)


def test_a_ramp_stays_a_ramp_in_thick_slices(rng):
    ramp = np.broadcast_to(np.arange(30, dtype=np.float32), (4, 5, 30))
    thick = randomisation.thicken_slices(ramp, 2.5, rng)
    np.testing.assert_allclose(thick[..., 5:-5], ramp[..., 5:-5], atol=0.1)  # a slice's edge cuts voxels
    assert randomisation.thicken_slices(ramp, 1, rng) is ramp


def test_pooled_slices_are_means_of_images_majorities_of_masks_and_middles_of_labels():
    image = np.arange(6, dtype=np.float32).reshape(1, 1, 6)
    assert randomisation.pool_slices(image, 3).tolist() == [[[1, 4]]]
    assert randomisation.pool_slices(np.array([[[True, True, False, True, False, False]]]), 3).tolist() == [
        [[True, False]]
    ]
    assert randomisation.pool_slices(image.astype(np.uint8), 3).tolist() == [[[1, 4]]]
    assert randomisation.pool_slices(image, 1) is image


def test_confluent_masks_are_where_they_may_be_and_leave_something_to_fill_from(head, rng):
    allowed = head[1] == tissues.WHITE_MATTER
    for _ in range(10):
        mask = randomisation.draw_confluent_mask(allowed, [np.ones((12, 12, 12), dtype=bool)], rng)
        assert 0 < mask.sum() <= 0.6 * allowed.sum()
        assert not (mask & ~allowed).any()
    assert not randomisation.draw_confluent_mask(np.zeros(SHAPE, bool), [np.ones((3, 3, 3), bool)], rng).any()


PLAN = CasePlan(
    crop=(16, 16, 8),
    rim_share=0.5,
    either_sign=True,
    contrast_randomisation=0.7,
    acquisition_randomisation=0.6,
    native_thick_share=0.3,
    confluent_share=0.5,
)
SHAPES = [np.ones((3, 4, 3), dtype=bool), np.ones((9, 9, 9), dtype=bool)]


@pytest.fixture
def brain(head, levels):
    image, tissue_seg = head
    return Brain(image, tissue_seg == tissues.WHITE_MATTER, tissue_seg=tissue_seg, levels=levels)


def test_case_depends_on_the_seed_and_the_index_only(brain):
    first, second = (TrainingCases([brain], SHAPES, PLAN, forms.Form(), 3, 20) for _ in range(2))
    for index in (0, 7):
        for one, other in zip(first[index], second[index]):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(first[0][1], first[1][1])


def test_loss_counts_part_of_the_mask_and_never_fluid(brain):
    plan = replace(PLAN, confluent_share=1.0, native_thick_share=0.0, rim_share=0.0, fluid_known_share=0.0)
    cases = TrainingCases([brain], SHAPES, plan, forms.Form(), 0, 30)
    n_uncounted = 0
    for index in range(30):
        target, channels, mask, counted = cases[index]
        assert mask.shape == counted.shape == target.shape == (1, 8, 16, 16)
        assert counted.sum()
        assert not (counted > mask).any()
        np.testing.assert_array_equal(channels[1], mask[0])
        n_uncounted += int((mask > counted).sum())
    assert n_uncounted > 0
    known = TrainingCases([brain], SHAPES, replace(plan, fluid_known_share=1.0), forms.Form(), 0, 30)
    assert all((known[index][2] == known[index][3]).all() for index in range(10))


def test_painted_lesions_have_both_signs(brain):
    plan = replace(PLAN, rim_share=1.0, confluent_share=0.0, acquisition_randomisation=0.0, native_thick_share=0.0)
    cases = TrainingCases([brain], SHAPES, plan, forms.Form(), 0, 30)
    brighter = []
    for index in range(20):
        case = cases.draw(np.random.default_rng(index))
        if case is not None:  # a lesion found a place
            changed = case['seen'] - case['image']
            brighter.append(changed.flat[np.abs(changed).argmax()] > 0)
    assert 0 < sum(brighter) < len(brighter)


def test_crop_of_thick_slices_has_the_planned_size(brain, rng):
    cases = TrainingCases([brain], SHAPES, PLAN, forms.Form(), 0, 1)
    crop = cases.draw_crop(rng, n_slices=3)
    assert crop.image.shape == crop.wm_mask.shape == crop.tissue_seg.shape == (32, 32, 24)
    assert crop.wm_mask.any()


def test_no_large_shape_for_confluent_lesions_ends_in_an_error(brain):
    cases = TrainingCases([brain], SHAPES[:1], replace(PLAN, confluent_share=1.0), forms.Form(), 0, 1)
    with pytest.raises(ValueError, match='no lesion shape has 500 voxels'):
        cases[0]


def test_fluid_that_is_not_counted_does_not_change_the_loss():
    import torch

    from bids_lesionfill.diffusion import process

    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(2, 1, 2, 4, 4, generator=generator) for _ in range(2))
    mask = torch.ones_like(image)
    counted = mask.clone()
    counted[..., 0] = 0
    scheduler = process.build_scheduler('linear', 'v_prediction')
    steps = torch.tensor([999, 999])

    def loss(extra):
        def unet(slabs, timesteps):
            output = torch.zeros_like(slabs[:, :1])
            output[..., 0] = extra
            return output

        return process.diffusion_loss(unet, image, mask, mask, scheduler, steps, noise, True, counted)

    torch.testing.assert_close(loss(0.0), loss(5.0))
