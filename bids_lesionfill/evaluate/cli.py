"""Command line of the evaluation."""

import argparse
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ..diffusion import registry
from ..diffusion.models import Model
from ..layout import datasets, errors, naming, ownership
from ..layout import files as layout_files
from ..modality import NAMES, T1W, get
from ..train import brains
from . import discriminability, methods, scores
from . import page as evaluate_page

logger = logging.getLogger('bids_lesionfill.evaluate')


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the evaluation."""
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
    parser.add_argument(
        '--baselines', nargs='*', default=list(methods.BASELINES), choices=list(methods.BASELINES), metavar='NAME'
    )
    parser.add_argument('--lesion-masks', type=Path, help='folder of lesion masks; the last fifth is used')
    parser.add_argument('--split', default='validation')
    parser.add_argument('--modality', choices=NAMES, default=T1W.name)
    parser.add_argument(
        '--participant-label',
        nargs='+',
        metavar='LABEL',
        help="patients, in whose normal-appearing white matter cases are made, instead of a split's healthy brains",
    )
    kinds = ['clean', 'rim', 'patient']
    parser.add_argument('--kinds', nargs='+', default=kinds, choices=[*kinds, *scores.APP_KINDS])
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
        type=scores.growth,
        nargs='+',
        default=[0, 1, 2, scores.APP_GROWTH],
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
            registry.check_known(methods.ModelMethod.parse(text).name_or_path)
        except (FileNotFoundError, ValueError) as error:
            parser.error(str(error))
    # A classical filler that is named among the models has its row there.
    named = {getattr(registry.FILLERS[text], 'label', text) for text in options.models if registry.is_filler(text)}
    options.baselines = [name for name in options.baselines if name not in named]
    return options


def find_brains(options: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """Find the files of the brains to evaluate (see `read_image`) and the label of each brain."""
    if options.participant_label is None:
        if get(options.modality).needs_t1w:
            raise SystemExit(f'healthy brains have no {options.modality} here: give patients by --participant-label')
        files, people = [], []
        for bids_dir in options.bids_dir:
            names = datasets.find_people(bids_dir)
            for pair in datasets.find_training(bids_dir, options.split):
                subject = Path(pair[0]).name.split('_')[0]
                files.append(pair)
                people.append(names.get(subject, subject))
        return files, people
    wanted = {label.removeprefix('sub-') for label in options.participant_label}
    images = [image for bids_dir in options.bids_dir for image in datasets.find_patients(bids_dir, options.modality)]
    images = [image for image in images if image[0] in wanted]
    missing = sorted(wanted - {image[0] for image in images})
    if missing:
        raise SystemExit(
            f'patients {missing} have no {options.modality} with T1w and lesion mask in {options.bids_dir}'
        )
    return [files for _, *files in images], [label for label, *_ in images]


def main(argv: list[str] | None = None) -> int:
    """Evaluate, and write tables and the page; return the exit code."""
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    options = parse_options(argv)
    try:
        ownership.check_folder(options.output_dir, *scores.OWN_FOLDER)
    except errors.UsageError as error:
        logger.error('%s', error)
        return 2
    started = time.monotonic()
    loaded = {text: methods.ModelMethod.parse(text).load_model('cpu') for text in options.models}
    named = {text: methods.ModelMethod.parse(text).name(model) for text, model in loaded.items()}
    if len(set(named.values())) < len(options.models):  # one would take the other's place in every table
        raise SystemExit(f'two models have one name, see their plan.json: {named}')
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if not (options.output_dir / 'evaluation.json').exists():  # first of all: the folder is ours from now on
        layout_files.write_json(options.output_dir / 'evaluation.json', {'info': {}, 'summary': []})
    if {'real', 'appeared'} & set(options.kinds):
        scores.evaluate_patients(options)
    if not set(options.kinds) - {'real', 'appeared'}:
        logger.info('wrote %s', options.output_dir)
        return 0
    files, people = find_brains(options)
    _, mask_files = datasets.split_lesion_masks(datasets.find_lesion_masks(options.lesion_masks or options.bids_dir[0]))
    shapes = brains.read_lesion_shapes(mask_files)
    subjects = [naming.strip_extension(Path(image_file).name).rpartition('_')[0] for image_file, *_ in files]
    jobs = [
        (options, number, subject, person, pair, shapes, mask_files[number % len(mask_files)], n_examples)
        for number, (subject, person, pair) in enumerate(zip(subjects, people, files))
        for n_examples in [options.n_examples if number < 2 else 0]
    ]
    if options.nprocs > 1:
        with ProcessPoolExecutor(options.nprocs, mp_context=get_context('spawn')) as pool:
            results = list(pool.map(scores.evaluate_brain, jobs))
    else:
        results = [scores.evaluate_brain(job) for job in jobs]
    rows = [row for rows, _ in results for row in rows]
    examples = [example for _, examples in results for example in examples]
    info = {
        'seed': options.seed,
        'modality': options.modality,
        'subjects': f'{", ".join(subjects)}: {len(set(people))} people, by whom intervals are resampled',
        'lesion shapes': f'{len(shapes)} from the last {len(mask_files)} masks of the folder, which `train` holds out',
        'selection': f'models may have been chosen on these subjects (split {options.split}): see their cards',
        'cases': ', '.join(f'{kind}: {n}' for kind, n in count_cases(rows).items()),
        'models': '; '.join(f'{named[text]}: SHA-256 {model.sha256 or "n/a"}' for text, model in loaded.items()),
        'version': metadata.version('bids_lesionfill'),
        'torch': torch.__version__,
        'minutes': f'{(time.monotonic() - started) / 60:.0f}',
        'dilation': {'rim': options.dilate[-1]},
    }
    models = {named[text]: model for text, model in loaded.items()}
    logger.info('wrote %s', write_results(options.output_dir, rows, examples, info, models))
    return 0


def write_results(
    output_dir: Path, rows: list[dict[str, Any]], examples: list[dict[str, Any]], info: dict[str, Any], models: Any
) -> Path:
    """Write tables and page of an evaluation; return the path of the page.

    Parameters
    ----------
    output_dir : Path
    rows : list of dict
        Of `scores.tsv`.
    examples : list of dict
    info : dict
        See `page.write_page`.
    models : dict of name -> model
    """
    summary, comparisons = scores.summarise(rows), scores.compare(rows)
    diffusion = {name: model for name, model in models.items() if isinstance(model, Model)}
    flat = [name for name, model in diffusion.items() if not model.plan['pseudo_3d']]
    repaint = [name for name, model in diffusion.items() if methods.is_repaint(model)]
    conditional = [name for name in diffusion if name not in flat + repaint]
    layout_files.write_json(output_dir / 'evaluation.json', {'info': info, 'summary': summary})
    layout_files.write_tsv(output_dir / 'scores.tsv', rows, [*scores.KEYS, *scores.METRICS])
    layout_files.write_tsv(output_dir / 'summary.tsv', summary, list(summary[0]))
    layout_files.write_tsv(output_dir / 'comparisons.tsv', comparisons, list(comparisons[0]))
    artefacts = scores.artefacts_of(examples, repaint, flat, conditional)
    return evaluate_page.write_page(output_dir, summary, comparisons, examples, info, artefacts)


def count_cases(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Return the number of scored cases by kind."""
    cases = {(row['kind'], row['subject'], row['unit']) for row in rows}
    return {kind: sum(case[0] == kind for case in cases) for kind in dict.fromkeys(row['kind'] for row in rows)}
