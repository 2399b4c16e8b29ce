"""The score of a segmentation: matching by hand-computed phantoms, files of tools, the command line."""

import csv
import json
import runpy
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bids_examples import write_description
from nibabel.processing import resample_from_to
from scipy import ndimage

from bids_lesionfill.layout import files as layout_files
from bids_lesionfill.score import cases, contrast, loading, matching, outputs, tables
from bids_lesionfill.score.__main__ import build_parser, main

SHAPE = (24, 20, 16)
NOTHING = np.zeros(SHAPE, dtype=bool)
AFFINE = np.array([[1, 0, 0, -12], [0, 1, 0, -10], [0, 0, 1, -8], [0, 0, 0, 1]], dtype=float)


def boxes(*corners):
    """A mask of boxes, each given by its slices."""
    mask = NOTHING.copy()
    for corner in corners:
        mask[corner] = True
    return mask


def bar(start, stop, y=4, z=4):
    """One row of voxels."""
    return np.s_[start:stop, y, z]


# ------------------------------------------------------------------------------------------------------------ matching


def counts(truth, prediction, rule='iou', **options):
    return matching.count_matches(matching.match(truth, prediction, **options), rule)


@pytest.mark.parametrize('rule', matching.RULES)
def test_a_perfect_prediction_scores_one(rule):
    truth = boxes(np.s_[2:5, 2:5, 2:5], np.s_[10:16, 10:12, 3:9], bar(20, 21))
    found = counts(truth, truth, rule)
    assert (found['n_lesions'], found['detected'], found['n_predicted'], found['false_lesions']) == (3, 3, 3, 0)
    assert found['sensitivity'] == found['precision'] == found['f1'] == 1
    scores = matching.score_voxels(truth, truth)
    assert scores['dice'] == 1
    assert scores['volume_error_ml'] == scores['volume_error_percent'] == 0


def test_a_shift_scores_less_the_farther_it_is():
    truth = boxes(np.s_[4:8, 4:8, 4:8])
    dice, iou = [], []
    for shift in range(5):
        moved = np.roll(truth, shift, axis=0)
        dice.append(matching.score_voxels(truth, moved)['dice'])
        iou.append(matching.match(truth, moved).truth[0]['iou'])
    assert dice == [1, 0.75, 0.5, 0.25, 0]
    np.testing.assert_allclose(iou, [1, 48 / 80, 32 / 96, 16 / 112, 0])


def test_parts_of_a_split_lesion_are_one_lesion():
    truth, prediction = boxes(bar(2, 12)), boxes(bar(2, 6), bar(8, 12))
    matched = matching.match(truth, prediction)
    (lesion,) = matched.truth
    assert (lesion['n_parts'], lesion['iou'], lesion['overlap_voxels']) == (2, 0.8, 8)
    assert [row['right_iou'] for row in matched.predictions] == [True, True]
    assert counts(truth, prediction)['f1'] == 1
    assert matching.score_voxels(truth, prediction)['dice'] == 16 / 18


def test_merged_lesions_are_detected_together():
    truth, prediction = boxes(bar(2, 6), bar(8, 12)), boxes(bar(2, 12))
    matched = matching.match(truth, prediction)
    assert [row['iou'] for row in matched.truth] == [0.8, 0.8]
    assert matched.predictions[0]['n_parts'] == 2
    assert counts(truth, prediction)['f1'] == 1


def test_a_lesion_that_a_merging_prediction_only_touches_is_not_detected_by_iou():
    truth = boxes(bar(0, 10), bar(11, 23))
    prediction = boxes(bar(0, 12))  # all of the first, one voxel of twelve of the second
    matched = matching.match(truth, prediction)
    assert [row['detected_overlap'] for row in matched.truth] == [True, True]
    assert [row['detected_iou'] for row in matched.truth] == [True, False]
    assert matched.truth[0]['iou'] == 10 / 12
    assert matched.predictions[0]['n_parts'] == 1


def test_a_prediction_that_is_far_too_large_is_right_by_overlap_alone():
    truth, prediction = boxes(np.s_[2:4, 2:4, 2:4]), boxes(np.s_[3:13, 3:13, 3:5])  # 8 and 200 voxels, one shared
    matched = matching.match(truth, prediction)
    assert matched.truth[0]['overlap_voxels'] == 1
    assert counts(truth, prediction, 'overlap')['f1'] == 1
    assert counts(truth, prediction, 'iou') == pytest.approx(
        {'n_lesions': 1, 'detected': 0, 'n_predicted': 1, 'false_lesions': 1, 'sensitivity': 0, 'precision': 0, 'f1': 0}
    )


def test_f1_is_that_of_shares_on_both_sides():
    truth = boxes(bar(0, 8), bar(10, 14), bar(16, 20))
    prediction = boxes(bar(0, 3), bar(5, 8), bar(10, 14), np.s_[2:4, 12:14, 12:14])  # one split, one right, one false
    found = counts(truth, prediction)
    assert (found['sensitivity'], found['precision']) == (2 / 3, 3 / 4)
    assert found['f1'] == pytest.approx(12 / 17)  # 2 (2/3) (3/4) / (2/3 + 3/4)


@pytest.mark.parametrize('rule', matching.RULES)
def test_empty_masks(rule):
    lesion = boxes(bar(2, 6))
    no_truth = counts(NOTHING, lesion, rule)
    assert (no_truth['false_lesions'], no_truth['precision']) == (1, 0)
    assert np.isnan([no_truth['sensitivity'], no_truth['f1'], matching.score_voxels(NOTHING, lesion)['dice']]).all()
    assert matching.score_voxels(NOTHING, lesion, voxel_mm3=2)['volume_error_ml'] == pytest.approx(0.008)
    no_prediction = counts(lesion, NOTHING, rule)
    assert (no_prediction['sensitivity'], no_prediction['f1'], no_prediction['false_lesions']) == (0, 0, 0)
    assert np.isnan(no_prediction['precision'])
    assert matching.score_voxels(lesion, NOTHING)['dice'] == 0
    assert matching.score_voxels(lesion, NOTHING)['volume_error_percent'] == 100
    neither = counts(NOTHING, NOTHING, rule)
    assert (neither['n_lesions'], neither['n_predicted']) == (0, 0)
    assert np.isnan([neither['sensitivity'], neither['precision'], neither['f1']]).all()


def test_lesions_that_the_patient_had_are_neither_right_nor_false():
    truth, old = boxes(bar(2, 6)), boxes(np.s_[12:16, 12:16, 12:16])
    on_old = ndimage.binary_dilation(old)
    prediction = truth | on_old | boxes(bar(20, 22, y=18))
    assert counts(truth, prediction)['false_lesions'] == 2
    found = counts(truth, prediction, ignored=old)
    assert (found['detected'], found['n_predicted'], found['false_lesions']) == (1, 2, 1)
    scores = matching.score_voxels(truth, prediction, old)
    assert scores['dice'] == pytest.approx(8 / (4 + 6))  # what reaches beyond the old lesion does not count
    assert scores['volume_predicted_ml'] == pytest.approx(0.006)


def test_a_prediction_on_an_old_and_a_new_lesion_counts_without_its_part_in_the_old_one():
    truth, old = boxes(bar(2, 6)), boxes(bar(6, 16))
    matched = matching.match(truth, truth | old, old)
    assert matched.predictions[0]['voxels'] == 4
    assert matched.predictions[0]['iou'] == matched.truth[0]['iou'] == 1
    assert matching.score_voxels(truth, truth | old, old)['dice'] == 1


def test_small_lesions_are_left_out_on_both_sides():
    truth, prediction = boxes(bar(2, 6), bar(10, 11)), boxes(bar(2, 6), bar(10, 14), bar(20, 21))
    assert counts(truth, prediction, min_voxels=2) == counts(boxes(bar(2, 6)), boxes(bar(2, 6)))
    assert counts(truth, prediction, min_voxels=1)['n_predicted'] == 3


def test_matching_is_symmetric_and_iou_is_stricter(rng):
    for _ in range(20):
        truth, prediction = (ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1) > 0.25 for _ in range(2))
        matched, swapped = matching.match(truth, prediction), matching.match(prediction, truth)
        assert [row['iou'] for row in matched.truth] == [row['iou'] for row in swapped.predictions]
        assert [row['n_parts'] for row in matched.truth] == [row['n_parts'] for row in swapped.predictions]
        assert all(row['detected_overlap'] for row in matched.truth if row['detected_iou'])
        assert all(0 <= row['iou'] <= 1 for row in matched.truth)


# ------------------------------------------------------------------------------------------------------------- changes


def test_new_grown_shrunk_and_resolved_lesions():
    same, grown, shrunk = np.s_[2:4, 2:4, 2:4], np.s_[8:10, 2:4, 2:4], np.s_[14:16, 2:4, 2:4]  # 8 voxels each
    baseline = boxes(same, grown, shrunk, np.s_[20:22, 2:4, 2:4])
    followup = boxes(same, grown, np.s_[14:16, 2:4, 2:3], bar(2, 6, y=14)) | boxes(np.s_[10:11, 2:4, 2:3])
    changes = matching.find_changes(baseline, followup)
    np.testing.assert_array_equal(changes['new'], boxes(bar(2, 6, y=14)))
    np.testing.assert_array_equal(changes['grown'], boxes(grown) | boxes(np.s_[10:11, 2:4, 2:3]))  # 10 = 1.25 x 8
    np.testing.assert_array_equal(changes['shrunk'], boxes(shrunk))
    np.testing.assert_array_equal(changes['resolved'], boxes(np.s_[20:22, 2:4, 2:4]))


def test_a_lesion_that_splits_has_not_changed_by_that():
    changes = matching.find_changes(boxes(bar(2, 12)), boxes(bar(2, 7), bar(8, 12)))
    assert not any(mask.any() for mask in changes.values())
    empty = matching.find_changes(NOTHING, NOTHING)
    assert set(empty) == set(matching.CHANGES)
    assert not any(mask.any() for mask in empty.values())


def test_changes_are_scored_by_kind():
    old, new, missed = boxes(np.s_[2:4, 2:4, 2:4]), boxes(bar(8, 12)), boxes(bar(16, 20))
    rows = tables.score_changes((old, old | new | missed), (old, old | new), voxel_mm3=2, min_volume_mm3=3)
    by_change = {row['change']: row for row in rows}
    assert (by_change['new']['n_lesions'], by_change['new']['detected_iou']) == (2, 1)
    assert by_change['new']['f1_iou'] == pytest.approx(2 / 3)
    assert by_change['new']['volume_truth_ml'] == pytest.approx(0.016)
    assert [by_change[name]['n_predicted'] for name in ('grown', 'shrunk', 'resolved')] == [0, 0, 0]


# ------------------------------------------------------------------------------------------------- contrast and tables


def test_contrast_against_the_tissue_around():
    image = np.array([98.0, 100.0, 102.0])[np.indices(SHAPE).sum(axis=0) % 3]  # median 100, median deviation 2
    lesion = boxes(np.s_[10:13, 8:11, 7:10])
    image[lesion] = 80
    image[ndimage.binary_dilation(lesion) & ~lesion] = 90  # its soft edge is too near to count
    measured = contrast.measure_contrast(image, lesion, lesion, (1, 1, 1))
    assert measured == pytest.approx({'percent': -20, 'sd': -20 / (1.4826 * 2)})


def test_contrast_is_that_against_white_matter_where_a_t1w_shows_it(rng):
    t1w = rng.normal(100, 3, SHAPE)
    t1w[:15] = rng.normal(40, 3, (15, *SHAPE[1:]))  # more than half of what is around is fluid
    lesion = boxes(np.s_[13:15, 8:11, 7:10])
    t1w[lesion] = 80
    plain = contrast.measure_contrast(t1w, lesion, lesion, (1, 1, 1))
    measured = contrast.measure_contrast(t1w, lesion, lesion, (1, 1, 1), t1w)
    assert plain['percent'] > 0
    assert measured['percent'] == pytest.approx(-20, abs=1)
    assert measured['sd'] == pytest.approx(-20 / 3, rel=0.25)
    flair = np.where(lesion, 150, 0.5 * t1w)
    assert contrast.is_visible(contrast.measure_contrast(flair, lesion, lesion, (1, 1, 1), t1w)['sd'], 'FLAIR')
    assert contrast.is_visible(measured['sd'], 'T1w')
    assert not contrast.is_visible(-measured['sd'], 'T1w')


def test_contrast_is_unknown_without_tissue():
    everything = np.ones(SHAPE, dtype=bool)
    assert np.isnan(contrast.measure_contrast(np.ones(SHAPE), boxes(bar(2, 6)), everything, (1, 1, 1))['sd'])


def test_classes_begin_at_their_lower_edge():
    assert [tables.class_of(value, (0.1, 1), 'ml') for value in (0.05, 0.1, 0.99, 1, np.nan)] == [
        *('< 0.1 ml', '0.1 to 1 ml', '0.1 to 1 ml', '>= 1 ml', 'unknown')
    ]


def test_visibility_in_words():
    assert tables.describe_visibility({'T1w': True, 'FLAIR': True}) == 'T1w and FLAIR'
    assert tables.describe_visibility({'T1w': False, 'FLAIR': True}) == 'FLAIR, not T1w'
    assert tables.describe_visibility({'T1w': False, 'FLAIR': False}) == 'neither T1w nor FLAIR'
    assert tables.describe_visibility({'T1w': False}) == 'not T1w'
    assert tables.describe_visibility({}) == 'unknown'


def test_place_is_that_of_the_row_at_the_same_centre():
    known = [{'x_mm': x, 'y_mm': 0, 'z_mm': 0, 'place': place} for x, place in ((0, 'deep'), (9, 'juxtacortical'))]
    assert tables.place_of(np.array([8, 0.5, 0]), known) == 'juxtacortical'
    assert tables.place_of(np.array([5, 0, 0]), known) == 'unknown'
    assert tables.place_of(np.array([0, 0, 0]), [{'x_mm': 0, 'y_mm': 0, 'z_mm': 0}]) == 'unknown'


def loaded(truth, prediction, sizes_mm=(1, 1, 1), **images):
    affine = np.diag([*sizes_mm, 1.0])
    return loading.Loaded(truth, prediction, NOTHING, affine, sizes_mm, images)


def test_detection_by_volume_and_participant():
    truth = boxes(np.s_[2:4, 2:4, 2:4], np.s_[10:15, 10:15, 5:9])  # 8 and 100 voxels of 2 mm3
    prediction = boxes(np.s_[10:15, 10:15, 5:9])
    scores, lesions, false, _ = tables.score_scan(loaded(truth, prediction, (1, 1, 2)))
    assert [row['volume_mm3'] for row in lesions] == [16, 200]
    assert [row['x_mm'] for row in lesions] == [2.5, 12]
    assert [row['z_mm'] for row in lesions] == [5, 13]
    assert (scores['sensitivity_iou'], scores['precision_iou'], false) == (0.5, 1, [])
    people = [row | {'participant_id': f'sub-{n}'} for n in range(4) for row in lesions]
    rows = tables.detection_rows(people)
    by_class = {(row['group'], row['class']): row for row in rows}
    assert list(by_class) == [('all', 'all'), ('volume', '0.01 to 0.1 ml'), ('volume', '0.1 to 1 ml')]
    assert by_class['volume', '0.01 to 0.1 ml']['sensitivity_overlap'] == 0
    assert by_class['volume', '0.1 to 1 ml']['sensitivity_iou'] == 1
    whole = by_class['all', 'all']
    assert (whole['n_lesions'], whole['detected_iou']) == (8, 4)
    assert whole['sensitivity_iou_low'] < 0.5 < whole['sensitivity_iou_high']
    few = tables.detection_rows(lesions and [row | {'participant_id': 'sub-1'} for row in lesions])
    assert 'sensitivity_iou_low' not in few[0]


def test_scores_that_are_not_defined_are_left_out_of_the_mean():
    empty, _, false, _ = tables.score_scan(loaded(NOTHING, boxes(bar(2, 6))))
    full, *_ = tables.score_scan(loaded(boxes(bar(2, 6)), boxes(bar(2, 6))))
    summary = tables.summarise([empty | {'participant_id': 'sub-1'}, full | {'participant_id': 'sub-2'}])
    assert (summary['dice']['mean'], summary['dice']['n']) == (1, 1)
    assert (summary['false_lesions_iou']['mean'], summary['false_lesions_iou']['n']) == (0.5, 2)
    assert (false[0]['volume_mm3'], false[0]['false_overlap']) == (4, 1)


# --------------------------------------------------------------------------------------------------------------- files


def save(path, array, affine=AFFINE):
    array = array.astype(np.uint8) if array.dtype == bool else array
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def derivative(root, **masks):
    """A derivative of lesion masks: `derivative(root, sub01=mask)`, or `sub01_ses1`."""
    write_description(root, DatasetType='derivative')
    for name, mask in masks.items():
        parts = [part[:3] + '-' + part[3:] for part in name.split('_')]
        save(root.joinpath(*parts, 'anat', f'{"_".join(parts)}_label-lesion_mask.nii.gz'), mask)
    return root


TRUTH = boxes(np.s_[3:7, 3:7, 3:7], np.s_[12:18, 10:14, 8:12])


def find(truth, prediction, **choice):
    return cases.find_cases(truth, prediction, cases.Choice(**choice))


def find_one(truth, prediction, **choice):
    (case,) = find(truth, prediction, **choice)
    assert not case.problem, case.problem
    return loading.load(case)


def test_masks_are_paired_by_session(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01_ses1=TRUTH, sub01_ses2=NOTHING, sub02=TRUTH)
    prediction = derivative(tmp_path / 'prediction', sub01_ses2=NOTHING, sub01_ses1=TRUTH, sub02=NOTHING)
    found = find(truth, prediction)
    assert [case.scan for case in found] == ['sub-01_ses-1', 'sub-01_ses-2', 'sub-02']
    for case in found:
        assert case.prediction_file.relative_to(prediction) == case.truth_file.relative_to(truth)


def test_a_prediction_for_no_session_fits_none_of_two(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01_ses1=TRUTH, sub01_ses2=TRUTH, sub02=TRUTH)
    prediction = derivative(tmp_path / 'prediction', sub01=TRUTH)
    problems = [case.problem for case in find(truth, prediction)]
    assert all('fits 2 images' in problem for problem in problems[:2])
    assert problems[2] == cases.NO_PREDICTION


def test_two_predictions_are_told_apart_by_their_desc(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01=TRUTH)
    prediction = derivative(tmp_path / 'prediction')
    for desc, mask in (('a', TRUTH), ('b', NOTHING)):
        save(prediction / f'sub-01/anat/sub-01_label-lesion_desc-{desc}_mask.nii.gz', mask)
    assert '--prediction-desc' in find(truth, prediction)[0].problem
    assert find_one(truth, prediction, prediction_desc='a').prediction.any()
    assert not find_one(truth, prediction, prediction_desc='b').prediction.any()


def test_of_a_mask_and_its_probabilities_the_mask_is_taken(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01=TRUTH)
    prediction = derivative(tmp_path / 'prediction', sub01=TRUTH)
    save(prediction / 'sub-01/anat/sub-01_label-lesion_probseg.nii.gz', 0.3 * TRUTH)
    np.testing.assert_array_equal(find_one(truth, prediction).prediction, TRUTH)


@pytest.mark.parametrize(
    ('flip', 'order'), [((1, 1, 1), (0, 1, 2)), ((-1, 1, -1), (0, 1, 2)), ((-1, -1, 1), (2, 0, 1))]
)
def test_a_prediction_that_is_flipped_or_turned_in_its_file_scores_one(tmp_path, flip, order):
    truth = derivative(tmp_path / 'truth', sub01=TRUTH)
    img = nib.Nifti1Image(TRUTH.astype(np.uint8), AFFINE).as_reoriented(np.array(list(zip(order, flip)), dtype=float))
    prediction = derivative(tmp_path / 'prediction')
    save(prediction / 'sub-01/anat/sub-01_label-lesion_mask.nii.gz', np.asarray(img.dataobj), img.affine)
    for pair in ((truth, prediction), (prediction, truth)):
        both = find_one(*pair)
        np.testing.assert_array_equal(both.truth, both.prediction)
        np.testing.assert_array_equal(both.truth, TRUTH)  # pictures need RAS
        np.testing.assert_allclose(both.affine, AFFINE)


def test_a_prediction_on_another_grid_is_resampled(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01=TRUTH)
    prediction = derivative(tmp_path / 'prediction')
    fine = nib.affines.from_matvec(np.diag([0.5, 0.5, 1.5]), (-12.25, -10.25, -8))
    source = nib.Nifti1Image(TRUTH.astype(np.float32), AFFINE)
    mask = resample_from_to(source, ((48, 40, 11), fine), order=1).get_fdata() >= 0.5
    save(prediction / 'sub-01/anat/sub-01_label-lesion_mask.nii.gz', mask, fine)
    both = find_one(truth, prediction)
    assert both.prediction.shape == SHAPE
    assert matching.score_voxels(both.truth, both.prediction)['dice'] > 0.85
    assert counts(both.truth, both.prediction)['f1'] == 1


def test_masks_in_different_places_are_not_scored(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01=TRUTH)
    prediction = derivative(tmp_path / 'prediction')
    away = AFFINE + np.array([[0, 0, 0, 500]] + [[0] * 4] * 3)
    save(prediction / 'sub-01/anat/sub-01_label-lesion_mask.nii.gz', TRUTH, away)
    with pytest.raises(ValueError, match='do not overlap'):
        find_one(truth, prediction)


def synthesis(root, old=NOTHING, new=TRUTH, modality='T1w', space='', base='synth', affine=AFFINE, places=None):
    """What the app writes for one participant with `--mode synth`."""
    write_description(root, DatasetType='derivative')
    anat = root / 'sub-01' / 'anat'
    rng = np.random.default_rng(0)
    image = rng.normal(100, 3, new.shape).astype(np.float32)
    old = old if old.shape == new.shape else np.zeros_like(new)
    image[old | new] = 75 if modality == 'T1w' else 150
    save(anat / f'sub-01_desc-{base}_{modality}.nii.gz', image, affine)
    everything = ndimage.binary_dilation(old | new)
    for desc, mask in ((base, old | new), (f'{base}new', new), (f'{base}changed', everything)):
        save(anat / f'sub-01_{space}label-lesion_desc-{desc}_mask.nii.gz', mask, affine)
    if places is not None:
        layout_files.write_tsv(anat / f'sub-01_{space}desc-{base}lesions_qc.tsv', places, list(places[0]))
    return root


def test_of_a_synthesis_the_new_lesions_are_the_truth_and_the_old_ones_ignored(tmp_path):
    old = boxes(bar(2, 6, y=16))
    truth = synthesis(tmp_path / 'truth', old)
    prediction = derivative(tmp_path / 'prediction', sub01=old | TRUTH)
    both = find_one(truth, prediction)
    np.testing.assert_array_equal(both.truth, TRUTH)
    np.testing.assert_array_equal(both.ignored, old)
    assert set(both.images) == {'T1w'}
    assert tables.score_scan(both)[0]['f1_iou'] == 1
    everything = find_one(truth, prediction, lesions='all')
    np.testing.assert_array_equal(everything.truth, old | TRUTH)
    assert not everything.ignored.any()


def test_images_are_those_that_show_the_lesions(tmp_path):
    raw = tmp_path / 'raw'
    image = save(raw / 'sub-01' / 'ses-1' / 'anat' / 'sub-01_ses-1_T1w.nii.gz', np.ones(SHAPE))
    save(raw / 'sub-01' / 'ses-2' / 'anat' / 'sub-01_ses-2_T1w.nii.gz', np.ones(SHAPE))
    truth = derivative(raw / 'derivatives' / 'truth', sub01_ses1=TRUTH)
    (case,) = find(truth, truth)
    assert case.images == {'T1w': image}
    elsewhere = derivative(tmp_path / 'truth', sub01_ses1=TRUTH)
    assert find(elsewhere, truth)[0].images == {}
    assert cases.find_cases(elsewhere, truth, cases.Choice(), raw)[0].images == {'T1w': image}
    write_description(elsewhere, DatasetType='derivative', DatasetLinks={'raw': raw.as_uri()})
    assert find(elsewhere, truth)[0].images == {'T1w': image}
    made = synthesis(raw / 'derivatives' / 'synth')
    save(raw / 'sub-01' / 'anat' / 'sub-01_FLAIR.nii.gz', np.ones(SHAPE))  # without the new lesions
    assert list(find(made, truth)[0].images) == ['T1w']


def test_variants_of_a_synthesis_are_chosen_by_their_desc(tmp_path):
    truth = synthesis(tmp_path / 'truth', base='synth1', new=TRUTH)
    synthesis(truth, base='synth2', new=boxes(bar(2, 6)))
    prediction = derivative(tmp_path / 'prediction', sub01=TRUTH)
    (case,) = find(truth, prediction)
    assert '--truth-desc' in case.problem
    np.testing.assert_array_equal(find_one(truth, prediction, truth_desc='synth2').truth, boxes(bar(2, 6)))


def test_the_truth_on_the_grid_of_the_prediction_is_taken(tmp_path):
    truth = synthesis(tmp_path / 'truth')
    coarse = AFFINE @ np.diag([1, 1, 2, 1])
    synthesis(truth, modality='FLAIR', space='space-FLAIR_', affine=coarse, new=TRUTH[:, :, ::2])
    on_t1w = derivative(tmp_path / 'a', sub01=TRUTH)
    assert find_one(truth, on_t1w).truth.shape == SHAPE
    on_flair = derivative(tmp_path / 'b')
    save(on_flair / 'sub-01/anat/sub-01_label-lesion_mask.nii.gz', TRUTH[:, :, ::2], coarse)
    both = find_one(truth, on_flair)
    assert both.truth.shape == (24, 20, 8)
    assert set(both.images) == {'T1w', 'FLAIR'}
    named = derivative(tmp_path / 'c')
    save(named / 'sub-01/anat/sub-01_space-FLAIR_label-lesion_mask.nii.gz', TRUTH[:, :, ::2], coarse)
    np.testing.assert_array_equal(find_one(truth, named).prediction, TRUTH[:, :, ::2])


def test_masks_of_lst_ai_and_samseg(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01_ses1=TRUTH, sub02=TRUTH)
    lst_ai = tmp_path / 'lst-ai'
    save(lst_ai / 'sub-01_ses-1' / 'space-flair_seg-lst.nii.gz', NOTHING)
    save(lst_ai / 'sub-01_ses-1' / 'space-t1w_seg-lst.nii.gz', TRUTH)
    first, second = find(truth, lst_ai)
    np.testing.assert_array_equal(loading.load(first).prediction, TRUTH)
    assert second.problem == cases.NO_PREDICTION
    samseg = tmp_path / 'samseg' / 'sub-02'
    samseg.mkdir(parents=True)
    nib.save(nib.MGHImage(np.where(TRUTH, 99, 2).astype(np.uint8), AFFINE), samseg / 'seg.mgz')
    (samseg / 'samseg.stats').write_text('# Measure Lesions, 1, mm^3\n')
    case = find(truth, samseg.parent)[1]
    assert case.prediction_labels == (99,)
    np.testing.assert_array_equal(loading.load(case).prediction, TRUTH)
    truths = find(samseg.parent, derivative(tmp_path / 'prediction', sub02=TRUTH))  # also as the truth
    np.testing.assert_array_equal(loading.load(truths[0]).truth, TRUTH)


def nnunet(folder, labels, **files):
    folder.mkdir(parents=True)
    (folder / 'dataset.json').write_text(json.dumps({'labels': labels, 'file_ending': '.nii.gz'}))
    for name, array in files.items():
        save(folder / f'{name}.nii.gz', array)
    return folder


def test_masks_of_nnunet(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01_ses1=TRUTH, sub01_ses10=TRUTH, sub02=TRUTH)
    brain = np.where(TRUTH, 2, 1).astype(np.uint8)
    names = {'sub-01_ses-1_T1w': brain, 'sub-01_ses-10': brain, '02': brain}
    folder = nnunet(tmp_path / 'a', {'background': 0, 'brain': 1, 'MS lesion': 2}, **names)
    found = find(truth, folder)
    assert [case.prediction_file.name for case in found] == [f'{name}.nii.gz' for name in names]
    assert {case.prediction_labels for case in found} == {(2,)}
    np.testing.assert_array_equal(loading.load(found[0]).prediction, TRUTH)
    one_label = find(truth, nnunet(tmp_path / 'b', {'0': 'background', '1': 'x'}, **{'sub-02': TRUTH}))
    np.testing.assert_array_equal(loading.load(one_label[2]).prediction, TRUTH)  # version 1: number -> name
    unclear = nnunet(tmp_path / 'c', {'background': 0, 'a': 1, 'b': 2}, **{'sub-02': brain})
    assert 'expected one with "lesion"' in find(truth, unclear)[2].problem


def test_masks_of_mindglide(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01=TRUTH)
    save(tmp_path / 'mindglide' / 'sub-01_FLAIR_seg.nii.gz', np.where(TRUTH, 18, 13).astype(np.uint8))
    np.testing.assert_array_equal(find_one(truth, tmp_path / 'mindglide').prediction, TRUTH)
    save(tmp_path / 'synthseg' / 'sub-01_T1w_seg.nii.gz', np.where(TRUTH, 18, 60).astype(np.uint8))  # 18: amygdala
    with pytest.raises(ValueError, match='expected those of MindGlide'):
        find_one(truth, tmp_path / 'synthseg')


def test_two_predictions_side_by_side_are_ambiguous(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01=TRUTH)
    for name in ('sub-01_T1w_seg', 'sub-01_FLAIR_seg'):
        save(tmp_path / 'p' / f'{name}.nii.gz', TRUTH)
    assert '2 predictions fit' in find(truth, tmp_path / 'p')[0].problem


# -------------------------------------------------------------------------------------------------------- command line


def read(path):
    with open(path) as file:
        return list(csv.DictReader(file, delimiter='\t'))


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_a_whole_run(tmp_path):
    old = boxes(bar(2, 6, y=16))
    places = [
        {'label': 1, 'x_mm': 2.5, 'y_mm': 1.5, 'z_mm': 1.5, 'place': 'deep'},
        {'label': 2, 'x_mm': -7.5, 'y_mm': -5.5, 'z_mm': -3.5, 'place': 'periventricular'},
    ]
    truth = synthesis(tmp_path / 'truth', old, places=places)
    false = boxes(np.s_[20:22, 2:4, 12:14])
    prediction = derivative(tmp_path / 'prediction', sub01=boxes(np.s_[12:18, 10:14, 8:12]) | old | false)
    out = tmp_path / 'out'
    assert run(truth, prediction, out) == 0
    (scan,) = read(out / 'scans.tsv')
    assert (scan['status'], scan['n_lesions'], scan['detected_iou'], scan['n_ignored']) == ('scored', '2', '1', '1')
    assert float(scan['dice']) == pytest.approx(2 * 96 / (160 + 104), rel=1e-5)
    lesions = read(out / 'lesions.tsv')
    assert [(row['place'], row['detected_overlap']) for row in lesions] == [('periventricular', '0'), ('deep', '1')]
    assert {row['visibility'] for row in lesions} == {'T1w'}
    assert float(lesions[0]['contrast_T1w_percent']) == pytest.approx(-25, abs=1)
    assert [row['volume_mm3'] for row in read(out / 'false_lesions.tsv')] == ['8.0']
    groups = {(row['participant_id'], row['group'], row['class']) for row in read(out / 'detection.tsv')}
    assert {('all', 'place', 'deep'), ('sub-01', 'visibility', 'T1w'), ('all', 'volume', '0.01 to 0.1 ml')} <= groups
    summary = json.loads((out / 'scores.json').read_text())
    assert summary['Group']['f1_iou']['mean'] == 0.5
    assert summary['Group']['f1_iou']['low'] is None
    page = (out / 'score.html').read_text()
    assert page.count('data:image/png;base64,') == 4  # the missed and the false lesion: plain, and with the outline
    assert 'http' not in page.replace('http-equiv', '')
    assert "default-src 'none'" in page
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*('scores.json', 'score.html'), *(f'{n}.{e}' for n in outputs.TABLES[:4] for e in ('json', 'tsv'))]
    )
    for name in outputs.TABLES[:4]:
        assert list(json.loads((out / f'{name}.json').read_text())) == list(read(out / f'{name}.tsv')[0])


def test_a_perfect_prediction_scores_one_and_a_shifted_one_less(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01=TRUTH)
    f1, dice = [], []
    for shift in (0, 1, 5):
        prediction = derivative(tmp_path / f'p{shift}', sub01=np.roll(TRUTH, shift, axis=0))
        assert run(truth, prediction, tmp_path / f'out{shift}') == 0
        (scan,) = read(tmp_path / f'out{shift}' / 'scans.tsv')
        f1.append(float(scan['f1_iou']))
        dice.append(float(scan['dice']))
    assert dice[0] == f1[0] == 1
    assert dice[0] > dice[1] > dice[2]
    assert f1[0] == f1[1] > f1[2]


def test_what_could_not_be_scored_is_listed_and_the_exit_code_says_so(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01=TRUTH, sub02=TRUTH, sub03=TRUTH)
    prediction = derivative(tmp_path / 'prediction', sub01=TRUTH)
    (prediction / 'sub-03/anat').mkdir(parents=True)
    (prediction / 'sub-03/anat/sub-03_label-lesion_mask.nii.gz').write_bytes(b'no image')
    assert run(truth, prediction, tmp_path / 'out') == 1
    rows = read(tmp_path / 'out' / 'scans.tsv')
    assert [row['status'] for row in rows[:2]] == ['scored', cases.NO_PREDICTION]
    assert 'cannot be read' in rows[2]['status']
    assert json.loads((tmp_path / 'out' / 'scores.json').read_text())['Group']['dice'] | {} == pytest.approx(
        {'mean': 1, 'median': 1, 'low': None, 'high': None, 'n': 1}
    )


def test_changes_between_sessions(tmp_path):
    new = boxes(np.s_[3:7, 12:16, 3:7])
    truth = derivative(tmp_path / 'truth', sub01_ses1=TRUTH, sub01_ses2=TRUTH | new)
    prediction = derivative(tmp_path / 'prediction', sub01_ses1=TRUTH, sub01_ses2=TRUTH)
    assert run(truth, prediction, tmp_path / 'out', '--pairs') == 0
    rows = {row['change']: row for row in read(tmp_path / 'out' / 'changes.tsv')}
    assert (rows['new']['baseline'], rows['new']['followup']) == ('sub-01_ses-1', 'sub-01_ses-2')
    assert (rows['new']['n_lesions'], rows['new']['detected_overlap'], rows['new']['f1_iou']) == ('1', '0', '0.0')
    assert rows['grown']['n_lesions'] == rows['grown']['n_predicted'] == '0'
    assert run(truth, prediction, tmp_path / 'out') == 0
    assert not (tmp_path / 'out' / 'changes.tsv').exists()  # of the earlier run


@pytest.mark.parametrize('lesions', ['new', 'all'])
def test_changes_of_a_second_visit_that_the_app_made(tmp_path, lesions):
    old = boxes(bar(2, 6, y=16))
    truth = synthesis(tmp_path / 'truth', old)
    first = derivative(tmp_path / 'first', sub01=old)
    second = derivative(tmp_path / 'second', sub01=old | boxes(np.s_[3:7, 3:7, 3:7]))
    arguments = (truth, second, tmp_path / 'out', '--baseline-prediction', first, '--lesions', lesions)
    assert run(*arguments) == 0
    rows = {row['change']: row for row in read(tmp_path / 'out' / 'changes.tsv')}
    assert (rows['new']['n_lesions'], rows['new']['n_predicted'], rows['new']['detected_iou']) == ('2', '1', '1')
    assert rows['resolved']['n_lesions'] == rows['resolved']['n_predicted'] == '0'


def refused(capsys_or_caplog, *arguments):
    assert run(*arguments) == 2
    return capsys_or_caplog.text


def test_a_folder_that_is_not_its_own_is_refused(tmp_path, caplog):
    truth, prediction = (derivative(tmp_path / name, sub01=TRUTH) for name in ('truth', 'prediction'))
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'thesis.txt').write_text('years of work')
    assert 'holds other files, such as thesis.txt' in refused(caplog, truth, prediction, out)
    assert [path.name for path in out.iterdir()] == ['thesis.txt']
    (out / 'thesis.txt').rename(out / 'scans.tsv')  # a name of ours, but not our file
    assert 'not of bids_lesionfill.score' in refused(caplog, truth, prediction, out)
    assert (out / 'scans.tsv').read_text() == 'years of work'
    (out / 'scores.json').write_text('[]')
    assert run(truth, prediction, out) == 2
    file = tmp_path / 'file'
    file.write_text('x')
    assert 'is a file' in refused(caplog, truth, prediction, file)
    for folder in (truth, prediction / 'scores'):
        assert 'never written to' in refused(caplog, truth, prediction, folder)
    assert not (prediction / 'scores').exists()


def test_an_earlier_run_is_written_over(tmp_path):
    truth = derivative(tmp_path / 'truth', sub01=TRUTH)
    for mask in (NOTHING, TRUTH):
        assert run(truth, derivative(tmp_path / 'prediction', sub01=mask), tmp_path / 'out') == 0
    assert read(tmp_path / 'out' / 'scans.tsv')[0]['dice'] == '1.0'


def test_usage_errors_are_one_sentence(tmp_path, caplog):
    truth, prediction = (derivative(tmp_path / name, sub01=TRUTH) for name in ('truth', 'prediction'))
    other, empty, out = derivative(tmp_path / 'other', sub02=TRUTH), derivative(tmp_path / 'empty'), tmp_path / 'out'
    assert 'is not a folder' in refused(caplog, truth, tmp_path / 'nowhere', out)
    assert 'holds no lesion mask' in refused(caplog, empty, prediction, out)
    assert 'no scan of' in refused(caplog, truth, other, out)
    assert 'needs --baseline-prediction' in refused(caplog, truth, prediction, out, '--baseline-truth', truth)
    assert 'give --baseline-truth' in refused(caplog, truth, prediction, out, '--baseline-prediction', prediction)
    assert 'no changes to score' in refused(caplog, truth, prediction, out, '--pairs')
    assert not out.exists()


@pytest.mark.parametrize(
    'words',
    [
        *(['--min-iou', '0'], ['--min-iou', '2'], ['--volume-edges-ml', '1,0.1'], ['--volume-edges-ml', 'x']),
        *(['--pictures', '-1'], ['--min-volume-mm3', 'nan']),
    ],
)
def test_values_out_of_range_are_refused(words, capsys):
    with pytest.raises(SystemExit, match='2'):
        build_parser().parse_args(['truth', 'prediction', 'out', *words])
    assert words[0] in capsys.readouterr().err


def test_the_example_finds_lesions_and_can_be_scored(tmp_path, make_phantom, monkeypatch):
    phantom = make_phantom()
    anat = tmp_path / 'synth' / 'sub-01' / 'anat'
    for name, array in (
        ('desc-synth_T1w', phantom.t1w),
        ('label-lesion_desc-synth_mask', phantom.lesion_mask),
        ('label-lesion_desc-synthnew_mask', phantom.lesion_mask),
    ):
        save(anat / f'sub-01_{name}.nii.gz', array, phantom.affine)
    script = Path(__file__).parent.parent / 'examples' / 'threshold_segmenter.py'
    monkeypatch.setattr(sys, 'argv', [str(script), str(tmp_path / 'synth'), str(tmp_path / 'threshold')])
    runpy.run_path(str(script), run_name='__main__')
    assert run(tmp_path / 'synth', tmp_path / 'threshold', tmp_path / 'out') == 0
    (scan,) = read(tmp_path / 'out' / 'scans.tsv')
    assert (scan['n_lesions'], scan['detected_iou'], scan['false_lesions_iou']) == ('2', '2', '0')


def test_help_does_not_wait_for_heavy_imports():
    code = "import sys, runpy; sys.argv = ['score', '--help']\ntry: runpy.run_module('bids_lesionfill.score')\n" \
           "except SystemExit: pass\nassert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"  # fmt: skip
    started = time.monotonic()
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parent.parent)
    subprocess.run([sys.executable, '-m', 'bids_lesionfill.score', '--help'], check=True, capture_output=True)
    assert time.monotonic() - started < 4  # two starts
