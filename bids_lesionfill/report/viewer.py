"""Volumes for the viewer of a report: before, after and masks of an image, with 8 bits a voxel."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial import KDTree

from . import pictures
from .closeup import Masks

LEVELS = 255
MARGIN_VOXELS = 2
USED, GIVEN = 1, 2  # bits of the volume of masks


def pack(
    before: np.ndarray, after: np.ndarray, lesion_masks: Masks, affine: np.ndarray, lesions: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return what the viewer of a page shows of one image.

    Parameters
    ----------
    before, after : (X, Y, Z) float array, RAS+
    lesion_masks : Masks
    affine : (4, 4) array
        From voxels to scanner space, mm.
    lesions : list of dict
        `label` and `centre_voxel` of each.

    Returns
    -------
    dict
        `data`: bytes, see `stream`; and for the page's script: `grey_max`, the intensity of level 255; `voxel_mm`;
        `has_given`; `places`: dict of label -> [x, y, z], mm, of the voxel of the mask nearest to a lesion's centre.
    """
    before, after = np.nan_to_num(before), np.nan_to_num(after)
    given = np.zeros_like(lesion_masks.used) if lesion_masks.given is None else lesion_masks.given
    head = pictures.foreground(before)
    grey_max = pictures.grey_maximum(before, head, lesion_masks.used)
    box = crop(head, lesion_masks.used | given | (before != after))
    old, new = (to_levels(volume[box], grey_max) for volume in (before, after))
    bits = (USED * lesion_masks.used[box] + GIVEN * given[box]).astype(np.uint8)
    corner = apply_affine(affine, [side.start for side in box])
    return {
        'data': stream(old, new, bits, from_matvec(affine[:3, :3], corner)),
        'grey_max': grey_max,
        'voxel_mm': [round(float(size), 3) for size in nib.affines.voxel_sizes(affine)],
        'has_given': lesion_masks.given is not None,
        'places': find_places(lesion_masks.used, affine, lesions),
    }


def to_levels(volume: np.ndarray, grey_max: float) -> np.ndarray:
    """Return intensities in 256 levels, from 0 to `grey_max`; uint8 array."""
    return np.clip(np.rint(volume * (LEVELS / grey_max)), 0, LEVELS).astype(np.uint8)


def stream(before: np.ndarray, after: np.ndarray, bits: np.ndarray, affine: np.ndarray) -> bytes:
    """Return a NIfTI file of one image, followed by two arrays of its size, compressed together.

    Parameters
    ----------
    before, after, bits : (X, Y, Z) uint8 array
        The second array of the stream is after − before, modulo 256: nearly all of it is zero, which takes no room.
    affine : (4, 4) array
    """
    parts = [nib.Nifti1Image(before, affine).to_bytes(), *(part.tobytes(order='F') for part in (after - before, bits))]
    return gzip.compress(b''.join(parts), compresslevel=6, mtime=0)


def crop(head: np.ndarray, needed: np.ndarray) -> tuple[slice, ...]:
    """Return the box of the head, widened to hold all that is needed; slices."""
    sides = []
    for axis, length in enumerate(head.shape):
        low, high = pictures.crop_limits(head, axis, 1, MARGIN_VOXELS)
        seen = np.flatnonzero(needed.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (seen[0], seen[-1]) if len(seen) else (length, 0)
        sides.append(slice(int(max(0, min(np.ceil(low), first))), int(min(length, max(np.floor(high), last) + 1))))
    return tuple(sides)


def find_places(
    lesion_mask: np.ndarray, affine: np.ndarray, lesions: Sequence[dict[str, Any]]
) -> dict[int, list[float]]:
    """Return where to look for each lesion: the voxel of the mask that is nearest to its centre; mm."""
    voxels = np.argwhere(lesion_mask)
    if not len(voxels) or not lesions:
        return {}
    points_mm = apply_affine(affine, voxels)
    centres_mm = apply_affine(affine, [lesion['centre_voxel'] for lesion in lesions])
    _, nearest = KDTree(points_mm).query(centres_mm)
    return {
        int(lesion['label']): [round(float(x), 2) for x in points_mm[index]]
        for lesion, index in zip(lesions, nearest, strict=True)
    }
