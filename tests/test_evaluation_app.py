import csv
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from bids_examples import mask_path, t1w_path, write_bids
from conftest import ellipsoid
from heads import build_head

from bids_lesionfill.diffusion import models as diffusion_models
from bids_lesionfill.evaluate import app_fills, cli, scores
from bids_lesionfill.images import grid
from bids_lesionfill.lesions import fill, measures

SHAPE = (56, 52, 46)
FILLERS = ['--baselines', 'local white-matter mean', 'biharmonic']


def read_tsv(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file, delimiter='\t'))


@pytest.fixture(scope='module')
def data(make_phantom, tmp_path_factory):
    """Patients with T1w and FLAIR, a follow-up in which two lesions appear, healthy brains, and a patient's mask."""
    root = tmp_path_factory.mktemp('data')
    patients, healthy = {}, {}
    for seed, subject in enumerate(('01', '02')):
        phantom = make_phantom(shape=SHAPE, affine=np.eye(4), seed=seed)
        t1w, brain, lesions, *_ = build_head(seed)
        patients[t1w_path(subject)] = phantom.img(np.float32(t1w - 300 * lesions))
        patients[t1w_path(subject).replace('T1w', 'FLAIR')] = phantom.img(
            np.float32((1200 - t1w + 300 * lesions) * brain)
        )
        patients[mask_path(subject)] = phantom.img(lesions)
        healthy[t1w_path(subject)] = phantom.healthy_img
        healthy[mask_path(subject, name='dseg', derivative='tissues')] = phantom.tissue_seg_img
    write_bids(root / 'patients', patients)
    write_bids(root / 'healthy', healthy, derivative='tissues')
    table = 'participant_id\tsplit\trescan_of\nsub-01\tvalidation\tn/a\nsub-02\tvalidation\tsub-01\n'
    (root / 'healthy' / 'participants.tsv').write_text(table)
    (root / 'masks').mkdir()
    mask = ellipsoid(SHAPE, (28, 26, 23), (9, 5, 5)).astype(np.uint8)
    for number in range(2):
        nib.save(nib.Nifti1Image(mask, np.eye(4)), root / 'masks' / f'{number}_label-lesion_mask.nii.gz')
    common = 'derivatives/common/sub-05'
    before = make_phantom(shape=SHAPE, affine=np.eye(4), seed=7)
    again = phantom.img(before.flair - 200 * before.lesion_mask)
    visits = {f'{common}/ses-1/anat/sub-05_ses-1_space-common_FLAIR.nii.gz': again}
    visits[f'{common}/ses-2/anat/sub-05_ses-2_space-common_FLAIR.nii.gz'] = phantom.img(phantom.flair)
    visits[f'{common}/ses-2/anat/sub-05_ses-2_space-common_T1w.nii.gz'] = phantom.t1w_img
    visits[f'{common}/anat/sub-05_space-common_label-change_mask.nii.gz'] = phantom.lesion_mask_img
    write_bids(root / 'visits', visits, derivative='common')
    return root


@pytest.mark.slow
def test_real_patients_have_tables(data, model_dir, tmp_path):
    arguments = [
        str(data / 'healthy'),
        str(tmp_path),
        '--kinds',
        'real',
        '--patients',
        str(data / 'patients'),
        *FILLERS,
    ]
    models = ['--models', str(model_dir)]
    cli.main([*arguments, *models])
    rows = read_tsv(tmp_path / 'real.tsv')
    assert {(row['subject'], row['modality']) for row in rows} == {
        (f'sub-0{n}', modality) for n in (1, 2) for modality in ('T1w', 'FLAIR')
    }
    by_app = {'app, tiny, 1 step', 'app, fill-FLAIR, 1 step'}  # the bundled one, where none is given
    assert {row['method'] for row in rows} == by_app | {'unfilled', 'local white-matter mean', 'biharmonic'}
    assert {row['group'] for row in rows} >= {'all', 'volume 0.1 to 1 ml', 'touches fluid'}
    unfilled, mean = (
        next(row for row in rows if (row['method'], row['group'], row['modality']) == (method, 'all', 'T1w'))
        for method in ('unfilled', 'local white-matter mean')
    )
    assert float(unfilled['mean_sd']) < -10  # dark lesions
    assert abs(float(mean['mean_sd'])) < 1
    assert float(unfilled['dark']) > 0.5  # a half of what was filled was given
    assert float(mean['dark']) == 0
    summary = read_tsv(tmp_path / 'real_summary.tsv')
    assert {row['images'] for row in summary if row['group'] == 'all'} == {'2'}
    assert (tmp_path / 'discriminability.tsv').is_file()
    used = {path: path.read_bytes() for path in (tmp_path / 'fills').iterdir()}
    assert len(used) == 8
    cli.main([*arguments, *models, '--reuse-fills'])
    assert {path: path.read_bytes() for path in (tmp_path / 'fills').iterdir()} == used
    assert {row['seconds'] for row in read_tsv(tmp_path / 'real.tsv')} == {'n/a'}


@pytest.mark.slow
def test_lesions_that_appeared_are_compared_and_drawn(data, model_dir, tmp_path):
    review = tmp_path / 'review.tsv'
    review.write_text('subject\tlesion\tcounts\nsub-05\t1\tyes\n')
    arguments = [str(data / 'healthy'), str(tmp_path / 'out'), '--kinds', 'appeared', *FILLERS, '--review', str(review)]
    cli.main([*arguments, '--follow-up', str(data / 'visits'), '--models', str(model_dir)])
    rows = read_tsv(tmp_path / 'out' / 'appeared.tsv')
    assert {row['modality'] for row in rows} == {'FLAIR'}  # the first visit has no T1w
    assert {(row['lesion'], row['verdict'], row['counts']) for row in rows} == {
        *(('1', 'appeared', 'yes'), ('2', 'appeared', 'not looked at')),
    }
    errors = {row['method']: float(row['error']) for row in rows if row['lesion'] == '1'}
    assert errors['local white-matter mean'] < 2 < errors['unfilled']
    for row in rows:
        assert (tmp_path / 'out' / 'figures' / f'{row["picture"]}.png').is_file()
    counted = {row['lesions']: row['n'] for row in read_tsv(tmp_path / 'out' / 'appeared_summary.tsv')}
    assert counted == {'all that the numbers say': '2', 'looked at': '1'}


@pytest.mark.slow
def test_confluent_cases_are_scored_where_the_app_filled(data, model_dir, no_deformation, tmp_path):
    arguments = [
        str(data / 'healthy'),
        str(tmp_path),
        '--kinds',
        *app_fills.CONFLUENT_KINDS,
        '--lesion-masks',
        str(data / 'masks'),
    ]
    cli.main([*arguments, *FILLERS, '--n-masks', '1', '--models', str(model_dir)])
    rows = read_tsv(tmp_path / 'scores.tsv')
    assert {row['kind'] for row in rows} == {'confluent', 'confluent-tight'}
    assert {row['subject'] for row in rows} == {'sub-01_1'}  # the rescan is the same person
    assert {row['dilation'] for row in rows} == {'app'}
    mse = {row['method']: float(row['mse']) for row in rows if row['kind'] == 'confluent' and row['mse'] != 'n/a'}
    assert mse['biharmonic'] < mse['unfilled'] / 3
    assert 'app, tiny, 1 step' in mse
    assert 'as the app used it' in (tmp_path / 'evaluation.html').read_text()


@pytest.mark.parametrize(('kind', 'option'), [('real', '--patients'), ('appeared', '--follow-up')])
def test_kind_without_its_data_is_refused(kind, option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.parse_options([str(tmp_path), str(tmp_path), '--kinds', kind])
    assert f'kind {kind} needs {option}' in capsys.readouterr().err


def test_no_masks_of_changes_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match='no masks of changes'):
        app_fills.find_follow_ups(tmp_path)


def test_fills_are_made_once(phantom, tmp_path, monkeypatch):
    calls = []

    def fill_once(image_img, lesions, model, t1w_img, sampling):
        calls.append({'t1w_img': t1w_img, 'steps': sampling.num_inference_steps})
        return fill.Filling(phantom.healthy_img, lesions.mask_img)

    monkeypatch.setattr(fill, 'fill_alone', fill_once)
    model = SimpleNamespace(name='some', modality='T1w')
    options = SimpleNamespace(output_dir=tmp_path, reuse_fills=False, device='cpu')
    arguments = ('sub-01 T1w', phantom.t1w_img, phantom.lesion_mask_img, phantom.t1w_img, model, None)
    made = app_fills.fill_by_app(*arguments, options)
    assert calls[0]['t1w_img'] is None  # a T1w finds its own tissue
    options.reuse_fills = True
    again = app_fills.fill_by_app(*arguments, options)
    assert len(calls) == 1
    assert np.isnan(again.seconds)
    assert made.seconds >= 0
    assert np.array_equal(again.filled_img.get_fdata(), made.filled_img.get_fdata())
    assert np.array_equal(again.used_mask_img.get_fdata(), phantom.lesion_mask)
    app_fills.fill_by_app(*arguments[:-1], 5, options)  # other steps are another fill
    assert len(calls) == 2
    assert calls[1]['steps'] == 5


def test_classical_fillers_fill_the_used_mask_alone(phantom):
    fillers = {'mean': lambda image, mask, wm_mask, rng: np.where(mask, 0.5, image)}
    used_img = phantom.lesion_mask_img
    conformed = grid.conform(phantom.t1w_img)
    wm_mask = grid.conform_mask(phantom.wm_mask_img, conformed)
    filled = app_fills.classical_fillings(phantom.t1w_img, used_img, wm_mask, fillers, 0)['mean']
    assert np.array_equal(filled[~phantom.lesion_mask], phantom.t1w[~phantom.lesion_mask])
    assert filled[phantom.lesion_mask].mean() == pytest.approx(800, rel=0.03)  # 0.5 is the median of white matter


def test_summary_of_real_images_is_median_and_range():
    unknown = dict.fromkeys(measures.MEASURES, np.nan)
    keys = {'modality': 'T1w', 'group': 'all', 'method': 'one', 'family': 'model'}
    rows = [unknown | keys | {'grain': value} for value in (0.2, 0.9, 0.4, np.nan)]
    (entry,) = app_fills.summarise_real(rows)
    assert (entry['grain'], entry['grain_min'], entry['grain_max']) == (0.4, 0.2, 0.9)
    assert entry['images'] == 4
    assert np.isnan(entry['glow'])


def test_models_come_by_modality_and_the_bundled_ones_fill_gaps(model_dirs, tmp_path):
    options = cli.parse_options([str(tmp_path), str(tmp_path), '--models', f'{model_dirs["T1w"]}@3'])
    models = scores.models_of(options)
    assert [(label, steps) for label, _, steps in models['T1w']] == [('app, tiny, 3 steps', 3)]
    ((label, model, steps),) = models['FLAIR']
    assert isinstance(model, diffusion_models.Model)
    assert (model.name, steps) == ('fill-FLAIR', None)
    assert label.startswith('app, fill-FLAIR')
