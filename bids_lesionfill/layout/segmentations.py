"""Pairing rules for what other tools found on a T1w: brain masks and tissue segmentations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..modality import T1W
from ..text_files import read_tsv
from . import inputs, meaning, naming, tools

if TYPE_CHECKING:
    from .indexing import ForEachSubject, IndexedFile

logger = logging.getLogger('bids_lesionfill')


def brain_masks_of(layout: ForEachSubject, subject: str) -> list[IndexedFile]:
    """Return the brain masks of a subject's T1w images among the derivatives."""
    return [
        mask
        for mask in layout.get(subject=subject, suffix='mask', extension=naming.NIFTI, scope='derivatives')
        if mask.get_entities().get('desc') == 'brain'
        and 'space' not in mask.get_entities()
        and naming.is_anatomical(mask)
    ]


FREESURFER_DESCS = ('aseg', 'aparcaseg', 'aparcdktaseg', 'synthseg', 'fastsurfer', 'freesurfer', 'samseg')


def segmentations_of(layout: ForEachSubject, subject: str, tissue_filter: dict[str, Any]) -> list[IndexedFile]:
    """Return a subject's tissue segmentations, except template-space and lesion ones: BIDS files.

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


def choose_brain_mask(
    t1w_entities: dict[str, Any], t1w_images: Sequence[dict[str, Any]], masks: list[IndexedFile]
) -> Path | None:
    """Choose the `desc-brain_mask` (path) of a T1w with the most entities; None if none or tied."""
    own = meaning.own_files(t1w_entities, t1w_images, masks)
    best = [mask for mask in own if len(meaning.names_of(mask)) == len(meaning.names_of(own[0]))]
    return Path(best[0].path) if len(best) == 1 else None


def choose_segmentation(
    t1w_entities: dict[str, Any],
    t1w_images: Sequence[dict[str, Any]],
    files: Sequence[IndexedFile],
    roots: dict[str, Path],
    tool_files: bool = True,
) -> inputs.Segmentation | None:
    """Choose the segmentation of a T1w, FreeSurfer labels (with lesions) before three classes.

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
    for file in meaning.own_files(t1w_entities, t1w_images, files):
        entities, path = naming.name_entities(file.filename), Path(file.path)
        if file.get_entities()['suffix'] == 'probseg':
            probable.setdefault((path.parent, *meaning.names_of(file)), {})[entities.get('label')] = path
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


def tool_labels_of(
    t1w_entities: dict[str, Any], t1w_images: Sequence[dict[str, Any]], roots: dict[str, Path]
) -> list[tuple[Path, str]]:
    """Label files of tools for the visit of a T1w, as `tool_outputs.find_labels`; none if it has several T1w."""
    subject, session = t1w_entities['subject'], t1w_entities.get('session')
    own = tools.find_labels(roots.values(), subject, session)
    n_t1w = n_of_visit(t1w_entities, t1w_images)
    if own and n_t1w > 1:
        logger.warning('%s is not used: it could be for each of %d T1w of its visit', own[0][0], n_t1w)
        return []
    return own


def n_of_visit(image: dict[str, Any], images: Sequence[dict[str, Any]]) -> int:
    """Count the images of an image's session."""
    return len(meaning.meant_by({'session': image.get('session')}, images))


def label_table(path: str | Path, roots: dict[str, Path]) -> Any:
    """Read the label table of a `dseg`, next to it or at the top of its dataset; None without."""
    path = Path(path)
    tops = [Path(root) for root in roots.values() if path.absolute().is_relative_to(Path(root).absolute())]
    desc = naming.name_entities(path.name).get('desc')
    names = ([f'desc-{desc}_dseg.tsv'] if desc else []) + ['dseg.tsv']
    for table in [naming.sidecar(path).with_suffix('.tsv'), *(top / name for top in tops for name in names)]:
        if table.is_file():
            return tuple(read_tsv(table))
    return None
