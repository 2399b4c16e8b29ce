"""Plot the picture of docs/growth.md: a given lesion mask, the dilated one, and the one that is used.

python benchmarks/growth_picture.py T1W GIVEN_MASK DILATED_MASK USED_MASK PNG

DILATED_MASK is the `desc-used` mask of a run with `--rim-voxels 0`, USED_MASK that of a run with the defaults. Prints
the volume of each mask, ml. The images have voxels of 1 mm.
"""

import sys

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CONTOURS = (('given', '#4fa3ff'), ('dilated', '#49c96d'), ('used', '#ffa000'))
HALF_MM = 30  # half of the field that is shown


def main():
    """Plot the slice in which the rim adds most, with no mask, and with the outline of each."""
    t1w, *masks = (nib.as_closest_canonical(nib.load(path)).get_fdata() for path in sys.argv[1:5])
    masks = [mask > 0 for mask in masks]
    print({name: round(float(mask.sum()) / 1000, 2) for (name, _), mask in zip(CONTOURS, masks)})
    z = int(np.argmax((masks[2] & ~masks[1]).sum(axis=(0, 1))))
    middle = np.round(np.argwhere(masks[0][..., z]).mean(axis=0)).astype(int)
    x, y = (slice(max(m - HALF_MM, 0), m + HALF_MM) for m in middle)
    figure = Figure(figsize=(12, 3.2), facecolor='black')
    FigureCanvasAgg(figure)
    for column in range(4):
        axes = figure.add_axes([column / 4, 0, 1 / 4, 0.9])
        axes.imshow(t1w[x, y, z].T, cmap='gray', origin='lower', vmin=0, vmax=np.percentile(t1w[t1w > 0], 99.5))
        for (_, colour), mask in list(zip(CONTOURS, masks))[:column]:
            axes.contour(mask[x, y, z].T, [0.5], colors=colour, linewidths=1.2)
        axes.set_title(['image', *(name for name, _ in CONTOURS)][column], color='white', fontsize=12)
        axes.axis('off')
    figure.savefig(sys.argv[5], dpi=110, facecolor='black')


if __name__ == '__main__':
    main()
