"""Promise 2: nothing that this app did not write is ever replaced or removed, whatever OUTPUT_DIR is."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from bids_examples import flair_path, mask_path, t1w_path, write_bids, write_description

from bids_lesionfill.app import cli as app_cli
from bids_lesionfill.app import exit_codes, single_file
from bids_lesionfill.evaluate import cli as evaluate_cli
from bids_lesionfill.evaluate import scores
from bids_lesionfill.layout import derivatives, errors, ownership, raw
from bids_lesionfill.readerstudy import cli as readerstudy_cli
from bids_lesionfill.train import cli as train_cli
from bids_lesionfill.train import plans

MASKS = 'derivatives/lesions'


def contents(folder):
    """Bytes of all files below a folder, and where its links lead."""
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def filled_with(value):
    return nib.Nifti1Image(np.full((4, 4, 4), value, np.uint8), np.eye(4))


@pytest.fixture
def site(tmp_path):
    """Factory: a raw dataset with one participant of the same label; its T1w holds a value."""

    def build(name, value):
        root = write_bids(
            tmp_path / name, {t1w_path('01'): filled_with(value), mask_path('01'): filled_with(1),
                              flair_path('01'): filled_with(value)}
        )  # fmt: skip
        (root / 'participants.tsv').write_text('participant_id\tedss\nsub-01\t2.5\n')
        return root

    return build


@pytest.fixture
def call(model_dir):
    def run(root, out, *more, level='participant'):
        return app_cli.main([str(root), str(out), level, '--model', str(model_dir), *more])

    return run


def prep(root):
    """A derivative of fMRIPrep."""
    folder = root / 'derivatives/fmriprep'
    write_description(folder, DatasetType='derivative', GeneratedBy=[{'Name': 'fMRIPrep'}])
    (folder / 'sub-01.html').write_text('report of fMRIPrep')
    return folder


def notes(root):
    """A folder with a file of somebody, which is no dataset."""
    folder = root.parent / 'notes'
    (folder / 'sub-01').mkdir(parents=True)
    (folder / 'sub-01/diary.txt').write_text('mine')
    return folder


def unreadable(root):
    folder = notes(root)
    (folder / 'dataset_description.json').write_text('{"Name": "x",}')
    return folder


FOREIGN = {
    'masks': (lambda root: root / MASKS, 'another derivative dataset'),
    'fmriprep': (prep, 'made by fMRIPrep'),
    'notes': (notes, 'holds files of others'),
    'unreadable': (unreadable, 'dataset_description.json cannot be read as JSON'),
}


@pytest.mark.parametrize('more', [[], ['--output-layout', 'raw'], ['--mode', 'synth', '--modality', 'FLAIR'],
                                  ['--boilerplate-only'], ['--reports-only']])  # fmt: skip
@pytest.mark.parametrize('foreign', FOREIGN)
@pytest.mark.parametrize('level', ['participant', 'group'])
def test_promise_2_a_folder_of_others_is_refused_before_anything_is_written(
    site, tmp_path, caplog, foreign, more, level
):
    root = site('data', 1)
    make, words = FOREIGN[foreign]
    out = make(root)
    if 'raw' in more and out.is_relative_to(root):
        out = shutil.move(out, tmp_path / 'elsewhere')
    before = contents(tmp_path)
    assert app_cli.main([str(root), str(out), level, *more]) == exit_codes.USAGE
    assert contents(tmp_path) == before
    (error,) = [record.getMessage() for record in caplog.records if record.levelname == 'ERROR']
    if level == 'group' and more in (['--boilerplate-only'], ['--reports-only']):
        assert error == f'{more[0]}: only with the level participant'
        return
    assert words in error
    assert str(out) in error


@pytest.mark.parametrize('more', [[], ['--output-layout', 'raw']])
def test_promise_2_another_raw_dataset_is_refused(site, tmp_path, call, caplog, more):
    root, other = site('site1', 1), site('site2', 2)
    before = contents(tmp_path)
    assert call(root, other, *more) == exit_codes.USAGE
    assert contents(tmp_path) == before
    assert "another raw dataset ('test', made by nobody known)" in caplog.text


@pytest.mark.parametrize('version', ['0.2.0', 'now'])
@pytest.mark.parametrize('more', [[], ['--output-layout', 'raw']])
def test_promise_2_own_output_of_another_dataset_is_refused_and_of_the_same_goes_on(
    dataset, make_phantom, tmp_path, call, caplog, more, version
):
    root, out = dataset(['01']), tmp_path / 'out'
    other = tmp_path / 'other'
    write_bids(other, {t1w_path('01'): make_phantom(seed=9).t1w_img, mask_path('01'): make_phantom().lesion_mask_img})
    assert call(root, out, *more) == exit_codes.OK
    folder = out / raw.DERIVATIVES if more else out
    if version == '0.2.0':
        description = json.loads((folder / 'dataset_description.json').read_text())
        del description['SourceImages']
        (folder / 'dataset_description.json').write_text(json.dumps(description))
    before = contents(out)
    caplog.clear()
    assert call(other, out, *more) == exit_codes.USAGE
    assert contents(out) == before
    assert f'is the output of bids_lesionfill for another dataset, {root.resolve()}' in caplog.text
    assert call(root, out, *more) == exit_codes.OK
    assert 'already done' in caplog.text or not caplog.text.count('lesion(s) filled')


def test_the_other_layout_in_the_folder_of_one_is_refused(dataset, tmp_path, call):
    root = dataset(['01'])
    assert call(root, tmp_path / 'raw', '--output-layout', 'raw') == exit_codes.OK
    assert call(root, tmp_path / 'raw') == exit_codes.USAGE
    assert call(root, tmp_path / 'out') == exit_codes.OK
    before = contents(tmp_path)
    assert call(root, tmp_path / 'out', '--output-layout', 'raw') == exit_codes.USAGE
    assert contents(tmp_path) == before


# Which dataset an output was made from


def described(root, out):
    derivatives.write_description(out, root, {}, '1', ownership.note_source(root))


def test_a_dataset_that_was_moved_or_copied_is_the_same(site, tmp_path):
    root, out = site('data', 1), tmp_path / 'out'
    described(root, out)
    shutil.copytree(root, tmp_path / 'scratch')
    ownership.check_output(out, tmp_path / 'scratch')
    shutil.move(root, tmp_path / 'moved')
    ownership.check_output(out, tmp_path / 'moved')


def test_another_dataset_at_the_same_path_is_another(site, tmp_path):
    root, out = site('data', 1), tmp_path / 'out'  # as /data in a container
    described(root, out)
    shutil.move(root, tmp_path / 'first')
    site('data', 2)
    with pytest.raises(errors.UsageError, match='for another dataset'):
        ownership.check_output(out, root)


def test_a_dataset_whose_images_change_stays_the_same(site, tmp_path):
    root, out = site('data', 1), tmp_path / 'out'
    described(root, out)
    nib.save(filled_with(3), root / t1w_path('01'))
    ownership.check_output(out, root)


@pytest.mark.parametrize('name', ['.git/config', '.gitattributes', 'slurm-12.out', 'logs/CITATION.md', 'logs/a_1.log',
                                  'work/deep/file', '.sub-01.html.12-0123abcd.tmp'])  # fmt: skip
def test_version_control_logs_and_what_the_user_put_there_count_as_empty(site, tmp_path, name):
    path = tmp_path / 'out' / name
    path.parent.mkdir(parents=True)
    path.write_text('x')
    ownership.check_output(tmp_path / 'out', site('data', 1), others=[tmp_path / 'out/work'])


def test_the_citation_alone_and_the_group_alone_do_not_close_a_folder(dataset, tmp_path, call):
    root = dataset(['01'])
    assert call(root, tmp_path / 'out', '--boilerplate-only') == exit_codes.OK
    assert call(root, tmp_path / 'out') == exit_codes.OK
    (tmp_path / 'group/phenotype').mkdir(parents=True)
    (tmp_path / 'group/group.html').write_text('bids_lesionfill 0.2.0')
    ownership.check_output(tmp_path / 'group', root)
    (tmp_path / 'group/sub-01.html').write_text('of others')
    with pytest.raises(errors.UsageError, match='holds files of others'):
        ownership.check_output(tmp_path / 'group', root)


# Programs that write no BIDS dataset


@pytest.mark.parametrize('program', ['train', 'evaluate', 'readerstudy make'])
@pytest.mark.parametrize('foreign', ['raw', *FOREIGN])
def test_promise_2_train_evaluate_and_readerstudy_refuse_a_folder_of_others(site, tmp_path, caplog, program, foreign):
    root = site('data', 1)
    out = site('other', 2) if foreign == 'raw' else FOREIGN[foreign][0](root)
    before = contents(tmp_path)
    if program == 'train':
        assert train_cli.main([str(root), str(out)]) == 2
    elif program == 'evaluate':
        assert evaluate_cli.main([str(root), str(out)]) == 2
    else:
        assert readerstudy_cli.main(['make', str(root), str(out), '--model', 'synth-FLAIR']) == 2
    assert contents(tmp_path) == before
    assert str(out) in caplog.text


def test_train_and_evaluate_go_on_in_folders_of_their_own(tmp_path):
    (tmp_path / 'plan.json').write_text(plans.Plan('x').to_json())
    (tmp_path / 'notes.txt').write_text('learning rate halved')
    ownership.check_folder(tmp_path, *train_cli.OWN_FOLDER)
    (tmp_path / 'evaluation.json').write_text('{"info": {}, "summary": []}')
    ownership.check_folder(tmp_path, *scores.OWN_FOLDER)


@pytest.mark.parametrize('name', ['scores.tsv', 'scores.json'])
def test_promise_2_scores_of_others_beside_a_key_are_kept(tmp_path, caplog, name):
    study, key_dir = tmp_path / 'study', tmp_path / 'key'
    cases = {'case-01': {'subject': 'A', 'session': None, 'lesion': 1, 'n_lesions': 3}}
    readerstudy_cli.write_papers(study, key_dir, {'modality': 'FLAIR', 'cases': cases})
    form = tmp_path / 'anna.tsv'
    form.write_text('case\tlesion\tconfidence\tcomment\ncase-01\t1\t3\t\n')
    (key_dir / name).write_text('{"mine": 1}')
    assert readerstudy_cli.main(['score', str(study), str(form), '--key', str(key_dir)]) == 2
    assert (key_dir / name).read_text() == '{"mine": 1}'
    assert f'{key_dir / name} is not by' in caplog.text
    (key_dir / name).unlink()
    for _ in range(2):
        assert readerstudy_cli.main(['score', str(study), str(form), '--key', str(key_dir)]) == 0


def test_promise_2_a_single_file_never_replaces_without_being_told(phantom, tmp_path, caplog):
    paths = [tmp_path / name for name in ('t1w.nii.gz', 'mask.nii.gz', 'out.nii.gz', 'used.nii.gz')]
    for path, img in zip(paths, (phantom.t1w_img, phantom.lesion_mask_img, filled_with(1), filled_with(2))):
        nib.save(img, path)
    before = contents(tmp_path)
    image, mask, out, used = map(str, paths)
    assert single_file.main([image, mask, out]) == 2
    assert single_file.main([image, mask, str(tmp_path / 'new.nii.gz'), '--used-mask', used]) == 2
    assert single_file.main([image, mask, image, '--overwrite']) == 2
    assert contents(tmp_path) == before
