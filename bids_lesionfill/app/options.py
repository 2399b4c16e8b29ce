"""The options of a run, each declared once.

Parser, TOML files, checks and the page of options derive from the groups below. A new option is one field of a group.
"""
# Longer than 500 lines: it is one table, and `Options` is made of its rows.

from __future__ import annotations

import operator
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..modality import NAMES as MODALITY_NAMES
from ..modality import defaults, get
from ..segmenters.registry import SEGMENTERS
from ..thickness import registry
from . import values
from .table import Spec, option, specs_of

if TYPE_CHECKING:
    from ..lesions import settings as lesion_settings
    from ..segmenters.segmenter import Segmenter

VERSION_FILE = Path(__file__).resolve().parents[2] / 'version'

MODES = ('fill', 'synth')

# Kinds of options: those of files, and those that are misplaced elsewhere.
file_option = partial(option, parse=Path, metavar='FILE')
folder_option = partial(option, parse=Path, metavar='PATH')
participant_option = partial(option, level='participant')
filling_option = partial(participant_option, needs={'mode': 'fill'})
growth_option = partial(participant_option, needs={'mode': 'fill', 'rims': 'grown'})
synthesis_option = partial(participant_option, needs={'mode': 'synth'})


def version() -> str:
    """Return the version, from the file `version` next to run.py, or from the installed package."""
    if VERSION_FILE.is_file():
        return VERSION_FILE.read_text(encoding='utf-8').strip()
    from importlib import metadata

    return metadata.version('bids_lesionfill')


@dataclass(frozen=True)
class Main:
    """Dataset, output and task of a run."""

    title: ClassVar[str] = 'Arguments of every BIDS App'

    bids_dir: Path = option('bids_dir', parse=Path, help='BIDS dataset; never written to')
    output_dir: Path = option('output_dir', parse=Path, help='folder of the derivatives')
    analysis_level: str = option(
        'analysis_level',
        default='participant',
        default_text='',  # the command line has none
        choices=('participant', 'group'),
        help='participant: fill or synthesize lesions, measure thickness; group: page of the study, effect of '
        'filling on thickness',
    )
    mode: str = option('--mode', default='fill', choices=MODES, help='fill lesions, or synthesize new ones')


@dataclass(frozen=True)
class Query:
    """Selection of input files."""

    title: ClassVar[str] = 'Options for filtering BIDS queries'

    participant_labels: tuple = option(
        '--participant-label',
        kind='list',
        parse=values.subject_label,
        metavar='LABEL',
        default_text='all',
        help='participants, with or without sub-',
    )
    session_labels: tuple = option(
        '--session-label',
        '--session-id',
        kind='list',
        parse=values.session_label,
        metavar='LABEL',
        default_text='all',
        help='sessions, with or without ses-',
    )
    filters: dict | None = file_option(
        '--bids-filter-file',
        help='JSON file of pybids filters under the keys t1w, flair, ..., lesion_mask and tissue (null: none); null '
        'as a value: no such entity, "*": any; other keys are ignored',
    )
    derivatives: dict | None = option(  # name -> path
        '-d',
        '--derivatives',
        kind='list',
        take=lambda _: None,  # by `validation`
        metavar='[NAME=]PATH',
        default_text='every folder in BIDS_DIR/derivatives, unless a folder is given that can hold lesion masks',
        help='folders of lesion masks, brain masks and tissue segmentations, also of FreeSurfer, FastSurfer, SAMSEG, '
        'SynthSeg, LST-AI and DL+DiReCT',
    )


@dataclass(frozen=True)
class MaskChoice:
    """Selection of lesion masks and of their lesions."""

    title: ClassVar[str] = 'Options for lesion masks'

    mask_labels: tuple = participant_option(
        '--mask-label',
        kind='list',
        default=('lesion', 'L'),
        metavar='LABEL',
        default_text='lesion or L; desc-lesion_mask also counts',
        help='label- entity of the lesion masks',
    )
    mask_desc: str | None = participant_option(
        '--mask-desc', metavar='DESC', default_text='any', help='desc- entity of the lesion masks'
    )
    mask_threshold: float = participant_option(
        '--mask-threshold',
        parse=values.probability,
        default=0.5,
        metavar='P',
        is_of_result=True,
        help='lowest probability that counts as lesion',
    )
    lesion_labels: tuple = filling_option(
        '--lesion-labels',
        kind='list',
        parse=values.positive,
        metavar='N',
        is_of_result=True,
        default_text='all',
        help='values in the mask of the lesions to fill; the others stay',
    )
    min_lesion_volume: float = filling_option(
        '--min-lesion-volume',
        parse=values.zero_or_more,
        default=0.0,
        unit='mm3',
        metavar='MM3',
        is_of_result=True,
        help='volume below which connected lesions stay',
    )
    copy_unlesioned: bool = filling_option(
        '--copy-unlesioned',
        kind='switch',
        help='desc-filled copies of images without a lesion mask, so that all participants of a study have one',
    )


@dataclass(frozen=True)
class Segmentation:
    """Segmentation of lesions by another program."""

    title: ClassVar[str] = 'Options for lesion segmentation'
    description: ClassVar[str] = 'For visits without a lesion mask. Existing masks are never replaced.'

    segmenter: str | None = filling_option(
        '--segmenter',
        choices=lambda: SEGMENTERS,
        default_text='none: visits without a mask are skipped',
        help='installed program that makes missing lesion masks, which are kept in OUTPUT_DIR',
    )
    segmenter_command: str | None = filling_option(
        '--segmenter-command',
        metavar='COMMAND',
        default_text='its usual name, on the PATH',
        help='command that starts the segmenter, also in a container; {work} stands for the folder to mount',
    )
    segmenter_weights: Path | None = filling_option(
        '--segmenter-weights',
        parse=Path,
        metavar='PATH',
        default_text="the segmenter's own",
        help='file or folder of the weights of the segmenter; for nnunet, the folder of the trained model',
    )
    segmenter_timeout: float = filling_option(
        '--segmenter-timeout',
        parse=values.above_zero,
        unit='minutes',
        default=360.0,
        default_text='360',
        metavar='MINUTES',
        help='time limit of the segmentation of a visit',
    )


@dataclass(frozen=True)
class Growth:
    """Treatment of the rims of lesions, which masks miss."""

    title: ClassVar[str] = 'Specific options for filling'

    rims: str = filling_option(
        '--rims',
        default='unmixed',
        choices=('unmixed', 'grown'),
        is_of_result=True,
        help='rims of lesions outside the mask: unmixed estimates the share of lesion in each voxel and removes it; '
        'grown enlarges the mask by --dilate and --rim-voxels',
    )
    dilate: int = growth_option(
        '--dilate',
        parse=values.whole_number,
        default=1,
        unit='voxels',
        metavar='N',
        is_of_result=True,
        help='dilation of the mask, into white matter only; 0: the given mask is filled and nothing else, also without '
        '--rims grown',
    )
    rim_voxels: int = growth_option(
        '--rim-voxels',
        parse=values.whole_number,
        default=2,
        unit='voxels',
        metavar='N',
        is_of_result=True,
        help='further growth into white matter that is as dark (FLAIR: bright) as the rim of a lesion',
    )


@dataclass(frozen=True)
class Sampling:
    """Images, models and how these are sampled."""

    title: ClassVar[str] = 'Workflow configuration'

    modalities: tuple = option(
        '--modality',
        kind='list',
        choices=lambda: MODALITY_NAMES,
        default_text='fill T1w, synth both',
        help='images to work on; all but T1w need a T1w of their session, in which white matter is found',
    )
    model: str | None = option(
        '--model',
        metavar='NAME_OR_PATH',
        default_text='that of mode and modality, as fill-T1w',
        help='bundled model, other filler as biharmonic (--list-models names all), or a folder in the format of models',
    )
    num_inference_steps: int | None = participant_option(
        '--num-inference-steps',
        parse=values.positive,
        default_text="the model's own",
        metavar='N',
        is_of_result=True,
        help='number of diffusion steps',
    )
    random_seed: int = option(
        '--random-seed',
        parse=int,
        default=0,
        metavar='SEED',
        is_of_result=True,
        help='random seed; that of an image is derived from it and from the BIDS path',
    )
    n_samples: int = filling_option(
        '--n-samples',
        parse=values.positive,
        default=1,
        metavar='K',
        is_of_result=True,
        help='number of samples, of which the mean is filled in and the standard deviation written',
    )
    texture: str = participant_option(
        '--texture',
        default='sampled',
        choices=('sampled', 'mean'),
        is_of_result=True,
        help="sampled: with the noise of the image's white matter (new lesions: painted in one step); mean: the smooth "
        'estimate',
    )


@dataclass(frozen=True)
class Synthesis:
    """Number, volume, location and contrast of new lesions."""

    title: ClassVar[str] = 'Specific options for synthesis'
    description: ClassVar[str] = 'Without a mask, number, size and place of lesions are sampled as in patients.'

    n_lesions: int | None = synthesis_option(
        '--n-lesions',
        parse=values.positive,
        metavar='N',
        is_of_result=True,
        default_text='sampled',
        help='number of new lesions',
    )
    lesion_load_ml: float | None = synthesis_option(
        '--lesion-load-ml',
        parse=values.above_zero,
        unit='ml',
        metavar='ML',
        is_of_result=True,
        default_text='sampled',
        help='volume of all new lesions',
    )
    lesion_locations: tuple = synthesis_option(
        '--lesion-location',
        parse=values.locations,
        default=values.LOCATIONS,
        default_text='all',
        metavar='PLACE,...',
        is_of_result=True,
        help=f'locations of new lesions, of {",".join(values.LOCATIONS)}',
    )
    new_mask_file: Path | None = synthesis_option(
        '--mask', parse=Path, metavar='FILE', help='mask of the new lesions, in the scanner space of the T1w'
    )
    mask_from: str | None = synthesis_option(
        '--mask-from',
        parse=values.subject_label,
        metavar='LABEL',
        is_of_result=True,
        help='participant whose lesions are transferred, by deformable registration of the T1w (minutes)',
    )
    lesion_intensity: float | str = synthesis_option(
        '--lesion-intensity',
        parse=values.intensity,
        default='auto',
        metavar='QUANTILE',
        is_of_result=True,
        help="contrast, as a quantile of that of real lesions of the same size, of the patient or of the model's "
        'training; 1: brightest (T1w: darkest); auto: sampled for each lesion',
    )
    lesion_halo: float | str = synthesis_option(
        '--lesion-halo',
        parse=values.halo_share,
        default='auto',
        metavar='SHARE',
        is_of_result=True,
        help="share of the contrast 1 mm outside a lesion, from where it fades out; auto: as around the patient's own "
        'lesions; 0: no voxel outside the lesions changes',
    )
    new_lesions: int | None = synthesis_option(
        '--new-lesions',
        parse=values.positive,
        metavar='N',
        help='number of new lesions of a follow-up scan, for which the image is the first visit',
    )
    n_variants: int = synthesis_option(
        '--n-variants',
        parse=values.positive,
        default=1,
        metavar='K',
        help='number of images of each, desc-synth1 to desc-synthK',
    )


@dataclass(frozen=True)
class Thickness:
    """Cortical thickness before and after filling."""

    title: ClassVar[str] = 'Options for cortical thickness'

    thickness: tuple = filling_option(
        '--thickness',
        kind='list',
        alone=(registry.DEFAULT_ENGINE,),
        choices=lambda: registry.ENGINES,
        metavar='ENGINE',
        help=f'engines that measure a T1w before and after filling; alone: {registry.DEFAULT_ENGINE}',
    )
    thickness_noise: bool = filling_option(
        '--no-thickness-noise',
        kind='switch',
        take=operator.not_,
        help='no second measurement of the original image, which shows the noise of the engine (pbt, ants)',
    )
    juxta_min_voxels: int = option(
        '--juxta-min-voxels',
        parse=values.positive,
        default=1,
        unit='voxels',
        metavar='N',
        level='group',
        help='smallest overlap of the dilated lesion mask with the cortex in a juxtacortical participant',
    )
    juxta_rule: str = option(
        '--juxta-rule',
        default='cortex',
        choices=('cortex', 'thesis'),
        level='group',
        help='part of the dilated lesion mask that counts; cortex: in the cortex; thesis: outside white matter, also '
        'at the ventricles',
    )
    allow_download: bool = filling_option(
        '--allow-download',
        kind='switch',
        help='download of missing weights by antspynet or the segmenter; nothing else is ever downloaded',
    )


@dataclass(frozen=True)
class Resources:
    """Resources of the machine or cluster."""

    title: ClassVar[str] = 'Options to handle performance'

    device: str = option(
        '--device', choices=('auto', 'cpu', 'cuda'), default='auto', is_of_result=True, help='device of the model'
    )
    batch_size: int = option(
        '--batch-size',
        parse=values.positive,
        default=8,
        metavar='N',
        help='number of tiles per batch; fewer need less memory',
    )
    omp_nthreads: int | None = option(
        '--omp-nthreads',
        parse=values.positive,
        default_text='all cores; 1 with --nprocs',
        metavar='N',
        help='threads per process',
    )
    nprocs: int = option(
        '--nprocs',
        '--nthreads',
        '--n-cpus',
        parse=values.positive,
        default=1,
        metavar='N',
        help='number of participants at a time, each in a separate process',
    )
    mem_gb: float | None = option(
        '--mem',
        '--mem-mb',
        parse=values.memory_mb,
        take=lambda mb: mb and mb / 1000,
        unit='MB',
        metavar='SIZE',
        default_text='90 % of the machine',
        help='memory for all processes',
    )
    plugin_file: Path | None = file_option(
        '--use-plugin',
        '--nipype-plugin-file',
        help='YAML file of a nipype plugin and its arguments, for SLURM, SGE, PBS or Dask',
    )


@dataclass(frozen=True)
class Run:
    """Folders, files and messages of a run."""

    title: ClassVar[str] = 'Other options'

    output_layout: str = option(
        '--output-layout',
        choices=('bids', 'raw'),
        default='bids',
        help='bids: derivatives; raw: a raw dataset with filled images in place, for fMRIPrep, FreeSurfer, FastSurfer, '
        'and the derivatives in it',
    )
    config_file: Path | None = file_option(
        '--config-file',
        help='TOML file of options under their long names; the command line takes precedence',
    )
    work_dir: Path | None = folder_option(
        '-w',
        '--work-dir',
        default_text='that of the system',
        help='folder for temporary files; with --use-plugin, one that all machines share',
    )
    clean_workdir: bool = option(
        '--clean-workdir',
        kind='switch',
        help='removal of the files of earlier runs from the work folder; not while another run uses it',
    )
    bids_database_dir: Path | None = folder_option(
        '--bids-database-dir',
        help='folder of the indexes of the datasets, outside BIDS_DIR; read if present, otherwise written (delete it '
        'after files have changed)',
    )
    reports_only: bool = participant_option(
        '--reports-only', kind='switch', help='only the reports of images that have been filled or synthesized'
    )
    boilerplate_only: bool = participant_option(
        '--boilerplate-only',
        '--boilerplate',
        kind='switch',
        help='only the methods text for a paper and its references, in OUTPUT_DIR/logs',
    )
    stop_on_first_crash: bool = option(
        '--stop-on-first-crash', kind='switch', help='no further participant after a failure'
    )
    skip_bids_validation: bool = option(
        '--skip-bids-validation',
        '--skip-bids-validator',
        kind='switch',
        help='no BIDS validation of the chosen participants',
    )
    notrack: bool = option('--notrack', kind='switch', help='no effect: nothing is ever tracked')
    quiet: bool = option('-q', '--quiet', kind='switch', help='warnings and errors only')
    verbose: int = option('-v', '--verbose', kind='count', default=0, help='more messages; -vv: still more')


GROUPS = (Main, Query, MaskChoice, Segmentation, Growth, Sampling, Synthesis, Thickness, Resources, Run)

# Options that print something and stop.
STOPS = (
    Spec(('--list-models',), 'list of the bundled models'),
    Spec(('--list-engines',), 'list of the thickness engines: usable here, or what they lack'),
    Spec(('--version',), 'version'),
)


@dataclass(frozen=True)
class Options(Run, Resources, Thickness, Synthesis, Sampling, Growth, Segmentation, MaskChoice, Query, Main):
    """All options of a run, checked, and what follows from them."""

    modalities: tuple = field(default=defaults('fill'), kw_only=True)  # those of the mode if none is given
    thickness_results: dict = field(default_factory=dict, kw_only=True)  # name -> path: of other tools
    raw_dir: Path | None = field(default=None, kw_only=True)  # of --output-layout raw; output_dir is in it then
    config: str = field(default='', kw_only=True)  # all options as TOML, for the log
    command: str = field(default='', kw_only=True)
    version: str = field(default='', kw_only=True)

    def model_of(self, modality: str) -> str:
        """Return the name or path of the model for images of a modality."""
        return self.model or get(modality).model_for(self.mode) or f'{self.mode}-{modality}'

    @property
    def mask_choice(self) -> lesion_settings.MaskChoice:
        """The voxels and lesions of a mask file that are used: lesions.settings.MaskChoice."""
        from ..lesions.settings import MaskChoice

        return MaskChoice(self.mask_threshold, tuple(self.lesion_labels), self.min_lesion_volume)

    @property
    def growth(self) -> lesion_settings.Growth:
        """The growth of masks: lesions.settings.Growth."""
        from ..lesions.settings import Growth

        return Growth(self.dilate, self.rim_voxels, self.rims)

    def make_segmenter(self, device: str = 'cpu') -> Segmenter:
        """Return the requested segmenter: segmenters.segmenter.Segmenter; its `check` tests whether it can be used.

        Raises
        ------
        ValueError
            If the command has an unclosed quotation mark.
        """
        from ..segmenters.registry import make_segmenter
        from ..segmenters.segmenter import Settings

        threads = self.omp_nthreads or (1 if self.nprocs > 1 else os.cpu_count() or 1)
        words = tuple(shlex.split(self.segmenter_command or ''))
        timeout_s = 60 * self.segmenter_timeout
        settings = Settings(words, self.segmenter_weights, device, threads, self.allow_download, timeout_s)
        return make_segmenter(str(self.segmenter), settings)

    def sampling(self, seed: int, report_tiles: Callable[[int, int], Any] | None = None) -> lesion_settings.Sampling:
        """Return how the network is sampled for an image of a seed: lesions.settings.Sampling."""
        from ..lesions.settings import Sampling

        n_samples = self.n_samples if self.mode == 'fill' else 1
        steps, texture = self.num_inference_steps, self.texture
        return Sampling(steps, n_samples, seed, self.device, self.batch_size, report_tiles, texture)

    def of_result(self, modality: str) -> dict:
        """Return the options that change the result for an image of a modality; they are written to its sidecar."""
        names = [name for name, spec in all_specs().items() if spec.is_of_result and not spec.unmet(self)]
        names += ['second_visit'] if self.mode == 'synth' else []
        return {'model': self.model_of(modality)} | {name: getattr(self, name) for name in names}

    @property
    def second_visit(self) -> bool:
        """True if the synthetic image is a follow-up scan (`--new-lesions`)."""
        return self.new_lesions is not None

    @property
    def top_dir(self) -> Path:
        """The folder that holds all that a run writes."""
        return self.raw_dir or self.output_dir

    @property
    def variants(self) -> list[str]:
        """The `desc-` of each variant of a synthesis: `synth`, or `synth1` to `synthK`."""
        return [f'synth{n}' for n in range(1, self.n_variants + 1)] if self.n_variants > 1 else ['synth']


def all_specs() -> dict[str, Spec]:
    """Return all options by the names of their fields, group by group."""
    return {name: spec for group in GROUPS for name, spec in specs_of(group).items()}
