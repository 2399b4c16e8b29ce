"""Checks of the options, and the options that they become."""

import argparse
import difflib
import importlib.metadata
import json
import logging
import os
import re
import shlex
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import text_files
from ..diffusion import models
from ..diffusion import registry as fillers
from ..layout import indexing, ownership, raw, tools, validator
from ..layout.errors import UsageError
from ..modality import NAMES, defaults, get
from ..segmenters.segmenter import SegmenterUnavailable
from ..thickness import registry
from . import config, table
from . import options as app_options

logger = logging.getLogger('bids_lesionfill')

SHOWN_NAMES = 8  # of participants or sessions in a message


def options_of(arguments: argparse.Namespace, argv: list[str]) -> app_options.Options:
    """Return checked options from parsed arguments.

    Raises
    ------
    UsageError
        One sentence: what, which path, what was expected.
    """
    check_folders(arguments)
    check_labels(arguments)
    check_running(arguments)
    check_places(arguments)
    check_synthesis(arguments)
    derivatives, thickness_results = split_derivatives(arguments)
    output_dir, raw_dir = arguments.output_dir, None
    if arguments.output_layout == 'raw':
        raw_dir, output_dir = output_dir, output_dir / raw.DERIVATIVES
    taken = {name: spec.take(getattr(arguments, spec.key)) for name, spec in app_options.all_specs().items()}
    derived = {
        'output_dir': output_dir,
        'raw_dir': raw_dir,
        'modalities': tuple(dict.fromkeys(arguments.modality or defaults(arguments.mode))),
        'filters': read_filters(arguments.bids_filter_file),
        'derivatives': derivatives or None,
        'thickness_results': thickness_results,
        **exact_growth(arguments),
        'n_lesions': arguments.new_lesions or arguments.n_lesions,
        'config': config.as_toml(arguments, app_options.version()),
        'command': 'run.py ' + shlex.join(argv),
        'version': app_options.version(),
    }
    options = app_options.Options(**taken | derived)
    check_models(options)
    check_segmenter(options)
    besides = [folder for folder in (options.work_dir, options.bids_database_dir) if folder is not None]
    ownership.check_output(output_dir, arguments.bids_dir, raw_dir, besides)
    return with_absolute_paths(options)


def exact_growth(arguments: argparse.Namespace) -> dict[str, str | int]:
    """Return what `--dilate 0` means for the other options of growth; see `lesions.settings.Growth`."""
    return {'rims': 'grown', 'rim_voxels': 0} if arguments.dilate == 0 else {}


def check_folders(arguments: argparse.Namespace) -> None:
    """Raise UsageError if BIDS_DIR is no dataset, or OUTPUT_DIR a place where nothing can or may be written."""
    bids_dir, output_dir = arguments.bids_dir, arguments.output_dir
    if not bids_dir.is_dir():
        raise UsageError(f'BIDS_DIR {bids_dir} is not a folder')
    if not (bids_dir / 'dataset_description.json').is_file():
        raise UsageError(
            f'BIDS_DIR {bids_dir} has no dataset_description.json: it is not a BIDS dataset. If it is meant to be one, '
            'write into this file: {"Name": "my study", "BIDSVersion": "1.10.0"}'
        )
    indexing.read_description(bids_dir, is_derivative=False)  # an unreadable one is reported at once
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


def check_labels(arguments: argparse.Namespace) -> None:
    """Raise UsageError if a participant or session that was asked for has no folder; the index is not needed for it.

    The group level may aggregate participants of other folders, and is not checked.
    """
    if arguments.analysis_level == 'group':
        return
    subjects = indexing.list_participants(arguments.bids_dir)
    wanted = [f'sub-{label}' for label in arguments.participant_label]
    check_names('--participant-label', wanted, subjects, arguments.bids_dir)
    if arguments.mask_from:
        check_names('--mask-from', [f'sub-{arguments.mask_from}'], subjects, arguments.bids_dir)
    sessions = {path.name for name in wanted or subjects for path in (arguments.bids_dir / name).glob('ses-*')}
    where = ', '.join(wanted) if len(wanted) in (1, 2, 3) else arguments.bids_dir
    check_names('--session-label', [f'ses-{label}' for label in arguments.session_label], sorted(sessions), where)


def check_names(flag: str, wanted: list[str], present: list[str], where: str | Path) -> None:
    """Raise UsageError if names are not among those present."""
    missing = [name for name in wanted if name not in present]
    if missing:
        more = f' and {len(present) - SHOWN_NAMES} more' if len(present) > SHOWN_NAMES else ''
        shown = f'{", ".join(present[:SHOWN_NAMES]) or "none"}{more}'
        raise UsageError(f'{flag}: no {", ".join(missing)} in {where}, which has {shown}')


def split_derivatives(arguments: argparse.Namespace) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the folders of `--derivatives` by name: those for filling, and results of other tools for thickness.

    Raises
    ------
    UsageError
        If a folder is neither, or two have one name.
    """
    derivatives, thickness_results = {}, {}
    for text in arguments.derivatives:
        name, separator, path = text.partition('=')
        path = Path(path if separator else text)
        name = name if separator else path.resolve().name
        if name in derivatives or name in thickness_results:
            raise UsageError(f'--derivatives names {name} twice; use NAME=PATH')
        is_known = (path / 'dataset_description.json').is_file() or tools.is_tool_folder(path)
        has_results = path.is_dir() and registry.has_results(path)  # of FreeSurfer, FastSurfer, DL+DiReCT
        is_read = has_results and registry.has_results(path, arguments.thickness)
        if is_known and not (is_read and registry.desc_in(name, path.name)):
            derivatives[name] = path
        elif has_results:  # not for filling: the filled image must stay the one that was measured
            thickness_results[name] = path
        else:
            raise UsageError(
                f'--derivatives {path} is neither a folder with a dataset_description.json nor one of FreeSurfer, '
                'FastSurfer, SAMSEG, SynthSeg, LST-AI or DL+DiReCT'
            )
    return derivatives, thickness_results


def check_models(options: app_options.Options) -> None:
    """Raise UsageError if the model is missing, or one for something else."""
    if options.thickness and not any(get(name).is_measured for name in options.modalities):
        raise UsageError('--thickness measures T1w images, and --modality names none')
    if options.model and len(options.modalities) > 1:
        raise UsageError(
            f'--model {options.model} is for one modality, not for {" and ".join(options.modalities)}; give --modality'
        )
    try:
        for modality in options.modalities:
            fillers.check(options.model_of(modality), options.mode, modality)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from None


def check_segmenter(options: app_options.Options) -> None:
    """Raise UsageError if options of segmentation contradict each other, or the weights are not there."""
    if options.segmenter is None:
        specs = table.specs_of(app_options.Segmentation)
        given = [spec.name for name, spec in specs.items() if getattr(options, name) != spec.default]
        if given:
            raise UsageError(f'{", ".join(given)}: only with --segmenter')
        return
    if options.copy_unlesioned:
        raise UsageError(
            '--copy-unlesioned and --segmenter contradict each other: images without a lesion mask are copied, or '
            'segmented. Give healthy participants an empty mask, or process them in a run of their own'
        )
    try:
        options.make_segmenter().check_weights()
    except SegmenterUnavailable as error:
        raise UsageError(f'--segmenter {options.segmenter}: {error}') from None
    except ValueError as error:
        raise UsageError(f'--segmenter-command {options.segmenter_command}: {error}') from None


def check_device(options: app_options.Options) -> None:
    """Raise UsageError if CUDA was asked for and is not there; torch is imported for it alone.

    The machines of a cluster are not asked.
    """
    if options.device != 'cuda' or options.reports_only or options.plugin_file is not None:
        return
    if importlib.metadata.version('torch').endswith('+cpu'):  # known without the import, which takes seconds
        raise UsageError('--device cuda: torch is installed without CUDA; use --device cpu or auto')
    try:
        models.choose_device(options.device)
    except ValueError as error:
        raise UsageError(str(error)) from None


def check_level(arguments: argparse.Namespace) -> None:
    """Raise UsageError if options on the command line are for the other analysis level.

    Those of a configuration file are not meant: one file may serve both levels.
    """
    level = arguments.analysis_level
    given = [
        spec for spec in app_options.all_specs().values() if spec.level not in ('', level) and spec.is_given(arguments)
    ]
    if given:
        raise UsageError(f'{", ".join(spec.name for spec in given)}: only with the level {given[0].level}')


def check_places(arguments: argparse.Namespace) -> None:
    """Raise UsageError if options are given that need another value of `--mode` or `--rims`."""
    misplaced, specs = {}, app_options.all_specs()
    if arguments.mode == 'fill' and arguments.dilate == 0:  # then it needs no other
        if specs['rim_voxels'].is_given(arguments) and arguments.rim_voxels:
            raise UsageError('--dilate 0 fills the given mask and nothing else: --rim-voxels contradicts it')
        specs = {name: spec for name, spec in specs.items() if name not in ('dilate', 'rim_voxels')}
    for spec in specs.values():
        if spec.is_given(arguments) and (need := spec.unmet(arguments)):
            misplaced.setdefault(need, []).append(spec.name)
    if misplaced:
        raise UsageError(
            '; '.join(f'{", ".join(names)}: only with --{key} {value}' for (key, value), names in misplaced.items())
        )


def with_absolute_paths(options: app_options.Options) -> app_options.Options:
    """Return options with absolute paths, because nipype changes the working directory."""
    paths: dict[str, Any] = {name: value.absolute() for name, value in vars(options).items() if isinstance(value, Path)}
    for name in ('derivatives', 'thickness_results'):
        if folders := getattr(options, name):
            paths[name] = {label: folder.absolute() for label, folder in folders.items()}
    if options.model and options.model not in fillers.names():
        paths['model'] = str(Path(options.model).absolute())
    if options.segmenter_command:
        words = shlex.split(options.segmenter_command)
        paths['segmenter_command'] = shlex.join(
            str(Path(word).absolute()) if is_path(word) and Path(word).is_file() else word for word in words
        )
    return replace(options, **paths)


def is_path(word: str) -> bool:
    """Return True if a word of a command is a path, not a program on the PATH."""
    return '/' in word or bool(Path(word).suffix)


def check_running(arguments: argparse.Namespace) -> None:
    """Raise UsageError if a folder is in the dataset that must not be, or an option does not go with another."""
    if arguments.output_layout == 'raw':
        if arguments.mode != 'fill':
            raise UsageError('--output-layout raw: only with --mode fill')
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


def check_synthesis(arguments: argparse.Namespace) -> None:
    """Raise UsageError if options of synthesis contradict each other."""
    synthesis = [spec.name for spec in table.specs_of(app_options.Synthesis).values() if spec.is_given(arguments)]
    drawn = [
        name for name in ('--n-lesions', '--lesion-load-ml', '--lesion-location', '--new-lesions') if name in synthesis
    ]
    which = [name for name in ('--mask', '--mask-from') if name in synthesis]
    if which and (drawn or len(which) == 2):
        names = ', '.join([*which, *drawn])
        raise UsageError(f'{names} contradict each other: lesions are sampled, or a mask is given')
    if '--new-lesions' in synthesis and '--n-lesions' in synthesis:
        raise UsageError('--new-lesions and --n-lesions both say how many: give one')
    if arguments.mask is not None and not arguments.mask.is_file():
        raise UsageError(f'--mask {arguments.mask} is not a file')


def read_filters(path: Path) -> Any:
    """Read the filter file as pybids filters: null means "no such entity" and "*" any value."""
    if path is None:
        return None
    try:
        content = json.loads(text_files.read_text(path))
    except (OSError, ValueError) as error:
        raise UsageError(f'--bids-filter-file {path} cannot be read as JSON: {error}') from None
    known = (*(name.lower() for name in NAMES), 'lesion_mask', 'tissue')
    check_filters(content, known, path)
    content = {key: with_long_names(value, key, path) if key in known else value for key, value in content.items()}
    ignored = sorted(set(content) - set(known))
    if ignored:
        logger.info('keys %s of %s are ignored', ignored, path)
    special = {None: None, '*': '*'}
    if content.get('tissue', {}) is None:  # no segmentation is to be used at all
        return read_keys(content, known[:-1], special) | {'tissue': None}
    return read_keys(content, known, special)


def check_filters(content: Any, known: Collection[str], path: Path) -> None:
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


def with_long_names(entities: Any, key: str, path: Path) -> dict[str, Any]:
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


def read_keys(content: dict[str, Any], known: Collection[str], special: Any) -> Any:
    """Return the filters of known keys, with pybids queries for null and "*"."""
    return {
        key: {name: any_or_none(value) if value in special.values() else value for name, value in content[key].items()}
        for key in known
        if key in content
    }


def any_or_none(value: Any) -> Any:
    """Return the pybids query for "no such entity" (null) or "any value" ("*")."""
    from bids.layout import Query

    return Query.NONE if value is None else Query.ANY


def is_valid(options: app_options.Options) -> bool:
    """Return True if the validator finds no error in the input; log errors, one per line."""
    if validator.find_validator() is None:
        logger.warning('%s is not installed: the dataset is not validated', validator.PROGRAM)
        return True
    try:
        errors = validator.find_errors(options.bids_dir, options.participant_labels)
    except (RuntimeError, OSError) as error:
        logger.warning('the dataset is not validated: %s', error)
        return True
    for sentence in errors[: validator.SHOWN]:
        logger.error('%s', sentence)
    if errors:
        shown = f', of which {validator.SHOWN} are shown' if len(errors) > validator.SHOWN else ''
        logger.error('%d error(s)%s: fix them, or use --skip-bids-validation', len(errors), shown)
    return not errors
