"""Contrast and edge of real lesions on T1w images: what `rim` and `patient` of the evaluation paint.

    python benchmarks/lesion_contrast.py BIDS_DIR

Contrast: local white matter minus the lesion's core (its mask eroded once, where something is left), normalised
intensities (white matter +0.5, background -1). Edge: the share of the contrast that is left at a distance from the
mask's border, averaged over lesions and fitted by a Gaussian edge (shift and standard deviation in mm).
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage, optimize, stats

from bids_lesionfill import baselines, fill, masks, preprocess


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bids_dir', type=Path)
    options = parser.parse_args()
    contrasts, profiles = [], []
    distances = np.arange(-2.5, 5)
    for mask_file in sorted(options.bids_dir.glob('derivatives/*/sub-*/**/*lesion_mask.nii.gz')):
        subject = mask_file.name.split('_')[0]
        t1w_img = preprocess.conform(nib.load(next(options.bids_dir.glob(f'{subject}/**/*_T1w.nii.gz'))))
        lesion_mask = preprocess.conform_mask(nib.load(mask_file), t1w_img)
        t1w = t1w_img.get_fdata(dtype=np.float32)
        _, wm_mask, _ = fill.find_white_matter(t1w, lesion_mask, t1w_img)
        image = preprocess.white_matter_scaling(t1w, wm_mask).apply(t1w)
        white_matter = baselines.local_white_matter(image, lesion_mask, wm_mask, gap_voxels=4)
        labels, n_lesions = masks.label_lesions(lesion_mask)
        core = ndimage.binary_erosion(lesion_mask)
        outside = ndimage.distance_transform_edt(~lesion_mask)
        inside = ndimage.distance_transform_edt(lesion_mask)
        signed = np.floor(np.where(lesion_mask, 0.5 - inside, outside - 0.5)) + 0.5
        nearest = labels[tuple(ndimage.distance_transform_edt(~lesion_mask, return_indices=True)[1])]
        darker = white_matter - image
        found = []
        for number in range(1, n_lesions + 1):
            own = labels == number
            if own.sum() < 20:
                continue
            found.append(np.median(darker[own & core] if (own & core).any() else darker[own]))
            if found[-1] > 0.15 and own.sum() >= 100:
                near = (nearest == number) & (wm_mask | own)
                profiles.append([np.mean(darker[near & (signed == d)]) / found[-1] for d in distances])
        print(
            subject, len(found), 'lesions, contrast quartiles', np.round(np.percentile(found, (5, 25, 50, 75, 95)), 3)
        )
        contrasts += found
    print('all', np.round(np.percentile(contrasts, (5, 10, 25, 50, 75, 90, 95)), 3))
    profile = np.nanmean(profiles, axis=0)
    print('profile', dict(zip(distances.tolist(), np.round(profile, 2).tolist())), len(profiles), 'lesions')
    (shift, deviation), _ = optimize.curve_fit(
        lambda d, shift, deviation: stats.norm.cdf((shift - d) / deviation), distances, profile, p0=(0.0, 1.0)
    )
    print(f'edge: shift {shift:.2f} mm outwards, standard deviation {deviation:.2f} mm')


if __name__ == '__main__':
    main()
