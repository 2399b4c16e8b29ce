"""Engine `antspynet`: ANTsPyNet's cortical thickness (Tustison et al. 2021), averaged over our regions.

Its weights are downloaded by it when they are missing; here that happens with `--allow-download` only.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from ...images import syn
from .. import anatomy
from ..engine import Availability, Measurement

if TYPE_CHECKING:
    from ..engine import Scan, Settings

# What `antspynet.cortical_thickness` reads of one T1w image (ANTsPyNet 9f42a59).
FILES = (
    'brainExtractionRobustT1.h5',
    'S_template3.nii.gz',
    'croppedMni152.nii.gz',
    'croppedMni152Priors.nii.gz',
    'sixTissueOctantBrainSegmentationWithPriors1.h5',
)


class ANTsPyNet:
    """Deep Atropos and DiReCT."""

    name = 'antspynet'
    reads_results = False
    has_noise = False
    results_pattern = ''
    method = 'ANTsPyNet (Tustison et al., 2021)'
    references = ('tustison2021',)
    packages = ('antspyx',)

    def __init__(self, settings: Settings) -> None:
        self.allow_download = settings.allow_download
        self.work_dir = settings.work_dir
        self.cache_dir = Path(os.environ.get('ANTSXNET_CACHE_DIRECTORY', Path.home() / '.keras' / 'ANTsXNet'))

    def check(self) -> Availability:
        """Check that the packages and the weights are available."""
        embedded = anatomy.check()
        if not embedded.ok:
            return embedded
        packages = [name for name in ('antspynet', 'tensorflow') if importlib.util.find_spec(name) is None]
        if packages:
            return Availability(
                False, '', f'{" and ".join(packages)} not installed', 'get it with: pip install antspynet tensorflow'
            )
        missing = [name for name in FILES if not (self.cache_dir / name).is_file()]
        if missing and not self.allow_download:
            return Availability(
                False,
                '',
                f'{len(missing)} of {len(FILES)} files are missing in {self.cache_dir}: {", ".join(missing)}',
                'put them there, or let it fetch them with --allow-download',
            )
        return Availability(True, f'antspynet {importlib.metadata.version("antspynet")}')

    def run(self, scan: Scan) -> Measurement:
        """Measure a T1w image; `Measurement` with tissue classes."""
        ants = syn.import_ants()
        import antspynet

        antspynet.set_antsxnet_cache_directory(str(self.cache_dir))
        with tempfile.TemporaryDirectory(dir=self.work_dir) as folder:
            t1w_file = f'{folder}/t1w.nii.gz'
            nib.save(nib.Nifti1Image(scan.t1w_img.get_fdata(dtype=np.float32), scan.t1w_img.affine), t1w_file)
            result = antspynet.cortical_thickness(ants.image_read(t1w_file))
            maps = {}
            for key in ('thickness_image', 'segmentation_image'):
                ants.image_write(result[key], f'{folder}/{key}.nii.gz')
                img = nib.load(f'{folder}/{key}.nii.gz')
                maps[key] = nib.Nifti1Image(img.get_fdata(dtype=np.float32), img.affine)
        found = scan.anatomy
        thickness = anatomy.sample_thickness(maps['thickness_image'], found)
        seg_img = anatomy.classes_of_six(maps['segmentation_image'], scan, found)
        info = {'Thickness': 'antspynet.cortical_thickness', 'Parcellation': found.info['Parcellation']}
        return Measurement(anatomy.average(thickness, found), seg_img, info, *anatomy.cortex_of(found, scan))
