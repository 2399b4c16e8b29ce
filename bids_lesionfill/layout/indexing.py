"""Index of a BIDS dataset and its derivatives, by pybids."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import text_files
from . import errors, naming, tools

logger = logging.getLogger('bids_lesionfill')


# ---------------------------------------------------------------------------------------------------- finding inputs


def find_derivatives(bids_dir: str | Path, left_out: Iterable[str | Path] = ()) -> dict[str, Path]:
    """Find described folders in `derivatives/`, except those in `left_out` and the app's own."""
    folders = []
    left_out = {Path(folder).resolve() for folder in left_out}
    for folder in sorted(Path(bids_dir).glob('derivatives/*/')):
        description = folder / 'dataset_description.json'
        if folder.resolve() in left_out:
            continue
        if not description.is_file():
            if tools.is_tool_folder(folder):
                folders.append(folder)
            else:
                logger.warning(
                    '%s has no dataset_description.json and is not searched for masks; to have it searched, write into '
                    'this file: {"Name": "masks", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}',
                    folder,
                )
            continue
        try:
            generated_by = read_description(folder).get('GeneratedBy', [])
        except errors.UsageError as error:
            logger.warning('%s; it is not searched', error)
            continue
        if not any(entry.get('Name') == naming.APP_NAME for entry in generated_by):
            folders.append(folder)
    return {folder.name: folder for folder in folders}


def read_description(folder: str | Path, is_derivative: bool = True) -> Any:
    """Read `dataset_description.json`; check `GeneratedBy` if the dataset is a derivative.

    Raises
    ------
    UsageError
        If pybids could not read it.
    """
    path = Path(folder, 'dataset_description.json')
    try:
        description = text_files.read_json(path)
    except OSError as error:
        raise errors.UsageError(f'{path} cannot be read by user {os.geteuid()}: {error.strerror}') from None
    except text_files.UnreadableError as error:
        raise errors.UsageError(f'{error}') from None
    generated_by = description.get('GeneratedBy', []) if is_derivative else []
    if not isinstance(generated_by, list) or not all(isinstance(entry, dict) for entry in generated_by):
        raise errors.UsageError(f'{path} has GeneratedBy {json.dumps(generated_by)[:100]}, expected a list of objects')
    return description


def open_layout(bids_dir: str | Path, derivatives: Iterable[str | Path] = (), database_dir: Path | None = None) -> Any:
    """Index a BIDS dataset and folders of derivatives (validation off: many derivatives have names of their own).

    An index that is in `database_dir` is used as it is; else it is written there, in a folder for each dataset.

    Raises
    ------
    UsageError
        If a folder cannot be read.
    """
    from bids import BIDSLayout, BIDSLayoutIndexer

    def index(folder: str | Path, **options: Any) -> Any:
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
        raise errors.UsageError(f'{error.filename} cannot be read by user {os.geteuid()}: {error.strerror}') from None
    return layout


def index_name(folder: str | Path) -> str:
    """Name of the folder of a dataset's index; the inode tells datasets apart that are all `/data` in a container."""
    folder = Path(folder)
    identity = f'{folder.absolute()}\n{folder.resolve()}\n{folder.stat().st_ino}'
    return hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]


@dataclass(frozen=True)
class IndexedFile:
    """A file of the index with its entities, for which pybids asks its database at each call."""

    path: str
    filename: str
    entities: dict

    def get_entities(self) -> dict[str, Any]:
        """Return the entities, as a file of pybids does."""
        return self.entities


class ForEachSubject:
    """An index that is asked once for all participants: hundreds of questions, one for each, take pybids minutes."""

    def __init__(self, layout: Any, participant_labels: Collection[str] | None = None) -> None:
        self.layout, self.root, self.answers, self.files = layout, layout.root, {}, {}
        self.chosen = {'subject': list(participant_labels)} if participant_labels else {}

    def get(self, subject: str, **query: Any) -> list[IndexedFile]:
        """Return the files of one participant, as `BIDSLayout.get`."""
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


def list_participants(bids_dir: str | Path) -> list[str]:
    """List the participants that have a folder in a raw dataset: list of sub-... names."""
    return sorted(path.name for path in Path(bids_dir).glob('sub-*') if path.is_dir())
