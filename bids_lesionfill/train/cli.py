"""Train a model from a BIDS dataset: `python -m bids_lesionfill.train BIDS_DIR OUT --plan NAME_OR_JSON`.

To fill, the dataset holds T1w images of healthy brains, a derivative with tissue segmentations (`dseg`, 3 = white
matter) and, in `participants.tsv`, a column `split` (train, validation). To synthesize, it holds patients with lesion
masks. The result is a model folder: `unet/`, `scheduler/`, `plan.json`. A run that was killed goes on from its last
checkpoint and ends with the same weights. `accelerate launch -m bids_lesionfill.train ...` runs it on several GPUs.
"""

import argparse
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import text_files
from ..diffusion import lpips, models
from ..layout import datasets, errors, ownership
from . import brains as train_brains
from . import cases as train_cases
from . import loop, plans

logger = logging.getLogger('bids_lesionfill.train')

OWN_FOLDER = ('plan.json', ('task', 'modality', 'num_updates'), 'train', 'unet')  # see `ownership.check_folder`


def main(argv: list[str] | None = None) -> int:
    """Run the command line of the training; return the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m bids_lesionfill.train',
        description=__doc__.split('\n')[0],
        epilog=f'Plans: {", ".join(plans.PLANS)}.',
    )
    parser.add_argument('bids_dir', type=Path, nargs='+', help='healthy brains with dseg and column split; or patients')
    parser.add_argument('output_dir', type=Path)
    parser.add_argument('--plan', default='fill-T1w', help='name of a plan, or a JSON file')
    parser.add_argument('--lesion-masks', type=Path, help='folder of lesion masks whose shapes are placed')
    parser.add_argument(
        '--patients',
        type=Path,
        nargs='+',
        default=[],
        help='filling T1w: datasets of patients whose normal-appearing white matter is trained on as well',
    )
    parser.add_argument(
        '--validation-label',
        nargs='+',
        default=[],
        help='patients kept out of training; synthesis and FLAIR are validated on them (default: the last one)',
    )
    parser.add_argument(
        '--no-validation', action='store_true', help='patients: train on all of them, after leave-one-out trainings'
    )
    parser.add_argument('--num-updates', type=int, help="instead of the plan's")
    parser.add_argument('--decay-updates', type=int, help="instead of the plan's")
    parser.add_argument(
        '--cpu-minutes', type=float, help='stop after so much CPU time of the main process; with --num-workers 0 of all'
    )
    parser.add_argument('--init-from', help='model (name or folder) whose weights to start from')
    parser.add_argument('--lpips-weights', type=Path, nargs='+', help='AlexNet and LPIPS weights; logs LPIPS')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--num-workers', type=int, default=1)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    try:
        ownership.check_folder(options.output_dir, *OWN_FOLDER)
    except errors.UsageError as error:
        logger.error('%s', error)
        return 2
    plan = (
        plans.PLANS[options.plan]
        if options.plan in plans.PLANS
        else plans.Plan.from_json(text_files.read_text(options.plan))
    )
    changes = {name: getattr(options, name) for name in ('num_updates', 'decay_updates')}
    plan = replace(plan, **{name: value for name, value in changes.items() if value is not None})
    brains, validation_brains, lesions, validation_lesions = read_data(options, plan)
    n_cases = plan.n_validation_cases if validation_brains else 0
    cases = train_cases.validation_cases(
        validation_brains, validation_lesions, plan.cases, plan.form, n_cases, plan.seed
    )
    logger.info('%d brains to train, %d to validate', len(brains), len(validation_brains))
    loop.train(
        brains,
        cases,
        lesions,
        plan,
        options.output_dir,
        options.device,
        num_workers=options.num_workers,
        cpu_minutes=options.cpu_minutes,
        initial_weights=models.load_model(options.init_from).unet.state_dict() if options.init_from else None,
        perceptual_distance=lpips.load_lpips(options.lpips_weights) if options.lpips_weights else None,
    )
    return 0


def read_data(options: argparse.Namespace, plan: plans.Plan) -> tuple[Any, ...]:
    """Return brains to train and to validate, lesion shapes to train and to validate, by the command line's options."""
    healthy_dirs = options.bids_dir if (plan.task, plan.modality) == ('fill', 'T1w') else []
    patient_dirs = options.patients if healthy_dirs else options.bids_dir
    must_validate = not healthy_dirs and not options.no_validation
    patients = split_patients(patient_dirs, plan.modality, options.validation_label, must_validate)
    if plan.task == 'synth':
        filler = models.load_model(f'fill-{plan.modality}')
        return *(train_brains.read_patients(group, filler) for group in patients), [], []
    mask_files = datasets.find_lesion_masks(options.lesion_masks or options.bids_dir[0])
    brains, validation_brains = (
        train_brains.read_healthy_brains(
            [files for folder in healthy_dirs for files in datasets.find_training(folder, split)]
        )
        for split in ('train', 'validation')
    )
    brains += train_brains.read_normal_appearing(patients[0])
    if not healthy_dirs:
        validation_brains = train_brains.read_normal_appearing(patients[1])
    shapes = [train_brains.read_lesion_shapes(files) for files in datasets.split_lesion_masks(mask_files)]
    return brains, validation_brains, *shapes


def split_patients(
    bids_dirs: Sequence[Path], modality: str, held_out: Collection[str], must_validate: bool
) -> list[list[Any]]:
    """Return files of patients to train and to validate (see `layout.find_patients`).

    By the labels that are held out.
    """
    images = [image for bids_dir in bids_dirs for image in datasets.find_patients(bids_dir, modality)]
    held_out = {label.removeprefix('sub-') for label in held_out}
    if must_validate and not held_out:
        held_out = {images[-1][0]}
    groups = [[files for label, *files in images if (label in held_out) == out] for out in (False, True)]
    if must_validate and not all(groups):
        raise SystemExit(f'{len(groups[0])} images to train, {len(groups[1])} to validate: expected some of both')
    return groups
