"""Cortical thickness: one table for all, and the engines that fill it (design, section 5; thesis 3.5).

An engine is a class with a `name` that is made with `Settings` and has two methods: `check() -> Availability` says,
before any work, whether it can be used here and what it lacks; `run(scan) -> Measurement` measures one `Scan`.
"""

import importlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

REGION_NAMES = (
    *('bankssts', 'caudalanteriorcingulate', 'caudalmiddlefrontal', 'cuneus', 'entorhinal', 'fusiform'),
    *('inferiorparietal', 'inferiortemporal', 'isthmuscingulate', 'lateraloccipital', 'lateralorbitofrontal'),
    *('lingual', 'medialorbitofrontal', 'middletemporal', 'parahippocampal', 'paracentral', 'parsopercularis'),
    *('parsorbitalis', 'parstriangularis', 'pericalcarine', 'postcentral', 'posteriorcingulate', 'precentral'),
    *('precuneus', 'rostralanteriorcingulate', 'rostralmiddlefrontal', 'superiorfrontal', 'superiorparietal'),
    *('superiortemporal', 'supramarginal', 'frontalpole', 'temporalpole', 'transversetemporal', 'insula'),
)
HEMISPHERES = ('lh', 'rh')
REGIONS = tuple(f'{hemisphere}_{name}' for hemisphere in HEMISPHERES for name in REGION_NAMES)  # Desikan-Killiany, 68


class Availability(NamedTuple):
    """Whether an engine can be used here."""

    ok: bool
    version: str = ''
    reason: str = ''  # what it lacks
    how_to_get: str = ''  # one sentence


class EngineUnavailable(RuntimeError):
    """An engine that was asked for cannot be used here; the message is one sentence that says how to get it."""


@dataclass(frozen=True)
class Settings:
    """What engines need to know of a run."""

    derivatives: dict = field(default_factory=dict)  # name -> Path: where results of other tools may lie
    allow_download: bool = False
    work_dir: Path | None = None  # for files of other programs; a temporary folder if not given


@dataclass(frozen=True)
class Scan:
    """One image to measure."""

    t1w_img: Any  # nibabel image
    t1w_file: Path  # the same image
    name: str  # sub-01_ses-1_run-2: what its files begin with
    desc: str  # 'original' or 'filled'
    visit: str = ''  # sub-01_ses-1, if this is the only T1w of the visit: what other tools may call it
    brain_mask_img: Any = None
    seed: int = 0  # a rerun of the same image has another


@dataclass(frozen=True)
class ThicknessTable:
    """Mean thickness of 68 regions and two hemispheres, in mm; NaN where it is not known."""

    thickness_mm: dict  # of REGIONS, in that order
    n_voxels: dict  # of REGIONS: voxels (vertices, for surfaces) that were averaged; 0 where it is not known
    hemisphere_mm: dict  # of HEMISPHERES

    def __post_init__(self):
        if tuple(self.thickness_mm) != REGIONS or tuple(self.n_voxels) != REGIONS:
            raise ValueError(f'a table of {len(self.thickness_mm)} regions, expected the {len(REGIONS)} of REGIONS')
        if tuple(self.hemisphere_mm) != HEMISPHERES:
            raise ValueError(f'hemispheres {list(self.hemisphere_mm)}, expected {list(HEMISPHERES)}')

    @property
    def global_mm(self):
        """Mean of both hemispheres (thesis 3.5); NaN if one is not known."""
        return sum(self.hemisphere_mm.values()) / 2


@dataclass(frozen=True)
class Measurement:
    """What an engine found on one image."""

    table: ThicknessTable
    tissue_seg_img: Any = None  # 1 CSF, 2 grey, 3 white matter on the image's grid, if the engine makes one
    info: dict = field(default_factory=dict)  # parameters and sources, for the sidecar


class Engine(Protocol):
    """What every engine is."""

    name: str
    has_noise: bool  # a rerun of the same image is cheap enough to measure the noise floor
    reads_results: bool  # results of another tool are read: that is cheap, and done anew every time

    def __init__(self, settings: Settings): ...

    def check(self) -> Availability: ...

    def run(self, scan: Scan) -> Measurement: ...


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
    return getattr(importlib.import_module(f'.{module}', __name__), class_name)(settings or Settings())


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


def table_of(regions, hemispheres):
    """A table from what an engine knows.

    Parameters
    ----------
    regions : dict of region -> (mm, voxels)
        Those that are missing become NaN and 0.
    hemispheres : dict of hemisphere -> mm
    """
    known = {name: regions.get(name, (math.nan, 0)) for name in REGIONS}
    return ThicknessTable(
        {name: float(mm) for name, (mm, _) in known.items()},
        {name: int(n) for name, (_, n) in known.items()},
        {name: float(hemispheres.get(name, math.nan)) for name in HEMISPHERES},
    )
