"""Run the app where patients are: its fills of `confluent` cases, of `real` patients and of lesions that `appeared`.

The app is called as its users call it (`fill.fill`), with images and masks, and classical fillers fill the mask that it
used. What it filled is kept under OUT/fills; with `reuse` it is taken from there.
"""

from __future__ import annotations

import logging
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from .. import text_files
from ..images import anatomy, grid, masks, nifti, placement, syn, tissues
from ..layout import datasets, naming
from ..layout import files as layout_files
from ..lesions import fill, measures, settings
from ..lesions import library as lesions_library
from ..modality import T1W, get
from ..train import brains
from . import appeared as evaluate_appeared
from . import cases, confluent, discriminability, real

if TYPE_CHECKING:
    import argparse

logger = logging.getLogger('bids_lesionfill.evaluate')

WHITE_MATTER_LEVEL = 1000  # of the images that are made of normalised ones
ROW = ('modality', 'subject', 'person', 'method', 'family', 'group', 'lesions', 'voxels')
REAL_COLUMNS = (*ROW, *measures.MEASURES, 'seconds')
APPEARED_COLUMNS = (
    *('modality', 'subject', 'lesion', 'volume_ml', 'x', 'y', 'z', 'contrast_first', 'contrast_second', 'verdict'),
    *('counts', 'picture', 'method', 'family', 'error', 'bias', 'error_unfilled', 'error_tissue', 'ratio'),
)
AUC_COLUMNS = ('modality', 'method', 'classifier', 'auc', 'auc_null', 'patches', 'by_patient')
CONFLUENT_KINDS = ('confluent', 'confluent-tight')
MARGIN_VOXELS = 14  # around a brain


class Filled(NamedTuple):
    """The result of the app for one image."""

    filled_img: nib.Nifti1Image
    used_mask_img: nib.Nifti1Image
    seconds: float  # NaN if it was taken from an earlier run


def fill_by_app(
    name: str,
    image_img: nib.Nifti1Image,
    mask_img: nib.Nifti1Image,
    other_img: nib.Nifti1Image,
    model: Any,
    steps: int | None,
    options: argparse.Namespace,
) -> Filled:
    """Fill an image by the app with its own seed, or take it from `OUT/fills`: Filled.

    Parameters
    ----------
    name : str
        Of the files under `OUT/fills`; what cannot be in a file name is replaced.
    image_img, mask_img : nibabel images
    other_img : nibabel image or None
        The T1w of a FLAIR, the FLAIR of a T1w.
    model : weights.Model
    steps : int or None
    options : of the command line
    """
    stem = options.output_dir / 'fills' / re.sub(r'[^\w.-]+', '-', f'{name}_{model.name}_{steps or "default"}')
    filled_file, used_file = (stem.with_name(f'{stem.name}_{part}.nii.gz') for part in ('filled', 'used'))
    if options.reuse_fills and filled_file.is_file() and used_file.is_file():
        return Filled(nib.load(filled_file), nib.load(used_file), np.nan)
    started = time.perf_counter()
    needs_t1w = get(model.modality).needs_t1w
    filling = fill.fill_alone(
        image_img,
        settings.Lesions(mask_img, flair_img=None if needs_t1w else other_img),
        model,
        other_img if needs_t1w else None,
        sampling=settings.Sampling(steps, device=options.device),
    )
    seconds = time.perf_counter() - started
    layout_files.write_image(used_file, filling.used_mask_img)
    layout_files.write_image(filled_file, filling.filled_img)
    logger.info('%s filled by %s in %.0f s', name, model.name, seconds)
    return Filled(nifti.as_loaded(filling.filled_img), filling.used_mask_img, seconds)


def classical_fillings(
    image_img: nib.Nifti1Image,
    used_mask_img: nib.Nifti1Image,
    wm_mask: np.ndarray,
    fillers: dict[str, Callable],
    seed: int,
) -> dict[str, np.ndarray]:
    """Fill the mask that the app used by classical fillers, on the app's working grid: dict of name -> native array.

    Parameters
    ----------
    image_img, used_mask_img : nibabel images of one grid
    wm_mask : (X, Y, Z) bool array, on the working grid
    fillers : dict of name -> function of (image, lesion_mask, wm_mask, rng)
    seed : int
    """
    plain_img = nifti.plain(image_img, 'image')
    conformed_img = grid.conform(plain_img)
    image = conformed_img.get_fdata(dtype=np.float32)
    used_mask = np.asarray(used_mask_img.dataobj) > 0
    hole = grid.touched_by(nifti.mask_image(used_mask, plain_img), conformed_img)
    scaling = grid.white_matter_scaling(image, wm_mask & ~hole)
    fillings = {}
    for name, filler in fillers.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = scaling.invert(filler(scaling.apply(image), hole, wm_mask, rng)[hole])
        filled = nifti.one_volume(image_img).astype(np.float64)
        filled[used_mask] = placement.on_grid(image, hole, values, conformed_img, plain_img)[used_mask]
        fillings[name] = filled
    return fillings


# confluent


def warped_masks(
    number: int, image: np.ndarray, tissue_seg: np.ndarray, affine: np.ndarray, options: argparse.Namespace
) -> list[tuple[str, np.ndarray]]:
    """Return patients' masks and single lesions in a healthy brain: list of (name, (X, Y, Z) bool array).

    Where the brain lies in the template is kept under `OUT/fills`.
    """
    rng = np.random.default_rng([options.seed, number, 4])
    library = lesions_library.load_lesion_library()
    brain_mask = tissue_seg > 0
    points_file = options.output_dir / 'fills' / f'brain-{number}_points.npy'
    if options.reuse_fills and points_file.is_file():
        points_mm = np.load(points_file)
    else:
        box = masks.bounding_box(brain_mask, 4)
        start = nib.affines.apply_affine(affine, [side.start for side in box])
        points_mm, info = syn.find_in(
            *(image[box] + 1, brain_mask[box], nib.affines.from_matvec(affine[:3, :3], start)),
            *(library.template.astype(np.float32), library.affine),
        )
        logger.info('brain %d is in the template: %s', number, info)
        points_file.parent.mkdir(parents=True, exist_ok=True)
        np.save(points_file, points_mm.astype(np.float32))
    found = []
    _, mask_files = datasets.split_lesion_masks(datasets.find_lesion_masks(options.lesion_masks or options.bids_dir[0]))
    n_whole = options.n_masks if options.lesion_shapes is None else max(1, options.n_masks - 1)
    for step in range(n_whole):
        mask_file = Path(mask_files[(number * n_whole + step) % len(mask_files)])
        mask_img = nib.load(mask_file)
        mask = np.asarray(mask_img.dataobj) > 0
        name = mask_file.name.split('_')[0]
        found.append((name, confluent.warp_mask(mask, mask_img.affine, points_mm, brain_mask)))
    if options.lesion_shapes is not None:
        with np.load(options.lesion_shapes) as archive:
            lesions, shapes_affine = confluent.unpack_lesions(archive), archive['affine'].astype(float)
        extent = np.max([offset + lesion.shape for offset, lesion in lesions], axis=0) + 2
        for step in range(options.n_masks - n_whole):
            mask = confluent.gather_lesions(lesions, extent, rng)
            warped = confluent.warp_mask(mask, shapes_affine, points_mm, brain_mask)
            found.append((f'single-{step + 1}', warped))
    return found


def confluent_cases(number: int, subject: str, files: Any, models: Any, options: argparse.Namespace) -> Iterator[Any]:
    """Yield confluent cases as the app fills them: (case, dict of method -> (filled, seconds)).

    The mask is that of a rater, or too tight or ragged (`confluent-tight`).
    """
    image, tissue_seg = brains.read_tissues(*files)
    affine = grid.conform(nib.load(files[0])).affine
    for step, (name, warped) in enumerate(warped_masks(number, image, tissue_seg, affine, options)):
        for kind in (kind for kind in CONFLUENT_KINDS if kind in options.kinds):
            tight = kind == 'confluent-tight'
            rng = np.random.default_rng([options.seed, number, 5, step])
            try:
                drawn = confluent.draw_case(image, tissue_seg, warped, rng, tight)
            except ValueError as error:
                logger.warning('%s, %s: %s', subject, name, error)
                continue
            seen_img = nib.Nifti1Image(np.float32(WHITE_MATTER_LEVEL / 1.5) * (drawn.seen + 1), affine)
            mask_img = nifti.mask_image(drawn.given_mask, seen_img)
            used_mask, by_app = np.zeros_like(drawn.given_mask), {}
            for label, model, steps in models:
                made = fill_by_app(f'{subject}_{name}_{kind}', seen_img, mask_img, None, model, steps, options)
                values = np.asarray(made.filled_img.get_fdata(dtype=np.float32)) * (1.5 / WHITE_MATTER_LEVEL) - 1
                by_app[label] = values.astype(np.float32), made.seconds
                used_mask = used_mask | (np.asarray(made.used_mask_img.dataobj) > 0)
            case = confluent.make_case(drawn, used_mask, kind, f'{subject}_{name}', 'app')
            logger.info(
                '%s, %s, %s: given %.1f ml, %.1f %% of it fluid, used %.1f ml, %.0f %% of the lesions at fluid',
                *(subject, name, kind, drawn.given_mask.sum() / 1000),
                *(100 * drawn.fluid_mask[drawn.given_mask].mean(), used_mask.sum() / 1000),
                100 * drawn.at_fluid[drawn.labels[drawn.labels > 0] - 1].mean(),
            )
            yield case, by_app


# real


def measure_patient(
    person: str,
    files: Sequence[Path],
    modality: str,
    models: list[Any],
    fillers: dict[str, Callable],
    options: argparse.Namespace,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure one image of a patient after filling by all methods: (rows, dict of Patches)."""
    image_img, t1w_img, mask_img = (nib.load(file) for file in files)
    subject = naming.strip_extension(Path(files[0]).name).rpartition('_')[0]
    flair_file = Path(str(files[0]).replace('_T1w.', '_FLAIR.'))
    other_img = nib.load(flair_file) if modality == T1W.name and flair_file.is_file() else t1w_img
    made = {
        label: fill_by_app(f'{subject}_{modality}', image_img, mask_img, other_img, model, steps, options)
        for label, model, steps in models
    }
    used_mask_img = next(iter(made.values())).used_mask_img
    grid_img = grid.conform(nifti.plain(image_img, 'image'))
    t1w = placement.t1w_on_grid(t1w_img, image_img, grid_img)
    brain_mask, _ = tissues.find_brain(t1w)
    given_mask, used_mask = (grid.conform_mask(img, grid_img) for img in (mask_img, used_mask_img))
    fillings = {label: grid.conform(result.filled_img).get_fdata(dtype=np.float32) for label, result in made.items()}
    box = masks.bounding_box(brain_mask | used_mask, MARGIN_VOXELS)
    original = grid_img.get_fdata(dtype=np.float32)[box]
    t1w, brain_mask, given_mask, used_mask = (array[box] for array in (t1w, brain_mask, given_mask, used_mask))
    fillings = {label: filled[box] for label, filled in fillings.items()}
    untouched = real.find_untouched(t1w, brain_mask, given_mask, used_mask)
    scaling = grid.white_matter_scaling(original, untouched.white_matter)
    for name, filler in fillers.items():
        rng = np.random.default_rng([options.seed, zlib.crc32(name.encode())])
        filled = scaling.invert(filler(scaling.apply(original), used_mask, untouched.white_matter, rng))
        fillings[name] = np.where(used_mask, filled, original).astype(np.float32)
    measured = real.measure_fills(
        original, {'unfilled': original} | fillings, given_mask, used_mask, untouched, modality
    )
    rows = []
    for row in measured:
        family = 'model' if row['method'] in made else 'control' if row['method'] == 'unfilled' else 'baseline'
        seconds = made[row['method']].seconds if family == 'model' else np.nan
        rows.append(
            {'modality': modality, 'subject': subject, 'person': person, 'family': family, 'seconds': seconds} | row
        )
    patches = {}
    mean, deviation, *grounds = real.patch_grounds(original, used_mask, untouched)
    for label, filled in fillings.items():
        rng = np.random.default_rng([options.seed, zlib.crc32(subject.encode())])  # every method at the same places
        off = ((image - mean) / deviation for image in (filled, original))
        patches[label] = discriminability.draw_patches(*off, *grounds, rng)  # type: ignore[call-arg]
    logger.info('%s %s measured, %d patches', subject, modality, len(next(iter(patches.values())).filled))
    return rows, patches


def measure_patients(
    models: dict[str, list[Any]], fillers: dict[str, Callable], options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure all patients of `--patients`, T1w and FLAIR: (rows of measures, rows of AUC)."""
    rows, aucs = [], []
    for modality, of_modality in models.items():
        people, found = [], []
        for bids_dir in options.patients:
            for person, *files in datasets.find_patients(bids_dir, modality):
                measured, patches = measure_patient(person, files, modality, of_modality, fillers, options)
                rows += measured
                people.append(person)
                found.append(patches)
        nulls = {}
        for label in found[0] if found else ():
            patches = [of_image[label] for of_image in found]
            for classifier in options.classifiers:
                # All methods have the same untouched patches.
                null = nulls.get(classifier)
                result = discriminability.discriminability(patches, people, classifier, null)
                nulls[classifier] = result['auc_null']
                result['by_patient'] = ', '.join(f'{k}: {v:.2f}' for k, v in result['by_patient'].items())
                aucs.append({'modality': modality, 'method': label, 'classifier': classifier} | result)
                logger.info('%s, %s, %s: AUC %.3f', modality, label, classifier, result['auc'])
    return rows, aucs


def summarise_real(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute median, minimum and maximum of every measure over images: list of dict."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ('modality', 'group', 'method', 'family')), []).append(row)
    summary = []
    for key, members in groups.items():
        entry = dict(zip(('modality', 'group', 'method', 'family'), key)) | {'images': len(members)}
        for measure in measures.MEASURES:
            values = np.array([row[measure] for row in members], dtype=float)
            values = values[np.isfinite(values)]
            for name, of in (('', np.median), ('_min', np.min), ('_max', np.max)):
                entry[f'{measure}{name}'] = float(of(values)) if values.size else np.nan
        summary.append(entry)
    return summary


# appeared


def find_follow_ups(folder: Path) -> list[tuple[Any, ...]]:
    """Find registered visit pairs in a folder: list of (subject, change mask, brain mask or None, images).

    `images` is a dict of modality -> list of files, one per visit, in their order.
    """
    found = []
    for change_file in sorted(Path(folder).rglob('*_label-change_mask.nii.gz')):
        subject = change_file.name.split('_')[0]
        images = {
            modality: sorted(change_file.parents[1].rglob(f'{subject}_ses-*_{modality}.nii.gz'))
            for modality in ('T1w', 'FLAIR')
        }
        found.append((subject, change_file, images))
    if not found:
        raise FileNotFoundError(f'no masks of changes (*_label-change_mask.nii.gz) below {folder}')
    return found


def read_review(path: Path | None) -> dict[tuple[str, int], bool]:
    """Read the manual review of changes: dict of (subject, lesion) -> True if it counts.

    A table with the columns `subject`, `lesion` and `counts` (yes or no).
    """
    if path is None:
        return {}
    return {(row['subject'], int(row['lesion'])): row['counts'] == 'yes' for row in text_files.read_tsv(path)}


def compare_visits(
    folder: Path, models: dict[str, list[Any]], fillers: dict[str, Callable], options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Fill new lesions at follow-up and compare them with the first visit: (rows, picture examples)."""
    rows, examples = [], []
    reviewed = read_review(options.review)
    for subject, change_file, images in find_follow_ups(folder):
        first_flair, second_flair = (nib.load(path) for path in images['FLAIR'][:2])
        t1w_img = nib.load(images['T1w'][-1])
        changed = np.asarray(nib.load(change_file).dataobj) > 0
        voxel_mm = nib.affines.voxel_sizes(second_flair.affine)
        grid_img = grid.conform(nifti.plain(second_flair, 'image'))
        t1w = placement.t1w_on_grid(t1w_img, second_flair, grid_img)
        lesions_on_grid = grid.conform_mask(nifti.mask_image(changed, second_flair), grid_img)
        brain_mask, wm_grid, _ = anatomy.find_white_matter(t1w, lesions_on_grid, grid_img)
        wm_mask = grid.conform_mask(nifti.mask_image(wm_grid, grid_img), second_flair)
        first, second = (nifti.one_volume(img) for img in (first_flair, second_flair))
        # No mask of all lesions exists: bright white matter is an old one.
        middle = np.median(second[wm_mask])
        wm_mask &= np.abs(second - middle) < 3 * measures.robust_deviation(second[wm_mask])
        wm_mask = ndimage.binary_opening(wm_mask, np.ones((3, 3, 1)))
        labels, changes = evaluate_appeared.find_changes(first, second, changed, wm_mask, voxel_mm)
        appeared = [change.number for change in changes if change.verdict == evaluate_appeared.APPEARED]
        logger.info('%s: %s', subject, ', '.join(f'{change.number} {change.verdict}' for change in changes))
        if not appeared:
            continue
        lesion_mask = np.isin(labels, appeared)
        for modality, of_modality in models.items():
            if len(images[modality]) < 2:
                continue
            visit_imgs = [nib.load(path) for path in images[modality][:2]]
            before, after = (nifti.one_volume(img) for img in visit_imgs)
            fillings, families = {'unfilled': after}, {'unfilled': 'control'}
            used_mask_img: Any = None
            for label, model, steps in of_modality:
                mask_img = nifti.mask_image(lesion_mask, second_flair)
                other_img = second_flair if modality == T1W.name else t1w_img
                made = fill_by_app(
                    f'{subject}_appeared_{modality}', visit_imgs[1], mask_img, other_img, model, steps, options
                )
                used_mask_img = used_mask_img or made.used_mask_img
                fillings[label], families[label] = made.filled_img.get_fdata(dtype=np.float32), 'model'
            classical = classical_fillings(visit_imgs[1], used_mask_img, wm_grid, fillers, options.seed)
            fillings |= classical
            families |= dict.fromkeys(classical, 'baseline')
            touched = changed | (np.asarray(used_mask_img.dataobj) > 0)
            for change in changes:
                if change.verdict != evaluate_appeared.APPEARED:
                    continue
                lesion = labels == change.number
                counts = reviewed.get((subject, change.number))
                picture = f'appeared-{subject}-{change.number}-{modality}'
                common = {
                    **dict(zip(('modality', 'subject', 'lesion', 'volume_ml'), (modality, subject, *change[:2]))),
                    **dict(zip('xyz', change.voxel)),
                    **dict(zip(('contrast_first', 'contrast_second', 'verdict'), change[3:])),
                    'counts': 'not looked at' if counts is None else 'yes' if counts else 'no',
                    'picture': picture,
                }
                for label, filled in fillings.items():
                    scores = evaluate_appeared.score(before, filled, after, lesion, touched, wm_mask, voxel_mm)
                    rows.append(common | {'method': label, 'family': families[label]} | scores)
                examples.append(picture_of(common, before, after, fillings, lesion, wm_mask & ~touched, second_flair))
    return rows, examples


def picture_of(
    row: dict[str, Any],
    before: np.ndarray,
    after: np.ndarray,
    fillings: dict[str, np.ndarray],
    lesion: np.ndarray,
    around: Any,
    img: nib.Nifti1Image,
) -> dict[str, Any]:
    """Return the picture of a new lesion as `evaluation_page.write_page` takes it; white matter at 0.5."""
    box = evaluate_appeared.box_around(lesion, nib.affines.voxel_sizes(img.affine))
    near = around[box]
    part_img = img.slicer[box]

    def on_grid(volume: np.ndarray) -> np.ndarray:
        part = grid.conform(nib.Nifti1Image(np.asarray(volume, dtype=np.float32), part_img.affine), order=1)
        return part.get_fdata(dtype=np.float32)

    images = {'first visit, matched': evaluate_appeared.match(before[box], after[box], near)}
    images['second visit'] = after[box]
    images |= {label: filled[box] for label, filled in fillings.items() if label != 'unfilled'}
    middle = np.median(after[box][near])
    images = {label: on_grid(volume) * (1.5 / middle) - 1 for label, volume in images.items()}
    share = on_grid(lesion[box])
    mask = share > min(0.5, share.max() / 2)
    title = f'{row["subject"]}, {row["modality"]}, lesion {row["lesion"]} ({row["volume_ml"]:.2f} ml)'
    return {'title': title, 'kind': 'appeared', 'mask': mask, 'images': images, 'name': row['picture']}


def summarise_appeared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over the lesions that count, or over all if none is reviewed: list of dict."""
    groups = {}
    for row in rows:
        for counts in {'all that the numbers say', 'looked at' if row['counts'] == 'yes' else ''} - {''}:
            for group in ('all', evaluation_volume(row['volume_ml'])):
                key = (row['modality'], counts, group, row['method'], row['family'])
                groups.setdefault(key, []).append(row)
    summary = []
    for key, members in groups.items():
        entry = dict(zip(('modality', 'lesions', 'group', 'method', 'family'), key)) | {'n': len(members)}
        for name in ('error', 'bias', 'error_tissue', 'ratio'):
            values = np.array([row[name] for row in members], dtype=float)
            entry[name] = float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
        summary.append(entry)
    return summary


def evaluation_volume(volume_ml: float) -> str:
    """Name of the volume class of a lesion."""
    return next(real.volume_name(low, high) for low, high in cases.VOLUMES_ML if low <= volume_ml < high)
