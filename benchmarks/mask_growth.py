"""How masks that miss the rim should be grown: what each rule leaves of the lesion, and the error after filling.

    python benchmarks/mask_growth.py BIDS_DIR MASKS [--model NAME] [--brains 6] [--n-lesions 8]

`rim` cases of the evaluation in brains of the training split (so that nothing is chosen on validation brains): painted
lesions, masks one voxel too tight or ragged. All errors of a brain are taken over one region, the same for every rule.
Prints Markdown.
"""

import argparse
from pathlib import Path

import numpy as np

from bids_lesionfill.diffusion import inpaint, models
from bids_lesionfill.evaluate import cases
from bids_lesionfill.images import masks
from bids_lesionfill.layout import datasets
from bids_lesionfill.lesions import contrasts
from bids_lesionfill.train import brains as train_brains

# voxels everywhere, voxels into the rim, from so many deviations on
RULES = [(1, 0, None), (2, 0, None), (3, 0, None), (1, 1, 2.0), (1, 2, 2.0), (1, 2, 2.5), (1, 2, 3.0)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bids_dir', type=Path)
    parser.add_argument('lesion_masks', type=Path)
    parser.add_argument('--model', default='fill-T1w')
    parser.add_argument('--brains', type=int, default=6)
    parser.add_argument('--n-lesions', type=int, default=8)
    parser.add_argument('--seed', type=int, default=79)
    options = parser.parse_args()
    model = models.load_model(options.model)
    _, held_out = datasets.split_lesion_masks(datasets.find_lesion_masks(options.lesion_masks))
    shapes = train_brains.read_lesion_shapes(held_out)
    brains = datasets.find_training(options.bids_dir, 'train')
    rows = {rule: [] for rule in RULES}
    for number, files in enumerate(brains[1 :: max(1, len(brains) // options.brains)][: options.brains]):
        image, tissue_seg = train_brains.read_tissues(*files)
        rng = np.random.default_rng([options.seed, number])
        (case,) = cases.draw_cases('', image, tissue_seg, shapes, rng, options.n_lesions, 'rim', [0])
        grown = {}
        for rule in RULES:
            everywhere, rim_voxels, deviations = rule
            mask = masks.dilate_within(case.lesion_mask, case.wm_mask, everywhere)
            if rim_voxels:
                mask = contrasts.grow_to_rim(case.seen, mask, case.wm_mask, rim_voxels, deviations=deviations)
            grown[rule] = mask
        touched = np.any([unit.score_mask for unit in case.units], axis=0)
        region = masks.dilate_within(touched, case.wm_mask, 2) | np.any(list(grown.values()), axis=0)
        for rule, mask in grown.items():
            filled = case.seen.copy()
            filled[mask] = inpaint.fill_volume(case.seen, mask, case.wm_mask, model, 1, [0])[0]
            left = np.where(mask, image, case.seen)
            errors = [1000 * np.mean((volume - image)[region] ** 2) for volume in (left, filled)]
            rows[rule].append([mask.sum() / grown[RULES[0]].sum(), *errors])
    print(f'{len(rows[RULES[0]])} brains, {options.n_lesions} lesions each; squared errors x 1000\n')
    print(f'| mask grown by | volume | left | with {model.name} |\n|---|---|---|---|')
    for (everywhere, rim_voxels, deviations), values in rows.items():
        words = f'{everywhere}'
        if rim_voxels:
            words += f', then by up to {rim_voxels} where {deviations:g} deviations too dark'
        print(f'| {words} | ' + ' | '.join(f'{value:.2f}' for value in np.mean(values, axis=0)) + ' |')


if __name__ == '__main__':
    main()
