"""White noise that belongs to places of a subject's space, not to the voxels of an image.

The noise is drawn once, on a lattice finer than voxels. An image takes it at points between its voxels, and a low-pass
filter leaves what its voxels can hold. So it is white on any grid, and two images of one head have the same noise, also
if their voxels lie half a voxel apart or are turned. (Noise that moves with a scene: Chang et al. 2024, "How I Warped
Your Noise", ICLR.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.eulerangles import euler2mat
from scipy import ndimage, signal

LEAST_CELL_MM, MOST_CELL_MM = 0.35, 0.5  # of the lattice; a finer one costs too much
# Of the lattice against the subject's axes: where an image had the same axes, all of its voxels would lie alike among
# the points of the lattice, and interpolation would smooth all or none of them.
TILT = euler2mat(0.5, 0.7, 0.3)
BLOCK = 32  # points of the lattice per axis that are drawn at once
STREAM = 2  # of random numbers, apart from those of single images
MARGIN_VOXELS = 6  # half the length of the low-pass filter


def cell_size(voxel_sizes_mm: Sequence[float] | np.ndarray) -> float:
    """Return the distance of the points of a lattice for images of such voxels; mm."""
    return float(np.clip(min(voxel_sizes_mm) / 2, LEAST_CELL_MM, MOST_CELL_MM))


@dataclass(frozen=True)
class SubjectNoise:
    """White noise of a subject's space, seen from the world of one image."""

    seed: int
    to_subject: np.ndarray  # (4, 4), world of the image to that of the subject, rigid
    cell_mm: float = MOST_CELL_MM

    def on_grid(self, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
        """Return the noise of the voxels of a grid in the world of the image; (X, Y, Z) float32 array.

        Parameters
        ----------
        shape : (X, Y, Z)
        affine : (4, 4) array
            Voxel to world.
        """
        sizes_mm = nib.affines.voxel_sizes(affine)
        parts = np.maximum(np.rint(sizes_mm / self.cell_mm), 1).astype(int)  # of a voxel, per axis
        fine_shape = parts * (np.array(shape) + 2 * MARGIN_VOXELS - 1) + 1
        to_lattice = nib.affines.from_matvec(TILT / self.cell_mm) @ self.to_subject @ affine
        to_lattice = to_lattice @ nib.affines.from_matvec(np.diag(1 / parts), [-MARGIN_VOXELS] * 3)
        lattice, first = self.lattice_around(fine_shape, to_lattice)
        offset = to_lattice[:3, 3] - first
        noise = ndimage.affine_transform(lattice, to_lattice[:3, :3], offset, output_shape=tuple(fine_shape), order=1)
        for axis, n in enumerate(parts):
            noise = ndimage.convolve1d(noise, low_pass(n, self.cell_mm * n / sizes_mm[axis]), axis, mode='constant')
            noise = noise[(slice(None),) * axis + (slice(None, None, n),)]
        return noise[(slice(MARGIN_VOXELS, -MARGIN_VOXELS),) * 3]

    def lattice_around(self, shape: np.ndarray, to_lattice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the part of the lattice around a grid, and the number of its first point: 3D array, (3,) ints."""
        corners = [np.array(corner) * (shape - 1) for corner in np.ndindex(2, 2, 2)]
        corners = nib.affines.apply_affine(to_lattice, corners)
        low = np.floor(corners.min(axis=0) / BLOCK).astype(int)
        n_blocks = np.floor((corners.max(axis=0) + 1) / BLOCK).astype(int) - low + 1
        lattice, to_grid = np.zeros(n_blocks * BLOCK, np.float32), np.linalg.inv(to_lattice)
        for block in np.ndindex(*n_blocks):
            ends = nib.affines.apply_affine(to_grid, [(low + block + end) * BLOCK for end in np.ndindex(2, 2, 2)])
            if (ends.max(axis=0) > -2).all() and (ends.min(axis=0) < shape + 1).all():  # else the grid passes it by
                lattice[tuple(slice(n * BLOCK, (n + 1) * BLOCK) for n in block)] = self.points_of(low + block)
        return lattice, low * BLOCK

    def points_of(self, block: np.ndarray) -> np.ndarray:
        """Draw a block of the lattice, the same one wherever it is asked for; cubic float32 array."""
        rng = np.random.default_rng([self.seed, STREAM, *(int(n) % 2**32 for n in block)])
        return rng.standard_normal((BLOCK,) * 3, dtype=np.float32)


def low_pass(n_parts: int, cells: float) -> np.ndarray:
    """Return the filter that leaves of white noise, interpolated on parts of voxels, white noise of whole voxels.

    Linear interpolation between points of distance h passes (2 + cos(2 pi f h)) / 3 of the power at frequency f, on
    average over where the parts lie.

    Parameters
    ----------
    n_parts : int
        In a voxel.
    cells : float
        Distance of the points of the lattice, in parts of a voxel.

    Returns
    -------
    (n,) float array
    """
    edge, last = 1 / n_parts, np.nextafter(1 / n_parts, 2)  # 1: half of a period in a part
    frequency = np.unique([*np.linspace(0, 1, 129), edge, min(last, 1)])
    gain = np.where(frequency <= edge, 1 / np.sqrt(passed_by_interpolation(frequency, cells)), 0)
    taps = signal.firwin2(2 * MARGIN_VOXELS * n_parts + 1, frequency, gain, window=('kaiser', 4.0))
    power = np.abs(np.fft.rfft(taps, 1024)) ** 2 * passed_by_interpolation(np.linspace(0, 1, 513), cells)
    return taps / np.sqrt(power.mean())


def passed_by_interpolation(frequency: np.ndarray, cells: float) -> np.ndarray:
    """Return the power of white noise that is left after linear interpolation; see `low_pass`."""
    return (2 + np.cos(np.pi * frequency * cells)) / 3
