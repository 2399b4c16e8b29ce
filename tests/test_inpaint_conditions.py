"""What the network is told and what it returns: forms, conditions, slabs (whole volumes: test_inpaint.py)."""

import functools

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_lesionfill.diffusion import classical, forms, inpaint, process, tiles
from bids_lesionfill.diffusion.forms import Form
from bids_lesionfill.lesions import contrasts as lesions_contrasts

FORMS = [Form(), Form(kind='plain'), Form(kind='plain', inside_mask_only=False)]
UNCONDITIONAL = Form(kind='unconditional', inside_mask_only=False)
BASES = ['biharmonic', 'membrane', 'local_white_matter']


def ddim(num_inference_steps):
    scheduler = process.build_scheduler('linear', 'v_prediction')
    return functools.partial(process.sample_ddim, scheduler=scheduler, num_inference_steps=num_inference_steps)


@pytest.fixture(params=['residual', 'prior', 'plain'])
def form(request):
    return Form(kind=request.param)


# Form


def test_from_diffusion_inverts_to_diffusion(form, rng):
    image, base = rng.normal(size=(2, 4, 5, 6))
    np.testing.assert_allclose(form.from_diffusion(form.to_diffusion(image, base), base), image, atol=1e-12)
    np.testing.assert_allclose(form.to_diffusion(form.from_diffusion(image, base), base), image, atol=1e-12)


def test_residual_is_what_the_base_lacks_in_units_of_residual_scale():
    form = Form(residual_scale=0.05)
    assert form.to_diffusion(np.array([0.6]), np.array([0.5]))[0] == pytest.approx(2)
    assert form.from_diffusion(np.array([-2.0]), np.array([0.5]))[0] == pytest.approx(0.4)


@pytest.mark.parametrize('form', [Form(kind='plain'), Form(kind='prior'), UNCONDITIONAL], ids=lambda form: form.kind)
def test_all_forms_but_the_residual_one_diffuse_the_image_itself(form, rng):
    image, base = rng.normal(size=(2, 4, 5, 6))
    assert np.array_equal(form.to_diffusion(image, base), image)
    assert np.array_equal(form.from_diffusion(image, base), image)


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'magic'.*plain.*prior.*residual.*unconditional"):
        Form(kind='magic')


def test_unknown_base_is_refused():
    with pytest.raises(ValueError, match="'magic'.*biharmonic.*local_white_matter.*membrane"):
        Form(base='magic')


def test_unconditional_form_that_knows_a_mask_is_refused():
    with pytest.raises(ValueError, match='inside_mask_only'):
        Form(kind='unconditional')
    with pytest.raises(ValueError, match='inside_mask_only'):
        Form(kind='unconditional', inside_mask_only=True)


def test_channels_of_the_network_by_hand():
    n_channels = {kind: Form(kind=kind).n_channels for kind in ('plain', 'prior', 'residual')}
    assert n_channels == {'plain': 3, 'prior': 4, 'residual': 4}
    assert UNCONDITIONAL.n_channels == 1


# Conditions


def test_channels_and_noisy_image_are_as_many_as_the_form_says(phantom, form):
    _, channels = forms.condition(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, form)
    assert channels.shape == (form.n_channels - 1, *phantom.t1w.shape)
    assert channels.dtype == np.float32


@pytest.mark.parametrize('garbage', [np.nan, np.inf, -1e6])
def test_conditions_never_read_the_image_inside_the_mask(phantom, form, garbage):
    spoilt = np.where(phantom.lesion_mask, np.float32(garbage), phantom.normalised)
    usual = forms.condition(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, form)
    for given, expected in zip(forms.condition(spoilt, phantom.lesion_mask, phantom.wm_mask, form), usual, strict=True):
        assert np.isfinite(given).all()
        assert np.array_equal(given, expected)


def test_first_channel_is_the_voided_image_and_second_the_mask(phantom, form):
    _, channels = forms.condition(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, form)
    assert not channels[0][phantom.lesion_mask].any()
    assert np.array_equal(channels[0][~phantom.lesion_mask], phantom.normalised[~phantom.lesion_mask])
    assert np.array_equal(channels[1], phantom.lesion_mask.astype(np.float32))


def test_hot_voxels_are_clipped_for_the_network_only(phantom, form):
    image = phantom.normalised
    image[0, 0, 0] = 80
    base, channels = forms.condition(image, phantom.lesion_mask, phantom.wm_mask, form)
    assert channels[0, 0, 0, 0] == 1.5
    assert base[0, 0, 0] == 80


def test_base_equals_the_image_outside_the_mask(phantom, form):
    base, _ = forms.condition(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, form)
    assert base.dtype == np.float32
    assert np.array_equal(base[~phantom.lesion_mask], phantom.normalised[~phantom.lesion_mask])


def test_base_of_the_residual_form_is_the_biharmonic_fill(phantom):
    base, _ = forms.condition(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, Form())
    fill = classical.biharmonic(phantom.normalised, phantom.lesion_mask)
    np.testing.assert_allclose(base, fill, atol=1e-5)


@pytest.mark.parametrize('kind', ['residual', 'prior'])
@pytest.mark.parametrize('base_name', BASES)
def test_base_is_the_baseline_that_the_form_names(phantom, kind, base_name):
    arguments = phantom.normalised, phantom.lesion_mask
    base, channels = forms.condition(*arguments, phantom.wm_mask, Form(kind=kind, base=base_name))
    lesion = phantom.lesion_mask
    fills = {
        'biharmonic': classical.biharmonic(*arguments),
        'membrane': classical.membrane(*arguments),
        'local_white_matter': classical.local_white_matter(*arguments, phantom.wm_mask),
    }
    assert base.dtype == channels.dtype == np.float32
    np.testing.assert_allclose(base[lesion], fills[base_name][lesion], atol=1e-5)
    assert np.array_equal(base[~lesion], phantom.normalised[~lesion])
    for other in set(BASES) - {base_name}:
        assert np.abs(base[lesion] - fills[other][lesion]).max() > 1e-3
    shown = ((base - fills['local_white_matter']) / 0.15).clip(-3, 3)
    np.testing.assert_allclose(channels[2], shown, atol=1e-4)


@pytest.mark.parametrize('base_name', BASES)
def test_no_base_reads_the_image_inside_the_mask(phantom, base_name):
    form = Form(kind='prior', base=base_name)
    spoilt = np.where(phantom.lesion_mask, np.float32(np.nan), phantom.normalised)
    usual = forms.condition(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, form)
    given = forms.condition(spoilt, phantom.lesion_mask, phantom.wm_mask, form)
    assert all(np.array_equal(a, b) for a, b in zip(given, usual, strict=True))


def test_unconditional_form_is_told_nothing(phantom):
    base, channels = forms.condition(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, UNCONDITIONAL)
    assert channels.shape == (0, *phantom.t1w.shape)
    assert channels.dtype == base.dtype == np.float32
    assert not base[phantom.lesion_mask].any()
    assert np.array_equal(base[~phantom.lesion_mask], phantom.normalised[~phantom.lesion_mask])


def test_base_of_the_plain_form_is_zero_inside_the_mask(phantom):
    base, _ = forms.condition(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, Form(kind='plain'))
    assert not base[phantom.lesion_mask].any()


def test_detail_is_the_base_minus_local_white_matter_at_full_contrast(phantom):
    form = Form(detail_scale=0.1)
    base, channels = forms.condition(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, form)
    white_matter = classical.local_white_matter(phantom.normalised, phantom.lesion_mask, phantom.wm_mask)
    expected = ((base - white_matter) / 0.1).clip(-3, 3)
    np.testing.assert_allclose(channels[2], expected, atol=1e-5)
    assert np.abs(channels[2]).max() == 3  # the cortex is far from white matter


def test_detail_shows_a_rim_that_the_mask_misses(phantom):
    tight = ndimage.binary_erosion(phantom.lesion_mask)
    ring = phantom.lesion_mask & ~tight
    channel = 2
    dirty = forms.condition(phantom.normalised, tight, phantom.wm_mask, Form())[1][channel]
    clean = forms.condition(phantom.normalised_healthy, tight, phantom.wm_mask, Form())[1][channel]
    assert dirty[ring].mean() < clean[ring].mean() - 1


def test_conditions_leave_the_image_alone(phantom, form):
    image = phantom.normalised
    before = image.copy()
    base, channels = forms.condition(image, phantom.lesion_mask, phantom.wm_mask, form)
    base[:] = channels[:] = 9
    assert np.array_equal(image, before)


def test_conditions_of_an_empty_mask_are_the_image(phantom, form):
    empty = np.zeros_like(phantom.lesion_mask)
    base, channels = forms.condition(phantom.normalised, empty, phantom.wm_mask, form)
    assert np.array_equal(base, phantom.normalised)
    assert np.array_equal(channels[0], phantom.normalised)
    assert not channels[1].any()


# Slabs


def test_from_slab_inverts_to_slab(rng):
    for shape in ((3, 4, 5), (2, 3, 4, 5), (6, 2, 3, 4, 5)):
        volume = rng.normal(size=shape)
        assert np.array_equal(tiles.from_slab(tiles.to_slab(volume)), volume)
        assert np.array_equal(tiles.to_slab(tiles.from_slab(volume)), volume)


def test_slices_of_a_slab_are_axial(rng):
    volume = rng.normal(size=(2, 3, 4, 5))  # channels, X, Y, Z
    slab = tiles.to_slab(volume)
    assert slab.shape == (2, 5, 3, 4)
    for z in range(5):
        assert np.array_equal(slab[:, z], volume[..., z])


# Sampling a slab


@pytest.fixture
def slab_channels(form, phantom):
    _, channels = forms.condition(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, form)
    return torch.from_numpy(tiles.to_slab(channels).copy())[None].repeat(2, 1, 1, 1, 1)


@pytest.fixture
def slab_noise(slab_channels):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 1, *slab_channels.shape[2:], generator=generator)


@pytest.mark.parametrize('num_inference_steps', [1, 5])
def test_sampling_a_slab_with_an_oracle_returns_the_healthy_image(
    phantom, form, slab_channels, slab_noise, oracle, num_inference_steps
):
    base, _ = forms.condition(phantom.normalised, phantom.lesion_mask, phantom.wm_mask, form)
    diffused = form.to_diffusion(phantom.normalised_healthy, base).astype(np.float32)
    truth = torch.from_numpy(tiles.to_slab(diffused[None]).copy())
    scheduler = process.build_scheduler('linear', 'v_prediction')
    denoiser = oracle(truth, scheduler)

    def unet(slabs, timesteps):
        assert slabs.shape == (2, form.n_channels, *slab_noise.shape[2:])
        assert torch.equal(slabs[:, 1:], slab_channels)
        assert timesteps.shape == (2,)
        assert timesteps[0] == timesteps[1]
        return denoiser(slabs[:, :1], timesteps[0])

    sampled = inpaint.sample_slab(unet, slab_channels, slab_noise, form, ddim(num_inference_steps))
    assert sampled.shape == slab_noise.shape
    for brain in range(2):
        filled = form.from_diffusion(tiles.from_slab(sampled[brain, 0].numpy()), base)
        lesion = phantom.lesion_mask
        np.testing.assert_allclose(filled[lesion], phantom.normalised_healthy[lesion], atol=1e-3)


@pytest.mark.parametrize('form', FORMS, ids=['residual', 'plain', 'thesis'])
def test_noise_reaches_the_network_inside_the_mask_only_if_the_form_says_so(form, slab_channels, slab_noise):
    mask = slab_channels[:, 1:2]

    def unet(slabs, _):
        assert torch.equal(slabs[:, :1] * mask, slabs[:, :1]) == form.inside_mask_only
        assert (slabs[:, :1] * mask).any()
        return slabs[:, :1]

    inpaint.sample_slab(unet, slab_channels, slab_noise, form, ddim(2))


def test_sampling_a_slab_is_the_same_alone_and_in_a_batch(tiny_unet, form, slab_channels, slab_noise):
    network = tiny_unet(in_channels=form.n_channels)
    channels, noise = slab_channels[..., :16, :16].clone(), slab_noise[..., :16, :16]
    channels[1, 0] += 0.3  # two different slabs
    together = inpaint.sample_slab(network, channels, noise, form, ddim(2))
    for brain in range(2):
        part = slice(brain, brain + 1)
        alone = inpaint.sample_slab(network, channels[part], noise[part], form, ddim(2))
        torch.testing.assert_close(together[part], alone, atol=1e-4, rtol=1e-4)


def test_sampler_of_a_slab_is_given_the_noise_and_its_sample_is_returned(slab_channels, slab_noise):
    def sampler(predict, noise):
        assert noise is slab_noise
        return predict(noise, torch.tensor(7)) + 1

    def unet(slabs, timesteps):
        assert timesteps.tolist() == [7, 7]
        return slabs[:, 2:3]

    form = Form(kind='plain')
    sampled = inpaint.sample_slab(unet, slab_channels[:, :2], slab_noise, form, sampler)
    assert torch.equal(sampled, slab_channels[:, 1:2] + 1)


def test_unconditional_slab_is_inpainted_where_the_mask_is(phantom, oracle):
    """RePaint through `sample_slab`: the network sees one channel; the truth inside, the image itself outside."""
    truth = torch.from_numpy(tiles.to_slab(phantom.normalised_healthy[None]).copy())[None]
    mask = torch.from_numpy(tiles.to_slab(phantom.lesion_mask[None]).copy())[None]
    scheduler = process.build_scheduler('linear', 'epsilon')
    denoiser = oracle(truth, scheduler)
    generator = torch.Generator().manual_seed(1)
    sampler = functools.partial(
        process.sample_repaint,
        scheduler=scheduler,
        num_inference_steps=5,
        image=torch.where(mask, torch.nan, truth),
        inpaint_mask=mask,
        generator=generator,
        jump_length=2,
        jump_n_sample=2,
    )

    def unet(slabs, timesteps):
        assert slabs.shape == truth.shape
        return denoiser(slabs, timesteps[0])

    noise = torch.randn(truth.shape, generator=generator)
    sampled = inpaint.sample_slab(unet, torch.empty(1, 0, *truth.shape[2:]), noise, UNCONDITIONAL, sampler)
    assert torch.equal(sampled[~mask], truth[~mask])
    torch.testing.assert_close(sampled[mask], truth[mask], atol=1e-4, rtol=0)


# Contrast that is asked for


@pytest.fixture
def two_lesions():
    """White matter at 0.5; eight brighter voxels and one that touches them at a corner; a dark one."""
    lesion_mask = np.zeros((24, 22, 20), dtype=bool)
    lesion_mask[4:6, 4:6, 4:6] = lesion_mask[6, 6, 6] = lesion_mask[16, 15, 14] = True
    image = np.full(lesion_mask.shape, 0.5, dtype=np.float32)
    image[4, 4:6, 4:6], image[5, 4:6, 4:6], image[6, 6, 6], image[16, 15, 14] = 0.7, 0.9, 0.8, 0.1
    return image, lesion_mask, ~lesion_mask


def test_contrast_is_the_mean_of_every_connected_lesion_over_white_matter(two_lesions):
    image, lesion_mask, wm_mask = two_lesions
    contrast, volumes, contrasts = lesions_contrasts.contrast_of(image, lesion_mask, wm_mask)
    assert volumes.tolist() == [9, 1]
    np.testing.assert_allclose(contrasts, [0.3, -0.4], atol=1e-5)
    assert contrast.dtype == np.float32
    assert not contrast[~lesion_mask].any()
    assert contrast[16, 15, 14] == contrasts[1]
    assert set(contrast[lesion_mask]) == set(contrasts)


def test_contrast_does_not_depend_on_what_is_not_white_matter(two_lesions):
    image, lesion_mask, wm_mask = two_lesions
    cortex = np.zeros_like(wm_mask)
    cortex[10:12] = True
    other = lesions_contrasts.contrast_of(np.where(cortex, -7, image), lesion_mask, wm_mask & ~cortex)[2]
    np.testing.assert_allclose(other, [0.3, -0.4], atol=1e-5)


def test_image_without_lesions_has_no_contrasts(two_lesions):
    image, lesion_mask, wm_mask = two_lesions
    contrast, volumes, contrasts = lesions_contrasts.contrast_of(image, np.zeros_like(lesion_mask), wm_mask)
    assert not contrast.any()
    assert len(volumes) == len(contrasts) == 0


@pytest.mark.parametrize('kind', ['prior', 'residual'])
def test_base_lesion_is_white_matter_and_the_contrast_that_is_asked_for(two_lesions, kind):
    image, lesion_mask, wm_mask = two_lesions
    form, contrast = Form(kind=kind, base='lesion', detail_scale=0.4), np.where(lesion_mask, 0.6, 0)
    hidden = np.where(lesion_mask, np.nan, image)
    base, (voided, mask, detail) = forms.condition(hidden, lesion_mask, wm_mask, form, contrast)
    np.testing.assert_allclose(base, np.where(lesion_mask, 1.1, 0.5), atol=1e-5)
    np.testing.assert_allclose(detail, np.where(lesion_mask, 1.5, 0), atol=1e-5)
    assert not voided[lesion_mask].any()
    assert np.array_equal(mask, lesion_mask)


def test_form_that_asks_for_a_contrast_is_not_sampled_without(two_lesions):
    form = Form(base='lesion')
    assert form.asks_contrast
    assert not Form(base='lesion', kind='plain').asks_contrast
    with pytest.raises(ValueError, match="base 'lesion' needs the contrast"):
        forms.condition(*two_lesions, form)
