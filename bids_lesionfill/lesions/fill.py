"""One image, T1w or FLAIR: conform, find white matter, restrict and grow the mask, sample, paste back. No files."""

from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..diffusion import models, registry
from ..diffusion.filler import Sampling
from ..images import anatomy, grid, masks, nifti, placement
from ..modality import get
from . import checks, contrasts, tables, unmixing
from . import texture as textures

TEXTURE_STREAM = 1  # of random numbers, apart from those of the model


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
    modality=None,
    wm_mask_img=None,
    dilate=1,
    rim_voxels=2,
    rims='unmixed',
    rim_img=None,
    texture='sampled',
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
        All modalities but T1w need it, unless `wm_mask_img` is given.
    model : str, path or Filler
        The name of a bundled model or of another filler (`biharmonic`, ...; see `diffusion.registry`), a model folder,
        or a loaded filler.
    modality : str, optional
        What the image is (`modality.MODALITIES`); that which the model was made for if not given.
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
    texture : {'sampled', 'mean'}
        Fill with a sample, which has the noise of this image's white matter (`texture`), or with the smooth estimate of
        the mean.
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
        modality=modality,
        wm_mask_img=wm_mask_img,
        dilate=dilate,
        rim_voxels=rim_voxels,
        rims=rims,
        rim_img=rim_img,
        texture=texture,
        num_inference_steps=num_inference_steps,
        n_samples=n_samples,
        device=device,
        seed=seed,
    )
    return nifti.as_loaded(filling.filled_img)


def fill(
    image_img,
    lesion_mask_img,
    *,
    tissue_img=None,
    model='fill-T1w',
    modality=None,
    wm_mask_img=None,
    brain_mask_img=None,
    tissue_seg_img=None,
    kept_mask_img=None,
    dilate=1,
    rim_voxels=2,
    rims='unmixed',
    rim_img=None,
    texture='sampled',
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
    nifti.check_image(image_img, 'image')
    given_mask = placement.mask_on_grid(lesion_mask_img, image_img, mask_threshold)
    kept_mask = np.zeros_like(given_mask) if kept_mask_img is None else placement.mask_on_grid(kept_mask_img, image_img)
    kept_mask &= ~given_mask
    if not given_mask.any():
        info = {'LesionVoxelsGiven': 0, 'LesionVoxelsUsed': 0, 'LesionVoxelsKept': int(kept_mask.sum()), 'Lesions': 0}
        info['SkullStripped'] = anatomy.is_skull_stripped(grid.conform(nifti.plain(image_img, 'image')).get_fdata())
        reason = 'All lesions are to be kept' if kept_mask.any() else 'The lesion mask is empty'
        return Filling(
            nifti.copy_image(image_img),
            nifti.mask_image(given_mask, image_img),
            info=info,
            warnings=[f'{reason}: the output is a copy of the input.'],
        )
    device = models.choose_device(device)
    model = registry.load_filler(model, device, modality)
    if get(model.modality).needs_t1w and tissue_img is None and wm_mask_img is None:
        raise ValueError(
            f'model {model.name} fills {model.modality} images: it needs their T1w (tissue_img) or wm_mask_img'
        )

    # 1. To the working grid: 1 mm, RAS.
    plain_img = nifti.plain(image_img, 'image')
    conformed_img = grid.conform(plain_img)
    image = conformed_img.get_fdata(dtype=np.float32)

    # 2. White matter, into which the mask may grow and whose median sets the scale.
    lesion_mask = grid.conform_mask(nifti.mask_image(given_mask, plain_img), conformed_img, threshold=0.05)
    t1w = image if tissue_img is None else placement.t1w_on_grid(tissue_img, image_img, conformed_img)
    kept = grid.conform_mask(nifti.mask_image(kept_mask, plain_img), conformed_img, threshold=0.05)
    brain_mask, wm_mask, tissue_info = anatomy.find_white_matter(
        t1w, lesion_mask | kept, conformed_img, wm_mask_img, brain_mask_img, tissue_seg_img
    )
    wm_mask &= ~kept
    if tissue_img is not None:
        tissue_info['SkullStripped'] = anatomy.is_skull_stripped(image)

    # 3. The mask that is used, on the image's own grid.
    native_wm = grid.conform_mask(nifti.mask_image(wm_mask, conformed_img), plain_img) & ~kept_mask
    used_mask = masks.restrict_to_white_matter(given_mask, native_wm)
    usual_sign = get(model.modality).lesion_sign
    lesion_sign = contrasts.lesion_sign(image, lesion_mask, wm_mask & ~lesion_mask, usual_sign)
    step = masks.one_step(nib.affines.voxel_sizes(plain_img.affine))
    mix = None
    if rims == 'unmixed' and used_mask.any():
        mix = find_shares(
            plain_img, used_mask, native_wm, brain_mask, wm_mask, t1w, conformed_img, tissue_img is None, rim_img
        )
        used_mask, filled_mask = mix.touched, mix.filled
        hole = grid.touched_by(nifti.mask_image(filled_mask, plain_img), conformed_img)
        tissue = unmixing.tissue_alone(plain_img.get_fdata(dtype=np.float32), mix)
        image = grid.conform(nib.Nifti1Image(tissue, plain_img.affine)).get_fdata(dtype=np.float32)
    else:
        tissue = plain_img.get_fdata(dtype=np.float32)
        used_mask = masks.dilate_within(used_mask, native_wm, dilate, step)
        hole = grid.touched_by(nifti.mask_image(used_mask, plain_img), conformed_img)
        rim = contrasts.grow_to_rim(image, hole, wm_mask, rim_voxels, bright_lesions=lesion_sign > 0) & ~hole
        if rim.any():
            rim = grid.conform_mask(nifti.mask_image(rim, conformed_img), plain_img) & native_wm
            # On another grid a thin rim falls apart: only what still touches the mask is taken.
            used_mask = ndimage.binary_propagation(used_mask, step, mask=used_mask | rim)
            hole = grid.touched_by(nifti.mask_image(used_mask, plain_img), conformed_img)
    place_notes = placement.notes_on_place(image_img, lesion_mask_img)
    info = {
        'LesionVoxelsGiven': int(given_mask.sum()),
        'LesionVoxelsUsed': int(used_mask.sum()),
        'LesionVoxelsKept': int(kept_mask.sum()),
        'LesionSign': lesion_sign,
        **tables.describe_mask(given_mask, used_mask, plain_img, brain_mask, conformed_img),
        **({'Dilation': dilate, 'RimVoxels': rim_voxels} if mix is None else unmixing.describe(mix, given_mask)),
        **tissue_info,
    }
    if not used_mask.any():
        warnings = ['No lesion touches white matter: the output is a copy of the input.', *place_notes]
        warnings += checks.warnings_of(checks.check_filling(info, [], model.modality))
        return Filling(
            nifti.copy_image(image_img), nifti.mask_image(used_mask, image_img), info=info, warnings=warnings
        )

    # 4. Sample on tiles that cover the lesions.
    scaling = grid.white_matter_scaling(image, wm_mask & ~hole)
    seeds = tuple((seed + 7919 * sample) % 2**63 for sample in range(n_samples))
    sampling = Sampling(seeds, num_inference_steps, device, batch_size, progress)
    fillings = scaling.invert(model.fill(scaling.apply(image), hole, wm_mask, sampling))

    # 5. Back to the image's grid and its stored values, inside the mask only.
    before = nifti.one_volume(image_img)
    filled = before.astype(np.float64)
    filled[used_mask] = placement.on_grid(image, hole, fillings.mean(axis=0), conformed_img, plain_img)[used_mask]
    if texture == 'sampled' and not model.has_texture:
        filled = add_texture(
            tissue, filled, used_mask if mix is None else mix.filled, native_wm & ~used_mask, plain_img, seed
        )
    if mix is not None:
        filled = unmixing.blend(plain_img.get_fdata(), filled, mix)  # not `before`: it may hold what is no number
    sd_img = None
    if n_samples > 1:
        sd = placement.on_grid(np.zeros_like(image), hole, fillings.std(axis=0), conformed_img, plain_img, order=1)
        sd_img = nib.Nifti1Image(np.where(used_mask, sd, 0).astype(np.float32), image_img.affine)
        sd_img.header.set_xyzt_units('mm')
    info |= {
        **model.info(sampling),
        'NumSamples': n_samples,
        'Device': device,
        'Texture': "the filler's own" if model.has_texture else texture,
        'VoxelsChanged': int((filled != before)[used_mask].sum()),
        'WhiteMatterMedian': float(1.5 / scaling.slope),
        'WhiteMatterDeviation': tables.deviation_of(before, native_wm & ~used_mask),
    }
    filled_img = nifti.paste(image_img, filled, used_mask)
    after = nifti.one_volume(nifti.as_loaded(filled_img))
    faint_below = checks.FAINT_BELOW_SD * (info['WhiteMatterDeviation'] or 0)
    lesions = tables.describe_lesions(
        *(before, after, given_mask, used_mask, native_wm, image_img.affine),
        (usual_sign or lesion_sign) * before,
        faint_below,
    )
    warnings = place_notes + checks.warnings_of(checks.check_filling(info, lesions, model.modality))
    return Filling(filled_img, nifti.mask_image(used_mask, image_img), sd_img, lesions, info, warnings)


def add_texture(tissue, filled, hole, wm_mask, img, seed):
    """Return a filling of the mean with the texture of white matter; see `texture.add_texture`.

    Parameters
    ----------
    tissue : (X, Y, Z) float array
        The image without rims and fluid next to the hole.
    filled : (X, Y, Z) float array
        The mean inside the hole; elsewhere what is returned there.
    hole, wm_mask : (X, Y, Z) bool array
    img : nibabel image
        Gives the voxel size.
    seed : int
    """
    rng = np.random.default_rng([seed, TEXTURE_STREAM])
    # In the order of RAS, so that the numbers drawn for a place do not depend on how the image is stored.
    to_ras = nib.io_orientation(img.affine)
    back = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], to_ras)
    voxel_mm = nib.affines.voxel_sizes(img.affine)[np.argsort(to_ras[:, 0])]
    arrays = [nib.orientations.apply_orientation(array, to_ras) for array in (tissue, filled, hole, wm_mask)]
    sampled = nib.orientations.apply_orientation(textures.add_texture(*arrays, rng, voxel_mm), back)
    return np.where(hole, sampled, filled)


def find_shares(plain_img, lesion_mask, native_wm, brain_mask, wm_mask, t1w, conformed_img, is_t1w, rim_img=None):
    """Shares of fluid and lesion on an image's own grid (`unmixing.Unmixing`).

    Fluid is found on the T1w: on the image's own grid if it is one, else on the working grid.
    """
    image = plain_img.get_fdata(dtype=np.float32)
    brain = grid.conform_mask(nifti.mask_image(brain_mask, conformed_img), plain_img)
    voxel_mm = nib.affines.voxel_sizes(plain_img.affine)
    if is_t1w and rim_img is None:
        return unmixing.unmix(image, lesion_mask, native_wm, brain, voxel_mm)
    if is_t1w:
        shares = unmixing.unmix(image, lesion_mask, native_wm, brain, voxel_mm)
        flair_img = nifti.plain(placement.beside(rim_img, plain_img, 'FLAIR'), 'FLAIR')
        flair = grid.resample_to(flair_img, plain_img, order=3)
        csf = unmixing.level_in_fluid(flair, shares.fluid, brain)
        evidence = unmixing.unmix(flair, lesion_mask, native_wm, brain, voxel_mm, shares.fluid, csf).lesion
        return unmixing.unmix(image, lesion_mask, native_wm, brain, voxel_mm, evidence=evidence)
    conformed_mask = grid.conform_mask(nifti.mask_image(lesion_mask, plain_img), conformed_img)
    fluid = unmixing.unmix(t1w, conformed_mask, wm_mask, brain_mask).fluid
    # A voxel that is larger than those of the T1w sees the average of them: a Gaussian of its width.
    wider_mm = np.sqrt(np.maximum(placement.sizes_along(plain_img, conformed_img) ** 2 - 1, 0))
    fluid = ndimage.gaussian_filter(fluid, wider_mm / 2.355)
    fluid = np.clip(grid.resample_to(nib.Nifti1Image(fluid, conformed_img.affine), plain_img, order=1), 0, 1)
    fluid = np.where(brain, fluid, 1)
    return unmixing.unmix(
        image, lesion_mask, native_wm, brain, voxel_mm, fluid, unmixing.level_in_fluid(image, fluid, brain)
    )
