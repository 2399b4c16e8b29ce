"""Fillers in every contrast: `python benchmarks/contrasts.py OUT --data DATA --models NAME_OR_FOLDER ...`.

Without `--brains`: normal-appearing white matter of patients whom the filler under test did not see (`ljubljana`
sub-07, sub-26: T1w and FLAIR; sub-07 in `ljubljana-contrasts` also T2w and T1w after contrast agent). With `--brains`,
healthy brains as `train_any_contrast.py` keeps them (`validation.npz`): the T1w as it is, and in two random contrasts.

`clean`: the mask is exact. `rim`: a lesion with a soft edge is painted, of the sign that this patient's lesions have in
this image; the mask is too tight or ragged, then grown as the app does (1+2). `confluent`: one large lesion in each
case, of which the mask overlaps fluid and cortex by up to 2 voxels. Shapes are held out from training. The score is the
mean squared error over what the mask covers or the painted lesion touched, for `confluent` of white matter alone.
Writes `scores.tsv`, `table.md`: means, and differences to a model case by case with 95 % bootstrap intervals over
lesions. There are one or two people behind every row: the intervals speak of lesions, not of people.
"""

import argparse
import csv
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import train_any_contrast
from scipy import ndimage

from bids_lesionfill import statistics
from bids_lesionfill.evaluate import cases
from bids_lesionfill.evaluate import methods as evaluate_methods
from bids_lesionfill.images import anatomy, grid, masks, tissues
from bids_lesionfill.layout import datasets
from bids_lesionfill.lesions import contrasts
from bids_lesionfill.train import brains as train_brains
from bids_lesionfill.train import randomisation

logger = logging.getLogger('contrasts')
NOT_HERE = {'biharmonic (skimage)', 'ANTs rule'}  # days; and reads the image inside the mask
MARGIN_VOXELS = 40  # around a confluent lesion, of what fillers see
HELD_OUT = ('07', '26')
LARGE_ML = 1.0


def patient_images(data_dir):
    """Held-out patients: (subject, contrast, normalised image, tissue classes, typical contrast of lesions) each."""
    for label in HELD_OUT:
        anat = data_dir / 'ljubljana' / f'sub-{label}' / 'anat'
        t1w_file = anat / f'sub-{label}_T1w.nii.gz'
        mask_file = next((data_dir / 'ljubljana' / 'derivatives' / 'lesions' / f'sub-{label}').rglob('*_mask.nii.gz'))
        t1w_img = grid.conform(nib.load(t1w_file))
        lesion_mask = grid.conform_mask(nib.load(mask_file), t1w_img)
        files = [t1w_file, anat / f'sub-{label}_FLAIR.nii.gz']
        files += sorted((data_dir / 'ljubljana-contrasts' / f'sub-{label}' / 'anat').glob('*.nii.gz'))
        for image_file in files:
            patient, _ = anatomy.normalise_patient(nib.load(image_file), t1w_img, lesion_mask)
            typical = float(np.median(contrasts.contrast_of(patient.image, lesion_mask, patient.wm_mask)[2]))
            contrast = image_file.name.removeprefix(f'sub-{label}_').removesuffix('.nii.gz')
            yield f'sub-{label}', contrast, patient.image, anatomy.normal_appearing(patient), typical


def healthy_images(brains, n_brains=3):
    """Healthy brains as they are and in random contrasts; as `patient_images`. Lesions are dark or bright by chance."""
    for number, (name, brain) in enumerate(list(brains.items())[:n_brains]):
        subject = name.split('_')[0]
        yield subject, 'T1w', brain.image, brain.tissue_seg, -0.3
        for draw in range(2):
            rng = np.random.default_rng([7, number, draw])
            image = randomisation.randomise_contrast(brain.image, brain.tissue_seg, brain.levels, rng)
            image = randomisation.randomise_acquisition(image, rng, thick=False)
            yield subject, 'random', image, brain.tissue_seg, 0.5 * rng.choice((-1, 1))


def paint(image, labels, wm_mask, typical, edge_voxels, rng):
    """Paint lesions of about a typical contrast (brighter than white matter: above zero); see `paint_lesion`."""
    drawn = np.append(0, -typical * rng.uniform(0.5, 1.5, labels.max())).astype(np.float32)
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return contrasts.paint_lesion(image, labels > 0, wm_mask, drawn[labels[tuple(nearest)]], edge_voxels)


def small_cases(image, tissue_seg, shapes, typical, n_lesions, rng, kind):
    """Seen image, mask handed over, and one score mask per lesion."""
    wm_mask = tissue_seg == tissues.WHITE_MATTER
    ventricles = cases.find_ventricles(tissue_seg)
    labels = cases.scatter_lesions(tissue_seg, ventricles, shapes, rng, n_lesions)
    edge = rng.uniform(*cases.EDGE_VOXELS) if kind == 'rim' else 0
    seen, alpha = paint(image, labels, wm_mask, typical, edge, rng)
    touched = handed = labels > 0
    if kind == 'rim':
        touched = alpha > cases.TOUCHED
        handed = np.zeros_like(touched)
        for number in range(1, n_lesions + 1):
            handed |= cases.tighten((labels == number) & (alpha > 0.5), rng)
        handed = masks.dilate_within(handed, wm_mask, 1)
        handed = contrasts.grow_to_rim(seen, handed, wm_mask, 2, bright_lesions=typical > 0)
    units = cases.make_units(labels, touched, handed, ventricles, tissue_seg)
    return seen, handed, [(unit.score_mask, unit.volume_ml) for unit in units]


def confluent_cases(image, tissue_seg, shapes, typical, n_cases, rng):
    """Boxes with one large lesion each: (box, seen, mask, score mask, volume in ml)."""
    wm_mask = tissue_seg == tissues.WHITE_MATTER
    near = masks.dilate_within(wm_mask, np.isin(tissue_seg, (tissues.CSF, tissues.GREY_MATTER)), 2)
    ventricles = cases.find_ventricles(tissue_seg)
    centres = np.argwhere(wm_mask & ndimage.binary_dilation(ventricles, iterations=6))
    centres = centres if len(centres) else np.argwhere(wm_mask)
    found = []
    for _ in range(200):
        if len(found) == n_cases:
            break
        shape = masks.random_orientation(shapes[rng.integers(len(shapes))], rng)
        placed = masks.place(shape, centres[rng.integers(len(centres))], wm_mask.shape) & near
        parts, _ = masks.label_lesions(placed)
        if not placed.any():
            continue
        placed = parts == 1 + np.bincount(parts.flat)[1:].argmax()
        inside = placed & wm_mask
        if inside.sum() < 500 * LARGE_ML:
            continue
        box = masks.bounding_box(placed, MARGIN_VOXELS)
        seen, alpha = paint(
            image[box], inside[box].astype(int), wm_mask[box], typical, rng.uniform(*cases.EDGE_VOXELS), rng
        )
        handed = masks.dilate_within((alpha > 0.5) & wm_mask[box], wm_mask[box], 1)
        handed = contrasts.grow_to_rim(seen, handed, wm_mask[box], 2, bright_lesions=typical > 0)
        score_mask = handed | (alpha > cases.TOUCHED)
        handed |= (placed & ~wm_mask)[box]
        found.append((box, seen, handed, score_mask & wm_mask[box], inside.sum() / 1000))
    return found


def score_all(images, shapes, methods, n_lesions, n_confluent, seed):
    """Rows of `scores.tsv`: one per lesion and method."""
    rows = []
    large = [shape for shape in shapes if shape.sum() >= 1000 * LARGE_ML]
    for number, (subject, contrast, image, tissue_seg, typical) in enumerate(images):
        wm_mask = tissue_seg == tissues.WHITE_MATTER
        jobs = []
        for draw, kind in enumerate(('clean', 'rim')):
            rng = np.random.default_rng([seed, number, draw])
            seen, handed, units = small_cases(image, tissue_seg, shapes, typical, n_lesions, rng, kind)
            jobs.append((kind, image, seen, handed, wm_mask, units))
        rng = np.random.default_rng([seed, number, 2])
        for box, seen, handed, score_mask, volume in confluent_cases(
            image, tissue_seg, large, typical, n_confluent, rng
        ):
            jobs.append(('confluent', image[box], seen, handed, wm_mask[box], [(score_mask, volume)]))
        for job, (kind, truth, seen, handed, white_matter, units) in enumerate(jobs):
            for name, fill in methods.items():
                filled = fill(seen, handed, white_matter, np.random.default_rng([seed, number, job]))
                for unit, (score_mask, volume) in enumerate(units):
                    error = float(np.mean((truth - filled)[score_mask] ** 2))
                    row = (subject, contrast, kind, f'{job}-{unit}', round(volume, 3), name, error)
                    rows.append(dict(zip(('subject', 'contrast', 'kind', 'lesion', 'volume_ml', 'method', 'mse'), row)))
        logger.info('%s %s: lesions %+.2f, %d jobs', subject, contrast, typical, len(jobs))
    return rows


def table(rows, model):
    """Markdown: mean MSE of every method, and the difference of a model to it (below zero: the model errs less)."""
    lines = ['| contrast | cases | method | lesions | MSE | model minus method (95 %) |', '|---|---|---|---|---|---|']
    for contrast, kind in dict.fromkeys((row['contrast'], row['kind']) for row in rows):
        group = {}
        for row in rows:
            if (row['contrast'], row['kind']) == (contrast, kind):
                group.setdefault(row['method'], []).append(row['mse'])
        for method, errors in sorted(group.items(), key=lambda item: np.mean(item[1])):
            line = f'| {contrast} | {kind} | {method} | {len(errors)} | {np.mean(errors):.5f} | '
            if method != model:
                mean, low, high = statistics.paired_bootstrap(group[model], errors, np.random.default_rng(0))
                line += f'{mean:+.5f} ({low:+.5f} to {high:+.5f}) |'
            lines.append(line if method != model else line + '– |')
    return '\n'.join(lines) + '\n'


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('output_dir', type=Path)
    parser.add_argument('--models', nargs='+', required=True, help='the first one is compared with all others')
    parser.add_argument('--data', type=Path, required=True, help='folder of datasets')
    parser.add_argument('--brains', type=Path, help='healthy brains (validation.npz) instead of the held-out patients')
    parser.add_argument('--lesions', type=int, default=16, help='of each kind in each image')
    parser.add_argument('--confluent', type=int, default=6, help='in each image')
    parser.add_argument('--no-patch-match', action='store_true', help='the slowest filler')
    parser.add_argument('--seed', type=int, default=11)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    torch.set_num_threads(1)
    methods, model = {}, None
    for text in options.models:
        name, _, fill, _ = evaluate_methods.ModelMethod.parse(text).load('cpu')
        model = model or name
        methods[name] = fill
    left_out = NOT_HERE | ({'patch match'} if options.no_patch_match else set())
    methods |= {name: fill for name, fill in evaluate_methods.BASELINES.items() if name not in left_out}
    mask_files = datasets.split_lesion_masks(datasets.find_lesion_masks(options.data / 'lesion-masks'))[1]
    mask_files = [file for file in mask_files if not any(f'ljubljana-{label}' in str(file) for label in HELD_OUT)]
    shapes = train_brains.read_lesion_shapes(mask_files)
    shapes += train_any_contrast.read_shapes(options.data / 'lesion-shapes' / 'lesions.npz', held_out=True)
    if options.brains:
        images = healthy_images(train_any_contrast.load_brains(options.brains))
    else:
        images = patient_images(options.data)
    rows = score_all(images, shapes, methods, options.lesions, options.confluent, options.seed)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with open(options.output_dir / 'scores.tsv', 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter='\t', lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    (options.output_dir / 'table.md').write_text(table(rows, model))


if __name__ == '__main__':
    main()
