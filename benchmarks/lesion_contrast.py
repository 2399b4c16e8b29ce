"""Contrast and edge of real lesions on T1w images: what `rim` and `patient` of the evaluation paint.

    python benchmarks/lesion_contrast.py BIDS_DIR [BIDS_DIR ...] [--modality FLAIR]

Contrast: local white matter minus the lesion's core (its mask eroded once, where something is left), normalised
intensities (white matter +0.5, background -1); on FLAIR lesions are brighter, and signs are turned. Edge: the
share of the contrast that is left at a distance from the mask's border, averaged over lesions and fitted by a Gaussian
edge (shift and standard deviation in mm). Halo: the share that is left in the white matter that touches the mask, the
median of all lesions of a patient (`synthesis.halo_shares`), and the median of patients.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage, optimize, stats

from bids_lesionfill.diffusion import classical
from bids_lesionfill.images import masks
from bids_lesionfill.layout import datasets
from bids_lesionfill.lesions import contrasts as lesions_contrasts
from bids_lesionfill.train import brains


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bids_dir', type=Path, nargs='+')
    parser.add_argument('--modality', choices=['T1w', 'FLAIR'], default='T1w')
    options = parser.parse_args()
    contrasts, profiles, halos = [], [], {}
    distances = np.arange(-2.5, 5)
    images = [image for bids_dir in options.bids_dir for image in datasets.find_patients(bids_dir, options.modality)]
    for subject, *files in images:
        patient = brains.read_patient(*files)
        image, wm_mask, lesion_mask = patient.image, patient.wm_mask, patient.lesion_mask
        white_matter = classical.local_white_matter(image, lesion_mask, wm_mask, gap_voxels=4)
        labels, n_lesions = masks.label_lesions(lesion_mask)
        core = ndimage.binary_erosion(lesion_mask)
        outside = ndimage.distance_transform_edt(~lesion_mask)
        inside = ndimage.distance_transform_edt(lesion_mask)
        signed = np.floor(np.where(lesion_mask, 0.5 - inside, outside - 0.5)) + 0.5
        nearest = labels[tuple(ndimage.distance_transform_edt(~lesion_mask, return_indices=True)[1])]
        darker = (white_matter - image) * (-1 if options.modality == 'FLAIR' else 1)
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
        halos.setdefault(subject, []).append(np.median(lesions_contrasts.halo_shares(image, lesion_mask, wm_mask)))
    print('all', np.round(np.percentile(contrasts, (5, 10, 25, 50, 75, 90, 95)), 3))
    of_patients = {subject: float(round(np.mean(shares), 2)) for subject, shares in halos.items()}
    print('halo', of_patients, 'median', round(np.median(list(of_patients.values())), 2))
    profile = np.nanmean(profiles, axis=0)
    print('profile', dict(zip(distances.tolist(), np.round(profile, 2).tolist())), len(profiles), 'lesions')
    (shift, deviation), _ = optimize.curve_fit(
        lambda d, shift, deviation: stats.norm.cdf((shift - d) / deviation), distances, profile, p0=(0.0, 1.0)
    )
    print(f'edge: shift {shift:.2f} mm outwards, standard deviation {deviation:.2f} mm')


if __name__ == '__main__':
    main()
