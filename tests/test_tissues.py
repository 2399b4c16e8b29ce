import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_lesionfill.images import anatomy, grid, tissues
from bids_lesionfill.lesions import places as lesions_places

CSF, GREY, WHITE = tissues.CSF, tissues.GREY_MATTER, tissues.WHITE_MATTER


@pytest.fixture(scope='module')
def head(make_phantom):
    """A larger phantom with a bias field of 30 percent."""
    head = make_phantom(shape=(96, 90, 80), noise=25.0)
    field = 1 + 0.15 * np.linspace(-1, 1, 96)[:, None, None].astype(np.float32)
    return head, head.t1w * field, head.healthy * field


@pytest.fixture(scope='module')
def classes_of_head(head):
    phantom, t1w, _ = head
    return tissues.classify(t1w, phantom.brain_mask, phantom.lesion_mask)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_foreground_is_filled_and_in_one_piece(head):
    phantom, t1w, _ = head
    t1w = t1w.copy()
    t1w[0, 0, 0] = 500  # a speck
    t1w[48, 45, 40] = 0  # a hole
    found = tissues.foreground(t1w)
    assert dice(found, phantom.brain_mask) > 0.999
    assert not found[0, 0, 0]
    assert found[48, 45, 40]


def test_skull_stripped_image_needs_no_network(head, monkeypatch):
    phantom, t1w, _ = head
    monkeypatch.setattr(tissues.brain_extraction, 'extract_brain', lambda _: pytest.fail('it was called'))
    brain_mask, skull_stripped = tissues.find_brain(t1w)
    assert skull_stripped
    assert dice(brain_mask, phantom.brain_mask) > 0.999


def test_image_with_noise_around_it_goes_to_the_network(rng, monkeypatch):
    monkeypatch.setattr(tissues.brain_extraction, 'extract_brain', lambda t1w: t1w > 50)
    image = rng.uniform(40, 100, (160, 160, 120)).astype(np.float32)
    brain_mask, skull_stripped = tissues.find_brain(image)
    assert not skull_stripped
    assert brain_mask.any()


@pytest.fixture(scope='module')
def small_head():
    """A child's head of 1.3 l, air zero: scalp of 4 mm, skull of 6 mm, fluid, cortex, white matter."""
    shape = (140, 140, 140)
    radius = np.sqrt(sum((axis - 69.5) ** 2 for axis in np.ogrid[:140, :140, :140]))
    head = np.select([radius < 46, radius < 52, radius < 55, radius < 61, radius < 65], [800, 500, 200, 60, 700], 0)
    return np.where(head > 0, head + np.random.default_rng(0).normal(0, 10, shape), 0).astype(np.float32)


@pytest.mark.parametrize('part', [slice(None), slice(40, 90)])
def test_small_head_and_slab_are_not_taken_for_skull_stripped(small_head, part, monkeypatch):
    brain = small_head[:, :, part] > 120
    monkeypatch.setattr(tissues.brain_extraction, 'extract_brain', lambda t1w: brain)
    assert tissues.foreground(small_head[:, :, part]).sum() / 1000 < tissues.LARGEST_BRAIN_ML
    found, skull_stripped = tissues.find_brain(small_head[:, :, part])
    assert not skull_stripped
    assert found is brain


def test_its_brain_alone_is_skull_stripped_and_noise_in_the_air_is_not(small_head, rng):
    radius = np.sqrt(sum((axis - 69.5) ** 2 for axis in np.ogrid[:140, :140, :140]))
    brain = np.where(radius < 55, small_head, 0).astype(np.float32)
    assert tissues.is_skull_stripped(brain)
    assert tissues.is_skull_stripped(brain[:, :, 40:90])
    assert not tissues.is_skull_stripped(np.where(radius < 55, brain, np.abs(rng.normal(0, 5, brain.shape))))


@pytest.mark.parametrize('value', [0, 300])
def test_image_without_a_brain_is_refused(value):
    with pytest.raises(ValueError, match='no brain'):
        tissues.find_brain(np.full((20, 20, 20), value, np.float32))


def test_classes_are_found_under_a_bias_field(head):
    phantom, _, healthy = head
    nothing = np.zeros_like(phantom.lesion_mask)
    tissue_seg = tissues.classify(healthy, phantom.brain_mask, nothing)
    for tissue in (tissues.GREY_MATTER, tissues.WHITE_MATTER):
        assert dice(tissue_seg == tissue, phantom.tissue_seg == tissue) > 0.9
    assert not tissue_seg[~phantom.brain_mask].any()


@pytest.mark.parametrize('unit', [1e-9, 1e-6, 1.5, 10, 1e6, 1e9])
def test_classes_do_not_depend_on_the_unit_of_intensity(head, classes_of_head, unit):
    phantom, t1w, _ = head
    scaled = (t1w * np.float64(unit)).astype(np.float32)
    again = tissues.classify(scaled, phantom.brain_mask, phantom.lesion_mask)
    assert (classes_of_head != again).sum() <= 5


def test_voxels_without_a_logarithm_do_not_bind_the_bias_field_to_a_unit(head):
    """N4 leaves them as they are, as if their intensity were one."""
    phantom, t1w, _ = head
    t1w = t1w.copy()
    t1w[phantom.tissue_seg == CSF] = 0
    fields = [tissues.correct_bias(t1w * np.float32(unit), phantom.brain_mask) / unit for unit in (1, 1e6)]
    assert np.allclose(*fields, rtol=1e-3)


def test_classification_is_deterministic(head):
    phantom, t1w, _ = head
    again = [tissues.classify(t1w, phantom.brain_mask, phantom.lesion_mask) for _ in range(2)]
    assert np.array_equal(*again)


def test_vessels_after_contrast_agent_are_not_the_white_matter(head):
    """Seen on a patient of MSLesSeg: a class of its own for 3 % of the brain, and no white matter at all."""
    phantom, t1w, _ = head
    vessels = np.zeros(t1w.shape, dtype=bool)
    vessels.flat[np.flatnonzero(phantom.brain_mask)[::30]] = True
    t1w = np.where(vessels, 1500 + 0.5 * t1w, t1w).astype(np.float32)
    found = tissues.classify(t1w, phantom.brain_mask, phantom.lesion_mask) == tissues.WHITE_MATTER
    true = (phantom.tissue_seg == tissues.WHITE_MATTER) & ~vessels & ~phantom.lesion_mask
    assert found[true].mean() > 0.9
    assert found[phantom.tissue_seg == tissues.GREY_MATTER].mean() < 0.15


def ball(shape, centre, radius):
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True)) <= radius**2


def test_rim_of_a_lesion_is_claimed_and_cortex_is_not():
    shape = (60, 60, 60)
    brain = ball(shape, (30, 30, 30), 28)
    white = ball(shape, (30, 30, 30), 22)  # cortex is six voxels thick
    lesion = ball(shape, (30, 30, 30), 4)
    rim = ball(shape, (30, 30, 30), 5) & ~lesion  # looks grey
    claimed = tissues.claim_rim(white & ~rim & ~lesion, lesion, brain)
    assert claimed[rim].all()
    beside_cortex = ball(shape, (30, 30, 10), 4) & white
    claimed = tissues.claim_rim(white & ~beside_cortex, beside_cortex, brain)
    cortex = brain & ~white
    assert not claimed[ndimage.binary_erosion(cortex)].any()
    assert claimed[cortex].sum() < 0.02 * cortex.sum()


def test_nothing_is_claimed_away_from_lesions():
    shape = (40, 40, 40)
    white = ball(shape, (20, 20, 20), 15)
    speck = ball(shape, (20, 20, 20), 1)
    lesion = ball(shape, (10, 20, 20), 2)
    claimed = tissues.claim_rim(white & ~speck & ~lesion, lesion, ball(shape, (20, 20, 20), 18))
    assert not claimed[speck].any()


# Ventricles and places


def test_ventricles_are_the_csf_where_they_are_expected_and_what_hangs_on_it():
    tissue_seg = np.full((40, 20, 20), WHITE, dtype=np.uint8)
    tissue_seg[10:16, 8:12, 8:12] = CSF  # expected in part, near
    tissue_seg[16:26, 7:13, 7:13] = CSF  # an enlarged ventricle, far
    tissue_seg[26:34, 10, 10] = CSF  # a thin link to outside
    tissue_seg[12:14, 15:18, 8:12] = CSF  # a sulcus nearby
    tissue_seg[11:13, 13:15, 8:10] = CSF  # a fissure that meets a corner of where ventricles are expected
    tissue_seg[12:14, 15, 8:12] = WHITE
    expected, near, far = (np.zeros(tissue_seg.shape, dtype=bool) for _ in range(3))
    expected[11:15, 8:12, 8:12] = expected[12, 13, 9] = True
    near[8:18, 5:19, 5:15] = True
    far[4:38] = True
    found = lesions_places.find_lateral_ventricles(tissue_seg, expected, near, far)
    ventricles = np.zeros_like(found)
    ventricles[10:16, 8:12, 8:12] = ventricles[16:26, 7:13, 7:13] = True
    assert np.array_equal(found, ventricles)


def test_no_csf_where_ventricles_are_expected_is_no_ventricle(phantom):
    everywhere = np.ones(phantom.tissue_seg.shape, dtype=bool)
    found = lesions_places.find_lateral_ventricles(phantom.tissue_seg, phantom.wm_mask, everywhere, everywhere)
    assert not found.any()


@pytest.mark.parametrize(
    ('corner', 'place'),
    [
        ((9, 20, 20), 'periventricular'),  # its last voxel is 3 before the ventricle
        ((8, 20, 20), 'deep'),
        ((2, 20, 20), 'juxtacortical'),  # touches the cortex, which ends at 2
        ((2, 2, 2), 'juxtacortical'),
        ((3, 20, 20), 'deep'),
    ],
)
def test_places(corner, place):
    tissue_seg = np.full((32, 40, 40), WHITE, dtype=np.uint8)
    tissue_seg[:2] = GREY
    ventricles = np.zeros(tissue_seg.shape, dtype=bool)
    ventricles[14:18, 18:24, 18:24] = True
    tissue_seg[ventricles] = CSF
    lesion_mask = np.zeros_like(ventricles)
    lesion_mask[tuple(slice(start, start + 3) for start in corner)] = True
    places = lesions_places.map_places(ventricles, tissue_seg == GREY)
    assert lesions_places.place_of(lesion_mask, places) == lesions_places.PLACES[place]


def test_corner_of_cortex_counts_and_ventricles_come_before_cortex():
    tissue_seg = np.full((12, 12, 12), WHITE, dtype=np.uint8)
    tissue_seg[3, 3, 3] = GREY
    lesion_mask = np.zeros(tissue_seg.shape, dtype=bool)
    lesion_mask[4:6, 4:6, 4:6] = True
    ventricles = np.zeros_like(lesion_mask)
    places = lesions_places.map_places(ventricles, tissue_seg == GREY)
    assert lesions_places.place_of(lesion_mask, places) == lesions_places.PLACES['juxtacortical']
    ventricles[8, 5, 5] = True
    places = lesions_places.map_places(ventricles, tissue_seg == GREY)
    assert lesions_places.place_of(lesion_mask, places) == lesions_places.PLACES['periventricular']


def test_lesion_is_infratentorial_if_most_of_it_is():
    nothing = np.zeros((10, 4, 4), dtype=bool)
    below = nothing.copy()
    below[:5] = True
    places = lesions_places.map_places(nothing, nothing, below)
    for start, place in ((2, 'infratentorial'), (3, 'deep'), (4, 'deep')):
        lesion_mask = nothing.copy()
        lesion_mask[start : start + 4] = True
        assert lesions_places.place_of(lesion_mask, places) == lesions_places.PLACES[place]


# A constant that was added to the image


def test_background_is_what_most_of_the_surface_has(rng):
    image = np.zeros((20, 22, 24), np.float32)
    image[4:16, 4:18, 0:20] = rng.uniform(100, 900, (12, 14, 20))  # cut by one face
    assert grid.background_level(image) == 0
    assert grid.background_level(image + 300) == 300
    noisy = image + np.abs(rng.normal(0, 10, image.shape))
    low = grid.background_level(noisy)
    assert 0 < low < 1
    assert grid.background_level(noisy + 300) == pytest.approx(low + 300, abs=1e-3)
    assert grid.background_level(rng.uniform(100, 900, (9, 9, 9))) == 0  # tissue up to the end


@pytest.mark.parametrize('noise', [0, 10])
@pytest.mark.parametrize('added', [300, 1e4])
def test_a_constant_that_was_added_changes_no_class(head, rng, monkeypatch, noise, added):
    phantom, t1w, _ = head
    monkeypatch.setattr(tissues.brain_extraction, 'extract_brain', lambda _: phantom.brain_mask)  # a phantom is no head
    t1w = t1w + noise * np.abs(rng.normal(size=t1w.shape)).astype(np.float32)
    t1w = np.rint(8 * t1w) / 8  # exact in float32 with the constant as well
    mask_img = nib.Nifti1Image(phantom.lesion_mask.astype(np.uint8), np.eye(4))
    one, other = (
        anatomy.look_at(nib.Nifti1Image((t1w + constant).astype(np.float32), np.eye(4)), mask_img)
        for constant in (0, added)
    )
    assert one.sources.skull_stripped == other.sources.skull_stripped == (noise == 0)
    assert (one.tissue_seg != other.tissue_seg).sum() <= 5
    assert (one.tissue_seg == WHITE).sum() > 1e4
    again = anatomy.look_again(other, nib.Nifti1Image((t1w + added).astype(np.float32), np.eye(4)), mask_img, 0.5)
    assert (again.tissue_seg != other.tissue_seg).sum() <= 5


def test_more_than_a_brain_is_not_taken_for_one(monkeypatch):
    """As sub-P14 ses-T2 of MSLesSeg: stripped in part, air zero, no scalp, 2.6 l."""
    radius = np.sqrt(sum((axis - 89.5) ** 2 for axis in np.ogrid[:180, :180, :180]))
    image = np.select([radius < 70, radius < 85.5], [800, 500], 0).astype(np.float32)
    assert 2500 < (image > 0).sum() / 1000 < 2700
    brain = radius < 76
    monkeypatch.setattr(tissues.brain_extraction, 'extract_brain', lambda t1w: brain)
    found, skull_stripped = tissues.find_brain(image)
    assert found is brain
    assert not skull_stripped
    smaller = np.where(radius < 76, image, 0).astype(np.float32)
    assert tissues.is_skull_stripped(smaller)


def test_slab_through_a_face_is_not_taken_for_skull_stripped(monkeypatch):
    """Seen on 52 mm of a head: soft tissue that gets brighter up to the brain, and no dark skull below the scalp."""
    radius = np.sqrt(sum((axis - 69.5) ** 2 for axis in np.ogrid[:140, :140, :52]) + 0 * np.zeros((140, 140, 52)))
    slab = np.select(
        [radius < 44, radius < 50, radius < 56, radius < 62, radius < 66, radius < 68], [800, 600, 450, 330, 260, 60], 0
    ).astype(np.float32)
    brain = radius < 44
    assert tissues.SMALLEST_HEAD_ML < (slab > 0).sum() / 1000 < tissues.LARGEST_BRAIN_ML
    assert tissues.skull_dip(slab[::2, ::2, ::2], slab[::2, ::2, ::2] > 0) > tissues.MAX_DIP
    monkeypatch.setattr(tissues.brain_extraction, 'extract_brain', lambda t1w: brain)
    found, skull_stripped = tissues.find_brain(slab)
    assert found is brain
    assert not skull_stripped
