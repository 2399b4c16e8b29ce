"""Registration of one brain to another: affine, then symmetric normalisation (SyN) by antspyx, with files."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import registration

SYN_ITERATIONS = (40, 20)  # at 4 and 2 mm


def import_ants() -> Any:
    """Import antspyx with one thread: several add up in another order, and a rerun would give other bytes.

    Raises
    ------
    ValueError
        If it is not installed.
    """
    os.environ['ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS'] = '1'  # read at its first filter
    try:
        import ants
    except ImportError:
        raise ValueError('deformable registration needs antspyx, which is not installed: pip install antspyx') from None
    return ants


def find_in(
    t1w: np.ndarray,
    brain_mask: np.ndarray,
    affine: np.ndarray,
    template: np.ndarray,
    template_affine: np.ndarray,
    start: Sequence[float] | np.ndarray = (0, 0, 0),
) -> tuple[np.ndarray, dict[str, Any]]:
    """Find a brain in a template, or in another brain: affine, then SyN.

    The same images give the same bytes.

    Parameters
    ----------
    t1w : (X, Y, Z) float array, RAS, 1 mm, cropped to the brain (other voxels cost time)
    brain_mask : (X, Y, Z) bool array
    affine : (4, 4) array
    template : (X', Y', Z') array
        Skull-stripped, background 0.
    template_affine : (4, 4) array
    start : 3 ints, 0 or 1
        See `deform`.

    Returns
    -------
    points_mm : (voxels, 3) array
        Where the voxels of the brain mask lie in the world of the template.
    info : dict, for a sidecar

    Raises
    ------
    ValueError
        See `registration.affine_to_template`; or if antspyx is not installed.
    """
    to_template = registration.affine_to_template(t1w, brain_mask, affine, template, template_affine)
    moved = registration.from_template(template, template_affine, to_template, t1w.shape, affine)
    brain = np.where(brain_mask, np.clip(t1w, 0, np.percentile(t1w[brain_mask], 99.5)), 0)
    displacement = deform(brain, moved, start)
    points_mm = registration.displaced_points(brain_mask, displacement, to_template @ affine)
    scale = float(np.cbrt(np.linalg.det(to_template[:3, :3])))
    largest = float(np.linalg.norm(displacement[brain_mask], axis=-1).max())
    return points_mm, {'TemplateScale': round(scale, 3), 'LargestDisplacementVoxels': round(largest, 1)}


def deform(fixed: np.ndarray, moving: np.ndarray, start: Sequence[float] | np.ndarray) -> np.ndarray:
    """Register two brains that overlap by symmetric normalisation (SyN, Avants et al. 2008; antspyx) at 2 mm.

    Parameters
    ----------
    fixed, moving : (X, Y, Z) float array, one grid, 1 mm
    start : 3 ints, 0 or 1
        Voxels before the first of the coarse grid.

    Returns
    -------
    (X, Y, Z, 3) float32 array
        Where each voxel of `fixed` lies in `moving`, minus where it is, in voxels.
    """
    ants = import_ants()
    coarse = [ants.from_numpy(registration.halve(volume, start)) for volume in (fixed, moving)]
    with tempfile.TemporaryDirectory() as folder:
        result = ants.registration(
            *coarse,
            type_of_transform='SyNOnly',
            initial_transform='Identity',
            outprefix=f'{folder}/',
            reg_iterations=SYN_ITERATIONS,
            random_seed=1,
        )
        warp_file = next(name for name in result['fwdtransforms'] if Path(name).name.endswith('Warp.nii.gz'))
        displacement = ants.image_read(warp_file).numpy()
    return registration.double(displacement, fixed.shape, start)
