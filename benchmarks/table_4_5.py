"""Our counterpart of the thesis' table 4.5, real lesions voided and put back: `table_4_5.md`.

    for plan in small-{2d,3d}-synth small-{2d,3d}-synth-unconditional; do
      OMP_NUM_THREADS=1 python -m bids_lesionfill.train BIDS_DIR ... SMALL/$plan-26 --plan $plan \\
        --validation-label 26 --cpu-minutes 6 --num-workers 0
    done
    python benchmarks/table_4_5.py BIDS_DIR ... --models MODELS --small-models SMALL --work-dir WORK

MODELS: see `held_out.py`. Of every visit up to `--n-lesions` lesions, drawn at random, are voided at once.
"""

import argparse
from pathlib import Path

import held_out
import numpy as np

from bids_lesionfill.diffusion import classical, inpaint, models
from bids_lesionfill.evaluate import scores as evaluate_scores
from bids_lesionfill.images import metrics
from bids_lesionfill.lesions import contrasts as lesions_contrasts

# Row of the thesis -> its SSIM, PSNR, MSE
THESIS = {
    'small-2d-synth-unconditional': ('2D unconditional, t0 = 1, median coarse lesion', '0.69 / 23.2 / 0.023'),
    'small-3d-synth-unconditional': ('3D unconditional, t0 = 3, median coarse lesion', '0.69 / 23.9 / 0.019'),
    'small-2d-synth': ('2D conditional', '–'),
    'small-3d-synth': ('3D conditional', '0.79 / 27.1 / 0.009'),
}
THESIS_STEPS = 50
NOTES = """\
Written by `table_4_5.py`, which says how. {n_lesions} real lesions of {n_sessions} visits of {n_people} patients, each
painted back by models that did not see the patient; the rest of the image, and what the rater's mask missed of the
lesion, stay as they are. M1 inside the mask, white matter at +0.5; mean and 95 % bootstrap interval, patients are
drawn first. `texture`: standard deviation against the truth's; `bias`: mean of the painted lesion minus the truth.
`true contrast`: the model is told how much brighter (darker) than white matter the voided lesion was on the mean of its
voxels, which a user who asks for a new lesion cannot know; `network alone`: before the mean of each lesion is shifted
to the contrast that is asked for, as the app does; `auto`: it draws one from lesions of that size. A lesion
drawn at random cannot be the one that was there: a perfect model has twice the variance of lesions as its error, and
the mean of all lesions a smaller one. `flat`: local white matter plus the contrast, no model. LPIPS was not measured:
no AlexNet weights were at hand. The thesis' figures are of other data (MSSEG-2016) and no bar for ours.
"""

SMALL_NOTES = """\
{n_lesions} lesions of patient {labels} alone, with the thesis' models in a size that learns something in 6 CPU minutes
(1.0 M weights; {steps} steps). Else as above.

"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    held_out.add_arguments(parser)
    parser.add_argument('--small-models', type=Path)
    parser.add_argument('--n-lesions', type=int, default=30)
    options = parser.parse_args()
    for modality in options.modality:
        donors = held_out.cut_out(held_out.read_sessions(options.bids_dir, modality, options.work_dir))
        rows = held_out.all_rows(options, modality, 'table_4_5', put_back, donors, options)
        title = 'Table 4.5, our counterpart'
        if len({row['label'] for row in rows}) > 1:
            held_out.write_section(__file__, title, modality, report(rows))
        with_small = {row['label'] for row in rows if row['method'] in THESIS}
        if with_small:
            few = [row for row in rows if row['label'] in with_small]
            held_out.write_section(__file__, title, f"{modality}, the thesis' forms", report_small(few))


def put_back(session, model, donors, options):
    """Rows of one visit: every lesion by every method. What is painted is kept for `realism.py`."""
    rng = session.generator(options.seed)
    image, old, wm_mask = session.image, session.lesion_mask, session.anatomy.wm_mask
    labels = held_out.draw_lesions(old, options.n_lesions, rng)
    others = old & (labels == 0)
    rows, kept = [], {'labels': labels}
    contrasts = held_out.contrasts_of(image, labels, wm_mask)
    for method, painted in paint_all(session, model, labels, others, contrasts, donors, options, rng):
        rows += score(session, image, painted, labels, wm_mask, method)
        kept[method] = painted[labels > 0]
        print(session.name, method, np.mean([row['mse'] for row in rows if row['method'] == method]), flush=True)
    np.savez_compressed(options.work_dir / 'table_4_5' / f'{session.modality}_{session.name}.npz', **kept)
    return rows


def paint_all(session, model, labels, others, contrasts, donors, options, rng):
    """Name of the method, and the image with the lesions painted back."""
    image, wm_mask, hole = session.image, session.anatomy.wm_mask, labels > 0
    voided = np.where(hole, classical.local_white_matter(image, hole, wm_mask), image)
    draws = [rng.uniform(0.05, 0.95, labels.max()) if auto else np.full(labels.max(), 0.5) for auto in (True, False)]
    auto, median = (held_out.app_contrasts(voided, labels, strengths, others, wm_mask, model) for strengths in draws)
    edge = held_out.EDGE_VOXELS[session.modality]
    for words, asked in (('true contrast', contrasts), ('auto', auto)):
        for steps in (model.plan['num_inference_steps'], 1):
            name = f'{model.name}, {words}, {steps} step' + 's' * (steps > 1)
            painted, own = held_out.sample(session, labels, asked, model, options.seed, steps, voided)
            yield name, painted
            if words == 'true contrast':
                yield f'{name}, network alone', own
        yield f'flat, {words}', held_out.paint_constant(voided, labels, asked, 1e-3)
    yield 'constant median, soft edge', held_out.paint_constant(voided, labels, median, edge)
    yield 'paste a real lesion', held_out.paste_real(image, labels, wm_mask, donors, session.label, rng)
    for plan in THESIS:
        folder = options.small_models and options.small_models / f'{plan}-{session.label}' / 'last'
        if session.modality != 'FLAIR' or not folder or not folder.is_dir():
            continue
        small, start_step, coarse = models.load_model(folder), 0, voided
        if small.form.kind == 'unconditional':
            start_step = small.plan['start_step']
            coarse = lesions_contrasts.coarse_lesion(voided, hole, image[others], 'median')
        values = inpaint.fill_volume(coarse, hole, wm_mask, small, THESIS_STEPS, [options.seed], start_step=start_step)
        painted = image.copy()
        painted[hole] = values[0]
        yield plan, painted


def score(session, image, painted, labels, wm_mask, method):
    """One row per lesion."""
    rows = []
    for number in range(1, labels.max() + 1):
        box = evaluate_scores.box_around(labels == number, evaluate_scores.MARGIN_VOXELS)
        true, mask = image[box], labels[box] == number
        test = np.where(mask, painted[box], true)
        scores = metrics.slice_scores(true, test, mask)
        scores['texture'] = metrics.texture_ratio(true, test, mask)
        scores['bias'] = float((test - true)[mask].mean())
        row = {'name': session.name, 'method': method, 'lesion': number, 'volume_ml': mask.sum() / 1000}
        rows.append(row | scores)
    return rows


def report(rows):
    """Table of one modality, all patients."""
    first = [row for row in rows if row['method'] == rows[0]['method']]
    counts = {'n_lesions': len(first), 'n_sessions': len({row['name'] for row in first})}
    text = NOTES.format(**counts, n_people=len({row['label'] for row in first}))
    methods = dict.fromkeys(row['method'] for row in rows if row['method'] not in THESIS)
    return f'{text}\n{table(rows, methods)}'


def report_small(rows):
    """Table of the patients for whom there are models in the thesis' forms, and our model beside them."""
    methods = dict.fromkeys(row['method'] for row in rows)
    labels = ', '.join(sorted({row['label'] for row in rows}))
    return SMALL_NOTES.format(
        n_lesions=sum(row['method'] == rows[0]['method'] for row in rows), labels=labels, steps=THESIS_STEPS
    ) + table(rows, methods)


def table(rows, methods):
    """Markdown."""
    lines = []
    for method in methods:
        own = [row for row in rows if row['method'] == method]
        people = [row['label'] for row in own]
        name, thesis = THESIS.get(method, (method, '–'))
        cells = [
            held_out.with_interval([row[key] for row in own], people, form)
            for key, form in (('ssim', '.3f'), ('psnr', '.1f'), ('mse', '.4f'), ('texture', '.2f'), ('bias', '+.3f'))
        ]
        lines.append([name, *cells, thesis])
    header = ['method', 'SSIM', 'PSNR dB', 'MSE', 'texture', 'bias', 'thesis: SSIM / PSNR / MSE (other data)']
    return held_out.table(header, lines)


if __name__ == '__main__':
    main()
