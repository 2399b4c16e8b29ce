"""The whole app on small datasets, against lists of files, and the promises of the README by name."""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from app_outputs import DATASET_FILES, ROOT, closing_files, data_hashes, image_files, subject_files, validator
from bids_examples import empty_like, flair_path, listing, mask_path, t1w_path, write_bids
from freesurfer_examples import write_stats
from matplotlib import image as mpl_image
from rulers import Ruler

from bids_lesionfill import text_files
from bids_lesionfill.app import cli, exit_codes, options
from bids_lesionfill.layout import derivatives, naming
from bids_lesionfill.report import page as report_page
from bids_lesionfill.thickness import registry


@pytest.fixture
def run(model_dir):
    def call(bids_dir, output_dir, *arguments, level='participant'):
        return cli.main([str(bids_dir), str(output_dir), level, '--model', str(model_dir), *arguments])

    return call


@pytest.fixture
def flair_dataset(dataset, make_phantom):
    """The same two participants with a FLAIR on a grid of its own, on which the lesions were drawn."""

    def build(subjects=('01', '02'), **more):
        images = {}
        for seed, subject in enumerate(subjects):
            phantom = make_phantom(seed=seed)
            slices = phantom.thick_slices(phantom.flair)
            img = nib.Nifti1Image(np.rint(slices.get_fdata() / 0.25).astype(np.int16), slices.affine)
            img.header.set_slope_inter(0.25, 0.0)
            images |= {flair_path(subject): img, mask_path(subject): phantom.thick_slices(phantom.lesion_mask)}
        return dataset(subjects, **(images | more))

    return build


@pytest.fixture
def run_modalities(model_dirs, monkeypatch):
    """Run with the tiny models in place of the bundled ones."""
    monkeypatch.setattr(options.Options, 'model_of', lambda self, modality: str(model_dirs[modality]))

    def call(bids_dir, output_dir, *modalities, more=()):
        return cli.main([str(bids_dir), str(output_dir), 'participant', *more, '--modality', *modalities])

    return call


def test_outputs_are_exactly_those_of_the_list(real_pictures, dataset, run, tmp_path):
    assert run(dataset(), tmp_path / 'out') == exit_codes.OK
    expected = DATASET_FILES + [file for s in ('01', '02') for file in subject_files(s) + closing_files(s)]
    assert listing(tmp_path / 'out') == sorted(expected)


def test_sessions_are_written_apart(tmp_path, make_phantom, run):
    phantom = make_phantom()
    images = {path('01', session): img for session in 'ab'
              for path, img in ((t1w_path, phantom.t1w_img), (mask_path, phantom.lesion_mask_img))}  # fmt: skip
    root = write_bids(tmp_path / 'data', images)
    assert run(root, tmp_path / 'out', '--session-label', 'ses-b') == exit_codes.OK
    assert listing(tmp_path / 'out') == sorted(DATASET_FILES + subject_files('01', 'b') + closing_files('01'))
    assert run(root, tmp_path / 'out') == exit_codes.OK
    expected = DATASET_FILES + subject_files('01', 'a') + subject_files('01', 'b') + closing_files('01')
    assert sorted(set(listing(tmp_path / 'out'))) == sorted(expected)


def test_promise_1_outside_the_used_mask_nothing_changes(dataset, run, tmp_path):
    root = dataset(('01',))
    assert run(root, tmp_path / 'out') == exit_codes.OK
    before = nib.load(root / t1w_path('01'))
    after = nib.load(tmp_path / 'out/sub-01/anat/sub-01_desc-filled_T1w.nii.gz')
    used_mask = np.asarray(nib.load(tmp_path / 'out/sub-01/anat/sub-01_label-lesion_desc-used_mask.nii.gz').dataobj) > 0
    stored = [img.dataobj.get_unscaled() for img in (before, after)]
    assert stored[0].dtype == stored[1].dtype == np.int16
    assert stored[0][~used_mask].tobytes() == stored[1][~used_mask].tobytes()
    assert (stored[0] != stored[1])[used_mask].mean() > 0.9
    assert (after.dataobj.slope, after.dataobj.inter) == (before.dataobj.slope, before.dataobj.inter)
    assert after.header.get_xyzt_units() == before.header.get_xyzt_units()
    assert np.array_equal(after.affine, before.affine)


def test_promise_2_raw_data_are_never_touched(dataset, run, tmp_path):
    root = dataset(('01',))
    before = data_hashes(root)
    assert run(root, tmp_path / 'out') == exit_codes.OK
    assert data_hashes(root) == before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('unshare') is None or os.geteuid() != 0, reason='needs root to take the network away')
def test_promise_2_runs_without_a_network(dataset, tmp_path, model_dir):
    root = dataset(('01',))
    command = ['unshare', '-n', sys.executable, str(ROOT / 'run.py'), str(root), str(tmp_path / 'out'), 'participant',
               '--model', str(model_dir)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def test_promise_3_same_input_options_and_seed_give_same_bytes(dataset, run, tmp_path):
    root = dataset()
    for name, arguments in {'a': [], 'b': ['--participant-label', '02'], 'c': ['--random-seed', '1']}.items():
        assert run(root, tmp_path / name, *arguments) == exit_codes.OK
    a, b, c = (data_hashes(tmp_path / name, 'sub-02/anat/*.nii.gz') for name in 'abc')
    assert len(a) == 2
    assert a == b  # whoever else is in the run
    filled = 'sub-02/anat/sub-02_desc-filled_T1w.nii.gz'
    assert a[filled] != c[filled]


def test_promise_4_one_bad_subject_never_stops_the_others(dataset, run, tmp_path):
    root = dataset(('01', '02', '03'), **{t1w_path('02'): b'not an image'})
    assert run(root, tmp_path / 'out') == exit_codes.SOME_FAILED
    files = listing(tmp_path / 'out')
    for subject in ('01', '03'):
        assert set(subject_files(subject) + closing_files(subject)) <= set(files)
    assert 'sub-02/log/RUN/crash-sub-02_T1w.txt' in files
    assert not any(file.startswith('sub-02/anat') for file in files)
    rows = {row['participant_id']: row for row in text_files.read_tsv(tmp_path / 'out/participants.tsv')}
    assert {name: row['status'] for name, row in rows.items()} == {
        'sub-01': 'filled', 'sub-02': 'failed', 'sub-03': 'filled'}  # fmt: skip
    assert 'sub-02_T1w.nii.gz' in rows['sub-02']['message']
    assert 'failed' in (tmp_path / 'out/sub-02.html').read_text()


def test_promise_4_stop_on_first_crash_stops(dataset, run, tmp_path):
    root = dataset(('01', '02'), **{t1w_path('01'): b'not an image'})
    assert run(root, tmp_path / 'out', '--stop-on-first-crash') == exit_codes.SOME_FAILED
    assert not (tmp_path / 'out/sub-02').exists()


def test_promise_4_what_is_done_is_not_done_again(dataset, run, tmp_path):
    root = dataset(('01',))
    filled = tmp_path / 'out/sub-01/anat/sub-01_desc-filled_T1w.nii.gz'
    assert run(root, tmp_path / 'out') == exit_codes.OK
    first = filled.stat().st_mtime_ns
    measured = filled.with_name('sub-01_seg-DK_desc-filled_morph.tsv')
    measured.write_text('engine\tname\n')
    assert run(root, tmp_path / 'out') == exit_codes.OK
    assert filled.stat().st_mtime_ns == first
    assert measured.exists()
    assert run(root, tmp_path / 'out', '--rims', 'grown') == exit_codes.OK
    assert filled.stat().st_mtime_ns != first
    assert not measured.exists()  # its thickness was that of the other filling


def test_promise_5_every_number_is_explained(dataset, run, tmp_path, model_dir):
    assert run(dataset(('01',)), tmp_path / 'out') == exit_codes.OK
    info = derivatives.read_sidecar(tmp_path / 'out/sub-01/anat/sub-01_desc-filled_T1w.nii.gz')
    used_mask = nib.load(tmp_path / 'out/sub-01/anat/sub-01_label-lesion_desc-used_mask.nii.gz').get_fdata() > 0
    weights_file = model_dir / 'unet/diffusion_pytorch_model.safetensors'
    assert info['WeightsSHA256'] == hashlib.sha256(weights_file.read_bytes()).hexdigest()
    assert info['Sources'] == ['bids:raw:sub-01/anat/sub-01_T1w.nii.gz',
                               'bids:lesions:sub-01/anat/sub-01_label-lesion_mask.nii.gz']  # fmt: skip
    assert info['LesionVoxelsUsed'] == used_mask.sum()
    assert info['Model'] == 'tiny'
    assert {'SkullStripped', 'RandomSeed', 'NumInferenceSteps', 'LesionVoxelsGiven', 'Device'} <= set(info)
    assert {'LesionVoxelsUnmixed', 'Texture'} <= set(info)


@pytest.mark.parametrize(('content', 'words'), [
    (b'not an image', 'sub-01_T1w.nii.gz'),
    (nib.Nifti1Image(np.zeros((9, 9, 9, 3), np.float32), np.eye(4)), 'expected one 3D volume'),
    (nib.Nifti1Image(np.zeros((40, 36, 30), np.float32), np.eye(4)), 'expected'),
], ids=['no NIfTI', 'three volumes', 'black'])  # fmt: skip
def test_promise_6_unusable_input_gives_one_clear_sentence(dataset, run, tmp_path, caplog, content, words):
    root = dataset(('01',), **{t1w_path('01'): content})
    assert run(root, tmp_path / 'out') == exit_codes.SOME_FAILED
    (row,) = text_files.read_tsv(tmp_path / 'out/participants.tsv')
    assert words in row['message']
    assert 'Traceback' not in caplog.text


def test_no_lesion_mask_is_reported_and_skipped(tmp_path, make_phantom, run):
    phantom = make_phantom()
    root = write_bids(tmp_path / 'data', {t1w_path('01'): phantom.t1w_img, t1w_path('02'): phantom.t1w_img,
                                          mask_path('02'): phantom.lesion_mask_img})  # fmt: skip
    assert run(root, tmp_path / 'out') == exit_codes.OK
    rows = text_files.read_tsv(tmp_path / 'out/participants.tsv')
    assert [row['status'] for row in rows] == ['no lesion mask', 'filled']
    assert not (tmp_path / 'out/sub-01/anat').exists()
    assert 'no lesion mask' in (tmp_path / 'out/sub-01.html').read_text()


def test_nothing_to_do_has_its_own_exit_code(tmp_path, make_phantom, run):
    root = write_bids(tmp_path / 'data', {t1w_path('01'): make_phantom().t1w_img})
    assert run(root, tmp_path / 'out') == exit_codes.NOTHING_TO_DO


def test_empty_mask_gives_a_copy_and_the_sidecar_says_so(dataset, run, tmp_path, make_phantom):
    root = dataset(('01',), **{mask_path('01'): empty_like(make_phantom().t1w_img)})
    assert run(root, tmp_path / 'out') == exit_codes.OK
    before = nib.load(root / t1w_path('01'))
    after = nib.load(tmp_path / 'out/sub-01/anat/sub-01_desc-filled_T1w.nii.gz')
    assert np.array_equal(before.dataobj.get_unscaled(), after.dataobj.get_unscaled())
    info = derivatives.read_sidecar(tmp_path / 'out/sub-01/anat/sub-01_desc-filled_T1w.nii.gz')
    assert 'copy of the input' in info['Description']
    assert text_files.read_tsv(tmp_path / 'out/participants.tsv')[0]['status'] == 'copied'


def test_several_candidates_are_an_error_that_names_them(dataset, run, tmp_path, make_phantom):
    other = mask_path('01', name='label-lesion_desc-rater2_mask')
    root = dataset(('01',), **{other: make_phantom().lesion_mask_img})
    assert run(root, tmp_path / 'out') == exit_codes.SOME_FAILED
    message = text_files.read_tsv(tmp_path / 'out/participants.tsv')[0]['message']
    assert 'sub-01_label-lesion_mask.nii.gz' in message
    assert 'sub-01_label-lesion_desc-rater2_mask.nii.gz' in message


def test_several_samples_write_a_deviation_map_and_one_sample_removes_it(dataset, run, tmp_path):
    root, sd = dataset(('01',)), tmp_path / 'out/sub-01/anat/sub-01_desc-filledsd_T1w.nii.gz'
    assert run(root, tmp_path / 'out', '--n-samples', '2', '--num-inference-steps', '2') == exit_codes.OK
    assert nib.load(sd).get_fdata().max() > 0
    assert naming.sidecar(sd).is_file()
    assert run(root, tmp_path / 'out') == exit_codes.OK
    assert not sd.exists()


def test_uncompressed_images_are_read(dataset, run, tmp_path, make_phantom):
    root = dataset(('01',))
    nib.save(nib.load(root / t1w_path('01')), root / 'sub-01/anat/sub-01_T1w.nii')
    (root / t1w_path('01')).unlink()
    assert run(root, tmp_path / 'out') == exit_codes.OK
    assert (tmp_path / 'out/sub-01/anat/sub-01_desc-filled_T1w.nii.gz').is_file()


def test_reports_only_writes_reports_and_fills_nothing(dataset, run, tmp_path):
    root = dataset(('01',))
    assert run(root, tmp_path / 'out') == exit_codes.OK
    filled = data_hashes(tmp_path / 'out', 'sub-01/anat/*')
    (tmp_path / 'out/sub-01.html').unlink()
    assert run(root, tmp_path / 'out', '--reports-only') == exit_codes.OK
    assert (tmp_path / 'out/sub-01.html').is_file()
    assert data_hashes(tmp_path / 'out', 'sub-01/anat/*') == filled


def test_flair_outputs_are_exactly_those_of_the_list(flair_dataset, model_dirs, tmp_path):
    arguments = ['participant', '--modality', 'FLAIR', '--model', str(model_dirs['FLAIR'])]
    assert cli.main([str(flair_dataset()), str(tmp_path / 'out'), *arguments]) == exit_codes.OK
    expected = [file for s in ('01', '02') for file in subject_files(s, modality='FLAIR') + closing_files(s)]
    assert listing(tmp_path / 'out') == sorted(DATASET_FILES + expected)
    assert 'Lesions of FLAIR images were filled' in (tmp_path / 'out/logs/CITATION.md').read_text()


def test_both_modalities_in_one_run_share_a_report(
    real_pictures, flair_dataset, run_modalities, tmp_path, make_phantom
):
    out = tmp_path / 'out'
    assert run_modalities(flair_dataset(), out, 'T1w', 'FLAIR') == exit_codes.OK
    expected = [file for s in ('01', '02') for file in closing_files(s)]
    expected += [file for s in ('01', '02') for m in ('T1w', 'FLAIR') for file in subject_files(s, modality=m)]
    assert listing(out) == sorted(DATASET_FILES + expected)
    tables = [text_files.read_tsv(out / f'sub-01/anat/sub-01_{name}_qc.tsv')
              for name in ('desc-lesions', 'space-FLAIR_desc-lesions')]  # fmt: skip
    row, _ = text_files.read_tsv(out / 'participants.tsv')
    assert (row['status'], row['images'], row['message']) == ('filled', 2, None)
    assert list(row) == ['participant_id', 'status', 'images', 'warnings', 'message']  # no sums over images
    images = text_files.read_tsv(out / 'images.tsv')
    assert [(image['participant_id'], image['modality']) for image in images] == [
        (f'sub-{s}', m) for s in ('01', '02') for m in ('T1w', 'FLAIR')
    ]
    assert list(images[0]) == list(json.loads((out / 'images.json').read_text()))
    for image, lesions in zip(images, tables):
        assert image['filename'] == f'sub-01/anat/sub-01_{image["modality"]}.nii.gz'
        assert (image['desc'], image['status'], image['lesions']) == ('filled', 'filled', 2)
        assert image['filled_volume_ml'] == pytest.approx(sum(r['volume_mm3'] for r in lesions) / 1000, abs=1e-3)
        assert 0 < image['given_volume_ml'] != image['filled_volume_ml'] > 0
    given_ml = make_phantom().lesion_mask.sum() * 0.9 * 1.2 / 1000
    assert images[0]['given_volume_ml'] == pytest.approx(given_ml, rel=0.3)  # drawn on thick slices of the FLAIR
    page = (out / 'sub-01.html').read_text()
    for words in ('<h2>sub-01_T1w</h2>', '<h2>sub-01_FLAIR</h2>', 'Lesions of T1w and FLAIR images were filled'):
        assert words in page


def test_the_close_up_shows_both_images_of_a_visit_and_both_outlines(flair_dataset, run_modalities, tmp_path):
    root, alone, out = flair_dataset(('01',)), tmp_path / 'alone', tmp_path / 'out'
    assert run_modalities(root, alone, 'T1w') == exit_codes.OK
    assert 'the FLAIR of the visit below (on the voxels of the T1w), as it is: it was not filled' in read_page(alone)
    assert run_modalities(root, out, 'T1w', 'FLAIR') == exit_codes.OK
    page = read_page(out)
    assert 'the FLAIR of the visit below (on the voxels of the T1w). ' in page
    assert 'the T1w of the visit below (on the voxels of the FLAIR). ' in page
    assert 'it was not filled' not in page
    assert page.count('blue: of the mask that was given.') == 8  # two images with four pictures each
    assert page.count('"has_given": true') == 2  # the viewer, of each
    for modality in ('T1w', 'FLAIR'):
        pixels = mpl_image.imread(out / f'sub-01/figures/sub-01_{modality}_closeup_mask.png')[..., :3]
        for colour in (report_page.OUTLINE_COLOUR, report_page.GIVEN_COLOUR):
            rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
            assert (np.abs(pixels - rgb).max(axis=2) < 0.01).sum() > 20
    rows = text_files.read_tsv(out / 'sub-01/anat/sub-01_desc-lesions_qc.tsv')
    assert all(0 < row['given_volume_mm3'] <= 1.1 * row['volume_mm3'] for row in rows)


def read_page(output_dir):
    return (output_dir / 'sub-01.html').read_text(encoding='utf-8')


def test_a_report_is_rebuilt_from_all_that_the_output_holds(flair_dataset, run_modalities, ruler, tmp_path):
    """First T1w and FLAIR, then the thickness of the T1w: the section of the FLAIR stays, and its counts."""
    root, out = flair_dataset(('01',)), tmp_path / 'out'
    assert run_modalities(root, out, 'T1w', 'FLAIR') == exit_codes.OK
    images = text_files.read_tsv(out / 'images.tsv')
    assert run_modalities(root, out, 'T1w', more=['--thickness', ruler]) == exit_codes.OK
    page = (out / 'sub-01.html').read_text()
    for words in ('<h2>sub-01_T1w</h2>', '<h2>sub-01_FLAIR</h2>', 'Lesions of T1w and FLAIR images',
                  'sub-01_FLAIR.nii.gz', 'Cortical thickness', 'Volume of the given mask'):  # fmt: skip
        assert words in page
    assert page.count('data:image/png') == 2 * 12
    assert text_files.read_tsv(out / 'images.tsv') == images
    (row,) = text_files.read_tsv(out / 'participants.tsv')
    assert (row['status'], row['images']) == ('filled', 2)


def test_a_report_tells_of_an_image_that_is_no_longer_there(flair_dataset, run_modalities, tmp_path, make_phantom):
    root, out = flair_dataset(('01',)), tmp_path / 'out'
    assert run_modalities(root, out, 'T1w', 'FLAIR') == exit_codes.OK
    (root / flair_path('01')).unlink()
    (root / mask_path('01')).unlink()
    nib.save(make_phantom().lesion_mask_img, root / mask_path('01'))
    assert run_modalities(root, out, 'T1w') == exit_codes.OK
    page = (out / 'sub-01.html').read_text()
    assert '<h2>sub-01_FLAIR</h2>' in page
    assert page.count('data:image/png') == 12


def test_a_repeated_finished_run_draws_nothing_and_needs_no_torch(dataset, run, tmp_path, model_dir):
    root, out = dataset(), tmp_path / 'out'
    assert run(root, out) == exit_codes.OK
    paths = [*out.glob('*.html'), *out.glob('*/figures/*'), *out.glob('*/anat/*')]
    kept = {path: path.stat().st_mtime_ns for path in paths}
    assert len(kept) == 2 * (1 + 12 + 6)
    images = text_files.read_tsv(out / 'images.tsv')
    code = (
        'import sys; from bids_lesionfill.app import cli; code = cli.main(sys.argv[1:]); '
        'print(code, [name for name in ("torch", "matplotlib", "diffusers") if name in sys.modules])'
    )
    arguments = [str(root), str(out), 'participant', '--model', str(model_dir), '--skip-bids-validation']
    result = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.split('\n')[0] == '0 []', result.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert text_files.read_tsv(out / 'images.tsv') == images
    nib.save(empty_like(nib.load(root / t1w_path('01'))), root / mask_path('01'))
    assert run(root, out) == exit_codes.OK
    changed = {path.name for path in kept if path.stat().st_mtime_ns != kept[path]}
    assert 'sub-01.html' in changed
    assert not any(name.startswith('sub-02') for name in changed)


def test_healthy_participants_are_copied_if_that_is_asked_for(dataset, run, ruler, tmp_path, make_phantom, caplog):
    root, out = dataset(('01', '03')), tmp_path / 'out'
    (root / mask_path('03')).unlink()
    assert run(root, out, '--copy-unlesioned', '--thickness', ruler) == exit_codes.OK
    assert set(image_files('sub-03', 'sub-03/', 'T1w')) <= set(listing(out))
    before, after = nib.load(root / t1w_path('03')), nib.load(out / 'sub-03/anat/sub-03_desc-filled_T1w.nii.gz')
    assert before.to_bytes() == after.to_bytes()
    assert not nib.load(out / 'sub-03/anat/sub-03_label-lesion_desc-used_mask.nii.gz').get_fdata().any()
    rows = text_files.read_tsv(out / 'participants.tsv')
    assert [row['status'] for row in rows] == ['filled', 'copied']
    assert (rows[1]['warnings'], rows[1]['message']) == (0, 'copy of the input: there was no lesion to fill')
    assert set(thickness_files('03')) <= set(listing(out))
    first = (out / 'sub-03/anat/sub-03_desc-filled_T1w.json').stat().st_mtime_ns
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert run(root, out, '--copy-unlesioned') == exit_codes.OK
    assert (out / 'sub-03/anat/sub-03_desc-filled_T1w.json').stat().st_mtime_ns == first
    assert run(root, tmp_path / 'other') == exit_codes.OK  # without the option nothing is written for them
    assert not (tmp_path / 'other/sub-03/anat').exists()


def test_promise_1_holds_for_flair_on_a_grid_of_its_own(flair_dataset, run_modalities, tmp_path):
    root, anat = flair_dataset(('01',)), tmp_path / 'out/sub-01/anat'
    assert run_modalities(root, tmp_path / 'out', 'FLAIR') == exit_codes.OK
    before, after = nib.load(root / flair_path('01')), nib.load(anat / 'sub-01_desc-filled_FLAIR.nii.gz')
    used_mask = np.asarray(nib.load(anat / 'sub-01_space-FLAIR_label-lesion_desc-used_mask.nii.gz').dataobj) > 0
    stored = [img.dataobj.get_unscaled() for img in (before, after)]
    assert stored[0].dtype == stored[1].dtype == np.int16
    assert stored[0][~used_mask].tobytes() == stored[1][~used_mask].tobytes()
    assert (stored[0] != stored[1])[used_mask].mean() > 0.9
    assert (after.dataobj.slope, after.dataobj.inter) == (before.dataobj.slope, before.dataobj.inter)
    assert np.array_equal(after.affine, before.affine)
    for row in text_files.read_tsv(anat / 'sub-01_space-FLAIR_desc-lesions_qc.tsv'):
        assert row['mean_after'] < row['mean_before']  # lesions are bright


def test_promises_2_and_3_hold_for_flair_alone_and_beside_t1w(flair_dataset, run_modalities, tmp_path):
    root = flair_dataset(('01',))
    raw = data_hashes(root)
    assert run_modalities(root, tmp_path / 'alone', 'FLAIR') == exit_codes.OK
    assert run_modalities(root, tmp_path / 'both', 'FLAIR', 'T1w') == exit_codes.OK
    assert data_hashes(root) == raw
    alone, both = (data_hashes(tmp_path / name, 'sub-01/anat/*') for name in ('alone', 'both'))
    assert len(alone) == 6
    assert alone.items() <= both.items()


def test_promise_4_flair_without_t1w_fails_and_the_others_go_on(flair_dataset, run_modalities, tmp_path):
    root = flair_dataset()
    (root / t1w_path('01')).unlink()
    assert run_modalities(root, tmp_path / 'out', 'T1w', 'FLAIR') == exit_codes.SOME_FAILED
    first, second = text_files.read_tsv(tmp_path / 'out/participants.tsv')
    reason = 'no T1w of the same session, in which white matter is found'
    assert (first['status'], first['message']) == ('failed', f'{reason}; no T1w image')
    assert (second['status'], second['images']) == ('filled', 2)
    assert not (tmp_path / 'out/sub-01/anat').exists()
    assert reason in (tmp_path / 'out/sub-01.html').read_text()


def test_promise_4_what_is_done_is_done_again_if_the_t1w_or_the_rim_is_another(
    flair_dataset, run_modalities, tmp_path, make_phantom
):
    root = flair_dataset(('01',))
    filled = tmp_path / 'out/sub-01/anat/sub-01_desc-filled_FLAIR.nii.gz'

    def is_done_again(*more):
        before = filled.stat().st_mtime_ns
        assert run_modalities(root, tmp_path / 'out', 'FLAIR', more=more) == exit_codes.OK
        return filled.stat().st_mtime_ns != before

    assert run_modalities(root, tmp_path / 'out', 'FLAIR') == exit_codes.OK
    assert not is_done_again()
    assert is_done_again('--rims', 'grown')
    nib.save(make_phantom(seed=7).t1w_img, root / t1w_path('01'))
    assert is_done_again('--rims', 'grown')


def test_promise_5_every_number_of_a_flair_is_explained(flair_dataset, run_modalities, tmp_path, model_dirs):
    more = ('--rims', 'grown', '--rim-voxels', '1')
    assert run_modalities(flair_dataset(('01',)), tmp_path / 'out', 'FLAIR', more=more) == exit_codes.OK
    anat = tmp_path / 'out/sub-01/anat'
    info = derivatives.read_sidecar(anat / 'sub-01_desc-filled_FLAIR.nii.gz')
    assert info['Sources'] == ['bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz',
                               'bids:lesions:sub-01/anat/sub-01_label-lesion_mask.nii.gz',
                               'bids:raw:sub-01/anat/sub-01_T1w.nii.gz']  # fmt: skip
    assert info['WhiteMatterMedian'] == pytest.approx(350, rel=0.05)
    assert info['Options']['model'] == str(model_dirs['FLAIR'])
    assert (info['RimVoxels'], info['Options']['rim_voxels']) == (1, 1)
    mask = derivatives.read_sidecar(anat / 'sub-01_space-FLAIR_label-lesion_desc-used_mask.nii.gz')
    assert (mask['Dilation'], mask['RimVoxels']) == (1, 1)
    assert mask['SpatialReference'] == info['Sources'][0]


@pytest.mark.parametrize(('content', 'words'), [
    (b'not an image', 'sub-01_T1w.nii.gz'),
    (nib.Nifti1Image(np.ones((9, 9, 9, 3), np.float32), np.eye(4)), 'T1w sub-01_T1w.nii.gz has shape'),
    (nib.Nifti1Image(np.ones((9, 9, 9), np.float32), nib.affines.from_matvec(np.eye(3), [500] * 3)), 'expected a head'),
], ids=['no NIfTI', 'three volumes', 'elsewhere'])  # fmt: skip
def test_promise_6_unusable_t1w_of_a_flair_gives_one_clear_sentence(
    flair_dataset, run_modalities, tmp_path, content, words
):
    root = flair_dataset(('01',), **{t1w_path('01'): content})
    assert run_modalities(root, tmp_path / 'out', 'FLAIR') == exit_codes.SOME_FAILED
    (row,) = text_files.read_tsv(tmp_path / 'out/participants.tsv')
    assert words in row['message']
    assert 'sub-01/log/RUN/crash-sub-01_FLAIR.txt' in listing(tmp_path / 'out')


def test_reasons_name_their_image_if_a_participant_has_several(flair_dataset, run_modalities, tmp_path):
    other = mask_path('01', name='space-T1w_label-lesion_desc-a_mask')
    rater = mask_path('01', name='space-T1w_label-lesion_desc-b_mask')
    root = flair_dataset(('01',))
    for path in (other, rater):
        shutil.copy(root / mask_path('01'), root / path)
    (root / mask_path('01')).rename(root / mask_path('01', name='space-FLAIR_label-lesion_mask'))
    assert run_modalities(root, tmp_path / 'out', 'T1w', 'FLAIR') == exit_codes.SOME_FAILED
    (row,) = text_files.read_tsv(tmp_path / 'out/participants.tsv')
    assert row['message'].startswith('sub-01_T1w: 2 lesion masks fit sub-01_T1w')
    assert row['images'] == 1
    assert 'sub-01_FLAIR' not in row['message']


@pytest.fixture
def ruler(monkeypatch):
    monkeypatch.setitem(registry.ENGINES, 'ruler', Ruler)
    return 'ruler'


def thickness_files(subject):
    names = [f'desc-{desc}_dseg.{end}' for desc in ('original', 'filled') for end in ('nii.gz', 'json')]
    names += [f'seg-DK_desc-{desc}_morph.{end}' for desc in naming.THICKNESS_DESCS for end in ('tsv', 'json')]
    return [f'sub-{subject}/anat/sub-{subject}_{name}' for name in names]


def test_thickness_is_written_reported_and_aggregated_and_its_failure_spares_the_filling(dataset, run, ruler, tmp_path):
    root, out = dataset(), tmp_path / 'out'
    assert run(root, out, '--thickness', ruler) == exit_codes.SOME_FAILED
    files = listing(out)
    assert set(thickness_files('01') + subject_files('01')) <= set(files)
    assert set(subject_files('02')) <= set(files)
    assert not any('morph' in file for file in files if 'sub-02' in file)
    first, second = text_files.read_tsv(out / 'participants.tsv')
    assert (first['status'], second['status']) == ('filled', 'failed')
    assert second['message'].startswith('thickness by ruler (original): no cortex in sight')
    assert 'Cortical thickness, ruler' in (out / 'sub-01.html').read_text()
    assert 'before and after filling by a ruler;' in (out / 'logs/CITATION.md').read_text()
    assert 'Filled, but the thickness was not measured' in (out / 'sub-02.html').read_text()
    assert run(root, out, level='group') == exit_codes.OK
    group_files = ['group.html', 'group_reproducibility.tsv', 'group_reproducibility.json',
                   'group_reproducibility_roi.tsv', 'phenotype/thickness.tsv', 'phenotype/thickness.json']  # fmt: skip
    assert set(group_files) <= set(listing(out))
    row, _ = text_files.read_tsv(out / 'group_reproducibility.tsv')
    assert (row['engine'], row['n']) == ('ruler', 1)
    assert row['error_global_percent'] > row['noise_global_percent'] == 0
    assert 'no cortex in sight' in (out / 'group.html').read_text()


def test_results_of_freesurfer_are_read_for_the_filling_that_they_measured_alone(dataset, run, tmp_path):
    root, out = dataset(('01',)), tmp_path / 'out'
    assert run(root, out) == exit_codes.OK
    filled = out / 'sub-01/anat/sub-01_desc-filled_T1w.nii.gz'
    first = filled.read_bytes()
    for name, thick in (('fs_raw', 2.0), ('fs_filled', 2.2)):
        write_stats(tmp_path / name / 'sub-01', thick=thick)
        (tmp_path / name / 'sub-01/mri').mkdir()
        (tmp_path / name / 'sub-01/mri/aseg.mgz').write_text('labels that nobody should read')
    reading = ['--thickness', 'freesurfer', '-d', f'original={tmp_path / "fs_raw"}', f'filled={tmp_path / "fs_filled"}']
    assert run(root, out, *reading, '--rims', 'grown') == exit_codes.SOME_FAILED
    (row,) = text_files.read_tsv(out / 'participants.tsv')
    assert 'filled from other inputs or with other options, and freesurfer measured that' in row['message']
    assert run(root, out, *reading) == exit_codes.OK
    assert filled.read_bytes() == first
    assert run(root, out, level='group') == exit_codes.OK
    row = text_files.read_tsv(out / 'phenotype/thickness.tsv')[0]
    assert (row['engine'], row['scan'], row['noise_global_percent']) == ('freesurfer', 'sub-01', None)
    regions = text_files.read_tsv(out / 'group_reproducibility_roi.tsv')
    assert regions[0]['error_percent'] == pytest.approx(100 * 0.2 / 4.2)  # 2.0 against 2.2 mm


@pytest.mark.slow
@pytest.mark.skipif(validator() is None, reason='bids-validator-deno is not installed')
def test_output_and_demo_are_valid_bids(real_pictures, flair_dataset, run_modalities, ruler, run, tmp_path):
    more = ('--n-samples', '2', '--num-inference-steps', '1', '--thickness', ruler)
    root = flair_dataset(('01', '03'))
    assert run_modalities(root, tmp_path / 'out', 'T1w', 'FLAIR', more=more) == exit_codes.OK
    assert run(root, tmp_path / 'out', level='group') == exit_codes.OK
    for folder in (tmp_path / 'out', ROOT / 'demo', ROOT / 'demo/derivatives/lesions'):
        command = [validator(), '--ignoreWarnings', str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_demo_patient_is_filled_by_the_bundled_model(tmp_path):
    assert (
        cli.main([str(ROOT / 'demo'), str(tmp_path / 'out'), 'participant', '--participant-label', '07'])
        == exit_codes.OK
    )
    anat = tmp_path / 'out/sub-07/anat'
    rows = text_files.read_tsv(anat / 'sub-07_desc-lesions_qc.tsv')
    info = derivatives.read_sidecar(anat / 'sub-07_desc-filled_T1w.nii.gz')
    assert len(rows) == info['Lesions'] == 36
    changed_most = sorted(rows, key=lambda row: (row['mean_before'] - row['mean_after']) * row['volume_mm3'])[:5]
    for row in changed_most:  # lesions are dark, and end near the white matter around them
        assert row['mean_before'] < row['mean_after']
        assert row['mean_after'] == pytest.approx(row['mean_surrounding'], rel=0.06)


# Inputs of other tools


def test_small_lesions_and_other_labels_are_kept_as_they_are(dataset, run, tmp_path, make_phantom):
    phantom = make_phantom()
    labels = np.where(phantom.lesion_mask, 3, 0).astype(np.uint8)
    labels[:20][phantom.lesion_mask[:20]] = 7
    root = dataset(('01',), **{mask_path('01'): phantom.img(labels)})
    assert run(root, tmp_path / 'out', '--lesion-labels', '7') == exit_codes.OK
    anat = tmp_path / 'out/sub-01/anat'
    before, after = nib.load(root / t1w_path('01')), nib.load(anat / 'sub-01_desc-filled_T1w.nii.gz')
    changed = before.dataobj.get_unscaled() != after.dataobj.get_unscaled()
    assert not changed[labels == 3].any()
    assert changed[labels == 7].mean() > 0.9
    used_mask = np.asarray(nib.load(anat / 'sub-01_label-lesion_desc-used_mask.nii.gz').dataobj) > 0
    assert not used_mask[labels == 3].any()
    info = derivatives.read_sidecar(anat / 'sub-01_desc-filled_T1w.nii.gz')
    assert info['LesionVoxelsKept'] == (labels == 3).sum()
    assert info['Options']['lesion_labels'] == [7]
    assert run(root, tmp_path / 'none', '--min-lesion-volume', '1e6') == exit_codes.OK
    row = text_files.read_tsv(tmp_path / 'none/participants.tsv')[0]
    assert (row['status'], row['message']) == (
        'copied', 'All lesions are to be kept: the output is a copy of the input.')  # fmt: skip


def test_labels_of_freesurfer_are_used_and_the_report_says_so(dataset, run, tmp_path, make_phantom):
    phantom, root = make_phantom(), dataset(('01',))
    mri = root / 'derivatives/freesurfer/sub-01/mri'
    mri.mkdir(parents=True)
    canonical = nib.as_closest_canonical(phantom.tissue_seg_img)
    aseg = np.array([0, 24, 3, 2], np.int32)[np.asarray(canonical.dataobj)]
    nib.save(nib.MGHImage(aseg, canonical.affine), mri / 'aseg.mgz')
    assert run(root, tmp_path / 'out') == exit_codes.OK
    info = derivatives.read_sidecar(tmp_path / 'out/sub-01/anat/sub-01_desc-filled_T1w.nii.gz')
    assert info['WhiteMatterSource'] == 'labels of FreeSurfer in aseg.mgz'
    assert 'bids:freesurfer:sub-01/mri/aseg.mgz' in info['Sources']
    assert 'labels of FreeSurfer in aseg.mgz' in (tmp_path / 'out/sub-01.html').read_text()
    filters = tmp_path / 'filters.json'
    filters.write_text('{"tissue": null}')
    assert run(root, tmp_path / 'out', '--bids-filter-file', str(filters)) == exit_codes.OK
    info = derivatives.read_sidecar(tmp_path / 'out/sub-01/anat/sub-01_desc-filled_T1w.nii.gz')
    assert info['WhiteMatterSource'].startswith('mixture of three normal distributions')


def test_mask_on_a_flair_that_lies_elsewhere_is_registered_and_shown(real_pictures, tmp_path, run, make_phantom):
    phantom = make_phantom(affine=np.diag([-4.0, 4, 4, 1]))
    moved = nib.affines.from_matvec(np.eye(3), (12, -8, 8)) @ phantom.affine @ nib.affines.from_matvec(
        np.eye(3), (0, 0, 1))  # fmt: skip
    flair, mask = phantom.flair[:, :, 1:], phantom.lesion_mask[:, :, 1:].astype(np.uint8)
    name = 'space-FLAIR_label-lesion_mask'
    root = write_bids(tmp_path / 'data', {t1w_path('01'): phantom.t1w_img, flair_path('01'): nib.Nifti1Image(
        flair, moved), mask_path('01', name=name): nib.Nifti1Image(mask, moved)})  # fmt: skip
    out = tmp_path / 'out'
    assert run(root, out) == exit_codes.OK
    anat = out / 'sub-01/anat'
    used_mask = np.asarray(nib.load(anat / 'sub-01_label-lesion_desc-used_mask.nii.gz').dataobj) > 0
    assert used_mask[phantom.lesion_mask].mean() > 0.8
    assert (anat / 'sub-01_from-FLAIR_to-T1w_mode-image_xfm.txt').is_file()
    info = derivatives.read_sidecar(anat / 'sub-01_desc-filled_T1w.nii.gz')
    assert info['FlairRegistration']['ShiftMm'] == pytest.approx(np.linalg.norm((12, -8, 8)), abs=4)
    assert 'bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz' in info['Sources']
    page = (out / 'sub-01.html').read_text()
    assert 'T1w and FLAIR after registration' in page
    assert '<span class="tag">FLAIR</span>' in page
    assert (out / 'sub-01/figures/sub-01_T1w_overlay_after.png').is_file()


# Several processes


def of_patients(folder):
    """Hashes of what a run writes for patients, but for what names the time or the command."""
    hashes = data_hashes(folder, '*/anat/*') | data_hashes(folder, '*/figures/*')
    return hashes | data_hashes(folder, 'participants.tsv')


@pytest.mark.slow
def test_results_of_several_processes_are_those_of_one(real_pictures, dataset, run, tmp_path):
    root = dataset(('01', '02', '03'), **{t1w_path('02'): b'not an image'})
    assert run(root, tmp_path / 'one') == exit_codes.SOME_FAILED
    assert run(root, tmp_path / 'two', '--nprocs', '2', '-w', str(tmp_path / 'work')) == exit_codes.SOME_FAILED
    one, two = (of_patients(tmp_path / name) for name in ('one', 'two'))
    assert len(one) == 2 * 6 + 2 * 12 + 1
    assert one == two
    filled = tmp_path / 'two/sub-01/anat/sub-01_desc-filled_T1w.nii.gz'
    before = filled.stat().st_mtime_ns
    assert run(root, tmp_path / 'two', '--nprocs', '2', '-w', str(tmp_path / 'elsewhere')) == exit_codes.SOME_FAILED
    assert filled.stat().st_mtime_ns == before  # a run that goes on does nothing twice


@pytest.mark.slow
def test_sessions_are_nodes_of_their_own_and_the_participant_waits_for_them(run, tmp_path, make_phantom, caplog):
    images = {}
    for seed, session in enumerate('ab'):
        phantom = make_phantom(seed=seed)
        images |= {t1w_path('01', session): phantom.t1w_img, mask_path('01', session): phantom.lesion_mask_img}
    root = write_bids(tmp_path / 'data', images | {t1w_path('02', 'a'): b'not an image', mask_path('02', 'a'): b'no'})
    caplog.set_level(logging.INFO, 'bids_lesionfill')
    assert run(root, tmp_path / 'one') == exit_codes.SOME_FAILED
    assert run(root, tmp_path / 'two', '--nprocs', '2', '-w', str(tmp_path / 'work')) == exit_codes.SOME_FAILED
    nodes = {path.name for path in (tmp_path / 'work').glob('*/*/participants/*')}
    assert {'sub_01', 'sub_01_ses_a', 'sub_01_ses_b', 'sub_02'} <= nodes
    assert not any('sub_02_ses' in name for name in nodes)
    one, two = (data_hashes(tmp_path / name, '**/anat/*') for name in ('one', 'two'))
    assert len(one) == 12
    assert one == two
    assert sorted(re.findall(r'(sub-\d+) is done', caplog.text)) == ['sub-01', 'sub-02']


@pytest.mark.slow
def test_raw_layout_is_a_valid_raw_dataset_with_filled_images(dataset, run, tmp_path):
    root, raw = dataset(), tmp_path / 'raw'
    assert run(root, raw, '--output-layout', 'raw') == exit_codes.OK
    filled = raw / 'derivatives/bids_lesionfill/sub-01/anat/sub-01_desc-filled_T1w.nii.gz'
    assert (raw / t1w_path('01')).read_bytes() == filled.read_bytes()
    assert (raw / t1w_path('02')).is_file()
    for folder in (raw, raw / 'derivatives/bids_lesionfill') if validator() else ():  # -r reads no .bidsignore below
        command = [validator(), '--ignoreWarnings', str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout
