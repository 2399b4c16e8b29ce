import json
import os

import nibabel as nib
import numpy as np
import pytest
from bids_examples import flair_path, mask_path, t1w_path, write_bids

from bids_lesionfill.app import cli, exit_codes, validation
from bids_lesionfill.layout import files, inputs, naming
from bids_lesionfill.layout import raw as layout_raw


@pytest.fixture
def dataset(tmp_path, img):
    """Two participants; the first has a mask, beside the image, and its filled T1w is there as derivative."""
    paths = [path(subject, session) for subject in ('01', '02') for session in 'ab' for path in (t1w_path, flair_path)]
    root = write_bids(tmp_path / 'data', dict.fromkeys([*paths, mask_path('01')], img))
    (root / 'participants.tsv').write_text('participant_id\tage\nsub-01\t40\nsub-02\t50\nsub-03\t60\n')
    nib.save(img, root / 'sub-01/ses-a/anat/sub-01_ses-a_label-lesion_roi.nii.gz')
    (root / 'sub-01/ses-a/func').mkdir()
    (root / 'sub-01/ses-a/func/sub-01_ses-a_task-rest_bold.nii.gz').write_text('bold')
    return root


def inputs_of(root, subject, session):
    path = t1w_path(subject, session)
    return inputs.Inputs(subject, session, path.rpartition('/')[2].removesuffix('.nii.gz'), root / path, path)


def write_filled(out, image):
    path = naming.output_files(out, image)['filled']
    files.write_image(path, nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)))
    files.write_json(naming.sidecar(path), {'SkullStripped': True, 'Lesions': 3})


def write_raw(root, raw, session_labels=()):
    out = raw / layout_raw.DERIVATIVES
    images = [inputs_of(root, '01', session) for session in 'ab']
    write_filled(out, images[0])
    layout_raw.write_top(raw, root, '1')
    layout_raw.write_participant(raw, root, out, '01', images, session_labels)


def files_of(raw):
    return sorted(path.relative_to(raw).as_posix() for path in raw.rglob('*')
                  if path.is_file() and 'derivatives' not in path.parts)  # fmt: skip


def test_filled_images_are_in_place_and_the_rest_is_linked(dataset, tmp_path):
    raw = tmp_path / 'raw'
    write_raw(dataset, raw)
    t1w = [t1w_path('01', session) for session in 'ab']
    assert nib.load(raw / t1w[0]).get_fdata().max() == 1
    assert nib.load(raw / t1w[1]).get_fdata().max() == 0  # it had no lesion mask
    expected = [path('01', s).replace('.nii.gz', e) for path in (t1w_path, flair_path) for s in 'ab'
                for e in ('.nii.gz', '.json')]  # fmt: skip
    expected += ['README', 'dataset_description.json', 'participants.tsv',
                 'sub-01/ses-a/func/sub-01_ses-a_task-rest_bold.nii.gz']  # fmt: skip
    assert files_of(raw) == sorted(expected)  # no lesion mask, no sub-02
    link = raw / flair_path('01', 'a')
    assert link.is_symlink()
    assert not os.path.isabs(os.readlink(link))
    assert link.resolve() == (dataset / flair_path('01', 'a')).resolve()
    sidecar = json.loads((raw / t1w[0].replace('.nii.gz', '.json')).read_text())
    assert sidecar == {'SkullStripped': True, 'LesionsFilled': 3}
    assert (raw / 'participants.tsv').read_text() == 'participant_id\tage\nsub-01\t40\n'
    description = json.loads((raw / 'dataset_description.json').read_text())
    assert (description['Name'], description['DatasetType']) == ('test, lesions filled', 'raw')
    assert description['GeneratedBy'][-1]['Name'] == 'bids_lesionfill'


def test_in_a_container_files_are_copied(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv('IS_DOCKER_8395080871', '1')
    write_raw(dataset, tmp_path / 'raw')
    assert not [path for path in (tmp_path / 'raw').rglob('*') if path.is_symlink()]
    assert nib.load(tmp_path / 'raw' / flair_path('01', 'a')).shape == (4, 4, 4)


def test_in_a_container_links_that_were_not_fetched_stay_links(dataset, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('IS_DOCKER_8395080871', '1')
    names = [f'sub-01/ses-{s}/func/sub-01_ses-{s}_task-rest_bold.nii.gz' for s in 'ab']
    for name in names:
        (dataset / name).parent.mkdir(exist_ok=True)
        (dataset / name).unlink(missing_ok=True)
        (dataset / name).symlink_to('../../../.git/annex/objects/X')
    raw = tmp_path / 'raw'
    write_raw(dataset, raw)
    assert {os.readlink(raw / name) for name in names} == {'../../../.git/annex/objects/X'}
    assert nib.load(raw / t1w_path('01', 'a')).get_fdata().max() == 1
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert '2 files of sub-01 are links to what is not there' in warning


def test_sessions_that_were_not_asked_for_are_left_out(dataset, tmp_path):
    write_raw(dataset, tmp_path / 'raw', ['a'])
    assert not (tmp_path / 'raw/sub-01/ses-b').exists()


def test_an_uncompressed_image_stays_uncompressed(dataset, tmp_path, img):
    original = dataset / t1w_path('01', 'a').removesuffix('.gz')
    nib.save(img, original)
    (dataset / t1w_path('01', 'a')).unlink()
    image = inputs_of(dataset, '01', 'a')
    image = inputs.Inputs('01', 'a', image.name, original, image.relative_path.removesuffix('.gz'))
    raw = tmp_path / 'raw'
    write_filled(raw / layout_raw.DERIVATIVES, image)
    layout_raw.write_participant(raw, dataset, raw / layout_raw.DERIVATIVES, '01', [image])
    assert nib.load(raw / image.relative_path).get_fdata().max() == 1


def test_a_second_run_replaces_links_and_files(dataset, tmp_path):
    for _ in range(2):
        write_raw(dataset, tmp_path / 'raw')
    assert not list((tmp_path / 'raw').rglob('*.tmp'))


@pytest.mark.parametrize(('more', 'words'), [
    (['--mode', 'synth'], 'only with --mode fill'), ([], 'is in BIDS_DIR'),
])  # fmt: skip
def test_raw_layout_that_cannot_be_is_2(dataset, tmp_path, caplog, more, words):
    out = dataset / 'derivatives/x' if words == 'is in BIDS_DIR' else tmp_path / 'raw'
    assert cli.main([str(dataset), str(out), 'participant', '--output-layout', 'raw', *more]) == exit_codes.USAGE
    assert words in caplog.text


def test_raw_layout_has_its_derivatives_inside(dataset, tmp_path):
    arguments = [str(dataset), str(tmp_path / 'raw'), 'participant', '--output-layout', 'raw']
    options = validation.options_of(cli.parse(arguments)[0], arguments)
    assert (options.raw_dir, options.output_dir) == (tmp_path / 'raw', tmp_path / 'raw/derivatives/bids_lesionfill')
