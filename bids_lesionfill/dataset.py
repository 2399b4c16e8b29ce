"""Training cases: crops of healthy brains with lesions drawn into their white matter."""

from dataclasses import asdict, dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage
from torch.utils.data import Dataset

from . import inpaint, masks, preprocess, synthesis

PADDING = 8  # voxels around a crop that the classical base may see


@dataclass(frozen=True)
class CasePlan:
    """How a training case is made; part of `plan.json`."""

    crop: tuple = (24, 24, 12)  # voxels
    ellipsoid_share: float = 0.5  # 0: real lesion shapes (thesis: lesions), 1: circles, 0.5: mixture
    max_lesions: int = 3
    rim_share: float = 0.5  # share of crops with a lesion painted in, whose soft rim the mask misses
    intensity_augmentation: bool = True  # contrast, blur, noise, bias: other scanners


def read_healthy_brains(images):
    """Load healthy brains, normalised: a list of (image, wm_mask) arrays, RAS, cropped to the brain.

    Parameters
    ----------
    images : list of (T1w file, tissue segmentation file), with 3 = white matter
    """
    brains = []
    for t1w_file, dseg_file in images:
        t1w_img, dseg_img = preprocess.conform(nib.load(t1w_file)), nib.load(dseg_file)
        wm_mask = preprocess.conform_mask(dseg_img, t1w_img, label=3)
        t1w = t1w_img.get_fdata(dtype=np.float32)
        image = preprocess.white_matter_scaling(t1w, wm_mask).apply(t1w)
        box = ndimage.find_objects(ndimage.binary_dilation(wm_mask, iterations=12).astype(np.uint8))[0]
        brains.append((image[box], wm_mask[box]))
    return brains


def read_lesion_shapes(mask_files, min_voxels=8):
    """Connected lesions of real masks, cropped; see `masks.split_lesions`."""
    shapes = []
    for mask_file in mask_files:
        mask_img = preprocess.conform(nib.load(mask_file), order=0)
        shapes += masks.split_lesions(np.asarray(mask_img.dataobj) > 0, min_voxels)
    return shapes


def augment_intensity(image, rng):
    """Another scanner: contrast, resolution, noise, a linear bias. White matter stays near +0.5."""
    image = 0.5 + (image - 0.5) * rng.uniform(0.75, 1.25)
    if rng.random() < 0.5:
        image = ndimage.gaussian_filter(image, rng.uniform(0.2, 0.8))
    if rng.random() < 0.3:
        image = image + rng.normal(0, rng.uniform(0, 0.05), image.shape)
    if rng.random() < 0.3:
        ramp = np.linspace(-1, 1, image.shape[0])[:, None, None] * rng.uniform(-0.08, 0.08)
        image = (image + 1) * (1 + ramp) - 1
    return image.astype(np.float32)


def draw_case(image, wm_mask, lesions, plan, form, rng):
    """One training case from a padded crop.

    Returns
    -------
    dict of arrays: `image` (the healthy truth), `seen` (what the filler is given), `wm_mask`, `lesion_mask`, `base`,
    `channels`; or None if no lesion found a place.
    """
    lesion_mask = masks.sample_training_mask(wm_mask, lesions, rng, plan.ellipsoid_share, plan.max_lesions)
    core = (slice(PADDING, -PADDING),) * 3
    seen = image
    if rng.random() < plan.rim_share:
        seen, alpha = synthesis.paint_lesion(
            image, lesion_mask, wm_mask, contrast=rng.uniform(0.1, 0.6), edge_voxels=rng.uniform(0.4, 1.3)
        )
        lesion_mask = alpha > rng.uniform(0.3, 0.7)
    lesion_mask = masks.dilate_within(lesion_mask, wm_mask, int(rng.integers(0, 3)))
    if lesion_mask[core].sum() < 4 or (wm_mask & ~lesion_mask).sum() < 20:
        return None
    base, channels = inpaint.condition(seen, lesion_mask, wm_mask, form)
    case = {'image': image, 'seen': seen, 'wm_mask': wm_mask, 'lesion_mask': lesion_mask}
    case |= {'base': base, 'channels': channels}
    return {name: array[(..., *core)] for name, array in case.items()}


class TrainingCases(Dataset):
    """An endless, numbered set: case `i` depends on the seed and `i` alone, so a resumed run sees the same cases.

    A case is `(target, channels, mask)`: tensors-to-be of shape (1 or channels, slices, height, width).
    """

    def __init__(self, brains, lesions, plan, form, seed, n_cases):
        self.brains, self.lesions, self.plan, self.form = brains, lesions, plan, form
        self.seed, self.n_cases = seed, n_cases

    def __len__(self):
        return self.n_cases

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        case = None
        while case is None:
            case = draw_case(*self.draw_crop(rng), self.lesions, self.plan, self.form, rng)
        target = self.form.to_diffusion(case['image'], case['base'])
        mask = case['lesion_mask'].astype(np.float32)
        slabs = [inpaint.to_slab(volume) for volume in (target[None], case['channels'], mask[None])]
        return tuple(np.ascontiguousarray(slab, dtype=np.float32) for slab in slabs)

    def draw_crop(self, rng):
        """A padded crop around white matter, in one of 8 orientations that keep the axial slices axial."""
        image, wm_mask = self.brains[rng.integers(len(self.brains))]
        size = np.array(self.plan.crop) + 2 * PADDING
        missing = np.maximum(size - image.shape, 0)  # a crop may be larger than the brain: whole slices of the thesis
        padding = [(n // 2, n - n // 2) for n in missing]
        image, wm_mask = np.pad(image, padding, constant_values=-1), np.pad(wm_mask, padding)
        centres = np.argwhere(wm_mask)
        start = centres[rng.integers(len(centres))] - size // 2
        start = np.clip(start, 0, np.array(image.shape) - size)
        box = tuple(slice(s, s + n) for s, n in zip(start, size))
        image, wm_mask = image[box], wm_mask[box]
        quarter_turns = int(rng.integers(4))
        image, wm_mask = np.rot90(image, quarter_turns), np.rot90(wm_mask, quarter_turns)
        if rng.random() < 0.5:
            image, wm_mask = image[::-1], wm_mask[::-1]
        if self.plan.intensity_augmentation:
            image = augment_intensity(image, rng)
        return np.ascontiguousarray(image), np.ascontiguousarray(wm_mask)


def validation_cases(brains, lesions, plan, form, n_cases, seed):
    """A fixed list of cases as dicts: real lesion shapes, half `clean`, half `rim` (a painted lesion, a tight mask)."""
    cases = []
    index = 0
    while len(cases) < n_cases:
        rng = np.random.default_rng([seed, index])
        index += 1
        clean = len(cases) % 2 == 0
        kind = CasePlan(**(asdict(plan) | {'ellipsoid_share': 0.0, 'rim_share': 0.0 if clean else 1.0}))
        source = TrainingCases(
            brains, lesions, CasePlan(**(asdict(kind) | {'intensity_augmentation': False})), form, seed, 1
        )
        case = draw_case(*source.draw_crop(rng), lesions, kind, form, rng)
        if case is not None:
            cases.append(case | {'kind': 'clean' if clean else 'rim'})
    return cases
