import nibabel as nib
import numpy as np
import pytest
from conftest import ellipsoid
from scipy import ndimage

from bids_lesionfill.images import masks, tissues
from bids_lesionfill.lesions import library as lesions_library
from bids_lesionfill.lesions import places as lesions_places
from bids_lesionfill.lesions import sampling
from bids_lesionfill.lesions.library import LesionLibrary
from bids_lesionfill.lesions.places import PLACES

SHAPE = (80, 80, 80)
MIDDLE_MM = np.array((0, -10, 20))  # of the head, in the template
VOXEL_TO_TEMPLATE = nib.affines.from_matvec(np.eye(3), MIDDLE_MM - 40)
TEMPLATE_AFFINE = nib.affines.from_matvec(2 * np.eye(3), MIDDLE_MM - 40)
BALL = ellipsoid((7, 7, 7), (3, 3, 3), (3, 3, 3))
STICK = np.ones((15, 3, 3), dtype=bool)


def to_voxel(mm):
    return np.rint(np.asarray(mm) - MIDDLE_MM + 40).astype(int)


def build_library(*lesions):
    """A library of (patient, place, shape, centre in the head in mm from its middle); ventricles are a ball there."""
    patients, places, shapes, offsets = zip(*lesions)
    ventricles = ellipsoid((40, 40, 40), (20, 20, 20), (4, 4, 4)).astype(np.uint8)
    frequency = np.full((40, 40, 40), 100, dtype=np.uint8)
    return LesionLibrary(
        shapes=list(shapes),
        centres_mm=MIDDLE_MM + np.array(offsets),
        patients=np.array(patients),
        places=np.array([PLACES[place] for place in places]),
        template=frequency,
        frequency=frequency,
        ventricles=ventricles,
        affine=TEMPLATE_AFFINE,
    )


@pytest.fixture(scope='module')
def library():
    """Patient 0 has four small lesions, patient 1 a large one and three small ones."""
    small = BALL[1:-1, 1:-1, 1:-1]
    return build_library(
        (0, 'deep', BALL, (18, 0, 0)),
        (0, 'deep', small, (18, 8, 0)),
        (0, 'juxtacortical', small, (0, 30, 0)),
        (0, 'periventricular', BALL, (11, 0, 0)),
        (1, 'periventricular', ellipsoid((13, 17, 13), (6, 8, 6), (6, 8, 6)), (-14, 0, 0)),
        (1, 'deep', BALL, (0, 0, -20)),
        (1, 'juxtacortical', BALL, (-30, 0, 0)),
        (1, 'infratentorial', BALL, (0, -25, -24)),
    )


@pytest.fixture(scope='module')
def head():
    """Nested balls: ventricles of radius 8, white matter to 33, cortex to 37, CSF to 39. World as the template's."""
    tissue_seg = np.zeros(SHAPE, dtype=np.uint8)
    for label, radius in ((tissues.CSF, 39), (tissues.GREY_MATTER, 37), (tissues.WHITE_MATTER, 33), (tissues.CSF, 8)):
        tissue_seg[ellipsoid(SHAPE, (40, 40, 40), (radius,) * 3)] = label
    return tissue_seg


@pytest.fixture(scope='module')
def anatomy(library, head):
    """What `draw_lesion_mask` takes after the library."""
    places, frequency, _ = lesions_places.locate(library, head, VOXEL_TO_TEMPLATE)
    return head == tissues.WHITE_MATTER, places, frequency, VOXEL_TO_TEMPLATE


def each(labels):
    return [labels == number for number in range(1, labels.max() + 1)]


# The library


def test_shapes_come_back_from_their_bits(rng):
    shapes = [rng.random(size) < 0.5 for size in ((1, 1, 1), (3, 5, 2), (8, 1, 4), (2, 2, 2))]
    bits, sizes = lesions_library.pack_shapes(shapes)
    assert bits.dtype == np.uint8
    assert len(bits) == 1 + 4 + 4 + 1
    again = lesions_library.unpack_shapes(bits, sizes)
    assert all(a.dtype == bool and np.array_equal(a, b) for a, b in zip(again, shapes, strict=True))


def test_bundled_library_holds_the_thirty_masks():
    library = lesions_library.load_lesion_library()
    counts = np.bincount(library.patients)
    loads = np.bincount(library.patients, library.volumes)
    assert len(counts) == 30
    # Counted in the files of the database: patients 2, 19 and 29.
    assert [(counts[i], loads[i]) for i in (1, 18, 28)] == [(27, 1381), (98, 49769), (19, 316)]
    assert library.volumes.max() == 46870
    assert all(masks.label_lesions(shape)[1] == 1 for shape in library.shapes[::50])
    assert set(library.places) == set(PLACES.values())


def test_bundled_frequency_and_ventricles_are_where_they_should_be():
    library = lesions_library.load_lesion_library()
    assert library.template.shape == library.frequency.shape == library.ventricles.shape
    assert library.frequency.max() == 255

    def at(volume, mm):
        return volume[tuple(np.rint(nib.affines.apply_affine(np.linalg.inv(library.affine), mm)).astype(int))]

    assert at(library.frequency, (26, -40, 18)) > 100  # beside the trigone
    assert at(library.frequency, (0, -70, 40)) < 30  # between the hemispheres
    assert abs(int(at(library.frequency, (25, 5, 25))) - int(at(library.frequency, (-25, 5, 25)))) < 12  # symmetric
    assert at(library.ventricles, (9, 0, 22)) == 1
    assert at(library.ventricles, (0, -70, 40)) == 0
    assert abs(int(at(library.template, (25, 0, 28))) - 170) < 25  # white matter


def test_bundled_library_is_small():
    assert sum(path.stat().st_size for path in lesions_library.LESIONS_DIR.iterdir()) < 1_500_000


def test_library_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'nobody' .* expected .*nobody\.npz"):
        lesions_library.load_lesion_library('nobody', tmp_path)


# Places


@pytest.mark.parametrize(
    ('mm', 'expected'),
    [
        ((0, -26, -28), True),  # pons
        ((0, -36, -42), True),  # medulla
        ((24, -60, -34), True),  # cerebellar hemisphere
        ((-24, -60, -34), True),
        ((0, -58, -12), True),  # vermis
        ((34, 2, -30), False),  # temporal pole
        ((24, -24, -16), False),  # hippocampus
        ((36, -44, -12), False),  # fusiform gyrus
        ((10, -84, 2), False),  # calcarine cortex
        ((10, -18, 6), False),  # thalamus
        ((0, -36, 16), False),  # splenium
    ],
)
def test_brain_stem_and_cerebellum_are_infratentorial(mm, expected):
    assert lesions_places.is_infratentorial(mm) == expected


def test_subject_is_located_in_the_template(library, head):
    places, frequency, ventricles = lesions_places.locate(library, head, VOXEL_TO_TEMPLATE)
    beside_the_midline = np.abs(np.arange(80) - 40)[:, None, None] >= 3
    assert np.array_equal(ventricles, ellipsoid(SHAPE, (40, 40, 40), (8, 8, 8)) & beside_the_midline)
    assert places[40 + 11, 40, 40] == PLACES['periventricular']
    assert places[40 + 12, 40, 40] == PLACES['deep']
    assert places[40 + 33, 40, 40] == PLACES['juxtacortical']
    assert places[40 + 31, 40, 40] == PLACES['deep']
    assert places[tuple(to_voxel((0, -20, -8)))] == PLACES['infratentorial']
    np.testing.assert_allclose(frequency[10:70, 10:70, 10:70], 100)


def test_deep_nuclei_are_not_cortex(library, head):
    with_nuclei = head.copy()
    with_nuclei[tuple(slice(c - 2, c + 3) for c in to_voxel((25, 0, 15)))] = tissues.GREY_MATTER
    places, *_ = lesions_places.locate(library, with_nuclei, VOXEL_TO_TEMPLATE)
    assert places[tuple(to_voxel((25, 0, 18)))] == PLACES['deep']


# Shapes


@pytest.mark.parametrize('shape', [BALL, STICK, np.ones((4, 6, 5), dtype=bool)], ids=['ball', 'stick', 'even'])
def test_deformation_of_no_strength_is_the_shape_itself(shape, rng):
    level = sampling.deform(shape, np.eye(3), rng, strength=0)
    assert all(size % 2 for size in level.shape)
    start = np.array(level.shape) // 2 - np.array(shape.shape) // 2
    expected = np.zeros(level.shape, dtype=bool)
    expected[tuple(slice(s, s + n) for s, n in zip(start, shape.shape))] = shape
    assert np.array_equal(level > 0, expected)


def test_level_is_the_distance_to_the_border(rng):
    level = sampling.deform(np.ones((5, 5, 5), dtype=bool), np.eye(3), rng, strength=0)
    line = level[:, level.shape[1] // 2, level.shape[2] // 2]
    np.testing.assert_allclose(line[len(line) // 2 :][:6], (2.5, 1.5, 0.5, -0.5, -1.5, -2.5))


def test_linear_map_turns_and_scales(rng):
    turn = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    turned = sampling.deform(STICK, turn, rng, strength=0) > 0
    assert (np.ptp(np.argwhere(turned), axis=0) + 1).tolist() == [3, 15, 3]
    doubled = sampling.deform(BALL, np.eye(3) / 2, rng, strength=0) > 0
    assert doubled.sum() == pytest.approx(8 * BALL.sum(), rel=0.25)  # corners of voxels are rounded


def test_deformation_differs_by_seed_alone_and_keeps_about_the_volume():
    large = ellipsoid((21, 15, 17), (10, 7, 8), (10, 7, 8))
    levels = [sampling.deform(large, np.eye(3), np.random.default_rng(seed)) for seed in (1, 1, 2, 3)]
    assert levels[0].tobytes() == levels[1].tobytes()
    for level in levels:
        assert (level > 0).sum() == pytest.approx(large.sum(), rel=0.25)
    overlap = (levels[0] > 0) & (levels[2] > 0)
    assert 0.5 * large.sum() < overlap.sum() < 0.97 * large.sum()


# Cutting


@pytest.fixture
def level(rng):
    return sampling.deform(BALL, np.eye(3), rng, strength=0)


def test_lesion_in_free_white_matter_is_the_shape(level):
    box, lesion = sampling.cut(level, (15, 16, 17), np.ones((30, 30, 30), dtype=bool), BALL.sum())
    mask = np.zeros((30, 30, 30), dtype=bool)
    mask[box] = lesion
    assert np.array_equal(mask, masks.place(BALL, (15, 16, 17), mask.shape))


@pytest.mark.parametrize('volume', [5, 60, 123, 200])
def test_lesion_has_its_volume_in_one_piece_within_free_white_matter(level, volume):
    free = np.zeros((30, 30, 30), dtype=bool)
    free[14:] = True  # cuts two of seven layers away
    box, lesion = sampling.cut(level, (15, 15, 15), free, volume)
    assert lesion.sum() == volume
    assert masks.label_lesions(lesion)[1] == 1
    assert not (lesion & ~free[box]).any()


def test_too_much_cut_away_is_no_lesion(level):
    free = np.zeros((30, 30, 30), dtype=bool)
    free[17:] = True
    assert not sampling.cut(level, (15, 15, 15), free, BALL.sum())[1].any()


def test_lesion_of_which_a_crack_leaves_less_than_three_quarters_is_none(rng):
    level = sampling.deform(STICK, np.eye(3), rng, strength=0)
    free = np.zeros((30, 30, 30), dtype=bool)
    free[:, 14:17, 14:17] = True
    free[14:16] = False
    assert not sampling.cut(level, (15, 15, 15), free, STICK.sum())[1].any()


@pytest.mark.parametrize('centre', [(0, 0, 0), (29, 15, 29), (-40, 5, 5), (70, 70, 70)])
def test_places_at_and_beyond_the_border_are_cut(level, centre):
    free = np.ones((30, 30, 30), dtype=bool)
    box, lesion = sampling.cut(level, centre, free, BALL.sum())
    assert lesion.shape == free[box].shape
    assert lesion.sum() in (0, BALL.sum())


def test_pull_takes_the_sliver_at_the_ventricles(level):
    free = np.ones((30, 30, 30), dtype=bool)
    ventricle_side = np.zeros_like(free)
    ventricle_side[18:21] = True
    reaches = []
    for pull in (None, ventricle_side):
        box, lesion = sampling.cut(level, (15, 15, 15), free, BALL.sum(), pull)
        assert lesion.sum() == BALL.sum()
        reaches.append(np.argwhere(lesion)[:, 0].max() + box[0].start)
    assert reaches == [18, 19]


# Counts and volumes


def test_volumes_are_those_of_a_patient_varied(library):
    seen = set()
    for seed in range(40):
        volumes, places = sampling.draw_volumes(library, np.random.default_rng(seed))
        assert (np.diff(volumes) <= 0).all()
        assert 2 <= len(volumes) == len(places) <= 7
        seen.add(bool(volumes[0] > 500))  # only patient 1 has a large one
    assert seen == {True, False}


@pytest.mark.parametrize(('n_lesions', 'load_ml'), [(3, 0.5), (12, 2.0), (1, 0.1), (40, 0.12), (9, 5.0)])
def test_count_and_load_are_as_asked_for(library, rng, n_lesions, load_ml):
    volumes, _ = sampling.draw_volumes(library, rng, n_lesions, load_ml)
    assert len(volumes) == n_lesions
    assert volumes.min() >= sampling.MIN_VOXELS
    assert volumes.sum() == pytest.approx(1000 * load_ml, abs=n_lesions / 2)


def test_load_chooses_patients_who_have_such_a_load():
    dots = [np.ones((n, 1, 1), dtype=bool) for n in (10, 20, 30, 1000)]
    library = build_library(*((patient, 'deep', shape, (0, 0, 0)) for patient, shape in enumerate(dots)))
    rng = np.random.default_rng(0)
    volumes = [sampling.draw_volumes(library, rng, load_ml=0.01)[0].sum() for _ in range(5)]
    assert volumes == [10] * 5


def test_no_confluent_lesion_comes_twice_where_more_lesions_are_asked_for(library):
    for seed in range(20):
        volumes, _ = sampling.draw_volumes(library, np.random.default_rng(seed), n_lesions=30)
        assert (volumes > 500).sum() <= 1
        assert volumes.max() <= library.volumes.max()


def test_volumes_are_of_the_locations_alone(library, rng):
    for _ in range(10):
        volumes, places = sampling.draw_volumes(library, rng, locations=('juxtacortical',))
        assert set(places) == {PLACES['juxtacortical']}
        assert volumes.max() < 2 * BALL.sum()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'locations': ('cortical',)}, r"'cortical'.*expected some of .*'deep'"),
        ({'locations': ()}, r'locations are \[\]'),
        ({'n_lesions': 0}, 'n_lesions is 0'),
        ({'load_ml': -1}, 'load_ml -1'),
        ({'n_lesions': 100, 'load_ml': 0.1}, '0.1 ml for 100 lesions are 1 mm3 for each, expected at least 3'),
    ],
)
def test_volumes_that_cannot_be_are_refused(library, rng, arguments, message):
    with pytest.raises(ValueError, match=message):
        sampling.draw_volumes(library, rng, **arguments)


def test_locations_that_the_library_does_not_know_are_refused(rng):
    library = build_library((0, 'deep', BALL, (0, 0, 0)))
    with pytest.raises(ValueError, match=r"no lesion in \['infratentorial'\]"):
        sampling.draw_volumes(library, rng, locations=('infratentorial',))


# Whole masks


def draw(library, wm_mask, places, frequency, voxel_to_template, rng, **options):
    atlas = sampling.Atlas(library, places, frequency, voxel_to_template)
    return sampling.draw_lesion_mask(atlas, wm_mask, rng, **options)


def test_lesions_lie_apart_in_white_matter(library, anatomy):
    for seed in range(5):
        labels = draw(library, *anatomy, np.random.default_rng(seed))
        assert labels.shape == SHAPE
        assert labels.max() >= 2
        assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
        assert not (labels[~anatomy[0]]).any()
        assert masks.label_lesions(labels > 0)[1] == labels.max()
        for lesion in each(labels):
            assert lesion.sum() >= sampling.MIN_VOXELS


@pytest.mark.parametrize('locations', [*((place,) for place in PLACES), ('deep', 'infratentorial')])
def test_every_lesion_obeys_the_locations(library, anatomy, rng, locations):
    labels = draw(library, *anatomy, rng, n_lesions=3, locations=locations)
    assert labels.max() == 3
    allowed = {PLACES[name] for name in locations}
    assert {lesions_places.place_of(lesion, anatomy[1]) for lesion in each(labels)} <= allowed


@pytest.mark.parametrize('load_ml', [0.2, 1.5, 6.0])
def test_load_is_reached(library, anatomy, rng, load_ml):
    labels = draw(library, *anatomy, rng, load_ml=load_ml)
    assert (labels > 0).sum() / 1000 == pytest.approx(load_ml, rel=0.1)


def test_count_is_reached(library, anatomy, rng):
    assert draw(library, *anatomy, rng, n_lesions=15).max() == 15


def test_old_lesions_are_avoided(library, anatomy, rng):
    old = ellipsoid(SHAPE, (40, 60, 40), (12, 8, 12))
    before = old.copy()
    labels = draw(library, *anatomy, rng, n_lesions=20, avoid=old, avoid_voxels=4)
    assert not labels[ndimage.binary_dilation(old, masks.FULL_CONNECTIVITY, iterations=4)].any()
    assert np.array_equal(old, before)


def test_same_seed_same_mask_and_arguments_are_left_alone(library, anatomy):
    before = [array.copy() for array in anatomy]
    first, again, other = (draw(library, *anatomy, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)
    assert all(np.array_equal(array, old) for array, old in zip(anatomy, before, strict=True))


def test_places_follow_the_frequency(library, anatomy, rng):
    wm_mask, places, _, matrix = anatomy
    frequency = np.zeros(SHAPE, dtype=np.float32)
    frequency[40:] = 255
    labels = draw(library, wm_mask, places, frequency, matrix, rng, n_lesions=20, locations=('deep', 'juxtacortical'))
    right = [np.argwhere(lesion)[:, 0].mean() > 40 for lesion in each(labels)]
    assert np.mean(right) > 0.9


def test_lesions_at_the_ventricles_keep_their_direction_and_others_are_turned(anatomy):
    """A finger that leaves the ventricles sideways does so in every brain, left or right of them."""
    seen = {'periventricular': set(), 'deep': set()}
    for place, centre in (('periventricular', (17, 0, 0)), ('deep', (22, 0, 0))):
        library = build_library((0, place, STICK, centre))
        for seed in range(12):
            rng = np.random.default_rng(seed)
            labels = draw(library, *anatomy, rng, n_lesions=1, load_ml=0.135, locations=(place,), strength=0)
            voxels = np.argwhere(labels)
            axis = int(np.ptp(voxels, axis=0).argmax())
            seen[place].add((axis, bool(voxels[:, 0].mean() > 40)) if place == 'periventricular' else axis)
    assert seen == {'periventricular': {(0, True), (0, False)}, 'deep': {0, 1, 2}}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'load_ml': 500}, r'500 ml of lesions do not fit into .* ml of free white matter'),
        ({'load_ml': 4}, r'ml of 4 ml of lesions in .* found a place in .* ml of free white matter'),
        ({'n_lesions': 300}, r'of 300 lesions \(.* ml\) in .* found a place in'),
    ],
    ids=['volume', 'load', 'count'],
)
def test_more_than_fits_is_refused_with_numbers(library, anatomy, rng, arguments, message, monkeypatch):
    monkeypatch.setattr(sampling, 'TRIES', 5)
    monkeypatch.setattr(sampling, 'HALVINGS', 8)
    wm_mask, *rest = anatomy
    islands = np.arange(80) % 11 < 5  # white matter in cubes of 5 voxels
    wm_mask = wm_mask & islands[:, None, None] & islands[:, None] & islands
    with pytest.raises(ValueError, match=message):
        draw(library, wm_mask, *rest, rng, **arguments)


def test_brain_without_white_matter_is_refused(library, anatomy, rng):
    nothing = np.zeros(SHAPE, dtype=bool)
    with pytest.raises(ValueError, match='0 of . lesions .* found a place in 0 ml'):
        draw(library, nothing, *anatomy[1:], rng)
