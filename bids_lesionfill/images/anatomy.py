"""Anatomy of a T1w image: brain, white matter, tissue classes, intensity scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from . import grid, masks, nifti, placement, tissues

RIM_VOXELS = 3  # around a patient's lesions that is not taken for healthy


@dataclass(frozen=True)
class Sources:
    """Sources of brain mask and white matter."""

    skull_stripped: bool | None = None
    brain_mask_source: str | None = None
    white_matter_source: str | None = None


class Patient(NamedTuple):
    """A patient's normalised image on the working grid: `(X, Y, Z)` arrays, RAS, 1 mm."""

    image: np.ndarray  # T1w or FLAIR; -1 outside the brain
    tissue_seg: np.ndarray  # lesions count as the tissue that they look like
    lesion_mask: np.ndarray

    @property
    def wm_mask(self) -> np.ndarray:
        """White matter outside the lesions."""
        return (self.tissue_seg == tissues.WHITE_MATTER) & ~self.lesion_mask


def normalise_patient(
    image_img: nib.Nifti1Image, t1w_img: nib.Nifti1Image, lesion_mask: np.ndarray
) -> tuple[Patient, grid.Scaling]:
    """Normalise a patient's image by the white matter of the T1w, on the working grid.

    Parameters
    ----------
    image_img : nibabel image
        T1w or FLAIR, in the world space of the T1w.
    t1w_img : nibabel image
        On its working grid, see `preprocess.conform`.
    lesion_mask : (X, Y, Z) bool array
        On the same grid.

    Returns
    -------
    patient : Patient
    scaling : preprocess.Scaling
        From the image's own intensities.

    Raises
    ------
    ValueError
        If there is no brain or no white matter.
    """
    t1w = t1w_img.get_fdata(dtype=np.float32)
    brain_mask, _ = tissues.find_brain(t1w)
    patient = Patient(
        grid.resample_to(image_img, t1w_img, order=3),
        tissues.classify(t1w, brain_mask, lesion_mask),
        lesion_mask,
    )
    scaling = grid.white_matter_scaling(patient.image, patient.wm_mask)
    return patient._replace(image=np.where(brain_mask, scaling.apply(patient.image), -1)), scaling


def normal_appearing(patient: Patient) -> np.ndarray:
    """Return the tissue segmentation with lesions and a rim around them set to `tissues.EXCLUDED`."""
    near = ndimage.binary_dilation(patient.lesion_mask, masks.FULL_CONNECTIVITY, iterations=RIM_VOXELS)
    return np.where(near & (patient.tissue_seg > 0), tissues.EXCLUDED, patient.tissue_seg)


def is_skull_stripped(image: np.ndarray) -> bool:
    """Return True if an image, (X, Y, Z) float array at 1 mm, shows only the brain."""
    return tissues.is_skull_stripped(image)


def find_white_matter(
    t1w: np.ndarray,
    lesion_mask: Any,
    conformed_img: nib.Nifti1Image,
    wm_mask_img: nib.Nifti1Image | None = None,
    brain_mask_img: nib.Nifti1Image | None = None,
    tissue_seg_img: nib.Nifti1Image | None = None,
) -> tuple[np.ndarray, np.ndarray, Sources]:
    """Find brain mask and white matter on the working grid, and their `Sources`."""
    if wm_mask_img is not None:
        wm_mask = grid.conform_mask(wm_mask_img, conformed_img)
        sources = Sources(is_skull_stripped(t1w), white_matter_source='given')
        return ndimage.binary_dilation(wm_mask, iterations=6), wm_mask, sources
    brain_mask, tissue_seg, sources = find_tissues(t1w, lesion_mask, conformed_img, brain_mask_img, tissue_seg_img)
    wm_mask = tissues.claim_rim((tissue_seg == tissues.WHITE_MATTER) & ~lesion_mask, lesion_mask, brain_mask)
    return brain_mask, wm_mask, sources


def find_tissues(
    t1w: np.ndarray,
    lesion_mask: np.ndarray,
    conformed_img: nib.Nifti1Image,
    brain_mask_img: nib.Nifti1Image | None = None,
    tissue_seg_img: nib.Nifti1Image | None = None,
) -> tuple[np.ndarray, np.ndarray, Sources]:
    """Find brain mask and tissues on the working grid, and their `Sources`.

    A segmentation that is given is also the brain mask, if there is no other: its holes are closed, for tissues that
    it does not name.
    """
    brain_mask, tissue_seg, _, sources = segment(t1w, lesion_mask, conformed_img, brain_mask_img, tissue_seg_img)
    return brain_mask, tissue_seg, sources


def segment(
    t1w: np.ndarray,
    lesion_mask: np.ndarray,
    conformed_img: nib.Nifti1Image,
    brain_mask_img: nib.Nifti1Image | None = None,
    tissue_seg_img: nib.Nifti1Image | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Sources]:
    """Return brain mask, tissue segmentation, bias field (None if a segmentation is given) and `Sources`."""
    if tissue_seg_img is not None:
        tissue_seg = grid.resample_to(tissue_seg_img, conformed_img, order=0).astype(np.uint8)
        brain_mask = ndimage.binary_fill_holes(ndimage.binary_closing(tissue_seg > 0, iterations=3)) | lesion_mask
        if brain_mask_img is not None:
            brain_mask = grid.conform_mask(brain_mask_img, conformed_img)
        source = 'extent of the tissue segmentation' if brain_mask_img is None else 'given'
        return brain_mask, tissue_seg, None, Sources(is_skull_stripped(t1w), source, 'given')
    if brain_mask_img is not None:
        brain_mask = grid.conform_mask(brain_mask_img, conformed_img)
        skull_stripped = bool((t1w[~brain_mask] <= 0.02 * t1w.max()).mean() > 0.99)
        source = 'given'
    else:
        brain_mask, skull_stripped = tissues.find_brain(t1w)
        source = 'foreground of a skull-stripped image' if skull_stripped else 'deepbet'
    sources = Sources(skull_stripped, source, 'mixture of three normal distributions on the bias-corrected T1w')
    bias_field = tissues.find_bias(t1w, brain_mask)
    return brain_mask, tissues.classify(t1w, brain_mask, lesion_mask, bias_field), bias_field, sources


@dataclass(frozen=True)
class Anatomy:
    """Brain, white matter and intensities of the T1w of a visit, on its working grid (1 mm, RAS): `(X, Y, Z)` arrays.

    Found once for a visit; filling, synthesis and thickness are handed it.
    """

    grid_img: nib.Nifti1Image  # the T1w on that grid
    brain_mask: np.ndarray
    tissue_seg: np.ndarray  # old lesions are white matter
    old_lesions: np.ndarray  # bool
    sources: Sources = Sources()
    bias_field: np.ndarray | None = None  # float32; None if tissues were found by another tool

    @property
    def wm_mask(self) -> np.ndarray:
        """White matter outside the old lesions."""
        return (self.tissue_seg == tissues.WHITE_MATTER) & ~self.old_lesions

    def moved(self, transform: np.ndarray) -> Anatomy:
        """Return the anatomy with its world moved by a (4, 4) transform; no voxel is resampled."""
        return replace(self, grid_img=placement.moved(self.grid_img, transform, self.grid_img))

    def img(self, values: np.ndarray) -> nib.Nifti1Image:
        """Return an array on the grid as an image; bool as uint8."""
        return nib.Nifti1Image(values.astype(np.uint8) if values.dtype == bool else values, self.grid_img.affine)


def look_at(
    t1w_img: nib.Nifti1Image,
    lesion_mask_img: nib.Nifti1Image | None = None,
    brain_mask_img: nib.Nifti1Image | None = None,
    mask_threshold: float = 0.5,
    tissue_seg_img: nib.Nifti1Image | None = None,
    lesion_share: float = 0.5,
) -> Anatomy:
    """Find brain and white matter in a T1w; see `Anatomy`.

    Parameters
    ----------
    t1w_img : nibabel image
    lesion_mask_img, brain_mask_img : nibabel image, optional
        In the same world space.
    mask_threshold : float
        From this probability on a voxel of a mask of floats is lesion.
    tissue_seg_img : nibabel image, optional
        1 CSF, 2 grey matter, 3 white matter; found if not given.
    lesion_share : float
        Share of a voxel of the working grid above which it is lesion.

    Raises
    ------
    ValueError
        If an image cannot be used.
    """
    plain_img = nifti.plain(t1w_img, 'T1w')
    grid_img = grid.conform(plain_img)
    t1w = above_background(plain_img, grid_img)
    old_lesions = np.zeros(grid_img.shape, dtype=bool)
    if lesion_mask_img is not None:  # by way of the T1w's own voxels, on which a mask without a place lies
        old_mask = placement.mask_on_grid(lesion_mask_img, t1w_img, mask_threshold)
        old_lesions = grid.conform_mask(nifti.mask_image(old_mask, plain_img), grid_img, threshold=lesion_share)
    brain_mask, tissue_seg, bias_field, sources = segment(t1w, old_lesions, grid_img, brain_mask_img, tissue_seg_img)
    tissue_seg = np.where(old_lesions & brain_mask, tissues.WHITE_MATTER, tissue_seg)
    return Anatomy(grid_img, brain_mask, tissue_seg, old_lesions, sources, bias_field)


def above_background(plain_img: nib.Nifti1Image, grid_img: nib.Nifti1Image) -> np.ndarray:
    """Return a T1w on its working grid as tissues are found in it: background zero; (X, Y, Z) float32 array.

    A constant that was added to the image changes nothing (`grid.background_level`).
    """
    level_img = grid.without_background(plain_img)
    return (grid_img if level_img is plain_img else grid.conform(level_img)).get_fdata(dtype=np.float32)


def look_again(
    anatomy: Anatomy, t1w_img: nib.Nifti1Image, lesion_mask_img: nib.Nifti1Image, lesion_share: float
) -> Anatomy:
    """Find the tissues of a T1w again with other lesions left out of the fit; brain and bias stay. See `look_at`."""
    old_lesions = np.zeros(anatomy.brain_mask.shape, dtype=bool)
    if lesion_mask_img is not None:
        old_mask = placement.mask_on_grid(lesion_mask_img, t1w_img)
        old_lesions = grid.conform_mask(nifti.mask_image(old_mask, t1w_img), anatomy.grid_img, threshold=lesion_share)
    t1w = above_background(nifti.plain(t1w_img, 'T1w'), anatomy.grid_img)
    tissue_seg = tissues.classify(t1w, anatomy.brain_mask, old_lesions, anatomy.bias_field)
    tissue_seg = np.where(old_lesions & anatomy.brain_mask, tissues.WHITE_MATTER, tissue_seg)
    return replace(anatomy, tissue_seg=tissue_seg, old_lesions=old_lesions)


def from_white_matter(image_img: nib.Nifti1Image, wm_mask_img: nib.Nifti1Image) -> Anatomy:
    """Return the anatomy of an image whose white matter (above zero) is given, also beneath its lesions."""
    grid_img = grid.conform(nifti.plain(image_img, 'image'))
    brain_mask, wm_mask, sources = find_white_matter(grid_img.get_fdata(dtype=np.float32), None, grid_img, wm_mask_img)
    tissue_seg = np.where(wm_mask, tissues.WHITE_MATTER, 0).astype(np.uint8)
    return Anatomy(grid_img, brain_mask, tissue_seg, np.zeros_like(wm_mask), sources)


def on_grid(anatomy: Anatomy, img: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Resample brain and white matter, with the rims of lesions, to the grid of an image in the same world space.

    A voxel is white matter if more than half of it is white matter or lesion, and most of that is white matter: between
    a lesion and the white matter around it no gap opens.

    Returns
    -------
    brain_mask, wm_mask : (X, Y, Z) bool array

    Raises
    ------
    ValueError
        If the anatomy lies outside the image.
    """
    brain_mask = grid.conform_mask(anatomy.img(anatomy.brain_mask), img)
    if not brain_mask.any():
        raise ValueError('the T1w lies outside the image: their world coordinates do not overlap')
    wm_mask = tissues.claim_rim(anatomy.wm_mask, anatomy.old_lesions, anatomy.brain_mask)
    wm_share, lesion_share = (
        grid.resample_to(anatomy.img(mask.astype(np.float32)), img, order=1) for mask in (wm_mask, anatomy.old_lesions)
    )
    return brain_mask, (wm_share + lesion_share > 0.5) & (wm_share > lesion_share)
