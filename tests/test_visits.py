"""`--mode synth` on small datasets: what is written, and what is done again (one image: test_synth.py)."""

import json
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from app_outputs import DATASET_FILES, ROOT, closing_files, data_hashes, validator
from bids_examples import bytes_without_place, flair_path, listing, mask_path, t1w_path, write_bids

from bids_lesionfill import text_files
from bids_lesionfill.app import cli, exit_codes, reporting
from bids_lesionfill.app import options as app_options
from bids_lesionfill.images import masks, placement
from bids_lesionfill.layout import derivatives, inputs, naming
from bids_lesionfill.lesions import synthesis


def names_of(subject, modality, desc='synth'):
    """Images, masks and tables of an image with new lesions."""
    stem, space = f'sub-{subject}/anat/sub-{subject}', '' if modality == 'T1w' else f'_space-{modality}'
    return {
        'synth': f'{stem}_desc-{desc}_{modality}.nii.gz',
        'mask': f'{stem}{space}_label-lesion_desc-{desc}_mask.nii.gz',
        'new_mask': f'{stem}{space}_label-lesion_desc-{desc}new_mask.nii.gz',
        'changed_mask': f'{stem}{space}_label-lesion_desc-{desc}changed_mask.nii.gz',
        'lesions': f'{stem}{space}_desc-{desc}lesions_qc.tsv',
    }


def files_of(out, subject, modality, desc='synth'):
    """The same with their sidecars, and a picture of the image and each lesion in its table, before and after."""
    names = names_of(subject, modality, desc)
    n_lesions = len(text_files.read_tsv(out / names['lesions']))
    entries = ['overview', *(f'lesion-{n}' for n in range(1, n_lesions + 1))]
    pictures = [f'{entry}_{picture}' for entry in entries for picture in ('before', 'mask', 'after')]
    return [
        *names.values(),
        *(naming.sidecar(out / name).relative_to(out).as_posix() for name in names.values()),
        *(f'sub-{subject}/figures/sub-{subject}_{modality}_{desc}_{picture}.png' for picture in pictures),
        f'sub-{subject}/log/RUN/time-sub-{subject}_{modality}_{desc}.json',
    ]


def stored_as_int16(img):
    stored = nib.Nifti1Image(np.rint(img.get_fdata() / 0.25).astype(np.int16), img.affine)
    stored.header.set_slope_inter(0.25, 0.0)
    return stored


def mask_at(path):
    return np.asarray(nib.load(path).dataobj) > 0


@pytest.fixture(scope='module')
def model_dirs(tmp_path_factory):
    """Models of synthesis with a tiny network of random weights."""
    import torch

    from bids_lesionfill.diffusion import forms
    from bids_lesionfill.train import loop, plans

    options = {'block_out_channels': (8, 8), 'down_block_types': ('DownBlock2D',) * 2,
               'up_block_types': ('UpBlock2D',) * 2, 'norm_num_groups': 4}  # fmt: skip
    folders = {modality: tmp_path_factory.mktemp('models') / 'tiny' for modality in ('T1w', 'FLAIR')}
    for modality, folder in folders.items():
        form = forms.Form(base='lesion', residual_scale=0.02)
        plan = plans.Plan('tiny', task='synth', modality=modality, form=form, unet_options=options)
        torch.manual_seed(0)
        contrasts = np.full(5, 20.0), np.linspace(0.2, 0.6, 5) * (1 if modality == 'FLAIR' else -1)
        loop.save_model(plan.build_unet(), plan, folder, contrasts=contrasts)
    return folders


@pytest.fixture(scope='module')
def run(model_dirs, find_tiny_places):
    """Run the app with the tiny models, and without registration to the lesion library."""

    def call(bids_dir, output_dir, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app_options.Options, 'model_of', lambda self, modality: str(model_dirs[modality]))
            patch.setattr(synthesis, 'find_places', find_tiny_places)
            return cli.main([str(bids_dir), str(output_dir), 'participant', '--mode', 'synth', *map(str, arguments)])

    return call


@pytest.fixture(scope='module')
def visits(tmp_path_factory, make_phantom, run):
    """A patient with T1w and FLAIR of another grid, a healthy one, one without T1w: input, output, exit code."""
    images = {}
    for seed, subject in enumerate(('01', '02', '03')):
        head = make_phantom(seed=seed)
        images |= {
            t1w_path(subject): stored_as_int16(head.t1w_img if subject == '01' else head.healthy_img),
            flair_path(subject): stored_as_int16(head.thick_slices(head.flair)),
        }
        if subject == '01':
            images[mask_path(subject)] = head.thick_slices(head.lesion_mask)
    del images[t1w_path('03')]
    root = tmp_path_factory.mktemp('visits')
    write_bids(root / 'data', images)
    before = data_hashes(root / 'data')
    code = run(root / 'data', root / 'out', '--lesion-load-ml', '0.12', '--n-lesions', '3')
    assert data_hashes(root / 'data') == before
    return root / 'data', root / 'out', code


def test_outputs_are_exactly_those_of_the_list(visits):
    _, out, _ = visits
    expected = [file for s in ('01', '02') for m in ('T1w', 'FLAIR') for file in files_of(out, s, m)]
    expected += [file for s in ('01', '02', '03') for file in closing_files(s, has_results=s != '03')]
    assert listing(out) == sorted(DATASET_FILES + expected)


def test_promise_1_outside_the_new_lesions_and_their_halo_nothing_changes(visits):
    root, out, _ = visits
    for subject in ('01', '02'):
        for modality, path in (('T1w', t1w_path(subject)), ('FLAIR', flair_path(subject))):
            names = names_of(subject, modality)
            before, after = nib.load(root / path), nib.load(out / names['synth'])
            new_mask, changed_mask = (mask_at(out / names[name]) for name in ('new_mask', 'changed_mask'))
            stored = [img.dataobj.get_unscaled() for img in (before, after)]
            assert stored[0].dtype == stored[1].dtype == np.int16
            assert changed_mask[new_mask].all()
            assert stored[0][~changed_mask].tobytes() == stored[1][~changed_mask].tobytes()
            assert (stored[0] != stored[1])[new_mask].mean() > 0.9
            assert (after.dataobj.slope, after.dataobj.inter) == (before.dataobj.slope, before.dataobj.inter)
            for row in text_files.read_tsv(out / names['lesions']):
                assert (row['mean_after'] > row['mean_surrounding']) == (modality == 'FLAIR')


def test_ground_truth_is_the_union_of_old_and_new_lesions(visits):
    root, out, _ = visits
    old_img = nib.load(root / mask_path('01'))
    for modality, path in (('T1w', t1w_path('01')), ('FLAIR', flair_path('01'))):
        names = names_of('01', modality)
        old = placement.mask_on_grid(old_img, nib.load(root / path))
        new = mask_at(out / names['new_mask'])
        assert new.any()
        assert not (old & new).any()
        assert np.array_equal(mask_at(out / names['mask']), old | new)


def test_t1w_and_flair_of_a_visit_share_their_lesions(visits):
    root, out, _ = visits
    for subject in ('01', '02'):
        on_t1w, on_flair = (names_of(subject, modality)['new_mask'] for modality in ('T1w', 'FLAIR'))
        expected = placement.mask_on_grid(nib.load(out / on_t1w), nib.load(root / flair_path(subject)))
        found = mask_at(out / on_flair)
        assert 2 * (expected & found).sum() > 0.7 * (expected.sum() + found.sum())  # drawn on the grid of 1 mm


def test_healthy_participant_gets_lesions_without_a_mask(visits):
    _, out, _ = visits
    names = names_of('02', 'T1w')
    assert np.array_equal(mask_at(out / names['mask']), mask_at(out / names['new_mask']))
    info = derivatives.read_sidecar(out / names['synth'])
    assert info['LesionVoxelsOld'] == 0
    assert info['Sources'] == ['bids:raw:sub-02/anat/sub-02_T1w.nii.gz']


def test_flair_without_t1w_fails_with_a_sentence_and_the_others_go_on(visits):
    _, out, code = visits
    assert code == exit_codes.SOME_FAILED
    rows = {row['participant_id']: row for row in text_files.read_tsv(out / 'participants.tsv')}
    assert {name: row['status'] for name, row in rows.items()} == {
        'sub-01': 'synthesized', 'sub-02': 'synthesized', 'sub-03': 'failed'}  # fmt: skip
    reason = 'no T1w of the same session, in which white matter is found'
    assert rows['sub-03']['message'] == f'{reason}; no T1w image'
    assert reason in (out / 'sub-03.html').read_text()
    assert rows['sub-01']['images'] == 2
    tables = [text_files.read_tsv(out / names_of('01', modality)['lesions']) for modality in ('T1w', 'FLAIR')]
    images = [row for row in text_files.read_tsv(out / 'images.tsv') if row['participant_id'] == 'sub-01']
    images = {row['modality']: row for row in images}
    for modality, table in zip(('T1w', 'FLAIR'), tables):
        assert images[modality]['lesions'] == len(table)
        volume_ml = sum(row['volume_mm3'] for row in table) / 1000
        assert images[modality]['synthesized_volume_ml'] == pytest.approx(volume_ml, abs=1e-2)
        assert images[modality]['filled_volume_ml'] is None


def test_promise_5_every_number_is_explained(visits, model_dirs):
    _, out, _ = visits
    names = names_of('01', 'FLAIR')
    info = derivatives.read_sidecar(out / names['synth'])
    assert info['Sources'] == ['bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz',
                               'bids:lesions:sub-01/anat/sub-01_label-lesion_mask.nii.gz',
                               'bids:raw:sub-01/anat/sub-01_T1w.nii.gz']  # fmt: skip
    assert info['LesionVoxelsNew'] == mask_at(out / names['new_mask']).sum()
    assert info['LesionSource'] == 'drawn from a library'
    assert info['ContrastReference'] == '5 lesions that the model was trained on'
    assert info['WhiteMatterMedian'] == pytest.approx(350, rel=0.05)
    assert info['Options']['model'] == str(model_dirs['FLAIR'])
    assert (info['Options']['n_lesions'], info['Options']['lesion_load_ml']) == (3, 0.12)
    assert 'Visits' not in info
    mask = derivatives.read_sidecar(out / names['mask'])
    assert (mask['Type'], mask['SpatialReference']) == ('Lesion', info['Sources'][0])


def test_report_and_methods_say_what_was_done(visits):
    _, out, _ = visits
    page = (out / 'sub-01.html').read_text()
    for words in ('<h2>sub-01_T1w</h2>', '<h2>sub-01_FLAIR</h2>', 'New lesions', 'drawn from a library'):
        assert words in page
    methods = (out / 'logs/CITATION.md').read_text()
    assert 'New lesions were painted into FLAIR and T1w images' in methods
    assert 'starting from lesions of even contrast' in methods
    assert 'a random quantile' in methods


def test_what_is_done_is_not_done_again(visits, run):
    root, out, _ = visits
    before = {path: path.stat().st_mtime_ns for path in out.glob('*/anat/*')}
    run(root, out, '--lesion-load-ml', '0.12', '--n-lesions', '3')
    assert {path: path.stat().st_mtime_ns for path in out.glob('*/anat/*')} == before


@pytest.mark.slow
def test_promise_3_results_do_not_depend_on_what_else_is_in_the_run(visits, run, tmp_path):
    root, out, _ = visits
    arguments = ['--lesion-load-ml', '0.12', '--n-lesions', '3', '--participant-label', '02', '--modality', 'T1w']
    assert run(root, tmp_path / 'out', *arguments) == exit_codes.OK
    names = names_of('02', 'T1w').values()
    assert [(tmp_path / 'out' / name).read_bytes() for name in names] == [(out / name).read_bytes() for name in names]
    assert run(root, tmp_path / 'other', *arguments, '--random-seed', '1') == exit_codes.OK
    new_mask = names_of('02', 'T1w')['new_mask']
    assert (tmp_path / 'other' / new_mask).read_bytes() != (out / new_mask).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(validator() is None, reason='bids-validator-deno is not installed')
def test_output_is_valid_bids(visits):
    command = [validator(), '--ignoreWarnings', str(visits[1])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert result.returncode == 0, result.stdout


# One healthy T1w


@pytest.fixture
def t1w_only(tmp_path, make_phantom):
    return write_bids(tmp_path / 'data', {t1w_path('01'): make_phantom().healthy_img})


def times_of(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / 'sub-01/anat').iterdir()}


def test_variants_have_numbers_and_masks_of_their_own_and_are_not_painted_again(t1w_only, run, tmp_path):
    root, out = t1w_only, tmp_path / 'out'
    arguments = ['--modality', 'T1w', '--new-lesions', '2', '--n-variants']
    assert run(root, out, *arguments, '2') == exit_codes.OK
    expected = [file for n in (1, 2) for file in files_of(out, '01', 'T1w', f'synth{n}')]
    assert listing(out) == sorted(DATASET_FILES + expected + closing_files('01'))
    first, second = (mask_at(out / names_of('01', 'T1w', f'synth{n}')['new_mask']) for n in (1, 2))
    assert masks.label_lesions(first)[1] >= 1
    assert not np.array_equal(first, second)
    (row,) = text_files.read_tsv(out / 'participants.tsv')
    assert (row['status'], row['images']) == ('synthesized', 2)
    page = (out / 'sub-01.html').read_text()
    assert '<h2>sub-01_T1w, desc-synth2</h2>' in page
    before = times_of(out)
    assert run(root, out, *arguments, '3') == exit_codes.OK
    after = times_of(out)
    assert {name: after[name] for name in before} == before
    assert 'sub-01_desc-synth3_T1w.nii.gz' in after
    shutil.rmtree(out / 'sub-01/figures')
    assert run(root, out, *arguments, '3', '--reports-only') == exit_codes.OK
    assert times_of(out) == after


def test_new_lesions_are_those_of_a_second_visit_and_the_sidecar_says_so(t1w_only, run, tmp_path):
    out, names = tmp_path / 'out', names_of('01', 'T1w')
    assert run(t1w_only, out, '--modality', 'T1w', '--n-lesions', '2') == exit_codes.OK
    assert 'Visits' not in derivatives.read_sidecar(out / names['synth'])
    assert run(t1w_only, out, '--modality', 'T1w', '--new-lesions', '2') == exit_codes.OK
    visits = derivatives.read_sidecar(out / names['synth'])['Visits']
    assert visits == {'First': 'bids:raw:sub-01/anat/sub-01_T1w.nii.gz', 'Second': 'this image'}


def test_lesions_of_a_mask_that_is_given_are_painted_again_if_it_changes(t1w_only, run, tmp_path, make_phantom):
    out, names, head = tmp_path / 'out', names_of('01', 'T1w'), make_phantom()
    nib.save(head.lesion_mask_img, tmp_path / 'new.nii.gz')
    arguments = ['--modality', 'T1w', '--mask', tmp_path / 'new.nii.gz', '--lesion-intensity', '0.5']
    assert run(t1w_only, out, *arguments) == exit_codes.OK
    assert np.array_equal(mask_at(out / names['new_mask']), head.lesion_mask)
    info = derivatives.read_sidecar(out / names['synth'])
    assert info['LesionSource'] == 'the mask new.nii.gz'
    before = times_of(out)
    assert run(t1w_only, out, *arguments) == exit_codes.OK
    assert times_of(out) == before
    other = np.roll(head.lesion_mask, 1, axis=1)
    nib.save(head.img(other), tmp_path / 'new.nii.gz')
    assert run(t1w_only, out, *arguments) == exit_codes.OK
    assert np.array_equal(mask_at(out / names['new_mask']), other)


def test_flair_that_the_t1w_does_not_need_may_be_unfetched(tmp_path, make_phantom, run):
    head = make_phantom()
    images = {t1w_path('01'): head.t1w_img, mask_path('01'): head.lesion_mask_img, flair_path('01'): head.t1w_img}
    data = write_bids(tmp_path / 'data', images)
    (data / flair_path('01')).unlink()
    (data / flair_path('01')).symlink_to('../../.git/annex/objects/X')
    assert run(data, tmp_path / 'out', '--modality', 'T1w', '--n-lesions', '1') == exit_codes.OK


@pytest.mark.parametrize('owner', ['acq-mprage_', 'acq-space_'])
def test_a_mask_named_as_one_image_holds_the_real_lesions_of_all(tmp_path, make_phantom, run, owner):
    head, out = make_phantom(), tmp_path / 'out'
    data = write_bids(tmp_path / 'data', {
        t1w_path('01', extra='acq-mprage_'): head.t1w_img, flair_path('01', extra='acq-space_'): head.img(head.flair),
        mask_path('01', extra=owner): head.lesion_mask_img})  # fmt: skip
    assert run(data, out, '--n-lesions', '1') == exit_codes.OK
    masks_found = sorted(out.rglob('*_desc-synth_mask.nii.gz'))
    new = sorted(out.rglob('*_desc-synthnew_mask.nii.gz'))
    assert len(masks_found) == len(new) == 2
    for found, of_new in zip(masks_found, new):
        assert np.array_equal(mask_at(found), head.lesion_mask | mask_at(of_new))
        assert not (head.lesion_mask & mask_at(of_new)).any()
        assert any('label-lesion_mask' in uri for uri in derivatives.read_sidecar(found)['Sources'])
    assert np.array_equal(*map(mask_at, new))


def test_a_mask_that_cannot_be_read_fails_its_participant_alone(tmp_path, make_phantom, run):
    head = make_phantom()
    data = write_bids(tmp_path / 'data', {
        t1w_path('01', extra='acq-mprage_'): head.t1w_img, flair_path('01'): head.img(head.flair),
        mask_path('01', extra='acq-mprage_'): b'no image', t1w_path('02'): head.t1w_img})  # fmt: skip
    assert run(data, tmp_path / 'out', '--n-lesions', '1', '--modality', 'FLAIR', 'T1w') == exit_codes.SOME_FAILED
    rows = {row['participant_id']: row for row in text_files.read_tsv(tmp_path / 'out/participants.tsv')}
    assert rows['sub-01']['status'] == 'failed'
    assert 'label-lesion_mask.nii.gz' in rows['sub-01']['message']
    assert (tmp_path / 'out' / names_of('02', 'T1w')['synth']).is_file()


@pytest.mark.parametrize('is_same_grid', [True, False])
def test_a_mask_on_one_flair_is_that_of_another_only_on_the_same_grid(tmp_path, make_phantom, run, is_same_grid):
    head = make_phantom()
    other = head.img(head.flair) if is_same_grid else head.thick_slices(head.flair)
    data = write_bids(tmp_path / 'data', {
        t1w_path('01'): head.t1w_img, flair_path('01', extra='acq-2D_'): other,
        flair_path('01', extra='acq-3D_'): head.img(head.flair),
        mask_path('01', extra='acq-3D_', name='space-FLAIR_label-lesion_mask'): head.lesion_mask_img})  # fmt: skip
    code = run(data, tmp_path / 'out', '--n-lesions', '1', '--modality', 'FLAIR')
    assert code == (exit_codes.OK if is_same_grid else exit_codes.SOME_FAILED)
    done = sorted(path.name for path in (tmp_path / 'out').rglob('*_desc-synth_FLAIR.nii.gz'))
    assert len(done) == (2 if is_same_grid else 1)
    for mask in (tmp_path / 'out').rglob('*_desc-synth_mask.nii.gz'):
        assert (mask_at(mask) & head.lesion_mask).sum() == head.lesion_mask.sum()


def test_mask_without_a_place_lies_on_the_voxels_of_the_t1w(run, tmp_path, make_phantom):
    head = make_phantom(affine=np.diag([1.0, 1.0, 1.0, 1.0]))
    data = write_bids(tmp_path / 'data', {t1w_path('01'): head.healthy_img})
    given, (x, y, z) = np.zeros(head.t1w.shape, bool), np.argwhere(head.wm_mask & ~head.lesion_mask).mean(0).astype(int)
    given[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = True
    (tmp_path / 'new.nii').write_bytes(bytes_without_place(head.img(given)))
    assert run(data, tmp_path / 'out', '--modality', 'T1w', '--mask', tmp_path / 'new.nii') == exit_codes.OK
    found = mask_at(tmp_path / 'out' / names_of('01', 'T1w')['new_mask'])
    assert (found & given).sum() > 0.5 * given.sum()
    assert not (found & ~given).any()


@pytest.mark.parametrize('content', ['empty', 'no image'])
def test_mask_that_cannot_be_used_gives_one_clear_sentence(t1w_only, run, tmp_path, make_phantom, content):
    head, path = make_phantom(), tmp_path / 'new.nii.gz'
    path.write_bytes(b'not an image')
    if content == 'empty':
        nib.save(head.img(np.zeros_like(head.lesion_mask)), path)
    assert run(t1w_only, tmp_path / 'out', '--modality', 'T1w', '--mask', path) == exit_codes.SOME_FAILED
    (row,) = text_files.read_tsv(tmp_path / 'out/participants.tsv')
    assert ('the mask of new lesions is empty' if content == 'empty' else 'new.nii.gz') in row['message']
    assert 'sub-01/log/RUN/crash-sub-01_T1w_synth.txt' in listing(tmp_path / 'out')


@pytest.mark.parametrize('mask_on', ['T1w', 'FLAIR'])
def test_flair_that_lies_elsewhere_gets_the_lesions_where_the_t1w_has_them(tmp_path, make_phantom, run, mask_on):
    """FLAIR of the same head, its world moved by 17 mm; old lesions are seen on both, wherever they were drawn."""
    head = make_phantom(affine=np.diag([-4.0, 4, 4, 1]))
    moved = nib.affines.from_matvec(np.eye(3), (12, -8, 8)) @ head.affine @ nib.affines.from_matvec(
        np.eye(3), (0, 0, 1))  # fmt: skip
    drawn = head.lesion_mask_img
    if mask_on == 'FLAIR':
        drawn = nib.Nifti1Image(head.lesion_mask[:, :, 1:].astype(np.uint8), moved)
    given, (x, y, z) = np.zeros(head.t1w.shape, bool), np.argwhere(head.wm_mask & ~head.lesion_mask).mean(0).astype(int)
    given[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = True
    nib.save(head.img(given), tmp_path / 'new.nii.gz')
    root, out = tmp_path / 'data', tmp_path / 'out'
    write_bids(root, {t1w_path('01'): head.t1w_img, flair_path('01'): nib.Nifti1Image(head.flair[:, :, 1:], moved),
                      mask_path('01', name=f'space-{mask_on}_label-lesion_mask'): drawn})  # fmt: skip
    assert run(root, out, '--mask', tmp_path / 'new.nii.gz', '--n-variants', '2') == exit_codes.OK
    for desc in ('synth1', 'synth2'):
        on_t1w, on_flair = (names_of('01', modality, desc) for modality in ('T1w', 'FLAIR'))
        for key, truth in (('new_mask', given), ('mask', given | head.lesion_mask)):
            masks_found = mask_at(out / on_t1w[key])[:, :, 1:], mask_at(out / on_flair[key])
            for found in masks_found:
                assert 2 * (found & truth[:, :, 1:]).sum() > 0.7 * (found.sum() + truth[:, :, 1:].sum())
    written = nib.load(out / on_flair['synth'])
    assert np.allclose(written.affine, moved)
    outside = ~mask_at(out / on_flair['changed_mask'])
    assert np.array_equal(written.get_fdata()[outside], head.flair[:, :, 1:][outside])
    info = derivatives.read_sidecar(out / on_flair['synth'])
    assert info['FlairRegistration']['Used']
    assert any('Look at the overlay' in warning for warning in info['Warnings'])
    assert (out / 'sub-01/anat/sub-01_from-FLAIR_to-T1w_mode-image_desc-FLAIR_xfm.txt').is_file()
    assert 'FLAIR and T1w after registration' in (out / 'sub-01.html').read_text()


def test_lesions_of_another_participant_are_taken(tmp_path, make_phantom, run, no_deformation):
    head = make_phantom()
    images = {t1w_path('01'): head.healthy_img, t1w_path('02'): head.t1w_img, mask_path('02'): head.lesion_mask_img}
    root, out, names = write_bids(tmp_path / 'data', images), tmp_path / 'out', names_of('01', 'T1w')
    arguments = ['--modality', 'T1w', '--participant-label', '01', '--mask-from']
    assert run(root, out, *arguments, 'sub-02') == exit_codes.OK
    found = mask_at(out / names['new_mask'])
    assert 2 * (found & head.lesion_mask).sum() > 0.8 * (found.sum() + head.lesion_mask.sum())
    info = derivatives.read_sidecar(out / names['synth'])
    assert info['LesionSource'] == 'sub-02, by deformable registration'
    assert 'Their masks are those of sub-02, by deformable registration' in (out / 'logs/CITATION.md').read_text()
    before = times_of(out)
    nib.save(head.img(np.roll(head.lesion_mask, 1, axis=1)), root / mask_path('02'))
    assert run(root, out, *arguments, '02') == exit_codes.OK
    assert times_of(out) != before


def test_participant_whose_lesions_cannot_be_taken_is_a_usage_error(t1w_only, run, tmp_path, caplog):
    for label, words in (('01', 'sub-01 has no T1w with a lesion mask'), ('09', 'no sub-09 in')):
        assert run(t1w_only, tmp_path / 'out', '--modality', 'T1w', '--mask-from', label) == exit_codes.USAGE
        assert words in caplog.text


def test_participant_whose_lesions_are_taken_is_skipped_with_a_reason(
    tmp_path, make_phantom, run, no_deformation, caplog
):
    head, out = make_phantom(), tmp_path / 'out'
    images = {t1w_path('01'): head.healthy_img, t1w_path('02'): head.t1w_img, mask_path('02'): head.lesion_mask_img}
    root = write_bids(tmp_path / 'data', images)
    arguments = ['--modality', 'T1w', '--mask-from', '02']
    assert run(root, out, *arguments, '--participant-label', '02') == exit_codes.USAGE
    assert 'sub-02 cannot get its own lesions' in caplog.text
    assert not out.exists()
    assert run(root, out, *arguments) == exit_codes.OK
    first, second = text_files.read_tsv(out / 'participants.tsv')
    assert (first['status'], first['images']) == ('synthesized', 1)
    assert (second['status'], second['images']) == (inputs.DONOR, 0)
    assert second['message'] == 'skipped: its lesions are those that --mask-from gives to the others'
    assert inputs.DONOR in json.loads((out / 'participants.json').read_text())['status']['Levels']
    assert not (out / 'sub-02/anat').exists()
    assert 'skipped: its lesions' in (out / 'sub-02.html').read_text()


def test_nothing_to_do_has_its_own_exit_code(tmp_path, make_phantom, run, caplog):
    root = write_bids(tmp_path / 'data', {t1w_path('01'): make_phantom().healthy_img})
    assert run(root, tmp_path / 'out', '--modality', 'FLAIR') == exit_codes.NOTHING_TO_DO
    assert 'no FLAIR with a T1w' in caplog.text
    (row,) = text_files.read_tsv(tmp_path / 'out/participants.tsv')
    levels = json.loads((tmp_path / 'out/participants.json').read_text())['status']['Levels']
    assert row['status'] == reporting.NO_IMAGE
    assert reporting.NO_IMAGE in levels


def test_reports_of_what_is_not_there_say_so(t1w_only, run, tmp_path):
    assert run(t1w_only, tmp_path / 'out', '--modality', 'T1w', '--reports-only') == exit_codes.SOME_FAILED
    (row,) = text_files.read_tsv(tmp_path / 'out/participants.tsv')
    assert (row['status'], row['message']) == ('failed', 'not synthesized yet')
