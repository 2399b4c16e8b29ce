"""The U-Net of the thesis (3.2, *U-Net Architectures*) on diffusers' `UNet2DModel`: 2D and pseudo-3D, on slabs.

A slab is `(batch, channels, slices, height, width)`: neighbouring axial slices of one brain. The 2D network takes
every slice by itself. The pseudo-3D network has a 1D convolution along the slices after the convolutions of every
residual block (Fig. 3.6, 3.7); it starts as the identity, so at the start both networks are equal.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    import torch

SIZES = {
    # Thesis 3.2: six resolutions, two residual blocks each, self-attention at 16x16 (the fifth level of 256x256).
    'thesis': {
        'block_out_channels': (128, 128, 256, 256, 512, 512),
        'down_block_types': ('DownBlock2D',) * 4 + ('AttnDownBlock2D', 'DownBlock2D'),
        'up_block_types': ('UpBlock2D', 'AttnUpBlock2D') + ('UpBlock2D',) * 4,
        'layers_per_block': 2,
    },
    # Small enough for two CPU cores. No attention, so that any tile size can be sampled.
    'compact': {
        'block_out_channels': (32, 48, 64, 96),
        'down_block_types': ('DownBlock2D',) * 4,
        'up_block_types': ('UpBlock2D',) * 4,
        'layers_per_block': 1,
        'norm_num_groups': 8,
        'add_attention': False,
    },
}
SIZES['small'] = SIZES['compact'] | {'block_out_channels': (16, 32, 48, 64)}  # for comparisons in CPU minutes


class SliceConvolution(nn.Module):
    """A 2D convolution, then a 1D convolution along the slices that starts as the identity (thesis Fig. 3.6)."""

    def __init__(self, spatial: nn.Conv2d) -> None:
        super().__init__()
        self.spatial = spatial
        self.along_slices = nn.Conv1d(spatial.out_channels, spatial.out_channels, kernel_size=3, padding=1)
        nn.init.dirac_(self.along_slices.weight)
        nn.init.zeros_(self.along_slices.bias)  # type: ignore[arg-type]
        self.n_slices = 1

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve (batch * slices, channels, height, width) features within and along the slices."""
        features = self.spatial(features)  # (batch * slices, channels, height, width)
        n, channels, height, width = features.shape
        slabs = features.reshape(n // self.n_slices, self.n_slices, channels, height * width).transpose(1, 2)
        # A 1D convolution along axis 2, written as a 2D one: one copy of the features instead of two.
        slabs = functional.conv2d(slabs, self.along_slices.weight[..., None], self.along_slices.bias, padding=(1, 0))
        return slabs.transpose(1, 2).reshape(n, channels, height, width)


class SlabUNet2D(UNet2DModel):
    """diffusers' `UNet2DModel` on slabs, slice by slice."""

    # diffusers saves the arguments of __init__ as the config; a subclass must show the same signature to reload.
    @functools.wraps(UNet2DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def forward(self, slabs: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Predict for a slab.

        Parameters
        ----------
        slabs : (batch, channels, slices, height, width) tensor
        timesteps : (batch,) tensor
            One per slab.

        Returns
        -------
        (batch, out_channels, slices, height, width) tensor
        """
        batch, channels, n_slices, height, width = slabs.shape
        for module in self.modules():
            if isinstance(module, SliceConvolution):
                module.n_slices = n_slices
        slices = slabs.transpose(1, 2).reshape(batch * n_slices, channels, height, width)
        prediction = super().forward(slices, timesteps.repeat_interleave(n_slices)).sample
        return prediction.reshape(batch, n_slices, -1, height, width).transpose(1, 2)


class SlabUNetPseudo3D(SlabUNet2D):
    """The pseudo-3D U-Net; slabs of one batch never mix, since the 1D convolutions run within a slab."""

    @functools.wraps(UNet2DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                module.conv1 = SliceConvolution(module.conv1)
                module.conv2 = SliceConvolution(module.conv2)


def build_unet(size: str, in_channels: int, pseudo_3d: bool = True, **options: Any) -> SlabUNet2D:
    """Build a new network: `size` is a name in `SIZES`, `options` override single arguments of `UNet2DModel`.

    Raises
    ------
    ValueError
        If the size is not known.
    """
    if size not in SIZES:
        raise ValueError(f'size is {size!r}, expected one of {sorted(SIZES)}')
    network = SlabUNetPseudo3D if pseudo_3d else SlabUNet2D
    return network(in_channels=in_channels, out_channels=1, **(SIZES[size] | options))


def count_parameters(unet: nn.Module) -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in unet.parameters())
