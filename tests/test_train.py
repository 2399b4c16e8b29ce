import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from bids_examples import mask_path, t1w_path, write_bids
from diffusers import DDIMScheduler

import bids_lesionfill
from bids_lesionfill.diffusion import forms, models, process, tiles, unet
from bids_lesionfill.images import masks, metrics
from bids_lesionfill.train import brains as train_brains
from bids_lesionfill.train import cases as train_cases
from bids_lesionfill.train import cli, loop, validation
from bids_lesionfill.train.plans import PLANS, UNCONDITIONAL, Plan, learning_rate_factor

TINY_UNET = {
    'block_out_channels': (8, 8),
    'down_block_types': ('DownBlock2D',) * 2,
    'up_block_types': ('UpBlock2D',) * 2,
    'norm_num_groups': 4,
}
PLAN = Plan(
    name='tiny',
    unet_options=TINY_UNET,
    cases=train_cases.CasePlan(crop=(16, 16, 4)),
    batch_size=2,
    learning_rate=1e-2,
    warmup_updates=2,
    num_updates=6,
    decay_updates=2,
    validate_every=2,
    seed=7,
)


@pytest.fixture(autouse=True)
def _new_accelerator():
    """accelerate keeps its state, the precision included, for the whole process."""
    yield
    AcceleratorState._reset_state(True)


# The plan


@pytest.mark.parametrize('name', sorted(PLANS))
def test_plan_survives_json(name):
    assert Plan.from_json(PLANS[name].to_json()) == PLANS[name]
    assert PLANS[name].name == name


@pytest.mark.parametrize('modality', ['T1w', 'FLAIR'])
def test_models_of_synthesis_paint_lesions_of_the_contrast_that_is_asked_for(modality):
    plan = PLANS[f'synth-{modality}']
    assert (plan.task, plan.modality) == ('synth', modality)
    assert plan.form.asks_contrast
    assert (max(plan.cases.rim_contrast) < 0) == (modality == 'FLAIR')  # masks grow into bright rims
    assert plan.start_step <= plan.num_inference_steps


def test_unconditional_synthesis_starts_where_the_thesis_does():
    assert [PLANS[f'thesis-{dimension}-synth-unconditional'].start_step for dimension in ('2d', '3d')] == [1, 3]


def test_plan_with_everything_changed_survives_json():
    plan = replace(
        PLAN,
        unet_options={'layers_per_block': 2},
        form=forms.Form(kind='plain', residual_scale=0.1),
        cases=train_cases.CasePlan(crop=(24, 24, 8), ellipsoid_share=0.25, intensity_augmentation=False),
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
    with pytest.raises(ValueError, match=r"no \['colour'\]; expected .*'batch_size'"):
        Plan.from_json(json.dumps(json.loads(PLAN.to_json()) | {'colour': 'red'}))


@pytest.mark.parametrize('part', ['form', 'cases'])
def test_unknown_field_in_a_part_of_a_plan_is_refused(part):
    values = json.loads(PLAN.to_json())
    with pytest.raises(ValueError, match='colour'):
        Plan.from_json(json.dumps(values | {part: values[part] | {'colour': 'red'}}))


def test_what_a_plan_does_not_say_has_its_default():
    assert Plan.from_json('{"name": "short"}') == Plan(name='short')
    plan = Plan.from_json('{"name": "short", "form": {"base": "membrane"}, "cases": {"max_lesions": 2}}')
    assert plan == Plan(name='short', form=forms.Form(base='membrane'), cases=train_cases.CasePlan(max_lesions=2))


def test_plan_of_the_bundled_model_is_read():
    text = (models.find_model('fill-T1w') / 'plan.json').read_text()
    plan = Plan.from_json(text)
    assert plan.name == 'fill-T1w'
    written, original = json.loads(plan.to_json()), json.loads(text)
    for name, value in original.items():  # nothing that it says is lost
        assert value.items() <= written[name].items() if isinstance(value, dict) else written[name] == value
    assert plan.form.base == 'biharmonic'
    assert (plan.task, plan.min_snr_gamma, plan.mixed_precision) == ('fill', None, 'no')


THESIS_MODELS = {'lesions', 'circles', 'mixture', 'unconditional', 'synth', 'synth-unconditional'}


def test_every_model_of_the_thesis_has_its_plans():
    thesis = {f'{dimension}-{model}' for dimension in ('2d', '3d') for model in THESIS_MODELS}
    thesis |= {'2d-unconditional-min-snr'}
    ours = {'plain', 'plain-rims', 'prior-rims', 'residual'}
    ours |= {f'residual-rims-{base}' for base in ('biharmonic', 'membrane', 'local_white_matter')}
    names = {f'thesis-{model}' for model in thesis} | {f'small-{model}' for model in thesis | ours}
    assert set(PLANS) == names | {'fill', 'fill-T1w', 'fill-FLAIR', 'synth-T1w', 'synth-FLAIR'}


@pytest.mark.parametrize('prefix', ['thesis', 'small'])
def test_names_of_the_thesis_plans_say_what_they_are(prefix):
    for name, plan in PLANS.items():
        if name.startswith((f'{prefix}-2d', f'{prefix}-3d')):
            assert plan.pseudo_3d == ('-3d-' in name)
            assert plan.form.kind == ('unconditional' if 'unconditional' in name else 'plain')
            assert not plan.form.inside_mask_only
            assert (plan.task, plan.modality) == (('synth', 'FLAIR') if 'synth' in name else ('fill', 'T1w'))
            assert plan.min_snr_gamma == (5 if 'min-snr' in name else None)
            assert (plan.prediction_type, plan.share_at_end, plan.num_inference_steps) == ('epsilon', 0, 50)
            assert (plan.jump_length, plan.jump_n_sample) == (8, 10)
            assert (plan.cases.rim_share, plan.cases.max_dilation) == (0, 0)
            assert not plan.cases.intensity_augmentation
            assert not plan.cases.axis_augmentation
    for dimension in ('2d', '3d'):
        shares = {
            masks_name: PLANS[f'{prefix}-{dimension}-{masks_name}'].cases.ellipsoid_share
            for masks_name in ('lesions', 'circles', 'mixture')
        }
        assert shares == {'lesions': 0, 'circles': 1, 'mixture': 0.5}


def test_small_plans_are_small_and_differ_by_nothing_but_what_they_compare():
    plans = [plan for name, plan in PLANS.items() if name.startswith('small-')]
    for name in ('size', 'batch_size', 'learning_rate', 'warmup_updates', 'decay_updates', 'mixed_precision', 'seed'):
        assert len({getattr(plan, name) for plan in plans}) == 1
    assert {plan.cases.crop for plan in plans} == {(24, 24, 12)}
    small, compact = (unet.count_parameters(PLANS[name].build_unet()) for name in ('small-residual', 'fill-T1w'))
    assert small < compact / 2
    clean = [name for name in PLANS if name.startswith('small-') and PLANS[name].cases.rim_share == 0]
    assert {name for name in PLANS if name.startswith('small-')} - set(clean) == {
        *('small-plain-rims', 'small-prior-rims', 'small-residual-rims-biharmonic'),
        *('small-residual-rims-membrane', 'small-residual-rims-local_white_matter'),
    }


@pytest.mark.parametrize('kind', ['residual', 'plain'])
def test_plan_builds_a_network_with_the_channels_of_its_form(kind):
    form = forms.Form(kind=kind)
    assert replace(PLAN, form=form).build_unet().config.in_channels == form.n_channels


def test_plan_builds_a_2d_network_on_demand():
    assert type(replace(PLAN, pseudo_3d=False).build_unet()) is unet.SlabUNet2D
    assert type(PLAN.build_unet()) is unet.SlabUNetPseudo3D


def test_thesis_plans_follow_table_3_1():
    thesis = [plan for name, plan in PLANS.items() if name.startswith('thesis-')]
    assert len(thesis) == 13
    for plan in thesis:
        assert (plan.size, plan.prediction_type, plan.noise_schedule) == ('thesis', 'epsilon', 'linear')
        assert plan.build_scheduler().config.num_train_timesteps == 1000
        assert plan.num_inference_steps == 50
        width, height, n_slices = plan.cases.crop
        assert (width, height, plan.batch_size * n_slices) == (256, 256, 16)  # batch size: 16 slices
        assert (plan.learning_rate, plan.warmup_updates, plan.num_updates) == (1e-4, 500, 90_000)
        assert (plan.jump_length, plan.jump_n_sample) == (8, 10)


def test_thesis_plans_have_a_cosine_schedule_after_500_updates_of_warmup():
    plan = PLANS['thesis-3d-mixture']
    for update in (0, 100, 499, 500, 20_000, 45_250, 89_999):
        cosine = 0.5 * (1 + np.cos(np.pi * max(0, update - 500) / (90_000 - 500)))
        assert learning_rate_factor(plan, update) == pytest.approx(min(1, (update + 1) / 500) * cosine)


def test_training_uses_adamw(material, tmp_path, monkeypatch):
    made, adamw = [], torch.optim.AdamW
    monkeypatch.setattr(torch.optim, 'AdamW', lambda *arguments, **more: made.append(more) or adamw(*arguments, **more))
    loop.train(*material, replace(PLAN, num_updates=1, validate_every=9), tmp_path, num_workers=0)
    assert made == [{'lr': PLAN.learning_rate}]


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
        factors = [
            learning_rate_factor(plan, update)
            for update in range(0, plan.num_updates + 10, max(7, plan.num_updates // 10_000))
        ]
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
        losses, timesteps = loop.train_step(network, batch, scheduler, plan, update)
        assert losses.shape == timesteps.shape == (2,)  # one per slab
        return losses.tolist()

    first = loss(PLAN, 5)
    torch.manual_seed(99)
    torch.randn(100)
    assert loss(PLAN, 5) == first
    for other in (loss(PLAN, 6), loss(replace(PLAN, seed=8), 5)):
        assert all(a != b for a, b in zip(other, first, strict=True))


def test_step_scores_inside_the_mask_only_if_the_form_says_so(batch, tiny_unet):
    target, channels, mask = batch
    elsewhere = target + 5 * (1 - mask)
    network = tiny_unet()
    for inside_mask_only in (True, False):
        plan = replace(PLAN, form=forms.Form(inside_mask_only=inside_mask_only))
        usual, other = (
            loop.train_step(network, (truth, channels, mask), plan.build_scheduler(), plan, 5)[0].tolist()
            for truth in (target, elsewhere)
        )
        for a, b in zip(usual, other, strict=True):
            assert (a == b) == inside_mask_only


def test_step_with_an_oracle_has_no_loss(batch, oracle):
    target, *_ = batch
    plan = replace(PLAN, share_at_end=1.0)
    scheduler = plan.build_scheduler()

    class Oracle(torch.nn.Linear):
        def forward(self, slabs, timesteps):
            assert (timesteps == 999).all()
            return oracle(target, scheduler)(slabs[:, :1], timesteps[0])

    losses, timesteps = loop.train_step(Oracle(1, 1), batch, scheduler, plan, 0)
    assert losses.tolist() == pytest.approx([0, 0], abs=1e-8)
    assert timesteps.tolist() == [999, 999]


@pytest.mark.parametrize('prediction_type', ['epsilon', 'v_prediction'])
def test_losses_weigh_one_without_gamma_and_min_snr_with_it(prediction_type):
    plan = replace(PLAN, prediction_type=prediction_type)
    scheduler, timesteps = plan.build_scheduler(), torch.tensor([0, 300, 998])
    assert loop.loss_weights(scheduler, timesteps, plan).tolist() == [1, 1, 1]
    snr = scheduler.alphas_cumprod[timesteps] / (1 - scheduler.alphas_cumprod[timesteps])
    divisor = snr + (prediction_type == 'v_prediction')
    for gamma in (5.0, 0.5):
        given = loop.loss_weights(scheduler, timesteps, replace(plan, share_at_end=0.0, min_snr_gamma=gamma))
        assert given.tolist() == pytest.approx((snr.clamp(max=gamma) / divisor).tolist(), rel=1e-4)


def test_losses_per_timestep_by_hand():
    table = validation.losses_per_timestep([1.0, 2.0, 4.0, 8.0, 16.0], [0, 99, 100, 999, 950], 1000, 'loss')
    assert list(table) == [f'loss/t{start}' for start in range(0, 1000, 100)]
    assert [table[f'loss/t{start}'] for start in (0, 100, 900)] == [1.5, 4, 12]
    assert all(math.isnan(table[f'loss/t{start}']) for start in range(200, 900, 100))


def test_losses_per_timestep_of_another_number_of_steps():
    table = validation.losses_per_timestep([3.0, 5.0], [19, 21], 50, 'x')
    assert list(table) == [f'x/t{start}' for start in range(0, 50, 5)]
    assert (table['x/t15'], table['x/t20']) == (3, 5)
    assert sum(math.isnan(value) for value in table.values()) == 8


def test_losses_per_timestep_of_nothing_are_unknown():
    assert all(math.isnan(value) for value in validation.losses_per_timestep([], [], 1000, 'loss').values())


# Validation


@pytest.fixture
def brain(phantom):
    return train_brains.Brain(phantom.normalised_healthy, phantom.wm_mask)


@pytest.fixture
def cases(brain, phantom):
    return train_cases.validation_cases([brain], masks.split_lesions(phantom.lesion_mask), PLAN.cases, PLAN.form, 4, 1)


class Zero(torch.nn.Linear):
    """Predicts v = 0 everywhere: from pure noise, the residual is then zero, and the base is the result."""

    def forward(self, slabs, timesteps):
        return torch.zeros_like(slabs[:, :1])


def test_validation_of_a_network_that_adds_nothing_scores_the_base(cases):
    scores = validation.validate(Zero(1, 1), cases, PLAN.build_scheduler(), PLAN)
    kinds, metric_names = ('clean', 'rim'), ('mse', 'psnr', 'ssim')
    where = ('model', 'base', 'out', 'whole')
    names = {f'{kind}/{who}_{metric}' for kind in kinds for who in where for metric in metric_names}
    names |= {'validation_loss'} | {f'validation_loss/t{start}' for start in range(0, 1000, 100)}
    assert set(scores) == names
    for kind in kinds:
        for metric in metric_names:
            assert scores[f'{kind}/model_{metric}'] == pytest.approx(scores[f'{kind}/base_{metric}'], rel=1e-5)


def test_validation_averages_m1_of_the_cases_by_kind(cases):
    scores = validation.validate(Zero(1, 1), cases, PLAN.build_scheduler(), PLAN)
    for kind in ('clean', 'rim'):
        by_hand = []
        for case in cases:
            if case['kind'] == kind:
                result = np.where(case['lesion_mask'], case['base'], case['seen'])  # the rim is there, as for a user
                wanted = np.where(case['lesion_mask'], case['image'], case['seen'])
                by_hand.append(metrics.slice_scores(wanted, result, case['lesion_mask']))
        assert len(by_hand) == 2
        for metric in ('mse', 'psnr', 'ssim'):
            assert scores[f'{kind}/base_{metric}'] == pytest.approx(np.mean([row[metric] for row in by_hand]))


def test_validation_of_an_oracle_is_perfect(cases, oracle):
    scheduler = PLAN.build_scheduler()

    class Oracle(torch.nn.Linear):
        remaining = [case for case in cases for _ in range(10 + 1)]  # a loss in each tenth, and a filling in one step

        def forward(self, slabs, timesteps):
            case = self.remaining.pop(0)
            truth = tiles.to_slab(PLAN.form.to_diffusion(case['image'], case['base'])[None])
            return oracle(torch.from_numpy(truth.copy())[None], scheduler)(slabs[:, :1], timesteps[0])

    scores = validation.validate(Oracle(1, 1), cases, scheduler, PLAN)
    for kind in ('clean', 'rim'):
        assert scores[f'{kind}/model_mse'] < 1e-8
        assert scores[f'{kind}/model_ssim'] == pytest.approx(1, abs=1e-4)
        assert scores[f'{kind}/base_mse'] > 1e-5
        assert scores[f'{kind}/whole_mse'] < 1e-8
    assert not Oracle.remaining
    assert scores['validation_loss'] == pytest.approx(0, abs=1e-6)


def test_validation_loss_is_that_of_the_last_time_step_of_each_tenth(cases):
    class Clock(torch.nn.Linear):
        """Predicts v wrongly, the more so the later the time step."""

        def forward(self, slabs, timesteps):
            assert len(timesteps) == 1
            return torch.full_like(slabs[:, :1], 100 * timesteps.item())

    scores = validation.validate(Clock(1, 1), cases, PLAN.build_scheduler(), PLAN)
    losses = [scores[f'validation_loss/t{start}'] for start in range(0, 1000, 100)]
    assert losses == pytest.approx([(100 * timestep) ** 2 for timestep in range(99, 1000, 100)], rel=1e-2)
    assert scores['validation_loss'] == pytest.approx(np.mean(losses))


def test_model_that_paints_inside_the_mask_only_changes_nothing_outside(cases, tiny_unet):
    scores = validation.validate(tiny_unet(), cases, PLAN.build_scheduler(), PLAN)
    for kind in ('clean', 'rim'):
        assert scores[f'{kind}/out_mse'] == 0
        assert 0 < scores[f'{kind}/whole_mse'] < scores[f'{kind}/model_mse']


def whole_slice_plan(kind='plain'):
    form = forms.Form(kind=kind, inside_mask_only=False)
    return replace(PLAN, form=form, prediction_type='epsilon', num_inference_steps=2)


def test_output_of_a_whole_slice_model_is_scored_outside_the_mask_too(brain, phantom, tiny_unet):
    plan = whole_slice_plan()
    shapes = masks.split_lesions(phantom.lesion_mask)
    cases = train_cases.validation_cases([brain], shapes, plan.cases, plan.form, 2, 1)
    scores = validation.validate(tiny_unet(3), cases, plan.build_scheduler(), plan)
    for kind in ('clean', 'rim'):
        assert scores[f'{kind}/out_mse'] > 0.01  # random weights
        low, high = sorted((scores[f'{kind}/out_mse'], scores[f'{kind}/model_mse']))
        assert low < scores[f'{kind}/whole_mse'] < high  # a mean of both


def test_repaint_keeps_what_is_known(brain, phantom, tiny_unet):
    plan = replace(whole_slice_plan('unconditional'), num_inference_steps=3, jump_length=1, jump_n_sample=2)
    shapes = masks.split_lesions(phantom.lesion_mask)
    cases = train_cases.validation_cases([brain], shapes, plan.cases, plan.form, 2, 1)
    network, scheduler = tiny_unet(1), plan.build_scheduler()
    scores = validation.validate(network, cases, scheduler, plan)
    for kind in ('clean', 'rim'):
        assert scores[f'{kind}/out_mse'] == pytest.approx(0, abs=1e-9)
        assert scores[f'{kind}/model_mse'] > 0
    assert validation.validate(network, cases, scheduler, plan) == scores


def test_repaint_gets_its_tensors_where_the_network_is(cases):
    sampler = validation.sampler_of(whole_slice_plan('unconditional'), PLAN.build_scheduler(), cases[0], None, 'meta')
    assert sampler.func is process.sample_repaint
    assert {sampler.keywords[name].device.type for name in ('image', 'inpaint_mask')} == {'meta'}


def test_lpips_is_logged_of_whole_slices_if_given(cases, tiny_unet):
    network, scheduler = tiny_unet(), PLAN.build_scheduler()
    seen = []

    def distance(images, others):
        seen.append((images, others))
        return torch.arange(len(images)).float() + len(seen)

    scores = validation.validate(network, cases, scheduler, PLAN, distance)
    without = validation.validate(network, cases, scheduler, PLAN)
    assert set(scores) - set(without) == {'clean/lpips', 'rim/lpips'}
    assert (scores['clean/lpips'], scores['rim/lpips']) == (1.5 + 2, 1.5 + 3)  # 4 slices; calls 1 and 3, 2 and 4
    for case, (images, others) in zip(cases, seen, strict=True):
        assert images.shape == others.shape == (4, 1, 16, 16)
        known = torch.from_numpy(tiles.to_slab(~case['lesion_mask']).copy())[:, None]
        shown = torch.from_numpy(tiles.to_slab(case['seen']).copy())[:, None]
        assert torch.equal(images[known], shown[known])
        assert torch.equal(others[known], shown[known])
        assert not torch.equal(images, others)
        truth = torch.from_numpy(tiles.to_slab(case['image']).copy())[:, None]
        assert torch.equal(images[~known], truth[~known])


def test_validation_is_repeatable(cases, tiny_unet):
    network, scheduler = tiny_unet(), PLAN.build_scheduler()
    assert validation.validate(network, cases, scheduler, PLAN) == validation.validate(network, cases, scheduler, PLAN)


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
    brains = [train_brains.Brain(phantom.normalised_healthy, phantom.wm_mask)]
    shapes = masks.split_lesions(phantom.lesion_mask)
    return brains, train_cases.validation_cases(brains, shapes, PLAN.cases, PLAN.form, 2, 1), shapes


@pytest.fixture(scope='module')
def undisturbed(material, tmp_path_factory):
    """A finished training: its network and its folder."""
    output_dir = tmp_path_factory.mktemp('undisturbed')
    return loop.train(*material, PLAN, output_dir, num_workers=0), output_dir


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
        unknown = {name for name, value in row.items() if not np.isfinite(float(value))}
        parts = {name for name in row if name.startswith('loss/t')}
        assert len(parts) == 10
        assert unknown < parts  # no training step fell into some tenths of the process
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
        return loop.train(*material, plan, tmp_path / str(seed), num_workers=0).state_dict()

    assert not equal(first_weights(7), first_weights(8))


def test_gradients_are_clipped(material, tmp_path):
    def largest_change(gradient_clip):
        plan = replace(
            PLAN, gradient_clip=gradient_clip, num_updates=1, decay_updates=0, warmup_updates=0, validate_every=9
        )
        torch.manual_seed(plan.seed)
        before = plan.build_unet().state_dict()
        after = loop.train(*material, plan, tmp_path / str(gradient_clip), num_workers=0).state_dict()
        return max((after[name] - before[name]).abs().max().item() for name in after)

    assert largest_change(1.0) == pytest.approx(PLAN.learning_rate, rel=0.1)  # the first step of Adam
    assert largest_change(1e-12) < 0.1 * PLAN.learning_rate  # below Adam's epsilon


class Killed(Exception):
    pass


def is_of_the_model(column):
    """Not of the clock."""
    return column not in ('seconds', 'cpu_seconds')


def train_until_killed(monkeypatch, material, output_dir, at_update, checkpoint_seconds, plan=PLAN):
    step = loop.train_step

    def killed_step(network, batch, scheduler, plan, update):
        if update == at_update:
            raise Killed
        return step(network, batch, scheduler, plan, update)

    with monkeypatch.context() as patch:
        patch.setattr(loop, 'train_step', killed_step)
        with pytest.raises(Killed):
            loop.train(*material, plan, output_dir, checkpoint_seconds=checkpoint_seconds, num_workers=0)


@pytest.mark.parametrize('at_update', [3, 4])  # between validations, and right after one
def test_killed_training_goes_on_and_ends_with_the_same_weights(
    undisturbed, material, tmp_path, monkeypatch, at_update
):
    train_until_killed(monkeypatch, material, tmp_path, at_update, checkpoint_seconds=0)
    assert torch.load(tmp_path / 'checkpoint.pt', weights_only=True)['update'] == at_update
    updates, step = [], loop.train_step
    monkeypatch.setattr(loop, 'train_step', lambda *arguments: updates.append(arguments[-1]) or step(*arguments))
    resumed = loop.train(*material, PLAN, tmp_path, num_workers=0)
    assert updates == list(range(at_update, 6))  # nothing is done twice
    assert equal(resumed.state_dict(), undisturbed[0].state_dict())
    for name in ('last', 'best'):
        there, here = (d / name / 'unet' / 'diffusion_pytorch_model.safetensors' for d in (undisturbed[1], tmp_path))
        assert there.read_bytes() == here.read_bytes()
    scores = [
        [{k: v for k, v in row.items() if is_of_the_model(k)} for row in log_of(d)] for d in (undisturbed[1], tmp_path)
    ]
    assert scores[0] == scores[1]


def test_training_killed_before_its_first_checkpoint_starts_anew_and_gives_the_same_weights(
    undisturbed, material, tmp_path, monkeypatch
):
    train_until_killed(monkeypatch, material, tmp_path, 1, checkpoint_seconds=1e9)
    assert not (tmp_path / 'checkpoint.pt').exists()
    resumed = loop.train(*material, PLAN, tmp_path, num_workers=0)
    assert equal(resumed.state_dict(), undisturbed[0].state_dict())


def test_finished_training_is_not_done_again(undisturbed, material, monkeypatch):
    network, output_dir = undisturbed
    rows = log_of(output_dir)

    def refuse(*_):
        raise AssertionError('trained again')

    monkeypatch.setattr(loop, 'train_step', refuse)
    again = loop.train(*material, PLAN, output_dir, num_workers=0)
    assert equal(again.state_dict(), network.state_dict())
    assert log_of(output_dir) == rows


def test_best_model_stays_when_the_score_falls(material, tmp_path, monkeypatch):
    scores = iter([(0.5, 0.9), (0.9, 0.0), (0.4, 1.0)])  # of the model and its base, at updates 2, 4, 6
    saved = []
    monkeypatch.setattr(
        validation, 'validate', lambda *_: dict(zip(('clean/model_ssim', 'clean/base_ssim'), next(scores), strict=True))
    )
    monkeypatch.setattr(loop, 'save_model', lambda _, __, model_dir, **more: saved.append(model_dir.name))
    loop.train(*material, PLAN, tmp_path, num_workers=0)
    assert saved == ['last', 'best', 'last', 'best', 'last']


def test_best_score_is_remembered_over_a_kill(material, tmp_path, monkeypatch):
    ssim, saved = iter([0.9, 0.4, 0.5]), []
    monkeypatch.setattr(validation, 'validate', lambda *_: {'clean/model_ssim': next(ssim)})
    monkeypatch.setattr(loop, 'save_model', lambda _, __, model_dir, **more: saved.append(model_dir.name))
    train_until_killed(monkeypatch, material, tmp_path, 3, checkpoint_seconds=0)
    loop.train(*material, PLAN, tmp_path, num_workers=0)
    assert saved == ['last', 'best', 'last', 'last']


def test_validation_sees_the_averaged_weights_and_training_goes_on_with_its_own(material, tmp_path, monkeypatch):
    validated, stepped = [], []
    step = loop.train_step

    def spy(network, *arguments):
        stepped.append(weights_of(network))
        return step(network, *arguments)

    monkeypatch.setattr(loop, 'train_step', spy)
    monkeypatch.setattr(
        validation, 'validate', lambda network, *_: validated.append(weights_of(network)) or {'clean/model_ssim': 0.0}
    )
    plan = replace(PLAN, num_updates=3, decay_updates=0, validate_every=2)
    loop.train(*material, plan, tmp_path, num_workers=0)
    assert not equal(validated[0], stepped[2])  # the average lags behind
    without = []
    monkeypatch.setattr(
        loop, 'train_step', lambda network, *rest: without.append(weights_of(network)) or step(network, *rest)
    )
    loop.train(*material, replace(plan, validate_every=100), tmp_path / 'without', num_workers=0)
    assert equal(without[2], stepped[2])  # a validation changes nothing


def test_checkpoint_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / 'checkpoint.pt'
    loop.save_atomically({'update': 1}, path)

    def half_written(state, file):
        with open(file, 'wb') as stream:
            stream.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', half_written)
    with pytest.raises(OSError, match='disk full'):
        loop.save_atomically({'update': 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {'update': 1}


def test_cases_drawn_by_worker_processes_give_the_same_weights(undisturbed, material, tmp_path):
    assert equal(loop.train(*material, PLAN, tmp_path, num_workers=2).state_dict(), undisturbed[0].state_dict())


def test_log_has_one_row_per_validation_after_a_kill(material, tmp_path, monkeypatch):
    train_until_killed(monkeypatch, material, tmp_path, 3, checkpoint_seconds=1e9)
    loop.train(*material, PLAN, tmp_path, num_workers=0)
    assert [int(row['update']) for row in log_of(tmp_path)] == [2, 4, 6]


# Every part of a training


@pytest.fixture(scope='module')
def patients(make_phantom):
    phantom = make_phantom()
    return [
        train_brains.Brain(
            phantom.normalised, phantom.wm_mask & ~phantom.lesion_mask, phantom.lesion_mask, phantom.normalised_healthy
        )
    ]


def material_of(plan, material, patients):
    """Brains, validation cases and shapes for a plan."""
    brains, _, shapes = material
    brains, shapes = (patients, []) if plan.task == 'synth' else (brains, shapes)
    return brains, train_cases.validation_cases(brains, shapes, plan.cases, plan.form, 2, 1), shapes


FEW_STEPS = {'num_inference_steps': 3, 'jump_length': 1, 'jump_n_sample': 2}


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(name for name in PLANS if name.startswith('small-')))
def test_every_small_plan_trains_and_validates(name, material, patients, tmp_path):
    plan = PLANS[name]
    changes = {'num_updates': 1, 'batch_size': 1, 'warmup_updates': 0, 'validate_every': 1}
    if plan.num_inference_steps > 1:
        changes |= FEW_STEPS
    plan = replace(plan, **changes, cases=replace(plan.cases, crop=(16, 16, 4)))
    network = loop.train(*material_of(plan, material, patients), plan, tmp_path, num_workers=0)
    assert network.config.in_channels == plan.form.n_channels
    (row,) = log_of(tmp_path)
    for kind in ('synth',) if plan.task == 'synth' else ('clean', 'rim'):
        assert 0 < float(row[f'{kind}/model_mse']) < np.inf
        assert float(row[f'{kind}/out_mse']) == pytest.approx(0, abs=1e-9) or plan.form.kind == 'plain'
    model = models.load_model(tmp_path / 'last')  # and it can be used
    assert equal(model.unet.half().state_dict(), network.half().state_dict())
    assert (model.form, model.jump_n_sample) == (plan.form, plan.jump_n_sample)


PARTS = {
    'min-snr': {'min_snr_gamma': 5.0, 'share_at_end': 0.0},
    'bf16': {'mixed_precision': 'bf16'},
    'axes': {'cases': replace(PLAN.cases, axis_augmentation=True)},
    'unconditional': {'form': UNCONDITIONAL, 'prediction_type': 'epsilon', **FEW_STEPS},
    'synth': {'task': 'synth', 'modality': 'FLAIR', 'form': forms.Form(kind='plain', inside_mask_only=False)},
    'all': {
        **{'task': 'synth', 'modality': 'FLAIR', 'form': UNCONDITIONAL, 'prediction_type': 'epsilon', **FEW_STEPS},
        **{'min_snr_gamma': 5.0, 'mixed_precision': 'bf16', 'cases': replace(PLAN.cases, axis_augmentation=True)},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize('name', PARTS)
def test_killed_training_with_every_part_ends_with_the_same_weights(name, material, patients, tmp_path, monkeypatch):
    plan = replace(PLAN, num_updates=4, **PARTS[name])
    material = material_of(plan, material, patients)
    whole = loop.train(*material, plan, tmp_path / 'whole', num_workers=0).state_dict()
    train_until_killed(monkeypatch, material, tmp_path / 'killed', 3, checkpoint_seconds=0, plan=plan)
    resumed = loop.train(*material, plan, tmp_path / 'killed', num_workers=0).state_dict()
    assert equal(whole, resumed)
    rows = [
        [{k: v for k, v in row.items() if is_of_the_model(k)} for row in log_of(tmp_path / d)]
        for d in ('whole', 'killed')
    ]
    assert rows[0] == rows[1]


def test_half_precision_of_gpus_is_single_precision_on_a_cpu(material, tmp_path):
    single, half = (replace(PLAN, num_updates=1, mixed_precision=name) for name in ('no', 'fp16'))
    ends = []
    for plan in (single, half):
        AcceleratorState._reset_state(True)
        ends.append(loop.train(*material, plan, tmp_path / plan.mixed_precision, num_workers=0).state_dict())
    assert equal(*ends)


@pytest.mark.parametrize('name', ['min-snr', 'bf16', 'axes'])
def test_every_part_changes_the_weights(name, material, tmp_path):
    plan = replace(PLAN, num_updates=1, decay_updates=0, warmup_updates=0, validate_every=9)
    ends = []
    for changes in ({}, PARTS[name]):
        AcceleratorState._reset_state(True)
        output_dir = tmp_path / str(len(ends))
        ends.append(loop.train(*material, replace(plan, **changes), output_dir, num_workers=0).state_dict())
    assert not equal(*ends)
    assert {weight.dtype for weight in ends[1].values()} == {torch.float32}


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('seed', 8),
        ('gradient_clip', 5.0),
        ('form', forms.Form(kind='prior')),
        ('cases', replace(PLAN.cases, max_dilation=0)),
        ('unet_options', TINY_UNET | {'layers_per_block': 1, 'norm_num_groups': 2}),
    ],
)
def test_folder_with_the_checkpoint_of_another_plan_is_refused(undisturbed, material, name, value):
    _, output_dir = undisturbed
    before = {path: path.read_bytes() for path in output_dir.glob('*.*')}
    with pytest.raises(ValueError, match=rf'another plan \({name}\)'):
        loop.train(*material, replace(PLAN, **{name: value}), output_dir, num_workers=0)
    assert {path: path.read_bytes() for path in output_dir.glob('*.*')} == before


def test_training_can_be_prolonged(material, tmp_path):
    short = replace(PLAN, num_updates=2, decay_updates=0)
    loop.train(*material, short, tmp_path, num_workers=0)
    loop.train(*material, replace(short, num_updates=4), tmp_path, num_workers=0)
    assert [int(row['update']) for row in log_of(tmp_path)] == [2, 4]


def test_plan_from_json_goes_on_where_the_same_plan_stopped(material, tmp_path, monkeypatch):
    train_until_killed(monkeypatch, material, tmp_path, 1, checkpoint_seconds=0)
    loop.train(*material, Plan.from_json(PLAN.to_json()), tmp_path, num_workers=0)
    assert [int(row['update']) for row in log_of(tmp_path)] == [2, 4, 6]


def test_log_of_a_run_that_goes_on_with_lpips_gets_a_column(material, tmp_path, monkeypatch):
    train_until_killed(monkeypatch, material, tmp_path, 3, checkpoint_seconds=0)
    loop.train(*material, PLAN, tmp_path, num_workers=0, perceptual_distance=lambda a, b: torch.full((len(a),), 0.25))
    rows = log_of(tmp_path)
    assert [int(row['update']) for row in rows] == [2, 4, 6]
    assert [row['clean/lpips'] for row in rows] == ['', '0.25', '0.25']
    assert len({float(row['clean/base_mse']) for row in rows}) == 1  # every value is in its column


def test_rows_after_an_update_are_dropped(tmp_path):
    path = tmp_path / 'log.csv'
    loop.keep_rows(path, 5)
    assert not path.exists()
    for update in (2, 4, 6):
        loop.write_row(path, {'update': update, 'loss': update / 2})
    loop.keep_rows(path, 4)
    assert path.read_text().split() == ['update,loss', '2,1.0', '4,2.0']
    loop.keep_rows(path, 1)
    assert not path.exists()


def test_initial_weights_are_where_the_training_starts(material, tmp_path, monkeypatch):
    torch.manual_seed(99)
    start = PLAN.build_unet().state_dict()
    stepped, step = [], loop.train_step
    monkeypatch.setattr(
        loop, 'train_step', lambda network, *rest: stepped.append(weights_of(network)) or step(network, *rest)
    )
    plan = replace(PLAN, num_updates=1, validate_every=9)
    loop.train(*material, plan, tmp_path, num_workers=0, initial_weights=start)
    assert equal(stepped[0], start)


def test_cpu_minutes_stop_a_training_and_it_stays_stopped(material, tmp_path):
    plan = replace(PLAN, num_updates=1000, decay_updates=0, validate_every=1000)
    first = loop.train(*material, plan, tmp_path, num_workers=0, cpu_minutes=1e-6)
    assert torch.load(tmp_path / 'checkpoint.pt', weights_only=True)['update'] == 1
    assert [int(row['update']) for row in log_of(tmp_path)] == [1]
    assert (tmp_path / 'last' / 'plan.json').exists()
    again = loop.train(*material, plan, tmp_path, num_workers=0, cpu_minutes=1e-6)
    assert equal(first.state_dict(), again.state_dict())
    assert torch.load(tmp_path / 'checkpoint.pt', weights_only=True)['update'] == 1
    loop.train(*material, replace(plan, num_updates=2), tmp_path, num_workers=0, cpu_minutes=60)
    assert [int(row['update']) for row in log_of(tmp_path)] == [1, 2]  # more time was given


# The command line


def write_plan(path, plan):
    path.write_text(plan.to_json())
    return str(path)


@pytest.fixture
def patient_dir(make_phantom, tmp_path):
    """A dataset of three patients."""
    images = {}
    for subject in ('01', '02', '03'):
        phantom = make_phantom(affine=np.eye(4), seed=int(subject))
        images[t1w_path(subject)] = phantom.t1w_img
        flair = np.where(phantom.lesion_mask, phantom.healthy + 250, phantom.healthy)
        images[t1w_path(subject).replace('T1w', 'FLAIR')] = phantom.img(flair)
        images[mask_path(subject)] = phantom.lesion_mask_img
    return str(write_bids(tmp_path / 'patients', images))


@pytest.fixture
def healthy_dir(make_phantom, tmp_path):
    """A dataset of two healthy brains, and two lesion masks to take shapes from."""
    images = {}
    for subject in ('01', '02'):
        phantom = make_phantom(affine=np.eye(4), seed=int(subject))
        images[t1w_path(subject)] = phantom.healthy_img
        images[mask_path(subject, name='dseg', derivative='tissues')] = phantom.tissue_seg_img
    root = write_bids(tmp_path / 'healthy', images, derivative='tissues')
    (root / 'participants.tsv').write_text('participant_id\tsplit\nsub-01\ttrain\nsub-02\tvalidation\n')
    (tmp_path / 'shapes').mkdir()
    for i in range(2):
        nib.save(phantom.lesion_mask_img, tmp_path / 'shapes' / f'{i}_label-lesion_mask.nii.gz')
    return [str(root), '--lesion-masks', str(tmp_path / 'shapes')]


@pytest.mark.parametrize('labels', [None, (3, 1, 2)])
def test_the_table_of_a_segmentation_says_which_label_is_white_matter(make_phantom, tmp_path, labels):
    """Without one 3 is white matter, as in older training data; those of BIDS are 1 grey, 2 white matter and 3 CSF."""
    phantom = make_phantom(affine=np.eye(4))
    seg_img = phantom.tissue_seg_img
    if labels:
        numbers = np.array([0, *labels], np.uint8)[np.asarray(seg_img.dataobj).astype(int)]
        seg_img = nib.Nifti1Image(numbers, seg_img.affine)
    t1w, dseg = t1w_path('01'), mask_path('01', name='dseg', derivative='tissues')
    root = write_bids(tmp_path / 'healthy', {t1w: phantom.healthy_img, dseg: seg_img}, derivative='tissues')
    if labels:
        rows = zip(labels, ('CSF', 'Gray Matter', 'White Matter'))
        table = ''.join(f'{index}\t{name}\n' for index, name in rows)
        (root / 'derivatives/tissues/dseg.tsv').write_text(f'index\tname\n{table}')
    _, tissue_seg = train_brains.read_tissues(root / t1w, root / dseg)
    counts = [np.bincount(np.asarray(seg).astype(int).flat, minlength=4)[1:4].tolist()
              for seg in (tissue_seg, phantom.tissue_seg)]  # fmt: skip
    assert counts[0] == counts[1]


OPTIONS = ['--device', 'cpu', '--num-workers', '0']


def main(bids_dir, output_dir, plan_file, *options):
    """The first of `bids_dir` is the folder, options follow."""
    return cli.main([bids_dir[0], str(output_dir), '--plan', plan_file, *bids_dir[1:], *OPTIONS, *options])


SYNTH = replace(PLAN, num_updates=2, n_validation_cases=2, **PARTS['synth'])


@pytest.fixture
def patient_images(monkeypatch):
    """What was read by `dataset.read_patients`."""
    read, given = train_brains.read_patients, []

    def spy(images, filler, keep):
        brains = read(images, filler, keep)
        given.append((images, brains))
        return brains

    monkeypatch.setattr(train_brains, 'read_patients', spy)
    return given


@pytest.mark.slow
def test_command_line_trains_synthesis_from_patients(patient_dir, patient_images, tmp_path):
    main([patient_dir], tmp_path / 'out', write_plan(tmp_path / 'plan.json', SYNTH))
    assert [[Path(image).name for image, *_ in images] for images, _ in patient_images] == [
        ['sub-01_FLAIR.nii.gz', 'sub-02_FLAIR.nii.gz'],  # to train
        ['sub-03_FLAIR.nii.gz'],  # the last one validates
    ]
    (brain,) = patient_images[1][1]
    assert brain.image[brain.lesion_mask].mean() > brain.image[brain.wm_mask].mean() + 0.2  # bright on FLAIR
    (row,) = log_of(tmp_path / 'out')
    assert {'synth/model_mse', 'synth/out_mse', 'synth/whole_ssim'} <= set(row)
    assert not any(name.startswith(('clean/', 'rim/')) for name in row)
    model = models.load_model(tmp_path / 'out' / 'last')
    assert (model.plan['task'], model.plan['modality']) == ('synth', 'FLAIR')


@pytest.mark.slow
def test_command_line_trains_on_all_patients_and_their_contrasts_go_with_the_model(
    patient_dir, patient_images, tmp_path
):
    plan = replace(SYNTH, num_updates=1, form=forms.Form(base='lesion'))
    main([patient_dir], tmp_path / 'out', write_plan(tmp_path / 'plan.json', plan), '--no-validation')
    (_, brains), (nobody, _) = patient_images
    assert len(brains) == 3
    assert nobody == []
    assert not (tmp_path / 'out' / 'best').exists()  # nothing says which one it is
    found = models.load_model(tmp_path / 'out' / 'last').contrasts
    for values, expected in zip(found, train_brains.lesion_contrasts(brains), strict=True):
        assert len(values) == 6
        np.testing.assert_allclose(values, expected, atol=6e-4)
    assert min(found[1]) > 0.3  # bright on FLAIR


@pytest.mark.slow
def test_command_line_keeps_out_who_it_is_told_to(patient_dir, patient_images, tmp_path):
    plan_file = write_plan(tmp_path / 'plan.json', replace(SYNTH, num_updates=1))
    main([patient_dir], tmp_path / 'out', plan_file, '--validation-label', '01', '03')
    assert [len(images) for images, _ in patient_images] == [1, 2]
    assert 'sub-02' in patient_images[0][0][0][0]


def test_command_line_with_nobody_left_to_train_says_so(patient_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(train_brains, 'read_patients', lambda images, filler, keep: images)
    plan_file = write_plan(tmp_path / 'plan.json', SYNTH)
    assert main([patient_dir], tmp_path / 'out', plan_file, '--validation-label', '01', '02', '03') == cli.USAGE
    assert '0 images to train, 3 to validate' in caplog.text


@pytest.mark.slow
def test_command_line_starts_from_a_model_and_stops_in_time(healthy_dir, undisturbed, tmp_path, monkeypatch):
    stepped, step = [], loop.train_step
    monkeypatch.setattr(
        loop, 'train_step', lambda network, *rest: stepped.append(weights_of(network)) or step(network, *rest)
    )
    plan = replace(PLAN, num_updates=1000, validate_every=1000, n_validation_cases=2)
    plan_file, start = write_plan(tmp_path / 'plan.json', plan), undisturbed[1] / 'last'
    main(healthy_dir, tmp_path / 'out', plan_file, '--init-from', str(start), '--cpu-minutes', '0.0001')
    assert len(stepped) == 1
    assert equal(stepped[0], models.load_model(start).unet.state_dict())
    assert [int(row['update']) for row in log_of(tmp_path / 'out')] == [1]
    assert not equal(models.load_model(tmp_path / 'out' / 'last').unet.state_dict(), stepped[0])


def test_command_line_changes_the_plan(healthy_dir, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(loop, 'train', lambda *arguments, **more: given.append((arguments, more)))
    main(healthy_dir, tmp_path / 'out', 'small-residual', '--num-updates', '7', '--decay-updates', '3')
    (brains, cases, shapes, plan, output_dir, device), more = given[0]
    assert plan == replace(PLANS['small-residual'], num_updates=7, decay_updates=3)
    assert (output_dir, device) == (tmp_path / 'out', 'cpu')
    assert (len(brains), len(cases), len(shapes)) == (1, 8, 2)  # one mask of two, with two lesions, is kept out
    assert more == {'num_workers': 0, 'cpu_minutes': None, 'initial_weights': None, 'perceptual_distance': None}


# Several processes

TWO_PROCESSES = """
import os, sys, torch
from bids_lesionfill.train import cli, loop

rank = os.environ['RANK']
step, run, batches, networks = loop.train_step, loop.train, [], []


def spy_step(network, batch, scheduler, plan, draw):
    batches.append((draw, batch[0].clone()))
    return step(network, batch, scheduler, plan, draw)


def spy_train(*arguments, **options):
    networks.append(run(*arguments, **options))
    return networks[-1]


loop.train_step, loop.train = spy_step, spy_train
out, arguments = sys.argv[1], sys.argv[2:]
cli.main([arguments[0], out, *arguments[1:]])
# Only the first process is out of time; the other one must not wait for it for ever.
minutes = '0.0001' if rank == '0' else '1000'
n_batches = len(batches)
cli.main([arguments[0], out + '-in-time', *arguments[1:], '--cpu-minutes', minutes])
torch.save(
    {'batches': batches[:n_batches], 'network': networks[0].state_dict(), 'n_updates': len(batches) - n_batches},
    f'{out}/rank-{rank}.pt',
)
"""


@pytest.mark.slow
def test_two_processes_train_one_model_from_different_cases(healthy_dir, tmp_path):
    plan = replace(PLAN, num_updates=4, n_validation_cases=2)
    (tmp_path / 'script.py').write_text(TWO_PROCESSES)
    out = tmp_path / 'out'
    root, *options = healthy_dir
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    command += [tmp_path / 'script.py', out, root, *options, '--plan', write_plan(tmp_path / 'plan.json', plan)]
    package = str(Path(bids_lesionfill.__file__).parent.parent)
    environment = os.environ | {'ACCELERATE_USE_CPU': '1', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': package}
    with open(tmp_path / 'stderr', 'wb') as stderr:
        launcher = subprocess.Popen([*map(str, command), *OPTIONS], env=environment, stderr=stderr)
        try:
            code = launcher.wait(timeout=240)
        finally:
            launcher.terminate()  # it ends its processes
            launcher.wait(timeout=60)
    assert code == 0, (tmp_path / 'stderr').read_text()[-3000:]
    first, second = (torch.load(out / f'rank-{rank}.pt', weights_only=True) for rank in '01')
    assert equal(first['network'], second['network'])
    assert [draw for draw, _ in first['batches']] == [0, 2, 4, 6]  # numbers of time steps and noise
    assert [draw for draw, _ in second['batches']] == [1, 3, 5, 7]
    slabs = [slab.numpy().tobytes() for rank in (first, second) for _, batch in rank['batches'] for slab in batch]
    assert len(slabs) == len(set(slabs)) == 2 * 4 * plan.batch_size
    assert [int(row['update']) for row in log_of(out)] == [2, 4]
    assert torch.load(out / 'checkpoint.pt', weights_only=True)['update'] == 4
    assert (first['n_updates'], second['n_updates']) == (1, 1)
    assert [int(row['update']) for row in log_of(tmp_path / 'out-in-time')] == [1]


def test_plan_may_start_from_another_by_name():
    plan = Plan.from_json(
        '{"from": "thesis-3d-mixture", "name": "mine", "prediction_type": "v_prediction",'
        ' "cases": {"crop": [64, 64, 8]}}'
    )
    thesis = PLANS['thesis-3d-mixture']
    cases = replace(thesis.cases, crop=(64, 64, 8))
    assert plan == replace(thesis, name='mine', prediction_type='v_prediction', cases=cases)
    with pytest.raises(ValueError, match="starts from 'nobody'"):
        Plan.from_json('{"from": "nobody", "name": "mine"}')


def test_plan_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="task is 'sinth'"):
        replace(PLAN, task='sinth')
    with pytest.raises(ValueError, match='set share_at_end to 0'):
        replace(PLAN, min_snr_gamma=5.0)


def test_model_folder_is_whole_or_absent(tmp_path, monkeypatch):
    """A kill while the second one is being written leaves the first."""
    network = PLAN.build_unet()
    loop.save_model(network, PLAN, tmp_path / 'best')
    before = {path: path.read_bytes() for path in (tmp_path / 'best').rglob('*.*')}
    torch.nn.init.ones_(network.conv_out.bias)
    with monkeypatch.context() as patch:
        patch.setattr(Plan, 'to_json', lambda plan: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loop.save_model(network, PLAN, tmp_path / 'best')
    assert {path: path.read_bytes() for path in (tmp_path / 'best').rglob('*.*')} == before
    loop.save_model(network, PLAN, tmp_path / 'best')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['best']


@pytest.mark.slow
def test_command_line_trains_filling_of_flair_on_normal_appearing_tissue(patient_dir, healthy_dir, tmp_path):
    plan = replace(PLAN, modality='FLAIR', num_updates=1, n_validation_cases=2)
    plan = replace(plan, cases=replace(plan.cases, rim_contrast=(-0.6, -0.1), grow_share=1.0))
    main([patient_dir, *healthy_dir[1:]], tmp_path / 'out', write_plan(tmp_path / 'plan.json', plan))
    (row,) = log_of(tmp_path / 'out')
    assert {'clean/model_mse', 'rim/model_mse'} <= set(row)
    assert models.load_model(tmp_path / 'out' / 'last').plan['modality'] == 'FLAIR'


@pytest.mark.slow
def test_patients_are_added_to_healthy_brains(patient_dir, healthy_dir, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(loop, 'train', lambda brains, *arguments, **options: given.extend(brains))
    plan_file = write_plan(tmp_path / 'plan.json', replace(PLAN, n_validation_cases=2))
    main(healthy_dir, tmp_path / 'out', plan_file, '--patients', patient_dir, '--validation-label', '02')
    assert len(given) == 1 + 2
    assert all(brain.lesion_mask is None for brain in given)


def test_logarithm_of_the_loss_weighs_slabs_by_how_far_off_they_are():
    losses = torch.tensor([0.01, 100.0], requires_grad=True)
    plain = loop.objective(losses, torch.ones(2), PLAN)
    assert plain.item() == pytest.approx(50.005)
    logarithm = loop.objective(losses, torch.ones(2), replace(PLAN, log_loss_floor=0.01))
    assert logarithm.item() == pytest.approx((np.log(0.02) + np.log(100.01)) / 2)
    logarithm.backward()
    assert losses.grad.tolist() == pytest.approx([0.5 / 0.02, 0.5 / 100.01])
