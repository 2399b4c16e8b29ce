"""Can a classifier tell filled tissue from untouched white matter? Patches of one shape, and the features they have.

A patch is a ball, cut to what is filled; the same shape is laid at two places of untouched white matter nearby: one is
compared with the filled patch, and both with each other (the null). Patients are never on both sides of a split.
Arrays are `(X, Y, Z)`, RAS, 1 mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage, stats
from scipy.spatial import cKDTree

RADIUS_VOXELS = 3  # of a patch: larger ones find no place where lesions are many
MIN_VOXELS = 60  # of a patch; fewer say nothing of texture
N_NEAREST, N_CANDIDATES = 4000, 400  # so many places are near; of so many, drawn of them, those that hold a shape
N_LEVELS, RANGE_SD = 8, 3  # of the co-occurrence matrix
AXES = ('x', 'y', 'z')


class Patches(NamedTuple):
    """Patches in threes: (n, w, w, w) float arrays of intensities in SD off the local mean, and their (n, ...) mask."""

    filled: np.ndarray
    untouched: np.ndarray
    control: np.ndarray  # untouched as well, elsewhere
    mask: np.ndarray


def ball(radius: int) -> np.ndarray:
    """Return the offsets of the voxels of a ball, (voxels, 3) int array."""
    steps = np.arange(-radius, radius + 1)
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing='ij'), axis=-1).reshape(-1, 3)
    return offsets[(offsets**2).sum(axis=1) <= radius**2 + 1]


def draw_patches(
    filled: np.ndarray,
    original: np.ndarray,
    filled_mask: np.ndarray,
    untouched_mask: np.ndarray,
    rng: np.random.Generator,
    n_patches: int = 60,
    radius: int = RADIUS_VOXELS,
) -> Patches:
    """Draw patches of filled tissue, and patches of the same shape from untouched white matter nearby: Patches.

    Parameters
    ----------
    filled, original : (X, Y, Z) float array
        After and before filling, in standard deviations off the local mean.
    filled_mask, untouched_mask : (X, Y, Z) bool array
        Where patches may lie.
    rng : numpy.random.Generator
    n_patches : int
        At most so many; fewer where shapes are small or find no place.
    radius : int
    """
    width = 2 * radius + 1
    offsets = ball(radius)
    centres, places = np.argwhere(filled_mask), np.argwhere(untouched_mask)
    found = [np.zeros((0, width, width, width), dtype=np.float32)] * 4
    if not len(centres) or len(places) < 2:
        return Patches(*found[:3], found[3] > 0)  # type: ignore[call-arg]
    tree = cKDTree(places)
    padded = [np.pad(array, radius) for array in (filled, original, filled_mask, untouched_mask)]
    drawn = [[], [], [], []]
    for centre in rng.permutation(centres)[: 4 * n_patches]:
        if len(drawn[0]) == n_patches:
            break
        shape = offsets[padded[2][tuple((centre + radius + offsets).T)]]
        if len(shape) < MIN_VOXELS:
            continue
        nearest = tree.query(centre, k=np.arange(1, min(N_NEAREST, len(places)) + 1))[1]
        near = places[rng.permutation(nearest)[:N_CANDIDATES]]
        holds = padded[3][tuple(np.moveaxis(near[:, None] + radius + shape, -1, 0))].all(axis=1)
        if holds.sum() < 2:
            continue
        one, other = near[rng.choice(np.flatnonzero(holds), 2, replace=False)]
        inside = tuple((radius + shape).T)
        for part, image, place in zip(drawn, (padded[0], padded[1], padded[1]), (centre, one, other)):
            patch = np.zeros((width,) * 3, dtype=np.float32)
            patch[inside] = image[tuple((place + radius + shape).T)]
            part.append(patch)
        mask = np.zeros((width,) * 3, dtype=bool)
        mask[inside] = True
        drawn[3].append(mask)
    if not drawn[0]:
        return Patches(*found[:3], found[3] > 0)  # type: ignore[call-arg]
    return Patches(*(np.stack(part) for part in drawn))


def pair_values(values: np.ndarray, mask: np.ndarray, axis: int, lag: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of all voxel pairs of a mask, `lag` apart along an axis: two (pairs,) arrays."""
    values, mask = np.moveaxis(values, axis, 0), np.moveaxis(mask, axis, 0)
    both = mask[lag:] & mask[:-lag]
    return values[lag:][both], values[:-lag][both]


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the correlation of two arrays; 0 if one is constant or too short."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def cooccurrence(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Compute the symmetric grey-level co-occurrence (Haralick et al. 1973) over all axes; sums to 1.

    Values are binned to 8 levels from -3 to 3.
    """
    levels = np.clip((values + RANGE_SD) / (2 * RANGE_SD) * N_LEVELS, 0, N_LEVELS - 1).astype(int)
    counts = np.zeros((N_LEVELS, N_LEVELS))
    for axis in range(3):
        np.add.at(counts, pair_values(levels, mask, axis), 1)
    counts += counts.T
    return counts / max(counts.sum(), 1)


def features(values: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Compute IBSI radiomics of a patch (Zwanenburg et al. 2020), intensity and texture: dict of float.

    Parameters
    ----------
    values : (w, w, w) float array
        In standard deviations off the local mean.
    mask : (w, w, w) bool array
    """
    inside = values[mask].astype(np.float64)
    p5, p25, p75, p95 = np.percentile(inside, (5, 25, 75, 95))
    found = {'mean': inside.mean(), 'sd': inside.std(), 'p5': p5, 'p95': p95, 'iqr': p75 - p25}
    flat = np.ptp(inside) < 1e-6
    found['skewness'] = 0.0 if flat else stats.skew(inside)
    found['kurtosis'] = 0.0 if flat else stats.kurtosis(inside)
    for axis, name in enumerate(AXES):
        one, other = pair_values(values, mask, axis)
        found[f'step_{name}'] = np.abs(one - other).mean() if len(one) else 0.0
        found[f'lag1_{name}'] = correlation(one, other)
        found[f'lag2_{name}'] = correlation(*pair_values(values, mask, axis, 2))
    weight = ndimage.gaussian_filter(mask.astype(np.float32), 1.2)
    smooth = ndimage.gaussian_filter(np.where(mask, values, 0).astype(np.float32), 1.2) / np.maximum(weight, 1e-4)
    found['grain'] = (values - smooth)[mask].std()
    matrix = cooccurrence(values, mask)
    i, j = np.indices(matrix.shape)
    found['contrast'] = (matrix * (i - j) ** 2).sum()
    found['homogeneity'] = (matrix / (1 + (i - j) ** 2)).sum()
    found['energy'] = (matrix**2).sum()
    found['entropy'] = -(matrix[matrix > 0] * np.log2(matrix[matrix > 0])).sum()
    return {name: float(value) for name, value in found.items()}


def forest_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predict the second class with a forest of 300 trees, from (patches, features) arrays."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(300, min_samples_leaf=3, random_state=0)
    return forest.fit(train, labels).predict_proba(test)[:, 1]


def network_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, n_epochs: int = 15) -> np.ndarray:
    """Score of the second class by a small 3D convolutional network.

    Parameters
    ----------
    train, test : (patches, 2, w, w, w) float32 arrays
        Intensities, and the mask of the shape.
    labels : (patches,) int array
    n_epochs : int
    """
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv3d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv3d(12, 24, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv3d(24, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 1)),
        )
        optimiser = torch.optim.Adam(network.parameters(), 2e-3, weight_decay=1e-4)
        images, targets = torch.from_numpy(train), torch.from_numpy(labels).float()
        for _ in range(n_epochs):
            for batch in torch.randperm(len(images)).split(32):
                flipped = images[batch]
                axes = [axis for axis in (2, 3, 4) if torch.rand(()) < 0.5]
                loss = nn.functional.binary_cross_entropy_with_logits(
                    network(flipped.flip(axes) if axes else flipped)[:, 0], targets[batch]
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        with torch.no_grad():
            return torch.cat([network(part)[:, 0] for part in torch.from_numpy(test).split(64)]).numpy()


def table_of(patches: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Compute the features of every patch, (patches, features) array."""
    return np.array([list(features(*patch).values()) for patch in patches])


def stack_of(patches: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Stack intensities and mask of every patch as channels, (patches, 2, w, w, w) float32 array."""
    return np.stack([np.stack([values, mask]) for values, mask in patches]).astype(np.float32)


CLASSIFIERS = {'radiomics': (table_of, forest_scores), 'network': (stack_of, network_scores)}


def auc_by_patient(
    first: Sequence[tuple[np.ndarray, np.ndarray]],
    second: Sequence[tuple[np.ndarray, np.ndarray]],
    people: np.ndarray,
    classifier: str = 'radiomics',
) -> tuple[float, dict[str, float]]:
    """Compute the leave-one-patient-out ROC AUC of a classifier of two kinds of patches.

    Parameters
    ----------
    first, second : lists of (values, mask)
        Patches of the two kinds, in pairs.
    people : (pairs,) sequence
        Whose they are.
    classifier : {'radiomics', 'network'}

    Returns
    -------
    auc : float
        Mean over patients, each with the weight of its pairs; NaN with fewer than two patients.
    by_patient : dict of float
    """
    from sklearn.metrics import roc_auc_score

    describe, classify = CLASSIFIERS[classifier]
    people = np.asarray(people)
    names = np.unique(people)
    if len(names) < 2:
        return np.nan, {}
    one, other = describe(first), describe(second)
    by_patient, counts = {}, []
    for name in names:
        held = people == name
        train = np.concatenate([one[~held], other[~held]])
        test = np.concatenate([one[held], other[held]])
        labels, truth = (np.repeat([1, 0], n) for n in ((~held).sum(), held.sum()))
        by_patient[str(name)] = float(roc_auc_score(truth, classify(train, labels, test)))
        counts.append(held.sum())
    return float(np.average(list(by_patient.values()), weights=counts)), by_patient


def discriminability(
    patches: Sequence[Patches], people: Sequence[str], classifier: str = 'radiomics', auc_null: float | None = None
) -> dict[str, Any]:
    """Compute the AUC of filled tissue against untouched white matter, and that of chance: dict.

    Parameters
    ----------
    patches : list of Patches, one per image
    people : list
        Whose images they are.
    classifier : see `auc_by_patient`
    auc_null : float, optional
        Where it is known, from the same patches of untouched tissue.

    Returns
    -------
    dict with `auc` and `auc_null` (untouched against untouched), `patches` (their number), `by_patient`.
    """
    owners = np.repeat(people, [len(found.filled) for found in patches])
    masks = [mask for found in patches for mask in found.mask]
    kinds = [
        list(zip([values for found in patches for values in getattr(found, kind)], masks))
        for kind in ('filled', 'untouched', 'control')
    ]
    auc, by_patient = auc_by_patient(kinds[0], kinds[1], owners, classifier)
    if auc_null is None:
        auc_null, _ = auc_by_patient(kinds[2], kinds[1], owners, classifier)
    return {'auc': auc, 'auc_null': auc_null, 'patches': len(owners), 'by_patient': by_patient}
