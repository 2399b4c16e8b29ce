"""Masks and images on the grid of another image, by their headers."""

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from . import grid, nifti

MOST_FORMS_APART_MM = 1  # rounding is far less
HIGHEST_PROBABILITY = 1.1  # interpolation overshoots
NO_PLACE = (
    'The header of the lesion mask or that of the image says nothing of its place (sform_code and qform_code are 0): '
    'the mask was laid on the voxels of the image. Check the pictures.'
)


def mask_on_grid(lesion_mask_img: nib.Nifti1Image, image_img: nib.Nifti1Image, threshold: float = 0.5) -> np.ndarray:
    """Return a lesion mask as a bool array on the grid of an image; see `is_lesion` for its values.

    If only one of the two headers says where it lies, the mask lies on the voxels of the image.

    Raises
    ------
    ValueError
        If the mask is no mask, or lies outside the image.
    """
    nifti.check_image(lesion_mask_img, 'lesion mask')
    name = nifti.called(lesion_mask_img, 'lesion mask')
    lesion_mask_img = beside(lesion_mask_img, image_img, 'lesion mask')
    inside = is_lesion(nifti.one_volume(lesion_mask_img), threshold, name)
    same_shape = inside.shape == image_img.shape[:3]
    same_grid = same_shape and np.allclose(lesion_mask_img.affine, image_img.affine, atol=1e-3)
    if same_grid or not inside.any():
        return inside if same_grid else np.zeros(image_img.shape[:3], dtype=bool)
    mask_img = nib.Nifti1Image(inside.astype(np.float32), lesion_mask_img.affine)
    resampled = grid.resample_to(mask_img, image_img, order=1) >= 0.5
    if not resampled.any():
        raise ValueError(f'{name} lies outside the image: their world coordinates do not overlap')
    return resampled


def is_lesion(values: np.ndarray, threshold: float = 0.5, name: str = 'lesion mask') -> np.ndarray:
    """Return where the values of a mask are lesions.

    Whole numbers above zero, or probabilities of at least `threshold`.

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


def notes_on_place(image_img: nib.Nifti1Image, lesion_mask_img: nib.Nifti1Image) -> list[str]:
    """Return warnings on where the headers place an image and its mask: list of sentences."""
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


def forms_apart_mm(img: nib.Nifti1Image) -> float:
    """Return the largest distance of a corner of the image by sform and by qform; 0 if one of them is not set."""
    if not isinstance(img, nib.Nifti1Pair) or not (img.header['sform_code'] and img.header['qform_code']):
        return 0.0
    try:
        forms = img.header.get_sform(), img.header.get_qform()
    except (ValueError, HeaderDataError):  # a broken qform: the sform makes up for it
        return 0.0
    corners = [corner * (np.array(img.shape[:3]) - 1) for corner in np.ndindex(2, 2, 2)]
    sform, qform = (nib.affines.apply_affine(form, corners) for form in forms)
    return float(np.linalg.norm(sform - qform, axis=1).max())


def follows_qform(img: nib.Nifti1Image, image_img: nib.Nifti1Image) -> bool:
    """Return True if an image lies where the qform puts another, whose sform is used and puts it elsewhere.

    So does a mask that was drawn in a program which takes the qform: it is meant on the voxels of the other.
    """
    if img.shape[:3] != image_img.shape[:3] or forms_apart_mm(image_img) <= MOST_FORMS_APART_MM:
        return False
    on_qform = np.allclose(img.affine, image_img.header.get_qform(), atol=1e-3)
    return on_qform and not np.allclose(img.affine, image_img.affine, atol=1e-3)


def has_place(img: nib.Nifti1Image) -> bool:
    """Return False if neither sform nor qform is set (nibabel then falls back to a default affine)."""
    return not isinstance(img, nib.Nifti1Pair) or bool(img.header['sform_code'] or img.header['qform_code'])


def beside(img: nib.Nifti1Image, image_img: nib.Nifti1Image, name: str) -> nib.Nifti1Image:
    """Return an image with the affine of a reference: if only one header sets one, or it `follows_qform`.

    Raises
    ------
    ValueError
        If it cannot lie on the voxels of the other, because they have other shapes.
    """
    if follows_qform(img, image_img):
        return nifti.with_affine(img, image_img.affine)
    if has_place(img) == has_place(image_img):
        return img
    if img.shape[:3] != image_img.shape[:3]:
        name = nifti.called(img, name)
        lost = f'the image says nothing of its place (sform_code and qform_code are 0), and {name} has'
        if has_place(image_img):
            lost = f'{name} says nothing of its place (sform_code and qform_code are 0) and has'
        raise ValueError(f'{lost} shape {img.shape[:3]}, expected that of the image, {image_img.shape[:3]}')
    return nifti.with_affine(img, image_img.affine)


def t1w_on_grid(
    tissue_img: nib.Nifti1Image, image_img: nib.Nifti1Image, conformed_img: nib.Nifti1Image
) -> nib.Nifti1Image:
    """Return the T1w of a session on the working grid (`conformed_img`) of another image of it.

    (X, Y, Z) float32 array.

    Raises
    ------
    ValueError
        If it is no image, or lies outside the other.
    """
    plain_img = nifti.plain(beside(tissue_img, image_img, 'T1w'), 'T1w')
    t1w = grid.resample_to(plain_img, conformed_img, order=3)
    if not t1w.any() and np.any(plain_img.dataobj):
        name = nifti.called(tissue_img, 'the T1w')
        raise ValueError(f'{name} lies outside the image: their world coordinates do not overlap')
    return t1w


def sizes_along(img: nib.Nifti1Image, target_img: nib.Nifti1Image) -> np.ndarray:
    """Return size of the voxels of an image along the axes of another, mm; (3,) array."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(img.affine), nib.io_orientation(target_img.affine))
    sizes_mm = np.empty(3)
    sizes_mm[turn[:, 0].astype(int)] = nib.affines.voxel_sizes(img.affine)
    return sizes_mm


def on_grid(
    image: np.ndarray,
    hole: np.ndarray,
    values: np.ndarray,
    conformed_img: nib.Nifti1Image,
    target_img: nib.Nifti1Image,
    order: int = 3,
) -> np.ndarray:
    """Return the conformed image with `values` in its hole, on the grid of the image it came from.

    (X, Y, Z) float32.
    """
    filled = image.copy()
    filled[hole] = values
    return grid.resample_to(nib.Nifti1Image(filled, conformed_img.affine), target_img, order)


def same_grid(img: nib.Nifti1Image, other: nib.Nifti1Image) -> bool:
    """Return True if two images share a grid."""
    return img.shape[:3] == other.shape[:3] and np.allclose(img.affine, other.affine, atol=1e-3)


def moved(img: nib.Nifti1Image, transform: np.ndarray, target_img: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return an image whose affine is transformed by a (4, 4) matrix into the world of another; None stays None.

    If the header of the other says nothing of its place, nor does that of the result: both are meant in the world that
    nibabel makes up for it.
    """
    return None if img is None else nifti.with_affine(img, transform @ img.affine, has_place(target_img))


def laid_over(img: nib.Nifti1Image, transform: np.ndarray, target_img: nib.Nifti1Image) -> np.ndarray:
    """Transform an image by a (4, 4) matrix and resample it to the grid of another; (X, Y, Z) float32 array."""
    return grid.resample_to(moved(nifti.plain(img, 'image'), transform, target_img), target_img, order=1)
