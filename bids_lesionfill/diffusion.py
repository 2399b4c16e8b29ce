"""The diffusion process: noising, the training loss, the deterministic DDIM sampler. It knows no volume and no file.

Works on slabs `(batch, 1, slices, height, width)` with conditions `(batch, channels, slices, height, width)` that are
concatenated to the noisy image (thesis 3.2, Eq. 3.6). `scheduler` is a diffusers scheduler: it holds the noise
schedule and says what the network predicts (`prediction_type`: epsilon or v).
"""

import torch


def build_scheduler(noise_schedule='linear', prediction_type='epsilon', num_train_timesteps=1000):
    """The noise schedule: `DDIMScheduler` of diffusers (thesis 3.2 and table 3.1).

    With v-prediction the schedule is rescaled to end in pure noise, and sampling starts there (Lin et al. 2024,
    *Common diffusion noise schedules and sample steps are flawed*): one step then gives the mean of all fillings.

    Parameters
    ----------
    noise_schedule : {'linear', 'scaled_linear', 'squaredcos_cap_v2'}
    prediction_type : {'epsilon', 'v_prediction'}
    num_train_timesteps : int
    """
    from diffusers import DDIMScheduler  # takes seconds to import

    ends_in_noise = prediction_type == 'v_prediction'
    return DDIMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule=noise_schedule,
        prediction_type=prediction_type,
        clip_sample=False,
        rescale_betas_zero_snr=ends_in_noise,
        timestep_spacing='trailing' if ends_in_noise else 'leading',
    )


def sample_timesteps(batch_size, num_train_timesteps, share_at_end, generator):
    """Uniform training time steps, except that `share_at_end` of them are T: the step that one-step sampling uses."""
    timesteps = torch.randint(0, num_train_timesteps, (batch_size,), generator=generator)
    at_end = torch.rand(batch_size, generator=generator) < share_at_end
    return torch.where(at_end, num_train_timesteps - 1, timesteps)


def target_of(scheduler, image, noise, timesteps):
    """What the network has to predict: the noise, or v (Salimans and Ho 2022)."""
    if scheduler.config.prediction_type == 'v_prediction':
        return scheduler.get_velocity(image, noise, timesteps)
    return noise


def diffusion_loss(unet, image, conditions, mask, scheduler, timesteps, noise, inside_mask_only=True):
    """Squared error of the prediction (Eq. 3.6), inside the mask or over the whole slab.

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

    Returns
    -------
    (batch,) tensor
        Mean over the slab, or over its mask.
    """
    noisy_image = scheduler.add_noise(image, noise, timesteps)
    target = target_of(scheduler, image, noise, timesteps)
    if inside_mask_only:
        noisy_image = noisy_image * mask
    error = (unet(torch.cat([noisy_image, conditions], dim=1), timesteps) - target) ** 2
    if not inside_mask_only:
        return error.mean(dim=(1, 2, 3, 4))
    return (error * mask).sum(dim=(1, 2, 3, 4)) / mask.sum(dim=(1, 2, 3, 4)).clamp(min=1)


@torch.no_grad()
def sample_ddim(predict, noise, scheduler, num_inference_steps):
    """Deterministic sampling from noise to image (DDIM, Song et al. 2021, eta = 0).

    Parameters
    ----------
    predict : callable
        Takes the noisy image and one time step, gives what the network predicts; the conditions are inside it.
    noise : tensor
    scheduler : diffusers.DDIMScheduler
    num_inference_steps : int

    Returns
    -------
    tensor of the shape of `noise`
    """
    scheduler.set_timesteps(num_inference_steps)
    noisy_image = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        noisy_image = scheduler.step(predict(noisy_image, timestep), timestep, noisy_image).prev_sample
    return noisy_image
