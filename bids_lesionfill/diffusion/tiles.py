"""Tiles: plan them over the lesions, sample them together, blend their predictions at every step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage

from ..images import masks

if TYPE_CHECKING:
    from torch import nn


def to_slab(volume: Any) -> Any:
    """Move axial slices first: (..., X, Y, Z) to (..., slices, height, width)."""
    return np.moveaxis(volume, -1, -3)


def from_slab(slab: Any) -> Any:
    """Invert `to_slab`."""
    return np.moveaxis(slab, -3, -1)


def plan_tiles(lesion_mask: np.ndarray, tile: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Return corners of tiles that cover the lesions.

    Each lesion voxel at least a fifth of a tile from the tile's edge.

    A lesion that fits into a tile gets one, centred on it; a larger one gets overlapping tiles. The volume must have
    a margin of one tile around its lesions.

    Parameters
    ----------
    lesion_mask : (X, Y, Z) bool array
    tile : (3,) ints, voxels

    Returns
    -------
    list of (3,) int arrays
    """
    tile = np.asarray(tile)
    core = tile - 2 * (tile // 5)
    labels, _ = masks.label_lesions(lesion_mask)
    sizes = np.bincount(labels.flat)
    uncovered = lesion_mask.copy()
    corners = []
    boxes = ndimage.find_objects(labels)
    for number in sorted(range(1, len(boxes) + 1), key=lambda n: (-sizes[n], n)):
        box = boxes[number - 1]
        low, high = np.array([s.start for s in box]), np.array([s.stop for s in box])
        n_tiles = np.ceil((high - low) / core).astype(int)
        start = low - (n_tiles * core - (high - low)) // 2
        for step in np.ndindex(*n_tiles):
            cell = start + np.array(step) * core
            inside = tuple(slice(max(c, 0), c + n) for c, n in zip(cell, core))
            if (uncovered[inside] & (labels[inside] == number)).any():
                corners.append(cell - tile // 5)
                uncovered[inside] = False
    return corners


def blending_window(tile: Sequence[int]) -> np.ndarray:
    """Return the weight of a tile's voxels where tiles overlap: falls towards the edges; (X, Y, Z) float32 array."""
    ramps = [np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).clip(max=n // 5 + 1) for n in tile]
    window = np.einsum('x,y,z->xyz', *ramps).astype(np.float32)
    return window / window.max()


def autocast(device: torch.device) -> AbstractContextManager:
    """Return the precision context of a device: half on a GPU, where it is faster; single on the CPU."""
    return torch.autocast(device.type, dtype=torch.float16, enabled=device.type == 'cuda')


def predict_tiles(
    unet: nn.Module,
    tiles: Sequence[Any],
    timestep: torch.Tensor,
    batch_size: int,
    tick: Callable[[int], Any] | None = None,
) -> tuple[torch.Tensor, int]:
    """Run a network on tiles, so many at once; on fewer, with a warning, if the memory of the GPU does not hold them.

    Parameters
    ----------
    unet : callable on `(batch, channels, slices, height, width)`
    tiles : list of callables
        Each returns a `(channels, slices, height, width)` tensor.
    timestep : tensor, 0D
    batch_size : int
    tick : callable, optional
        Is told how many tiles were done, after every batch.

    Returns
    -------
    predictions : (len(tiles), slices, height, width) tensor
    batch_size : int
        The one that the memory held.

    Raises
    ------
    torch.OutOfMemoryError
        If it does not hold a single tile.
    """
    predictions = []
    while len(predictions) < len(tiles):
        batch = tiles[len(predictions) : len(predictions) + batch_size]
        try:
            slabs = torch.stack([tile() for tile in batch])
            with autocast(slabs.device):
                output = unet(slabs, timestep.expand(len(batch)).to(slabs.device))
            predictions.extend(output[:, 0].float())
            if tick is not None:
                tick(len(batch))
            continue
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # Here, because the exception keeps what did not fit alive until its block is left.
        slabs = output = None
        torch.cuda.empty_cache()
        batch_size = len(batch) // 2
        warnings.warn(f'no memory for {len(batch)} tiles at once, going on with {batch_size}', stacklevel=2)
    return torch.stack(predictions), batch_size


def sample_volume(
    unet: nn.Module,
    channels: np.ndarray,
    region: np.ndarray,
    corners: Sequence[np.ndarray],
    tile: Sequence[int],
    noise: torch.Tensor,
    sampler: Callable[..., torch.Tensor],
    batch_size: int = 8,
    tick: Callable[[int], Any] | None = None,
) -> torch.Tensor:
    """Sample what is diffused (see `Form.to_diffusion`) in a region of a volume, tile by tile.

    All tiles take each step together and their predictions are blended before the next one, so that tiles leave no
    seams (as in MultiDiffusion, Bar-Tal et al. 2023).

    Parameters
    ----------
    unet : callable on `(batch, 1 + channels, slices, height, width)`
    channels : (channels, X, Y, Z) float array
    region : (X, Y, Z) bool array
        The voxels that are sampled; inside the tiles.
    corners : list of (3,) ints
    tile : (3,) ints
    noise : (n,) tensor, one value per voxel of the region, in C order; its device is where tiles are sampled
    sampler : callable
        `(predict, noise) -> sample`, see `sample_slab`.
    batch_size : int
        Tiles at once; fewer if the memory of the GPU does not hold them, see `predict_tiles`.
    tick : callable, optional
        See `predict_tiles`.

    Returns
    -------
    (n,) tensor
    """
    device = noise.device
    channels = torch.from_numpy(to_slab(channels).copy()).to(device)
    slab_shape = channels.shape[1:]
    voxels = np.ravel_multi_index(tuple(np.argwhere(region)[:, (2, 0, 1)].T), slab_shape)
    voxels = torch.from_numpy(voxels).to(device)
    window = torch.from_numpy(to_slab(blending_window(tile)).copy()).to(device)
    boxes = [
        tuple(slice(int(corner[axis]), int(corner[axis]) + tile[axis]) for axis in (2, 0, 1)) for corner in corners
    ]
    weight = torch.zeros(slab_shape, device=device)
    for box in boxes:
        weight[box] += window

    def predict(noisy_image: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        nonlocal batch_size
        volume = torch.zeros(slab_shape, device=device)
        volume.view(-1)[voxels] = noisy_image
        blended = torch.zeros_like(volume)
        tiles = [lambda box=box: torch.cat([volume[box][None], channels[(slice(None), *box)]]) for box in boxes]
        predictions, batch_size = predict_tiles(unet, tiles, timestep, batch_size, tick)
        for box, prediction in zip(boxes, predictions):
            blended[box] += window * prediction
        return (blended / weight.clamp(min=1e-6)).view(-1)[voxels]

    return sampler(predict, noise)
