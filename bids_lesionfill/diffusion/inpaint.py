"""A volume in which a network fills the lesions: conditions, tiles that cover the lesions, sampling, pasting.

Volumes are `(X, Y, Z)` arrays on a 1 mm RAS grid, normalised (white matter +0.5, background -1). The network and the
scheduler come in as arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage

from . import classical, forms, process, tiles

if TYPE_CHECKING:
    from diffusers import DDIMScheduler
    from torch import nn

    from .models import Model

# Darker than white matter, in units of the normalised image (grey matter is about 0.45 darker). Chosen on eight cases
# of `evaluate --kinds confluent confluent-tight` (two people of the validation split).
TRUST_DARKER, NO_TRUST_DARKER = 0.1, 0.3


def sample_slab(
    unet: nn.Module, channels: torch.Tensor, noise: torch.Tensor, form: forms.Form, sampler: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """Sample what is diffused (see `Form.to_diffusion`) in a batch of slabs.

    Parameters
    ----------
    channels : (batch, channels, slices, height, width) tensor
    noise : (batch, 1, slices, height, width) tensor
    sampler : callable
        `(predict, noise) -> sample`, for example `functools.partial(diffusion.sample_ddim, scheduler=...,
        num_inference_steps=...)`.

    Returns
    -------
    (batch, 1, slices, height, width) tensor
    """

    def predict(noisy_image: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        noisy_image = noisy_image * channels[:, 1:2] if form.inside_mask_only else noisy_image
        return unet(torch.cat([noisy_image, channels], dim=1), timestep.expand(len(channels)).to(channels.device))

    return sampler(predict, noise)


def sampler_of(
    model: Any,
    scheduler: DDIMScheduler,
    num_inference_steps: int,
    image: torch.Tensor,
    inpaint_mask: torch.Tensor,
    generator: torch.Generator | None,
    start_step: int = 0,
) -> Callable[..., torch.Tensor]:
    """Return the sampler of a model, see `sample_slab`: DDIM for conditional ones, RePaint for unconditional ones.

    Parameters
    ----------
    model : has `form` and, if unconditional, `jump_length` and `jump_n_sample`
    image, inpaint_mask, generator, start_step : see `diffusion.sample_repaint`
    """
    options = {'scheduler': scheduler, 'num_inference_steps': num_inference_steps}
    options |= {'image': image, 'start_step': start_step}
    if model.form.kind != 'unconditional':
        return functools.partial(process.sample_ddim, **options)
    options |= {'jump_length': model.jump_length, 'jump_n_sample': model.jump_n_sample}
    return functools.partial(process.sample_repaint, inpaint_mask=inpaint_mask, generator=generator, **options)


def count_predictions(model: Model, n_steps: int) -> int:
    """Return the number of network evaluations of a sampling with so many steps; see `sampler_of`."""
    if model.form.kind != 'unconditional':
        return n_steps
    way = process.repaint_schedule(n_steps, model.jump_length, model.jump_n_sample)
    return sum(after < before for before, after in zip(way[:-1], way[1:]))


def trust_in_network(base: np.ndarray, white_matter: np.ndarray) -> np.ndarray:
    """Return how far the network is trusted where a mask may cover grey matter, by what interpolation says is there.

    It was trained on lesions inside white matter, and takes what is dark beside a lesion for its rim. Cortex and deep
    grey matter go on beneath a mask, and there the classical filling errs less.

    Parameters
    ----------
    base : (X, Y, Z) float array, normalised
        The classical filling.
    white_matter : (X, Y, Z) float array
        Level of the white matter around.

    Returns
    -------
    (X, Y, Z) float array, 1 where the filling is as bright as white matter, 0 where it is nearly as dark as grey matter
    """
    darker = white_matter - ndimage.gaussian_filter(base, 1)
    return np.clip((NO_TRUST_DARKER - darker) / (NO_TRUST_DARKER - TRUST_DARKER), 0, 1)


def fill_volume(
    image: np.ndarray,
    lesion_mask: np.ndarray,
    wm_mask: np.ndarray,
    model: Model,
    num_inference_steps: int,
    seeds: Sequence[int],
    device: str = 'cpu',
    batch_size: int = 8,
    start_step: int = 0,
    contrast: np.ndarray | None = None,
    progress: Callable | None = None,
    beside_grey: bool = False,
) -> np.ndarray:  # all that sampling needs, most of it optional
    """Fill the lesions of a volume, once per seed: conditional models by DDIM, unconditional ones by RePaint.

    Parameters
    ----------
    image : (X, Y, Z) float array, normalised, RAS, 1 mm
        Values inside the mask are never read, unless `start_step` is above zero.
    lesion_mask, wm_mask : (X, Y, Z) bool array
    model : has `unet`, `scheduler`, `form` (Form), `tile` (3 ints), `jump_length` and `jump_n_sample` (RePaint)
    num_inference_steps : int
    seeds : list of ints
        Each gives one filling.
    device : str
    batch_size : int
        Tiles at once.
    start_step : int
        SDEdit (Meng et al. 2022; thesis 3.2): start from the image inside the mask, a coarse painting, noised to
        the time t0 of so many steps before the last; 0 starts from noise.
    contrast : (X, Y, Z) float array, optional
        See `condition`.
    progress : callable, optional
        Is told `(n_done, n_all)` tiles, after every batch; a tile counts once for each step and seed.

    beside_grey : bool
        What is darker beside the mask is grey matter that goes on inside it, not lesion; see `trust_in_network`.

    Returns
    -------
    (len(seeds), n) float32 array: values of the n voxels of the mask, in C order
    """
    tile = np.array(model.tile)
    # Only the box around the lesions is worked on; outside the volume is background.
    low = np.argwhere(lesion_mask).min(axis=0) - tile
    high = np.argwhere(lesion_mask).max(axis=0) + 1 + tile
    inner = tuple(slice(max(a, 0), min(b, n)) for a, b, n in zip(low, high, image.shape))
    padding = [(max(-a, 0), max(b - n, 0)) for a, b, n in zip(low, high, image.shape)]
    image = np.pad(image[inner], padding, constant_values=-1).astype(np.float32)
    lesion_mask, wm_mask = (np.pad(mask[inner], padding) for mask in (lesion_mask, wm_mask))
    contrast = None if contrast is None else np.pad(contrast[inner], padding)

    base, channels = forms.condition(image, lesion_mask, wm_mask, model.form, contrast)
    trust = None
    if beside_grey and model.form.kind == 'residual':
        white_matter = classical.local_white_matter(image, lesion_mask, wm_mask)
        trust = trust_in_network(base, white_matter)[lesion_mask]
    corners = tiles.plan_tiles(lesion_mask, tile)
    region = lesion_mask
    if not model.form.inside_mask_only:
        region = np.zeros_like(lesion_mask)
        for corner in corners:
            region[tuple(slice(c, c + n) for c, n in zip(corner, tile))] = True
    n_done, n_all = 0, len(seeds) * len(corners) * count_predictions(model, start_step or num_inference_steps)

    def tick(n_tiles: int) -> None:
        nonlocal n_done
        n_done += n_tiles
        if progress:
            progress(n_done, n_all)

    fillings = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(int(region.sum()), generator=generator).to(device)
        start = torch.from_numpy(model.form.to_diffusion(image, base)[region]).to(device)
        inpaint_mask = torch.from_numpy(lesion_mask[region]).to(device)
        sampler = sampler_of(model, model.scheduler, num_inference_steps, start, inpaint_mask, generator, start_step)
        volume = (model.unet, channels, region, corners, tuple(model.tile))
        sampled = tiles.sample_volume(*volume, noise, sampler, batch_size, tick)
        diffused = np.zeros(region.shape, dtype=np.float32)
        diffused[region] = sampled.cpu().numpy()
        filled = model.form.from_diffusion(diffused, base)[lesion_mask]
        if trust is not None:
            filled = base[lesion_mask] + trust * (filled - base[lesion_mask])
        fillings.append(filled)
    return np.stack(fillings)
