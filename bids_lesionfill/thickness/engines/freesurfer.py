"""Engines `freesurfer` and `fastsurfer`: read `aparc.stats`, or run `recon-all` by nipype where it is installed.

Two folders of subjects are given with `--derivatives`, one for the original and one for the filled images
(`--derivatives original=... filled=...`, or folders with these words in their names), or one with `sub-01` and
`sub-01_desc-filled` in it. A subject is FastSurfer's if its segmentation is; one with statistics alone can be either's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ... import text_files
from ..engine import Availability, Measurement
from ..tables import HEMISPHERES, REGION_NAMES, table_of
from . import tools

if TYPE_CHECKING:
    from ..engine import Scan, Settings

STATS = 'stats/{hemisphere}.aparc.stats'
REGIONS = 'mri/aparc+aseg.mgz'  # the same regions as labels of voxels
OF_FASTSURFER, OF_BOTH = 'mri/aparc.DKTatlas+aseg.deep*.mgz', 'mri/aseg.mgz'


def read_stats(lines: Sequence[str]) -> tuple[dict[str, tuple[float, int]], float]:
    """Read thickness from an `aparc.stats` file of FreeSurfer.

    Parameters
    ----------
    lines : sequence of str

    Returns
    -------
    regions : dict of region name -> (mm, vertices)
    mean_mm : float
        Of the hemisphere.

    Raises
    ------
    ValueError
        If it holds no thickness, or regions of another atlas.
    """
    mean_mm, regions = math.nan, {}
    columns = ['StructName', 'NumVert', 'SurfArea', 'GrayVol', 'ThickAvg']
    for line in lines:
        if line.startswith('# Measure Cortex, MeanThickness,'):
            mean_mm = float(line.split(',')[3])
        elif line.startswith('# ColHeaders'):
            columns = line.split()[2:]
        elif line.strip() and not line.startswith('#'):
            row = dict(zip(columns, line.split()))
            regions[row['StructName']] = (float(row['ThickAvg']), int(row['NumVert']))
    unknown = sorted(set(regions) - set(REGION_NAMES))
    if not regions or math.isnan(mean_mm) or unknown:
        raise ValueError(f'{len(regions)} regions, unknown {unknown}, mean {mean_mm}; expected the aparc atlas')
    return regions, mean_mm


class FreeSurfer:
    """Reads `stats/?h.aparc.stats`; runs `recon-all` (hours an image) where they are missing and it is installed."""

    name = 'freesurfer'
    has_noise = False
    results_pattern = 'stats/lh.*.stats'
    method = 'FreeSurfer (Fischl, 2012)'
    references = ('fischl2012',)
    packages = ()
    program = 'recon-all'

    def __init__(self, settings: Settings) -> None:
        self.derivatives = settings.derivatives
        self.work_dir = settings.work_dir

    @functools.cached_property
    def roots(self) -> dict[str, Path]:
        """Folders among the derivatives that hold subjects with stats of this tool: dict of name -> path."""
        return {
            name: Path(path)
            for name, path in self.derivatives.items()
            if any(self.is_ours(file.parents[1]) for file in Path(path).glob(f'*/{self.results_pattern}'))
        }

    def is_ours(self, subject_dir: Path) -> bool:
        """Return True if a subject was not processed by the other of the two tools."""
        return maker_of(subject_dir) in (None, self.name)

    @property
    def reads_results(self) -> bool:
        """True if there are stats to read."""
        return bool(self.roots)

    def can_run(self) -> bool:
        """Return True if the program, its licence and nipype are available."""
        home = os.environ.get('FREESURFER_HOME', '/nowhere')
        licence = os.environ.get('FS_LICENSE', f'{home}/license.txt')
        installed = importlib.util.find_spec('nipype') and shutil.which(self.program)
        return bool(installed) and Path(licence).is_file()

    def check(self) -> Availability:
        """Check that there are stats to read, or the program with its licence."""
        if self.roots:
            return Availability(True, 'stats in ' + ', '.join(root.name for root in self.roots.values()))
        if self.can_run():
            return Availability(True, f'{self.program} by nipype')
        return Availability(
            False,
            '',
            f'no folder of subjects with stats/lh.aparc.stats, and no {self.program} with a licence',
            f'run {self.name} on the original and on the filled T1w and give both folders of subjects with '
            '--derivatives original=PATH filled=PATH',
        )

    def run(self, scan: Scan) -> Measurement:
        """Measure a T1w image, or read what was measured on it."""
        try:
            files = [
                tools.find_results(self.roots, scan, STATS.format(hemisphere=hemisphere), self.is_ours)
                for hemisphere in HEMISPHERES
            ]
        except FileNotFoundError:
            if not self.can_run():
                raise
            return self.run_program(scan)
        return read_both(files, scan)

    def run_program(self, scan: Scan) -> Measurement:
        """Run `recon-all -all` by nipype's interface, in the work folder or in one that is removed; `Measurement`."""
        with contextlib.ExitStack() as stack:
            folder = self.work_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix=self.name))
            subjects_dir = Path(folder).resolve() / self.name
            subjects_dir.mkdir(parents=True, exist_ok=True)
            # By its bytes: in a subject that is there recon-all goes on, with the image that it was begun with.
            digest = hashlib.sha256(scan.t1w_file.read_bytes()).hexdigest()[:12]
            subject = f'{scan.name}_desc-{scan.desc}_{digest}'
            tools.nipype_interface('freesurfer', 'ReconAll')(
                subject_id=subject,
                subjects_dir=str(subjects_dir),
                T1_files=[str(scan.t1w_file)],
                directive='all',
                openmp=1,
            ).run()
            return read_both([subjects_dir / subject / STATS.format(hemisphere=side) for side in HEMISPHERES], scan)


def read_both(files: Sequence[Path], scan: Scan) -> Measurement:
    """Read a measurement from the stats files of both hemispheres, with the regions beside them if there are some."""
    regions, means = {}, {}
    for hemisphere, file in zip(HEMISPHERES, files):
        try:
            found, means[hemisphere] = read_stats(text_files.read_text(file).splitlines())
        except ValueError as error:
            raise ValueError(f'{file}: {error}; FastSurfer needs --fsaparc for it') from None
        regions |= {f'{hemisphere}_{name}': value for name, value in found.items()}
    regions_img = tools.regions_on_grid(files[0].parents[1] / REGIONS, scan)
    return Measurement(
        table_of(regions, means), None, {'Read': [file.name for file in files]}, regions_img=regions_img
    )


def maker_of(subject_dir: Path) -> str | None:
    """Return `fastsurfer` or `freesurfer`, by a subject folder's segmentation; None if it has none."""
    if any(subject_dir.glob(OF_FASTSURFER)):
        return 'fastsurfer'
    return 'freesurfer' if (subject_dir / OF_BOTH).is_file() else None


class FastSurfer(FreeSurfer):
    """Reads `stats/?h.aparc.stats`, which FastSurfer writes with `--fsaparc`; it is not run."""

    name = 'fastsurfer'
    method = 'FastSurfer (Henschel et al., 2020)'
    references = ('henschel2020',)
    program = 'run_fastsurfer.sh'

    def can_run(self) -> bool:
        """Return False: FastSurfer is not run."""
        return False
