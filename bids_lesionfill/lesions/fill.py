"""One image, T1w or FLAIR: place the anatomy, restrict and grow the mask, sample, paste back. No files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from .. import sidecars
from ..diffusion import classical, models, registry
from ..diffusion.filler import Filler
from ..images import anatomy as images_anatomy
from ..images import grid, masks, nifti, placement
from ..images.anatomy import Anatomy
from ..modality import get
from . import checks, contrasts, fluids, measures, tables, unmixing
from . import texture as textures
from .records import FillRecord
from .settings import DEFAULT_GROWTH, DEFAULT_SAMPLING, TEXTURE_STREAM, Growth, Lesions, Sampling

TISSUE_ABOVE = 0.5  # of white matter: the darkest lesions are brighter, fluid is darker
BEYOND_SD = 0.5  # of white matter: how far a filling may go beyond the lesion that it replaces
# In the record, see `measures.look_at`, `measures.place_of_mask` and `measures.left_behind`.
RECORD_NAMES = {'grain': 'fill_grain', 'glow': 'fill_glow', 'wall': 'fill_wall', 'outline': 'fill_outline'}
RECORD_NAMES |= {'step': 'mask_step', 'step_moved': 'mask_step_moved', 'left': 'lesion_left'}
LESION_SHARE = 0.05  # of a voxel of the working grid that is no longer healthy


@dataclass(frozen=True)
class Filling:
    """A filled image and all that a report has to say about it."""

    filled_img: nib.Nifti1Image  # as it is to be written: stored values and the input's scaling
    used_mask_img: nib.Nifti1Image  # uint8, on the image's grid
    sd_img: nib.Nifti1Image | None = None  # float32, standard deviation over samples, in units of the image
    lesions: list = field(default_factory=list)  # one dict per lesion, see `describe_lesions`
    record: FillRecord = FillRecord()  # for the sidecar
    warnings: list = field(default_factory=list)  # sentences


def fill_alone(
    image_img: nib.Nifti1Image,
    lesions: Lesions,
    model: str | Filler,
    t1w_img: nib.Nifti1Image | None = None,
    wm_mask_img: nib.Nifti1Image | None = None,
    growth: Growth = DEFAULT_GROWTH,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> Filling:
    """Fill an image whose anatomy nobody has found yet; arguments as of `interface.fill_lesions` and `fill`."""
    nifti.check_image(image_img, 'image')
    if not lesions.on_grid(image_img)[0].any():
        return fill(image_img, lesions, None, model, growth, sampling)  # type: ignore[arg-type]  # it is not asked
    model = registry.load_filler(model, models.choose_device(sampling.device))
    if get(model.modality).needs_t1w and t1w_img is None and wm_mask_img is None:
        raise ValueError(
            f'model {model.name} fills {model.modality} images: it needs their T1w (t1w_img) or wm_mask_img'
        )
    anatomy = find_anatomy(image_img, lesions, t1w_img, wm_mask_img)
    return fill(image_img, lesions, anatomy, model, growth, sampling)


def find_anatomy(
    image_img: nib.Nifti1Image,
    lesions: Lesions,
    t1w_img: nib.Nifti1Image | None = None,
    wm_mask_img: nib.Nifti1Image | None = None,
) -> Anatomy:
    """Find brain and white matter in the T1w of an image, or in the image itself, in its world space."""
    t1w_img = image_img if t1w_img is None else placement.beside(t1w_img, image_img, 'T1w')
    if wm_mask_img is not None:
        return images_anatomy.from_white_matter(t1w_img, wm_mask_img)
    given_mask, kept_mask = lesions.on_grid(image_img)
    mask_img = nifti.mask_image(given_mask | kept_mask, image_img)
    nifti.check_image(t1w_img, 'T1w')
    is_there = grid.conform_mask(mask_img, t1w_img).any()  # else the T1w lies elsewhere, which is told later
    return images_anatomy.look_at(t1w_img, mask_img if is_there else None, lesion_share=LESION_SHARE)


class Scene(NamedTuple):
    """An image and what is known of it before anything is filled; `(X, Y, Z)` arrays."""

    plain_img: nib.Nifti1Image  # finite floats on the image's own grid
    grid_img: nib.Nifti1Image  # on its working grid: 1 mm, RAS
    given_mask: np.ndarray  # bool, own grid: lesions to be filled
    kept_mask: np.ndarray  # bool, own grid: lesions that stay
    native_wm: np.ndarray  # bool, own grid
    brain_mask: np.ndarray  # bool, working grid
    wm_mask: np.ndarray  # bool, working grid
    t1w: np.ndarray  # float, working grid
    is_t1w: bool  # the image is the one in which the anatomy was found
    lesion_sign: int  # 1: lesions are brighter than white matter, -1: darker

    @property
    def image(self) -> np.ndarray:
        """The image on its working grid, float32."""
        return self.grid_img.get_fdata(dtype=np.float32)


class Hole(NamedTuple):
    """The region to fill, and the image around it."""

    used_mask: np.ndarray  # (X, Y, Z) bool, own grid
    mask: np.ndarray  # (X, Y, Z) bool, working grid
    tissue: np.ndarray  # (X, Y, Z) float32, own grid: the image without what of lesions lies outside the hole
    image: np.ndarray  # (X, Y, Z) float32: the same on the working grid
    mix: unmixing.Unmixing | None = None  # shares of lesion and fluid, if rims are unmixed


class Sampled(NamedTuple):
    """Values of the voxels of a hole, in units of the image."""

    values: np.ndarray  # (n_samples, n) float64, in C order
    white_matter: float  # median, which set the scale


def fill(
    image_img: nib.Nifti1Image,
    lesions: Lesions,
    anatomy: Anatomy | None,
    model: Filler,
    growth: Growth = DEFAULT_GROWTH,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> Filling:
    """Fill the lesions of an image: place the anatomy, grow the mask, sample, paste back.

    Parameters
    ----------
    image_img : nibabel image
        T1w or FLAIR.
    lesions : Lesions
    anatomy : images.anatomy.Anatomy
        Of the visit's T1w, in the world space of the image; None if the mask is empty.
    model : Filler
    growth, sampling : settings

    Returns
    -------
    Filling

    Raises
    ------
    ValueError
        If an image cannot be used; the sentence says why.
    """
    nifti.check_image(image_img, 'image')
    given_mask, kept_mask = lesions.on_grid(image_img)
    if not given_mask.any():
        return copy_without_lesions(image_img, given_mask, kept_mask)
    if anatomy is None:
        raise ValueError('a lesion is to be filled, and no anatomy is given: see `images.anatomy.look_at`')
    if model.has_texture:
        sampling = replace(sampling, texture="the filler's own")
    scene = place_anatomy(image_img, given_mask, kept_mask, anatomy, get(model.modality).lesion_sign)
    hole = grow_mask(scene, lesions, growth)
    notes = placement.notes_on_place(image_img, lesions.mask_img)
    record = replace(describe_hole(scene, hole, growth), **asdict(anatomy.sources))
    if not scene.is_t1w:
        record = replace(record, skull_stripped=images_anatomy.is_skull_stripped(scene.image))
    if not hole.used_mask.any():
        notes = ['No lesion touches white matter: the output is a copy of the input.', *notes]
        notes += checks.warnings_of(checks.check_filling(record, [], model.modality))
        return Filling(
            nifti.copy_image(image_img), nifti.mask_image(hole.used_mask, image_img), record=record, warnings=notes
        )
    sampled = sample(scene, hole, model, sampling)
    filled, sd_img = to_own_grid(image_img, scene, hole, sampled, sampling)
    record = about(record, model, sampling, sampled)
    return describe(image_img, scene, hole, (filled, sd_img), record, notes, model)


def copy_without_lesions(image_img: nib.Nifti1Image, given_mask: np.ndarray, kept_mask: np.ndarray) -> Filling:
    """Return the image as it is, since its mask has no lesion that is to be filled: Filling."""
    reason = 'All lesions are to be kept' if kept_mask.any() else 'The lesion mask is empty'
    return Filling(
        nifti.copy_image(image_img),
        nifti.mask_image(given_mask, image_img),
        record=record_of_copy(image_img, int(kept_mask.sum())),
        warnings=[f'{reason}: the output is a copy of the input.'],
    )


def record_of_copy(image_img: nib.Nifti1Image, n_kept: int = 0) -> FillRecord:
    """Record that an image has no lesion to be filled, but so many voxels of lesions that are kept."""
    image = grid.conform(nifti.plain(image_img, 'image')).get_fdata(dtype=np.float32)
    return FillRecord(0, 0, n_kept, lesions=0, skull_stripped=images_anatomy.is_skull_stripped(image))


def place_anatomy(
    image_img: nib.Nifti1Image,
    given_mask: np.ndarray,
    kept_mask: np.ndarray,
    anatomy: Anatomy,
    usual_sign: int | None = None,
) -> Scene:
    """Resample an image to its working grid (1 mm, RAS), and its visit's anatomy to both grids.

    White matter is where the mask may grow, and its median sets the scale.
    """
    plain_img = nifti.plain(image_img, 'image')
    grid_img = grid.conform(plain_img)
    t1w = grid.resample_to(anatomy.grid_img, grid_img, order=3)
    brain_mask, wm_mask = images_anatomy.on_grid(anatomy, grid_img)
    wm_mask &= ~grid.conform_mask(nifti.mask_image(kept_mask, plain_img), grid_img, threshold=LESION_SHARE)
    native_wm = grid.conform_mask(nifti.mask_image(wm_mask, grid_img), plain_img) & ~kept_mask
    image = grid_img.get_fdata(dtype=np.float32)
    is_t1w = np.array_equal(t1w, image)
    lesion_mask = grid.conform_mask(nifti.mask_image(given_mask, plain_img), grid_img, threshold=LESION_SHARE)
    lesion_sign = contrasts.lesion_sign(image, lesion_mask, wm_mask & ~lesion_mask, usual_sign)
    return Scene(plain_img, grid_img, given_mask, kept_mask, native_wm, brain_mask, wm_mask, t1w, is_t1w, lesion_sign)


def grow_mask(scene: Scene, lesions: Lesions, growth: Growth) -> Hole:
    """Restrict the mask to lesions that touch white matter, and let it reach the rims that it missed: Hole."""
    used_mask = masks.restrict_to_white_matter(scene.given_mask, scene.native_wm)
    if growth.rims == 'unmixed' and used_mask.any():
        mix = find_shares(scene, used_mask, lesions.flair_img)
        tissue = unmixing.tissue_alone(scene.plain_img.get_fdata(dtype=np.float32), mix)
        image = grid.conform(nib.Nifti1Image(tissue, scene.plain_img.affine)).get_fdata(dtype=np.float32)
        return Hole(mix.touched, to_working_grid(mix.filled, scene), tissue, image, mix)
    tissue, image = scene.plain_img.get_fdata(dtype=np.float32), scene.image
    step = masks.one_step(nib.affines.voxel_sizes(scene.plain_img.affine))
    used_mask = masks.dilate_within(used_mask, scene.native_wm, growth.dilate, step)
    hole = to_working_grid(used_mask, scene)
    bright = scene.lesion_sign > 0
    rim = contrasts.grow_to_rim(image, hole, scene.wm_mask, growth.rim_voxels, bright_lesions=bright) & ~hole
    if rim.any():
        rim = grid.conform_mask(nifti.mask_image(rim, scene.grid_img), scene.plain_img) & scene.native_wm
        # On another grid a thin rim falls apart: only what still touches the mask is taken.
        used_mask = ndimage.binary_propagation(used_mask, step, mask=used_mask | rim)
        hole = to_working_grid(used_mask, scene)
    return Hole(used_mask, hole, tissue, image)


def to_working_grid(mask: np.ndarray, scene: Scene) -> np.ndarray:
    """Return the voxels of the working grid that a mask on the image's own grid touches."""
    return grid.touched_by(nifti.mask_image(mask, scene.plain_img), scene.grid_img)


def describe_hole(scene: Scene, hole: Hole, growth: Growth) -> FillRecord:
    """Record the mask that is used, which lesions are filled, and which voxels cannot be filled."""
    given_mask = scene.given_mask
    labels, n_filled = tables.label_filled(given_mask, hole.used_mask)
    dropped = given_mask & (labels == 0)
    if hole.mix is None:
        record = FillRecord(dilation=growth.dilate, rim_voxels=growth.rim_voxels)
    else:
        record = sidecars.read(FillRecord, unmixing.describe(hole.mix, given_mask))
    brain = grid.conform_mask(nifti.mask_image(scene.brain_mask, scene.grid_img), scene.plain_img, threshold=0.05)
    return replace(
        record,
        lesion_voxels_given=int(given_mask.sum()),
        lesion_voxels_used=int(hole.used_mask.sum()),
        lesion_voxels_kept=int(scene.kept_mask.sum()),
        lesion_sign=scene.lesion_sign,
        lesions=n_filled,
        lesions_dropped=masks.label_lesions(dropped)[1],
        lesion_voxels_dropped=int(dropped.sum()),
        lesion_voxels_outside_brain=int((given_mask & ~brain).sum()),
        brain_volume_ml=tables.brain_volume_ml(scene.brain_mask),
    )


def sample(scene: Scene, hole: Hole, model: Filler, sampling: Sampling) -> Sampled:
    """Sample healthy tissue on tiles that cover the hole, once for each seed."""
    scaling = grid.white_matter_scaling(hole.image, scene.wm_mask & ~hole.mask)
    of_filler = replace(sampling.of_filler(), beside_grey=hole.mix is not None and not hole.mix.tight)
    values = scaling.invert(model.fill(scaling.apply(hole.image), hole.mask, scene.wm_mask, of_filler))
    healthy = scene.wm_mask & ~hole.mask
    values = within_lesion(values, scene.image, hole.mask, healthy, scene.lesion_sign)
    return Sampled(values, float(1.5 / scaling.slope))


def within_lesion(
    values: np.ndarray, image: np.ndarray, hole: np.ndarray, wm_mask: np.ndarray, lesion_sign: int
) -> np.ndarray:
    """Keep a filling from going beyond the lesion that it replaces: no darker than a dark lesion was.

    Interpolation overshoots beside the slope of a wall, by more than any lesion. Where the lesion itself was beyond
    white matter on the other side (an enhancing one, a vessel), white matter is the bound.

    Parameters
    ----------
    values : (n_samples, n) float array
        Of the voxels of the hole, in C order, in units of the image.
    image : (X, Y, Z) float array
        With the lesions.
    hole, wm_mask : (X, Y, Z) bool array
        What is filled, and white matter elsewhere.
    lesion_sign : int
        1: lesions are brighter than white matter, -1: darker.
    """
    lesion = textures.smooth_within(image, hole, np.ones(3))[hole]
    white_matter = classical.local_white_matter(image, hole, wm_mask)
    noise = textures.robust_deviation((image - white_matter)[wm_mask])
    bound = np.maximum(lesion_sign * lesion, lesion_sign * white_matter[hole]) + BEYOND_SD * noise
    return lesion_sign * np.minimum(lesion_sign * values, bound)


def to_own_grid(
    image_img: nib.Nifti1Image, scene: Scene, hole: Hole, sampled: Sampled, sampling: Sampling
) -> tuple[np.ndarray, nib.Nifti1Image | None]:
    """Resample the mean sample to the image's own grid, inside the mask only, with its texture.

    Returns
    -------
    filled : (X, Y, Z) float64 array
    sd_img : nibabel image
        Standard deviation of the samples; None of one sample.
    """
    before, used_mask = nifti.one_volume(image_img), hole.used_mask
    filled, mean = before.astype(np.float64), sampled.values.mean(axis=0)
    filled[used_mask] = placement.on_grid(hole.image, hole.mask, mean, scene.grid_img, scene.plain_img)[used_mask]
    if sampling.texture == 'sampled':
        to_fill = used_mask if hole.mix is None else hole.mix.filled
        healthy = scene.native_wm & ~used_mask
        filled = add_texture(hole.tissue, filled, to_fill, healthy, scene.plain_img, sampling)
    if hole.mix is not None:  # not `before`: it may hold what is no number
        filled = unmixing.blend(scene.plain_img.get_fdata(), filled, hole.mix)
    if len(sampled.values) == 1:
        return filled, None
    zeros, deviation = np.zeros_like(hole.image), sampled.values.std(axis=0)
    sd = placement.on_grid(zeros, hole.mask, deviation, scene.grid_img, scene.plain_img, order=1)
    sd_img = nib.Nifti1Image(np.where(used_mask, sd, 0).astype(np.float32), image_img.affine)
    sd_img.header.set_xyzt_units('mm')
    return filled, sd_img


def about(record: FillRecord, model: Filler, sampling: Sampling, sampled: Sampled) -> FillRecord:
    """Add the model and how it was sampled to a record."""
    return replace(
        record,
        **asdict(model.record(sampling.of_filler())),
        num_samples=sampling.n_samples,
        device=models.choose_device(sampling.device),
        texture=sampling.texture,
        white_matter_median=sampled.white_matter,
    )


def describe(
    image_img: nib.Nifti1Image,
    scene: Scene,
    hole: Hole,
    result: tuple[np.ndarray, nib.Nifti1Image | None],
    record: FillRecord,
    notes: list[str],
    model: Filler,
) -> Filling:
    """Write the filled values as the image stores them; describe each lesion and check the whole: Filling."""
    filled, sd_img = result
    before, used_mask, native_wm = nifti.one_volume(image_img), hole.used_mask, scene.native_wm
    record = replace(
        record,
        voxels_changed=int((filled != before)[used_mask].sum()),
        white_matter_deviation=tables.deviation_of(before, native_wm & ~used_mask),
    )
    filled_img = nifti.paste(image_img, filled, used_mask)
    after = nifti.one_volume(nifti.as_loaded(filled_img))
    faint_below = checks.FAINT_BELOW_SD * (record.white_matter_deviation or 0)
    seen = (get(model.modality).lesion_sign or scene.lesion_sign) * before
    fluid_mask = None if hole.mix is None else hole.mix.fluid > LESION_SHARE
    lesions = tables.describe_lesions(
        *(before, after, scene.given_mask, used_mask, native_wm, image_img.affine), seen, faint_below, fluid_mask
    )
    looks = look_at(scene, hole, filled_img, model.modality)
    measured: dict[str, Any] = {RECORD_NAMES[name]: round(value, 3) for name, value in looks.whole.items()}
    record = replace(record, **measured)
    lesions = tables.with_looks(lesions, looks)
    warnings = notes + checks.warnings_of(checks.check_filling(record, lesions, model.modality))
    return Filling(filled_img, nifti.mask_image(used_mask, image_img), sd_img, lesions, record, warnings)


def look_at(scene: Scene, hole: Hole, filled_img: nib.Nifti1Image, modality: str | None) -> measures.Seen:
    """Measure grain, glow, walls and outline of a filling on the working grid; nothing where they cannot be told."""
    plain_img, grid_img = scene.plain_img, scene.grid_img
    given, used = (
        grid.conform_mask(nifti.mask_image(mask, plain_img), grid_img) for mask in (scene.given_mask, hole.used_mask)
    )
    numbers = tables.number_lesions(scene.given_mask, hole.used_mask).astype(np.int32)
    labels = grid.resample_to(nib.Nifti1Image(numbers, plain_img.affine), grid_img, order=0).astype(np.int32)
    labels = np.where(used, labels, 0)
    if not labels.any():  # lesions between the voxels of the working grid
        return measures.Seen({}, {})
    try:
        untouched = measures.see_untouched(scene.t1w, scene.brain_mask, scene.wm_mask, given, used)
    except ValueError:  # a brain without contrast, or filled as a whole
        return measures.Seen({}, {})
    filled = grid.conform(nifti.plain(nifti.as_loaded(filled_img), 'filled image')).get_fdata(dtype=np.float32)
    sign = get(modality).lesion_sign or scene.lesion_sign
    seen = measures.look_at(scene.image, filled, labels, untouched, sign, scene.is_t1w)
    tissue_mask = scene.brain_mask & (scene.t1w > untouched.means[:2].mean())
    steps = measures.place_of_mask(scene.image, given & used, scene.wm_mask, tissue_mask, sign)
    left = measures.left_behind(filled, given, scene.wm_mask) if sign > 0 else np.nan
    more = {'step': steps[0], 'step_moved': steps[1], 'left': left}
    known = {name: float(value) for name, value in more.items() if np.isfinite(value)}
    return measures.Seen(seen.whole | known, seen.lesions)


def add_texture(
    tissue: np.ndarray,
    filled: np.ndarray,
    hole: np.ndarray,
    wm_mask: np.ndarray,
    img: nib.Nifti1Image,
    sampling: Sampling,
) -> np.ndarray:
    """Return a filling of the mean with the texture of white matter; see `texture.add_texture`.

    Parameters
    ----------
    tissue : (X, Y, Z) float array
        The image without rims and fluid next to the hole.
    filled : (X, Y, Z) float array
        The mean inside the hole; elsewhere what is returned there.
    hole, wm_mask : (X, Y, Z) bool array
    img : nibabel image
        Gives the voxel size, and the place of voxels.
    sampling : Sampling
        Gives the seed, or the noise of the subject's space.
    """
    # In the order of RAS, so that the numbers drawn for a place do not depend on how the image is stored.
    to_ras = nib.io_orientation(img.affine)
    back = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], to_ras)
    voxel_mm = nib.affines.voxel_sizes(img.affine)[np.argsort(to_ras[:, 0])]
    arrays = [nib.orientations.apply_orientation(array, to_ras) for array in (tissue, filled, hole, wm_mask)]
    noise = sampling.noise_on(img.affine @ nib.orientations.inv_ornt_aff(to_ras, img.shape[:3]), TEXTURE_STREAM)
    sampled = nib.orientations.apply_orientation(textures.add_texture(*arrays, noise, voxel_mm), back)  # type: ignore[call-arg]
    return np.where(hole, sampled, filled)


def find_shares(scene: Scene, lesion_mask: np.ndarray, flair_img: nib.Nifti1Image | None = None) -> unmixing.Unmixing:
    """Estimate shares of fluid and lesion on an image's own grid (`unmixing.Unmixing`).

    Fluid is found on the T1w: on the image's own grid if it is one, else on the working grid. A FLAIR, in the world
    space of the image, tells it from lesions that are as dark.
    """
    plain_img, grid_img, native_wm = scene.plain_img, scene.grid_img, scene.native_wm
    image = plain_img.get_fdata(dtype=np.float32)
    brain = grid.conform_mask(nifti.mask_image(scene.brain_mask, grid_img), plain_img)
    # A brain mask may end too early: what a rater delineated there, as bright as tissue, is tissue.
    brain |= lesion_mask & (image > TISSUE_ABOVE * np.median(image[native_wm & ~lesion_mask]))
    voxel_mm = nib.affines.voxel_sizes(plain_img.affine)
    if scene.is_t1w:
        flair = None
        if flair_img is not None:
            flair_img = nifti.plain(placement.beside(flair_img, plain_img, 'FLAIR'), 'FLAIR')
            flair = grid.resample_to(flair_img, plain_img, order=1)
        return unmixing.unmix(image, lesion_mask, native_wm, brain, voxel_mm, flair=flair)
    conformed_mask = grid.conform_mask(nifti.mask_image(lesion_mask, plain_img), grid_img)
    fluid = unmixing.unmix(scene.t1w, conformed_mask, scene.wm_mask, scene.brain_mask).fluid
    # A voxel that is larger than those of the T1w sees the average of them: a Gaussian of its width.
    wider_mm = np.sqrt(np.maximum(placement.sizes_along(plain_img, grid_img) ** 2 - 1, 0))
    fluid = ndimage.gaussian_filter(fluid, wider_mm / 2.355)
    fluid = np.clip(grid.resample_to(nib.Nifti1Image(fluid, grid_img.affine), plain_img, order=1), 0, 1)
    fluid = np.where(brain, fluid, 1)
    level = fluids.level_in_fluid(image, fluid, brain)
    return unmixing.unmix(image, lesion_mask, native_wm, brain, voxel_mm, (fluid, level))
