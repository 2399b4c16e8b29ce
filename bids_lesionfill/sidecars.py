"""Spelling of sidecars: fields of records are snake_case, keys of JSON are CamelCase. Only this module knows both."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

AS_IT_IS = {'as_it_is': True}  # metadata of a field that holds keys and values of JSON already
ABBREVIATIONS = {'sha256': 'SHA256'}

Record = TypeVar('Record')


def key_of(name: str) -> str:
    """Return the key of JSON of a field: `brain_volume_ml` is `BrainVolumeMl`."""
    return ''.join(ABBREVIATIONS.get(word, word.capitalize()) for word in name.split('_'))


def spell(record: Any) -> dict[str, Any]:
    """Return the JSON object of a record (a dataclass), in the order of its fields; what is None is left out.

    A record in a record becomes an object in an object.
    """
    content: dict[str, Any] = {}
    for each in fields(record):
        value = getattr(record, each.name)
        if each.metadata.get('as_it_is'):
            content |= value
        elif value is not None:
            content[key_of(each.name)] = spell(value) if is_dataclass(value) else value
    return content


def read(record_type: type[Record], content: Mapping[str, Any]) -> Record:
    """Return the record of a JSON object; keys that it does not know are left out, missing ones are the default.

    Objects in it stay dicts.
    """
    known = {each.name: key_of(each.name) for each in fields(record_type) if not each.metadata}  # type: ignore[arg-type]
    return record_type(**{name: content[key] for name, key in known.items() if key in content})
