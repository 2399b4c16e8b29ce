"""Words for files that fit an image equally well: what is ambiguous, and how one is chosen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import indexing, naming


class AmbiguousMaskError(ValueError):
    """Several lesion masks fit one image."""


def twins_problem(paths: Iterable[Path]) -> str:
    """Return a sentence for files that differ by `.gz` alone."""
    first, *others = sorted(paths)
    return f'{" and ".join(path.name for path in (first, *others))} are two files of one name: remove one'


def several_images(
    mask_file: str | Path, image: dict[str, Any], meant: Sequence[dict[str, Any]], name: str
) -> AmbiguousMaskError:
    """Return what to raise where a lesion mask fits several images; it says how one is chosen.

    Parameters
    ----------
    mask_file : path
    image : dict
        Entities of the image that is to be filled.
    meant : list of dict
        Entities of all images that the mask fits.
    name : str
        Of the image.
    """
    path, whose = Path(mask_file), f'sub-{image["subject"]}, {name} among them'
    sessions = {other.get('session') for other in meant}
    if len(sessions) > 1:
        visit = '_'.join([f'sub-{image["subject"]}'] + [f'ses-{image["session"]}'] * bool(image.get('session')))
        named = path.name.replace(f'sub-{image["subject"]}', visit, 1)
        return AmbiguousMaskError(
            f'{path.name} fits {len(meant)} images of {whose}, of {len(sessions)} sessions: rename it after the visit '
            f'whose lesions it shows (of this one: {named})'
        )
    differing = [key for key in naming.SCAN_KEYS if len({other.get(key) for other in meant}) > 1]
    chosen = {image['suffix'].lower(): {key: plain(image.get(key)) for key in differing}}
    return AmbiguousMaskError(
        f'{path.name} fits {len(meant)} images of {whose}: choose one with --bids-filter-file FILE, for this one '
        f'with {json.dumps(chosen)} in FILE'
    )


def plain(value: Any) -> Any:
    """Return the value of an entity as JSON has it: pybids keeps the zeros of `run-02` in a number of its own."""
    return value if isinstance(value, str | None) else int(value)


def several_masks(masks: list[indexing.IndexedFile], name: str, roots: dict[str, Path]) -> AmbiguousMaskError:
    """Return what to raise where several lesion masks fit an image equally: it names them, and how one is chosen."""
    names = [mask.filename for mask in masks]
    if len({naming.strip_extension(str(mask.path)) for mask in masks}) == 1:
        return AmbiguousMaskError(twins_problem(Path(mask.path) for mask in masks))
    if len(set(names)) < len(names):  # of two raters, each in a derivative of their own
        names = [str(mask.path) for mask in masks]
    return AmbiguousMaskError(
        f'{len(masks)} lesion masks fit {name}: {", ".join(sorted(names))}; choose {way_to_choose(masks, roots)}'
    )


def way_to_choose(masks: list[indexing.IndexedFile], roots: dict[str, Path]) -> str:
    """Return the option that tells lesion masks apart, with the value that takes the last by name; in words."""
    masks = sorted(masks, key=lambda mask: str(mask.path))
    entities = [naming.name_entities(mask.filename) for mask in masks]
    kinds = [
        {'desc': of.get('desc'), 'label': of.get('label'), 'suffix': naming.suffix_of(mask.filename)}
        | {key: mask.get_entities().get(key) for key in naming.IMAGE_KEYS}
        for of, mask in zip(entities, masks, strict=True)
    ]
    differing = [key for key in kinds[-1] if sum(kind[key] == kinds[-1][key] for kind in kinds) == 1]
    folders = [next((root for root in roots.values() if Path(m.path).is_relative_to(root)), None) for m in masks]
    if 'desc' in differing and kinds[-1]['desc']:
        return f'with --mask-desc {kinds[-1]["desc"]}'
    if None not in folders and folders.count(folders[-1]) == 1:
        return f'with --derivatives {folders[-1]}'
    if differing:
        wanted = json.dumps({'lesion_mask': {differing[0]: plain(kinds[-1][differing[0]])}})
        return f'with --bids-filter-file FILE, and {wanted} in FILE'
    return 'by moving the others out of the dataset'
