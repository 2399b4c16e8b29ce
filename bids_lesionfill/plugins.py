"""Registries of parts that other packages may add to: fillers, thickness engines, modalities.

A part is built in, added by `Registry.register`, or brought by an installed package as an entry point::

    [project.entry-points.'bids_lesionfill.fillers']
    my-filler = 'my_package.filler:MyFiller'
"""

import functools
import importlib
from collections.abc import Iterator, MutableMapping
from importlib import metadata
from typing import Any


@functools.lru_cache
def brought(group: str) -> dict[str, metadata.EntryPoint]:
    """Return the entry points of a group that installed packages bring, by name."""
    return {point.name: point for point in metadata.entry_points(group=group)}


class Registry(MutableMapping):
    """Parts by name, in the order of their registration; a part is imported when it is asked for.

    Parameters
    ----------
    group : str
        Entry points of this group belong to the registry. Built-in parts go before entry points of the same name.
    built_in : dict of name -> part
        A string `package.module:attribute` stands for a part that is imported when it is asked for.
    """

    def __init__(self, group: str, built_in: dict[str, Any]) -> None:
        self.group, self._parts = group, dict(built_in)

    def register(self, name: str, part: Any) -> Any:
        """Add a part, or replace the one of this name; return it."""
        self._parts[name] = part
        return part

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(f'{name!r} is not in {self.group}, which has {", ".join(self) or "nothing"}')
        if name not in self._parts:
            return self._load(brought(self.group)[name])
        part = self._parts[name]
        if not isinstance(part, str):
            return part
        module, _, attribute = part.partition(':')
        return getattr(importlib.import_module(module), attribute)

    def _load(self, point: metadata.EntryPoint) -> Any:
        try:
            return point.load()
        except Exception as error:
            package = point.dist.name if point.dist else 'its package'
            raise ImportError(
                f'{point.name!r} of {self.group} ({point.value}) cannot be loaded: {error}; repair or remove {package}'
            ) from error

    def __setitem__(self, name: str, part: Any) -> None:
        self.register(name, part)

    def __delitem__(self, name: str) -> None:
        del self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts or name in brought(self.group)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._parts, *brought(self.group)]))

    def __len__(self) -> int:
        return len(list(iter(self)))
