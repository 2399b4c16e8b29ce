import numpy as np
import pytest
from conftest import ellipsoid

from bids_lesionfill.evaluate import confluent as evaluate_confluent
from bids_lesionfill.images import tissues

SHAPE = (40, 36, 32)


@pytest.fixture
def brain():
    """White matter at 0.5 around a ventricle at -0.6, in cortex at 0.1; and the mask of a patient's lesions."""
    tissue_seg = np.full(SHAPE, tissues.GREY_MATTER, dtype=np.uint8)
    tissue_seg[4:-4, 4:-4, 4:-4] = tissues.WHITE_MATTER
    tissue_seg[10:16, 12:24, 10:22] = tissues.CSF
    image = np.array([-1, -0.6, 0.1, 0.5], dtype=np.float32)[tissue_seg]
    mask = np.zeros(SHAPE, dtype=bool)
    mask[12:22, 14:22, 12:20] = True  # four voxels deep in the ventricle, six in white matter
    mask |= ellipsoid(SHAPE, (30, 18, 16), (2, 2, 2))
    mask[28, 28, 26] = True  # a crumb
    return image, tissue_seg, mask


def test_fluid_and_cortex_stay_in_the_truth_and_unpainted(brain):
    image, tissue_seg, mask = brain
    drawn = evaluate_confluent.draw_case(image, tissue_seg, mask, np.random.default_rng(0))
    assert drawn.image is image
    other = tissue_seg != tissues.WHITE_MATTER
    assert np.array_equal(drawn.seen[other], image[other])
    assert not drawn.touched[other].any()
    assert (drawn.seen[drawn.touched] < image[drawn.touched]).all()


def test_mask_laps_into_fluid_by_two_voxels(brain):
    drawn = evaluate_confluent.draw_case(*brain, np.random.default_rng(0))
    fluid = drawn.given_mask & drawn.fluid_mask
    assert np.array_equal(np.flatnonzero(fluid.any(axis=(1, 2))), [14, 15])
    assert fluid.sum() == 2 * 8 * 8


def test_lesions_are_two_and_one_touches_fluid(brain):
    drawn = evaluate_confluent.draw_case(*brain, np.random.default_rng(0))
    assert drawn.labels.max() == 2  # the crumb is left out
    assert drawn.at_fluid.tolist() == [True, False]
    assert (drawn.labels == 1).sum() == 6 * 8 * 8


def test_contrast_varies_within_a_lesion(brain):
    image, tissue_seg, mask = brain
    drawn = evaluate_confluent.draw_case(image, tissue_seg, mask, np.random.default_rng(0))
    core = np.zeros(SHAPE, dtype=bool)
    core[17:21, 16:20, 14:18] = True
    contrast = (image - drawn.seen)[core]
    assert contrast.std() > 0.03 * contrast.mean() > 0


def test_tight_mask_is_part_of_the_whole_one(brain):
    whole, tight = (evaluate_confluent.draw_case(*brain, np.random.default_rng(0), tight=t) for t in (False, True))
    assert np.array_equal(whole.seen, tight.seen)
    assert not (tight.given_mask & ~whole.given_mask).any()
    assert 0 < tight.given_mask.sum() < 0.9 * whole.given_mask.sum()


def test_mask_outside_white_matter_is_said(brain):
    image, tissue_seg, _ = brain
    with pytest.raises(ValueError, match='none of the 864 voxels'):
        evaluate_confluent.draw_case(image, tissue_seg, tissue_seg == tissues.CSF, np.random.default_rng(0))


def test_units_share_all_that_was_touched_given_or_used(brain):
    drawn = evaluate_confluent.draw_case(*brain, np.random.default_rng(0))
    used = drawn.given_mask.copy()
    used[22, 14:22, 12:20] = True
    case = evaluate_confluent.make_case(drawn, used, 'confluent', 'sub-01', 'app')
    assert [unit.place for unit in case.units] == [evaluate_confluent.CONTACT, evaluate_confluent.NO_CONTACT]
    assert [unit.volume_ml for unit in case.units] == [0.384, (drawn.labels == 2).sum() / 1000]
    together = sum(unit.score_mask.astype(int) for unit in case.units)
    assert np.array_equal(together, (drawn.touched | drawn.given_mask | used).astype(int))
    assert np.array_equal(case.units[0].lesion_mask | case.units[1].lesion_mask, used)


def test_lesions_of_an_archive_are_split_and_unpacked():
    shapes = [ellipsoid((15, 15, 15), (7, 7, 7), (7, 7, r)) for r in (6.5, 6.0, 5.5, 6.2, 6.8, 1)]
    bits = [np.packbits(shape) for shape in shapes]
    archive = {
        'offset': np.arange(18).reshape(6, 3).astype(np.int16),
        'shape': np.full((6, 3), 15, dtype=np.int16),
        'nvox': np.array([shape.sum() for shape in shapes]),
        'bits': np.concatenate(bits),
        'ptr': np.cumsum([0] + [len(part) for part in bits]),
    }
    ((offset, lesion),) = evaluate_confluent.unpack_lesions(archive)
    assert offset.tolist() == [12, 13, 14]
    assert np.array_equal(lesion, shapes[4])
    assert len(evaluate_confluent.unpack_lesions(archive, held_out=False)) == 4  # the last one is smaller than 1 ml


def test_gathered_lesions_do_not_touch(rng):
    cube = np.ones((4, 4, 4), dtype=bool)
    lesions = [(np.array(offset), cube) for offset in ((2, 2, 2), (5, 5, 5), (12, 12, 12))]
    mask = evaluate_confluent.gather_lesions(lesions, (20, 20, 20), rng)
    assert mask.sum() == 2 * 64  # the first two overlap: one of them is left out
    assert mask[13, 13, 13]


def test_mask_comes_to_the_brain_where_its_voxels_lie():
    """A brain shifted by two voxels along x, in a template whose x axis is flipped."""
    mask = np.zeros((12, 10, 8), dtype=bool)
    mask[3:5, 4:6, 2:4] = True
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = 11.0
    brain_mask = np.zeros((12, 10, 8), dtype=bool)
    brain_mask[1:9] = True
    points_mm = np.argwhere(brain_mask) + (2, 0, 0)  # voxel x lies at x + 2 mm
    warped = evaluate_confluent.warp_mask(mask, affine, points_mm, brain_mask)
    expected = np.zeros_like(mask)
    expected[5:7, 4:6, 2:4] = True  # 11 - 3 - 2 and 11 - 4 - 2
    assert np.array_equal(warped, expected)
