"""The participant level: find images and masks, fill lesions or paint new ones, write derivatives and a report."""

from __future__ import annotations

import collections
import contextlib
import importlib.metadata
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..diffusion import registry as fillers
from ..layout import derivatives as layout_derivatives
from ..layout import (
    files,
    indexing,
    inputs,
    naming,
    near_misses,
    ownership,
    pairing,
    precomputed,
    raw,
    tables,
    tools,
    written,
)
from ..layout import provenance as layout_provenance
from ..layout import status as layout_status
from ..modality import get
from ..report import methods, references
from ..segmenters import registry as segmenters
from ..thickness import engine, registry
from . import config, copying, longitudinal, progress, reporting, segmenting, visits

if TYPE_CHECKING:
    from ..images.anatomy import Anatomy
    from .options import Options

logger = logging.getLogger('bids_lesionfill')


OK, SOME_FAILED, NOTHING_TO_DO = 0, 1, 66


def run(options: Options) -> int:
    """Process all participants selected by `options` (cli.Options); return the exit code.

    One participant that fails does not stop the others. What is already there, from the same input and options, is
    not done again.
    """
    derivatives, found, donor = prepare(options)
    with writing(options, derivatives) as run_id:
        return conclude(run_all(found, donor, options, run_id), options, derivatives)


def prepare(options: Options) -> tuple[dict[str, Path], dict[str, list[inputs.Inputs]], inputs.Inputs | None]:
    """Find all images; nothing is written yet.

    Returns
    -------
    derivatives : dict of name -> path
    found : dict of subject -> list of layout.Inputs
    donor : layout.Inputs or None
        Whose lesions are taken (`--mask-from`).

    Raises
    ------
    UsageError, thickness.EngineUnavailable
        If something that was asked for is not there.
    """
    derivatives = derivatives_of(options)
    make_engines(options)  # one that is not available stops the run before any work
    bids_layout = indexing.open_layout(options.bids_dir, derivatives.values(), options.bids_database_dir)
    found = segmenting.plan(find_images(bids_layout, options, derivatives), options, derivatives)
    donor = visits.find_donor(bids_layout, options, derivatives) if options.mask_from else None
    files.check_links(options.top_dir, options.bids_dir)
    files.check_folders(options.output_dir, found)
    return derivatives, visits.without_donor(found, options.mask_from), donor


def derivatives_of(options: Options) -> dict[str, Path]:
    """Return the folders to search for masks and segmentations: dict of name -> path.

    Folders that were named, and those of the dataset unless one of the former can hold lesion masks.
    """
    named = options.derivatives or {}
    if any(tools.may_hold_masks(path) for path in named.values()):
        return named
    return (
        indexing.find_derivatives(options.bids_dir, [options.output_dir, *options.thickness_results.values()]) | named
    )


@contextlib.contextmanager
def writing(options: Options, derivatives: dict[str, Path]) -> Iterator[str]:
    """Write what describes the dataset, and let other runs see that this one is at work there; gives its id."""
    options.top_dir.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(options.top_dir)
    with files.lock(options.top_dir, shared=True):
        layout_derivatives.write_dataset_files(
            options.output_dir,
            options.bids_dir,
            derivatives,
            options.version,
            citation_of(options),
            ownership.note_source(options.bids_dir),
            segmenters.descriptions(),
        )
        if options.raw_dir is not None:
            raw.write_top(options.raw_dir, options.bids_dir, options.version)
        yield layout_status.new_run_id()


def run_all(
    found: dict[str, list[inputs.Inputs]], donor: inputs.Inputs | None, options: Options, run_id: str
) -> dict[str, str]:
    """Process participants one after the other; return a dict of subject -> status."""
    models = load_models([image for images in found.values() for image in images], options)
    engines = make_engines(options)
    statuses, started = {}, time.monotonic()
    with progress.bar(len(found), 'participants', 'participant') as bar:
        for number, (subject, images) in enumerate(found.items(), start=1):
            left = progress.time_left(started, number - 1, len(found))
            logger.info('sub-%s (%d of %d%s)', subject, number, len(found), left)
            layout_status.write_config(options.output_dir, subject, run_id, options.config)
            with files.lock(options.output_dir / f'sub-{subject}'):  # files of two runs must not mix
                statuses[subject] = run_participant(subject, images, models, engines, donor, run_id, options)
            bar.update()
            if statuses[subject] == 'failed' and options.stop_on_first_crash:
                break
    return statuses


def conclude(statuses: dict[str, str], options: Options, derivatives: dict[str, Path]) -> int:
    """Write the participants table and log the outcome of all participants; return the exit code."""
    layout_status.write_table(options.output_dir)
    written.write_table(options.output_dir)
    layout_provenance.write_table(options.output_dir)
    unmasked = [subject for subject, status in statuses.items() if status == inputs.NO_MASK]
    if unmasked and options.mode == 'fill':
        said = near_misses.describe(options.bids_dir, derivatives, unmasked, options.mask_labels, options.mask_desc)
        names = ', '.join(f'sub-{subject}' for subject in unmasked[:8]) + (', ...' if len(unmasked) > 8 else '')
        logger.warning('no lesion mask of %d participant(s) (%s): %s', len(unmasked), names, said)
    failed = [f'sub-{subject}' for subject, status in statuses.items() if status == 'failed']
    if failed:
        logger.error('failed: %s; for the reasons see %s', ', '.join(failed), options.output_dir / 'participants.tsv')
        return SOME_FAILED
    if set(statuses.values()) <= {inputs.NO_MASK, inputs.DONOR, reporting.NO_IMAGE} and options.mode == 'synth':
        logger.error('nothing to do: no %s with a T1w in %s', ' or '.join(options.modalities), options.bids_dir)
        return NOTHING_TO_DO
    if set(statuses.values()) <= {inputs.NO_MASK, reporting.NO_IMAGE}:
        logger.error('nothing to do: no %s with a lesion mask in %s', ' or '.join(options.modalities), options.bids_dir)
        return NOTHING_TO_DO
    return OK


def find_images(
    bids_layout: indexing.ForEachSubject, options: Options, derivatives: dict[str, Path]
) -> dict[str, list[inputs.Inputs]]:
    """Find all images to process, ordered by participant and modality: dict of subject -> list of Inputs."""
    found = {}
    for modality in options.modalities:
        of_modality = pairing.find_inputs(
            bids_layout,
            derivatives,
            modality,
            options.participant_labels,
            options.session_labels,
            options.filters,
            options.mask_labels,
            options.mask_desc,
            needs_mask=options.mode == 'fill',
        )
        for subject, images in of_modality.items():
            found.setdefault(subject, []).extend(images)
    return {subject: longitudinal.with_masks_of_sessions(images, options) for subject, images in found.items()}


def load_models(images: Iterable[inputs.Inputs], options: Options) -> dict[str, fillers.DeferredFiller]:
    """Return the filler for each modality of some images (dict of registry.DeferredFiller), loaded when needed."""
    usable = {image.modality for image in images if not image.problem and not options.reports_only}
    return {
        modality: fillers.DeferredFiller(options.model_of(modality), options.device, modality) for modality in usable
    }


def run_participant(
    subject: str,
    images: list[inputs.Inputs],
    models: dict[str, fillers.DeferredFiller],
    engines: dict[str, engine.Engine],
    donor: inputs.Inputs | None,
    run_id: str,
    options: Options,
) -> str:
    """Process all images of a participant, write its report and status; return the status, never raise."""
    results = work_on(images, models, engines, donor, run_id, options)
    at_work = 'report'
    try:
        status = reporting.finish(subject, results, run_id, options, methods_text)
        layout_provenance.write_participant(options.output_dir, subject)
        at_work = f'{options.output_layout}_layout'
        write_for_others(subject, images, status == 'failed', options)
        return status
    except Exception as error:
        message = layout_status.note_crash(error, at_work, subject, run_id, options.output_dir)
        with contextlib.suppress(OSError):
            write_for_others(subject, images, True, options)
        status = {'status': 'failed', 'images': 0, 'message': message}
        try:
            layout_status.write_status(options.output_dir, subject, run_id, status)
        except OSError as failure:  # the disk is full
            logger.error('sub-%s: its status cannot be written: %s', subject, failure)
        return 'failed'


def write_for_others(subject: str, images: list[inputs.Inputs], has_failed: bool, options: Options) -> None:
    """Write what other tools read of a participant (`--output-layout`), or remove it if the participant failed."""
    if options.output_layout == 'fmriprep':
        if has_failed:
            precomputed.remove_participant(options.output_dir, images)
        else:
            precomputed.write_participant(options.output_dir, images)
    elif options.raw_dir is not None and has_failed:
        raw.remove_participant(options.raw_dir, options.bids_dir, subject, options.session_labels)
    elif options.raw_dir is not None:
        of_raw = (options.raw_dir, options.bids_dir, options.output_dir, subject, images, options.session_labels)
        raw.write_participant(*of_raw)


def run_images(images: list[inputs.Inputs], donor: inputs.Inputs | None, options: Options, run_id: str) -> None:
    """Process some images of a participant; the outcome is recorded in the output folder."""
    work_on(images, load_models(images, options), make_engines(options), donor, run_id, options)


def work_on(
    images: list[inputs.Inputs],
    models: dict[str, fillers.DeferredFiller],
    engines: dict[str, engine.Engine],
    donor: inputs.Inputs | None,
    run_id: str,
    options: Options,
) -> list[tuple[inputs.Inputs, str, dict[str, Any]]]:
    """Fill and measure images, or paint lesions into them; list of (Inputs, desc, dict with `status` and `message`)."""
    if options.mode == 'synth':
        return visits.run(images, models, donor, run_id, options)
    images = segmenting.make_masks(images, options, run_id)
    n_t1w = collections.Counter(image.session for image in images if get(image.modality).is_measured)
    results, of_participant = {}, visits.visits_of(images, options)
    longitudinal.join(of_participant, options)
    for visit in of_participant:
        filled = [(image, run_image(visit, image, models, run_id)) for image in visit.images]
        for image, result in filled:
            is_only_t1w = n_t1w[image.session] == 1
            results[image.name] = measure_thickness(visit, image, result, is_only_t1w, engines, run_id)
    return [(image, 'filled', results[image.name]) for image in images]


def run_image(
    visit: visits.Visit, image: inputs.Inputs, models: dict[str, fillers.DeferredFiller], run_id: str
) -> dict[str, Any]:
    """Fill one image unless it is done; return what became of it as a dict with `status` and `message`."""
    options = visit.options
    is_copied = copying.is_wanted(image, options)
    if image.problem and not is_copied:
        status = inputs.NO_MASK if image.problem == inputs.NO_MASK else 'failed'
        logger.log(logging.ERROR if status == 'failed' else logging.WARNING, '%s: %s', image.name, image.problem)
        return {'status': status, 'message': image.problem}
    if options.reports_only:
        done = bool(layout_derivatives.read_sidecar(naming.output_files(options.output_dir, image)['filled']))
        return {'status': 'filled'} if done else {'status': 'failed', 'message': 'not filled yet'}
    try:
        if is_copied:
            copying.copy_image(image, options)
            return {'status': 'filled'}
        seconds = fill_image(visit, image, models[image.modality])
        if seconds is not None:
            layout_status.note_seconds(seconds, image.name, image.subject, run_id, options.output_dir)
    except Exception as error:
        return {
            'status': 'failed',
            'message': layout_status.note_crash(error, image.name, image.subject, run_id, options.output_dir),
        }
    return {'status': 'filled'}


def fill_image(visit: visits.Visit, image: inputs.Inputs, model: fillers.DeferredFiller) -> float | None:
    """Fill one image and write its derivatives, unless they are there from the same input and options.

    Returns
    -------
    float
        Seconds that it took; None if all was there.
    """
    image, options = visit.settle(image), visit.options
    image = visit.with_fluid_file(image)
    layout_derivatives.check_files(image)
    result_options = options.of_result(image.modality) | visit.fingerprint_of_others
    run_hash = layout_derivatives.hash_run(image, result_options, model.sha256, options.version)
    if layout_derivatives.is_finished(options.output_dir, image, run_hash, options.n_samples):
        logger.info('%s: already done', image.name)
        return None
    if get(image.modality).is_measured:
        check_results(image, options)
    logger.info('%s: lesion mask %s', image.name, image.lesion_mask_file)
    model, started = fillers.load_filler(model.loaded, modality=image.contrast), time.monotonic()
    with progress.of_parts(image.name) as report_tiles:
        filling, view = visit.fill(image, model, report_tiles)
    visits.write_way(view, options.output_dir)
    image = longitudinal.write_way(visit, image, options.output_dir)
    command = config.command_of(options, image.subject, image.modality)
    provenance = layout_provenance.of_result(result_options, run_hash, options.version, 'fill', command)
    tables.remove_thickness(options.output_dir, image)  # what was measured on an older filling
    layout_derivatives.write_filling(options.output_dir, image, filling, provenance)
    for warning in filling.warnings:
        logger.warning('%s: %s', image.name, warning)
    seconds = time.monotonic() - started
    logger.info('%s: %d lesion(s) filled in %.0f s', image.name, len(filling.lesions), seconds)
    return seconds


def check_results(image: inputs.Inputs, options: Options) -> None:
    """Raise ValueError if an image is to be filled anew whose filling other tools have measured."""
    folders = options.thickness_results.values()
    readers = [name for name in options.thickness if any(registry.has_results(path, [name]) for path in folders)]
    if readers and layout_derivatives.read_sidecar(naming.output_files(options.output_dir, image)['filled']):
        raise ValueError(
            f'it was filled from other inputs or with other options, and {" and ".join(readers)} measured that: give '
            'the same ones, or fill first without --thickness and measure anew'
        )


def make_engines(options: Options) -> dict[str, engine.Engine]:
    """Return the requested thickness engines, all available; none for a run that only writes reports."""
    results = (options.derivatives or {}) | options.thickness_results
    settings = engine.Settings(results, options.allow_download, options.work_dir, progress.of_parts)
    return {} if options.reports_only else registry.make_engines(options.thickness, settings)


def measure_thickness(
    visit: visits.Visit,
    image: inputs.Inputs,
    result: dict[str, Any],
    is_only_t1w: bool,
    engines: dict[str, engine.Engine],
    run_id: str,
) -> dict[str, Any]:
    """Measure an image that was filled, if it is a T1w; return what became of it, as `run_image` does."""
    options = visit.options
    if not engines or result['status'] != 'filled' or not get(image.modality).is_measured:
        return result
    from . import measuring

    seed = layout_derivatives.seed_of(image, options.random_seed) % 2**32

    def find_anatomy() -> Anatomy:
        return visit.anatomy_to_measure(image)

    def find_lesions() -> Any:
        return visit.view(visit.settle(image)).lesions

    find = None if visit.member is None else find_lesions
    task = measuring.Task(seed, options.version, options.thickness_noise, is_only_t1w, visit.choice, find)

    try:
        measuring.measure_image(image, engines, options.output_dir, find_anatomy, task, visit.opener)
    except Exception as error:
        message = layout_status.note_crash(error, f'{image.name}_thickness', image.subject, run_id, options.output_dir)
        return {'status': 'failed', 'message': message, 'is_filled': True}
    return result


def write_citation(options: Options) -> None:
    """Write `logs/CITATION.md` and `.bib`."""
    for name, text in citation_of(options).items():
        path = options.output_dir / 'logs' / f'CITATION.{name}'
        files.write_bytes(path, text.encode())
        logger.info('written: %s', path)


def citation_of(options: Options) -> dict[str, str]:
    """Return the contents of `logs/CITATION.md` and `.bib`."""
    plans = {modality: plan_of(options, modality) for modality in options.modalities}
    return references.citation(methods_text(options), methods.brought(options, plans))


def methods_text(options: Options) -> str:
    """Return a methods text about this run for a paper; see `methods.methods_text`."""
    derivatives = derivatives_of(options)
    return methods.methods_text(
        options,
        {modality: plan_of(options, modality) for modality in options.modalities},
        versions_of(methods.software_of(options)),
        tools.tools_in(derivatives.values()),
    )


def plan_of(options: Options, modality: str) -> dict[str, Any]:
    """Return the plan of the model for a modality."""
    return fillers.describe(options.model_of(modality))


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed packages: dict by name."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
