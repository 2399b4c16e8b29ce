"""Fill the lesions of one T1w from Python, and show what changed.

    python examples/fill_from_python.py T1W LESION_MASK OUT

For example with demo/sub-07/anat/sub-07_T1w.nii.gz and its mask in demo/derivatives/lesions.
"""

import sys

import nibabel as nib
import numpy as np

from bids_lesionfill import fill_lesions

t1w_img, mask_img = nib.load(sys.argv[1]), nib.load(sys.argv[2])
filled_img = fill_lesions(t1w_img, mask_img, seed=1)
nib.save(filled_img, sys.argv[3])

before, after = t1w_img.get_fdata(), filled_img.get_fdata()
lesion, changed = mask_img.get_fdata() > 0, before != after
voxel_ml = np.prod(t1w_img.header.get_zooms()[:3]) / 1000
print(f'lesions: {lesion.sum() * voxel_ml:.1f} ml')
print(f'mean in the lesions: {before[lesion].mean():.0f} before, {after[lesion].mean():.0f} after')
print(f'changed: {changed.sum() * voxel_ml:.1f} ml, which includes the rims of the lesions')
