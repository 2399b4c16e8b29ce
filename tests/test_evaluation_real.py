import numpy as np
import pytest
from conftest import ellipsoid
from heads import FLUID, GREY, SD, WHITE, build_head
from scipy import ndimage

from bids_lesionfill.evaluate import discriminability
from bids_lesionfill.evaluate import real as evaluate_real
from bids_lesionfill.lesions import measures


@pytest.fixture(scope='module')
def head():
    return build_head()


@pytest.fixture(scope='module')
def untouched(head):
    t1w, brain, lesions, *_ = head
    return evaluate_real.find_untouched(t1w, brain, lesions, lesions)


def rows_of(head, untouched, filled, modality='T1w'):
    """Rows by group of one filling of the head."""
    t1w, _, lesions, *_ = head
    rows = evaluate_real.measure_fills(t1w, {'one': filled}, lesions, lesions, untouched, modality)
    return {row['group']: row for row in rows}


def test_tissues_of_the_untouched_are_found(head, untouched):
    t1w, brain, lesions, ventricle, white, _ = head
    assert np.allclose(untouched.means, (FLUID, GREY, WHITE), atol=8)
    assert np.array_equal(untouched.fluid, ventricle)
    assert np.array_equal(untouched.white_matter, white & ~ventricle & ~lesions)
    assert not (untouched.inside & ndimage.binary_dilation(lesions, iterations=2)).any()


@pytest.mark.parametrize('unit', [1e-6, 1e6])
def test_the_unit_of_the_image_moves_no_voxel_of_the_untouched(head, untouched, unit):
    t1w, brain, lesions = head[:3]
    scaled = evaluate_real.find_untouched(t1w * unit, brain, lesions, lesions)
    assert np.array_equal(scaled.white_matter, untouched.white_matter)
    assert np.array_equal(scaled.fluid, untouched.fluid)


def test_no_white_matter_is_said(head):
    t1w, brain, *_ = head
    with pytest.raises(ValueError, match='voxels of the brain lie outside'):
        evaluate_real.find_untouched(t1w, brain, brain, brain)


def test_untouched_tissue_measures_as_itself(head, untouched):
    """Nothing was filled, so every measure must have the value of real tissue."""
    all_of_it = rows_of(head, untouched, head[0])['all']
    assert all_of_it['lesions'] == 2
    assert all_of_it['grain'] == pytest.approx(1, abs=0.12)
    assert all_of_it['grain_inside'] == pytest.approx(1, abs=0.12)
    assert all_of_it['mean_sd'] == pytest.approx(0, abs=0.12)
    assert all_of_it['glow'] == pytest.approx(0.005, abs=0.006)
    assert all_of_it['dark'] == pytest.approx(0.005, abs=0.006)
    assert all_of_it['wall_steepness'] == pytest.approx(1, abs=0.05)
    assert all_of_it['outline_sd'] == pytest.approx(0, abs=0.2)


def test_flat_fill_has_no_grain(head, untouched):
    t1w, _, lesions, *_ = head
    row = rows_of(head, untouched, np.where(lesions, WHITE, t1w))['all']
    assert row['grain'] == pytest.approx(0, abs=1e-4)  # float32
    assert row['glow'] == row['dark'] == 0


def test_half_the_noise_is_half_the_grain(head, untouched):
    t1w, _, lesions, *_ = head
    half = np.where(lesions, WHITE + (t1w - WHITE) / 2, t1w)
    whole, halved = (rows_of(head, untouched, image)['all']['grain'] for image in (t1w, half))
    assert halved == pytest.approx(whole / 2, rel=1e-5)


@pytest.mark.parametrize(('shift_sd', 'glow', 'dark'), [(2, 0.3, 0), (-2, 0, 0.3)])
def test_brighter_fill_glows_and_darker_is_dark(head, untouched, shift_sd, glow, dark):
    t1w, _, lesions, *_ = head
    row = rows_of(head, untouched, np.where(lesions, t1w + shift_sd * SD, t1w))['all']
    assert row['mean_sd'] == pytest.approx(shift_sd, abs=0.2)
    # Of normal noise, that much is beyond 2.576 SD when shifted by 2: 28 %.
    assert row['glow'] == pytest.approx(glow, abs=0.06)
    assert row['dark'] == pytest.approx(dark, abs=0.06)


def test_smeared_wall_is_less_steep(head, untouched):
    """A ramp of four voxels from fluid to white matter: half-way voxels appear, steps are a quarter."""
    t1w, _, lesions, *_ = head
    smeared = t1w.copy()
    for step in range(4):
        smeared[28 + step, 20:32, 18:30] = FLUID + (step + 1) / 5 * (WHITE - FLUID)
    row = rows_of(head, untouched, smeared)['touches fluid']
    sharp = rows_of(head, untouched, t1w)['touches fluid']
    assert sharp['wall_between'] == 0
    assert row['wall_between'] == pytest.approx(0.5, abs=0.01)  # 20 % is fluid, 40 % half-way; two voxels are near
    assert row['wall_steepness'] == pytest.approx(0.2, abs=0.02)


def test_rim_that_stays_is_an_outline(head):
    """A rim 1 SD darker in the T1w is +1; the same rim in a FLAIR, where lesions are bright, is -1."""
    t1w, brain, lesions, *_ = head
    ring = ndimage.binary_dilation(lesions, np.ones((3, 3, 3))) & ~lesions
    dark = np.where(ring, t1w - 2 * SD, t1w)
    untouched = evaluate_real.find_untouched(dark, brain, lesions, lesions)
    for modality, sign in (('T1w', 1), ('FLAIR', -1)):
        rows = evaluate_real.measure_fills(dark, {'one': dark}, lesions, lesions, untouched, modality)
        assert rows[0]['outline_sd'] == pytest.approx(2 * sign, abs=0.4)


def test_groups_are_by_given_volume_and_contact(head, untouched):
    t1w, _, lesions, _, _, apart = head
    used = ndimage.binary_dilation(lesions, iterations=1) & ~untouched.fluid
    groups = evaluate_real.group_lesions(lesions, used, untouched.fluid)
    assert {name: count for name, (_, count) in groups.items()} == {
        **{'all': 2, 'over 0.5 ml': 1, 'volume 0.1 to 1 ml': 1, 'volume over 1 ml': 1},
        **{'touches fluid': 1, 'away from fluid': 1},
    }
    assert np.array_equal(groups['all'][0], used)
    assert np.array_equal(groups['away from fluid'][0], ndimage.binary_dilation(apart))


def test_growing_a_mask_moves_no_lesion_to_another_class():
    given = np.zeros((20, 20, 20), dtype=bool)
    given[8:12, 8:12, 8:12] = True  # 64 voxels
    used = ndimage.binary_dilation(given, iterations=4)
    assert used.sum() > 100
    assert 'volume 0 to 0.1 ml' in evaluate_real.group_lesions(given, used, np.zeros_like(given))


def test_wall_faces_by_hand():
    image = np.zeros((4, 1, 1))
    image[:, 0, 0] = (0, 1, 9, 10)
    everywhere = np.ones(image.shape, dtype=bool)
    touched = np.zeros_like(everywhere)
    at_fill, elsewhere = measures.wall_faces(image, 5, everywhere, touched)
    assert at_fill.size == 0
    assert elsewhere.tolist() == [8]
    touched[1] = True
    assert measures.wall_faces(image, 5, everywhere, touched)[0].tolist() == [8]
    assert measures.wall_faces(image, 0.5, everywhere, touched)[0].tolist() == [1]


def test_grain_of_few_voxels_is_not_known():
    region = np.zeros((12, 12, 12), dtype=bool)
    region[3:10, 3:10, 3:10] = True  # 27 inside
    assert np.isnan(measures.grain(np.ones(region.shape), region))


# Discriminability


def patches_of(n_images, make, n_patches=25):
    """Patches of images whose fill is made by a function of (rng, shape)."""
    found = []
    for number in range(n_images):
        rng = np.random.default_rng(number)
        original = rng.standard_normal((40, 40, 40))
        filled_mask = ellipsoid(original.shape, (12, 20, 20), (9, 10, 10))
        untouched_mask = np.zeros(original.shape, dtype=bool)
        untouched_mask[22:] = True
        filled = np.where(filled_mask, make(rng, original.shape), original)
        found.append(discriminability.draw_patches(filled, original, filled_mask, untouched_mask, rng, n_patches))
    return found


def test_patches_have_one_shape_and_come_from_where_they_should():
    (patches,) = patches_of(1, lambda rng, shape: np.full(shape, 7.0))
    assert len(patches.filled) == 25
    assert (patches.mask.sum(axis=(1, 2, 3)) >= discriminability.MIN_VOXELS).all()
    assert (patches.filled[patches.mask] == 7).all()
    for kind in (patches.filled, patches.untouched, patches.control):
        assert not kind[~patches.mask].any()
    assert (patches.untouched != 7).all()
    assert not np.array_equal(patches.untouched, patches.control)


def test_no_place_gives_no_patches():
    nothing = np.zeros((20, 20, 20), dtype=bool)
    image = np.zeros(nothing.shape)
    patches = discriminability.draw_patches(image, image, ~nothing, nothing, np.random.default_rng(0))
    assert patches.filled.shape == patches.mask.shape == (0, 7, 7, 7)


@pytest.mark.parametrize('classifier', discriminability.CLASSIFIERS)
def test_flat_fill_is_told_and_alike_tissue_is_not(classifier):
    smooth = patches_of(3, lambda rng, shape: 0.3 * rng.standard_normal(shape))
    alike = patches_of(3, lambda rng, shape: rng.standard_normal(shape))
    people = ['a', 'b', 'c']
    told, chance = (discriminability.discriminability(patches, people, classifier) for patches in (smooth, alike))
    assert told['auc'] > 0.95
    assert 0.3 < chance['auc'] < 0.7
    assert 0.3 < told['auc_null'] < 0.7
    assert told['patches'] == 75
    assert set(told['by_patient']) == set(people)


def test_one_patient_cannot_be_scored_by_others():
    result = discriminability.discriminability(patches_of(2, lambda rng, shape: np.zeros(shape)), ['a', 'a'])
    assert np.isnan(result['auc'])


def test_features_by_hand():
    mask = np.ones((2, 2, 2), dtype=bool)
    values = np.zeros(mask.shape)
    values[1] = 1.0  # a step along x
    found = discriminability.features(values, mask)
    assert found['mean'] == found['sd'] == 0.5
    assert (found['step_x'], found['step_y'], found['step_z']) == (1, 0, 0)
    assert found['lag1_y'] == 1
    # Levels 4 and 5: 4 steps along x, 8 pairs alike along y and z.
    assert found['contrast'] == pytest.approx(4 / 12)
    assert found['homogeneity'] == pytest.approx((8 + 4 / 2) / 12)


def test_patches_of_a_patient_keep_away_from_other_tissue(head, untouched):
    t1w, _, lesions, ventricle, white, _ = head
    mean, deviation, filled_mask, untouched_mask = evaluate_real.patch_grounds(t1w, lesions, untouched)
    assert deviation == pytest.approx(SD, rel=0.1)
    assert mean[filled_mask].mean() == pytest.approx(WHITE, abs=2)
    assert not (filled_mask & ndimage.binary_dilation(ventricle)).any()
    assert not (filled_mask & ~lesions).any()
    assert not (untouched_mask & ndimage.binary_dilation(lesions | ventricle | ~white)).any()
    assert untouched_mask.any()
