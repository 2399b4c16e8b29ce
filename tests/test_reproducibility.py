import numpy as np
import pytest

from bids_lesionfill.lesions import places
from bids_lesionfill.thickness import reproducibility


def test_error_of_2_0_and_2_2_mm_is_4_7619_percent_whichever_comes_first():
    assert reproducibility.error_percent(2.0, 2.2) == pytest.approx(100 / 21, abs=1e-9)
    assert reproducibility.error_percent(2.2, 2.0) == pytest.approx(4.761904761904762, abs=1e-9)
    assert reproducibility.error_percent(2.5, 2.5) == 0


def test_error_is_the_formula_of_the_thesis_written_out(rng):
    first, second = rng.uniform(1, 4, (2, 50))
    mean = (first + second) / 2
    written_out = 100 * 0.5 * (np.abs(first - mean) + np.abs(second - mean)) / mean
    np.testing.assert_allclose(reproducibility.error_percent(first, second), written_out, rtol=0, atol=1e-9)


def test_missing_measurements_are_nan_and_not_zero():
    errors = reproducibility.error_percent([2.0, np.nan, 0.0], [np.nan, 2.0, 0.0])
    assert np.isnan(errors).all()


def test_global_error_is_that_of_the_mean_of_both_hemispheres_not_the_mean_of_their_errors():
    first = [[2.0, 3.0, *[2.0] * 3]]
    second = [[2.2, 2.8, *[2.2, 2.0, 1.8]]]  # the hemispheres' changes cancel
    errors = reproducibility.participant_errors(['sub-1'], first, second)
    assert errors.overall.tolist() == [0]
    expected = np.array([0.2 / 4.2, 0, 0.2 / 3.8]) * 100
    np.testing.assert_allclose(errors.regions[0], expected, atol=1e-9)
    assert errors.region_average[0] == pytest.approx(expected.mean(), abs=1e-9)


def test_scans_of_one_participant_count_once():
    first = np.full((3, 4), 2.0)
    second = np.array([[2.2] * 4, [2.0] * 4, [2.0] * 4])
    errors = reproducibility.participant_errors(['sub-1', 'sub-1', 'sub-2'], first, second)
    assert errors.participants == ('sub-1', 'sub-2')
    np.testing.assert_allclose(errors.overall, [50 / 21, 0], atol=1e-9)


def test_regions_that_one_participant_lacks_are_averaged_over_the_others():
    first = np.full((2, 4), 2.0)
    second = np.array([[2.2, 2.2, 2.2, np.nan], [2.2, 2.2, np.nan, np.nan]])
    errors = reproducibility.participant_errors(['a', 'b'], first, second)
    mean, *_ = reproducibility.mean_and_interval(errors.regions, np.random.default_rng(0))
    assert mean[0] == pytest.approx(100 / 21, abs=1e-9)
    assert np.isnan(mean[1])
    np.testing.assert_allclose(errors.region_average[0], 100 / 21, atol=1e-9)
    assert np.isnan(errors.region_average[1])


def test_interval_holds_the_mean_shrinks_with_n_and_is_the_same_for_the_same_seed(rng):
    values = rng.gamma(2, 0.5, (400, 2))
    few = reproducibility.mean_and_interval(values[:25], np.random.default_rng(1))
    many = reproducibility.mean_and_interval(values, np.random.default_rng(1))
    for mean, low, high in (few, many):
        assert (low < mean).all()
        assert (mean < high).all()
    assert 2.5 < ((few[2] - few[1]) / (many[2] - many[1])).mean() < 6.5  # a quarter of the width at 16 times as many
    np.testing.assert_allclose(many[2] - many[1], 2 * 1.96 * values.std(axis=0) / 20, rtol=0.1)
    assert np.array_equal(few, reproducibility.mean_and_interval(values[:25], np.random.default_rng(1)))


@pytest.mark.parametrize(('n_participants', 'has_interval'), [(0, False), (1, False), (3, False), (4, True)])
def test_an_interval_needs_four_participants(n_participants, has_interval):
    values = np.arange(2.0 * n_participants).reshape(-1, 2)
    mean, *bounds = reproducibility.mean_and_interval(values, np.random.default_rng(0))
    np.testing.assert_array_equal(mean, values.mean(axis=0) if n_participants else [np.nan] * 2)
    assert np.isfinite(bounds).all() == has_interval == (not np.isnan(bounds).all())


def test_an_interval_needs_four_participants_who_have_the_region():
    values = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, np.nan]])
    mean, *bounds = reproducibility.mean_and_interval(values, np.random.default_rng(0))
    assert mean.tolist() == [2.5, 2]
    assert np.isfinite(bounds).tolist() == [[True, False]] * 2


def test_signed_change_keeps_its_sign_and_is_relative_to_the_first():
    first = [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0], [np.nan, 2.0, 2.0]]
    second = [[2.2, 2.2, 2.0], [1.8, 1.8, 2.0], [2.2, 2.2, 2.0], [2.0, 2.0, 2.0]]
    errors = reproducibility.participant_errors(['a', 'b', 'b', 'c'], first, second)
    np.testing.assert_allclose(errors.change, [10, 0, np.nan], atol=1e-9)
    np.testing.assert_allclose(errors.overall[:2], [100 / 21, (100 / 21 + 100 / 19) / 2], atol=1e-9)


def test_noise_floor_is_the_95th_percentile_of_what_a_rerun_changes():
    assert reproducibility.noise_floor(np.arange(101) / 10) == pytest.approx(9.5)
    assert reproducibility.noise_floor([0.2, np.nan]) == 0.2
    assert np.isnan(reproducibility.noise_floor([np.nan]))


def test_juxtacortical_rule_counts_what_the_dilated_mask_has_outside_white_matter():
    tissue_seg = np.full((9, 9, 9), 3)
    tissue_seg[..., 6:] = 2
    tissue_seg[..., 8] = 1
    lesion_mask = np.zeros(tissue_seg.shape, dtype=bool)
    lesion_mask[4, 4, 3] = True
    assert places.voxels_beside_white_matter(lesion_mask, tissue_seg) == {'outside_white_matter': 0, 'grey_matter': 0}
    lesion_mask[4, 4, 5] = True  # along the axis it touches one voxel of cortex; corners do not count
    assert places.voxels_beside_white_matter(lesion_mask, tissue_seg) == {'outside_white_matter': 1, 'grey_matter': 1}
    lesion_mask[4, 4, 7] = True
    found = places.voxels_beside_white_matter(lesion_mask, tissue_seg)
    assert found == {'outside_white_matter': 7, 'grey_matter': 6}


def test_a_lesion_at_the_ventricles_touches_no_cortex():
    """Ventricle, its partial volume (grey by brightness), white matter, cortex, along one axis."""
    tissue_seg = np.broadcast_to(np.array([1, 1, 2, 3, 3, 3, 3, 3, 2]), (5, 5, 9))
    ribbon = np.zeros(tissue_seg.shape, dtype=bool)
    ribbon[..., 8] = True
    lesion_mask = np.zeros(tissue_seg.shape, dtype=bool)
    lesion_mask[2, 2, 2:4] = True
    counts = places.voxels_beside_white_matter(lesion_mask, tissue_seg, ribbon)
    assert counts == {'outside_white_matter': 6, 'grey_matter': 5, 'cortex': 0}
    lesion_mask[2, 2, 7] = True
    assert places.voxels_beside_white_matter(lesion_mask, tissue_seg, ribbon)['cortex'] == 1
