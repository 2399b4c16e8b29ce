"""Work of `bids_lesionfill-file`: one image, its outputs, their record and report."""

import argparse
import gzip
import hashlib
import logging
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .. import interface, sidecars
from ..diffusion import models, registry
from ..layout import files, inputs, ownership
from ..layout.naming import APP_NAME
from ..lesions import checks, fill, settings, synthesis
from ..modality import UNKNOWN, Modality, get
from ..report import methods, page, participant
from . import loading, options, progress, single_file

logger = logging.getLogger('bids_lesionfill')


def run(arguments: argparse.Namespace) -> None:
    """Fill an image or synthesize lesions in it, and write what was asked for.

    Raises
    ------
    ValueError
        If an image cannot be used.
    FileNotFoundError
        If the model is not there.
    """
    image_img = loading.open_image(arguments.image)
    lesions = lesions_of(arguments)
    kind, doubts = interface.recognise(
        arguments.mode, image_img, lesions, arguments.modality, arguments.model, arguments.t1w is not None
    )
    chosen = single_file.options_of(arguments, kind.name if kind is UNKNOWN else kind.suffix)
    name: Any = arguments.model or kind.model_for(chosen.mode)
    t1w_img = loading.open_image(arguments.t1w) if arguments.t1w else None
    with progress.of_parts(arguments.image.name) as report_tiles:
        sampling = chosen.sampling(chosen.random_seed, report_tiles)
        if chosen.mode == 'fill':
            filler = registry.load_filler(
                name, models.choose_device(chosen.device), interface.modality_of(kind, arguments.model)
            )
            wanted: Any = lesions  # the parser asks for a mask
            done = fill.fill_alone(image_img, wanted, filler, t1w_img, growth=chosen.growth, sampling=sampling)
            result_img, mask_img = done.filled_img, done.used_mask_img
        else:
            model = models.load_model(name, models.choose_device(chosen.device))
            done = synthesis.paint_alone(image_img, t1w_img, lesions, wanted_of(arguments), model, sampling)
            result_img, mask_img = done.synth_img, done.new_mask_img
    done = replace(done, warnings=[*doubts, *done.warnings])
    write(arguments, chosen, kind, done, result_img, mask_img)
    for warning in done.warnings:
        logger.warning('%s', warning)
    words = 'filled' if chosen.mode == 'fill' else 'synthesized'
    logger.info('%d lesion(s) %s; %s', len(done.lesions), words, arguments.out)


def lesions_of(arguments: argparse.Namespace) -> settings.Lesions | None:
    """Read the lesions: those to fill and those that stay; of a synthesis those that the patient has, or None."""
    if arguments.lesions is None:
        return None
    threshold, labels = arguments.mask_threshold, tuple(arguments.lesion_labels)
    mask_img = loading.open_image(arguments.lesions)
    wanted_img, kept_img = loading.select_lesions(
        mask_img, threshold, labels=labels, min_volume_mm3=arguments.min_lesion_volume
    )
    flair_img = loading.open_image(arguments.flair) if arguments.flair else None
    return settings.Lesions(wanted_img, kept_img, threshold, flair_img)


def wanted_of(arguments: argparse.Namespace) -> synthesis.Wanted:
    """Return which new lesions are asked for."""
    return synthesis.Wanted(
        loading.open_image(arguments.mask) if arguments.mask else None,
        arguments.n_lesions,
        arguments.lesion_load_ml,
        arguments.lesion_location,
        arguments.lesion_intensity,
        arguments.lesion_halo,
        arguments.mask_threshold,
    )


def write(
    arguments: argparse.Namespace,
    chosen: options.Options,
    kind: Modality,
    done: fill.Filling | synthesis.Synthesis,
    result_img: nib.spatialimages.SpatialImage,
    mask_img: nib.spatialimages.SpatialImage,
) -> None:
    """Write the image, its mask and report if asked for, and last the record; each is whole or absent."""
    contents = {arguments.out: bytes_of(result_img, arguments.out)}
    if arguments.used_mask:
        contents[arguments.used_mask] = bytes_of(mask_img, arguments.used_mask)
    command = f'bids_lesionfill-file {shlex.join(sys.argv[1:])}'
    record = {
        'GeneratedBy': [{'Name': APP_NAME, 'Version': chosen.version}],
        'Command': command,
        'Modality': kind.name,
        'Options': chosen.of_result(chosen.modalities[0]) | {'mode': chosen.mode},
        **sidecars.spell(done.record),
        'Warnings': done.warnings,
        'Lesions': done.lesions,
    }
    if arguments.report:
        with tempfile.TemporaryDirectory() as folder:  # pictures are drawn of files
            paths = [Path(folder, name) for name in ('image.nii.gz', 'mask.nii.gz')]
            for path, img in zip(paths, (result_img, mask_img), strict=True):
                path.write_bytes(bytes_of(img, path))
            draw_report(arguments, chosen, kind, done, paths, command, Path(folder, 'report.html'))
            contents[arguments.report] = Path(folder, 'report.html').read_bytes()
    hashes = {path.name: hashlib.sha256(data).hexdigest() for path, data in contents.items()}
    record_file = ownership.record_of(arguments.out)
    before = ownership.hashes_in(record_file)  # of what a run that is killed here has not replaced yet
    files.write_json(record_file, record | {'FilesSHA256': before | {f'{n} (new)': h for n, h in hashes.items()}})
    for path, data in contents.items():
        files.write_bytes(path, data)
    files.write_json(record_file, record | {'FilesSHA256': hashes})


def bytes_of(img: nib.spatialimages.SpatialImage, path: Path) -> bytes:
    """Return the bytes of an image file, with its stored values; compressed if its name says so."""
    data = img.to_bytes()
    return gzip.compress(data, compresslevel=6, mtime=0) if path.name.endswith('.gz') else data


def draw_report(
    arguments: argparse.Namespace,
    chosen: options.Options,
    kind: Modality,
    done: fill.Filling | synthesis.Synthesis,
    paths: list[Path],
    command: str,
    report_file: Path,
) -> None:  # seven arguments: all that a report says
    """Write the report of one image, in the form of that of a participant."""
    from . import participant as app_participant

    stem = arguments.out.name.removesuffix('.gz').removesuffix('.nii')
    image = inputs.Inputs(
        *('', None, f'{arguments.image.name.partition(".")[0]}_{kind.suffix}', arguments.image, arguments.image.name),
        lesion_mask_file=arguments.lesions,
        tissue_file=arguments.t1w,
    )
    is_fill, lesions = chosen.mode == 'fill', done.lesions
    record: Any = done.record
    voxel_ml = abs(np.linalg.det(nib.load(paths[0]).affine[:3, :3])) / 1000
    if is_fill:
        volumes = participant.fill_volumes(record, voxel_ml)
        summary = participant.fill_summary(image, lesions, record, volumes)
    else:
        summary = participant.synth_summary(image, lesions, record)
    status = 'copied' if not lesions else 'filled' if is_fill else 'synthesized'
    drawing = participant.draw_figures(image, (paths[0], paths[1]), lesions, record, participant.NOTHING, np.eye(4))
    content = {
        'name': arguments.image.name,
        'output': arguments.out.name,
        'status': status,
        'message': ' '.join(done.warnings) if status == 'copied' else '',
        'lesions': lesions,
        'summary': summary | {'Modality': kind.name},
        'warnings': done.warnings,
        'checks': (checks.check_filling if is_fill else checks.check_synthesis)(record, lesions, get(kind).name),
        'provenance': sidecars.spell(record),
        'figures': drawing.figures,
        'viewer': drawing.viewer,
    }
    plans = {chosen.modalities[0]: registry.describe(chosen.model_of(chosen.modalities[0]))}
    versions = app_participant.versions_of(methods.software_of(chosen))
    about = {'label': stem, 'version': chosen.version, 'command': command, 'status': status, 'images': [content]}
    text = methods.methods_text(chosen, plans, versions)
    page.write_participant(report_file, about | {'message': content['message'], 'methods': text})
