"""Interface of a thickness engine, and what engines take and return."""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from . import tables


class Availability(NamedTuple):
    """Availability of an engine on this machine."""

    ok: bool
    version: str = ''
    reason: str = ''  # what it lacks
    how_to_get: str = ''  # one sentence


class EngineUnavailable(RuntimeError):
    """An engine that was asked for cannot be used here; the message is one sentence that says how to get it."""


def no_progress(name: str, unit: str) -> AbstractContextManager[None]:
    """Return a context that reports nothing; see `Settings.progress`."""
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Settings:
    """Settings of a run that engines need."""

    derivatives: dict = field(default_factory=dict)  # name -> Path: where results of other tools may lie
    allow_download: bool = False
    work_dir: Path | None = None  # for files of other programs; a temporary folder if not given
    progress: Callable = no_progress  # (name, unit) -> context manager of a callable (n_done, n_all), or of None


@dataclass(frozen=True)
class Scan:
    """One image to measure."""

    t1w_img: Any  # nibabel image
    t1w_file: Path  # the same image
    name: str  # sub-01_ses-1_run-2: what its files begin with
    desc: str  # 'original' or 'filled'
    visit: str = ''  # sub-01_ses-1, if this is the only T1w of the visit: what other tools may call it
    of_visit: Callable[[], Any] | None = None  # gives what was found in the T1w: images.anatomy.Anatomy, with its bias
    seed: int = 0  # a rerun of the same image has another

    @functools.cached_property
    def anatomy(self) -> Any:
        """Segmentation and regions, found when the first engine asks; see `thickness.anatomy.anatomy_of`."""
        from . import anatomy

        return anatomy.anatomy_of(self)


@dataclass(frozen=True)
class Measurement:
    """Result of an engine for one image."""

    table: tables.ThicknessTable
    tissue_seg_img: Any = None  # 1 CSF, 2 grey, 3 white matter on the image's grid, if the engine makes one
    info: dict = field(default_factory=dict)  # parameters and sources, for the sidecar
    cortex_img: Any = None  # grey matter of the ribbon on the image's grid, if the engine tells it from other
    regions_img: Any = None  # 1..68 on the cortex, as in tables.REGIONS, on the image's grid, if the engine knows them


class Engine(Protocol):
    """Interface of a thickness engine; see `registry`."""

    name: str
    has_noise: bool  # a rerun of the same image is cheap enough to measure the noise floor
    reads_results: bool  # results of another tool are read: that is cheap, and done anew every time
    results_pattern: str  # of a file in the folder that the other tool has for each image; '' if none is ever read
    method: str  # how it measures, for a paper: completes "Cortical thickness was measured ... by"
    references: tuple[str, ...]  # behind `method`: keys of report/references.bib, or whole BibTeX entries
    packages: tuple[str, ...]  # whose versions belong into a paper

    def __init__(self, settings: Settings) -> None: ...

    def check(self) -> Availability:
        """Return whether the engine can be used here, or what it lacks."""
        ...

    def run(self, scan: Scan) -> Measurement:
        """Measure a T1w image, or read what was measured on it."""
        ...
