"""Text of others, read in one way: UTF-8 with or without byte order mark, else latin-1 with a warning."""

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger('bids_lesionfill')


_warned = set()  # files whose encoding was told already


class UnreadableError(ValueError):
    """A file of text does not hold what it should; the sentence names the file."""


def read_text(path: str | Path) -> str:
    """Return the text of a file, lines ending in a line feed. Spreadsheets and old converters write no UTF-8.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    return decode(Path(path).read_bytes(), path).replace('\r\n', '\n').replace('\r', '\n')


def decode(data: bytes, path: str | Path) -> str:
    """Return bytes of a file as text."""
    if data.startswith((b'\xff\xfe', b'\xfe\xff')):  # "Unicode text" of a spreadsheet
        try:
            return data.decode('utf-16')
        except UnicodeDecodeError:
            raise UnreadableError(f'{path} cannot be read as UTF-16, as which it begins: save it as UTF-8') from None
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError:
        if str(path) not in _warned:
            _warned.add(str(path))
            logger.warning('%s is not UTF-8, which BIDS expects: it is read as latin-1; save it as UTF-8', path)
        return data.decode('latin-1')


def read_json(path: str | Path, kind: type = dict) -> Any:
    """Return the content of a JSON file.

    Parameters
    ----------
    path : path
    kind : type
        Of the content: `dict` or `list`.

    Raises
    ------
    OSError
        If the file cannot be read.
    UnreadableError
        If it is no JSON of that kind; the sentence names the file.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # an empty file is no JSON either
        raise UnreadableError(f'{path} cannot be read as JSON ({error}): fix it') from None
    if not isinstance(content, kind):
        expected = 'an object in braces' if kind is dict else 'a list'
        raise UnreadableError(f'{path} holds {json.dumps(content)[:60]}, expected {expected}: fix it')
    return content


def read_tsv(path: str | Path) -> list[dict[str, Any]]:
    """Return a table as a list of dicts; numbers as floats, `n/a` as None.

    Raises
    ------
    OSError
        If the file cannot be read.
    UnreadableError
        If it is no table; the sentence names the file.
    """

    def value(text: Any) -> Any:
        try:
            return None if text == 'n/a' else float(text)
        except (TypeError, ValueError):  # a word; or the line is shorter or longer than the first
            return text

    lines = io.StringIO(read_text(path))
    try:
        return [{name: value(text) for name, text in row.items()} for row in csv.DictReader(lines, delimiter='\t')]
    except csv.Error as error:
        raise UnreadableError(f'{path} cannot be read as a table ({error}): fix it') from None
