"""Train the filler for every contrast: `python benchmarks/train_any_contrast.py DATA OUT [options of a run]`.

DATA holds the folders that its README names: `oasis` (healthy T1w with tissue labels; train and validation), and the
normal-appearing tissue of `healthy-singles`, `ljubljana`, `ljubljana-contrasts` and `mslesseg`. Kept out of training,
in all their contrasts: `--held-out` patients of Ljubljana, the validation people of OASIS, every fifth of the shapes of
`lesion-shapes` and the last six masks of `lesion-masks`. What was read is kept in OUT/brains.npz.
"""

import argparse
import logging
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from bids_lesionfill.diffusion import models
from bids_lesionfill.images import anatomy, masks, tissues
from bids_lesionfill.images import grid as images_grid
from bids_lesionfill.layout import datasets
from bids_lesionfill.train import brains as train_brains
from bids_lesionfill.train import cases as train_cases
from bids_lesionfill.train import loop, plans, randomisation

logger = logging.getLogger('train_any_contrast')
LEAST_WHITE_MATTER_ML = 200  # with less it was not found (sub-P1: 84 to 92 ml, partly insula)


def read_shapes(shapes_file, held_out):
    """Single lesions of `lesion-shapes`: every fifth (held out) or the others; list of bool arrays."""
    with np.load(shapes_file) as arrays:
        bits, pointers, shapes = arrays['bits'], arrays['ptr'], arrays['shape']
    lesions = []
    for number, shape in enumerate(shapes):
        if (number % 5 == 4) == held_out:
            part = np.unpackbits(bits[pointers[number] : pointers[number + 1]], count=int(np.prod(shape)))
            lesions.append(part.reshape(shape).astype(bool))
    return [lesion for lesion in lesions if lesion.sum() >= 50]  # for smaller ones see its README


def brain_of(image, tissue_seg, in_t1w_order):
    """A Brain cropped to its white matter, the levels of its tissues beside it if it is a T1w in the usual order."""
    wm_mask = tissue_seg == tissues.WHITE_MATTER
    levels = randomisation.measure_levels(image, tissue_seg) if in_t1w_order else None
    box = masks.bounding_box(wm_mask, 12)
    arrays = {'image': image.astype(np.float32), 'wm_mask': wm_mask, 'tissue_seg': tissue_seg.astype(np.uint8)}
    return train_brains.Brain(
        **{name: np.ascontiguousarray(array[box]) for name, array in arrays.items()}, levels=levels
    )


def largest_part(mask):
    """Largest connected part (6 neighbours) of a mask: not the spheres beside the head of sub-nii2mesh."""
    labels, _ = ndimage.label(mask)
    return labels == np.bincount(labels.flat)[1:].argmax() + 1


def read_healthy_t1w(image_file):
    """A T1w without labels."""
    t1w = images_grid.conform(nib.load(image_file)).get_fdata(dtype=np.float32)
    brain_mask, _ = tissues.find_brain(t1w)
    tissue_seg = tissues.classify(t1w, brain_mask, np.zeros_like(brain_mask))
    white_matter = largest_part(tissue_seg == tissues.WHITE_MATTER)
    tissue_seg[(tissue_seg == tissues.WHITE_MATTER) & ~white_matter] = tissues.EXCLUDED
    scaling = images_grid.white_matter_scaling(t1w, white_matter)
    return brain_of(np.where(brain_mask, scaling.apply(t1w), -1), tissue_seg, in_t1w_order=True)


def read_flair_alone(image_file, mask_file=None, wm_prior=None):
    """A FLAIR without a T1w: white matter is what is near its mode deep in the brain.

    Where other brains of the same grid say where white matter is (`wm_prior`, 0 to 1), that counts beside.
    """
    flair_img = images_grid.conform(nib.load(image_file))
    flair = flair_img.get_fdata(dtype=np.float32)
    lesion_mask = np.zeros(flair.shape, dtype=bool)
    if mask_file is not None:
        lesion_mask = images_grid.conform_mask(nib.load(mask_file), flair_img)
    brain_mask, _ = tissues.find_brain(flair)
    corrected = tissues.correct_bias(flair, brain_mask)
    smooth = ndimage.gaussian_filter(corrected, 0.7)
    deep = ndimage.binary_erosion(brain_mask, iterations=12) & ~lesion_mask
    if wm_prior is not None:
        deep &= wm_prior > 0.8
    inside = smooth[deep]
    counts, edges = np.histogram(inside[inside > 0], 100, range=(0, np.percentile(inside, 99)))
    counts = ndimage.gaussian_filter1d(counts.astype(float), 2)
    mode = edges[counts.argmax()] + (edges[1] - edges[0]) / 2
    near = ndimage.binary_dilation(lesion_mask, masks.FULL_CONNECTIVITY, iterations=anatomy.RIM_VOXELS)
    white_matter = brain_mask & (np.abs(smooth / mode - 1) < 0.12) & ~near
    if wm_prior is not None:
        white_matter &= wm_prior > 0.6
    white_matter = largest_part(ndimage.binary_opening(white_matter))
    tissue_seg = np.where(brain_mask, tissues.GREY_MATTER, 0)
    tissue_seg[brain_mask & (smooth < 0.6 * mode)] = tissues.CSF
    tissue_seg[near & brain_mask] = tissues.EXCLUDED
    tissue_seg[white_matter] = tissues.WHITE_MATTER
    scaling = images_grid.white_matter_scaling(flair, white_matter)
    return brain_of(np.where(brain_mask, scaling.apply(flair), -1), tissue_seg, in_t1w_order=False)


def read_patient_images(image_files, t1w_file, mask_file):
    """Images of one visit, by the tissue classes of its T1w: a list of Brain; and the white matter on its grid."""
    t1w_img = images_grid.conform(nib.load(t1w_file))
    lesion_mask = images_grid.conform_mask(nib.load(mask_file), t1w_img)
    brains, tissue_seg = [], None
    for image_file in image_files:
        patient, _ = anatomy.normalise_patient(nib.load(image_file), t1w_img, lesion_mask)
        tissue_seg = anatomy.normal_appearing(patient)
        brains.append(brain_of(patient.image, tissue_seg, in_t1w_order=image_file == t1w_file))
    return brains, tissue_seg == tissues.WHITE_MATTER


def read_all(data_dir, held_out):
    """Brains to train on (dict by name), and those of the validation people of OASIS."""
    brains, validation = {}, {}
    for split, group in (('train', brains), ('validation', validation)):
        for t1w_file, dseg_file in datasets.find_training(data_dir / 'oasis', split):
            group[Path(t1w_file).name] = brain_of(*train_brains.read_tissues(t1w_file, dseg_file), in_t1w_order=True)
    for image_file in sorted((data_dir / 'healthy-singles').glob('sub-*/anat/*_T1w.nii.gz')):
        brains[image_file.name] = read_healthy_t1w(image_file)
    for image_file in sorted((data_dir / 'healthy-singles').glob('sub-*/anat/*_FLAIR.nii.gz')):
        brains[image_file.name] = read_flair_alone(image_file)
    priors = {}
    for mask_file in sorted(data_dir.glob('ljubljana/derivatives/lesions/**/*_mask.nii.gz')) + sorted(
        data_dir.glob('mslesseg/derivatives/lesions/**/*_mask.nii.gz')
    ):
        anat = Path(*(part for part in mask_file.parent.parts if part not in ('derivatives', 'lesions')))
        label = re.search('sub-([^_]+)', mask_file.name)[1]
        t1w_files = sorted(anat.glob('*_T1w.nii.gz'))
        if label in held_out or not t1w_files:
            continue
        files = [*t1w_files, *sorted(anat.glob('*_FLAIR.nii.gz'))]
        if 'ljubljana' in anat.parts:
            files += sorted((data_dir / 'ljubljana-contrasts' / f'sub-{label}' / 'anat').glob('*.nii.gz'))
        read, white_matter = read_patient_images(files, t1w_files[0], mask_file)
        brains |= {file.name: brain for file, brain in zip(files, read)}
        grid = nib.as_closest_canonical(nib.load(t1w_files[0]))
        priors.setdefault((grid.shape, tuple(np.round(grid.affine, 2).flat)), {})[label] = white_matter
        logger.info('read %s', label)
    for mask_file in sorted(data_dir.glob('mslesseg/derivatives/lesions/sub-P1/**/*_mask.nii.gz')):
        anat = Path(*(part for part in mask_file.parent.parts if part not in ('derivatives', 'lesions')))
        image_file = next(anat.glob('*_FLAIR.nii.gz'))
        grid = nib.as_closest_canonical(nib.load(image_file))
        alike = list(priors.get((grid.shape, tuple(np.round(grid.affine, 2).flat)), {}).values())
        prior = ndimage.gaussian_filter(np.mean(alike, axis=0, dtype=np.float32), 1.5) if len(alike) > 1 else None
        logger.info('%s: prior of %d people', image_file.name, len(alike))
        brains[image_file.name] = read_flair_alone(image_file, mask_file, prior)
    return brains, validation


def save_brains(brains, path):
    """Write brains (dict by name) to a file that `load_brains` reads."""
    arrays = {}
    for name, brain in brains.items():
        arrays |= {f'{name}/{field}': getattr(brain, field) for field in ('image', 'wm_mask', 'tissue_seg')}
        arrays[f'{name}/levels'] = np.array(brain.levels or (), dtype=np.float64)
    np.savez(path, **arrays)


def load_brains(path):
    """Inverse of `save_brains`."""
    brains = {}
    with np.load(path) as arrays:
        for name in dict.fromkeys(key.rsplit('/', 1)[0] for key in arrays):
            levels = arrays[f'{name}/levels'].tolist()
            fields = {field: arrays[f'{name}/{field}'] for field in ('image', 'wm_mask', 'tissue_seg')}
            brains[name] = train_brains.Brain(**fields, levels=randomisation.Levels(*levels) if levels else None)
    return brains


def validation_cases(brains, lesions, plan, n_cases, seed):
    """As `dataset.validation_cases`, a third each: the T1w as it is, in random contrasts, with confluent lesions."""
    plain = replace(plan, contrast_randomisation=0.0, acquisition_randomisation=0.0, native_thick_share=0.0)
    kinds = {
        'T1w': replace(plain, confluent_share=0.0),
        'random': replace(plan, contrast_randomisation=1.0, confluent_share=0.0),
        'confluent': replace(plan, contrast_randomisation=0.5, confluent_share=1.0),
    }
    cases = []
    for kind, changed in kinds.items():
        drawn = train_cases.validation_cases(brains, lesions, changed, plans.ANY.form, n_cases // len(kinds), seed)
        cases += [case | {'kind': f'{kind}-{case["kind"]}'} for case in drawn]
    return cases


def export(output_dir, model_dir):
    """Write the averaged weights of a run's last checkpoint as a model folder; return its number of updates."""
    plan = plans.Plan.from_json((output_dir / 'plan.json').read_text())
    state = torch.load(output_dir / 'checkpoint.pt', weights_only=True)
    network = plan.build_unet()
    network.load_state_dict(state['network'])
    for parameter, averaged in zip(network.parameters(), state['ema']['shadow_params']):
        parameter.data.copy_(averaged)
    loop.save_model(network, plan, model_dir)
    return state['update']


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('data_dir', type=Path)
    parser.add_argument('output_dir', type=Path)
    parser.add_argument('--held-out', nargs='+', default=['07', '26'], help='patients that are not trained on')
    parser.add_argument('--init-from', default='fill-T1w')
    parser.add_argument('--num-updates', type=int, default=100_000)
    parser.add_argument('--decay-updates', type=int, default=0)
    parser.add_argument('--read-only', action='store_true', help='read and keep the brains, do not train')
    parser.add_argument('--export', type=Path, help='write the averaged weights of the last checkpoint here, and stop')
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    torch.set_num_threads(1)
    if options.export:
        logger.info('%d updates', export(options.output_dir, options.export))
        return
    options.output_dir.mkdir(parents=True, exist_ok=True)
    files = [options.output_dir / f'{name}.npz' for name in ('brains', 'validation')]
    if not all(file.exists() for file in files):
        for group, file in zip(read_all(options.data_dir, options.held_out), files):
            save_brains(group, file)
    brains, validation = (load_brains(file) for file in files)
    for name, brain in (brains | validation).items():
        logger.info('%s: %d ml of white matter, levels %s', name, brain.wm_mask.sum() / 1000, brain.levels)
    brains = {name: b for name, b in brains.items() if b.wm_mask.sum() / 1000 >= LEAST_WHITE_MATTER_ML}
    logger.info('%d images to train on', len(brains))
    if options.read_only:
        return
    mask_files = datasets.find_lesion_masks(options.data_dir / 'lesion-masks')
    groups = [train_brains.read_lesion_shapes(files) for files in datasets.split_lesion_masks(mask_files)]
    shapes_file = options.data_dir / 'lesion-shapes' / 'lesions.npz'
    lesions, validation_lesions = (
        group + read_shapes(shapes_file, held_out) for group, held_out in zip(groups, (False, True))
    )
    plan = replace(plans.ANY, num_updates=options.num_updates, decay_updates=options.decay_updates)
    cases = validation_cases(
        list(validation.values()), validation_lesions, plan.cases, plan.n_validation_cases, plan.seed
    )
    loop.train(
        list(brains.values()),
        cases,
        lesions,
        plan,
        options.output_dir,
        num_workers=1,
        initial_weights=models.load_model(options.init_from).unet.state_dict(),
    )


if __name__ == '__main__':
    main()
