"""Images as NIfTI: check, read as one volume, write back values on the stored scale."""

import contextlib
import zlib
from collections.abc import Iterator

import nibabel as nib
import numpy as np

from . import grid

GEOMETRY = (  # fields of a NIfTI header
    *('pixdim', 'qform_code', 'quatern_b', 'quatern_c', 'quatern_d', 'qoffset_x', 'qoffset_y', 'qoffset_z'),
    *('sform_code', 'srow_x', 'srow_y', 'srow_z'),
)
SMALLEST_VOXEL_MM, LARGEST_IMAGE_MM = 0.05, 1000  # beyond, the unit is not mm, or memory would not hold it at 1 mm


def check_image(img: nib.Nifti1Image, name: str) -> None:
    """Raise ValueError, with what was got and expected, if an image is not a volume of real numbers on a real grid."""
    shape, dtype, name = img.shape, img.get_data_dtype(), called(img, name)
    if len([n for n in shape[3:] if n != 1]) or len(shape) < 3 or min(shape[:3]) < 2:
        raise ValueError(f'{name} has shape {shape}, expected one 3D volume')
    if dtype.kind not in 'iufb':
        raise ValueError(f'{name} has data type {dtype}, expected integers or floats')
    if not np.isfinite(img.affine).all() or abs(np.linalg.det(img.affine[:3, :3])) < 1e-6:
        raise ValueError(f'{name} has no usable affine: {img.affine.tolist()}')
    sizes_mm = nib.affines.voxel_sizes(img.affine)
    if min(sizes_mm) < SMALLEST_VOXEL_MM or max(sizes_mm * shape[:3]) > LARGEST_IMAGE_MM:
        raise ValueError(
            f'{name} has {shape[0]} x {shape[1]} x {shape[2]} voxels of {" x ".join(f"{n:.4g}" for n in sizes_mm)} mm, '
            f'expected a head of at most {LARGEST_IMAGE_MM} mm, with voxels of at least {SMALLEST_VOXEL_MM} mm'
        )


def called(img: nib.Nifti1Image, name: str) -> str:
    """Return the name of an image in a message, with its file name if it has one."""
    path = img.get_filename()
    return name if path is None else f'{name} {str(path).rpartition("/")[2]}'


@contextlib.contextmanager
def reading(img: nib.Nifti1Image) -> Iterator[None]:
    """Turn errors of an image whose data cannot be read into a message that names its file."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f'{called(img, "image")} is damaged, its data cannot be read: {error}') from None


def one_volume(img: nib.Nifti1Image) -> np.ndarray:
    """Return the volume of a 3D image, or of a 4D image with one volume: (X, Y, Z) float32 array, scaled."""
    with reading(img):
        return img.get_fdata(dtype=np.float32, caching='unchanged').reshape(img.shape[:3])


def plain(img: nib.Nifti1Image, name: str) -> nib.Nifti1Image:
    """Return an image as one volume of finite floats without spikes; ValueError if it is none."""
    check_image(img, name)
    values = np.nan_to_num(one_volume(img), posinf=0, neginf=0)
    grid.check_intensities(values, called(img, name))
    return nib.Nifti1Image(grid.without_spikes(values), img.affine)


def with_affine(img: nib.Nifti1Image, affine: np.ndarray, is_placed: bool = True) -> nib.Nifti1Image:
    """Return an image with another affine; `is_placed` is what `has_place` returns for the result."""
    data = np.asanyarray(img.dataobj)
    placed = nib.Nifti1Image(data, affine, dtype=data.dtype)  # nibabel asks for it where it is int64
    if not is_placed:
        placed.header['sform_code'] = placed.header['qform_code'] = 0
    return placed


def mask_image(mask: np.ndarray, img: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return a bool array as an uint8 image on the grid of an image."""
    mask_img = nib.Nifti1Image(mask.astype(np.uint8), img.affine)
    mask_img.header.set_xyzt_units('mm')
    if isinstance(img, nib.Nifti1Pair):
        for name in GEOMETRY:  # as they stand: not every header has a qform that can be computed
            mask_img.header[name] = img.header[name]
    return mask_img


def stored_values(img: nib.Nifti1Image) -> tuple[np.ndarray, float, float]:
    """Return values as they stand in the file, and their scaling: (array, slope, intercept)."""
    if nib.is_proxy(img.dataobj):
        with reading(img):
            return np.array(img.dataobj.get_unscaled()), img.dataobj.slope, img.dataobj.inter
    return np.array(img.dataobj), 1.0, 0.0


def with_stored_values(img: nib.Nifti1Image, stored: np.ndarray, slope: float, intercept: float) -> nib.Nifti1Image:
    """Return an image with the header of `img` whose *stored* values are given.

    Written as they are, read back scaled.
    """
    image_class = nib.Nifti2Image if isinstance(img, nib.Nifti2Image) else nib.Nifti1Image
    stored_img = image_class(stored, img.affine, img.header)
    if nib.is_proxy(img.dataobj):
        stored_img.header.set_slope_inter(slope, intercept)  # after the constructor, which forgets it
    return stored_img


def copy_image(img: nib.Nifti1Image) -> nib.Nifti1Image:
    """Copy an image, ready to be written with the same bytes of data."""
    return with_stored_values(img, *stored_values(img))


def paste(img: nib.Nifti1Image, values: np.ndarray, mask: np.ndarray) -> nib.Nifti1Image:
    """Return an image that has `values` inside the mask and, outside, the stored values of `img` bit for bit.

    Parameters
    ----------
    img : nibabel image
    values : (X, Y, Z) float array, in units of the image
    mask : (X, Y, Z) bool array
    """
    stored, slope, intercept = stored_values(img)
    inside = (values[mask] - intercept) / slope
    if stored.dtype.kind in 'iu':
        limits = np.iinfo(stored.dtype)
        inside = np.clip(np.rint(inside), limits.min, limits.max)
    stored.reshape(mask.shape)[mask] = inside.astype(stored.dtype)
    return with_stored_values(img, stored, slope, intercept)


def as_loaded(img: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return an image as a reader of its file would see it, with scaled values."""
    return type(img).from_bytes(img.to_bytes())
