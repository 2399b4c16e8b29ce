"""Forms of a model: the classical base, the conditioning channels, and the variable that is diffused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import classical

CLIP = 2.0  # what is brighter than twice the white matter is no tissue: the bound of a sampled image


@dataclass(frozen=True)
class Form:
    """Input and output of the network.

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

    def __post_init__(self) -> None:
        if self.kind not in N_CHANNELS:
            raise ValueError(f'form is {self.kind!r}, expected one of {sorted(N_CHANNELS)}')
        if self.base not in BASES:
            raise ValueError(f'base is {self.base!r}, expected one of {sorted(BASES)}')
        if self.kind == 'unconditional' and self.inside_mask_only:
            raise ValueError('an unconditional model knows no mask: inside_mask_only must be False')

    @property
    def n_channels(self) -> int:
        """Input channels of the network, the noisy image included."""
        return N_CHANNELS[self.kind]

    @property
    def asks_contrast(self) -> bool:
        """True if the contrast of the lesions is part of the condition."""
        return self.base == 'lesion' and self.kind in ('prior', 'residual')

    def to_diffusion(self, image: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Return the volume that is diffused: the scaled residual on the base, or the image itself."""
        return (image - base) / self.residual_scale if self.kind == 'residual' else image

    def from_diffusion(self, diffused: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Invert `to_diffusion`."""
        return base + self.residual_scale * diffused if self.kind == 'residual' else diffused


N_CHANNELS = {'unconditional': 1, 'plain': 3, 'prior': 4, 'residual': 4}
BASES = {
    'biharmonic': lambda image, lesion_mask, white_matter, contrast: classical.biharmonic(image, lesion_mask),
    'membrane': lambda image, lesion_mask, white_matter, contrast: classical.membrane(image, lesion_mask),
    'local_white_matter': lambda image, lesion_mask, white_matter, contrast: np.where(lesion_mask, white_matter, image),
    'lesion': lambda image, lesion_mask, white_matter, contrast: np.where(lesion_mask, white_matter + contrast, image),
}


def condition(
    image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, form: Form, contrast: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Build the classical base and the conditioning channels of a volume.

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
    white_matter = classical.local_white_matter(image, lesion_mask, wm_mask)
    base = BASES[form.base](image, lesion_mask, white_matter, contrast).astype(np.float32)
    detail = np.clip((base - white_matter) / form.detail_scale, -3, 3)
    return base, np.stack([*channels, detail])
