"""`--copy-unlesioned`: a filled image, which is a copy, of those without a lesion mask: a study has one path."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ..images import nifti
from ..layout import derivatives, files, inputs, provenance, tables
from ..lesions import fill
from . import config

if TYPE_CHECKING:
    from .options import Options

logger = logging.getLogger('bids_lesionfill')

NO_MODEL = 'none'  # in place of the hash of weights


def is_wanted(image: inputs.Inputs, options: Options) -> bool:
    """Return True if an image without a lesion mask is to be copied, as requested."""
    return options.copy_unlesioned and image.problem == inputs.NO_MASK


def copy_image(image: inputs.Inputs, options: Options) -> None:
    """Write the derivatives of an image without a lesion mask, unless they are there from the same input."""
    derivatives.check_files(image)
    result_options = options.of_result(image.modality)
    run_hash = derivatives.hash_run(image, result_options, NO_MODEL, options.version)
    if derivatives.is_finished(options.output_dir, image, run_hash, n_samples=1):
        logger.info('%s: already done', image.name)
        return
    image_img = files.open_image(image.image_file)
    nifti.check_image(image_img, 'image')
    filling = fill.Filling(
        nifti.copy_image(image_img),
        nifti.mask_image(np.zeros(image_img.shape[:3], dtype=bool), image_img),
        record=fill.record_of_copy(image_img),
    )
    tables.remove_thickness(options.output_dir, image)
    derivatives.write_xfm(options.output_dir, image, None, {})
    command = config.command_of(options, image.subject, image.modality)
    made_by = provenance.of_result(result_options, run_hash, options.version, 'copy', command)
    derivatives.write_filling(options.output_dir, image, filling, made_by)
    logger.info('%s: no lesion mask: copied', image.name)
