"""Tiles and sampling of whole volumes (conditions: test_inpaint_conditions.py)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bids_lesionfill.diffusion import forms, inpaint, process, tiles
from bids_lesionfill.lesions import contrasts

TILE = (16, 16, 8)


def mask_of(shape, *boxes):
    mask = np.zeros(shape, dtype=bool)
    for box in boxes:
        mask[tuple(slice(a, b) for a, b in box)] = True
    return mask


def cover_of(corners, tile, shape, shrink=True):
    """Voxels that a tile covers with at least a fifth of a tile around them."""
    cover = np.zeros(shape, dtype=bool)
    for corner in corners:
        cover[
            tuple(
                slice(c + (n // 5 if shrink else 0), c + n - (n // 5 if shrink else 0))
                for c, n in zip(corner, tile, strict=True)
            )
        ] = True
    return cover


def rim_phantom(sign=1.0, seed=0):
    """White matter with some noise, a lesion with a wide soft edge, a mask that misses the edge."""
    shape = (40, 40, 40)
    distance = np.sqrt(sum((axis - 20.0) ** 2 for axis in np.ogrid[:40, :40, :40]))
    image = 0.5 + np.random.default_rng(seed).normal(0, 0.02, shape)
    share = np.clip((8.5 - distance) / 4, 0, 1)  # full up to 4.5 voxels, gone at 8.5
    return image - sign * 0.5 * share, distance <= 5, share, np.ones(shape, dtype=bool)


@pytest.mark.parametrize('bright_lesions', [False, True])
def test_mask_grows_into_the_rim_that_it_missed(bright_lesions):
    image, lesion_mask, share, wm_mask = rim_phantom(-1.0 if bright_lesions else 1.0)
    grown = contrasts.grow_to_rim(image, lesion_mask, wm_mask, 3, bright_lesions)
    assert grown[lesion_mask].all()
    assert grown[share > 0.2].mean() > 0.98  # 0.1 is five deviations of the noise
    assert (grown & (share == 0)).sum() < 0.01 * grown.sum()


def test_mask_does_not_grow_where_nothing_is_left_or_where_the_contrast_is_the_other_way():
    image, lesion_mask, share, wm_mask = rim_phantom()
    whole = share > 0.01
    assert contrasts.grow_to_rim(image, whole, wm_mask, 2).sum() < 1.03 * whole.sum()
    grown = contrasts.grow_to_rim(image, lesion_mask, wm_mask, 2, bright_lesions=True)
    assert grown.sum() < 1.03 * lesion_mask.sum()


def test_growth_into_the_rim_does_not_depend_on_the_unit_of_intensity():
    image, lesion_mask, _, wm_mask = rim_phantom()
    grown = contrasts.grow_to_rim(image, lesion_mask, wm_mask)
    again = contrasts.grow_to_rim(image * 1000 + 3000, lesion_mask, wm_mask)
    assert (grown != again).sum() <= 2
    assert np.array_equal(contrasts.grow_to_rim(image, lesion_mask, wm_mask, 0), lesion_mask)
    assert np.array_equal(contrasts.grow_to_rim(image, lesion_mask, lesion_mask), lesion_mask)  # no white matter left


def test_small_lesion_gets_one_tile_around_it():
    mask = mask_of((64, 64, 40), [(30, 34), (28, 33), (20, 22)])
    (corner,) = tiles.plan_tiles(mask, TILE)
    assert (cover_of([corner], TILE, mask.shape) >= mask).all()


def test_tiles_cover_every_lesion_with_a_margin():
    mask = mask_of(
        (90, 90, 60), [(20, 60), (20, 44), (16, 40)], [(70, 72), (70, 72), (20, 21)], [(62, 63), (20, 21), (16, 17)]
    )
    corners = tiles.plan_tiles(mask, TILE)
    assert (cover_of(corners, TILE, mask.shape) >= mask).all()


def test_tiles_leave_out_what_has_no_lesion():
    mask = mask_of((120, 120, 60), [(20, 24), (20, 24), (16, 18)], [(90, 94), (90, 94), (40, 42)])
    assert len(tiles.plan_tiles(mask, TILE)) == 2


def test_neighbouring_small_lesions_share_a_tile():
    mask = mask_of((64, 64, 40), [(30, 36), (30, 36), (20, 24)], [(37, 38), (32, 33), (21, 22)])
    assert len(tiles.plan_tiles(mask, TILE)) <= 2
    assert len(tiles.plan_tiles(mask_of((64, 64, 40), [(30, 36), (30, 36), (20, 24)]), TILE)) == 1


OVERLAPPING = [np.array(corner) for corner in [(0, 0, 0), (10, 0, 0), (0, 9, 3), (10, 9, 3)]]


@pytest.fixture
def region(rng):
    """Scattered voxels in the overlapping tiles."""
    return cover_of(OVERLAPPING, TILE, (28, 27, 13), shrink=False) & (rng.random((28, 27, 13)) < 0.4)


@pytest.mark.parametrize('batch_size', [1, 3, 8])
def test_sampled_voxels_are_listed_in_c_order_of_the_region(region, rng, batch_size):
    """A network that names a condition channel, and a sampler that asks once: each voxel gets its own value."""
    channels = rng.normal(size=(2, *region.shape)).astype(np.float32)
    noise = torch.randn(int(region.sum()), generator=torch.Generator().manual_seed(1))
    sampled = tiles.sample_volume(
        lambda slabs, _: slabs[:, 2:3],
        channels,
        region,
        OVERLAPPING,
        TILE,
        noise,
        lambda predict, noise: predict(noise, torch.tensor(5)),
        batch_size,
    )
    np.testing.assert_allclose(sampled.numpy(), channels[1][region], atol=1e-5)


def test_noise_reaches_its_voxel_in_every_tile_and_zero_the_others(region):
    noise = 1 + torch.rand(int(region.sum()), generator=torch.Generator().manual_seed(1))
    volume = np.zeros(region.shape, dtype=np.float32)
    volume[region] = noise.numpy()
    seen = []

    def unet(slabs, timesteps):
        assert timesteps.tolist() == [5] * len(slabs)
        seen.extend(tiles.from_slab(slab[0].numpy()) for slab in slabs)
        return slabs[:, :1]

    channels = np.empty((0, *region.shape), dtype=np.float32)  # an unconditional model has none
    sampled = tiles.sample_volume(
        unet, channels, region, OVERLAPPING, TILE, noise, lambda predict, noise: predict(noise, torch.tensor(5)), 3
    )
    torch.testing.assert_close(sampled, noise)
    for corner, tile in zip(OVERLAPPING, seen, strict=True):
        assert np.array_equal(tile, volume[tuple(slice(c, c + n) for c, n in zip(corner, TILE, strict=True))])


def test_predictions_are_blended_by_the_window_where_tiles_overlap(region):
    corners = OVERLAPPING[:2]
    region = region & cover_of(corners, TILE, region.shape, shrink=False)
    calls = iter([1.0, 3.0])  # the first tile predicts 1, the second one 3

    sampled = tiles.sample_volume(
        lambda slabs, _: torch.full_like(slabs[:, :1], next(calls)),
        np.empty((0, *region.shape), dtype=np.float32),
        region,
        corners,
        TILE,
        torch.zeros(int(region.sum())),
        lambda predict, noise: predict(noise, torch.tensor(5)),
        batch_size=1,
    )
    window = tiles.blending_window(TILE)
    weights = np.zeros((2, *region.shape))
    weights[0, :16, :16, :8] = weights[1, 10:26, :16, :8] = window
    expected = (weights[0] + 3 * weights[1])[region] / weights.sum(axis=0)[region]
    assert ((expected > 1.1) & (expected < 2.9)).any()
    np.testing.assert_allclose(sampled.numpy(), expected, atol=1e-5)


@pytest.fixture
def model(tiny_unet):
    form = forms.Form()
    return SimpleNamespace(
        unet=tiny_unet(in_channels=form.n_channels),
        form=form,
        tile=TILE,
        scheduler=process.build_scheduler(prediction_type='v_prediction'),
    )


@pytest.fixture
def volume(phantom):
    return phantom.normalised, phantom.lesion_mask, phantom.wm_mask


@pytest.fixture
def unconditional(tiny_unet):
    form = forms.Form(kind='unconditional', inside_mask_only=False)
    return SimpleNamespace(
        unet=tiny_unet(in_channels=1),
        form=form,
        tile=TILE,
        scheduler=process.build_scheduler(prediction_type='v_prediction'),
        jump_length=2,
        jump_n_sample=2,
    )


class Oracle:
    """A network that knows the truth of every tile: the condition channels tell where it is."""

    def __init__(self, truth, scheduler, form):
        self.truth, self.scheduler, self.form = truth, scheduler, form

    def __call__(self, slabs, timesteps):
        a = self.scheduler.alphas_cumprod[int(timesteps[0])]
        noisy, mask = slabs[:, 0], slabs[:, 2]
        image = torch.full_like(noisy, self.truth)
        noise = (noisy - a.sqrt() * image) / (1 - a).sqrt().clamp(min=1e-6)
        return (a.sqrt() * noise - (1 - a).sqrt() * image)[:, None] * mask[:, None]


@pytest.mark.parametrize('steps', [1, 5])
def test_oracle_fills_with_the_truth_in_every_tile(volume, steps):
    image, lesion_mask, wm_mask = volume
    form = forms.Form(kind='plain')
    scheduler = process.build_scheduler(prediction_type='v_prediction')
    model = SimpleNamespace(unet=Oracle(0.42, scheduler, form), form=form, tile=TILE, scheduler=scheduler)
    filled = inpaint.fill_volume(image, lesion_mask, wm_mask, model, steps, [1])
    assert filled.shape == (1, lesion_mask.sum())
    assert np.allclose(filled, 0.42, atol=1e-4)


def test_network_that_predicts_nothing_at_the_last_step_leaves_the_base(volume, model):
    image, lesion_mask, wm_mask = volume
    with torch.no_grad():
        model.unet.conv_out.weight.zero_()
        model.unet.conv_out.bias.zero_()
    filled = inpaint.fill_volume(image, lesion_mask, wm_mask, model, 1, [0])
    base, _ = forms.condition(image, lesion_mask, wm_mask, model.form)
    assert np.allclose(filled[0], base[lesion_mask], atol=1e-3)


def test_values_inside_the_mask_are_never_read(volume, model):
    image, lesion_mask, wm_mask = volume
    filled = inpaint.fill_volume(image, lesion_mask, wm_mask, model, 2, [3])
    other = np.where(lesion_mask, 7.0, image)
    assert np.array_equal(inpaint.fill_volume(other, lesion_mask, wm_mask, model, 2, [3]), filled)


def test_same_seed_same_values_other_seed_others(volume, model):
    first, again, other = inpaint.fill_volume(*volume, model, 3, [1, 1, 2])
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_batch_size_changes_nothing(volume, model):
    one = inpaint.fill_volume(*volume, model, 2, [1], batch_size=1)
    many = inpaint.fill_volume(*volume, model, 2, [1], batch_size=8)
    assert np.allclose(one, many, atol=1e-4)


@pytest.mark.parametrize('kind', ['model', 'unconditional'])
def test_progress_counts_every_tile_of_every_step_and_seed(volume, kind, request):
    told, model = [], request.getfixturevalue(kind)
    inpaint.fill_volume(*volume, model, 3, [1, 2], batch_size=1, progress=lambda *numbers: told.append(numbers))
    n_all = told[0][1]
    assert n_all % (2 * len(tiles.plan_tiles(np.pad(volume[1], 16), model.tile))) == 0
    assert told == [(n, n_all) for n in range(1, n_all + 1)]


def test_lesion_at_the_border_of_the_volume_is_filled(model, rng):
    image = (0.5 + 0.01 * rng.standard_normal((20, 20, 12))).astype(np.float32)
    mask = mask_of(image.shape, [(0, 3), (0, 3), (0, 3)])
    filled = inpaint.fill_volume(image, mask, ~mask, model, 1, [0])
    assert filled.shape == (1, 27)
    assert np.isfinite(filled).all()


def test_thesis_form_noises_whole_tiles(volume, tiny_unet):
    image, lesion_mask, wm_mask = volume
    form = forms.Form(kind='plain', inside_mask_only=False)
    model = SimpleNamespace(unet=tiny_unet(in_channels=3), form=form, tile=TILE, scheduler=process.build_scheduler())
    filled = inpaint.fill_volume(image, lesion_mask, wm_mask, model, 2, [1])
    assert filled.shape == (1, lesion_mask.sum())
    assert np.isfinite(filled).all()


def test_filling_lists_the_voxels_of_the_mask_in_c_order(volume):
    """One step of v-prediction names the image: a network that names its third condition fills with that."""
    image, lesion_mask, wm_mask = volume
    form = forms.Form(kind='prior')
    scheduler = process.build_scheduler(prediction_type='v_prediction')
    model = SimpleNamespace(unet=lambda slabs, _: -slabs[:, 3:4], form=form, tile=TILE, scheduler=scheduler)
    _, channels = forms.condition(image, lesion_mask, wm_mask, form)
    filled = inpaint.fill_volume(image, lesion_mask, wm_mask, model, 1, [1])
    assert np.ptp(channels[2][lesion_mask]) > 0.1
    np.testing.assert_allclose(filled[0], channels[2][lesion_mask], atol=1e-3)


# Unconditional models (RePaint)


@pytest.fixture
def large_lesion(rng):
    """A lesion over more than one tile in every direction, one tile away from every side of a volume of noise."""
    image = rng.normal(0.3, 0.2, (52, 50, 25)).astype(np.float32)
    lesion_mask = mask_of(image.shape, [(16, 36), (16, 34), (8, 17)])
    return image, lesion_mask, ~lesion_mask


def test_unconditional_model_fills_and_seeds_differ(volume, unconditional):
    first, again, other = inpaint.fill_volume(*volume, unconditional, 3, [1, 1, 2])
    assert first.shape == (volume[1].sum(),)
    assert np.isfinite([first, other]).all()
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)


def test_unconditional_model_never_reads_values_inside_the_mask(volume, unconditional):
    image, lesion_mask, wm_mask = volume
    filled = inpaint.fill_volume(image, lesion_mask, wm_mask, unconditional, 3, [3])
    spoilt = np.where(lesion_mask, np.float32(np.nan), image)
    assert np.array_equal(inpaint.fill_volume(spoilt, lesion_mask, wm_mask, unconditional, 3, [3]), filled)


def test_unconditional_model_reads_the_known_tissue(volume, unconditional):
    image, lesion_mask, wm_mask = volume
    filled = inpaint.fill_volume(image, lesion_mask, wm_mask, unconditional, 3, [3])
    other = inpaint.fill_volume(image + 0.3, lesion_mask, wm_mask, unconditional, 3, [3])
    assert not np.allclose(filled, other, atol=1e-3)


class KnowsTheTruth:
    """An unconditional network that knows the truth; tiles come in the order of `plan_tiles`."""

    def __init__(self, image, lesion_mask, scheduler, oracle):
        self.tiles = [
            image[tuple(slice(c, c + n) for c, n in zip(corner, TILE, strict=True))]
            for corner in tiles.plan_tiles(lesion_mask, TILE)
        ]
        self.scheduler, self.oracle, self.n_seen = scheduler, oracle, 0

    def __call__(self, slabs, timesteps):
        assert slabs.shape[1:] == (1, TILE[2], *TILE[:2])
        truth = np.stack([self.tiles[(self.n_seen + i) % len(self.tiles)] for i in range(len(slabs))])
        self.n_seen += len(slabs)
        truth = torch.from_numpy(tiles.to_slab(truth).copy())[:, None]
        return self.oracle(truth, self.scheduler)(slabs, timesteps[0])


@pytest.mark.parametrize('prediction_type', ['epsilon', 'v_prediction'])
def test_unconditional_oracle_fills_a_large_lesion_with_the_truth(large_lesion, unconditional, oracle, prediction_type):
    image, lesion_mask, wm_mask = large_lesion
    unconditional.scheduler = process.build_scheduler(prediction_type=prediction_type)
    unconditional.unet = network = KnowsTheTruth(image, lesion_mask, unconditional.scheduler, oracle)
    voided = np.where(lesion_mask, np.float32(np.nan), image)
    filled = inpaint.fill_volume(voided, lesion_mask, wm_mask, unconditional, 5, [1], batch_size=3)
    assert len(network.tiles) > 3
    # Five steps and two jumps of two, from levels 1 and 3.
    assert network.n_seen == 9 * len(network.tiles)
    np.testing.assert_allclose(filled[0], image[lesion_mask], atol=1e-3)


def test_jumps_of_the_model_are_used(volume, unconditional):
    passes = []

    def unet(slabs, timesteps):
        passes.append(int(timesteps[0]))
        return torch.zeros_like(slabs)

    unconditional.unet = unet
    unconditional.jump_n_sample = 1
    inpaint.fill_volume(*volume, unconditional, 5, [1])
    assert passes == [999, 799, 599, 399, 199]
    passes.clear()
    unconditional.jump_n_sample, unconditional.jump_length = 2, 4
    inpaint.fill_volume(*volume, unconditional, 5, [1])
    assert passes == [999, 799, 599, 399] * 2 + [199]


# Starting from a coarse painting (SDEdit)


def test_start_step_reads_the_painting_and_without_it_nothing_does(volume, unconditional, model):
    image, lesion_mask, wm_mask = volume
    dark, bright = (np.where(lesion_mask, np.float32(value), image) for value in (-0.2, 0.6))
    for any_model in (unconditional, model):

        def fill(painting, start_step, any_model=any_model):
            return inpaint.fill_volume(painting, lesion_mask, wm_mask, any_model, 5, [1], start_step=start_step)

        assert np.array_equal(fill(dark, 0), fill(bright, 0))
        assert fill(bright, 1).mean() > fill(dark, 1).mean() + 0.1


@pytest.mark.parametrize('kind', ['unconditional', 'plain', 'prior', 'residual'])
def test_fewer_steps_stay_closer_to_the_painting(volume, kind):
    """A network that predicts no noise at all: one step leaves the painting nearly as it is, all steps do not."""
    image, lesion_mask, wm_mask = volume
    form = forms.Form(kind=kind, inside_mask_only=kind != 'unconditional')
    model = SimpleNamespace(
        unet=lambda slabs, _: torch.zeros_like(slabs[:, :1]),
        form=form,
        tile=TILE,
        scheduler=process.build_scheduler(),
        jump_length=2,
        jump_n_sample=2,
    )
    painting = np.where(lesion_mask, np.float32(0.1), image)
    distances = [
        np.abs(inpaint.fill_volume(painting, lesion_mask, wm_mask, model, 5, [1], start_step=steps) - 0.1).mean()
        for steps in (1, 2, 5)
    ]
    assert distances[0] < 0.02
    assert distances[0] < distances[1] < distances[2]


# GPUs: the same code, on the CPU


class SmallMemory:
    """A network of another whose device holds only so many slabs at once."""

    def __init__(self, unet, holds):
        self.unet, self.holds, self.tried = unet, holds, []

    def __call__(self, slabs, timesteps):
        self.tried.append(len(slabs))
        if len(slabs) > self.holds:
            raise torch.OutOfMemoryError(f'{len(slabs)} slabs')
        return self.unet(slabs, timesteps)


def test_batches_shrink_to_what_the_memory_holds_and_stay_small(large_lesion, model):
    expected = inpaint.fill_volume(*large_lesion, model, 2, [1], batch_size=1)
    n_tiles = len(tiles.plan_tiles(large_lesion[1], TILE))
    assert n_tiles >= 8
    model.unet = SmallMemory(model.unet, holds=3)
    with pytest.warns(UserWarning, match='no memory for 8 tiles at once, going on with 4') as said:
        filled = inpaint.fill_volume(*large_lesion, model, 2, [1], batch_size=8)
    assert [str(warning.message)[-4:] for warning in said] == ['th 4', 'th 2']
    assert model.unet.tried[:3] == [8, 4, 2]
    assert max(model.unet.tried[2:]) == 2
    assert sum(model.unet.tried[2:]) == 2 * n_tiles
    np.testing.assert_allclose(filled, expected, atol=1e-4)


def test_memory_that_holds_no_tile_is_an_error(volume, model):
    model.unet = SmallMemory(model.unet, holds=0)
    with pytest.raises(torch.OutOfMemoryError, match='1 slabs'), pytest.warns(UserWarning, match='going on with 1'):
        inpaint.fill_volume(*volume, model, 1, [1], batch_size=2)


@pytest.mark.filterwarnings('ignore:CUDA is not available')
def test_cpu_runs_in_single_precision_and_gpu_in_half():
    with tiles.autocast(torch.device('cpu')):
        assert not torch.is_autocast_enabled('cpu')
    on_gpu = tiles.autocast(torch.device('cuda'))
    assert (on_gpu.device, on_gpu.fast_dtype) == ('cuda', torch.float16)


def test_half_precision_fills_nearly_the_same(volume, model, monkeypatch):
    expected = inpaint.fill_volume(*volume, model, 2, [1])
    monkeypatch.setattr(tiles, 'autocast', lambda device: torch.autocast(device.type, dtype=torch.bfloat16))
    filled = inpaint.fill_volume(*volume, model, 2, [1])
    assert filled.dtype == np.float32
    assert not np.array_equal(filled, expected)
    np.testing.assert_allclose(filled, expected, atol=0.01)


def test_network_is_trusted_where_the_filling_is_white_and_not_where_it_is_grey():
    base = np.full((40, 20, 20), 0.5)
    base[:20] = 0.05  # grey matter
    trust = inpaint.trust_in_network(base, np.full(base.shape, 0.5))
    assert trust[30, 9, 9] == 1
    assert trust[5, 9, 9] == 0
    assert (np.diff(trust[:, 9, 9]) >= 0).all()
