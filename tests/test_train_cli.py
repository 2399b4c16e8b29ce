"""Command line of `train`: what is refused and how, plans, brains on disk."""

import json
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from bids_examples import mask_path, t1w_path, write_bids

from bids_lesionfill.train import brains as train_brains
from bids_lesionfill.train import cases as train_cases
from bids_lesionfill.train import cli, loop, plans, store

TINY = {
    'block_out_channels': (8, 8),
    'down_block_types': ('DownBlock2D',) * 2,
    'up_block_types': ('UpBlock2D',) * 2,
    'norm_num_groups': 4,
}
PLAN = plans.Plan(
    'tiny',
    unet_options=TINY,
    cases=train_cases.CasePlan(crop=(16, 16, 4)),
    batch_size=2,
    num_updates=1,
    warmup_updates=1,
    decay_updates=0,
    n_validation_cases=2,
)


@pytest.fixture(autouse=True)
def _new_accelerator():
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def patient_dir(make_phantom, tmp_path):
    """Two patients with T1w and lesion mask; no segmentation, no table."""
    images = {}
    for subject in ('01', '02'):
        phantom = make_phantom(affine=np.eye(4), seed=int(subject))
        images |= {t1w_path(subject): phantom.t1w_img, mask_path(subject): phantom.lesion_mask_img}
    return write_bids(tmp_path / 'patients', images)


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / 'plan.json'
    path.write_text(PLAN.to_json())
    return path


@pytest.fixture
def train(tmp_path, plan_file):
    """Run the command line with the tiny plan into tmp_path/out; the exit code."""

    def run(*arguments, out='out'):
        given = [str(argument) for argument in arguments]
        if '--plan' not in given:
            given += ['--plan', str(plan_file)]
        return cli.main([given[0], str(tmp_path / out), *given[1:], '--num-workers', '0'])

    return run


def test_help_waits_for_no_torch():
    code = "import sys\nfrom bids_lesionfill.train import cli\ntry:\n    cli.main(['--help'])\n"
    code += "finally:\n    print([name for name in ('torch', 'diffusers', 'numpy', 'bids') if name in sys.modules])"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.rstrip().endswith('[]')
    assert '--normal-appearing' in done.stdout


def test_every_option_has_a_help():
    actions = cli.build_parser()._actions
    assert len(actions) > 15
    assert [action.dest for action in actions if not action.help] == []


def test_plans_are_listed(capsys):
    assert cli.main(['--list-plans']) == 0
    rows = [line.split('\t') for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == list(plans.PLANS)
    assert rows[0][1:] == ['fill T1w', 'compact', '8000 updates']


def test_a_plan_is_printed_with_what_is_changed(capsys):
    assert cli.main(['--print-plan', '--plan', 'fill-FLAIR', '--num-updates', '7']) == 0
    printed = plans.Plan.from_json(capsys.readouterr().out)
    assert printed == replace(plans.PLANS['fill-FLAIR'], num_updates=7)


@pytest.mark.parametrize(('options', 'words'), [
    (['--plan', 'fill-T1'], '--plan fill-T1 is neither a plan nor a file: did you mean fill-T1w? (see --list-plans)'),
    (['--plan', 'synth-T1w', '--normal-appearing'], '--normal-appearing is for filling of T1w; the plan synth-T1w'),
    ([], 'participants.tsv has no column split (train, validation)'),
    (['--normal-appearing', '--validation-label', '7'], '--validation-label: no 7 with image, T1w and lesion mask'),
    (['--normal-appearing', '--lesion-masks', 'nowhere'], 'nowhere is not a folder'),
    (['--init-from', 'fill-T1w'], '--init-from fill-T1w has another network than the plan tiny'),
    (['--init-from', 'fill-T1'], "model 'fill-T1' is neither bundled"),
    (['--lpips-weights', 'nowhere.pth'], '--lpips-weights nowhere.pth is not a file'),
])  # fmt: skip
def test_errors_are_one_sentence_and_2(patient_dir, train, tmp_path, caplog, options, words):
    assert train(patient_dir, *options) == cli.USAGE
    assert words in caplog.text
    assert 'Traceback' not in caplog.text
    assert not (tmp_path / 'out').exists()


def test_no_column_split_is_said_with_the_columns_that_there_are(patient_dir, train, caplog):
    (patient_dir / 'participants.tsv').write_text('participant_id\tage\nsub-01\t30\n')
    assert train(patient_dir) == cli.USAGE
    assert 'has no column split (train, validation): participant_id, age; patients alone need none' in caplog.text


def test_no_masks_are_said(patient_dir, train, tmp_path, caplog):
    (tmp_path / 'empty').mkdir()
    assert train(patient_dir, '--normal-appearing', '--lesion-masks', tmp_path / 'empty') == cli.USAGE
    assert 'no lesion masks (*label-lesion*_mask.nii.gz) below' in caplog.text


def test_no_cuda_is_said(patient_dir, train, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert train(patient_dir, '--normal-appearing', '--device', 'cuda') == cli.USAGE
    assert '--device cuda: torch finds no CUDA device; use --device cpu' in caplog.text


def test_patients_alone_train_a_filler_and_their_brains_are_on_disk(patient_dir, train, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(loop, 'train', lambda brains, cases, *rest, **options: trained.append((brains, cases)))
    assert train(patient_dir, '--normal-appearing') == cli.OK
    (((brain,), cases),) = trained
    assert len(cases) == 2
    assert isinstance(brain.image, np.memmap)
    assert brain.lesion_mask is None
    (files,) = [files for _, *files in cli.datasets.find_patients(patient_dir, 'T1w') if 'sub-01' in files[0]]
    (expected,) = train_brains.read_normal_appearing([files])
    assert np.array_equal(brain.image, expected.image)
    assert np.array_equal(brain.wm_mask, expected.wm_mask)
    monkeypatch.setattr(train_brains, 'read_patient', lambda *files: pytest.fail('read again'))
    assert train(patient_dir, '--normal-appearing') == cli.OK


@pytest.mark.slow
def test_brains_on_disk_train_the_same_model_as_in_memory(patient_dir, train, tmp_path, monkeypatch):
    assert train(patient_dir, '--normal-appearing') == cli.OK
    monkeypatch.setattr(store.Store, '__call__', lambda self, files, read, what='': read())
    assert train(patient_dir, '--normal-appearing', out='again') == cli.OK
    one, other = ((tmp_path / out / 'last' / 'unet' / 'diffusion_pytorch_model.safetensors').read_bytes()
                  for out in ('out', 'again'))  # fmt: skip
    assert one == other


def test_store_reads_a_brain_once_and_knows_changed_files(tmp_path, rng):
    path, reads = tmp_path / 'file', []
    path.write_text('one')
    keep = store.Store(tmp_path / 'brains')

    def read():
        reads.append(None)
        return train_brains.Brain(rng.normal(size=(4, 5, 6)).astype(np.float32), rng.random((4, 5, 6)) > 0.5)

    first, again = (keep([path], read, 'what') for _ in range(2))
    assert len(reads) == 1
    assert np.array_equal(first.image, again.image)
    assert first.wm_mask.dtype == bool
    assert first.tissue_seg is None
    keep([path], read, 'else')
    path.write_text('longer')
    keep([path], read, 'what')
    assert len(reads) == 3
    assert keep([path], lambda: None, 'nothing') is None
    assert keep([path], lambda: pytest.fail('read again'), 'nothing') is None


def test_centres_of_crops_are_kept_of_few_brains(monkeypatch, rng):
    monkeypatch.setattr(train_cases, 'KEPT_PLACES', 2)
    brains = [train_brains.Brain(np.zeros((6, 6, 6), np.float32), rng.random((6, 6, 6)) > 0.5) for _ in range(4)]
    cases = train_cases.TrainingCases(brains, [], PLAN.cases, PLAN.form, 0, 1)
    for number in (0, 1, 2, 3, 1):
        groups, chances = cases.places_of(number)
        assert np.array_equal(groups[0], np.argwhere(brains[number].wm_mask))
        assert len(cases.places) <= 2


YAML = """
from: fill-T1w
name: mine
learning_rate: 1e-4
cases:
  crop: [16, 16, 4]
  rim_contrast: [1e-1, 0.5]
log_loss_floor: 1e-2
"""


def test_plan_in_yaml_is_that_in_json(tmp_path, capsys):
    (tmp_path / 'plan.yaml').write_text(YAML)
    content = {'from': 'fill-T1w', 'name': 'mine', 'learning_rate': 1e-4, 'log_loss_floor': 0.01}
    content['cases'] = {'crop': [16, 16, 4], 'rim_contrast': [0.1, 0.5]}
    (tmp_path / 'plan.json').write_text(json.dumps(content))
    printed = []
    for name in ('plan.yaml', 'plan.json'):
        assert cli.main(['--print-plan', '--plan', str(tmp_path / name)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert plans.Plan.from_json(printed[0]).learning_rate == 1e-4


@pytest.mark.parametrize(('text', 'words'), [
    ('learning_rate: fast', "learning_rate of a plan is 'fast', expected a number"),
    ('pseudo_3d: 3', 'pseudo_3d of a plan is 3, expected true or false'),
    ('cases: 3', 'cases of a plan is 3, expected an object'),
    ('cases: {crop: [1, 2]}', 'crop of a plan is [1, 2], expected 3 numbers'),
    ('- 3', 'a plan is an object with the names of settings'),
    ('a: [', 'it is no YAML'),
    ('learning_rat: 1', 'a plan has no'),
])  # fmt: skip
def test_damaged_plans_are_refused_by_name(tmp_path, caplog, text, words):
    (tmp_path / 'plan.yaml').write_text(text)
    assert cli.main(['--print-plan', '--plan', str(tmp_path / 'plan.yaml')]) == cli.USAGE
    assert words in caplog.text
    assert 'plan.yaml cannot be read' in caplog.text


@pytest.mark.parametrize('name', ['last', 'best', 'last.new', 'best.old'])
def test_folders_that_train_did_not_write_are_not_replaced(patient_dir, train, tmp_path, caplog, name, monkeypatch):
    loop.claim(tmp_path / 'out', PLAN)
    (tmp_path / 'out' / name).mkdir()
    (tmp_path / 'out' / name / 'thesis.docx').write_text('mine')
    monkeypatch.setattr(loop, 'train', lambda *_, **__: pytest.fail('trained'))
    assert train(patient_dir, '--normal-appearing') == cli.USAGE
    assert f'{name} was not written by this training (thesis.docx)' in caplog.text
    assert (tmp_path / 'out' / name / 'thesis.docx').read_text() == 'mine'


def test_its_own_folders_are_replaced_and_those_of_another_plan_are_not(tmp_path):
    loop.save_model(PLAN.build_unet(), PLAN, tmp_path / 'best')
    loop.check_folders(tmp_path, replace(PLAN, num_updates=9))
    with pytest.raises(ValueError, match='best was not written by this training'):
        loop.check_folders(tmp_path, replace(PLAN, name='other'))


def test_a_single_mask_is_too_few(patient_dir, train, tmp_path, caplog):
    (tmp_path / 'one').mkdir()
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), tmp_path / 'one' / 'x_label-lesion_mask.nii.gz')
    assert train(patient_dir, '--normal-appearing', '--lesion-masks', tmp_path / 'one') == cli.USAGE
    assert 'is the only lesion mask, expected two or more' in caplog.text
