"""Fillers that an evaluation compares: classical ones, models, the truth, none."""

from dataclasses import dataclass

import numpy as np

from ..diffusion import classical, inpaint, models


def skimage_biharmonic(image, lesion_mask, wm_mask, rng):
    """`skimage.restoration.inpaint_biharmonic`, region by region."""
    from skimage.restoration import inpaint_biharmonic

    filled = image.copy()
    whole = inpaint_biharmonic(image.astype(np.float64), lesion_mask, split_into_regions=True)
    filled[lesion_mask] = whole[lesion_mask]
    return filled


# Each takes (image, lesion_mask, wm_mask, rng).
BASELINES = {
    'white-matter normal': classical.normal_white_matter,
    'local white-matter voxels': classical.local_white_matter_voxels,
    'local white-matter mean': lambda image, mask, wm_mask, rng: classical.local_white_matter(image, mask, wm_mask),
    'ANTs rule': classical.ants_rule,
    'patch match': classical.patch_match,
    'membrane': lambda image, mask, wm_mask, rng: classical.membrane(image, mask),
    'biharmonic': lambda image, mask, wm_mask, rng: classical.biharmonic(image, mask),
    'biharmonic (skimage)': skimage_biharmonic,
}
UNFILLED, TRUTH = 'unfilled', 'healthy tissue'
NOT_FOR_PATIENTS = {'biharmonic (skimage)'}  # its direct solver takes hours on a large lesion
NOT_FOR_FLAIR = {'ANTs rule'}  # it fills what is darker than its neighbours


@dataclass(frozen=True)
class ModelMethod:
    """A model as a filler, by name or folder and number of steps."""

    name_or_path: str
    num_inference_steps: int | None = None

    @classmethod
    def parse(cls, text):
        """`NAME_OR_FOLDER` or `NAME_OR_FOLDER@STEPS`."""
        name, at, steps = text.partition('@')
        if at and not (steps.isdecimal() and int(steps)):
            raise ValueError(f'model {text!r} has {steps!r} steps, expected MODEL@STEPS with at least 1')
        return cls(name, int(steps) if at else None)

    def load_model(self, device):
        """The model, which must be one that fills."""
        model = models.load_model(self.name_or_path, device)
        if model.plan['task'] != 'fill':
            raise SystemExit(f'model {model.name} is there to {model.plan["task"]}, expected one that fills')
        return model

    def steps(self, model):
        """Of the sampling: those asked for, or the model's own."""
        return self.num_inference_steps or model.plan['num_inference_steps']

    def name(self, model):
        """Of the row in the tables."""
        steps = self.steps(model)
        name = f'{model.name}, {steps} step{"s" if steps > 1 else ""}'
        return name + (' (RePaint)' if model.form.kind == 'unconditional' else '')

    def load(self, device):
        """Name of the row, whether it is sampled by RePaint, the filler, and where its weights are from."""
        model = self.load_model(device)
        steps = self.steps(model)

        def fill(image, lesion_mask, wm_mask, rng):
            seed = int(rng.integers(2**31))
            values = inpaint.fill_volume(image, lesion_mask, wm_mask, model, steps, [seed], device)[0]
            filled = image.copy()
            filled[lesion_mask] = values
            return filled

        return self.name(model), model.form.kind == 'unconditional', fill, model.sha256
