"""One image, T1w or FLAIR: conform, find white matter, restrict and grow the mask, sample, paste back. No files."""

import contextlib
import zlib
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from scipy import ndimage

from . import inpaint, masks, preprocess, tissues, unmixing, verdict, weights

GEOMETRY = (  # fields of a NIfTI header
    *('pixdim', 'qform_code', 'quatern_b', 'quatern_c', 'quatern_d', 'qoffset_x', 'qoffset_y', 'qoffset_z'),
    *('sform_code', 'srow_x', 'srow_y', 'srow_z'),
)
SMALLEST_VOXEL_MM, LARGEST_IMAGE_MM = 0.05, 1000  # beyond, the unit is not mm, or memory would not hold it at 1 mm
MOST_FORMS_APART_MM = 1  # rounding is far less
HIGHEST_PROBABILITY = 1.1  # interpolation overshoots
NO_PLACE = (
    'The header of the lesion mask or that of the image says nothing of its place (sform_code and qform_code are 0): '
    'the mask was laid on the voxels of the image. Check the pictures.'
)


@dataclass(frozen=True)
class Filling:
    """A filled image and all that a report has to say about it."""

    filled_img: nib.Nifti1Image  # as it is to be written: stored values and the input's scaling
    used_mask_img: nib.Nifti1Image  # uint8, on the image's grid
    sd_img: nib.Nifti1Image = None  # float32, standard deviation over samples, in units of the image
    lesions: list = field(default_factory=list)  # one dict per lesion, see `describe_lesions`
    info: dict = field(default_factory=dict)  # what the sidecar says
    warnings: list = field(default_factory=list)  # sentences


def fill_lesions(
    image_img,
    lesion_mask_img,
    *,
    tissue_img=None,
    model='fill-T1w',
    wm_mask_img=None,
    dilate=1,
    rim_voxels=2,
    rims='unmixed',
    rim_img=None,
    num_inference_steps=None,
    n_samples=1,
    device='auto',
    seed=0,
):
    """Fill the lesions of an image with healthy tissue.

    Parameters
    ----------
    image_img : nibabel image, 3D (or 4D with one volume)
        T1w, or FLAIR with a model for FLAIR; with or without skull, any orientation and voxel size.
    lesion_mask_img : nibabel image
        Above zero = lesion; another grid in the same world space is resampled.
    tissue_img : nibabel image, optional
        The T1w in which brain and white matter are found, in the same world space; the image itself if not given.
        A FLAIR needs it, unless `wm_mask_img` is given.
    model : str, path or weights.Model
        A bundled name, a model folder, or a loaded model.
    wm_mask_img : nibabel image, optional
        White matter, above zero; found by a mixture model if not given.
    rims : {'unmixed', 'grown'}
        What is done with the rims of lesions, which masks miss: the share of lesion in each voxel is estimated and
        taken out, and fluid inside the mask stays (`unmixing`); or the mask grows into them by `dilate` and
        `rim_voxels`.
    rim_img : nibabel image, optional
        A FLAIR of the session, on which a T1w's rims are seen better.
    dilate : int
        Voxels that the mask grows into white matter (thesis 3.5); within the slice where slices are thicker than 2 mm.
    rim_voxels : int
        Voxels that it may grow further, into white matter as dark (FLAIR: bright) as the rim of a lesion that the mask
        missed; see `inpaint.grow_to_rim`.
    num_inference_steps : int, optional
        DDIM steps; the model's default if not given.
    n_samples : int
        More than one: the mean of so many samples is filled in.
    device : {'auto', 'cpu', 'cuda'}
    seed : int

    Returns
    -------
    nibabel image
        On the grid of `image_img`, with its header; equal outside the mask that was used.

    Raises
    ------
    ValueError
        If an image cannot be used; the sentence says why.
    FileNotFoundError
        If the model is not found.
    """
    filling = fill(
        image_img,
        lesion_mask_img,
        tissue_img=tissue_img,
        model=model,
        wm_mask_img=wm_mask_img,
        dilate=dilate,
        rim_voxels=rim_voxels,
        rims=rims,
        rim_img=rim_img,
        num_inference_steps=num_inference_steps,
        n_samples=n_samples,
        device=device,
        seed=seed,
    )
    return as_loaded(filling.filled_img)


def fill(
    image_img,
    lesion_mask_img,
    *,
    tissue_img=None,
    model='fill-T1w',
    wm_mask_img=None,
    brain_mask_img=None,
    tissue_seg_img=None,
    kept_mask_img=None,
    dilate=1,
    rim_voxels=2,
    rims='unmixed',
    rim_img=None,
    num_inference_steps=None,
    n_samples=1,
    device='auto',
    seed=0,
    batch_size=8,
    mask_threshold=0.5,
    progress=None,
):
    """As `fill_lesions`, but returns a `Filling`: also the used mask, the deviation map, the table of lesions.

    `tissue_seg_img` (1 CSF, 2 grey matter, 3 white matter) is a segmentation of the T1w, `kept_mask_img` holds lesions
    that are to stay: they are neither filled nor taken for white matter. `progress` is that of `inpaint.fill_volume`.
    """
    check_image(image_img, 'image')
    given_mask = mask_on_grid(lesion_mask_img, image_img, mask_threshold)
    kept_mask = np.zeros_like(given_mask) if kept_mask_img is None else mask_on_grid(kept_mask_img, image_img)
    kept_mask &= ~given_mask
    if not given_mask.any():
        info = {'LesionVoxelsGiven': 0, 'LesionVoxelsUsed': 0, 'LesionVoxelsKept': int(kept_mask.sum()), 'Lesions': 0}
        info['SkullStripped'] = is_skull_stripped(preprocess.conform(plain(image_img, 'image')).get_fdata())
        reason = 'All lesions are to be kept' if kept_mask.any() else 'The lesion mask is empty'
        return Filling(
            copy_image(image_img),
            mask_image(given_mask, image_img),
            info=info,
            warnings=[f'{reason}: the output is a copy of the input.'],
        )
    device = choose_device(device)
    if not isinstance(model, weights.Model):
        model = weights.load_model(model, device)
    if model.modality == 'FLAIR' and tissue_img is None and wm_mask_img is None:
        raise ValueError(f'model {model.name} fills FLAIR images: it needs their T1w (tissue_img) or wm_mask_img')

    # 1. To the working grid: 1 mm, RAS.
    plain_img = plain(image_img, 'image')
    conformed_img = preprocess.conform(plain_img)
    image = conformed_img.get_fdata(dtype=np.float32)

    # 2. White matter, into which the mask may grow and whose median sets the scale.
    lesion_mask = preprocess.conform_mask(mask_image(given_mask, plain_img), conformed_img, threshold=0.05)
    t1w = image if tissue_img is None else t1w_on_grid(tissue_img, image_img, conformed_img)
    kept = preprocess.conform_mask(mask_image(kept_mask, plain_img), conformed_img, threshold=0.05)
    brain_mask, wm_mask, tissue_info = find_white_matter(
        t1w, lesion_mask | kept, conformed_img, wm_mask_img, brain_mask_img, tissue_seg_img
    )
    wm_mask &= ~kept
    if tissue_img is not None:
        tissue_info['SkullStripped'] = is_skull_stripped(image)

    # 3. The mask that is used, on the image's own grid.
    native_wm = preprocess.conform_mask(mask_image(wm_mask, conformed_img), plain_img) & ~kept_mask
    used_mask = masks.restrict_to_white_matter(given_mask, native_wm)
    step = masks.one_step(nib.affines.voxel_sizes(plain_img.affine))
    mix = None
    if rims == 'unmixed' and used_mask.any():
        mix = find_shares(
            plain_img, used_mask, native_wm, brain_mask, wm_mask, t1w, conformed_img, tissue_img is None, rim_img
        )
        used_mask, filled_mask = mix.touched, mix.filled
        hole = preprocess.touched_by(mask_image(filled_mask, plain_img), conformed_img)
        tissue = unmixing.tissue_alone(plain_img.get_fdata(dtype=np.float32), mix)
        image = preprocess.conform(nib.Nifti1Image(tissue, plain_img.affine)).get_fdata(dtype=np.float32)
    else:
        used_mask = masks.dilate_within(used_mask, native_wm, dilate, step)
        hole = preprocess.touched_by(mask_image(used_mask, plain_img), conformed_img)
        rim = inpaint.grow_to_rim(image, hole, wm_mask, rim_voxels, bright_lesions=model.modality == 'FLAIR') & ~hole
        if rim.any():
            rim = preprocess.conform_mask(mask_image(rim, conformed_img), plain_img) & native_wm
            # On another grid a thin rim falls apart: only what still touches the mask is taken.
            used_mask = ndimage.binary_propagation(used_mask, step, mask=used_mask | rim)
            hole = preprocess.touched_by(mask_image(used_mask, plain_img), conformed_img)
    place_notes = notes_on_place(image_img, lesion_mask_img)
    info = {
        'LesionVoxelsGiven': int(given_mask.sum()),
        'LesionVoxelsUsed': int(used_mask.sum()),
        'LesionVoxelsKept': int(kept_mask.sum()),
        **describe_mask(given_mask, used_mask, plain_img, brain_mask, conformed_img),
        **({'Dilation': dilate, 'RimVoxels': rim_voxels} if mix is None else unmixing.describe(mix, given_mask)),
        **tissue_info,
    }
    if not used_mask.any():
        warnings = ['No lesion touches white matter: the output is a copy of the input.', *place_notes]
        warnings += warnings_of(verdict.check_filling(info, [], model.modality))
        return Filling(copy_image(image_img), mask_image(used_mask, image_img), info=info, warnings=warnings)

    # 4. Sample on tiles that cover the lesions.
    scaling = preprocess.white_matter_scaling(image, wm_mask & ~hole)
    num_inference_steps = inpaint.choose_steps(num_inference_steps, model.plan['num_inference_steps'], n_samples)
    seeds = [(seed + 7919 * sample) % 2**63 for sample in range(n_samples)]
    fillings = inpaint.fill_volume(
        *(scaling.apply(image), hole, wm_mask, model, num_inference_steps, seeds, device, batch_size), progress=progress
    )
    fillings = scaling.invert(fillings)

    # 5. Back to the image's grid and its stored values, inside the mask only.
    before = one_volume(image_img)
    filled = before.astype(np.float64)
    filled[used_mask] = on_grid(image, hole, fillings.mean(axis=0), conformed_img, plain_img)[used_mask]
    if mix is not None:
        filled = unmixing.blend(before, filled, mix)
    sd_img = None
    if n_samples > 1:
        sd = on_grid(np.zeros_like(image), hole, fillings.std(axis=0), conformed_img, plain_img, order=1)
        sd_img = nib.Nifti1Image(np.where(used_mask, sd, 0).astype(np.float32), image_img.affine)
        sd_img.header.set_xyzt_units('mm')
    info |= {
        'Model': model.name,
        'WeightsSHA256': model.sha256,
        'RandomSeed': seed,
        'NumInferenceSteps': num_inference_steps,
        'NumSamples': n_samples,
        'Device': device,
        'VoxelsChanged': int((filled != before)[used_mask].sum()),
        'WhiteMatterMedian': float(1.5 / scaling.slope),
        'WhiteMatterDeviation': deviation_of(before, native_wm & ~used_mask),
    }
    filled_img = paste(image_img, filled, used_mask)
    after = one_volume(as_loaded(filled_img))
    faint_below = verdict.FAINT_BELOW_SD * (info['WhiteMatterDeviation'] or 0)
    lesion_sign = verdict.sign(model.modality)
    lesions = describe_lesions(
        *(before, after, given_mask, used_mask, native_wm, image_img.affine), lesion_sign * before, faint_below
    )
    warnings = place_notes + warnings_of(verdict.check_filling(info, lesions, model.modality))
    return Filling(filled_img, mask_image(used_mask, image_img), sd_img, lesions, info, warnings)


def choose_device(device):
    """`auto` is CUDA where there is one."""
    import torch

    available = torch.cuda.is_available()
    if device == 'cuda' and not available:
        raise ValueError('device is cuda, but torch finds no usable GPU; use --device cpu or auto')
    return ('cuda' if available else 'cpu') if device == 'auto' else device


def check_image(img, name):
    """Raise ValueError, with what was got and expected, if an image is not a volume of real numbers on a real grid."""
    shape, dtype, name = img.shape, img.get_data_dtype(), called(img, name)
    if len([n for n in shape[3:] if n != 1]) or len(shape) < 3 or min(shape[:3]) < 2:
        raise ValueError(f'{name} has shape {shape}, expected one 3D volume')
    if dtype.kind not in 'iufb':
        raise ValueError(f'{name} has data type {dtype}, expected integers or floats')
    if not np.isfinite(img.affine).all() or abs(np.linalg.det(img.affine[:3, :3])) < 1e-6:
        raise ValueError(f'{name} has no usable affine: {img.affine.tolist()}')
    sizes_mm = nib.affines.voxel_sizes(img.affine)
    if min(sizes_mm) < SMALLEST_VOXEL_MM or max(sizes_mm * shape[:3]) > LARGEST_IMAGE_MM:
        raise ValueError(
            f'{name} has {shape[0]} x {shape[1]} x {shape[2]} voxels of {" x ".join(f"{n:.4g}" for n in sizes_mm)} mm, '
            f'expected a head of at most {LARGEST_IMAGE_MM} mm, with voxels of at least {SMALLEST_VOXEL_MM} mm'
        )


def called(img, name):
    """What an image is called in a sentence: also by its file, if it comes from one."""
    path = img.get_filename()
    return name if path is None else f'{name} {str(path).rpartition("/")[2]}'


@contextlib.contextmanager
def reading(img):
    """Errors of an image whose data cannot be read become a sentence that names its file."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f'{called(img, "image")} is damaged, its data cannot be read: {error}') from None


def one_volume(img):
    """The volume of a 3D image, or of a 4D image with one volume: (X, Y, Z) float32 array, scaled."""
    with reading(img):
        return img.get_fdata(dtype=np.float32, caching='unchanged').reshape(img.shape[:3])


def plain(img, name):
    """An image as one volume of finite floats without spikes; ValueError if it is none."""
    check_image(img, name)
    values = np.nan_to_num(one_volume(img), posinf=0, neginf=0)
    preprocess.check_intensities(values, called(img, name))
    return nib.Nifti1Image(preprocess.without_spikes(values), img.affine)


def mask_on_grid(lesion_mask_img, image_img, threshold=0.5):
    """A lesion mask as a bool array on the grid of an image; see `is_lesion` for its values.

    If only one of the two headers says where it lies, the mask lies on the voxels of the image.

    Raises
    ------
    ValueError
        If the mask is no mask, or lies outside the image.
    """
    check_image(lesion_mask_img, 'lesion mask')
    name = called(lesion_mask_img, 'lesion mask')
    lesion_mask_img = beside(lesion_mask_img, image_img, 'lesion mask')
    inside = is_lesion(one_volume(lesion_mask_img), threshold, name)
    same_shape = inside.shape == image_img.shape[:3]
    same_grid = same_shape and np.allclose(lesion_mask_img.affine, image_img.affine, atol=1e-3)
    if same_grid or not inside.any():
        return inside if same_grid else np.zeros(image_img.shape[:3], dtype=bool)
    mask_img = nib.Nifti1Image(inside.astype(np.float32), lesion_mask_img.affine)
    resampled = preprocess.resample_to(mask_img, image_img, order=1) >= 0.5
    if not resampled.any():
        raise ValueError(f'{name} lies outside the image: their world coordinates do not overlap')
    return resampled


def is_lesion(values, threshold=0.5, name='lesion mask'):
    """Which values of a mask are lesions: whole numbers above zero; else (probabilities) from `threshold` on.

    What the values are counts, not how they are stored: probabilities are also stored as scaled integers, and labels
    as floats. What is no number is no lesion.

    Parameters
    ----------
    values : (X, Y, Z) float array
    threshold : float
    name : str
        Of the mask, for the sentence of an error.

    Raises
    ------
    ValueError
        If the values are neither.
    """
    values = np.nan_to_num(values, posinf=0, neginf=0)
    whole = np.rint(values)
    if np.abs(values - whole).max() < 1e-3:
        if whole.min() < 0 and whole.max() <= 0:
            raise ValueError(f'{name} has values from {whole.min():g} to 0, expected lesions above zero')
        return whole > 0
    if values.max() > HIGHEST_PROBABILITY:
        raise ValueError(
            f'{name} has values up to {values.max():g} that are no whole numbers, expected labels, or probabilities '
            'from 0 to 1'
        )
    return values >= threshold


def notes_on_place(image_img, lesion_mask_img):
    """What a person should know of where headers put an image and its mask: list of sentences."""
    notes = [NO_PLACE] if has_place(lesion_mask_img) != has_place(image_img) else []
    for name, img in (('image', image_img), ('lesion mask', lesion_mask_img)):
        apart_mm = forms_apart_mm(img)
        if apart_mm > MOST_FORMS_APART_MM:
            notes.append(
                f'sform and qform of the {name} lie {apart_mm:.0f} mm apart: the sform is used. Other programs may '
                'take the qform.'
            )
    if follows_qform(lesion_mask_img, image_img):
        notes.append(
            'The lesion mask lies where the qform puts the image: it was laid on the voxels of the image. Check the '
            'pictures.'
        )
    return notes


def forms_apart_mm(img):
    """How far sform and qform of a NIfTI header put a corner of the image apart, at most; 0 if it has not both."""
    if not isinstance(img, nib.Nifti1Pair) or not (img.header['sform_code'] and img.header['qform_code']):
        return 0.0
    try:
        forms = img.header.get_sform(), img.header.get_qform()
    except (ValueError, nib.spatialimages.HeaderDataError):  # a broken qform: the sform makes up for it
        return 0.0
    corners = [corner * (np.array(img.shape[:3]) - 1) for corner in np.ndindex(2, 2, 2)]
    sform, qform = (nib.affines.apply_affine(form, corners) for form in forms)
    return float(np.linalg.norm(sform - qform, axis=1).max())


def follows_qform(img, image_img):
    """True if an image lies where the qform puts another, whose sform is used and puts it elsewhere.

    So does a mask that was drawn in a program which takes the qform: it is meant on the voxels of the other.
    """
    if img.shape[:3] != image_img.shape[:3] or forms_apart_mm(image_img) <= MOST_FORMS_APART_MM:
        return False
    on_qform = np.allclose(img.affine, image_img.header.get_qform(), atol=1e-3)
    return on_qform and not np.allclose(img.affine, image_img.affine, atol=1e-3)


def has_place(img):
    """False if the header of a NIfTI file gives it no place in the world: what nibabel makes up then is none."""
    return not isinstance(img, nib.Nifti1Pair) or bool(img.header['sform_code'] or img.header['qform_code'])


def beside(img, image_img, name):
    """An image in the world of another: on the voxels of the other if only one has a place, or it `follows_qform`.

    Raises
    ------
    ValueError
        If it cannot lie on the voxels of the other, because they have other shapes.
    """
    if follows_qform(img, image_img):
        return with_affine(img, image_img.affine)
    if has_place(img) == has_place(image_img):
        return img
    if img.shape[:3] != image_img.shape[:3]:
        name = called(img, name)
        lost = f'the image says nothing of its place (sform_code and qform_code are 0), and {name} has'
        if has_place(image_img):
            lost = f'{name} says nothing of its place (sform_code and qform_code are 0) and has'
        raise ValueError(f'{lost} shape {img.shape[:3]}, expected that of the image, {image_img.shape[:3]}')
    return with_affine(img, image_img.affine)


def with_affine(img, affine, is_placed=True):
    """The voxels of an image at another place; `is_placed` is what `has_place` says of the result."""
    data = np.asanyarray(img.dataobj)
    placed = nib.Nifti1Image(data, affine, dtype=data.dtype)  # nibabel asks for it where it is int64
    if not is_placed:
        placed.header['sform_code'] = placed.header['qform_code'] = 0
    return placed


def t1w_on_grid(tissue_img, image_img, conformed_img):
    """The T1w of a session on the working grid (`conformed_img`) of another image of it; (X, Y, Z) float32 array.

    Raises
    ------
    ValueError
        If it is no image, or lies outside the other.
    """
    plain_img = plain(beside(tissue_img, image_img, 'T1w'), 'T1w')
    t1w = preprocess.resample_to(plain_img, conformed_img, order=3)
    if not t1w.any() and np.any(plain_img.dataobj):
        name = called(tissue_img, 'the T1w')
        raise ValueError(f'{name} lies outside the image: their world coordinates do not overlap')
    return t1w


def is_skull_stripped(image):
    """True if an image, (X, Y, Z) float array at 1 mm, shows a brain alone; see `tissues.is_skull_stripped`."""
    return tissues.is_skull_stripped(image)


def find_white_matter(t1w, lesion_mask, conformed_img, wm_mask_img=None, brain_mask_img=None, tissue_seg_img=None):
    """Brain mask and white matter on the working grid, and where they come from (for the sidecar)."""
    if wm_mask_img is not None:
        wm_mask = preprocess.conform_mask(wm_mask_img, conformed_img)
        info = {'WhiteMatterSource': 'given', 'SkullStripped': is_skull_stripped(t1w)}
        return ndimage.binary_dilation(wm_mask, iterations=6), wm_mask, info
    brain_mask, tissue_seg, info = find_tissues(t1w, lesion_mask, conformed_img, brain_mask_img, tissue_seg_img)
    wm_mask = tissues.claim_rim((tissue_seg == tissues.WHITE_MATTER) & ~lesion_mask, lesion_mask, brain_mask)
    return brain_mask, wm_mask, info


def find_shares(plain_img, lesion_mask, native_wm, brain_mask, wm_mask, t1w, conformed_img, is_t1w, rim_img=None):
    """Shares of fluid and lesion on an image's own grid (`unmixing.Unmixing`).

    Fluid is found on the T1w: on the image's own grid if it is one, else on the working grid.
    """
    image = plain_img.get_fdata(dtype=np.float32)
    brain = preprocess.conform_mask(mask_image(brain_mask, conformed_img), plain_img)
    voxel_mm = nib.affines.voxel_sizes(plain_img.affine)
    if is_t1w and rim_img is None:
        return unmixing.unmix(image, lesion_mask, native_wm, brain, voxel_mm)
    if is_t1w:
        shares = unmixing.unmix(image, lesion_mask, native_wm, brain, voxel_mm)
        flair_img = plain(beside(rim_img, plain_img, 'FLAIR'), 'FLAIR')
        flair = preprocess.resample_to(flair_img, plain_img, order=3)
        csf = unmixing.level_in_fluid(flair, shares.fluid, brain)
        evidence = unmixing.unmix(flair, lesion_mask, native_wm, brain, voxel_mm, shares.fluid, csf).lesion
        return unmixing.unmix(image, lesion_mask, native_wm, brain, voxel_mm, evidence=evidence)
    conformed_mask = preprocess.conform_mask(mask_image(lesion_mask, plain_img), conformed_img)
    fluid = unmixing.unmix(t1w, conformed_mask, wm_mask, brain_mask).fluid
    # A voxel that is larger than those of the T1w sees the average of them: a Gaussian of its width.
    wider_mm = np.sqrt(np.maximum(sizes_along(plain_img, conformed_img) ** 2 - 1, 0))
    fluid = ndimage.gaussian_filter(fluid, wider_mm / 2.355)
    fluid = np.clip(preprocess.resample_to(nib.Nifti1Image(fluid, conformed_img.affine), plain_img, order=1), 0, 1)
    fluid = np.where(brain, fluid, 1)
    return unmixing.unmix(
        image, lesion_mask, native_wm, brain, voxel_mm, fluid, unmixing.level_in_fluid(image, fluid, brain)
    )


def sizes_along(img, target_img):
    """Size of the voxels of an image along the axes of another, mm; (3,) array."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(img.affine), nib.io_orientation(target_img.affine))
    sizes_mm = np.empty(3)
    sizes_mm[turn[:, 0].astype(int)] = nib.affines.voxel_sizes(img.affine)
    return sizes_mm


def find_tissues(t1w, lesion_mask, conformed_img, brain_mask_img=None, tissue_seg_img=None):
    """Brain mask and tissue segmentation on the working grid, and where they come from (for the sidecar).

    A segmentation that is given is also the brain mask, if there is no other: its holes are closed, for tissues that
    it does not name.
    """
    if tissue_seg_img is not None:
        tissue_seg = preprocess.resample_to(tissue_seg_img, conformed_img, order=0).astype(np.uint8)
        brain_mask = ndimage.binary_fill_holes(ndimage.binary_closing(tissue_seg > 0, iterations=3)) | lesion_mask
        if brain_mask_img is not None:
            brain_mask = preprocess.conform_mask(brain_mask_img, conformed_img)
        info = {
            'SkullStripped': is_skull_stripped(t1w),
            'BrainMaskSource': 'extent of the tissue segmentation' if brain_mask_img is None else 'given',
            'WhiteMatterSource': 'given',
        }
        return brain_mask, tissue_seg, info
    if brain_mask_img is not None:
        brain_mask = preprocess.conform_mask(brain_mask_img, conformed_img)
        skull_stripped = bool((t1w[~brain_mask] <= 0.02 * t1w.max()).mean() > 0.99)
        source = 'given'
    else:
        brain_mask, skull_stripped = tissues.find_brain(t1w)
        source = 'foreground of a skull-stripped image' if skull_stripped else 'deepbet'
    info = {
        'SkullStripped': skull_stripped,
        'BrainMaskSource': source,
        'WhiteMatterSource': 'mixture of three normal distributions on the bias-corrected T1w',
    }
    return brain_mask, tissues.classify(t1w, brain_mask, lesion_mask), info


def describe_mask(given_mask, used_mask, img, brain_mask, conformed_img):
    """What the sidecar says of a mask: lesions that are filled, and what of it lies where no lesion can be filled."""
    dropped = given_mask & ~used_mask
    brain = preprocess.conform_mask(mask_image(brain_mask, conformed_img), img, threshold=0.05)
    return {
        'Lesions': masks.label_lesions(given_mask & used_mask)[1],
        'LesionsDropped': masks.label_lesions(dropped)[1],
        'LesionVoxelsDropped': int(dropped.sum()),
        'LesionVoxelsOutsideBrain': int((given_mask & ~brain).sum()),
        'BrainVolumeMl': round(float(brain_mask.sum()) / 1000, 1),  # the working grid has 1 mm
    }


def warnings_of(checks):
    """What a person should read before trusting the result: sentences."""
    return [check.sentence for check in checks if not check.passed]


def deviation_of(image, mask):
    """Robust standard deviation of an image in a mask; None if that is empty."""
    values = image[mask]
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if values.size else None


def on_grid(image, hole, values, conformed_img, target_img, order=3):
    """The conformed image with `values` in its hole, on the grid of the image it came from; (X, Y, Z) float32."""
    filled = image.copy()
    filled[hole] = values
    return preprocess.resample_to(nib.Nifti1Image(filled, conformed_img.affine), target_img, order)


def mask_image(mask, img):
    """A bool array as an uint8 image on the grid of an image."""
    mask_img = nib.Nifti1Image(mask.astype(np.uint8), img.affine)
    mask_img.header.set_xyzt_units('mm')
    if isinstance(img, nib.Nifti1Pair):
        for name in GEOMETRY:  # as they stand: not every header has a qform that can be computed
            mask_img.header[name] = img.header[name]
    return mask_img


def stored_values(img):
    """Values as they stand in the file, and their scaling: (array, slope, intercept)."""
    if nib.is_proxy(img.dataobj):
        with reading(img):
            return np.array(img.dataobj.get_unscaled()), img.dataobj.slope, img.dataobj.inter
    return np.array(img.dataobj), 1.0, 0.0


def with_stored_values(img, stored, slope, intercept):
    """An image with the header of `img` whose *stored* values are given: written as they are, read back scaled."""
    image_class = nib.Nifti2Image if isinstance(img, nib.Nifti2Image) else nib.Nifti1Image
    stored_img = image_class(stored, img.affine, img.header)
    if nib.is_proxy(img.dataobj):
        stored_img.header.set_slope_inter(slope, intercept)  # after the constructor, which forgets it
    return stored_img


def copy_image(img):
    """The same image, ready to be written with the same bytes of data."""
    return with_stored_values(img, *stored_values(img))


def paste(img, values, mask):
    """An image that has `values` inside the mask and, outside, the stored values of `img` bit for bit.

    Parameters
    ----------
    img : nibabel image
    values : (X, Y, Z) float array, in units of the image
    mask : (X, Y, Z) bool array
    """
    stored, slope, intercept = stored_values(img)
    inside = (values[mask] - intercept) / slope
    if stored.dtype.kind in 'iu':
        limits = np.iinfo(stored.dtype)
        inside = np.clip(np.rint(inside), limits.min, limits.max)
    stored.reshape(mask.shape)[mask] = inside.astype(stored.dtype)
    return with_stored_values(img, stored, slope, intercept)


def as_loaded(img):
    """An image as a reader of its file would see it, with scaled values."""
    return type(img).from_bytes(img.to_bytes())


def describe_lesions(before, after, given_mask, used_mask, wm_mask, affine, seen, faint_below=0):
    """One row per connected lesion of the given mask that was filled, largest first.

    What the mask grew by counts to the nearest lesion, so that lesions which meet when grown are still told apart.

    Parameters
    ----------
    before, after : (X, Y, Z) float array, in units of the image
    given_mask, used_mask, wm_mask : (X, Y, Z) bool array
    affine : (4, 4) array
    seen : (X, Y, Z) float array
        The image in which the lesions are to be seen, its sign turned where lesions are dark.
    faint_below : float
        Voxels of the given mask count as faint if `seen` is not so much more than in the white matter around.

    Returns
    -------
    list of dict
        `label`, `volume_mm3` (filled), `x_mm`, `y_mm`, `z_mm` (centre of mass, world), `mean_before`, `mean_after`,
        `mean_surrounding` (white matter within three voxels), `mean_touching` and `mean_beyond` (white matter that
        touches the lesion; and the next three voxels), `faint_percent`. Means of white matter are those of `before`;
        NaN where there is none.
    """
    labels, _ = masks.label_lesions(given_mask & used_mask)
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    labels = np.where(used_mask, labels[tuple(nearest)], 0)
    voxel_mm3 = abs(np.linalg.det(affine[:3, :3]))
    healthy = wm_mask & ~used_mask
    rows = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        box = masks.widen(box, 4)
        lesion = labels[box] == number
        shells = [ndimage.binary_dilation(lesion, masks.FULL_CONNECTIVITY, iterations=n) for n in (1, 3, 4)]
        touching, near, far = (shell & healthy[box] for shell in shells)
        faint = seen[box] - mean_of(seen[box], near) < faint_below
        centre = np.argwhere(lesion).mean(axis=0) + [s.start for s in box]
        x, y, z = nib.affines.apply_affine(affine, centre)
        rows.append(
            {
                'volume_mm3': lesion.sum() * voxel_mm3,
                'x_mm': x,
                'y_mm': y,
                'z_mm': z,
                'mean_before': before[box][lesion].mean(),
                'mean_after': after[box][lesion].mean(),
                'mean_surrounding': mean_of(before[box], near),
                'mean_touching': mean_of(before[box], touching),
                'mean_beyond': mean_of(before[box], far & ~touching),
                'faint_percent': 100 * mean_of(faint, lesion & given_mask[box]) if near.any() else np.nan,
            }
        )
    rows.sort(key=lambda row: -row['volume_mm3'])
    return [
        {'label': number} | {name: rounded(name, float(value)) for name, value in row.items()}
        for number, row in enumerate(rows, start=1)
    ]


def rounded(name, value):
    """A number for the table: to 0.001, but means, whose unit is that of the image, to seven digits."""
    return float(f'{value:.7g}') if name.startswith('mean_') else round(value, 3)


def mean_of(image, mask):
    """Mean of an image in a mask; NaN if that is empty."""
    return image[mask].mean() if mask.any() else np.nan
