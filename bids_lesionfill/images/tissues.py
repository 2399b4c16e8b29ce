"""Brain mask and tissue classes of a T1w image, for those who bring none. Arrays are `(X, Y, Z)`, RAS, 1 mm."""

import numpy as np
from scipy import ndimage

from . import brain_extraction, masks, mixture

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
MIN_OUTERMOST, MIN_BELOW = 0.2, 0.6  # see `fades_out`


def foreground(t1w: np.ndarray) -> np.ndarray:
    """Return the largest connected part of what is clearly not zero, holes filled; bool array."""
    bright = np.percentile(t1w[t1w > 0], 99) if (t1w > 0).any() else 0
    labels, n_parts = ndimage.label(t1w > 0.02 * bright)
    if not n_parts:
        return np.zeros(t1w.shape, dtype=bool)
    largest = np.bincount(labels.flat)[1:].argmax() + 1
    return ndimage.binary_fill_holes(labels == largest)


def find_brain(t1w: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the brain mask: the foreground of a skull-stripped image, else by deepbet's networks (Fisch et al. 2024).

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
    return brain_extraction.extract_brain(t1w), False


def is_skull_stripped(image: np.ndarray, head: np.ndarray | None = None) -> bool:
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
    return bool(air_is_zero and skull_dip(image, head) > MAX_DIP and not fades_out(image, head))


def skull_dip(image: np.ndarray, head: np.ndarray, depth_mm: int = 24) -> float:
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
    medians = layer_medians(image, head, depth_mm)
    dips = [
        medians[i] / min(max(medians[:i]), max(medians[i + 1 :]))
        for i in range(1, len(medians) - 1)
        if medians[i] < min(max(medians[:i]), max(medians[i + 1 :]))
    ]
    return min([1, *dips])


def layer_medians(image: np.ndarray, head: np.ndarray, depth_mm: int = 24) -> list[float]:
    """Return the median of each layer of 2 mm below the surface of a head, outermost first; see `skull_dip`."""
    depth = 2 * ndimage.distance_transform_edt(head)
    layers = (image[(depth > start) & (depth <= start + 2)] for start in range(0, depth_mm, 2))
    return [float(np.median(layer)) for layer in layers if len(layer)]


def fades_out(image: np.ndarray, head: np.ndarray) -> bool:
    """Return True if an image is far darker towards its surface than deep in it, as a slab through face and neck is.

    There muscle, skin and bone lie around the brain without a dark skull in between. Of what is deep (16 to 24 mm) the
    outermost 2 mm have 0.25 to 1.16 in 25 brains (T1w, T2w, FLAIR) and 0.05 to 0.15 in slabs of a head; the next 6 mm
    0.65 to 1.08, and 0.37 to 0.54.
    """
    medians = layer_medians(image, head)
    if len(medians) < 10:
        return False
    deep = max(medians[8:])
    return bool(medians[0] < MIN_OUTERMOST * deep and np.median(medians[1:4]) < MIN_BELOW * deep)


def correct_bias(t1w: np.ndarray, brain_mask: np.ndarray) -> np.ndarray:
    """Divide a T1w by its bias field (see `find_bias`); float32 array."""
    return (t1w / find_bias(t1w, brain_mask)).astype(np.float32)


def find_bias(t1w: np.ndarray, brain_mask: np.ndarray) -> np.ndarray:
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


def classify(
    t1w: np.ndarray, brain_mask: np.ndarray, lesion_mask: np.ndarray, bias_field: np.ndarray | None = None
) -> np.ndarray:
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


def claim_rim(
    wm_mask: np.ndarray, lesion_mask: np.ndarray, brain_mask: np.ndarray, reach_voxels: int = 3
) -> np.ndarray:
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
