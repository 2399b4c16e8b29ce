"""Pairing rules: lesion mask, brain mask and segmentation of each image."""

import logging
from dataclasses import replace
from pathlib import Path

from ..modality import FLAIR, T1W, get
from ..text_files import read_tsv
from . import errors, indexing, inputs, naming, tools

logger = logging.getLogger('bids_lesionfill')


class AmbiguousMaskError(ValueError):
    """Several lesion masks fit one image."""


def find_inputs(
    layout,
    derivatives,
    modality=T1W.name,
    participant_labels=None,
    session_labels=None,
    filters=None,
    mask_labels=naming.MASK_LABELS,
    mask_desc=None,
    needs_mask=True,
):
    """Pair every image with its lesion mask, by subject, session, acquisition and run; all but T1w also with a T1w.

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

    def images_of(subject, suffix, every_session=False):
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
        others = images_of(subject, T1W.suffix if needs_t1w else FLAIR.suffix)
        images = [
            image
            for image in images_of(subject, suffix)
            if not session_labels or image.get_entities().get('session') in session_labels
        ]
        masks = lesion_masks_of(layout, subject, filters.get('lesion_mask', {}), mask_labels, mask_desc)
        segmentations = segmentations_of(layout, subject, filters.get('tissue', {}))
        paired = [
            pair(image, rivals, masks, others, segmentations, layout, derivatives, needs_mask, tool_masks, tool_labels)
            for image in images
        ]
        found[subject] = one_of_each_name(paired)
    return found


def one_of_each_name(images):
    """Return images (list of Inputs), of those with one name (`.nii` beside `.nii.gz`) the first, with its problem."""
    by_name = {}
    for image in images:
        by_name.setdefault(image.image_file.with_name(image.name), []).append(image)
    return [
        twins[0] if len(twins) == 1 else replace(twins[0], problem=twins_problem(twin.image_file for twin in twins))
        for twins in by_name.values()
    ]


def twins_problem(paths):
    """Return a sentence for files that differ by `.gz` alone."""
    first, *others = sorted(paths)
    return f'{" and ".join(path.name for path in (first, *others))} are two files of one name: remove one'


def lesion_masks_of(layout, subject, mask_filter, mask_labels=naming.MASK_LABELS, mask_desc=None):
    """All lesion masks of a subject, in derivatives and beside the image (`lesion_kind`), but not of templates.

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
        if space in naming.SPACES or space in naming.NATIVE_SPACES or 'space' in mask_filter:
            masks.append(mask)
        else:
            logger.warning('%s is in the space of %s, not of the patient: not used', mask.filename, entities['space'])
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


def brain_masks_of(layout, subject):
    """Brain masks of a subject's T1w images among the derivatives."""
    return [
        mask
        for mask in layout.get(subject=subject, suffix='mask', extension=naming.NIFTI, scope='derivatives')
        if mask.get_entities().get('desc') == 'brain'
        and 'space' not in mask.get_entities()
        and naming.is_anatomical(mask)
    ]


FREESURFER_DESCS = ('aseg', 'aparcaseg', 'aparcdktaseg', 'synthseg', 'fastsurfer', 'freesurfer', 'samseg')


def segmentations_of(layout, subject, tissue_filter):
    """Tissue segmentations among a subject's derivatives, without template space and lesions: list of BIDS files.

    Parameters
    ----------
    tissue_filter : dict or None
        pybids filters; None: none are wanted.
    """
    if tissue_filter is None:
        return []
    query = {'subject': subject, 'suffix': ['dseg', 'probseg'], 'extension': naming.NIFTI, 'scope': 'derivatives'}
    files = layout.get(**(query | tissue_filter))
    return [
        file
        for file in files
        if naming.lesion_kind(file.filename) is None
        and naming.is_anatomical(file)
        and (naming.space_of(file.filename) == T1W.suffix or 'space' not in naming.name_entities(file.filename))
    ]


def names_of(file):
    """What a file names of the entities by which images are told apart."""
    entities = file.get_entities()
    return {key: entities[key] for key in naming.IMAGE_KEYS if key in entities}


def meant_by(names, images):
    """Images (dicts of entities) that a file could be for: those that are what it names."""
    return [image for image in images if all(image.get(key) == value for key, value in names.items())]


def meant_images(file, images, files):
    """Images (dicts of entities) that a file could be for.

    One that names just what the file does is meant alone, if each of the others has a file that names more
    (`sub-01_dseg` beside `sub-01_ce-gad_dseg`).
    """
    names = names_of(file)
    meant = meant_by(names, images)
    exact = [image for image in meant if {key: image[key] for key in naming.IMAGE_KEYS if key in image} == names]
    more = [names_of(other) for other in files if len(names_of(other)) > len(names)]
    others = [image for image in meant if image not in exact]
    return exact if exact and all(any(meant_by(n, [image]) for n in more) for image in others) else meant


def own_files(image, images, files):
    """Files that are for an image and could be for no other, those that name the most first.

    Parameters
    ----------
    image : dict
        Its entities.
    images : list of dict
        Entities of all images of the subject and modality, this one among them.
    files : list of BIDS files
    """
    fitting = [file for file in files if meant_by(names_of(file), [image])]
    own = [file for file in fitting if meant_images(file, images, files) in ([image], [])]
    return sorted(own, key=lambda file: (-len(names_of(file)), str(file.path)))


def choose_brain_mask(t1w_entities, t1w_images, masks):
    """The `desc-brain_mask` of a T1w (path): of several the one that names the most; None if none or several do."""
    own = own_files(t1w_entities, t1w_images, masks)
    best = [mask for mask in own if len(names_of(mask)) == len(names_of(own[0]))]
    return Path(best[0].path) if len(best) == 1 else None


def choose_segmentation(t1w_entities, t1w_images, files, roots, tool_files=True):
    """The segmentation that a T1w has: one of FreeSurfer's labels, which know lesions, before three classes.

    Parameters
    ----------
    t1w_entities : dict
    t1w_images : list of dict
        Entities of all T1w of the subject.
    files : list of BIDS files, or their likes
    roots : dict of name -> path
        Of derivatives, in which tools' own files are looked for.
    tool_files : bool

    Returns
    -------
    Segmentation or None
    """
    labels, classes, probable = [], [], {}
    for file in own_files(t1w_entities, t1w_images, files):
        entities, path = naming.name_entities(file.filename), Path(file.path)
        if file.get_entities()['suffix'] == 'probseg':
            probable.setdefault((path.parent, *names_of(file)), {})[entities.get('label')] = path
        elif entities.get('desc', entities.get('seg', '')).casefold() in FREESURFER_DESCS:
            labels.append(inputs.Segmentation((path,), f'labels of FreeSurfer in {path.name}', 'freesurfer'))
        else:
            words = f'classes in {path.name}'
            classes.append(inputs.Segmentation((path,), words, label_table(path, roots)))
    if tool_files:
        labels += [
            inputs.Segmentation((path,), f'labels of {tool} in {path.name}', 'freesurfer')
            for path, tool in tool_labels_of(t1w_entities, t1w_images, roots)
        ]
    threes = [
        inputs.Segmentation(tuple(of[name] for name in ('CSF', 'GM', 'WM')), f'probabilities in {of["WM"].name}')
        for of in probable.values()
        if {'CSF', 'GM', 'WM'} <= set(of)
    ]
    return next(iter(labels + classes + threes), None)


def tool_labels_of(t1w_entities, t1w_images, roots):
    """Label files of tools for the visit of a T1w, as `tool_outputs.find_labels`; none if it has several T1w."""
    subject, session = t1w_entities['subject'], t1w_entities.get('session')
    own = tools.find_labels(roots.values(), subject, session)
    n_t1w = n_of_visit(t1w_entities, t1w_images)
    if own and n_t1w > 1:
        logger.warning('%s is not used: it could be for each of %d T1w of its visit', own[0][0], n_t1w)
        return []
    return own


def n_of_visit(image, images):
    """How many images are of the session of an image."""
    return len(meant_by({'session': image.get('session')}, images))


def label_table(path, roots):
    """Rows of the table that names the labels of a `dseg`: beside it, or at the top of its dataset; None without."""
    path = Path(path)
    tops = [Path(root) for root in roots.values() if path.absolute().is_relative_to(Path(root).absolute())]
    desc = naming.name_entities(path.name).get('desc')
    names = ([f'desc-{desc}_dseg.tsv'] if desc else []) + ['dseg.tsv']
    for table in [naming.sidecar(path).with_suffix('.tsv'), *(top / name for top in tops for name in names)]:
        if table.is_file():
            return tuple(read_tsv(table))
    return None


def pair(
    image, rivals, masks, others, segmentations, layout, roots, needs_mask=True, tool_masks=True, tool_labels=True
):
    """An image with its lesion mask, its T1w or (of a T1w) FLAIR, and tissue classes; or why it cannot be used.

    Parameters
    ----------
    rivals : dict of suffix -> list of dict
        Entities of all images of the subject, of all sessions: a file that could be for several is used for none.
    others : list of BIDS files
        FLAIR images if the image is a T1w, else T1w images of the participant.
    tool_masks, tool_labels : bool
        Whether files that tools wrote under names of their own are looked for.
    """
    entities = image.get_entities()
    relative_path = Path(image.path).relative_to(Path(layout.root)).as_posix()
    name = naming.strip_extension(image.filename)
    sources = [f'bids:raw:{relative_path}']
    lesion_mask_file = tissue_file = flair_file = mask_space = None
    problem, lesion_labels, mask_names = '', (), {}
    is_t1w, t1w_images = entities['suffix'] == T1W.suffix, rivals[T1W.suffix]
    masks = [mask for mask in masks if may_hold_lesions_of(mask, entities['suffix'])]
    try:
        mask = choose_mask(entities, rivals[entities['suffix']], masks, name)
        if mask is None and is_t1w:
            mask = choose_mask_on_flair(entities, t1w_images, rivals[FLAIR.suffix], masks, name)
        if mask is not None:
            lesion_mask_file, mask_names = Path(mask.path), names_of(mask)
        elif tool_masks:
            lesion_mask_file, lesion_labels = tool_mask_of(entities, rivals[entities['suffix']], roots, name)
    except AmbiguousMaskError as error:
        problem = str(error)
    else:
        if lesion_mask_file is not None:
            mask_space = naming.space_of(lesion_mask_file.name)
            if mask_space == FLAIR.suffix and not is_t1w and entities['suffix'] != FLAIR.suffix:
                logger.warning('%s is taken as if it was drawn on %s', lesion_mask_file.name, name)
            sources.append(naming.uri(lesion_mask_file, roots, layout.root))
        elif needs_mask:
            problem = inputs.NO_MASK
    tissue_entities = entities
    if is_t1w:
        if lesion_mask_file is not None and mask_space != T1W.suffix and not lesion_labels:
            flair = choose_flair(entities, mask_names, others, name)
            flair_file = Path(flair.path) if flair else None
    else:
        tissue = choose_t1w(entities, others, name)
        if tissue is None:
            problem = problem or 'no T1w of the same session, in which white matter is found'
        else:
            tissue_file, tissue_entities = Path(tissue.path), tissue.get_entities()
            sources.append(naming.uri(tissue_file, roots, layout.root))
    brain_masks = brain_masks_of(layout, entities['subject'])
    brain_mask_file = choose_brain_mask(tissue_entities, t1w_images, brain_masks)
    if brain_mask_file is not None:
        sources.append(naming.uri(brain_mask_file, roots, layout.root))
    segmentation = choose_segmentation(tissue_entities, t1w_images, segmentations, roots, tool_labels)
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
    )


def may_hold_lesions_of(mask, suffix):
    """Return False for a mask in the space of another image than this one, T1w and FLAIR of its visit."""
    return naming.space_of(mask.filename) in (None, suffix, T1W.suffix, FLAIR.suffix)


def tool_mask_of(image_entities, all_images, roots, name):
    """The lesion mask that a tool wrote for the visit of an image: (path, labels that are lesions), (None, ()) if none.

    Raises
    ------
    AmbiguousMaskError
        If the visit has several images.
    """
    own = tools.find_lesion_masks(roots.values(), image_entities['subject'], image_entities.get('session'))
    if not own:
        return None, ()
    path, labels = choose_own(own, image_entities['suffix'])
    n_images = n_of_visit(image_entities, all_images)
    if n_images > 1:
        raise AmbiguousMaskError(
            f'{path} fits {n_images} images of its visit, {name} among them: choose one with --bids-filter-file'
        )
    return path, labels


def choose_own(own, suffix):
    """Of a tool's own masks that in the space of the image, else the first: (path, labels that are lesions)."""
    return next((found for found in own if naming.space_of(found[0].name) == suffix), own[0])


def choose_t1w(image_entities, t1w_images, name):
    """The T1w of an image's session that fits it best, the first by name if several do; None if there is none."""
    best = closest(image_entities, t1w_images)
    if len(best) > 1:
        names = ', '.join(t1w.filename for t1w in best)
        logger.warning('%s: %d T1w fit equally (%s); white matter is found in the first', name, len(best), names)
    return next(iter(best), None)


def choose_flair(t1w_entities, mask_names, flair_images, name):
    """The FLAIR of a T1w's session on which its lesion mask may have been drawn; None if there is none.

    It is the one with most of what the mask names, then the one that fits the T1w best, then the first by name.
    """
    best = closest(t1w_entities, flair_images, mask_names)
    if len(best) > 1:
        names = ', '.join(flair.filename for flair in best)
        logger.warning('%s: %d FLAIR fit equally (%s); the mask is taken for one of the first', name, len(best), names)
    return next(iter(best), None)


def closest(image_entities, files, first_of_all=()):
    """Files of an image's session that have the most entities (run, acquisition, ...) in common with it, by name.

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


def choose_mask(image_entities, all_images, masks, name):
    """The mask that fits an image best; None if there is none.

    A mask fits if the entities that it names (session, acquisition, run) are those of the image. One that names
    fewer is taken only if no other image could be meant. Of those that fit equally, one in the image's own space
    (`space-T1w`, `space-FLAIR`) is taken.

    Raises
    ------
    AmbiguousMaskError
        If two fit equally well, or one fits several images; it names the files.
    """
    fitting = {}
    for mask in masks:
        if meant_by(names_of(mask), [image_entities]):
            fitting.setdefault(len(names_of(mask)), []).append(mask)
    if not fitting:
        return None
    best = fitting[max(fitting)]
    for space in (image_entities['suffix'], None):
        best = [mask for mask in best if naming.space_of(mask.filename) == space] or best
    if len(best) > 1:
        raise several_masks(best, name)
    mask = best[0]
    meant = meant_images(mask, all_images, masks)
    if len(meant) > 1:
        raise AmbiguousMaskError(
            f'{mask.filename} fits {len(meant)} images of sub-{image_entities["subject"]}, {name} '
            'among them: name the mask by session, run and acquisition, as the image'
        )
    return mask


def choose_mask_on_flair(t1w_entities, t1w_images, flair_images, masks, name):
    """The mask that names a FLAIR of a T1w's visit and is in its space, if that visit has one T1w; None if none does.

    Raises
    ------
    AmbiguousMaskError
        If there are several.
    """
    if n_of_visit(t1w_entities, t1w_images) > 1:
        return None
    on_flair = [mask for mask in masks if naming.space_of(mask.filename) == FLAIR.suffix]
    flairs = meant_by({'session': t1w_entities.get('session')}, flair_images)
    best = [mask for flair in flairs for mask in own_files(flair, flair_images, on_flair)]
    if len(best) > 1:
        raise several_masks(best, name)
    return next(iter(best), None)


def several_masks(masks, name):
    """What to raise where several lesion masks fit an image equally; it names them."""
    names = [mask.filename for mask in masks]
    if len({naming.strip_extension(str(mask.path)) for mask in masks}) == 1:
        return AmbiguousMaskError(twins_problem(Path(mask.path) for mask in masks))
    if len(set(names)) < len(names):  # of two raters, each in a derivative of their own
        names = [str(mask.path) for mask in masks]
    return AmbiguousMaskError(
        f'{len(masks)} lesion masks fit {name}: {", ".join(sorted(names))}; choose with --mask-desc, --mask-label, '
        '--derivatives or --bids-filter-file'
    )
