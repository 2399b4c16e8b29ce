"""Checks pass a good filling and name what is wrong with a bad one."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import ellipsoid
from scipy import ndimage

from bids_lesionfill.lesions import checks as lesions_checks
from bids_lesionfill.lesions import tables
from bids_lesionfill.lesions.records import FillRecord, SynthesisRecord

RECORD = FillRecord(
    lesion_voxels_given=1000,
    lesion_voxels_dropped=0,
    lesions_dropped=0,
    lesion_voxels_outside_brain=0,
    brain_volume_ml=1200,
    white_matter_deviation=20.0,
)
ROW = {
    **{'label': 1.0, 'volume_mm3': 200.0, 'mean_after': 355.0, 'mean_surrounding': 360.0},
    **{'mean_touching': 358.0, 'mean_beyond': 360.0, 'faint_percent': 10.0},
}


def sentences(found=(), modality='T1w', **row):
    checks = lesions_checks.check_filling(replace(RECORD, **dict(found)), [ROW | row], modality)
    return lesions_checks.warnings_of(checks)


def test_a_good_filling_passes_all_checks():
    checks = lesions_checks.check_filling(RECORD, [ROW], 'T1w')
    assert len(checks) == 6
    assert all(check.passed and check.found and check.usual for check in checks)


@pytest.mark.parametrize(
    ('found', 'row', 'start'),
    [
        ({'lesion_voxels_dropped': 200, 'lesions_dropped': 3}, {}, '20 % of the mask (3 lesions) touches no '),
        ({'lesion_voxels_outside_brain': 300}, {}, '30 % of the mask lies outside the brain'),
        ({}, {'volume_mm3': 101_000}, 'The lesions have 101 ml'),
        ({}, {'volume_mm3': 61_000}, 'Lesion 1 has 61 ml'),
        ({}, {'faint_percent': 55.0}, '55 % of the lesions are hardly darker than'),
        ({}, {'mean_after': 440.0}, 'Lesion 1: filled with another brightness'),
        ({}, {'mean_after': 280.0}, 'Lesion 1: filled with another brightness'),
        ({}, {'mean_touching': 340.0}, 'White matter that touches the mask is darker'),
    ],
)
def test_what_is_unusual_is_named(found, row, start):
    (sentence,) = sentences(found, **row)
    assert sentence.startswith(start)


def test_limits_themselves_are_usual():
    at_limits = {'lesion_voxels_dropped': 100, 'lesions_dropped': 1, 'lesion_voxels_outside_brain': 50}
    assert sentences(at_limits, faint_percent=30.0, mean_after=420.0, mean_touching=352.0) == []


def test_a_border_is_dark_on_t1w_and_bright_on_flair():
    assert sentences(mean_touching=400.0) == []
    assert 'touches the mask is brighter' in sentences(modality='FLAIR', mean_touching=400.0)[0]
    assert sentences(modality='FLAIR', mean_touching=320.0) == []


def test_a_border_of_one_lesion_among_many_is_named():
    rows = [ROW | {'label': float(n), 'mean_touching': 360.0} for n in range(1, 10)]
    rows[4] |= {'mean_touching': 310.0}
    (sentence,) = lesions_checks.warnings_of(lesions_checks.check_filling(RECORD, rows, 'T1w'))
    assert sentence == 'Lesion 5: a darker border stays around the mask.'
    assert lesions_checks.suspicion(rows[4], RECORD, 'T1w') == pytest.approx(50 / 20 / lesions_checks.MAX_BORDER_SD)
    assert lesions_checks.reason(rows[4], RECORD, 'T1w') == 'Unusual: a darker border of 2.5 SD stays.'
    assert lesions_checks.suspicion(rows[3], RECORD, 'T1w') < 1
    assert lesions_checks.reason(rows[3], RECORD, 'T1w') == ''


@pytest.mark.parametrize(
    ('info', 'row', 'start'),
    [
        ({'fill_grain': 0.3}, {}, 'The filled tissue has 0.3 times the grain of white matter: smoother'),
        ({'fill_grain': 1.8}, {}, 'The filled tissue has 1.8 times the grain of white matter: noisier'),
        ({'fill_grain': 1.0}, {'grain': 0.3}, 'Lesion 1: filled with another grain'),
        ({'fill_glow': 0.05}, {}, '5 % of the filled tissue are brighter'),
        ({'fill_glow': 0.01}, {'glow_percent': 30.0}, 'Lesion 1: the filling glows'),
        ({'fill_wall': 0.5}, {}, 'Walls of ventricles at the filling are 0.50 times as steep as elsewhere'),
        ({'fill_wall': 1.0}, {'wall_steepness': 0.5}, 'Lesion 1: the wall of a ventricle is smeared'),
        ({'lesion_left': 0.08}, {}, '8 % of the given mask are as bright as lesions after filling'),
        ({'mask_step': 0.2, 'mask_step_moved': 0.0}, {}, 'The image is 0.2 SD darker in the mask than around it'),
        ({'mask_step': 0.6, 'mask_step_moved': 0.7}, {}, 'The image is 0.6 SD darker in the mask than around it'),
    ],
)
def test_what_a_reader_would_complain_of_is_named(info, row, start):
    (sentence,) = sentences(info, **row)
    assert sentence.startswith(start)


def test_real_tissue_is_not_complained_of():
    """Values of an image that was not filled: grain and walls as elsewhere, 0.5 % of the voxels bright."""
    info = {'fill_grain': 1.0, 'fill_glow': 0.005, 'fill_wall': 1.0, 'mask_step': 0.5, 'mask_step_moved': 0.25}
    info |= {'lesion_left': 0.01}
    row = {'grain': 0.7, 'glow_percent': 3.0, 'wall_steepness': 0.9, 'faint_percent': 40.0}
    assert sentences(info, **row) == []  # faint lesions at their place, as those of a T1w often are


def test_faint_lesions_are_complained_of_where_all_lesions_are_bright():
    at_place = {'mask_step': 0.6, 'mask_step_moved': 0.5}
    assert sentences(at_place, faint_percent=40.0) == []
    (sentence,) = sentences(at_place, modality='FLAIR', faint_percent=40.0)
    assert sentence.startswith('40 % of the lesions are hardly brighter')


def test_glow_has_the_wider_limit_where_dirty_white_matter_is_bright():
    assert sentences({'fill_glow': 0.06}, modality='FLAIR') == []
    assert len(sentences({'fill_glow': 0.06})) == 1


def test_the_worst_lesion_and_why_are_known():
    smooth, glowing = ROW | {'grain': 0.3}, ROW | {'glow_percent': 30.0, 'wall_steepness': 0.5}
    assert lesions_checks.suspicion(smooth, RECORD, 'T1w') == pytest.approx(1.5)
    assert lesions_checks.reason(smooth, RECORD, 'T1w') == 'Unusual: its grain is 0.30 times that of white matter.'
    assert lesions_checks.reason(glowing, RECORD, 'T1w') == (
        'Unusual: 30 % glow, brighter than the white matter around and the wall of the ventricle is 0.50 times as '
        'steep as elsewhere.'
    )


def test_tiny_lesions_are_not_judged_by_their_means():
    assert sentences(volume_mm3=29.0, mean_after=600.0, mean_touching=100.0) == []
    assert lesions_checks.suspicion(ROW | {'volume_mm3': 29.0, 'mean_after': 600.0}, RECORD, 'T1w') == 0


def test_of_many_unusual_lesions_the_worst_are_named_first():
    rows = [ROW | {'label': float(n), 'mean_after': 430.0 + n} for n in range(1, 10)]
    (sentence,) = lesions_checks.warnings_of(lesions_checks.check_filling(RECORD, rows, 'T1w'))
    assert sentence.startswith('Lesions 9, 8, 7, 6, 5, 4 and 3 more: ')


@pytest.mark.parametrize('unknown', [None, float('nan')])
def test_what_is_not_known_is_not_checked(unknown):
    assert lesions_checks.check_filling(FillRecord(), [], 'T1w') == []
    row = ROW | dict.fromkeys(('mean_after', 'mean_touching', 'faint_percent'), unknown)
    (check,) = lesions_checks.check_filling(FillRecord(), [row], 'T1w')
    assert check.name == 'Volume that was filled'
    assert len(lesions_checks.check_filling(RECORD, [row], 'T1w')) == 3
    old = {name: ROW[name] for name in ('label', 'volume_mm3', 'mean_after', 'mean_surrounding')}  # of version 0.1.0
    assert lesions_checks.suspicion(old, FillRecord(), 'T1w') == 0


def test_new_lesions_that_touch_old_ones_or_are_hard_to_see_are_named():
    record = SynthesisRecord(brain_volume_ml=1200, white_matter_deviation=20.0, new_lesions_touching_old=0)
    assert lesions_checks.warnings_of(lesions_checks.check_synthesis(record, [ROW], 'FLAIR')) == []
    record = replace(record, new_lesions_touching_old=1)
    touching, faint = lesions_checks.warnings_of(
        lesions_checks.check_synthesis(record, [ROW | {'faint_percent': 80.0}], 'FLAIR')
    )
    assert touching.startswith('1 new lesion touches an old one')
    assert faint.startswith('80 % of the lesions are hardly brighter than the white matter around them')


# The numbers that are checked, of a phantom whose lesions are known


@pytest.fixture
def check_phantom(make_phantom):
    """Function: checks of a perfect filling of the phantom in another mask than that of its lesion."""
    phantom = make_phantom(shape=(60, 60, 40), noise=25.0)
    lesion = ellipsoid((60, 60, 40), (24, 30, 20), (6, 6, 5))
    t1w = np.where(lesion, phantom.healthy - 150, phantom.healthy)

    def check(spoil=None):
        mask = spoil(lesion) if spoil else ndimage.binary_dilation(lesion)
        given = lesion if spoil is None else mask
        after = np.where(mask, phantom.healthy, t1w)
        wm_mask = phantom.wm_mask & ~mask
        sd = tables.deviation_of(t1w, wm_mask)
        faint_below = lesions_checks.FAINT_BELOW_SD * sd
        rows = tables.describe_lesions(t1w, after, given, mask, phantom.wm_mask, np.eye(4), -t1w, faint_below)
        return lesions_checks.warnings_of(
            lesions_checks.check_filling(replace(RECORD, white_matter_deviation=sd), rows, 'T1w')
        )

    return check


def test_a_filling_in_the_right_mask_is_not_flagged(check_phantom):
    assert check_phantom() == []


def test_a_mask_that_was_shifted_or_flipped_is_flagged(check_phantom):
    for spoilt in (lambda mask: np.roll(mask, 9, axis=1), lambda mask: mask[::-1]):
        assert any('is the mask at its place?' in sentence for sentence in check_phantom(spoilt))


def test_a_mask_that_was_eroded_leaves_a_border_that_is_flagged(check_phantom):
    assert any('a border stays' in sentence for sentence in check_phantom(ndimage.binary_erosion))
