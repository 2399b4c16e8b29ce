"""Parser of the command line."""

import argparse
from pathlib import Path

from .. import modality
from ..diffusion import registry as fillers
from ..thickness import registry
from . import options

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
        choices=list(options.MODALITIES),
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
        choices=list(modality.NAMES),
        help='images to work on; all but T1w need a T1w of their session, in which white matter is found '
        '(default: fill T1w, synth both)',
    )
    sampling.add_argument(
        '--model',
        metavar='NAME_OR_PATH',
        help='a bundled model, another filler as biharmonic (--list-models names all), or a folder in the format of '
        'models (default: that of mode and modality, as fill-T1w)',
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
        choices=list(registry.ENGINES),
        default=[],
        metavar='ENGINE',
        help=f'measure it before and after filling a T1w, by any of: {", ".join(registry.ENGINES)} (alone: '
        f'{registry.DEFAULT_ENGINE})',
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
    running.add_argument('--version', action='version', version=f'bids_lesionfill {options.version()}')
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
        default=options.LOCATIONS,
        metavar='PLACE,...',
        help=f'some of {",".join(options.LOCATIONS)} (default: all)',
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
    """Print the bundled models and other fillers and exit, as `--version` does."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        for row in fillers.table():
            print(*row, sep='\t')
        parser.exit()


class ListEngines(argparse.Action):
    """Print the thickness engines, whether they are usable here and what they lack, and exit."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        for name in registry.ENGINES:
            check = registry.make_engine(name).check()
            words = ('usable', check.version) if check.ok else ('not usable', f'{check.reason}; {check.how_to_get}')
            print(name, *words, sep='\t')
        parser.exit()


class ChosenEngines(argparse.Action):
    """Engines of thickness; the option alone means the default one."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values or [registry.DEFAULT_ENGINE])


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
    unknown = sorted(set(names) - set(options.LOCATIONS))
    if unknown:
        raise argparse.ArgumentTypeError(f'{",".join(unknown)} is none of {",".join(options.LOCATIONS)}')
    return names


def whole_number(text):
    """A whole number, zero included."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f'{text} is below zero')
    return number
