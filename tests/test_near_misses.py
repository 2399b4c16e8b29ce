"""Files that look like lesion masks but were not taken: what a run says of them."""

from pathlib import Path

import pytest
from bids_examples import write_description

from bids_lesionfill.layout import near_misses

ANAT = 'derivatives/x/sub-01/anat/sub-01_'


@pytest.fixture
def root(tmp_path):
    write_description(tmp_path / 'data')
    return tmp_path / 'data'


def describe(root, *files, searched=('x',), **options):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    folders = {name: root / 'derivatives' / name for name in searched}
    for folder in folders.values():
        write_description(folder, DatasetType='derivative')
    return near_misses.describe(root, folders, ['01'], **options)


def test_without_a_folder_of_derivatives_the_sentence_says_what_is_expected(root):
    assert describe(root, searched=()) == (
        f'no derivatives folder found in {root}; expected derivatives/NAME/sub-XX/anat/*_label-lesion_mask.nii.gz'
    )


def test_without_a_file_like_a_mask_it_says_where_was_looked(root):
    files = (ANAT + 'desc-brain_mask.nii.gz', ANAT + 'label-GM_probseg.nii.gz', 'sub-01/anat/sub-01_acq-seg_T1w.nii.gz')
    assert describe(root, *files) == 'looked for label-lesion or label-L_mask in x'


@pytest.mark.parametrize(('file', 'options', 'advice'), [
    ('label-WMH_mask', {}, '--mask-label WMH takes it'),
    ('desc-manual_mask', {}, '--mask-label manual takes it'),
    ('label-lesion_mask', {'mask_labels': ('wmh',)}, '--mask-label lesion takes it'),
    ('label-lesion_desc-a_mask', {'mask_desc': 'b'}, '--mask-desc b leaves it out'),
    ('space-MNI152_label-lesion_mask', {}, 'it is in the space of MNI152, not of the patient'),
    ('run-3_label-lesion_mask', {}, 'its ses-, acq-, ce-, rec- or run- are those of no image'),
    ('mask', {}, 'its name is not recognized: rename it to sub-XX_label-lesion_mask.nii.gz'),
    ('T1w_lesions', {}, 'its name is not recognized: rename it to sub-XX_label-lesion_mask.nii.gz'),
])  # fmt: skip
def test_each_file_like_a_mask_is_told_with_what_would_take_it(root, file, options, advice):
    said = describe(root, f'{ANAT}{file}.nii.gz', **options)
    assert f'; seen: {ANAT}{file}.nii.gz: {advice}' in said


def test_files_of_a_kind_are_counted(root):
    said = describe(root, *(f'{ANAT}run-{run}_label-WMH_mask.nii.gz' for run in (1, 2, 3)))
    assert said.endswith(f'seen: {ANAT}run-1_label-WMH_mask.nii.gz and 2 more: --mask-label WMH takes it')


def test_folders_that_are_not_searched_are_told(root):
    other = Path('derivatives/other/sub-01/anat/sub-01_label-lesion_mask.nii.gz')
    said = describe(root, other)
    assert f'seen: {other}: {root / "derivatives/other"} is not searched, since it has no dataset_desc' in said
    write_description(root / 'derivatives/other', DatasetType='derivative')
    assert f'seen: {other}: -d {root / "derivatives/other"} takes its folder' in describe(root)
    own = [{'Name': 'bids_lesionfill'}]
    write_description(root / 'derivatives/other', DatasetType='derivative', GeneratedBy=own)
    assert 'seen' not in describe(root)  # what the app wrote is no mask of a rater
