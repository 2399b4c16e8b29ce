"""`bids_lesionfill-file IMAGE [MASK] OUT`: fill one image, or synthesize lesions in it, without BIDS."""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..layout import files, ownership
from ..layout.errors import UsageError
from . import cli, entry, exit_codes, options, parser, table, validation

logger = logging.getLogger('bids_lesionfill')


OK, FAILED, USAGE = exit_codes.OK, exit_codes.SOME_FAILED, exit_codes.USAGE
# Of the table of options: what makes sense for one image. Those of BIDS and of several images do not.
OFFERED = (
    *('mode', 'mask_threshold', 'lesion_labels', 'min_lesion_volume', 'rims', 'dilate', 'rim_voxels'),
    *('modalities', 'model', 'num_inference_steps', 'random_seed', 'n_samples', 'texture'),
    *('n_lesions', 'lesion_load_ml', 'lesion_locations', 'new_mask_file', 'lesion_intensity', 'lesion_halo'),
    *('device', 'batch_size', 'omp_nthreads'),
)
OTHERWISE: dict[str, dict[str, Any]] = {  # where one image differs from many
    'modalities': {
        'kind': 'value',
        'default': None,
        'default_text': 'by the name of the file; else FLAIR with --t1w, T1w without',
        'help': 'what the image is; all but T1w need --t1w',
    },
    'random_seed': {'help': 'random seed'},
    'new_mask_file': {'help': 'mask of the new lesions, in the scanner space of the image'},
    'omp_nthreads': {'default_text': 'all cores'},
}


def specs() -> dict[str, table.Spec]:
    """Return the options of the table that are offered, by the names of their fields."""
    known = options.all_specs()
    return {name: replace(known[name], **OTHERWISE.get(name, {})) for name in OFFERED}


def build_parser() -> parser.Parser:
    """Return the command-line parser."""
    built = parser.Parser(
        prog='bids_lesionfill-file',
        allow_abbrev=False,
        description='Fill the lesions of one image with healthy tissue, or synthesize new ones. OUT.json beside OUT '
        'says how it was made and what was written.',
        epilog='Exit codes: 0 done, 1 the image cannot be used, 2 wrong usage.',
    )
    built.add_argument('image', type=Path, help='T1w, or another modality with --t1w: NIfTI')
    built.add_argument(
        'lesions',
        metavar='MASK',
        type=Path,
        nargs='?',
        help='lesions: above zero, or probabilities (synth: those that stay, if any)',
    )
    built.add_argument('out', type=Path, help='the image to write (.nii or .nii.gz); its folder must be there')
    built.add_argument('--t1w', type=Path, metavar='FILE', help='the T1w of another modality, in the same world space')
    built.add_argument(
        '--flair',
        type=Path,
        metavar='FILE',
        help='the FLAIR of a T1w that is filled, in the same world space; it tells fluid from lesions that are as dark',
    )
    built.add_argument(
        '--used-mask', type=Path, metavar='FILE', help='write also the mask that was filled (synth: of the new lesions)'
    )
    built.add_argument('--report', type=Path, metavar='FILE', help='write also a report with pictures (.html)')
    built.add_argument(
        '--overwrite', action='store_true', help='replace what this program wrote there before, and nothing else'
    )
    built.add_argument(
        '--version', action=parser.PrintAndStop, const=parser.print_version, help='print the version and stop'
    )
    offered = specs()
    for group in options.GROUPS:
        mine = [offered[name] for name in table.specs_of(group) if name in offered]
        if not mine:
            continue
        section = built.add_argument_group(group.title, getattr(group, 'description', None))
        for spec in mine:
            parser.add_option(section, spec)
    rest = {spec.key: spec.default for name, spec in options.all_specs().items() if name not in offered}
    built.set_defaults(**rest)
    return built


def outputs_of(arguments: argparse.Namespace) -> list[Path]:
    """Return the paths that are to be written, without OUT.json."""
    return [path for path in (arguments.out, arguments.used_mask, arguments.report) if path is not None]


def check(arguments: argparse.Namespace) -> None:
    """Raise UsageError, with a sentence about the first problem, if paths or options cannot be used."""
    validation.check_places(arguments)
    validation.check_synthesis(arguments)
    if arguments.lesions is None and arguments.mode == 'fill':
        raise UsageError('MASK is missing: bids_lesionfill-file IMAGE MASK OUT')
    if arguments.flair and (arguments.t1w or arguments.mode != 'fill'):
        raise UsageError('--flair: only where a T1w is filled')
    named = (arguments.image, arguments.lesions, arguments.t1w, arguments.flair, arguments.mask)
    given = [path for path in named if path is not None]
    for path in given:
        try:
            files.check_content(path)
        except ValueError as error:
            raise UsageError(f'{error}') from None
    outputs = outputs_of(arguments)
    for path in outputs:
        endings = ('.html',) if path is arguments.report else ('.nii', '.nii.gz')
        if not path.name.endswith(endings):
            raise UsageError(f'{path} does not end in {" or ".join(endings)}')
        if not path.parent.is_dir():
            raise UsageError(f'{path.parent} is not a folder: make it first')
        if path.resolve() in [other.resolve() for other in given]:
            raise UsageError(f'{path} is an input, which is never written to')
        if [other.resolve() for other in outputs].count(path.resolve()) > 1:
            raise UsageError(f'{path} cannot be two outputs, as OUT and --used-mask')
    ownership.check_single(outputs, ownership.record_of(arguments.out), arguments.overwrite)


def options_of(arguments: argparse.Namespace, modality: str) -> options.Options:
    """Return checked options of one image of a modality."""
    known = options.all_specs()
    taken = {name: spec.take(getattr(arguments, spec.key)) for name, spec in known.items() if name != 'modalities'}
    derived = {'modalities': (modality,), 'bids_dir': arguments.image.parent, 'output_dir': arguments.out.parent}
    growth = validation.exact_growth(arguments)
    return options.Options(**taken | derived | growth, version=options.version())


def flags_of(built: argparse.ArgumentParser) -> set[str]:
    """Return all spellings of the flags of a parser."""
    return {flag for action in built._actions for flag in action.option_strings}


def parse(argv: list[str]) -> argparse.Namespace:
    """Return parsed arguments; MASK may be missing, wherever options stand between the paths."""
    known = build_parser()
    unknown = parser.unknown_words(argv, flags_of(known))
    if unknown:
        known.error(unknown)
    return known.parse_intermixed_args(argv)


def main(argv: list[str]) -> int:
    """Fill one image or synthesize lesions in it; return 0, 1 (it cannot be used) or 2 (usage)."""
    arguments = parse(argv)
    logging.basicConfig(format='%(levelname)s %(message)s', stream=sys.stderr, level=logging.INFO)
    try:
        check(arguments)
        asked = options_of(arguments, arguments.modality or 'T1w')
        cli.limit_threads(asked)
        validation.check_device(asked)
    except UsageError as error:
        logger.error('%s', error)
        return USAGE
    from . import single_image  # numpy and torch take seconds

    try:
        single_image.run(arguments)
    except (UsageError, FileNotFoundError) as error:  # a model that is not there
        logger.error('%s', error)
        return USAGE
    except (ValueError, OSError) as error:
        logger.error('%s', error)
        return FAILED
    return OK


def script() -> None:
    """Run the console script `bids_lesionfill-file`."""
    sys.exit(entry.end_quietly(main, sys.argv[1:]))
