"""LPIPS with random weights: the real ones are the user's, and only their names and shapes are known here."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from bids_lesionfill.diffusion import lpips

SHAPES = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}


def random_weights():
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for i, (layer, shape) in enumerate(SHAPES.items()):
        fan_in = shape[1] * shape[2] * shape[3]
        weights[f'features.{layer}.weight'] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        weights[f'features.{layer}.bias'] = torch.randn(shape[0], generator=generator) * 0.1
        weights[f'lin{i}.model.1.weight'] = torch.rand((1, shape[0], 1, 1), generator=generator)
    return weights


@pytest.fixture(scope='module')
def weights():
    return random_weights()


@pytest.fixture(scope='module')
def distance(weights):
    return lpips.Lpips(weights)


def pair(*shape):
    return torch.rand((2, *shape), generator=torch.Generator().manual_seed(1)) * 2 - 1


def explicit(weights, image, other):
    """The distance of two (3, H, W) images, layer by layer."""

    def activations(image):
        x = (image - torch.tensor([-0.030, -0.088, -0.188])[:, None, None])[None]
        x = x / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        found = []
        for layer, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if layer in (3, 6):
                x = F.max_pool2d(x, kernel_size=3, stride=2)
            x = F.conv2d(x, weights[f'features.{layer}.weight'], weights[f'features.{layer}.bias'], stride, padding)
            x = x.clamp(min=0)
            found.append(x[0] / (x[0].norm(dim=0) + 1e-10))
        return found

    total = 0.0
    for i, (a, b) in enumerate(zip(activations(image), activations(other))):
        head = weights[f'lin{i}.model.1.weight'].flatten()
        total += torch.einsum('c,chw->hw', head, (a - b) ** 2).mean().item()
    return total


def test_distance_is_the_formula(distance, weights):
    images, others = pair(2, 3, 70, 91)
    expected = [explicit(weights, image, other) for image, other in zip(images, others)]
    found = distance(images, others)
    assert found.shape == (2,)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)


def test_equal_images_have_no_distance_and_order_does_not_matter(distance):
    images, others = pair(1, 3, 64, 64)
    assert distance(images, images.clone()).item() == 0
    assert distance(images, others).item() == pytest.approx(distance(others, images).item(), rel=1e-5)
    assert distance(images, others).item() > 0.01


def test_distance_grows_with_noise(distance):
    image, noise = pair(1, 1, 64, 64)
    little, more = (distance(image, image + sigma * noise).item() for sigma in (0.02, 0.2))
    assert 0 < little < more


def test_one_channel_is_three_equal_channels(distance):
    images, others = pair(2, 1, 64, 80)
    three = distance(images.repeat(1, 3, 1, 1), others.repeat(1, 3, 1, 1))
    assert torch.equal(distance(images, others), three)


def test_small_images_are_padded_with_their_edges(distance):
    images, others = pair(1, 1, 20, 70)

    def padded(image):
        return torch.cat([image, image[:, :, -1:].repeat(1, 1, 44, 1)], dim=2)

    assert padded(images).shape == (1, 1, 64, 70)
    assert torch.equal(distance(images, others), distance(padded(images), padded(others)))


def test_no_gradients(distance):
    images, others = pair(1, 1, 64, 64)
    assert not distance(images.requires_grad_(), others).requires_grad
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_weights_come_from_several_files(distance, weights, tmp_path):
    alexnet = {name: tensor for name, tensor in weights.items() if name.startswith('features')}
    heads = {name: tensor for name, tensor in weights.items() if name.startswith('lin')}
    torch.save(alexnet | {'classifier.1.bias': torch.zeros(3)}, tmp_path / 'alexnet.pth')
    save_file(heads, tmp_path / 'heads.safetensors')
    loaded = lpips.load_lpips([tmp_path / 'alexnet.pth', tmp_path / 'heads.safetensors'])
    images, others = pair(1, 1, 64, 64)
    assert torch.equal(loaded(images, others), distance(images, others))


def test_missing_weights_are_named(weights, tmp_path):
    lacking = {'features.8.bias', 'lin3.model.1.weight'}
    save_file({name: tensor for name, tensor in weights.items() if name not in lacking}, tmp_path / 'some.safetensors')
    with pytest.raises(ValueError, match=r'features\.8\.bias, lin3\.model\.1\.weight in .*some\.safetensors') as error:
        lpips.load_lpips([tmp_path / 'some.safetensors'])
    assert 'lin2' not in str(error.value)


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(RuntimeError, match=r'size mismatch for features\.0\.weight'):
        lpips.Lpips(weights | {'features.0.weight': torch.zeros(64, 3, 3, 3)})
