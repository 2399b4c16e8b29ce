"""A filling is measured as a reader sees it: grain, glow, walls, outline; and whether a mask is at its place."""

import numpy as np
import pytest
from conftest import ellipsoid
from heads import SD, WHITE, build_head
from scipy import ndimage

from bids_lesionfill.lesions import checks, measures
from bids_lesionfill.lesions.records import FillRecord


@pytest.fixture(scope='module')
def head():
    """Noisy white matter with a ventricle that a lesion of 1.3 ml touches; `t1w` is healthy everywhere."""
    t1w, brain, lesions, ventricle, white, apart = build_head()
    return t1w, brain, lesions, ventricle, white & ~ventricle


def look(head, filled, original=None):
    t1w, brain, lesions, _, white = head
    original = t1w if original is None else original
    labels = ndimage.label(lesions, np.ones((3, 3, 3)))[0]
    untouched = measures.see_untouched(original, brain, white, lesions, lesions)
    return measures.look_at(original, filled, labels, untouched, -1, True)


def complaints(seen):
    """Return the names of failed checks of a filling as a whole."""
    record = FillRecord(fill_grain=seen.whole['grain'], fill_glow=seen.whole['glow'], fill_wall=seen.whole['wall'])
    found = {'grain': checks.check_grain(record, []), 'glow': checks.check_glow(record, [], 'T1w')}
    found['wall'] = checks.check_wall(record, [])
    return [name for name, check in found.items() if not check.passed]


def test_real_tissue_raises_no_complaint(head):
    seen = look(head, head[0])
    assert complaints(seen) == []
    assert seen.whole['grain'] == pytest.approx(1, abs=0.15)
    assert seen.whole['outline'] == pytest.approx(0, abs=0.3)


def test_a_flat_filling_has_no_grain(head):
    assert complaints(look(head, np.where(head[2], WHITE, head[0]))) == ['grain']


def test_an_overshoot_glows(head):
    assert 'glow' in complaints(look(head, head[0] + 2 * SD * head[2]))


def test_a_smeared_wall_is_seen(head):
    smeared = head[0].copy()
    for step in range(4):  # from fluid (200) to white matter in four voxels beside the ventricle
        smeared[28 + step, 20:32, 18:30] = 200 + (step + 1) / 5 * (WHITE - 200)
    assert 'wall' in complaints(look(head, smeared))
    (large,) = look(head, smeared).lesions.values()
    assert large['wall'] < checks.MIN_LESION_WALL


def test_a_ring_that_stays_is_an_outline(head):
    t1w, _, lesions, ventricle, _ = head
    ring = ndimage.binary_dilation(lesions, np.ones((3, 3, 3))) & ~lesions & ~ventricle
    dark = np.where(ring, t1w - 2 * SD, t1w)
    assert look(head, dark, dark).whole['outline'] == pytest.approx(2, abs=0.5)


def test_lesions_too_small_to_tell_are_left_out(head):
    _, _, lesions, *_ = head
    sizes = np.bincount(ndimage.label(lesions, np.ones((3, 3, 3)))[0].flat)[1:]
    large = set(np.flatnonzero(sizes >= 500) + 1)
    assert len(large) == 1 < len(sizes)
    assert set(look(head, head[0]).lesions) == large


def test_no_white_matter_to_compare_with_is_said(head):
    t1w, brain, lesions, _, white = head
    with pytest.raises(ValueError, match='no white matter was found'):
        measures.see_untouched(t1w, brain, white & lesions, lesions, lesions)
    with pytest.raises(ValueError, match='no contrast'):
        measures.see_untouched(np.ones_like(t1w), brain, white, lesions, lesions)


@pytest.mark.parametrize('contrast_sd', [0.8, 4])
def test_a_mask_at_its_place_is_told_from_one_that_is_not(contrast_sd):
    """Faint lesions too: 0.8 SD is what most voxels of a lesion of P14 have on its T1w."""
    rng = np.random.default_rng(0)
    shape = (60, 56, 50)
    white = ellipsoid(shape, (30, 28, 25), (26, 24, 21))
    lesions = np.zeros(shape, dtype=bool)
    for centre in ((20, 28, 25), (38, 20, 22), (40, 36, 28)):
        lesions |= ellipsoid(shape, centre, (4, 3, 3))
    image = np.where(white, WHITE, 0) - contrast_sd * SD * lesions + SD * rng.standard_normal(shape)

    def check(mask):
        step, moved = measures.place_of_mask(image, mask, white, white, -1)
        return checks.check_place([], FillRecord(mask_step=step, mask_step_moved=moved), 'T1w')

    assert check(lesions).passed
    for spoilt in (np.roll(lesions, 10, 0), np.roll(lesions, 6, 1), lesions[::-1]):
        assert 'is the mask at its place?' in check(spoilt & white).sentence


def test_a_mask_without_white_matter_around_has_no_place():
    mask = np.zeros((20, 20, 20), dtype=bool)
    image = np.zeros(mask.shape)
    assert np.isnan(measures.place_of_mask(image, mask, ~mask, ~mask, -1)).all()
    assert np.isnan(measures.place_of_mask(image, ~mask, mask, ~mask, -1)).all()


def test_lesion_that_was_left_at_the_ventricle_is_seen(head):
    t1w, _, lesions, ventricle, white = head
    flair = np.where(ventricle, 100, t1w) + 0.0
    rim = lesions & ndimage.binary_dilation(ventricle)
    left = np.where(rim, WHITE + 8 * SD, flair)
    assert measures.left_behind(flair, lesions, white) < 0.01
    assert measures.left_behind(left, lesions, white) == pytest.approx(rim.sum() / lesions.sum(), abs=0.01)
    assert np.isnan(measures.left_behind(flair, lesions & ~lesions, white))
