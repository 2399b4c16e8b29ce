"""Library of real lesion shapes, bundled with the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class LesionLibrary:
    """Lesions of real masks and the space in which they were drawn.

    `shapes` : list of n cropped bool arrays, RAS, 1 mm
    `centres_mm` : (n, 3) array, where voxel `shape // 2` lies in the template's world
    `patients` : (n,) int array, who had it
    `places` : (n,) int array, see `tissues.PLACES`
    `template`, `frequency`, `ventricles` : (X, Y, Z) uint8 arrays: T1w with white matter at 170; lesions per volume,
    smoothed, left and right alike, 255 at most; 1 in the lateral ventricles
    `affine` : (4, 4) array, voxel to world of these three
    """

    shapes: list
    centres_mm: np.ndarray
    patients: np.ndarray
    places: np.ndarray
    template: np.ndarray
    frequency: np.ndarray
    ventricles: np.ndarray
    affine: np.ndarray

    @property
    def volumes(self) -> np.ndarray:
        """Voxels (mm3) of every lesion, (n,) int array."""
        return np.array([shape.sum() for shape in self.shapes])


def pack_shapes(shapes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pack bool arrays as bits: (bits of all of them, uint8; their (n, 3) sizes)."""
    return np.concatenate([np.packbits(shape) for shape in shapes]), np.array([s.shape for s in shapes], dtype=np.int16)


def unpack_shapes(bits: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Unpack bool arrays; the inverse of `pack_shapes`."""
    n_voxels = sizes.astype(int).prod(axis=1)
    pieces = np.split(bits, np.cumsum(-(-n_voxels // 8))[:-1])
    return [np.unpackbits(piece, count=n).reshape(size).astype(bool) for piece, n, size in zip(pieces, n_voxels, sizes)]


LESIONS_DIR = Path(__file__).parent


def load_lesion_library(name: str = 'ljubljana', lesions_dir: Path = LESIONS_DIR) -> LesionLibrary:
    """Load a bundled library of lesions: a `lesion_masks.LesionLibrary`.

    Raises
    ------
    FileNotFoundError
        Names what was looked for.
    """
    import numpy as np

    library_file = Path(lesions_dir) / f'{name}.npz'
    if not library_file.is_file():
        raise FileNotFoundError(f'lesion library {name!r} is not there: expected {library_file}')
    with np.load(library_file, allow_pickle=False) as arrays:
        shapes = unpack_shapes(arrays['shape_bits'], arrays['shape_sizes'])
        fields = ('centres_mm', 'patients', 'places', 'template', 'frequency', 'ventricles', 'affine')
        return LesionLibrary(shapes, *(arrays[field] for field in fields))
