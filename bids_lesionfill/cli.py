"""Arguments in, exit code out. Heavy libraries are imported after the arguments are understood."""

import argparse
import difflib
import errno
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import config, entry, layout, ownership, raw_layout, text_files, thickness, tool_outputs, validation, weights
from .layout import UsageError

VERSION_FILE = Path(__file__).resolve().parent.parent / 'version'

LOCATIONS = ('periventricular', 'juxtacortical', 'deep', 'infratentorial')
MODALITIES = {'fill': ('T1w',), 'synth': ('FLAIR', 'T1w')}  # by mode, if not said
OK, SOME_FAILED, USAGE, UNKNOWN_ARGUMENT, NOTHING_TO_DO, INTERNAL, INTERRUPTED = 0, 1, 2, 64, 66, 70, 130
INVALID, ENGINE_UNAVAILABLE = 65, 69
NO_ROOM_OR_RIGHT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
EXIT_CODES = """exit codes:
  0    all participants done
  1    some participants failed; participants.tsv and the reports say which and why
  2    wrong usage, or a path that does not exist
  64   unknown argument
  65   the dataset is not valid BIDS
  66   nothing to do: no image with a lesion mask (synth: no image with a T1w), or no table of thickness
  69   a thickness engine that was asked for is not available
  70   internal error
  130  interrupted; 129, 143: ended by SIGHUP (the terminal is gone), SIGTERM (a scheduler's time is up)"""

logger = logging.getLogger('bids_lesionfill')


def version():
    """The version, from the file `version` beside run.py, or from the installed package."""
    if VERSION_FILE.is_file():
        return VERSION_FILE.read_text(encoding='utf-8').strip()
    from importlib import metadata

    return metadata.version('bids_lesionfill')


@dataclass(frozen=True)
class Options:
    """What a participant run needs to know."""

    bids_dir: Path
    output_dir: Path
    mode: str = 'fill'  # or 'synth'
    modalities: tuple = ('T1w',)
    model: str | None = None  # the bundled one of mode and modality
    participant_labels: tuple = ()
    session_labels: tuple = ()
    filters: dict | None = None
    derivatives: dict | None = None  # name -> path
    mask_labels: tuple = ('lesion', 'L')
    mask_desc: str | None = None
    mask_threshold: float = 0.5
    lesion_labels: tuple = ()  # values of the mask that are filled; all if empty
    min_lesion_volume: float = 0  # mm3; smaller lesions stay
    dilate: int = 1
    rim_voxels: int = 2
    num_inference_steps: int | None = None
    n_samples: int = 1
    n_lesions: int | None = None  # synthesis: how many, how much, where, or exactly which; how bright
    lesion_load_ml: float | None = None
    lesion_locations: tuple = LOCATIONS
    new_mask_file: Path | None = None
    mask_from: str | None = None  # participant label
    lesion_intensity: float | str = 'auto'
    lesion_halo: float | str = 'auto'
    second_visit: bool = False
    n_variants: int = 1
    batch_size: int = 8
    device: str = 'auto'
    random_seed: int = 0
    thickness: tuple = ()  # engines
    thickness_results: dict = field(default_factory=dict)  # name -> path: other tools' folders, for thickness alone
    thickness_noise: bool = True
    allow_download: bool = False
    juxta_min_voxels: int = 1
    raw_dir: Path | None = None  # of --output-layout raw; output_dir is in it then
    work_dir: Path | None = None  # the system's folder for such files
    bids_database_dir: Path | None = None
    nprocs: int = 1
    omp_nthreads: int | None = None
    mem_gb: float | None = None
    plugin_file: Path | None = None
    config: str = ''  # all options as TOML, for the log
    reports_only: bool = False
    stop_on_first_crash: bool = False
    command: str = ''
    version: str = ''

    def model_of(self, modality):
        """Name or path of the model for images of a modality."""
        return self.model or f'{self.mode}-{modality}'

    def of_result(self, modality):
        """Those options that change the result for an image of a modality; written to the sidecar."""
        names = ['mask_threshold', 'num_inference_steps', 'device', 'random_seed']
        if self.mode == 'fill':
            names += ['dilate', 'rim_voxels', 'n_samples', 'lesion_labels', 'min_lesion_volume']
        else:
            names += ['n_lesions', 'lesion_load_ml', 'lesion_locations', 'mask_from', 'lesion_intensity']
            names += ['lesion_halo', 'second_visit']  # the second is said in the sidecar
        return {'model': self.model_of(modality)} | {name: getattr(self, name) for name in names}

    @property
    def top_dir(self):
        """The folder that holds all that a run writes."""
        return self.raw_dir or self.output_dir

    @property
    def variants(self):
        """The `desc-` of each variant of a synthesis: `synth`, or `synth1` to `synthK`."""
        return [f'synth{n}' for n in range(1, self.n_variants + 1)] if self.n_variants > 1 else ['synth']


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='run.py',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXIT_CODES,
        allow_abbrev=False,
        description='Fill lesions of multiple sclerosis in MR images with healthy tissue, or paint new ones.',
    )
    parser.add_argument('bids_dir', type=Path, help='the BIDS dataset; it is never written to')
    parser.add_argument('output_dir', type=Path, help='where the derivatives go')
    parser.add_argument(
        'analysis_level',
        choices=['participant', 'group'],
        help='participant: fill or synthesize lesions, measure thickness; group: how far filling changes thickness',
    )
    parser.add_argument(
        '--mode',
        choices=list(MODALITIES),
        default='fill',
        help='fill lesions, or paint new ones (default: %(default)s)',
    )

    data = parser.add_argument_group('Options for filtering BIDS queries')
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
        help='JSON: pybids filters under the keys t1w, flair, lesion_mask and tissue (null: use none); null is '
        '"no such entity", "*" any; other keys are ignored',
    )
    data.add_argument(
        '-d',
        '--derivatives',
        nargs='+',
        default=[],
        metavar='[NAME=]PATH',
        help='where lesion masks, brain masks and tissue segmentations are, also folders of FreeSurfer, FastSurfer, '
        'SAMSEG, SynthSeg, LST-AI and DL+DiReCT (default: every folder in BIDS_DIR/derivatives; these are left out if '
        'a folder is named that can hold lesion masks)',
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
        type=probability,
        default=0.5,
        metavar='P',
        help='from this value on a probability is a lesion (default: %(default)s)',
    )

    add_lesion_choice(data)

    sampling = parser.add_argument_group('Workflow configuration')
    sampling.add_argument(
        '--modality',
        nargs='+',
        choices=['T1w', 'FLAIR'],
        help='images to work on; a FLAIR needs a T1w of its session, in which white matter is found '
        '(default: fill T1w, synth both)',
    )
    sampling.add_argument(
        '--model',
        metavar='NAME_OR_PATH',
        help='a bundled model or a folder in the same format (default: that of mode and modality, as fill-T1w)',
    )
    sampling.add_argument('--list-models', action=ListModels, help='say which models are bundled, and stop')
    sampling.add_argument(
        '--num-inference-steps',
        '--num_inference_steps',
        type=positive,
        metavar='N',
        help="diffusion steps (default: the model's own)",
    )
    sampling.add_argument(
        '--random-seed',
        '--random_seed',
        type=int,
        default=0,
        metavar='SEED',
        help='the seed of an image is derived from this and its BIDS path (default: %(default)s)',
    )

    filling = parser.add_argument_group('Specific options for filling')
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
        '--n-samples',
        '--n_samples',
        type=positive,
        default=1,
        metavar='K',
        help='more than one: fill with the mean of K samples and write their standard deviation',
    )
    add_synthesis(
        parser.add_argument_group(
            'Specific options for synthesis', 'without a mask, lesions are drawn as patients have them'
        )
    )

    measuring = parser.add_argument_group('Options for cortical thickness')
    measuring.add_argument(
        '--thickness',
        action=ChosenEngines,
        nargs='*',
        choices=list(thickness.ENGINES),
        default=[],
        metavar='ENGINE',
        help=f'measure it before and after filling a T1w, by any of: {", ".join(thickness.ENGINES)} (alone: '
        f'{thickness.DEFAULT_ENGINE})',
    )
    measuring.add_argument(
        '--list-engines',
        '--list_engines',
        action=ListEngines,
        help='say which engines are usable here and what the others lack, and stop',
    )
    measuring.add_argument(
        '--no-thickness-noise',
        '--no_thickness_noise',
        action='store_true',
        help='do not measure the original image a second time, which shows the noise of the engine (pbt, ants)',
    )
    measuring.add_argument(
        '--juxta-min-voxels',
        '--juxta_min_voxels',
        type=positive,
        default=1,
        metavar='N',
        help='group: from so many voxels of the dilated lesion mask outside white matter on, a participant counts as '
        'one with juxtacortical lesions (default: %(default)s)',
    )
    measuring.add_argument(
        '--allow-download',
        '--allow_download',
        action='store_true',
        help='let antspynet fetch weights that are missing; nothing else is ever downloaded',
    )

    resources = parser.add_argument_group('Options to handle performance')
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
        '--omp-nthreads',
        '--omp_nthreads',
        type=positive,
        metavar='N',
        help='threads of one process (default: all cores; one with --nprocs)',
    )
    add_resources(resources)

    running = parser.add_argument_group('Other options')
    running.add_argument(
        '--reports-only',
        '--reports_only',
        action='store_true',
        help='write the reports of what has been filled or synthesized, and do nothing else',
    )
    running.add_argument(
        '--stop-on-first-crash',
        '--stop_on_first_crash',
        action='store_true',
        help='do not go on with the next participant after a failure',
    )
    running.add_argument(
        '--skip-bids-validation',
        '--skip_bids_validation',
        '--skip-bids-validator',
        '--skip_bids_validator',
        action='store_true',
        help='do not run the BIDS validator on the chosen participants',
    )
    running.add_argument('--notrack', action='store_true', help='accepted and without effect: nothing is ever tracked')
    add_running(running)
    running.add_argument('-v', '--verbose', action='count', default=0, help='say more; -vv still more')
    running.add_argument('--version', action='version', version=f'bids_lesionfill {version()}')
    return parser


def add_resources(group):
    """Several participants at once, here or on a cluster."""
    group.add_argument(
        '--nprocs',
        '--nthreads',
        '--n-cpus',
        '--n_cpus',
        type=positive,
        default=1,
        metavar='N',
        help='so many participants at once, each in a process of its own (default: %(default)s)',
    )
    group.add_argument(
        '--mem',
        '--mem-mb',
        '--mem_mb',
        type=memory_mb,
        metavar='SIZE',
        help='memory for all processes: MB, or with a suffix K, M, G, T (default: 90%% of the machine)',
    )
    group.add_argument(
        '--use-plugin',
        '--use_plugin',
        '--nipype-plugin-file',
        type=Path,
        metavar='FILE',
        help='YAML with a plugin of nipype and its arguments, for SLURM, SGE, PBS or Dask',
    )


def add_running(group):
    """Folders and files of a run."""
    group.add_argument(
        '--output-layout',
        '--output_layout',
        choices=['bids', 'raw'],
        default='bids',
        help='bids: derivatives; raw: a raw dataset with filled images in place, for fMRIPrep, FreeSurfer, FastSurfer, '
        'and the derivatives in it (default: %(default)s)',
    )
    group.add_argument(
        '--config-file',
        '--config_file',
        type=Path,
        metavar='FILE',
        help='TOML with options under their long names; what the command line says comes first',
    )
    group.add_argument(
        '-w',
        '--work-dir',
        '--work_dir',
        type=Path,
        metavar='PATH',
        help='for files that are not kept; with --use-plugin where all machines see it (default: that of the system)',
    )
    group.add_argument(
        '--clean-workdir',
        '--clean_workdir',
        action='store_true',
        help='remove what earlier runs left there; not while another one is running',
    )
    group.add_argument(
        '--bids-database-dir',
        '--bids_database_dir',
        type=Path,
        metavar='PATH',
        help='indexes of the datasets, a folder for each: read if it is there, else written (delete it when files have '
        'changed); not in BIDS_DIR',
    )
    group.add_argument(
        '--boilerplate-only',
        '--boilerplate_only',
        '--boilerplate',
        action='store_true',
        help='write the text for a paper and the references to OUTPUT_DIR/logs, and stop',
    )
    group.add_argument('-q', '--quiet', action='store_true', help='say only what goes wrong')


def add_lesion_choice(group):
    """Which lesions of a mask are filled; the others stay."""
    group.add_argument(
        '--lesion-labels',
        '--lesion_labels',
        nargs='+',
        type=positive,
        default=[],
        metavar='N',
        help='fill the lesions that have these values in the mask, and keep the others (default: fill all)',
    )
    group.add_argument(
        '--min-lesion-volume',
        '--min_lesion_volume',
        type=zero_or_more,
        default=0.0,
        metavar='MM3',
        help='keep connected lesions that are smaller (default: fill all)',
    )


def add_synthesis(group):
    """The options of `--mode synth`."""
    group.add_argument('--n-lesions', '--n_lesions', type=positive, metavar='N', help='how many new lesions')
    group.add_argument(
        '--lesion-load-ml', '--lesion_load_ml', type=above_zero, metavar='ML', help='volume of all new lesions'
    )
    group.add_argument(
        '--lesion-location',
        '--lesion_location',
        type=locations,
        default=LOCATIONS,
        metavar='PLACE,...',
        help=f'some of {",".join(LOCATIONS)} (default: all)',
    )
    group.add_argument(
        '--mask', type=Path, metavar='FILE', help='the new lesions themselves, in the world space of the T1w'
    )
    group.add_argument(
        '--mask-from',
        '--mask_from',
        metavar='LABEL',
        help='the lesions of this participant, by deformable registration of the T1w (minutes)',
    )
    group.add_argument(
        '--lesion-intensity',
        '--lesion_intensity',
        type=intensity,
        default='auto',
        metavar='QUANTILE',
        help='contrast, as a quantile (0 to 1) of that of real lesions of the same size, of the patient or of the '
        "model's training; 1 is the brightest (T1w: darkest); auto draws one for each lesion (default: %(default)s)",
    )
    group.add_argument(
        '--lesion-halo',
        '--lesion_halo',
        type=halo_share,
        default='auto',
        metavar='SHARE',
        help='share (0 to 1) of the contrast that is left 1 mm outside a lesion, from where it fades out; auto: as '
        "around the patient's own lesions; 0: no voxel outside the lesions changes (default: %(default)s)",
    )
    group.add_argument(
        '--new-lesions',
        '--new_lesions',
        type=positive,
        metavar='N',
        help='take the image for a first visit and write a second one with N new lesions',
    )
    group.add_argument(
        '--n-variants',
        '--n_variants',
        type=positive,
        default=1,
        metavar='K',
        help='so many images of each, desc-synth1 to desc-synthK',
    )


class ListModels(argparse.Action):
    """Print the bundled models and exit, as `--version` does."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        for name, plan in weights.list_models().items():
            made_for, steps = f'{plan["task"]} {plan["modality"]}', f'{plan["num_inference_steps"]} step(s)'
            print(name, made_for, plan['size'], steps, weights.license_of(name), sep='\t')
        parser.exit()


class ListEngines(argparse.Action):
    """Print the thickness engines, whether they are usable here and what they lack, and exit."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        for name in thickness.ENGINES:
            check = thickness.make_engine(name).check()
            words = ('usable', check.version) if check.ok else ('not usable', f'{check.reason}; {check.how_to_get}')
            print(name, *words, sep='\t')
        parser.exit()


class ChosenEngines(argparse.Action):
    """Engines of thickness; the option alone means the default one."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values or [thickness.DEFAULT_ENGINE])


def positive(text):
    """A whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not above zero')
    return number


def above_zero(text):
    """A number above zero."""
    number = float(text)
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not above zero')
    return number


def memory_mb(text):
    """An amount of memory in MB: a number of MB, or with K, M, G or T (and B, if one likes)."""
    number = text.upper().removesuffix('B')
    factor = {'K': 1e-3, 'M': 1, 'G': 1e3, 'T': 1e6}.get(number[-1:], 1)
    return above_zero(number.rstrip('KMGT')) * factor


def zero_or_more(text):
    """A number that is not negative."""
    return 0.0 if float(text) == 0 else above_zero(text)


def intensity(text):
    """`auto`, or a quantile."""
    return text if text == 'auto' else between_0_and_1(text, 'quantile')


def halo_share(text):
    """`auto`, or a share of a lesion's contrast."""
    return text if text == 'auto' else between_0_and_1(text, 'share')


def probability(text):
    """A number above 0, up to 1."""
    number = between_0_and_1(text, 'probability')
    if number == 0:
        raise argparse.ArgumentTypeError(f'{text} is not above zero')
    return number


def between_0_and_1(text, what):
    """A number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f'{text} is no {what} from 0 to 1')
    return number


def locations(text):
    """Names of places, separated by commas."""
    names = tuple(dict.fromkeys(text.split(',')))
    unknown = sorted(set(names) - set(LOCATIONS))
    if unknown:
        raise argparse.ArgumentTypeError(f'{",".join(unknown)} is none of {",".join(LOCATIONS)}')
    return names


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
    layout.read_description(bids_dir, is_derivative=False)  # what is unreadable is said at once
    if output_dir.resolve() == bids_dir.resolve():
        raise UsageError(f'OUTPUT_DIR is BIDS_DIR; use for example {bids_dir / "derivatives" / "bids_lesionfill"}')
    inside = output_dir.resolve().is_relative_to(bids_dir.resolve())
    if inside and not output_dir.resolve().is_relative_to(bids_dir.resolve() / 'derivatives'):
        raise UsageError(
            f'OUTPUT_DIR {output_dir} is in BIDS_DIR, where it would be read as raw data; use for example '
            f'{bids_dir / "derivatives" / "bids_lesionfill"}'
        )
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f'OUTPUT_DIR {output_dir} is not a folder')
    nearest = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise UsageError(
            f'OUTPUT_DIR {output_dir} cannot be written to by user {os.getuid()}; '
            'run a container as yourself: docker run --user $(id -u):$(id -g)'
        )
    check_running(arguments)
    derivatives, thickness_results = {}, {}
    for text in arguments.derivatives:
        name, separator, path = text.partition('=')
        path = Path(path if separator else text)
        name = name if separator else path.resolve().name
        if name in derivatives or name in thickness_results:
            raise UsageError(f'--derivatives names {name} twice; use NAME=PATH')
        is_known = (path / 'dataset_description.json').is_file() or tool_outputs.is_tool_folder(path)
        has_results = path.is_dir() and thickness.has_results(path)  # of FreeSurfer, FastSurfer, DL+DiReCT
        is_read = has_results and thickness.has_results(path, arguments.thickness)
        if is_known and not (is_read and thickness.desc_in(name, path.name)):
            derivatives[name] = path
        elif has_results:  # not for filling: the filled image must stay the one that was measured
            thickness_results[name] = path
        else:
            raise UsageError(
                f'--derivatives {path} is neither a folder with a dataset_description.json nor one of FreeSurfer, '
                'FastSurfer, SAMSEG, SynthSeg, LST-AI or DL+DiReCT'
            )
    check_synthesis(arguments)
    raw_dir = None
    if arguments.output_layout == 'raw':
        raw_dir, output_dir = output_dir, output_dir / raw_layout.DERIVATIVES
    options = Options(
        bids_dir=bids_dir,
        output_dir=output_dir,
        raw_dir=raw_dir,
        mode=arguments.mode,
        modalities=tuple(dict.fromkeys(arguments.modality or MODALITIES[arguments.mode])),
        model=arguments.model,
        participant_labels=tuple(label.removeprefix('sub-') for label in arguments.participant_label),
        session_labels=tuple(label.removeprefix('ses-') for label in arguments.session_label),
        filters=read_filters(arguments.bids_filter_file),
        derivatives=derivatives or None,
        mask_labels=tuple(arguments.mask_label),
        mask_desc=arguments.mask_desc,
        mask_threshold=arguments.mask_threshold,
        lesion_labels=tuple(arguments.lesion_labels),
        min_lesion_volume=arguments.min_lesion_volume,
        dilate=arguments.dilate,
        rim_voxels=arguments.rim_voxels,
        num_inference_steps=arguments.num_inference_steps,
        n_samples=arguments.n_samples,
        n_lesions=arguments.new_lesions or arguments.n_lesions,
        lesion_load_ml=arguments.lesion_load_ml,
        lesion_locations=arguments.lesion_location,
        new_mask_file=arguments.mask,
        mask_from=arguments.mask_from and arguments.mask_from.removeprefix('sub-'),
        lesion_intensity=arguments.lesion_intensity,
        lesion_halo=arguments.lesion_halo,
        second_visit=arguments.new_lesions is not None,
        n_variants=arguments.n_variants,
        batch_size=arguments.batch_size,
        device=arguments.device,
        random_seed=arguments.random_seed,
        thickness=tuple(arguments.thickness),
        thickness_results=thickness_results,
        thickness_noise=not arguments.no_thickness_noise,
        allow_download=arguments.allow_download,
        juxta_min_voxels=arguments.juxta_min_voxels,
        work_dir=arguments.work_dir,
        bids_database_dir=arguments.bids_database_dir,
        nprocs=arguments.nprocs,
        omp_nthreads=arguments.omp_nthreads,
        mem_gb=arguments.mem and arguments.mem / 1000,
        plugin_file=arguments.use_plugin,
        config=config.as_toml(arguments, build_parser(), version()),
        reports_only=arguments.reports_only,
        stop_on_first_crash=arguments.stop_on_first_crash,
        command='run.py ' + shlex.join(argv),
        version=version(),
    )
    if options.thickness and 'T1w' not in options.modalities:
        raise UsageError('--thickness measures T1w images, and --modality names none')
    if options.model and len(options.modalities) > 1:
        raise UsageError(
            f'--model {options.model} is for one modality, not for {" and ".join(options.modalities)}; give --modality'
        )
    try:
        for modality in options.modalities:
            weights.check_model(options.model_of(modality), options.mode, modality)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from None
    besides = [folder for folder in (options.work_dir, options.bids_database_dir) if folder is not None]
    ownership.check_output(output_dir, bids_dir, raw_dir, besides)
    return with_absolute_paths(options)


def with_absolute_paths(options):
    """Options whose paths mean the same wherever a process works: nipype changes into folders of its own."""
    paths = {name: value.absolute() for name, value in vars(options).items() if isinstance(value, Path)}
    for name in ('derivatives', 'thickness_results'):
        if folders := getattr(options, name):
            paths[name] = {label: folder.absolute() for label, folder in folders.items()}
    if options.model and options.model not in weights.list_models():
        paths['model'] = str(Path(options.model).absolute())
    return replace(options, **paths)


def check_running(arguments):
    """Raise UsageError if a folder is in the dataset that must not be, or an option does not go with another."""
    if arguments.output_layout == 'raw':
        if arguments.mode != 'fill':
            raise UsageError('--output-layout raw is for --mode fill')
        if arguments.output_dir.resolve().is_relative_to(arguments.bids_dir.resolve()):
            raise UsageError(f'--output-layout raw: OUTPUT_DIR {arguments.output_dir} is in BIDS_DIR')
    work_dir = arguments.work_dir
    if work_dir is not None and work_dir.resolve().is_relative_to(arguments.bids_dir.resolve()):
        raise UsageError(f'--work-dir {arguments.work_dir} is in BIDS_DIR, which is never written to')
    database_dir = arguments.bids_database_dir
    if database_dir is not None:
        in_dataset, in_output = (
            database_dir.resolve().is_relative_to(folder.resolve())
            for folder in (arguments.bids_dir, arguments.output_dir)
        )
        if in_dataset and not in_output:
            raise UsageError(f'--bids-database-dir {database_dir} is in BIDS_DIR, where OUTPUT_DIR alone is written to')
    if arguments.use_plugin is not None and not arguments.use_plugin.is_file():
        raise UsageError(f'--use-plugin {arguments.use_plugin} is not a file')


def check_synthesis(arguments):
    """Raise UsageError if options of synthesis are given for filling, or contradict each other."""
    given = {
        '--n-lesions': arguments.n_lesions,
        '--lesion-load-ml': arguments.lesion_load_ml,
        '--lesion-location': arguments.lesion_location if arguments.lesion_location != LOCATIONS else None,
        '--new-lesions': arguments.new_lesions,
        '--mask': arguments.mask,
        '--mask-from': arguments.mask_from,
        '--lesion-intensity': arguments.lesion_intensity if arguments.lesion_intensity != 'auto' else None,
        '--lesion-halo': arguments.lesion_halo if arguments.lesion_halo != 'auto' else None,
        '--n-variants': arguments.n_variants if arguments.n_variants > 1 else None,
    }
    given = [name for name, value in given.items() if value is not None]
    if arguments.mode != 'synth' and given:
        raise UsageError(f'{", ".join(given)}: only with --mode synth')
    if arguments.mode == 'synth' and arguments.thickness:
        raise UsageError('--thickness measures images before and after filling: not with --mode synth')
    if arguments.mode == 'synth' and arguments.n_samples > 1:
        raise UsageError('--n-samples is for filling; --n-variants writes several images with new lesions')
    drawn = [
        name for name in ('--n-lesions', '--lesion-load-ml', '--lesion-location', '--new-lesions') if name in given
    ]
    which = [name for name in ('--mask', '--mask-from') if name in given]
    if which and (drawn or len(which) == 2):
        raise UsageError(f'{", ".join(which + drawn)} contradict each other: lesions are drawn, or a mask is given')
    if '--new-lesions' in given and '--n-lesions' in given:
        raise UsageError('--new-lesions and --n-lesions both say how many: give one')
    if arguments.mask is not None and not arguments.mask.is_file():
        raise UsageError(f'--mask {arguments.mask} is not a file')


def read_filters(path):
    """The filter file as pybids filters; null becomes "no such entity" and "*" any."""
    if path is None:
        return None
    try:
        content = json.loads(text_files.read_text(path))
    except (OSError, ValueError) as error:
        raise UsageError(f'--bids-filter-file {path} cannot be read as JSON: {error}') from None
    known = ('t1w', 'flair', 'lesion_mask', 'tissue')
    check_filters(content, known, path)
    content = {key: with_long_names(value, key, path) if key in known else value for key, value in content.items()}
    ignored = sorted(set(content) - set(known))
    if ignored:
        logger.info('keys %s of %s are ignored', ignored, path)
    special = {None: None, '*': '*'}
    if content.get('tissue', {}) is None:  # no segmentation is to be used at all
        return read_keys(content, known[:3], special) | {'tissue': None}
    return read_keys(content, known, special)


def check_filters(content, known, path):
    """Raise UsageError if a filter file is none, or would let one participant's images count as another's."""
    if not isinstance(content, dict):
        raise UsageError(f'--bids-filter-file {path} holds {content!r:.60}, expected an object with keys {known}')
    for key in set(content) & set(known):
        if not isinstance(content[key], dict) and not (key == 'tissue' and content[key] is None):
            raise UsageError(f'--bids-filter-file {path}: {key} is {content[key]!r:.60}, expected entities in braces')
        flags = {'subject': '--participant-label', 'sub': '--participant-label', 'scope': '--derivatives'}
        for entity, flag in flags.items():
            if entity in (content[key] or {}):
                raise UsageError(f'--bids-filter-file {path}: {key} has {entity}, which is not for filters; use {flag}')


def with_long_names(entities, key, path):
    """Return the entities of a key of the filter file under pybids' names: `acq`, as in file names, is `acquisition`.

    Raises
    ------
    UsageError
        If pybids knows no such entity; the sentence says which was meant.
    """
    from bids.layout import Config

    known = [entity for name in ('bids', 'derivatives') for entity in Config.load(name).entities.values()]
    long_names = {entity.name: entity.name for entity in known}
    for entity in known:
        if short := re.search(r'([a-z]+)-\(', entity.pattern or ''):
            long_names.setdefault(short[1], entity.name)
    unknown = [name for name in entities or () if name not in long_names]
    for name in unknown:
        close = difflib.get_close_matches(name.lower(), long_names, n=1)
        meant = f': did you mean {long_names[close[0]]}?' if close else f', expected one of {", ".join(long_names)}'
        raise UsageError(f'--bids-filter-file {path}: {key} has {name}, which is no entity of BIDS{meant}')
    names = [long_names[name] for name in entities or ()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f'--bids-filter-file {path}: {key} has {twice[0]} twice, under its short and its long name')
    return entities and dict(zip(names, entities.values()))


def read_keys(content, known, special):
    """Filters of the known keys, with pybids' words for what JSON has none for."""
    return {
        key: {name: any_or_none(value) if value in special.values() else value for name, value in content[key].items()}
        for key in known
        if key in content
    }


def any_or_none(value):
    """pybids' word for "no such entity" (null) and "any value" ("*")."""
    from bids.layout import Query

    return Query.NONE if value is None else Query.ANY


def is_valid(options):
    """Whether the validator finds no error in what will be read; errors are logged, one a line."""
    if validation.find_validator() is None:
        logger.warning('%s is not installed: the dataset is not validated', validation.PROGRAM)
        return True
    try:
        errors = validation.find_errors(options.bids_dir, options.participant_labels)
    except (RuntimeError, OSError) as error:
        logger.warning('the dataset is not validated: %s', error)
        return True
    for sentence in errors[: validation.SHOWN]:
        logger.error('%s', sentence)
    if errors:
        shown = f', of which {validation.SHOWN} are shown' if len(errors) > validation.SHOWN else ''
        logger.error('%d error(s)%s: mend them, or use --skip-bids-validation', len(errors), shown)
    return not errors


def parse(argv, config_file=None):
    """Arguments and what is unknown among them; a configuration file stands for defaults.

    Raises
    ------
    UsageError
        See `config.defaults_from`.
    """
    parser = build_parser()
    if config_file is not None:
        parser.set_defaults(**config.defaults_from(config_file, build_parser()))
    return parser.parse_known_args(argv)


def start(arguments, options):
    """Run the participant level, in one process or as nodes of nipype; return the exit code."""
    from . import participant

    if arguments.boilerplate_only:
        participant.write_citation(options)
        return OK
    if options.nprocs == 1 and options.plugin_file is None:
        return participant.run(options)
    from . import workflow

    if arguments.clean_workdir and options.work_dir is not None:
        workflow.clean(options.work_dir)
    return workflow.run(options)


class Terminated(KeyboardInterrupt):
    """A signal asked the run to end, which it does as if it was interrupted: workers end, nothing is left behind."""


def terminate(number, frame):
    """Handle a signal that asks to end."""
    raise Terminated(number)


def main(argv):
    """Run the app; return the exit code."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # under nohup it is ignored, and stays so
                handlers[number] = signal.signal(number, terminate)
    try:
        return run(argv)
    except Terminated as error:
        name = signal.Signals(error.args[0]).name
        logger.error('ended by %s; the same command goes on where it stopped', name)
        return 128 + error.args[0]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(argv):
    """Do what arguments say; return the exit code."""
    arguments, unknown = parse(argv)
    logging.basicConfig(
        format='%(asctime)s %(levelname)s %(message)s',
        datefmt='%H:%M:%S',
        stream=sys.stderr,
        level=logging.WARNING if arguments.quiet else max(logging.DEBUG, logging.INFO - 10 * arguments.verbose),
    )
    for noisy in ('matplotlib', 'PIL', 'bids', 'filelock', 'urllib3', 'httpx'):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if unknown:
        logger.error('unknown argument(s): %s', ' '.join(unknown))
        return UNKNOWN_ARGUMENT
    try:
        if arguments.config_file is not None:
            arguments, _ = parse(argv, arguments.config_file)
        options = options_of(arguments, argv)
    except UsageError as error:
        logger.error('%s', error)
        return USAGE
    unread = arguments.skip_bids_validation or arguments.boilerplate_only or options.reports_only
    if arguments.analysis_level == 'participant' and not (unread or is_valid(options)):
        return INVALID
    if arguments.omp_nthreads:
        os.environ['OMP_NUM_THREADS'] = str(arguments.omp_nthreads)  # read when torch is imported
    elif options.nprocs > 1:
        os.environ['OMP_NUM_THREADS'] = '1'
    try:
        if arguments.analysis_level == 'group':
            from . import group

            return group.run(options)
        return start(arguments, options)
    except UsageError as error:
        logger.error('%s', error)
        return USAGE
    except thickness.EngineUnavailable as error:
        logger.error('%s', error)
        return ENGINE_UNAVAILABLE
    except Terminated:
        raise
    except KeyboardInterrupt:
        logger.error('interrupted; the same command goes on where it stopped')
        return INTERRUPTED
    except Exception as error:
        if getattr(error, 'errno', None) in NO_ROOM_OR_RIGHT:
            logger.error('%s cannot be read or written: %s', error.filename, error.strerror)
            return USAGE
        if layout.lacks_memory(error):
            logger.error('%s', layout.in_words(error))
        else:
            logger.exception('internal error')
        return INTERNAL


def script():
    """Console script `bids_lesionfill`; also `run.py` and `python -m bids_lesionfill`."""
    sys.exit(entry.end_quietly(main, sys.argv[1:]))
