"""Brains that a model is trained on: healthy ones, patients with lesions, normal-appearing tissue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np

from ..diffusion import inpaint
from ..images import anatomy, grid, masks, segmentations, tissues
from ..layout import segmentations as layout_segmentations
from ..lesions import contrasts as lesions_contrasts
from . import randomisation

if TYPE_CHECKING:
    from ..diffusion.models import Model


class Brain(NamedTuple):
    """A normalised brain to train on, RAS, 1 mm, cropped: `(X, Y, Z)` arrays."""

    image: np.ndarray
    wm_mask: np.ndarray
    # (X, Y, Z) arrays as well, or None
    lesion_mask: Any = None  # of a patient: what synthesis learns
    filled: Any = None  # the patient's image without lesions
    tissue_seg: Any = None  # to draw confluent lesions and other contrasts
    levels: randomisation.Levels | None = None  # of a T1w whose contrast may be remapped


def read_tissues(t1w_file: Path, dseg_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a normalised T1w and its tissue segmentation on the working grid: (X, Y, Z) float32 and uint8 arrays.

    The table of the segmentation (`dseg.tsv`) names its labels; without one they are 1 CSF, 2 grey and 3 white matter.
    """
    t1w_img, dseg_img = grid.conform(nib.load(t1w_file)), nib.load(dseg_file)
    tops = {path.name: path for path in Path(dseg_file).parents if (path / 'dataset_description.json').is_file()}
    if table := layout_segmentations.label_table(dseg_file, tops):
        classes = segmentations.from_table(np.asarray(dseg_img.dataobj), table)
        dseg_img = nib.Nifti1Image(classes, dseg_img.affine)
    tissue_seg = np.zeros(t1w_img.shape, dtype=np.uint8)
    for label in (tissues.CSF, tissues.GREY_MATTER, tissues.WHITE_MATTER):
        tissue_seg[grid.conform_mask(dseg_img, t1w_img, label=label)] = label
    t1w = t1w_img.get_fdata(dtype=np.float32)
    scaling = grid.white_matter_scaling(t1w, tissue_seg == tissues.WHITE_MATTER)
    return scaling.apply(t1w), tissue_seg


def in_memory(files: Any, read: Callable[[], Any], what: str = '') -> Any:
    """Return a brain as it is read: what keeps brains if nothing else does; see `store.Store`."""
    return read()


def read_healthy_brains(images: Iterable[Sequence[Path]], keep: Callable[..., Any] = in_memory) -> list[Brain]:
    """Load healthy brains: a list of Brain.

    Parameters
    ----------
    images : list of (T1w file, tissue segmentation file), with 3 = white matter
    keep : callable
        Keeps each brain as soon as it is read: `in_memory`, or a `store.Store`.
    """

    def read(t1w_file: Path, dseg_file: Path) -> Any:
        image, tissue_seg = read_tissues(t1w_file, dseg_file)
        wm_mask = tissue_seg == tissues.WHITE_MATTER
        image, wm_mask = crop_to(wm_mask, image, wm_mask)
        return Brain(image, wm_mask)

    return [keep(files, partial(read, *files), 'healthy') for files in images]


def read_patient(image_file: Path, t1w_file: Path, mask_file: Path) -> anatomy.Patient:
    """Load and normalise a patient's image (T1w or FLAIR); see `normalise_patient`."""
    t1w_img = grid.conform(grid.without_background(nib.load(t1w_file)))
    lesion_mask = grid.conform_mask(nib.load(mask_file), t1w_img)
    return anatomy.normalise_patient(grid.without_background(nib.load(image_file)), t1w_img, lesion_mask)[0]


def read_patients(images: Iterable[Sequence[Path]], filler: Model, keep: Callable[..., Any] = in_memory) -> list[Brain]:
    """Load patients' images with their lesions, and without, to learn synthesis from: a list of Brain.

    Parameters
    ----------
    images : list of (image file, T1w file, lesion mask file), see `read_patient`
    filler : weights.Model
        Fills the lesions, after their masks grew by a voxel and into their rims.
    keep : callable
        See `read_healthy_brains`.
    """

    def read(*files: Any) -> Any:
        patient = read_patient(*files)
        if not patient.lesion_mask.any():  # there is nothing to learn from
            return None
        box = patient.wm_mask | patient.lesion_mask
        filled = without_lesions(patient, filler)
        arrays = crop_to(box, patient.image, patient.wm_mask, patient.lesion_mask, filled)
        return Brain(arrays[0], arrays[1], arrays[2], arrays[3])

    brains = [keep(files, partial(read, *files), f'filled by {filler.sha256}') for files in images]
    return [brain for brain in brains if brain is not None]


def without_lesions(patient: anatomy.Patient, filler: Model) -> np.ndarray:
    """Return a patient's image with lesions and their rims filled by a model; (X, Y, Z) float array."""
    hole = masks.dilate_within(patient.lesion_mask, patient.wm_mask, 1)
    sign = lesions_contrasts.lesion_sign(patient.image, patient.lesion_mask, patient.wm_mask)
    hole = lesions_contrasts.grow_to_rim(patient.image, hole, patient.wm_mask, bright_lesions=sign > 0)
    filled = patient.image.copy()
    steps = filler.plan['num_inference_steps']
    filled[hole] = inpaint.fill_volume(patient.image, hole, patient.wm_mask & ~hole, filler, steps, [0])[0]
    return filled


def lesion_contrasts(brains: Sequence[Brain], min_voxels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return volumes (mm3) and contrasts (see `inpaint.contrast_of`) of all lesions of patients: (n,) arrays."""
    measured = [lesions_contrasts.contrast_of(brain.image, brain.lesion_mask, brain.wm_mask)[1:] for brain in brains]
    volumes, contrasts = (np.concatenate(values) for values in zip(*measured))
    return volumes[volumes >= min_voxels], contrasts[volumes >= min_voxels]


def read_normal_appearing(images: Sequence[Any], keep: Callable[..., Any] = in_memory) -> list:
    """Load patients' normal-appearing white matter, to learn filling from: a list of Brain.

    It is found on the T1w, without a segmentation. Lesions are never drawn into real lesions or the rim around them, so
    that they are in no mask and in no loss.

    Parameters
    ----------
    images : list of (image file, T1w file, lesion mask file), see `read_patient`
    keep : callable
        See `read_healthy_brains`.
    """

    def read(*files: Any) -> Any:
        patient = read_patient(*files)
        wm_mask = anatomy.normal_appearing(patient) == tissues.WHITE_MATTER
        image, wm_mask = crop_to(wm_mask, patient.image, wm_mask)
        return Brain(image, wm_mask)

    return [keep(files, partial(read, *files), 'normal-appearing') for files in images]


def crop_to(mask: np.ndarray, *arrays: Any, margin_voxels: int = 12) -> list[np.ndarray]:
    """Crop arrays to the bounding box of a mask and a margin."""
    box = masks.bounding_box(mask, margin_voxels)
    return [array[box] for array in arrays]


def read_lesion_shapes(mask_files: Sequence[Path], min_voxels: int = 8) -> list[np.ndarray]:
    """Return connected lesions of real masks, cropped; see `masks.split_lesions`."""
    shapes = []
    for mask_file in mask_files:
        mask_img = grid.conform(nib.load(mask_file), order=0)
        shapes += masks.split_lesions(np.asarray(mask_img.dataobj) > 0, min_voxels)
    return shapes
