import csv
import functools
import json
import os
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from bids_examples import listing, mask_path, t1w_path, write_bids
from conftest import ellipsoid

from bids_lesionfill.evaluate import cases as evaluate_cases
from bids_lesionfill.evaluate import cli, methods
from bids_lesionfill.evaluate import scores as evaluate_scores
from bids_lesionfill.evaluate.cases import Case, Unit
from bids_lesionfill.evaluate.methods import BASELINES, TRUTH, UNFILLED, ModelMethod
from bids_lesionfill.evaluate.scores import METRICS
from bids_lesionfill.images import metrics, tissues
from bids_lesionfill.layout import datasets
from bids_lesionfill.layout import files as layout_files
from bids_lesionfill.train import cases as train_cases
from bids_lesionfill.train import loop, plans

# A tiny case: white matter in a box of cortex, two lesions


@pytest.fixture(scope='module')
def case():
    """Two lesions in textured white matter; the mask is one voxel too tight."""
    rng = np.random.default_rng(11)
    shape = (34, 26, 24)
    wm_mask = np.zeros(shape, dtype=bool)
    wm_mask[3:-3, 3:-3, 3:-3] = True
    image = (np.where(wm_mask, 0.5, 0.0) + rng.normal(0, 0.03, shape)).astype(np.float32)
    lesions = [ellipsoid(shape, centre, (3, 3, 3)) for centre in ((9, 12, 12), (24, 13, 11))]
    masks = [ellipsoid(shape, centre, (2, 2, 2)) for centre in ((9, 12, 12), (24, 13, 11))]
    seen = image - np.float32(0.2) * lesions[0] - np.float32(0.4) * lesions[1]
    units = tuple(
        Unit(number, lesion, mask, float(lesion.sum() / 1000), 'deep')
        for number, (lesion, mask) in enumerate(zip(lesions, masks, strict=True), start=1)
    )
    return Case('rim', 0, 'sub-01', image, seen, masks[0] | masks[1], wm_mask, units)


@pytest.mark.parametrize('name', BASELINES)
def test_every_baseline_fills_and_leaves_the_outside_alone(name, case):
    given = case.seen.copy(), case.lesion_mask.copy(), case.wm_mask.copy()
    filled = BASELINES[name](*given, np.random.default_rng(0))
    for array, before in zip(given, (case.seen, case.lesion_mask, case.wm_mask), strict=True):
        assert np.array_equal(array, before)
    if name != 'local white-matter mean':  # defined everywhere; what is outside is not taken, see below
        assert np.array_equal(filled[~case.lesion_mask], case.seen[~case.lesion_mask])
    inside = filled[case.lesion_mask]
    assert np.isfinite(inside).all()
    assert (inside != case.seen[case.lesion_mask]).mean() > 0.9


def shuffled_inside(case):
    """What a filler is given, the voxels inside each lesion's mask in another order."""
    rng, seen = np.random.default_rng(1), case.seen.copy()
    for unit in case.units:
        seen[unit.lesion_mask] = rng.permutation(seen[unit.lesion_mask])
    assert not np.array_equal(seen, case.seen)
    return seen


@pytest.mark.parametrize('name', BASELINES)
def test_no_baseline_sees_the_truth_beneath_the_mask(name, case):
    """A painted lesion is the truth but for its contrast: who reads it voxel by voxel could win by adding that."""
    first, again = (
        BASELINES[name](seen.copy(), case.lesion_mask, case.wm_mask, np.random.default_rng(0))
        for seen in (case.seen, shuffled_inside(case))
    )
    assert np.array_equal(first, again)


def test_skimage_biharmonic_is_that_of_the_whole_volume(case):
    from skimage.restoration import inpaint_biharmonic

    filled = methods.skimage_biharmonic(case.seen, case.lesion_mask, case.wm_mask, None)
    np.testing.assert_allclose(filled, inpaint_biharmonic(case.seen, case.lesion_mask), atol=1e-6)


# Scores by hand


def score(case, filled, unit=0, window=(-1, 1)):
    return evaluate_scores.score_unit(case, case.units[unit], filled, window)


def test_truth_has_no_error(case):
    scores = score(case, case.image)
    assert set(scores) | {'seconds'} == set(METRICS)
    assert (scores['mse'], scores['m2_mse']) == (0, 0)
    assert (scores['ssim'], scores['m2_ssim'], scores['texture']) == pytest.approx((1, 1, 1))
    assert scores['psnr'] == pytest.approx(10 * np.log10(4 / 1e-12))
    assert scores['border'] == pytest.approx(1, abs=0.3)


def test_offset_by_hand(case):
    filled = case.image.astype(np.float64)
    filled[case.units[0].score_mask] += 0.1
    scores = score(case, filled)
    assert scores['mse'] == pytest.approx(0.01)
    assert scores['psnr'] == pytest.approx(26.0206, abs=1e-4)  # 10 log10(2^2 / 0.01)
    assert scores['m2_mse'] == pytest.approx(0.05**2)  # the window is 2 wide
    truth = (case.image[case.units[0].score_mask] + 1) / 2
    assert scores['m2_psnr'] == pytest.approx(10 * np.log10(np.ptp(truth) ** 2 / 0.05**2))
    assert scores['texture'] == pytest.approx(1)
    assert scores['ssim'] < 1
    assert scores['m2_ssim'] < 1


def test_border_is_that_of_the_mask_that_was_handed_over(case):
    filled = case.image.copy()
    filled[case.units[0].lesion_mask] += 0.5
    assert score(case, filled)['border'] > 5
    filled = case.image.copy()
    filled[case.units[0].score_mask & ~case.units[0].lesion_mask] += 0.5  # the rim that the mask misses
    assert score(case, filled)['border'] > 5


def test_perceptual_distance_is_that_of_the_slices_with_this_unit_filled_alone(case):
    given = []

    def distance(images, others):
        given.append((images.numpy(), others.numpy()))
        return torch.arange(len(images), dtype=torch.float32)

    unit, filled = case.units[0], case.image + np.float32(0.1)
    scores = evaluate_scores.score_unit(case, unit, filled, (-1, 1), distance)
    ((images, others),) = given
    z = np.flatnonzero(unit.score_mask.any(axis=(0, 1)))
    assert images.shape == others.shape == (len(z), 1, *case.image.shape[:2])
    assert images.dtype == others.dtype == np.float32
    assert scores['lpips'] == np.mean(range(len(z)))
    assert np.array_equal(images[:, 0], np.moveaxis(case.image, 2, 0)[z])
    assert np.array_equal(others != images, np.moveaxis(unit.score_mask, 2, 0)[z][:, None])


def test_units_are_scored_apart(case):
    filled = case.image.copy()
    filled[case.units[1].score_mask] = -1
    assert score(case, filled, 0) == score(case, case.image, 0)
    assert score(case, filled, 1)['mse'] > 1


def test_scores_of_a_unit_are_those_of_the_whole_volume(case, rng):
    """The box around a unit leaves nothing out."""
    filled = (case.image + rng.normal(0, 0.1, case.image.shape)).astype(np.float32)
    mask = case.units[0].score_mask
    window = metrics.brats_window(case.image, case.lesion_mask)
    expected = metrics.slice_scores(case.image, filled, mask)
    expected |= {f'm2_{k}': v for k, v in metrics.brats_scores(case.image, filled, mask, window).items()}
    expected['lpips'] = np.nan
    expected['border'] = metrics.border_ratio(filled, case.units[0].lesion_mask, case.wm_mask)
    expected['texture'] = metrics.texture_ratio(case.image, filled, mask)
    assert score(case, filled, 0, window) == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize('corner', [(0, 0, 0), (33, 25, 23), (0, 25, 10)])
def test_lesion_at_the_edge_of_the_image_is_scored(case, corner):
    mask = np.zeros(case.image.shape, dtype=bool)
    mask[corner] = True
    unit = Unit(1, mask, mask, 0.001, 'deep')
    scores = evaluate_scores.score_unit(case, unit, case.image + np.float32(0.1), (-1, 1))
    assert scores['mse'] == pytest.approx(0.01, rel=1e-5)
    assert np.isfinite(scores['m2_ssim'])


def test_box_around_a_mask():
    mask = np.zeros((50, 50, 14), dtype=bool)
    mask[20:23, 1:4, 13] = True
    box = evaluate_scores.box_around(mask, 8)
    cut = np.zeros(mask.shape)[box].shape
    assert (box[0].start, box[0].stop) == (12, 31)
    assert (box[1].start, box[1].stop) == (0, 12)
    assert cut == (19, 12, 11)
    assert mask[box].sum() == mask.sum()


# Tables

INTERVAL = ('difference', 'low', 'high', 'n')


def row_of(subject='sub-01', unit=1, method='a', mse=0.0, **more):
    row = {'kind': 'clean', 'dilation': 0, 'subject': subject, 'unit': unit, 'volume_ml': 0.05, 'place': 'deep'}
    row |= {'person': subject, 'method': method, 'family': 'model'}
    return row | dict.fromkeys(METRICS, np.nan) | {'mse': mse} | more


@pytest.mark.parametrize(
    ('volume_ml', 'group'),
    [
        (0.008, 'volume 0 to 0.1 ml'),
        (0.1, 'volume 0.1 to 1 ml'),
        (0.999, 'volume 0.1 to 1 ml'),
        (1.0, 'volume over 1 ml'),
        (40.0, 'volume over 1 ml'),
    ],
)
def test_groups_of_a_lesion(volume_ml, group):
    row = row_of(volume_ml=volume_ml, place='juxtacortical')
    assert evaluate_scores.groups_of(row) == ['all', group, 'juxtacortical']


def test_patient_is_in_no_group_of_lesions():
    assert evaluate_scores.groups_of(row_of(kind='patient', place='all', volume_ml=12.0)) == ['all']


def test_summary_by_hand():
    rows = [
        row_of(unit=1, mse=0.1, border=2.0),
        row_of(unit=2, mse=0.3, volume_ml=0.5),
        row_of(unit=3, mse=0.8, volume_ml=0.5, place='periventricular'),
        row_of(unit=1, mse=0.5, method='b'),
        row_of(unit=1, mse=7, kind='rim', dilation=1),
        row_of(unit=1, mse=9, kind='rim', dilation=2),
    ]
    summary = evaluate_scores.summarise(rows)
    found = {(r['kind'], r['dilation'], r['group'], r['method']): (r['n'], r['mse']) for r in summary}
    assert found == {
        ('clean', 0, 'all', 'a'): (3, pytest.approx(0.4)),
        ('clean', 0, 'volume 0 to 0.1 ml', 'a'): (1, 0.1),
        ('clean', 0, 'volume 0.1 to 1 ml', 'a'): (2, pytest.approx(0.55)),
        ('clean', 0, 'deep', 'a'): (2, pytest.approx(0.2)),
        ('clean', 0, 'periventricular', 'a'): (1, 0.8),
        **{('clean', 0, group, 'b'): (1, 0.5) for group in ('all', 'volume 0 to 0.1 ml', 'deep')},
        **{('rim', 1, group, 'a'): (1, 7) for group in ('all', 'volume 0 to 0.1 ml', 'deep')},
        **{('rim', 2, group, 'a'): (1, 9) for group in ('all', 'volume 0 to 0.1 ml', 'deep')},
    }
    everything = summary[0]
    assert 0.1 <= everything['mse_low'] < 0.4 < everything['mse_high'] <= 0.8 + 1e-9
    assert everything['border'] == 2  # NaN are left out
    assert np.isnan([everything['ssim'], everything['ssim_low'], everything['ssim_high']]).all()
    assert everything['family'] == 'model'


def test_summary_is_the_same_twice_and_every_row_has_every_column():
    rows = [row_of(unit=unit, mse=unit**2) for unit in range(9)]
    assert repr(evaluate_scores.summarise(rows)) == repr(evaluate_scores.summarise(rows))
    keys = {'kind', 'dilation', 'group', 'method', 'family', 'n'}
    keys |= {metric + end for metric in METRICS for end in ('', '_low', '_high')}
    assert all(set(row) == keys for row in evaluate_scores.summarise(rows))


def test_comparisons_are_of_shared_cases_method_minus_other():
    rows = [row_of(unit=unit, mse=unit) for unit in (1, 2, 3)]
    rows += [row_of(unit=unit, mse=unit + 0.5, method='b') for unit in (3, 2, 7)]  # another order, others missing
    rows += [row_of(subject='sub-02', unit=1, mse=100, method='b')]
    comparisons = evaluate_scores.compare(rows)
    found = {(c['method'], c['other'], c['metric']): [c[key] for key in INTERVAL] for c in comparisons}
    assert found == {('a', 'b', 'mse'): [-0.5, -0.5, -0.5, 2], ('b', 'a', 'mse'): [0.5, 0.5, 0.5, 2]}
    assert all((c['kind'], c['dilation']) == ('clean', 0) for c in comparisons)


def test_comparisons_keep_kinds_and_dilations_apart():
    rows = [
        row_of(mse=1, kind='rim', dilation=0),
        row_of(mse=3, kind='rim', dilation=0, method='b'),
        row_of(mse=10, kind='rim', dilation=1),
        row_of(mse=50, kind='rim', dilation=1, method='b'),
        row_of(mse=7),
    ]
    found = {(c['kind'], c['dilation'], c['method']): c['difference'] for c in evaluate_scores.compare(rows)}
    assert found == {('rim', 0, 'a'): -2, ('rim', 0, 'b'): 2, ('rim', 1, 'a'): -40, ('rim', 1, 'b'): 40}


def test_comparisons_leave_out_pairs_that_one_has_no_value_for_and_seconds():
    rows = [row_of(unit=unit, mse=1, border=1, seconds=1) for unit in (1, 2)]
    rows += [row_of(unit=1, mse=np.nan, border=3, seconds=2, method='b'), row_of(unit=2, mse=4, method='b')]
    found = {(c['metric'], c['method']): (c['difference'], c['n']) for c in evaluate_scores.compare(rows)}
    assert found == {('mse', 'a'): (-3, 1), ('mse', 'b'): (3, 1), ('border', 'a'): (-2, 1), ('border', 'b'): (2, 1)}


def test_cases_are_counted_once_whatever_their_dilations_and_methods():
    rows = [row_of(unit=unit, method=method) for unit in (1, 2) for method in 'ab']
    rows += [row_of(kind='rim', subject=s, dilation=d) for s in ('sub-01', 'sub-02', 'sub-03') for d in (0, 1, 2)]
    assert cli.count_cases(rows) == {'clean': 2, 'rim': 3}


def test_json_gets_no_nan_and_keeps_names():
    rows = [{'method': 'NaNo-diffusion', 'mse': np.nan, 'psnr': np.float32(0.5), 'n': np.int64(3), 'border': np.inf}]
    expected = {'method': 'NaNo-diffusion', 'mse': None, 'psnr': 0.5, 'n': 3, 'border': None}
    assert layout_files.without_nan(rows) == [expected]


# Pictures


def example(kind, names):
    return {'title': 'x', 'kind': kind, 'images': dict.fromkeys(['healthy truth', 'with lesion', *names])}


def test_artefacts_are_stripes_of_a_clean_and_borders_of_a_rim_example():
    examples = [
        example('rim', ['2D', 'deep', 'other', 'biharmonic']),
        example('clean', ['2D', 'deep', 'RePaint', 'biharmonic']),
        example('rim', []),
    ]
    borders_first = evaluate_scores.artefacts_of(examples, ['RePaint'], ['2D'], ['deep', 'other', 'third'])
    stripes, borders = sorted(borders_first, key=lambda artefact: artefact['title'], reverse=True)
    assert (stripes['title'], stripes['kind'], stripes['view']) == ('Stripes', 'clean', 'sagittal')
    assert stripes['methods'] == ['healthy truth', '2D', 'deep']
    assert (borders['title'], borders['kind'], borders['view']) == ('Borders', 'rim', 'axial')
    assert borders['methods'] == ['healthy truth', 'with lesion', 'deep', 'other', 'biharmonic']  # no RePaint of rims
    assert all(artefact['caption'] for artefact in borders_first)
    examples[0]['images']['RePaint'] = None
    (borders,) = evaluate_scores.artefacts_of(examples[:1], ['RePaint'], ['2D'], ['deep'])
    assert borders['methods'] == ['healthy truth', 'with lesion', 'RePaint', 'deep', 'biharmonic']


def test_artefacts_show_but_what_there_is():
    clean, rim = example('clean', ['deep']), example('rim', ['deep'])
    assert evaluate_scores.artefacts_of([], ['r'], ['2D'], ['deep']) == []
    assert evaluate_scores.artefacts_of([clean], [], [], ['deep']) == []
    assert (
        evaluate_scores.artefacts_of([clean], [], ['2D (RePaint)'], ['deep']) == []
    )  # was not sampled for clean cases
    (borders,) = evaluate_scores.artefacts_of([rim], [], [], ['deep'])
    assert borders['methods'] == ['healthy truth', 'with lesion', 'deep']


# Models and options

PLAN = plans.Plan(
    name='tiny',
    unet_options={
        'block_out_channels': (8, 8),
        'down_block_types': ('DownBlock2D',) * 2,
        'up_block_types': ('UpBlock2D',) * 2,
        'norm_num_groups': 4,
    },
    cases=train_cases.CasePlan(crop=(16, 16, 4)),
    num_inference_steps=2,
)
TINY_PLANS = {
    'conditional': PLAN,
    'flat': replace(PLAN, name='flat', pseudo_3d=False, num_inference_steps=1),
    'repaint': replace(
        PLAN, name='loops', form=plans.UNCONDITIONAL, num_inference_steps=3, jump_length=1, jump_n_sample=2
    ),
}


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Folders of tiny untrained models."""
    folder = tmp_path_factory.mktemp('models')
    for name, plan in TINY_PLANS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loop.save_model(plan.build_unet(), plan, folder / name)
    return {name: str(folder / name) for name in TINY_PLANS}


@pytest.mark.parametrize(
    ('text', 'method'),
    [
        ('fill-T1w', ModelMethod('fill-T1w', None)),
        ('fill-T1w@10', ModelMethod('fill-T1w', 10)),
        ('some/folder@1', ModelMethod('some/folder', 1)),
    ],
)
def test_model_and_steps_are_parsed(text, method):
    assert ModelMethod.parse(text) == method


@pytest.mark.parametrize(
    ('text', 'name', 'repaint'),
    [
        ('conditional', 'tiny, 2 steps', False),
        ('conditional@1', 'tiny, 1 step', False),
        ('flat', 'flat, 1 step', False),
        ('repaint', 'loops, 3 steps (RePaint)', True),
        ('repaint@2', 'loops, 2 steps (RePaint)', True),
    ],
)
def test_models_fill_inside_the_mask_from_the_outside_alone(text, name, repaint, models, case):
    folder, at, steps = text.partition('@')
    found, is_repaint, fill, sha256 = ModelMethod.parse(models[folder] + at + steps).load('cpu')
    assert (found, is_repaint) == (name, repaint)
    assert len(sha256) == 64
    given = case.seen.copy()
    filled, again, other = (
        fill(seen, case.lesion_mask, case.wm_mask, np.random.default_rng(seed))
        for seen, seed in ((given, 0), (shuffled_inside(case), 0), (given, 1))
    )
    assert np.array_equal(given, case.seen)
    assert np.array_equal(filled[~case.lesion_mask], case.seen[~case.lesion_mask])
    inside = case.lesion_mask
    assert np.array_equal(filled[inside], again[inside])
    assert not np.array_equal(filled[inside], other[inside])
    assert np.isfinite(filled).all()


def test_options_have_defaults_that_are_known():
    options = cli.parse_options(['in', 'out'])
    assert options.models == ['fill-T1w']
    assert options.baselines == list(BASELINES)
    assert options.kinds == ['clean', 'rim', 'patient']
    assert (options.dilate, options.repaint_kinds, options.nprocs) == ([0, 1, 2, '1+2'], ['clean'], 1)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--models', 'fill-T9w'], "model 'fill-T9w' is neither bundled"),
        (['--models', 'fill-T1w', '/nowhere@3'], "model '/nowhere' is neither bundled"),
        (['--models', 'fill-T1w@many'], 'fill-T1w@many'),
        (['--models', 'fill-T1w@0'], 'fill-T1w@0'),
        (['--baselines', 'magic'], "'magic'"),
        (['--kinds', 'dirty'], "'dirty'"),
        (['--repaint-kinds', 'dirty'], "'dirty'"),
        (['--dilate', 'x'], "'x'"),
        (['--dilate', '1+x'], "'1+x'"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse_options(['in', 'out', *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert 'usage: ' in error
    assert message in error


# A whole run

SHAPE = (56, 52, 46)


@pytest.fixture(scope='module')
def bids_dir(make_phantom, tmp_path_factory):
    """Two healthy brains to validate, one to train on, and five masks of which the last one is used."""
    root = tmp_path_factory.mktemp('data')
    images = {}
    for seed, subject in enumerate(('01', '02', '03')):
        phantom = make_phantom(shape=SHAPE, affine=np.eye(4), seed=seed)
        images[t1w_path(subject)] = phantom.healthy_img
        images[mask_path(subject, name='dseg', derivative='tissues')] = phantom.tissue_seg_img
    write_bids(root / 'bids', images, derivative='tissues')
    splits = {'01': 'validation', '02': 'train', '03': 'validation'}
    table = ''.join(f'sub-{subject}\t{split}\n' for subject, split in splits.items())
    (root / 'bids' / 'participants.tsv').write_text('participant_id\tsplit\n' + table)
    (root / 'shapes').mkdir()
    affine = np.array([[-1.0, 0, 0, 70], [0, 1, 0, -100], [0, 0, 1, -60], [0, 0, 0, 1]])  # brain of 128 x 157 x 122 mm
    for number in range(5):
        mask = ellipsoid((140, 170, 140), (85, 85, 70), (4, 4, 4)) | ellipsoid((140, 170, 140), (45, 70, 60), (3, 3, 3))
        mask = mask if number == 4 else np.zeros_like(mask)
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), root / 'shapes' / f'{number}_label-lesion_mask.nii.gz')
    return root


SMALL = ['--baselines', 'white-matter normal', 'local white-matter mean', '--n-lesions', '1', '--device', 'cpu']


def run(bids_dir, output_dir, models, *options):
    """Evaluate; return `scores.tsv` as rows without the time."""
    arguments = [str(bids_dir / 'bids'), str(output_dir), '--lesion-masks', str(bids_dir / 'shapes'), *SMALL]
    cli.main([*arguments, '--models', *models, *options])
    rows = read_tsv(output_dir / 'scores.tsv')
    return [{name: value for name, value in row.items() if name != 'seconds'} for row in rows]


def read_tsv(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file, delimiter='\t'))


@pytest.fixture(scope='module')
def finished(bids_dir, models, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp('out') / 'new' / 'folder'
    options = ['--kinds', 'clean', 'rim', '--dilate', '0', '1']
    return output_dir, options, run(bids_dir, output_dir, list(models.values()), *options)


NAMES = ['white-matter normal', 'local white-matter mean', 'tiny, 2 steps', 'flat, 1 step', 'loops, 3 steps (RePaint)']


@pytest.mark.slow
def test_run_writes_tables_and_the_page(finished):
    output_dir, *_ = finished
    figures = ['artefacts', 'example-1', 'example-2', 'example-3', 'example-4', 'scores']
    tables = ['comparisons.tsv', 'evaluation.html', 'evaluation.json', 'scores.tsv', 'summary.tsv']
    assert listing(output_dir) == sorted([*tables, *(f'figures/{name}.png' for name in figures)])


@pytest.mark.slow
def test_scores_hold_every_case_by_every_method(finished):
    _, _, rows = finished
    cases = [('clean', '0'), ('rim', '0'), ('rim', '1')]
    expected = {
        (kind, dilation, subject, '1', name)
        for kind, dilation in cases
        for subject in ('sub-01', 'sub-03')
        for name in [UNFILLED, TRUTH, *NAMES]
        if kind == 'clean' or 'RePaint' not in name
    }
    assert len(rows) == len(expected)
    assert {(r['kind'], r['dilation'], r['subject'], r['unit'], r['method']) for r in rows} == expected
    families = {row['method']: row['family'] for row in rows}
    assert families == dict(zip(NAMES, ['baseline'] * 2 + ['model'] * 3)) | {UNFILLED: 'control', TRUTH: 'control'}
    for row in rows:
        assert (row['mse'] == 'n/a') == (row['method'] == TRUTH)
        assert float(row['border']) > 0
    unfilled = [float(row['mse']) for row in rows if row['method'] == UNFILLED and row['kind'] == 'clean']
    assert min(unfilled) >= 0.15**2 - 1e-6
    mean = [float(row['mse']) for row in rows if row['method'] == NAMES[1] and row['kind'] == 'clean']
    assert max(mean) < 0.001  # noise of the phantom: 0.015


@pytest.mark.slow
def test_tables_and_json_agree(finished):
    output_dir, _, rows = finished
    summary = read_tsv(output_dir / 'summary.tsv')
    content = json.loads((output_dir / 'evaluation.json').read_text(), parse_constant=pytest.fail)
    assert len(content['summary']) == len(summary)
    for row, same in zip(content['summary'], summary, strict=True):
        assert {name: 'n/a' if v is None else str(v) for name, v in row.items()} == same
    (entry,) = (row for row in summary if (row['kind'], row['group'], row['method']) == ('clean', 'all', NAMES[0]))
    values = [float(row['mse']) for row in rows if (row['kind'], row['method']) == ('clean', NAMES[0])]
    assert float(entry['mse']) == pytest.approx(np.mean(values))
    assert entry['n'] == '2'
    info = content['info']
    assert info['subjects'].startswith('sub-01, sub-03: 2 people')
    assert info['lesion shapes'].startswith('2 from the last 1 masks')
    assert info['cases'] == 'clean: 2, rim: 2'
    assert info['models'].count('SHA-256') == 3
    assert 'tiny, 2 steps: SHA-256' in info['models']
    assert info['dilation'] == {'rim': 1}
    comparisons = read_tsv(output_dir / 'comparisons.tsv')
    pair = [r for r in comparisons if (r['kind'], r['metric'], r['method'], r['other']) == ('clean', 'mse', *NAMES[:2])]
    assert len(pair) == 1
    assert pair[0]['n'] == '2'


@pytest.mark.slow
def test_page_names_every_method(finished):
    page = (finished[0] / 'evaluation.html').read_text()
    for name in [*NAMES, UNFILLED, TRUTH]:
        assert name in page
    assert 'src="http' not in page


@pytest.mark.slow
def test_same_seed_same_scores_and_another_seed_others(finished, bids_dir, models, tmp_path):
    _, options, rows = finished
    assert run(bids_dir, tmp_path / 'again', list(models.values()), *options) == rows
    assert run(bids_dir, tmp_path / 'other', [models['flat']], *options, '--seed', '3') != [
        row for row in rows if row['method'] in (*NAMES[:2], 'flat, 1 step', UNFILLED, TRUTH)
    ]


@pytest.mark.slow
def test_scores_do_not_depend_on_the_other_methods(finished, bids_dir, models, tmp_path):
    _, options, rows = finished
    alone = run(bids_dir, tmp_path, [models['flat']], *options)
    assert alone == [row for row in rows if row['method'] in (*NAMES[:2], 'flat, 1 step', UNFILLED, TRUTH)]


@pytest.mark.slow
def test_two_processes_give_the_same_scores(finished, bids_dir, models, tmp_path):
    _, options, rows = finished
    threads = str(os.cpu_count())  # as one process takes: another number adds up in another order
    assert run(bids_dir, tmp_path, list(models.values()), *options, '--nprocs', '2', '--threads', threads) == rows


@pytest.mark.slow
def test_patients_are_filled_as_a_whole(bids_dir, models, tmp_path):
    options = ['--kinds', 'patient', '--baselines', 'biharmonic', 'biharmonic (skimage)']
    rows = run(bids_dir, tmp_path, [models['flat'], models['repaint']], *options)
    assert {row['method'] for row in rows} == {UNFILLED, TRUTH, 'biharmonic', 'flat, 1 step'}
    assert {(row['kind'], row['dilation'], row['unit'], row['place']) for row in rows} == {
        ('patient', '1+2', '1', 'all')
    }
    summary = read_tsv(tmp_path / 'summary.tsv')
    assert {row['group'] for row in summary} == {'all'}
    assert listing(tmp_path / 'figures') == ['scores.png']


@pytest.mark.slow
def test_run_without_models_and_without_repaint(bids_dir, models, tmp_path):
    rows = run(bids_dir, tmp_path / 'a', [], '--kinds', 'clean')
    assert {row['method'] for row in rows} == {UNFILLED, TRUTH, *NAMES[:2]}
    # RePaint of a 2D model is not among the pictures.
    rows = run(bids_dir, tmp_path / 'b', list(models.values()), '--kinds', 'clean', '--repaint-kinds')
    assert {row['method'] for row in rows} == {UNFILLED, TRUTH, *NAMES[:4]}


def test_models_of_one_name_are_refused_before_anything_is_filled(bids_dir, models, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_scores, 'evaluate_brain', lambda job: pytest.fail('too late'))
    with pytest.raises(SystemExit, match='tiny, 2 steps'):
        run(bids_dir, tmp_path, [models['conditional'], models['conditional'] + '@2'])


@pytest.mark.slow
def test_nothing_of_a_filling_outside_the_mask_is_taken(bids_dir, tmp_path, monkeypatch):
    given, states, score_unit = [], [], evaluate_scores.score_unit
    monkeypatch.setattr(
        evaluate_scores, 'score_unit', lambda *arguments: given.append(arguments) or score_unit(*arguments)
    )

    def fill(image, lesion_mask, wm_mask, rng):
        states.append(rng.bit_generator.state)
        return np.full_like(image, 9)

    monkeypatch.setitem(BASELINES, 'biharmonic', fill)
    options = ['--kinds', 'rim', '--dilate', '1', '--baselines', 'biharmonic']
    run(bids_dir, tmp_path, [], *options)
    filled = [(case, filled) for case, _, filled, *_ in given if (filled == 9).any()]
    assert len(filled) == 2
    for case, values in filled:
        assert np.array_equal(values == 9, case.lesion_mask)
        assert np.array_equal(values[~case.lesion_mask], case.seen[~case.lesion_mask])
    # Fillers do not draw again what the cases were drawn with ([2, 0] seeds a generator as [2, 0, 0] does).
    of_cases = [np.random.default_rng([2, number, draw]).bit_generator.state for number in (0, 1) for draw in range(3)]
    assert states[0] != states[1]
    assert not any(state in of_cases for state in states)


def job_of(bids_dir, n_examples, *arguments):
    options = cli.parse_options(['in', 'out', '--models', *arguments])
    files = datasets.find_training(bids_dir / 'bids', 'validation')[0]
    shapes = [np.ones((3, 3, n), dtype=bool) for n in range(2, 10)]
    return options, 0, 'sub-01', 'sub-01', files, shapes, None, n_examples


@pytest.mark.parametrize('threads', ['1', '2'])
def test_every_brain_gets_the_threads_that_are_asked_for(bids_dir, threads, monkeypatch):
    """However many brains a process evaluates."""
    found = []
    monkeypatch.setitem(
        BASELINES, 'membrane', lambda image, *_: found.append(torch.get_num_threads()) or np.zeros_like(image)
    )
    job = job_of(bids_dir, 0, '--kinds', 'clean', '--n-lesions', '1', '--threads', threads, '--baselines', 'membrane')
    before = torch.get_num_threads()
    try:
        evaluate_scores.evaluate_brain(job)
        evaluate_scores.evaluate_brain(job)
    finally:
        torch.set_num_threads(before)
    assert found == [int(threads)] * 2


@pytest.mark.parametrize('wanted_ml', [0, 9])
def test_examples_show_one_lesion_of_the_wanted_size_by_every_method(bids_dir, models, wanted_ml, monkeypatch):
    monkeypatch.setattr(evaluate_scores, 'EXAMPLE_ML', wanted_ml)
    arguments = ['--kinds', 'clean', 'rim', '--dilate', '1', '--n-lesions', '2', '--baselines', 'membrane']
    job = job_of(bids_dir, 5, *arguments)
    job[0].models.extend([models['flat'], models['repaint']])
    rows, (clean, rim) = evaluate_scores.evaluate_brain(job)
    assert (clean['kind'], clean['dilation'], rim['kind'], rim['dilation']) == ('clean', 0, 'rim', 1)
    assert {row['method'] for row in rows if row['kind'] == 'rim'} == {UNFILLED, TRUTH, 'membrane', 'flat, 1 step'}
    names = ['membrane', 'flat, 1 step', 'loops, 3 steps (RePaint)']
    for shown in (clean, rim):  # RePaint of rims is shown, not scored
        volumes = [r['volume_ml'] for r in rows if (r['kind'], r['method']) == (shown['kind'], UNFILLED)]
        assert len(set(volumes)) == 2
        nearest = max(volumes) if wanted_ml else min(volumes)
        assert shown['title'].endswith(f'lesion of {nearest:.2f} ml')
        mask, images = shown['mask'], shown['images']
        assert list(images) == ['healthy truth', 'with lesion', *names]
        assert {image.shape for image in images.values()} == {mask.shape}
        assert (images['healthy truth'] - images['with lesion'])[mask].mean() > 0.05
        for name in names:
            assert not np.array_equal(images[name][mask], images['with lesion'][mask])


def test_number_of_examples(bids_dir):
    arguments = ['--kinds', 'clean', 'rim', '--n-lesions', '1', '--baselines', 'membrane']
    for n_examples in (0, 1, 3):
        assert len(evaluate_scores.evaluate_brain(job_of(bids_dir, n_examples, *arguments))[1]) == n_examples


def test_examples_are_as_many_as_asked_for_of_the_first_two_brains(bids_dir, tmp_path, monkeypatch):
    asked, evaluate_brain = [], evaluate_scores.evaluate_brain
    monkeypatch.setattr(evaluate_scores, 'evaluate_brain', lambda job: asked.append(job[-1]) or evaluate_brain(job))
    files = datasets.find_training(bids_dir / 'bids', 'validation')
    monkeypatch.setattr(datasets, 'find_training', lambda bids_dir, split: [*files, files[0]])
    run(bids_dir, tmp_path, [], '--kinds', 'clean', '--n-examples', '1')
    assert asked == [1, 1, 0]


def test_brain_without_room_for_its_lesions_says_so(bids_dir, tmp_path, monkeypatch):
    scatter = evaluate_cases.scatter_lesions
    monkeypatch.setattr(evaluate_cases, 'scatter_lesions', functools.partial(scatter, tries=50))
    with pytest.raises(ValueError, match=r'of 99 lesions of 2 shapes found a place'):
        run(bids_dir, tmp_path, [], '--n-lesions', '99', '--kinds', 'clean')


def test_masks_of_a_patient_are_those_of_the_brain_that_is_evaluated(bids_dir):
    """`make_cases` reads the mask in the database's space, where its affine says, whatever the brain's grid."""
    files = datasets.find_training(bids_dir / 'bids', 'validation')[0]
    mask_file = bids_dir / 'shapes' / '4_label-lesion_mask.nii.gz'
    options = cli.parse_options(['in', 'out', '--kinds', 'patient', '--models'])
    (case,) = evaluate_scores.make_cases('sub-01', files, [], mask_file, options, 0)
    assert case.image.shape == SHAPE
    found = np.argwhere(case.image - case.seen > 0.1)
    # The larger lesion is at x = 70 - 85 = -15 mm: left of the middle; the smaller one at 25 mm.
    assert (found[:, 0] < SHAPE[0] / 2).sum() > (found[:, 0] > SHAPE[0] / 2).sum() > 0
    wm_mask = np.asarray(nib.load(files[1]).dataobj) == tissues.WHITE_MATTER
    assert np.array_equal(case.wm_mask, wm_mask)


@pytest.fixture(scope='module')
def patients_dir(make_phantom, tmp_path_factory):
    """Two patients with T1w and FLAIR."""
    images = {}
    for seed, subject in enumerate(('01', '02')):
        phantom = make_phantom(shape=SHAPE, affine=np.eye(4), seed=seed)
        images[t1w_path(subject)] = phantom.t1w_img
        images[t1w_path(subject).replace('T1w', 'FLAIR')] = phantom.img(1000 - 0.5 * phantom.t1w)
        images[mask_path(subject)] = phantom.lesion_mask_img
    return write_bids(tmp_path_factory.mktemp('patients') / 'bids', images)


@pytest.mark.slow
def test_patients_are_evaluated_in_their_normal_appearing_white_matter(patients_dir, bids_dir, tmp_path):
    arguments = [str(patients_dir), str(tmp_path), '--lesion-masks', str(bids_dir / 'shapes'), *SMALL, '--models']
    options = ['--modality', 'FLAIR', '--participant-label', 'sub-02', '--kinds', 'clean', 'rim', '--dilate', '1']
    cli.main([*arguments, *options])
    rows = read_tsv(tmp_path / 'scores.tsv')
    assert {row['subject'] for row in rows} == {'sub-02'}
    assert {row['kind'] for row in rows} == {'clean', 'rim'}
    assert json.loads((tmp_path / 'evaluation.json').read_text())['info']['modality'] == 'FLAIR'
    (files,), _ = cli.find_brains(cli.parse_options([*arguments, *options]))
    options = cli.parse_options([*arguments, *options])
    shapes = [np.ones((3, 3, 3), dtype=bool)]
    for case in evaluate_scores.make_cases('sub-02', files, shapes, None, options, 0):
        real = np.asarray(nib.load(files[2]).dataobj) > 0
        assert not (case.lesion_mask & real).any()
        assert (case.seen >= case.image).all()  # bright


def test_flair_needs_patients_and_patients_must_be_there(patients_dir):
    with pytest.raises(SystemExit, match='give patients by --participant-label'):
        cli.find_brains(cli.parse_options([str(patients_dir), 'out', '--modality', 'FLAIR']))
    with pytest.raises(SystemExit, match="'09'"):
        cli.find_brains(cli.parse_options([str(patients_dir), 'out', '--participant-label', '09']))


def test_rule_for_dark_lesions_is_left_out_on_flair(patients_dir, bids_dir):
    options = cli.parse_options(
        [str(patients_dir), 'out', '--models', '--modality', 'FLAIR', '--participant-label', '01', '--n-lesions', '1']
        + ['--kinds', 'clean', '--baselines', 'ANTs rule', 'membrane']
    )
    (files, _), _ = cli.find_brains(cli.parse_options([str(patients_dir), 'out', '--participant-label', '01', '02']))
    rows, _ = evaluate_scores.evaluate_brain(
        (options, 0, 'sub-01', '01', files, [np.ones((3, 3, 3), dtype=bool)], None, 0)
    )
    assert {row['method'] for row in rows} == {UNFILLED, TRUTH, 'membrane'}
