import csv
import gzip
import hashlib
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from bids_examples import listing, mask_path, t1w_path, write_bids
from conftest import ellipsoid

from bids_lesionfill import text_files
from bids_lesionfill.diffusion import forms as diffusion_forms
from bids_lesionfill.diffusion import inpaint
from bids_lesionfill.images import masks, nifti
from bids_lesionfill.layout import files as layout_files
from bids_lesionfill.readerstudy import cases as readerstudy_cases
from bids_lesionfill.readerstudy import cli

# Offsets from the middle of the phantom and radii of the lesions, in voxels; all lie in white matter, apart.
LESIONS = [((-6, 2, 1), (3, 2.5, 2)), ((6, -5, -2), (2.5, 2, 2)), ((4, 6, 2), (2, 1.5, 1.5)), ((0, 0, -7), (1, 1, 1))]
SECRETS = ['annabel', 'berthold', 'cleopatra', 'dorothea', 'doe^jane', '19700101', 'visit', 'sub-', 'ses-']


def with_secrets(img, dtype, slope, inter):
    """An image stored with a scaling, in whose header words and a date name the patient."""
    stored = np.rint((img.get_fdata() - inter) / slope).astype(dtype)
    img = nib.Nifti1Image(stored, img.affine, img.header, dtype=dtype)
    img.header.set_slope_inter(slope, inter)
    for field in ('descrip', 'aux_file', 'intent_name', 'db_name'):
        img.header[field] = b'Doe^Jane 19700101'
    img.header.extensions.append(nib.nifti1.Nifti1Extension('comment', b'Doe^Jane, born 19700101'))
    return nib.Nifti1Image.from_bytes(img.to_bytes())


def patient(make_phantom, n_lesions=4, seed=0):
    """T1w, FLAIR and lesion mask of a patient; grid flipped and anisotropic."""
    phantom = make_phantom(seed=seed)
    middle = (np.array(phantom.t1w.shape) - 1) / 2
    lesion_mask = np.zeros(phantom.t1w.shape, dtype=bool)
    for offset, radii in LESIONS[:n_lesions]:
        lesion_mask |= ellipsoid(lesion_mask.shape, middle + offset, radii)
    assert (lesion_mask <= phantom.wm_mask).all()
    t1w, flair = (phantom.healthy + change * lesion_mask for change in (-250, 250))
    flair_img = with_secrets(phantom.img(flair.astype(np.float32)), np.int16, 0.5, -3.0)
    return phantom.img(t1w.astype(np.float32)), flair_img, phantom.img(lesion_mask)


@pytest.fixture(scope='module')
def bids_dir(make_phantom, tmp_path_factory):
    """Four patients; Cleopatra came twice, Dorothea has a single lesion."""
    images = {}
    for seed, (label, session, n_lesions) in enumerate(
        [('Annabel', None, 4), ('Berthold', None, 3), ('Cleopatra', 'visit1', 4), ('Cleopatra', 'visit2', 4),
         ('Dorothea', None, 1)]
    ):  # fmt: skip
        t1w_img, flair_img, mask_img = patient(make_phantom, n_lesions, seed)
        images[t1w_path(label, session)] = t1w_img
        images[t1w_path(label, session).replace('T1w', 'FLAIR')] = flair_img
        images[mask_path(label, session)] = mask_img
    return write_bids(tmp_path_factory.mktemp('patients'), images)


@pytest.fixture(scope='module')
def make_model(tmp_path_factory):
    """Factory: a model folder with a tiny network whose weights are random."""
    import torch

    from bids_lesionfill.train import loop, plans

    def build(task='synth', modality='FLAIR'):
        options = {'block_out_channels': (8, 8), 'down_block_types': ('DownBlock2D',) * 2,
                   'up_block_types': ('UpBlock2D',) * 2, 'norm_num_groups': 4}  # fmt: skip
        plan = plans.Plan('tiny', task, modality, unet_options=options, form=diffusion_forms.Form(kind='plain'))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp('models') / 'tiny'
            loop.save_model(plan.build_unet(), plan, folder)
        return folder

    return build


@pytest.fixture(scope='module')
def model_dir(make_model):
    return make_model()


def make(bids_dir, study_dir, model_dir, *more):
    return cli.main(['make', str(bids_dir), str(study_dir), '--model', str(model_dir), *more])


@pytest.fixture(scope='module')
def study(bids_dir, model_dir, tmp_path_factory):
    """A study of the patients: its folder and the key."""
    folder = tmp_path_factory.mktemp('made') / 'study'
    assert make(bids_dir, folder, model_dir, '--random-seed', '5') == 0
    key_file = folder.with_name('study_key') / 'key.json'
    return SimpleNamespace(folder=folder, key_file=key_file, key=json.loads(key_file.read_text()))


def original(bids_dir, entry):
    """FLAIR and lesion mask of a case of the key."""
    flair_file = bids_dir / t1w_path(entry['subject'], entry['session']).replace('T1w', 'FLAIR')
    return nib.load(flair_file), np.asarray(nib.load(bids_dir / mask_path(entry['subject'], entry['session'])).dataobj)


# What is made


def test_study_is_blind_and_its_key_lies_elsewhere(study):
    cases = ['case-01', 'case-02', 'case-03']
    papers = ['form.tsv', 'instructions.md', 'key.sha256']
    files = [f'{case}_{name}' for case in cases for name in ('FLAIR.nii.gz', 'lesions.tsv')]
    assert listing(study.folder) == sorted(files + papers)
    assert listing(study.key_file.parent) == ['key.json']
    assert list(study.key['cases']) == cases


def test_no_file_for_readers_names_a_patient(study):
    for path in study.folder.iterdir():
        content = path.read_bytes()
        if path.suffix == '.gz':
            assert content[3] == 0  # no flag, so no file name in the gzip header
            assert content[4:8] == bytes(4)  # no time
            content = gzip.decompress(content)
        for secret in SECRETS:
            assert secret.encode() not in content.lower(), (path.name, secret)
            assert secret not in path.name.lower()


def test_secrets_are_in_what_was_read(bids_dir, study):
    """Else the test above could not fail."""
    flair_img, _ = original(bids_dir, study.key['cases']['case-01'])
    assert b'doe^jane' in flair_img.to_bytes()[:352].lower()
    assert b'born 19700101' in flair_img.to_bytes()


def test_header_of_a_case_is_new_but_for_grid_type_and_scaling(bids_dir, study):
    for case, entry in study.key['cases'].items():
        header = nib.load(study.folder / f'{case}_FLAIR.nii.gz').header
        before, fresh = original(bids_dir, entry)[0].header, nib.Nifti1Header()
        scaling = ('scl_slope', 'scl_inter')
        for field in header:
            expected = before if field in (*readerstudy_cases.KEPT_HEADER, *scaling) else fresh
            if field != 'vox_offset':  # where data start, after the extensions
                assert header[field].tobytes() == expected[field].tobytes(), field
        assert len(header.extensions) == 0


def test_all_but_the_chosen_lesion_is_bit_identical(bids_dir, study):
    for case, entry in study.key['cases'].items():
        flair_img, lesion_mask = original(bids_dir, entry)
        case_img = nib.load(study.folder / f'{case}_FLAIR.nii.gz')
        before, after = flair_img.dataobj.get_unscaled(), case_img.dataobj.get_unscaled()
        chosen = masks.largest_lesions(lesion_mask > 0, 10) == entry['lesion']
        assert after.dtype == before.dtype
        assert after[~chosen].tobytes() == before[~chosen].tobytes()
        assert (after != before)[chosen].mean() > 0.5
        assert np.array_equal(case_img.affine, flair_img.affine)


def test_replaced_lesion_does_not_depend_on_the_lesion_that_was_there(make_phantom, model_dir):
    from bids_lesionfill.diffusion import models

    t1w_img, flair_img, mask_img = patient(make_phantom)
    lesion_mask = np.asarray(mask_img.dataobj) > 0
    lesion = masks.largest_lesions(lesion_mask, 10) == 2
    # On the 1 mm grid: elsewhere interpolation mixes the voxels at the border.
    t1w_img, flair_img = (nib.Nifti1Image(img.get_fdata(dtype=np.float32), np.eye(4)) for img in (t1w_img, flair_img))
    other_img = nib.Nifti1Image(np.where(lesion, 12345, flair_img.get_fdata(dtype=np.float32)), np.eye(4))
    model = models.load_model(model_dir)
    first, other = (
        readerstudy_cases.replace_lesion(img, lesion, lesion_mask, t1w_img, model, 1, 7).get_fdata()
        for img in (flair_img, other_img)
    )
    assert np.array_equal(first, other)
    assert not np.array_equal(first, flair_img.get_fdata())


def test_floats_that_are_whole_numbers_stay_whole(make_phantom, model_dir):
    from bids_lesionfill.diffusion import models

    t1w_img, flair_img, mask_img = patient(make_phantom)
    lesion_mask, model = np.asarray(mask_img.dataobj) > 0, models.load_model(model_dir)
    lesion = masks.largest_lesions(lesion_mask, 10) == 1
    whole = np.rint(flair_img.get_fdata(dtype=np.float32))
    for values, fractions in ((whole, False), (whole + np.float32(0.25), True)):
        img = nib.Nifti1Image(values, flair_img.affine)
        made = readerstudy_cases.replace_lesion(img, lesion, lesion_mask, t1w_img, model, 1, 7).get_fdata()
        assert (made != values).any()
        assert (made[lesion] % 1).any() == fractions


@pytest.mark.parametrize('extreme', [-2, 2])
def test_no_value_lies_beyond_those_of_the_rest_of_the_image(make_phantom, monkeypatch, extreme):
    monkeypatch.setattr(
        inpaint, 'fill_volume', lambda image, hole, *_, **__: np.full((1, hole.sum()), extreme, np.float32)
    )
    t1w_img, flair_img, mask_img = patient(make_phantom)
    lesion_mask = np.asarray(mask_img.dataobj) > 0
    lesion = masks.largest_lesions(lesion_mask, 10) == 1
    model = SimpleNamespace(form=diffusion_forms.Form(kind='plain'))
    made_img = readerstudy_cases.replace_lesion(flair_img, lesion, lesion_mask, t1w_img, model, 1, 7)
    made, rest = nifti.as_loaded(made_img).get_fdata(), flair_img.get_fdata()[~lesion]
    limit = rest.min() if extreme < 0 else rest.max()
    assert np.median(made[lesion]) == limit


def test_big_endian_images_keep_their_values():
    img = nib.Nifti1Image(np.arange(24, dtype='>i2').reshape(2, 3, 4), np.diag([-2.0, 3, 4, 1]))
    img.header.set_slope_inter(0.5, 1)
    img = nib.Nifti1Image.from_bytes(
        nib.Nifti1Image(img.dataobj, img.affine, img.header.as_byteswapped('>')).to_bytes()
    )
    blinded_img = nib.Nifti1Image.from_bytes(readerstudy_cases.blind(img).to_bytes())
    assert np.array_equal(blinded_img.get_fdata(), img.get_fdata())
    assert np.array_equal(blinded_img.affine, img.affine)


def test_table_points_into_the_lesions_and_has_their_volumes(bids_dir, study):
    for case, entry in study.key['cases'].items():
        flair_img, lesion_mask = original(bids_dir, entry)
        rows = text_files.read_tsv(study.folder / f'{case}_lesions.tsv')
        labels = masks.largest_lesions(lesion_mask > 0, 10)
        assert [row['lesion'] for row in rows] == list(range(1, entry['n_lesions'] + 1))
        for row in rows:
            place = np.linalg.inv(flair_img.affine) @ [row['x_mm'], row['y_mm'], row['z_mm'], 1]
            assert labels[tuple(np.rint(place[:3]).astype(int))] == row['lesion']
            volume_mm3 = (labels == row['lesion']).sum() * 0.9 * 1.0 * 1.2
            assert row['volume_mm3'] == pytest.approx(volume_mm3, abs=0.051)


def test_centre_of_a_bent_lesion_lies_in_the_lesion():
    labels = np.zeros((7, 7, 3), dtype=int)
    labels[1:6, 1:6, 1] = 1
    labels[2:5, 2:5, 1] = 0  # a ring, whose centre of mass is (3, 3, 1)
    (row,) = readerstudy_cases.describe_lesions(labels, np.diag([-2.0, 1, 1, 1]))
    assert labels[round(row['x_mm'] / -2), round(row['y_mm']), round(row['z_mm'])] == 1
    assert (row['x_mm'], row['z_mm']) == (-6, 1)  # nearest in mm, where the second axis is the shorter one
    assert row['volume_mm3'] == 32


def test_key_says_what_was_done(study, model_dir):
    weights_file = model_dir / 'unet/diffusion_pytorch_model.safetensors'
    sha256 = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    entries = study.key['cases'].values()
    assert {entry['subject']: entry['n_lesions'] for entry in entries} == {'Annabel': 4, 'Berthold': 3, 'Cleopatra': 4}
    for entry in entries:
        assert entry['model_sha256'] == sha256
        assert 1 <= entry['lesion'] <= entry['n_lesions']
        assert entry['session'] in (('visit1', 'visit2') if entry['subject'] == 'Cleopatra' else (None,))
    assert len({entry['seed'] for entry in entries}) == 3
    assert (study.key['random_seed'], study.key['modality'], study.key['model']) == (5, 'FLAIR', 'tiny')


def test_seal_is_as_sha256sum_writes_it(study):
    seal = (study.folder / 'key.sha256').read_text()
    assert seal == f'{hashlib.sha256(study.key_file.read_bytes()).hexdigest()}  key.json\n'
    check = ['sha256sum', '--check', str(study.folder / 'key.sha256')]
    assert subprocess.run(check, cwd=study.key_file.parent, capture_output=True).returncode == 0


def test_instructions_and_form_name_every_case_and_its_chance(study):
    text = (study.folder / 'instructions.md').read_text()
    assert text.count('| case-') == 3
    for case, entry in study.key['cases'].items():
        chance = {3: 33, 4: 25}[entry['n_lesions']]
        assert f'| {case} | {entry["n_lesions"]} | {chance} % |\n' in text
    assert max(map(len, text.splitlines())) <= 120
    rows = text_files.read_tsv(study.folder / 'form.tsv')
    assert rows == [{'case': case, 'lesion': None, 'confidence': None, 'comment': None} for case in study.key['cases']]


def test_same_seed_same_bytes_and_another_seed_other_cases(bids_dir, study, model_dir, tmp_path):
    for seed in ('5', '6'):
        assert make(bids_dir, tmp_path / seed, model_dir, '--random-seed', seed) == 0
    for path in study.folder.iterdir():
        assert (tmp_path / '5' / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / '5_key/key.json').read_bytes() == study.key_file.read_bytes()
    other = json.loads((tmp_path / '6_key/key.json').read_text())
    assert other['cases'] != study.key['cases']


def test_lesion_to_replace_is_drawn_evenly(make_phantom, rng, monkeypatch):
    """The synthesis is left out: what is drawn is counted."""
    monkeypatch.setattr(readerstudy_cases, 'replace_lesion', lambda image_img, *_: image_img)
    t1w_img, flair_img, mask_img = patient(make_phantom)
    model = SimpleNamespace(sha256='')
    drawn = [readerstudy_cases.draw_case(flair_img, t1w_img, mask_img, model, 1, rng)[2]['lesion'] for _ in range(200)]
    counts = np.bincount(drawn, minlength=5)
    assert counts[0] == 0
    assert counts[1:].min() >= 30  # 50 expected, standard deviation 6
    assert counts.sum() == 200


def test_cases_are_in_random_order(bids_dir, model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(readerstudy_cases, 'replace_lesion', lambda image_img, *_: image_img)
    orders = set()
    for seed in range(8):
        assert make(bids_dir, tmp_path / f'{seed}', model_dir, '--random-seed', f'{seed}') == 0
        cases = json.loads((tmp_path / f'{seed}_key/key.json').read_text())['cases']
        orders.add(tuple(entry['subject'] for entry in cases.values()))
    assert len(orders) >= 3


def test_without_a_seed_one_is_drawn_that_nobody_can_guess(bids_dir, model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(readerstudy_cases, 'replace_lesion', lambda image_img, *_: image_img)
    seeds = set()
    for name in 'ab':
        assert make(bids_dir, tmp_path / name, model_dir) == 0
        seeds.add(json.loads((tmp_path / f'{name}_key/key.json').read_text())['random_seed'])
    assert len(seeds) == 2


def test_who_is_left_out_is_said(bids_dir, model_dir, tmp_path, caplog):
    more = ('--participant-label', 'sub-Dorothea', 'Cleopatra', '--n-largest', '2', '--key', str(tmp_path / 'safe'))
    assert make(bids_dir, tmp_path / 'study', model_dir, *more) == 0
    assert 'sub-Dorothea_FLAIR.nii.gz: left out, lesions in the mask: 1, expected at least 2' in caplog.text
    assert '_FLAIR.nii.gz: left out, this patient has a case' in caplog.text
    (entry,) = json.loads((tmp_path / 'safe/key.json').read_text())['cases'].values()
    assert (entry['subject'], entry['n_lesions']) == ('Cleopatra', 2)
    assert len(text_files.read_tsv(tmp_path / 'study/case-01_lesions.tsv')) == 2


def test_a_patient_that_cannot_be_read_does_not_stop_the_others(bids_dir, make_phantom, model_dir, tmp_path, caplog):
    t1w_img, flair_img, mask_img = patient(make_phantom)
    images = {t1w_path('01'): t1w_img, t1w_path('01').replace('T1w', 'FLAIR'): flair_img, mask_path('01'): mask_img}
    images |= {t1w_path('02'): t1w_img, t1w_path('02').replace('T1w', 'FLAIR'): flair_img, mask_path('02'): mask_img}
    root = write_bids(tmp_path / 'bids', images)
    flair_file = root / t1w_path('02').replace('T1w', 'FLAIR')
    flair_file.write_bytes(flair_file.read_bytes()[:2000])
    assert make(root, tmp_path / 'study', model_dir) == 0
    assert 'sub-02_FLAIR.nii.gz: left out' in caplog.text
    cases = json.loads((tmp_path / 'study_key/key.json').read_text())['cases']
    assert [entry['subject'] for entry in cases.values()] == ['01']


def test_a_study_is_never_overwritten(bids_dir, study, model_dir, tmp_path, caplog):
    before = {path: path.read_bytes() for path in study.folder.iterdir()}
    assert make(bids_dir, study.folder, model_dir, '--key', str(tmp_path / 'key')) == 2
    assert make(bids_dir, tmp_path / 'study', model_dir, '--key', str(study.key_file.parent)) == 2
    assert caplog.text.count('a study is never overwritten') == 2
    assert {path: path.read_bytes() for path in study.folder.iterdir()} == before
    assert not (tmp_path / 'study').exists()


@pytest.mark.parametrize(
    ('task', 'modality', 'more', 'message'),
    [
        ('fill', 'T1w', [], 'model tiny is made for fill T1w, expected synth FLAIR'),
        ('synth', 'FLAIR', ['--modality', 'T1w'], 'model tiny is made for synth FLAIR, expected synth T1w'),
        ('synth', 'FLAIR', ['--participant-label', 'Emil'], r"participants \['Emil'\] have no FLAIR"),
        ('synth', 'FLAIR', ['--participant-label', 'Dorothea'], 'no patient in .* can be used'),
        ('synth', 'FLAIR', ['--key', '{study}/key'], 'lies in STUDY_DIR'),
    ],
)
def test_what_cannot_be_made_ends_in_one_sentence(
    bids_dir, make_model, tmp_path, caplog, task, modality, more, message
):
    more = [text.format(study=tmp_path / 'study') for text in more]
    assert make(bids_dir, tmp_path / 'study', make_model(task, modality), *more) == 2
    (error,) = [record.getMessage() for record in caplog.records if record.levelname == 'ERROR']
    assert re.search(message, error)
    assert not (tmp_path / 'study').exists()


def test_missing_model_or_dataset_is_a_matter_of_usage(bids_dir, model_dir, tmp_path, caplog):
    assert make(bids_dir, tmp_path / 'study', tmp_path / 'no-model') == 2
    assert make(tmp_path / 'no-data', tmp_path / 'study', model_dir) == 2
    assert 'no-model' in caplog.text
    assert 'no-data has no dataset_description.json' in caplog.text


# What is scored


def write_study(root, n_cases=20, n_lesions=10):
    """A study whose synthetic lesion is always number 4, without its images."""
    cases = {f'case-{i:02d}': {'subject': f'{i}', 'lesion': 4, 'n_lesions': n_lesions} for i in range(1, n_cases + 1)}
    layout_files.write_json(root / 'study_key/key.json', {'cases': cases})
    sha256 = hashlib.sha256((root / 'study_key/key.json').read_bytes()).hexdigest()
    layout_files.write_bytes(root / 'study/key.sha256', f'{sha256}  key.json\n'.encode())
    return root / 'study'


def write_form(path, lesions, confidences=None):
    """A form with an answer per case, '' for none."""
    confidences = confidences or [3] * len(lesions)
    lines = [f'case-{i:02d}\t{lesion}\t{c}\tn/a' for i, (lesion, c) in enumerate(zip(lesions, confidences), start=1)]
    path.write_text('\n'.join(['case\tlesion\tconfidence\tcomment', *lines]) + '\n')
    return path


def score(study_dir, *forms):
    code = cli.main(['score', str(study_dir), *map(str, forms)])
    scores = study_dir.with_name('study_key') / 'scores.json'
    return code, json.loads(scores.read_text()) if scores.exists() else None


@pytest.fixture
def thesis(tmp_path):
    """The result of the thesis (4.1): one reader found 3 of 20, the other 1, here one of those of the first."""
    study_dir = write_study(tmp_path)
    forms = [
        write_form(tmp_path / 'one.tsv', [4, 4, 4] + [7] * 17, [5, 2, 1] + [1] * 17),
        write_form(tmp_path / 'two.tsv', [9, 9, 4] + [7] * 16 + [2]),
    ]
    return study_dir, forms


def test_scores_of_the_thesis(thesis, capsys):
    study_dir, forms = thesis
    code, scores = score(study_dir, *forms)
    assert code == 0
    one, two = scores['readers']
    assert [one[name] for name in ('reader', 'cases', 'answered', 'hits')] == ['one', 20, 20, 3]
    assert [one[name] for name in ('hit_percent', 'low_percent', 'high_percent')] == [15, 3.21, 37.89]
    assert [two[name] for name in ('hit_percent', 'low_percent', 'high_percent')] == [5, 0.13, 24.87]
    assert one['hits_by_chance'] == two['hits_by_chance'] == 2
    # Guessing hits none in .9^20 = .1216, one in 20 * .1 * .9^19 = .2702, two in 190 * .01 * .9^18 = .2852.
    assert one['p_value'] == pytest.approx(1 - 0.1216 - 0.2702 - 0.2852, abs=2e-4)
    assert two['p_value'] == pytest.approx(1 - 0.1216, abs=1e-4)
    text = capsys.readouterr().out
    assert '| one | 3 of 20 (15 %) | 3.2 to 37.9 % | 2.0 | 0.323 |' in text
    assert '| two | 1 of 20 (5 %) | 0.1 to 24.9 % | 2.0 | 0.878 |' in text


def test_agreement_by_hand(thesis, capsys):
    _, scores = score(thesis[0], *thesis[1])
    (pair,) = scores['agreement']
    # Both hit case 3; both name lesion 7 in cases 4 to 19. They agree on hit or miss in 18 of 20 cases; by chance in
    # .15 * .05 + .85 * .95 = .815 of them.
    assert (pair['readers'], pair['both_hit'], pair['same_lesion']) == (['one', 'two'], 1, 17)
    assert pair['kappa'] == pytest.approx((0.9 - 0.815) / (1 - 0.815), abs=1e-3)
    assert 'one and two: 1 hit by both, the same lesion named in 17 cases, kappa of hit or miss 0.46.' in (
        capsys.readouterr().out
    )


def test_hits_by_confidence(thesis, capsys):
    _, scores = score(thesis[0], thesis[1][0])
    found = [(row['confidence'], row['hits'], row['cases']) for row in scores['confidences']]
    assert found == [(1, 1, 18), (2, 1, 1), (5, 1, 1)]
    assert scores['agreement'] == []
    assert '| one | 5 | 1 of 1 |' in capsys.readouterr().out


def test_scores_are_beside_the_key_and_leave_the_study_blind(thesis):
    study_dir, forms = thesis
    score(study_dir, *forms)
    assert listing(study_dir) == ['key.sha256']
    with open(study_dir.with_name('study_key') / 'scores.tsv', newline='') as file:
        rows = list(csv.DictReader(file, delimiter='\t'))
    assert [(row['reader'], row['hits'], row['p_value']) for row in rows] == [
        ('one', '3', '0.32307'),
        ('two', '1', '0.87842'),
    ]


def test_missing_answers_are_misses_and_said(tmp_path, capsys):
    study_dir = write_study(tmp_path, n_cases=4)
    form = write_form(tmp_path / 'one.tsv', [4, 'n/a', ''], [5, '', 'n/a'])  # and case 4 has no line at all
    code, scores = score(study_dir, form)
    assert code == 0
    assert [scores['readers'][0][name] for name in ('cases', 'answered', 'hits')] == [4, 1, 1]
    assert scores['answers']['one']['case-04'] == {'lesion': None, 'confidence': None, 'hit': False}
    text = capsys.readouterr().out
    assert 'one gave no answer in 3 of 4 cases: counted as missed.' in text
    assert '| one | n/a | 0 of 3 |' in text


def test_two_readers_who_never_hit_have_no_kappa(tmp_path, capsys):
    study_dir = write_study(tmp_path, n_cases=3)
    _, scores = score(study_dir, *(write_form(tmp_path / f'{name}.tsv', [1, 2, 'n/a']) for name in ('one', 'two')))
    (pair,) = scores['agreement']
    assert (pair['both_hit'], pair['same_lesion'], pair['kappa']) == (0, 2, None)  # no answer is no agreement
    assert 'kappa of hit or miss not defined' in capsys.readouterr().out


def test_a_form_from_a_spreadsheet_is_read(tmp_path):
    """With a byte order mark, Windows line ends, an empty line of tabs, and short lines."""
    study_dir = write_study(tmp_path, n_cases=3)
    form = tmp_path / 'one.tsv'
    lines = ['case\tlesion\tconfidence\tcomment', 'case-01\t4\t5\tdull, déjà vu', 'case-02\t4.0', '\t\t\t', '']
    form.write_bytes('\r\n'.join(lines).encode('utf-8-sig'))
    code, scores = score(study_dir, form)
    assert (code, scores['readers'][0]['hits'], scores['readers'][0]['answered']) == (0, 2, 2)


HEAD = 'case\tlesion\tconfidence\tcomment\n'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (HEAD + 'case-09\t1\t1\t\n', 'case case-09 is unknown, expected one of case-01, case-02'),
        (HEAD + 'case-01\t11\t1\t\n', 'case-01 has lesion 11, expected 1 to 10 or n/a'),
        (HEAD + 'case-01\t0\t1\t\n', 'case-01 has lesion 0, expected 1 to 10 or n/a'),
        (HEAD + 'case-01\t2.5\t1\t\n', 'case-01 has lesion 2.5, expected 1 to 10 or n/a'),
        (HEAD + 'case-01\tnan\t1\t\n', 'case-01 has lesion nan, expected 1 to 10 or n/a'),
        (HEAD + 'case-01\tfour\t1\t\n', "case-01 has lesion 'four', expected 1 to 10 or n/a"),
        (HEAD + 'case-02\t4\t6\t\n', 'case-02 has confidence 6, expected 1 to 5 or n/a'),
        (HEAD + 'case-01\t4\t1\t\ncase-01\t4\t1\t\n', 'case case-01 is answered twice'),
        (HEAD + '\t4\t1\t\n', 'case None is unknown'),
        (HEAD.replace('\t', ',') + 'case-01,4,1,\n', "has columns ['case,lesion,confidence,comment'], expected"),
        (HEAD, 'has columns [], expected'),
        (HEAD.encode('utf-16') + b'\x00', 'cannot be read'),
        (None, 'cannot be read'),
    ],
)
def test_a_form_that_cannot_be_scored_ends_in_one_sentence(tmp_path, caplog, text, message):
    study_dir, form = write_study(tmp_path, n_cases=2), tmp_path / 'one.tsv'
    if text is not None:
        form.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, scores = score(study_dir, form)
    assert (code, scores) == (2, None)
    (error,) = [record.getMessage() for record in caplog.records if record.levelname == 'ERROR']
    assert message in error
    assert 'one.tsv' in error
    assert '\n' not in error


def test_two_forms_of_one_name_are_refused(tmp_path, caplog):
    study_dir = write_study(tmp_path, n_cases=2)
    (tmp_path / 'b').mkdir()
    forms = [write_form(folder / 'form.tsv', [1, 2]) for folder in (tmp_path, tmp_path / 'b')]
    assert score(study_dir, *forms) == (2, None)
    assert 'name each after its reader' in caplog.text


def test_a_changed_key_is_refused(thesis, caplog):
    study_dir, forms = thesis
    key_file = study_dir.with_name('study_key') / 'key.json'
    key_file.write_text(key_file.read_text().replace('"lesion": 4', '"lesion": 7'))
    assert score(study_dir, *forms) == (2, None)
    assert 'was sealed in' in caplog.text


@pytest.mark.parametrize('name', ['study/key.sha256', 'study_key/key.json'])
def test_a_missing_key_or_seal_is_said(thesis, tmp_path, caplog, name):
    (tmp_path / name).unlink()
    assert score(thesis[0], *thesis[1]) == (2, None)
    assert f'{name} is missing' in caplog.text


def test_a_study_that_was_made_can_be_scored(study, tmp_path):
    lines = [f'{case}\t{entry["lesion"]}\t5\t' for case, entry in study.key['cases'].items()]
    form = tmp_path / 'seer.tsv'
    form.write_text('\n'.join([HEAD.strip(), *lines]))
    for folder in (study.folder, study.key_file.parent):  # scores are written beside the key
        shutil.copytree(folder, tmp_path / folder.name)
    code, scores = score(tmp_path / 'study', form)
    assert code == 0
    assert scores['readers'][0]['hit_percent'] == 100
    assert scores['readers'][0]['hits_by_chance'] == pytest.approx(1 / 4 + 1 / 3 + 1 / 4, abs=1e-3)
    assert scores['readers'][0]['p_value'] == pytest.approx(1 / 48, abs=1e-5)
