"""Lesion masks by programs of others (`--segmenter`), each played by a fake: no real one was run."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_segmenters
import nibabel as nib
import numpy as np
import pytest
from app_outputs import data_hashes
from bids_examples import empty_like, flair_path, mask_path, t1w_path, write_bids

from bids_lesionfill import text_files
from bids_lesionfill.app import cli, exit_codes
from bids_lesionfill.segmenters import registry, running, segmenter
from bids_lesionfill.segmenters.nnunet import NNUNet, contrast_of
from bids_lesionfill.segmenters.segmenter import Scans, SegmenterUnavailable, Settings

MASK = {
    'lst-ai': 'sub-01_space-FLAIR_label-lesion_desc-lstai_mask',
    'mindglide': 'sub-01_space-FLAIR_label-lesion_desc-mindglide_mask',
    'nnunet': 'sub-01_space-FLAIR_label-lesion_desc-nnunet_mask',
    'samseg': 'sub-01_label-lesion_desc-samseg_mask',
}
CHANNELS = {'channel_names': {'0': 'FLAIR', '1': 'T1w'}, 'labels': {'background': 0, 'lesion': 1}}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    return fake_segmenters.install(tmp_path / 'bin', monkeypatch)


@pytest.fixture
def weights(tmp_path):
    """What each segmenter takes as weights, and nothing for those that find their own."""
    model, checkpoint = tmp_path / 'model', tmp_path / 'mindglide.pt'
    (model / 'fold_0').mkdir(parents=True)
    (model / 'dataset.json').write_text(json.dumps({**CHANNELS, 'file_ending': '.nii.gz'}))
    checkpoint.touch()
    return {'nnunet': ['--segmenter-weights', str(model)], 'mindglide': ['--segmenter-weights', str(checkpoint)]}


@pytest.fixture
def data(tmp_path, phantom):
    """One participant without a mask, one with a mask, one whose mask says that there is no lesion."""
    t1w, flair = phantom.t1w_img, phantom.img(phantom.flair)
    subjects = ('01', '02', '03')
    images = {t1w_path(subject): t1w for subject in subjects} | {flair_path(subject): flair for subject in subjects}
    masks = {mask_path('02'): phantom.lesion_mask_img, mask_path('03'): empty_like(t1w)}
    return write_bids(tmp_path / 'data', images | masks)


def run(data, out, *more, name='lst-ai'):
    words = ['--segmenter', name, '--model', 'biharmonic', *map(str, more)]
    return cli.main([str(data), str(out), 'participant', *words])


def statuses(out):
    return {row['participant_id']: row for row in text_files.read_tsv(out / 'participants.tsv')}


# The chain


@pytest.mark.parametrize('name', MASK)
def test_visit_without_a_mask_is_segmented_and_filled(name, calls, weights, data, tmp_path, phantom):
    before, out = data_hashes(data), tmp_path / 'out'
    assert run(data, out, *weights.get(name, ()), '--participant-label', '01', name=name) == exit_codes.OK
    made = nib.load(out / f'sub-01/anat/{MASK[name]}.nii.gz')
    assert np.array_equal(made.get_fdata() > 0, phantom.lesion_mask)
    assert made.get_data_dtype() == np.uint8
    filled, original = (nib.load(path).get_fdata() for path in (
        out / 'sub-01/anat/sub-01_desc-filled_T1w.nii.gz', data / t1w_path('01')))  # fmt: skip
    lesions, title = phantom.lesion_mask, registry.SEGMENTERS[name].title
    assert filled[lesions].mean() > original[lesions].mean() + 200
    (call,) = fake_segmenters.calls_in(calls)
    assert not any(str(data) in word for word in call)
    about = text_files.read_json(out / f'sub-01/anat/{MASK[name]}.json')
    assert about['GeneratedBy'][0]['Name'] == title
    assert 'bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz' in about['Sources']
    assert str(tmp_path) not in about['GeneratedBy'][0]['Command'].replace(str(tmp_path / 'm'), '')
    sidecar = text_files.read_json(out / 'sub-01/anat/sub-01_desc-filled_T1w.json')
    assert f'bids::sub-01/anat/{MASK[name]}.nii.gz' in sidecar['Sources']
    assert f'segmented by {title} (' in (out / 'logs/CITATION.md').read_text()
    assert f'({registry.SEGMENTERS[name].cited})' in (out / 'logs/CITATION.md').read_text()
    assert registry.desc_of(name) in (out / 'descriptions.tsv').read_text()
    assert data_hashes(data) == before


def test_mask_that_is_there_is_never_replaced(calls, data, tmp_path, caplog):
    out = tmp_path / 'out'
    shutil.copyfile(data / mask_path('02'), data / mask_path('02', name='label-wmh_mask'))
    assert run(data, out) == exit_codes.OK
    assert {subject: row['status'] for subject, row in statuses(out).items()} == {
        'sub-01': 'filled', 'sub-02': 'filled', 'sub-03': 'copied'}  # fmt: skip
    assert len(fake_segmenters.calls_in(calls)) == 1
    assert [path.parts[-3] for path in out.glob('**/*desc-lstai_mask.nii.gz')] == ['sub-01']
    assert 'may have masks' not in caplog.text


def test_mask_under_a_strange_name_is_told_before_it_is_segmented_anew(calls, data, tmp_path, caplog):
    (data / mask_path('01')).parent.mkdir(parents=True)
    shutil.copyfile(data / mask_path('02'), data / mask_path('01', name='label-wmh_mask'))
    (tmp_path / 'bin/lst').unlink()
    assert run(data, tmp_path / 'out') == exit_codes.USAGE
    assert 'sub-01_label-wmh_mask.nii.gz: --mask-label wmh takes it' in caplog.text


def test_second_run_uses_the_mask_that_is_there_as_it_was_edited(calls, data, tmp_path, monkeypatch):
    out, only = tmp_path / 'out', ['--participant-label', '01']
    assert run(data, out, *only) == exit_codes.OK
    mask_file = out / f'sub-01/anat/{MASK["lst-ai"]}.nii.gz'
    img = nib.load(mask_file)
    edited = img.get_fdata() * (np.arange(img.shape[0]) > 20)[:, None, None]
    nib.save(nib.Nifti1Image(edited.astype(np.uint8), img.affine), mask_file)
    before = mask_file.read_bytes()
    monkeypatch.setenv('PATH', '/usr/bin:/bin')  # the program is not needed any more
    assert run(data, out, *only) == exit_codes.OK
    assert len(fake_segmenters.calls_in(calls)) == 1
    assert mask_file.read_bytes() == before
    assert text_files.read_json(out / 'sub-01/anat/sub-01_desc-filled_T1w.json')['Lesions'] == 1
    newer = nib.load(data / t1w_path('01'))
    nib.save(nib.Nifti1Image(newer.get_fdata(dtype=np.float32) + 1, newer.affine), data / t1w_path('01'))
    assert run(data, out, *only) == exit_codes.SOME_FAILED
    said = 'was made from an earlier version of sub-01_T1w.nii.gz: delete it to segment again'
    assert said in statuses(out)['sub-01']['message']


def test_container_sees_the_folder_of_its_call_and_the_words_of_the_command_come_first(
    calls, data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = 'bin/box --bind {work} lst --threshold 0.3 --threads 7'  # its path is not that of the folder of the call
    assert run(data, tmp_path / 'out', '--segmenter-command', command, '--participant-label', '01') == exit_codes.OK
    (call,) = fake_segmenters.calls_in(calls)
    assert call.count('--threads') == 1
    about = text_files.read_json(tmp_path / f'out/sub-01/anat/{MASK["lst-ai"]}.json')
    assert about['GeneratedBy'][0]['Command'].startswith(
        f"{tmp_path}/bin/box --bind '{{work}}' lst --threshold 0.3 --threads 7 --t1 {{work}}/T1w.nii.gz"
    )
    assert 'Threshold' not in about  # the default is not what was used


def test_visits_and_their_images_share_what_belongs_to_them(calls, tmp_path, phantom):
    """Two sessions; in one, two T1w, uncompressed, and a FLAIR that is filled, too."""
    t1w, flair = phantom.t1w_img, phantom.img(phantom.flair)
    images = {t1w_path('01', '1'): t1w, flair_path('01', '1'): flair, t1w_path('01', '2'): t1w}
    images |= {t1w_path('01', '1', 'ce-gad_'): t1w, flair_path('01', '2'): flair}
    data, out = write_bids(tmp_path / 'data', images), tmp_path / 'out'
    packed = data / t1w_path('01', '1')
    packed.with_suffix('').write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    for modality in ('T1w', 'FLAIR'):
        assert run(data, out, '--modality', modality) == exit_codes.OK
    assert len(fake_segmenters.calls_in(calls)) == 2
    names = ('desc-filled_T1w', 'ce-gad_desc-filled_T1w', 'desc-filled_FLAIR')
    for name in [*(f'ses-1_{name}' for name in names), 'ses-2_desc-filled_T1w']:
        about = text_files.read_json(out / f'sub-01/{name[:5]}/anat/sub-01_{name}.json')
        mask = f'sub-01/{name[:5]}/anat/sub-01_{name[:5]}_space-FLAIR_label-lesion_desc-lstai_mask.nii.gz'
        assert about['Lesions'] == 2
        assert f'bids::{mask}' in about['Sources']
    of_first = out / 'sub-01/ses-1/anat/sub-01_ses-1_space-FLAIR_label-lesion_desc-lstai_mask.json'
    assert text_files.read_json(of_first)['Sources'][0] == 'bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii'


def test_images_of_other_grids_are_laid_on_one_for_samseg(calls, tmp_path, phantom):
    thick = phantom.thick_slices(phantom.flair)
    data = write_bids(tmp_path / 'data', {t1w_path('01'): phantom.t1w_img, flair_path('01'): thick})
    assert run(data, tmp_path / 'out', name='samseg') == exit_codes.OK
    made = nib.load(tmp_path / f'out/sub-01/anat/{MASK["samseg"]}.nii.gz')
    assert np.allclose(made.affine, phantom.affine)
    assert text_files.read_json(tmp_path / f'out/sub-01/anat/{MASK["samseg"]}.json')['Registration']['Method']


def test_t1w_alone_is_enough_for_those_that_need_no_flair(calls, weights, tmp_path, phantom):
    data = write_bids(tmp_path / 'data', {t1w_path('01'): phantom.t1w_img})
    for name in ('mindglide', 'samseg'):
        assert run(data, tmp_path / name, *weights.get(name, ()), name=name) == exit_codes.OK
        assert (tmp_path / name / f'sub-01/anat/sub-01_label-lesion_desc-{name}_mask.nii.gz').is_file()
    pattern = fake_segmenters.calls_in(calls)[1]
    assert pattern[pattern.index('--lesion-mask-pattern') + 1 :][:2] == ['0', '--threads']


@pytest.mark.slow
def test_processes_at_once_make_what_one_makes(calls, tmp_path, phantom):
    t1w, flair = phantom.t1w_img, phantom.img(phantom.flair)
    visits = [('01', '1'), ('01', '2'), ('02', '1')]
    data = write_bids(tmp_path / 'data', {t1w_path(*v): t1w for v in visits} | {flair_path(*v): flair for v in visits})
    for out, more in (('one', []), ('many', ['--nprocs', '2', '-w', tmp_path / 'work'])):
        assert run(data, tmp_path / out, *more) == exit_codes.OK
    assert len(fake_segmenters.calls_in(calls)) == 6
    one, many = (data_hashes(tmp_path / out, '**/anat/*.nii.gz') for out in ('one', 'many'))
    assert len(one) == 9
    assert one == many


# What is not there


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['--segmenter', 'lst-ai', '--segmenter-command', 'nowhere'], 'nowhere is not on the PATH of this machine'),
        (['--segmenter', 'lst-ai', '--segmenter-command', 'false'], 'false --help ended with exit code 1'),
        (['--segmenter', 'lst-ai', '--segmenter-command', 'lst "'], 'No closing quotation'),
        (['--segmenter', 'lst-ai', '--segmenter-weights', 'bin'], 'bin has no folder atlas and model'),
        (['--segmenter', 'samseg', '--segmenter-weights', 'bin'], 'SAMSEG does not take any'),
        (['--segmenter', 'mindglide', '--segmenter-weights', 'x.pt'], 'x.pt does not exist; expected the checkpoint'),
        (['--segmenter', 'nnunet'], 'nnU-Net needs --segmenter-weights'),
        (['--segmenter', 'nnunet', '--segmenter-weights', 'bin'], 'dataset.json cannot be read'),
        (['--segmenter', 'lst-ai', '--copy-unlesioned'], 'contradict each other'),
        (['--segmenter-timeout', '3'], '--segmenter-timeout: only with --segmenter'),
        (['--segmenter', 'lst-ai', '--mode', 'synth'], '--segmenter: only with --mode fill'),
    ],
)
def test_what_is_not_there_is_told_before_any_work(words, sentence, data, tmp_path, monkeypatch, caplog):
    (tmp_path / 'bin').mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(data), 'out', 'participant', *words]) == exit_codes.USAGE
    assert sentence in caplog.text
    assert not (tmp_path / 'out').exists()


def test_visits_without_the_flair_that_is_needed_are_named_before_any_work(calls, data, tmp_path, caplog):
    (data / flair_path('01')).unlink()
    (data / flair_path('02')).unlink()  # it has a mask
    assert run(data, tmp_path / 'out') == exit_codes.USAGE
    said = 'needs a FLAIR of the same session, and 1 image(s) have neither that nor a lesion mask: sub-01_T1w'
    assert said in caplog.text
    assert not (tmp_path / 'out').exists()
    assert not calls.read_text()


def test_nothing_is_fetched(calls, data, tmp_path, monkeypatch):
    shutil.rmtree(tmp_path / 'bin/model')
    assert run(data, tmp_path / 'out', '--participant-label', '01') == exit_codes.SOME_FAILED
    assert 'Connection refused' in statuses(tmp_path / 'out')['sub-01']['message']
    monkeypatch.setenv('http_proxy', 'http://proxy')
    assert 'http_proxy' not in running.environment(1, allow_download=True)


# What fails


def test_failure_of_one_is_told_with_what_the_program_said_and_others_go_on(calls, tmp_path, make_phantom, monkeypatch):
    small, usual = make_phantom(shape=(38, 36, 30)), make_phantom()
    images = {}
    for subject, phantom in (('01', small), ('02', usual)):
        images |= {t1w_path(subject): phantom.t1w_img, flair_path(subject): phantom.img(phantom.flair)}
    data, out = write_bids(tmp_path / 'data', images), tmp_path / 'out'
    monkeypatch.setenv('FAKE_FAILS', '38')
    assert run(data, out) == exit_codes.SOME_FAILED
    rows = statuses(out)
    assert (rows['sub-01']['status'], rows['sub-02']['status']) == ('failed', 'filled')
    said = 'LST-AI ended with exit code 3: Registering ... | CUDA error: the fake was told to fail'
    assert said in rows['sub-01']['message']
    (log,) = (out / 'sub-01/log').glob('*/segmenter-sub-01_T1w.txt')
    assert log.read_text() == 'Registering ...\nCUDA error: the fake was told to fail\n'
    monkeypatch.delenv('FAKE_FAILS')
    assert run(data, out) == exit_codes.OK  # the same command goes on
    assert len(fake_segmenters.calls_in(calls)) == 3


def test_program_that_takes_too_long_is_ended(calls, data, tmp_path, monkeypatch):
    monkeypatch.setenv('FAKE_SLEEPS', '60')
    started = time.monotonic()
    more = ['--participant-label', '01', '--segmenter-timeout', '0.05']
    assert run(data, tmp_path / 'out', *more) == exit_codes.SOME_FAILED
    assert time.monotonic() - started < 50
    assert 'LST-AI was ended after 0.05' in statuses(tmp_path / 'out')['sub-01']['message']


def test_mask_on_another_grid_is_refused(calls, data, tmp_path):
    text = fake_segmenters.PROGRAMS['lst'].replace('img.affine', '2 * img.affine')
    fake_segmenters.write_program(tmp_path / 'bin/lst', text)
    assert run(data, tmp_path / 'out', '--participant-label', '01') == exit_codes.SOME_FAILED
    assert 'does not have the grid of the image sub-01_FLAIR.nii.gz' in statuses(tmp_path / 'out')['sub-01']['message']
    assert not list((tmp_path / 'out').glob('sub-01/anat/*'))


def test_program_ends_with_the_run_that_started_it(tmp_path):
    code = (
        'import pathlib, sys; from bids_lesionfill.segmenters import running; '
        'running.run(["sh", "-c", "echo $$ > pid; sleep 300"], pathlib.Path(sys.argv[1]), {})'
    )
    process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)])
    pid_file = tmp_path / 'pid'
    wait_until(lambda: pid_file.is_file() and pid_file.read_text().strip())
    process.send_signal(signal.SIGKILL)
    process.wait()
    pid = int(pid_file.read_text())
    wait_until(lambda: not is_alive(pid))


def wait_until(is_so, seconds=20):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


# Each program


def words_of(name, settings, files=('T1w', 'FLAIR')):
    made, folder = registry.make_segmenter(name, settings), Path('/w')
    scans = Scans(folder, {contrast: folder / made.file_name(contrast) for contrast in files})
    return ' '.join(made.arguments(scans)), made.output(scans)


def test_words_of_each_program():
    settings = Settings(weights=Path('/m'), device='cuda', threads=3)
    assert words_of('lst-ai', settings) == (
        '--t1 /w/T1w.nii.gz --flair /w/FLAIR.nii.gz --output /w/output --temp /w/temp --segment_only --device 0 '
        '--threads 3',
        Path('/w/output/space-flair_seg-lst.nii.gz'),
    )
    assert registry.make_segmenter('lst-ai', settings).environment() == {'LST_AI_DATA_DIR': '/m'}
    assert words_of('mindglide', settings)[0] == '-i /w/FLAIR.nii.gz -o /w/labels.nii.gz --device cuda --model_path /m'
    assert words_of('samseg', settings) == (
        '--input /w/T1w.nii.gz --input /w/FLAIR.nii.gz --output /w/output --lesion --lesion-mask-pattern 0 1 '
        '--threads 3 --pallidum-separate',
        Path('/w/output/seg.mgz'),
    )


def test_older_lst_ai_calls_its_mask_otherwise(tmp_path):
    (tmp_path / 'output').mkdir()
    (tmp_path / 'output/space-orig_seg-lst.nii.gz').touch()
    made = registry.make_segmenter('lst-ai')
    assert made.output(Scans(tmp_path, {})).name == 'space-orig_seg-lst.nii.gz'


def nnunet_with(folder, **dataset):
    folder.mkdir(exist_ok=True)
    (folder / 'fold_all').mkdir(exist_ok=True)
    (folder / 'dataset.json').write_text(json.dumps(CHANNELS | dataset))
    return NNUNet(Settings(weights=folder))


def test_model_of_nnunet_says_what_it_takes_and_knows(tmp_path):
    made = nnunet_with(tmp_path, channel_names={'1': 'T1', '0': 'FLAIR'}, labels={'background': 0, 'GM': 1, 'WMH': 2})
    made.check_weights()
    assert (made.needs, made.labels, made.folds) == (('FLAIR', 'T1w'), (2,), ['all'])
    assert made.file_name('T1w') == 'input/visit_0001.nii.gz'
    assert nnunet_with(tmp_path).labels == ()
    assert [contrast_of(name) for name in ('T1w', 'T1_MPRAGE', 'T1Gd', 'T2', 'T2-FLAIR')] == [
        'T1w', 'T1w', None, None, 'FLAIR']  # fmt: skip


@pytest.mark.parametrize(
    ('dataset', 'sentence'),
    [
        ({'channel_names': {'0': 'FLAIR', '1': 'T2w'}}, 'the model takes FLAIR, T2w, expected T1w, FLAIR or both'),
        ({'labels': {'background': 0, 'GM': 1, 'WM': 2}}, 'the labels of the model are GM, WM, expected one'),
        ({'file_ending': '.nrrd'}, 'files that end in .nrrd'),
    ],
)
def test_model_of_nnunet_for_something_else_is_refused(dataset, sentence, tmp_path):
    with pytest.raises(SegmenterUnavailable, match=sentence):
        nnunet_with(tmp_path, **dataset).check_weights()


def test_segmenter_of_another_package_is_used(monkeypatch, data, tmp_path, phantom):
    class Copier(segmenter.Segmenter):
        title, cited, program, how_to_get = 'Copier', 'Doe, 2026', 'cp', 'it is there'
        references = ('@misc{doe2026,\n  author = {Doe, J.},\n  title = {Copying},\n  year = {2026}\n}',)

        def arguments(self, scans):
            return [str(truth), str(self.output(scans))]

        def output(self, scans):
            return scans.folder / 'mask.nii.gz'

    truth = tmp_path / 'truth.nii.gz'
    nib.save(phantom.lesion_mask_img, truth)
    monkeypatch.setitem(registry.SEGMENTERS, 'my-copier', Copier)
    assert run(data, tmp_path / 'out', '--participant-label', '01', name='my-copier') == exit_codes.OK
    assert (tmp_path / 'out/sub-01/anat/sub-01_label-lesion_desc-mycopier_mask.nii.gz').is_file()
    assert 'Doe, J. (2026). Copying' in (tmp_path / 'out/logs/CITATION.md').read_text()


def test_versions_and_last_words_of_programs():
    assert segmenter.version_in('mindglide 1.2.0\n') == '1.2.0'
    assert segmenter.version_in('usage: lst') == ''
    said = 'a\n\n' + '10%\r20%\r\x1b[31m30%\x1b[0m\n' + 'x' * 300 + '\n'
    assert running.Result(1, said, 6).tail == f'a | 30% | {"x" * 200}'
    assert running.Result(-1, '', 90).ending == 'was ended after 1.5 minutes'


def test_program_that_is_not_there_ends_as_in_a_shell(tmp_path):
    assert running.run([str(tmp_path / 'none')], tmp_path, {}).code == 127
    assert running.run(['sh', '-c', 'kill -9 $$'], tmp_path, {}).code == 128 + 9
    assert running.run([sys.executable, '-c', 'import os; print(os.environ["A"])'], tmp_path, {'A': 'b'}).log == 'b\n'
    assert os.listdir(tmp_path) == [running.LOG]
