import numpy as np
import pytest

from bids_lesionfill.images import masks


def cube(shape, *corners, size=2):
    mask = np.zeros(shape, dtype=bool)
    for corner in corners:
        mask[tuple(slice(c, c + size) for c in corner)] = True
    return mask


# Labels and splitting


def test_lesions_that_touch_at_a_corner_are_one():
    mask = cube((8, 8, 8), (1, 1, 1), (3, 3, 3))
    labels, n_lesions = masks.label_lesions(mask)
    assert n_lesions == 1
    assert np.array_equal(labels > 0, mask)


def test_lesions_one_voxel_apart_are_two():
    assert masks.label_lesions(cube((8, 8, 8), (1, 1, 1), (4, 1, 1)))[1] == 2


def test_largest_lesions_are_numbered_by_falling_volume():
    mask = np.zeros((9, 3, 3), dtype=bool)
    mask[0, 0, 0] = True
    mask[2, :2, 0] = True
    mask[4:6, 0, 0] = True
    mask[6, 1, 1] = True  # touches the lesion before at a corner: three voxels
    mask[8, 2, 2] = True
    labels = masks.largest_lesions(mask, 3)
    assert (labels[4, 0, 0], labels[6, 1, 1], labels[2, 0, 0], labels[0, 0, 0]) == (1, 1, 2, 3)
    assert np.bincount(labels.flat).tolist() == [81 - 6, 3, 2, 1]  # of equal ones the first; the last is not numbered
    assert masks.largest_lesions(mask, 10).max() == 4
    assert not masks.largest_lesions(np.zeros_like(mask), 3).any()


def test_split_lesions_crops_each_lesion_to_its_box(phantom):
    deep, small = sorted(masks.split_lesions(phantom.lesion_mask), key=np.sum, reverse=True)
    assert deep.sum() > small.sum()
    assert deep.sum() + small.sum() == phantom.lesion_mask.sum()
    for lesion in (deep, small):
        for axis in range(3):
            touched = lesion.any(axis=tuple({0, 1, 2} - {axis}))
            assert touched[0]
            assert touched[-1]


def test_split_lesions_leaves_the_neighbour_in_the_same_box_out():
    ring = np.zeros((9, 9, 3), dtype=bool)
    ring[1:8, 1:8, 1] = True
    ring[2:7, 2:7, 1] = False
    ring[4, 4, 1] = True  # a second lesion, inside the box of the first
    assert sorted(int(lesion.sum()) for lesion in masks.split_lesions(ring)) == [1, 24]


def test_split_lesions_drops_what_is_smaller_than_min_voxels():
    mask = cube((12, 12, 12), (1, 1, 1)) | cube((12, 12, 12), (6, 6, 6), size=3)
    assert [int(lesion.sum()) for lesion in masks.split_lesions(mask, min_voxels=8)] == [8, 27]
    assert [int(lesion.sum()) for lesion in masks.split_lesions(mask, min_voxels=9)] == [27]


def test_split_lesions_of_an_empty_mask_is_an_empty_list():
    assert masks.split_lesions(np.zeros((4, 4, 4), dtype=bool)) == []


# Dilation


def test_dilation_grows_into_white_matter_only():
    lesion = cube((9, 9, 9), (3, 3, 3))
    wm_mask = np.zeros((9, 9, 9), dtype=bool)
    wm_mask[4:] = True
    grown = masks.dilate_within(lesion, wm_mask)
    expected = lesion.copy()
    expected[4:6, 2:6, 2:6] = True
    assert np.array_equal(grown, expected)


def test_dilation_by_n_voxels_grows_n_voxels_in_all_26_directions():
    lesion = cube((11, 11, 11), (5, 5, 5), size=1)
    everywhere = np.ones_like(lesion)
    assert np.array_equal(masks.dilate_within(lesion, everywhere, 1), cube((11,) * 3, (4, 4, 4), size=3))
    assert np.array_equal(masks.dilate_within(lesion, everywhere, 3), cube((11,) * 3, (2, 2, 2), size=7))


def test_one_step_takes_the_next_voxel_but_not_the_next_thick_slice():
    assert masks.one_step((1, 1, 1)).all()
    assert masks.one_step((0.5, 0.5, 2)).all()
    assert np.array_equal(masks.one_step((1, 5, 1)), np.indices((3, 3, 3))[1] == 1)
    lesion = cube((11, 11, 11), (5, 5, 5), size=1)
    grown = masks.dilate_within(lesion, np.ones_like(lesion), 2, masks.one_step((1, 1, 5)))
    assert grown.sum() == grown[:, :, 5].sum() == 25


def test_dilation_does_not_jump_over_a_gap_in_white_matter():
    lesion = cube((11, 5, 5), (1, 2, 2), size=1)
    wm_mask = np.ones_like(lesion)
    wm_mask[3] = False
    assert not masks.dilate_within(lesion, wm_mask, 9)[3:].any()


def test_dilation_by_nothing_is_an_equal_copy(phantom):
    before = phantom.lesion_mask.copy()
    grown = masks.dilate_within(phantom.lesion_mask, phantom.wm_mask, 0)
    assert np.array_equal(grown, before)
    grown[:] = True
    assert np.array_equal(phantom.lesion_mask, before)


def test_dilation_keeps_lesion_voxels_outside_white_matter():
    lesion = cube((6, 6, 6), (2, 2, 2))
    assert np.array_equal(masks.dilate_within(lesion, np.zeros_like(lesion), 2), lesion)


def test_dilation_leaves_its_arguments_alone(phantom):
    lesion, wm_mask = phantom.lesion_mask.copy(), phantom.wm_mask.copy()
    masks.dilate_within(phantom.lesion_mask, phantom.wm_mask, 2)
    assert np.array_equal(phantom.lesion_mask, lesion)
    assert np.array_equal(phantom.wm_mask, wm_mask)


def test_growth_takes_what_is_dark_shell_by_shell_and_stops():
    lesion = cube((12, 5, 5), (2, 2, 2), size=1)
    darker = np.zeros(lesion.shape)
    darker[3:8, 2, 2] = 1  # a dark line that leads away from the lesion
    everywhere = np.ones_like(lesion)
    for n_voxels in (0, 1, 3):
        grown = masks.grow_while_dark(lesion, everywhere, darker, 0.5, n_voxels)
        assert np.array_equal(np.flatnonzero(grown[:, 2, 2]), np.arange(2, 3 + n_voxels))
        assert grown.sum() == 1 + n_voxels


def test_growth_does_not_reach_what_is_dark_elsewhere_or_no_white_matter():
    lesion = cube((12, 5, 5), (2, 2, 2), size=1)
    dark = np.ones(lesion.shape)
    dark[4] = 0  # a bright sheet between
    wm_mask = np.ones_like(lesion)
    wm_mask[:, 3:] = False
    grown = masks.grow_while_dark(lesion, wm_mask, dark, 0.5, 9)
    assert not grown[4:].any()
    assert not grown[:, 3:].any()
    assert grown[1, 1, 1]


# Restriction


def test_restriction_keeps_a_lesion_as_a_whole():
    wm_mask = np.zeros((12, 6, 6), dtype=bool)
    wm_mask[:5] = True
    lesion = np.zeros_like(wm_mask)
    lesion[4:9, 2:4, 2:4] = True  # one of five layers is in white matter
    assert np.array_equal(masks.restrict_to_white_matter(lesion, wm_mask), lesion)


def test_restriction_keeps_a_lesion_that_only_touches_white_matter():
    wm_mask = np.zeros((12, 6, 6), dtype=bool)
    wm_mask[:5, :3, :3] = True
    touching = cube((12, 6, 6), (5, 3, 3))  # corner to corner
    assert np.array_equal(masks.restrict_to_white_matter(touching, wm_mask), touching)


def test_restriction_drops_a_lesion_far_from_white_matter_and_keeps_the_other():
    wm_mask = np.zeros((12, 6, 6), dtype=bool)
    wm_mask[:5] = True
    near, far = cube((12, 6, 6), (2, 2, 2)), cube((12, 6, 6), (6, 2, 2))  # far: one voxel of gap
    assert np.array_equal(masks.restrict_to_white_matter(near | far, wm_mask), near)


def test_restriction_of_an_empty_mask_or_to_empty_white_matter_is_empty(phantom):
    nothing = np.zeros_like(phantom.wm_mask)
    assert not masks.restrict_to_white_matter(nothing, phantom.wm_mask).any()
    assert not masks.restrict_to_white_matter(phantom.lesion_mask, nothing).any()


# Shapes


def test_random_orientation_reaches_all_48_and_keeps_the_voxels(rng):
    lesion = np.zeros((2, 3, 4), dtype=bool)
    lesion[0, 0, 0] = lesion[0, 0, 1] = lesion[0, 0, 2] = lesion[0, 1, 0] = lesion[1, 0, 1] = True
    seen = set()
    for _ in range(1000):
        turned = masks.random_orientation(lesion, rng)
        assert turned.sum() == lesion.sum()
        seen.add((turned.shape, turned.tobytes()))
    assert len(seen) == 48


def test_random_ellipsoid_is_symmetric_and_within_its_radii(rng):
    for _ in range(50):
        ellipsoid = masks.random_ellipsoid(rng, radii_voxels=(2, 5))
        assert np.array_equal(ellipsoid, ellipsoid[::-1, ::-1, ::-1])
        assert ellipsoid[tuple(n // 2 for n in ellipsoid.shape)]
        lengths = np.array([ellipsoid.any(axis=axes).sum() for axes in ((1, 2), (0, 2), (0, 1))])
        assert (lengths >= 2 * np.floor(2 * 0.6) + 1).all()
        assert (lengths <= 2 * np.floor(5 * 1.4) + 1).all()


def test_random_ellipsoid_fills_pi_sixths_of_its_box(rng):
    for _ in range(5):
        ellipsoid = masks.random_ellipsoid(rng, radii_voxels=(15, 15))
        box = np.ptp(np.argwhere(ellipsoid), axis=0) + 1
        assert ellipsoid.sum() / box.prod() == pytest.approx(np.pi / 6, abs=0.03)


# Placing


@pytest.mark.parametrize('size', [(3, 3, 3), (2, 3, 4), (1, 1, 1)])
def test_place_inside_holds_the_whole_lesion_around_the_centre(size):
    mask = masks.place(np.ones(size, dtype=bool), (5, 6, 4), (12, 12, 12))
    assert mask.shape == (12, 12, 12)
    start = np.array((5, 6, 4)) - np.array(size) // 2
    assert np.array_equal(np.argwhere(mask).min(axis=0), start)
    assert np.array_equal(np.argwhere(mask).max(axis=0), start + size - 1)
    assert mask.sum() == np.prod(size)


def test_place_does_not_mirror_or_turn_the_lesion(rng):
    lesion = rng.random((3, 4, 5)) < 0.5
    mask = masks.place(lesion, (4, 5, 6), (9, 10, 11))
    assert np.array_equal(mask[3:6, 3:7, 4:9], lesion)


@pytest.mark.parametrize('centre', [(0, 0, 0), (5, 6, 7), (0, 6, 3), (5, 0, 7)])
def test_place_cuts_at_the_borders(centre, rng):
    lesion = rng.random((5, 5, 5)) < 0.5
    shape = (6, 7, 8)
    large = np.zeros((16, 17, 18), dtype=bool)  # the same volume with a margin of 5
    large[tuple(slice(5 + c - 2, 5 + c + 3) for c in centre)] = lesion
    assert np.array_equal(masks.place(lesion, centre, shape), large[5:11, 5:12, 5:13])


def test_place_of_a_lesion_larger_than_the_volume_fills_it():
    assert masks.place(np.ones((9, 9, 9), dtype=bool), (1, 1, 1), (3, 3, 3)).all()


# Training masks


@pytest.fixture
def shapes(phantom):
    return masks.split_lesions(phantom.lesion_mask)


@pytest.mark.parametrize('share', [0, 0.5, 1])
def test_training_mask_lies_inside_white_matter_and_is_not_empty(phantom, shapes, rng, share):
    for _ in range(20):
        mask = masks.sample_training_mask(phantom.wm_mask, shapes, rng, ellipsoid_share=share)
        assert mask.dtype == bool
        assert mask.sum() >= 6
        assert not (mask & ~phantom.wm_mask).any()


def test_training_mask_of_share_1_needs_no_lesions(phantom, rng):
    assert masks.sample_training_mask(phantom.wm_mask, [], rng, ellipsoid_share=1).any()


def test_training_mask_of_share_0_holds_real_shapes_only(rng):
    stick = np.ones((7, 1, 1), dtype=bool)
    everywhere = np.ones((30, 30, 30), dtype=bool)
    for _ in range(20):
        mask = masks.sample_training_mask(everywhere, [stick], rng, ellipsoid_share=0, max_lesions=1, min_voxels=7)
        box = np.ptp(np.argwhere(mask), axis=0) + 1
        assert sorted(box) == [1, 1, 7]
        assert mask.sum() == 7


def test_training_mask_of_share_1_never_holds_a_real_shape(rng):
    stick = np.ones((7, 1, 1), dtype=bool)
    everywhere = np.ones((30, 30, 30), dtype=bool)
    for _ in range(20):
        mask = masks.sample_training_mask(everywhere, [stick], rng, ellipsoid_share=1, max_lesions=1, min_voxels=7)
        assert sorted(np.ptp(np.argwhere(mask), axis=0) + 1) != [1, 1, 7]


def test_training_mask_mixture_draws_both_kinds(rng):
    stick = np.ones((7, 1, 1), dtype=bool)
    everywhere = np.ones((30, 30, 30), dtype=bool)
    thin = [
        (np.ptp(np.argwhere(masks.sample_training_mask(everywhere, [stick], rng, 0.5, 1, 7)), axis=0) + 1).min() == 1
        for _ in range(60)
    ]
    assert 0.25 < np.mean(thin) < 0.75


def test_training_mask_has_between_one_and_max_lesions(rng):
    dot = np.ones((1, 1, 1), dtype=bool)
    everywhere = np.ones((40, 40, 40), dtype=bool)
    counts = {
        int(masks.sample_training_mask(everywhere, [dot], rng, 0, max_lesions=3, min_voxels=1).sum()) for _ in range(60)
    }
    assert counts == {1, 2, 3}


def test_training_mask_does_not_count_lesions_below_min_voxels(rng):
    everywhere = np.ones((10, 10, 10), dtype=bool)
    dot = np.ones((1, 1, 1), dtype=bool)
    assert not masks.sample_training_mask(everywhere, [dot], rng, ellipsoid_share=0, min_voxels=2).any()


def test_training_mask_without_white_matter_is_empty(rng):
    assert not masks.sample_training_mask(np.zeros((8, 8, 8), dtype=bool), [], rng, ellipsoid_share=1).any()


def test_training_mask_depends_on_the_seed_alone(phantom, shapes):
    def draw(seed):
        return masks.sample_training_mask(phantom.wm_mask, shapes, np.random.default_rng(seed))

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


def test_missing_lesion_shapes_are_named(rng):
    with pytest.raises(ValueError, match='no lesion shapes'):
        masks.sample_training_mask(np.ones((9, 9, 9), dtype=bool), [], rng, ellipsoid_share=0.5)
