"""Heads whose truth is known, for tests of registration and of measures; the usual phantom is in conftest.py."""

import nibabel as nib
import numpy as np
from conftest import ellipsoid
from nibabel.affines import apply_affine
from scipy import ndimage

SHAPE = (56, 52, 48)
FLUID, GREY, WHITE, SD = 200.0, 500.0, 800.0, 10.0


def build_head(seed=3):
    """White matter with a ventricle in grey matter; a lesion that touches the ventricle, and one that does not."""
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, dtype=bool)
    brain[2:-2, 2:-2, 2:-2] = True
    white = ndimage.binary_erosion(brain, iterations=7)
    ventricle = np.zeros(SHAPE, dtype=bool)
    ventricle[22:28, 18:34, 16:32] = True
    t1w = np.select([ventricle, white, brain], [FLUID, WHITE, GREY], 0) + SD * rng.standard_normal(SHAPE)
    t1w = np.where(brain, t1w, 0)
    at_fluid = np.zeros(SHAPE, dtype=bool)
    at_fluid[28:37, 20:32, 18:30] = True  # 9 x 12 x 12 voxels: 1.296 ml
    apart = ellipsoid(SHAPE, (15, 26, 24), (3, 3, 3))
    lesions = at_fluid | apart
    return t1w, brain, lesions, ventricle, white, apart


def head_at(points_mm):
    """Intensity of a head without symmetry at points of the world, (..., 3) array: a function, so of any grid."""

    def inside(centre, radii):
        return (((points_mm - centre) / radii) ** 2).sum(axis=-1) <= 1

    t1w = np.where(inside((0, 0, 6), (46, 58, 44)), 500.0, 0)
    t1w[inside((0, 0, 8), (38, 50, 35))] = 800
    t1w[inside((-9, 4, 14), (5, 22, 7)) | inside((10, 6, 14), (6, 18, 9))] = 200
    t1w[inside((22, -30, -8), (9, 7, 6))] = 500
    t1w[inside((-18, 28, 0), (6, 10, 8))] = 350
    return t1w


def on_grid(shape, affine, world=None):
    """The head on a grid; `world` takes the grid's world to that of the head."""
    points_mm = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return head_at(points_mm if world is None else apply_affine(world, points_mm)).astype(np.float32)


def turned(degrees, zooms, shift):
    x, y, z = np.radians(degrees)
    return nib.affines.from_matvec(nib.eulerangles.euler2mat(z, y, x) @ np.diag(zooms), shift)
