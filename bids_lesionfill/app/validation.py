"""Checks of the options, and the options that they become."""

import difflib
import json
import logging
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

from .. import text_files
from ..diffusion import registry as fillers
from ..layout import indexing, ownership, raw, tools, validator
from ..layout.errors import UsageError
from ..modality import NAMES
from ..thickness import registry
from . import config, parser
from . import options as app_options

logger = logging.getLogger('bids_lesionfill')


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
    indexing.read_description(bids_dir, is_derivative=False)  # what is unreadable is said at once
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
    check_synthesis(arguments)
    raw_dir = None
    if arguments.output_layout == 'raw':
        raw_dir, output_dir = output_dir, output_dir / raw.DERIVATIVES
    options = app_options.Options(
        bids_dir=bids_dir,
        output_dir=output_dir,
        raw_dir=raw_dir,
        mode=arguments.mode,
        modalities=tuple(dict.fromkeys(arguments.modality or app_options.MODALITIES[arguments.mode])),
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
        config=config.as_toml(arguments, parser.build_parser(), app_options.version()),
        reports_only=arguments.reports_only,
        stop_on_first_crash=arguments.stop_on_first_crash,
        command='run.py ' + shlex.join(argv),
        version=app_options.version(),
    )
    if options.thickness and 'T1w' not in options.modalities:
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
    besides = [folder for folder in (options.work_dir, options.bids_database_dir) if folder is not None]
    ownership.check_output(output_dir, bids_dir, raw_dir, besides)
    return with_absolute_paths(options)


def with_absolute_paths(options):
    """Options whose paths mean the same wherever a process works: nipype changes into folders of its own."""
    paths = {name: value.absolute() for name, value in vars(options).items() if isinstance(value, Path)}
    for name in ('derivatives', 'thickness_results'):
        if folders := getattr(options, name):
            paths[name] = {label: folder.absolute() for label, folder in folders.items()}
    if options.model and options.model not in fillers.names():
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
        '--lesion-location': arguments.lesion_location if arguments.lesion_location != app_options.LOCATIONS else None,
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
        logger.error('%d error(s)%s: mend them, or use --skip-bids-validation', len(errors), shown)
    return not errors
