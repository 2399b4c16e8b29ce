"""Asked against obtained contrast of new lesions, and how two seeds differ: `intensity.md`.

    python benchmarks/intensity.py BIDS_DIR ... --models MODELS --work-dir WORK

MODELS: see `held_out.py`. In one visit of every patient one mask is drawn and painted `--paintings` times by the model
that did not see the patient; each time every lesion is asked for at another of five quantiles of contrast.
"""

import argparse

import held_out
import numpy as np

from bids_lesionfill import statistics
from bids_lesionfill.lesions import library, synthesis
from bids_lesionfill.modality import get

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
KEYS = ('asked', 'obtained', 'at_bound')
NOTES = """\
Written by `intensity.py`, which says how. {n_lesions} new lesions ({n_cases} paintings) in {n_people} patients, {steps}
steps; patients are drawn first in the bootstrap (95 % intervals). Contrast: mean of the lesion minus the white matter
around, white matter is 1.5 above the background. `slope`: least squares, obtained on asked, all patients together;
`within patients`: each patient's means are taken off both first. `network alone`: what the network paints before the
app shifts the mean of each lesion to what was asked for (and again when a halo is there); the shift makes the slope 1
by construction, but for what is clipped at the brightest and darkest thousandth of the brain. Lesions of less than
30 mm3 have a slope of their own, since they are all edge.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    held_out.add_arguments(parser)
    parser.add_argument('--n-lesions', type=int, default=10)
    parser.add_argument('--load-ml', type=float, default=2.0)
    parser.add_argument('--paintings', type=int, default=5)
    parser.add_argument('--steps', type=int, help="of the sampling; default: the model's own")
    parser.set_defaults(visits=1)
    options = parser.parse_args()
    for modality in options.modality:
        rows = held_out.all_rows(options, modality, 'intensity', ask, options)
        if rows:
            held_out.write_section(__file__, 'Contrast: asked against obtained', modality, report(rows, modality))


def ask(session, model, options):
    """One row per lesion and quantile."""
    rng = session.generator(options.seed)
    atlas = synthesis.find_places(session.anatomy, library.load_lesion_library())
    new = synthesis.draw(session.anatomy, atlas, rng, 0.5, options.n_lesions, options.load_ml)
    labels = np.asarray(new.mask_img.dataobj)
    image, wm_mask = session.image, session.anatomy.wm_mask & (labels == 0)
    darkest, brightest = synthesis.limits_of(image, session.anatomy.brain_mask & (labels == 0))
    numbers = np.arange(1, labels.max() + 1)
    rows, of_seed = [], {}
    for painting, seed in [*((n, options.seed) for n in range(options.paintings)), (0, options.seed + 1)]:
        quantiles = np.array(QUANTILES)[(numbers + painting) % len(QUANTILES)]  # every lesion another
        asked = held_out.app_contrasts(image, labels, quantiles, session.lesion_mask, session.anatomy.wm_mask, model)
        painted, alone = held_out.sample(session, labels, asked, model, seed, options.steps, texture=True)
        of_seed[painting, seed] = painted
        painted = held_out.with_halo(session, painted, labels, model)
        obtained, network = (held_out.contrasts_of(result, labels, wm_mask) for result in (painted, alone))
        for lesion in numbers:
            values = painted[labels == lesion]
            at_bound = float(((values <= darkest + 1e-6) | (values >= brightest - 1e-6)).mean())
            row = {'name': session.name, 'lesion': lesion, 'volume_ml': len(values) / 1000, 'seed': seed}
            row |= {'quantile': quantiles[lesion - 1], 'asked': asked[lesion - 1], 'obtained': obtained[lesion - 1]}
            row |= {'network': network[lesion - 1], 'at_bound': at_bound}
            rows.append(row | {'steps': options.steps or model.plan['num_inference_steps']})
        print(session.name, painting, seed, asked.round(2), network.round(2), obtained.round(2), flush=True)
    one, other = (of_seed[0, seed] for seed in (options.seed, options.seed + 1))
    for row in rows:
        inside = labels == row['lesion']
        row['seeds_rms'] = float(np.sqrt(np.mean((one - other)[inside] ** 2)))
        row['deviation'] = float(np.sqrt((one[inside].var() + other[inside].var()) / 2))
    return rows


def slope(asked, obtained, counts):
    """Least squares with weights: (resamples, cases) counts to (resamples,) slopes."""
    total = counts.sum(axis=1)
    mean_x, mean_y = counts @ asked / total, counts @ obtained / total
    return (counts @ (asked * obtained) / total - mean_x * mean_y) / (counts @ asked**2 / total - mean_x**2)


def slope_cell(rows, name, within=False):
    """Slope of a contrast on what was asked, and its interval, in words."""
    asked, obtained = (np.array([row[key] for row in rows]) for key in ('asked', name))
    people = np.array([row['label'] for row in rows])
    if within:
        for person in set(people):
            for values in (asked, obtained):
                values[people == person] -= values[people == person].mean()
    counts = statistics.bootstrap_weights(people, np.random.default_rng(0))
    low, high = np.percentile(slope(asked, obtained, counts), (2.5, 97.5))
    return f'{slope(asked, obtained, np.ones((1, len(rows))))[0]:.2f} ({low:.2f} to {high:.2f})'


def report(rows, modality):
    """Tables of one modality."""
    first_seed = min(row['seed'] for row in rows)
    again = [row for row in rows if row['seed'] != first_seed]
    rows = [row for row in rows if row['seed'] == first_seed]
    people = sorted({row['label'] for row in rows})
    counts = {'n_lesions': len(again), 'n_cases': len(rows), 'n_people': len(people), 'steps': int(rows[0]['steps'])}
    text = NOTES.format(**counts) + '\n'
    groups = [('all', rows)]
    groups.append(('30 mm3 and more', [row for row in rows if row['volume_ml'] >= 0.03]))
    groups.append(('less than 30 mm3', [row for row in rows if row['volume_ml'] < 0.03]))
    groups += [(f'patient {label}', [row for row in rows if row['label'] == label]) for label in people]
    lines = []
    for name, own in groups:
        if own:
            cells = []
            for key in ('obtained', 'network'):
                errors = [row[key] - row['asked'] for row in own]
                cells += [slope_cell(own, key), slope_cell(own, key, within=True), f'{np.mean(errors):+.3f}']
                cells.append(f'{np.sqrt(np.mean(np.square(errors))):.3f}')
            lines.append([name, len(own), *cells])
    header = ['slope', 'within patients', 'bias', 'RMS error']
    header = ['lesions', 'n', *header, *(f'network alone: {title}' for title in header)]
    text += held_out.table(header, lines) + '\n'
    lines = []
    for quantile in QUANTILES:
        own = [row for row in rows if row['quantile'] == quantile]
        cells = (held_out.with_interval([row[k] for row in own], [r['label'] for r in own], '.3f') for k in KEYS)
        lines.append([quantile, *cells])
    header = ['quantile asked', 'contrast asked', 'obtained', 'share of voxels at the bound']
    text += held_out.table(header, lines) + '\n'
    sign = get(modality).lesion_sign
    right = [float(sign * row['obtained'] > 0) for row in rows]
    owners = [row['label'] for row in rows]
    text += f'{"Brighter" if sign > 0 else "Darker"} than the white matter around, share of lesions: '
    text += held_out.with_interval(right, owners, '.3f') + '. At the bound: clipped at the .1 or the 99.9 '
    text += 'percentile of the brain, real lesions included; none is beyond. Two seeds for one mask and contrast '
    text += 'differ by '
    text += held_out.with_interval([row['seeds_rms'] for row in again], [row['label'] for row in again], '.3f')
    ratios = [row['seeds_rms'] / row['deviation'] for row in again if row['deviation'] > 0]
    text += f' (RMS over a lesion), {np.mean(ratios):.2f} times the standard deviation inside a lesion, on the mean of '
    return text + 'lesions (1.41 if nothing but the mean were the same in both).\n'


if __name__ == '__main__':
    main()
