import gzip
import json

import nibabel as nib
import pytest
from bids_examples import find, flair_path, mask_path, t1w_path, write_bids, write_description

from bids_lesionfill import text_files
from bids_lesionfill.layout import datasets, errors, indexing, naming, pairing
from bids_lesionfill.layout import derivatives as layout_derivatives
from bids_lesionfill.layout import files as layout_files
from bids_lesionfill.layout import inputs as layout_inputs
from bids_lesionfill.layout import status as layout_status


def test_image_gets_its_mask_and_bids_uris(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01'): img})
    (inputs,) = find(root)['01']
    assert inputs.name == 'sub-01_T1w'
    assert inputs.lesion_mask_file == root / mask_path('01')
    assert inputs.sources == (
        'bids:raw:sub-01/anat/sub-01_T1w.nii.gz',
        'bids:lesions:sub-01/anat/sub-01_label-lesion_mask.nii.gz',
    )


@pytest.mark.parametrize(
    'name',
    [
        'label-lesion_mask',
        'label-L_mask',
        'desc-lesion_mask',
        'label-lesion_roi',
        'space-T1w_label-lesion_mask',
        'label-lesion_desc-rater1_mask',
    ],
)
def test_usual_mask_names_are_found(tmp_path, img, name):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01', name=name): img})
    assert find(root)['01'][0].lesion_mask_file is not None


@pytest.mark.parametrize('name', ['desc-brain_mask', 'label-GM_mask', 'label-tumor_mask'])
def test_other_masks_are_not_lesions(tmp_path, img, name):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01', name=name): img})
    assert find(root)['01'][0].problem == 'no lesion mask'


def test_roi_beside_the_image_is_found(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01'): img, 'sub-01/anat/sub-01_label-lesion_roi.nii.gz': img})
    inputs = find(root)['01'][0]
    assert inputs.lesion_mask_file.name == 'sub-01_label-lesion_roi.nii.gz'
    assert inputs.sources[1] == 'bids:raw:sub-01/anat/sub-01_label-lesion_roi.nii.gz'


def test_sessions_get_their_own_masks(tmp_path, img):
    root = write_bids(tmp_path, {path('01', session): img for path in (t1w_path, mask_path) for session in '12'})
    first, second = find(root)['01']
    assert (first.session, second.session) == ('1', '2')
    assert first.lesion_mask_file == root / mask_path('01', '1')
    assert second.lesion_mask_file == root / mask_path('01', '2')
    assert [inputs.session for inputs in find(root, session_labels=['2'])['01']] == ['2']


def test_runs_get_their_own_masks(tmp_path, img):
    runs = ('run-1_', 'run-2_')
    root = write_bids(tmp_path, {path('01', extra=run): img for path in (t1w_path, mask_path) for run in runs})
    assert [inputs.lesion_mask_file.name for inputs in find(root)['01']] == [
        'sub-01_run-1_label-lesion_mask.nii.gz',
        'sub-01_run-2_label-lesion_mask.nii.gz',
    ]


def test_mask_of_another_session_is_not_taken(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01', '1'): img, mask_path('01', '2'): img})
    assert find(root)['01'][0].problem == 'no lesion mask'


def test_two_raters_are_named_and_can_be_chosen(tmp_path, img):
    names = ('label-lesion_desc-rater1_mask', 'label-lesion_desc-rater2_mask')
    root = write_bids(tmp_path, {t1w_path('01'): img} | {mask_path('01', name=name): img for name in names})
    problem = find(root)['01'][0].problem
    assert all(name in problem for name in names)
    assert '--mask-desc' in problem
    assert find(root, mask_desc='rater2')['01'][0].lesion_mask_file.name == f'sub-01_{names[1]}.nii.gz'


def test_one_mask_of_a_visit_serves_both_runs(tmp_path, img):
    runs = [t1w_path('01', extra=run) for run in ('run-1_', 'run-2_')]
    root = write_bids(tmp_path, dict.fromkeys([*runs, mask_path('01')], img))
    first, second = find(root)['01']
    assert first.lesion_mask_file == second.lesion_mask_file == root / mask_path('01')
    assert (first.sibling_files, second.sibling_files) == ((root / runs[1],), (root / runs[0],))


def test_one_mask_for_two_flairs_is_refused_with_a_filter_that_works(tmp_path, img):
    images = [t1w_path('01'), *(flair_path('01', extra=run) for run in ('run-1_', 'run-2_')), mask_path('01')]
    root = write_bids(tmp_path, dict.fromkeys(images, img))
    problem = find(root, modality='FLAIR')['01'][1].problem
    assert 'fits 2 images of sub-01, sub-01_run-2_FLAIR among them' in problem
    filters = json.loads(problem.rpartition(' with ')[2].removesuffix(' in FILE'))
    assert filters == {'flair': {'run': 2}}
    (chosen,) = find(root, modality='FLAIR', filters=filters)['01']
    assert chosen.problem == ''


def test_filters_choose_images(tmp_path, img):
    root = write_bids(
        tmp_path, {t1w_path('01', extra='acq-a_'): img, t1w_path('01', extra='acq-b_'): img, mask_path('01'): img}
    )
    (inputs,) = find(root, filters={'t1w': {'acquisition': 'b'}})['01']
    assert inputs.name == 'sub-01_acq-b_T1w'
    assert inputs.lesion_mask_file is not None


def test_unknown_participant_is_named(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01'): img})
    with pytest.raises(errors.UsageError, match='99'):
        find(root, participant_labels=['99'])


def test_own_output_in_derivatives_is_not_searched(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01'): img})
    own = root / 'derivatives' / 'filled'
    write_description(own, DatasetType='derivative', GeneratedBy=[{'Name': 'bids_lesionfill'}])
    assert list(indexing.find_derivatives(root)) == ['lesions']


# FLAIR


def test_flair_gets_its_mask_and_the_t1w_of_its_session(tmp_path, img):
    paths = [path('01', session) for path in (t1w_path, flair_path, mask_path) for session in '12']
    root = write_bids(tmp_path, dict.fromkeys(paths, img))
    first, second = find(root, modality='FLAIR')['01']
    assert (first.name, first.modality) == ('sub-01_ses-1_FLAIR', 'FLAIR')
    for inputs, session in ((first, '1'), (second, '2')):
        assert inputs.image_file == root / flair_path('01', session)
        assert inputs.tissue_file == root / t1w_path('01', session)
        assert inputs.lesion_mask_file == root / mask_path('01', session)
    assert first.sources == (
        'bids:raw:sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz',
        'bids:lesions:sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz',
        'bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz',
    )


def test_t1w_shows_its_own_white_matter(tmp_path, img):
    root = write_bids(tmp_path, {path('01'): img for path in (t1w_path, flair_path, mask_path)})
    (inputs,) = find(root)['01']
    assert (inputs.name, inputs.tissue_file) == ('sub-01_T1w', None)


@pytest.mark.parametrize(
    ('flair', 't1w', 'chosen'),
    [
        ('', ['', 'acq-x_'], ''),
        ('', ['ce-gd_', ''], ''),
        ('run-2_', ['run-1_', 'run-2_'], 'run-2_'),
        ('acq-x_run-2_', ['acq-x_run-1_', 'acq-x_run-2_', 'acq-y_run-2_'], 'acq-x_run-2_'),
        ('acq-3D_', ['acq-mprage_'], 'acq-mprage_'),
    ],
)
def test_flair_gets_the_t1w_that_fits_best(tmp_path, img, caplog, flair, t1w, chosen):
    root = write_bids(tmp_path, {t1w_path('01', extra=extra): img for extra in t1w} | {mask_path('01'): img}
                      | {flair_path('01', extra=flair): img})  # fmt: skip
    (inputs,) = find(root, modality='FLAIR')['01']
    assert inputs.tissue_file == root / t1w_path('01', extra=chosen)
    assert 'fit equally' not in caplog.text


def test_of_two_t1w_that_fit_equally_the_first_by_name_is_taken_and_named(tmp_path, img, caplog):
    images = {t1w_path('01', extra=extra): img for extra in ('run-2_', 'run-1_')}
    root = write_bids(tmp_path, images | {flair_path('01'): img, mask_path('01'): img})
    (inputs,) = find(root, modality='FLAIR')['01']
    assert inputs.tissue_file.name == 'sub-01_run-1_T1w.nii.gz'
    assert 'sub-01_FLAIR: 2 T1w fit equally (sub-01_run-1_T1w.nii.gz, sub-01_run-2_T1w.nii.gz)' in caplog.text
    (inputs,) = find(root, modality='FLAIR', filters={'t1w': {'run': 2}})['01']
    assert inputs.tissue_file.name == 'sub-01_run-2_T1w.nii.gz'


def test_flair_without_t1w_of_its_session_says_so(tmp_path, img):
    images = {flair_path('01', '1'): img, mask_path('01', '1'): img, t1w_path('01', '2'): img}
    root = write_bids(tmp_path, images)
    (inputs,) = find(root, modality='FLAIR')['01']
    assert inputs.problem == 'no T1w of the same session, in which white matter is found'
    (root / mask_path('01', '1')).unlink()
    assert find(root, modality='FLAIR')['01'][0].problem == 'no lesion mask'  # nothing to do is no failure


def test_brain_mask_of_a_flair_is_that_of_its_t1w(tmp_path, img):
    images = {flair_path('01', extra='run-1_'): img, t1w_path('01'): img, mask_path('01'): img}
    root = write_bids(tmp_path, images | {mask_path('01', name='desc-brain_mask'): img})
    (inputs,) = find(root, modality='FLAIR')['01']
    assert inputs.brain_mask_file == root / mask_path('01', name='desc-brain_mask')


def test_flair_filter_chooses_flair_images(tmp_path, img):
    paths = [flair_path('01', extra='acq-a_'), flair_path('01', extra='acq-b_'), t1w_path('01'), mask_path('01')]
    root = write_bids(tmp_path, dict.fromkeys(paths, img))
    found = find(root, modality='FLAIR', filters={'flair': {'acquisition': 'b'}})['01']
    assert [inputs.name for inputs in found] == ['sub-01_acq-b_FLAIR']


@pytest.mark.parametrize('modality', ['T1w', 'FLAIR'])
def test_of_two_masks_that_in_the_space_of_the_image_is_taken(tmp_path, img, modality):
    images = {path('01'): img for path in (t1w_path, flair_path)}
    masks = {mask_path('01', name=f'space-{space}_label-lesion_mask'): img for space in ('T1w', 'FLAIR')}
    root = write_bids(tmp_path, images | masks)
    (inputs,) = find(root, modality=modality)['01']
    assert inputs.lesion_mask_file.name == f'sub-01_space-{modality}_label-lesion_mask.nii.gz'


def test_run_depends_on_every_file_that_it_reads(tmp_path):
    names = ('image_file', 'lesion_mask_file', 'tissue_file', 'brain_mask_file')
    files = {name: tmp_path / name for name in names}
    for name, path in files.items():
        path.write_text(name)
    inputs = layout_inputs.Inputs('01', None, 'sub-01_FLAIR', relative_path='x', **files)
    hashes = [layout_derivatives.hash_run(inputs, {}, 'abc', '1')]
    for path in files.values():
        path.write_text('another')
        hashes.append(layout_derivatives.hash_run(inputs, {}, 'abc', '1'))
    assert len(set(hashes)) == 5


# Training data


def relative(found, root):
    return [(label, *(str(path).removeprefix(f'{root}/') for path in paths)) for label, *paths in found]


def test_patients_have_image_t1w_and_lesion_mask(tmp_path, img):
    images = {path('02'): img for path in (t1w_path, flair_path, mask_path)}
    images |= {path('01', session): img for path in (t1w_path, flair_path, mask_path) for session in '12'}
    root = write_bids(tmp_path, images)
    where = [('01', '1'), ('01', '2'), ('02', None)]
    assert relative(datasets.find_patients(root, 'FLAIR'), root) == [
        (label, flair_path(label, session), t1w_path(label, session), mask_path(label, session))
        for label, session in where
    ]
    assert relative(datasets.find_patients(root, 'T1w'), root) == [
        (label, t1w_path(label, session), t1w_path(label, session), mask_path(label, session))
        for label, session in where
    ]


def test_patients_who_lack_something_are_left_out(tmp_path, img):
    images = {path('01'): img for path in (t1w_path, flair_path, mask_path)}
    images |= {t1w_path('02'): img, flair_path('02'): img}  # no mask
    images |= {t1w_path('03'): img, mask_path('03'): img}  # no FLAIR
    images |= {flair_path('04'): img, mask_path('04'): img}  # no T1w
    images |= {t1w_path('05', '1'): img, flair_path('05', '1'): img, mask_path('05', '2'): img}  # of another session
    images |= {t1w_path('06'): img, flair_path('06'): img, mask_path('06', name='label-GM_mask'): img}
    root = write_bids(tmp_path, images)
    assert [label for label, *_ in datasets.find_patients(root, 'FLAIR')] == ['01']
    assert [label for label, *_ in datasets.find_patients(root, 'T1w')] == ['01', '03']


def test_lesion_mask_of_a_patient_is_not_taken_for_another_mask(tmp_path, img):
    masks = {mask_path('01', name=name): img for name in ('desc-brain_mask', 'label-L_mask', 'label-GM_mask')}
    root = write_bids(tmp_path, {t1w_path('01'): img, flair_path('01'): img} | masks)
    ((*_, mask_file),) = datasets.find_patients(root, 'FLAIR')
    assert mask_file.endswith('sub-01_label-L_mask.nii.gz')


def test_patients_with_two_raters_are_left_out(tmp_path, img):
    names = ('label-lesion_desc-rater1_mask', 'label-lesion_desc-rater2_mask')
    images = {path('01'): img for path in (t1w_path, flair_path, mask_path)}
    images |= {t1w_path('02'): img, flair_path('02'): img} | {mask_path('02', name=name): img for name in names}
    root = write_bids(tmp_path, images)
    assert [label for label, *_ in datasets.find_patients(root, 'FLAIR')] == ['01']


@pytest.mark.parametrize('modality', ['FLAIR', 'T2w'])
def test_dataset_without_patients_says_what_is_missing(tmp_path, img, modality):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01'): img})
    with pytest.raises(FileNotFoundError, match=f'no {modality} with T1w and lesion mask'):
        datasets.find_patients(root, modality)


def test_lesion_masks_are_found_at_any_depth_and_sorted(tmp_path, img):
    names = (
        'label-lesion_mask',
        'label-lesion_desc-rater1_mask',
        'label-L_mask',
        'desc-brain_mask',
        'label-lesion_roi',
    )
    images = {mask_path(subject, name=name): img for subject in ('02', '01') for name in names}
    root = write_bids(tmp_path, images)
    found = datasets.find_lesion_masks(root)
    assert [path.relative_to(root).as_posix() for path in found] == [
        mask_path(subject, name=name)
        for subject in ('01', '02')
        for name in ('label-lesion_desc-rater1_mask', 'label-lesion_mask')
    ]
    assert datasets.find_lesion_masks(str(found[0].parent)) == found[:2]


@pytest.mark.parametrize('folder', ['.', 'nowhere'])
def test_folder_without_lesion_masks_is_named(tmp_path, img, folder):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01', name='desc-brain_mask'): img})
    with pytest.raises(FileNotFoundError, match=rf'{root}.*--lesion-masks'):
        datasets.find_lesion_masks(root / folder)


# Outputs


def test_output_names_follow_bids(tmp_path):
    inputs = layout_inputs.Inputs('01', '1', 'sub-01_ses-1_acq-x_run-2_T1w', tmp_path, 'x')
    files = {
        name: path.relative_to(tmp_path).as_posix() for name, path in naming.output_files(tmp_path, inputs, 2).items()
    }
    stem = 'sub-01/ses-1/anat/sub-01_ses-1_acq-x_run-2'
    assert files == {
        'filled': f'{stem}_desc-filled_T1w.nii.gz',
        'sd': f'{stem}_desc-filledsd_T1w.nii.gz',
        'used_mask': f'{stem}_label-lesion_desc-used_mask.nii.gz',
        'lesions': f'{stem}_desc-lesions_qc.tsv',
    }
    assert naming.sidecar(tmp_path / files['filled']).name == 'sub-01_ses-1_acq-x_run-2_desc-filled_T1w.json'


def test_outputs_of_t1w_and_flair_never_share_a_name(tmp_path):
    t1w, flair = (
        naming.output_files(tmp_path, layout_inputs.Inputs('01', None, f'sub-01_{modality}', tmp_path, 'x'), 2)
        for modality in ('T1w', 'FLAIR')
    )
    assert not set(t1w.values()) & set(flair.values())
    assert {name: path.name for name, path in flair.items()} == {
        'filled': 'sub-01_desc-filled_FLAIR.nii.gz',
        'sd': 'sub-01_desc-filledsd_FLAIR.nii.gz',
        'used_mask': 'sub-01_space-FLAIR_label-lesion_desc-used_mask.nii.gz',
        'lesions': 'sub-01_space-FLAIR_desc-lesions_qc.tsv',
    }


def test_written_file_is_whole_and_leaves_nothing_else(tmp_path):
    layout_files.write_bytes(tmp_path / 'a' / 'b.txt', b'12')
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['b.txt']


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    layout_files.write_bytes(tmp_path / 'b.txt', b'old')
    monkeypatch.setattr(layout_derivatives.os, 'replace', lambda *_: (_ for _ in ()).throw(OSError(28, 'disk full')))
    with pytest.raises(OSError, match='disk full'):
        layout_files.write_bytes(tmp_path / 'b.txt', b'new')
    assert (tmp_path / 'b.txt').read_bytes() == b'old'
    assert len(list(tmp_path.iterdir())) == 1


def test_same_image_gives_same_bytes(tmp_path, img):
    layout_files.write_image(tmp_path / '1.nii.gz', img)
    layout_files.write_image(tmp_path / '2.nii.gz', img)
    assert (tmp_path / '1.nii.gz').read_bytes() == (tmp_path / '2.nii.gz').read_bytes()
    assert gzip.decompress((tmp_path / '1.nii.gz').read_bytes()) == img.to_bytes()


def test_tsv_writes_missing_values_as_na_and_reads_them_back(tmp_path):
    layout_files.write_tsv(tmp_path / 't.tsv', [{'a': 1.5, 'b': float('nan')}, {'b': 'x'}], ['a', 'b'])
    assert (tmp_path / 't.tsv').read_text() == 'a\tb\n1.5\tn/a\nn/a\tx\n'
    assert text_files.read_tsv(tmp_path / 't.tsv') == [{'a': 1.5, 'b': None}, {'a': None, 'b': 'x'}]


def test_tsv_of_a_spreadsheet_is_read(tmp_path):
    """It starts with a byte order mark, and its lines may be shorter or longer than the first."""
    (tmp_path / 't.tsv').write_bytes('a\tb\r\n1\r\n2\té\tx\r\n'.encode('utf-8-sig'))
    short, long = text_files.read_tsv(tmp_path / 't.tsv')
    assert short == {'a': 1, 'b': None}
    assert (long['a'], long['b']) == (2, 'é')


def test_seed_depends_on_path_and_random_seed_only(tmp_path):
    def inputs(path, root):
        return layout_inputs.Inputs('01', None, 'sub-01_T1w', root / path, path)

    assert layout_derivatives.seed_of(inputs('a', tmp_path), 0) == layout_derivatives.seed_of(
        inputs('a', tmp_path / 'elsewhere'), 0
    )
    assert layout_derivatives.seed_of(inputs('a', tmp_path), 0) != layout_derivatives.seed_of(inputs('b', tmp_path), 0)
    assert layout_derivatives.seed_of(inputs('a', tmp_path), 0) != layout_derivatives.seed_of(inputs('a', tmp_path), 1)


def test_status_table_joins_runs_and_keeps_the_latest(tmp_path):
    status = {'status': 'filled', 'images': 1, 'message': None}
    layout_status.write_status(tmp_path, '02', '20260101-000000_a', {**status, 'status': 'failed'})
    layout_status.write_status(tmp_path, '01', '20260101-000001_b', status)
    layout_status.write_status(tmp_path, '02', '20260101-000002_c', status)
    rows = text_files.read_tsv(tmp_path / 'participants.tsv')
    assert [(row['participant_id'], row['status']) for row in rows] == [('sub-01', 'filled'), ('sub-02', 'filled')]


def test_a_status_costs_no_more_after_many_runs_and_the_end_of_a_run_mends_the_table(tmp_path, monkeypatch):
    for run in ('20260101-000000_a', '20260101-000001_b', '20260101-000002_c'):
        for subject in ('01', '02', '03'):
            layout_status.write_status(tmp_path, subject, run, {'status': 'filled', 'message': run})
    naming.log_dir(tmp_path, '02', '20260101-000003_d').mkdir()  # of a run that was killed
    read, read_json = [], layout_status.text_files.read_json
    monkeypatch.setattr(layout_status.text_files, 'read_json', lambda path: read.append(path) or read_json(path))
    layout_status.write_status(tmp_path, '01', '20260101-000003_d', {'status': 'failed'})
    assert not read
    whole = (tmp_path / 'participants.tsv').read_bytes()
    rows = text_files.read_tsv(tmp_path / 'participants.tsv')
    assert [row['status'] for row in rows] == ['failed', 'filled', 'filled']
    assert rows[1]['message'] == '20260101-000002_c'
    (tmp_path / 'participants.tsv').write_bytes(whole.replace(b'sub-03', b'sub-04'))
    layout_status.write_table(tmp_path)
    assert [path.parts[-4] for path in read] == ['sub-01', 'sub-02', 'sub-03']
    assert (tmp_path / 'participants.tsv').read_bytes() == whole
    (tmp_path / 'participants.tsv').write_text('damaged')
    layout_status.write_status(tmp_path, '01', '20260101-000003_d', {'status': 'failed'})
    assert (tmp_path / 'participants.tsv').read_bytes() == whole


def test_dataset_description_names_sources(tmp_path, img):
    root = write_bids(tmp_path / 'in', {t1w_path('01'): img, mask_path('01'): img})
    layout_derivatives.write_dataset_files(
        tmp_path / 'out', root, indexing.find_derivatives(root), '1.2.3', {'md': 'x'}
    )
    description = json.loads((tmp_path / 'out' / 'dataset_description.json').read_text())
    assert description['DatasetType'] == 'derivative'
    assert description['GeneratedBy'][0]['Version'] == '1.2.3'
    assert set(description['DatasetLinks']) == {'raw', 'lesions'}
    assert not any(line.endswith('/') for line in (tmp_path / 'out' / '.bidsignore').read_text().splitlines())


def test_rescans_are_of_one_person(tmp_path):
    rows = ['participant_id\trescan_of', 'sub-01\tn/a', 'sub-02\tsub-01', 'sub-03\t']
    (tmp_path / 'participants.tsv').write_text('\n'.join(rows) + '\n')
    assert datasets.find_people(tmp_path) == {'sub-01': 'sub-01', 'sub-02': 'sub-01', 'sub-03': 'sub-03'}


# Synthesis


def inputs_of(root, modality='T1w', **options):
    return find(root, modality=modality, **options)['01'][0]


def test_image_without_a_mask_can_be_used_where_none_is_needed(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01'): img, flair_path('01'): img})
    for modality in ('T1w', 'FLAIR'):
        inputs = inputs_of(root, modality, needs_mask=False)
        assert inputs.problem == ''
        assert inputs.lesion_mask_file is None
        assert inputs_of(root, modality).problem == layout_inputs.NO_MASK


def test_flair_without_t1w_and_several_masks_stay_problems_where_no_mask_is_needed(tmp_path, img):
    other = mask_path('01', name='label-lesion_desc-b_mask')
    root = write_bids(tmp_path, {flair_path('01'): img, mask_path('01'): img, other: img})
    assert '2 lesion masks fit sub-01_FLAIR' in inputs_of(root, 'FLAIR', needs_mask=False).problem
    (root / other).unlink()
    assert 'no T1w of the same session' in inputs_of(root, 'FLAIR', needs_mask=False).problem


def test_images_of_a_visit_have_one_t1w(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01', 'a'): img, flair_path('01', 'a'): img, t1w_path('01', 'b'): img})
    on_t1w, on_flair = (inputs_of(root, modality, needs_mask=False) for modality in ('T1w', 'FLAIR'))
    assert on_t1w.t1w_file == on_flair.t1w_file == root / t1w_path('01', 'a')
    assert on_t1w.t1w_path == on_flair.t1w_path == on_t1w.relative_path == t1w_path('01', 'a')


def test_names_of_a_synthesis(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01', 'a'): img, flair_path('01', 'a'): img})
    on_t1w = naming.synth_files('out', inputs_of(root, needs_mask=False))
    on_flair = naming.synth_files('out', inputs_of(root, 'FLAIR', needs_mask=False), 'synth12')
    assert {path.parent.as_posix() for path in (on_t1w | on_flair).values()} == {'out/sub-01/ses-a/anat'}
    assert {name: path.name for name, path in on_t1w.items()} == {
        'synth': 'sub-01_ses-a_desc-synth_T1w.nii.gz',
        'mask': 'sub-01_ses-a_label-lesion_desc-synth_mask.nii.gz',
        'new_mask': 'sub-01_ses-a_label-lesion_desc-synthnew_mask.nii.gz',
        'changed_mask': 'sub-01_ses-a_label-lesion_desc-synthchanged_mask.nii.gz',
        'lesions': 'sub-01_ses-a_desc-synthlesions_qc.tsv',
    }
    assert {name: path.name for name, path in on_flair.items()} == {
        'synth': 'sub-01_ses-a_desc-synth12_FLAIR.nii.gz',
        'mask': 'sub-01_ses-a_space-FLAIR_label-lesion_desc-synth12_mask.nii.gz',
        'new_mask': 'sub-01_ses-a_space-FLAIR_label-lesion_desc-synth12new_mask.nii.gz',
        'changed_mask': 'sub-01_ses-a_space-FLAIR_label-lesion_desc-synth12changed_mask.nii.gz',
        'lesions': 'sub-01_ses-a_space-FLAIR_desc-synth12lesions_qc.tsv',
    }


def test_files_are_written_if_they_their_sidecars_and_the_hash_are_there(tmp_path):
    files = [tmp_path / 'a_T1w.nii.gz', tmp_path / 'b_qc.tsv']
    assert not layout_derivatives.are_written(files[0], files, 'abc')
    for path in files:
        path.write_bytes(b'')
        layout_files.write_json(naming.sidecar(path), {'RunHash': 'abc'})
    assert layout_derivatives.are_written(files[0], files, 'abc')
    assert not layout_derivatives.are_written(files[0], files, 'abd')
    naming.sidecar(files[1]).unlink()
    assert not layout_derivatives.are_written(files[0], files, 'abc')


def test_seed_depends_on_the_path_and_the_random_seed():
    seeds = [layout_derivatives.seed_of_path(path, seed) for path, seed in (('a', 0), ('a', 0), ('a', 1), ('b', 0))]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**60 for seed in seeds)


def test_crash_is_noted_with_its_traceback_and_told_in_one_line(tmp_path):
    try:
        raise ValueError('two\nlines')
    except ValueError as error:
        line = layout_status.note_crash(error, 'sub-01_T1w', '01', 'now', tmp_path)
    assert line == 'two lines'
    assert 'Traceback' in (tmp_path / 'sub-01/log/now/crash-sub-01_T1w.txt').read_text()
    assert layout_status.note_crash(KeyError(), 'x', '01', 'now', tmp_path) == 'KeyError'


# Derivatives and their index


def derivative(folder, img, name, text=None):
    """A folder of derivatives with one file of sub-01, and a description of our own."""
    write_description(folder, DatasetType='derivative', GeneratedBy=[{'Name': 'rater'}])
    if text is not None:
        (folder / 'dataset_description.json').write_text(text)
    (folder / 'sub-01/anat').mkdir(parents=True)
    nib.save(img, folder / f'sub-01/anat/sub-01_{name}.nii.gz')
    return folder


@pytest.mark.parametrize('text', [
    '{"GeneratedBy": null}', '{"GeneratedBy": {"Name": "x"}}', '{"GeneratedBy": ["x"]}', '["x"]', '{"Name": ',
])  # fmt: skip
def test_derivative_with_a_broken_description_is_named_and_left_out(tmp_path, img, caplog, text):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01'): img})
    broken = derivative(root / 'derivatives/broken', img, 'desc-brain_mask', text)
    assert find(root)['01'][0].lesion_mask_file == root / mask_path('01')
    assert f'{broken}/dataset_description.json' in caplog.text
    with pytest.raises(errors.UsageError, match='derivatives/broken/dataset_description.json'):  # it was asked for
        indexing.open_layout(root, [broken])


def test_two_derivatives_in_folders_of_the_same_name_are_both_searched(tmp_path, img):
    root = write_bids(tmp_path / 'data', {t1w_path('01'): img})
    derivatives = {name: derivative(tmp_path / name / 'masks', img, f'label-lesion_desc-{name}_mask') for name in 'ab'}
    bids_layout = indexing.open_layout(root, derivatives.values())
    for name in 'ab':
        (inputs,) = pairing.find_inputs(bids_layout, derivatives, mask_desc=name)['01']
        assert inputs.sources[1] == f'bids:{name}:sub-01/anat/sub-01_label-lesion_desc-{name}_mask.nii.gz'


def test_index_of_one_dataset_is_not_used_for_another(tmp_path, img):
    roots = [write_bids(tmp_path / name, {t1w_path(name): img, mask_path(name): img}) for name in ('01', '02')]
    for root in roots:
        derivatives = indexing.find_derivatives(root)
        bids_layout = indexing.open_layout(root, derivatives.values(), tmp_path / 'index')
        (inputs,) = pairing.find_inputs(bids_layout, derivatives)[root.name]
        assert inputs.lesion_mask_file == root / mask_path(root.name)
    assert len(list((tmp_path / 'index').glob('*/layout_index.sqlite'))) == 4


def test_index_of_a_dataset_is_used_again(tmp_path, img):
    root = write_bids(tmp_path / 'data', {t1w_path('01'): img})
    indexing.open_layout(root, database_dir=tmp_path / 'index')
    nib.save(img, root / t1w_path('01', extra='run-2_'))
    found = indexing.open_layout(root, database_dir=tmp_path / 'index').get(suffix='T1w', extension='nii.gz')
    assert [file.filename for file in found] == ['sub-01_T1w.nii.gz']


def test_index_in_a_container_is_not_that_of_the_dataset_that_was_at_its_place(tmp_path, img):
    for subject in ('01', '02'):
        root = write_bids(tmp_path / 'data', {t1w_path(subject): img})
        assert indexing.open_layout(root, database_dir=tmp_path / 'index').get_subjects() == [subject]
        root.rename(tmp_path / f'other{subject}')


# Which file is for which image


def find_one(tmp_path, img, paths, name='sub-01_T1w', **options):
    """What is found for one image of a dataset of files that hold nothing."""
    root = write_bids(tmp_path / 'data', dict.fromkeys(paths, img))
    return next(inputs for inputs in find(root, **options)['01'] if inputs.name == name)


BOLD = ['derivatives/lesions/sub-01/ses-1/func/sub-01_ses-1_task-rest_' + name
        for name in ('desc-brain_mask.nii.gz', 'dseg.nii.gz')]  # fmt: skip


@pytest.mark.parametrize('kind', ['desc-brain_mask', 'desc-aseg_dseg'])
def test_files_of_bold_runs_are_not_those_of_the_t1w(tmp_path, img, kind):
    anat = mask_path('01', name=kind)  # fMRIPrep writes anatomical results of several sessions without session
    inputs = find_one(tmp_path, img, [t1w_path('01', '1'), t1w_path('01', '2'), anat, *BOLD], 'sub-01_ses-1_T1w')
    assert (inputs.brain_mask_file, inputs.segmentation) == (None, None)


def test_brain_mask_beside_that_of_a_bold_run_is_used(tmp_path, img):
    paths = [mask_path('01', name='desc-brain_mask'), mask_path('01', name='task-rest_desc-brain_mask')]
    paths += ['derivatives/lesions/sub-01/func/sub-01_desc-brain_mask.nii.gz']
    inputs = find_one(tmp_path, img, [t1w_path('01'), *paths])
    assert str(inputs.brain_mask_file).endswith(paths[0])


@pytest.mark.parametrize(('image', 'mask', 'used'), [
    ('acq-gre_', 'acq-mprage_', False), ('acq-mprage_', 'acq-mprage_', True), ('acq-mprage_', '', False),
])  # fmt: skip
def test_brain_mask_and_classes_are_those_of_the_acquisition(tmp_path, img, image, mask, used):
    paths = [t1w_path('01', extra=extra) for extra in ('acq-mprage_', 'acq-gre_')]
    paths += [mask_path('01', extra=mask, name=name) for name in ('desc-brain_mask', 'dseg')]
    inputs = find_one(tmp_path, img, paths, f'sub-01_{image}T1w')
    assert (inputs.brain_mask_file is not None, inputs.segmentation is not None) == (used, used)


def test_files_that_name_just_what_the_image_does_are_its_own_if_the_others_have_theirs(tmp_path, img):
    paths = [t1w_path('01'), t1w_path('01', extra='ce-gad_')]
    names = ('desc-brain_mask', 'dseg', 'label-lesion_mask')
    plain, gad = ({name: mask_path('01', extra=extra, name=name) for name in names} for extra in ('', 'ce-gad_'))
    root = write_bids(tmp_path, dict.fromkeys([*paths, *plain.values(), *gad.values()], img))
    for inputs in find(root)['01']:
        own = gad if 'gad' in inputs.name else plain
        assert inputs.brain_mask_file == root / own['desc-brain_mask']
        assert inputs.segmentation.files == (root / own['dseg'],)
        assert inputs.lesion_mask_file == root / own['label-lesion_mask']
        assert not inputs.problem
    (root / gad['label-lesion_mask']).unlink()
    assert [inputs.lesion_mask_file for inputs in find(root)['01']] == [root / plain['label-lesion_mask']] * 2


def test_brain_mask_that_names_less_than_the_only_image_is_used(tmp_path, img):
    paths = [t1w_path('01', '1', extra='acq-x_'), mask_path('01', name='desc-brain_mask'), mask_path('01', name='dseg')]
    inputs = find_one(tmp_path, img, paths, 'sub-01_ses-1_acq-x_T1w')
    assert inputs.brain_mask_file.name == 'sub-01_desc-brain_mask.nii.gz'
    assert inputs.segmentation.files[0].name == 'sub-01_dseg.nii.gz'


@pytest.mark.parametrize('options', [{'session_labels': ['2']}, {'filters': {'t1w': {'session': '2'}}}])
def test_a_mask_for_two_sessions_is_refused_where_one_is_chosen(tmp_path, img, options):
    paths = [t1w_path('01', '1'), t1w_path('01', '2'), mask_path('01'), mask_path('01', name='desc-brain_mask')]
    inputs = find_one(tmp_path, img, paths, 'sub-01_ses-2_T1w', **options)
    assert 'fits 2 images of sub-01, sub-01_ses-2_T1w among them, of 2 sessions' in inputs.problem
    assert 'of this one: sub-01_ses-2_label-lesion_mask.nii.gz' in inputs.problem
    assert inputs.brain_mask_file is None
    root = tmp_path / 'data'
    (root / mask_path('01')).rename((root / mask_path('01')).with_name('sub-01_ses-2_label-lesion_mask.nii.gz'))
    assert [(found.session, found.problem) for found in find(root)['01']] == [('1', layout_inputs.NO_MASK), ('2', '')]


@pytest.mark.parametrize('mask', ['lst/sub-01/space-t1w_seg-lst.nii.gz', 'samseg/sub-01/seg.mgz'])
def test_mask_of_a_tool_serves_both_runs_of_its_visit(tmp_path, img, mask):
    root = write_bids(tmp_path, {t1w_path('01', extra=run): img for run in ('run-1_', 'run-2_')})
    (root / 'derivatives' / mask).parent.mkdir(parents=True)
    (root / 'derivatives' / mask).write_text('')
    (root / 'derivatives' / mask).with_name('samseg.stats').write_text('Lesions')
    assert all(inputs.lesion_mask_file == root / 'derivatives' / mask for inputs in find(root)['01'])
    (chosen,) = find(root, filters={'t1w': {'run': 2}})['01']
    assert chosen.lesion_mask_file == root / 'derivatives' / mask


def test_labels_of_freesurfer_for_two_runs_are_not_used(tmp_path, img, caplog):
    root = write_bids(tmp_path, {t1w_path('01', extra=run): img for run in ('run-1_', 'run-2_')})
    aseg = root / 'derivatives/fs/sub-01/mri/aseg.mgz'
    aseg.parent.mkdir(parents=True)
    aseg.write_text('')
    assert [inputs.segmentation for inputs in find(root)['01']] == [None, None]
    assert f'{aseg} is not used: it could be for each of 2 T1w' in caplog.text
    (root / t1w_path('01', extra='run-2_')).unlink()
    assert find(root)['01'][0].segmentation.files == (aseg,)


@pytest.mark.parametrize('options', [
    {'mask_desc': 'rater1'}, {'mask_labels': ('wml',)}, {'filters': {'lesion_mask': {'suffix': 'mask'}}},
])  # fmt: skip
def test_mask_of_a_tool_is_not_used_where_another_was_asked_for(tmp_path, img, options):
    root = write_bids(tmp_path, {t1w_path('01'): img})
    mask = root / 'derivatives/lst/sub-01/space-t1w_seg-lst.nii.gz'
    mask.parent.mkdir(parents=True)
    mask.write_text('')
    assert find(root)['01'][0].lesion_mask_file == mask
    assert find(root, **options)['01'][0].problem == layout_inputs.NO_MASK


@pytest.mark.parametrize('link', [mask_path('01'), 'derivatives/lesions/sub-01'])
def test_source_that_is_a_link_to_elsewhere_has_its_own_name(tmp_path, img, link):
    root = write_bids(tmp_path / 'data', {t1w_path('01'): img, mask_path('01'): img})
    (tmp_path / 'archive').mkdir()
    moved = (root / link).rename(tmp_path / 'archive/x')
    (root / link).symlink_to(moved)
    assert find(root)['01'][0].sources[1] == 'bids:lesions:sub-01/anat/sub-01_label-lesion_mask.nii.gz'


def test_source_in_no_dataset_is_a_file_uri(tmp_path):
    (tmp_path / 'there').symlink_to(tmp_path / 'fs')
    assert naming.uri(tmp_path / 'there/x', {'fs': tmp_path / 'fs'}, tmp_path / 'raw') == 'bids:fs:x'
    assert naming.uri(tmp_path / 'a b', {}, tmp_path / 'raw') == f'file://{tmp_path}/a%20b'


def test_linked_folder_of_freesurfer_is_named_by_its_place(tmp_path, img):
    root = write_bids(tmp_path / 'data', {t1w_path('01'): img})
    (tmp_path / 'archive/mri').mkdir(parents=True)
    (tmp_path / 'archive/mri/aseg.mgz').write_text('')
    (root / 'derivatives/fs').mkdir(parents=True)
    (root / 'derivatives/fs/sub-01').symlink_to(tmp_path / 'archive')
    assert find(root)['01'][0].sources[-1] == 'bids:fs:sub-01/mri/aseg.mgz'


FLAIRS = [flair_path('01', extra=extra) for extra in ('acq-2D_', 'acq-3D_')]


def test_mask_that_names_a_flair_is_for_the_only_t1w_of_its_visit(tmp_path, img):
    mask = mask_path('01', extra='acq-3D_', name='space-FLAIR_label-lesion_mask')
    inputs = find_one(tmp_path, img, [t1w_path('01'), *FLAIRS, mask])
    assert str(inputs.lesion_mask_file).endswith(mask)
    assert inputs.flair_file.name == 'sub-01_acq-3D_FLAIR.nii.gz'
    assert inputs.problem == ''


def test_mask_that_names_flairs_of_two_visits_is_for_no_t1w(tmp_path, img):
    mask = mask_path('01', extra='acq-3D_', name='space-FLAIR_label-lesion_mask')
    paths = [path for s in '12' for path in (t1w_path('01', s), flair_path('01', s, extra='acq-3D_'))]
    assert find_one(tmp_path, img, [*paths, mask], 'sub-01_ses-1_T1w').problem == layout_inputs.NO_MASK


def test_two_masks_on_two_flairs_of_a_t1w_are_refused(tmp_path, img):
    masks = [mask_path('01', extra=extra, name='space-FLAIR_label-lesion_mask') for extra in ('acq-2D_', 'acq-3D_')]
    assert '2 lesion masks fit sub-01_T1w' in find_one(tmp_path, img, [t1w_path('01'), *FLAIRS, *masks]).problem


def test_of_two_flairs_the_first_is_taken_and_both_are_named(tmp_path, img, caplog):
    inputs = find_one(tmp_path, img, [t1w_path('01'), *FLAIRS, mask_path('01', name='space-FLAIR_label-lesion_mask')])
    assert inputs.flair_file.name == 'sub-01_acq-2D_FLAIR.nii.gz'
    assert 'sub-01_T1w: 2 FLAIR fit equally (sub-01_acq-2D_FLAIR.nii.gz, sub-01_acq-3D_FLAIR.nii.gz)' in caplog.text


def test_probabilities_of_one_run_are_found_beside_the_mask_of_another(tmp_path, img):
    masks = [mask_path('01', extra='run-1_'), mask_path('01', extra='run-2_', name='label-lesion_probseg')]
    paths = [t1w_path('01', extra=run) for run in ('run-1_', 'run-2_')]
    inputs = find_one(tmp_path, img, [*paths, *masks], 'sub-01_run-2_T1w')
    assert str(inputs.lesion_mask_file).endswith(masks[1])
