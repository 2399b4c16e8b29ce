"""Scores of a fill model and of the classical fillers on the same cases: M1 inside the mask, with intervals.

    python benchmarks/validate_fill.py BIDS_DIR LESION_MASKS [--model NAME] [--n-cases 120] [--seed 1] [--steps 1 5 20]

Cases are drawn from the validation brains of BIDS_DIR and the last fifth of the lesion masks, which training never
sees: `clean` (the mask is exact) and `rim` (a lesion with a soft edge is painted in, the mask is tight and grown by 0
to 2 voxels). Intervals are 95 % bootstrap intervals over cases. Prints Markdown.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from bids_lesionfill import baselines, dataset, inpaint, layout, metrics, weights


def fill_case(model, case, steps, seed):
    """The case filled by the model, (X, Y, Z)."""
    channels = torch.from_numpy(inpaint.to_slab(case['channels']).copy())[None]
    noise = torch.randn((1, 1, *channels.shape[2:]), generator=torch.Generator().manual_seed(seed))
    sampled = inpaint.sample_slab(model.unet, channels, noise, model.scheduler, model.form, steps)
    return model.form.from_diffusion(inpaint.from_slab(sampled.numpy()[0, 0]), case['base'])


def interval(values, rng, n_resamples=2000):
    """Mean and 95 % bootstrap interval."""
    values = np.asarray(values)
    means = values[rng.integers(len(values), size=(n_resamples, len(values)))].mean(axis=1)
    return values.mean(), *np.percentile(means, (2.5, 97.5))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bids_dir', type=Path)
    parser.add_argument('lesion_masks', type=Path)
    parser.add_argument('--model', default='fill-T1w')
    parser.add_argument('--n-cases', type=int, default=120)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--steps', type=int, nargs='+', default=[1, 5, 20])
    options = parser.parse_args()
    model = weights.load_model(options.model)
    plan = dataset.CasePlan(**(model.plan['cases'] | {'crop': tuple(model.plan['cases']['crop'])}))
    mask_files = sorted(options.lesion_masks.rglob('*_mask.nii.gz'))
    lesions = dataset.read_lesion_shapes(mask_files[-max(1, len(mask_files) // 5) :])
    brains = dataset.read_healthy_brains(layout.find_training(options.bids_dir, 'validation'))
    cases = dataset.validation_cases(brains, lesions, plan, model.form, options.n_cases, options.seed)
    scores, textures = {}, {}
    for number, case in enumerate(cases):
        truth, seen, mask = case['image'], case['seen'], case['lesion_mask']
        wm_mask = case['wm_mask'] & ~mask
        fillings = {f'{model.name}, {steps} step(s)': fill_case(model, case, steps, number) for steps in options.steps}
        fillings |= {
            'biharmonic': case['base'],
            'membrane': baselines.membrane(seen, mask),
            'local white-matter mean': baselines.local_white_matter(seen, mask, wm_mask),
            'unfilled': seen,
        }
        for name, filled in fillings.items():
            filled = np.where(mask, filled, truth)
            for metric, value in metrics.slice_scores(truth, filled, mask).items():
                scores.setdefault((case['kind'], name, metric), []).append(value)
            if truth[mask].std() > 0:
                textures.setdefault((case['kind'], name), []).append(filled[mask].std() / truth[mask].std())
    rng = np.random.default_rng(0)
    print(f'{len(cases)} cases, {len(brains)} validation brains, {len(lesions)} lesion shapes, seed {options.seed}\n')
    print(
        '| cases | filler | MSE | PSNR dB | SSIM | deviation in the mask, ratio to truth |\n|---|---|---|---|---|---|'
    )
    for kind in ('clean', 'rim'):
        for name in fillings:
            cells = []
            for metric, form in (('mse', '.5f'), ('psnr', '.1f'), ('ssim', '.3f')):
                mean, low, high = interval(scores[kind, name, metric], rng)
                cells.append(f'{mean:{form}} ({low:{form}} to {high:{form}})')
            print(f'| {kind} | {name} | {" | ".join(cells)} | {np.median(textures[kind, name]):.2f} |')


if __name__ == '__main__':
    main()
