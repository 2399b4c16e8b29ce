"""A subject's way to the space of the lesion library, affine, or to another subject, deformable.

Arrays are `(X, Y, Z)`; world is RAS, mm.
"""

import nibabel as nib
import numpy as np
from scipy import ndimage

SHRINK_MM = (8, 4)  # voxels of the pyramid
UNIT_MM = 60  # about a brain's radius: in it turning, scaling and shifting by 1 move a brain alike, as L-BFGS needs


def affine_to_template(t1w, brain_mask, affine, template, template_affine):
    """Affine registration of a subject's T1w to a template (correlation of intensities; SimpleITK).

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
    registration.SetMetricSamplingStrategy(registration.NONE)
    registration.SetInterpolator(SimpleITK.sitkLinear)
    registration.SetOptimizerAsLBFGSB(gradientConvergenceTolerance=1e-6, numberOfIterations=100)
    registration.SetShrinkFactorsPerLevel([max(1, round(mm / UNIT_MM / min(fixed.GetSpacing()))) for mm in SHRINK_MM])
    registration.SetSmoothingSigmasPerLevel([mm / UNIT_MM / 2 for mm in SHRINK_MM])
    registration.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    registration.SetInitialTransform(transform, inPlace=True)
    n_threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the method's own setting does not reach its metric
    try:
        registration.Execute(fixed, moving)
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(n_threads)
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    to_template = nib.affines.from_matvec(linear, UNIT_MM * np.array(transform.TransformPoint((0.0, 0.0, 0.0))))
    if not 0.3 < np.linalg.det(linear) < 3:
        raise ValueError(
            f'registration to the template scales the brain by {np.linalg.det(linear):.2f}, expected 0.3 to 3'
        )
    return to_template


def to_itk(volume, affine):
    """An array as a SimpleITK image whose physical space is the world of nibabel (RAS, not LPS), in `UNIT_MM`."""
    import SimpleITK

    sizes = nib.affines.voxel_sizes(affine)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.T, dtype=np.float32))
    image.SetSpacing([float(size) / UNIT_MM for size in sizes])
    image.SetOrigin([float(mm) / UNIT_MM for mm in affine[:3, 3]])
    image.SetDirection((affine[:3, :3] / sizes).ravel().tolist())
    return image


def from_template(volume, template_affine, to_template, shape, affine, order=1):
    """A volume of the template's space on a subject's grid; float32 array, zero outside.

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


def warp_mask(mask_img, moving_img, fixed_img, seed=1):
    """A mask of one brain in another one, by affine and symmetric diffeomorphic registration (SyN, antspyx).

    The same images give the same bytes: ANTs' reproducible settings, a seed and one thread. (Two runs on a phantom
    differed by 9 voxels of a lesion of about 200 with the reproducible settings alone, by 69 with the seed alone.)

    Parameters
    ----------
    mask_img, moving_img, fixed_img : nibabel images
        The mask, the T1w on whose grid it lies, and the T1w of the other brain; both skull-stripped, background 0.
    seed : int
        Of the metric's samples.

    Returns
    -------
    (X, Y, Z) bool array, on the grid of `fixed_img`

    Raises
    ------
    ValueError
        If antspyx is not installed.
    """
    try:
        import ants
    except ImportError:
        raise ValueError('registration of masks needs antspyx, which is not installed: pip install antspyx') from None
    ants.config.set_ants_deterministic(on=True, seed_value=seed)  # `registration` itself ignores a seed
    fixed, moving, mask = (to_ants(img) for img in (fixed_img, moving_img, mask_img))
    found = ants.registration(fixed, moving, type_of_transform='antsRegistrationSyNQuickRepro[s]')
    warped = ants.apply_transforms(fixed, mask, found['fwdtransforms'], interpolator='linear')
    return warped.numpy() >= 0.5


def to_ants(img):
    """A nibabel image as one of ANTs, whose world is LPS."""
    import ants

    sizes = nib.affines.voxel_sizes(img.affine)
    to_lps = np.diag([-1.0, -1.0, 1.0])
    return ants.from_numpy(
        np.asarray(img.dataobj, dtype=np.float32),
        origin=(to_lps @ img.affine[:3, 3]).tolist(),
        spacing=sizes.tolist(),
        direction=to_lps @ (img.affine[:3, :3] / sizes),
    )
