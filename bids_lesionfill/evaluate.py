"""Compare fillers where the truth is known: `python -m bids_lesionfill.evaluate BIDS_DIR OUT --models NAME ...`.

The validation brains of a BIDS dataset (healthy T1w, `dseg`, column `split`) get real lesion shapes that no training
saw; models and classical fillers fill the same cases (see `evaluation_cases`). OUT gets `evaluation.html`,
`scores.tsv` (one row per case and method), `summary.tsv`, `comparisons.tsv` and `evaluation.json`. Of the kinds
`confluent`, `real` and `appeared` the app fills the images as its users have them (see `evaluation_app`); the last two
have tables of their own: `real*.tsv`, `discriminability.tsv` and `appeared*.tsv`.
"""

import argparse
import json
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from . import (
    baselines,
    dataset,
    discriminability,
    evaluation_app,
    evaluation_cases,
    evaluation_page,
    inpaint,
    layout,
    lpips,
    metrics,
    ownership,
    weights,
)

logger = logging.getLogger('bids_lesionfill.evaluate')
OWN_FOLDER = ('evaluation.json', ('info', 'summary'), 'evaluate')  # see `ownership.check_folder`
MARGIN_VOXELS = 8  # around a lesion that is scored; more than the windows of SSIM see
METRICS = ('mse', 'psnr', 'ssim', 'm2_mse', 'm2_psnr', 'm2_ssim', 'lpips', 'border', 'texture', 'seconds')
ERRORS = METRICS[:7]  # against the truth
EXAMPLE_ML = 0.3  # about the volume of the lesions that are shown
KEYS = ('kind', 'dilation', 'subject', 'person', 'unit', 'volume_ml', 'place', 'method', 'family')


def skimage_biharmonic(image, lesion_mask, wm_mask, rng):
    """`skimage.restoration.inpaint_biharmonic`, region by region."""
    from skimage.restoration import inpaint_biharmonic

    filled = image.copy()
    whole = inpaint_biharmonic(image.astype(np.float64), lesion_mask, split_into_regions=True)
    filled[lesion_mask] = whole[lesion_mask]
    return filled


# Each takes (image, lesion_mask, wm_mask, rng).
BASELINES = {
    'white-matter normal': baselines.normal_white_matter,
    'local white-matter voxels': baselines.local_white_matter_voxels,
    'local white-matter mean': lambda image, mask, wm_mask, rng: baselines.local_white_matter(image, mask, wm_mask),
    'ANTs rule': baselines.ants_rule,
    'patch match': baselines.patch_match,
    'membrane': lambda image, mask, wm_mask, rng: baselines.membrane(image, mask),
    'biharmonic': lambda image, mask, wm_mask, rng: baselines.biharmonic(image, mask),
    'biharmonic (skimage)': skimage_biharmonic,
}
UNFILLED, TRUTH = 'unfilled', 'healthy tissue'
NOT_FOR_PATIENTS = {'biharmonic (skimage)'}  # its direct solver takes hours on a large lesion
NOT_FOR_FLAIR = {'ANTs rule'}  # it fills what is darker than its neighbours


@dataclass(frozen=True)
class ModelMethod:
    """A model as a filler, by name or folder and number of steps."""

    name_or_path: str
    num_inference_steps: int | None = None

    @classmethod
    def parse(cls, text):
        """`NAME_OR_FOLDER` or `NAME_OR_FOLDER@STEPS`."""
        name, at, steps = text.partition('@')
        if at and not (steps.isdecimal() and int(steps)):
            raise ValueError(f'model {text!r} has {steps!r} steps, expected MODEL@STEPS with at least 1')
        return cls(name, int(steps) if at else None)

    def load_model(self, device):
        """The model, which must be one that fills."""
        model = weights.load_model(self.name_or_path, device)
        if model.plan['task'] != 'fill':
            raise SystemExit(f'model {model.name} is there to {model.plan["task"]}, expected one that fills')
        return model

    def steps(self, model):
        """Of the sampling: those asked for, or the model's own."""
        return self.num_inference_steps or model.plan['num_inference_steps']

    def name(self, model):
        """Of the row in the tables."""
        steps = self.steps(model)
        name = f'{model.name}, {steps} step{"s" if steps > 1 else ""}'
        return name + (' (RePaint)' if model.form.kind == 'unconditional' else '')

    def load(self, device):
        """Name of the row, whether it is sampled by RePaint, the filler, and where its weights are from."""
        model = self.load_model(device)
        steps = self.steps(model)

        def fill(image, lesion_mask, wm_mask, rng):
            seed = int(rng.integers(2**31))
            values = inpaint.fill_volume(image, lesion_mask, wm_mask, model, steps, [seed], device)[0]
            filled = image.copy()
            filled[lesion_mask] = values
            return filled

        return self.name(model), model.form.kind == 'unconditional', fill, model.sha256


APP_KINDS = ('confluent', 'appeared', 'real')  # filled by the app as its users call it
APP_GROWTH = '1+2'  # of masks, by default in `fill.fill`; see `evaluation_cases.grow`


def growth(text):
    """A growth of masks from the command line: a number of voxels, or `1+2`."""
    parts = text.split('+')
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f'{text!r} is no growth, expected for example 1 or 1+2')
    return int(text) if len(parts) == 1 else text


def read_image(files):
    """Normalised image and tissue classes of a healthy brain (T1w, dseg) or a patient (image, T1w, lesion mask)."""
    if len(files) == 2:
        return dataset.read_tissues(*files)
    patient = dataset.read_patient(*files)
    return patient.image, dataset.normal_appearing(patient)


def make_cases(subject, files, shapes, patient_mask_file, options, number):
    """All cases of one brain: `clean`, `rim` per dilation, `patient`."""
    image, tissue_seg = read_image(files)
    cases = []
    for draw, (kind, dilations) in enumerate((('clean', [0]), ('rim', options.dilate))):
        if kind in options.kinds:
            rng = np.random.default_rng([options.seed, number, draw])
            cases += evaluation_cases.draw_cases(
                subject, image, tissue_seg, shapes, rng, options.n_lesions, kind, dilations, options.modality
            )
    if 'patient' in options.kinds:
        mask_img = nib.load(patient_mask_file)
        lesion_mask = np.asarray(mask_img.dataobj) > 0
        moved = evaluation_cases.move_lesions(lesion_mask, mask_img.affine, tissue_seg > 0)
        rng = np.random.default_rng([options.seed, number, 2])
        cases.append(
            evaluation_cases.patient_case(
                subject, image, tissue_seg, moved, rng, options.dilate[-1], modality=options.modality
            )
        )
    return cases


def box_around(mask, margin):
    """Slices of the bounding box of a mask and a margin, at least 11 voxels wide."""
    voxels = np.argwhere(mask)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    return tuple(
        slice(max(min(a - margin, size - 11), 0), max(b + margin, 11)) for a, b, size in zip(low, high, mask.shape)
    )


def score_unit(case, unit, filled, window, perceptual_distance=None):
    """All scores of a filling in one unit of a case, but for the time: dict, see `METRICS`."""
    box = box_around(unit.score_mask, MARGIN_VOXELS)
    true, test, mask = case.image[box], filled[box], unit.score_mask[box]
    scores = metrics.slice_scores(true, test, mask)
    scores |= {f'm2_{name}': value for name, value in metrics.brats_scores(true, test, mask, window).items()}
    scores['lpips'] = np.nan
    if perceptual_distance is not None:  # of whole slices, in which nothing but this unit is filled
        z = np.flatnonzero(unit.score_mask.any(axis=(0, 1)))
        whole = np.where(unit.score_mask, filled, case.image)
        slices = (torch.from_numpy(inpaint.to_slab(image)[z][:, None]).float() for image in (case.image, whole))
        scores['lpips'] = perceptual_distance(*slices).mean().item()
    scores['border'] = metrics.border_ratio(test, unit.lesion_mask[box], case.wm_mask[box])
    scores['texture'] = metrics.texture_ratio(true, test, mask)
    return scores


def evaluate_brain(job):
    """Cases of one brain by every method: rows of `scores.tsv`, and the examples of the page that are wanted."""
    options, number, subject, person, files, shapes, patient_mask_file, n_examples = job
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')  # this may be a process of its own
    torch.set_num_threads(options.threads or max(1, (os.cpu_count() or 1) // options.nprocs))
    perceptual_distance = lpips.load_lpips(options.lpips_weights) if options.lpips_weights else None
    names = set(options.baselines) - (NOT_FOR_FLAIR if options.modality == 'FLAIR' else set())
    methods = [(name, 'baseline', False, fill) for name, fill in BASELINES.items() if name in names]
    for text in options.models:
        name, repaint, fill, _ = ModelMethod.parse(text).load(options.device)
        methods.append((name, 'model', repaint, fill))
    rows, examples = [], []
    for case in make_cases(subject, files, shapes, patient_mask_file, options, number):
        window = metrics.brats_window(case.image, case.lesion_mask)
        show = len(examples) < n_examples and case.kind != 'patient'
        shown = min(case.units, key=lambda unit: abs(unit.volume_ml - EXAMPLE_ML))
        box = box_around(shown.score_mask, 14)
        pictures = {'healthy truth': case.image[box], 'with lesion': case.seen[box]}
        for name, family, filled, seconds, scored in fill_case(case, methods, options, number, show and shown):
            if show and family != 'control':
                pictures[name] = filled[box]
            for unit in case.units if scored else ():
                scores = score_unit(case, unit, filled, window, perceptual_distance)
                if name == TRUTH:  # equal to itself; its border and texture say what is normal
                    scores |= dict.fromkeys(ERRORS, np.nan)
                row = (case.kind, case.dilation, subject, person)
                row += (unit.number, unit.volume_ml, unit.place, name, family)
                rows.append(dict(zip(KEYS, row)) | scores | {'seconds': seconds})
        if show:
            title = f'{subject}, {case.kind}, mask grown by {case.dilation}, '
            title += f'{shown.place} lesion of {shown.volume_ml:.2f} ml'
            examples.append(
                {'title': title, 'kind': case.kind, 'mask': shown.lesion_mask[box], 'images': pictures}
                | {'dilation': case.dilation}
            )
        logger.info('%s, %s, mask grown by %s', subject, case.kind, case.dilation)
    if 'confluent' in options.kinds and subject.split('_')[0] == person:  # a rescan is the same anatomy
        found = evaluate_confluent(number, subject, person, files, options, n_examples)
        rows, examples = rows + found[0], examples + found[1]
    return rows, examples


def evaluate_confluent(number, subject, person, files, options, n_examples=0):
    """`confluent` cases of a healthy brain, by the app and by classical fillers in the mask that it used."""
    models = models_of(options)['T1w']
    fillers = classical_fillers(options, 'T1w')
    rows, examples = [], []
    for case, by_app in evaluation_app.confluent_cases(number, subject, files, models, options):
        fillings = [(UNFILLED, 'control', case.seen, np.nan), (TRUTH, 'control', case.image, np.nan)]
        fillings += [(name, 'model', *result) for name, result in by_app.items()]
        for name, filler in fillers.items():
            started = time.perf_counter()
            rng = np.random.default_rng([options.seed, number, 3])
            filled = filler(case.seen.copy(), case.lesion_mask, case.wm_mask, rng)
            seconds = time.perf_counter() - started
            fillings.append((name, 'baseline', np.where(case.lesion_mask, filled, case.seen), seconds))
        for name, family, filled, seconds in fillings:
            for unit in case.units:
                scores = score_confluent(case, unit, filled)
                if name == TRUTH:
                    scores |= dict.fromkeys(ERRORS, np.nan)
                row = (case.kind, case.dilation, case.subject, person, unit.number, unit.volume_ml, unit.place)
                rows.append(dict(zip(KEYS, (*row, name, family))) | scores | {'seconds': seconds})
        if len(examples) < n_examples:
            unit = max(case.units, key=lambda unit: unit.volume_ml)
            box = box_around(unit.score_mask, MARGIN_VOXELS)
            pictures = {'healthy truth': case.image[box], 'with lesion': case.seen[box]}
            pictures |= {name: filled[box] for name, family, filled, _ in fillings if family != 'control'}
            title = f'{case.subject}, {case.kind}, lesion of {unit.volume_ml:.1f} ml, {unit.place}'
            examples.append({'title': title, 'kind': case.kind, 'dilation': case.dilation, 'images': pictures})
            examples[-1]['mask'] = unit.lesion_mask[box]
    return rows, examples


def score_confluent(case, unit, filled):
    """Scores of a filling in one unit of a confluent case: those that its size allows, see `METRICS`."""
    box = box_around(unit.score_mask, MARGIN_VOXELS)
    true, test, mask = case.image[box], filled[box], unit.score_mask[box]
    slices = np.flatnonzero(mask.any(axis=(0, 1)))
    mse = np.mean([metrics.mean_squared_error(true[..., z], test[..., z], mask[..., z]) for z in slices])
    scores = dict.fromkeys(METRICS, np.nan) | {'mse': float(mse)}
    scores['psnr'] = metrics.peak_signal_to_noise_ratio(mse, metrics.DATA_RANGE)
    scores['border'] = metrics.border_ratio(test, unit.lesion_mask[box], case.wm_mask[box])
    scores['texture'] = metrics.texture_ratio(true, test, mask)
    return scores


def models_of(options):
    """Models that the app fills with, by modality: dict of list of (name of the row, model, steps or None).

    A modality for which none is given has the bundled one.
    """
    models = {'T1w': [], 'FLAIR': []}
    for text in options.models:
        method = ModelMethod.parse(text)
        model = method.load_model(options.device)
        models[model.modality].append((f'app, {method.name(model)}', model, method.num_inference_steps))
    for modality, of_modality in models.items():
        if not of_modality:
            method = ModelMethod(f'fill-{modality}')
            model = method.load_model(options.device)
            of_modality.append((f'app, {method.name(model)}', model, None))
    return models


def classical_fillers(options, modality):
    """Classical fillers for large lesions, by name."""
    left_out = NOT_FOR_PATIENTS | (NOT_FOR_FLAIR if modality == 'FLAIR' else set())
    return {name: fill for name, fill in BASELINES.items() if name in options.baselines and name not in left_out}


def evaluate_patients(options):
    """Write the tables of the kinds that need no healthy brains: `real` and `appeared`."""
    models, fillers = models_of(options), classical_fillers(options, 'FLAIR')
    folder = options.output_dir
    if 'real' in options.kinds:
        rows, aucs = evaluation_app.measure_patients(models, fillers, options)
        summary = evaluation_app.summarise_real(rows)
        layout.write_tsv(folder / 'real.tsv', rows, evaluation_app.REAL_COLUMNS)
        layout.write_tsv(folder / 'real_summary.tsv', summary, list(summary[0]))
        layout.write_tsv(folder / 'discriminability.tsv', aucs, evaluation_app.AUC_COLUMNS)
    if 'appeared' in options.kinds:
        rows, examples = evaluation_app.compare_visits(options.follow_up, models, fillers, options)
        summary = evaluation_app.summarise_appeared(rows)
        layout.write_tsv(folder / 'appeared.tsv', rows, evaluation_app.APPEARED_COLUMNS)
        if summary:
            layout.write_tsv(folder / 'appeared_summary.tsv', summary, list(summary[0]))
        families = {row['method']: row['family'] for row in rows}
        for example in examples:
            png = evaluation_page.draw_example(example, families)
            layout.write_bytes(folder / 'figures' / f'{example["name"]}.png', png)


def fill_case(case, methods, options, number, shown=None):
    """Fill a case by every method that its kind is meant for.

    RePaint takes hundreds of passes: it fills the kinds that the options name, and of others the unit that is `shown`.

    Yields
    ------
    name, family, filled image, seconds per unit, whether it is to be scored
    """
    yield UNFILLED, 'control', case.seen, np.nan, True
    yield TRUTH, 'control', case.image, np.nan, True
    for name, family, repaint, fill in methods:
        if case.kind == 'patient' and name in NOT_FOR_PATIENTS:
            continue
        scored = not repaint or case.kind in options.repaint_kinds
        lesion_mask = case.lesion_mask if scored else shown.lesion_mask if shown else None
        if lesion_mask is None:
            continue
        started = time.perf_counter()
        # The tissue is the true one; of the image, a filler sees what a rater's mask leaves of the lesion.
        rng = np.random.default_rng([options.seed, number, 3])  # `make_cases` has 0 to 2
        filled = fill(case.seen.copy(), lesion_mask, case.wm_mask, rng)
        seconds = (time.perf_counter() - started) / len(case.units)
        yield name, family, np.where(lesion_mask, filled, case.seen), seconds, scored


def groups_of(row):
    """Groups that a row of scores counts in: all, its volume, its place."""
    groups = ['all']
    if row['kind'] != 'patient':
        for low, high in evaluation_cases.VOLUMES_ML:
            if low <= row['volume_ml'] < high:
                groups.append(f'volume {low:g} to {high:g} ml' if np.isfinite(high) else f'volume over {low:g} ml')
        groups.append(row['place'])
    return groups


def summarise(rows, seed=0):
    """Means and 95 % bootstrap intervals over cases, per kind, dilation, group and method: list of dict."""
    rng = np.random.default_rng(seed)
    grouped = {}
    for row in rows:
        for group in groups_of(row):
            key = (row['kind'], row['dilation'], group, row['method'], row['family'])
            grouped.setdefault(key, []).append(row)
    summary = []
    for key, members in grouped.items():
        entry = dict(zip(('kind', 'dilation', 'group', 'method', 'family'), key)) | {'n': len(members)}
        people = [row['person'] for row in members]
        for metric in METRICS:
            mean, low, high = metrics.bootstrap_mean([row[metric] for row in members], rng, clusters=people)
            entry |= {metric: mean, f'{metric}_low': low, f'{metric}_high': high}
        summary.append(entry)
    return summary


def compare(rows, seed=0, names=METRICS[:-1]):
    """Paired bootstrap of every method against every other on the cases that both filled: list of dict."""
    rng = np.random.default_rng(seed)
    values = {}
    for row in rows:
        case = (row['subject'], row['unit'])
        values.setdefault((row['kind'], row['dilation']), {}).setdefault(row['method'], {})[case] = row
    comparisons = []
    for (kind, dilation), methods in values.items():
        for method, own in methods.items():
            for other, others in methods.items():
                shared = sorted(own.keys() & others.keys())
                if method == other or not shared:
                    continue
                people = [own[case]['person'] for case in shared]
                for metric in names:
                    pairs = [[found[case][metric] for case in shared] for found in (own, others)]
                    n = int(np.isfinite(pairs).all(axis=0).sum())
                    if n:
                        difference, low, high = metrics.paired_bootstrap(*pairs, rng, clusters=people)
                        row = (kind, dilation, metric, method, other, difference, low, high, n)
                        names_of_row = 'kind dilation metric method other difference low high n'.split()
                        comparisons.append(dict(zip(names_of_row, row)))
    return comparisons


def artefacts_of(examples, repaint_methods, flat_methods, deep_methods):
    """The thesis' artefacts (4.1, Fig. 4.3) among the examples: stripes of 2D models, borders where masks are tight."""
    found = []
    clean = next((example for example in examples if example['kind'] == 'clean'), None)
    rim = next((example for example in examples if example['kind'] == 'rim'), None)
    stripes = [[name for name in names if clean and name in clean['images']] for names in (flat_methods, deep_methods)]
    if all(stripes):
        shown = ['healthy truth', stripes[0][0], stripes[1][0]]
        caption = (
            'A 2D model fills slice by slice: look for stripes along z. A pseudo-3D model sees the neighbouring slices.'
        )
        found.append(clean | {'title': 'Stripes', 'caption': caption, 'view': 'sagittal', 'methods': shown})
    if rim:
        shown = ['healthy truth', 'with lesion'] + [name for name in repaint_methods if name in rim['images']][:1]
        shown += [name for name in deep_methods if name in rim['images']][:2] + ['biharmonic']
        shown = [name for name in shown if name in rim['images']]
        caption = (
            'The mask misses the rim of the lesion, which no filler may touch: look for the border that it leaves.'
        )
        found.append(rim | {'title': 'Borders', 'caption': caption, 'view': 'axial', 'methods': shown})
    return found


def parse_options(argv=None):
    """Command line of the evaluation."""
    parser = argparse.ArgumentParser(
        prog='python -m bids_lesionfill.evaluate',
        description=__doc__.split('\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        'bids_dir', type=Path, nargs='+', help='healthy brains: T1w, derivatives with dseg, column split; or patients'
    )
    parser.add_argument('output_dir', type=Path)
    parser.add_argument('--models', nargs='*', default=['fill-T1w'], metavar='MODEL[@STEPS]', help='names or folders')
    parser.add_argument('--baselines', nargs='*', default=list(BASELINES), choices=list(BASELINES), metavar='NAME')
    parser.add_argument('--lesion-masks', type=Path, help='folder of lesion masks; the last fifth is used')
    parser.add_argument('--split', default='validation')
    parser.add_argument('--modality', choices=['T1w', 'FLAIR'], default='T1w')
    parser.add_argument(
        '--participant-label',
        nargs='+',
        metavar='LABEL',
        help="patients, in whose normal-appearing white matter cases are made, instead of a split's healthy brains",
    )
    kinds = ['clean', 'rim', 'patient']
    parser.add_argument('--kinds', nargs='+', default=kinds, choices=[*kinds, *APP_KINDS])
    parser.add_argument('--lesion-shapes', type=Path, metavar='FILE', help='`confluent`: archive of single lesions')
    parser.add_argument('--n-masks', type=int, default=3, help='`confluent`: per brain')
    parser.add_argument('--patients', type=Path, nargs='+', metavar='DIR', help='`real`: datasets of patients')
    parser.add_argument('--follow-up', type=Path, metavar='DIR', help='`appeared`: dataset with masks of changes')
    parser.add_argument(
        '--review', type=Path, metavar='TSV', help='`appeared`: what a person saw (subject, lesion, counts: yes or no)'
    )
    parser.add_argument(
        '--classifiers',
        nargs='+',
        default=['radiomics'],
        choices=list(discriminability.CLASSIFIERS),
        help='`real`: what tells filled tissue from untouched',
    )
    parser.add_argument(
        '--reuse-fills', action='store_true', help='take what the app filled from OUTPUT_DIR/fills of an earlier run'
    )
    parser.add_argument(
        '--repaint-kinds', nargs='*', default=['clean'], choices=kinds, help='kinds that unconditional models fill too'
    )
    parser.add_argument(
        '--dilate',
        type=growth,
        nargs='+',
        default=[0, 1, 2, APP_GROWTH],
        help='growth of the masks of `rim`, in voxels; 1+2: by one, then by up to two into the rim. The last one is '
        'that of `patient`',
    )
    parser.add_argument('--n-lesions', type=int, default=8, help='per brain and kind')
    parser.add_argument('--n-examples', type=int, default=2, help='pictures per brain shown, of the first brains')
    parser.add_argument('--seed', type=int, default=2)
    parser.add_argument('--lpips-weights', type=Path, nargs='+', help='AlexNet and LPIPS weights; scores LPIPS')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--nprocs', type=int, default=1, help='brains at once')
    parser.add_argument('--threads', type=int, help='per brain (default: all cores, shared)')
    options = parser.parse_args(argv)
    for kind, value, option in (
        ('real', options.patients, '--patients'),
        ('appeared', options.follow_up, '--follow-up'),
    ):
        if kind in options.kinds and not value:
            parser.error(f'kind {kind} needs {option}')
    for text in options.models:
        try:
            weights.find_model(ModelMethod.parse(text).name_or_path)
        except (FileNotFoundError, ValueError) as error:
            parser.error(str(error))
    return options


def find_brains(options):
    """Files of the brains to evaluate on (see `read_image`), and whose brain each is."""
    if options.participant_label is None:
        if options.modality != 'T1w':
            raise SystemExit(f'healthy brains have no {options.modality} here: give patients by --participant-label')
        files, people = [], []
        for bids_dir in options.bids_dir:
            names = layout.find_people(bids_dir)
            for pair in layout.find_training(bids_dir, options.split):
                subject = Path(pair[0]).name.split('_')[0]
                files.append(pair)
                people.append(names.get(subject, subject))
        return files, people
    wanted = {label.removeprefix('sub-') for label in options.participant_label}
    images = [image for bids_dir in options.bids_dir for image in layout.find_patients(bids_dir, options.modality)]
    images = [image for image in images if image[0] in wanted]
    missing = sorted(wanted - {image[0] for image in images})
    if missing:
        raise SystemExit(
            f'patients {missing} have no {options.modality} with T1w and lesion mask in {options.bids_dir}'
        )
    return [files for _, *files in images], [label for label, *_ in images]


def main(argv=None):
    """Evaluate, and write tables and the page; return the exit code."""
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    options = parse_options(argv)
    try:
        ownership.check_folder(options.output_dir, *OWN_FOLDER)
    except layout.UsageError as error:
        logger.error('%s', error)
        return 2
    started = time.monotonic()
    loaded = {text: ModelMethod.parse(text).load_model('cpu') for text in options.models}
    named = {text: ModelMethod.parse(text).name(model) for text, model in loaded.items()}
    if len(set(named.values())) < len(options.models):  # one would take the other's place in every table
        raise SystemExit(f'two models have one name, see their plan.json: {named}')
    if {'real', 'appeared'} & set(options.kinds):
        evaluate_patients(options)
    if not set(options.kinds) - {'real', 'appeared'}:
        logger.info('wrote %s', options.output_dir)
        return
    files, people = find_brains(options)
    _, mask_files = layout.split_lesion_masks(layout.find_lesion_masks(options.lesion_masks or options.bids_dir[0]))
    shapes = dataset.read_lesion_shapes(mask_files)
    subjects = [layout.strip_extension(Path(image_file).name).rpartition('_')[0] for image_file, *_ in files]
    jobs = [
        (options, number, subject, person, pair, shapes, mask_files[number % len(mask_files)], n_examples)
        for number, (subject, person, pair) in enumerate(zip(subjects, people, files))
        for n_examples in [options.n_examples if number < 2 else 0]
    ]
    if options.nprocs > 1:
        with ProcessPoolExecutor(options.nprocs, mp_context=get_context('spawn')) as pool:
            results = list(pool.map(evaluate_brain, jobs))
    else:
        results = [evaluate_brain(job) for job in jobs]
    rows = [row for rows, _ in results for row in rows]
    examples = [example for _, examples in results for example in examples]
    summary, comparisons = summarise(rows), compare(rows)

    info = {
        'seed': options.seed,
        'modality': options.modality,
        'subjects': f'{", ".join(subjects)}: {len(set(people))} people, by whom intervals are resampled',
        'lesion shapes': f'{len(shapes)} from the last {len(mask_files)} masks of the folder, which `train` holds out',
        'selection': f'models may have been chosen on these subjects (split {options.split}): see their cards',
        'cases': ', '.join(f'{kind}: {n}' for kind, n in count_cases(rows).items()),
        'models': '; '.join(f'{named[text]}: SHA-256 {model.sha256}' for text, model in loaded.items()),
        'version': metadata.version('bids_lesionfill'),
        'torch': torch.__version__,
        'minutes': f'{(time.monotonic() - started) / 60:.0f}',
        'dilation': {'rim': options.dilate[-1]},
    }
    flat = [named[text] for text, model in loaded.items() if not model.plan['pseudo_3d']]
    conditional = [named[t] for t, m in loaded.items() if m.plan['pseudo_3d'] and m.form.kind != 'unconditional']
    repaint = [named[text] for text, model in loaded.items() if model.form.kind == 'unconditional']
    options.output_dir.mkdir(parents=True, exist_ok=True)
    layout.write_json(options.output_dir / 'evaluation.json', {'info': info, 'summary': without_nan(summary)})
    layout.write_tsv(options.output_dir / 'scores.tsv', rows, [*KEYS, *METRICS])
    layout.write_tsv(options.output_dir / 'summary.tsv', summary, list(summary[0]))
    layout.write_tsv(options.output_dir / 'comparisons.tsv', comparisons, list(comparisons[0]))
    page = evaluation_page.write_page(
        options.output_dir, summary, comparisons, examples, info, artefacts_of(examples, repaint, flat, conditional)
    )
    logger.info('wrote %s', page)
    return 0


def count_cases(rows):
    """Number of scored cases by kind."""
    cases = {(row['kind'], row['subject'], row['unit']) for row in rows}
    return {kind: sum(case[0] == kind for case in cases) for kind in dict.fromkeys(row['kind'] for row in rows)}


def without_nan(rows):
    """JSON knows no NaN: None."""
    return json.loads(json.dumps(rows, default=lambda value: value.item()), parse_constant=lambda _: None)


if __name__ == '__main__':
    sys.exit(main())
