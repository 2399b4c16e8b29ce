"""A case of the reader study: a patient's image in which one of the largest lesions is a synthetic one. No files.

Arrays are `(X, Y, Z)` on the image's own grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from ..images import anatomy, grid, masks, nifti, placement
from ..lesions import contrasts, settings, synthesis

if TYPE_CHECKING:
    from ..diffusion.models import Model

# Of the header a reader's image keeps grid and data type, and the scaling. All else may name a patient or a day.
KEPT_HEADER = [
    *('dim', 'pixdim', 'datatype', 'bitpix', 'xyzt_units', 'qform_code', 'sform_code', 'quatern_b', 'quatern_c'),
    *('quatern_d', 'qoffset_x', 'qoffset_y', 'qoffset_z', 'srow_x', 'srow_y', 'srow_z'),
]


def draw_case(
    image_img: nib.Nifti1Image,
    t1w_img: nib.Nifti1Image,
    lesion_mask_img: nib.Nifti1Image,
    model: Model,
    num_inference_steps: int,
    rng: np.random.Generator,
    n_largest: int = 10,
    device: str = 'cpu',
) -> tuple[nib.Nifti1Image, list[dict[str, Any]], dict[str, Any]]:
    """Sample one patient's blinded image with one lesion replaced, one of the largest (thesis 3.5).

    Parameters
    ----------
    image_img, t1w_img, lesion_mask_img : nibabel images
        In one world space.
    model : weights.Model
    num_inference_steps : int
    rng : numpy.random.Generator
    n_largest : int
        Candidates.
    device : str

    Returns
    -------
    case_img : nibabel image
    rows : list of dict
        The candidates, see `describe_lesions`.
    drawn : dict
        For the key: `lesion` (its number), `n_lesions` (candidates), `seed`, `model_sha256`.

    Raises
    ------
    ValueError
        If the patient cannot be used; the sentence says why.
    """
    lesion_mask = placement.mask_on_grid(lesion_mask_img, image_img)
    labels = masks.largest_lesions(lesion_mask, n_largest)
    n_lesions = int(labels.max())
    if n_lesions < 2:
        raise ValueError(f'lesions in the mask: {n_lesions}, expected at least 2 to choose from')
    number, seed = int(rng.integers(1, n_lesions + 1)), int(rng.integers(2**63))
    case_img = replace_lesion(
        image_img, labels == number, lesion_mask, t1w_img, model, num_inference_steps, seed, device
    )
    drawn = {'lesion': number, 'n_lesions': n_lesions, 'seed': seed, 'model_sha256': model.sha256}
    return blind(case_img), describe_lesions(labels, image_img.affine), drawn


def describe_lesions(labels: np.ndarray, affine: np.ndarray) -> list[dict[str, Any]]:
    """Return the table of numbered lesions.

    Each one's point nearest to its centre of mass (mm, world) and its volume.
    """
    rows = []
    for number in range(1, labels.max() + 1):
        points = nib.affines.apply_affine(affine, np.argwhere(labels == number))
        centre = points[np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()]
        volume_mm3 = len(points) * abs(np.linalg.det(affine[:3, :3]))
        values = zip(('x_mm', 'y_mm', 'z_mm', 'volume_mm3'), (*centre, volume_mm3))
        rows.append({'lesion': number} | {name: round(float(value), 1) for name, value in values})
    return rows


def replace_lesion(
    image_img: nib.Nifti1Image,
    lesion: np.ndarray,
    lesion_mask: np.ndarray,
    t1w_img: nib.Nifti1Image,
    model: Model,
    num_inference_steps: int,
    seed: int,
    device: str = 'cpu',
) -> nib.Nifti1Image:
    """Return the image with one lesion voided and synthesized anew; all else keeps its stored values, bit for bit.

    Parameters
    ----------
    image_img, t1w_img : nibabel images
        In one world space.
    lesion, lesion_mask : (X, Y, Z) bool array
        What is replaced, and all lesions; on the image's grid.
    model : weights.Model
    num_inference_steps, seed : int
    device : str

    Raises
    ------
    ValueError
        If there is no white matter to set the scale by, or the lesion vanishes on the working grid.
    """
    grid_img, plain_img = grid.conform(nifti.plain(t1w_img, 'T1w')), nifti.plain(image_img, 'image')
    all_lesions, hole = (
        grid.conform_mask(nifti.mask_image(mask, plain_img), grid_img, threshold=threshold)
        for mask, threshold in ((lesion_mask, 0.5), (lesion, 0.05))
    )
    if not hole.any():
        raise ValueError(f'the lesion of {lesion.sum()} voxels vanishes on the 1 mm grid of the T1w')
    brain, scaling = anatomy.normalise_patient(plain_img, grid_img, all_lesions)
    contrast = draw_contrast(brain, hole, model, seed) if model.form.asks_contrast else None
    sampling = settings.Sampling(num_inference_steps, seed=seed, device=device)
    values = synthesis.sample_at_contrast(brain.image, hole, brain.wm_mask, contrast, model, sampling)
    painted = placement.on_grid(scaling.invert(brain.image), hole, scaling.invert(values), grid_img, plain_img)
    # A value that the image has nowhere else would tell: one beyond its range, or a fraction among whole numbers.
    known = plain_img.get_fdata(dtype=np.float32)[~lesion]
    painted = np.clip(painted, known.min(), known.max())
    stored, slope, intercept = nifti.stored_values(image_img)
    if stored.dtype.kind == 'f' and not (np.nan_to_num(stored) % 1).any():
        painted = np.rint((painted - intercept) / slope) * slope + intercept
    return nifti.paste(image_img, painted, lesion)


def draw_contrast(brain: anatomy.Patient, hole: np.ndarray, model: Model, seed: int) -> np.ndarray:
    """Sample a contrast for the replaced lesion from those of the patient's other lesions of its size; (X, Y, Z)."""
    others = brain.lesion_mask & ~hole
    reference, _ = contrasts.reference_contrasts(brain.image, others, brain.wm_mask, model)
    strengths = contrasts.draw_strengths(np.random.default_rng(seed), 1, 'auto')
    sign = contrasts.sign_of(reference[1])
    return np.where(hole, contrasts.choose_contrasts([hole.sum()], strengths, *reference, sign), 0).astype(np.float32)


def blind(img: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return an image with a new header that keeps grid, data type and scaling, but no word, date or extension."""
    header = type(img.header)()
    for field in KEPT_HEADER:
        header[field] = img.header[field]
    blinded_img = type(img)(np.asanyarray(img.dataobj), img.affine, header)
    blinded_img.header.set_slope_inter(*img.header.get_slope_inter())
    return blinded_img
