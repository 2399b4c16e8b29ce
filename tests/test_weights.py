import json

import pytest

from bids_lesionfill.diffusion import models


@pytest.mark.parametrize('name', ['fill-T1w', 'fill-FLAIR'])
def test_bundled_model_is_complete_and_says_so(name):
    folder = models.find_model(name)
    plan = models.list_models()[name]
    assert (plan['name'], f'{plan["task"]}-{plan["modality"]}') == (name, name)
    assert (folder / 'scheduler/scheduler_config.json').is_file()
    card = (folder / 'README.md').read_text()
    assert models.sha256_of(folder / 'unet/diffusion_pytorch_model.safetensors') in card
    for word in ('CC BY-NC', 'OASIS', 'Intended use', 'Known failures'):
        assert word in card


def test_bundled_models_hold_safetensors_only_and_stay_small():
    files = [path for path in models.MODELS_DIR.rglob('*') if path.is_file()]
    assert {path.suffix for path in files} <= {'.safetensors', '.json', '.md'}
    assert sum(path.stat().st_size for path in files) < 40e6


def test_loaded_model_is_ready_to_sample():
    import torch

    model = models.load_model('fill-T1w')
    assert model.name == 'fill-T1w'
    assert not model.unet.training
    assert (model.jump_length, model.jump_n_sample) == (8, 10)
    assert {parameter.dtype for parameter in model.unet.parameters()} == {torch.float32}
    slab = torch.zeros(1, model.form.n_channels, 4, 16, 16)
    assert model.unet(slab, torch.tensor([999])).shape == (1, 1, 4, 16, 16)


def test_unknown_model_names_the_bundled_ones():
    with pytest.raises(FileNotFoundError, match='fill-T1w'):
        models.find_model('no-such-model')


def test_model_says_what_it_was_made_for():
    models.check_model('fill-T1w', 'fill', 'T1w')
    with pytest.raises(ValueError, match="'fill-T1w' was made for fill T1w, expected one for fill FLAIR"):
        models.check_model('fill-T1w', 'fill', 'FLAIR')


@pytest.mark.parametrize(('card', 'license_name'), [
    ('**these weights\nare CC BY-NC 4.0**: no commercial use', 'CC BY-NC 4.0'),
    ('data are CC BY 4.0, these weights are CC0', 'CC0'),
    ('no word of it', 'n/a'),
    (None, 'n/a'),
])  # fmt: skip
def test_licence_is_what_the_card_says_of_the_weights(tmp_path, card, license_name):
    (tmp_path / 'plan.json').write_text('{}')
    if card:
        (tmp_path / 'README.md').write_text(card)
    assert models.license_of(tmp_path) == license_name


def test_a_folder_of_the_same_form_is_a_model(tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/plan.json').write_text(json.dumps({'name': 'mine'}))
    assert models.find_model(tmp_path / 'mine') == tmp_path / 'mine'


def test_contrasts_of_lesions_are_read_if_a_model_has_them(tmp_path):
    assert models.read_contrasts(tmp_path) is None
    (tmp_path / 'lesion_contrasts.json').write_text('{"volume_mm3": [3, 40], "contrast": [0.25, -1.5]}')
    volumes, contrasts = models.read_contrasts(tmp_path)
    assert volumes.tolist() == [3, 40]
    assert contrasts.tolist() == [0.25, -1.5]
