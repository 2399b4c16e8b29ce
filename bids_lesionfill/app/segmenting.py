"""`--segmenter`: lesion masks for visits without one, by another program.

`plan` runs before any work and writes nothing. `make_masks` runs when a participant is processed. The masks are kept in
the output folder; an existing mask is used as it is, even if it was edited.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from .. import sidecars
from ..diffusion import models
from ..images import nifti, placement
from ..layout import derivatives as layout_derivatives
from ..layout import errors, files, inputs, naming, near_misses
from ..layout import status as layout_status
from ..modality import FLAIR, T1W, of_file
from ..segmenters import registry
from ..segmenters.segmenter import WORK, Scans, SegmentationFailed, Segmenter, SegmenterUnavailable, temporary_folder
from . import loading

if TYPE_CHECKING:
    from ..segmenters import running
    from .options import Options

logger = logging.getLogger('bids_lesionfill')

SHOWN_IMAGES = 8  # in a message


# -------------------------------------------------------------------------------------------------------- before work


def plan(
    found: dict[str, list[inputs.Inputs]], options: Options, derivatives: dict[str, Path]
) -> dict[str, list[inputs.Inputs]]:
    """Assign a lesion mask to images without one: the mask that the segmenter will make, or made in an earlier run.

    Images with the same FLAIR share a mask. It is made from this FLAIR and the first T1w by name, preferably one
    without contrast agent.

    Parameters
    ----------
    found : dict of subject -> list of layout.Inputs
    options : cli.Options
    derivatives : dict of name -> path
        Folders that were searched for masks.

    Raises
    ------
    UsageError
        If a mask is missing and the program, or an image that it needs, is missing too.
    """
    if options.segmenter is None:
        return found
    segmenter = options.make_segmenter()
    planned = {subject: plan_participant(images, segmenter, options) for subject, images in found.items()}
    images = [image for of_subject in planned.values() for image in of_subject if image.segmented_from]
    missing = [image for image in images if not image.lesion_mask_file.exists()]  # type: ignore[union-attr]
    if options.reports_only:
        return {
            subject: [one if other in missing else other for one, other in zip(found[subject], of_subject, strict=True)]
            for subject, of_subject in planned.items()
        }
    n_masks, n_missing = (len({image.lesion_mask_file for image in those}) for those in (images, missing))
    logger.info('%s: %d lesion mask(s) to make, %d from earlier runs', segmenter.title, n_missing, n_masks - n_missing)
    check_contrasts(missing, segmenter, options)
    warn_of_unused_masks(sorted({image.subject for image in missing}), options, derivatives)
    if missing and options.plugin_file is None:  # the machines of a cluster are not asked
        try:
            segmenter.check()
        except SegmenterUnavailable as error:
            raise errors.UsageError(f'--segmenter {options.segmenter}: {error}') from None
    return planned


def warn_of_unused_masks(subjects: list[str], options: Options, derivatives: dict[str, Path]) -> None:
    """Warn if participants to be segmented have files that look like lesion masks, under a name that is not known."""
    about = (options.bids_dir, derivatives, subjects, options.mask_labels, options.mask_desc)
    if next(near_misses.candidates(*about), None):
        logger.warning('participants are segmented although they may have masks: %s', near_misses.describe(*about))


def plan_participant(images: list[inputs.Inputs], segmenter: Segmenter, options: Options) -> list[inputs.Inputs]:
    """Return the images of a participant, with planned masks for those without a lesion mask."""
    first: dict[tuple, Path] = {}
    for image in sorted(images, key=lambda image: (of_file(image.t1w_file.name) is not T1W, image.t1w_file.name)):
        if lacks_mask(image):
            first.setdefault((image.session, flair_of(image)), image.t1w_file)
    return [
        with_mask(image, first[image.session, flair_of(image)], segmenter, options) if lacks_mask(image) else image
        for image in images
    ]


def lacks_mask(image: inputs.Inputs) -> bool:
    """Return True if an image has no lesion mask, and a T1w."""
    return image.problem == inputs.NO_MASK and (image.modality == T1W.suffix or image.tissue_file is not None)


def flair_of(image: inputs.Inputs) -> Path | None:
    """Return the FLAIR of an image: itself, or that of its session; None without."""
    return image.image_file if image.modality == FLAIR.suffix else image.fluid_file


def with_mask(image: inputs.Inputs, t1w_file: Path, segmenter: Segmenter, options: Options) -> inputs.Inputs:
    """Return an image with the planned mask of a T1w and, if there is one, the FLAIR of the image.

    Fields are those of a mask that was found by its name: see `layout.pairing.pair`.
    """
    flair_file = flair_of(image)
    there = {T1W.suffix: t1w_file} | ({FLAIR.suffix: flair_file} if flair_file else {})
    there = {contrast: path for contrast, path in there.items() if contrast in segmenter.uses}
    lacking = not set(segmenter.needs) <= set(there)
    space = T1W.suffix if lacking else segmenter.reference(there)
    mask_file = naming.segmented_mask(
        options.output_dir, image, there.get(space, t1w_file), registry.desc_of(str(options.segmenter))
    )
    is_t1w, is_other = image.tissue_file is None, image.image_file != t1w_file
    return replace(
        image,
        problem='',
        lesion_mask_file=mask_file,
        mask_space=space,
        flair_file=flair_file if is_t1w and space == FLAIR.suffix else None,
        sibling_files=(t1w_file,) if is_t1w and is_other and space == T1W.suffix else (),
        sources=(*image.sources, f'bids::{mask_file.relative_to(options.output_dir).as_posix()}'),
        segmented_from=tuple(there.values()),
    )


def check_contrasts(images: Iterable[inputs.Inputs], segmenter: Segmenter, options: Options) -> None:
    """Raise UsageError if a session lacks an image that the segmenter needs."""
    lacking: dict[str, list[str]] = {}
    for image in images:
        there = {naming.suffix_of(path.name) for path in image.segmented_from}
        for contrast in segmenter.needs:
            if contrast not in there:
                lacking.setdefault(contrast, []).append(image.name)
    for contrast, names in lacking.items():
        shown = ', '.join(names[:SHOWN_IMAGES]) + (', ...' if len(names) > SHOWN_IMAGES else '')
        raise errors.UsageError(
            f'--segmenter {options.segmenter} needs a {contrast} of the same session, and {len(names)} image(s) have '
            f'neither that nor a lesion mask: {shown}. Exclude them with --participant-label or --session-label, '
            'provide masks, or use a segmenter that needs only a T1w (mindglide, samseg)'
        )


# ---------------------------------------------------------------------------------------------------------- at work


def make_masks(images: list[inputs.Inputs], options: Options, run_id: str) -> list[inputs.Inputs]:
    """Make the planned masks that do not exist yet; return the images, with a problem where that failed."""
    planned = {image.lesion_mask_file: image for image in images if image.segmented_from and image.lesion_mask_file}
    if not planned or options.reports_only:
        return images
    problems: dict[Path | None, str] = {}
    for mask_file, image in planned.items():
        try:
            if mask_file.exists():
                check_made_from(mask_file, image)
            else:
                make_mask(image, options, run_id)
        except Exception as error:
            name = f'{image.name}_{options.segmenter}'
            problems[mask_file] = layout_status.note_crash(error, name, image.subject, run_id, options.output_dir)
    return [replace(image, problem=problems.get(image.lesion_mask_file, image.problem)) for image in images]


def check_made_from(mask_file: Path, image: inputs.Inputs) -> None:
    """Raise ValueError if an image from which the mask of an earlier run was made has changed since."""
    known = layout_derivatives.read_sidecar(mask_file).get('InputSHA256')
    known = known if isinstance(known, dict) else {}  # of a mask that the user put there
    there = {name: image.image_file.with_name(name) for name in known}
    changed = [name for name, path in there.items() if path.is_file() and hash_of(path) != known[name]]
    if changed:
        raise ValueError(
            f'{mask_file} was made from an earlier version of {", ".join(changed)}: delete it to segment again, or '
            f'delete InputSHA256 from {naming.sidecar(mask_file).name} to keep it'
        )
    logger.info('%s: using lesion mask %s of an earlier run', image.name, mask_file.name)


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_mask(image: inputs.Inputs, options: Options, run_id: str) -> None:
    """Segment the lesions of a visit and write the mask.

    Raises
    ------
    SegmentationFailed
        If the program fails.
    ValueError
        If an image cannot be read, or the output does not have the grid of its image.
    """
    segmenter = options.make_segmenter(models.choose_device(options.device))
    for path in image.segmented_from:
        files.check_content(path)
    logger.info('%s: segmenting lesions with %s', image.name, segmenter.title)
    if options.work_dir is not None:
        options.work_dir.mkdir(parents=True, exist_ok=True)
    with temporary_folder(options.work_dir) as work:
        scans, registered = stage(image, segmenter, Path(work).resolve())
        output, result = call(segmenter, scans, image, options, run_id)
        reference_img = files.open_image(source_of(image, segmenter.reference(scans.files)))
        lesion_mask = lesions_in(files.open_image(output), reference_img, segmenter)
        about = provenance(image, segmenter, scans, options) | {'Seconds': round(result.seconds, 1), **registered}
    mask_img = nifti.mask_image(lesion_mask, reference_img)
    layout_derivatives.write_segmentation(image.lesion_mask_file, mask_img, about)  # type: ignore[arg-type]
    logger.info('%s: lesion mask by %s in %.0f s', image.name, segmenter.title, result.seconds)


def call(
    segmenter: Segmenter, scans: Scans, image: inputs.Inputs, options: Options, run_id: str
) -> tuple[Path, running.Result]:
    """Run a segmenter and save its log, also if it fails; see `Segmenter.segment`."""
    log_file = naming.log_dir(options.output_dir, image.subject, run_id) / f'segmenter-{image.name}.txt'
    try:
        output, result = segmenter.segment(scans)
    except SegmentationFailed as error:
        files.write_bytes(log_file, error.result.log.encode())
        raise
    files.write_bytes(log_file, result.log.encode())
    return output, result


def source_of(image: inputs.Inputs, contrast: str) -> Path:
    """Return the image of a contrast from which a mask is made."""
    return next(path for path in image.segmented_from if naming.suffix_of(path.name) == contrast)


def stage(image: inputs.Inputs, segmenter: Segmenter, folder: Path) -> tuple[Scans, dict[str, Any]]:
    """Copy the images of a visit to a folder, registered and resampled if the segmenter needs one grid.

    Copies, because a container mounts only this folder, and other programs must not write to the dataset.

    Returns
    -------
    scans : Scans
    registered : dict
        Record of the registration, for the sidecar of the mask.
    """
    staged, registered = {}, {}
    reference = segmenter.reference([naming.suffix_of(path.name) for path in image.segmented_from])
    reference_img = files.open_image(source_of(image, reference))
    for path in image.segmented_from:
        contrast = naming.suffix_of(path.name)
        staged[contrast] = folder / segmenter.file_name(contrast)
        staged[contrast].parent.mkdir(exist_ok=True)
        img = files.open_image(path)
        nifti.check_image(img, contrast)
        if segmenter.needs_one_grid and not placement.same_grid(img, reference_img):
            resampled_img, about = resample(img, contrast, reference_img)
            files.write_image(staged[contrast], resampled_img)
            registered = {'Registration': sidecars.spell(about)}
        elif path.name.endswith('.gz'):
            shutil.copyfile(path, staged[contrast])
        else:
            staged[contrast].write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return Scans(folder, staged), registered


def resample(img: nib.Nifti1Image, contrast: str, reference_img: nib.Nifti1Image) -> tuple[nib.Nifti1Image, Any]:
    """Register FLAIR and T1w, and resample an image to the grid of the other: (image, Registration)."""
    pair = (img, reference_img) if contrast == FLAIR.suffix else (reference_img, img)
    to_t1w, about = loading.align(*pair)
    way = np.eye(4) if to_t1w is None else to_t1w if contrast == FLAIR.suffix else np.linalg.inv(to_t1w)
    data = placement.laid_over(placement.beside(img, reference_img, contrast), way, reference_img)
    return nifti.with_affine(nib.Nifti1Image(data, reference_img.affine), reference_img.affine), about


def lesions_in(output_img: nib.Nifti1Image, reference_img: nib.Nifti1Image, segmenter: Segmenter) -> np.ndarray:
    """Return the lesions in the output of a segmenter: (X, Y, Z) bool array on the grid of the reference image.

    Raises
    ------
    ValueError
        If the output has another grid.
    """
    nifti.check_image(output_img, f'the output of {segmenter.title}')
    output_img = placement.beside(output_img, reference_img, f'the output of {segmenter.title}')
    if not placement.same_grid(output_img, reference_img):
        raise ValueError(
            f'the output of {segmenter.title} (shape {output_img.shape[:3]}) does not have the grid of '
            f'the {nifti.called(reference_img, "image")} (shape {reference_img.shape[:3]}); if sform and qform of the '
            'image differ, correct its header'
        )
    values = nifti.one_volume(output_img)
    if segmenter.labels:
        return np.isin(np.rint(np.nan_to_num(values)), segmenter.labels)
    return placement.is_lesion(values, name=f'the output of {segmenter.title}')


def provenance(image: inputs.Inputs, segmenter: Segmenter, scans: Scans, options: Options) -> dict[str, Any]:
    """Return the sidecar of a mask: sources, program, version, command, labels and threshold."""
    words = shlex.join([*segmenter.command, *segmenter.arguments(scans)]).replace(str(scans.folder), WORK)
    version = segmenter.version()
    tool = {'Name': segmenter.title, **({'Version': version} if version else {}), 'Command': words}
    about: dict[str, Any] = {
        'Description': f'lesions segmented by {segmenter.title}',
        'Sources': [image.uri_beside(path) for path in image.segmented_from],
        'SpatialReference': image.uri_beside(source_of(image, segmenter.reference(scans.files))),
        'Manual': False,
    }
    if segmenter.labels:
        about['LesionLabels'] = list(segmenter.labels)
    if segmenter.threshold is not None and '--threshold' not in segmenter.command:
        about['Threshold'] = segmenter.threshold
    about['GeneratedBy'] = [tool, {'Name': naming.APP_NAME, 'Version': options.version}]
    return about | {'InputSHA256': {path.name: hash_of(path) for path in image.segmented_from}}
