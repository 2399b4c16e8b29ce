"""Images that a file may belong to, by the entities of its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import naming

if TYPE_CHECKING:
    from .indexing import IndexedFile


def names_of(file: IndexedFile) -> dict[str, str]:
    """Return those entities of a file that distinguish images: dict."""
    entities = file.get_entities()
    return {key: entities[key] for key in naming.IMAGE_KEYS if key in entities}


def meant_by(names: dict[str, Any], images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the images (dicts of entities) that match all the entities of a file."""
    return [image for image in images if all(image.get(key) == value for key, value in names.items())]


def meant_images(
    file: IndexedFile, images: Sequence[dict[str, Any]], files: Sequence[IndexedFile]
) -> list[dict[str, Any]]:
    """Return the images (dicts of entities) that a file could belong to.

    One that names just what the file does is meant alone, if each of the others has a file that names more
    (`sub-01_dseg` beside `sub-01_ce-gad_dseg`).
    """
    names = names_of(file)
    meant = meant_by(names, images)
    exact = [image for image in meant if {key: image[key] for key in naming.IMAGE_KEYS if key in image} == names]
    more = [names_of(other) for other in files if len(names_of(other)) > len(names)]
    others = [image for image in meant if image not in exact]
    return exact if exact and all(any(meant_by(n, [image]) for n in more) for image in others) else meant


def own_files(
    image: dict[str, Any], images: Sequence[dict[str, Any]], files: Sequence[IndexedFile]
) -> list[IndexedFile]:
    """List the files that can belong to this image alone, those with the most entities first.

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
