"""Are drawn lesion masks like real ones? Healthy brains with drawn lesions against the masks of the library.

    python benchmarks/lesion_masks.py BIDS_DIR [--brains 6] [--draws 5] [--seed 1]

Draws `draws` masks, with the library's law of counts and volumes, into each of the first `brains` training brains, and
compares them with the real masks of which the library was made: two-sample Kolmogorov-Smirnov tests. Lesions of one
patient are no independent samples, so the distance between random halves of the real patients stands beside: what
chance makes of it. Prints Markdown.
"""

import argparse
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage, stats

from bids_lesionfill.images import grid, registration, tissues
from bids_lesionfill.layout import datasets
from bids_lesionfill.lesions import library as lesions_library
from bids_lesionfill.lesions import places as lesions_places
from bids_lesionfill.lesions import sampling
from bids_lesionfill.train import brains

MIN_VOXELS_OF_A_FORM = 10  # below, a lesion has no form
# name -> unit
LESION_MEASURES = {
    'lesion volume': 'mm3',
    'distance to the ventricles': 'mm in template space, nearest voxel',
    'surface / volume': '1/mm, lesions of at least 10 mm3',
    'surface / surface of a cube of the volume': 'lesions of at least 10 mm3',
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bids_dir', type=Path)
    parser.add_argument('--brains', type=int, default=6)
    parser.add_argument('--draws', type=int, default=5)
    parser.add_argument('--seed', type=int, default=1)
    options = parser.parse_args()
    library = lesions_library.load_lesion_library()
    to_ventricles_mm = ndimage.distance_transform_edt(library.ventricles == 0, sampling=np.diag(library.affine)[:3])
    real = [describe_real(library, patient, to_ventricles_mm) for patient in np.unique(library.patients)]
    drawn, seconds = [], {'affine': [], 'locate': [], 'draw': []}
    for number, (t1w_file, dseg_file) in enumerate(datasets.find_training(options.bids_dir, 'train')[: options.brains]):
        image, tissue_seg = brains.read_tissues(t1w_file, dseg_file)
        affine = grid.conform(nib.load(t1w_file)).affine
        start = time.perf_counter()
        to_template = registration.affine_to_template(
            image + 1, tissue_seg > 0, affine, library.template, library.affine
        )
        seconds['affine'].append(time.perf_counter() - start)
        start = time.perf_counter()
        places, frequency, _ = lesions_places.locate(library, tissue_seg, to_template @ affine)
        seconds['locate'].append(time.perf_counter() - start)
        for draw in range(options.draws):
            start = time.perf_counter()
            labels = sampling.draw_lesion_mask(
                sampling.Atlas(library, places, frequency, to_template @ affine),
                tissue_seg == tissues.WHITE_MATTER,
                np.random.default_rng([options.seed, number, draw]),
            )
            seconds['draw'].append(time.perf_counter() - start)
            drawn.append(describe_drawn(library, labels, places, to_template @ affine, to_ventricles_mm))
    print(f'{len(real)} real masks, {len(drawn)} drawn ones ({options.brains} brains), seed {options.seed}. ', end='')
    medians = (f'{name} {np.median(values):.1f}' for name, values in seconds.items())
    print(f'Seconds, median: {", ".join(medians)}.\n')
    compare(real, drawn, np.random.default_rng(options.seed))
    print('\n| place | real, % of lesions | drawn | real, % of volume | drawn |\n|---|---|---|---|---|')
    for name, place in lesions_places.PLACES.items():
        print(f'| {name} | ' + ' | '.join(f'{100 * share:.0f}' for share in shares(real, drawn, place)) + ' |')


def describe_real(library, patient, to_ventricles_mm):
    """Measures of the lesions of a patient."""
    rows = []
    for index in np.flatnonzero(library.patients == patient):
        shape = library.shapes[index]
        points_mm = library.centres_mm[index] + np.argwhere(shape) - np.array(shape.shape) // 2
        if shape.sum() >= sampling.MIN_VOXELS:
            rows.append((library.places[index], *measure(shape, points_mm, library, to_ventricles_mm)))
    return np.array(rows)


def describe_drawn(library, labels, places, voxel_to_template, to_ventricles_mm):
    """Measures of the lesions of a drawn mask."""
    rows = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        shape = labels[box] == number
        points_mm = apply_affine(voxel_to_template, np.argwhere(shape) + [side.start for side in box])
        rows.append(
            (lesions_places.place_of(shape, places[box]), *measure(shape, points_mm, library, to_ventricles_mm))
        )
    return np.array(rows)


def measure(shape, points_mm, library, to_ventricles_mm):
    """One value per `LESION_MEASURES`; NaN for the form of what is too small to have one."""
    voxels = apply_affine(np.linalg.inv(library.affine), points_mm)
    distance_mm = ndimage.map_coordinates(to_ventricles_mm, voxels.T, order=1, mode='nearest').min()
    padded = np.pad(shape, 1).astype(int)
    faces = sum(np.abs(np.diff(padded, axis=axis)).sum() for axis in range(3))
    volume = shape.sum()
    if volume < MIN_VOXELS_OF_A_FORM:
        return volume, distance_mm, np.nan, np.nan
    return volume, distance_mm, faces / volume, faces / (6 * volume ** (2 / 3))


def compare(real, drawn, rng):
    """The table of tests."""
    print('| measure | real: 10, 50, 90 % | drawn: 10, 50, 90 % | n | KS distance | p | between halves of the real |')
    print('|---|---|---|---|---|---|---|')
    halves = [rng.permutation(len(real)) for _ in range(100)]
    per_lesion = {
        f'{name} ({unit})': (lambda row, c=column: row[:, c])
        for column, (name, unit) in enumerate(LESION_MEASURES.items(), start=1)
    }
    per_patient = {
        'lesions per patient': lambda row: [len(row)],
        'load per patient (ml)': lambda row: [row[:, 1].sum() / 1000],
    }
    for name, read in {**per_lesion, **per_patient}.items():
        values = [pool(group, read) for group in (real, drawn)]
        test = stats.ks_2samp(*values)
        chance = []
        for order in halves:
            first, second = order[: len(real) // 2], order[len(real) // 2 :]
            chance.append(stats.ks_2samp(*(pool([real[i] for i in half], read) for half in (first, second))).statistic)
        cells = [' / '.join(f'{value:.3g}' for value in np.percentile(group, (10, 50, 90))) for group in values]
        print(
            f'| {name} | {cells[0]} | {cells[1]} | {len(values[0])}, {len(values[1])} | {test.statistic:.3f} | '
            f'{test.pvalue:.2g} | {np.median(chance):.3f} (95 %: {np.percentile(chance, 95):.3f}) |'
        )


def pool(rows, read):
    values = np.concatenate([read(row) for row in rows])
    return values[~np.isnan(values)]


def shares(real, drawn, place):
    for weigh in (lambda rows: np.ones(len(rows)), lambda rows: rows[:, 1]):
        for group in (real, drawn):
            rows = np.concatenate(group)
            yield weigh(rows)[rows[:, 0] == place].sum() / weigh(rows).sum()


if __name__ == '__main__':
    main()
