import numpy as np
import pytest
import torch

from bids_lesionfill import diffusion

SHAPE = (2, 1, 3, 8, 6)
KINDS = ['epsilon', 'v_prediction']


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(11)


@pytest.fixture
def image(generator):
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


@pytest.fixture
def noise(image, generator):  # after the image, from the same stream
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


@pytest.fixture
def mask():
    mask = torch.zeros(SHAPE, dtype=torch.float64)
    mask[:, :, 1, 2:5, 1:4] = 1
    mask[1, :, 2, 0, 0] = 1
    return mask


# Schedules


def test_epsilon_schedule_is_the_linear_one_of_the_thesis_by_hand():
    scheduler = diffusion.build_scheduler('linear', 'epsilon')
    alphas_cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), alphas_cumprod, rtol=1e-4)
    assert scheduler.config.timestep_spacing == 'leading'


def test_v_prediction_schedule_ends_in_pure_noise_and_sampling_starts_there():
    scheduler = diffusion.build_scheduler('linear', 'v_prediction')
    assert scheduler.alphas_cumprod[-1] == 0
    for n_steps in (1, 5, 50):
        scheduler.set_timesteps(n_steps)
        assert scheduler.timesteps[0] == 999
        assert len(scheduler.timesteps) == n_steps


def test_epsilon_schedule_keeps_some_signal_at_its_end():
    assert diffusion.build_scheduler('linear', 'epsilon').alphas_cumprod[-1] > 0


@pytest.mark.parametrize('noise_schedule', ['linear', 'scaled_linear', 'squaredcos_cap_v2'])
@pytest.mark.parametrize('prediction_type', KINDS)
def test_signal_falls_with_every_time_step(noise_schedule, prediction_type):
    scheduler = diffusion.build_scheduler(noise_schedule, prediction_type, num_train_timesteps=100)
    assert len(scheduler.alphas_cumprod) == 100
    assert (scheduler.alphas_cumprod.diff() < 0).all()
    assert scheduler.config.prediction_type == prediction_type


def test_predictions_are_not_clipped(oracle):
    image = torch.full(SHAPE, 7.0, dtype=torch.float64)  # a residual may well leave [-1, 1]
    scheduler = diffusion.build_scheduler('linear', 'epsilon')
    sampled = diffusion.sample_ddim(oracle(image, scheduler), torch.zeros_like(image), scheduler, 5)
    torch.testing.assert_close(sampled, image, atol=1e-3, rtol=0)


# Sampling


@pytest.mark.parametrize('num_inference_steps', [1, 5, 50])
@pytest.mark.parametrize('prediction_type', KINDS)
def test_sampling_with_an_oracle_returns_the_truth(image, noise, oracle, prediction_type, num_inference_steps):
    scheduler = diffusion.build_scheduler('linear', prediction_type)
    sampled = diffusion.sample_ddim(oracle(image, scheduler), noise, scheduler, num_inference_steps)
    torch.testing.assert_close(sampled, image, atol=1e-5, rtol=0)


@pytest.mark.parametrize('prediction_type', KINDS)
def test_sampling_without_an_oracle_does_not(image, noise, prediction_type):
    scheduler = diffusion.build_scheduler('linear', prediction_type)
    sampled = diffusion.sample_ddim(lambda noisy_image, _: torch.zeros_like(noisy_image), noise, scheduler, 5)
    assert (sampled - image).abs().mean() > 0.1


@pytest.mark.parametrize('num_inference_steps', [1, 5])
def test_sampler_walks_the_time_steps_from_noise_to_image(image, noise, oracle, num_inference_steps):
    scheduler = diffusion.build_scheduler('linear', 'v_prediction')
    truth, walked, first = oracle(image, scheduler), [], []

    def predict(noisy_image, timestep):
        walked.append(int(timestep))
        first.append(noisy_image)
        return truth(noisy_image, timestep)

    diffusion.sample_ddim(predict, noise, scheduler, num_inference_steps)
    assert walked == [999, 799, 599, 399, 199][:num_inference_steps]
    assert torch.equal(first[0], noise)


def test_sampling_is_deterministic_and_leaves_the_noise_alone(noise, oracle, image):
    scheduler = diffusion.build_scheduler('linear', 'v_prediction')
    blurred = oracle(0 * image, scheduler)
    before = noise.clone()

    def predict(noisy_image, timestep):  # an oracle with a flaw, so that the result depends on the noise
        return blurred(noisy_image, timestep) + 0.1 * noisy_image

    first, again = (diffusion.sample_ddim(predict, noise, scheduler, 5) for _ in range(2))
    other = diffusion.sample_ddim(predict, noise + 1, scheduler, 5)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(noise, before)


def test_sampling_tracks_no_gradient(noise):
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    scheduler = diffusion.build_scheduler('linear', 'epsilon')
    assert not diffusion.sample_ddim(lambda x, _: weight * x, noise, scheduler, 2).requires_grad


# Training


def test_timesteps_are_uniform_over_all(generator):
    timesteps = diffusion.sample_timesteps(20_000, 10, 0.0, generator)
    counts = torch.bincount(timesteps, minlength=10)
    assert len(counts) == 10
    assert (counts / 20_000 - 0.1).abs().max() < 0.01


def test_share_at_end_of_the_timesteps_is_the_last_one(generator):
    assert (diffusion.sample_timesteps(50, 1000, 1.0, generator) == 999).all()
    share = (diffusion.sample_timesteps(20_000, 1000, 0.5, generator) == 999).double().mean()
    assert share == pytest.approx(0.5, abs=0.02)
    assert (diffusion.sample_timesteps(20_000, 1000, 0.0, generator) == 999).double().mean() < 0.01


def test_timesteps_depend_on_the_generator_alone():
    first, again, other = (
        diffusion.sample_timesteps(8, 1000, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_target_is_the_noise_or_the_velocity(image, noise):
    timesteps = torch.tensor([30, 999])
    scheduler = diffusion.build_scheduler('linear', 'epsilon')
    assert torch.equal(diffusion.target_of(scheduler, image, noise, timesteps), noise)

    scheduler = diffusion.build_scheduler('linear', 'v_prediction')
    a = scheduler.alphas_cumprod[timesteps].double().view(2, 1, 1, 1, 1)
    target = diffusion.target_of(scheduler, image, noise, timesteps)
    torch.testing.assert_close(target, a.sqrt() * noise - (1 - a).sqrt() * image, atol=1e-5, rtol=0)
    torch.testing.assert_close(target[1], -image[1])  # at the end the network has to name the image itself


@pytest.mark.parametrize('inside_mask_only', [False, True])
@pytest.mark.parametrize('prediction_type', KINDS)
def test_loss_of_an_oracle_is_zero_and_of_another_is_not(image, noise, mask, oracle, prediction_type, inside_mask_only):
    scheduler = diffusion.build_scheduler('linear', prediction_type)
    timesteps = torch.tensor([400, 900])

    def network(slabs, timesteps):  # each slab has its own time step
        return torch.cat(
            [
                oracle(truth, scheduler)(slab[None, :1], timestep)
                for truth, slab, timestep in zip(image.split(1), slabs, timesteps, strict=True)
            ]
        )

    loss = diffusion.diffusion_loss(network, image, mask, mask, scheduler, timesteps, noise, inside_mask_only)
    assert loss.shape == (2,)
    torch.testing.assert_close(loss, torch.zeros(2, dtype=torch.float64), atol=1e-8, rtol=0)
    wrong = diffusion.diffusion_loss(
        lambda slabs, t: network(slabs, t) + 0.5, image, mask, mask, scheduler, timesteps, noise, inside_mask_only
    )
    torch.testing.assert_close(wrong, torch.full((2,), 0.25, dtype=torch.float64), atol=1e-4, rtol=0)


def test_network_is_given_noisy_image_then_conditions(image, noise, mask):
    scheduler = diffusion.build_scheduler('linear', 'epsilon')
    timesteps = torch.tensor([100, 600])
    conditions = torch.cat([image * (1 - mask), mask], dim=1)
    seen = {}

    def network(slabs, given_timesteps):
        seen.update(slabs=slabs, timesteps=given_timesteps)
        return torch.zeros_like(slabs[:, :1])

    diffusion.diffusion_loss(network, image, conditions, mask, scheduler, timesteps, noise, inside_mask_only=False)
    a = scheduler.alphas_cumprod[timesteps].double().view(2, 1, 1, 1, 1)
    torch.testing.assert_close(seen['slabs'][:, :1], a.sqrt() * image + (1 - a).sqrt() * noise, atol=1e-6, rtol=0)
    assert torch.equal(seen['slabs'][:, 1:], conditions)
    assert torch.equal(seen['timesteps'], timesteps)


def test_loss_inside_the_mask_ignores_the_rest(image, noise, mask):
    scheduler = diffusion.build_scheduler('linear', 'v_prediction')
    arguments = mask, mask, scheduler, torch.tensor([100, 600])

    def network(slabs, _):
        assert not (slabs[:, :1] * (1 - mask)).any()  # neither noise nor truth outside the mask
        return slabs[:, :1]

    outside = 5 * torch.ones_like(image) * (1 - mask)
    usual = diffusion.diffusion_loss(network, image, *arguments, noise)
    assert torch.equal(diffusion.diffusion_loss(network, image + outside, *arguments, noise), usual)
    assert torch.equal(diffusion.diffusion_loss(network, image, *arguments, noise + outside), usual)
    assert not torch.equal(diffusion.diffusion_loss(network, image + mask, *arguments, noise), usual)


def test_loss_is_the_mean_over_each_slab_s_own_mask(image, mask):
    # The network errs by 1 everywhere: the mean is 1 in both slabs, though their masks differ in size.
    scheduler = diffusion.build_scheduler('linear', 'epsilon')
    noise = torch.zeros_like(image)

    def loss(network, inside_mask_only):
        return diffusion.diffusion_loss(
            network, image, mask, mask, scheduler, torch.tensor([5, 5]), noise, inside_mask_only
        ).tolist()

    assert mask[0].sum() != mask[1].sum()
    assert loss(lambda slabs, _: torch.ones_like(slabs[:, :1]), True) == pytest.approx([1, 1])
    assert loss(lambda slabs, _: torch.ones_like(slabs[:, :1]), False) == pytest.approx([1, 1])
    assert loss(lambda slabs, _: mask, True) == pytest.approx([1, 1])
    assert loss(lambda slabs, _: mask, False) == pytest.approx([9 / 144, 10 / 144])
    assert loss(lambda slabs, _: 3 * mask, True) == pytest.approx([9, 9])


def test_loss_of_an_empty_mask_is_zero_not_nan(image, noise):
    scheduler = diffusion.build_scheduler('linear', 'epsilon')
    empty = torch.zeros_like(image)
    loss = diffusion.diffusion_loss(
        lambda slabs, _: slabs[:, :1] + 1, image, empty, empty, scheduler, torch.tensor([5, 5]), noise
    )
    assert loss.tolist() == [0, 0]


def test_a_small_network_learns_to_denoise(tiny_unet, generator):
    """Thirty steps on one image bring the loss down: gradients flow through the whole loss."""
    image = torch.randn((2, 1, 3, 8, 8), generator=generator)
    everywhere = torch.ones_like(image)
    network = tiny_unet(in_channels=2).train()
    scheduler = diffusion.build_scheduler('linear', 'v_prediction')
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        noise = torch.randn(image.shape, generator=generator)
        timesteps = diffusion.sample_timesteps(2, 1000, 1.0, generator)
        loss = diffusion.diffusion_loss(network, image, everywhere, everywhere, scheduler, timesteps, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
