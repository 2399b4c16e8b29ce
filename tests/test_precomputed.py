"""`--output-layout fmriprep`: the filled T1w as fMRIPrep finds it."""

import json
import types

import nibabel as nib
import numpy as np
import pytest
from bids import BIDSLayout
from bids_examples import t1w_path, write_description

from bids_lesionfill.app import cli, exit_codes, participant
from bids_lesionfill.layout import derivatives, files, inputs, naming, precomputed

# `queries.baseline.preproc` of sMRIPrep 0.19.5, data/io_spec.json; the others of that file must find nothing.
PREPROC = {'datatype': 'anat', 'space': None, 'desc': 'preproc', 'suffix': 'T1w', 'extension': ['.nii.gz', '.nii']}
OTHERS = (
    PREPROC | {'desc': 'brain', 'suffix': 'mask'},
    PREPROC | {'desc': None, 'suffix': 'dseg'},
    PREPROC | {'suffix': 'T2w'},
)


@pytest.fixture
def out(tmp_path):
    write_description(tmp_path / 'out', DatasetType='derivative', GeneratedBy=[{'Name': naming.APP_NAME}])
    return tmp_path / 'out'


def image_of(session=None, extra='', suffix='T1w', is_filled_in=None):
    path = t1w_path('01', session, extra).replace('T1w', suffix)
    name = path.rpartition('/')[2].removesuffix('.nii.gz')
    image = inputs.Inputs('01', session, name, None, path, sources=(f'bids:raw:{path}',))
    if is_filled_in is not None:
        fill(is_filled_in, image)
    return image


def fill(out, image, value=1):
    made = naming.output_files(out, image)
    img = nib.Nifti1Image(np.full((4, 4, 4), value, np.uint8), np.eye(4))
    for name in ('filled', 'used_mask'):
        files.write_image(made[name], img)
        files.write_json(naming.sidecar(made[name]), {'SkullStripped': True})


def found(out, query, session=None):
    layout = BIDSLayout(out, validate=False, config=['bids', 'derivatives'])
    return [file.filename for file in layout.get(subject='01', **query, **({'session': session} if session else {}))]


def test_fmriprep_finds_the_filled_t1w_and_nothing_else(out):
    precomputed.write_participant(out, [image_of(is_filled_in=out), image_of(suffix='FLAIR', is_filled_in=out)])
    assert found(out, PREPROC) == ['sub-01_desc-preproc_T1w.nii.gz']
    assert [found(out, query) for query in OTHERS] == [[], [], []]
    sidecar = json.loads((out / 'sub-01/anat/sub-01_desc-preproc_T1w.json').read_text())
    assert sidecar['Sources'] == ['bids::sub-01/anat/sub-01_desc-filled_T1w.nii.gz']
    assert sidecar['SkullStripped']


def test_each_session_has_one(out):
    precomputed.write_participant(out, [image_of(session, is_filled_in=out) for session in 'ab'])
    for session in 'ab':
        assert found(out, PREPROC, session) == [f'sub-01_ses-{session}_desc-preproc_T1w.nii.gz']


def test_it_is_the_filled_image_also_when_that_is_filled_anew(out):
    image = image_of(is_filled_in=out)
    precomputed.write_participant(out, [image])
    link = naming.preproc_file(out, image)
    assert link.read_bytes() == naming.output_files(out, image)['filled'].read_bytes()
    fill(out, image, value=2)
    assert nib.load(link).get_fdata().max() == 2


def test_a_second_run_changes_nothing(out):
    image = image_of(is_filled_in=out)
    precomputed.write_participant(out, [image])
    paths = [naming.preproc_file(out, image), naming.sidecar(naming.preproc_file(out, image))]
    times = [path.lstat().st_mtime_ns for path in paths]
    precomputed.write_participant(out, [image])
    assert [path.lstat().st_mtime_ns for path in paths] == times


def test_an_image_that_is_not_filled_has_none(out):
    precomputed.write_participant(out, [image_of()])
    assert not naming.preproc_file(out, image_of()).is_symlink()


def test_of_two_t1w_of_a_visit_there_is_none_and_a_warning(out, caplog):
    precomputed.write_participant(out, [image_of(extra='run-1_', is_filled_in=out)])
    assert found(out, PREPROC) == ['sub-01_run-1_desc-preproc_T1w.nii.gz']
    precomputed.write_participant(out, [image_of(extra=f'run-{n}_', is_filled_in=out) for n in (1, 2)])
    assert found(out, PREPROC) == []
    assert 'sub-01_run-1_T1w, sub-01_run-2_T1w are 2 filled T1w' in caplog.text
    assert not list(out.rglob('*preproc*'))


@pytest.mark.parametrize('has_failed', [False, True])
def test_a_participant_that_failed_has_none(out, has_failed):
    image = image_of(is_filled_in=out)
    options = types.SimpleNamespace(output_layout='fmriprep', output_dir=out, raw_dir=None)
    participant.write_for_others('01', [image], False, options)
    participant.write_for_others('01', [image], has_failed, options)
    assert naming.preproc_file(out, image).exists() == (not has_failed)
    assert naming.output_files(out, image)['filled'].is_file()


def test_other_layouts_write_none(out):
    options = types.SimpleNamespace(output_layout='bids', output_dir=out, raw_dir=None)
    participant.write_for_others('01', [image_of(is_filled_in=out)], False, options)
    assert not list(out.rglob('*preproc*'))


def test_its_desc_is_explained():
    assert 'desc-preproc' in derivatives.DESCRIPTIONS


def test_synthesis_has_no_such_layout(tmp_path, caplog):
    write_description(tmp_path / 'data', DatasetType='raw')
    arguments = [str(tmp_path / 'data'), str(tmp_path / 'out'), 'participant', '--output-layout', 'fmriprep']
    assert cli.main([*arguments, '--mode', 'synth']) == exit_codes.USAGE
    assert '--output-layout fmriprep: only with --mode fill' in caplog.text
