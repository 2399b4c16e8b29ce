"""One participant's image: thickness before and after filling, the noise floor, and where the lesions lie."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np

from .. import sidecars
from ..images import grid, nifti, placement, registration, segmentations, tissues
from ..images.anatomy import Anatomy
from ..layout import derivatives, errors, inputs, naming
from ..layout import tables as layout_tables
from ..lesions import places, records, settings
from ..report import thickness
from ..thickness import lesion_regions
from ..thickness import tables as thickness_tables
from ..thickness.engine import Scan
from . import loading

if TYPE_CHECKING:
    from ..thickness.engine import Measurement

logger = logging.getLogger('bids_lesionfill')


RERUN_SEED = 1  # added to the image's seed


@dataclass(frozen=True)
class Task:
    """Settings of the measurement of an image."""

    seed: int
    version: str  # of the app
    noise: bool = True  # measure the original again, with another seed, by those engines for which that is cheap
    is_only_t1w: bool = True  # of its visit: other tools may then call it by the visit alone
    choice: settings.MaskChoice = settings.DEFAULT_CHOICE  # which lesions were to be filled
    find_lesions: Callable[[], settings.Lesions] | None = None  # where those of other visits are filled, too

    def seed_of(self, desc: str) -> int:
        """Return the seed of the original, the filled image or the rerun."""
        return self.seed + RERUN_SEED if desc == 'rerun' else self.seed


def measure_image(
    image: inputs.Inputs,
    engines: dict,
    output_dir: Path,
    find_anatomy: Callable[[], Anatomy],
    task: Task,
    opener: Callable = loading.open_image,
) -> None:
    """Measure an image that has been filled, before and after, with every engine; write tables and tissue classes.

    What is there from the same image, engine and seed is not measured again; what is there from another is dropped.
    Original, filled image and rerun are measured in one brain mask, with one bias field: those of the anatomy.

    Parameters
    ----------
    image : layout.Inputs
    engines : dict of name -> Engine
        All of them available.
    output_dir : path
    find_anatomy : callable
        Gives the anatomy of the original (images.anatomy.Anatomy), with its bias field; called if anything is measured.
    task : Task
    opener : callable
        Opens input files, see `loading.Opener`.

    Raises
    ------
    RuntimeError
        If an engine failed; it names all that did. The others have been measured.
    """
    job = Job(image, output_dir, task, functools.cache(find_anatomy), opener)
    problems = {}
    for desc in naming.THICKNESS_DESCS:  # engines inside: those that share a segmentation make it once
        measure_desc(job, desc, engines, problems)
    if problems:
        raise RuntimeError('; '.join(problems)) from next(iter(problems.values()))


def measure_desc(job: Job, desc: str, engines: dict, problems: dict) -> None:
    """Measure the original, the filled image or the rerun with every engine; add what fails to `problems`."""
    scan = job.scan(desc)
    table_file = job.files[f'morph_{desc}']
    has_classes = has_regions = False
    for name, engine in engines.items():
        engine_version = engine.check().version
        run_hash = job.hash(scan, desc, [name, engine_version, job.task.version])
        done = layout_tables.thickness_done(table_file, name)
        if done.get('RunHash') == run_hash and not engine.reads_results:
            has_classes |= done.get('TissueClasses') == f'by {name}'
            has_regions |= bool(done.get('LesionRegions'))
            continue
        if done:
            layout_tables.drop_thickness(table_file, name)
        if desc == 'rerun' and not (job.task.noise and engine.has_noise):
            continue
        try:
            measurement = engine.run(scan)
            info = {'RunHash': run_hash, 'RandomSeed': scan.seed, 'Version': engine_version} | measurement.info
            lesions = job.lesions_by_region(measurement) if desc == 'filled' else []
            if desc != 'rerun':
                info |= job.describe_tissues(measurement, scan, desc, name, has_classes)
                has_classes |= measurement.tissue_seg_img is not None
            if lesions:
                info |= job.write_region_lesions(lesions, name, has_regions)
                has_regions = True
            rows = thickness_tables.table_rows(measurement.table, name, lesions)
            layout_tables.write_thickness(table_file, name, rows, info, job.sources(desc))
            logger.info(
                '%s: %s, %s: %s', job.image.name, name, desc, thickness.known(measurement.table.global_mm, 'mm')
            )
        except Exception as error:
            logger.error('%s: thickness by %s (%s): %s', job.image.name, name, desc, error)
            problems[f'thickness by {name} ({desc}): {errors.in_words(error)}'] = error


class Job(NamedTuple):
    """An image that has been filled, where its tables are, and how it is measured."""

    image: inputs.Inputs
    output_dir: Path
    task: Task
    find_anatomy: Callable[[], Anatomy]
    opener: Callable = loading.open_image

    @property
    def files(self) -> dict[str, Path]:
        """Paths of the tables and segmentations of the image; see `naming.thickness_files`."""
        return naming.thickness_files(self.output_dir, self.image)

    @property
    def filled_file(self) -> Path:
        """Path of the filled image."""
        return naming.output_files(self.output_dir, self.image)['filled']

    @property
    def used_file(self) -> Path:
        """Path of the mask of what was filled."""
        return naming.output_files(self.output_dir, self.image)['used_mask']

    def uri_of(self, path: Path) -> str:
        """Return the BIDS URI of an output."""
        return f'bids::{path.relative_to(self.output_dir).as_posix()}'

    def sources(self, desc: str) -> list[str]:
        """Return the BIDS URIs of the sources of a table or a segmentation."""
        return [*self.image.sources, *([self.uri_of(self.filled_file)] if desc == 'filled' else [])]

    def scan(self, desc: str) -> Scan:
        """Return what an engine is given; a rerun is the original with another seed."""
        image, is_filled = self.image, desc == 'filled'
        t1w_file = self.filled_file if is_filled else image.image_file
        t1w_img = loading.open_image(t1w_file) if is_filled else self.opener(t1w_file)
        visit = f'sub-{image.subject}' + (f'_ses-{image.session}' if image.session else '')
        return Scan(
            nifti.plain(t1w_img, 'T1w'),
            t1w_file,
            naming.scan_name(image),
            'filled' if desc == 'filled' else 'original',
            visit if self.task.is_only_t1w else '',
            self.find_anatomy,
            self.task.seed_of(desc),
        )

    def hash(self, scan: Scan, desc: str, measured_by: Sequence[Any]) -> str:
        """Compute the SHA-256 of all inputs of a measurement: images, seed, engine, selected lesions.

        The brain mask is that of the original image: it enters by the files that it is found from.
        """
        lesions = asdict(self.task.choice) if desc == 'filled' else None
        digest = hashlib.sha256(json.dumps([*measured_by, scan.desc, scan.seed, lesions], sort_keys=True).encode())
        segmentation = self.image.segmentation.files if self.image.segmentation else ()
        for path in (scan.t1w_file, self.image.image_file, self.image.brain_mask_file, *segmentation):
            digest.update(path.read_bytes() if path else b'none')
        if desc == 'filled' and self.image.lesion_mask_file is not None:
            digest.update(self.image.lesion_mask_file.read_bytes())
        return digest.hexdigest()

    def describe_tissues(
        self, measurement: Measurement, scan: Scan, desc: str, engine: str, has_classes: bool
    ) -> dict[str, Any]:
        """Write tissue classes, if no engine before has made some; what they say, for the sidecar."""
        seg_img, source = tissues_of(measurement, scan, engine)
        dseg_file = self.files[f'dseg_{desc}']
        if not (has_classes and dseg_file.is_file()):
            sources = [*self.sources(desc), *([self.uri_of(self.used_file)] if desc == 'filled' else [])]
            layout_tables.write_dseg(dseg_file, self.in_bids_labels(seg_img, desc), sources, source)
        about: dict[str, Any] = {'TissueClasses': source}
        if desc == 'filled':
            seg = np.asarray(seg_img.dataobj).astype(int)
            cortex_img = measurement.cortex_img
            ribbon = None if cortex_img is None else np.asarray(cortex_img.dataobj) > 0
            about['LesionVoxels'] = places.voxels_beside_white_matter(self.lesion_mask(), seg, ribbon)
            filled = sidecars.read(records.FillRecord, derivatives.read_sidecar(self.filled_file))
            about['FilledVoxels'] = filled.lesion_voxels_used
        return {name: value for name, value in about.items() if value is not None}

    def in_bids_labels(self, seg_img: nib.Nifti1Image, desc: str) -> nib.Nifti1Image:
        """Return tissue classes in the labels of BIDS; what was filled is a lesion in the filled image."""
        lesion_mask = self.used_mask() if desc == 'filled' else None
        labels = segmentations.in_bids_labels(np.asarray(seg_img.dataobj), lesion_mask)
        labels_img = nib.Nifti1Image(labels, seg_img.affine)
        labels_img.header.set_xyzt_units('mm')
        return labels_img

    def used_mask(self) -> np.ndarray:
        """Return the voxels that were filled, on the grid of the T1w; bool array."""
        return np.asarray(loading.open_image(self.used_file).dataobj) > 0

    def lesions_by_region(self, measurement: Measurement) -> list[dict[str, Any]]:
        """Return what was filled in and beside each region; empty if the engine has no regions as voxels."""
        if measurement.regions_img is None:
            return []
        regions, voxel_mm3 = measurement.regions_img, np.abs(np.linalg.det(measurement.regions_img.affine[:3, :3]))
        return lesion_regions.lesions_by_region(self.used_mask(), np.asarray(regions.dataobj), float(voxel_mm3))

    def write_region_lesions(self, rows: list[dict[str, Any]], engine: str, has_regions: bool) -> dict[str, str]:
        """Write the table of regions, if no engine before had some; its source, for the sidecar."""
        table_file, source = self.files['lesions_filled'], f'regions by {engine}'
        if not (has_regions and table_file.is_file()):
            indices = thickness_tables.FREESURFER_INDEX
            rows = [{'index': indices.get(row['name'])} | row for row in rows]
            sources = [*self.sources('filled'), self.uri_of(self.used_file)]
            layout_tables.write_region_lesions(table_file, rows, sources, source)
        return {'LesionRegions': source}

    def lesion_mask(self) -> np.ndarray:
        """Return the mask of lesions selected for filling, on the grid of the T1w; bool array."""
        t1w_img = loading.open_image(self.filled_file)  # with its header, which may say nothing of its place
        if self.task.find_lesions is not None:
            return self.task.find_lesions().on_grid(t1w_img)[0]
        if self.image.lesion_mask_file is None:  # a copy, see `copying`
            return np.zeros(t1w_img.shape[:3], dtype=bool)
        image = loading.settle(self.image, self.opener)
        xfm_file = naming.xfm_file(self.output_dir, image)
        to_t1w = registration.from_itk_text(xfm_file.read_text(encoding='utf-8')) if xfm_file.is_file() else None
        lesion_mask_img = loading.lesions_of(image, self.task.choice, to_t1w, self.opener)
        return placement.mask_on_grid(lesion_mask_img, t1w_img, self.task.choice.threshold)


def tissues_of(measurement: Measurement, scan: Scan, engine: str) -> tuple[nib.Nifti1Image, str]:
    """Return tissue classes on the image's grid and their source: the engine, or else the app."""
    if measurement.tissue_seg_img is not None:
        return measurement.tissue_seg_img, f'by {engine}'
    return classify(scan), 'by a mixture of three normal distributions'


def classify(scan: Scan) -> nib.Nifti1Image:
    """Compute tissue classes for an engine that provides none; nibabel image on the image's grid."""
    t1w_img, found = grid.conform(grid.without_background(scan.t1w_img)), scan.of_visit()  # type: ignore[misc]
    t1w = t1w_img.get_fdata(dtype=np.float32)
    seg = tissues.classify(t1w, found.brain_mask, np.zeros(t1w.shape, dtype=bool), found.bias_field)
    seg = grid.resample_to(nib.Nifti1Image(seg.astype(np.float32), t1w_img.affine), scan.t1w_img, order=0)
    return nib.Nifti1Image(np.rint(seg).astype(np.uint8), scan.t1w_img.affine)
