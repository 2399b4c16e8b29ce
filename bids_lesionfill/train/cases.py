"""Training cases: crops of healthy brains with lesions drawn into their white matter, or of patients' lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage
from torch.utils.data import Dataset

from ..diffusion import forms, tiles
from ..images import anatomy, masks, tissues
from ..lesions import contrasts
from . import brains as train_brains
from . import randomisation

PADDING = 8  # voxels around a crop that the classical base may see
MAX_TRIES = 200  # crops in which lesions find no place before giving up
KEPT_PLACES = 64  # brains whose centres of crops are in memory, 2 MB each
LARGE_LESION_VOXELS = 500  # from this on a shape may be part of a confluent lesion


@dataclass(frozen=True)
class CasePlan:
    """Settings of the training cases; part of `plan.json`."""

    crop: tuple = (24, 24, 12)  # voxels
    ellipsoid_share: float = 0.5  # 0: real lesion shapes (thesis: lesions), 1: circles, 0.5: mixture
    ellipsoid_radii_voxels: tuple = (1.5, 8.0)
    max_lesions: int = 3
    rim_share: float = 0.5  # share of crops with a lesion painted in, whose soft rim the mask misses
    rim_contrast: tuple = (0.1, 0.6)  # how much darker than white matter painted lesions are; negative: brighter
    max_dilation: int = 2  # the mask is grown by 0 to so many voxels, within white matter
    grow_share: float = 0.0  # share of masks that then grow into the rim as the app's do; filling only
    contrast_scale: tuple = (1.0, 1.0)  # by which the contrast of lesions is multiplied; synthesis only
    intensity_augmentation: bool = True  # contrast, blur, noise, bias: other scanners
    orientation_augmentation: bool = True  # flips, and quarter turns about the long axis of the body
    axis_augmentation: bool = False  # slices of any axis; the thesis tried it and dropped it (3.3)
    contrast_randomisation: float = 0.0  # share of crops of T1w that get another contrast, see `randomisation`
    acquisition_randomisation: float = 0.0  # share of crops with other noise and slices, not `augment_intensity`
    native_thick_share: float = 0.0  # share of crops on the grid of slices of 2 to 6 mm; the others have 1 mm
    confluent_share: float = 0.0  # share of masks of large lesions that may reach into fluid and grey matter
    either_sign: bool = False  # half of the painted lesions have the other sign
    fluid_known_share: float = 0.5  # share of those whose mask is taken back from fluid, as the app does


def augment_intensity(images: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Simulate another scanner: contrast, resolution, noise, a linear bias; the same for all images, of one shape.

    White matter stays near +0.5.
    """
    contrast = rng.uniform(0.75, 1.25)
    images = [0.5 + (image - 0.5) * contrast for image in images]
    if rng.random() < 0.5:
        sigma = rng.uniform(0.2, 0.8)
        images = [ndimage.gaussian_filter(image, sigma) for image in images]
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(0, 0.05), images[0].shape)
        images = [image + noise for image in images]
    if rng.random() < 0.3:
        ramp = np.linspace(-1, 1, images[0].shape[0])[:, None, None] * rng.uniform(-0.08, 0.08)
        images = [(image + 1) * (1 + ramp) - 1 for image in images]
    return [image.astype(np.float32) for image in images]


def draw_fill_case(
    brain: train_brains.Brain,
    lesions: Sequence[np.ndarray],
    plan: CasePlan,
    form: forms.Form,
    rng: np.random.Generator,
    large_lesions: Sequence[np.ndarray] = (),
) -> dict[str, np.ndarray] | None:
    """Sample one case of filling from a padded crop of a healthy brain; `large_lesions` are shapes of confluent ones.

    Returns
    -------
    dict of arrays: `image` (the healthy truth), `seen` (what the filler is given), `wm_mask`, `lesion_mask`, `base`,
    `channels`; or None if no lesion found a place.
    """
    image, wm_mask = brain.image, brain.wm_mask
    overlap = None  # of a confluent lesion with what is not white matter
    if plan.confluent_share and brain.tissue_seg is not None and rng.random() < plan.confluent_share:
        lesion_mask, overlap = draw_confluent_lesion(brain, large_lesions, plan, rng)
    else:
        lesion_mask = masks.sample_training_mask(
            wm_mask, lesions, rng, plan.ellipsoid_share, plan.max_lesions, radii_voxels=plan.ellipsoid_radii_voxels
        )
    seen, bright_lesions = image, max(plan.rim_contrast) < 0
    if rng.random() < plan.rim_share:
        contrast, edge_voxels = rng.uniform(*plan.rim_contrast), rng.uniform(0.4, 1.3)
        if plan.either_sign and rng.random() < 0.5:
            contrast, bright_lesions = -contrast, not bright_lesions
        seen, alpha = contrasts.paint_lesion(image, lesion_mask, wm_mask, contrast, edge_voxels)
        lesion_mask = alpha > rng.uniform(0.3, 0.7)
    lesion_mask = masks.dilate_within(lesion_mask, wm_mask, int(rng.integers(0, plan.max_dilation + 1)))
    if plan.grow_share and rng.random() < plan.grow_share:
        lesion_mask = contrasts.grow_to_rim(seen, lesion_mask, wm_mask, bright_lesions=bright_lesions)
    counted = lesion_mask
    if overlap is not None:
        counted = lesion_mask | overlap & (brain.tissue_seg != tissues.CSF)
        lesion_mask = lesion_mask | overlap
    return finish_case(image, seen, wm_mask, lesion_mask, form, counted)


def draw_confluent_lesion(
    brain: train_brains.Brain, large_lesions: Sequence[np.ndarray], plan: CasePlan, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample a confluent lesion.

    Its mask in white matter, and what it overlaps of fluid and grey matter within 2 voxels.

    In part of the cases (`fluid_known_share`) fluid is left out of the overlap: the app keeps what it sees as fluid.
    """
    reach = int(rng.integers(0, 3))
    near = masks.dilate_within(brain.wm_mask, np.isin(brain.tissue_seg, (tissues.CSF, tissues.GREY_MATTER)), reach)
    if rng.random() < plan.fluid_known_share:
        near &= brain.tissue_seg != tissues.CSF
    if not large_lesions:
        raise ValueError(f'no lesion shape has {LARGE_LESION_VOXELS} voxels, expected some for confluent_share')
    lesion_mask = randomisation.draw_confluent_mask(near | brain.wm_mask, large_lesions, rng)
    return lesion_mask & brain.wm_mask, lesion_mask & ~brain.wm_mask


def draw_synthesis_case(
    brain: train_brains.Brain, plan: CasePlan, form: forms.Form, rng: np.random.Generator
) -> dict[str, np.ndarray] | None:
    """Sample one case of synthesis from a padded crop of a patient.

    Some lesions are to be synthesized, others are known.

    Around those to be painted the tissue is healthy, as it is where a new lesion is asked for: what the mask misses of
    a lesion is filled, and in part of the cases the mask holds the soft rim. Their contrast is scaled, so that all
    contrasts are seen. As in `draw_fill_case`; `image` has the lesions.
    """
    labels, n_lesions = masks.label_lesions(brain.lesion_mask)
    if not n_lesions:
        return None
    chosen = 1 + rng.permutation(n_lesions)[: rng.integers(1, n_lesions + 1)]
    lesion_mask = np.isin(labels, chosen)
    others = ndimage.binary_dilation(
        brain.lesion_mask & ~lesion_mask, masks.FULL_CONNECTIVITY, iterations=anatomy.RIM_VOXELS
    )
    seen = np.where(others & ~lesion_mask, brain.image, brain.filled)
    scale = rng.uniform(*plan.contrast_scale)
    lesion_mask = masks.dilate_within(lesion_mask, brain.wm_mask & ~others, int(rng.integers(0, plan.max_dilation + 1)))
    image = np.where(lesion_mask, brain.filled + scale * (brain.image - brain.filled), seen)
    return finish_case(image, seen, brain.wm_mask, lesion_mask, form)


def finish_case(
    image: np.ndarray,
    seen: np.ndarray,
    wm_mask: np.ndarray,
    lesion_mask: np.ndarray,
    form: forms.Form,
    counted: np.ndarray | None = None,
) -> dict[str, np.ndarray] | None:
    """Crop the padding of a case, and add its condition; None if it has too little lesion or white matter."""
    core = (slice(PADDING, -PADDING),) * 3
    if (lesion_mask if counted is None else counted)[core].sum() < 4 or (wm_mask & ~lesion_mask).sum() < 20:
        return None
    contrast = contrasts.contrast_of(image, lesion_mask, wm_mask)[0] if form.asks_contrast else None
    base, channels = forms.condition(seen, lesion_mask, wm_mask, form, contrast)
    case = {'image': image, 'seen': seen, 'wm_mask': wm_mask, 'lesion_mask': lesion_mask}
    case |= {'base': base, 'channels': channels}
    if counted is not None:
        case['counted'] = counted  # voxels of the mask that the loss counts
    return {name: array[(..., *core)] for name, array in case.items()}


def crop_centres(brain: train_brains.Brain) -> tuple[list[np.ndarray], list[float]]:
    """Return candidate centres of crops: groups of voxels, (n, 3) arrays, and the probability of each group.

    All white matter of a healthy brain is one group; of a patient every lesion is one, in proportion to its diameter:
    else the large ones would be all that a model sees.
    """
    if brain.lesion_mask is None:
        return [np.argwhere(brain.wm_mask).astype(np.int16)], [1.0]  # a quarter of the memory: all brains keep theirs
    labels, n_lesions = masks.label_lesions(brain.lesion_mask)
    voxels = np.argwhere(labels)
    numbers = labels[tuple(voxels.T)]
    voxels = voxels[np.argsort(numbers, kind='stable')]
    volumes = np.bincount(numbers, minlength=n_lesions + 1)[1:]
    diameters = np.cbrt(volumes)
    return np.split(voxels, np.cumsum(volumes)[:-1]), diameters / diameters.sum()


class TrainingCases(Dataset):
    """An endless, numbered set: case `i` depends on the seed and `i` alone, so a resumed run sees the same cases.

    A case is `(target, channels, mask)`: tensors-to-be of shape (1 or channels, slices, height, width); with confluent
    lesions also the voxels that the loss counts.
    """

    def __init__(
        self,
        brains: Sequence[train_brains.Brain],
        lesions: Sequence[np.ndarray],
        plan: CasePlan,
        form: forms.Form,
        seed: int,
        n_cases: int,
    ) -> None:
        self.brains, self.lesions, self.plan, self.form = brains, lesions, plan, form
        self.seed, self.n_cases = seed, n_cases
        self.large_lesions = [lesion for lesion in lesions if lesion.sum() >= LARGE_LESION_VOXELS]
        self.places = {}  # of the brains that were drawn last

    def __len__(self) -> int:
        return self.n_cases

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng([self.seed, index])
        for _ in range(MAX_TRIES):
            case = self.draw(rng)
            if case is not None:
                break
        else:
            raise ValueError(f'no lesion found a place in {MAX_TRIES} crops of {self.plan.crop} voxels')
        target = self.form.to_diffusion(case['image'], case['base'])
        mask = case['lesion_mask'].astype(np.float32)
        volumes = [target[None], case['channels'], mask[None]]
        if self.plan.confluent_share:
            volumes.append(case['counted'][None])
        slabs = [tiles.to_slab(volume) for volume in volumes]
        return tuple(np.ascontiguousarray(slab, dtype=np.float32) for slab in slabs)

    def places_of(self, number: int) -> Any:
        """Return the centres of crops of a brain; see `crop_centres`."""
        if number not in self.places:
            if len(self.places) == KEPT_PLACES:
                del self.places[next(iter(self.places))]
            self.places[number] = crop_centres(self.brains[number])
        return self.places[number]

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        """Sample a case (see `draw_fill_case`), or None."""
        n_slices = 1  # of 1 mm that are one slice of the crop
        if self.plan.native_thick_share and rng.random() < self.plan.native_thick_share:
            n_slices = int(rng.integers(2, 6))
        brain = self.draw_crop(rng, n_slices)
        if brain.lesion_mask is not None:
            return draw_synthesis_case(brain, self.plan, self.form, rng)
        shapes = self.lesions, self.large_lesions
        if n_slices > 1:
            shapes = [[lesion[..., n_slices // 3 :: n_slices] for lesion in group] for group in shapes]
        return draw_fill_case(brain, shapes[0], self.plan, self.form, rng, shapes[1])

    def draw_crop(self, rng: np.random.Generator, n_slices: int = 1) -> train_brains.Brain:
        """Sample a padded crop around white matter, or a patient's lesion, in one of its orientations.

        Flips and quarter turns that keep the axial slices axial; half turns where a crop is not square. Its slices are
        the mean of `n_slices` axial slices.
        """
        number = int(rng.integers(len(self.brains)))
        levels = self.brains[number].levels
        fields = self.brains[number]._replace(levels=None)._asdict()
        names = [name for name, array in fields.items() if array is not None]
        arrays = [fields[name] for name in names]
        groups, chances = self.places_of(int(number))
        centres = groups[rng.choice(len(groups), p=chances)]
        centre = centres[rng.integers(len(centres))]
        if self.plan.axis_augmentation:
            axes = rng.permutation(3)
            arrays, centre = [array.transpose(axes) for array in arrays], centre[axes]
        size = (np.array(self.plan.crop) + 2 * PADDING) * (1, 1, n_slices)
        missing = np.maximum(size - arrays[0].shape, 0)  # a crop may be larger than the brain: whole slices
        padding = [(n // 2, n - n // 2) for n in missing]
        if missing.any():  # else a brain on disk would be read as a whole
            arrays = [
                np.pad(a, padding, constant_values=-1 if np.issubdtype(a.dtype, np.floating) else 0) for a in arrays
            ]
        start = centre + [before for before, _ in padding] - size // 2
        start = np.clip(start, 0, np.array(arrays[0].shape) - size)
        box = tuple(slice(s, s + n) for s, n in zip(start, size))
        arrays = [array[box] for array in arrays]
        if self.plan.orientation_augmentation:
            quarter_turns = int(rng.integers(4)) * (1 if size[0] == size[1] else 2)
            flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
            arrays = [np.rot90(array, quarter_turns)[flip] for array in arrays]
        contiguous: dict[str, Any] = {name: np.ascontiguousarray(array) for name, array in zip(names, arrays)}
        crop = train_brains.Brain(**contiguous)
        if levels is not None and self.plan.contrast_randomisation and rng.random() < self.plan.contrast_randomisation:
            crop = crop._replace(image=randomisation.randomise_contrast(crop.image, crop.tissue_seg, levels, rng))
        if n_slices > 1:
            fields = {name: array for name, array in crop._asdict().items() if array is not None}
            pooled: dict[str, Any] = {name: randomisation.pool_slices(a, n_slices) for name, a in fields.items()}
            crop = train_brains.Brain(**pooled)
        if self.plan.acquisition_randomisation and rng.random() < self.plan.acquisition_randomisation:
            crop = crop._replace(image=randomisation.randomise_acquisition(crop.image, rng, thick=n_slices == 1))
        elif self.plan.intensity_augmentation:
            images = [image for image in (crop.image, crop.filled) if image is not None]
            augmented: dict[str, Any] = dict(zip(('image', 'filled'), augment_intensity(images, rng)))
            crop = crop._replace(**augmented)
        return crop


def validation_cases(
    brains: Sequence[train_brains.Brain],
    lesions: Sequence[np.ndarray],
    plan: CasePlan,
    form: forms.Form,
    n_cases: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return a fixed list of cases as dicts, with their `kind`: of patients `synth`.

    Of healthy brains real lesion shapes, in turn `clean` (the mask is exact) and `rim` (a painted lesion, whose soft
    rim the mask misses).
    """
    cases, index = [], 0
    plan = replace(plan, ellipsoid_share=0.0, intensity_augmentation=False, axis_augmentation=False, max_dilation=0)
    drawers = {
        clean: TrainingCases(brains, lesions, replace(plan, rim_share=0.0 if clean else 1.0), form, seed, 1)
        for clean in (True, False)
    }
    while len(cases) < n_cases:
        if index == MAX_TRIES * n_cases:
            raise ValueError(f'{len(cases)} of {n_cases} validation cases found a place for lesions')
        rng = np.random.default_rng([seed, index])
        index += 1
        clean = len(cases) % 2 == 0
        case = drawers[clean].draw(rng)
        if case is not None:
            kind = 'synth' if brains[0].lesion_mask is not None else 'clean' if clean else 'rim'
            cases.append(case | {'kind': kind})
    return cases
