"""New lesions with perfect masks in the images of one visit: where they lie, how bright they are, painted. No files.

`look_at` reads the anatomy off the T1w once; `draw` or `given` says where new lesions lie; `paint` paints them into an
image of the visit, T1w or FLAIR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..diffusion import classical, models
from ..images import anatomy as images_anatomy
from ..images import grid, masks, nifti, placement, registration, syn
from ..images.anatomy import Anatomy
from ..modality import get
from . import checks, contrasts, recognition, sampling, tables, unevenness
from . import library as lesions_library
from . import places as lesions_places
from .records import SynthesisRecord
from .settings import DEFAULT_SAMPLING, TEXTURE_STREAM, Lesions, Sampling

MARGIN_VOXELS = 4  # around a brain that is registered


@dataclass(frozen=True)
class NewLesions:
    """Masks and contrasts of new lesions."""

    mask_img: nib.Nifti1Image  # uint8, 0 and the number of each lesion from 1; any grid in the world space of the T1w
    strengths: np.ndarray  # (n,) quantile (0 to 1) of the contrast of each lesion, by number
    places: tuple = ()  # name of the place of each lesion (`tissues.PLACES`), by number; empty if not known


@dataclass(frozen=True)
class Synthesis:
    """An image with new lesions and all that a report has to say about it."""

    synth_img: nib.Nifti1Image  # as it is to be written: stored values and the input's scaling
    mask_img: nib.Nifti1Image  # uint8, all lesions, old and new, on the image's grid
    new_mask_img: nib.Nifti1Image  # uint8, the new ones alone
    changed_mask_img: nib.Nifti1Image  # uint8, the new ones with their halo: the voxels that may have changed
    lesions: list = field(default_factory=list)  # one dict per new lesion, see `fill.describe_lesions`
    record: SynthesisRecord = SynthesisRecord()  # for the sidecar
    warnings: list = field(default_factory=list)  # sentences


class Wanted(NamedTuple):
    """Request for new lesions."""

    mask_img: nib.spatialimages.SpatialImage | None = None  # where they are to be; drawn if None
    n_lesions: int | None = None  # if neither this nor `load_ml` is given: as a patient of the lesion library has
    load_ml: float | None = None
    locations: tuple[str, ...] = tuple(lesions_places.PLACES)
    intensity: float | str = 'auto'
    halo: float | str = 'auto'
    mask_threshold: float = 0.5  # of `mask_img`, if it holds probabilities


def paint_alone(
    image_img: nib.spatialimages.SpatialImage,
    t1w_img: nib.spatialimages.SpatialImage | None,
    lesions: Lesions | None,
    wanted: Wanted,
    model: models.Model,
    sampling: Sampling,
) -> Synthesis:
    """Synthesize lesions in an image whose anatomy nobody has found yet; see `interface.synthesize_lesions`.

    Raises
    ------
    ValueError
        If an image cannot be used, so many lesions find no place, or the image looks like a T1w and the model is for
        something else.
    """
    if get(model.modality).needs_t1w and t1w_img is None:
        raise ValueError(f'model {model.name} paints into {model.modality} images: it needs their T1w (t1w_img)')
    anatomy = images_anatomy.look_at(
        image_img if t1w_img is None else t1w_img,
        None if lesions is None else lesions.mask_img,
        mask_threshold=0.5 if lesions is None else lesions.threshold,
    )
    if t1w_img is not None:
        image = grid.resample_to(nifti.plain(image_img, 'image'), anatomy.grid_img, order=1)
        recognition.check_tissues(image, anatomy, get(model.modality))
    rng = np.random.default_rng(sampling.seed)
    if wanted.mask_img is None:
        atlas = find_places(anatomy, lesions_library.load_lesion_library())
        new = draw(anatomy, atlas, rng, wanted.intensity, wanted.n_lesions, wanted.load_ml, wanted.locations)
    else:
        new = given(wanted.mask_img, rng, wanted.intensity, wanted.mask_threshold)
    return paint(image_img, anatomy, new, model, lesions, sampling, wanted.halo)


def find_places(anatomy: Anatomy, library: lesions_library.LesionLibrary) -> sampling.Atlas:
    """Register a lesion library's atlas to an anatomy, by an affine from the T1w to its template."""
    affine = anatomy.grid_img.affine
    t1w = anatomy.grid_img.get_fdata(dtype=np.float32)
    to_template = registration.affine_to_template(t1w, anatomy.brain_mask, affine, library.template, library.affine)
    places, frequency, _ = lesions_places.locate(library, anatomy.tissue_seg, to_template @ affine)
    return sampling.Atlas(library, places, frequency, to_template @ affine)


def draw(
    anatomy: Anatomy,
    atlas: sampling.Atlas,
    rng: np.random.Generator,
    intensity: float | str = 'auto',
    n_lesions: int | None = None,
    load_ml: float | None = None,
    locations: Sequence[str] = tuple(lesions_places.PLACES),
) -> NewLesions:
    """Draw new lesions into white matter, apart from each other and from the old ones: NewLesions.

    Raises
    ------
    ValueError
        See `lesion_masks.draw_lesion_mask`.
    """
    labels = sampling.draw_lesion_mask(
        atlas, anatomy.wm_mask, rng, n_lesions, load_ml, locations, avoid=anatomy.old_lesions
    )
    names = {value: name for name, value in lesions_places.PLACES.items()}
    places = [
        names[lesions_places.place_of(labels[box] == number, atlas.places[box])]
        for number, box in enumerate(ndimage.find_objects(labels), start=1)
    ]
    strengths = contrasts.draw_strengths(rng, len(places), intensity)
    return NewLesions(number_image(labels, anatomy.grid_img), strengths, tuple(places))


def given(
    mask_img: nib.Nifti1Image, rng: np.random.Generator, intensity: float | str = 'auto', mask_threshold: float = 0.5
) -> NewLesions:
    """Return NewLesions from a mask; raise ValueError if it is no mask, or empty."""
    nifti.check_image(mask_img, 'mask of new lesions')
    labels, n_lesions = masks.label_lesions(placement.mask_on_grid(mask_img, mask_img, mask_threshold))
    if not n_lesions:
        raise ValueError('the mask of new lesions is empty')
    return NewLesions(number_image(labels, mask_img), contrasts.draw_strengths(rng, n_lesions, intensity))


def borrow(t1w_img: nib.Nifti1Image, lesion_mask_img: nib.Nifti1Image, anatomy: Anatomy) -> nib.Nifti1Image:
    """Transfer another patient's lesions by deformable registration, in free white matter; uint8 image.

    As in the thesis (3.3, *Mask Generation*). Lesions of which less than 3 voxels are left are dropped.

    Parameters
    ----------
    t1w_img, lesion_mask_img : nibabel images
        Of the other patient, in one world space.
    anatomy : Anatomy

    Raises
    ------
    ValueError
        If antspyx is not installed, an image cannot be used, or nothing is left.
    """
    donor = images_anatomy.look_at(t1w_img, lesion_mask_img)
    donor_brain = np.where(donor.brain_mask, donor.grid_img.get_fdata(dtype=np.float32), 0)
    box = masks.bounding_box(anatomy.brain_mask, MARGIN_VOXELS)
    part_img = anatomy.grid_img.slicer[box]
    brain_mask = anatomy.brain_mask[box]
    t1w = part_img.get_fdata(dtype=np.float32)
    points_mm, _ = syn.find_in(t1w, brain_mask, part_img.affine, donor_brain, donor.grid_img.affine)
    warped = np.zeros(anatomy.brain_mask.shape, dtype=bool)
    warped[anatomy.brain_mask] = (
        registration.sample(donor.old_lesions.astype(np.float32), donor.grid_img.affine, points_mm, order=1) >= 0.5
    )
    lesions, _ = masks.label_lesions(warped & sampling.away_from(anatomy.old_lesions, anatomy.wm_mask))
    kept = np.bincount(lesions.flat) >= sampling.MIN_VOXELS
    kept[0] = False
    if not kept.any():
        raise ValueError('none of the lesions that were registered lies in free white matter')
    return nifti.mask_image(kept[lesions], anatomy.grid_img)


def number_image(labels: np.ndarray, img: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return numbered lesions as an image on the grid of another image."""
    return nib.Nifti1Image(labels.astype(np.int32), img.affine)


class Canvas(NamedTuple):
    """An image and where new lesions are painted into it; `(X, Y, Z)` arrays."""

    plain_img: nib.Nifti1Image  # finite floats on the image's own grid
    old_mask: np.ndarray  # bool, own grid
    new_mask: np.ndarray  # bool, own grid
    wm_mask: np.ndarray  # bool, own grid: white matter outside the old lesions
    raw: np.ndarray  # float32, grid of the anatomy, in units of the image
    hole: np.ndarray  # bool, grid of the anatomy
    scaling: grid.Scaling
    notes: list  # sentences


def paint(
    image_img: nib.Nifti1Image,
    anatomy: Anatomy,
    new: NewLesions,
    model: models.Model,
    lesions: Lesions | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    lesion_halo: float | str = 'auto',
) -> Synthesis:
    """Synthesize new lesions in an image of a visit.

    Parameters
    ----------
    image_img : nibabel image
        T1w or FLAIR, in the world space of the anatomy's T1w.
    anatomy : Anatomy
    new : NewLesions
    model : weights.Model
        Conditional, or unconditional: then coarse lesions are painted first (SDEdit from `plan['start_step']`), and
        RePaint keeps what is outside (thesis 3.2).
    lesions : Lesions, optional
        The old lesions: they stay, and are in `mask_img`.
    sampling : Sampling
    lesion_halo : float or 'auto'
        See `interface.synthesize_lesions`.

    Returns
    -------
    Synthesis

    Raises
    ------
    ValueError
        If an image cannot be used, or nothing is left to paint in.
    """
    steps = models.choose_steps(sampling.num_inference_steps, model.plan['num_inference_steps'])
    sampling = replace(sampling, num_inference_steps=steps, device=models.choose_device(sampling.device))
    canvas = place_lesions(image_img, anatomy, new, lesions)
    scaling, hole = canvas.scaling, canvas.hole
    image = np.where(anatomy.brain_mask, scaling.apply(canvas.raw), -1).astype(np.float32)

    # Sample on tiles that cover the lesions; no voxel leaves the range that the brain has anyway.
    contrast, source = contrasts.contrast_volume(image, hole, anatomy, new, model)
    limits = limits_of(image, anatomy.brain_mask & ~hole)
    wm_mask = anatomy.wm_mask & ~hole
    values = sample(image, hole, wm_mask, contrast, model, sampling)
    texture = sampling.texture if model.form.asks_contrast and steps == 1 else None
    if texture == 'sampled':
        values = with_texture(image, hole, wm_mask, values, contrast, model, sampling.seed)
    values = np.clip(values, *limits)

    halo_share = contrasts.choose_halo(lesion_halo, image, anatomy, model)
    grey = placement.on_grid(scaling.invert(image), hole, scaling.invert(values), anatomy.grid_img, canvas.plain_img)
    synth_img, changed_mask = paste_lesions(image_img, canvas, grey, halo_share, scaling.invert(limits))
    record = replace(
        describe_canvas(image_img, synth_img, canvas, changed_mask, anatomy),
        model=model.name,
        weights_sha256=model.sha256,
        random_seed=sampling.seed,
        num_inference_steps=steps,
        texture=texture,
        device=sampling.device,
        halo_share=round(halo_share, 3),
        contrast_reference=source,
    )
    if get(model.modality).needs_t1w:
        record = replace(record, skull_stripped=images_anatomy.is_skull_stripped(canvas.raw))
    rows = describe_new(image_img, synth_img, canvas, new, record.white_matter_deviation, model.modality)
    return Synthesis(
        synth_img,
        nifti.mask_image(canvas.old_mask | canvas.new_mask, image_img),
        nifti.mask_image(canvas.new_mask, image_img),
        nifti.mask_image(changed_mask, image_img),
        rows,
        record,
        canvas.notes + checks.warnings_of(checks.check_synthesis(record, rows, model.modality)),
    )


def place_lesions(image_img: nib.Nifti1Image, anatomy: Anatomy, new: NewLesions, lesions: Lesions | None) -> Canvas:
    """Resample old and new lesions to the image's grid, and image and new ones to the anatomy's."""
    plain_img, grid_img = nifti.plain(image_img, 'image'), anatomy.grid_img
    old_mask = np.zeros(plain_img.shape, dtype=bool)
    if lesions is not None:
        old_mask = placement.mask_on_grid(lesions.mask_img, image_img, lesions.threshold)
    brain_mask, wm_mask = (
        grid.conform_mask(nifti.mask_image(mask, grid_img), plain_img) for mask in (anatomy.brain_mask, anatomy.wm_mask)
    )
    asked_mask = placement.mask_on_grid(new.mask_img, plain_img)  # both in the world of the anatomy's grid
    new_mask = asked_mask & ~old_mask & brain_mask
    if not new_mask.any():
        raise ValueError('no voxel of the new lesions lies in the brain and outside the old lesions')
    notes = mask_notes(new, new_mask, asked_mask & ~old_mask & ~brain_mask, wm_mask, plain_img)
    if lesions is not None:
        notes += placement.notes_on_place(image_img, lesions.mask_img)
    raw = grid.resample_to(plain_img, grid_img, order=3)
    hole = grid.touched_by(nifti.mask_image(new_mask, plain_img), grid_img)
    scaling = grid.white_matter_scaling(raw, anatomy.wm_mask)
    return Canvas(plain_img, old_mask, new_mask, wm_mask, raw, hole, scaling, notes)


def paste_lesions(
    image_img: nib.Nifti1Image, canvas: Canvas, grey: np.ndarray, halo_share: float, limits: np.ndarray
) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Write painted values as the image stores them, inside the new lesions and their halo only.

    Parameters
    ----------
    image_img : nibabel image
    canvas : Canvas
    grey : (X, Y, Z) float array, own grid
        The painted image.
    halo_share : float
    limits : (2,) array
        Between which painted values lie, in units of the image.

    Returns
    -------
    synth_img : nibabel image
    changed_mask : (X, Y, Z) bool array
    """
    new_mask, painted = canvas.new_mask, nifti.one_volume(image_img).astype(np.float64)
    painted[new_mask] = grey[new_mask]
    free_mask = canvas.wm_mask & ~new_mask & ~canvas.old_mask
    voxel_mm = nib.affines.voxel_sizes(canvas.plain_img.affine)
    faded = contrasts.fade_out(painted, new_mask, free_mask, halo_share, voxel_mm)
    changed_mask = new_mask | differs(faded, painted)
    painted[changed_mask] = np.clip(faded[changed_mask], *limits)
    return nifti.paste(image_img, painted, changed_mask), changed_mask


def describe_canvas(
    image_img: nib.Nifti1Image, synth_img: nib.Nifti1Image, canvas: Canvas, changed_mask: np.ndarray, anatomy: Anatomy
) -> SynthesisRecord:
    """Record the lesions, the scale and the anatomy."""
    before, after = nifti.one_volume(image_img), nifti.one_volume(nifti.as_loaded(synth_img))
    return SynthesisRecord(
        lesion_voxels_old=int(canvas.old_mask.sum()),
        lesion_voxels_new=int(canvas.new_mask.sum()),
        lesions=masks.label_lesions(canvas.new_mask)[1],
        voxels_changed=int(differs(after, before).sum()),
        white_matter_median=float(1.5 / canvas.scaling.slope),
        white_matter_deviation=tables.deviation_of(before, canvas.wm_mask & ~changed_mask),
        brain_volume_ml=tables.brain_volume_ml(anatomy.brain_mask),
        new_lesions_touching_old=tables.count_touching(canvas.new_mask, canvas.old_mask),
        **asdict(anatomy.sources),
    )


def describe_new(
    image_img: nib.Nifti1Image,
    synth_img: nib.Nifti1Image,
    canvas: Canvas,
    new: NewLesions,
    deviation: Any,
    modality: str,
) -> list[dict]:
    """Return one row per new lesion; see `tables.describe_lesions`."""
    before, after = nifti.one_volume(image_img), nifti.one_volume(nifti.as_loaded(synth_img))
    faint_below = checks.FAINT_BELOW_SD * (deviation or 0)
    free_mask = canvas.wm_mask & ~canvas.new_mask & ~canvas.old_mask
    lesion_sign = checks.sign(modality) or contrasts.lesion_sign(after, canvas.new_mask, free_mask)
    rows = tables.describe_lesions(
        *(before, after, canvas.new_mask, canvas.new_mask, canvas.wm_mask, image_img.affine),
        lesion_sign * after,
        faint_below,
    )
    return with_places(rows, new)


def with_places(lesions: list[dict[str, Any]], new: NewLesions) -> list[dict[str, Any]]:
    """Add its `place` to each row of `fill.describe_lesions`: that of the drawn lesion whose centre is nearest.

    Parameters
    ----------
    lesions : list of dict
    new : NewLesions
        Without places the rows stay as they are.
    """
    if not new.places:
        return lesions
    numbers = np.asarray(new.mask_img.dataobj)
    centres = ndimage.center_of_mass(numbers > 0, numbers, range(1, len(new.places) + 1))
    centres_mm = nib.affines.apply_affine(new.mask_img.affine, np.array(centres))
    rows = []
    for row in lesions:
        distances = np.linalg.norm(centres_mm - [row['x_mm'], row['y_mm'], row['z_mm']], axis=1)
        rows.append(row | {'place': new.places[int(distances.argmin())]})
    return rows


def differs(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return True where two arrays differ; NaN in both counts as equal."""
    return (values != others) & ~(np.isnan(values) & np.isnan(others))


def limits_of(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Compute the 0.1 % and 99.9 % quantiles of the intensities in a mask; (2,) float64 array."""
    return np.quantile(image[mask], (0.001, 0.999))


def mask_notes(
    new: NewLesions, new_mask: np.ndarray, outside: np.ndarray, wm_mask: np.ndarray, img: nib.Nifti1Image
) -> list[str]:
    """List sentences about the new lesions, to be read before trusting the image.

    Parameters
    ----------
    new : NewLesions
    new_mask, outside, wm_mask : (X, Y, Z) bool array
        What is painted, what is left out since it is no brain, and white matter, on the grid of `img`.
    img : nibabel image
    """
    notes = []
    if outside.any():
        n_voxels = outside.sum() + new_mask.sum()
        notes.append(f'{outside.sum()} of {n_voxels} voxels of the new lesions lie outside the brain: left out.')
    numbers = grid.resample_to(new.mask_img, img, order=0)[new_mask]
    n_lost = len(new.strengths) - len(np.setdiff1d(numbers, 0))
    if n_lost:
        notes.append(
            f'{n_lost} of {len(new.strengths)} new lesions are not in this image: smaller than its voxels, in old '
            'lesions or outside the brain.'
        )
    in_white_matter = (new_mask & wm_mask).sum() / new_mask.sum()
    if in_white_matter < 0.8:
        notes.append(f'{100 * (1 - in_white_matter):.0f} % of the new lesions lie outside white matter.')
    return notes


def sample(
    image: np.ndarray,
    hole: np.ndarray,
    wm_mask: np.ndarray,
    contrast: Any,
    model: models.Model,
    sampling: Sampling,
) -> np.ndarray:
    """Sample new lesions by DDIM, at their contrast, or by SDEdit if unconditional (thesis 3.2).

    Returns
    -------
    (n,) float32 array: values of the voxels of the hole; see `inpaint.fill_volume`
    """
    start_step = 0
    if model.form.kind == 'unconditional':
        start_step = model.plan.get('start_step', 3)
        white_matter = classical.local_white_matter(image, hole, wm_mask)
        image = np.where(hole, white_matter + contrast, image)
    return sample_at_contrast(image, hole, wm_mask, contrast, model, sampling, start_step)


def with_texture(
    image: np.ndarray,
    hole: np.ndarray,
    wm_mask: np.ndarray,
    values: np.ndarray,
    contrast: Any,
    model: models.Model,
    seed: int,
) -> np.ndarray:
    """Return the values of lesions in a hole with the texture of real ones, at their contrast; see `unevenness`."""
    mean = image.copy()
    mean[hole] = values
    rng = np.random.default_rng([seed, TEXTURE_STREAM])
    uneven = get(model.modality).unevenness
    painted = unevenness.add_texture(image, mean, hole, wm_mask, contrast, uneven, rng)
    return contrasts.match_contrast(painted, hole, wm_mask, contrast)[hole]


def sample_at_contrast(
    image: np.ndarray,
    hole: np.ndarray,
    wm_mask: np.ndarray,
    contrast: Any,
    model: models.Model,
    sampling: Sampling,
    start_step: int = 0,
) -> np.ndarray:
    """Sample the voxels of a hole; lesions of a model that takes a contrast then get exactly that.

    Arguments as of `inpaint.fill_volume`; steps and device of the sampling are chosen already.

    Returns
    -------
    (n,) float32 array: values of the voxels of the hole, in C order
    """
    from ..diffusion import inpaint  # with torch, which takes seconds: only where something is painted

    values = inpaint.fill_volume(
        *(image, hole, wm_mask, model, sampling.num_inference_steps, [sampling.seed]),  # type: ignore[arg-type]
        *(sampling.device, sampling.batch_size, start_step, contrast, sampling.progress),
    )[0]
    if not model.form.asks_contrast:
        return values
    painted = image.copy()
    painted[hole] = values
    return contrasts.match_contrast(painted, hole, wm_mask, contrast)[hole]
