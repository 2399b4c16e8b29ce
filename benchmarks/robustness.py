"""Does the bundled model still fill as well when the scanner changes? The whole app path, on changed validation brains.

    python benchmarks/robustness.py BIDS_DIR MASKS [--model NAME] [--n-lesions 8] [--brains 3] [--whole-head T1W]

Lesions are painted into healthy brains as in `rim` of the evaluation, with masks at their half maximum; then image and
mask are changed as another scanner would, and `fill.fill` finds brain and white matter itself, as for a user. M1's MSE
inside the mask that was used (white matter +0.5), against the healthy image with the same change, beside biharmonic
interpolation of the same mask on the same image. Prints Markdown.
"""

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_lesionfill import statistics
from bids_lesionfill.diffusion import classical, models
from bids_lesionfill.evaluate import cases
from bids_lesionfill.images import grid, masks, metrics, nifti, tissues
from bids_lesionfill.layout import datasets
from bids_lesionfill.lesions import fill, settings
from bids_lesionfill.train import brains as train_brains


def smooth_field(shape, rng, share):
    """A bias field of plus and minus `share`: a random quadratic."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing='ij')
    terms = (x, y, z, x * y, y * z, x * z, x**2, y**2, z**2)
    field = sum(rng.normal() * term for term in terms)
    return 1 + share * field / np.abs(field).max()


def gamma(power):
    return lambda t1w, rng: np.maximum(t1w, 0) ** power


def noise(share):
    """Rician noise of this share of the white matter (which is 1), inside the head."""

    def add(t1w, rng):
        real, imaginary = t1w + rng.normal(0, share, t1w.shape), rng.normal(0, share, t1w.shape)
        return np.where(t1w > 0, np.hypot(real, imaginary), 0)

    return add


def blur(t1w, rng):
    return ndimage.gaussian_filter(t1w, 0.7)


def bare(t1w, rng):
    """A brain mask that cuts two voxels too deep."""
    return np.where(ndimage.binary_erosion(ndimage.binary_fill_holes(t1w > 0), iterations=2), t1w, 0)


# name -> (change of the intensities; white matter is 1, background 0), voxel size in mm
CONDITIONS = {
    'as it is': (lambda t1w, rng: t1w, (1, 1, 1)),
    'contrast: power 0.7': (gamma(0.7), (1, 1, 1)),
    'contrast: power 1.5': (gamma(1.5), (1, 1, 1)),
    'bias field, 20 %': (lambda t1w, rng: t1w * smooth_field(t1w.shape, rng, 0.2), (1, 1, 1)),
    'bias field, 40 %': (lambda t1w, rng: t1w * smooth_field(t1w.shape, rng, 0.4), (1, 1, 1)),
    'noise, 3 %': (noise(0.03), (1, 1, 1)),
    'noise, 6 %': (noise(0.06), (1, 1, 1)),
    'blur, 0.7 voxels': (blur, (1, 1, 1)),
    'brain mask 2 voxels too tight': (bare, (1, 1, 1)),
    '0.7 mm': (lambda t1w, rng: t1w, (0.7, 0.7, 0.7)),
    '1.2 mm': (lambda t1w, rng: t1w, (1.2, 1.2, 1.2)),
    '1 x 1 x 3 mm': (lambda t1w, rng: t1w, (1, 1, 3)),
}


def on_voxels(volume, size_mm, order):
    """A 1 mm volume with other voxels; thick slices are averages."""
    img = nib.Nifti1Image(volume.astype(np.float32), np.eye(4))
    if size_mm == (1, 1, 1):
        return img
    for axis, size in enumerate(size_mm):
        if size > 1 and order > 1:
            volume = ndimage.uniform_filter1d(volume, round(size), axis=axis) if size >= 2 else volume
    img = nib.Nifti1Image(volume.astype(np.float32), np.eye(4))
    shape = np.floor(np.array(volume.shape) / size_mm).astype(int)
    target = nib.Nifti1Image(np.zeros(shape, np.float32), np.diag([*size_mm, 1.0]))
    return nib.Nifti1Image(grid.resample_to(img, target, order), target.affine)


def read_whole_head(t1w_file):
    """A healthy head with its skull, normalised, and tissue classes found in it as for a user's image."""
    t1w_img = grid.conform(nib.load(t1w_file))
    t1w = t1w_img.get_fdata(dtype=np.float32)
    brain_mask, _ = tissues.find_brain(t1w)
    tissue_seg = tissues.classify(t1w, brain_mask, np.zeros(t1w.shape, dtype=bool))
    return grid.white_matter_scaling(t1w, tissue_seg == tissues.WHITE_MATTER).apply(t1w), tissue_seg


def score_brain(errors, number, image, tissue_seg, conditions, shapes, model, options):
    """Paint lesions into a brain, fill them under every condition, and add errors: (condition, method) -> list."""
    rng = np.random.default_rng([options.seed, number])
    wm_mask = tissue_seg == 3
    labels = cases.scatter_lesions(tissue_seg, cases.find_ventricles(tissue_seg), shapes, rng, options.n_lesions)
    seen, alpha = cases.paint(image, labels, wm_mask, rng)
    healthy, seen = ((volume + 1) / 1.5 for volume in (image, seen))  # background 0, white matter 1
    for name, (change, size_mm) in conditions.items():
        changed = []
        for volume in (healthy, seen):
            rng = np.random.default_rng([options.seed, number, 1])  # the same noise and field in both
            changed.append(on_voxels(change(volume, rng), size_mm, order=3))
        healthy_img, seen_img = changed
        mask = on_voxels(alpha, size_mm, order=1).get_fdata() > 0.5
        mask_img = nib.Nifti1Image(mask.astype(np.uint8), seen_img.affine)
        filling = fill.fill_alone(seen_img, settings.Lesions(mask_img), model)
        used = filling.used_mask_img.get_fdata() > 0
        truth = healthy_img.get_fdata()
        native_wm = grid.conform_mask(nib.Nifti1Image(wm_mask.astype(np.uint8), np.eye(4)), seen_img)
        scale = 1.5 / np.median(truth[native_wm])
        fillings = {
            model.name: nifti.as_loaded(filling.filled_img).get_fdata(),
            'biharmonic': classical.biharmonic(seen_img.get_fdata(), used),
            'unfilled': seen_img.get_fdata(),
        }
        lesions, n_lesions = masks.label_lesions(used)
        for method, filled in fillings.items():
            for lesion in range(1, n_lesions + 1):
                inside = lesions == lesion
                mse = metrics.mean_squared_error(truth * scale, filled * scale, inside)
                errors.setdefault((name, method), []).append((number, mse))
        print(f'sub {number + 1}, {name}: {n_lesions} of {options.n_lesions}', file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bids_dir', type=Path)
    parser.add_argument('lesion_masks', type=Path)
    parser.add_argument('--model', default='fill-T1w')
    parser.add_argument('--n-lesions', type=int, default=8)
    parser.add_argument('--brains', type=int, default=3)
    parser.add_argument('--seed', type=int, default=3)
    parser.add_argument('--whole-head', type=Path, help='a healthy T1w with its skull, of somebody else')
    options = parser.parse_args()
    model = models.load_model(options.model)
    _, held_out = datasets.split_lesion_masks(datasets.find_lesion_masks(options.lesion_masks))
    shapes = train_brains.read_lesion_shapes(held_out)
    brains = datasets.find_training(options.bids_dir, 'validation')[: options.brains]
    errors = {}
    for number, files in enumerate(brains):
        image, tissue_seg = train_brains.read_tissues(*files)
        score_brain(errors, number, image, tissue_seg, CONDITIONS, shapes, model, options)
    if options.whole_head:
        image, tissue_seg = read_whole_head(options.whole_head)
        conditions = {'whole head with skull, one other person': CONDITIONS['as it is']}
        score_brain(errors, len(brains), image, tissue_seg, conditions, shapes, model, options)
    rng = np.random.default_rng(0)
    print(f'{len(brains)} brains, {options.n_lesions} lesions each, seed {options.seed}; MSE (95 % interval)\n')
    print(f'| change | lesions | {model.name} | biharmonic | unfilled | paired difference to biharmonic |')
    print('|---|---|---|---|---|---|')
    for name in dict.fromkeys(name for name, _ in errors):
        people, _ = zip(*errors[name, model.name])  # resampled first
        values = {method: [mse for _, mse in errors[name, method]] for method in (model.name, 'biharmonic', 'unfilled')}
        cells = [str(len(people))]
        for method in values:
            mean, low, high = statistics.bootstrap_mean(values[method], rng, clusters=people)
            cells.append(f'{mean:.4f} ({low:.4f} to {high:.4f})')
        difference, low, high = statistics.paired_bootstrap(
            values[model.name], values['biharmonic'], rng, clusters=people
        )
        cells.append(f'{difference:+.4f} ({low:+.4f} to {high:+.4f})')
        print(f'| {name} | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
