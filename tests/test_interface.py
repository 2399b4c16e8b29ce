"""The Python interface: paths, the modality of an image, details."""

import inspect
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from tiny_models import tiny_model

from bids_lesionfill import fill_lesions, interface, synthesize_lesions
from bids_lesionfill.lesions import recognition, synthesis
from bids_lesionfill.modality import FLAIR, T1W, get


@pytest.fixture
def visit(tmp_path, phantom):
    """Files of a visit as images named by BIDS and as images without names: dict of path."""
    imgs = {'T1w': phantom.t1w_img, 'FLAIR': phantom.img(phantom.flair), 'mask': phantom.lesion_mask_img}
    names = {name: tmp_path / f'sub-01_{name}.nii.gz' for name in imgs}
    for name, path in names.items():
        nib.save(imgs[name], path)
    return names


@pytest.fixture
def flair_img(phantom):
    return phantom.img(phantom.flair)


def fill_quickly(*imgs, **options):
    return fill_lesions(*imgs, **{'rims': 'grown', 'device': 'cpu'} | options)


def test_a_flair_is_not_filled_as_a_t1w_without_a_word(phantom, flair_img):
    with pytest.raises(ValueError, match='lesions are brighter than the tissue around them .* those of T1w images'):
        fill_quickly(flair_img, phantom.lesion_mask_img, model='biharmonic')
    with pytest.raises(ValueError, match='lesions are brighter'):
        fill_quickly(flair_img, phantom.lesion_mask_img)


def test_a_flair_that_is_asked_for_needs_its_t1w(phantom, flair_img):
    with pytest.raises(ValueError, match='fills FLAIR images: it needs their T1w'):
        fill_quickly(flair_img, phantom.lesion_mask_img, modality='FLAIR')


def test_a_flair_is_known_by_its_file(visit, phantom):
    with pytest.raises(ValueError, match='fills FLAIR images: it needs their T1w'):
        fill_quickly(visit['FLAIR'], visit['mask'])
    loaded = nib.load(visit['FLAIR'])
    assert interface.recognise('fill', loaded) == (FLAIR, [])
    assert interface.recognise('fill', nib.load(visit['T1w'])) == (T1W, [])


@pytest.mark.parametrize('kind', [str, lambda path: path])
def test_paths_are_images(visit, phantom, kind, model_dirs):
    paths = [kind(visit[name]) for name in ('FLAIR', 'mask', 'T1w')]
    by_path = fill_quickly(*paths[:2], t1w_img=paths[2], model=str(model_dirs['FLAIR']))
    imgs = [nib.load(path) for path in paths]
    assert by_path.to_bytes() == fill_quickly(*imgs[:2], t1w_img=imgs[2], model=model_dirs['FLAIR']).to_bytes()


def test_a_path_to_nowhere_is_named():
    with pytest.raises(ValueError, match='nowhere.nii.gz is not a file'):
        fill_lesions('nowhere.nii.gz', 'mask.nii.gz')


def test_both_functions_call_the_t1w_the_same():
    names = [set(inspect.signature(function).parameters) for function in (fill_lesions, synthesize_lesions)]
    assert {'image_img', 'lesion_mask_img', 't1w_img', 'modality', 'model', 'return_details'} <= names[0] & names[1]


def test_a_modality_that_was_asked_for_is_doubted_in_a_warning(phantom, flair_img):
    with pytest.warns(UserWarning, match='lesions are brighter than .* is the image T1w'):
        fill_quickly(flair_img, phantom.lesion_mask_img, modality='T1w', model='biharmonic')
    options = {'modality': 'FLAIR', 't1w_img': phantom.t1w_img, 'model': 'biharmonic'}
    with pytest.warns(UserWarning, match='lesions are not brighter'):
        fill_quickly(phantom.t1w_img, phantom.lesion_mask_img, **options)


def test_a_file_that_is_named_otherwise_is_told(visit, phantom):
    _, doubts = interface.recognise('fill', nib.load(visit['T1w']), asked='UNIT1')
    assert doubts == ['sub-01_T1w.nii.gz is named as a T1w, and modality is UNIT1']


def test_a_model_for_another_modality_is_refused(visit, model_dirs):
    with pytest.raises(ValueError, match='was made for FLAIR images, and this is a T1w'):
        fill_quickly(visit['T1w'], visit['mask'], model=model_dirs['FLAIR'])


def test_an_image_with_a_t1w_beside_it_is_no_t1w(phantom, model_dirs):
    with pytest.raises(ValueError, match="lesions are not brighter .* give modality='FLAIR'"):
        fill_quickly(phantom.t1w_img, phantom.lesion_mask_img, t1w_img=phantom.healthy_img)


def test_a_good_t1w_is_filled_without_a_warning(visit, phantom):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model, wm_mask_img = 'local-white-matter-mean', phantom.wm_mask_img
        filled_img = fill_quickly(visit['T1w'], visit['mask'], model=model, wm_mask_img=wm_mask_img)
    assert filled_img.get_fdata()[phantom.lesion_mask].mean() == pytest.approx(800, abs=40)


def test_details_are_the_used_mask_and_the_table(visit, phantom):
    options = {'model': 'biharmonic', 'wm_mask_img': phantom.wm_mask_img}
    details = fill_quickly(visit['T1w'], visit['mask'], **options, return_details=True)
    assert details.filled_img.to_bytes() == fill_quickly(visit['T1w'], visit['mask'], **options).to_bytes()
    used_mask = details.used_mask_img.get_fdata() > 0
    assert used_mask[phantom.lesion_mask].all()
    changed = details.filled_img.get_fdata() != phantom.t1w
    assert not changed[~used_mask].any()
    assert [row['label'] for row in details.lesions] == [1, 2]


def test_synthesis_takes_paths_and_gives_details(visit, phantom, monkeypatch, find_tiny_places, tiny_unet):
    monkeypatch.setattr(synthesis, 'find_places', find_tiny_places)
    model = tiny_model(tiny_unet, 'FLAIR')
    options = {'t1w_img': visit['T1w'], 'model': model, 'n_lesions': 2, 'device': 'cpu', 'lesion_halo': 0}
    details = synthesize_lesions(visit['FLAIR'], visit['mask'], **options, return_details=True)
    synth_img, mask_img = synthesize_lesions(visit['FLAIR'], visit['mask'], **options)
    assert synth_img.to_bytes() == details.synth_img.to_bytes()
    assert mask_img.get_fdata().sum() == details.new_mask_img.get_fdata().sum()
    assert len(details.lesions) == 2


def test_lesions_of_a_flair_are_not_painted_into_a_t1w(phantom, tiny_unet):
    options = {'t1w_img': phantom.t1w_img, 'model': tiny_model(tiny_unet, 'FLAIR'), 'device': 'cpu'}
    with pytest.raises(ValueError, match='grey matter is darker than white matter, as on a T1w'):
        synthesize_lesions(phantom.healthy_img, **options)


def test_contrast_of_lesions_by_hand():
    image = np.full((30, 30, 30), 100.0)
    image[::2] += 2  # robust deviation 1.4826
    lesion_mask = np.zeros(image.shape, dtype=bool)
    lesion_mask[13:17, 13:17, 13:17] = True
    image[lesion_mask] = 101 + 10 * 1.4826
    assert recognition.lesion_contrast(image, lesion_mask) == pytest.approx(10)
    assert recognition.lesion_contrast(image, np.zeros_like(lesion_mask)) is None
    assert recognition.lesion_contrast(0 * image, lesion_mask) is None


@pytest.mark.parametrize(('modality', 'contrast', 'is_told'), [
    ('T1w', 2.4, True), ('T1w', 0.1, False), ('T1w', -2.3, False), ('FLAIR', 2.4, False), ('FLAIR', 0.1, True),
    ('T2w', -1, True), ('T1w after contrast agent', 3, False), ('any', 3, False), ('T1w', None, False),
])  # fmt: skip
def test_mismatch_is_told_by_the_contrast_of_lesions(modality, contrast, is_told):
    assert bool(recognition.mismatch(get(modality), contrast)) == is_told


def test_a_modality_without_a_bundled_model_of_synthesis_is_refused(phantom):
    with pytest.raises(ValueError, match='no bundled model synthesizes lesions in T2w images'):
        synthesize_lesions(phantom.t1w_img, modality='T2w')


def test_sign_of_the_model_counts_where_nothing_else_is_known(phantom, tiny_unet):
    model = replace(tiny_model(tiny_unet, 'FLAIR'), plan={'task': 'fill', 'modality': 'FLAIR'})
    assert interface.recognise('fill', phantom.img(phantom.flair), model=model) == (FLAIR, [])
