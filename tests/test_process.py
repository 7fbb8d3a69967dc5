"""The noise process against diffusers, its own inverses and the paper's limits."""

import pickle
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr as diffusers_rescale

from dreamlit.errors import ModelError
from dreamlit.process import Diffusion, rescale_zero_terminal_snr

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # Stable Diffusion's schedule
PLAIN = torch.cumprod(1 - BETAS, dim=0)
ZERO_TERMINAL = rescale_zero_terminal_snr(PLAIN)
TYPES = ["epsilon", "v_prediction"]
SCHEDULES = [pytest.param(PLAIN, id="plain"), pytest.param(ZERO_TERMINAL, id="zero_terminal")]


def latents(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scheduler(**options) -> DDPMScheduler:
    ddpm = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **options)
    ddpm.alphas_cumprod = ddpm.alphas_cumprod.double()  # its own float32 table, read exactly
    return ddpm


@pytest.mark.parametrize("zero_terminal", [False, True])
def test_noise_and_v_target_equal_diffusers(zero_terminal):
    ddpm = scheduler(rescale_betas_zero_snr=zero_terminal)
    process = Diffusion(ddpm.alphas_cumprod, "v_prediction")
    t: Any = torch.arange(1000)  # diffusers asks for an IntTensor and means any integer tensor
    x0, eps = latents(1000), latents(1000, seed=1)
    torch.testing.assert_close(process.noise(x0, eps, t), ddpm.add_noise(x0, eps, t), rtol=0, atol=1e-14)
    torch.testing.assert_close(process.target(x0, eps, t), ddpm.get_velocity(x0, eps, t), rtol=0, atol=1e-14)


def test_any_epsilon_prediction_at_pure_noise_means_x0_zero():
    process, t = Diffusion(ZERO_TERMINAL, "epsilon"), torch.tensor([999])
    assert torch.equal(process.x0_from(latents(1), latents(1, seed=1), t), torch.zeros(1, 2, 3, 4, dtype=torch.float64))


def test_epsilon_target_is_the_noise():
    eps = latents(2)
    assert Diffusion(PLAIN, "epsilon").target(latents(2, seed=1), eps, torch.tensor([0, 999])) is eps


def test_zero_terminal_rescaling_equals_diffusers_and_ends_in_exact_zero():
    theirs = torch.cumprod(1 - diffusers_rescale(BETAS), dim=0)
    torch.testing.assert_close(ZERO_TERMINAL, theirs, rtol=1e-9, atol=1e-15)
    assert ZERO_TERMINAL[-1] == 0
    assert ZERO_TERMINAL[0] == pytest.approx(PLAIN[0].item(), rel=1e-12)
    assert Diffusion(ZERO_TERMINAL).snr(torch.tensor([999])) == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_variance_is_preserved_and_snr_is_its_ratio(schedule):
    process, t = Diffusion(schedule), torch.arange(1000)
    alpha, sigma = process.alpha_sigma(t, torch.float64)
    assert alpha.shape == sigma.shape == (1000, 1, 1, 1)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-15)
    torch.testing.assert_close(process.snr(t), (alpha / sigma).square().flatten(), rtol=1e-12, atol=0)
    assert process.snr(t).dtype == torch.float64


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction_type", TYPES)
def test_x0_from_inverts_noise_and_target(schedule, prediction_type):
    process = Diffusion(schedule, prediction_type)
    t = torch.arange(1000)
    x0, eps = latents(1000), latents(1000, seed=1)
    found = process.x0_from(process.target(x0, eps, t), process.noise(x0, eps, t), t)
    known = (schedule > 0) | (prediction_type == "v_prediction")  # at alpha 0 only v knows x0
    torch.testing.assert_close(found[known], x0[known], rtol=0, atol=1e-9)
    assert torch.equal(found[~known], torch.zeros_like(found[~known]))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction_type", TYPES)
def test_target_at_is_the_target_without_drift_and_leads_back_with_it(schedule, prediction_type):
    process = Diffusion(schedule, prediction_type)
    t = torch.arange(1000)
    x0, eps, drifted = latents(1000), latents(1000, seed=1), latents(1000, seed=2)
    undrifted = process.target_at(process.noise(x0, eps, t), x0, t)
    torch.testing.assert_close(undrifted, process.target(x0, eps, t), rtol=0, atol=1e-11)
    back = process.x0_from(process.target_at(drifted, x0, t), drifted, t)
    if prediction_type == "v_prediction":
        known = schedule >= 0
        error = (back - x0).abs().flatten(1).amax(1)
        assert error[known].max() < 1e-11
    else:
        known = schedule > 0
        torch.testing.assert_close(back[known], x0[known], rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_eps_error_scale_is_the_squared_ratio_of_the_errors(prediction_type):
    process, t = Diffusion(PLAIN, prediction_type), torch.tensor([3, 500, 998])
    x0, other, x_t = latents(3), latents(3, seed=1), latents(3, seed=2)
    alpha, sigma = process.alpha_sigma(t, torch.float64)

    def eps_behind(clean):
        return (x_t - alpha * clean) / sigma

    eps_error = (eps_behind(x0) - eps_behind(other)).square().sum((1, 2, 3))
    error = (process.target_at(x_t, x0, t) - process.target_at(x_t, other, t)).square().sum((1, 2, 3))
    torch.testing.assert_close(process.eps_error_scale(t), eps_error / error, rtol=1e-10, atol=0)


def test_uniform_u_gives_each_timestep_equally_often():
    process = Diffusion([0.9, 0.7, 0.2, 0.1])
    drawn = [process.timestep((i + 0.5) / 400) for i in range(400)]
    assert [drawn.count(t) for t in range(4)] == [100] * 4
    assert process.timestep(0.0) == 0
    assert Diffusion(PLAIN).timestep(1 - 2**-53) == 999


@pytest.mark.parametrize("u", [-0.1, 1.0, float("nan")])
def test_timestep_refuses_shares_outside_the_schedule(u):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Diffusion(PLAIN).timestep(u)


def test_half_precision_latents_are_noised_in_float32():
    process, t = Diffusion(PLAIN), torch.tensor([500, 999])
    x0, eps = latents(2).bfloat16(), latents(2, seed=1).bfloat16()
    x_t = process.noise(x0, eps, t)
    assert x_t.dtype == torch.float32
    torch.testing.assert_close(x_t, process.noise(x0.double(), eps.double(), t).float(), rtol=0, atol=1e-6)


def test_process_survives_pickling_without_its_device_tables():
    process = Diffusion(ZERO_TERMINAL, "v_prediction")
    process.snr(torch.tensor([5]))
    copy = pickle.loads(pickle.dumps(process))
    assert (copy.prediction_type, copy._tables) == ("v_prediction", {})
    assert torch.equal(copy.alphas_cumprod, process.alphas_cumprod)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([0.9], "at least 2"),
        ([[0.9, 0.1]], "shape"),
        ([1.0, 0.5], r"\[0, 1\)"),
        ([0.9, float("nan")], r"\[0, 1\)"),
        ([0.5, -0.1], r"\[0, 1\)"),
        ([0.9, 0.5, 0.5, 0.1], "does not fall at t = 2"),
    ],
)
def test_a_table_that_is_no_schedule_is_refused(table, says):
    with pytest.raises(ModelError, match=says):
        Diffusion(table)


def test_other_prediction_types_are_refused_by_name():
    with pytest.raises(ModelError, match=r"'sample'.*Allowed: epsilon, v_prediction"):
        Diffusion(PLAIN, "sample")
    with pytest.raises(ModelError, match="did you mean 'v_prediction'"):
        Diffusion(PLAIN, "v-prediction")


def test_timesteps_of_another_shape_or_kind_are_refused():
    for t in (torch.tensor(5), torch.tensor([0.5])):
        with pytest.raises(ValueError, match=r"integers of shape \[B\]"):
            Diffusion(PLAIN).snr(t)
