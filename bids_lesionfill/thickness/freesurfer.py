"""Engines `freesurfer` and `fastsurfer`: read `aparc.stats`, or run `recon-all` by nipype where it is installed.

Two folders of subjects are given with `--derivatives`, one for the original and one for the filled images
(`--derivatives original=... filled=...`, or folders with these words in their names), or one with `sub-01` and
`sub-01_desc-filled` in it.
"""

import importlib.util
import math
import os
import shutil
from pathlib import Path

from . import HEMISPHERES, REGION_NAMES, Availability, Measurement, table_of, tools

STATS = 'stats/{hemisphere}.aparc.stats'


def read_stats(lines):
    """Thickness in an `aparc.stats` file of FreeSurfer.

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
    program = 'recon-all'

    def __init__(self, settings):
        self.derivatives = settings.derivatives
        self.work_dir = settings.work_dir

    def roots(self):
        """Folders among the derivatives that hold subjects with stats."""
        return [Path(path) for path in self.derivatives.values() if any(Path(path).glob('*/stats/lh.*.stats'))]

    @property
    def reads_results(self):
        """True if there are stats to read."""
        return bool(self.roots())

    def can_run(self):
        """True if the program, its licence and nipype are here."""
        home = os.environ.get('FREESURFER_HOME', '/nowhere')
        licence = os.environ.get('FS_LICENSE', f'{home}/license.txt')
        installed = importlib.util.find_spec('nipype') and shutil.which(self.program)
        return bool(installed) and Path(licence).is_file()

    def check(self):
        """Whether there are stats to read, or the program with its licence."""
        if roots := self.roots():
            return Availability(True, 'stats in ' + ', '.join(root.name for root in roots))
        if self.can_run():
            return Availability(True, f'{self.program} by nipype')
        return Availability(
            False,
            '',
            f'no folder of subjects with stats/lh.aparc.stats, and no {self.program} with a licence',
            f'run {self.name} on the original and on the filled T1w and give both folders of subjects with '
            '--derivatives original=PATH filled=PATH',
        )

    def run(self, scan):
        """Measure a T1w image, or read what was measured on it."""
        try:
            files = [
                tools.find_results(self.roots(), scan.name, scan.desc, STATS.format(hemisphere=hemisphere))
                for hemisphere in HEMISPHERES
            ]
        except FileNotFoundError:
            if not self.can_run():
                raise
            files = self.run_program(scan)
        regions, means = {}, {}
        for hemisphere, file in zip(HEMISPHERES, files):
            try:
                found, means[hemisphere] = read_stats(file.read_text().splitlines())
            except ValueError as error:
                raise ValueError(f'{file}: {error}; FastSurfer needs --fsaparc for it') from None
            regions |= {f'{hemisphere}_{name}': value for name, value in found.items()}
        return Measurement(table_of(regions, means), None, {'Read': [file.name for file in files]})

    def run_program(self, scan):
        """Run `recon-all -all` by nipype's interface; return the two stats files."""
        subjects_dir = Path(self.work_dir or 'work').resolve() / self.name
        subjects_dir.mkdir(parents=True, exist_ok=True)
        subject = f'{scan.name}_desc-{scan.desc}'
        tools.nipype_interface('freesurfer', 'ReconAll')(
            subject_id=subject, subjects_dir=str(subjects_dir), T1_files=[str(scan.t1w_file)], directive='all', openmp=1
        ).run()
        return [subjects_dir / subject / STATS.format(hemisphere=hemisphere) for hemisphere in HEMISPHERES]


class FastSurfer(FreeSurfer):
    """Reads `stats/?h.aparc.stats`, which FastSurfer writes with `--fsaparc`; it is not run."""

    name = 'fastsurfer'
    program = 'run_fastsurfer.sh'

    def can_run(self):
        return False
