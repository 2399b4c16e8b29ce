import nibabel as nib
import numpy as np
import pytest

from bids_lesionfill.app import single_file
from bids_lesionfill.lesions import fill


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
        options = {'model': model, 't1w_img': t1w_img, 'dilate': growth.dilate, 'seed': sampling.seed}
        calls.append(options)
        return fill.Filling(phantom.healthy_img, lesions.mask_img, lesions=[{}, {}], warnings=['Look.'])

    monkeypatch.setattr(fill, 'fill_alone', fake)
    return calls


def test_an_image_is_filled_and_written(files, asked, phantom, tmp_path, caplog):
    more = ['--used-mask', str(tmp_path / 'used.nii'), '--dilate', '0', '--random-seed', '3']
    assert single_file.main(files + more) == single_file.OK
    assert np.array_equal(nib.load(files[2]).get_fdata(dtype=np.float32), phantom.healthy)
    assert nib.load(tmp_path / 'used.nii').get_fdata().sum() == phantom.lesion_mask.sum()
    (options,) = asked
    assert (options['model'], options['dilate'], options['seed'], options['t1w_img']) == ('fill-T1w', 0, 3, None)
    assert 'Look.' in caplog.text


def test_a_flair_has_a_model_of_its_own(files, asked):
    assert single_file.main([*files, '--t1w', files[0]]) == single_file.OK
    assert asked[0]['model'] == 'fill-FLAIR'
    assert asked[0]['t1w_img'] is not None


@pytest.mark.parametrize(('change', 'words'), [
    ({0: 'nowhere.nii.gz'}, 'is not a file'), ({2: 'out.mgz'}, 'does not end in'), ({2: 'no/out.nii'}, 'not a folder'),
])  # fmt: skip
def test_wrong_paths_are_2(files, tmp_path, caplog, change, words):
    arguments = [str(tmp_path / change[n]) if n in change else path for n, path in enumerate(files)]
    assert single_file.main(arguments) == single_file.USAGE
    assert words in caplog.text


def test_nothing_is_written_over(files, asked, caplog):
    assert single_file.main(files) == single_file.OK
    assert single_file.main(files) == single_file.USAGE
    assert 'use --overwrite' in caplog.text
    assert single_file.main([*files, '--overwrite']) == single_file.OK
    assert single_file.main([*files[:2], files[0], '--overwrite']) == single_file.USAGE
    assert 'is an input' in caplog.text
    t1w = files[2].replace('out', 'of_the_flair')
    nib.save(nib.load(files[0]), t1w)
    assert single_file.main([*files[:2], t1w, '--t1w', t1w, '--overwrite']) == single_file.USAGE
    assert single_file.main([*files, '--used-mask', files[2], '--overwrite']) == single_file.USAGE
    assert 'cannot be both' in caplog.text


def test_an_image_that_cannot_be_filled_is_1_in_a_sentence(files, monkeypatch, caplog):
    def refuse(*_, **__):
        raise ValueError('lesion mask has shape (3, 3), expected one 3D volume')

    monkeypatch.setattr(fill, 'fill_alone', refuse)
    assert single_file.main(files) == single_file.FAILED
    assert 'expected one 3D volume' in caplog.text
