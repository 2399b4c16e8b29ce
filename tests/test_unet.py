import functools
import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D

from bids_lesionfill.diffusion import unet

SHAPE = (2, 4, 5, 16, 8)  # batch, channels, slices, height, width: all different
TIMESTEPS = torch.tensor([10, 700])


@pytest.fixture
def slabs():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def mixing_unet(tiny_unet):
    """A pseudo-3D network whose 1D convolutions are no longer the identity."""
    network = tiny_unet(pseudo_3d=True)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for module in slice_convolutions(network):
            weight = module.along_slices.weight
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
            module.along_slices.bias += 0.1 * torch.randn(module.along_slices.bias.shape, generator=generator)
    return network


def slice_convolutions(network):
    return [module for module in network.modules() if isinstance(module, unet.SliceConvolution)]


def predict(network, slabs, timesteps=TIMESTEPS):
    with torch.no_grad():
        return network(slabs, timesteps)


def changed(slabs, *where):
    other = slabs.clone()
    other[where] += 1
    return other


@functools.cache
def thesis_unet(pseudo_3d=True):
    with torch.device('meta'):  # shapes without memory
        return unet.build_unet('thesis', 3, pseudo_3d)


# Slabs


@pytest.mark.parametrize('pseudo_3d', [False, True])
def test_prediction_has_one_channel_and_the_slab_s_shape(tiny_unet, slabs, pseudo_3d):
    assert predict(tiny_unet(pseudo_3d=pseudo_3d), slabs).shape == (2, 1, 5, 16, 8)


def test_2d_network_on_a_slab_is_diffusers_on_every_slice(tiny_unet, slabs):
    network = tiny_unet(pseudo_3d=False)
    prediction = predict(network, slabs)
    for brain in range(2):
        for z in range(5):
            with torch.no_grad():
                alone = UNet2DModel.forward(network, slabs[brain : brain + 1, :, z], TIMESTEPS[brain]).sample[0]
            torch.testing.assert_close(prediction[brain, :, z], alone, atol=1e-5, rtol=1e-4)


def test_pseudo_3d_at_start_equals_2d_with_the_same_weights(tiny_unet, slabs):
    pseudo_3d, flat = tiny_unet(pseudo_3d=True), tiny_unet(pseudo_3d=False, seed=1)
    assert not torch.allclose(predict(pseudo_3d, slabs), predict(flat, slabs), atol=1e-3)
    weights = {k.replace('.spatial.', '.'): v for k, v in pseudo_3d.state_dict().items() if 'along_slices' not in k}
    flat.load_state_dict(weights, strict=True)
    torch.testing.assert_close(predict(pseudo_3d, slabs), predict(flat, slabs), atol=1e-5, rtol=1e-4)


def test_every_residual_block_has_two_convolutions_along_slices(tiny_unet):
    network = tiny_unet(pseudo_3d=True)
    blocks = [module for module in network.modules() if isinstance(module, ResnetBlock2D)]
    assert len(slice_convolutions(network)) == 2 * len(blocks) > 0
    for block in blocks:
        for convolution in (block.conv1, block.conv2):
            assert convolution.along_slices.kernel_size == (3,)
            assert convolution.along_slices.in_channels == convolution.spatial.out_channels
    assert not slice_convolutions(tiny_unet(pseudo_3d=False))


def test_slice_convolution_is_a_1d_convolution_along_the_slices():
    spatial = torch.nn.Conv2d(3, 6, 3, padding=1)
    module = unet.SliceConvolution(spatial)
    torch.nn.init.normal_(module.along_slices.weight)
    torch.nn.init.normal_(module.along_slices.bias)
    module.n_slices = 4
    features = torch.randn(2 * 4, 3, 5, 7)
    with torch.no_grad():
        result = module(features)
        maps = spatial(features).reshape(2, 4, 6, 5, 7)
        for brain, y, x in [(0, 0, 0), (1, 4, 6), (0, 2, 3)]:
            expected = module.along_slices(maps[brain, :, :, y, x].T[None])[0].T  # (slices, channels)
            torch.testing.assert_close(result.reshape(2, 4, 6, 5, 7)[brain, :, :, y, x], expected)


def test_slabs_of_a_batch_never_mix(mixing_unet, slabs):
    before = predict(mixing_unet, slabs)
    for brain in range(2):
        after = predict(mixing_unet, changed(slabs, brain))
        assert torch.equal(after[1 - brain], before[1 - brain])
        assert not torch.allclose(after[brain], before[brain], atol=1e-3)


def test_batch_gives_what_every_slab_gives_alone(mixing_unet, slabs):
    together = predict(mixing_unet, slabs)  # two slabs at two time steps
    for brain in range(2):
        alone = predict(mixing_unet, slabs[brain : brain + 1], TIMESTEPS[brain : brain + 1])
        torch.testing.assert_close(together[brain : brain + 1], alone, atol=1e-5, rtol=1e-4)


def test_prediction_depends_on_the_slab_s_own_time_step(mixing_unet, slabs):
    before = predict(mixing_unet, slabs)
    after = predict(mixing_unet, slabs, torch.tensor([10, 20]))
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1], atol=1e-4)


def test_pseudo_3d_mixes_slices_once_its_1d_weights_have_changed(mixing_unet, slabs):
    before, after = predict(mixing_unet, slabs), predict(mixing_unet, changed(slabs, 0, slice(None), 2))
    for z in range(5):
        assert not torch.allclose(after[0, :, z], before[0, :, z], atol=1e-5)


@pytest.mark.parametrize('pseudo_3d', [False, True])
def test_network_at_start_does_not_mix_slices(tiny_unet, slabs, pseudo_3d):
    network = tiny_unet(pseudo_3d=pseudo_3d)
    before, after = predict(network, slabs), predict(network, changed(slabs, 0, slice(None), 2))
    same = [torch.allclose(after[0, :, z], before[0, :, z], atol=1e-6) for z in range(5)]
    assert same == [True, True, False, True, True]


def test_number_of_slices_may_differ_from_call_to_call(mixing_unet, slabs):
    first = predict(mixing_unet, slabs)
    assert predict(mixing_unet, slabs[:, :, :3]).shape == (2, 1, 3, 16, 8)
    assert torch.equal(predict(mixing_unet, slabs), first)


def test_1d_convolutions_learn(tiny_unet, slabs):
    network = tiny_unet(pseudo_3d=True)
    network(slabs, TIMESTEPS).square().mean().backward()
    for module in slice_convolutions(network):
        outer_taps = module.along_slices.weight.grad[:, :, [0, 2]]
        assert outer_taps.abs().max() > 0


# Building, saving, loading


@pytest.mark.parametrize('pseudo_3d', [False, True])
def test_save_and_load_round_trip_is_exact(tiny_unet, mixing_unet, slabs, tmp_path, pseudo_3d):
    network = mixing_unet if pseudo_3d else tiny_unet(pseudo_3d=False)
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path).eval()
    assert type(loaded) is (unet.SlabUNetPseudo3D if pseudo_3d else unet.SlabUNet2D)
    assert tuple(loaded.config.block_out_channels) == (8, 8)
    weights, loaded_weights = network.state_dict(), loaded.state_dict()
    assert weights.keys() == loaded_weights.keys()
    assert all(torch.equal(weights[name], loaded_weights[name]) for name in weights)
    assert torch.equal(predict(loaded, slabs), predict(network, slabs))
    assert not list(tmp_path.glob('*.bin'))


def test_saved_config_names_the_class_and_all_arguments(tiny_unet, tmp_path):
    tiny_unet(in_channels=3).save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['_class_name'] == 'SlabUNetPseudo3D'
    assert config['block_out_channels'] == [8, 8]
    assert (config['in_channels'], config['out_channels']) == (3, 1)
    arguments = set(inspect.signature(UNet2DModel.__init__).parameters) - {'self'}
    assert arguments <= set(config)


def test_options_override_the_size(tiny_unet):
    network = tiny_unet(in_channels=5, layers_per_block=2)
    assert network.config.in_channels == 5
    assert network.config.layers_per_block == 2
    assert network.config.out_channels == 1


def test_unknown_size_names_those_that_exist():
    with pytest.raises(ValueError, match="'huge'.*compact.*small.*thesis"):
        unet.build_unet('huge', 3)


def test_count_parameters_by_hand():
    assert unet.count_parameters(torch.nn.Conv2d(3, 8, 5)) == 3 * 8 * 25 + 8


# The sizes (thesis 3.2)


def test_thesis_network_has_137_million_parameters():
    assert unet.count_parameters(thesis_unet()) == pytest.approx(137e6, rel=0.01)


def test_thesis_network_has_six_levels_of_two_residual_blocks():
    network = thesis_unet()
    assert tuple(network.config.block_out_channels) == (128, 128, 256, 256, 512, 512)
    assert len(network.down_blocks) == len(network.up_blocks) == 6
    assert [len(block.resnets) for block in network.down_blocks] == [2] * 6
    assert [block.resnets[-1].out_channels for block in network.down_blocks] == [128, 128, 256, 256, 512, 512]


def test_thesis_network_attends_at_16x16_of_a_256x256_slice():
    network = thesis_unet()
    size, down = 256, []
    for block in network.down_blocks:
        down += [size] if getattr(block, 'attentions', None) else []
        size //= 2 if block.downsamplers else 1
    up = []
    for block in network.up_blocks:
        up += [size] if getattr(block, 'attentions', None) else []
        size *= 2 if block.upsamplers else 1
    assert size == 256
    assert down == up == [16]


def test_thesis_network_sees_three_channels_and_gives_one():
    assert thesis_unet().conv_in.in_channels == 3
    assert thesis_unet().conv_out.out_channels == 1


def test_1d_convolutions_are_all_that_the_pseudo_3d_network_adds():
    added = sum(unet.count_parameters(module.along_slices) for module in slice_convolutions(thesis_unet()))
    assert unet.count_parameters(thesis_unet()) == unet.count_parameters(thesis_unet(False)) + added
    widths = [module.spatial.out_channels for module in slice_convolutions(thesis_unet())]
    assert added == sum(3 * np.square(widths)) + sum(widths)


def test_compact_network_is_small_and_has_no_attention():
    with torch.device('meta'):
        network = unet.build_unet('compact', 4)
    assert 1e6 < unet.count_parameters(network) < 5e6
    assert not [name for name, _ in network.named_modules() if 'attentions.' in name]


def test_small_network_is_the_compact_one_with_half_the_channels_or_so():
    with torch.device('meta'):
        small, compact = unet.build_unet('small', 1), unet.build_unet('compact', 1)
    assert small.conv_in.in_channels == 1
    assert unet.count_parameters(small) < 0.6 * unet.count_parameters(compact)
    assert [name.split('.')[0] for name, _ in small.named_parameters()] == [
        name.split('.')[0] for name, _ in compact.named_parameters()
    ]
    assert not [name for name, _ in small.named_modules() if 'attentions.' in name]


def test_small_network_predicts():
    slabs = torch.randn(1, 1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    prediction = predict(unet.build_unet('small', 1).eval(), slabs, TIMESTEPS[:1])
    assert prediction.shape == slabs.shape
    assert prediction.isfinite().all()
    assert prediction.std() > 0


def test_compact_network_takes_any_tile_of_a_multiple_of_8():
    network = unet.build_unet('compact', 4)
    for height, width in ((16, 16), (24, 40)):
        slabs = torch.zeros(1, 4, 2, height, width)
        assert predict(network, slabs, TIMESTEPS[:1]).shape == (1, 1, 2, height, width)
