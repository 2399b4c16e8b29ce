"""Add to a mean filling the texture of the image's own white matter, by conditional Gaussian simulation.

The image around and inside the hole is split into a smooth trend and a residual. The trend of the mean filling stays.
The residual of untouched white matter gives the level, the spectrum and the anisotropy of the noise (an autocovariance
in voxel lags), and a sample of it is drawn inside the hole given the residuals that are known next to it (Galerne and
Leclaire 2017, doi:10.1137/16M1109047, eq. 3.3)::

    inside = trend + sd * (g + K (z_known - g_known)),  K = C_hole,known C_known,known^-1

`g` is a stationary Gaussian field with autocovariance C, `z_known` the known residual in units of `sd`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import fft, ndimage, sparse
from scipy.sparse import linalg

TREND_MM = 1.5  # standard deviation of the Gaussian that separates trend and residual
FINE_MM = 1.2  # of the one that separates the finest detail, which sets the noise level: anatomy hardly enters
SD_MM = 10.0  # of the one that smooths the local noise level
MAX_LAG = 6  # voxels per axis
HELD_LAG = 2  # voxels up to which an autocovariance is kept as measured
MARGIN_VOXELS = 3  # between white matter that is measured and other tissue or lesions
SHELL_VOXELS = 2  # thickness of the known voxels that condition the sample
FEWEST_VOXELS = 300  # of white matter, to estimate an autocovariance
OUTLIER_SD = 3.5  # robust; beyond are vessels after contrast agent and small lesions
KNOWN_SD = 2.5  # bound on the known residual: a lesion's rim must not be continued
STRUCTURE_SD = 2.0  # detail of the mean filling beyond this is structure, as a wall, and stays
MOST_GAIN = 4.0  # of the power that the subtracted trend had
NUGGET = 0.02  # of the variance; conditions the linear system

# White noise of the voxels of a box, by its shape and the number of its first voxel; or a generator, whose numbers
# belong to no place.
Noise = Callable[[Sequence[int], Sequence[int]], np.ndarray] | np.random.Generator


def add_texture(
    image: np.ndarray,
    mean: np.ndarray,
    hole: np.ndarray,
    wm_mask: np.ndarray,
    noise: Noise,
    voxel_mm: Sequence[float] | np.ndarray = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """Return an image whose hole is filled with a sample: the trend of the mean filling plus texture.

    Parameters
    ----------
    image : (X, Y, Z) float array, any unit
    mean : (X, Y, Z) float array
        Mean filling inside the hole; not read elsewhere.
    hole : (X, Y, Z) bool array
        Voxels to fill with white matter.
    wm_mask : (X, Y, Z) bool array
        White matter; inside the hole it is not read.
    noise : Noise
    voxel_mm : (3,) floats

    Returns
    -------
    (X, Y, Z) float64 array
        Equal to `image` outside the hole. The mean is unchanged if white matter has no noise or fewer than
        `FEWEST_VOXELS` voxels.
    """
    filled = np.where(hole, mean, image).astype(np.float64)
    if not hole.any():
        return filled
    known = wm_mask & ~hole
    box = bounding_box(known | hole)
    hole, known, values = hole[box], known[box], filled[box]
    sigma = TREND_MM / np.asarray(voxel_mm)
    residual = values - smooth_within(values, known, sigma)
    interior = interior_of(known, residual, voxel_mm)
    if interior.sum() < FEWEST_VOXELS or residual[interior].std() <= 1e-6 * np.abs(values[interior]).mean():
        return filled
    finest = FINE_MM / np.asarray(voxel_mm)
    sd = local_deviation(values - smooth_within(values, known, finest), interior, SD_MM / np.asarray(voxel_mm))
    covariance = restore_trend(estimate_covariance(residual / sd, interior), sigma)
    scale = np.sqrt(residual_variance(covariance, finest))
    sd, covariance = sd / scale * np.sqrt(variance_of(covariance)), covariance / variance_of(covariance)
    trend = smooth_within(values, hole | known, sigma)
    unit = (values - trend) / sd
    shell = known & (ndimage.distance_transform_cdt(~hole, 'chessboard') <= SHELL_VOXELS)
    texture = sample_given(unit, hole, shell, covariance, shifted(noise, [part.start for part in box]))
    structure = np.sign(unit) * np.maximum(np.abs(unit) - STRUCTURE_SD, 0)
    values[hole] = (trend + sd * (texture + structure))[hole]
    return filled


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the slices of the smallest box that holds a mask."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def smooth_within(values: np.ndarray, mask: np.ndarray, sigma: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the Gaussian mean of the values inside a mask; zero where the mask is too far away; float32.

    Parameters
    ----------
    values : (X, Y, Z) float array
    mask : (X, Y, Z) bool array
    sigma : (3,) floats
        Standard deviation, voxels per axis.
    """
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode='constant')
    total = ndimage.gaussian_filter(np.where(mask, values, 0).astype(np.float32), sigma, mode='constant')
    return np.where(weight > 1e-6, total / np.maximum(weight, 1e-6), 0)


def interior_of(known: np.ndarray, residual: np.ndarray, voxel_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return white matter that lies deep and holds no outlier; of a thin slab a smaller margin is kept.

    The margin is counted in the plane of the finest voxels: a neighbouring thick slice is further away than that.
    """
    distance = ndimage.distance_transform_edt(np.pad(known, 1), sampling=np.asarray(voxel_mm) / min(voxel_mm))
    distance = distance[1:-1, 1:-1, 1:-1]
    for margin in range(MARGIN_VOXELS, -1, -1):
        interior = distance > margin
        if interior.sum() >= FEWEST_VOXELS:
            break
    for _ in range(3):
        if interior.any():
            interior &= np.abs(residual) <= OUTLIER_SD * robust_deviation(residual[interior])
    return interior


def robust_deviation(values: np.ndarray) -> float:
    """Return the standard deviation of a normal distribution with the 90th percentile of the absolute values.

    Of few grey levels the median absolute value may be zero.
    """
    return np.percentile(np.abs(values), 90) / 1.645


def local_deviation(residual: np.ndarray, interior: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return the local standard deviation of a residual, drawn to that of all white matter where little is near.

    Parameters
    ----------
    residual : (X, Y, Z) float array
    interior : (X, Y, Z) bool array
        Where it is measured.
    sigma : (3,) floats
        Standard deviation of the Gaussian neighbourhood, voxels per axis.
    """
    share, square = interior.astype(np.float32), np.where(interior, residual, 0).astype(np.float32) ** 2
    for _ in range(3):  # three boxes are nearly a Gaussian, and their cost does not grow with it
        width = np.maximum(np.rint(np.sqrt(4 * np.asarray(sigma) ** 2 + 1)), 1).astype(int)
        share, square = (np.maximum(ndimage.uniform_filter(a, width, mode='constant'), 0) for a in (share, square))
    prior = 0.01
    return np.sqrt((square + prior * (residual[interior] ** 2).mean()) / (share + prior))


def estimate_covariance(residual: np.ndarray, mask: np.ndarray, max_lag: int = MAX_LAG) -> np.ndarray:
    """Return the stationary autocovariance of a residual inside a mask, positive semidefinite.

    The correlation of all pairs of mask voxels at a lag (sum of products over mean sum of squares of these pairs),
    times the variance; all sums by FFT. Tapered to zero beyond `max_lag`, then made valid.

    Parameters
    ----------
    residual : (X, Y, Z) float array
    mask : (X, Y, Z) bool array
    max_lag : int
        Voxels per axis.

    Returns
    -------
    (2 L + 1, 2 L + 1, 2 L + 1) float64 array
        Lag zero at the centre; its value is the variance.
    """
    box = bounding_box(mask)
    mask = mask[box].astype(np.float32)
    values = np.where(mask, residual[box], 0).astype(np.float32)
    shape = [fft.next_fast_len(max(n, max_lag + 1) + max_lag, real=True) for n in mask.shape]
    lags = np.ix_(*[np.arange(-max_lag, max_lag + 1)] * 3)
    transform, of_mask, of_squares = (fft.rfftn(a, shape) for a in (values, mask, values**2))
    products, pairs, squares = (
        fft.irfftn(a, shape)[lags].astype(np.float64)
        for a in (np.abs(transform) ** 2, np.abs(of_mask) ** 2, (of_squares * of_mask.conj()).real)
    )
    variance = variance_of(products) / variance_of(pairs)
    correlation = products / np.maximum(squares, 1e-9 * variance_of(squares))
    covariance = variance * np.clip(correlation, -1, 1) * lag_taper(max_lag) * (pairs > 30)
    return make_valid(covariance)


def make_valid(covariance: np.ndarray) -> np.ndarray:
    """Return an autocovariance near the given one, with the same variance and (nearly) no negative spectrum.

    By alternating projections on nonnegative spectra and on arrays with the same support and the same values within
    `HELD_LAG`: without the latter, smooth images would get noise between neighbours.
    """
    max_lag = covariance.shape[0] // 2
    lags = np.ix_(*[np.arange(-max_lag, max_lag + 1)] * 3)
    held = sum(n**2 for n in np.ogrid[(slice(-max_lag, max_lag + 1),) * 3]) <= HELD_LAG**2
    valid = covariance
    for _ in range(40):
        valid = np.where(held, covariance, valid)
        valid = fft.ifftn(np.maximum(spectrum_of(valid, [4 * max_lag] * 3), 0)).real[lags] * (covariance != 0)
    return valid * variance_of(covariance) / variance_of(valid)


def restore_trend(covariance: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return the autocovariance of noise before its Gaussian mean was subtracted.

    The trend of the mean filling holds no noise, that of white matter does. The spectrum of the residual is therefore
    divided by (1 - G)^2, G the transfer function of the Gaussian, by at most `MOST_GAIN`.

    Parameters
    ----------
    covariance : (2 L + 1, 2 L + 1, 2 L + 1) float array
    sigma : (3,) floats
        Standard deviation of the Gaussian, voxels per axis.
    """
    max_lag = covariance.shape[0] // 2
    shape = [4 * max_lag] * 3
    gain = np.minimum(1 / np.maximum(1 - gaussian_transfer(sigma, shape), 1e-6) ** 2, MOST_GAIN)
    restored = fft.ifftn(np.maximum(spectrum_of(covariance, shape), 0) * gain).real
    lags = np.ix_(*[np.arange(-max_lag, max_lag + 1)] * 3)
    return make_valid(restored[lags] * lag_taper(max_lag))


def residual_variance(covariance: np.ndarray, sigma: np.ndarray) -> float:
    """Return the variance that noise of this autocovariance keeps when its Gaussian mean is subtracted."""
    shape = [2 * (covariance.shape[0] - 1)] * 3
    passed = gaussian_transfer(sigma, shape)
    return float((np.maximum(spectrum_of(covariance, shape), 0) * (1 - passed) ** 2).mean())


def gaussian_transfer(sigma: np.ndarray, shape: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the transfer function of a Gaussian, `sigma` in voxels per axis, on the frequencies of a periodic grid."""
    angular = np.meshgrid(*[2 * np.pi * fft.fftfreq(n) for n in shape], indexing='ij', sparse=True)
    return np.exp(-0.5 * sum((s * w) ** 2 for s, w in zip(sigma, angular)))


def variance_of(covariance: np.ndarray) -> float:
    """Return the value at lag zero."""
    return float(covariance[tuple(n // 2 for n in covariance.shape)])


def lag_taper(max_lag: int) -> np.ndarray:
    """Return a window over lags, one up to half of `max_lag`, then falling to zero as a cosine."""
    lag = np.sqrt(sum(n.astype(float) ** 2 for n in np.ogrid[(slice(-max_lag, max_lag + 1),) * 3]))
    return 0.5 + 0.5 * np.cos(np.pi * np.clip(2 * lag / (max_lag + 0.5) - 1, 0, 1))


def spectrum_of(covariance: np.ndarray, shape: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the spectrum of an autocovariance on a periodic grid of the given shape."""
    max_lag = covariance.shape[0] // 2
    kernel = np.zeros(shape, dtype=covariance.dtype)
    kernel[np.ix_(*[np.arange(-max_lag, max_lag + 1)] * 3)] = covariance
    return fft.fftn(kernel).real


def shifted(noise: Noise, start: Sequence[int]) -> Noise:
    """Return the noise of a box whose first voxel has this number."""
    if isinstance(noise, np.random.Generator):
        return noise
    return lambda shape, first: noise(shape, [a + b for a, b in zip(start, first)])


def gaussian_field(covariance: np.ndarray, shape: Sequence[int] | np.ndarray, noise: Noise) -> np.ndarray:
    """Draw a stationary Gaussian field of zero mean: white noise filtered by the root of the spectrum.

    Parameters
    ----------
    covariance : (2 L + 1, 2 L + 1, 2 L + 1) float array
    shape : tuple of int
        Of the field; it is cut from a periodic one that is larger by L.
    noise : Noise
        That of places is drawn around the field, too, so that it has the same values in every box.

    Returns
    -------
    array of that shape, float32
    """
    max_lag = covariance.shape[0] // 2
    margin = 0 if isinstance(noise, np.random.Generator) else max_lag
    periodic = [fft.next_fast_len(max(n + 2 * margin, max_lag + 1) + max_lag, real=True) for n in shape]
    root = np.zeros(periodic, dtype=np.float32)
    root[np.ix_(*[np.arange(-max_lag, max_lag + 1)] * 3)] = covariance
    root = np.sqrt(np.maximum(fft.rfftn(root).real, 0))
    root *= np.sqrt(variance_of(covariance) / mean_square(root, periodic))
    if isinstance(noise, np.random.Generator):
        white = noise.standard_normal(periodic, dtype=np.float32)
    else:
        white = noise(periodic, [-margin] * 3)
    field = fft.irfftn(fft.rfftn(white) * root, periodic)
    return field[tuple(slice(margin, margin + n) for n in shape)]


def mean_square(half: np.ndarray, shape: Sequence[int] | np.ndarray) -> float:
    """Return the mean of squares over a whole spectrum of which `rfftn` gives one half."""
    weight = np.full(half.shape[-1], 2.0)
    weight[0] = 1
    if shape[-1] % 2 == 0:
        weight[-1] = 1
    return np.einsum('xyz,xyz,z', half, half, weight, dtype=np.float64) / np.prod(shape)


def sample_given(
    known_values: np.ndarray, hole: np.ndarray, shell: np.ndarray, covariance: np.ndarray, noise: Noise
) -> np.ndarray:
    """Draw a Gaussian field inside a hole, given its values in a shell of known voxels.

    Parameters
    ----------
    known_values : (X, Y, Z) float array
        Read inside the shell alone, bounded by `KNOWN_SD` standard deviations.
    hole, shell : (X, Y, Z) bool array
    covariance : (2 L + 1, 2 L + 1, 2 L + 1) float array
    noise : Noise

    Returns
    -------
    (X, Y, Z) float64 array, zero outside the hole
    """
    box = bounding_box(hole | shell)
    field = np.zeros(hole.shape)
    field[box] = gaussian_field(covariance, hole[box].shape, shifted(noise, [part.start for part in box]))
    if shell.any():
        sd = np.sqrt(variance_of(covariance))
        gap = np.clip(known_values[shell], -KNOWN_SD * sd, KNOWN_SD * sd) - field[shell]
        field[hole] += kriging(gap, shell[box], hole[box], covariance)
    return np.where(hole, field, 0)


def nugget_of(covariance: np.ndarray) -> float:
    """Return the variance to add so that the linear system of kriging is positive definite and well conditioned."""
    max_lag = covariance.shape[0] // 2
    lowest = spectrum_of(covariance, [4 * max_lag] * 3).min()
    return NUGGET * variance_of(covariance) + max(-lowest, 0)


def kriging(values: np.ndarray, known: np.ndarray, targets: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return the simple-kriging estimate at target voxels, of zero mean, from values at known voxels.

    Parameters
    ----------
    values : (n,) float array
        At the known voxels, in C order.
    known, targets : (X, Y, Z) bool array
    covariance : (2 L + 1, 2 L + 1, 2 L + 1) float array

    Returns
    -------
    (m,) float64 array, at the target voxels in C order
    """
    max_lag = covariance.shape[0] // 2
    weights = np.zeros(np.array(known.shape) + 2 * max_lag)
    inner = (slice(max_lag, -max_lag),) * 3
    index = np.full(weights.shape, -1, dtype=np.int32)
    index[inner][known] = np.arange(len(values))
    at_known, at_targets = np.flatnonzero(index >= 0), np.flatnonzero(np.pad(targets, max_lag))
    steps = np.argwhere(np.abs(covariance) > 2e-3 * variance_of(covariance))
    shifts = (steps - max_lag) @ (np.array(index.strides) // index.itemsize)
    entries, nugget = covariance[tuple(steps.T)], nugget_of(covariance)
    # The sparse matrix is built in place: its triplets would take three times the memory.
    counts = sum((index.ravel()[at_known + shift] >= 0).astype(np.int32) for shift in shifts)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    columns, data, free = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32), starts[:-1].copy()
    for shift, entry in zip(shifts, entries):
        neighbour = index.ravel()[at_known + shift]
        there = neighbour >= 0
        columns[free[there]] = neighbour[there]
        data[free[there]] = entry + nugget * (shift == 0)
        free[there] += 1
    matrix = sparse.csr_array((data, columns, starts), shape=(len(values),) * 2)
    dual, _ = linalg.cg(matrix, values.astype(np.float32), rtol=1e-2, maxiter=100)
    weights[inner][known] = dual
    estimate = np.zeros(len(at_targets))
    for shift, entry in zip(shifts, entries):
        estimate += entry * weights.ravel()[at_targets + shift]
    return estimate
