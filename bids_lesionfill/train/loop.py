"""Training loop: one update, checkpoints, model folders."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from .. import text_files
from ..diffusion import models, process
from ..layout import errors
from . import brains as train_brains
from . import cases as train_cases
from . import plans
from . import validation as train_validation

if TYPE_CHECKING:
    from diffusers import DDIMScheduler
    from torch import nn

logger = logging.getLogger('bids_lesionfill.train')

MODEL_FILES = {'unet', 'scheduler', 'plan.json', models.CONTRASTS}  # what `save_model` writes
MAY_DIFFER = {'num_updates', 'decay_updates', 'learning_rate', 'validate_every', 'n_validation_cases'}


def train_step(
    network: nn.Module,
    batch: Sequence[torch.Tensor] | tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scheduler: DDIMScheduler,
    plan: plans.Plan,
    draw: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the losses of one batch; noise and time steps depend on the seed and the number of the draw alone.

    Returns
    -------
    losses : (batch,) tensor, unweighted
    timesteps : (batch,) tensor
    """
    target, channels, mask, *counted = batch
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + draw)
    timesteps = process.sample_timesteps(
        len(target), scheduler.config.num_train_timesteps, plan.share_at_end, generator
    )
    noise = torch.randn(target.shape, generator=generator).to(target.device)
    timesteps = timesteps.to(target.device)
    losses = process.diffusion_loss(
        network, target, channels, mask, scheduler, timesteps, noise, plan.form.inside_mask_only, *counted
    )
    return losses, timesteps


def loss_weights(scheduler: DDIMScheduler, timesteps: torch.Tensor, plan: plans.Plan) -> torch.Tensor:
    """Return Min-SNR weights of a plan, or ones."""
    if plan.min_snr_gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    return process.min_snr_weights(scheduler, timesteps, plan.min_snr_gamma)


def objective(losses: torch.Tensor, weights: torch.Tensor, plan: plans.Plan) -> torch.Tensor:
    """Compute the loss to minimise: the weighted mean of the slabs' losses, or of their logarithms.

    A small lesion in even tissue has a loss hundreds of times below that of a large one. With the plain mean it
    counts for nothing, and a model is worse there than interpolation; PSNR, a logarithm as well, shows it.
    """
    if plan.log_loss_floor is None:
        return (losses * weights).mean()
    return (torch.log(losses + plan.log_loss_floor) * weights).mean()


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint that is whole or absent."""
    torch.save(state, f'{path}.tmp')
    os.replace(f'{path}.tmp', path)


def save_model(
    network: nn.Module,
    plan: plans.Plan,
    model_dir: Path,
    dtype: torch.dtype = torch.float16,
    contrasts: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Write a model folder, whole or not at all.

    It holds the weights as safetensors in half precision, scheduler, plan and, if there are any, `contrasts` (volumes
    and contrasts, see `brains.lesion_contrasts`).
    """
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
        (new / models.CONTRASTS).write_text(json.dumps(rounded) + '\n', encoding='utf-8')
    if model_dir.exists():
        os.replace(model_dir, old)
    os.replace(new, model_dir)
    shutil.rmtree(old, ignore_errors=True)


def claim(output_dir: Path, plan: plans.Plan) -> None:
    """Write the plan into a new folder, which tells from then on whose it is."""
    output_dir.mkdir(parents=True, exist_ok=True)
    if not (output_dir / 'plan.json').exists():
        (output_dir / 'plan.json').write_text(plan.to_json(), encoding='utf-8')


def check_folders(output_dir: Path, plan: plans.Plan) -> None:
    """Raise UsageError if a folder that is to be replaced (`last`, `best`) is there and was not written by `train`.

    Its own holds the files of a model and nothing else, and a plan that the run in `output_dir` may have had.
    """
    with contextlib.suppress(OSError, ValueError):
        plan = plans.Plan.from_json(text_files.read_text(output_dir / 'plan.json'))
    for folder in (output_dir / f'{name}{end}' for name in ('last', 'best') for end in ('', '.new', '.old')):
        if not os.path.lexists(folder):
            continue
        plan_file = folder / 'plan.json'
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
        is_part = folder.suffix and not plan_file.exists()  # of a killed run: the plan is written after the network
        is_own = names <= MODEL_FILES and not folder.is_symlink()
        try:
            is_own = is_own and (is_part or not differing(plan, plan_file))
        except (OSError, ValueError):
            is_own = False
        if not is_own:
            raise errors.UsageError(
                f'{folder} was not written by this training ({", ".join(sorted(names)[:3])}): nothing is replaced; '
                'use a new folder'
            )


def train(  # noqa: C901 - the loop holds network, optimizer and log, which resuming, checkpoints and scores share
    brains: Sequence[train_brains.Brain],
    validation: list[dict[str, Any]],
    lesions: Sequence[np.ndarray],
    plan: plans.Plan,
    output_dir: Path,
    device: str = 'cpu',
    checkpoint_seconds: float = 300,
    num_workers: int = 1,
    cpu_minutes: float | None = None,
    initial_weights: dict[str, torch.Tensor] | None = None,
    perceptual_distance: Callable[..., Any] | None = None,
) -> nn.Module:
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
    check_folders(output_dir, plan)
    torch.manual_seed(plan.seed)
    raw_network = plan.build_unet().to(accelerator.device, memory_format=torch.channels_last)  # 10 % faster on a CPU
    if initial_weights is not None:
        raw_network.load_state_dict(initial_weights)
    scheduler = plan.build_scheduler()
    optimizer = torch.optim.AdamW(raw_network.parameters(), lr=plan.learning_rate)
    ema = EMAModel(raw_network.parameters(), decay=plan.ema_decay, use_ema_warmup=True, power=0.75)
    update, best_ssim, seconds, cpu_seconds = 0, -1.0, 0.0, 0.0
    losses, timesteps = [], []  # since the last validation
    contrasts = train_brains.lesion_contrasts(brains) if plan.task == 'synth' else None
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
        optimizer, lambda update: plans.learning_rate_factor(plan, update), last_epoch=update - 1
    )
    slabs_per_update = plan.batch_size * n_processes
    n_slabs = plan.num_updates * slabs_per_update
    cases = train_cases.TrainingCases(brains, lesions, plan.cases, plan.form, plan.seed, n_slabs)
    spent = cpu_minutes is not None and cpu_seconds > 60 * cpu_minutes  # by the run that is resumed
    left = range(len(cases) if spent else update * slabs_per_update, len(cases))
    loader = DataLoader(cases, batch_size=plan.batch_size, num_workers=num_workers, sampler=left)
    network, prepared_optimizer, loader = accelerator.prepare(raw_network, optimizer, loader)
    if state is not None and accelerator.scaler is not None and state['scaler']:
        accelerator.scaler.load_state_dict(state['scaler'])
    writer: Any = SummaryWriter(output_dir, purge_step=update or None) if is_main else None
    started, last_saved = time.monotonic() - seconds, time.monotonic()
    cpu_started = time.process_time() - cpu_seconds

    def checkpoint_now() -> None:
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

    def validate_now() -> None:
        ema.store(raw_network.parameters())
        ema.copy_to(raw_network.parameters())
        raw_network.eval()
        scores = train_validation.validate(raw_network, validation, scheduler, plan, perceptual_distance, accelerator)
        if is_main:
            log_and_save(scores)
        ema.restore(raw_network.parameters())
        raw_network.train()

    def log_and_save(scores: dict[str, Any]) -> None:
        nonlocal best_ssim
        row = {
            'update': update,
            'seconds': round(time.monotonic() - started),
            'cpu_seconds': round(time.process_time() - cpu_started),
            'loss': np.mean(losses) if losses else math.nan,
            'gradient_norm': gradient_norm.item(),
            'learning_rate': rate.get_last_lr()[0],
            **train_validation.losses_per_timestep(losses, timesteps, scheduler.config.num_train_timesteps, 'loss'),
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


def check_same_model(plan: plans.Plan, plan_file: Path) -> None:
    """Raise ValueError if a checkpoint's plan describes another network or other cases than the plan given."""
    if names := differing(plan, plan_file):
        raise ValueError(
            f'{plan_file.parent} holds a checkpoint of another plan ({", ".join(names)}); use a new folder'
        )


def differing(plan: plans.Plan, plan_file: Path) -> Any:
    """List the settings of a plan that differ from those in a file, but for those that may."""
    old = plans.Plan.from_json(text_files.read_text(plan_file))
    plan = plans.Plan.from_json(plan.to_json())  # tuples of unet_options as lists
    return [name for name in asdict(plan) if name not in MAY_DIFFER and getattr(old, name) != getattr(plan, name)]


def keep_rows(path: Path, update: int) -> None:
    """Drop the rows of a log that come after an update: a resumed run writes them again."""
    write_rows(path, [row for row in read_rows(path) if int(row['update']) <= update])


def write_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file; columns that are new (of a run resumed with other options) are added at the end."""
    write_rows(path, [*read_rows(path), row])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return a CSV file as a list of dicts; empty if there is none."""
    if not path.exists():
        return []
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a CSV file, whole or not at all."""
    if rows:
        with open(f'{path}.tmp', 'w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
        os.replace(f'{path}.tmp', path)
    else:
        path.unlink(missing_ok=True)
