"""Activities, software and models in `prov/`, as BIDS extension proposal 28 has them."""

import hashlib
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from bids_examples import t1w_path, write_bids

from bids_lesionfill.app import cli, config, validation
from bids_lesionfill.layout import derivatives, inputs, naming, provenance
from bids_lesionfill.lesions import fill


def image_of(session):
    path = t1w_path('01', session)
    name = path.rpartition('/')[2].removesuffix('.nii.gz')
    return inputs.Inputs('01', session, name, None, path, sources=(f'bids:raw:{path}',))


@pytest.fixture
def out(tmp_path):
    """Two filled sessions, of two versions of the app."""
    img = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    record = replace(fill.record_of_copy(img), model='m', weights_sha256='f' * 64)
    filling = fill.Filling(img, img, record=record)
    for session, version in (('a', '1.0'), ('b', '2.0')):
        made_by = provenance.of_result({'model': 'm'}, session * 64, version, 'fill', f'command of {session}')
        derivatives.write_filling(tmp_path, image_of(session), filling, made_by)
    provenance.write_participant(tmp_path, '01')
    return tmp_path


def read(out, suffix):
    (content,) = json.loads((out / f'prov/prov-sub01_{suffix}.json').read_text()).values()
    return content


def test_a_sidecar_names_the_activity_that_made_the_file_and_its_checksum(out):
    files = naming.output_files(out, image_of('a'))
    about = derivatives.read_sidecar(files['filled'])
    assert about['GeneratedBy'] == ['bids::prov#fill-aaaaaaaaaaaa']
    assert about['Digest'] == {'SHA-256': hashlib.sha256(files['filled'].read_bytes()).hexdigest()}
    assert derivatives.read_sidecar(files['used_mask'])['GeneratedBy'] == about['GeneratedBy']


def test_every_identifier_that_is_used_is_described(out):
    activities, software, files = (read(out, suffix) for suffix in ('act', 'soft', 'ent'))
    assert [activity['Id'] for activity in activities] == [f'bids::prov#fill-{session * 12}' for session in 'ab']
    described = {entry['Id'] for entry in [*software, *files]}
    used = [name for activity in activities for name in [*activity['AssociatedWith'], *activity['Used']]]
    assert {name for name in used if name.startswith('bids::prov#')} == described
    assert 'bids:raw:sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz' in activities[0]['Used']
    assert activities[1]['Command'] == 'command of b'
    assert sorted(entry['Version'] for entry in software) == ['1.0', '2.0']
    assert [entry['Digest'] for entry in files] == [{'SHA-256': 'f' * 64}]


def test_the_same_results_give_the_same_files_and_none_is_written_twice(out):
    paths = sorted((out / 'prov').iterdir())
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    provenance.write_participant(out, '01')
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before


def test_a_participant_without_results_has_none_and_what_it_had_is_gone(out):
    provenance.write_participant(out, '02')
    for session in 'ab':
        naming.sidecar(naming.output_files(out, image_of(session))['filled']).unlink()
    provenance.write_participant(out, '01')
    assert not list((out / 'prov').iterdir())


def test_the_table_lists_the_participants(out):
    provenance.write_table(out)
    assert (out / 'prov/provenance.tsv').read_text() == (
        'provenance_id\tdescription\nprov-sub01\tresults of sub-01\n'
    )


def test_validators_that_do_not_know_the_folder_are_told_to_ignore_it():
    assert 'prov' in derivatives.BIDSIGNORE.splitlines()


@pytest.mark.parametrize(('words', 'expected'), [
    ([], ''),
    (['--participant-label', '02', '03', '--omp-nthreads', '2', '--thickness', 'pbt', '--copy-unlesioned'], ''),
    (['--random-seed', '3', '--lesion-labels', '1', '3'], ' --lesion-labels 1 3 --random-seed=3'),
    (['--mode', 'synth', '--new-lesions', '2'], ' --mode synth --new-lesions=2'),
])  # fmt: skip
def test_the_command_of_a_result_has_the_options_that_change_it(tmp_path, words, expected):
    img = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    root = write_bids(tmp_path / 'data', {t1w_path('02'): img, t1w_path('03'): img})
    arguments = [str(root), str(tmp_path / 'out'), 'participant', *words]
    options = validation.options_of(cli.parse(arguments)[0], arguments)
    command = 'bids_lesionfill BIDS_DIR OUTPUT_DIR participant --participant-label 02 --modality T1w'
    assert config.command_of(options, '02', 'T1w') == command + expected
    assert config.command_of(replace(options, nprocs=2), '02', 'T1w') == command + expected
