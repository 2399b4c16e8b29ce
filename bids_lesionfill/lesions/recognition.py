"""Recognition of the modality of an image by its lesions and tissues: arrays in, numbers and sentences out."""

import numpy as np
from scipy import ndimage

from ..images import anatomy, masks, tissues
from ..modality import Modality

GAP_VOXELS, SHELL_VOXELS = 1, 5  # around lesions: what may still be lesion, and what they are held against
TISSUE_SHARE = 0.1  # of the 99th percentile; what is darker is no tissue
# Median of the lesions against that of their shell, in robust SD of the shell, on 20 images (Ljubljana, MSLesSeg):
# -2.3 to 0.1 on T1w (with and without contrast agent), 2.4 to 4.7 on FLAIR and T2w.
MIN_BRIGHT_SD = 1.2


def lesion_contrast(image: np.ndarray, lesion_mask: np.ndarray) -> float | None:
    """Compute how much brighter lesions are than the tissue around them, without knowing the tissues.

    Parameters
    ----------
    image : (X, Y, Z) float array
    lesion_mask : (X, Y, Z) bool array

    Returns
    -------
    float or None
        Difference of medians, in robust standard deviations of the shell around the lesions; None if there is no
        lesion or no shell.
    """
    if not lesion_mask.any() or not (image > 0).any():
        return None
    least = TISSUE_SHARE * np.percentile(image[image > 0], 99)
    box = masks.bounding_box(lesion_mask, SHELL_VOXELS)
    image, lesion_mask = image[box], lesion_mask[box]
    near, far = (ndimage.maximum_filter(lesion_mask, 2 * width + 1) for width in (GAP_VOXELS, SHELL_VOXELS))
    shell = image[far & ~near & (image > least)]
    if not shell.size:
        return None
    level = np.median(shell)
    deviation = 1.4826 * np.median(np.abs(shell - level))
    return float((np.median(image[lesion_mask]) - level) / max(deviation, 1e-3 * level))


def looks_like_t1w(image: np.ndarray, found: anatomy.Anatomy) -> bool | None:
    """Return True if grey matter is darker than white matter in an image on the grid of an anatomy; None if unknown."""
    grey, white = (image[found.tissue_seg == label] for label in (tissues.GREY_MATTER, tissues.WHITE_MATTER))
    return bool(np.median(grey) < np.median(white)) if grey.size and white.size else None


def mismatch(modality: Modality, contrast: float | None) -> str:
    """Return a sentence if lesions do not look as those of a modality do; empty if they do, or nothing is known.

    Parameters
    ----------
    modality : Modality
    contrast : float or None
        See `lesion_contrast`.
    """
    if contrast is None or modality.lesion_sign is None:
        return ''
    is_bright = contrast > MIN_BRIGHT_SD
    if is_bright == (modality.lesion_sign > 0):
        return ''
    found = 'brighter than' if is_bright else 'not brighter than'
    return (
        f'lesions are {found} the tissue around them ({contrast:.1f} SD), but those of {modality.name} images are '
        f'{modality.look}: is the image {modality.name}, and the mask at its place?'
    )


def check_tissues(image: np.ndarray, found: anatomy.Anatomy, modality: Modality) -> None:
    """Raise ValueError if an image that is taken for no T1w has darker grey than white matter, as a T1w has."""
    if modality.needs_t1w and looks_like_t1w(image, found):
        raise ValueError(
            f'grey matter is darker than white matter, as on a T1w, and the image is taken for a {modality.name}: give '
            "modality='T1w' (--modality T1w), or the right image"
        )
