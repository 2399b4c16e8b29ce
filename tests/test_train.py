import csv
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from bids_lesionfill import dataset, inpaint, masks, metrics, train, unet
from bids_lesionfill.train import PLANS, Plan, learning_rate_factor

PLAN = Plan(
    name='tiny',
    unet_options={
        'block_out_channels': (8, 8),
        'down_block_types': ('DownBlock2D',) * 2,
        'up_block_types': ('UpBlock2D',) * 2,
        'norm_num_groups': 4,
    },
    cases=dataset.CasePlan(crop=(16, 16, 4)),
    batch_size=2,
    learning_rate=1e-2,
    warmup_updates=2,
    num_updates=6,
    decay_updates=2,
    validate_every=2,
    seed=7,
)


# The plan


@pytest.mark.parametrize('name', sorted(PLANS))
def test_plan_survives_json(name):
    assert Plan.from_json(PLANS[name].to_json()) == PLANS[name]
    assert PLANS[name].name == name


def test_plan_with_everything_changed_survives_json():
    plan = replace(
        PLAN,
        unet_options={'layers_per_block': 2},
        form=inpaint.Form(kind='plain', residual_scale=0.1),
        cases=dataset.CasePlan(crop=(24, 24, 8), ellipsoid_share=0.25, intensity_augmentation=False),
    )
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert isinstance(again.cases.crop, tuple)


def test_plan_with_network_options_builds_the_same_network_after_json():
    again = Plan.from_json(PLAN.to_json())
    shapes, shapes_again = (
        {name: weight.shape for name, weight in plan.build_unet().state_dict().items()} for plan in (PLAN, again)
    )
    assert shapes == shapes_again
    assert again.to_json() == PLAN.to_json()


def test_plan_json_is_plain_json_with_every_field():
    assert set(json.loads(PLAN.to_json())) == set(asdict(PLAN))
    assert PLAN.to_json().endswith('}\n')


def test_unknown_field_in_a_plan_is_refused():
    with pytest.raises(TypeError, match='colour'):
        Plan.from_json(json.dumps(json.loads(PLAN.to_json()) | {'colour': 'red'}))


@pytest.mark.parametrize('kind', ['residual', 'plain'])
def test_plan_builds_a_network_with_the_channels_of_its_form(kind):
    form = inpaint.Form(kind=kind)
    assert replace(PLAN, form=form).build_unet().config.in_channels == form.n_channels


def test_plan_builds_a_2d_network_on_demand():
    assert type(replace(PLAN, pseudo_3d=False).build_unet()) is unet.SlabUNet2D
    assert type(PLAN.build_unet()) is unet.SlabUNetPseudo3D


def test_thesis_plans_follow_table_3_1():
    for name, share in (('thesis-lesions', 0.0), ('thesis-mixture', 0.5), ('thesis-circles', 1.0)):
        plan = PLANS[name]
        assert (plan.size, plan.prediction_type, plan.noise_schedule) == ('thesis', 'epsilon', 'linear')
        assert (plan.learning_rate, plan.warmup_updates, plan.num_updates) == (1e-4, 500, 90_000)
        assert plan.num_inference_steps == 50
        assert (plan.form.kind, plan.form.inside_mask_only) == ('plain', False)
        assert plan.cases.ellipsoid_share == share


# The learning rate


def test_learning_rate_by_hand():
    plan = replace(PLAN, warmup_updates=4, num_updates=100, decay_updates=40)
    factors = {update: learning_rate_factor(plan, update) for update in (0, 1, 3, 4, 30, 60, 70, 80, 90, 100)}
    expected = {0: 0.25, 1: 0.5, 3: 1, 4: 1, 30: 1, 60: 1, 80: 0.5, 100: 0}
    expected |= {70: (1 + np.sqrt(0.5)) / 2, 90: (1 - np.sqrt(0.5)) / 2}
    assert factors == pytest.approx(expected)


def test_learning_rate_without_warmup_and_decay_is_constant():
    plan = replace(PLAN, warmup_updates=0, decay_updates=0)
    assert [learning_rate_factor(plan, update) for update in range(6)] == [1] * 6


def test_learning_rate_never_leaves_zero_to_one():
    for plan in [*PLANS.values(), PLAN]:
        factors = [learning_rate_factor(plan, update) for update in range(0, plan.num_updates + 10, 7)]
        assert min(factors) >= 0
        assert max(factors) <= 1


# One step


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, 1, 4, 16, 16)
    mask[..., 1:3, 4:9, 4:9] = 1
    channels = torch.cat([torch.randn(mask.shape, generator=generator), mask, mask], dim=1)
    return torch.randn(mask.shape, generator=generator), channels, mask


def test_step_depends_on_the_seed_and_the_update_alone(batch, tiny_unet):
    network, scheduler = tiny_unet(), PLAN.build_scheduler()

    def loss(plan, update):
        return train.train_step(network, batch, scheduler, plan, update).item()

    first = loss(PLAN, 5)
    torch.manual_seed(99)
    torch.randn(100)
    assert loss(PLAN, 5) == first
    assert loss(PLAN, 6) != first
    assert loss(replace(PLAN, seed=8), 5) != first


def test_step_scores_inside_the_mask_only_if_the_form_says_so(batch, tiny_unet):
    target, channels, mask = batch
    elsewhere = target + 5 * (1 - mask)
    network = tiny_unet()
    for inside_mask_only in (True, False):
        plan = replace(PLAN, form=inpaint.Form(inside_mask_only=inside_mask_only))
        usual, other = (
            train.train_step(network, (truth, channels, mask), plan.build_scheduler(), plan, 5).item()
            for truth in (target, elsewhere)
        )
        assert (usual == other) == inside_mask_only


def test_step_with_an_oracle_has_no_loss(batch, oracle):
    target, *_ = batch
    plan = replace(PLAN, share_at_end=1.0)
    scheduler = plan.build_scheduler()

    class Oracle(torch.nn.Linear):
        def forward(self, slabs, timesteps):
            assert (timesteps == 999).all()
            return oracle(target, scheduler)(slabs[:, :1], timesteps[0])

    assert train.train_step(Oracle(1, 1), batch, scheduler, plan, 0).item() == pytest.approx(0, abs=1e-8)


# Validation


@pytest.fixture
def brain(phantom):
    return phantom.normalised_healthy, phantom.wm_mask


@pytest.fixture
def cases(brain, phantom):
    return dataset.validation_cases([brain], masks.split_lesions(phantom.lesion_mask), PLAN.cases, PLAN.form, 4, 1)


class Zero(torch.nn.Linear):
    """Predicts v = 0 everywhere: from pure noise, the residual is then zero, and the base is the result."""

    def forward(self, slabs, timesteps):
        return torch.zeros_like(slabs[:, :1])


def test_validation_of_a_network_that_adds_nothing_scores_the_base(cases):
    scores = train.validate(Zero(1, 1), cases, PLAN.build_scheduler(), PLAN)
    kinds, metric_names = ('clean', 'rim'), ('mse', 'psnr', 'ssim')
    names = {f'{kind}/{who}_{metric}' for kind in kinds for who in ('model', 'base') for metric in metric_names}
    assert set(scores) == names
    for kind in kinds:
        for metric in metric_names:
            assert scores[f'{kind}/model_{metric}'] == pytest.approx(scores[f'{kind}/base_{metric}'], rel=1e-5)


def test_validation_averages_m1_of_the_cases_by_kind(cases):
    scores = train.validate(Zero(1, 1), cases, PLAN.build_scheduler(), PLAN)
    for kind in ('clean', 'rim'):
        by_hand = []
        for case in cases:
            if case['kind'] == kind:
                result = np.where(case['lesion_mask'], case['base'], case['image'])
                by_hand.append(metrics.slice_scores(case['image'], result, case['lesion_mask']))
        assert len(by_hand) == 2
        for metric in ('mse', 'psnr', 'ssim'):
            assert scores[f'{kind}/base_{metric}'] == pytest.approx(np.mean([row[metric] for row in by_hand]))


def test_validation_of_an_oracle_is_perfect(cases, oracle):
    scheduler = PLAN.build_scheduler()

    class Oracle(torch.nn.Linear):
        remaining = list(cases)

        def forward(self, slabs, timesteps):
            case = self.remaining.pop(0)
            truth = inpaint.to_slab(PLAN.form.to_diffusion(case['image'], case['base'])[None])
            return oracle(torch.from_numpy(truth.copy())[None], scheduler)(slabs[:, :1], timesteps[0])

    scores = train.validate(Oracle(1, 1), cases, scheduler, PLAN)
    for kind in ('clean', 'rim'):
        assert scores[f'{kind}/model_mse'] < 1e-8
        assert scores[f'{kind}/model_ssim'] == pytest.approx(1, abs=1e-4)
        assert scores[f'{kind}/base_mse'] > 1e-5


def test_validation_is_repeatable(cases, tiny_unet):
    network, scheduler = tiny_unet(), PLAN.build_scheduler()
    assert train.validate(network, cases, scheduler, PLAN) == train.validate(network, cases, scheduler, PLAN)


# A whole training


def weights_of(network):
    return {name: weight.clone() for name, weight in network.state_dict().items()}


def equal(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def log_of(output_dir):
    with open(output_dir / 'log.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def material(make_phantom):
    phantom = make_phantom()
    brains = [(phantom.normalised_healthy, phantom.wm_mask)]
    shapes = masks.split_lesions(phantom.lesion_mask)
    return brains, dataset.validation_cases(brains, shapes, PLAN.cases, PLAN.form, 2, 1), shapes


@pytest.fixture(scope='module')
def undisturbed(material, tmp_path_factory):
    """A finished training: its network and its folder."""
    output_dir = tmp_path_factory.mktemp('undisturbed')
    return train.train(*material, PLAN, output_dir, num_workers=0), output_dir


def test_training_changes_the_weights_and_they_stay_finite(undisturbed):
    network, _ = undisturbed
    torch.manual_seed(PLAN.seed)
    at_start = PLAN.build_unet().state_dict()
    for name, weight in network.state_dict().items():
        assert weight.isfinite().all()
        assert not torch.equal(weight, at_start[name])
    assert not network.training


def test_training_logs_one_row_per_validation(undisturbed):
    rows = log_of(undisturbed[1])
    assert [int(row['update']) for row in rows] == [2, 4, 6]
    for row in rows:
        assert all(np.isfinite(float(value)) for value in row.values())
    assert {'loss', 'learning_rate', 'seconds', 'clean/model_ssim', 'rim/base_mse'} <= set(rows[0])
    assert [float(row['learning_rate']) for row in rows] == pytest.approx([1e-2, 1e-2, 0])


def test_training_leaves_whole_model_folders(undisturbed):
    _, output_dir = undisturbed
    for name in ('last', 'best'):
        files = sorted(str(path.relative_to(output_dir / name)) for path in (output_dir / name).rglob('*.*'))
        assert files == [
            'plan.json',
            'scheduler/scheduler_config.json',
            'unet/config.json',
            'unet/diffusion_pytorch_model.safetensors',
        ]
        assert (output_dir / name / 'plan.json').read_text() == PLAN.to_json()
    assert (output_dir / 'plan.json').read_text() == PLAN.to_json()
    assert not list(output_dir.rglob('*.tmp'))


def test_last_model_reloads_as_the_averaged_weights_in_half_precision(undisturbed):
    network, output_dir = undisturbed
    loaded = unet.SlabUNetPseudo3D.from_pretrained(output_dir / 'last' / 'unet', torch_dtype=torch.float16)
    half = {name: weight.to(torch.float16) for name, weight in network.state_dict().items()}
    assert equal(loaded.state_dict(), half)
    scheduler = DDIMScheduler.from_pretrained(output_dir / 'last' / 'scheduler')
    assert torch.equal(scheduler.alphas_cumprod, PLAN.build_scheduler().alphas_cumprod)
    assert scheduler.config.prediction_type == 'v_prediction'
    assert scheduler.config.timestep_spacing == 'trailing'


def test_training_leaves_a_checkpoint_that_loads_without_pickled_code(undisturbed):
    state = torch.load(undisturbed[1] / 'checkpoint.pt', weights_only=True)
    assert state['update'] == 6
    assert not equal(state['network'], undisturbed[0].state_dict())  # the network returned is the averaged one


def test_another_seed_gives_other_weights(material, tmp_path):
    def first_weights(seed):
        plan = replace(PLAN, seed=seed, num_updates=1, decay_updates=0, warmup_updates=0, validate_every=9)
        return train.train(*material, plan, tmp_path / str(seed), num_workers=0).state_dict()

    assert not equal(first_weights(7), first_weights(8))


def test_gradients_are_clipped(material, tmp_path):
    def largest_change(gradient_clip):
        plan = replace(
            PLAN, gradient_clip=gradient_clip, num_updates=1, decay_updates=0, warmup_updates=0, validate_every=9
        )
        torch.manual_seed(plan.seed)
        before = plan.build_unet().state_dict()
        after = train.train(*material, plan, tmp_path / str(gradient_clip), num_workers=0).state_dict()
        return max((after[name] - before[name]).abs().max().item() for name in after)

    assert largest_change(1.0) == pytest.approx(PLAN.learning_rate, rel=0.1)  # the first step of Adam
    assert largest_change(1e-12) < 0.1 * PLAN.learning_rate  # below Adam's epsilon


class Killed(Exception):
    pass


def train_until_killed(monkeypatch, material, output_dir, at_update, checkpoint_seconds, plan=PLAN):
    step = train.train_step

    def killed_step(network, batch, scheduler, plan, update):
        if update == at_update:
            raise Killed
        return step(network, batch, scheduler, plan, update)

    with monkeypatch.context() as patch:
        patch.setattr(train, 'train_step', killed_step)
        with pytest.raises(Killed):
            train.train(*material, plan, output_dir, checkpoint_seconds=checkpoint_seconds, num_workers=0)


@pytest.mark.parametrize('at_update', [3, 4])  # between validations, and right after one
def test_killed_training_goes_on_and_ends_with_the_same_weights(
    undisturbed, material, tmp_path, monkeypatch, at_update
):
    train_until_killed(monkeypatch, material, tmp_path, at_update, checkpoint_seconds=0)
    assert torch.load(tmp_path / 'checkpoint.pt', weights_only=True)['update'] == at_update
    updates, step = [], train.train_step
    monkeypatch.setattr(train, 'train_step', lambda *arguments: updates.append(arguments[-1]) or step(*arguments))
    resumed = train.train(*material, PLAN, tmp_path, num_workers=0)
    assert updates == list(range(at_update, 6))  # nothing is done twice
    assert equal(resumed.state_dict(), undisturbed[0].state_dict())
    for name in ('last', 'best'):
        there, here = (d / name / 'unet' / 'diffusion_pytorch_model.safetensors' for d in (undisturbed[1], tmp_path))
        assert there.read_bytes() == here.read_bytes()
    scores = [
        [{k: v for k, v in row.items() if k in ('update', 'learning_rate') or '/' in k} for row in log_of(d)]
        for d in (undisturbed[1], tmp_path)
    ]
    assert scores[0] == scores[1]


def test_training_killed_before_its_first_checkpoint_starts_anew_and_gives_the_same_weights(
    undisturbed, material, tmp_path, monkeypatch
):
    train_until_killed(monkeypatch, material, tmp_path, 1, checkpoint_seconds=1e9)
    assert not (tmp_path / 'checkpoint.pt').exists()
    resumed = train.train(*material, PLAN, tmp_path, num_workers=0)
    assert equal(resumed.state_dict(), undisturbed[0].state_dict())


def test_finished_training_is_not_done_again(undisturbed, material, monkeypatch):
    network, output_dir = undisturbed
    rows = log_of(output_dir)

    def refuse(*_):
        raise AssertionError('trained again')

    monkeypatch.setattr(train, 'train_step', refuse)
    again = train.train(*material, PLAN, output_dir, num_workers=0)
    assert equal(again.state_dict(), network.state_dict())
    assert log_of(output_dir) == rows


def test_best_model_stays_when_the_score_falls(material, tmp_path, monkeypatch):
    scores = iter([(0.5, 0.9), (0.9, 0.0), (0.4, 1.0)])  # of the model and its base, at updates 2, 4, 6
    saved = []
    monkeypatch.setattr(
        train, 'validate', lambda *_: dict(zip(('clean/model_ssim', 'clean/base_ssim'), next(scores), strict=True))
    )
    monkeypatch.setattr(train, 'save_model', lambda _, __, model_dir: saved.append(model_dir.name))
    train.train(*material, PLAN, tmp_path, num_workers=0)
    assert saved == ['last', 'best', 'last', 'best', 'last']


def test_best_score_is_remembered_over_a_kill(material, tmp_path, monkeypatch):
    ssim, saved = iter([0.9, 0.4, 0.5]), []
    monkeypatch.setattr(train, 'validate', lambda *_: {'clean/model_ssim': next(ssim)})
    monkeypatch.setattr(train, 'save_model', lambda _, __, model_dir: saved.append(model_dir.name))
    train_until_killed(monkeypatch, material, tmp_path, 3, checkpoint_seconds=0)
    train.train(*material, PLAN, tmp_path, num_workers=0)
    assert saved == ['last', 'best', 'last', 'last']


def test_validation_sees_the_averaged_weights_and_training_goes_on_with_its_own(material, tmp_path, monkeypatch):
    validated, stepped = [], []
    step = train.train_step

    def spy(network, *arguments):
        stepped.append(weights_of(network))
        return step(network, *arguments)

    monkeypatch.setattr(train, 'train_step', spy)
    monkeypatch.setattr(
        train, 'validate', lambda network, *_: validated.append(weights_of(network)) or {'clean/model_ssim': 0.0}
    )
    plan = replace(PLAN, num_updates=3, decay_updates=0, validate_every=2)
    train.train(*material, plan, tmp_path, num_workers=0)
    assert not equal(validated[0], stepped[2])  # the average lags behind
    without = []
    monkeypatch.setattr(
        train, 'train_step', lambda network, *rest: without.append(weights_of(network)) or step(network, *rest)
    )
    train.train(*material, replace(plan, validate_every=100), tmp_path / 'without', num_workers=0)
    assert equal(without[2], stepped[2])  # a validation changes nothing


def test_checkpoint_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / 'checkpoint.pt'
    train.save_atomically({'update': 1}, path)

    def half_written(state, file):
        with open(file, 'wb') as stream:
            stream.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', half_written)
    with pytest.raises(OSError, match='disk full'):
        train.save_atomically({'update': 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {'update': 1}


def test_cases_drawn_by_worker_processes_give_the_same_weights(undisturbed, material, tmp_path):
    assert equal(train.train(*material, PLAN, tmp_path, num_workers=2).state_dict(), undisturbed[0].state_dict())


def test_log_has_one_row_per_validation_after_a_kill(material, tmp_path, monkeypatch):
    train_until_killed(monkeypatch, material, tmp_path, 3, checkpoint_seconds=1e9)
    train.train(*material, PLAN, tmp_path, num_workers=0)
    assert [int(row['update']) for row in log_of(tmp_path)] == [2, 4, 6]
