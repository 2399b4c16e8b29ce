import numpy as np
import pytest
from conftest import ellipsoid
from scipy import ndimage

from bids_lesionfill.evaluate import cases as evaluate_cases
from bids_lesionfill.evaluate.cases import LESION_MASKS_BRAIN_BOX_MM, SEPARATION_VOXELS, TOUCHED
from bids_lesionfill.images import masks, tissues
from bids_lesionfill.lesions import places as lesions_places
from bids_lesionfill.modality import T1W

LJUBLJANA_AFFINE = np.array([[-1.0, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])
CSF, GREY, WHITE = tissues.CSF, tissues.GREY_MATTER, tissues.WHITE_MATTER


def ball(shape, centre, radius):
    return ellipsoid(shape, centre, (radius,) * 3)


def build_head(size, wm_radius, ventricle_radius=0, gm_voxels=4, csf_voxels=3):
    """Tissues of nested balls in a cube; a CSF ball in the middle, if it has a radius."""
    shape, middle = (size,) * 3, ((size - 1) / 2,) * 3
    tissue_seg = np.zeros(shape, dtype=np.uint8)
    radii = wm_radius + gm_voxels + csf_voxels, wm_radius + gm_voxels, wm_radius
    for label, radius in zip((CSF, GREY, WHITE), radii, strict=True):
        tissue_seg[ball(shape, middle, radius)] = label
    ventricles = ball(shape, middle, ventricle_radius) if ventricle_radius else np.zeros(shape, dtype=bool)
    tissue_seg[ventricles] = CSF
    return tissue_seg, ventricles


def grown(mask, n_voxels, structure=masks.FULL_CONNECTIVITY):
    return ndimage.binary_dilation(mask, structure=structure, iterations=n_voxels) if n_voxels else mask


def within(inner, outer):
    return not (inner & ~outer).any()


# Ventricles


@pytest.fixture(scope='module')
def deep_head():
    """White matter of radius 31 in a brain of radius 38, and a ventricle of radius 6: at least 32 voxels deep."""
    return build_head(80, 31, ventricle_radius=6)


def test_ventricles_are_the_deep_csf_and_not_the_shell(deep_head):
    tissue_seg, ventricles = deep_head
    assert np.array_equal(evaluate_cases.find_ventricles(tissue_seg), ventricles)


def test_ventricles_end_where_a_channel_to_the_shell_leaves_the_depth(deep_head):
    tissue_seg, ventricles = deep_head
    connected = tissue_seg.copy()
    connected[39:41, 39:41, 40:] = np.where(connected[39:41, 39:41, 40:] > 0, CSF, 0)
    assert masks.label_lesions(connected == CSF)[1] == 1
    found = evaluate_cases.find_ventricles(connected)
    assert within(ventricles, found)
    assert not (found & (tissue_seg == CSF) & ~ventricles).any()  # nothing of the shell
    assert found.sum() < ventricles.sum() + 4 * 6  # and but the deepest voxels of the channel


def test_the_largest_deep_csf_is_the_ventricles(deep_head):
    tissue_seg, ventricles = deep_head
    with_cyst = tissue_seg.copy()
    with_cyst[30:32, 39:41, 39:41] = CSF  # the first that is found
    assert np.array_equal(evaluate_cases.find_ventricles(with_cyst), ventricles)


def test_open_sulcus_of_background_does_not_lift_the_surface_to_the_ventricles(deep_head):
    tissue_seg, ventricles = deep_head
    cut = tissue_seg.copy()
    cut[37:43, :, 48:] = 0  # six voxels wide, and two voxels above the ventricle
    assert np.array_equal(evaluate_cases.find_ventricles(cut), ventricles)


def test_brain_without_deep_csf_has_no_ventricles(phantom):
    found = evaluate_cases.find_ventricles(phantom.tissue_seg)
    assert found.shape == phantom.tissue_seg.shape
    assert found.dtype == bool
    assert not found.any()


# Lesions at random places

SHAPES = [ball((n,) * 3, ((n - 1) / 2,) * 3, radius) for n, radius in ((5, 2), (9, 4), (15, 7))]  # of every volume
SMALL_SHAPES = [np.ones((3, 2, 2), dtype=bool), SHAPES[0]]


@pytest.fixture(scope='module')
def head():
    return build_head(64, 26, ventricle_radius=5, gm_voxels=3, csf_voxels=2)


def scatter(head, seed=0, shapes=SHAPES, n_lesions=4, **options):
    return evaluate_cases.scatter_lesions(*head, shapes, np.random.default_rng(seed), n_lesions, **options)


@pytest.mark.parametrize('seed', range(3))
def test_lesions_are_numbered_connected_and_inside_white_matter(head, seed):
    labels = scatter(head, seed)
    assert np.array_equal(np.unique(labels), np.arange(5))
    assert within(labels > 0, head[0] == WHITE)
    for number in range(1, 5):
        assert masks.label_lesions(labels == number)[1] == 1
        assert (labels == number).sum() >= 8


@pytest.mark.parametrize('seed', range(3))
def test_lesions_are_far_from_one_another(head, seed):
    labels = scatter(head, seed, SMALL_SHAPES, n_lesions=7)
    for number in range(1, 8):
        others = (labels > 0) & (labels != number)
        assert not (grown(labels == number, SEPARATION_VOXELS) & others).any()


def test_same_seed_same_lesions(head):
    assert np.array_equal(scatter(head, 3), scatter(head, 3))
    assert not np.array_equal(scatter(head, 3), scatter(head, 4))


@pytest.mark.parametrize('with_ventricles', [True, False])
def test_volumes_and_places_take_turns(head, with_ventricles, monkeypatch):
    tissue_seg, ventricles = head
    ventricles = ventricles & with_ventricles
    orient, place, volumes, places = masks.random_orientation, masks.place, [], []
    monkeypatch.setattr(
        masks, 'random_orientation', lambda shape, rng: volumes.append(shape.sum() / 1000) or orient(shape, rng)
    )
    monkeypatch.setattr(
        masks, 'place', lambda shape, centre, size: places.append(tuple(centre)) or place(shape, centre, size)
    )
    with pytest.raises(ValueError, match='found a place'):
        scatter((tissue_seg, ventricles), n_lesions=99, tries=90, shapes=[*SHAPES, *[SHAPES[0]] * 20])
    assert [int(np.digitize(volume, (0.1, 1))) for volume in volumes] == [0, 1, 2] * 30
    to_ventricles = ndimage.distance_transform_cdt(~ventricles, metric='taxicab') if with_ventricles else None
    to_cortex = ndimage.distance_transform_cdt(tissue_seg != GREY, metric='taxicab')
    kinds = [
        'ventricles'
        if with_ventricles and to_ventricles[centre] <= 4
        else 'cortex'
        if to_cortex[centre] <= 3
        else 'deep'
        for centre in places
    ]
    turns = ['ventricles', 'deep', 'cortex'] if with_ventricles else ['deep', 'cortex']
    assert kinds == [turns[attempt // 3 % len(turns)] for attempt in range(90)]


def test_shape_that_white_matter_cuts_in_two_leaves_its_larger_part():
    tissue_seg = np.full((20, 20, 20), GREY, dtype=np.uint8)
    tissue_seg[:8], tissue_seg[9:] = WHITE, WHITE
    bar = np.ones((12, 12, 12), dtype=bool)
    labels = scatter((tissue_seg, np.zeros(tissue_seg.shape, dtype=bool)), shapes=[bar], n_lesions=1)
    assert masks.label_lesions(labels)[1] == 1
    assert labels.max() == 1


def test_too_many_lesions_are_refused(head):
    with pytest.raises(ValueError, match=r'of 500 lesions of 3 shapes found a place in \d+ voxels of white matter'):
        scatter(head, n_lesions=500, tries=60)


def test_brain_without_white_matter_or_shapes_is_refused(head):
    nothing = np.zeros((10, 10, 10), dtype=np.uint8)
    with pytest.raises(ValueError, match='0 of 1 lesions of 3 shapes found a place in 0 voxels'):
        scatter((nothing, nothing > 0), n_lesions=1)
    with pytest.raises(ValueError, match='0 of 1 lesions of 0 shapes'):
        scatter(head, shapes=[], n_lesions=1)


def test_slivers_are_no_lesions(head):
    with pytest.raises(ValueError, match='0 of 1 lesions'):
        scatter(head, shapes=[np.ones((2, 2, 2), dtype=bool)], n_lesions=1, min_voxels=9, tries=20)


# Painting


@pytest.fixture(scope='module')
def brain(head):
    """A normalised image of the head with texture, and its segmentation."""
    tissue_seg, _ = head
    texture = np.random.default_rng(5).normal(0, 0.02, tissue_seg.shape)
    image = np.array([-1, -0.6, 0, 0.5])[tissue_seg] + texture * (tissue_seg > 0)
    return image.astype(np.float32), tissue_seg


@pytest.fixture(scope='module')
def painted(brain, head):
    labels = scatter(head, seed=1)
    wm_mask = brain[1] == WHITE
    return labels, wm_mask, *evaluate_cases.paint(brain[0], labels, wm_mask, np.random.default_rng(2))


def test_painting_darkens_white_matter_around_the_lesions_and_nothing_else(brain, painted):
    labels, wm_mask, seen, alpha = painted
    drop = brain[0] - seen
    assert seen.dtype == np.float32
    assert within(alpha > 1e-4, drop > 0)
    assert within(drop > 0, alpha > 0)
    assert (drop >= 0).all()
    assert not drop[~wm_mask].any()
    assert not drop[~grown(labels > 0, 4)].any()
    assert within(labels > 0, alpha > 0.1)
    assert (alpha <= 1).all()


def test_lesions_have_one_contrast_each_and_different_ones(brain, painted):
    labels, _, seen, alpha = painted
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    owner = labels[tuple(nearest)]
    contrasts = []
    for number in range(1, 5):
        ratio = ((brain[0] - seen) / np.maximum(alpha, 1e-6))[(owner == number) & (alpha > 0.05)]
        assert np.ptp(ratio) < 1e-4
        contrasts.append(ratio.mean())
    assert min(contrasts) >= 0.15 - 1e-4  # something is to be seen of every lesion
    assert max(contrasts) <= max(T1W.contrast_percentiles.values()) + 1e-4
    assert min(abs(a - b) for i, a in enumerate(contrasts) for b in contrasts[:i]) > 1e-4


def test_paint_without_edge_is_the_mask(brain, painted):
    labels, wm_mask, *_ = painted
    seen, alpha = evaluate_cases.paint(brain[0], labels, wm_mask, np.random.default_rng(2), (0, 0))
    assert np.array_equal(alpha > 0, labels > 0)
    np.testing.assert_allclose(alpha[labels > 0], 1, atol=1e-6)
    assert np.array_equal(seen != brain[0], labels > 0)


def test_tightening_never_grows_and_never_empties_a_mask(rng):
    single = np.zeros((9, 9, 9), dtype=bool)
    single[4, 4, 4] = True
    flat = np.zeros_like(single)
    flat[2:7, 2:7, 4] = True
    for mask in (single, flat, ball((9, 9, 9), (4, 4, 4), 3)):
        before = mask.copy()
        for _ in range(30):
            tight = evaluate_cases.tighten(mask, rng)
            assert within(tight, mask)
            assert tight.any()
        assert np.array_equal(mask, before)


def test_tightened_masks_are_a_voxel_too_small_or_lack_half_of_their_border(rng):
    mask = ball((25, 25, 25), (12, 12, 12), 9)
    core = ndimage.binary_erosion(mask)
    border = mask & ~core
    shares = []
    for _ in range(60):
        tight = evaluate_cases.tighten(mask, rng)
        assert within(core, tight)
        shares.append((tight & border).sum() / border.sum())
    ragged = [share for share in shares if share > 0]
    assert all(share == pytest.approx(0.5, abs=0.1) for share in ragged)
    assert 15 < len(ragged) < 45


# Cases of a brain


def draw(brain, kind, dilations=(0,), seed=0, n_lesions=3, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return evaluate_cases.draw_cases('sub-01', *brain, shapes, rng, n_lesions, kind, dilations)


@pytest.fixture(scope='module')
def clean_case(brain):
    (case,) = draw(brain, 'clean')
    return case


@pytest.fixture(scope='module')
def rim_cases(brain):
    """With the lesions' share of every voxel, as `paint` returned it."""
    paint, alphas = evaluate_cases.paint, []

    def spy(*arguments):
        seen, alpha = paint(*arguments)
        alphas.append((arguments[1], alpha))
        return seen, alpha

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_cases, 'paint', spy)
        cases = draw(brain, 'rim', dilations=(0, 1, 2))
    ((labels, alpha),) = alphas
    return cases, labels, alpha


def test_mask_of_a_clean_case_is_exact(brain, clean_case):
    case = clean_case
    assert (case.kind, case.dilation, case.subject) == ('clean', 0, 'sub-01')
    assert np.array_equal(case.image, brain[0])
    assert np.array_equal(case.wm_mask, brain[1] == WHITE)
    assert np.array_equal(case.seen != case.image, case.lesion_mask)
    assert within(case.lesion_mask, case.wm_mask)
    assert len(case.units) == 3
    for unit in case.units:
        assert np.array_equal(unit.score_mask, unit.lesion_mask)
        assert unit.volume_ml == unit.lesion_mask.sum() / 1000


def test_leaving_a_clean_case_as_it_is_is_wrong_in_every_voxel(clean_case):
    case = clean_case
    difference = (case.image - case.seen)[case.lesion_mask]
    assert difference.min() >= 0.15 - 1e-6
    for unit in case.units:
        assert (case.image - case.seen)[unit.lesion_mask].std() < 1e-6  # the contrast, one for the lesion


def check_units_share_out(case, whole):
    assert [unit.number for unit in case.units] == list(range(1, len(case.units) + 1))
    assert np.array_equal(sum(unit.score_mask.astype(int) for unit in case.units), whole.astype(int))
    assert np.array_equal(sum(unit.lesion_mask.astype(int) for unit in case.units), case.lesion_mask.astype(int))
    for unit in case.units:
        assert within(unit.lesion_mask, unit.score_mask)
        assert masks.label_lesions(grown(unit.score_mask, 2))[1] == 1  # of one place
        assert unit.place in ('periventricular', 'juxtacortical', 'deep')


def test_units_share_a_clean_case_out(clean_case):
    check_units_share_out(clean_case, clean_case.lesion_mask)


def test_rim_mask_is_inside_the_lesion_and_misses_a_part_of_each(rim_cases):
    (case, *_), labels, alpha = rim_cases
    assert case.lesion_mask.any()
    assert within(case.lesion_mask, alpha > 0.5)
    assert within(case.lesion_mask, labels > 0)
    for unit in case.units:
        assert unit.lesion_mask.any()
        assert unit.lesion_mask.sum() < (alpha[unit.score_mask] > 0.5).sum()
        assert unit.volume_ml == (labels == unit.number).sum() / 1000


def test_rim_mask_before_it_is_tightened_is_the_half_maximum_of_each_lesion(brain, monkeypatch):
    handed = []
    monkeypatch.setattr(evaluate_cases, 'EDGE_VOXELS', (0.9, 0.9))
    monkeypatch.setattr(evaluate_cases, 'tighten', lambda mask, rng: handed.append(mask) or mask)
    (case,) = draw(brain, 'rim', shapes=[np.ones((5, 5, 5), dtype=bool)])
    assert len(handed) == 3
    assert np.array_equal(case.lesion_mask, np.any(handed, axis=0))
    depth = (case.image - case.seen) / np.float32(0.15)  # at most, the contrast is more
    for mask in handed:
        assert 8 <= mask.sum() < 125  # a cube without its corners, which are painted by a third
        assert depth[mask].min() > 0.5


def test_units_are_what_was_touched_or_is_filled_shared_out_to_the_nearest_lesion():
    labels = np.zeros((30, 9, 9), dtype=int)
    labels[5:8, 3:6, 3:6], labels[22:25, 3:6, 3:6] = 1, 2
    touched, filled = grown(labels == 1, 1) | (labels == 2), (labels == 1) | grown(labels == 2, 2)
    tissue_seg = np.full(labels.shape, WHITE)
    units = evaluate_cases.make_units(labels, touched, filled, labels < 0, tissue_seg)
    assert [(unit.number, unit.volume_ml, unit.place) for unit in units] == [(1, 0.027, 'deep'), (2, 0.027, 'deep')]
    assert np.array_equal(units[0].score_mask, grown(labels == 1, 1))
    assert np.array_equal(units[0].lesion_mask, labels == 1)
    assert np.array_equal(units[1].score_mask, grown(labels == 2, 2))
    assert np.array_equal(units[1].lesion_mask, units[1].score_mask)


def test_what_is_scored_of_a_rim_case_is_all_that_was_touched_and_the_mask(rim_cases):
    cases, _, alpha = rim_cases
    for case in cases:
        whole = case.lesion_mask | (alpha > TOUCHED)
        check_units_share_out(case, whole)
        assert np.abs(case.image - case.seen)[~whole].max() <= 0.02  # nothing that is left out is to be seen


def test_masks_of_rim_cases_grow_by_their_dilation_within_white_matter(rim_cases):
    cases, *_ = rim_cases
    assert [case.dilation for case in cases] == [0, 1, 2]
    for before, after in zip(cases, cases[1:]):
        assert np.array_equal(after.lesion_mask, grown(before.lesion_mask, 1) & after.wm_mask | before.lesion_mask)
        assert before.lesion_mask.sum() < after.lesion_mask.sum()


def test_rim_lesions_are_painted_once_for_all_dilations(brain, rim_cases):
    cases, *_ = rim_cases
    assert all(np.array_equal(case.seen, cases[0].seen) for case in cases)
    (alone,) = draw(brain, 'rim', dilations=(2,))
    assert np.array_equal(alone.seen, cases[2].seen)
    assert np.array_equal(alone.lesion_mask, cases[2].lesion_mask)


def test_units_of_all_dilations_are_the_same_lesions(rim_cases):
    cases, *_ = rim_cases
    described = [[(unit.number, unit.volume_ml, unit.place) for unit in case.units] for case in cases]
    assert described[0] == described[1] == described[2]


def test_places_of_units_are_those_of_the_lesions(rim_cases, head):
    (case, *_), labels, _ = rim_cases
    tissue_seg, _ = head
    ventricles = evaluate_cases.find_ventricles(tissue_seg)
    places = lesions_places.map_places(ventricles, tissue_seg == GREY)
    for unit in case.units:
        assert lesions_places.PLACES[unit.place] == lesions_places.place_of(labels == unit.number, places)


@pytest.mark.parametrize('kind', ['clean', 'rim'])
def test_same_seed_same_case(brain, kind):
    first, again, other = (draw(brain, kind, seed=seed)[0] for seed in (4, 4, 5))
    assert np.array_equal(first.seen, again.seen)
    assert np.array_equal(first.lesion_mask, again.lesion_mask)
    assert not np.array_equal(first.seen, other.seen)


# Lesions of a patient in another brain

BRAIN_BOX = np.array(LESION_MASKS_BRAIN_BOX_MM)


def draw_in_database(*boxes_mm):
    """A mask of the database with boxes of (low, high) corners in mm, and its affine."""
    mask = np.zeros((181, 217, 181), dtype=bool)
    to_voxel = np.linalg.inv(LJUBLJANA_AFFINE)
    for corners in boxes_mm:
        ends = np.sort((np.array(corners) @ to_voxel[:3, :3].T + to_voxel[:3, 3]).round().astype(int), axis=0)
        mask[tuple(slice(low, high + 1) for low, high in ends.T)] = True
    return mask


def around(centre, half):
    return np.array(centre) - half, np.array(centre) + half


def build_brain(shape, low, high):
    """A normalised image with a box for a brain, corners `low` and `high` included."""
    image = np.full(shape, -1, dtype=np.float32)
    image[tuple(slice(a, b + 1) for a, b in zip(low, high))] = 0.5
    return image


def move(mask, image, affine=LJUBLJANA_AFFINE):
    return evaluate_cases.move_lesions(mask, affine, image > -0.9)


def centroid(mask):
    return np.argwhere(mask).mean(axis=0)


@pytest.mark.parametrize(
    ('shape', 'low', 'high'), [((80, 90, 70), (6, 4, 9), (70, 82, 69)), ((150, 190, 150), (5, 12, 8), (145, 181, 120))]
)
def test_middle_of_the_database_lands_in_the_middle_of_any_brain(shape, low, high):
    mask = draw_in_database(around(BRAIN_BOX.mean(axis=0), 8))
    moved = move(mask, build_brain(shape, low, high))
    assert moved.shape == shape
    assert moved.dtype == bool
    np.testing.assert_allclose(centroid(moved), np.add(low, high) / 2, atol=0.75)


def test_volume_scales_with_the_brain():
    low, high = np.array((5, 6, 7)), np.array((85, 76, 97))
    image, found, expected = build_brain((100, 100, 110), low, high), 0, 0
    for half in (6, 7, 8, 9, 10, 11):  # mm; each side of the box is rounded to a voxel
        mask = draw_in_database(around(BRAIN_BOX.mean(axis=0), half))
        found += move(mask, image).sum()
        expected += mask.sum() * np.prod((high - low) / (BRAIN_BOX[1] - BRAIN_BOX[0]))
    assert found == pytest.approx(expected, rel=0.05)


def test_directions_stay_what_they_are():
    """Two lesions: a large one left, in front and low, a small one right, behind and high; the image is RAS."""
    mask = draw_in_database(around((-40, 30, -30), 9), around((40, -60, 40), 5))
    low, high = np.array((4, 5, 6)), np.array((100, 120, 96))
    moved = move(mask, build_brain((110, 130, 105), low, high))
    labels, n_lesions = masks.label_lesions(moved)
    assert n_lesions == 2
    large, small = sorted((labels == 1, labels == 2), key=np.sum, reverse=True)
    for found, centre_mm in ((large, (-40, 30, -30)), (small, (40, -60, 40))):
        share = (centre_mm - BRAIN_BOX[0]) / (BRAIN_BOX[1] - BRAIN_BOX[0])
        np.testing.assert_allclose(centroid(found), low + share * (high - low), atol=0.75)
    assert centroid(large)[0] < (low + high)[0] / 2 < centroid(small)[0]  # RAS: left comes first


def test_same_lesion_in_another_order_of_voxels_lands_in_the_same_place():
    mask = draw_in_database(around((-40, 30, -30), 9), around((40, -60, 40), 5))
    image = build_brain((110, 130, 105), (4, 5, 6), (100, 120, 96))
    ras_affine = np.array([[1.0, 0, 0, -90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])
    turned = mask[::-1]  # voxel i of the one is 180 - i of the other: x = 90 - (180 - i) = i - 90
    assert np.array_equal(move(mask, image), move(turned, image, ras_affine))


def test_specks_outside_the_brain_do_not_count_for_its_size():
    mask = draw_in_database(around((-40, 30, -30), 9))
    image = build_brain((110, 130, 105), (14, 15, 16), (90, 110, 86))
    speckled = image.copy()
    speckled[1:3, 1:3, 1:3] = speckled[107, 127, 102] = 0.3
    assert np.array_equal(move(mask, image), move(mask, speckled))


# Cases of a patient


@pytest.fixture(scope='module')
def patient(brain):
    """Lesions in white matter, one of 3 voxels, and a part in cortex; the case, and what was painted."""
    image, tissue_seg = brain
    lesion_mask = np.zeros(tissue_seg.shape, dtype=bool)
    lesion_mask[20:26, 30:34, 30:34] = True
    lesion_mask[40:44, 28:36, 20:26] = True
    lesion_mask[30, 45, 32:35] = True  # 3 voxels
    lesion_mask[31, 44, 10:13] = True  # 3 voxels
    lesion_mask[30:34, 30:34, 2:12] = True  # from outside through the cortex into white matter
    paint, given = evaluate_cases.paint, []

    def spy(image, labels, *rest, **options):
        given.append((labels, *paint(image, labels, *rest, **options)))
        return given[-1][1:]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_cases, 'paint', spy)
        case = evaluate_cases.patient_case('sub-02', image, tissue_seg, lesion_mask, np.random.default_rng(1))
    return case, lesion_mask, *given[0]


def test_lesions_of_a_patient_are_cut_to_white_matter_and_small_ones_are_dropped(patient, brain):
    case, lesion_mask, labels, *_ = patient
    assert np.array_equal(np.unique(labels), np.arange(4))
    assert within(labels > 0, lesion_mask & (brain[1] == WHITE))
    dropped = lesion_mask & (brain[1] == WHITE) & (labels == 0)
    assert dropped.sum() == 6
    for number in range(1, 4):
        assert masks.label_lesions(labels == number)[1] == 1


def test_mask_of_a_patient_is_the_half_maximum_grown_by_one_within_white_matter(patient, brain):
    case, _, labels, seen, alpha = patient
    half = alpha > 0.5
    assert np.array_equal(case.lesion_mask, half | grown(half, 1) & (brain[1] == WHITE))
    assert within(case.lesion_mask, case.wm_mask)
    assert np.array_equal(case.seen, seen)
    assert np.array_equal(case.image, brain[0])
    assert (case.kind, case.dilation, case.subject) == ('patient', 1, 'sub-02')


def test_patient_is_one_unit_with_all_that_was_touched(patient):
    case, _, labels, _, alpha = patient
    (unit,) = case.units
    assert np.array_equal(unit.score_mask, case.lesion_mask | (alpha > 0.02))
    assert (unit.score_mask & ~case.lesion_mask).any()
    assert np.array_equal(unit.lesion_mask, case.lesion_mask)
    assert unit.volume_ml == (labels > 0).sum() / 1000
    assert (unit.number, unit.place) == (1, 'all')


@pytest.mark.parametrize('where', [np.s_[30:34, 30:34, 0:4], np.s_[30, 45, 32:35]], ids=['cortex', 'too-small'])
def test_patient_without_lesions_in_white_matter_is_refused(brain, where, rng):
    lesion_mask = np.zeros(brain[1].shape, dtype=bool)
    lesion_mask[where] = True
    with pytest.raises(ValueError, match=rf'sub-02: none of the {lesion_mask.sum()} lesion voxels'):
        evaluate_cases.patient_case('sub-02', *brain, lesion_mask, rng)


def test_mask_grows_by_voxels_and_then_into_the_rim():
    image = np.full((40, 40, 40), 0.5) + np.random.default_rng(0).normal(0, 0.01, (40, 40, 40))
    lesion_mask = np.zeros(image.shape, dtype=bool)
    lesion_mask[18:22, 18:22, 18:22] = True
    image[15:26, 18:22, 18:22] = 0.2  # the rim goes on along one axis
    wm_mask = np.ones_like(lesion_mask)
    assert np.array_equal(evaluate_cases.grow(lesion_mask, image, wm_mask, 0), lesion_mask)
    by_one = masks.dilate_within(lesion_mask, wm_mask, 1)
    assert np.array_equal(evaluate_cases.grow(lesion_mask, image, wm_mask, 1), by_one)
    grown = evaluate_cases.grow(lesion_mask, image, wm_mask, '1+2')
    assert grown[by_one].all()
    assert grown[15:25, 18:22, 18:22].all()
    assert grown.sum() < by_one.sum() + 3 * 16 + 30
    bright = evaluate_cases.grow(lesion_mask, 1 - image, wm_mask, '1+2', modality='FLAIR')
    assert np.array_equal(bright, grown)


def test_lesions_on_flair_are_painted_bright(rng):
    image = np.full((20, 20, 20), 0.5)
    labels = np.zeros(image.shape, dtype=int)
    labels[8:12, 8:12, 8:12] = 1
    painted, alpha = evaluate_cases.paint(image, labels, np.ones(image.shape, bool), rng, modality='FLAIR')
    assert (painted >= image).all()
    assert 0.25 < (painted - image)[labels == 1].max() < 1.2
