import numpy as np
import pytest

from bids_lesionfill.images import segmentations


def test_labels_of_freesurfer_become_tissues():
    labels = np.array([0, 2, 41, 3, 42, 4, 24, 17, 77, 99, 251, 1035, 2001, 3005, 11101, 15])
    assert segmentations.from_freesurfer(labels).tolist() == [0, 3, 3, 2, 2, 1, 1, 2, 3, 3, 3, 2, 2, 3, 2, 1]


def test_labels_of_dl_direct_become_tissues():
    assert segmentations.from_freesurfer(np.array([101, 112, 102, 113, 125])).tolist() == [1, 1, 2, 2, 3]


def test_no_label_is_in_two_tissues():
    members = [label for labels in segmentations.FREESURFER.values() for label in labels]
    assert len(members) == len(set(members))


@pytest.mark.parametrize('words', [
    ('Gray Matter', 'White Matter', 'Cerebrospinal Fluid'), ('GM', 'WM', 'CSF'), ('grey matter', 'WM', 'csf'),
])  # fmt: skip
def test_a_table_says_which_label_is_what(words):
    table = [{'index': float(index), 'name': name} for index, name in enumerate(words, start=1)]
    assert segmentations.from_table(np.array([0, 1, 2, 3, 4]), table).tolist() == [0, 2, 3, 1, 0]


def test_abbreviations_of_a_table_count():
    table = [{'index': 8.0, 'name': 'something', 'abbreviation': 'WM'}]
    assert segmentations.from_table(np.array([8, 1]), table).tolist() == [3, 0]


@pytest.mark.parametrize('order', [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_three_labels_without_names_are_told_apart_on_the_t1w(phantom, order):
    labels = np.append(0, order)[phantom.tissue_seg]
    assert np.array_equal(segmentations.by_intensity(labels, phantom.t1w), phantom.tissue_seg)


def test_four_labels_without_names_are_refused(phantom):
    labels = np.where(phantom.lesion_mask, 4, phantom.tissue_seg)
    with pytest.raises(ValueError, match='4 labels .* expected 3'):
        segmentations.by_intensity(labels, phantom.t1w)


def test_a_fourth_label_that_is_the_lesion_of_bids_is_white_matter(phantom):
    labels = segmentations.in_bids_labels(phantom.tissue_seg, phantom.lesion_mask)
    assert set(np.unique(labels)) == {0, 1, 2, 3, 7}
    expected = np.where(phantom.lesion_mask, 3, phantom.tissue_seg)
    assert np.array_equal(segmentations.by_intensity(labels, phantom.t1w), expected)


def test_labels_that_are_written_are_those_of_bids_and_are_read_back():
    tissue_seg = np.array([0, 1, 2, 3, 3, 1])
    lesion_mask = np.array([False, False, False, False, True, True])
    labels = segmentations.in_bids_labels(tissue_seg, lesion_mask)
    assert labels.tolist() == [0, 3, 1, 2, 7, 7]
    names = ((1, 'Gray Matter'), (2, 'White Matter'), (3, 'Cerebrospinal Fluid'), (7, 'Lesion'))
    table = [{'index': float(index), 'name': name} for index, name in names]
    assert segmentations.from_table(labels, table).tolist() == [0, 1, 2, 3, 3, 3]
    assert segmentations.in_bids_labels(tissue_seg).tolist() == [0, 3, 1, 2, 2, 3]


def test_the_most_probable_tissue_counts():
    probabilities = np.array([[0.1, 0.6, 0.1], [0.7, 0.3, 0.1], [0.2, 0.1, 0.2]])
    assert segmentations.most_probable(probabilities).tolist() == [2, 1, 0]


def test_tissues_of_the_t1w_fit_it_and_others_do_not(phantom):
    segmentations.check_fit(phantom.tissue_seg, phantom.t1w)
    with pytest.raises(ValueError, match='do not rise'):
        segmentations.check_fit(np.array([0, 3, 2, 1])[phantom.tissue_seg], phantom.t1w)
    with pytest.raises(ValueError, match='expected a brain'):
        segmentations.check_fit(np.minimum(phantom.tissue_seg, 2), phantom.t1w)


def test_a_segmentation_without_csf_fits(phantom):
    segmentations.check_fit(np.where(phantom.tissue_seg == 1, 0, phantom.tissue_seg), phantom.t1w)
