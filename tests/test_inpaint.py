"""Tiles and sampling of whole volumes (conditions: test_inpaint_conditions.py)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bids_lesionfill import diffusion, inpaint

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


def test_small_lesion_gets_one_tile_around_it():
    mask = mask_of((64, 64, 40), [(30, 34), (28, 33), (20, 22)])
    (corner,) = inpaint.plan_tiles(mask, TILE)
    assert (cover_of([corner], TILE, mask.shape) >= mask).all()


def test_tiles_cover_every_lesion_with_a_margin():
    mask = mask_of(
        (90, 90, 60), [(20, 60), (20, 44), (16, 40)], [(70, 72), (70, 72), (20, 21)], [(62, 63), (20, 21), (16, 17)]
    )
    corners = inpaint.plan_tiles(mask, TILE)
    assert (cover_of(corners, TILE, mask.shape) >= mask).all()


def test_tiles_leave_out_what_has_no_lesion():
    mask = mask_of((120, 120, 60), [(20, 24), (20, 24), (16, 18)], [(90, 94), (90, 94), (40, 42)])
    assert len(inpaint.plan_tiles(mask, TILE)) == 2


def test_neighbouring_small_lesions_share_a_tile():
    mask = mask_of((64, 64, 40), [(30, 36), (30, 36), (20, 24)], [(37, 38), (32, 33), (21, 22)])
    assert len(inpaint.plan_tiles(mask, TILE)) <= 2
    assert len(inpaint.plan_tiles(mask_of((64, 64, 40), [(30, 36), (30, 36), (20, 24)]), TILE)) == 1


def test_slab_order_lists_voxels_slice_by_slice(rng):
    region = rng.random((5, 6, 7)) < 0.4
    volume = rng.random((5, 6, 7))
    assert np.array_equal(volume[region][inpaint.slab_order(region)], inpaint.to_slab(volume)[inpaint.to_slab(region)])


@pytest.fixture
def model(tiny_unet):
    form = inpaint.Form()
    return SimpleNamespace(
        unet=tiny_unet(in_channels=form.n_channels),
        form=form,
        tile=TILE,
        scheduler=diffusion.build_scheduler(prediction_type='v_prediction'),
    )


@pytest.fixture
def volume(phantom):
    return phantom.normalised, phantom.lesion_mask, phantom.wm_mask


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
    form = inpaint.Form(kind='plain')
    scheduler = diffusion.build_scheduler(prediction_type='v_prediction')
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
    base, _ = inpaint.condition(image, lesion_mask, wm_mask, model.form)
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


def test_lesion_at_the_border_of_the_volume_is_filled(model, rng):
    image = (0.5 + 0.01 * rng.standard_normal((20, 20, 12))).astype(np.float32)
    mask = mask_of(image.shape, [(0, 3), (0, 3), (0, 3)])
    filled = inpaint.fill_volume(image, mask, ~mask, model, 1, [0])
    assert filled.shape == (1, 27)
    assert np.isfinite(filled).all()


def test_thesis_form_noises_whole_tiles(volume, tiny_unet):
    image, lesion_mask, wm_mask = volume
    form = inpaint.Form(kind='plain', inside_mask_only=False)
    model = SimpleNamespace(unet=tiny_unet(in_channels=3), form=form, tile=TILE, scheduler=diffusion.build_scheduler())
    filled = inpaint.fill_volume(image, lesion_mask, wm_mask, model, 2, [1])
    assert filled.shape == (1, lesion_mask.sum())
