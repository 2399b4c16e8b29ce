"""Cortical thickness: one table for all, and the engines that fill it (design, section 5; thesis 3.5).

An engine is a class with a `name` that is made with `Settings` and has two methods: `check() -> Availability` says,
before any work, whether it can be used here and what it lacks; `run(scan) -> Measurement` measures one `Scan`.
"""

import importlib
import re
from pathlib import Path

from .engine import EngineUnavailable, Settings

# name -> (module, class); imported when it is asked for
ENGINES = {
    'pbt': ('pbt', 'ProjectionBasedThickness'),
    'ants': ('ants', 'KellyKapowski'),
    'antspynet': ('antspynet', 'ANTsPyNet'),
    'dldirect': ('dldirect', 'DLDirect'),
    'freesurfer': ('freesurfer', 'FreeSurfer'),
    'fastsurfer': ('freesurfer', 'FastSurfer'),
}
DEFAULT_ENGINE = 'pbt'
# What engines read of another tool, in a folder for each image.
RESULTS = {
    'dldirect': 'result-thick.csv',
    'freesurfer': 'stats/lh.*.stats',
    'fastsurfer': 'stats/lh.*.stats',
}


def make_engine(name, settings=None):
    """An engine by name; it need not be usable, see `check`."""
    module, class_name = ENGINES[name]
    return getattr(importlib.import_module(f'.engines.{module}', __package__), class_name)(settings or Settings())


def make_engines(names, settings=None):
    """Engines that are all usable, in the order of their names.

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


# How each engine measures, for a paper.
METHODS = {
    'pbt': 'projection-based thickness (Dahnke et al., 2013) on tissue classes with the priors of ICBM 2009a '
    '(Fonov et al., 2011), to which each brain was registered by SyN (Avants et al., 2008; antspyx)',
    'ants': 'DiReCT (Das et al., 2009; antspyx) on tissue classes with the priors of ICBM 2009a (Fonov et al., 2011), '
    'to which each brain was registered by SyN (Avants et al., 2008)',
    'ants script': "ANTs' program antsCorticalThickness.sh (Tustison et al., 2014)",
    'antspynet': 'ANTsPyNet (Tustison et al., 2021)',
    'dldirect': 'DL+DiReCT (Rebsamen et al., 2020)',
    'freesurfer': 'FreeSurfer (Fischl, 2012)',
    'fastsurfer': 'FastSurfer (Henschel et al., 2020)',
}


def methods_text(engines):
    """A sentence to paste into a paper; empty if nothing is measured."""
    if not engines:
        return ''
    names = ['ants script' if name == 'ants' and make_engine(name).template_dir else name for name in engines]
    methods = '; by '.join(METHODS[name] for name in names)
    return (
        f' Cortical thickness was measured before and after filling by {methods}; '
        'regions are those of the Desikan-Killiany atlas (Desikan et al., 2006).'
    )


def has_results(folder, engines=tuple(RESULTS)):
    """True if a folder holds results that one of some engines reads: one folder per image."""
    return any(any(Path(folder).glob(f'*/{RESULTS[name]}')) for name in engines if name in RESULTS)


def desc_in(*names):
    """Whose results a folder holds, by the first of its names that says it: `original`, `filled`, or None."""
    for name in names:
        if said := re.search('original|unfilled|filled', name.lower()):
            return 'filled' if said[0] == 'filled' else 'original'
    return None
