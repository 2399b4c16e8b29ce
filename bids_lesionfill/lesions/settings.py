"""Settings that filling and synthesis share, in groups that are handed on as a whole."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from ..diffusion import filler, models
from ..images import placement
from .noise import SubjectNoise
from .texture import Noise

TEXTURE_STREAM = 1  # of random numbers, apart from those of the model


@dataclass(frozen=True)
class Growth:
    """Growth of the given mask.

    `dilate=0` means the given mask and nothing else: rims are neither unmixed nor grown into.
    """

    dilate: int = 1  # voxels into white matter
    rim_voxels: int = 2  # further voxels, into white matter as dark (FLAIR: bright) as a rim
    rims: str = 'unmixed'  # or 'grown'

    def __post_init__(self) -> None:
        if self.dilate == 0:
            object.__setattr__(self, 'rims', 'grown')
            object.__setattr__(self, 'rim_voxels', 0)


@dataclass(frozen=True)
class Sampling:
    """Sampling of the network."""

    num_inference_steps: int | None = None  # DDIM steps; those of the model if None
    n_samples: int = 1
    seed: int = 0
    device: str = 'auto'
    batch_size: int = 8  # tiles at once
    progress: Callable | None = None  # see `inpaint.fill_volume`
    texture: str = 'sampled'  # with the noise of white matter; 'mean': the smooth estimate
    noise: SubjectNoise | None = None  # of which the texture is made; None: of the seed, for this image alone

    def of_filler(self) -> filler.Sampling:
        """Return what a filler is told: a seed for each sample, and the device that there is."""
        seeds = tuple((self.seed + 7919 * number) % 2**63 for number in range(self.n_samples))
        device = models.choose_device(self.device)
        return filler.Sampling(seeds, self.num_inference_steps, device, self.batch_size, self.progress)

    def noise_on(self, affine: np.ndarray, stream: int) -> Noise:
        """Return the white noise of a grid (voxel to world), or a generator if it belongs to no place."""
        if self.noise is None:
            return np.random.default_rng([self.seed, stream])
        of_subject = self.noise
        return lambda shape, start: of_subject.on_grid(shape, affine @ nib.affines.from_matvec(np.eye(3), start))


@dataclass(frozen=True)
class MaskChoice:
    """Selection of voxels and lesions of a mask file."""

    threshold: float = 0.5  # of probabilities
    labels: tuple = ()  # values that are lesions to be filled; all if empty
    min_volume_mm3: float = 0  # smaller lesions stay


@dataclass(frozen=True)
class Lesions:
    """Masks of the lesions of an image, in its world space; nibabel images."""

    mask_img: Any  # what is to be filled; of a synthesis: the lesions that the patient has
    kept_mask_img: Any = None  # lesions that stay, and are not taken for white matter
    threshold: float = 0.5  # of probabilities
    flair_img: Any = None  # in the world space of a T1w: it tells fluid from lesions as dark as fluid

    def on_grid(self, image_img: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the lesions to be filled and those that stay, on the grid of an image: (X, Y, Z) bool arrays."""
        given_mask = placement.mask_on_grid(self.mask_img, image_img, self.threshold)
        if self.kept_mask_img is None:
            return given_mask, np.zeros_like(given_mask)
        return given_mask, placement.mask_on_grid(self.kept_mask_img, image_img) & ~given_mask


DEFAULT_GROWTH, DEFAULT_SAMPLING, DEFAULT_CHOICE = Growth(), Sampling(), MaskChoice()
