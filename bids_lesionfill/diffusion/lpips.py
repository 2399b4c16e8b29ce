"""LPIPS v0.1 with AlexNet (Zhang et al. 2018, "The unreasonable effectiveness of deep features").

Its weights are not part of this package: the user gives torchvision's AlexNet and the lpips package's linear heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from pathlib import Path

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation for images in [-1, 1]
HEAD_CHANNELS = (64, 192, 384, 256, 256)
SMALLEST = 64  # pixels
WEIGHT_NAMES = [f'features.{layer}.{kind}' for layer in (0, 3, 6, 8, 10) for kind in ('weight', 'bias')]
WEIGHT_NAMES += [f'lin{i}.model.1.weight' for i in range(len(HEAD_CHANNELS))]


def _prepare(images: torch.Tensor) -> torch.Tensor:
    """Return three channels, at least 64 x 64 pixels (edges replicated to the right and below).

    Scaled as for AlexNet.
    """
    images = images.expand(-1, 3, -1, -1)
    height, width = images.shape[-2:]
    images = F.pad(images, (0, max(SMALLEST - width, 0), 0, max(SMALLEST - height, 0)), mode='replicate')
    shift, scale = (images.new_tensor(values).view(1, 3, 1, 1) for values in (SHIFT, SCALE))
    return (images - shift) / scale


def _normalise_channels(features: torch.Tensor) -> torch.Tensor:
    """Scale every pixel's feature vector to length 1."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


class Lpips(nn.Module):
    """Perceptual distance of two images: 0 for equal images, larger the more different they look.

    Parameters
    ----------
    weights : dict of str to tensor
        Holds all `WEIGHT_NAMES`: torchvision's `features.*` of AlexNet and the lpips package's `lin*`; more is ignored.
    """

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.features = nn.Sequential(  # as numbered in torchvision
            *(nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2), nn.ReLU()),
            *(nn.MaxPool2d(3, stride=2), nn.Conv2d(64, 192, kernel_size=5, padding=2), nn.ReLU()),
            *(nn.MaxPool2d(3, stride=2), nn.Conv2d(192, 384, kernel_size=3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, kernel_size=3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, kernel_size=3, padding=1), nn.ReLU()),
        )
        for i, channels in enumerate(HEAD_CHANNELS):  # the lpips package has a dropout in front, idle in evaluation
            head = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, kernel_size=1, bias=False))
            self.add_module(f'lin{i}', nn.ModuleDict({'model': head}))
        self.load_state_dict({name: weights[name] for name in WEIGHT_NAMES})
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Compute the distance of each image from its other; no gradients.

        Parameters
        ----------
        images, others : (batch, 1 or 3, height, width) tensor in [-1, 1]
            One channel is repeated to three. Images smaller than 64 pixels are padded by replicating their edges.

        Returns
        -------
        (batch,) tensor
        """
        images, others = _prepare(images), _prepare(others)
        heads = iter([self.get_submodule(f'lin{i}.model') for i in range(len(HEAD_CHANNELS))])
        distances: Any = 0
        for layer in self.features:
            images, others = layer(images), layer(others)
            if isinstance(layer, nn.ReLU):
                difference = (_normalise_channels(images) - _normalise_channels(others)).square()
                distances = distances + next(heads)(difference).mean(dim=(1, 2, 3))
        return distances


def load_lpips(weight_files: Sequence[Path]) -> Lpips:
    """Load LPIPS from one or more files that together hold its weights.

    Parameters
    ----------
    weight_files : sequence of path
        `.safetensors` or PyTorch's `.pth`, e.g. torchvision's `alexnet-owt-7be5be79.pth` and lpips' `v0.1/alex.pth`.

    Returns
    -------
    Lpips, on the CPU

    Raises
    ------
    ValueError
        If the files lack weights.
    """
    weights = {}
    for file in map(str, weight_files):
        is_safe = file.endswith('.safetensors')
        weights |= load_file(file) if is_safe else torch.load(file, map_location='cpu', weights_only=True)
    missing = [name for name in WEIGHT_NAMES if name not in weights]
    if missing:
        raise ValueError(f'LPIPS lacks the weights {", ".join(missing)} in {", ".join(map(str, weight_files))}')
    return Lpips(weights)
