"""A volume in which a network fills the lesions: conditions, tiles that cover the lesions, sampling, pasting.

Volumes are `(X, Y, Z)` arrays on a 1 mm RAS grid, normalised (white matter +0.5, background -1). The network and the
scheduler come in as arguments.
"""

import functools
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from . import baselines, diffusion, masks

STEPS_FOR_SEVERAL_SAMPLES = 10  # one step gives the mean of all fillings, whatever the seed
CLIP = 2.0  # what is brighter than twice the white matter is no tissue: the bound of a sampled image


@dataclass(frozen=True)
class Form:
    """What the network sees and what it predicts.

    `unconditional`: the noisy image alone; the known tissue enters while sampling (RePaint, thesis 3.2).
    `plain`: the thesis' conditional form: noisy image, voided image, mask (Eq. 3.6).
    `prior`: the same and a classical filling as a further channel.
    `residual`: the lesion is filled classically first and only what is missing to the truth is diffused: noisy
    residual, voided image, mask, classical filling.

    The base `lesion` is for synthesis: every lesion at one contrast to the white matter around it, which is asked for.
    """

    kind: str = 'residual'
    base: str = 'biharmonic'  # the classical filling of `prior` and `residual`
    residual_scale: float = 0.06  # standard deviation of the residual, in units of the normalised image
    detail_scale: float = 0.15  # the filled image minus local white matter is shown to the network in these units
    inside_mask_only: bool = True  # noise and loss inside the mask only; the thesis noises and scores whole slices

    def __post_init__(self):
        if self.kind not in N_CHANNELS:
            raise ValueError(f'form is {self.kind!r}, expected one of {sorted(N_CHANNELS)}')
        if self.base not in BASES:
            raise ValueError(f'base is {self.base!r}, expected one of {sorted(BASES)}')
        if self.kind == 'unconditional' and self.inside_mask_only:
            raise ValueError('an unconditional model knows no mask: inside_mask_only must be False')

    @property
    def n_channels(self):
        """Input channels of the network, the noisy image included."""
        return N_CHANNELS[self.kind]

    @property
    def asks_contrast(self):
        """Whether the contrast of the lesions is part of the condition."""
        return self.base == 'lesion' and self.kind in ('prior', 'residual')

    def to_diffusion(self, image, base):
        """The volume that is diffused: the scaled residual on the base, or the image itself."""
        return (image - base) / self.residual_scale if self.kind == 'residual' else image

    def from_diffusion(self, diffused, base):
        """Inverse of `to_diffusion`."""
        return base + self.residual_scale * diffused if self.kind == 'residual' else diffused


N_CHANNELS = {'unconditional': 1, 'plain': 3, 'prior': 4, 'residual': 4}
BASES = {
    'biharmonic': lambda image, lesion_mask, white_matter, contrast: baselines.biharmonic(image, lesion_mask),
    'membrane': lambda image, lesion_mask, white_matter, contrast: baselines.membrane(image, lesion_mask),
    'local_white_matter': lambda image, lesion_mask, white_matter, contrast: np.where(lesion_mask, white_matter, image),
    'lesion': lambda image, lesion_mask, white_matter, contrast: np.where(lesion_mask, white_matter + contrast, image),
}


def condition(image, lesion_mask, wm_mask, form, contrast=None):
    """What the network is told about a volume: the base that is filled in first, and the condition channels.

    Parameters
    ----------
    image : (X, Y, Z) float array, normalised; its values inside the mask are never read
    lesion_mask, wm_mask : (X, Y, Z) bool array
    form : Form
    contrast : (X, Y, Z) float array, optional
        Of the base `lesion`: how much brighter than the white matter around each lesion is to be; see `contrast_of`.

    Returns
    -------
    base : (X, Y, Z) float32 array
        Equal to the image outside the mask; filled classically inside, or zero (`plain`, `unconditional`).
    channels : (channels, X, Y, Z) float32 array
        No channel for `unconditional`. Else voided image, mask; and for `prior` and `residual` the detail: a classical
        filling minus the local white matter, at full contrast, so that a clean rim can be told from one that the
        rater's mask missed.

    Raises
    ------
    ValueError
        If the form asks for a contrast and there is none.
    """
    if form.asks_contrast and contrast is None:
        raise ValueError("a form with base 'lesion' needs the contrast that lesions are to have")
    image = np.where(lesion_mask, 0, image).astype(np.float32)
    if form.kind == 'unconditional':
        return image, np.empty((0, *image.shape), dtype=np.float32)
    channels = [np.clip(image, -1, 1.5), lesion_mask.astype(np.float32)]
    if form.kind == 'plain':
        return image, np.stack(channels)
    white_matter = baselines.local_white_matter(image, lesion_mask, wm_mask)
    base = BASES[form.base](image, lesion_mask, white_matter, contrast).astype(np.float32)
    detail = np.clip((base - white_matter) / form.detail_scale, -3, 3)
    return base, np.stack([*channels, detail])


def contrast_of(image, lesion_mask, wm_mask):
    """How much brighter than the white matter around it each connected lesion is, on the mean of its voxels.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
        White matter outside any lesion.

    Returns
    -------
    contrast : (X, Y, Z) float32 array
        Of the voxel's lesion; 0 outside; below zero if the lesion is darker.
    volumes, contrasts : (n,) arrays
        Voxels and contrast of every lesion, by its number in `masks.label_lesions`.
    """
    labels, n_lesions = masks.label_lesions(lesion_mask)
    brighter = image - baselines.local_white_matter(image, lesion_mask, wm_mask)
    volumes = np.bincount(labels.flat, minlength=n_lesions + 1)
    sums = np.bincount(labels.flat, np.where(lesion_mask, brighter, 0).flat, minlength=n_lesions + 1)
    contrasts = (sums / np.maximum(volumes, 1)).astype(np.float32)
    contrasts[0] = 0
    return contrasts[labels], volumes[1:], contrasts[1:]


def grow_to_rim(image, lesion_mask, wm_mask, rim_voxels=2, bright_lesions=False, deviations=2.5):
    """Grow a lesion mask into the rim of its lesions that it missed; see `masks.grow_while_dark`.

    What counts as rim is `deviations` (robust standard deviations of the white matter) darker than the white matter
    around, which is averaged at least four voxels from the mask.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask, wm_mask : (X, Y, Z) bool array
    rim_voxels : int
        Growth ends here; 0 grows nothing.
    bright_lesions : bool
        True for FLAIR, where lesions are brighter than white matter.
    deviations : float
    """
    far = wm_mask & ~ndimage.binary_dilation(lesion_mask, iterations=4)
    if not rim_voxels or not lesion_mask.any() or not far.any():
        return lesion_mask.copy()
    darker = baselines.local_white_matter(image, lesion_mask, wm_mask, gap_voxels=4) - image
    darker = -darker if bright_lesions else darker
    deviation = 1.4826 * np.median(np.abs(darker[far] - np.median(darker[far])))
    return masks.grow_while_dark(lesion_mask, wm_mask, darker, deviations * deviation, rim_voxels)


def to_slab(volume):
    """(..., X, Y, Z) to (..., slices, height, width): axial slices first."""
    return np.moveaxis(volume, -1, -3)


def from_slab(slab):
    """Inverse of `to_slab`."""
    return np.moveaxis(slab, -3, -1)


def sample_slab(unet, channels, noise, form, sampler):
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

    def predict(noisy_image, timestep):
        noisy_image = noisy_image * channels[:, 1:2] if form.inside_mask_only else noisy_image
        return unet(torch.cat([noisy_image, channels], dim=1), timestep.expand(len(channels)).to(channels.device))

    return sampler(predict, noise)


def sampler_of(model, scheduler, num_inference_steps, image, inpaint_mask, generator, start_step=0):
    """How a model is sampled, see `sample_slab`: conditional ones by DDIM, unconditional ones by RePaint.

    Parameters
    ----------
    model : has `form` and, if unconditional, `jump_length` and `jump_n_sample`
    image, inpaint_mask, generator, start_step : see `diffusion.sample_repaint`
    """
    options = {'scheduler': scheduler, 'num_inference_steps': num_inference_steps}
    options |= {'image': image, 'start_step': start_step}
    if model.form.kind != 'unconditional':
        return functools.partial(diffusion.sample_ddim, **options)
    options |= {'jump_length': model.jump_length, 'jump_n_sample': model.jump_n_sample}
    return functools.partial(diffusion.sample_repaint, inpaint_mask=inpaint_mask, generator=generator, **options)


def choose_steps(asked, of_plan, n_samples=1):
    """How many steps a sampling takes: those asked for, or else the plan's; more for several samples, which differ."""
    if asked is not None:
        return asked
    return max(of_plan, STEPS_FOR_SEVERAL_SAMPLES) if n_samples > 1 else of_plan


def count_predictions(model, n_steps):
    """How often a sampling of so many steps asks the network; see `sampler_of`."""
    if model.form.kind != 'unconditional':
        return n_steps
    way = diffusion.repaint_schedule(n_steps, model.jump_length, model.jump_n_sample)
    return sum(after < before for before, after in zip(way[:-1], way[1:]))


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


def autocast(device):
    """The precision in which a network runs on a device: half on a GPU, where it is faster; single on the CPU."""
    return torch.autocast(device.type, dtype=torch.float16, enabled=device.type == 'cuda')


def predict_tiles(unet, tiles, timestep, batch_size, tick=None):
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


def sample_volume(unet, channels, region, corners, tile, noise, sampler, batch_size=8, tick=None):
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

    def predict(noisy_image, timestep):
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


def fill_volume(
    image,
    lesion_mask,
    wm_mask,
    model,
    num_inference_steps,
    seeds,
    device='cpu',
    batch_size=8,
    start_step=0,
    contrast=None,
    progress=None,
):
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

    base, channels = condition(image, lesion_mask, wm_mask, model.form, contrast)
    corners = plan_tiles(lesion_mask, tile)
    region = lesion_mask
    if not model.form.inside_mask_only:
        region = np.zeros_like(lesion_mask)
        for corner in corners:
            region[tuple(slice(c, c + n) for c, n in zip(corner, tile))] = True
    n_done, n_all = 0, len(seeds) * len(corners) * count_predictions(model, start_step or num_inference_steps)

    def tick(n_tiles):
        nonlocal n_done
        n_done += n_tiles
        progress(n_done, n_all)

    fillings = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(int(region.sum()), generator=generator).to(device)
        start = torch.from_numpy(model.form.to_diffusion(image, base)[region]).to(device)
        inpaint_mask = torch.from_numpy(lesion_mask[region]).to(device)
        sampler = sampler_of(model, model.scheduler, num_inference_steps, start, inpaint_mask, generator, start_step)
        sampled = sample_volume(
            *(model.unet, channels, region, corners, tuple(model.tile), noise, sampler, batch_size),
            tick=tick if progress else None,
        )
        diffused = np.zeros(region.shape, dtype=np.float32)
        diffused[region] = sampled.cpu().numpy()
        fillings.append(model.form.from_diffusion(diffused, base)[lesion_mask])
    return np.stack(fillings)
