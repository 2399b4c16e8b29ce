"""White noise that belongs to places of a subject's space, not to the voxels of an image.

The noise is drawn once, on cells far smaller than voxels. A voxel sums up the cells in it, so the noise of an image is
white and of unit variance on any grid, and two images of one head share it as far as their voxels overlap (the
integral noise of Chang et al. 2024, "How I Warped Your Noise", ICLR).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

CELL_MM = 0.5
FINE_CELL_MM, FINE_VOXEL_MM = 0.25, 0.85  # where an image of the subject has smaller voxels than this
BLOCK = 32  # cells per axis that are drawn at once
STREAM = 2  # of random numbers, apart from those of single images


def cell_size(voxel_sizes_mm: Sequence[float] | np.ndarray) -> float:
    """Return the size of the cells for images of such voxels: a voxel of any orientation holds some; mm."""
    return CELL_MM if min(voxel_sizes_mm) >= FINE_VOXEL_MM else FINE_CELL_MM


@dataclass(frozen=True)
class SubjectNoise:
    """White noise of a subject's space, seen from the world of one image."""

    seed: int
    to_subject: np.ndarray  # (4, 4), world of the image to that of the subject, rigid
    cell_mm: float = CELL_MM

    def on_grid(self, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
        """Return the noise of the voxels of a grid in the world of the image; (X, Y, Z) float32 array.

        Parameters
        ----------
        shape : (X, Y, Z)
        affine : (4, 4) array
            Voxel to world.
        """
        # A cell has its centre at a half, so that the faces of voxels of 1 mm seldom meet a centre.
        to_cells = nib.affines.from_matvec(np.eye(3) / self.cell_mm, [-0.5] * 3) @ self.to_subject @ affine
        to_voxels = np.linalg.inv(to_cells)
        total, count = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
        for block in self.blocks(shape, to_cells):
            add_block(total, count, self.cells_of(block), block * BLOCK, to_voxels)
        empty = np.argwhere(count == 0)  # voxels smaller than a cell
        if len(empty):
            cells = np.rint(nib.affines.apply_affine(to_cells, empty)).astype(int)
            total[tuple(empty.T)] = self.values_at(cells)
        return total / np.sqrt(np.maximum(count, 1), dtype=np.float32)

    def blocks(self, shape: Sequence[int], to_cells: np.ndarray) -> Iterator[np.ndarray]:
        """Give the numbers of all blocks of cells that the box of a grid may touch; (3,) int arrays."""
        corners = [np.array(corner) * np.array(shape) - 0.5 for corner in np.ndindex(2, 2, 2)]
        cells = nib.affines.apply_affine(to_cells, corners)
        low, high = (np.floor(edge / BLOCK).astype(int) for edge in (cells.min(axis=0), cells.max(axis=0)))
        to_voxels = np.linalg.inv(to_cells)
        for number in np.ndindex(*(high - low + 1)):
            block = low + number
            ends = nib.affines.apply_affine(
                to_voxels, [(block + corner) * BLOCK for corner in np.ndindex(2, 2, 2)]
            )
            if (ends.max(axis=0) > -1).all() and (ends.min(axis=0) < shape).all():
                yield block

    def cells_of(self, block: np.ndarray) -> np.ndarray:
        """Draw the cells of a block, the same ones wherever it is asked for; cubic float32 array."""
        rng = np.random.default_rng([self.seed, STREAM, *(int(n) % 2**32 for n in block)])
        return rng.standard_normal((BLOCK,) * 3, dtype=np.float32)

    def values_at(self, cells: np.ndarray) -> np.ndarray:
        """Return the values of cells by their numbers, (n, 3) int array; (n,) float32 array."""
        values, numbers = np.empty(len(cells), np.float32), np.floor_divide(cells, BLOCK)
        blocks, which = np.unique(numbers, axis=0, return_inverse=True)
        for n, block in enumerate(blocks):
            inside = which.ravel() == n
            values[inside] = self.cells_of(block)[tuple((cells[inside] - block * BLOCK).T)]
        return values


def add_block(
    total: np.ndarray, count: np.ndarray, cells: np.ndarray, first: np.ndarray, to_voxels: np.ndarray
) -> None:
    """Add the cells of a block to the voxels in which their centres lie; `total` and `count` change.

    Parameters
    ----------
    total, count : (X, Y, Z) arrays
    cells : cubic array
    first : (3,) ints
        Number of the block's first cell.
    to_voxels : (4, 4) array
        Numbers of cells to voxels of the grid.
    """
    origin = nib.affines.apply_affine(to_voxels, first)
    steps = np.arange(BLOCK)
    voxels = [
        np.floor(  # not `rint`, to whose even numbers more would fall
            0.5
            + origin[axis]
            + to_voxels[axis, 0] * steps[:, None, None]
            + to_voxels[axis, 1] * steps[:, None]
            + to_voxels[axis, 2] * steps
        ).astype(np.int32)
        for axis in range(3)
    ]
    inside = np.logical_and.reduce([(index >= 0) & (index < n) for index, n in zip(voxels, total.shape)])
    if not inside.any():
        return
    voxels = [index[inside] for index in voxels]
    low = [int(index.min()) for index in voxels]
    box = [int(index.max()) + 1 - start for index, start in zip(voxels, low)]
    flat = np.ravel_multi_index([index - start for index, start in zip(voxels, low)], box)
    here = tuple(slice(start, start + n) for start, n in zip(low, box))
    size = int(np.prod(box))
    total[here] += np.bincount(flat, cells[inside], size).reshape(box).astype(np.float32)
    count[here] += np.bincount(flat, minlength=size).reshape(box).astype(np.int32)
