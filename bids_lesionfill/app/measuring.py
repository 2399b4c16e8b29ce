"""One participant's image: thickness before and after filling, the noise floor, and where the lesions lie."""

import hashlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from ..images import anatomy, grid, nifti, placement, registration
from ..layout import derivatives, errors, inputs, naming
from ..layout import tables as layout_tables
from ..lesions import places
from ..report import thickness
from ..thickness import tables as thickness_tables
from ..thickness.engine import Scan
from . import loading

logger = logging.getLogger('bids_lesionfill')


RERUN_SEED = 1  # added to the image's seed


def measure_image(image, engines, output_dir, *, seed, version, noise=True, is_only_t1w=True, lesions=None):
    """Measure an image that has been filled, before and after, with every engine; write tables and tissue classes.

    What is there from the same image, engine and seed is not measured again; what is there from another is dropped.

    Parameters
    ----------
    image : layout.Inputs
    engines : dict of name -> Engine
        All of them available.
    output_dir : path
    seed : int
    version : str
        Of the app.
    noise : bool
        Measure the original a second time, with another seed, by those engines for which that is cheap.
    is_only_t1w : bool
        Other tools may then call it by the visit alone.
    lesions : dict, optional
        Which lesions were to be filled, as for `inputs.lesions_of`: `mask_threshold`, `labels`, `min_volume_mm3`.

    Raises
    ------
    RuntimeError
        If an engine failed; it names all that did. The others have been measured.
    """
    job = Job(image, output_dir, lesions or {})
    problems = {}
    for desc in naming.THICKNESS_DESCS:  # engines inside: those that share a segmentation make it once
        scan = read_scan(image, job.filled_file if desc == 'filled' else image.image_file, desc, seed, is_only_t1w)
        table_file = job.files[f'morph_{desc}']
        has_classes = False
        for name, engine in engines.items():
            engine_version = engine.check().version
            run_hash = job.hash(scan, desc, [name, engine_version, version])
            done = layout_tables.thickness_done(table_file, name)
            if done.get('RunHash') == run_hash and not engine.reads_results:
                has_classes |= done.get('TissueClasses') == f'by {name}'
                continue
            if done:
                layout_tables.drop_thickness(table_file, name)
            if desc == 'rerun' and not (noise and engine.has_noise):
                continue
            try:
                measurement = engine.run(scan)
                info = {'RunHash': run_hash, 'RandomSeed': scan.seed, 'Version': engine_version} | measurement.info
                if desc != 'rerun':
                    info |= job.describe_tissues(measurement, scan, desc, name, has_classes)
                    has_classes |= measurement.tissue_seg_img is not None
                layout_tables.write_thickness(
                    table_file, name, thickness_tables.table_rows(measurement.table, name), info, job.sources(desc)
                )
                logger.info(
                    '%s: %s, %s: %s', image.name, name, desc, thickness.known(measurement.table.global_mm, 'mm')
                )
            except Exception as error:
                logger.error('%s: thickness by %s (%s): %s', image.name, name, desc, error)
                problems[f'thickness by {name} ({desc}): {errors.in_words(error)}'] = error
    if problems:
        raise RuntimeError('; '.join(problems)) from next(iter(problems.values()))


class Job(NamedTuple):
    """An image that has been filled, where its tables are, and which of its lesions were to be filled."""

    image: inputs.Inputs
    output_dir: Path
    lesions: dict  # arguments of `inputs.lesions_of`

    @property
    def files(self):
        return naming.thickness_files(self.output_dir, self.image)

    @property
    def filled_file(self):
        return naming.output_files(self.output_dir, self.image)['filled']

    def sources(self, desc):
        """What a table or a segmentation comes from: BIDS URIs."""
        uri = f'bids::{self.filled_file.relative_to(self.output_dir).as_posix()}'
        return [*self.image.sources, *([uri] if desc == 'filled' else [])]

    def hash(self, scan, desc, measured_by):
        """What a measurement depends on, as SHA-256: the images, the seed, by what, and the lesions that are judged."""
        lesions = self.lesions if desc == 'filled' else None
        digest = hashlib.sha256(json.dumps([*measured_by, scan.desc, scan.seed, lesions], sort_keys=True).encode())
        digest.update(scan.t1w_file.read_bytes())
        if scan.brain_mask_img is not None:
            digest.update(np.asarray(scan.brain_mask_img.dataobj).tobytes())
        if desc == 'filled' and self.image.lesion_mask_file is not None:
            digest.update(self.image.lesion_mask_file.read_bytes())
        return digest.hexdigest()

    def describe_tissues(self, measurement, scan, desc, engine, has_classes):
        """Write tissue classes, if no engine before has made some; what they say, for the sidecar."""
        seg_img, source = tissues_of(measurement, scan, engine)
        dseg_file = self.files[f'dseg_{desc}']
        if not (has_classes and dseg_file.is_file()):
            layout_tables.write_dseg(dseg_file, seg_img, self.sources(desc), source)
        about = {'TissueClasses': source}
        if desc == 'filled':
            seg = np.asarray(seg_img.dataobj).astype(int)
            cortex_img = measurement.cortex_img
            ribbon = None if cortex_img is None else np.asarray(cortex_img.dataobj) > 0
            about['LesionVoxels'] = places.voxels_beside_white_matter(self.lesion_mask(), seg, ribbon)
            about['FilledVoxels'] = derivatives.read_sidecar(self.filled_file).get('LesionVoxelsUsed')
        return {name: value for name, value in about.items() if value is not None}

    def lesion_mask(self):
        """The lesions that were to be filled, on the grid of the T1w; bool array."""
        t1w_img = loading.open_image(self.filled_file)  # with its header, which may say nothing of its place
        if self.image.lesion_mask_file is None:  # a copy, see `copying`
            return np.zeros(t1w_img.shape[:3], dtype=bool)
        image = loading.settle(self.image)
        xfm_file = naming.xfm_file(self.output_dir, image)
        to_t1w = registration.from_itk_text(xfm_file.read_text(encoding='utf-8')) if xfm_file.is_file() else None
        lesion_mask_img = loading.lesions_of(image, to_t1w=to_t1w, **self.lesions)
        return placement.mask_on_grid(lesion_mask_img, t1w_img, self.lesions.get('mask_threshold', 0.5))


def read_scan(image, t1w_file, desc, seed, is_only_t1w=True):
    """What an engine is given; a rerun is the original with another seed."""
    visit = f'sub-{image.subject}' + (f'_ses-{image.session}' if image.session else '')
    return Scan(
        nifti.plain(loading.open_image(t1w_file), 'T1w'),
        t1w_file,
        naming.scan_name(image),
        'filled' if desc == 'filled' else 'original',
        visit if is_only_t1w else '',
        loading.open_brain_mask(image),
        seed + RERUN_SEED if desc == 'rerun' else seed,
    )


def tissues_of(measurement, scan, engine):
    """Tissue classes on the image's grid and whose they are: the engine's own, or the app's."""
    if measurement.tissue_seg_img is not None:
        return measurement.tissue_seg_img, f'by {engine}'
    return classify(scan), 'by a mixture of three normal distributions'


def classify(scan):
    """Tissue classes of an image whose engine makes none; nibabel image on its grid."""
    conformed_img = grid.conform(scan.t1w_img)
    t1w = conformed_img.get_fdata(dtype=np.float32)
    _, seg, _ = anatomy.find_tissues(t1w, np.zeros(t1w.shape, dtype=bool), conformed_img, scan.brain_mask_img)
    seg_img = nib.Nifti1Image(seg.astype(np.float32), conformed_img.affine)
    seg = grid.resample_to(seg_img, scan.t1w_img, order=0)
    return nib.Nifti1Image(np.rint(seg).astype(np.uint8), scan.t1w_img.affine)
