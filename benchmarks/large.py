"""A head of 512 x 512 x 512 voxels of 0.4 mm through the app's path of one image: seconds and peak memory.

    python benchmarks/large.py BIDS_DIR SUBJECT [--voxel-mm 0.4] [--width 512]

The T1w and lesion mask of a participant, resampled. Prints Markdown; asserts that nothing changed outside the mask.
"""

import argparse
import resource
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_lesionfill.diffusion import models
from bids_lesionfill.images import grid as images_grid
from bids_lesionfill.layout import indexing, pairing
from bids_lesionfill.lesions import fill, settings


def resample(img, voxel_mm, width, order):
    """An image on a cube of so many voxels, around its own middle."""
    middle = nib.affines.apply_affine(img.affine, (np.array(img.shape) - 1) / 2)
    affine = nib.affines.from_matvec(voxel_mm * np.eye(3), middle - voxel_mm * (width - 1) / 2)
    grid = nib.Nifti1Image(np.zeros((width,) * 3, np.uint8), affine)
    return nib.Nifti1Image(images_grid.resample_to(img, grid, order), affine)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bids_dir', type=Path)
    parser.add_argument('subject')
    parser.add_argument('--voxel-mm', type=float, default=0.4)
    parser.add_argument('--width', type=int, default=512)
    options = parser.parse_args()
    derivatives = indexing.find_derivatives(options.bids_dir)
    bids_layout = indexing.open_layout(options.bids_dir, derivatives.values())
    (found,) = pairing.find_inputs(bids_layout, derivatives, participant_labels=[options.subject])[options.subject]
    t1w_img = resample(nib.load(found.image_file), options.voxel_mm, options.width, order=1)
    t1w_img = nib.Nifti1Image(np.rint(t1w_img.get_fdata(dtype=np.float32)).astype(np.int16), t1w_img.affine)
    mask = resample(nib.load(found.lesion_mask_file), options.voxel_mm, options.width, order=1).get_fdata() > 0.5
    mask_img = nib.Nifti1Image(mask.astype(np.uint8), t1w_img.affine)
    model = models.load_model('fill-T1w')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    started = time.monotonic(), time.process_time()
    filling = fill.fill_alone(t1w_img, settings.Lesions(mask_img), model)
    wall, cpu = time.monotonic() - started[0], time.process_time() - started[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    outside = np.asarray(filling.used_mask_img.dataobj) == 0
    assert np.array_equal(np.asarray(filling.filled_img.dataobj)[outside], np.asarray(t1w_img.dataobj)[outside])
    print('| voxels | lesions filled | ml | wall s | CPU s | peak memory GB (before) |\n|---|---|---|---|---|---|')
    volume_ml = sum(row['volume_mm3'] for row in filling.lesions) / 1000
    print(
        f'| {options.width}^3 of {options.voxel_mm} mm | {len(filling.lesions)} | {volume_ml:.1f} | {wall:.0f} | '
        f'{cpu:.0f} | {peak:.1f} ({before:.1f}) |'
    )


if __name__ == '__main__':
    main()
