"""Write the scores: tables, JSON and the page. The folder must be new, empty, or of an earlier run of this program."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..layout import errors, files, naming

NAME = f'{naming.APP_NAME}.score'
SUMMARY = 'scores.json'
PAGE = 'score.html'
TABLES = ('scans', 'detection', 'lesions', 'false_lesions', 'changes')
FILES = (SUMMARY, PAGE, *(f'{name}.{ending}' for name in TABLES for ending in ('tsv', 'json')))


def check_output_dir(output_dir: Path, inputs: Iterable[Any]) -> None:
    """Raise UsageError if a folder cannot be written to: it is a file, holds other files, or lies in an input.

    Parameters
    ----------
    output_dir : path
    inputs : list of path
        Folders that are never written to.
    """
    output_dir = Path(output_dir)
    for folder in inputs:
        if output_dir.resolve().is_relative_to(Path(folder).resolve()):
            raise errors.UsageError(f'{output_dir} lies in {folder}, which is never written to: choose another folder')
    if output_dir.exists() and not output_dir.is_dir():
        raise errors.UsageError(f'{output_dir} is a file, expected a folder')
    others = sorted(path.name for path in output_dir.iterdir() if path.name not in FILES) if output_dir.is_dir() else []
    if others:
        raise errors.UsageError(f'{output_dir} holds other files, such as {others[0]}: choose a new folder')
    if output_dir.is_dir() and any(output_dir.iterdir()) and not is_own(output_dir):
        raise errors.UsageError(f'{output_dir} holds tables that are not of {NAME}: choose a new folder')


def is_own(output_dir: Path) -> bool:
    """Return True if the summary of a folder says that this program wrote it."""
    try:
        return json.loads((output_dir / SUMMARY).read_text(encoding='utf-8'))['GeneratedBy'][0]['Name'] == NAME
    except (OSError, ValueError, LookupError, TypeError):
        return False


def write_summary(output_dir: Path, summary: dict[str, Any], version: str) -> None:
    """Write the summary, which marks the folder as written by this program. It must be written first."""
    generated_by = {'GeneratedBy': [{'Name': NAME, 'Version': version}]}
    files.write_json(Path(output_dir) / SUMMARY, generated_by | summary)


def write_table(output_dir: Path, name: str, rows: list[dict[str, Any]], columns: Iterable[str]) -> None:
    """Write one of `TABLES` with its description; numbers have at most six significant digits."""
    rounded = [{key: float(f'{v:.6g}') if isinstance(v, float) else v for key, v in row.items()} for row in rows]
    files.write_tsv(Path(output_dir) / f'{name}.tsv', rounded, columns)
    files.write_json(Path(output_dir) / f'{name}.json', columns)


def remove_table(output_dir: Path, name: str) -> None:
    """Remove a table of an earlier run that this run has not."""
    for ending in ('tsv', 'json'):
        (Path(output_dir) / f'{name}.{ending}').unlink(missing_ok=True)
