"""How well a classifier tells real from synthetic lesions: `realism.md`.

    python benchmarks/realism.py BIDS_DIR ... --models MODELS --work-dir WORK    # after table_4_5.py, with its WORK

MODELS: see `held_out.py`. Real lesions against synthetic ones of the same visits, by features of the lesion and its
surroundings; random forest, leave-one-patient-out. `new`: masks drawn as the app draws them, into normal-appearing
white matter, against the real lesions of the visit of the nearest volumes. `put back`: the lesions of table_4_5.py.
"""

import argparse
import warnings

import held_out
import numpy as np
from scipy import ndimage, stats
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from bids_lesionfill import statistics
from bids_lesionfill.diffusion import classical
from bids_lesionfill.images import masks, metrics
from bids_lesionfill.lesions import contrasts, library, synthesis
from bids_lesionfill.modality import get

MIN_VOXELS = 12  # of a lesion that has a texture
DISTANCES = np.arange(-2.5, 4)  # voxels from the border of the mask, inside below zero
GROUPS = ('intensity', 'border', 'texture')
REAL, UNALTERED, BACK = 'real', 'unaltered white matter', ', put back'
NULL = 'null: real lesions'  # against real ones
NOTES = """\
Written by `realism.py`, which says how. {n_real} real lesions of {n_people} patients; every row is a training of its
own, on the other patients. New lesions are sampled in {steps} steps; `no halo`: without what the app adds around them.
AUC: 0.5 cannot be told apart, 1 always;
95 % bootstrap interval, patients drawn first. The classifier knows the mask: `intensity` is the histogram inside it
against the white matter around, `border` the mean at each distance from its border and the gradients there,
`texture` co-occurrence, binary patterns, and grain. `telling`: the features that alone tell the two best (AUC, turned
to above 0.5; over all patients, no training). White matter deviations are the patient's own.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    held_out.add_arguments(parser)
    parser.add_argument('--n-lesions', type=int, default=30)
    parser.add_argument('--load-ml', type=float, default=3.0)
    parser.add_argument('--steps', type=int, help="of the sampling; default: the model's own")
    options = parser.parse_args()
    for modality in options.modality:
        donors = held_out.cut_out(held_out.read_sessions(options.bids_dir, modality, options.work_dir))
        rows = held_out.all_rows(options, modality, 'realism', describe_session, donors, options)
        if len({row['label'] for row in rows}) > 1:
            text = report(rows, options.steps or "the model's own number of")
            held_out.write_section(__file__, 'Real or synthetic?', modality, text)


def describe_session(session, model, donors, options):
    """Features of all lesions of one visit: one row per lesion and kind."""
    rng = session.generator(options.seed)
    image, wm_mask = session.image, session.anatomy.wm_mask
    labels = draw_new(session, options.n_lesions, options.load_ml, rng)
    strengths = contrasts.draw_strengths(rng, labels.max(), 'auto')
    asked = [
        held_out.app_contrasts(image, labels, values, session.lesion_mask, wm_mask, model)
        for values in (strengths, np.full(labels.max(), 0.5))
    ]
    edge = held_out.EDGE_VOXELS[session.modality]
    around = wm_mask & (labels == 0)
    painted, _ = held_out.sample(session, labels, asked[0], model, options.seed, options.steps, texture=True)
    images = {
        REAL: (image, similar(session, labels)),
        f'{model.name}, new': (held_out.with_halo(session, painted, labels, model), labels),
        f'{model.name}, new, no halo': (painted, labels),
        'paste a real lesion, new': (held_out.paste_real(image, labels, around, donors, session.label, rng), labels),
        'constant median, soft edge, new': (held_out.paint_constant(image, labels, asked[1], edge), labels),
        'constant auto, soft edge, new': (held_out.paint_constant(image, labels, asked[0], edge), labels),
        UNALTERED: (image, labels),
    }
    images |= put_back(session, options)
    rows = []
    for kind, (painted, numbers) in images.items():
        rows += describe(session, painted, numbers, kind)
        print(session.name, kind, int(numbers.max()), flush=True)
    return rows


def draw_new(session, n_lesions, load_ml, rng):
    """New lesions as the app draws them, those that have a texture: (X, Y, Z) int array."""
    atlas = synthesis.find_places(session.anatomy, library.load_lesion_library())
    new = synthesis.draw(session.anatomy, atlas, rng, 0.5, n_lesions, load_ml)
    return held_out.draw_lesions(np.asarray(new.mask_img.dataobj) > 0, n_lesions, rng, MIN_VOXELS)


def similar(session, labels):
    """For each new lesion the real one of the visit whose volume is nearest, each once: (X, Y, Z) int array."""
    real, n_real = masks.label_lesions(session.lesion_mask)
    volumes = np.bincount(real.flat).astype(float)
    volumes[0] = np.nan
    volumes[volumes < MIN_VOXELS] = np.nan
    number = np.zeros(n_real + 1, dtype=int)
    for rank, volume in enumerate(np.sort(held_out.volumes_of(labels))[::-1], start=1):
        if np.isfinite(volumes).any():
            nearest = np.nanargmin(np.abs(np.log(volumes / volume)))
            number[nearest], volumes[nearest] = rank, np.nan
    return number[real]


def put_back(session, options):
    """What table_4_5.py painted in this visit, without what was told the true contrast."""
    file = options.work_dir / 'table_4_5' / f'{session.modality}_{session.name}.npz'
    if not file.is_file():
        return {}
    with np.load(file) as arrays:
        labels = arrays['labels']
        found = {REAL + BACK: (session.image, labels)}
        for name in arrays.files:
            if name == 'labels' or name.startswith('flat') or 'true contrast' in name:
                continue
            painted = session.image.copy()
            painted[labels > 0] = arrays[name]
            found[name + BACK] = (painted, labels)
    return found


def describe(session, image, labels, kind):
    """Features of the lesions of one image: a row each."""
    wm_mask = session.anatomy.wm_mask & (labels == 0)
    white_matter = classical.local_white_matter(image, (labels > 0) | session.lesion_mask, wm_mask)
    brighter = image - white_matter
    deviation = 1.4826 * np.median(np.abs(brighter[wm_mask] - np.median(brighter[wm_mask])))
    brighter = get(session.modality).lesion_sign * brighter / deviation
    rows = []
    for number, bound in enumerate(ndimage.find_objects(labels), start=1):
        box = masks.widen(bound, 6)
        mask = labels[box] == number
        if mask.sum() >= MIN_VOXELS:
            known = mask | (wm_mask & ~session.lesion_mask)[box]
            row = {'name': session.name, 'kind': kind, 'lesion': number, 'volume_ml': mask.sum() / 1000}
            rows.append(row | features(brighter[box], mask, known))
    return rows


def features(brighter, mask, known):
    """Features of one lesion.

    Parameters
    ----------
    brighter : (X, Y, Z) float array
        Image minus the white matter around, in deviations of white matter; lesions are above zero.
    mask, known : (X, Y, Z) bool array
        The lesion; the lesion and white matter outside any other.
    """
    values = brighter[mask]
    found = {f'intensity {q} %': np.percentile(values, q) for q in (5, 25, 50, 75, 95)}
    found |= {'intensity deviation': values.std(), 'intensity skewness': stats.skew(values)}
    found['intensity kurtosis'] = stats.kurtosis(values)
    scale = max(values.mean(), 1.0)
    # 1. Border.
    signed = np.where(mask, 0.5 - ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask) - 0.5)
    for distance in DISTANCES:
        shell = known & (np.abs(signed - distance) <= 0.5)
        found[f'border mean at {distance:+g}'] = brighter[shell].mean() / scale if shell.any() else np.nan
    gradient = np.sqrt(sum(part**2 for part in np.gradient(brighter)))
    for name, low, high in (('inside', -9, -1), ('at the border', -1, 1), ('outside', 1, 3)):
        shell = known & (signed >= low) & (signed <= high)
        found[f'border gradient {name}'] = gradient[shell].mean() if shell.any() else np.nan
    found['border step'] = metrics.border_ratio(brighter, mask, known & ~mask)
    # 2. Texture.
    fine = brighter - ndimage.gaussian_filter(brighter, 1)
    found |= {'texture grain': fine[mask].std(), 'texture grain share': fine[mask].std() / max(values.std(), 1e-3)}
    steps = [np.abs(np.diff(brighter, axis=axis))[inner_faces(mask, axis)] for axis in range(3)]
    in_plane = np.concatenate(steps[:2])
    found['texture step in slices'] = in_plane.mean() if in_plane.size else np.nan
    found['texture step across slices'] = steps[2].mean() if steps[2].size else np.nan
    found['texture stripes'] = found['texture step across slices'] / max(found['texture step in slices'], 1e-3)
    levels = np.clip((brighter - values.mean()) / max(values.std(), 1e-3) * 2 + 4, 0, 7).astype(np.uint8) + 1
    patterns, counts = [], np.zeros((9, 9, 1, 4))
    for z in np.flatnonzero(mask.any(axis=(0, 1))):
        level = np.where(mask[..., z], levels[..., z], 0)  # level 0 is outside, and not counted
        counts += graycomatrix(level, [1], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], 9, symmetric=True)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # patterns are meant for integers
            patterns.append(local_binary_pattern(brighter[..., z], 8, 1, 'uniform')[mask[..., z]])
    pairs = counts[1:, 1:].sum(axis=3, keepdims=True)
    if pairs.sum():
        for name in ('contrast', 'homogeneity', 'correlation', 'energy'):
            found[f'texture {name}'] = graycoprops(pairs / pairs.sum(), name)[0, 0]
    else:
        found |= dict.fromkeys([f'texture {n}' for n in ('contrast', 'homogeneity', 'correlation', 'energy')], np.nan)
    shares = np.bincount(np.concatenate(patterns).astype(int), minlength=10) / mask.sum()
    return found | {f'texture pattern {number}': share for number, share in enumerate(shares)}


def inner_faces(mask, axis):
    """Faces between two voxels of a mask."""
    moved = np.moveaxis(mask, axis, 0)
    return np.moveaxis(moved[1:] & moved[:-1], 0, axis)


def matrix(rows, names):
    """Features as an array; what is missing is below all else."""
    return np.array([[-99.0 if row[name] is None else row[name] for name in names] for row in rows])


def judge(rows, names, seed=0):
    """Scores of held-out patients: (n,) array, NaN where a patient has no lesions to learn from elsewhere."""
    people = np.array([row['label'] for row in rows])
    truth = np.array([not row['kind'].startswith(REAL) for row in rows])
    table, scores = matrix(rows, names), np.full(len(rows), np.nan)
    for person in np.unique(people):
        others, own = people != person, people == person
        if len(set(truth[others])) == 2:
            forest = RandomForestClassifier(400, min_samples_leaf=3, class_weight='balanced', random_state=seed)
            scores[own] = forest.fit(table[others], truth[others]).predict_proba(table[own])[:, 1]
    return truth, scores, people


def area(truth, scores, people):
    """AUC with its interval, in words."""
    known = np.isfinite(scores)
    truth, scores, people = truth[known], scores[known], people[known]
    areas = []
    for counts in statistics.bootstrap_weights(people, np.random.default_rng(0), 500):
        if 0 < counts[truth].sum() < counts.sum():
            areas.append(roc_auc_score(truth, scores, sample_weight=counts))
    low, high = np.percentile(areas, (2.5, 97.5))
    return f'{roc_auc_score(truth, scores):.2f} ({low:.2f} to {high:.2f})'


def null_area(rows, names, n_splits=10):
    """AUC of real lesions against real ones, of each visit half taken for synthetic: mean of some splits, in words."""
    real, areas = [row for row in rows if row['kind'] == REAL], []
    for seed in range(n_splits):
        halves = np.random.default_rng(seed).random(len(real)) < 0.5
        split = [row | {'kind': 'half' if half else REAL} for row, half in zip(real, halves)]
        truth, scores, _ = judge(split, names, seed)
        known = np.isfinite(scores)
        areas.append(roc_auc_score(truth[known], scores[known]))
    return f'{np.mean(areas):.2f} ({min(areas):.2f} to {max(areas):.2f}, {n_splits} splits)'


def report(rows, steps):
    """Table of one modality."""
    names = [name for name in rows[0] if name.split()[0] in GROUPS]
    lines = []
    for kind in dict.fromkeys(row['kind'] for row in rows):
        own = [row for row in rows if row['kind'] == kind]
        if kind.startswith(REAL) or len({row['label'] for row in own}) < 2:
            continue
        # Only visits that have both: the classifier is to tell lesions apart, not patients.
        visits = {row['name'] for row in own}
        of_real = REAL + BACK if kind.endswith(BACK) else REAL
        pair = [row for row in rows if row['kind'] == of_real and row['name'] in visits] + own
        cells = [area(*judge(pair, names))]
        for group in GROUPS:
            cells.append(area(*judge(pair, [name for name in names if name.startswith(group)])))
        truth = np.array([not row['kind'].startswith(REAL) for row in pair])
        alone = {name: roc_auc_score(truth, matrix(pair, [name])[:, 0]) for name in names}
        best = sorted(names, key=lambda name: -abs(alone[name] - 0.5))[:3]
        telling = ', '.join(f'{name} ({max(alone[name], 1 - alone[name]):.2f})' for name in best)
        lines.append([kind, len(own), *cells, telling])
    lines.insert(0, [NULL, sum(row['kind'] == REAL for row in rows), null_area(rows, names), '–', '–', '–', '–'])
    real = [row for row in rows if row['kind'] == REAL]
    counts = {'steps': steps, 'n_real': len(real), 'n_people': len({row['label'] for row in real})}
    header = ['synthetic', 'n', 'AUC, all features', *(f'{group} alone' for group in GROUPS), 'telling']
    return NOTES.format(**counts) + '\n' + held_out.table(header, lines)


if __name__ == '__main__':
    main()
