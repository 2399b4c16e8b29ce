"""Train a model from a BIDS dataset: `python -m bids_lesionfill.train BIDS_DIR OUT --plan NAME_OR_JSON`.

To fill, the dataset holds T1w images of healthy brains, a derivative with tissue segmentations (`dseg`, 3 = white
matter) and, in `participants.tsv`, a column `split` (train, validation). To synthesize, it holds patients with lesion
masks. The result is a model folder: `unet/`, `scheduler/`, `plan.json`. A run that was killed goes on from its last
checkpoint and ends with the same weights. `accelerate launch -m bids_lesionfill.train ...` runs it on several GPUs.
"""

import argparse
import csv
import json
import logging
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from . import dataset, diffusion, inpaint, layout, lpips, metrics, ownership, text_files, unet, weights

logger = logging.getLogger('bids_lesionfill.train')
OWN_FOLDER = ('plan.json', ('task', 'modality', 'num_updates'), 'train', 'unet')  # see `ownership.check_folder`
N_TIMESTEP_BINS = 10  # the losses are logged for each tenth of the diffusion process (table 3.3)


@dataclass(frozen=True)
class Plan:
    """All that makes a model; saved beside its weights as `plan.json`."""

    name: str
    task: str = 'fill'  # or 'synth'
    modality: str = 'T1w'
    size: str = 'compact'
    pseudo_3d: bool = True
    unet_options: dict = field(default_factory=dict)  # single arguments of UNet2DModel that differ from the size's
    noise_schedule: str = 'linear'
    prediction_type: str = 'v_prediction'
    form: inpaint.Form = field(default_factory=inpaint.Form)
    cases: dataset.CasePlan = field(default_factory=dataset.CasePlan)
    share_at_end: float = 0.5  # of the training time steps that are T
    min_snr_gamma: float | None = None  # loss weights of Hang et al. 2023 (thesis 3.4); the thesis tried 5
    log_loss_floor: float | None = None  # train on log(loss + floor) of each slab: easy ones count as in PSNR
    batch_size: int = 6  # slabs
    learning_rate: float = 6e-4
    warmup_updates: int = 150
    num_updates: int = 8000
    decay_updates: int = 1000  # the last ones, in which the learning rate falls to zero along a cosine
    gradient_clip: float = 1.0
    mixed_precision: str = 'no'  # 'fp16' or 'bf16' on a GPU
    ema_decay: float = 0.999
    num_inference_steps: int = 1  # default of the finished model
    jump_length: int = 8  # of RePaint, which samples unconditional models
    jump_n_sample: int = 10
    start_step: int = 3  # t0 of SDEdit, in which unconditional models synthesize (table 4.5: 1 in 2D, 3 in 3D)
    validate_every: int = 200
    n_validation_cases: int = 64
    seed: int = 0

    def __post_init__(self):
        if self.task not in ('fill', 'synth'):
            raise ValueError(f"task is {self.task!r}, expected 'fill' or 'synth'")
        if self.min_snr_gamma is not None and self.prediction_type == 'v_prediction' and self.share_at_end:
            raise ValueError(
                'min_snr_gamma with v_prediction gives the last time step no weight: set share_at_end to 0'
            )

    @classmethod
    def from_json(cls, text):
        """Inverse of `to_json`; what is not said is that of the plan named by `from`, or has its default.

        Raises
        ------
        ValueError
            Names what is not part of a plan.
        """
        values = json.loads(text)
        start = values.pop('from', None)
        if start is not None and start not in PLANS:
            raise ValueError(f'a plan starts from {start!r}, expected one of {sorted(PLANS)}')
        start = asdict(PLANS[start]) if start is not None else {'form': {}, 'cases': {}}
        parts = {name: start[name] | values.get(name, {}) for name in ('form', 'cases')}
        values = start | values | parts
        for names, known in ((values, cls), (values['form'], inpaint.Form), (values['cases'], dataset.CasePlan)):
            unknown = set(names) - set(known.__dataclass_fields__)
            if unknown:
                raise ValueError(f'a plan has no {sorted(unknown)}; expected {sorted(known.__dataclass_fields__)}')
        cases = {name: tuple(v) if isinstance(v, list) else v for name, v in values['cases'].items()}
        return cls(**(values | {'form': inpaint.Form(**values['form']), 'cases': dataset.CasePlan(**cases)}))

    def to_json(self):
        """Indented JSON."""
        return json.dumps(asdict(self), indent=2) + '\n'

    def build_unet(self):
        """A new network of this plan."""
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in self.unet_options.items()}
        return unet.build_unet(self.size, self.form.n_channels, self.pseudo_3d, **options)

    def build_scheduler(self):
        """The noise schedule of this plan."""
        return diffusion.build_scheduler(
            self.noise_schedule,
            self.prediction_type,
            clip_sample_range=None if self.form.kind == 'residual' else inpaint.CLIP,
        )


# Table 3.1 of the thesis; the learning rate falls from the end of the warm-up on.
THESIS = Plan(
    name='thesis-3d-mixture',
    size='thesis',
    prediction_type='epsilon',
    form=inpaint.Form(kind='plain', inside_mask_only=False),
    cases=dataset.CasePlan(
        crop=(256, 256, 16),
        ellipsoid_radii_voxels=(3.0, 50.0),
        rim_share=0.0,
        max_dilation=0,
        intensity_augmentation=False,
        orientation_augmentation=False,
    ),
    share_at_end=0.0,
    batch_size=1,
    learning_rate=1e-4,
    warmup_updates=500,
    num_updates=90_000,
    decay_updates=89_500,
    mixed_precision='fp16',
    num_inference_steps=50,
    validate_every=1000,
    n_validation_cases=8,  # 50 passes each, on 16 whole slices
)
COMPACT = Plan(
    name='fill-T1w',
    cases=dataset.CasePlan(rim_share=0.3, grow_share=0.7),
    share_at_end=0.6,
    log_loss_floor=0.01,
)
FLAIR = replace(
    COMPACT,
    name='fill-FLAIR',
    modality='FLAIR',
    # Rims are bright and wide on FLAIR: biharmonic interpolation overshoots there, and paints a new lesion.
    form=inpaint.Form(base='local_white_matter', residual_scale=0.15),
    cases=replace(COMPACT.cases, rim_contrast=(-1.0, -0.1), rim_share=0.4),
    share_at_end=0.7,
)
# One filler for every contrast: the tissues' contrasts are drawn, see `randomisation`.
ANY = replace(
    COMPACT,
    name='fill',
    modality='any',
    cases=replace(
        COMPACT.cases,
        rim_share=0.4,
        rim_contrast=(0.1, 0.9),
        either_sign=True,
        contrast_randomisation=0.7,
        acquisition_randomisation=0.6,
        native_thick_share=0.12,
        confluent_share=0.25,
    ),
    share_at_end=0.85,  # the one step of the default
    learning_rate=4e-4,
    warmup_updates=30,
    validate_every=250,
    n_validation_cases=24,
)
SYNTH_T1W = replace(
    COMPACT,
    name='synth-T1w',
    task='synth',
    form=inpaint.Form(base='lesion', residual_scale=0.2, detail_scale=0.3),
    cases=replace(COMPACT.cases, grow_share=0.0, contrast_scale=(0.5, 1.6)),
    share_at_end=0.2,  # samples, not their mean, are wanted: every time step counts
    log_loss_floor=None,
    num_inference_steps=20,
    num_updates=200,
    decay_updates=130,
    warmup_updates=50,
    validate_every=300,
)
SYNTH_FLAIR = replace(
    SYNTH_T1W,
    name='synth-FLAIR',
    modality='FLAIR',
    form=inpaint.Form(base='lesion', residual_scale=0.4, detail_scale=0.4),
    cases=replace(SYNTH_T1W.cases, rim_contrast=FLAIR.cases.rim_contrast),
    num_updates=300,
    decay_updates=200,
)
MASKS = {'lesions': 0.0, 'circles': 1.0, 'mixture': 0.5}  # share of circles
UNCONDITIONAL = inpaint.Form(kind='unconditional', inside_mask_only=False)


def thesis_plans(start, prefix):
    """Every model of the thesis' chapter 3, as changes of one plan: 2D and pseudo-3D, filling and synthesis."""
    plans = []
    unconditional = {'form': UNCONDITIONAL, 'n_validation_cases': 4}  # RePaint takes 482 passes, and so the thesis
    for dimension, pseudo_3d in (('2d', False), ('3d', True)):
        model = replace(start, pseudo_3d=pseudo_3d)
        for masks_name, ellipsoid_share in MASKS.items():
            cases = replace(start.cases, ellipsoid_share=ellipsoid_share)
            plans.append(replace(model, name=f'{prefix}-{dimension}-{masks_name}', cases=cases))
        plans.append(replace(model, name=f'{prefix}-{dimension}-unconditional', **unconditional))
        synth = replace(model, task='synth', modality='FLAIR')
        plans.append(replace(synth, name=f'{prefix}-{dimension}-synth'))
        unconditional_synth = replace(synth, **unconditional, start_step=3 if pseudo_3d else 1)
        plans.append(replace(unconditional_synth, name=f'{prefix}-{dimension}-synth-unconditional'))
    plans.append(
        replace(start, name=f'{prefix}-2d-unconditional-min-snr', pseudo_3d=False, min_snr_gamma=5.0, **unconditional)
    )
    return plans


def small_plans():
    """Those of the benchmarks: every model of the thesis and our changes to it, small enough for a few CPU minutes."""
    common = {
        'size': 'small',
        'batch_size': 4,
        'learning_rate': 6e-4,
        'warmup_updates': 100,
        'num_updates': 1_000_000,  # give --cpu-minutes
        'decay_updates': 0,
        'mixed_precision': 'no',
        'validate_every': 1_000_000,
        'n_validation_cases': 8,
        'log_loss_floor': None,
    }
    small_cases = {name: getattr(COMPACT.cases, name) for name in ('crop', 'ellipsoid_radii_voxels')}
    cases = replace(THESIS.cases, **small_cases, orientation_augmentation=True)
    thesis = replace(THESIS, **common, cases=cases)
    rims = replace(COMPACT.cases, rim_share=0.5, grow_share=0.0)
    clean = replace(rims, rim_share=0.0, max_dilation=1)
    plain = replace(COMPACT, **common, form=inpaint.Form(kind='plain'), share_at_end=0.25, num_inference_steps=50)
    residual = replace(COMPACT, **common, share_at_end=0.5)
    return [
        *thesis_plans(thesis, 'small'),
        replace(plain, name='small-plain', cases=clean),
        replace(plain, name='small-plain-rims', cases=rims),
        replace(plain, name='small-prior-rims', cases=rims, form=inpaint.Form(kind='prior')),
        replace(residual, name='small-residual', cases=clean),
        *(
            replace(residual, name=f'small-residual-rims-{base}', cases=rims, form=inpaint.Form(base=base))
            for base in inpaint.BASES
            if base != 'lesion'
        ),
    ]


PLANS = {
    plan.name: plan
    for plan in (
        COMPACT,
        FLAIR,
        ANY,
        SYNTH_T1W,
        SYNTH_FLAIR,
        *thesis_plans(THESIS, 'thesis'),
        *small_plans(),
    )
}


def learning_rate_factor(plan, update):
    """Linear warm-up, constant, then a cosine to zero over the last `decay_updates` (1 at full rate)."""
    warmup = min(1.0, (update + 1) / plan.warmup_updates) if plan.warmup_updates else 1.0
    left = (plan.num_updates - update) / plan.decay_updates if plan.decay_updates else 1.0
    return warmup * 0.5 * (1 - math.cos(math.pi * min(1.0, max(0.0, left))))


def train_step(network, batch, scheduler, plan, draw):
    """Losses of one batch; the noise and the time steps depend on the seed and the number of the draw alone.

    Returns
    -------
    losses : (batch,) tensor, unweighted
    timesteps : (batch,) tensor
    """
    target, channels, mask, *counted = batch
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + draw)
    timesteps = diffusion.sample_timesteps(
        len(target), scheduler.config.num_train_timesteps, plan.share_at_end, generator
    )
    noise = torch.randn(target.shape, generator=generator).to(target.device)
    timesteps = timesteps.to(target.device)
    losses = diffusion.diffusion_loss(
        network, target, channels, mask, scheduler, timesteps, noise, plan.form.inside_mask_only, *counted
    )
    return losses, timesteps


def loss_weights(scheduler, timesteps, plan):
    """Min-SNR weights of a plan, or ones."""
    if plan.min_snr_gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    return diffusion.min_snr_weights(scheduler, timesteps, plan.min_snr_gamma)


def objective(losses, weights, plan):
    """What is minimised: the weighted mean of the slabs' losses, or of their logarithms.

    A small lesion in even tissue has a loss hundreds of times below that of a large one. With the plain mean it
    counts for nothing, and a model is worse there than interpolation; PSNR, a logarithm as well, shows it.
    """
    if plan.log_loss_floor is None:
        return (losses * weights).mean()
    return (torch.log(losses + plan.log_loss_floor) * weights).mean()


def losses_per_timestep(losses, timesteps, num_train_timesteps, name):
    """Mean loss in each tenth of the diffusion process, NaN where none fell: dict of table 3.3's rows."""
    losses, bins = np.asarray(losses), np.asarray(timesteps) * N_TIMESTEP_BINS // num_train_timesteps
    width = num_train_timesteps // N_TIMESTEP_BINS
    return {
        f'{name}/t{n * width}': float(losses[bins == n].mean()) if (bins == n).any() else math.nan
        for n in range(N_TIMESTEP_BINS)
    }


def sampler_of(plan, scheduler, case, generator, device='cpu'):
    """How a model of a plan is sampled in a case; see `inpaint.sampler_of`."""
    image, mask = (
        torch.from_numpy(inpaint.to_slab(case[name]).copy())[None, None].to(device) for name in ('seen', 'lesion_mask')
    )
    return inpaint.sampler_of(plan, scheduler, plan.num_inference_steps, image, mask, generator)


@torch.no_grad()
def validate(network, cases, scheduler, plan, perceptual_distance=None, accelerator=None):
    """Table 3.3 on a list of cases (see `dataset.validation_cases`): losses per time step; and by kind of case

    - `<kind>/model_mse` and so on: M1 inside the mask of the pasted result, and `base_mse` of its classical base;
    - `<kind>/out_mse`, `<kind>/whole_mse`: of the network's own output, where nothing is pasted;
    - `<kind>/lpips`: of the slices of the crop, if `perceptual_distance` (`lpips.Lpips`) is given.

    With an accelerator each process takes its share of the cases, and all get the scores of all.
    """
    first, step = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    results = [
        validate_case(network, cases[number], number, scheduler, plan, perceptual_distance)
        for number in range(first, len(cases), step)
    ]
    results = results if accelerator is None else gather_object(results)
    if not results:
        return {}
    scores = {}
    for row, _ in results:
        for name, value in row.items():
            scores.setdefault(name, []).append(value)
    losses, timesteps = zip(*(pair for _, pairs in results for pair in pairs))
    return (
        {name: float(np.mean(values)) for name, values in scores.items()}
        | {'validation_loss': float(np.mean(losses))}
        | losses_per_timestep(losses, timesteps, scheduler.config.num_train_timesteps, 'validation_loss')
    )


def validate_case(network, case, number, scheduler, plan, perceptual_distance=None):
    """Scores of one case (dict), and its losses as pairs (loss, time step); the noise depends on its number alone."""
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + number)
    device, mask = next(network.parameters()).device, case['lesion_mask']
    channels = torch.from_numpy(inpaint.to_slab(case['channels']).copy())[None].to(device)
    noise = torch.randn(1, 1, *channels.shape[2:], generator=generator).to(device)
    target, mask_slab = (
        torch.from_numpy(inpaint.to_slab(array).astype(np.float32))[None, None].to(device)
        for array in (plan.form.to_diffusion(case['image'], case['base']), mask)
    )
    losses = []
    num_train_timesteps = scheduler.config.num_train_timesteps
    for part in range(1, N_TIMESTEP_BINS + 1):
        timesteps = torch.tensor([part * num_train_timesteps // N_TIMESTEP_BINS - 1], device=device)
        loss = diffusion.diffusion_loss(
            network, target, channels, mask_slab, scheduler, timesteps, noise, plan.form.inside_mask_only
        )
        losses.append((loss.item(), timesteps.item()))

    sampler = sampler_of(plan, scheduler, case, generator, device)
    sampled = inpaint.sample_slab(network, channels, noise, plan.form, sampler)
    raw = plan.form.from_diffusion(inpaint.from_slab(sampled.cpu().numpy()[0, 0]), case['base'])
    wanted = np.where(mask, case['image'], case['seen'])
    if plan.form.inside_mask_only:
        raw = np.where(mask, raw, wanted)
    row = {}
    for method, inside in (('model', raw), ('base', case['base'])):
        inside = metrics.slice_scores(wanted, np.where(mask, inside, wanted), mask)
        row |= {f'{method}_{name}': value for name, value in inside.items()}
    for name, value in metrics.region_scores(wanted, raw, mask).items():
        metric, region = name.split('_')
        if region != 'in':
            row[f'{region}_{metric}'] = value
    if perceptual_distance is not None:
        slices = (torch.from_numpy(inpaint.to_slab(array)[:, None]).float() for array in (wanted, raw))
        row['lpips'] = perceptual_distance(*slices).mean().item()
    return {f'{case["kind"]}/{name}': value for name, value in row.items()}, losses


def save_atomically(state, path):
    """Write a checkpoint that is whole or absent."""
    torch.save(state, f'{path}.tmp')
    os.replace(f'{path}.tmp', path)


def save_model(network, plan, model_dir, dtype=torch.float16, contrasts=None):
    """Write a model folder, whole or not at all: weights as safetensors in half precision, scheduler, plan; and
    `contrasts` (volumes and contrasts, see `dataset.lesion_contrasts`) if there are any."""
    new, old = (model_dir.with_name(f'{model_dir.name}.{end}') for end in ('new', 'old'))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    half = torch.nn.Module.to(plan.build_unet(), dtype)  # that of diffusers warns of layers that this network lacks
    half.load_state_dict(network.state_dict())
    half.save_pretrained(new / 'unet')
    plan.build_scheduler().save_pretrained(new / 'scheduler')
    (new / 'plan.json').write_text(plan.to_json(), encoding='utf-8')
    if contrasts is not None:
        rounded = {name: np.round(values, 3).tolist() for name, values in zip(('volume_mm3', 'contrast'), contrasts)}
        (new / weights.CONTRASTS).write_text(json.dumps(rounded) + '\n', encoding='utf-8')
    if model_dir.exists():
        os.replace(model_dir, old)
    os.replace(new, model_dir)
    shutil.rmtree(old, ignore_errors=True)


def train(
    brains,
    validation,
    lesions,
    plan,
    output_dir,
    device='cpu',
    checkpoint_seconds=300,
    num_workers=1,
    cpu_minutes=None,
    initial_weights=None,
    perceptual_distance=None,
):
    """Train by a plan, from the last checkpoint in `output_dir` if there is one.

    Parameters
    ----------
    brains : list of dataset.Brain
    validation : list of cases, see `dataset.validation_cases`
    lesions : list of bool arrays
    plan : Plan
    output_dir : Path
        Gets `checkpoint.pt`, `log.csv`, TensorBoard events, `last/` and `best/` (by in-mask SSIM) model folders.
    device : str
        `cpu`, or `cuda` for what accelerate finds or was launched with.
    checkpoint_seconds : float
    num_workers : int
        Processes that draw cases.
    cpu_minutes : float, optional
        Stop after so many minutes of CPU time of this process: equal budgets for a comparison.
    initial_weights : dict of tensors, optional
        Where to start, instead of at random.
    perceptual_distance : lpips.Lpips, optional

    Returns
    -------
    the network, with averaged weights (EMA)

    Raises
    ------
    ValueError
        If the folder holds the checkpoint of another plan.
    """
    # A CPU has no half precision of this kind; the same plan runs there in single precision.
    single = device == 'cpu' and plan.mixed_precision == 'fp16'
    accelerator = Accelerator(
        cpu=device == 'cpu',
        mixed_precision='no' if single else plan.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],  # one process may validate for long
    )
    n_processes, is_main = accelerator.num_processes, accelerator.is_main_process
    output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    raw_network = plan.build_unet().to(accelerator.device, memory_format=torch.channels_last)  # 10 % faster on a CPU
    if initial_weights is not None:
        raw_network.load_state_dict(initial_weights)
    scheduler = plan.build_scheduler()
    optimizer = torch.optim.AdamW(raw_network.parameters(), lr=plan.learning_rate)
    ema = EMAModel(raw_network.parameters(), decay=plan.ema_decay, use_ema_warmup=True, power=0.75)
    update, best_ssim, seconds, cpu_seconds = 0, -1.0, 0.0, 0.0
    losses, timesteps = [], []  # since the last validation
    contrasts = dataset.lesion_contrasts(brains) if plan.task == 'synth' else None
    checkpoint = output_dir / 'checkpoint.pt'
    state = None
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=accelerator.device, weights_only=True)
        check_same_model(plan, output_dir / 'plan.json')
        raw_network.load_state_dict(state['network'])
        optimizer.load_state_dict(state['optimizer'])
        ema.load_state_dict(state['ema'])
        update, best_ssim = state['update'], state['best_ssim']
        seconds, cpu_seconds = state['seconds'], state.get('cpu_seconds', 0.0)
        losses, timesteps = state['losses'], state['timesteps']
        logger.info('resumed at update %d', update)
    accelerator.wait_for_everyone()  # all have read the old plan.json
    if is_main:
        (output_dir / 'plan.json').write_text(plan.to_json(), encoding='utf-8')
        keep_rows(output_dir / 'log.csv', update)

    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: learning_rate_factor(plan, update), last_epoch=update - 1
    )
    slabs_per_update = plan.batch_size * n_processes
    n_slabs = plan.num_updates * slabs_per_update
    cases = dataset.TrainingCases(brains, lesions, plan.cases, plan.form, plan.seed, n_slabs)
    spent = cpu_minutes is not None and cpu_seconds > 60 * cpu_minutes  # by the run that is resumed
    left = range(len(cases) if spent else update * slabs_per_update, len(cases))
    loader = DataLoader(cases, batch_size=plan.batch_size, num_workers=num_workers, sampler=left)
    network, prepared_optimizer, loader = accelerator.prepare(raw_network, optimizer, loader)
    if state is not None and accelerator.scaler is not None and state['scaler']:
        accelerator.scaler.load_state_dict(state['scaler'])
    writer = SummaryWriter(output_dir, purge_step=update or None) if is_main else None
    started, last_saved = time.monotonic() - seconds, time.monotonic()
    cpu_started = time.process_time() - cpu_seconds

    def checkpoint_now():
        save_atomically(
            {
                'network': raw_network.state_dict(),
                'optimizer': optimizer.state_dict(),
                'ema': ema.state_dict(),
                'scaler': accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
                'update': update,
                'best_ssim': best_ssim,
                'losses': losses,
                'timesteps': timesteps,
                'seconds': time.monotonic() - started,
                'cpu_seconds': time.process_time() - cpu_started,
            },
            checkpoint,
        )

    def validate_now():
        ema.store(raw_network.parameters())
        ema.copy_to(raw_network.parameters())
        raw_network.eval()
        scores = validate(raw_network, validation, scheduler, plan, perceptual_distance, accelerator)
        if is_main:
            log_and_save(scores)
        ema.restore(raw_network.parameters())
        raw_network.train()

    def log_and_save(scores):
        nonlocal best_ssim
        row = {
            'update': update,
            'seconds': round(time.monotonic() - started),
            'cpu_seconds': round(time.process_time() - cpu_started),
            'loss': np.mean(losses) if losses else math.nan,
            'gradient_norm': gradient_norm.item(),
            'learning_rate': rate.get_last_lr()[0],
            **losses_per_timestep(losses, timesteps, scheduler.config.num_train_timesteps, 'loss'),
            **scores,
        }
        write_row(output_dir / 'log.csv', row)
        for name, value in row.items():
            writer.add_scalar(name, value, update)
        logger.info('%s', {name: float(f'{value:.5g}') for name, value in row.items()})
        save_model(raw_network, plan, output_dir / 'last', contrasts=contrasts)
        ssims = [value for name, value in scores.items() if name.endswith('/model_ssim')]
        if ssims and np.mean(ssims) > best_ssim:
            best_ssim = float(np.mean(ssims))
            save_model(raw_network, plan, output_dir / 'best', contrasts=contrasts)

    for batch in loader:
        batch_losses, batch_timesteps = train_step(
            network, batch, scheduler, plan, update * n_processes + accelerator.process_index
        )
        prepared_optimizer.zero_grad()
        accelerator.backward(objective(batch_losses, loss_weights(scheduler, batch_timesteps, plan), plan))
        gradient_norm = accelerator.clip_grad_norm_(network.parameters(), plan.gradient_clip)
        prepared_optimizer.step()
        rate.step()
        if not prepared_optimizer.step_was_skipped:  # half precision overflowed
            ema.step(raw_network.parameters())
        update += 1
        losses += batch_losses.tolist()
        timesteps += batch_timesteps.tolist()
        out_of_time = False
        if cpu_minutes is not None:  # all processes stop when the first one has to
            if time.process_time() - cpu_started > 60 * cpu_minutes:
                accelerator.set_trigger()
            out_of_time = accelerator.check_trigger()
        at_end = update == plan.num_updates or out_of_time
        if update % plan.validate_every == 0 or at_end:
            validate_now()
            accelerator.wait_for_everyone()
            losses, timesteps = [], []
        if is_main and (at_end or time.monotonic() - last_saved > checkpoint_seconds):
            checkpoint_now()
            last_saved = time.monotonic()
        if at_end:
            break
    if is_main:
        writer.close()
    ema.copy_to(raw_network.parameters())
    return raw_network.eval()


def check_same_model(plan, plan_file):
    """Raise ValueError if a checkpoint's plan describes another network or other cases than the plan given."""
    old = Plan.from_json(text_files.read_text(plan_file))
    plan = Plan.from_json(plan.to_json())  # tuples of unet_options as lists
    may_differ = {'num_updates', 'decay_updates', 'learning_rate', 'validate_every', 'n_validation_cases'}
    differing = [name for name in asdict(plan) if name not in may_differ and getattr(old, name) != getattr(plan, name)]
    if differing:
        raise ValueError(
            f'{plan_file.parent} holds a checkpoint of another plan ({", ".join(differing)}); use a new folder'
        )


def keep_rows(path, update):
    """Drop the rows of a log that come after an update: a resumed run writes them again."""
    write_rows(path, [row for row in read_rows(path) if int(row['update']) <= update])


def write_row(path, row):
    """Append a row to a CSV file; columns that are new (of a run resumed with other options) are added at the end."""
    write_rows(path, [*read_rows(path), row])


def read_rows(path):
    """A CSV file as a list of dicts; empty if there is none."""
    if not path.exists():
        return []
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def write_rows(path, rows):
    """Write a CSV file, whole or not at all."""
    if rows:
        with open(f'{path}.tmp', 'w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
        os.replace(f'{path}.tmp', path)
    else:
        path.unlink(missing_ok=True)


def main(argv=None):
    """Command line of the training; return the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m bids_lesionfill.train',
        description=__doc__.split('\n')[0],
        epilog=f'Plans: {", ".join(PLANS)}.',
    )
    parser.add_argument('bids_dir', type=Path, nargs='+', help='healthy brains with dseg and column split; or patients')
    parser.add_argument('output_dir', type=Path)
    parser.add_argument('--plan', default='fill-T1w', help='name of a plan, or a JSON file')
    parser.add_argument('--lesion-masks', type=Path, help='folder of lesion masks whose shapes are placed')
    parser.add_argument(
        '--patients',
        type=Path,
        nargs='+',
        default=[],
        help='filling T1w: datasets of patients whose normal-appearing white matter is trained on as well',
    )
    parser.add_argument(
        '--validation-label',
        nargs='+',
        default=[],
        help='patients kept out of training; synthesis and FLAIR are validated on them (default: the last one)',
    )
    parser.add_argument(
        '--no-validation', action='store_true', help='patients: train on all of them, after leave-one-out trainings'
    )
    parser.add_argument('--num-updates', type=int, help="instead of the plan's")
    parser.add_argument('--decay-updates', type=int, help="instead of the plan's")
    parser.add_argument(
        '--cpu-minutes', type=float, help='stop after so much CPU time of the main process; with --num-workers 0 of all'
    )
    parser.add_argument('--init-from', help='model (name or folder) whose weights to start from')
    parser.add_argument('--lpips-weights', type=Path, nargs='+', help='AlexNet and LPIPS weights; logs LPIPS')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--num-workers', type=int, default=1)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    try:
        ownership.check_folder(options.output_dir, *OWN_FOLDER)
    except layout.UsageError as error:
        logger.error('%s', error)
        return 2
    plan = PLANS[options.plan] if options.plan in PLANS else Plan.from_json(text_files.read_text(options.plan))
    changes = {name: getattr(options, name) for name in ('num_updates', 'decay_updates')}
    plan = replace(plan, **{name: value for name, value in changes.items() if value is not None})
    brains, validation_brains, lesions, validation_lesions = read_data(options, plan)
    n_cases = plan.n_validation_cases if validation_brains else 0
    cases = dataset.validation_cases(validation_brains, validation_lesions, plan.cases, plan.form, n_cases, plan.seed)
    logger.info('%d brains to train, %d to validate', len(brains), len(validation_brains))
    train(
        brains,
        cases,
        lesions,
        plan,
        options.output_dir,
        options.device,
        num_workers=options.num_workers,
        cpu_minutes=options.cpu_minutes,
        initial_weights=weights.load_model(options.init_from).unet.state_dict() if options.init_from else None,
        perceptual_distance=lpips.load_lpips(options.lpips_weights) if options.lpips_weights else None,
    )
    return 0


def read_data(options, plan):
    """Brains to train and to validate, lesion shapes to train and to validate, by the command line's options."""
    healthy_dirs = options.bids_dir if (plan.task, plan.modality) == ('fill', 'T1w') else []
    patient_dirs = options.patients if healthy_dirs else options.bids_dir
    must_validate = not healthy_dirs and not options.no_validation
    patients = split_patients(patient_dirs, plan.modality, options.validation_label, must_validate)
    if plan.task == 'synth':
        filler = weights.load_model(f'fill-{plan.modality}')
        return *(dataset.read_patients(group, filler) for group in patients), [], []
    mask_files = layout.find_lesion_masks(options.lesion_masks or options.bids_dir[0])
    brains, validation_brains = (
        dataset.read_healthy_brains([files for folder in healthy_dirs for files in layout.find_training(folder, split)])
        for split in ('train', 'validation')
    )
    brains += dataset.read_normal_appearing(patients[0])
    if not healthy_dirs:
        validation_brains = dataset.read_normal_appearing(patients[1])
    shapes = [dataset.read_lesion_shapes(files) for files in layout.split_lesion_masks(mask_files)]
    return brains, validation_brains, *shapes


def split_patients(bids_dirs, modality, held_out, must_validate):
    """Files of patients to train and to validate (see `layout.find_patients`), by the labels that are held out."""
    images = [image for bids_dir in bids_dirs for image in layout.find_patients(bids_dir, modality)]
    held_out = {label.removeprefix('sub-') for label in held_out}
    if must_validate and not held_out:
        held_out = {images[-1][0]}
    groups = [[files for label, *files in images if (label in held_out) == out] for out in (False, True)]
    if must_validate and not all(groups):
        raise SystemExit(f'{len(groups[0])} images to train, {len(groups[1])} to validate: expected some of both')
    return groups


if __name__ == '__main__':
    sys.exit(main())
