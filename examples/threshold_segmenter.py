"""A segmenter of 15 lines, to be scored: white matter that is too dark on a skull-stripped T1w is lesion.

    python examples/threshold_segmenter.py DERIVATIVE OUT [desc-synth_T1w]

It writes OUT/sub-XX/anat/sub-XX_label-lesion_mask.nii.gz for each image of the derivative.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

folder, out, name = Path(sys.argv[1]), Path(sys.argv[2]), (sys.argv[3:] or ['desc-synth_T1w'])[0]
for path in sorted(folder.glob(f'sub-*/**/anat/*_{name}.nii.gz')):
    img = nib.load(path)
    t1w = ndimage.gaussian_filter(img.get_fdata(), 0.5)
    white = t1w > 0.9 * np.percentile(t1w[t1w > 0], 80)  # a white matter intensity, whatever the scanner
    inside = ndimage.binary_erosion(ndimage.binary_closing(white, iterations=3), iterations=3)  # away from the cortex
    lesions = ndimage.binary_opening(inside & ~white)  # dark, and not a single voxel
    mask_file = out / path.relative_to(folder).with_name(path.name.replace(name, 'label-lesion_mask'))
    mask_file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(lesions.astype(np.uint8), img.affine), mask_file)
