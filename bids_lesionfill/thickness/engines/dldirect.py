"""Engine `dldirect`: DL+DiReCT (Rebsamen et al. 2020), run if it is installed, else its `result-thick.csv` is read."""

from __future__ import annotations

import csv
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from ... import text_files
from ..engine import Availability, Measurement
from ..registry import has_results
from ..tables import HEMISPHERES, REGIONS, table_of
from . import tools

if TYPE_CHECKING:
    from ..engine import Scan, Settings

PROGRAM, RESULT = 'dl+direct', 'result-thick.csv'


def read_result(lines: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Read thickness from a `result-thick.csv` of one image.

    Parameters
    ----------
    lines : sequence of str

    Returns
    -------
    regions : dict of region -> mm
    hemispheres : dict of hemisphere -> mm

    Raises
    ------
    ValueError
        If there is not one row with the regions of the Desikan-Killiany atlas.
    """
    rows = list(csv.DictReader(lines))
    if len(rows) != 1:
        raise ValueError(f'{len(rows)} rows, expected one image')
    values = {name.replace('-', '_', 1): float(text) for name, text in rows[0].items() if name != 'SUBJECT' and text}
    regions = {name: values[name] for name in REGIONS if name in values}
    if not regions:
        raise ValueError(f'columns {list(rows[0])[:4]}..., expected lh-bankssts and so on (model v0 or v6)')
    return regions, {name: values[f'{name}_MeanThickness'] for name in HEMISPHERES if f'{name}_MeanThickness' in values}


class DLDirect:
    """Runs `dl+direct`, or reads results in folders given with `--derivatives`."""

    name = 'dldirect'
    has_noise = False
    results_pattern = RESULT
    method = 'DL+DiReCT (Rebsamen et al., 2020)'
    references = ('rebsamen2020',)
    packages = ()

    def __init__(self, settings: Settings) -> None:
        self.work_dir = settings.work_dir
        derivatives = settings.derivatives.items()
        self.roots = {name: Path(path) for name, path in derivatives if has_results(path, [self.name])}

    @property
    def reads_results(self) -> bool:
        """True if there are results to read."""
        return bool(self.roots)

    def check(self) -> Availability:
        """Check that there are results to read, or the program."""
        if self.roots:
            return Availability(True, f'{RESULT} in ' + ', '.join(root.name for root in self.roots.values()))
        if program := shutil.which(PROGRAM):
            return Availability(True, program)
        return Availability(
            False,
            '',
            f'no {PROGRAM} on the PATH and no {RESULT} in the derivatives',
            'install DL+DiReCT from a checkout of SCAN-NRAD/DL-DiReCT (pip install -e), or give its results with '
            '--derivatives original=PATH filled=PATH',
        )

    def run(self, scan: Scan) -> Measurement | None:
        """Measure a T1w image, or read what was measured on it."""
        if self.roots:
            file = tools.find_results(self.roots, scan, RESULT)
            lines = text_files.read_text(file).splitlines()
        else:
            lines = self.run_program(scan)
        try:
            regions, hemispheres = read_result(lines)
        except ValueError as error:
            raise ValueError(f'{RESULT} of {scan.name} ({scan.desc}): {error}') from None
        return Measurement(table_of({name: (mm, 0) for name, mm in regions.items()}, hemispheres), None, {})

    def run_program(self, scan: Scan) -> list[str]:
        """Run `dl+direct`; it does not quote its arguments, so its files are in a folder without spaces."""
        with tempfile.TemporaryDirectory(dir=self.work_dir, prefix='dldirect') as folder:
            if ' ' in folder:
                raise ValueError(f'{PROGRAM} cannot work in {folder}: spaces; choose another --work-dir')
            t1w_file = Path(folder) / 'T1w.nii.gz'
            nib.save(nib.Nifti1Image(scan.t1w_img.get_fdata(dtype=np.float32), scan.t1w_img.affine), t1w_file)
            command = [PROGRAM, '--subject', scan.name, '--bet', str(t1w_file), f'{folder}/out']
            done = subprocess.run(command, capture_output=True, encoding='utf-8', errors='replace')
            result = Path(folder) / 'out' / RESULT
            if done.returncode or not result.is_file():
                raise RuntimeError(f'{PROGRAM} ended with {done.returncode}: {(done.stderr or done.stdout)[-300:]}')
            return text_files.read_text(result).splitlines()
