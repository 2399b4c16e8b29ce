"""DiReCT on shells of known thickness, by its steps: why the engine `ants` does not take those of ANTs.

    OMP_NUM_THREADS=1 ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1 python benchmarks/direct_step.py

A ball of white matter inside a shell of grey matter, voxels of 1 mm with the exact share of each; smoothing as the
engine's. Prints Markdown: mean thickness of the shell's voxels in mm, and CPU seconds.
"""

import time

import numpy as np

from bids_lesionfill.images import syn
from bids_lesionfill.thickness.engines import ants as engines_ants

SHELLS_MM = (1.5, 2.5, 3.5)
RUNS = ((0.025, 45, 10), (0.1, 24, 10), (engines_ants.STEP, engines_ants.N_ITERATIONS, engines_ants.N_POINTS))
SIZE, FINE, RADIUS_MM = 40, 4, 11


def shares(thickness_mm):
    """Share of white and grey matter in each voxel; two (X, Y, Z) arrays."""
    axis = (np.arange(SIZE * FINE) + 0.5) / FINE - SIZE / 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    inside = (radius <= RADIUS_MM, (radius > RADIUS_MM) & (radius <= RADIUS_MM + thickness_mm))
    return [part.reshape(SIZE, FINE, SIZE, FINE, SIZE, FINE).mean(axis=(1, 3, 5)) for part in inside]


def main():
    ants = syn.import_ants()
    header = [f'step {step:g}, {n} iterations, {points} points' for step, n, points in RUNS]
    print('| shell | ' + ' | '.join(header) + ' |')
    print('|' + '---|' * (1 + len(RUNS)))
    for thickness_mm in SHELLS_MM:
        white, grey = shares(thickness_mm)
        labels = np.where(white >= 0.5, 3, np.where(grey >= 0.5, 2, 0))
        volumes = [ants.from_numpy(np.ascontiguousarray(part, dtype=np.float32)) for part in (labels, grey, white)]
        cells = [f'{thickness_mm} mm']
        for step, n_iterations, n_points in RUNS:
            started = time.process_time()
            options = {'its': n_iterations, 'r': step, 'n': n_points, 'm': engines_ants.SMOOTHING}
            found = ants.kelly_kapowski(*volumes, **options).numpy()
            cells.append(f'{found[labels == 2].mean():.2f} ({time.process_time() - started:.0f} s)')
        print('| ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
    main()
