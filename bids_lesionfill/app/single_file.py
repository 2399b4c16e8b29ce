"""`bids_lesionfill-file IMAGE MASK OUT`: fill one image, without BIDS."""

from __future__ import annotations

import argparse
import gzip
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..layout import files
from ..modality import FLAIR, T1W
from . import entry

if TYPE_CHECKING:
    import nibabel as nib

logger = logging.getLogger('bids_lesionfill')


OK, FAILED, USAGE = 0, 1, 2


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog='bids_lesionfill-file',
        description='Fill the lesions of one T1w or FLAIR image with healthy tissue. Voxels outside the mask, grown '
        'within white matter, stay as they are.',
    )
    parser.add_argument('image', type=Path, help='T1w, or FLAIR with --t1w: NIfTI')
    parser.add_argument('mask', type=Path, help='lesions: above zero, or probabilities from 0.5 on')
    parser.add_argument('out', type=Path, help='the filled image to write (.nii or .nii.gz); its folder must be there')
    parser.add_argument('--t1w', type=Path, metavar='FILE', help='the T1w of a FLAIR, in the same world space')
    parser.add_argument('--model', metavar='NAME_OR_PATH', help='(default: fill-T1w, with --t1w fill-FLAIR)')
    parser.add_argument('--used-mask', type=Path, metavar='FILE', help='write also the mask that was filled')
    parser.add_argument('--dilate', type=int, default=1, metavar='N', help='(default: %(default)s)')
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto', help='(default: %(default)s)')
    parser.add_argument('--random-seed', type=int, default=0, metavar='SEED', help='(default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='write over OUT if it is there')
    return parser


def check(arguments: argparse.Namespace) -> str:
    """Check the paths; return a sentence about the first problem, empty if there is none."""
    for path in (arguments.image, arguments.mask, arguments.t1w):
        try:
            if path is not None:
                files.check_content(path)
        except ValueError as error:
            return f'{error}'
    for path in (arguments.out, arguments.used_mask):
        if path is None:
            continue
        if not path.name.endswith(('.nii', '.nii.gz')):
            return f'{path} does not end in .nii or .nii.gz'
        if not path.parent.is_dir():
            return f'{path.parent} is not a folder'
        if path.exists() and not arguments.overwrite:
            return f'{path} is there already; use --overwrite'
        if path.resolve() in [given.resolve() for given in (arguments.image, arguments.mask, arguments.t1w) if given]:
            return f'{path} is an input, which is never written to'
    if arguments.used_mask is not None and arguments.used_mask.resolve() == arguments.out.resolve():
        return f'{arguments.out} cannot be both OUT and --used-mask'
    return ''


def main(argv: list[str]) -> int:
    """Fill one image; return 0, 1 (it cannot be filled) or 2 (usage)."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(format='%(levelname)s %(message)s', stream=sys.stderr, level=logging.INFO)
    wrong = check(arguments)
    if wrong:
        logger.error('%s', wrong)
        return USAGE
    from ..lesions import fill, settings
    from . import loading

    try:
        filling = fill.fill_alone(
            loading.open_image(arguments.image),
            settings.Lesions(loading.open_image(arguments.mask)),
            arguments.model or (FLAIR if arguments.t1w else T1W).fill_model,
            loading.open_image(arguments.t1w) if arguments.t1w else None,
            growth=settings.Growth(arguments.dilate),
            sampling=settings.Sampling(seed=arguments.random_seed, device=arguments.device),
        )
    except (ValueError, OSError) as error:
        logger.error('%s', error)
        return FAILED
    save(filling.filled_img, arguments.out)
    if arguments.used_mask:
        save(filling.used_mask_img, arguments.used_mask)
    for warning in filling.warnings:
        logger.warning('%s', warning)
    logger.info('%d lesion(s) filled; %s', len(filling.lesions), arguments.out)
    return OK


def save(img: nib.Nifti1Image, path: Path) -> None:
    """Write an image with its stored values; the file is whole or absent."""
    data = img.to_bytes()
    files.write_bytes(path, gzip.compress(data, compresslevel=6, mtime=0) if path.name.endswith('.gz') else data)


def script() -> int:
    """Run the console script `bids_lesionfill-file`."""
    sys.exit(entry.end_quietly(main, sys.argv[1:]))
