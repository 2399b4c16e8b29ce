import json
import sys

import nibabel as nib
import numpy as np
import pytest
from bids_examples import t1w_path, write_bids

from bids_lesionfill.app import cli, exit_codes
from bids_lesionfill.layout import validator as layout_validator

needs_validator = pytest.mark.skipif(
    layout_validator.find_validator() is None, reason='bids-validator-deno is not installed'
)


@pytest.fixture
def img():
    img = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    img.header.set_xyzt_units('mm', 'sec')
    return img


@pytest.fixture
def fake_validator(tmp_path):
    """Factory: a program that prints findings, whatever it is given."""

    def build(*issues, text=None):
        path = tmp_path / 'fake-validator'
        messages = {'ODD_THING': 'Something\nis odd.'}
        text = text or json.dumps({'issues': {'issues': list(issues), 'codeMessages': messages}})
        path.write_text(f'#!{sys.executable}\nprint({text!r})\nraise SystemExit({16 if issues else 0})\n')
        path.chmod(0o755)
        return str(path)

    return build


def issue(code, location='/sub-01/anat/sub-01_T1w.json', **more):
    return {'code': code, 'location': location, 'severity': 'error', **more}


def test_findings_are_told_in_plain_words(tmp_path, img, fake_validator):
    root = write_bids(tmp_path / 'data', {t1w_path('01'): img})
    validator = fake_validator(
        issue('JSON_INVALID'),
        issue('JSON_KEY_REQUIRED', '/dataset_description.json', subCode='Name'),
        issue('ODD_THING', issueMessage='it is 3'),
        issue('EMPTY_FILE', severity='warning'),
        issue('NOT_INCLUDED', '/sub-01/anat/sub-01_notes.txt'),
        issue('ENTITY_NOT_IN_RULE', '/sub-01/anat/sub-01_label-lesion_mask.nii.gz'),
    )
    assert layout_validator.find_errors(root, validator=validator) == [
        'sub-01/anat/sub-01_T1w.json is not valid JSON [JSON_INVALID]',
        'dataset_description.json lacks a key that BIDS requires (Name) [JSON_KEY_REQUIRED]',
        'sub-01/anat/sub-01_T1w.json: Something is odd. (it is 3) [ODD_THING]',
    ]


def test_a_validator_that_fails_says_how(tmp_path, img, fake_validator):
    root = write_bids(tmp_path / 'data', {t1w_path('01'): img})
    with pytest.raises(RuntimeError, match='ended with 0: out of memory'):
        layout_validator.find_errors(root, validator=fake_validator(text='out of memory'))


def test_only_anat_of_the_chosen_participants_is_looked_at(tmp_path, img):
    root = write_bids(tmp_path / 'data', {t1w_path('01'): img, t1w_path('02', 'a'): img})
    (root / 'sub-01/func').mkdir()
    (root / 'sub-01/func/sub-01_task-rest_bold.nii.gz').write_text('x')
    layout_validator.build_view(root, tmp_path / 'all')
    layout_validator.build_view(root, tmp_path / 'one', ['02'])
    of_all, of_one = (
        {path.relative_to(tmp_path / name).as_posix() for path in (tmp_path / name).rglob('*') if path.is_file()}
        for name in ('all', 'one')
    )
    top = {'README', 'dataset_description.json'}
    second = {'sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz', 'sub-02/ses-a/anat/sub-02_ses-a_T1w.json'}
    assert of_one == top | second
    assert of_all == of_one | {'sub-01/anat/sub-01_T1w.nii.gz', 'sub-01/anat/sub-01_T1w.json'}


@pytest.fixture
def never_run(monkeypatch):
    from bids_lesionfill.app import participant

    monkeypatch.setattr(participant, 'run', lambda options: exit_codes.OK)


def run(root, out, *more):
    return cli.main([str(root), str(out), 'participant', *more])


@needs_validator
def test_invalid_dataset_is_65_and_only_for_those_it_concerns(tmp_path, img, caplog, never_run, real_validation):
    bad = 'sub-02/anat/sub-02_bad_T1w.nii.gz'
    root = write_bids(tmp_path / 'data', {t1w_path('01'): img, t1w_path('02'): img, bad: img,
                                          'sub-01/anat/sub-01_label-lesion_roi.nii.gz': img})  # fmt: skip
    (root / 'participants.tsv').write_text('participant_id\nsub-01\nsub-02\n')
    assert run(root, tmp_path / 'out') == exit_codes.INVALID == 65
    assert f'{bad} has a part in its name that is no key-value pair' in caplog.text
    assert '--skip-bids-validation' in caplog.text
    assert not (tmp_path / 'out').exists()
    caplog.clear()
    assert run(root, tmp_path / 'out', '--participant-label', '01') == exit_codes.OK
    assert run(root, tmp_path / 'out', '--skip-bids-validation') == exit_codes.OK


def test_without_a_validator_a_run_goes_on_and_says_so(tmp_path, img, caplog, never_run, real_validation, monkeypatch):
    monkeypatch.setattr(layout_validator, 'find_validator', lambda: None)
    root = write_bids(tmp_path / 'data', {t1w_path('01'): img})
    assert run(root, tmp_path / 'out') == exit_codes.OK
    assert 'bids-validator-deno is not installed: the dataset is not validated' in caplog.text


def test_a_validator_that_fails_stops_nothing(tmp_path, img, caplog, never_run, real_validation, fake_validator,
                                              monkeypatch):  # fmt: skip
    validator = fake_validator(text='no schema')
    monkeypatch.setattr(layout_validator, 'find_validator', lambda: validator)
    root = write_bids(tmp_path / 'data', {t1w_path('01'): img})
    assert run(root, tmp_path / 'out') == exit_codes.OK
    assert 'no schema' in caplog.text


@pytest.mark.parametrize('flag', ['--skip_bids_validation', '--skip_bids_validator', '--reports-only'])
def test_validation_can_be_left_out(tmp_path, img, never_run, real_validation, monkeypatch, flag):
    monkeypatch.setattr(layout_validator, 'find_errors', lambda *_: ['all is wrong'])
    monkeypatch.setattr(layout_validator, 'find_validator', lambda: 'there')
    root = write_bids(tmp_path / 'data', {t1w_path('01'): img})
    assert run(root, tmp_path / 'out') == exit_codes.INVALID
    assert run(root, tmp_path / 'out', flag) == exit_codes.OK
