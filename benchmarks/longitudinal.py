"""Change between two visits that filling adds, each visit filled alone and together: `longitudinal.md`.

    python benchmarks/longitudinal.py BIDS_DIR --work-dir WORK --pair sub-P14/ses-T1 sub-P14/ses-T2
    python benchmarks/longitudinal.py BIDS_DIR --work-dir WORK --pair sub-1003 sub-1023 --masks LESION_MASKS

Two T1w of one person. With `--masks` (whose names are those of the lesion masks of 30 patients in MNI space) they are
scan and rescan of a healthy one: shapes of real lesions are put at random places of white matter, the same ones in both
scans, and what is filled is healthy tissue whose change is known from the originals. Else the lesions are the
patient's, and untouched white matter of the same shapes is looked for elsewhere in the same two images.

Intensities of the second visit are matched by median and robust deviation of white matter that neither run changed.
"""

import argparse
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_lesionfill import text_files
from bids_lesionfill.app import cli
from bids_lesionfill.images import anatomy, grid, masks, registration

RUNS = {
    'each alone': [],
    'together': ['--longitudinal'],
    'together, all lesions in both': ['--longitudinal', '--mask-union'],
}
SHAPE_VOXELS = 150, 3000  # of shapes that are put into healthy white matter
LOAD_ML = 8
TRIES = 400


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bids_dir', type=Path)
    parser.add_argument('--work-dir', type=Path, required=True)
    parser.add_argument('--pair', nargs=2, required=True, help='folders of the two visits, in BIDS_DIR')
    parser.add_argument('--masks', type=Path, help='BIDS dataset of lesion masks')
    parser.add_argument('--runs', nargs='+', choices=RUNS, default=list(RUNS)[:2])
    parser.add_argument('--options', nargs='*', default=[], help='more of the app, without hyphens: texture=mean')
    options = parser.parse_args()
    name = ''.join(options.pair).replace('/', '').replace('-', '')  # pybids would read entities in it
    data = options.work_dir / name / 'data'
    if not data.is_dir():
        build(options, data)
    more = [word for text in options.options for word in (f'--{text.split("=")[0]}', *text.split('=')[1:])]
    outputs = {}
    for run in options.runs:
        outputs[run] = options.work_dir / name / '_'.join([run, *options.options]).replace(' ', '_').replace(',', '')
        arguments = [data, outputs[run], 'participant', '--skip-bids-validation', *RUNS[run], *more]
        if cli.main([str(argument) for argument in arguments]):
            raise SystemExit(f'{run} failed')
    print(f'\n{" and ".join(options.pair)} {" ".join(options.options)}')
    print(compare(data, outputs, bool(options.masks)))


# ------------------------------------------------------------------------------------------------------- two visits


def t1w_of(root, session):
    """Path of the T1w of a session of the dataset that is built."""
    return root / f'sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz'


def mask_of(root, session):
    return root / f'derivatives/lesions/sub-01/ses-{session}/anat/sub-01_ses-{session}_label-lesion_mask.nii.gz'


def build(options, root):
    """Write a dataset of one participant with the two visits as sessions 1 and 2."""
    for folder in (root, root / 'derivatives/lesions'):
        text_files_of(folder)
    for session, visit in zip('12', options.pair):
        (source,) = (options.bids_dir / visit / 'anat').glob('*_T1w.nii.gz')
        for path in (t1w_of(root, session), mask_of(root, session)):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, t1w_of(root, session))
        if options.masks is None:
            (mask,) = (options.bids_dir / 'derivatives/lesions' / visit / 'anat').glob('*label-lesion_mask.nii.gz')
            shutil.copyfile(mask, mask_of(root, session))
    if options.masks is not None:
        first_img, second_img = (nib.load(t1w_of(root, session)) for session in '12')
        mask_img = scatter(first_img, sorted(options.masks.rglob('*_mask.nii.gz')))
        nib.save(mask_img, mask_of(root, '1'))
        to_second, _ = registration.rigid(*values(first_img), *values(second_img), (8, 4, 2))
        moved_img = nib.Nifti1Image(mask_img.get_fdata(dtype=np.float32), to_second @ mask_img.affine)
        moved = grid.resample_to(moved_img, second_img, order=1) >= 0.5
        nib.save(nib.Nifti1Image(moved.astype(np.uint8), second_img.affine), mask_of(root, '2'))


def text_files_of(folder):
    """Write the description of a dataset."""
    folder.mkdir(parents=True)
    text = '{"Name": "two visits", "BIDSVersion": "1.10.0"%s}\n'
    kind = '' if folder.name == 'data' else ', "DatasetType": "derivative", "GeneratedBy": [{"Name": "rater"}]'
    (folder / 'dataset_description.json').write_text(text % kind)


def values(img):
    """Intensities and affine."""
    return img.get_fdata(dtype=np.float32), img.affine


def scatter(t1w_img, mask_files, seed=0):
    """Put shapes of real lesions at random places of white matter, all inside it; nibabel image."""
    rng, wm_mask = np.random.default_rng(seed), anatomy.look_at(t1w_img).wm_mask
    grid_img = grid.conform(t1w_img)
    shapes = []
    for path in mask_files:
        labels, _ = masks.label_lesions(nib.as_closest_canonical(nib.load(path)).get_fdata() > 0)
        found = [labels[box] == n for n, box in enumerate(ndimage.find_objects(labels), start=1)]
        shapes += [shape for shape in found if SHAPE_VOXELS[0] <= shape.sum() <= SHAPE_VOXELS[1]]
    mask, free = np.zeros(wm_mask.shape, dtype=bool), wm_mask.copy()
    for n in rng.permutation(len(shapes)):
        shape = shapes[n]
        if mask.sum() > 1000 * LOAD_ML:
            break
        for place in np.argwhere(free)[rng.integers(free.sum(), size=TRIES)]:
            box = tuple(slice(start, start + n) for start, n in zip(place, shape.shape))
            if free[box].shape == shape.shape and free[box][shape].all():
                mask[box] |= shape
                free &= ~ndimage.binary_dilation(mask, iterations=6)
                break
    on_t1w = grid.resample_to(nib.Nifti1Image(mask.astype(np.float32), grid_img.affine), t1w_img, order=0)
    return nib.Nifti1Image(np.rint(on_t1w).astype(np.uint8), t1w_img.affine)


# --------------------------------------------------------------------------------------------------------- measures


def compare(data, outputs, is_healthy):
    """Return the table of one pair of visits, in Markdown.

    All is looked at on the grid of the first visit; the second is resampled to it by cubic splines, which smooths it
    alike inside and outside of what was filled.
    """
    first_img, second_img = (nib.load(t1w_of(data, session)) for session in '12')
    found = anatomy.look_at(first_img, nib.load(mask_of(data, '1')))
    brains = [found, anatomy.look_at(second_img, nib.load(mask_of(data, '2')))]
    fixed, moving = (np.where(a.brain_mask, a.grid_img.get_fdata(dtype=np.float32), 0) for a in brains)
    way, _ = registration.rigid(moving, brains[1].grid_img.affine, fixed, brains[0].grid_img.affine, (8, 4, 2))

    def on_first(path, order):
        img = nib.load(path)
        return grid.resample_to(nib.Nifti1Image(img.get_fdata(dtype=np.float32), way @ img.affine), first_img, order)

    def pair(root, name, order=3):
        paths = [root / f'sub-01/ses-{s}/anat/sub-01_ses-{s}_{name}.nii.gz' for s in '12']
        return nib.load(paths[0]).get_fdata(dtype=np.float32), on_first(paths[1], order)

    given = [nib.load(mask_of(data, '1')).get_fdata() > 0, on_first(mask_of(data, '2'), 1) >= 0.5]
    used = {run: pair(root, 'label-lesion_desc-used_mask', 1) for run, root in outputs.items()}
    touched = np.logical_or.reduce([mask > 0 for of_run in used.values() for mask in of_run] + given)
    wm_mask = grid.conform_mask(found.img(found.wm_mask), first_img)
    untouched = wm_mask & ~ndimage.binary_dilation(touched, iterations=2)
    deep = ndimage.binary_erosion(untouched)
    originals = pair(data, 'T1w')
    levels = [level_of(image[deep]) for image in originals]

    def change(images):
        one, other = ((image - level) / deviation for image, (level, deviation) in zip(images, levels))
        return other - one

    lesions = given[0] & given[1]
    labels, n_lesions = masks.label_lesions(lesions)
    before = change(originals)
    if is_healthy:
        reference, words = row(before, labels), 'the same voxels, not filled'
    else:
        places, n_places = same_shapes(labels, untouched & (ndimage.binary_erosion(wm_mask)))
        reference, words = row(before, places), f'untouched white matter, {n_places} of these shapes'
    header = ['', 'SD of the change', 'of the mean of a lesion', 'mean change']
    lines = [header, ['---'] * 4, [words, *reference]]
    for run, root in outputs.items():
        lines.append([run, *row(change(pair(root, 'desc-filled_T1w')), labels)])
    about = f'{n_lesions} lesions that both masks hold, {lesions.sum()} voxels. {registered(outputs)}\n\n'
    return about + '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def level_of(intensities):
    """Median and robust standard deviation."""
    median = np.median(intensities)
    return median, 1.4826 * np.median(np.abs(intensities - median))


def registered(outputs):
    """Say how far the visits lay apart."""
    for root in outputs.values():
        about = text_files.read_json(root / 'sub-01/ses-1/anat/sub-01_ses-1_desc-filled_T1w.json')
        if 'SubjectSpace' in about:
            return f'Each visit lay {about["SubjectSpace"]["ShiftMm"]} mm from the midpoint.'
    return ''


def row(change, labels):
    """Deviation of the voxels' change about the mean of their lesion, deviation of the means, mean; in words."""
    numbers = np.arange(1, labels.max() + 1)
    sizes, means = np.bincount(labels.ravel())[1:], np.array(ndimage.mean(change, labels, numbers))
    within = np.sqrt(np.mean((change - np.concatenate([[0], means])[labels])[labels > 0] ** 2))
    large = sizes >= 20
    return [f'{within:.2f}', f'{means[large].std():.2f}', f'{change[labels > 0].mean():+.2f}']


def same_shapes(labels, free, seed=0):
    """Put the shapes of lesions at random places of untouched white matter; labels, and how many found a place."""
    rng, places, n_places, free = np.random.default_rng(seed), np.zeros_like(labels), 0, free.copy()
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        shape = labels[box] == number
        if not free.any():
            break
        for place in np.argwhere(free)[rng.integers(free.sum(), size=TRIES)]:
            target = tuple(slice(start, start + n) for start, n in zip(place, shape.shape))
            if free[target].shape == shape.shape and free[target][shape].all():
                n_places += 1
                places[target][shape] = n_places
                free[target][shape] = False
                break
    return places, n_places


if __name__ == '__main__':
    main()
