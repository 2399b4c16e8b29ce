"""Table of the lesions of an image: volumes, places, means before and after."""

from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..images import masks


def brain_volume_ml(brain_mask: np.ndarray) -> float:
    """Compute the volume of a brain on the working grid, which has 1 mm; ml."""
    return round(float(brain_mask.sum()) / 1000, 1)


def deviation_of(image: np.ndarray, mask: np.ndarray) -> float | None:
    """Compute the robust standard deviation of an image in a mask; None if the mask is empty."""
    values = image[mask]
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if values.size else None


def label_filled(given_mask: np.ndarray, used_mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Label the lesions of the given mask of which any voxel was filled, whole; return labels (0 elsewhere), count.

    A lesion stays one where the middle of it is fluid, which is not filled.
    """
    labels, n_lesions = masks.label_lesions(given_mask)
    is_filled = np.zeros(n_lesions + 1, dtype=bool)
    is_filled[labels[used_mask]] = True
    is_filled[0] = False
    renumbered = np.where(is_filled, np.cumsum(is_filled), 0)
    return renumbered[labels], int(is_filled.sum())


def number_lesions(given_mask: np.ndarray, used_mask: np.ndarray) -> np.ndarray:
    """Return numbers of the lesions of the given mask that were filled, largest first; (X, Y, Z) int array.

    What the mask grew by counts to the nearest lesion, so that lesions which meet when grown are still told apart.
    """
    labels, n_lesions = label_filled(given_mask, used_mask)
    if not n_lesions:
        return labels
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    labels = np.where(used_mask, labels[tuple(nearest)], 0)
    n_voxels = np.bincount(labels.flat, minlength=n_lesions + 1)[1:]
    numbers = np.zeros(n_lesions + 1, dtype=labels.dtype)
    numbers[1 + np.argsort(-n_voxels, kind='stable')] = np.arange(1, n_lesions + 1)
    return numbers[labels]


def describe_lesions(
    before: np.ndarray,
    after: np.ndarray,
    given_mask: np.ndarray,
    used_mask: np.ndarray,
    wm_mask: np.ndarray,
    affine: np.ndarray,
    seen: np.ndarray,
    faint_below: float = 0,
    fluid_mask: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Describe each connected lesion of the given mask that was filled, one row each, as `number_lesions`.

    Parameters
    ----------
    before, after : (X, Y, Z) float array, in units of the image
    given_mask, used_mask, wm_mask : (X, Y, Z) bool array
    affine : (4, 4) array
    seen : (X, Y, Z) float array
        The image in which the lesions are to be seen, its sign turned where lesions are dark.
    faint_below : float
        Voxels of the given mask count as faint if `seen` is not so much more than in the white matter around.
    fluid_mask : (X, Y, Z) bool array, optional
        Used voxels that are partly fluid: they stay dark, and take no part in the means of a lesion that has others.

    Returns
    -------
    list of dict
        `label`, `volume_mm3` (filled), `given_volume_mm3`, `x_mm`, `y_mm`, `z_mm` (centre of mass, world),
        `mean_before`, `mean_after`, `mean_surrounding` (white matter within three voxels), `mean_touching` and
        `mean_beyond` (white matter that touches the lesion; and the next three voxels), `faint_percent`. Means of
        white matter are those of `before`; NaN where there is none.
    """
    labels = number_lesions(given_mask, used_mask)
    voxel_mm3 = abs(np.linalg.det(affine[:3, :3]))
    healthy = wm_mask & ~used_mask
    rows = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        box = masks.widen(box, 4)
        lesion = labels[box] == number
        tissue = lesion if fluid_mask is None else lesion & ~fluid_mask[box]
        tissue = tissue if tissue.any() else lesion
        shells = [ndimage.binary_dilation(lesion, masks.FULL_CONNECTIVITY, iterations=n) for n in (1, 3, 4)]
        touching, near, far = (shell & healthy[box] for shell in shells)
        faint = seen[box] - mean_of(seen[box], near) < faint_below
        centre = np.argwhere(lesion).mean(axis=0) + [s.start for s in box]
        x, y, z = nib.affines.apply_affine(affine, centre)
        rows.append(
            {
                'label': number,
                'volume_mm3': lesion.sum() * voxel_mm3,
                'given_volume_mm3': (lesion & given_mask[box]).sum() * voxel_mm3,
                'x_mm': x,
                'y_mm': y,
                'z_mm': z,
                'mean_before': before[box][tissue].mean(),
                'mean_after': after[box][tissue].mean(),
                'mean_surrounding': mean_of(before[box], near),
                'mean_touching': mean_of(before[box], touching),
                'mean_beyond': mean_of(before[box], far & ~touching),
                'faint_percent': 100 * mean_of(faint, lesion & given_mask[box]) if near.any() else np.nan,
            }
        )
    return [{name: rounded(name, value) for name, value in row.items()} for row in rows]


def with_looks(lesions: list[dict[str, Any]], seen: Any) -> list[dict[str, Any]]:
    """Add to each row what was seen of its filling (`measures.Seen`), NaN where the lesion is too small to tell."""
    looks = []
    for row in lesions:
        of_lesion = seen.lesions.get(row['label'], {})
        looks.append(
            row
            | {
                'grain': round(of_lesion.get('grain', np.nan), 3),
                'glow_percent': round(100 * of_lesion.get('glow', np.nan), 3),
                'wall_steepness': round(of_lesion.get('wall', np.nan), 3),
            }
        )
    return looks


def rounded(name: str, value: float) -> float:
    """Round a number for the table: to 0.001, means (in image units) to seven digits; a label is an int."""
    if name == 'label':
        return int(value)
    return float(f'{value:.7g}') if name.startswith('mean_') else round(float(value), 3)


def mean_of(image: np.ndarray, mask: np.ndarray) -> float:
    """Compute the mean of an image in a mask; NaN if the mask is empty."""
    return image[mask].mean() if mask.any() else np.nan


def count_touching(new_mask: np.ndarray, old_mask: np.ndarray) -> int:
    """Return the number of new lesions that touch an old one; (X, Y, Z) bool arrays."""
    labels, _ = masks.label_lesions(new_mask)
    touched = labels[ndimage.binary_dilation(old_mask, masks.FULL_CONNECTIVITY)]
    return len(np.unique(touched[touched > 0]))
