"""Train a model from a BIDS dataset: `python -m bids_lesionfill.train BIDS_DIR OUT --plan NAME_OR_FILE`.

To fill, the dataset holds T1w images of healthy brains, a derivative with tissue segmentations (`dseg`, 3 = white
matter) and, in `participants.tsv`, a column `split` (train, validation); or, with `--normal-appearing`, patients with
lesion masks and nothing else. To synthesize, it holds patients with lesion masks. The result is a model folder:
`unet/`, `scheduler/`, `plan.json`. A run that was killed goes on from its last checkpoint and ends with the same
weights. `accelerate launch -m bids_lesionfill.train ...` runs it on several GPUs.

torch takes seconds to import: what does not need it (`--help`, a path that is not there) comes before.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import text_files
from ..layout import datasets, errors, ownership

if TYPE_CHECKING:
    from .plans import Plan

logger = logging.getLogger('bids_lesionfill.train')

OWN_FOLDER = ('plan.json', ('task', 'modality', 'num_updates'), 'train', 'unet')  # see `ownership.check_folder`
PRINTS = ('--list-plans', '--print-plan')
OK, USAGE = 0, 2


def main(argv: list[str] | None = None) -> int:
    """Run the command line of the training; return the exit code: 0, or 2 with a sentence about what is wrong."""
    argv = sys.argv[1:] if argv is None else argv
    options = build_parser(needs_paths=not set(PRINTS) & set(argv)).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    logging.getLogger('bidsschematools').setLevel(logging.WARNING)  # else it tells of its schema
    try:
        if options.list_plans:
            return list_plans()
        if options.print_plan:
            print(plan_of(options).to_json(), end='')
            return OK
        check_paths(options)
        ownership.check_folder(options.output_dir, *OWN_FOLDER)
        return run(options)
    except ModuleNotFoundError as error:
        logger.error("%s is not installed: pip install 'bids_lesionfill[train]'", error.name)
    except (ValueError, OSError) as error:
        logger.error('%s', errors.in_words(error))
    return USAGE


def build_parser(needs_paths: bool = True) -> argparse.ArgumentParser:
    """Return the command-line parser; what only prints needs no paths."""
    parser = argparse.ArgumentParser(
        prog='python -m bids_lesionfill.train',
        description='Train a model to fill or to synthesize lesions, from a BIDS dataset.',
        epilog='Exit codes: 0 done, 2 wrong usage or data that cannot be used.',
        allow_abbrev=False,
    )
    parser.add_argument(
        'bids_dir', type=Path, nargs='+' if needs_paths else '*', help='healthy brains with dseg and split; or patients'
    )
    parser.add_argument(
        'output_dir',
        type=Path,
        nargs=None if needs_paths else '?',
        help='folder of the model, its checkpoint and log; new, or that of the run to go on with',
    )
    parser.add_argument(
        '--plan', default='fill-T1w', help='name of a plan, or a JSON or YAML file of one (default: %(default)s)'
    )
    parser.add_argument('--list-plans', action='store_true', help='list the plans by name, and stop')
    parser.add_argument('--print-plan', action='store_true', help='print all settings of --plan as JSON, and stop')
    parser.add_argument('--num-updates', type=int, metavar='N', help="number of updates, instead of the plan's")
    parser.add_argument(
        '--decay-updates', type=int, metavar='N', help="updates in which the learning rate falls, instead of the plan's"
    )
    add_data(parser.add_argument_group('Data'))
    add_resources(parser.add_argument_group('Start, end and machine'))
    return parser


def add_data(group: Any) -> None:
    """Add the options of the data to a group of a parser."""
    group.add_argument(
        '--lesion-masks',
        type=Path,
        metavar='DIR',
        help='folder of lesion masks (*label-lesion*_mask.nii.gz) whose shapes are placed (default: the first '
        'BIDS_DIR)',
    )
    group.add_argument(
        '--normal-appearing',
        action='store_true',
        help='filling of T1w: BIDS_DIR holds patients; train on their normal-appearing white matter, which is found '
        'without a segmentation',
    )
    group.add_argument(
        '--patients',
        type=Path,
        nargs='+',
        default=[],
        metavar='DIR',
        help='filling of T1w: datasets of patients whose normal-appearing white matter is trained on as well',
    )
    group.add_argument(
        '--validation-label',
        nargs='+',
        default=[],
        metavar='LABEL',
        help='patients kept out of training; synthesis, FLAIR and --normal-appearing are validated on them (default: '
        'the last one)',
    )
    group.add_argument(
        '--no-validation', action='store_true', help='patients: train on all of them, after leave-one-out trainings'
    )


def add_resources(group: Any) -> None:
    """Add the options of where a training starts and ends, and of the machine, to a group of a parser."""
    group.add_argument('--init-from', metavar='MODEL', help='model (name or folder) whose weights to start from')
    group.add_argument(
        '--cpu-minutes',
        type=float,
        metavar='MINUTES',
        help='stop after so much CPU time of the main process; with --num-workers 0 of all',
    )
    group.add_argument(
        '--lpips-weights', type=Path, nargs='+', metavar='FILE', help='AlexNet and LPIPS weights; logs LPIPS'
    )
    group.add_argument(
        '--device', choices=['cpu', 'cuda'], help='device of the network (default: cuda where there is one)'
    )
    group.add_argument(
        '--num-workers', type=int, default=1, metavar='N', help='processes that draw cases (default: %(default)s)'
    )


def list_plans() -> Any:
    """Print a line for each plan: name, what it trains, size, number of updates."""
    from . import plans

    for name, plan in plans.PLANS.items():
        print(f'{name}\t{plan.task} {plan.modality}\t{plan.size}\t{plan.num_updates} updates')
    return OK


def check_paths(options: argparse.Namespace) -> None:
    """Raise UsageError if a path is not there, which is known before torch is imported."""
    for folder in (*options.bids_dir, *options.patients, *filter(None, [options.lesion_masks])):
        if not folder.is_dir():
            raise errors.UsageError(f'{folder} is not a folder')
    for path in options.lpips_weights or ():
        if not path.is_file():
            raise errors.UsageError(f'--lpips-weights {path} is not a file')


def plan_of(options: argparse.Namespace) -> Any:
    """Return the plan of a name or file, with the numbers of updates that were asked for.

    Raises
    ------
    UsageError
        Names the plan that was perhaps meant, or what is wrong with the file.
    """
    from . import plans

    path = Path(options.plan)
    if options.plan in plans.PLANS:
        plan = plans.PLANS[options.plan]
    elif not path.is_file():
        close = difflib.get_close_matches(options.plan, plans.PLANS, n=1)
        meant = f': did you mean {close[0]}?' if close else ''
        raise errors.UsageError(f'--plan {options.plan} is neither a plan nor a file{meant} (see --list-plans)')
    else:
        read = plans.Plan.from_yaml if path.suffix in ('.yaml', '.yml') else plans.Plan.from_json
        try:
            plan = read(text_files.read_text(path))
        except (ValueError, TypeError) as error:
            raise errors.UsageError(f'--plan {path} cannot be read: {error}') from None
    changes = {name: getattr(options, name) for name in ('num_updates', 'decay_updates')}
    return replace(plan, **{name: value for name, value in changes.items() if value is not None})


def device_of(options: argparse.Namespace) -> str:
    """Return the device that was asked for, or the one that there is; UsageError if it is not there."""
    import torch

    if options.device == 'cuda' and not torch.cuda.is_available():
        raise errors.UsageError('--device cuda: torch finds no CUDA device; use --device cpu')
    return options.device or ('cuda' if torch.cuda.is_available() else 'cpu')


def run(options: argparse.Namespace) -> int:
    """Read the data and train; return the exit code."""
    from ..diffusion import lpips
    from . import cases as train_cases
    from . import loop, store

    plan, device = plan_of(options), device_of(options)
    check_task(options, plan)
    loop.check_folders(options.output_dir, plan)
    weights = weights_of(options, plan)
    on_disk = store.Store(options.output_dir / 'brains')

    def keep(files: Any, read: Callable[[], Any], what: str = '') -> Any:
        loop.claim(options.output_dir, plan)  # nothing is written before the data were found
        return on_disk(files, read, what)

    brains, validation_brains, lesions, validation_lesions = read_data(options, plan, keep)
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
        device,
        num_workers=options.num_workers,
        cpu_minutes=options.cpu_minutes,
        initial_weights=weights,
        perceptual_distance=lpips.load_lpips(options.lpips_weights) if options.lpips_weights else None,
    )
    return OK


def check_task(options: argparse.Namespace, plan: Plan) -> None:
    """Raise UsageError if options of the data are for another task than that of the plan."""
    fills_t1w = (plan.task, plan.modality) == ('fill', 'T1w')
    for name, value in (('--normal-appearing', options.normal_appearing), ('--patients', options.patients)):
        if value and not fills_t1w:
            raise errors.UsageError(
                f'{name} is for filling of T1w; the plan {plan.name} is for {plan.task} {plan.modality}'
            )


def weights_of(options: argparse.Namespace, plan: Plan) -> Any:
    """Return the weights to start from; None: at random.

    Raises
    ------
    UsageError
        If they are of another network.
    """
    if not options.init_from:
        return None
    from ..diffusion import models

    weights = models.load_model(options.init_from).unet.state_dict()
    shapes = {name: tensor.shape for name, tensor in plan.build_unet().state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        raise errors.UsageError(f'--init-from {options.init_from} has another network than the plan {plan.name}')
    return weights


def read_data(options: argparse.Namespace, plan: Plan, keep: Callable[..., Any]) -> tuple[Any, ...]:
    """Return brains to train and to validate, lesion shapes to train and to validate, by the command line's options."""
    from ..diffusion import models
    from . import brains as train_brains

    is_healthy = (plan.task, plan.modality) == ('fill', 'T1w') and not options.normal_appearing
    patient_dirs = options.patients if is_healthy else [*options.bids_dir, *options.patients]
    must_validate = not is_healthy and not options.no_validation
    patients = split_patients(patient_dirs, plan.modality, options.validation_label, must_validate)
    if plan.task == 'synth':
        filler = models.load_model(f'fill-{plan.modality}')
        return *(train_brains.read_patients(group, filler, keep) for group in patients), [], []
    mask_files = datasets.find_lesion_masks(options.lesion_masks or options.bids_dir[0])
    if len(mask_files) < 2:
        raise errors.UsageError(f'{mask_files[0]} is the only lesion mask, expected two or more; give --lesion-masks')
    groups = [[], []]
    if is_healthy:
        groups = [
            [files for folder in options.bids_dir for files in find_healthy(folder, split)]
            for split in ('train', 'validation')
        ]
    brains, validation_brains = (train_brains.read_healthy_brains(group, keep) for group in groups)
    brains += train_brains.read_normal_appearing(patients[0], keep)
    if not is_healthy:
        validation_brains = train_brains.read_normal_appearing(patients[1], keep)
    shapes = [train_brains.read_lesion_shapes(files) for files in datasets.split_lesion_masks(mask_files)]
    return brains, validation_brains, *shapes


def find_healthy(folder: Path, split: str) -> Any:
    """Return the files of healthy brains; see `datasets.find_training`."""
    try:
        return datasets.find_training(folder, split)
    except FileNotFoundError as error:
        raise errors.UsageError(f'{error}; patients alone need none of it: --normal-appearing') from None


def split_patients(
    bids_dirs: Sequence[Path], modality: str, held_out: Collection[str], must_validate: bool
) -> list[list[Any]]:
    """Return files of patients to train and to validate (see `layout.find_patients`).

    By the labels that are held out.
    """
    images = [image for bids_dir in bids_dirs for image in datasets.find_patients(bids_dir, modality)]
    held_out = {label.removeprefix('sub-') for label in held_out}
    unknown = held_out - {label for label, *_ in images} if images else set()
    if unknown:
        raise errors.UsageError(f'--validation-label: no {", ".join(sorted(unknown))} with image, T1w and lesion mask')
    if must_validate and not held_out:
        held_out = {images[-1][0]}
    groups = [[files for label, *files in images if (label in held_out) == out] for out in (False, True)]
    if must_validate and not all(groups):
        raise errors.UsageError(
            f'{len(groups[0])} images to train, {len(groups[1])} to validate: expected some of both '
            '(--validation-label, --no-validation)'
        )
    return groups
