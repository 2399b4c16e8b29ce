"""`--output-layout fmriprep`: filled T1w under the name that fMRIPrep looks for among precomputed derivatives.

`fmriprep --derivatives NAME=OUTPUT_DIR` searches for one image per participant (per session with
`--subject-anatomical-reference sessionwise`) with `desc-preproc`, suffix `T1w` and no `space` (sMRIPrep 0.19.5,
`data/io_spec.json` and `utils/bids.py`). It takes the place of its own T1w template, and FreeSurfer is run on it.
"""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..modality import T1W
from . import derivatives, files, naming

if TYPE_CHECKING:
    from .inputs import Inputs

logger = logging.getLogger('bids_lesionfill')


def write_participant(output_dir: Path, images: Iterable[Inputs]) -> None:
    """Link the filled T1w of each visit of a participant as `desc-preproc_T1w`, beside itself.

    A visit with several filled T1w has none: fMRIPrep takes one image, and does not average these.

    Parameters
    ----------
    output_dir : path
        Of the derivatives.
    images : list of layout.Inputs
        All that the run found of the participant.
    """
    for session, filled in filled_t1w(output_dir, images).items():
        if len(filled) == 1:
            write_link(output_dir, *filled)
            continue
        for image in filled:
            remove_link(output_dir, image)
        if filled:
            names = ', '.join(image.name for image in filled)
            where = f'session {session}' if session else 'the participant'
            logger.warning(
                '%s are %d filled T1w of %s: no desc-preproc_T1w, since fMRIPrep takes one; use --output-layout raw, '
                'or choose one with --bids-filter-file',
                *(names, len(filled), where),
            )


def filled_t1w(output_dir: Path, images: Iterable[Inputs]) -> dict[str | None, list[Inputs]]:
    """Return the T1w that are filled, by session: dict of session -> list of layout.Inputs."""
    found = collections.defaultdict(list)
    for image in images:
        if image.modality == T1W.suffix and derivatives.read_sidecar(naming.output_files(output_dir, image)['filled']):
            found[image.session].append(image)
    return found


def write_link(output_dir: Path, image: Inputs) -> None:
    """Link the filled T1w of an image, relative and within its folder: whatever mounts one has the other."""
    filled, link = naming.output_files(output_dir, image)['filled'], naming.preproc_file(output_dir, image)
    if not (link.is_symlink() and os.readlink(link) == filled.name):
        temporary = files.temporary_name(link)
        try:
            temporary.symlink_to(filled.name)
            os.replace(temporary, link)
        finally:
            temporary.unlink(missing_ok=True)
    about = {
        'Description': derivatives.DESCRIPTIONS['desc-preproc'],
        'Sources': [f'bids::{filled.relative_to(output_dir).as_posix()}'],
        'SpatialReference': image.sources[0] if image.sources else None,
        'SkullStripped': derivatives.read_sidecar(filled).get('SkullStripped', False),
    }
    about = {name: value for name, value in about.items() if value is not None}
    if derivatives.read_sidecar(link) != about:
        files.write_json(naming.sidecar(link), about)


def remove_participant(output_dir: Path, images: Iterable[Inputs]) -> None:
    """Remove the links of a participant that failed: other tools would take its images for done."""
    for image in images:
        if image.modality == T1W.suffix:
            remove_link(output_dir, image)


def remove_link(output_dir: Path, image: Inputs) -> None:
    """Remove the link of an image, if it is there."""
    link = naming.preproc_file(output_dir, image)
    if link.is_symlink():
        naming.sidecar(link).unlink(missing_ok=True)
        link.unlink()
