"""Plot the pictures of the README: one slice before, with the used mask, after; and, if given, of an earlier visit.

python benchmarks/picture.py IMAGE USED_MASK FILLED PNG [EARLIER]
"""

import sys

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MASK_COLOUR = '#ffa000'
PANEL_INCHES = 3.2


def main():
    """Plot the slice in which most voxels change: earlier visit, before, mask, after."""
    volumes = [nib.as_closest_canonical(nib.load(path)).get_fdata() for path in (*sys.argv[1:4], *sys.argv[5:])]
    before, used_mask, after = volumes[:3]
    panels = [('before', before), ('voxels that change', before), ('after', after)]
    panels[:0] = [('earlier visit', volume) for volume in volumes[3:]]
    z = int(np.argmax((used_mask > 0).sum(axis=(0, 1))))
    x, y = head_box(before[..., z])
    height = PANEL_INCHES * (y.stop - y.start) / (x.stop - x.start)
    figure = Figure(figsize=(PANEL_INCHES * len(panels), height / 0.93), facecolor='black')
    FigureCanvasAgg(figure)
    for column, (title, image) in enumerate(panels):
        axes = figure.add_axes([column / len(panels), 0, 1 / len(panels), 0.93])
        brightest = np.percentile(image[image > 0], 99.5)
        axes.imshow(image[x, y, z].T, cmap='gray', origin='lower', vmin=0, vmax=brightest)
        if title == 'voxels that change':
            axes.contour(used_mask[x, y, z].T, [0.5], colors=MASK_COLOUR, linewidths=1)
        axes.set_title(title, color='white', fontsize=13)
        axes.axis('off')
    figure.savefig(sys.argv[4], dpi=80, facecolor='black')


def head_box(plane):
    """Return two slices around what is brighter than the background of a plane, (X, Y)."""
    pixels = np.argwhere(plane > 0.15 * np.percentile(plane, 99))
    return [slice(low, high) for low, high in zip(pixels.min(axis=0), pixels.max(axis=0) + 1)]


if __name__ == '__main__':
    main()
