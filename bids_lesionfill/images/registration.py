"""A subject's way to the space of the lesion library, affine; FLAIR to T1w, rigid; grids of displacements.

Arrays are `(X, Y, Z)`; world is RAS, mm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    import SimpleITK as sitk

SHRINK_MM = (8, 4)  # voxels of the pyramid
UNIT_MM = 60  # about a brain's radius: in it turning, scaling and shifting by 1 move a brain alike, as L-BFGS needs


def affine_to_template(
    t1w: np.ndarray, brain_mask: np.ndarray, affine: np.ndarray, template: np.ndarray, template_affine: np.ndarray
) -> np.ndarray:
    """Register a subject's T1w to a template, affinely (correlation of intensities; SimpleITK).

    Every voxel is used and one thread adds up, so the same images give the same bytes.

    Parameters
    ----------
    t1w : (X, Y, Z) float array
    brain_mask : (X, Y, Z) bool array
        What is outside of it is not looked at.
    affine : (4, 4) array
        Voxel to world, of the T1w; without shear.
    template : (X, Y, Z) array
        Skull-stripped, background 0.
    template_affine : (4, 4) array

    Returns
    -------
    (4, 4) array
        World of the subject to world of the template.

    Raises
    ------
    ValueError
        If the brain mask is empty, or the brain would have to grow or shrink beyond what brains do.
    """
    import SimpleITK

    if not brain_mask.any():
        raise ValueError('brain mask is empty, expected a brain to register')
    brain = np.where(brain_mask, np.clip(t1w, 0, np.percentile(t1w[brain_mask], 99.5)), 0)
    fixed, moving = to_itk(brain, affine), to_itk(template, template_affine)
    transform = SimpleITK.AffineTransform(
        SimpleITK.CenteredTransformInitializer(
            fixed, moving, SimpleITK.AffineTransform(3), SimpleITK.CenteredTransformInitializerFilter.MOMENTS
        )
    )
    registration = SimpleITK.ImageRegistrationMethod()
    registration.SetMetricAsCorrelation()
    use_every_voxel(registration, SHRINK_MM, fixed)
    registration.SetOptimizerAsLBFGSB(gradientConvergenceTolerance=1e-6, numberOfIterations=100)
    registration.SetInitialTransform(transform, inPlace=True)
    with one_thread():
        registration.Execute(fixed, moving)
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    to_template = nib.affines.from_matvec(linear, UNIT_MM * np.array(transform.TransformPoint((0.0, 0.0, 0.0))))
    if not 0.3 < np.linalg.det(linear) < 3:
        raise ValueError(
            f'registration to the template scales the brain by {np.linalg.det(linear):.2f}, expected 0.3 to 3'
        )
    return to_template


def use_every_voxel(method: sitk.ImageRegistrationMethod, shrink_mm: Sequence[float], fixed_image: sitk.Image) -> None:
    """Configure dense sampling, linear interpolation and a multi-resolution pyramid (voxel sizes in mm)."""
    import SimpleITK

    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetShrinkFactorsPerLevel([max(1, round(mm / UNIT_MM / min(fixed_image.GetSpacing()))) for mm in shrink_mm])
    method.SetSmoothingSigmasPerLevel([mm / UNIT_MM / 2 for mm in shrink_mm])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit SimpleITK to one thread; the registration's own setting does not reach its metric."""
    import SimpleITK

    n_threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(n_threads)


def rigid(
    moving: np.ndarray,
    moving_affine: np.ndarray,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    shrink_mm: Sequence[float] = SHRINK_MM,
) -> tuple[np.ndarray, tuple[float, float]]:
    """Register two images of one head, rigidly, of any contrast (Mattes mutual information; SimpleITK).

    It starts from the headers, or from the centres of mass where these tell more. Every voxel is used and one thread
    adds up, so the same images give the same bytes.

    Parameters
    ----------
    moving, fixed : (X, Y, Z) arrays
    moving_affine, fixed_affine : (4, 4) arrays
        Voxel to world; without shear.
    shrink_mm : sequence of float
        Voxels of the pyramid.

    Returns
    -------
    to_fixed : (4, 4) array
        World of `moving` to world of `fixed`.
    information : (float, float)
        Mutual information by the headers alone, and after registration (nats; both 0 or more).

    Raises
    ------
    ValueError
        If an image is constant.
    """
    import SimpleITK

    for name, volume in (('moving', moving), ('fixed', fixed)):
        if volume.min() == volume.max():
            raise ValueError(f'the {name} image is constant ({volume.min():g}), expected a head to register')
    fixed_image, moving_image = (
        to_itk(np.clip(volume, 0, np.percentile(volume[volume > 0], 99.5)), affine)
        for volume, affine in ((fixed, fixed_affine), (moving, moving_affine))
    )
    centre = fixed_image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed_image.GetSize()])
    by_headers = SimpleITK.Euler3DTransform()
    by_headers.SetCenter(centre)
    by_mass = SimpleITK.Euler3DTransform(
        SimpleITK.CenteredTransformInitializer(
            fixed_image, moving_image, by_headers, SimpleITK.CenteredTransformInitializerFilter.MOMENTS
        )
    )
    with one_thread():
        before, by_centres = (information_between(fixed_image, moving_image, start) for start in (by_headers, by_mass))
        transform = SimpleITK.Euler3DTransform(by_mass if by_centres > before else by_headers)
        method = mutual_information(shrink_mm, fixed_image)
        method.SetOptimizerAsLBFGSB(gradientConvergenceTolerance=1e-5, numberOfIterations=30)
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(fixed_image, moving_image)
        except RuntimeError:  # the search left what the images have in common
            return np.eye(4), (before, before)
        after = information_between(fixed_image, moving_image, transform)
    points = np.vstack([np.zeros(3), np.eye(3)])
    mapped = np.array([transform.TransformPoint(point.tolist()) for point in points])
    to_moving = nib.affines.from_matvec((mapped[1:] - mapped[0]).T, UNIT_MM * mapped[0])
    return np.linalg.inv(to_moving), (before, after)


def mutual_information(shrink_mm: Sequence[float], fixed_image: sitk.Image) -> sitk.ImageRegistrationMethod:
    """Return a registration method that measures Mattes mutual information on a pyramid (voxel sizes in mm)."""
    import SimpleITK

    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    use_every_voxel(method, shrink_mm, fixed_image)
    return method


def information_between(fixed_image: sitk.Image, moving_image: sitk.Image, transform: sitk.Transform) -> float:
    """Return mutual information of two ITK images, 0 where they do not overlap."""
    import SimpleITK

    method = mutual_information(SHRINK_MM[-1:], fixed_image)
    method.SetInitialTransform(SimpleITK.Euler3DTransform(transform), inPlace=True)
    shrink = [max(1, round(SHRINK_MM[-1] / UNIT_MM / size)) for size in fixed_image.GetSpacing()]
    smooth = SimpleITK.SmoothingRecursiveGaussian
    sigma = SHRINK_MM[-1] / UNIT_MM / 2
    try:
        return -method.MetricEvaluate(SimpleITK.Shrink(smooth(fixed_image, sigma), shrink), smooth(moving_image, sigma))
    except RuntimeError:
        return 0.0


def largest_shift_mm(to_fixed: np.ndarray, volume: np.ndarray, affine: np.ndarray) -> float:
    """Return the largest shift that a transform gives a corner of the box around the nonzero voxels; mm."""
    voxels = np.argwhere(volume > 0.02 * volume.max())
    low, high = voxels.min(axis=0), voxels.max(axis=0)
    corners = [(x, y, z) for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
    world = nib.affines.apply_affine(affine, corners)
    return float(np.linalg.norm(nib.affines.apply_affine(to_fixed, world) - world, axis=1).max())


def itk_text(to_fixed: np.ndarray) -> str:
    """Return a transform of the world (RAS, mm) as the text of an ITK transform file.

    As ITK and ANTs want it: in LPS, and from points of the fixed image to points of the moving one, with which the
    moving image is resampled on the fixed one (`antsApplyTransforms -i moving -r fixed -t FILE`).
    """
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix = to_lps @ np.linalg.inv(to_fixed) @ to_lps
    numbers = ' '.join(f'{value:.12g}' for value in [*matrix[:3, :3].ravel(), *matrix[:3, 3]])
    return (
        '#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n'
        f'Parameters: {numbers}\nFixedParameters: 0 0 0\n'
    )


def from_itk_text(text: str) -> np.ndarray:
    """Invert `itk_text`."""
    (line,) = [line for line in text.splitlines() if line.startswith('Parameters:')]
    values = np.array(line.split()[1:], dtype=np.float64)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    return np.linalg.inv(to_lps @ nib.affines.from_matvec(values[:9].reshape(3, 3), values[9:]) @ to_lps)


def to_itk(volume: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """Return an array as a SimpleITK image whose physical space is the world of nibabel (RAS, not LPS).

    In `UNIT_MM`.
    """
    import SimpleITK

    sizes = nib.affines.voxel_sizes(affine)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.T, dtype=np.float32))
    image.SetSpacing([float(size) / UNIT_MM for size in sizes])
    image.SetOrigin([float(mm) / UNIT_MM for mm in affine[:3, 3]])
    image.SetDirection((affine[:3, :3] / sizes).ravel().tolist())
    return image


def from_template(
    volume: np.ndarray,
    template_affine: np.ndarray,
    to_template: np.ndarray,
    shape: Sequence[int] | np.ndarray,
    affine: np.ndarray,
    order: int = 1,
) -> np.ndarray:
    """Resample a volume of the template's space to a subject's grid; float32 array, zero outside.

    Parameters
    ----------
    volume : (X, Y, Z) array
    template_affine, to_template, affine : (4, 4) arrays
        Voxel to world of the volume, world of the subject to world of the template, voxel to world of the subject.
    shape : (X, Y, Z) of the subject
    order : int
        Of the spline.
    """
    matrix = np.linalg.inv(template_affine) @ to_template @ affine
    return ndimage.affine_transform(
        volume.astype(np.float32), matrix[:3, :3], matrix[:3, 3], output_shape=tuple(shape), order=order
    )


def halve(volume: np.ndarray, start: Any) -> np.ndarray:
    """Downsample a volume to twice the voxel size: means of 2 x 2 x 2 voxels; float32 array.

    Parameters
    ----------
    volume : (X, Y, Z) array
    start : 3 ints, 0 or 1
        Voxels of zero that are put before the first, so that blocks begin elsewhere.
    """
    padded = np.pad(volume, [(before, (before + n) % 2) for n, before in zip(volume.shape, start)])
    x, y, z = (n // 2 for n in padded.shape)
    return padded.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5), dtype=np.float32)


def double(displacement: np.ndarray, shape: Sequence[int] | np.ndarray, start: Any) -> np.ndarray:
    """Upsample a displacement field of a halved grid (`halve`) to the full one, in its voxels.

    Parameters
    ----------
    displacement : (X', Y', Z', 3) float array, in voxels of the halved grid
    shape : (X, Y, Z)
    start : as it was given to `halve`

    Returns
    -------
    (X, Y, Z, 3) float32 array
    """
    offset = [(before - 0.5) / 2 for before in start]
    doubled = [
        ndimage.affine_transform(part, np.diag([0.5] * 3), offset, output_shape=tuple(shape), order=1, mode='nearest')
        for part in np.moveaxis(displacement.astype(np.float32), -1, 0)
    ]
    return 2 * np.stack(doubled, axis=-1)


def displaced_points(mask: np.ndarray, displacement: np.ndarray, to_world: np.ndarray) -> np.ndarray:
    """Return the world coordinates of the voxels of a mask after a displacement; (voxels, 3) array, mm.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
    displacement : (X, Y, Z, 3) array, in voxels
    to_world : (4, 4) array
        From (displaced) voxels to that world.
    """
    return nib.affines.apply_affine(to_world, np.argwhere(mask) + displacement[mask])


def sample(volume: np.ndarray, affine: np.ndarray, points_mm: np.ndarray, order: int) -> np.ndarray:
    """Interpolate a volume at points of its world, zero outside; (points,) array of its type."""
    voxels = nib.affines.apply_affine(np.linalg.inv(affine), points_mm)
    return ndimage.map_coordinates(volume, voxels.T, order=order)
