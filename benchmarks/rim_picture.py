"""Plot the picture of docs/growth.md: a lesion whose rim is unmixed, and one over whose rim the mask grows.

python benchmarks/rim_picture.py T1W LESION_MASK FLAIR PNG JSON

Fills the image both ways. Writes the volume of the given mask and of both used masks, ml, and of what is mostly lesion.
"""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bids_lesionfill.app.options import version
from bids_lesionfill.lesions.fill import fill_alone
from bids_lesionfill.lesions.settings import Growth, Lesions, Sampling

HALF_MM = 30  # half of the field that is shown; voxels are 1 mm
GIVEN, USED = '#4fa3ff', '#ffa000'


def main():
    """Plot one slice: the image with the given mask, then used mask and filled image of both ways."""
    images = [nib.load(path) for path in sys.argv[1:4]]
    lesions, sampling = Lesions(images[1], flair_img=images[2]), Sampling(device='cpu')
    fillings = {
        rims: fill_alone(images[0], lesions, 'fill-T1w', growth=Growth(rims=rims), sampling=sampling)
        for rims in ('unmixed', 'grown')
    }
    t1w, given = (volume_of(img) for img in images[:2])
    panels = [('given mask', t1w, given > 0)]
    for rims, filling in fillings.items():
        panels += [(f'used mask, {rims}', t1w, volume_of(filling.used_mask_img) > 0)]
        panels += [('filled', volume_of(filling.filled_img), None)]
    volumes_ml = {title: round(float(mask.sum()) / 1000, 2) for title, _, mask in panels if mask is not None}
    replaced_ml = fillings['unmixed'].record.lesion_voxels_replaced / 1000
    report = {'version': version(), 'ml': volumes_ml | {'replaced, unmixed': round(replaced_ml, 2)}}
    Path(sys.argv[5]).write_text(json.dumps(report, indent=2) + '\n')
    z = int(np.argmax((panels[3][2] & ~panels[0][2]).sum(axis=(0, 1))))
    middle = np.round(np.argwhere(given[..., z] > 0).mean(axis=0)).astype(int)
    x, y = (slice(max(m - HALF_MM, 0), m + HALF_MM) for m in middle)
    figure = Figure(figsize=(13, 2.9), facecolor='black')
    FigureCanvasAgg(figure)
    for column, (title, image, mask) in enumerate(panels):
        axes = figure.add_axes([column / len(panels), 0, 1 / len(panels), 0.9])
        axes.imshow(image[x, y, z].T, cmap='gray', origin='lower', vmin=0, vmax=np.percentile(t1w[t1w > 0], 99.5))
        if mask is not None:
            colour = GIVEN if column == 0 else USED
            axes.contour(mask[x, y, z].T, [0.5], colors=colour, linewidths=1.2)
        axes.set_title(title, color='white', fontsize=11)
        axes.axis('off')
    figure.savefig(sys.argv[4], dpi=100, facecolor='black')


def volume_of(img):
    """Return an image as (X, Y, Z) float array, RAS."""
    return nib.as_closest_canonical(img).get_fdata()


if __name__ == '__main__':
    main()
