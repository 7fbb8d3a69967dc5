"""Flow matching against diffusers' scheduler, its own definitions and the options that go with it."""

from __future__ import annotations

import pickle

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamlit.errors import ModelError
from dreamlit.flow import FlowMatching, ResolutionShift, from_scheduler
from dreamlit.objective import Objective
from dreamlit.rollout import rollout
from dreamlit.rollout_options import RolloutOptions
from dreamlit.weighting import timestep_weight

DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
CONFIGS = {
    "sd3": {"shift": 3.0},
    "plain": {},
    "flux dev": {**DYNAMIC, "shift": 3.0},
    "linear": {**DYNAMIC, "time_shift_type": "linear"},
    "other lengths": {**DYNAMIC, "base_image_seq_len": 100, "max_image_seq_len": 900, "max_shift": 2.0},
}
SHAPE = (16, 32, 48)


def latents(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", CONFIGS)
def test_even_shares_of_the_schedule_are_the_sigmas_that_diffusers_samples_at(name):
    scheduler = FlowMatchEulerDiscreteScheduler(**CONFIGS[name])
    process, steps = from_scheduler(dict(scheduler.config)).sized(SHAPE), 20
    even = [1 - i / steps for i in range(steps)]
    mu = None
    if "use_dynamic_shifting" in CONFIGS[name]:
        keys = "base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"
        mu = calculate_shift((32 // 2) * (48 // 2), *(scheduler.config[key] for key in keys))
    scheduler.set_timesteps(sigmas=even, mu=mu)
    ours = torch.tensor([process.timestep(u) if u < 1 else 1000.0 for u in even])
    torch.testing.assert_close(ours, scheduler.timesteps, rtol=1e-5, atol=1e-3)
    _, sigma = process.alpha_sigma(ours)
    torch.testing.assert_close(sigma.flatten(), scheduler.sigmas[:-1], rtol=1e-5, atol=1e-6)


def test_noise_is_what_diffusers_makes_of_it():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    t, x0, eps = scheduler.timesteps[[0, 10, 700]], latents(3, 0).float(), latents(3, 1).float()
    torch.testing.assert_close(FlowMatching(3.0).noise(x0, eps, t), scheduler.scale_noise(x0, t, eps))


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.4, ResolutionShift()])
def test_the_verbs_agree_with_each_other(shift):
    process = FlowMatching(shift).sized(SHAPE)
    t, x0, eps = torch.tensor([0.0, 3.7, 512.25, 1000.0]), latents(4, 0), latents(4, 1)
    x_t, velocity = process.noise(x0, eps, t), process.target(x0, eps, t)
    torch.testing.assert_close(process.x0_from(velocity, x_t, t), x0)
    torch.testing.assert_close(process.target_at(x_t, x0, t)[1:], velocity[1:], rtol=1e-6, atol=1e-6)
    assert process.target_at(x_t, x0, t)[0].abs().max() == 0  # nothing left to do
    wrong = process.x0_from(velocity + 1, x_t, t)
    alpha, sigma = process.alpha_sigma(t, torch.float64)
    eps_error = ((x_t - alpha * wrong)[1:] / sigma[1:] - eps[1:]).square().mean((1, 2, 3))
    torch.testing.assert_close(eps_error, process.eps_error_scale(t)[1:], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(process.snr(t), (alpha / sigma).square().flatten())
    there = process.at_position(process.position(t))
    torch.testing.assert_close(there, t, rtol=1e-5, atol=1e-4)


@given(u=st.floats(0, 1, exclude_max=True), shift=st.floats(0.01, 100))
@settings(max_examples=100, deadline=None)
def test_any_share_and_shift_give_a_timestep_and_back(u, shift):
    process = FlowMatching(shift)
    t = process.timestep(u)
    assert 0 <= t <= 1000
    assert float(process.position(torch.tensor([t], dtype=torch.float64))[0]) == pytest.approx(1000 * u, abs=1e-6)


def test_a_larger_image_gets_more_noise():
    objective, process = Objective(), FlowMatching(ResolutionShift())
    small, large = (objective.draw(process, 0, "a", 0, (16, side, side)).t for side in (32, 128))
    assert small < large
    assert (
        objective.draw(FlowMatching(2.0), 0, "a", 0, (16, 32, 32)).t
        == objective.draw(FlowMatching(2.0), 0, "a", 0, (16, 128, 128)).t
    )
    with pytest.raises(ValueError, match="sized"):
        process.timestep(0.5)


def test_a_rollout_takes_the_steps_that_the_sampler_takes():
    """From position 960 of 1000 in strides of 40 to where it ends: diffusers' own Euler walk of 25 steps."""
    process, seen = FlowMatching(3.0), []
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - i / 25 for i in range(25)])
    x0, eps = latents(1, 0), latents(1, 1)

    def predict(x, t, rows):
        seen.append(float(t))
        return 0.5 * x + 0.1

    x = process.noise(x0, eps, scheduler.timesteps[1:2])
    for t in scheduler.timesteps[1:11]:
        x = scheduler.step(0.5 * x + 0.1, t, x).prev_sample
    options = RolloutOptions(max_step_offset=10, sampler="euler", step_stride=40)
    end = scheduler.timesteps[11:12]
    found = rollout(predict, process, x0, eps, end, torch.tensor([10]), options)
    assert seen == pytest.approx(scheduler.timesteps[1:11].tolist(), abs=1e-2)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weighting", ["min_snr", "debiased"])
def test_weights_of_the_papers_are_finite_over_the_whole_path(weighting):
    t = torch.linspace(0, 1000, 101)
    weight = timestep_weight(FlowMatching(), t, torch.float64, weighting, 5.0)
    assert weight.isfinite().all() and (weight >= 0).all() and weight.max() > 0


def test_loader_workers_can_have_it():
    process = pickle.loads(pickle.dumps(FlowMatching(ResolutionShift())))
    assert process.sized(SHAPE).timestep(0.3) == FlowMatching(ResolutionShift()).sized(SHAPE).timestep(0.3)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"beta_start": 0.1, "num_train_timesteps": 1000, "_class_name": "DDIMScheduler"}, "DDIMScheduler"),
        ({}, "not of the flow kind"),
        ({"num_train_timesteps": 1000, "shift": 0}, "shift is 0"),
        ({"num_train_timesteps": 1000, "shift": "x"}, "shift is 'x'"),
        ({"num_train_timesteps": 1000, **DYNAMIC, "time_shift_type": "cubic"}, "allowed: exponential, linear"),
        ({"num_train_timesteps": 1000, **DYNAMIC, "max_image_seq_len": 256}, "must be above"),
    ],
)
def test_a_schedule_that_is_not_understood_is_refused(config, says):
    with pytest.raises(ModelError, match=says):
        from_scheduler(config)


def test_a_given_shift_replaces_the_models():
    assert from_scheduler({"num_train_timesteps": 1000, **DYNAMIC}, shift=2.0).shift == 2.0
    with pytest.raises(ModelError, match="shift is -1"):
        from_scheduler({"num_train_timesteps": 1000}, shift=-1)
