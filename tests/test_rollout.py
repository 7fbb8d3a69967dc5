"""Rollouts against closed forms, diffusers' samplers and the rule that a draw depends on its own address alone."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from dreamlit.errors import ConfigError
from dreamlit.flow import FlowMatching
from dreamlit.process import Diffusion, Process, rescale_zero_terminal_snr
from dreamlit.rollout import rollout, rollout_target, step_weights
from dreamlit.rollout_options import RolloutOptions

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # Stable Diffusion's schedule
PLAIN = torch.cumprod(1 - BETAS, dim=0)
ZERO_TERMINAL = rescale_zero_terminal_snr(PLAIN)
MEAN, SPREAD = 0.7, 0.5
"""Data of the exact denoiser: independent Gaussian cells."""


PROCESSES = {
    "epsilon": Diffusion(PLAIN, "epsilon"),
    "v": Diffusion(PLAIN, "v_prediction"),
    "v_zero_terminal": Diffusion(ZERO_TERMINAL, "v_prediction"),
    "flow": FlowMatching(),
    "flow_shifted": FlowMatching(3.0),
}
SAMPLERS = [("ddim", None), ("euler", None), ("dpm", 2), ("unipc", 1), ("unipc", 2), ("unipc", 3)]
every_sampler = pytest.mark.parametrize(("sampler", "order"), SAMPLERS)
every_process = pytest.mark.parametrize("name", PROCESSES)


def latents(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def options(max_step_offset: int = 60, **others: Any) -> RolloutOptions:
    return RolloutOptions(max_step_offset=max_step_offset, **others)


def knowing(process: Process, x0: torch.Tensor):
    """The denoiser that knows the photos."""
    return lambda x, t, rows: process.target_at(x, x0[rows], t)


def exact(process: Process):
    """The best denoiser of Gaussian data: E[x0 | x_t] is linear in x_t."""

    def predict(x, t, rows=None):
        alpha, sigma = process.alpha_sigma(t, torch.float64)
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        return process.target_at(x, MEAN + gain * (x - alpha * MEAN), t)

    return predict


def exact_end(process: Process, x: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Where the probability flow of Gaussian data leads x: the distance from the mean scales with the deviation."""
    (a, s), (a_end, s_end) = process.alpha_sigma(start, torch.float64), process.alpha_sigma(end, torch.float64)
    scale = ((a_end * SPREAD) ** 2 + s_end**2).sqrt() / ((a * SPREAD) ** 2 + s**2).sqrt()
    return a_end * MEAN + scale * (x - a * MEAN)


@every_sampler
@every_process
def test_a_perfect_denoiser_leads_to_the_noised_photo_itself(sampler, order, name):
    process, t, k = PROCESSES[name], torch.tensor([0, 600, 339, 900, 966]), torch.tensor([5, 0, 20, 3, 1])
    x0, eps = latents(5), latents(5, seed=1)
    assert max(t + 33 * k) == 999  # where two of the processes have no signal left
    found = rollout(knowing(process, x0), process, x0, eps, t, k, options(sampler=sampler, order=order))
    torch.testing.assert_close(found, process.noise(x0, eps, t), rtol=0, atol=1e-10)


@every_process
def test_one_step_of_a_wrong_denoiser_drifts_by_the_closed_form(name):
    process, t = PROCESSES[name], torch.tensor([300, 966])
    x0, eps, error = latents(2), latents(2, seed=1), latents(2, seed=2)
    start = process.at_position(process.position(t) + 33)
    (a, s), (a_start, s_start) = (process.alpha_sigma(at, torch.float64) for at in (t, start))
    found = rollout(knowing(process, x0 + error), process, x0, eps, t, torch.tensor([1, 1]), options())
    drift = (a - a_start * s / s_start) * error
    torch.testing.assert_close(found - process.noise(x0, eps, t), drift, rtol=0, atol=1e-11)
    assert drift.abs().max() > 0.01


def reference(scheduler: Any, process: Process, x: torch.Tensor, grid: list[int], scaled: bool = False) -> torch.Tensor:
    """What diffusers makes of x over the timesteps of `grid`, with the exact denoiser and tables in float64."""
    alpha, sigma = (table.flatten() for table in process.alpha_sigma(torch.tensor(grid), torch.float64))
    flow = isinstance(process, FlowMatching)
    scheduler.set_timesteps(len(grid))
    scheduler.timesteps = torch.tensor(grid, dtype=torch.float64)  # Euler refuses integers
    scheduler.sigmas = torch.cat([sigma if flow else sigma / alpha, torch.zeros(1, dtype=torch.float64)])
    x = x / alpha[0] if scaled else x  # Euler works on x / alpha
    for i, at in enumerate(grid[:-1]):
        x_t = x * alpha[i] if scaled else x
        x = scheduler.step(exact(process)(x_t, torch.tensor([at])), scheduler.timesteps[i], x).prev_sample.double()
    return x * alpha[-1] if scaled else x


SD: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
OURS: dict[str, Any] = {"epsilon": "epsilon", "v": "v_prediction", "flow": "flow_prediction"}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(("sampler", "order"), [("dpm", 1), ("dpm", 2), ("unipc", 1), ("unipc", 2), ("unipc", 3)])
def test_multistep_samplers_walk_the_trajectory_of_diffusers(sampler, order, name):
    process, kind = PROCESSES[name], {"dpm": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}[sampler]
    flow: dict[str, Any] = {"use_flow_sigmas": True} if name == "flow" else SD
    steps, t = 24, 100  # from 892
    theirs = kind(prediction_type=OURS[name], solver_order=order, lower_order_final=False, **flow)
    x0, eps = latents(1), latents(1, seed=1)
    start = process.noise(x0, eps, torch.tensor([t + 33 * steps]))
    expected = reference(theirs, process, start, [t + 33 * k for k in range(steps, -1, -1)])
    chosen = options(sampler=sampler, order=order)
    found = rollout(exact(process), process, x0, eps, torch.tensor([t]), torch.tensor([steps]), chosen)
    tolerance = 1e-10 if sampler == "unipc" else 2e-6  # theirs computes the steps of dpm in float32
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("name", OURS)
def test_the_first_order_step_is_ddim_and_euler_of_diffusers(sampler, name):
    process, steps, t = PROCESSES[name], 24, 100
    if name == "flow":
        theirs: Any = FlowMatchEulerDiscreteScheduler()
    elif sampler == "ddim":
        theirs = DDIMScheduler(prediction_type=OURS[name], clip_sample=False, **SD)
        theirs.alphas_cumprod = PLAIN
    else:
        theirs = EulerDiscreteScheduler(prediction_type=OURS[name], **SD)
    x0, eps = latents(1), latents(1, seed=1)
    start, grid = process.noise(x0, eps, torch.tensor([t + 33 * steps])), [t + 33 * k for k in range(steps, -1, -1)]
    if isinstance(theirs, DDIMScheduler):
        theirs.set_timesteps(30)
        expected: Any = start
        for at in grid[:-1]:
            expected = theirs.step(exact(process)(expected, torch.tensor([at])), at, expected, return_dict=False)[0]
    else:
        expected = reference(theirs, process, start, grid, scaled=name != "flow")
    found = rollout(
        exact(process), process, x0, eps, torch.tensor([t]), torch.tensor([steps]), options(sampler=sampler)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 if sampler == "ddim" and name != "flow" else 2e-6)


@pytest.mark.parametrize(("name", "end"), [("v", 300), ("flow", 450)])
@pytest.mark.parametrize(
    ("sampler", "order", "claimed"),
    # The corrector adds one; the first step of unipc, of order 1 and corrected, allows 3 in all.
    [("ddim", 1, 1), ("dpm", 2, 2), ("unipc", 1, 2), ("unipc", 2, 3), ("unipc", 3, 3)],
)
def test_the_error_falls_with_the_order_of_the_sampler(sampler, order, claimed, name, end):
    process, t = PROCESSES[name], torch.tensor([end])
    x0, eps = latents(1), latents(1, seed=1)
    start = t + 480
    truth = exact_end(process, process.noise(x0, eps, start), start, t)
    errors = []
    for steps in (12, 24, 48):
        chosen = options(sampler=sampler, order=order, step_stride=480 // steps)
        found = rollout(exact(process), process, x0, eps, t, torch.tensor([steps]), chosen)
        errors.append((found - truth).abs().max().item())
    assert math.log2(errors[1] / errors[2]) > claimed - 0.3
    assert errors[2] < errors[1] < errors[0] < 0.05


@every_sampler
@every_process
def test_a_batch_ends_where_its_samples_end_one_by_one(sampler, order, name):
    process, chosen = PROCESSES[name], options(sampler=sampler, order=order)
    t, k = torch.tensor([0, 700, 40, 966, 867, 300]), torch.tensor([4, 0, 7, 1, 4, 2])
    x0, eps = latents(6), latents(6, seed=1)
    together = rollout(exact(process), process, x0, eps, t, k, chosen)
    for b in range(6):
        alone = rollout(exact(process), process, x0[[b]], eps[[b]], t[[b]], k[[b]], chosen)
        torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=1e-12)


def test_forwards_are_as_many_as_the_largest_offset_and_end_together():
    process, seen = PROCESSES["v"], []
    t, k = torch.tensor([10, 500, 200, 300]), torch.tensor([1, 0, 3, 3])

    def predict(x, at, rows):
        assert not torch.is_grad_enabled()
        assert x.shape == (len(rows), 2, 3, 4)
        seen.append(dict(zip(rows.tolist(), at.tolist(), strict=True)))
        return (x * weight).bfloat16()

    weight = torch.ones(1, requires_grad=True)
    x_t = rollout(predict, process, latents(4).float(), latents(4, seed=1).float(), t, k, options(step_stride=20))
    assert seen == [{2: 260, 3: 360}, {2: 240, 3: 340}, {0: 30, 2: 220, 3: 320}]
    assert x_t.dtype == torch.float32
    assert not x_t.requires_grad


def test_autocast_rounds_nothing_but_the_denoiser():
    process, t, k = PROCESSES["v"], torch.tensor([100, 500]), torch.tensor([5, 3])
    x0, eps = latents(2).float(), latents(2, seed=1).float()
    plain = rollout(exact(process), process, x0, eps, t, k, options(order=3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rollout(exact(process), process, x0, eps, t, k, options(order=3)), plain)
    torch.testing.assert_close(
        plain.double(),
        rollout(exact(process), process, x0.double(), eps.double(), t, k, options(order=3)),
        rtol=0,
        atol=2e-6,
    )


def test_a_sample_without_offset_keeps_its_noise_and_target_bit_for_bit():
    process, t = PROCESSES["v"], torch.tensor([100, 500, 900])
    x0, eps = latents(3).float(), latents(3, seed=1).float()
    for k in (torch.tensor([2, 0, 1]), torch.zeros(3, dtype=torch.int64)):
        x_t = rollout(exact(process), process, x0, eps, t, k, options())
        target = rollout_target(process, x0, eps, t, x_t, k, options())
        assert torch.equal(x_t[k == 0], process.noise(x0, eps, t)[k == 0])
        assert torch.equal(target[k == 0], process.target(x0, eps, t)[k == 0])
        assert all(not torch.equal(x_t[b], process.noise(x0, eps, t)[b]) for b in range(3) if k[b])


@every_process
def test_the_corrected_target_leads_back_to_the_photo_and_the_original_does_not(name):
    process, t, k = PROCESSES[name], torch.tensor([100, 600]), torch.tensor([3, 3])
    x0, eps = latents(2), latents(2, seed=1)
    x_t = rollout(exact(process), process, x0, eps, t, k, options())
    corrected = rollout_target(process, x0, eps, t, x_t, k, options())
    torch.testing.assert_close(process.x0_from(corrected, x_t, t), x0, rtol=0, atol=1e-10)
    original = rollout_target(process, x0, eps, t, x_t, k, options(target="original"))
    assert torch.equal(original, process.target(x0, eps, t))
    assert (process.x0_from(original, x_t, t) - x0).abs().max() > 0.1


NOISE, FIRST, SECOND, THIRD, CLEAN = (0.0, 1.0), (0.3, 0.9), (0.5, 0.8), (0.9, 0.3), (1.0, 0.0)


@pytest.mark.parametrize("end_known", [False, True])
@pytest.mark.parametrize(
    "points",
    [
        [THIRD, SECOND, FIRST],
        [FIRST, NOISE],
        [SECOND, FIRST, NOISE],
        [THIRD, SECOND, FIRST, NOISE],
        [CLEAN, THIRD],
        [CLEAN, THIRD, SECOND, FIRST],
    ],
)
def test_a_step_keeps_a_constant_photo_and_its_noise_in_place_also_at_the_ends(points, end_known):
    (alpha, sigma), (alpha_start, sigma_start) = points[:2]
    ratio, weights = step_weights(points, end_known)
    assert ratio * sigma_start == pytest.approx(sigma)
    assert ratio * alpha_start + sum(weights) == pytest.approx(alpha)
    if points[-1] == NOISE:  # lambda is infinite there: as if that prediction had never been made
        assert weights == (step_weights(points[:-1], end_known)[1] if len(points) > 2 else weights)


def test_nothing_starts_where_an_epsilon_prediction_says_nothing():
    always = options(max_step_offset=1, probability=1.0, step_stride=1)
    for name, last in (("epsilon", 998), ("v_zero_terminal", 998), ("flow", 999)):
        assert [always.offset(PROCESSES[name], 0, "a", 0, t, 0) for t in (last, last + 1)] == [1, 0]
    blind = Diffusion(ZERO_TERMINAL, "epsilon")
    assert [always.offset(blind, 0, "a", 0, t, 0) for t in (997, 998, 999)] == [1, 0, 0]


def drawn(chosen: RolloutOptions, t: int = 300, step: int = 0, visits: int = 4000) -> list[int]:
    return [chosen.offset(PROCESSES["v"], 7, "set/a.jpg", visit, t, step) for visit in range(visits)]


def test_samples_are_chosen_with_the_probability_and_offsets_are_uniform():
    found = drawn(options(max_step_offset=4, probability=0.4))
    assert sum(k > 0 for k in found) / 4000 == pytest.approx(0.4, abs=0.03)
    for k in (1, 2, 3, 4):
        assert found.count(k) / 4000 == pytest.approx(0.1, abs=0.02)
    assert max(drawn(options(max_step_offset=4, probability=1.0), t=999 - 2 * 33)) == 2  # as far as the timesteps reach


@pytest.mark.parametrize(
    ("strategy", "shares"), [("uniform", (0.8, 0.8, 0.8)), ("early", (0.8, 0.4, 0.16)), ("late", (0, 0.4, 0.64))]
)
def test_strategies_choose_by_timestep(strategy, shares):
    chosen = options(probability=0.8, strategy=strategy)
    for t, share in zip((0, 500, 800), shares, strict=True):
        assert sum(k > 0 for k in drawn(chosen, t)) / 4000 == pytest.approx(share, abs=0.03)


def test_the_ramp_only_adds_samples():
    ramp = options(probability=0.8, start_step=100, ramp_steps=200)
    assert [ramp.probability_at(step) for step in (0, 99, 100, 200, 300, 10**6)] == pytest.approx(
        [0, 0, 0, 0.4, 0.8, 0.8]
    )
    cosine = dataclasses.replace(ramp, ramp_shape="cosine")
    assert [cosine.probability_at(step) for step in (100, 150, 200, 250, 300)] == pytest.approx(
        [0, 0.4 * (1 - 0.5**0.5), 0.4, 0.4 * (1 + 0.5**0.5), 0.8]
    )
    early, later = drawn(ramp, step=150, visits=500), drawn(ramp, step=250, visits=500)
    assert all(b == a for a, b in zip(early, later, strict=True) if a)
    assert sum(k > 0 for k in later) > sum(k > 0 for k in early) > 0


def test_probability_0_is_off_whatever_else_is_set():
    off = RolloutOptions(max_step_offset=5, probability=0, ramp_steps=100, ramp_shape="cosine", order=3)
    assert not off.on and not RolloutOptions().on
    assert not any(drawn(RolloutOptions(), visits=200))
    assert {off.probability_at(step) for step in (0, 50, 100, 1000)} == {0}
    assert not any(drawn(off, step=1000, visits=200))
    assert off.offsets(PROCESSES["v"], 0, ["a#0"], torch.tensor([3]), 1000).tolist() == [0]


def test_offsets_of_a_batch_are_those_of_its_samples_in_any_company():
    chosen, process = options(max_step_offset=9, probability=0.6), PROCESSES["v"]
    keys = [f"set/photo #{i}.jpg#{visit}" for i in range(5) for visit in range(4)]
    t = torch.arange(20) * 30
    found = chosen.offsets(process, 3, keys, t, 0)
    expected = [
        chosen.offset(process, 3, f"set/photo #{i}.jpg", visit, (4 * i + visit) * 30, 0)
        for i in range(5)
        for visit in range(4)
    ]
    assert found.tolist() == expected
    assert found.dtype == torch.int64
    other = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:7]
    assert torch.equal(chosen.offsets(process, 3, [keys[i] for i in other], t[other], 0), found[other])
    assert not torch.equal(chosen.offsets(process, 4, keys, t, 0), found)


def test_real_timesteps_of_a_flow_are_rolled_out_too():
    process, t = PROCESSES["flow"], torch.tensor([123.25, 880.5])
    chosen = options(max_step_offset=3, probability=1.0)
    k = chosen.offsets(process, 0, ["a#0", "b#0"], t, 0)
    assert k.min() > 0
    x0, eps = latents(2), latents(2, seed=1)
    found = rollout(knowing(process, x0), process, x0, eps, t, k, chosen)
    torch.testing.assert_close(found, process.noise(x0, eps, t), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("k", "says"),
    [
        (torch.tensor([1, -1]), "at least 0"),
        (torch.tensor([0, 3]), "start at .* at most 999"),
        (torch.tensor([1]), r"integers of \[2\]"),
        (torch.tensor([1.0, 0.0]), "float32"),
    ],
)
def test_offsets_that_make_no_sense_are_refused(k, says):
    process = PROCESSES["v"]
    with pytest.raises(ValueError, match=says):
        rollout(exact(process), process, latents(2), latents(2), torch.tensor([10, 930]), k, options())


def test_all_wrong_options_are_named_at_once():
    wrong: dict[str, Any] = {"max_step_offset": -1, "probability": 1.5, "strategy": "uniformly", "order": 0}
    wrong |= {"step_stride": True, "sampler": "heun", "ramp_steps": 1.5}
    with pytest.raises(ConfigError) as caught:
        RolloutOptions(**wrong)
    assert all(name in str(caught.value) for name in wrong)
    assert "did you mean 'uniform'" in str(caught.value)
    with pytest.raises(ConfigError, match="probability is nan"):
        RolloutOptions(max_step_offset=1, probability=float("nan"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"probability": 1.0, "start_step": 5}, "probability, start_step has no effect with max_step_offset: 0"),
        ({"max_step_offset": 3, "sampler": "ddim", "order": 2}, "sampler: ddim it must be at most 1"),
        ({"max_step_offset": 3, "sampler": "dpm", "order": 3}, "sampler: dpm it must be at most 2"),
        ({"max_step_offset": 2, "order": 3}, "max_step_offset must be at least that"),
        ({"max_step_offset": 3, "ramp_shape": "cosine"}, "no effect with ramp_steps: 0"),
    ],
)
def test_options_that_would_do_nothing_are_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        RolloutOptions(**given)


def test_the_stride_is_that_of_thirty_steps_and_must_fit():
    assert options().stride(PROCESSES["v"]) == 33
    assert options().stride(Diffusion([0.9, 0.5, 0.1])) == 1
    assert options(step_stride=999).stride(PROCESSES["v"]) == 999
    with pytest.raises(ConfigError, match=r"step_stride is 1000.*1 to 999"):
        options(step_stride=1000).stride(PROCESSES["v"])
