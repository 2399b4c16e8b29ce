"""From the files that were found for an image to images in one world: which lesions, whose tissues, FLAIR to T1w."""

from dataclasses import dataclass, field, replace

import nibabel as nib
import numpy as np

from ..images import grid, masks, nifti, placement, registration, segmentations
from ..layout.files import open_image

MAX_SHIFT_MM = 1  # up to this, world coordinates agree
MIN_GAIN = 1.02  # of mutual information; less is what interpolation and noise give


@dataclass(frozen=True)
class Loaded:
    """Images for `fill.fill`, in the world of the image."""

    image_img: nib.Nifti1Image
    lesion_mask_img: nib.Nifti1Image  # what is to be filled
    kept_mask_img: nib.Nifti1Image | None = None  # lesions that stay
    tissue_img: nib.Nifti1Image | None = None
    brain_mask_img: nib.Nifti1Image | None = None
    tissue_seg_img: nib.Nifti1Image | None = None
    flair_to_t1w: np.ndarray | None = None  # (4, 4), world to world; None if their worlds agree
    info: dict = field(default_factory=dict)  # for the sidecar
    warnings: list = field(default_factory=list)


def settle(image):
    """An image without the FLAIR of its session if the mask does not lie on it, or both are on one grid.

    Headers are read. A mask that names no space lies on the FLAIR if it has its grid and not that of the T1w.
    """
    if image.flair_file is None or image.lesion_mask_file is None:
        return image
    t1w_img, mask_img = open_image(image.image_file), open_lesion_mask(image)
    if placement.same_grid(mask_img, t1w_img):  # then nobody needs the FLAIR, nor that it can be read
        return replace(image, flair_file=None)
    flair_img = open_image(image.flair_file)
    on_flair = image.mask_space == 'FLAIR' or placement.same_grid(mask_img, flair_img)
    if not on_flair or placement.same_grid(flair_img, t1w_img):
        return replace(image, flair_file=None)
    return replace(image, sources=(*image.sources, image.flair_uri))


def load(image, mask_threshold=0.5, lesion_labels=(), min_lesion_volume_mm3=0):
    """Read the files of an image and bring them into its world.

    Where a FLAIR is in play and is not on the grid of the T1w, the two are registered (rigid). If that moves the FLAIR
    by more than 1 mm and tells more, it is taken: the affines of what lies in the other world are changed, and nothing
    is resampled twice. Else world coordinates agree and are left alone.

    Parameters
    ----------
    image : layout.Inputs
        From `settle`.
    mask_threshold : float
        See `fill.mask_on_grid`.
    lesion_labels : sequence of int
        Values of the mask that are to be filled; all if empty.
    min_lesion_volume_mm3 : float
        Smaller lesions stay.

    Returns
    -------
    Loaded

    Raises
    ------
    ValueError
        If a mask does not hold the labels.
    """
    image_img, mask_img = open_image(image.image_file), open_lesion_mask(image)
    wanted_img, kept_img = select_lesions(
        mask_img, mask_threshold, image.lesion_labels, lesion_labels, min_lesion_volume_mm3
    )
    tissue_img = open_image(image.tissue_file) if image.tissue_file else None
    brain_mask_img = open_brain_mask(image)
    t1w_img = tissue_img or image_img
    tissue_seg_img, source, notes = load_segmentation(image.segmentation, t1w_img)
    info = {'WhiteMatterSource': source} if source else {}
    to_t1w, about = way_to_t1w(image)
    if about:
        info['FlairRegistration'] = about
    if to_t1w is not None:
        notes = [*notes, shift_note(about)]
        if tissue_img is None:  # a T1w, whose mask was drawn on the FLAIR
            wanted_img, kept_img = (placement.moved(img, to_t1w, image_img) for img in (wanted_img, kept_img))
        else:  # a FLAIR: what belongs to the T1w moves
            back = np.linalg.inv(to_t1w)
            if not drawn_on_flair(image):
                wanted_img, kept_img = (placement.moved(img, back, image_img) for img in (wanted_img, kept_img))
            tissue_img, brain_mask_img, tissue_seg_img = (
                placement.moved(img, back, image_img) for img in (tissue_img, brain_mask_img, tissue_seg_img)
            )
    return Loaded(
        image_img, wanted_img, kept_img, tissue_img, brain_mask_img, tissue_seg_img, to_t1w, info, list(notes)
    )


def open_lesion_mask(image):
    """The lesion mask of an image; on the voxels of the FLAIR if it follows the FLAIR's qform, not its sform."""
    mask_img = open_image(image.lesion_mask_file)
    flair_file = image.image_file if image.tissue_file else image.flair_file
    if flair_file is None or placement.same_grid(mask_img, open_image(image.t1w_file)):  # then nobody needs the FLAIR
        return mask_img
    flair_img = open_image(flair_file)
    return nifti.with_affine(mask_img, flair_img.affine) if placement.follows_qform(mask_img, flair_img) else mask_img


def open_brain_mask(image):
    """The brain mask that was found for an image, read, in the world of its T1w; None without."""
    if not image.brain_mask_file:
        return None
    brain_mask_img = placement.beside(open_image(image.brain_mask_file), open_image(image.t1w_file), 'brain mask')
    return nifti.plain(brain_mask_img, 'brain mask')


def lesions_of(image, mask_threshold=0.5, to_t1w=None, labels=(), min_volume_mm3=0):
    """Lesions of an image's mask in the world of the T1w: zeros and ones, or probabilities; None without a mask.

    Parameters
    ----------
    image : layout.Inputs
    mask_threshold : float
    to_t1w : (4, 4) array, optional
        See `way_to_t1w`: a mask that was drawn on the FLAIR is moved by it.
    labels, min_volume_mm3
        Which lesions, all by default; see `select_lesions`.
    """
    if image.lesion_mask_file is None:
        return None
    mask_img, _ = select_lesions(open_lesion_mask(image), mask_threshold, image.lesion_labels, labels, min_volume_mm3)
    if to_t1w is None or not drawn_on_flair(image):
        return mask_img
    return placement.moved(mask_img, to_t1w, open_image(image.t1w_file))


def drawn_on_flair(image):
    """True if the lesion mask of an image (of `settle`) lies in the world of the FLAIR, not of the T1w."""
    if image.tissue_file is None:
        return image.flair_file is not None
    mask_img, t1w_img = open_lesion_mask(image), open_image(image.tissue_file)
    return not (image.mask_space == 'T1w' or (image.mask_space is None and placement.same_grid(mask_img, t1w_img)))


def way_to_t1w(image):
    """World of the FLAIR to world of the T1w, where both are in play and their headers do not agree.

    Parameters
    ----------
    image : layout.Inputs
        From `settle`.

    Returns
    -------
    to_t1w : (4, 4) array or None
    about : dict for the sidecar, empty if nothing had to be registered; see `align`
    """
    flair_file = image.image_file if image.tissue_file else image.flair_file
    if flair_file is None:
        return None, {}
    flair_img, t1w_img = open_image(flair_file), open_image(image.t1w_file)
    return (None, {}) if placement.same_grid(flair_img, t1w_img) else align(flair_img, t1w_img)


def shift_note(about):
    """What a person should read where a FLAIR was registered."""
    return (
        f'FLAIR and T1w differ by up to {about["ShiftMm"]:.1f} mm by their headers: the FLAIR was registered. '
        'Look at the overlay.'
    )


def align(flair_img, t1w_img):
    """World of a FLAIR to world of a T1w, if their headers do not agree: ((4, 4) array or None, dict for the sidecar).

    See `registration.rigid`.
    """
    flair_img, t1w_img = nifti.plain(flair_img, 'FLAIR'), nifti.plain(t1w_img, 'T1w')
    flair = flair_img.get_fdata(dtype=np.float32)
    to_t1w, (before, after) = registration.rigid(
        flair, flair_img.affine, t1w_img.get_fdata(dtype=np.float32), t1w_img.affine
    )
    shift_mm = registration.largest_shift_mm(to_t1w, flair, flair_img.affine)
    used = bool(shift_mm > MAX_SHIFT_MM and after > MIN_GAIN * before)
    about = {
        'Method': 'rigid, mutual information',
        'ShiftMm': round(shift_mm, 2),
        'InformationByHeaders': round(before, 4),
        'InformationRegistered': round(after, 4),
        'Used': used,
    }
    return (to_t1w if used else None), about


def select_lesions(mask_img, threshold=0.5, holds=(), labels=(), min_volume_mm3=0):
    """Which lesions are to be filled, and which stay: two uint8 images on the grid of the mask, the second may be None.

    Parameters
    ----------
    mask_img : nibabel image
    threshold : float
        See `fill.mask_on_grid`.
    holds : sequence of int
        Values that are lesions, where the file holds other things too.
    labels : sequence of int
        Values that are to be filled; all lesions if empty.
    min_volume_mm3 : float
        Connected lesions that are smaller stay.

    Raises
    ------
    ValueError
        If the file has none of the labels.
    """
    nifti.check_image(mask_img, 'lesion mask')
    if not (holds or labels or min_volume_mm3):
        return mask_img, None
    values = np.rint(np.nan_to_num(nifti.one_volume(mask_img)))
    lesions = np.isin(values, holds) if holds else placement.mask_on_grid(mask_img, mask_img, threshold)
    wanted = lesions
    if labels:
        wanted = np.isin(values, labels)
        missing = sorted(set(labels) - set(np.unique(values)))
        if len(missing) == len(set(labels)) and lesions.any():
            present = [f'{value:g}' for value in np.unique(values[lesions])[:10]]
            raise ValueError(f'--lesion-labels {missing}: the lesion mask has none of them, but {", ".join(present)}')
    if min_volume_mm3:
        numbers, _ = masks.label_lesions(wanted)
        volumes_mm3 = np.bincount(numbers.flat) * abs(np.linalg.det(mask_img.affine[:3, :3]))
        volumes_mm3[0] = 0
        wanted = (volumes_mm3 >= min_volume_mm3)[numbers]
    kept = lesions & ~wanted
    return nifti.mask_image(wanted, mask_img), nifti.mask_image(kept, mask_img) if kept.any() else None


def load_segmentation(segmentation, t1w_img):
    """Tissue classes by another tool: (image or None, source in words, warnings).

    What does not fit the T1w is left out with a warning, and white matter is found without it.

    Parameters
    ----------
    segmentation : layout.Segmentation or None
    t1w_img : nibabel image
    """
    if segmentation is None:
        return None, '', []
    try:
        seg_imgs = [open_image(path) for path in segmentation.files]
        plain_t1w = nifti.plain(t1w_img, 'T1w')
        t1w = grid.resample_to(plain_t1w, seg_imgs[0], order=1)
        if len(seg_imgs) == 3:
            tissue_seg = segmentations.most_probable(np.stack([nifti.one_volume(img) for img in seg_imgs]))
        else:
            labels = np.rint(np.nan_to_num(nifti.one_volume(seg_imgs[0]))).astype(int)
            if segmentation.table == 'freesurfer':
                tissue_seg = segmentations.from_freesurfer(labels)
            elif segmentation.table:
                tissue_seg = segmentations.from_table(labels, segmentation.table)
            else:
                tissue_seg = segmentations.by_intensity(labels, t1w)
        segmentations.check_fit(tissue_seg, t1w)
    except (ValueError, OSError) as error:
        names = ', '.join(path.name for path in segmentation.files)
        return None, '', [f'{names} is not used as tissue segmentation: {error}.']
    return nib.Nifti1Image(tissue_seg, seg_imgs[0].affine), segmentation.source, []
