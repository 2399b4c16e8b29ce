"""Random headers and masks: a short run of benchmarks/fuzz.py, which says what is promised."""

import importlib.util
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture(scope='module')
def fuzz():
    path = Path(__file__).parent.parent / 'benchmarks/fuzz.py'
    spec = importlib.util.spec_from_file_location('fuzz', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_random_headers_and_masks_are_filled_or_refused(fuzz):
    outcomes, unexpected = fuzz.fuzz(50)
    assert not unexpected
    assert sum(outcomes.values()) >= 50
    assert outcomes['filled'] >= 10
    assert any(outcome.startswith('refused') for outcome in outcomes)


def test_a_changed_voxel_field_or_number_is_noticed(fuzz, phantom, tmp_path):
    before, after, used = (tmp_path / name for name in ('before.nii', 'after.nii', 'used.nii'))
    nib.save(phantom.t1w_img, before)
    nib.save(phantom.lesion_mask_img, used)
    nib.save(phantom.healthy_img, after)
    fuzz.check(before, after, used)
    for voxel, value in (((0, 0, 0), 1e-3), (tuple(np.argwhere(phantom.lesion_mask)[0]), np.nan)):
        changed = phantom.healthy.copy()
        changed[voxel] = value
        nib.save(phantom.img(changed), after)
        with pytest.raises(AssertionError):
            fuzz.check(before, after, used)
    other_unit = phantom.healthy_img
    other_unit.header.set_xyzt_units('micron')
    nib.save(other_unit, after)
    with pytest.raises(AssertionError, match='xyzt_units'):
        fuzz.check(before, after, used)
