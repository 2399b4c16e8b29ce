"""A volume in which a network fills the lesions: conditions, tiles that cover the lesions, sampling, pasting.

Volumes are `(X, Y, Z)` arrays on a 1 mm RAS grid, normalised (white matter +0.5, background -1). The network and the
scheduler come in as arguments.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from . import baselines, diffusion, masks


@dataclass(frozen=True)
class Form:
    """What the network sees and what it predicts.

    `plain` is the thesis' form: noisy image, voided image, mask (Eq. 3.6). `residual` fills the lesion classically
    first and diffuses only what is missing to the truth: noisy residual, voided image, mask, detail.
    """

    kind: str = 'residual'  # or 'plain'
    residual_scale: float = 0.06  # standard deviation of the residual, in units of the normalised image
    detail_scale: float = 0.15  # the filled image minus local white matter is shown to the network in these units
    inside_mask_only: bool = True  # noise and loss inside the mask only; the thesis noises and scores whole slices

    def __post_init__(self):
        if self.kind not in ('residual', 'plain'):
            raise ValueError(f"form is {self.kind!r}, expected 'residual' or 'plain'")

    @property
    def n_channels(self):
        """Input channels of the network, the noisy image included."""
        return 4 if self.kind == 'residual' else 3

    def to_diffusion(self, image, base):
        """The volume that is diffused: the scaled residual on the base, or the image itself."""
        return (image - base) / self.residual_scale if self.kind == 'residual' else image

    def from_diffusion(self, diffused, base):
        """Inverse of `to_diffusion`."""
        return base + self.residual_scale * diffused if self.kind == 'residual' else diffused


def condition(image, lesion_mask, wm_mask, form):
    """What the network is told about a volume: the base that is filled in first, and the condition channels.

    Parameters
    ----------
    image : (X, Y, Z) float array, normalised; its values inside the mask are never read
    lesion_mask, wm_mask : (X, Y, Z) bool array
    form : Form

    Returns
    -------
    base : (X, Y, Z) float32 array
        Equal to the image outside the mask; biharmonic inside (`residual`) or zero (`plain`).
    channels : (channels, X, Y, Z) float32 array
        Voided image, mask; and for `residual` the detail: the base minus the local white matter, at full contrast,
        so that a clean rim can be told from one that the rater's mask missed.
    """
    image = np.where(lesion_mask, 0, image).astype(np.float32)
    channels = [np.clip(image, -1, 1.5), lesion_mask.astype(np.float32)]
    if form.kind == 'plain':
        return image, np.stack(channels)
    base = baselines.biharmonic(image, lesion_mask)
    white_matter = baselines.local_white_matter(image, lesion_mask, wm_mask)
    detail = np.clip((base - white_matter) / form.detail_scale, -3, 3)
    return base, np.stack([*channels, detail])


def to_slab(volume):
    """(..., X, Y, Z) to (..., slices, height, width): axial slices first."""
    return np.moveaxis(volume, -1, -3)


def from_slab(slab):
    """Inverse of `to_slab`."""
    return np.moveaxis(slab, -3, -1)


def sample_slab(unet, channels, noise, scheduler, form, num_inference_steps):
    """Sample what is diffused (see `Form.to_diffusion`) in a batch of slabs.

    Parameters
    ----------
    channels : (batch, channels, slices, height, width) tensor
    noise : (batch, 1, slices, height, width) tensor

    Returns
    -------
    (batch, 1, slices, height, width) tensor
    """
    mask = channels[:, 1:2]

    def predict(noisy_image, timestep):
        noisy_image = noisy_image * mask if form.inside_mask_only else noisy_image
        return unet(torch.cat([noisy_image, channels], dim=1), timestep.expand(len(channels)).to(channels.device))

    return diffusion.sample_ddim(predict, noise, scheduler, num_inference_steps)


def plan_tiles(lesion_mask, tile):
    """Corners of tiles that cover the lesions, each voxel of a lesion at least a fifth of a tile from the tile's edge.

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


def blending_window(tile):
    """Weight of a tile's voxels where tiles overlap: falls towards the edges; (X, Y, Z) float32 array."""
    ramps = [np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).clip(max=n // 5 + 1) for n in tile]
    window = np.einsum('x,y,z->xyz', *ramps).astype(np.float32)
    return window / window.max()


def sample_volume(unet, channels, region, corners, tile, scheduler, form, num_inference_steps, noise, batch_size=8):
    """Sample what is diffused (see `Form.to_diffusion`) in a region of a volume, tile by tile.

    All tiles take each step together and their predictions are blended before the next one, so that tiles leave no
    seams (as in MultiDiffusion, Bar-Tal et al. 2023).

    Parameters
    ----------
    unet : callable on `(batch, 1 + channels, slices, height, width)`
    channels : (channels, X, Y, Z) float array; the second one is the mask
    region : (X, Y, Z) bool array
        The voxels that are sampled; inside the tiles.
    corners : list of (3,) ints
    tile : (3,) ints
    noise : (n,) tensor, one value per voxel of the region; its device is where tiles are sampled
    batch_size : int
        Tiles at once.

    Returns
    -------
    (n,) tensor
    """
    device = noise.device
    channels = torch.from_numpy(to_slab(channels).copy()).to(device)
    voxels = torch.from_numpy(np.flatnonzero(to_slab(region))).to(device)
    # The region's values are in RAS order outside this function and in slab order inside it.
    order = torch.from_numpy(slab_order(region)).to(device)
    window = torch.from_numpy(to_slab(blending_window(tile)).copy()).to(device)
    boxes = [
        tuple(slice(int(corner[axis]), int(corner[axis]) + tile[axis]) for axis in (2, 0, 1)) for corner in corners
    ]
    weight = torch.zeros(channels.shape[1:], device=device)
    for box in boxes:
        weight[box] += window

    def predict(noisy_image, timestep):
        volume = torch.zeros(channels.shape[1:], device=device)
        volume.view(-1)[voxels] = noisy_image
        blended = torch.zeros_like(volume)
        for first in range(0, len(boxes), batch_size):
            batch = boxes[first : first + batch_size]
            slabs = torch.stack([torch.cat([volume[box][None], channels[(slice(None), *box)]]) for box in batch])
            predictions = unet(slabs, timestep.expand(len(batch)).to(device))[:, 0]
            for box, prediction in zip(batch, predictions):
                blended[box] += window * prediction
        return (blended / weight.clamp(min=1e-6)).view(-1)[voxels]

    sampled = torch.empty_like(noise)
    sampled[order] = diffusion.sample_ddim(predict, noise[order], scheduler, num_inference_steps)
    return sampled


def slab_order(region):
    """Where the voxels of a region, listed slice by slice, stand in its RAS (C order) list; int array."""
    numbers = np.zeros(region.shape, dtype=np.int64)
    numbers[region] = np.arange(region.sum())
    return to_slab(numbers)[to_slab(region)]


def fill_volume(image, lesion_mask, wm_mask, model, num_inference_steps, seeds, device='cpu', batch_size=8):
    """Fill the lesions of a volume, once per seed.

    Parameters
    ----------
    image : (X, Y, Z) float array, normalised, RAS, 1 mm; values inside the mask are never read
    lesion_mask, wm_mask : (X, Y, Z) bool array
    model : has `unet`, `scheduler`, `form` (Form) and `tile` (3 ints)
    num_inference_steps : int
    seeds : list of ints
        Each gives one filling.
    device : str
    batch_size : int
        Tiles at once.

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
    image = np.pad(image[inner], padding, constant_values=-1)
    lesion_mask, wm_mask = (np.pad(mask[inner], padding) for mask in (lesion_mask, wm_mask))

    base, channels = condition(image, lesion_mask, wm_mask, model.form)
    corners = plan_tiles(lesion_mask, tile)
    region = lesion_mask
    if not model.form.inside_mask_only:
        region = np.zeros_like(lesion_mask)
        for corner in corners:
            region[tuple(slice(c, c + n) for c, n in zip(corner, tile))] = True
    fillings = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(int(region.sum()), generator=generator).to(device)
        sampled = sample_volume(
            model.unet,
            channels,
            region,
            corners,
            tuple(model.tile),
            model.scheduler,
            model.form,
            num_inference_steps,
            noise,
            batch_size,
        )
        diffused = np.zeros(region.shape, dtype=np.float32)
        diffused[region] = sampled.cpu().numpy()
        fillings.append(model.form.from_diffusion(diffused, base)[lesion_mask])
    return np.stack(fillings)
