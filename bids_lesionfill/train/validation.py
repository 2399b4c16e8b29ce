"""Validation during training, with fixed cases and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object

from ..diffusion import inpaint, process, tiles
from ..images import metrics

if TYPE_CHECKING:
    from diffusers import DDIMScheduler
    from torch import nn

    from .plans import Plan

N_TIMESTEP_BINS = 10  # the losses are logged for each tenth of the diffusion process (table 3.3)


def losses_per_timestep(
    losses: Sequence[float], timesteps: Sequence[int], num_train_timesteps: int, name: str
) -> dict[str, float]:
    """Return mean loss in each tenth of the diffusion process, NaN where none fell: dict of table 3.3's rows."""
    losses, bins = np.asarray(losses), np.asarray(timesteps) * N_TIMESTEP_BINS // num_train_timesteps
    width = num_train_timesteps // N_TIMESTEP_BINS
    return {
        f'{name}/t{n * width}': float(losses[bins == n].mean()) if (bins == n).any() else math.nan
        for n in range(N_TIMESTEP_BINS)
    }


def sampler_of(
    plan: Plan, scheduler: DDIMScheduler, case: dict[str, Any], generator: torch.Generator | None, device: Any = 'cpu'
) -> Callable[..., torch.Tensor]:
    """Return the sampler of a plan's model in a case; see `inpaint.sampler_of`."""
    image, mask = (
        torch.from_numpy(tiles.to_slab(case[name]).copy())[None, None].to(device) for name in ('seen', 'lesion_mask')
    )
    return inpaint.sampler_of(plan, scheduler, plan.num_inference_steps, image, mask, generator)


@torch.no_grad()
def validate(
    network: nn.Module,
    cases: list[dict[str, Any]],
    scheduler: DDIMScheduler,
    plan: Plan,
    perceptual_distance: Callable[..., Any] | None = None,
    accelerator: Any = None,
) -> dict[str, Any]:
    """Compute table 3.3 on a list of cases (see `validation_cases`): losses per time step, and scores by kind.

    Scores are, by kind of case:

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


def validate_case(
    network: nn.Module,
    case: dict[str, Any],
    number: int,
    scheduler: DDIMScheduler,
    plan: Plan,
    perceptual_distance: Callable[..., Any] | None = None,
) -> tuple[dict[str, float], list[tuple[float, float]]]:
    """Return scores of one case (dict), and its losses as pairs (loss, time step).

    The noise depends on its number alone.
    """
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + number)
    device, mask = next(network.parameters()).device, case['lesion_mask']
    channels = torch.from_numpy(tiles.to_slab(case['channels']).copy())[None].to(device)
    noise = torch.randn(1, 1, *channels.shape[2:], generator=generator).to(device)
    target, mask_slab = (
        torch.from_numpy(tiles.to_slab(array).astype(np.float32))[None, None].to(device)
        for array in (plan.form.to_diffusion(case['image'], case['base']), mask)
    )
    losses = []
    num_train_timesteps = scheduler.config.num_train_timesteps
    for part in range(1, N_TIMESTEP_BINS + 1):
        timesteps = torch.tensor([part * num_train_timesteps // N_TIMESTEP_BINS - 1], device=device)
        loss = process.diffusion_loss(
            network, target, channels, mask_slab, scheduler, timesteps, noise, plan.form.inside_mask_only
        )
        losses.append((loss.item(), timesteps.item()))

    sampler = sampler_of(plan, scheduler, case, generator, device)
    sampled = inpaint.sample_slab(network, channels, noise, plan.form, sampler)
    raw = plan.form.from_diffusion(tiles.from_slab(sampled.cpu().numpy()[0, 0]), case['base'])
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
        slices = (torch.from_numpy(tiles.to_slab(array)[:, None]).float() for array in (wanted, raw))
        row['lpips'] = perceptual_distance(*slices).mean().item()
    return {f'{case["kind"]}/{name}': value for name, value in row.items()}, losses
