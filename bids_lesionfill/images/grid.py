"""To the grid and the intensities that the network knows, and back.

The working grid has the image's own axes in RAS+ order, 1 mm voxels and no rotation, so that a 1 mm image is only
flipped and reordered, never interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

# Share of the 99th percentile below which an image is dark, and voxels that may be darker than its negative: ringing
# around brains is (niimath: down to -80 of 900), z-scored tissue is in 40 % of its voxels.
SHARE_OF_BRIGHT = 0.1
MAX_SHARE_NEGATIVE = 0.05
COMMON_SHARE, AIR_SHARE = 0.5, 0.2  # of the outermost voxels of an image, see `background_level`
SPIKE = 10  # times the 99th percentile of what is positive
SIZE_TOLERANCE_MM = 0.005  # a voxel that differs from 1 mm by less over 200 voxels shifts by less than one voxel


@dataclass(frozen=True)
class Scaling:
    """A linear map of intensities, `slope * x + intercept`, with its inverse."""

    slope: float
    intercept: float

    def apply(self, intensities: np.ndarray) -> np.ndarray:
        """Return normalised intensities."""
        return np.asarray(intensities * self.slope + self.intercept, dtype=np.float32)

    def invert(self, normalised: np.ndarray) -> np.ndarray:
        """Return the image's own intensities, float64."""
        return (np.asarray(normalised, dtype=np.float64) - self.intercept) / self.slope


def white_matter_scaling(image: np.ndarray, wm_mask: np.ndarray) -> Scaling:
    """Return the scaling that puts the white matter median at +0.5 and background (zero) at -1.

    One hot voxel changes nothing.

    Parameters
    ----------
    image : (X, Y, Z) float array, T1w or FLAIR
    wm_mask : (X, Y, Z) bool array

    Raises
    ------
    ValueError
        If the mask is empty or its median is not positive.
    """
    median = float(np.median(image[wm_mask])) if wm_mask.any() else 0.0
    if not median > 0:
        raise ValueError(f'white matter has median {median:g} in {int(wm_mask.sum())} voxels, expected a positive one')
    return Scaling(slope=1.5 / median, intercept=-1.0)


def check_intensities(image: np.ndarray, name: str) -> None:
    """Raise ValueError if an image is a CT, or is below zero where there is tissue, as after z-scoring.

    Parameters
    ----------
    image : (X, Y, Z) float array
    name : str
        Of the image, for the sentence.
    """
    if is_ct(image):
        raise ValueError(
            f'{name} has air near -1000 and tissue near 0, as a CT in Hounsfield units: expected an MR image'
        )
    positive = image[image > 0]
    if not len(positive):
        return  # nothing at all, which is told where a brain is looked for
    bound = SHARE_OF_BRIGHT * np.percentile(positive, 99)
    share = (image < -bound).sum() / (np.abs(image) > bound).sum()
    if share > MAX_SHARE_NEGATIVE:
        raise ValueError(
            f'{name} is negative in {100 * share:.0f} % of what is not zero, as after z-scoring: expected background '
            'at zero and tissue above. Give the image as it was before that'
        )


def is_ct(image: np.ndarray) -> bool:
    """Return True if an image, (X, Y, Z) float array, has the numbers of a CT: air at -1000, soft tissue above 0."""
    air = image < -900
    if not 0.05 < air.mean() < 0.99 or image.max() < 50:
        return False
    return np.percentile(image[air], 90) < -950 and -100 < np.median(image[image > -200]) < 150


def without_spikes(image: np.ndarray) -> np.ndarray:
    """Return an image, bounded where a voxel is far brighter or darker than any tissue: interpolation would spread it.

    Parameters
    ----------
    image : (X, Y, Z) float array
    """
    positive = image[image > 0]
    if not len(positive):
        return image
    bound = SPIKE * np.percentile(positive[:: max(1, len(positive) // 1_000_000)], 99)
    return np.clip(image, -bound, bound)


def background_level(image: np.ndarray) -> float:
    """Find the intensity of the background where an image ends: 0 in most images, more if a constant was added.

    The value that more than half of the outermost voxels have; else, with noise in the air, the lowest permille of the
    image, if a good part of the outermost voxels is close to that. An image that ends in tissue, or in what is brighter
    than it, has no background: 0.
    It moves with the image: that of `image + c` is `c` more.

    Parameters
    ----------
    image : (X, Y, Z) float array
        On its own grid: resampling adds zeros around.
    """
    surface = np.concatenate([image.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
    values, counts = np.unique(surface, return_counts=True)
    if counts.max() > COMMON_SHARE * surface.size:
        level = float(values[counts.argmax()])
        others = image[image != level]
        return level if not others.size or np.median(others) > level else 0.0  # brighter than tissue: no air
    low, high = np.percentile(image, (0.1, 99))
    is_air = (surface < low + SHARE_OF_BRIGHT * (high - low)).mean() > AIR_SHARE
    return float(low) if is_air else 0.0


def without_background(img: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return an image whose background is zero (`background_level`), nothing below; itself if it is so already."""
    values = np.nan_to_num(img.get_fdata(dtype=np.float32, caching='unchanged'), posinf=0, neginf=0)
    level = background_level(values.reshape(img.shape[:3]))
    if level == 0:
        return img
    return nib.Nifti1Image(np.maximum(values - np.float32(level), 0), img.affine)


def working_grid(img: nib.Nifti1Image) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of the working grid of an image: its own axes, RAS+, 1 mm."""
    canonical = nib.as_closest_canonical(img)
    sizes = np.array(nib.affines.voxel_sizes(canonical.affine))
    shape = np.array(canonical.shape[:3])
    if np.all(np.abs(sizes - 1) < SIZE_TOLERANCE_MM):
        return tuple(int(n) for n in shape), canonical.affine
    extent = shape * sizes
    new_shape = np.ceil(extent - 1e-3).astype(int)
    directions = canonical.affine[:3, :3] / sizes
    centre = nib.affines.apply_affine(canonical.affine, (shape - 1) / 2)
    return tuple(int(n) for n in new_shape), nib.affines.from_matvec(
        directions, centre - directions @ ((new_shape - 1) / 2)
    )


def conform(img: nib.Nifti1Image, order: int = 3) -> nib.Nifti1Image:
    """Resample an image to its working grid; only flipped and reordered if it has 1 mm voxels.

    Parameters
    ----------
    img : spatial image, 3D
    order : int
        Of the spline; 0 for masks.
    """
    canonical = nib.as_closest_canonical(img)
    shape, affine = working_grid(img)
    if np.allclose(affine, canonical.affine):
        return canonical
    return resample_from_to(canonical, (shape, affine), order=order)


def conform_mask(
    img: nib.Nifti1Image, target_img: nib.Nifti1Image, label: int | None = None, threshold: float = 0.5
) -> np.ndarray:
    """Resample a mask or a label to the grid of `target_img`, by trilinear share of the voxel.

    Parameters
    ----------
    img : spatial image
    target_img : spatial image
    label : int, optional
        This label of a segmentation; else everything above zero.
    threshold : float
        Share of a target voxel that must be inside.

    Returns
    -------
    (X, Y, Z) bool array
    """
    data = np.asarray(img.dataobj)
    inside = (data == label) if label is not None else data > 0
    share = nib.Nifti1Image(inside.astype(np.float32), img.affine)
    return resample_to(share, target_img, order=1) > threshold


def touched_by(mask_img: nib.Nifti1Image, target_img: nib.Nifti1Image) -> np.ndarray:
    """Return voxels of a grid that are a little (5 %) inside a mask, or hold the centre of one of its voxels.

    Bool array.

    Of a grid that is coarser than that of the mask some voxels would be missed by interpolation, and what lies there
    would stay.
    """
    touched = conform_mask(mask_img, target_img, threshold=0.05)
    to_target = np.linalg.inv(target_img.affine) @ mask_img.affine
    centres = nib.affines.apply_affine(to_target, np.argwhere(np.asarray(mask_img.dataobj) > 0))
    centres = np.rint(centres).astype(int)
    inside = ((centres >= 0) & (centres < touched.shape)).all(axis=1)
    touched[tuple(centres[inside].T)] = True
    return touched


def resample_to(img: nib.Nifti1Image, target_img: nib.Nifti1Image, order: int) -> np.ndarray:
    """Resample an image to another image's grid, by world coordinates; float32 array, zero outside.

    Grids that differ by flips and the order of axes alone are reordered, not interpolated.
    """
    turn = nib.orientations.ornt_transform(nib.io_orientation(img.affine), nib.io_orientation(target_img.affine))
    turned = nib.Nifti1Image(img.get_fdata(dtype=np.float32), img.affine).as_reoriented(turn)
    if turned.shape == target_img.shape[:3] and np.allclose(turned.affine, target_img.affine, atol=1e-4):
        return turned.get_fdata(dtype=np.float32)
    return resample_from_to(turned, (target_img.shape[:3], target_img.affine), order=order).get_fdata(dtype=np.float32)
