"""Registry of thickness engines: one table for all, and the engines that fill it (thesis 3.5).

An engine is a class (`engine.Engine`) that is made with `Settings` and has two methods: before any work,
`check() -> Availability` tells whether it can be used here and what it lacks; `run(scan) -> Measurement` measures one
`Scan`. All that
the app needs to know of it stands with the class: name, pattern of results that it reads, sentence for a paper,
references, packages. Other packages bring engines as entry points of the group `bids_lesionfill.engines`.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from ..plugins import Registry
from .engine import Engine, EngineUnavailable, Settings

_HERE = 'bids_lesionfill.thickness.engines'
ENGINES = Registry(
    'bids_lesionfill.engines',
    {
        'pbt': f'{_HERE}.pbt:ProjectionBasedThickness',
        'ants': f'{_HERE}.ants:KellyKapowski',
        'antspynet': f'{_HERE}.antspynet:ANTsPyNet',
        'dldirect': f'{_HERE}.dldirect:DLDirect',
        'freesurfer': f'{_HERE}.freesurfer:FreeSurfer',
        'fastsurfer': f'{_HERE}.freesurfer:FastSurfer',
    },
)
DEFAULT_ENGINE = 'pbt'


def make_engine(name: str, settings: Settings | None = None) -> Engine:
    """Return an engine by name; it need not be usable, see `check`."""
    return ENGINES[name](settings or Settings())


def make_engines(names: Iterable[str], settings: Settings | None = None) -> dict[str, Engine]:
    """Return engines that are all usable, in the order of their names.

    Raises
    ------
    EngineUnavailable
        If one is not; the sentence names every one that is missing, what it lacks and how to get it.
    """
    engines = {name: make_engine(name, settings) for name in dict.fromkeys(names)}
    checks = {name: engine.check() for name, engine in engines.items()}
    missing = [f'{name}: {check.reason}; {check.how_to_get}' for name, check in checks.items() if not check.ok]
    if missing:
        raise EngineUnavailable('thickness engine not available: ' + ' | '.join(missing))
    return engines


def methods_text(engines: Iterable[str]) -> str:
    """Return a sentence to paste into a paper; empty if nothing is measured."""
    if not engines:
        return ''
    methods = '; by '.join(make_engine(name).method for name in engines)
    return (
        f' Cortical thickness was measured before and after filling by {methods}; '
        'regions are those of the Desikan-Killiany atlas (Desikan et al., 2006).'
    )


def has_results(folder: str | Path, engines: Iterable[str] | None = None) -> bool:
    """Return True if a folder holds results that one of some engines (all by default) reads: one folder per image."""
    patterns = {ENGINES[name].results_pattern for name in (ENGINES if engines is None else engines)}
    return any(any(Path(folder).glob(f'*/{pattern}')) for pattern in patterns if pattern)


def desc_in(*names: str) -> str | None:
    """Return whose results a folder holds, by the first of its names that tells: `original`, `filled`, or None."""
    for name in names:
        if said := re.search('original|unfilled|filled', name.lower()):
            return 'filled' if said[0] == 'filled' else 'original'
    return None
