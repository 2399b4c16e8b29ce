import numpy as np
import pytest
import torch
from diffusers import RePaintScheduler

from bids_lesionfill.diffusion import process

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
    scheduler = process.build_scheduler('linear', 'epsilon')
    alphas_cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), alphas_cumprod, rtol=1e-4)
    assert scheduler.config.timestep_spacing == 'leading'


def test_v_prediction_schedule_ends_in_pure_noise_and_sampling_starts_there():
    scheduler = process.build_scheduler('linear', 'v_prediction')
    assert scheduler.alphas_cumprod[-1] == 0
    for n_steps in (1, 5, 50):
        scheduler.set_timesteps(n_steps)
        assert scheduler.timesteps[0] == 999
        assert len(scheduler.timesteps) == n_steps


def test_epsilon_schedule_keeps_some_signal_at_its_end():
    assert process.build_scheduler('linear', 'epsilon').alphas_cumprod[-1] > 0


@pytest.mark.parametrize('noise_schedule', ['linear', 'scaled_linear', 'squaredcos_cap_v2'])
@pytest.mark.parametrize('prediction_type', KINDS)
def test_signal_falls_with_every_time_step(noise_schedule, prediction_type):
    scheduler = process.build_scheduler(noise_schedule, prediction_type, num_train_timesteps=100)
    assert len(scheduler.alphas_cumprod) == 100
    assert (scheduler.alphas_cumprod.diff() < 0).all()
    assert scheduler.config.prediction_type == prediction_type


def test_predictions_are_not_clipped(oracle):
    image = torch.full(SHAPE, 7.0, dtype=torch.float64)  # a residual may well leave [-1, 1]
    scheduler = process.build_scheduler('linear', 'epsilon')
    sampled = process.sample_ddim(oracle(image, scheduler), torch.zeros_like(image), scheduler, 5)
    torch.testing.assert_close(sampled, image, atol=1e-3, rtol=0)


# Sampling


@pytest.mark.parametrize('num_inference_steps', [1, 5, 50])
@pytest.mark.parametrize('prediction_type', KINDS)
def test_sampling_with_an_oracle_returns_the_truth(image, noise, oracle, prediction_type, num_inference_steps):
    scheduler = process.build_scheduler('linear', prediction_type)
    sampled = process.sample_ddim(oracle(image, scheduler), noise, scheduler, num_inference_steps)
    torch.testing.assert_close(sampled, image, atol=1e-5, rtol=0)


@pytest.mark.parametrize('prediction_type', KINDS)
def test_sampling_without_an_oracle_does_not(image, noise, prediction_type):
    scheduler = process.build_scheduler('linear', prediction_type)
    sampled = process.sample_ddim(lambda noisy_image, _: torch.zeros_like(noisy_image), noise, scheduler, 5)
    assert (sampled - image).abs().mean() > 0.1


@pytest.mark.parametrize('num_inference_steps', [1, 5])
def test_sampler_walks_the_time_steps_from_noise_to_image(image, noise, oracle, num_inference_steps):
    scheduler = process.build_scheduler('linear', 'v_prediction')
    truth, walked, first = oracle(image, scheduler), [], []

    def predict(noisy_image, timestep):
        walked.append(int(timestep))
        first.append(noisy_image)
        return truth(noisy_image, timestep)

    process.sample_ddim(predict, noise, scheduler, num_inference_steps)
    assert walked == [999, 799, 599, 399, 199][:num_inference_steps]
    assert torch.equal(first[0], noise)


def test_sampling_is_deterministic_and_leaves_the_noise_alone(noise, oracle, image):
    scheduler = process.build_scheduler('linear', 'v_prediction')
    blurred = oracle(0 * image, scheduler)
    before = noise.clone()

    def predict(noisy_image, timestep):  # an oracle with a flaw, so that the result depends on the noise
        return blurred(noisy_image, timestep) + 0.1 * noisy_image

    first, again = (process.sample_ddim(predict, noise, scheduler, 5) for _ in range(2))
    other = process.sample_ddim(predict, noise + 1, scheduler, 5)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(noise, before)


def test_sampling_tracks_no_gradient(noise):
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    scheduler = process.build_scheduler('linear', 'epsilon')
    assert not process.sample_ddim(lambda x, _: weight * x, noise, scheduler, 2).requires_grad


# Training


def test_timesteps_are_uniform_over_all(generator):
    timesteps = process.sample_timesteps(20_000, 10, 0.0, generator)
    counts = torch.bincount(timesteps, minlength=10)
    assert len(counts) == 10
    assert (counts / 20_000 - 0.1).abs().max() < 0.01


def test_share_at_end_of_the_timesteps_is_the_last_one(generator):
    assert (process.sample_timesteps(50, 1000, 1.0, generator) == 999).all()
    share = (process.sample_timesteps(20_000, 1000, 0.5, generator) == 999).double().mean()
    assert share == pytest.approx(0.5, abs=0.02)
    assert (process.sample_timesteps(20_000, 1000, 0.0, generator) == 999).double().mean() < 0.01


def test_timesteps_depend_on_the_generator_alone():
    first, again, other = (
        process.sample_timesteps(8, 1000, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_target_is_the_noise_or_the_velocity(image, noise):
    timesteps = torch.tensor([30, 999])
    scheduler = process.build_scheduler('linear', 'epsilon')
    assert torch.equal(process.target_of(scheduler, image, noise, timesteps), noise)

    scheduler = process.build_scheduler('linear', 'v_prediction')
    a = scheduler.alphas_cumprod[timesteps].double().view(2, 1, 1, 1, 1)
    target = process.target_of(scheduler, image, noise, timesteps)
    torch.testing.assert_close(target, a.sqrt() * noise - (1 - a).sqrt() * image, atol=1e-5, rtol=0)
    torch.testing.assert_close(target[1], -image[1])  # at the end the network has to name the image itself


@pytest.mark.parametrize('inside_mask_only', [False, True])
@pytest.mark.parametrize('prediction_type', KINDS)
def test_loss_of_an_oracle_is_zero_and_of_another_is_not(image, noise, mask, oracle, prediction_type, inside_mask_only):
    scheduler = process.build_scheduler('linear', prediction_type)
    timesteps = torch.tensor([400, 900])

    def network(slabs, timesteps):  # each slab has its own time step
        return torch.cat(
            [
                oracle(truth, scheduler)(slab[None, :1], timestep)
                for truth, slab, timestep in zip(image.split(1), slabs, timesteps, strict=True)
            ]
        )

    loss = process.diffusion_loss(network, image, mask, mask, scheduler, timesteps, noise, inside_mask_only)
    assert loss.shape == (2,)
    torch.testing.assert_close(loss, torch.zeros(2, dtype=torch.float64), atol=1e-8, rtol=0)
    wrong = process.diffusion_loss(
        lambda slabs, t: network(slabs, t) + 0.5, image, mask, mask, scheduler, timesteps, noise, inside_mask_only
    )
    torch.testing.assert_close(wrong, torch.full((2,), 0.25, dtype=torch.float64), atol=1e-4, rtol=0)


def test_network_is_given_noisy_image_then_conditions(image, noise, mask):
    scheduler = process.build_scheduler('linear', 'epsilon')
    timesteps = torch.tensor([100, 600])
    conditions = torch.cat([image * (1 - mask), mask], dim=1)
    seen = {}

    def network(slabs, given_timesteps):
        seen.update(slabs=slabs, timesteps=given_timesteps)
        return torch.zeros_like(slabs[:, :1])

    process.diffusion_loss(network, image, conditions, mask, scheduler, timesteps, noise, inside_mask_only=False)
    a = scheduler.alphas_cumprod[timesteps].double().view(2, 1, 1, 1, 1)
    torch.testing.assert_close(seen['slabs'][:, :1], a.sqrt() * image + (1 - a).sqrt() * noise, atol=1e-6, rtol=0)
    assert torch.equal(seen['slabs'][:, 1:], conditions)
    assert torch.equal(seen['timesteps'], timesteps)


def test_loss_inside_the_mask_ignores_the_rest(image, noise, mask):
    scheduler = process.build_scheduler('linear', 'v_prediction')
    arguments = mask, mask, scheduler, torch.tensor([100, 600])

    def network(slabs, _):
        assert not (slabs[:, :1] * (1 - mask)).any()  # neither noise nor truth outside the mask
        return slabs[:, :1]

    outside = 5 * torch.ones_like(image) * (1 - mask)
    usual = process.diffusion_loss(network, image, *arguments, noise)
    assert torch.equal(process.diffusion_loss(network, image + outside, *arguments, noise), usual)
    assert torch.equal(process.diffusion_loss(network, image, *arguments, noise + outside), usual)
    assert not torch.equal(process.diffusion_loss(network, image + mask, *arguments, noise), usual)


def test_loss_is_the_mean_over_each_slab_s_own_mask(image, mask):
    # The network errs by 1 everywhere: the mean is 1 in both slabs, though their masks differ in size.
    scheduler = process.build_scheduler('linear', 'epsilon')
    noise = torch.zeros_like(image)

    def loss(network, inside_mask_only):
        return process.diffusion_loss(
            network, image, mask, mask, scheduler, torch.tensor([5, 5]), noise, inside_mask_only
        ).tolist()

    assert mask[0].sum() != mask[1].sum()
    assert loss(lambda slabs, _: torch.ones_like(slabs[:, :1]), True) == pytest.approx([1, 1])
    assert loss(lambda slabs, _: torch.ones_like(slabs[:, :1]), False) == pytest.approx([1, 1])
    assert loss(lambda slabs, _: mask, True) == pytest.approx([1, 1])
    assert loss(lambda slabs, _: mask, False) == pytest.approx([9 / 144, 10 / 144])
    assert loss(lambda slabs, _: 3 * mask, True) == pytest.approx([9, 9])


def test_loss_of_an_empty_mask_is_zero_not_nan(image, noise):
    scheduler = process.build_scheduler('linear', 'epsilon')
    empty = torch.zeros_like(image)
    loss = process.diffusion_loss(
        lambda slabs, _: slabs[:, :1] + 1, image, empty, empty, scheduler, torch.tensor([5, 5]), noise
    )
    assert loss.tolist() == [0, 0]


def test_a_small_network_learns_to_denoise(tiny_unet, generator):
    """Thirty steps on one image bring the loss down: gradients flow through the whole loss."""
    image = torch.randn((2, 1, 3, 8, 8), generator=generator)
    everywhere = torch.ones_like(image)
    network = tiny_unet(in_channels=2).train()
    scheduler = process.build_scheduler('linear', 'v_prediction')
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        noise = torch.randn(image.shape, generator=generator)
        timesteps = process.sample_timesteps(2, 1000, 1.0, generator)
        loss = process.diffusion_loss(network, image, everywhere, everywhere, scheduler, timesteps, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])


# Loss weights (min-SNR)


def test_min_snr_weights_of_the_noise_by_hand():
    scheduler = process.build_scheduler('linear', 'epsilon')
    scheduler.alphas_cumprod = torch.tensor([0.99, 0.9, 0.5, 0.1])  # SNR 99, 9, 1, 1/9
    weights = process.min_snr_weights(scheduler, torch.arange(4))
    torch.testing.assert_close(weights, torch.tensor([5 / 99, 5 / 9, 1, 1]), atol=1e-5, rtol=0)
    weights = process.min_snr_weights(scheduler, torch.tensor([1, 1, 3]), gamma=0.5)
    torch.testing.assert_close(weights, torch.tensor([0.5 / 9, 0.5 / 9, 1]), atol=1e-5, rtol=0)


def test_min_snr_weights_of_v_by_hand():
    scheduler = process.build_scheduler('linear', 'v_prediction')
    scheduler.alphas_cumprod = torch.tensor([0.99, 0.9, 0.5, 0.1, 0.0])
    weights = process.min_snr_weights(scheduler, torch.arange(5))
    torch.testing.assert_close(weights, torch.tensor([0.05, 0.5, 0.5, 0.1, 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize('prediction_type', KINDS)
def test_min_snr_weights_are_finite_at_every_time_step(prediction_type):
    scheduler = process.build_scheduler('linear', prediction_type)
    weights = process.min_snr_weights(scheduler, torch.arange(1000))
    assert weights.shape == (1000,)
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    assert weights.max() <= 1


def test_min_snr_weight_of_the_noise_is_finite_without_any_signal():
    scheduler = process.build_scheduler('linear', 'epsilon')
    scheduler.alphas_cumprod = torch.tensor([0.5, 0.0])
    torch.testing.assert_close(process.min_snr_weights(scheduler, torch.tensor([1, 0])), torch.ones(2))


# Starting from an image (SDEdit)


@pytest.mark.parametrize('start_step', [1, 3, 10])
@pytest.mark.parametrize('prediction_type', KINDS)
def test_sampling_from_an_image_with_an_oracle_returns_the_truth(image, noise, oracle, prediction_type, start_step):
    scheduler = process.build_scheduler('linear', prediction_type)
    painting = image + 1
    for start in (image, painting):
        sampled = process.sample_ddim(oracle(image, scheduler), noise, scheduler, 10, start, start_step)
        torch.testing.assert_close(sampled, image, atol=1e-5, rtol=0)


@pytest.mark.parametrize(('start_step', 'walked'), [(1, [199]), (3, [599, 399, 199]), (5, [999, 799, 599, 399, 199])])
def test_sampling_from_an_image_takes_the_last_steps(image, noise, start_step, walked):
    scheduler = process.build_scheduler('linear', 'v_prediction')
    seen = []

    def predict(noisy_image, timestep):
        seen.append((int(timestep), noisy_image))
        return torch.zeros_like(noisy_image)

    process.sample_ddim(predict, noise, scheduler, 5, image, start_step)
    assert [timestep for timestep, _ in seen] == walked
    a = scheduler.alphas_cumprod[walked[0]].double()
    torch.testing.assert_close(seen[0][1], a.sqrt() * image + (1 - a).sqrt() * noise, atol=1e-6, rtol=0)


def test_sampling_from_noise_does_not_read_the_image(image, noise, oracle):
    scheduler = process.build_scheduler('linear', 'epsilon')
    flawed = oracle(image, scheduler)

    def predict(noisy_image, timestep):
        return 0.9 * flawed(noisy_image, timestep)

    usual = process.sample_ddim(predict, noise, scheduler, 5)
    assert torch.equal(process.sample_ddim(predict, noise, scheduler, 5, image * torch.nan, start_step=0), usual)


@pytest.mark.parametrize('start_step', [1, 2, 5])
def test_network_that_sees_no_noise_leaves_what_was_added_by_hand(image, noise, start_step):
    """Without a prediction DDIM only scales: the image comes back with sqrt((1 - a) / a) of the noise on it."""
    scheduler = process.build_scheduler('linear', 'epsilon')
    sampled = process.sample_ddim(lambda x, _: torch.zeros_like(x), noise, scheduler, 5, image, start_step)
    a = float(np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: 200 * (start_step - 1) + 1]))
    torch.testing.assert_close(sampled, image + ((1 - a) / a) ** 0.5 * noise, atol=1e-3, rtol=1e-3)


# The way of RePaint


def test_way_of_repaint_by_hand():
    """From the published algorithm (Lugmayr et al. 2022, appendix B): jumps at times 0, 3, 6: levels 1, 4, 7."""
    down_and_up = [10, 9, 8, 7, 8, 9, 10, 9, 8, 7, 6, 5, 4, 5, 6, 7, 6, 5, 4, 3, 2, 1, 2, 3, 4, 3, 2, 1, 0]
    assert process.repaint_schedule(10, 3, 2) == down_and_up


@pytest.mark.parametrize(
    'arguments', [(50, 8, 10), (250, 10, 10), (10, 3, 2), (100, 7, 3), (9, 8, 2), (8, 8, 10), (3, 8, 10)]
)
def test_way_of_repaint_is_the_one_of_diffusers(arguments):
    """diffusers and the paper's code list times, the first is `n_steps` - 1; time t is level t + 1, the image is 0."""
    scheduler = RePaintScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(*arguments)
    times = scheduler.timesteps // (1000 // arguments[0])
    assert process.repaint_schedule(*arguments) == [*(times + 1).tolist(), 0]


@pytest.mark.parametrize(
    ('arguments', 'passes', 'jumps'), [((50, 8, 10), 482, 6 * 9), ((250, 10, 10), 2410, 24 * 9), ((10, 3, 2), 19, 3)]
)
def test_network_passes_of_the_thesis_and_of_the_paper(arguments, passes, jumps):
    way = np.array(process.repaint_schedule(*arguments))
    steps = np.diff(way)
    assert (way[0], way[-1]) == (arguments[0], 0)
    assert set(steps) == {-1, 1}
    assert (steps == -1).sum() == passes
    assert (steps == 1).sum() == jumps * arguments[1]
    assert len(way) == 1 + passes + jumps * arguments[1]


def test_thesis_settings_are_the_default_way():
    way = process.repaint_schedule(50)
    assert way == process.repaint_schedule(50, 8, 10)
    assert len(way) - 1 == 914  # its entries; the image, level 0, is no entry there


def test_paper_s_way_first_descends_to_the_first_jump_then_repeats_it():
    way = process.repaint_schedule(250, 10, 10)
    assert way[:20] == list(range(250, 230, -1))  # down to time 230, which is level 231
    up_and_down = [*range(232, 242), *range(240, 230, -1)]
    assert way[19 : 19 + 1 + 9 * 20] == [231] + 9 * up_and_down
    assert way[200:210] == list(range(230, 220, -1))


@pytest.mark.parametrize('arguments', [(50, 8, 1), (10, 3, 1), (7, 10, 5), (1, 8, 10)])
def test_one_sample_or_too_few_steps_are_a_straight_descent(arguments):
    assert process.repaint_schedule(*arguments) == list(range(arguments[0], -1, -1))


# RePaint


@pytest.fixture
def inpaint_mask(mask):
    return mask.bool()


def repaint(
    predict, noise, scheduler, image, inpaint_mask, seed=1, steps=10, jump_length=3, jump_n_sample=2, **options
):
    generator = torch.Generator().manual_seed(seed)
    return process.sample_repaint(
        predict, noise, scheduler, steps, image, inpaint_mask, generator, jump_length, jump_n_sample, **options
    )


@pytest.mark.parametrize('jumps', [(3, 2), (1, 3), (2, 1)])
@pytest.mark.parametrize('prediction_type', KINDS)
def test_repaint_with_an_oracle_returns_truth_inside_and_image_outside(
    image, noise, inpaint_mask, oracle, prediction_type, jumps
):
    scheduler = process.build_scheduler('linear', prediction_type)
    voided = torch.where(inpaint_mask, torch.nan, image)
    sampled = repaint(
        oracle(image, scheduler), noise, scheduler, voided, inpaint_mask, jump_length=jumps[0], jump_n_sample=jumps[1]
    )
    assert torch.equal(sampled[~inpaint_mask], image[~inpaint_mask])
    torch.testing.assert_close(sampled[inpaint_mask], image[inpaint_mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize('prediction_type', KINDS)
def test_repaint_of_everything_without_jumps_is_ddim(image, noise, oracle, prediction_type):
    scheduler = process.build_scheduler('linear', prediction_type)
    flawed = oracle(image, scheduler)

    def predict(noisy_image, timestep):
        return 0.8 * flawed(noisy_image, timestep) + 0.1

    everywhere = torch.ones(SHAPE, dtype=torch.bool)
    for start_step in (0, 4):
        sampled = repaint(predict, noise, scheduler, image, everywhere, jump_n_sample=1, start_step=start_step)
        expected = process.sample_ddim(predict, noise, scheduler, 10, image, start_step)
        assert (expected - image).abs().mean() > 0.01
        torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=1e-4)


def test_repaint_depends_on_image_outside_on_noise_and_on_the_generator(image, noise, inpaint_mask):
    scheduler = process.build_scheduler('linear', 'v_prediction')

    def predict(noisy_image, _):  # looks at its neighbours, as networks do
        return 0.5 * noisy_image - 0.3 * noisy_image.roll(1, -1)

    first = repaint(predict, noise, scheduler, image, inpaint_mask)
    assert torch.equal(repaint(predict, noise, scheduler, image, inpaint_mask), first)
    assert torch.equal(repaint(predict, noise, scheduler, image + 9 * inpaint_mask, inpaint_mask), first)
    for other in (
        repaint(predict, noise, scheduler, image, inpaint_mask, seed=2),
        repaint(predict, noise, scheduler, image + 1, inpaint_mask),
        repaint(predict, noise, scheduler, image, inpaint_mask, jump_n_sample=1),
    ):
        assert not torch.allclose(other[inpaint_mask], first[inpaint_mask], atol=1e-3)


def test_repaint_leaves_image_and_noise_alone(image, noise, inpaint_mask):
    before = image.clone(), noise.clone()
    scheduler = process.build_scheduler('linear', 'epsilon')
    repaint(lambda x, _: 0.5 * x, noise, scheduler, image, inpaint_mask, start_step=5)
    assert torch.equal(image, before[0])
    assert torch.equal(noise, before[1])


@pytest.mark.parametrize('prediction_type', KINDS)
def test_known_part_has_the_noise_of_its_level(prediction_type):
    """Signal sqrt(a) and variance 1 - a at every network pass, after steps down and after jumps up."""
    scheduler = process.build_scheduler('linear', prediction_type)
    shape = (1, 1, 4, 100, 100)
    inpaint_mask = torch.zeros(shape, dtype=torch.bool)
    inpaint_mask[..., :50] = True
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    seen = []

    def predict(noisy_image, timestep):
        seen.append(timestep)
        a = scheduler.alphas_cumprod[timestep]
        known = noisy_image[~inpaint_mask]
        if len(seen) > 1:  # sampling starts from noise alone, also where the schedule keeps some signal
            assert known.mean() == pytest.approx(float(3 * a.sqrt()), abs=0.05)
        assert known.var() == pytest.approx(float(1 - a), rel=0.06)
        return torch.zeros_like(noisy_image)

    repaint(predict, noise, scheduler, torch.full(shape, 3.0), inpaint_mask)
    assert len(seen) == 19


def test_known_part_gets_new_noise_at_every_level():
    scheduler = process.build_scheduler('linear', 'epsilon')
    shape = (1, 1, 4, 50, 50)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    seen = []

    def predict(noisy_image, _):
        seen.append(noisy_image.flatten())
        return torch.zeros_like(noisy_image)

    nowhere = torch.zeros(shape, dtype=torch.bool)
    repaint(predict, noise, scheduler, torch.zeros(shape), nowhere, steps=5, jump_n_sample=1)
    correlations = torch.corrcoef(torch.stack(seen)) - torch.eye(5)
    assert correlations.abs().max() < 0.05


def test_repainted_part_is_noised_by_jumps_alone():
    """With an oracle of zero there is nothing but noise inside the mask: variance 1 - a at every pass as well."""
    scheduler = process.build_scheduler('linear', 'v_prediction')
    shape = (1, 1, 4, 100, 100)
    everywhere = torch.ones(shape, dtype=torch.bool)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    seen = []

    def predict(noisy_image, timestep):
        a = scheduler.alphas_cumprod[timestep]
        seen.append(noisy_image)
        assert noisy_image.var() == pytest.approx(float(1 - a), rel=0.06)
        return a.sqrt() * noisy_image / (1 - a).sqrt()

    repaint(predict, noise, scheduler, torch.zeros(shape), everywhere)
    correlation = [float(np.corrcoef(noisy.flatten(), noise.flatten())[0, 1]) for noisy in seen]
    assert correlation[:3] == pytest.approx([1, 1, 1])  # steps down are deterministic
    assert abs(correlation[3]) < 0.05  # the jump reaches the first level: pure, new noise


@pytest.mark.parametrize('start_step', [0, 5])
def test_repaint_asks_the_network_at_the_time_steps_of_diffusers(image, noise, inpaint_mask, start_step):
    scheduler = process.build_scheduler('linear', 'epsilon')
    walked = []

    def predict(noisy_image, timestep):
        walked.append(int(timestep))
        return torch.zeros_like(noisy_image)

    repaint(predict, noise, scheduler, image, inpaint_mask, start_step=start_step)
    reference = RePaintScheduler(num_train_timesteps=100 * (start_step or 10))
    reference.set_timesteps(start_step or 10, 3, 2)
    times = [*reference.timesteps.tolist(), -1]
    assert walked == [time for time, after in zip(times[:-1], times[1:]) if after < time]


@pytest.mark.parametrize('prediction_type', KINDS)
def test_repaint_from_an_image_with_an_oracle_returns_the_truth(image, noise, inpaint_mask, oracle, prediction_type):
    scheduler = process.build_scheduler('linear', prediction_type)
    painting = image + inpaint_mask
    for start_step in (1, 4, 10):
        sampled = repaint(oracle(image, scheduler), noise, scheduler, painting, inpaint_mask, start_step=start_step)
        assert torch.equal(sampled[~inpaint_mask], image[~inpaint_mask])
        torch.testing.assert_close(sampled[inpaint_mask], image[inpaint_mask], atol=1e-5, rtol=0)


def test_repaint_from_an_image_starts_at_its_level_of_noise(image, noise, inpaint_mask):
    scheduler = process.build_scheduler('linear', 'epsilon')
    seen = []

    def predict(noisy_image, timestep):
        seen.append((int(timestep), noisy_image))
        return torch.zeros_like(noisy_image)

    sampled = repaint(predict, noise, scheduler, image, inpaint_mask, start_step=3)  # too few steps to jump
    a = scheduler.alphas_cumprod[200].double()
    assert [timestep for timestep, _ in seen] == [200, 100, 0]
    torch.testing.assert_close(seen[0][1], a.sqrt() * image + (1 - a).sqrt() * noise, atol=1e-6, rtol=0)
    kept = image + ((1 - a) / a).sqrt() * noise
    torch.testing.assert_close(sampled[inpaint_mask], kept[inpaint_mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('prediction_type', KINDS)
def test_prediction_is_split_into_image_and_noise(image, noise, prediction_type):
    scheduler = process.build_scheduler('linear', prediction_type)
    for timestep in (0, 500, 900):
        a = scheduler.alphas_cumprod[timestep].double()
        noisy_image = a.sqrt() * image + (1 - a).sqrt() * noise
        v = a.sqrt() * noise - (1 - a).sqrt() * image
        prediction = v if prediction_type == 'v_prediction' else noise
        clean, noise_in_it = process.split_prediction(prediction, noisy_image, a, scheduler)
        torch.testing.assert_close(clean, image, atol=1e-6, rtol=0)
        torch.testing.assert_close(noise_in_it, noise, atol=1e-6, rtol=0)


@pytest.mark.parametrize('sampler', ['ddim', 'repaint'])
def test_sampling_cannot_start_before_its_first_step(sampler):
    scheduler, image = process.build_scheduler(), torch.zeros(1, 1, 2, 4, 4)
    sample, rest = process.sample_ddim, ()
    if sampler == 'repaint':
        sample, rest = process.sample_repaint, (image > 0, torch.Generator())
    with pytest.raises(ValueError, match='start_step is 7, expected 0 to 5'):
        sample(lambda x, t: x, image, scheduler, 5, image, *rest, start_step=7)


@pytest.mark.parametrize('sampler', ['ddim', 'repaint'])
def test_clipping_keeps_a_network_that_knows_nothing_in_range(sampler):
    """Without it the error at the first step is divided by sqrt(alphas_cumprod), about 0.008."""
    noise = torch.randn(1, 1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    results = []
    for clip_sample_range in (None, 1.5):
        scheduler = process.build_scheduler(clip_sample_range=clip_sample_range)
        if sampler == 'ddim':
            result = process.sample_ddim(lambda x, t: torch.zeros_like(x), noise, scheduler, 10)
        else:
            result = process.sample_repaint(
                lambda x, t: torch.zeros_like(x),
                noise,
                scheduler,
                10,
                torch.zeros_like(noise),
                torch.ones_like(noise, dtype=torch.bool),
                torch.Generator().manual_seed(0),
                jump_n_sample=1,
            )
        results.append(result.abs().max().item())
    assert results[0] > 50
    assert results[1] <= 1.5 + 1e-6


def test_repaint_works_after_training_left_the_schedule_on_another_device():
    """diffusers' `add_noise` moves alphas_cumprod for good; `meta` stands for a GPU."""
    scheduler = process.build_scheduler()
    there = torch.zeros(1, 1, 2, 4, 4, device='meta')
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to('meta')
    result = process.sample_repaint(
        lambda x, t: x, there, scheduler, 3, there, there > 0, torch.Generator().manual_seed(0), 1, 2
    )
    assert result.device.type == 'meta'
