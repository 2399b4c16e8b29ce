"""The picture of the README: one slice before, with the used mask, after.

python benchmarks/picture.py T1W USED_MASK FILLED PNG
"""

import sys

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def main():
    before, used_mask, after = (nib.as_closest_canonical(nib.load(path)).get_fdata() for path in sys.argv[1:4])
    x, y, _ = (slice(low, high) for low, high in zip(*brain_box(before)))
    z = int(np.argmax(used_mask.sum(axis=(0, 1)) * (np.abs(after - before).sum(axis=(0, 1)) > 0)))
    figure = Figure(figsize=(12, 5), facecolor='black')
    FigureCanvasAgg(figure)
    for column, (image, title) in enumerate(((before, 'before'), (before, 'mask'), (after, 'after'))):
        axes = figure.add_axes([column / 3, 0, 1 / 3, 0.93])
        axes.imshow(image[x, y, z].T, cmap='gray', origin='lower', vmin=0, vmax=np.percentile(before[before > 0], 99.5))
        if title == 'mask':
            axes.contour(used_mask[x, y, z].T, [0.5], colors='#ffa000', linewidths=1)
        axes.set_title(title, color='white', fontsize=13)
        axes.axis('off')
    figure.savefig(sys.argv[4], dpi=80, facecolor='black')


def brain_box(image):
    """Lower and upper corner of what is above zero."""
    voxels = np.argwhere(image > 0)
    return voxels.min(axis=0), voxels.max(axis=0) + 1


if __name__ == '__main__':
    main()
