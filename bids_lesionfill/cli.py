"""Arguments in, exit code out. Heavy libraries are imported after the arguments are understood."""

import argparse
import json
import logging
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from . import weights
from .layout import UsageError

VERSION_FILE = Path(__file__).resolve().parent.parent / 'version'

OK, SOME_FAILED, USAGE, UNKNOWN_ARGUMENT, NOTHING_TO_DO, INTERNAL, INTERRUPTED = 0, 1, 2, 64, 66, 70, 130
EXIT_CODES = """exit codes:
  0    all participants done
  1    some participants failed; participants.tsv and the reports say which and why
  2    wrong usage, or a path that does not exist
  64   unknown argument
  66   nothing to do: no image with a lesion mask
  70   internal error
  130  interrupted"""

logger = logging.getLogger('bids_lesionfill')


def version():
    """The version, from the file `version` beside run.py, or from the installed package."""
    if VERSION_FILE.is_file():
        return VERSION_FILE.read_text().strip()
    from importlib import metadata

    return metadata.version('bids_lesionfill')


@dataclass(frozen=True)
class Options:
    """What a participant run needs to know."""

    bids_dir: Path
    output_dir: Path
    modalities: tuple = ('T1w',)
    model: str | None = None  # the bundled one of the modality
    participant_labels: tuple = ()
    session_labels: tuple = ()
    filters: dict | None = None
    derivatives: dict | None = None  # name -> path
    mask_labels: tuple = ('lesion', 'L')
    mask_desc: str | None = None
    mask_threshold: float = 0.5
    dilate: int = 1
    rim_voxels: int = 2
    num_inference_steps: int | None = None
    n_samples: int = 1
    batch_size: int = 8
    device: str = 'auto'
    random_seed: int = 0
    reports_only: bool = False
    stop_on_first_crash: bool = False
    command: str = ''
    version: str = ''

    def model_of(self, modality):
        """Name or path of the model that fills images of a modality."""
        return self.model or f'fill-{modality}'

    def of_result(self, modality):
        """Those options that change the result for an image of a modality; written to the sidecar."""
        names = ('mask_threshold', 'dilate', 'rim_voxels', 'num_inference_steps', 'n_samples', 'device', 'random_seed')
        return {'model': self.model_of(modality)} | {name: getattr(self, name) for name in names}


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='run.py',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXIT_CODES,
        allow_abbrev=False,
        description='Fill the lesions of multiple-sclerosis patients in MR images with healthy tissue.',
    )
    parser.add_argument('bids_dir', type=Path, help='the BIDS dataset; it is never written to')
    parser.add_argument('output_dir', type=Path, help='where the derivatives go')
    parser.add_argument(
        'analysis_level',
        choices=['participant', 'group'],
        help='participant: fill lesions; group: aggregate thickness tables (none are measured yet)',
    )

    data = parser.add_argument_group('which data')
    data.add_argument(
        '--participant-label',
        '--participant_label',
        nargs='+',
        default=[],
        metavar='LABEL',
        help='only these participants, with or without sub-',
    )
    data.add_argument(
        '--session-label',
        '--session_label',
        '--session-id',
        '--session_id',
        nargs='+',
        default=[],
        metavar='LABEL',
        help='only these sessions, with or without ses-',
    )
    data.add_argument(
        '--bids-filter-file',
        '--bids_filter_file',
        type=Path,
        metavar='FILE',
        help='JSON: pybids filters under the keys t1w, flair and lesion_mask; null is "no such entity", "*" any; '
        'other keys are ignored',
    )
    data.add_argument(
        '-d',
        '--derivatives',
        nargs='+',
        default=[],
        metavar='[NAME=]PATH',
        help='where lesion masks and brain masks are (default: every folder in BIDS_DIR/derivatives)',
    )
    data.add_argument(
        '--mask-label',
        '--mask_label',
        nargs='+',
        default=['lesion', 'L'],
        metavar='LABEL',
        help='label- entity of the lesion masks (default: lesion or L; desc-lesion_mask also counts)',
    )
    data.add_argument('--mask-desc', '--mask_desc', metavar='DESC', help='only masks with this desc- entity')
    data.add_argument(
        '--mask-threshold',
        '--mask_threshold',
        type=float,
        default=0.5,
        metavar='P',
        help='from this value on a probability is a lesion (default: %(default)s)',
    )

    filling = parser.add_argument_group('filling')
    filling.add_argument(
        '--modality',
        nargs='+',
        choices=['T1w', 'FLAIR'],
        default=['T1w'],
        help='images to fill; a FLAIR needs a T1w of its session, in which white matter is found (default: T1w)',
    )
    filling.add_argument(
        '--model',
        metavar='NAME_OR_PATH',
        help='a bundled model or a folder in the same format (default: fill-T1w or fill-FLAIR, by modality)',
    )
    filling.add_argument('--list-models', action=ListModels, help='say which models are bundled, and stop')
    filling.add_argument(
        '--dilate',
        type=whole_number,
        default=1,
        metavar='N',
        help='voxels by which the mask grows, into white matter only (default: %(default)s)',
    )
    filling.add_argument(
        '--rim-voxels',
        '--rim_voxels',
        type=whole_number,
        default=2,
        metavar='N',
        help='further voxels by which the mask grows into white matter as dark (FLAIR: bright) as the rim of a lesion '
        'that the mask missed (default: %(default)s)',
    )
    filling.add_argument(
        '--num-inference-steps',
        '--num_inference_steps',
        type=positive,
        metavar='N',
        help="diffusion steps (default: the model's own)",
    )
    filling.add_argument(
        '--n-samples',
        '--n_samples',
        type=positive,
        default=1,
        metavar='K',
        help='more than one: fill with the mean of K samples and write their standard deviation',
    )
    filling.add_argument(
        '--random-seed',
        '--random_seed',
        type=int,
        default=0,
        metavar='SEED',
        help='the seed of an image is derived from this and its BIDS path (default: %(default)s)',
    )

    resources = parser.add_argument_group('resources')
    resources.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto', help='(default: %(default)s)')
    resources.add_argument(
        '--batch-size',
        '--batch_size',
        type=positive,
        default=8,
        metavar='N',
        help='tiles at once; fewer need less memory (default: %(default)s)',
    )
    resources.add_argument(
        '--omp-nthreads', '--omp_nthreads', type=positive, metavar='N', help='threads (default: all cores)'
    )

    running = parser.add_argument_group('running')
    running.add_argument(
        '--reports-only',
        '--reports_only',
        action='store_true',
        help='write the reports of what has been filled, and fill nothing',
    )
    running.add_argument(
        '--stop-on-first-crash',
        '--stop_on_first_crash',
        action='store_true',
        help='do not go on with the next participant after a failure',
    )
    running.add_argument('--notrack', action='store_true', help='accepted and without effect: nothing is ever tracked')
    running.add_argument('-v', '--verbose', action='count', default=0, help='say more; -vv still more')
    running.add_argument('--version', action='version', version=f'bids_lesionfill {version()}')
    return parser


class ListModels(argparse.Action):
    """Print the bundled models and exit, as `--version` does."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        for name, plan in weights.list_models().items():
            made_for, steps = f'{plan["task"]} {plan["modality"]}', f'{plan["num_inference_steps"]} step(s)'
            print(name, made_for, plan['size'], steps, weights.license_of(name), sep='\t')
        parser.exit()


def positive(text):
    """A whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not above zero')
    return number


def whole_number(text):
    """A whole number, zero included."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f'{text} is below zero')
    return number


def options_of(arguments, argv):
    """Checked options from parsed arguments.

    Raises
    ------
    UsageError
        One sentence: what, which path, what was expected.
    """
    bids_dir, output_dir = arguments.bids_dir, arguments.output_dir
    if not bids_dir.is_dir():
        raise UsageError(f'BIDS_DIR {bids_dir} is not a folder')
    if not (bids_dir / 'dataset_description.json').is_file():
        raise UsageError(f'BIDS_DIR {bids_dir} has no dataset_description.json: it is not a BIDS dataset')
    if output_dir.resolve() == bids_dir.resolve():
        raise UsageError(f'OUTPUT_DIR is BIDS_DIR; use for example {bids_dir / "derivatives" / "bids_lesionfill"}')
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f'OUTPUT_DIR {output_dir} is not a folder')
    nearest = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise UsageError(
            f'OUTPUT_DIR {output_dir} cannot be written to by user {os.getuid()}; '
            'run a container as yourself: docker run --user $(id -u):$(id -g)'
        )
    derivatives = {}
    for text in arguments.derivatives:
        name, separator, path = text.partition('=')
        path = Path(path if separator else text)
        name = name if separator else path.resolve().name
        if not (path / 'dataset_description.json').is_file():
            raise UsageError(f'--derivatives {path} is not a folder with a dataset_description.json')
        if name in derivatives:
            raise UsageError(f'--derivatives names {name} twice; use NAME=PATH')
        derivatives[name] = path
    options = Options(
        bids_dir=bids_dir,
        output_dir=output_dir,
        modalities=tuple(dict.fromkeys(arguments.modality)),
        model=arguments.model,
        participant_labels=tuple(label.removeprefix('sub-') for label in arguments.participant_label),
        session_labels=tuple(label.removeprefix('ses-') for label in arguments.session_label),
        filters=read_filters(arguments.bids_filter_file),
        derivatives=derivatives or None,
        mask_labels=tuple(arguments.mask_label),
        mask_desc=arguments.mask_desc,
        mask_threshold=arguments.mask_threshold,
        dilate=arguments.dilate,
        rim_voxels=arguments.rim_voxels,
        num_inference_steps=arguments.num_inference_steps,
        n_samples=arguments.n_samples,
        batch_size=arguments.batch_size,
        device=arguments.device,
        random_seed=arguments.random_seed,
        reports_only=arguments.reports_only,
        stop_on_first_crash=arguments.stop_on_first_crash,
        command='run.py ' + shlex.join(argv),
        version=version(),
    )
    if options.model and len(options.modalities) > 1:
        raise UsageError(f'--model {options.model} is for one modality, --modality names {len(options.modalities)}')
    try:
        for modality in options.modalities:
            weights.check_model(options.model_of(modality), 'fill', modality)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from None
    return options


def read_filters(path):
    """The filter file as pybids filters; null becomes "no such entity" and "*" any."""
    if path is None:
        return None
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f'--bids-filter-file {path} cannot be read as JSON: {error}') from None
    known = ('t1w', 'flair', 'lesion_mask')
    ignored = sorted(set(content) - set(known))
    if ignored:
        logger.info('keys %s of %s are ignored', ignored, path)
    special = {None: None, '*': '*'}
    return {
        key: {name: any_or_none(value) if value in special.values() else value for name, value in content[key].items()}
        for key in known
        if key in content
    }


def any_or_none(value):
    """pybids' word for "no such entity" (null) and "any value" ("*")."""
    from bids.layout import Query

    return Query.NONE if value is None else Query.ANY


def main(argv):
    """Run the app; return the exit code."""
    arguments, unknown = build_parser().parse_known_args(argv)
    logging.basicConfig(
        format='%(asctime)s %(levelname)s %(message)s',
        datefmt='%H:%M:%S',
        stream=sys.stderr,
        level=max(logging.DEBUG, logging.INFO - 10 * arguments.verbose),
    )
    for noisy in ('matplotlib', 'PIL', 'bids', 'filelock', 'urllib3', 'httpx'):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if unknown:
        logger.error('unknown argument(s): %s', ' '.join(unknown))
        return UNKNOWN_ARGUMENT
    try:
        options = options_of(arguments, argv)
    except UsageError as error:
        logger.error('%s', error)
        return USAGE
    if arguments.analysis_level == 'group':
        logger.error('nothing to do: the group level aggregates thickness tables, and this version measures none')
        return NOTHING_TO_DO
    if arguments.omp_nthreads:
        os.environ['OMP_NUM_THREADS'] = str(arguments.omp_nthreads)  # read when torch is imported
    from . import participant

    try:
        return participant.run(options)
    except UsageError as error:
        logger.error('%s', error)
        return USAGE
    except KeyboardInterrupt:
        logger.error('interrupted; the same command goes on where it stopped')
        return INTERRUPTED
    except Exception:
        logger.exception('internal error')
        return INTERNAL


def script():
    """Console script `bids_lesionfill`."""
    sys.exit(main(sys.argv[1:]))
