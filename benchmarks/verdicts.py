"""What the checks of a report find in good fills, and in fills whose mask was spoilt on purpose.

    python benchmarks/verdicts.py BIDS_DIR LABEL [LABEL ...]       (for example: demo 07 26)

Masks are those of derivatives in the dataset. To save time white matter is found twice per patient: with the true mask,
and without any for masks that lie elsewhere. Prints Markdown. Here the limits of `lesions.checks` come from, but for
those in `report_checks.py`.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_lesionfill.app import loading
from bids_lesionfill.diffusion import models
from bids_lesionfill.images import anatomy, nifti, placement
from bids_lesionfill.layout import indexing, pairing
from bids_lesionfill.lesions import checks as lesions_checks
from bids_lesionfill.lesions import fill, settings

NUMBERS = ('Place of the mask', 'Intensity of the fill', 'Border around')  # how the names of these checks begin
NO_GROWTH = {'dilate': 0, 'rim_voxels': 0}


def main(bids_dir, labels):
    derivatives = indexing.find_derivatives(Path(bids_dir))
    found = pairing.find_inputs(indexing.open_layout(bids_dir, derivatives.values()), derivatives, 'T1w', labels)
    model = models.load_model('fill-T1w')
    print('| participant | mask | step, moved | fill off | border | the report says |\n|---|---|---|---|---|---|')
    for subject in labels:
        (image,) = found[subject]
        image_img, mask_img = nib.load(image.image_file), loading.lesions_of(image)
        mask = placement.mask_on_grid(mask_img, image_img)
        at_place, elsewhere = find_anatomy(image_img, mask), find_anatomy(image_img, np.zeros_like(mask))
        for name, (spoilt, options) in spoilt_masks(mask, image_img.affine).items():
            seen = elsewhere if name.startswith(('shifted', 'flipped')) else at_place
            lesions = settings.Lesions(nifti.mask_image(spoilt, image_img))
            sampling = settings.Sampling(device='cpu')
            filling = fill.fill(image_img, lesions, seen, model, settings.Growth(**options), sampling)
            checks = lesions_checks.check_filling(filling.record, filling.lesions, 'T1w')
            numbers = [check.found for check in checks if check.name.startswith(NUMBERS)]
            says = ' '.join(filling.warnings) or 'nothing unusual'
            print(f'| {subject} | {name} | {" | ".join(numbers)} | {says} |', flush=True)


def find_anatomy(image_img, mask):
    """Brain and white matter, for `fill.fill`."""
    return anatomy.look_at(image_img, nifti.mask_image(mask, image_img), lesion_share=fill.LESION_SHARE)


def spoilt_masks(mask, affine):
    """The mask as it is and spoilt ones, by name, with options of the fill."""
    codes, sizes_mm = nib.aff2axcodes(affine), nib.affines.voxel_sizes(affine)
    left_right, front_back, up_down = (next(i for i in range(3) if codes[i] in pair) for pair in ('LR', 'AP', 'SI'))

    def shifted(mm, axis):
        return np.roll(mask, round(mm / sizes_mm[axis]), axis)

    return {
        'as it is': (mask, {}),
        'shifted by 3 mm, front to back': (shifted(3, front_back), {}),
        'shifted by 6 mm, front to back': (shifted(6, front_back), {}),
        'shifted by 6 mm, up': (shifted(6, up_down), {}),
        'shifted by 6 mm, sideways': (shifted(6, left_right), {}),
        'flipped left to right': (np.flip(mask, left_right), {}),
        'not grown': (mask, NO_GROWTH),
        'eroded by a voxel, not grown': (ndimage.binary_erosion(mask), NO_GROWTH),
    }


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2:])
