"""`bids_lesionfill-file`: one image without BIDS."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from tiny_models import tiny_model

from bids_lesionfill.app import options, single_file
from bids_lesionfill.lesions import fill, synthesis

NEW_LESION = (slice(24, 27), slice(20, 23), slice(14, 17))


@pytest.fixture
def files(tmp_path, phantom):
    nib.save(phantom.t1w_img, tmp_path / 't1w.nii.gz')
    nib.save(phantom.lesion_mask_img, tmp_path / 'mask.nii.gz')
    return [str(tmp_path / name) for name in ('t1w.nii.gz', 'mask.nii.gz', 'out.nii.gz')]


@pytest.fixture
def asked(monkeypatch, phantom):
    """What `fill.fill_alone` is asked; it gives the healthy phantom back."""
    calls = []

    def fake(image_img, lesions, model, t1w_img, growth, sampling):
        calls.append({'model': model, 't1w_img': t1w_img, 'growth': growth, 'sampling': sampling, 'lesions': lesions})
        return fill.Filling(phantom.healthy_img, lesions.mask_img, lesions=[{}, {}], warnings=['Look.'])

    monkeypatch.setattr(fill, 'fill_alone', fake)
    return calls


def run(*arguments):
    return single_file.main([*arguments, '--model', 'biharmonic', '--device', 'cpu'])


def test_an_image_is_filled_and_written(files, asked, phantom, tmp_path, caplog):
    more = ['--used-mask', str(tmp_path / 'used.nii'), '--dilate', '0', '--random-seed', '3']
    assert run(*files, *more) == single_file.OK
    assert np.array_equal(nib.load(files[2]).get_fdata(dtype=np.float32), phantom.healthy)
    assert nib.load(tmp_path / 'used.nii').get_fdata().sum() == phantom.lesion_mask.sum()
    (call,) = asked
    assert (call['model'].modality, call['growth'].dilate, call['growth'].rim_voxels) == ('T1w', 0, 0)
    assert (call['sampling'].seed, call['t1w_img']) == (3, None)
    assert 'Look.' in caplog.text


def test_all_options_of_sampling_and_growth_arrive(files, asked):
    arguments = ['--rims', 'grown', '--dilate', '2', '--rim-voxels', '3', '--texture', 'mean', '--n-samples', '4']
    arguments += ['--num-inference-steps', '7', '--batch-size', '3', '--lesion-labels', '1', '--mask-threshold', '0.3']
    assert run(*files, *arguments, '--min-lesion-volume', '20') == single_file.OK
    (call,) = asked
    growth, sampling = call['growth'], call['sampling']
    assert (growth.rims, growth.dilate, growth.rim_voxels) == ('grown', 2, 3)
    assert (sampling.texture, sampling.n_samples, sampling.num_inference_steps) == ('mean', 4, 7)
    assert (sampling.batch_size, sampling.device) == (3, 'cpu')
    assert call['lesions'].threshold == 0.3


def test_options_are_those_of_the_table():
    known = options.all_specs()
    for name, spec in single_file.specs().items():
        assert (spec.flags, spec.parse) == (known[name].flags, known[name].parse)
    of_result = {name for name, spec in known.items() if spec.is_of_result}
    assert of_result - set(single_file.OFFERED) == {'mask_from'}  # which names a participant


def test_a_flair_has_a_model_of_its_own(files, asked, phantom):
    nib.save(phantom.img(phantom.flair), files[0].replace('t1w', 'flair'))
    assert run(files[0].replace('t1w', 'flair'), *files[1:], '--t1w', files[0]) == single_file.OK
    assert asked[0]['model'].modality == 'FLAIR'
    assert asked[0]['t1w_img'] is not None


def test_a_flair_of_the_visit_goes_with_the_lesions_of_a_t1w(files, asked, phantom, tmp_path, caplog):
    nib.save(phantom.img(phantom.flair), tmp_path / 'flair.nii.gz')
    assert run(*files, '--flair', str(tmp_path / 'flair.nii.gz')) == single_file.OK
    assert np.array_equal(asked[0]['lesions'].flair_img.get_fdata(), phantom.flair)
    more = ['--t1w', files[0], '--flair', str(tmp_path / 'flair.nii.gz'), '--overwrite']
    assert run(*files, *more) == single_file.USAGE
    assert '--flair: only where a T1w is filled' in caplog.text


def test_a_flair_is_not_filled_as_a_t1w_without_a_word(files, phantom, caplog):
    nib.save(phantom.img(phantom.flair), files[0])
    assert run(*files) == single_file.FAILED
    assert 'lesions are brighter than the tissue around them' in caplog.text


@pytest.mark.parametrize(('change', 'words'), [
    ({0: 'nowhere.nii.gz'}, 'is not a file'), ({2: 'out.mgz'}, 'does not end in'), ({2: 'no/out.nii'}, 'not a folder'),
])  # fmt: skip
def test_wrong_paths_are_2(files, tmp_path, caplog, change, words):
    arguments = [str(tmp_path / change[n]) if n in change else path for n, path in enumerate(files)]
    assert run(*arguments) == single_file.USAGE
    assert words in caplog.text


@pytest.mark.parametrize(('more', 'words'), [
    (['--rim-voxels', '1'], '--rim-voxels: only with --rims grown'),
    (['--n-lesions', '2'], '--n-lesions: only with --mode synth'),
    (['--mode', 'synth', '--n-samples', '2'], '--n-samples: only with --mode fill'),
    (['--report', 'page.txt'], 'page.txt does not end in .html'),
])  # fmt: skip
def test_misplaced_options_are_2(files, caplog, more, words):
    assert run(*files, *more) == single_file.USAGE
    assert words in caplog.text


def test_unknown_options_are_2_with_a_suggestion(files, capsys):
    with pytest.raises(SystemExit) as error:
        single_file.main([*files, '--random_sed', '1'])
    assert error.value.code == single_file.USAGE
    assert 'did you mean --random' in capsys.readouterr().err


def test_a_mask_is_needed_to_fill(files, caplog):
    assert run(files[0], files[2]) == single_file.USAGE
    assert 'MASK is missing' in caplog.text


def test_nothing_is_written_over(files, asked, caplog):
    assert run(*files) == single_file.OK
    assert run(*files) == single_file.USAGE
    assert 'use --overwrite' in caplog.text
    assert run(*files, '--overwrite') == single_file.OK
    assert run(*files[:2], files[0], '--overwrite') == single_file.USAGE
    assert 'is an input' in caplog.text
    t1w = files[2].replace('out', 'of_the_flair')
    nib.save(nib.load(files[0]), t1w)
    assert run(*files[:2], t1w, '--t1w', t1w, '--overwrite') == single_file.USAGE
    assert run(*files, '--used-mask', files[2], '--overwrite') == single_file.USAGE
    assert 'cannot be two outputs' in caplog.text


@pytest.mark.parametrize('name', ['out.nii.gz', 'out.json', 'used.nii.gz', 'page.html'])
def test_files_of_others_are_never_replaced(files, asked, tmp_path, caplog, name):
    more = ['--used-mask', str(tmp_path / 'used.nii.gz'), '--report', str(tmp_path / 'page.html'), '--overwrite']
    (tmp_path / name).write_text('{"mine": true}')
    assert run(*files, *more) == single_file.USAGE
    assert 'was not written by bids_lesionfill' in caplog.text
    assert (tmp_path / name).read_text() == '{"mine": true}'
    assert {path.name for path in tmp_path.iterdir()} == {'t1w.nii.gz', 'mask.nii.gz', name}
    assert not asked


def test_what_was_changed_since_is_not_replaced(files, asked, phantom, caplog):
    assert run(*files) == single_file.OK
    nib.save(phantom.t1w_img, files[2])
    assert run(*files, '--overwrite') == single_file.USAGE
    assert 'was not written by bids_lesionfill as it stands' in caplog.text


def test_an_image_that_cannot_be_filled_is_1_in_a_sentence(files, monkeypatch, caplog):
    def refuse(*_, **__):
        raise ValueError('lesion mask has shape (3, 3), expected one 3D volume')

    monkeypatch.setattr(fill, 'fill_alone', refuse)
    assert run(*files) == single_file.FAILED
    assert 'expected one 3D volume' in caplog.text


def test_dilation_zero_fills_the_given_mask_and_nothing_else(files, phantom, tmp_path):
    tight = ndimage.binary_erosion(phantom.lesion_mask)
    nib.save(phantom.img(tight), files[1])
    assert run(*files, '--dilate', '0', '--used-mask', str(tmp_path / 'used.nii')) == single_file.OK
    filled = nib.load(files[2]).get_fdata(dtype=np.float32)
    assert np.array_equal(filled[~tight], phantom.t1w[~tight])
    assert np.array_equal(nib.load(tmp_path / 'used.nii').get_fdata() > 0, tight)


def test_a_report_and_a_record_are_written(files, phantom, tmp_path):
    assert run(*files, '--rims', 'grown', '--report', str(tmp_path / 'page.html')) == single_file.OK
    html = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert 'data:image/png;base64,' in html
    assert 'Lesions of T1w images were filled with bids_lesionfill' in html
    assert 'Voxels changed' in html
    record = json.loads((tmp_path / 'out.json').read_text(encoding='utf-8'))
    assert record['Options']['rims'] == 'grown'
    assert set(record['FilesSHA256']) == {'out.nii.gz', 'page.html'}
    assert len(record['Lesions']) == 2


def test_lesions_are_synthesized(files, phantom, tmp_path, monkeypatch, find_tiny_places, tiny_unet):
    """MASK may be missing, and its lesions stay where it is given."""
    from bids_lesionfill.diffusion import models

    monkeypatch.setattr(synthesis, 'find_places', find_tiny_places)
    monkeypatch.setattr(models, 'load_model', lambda name, device: tiny_model(tiny_unet, 'T1w'))
    nib.save(phantom.healthy_img, files[0])
    new_mask = np.zeros_like(phantom.lesion_mask)
    new_mask[NEW_LESION] = True
    nib.save(phantom.img(new_mask), tmp_path / 'new.nii.gz')
    more = ['--mode', 'synth', '--device', 'cpu', '--modality', 'T1w', '--lesion-halo', '0']
    given = ['--mask', str(tmp_path / 'new.nii.gz'), '--report', str(tmp_path / 'page.html')]
    assert single_file.main([files[0], *given, files[2], *more]) == single_file.OK
    synth = nib.load(files[2]).get_fdata(dtype=np.float32)
    assert np.array_equal(synth[~new_mask], phantom.healthy[~new_mask])
    assert (synth[new_mask] != phantom.healthy[new_mask]).any()
    assert 'synthesized' in (tmp_path / 'page.html').read_text(encoding='utf-8')
    drawn = [files[0], files[1], str(tmp_path / 'drawn.nii.gz'), '--n-lesions', '2', *more]
    assert single_file.main([*drawn, '--used-mask', str(tmp_path / 'used.nii.gz')]) == single_file.OK
    used = nib.load(tmp_path / 'used.nii.gz').get_fdata() > 0
    assert ndimage.label(used, np.ones((3, 3, 3)))[1] == 2
    assert not (used & phantom.lesion_mask).any()


def test_help_waits_for_no_heavy_import():
    code = "import sys\nfrom bids_lesionfill.app import single_file\ntry:\n    single_file.main(['--help'])\n"
    code += "finally:\n    print([name for name in ('torch', 'numpy', 'nibabel') if name in sys.modules])"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.rstrip().endswith('[]')
    assert '--lesion-load-ml' in done.stdout
