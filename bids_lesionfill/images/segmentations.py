"""Tissue classes out of the segmentations that other tools write. Arrays are `(X, Y, Z)`.

Classes are those of `tissues`: 1 CSF, 2 grey matter, 3 white matter.
"""

from typing import Any

import numpy as np

from .tissues import CSF, GREY_MATTER, SMALLEST_WM_SHARE, WHITE_MATTER

# FreeSurfer's aseg and aparc+aseg, as FastSurfer, SynthSeg and SAMSEG write them too; from 101 to 125 what DL+DiReCT
# adds (its cerebellum is one label, and counts as grey matter).
FREESURFER = {
    CSF: (4, 5, 14, 15, 24, 31, 43, 44, 63, 72, 101, 112),
    GREY_MATTER: (
        *(3, 8, 9, 10, 11, 12, 13, 17, 18, 19, 20, 26, 42, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 58, 80, 81, 82),
        *(102, 113),
    ),
    WHITE_MATTER: (2, 7, 16, 25, 28, 41, 46, 57, 60, 77, 78, 79, 85, 99, 125, 192, *range(251, 256)),
}
CORTEX = ((1000, 1100), (2000, 2100), (11100, 11200), (12100, 12200))  # ranges of parcels
WHITE_MATTER_PARCELS = ((3000, 3100), (4000, 4100), (5001, 5003))  # of wmparc
NAMES = {  # of classes, in `dseg.tsv`; lesions lie in white matter
    CSF: ('csf', 'cerebrospinal fluid'),
    GREY_MATTER: ('gm', 'gray matter', 'grey matter'),
    WHITE_MATTER: ('wm', 'white matter', 'lesion'),
}
# The common image-derived labels of BIDS (specification 1.10, derivatives/imaging), which the app writes.
BIDS_LABELS = {GREY_MATTER: 1, WHITE_MATTER: 2, CSF: 3}
BIDS_LESION = 7


def in_bids_labels(tissue_seg: np.ndarray, lesion_mask: np.ndarray | None = None) -> np.ndarray:
    """Convert tissue classes to the common labels of BIDS, lesions on top of them; uint8 array.

    Parameters
    ----------
    tissue_seg : (X, Y, Z) int array
    lesion_mask : (X, Y, Z) bool array, optional

    Returns
    -------
    (X, Y, Z) uint8 array
        1 grey matter, 2 white matter, 3 CSF, 7 lesion.
    """
    labels = np.zeros(tissue_seg.shape, dtype=np.uint8)
    for tissue, label in BIDS_LABELS.items():
        labels[tissue_seg == tissue] = label
    if lesion_mask is not None:
        labels[lesion_mask] = BIDS_LESION
    return labels


def from_freesurfer(labels: np.ndarray) -> np.ndarray:
    """Return tissue classes of FreeSurfer's labels; lesions and hypointensities are white matter. uint8 array.

    Parameters
    ----------
    labels : (X, Y, Z) int array
    """
    tissue_seg = np.zeros(labels.shape, dtype=np.uint8)
    for tissue, members in FREESURFER.items():
        tissue_seg[np.isin(labels, members)] = tissue
    for tissue, ranges in ((GREY_MATTER, CORTEX), (WHITE_MATTER, WHITE_MATTER_PARCELS)):
        for low, high in ranges:
            tissue_seg[(labels >= low) & (labels < high)] = tissue
    return tissue_seg


def from_table(labels: np.ndarray, table: Any) -> np.ndarray:
    """Return tissue classes by the names that a table gives to labels; what is none of the three is 0. uint8 array.

    Parameters
    ----------
    labels : (X, Y, Z) int array
    table : list of dict
        `index`, `name` and maybe `abbreviation`, as in `dseg.tsv`.
    """
    tissue_seg = np.zeros(labels.shape, dtype=np.uint8)
    for row in table:
        called = {str(row.get(column) or '').casefold() for column in ('name', 'abbreviation')}
        for tissue, names in NAMES.items():
            if called & set(names):
                tissue_seg[labels == int(row['index'])] = tissue
    return tissue_seg


def by_intensity(labels: np.ndarray, t1w: np.ndarray) -> np.ndarray:
    """Return tissue classes of three unnamed labels: the darker on a T1w, the more fluid. uint8 array.

    FSL, fMRIPrep and ANTs count in different orders; on a T1w CSF is darkest and white matter brightest. A fourth label
    is allowed, if it is 7: that is a lesion in BIDS, and counts as white matter.

    Raises
    ------
    ValueError
        If there are not just three labels beside 0.
    """
    present = np.unique(labels[labels > 0])
    has_lesions = len(present) == 4 and BIDS_LESION in present
    present = present[present != BIDS_LESION] if has_lesions else present
    if len(present) != 3:
        raise ValueError(f'{len(present)} labels ({present[:5].tolist()}...) and no table that names them, expected 3')
    rising = sorted(present, key=lambda label: np.median(t1w[labels == label]))
    tissue_seg = np.zeros(labels.shape, dtype=np.uint8)
    for tissue, label in zip((CSF, GREY_MATTER, WHITE_MATTER), rising):
        tissue_seg[labels == label] = tissue
    if has_lesions:
        tissue_seg[labels == BIDS_LESION] = WHITE_MATTER
    return tissue_seg


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    """Return the most probable tissue where their sum is at least one half; uint8 array.

    Parameters
    ----------
    probabilities : (3, X, Y, Z) float array
        Of CSF, grey and white matter.
    """
    return np.where(probabilities.sum(axis=0) >= 0.5, probabilities.argmax(axis=0) + 1, 0).astype(np.uint8)


def check_fit(tissue_seg: np.ndarray, t1w: np.ndarray) -> None:
    """Raise ValueError, with what was got, if tissue classes are not those of a T1w.

    White matter has to be there and to be brighter than grey matter, which has to be brighter than CSF if there is any:
    with another order of labels, or in another space, it is not.
    """
    counts = np.bincount(tissue_seg.flat, minlength=4)[1:4]
    shares = counts / max(1, counts.sum())
    if min(shares[1:]) < SMALLEST_WM_SHARE:
        words = ', '.join(f'{share:.0%}' for share in shares)
        raise ValueError(f'CSF, grey and white matter are {words} of it, expected a brain')
    medians = [
        np.median(t1w[tissue_seg == tissue])
        for tissue, share in zip((CSF, GREY_MATTER, WHITE_MATTER), shares)
        if share > 0.01
    ]
    if any(darker > brighter for darker, brighter in zip(medians, medians[1:])):
        raise ValueError('its classes do not rise in brightness from CSF to white matter on the T1w')
