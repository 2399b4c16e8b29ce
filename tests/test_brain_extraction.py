"""Brain extraction: the steps around the networks, and the same mask as by deepbet."""

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_lesionfill.images import brain_extraction, grid, nifti

DEMO = Path(__file__).parent.parent / 'demo'


def bright_voxels(volume):
    """Two classes, as the networks return them; above the window's middle is brain."""
    brain = (volume > 0.449).float()
    return torch.cat([1 - brain, brain], dim=1)


@pytest.fixture
def toy_networks(monkeypatch):
    monkeypatch.setattr(brain_extraction, 'load', lambda name: bright_voxels)
    monkeypatch.setattr(brain_extraction, 'BRAIN_GRID', (96, 96, 96))  # less to compute
    monkeypatch.setattr(brain_extraction, 'BOX_GRID', (64, 64, 64))


def test_the_mask_is_one_part_without_holes(toy_networks):
    x, y, z = np.ogrid[:60, :70, :50]
    ball = (x - 30) ** 2 + (y - 35) ** 2 + (z - 25) ** 2 < 20**2
    ventricle = (x - 30) ** 2 + (y - 35) ** 2 + (z - 25) ** 2 < 6**2
    t1w = 100.0 * (ball & ~ventricle)
    t1w[2:5, 2:5, 2:5] = 100  # a fat droplet outside
    mask = brain_extraction.extract_brain(t1w)
    assert (mask.shape, mask.dtype) == (t1w.shape, bool)
    assert ndimage.label(mask)[1] == 1
    assert mask[ventricle].all()
    assert not mask[2:5, 2:5, 2:5].any()
    assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.97  # the networks' grids are not that of the image


def test_units_do_not_matter(toy_networks, rng):
    t1w = ndimage.gaussian_filter(rng.normal(size=(40, 40, 40)), 6)
    assert np.array_equal(brain_extraction.extract_brain(t1w), brain_extraction.extract_brain(1000 * t1w + 5000))


def test_no_brain_is_an_error(monkeypatch):
    nothing = torch.zeros((1, 2, 128, 128, 128))
    monkeypatch.setattr(brain_extraction, 'load', lambda name: lambda volume: nothing)
    with pytest.raises(ValueError, match='no brain was found'):
        brain_extraction.extract_brain(np.ones((20, 20, 20)))


@pytest.mark.parametrize(('first', 'last', 'expected'), [(4, 7, slice(7, 17)), (0, 15, slice(0, 32))])
def test_the_box_has_a_margin_and_ends_with_the_image(first, last, expected):
    coarse = np.zeros((16, 16, 16), dtype=bool)
    coarse[first : last + 1, first : last + 1, first : last + 1] = True
    assert brain_extraction.box_of(coarse, (32, 32, 32)) == (expected,) * 3


@pytest.mark.parametrize(
    ('name', 'sha256'),
    [
        ('box', '39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa'),
        ('brain', 'de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd'),
    ],
)
def test_weights_are_those_of_deepbet(name, sha256):
    weights = (brain_extraction.WEIGHTS_DIR / f'{name}.pt').read_bytes()
    assert hashlib.sha256(weights).hexdigest() == sha256


@pytest.mark.slow
def test_the_demo_has_the_mask_of_deepbet():
    """deepbet 1.0.2 finds 1185204 voxels; the two masks were compared voxel by voxel and are the same."""
    t1w_img = nib.load(DEMO / 'sub-07' / 'anat' / 'sub-07_T1w.nii.gz')
    t1w = grid.conform(nifti.plain(t1w_img, 'T1w')).get_fdata(dtype=np.float32)
    assert brain_extraction.extract_brain(t1w).sum() == pytest.approx(1185204, rel=1e-4)
