"""The only module that knows BIDS file names: what is found in a dataset, and what is written where."""

import contextlib
import csv
import errno
import fcntl
import gzip
import hashlib
import io
import json
import logging
import os
import re
import shlex
import time
import traceback
import uuid
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from . import text_files, tool_outputs
from .text_files import read_tsv

logger = logging.getLogger('bids_lesionfill')

NIFTI = ['.nii', '.nii.gz']
MASK_LABELS = ('lesion', 'L')
BIDS_VERSION = '1.10.0'
APP_NAME = 'bids_lesionfill'

# Lines have no trailing slash: with one, the validator does not match nested folders.
BIDSIGNORE = '*.html\nfigures\nlog\n*_morph.tsv\n*_morph.json\n*_qc.tsv\n*_qc.json\ngroup_*\n*_xfm.txt\n*_xfm.json\n'
DESCRIPTIONS = {
    'desc-filled': 'lesions filled with healthy tissue by a diffusion model',
    'desc-filledsd': 'standard deviation over several fillings of the same lesions',
    'desc-used': 'lesion mask that was filled: restricted to and dilated within white matter',
    'desc-synth': 'new lesions painted by a diffusion model; of a mask: all lesions, old and new. A number after synth '
    'tells variants apart',
    'desc-synthnew': 'the new lesions alone',
    'desc-synthchanged': 'the new lesions and the halo around them: what differs from the original image',
    'desc-original': 'measured on the original image',
    'desc-rerun': 'measured on the original image once more, with another seed',
}


SCAN_KEYS = ('run', 'acquisition', 'ceagent', 'reconstruction')  # tell the scans of one session and modality apart
IMAGE_KEYS = ('session', *SCAN_KEYS)
NO_MASK = 'no lesion mask'
DONOR = 'donor of lesions'  # of `--mask-from`
ANNEX_POINTER = b'/annex/objects/'  # what a file of git-annex begins with whose content was not fetched


class UsageError(ValueError):
    """What was asked for cannot be done at all; the message is one sentence."""


class AmbiguousMaskError(ValueError):
    """Several lesion masks fit one image."""


@dataclass(frozen=True)
class Inputs:
    """One image to work on, and what was found for it. Paths are absolute; sources are BIDS URIs."""

    subject: str  # without sub-
    session: str | None
    name: str  # sub-01_ses-1_T1w
    image_file: Path
    relative_path: str  # of the image, in the dataset
    lesion_mask_file: Path | None = None
    tissue_file: Path | None = None  # the T1w that shows the white matter, if the image is none itself
    brain_mask_file: Path | None = None
    problem: str = ''  # why it cannot be used
    sources: tuple = ()
    lesion_labels: tuple = ()  # values of the mask file that are lesions; all above zero if empty
    mask_space: str | None = None  # T1w or FLAIR, if its name says it
    flair_file: Path | None = None  # of a T1w: the FLAIR of its session, on which the mask may have been drawn
    segmentation: 'Segmentation | None' = None  # tissue classes of the T1w, by another tool

    @property
    def modality(self):
        """`T1w` or `FLAIR`, the suffix of the file."""
        return self.name.rpartition('_')[2]

    @property
    def t1w_file(self):
        """The T1w that shows the white matter: the image itself, or that of its session."""
        return self.tissue_file or self.image_file

    @property
    def t1w_path(self):
        """Path of `t1w_file` in the dataset."""
        return str(PurePosixPath(self.relative_path).with_name(self.t1w_file.name))

    @property
    def flair_uri(self):
        """BIDS URI of `flair_file`."""
        return f'bids:raw:{PurePosixPath(self.relative_path).with_name(self.flair_file.name)}'


@dataclass(frozen=True)
class Segmentation:
    """Tissue classes of a T1w that another tool found."""

    files: tuple  # one of labels, or three of probabilities: CSF, grey and white matter
    source: str  # which tool or file, in words
    table: tuple | str | None = None  # rows of the labels' table as dicts, or `freesurfer`; None if none names them


# ---------------------------------------------------------------------------------------------------- finding inputs


def find_derivatives(bids_dir, left_out=()):
    """Folders in `derivatives/` that say what they are, but for those in `left_out` and the app's own."""
    folders = []
    left_out = {Path(folder).resolve() for folder in left_out}
    for folder in sorted(Path(bids_dir).glob('derivatives/*/')):
        description = folder / 'dataset_description.json'
        if folder.resolve() in left_out:
            continue
        if not description.is_file():
            if tool_outputs.is_tool_folder(folder):
                folders.append(folder)
            else:
                logger.warning('%s has no dataset_description.json and is not searched for masks', folder)
            continue
        try:
            generated_by = read_description(folder).get('GeneratedBy', [])
        except UsageError as error:
            logger.warning('%s; it is not searched', error)
            continue
        if not any(entry.get('Name') == APP_NAME for entry in generated_by):
            folders.append(folder)
    return {folder.name: folder for folder in folders}


def read_description(folder, is_derivative=True):
    """What a dataset says of itself in `dataset_description.json`; what a derivative says of its makers is checked.

    Raises
    ------
    UsageError
        If pybids could not read it.
    """
    path = Path(folder, 'dataset_description.json')
    try:
        description = text_files.read_json(path)
    except OSError as error:
        raise UsageError(f'{path} cannot be read by user {os.geteuid()}: {error.strerror}') from None
    except text_files.UnreadableError as error:
        raise UsageError(f'{error}') from None
    generated_by = description.get('GeneratedBy', []) if is_derivative else []
    if not isinstance(generated_by, list) or not all(isinstance(entry, dict) for entry in generated_by):
        raise UsageError(f'{path} has GeneratedBy {json.dumps(generated_by)[:100]}, expected a list of objects')
    return description


def open_layout(bids_dir, derivatives=(), database_dir=None):
    """Index a BIDS dataset and folders of derivatives (validation off: many derivatives have names of their own).

    An index that is in `database_dir` is used as it is; else it is written there, in a folder for each dataset.

    Raises
    ------
    UsageError
        If a folder cannot be read.
    """
    from bids import BIDSLayout, BIDSLayoutIndexer

    def index(folder, **options):
        indexer = BIDSLayoutIndexer(validate=False, index_metadata=False)
        database = database_dir and Path(database_dir, index_name(folder))
        return BIDSLayout(folder, validate=False, indexer=indexer, database_path=database, **options)

    try:
        layout = index(bids_dir)
        for path in derivatives:
            if Path(path, 'dataset_description.json').is_file():  # else names of its own: see `tool_outputs`
                read_description(path)
                # Not by `add_derivatives`, which refuses a second folder of the same name.
                derivative = index(path, config=['bids', 'derivatives'], sources=layout)
                derivative.is_derivative = True  # given as an option, pybids reads the description in UTF-8 alone
                layout.derivatives[str(path)] = derivative
    except PermissionError as error:
        raise UsageError(f'{error.filename} cannot be read by user {os.geteuid()}: {error.strerror}') from None
    return layout


def index_name(folder):
    """Name of the folder of a dataset's index; the inode tells datasets apart that are all `/data` in a container."""
    folder = Path(folder)
    identity = f'{folder.absolute()}\n{folder.resolve()}\n{folder.stat().st_ino}'
    return hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]


def find_inputs(
    layout,
    derivatives,
    modality='T1w',
    participant_labels=None,
    session_labels=None,
    filters=None,
    mask_labels=MASK_LABELS,
    mask_desc=None,
    needs_mask=True,
):
    """Pair every image with its lesion mask, by subject, session, acquisition and run; a FLAIR also with a T1w.

    Parameters
    ----------
    layout : BIDSLayout
    derivatives : dict of name -> path
    modality : str
        Suffix of the images.
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
    filters = filters or {}
    subjects = sorted(layout.get_subjects(scope='raw'))
    missing = sorted(set(participant_labels or []) - set(subjects))
    if missing:
        raise UsageError(f'participants {missing} are not in the dataset, which has {subjects}')

    def images_of(subject, suffix, every_session=False):
        query = {'subject': subject, 'suffix': suffix, 'extension': NIFTI, 'scope': 'raw'}
        chosen = filters.get(suffix.lower(), {})
        if every_session:
            chosen = {key: value for key, value in chosen.items() if key != 'session'}
        return layout.get(**(query | chosen))

    # Files of tools have no entities by which they could be chosen.
    tool_labels = not filters.get('tissue') and filters.get('tissue', {}) is not None
    tool_masks = mask_desc is None and tuple(mask_labels) == MASK_LABELS and not filters.get('lesion_mask')
    layout = ForEachSubject(layout, participant_labels)
    found = {}
    for subject in participant_labels or subjects:
        # Files may be meant for images of sessions that are left out now, and done by another job.
        rivals = {
            suffix: [image.get_entities() for image in images_of(subject, suffix, every_session=True)]
            for suffix in {'T1w', 'FLAIR', modality}
        }
        others = images_of(subject, 'FLAIR' if modality == 'T1w' else 'T1w')
        images = [
            image
            for image in images_of(subject, modality)
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


@dataclass(frozen=True)
class IndexedFile:
    """A file of the index with its entities, for which pybids asks its database at each call."""

    path: str
    filename: str
    entities: dict

    def get_entities(self):
        return self.entities


class ForEachSubject:
    """An index that is asked once for all participants: hundreds of questions, one for each, take pybids minutes."""

    def __init__(self, layout, participant_labels=None):
        self.layout, self.root, self.answers, self.files = layout, layout.root, {}, {}
        self.chosen = {'subject': list(participant_labels)} if participant_labels else {}

    def get(self, subject, **query):
        """As `BIDSLayout.get`, the files of one participant."""
        key = repr(sorted(query.items()))
        if key not in self.answers:
            self.answers[key] = {}
            # A known entity that no file has (`label`, in a raw dataset) is none that pybids may not know.
            for file in self.layout.get(**self.chosen, **query, invalid_filters='allow'):
                if file.path not in self.files:
                    self.files[file.path] = IndexedFile(file.path, file.filename, dict(file.get_entities()))
                file = self.files[file.path]
                self.answers[key].setdefault(file.entities.get('subject'), []).append(file)
        return self.answers[key].get(subject, [])


MASK_KINDS = ('mask', 'roi', 'dseg', 'probseg')  # the plainest first: of two for an image, it is taken
SPACES = {'t1w': 'T1w', 't1': 'T1w', 'anat': 'T1w', 'flair': 'FLAIR'}  # that a mask may name; a template's is not one
NATIVE_SPACES = ('orig', 'native', 'individual', 'scanner')


def lesion_masks_of(layout, subject, mask_filter, mask_labels=MASK_LABELS, mask_desc=None):
    """All lesion masks of a subject, in derivatives and beside the image (`lesion_kind`), but not of templates.

    Parameters
    ----------
    mask_filter : dict
        pybids filters. A `space` in it lets masks of that space through.
    """
    masks = []
    for mask in layout.get(**({'subject': subject, 'extension': NIFTI} | mask_filter)):
        entities = name_entities(mask.filename)
        if lesion_kind(mask.filename, mask_labels) is None or mask_desc not in (None, entities.get('desc')):
            continue
        space = entities.get('space', 'orig').casefold()
        if space in SPACES or space in NATIVE_SPACES or 'space' in mask_filter:
            masks.append(mask)
        else:
            logger.warning('%s is in the space of %s, not of the patient: not used', mask.filename, entities['space'])
    alike = {}
    for mask in masks:  # a tool that writes a mask and probabilities of it means the mask
        key = Path(mask.path).parent, space_of(mask.filename), *(mask.get_entities().get(key) for key in IMAGE_KEYS)
        kind = MASK_KINDS.index(lesion_kind(mask.filename, mask_labels))
        alike.setdefault(key, {}).setdefault(kind, []).append(mask)
    return [mask for kinds in alike.values() for mask in kinds[min(kinds)]]


def lesion_kind(filename, mask_labels=MASK_LABELS):
    """Which of `MASK_KINDS` a lesion mask is, by its name; None if it is no lesion mask.

    A lesion mask is a `_mask`, `_dseg`, `_probseg` or (old fMRIPrep) `_roi` with `label-`, or else `desc-` or `seg-`,
    for lesions, whatever the case of the letters; or `seg-lst` of LST-AI.
    """
    entities, suffix = name_entities(filename), strip_extension(filename).rpartition('_')[2]
    if suffix == 'seg-lst':
        return 'dseg' if entities.get('desc') == 'annotated' else 'mask'
    label = entities.get('label', entities.get('desc', entities.get('seg', '')))
    accepted = {name.casefold() for name in mask_labels}
    if tuple(mask_labels) == MASK_LABELS:
        accepted |= {'lesions', 'lst'}
    return suffix if suffix in MASK_KINDS and label.casefold() in accepted else None


def space_of(filename):
    """`T1w` or `FLAIR` if the name of a file says that it is in the space of that image; else None."""
    return SPACES.get(name_entities(filename).get('space', '').casefold())


def brain_masks_of(layout, subject):
    """Brain masks of a subject's T1w images among the derivatives."""
    return [
        mask
        for mask in layout.get(subject=subject, suffix='mask', extension=NIFTI, scope='derivatives')
        if mask.get_entities().get('desc') == 'brain' and 'space' not in mask.get_entities() and is_anatomical(mask)
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
    query = {'subject': subject, 'suffix': ['dseg', 'probseg'], 'extension': NIFTI, 'scope': 'derivatives'}
    files = layout.get(**(query | tissue_filter))
    return [
        file
        for file in files
        if lesion_kind(file.filename) is None
        and is_anatomical(file)
        and (space_of(file.filename) == 'T1w' or 'space' not in name_entities(file.filename))
    ]


OTHER_DATATYPES = ('dwi', 'fmap', 'func', 'mrs', 'perf', 'pet')


def is_anatomical(file):
    """False for files of functional runs and the like, which have brain masks and tissue classes of their own."""
    folder = Path(file.path).parent.name  # pybids looks for the datatype in the whole path, above the dataset too
    return folder not in OTHER_DATATYPES and 'task' not in name_entities(file.filename)


def names_of(file):
    """What a file names of the entities by which images are told apart."""
    entities = file.get_entities()
    return {key: entities[key] for key in IMAGE_KEYS if key in entities}


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
    exact = [image for image in meant if {key: image[key] for key in IMAGE_KEYS if key in image} == names]
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
        entities, path = name_entities(file.filename), Path(file.path)
        if file.get_entities()['suffix'] == 'probseg':
            probable.setdefault((path.parent, *names_of(file)), {})[entities.get('label')] = path
        elif entities.get('desc', entities.get('seg', '')).casefold() in FREESURFER_DESCS:
            labels.append(Segmentation((path,), f'labels of FreeSurfer in {path.name}', 'freesurfer'))
        else:
            words = f'classes in {path.name}'
            classes.append(Segmentation((path,), words, label_table(path, roots)))
    if tool_files:
        labels += [
            Segmentation((path,), f'labels of {tool} in {path.name}', 'freesurfer')
            for path, tool in tool_labels_of(t1w_entities, t1w_images, roots)
        ]
    threes = [
        Segmentation(tuple(of[name] for name in ('CSF', 'GM', 'WM')), f'probabilities in {of["WM"].name}')
        for of in probable.values()
        if {'CSF', 'GM', 'WM'} <= set(of)
    ]
    return next(iter(labels + classes + threes), None)


def tool_labels_of(t1w_entities, t1w_images, roots):
    """Label files of tools for the visit of a T1w, as `tool_outputs.find_labels`; none if it has several T1w."""
    subject, session = t1w_entities['subject'], t1w_entities.get('session')
    own = tool_outputs.find_labels(roots.values(), subject, session)
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
    desc = name_entities(path.name).get('desc')
    names = ([f'desc-{desc}_dseg.tsv'] if desc else []) + ['dseg.tsv']
    for table in [sidecar(path).with_suffix('.tsv'), *(top / name for top in tops for name in names)]:
        if table.is_file():
            return tuple(read_tsv(table))
    return None


def name_entities(filename):
    """Entities as the file name spells them; in raw datasets pybids knows no `label` and no `desc`."""
    return dict(part.split('-', 1) for part in strip_extension(filename).split('_') if '-' in part)


def pair(
    image, rivals, masks, others, segmentations, layout, roots, needs_mask=True, tool_masks=True, tool_labels=True
):
    """An image with its lesion mask, its T1w or (of a T1w) FLAIR, and tissue classes; or why it cannot be used.

    Parameters
    ----------
    rivals : dict of suffix -> list of dict
        Entities of all images of the subject, of all sessions: a file that could be for several is used for none.
    others : list of BIDS files
        FLAIR images if the image is a T1w, else T1w images.
    tool_masks, tool_labels : bool
        Whether files that tools wrote under names of their own are looked for.
    """
    entities = image.get_entities()
    relative_path = Path(image.path).relative_to(Path(layout.root)).as_posix()
    name = strip_extension(image.filename)
    sources = [f'bids:raw:{relative_path}']
    lesion_mask_file = tissue_file = flair_file = mask_space = None
    problem, lesion_labels, mask_names = '', (), {}
    try:
        mask = choose_mask(entities, rivals[entities['suffix']], masks, name)
        if mask is None and entities['suffix'] == 'T1w':
            mask = choose_mask_on_flair(entities, rivals['T1w'], rivals['FLAIR'], masks, name)
        if mask is not None:
            lesion_mask_file, mask_names = Path(mask.path), names_of(mask)
        elif tool_masks:
            lesion_mask_file, lesion_labels = tool_mask_of(entities, rivals[entities['suffix']], roots, name)
    except AmbiguousMaskError as error:
        problem = str(error)
    else:
        if lesion_mask_file is not None:
            mask_space = space_of(lesion_mask_file.name)
            sources.append(uri(lesion_mask_file, roots, layout.root))
        elif needs_mask:
            problem = NO_MASK
    tissue_entities = entities
    if entities['suffix'] == 'T1w':
        if lesion_mask_file is not None and mask_space != 'T1w' and not lesion_labels:
            flair = choose_flair(entities, mask_names, others, name)
            flair_file = Path(flair.path) if flair else None
    else:
        tissue = choose_t1w(entities, others, name)
        if tissue is None:
            problem = problem or 'no T1w of the same session, in which white matter is found'
        else:
            tissue_file, tissue_entities = Path(tissue.path), tissue.get_entities()
            sources.append(uri(tissue_file, roots, layout.root))
    brain_masks = brain_masks_of(layout, entities['subject'])
    brain_mask_file = choose_brain_mask(tissue_entities, rivals['T1w'], brain_masks)
    if brain_mask_file is not None:
        sources.append(uri(brain_mask_file, roots, layout.root))
    segmentation = choose_segmentation(tissue_entities, rivals['T1w'], segmentations, roots, tool_labels)
    if segmentation is not None:
        sources += [uri(file, roots, layout.root) for file in segmentation.files]
    return Inputs(
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


def tool_mask_of(image_entities, all_images, roots, name):
    """The lesion mask that a tool wrote for the visit of an image: (path, labels that are lesions), (None, ()) if none.

    Raises
    ------
    AmbiguousMaskError
        If the visit has several images.
    """
    own = tool_outputs.find_lesion_masks(roots.values(), image_entities['subject'], image_entities.get('session'))
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
    return next((found for found in own if space_of(found[0].name) == suffix), own[0])


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
            n_same = sum(entities.get(key) == image_entities.get(key) for key in SCAN_KEYS)
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
        best = [mask for mask in best if space_of(mask.filename) == space] or best
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
    on_flair = [mask for mask in masks if space_of(mask.filename) == 'FLAIR']
    flairs = meant_by({'session': t1w_entities.get('session')}, flair_images)
    best = [mask for flair in flairs for mask in own_files(flair, flair_images, on_flair)]
    if len(best) > 1:
        raise several_masks(best, name)
    return next(iter(best), None)


def several_masks(masks, name):
    """What to raise where several lesion masks fit an image equally; it names them."""
    names = [mask.filename for mask in masks]
    if len({strip_extension(str(mask.path)) for mask in masks}) == 1:
        return AmbiguousMaskError(twins_problem(Path(mask.path) for mask in masks))
    if len(set(names)) < len(names):  # of two raters, each in a derivative of their own
        names = [str(mask.path) for mask in masks]
    return AmbiguousMaskError(
        f'{len(masks)} lesion masks fit {name}: {", ".join(sorted(names))}; choose with --mask-desc, --mask-label, '
        '--derivatives or --bids-filter-file'
    )


def uri(path, roots, raw_root):
    """BIDS URI of a file in a derivative or in the raw dataset; a `file:` URI if it is in none.

    A file is where its own name is; where its links lead counts if that is in no dataset.
    """
    for place in (os.path.abspath, os.path.realpath):
        for dataset, root in [*roots.items(), ('raw', raw_root)]:
            if Path(place(path)).is_relative_to(place(root)):
                return f'bids:{dataset}:{Path(place(path)).relative_to(place(root)).as_posix()}'
    return Path(path).absolute().as_uri()


def strip_extension(filename):
    """A file name without `.nii` or `.nii.gz`."""
    return filename.removesuffix('.gz').removesuffix('.nii')


def find_training(bids_dir, split):
    """T1w images of a dataset's split with their tissue segmentations.

    Parameters
    ----------
    bids_dir : path
        With `participants.tsv` (column `split`) and a derivative that has `dseg` files.
    split : str
        For example `train`.

    Returns
    -------
    list of (T1w file, dseg file)

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    layout = open_layout(bids_dir, find_derivatives(bids_dir).values())
    rows = read_tsv(Path(bids_dir) / 'participants.tsv')
    chosen = [row['participant_id'].removeprefix('sub-') for row in rows if row.get('split') == split]
    pairs = []
    for subject in chosen:
        t1w_files = layout.get(subject=subject, suffix='T1w', extension=NIFTI, scope='raw')
        dseg_files = layout.get(subject=subject, suffix='dseg', extension=NIFTI, scope='derivatives')
        if len(t1w_files) != len(dseg_files):
            raise FileNotFoundError(
                f'sub-{subject} has {len(t1w_files)} T1w and {len(dseg_files)} dseg, expected as many'
            )
        pairs += [(t1w.path, dseg.path) for t1w, dseg in zip(t1w_files, dseg_files)]
    if not pairs:
        raise FileNotFoundError(f'no T1w with dseg for split {split!r} in {bids_dir}; its table names {chosen}')
    return pairs


def find_people(bids_dir):
    """Who was scanned, by participant: rescans (`rescan_of` in `participants.tsv`) are of one person; dict of str."""
    rows = read_tsv(Path(bids_dir) / 'participants.tsv')
    return {row['participant_id']: row.get('rescan_of') or row['participant_id'] for row in rows}


def find_lesion_masks(folder):
    """Lesion masks below a folder, sorted by name, to take shapes from.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    mask_files = sorted(Path(folder).rglob('*label-lesion*_mask.nii.gz'))
    if not mask_files:
        raise FileNotFoundError(f'no lesion masks (*label-lesion*_mask.nii.gz) below {folder}; give --lesion-masks')
    return mask_files


def split_lesion_masks(mask_files):
    """Masks whose lesion shapes training may see, and the last fifth of them, which validation alone sees."""
    held_out = max(1, len(mask_files) // 5)
    return mask_files[:-held_out], mask_files[-held_out:]


def find_patients(bids_dir, modality):
    """Images of patients with their T1w and lesion mask, to learn synthesis from.

    Parameters
    ----------
    bids_dir : path
    modality : {'T1w', 'FLAIR'}

    Returns
    -------
    list of (participant label, image file, T1w file, lesion mask file)

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    layout = open_layout(bids_dir, find_derivatives(bids_dir).values())
    found = []
    for t1w in layout.get(suffix='T1w', extension=NIFTI, scope='raw'):
        where = {key: t1w.get_entities().get(key) for key in ('subject', 'session')}
        where = {key: value for key, value in where.items() if value is not None}
        images = layout.get(**where, suffix=modality, extension=NIFTI, scope='raw')
        mask_files = [
            mask
            for mask in layout.get(**where, suffix='mask', extension=NIFTI, scope='derivatives')
            if mask.get_entities().get('label') in MASK_LABELS
        ]
        if len(images) == len(mask_files) == 1:
            found.append((where['subject'], images[0].path, t1w.path, mask_files[0].path))
        else:
            logger.warning(
                '%s has %d %s and %d lesion masks, expected one of each: left out',
                t1w.filename,
                len(images),
                modality,
                len(mask_files),
            )
    if not found:
        raise FileNotFoundError(f'no {modality} with T1w and lesion mask in {bids_dir}')
    return found


# -------------------------------------------------------------------------------------------------- writing outputs


def write_bytes(path, data):
    """Write a file that is whole or absent, with its folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, 'xb') as file:  # x: not through a link that lies there
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:  # a full disk names no file, or the temporary one
        raise OSError(error.errno, error.strerror or f'{error}', str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


TEMPORARY = re.compile(r'\..+\.\d+-[0-9a-f]{8}\.tmp')  # what `temporary_name` gives


def temporary_name(path):
    """Where a file is written before it gets its name: beside it, under a name that no other process has."""
    return path.with_name(f'.{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp')


def write_json(path, content):
    """Write indented JSON."""
    write_bytes(path, (json.dumps(content, indent=2) + '\n').encode())


def write_tsv(path, rows, columns):
    """Write a table (list of dicts) as BIDS TSV; missing values are `n/a`."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter='\t', lineterminator='\n')
    writer.writerow(columns)
    for row in rows:
        values = [row.get(column) for column in columns]
        writer.writerow(['n/a' if value is None or value != value else value for value in values])
    write_bytes(path, text.getvalue().encode())


def write_image(path, img):
    """Write a NIfTI image as it is (stored values, scaling), compressed, with the same bytes for the same image."""
    write_bytes(path, gzip.compress(img.to_bytes(), compresslevel=6, mtime=0))


def check_links(output_dir, bids_dir):
    """Raise UsageError if a folder in the output is a link into the dataset, which is never written to."""
    output_dir, bids_dir = Path(output_dir).resolve(), Path(bids_dir).resolve()
    for folder, names, _ in os.walk(output_dir):
        for link in (Path(folder, name) for name in names if Path(folder, name).is_symlink()):
            target = link.resolve()
            if target.is_relative_to(bids_dir) and not target.is_relative_to(output_dir):
                raise UsageError(f'{link} is a link to {target}, in BIDS_DIR, which is never written to: remove it')


def check_folders(output_dir, subjects):
    """Raise UsageError if what is to be the folder of a participant is a file."""
    for folder in (Path(output_dir) / f'sub-{subject}' for subject in subjects):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f'{folder} is a file, expected a folder: remove it')


@contextlib.contextmanager
def lock(folder, shared=False):
    """Hold a folder, for oneself or with others who share it; wait until it is free.

    The lock is one of the system (flock) on the folder itself: no file is left behind, and it ends with the process,
    however that ends. On a file system without such locks nothing is held.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    kind, descriptor = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info('another run is at work in %s: waiting for it', folder)
                fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(output_dir, older_than_seconds=3600):
    """Delete temporary files of killed runs: all if no other run holds the folder (see `lock`), else old ones."""
    descriptor, alone = os.open(output_dir, os.O_RDONLY), False
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a run that starts now waits until all is deleted
            alone = True
        for temporary in Path(output_dir).rglob('.*.tmp'):
            with contextlib.suppress(FileNotFoundError):  # it got its name meanwhile
                old = time.time() - temporary.lstat().st_mtime > older_than_seconds
                if TEMPORARY.fullmatch(temporary.name) and (alone or old):
                    temporary.unlink()
    finally:
        os.close(descriptor)


def anat_dir(output_dir, inputs):
    """Folder of an image's derivatives."""
    session = [f'ses-{inputs.session}'] if inputs.session else []
    return Path(output_dir, f'sub-{inputs.subject}', *session, 'anat')


def scan_name(inputs):
    """What the files of an image begin with: sub-01_ses-1_run-2."""
    return inputs.name.removesuffix(f'_{inputs.modality}')


def output_files(output_dir, inputs, n_samples=1):
    """Paths of all that is written for an image: dict of name -> path."""
    modality, stem = inputs.modality, scan_name(inputs)
    space = '' if modality == 'T1w' else f'_space-{modality}'  # masks of T1w and FLAIR would have one name
    folder = anat_dir(output_dir, inputs)
    files = {
        'filled': folder / f'{stem}_desc-filled_{modality}.nii.gz',
        'used_mask': folder / f'{stem}{space}_label-lesion_desc-used_mask.nii.gz',
        'lesions': folder / f'{stem}{space}_desc-lesions_qc.tsv',
    }
    if n_samples > 1:
        files['sd'] = folder / f'{stem}_desc-filledsd_{modality}.nii.gz'
    return files


def synth_files(output_dir, inputs, desc='synth'):
    """Paths of all that is written for an image with new lesions; see `output_files`."""
    filled = output_files(output_dir, inputs)
    image, mask, lesions = (filled[name].name for name in ('filled', 'used_mask', 'lesions'))
    folder = anat_dir(output_dir, inputs)
    return {
        'synth': folder / image.replace('desc-filled', f'desc-{desc}'),
        'mask': folder / mask.replace('desc-used', f'desc-{desc}'),
        'new_mask': folder / mask.replace('desc-used', f'desc-{desc}new'),
        'changed_mask': folder / mask.replace('desc-used', f'desc-{desc}changed'),
        'lesions': folder / lesions.replace('desc-lesions', f'desc-{desc}lesions'),
    }


def xfm_file(output_dir, inputs):
    """Path of the transform from FLAIR to T1w that was needed for an image."""
    desc = '' if inputs.modality == 'T1w' else '_desc-FLAIR'  # of the FLAIR's own filling
    return anat_dir(output_dir, inputs) / f'{scan_name(inputs)}_from-FLAIR_to-T1w_mode-image{desc}_xfm.txt'


def write_xfm(output_dir, inputs, text, about):
    """Write the transform from FLAIR to T1w, or see that none of an earlier run is left (`text` is None)."""
    path = xfm_file(output_dir, inputs)
    if text is None:
        path.unlink(missing_ok=True)
        sidecar(path).unlink(missing_ok=True)
        return
    write_bytes(path, text.encode())
    write_json(sidecar(path), {'Description': 'FLAIR to T1w (ITK)', 'Sources': list(inputs.sources), **about})


def sidecar(path):
    """The JSON beside a file."""
    path = path.with_suffix('') if path.name.endswith('_xfm.txt') else path
    return path.with_name(strip_extension(path.name).removesuffix('.tsv') + '.json')


LESION_COLUMNS = {
    'label': {'Description': 'number of the lesion, by falling volume'},
    'volume_mm3': {'Description': 'volume of the lesion in the mask that was used', 'Units': 'mm^3'},
    'x_mm': {'Description': 'centre of mass, to the right, in the world space of the image', 'Units': 'mm'},
    'y_mm': {'Description': 'centre of mass, to the front, in the world space of the image', 'Units': 'mm'},
    'z_mm': {'Description': 'centre of mass, upwards, in the world space of the image', 'Units': 'mm'},
    'mean_before': {'Description': 'mean intensity of the lesion in the original image', 'Units': 'arbitrary'},
    'mean_after': {'Description': 'mean intensity of the lesion in the filled image', 'Units': 'arbitrary'},
    'mean_surrounding': {
        'Description': 'mean intensity of white matter within three voxels of the lesion, original image',
        'Units': 'arbitrary',
    },
    'mean_touching': {
        'Description': 'mean intensity of white matter that touches the mask that was used, original image',
        'Units': 'arbitrary',
    },
    'mean_beyond': {
        'Description': 'mean intensity of white matter two to four voxels from the mask that was used, original image',
        'Units': 'arbitrary',
    },
    'faint_percent': {
        'Description': 'share of the voxels of the given mask (of new lesions: of their mask) that are hardly darker '
        '(FLAIR: brighter) than the white matter within three voxels',
        'Units': '%',
    },
}
PLACE_COLUMN = {
    'place': {
        'Description': 'where a lesion that was drawn lies',
        'Levels': {
            'infratentorial': 'mostly in brain stem or cerebellum',
            'periventricular': 'touches the lateral ventricles (3 mm)',
            'juxtacortical': 'touches the cortex',
            'deep': 'none of these',
        },
    }
}


def provenance_of(options, run_hash, version):
    """What a sidecar says of how a result came about."""
    return {'Options': options, 'RunHash': run_hash, 'GeneratedBy': [{'Name': APP_NAME, 'Version': version}]}


def write_filling(output_dir, inputs, filling, provenance):
    """Write the derivatives of an image; the sidecar of the filled image comes last and says that all is there.

    Parameters
    ----------
    filling : fill.Filling
    provenance : dict
        Goes into the sidecar of the filled image, with `filling.info`.
    """
    files = output_files(output_dir, inputs, n_samples=2 if filling.sd_img is not None else 1)
    sidecar(files['filled']).unlink(missing_ok=True)  # of an earlier run with other options: from here on it is undone
    if filling.sd_img is None:
        for path in (sd := output_files(output_dir, inputs, n_samples=2)['sd'], sidecar(sd)):
            path.unlink(missing_ok=True)
    skull_stripped = filling.info.get('SkullStripped', False)
    common = {'Sources': list(inputs.sources), 'SpatialReference': inputs.sources[0]}
    write_image(files['used_mask'], filling.used_mask_img)
    write_json(
        sidecar(files['used_mask']),
        {
            'Type': 'Lesion',
            'Description': DESCRIPTIONS['desc-used'],
            **common,
            'Dilation': provenance['Options']['dilate'],
            'RimVoxels': provenance['Options']['rim_voxels'],
        },
    )
    if filling.sd_img is not None:
        write_image(files['sd'], filling.sd_img)
        write_json(
            sidecar(files['sd']),
            {'Description': DESCRIPTIONS['desc-filledsd'], **common, 'SkullStripped': skull_stripped},
        )
    description = DESCRIPTIONS['desc-filled'] if filling.lesions else 'copy of the input: there was no lesion to fill'
    about = {'Description': description, **common, 'SkullStripped': skull_stripped}
    write_result(files['filled'], filling.filled_img, files['lesions'], filling, about, provenance)


def write_result(image_file, img, table_file, result, about, provenance):
    """Write the table of lesions and the image of a `fill.Filling` or `synth.Synthesis`; its sidecar comes last."""
    columns = LESION_COLUMNS | (PLACE_COLUMN if any('place' in row for row in result.lesions) else {})
    write_tsv(table_file, result.lesions, columns)
    write_json(sidecar(table_file), columns)
    write_image(image_file, img)
    write_json(sidecar(image_file), {**about, **result.info, 'Warnings': list(result.warnings), **provenance})


def write_synthesis(output_dir, inputs, desc, synthesis, provenance):
    """Write the derivatives of an image with new lesions; the sidecar of the image comes last.

    Parameters
    ----------
    desc : str
        `synth`, or `synth1` and so on.
    synthesis : synth.Synthesis
    provenance : dict
        Goes into the sidecar of the image, with `synthesis.info`.
    """
    files = synth_files(output_dir, inputs, desc)
    sidecar(files['synth']).unlink(missing_ok=True)  # of an earlier run with other options: from here on it is undone
    common = {'Sources': list(inputs.sources), 'SpatialReference': inputs.sources[0]}
    masks = {
        'mask': (synthesis.mask_img, 'desc-synth'),
        'new_mask': (synthesis.new_mask_img, 'desc-synthnew'),
        'changed_mask': (synthesis.changed_mask_img, 'desc-synthchanged'),
    }
    for name, (img, description) in masks.items():
        write_image(files[name], img)
        description = {'Type': 'Lesion', 'Description': DESCRIPTIONS[description]}
        write_json(sidecar(files[name]), description | common)
    about = {'Description': DESCRIPTIONS['desc-synth'], **common}
    write_result(files['synth'], synthesis.synth_img, files['lesions'], synthesis, about, provenance)


def read_sidecar(path):
    """The sidecar of an output as a dict; empty if it is not there, or damaged: then the output is not whole."""
    try:
        return text_files.read_json(sidecar(path))
    except FileNotFoundError:
        return {}
    except text_files.UnreadableError as error:
        logger.warning('%s; what it describes counts as not done', error)
        return {}


def is_finished(output_dir, inputs, run_hash, n_samples):
    """True if all outputs of an image are there and come from the same input, options and weights."""
    files = output_files(output_dir, inputs, n_samples)
    wanted = [path for name, path in files.items() if name != 'sd']  # an empty mask has no deviation map
    return are_written(files['filled'], wanted, run_hash)


def are_written(main_file, files, run_hash):
    """True if files and their sidecars are there, and that of the main one says that they come from this run."""
    finished = read_sidecar(main_file).get('RunHash') == run_hash
    return finished and all(path.is_file() and sidecar(path).is_file() for path in files)


def hash_run(inputs, options, weights_sha256, version):
    """What a result depends on, as SHA-256: the bytes of the inputs, the options, the weights, the version."""
    digest = hashlib.sha256(
        json.dumps([options, weights_sha256, version, inputs.relative_path], sort_keys=True).encode()
    )
    for path in input_files(inputs):
        digest.update(path.read_bytes() if path else b'none')
    return digest.hexdigest()


def input_files(inputs):
    """Files that a result depends on: list of path, or None for those of the first four that there are not."""
    segmentation = inputs.segmentation.files if inputs.segmentation else ()
    optional = [path for path in (inputs.flair_file, *segmentation) if path]
    return [inputs.image_file, inputs.lesion_mask_file, inputs.tissue_file, inputs.brain_mask_file, *optional]


def check_files(inputs):
    """Raise ValueError if a file of an image cannot be read; see `check_content`."""
    for path in filter(None, input_files(inputs)):
        check_content(path)


def check_content(path):
    """Raise ValueError, with a sentence that names it, if a file has no content here or cannot be read.

    DataLad and git-annex leave a link to nowhere, or a file that holds the path of its content, until that is fetched.
    """
    path = Path(path)
    try:
        with open(path, 'rb') as file:
            is_pointer = file.read(len(ANNEX_POINTER)) == ANNEX_POINTER
    except FileNotFoundError:
        if not path.is_symlink():
            raise ValueError(f'{path} is not a file') from None
        is_pointer = True
    except OSError as error:
        raise ValueError(f'{path} cannot be read by user {os.geteuid()}: {error.strerror}') from None
    if is_pointer:
        kind = f'a link to {os.readlink(path)}, which is not there' if path.is_symlink() else 'a pointer of git-annex'
        raise ValueError(f'{path} is {kind}: fetch its content, with DataLad by: datalad get {shlex.quote(str(path))}')


def seed_of(inputs, random_seed):
    """Seed of an image: it depends on the BIDS path and `--random-seed`, not on who else is in the run."""
    return seed_of_path(inputs.relative_path, random_seed)


def seed_of_path(relative_path, random_seed):
    """The same of a path in the dataset."""
    return int(hashlib.sha256(f'{random_seed}:{relative_path}'.encode()).hexdigest()[:15], 16)


def new_run_id():
    """Identifies a run, sortable by time."""
    return f'{time.strftime("%Y%m%d-%H%M%S")}_{uuid.uuid4()}'


def log_dir(output_dir, subject, run_id):
    """Folder of a participant's logs of one run."""
    return Path(output_dir, f'sub-{subject}', 'log', run_id)


def note_crash(error, name, subject, run_id, output_dir):
    """Write the traceback of the current exception to the participant's log; return the error as one line."""
    sentence = in_words(error)
    logger.error('%s: %s', name, sentence)
    try:
        write_bytes(log_dir(output_dir, subject, run_id) / f'crash-{name}.txt', traceback.format_exc().encode())
    except OSError as failure:  # a full disk, perhaps
        logger.error('%s: the crash file cannot be written: %s', name, failure)
    return sentence


LESS_MEMORY = (
    'what helps is a smaller --batch-size, fewer processes at once (--nprocs, or --mem with what the machine has), '
    '--device cpu if it was the memory of the GPU, or more memory'
)
# As torch, ITK, CUDA and the system say it.
NO_MEMORY = ('out of memory', 'allocate memory', 'bad_alloc', 'alloc_failed', 'failed to map segment')


def in_words(error):
    """An error as one line; where memory was short, what helps."""
    words = ' '.join(f'{error}'.split()) or type(error).__name__
    return f'out of memory: {LESS_MEMORY} ({words})' if lacks_memory(error) and LESS_MEMORY not in words else words


def lacks_memory(error):
    """True if an error says that memory was short, of the machine or of its GPU."""
    said = any(sign in f'{error}'.lower() for sign in NO_MEMORY)
    return said or isinstance(error, MemoryError) or getattr(error, 'errno', None) == errno.ENOMEM


def write_description(output_dir, bids_dir, derivatives, version, source_images=None):
    """Write `dataset_description.json` of the derivatives: by whom, and from which dataset (see `ownership`)."""
    raw = Path(bids_dir, 'dataset_description.json')
    raw = read_description(bids_dir, is_derivative=False) if raw.is_file() else {}
    description = {
        'Name': f'{APP_NAME}: lesions filled or synthesized' + (f' in {raw["Name"]}' if raw.get('Name') else ''),
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [{'Name': APP_NAME, 'Version': version, **container()}],
        'HowToAcknowledge': 'Please cite the works in logs/CITATION.md.',
        'DatasetLinks': {name: Path(path).resolve().as_uri() for name, path in derivatives.items()}
        | {'raw': Path(bids_dir).resolve().as_uri()},
        **({'SourceImages': source_images} if source_images else {}),
    }
    if raw.get('License'):
        description['License'] = raw['License']
    if raw.get('DatasetDOI'):
        description['SourceDatasets'] = [{'DOI': raw['DatasetDOI']}]
    write_json(Path(output_dir, 'dataset_description.json'), description)


def write_dataset_files(output_dir, bids_dir, derivatives, version, citation, source_images=None):
    """Write what describes the derivative dataset as a whole. Every run writes the same."""
    output_dir = Path(output_dir)
    write_description(output_dir, bids_dir, derivatives, version, source_images)
    write_bytes(output_dir / '.bidsignore', BIDSIGNORE.encode())
    write_bytes(
        output_dir / 'README.md',
        (
            f'# {APP_NAME} {version}\n\n`desc-filled`: MR images whose multiple-sclerosis lesions were filled with '
            'healthy tissue; outside the `desc-used` mask every voxel is that of the input. `desc-synth`: images with '
            'new lesions; outside the `desc-synthchanged` mask every voxel is that of the input, and the `desc-synth` '
            'mask holds all lesions, old and new.\nOpen `sub-*.html` to see it. '
            '`logs/CITATION.md` says how to cite; `participants.tsv` says what was done for whom.\n'
        ).encode(),
    )
    write_tsv(
        output_dir / 'descriptions.tsv',
        [{'desc_id': name, 'description': text} for name, text in DESCRIPTIONS.items()],
        ['desc_id', 'description'],
    )
    write_json(
        output_dir / 'descriptions.json',
        {'desc_id': {'Description': 'value of the desc entity'}, 'description': {'Description': 'what it stands for'}},
    )
    write_tsv(
        output_dir / 'dseg.tsv',
        [
            {'index': 1, 'name': 'Cerebrospinal fluid', 'abbreviation': 'CSF'},
            {'index': 2, 'name': 'Grey matter', 'abbreviation': 'GM'},
            {'index': 3, 'name': 'White matter', 'abbreviation': 'WM'},
        ],
        ['index', 'name', 'abbreviation'],
    )
    for name, text in citation.items():
        write_bytes(output_dir / 'logs' / f'CITATION.{name}', text.encode())


def container():
    """How the app was packed, if it runs in a container (set in the image)."""
    for kind, variable in (
        ('docker', 'BIDS_LESIONFILL_DOCKER_TAG'),
        ('singularity', 'BIDS_LESIONFILL_SINGULARITY_URL'),
    ):
        if os.environ.get(variable):
            return {'Container': {'Type': kind, 'Tag': os.environ[variable]}}
    return {}


def write_config(output_dir, subject, run_id, text):
    """Write the options of a run to a participant's log."""
    if text:
        write_bytes(log_dir(output_dir, subject, run_id) / 'config.toml', text.encode())


def find_statuses(output_dir):
    """Statuses of all participants and runs, the latest run last: list of paths."""
    return sorted(Path(output_dir).glob('sub-*/log/*/status.json'), key=lambda path: (path.parent.name, path))


def has_status(output_dir, subject, run_id):
    """Whether a participant came to its end in a run, good or bad."""
    return (log_dir(output_dir, subject, run_id) / 'status.json').is_file()


def read_status(output_dir, subject, run_id):
    """What became of a participant in a run; `failed` if the run did not come to its end."""
    path = log_dir(output_dir, subject, run_id) / 'status.json'
    return read_statuses([path])[0]['status'] if path.is_file() else 'failed'


def read_statuses(paths):
    """What `write_status` wrote, a dict for each file; `failed` where it is damaged."""
    statuses = []
    for path in paths:
        try:
            status = text_files.read_json(path)
            if not {'participant_id', 'status'} <= set(status):
                raise text_files.UnreadableError(f'{path} lacks participant_id or status')
        except text_files.UnreadableError as error:
            logger.warning('%s', error)
            status = {'participant_id': path.parts[-4], 'status': 'failed', 'message': f'{error}'}
        statuses.append(status)
    return statuses


STATUS_COLUMNS = [
    *('participant_id', 'status', 'images', 'lesions', 'warnings', 'volume_filled_ml', 'volume_synthesized_ml'),
    'message',
]


def write_status(output_dir, subject, run_id, status):
    """Write what became of a participant, then the table of all participants, also those of other runs."""
    write_json(log_dir(output_dir, subject, run_id) / 'status.json', {'participant_id': f'sub-{subject}', **status})
    known = None
    while known != (known := find_statuses(output_dir)):  # another process may have written one meanwhile
        latest = {path.parts[-4]: status for path, status in zip(known, read_statuses(known))}
        write_tsv(Path(output_dir) / 'participants.tsv', [latest[name] for name in sorted(latest)], STATUS_COLUMNS)
    write_json(
        Path(output_dir) / 'participants.json',
        {
            'status': {
                'Description': 'what became of the participant in the latest run',
                'Levels': {
                    'filled': 'lesions were filled',
                    'synthesized': 'new lesions were painted',
                    'copied': 'the mask holds no lesion: the output is a copy of the input',
                    'no lesion mask': 'no lesion mask was found, nothing was written',
                    'no image': 'no image of the modalities was found, nothing was written',
                    DONOR: 'its lesions were painted into the others (--mask-from), nothing was written',
                    'failed': 'see message and the crash file',
                },
            },
            'images': {'Description': 'number of images written'},
            'lesions': {'Description': 'number of connected lesions filled or synthesized, all images'},
            'warnings': {'Description': 'number of things to look at before images are used; the report names them'},
            'volume_filled_ml': {'Description': 'volume filled, all images', 'Units': 'mL'},
            'volume_synthesized_ml': {'Description': 'volume of new lesions, all images', 'Units': 'mL'},
            'message': {'Description': 'why, if the participant was not done'},
        },
    )


# -------------------------------------------------------------------------------------------------- cortical thickness

THICKNESS_DESCS = ('original', 'filled', 'rerun')  # the rerun is of the original, with another seed
MORPH_COLUMNS = {
    'engine': {'Description': 'what measured it'},
    'index': {'Description': 'FreeSurfer number of the region; n/a for a hemisphere'},
    'name': {'Description': 'region of the Desikan-Killiany atlas, or MeanThickness of a hemisphere'},
    'hemisphere': {'Description': 'side', 'Levels': {'L': 'left', 'R': 'right'}},
    'thickness_mm': {'Description': 'mean cortical thickness', 'Units': 'mm'},
    'n_voxels': {'Description': 'voxels (vertices, for surfaces) that were averaged; 0 where the engine does not say'},
}


def thickness_files(output_dir, inputs):
    """Tables of thickness and tissue classes of an image: dict of `morph_...` and `dseg_...` by desc -> path."""
    folder, stem = anat_dir(output_dir, inputs), scan_name(inputs)
    files = {f'morph_{desc}': folder / f'{stem}_seg-DK_desc-{desc}_morph.tsv' for desc in THICKNESS_DESCS}
    return files | {f'dseg_{desc}': folder / f'{stem}_desc-{desc}_dseg.nii.gz' for desc in THICKNESS_DESCS[:2]}


def write_thickness(path, engine, rows, info, sources):
    """Put an engine's rows into a table of thickness, beside those of other engines, and `info` into its sidecar.

    The sidecar is written last: it says, by `Engines`, which rows are whole.
    """
    about, kept = drop_thickness(path, engine)
    write_tsv(path, kept + rows, MORPH_COLUMNS)
    description = {'Description': 'cortical thickness', 'Sources': list(sources), **MORPH_COLUMNS}
    write_json(sidecar(path), about | description | {'Engines': about['Engines'] | {engine: info}})


def whole_rows(path):
    """Rows of a table of thickness that are whole, and what its sidecar says of their engines."""
    engines = read_sidecar(path).get('Engines')
    engines = engines if isinstance(engines, dict) else {}
    try:
        rows = read_tsv(path) if path.is_file() else []
    except text_files.UnreadableError as error:
        logger.warning('%s; it is left out', error)
        rows = []
    rows = [row for row in rows if isinstance(engines.get(row.get('engine')), dict)]
    if not all(isinstance(row.get('thickness_mm'), float | None) and isinstance(row.get('name'), str) for row in rows):
        logger.warning('%s holds thickness that is no number (saved by a spreadsheet?): it is left out', path)
        rows = []
    return rows, engines


def drop_thickness(path, engine):
    """Say no more that an engine's rows in a table are whole; returns the sidecar and the rows of other engines."""
    kept = [row for row in read_tsv(path) if row['engine'] != engine] if path.is_file() else []
    kept = [row | {name: int(row[name]) for name in ('index', 'n_voxels') if row[name] is not None} for row in kept]
    about = read_sidecar(path)
    about['Engines'] = {name: value for name, value in about.get('Engines', {}).items() if name != engine}
    write_json(sidecar(path), about)
    return about, kept


def remove_thickness(output_dir, inputs):
    """Remove what was measured on a filled T1w that is about to be filled anew."""
    if inputs.modality == 'T1w':
        files = thickness_files(output_dir, inputs)
        for path in (files['morph_filled'], files['dseg_filled']):
            sidecar(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def write_dseg(path, seg_img, sources, source):
    """Write tissue classes."""
    write_image(path, seg_img)
    write_json(sidecar(path), {'Description': f'tissue classes (dseg.tsv), {source}', 'Sources': list(sources)})


def thickness_done(path, engine):
    """What the sidecar of a table of thickness says of an engine; empty if it has no rows there."""
    return read_sidecar(path).get('Engines', {}).get(engine, {}) if path.is_file() else {}


def read_thickness(folders):
    """All tables of thickness below folders, of this and of other runs.

    What an engine measured on a scan comes from one folder: the first that has both the original and the filled image,
    else the first that has any.

    Returns
    -------
    list of dict
        `participant` and `session` (with prefix; session is None without), `scan`, `desc`, `engine`,
        `thickness_mm` (dict of lh_MeanThickness, lh_bankssts, ... -> mm or None) and `about`, the engine's entry in the
        sidecar.
    """
    found = {}
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        for key, entries in thickness_in(folder).items():
            found.setdefault(key, {})[folder] = entries
    chosen, passed_over = [], {}
    for (scan, engine), places in found.items():
        whole = [folder for folder, entries in places.items() if {'original', 'filled'} <= set(entries)]
        used = (whole or list(places))[0]
        chosen += places[used].values()
        for unused in set(places) - {used}:
            passed_over.setdefault((engine, used, unused), []).append(scan)
    for (engine, used, unused), scans in passed_over.items():
        words = '%d scan(s) measured by %s are in two folders, such as %s: those in %s count, not those in %s'
        logger.warning(words, len(scans), engine, scans[0], used, unused)
    return chosen


def thickness_in(folder):
    """Tables of thickness below one folder: dict of (scan, engine) -> dict of desc -> what `read_thickness` gives."""
    found = {}
    for path in sorted(Path(folder).glob('sub-*/**/anat/*_seg-DK_desc-*_morph.tsv')):
        entities = name_entities(path.name.removesuffix('.tsv'))
        scan = path.name.partition('_seg-DK')[0]
        rows, engines = whole_rows(path)  # others are half written, or not by this app
        for row in rows:
            entry = found.setdefault((scan, row['engine']), {}).setdefault(
                entities['desc'],
                {
                    'participant': f'sub-{entities["sub"]}',
                    'session': f'ses-{entities["ses"]}' if 'ses' in entities else None,
                    'scan': scan,
                    'desc': entities['desc'],
                    'engine': row['engine'],
                    'thickness_mm': {},
                    'about': engines[row['engine']],
                    'file': path,
                },
            )
            if entry['file'] == path:
                entry['thickness_mm'][row['name']] = row['thickness_mm']
    return found


def list_participants(bids_dir):
    """Participants that a raw dataset has a folder for: list of sub-..."""
    return sorted(path.name for path in Path(bids_dir).glob('sub-*') if path.is_dir())


PHENOTYPE_COLUMNS = {
    'participant_id': {'Description': 'participant'},
    'session_id': {'Description': 'session'},
    'scan': {'Description': 'what the names of the files of the image begin with'},
    'engine': {'Description': 'what measured the thickness'},
    'original_mm': {'Description': 'global mean thickness (mean of both hemispheres), original image', 'Units': 'mm'},
    'filled_mm': {'Description': 'the same, filled image', 'Units': 'mm'},
    'rerun_mm': {'Description': 'the same, original image once more with another seed', 'Units': 'mm'},
    'error_global_percent': {
        'Description': 'error of the global mean, filled against original; n/a where nothing was filled',
        'Units': '%',
    },
    'error_roi_percent': {
        'Description': 'mean error of the 68 regions, filled against original; n/a where nothing was filled',
        'Units': '%',
    },
    'change_global_percent': {
        'Description': 'change of the global mean, 100 (filled - original) / original; n/a where nothing was filled',
        'Units': '%',
    },
    'noise_global_percent': {'Description': 'error of the global mean, rerun against original', 'Units': '%'},
    'noise_roi_percent': {'Description': 'mean error of the 68 regions, rerun against original', 'Units': '%'},
    'juxtacortical_voxels': {'Description': 'voxels of the lesion mask, dilated by one, that are not white matter'},
    'juxtacortical': {'Description': 'whether those are at least --juxta-min-voxels'},
}


def with_interval(name, description):
    """Columns of a mean over participants, in percent, and of the two ends of its interval."""
    low, high = 'lower end of its 95 % bootstrap interval over participants', 'upper end of it; n/a for fewer than four'
    words = {'percent': description, 'low': low, 'high': high}
    return {f'{name}_{end}': {'Description': text, 'Units': '%'} for end, text in words.items()}


ERROR_COLUMNS = {
    'engine': {'Description': 'what measured the thickness'},
    'participants': {'Description': 'all, or without those whose lesions touch what is not white matter'},
    'n': {'Description': 'participants of whom something was filled'},
    'n_scans': {'Description': 'their scans'},
    **with_interval(
        'error_global', 'mean over participants of 100 |m1 - m2| / (m1 + m2), global mean, original against filled'
    ),
    'noise_global_percent': {'Description': 'the same error between two runs on the original image', 'Units': '%'},
    **with_interval('change_global', 'mean over participants of 100 (filled - original) / original, global mean'),
    **with_interval('error_roi', 'as error_global_percent, averaged over the 68 regions'),
    'noise_roi_percent': {'Description': 'as noise_global_percent, averaged over the 68 regions', 'Units': '%'},
    'n_noise': {'Description': 'participants with a rerun, also those of whom nothing was filled'},
}
REGION_ERROR_COLUMNS = {
    **{name: ERROR_COLUMNS[name] for name in ('engine', 'participants')},
    'region': {'Description': 'region of the Desikan-Killiany atlas'},
    'n': ERROR_COLUMNS['n'],
    **with_interval('error', 'as error_global_percent, of one region'),
    'noise_percent': {'Description': 'as noise_global_percent, of one region', 'Units': '%'},
}


def write_group(output_dir, scan_rows, error_rows, region_rows):
    """Write the tables of the group level."""
    output_dir = Path(output_dir)
    write_tsv(output_dir / 'phenotype' / 'thickness.tsv', scan_rows, PHENOTYPE_COLUMNS)
    write_json(output_dir / 'phenotype' / 'thickness.json', PHENOTYPE_COLUMNS)
    write_tsv(output_dir / 'group_reproducibility.tsv', error_rows, ERROR_COLUMNS)
    write_json(output_dir / 'group_reproducibility.json', ERROR_COLUMNS | REGION_ERROR_COLUMNS)
    write_tsv(output_dir / 'group_reproducibility_roi.tsv', region_rows, REGION_ERROR_COLUMNS)
