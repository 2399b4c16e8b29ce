"""Make the bundled lesion library of the 30 consensus masks and three T1w images of the Ljubljana database.

    python benchmarks/build_lesion_library.py LESION_MASKS_DIR BIDS_DIR [OUT]

LESION_MASKS_DIR holds `*_label-lesion_mask.nii.gz`, BIDS_DIR T1w images with `derivatives/lesions`, all on the 1 mm
grid of the database. Writes OUT/ljubljana.npz (default: into the package) and prints a row per patient, as Markdown.
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from bids_lesionfill.images import grid as images_grid
from bids_lesionfill.images import masks, tissues
from bids_lesionfill.layout import datasets
from bids_lesionfill.lesions import library, sampling
from bids_lesionfill.lesions import places as lesions_places

SMOOTHING_MM = 4.0  # of the lesion frequency, standard deviation
WHITE_MATTER_LEVEL = 170  # of the template
# Where lateral ventricles may be in the template, and what is not ventricle there: cisterns and velum behind and below
# them, the fissure between the hemispheres, the Sylvian fissures; (low, high) corners, mm.
VENTRICLES_BOX_MM = ((-34, -55, -4), (34, 35, 33))
NO_VENTRICLES_MM = (
    *lesions_places.MIDLINE_MM,
    ((-23, -45, -99), (23, -15, 7)),
    ((24, -22, -99), (99, 99, 99)),
    ((-99, -22, -99), (-24, 99, 99)),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('lesion_masks_dir', type=Path)
    parser.add_argument('bids_dir', type=Path)
    parser.add_argument('out', type=Path, nargs='?', default=library.LESIONS_DIR)
    options = parser.parse_args()
    mask_files = datasets.find_lesion_masks(options.lesion_masks_dir)
    patients = [images_grid.conform(nib.load(path), order=0) for path in mask_files]
    grid = patients[0]
    lesions = [np.asarray(img.dataobj) > 0 for img in patients]
    template, tissue_seg = average_brain(options.bids_dir, grid)
    points_mm = apply_affine(grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1))
    ventricles = find_template_ventricles(tissue_seg, points_mm)
    cortex = (tissue_seg == tissues.GREY_MATTER) & ~lesions_places.inside_box(points_mm, lesions_places.NUCLEI_BOX_MM)
    places = lesions_places.map_places(ventricles, cortex, lesions_places.is_infratentorial(points_mm))
    shapes, centres_mm, owners, lesion_places = [], [], [], []
    frequency = np.zeros(grid.shape)
    for patient, lesion_mask in enumerate(lesions):
        labels, _ = masks.label_lesions(lesion_mask)
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            shape = labels[box] == number
            shapes.append(shape)
            middle = [side.start + size // 2 for side, size in zip(box, shape.shape)]
            centres_mm.append(apply_affine(grid.affine, middle))
            owners.append(patient)
            lesion_places.append(lesions_places.place_of(shape, places[box]))
            if shape.sum() >= sampling.MIN_VOXELS:
                frequency[box] += shape / shape.sum()  # every lesion counts one, wherever it spreads
    frequency = ndimage.gaussian_filter(frequency, SMOOTHING_MM)
    frequency = frequency + mirror(frequency, grid.affine)
    low_affine = grid.affine @ np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1.0]])
    bits, sizes = library.pack_shapes(shapes)
    options.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        options.out / 'ljubljana.npz',
        shape_bits=bits,
        shape_sizes=sizes,
        centres_mm=np.array(centres_mm, dtype=np.int16),
        patients=np.array(owners, dtype=np.uint8),
        places=np.array(lesion_places, dtype=np.uint8),
        template=as_bytes(halve(template) * WHITE_MATTER_LEVEL),
        frequency=as_bytes(halve(frequency) * 255 / halve(frequency).max()),
        ventricles=(halve(ventricles) >= 0.5).astype(np.uint8),
        affine=low_affine,
    )
    print(f'| patient | lesions | total ml | largest ml | {" | ".join(lesions_places.PLACES)} |')
    print('|---' * (4 + len(lesions_places.PLACES)) + '|')
    for patient, path in enumerate(mask_files):
        own = [i for i, owner in enumerate(owners) if owner == patient]
        volumes = np.array([shapes[i].sum() for i in own]) / 1000
        counts = np.bincount([lesion_places[i] for i in own], minlength=5)[1:]
        name = path.name.split('_')[0]
        print(f'| {name} | {len(own)} | {volumes.sum():.2f} | {volumes.max():.2f} | {" | ".join(map(str, counts))} |')


def average_brain(bids_dir, grid):
    """Mean T1w with white matter at 1, and the tissue of most brains, on `grid`; lesions take no part in the mean."""
    sums, counts, votes = np.zeros(grid.shape), np.zeros(grid.shape), np.zeros((4, *grid.shape))
    for mask_file in sorted(bids_dir.glob('derivatives/lesions/sub-*/**/*lesion_mask.nii.gz')):
        subject = mask_file.name.split('_')[0]
        t1w_img = images_grid.conform(nib.load(next(bids_dir.glob(f'{subject}/**/*_T1w.nii.gz'))))
        if t1w_img.shape != grid.shape or not np.allclose(t1w_img.affine, grid.affine):
            raise ValueError(f'{subject}: T1w has another grid than the masks, expected {grid.shape}')
        t1w = t1w_img.get_fdata(dtype=np.float32)
        lesion_mask = images_grid.conform_mask(nib.load(mask_file), t1w_img)
        brain_mask, _ = tissues.find_brain(t1w)
        tissue_seg = tissues.classify(t1w, brain_mask, lesion_mask)
        tissue_seg[lesion_mask] = tissues.WHITE_MATTER
        median = np.median(t1w[(tissue_seg == tissues.WHITE_MATTER) & ~lesion_mask])
        sums += np.where(lesion_mask | ~brain_mask, 0, t1w / median)
        counts += ~lesion_mask
        for label in range(4):
            votes[label] += tissue_seg == label
    template = np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
    return template, votes.argmax(axis=0)


def find_template_ventricles(tissue_seg, points_mm):
    """Lateral ventricles of the average brain: CSF that most brains share, in bulk, where they are."""
    expected = lesions_places.inside_box(points_mm, VENTRICLES_BOX_MM)
    for box_mm in NO_VENTRICLES_MM:
        expected &= ~lesions_places.inside_box(points_mm, box_mm)
    labels, _ = masks.label_lesions(ndimage.binary_opening(tissue_seg == tissues.CSF) & expected)
    sizes = np.bincount(labels.flat)
    return (sizes[labels] >= 50) & (labels > 0)


def mirror(volume, affine):
    """A volume of RAS axes, left and right exchanged about x = 0 of the world."""
    shift = 2 * affine[0, 3] + affine[0, 0] * (volume.shape[0] - 1)  # voxel i lies where n - 1 - i - shift lay
    return ndimage.shift(volume[::-1], (-shift / affine[0, 0], 0, 0), order=1)


def halve(volume):
    """Means of 2 x 2 x 2 voxels."""
    x, y, z = volume.shape
    return volume.reshape(x // 2, 2, y // 2, 2, z // 2, 2).mean(axis=(1, 3, 5))


def as_bytes(volume):
    return np.clip(np.rint(volume), 0, 255).astype(np.uint8)


if __name__ == '__main__':
    main()
