"""Compare fillers where the truth is known: `python -m bids_lesionfill.evaluate BIDS_DIR OUT --models NAME ...`.

The validation brains of a BIDS dataset (healthy T1w, `dseg`, column `split`) get real lesion shapes that no training
saw; models and classical fillers fill the same cases (see `evaluation_cases`). OUT gets `evaluation.html`,
`scores.tsv` (one row per case and method), `summary.tsv`, `comparisons.tsv` and `evaluation.json`. Of the kinds
`confluent`, `real` and `appeared` the app fills the images as its users have them (see `evaluation_app`); the last two
have tables of their own: `real*.tsv`, `discriminability.tsv` and `appeared*.tsv`.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from .. import statistics
from ..diffusion import lpips, registry, tiles
from ..images import anatomy, metrics
from ..layout import files as layout_files
from ..modality import get
from ..train import brains
from . import app_fills, pictures
from . import cases as evaluate_cases
from . import methods as evaluate_methods

logger = logging.getLogger('bids_lesionfill.evaluate')

OWN_FOLDER = ('evaluation.json', ('info', 'summary'), 'evaluate')  # see `ownership.check_folder`
MARGIN_VOXELS = 8  # around a lesion that is scored; more than the windows of SSIM see
METRICS = ('mse', 'psnr', 'ssim', 'm2_mse', 'm2_psnr', 'm2_ssim', 'lpips', 'border', 'texture', 'seconds')
ERRORS = METRICS[:7]  # against the truth
EXAMPLE_ML = 0.3  # about the volume of the lesions that are shown
KEYS = ('kind', 'dilation', 'subject', 'person', 'unit', 'volume_ml', 'place', 'method', 'family')


APP_KINDS = (*app_fills.CONFLUENT_KINDS, 'appeared', 'real')  # filled by the app as its users call it
APP_GROWTH = '1+2'  # of masks, by default in `fill.fill`; see `evaluation_cases.grow`


def growth(text: str) -> int | str:
    """Parse a mask dilation of the command line: a number of voxels, or `1+2`."""
    parts = text.split('+')
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f'{text!r} is no growth, expected for example 1 or 1+2')
    return int(text) if len(parts) == 1 else text


def read_image(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read the normalised image and tissue classes of a brain: (T1w, dseg) or (image, T1w, lesion mask)."""
    if len(files) == 2:
        return brains.read_tissues(*files)
    patient = brains.read_patient(*files)
    return patient.image, anatomy.normal_appearing(patient)


def make_cases(
    subject: str,
    files: Sequence[Path],
    shapes: Sequence[np.ndarray],
    patient_mask_file: Path | None,
    options: argparse.Namespace,
    number: int,
) -> list[evaluate_cases.Case]:
    """Synthesize all cases of one brain: `clean`, `rim` per dilation, `patient`."""
    image, tissue_seg = read_image(files)
    cases = []
    for draw, (kind, dilations) in enumerate((('clean', [0]), ('rim', options.dilate))):
        if kind in options.kinds:
            rng = np.random.default_rng([options.seed, number, draw])
            cases += evaluate_cases.draw_cases(
                subject, image, tissue_seg, shapes, rng, options.n_lesions, kind, dilations, options.modality
            )
    if 'patient' in options.kinds:
        mask_img = nib.load(patient_mask_file)
        lesion_mask = np.asarray(mask_img.dataobj) > 0
        moved = evaluate_cases.move_lesions(lesion_mask, mask_img.affine, tissue_seg > 0)
        rng = np.random.default_rng([options.seed, number, 2])
        cases.append(
            evaluate_cases.patient_case(
                subject, image, tissue_seg, moved, rng, options.dilate[-1], modality=options.modality
            )
        )
    return cases


def box_around(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Return slices of the bounding box of a mask plus a margin, at least 11 voxels wide."""
    voxels = np.argwhere(mask)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    return tuple(
        slice(max(min(a - margin, size - 11), 0), max(b + margin, 11)) for a, b, size in zip(low, high, mask.shape)
    )


def score_unit(
    case: evaluate_cases.Case,
    unit: evaluate_cases.Unit,
    filled: np.ndarray,
    window: Any,
    perceptual_distance: Callable[..., Any] | None = None,
) -> dict[str, float]:
    """Compute all scores of a filling in one unit of a case, except time: dict, see `METRICS`."""
    box = box_around(unit.score_mask, MARGIN_VOXELS)
    true, test, mask = case.image[box], filled[box], unit.score_mask[box]
    scores = metrics.slice_scores(true, test, mask)
    scores |= {f'm2_{name}': value for name, value in metrics.brats_scores(true, test, mask, window).items()}
    scores['lpips'] = np.nan
    if perceptual_distance is not None:  # of whole slices, in which nothing but this unit is filled
        z = np.flatnonzero(unit.score_mask.any(axis=(0, 1)))
        whole = np.where(unit.score_mask, filled, case.image)
        slices = (torch.from_numpy(tiles.to_slab(image)[z][:, None]).float() for image in (case.image, whole))
        scores['lpips'] = perceptual_distance(*slices).mean().item()
    scores['border'] = metrics.border_ratio(test, unit.lesion_mask[box], case.wm_mask[box])
    scores['texture'] = metrics.texture_ratio(true, test, mask)
    return scores


def evaluate_brain(job: Sequence[Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Fill and score the cases of one brain by every method: (rows of `scores.tsv`, page examples)."""
    options, number, subject, person, files, shapes, patient_mask_file, n_examples = job
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')  # this may be a process of its own
    torch.set_num_threads(options.threads or max(1, (os.cpu_count() or 1) // options.nprocs))
    perceptual_distance = lpips.load_lpips(options.lpips_weights) if options.lpips_weights else None
    names = set(options.baselines) - evaluate_methods.left_out(options.modality)
    methods = [(name, 'baseline', False, fill) for name, fill in evaluate_methods.BASELINES.items() if name in names]
    for text in options.models:
        name, repaint, fill, _ = evaluate_methods.ModelMethod.parse(text).load(options.device, options.modality)
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
                if name == evaluate_methods.TRUTH:  # equal to itself; its border and texture say what is normal
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
    is_rescan = subject.split('_')[0] != person  # of the same anatomy
    if set(app_fills.CONFLUENT_KINDS) & set(options.kinds) and not is_rescan:
        found = evaluate_confluent(number, subject, person, files, options, n_examples)
        rows, examples = rows + found[0], examples + found[1]
    return rows, examples


def evaluate_confluent(
    number: int, subject: str, person: str, files: Any, options: argparse.Namespace, n_examples: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Score `confluent` cases of a healthy brain, by the app and by classical fillers in its mask."""
    models = models_of(options)['T1w']
    fillers = classical_fillers(options, 'T1w')
    rows, examples = [], []
    for case, by_app in app_fills.confluent_cases(number, subject, files, models, options):
        fillings = [
            (evaluate_methods.UNFILLED, 'control', case.seen, np.nan),
            (evaluate_methods.TRUTH, 'control', case.image, np.nan),
        ]
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
                if name == evaluate_methods.TRUTH:
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


def score_confluent(case: evaluate_cases.Case, unit: evaluate_cases.Unit, filled: np.ndarray) -> dict[str, Any]:
    """Compute the scores that the size of one unit of a confluent case allows, see `METRICS`."""
    box = box_around(unit.score_mask, MARGIN_VOXELS)
    true, test, mask = case.image[box], filled[box], unit.score_mask[box]
    slices = np.flatnonzero(mask.any(axis=(0, 1)))
    mse = np.mean([metrics.mean_squared_error(true[..., z], test[..., z], mask[..., z]) for z in slices])
    scores = dict.fromkeys(METRICS, np.nan) | {'mse': float(mse)}
    scores['psnr'] = metrics.peak_signal_to_noise_ratio(mse, metrics.DATA_RANGE)
    scores['border'] = metrics.border_ratio(test, unit.lesion_mask[box], case.wm_mask[box])
    scores['texture'] = metrics.texture_ratio(true, test, mask)
    return scores


def models_of(options: argparse.Namespace) -> dict[str, list[Any]]:
    """List the app's models by modality: dict of list of (name of the row, model, steps or None).

    A modality for which none is given has the bundled one.
    """
    models = {'T1w': [], 'FLAIR': []}
    for text in options.models:
        method = evaluate_methods.ModelMethod.parse(text)
        made_for = registry.describe(method.name_or_path).get('modality')
        for modality, of_modality in models.items():
            if made_for in (modality, 'any', None):
                model = method.load_model(options.device, modality)
                of_modality.append((f'app, {method.name(model)}', model, method.num_inference_steps))
    for modality, of_modality in models.items():
        if not of_modality:
            method = evaluate_methods.ModelMethod(get(modality).fill_model)
            model = method.load_model(options.device)
            of_modality.append((f'app, {method.name(model)}', model, None))
    return models


def classical_fillers(options: argparse.Namespace, modality: str) -> dict[str, Callable]:
    """Return the classical fillers for large lesions, by name."""
    left_out = evaluate_methods.NOT_FOR_PATIENTS | evaluate_methods.left_out(modality)
    return {
        name: fill
        for name, fill in evaluate_methods.BASELINES.items()
        if name in options.baselines and name not in left_out
    }


def evaluate_patients(options: argparse.Namespace) -> None:
    """Write the tables of the kinds that need no healthy brains: `real` and `appeared`."""
    models, fillers = models_of(options), classical_fillers(options, 'FLAIR')
    folder = options.output_dir
    if 'real' in options.kinds:
        rows, aucs = app_fills.measure_patients(models, fillers, options)
        summary = app_fills.summarise_real(rows)
        layout_files.write_tsv(folder / 'real.tsv', rows, app_fills.REAL_COLUMNS)
        layout_files.write_tsv(folder / 'real_summary.tsv', summary, list(summary[0]))
        layout_files.write_tsv(folder / 'discriminability.tsv', aucs, app_fills.AUC_COLUMNS)
    if 'appeared' in options.kinds:
        rows, examples = app_fills.compare_visits(options.follow_up, models, fillers, options)
        summary = app_fills.summarise_appeared(rows)
        layout_files.write_tsv(folder / 'appeared.tsv', rows, app_fills.APPEARED_COLUMNS)
        if summary:
            layout_files.write_tsv(folder / 'appeared_summary.tsv', summary, list(summary[0]))
        families = {row['method']: row['family'] for row in rows}
        for example in examples:
            png = pictures.draw_example(example, families)
            layout_files.write_bytes(folder / 'figures' / f'{example["name"]}.png', png)


def fill_case(
    case: evaluate_cases.Case,
    methods: Sequence[tuple[str, str, bool, Callable]],
    options: argparse.Namespace,
    number: int,
    shown: Any = None,
) -> Iterator[Any]:
    """Fill a case by every method that its kind is meant for.

    RePaint takes hundreds of passes: it fills the kinds that the options name, and of others the unit that is `shown`.

    Yields
    ------
    name, family, filled image, seconds per unit, whether it is to be scored
    """
    yield evaluate_methods.UNFILLED, 'control', case.seen, np.nan, True
    yield evaluate_methods.TRUTH, 'control', case.image, np.nan, True
    for name, family, repaint, fill in methods:
        if case.kind == 'patient' and name in evaluate_methods.NOT_FOR_PATIENTS:
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


def groups_of(row: dict[str, Any]) -> list[str]:
    """List the groups of a row of scores: all, its volume, its place."""
    groups = ['all']
    if row['kind'] != 'patient':
        for low, high in evaluate_cases.VOLUMES_ML:
            if low <= row['volume_ml'] < high:
                groups.append(f'volume {low:g} to {high:g} ml' if np.isfinite(high) else f'volume over {low:g} ml')
        groups.append(row['place'])
    return groups


def summarise(rows: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Compute means and 95 % bootstrap intervals per kind, dilation, group and method: list of dict."""
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
            mean, low, high = statistics.bootstrap_mean([row[metric] for row in members], rng, clusters=people)
            entry |= {metric: mean, f'{metric}_low': low, f'{metric}_high': high}
        summary.append(entry)
    return summary


def compare(rows: list[dict[str, Any]], seed: int = 0, names: Sequence[str] = METRICS[:-1]) -> list[dict[str, Any]]:
    """Bootstrap paired differences between all methods on the cases that both filled: list of dict."""
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
                        difference, low, high = statistics.paired_bootstrap(pairs[0], pairs[1], rng, clusters=people)
                        row = (kind, dilation, metric, method, other, difference, low, high, n)
                        names_of_row = 'kind dilation metric method other difference low high n'.split()
                        comparisons.append(dict(zip(names_of_row, row)))
    return comparisons


def artefacts_of(
    examples: Sequence[dict[str, Any]],
    repaint_methods: Sequence[str],
    flat_methods: Sequence[str],
    deep_methods: Sequence[str],
) -> list[dict[str, Any]]:
    """Find the thesis' artefacts (4.1, Fig. 4.3) in the examples: 2D stripes, borders of tight masks."""
    found = []
    clean = next((example for example in examples if example['kind'] == 'clean'), None)
    rim = next((example for example in examples if example['kind'] == 'rim'), None)
    stripes = [[name for name in names if clean and name in clean['images']] for names in (flat_methods, deep_methods)]
    if clean and all(stripes):
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
