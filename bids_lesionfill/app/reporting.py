"""Report and status of a participant, from what became of its images in this run and what is there of others."""

from __future__ import annotations

import collections
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..images import registration
from ..layout import files, inputs, naming, written
from ..layout import status as layout_status
from ..modality import T1W
from ..report import page as report_page
from ..report import participant
from . import loading

if TYPE_CHECKING:
    import numpy as np

    from .options import Options

logger = logging.getLogger('bids_lesionfill')

NO_IMAGE = 'no image'
WRITTEN = ('filled', 'synthesized', 'copied')
ORDER = ('failed', *WRITTEN, inputs.DONOR)  # the first of these that one of its images has is a participant's status


def finish(
    subject: str,
    results: list[tuple[inputs.Inputs, str, dict[str, Any]]],
    run_id: str,
    options: Options,
    methods_of: Callable[[Any], str],
) -> str:
    """Write report and status of a participant; return the status.

    The report shows all that the output folder holds of the participant. It is not drawn again if it would say the
    same.

    Parameters
    ----------
    results : list of (Inputs, desc, dict with `status` and `message`)
        Of this run.
    methods_of : callable
        Gives the text for a paper, of options.
    """
    there = {(image.name, desc) for image, desc in written.find_images(options.output_dir, options.bids_dir, subject)}
    results = [
        (image, desc, {'status': 'filled'})  # of an earlier run, with a mask or --copy-unlesioned
        if result['status'] == inputs.NO_MASK and (image.name, desc) in there
        else (image, desc, result)
        for image, desc, result in results
    ]
    shown = results + held(subject, results, options)
    pages = [describe(image, desc, result, options) for image, desc, result in shown]
    name_pages(pages, shown)
    of_run = [page['status'] for page in pages[: len(results)]]
    nothing = inputs.NO_MASK if results and options.mode == 'fill' else NO_IMAGE
    status = next((s for s in ORDER if s in of_run), nothing)
    missing = set(options.modalities) - {image.modality for image, _, _ in shown}
    message = participant.status_message(pages[: len(results)], missing)
    content = {
        'label': f'sub-{subject}',
        'version': options.version,
        'status': status,
        'message': message,
        'images': pages,
        'methods': None,
    }
    if any(page.get('output') for page in pages):
        content['methods'] = methods_text(shown[len(results) :], pages[len(results) :], options, methods_of)
    by_visit = sorted(zip(shown, pages, strict=True), key=lambda both: place_of(*both[0][:2]))
    content['images'] = [page for _, page in by_visit]
    report_file = options.output_dir / f'sub-{subject}.html'
    content['key'] = key_of(content)
    if options.reports_only or report_page.read_key(report_file) != content['key']:
        for (image, desc, _), page in by_visit:
            draw(image, desc, page, options, [other for other, *_ in shown])
        report_page.write_participant(report_file, content | {'command': options.command})
    rows = [image_row(*one, page) for one, page in by_visit]
    layout_status.write_status(
        options.output_dir,
        subject,
        run_id,
        {
            'status': status,
            'images': sum(page['status'] in WRITTEN for page in pages),
            'warnings': sum(len(page.get('warnings') or ()) for page in pages),
            'message': message or None,
            'images_done': rows,
        },
    )
    logger.info('sub-%s: %s; report %s', subject, status, report_file)
    return status


def place_of(image: inputs.Inputs, desc: str) -> tuple[str, bool, str, str]:
    """Return what images of a participant are sorted by: visits in their order, in each the T1w first."""
    return image.name.rpartition('_')[0], image.modality != T1W.name, image.name, desc


def held(
    subject: str, results: list[tuple[inputs.Inputs, str, dict[str, Any]]], options: Options
) -> list[tuple[inputs.Inputs, str, dict[str, Any]]]:
    """Return what the output folder holds of a participant beside the results of this run, in their form."""
    done = {(image.name, desc) for image, desc, _ in results}
    found = written.find_images(options.output_dir, options.bids_dir, subject)
    return [
        (image, desc, {'status': 'filled' if desc == 'filled' else 'synthesized'})
        for image, desc in found
        if (image.name, desc) not in done
    ]


def describe(image: inputs.Inputs, desc: str, result: dict[str, Any], options: Options) -> dict[str, Any]:
    """Return a page of the report without pictures: what is known of an image."""
    page = {'name': image.name, **result}
    if result['status'] in WRITTEN or result.get('is_filled'):
        page |= participant.describe_image(image, desc, options.output_dir)
        page |= result if result['status'] == 'failed' else {}
    return page


def name_pages(pages: list[dict[str, Any]], shown: list[tuple[inputs.Inputs, str, dict[str, Any]]]) -> None:
    """Add the variant to the names of pages where an image has several variants."""
    counts = collections.Counter(image.name for image, _, _ in shown)
    for (image, desc, _), page in zip(shown, pages, strict=True):
        if counts[image.name] > 1:
            page['name'] = f'{image.name}, desc-{desc}'


def draw(image: inputs.Inputs, desc: str, page: dict[str, Any], options: Options, others: list[inputs.Inputs]) -> None:
    """Add the pictures to a page, and write them as files; `others` are all images of the participant."""
    if 'output' not in page or not image.image_file.is_file():
        return
    from ..report import pictures  # matplotlib takes seconds: a run that has nothing to do must not wait for it

    number = int(desc.removeprefix('synth') or 1) if desc != 'filled' else 1
    is_pictured = number <= participant.PICTURED_VARIANTS
    settled, known = drawn(image), participant.NOTHING
    if desc == 'filled':
        given = given_mask(settled, page.get('provenance') or {}, options)
        page['has_given_outline'] = given is not None
        known = participant.Known(given, other_of(image, others, options))
    drawing = participant.figures_of(settled, desc, options.output_dir, is_pictured, known)
    stem = image.name if desc == 'filled' else f'{image.name}_{desc}'
    page |= {'figures': drawing.figures, 'viewer': drawing.viewer, 'stem': stem}
    for name, png in pictures.png_files(page['figures']).items():
        files.write_bytes(options.output_dir / f'sub-{image.subject}' / 'figures' / f'{stem}_{name}.png', png)


def given_mask(image: inputs.Inputs, info: dict[str, Any], options: Options) -> np.ndarray | None:
    """Return the mask that was given for a filled image, on its grid; None if it is not the one of this run's options.

    Parameters
    ----------
    image : layout.Inputs
        From `drawn`.
    info : dict
        The sidecar of the filled image.
    options : Options
    """
    xfm_file = naming.xfm_file(options.output_dir, image)
    try:
        to_t1w = registration.from_itk_text(xfm_file.read_text(encoding='utf-8')) if xfm_file.is_file() else None
        view = loading.view(image, options.mask_choice, (to_t1w, {}))
        if view.lesions is None:
            return None
        given = view.lesions.on_grid(view.image_img)[0]
    except (OSError, ValueError):
        return None
    return given if given.sum() == info.get('LesionVoxelsGiven') else None


def other_of(image: inputs.Inputs, others: list[inputs.Inputs], options: Options) -> participant.Other | None:
    """Return the FLAIR beside a T1w, or the T1w beside another image: participant.Other; None if there is none."""
    other_file = image.tissue_file or next(
        (o.image_file for o in others if o.tissue_file == image.image_file and o.modality == 'FLAIR'), image.flair_file
    )
    if other_file is None or not other_file.is_file():
        return None
    made = [naming.output_files(options.output_dir, o)['filled'] for o in others if o.image_file == other_file]
    filled_file = next((path for path in made if path.is_file()), None)
    return participant.Other(naming.suffix_of(other_file.name), other_file, filled_file)


def drawn(image: inputs.Inputs) -> inputs.Inputs:
    """Return an image with the one on which its mask was drawn, if both can be read."""
    try:
        return loading.settle(image)
    except (OSError, ValueError):
        return image


def key_of(content: Any) -> str:
    """Return what the content of a report is known by, as SHA-256."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def methods_text(
    others: list[tuple[inputs.Inputs, str, dict[str, Any]]],
    pages: list[dict[str, Any]],
    options: Options,
    methods_of: Callable[[Any], str],
) -> str:
    """Return the methods for a paper; images of other runs are named, unless they were made with the same options."""
    modalities, named = list(options.modalities), []
    for (image, desc, _), page in zip(others, pages, strict=True):
        made_with = (page.get('provenance') or {}).get('Options')
        same_mode = (desc == 'filled') == (options.mode == 'fill')
        asked = json.loads(json.dumps(options.of_result(image.modality)))
        if same_mode and options.model is None and made_with == asked:
            modalities.append(image.modality)
        else:
            named.append(page['name'])
    text = methods_of(replace(options, modalities=tuple(dict.fromkeys(modalities))))
    if named:
        text += f' Of another run, whose options are in their provenance: {", ".join(named)}.'
    return text


def image_row(image: inputs.Inputs, desc: str, result: dict[str, Any], page: dict[str, Any]) -> dict[str, Any]:
    """Return the row of an image in `images.tsv`, see `written.IMAGE_COLUMNS`."""
    is_written = 'output' in page
    return {
        'participant_id': f'sub-{image.subject}',
        'session_id': f'ses-{image.session}' if image.session else None,
        'filename': image.relative_path,
        'modality': image.modality,
        'desc': desc if is_written else None,
        'status': page['status'],
        'lesions': len(page['lesions']) if is_written else None,
        **(page['volumes'] if is_written else {}),
        'changed_voxels': page.get('changed_voxels'),
        'warnings': len(page.get('warnings') or ()),
        'message': page.get('message') or None,
    }
