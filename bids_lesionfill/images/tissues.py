"""Brain mask and tissue classes of a T1w image, for those who bring none. Arrays are `(X, Y, Z)`, RAS, 1 mm."""

import numpy as np
from scipy import ndimage

from . import masks, mixture

CSF, GREY_MATTER, WHITE_MATTER = 1, 2, 3
EXCLUDED = 4  # brain that is not to be taken for any of them: a patient's lesions and their rims
SMALLEST_WM_SHARE = 0.1  # of a brain; white matter is about 0.4 of a healthy one
MAX_REFITS = 3
# A foreground that is larger has a skull, a background that is not zero, or was stripped in part only: two of the T1w
# of sub-P14 of MSLesSeg (2611 and 2243 ml, air zero, no scalp) hold parts of the skull base and of the sinuses. Deepbet
# finds 1999 and 1975 ml in them. Air and dip alone do not tell: cleaned heads of thick slices have dips up to 1.
LARGEST_BRAIN_ML = 2200
SMALLEST_HEAD_ML = 300  # what is smaller is no head in which deepbet could find a brain
# Set on 30 images (T1w, T2w, FLAIR), most of whose heads are larger than a brain anyhow. Air that is zero: most of it
# around brains; less around heads, but nearly all where it was cleaned. Dip of brains 0.87 (a T2w) to 1; of heads with
# cleaned air 0.38 and 0.57.
MIN_SHARE_ZERO = 0.95
MAX_DIP = 0.85


def foreground(t1w):
    """Return the largest connected part of what is clearly not zero, holes filled; bool array."""
    bright = np.percentile(t1w[t1w > 0], 99) if (t1w > 0).any() else 0
    labels, n_parts = ndimage.label(t1w > 0.02 * bright)
    if not n_parts:
        return np.zeros(t1w.shape, dtype=bool)
    largest = np.bincount(labels.flat)[1:].argmax() + 1
    return ndimage.binary_fill_holes(labels == largest)


def find_brain(t1w):
    """Return the brain mask: the foreground of a skull-stripped image, else by deepbet (Fisch et al. 2024).

    See `is_skull_stripped`.

    Parameters
    ----------
    t1w : (X, Y, Z) float array, RAS, 1 mm

    Returns
    -------
    brain_mask : (X, Y, Z) bool array
    skull_stripped : bool

    Raises
    ------
    ValueError
        If the image is empty or constant.
    """
    head = foreground(t1w)
    if not head.any() or t1w.min() == t1w.max():
        raise ValueError(f'no brain: intensities run from {t1w.min():g} to {t1w.max():g}, expected a T1w image')
    if is_skull_stripped(t1w, head):
        return head, True
    return extract_brain(t1w), False


def is_skull_stripped(image, head=None):
    """Return True if an image shows a brain without its head.

    Air is zero, and no dark skull lies below a brighter scalp.

    Parameters
    ----------
    image : (X, Y, Z) float array, RAS, 1 mm
        T1w, T2w or FLAIR; also a slab.
    head : (X, Y, Z) bool array, optional
        Its `foreground`.
    """
    head = foreground(image) if head is None else head
    volume_ml = head.sum() / 1000
    if volume_ml >= LARGEST_BRAIN_ML:
        return False
    if volume_ml < SMALLEST_HEAD_ML:
        return True
    image, head = (array[::2, ::2, ::2] for array in (image, head))
    bright = np.percentile(image[image > 0], 99)
    air = ~ndimage.binary_dilation(head, iterations=3)  # interpolation rings beside a brain
    if head.all():
        return False
    air_is_zero = not air.any() or (np.abs(image[air]) < 1e-3 * bright).mean() > MIN_SHARE_ZERO
    return bool(air_is_zero and skull_dip(image, head) > MAX_DIP)


def skull_dip(image, head, depth_mm=24):
    """Return how dark the darkest layer below the surface is, as a share of layers above and below.

    1 if none is darker.

    Parameters
    ----------
    image : (X, Y, Z) float array, 2 mm
    head : (X, Y, Z) bool array
        Its surface is where it meets air, not where the field of view ends.
    depth_mm : int
        Layers of 2 mm down to this depth are looked at.
    """
    depth = 2 * ndimage.distance_transform_edt(head)
    layers = [image[(depth > start) & (depth <= start + 2)] for start in range(0, depth_mm, 2)]
    medians = [np.median(layer) for layer in layers if len(layer)]
    dips = [
        medians[i] / min(max(medians[:i]), max(medians[i + 1 :]))
        for i in range(1, len(medians) - 1)
        if medians[i] < min(max(medians[:i]), max(medians[i + 1 :]))
    ]
    return min([1, *dips])


def extract_brain(t1w):
    """Extract the brain of a whole head by deepbet, whose weights are in its package; (X, Y, Z) bool array."""
    from deepbet import BrainExtraction  # imports torch

    # deepbet takes the image's own 0.5 and 99.5 percentiles for its window, so units do not matter.
    bet = BrainExtraction(no_gpu=True)
    probability = bet.run_model(np.ascontiguousarray(t1w, dtype=np.float32))
    return bet.postprocess(probability > 0.5) > 0


def correct_bias(t1w, brain_mask):
    """Divide a T1w by its bias field (see `find_bias`); float32 array."""
    return (t1w / find_bias(t1w, brain_mask)).astype(np.float32)


def find_bias(t1w, brain_mask):
    """Estimate the bias field of a T1w (N4, Tustison et al. 2010; SimpleITK); (X, Y, Z) float32 array.

    N4 works on logarithms and leaves a voxel that has none as it is, as if its intensity were one: such voxels take no
    part, and the image enters in units of its median, so that its own unit does not matter.
    """
    import SimpleITK

    brain_mask = brain_mask & (t1w > 0)
    scaled = np.maximum(t1w, 0) / np.float32(np.median(t1w[brain_mask]) if brain_mask.any() else 1)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(scaled, dtype=np.float32))
    mask = SimpleITK.GetImageFromArray(brain_mask.astype(np.uint8))
    shrink = [4] * 3
    correction = SimpleITK.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations([30, 30, 30])
    correction.SetNumberOfThreads(1)  # several threads add up in another order: other bytes
    correction.Execute(SimpleITK.Shrink(image, shrink), SimpleITK.Shrink(mask, shrink))
    log_field = SimpleITK.GetArrayFromImage(correction.GetLogBiasFieldAsImage(image))
    return np.exp(log_field)


def classify(t1w, brain_mask, lesion_mask, bias_field=None):
    """Classify tissue by a mixture of three normal distributions on the bias-corrected T1w.

    Lesions take no part in the fit. They are classified as any voxel: on T1w images as grey matter, mostly.

    Parameters
    ----------
    t1w : (X, Y, Z) float array
        In any unit, background zero.
    brain_mask, lesion_mask : (X, Y, Z) bool array
    bias_field : (X, Y, Z) float32 array, optional
        See `find_bias`; estimated if not given.

    Returns
    -------
    (X, Y, Z) uint8 array: 0 outside, 1 CSF, 2 grey matter, 3 white matter

    Raises
    ------
    ValueError
        If too little of the brain is healthy, or it has no contrast.
    """
    healthy_mask = brain_mask & ~lesion_mask
    if healthy_mask.sum() < 100:
        raise ValueError(
            f'{healthy_mask.sum()} of {brain_mask.sum()} voxels of the brain are outside the lesion mask, expected most'
        )
    bias_field = find_bias(t1w, brain_mask) if bias_field is None else bias_field
    corrected = (t1w / bias_field).astype(np.float32)
    healthy = corrected[healthy_mask]
    healthy = healthy[(healthy > 0) & (healthy < np.percentile(healthy, 99.8))]
    dark, bright = np.percentile(t1w[healthy_mask], (5, 95))
    if len(healthy) < 100 or bright < 1.05 * dark:
        raise ValueError('the brain has no contrast, expected a T1w image with fluid, grey and white matter')
    for _ in range(MAX_REFITS):
        fitted = mixture.fit(healthy, np.percentile(healthy, (8, 45, 85)))
        fluid_to_grey, grey_to_white = mixture.borders(*fitted)
        if (healthy > grey_to_white).mean() > SMALLEST_WM_SHARE:
            break
        healthy = healthy[healthy <= grey_to_white]  # vessels after contrast agent, a hot spot: no white matter
    tissue_seg = np.zeros(t1w.shape, dtype=np.uint8)
    tissue_seg[brain_mask] = CSF + np.digitize(corrected[brain_mask], (fluid_to_grey, grey_to_white), right=True)
    return tissue_seg


def claim_rim(wm_mask, lesion_mask, brain_mask, reach_voxels=3):
    """Return white matter, with the soft rims of lesions claimed back from grey matter.

    A voxel that is part lesion, part white matter looks grey. Growing the mask into white matter alone would then
    stop just where it is needed. What hugs a lesion in a sheet of at most two voxels, and is not the edge of
    anything thicker, is taken for rim: cortex with the fluid on it is thicker.

    Parameters
    ----------
    wm_mask, lesion_mask, brain_mask : (X, Y, Z) bool array
    reach_voxels : int
        How far from the lesion a rim may reach.

    Returns
    -------
    (X, Y, Z) bool array, at least `wm_mask`
    """
    other = ~wm_mask & ~lesion_mask
    thick = ndimage.binary_dilation(ndimage.binary_opening(other, masks.FULL_CONNECTIVITY), masks.FULL_CONNECTIVITY)
    near = ndimage.binary_dilation(lesion_mask, masks.FULL_CONNECTIVITY, iterations=reach_voxels)
    return wm_mask | (other & ~thick & near & brain_mask)
