"""One participant's image: thickness before and after filling, the noise floor, and where the lesions lie."""

import hashlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from .. import fill, inputs, layout, preprocess, registration, reproducibility, tissues
from . import HEMISPHERES, REGION_NAMES, REGIONS, Scan

logger = logging.getLogger('bids_lesionfill')

RERUN_SEED = 1  # added to the image's seed
HEMISPHERE_MEAN = 'MeanThickness'
NAMES = (*(f'{hemisphere}_{HEMISPHERE_MEAN}' for hemisphere in HEMISPHERES), *REGIONS)


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
    for desc in layout.THICKNESS_DESCS:  # engines inside: those that share a segmentation make it once
        scan = read_scan(image, job.filled_file if desc == 'filled' else image.image_file, desc, seed, is_only_t1w)
        table_file = job.files[f'morph_{desc}']
        has_classes = False
        for name, engine in engines.items():
            engine_version = engine.check().version
            run_hash = job.hash(scan, desc, [name, engine_version, version])
            done = layout.thickness_done(table_file, name)
            if done.get('RunHash') == run_hash and not engine.reads_results:
                has_classes |= done.get('TissueClasses') == f'by {name}'
                continue
            if done:
                layout.drop_thickness(table_file, name)
            if desc == 'rerun' and not (noise and engine.has_noise):
                continue
            try:
                measurement = engine.run(scan)
                info = {'RunHash': run_hash, 'RandomSeed': scan.seed, 'Version': engine_version} | measurement.info
                if desc != 'rerun':
                    info |= job.describe_tissues(measurement, scan, desc, name, has_classes)
                    has_classes |= measurement.tissue_seg_img is not None
                layout.write_thickness(table_file, name, table_rows(measurement.table, name), info, job.sources(desc))
                logger.info('%s: %s, %s: %s', image.name, name, desc, known(measurement.table.global_mm, 'mm'))
            except Exception as error:
                logger.error('%s: thickness by %s (%s): %s', image.name, name, desc, error)
                problems[f'thickness by {name} ({desc}): {layout.in_words(error)}'] = error
    if problems:
        raise RuntimeError('; '.join(problems)) from next(iter(problems.values()))


class Job(NamedTuple):
    """An image that has been filled, where its tables are, and which of its lesions were to be filled."""

    image: layout.Inputs
    output_dir: Path
    lesions: dict  # arguments of `inputs.lesions_of`

    @property
    def files(self):
        return layout.thickness_files(self.output_dir, self.image)

    @property
    def filled_file(self):
        return layout.output_files(self.output_dir, self.image)['filled']

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
            layout.write_dseg(dseg_file, seg_img, self.sources(desc), source)
        about = {'TissueClasses': source}
        if desc == 'filled':
            seg = np.asarray(seg_img.dataobj).astype(int)
            about['LesionVoxels'] = tissues.voxels_beside_white_matter(self.lesion_mask(), seg)
            about['FilledVoxels'] = layout.read_sidecar(self.filled_file).get('LesionVoxelsUsed')
        return {name: value for name, value in about.items() if value is not None}

    def lesion_mask(self):
        """The lesions that were to be filled, on the grid of the T1w; bool array."""
        t1w_img = inputs.open_image(self.filled_file)  # with its header, which may say nothing of its place
        xfm_file = layout.xfm_file(self.output_dir, self.image)
        to_t1w = registration.from_itk_text(xfm_file.read_text(encoding='utf-8')) if xfm_file.is_file() else None
        lesion_mask_img = inputs.lesions_of(self.image, to_t1w=to_t1w, **self.lesions)
        return fill.mask_on_grid(lesion_mask_img, t1w_img, self.lesions.get('mask_threshold', 0.5))


def read_scan(image, t1w_file, desc, seed, is_only_t1w=True):
    """What an engine is given; a rerun is the original with another seed."""
    visit = f'sub-{image.subject}' + (f'_ses-{image.session}' if image.session else '')
    return Scan(
        fill.plain(inputs.open_image(t1w_file), 'T1w'),
        t1w_file,
        layout.scan_name(image),
        'filled' if desc == 'filled' else 'original',
        visit if is_only_t1w else '',
        inputs.open_brain_mask(image),
        seed + RERUN_SEED if desc == 'rerun' else seed,
    )


def tissues_of(measurement, scan, engine):
    """Tissue classes on the image's grid and whose they are: the engine's own, or the app's."""
    if measurement.tissue_seg_img is not None:
        return measurement.tissue_seg_img, f'by {engine}'
    return classify(scan), 'by a mixture of three normal distributions'


def classify(scan):
    """Tissue classes of an image whose engine makes none; nibabel image on its grid."""
    conformed_img = preprocess.conform(scan.t1w_img)
    t1w = conformed_img.get_fdata(dtype=np.float32)
    _, seg, _ = fill.find_tissues(t1w, np.zeros(t1w.shape, dtype=bool), conformed_img, scan.brain_mask_img)
    seg_img = nib.Nifti1Image(seg.astype(np.float32), conformed_img.affine)
    seg = preprocess.resample_to(seg_img, scan.t1w_img, order=0)
    return nib.Nifti1Image(np.rint(seg).astype(np.uint8), scan.t1w_img.affine)


def table_rows(table, engine):
    """A table as rows of the file: 68 regions and two hemispheres."""
    numbers = [1001, 1002, 1003, *range(1005, 1036)]  # of FreeSurfer, which counts the corpus callosum as 1004
    rows = []
    for hemisphere, side, offset in (('lh', 'L', 0), ('rh', 'R', 1000)):
        for number, name in zip(numbers, REGION_NAMES):
            region = f'{hemisphere}_{name}'
            rows.append(
                {
                    'engine': engine,
                    'index': number + offset,
                    'name': region,
                    'hemisphere': side,
                    'thickness_mm': round(table.thickness_mm[region], 6),
                    'n_voxels': table.n_voxels[region],
                }
            )
        rows.append(
            {
                'engine': engine,
                'index': None,
                'name': f'{hemisphere}_{HEMISPHERE_MEAN}',
                'hemisphere': side,
                'thickness_mm': round(table.hemisphere_mm[hemisphere], 6),
                'n_voxels': sum(n for name, n in table.n_voxels.items() if name.startswith(hemisphere)),
            }
        )
    return rows


def describe_thickness(image, output_dir):
    """What the report says of an image's thickness, read back from its tables; a list with one dict per engine.

    `engine`, `sentence` and `regions`: rows of region, before, after, change and whether it exceeds the noise.
    """
    files = layout.thickness_files(output_dir, image)
    tables = {}
    for desc in layout.THICKNESS_DESCS:
        tables[desc], _ = layout.whole_rows(files[f'morph_{desc}'])
    engines = dict.fromkeys(row['engine'] for row in tables['filled'])
    return [describe_engine(engine, tables) for engine in engines]


def describe_engine(engine, tables):
    """One engine's part of the report.

    A region exceeds the noise if its error is above the floor of all regions; a hemisphere, whose mean is far less
    noisy, if it is above its own rerun error.
    """
    values = {
        desc: {row['name']: row['thickness_mm'] for row in rows if row['engine'] == engine}
        for desc, rows in tables.items()
    }
    before, after, again = (
        np.array([values[desc].get(name) for name in NAMES], dtype=float) for desc in ('original', 'filled', 'rerun')
    )
    noise, errors = (reproducibility.error_percent(before, other) for other in (again, after))
    floor = reproducibility.noise_floor(noise[2:])
    limits = [*noise[:2], *[floor] * len(REGIONS)]
    rows = []
    for name, old, new, error, limit in zip(NAMES, before, after, errors, limits):
        above = 'n/a' if np.isnan(limit) or np.isnan(error) else 'yes' if error > limit else 'no'
        rows.append(
            {
                'region': name,
                'before_mm': round(float(old), 3),
                'after_mm': round(float(new), 3),
                'change_percent': round(float(reproducibility.change_percent(old, new)), 3),
                'error_percent': round(float(error), 3),
                'exceeds_noise_floor': above,
            }
        )
    verdicts = [row['exceeds_noise_floor'] for row in rows[2:]]
    sentence = ' '.join([global_sentence(before, after, again), floor_sentence(verdicts, floor)])
    return {'engine': engine, 'sentence': sentence, 'regions': rows}


def global_sentence(before, after, again):
    """The global means, the error of filling and that of a rerun, if there is one; a sentence of the report."""
    old, new, rerun = (values[:2].mean() for values in (before, after, again))
    error, noise = (known(reproducibility.error_percent(old, other), '%') for other in (new, rerun))
    beside = '' if np.isnan(again).all() else f'; {noise} between two runs on the original image'
    of_regions = reproducibility.nan_mean(reproducibility.error_percent(before, after)[2:], 0)
    return (
        f'Global mean thickness {known(old, "mm")} before and {known(new, "mm")} after filling '
        f'(error {error}{beside}); mean error of the regions {known(of_regions, "%")}.'
    )


def floor_sentence(verdicts, floor):
    """How many regions change by more than the noise floor, and how many would by chance; a sentence of the report."""
    if np.isnan(floor):
        return 'No rerun was measured, so there is no noise floor to compare with.'
    n_known = len(verdicts) - verdicts.count('n/a')
    by_chance = round((1 - reproducibility.FLOOR_PERCENTILE / 100) * n_known)
    return (
        f'Of {n_known} regions {verdicts.count("yes")} change by more than the noise floor of {floor:.3f} %, the '
        f"{reproducibility.FLOOR_PERCENTILE}th percentile of the regions' errors between two runs on the original "
        f'image (about {by_chance} are expected by chance, where filling changes no more than another seed does).'
    )


def known(value, unit):
    """A measured value with its unit, or `n/a`."""
    return 'n/a' if np.isnan(value) else f'{value:.3f} {unit}'
