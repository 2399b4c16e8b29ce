"""How new lesions get their texture, tried by the classifier of `realism.py`: `new_texture.md`.

    python benchmarks/new_texture.py BIDS_DIR ... --work-dir WORK [--modality FLAIR T1w] [--visits 1]

The bundled models paint, which saw these patients: rows are compared with each other, and none is a measure of
realism on new patients. New lesions are drawn as the app draws them; every row paints the same ones. What is done is
kept in WORK.
"""

import argparse
from pathlib import Path

import held_out
import numpy as np
import realism
from scipy import ndimage

from bids_lesionfill.diffusion import models
from bids_lesionfill.lesions import contrasts, synthesis, texture, unevenness

N_LESIONS, LOAD_ML, SEED = 30, 3.0, 1
# Row -> smoothing of the network's mean in voxels, unevenness as a share of the contrast by modality; None: no texture
WAYS = {
    'network, 10 steps': None,
    'network, 1 step: the mean': None,
    'mean, and the noise of the tissue': (0, {'FLAIR': 0.0, 'T1w': 0.0}),
    'mean, noise, unevenness 0.2 (FLAIR), 0.4 (T1w)': (0, {'FLAIR': 0.2, 'T1w': 0.4}),
    'mean smoothed by 0.6, noise, unevenness 0.4, 0.8': (0.6, {'FLAIR': 0.4, 'T1w': 0.8}),
    'mean smoothed by 1.0, noise, unevenness 0.4, 0.8': (1.0, {'FLAIR': 0.4, 'T1w': 0.8}),
}
NOTES = """\
Written by `new_texture.py`, which says how: **by the bundled models, which saw these patients**. The two constants of
`lesions/unevenness.py` (smoothing, unevenness) were chosen by such tables. {n_real} real lesions of {n_people} patients
({n_visits} visits), {n_new} new ones of nearby volume. AUC and 95 % interval; `null`: half of the real lesions against
the other half.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bids_dir', type=Path, nargs='+')
    parser.add_argument('--work-dir', type=Path, required=True)
    parser.add_argument('--modality', choices=['FLAIR', 'T1w'], nargs='+', default=['FLAIR', 'T1w'])
    parser.add_argument('--visits', type=int, help='of each patient, at most; default: all')
    options = parser.parse_args()
    for modality in options.modality:
        model, rows = models.load_model(f'synth-{modality}'), []
        for session in held_out.read_sessions(options.bids_dir, modality, options.work_dir, options.visits):
            path = options.work_dir / 'new_texture' / f'{modality}_{session.name}.tsv'
            rows += held_out.finished(path, describe_ways, session, model)
        held_out.write_section(__file__, 'Texture of new lesions: what was tried', modality, report(rows))


def describe_ways(session, model):
    """Features of the real and the new lesions of one visit: a row per lesion and way to paint it."""
    rng, image, wm_mask = session.generator(SEED), session.image, session.anatomy.wm_mask
    labels = realism.draw_new(session, N_LESIONS, LOAD_ML, rng)
    strengths = contrasts.draw_strengths(rng, labels.max(), 'auto')
    asked = held_out.app_contrasts(image, labels, strengths, session.lesion_mask, wm_mask, model)
    mean, ten = (held_out.sample(session, labels, asked, model, SEED, steps)[0] for steps in (1, 10))
    rows = realism.describe(session, image, realism.similar(session, labels), realism.REAL)
    for name, way in WAYS.items():
        painted = (ten if '10' in name else mean) if way is None else with_texture(session, labels, asked, mean, way)
        painted = held_out.with_halo(session, painted, labels, model)
        rows += realism.describe(session, painted, labels, name)
    return rows


def with_texture(session, labels, asked, mean, way):
    """New lesions with the noise of the tissue and patches, at their contrast; see `unevenness.add_texture`."""
    (smoothing, shares), image, hole = way, session.image, labels > 0
    tissue = (session.anatomy.wm_mask | hole) & ~session.lesion_mask
    noise = image - texture.smooth_within(image, tissue, np.full(3, unevenness.TREND_MM))
    contrast = np.append(0, asked)[labels].astype(np.float32)
    alpha = ndimage.gaussian_filter(hole.astype(np.float32), unevenness.EDGE_MM) * hole
    uneven = unevenness.patches(image.shape, session.generator(3)) * shares[session.modality] * np.abs(contrast) * alpha
    smooth = ndimage.gaussian_filter(mean, smoothing) if smoothing else mean
    painted = np.where(hole, smooth + noise + uneven, image)
    painted = contrasts.match_contrast(painted, hole, session.anatomy.wm_mask & ~hole, contrast)
    limits = synthesis.limits_of(image, session.anatomy.brain_mask & ~hole)
    return np.where(hole, np.clip(painted, *limits), image).astype(np.float32)


def report(rows):
    """Table of one modality."""
    names = [name for name in rows[0] if name.split()[0] in realism.GROUPS]
    real = [row for row in rows if row['kind'] == realism.REAL]
    lines = [['null', realism.null_area(rows, names), '–']]
    for kind in WAYS:
        pair = real + [row for row in rows if row['kind'] == kind]
        alone = [name for name in names if name.startswith('texture')]
        lines.append([kind, realism.area(*realism.judge(pair, names)), realism.area(*realism.judge(pair, alone))])
    counts = {'n_real': len(real), 'n_people': len({row['label'] for row in real})}
    counts |= {'n_visits': len({row['name'] for row in rows}), 'n_new': sum(row['kind'] == kind for row in rows)}
    header = ['new lesions', 'AUC, all features', 'texture alone']
    return NOTES.format(**counts) + '\n' + held_out.table(header, lines)


if __name__ == '__main__':
    main()
