"""Pairing rules: lesion mask, brain mask and segmentation of each image."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..modality import FLAIR, T1W, get
from . import ambiguity, errors, indexing, inputs, meaning, naming, segmentations, tools

logger = logging.getLogger('bids_lesionfill')


OTHER_SUFFIXES = ('PD', 'PDT2', 'T2star', 'T2starw', 'DIR')  # on which raters may draw, beside the modalities


@dataclass(frozen=True)
class Candidates:
    """Files of a participant that may belong to an image."""

    rivals: dict  # suffix -> entities (list of dict) of all images, of all sessions
    masks: list  # lesion masks, BIDS files
    others: dict  # suffix -> images (BIDS files) on which a mask may be drawn, or that show the white matter
    segmentations: list  # tissue segmentations, BIDS files


def find_inputs(
    layout: Any,
    derivatives: dict[str, Path],
    modality: str = T1W.name,
    participant_labels: Collection[str] | None = None,
    session_labels: Collection[str] | None = None,
    filters: dict[str, dict[str, Any]] | None = None,
    mask_labels: Sequence[str] = naming.MASK_LABELS,
    mask_desc: str | None = None,
    needs_mask: bool = True,
) -> dict[str, list[inputs.Inputs]]:
    """Pair every image with its lesion mask and, unless it is a T1w, with a T1w, by entities.

    Parameters
    ----------
    layout : BIDSLayout
    derivatives : dict of name -> path
    modality : str
        See `modality.MODALITIES`.
    participant_labels, session_labels : list of str, optional
        Without `sub-` and `ses-`; all if not given.
    filters : dict, optional
        pybids filters for `t1w`, `flair`, `lesion_mask` and `tissue`; None for `tissue`: no segmentation is used.
    mask_labels : tuple of str
        Accepted `label-` entities (or `desc-`, for `desc-lesion_mask`).
    mask_desc : str, optional
        Only masks with this `desc-`.
    needs_mask : bool
        Whether an image without a mask cannot be used.

    Returns
    -------
    dict of subject (without sub-) -> list of Inputs

    Raises
    ------
    UsageError
        If a participant asked for is not in the dataset.
    """
    filters, suffix, needs_t1w = filters or {}, get(modality).suffix, get(modality).needs_t1w
    subjects = sorted(layout.get_subjects(scope='raw'))
    missing = sorted(set(participant_labels or []) - set(subjects))
    if missing:
        raise errors.UsageError(f'participants {missing} are not in the dataset, which has {subjects}')

    def images_of(subject: str, suffix: str, every_session: bool = False) -> list[indexing.IndexedFile]:
        query = {'subject': subject, 'suffix': suffix, 'extension': naming.NIFTI, 'scope': 'raw'}
        chosen = filters.get(suffix.lower(), {})
        if every_session:
            chosen = {key: value for key, value in chosen.items() if key != 'session'}
        return [image for image in layout.get(**(query | chosen)) if naming.is_magnitude(image.filename)]

    # Files of tools have no entities by which they could be chosen.
    tool_labels = not filters.get('tissue') and filters.get('tissue', {}) is not None
    tool_masks = mask_desc is None and tuple(mask_labels) == naming.MASK_LABELS and not filters.get('lesion_mask')
    layout = indexing.ForEachSubject(layout, participant_labels)
    found = {}
    for subject in participant_labels or subjects:
        # Files may be meant for images of sessions that are left out now, and done by another job.
        rivals = {
            rival: [image.get_entities() for image in images_of(subject, rival, every_session=True)]
            for rival in {T1W.suffix, FLAIR.suffix, suffix}
        }
        images = [
            image
            for image in images_of(subject, suffix)
            if not session_labels or image.get_entities().get('session') in session_labels
        ]
        masks = lesion_masks_of(layout, subject, filters.get('lesion_mask', {}), mask_labels, mask_desc)
        spaces = {modality_of_space(mask.filename) for mask in masks} - {None, T1W.suffix}
        suffixes = {T1W.suffix} if needs_t1w else {FLAIR.suffix, T1W.suffix, *spaces}
        others = {other: images_of(subject, other) for other in suffixes}
        tissue_files = segmentations.segmentations_of(layout, subject, filters.get('tissue', {}))
        candidates = Candidates(rivals, masks, others, tissue_files)
        paired = [pair(image, candidates, layout, derivatives, needs_mask, tool_masks, tool_labels) for image in images]
        found[subject] = one_of_each_name(paired)
    return found


def one_of_each_name(images: list[inputs.Inputs]) -> list[inputs.Inputs]:
    """Return images (list of Inputs), of those with one name (`.nii` beside `.nii.gz`) the first, with its problem."""
    by_name = {}
    for image in images:
        by_name.setdefault(image.image_file.with_name(image.name), []).append(image)
    return [
        twins[0]
        if len(twins) == 1
        else replace(twins[0], problem=ambiguity.twins_problem(twin.image_file for twin in twins))
        for twins in by_name.values()
    ]


def lesion_masks_of(
    layout: indexing.ForEachSubject,
    subject: str,
    mask_filter: dict[str, Any],
    mask_labels: Sequence[str] = naming.MASK_LABELS,
    mask_desc: str | None = None,
) -> list[indexing.IndexedFile]:
    """Return all lesion masks of a subject, in derivatives and beside the image (`lesion_kind`).

    Those in a space in which no image of the subject is, as that of a template, are left out.

    Parameters
    ----------
    mask_filter : dict
        pybids filters. A `space` in it lets masks of that space through.
    """
    masks = []
    for mask in layout.get(**({'subject': subject, 'extension': naming.NIFTI} | mask_filter)):
        entities = naming.name_entities(mask.filename)
        if naming.lesion_kind(mask.filename, mask_labels) is None or mask_desc not in (None, entities.get('desc')):
            continue
        space = entities.get('space', 'orig').casefold()
        of_visit = naming.SPACES.get(space) in (T1W.suffix, FLAIR.suffix)
        known = of_visit or space in naming.NATIVE_SPACES or 'space' in mask_filter
        if known or space in image_spaces(layout, subject):
            masks.append(mask)
        else:
            logger.warning(
                '%s is in the space of %s, and no image of sub-%s is: not used. If they lie on each other all the '
                'same, --bids-filter-file FILE takes it, with %s in FILE',
                mask.filename,
                entities['space'],
                subject,
                json.dumps({'lesion_mask': {'space': entities['space']}}),
            )
    alike = {}
    for mask in masks:  # a tool that writes a mask and probabilities of it means the mask
        key = (
            Path(mask.path).parent,
            naming.space_of(mask.filename),
            *(mask.get_entities().get(key) for key in naming.IMAGE_KEYS),
        )
        kind = naming.MASK_KINDS.index(naming.lesion_kind(mask.filename, mask_labels))
        alike.setdefault(key, {}).setdefault(kind, []).append(mask)
    return [mask for kinds in alike.values() for mask in kinds[min(kinds)]]


def image_spaces(layout: indexing.ForEachSubject, subject: str) -> set[str]:
    """Return what a mask may call the spaces of a subject's images: their suffixes and `space-`, in small letters."""
    names = [image.filename for image in layout.get(subject=subject, extension=naming.NIFTI, scope='raw')]
    names = [name for name in names if naming.lesion_kind(name) is None]
    spaces = {naming.name_entities(name)['space'] for name in names if 'space' in naming.name_entities(name)}
    return {space.casefold() for space in spaces | {naming.suffix_of(name) for name in names}}


def modality_of_space(filename: str) -> str | None:
    """Return the suffix of the image in whose space a file is, by its name: T1w, FLAIR, T2w; None if it names none."""
    space = naming.name_entities(filename).get('space', '')
    return naming.space_of(filename) or {name.casefold(): name for name in OTHER_SUFFIXES}.get(space.casefold())


def masks_in_space(
    image: dict[str, Any], images: Sequence[dict[str, Any]], masks: list[indexing.IndexedFile]
) -> list[indexing.IndexedFile]:
    """Return the lesion masks that lie in the space of an image: a raw image may be in that of a template (ATLAS).

    Parameters
    ----------
    image : dict
        Its entities.
    images : list of dict
        Entities of all images of the subject and modality, this one among them.
    masks : list of BIDS files
    """
    spaces = {other.get('space') for other in images} - {None}
    space_of = {mask.path: naming.name_entities(mask.filename).get('space') for mask in masks}
    unnamed = [mask for mask in masks if space_of[mask.path] not in spaces]
    if image.get('space') is None:
        return unnamed
    own = [mask for mask in masks if space_of[mask.path] == image['space']]
    return own or (unnamed if all(other.get('space') for other in images) else [])


def pair(  # noqa: C901 - one rule after the other, for one image; in parts they would hand on eight values
    image: indexing.IndexedFile,
    candidates: Candidates,
    layout: indexing.ForEachSubject,
    roots: dict[str, Path],
    needs_mask: bool = True,
    tool_masks: bool = True,
    tool_labels: bool = True,
) -> inputs.Inputs:
    """Return an image with its lesion mask, its T1w or (of a T1w) FLAIR, and tissue classes; or why it cannot be used.

    Parameters
    ----------
    candidates : Candidates
        A file that could be for images of several visits is used for none.
    tool_masks, tool_labels : bool
        Whether files that tools wrote under names of their own are looked for.
    """
    entities, rivals = image.get_entities(), candidates.rivals
    relative_path = Path(image.path).relative_to(Path(layout.root)).as_posix()
    name = naming.strip_extension(image.filename)
    sources = [f'bids:raw:{relative_path}']
    lesion_mask_file = tissue_file = flair_file = mask_space = fluid_file = None
    problem, lesion_labels, mask_names, siblings = '', (), {}, []
    is_t1w, t1w_images = entities['suffix'] == T1W.suffix, rivals[T1W.suffix]
    same_space = [rival for rival in rivals[entities['suffix']] if rival.get('space') == entities.get('space')]
    masks = masks_in_space(entities, rivals[entities['suffix']], candidates.masks)
    masks = [mask for mask in masks if is_t1w or may_hold_lesions_of(mask, entities['suffix'])]
    try:
        mask = choose_mask(entities, same_space, masks, name, roots)
        if mask is None and is_t1w:
            mask = choose_mask_on_flair(entities, rivals[FLAIR.suffix], masks, name, roots)
        if mask is not None:
            lesion_mask_file, mask_names = Path(mask.path), meaning.names_of(mask)
        elif tool_masks:
            lesion_mask_file, lesion_labels = tool_mask_of(entities, rivals[entities['suffix']], roots, name)
    except ambiguity.AmbiguousMaskError as error:
        problem = str(error)
    else:
        if lesion_mask_file is not None:
            mask_space = modality_of_space(lesion_mask_file.name)
            if mask_space == FLAIR.suffix and not is_t1w and entities['suffix'] != FLAIR.suffix:
                logger.warning('%s is treated as delineated on %s', lesion_mask_file.name, name)
            sources.append(naming.uri(lesion_mask_file, roots, layout.root))
        elif needs_mask:
            problem = inputs.NO_MASK
    tissue_entities = entities
    if is_t1w:
        flairs = closest(entities, of_visit(entities, candidates.others.get(FLAIR.suffix, [])))
        fluid_file = Path(flairs[0].path) if flairs else None
        if lesion_mask_file is not None and mask_space != T1W.suffix and not lesion_labels:
            drawn_on = candidates.others.get(mask_space or FLAIR.suffix, [])
            flair = choose_flair(entities, mask_names, drawn_on, name)
            flair_file = Path(flair.path) if flair else None
        if lesion_mask_file is not None:
            alike = of_visit(entities, candidates.others[T1W.suffix])
            meant = [file for file in alike if meaning.meant_by(mask_names, [file.get_entities()])]
            siblings = [file for file in meant if file.path != image.path]
    else:
        tissue = choose_t1w(entities, candidates.others[T1W.suffix], name)
        if tissue is None:
            problem = problem or 'no T1w of the same session, in which white matter is found'
        else:
            tissue_file, tissue_entities = Path(tissue.path), tissue.get_entities()
            sources.append(naming.uri(tissue_file, roots, layout.root))
    brain_masks = segmentations.brain_masks_of(layout, entities['subject'])
    brain_mask_file = segmentations.choose_brain_mask(tissue_entities, t1w_images, brain_masks)
    if brain_mask_file is not None:
        sources.append(naming.uri(brain_mask_file, roots, layout.root))
    segmentation = segmentations.choose_segmentation(
        tissue_entities, t1w_images, candidates.segmentations, roots, tool_labels
    )
    if segmentation is not None:
        sources += [naming.uri(file, roots, layout.root) for file in segmentation.files]
    return inputs.Inputs(
        entities['subject'],
        entities.get('session'),
        name,
        Path(image.path),
        relative_path,
        lesion_mask_file,
        tissue_file,
        brain_mask_file,
        problem,
        tuple(sources),
        lesion_labels,
        mask_space,
        flair_file,
        segmentation,
        tuple(Path(file.path) for file in siblings),
        fluid_file,
    )


def of_visit(image: dict[str, Any], files: Sequence[indexing.IndexedFile]) -> list[indexing.IndexedFile]:
    """Return the files of the session and space of an image (its entities), ordered by name."""
    keys = ('session', 'space')
    alike = [file for file in files if all(file.get_entities().get(key) == image.get(key) for key in keys)]
    return sorted(alike, key=lambda file: file.filename)


def may_hold_lesions_of(mask: indexing.IndexedFile, suffix: str) -> bool:
    """Return False for a mask in the space of another image than this one, T1w and FLAIR of its visit."""
    return naming.space_of(mask.filename) in (None, suffix, T1W.suffix, FLAIR.suffix)


def tool_mask_of(
    image_entities: dict[str, Any], all_images: Sequence[dict[str, Any]], roots: dict[str, Path], name: str
) -> tuple[Path | None, tuple[int, ...]]:
    """Return the lesion mask that a tool wrote for the visit of an image, and which labels are lesions; or (None, ()).

    It serves all T1w of the visit.

    Raises
    ------
    ambiguity.AmbiguousMaskError
        If the visit has several images of another modality.
    """
    own = tools.find_lesion_masks(roots.values(), image_entities['subject'], image_entities.get('session'))
    if not own:
        return None, ()
    path, labels = choose_own(own, image_entities['suffix'])
    meant = meaning.meant_by({'session': image_entities.get('session')}, all_images)
    if len(meant) > 1 and image_entities['suffix'] != T1W.suffix:
        raise ambiguity.several_images(path, image_entities, meant, name)
    return path, labels


def choose_own(own: Sequence[Any], suffix: str) -> tuple[Path, tuple[int, ...]]:
    """Choose a tool's mask in the image's space, else the first: (path, labels that are lesions)."""
    return next((found for found in own if naming.space_of(found[0].name) == suffix), own[0])


def choose_t1w(
    image_entities: dict[str, Any], t1w_images: Sequence[indexing.IndexedFile], name: str
) -> indexing.IndexedFile | None:
    """Choose the best-fitting T1w of an image's session, the first by name if tied; None without."""
    best = closest(image_entities, t1w_images)
    if len(best) > 1:
        names = ', '.join(t1w.filename for t1w in best)
        logger.warning('%s: %d T1w fit equally (%s); white matter is found in the first', name, len(best), names)
    return next(iter(best), None)


def choose_flair(
    t1w_entities: dict[str, Any], mask_names: dict[str, str], flair_images: Sequence[indexing.IndexedFile], name: str
) -> indexing.IndexedFile | None:
    """Choose the FLAIR of a T1w's session that its mask was probably delineated on; None without.

    It is the one with most of what the mask names, then the one that fits the T1w best, then the first by name.
    """
    best = closest(t1w_entities, flair_images, mask_names)
    if len(best) > 1:
        names = ', '.join(flair.filename for flair in best)
        logger.warning('%s: %d FLAIR fit equally (%s); the mask is taken for one of the first', name, len(best), names)
    return next(iter(best), None)


def closest(
    image_entities: dict[str, Any], files: Sequence[indexing.IndexedFile], first_of_all: Any = ()
) -> list[indexing.IndexedFile]:
    """Return the files of an image's session that share the most entities with it, by name.

    What neither names is in common. Entities in `first_of_all` (dict) count before all others.
    """
    in_common = {}
    for file in sorted(files, key=lambda file: file.filename):
        entities = file.get_entities()
        if entities.get('session') == image_entities.get('session'):
            n_first = sum(entities.get(key) == first_of_all[key] for key in first_of_all)
            n_same = sum(entities.get(key) == image_entities.get(key) for key in naming.SCAN_KEYS)
            in_common.setdefault((n_first, n_same), []).append(file)
    return in_common[max(in_common)] if in_common else []


def choose_mask(
    image_entities: dict[str, Any],
    all_images: Sequence[dict[str, Any]],
    masks: list[indexing.IndexedFile],
    name: str,
    roots: dict[str, Path] | None = None,
) -> indexing.IndexedFile | None:
    """Return the mask that fits an image best; None if there is none.

    A mask fits if the entities that it names (session, acquisition, run) are those of the image. One that names
    fewer is taken for all T1w of a visit that could be meant, as they show the same lesions; of a FLAIR, only if no
    other could be. Of those that fit equally, one in the image's own space (`space-T1w`, `space-FLAIR`) is taken.

    Parameters
    ----------
    roots : dict of name -> path, optional
        Of derivatives. Where they are not given, a mask is taken for one image alone.

    Raises
    ------
    ambiguity.AmbiguousMaskError
        If two fit equally well, or one fits images of several visits; it names the files, and what to do.
    """
    fitting = {}
    for mask in masks:
        if meaning.meant_by(meaning.names_of(mask), [image_entities]):
            fitting.setdefault(len(meaning.names_of(mask)), []).append(mask)
    if not fitting:
        return None
    best = fitting[max(fitting)]
    for space in (image_entities['suffix'], None):
        best = [mask for mask in best if naming.space_of(mask.filename) == space] or best
    if len(best) > 1:
        raise ambiguity.several_masks(best, name, roots or {})
    mask = best[0]
    meant = meaning.meant_images(mask, all_images, masks)
    is_shared = roots is not None and image_entities['suffix'] == T1W.suffix
    if len(meant) > 1 and not (is_shared and len({image.get('session') for image in meant}) == 1):
        if roots is None:
            words = f'{name} among them: name the mask by session, run and acquisition, as the image'
            whose = f'{len(meant)} images of sub-{image_entities["subject"]}'
            raise ambiguity.AmbiguousMaskError(f'{mask.filename} fits {whose}, {words}')
        raise ambiguity.several_images(mask.path, image_entities, meant, name)
    return mask


def choose_mask_on_flair(
    t1w_entities: dict[str, Any],
    flair_images: Sequence[dict[str, Any]],
    masks: list[indexing.IndexedFile],
    name: str,
    roots: dict[str, Path],
) -> indexing.IndexedFile | None:
    """Return the mask that names a FLAIR of a T1w's visit and is in its space; None if none does.

    Raises
    ------
    ambiguity.AmbiguousMaskError
        If there are several.
    """
    on_flair = [mask for mask in masks if naming.space_of(mask.filename) == FLAIR.suffix]
    flairs = meaning.meant_by({'session': t1w_entities.get('session')}, flair_images)
    best = [mask for flair in flairs for mask in meaning.own_files(flair, flair_images, on_flair)]
    if len(best) > 1:
        raise ambiguity.several_masks(best, name, roots)
    return next(iter(best), None)
