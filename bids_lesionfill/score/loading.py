"""Read the masks of a truth and of a prediction onto one grid."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..images import grid, nifti, placement
from ..layout import files
from . import cases

logger = logging.getLogger('bids_lesionfill')


@dataclass(frozen=True)
class Loaded:
    """Masks of a case on the grid of the truth: `(X, Y, Z)` bool arrays, RAS+."""

    truth: np.ndarray
    prediction: np.ndarray
    ignored: np.ndarray  # the patient's own lesions; empty if they are part of the truth
    affine: np.ndarray
    voxel_sizes_mm: tuple[float, ...]
    images: dict[str, np.ndarray]  # modality -> (X, Y, Z) float32 array on the same grid


def load(case: cases.Case, threshold: float = 0.5) -> Loaded:
    """Read the masks of a case onto the grid of its truth, in RAS+ orientation.

    Parameters
    ----------
    case : Case
    threshold : float
        Of probabilities.

    Returns
    -------
    Loaded

    Raises
    ------
    ValueError
        If a file cannot be read, is no mask, or lies elsewhere.
    """
    truth_img = open_mask(case.truth_file, case.truth_labels, threshold)
    truth = np.asarray(truth_img.dataobj) > 0
    prediction = resample_mask(open_mask(case.prediction_file, case.prediction_labels, threshold), truth_img)
    ignored = np.zeros_like(truth)
    if case.all_lesions_file:
        ignored = resample_mask(open_mask(case.all_lesions_file, (), threshold), truth_img) & ~truth
    images = {}
    for modality, path in case.images.items():
        try:
            images[modality] = resample_image(nifti.plain(files.open_image(path), modality), truth_img)
        except ValueError as error:
            logger.warning('%s: %s is not used: %s', case.scan, path.name, error)
    turn = nib.io_orientation(truth_img.affine)
    affine = truth_img.affine @ nib.orientations.inv_ornt_aff(turn, truth.shape)
    truth, prediction, ignored = (nib.apply_orientation(array, turn) for array in (truth, prediction, ignored))
    images = {modality: nib.apply_orientation(image, turn) for modality, image in images.items()}
    sizes_mm = tuple(float(size) for size in nib.affines.voxel_sizes(affine))
    return Loaded(truth, prediction, ignored, affine, sizes_mm, images)


def open_mask(path: Path | None, labels: Sequence[int] = (), threshold: float = 0.5) -> nib.Nifti1Image:
    """Read a mask as a uint8 image of zeros and ones, in its own place.

    Raises
    ------
    ValueError
        If it is missing, cannot be read or is no mask.
    """
    if path is None:
        raise ValueError('a lesion mask is missing')
    mask_img = files.open_image(path)
    nifti.check_image(mask_img, 'lesion mask')
    values = nifti.one_volume(mask_img)
    if labels == (cases.MINDGLIDE_LESION,) and np.nanmax(values) > cases.MINDGLIDE_LABELS:
        raise ValueError(
            f'{path.name} has labels up to {np.nanmax(values):g}, expected those of MindGlide, '
            f'0 to {cases.MINDGLIDE_LABELS}'
        )
    inside = (
        np.isin(np.rint(np.nan_to_num(values)), labels) if labels else placement.is_lesion(values, threshold, path.name)
    )
    return nifti.mask_image(inside, mask_img)


def resample_mask(mask_img: nib.Nifti1Image, target_img: nib.Nifti1Image) -> np.ndarray:
    """Resample a mask to a grid by its share of each voxel (at least half); (X, Y, Z) bool array.

    Raises
    ------
    ValueError
        If it lies outside the grid.
    """
    mask_img = placement.beside(mask_img, target_img, 'lesion mask')
    inside, affine = np.asarray(mask_img.dataobj) > 0, mask_img.affine
    share = grid.resample_to(nib.Nifti1Image(inside.astype(np.float32), affine), target_img, order=1)
    if inside.any() and not (share > 0).any():
        centres = nib.affines.apply_affine(np.linalg.inv(target_img.affine) @ affine, np.argwhere(inside))
        if not ((centres > -1) & (centres < target_img.shape[:3])).all(axis=1).any():
            raise ValueError('the two masks do not overlap in scanner space: their lesions lie in different places')
    return share >= 0.5


def resample_image(img: nib.Nifti1Image, target_img: nib.Nifti1Image) -> np.ndarray:
    """Resample an image to a grid, linearly; (X, Y, Z) float32 array, 0 outside."""
    return grid.resample_to(placement.beside(img, target_img, 'image'), target_img, order=1)


def load_pair(before: cases.Case, after: cases.Case, threshold: float = 0.5) -> tuple[Any, Any, float]:
    """Read the masks of two visits onto the grid of the truth of the second.

    The patient's own lesions of a synthesis are true lesions here: of baseline, if that has no truth of its own.

    Returns
    -------
    truths, predictions : (baseline, follow-up), (X, Y, Z) bool arrays
    voxel_mm3 : float

    Raises
    ------
    ValueError
        As `load`; also if the masks of the visits do not overlap in scanner space.
    """
    target_img = open_mask(after.truth_file, after.truth_labels, threshold)

    def read(path: Path | None, labels: Sequence[int]) -> np.ndarray:
        return resample_mask(open_mask(path, labels, threshold), target_img)

    new = read(after.truth_file, after.truth_labels)
    everything = read(after.all_lesions_file, ()) | new if after.all_lesions_file else new
    if before.truth_file == after.truth_file:  # one synthesis: its new lesions came between the visits
        truths = everything & ~new, everything
    else:
        first = read(before.truth_file, before.truth_labels)
        first = read(before.all_lesions_file, ()) | first if before.all_lesions_file else first
        truths = first, everything
    predictions = tuple(read(case.prediction_file, case.prediction_labels) for case in (before, after))
    voxel_mm3 = abs(float(np.linalg.det(target_img.affine[:3, :3])))
    return truths, predictions, voxel_mm3
