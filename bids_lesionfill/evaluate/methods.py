"""Fillers that an evaluation compares: classical ones, models, the truth, none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..diffusion import models, registry
from ..diffusion.filler import Filler, Sampling
from ..modality import get


def skimage_biharmonic(
    image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, rng: np.random.Generator | None
) -> np.ndarray:
    """Fill each region with `skimage.restoration.inpaint_biharmonic`."""
    from skimage.restoration import inpaint_biharmonic

    filled = image.copy()
    whole = inpaint_biharmonic(image.astype(np.float64), lesion_mask, split_into_regions=True)
    filled[lesion_mask] = whole[lesion_mask]
    return filled


CLASSICAL = [registry.FILLERS[name](None) for name in registry.CLASSICAL]
# Each takes (image, lesion_mask, wm_mask, rng).
BASELINES = {filler.label: filler.filled for filler in CLASSICAL} | {'biharmonic (skimage)': skimage_biharmonic}
UNFILLED, TRUTH = 'unfilled', 'healthy tissue'
NOT_FOR_PATIENTS = {'biharmonic (skimage)'}  # its direct solver takes hours on a large lesion
NOT_FOR_BRIGHT = {filler.label for filler in CLASSICAL if not filler.bright_lesions}


@dataclass(frozen=True)
class ModelMethod:
    """A model as a filler, by name or folder and number of steps."""

    name_or_path: str
    num_inference_steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> ModelMethod:
        """Parse `NAME_OR_FOLDER` or `NAME_OR_FOLDER@STEPS`."""
        name, at, steps = text.partition('@')
        if at and not (steps.isdecimal() and int(steps)):
            raise ValueError(f'model {text!r} has {steps!r} steps, expected MODEL@STEPS with at least 1')
        return cls(name, int(steps) if at else None)

    def load_model(self, device: str, modality: str | None = None) -> Filler:
        """Return the filler; it must be one that fills."""
        task = registry.describe(self.name_or_path)['task']
        if task != 'fill':
            raise SystemExit(f'model {self.name_or_path} is there to {task}, expected one that fills')
        return registry.load_filler(self.name_or_path, device, modality)

    def name(self, model: Filler) -> str:
        """Return the name of the row in the tables."""
        if not isinstance(model, models.Model):
            return getattr(model, 'label', model.name)
        steps = model.steps(Sampling(num_inference_steps=self.num_inference_steps))
        name = f'{model.name}, {steps} step{"s" if steps > 1 else ""}'
        return name + (' (RePaint)' if is_repaint(model) else '')

    def load(self, device: str, modality: str | None = None) -> tuple[str, bool, Callable, str]:
        """Return the name of the row, whether it is sampled by RePaint, the filler, and the SHA-256 of its weights."""
        model = self.load_model(device, modality)

        def fill(
            image: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, rng: np.random.Generator
        ) -> np.ndarray:
            sampling = Sampling((int(rng.integers(2**31)),), self.num_inference_steps, device)
            filled = image.copy()
            filled[lesion_mask] = model.fill(image, lesion_mask, wm_mask, sampling)[0]
            return filled

        return self.name(model), is_repaint(model), fill, model.sha256


def is_repaint(model: Filler) -> bool:
    """Return True for an unconditional diffusion model, which RePaint samples."""
    return isinstance(model, models.Model) and model.form.kind == 'unconditional'


def left_out(modality: str) -> set[str]:
    """Return the names of baselines that do not fill lesions as they usually are in a modality."""
    return NOT_FOR_BRIGHT if get(modality).lesion_sign != -1 else set()
