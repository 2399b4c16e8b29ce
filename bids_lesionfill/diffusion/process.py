"""The diffusion process: noising, the training loss, the deterministic DDIM sampler. It knows no volume and no file.

Works on slabs `(batch, 1, slices, height, width)` with conditions `(batch, channels, slices, height, width)` that are
concatenated to the noisy image (thesis 3.2, Eq. 3.6). `scheduler` is a diffusers scheduler: it holds the noise
schedule and says what the network predicts (`prediction_type`: epsilon or v).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import DDIMScheduler
    from torch import nn


def build_scheduler(
    noise_schedule: str = 'linear',
    prediction_type: str = 'epsilon',
    num_train_timesteps: int = 1000,
    clip_sample_range: float | None = None,
) -> DDIMScheduler:
    """Build the noise schedule: `DDIMScheduler` of diffusers (thesis 3.2 and table 3.1).

    With v-prediction the schedule is rescaled to end in pure noise, and sampling starts there (Lin et al. 2024,
    *Common diffusion noise schedules and sample steps are flawed*): one step then gives the mean of all fillings.

    Parameters
    ----------
    noise_schedule : {'linear', 'scaled_linear', 'squaredcos_cap_v2'}
    prediction_type : {'epsilon', 'v_prediction'}
    num_train_timesteps : int
    clip_sample_range : float, optional
        What the network says the image is gets clipped to plus and minus this in every step of the sampling, as in the
        thesis' code: at the first steps the error of a prediction of noise is divided by almost nothing.
    """
    from diffusers import DDIMScheduler  # takes seconds to import

    ends_in_noise = prediction_type == 'v_prediction'
    return DDIMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule=noise_schedule,
        prediction_type=prediction_type,
        clip_sample=clip_sample_range is not None,
        clip_sample_range=clip_sample_range or 1.0,
        rescale_betas_zero_snr=ends_in_noise,
        timestep_spacing='trailing' if ends_in_noise else 'leading',
    )


def sample_timesteps(
    batch_size: int, num_train_timesteps: int, share_at_end: float, generator: torch.Generator
) -> torch.Tensor:
    """Sample training time steps uniformly, but `share_at_end` of them are T: the step of one-step sampling."""
    timesteps = torch.randint(0, num_train_timesteps, (batch_size,), generator=generator)
    at_end = torch.rand(batch_size, generator=generator) < share_at_end
    return torch.where(at_end, num_train_timesteps - 1, timesteps)


def target_of(
    scheduler: DDIMScheduler, image: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Return the target of the network: the noise, or v (Salimans and Ho 2022)."""
    if scheduler.config.prediction_type == 'v_prediction':
        return scheduler.get_velocity(image, noise, timesteps)
    return noise


def diffusion_loss(
    unet: nn.Module,
    image: torch.Tensor,
    conditions: torch.Tensor,
    mask: torch.Tensor,
    scheduler: DDIMScheduler,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    inside_mask_only: bool = True,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the squared error of the prediction (Eq. 3.6), inside the mask or over the whole slab.

    Parameters
    ----------
    unet : callable
        Takes `(batch, 1 + channels, slices, height, width)` and the time steps.
    image, noise : (batch, 1, slices, height, width) tensor
    conditions : (batch, channels, slices, height, width) tensor
    mask : (batch, 1, slices, height, width) tensor, 1 where the lesion is
    timesteps : (batch,) tensor
        One per slab.
    inside_mask_only : bool
        False is the thesis' loss; True spends no capacity on what is known, and noises the lesion only.
    counted : (batch, 1, slices, height, width) tensor, optional
        Part of the mask that the loss counts, 1 there: what a mask overlaps of fluid is noised, but not learnt.

    Returns
    -------
    (batch,) tensor
        Mean over the slab, or over its mask, or what of it is counted.
    """
    noisy_image = scheduler.add_noise(image, noise, timesteps)
    target = target_of(scheduler, image, noise, timesteps)
    if inside_mask_only:
        noisy_image = noisy_image * mask
    error = (unet(torch.cat([noisy_image, conditions], dim=1), timesteps) - target) ** 2
    if not inside_mask_only:
        return error.mean(dim=(1, 2, 3, 4))
    counted = mask if counted is None else counted
    return (error * counted).sum(dim=(1, 2, 3, 4)) / counted.sum(dim=(1, 2, 3, 4)).clamp(min=1)


def min_snr_weights(scheduler: DDIMScheduler, timesteps: torch.Tensor, gamma: float = 5.0) -> torch.Tensor:
    """Return weights of the loss per time step, min(SNR, gamma) (Hang et al. 2023; thesis 3.4), for what is predicted.

    SNR(t) is alphas_cumprod / (1 - alphas_cumprod). The weight of the squared error of the noise is divided by SNR,
    that of v by SNR + 1.

    Parameters
    ----------
    timesteps : (batch,) int tensor
    gamma : float

    Returns
    -------
    (batch,) tensor
    """
    alphas_cumprod = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alphas_cumprod / (1 - alphas_cumprod)
    divisor = snr + 1 if scheduler.config.prediction_type == 'v_prediction' else snr.clamp(min=1e-12)
    return snr.clamp(min=1e-12, max=gamma) / divisor


@torch.no_grad()
def sample_ddim(
    predict: Callable[[torch.Tensor, Any], torch.Tensor],
    noise: torch.Tensor,
    scheduler: DDIMScheduler,
    num_inference_steps: int,
    image: torch.Tensor | None = None,
    start_step: int = 0,
) -> torch.Tensor:
    """Sample deterministically from noise to image (DDIM, Song et al. 2021, eta = 0).

    Parameters
    ----------
    predict : callable
        Takes the noisy image and one time step, gives what the network predicts; the conditions are inside it.
    noise : tensor
    scheduler : diffusers.DDIMScheduler
    num_inference_steps : int
    image : tensor, optional
        Where to start if `start_step` is not zero (SDEdit).
    start_step : int
        This many steps are left to go; 0 takes all, from pure noise.

    Returns
    -------
    tensor of the shape of `noise`
    """
    check_start(start_step, num_inference_steps)
    timesteps = inference_timesteps(scheduler, num_inference_steps)
    noisy_image = noise * scheduler.init_noise_sigma
    if start_step:
        timesteps = timesteps[len(timesteps) - start_step :]
        noisy_image = scheduler.add_noise(image, noise, timesteps[:1])
    for timestep in timesteps:
        noisy_image = scheduler.step(predict(noisy_image, timestep), timestep, noisy_image).prev_sample
    return noisy_image


def check_start(start_step: int, num_inference_steps: int) -> None:
    """Raise ValueError if a sampling cannot start so many steps before its end."""
    if not 0 <= start_step <= num_inference_steps:
        raise ValueError(f'start_step is {start_step}, expected 0 to {num_inference_steps}, the number of steps')


def inference_timesteps(scheduler: DDIMScheduler, num_inference_steps: int) -> torch.Tensor:
    """Return the time steps of a sampling, from noise to image: (num_inference_steps,) int tensor."""
    scheduler.set_timesteps(num_inference_steps)
    return scheduler.timesteps


def repaint_schedule(n_steps: int, jump_length: int = 8, jump_n_sample: int = 10) -> list[int]:
    """Return the path of RePaint through the time steps: down, with jumps back up (Lugmayr et al. 2022, appendix B).

    At every `jump_length`-th level, counted from 1, the process jumps back `jump_length` steps and comes down again,
    until it has come down `jump_n_sample` times. The paper's time t is level t + 1 here, its -1 the image.

    Parameters
    ----------
    n_steps : int
        Of the sampling; step 0 is the last one before the image.
    jump_length, jump_n_sample : int
        `jump_n_sample` = 1 is plain sampling.

    Returns
    -------
    list of ints
        Noise levels in the order of the visits, from `n_steps` (pure noise) to 0 (the image); neighbours differ by one.
    """
    left = {level: jump_n_sample - 1 for level in range(1, n_steps - jump_length + 1, jump_length)}
    level, levels = n_steps, [n_steps]
    while level > 0:
        level -= 1
        levels.append(level)
        if left.get(level, 0) > 0:
            left[level] -= 1
            for _ in range(jump_length):
                level += 1
                levels.append(level)
    return levels


@torch.no_grad()
def sample_repaint(
    predict: Callable[[torch.Tensor, Any], torch.Tensor],
    noise: torch.Tensor,
    scheduler: DDIMScheduler,
    num_inference_steps: int,
    image: torch.Tensor,
    inpaint_mask: torch.Tensor,
    generator: torch.Generator | None,
    jump_length: int = 8,
    jump_n_sample: int = 10,
    start_step: int = 0,
) -> torch.Tensor:
    """Inpaint with an unconditional model (RePaint, Lugmayr et al. 2022, algorithm 1; thesis 3.2).

    After every step towards the image the known part is replaced by the known image, noised to that level; jumps
    back add noise to both, so that the model can make them fit. Steps are deterministic (eta = 0), as in the thesis.

    Parameters
    ----------
    predict, noise, scheduler, num_inference_steps : see `sample_ddim`
    image : tensor
        The known image; inside the mask it is read only if `start_step` is above zero.
    inpaint_mask : bool tensor
        True = to be painted.
    generator : torch.Generator
        Of the noise of the known part and of the jumps.
    jump_length, jump_n_sample : int
        See `repaint_schedule`.
    start_step : int
        SDEdit: start from the image, noised, with so many steps left; 0 starts from noise. With no more steps than
        `jump_length` there are no jumps, at any `jump_n_sample`: so it was in the thesis' synthesis.

    Returns
    -------
    tensor of the shape of `noise`; equal to the image where it is known
    """
    check_start(start_step, num_inference_steps)
    timesteps = inference_timesteps(scheduler, num_inference_steps)
    # alphas_cumprod per level: level 0 is the image, level n the time step that the n-th last step starts from.
    # (`add_noise` of diffusers leaves alphas_cumprod on the device of what it last noised)
    alphas_cumprod = scheduler.alphas_cumprod.to(noise.device)[timesteps.to(noise.device)]
    levels_of = torch.cat([torch.ones(1, device=noise.device), alphas_cumprod.flip(0)])
    n_steps = start_step or num_inference_steps
    known = torch.where(inpaint_mask, 0, image)

    def noised(x: torch.Tensor, keep: torch.Tensor, new_noise: torch.Tensor | None = None) -> torch.Tensor:
        if new_noise is None:
            new_noise = torch.randn(x.shape, generator=generator).to(x.device)
        return keep.sqrt() * x + (1 - keep).sqrt() * new_noise

    noisy_image = noised(image, levels_of[n_steps], noise) if start_step else noise
    way = repaint_schedule(n_steps, jump_length, jump_n_sample)
    for level, next_level in zip(way[:-1], way[1:]):
        if next_level > level:
            noisy_image = noised(noisy_image, levels_of[next_level] / levels_of[level])
            continue
        timestep = timesteps[len(timesteps) - level]
        prediction = predict(noisy_image, timestep)
        clean, noise_in_it = split_prediction(prediction, noisy_image, levels_of[level], scheduler)
        keep = levels_of[next_level]
        unknown = keep.sqrt() * clean + (1 - keep).sqrt() * noise_in_it
        noisy_image = torch.where(inpaint_mask, unknown, noised(known, keep))
    return noisy_image


def split_prediction(
    prediction: torch.Tensor, noisy_image: torch.Tensor, alpha_cumprod: torch.Tensor, scheduler: DDIMScheduler
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a noisy image into the image and the noise that a prediction implies (DDIM, Eq. 12.

    V: Salimans and Ho 2022).
    """
    signal, sigma = alpha_cumprod.sqrt(), (1 - alpha_cumprod).sqrt()
    if scheduler.config.prediction_type == 'v_prediction':
        image, noise = signal * noisy_image - sigma * prediction, signal * prediction + sigma * noisy_image
    else:
        image, noise = (noisy_image - sigma * prediction) / signal, prediction
    if scheduler.config.clip_sample:
        image = image.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    return image, noise
