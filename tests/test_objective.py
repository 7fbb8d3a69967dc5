"""The loss against closed forms and a reference written in loops; the options and their faults."""

import dataclasses
import math
from typing import Any

import jsonargparse
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamlit import weighting
from dreamlit.errors import ConfigError
from dreamlit.objective import Losses, Objective
from dreamlit.process import Diffusion, rescale_zero_terminal_snr
from dreamlit.types import Batch, Role

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
PLAIN = torch.cumprod(1 - BETAS, dim=0)
SCHEDULES = {"plain": PLAIN, "zero_terminal": rescale_zero_terminal_snr(PLAIN)}
TYPES = ["epsilon", "v_prediction"]
T = torch.arange(1000)


def normal(seed: int, shape: tuple[int, ...], dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch_of(count: int, t: torch.Tensor | None = None, role=None, weight=None, mask=None, size=(2, 3)) -> Batch:
    noise = normal(1, (count, 2, *size))
    return Batch(
        latents=normal(0, noise.shape),
        eps=noise,
        input_eps=noise,
        t=torch.arange(count) if t is None else t,
        conditioning={},
        mask=torch.ones(count, 1, *size) if mask is None else mask,
        role=torch.zeros(count, dtype=torch.int64) if role is None else role,
        weight=torch.ones(count) if weight is None else weight,
        frame=torch.zeros(count, 6, dtype=torch.int64),
        keys=[f"a#{i}" for i in range(count)],
    )


# -- weights by noise level --------------------------------------------------------------------------------------------


def closed_form_weight(kind: str, prediction_type: str, alpha_bar: float, gamma: float) -> float:
    """One number at a time, from the papers; limits at SNR 0 by hand."""
    snr = alpha_bar / (1 - alpha_bar)
    if kind == "none":
        return 1.0
    if snr == 0:
        at_zero = {"min_snr": 1.0, "debiased": 1 / math.sqrt(1e-3)}[kind]
        return at_zero if prediction_type == "epsilon" else 0.0
    in_x0_space = min(snr, gamma) if kind == "min_snr" else snr / math.sqrt(max(snr, 1e-3))
    return in_x0_space / (snr if prediction_type == "epsilon" else snr + 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["none", "min_snr", "debiased"])
@pytest.mark.parametrize("prediction_type", TYPES)
def test_weighted_loss_equals_the_closed_form_at_every_timestep(prediction_type, kind, schedule):
    table, gamma = SCHEDULES[schedule], 5.0
    process = Diffusion(table, prediction_type)
    prediction, target = normal(2, (1000, 2, 2, 3)), normal(3, (1000, 2, 2, 3))
    losses = Objective(weighting=kind).losses(process, prediction, target, batch_of(1000))
    weights = [closed_form_weight(kind, prediction_type, a, gamma) for a in table.tolist()]
    expected = np.array(weights) * ((prediction - target) ** 2).mean(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(losses.per_sample.numpy(), expected, rtol=1e-12, atol=0)
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("kind", ["min_snr", "debiased"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_epsilon_and_v_losses_and_gradients_are_the_same_in_terms_of_x0(kind, schedule):
    """The same claim about x0, made by an epsilon and by a v model at the same x_t, costs and pulls the same."""
    known = SCHEDULES[schedule] > 0
    t = T[known]
    x0, eps, claim = (normal(seed, (len(t), 2, 2, 3)) for seed in (0, 1, 2))
    results = []
    for prediction_type in TYPES:
        process, guess = Diffusion(SCHEDULES[schedule], prediction_type), claim.clone().requires_grad_()
        prediction = process.target_at(process.noise(x0, eps, t), guess, t)
        batch = batch_of(len(t), t)
        losses = Objective(weighting=kind).losses(process, prediction, process.target(x0, eps, t), batch)
        losses.total.backward()
        results.append((losses.per_sample, guess.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-8, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-7, atol=1e-15)


def test_stable_diffusions_own_schedule_never_meets_the_debiased_floor():
    snr = Diffusion(PLAIN).snr(T)
    assert snr.min() > weighting.DEBIASED_MIN_SNR
    torch.testing.assert_close(weighting.debiased_weight(snr), 1 / snr.sqrt(), rtol=1e-13, atol=0)


def test_snr_gamma_sets_where_min_snr_begins():
    process, snr = Diffusion(PLAIN), Diffusion(PLAIN).snr(T)
    for gamma in (1.0, 20.0):
        weight = weighting.timestep_weight(process, T, torch.float64, "min_snr", gamma)
        assert torch.equal(weight == 1, snr <= gamma)
    prediction, target = normal(2, (1000, 2, 2, 3)), normal(3, (1000, 2, 2, 3))
    one, two = (
        Objective(weighting="min_snr", snr_gamma=gamma).losses(process, prediction, target, batch_of(1000)).per_sample
        for gamma in (1.0, 20.0)
    )
    assert (two > one).any() and (two >= one).all()


# -- Huber -------------------------------------------------------------------------------------------------------------


def test_small_errors_are_squared_and_large_ones_linear():
    c = torch.full((2,), 0.1, dtype=torch.float64)
    error = torch.tensor([1e-6, 1e6], dtype=torch.float64)
    huber, smooth = weighting.huber(error, c), weighting.smooth_l1(error, c)
    assert huber[0].item() == pytest.approx(1e-12, rel=1e-6)  # computed without cancellation
    assert huber[1].item() == pytest.approx(2 * 0.1 * 1e6, rel=1e-6)
    assert smooth[1].item() == pytest.approx(2 * 1e6, rel=1e-6)


def test_huber_with_a_wide_constant_c_is_l2():
    prediction, target = normal(2, (5, 2, 2, 3)), normal(3, (5, 2, 2, 3))
    wide = Objective(loss="huber", huber_c=1e5, huber_schedule="constant")
    arguments = Diffusion(PLAIN), prediction, target, batch_of(5)
    torch.testing.assert_close(wide.losses(*arguments).per_sample, Objective().losses(*arguments).per_sample)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["snr", "exponential"])
def test_scheduled_c_falls_from_one_to_huber_c(schedule, kind):
    c = weighting.huber_width(Diffusion(SCHEDULES[schedule]), T, torch.float64, kind, 0.1)
    assert (c.diff() < 0).all()
    assert c[0].item() == pytest.approx(1, abs=0.06)
    end = {"snr": 0.1 if schedule == "zero_terminal" else 0.104, "exponential": 0.1}[kind]
    assert c[-1].item() == pytest.approx(end, abs=0.003)


# -- the whole loss, by hand -------------------------------------------------------------------------------------------


def elementwise_by_hand(
    o: Objective, prediction_type: str, alpha_bar: float, t: int, count: int, error: float
) -> float:
    snr = alpha_bar / (1 - alpha_bar)
    gamma = o.snr_gamma or 5.0
    weight = closed_form_weight(o.weighting, prediction_type, alpha_bar, gamma)
    if o.loss == "l2":
        return weight * error**2
    c0 = o.huber_c or 0.1
    c = {
        "snr": (c0 if snr == 0 else (1 - c0) / (1 + 1 / math.sqrt(snr)) ** 2 + c0),
        "exponential": math.exp(t * math.log(c0) / count),
        "constant": c0,
    }[o.huber_schedule or "snr"]
    smooth = 2 * (math.sqrt(error**2 + c**2) - c)
    return weight * (c * smooth if o.loss == "huber" else smooth)


def sample_by_hand(o: Objective, process: Diffusion, batch: Batch, i: int, tensors: list[np.ndarray]) -> float:
    """Loss of sample `i` before its weights, in Python loops."""
    prediction, target, base = (x[i] for x in tensors)
    t, total, norm, background = int(batch.t[i]), 0.0, 0.0, 0.0
    taught = batch.role[i] == Role.REGULARISATION and o.prior_target == "base_model" and o.prior_loss_weight != 0
    own = base if taught else target
    channels, height, width = prediction.shape
    arguments = o, process.prediction_type, float(process.alphas_cumprod[t]), t, process.num_timesteps
    for y in range(height):
        for x in range(width):
            share = o.unmasked_weight + (1 - o.unmasked_weight) * float(batch.mask[i, 0, y, x])
            norm += share
            for c in range(channels):
                total += share * elementwise_by_hand(*arguments, prediction[c, y, x] - own[c, y, x]) / channels
                toward_base = elementwise_by_hand(*arguments, prediction[c, y, x] - base[c, y, x]) / channels
                background += (1 - share) * toward_base / (height * width)
    mean = total / (height * width) if o.mask_normalisation == "frame" else (total / norm if norm else 0.0)
    unpaid = batch.role[i] == Role.REGULARISATION and o.prior_loss_weight == 0  # no base prediction is made for it
    return mean + background * (o.unmasked_target == "base_model" and not unpaid)


@st.composite
def objectives(draw):
    loss, kind = (
        draw(st.sampled_from(["l2", "huber", "smooth_l1"])),
        draw(st.sampled_from(["none", "min_snr", "debiased"])),
    )
    options = {"loss": loss, "weighting": kind}
    if loss != "l2":
        options["huber_c"] = draw(st.floats(0.01, 1))
        options["huber_schedule"] = draw(st.sampled_from(["snr", "exponential", "constant", None]))
    if kind == "min_snr":
        options["snr_gamma"] = draw(st.sampled_from([None, 1.0, 20.0]))
    options["mask_normalisation"] = draw(st.sampled_from(["area", "frame"]))
    options["unmasked_weight"] = draw(st.sampled_from([0.0, 0.2]))
    options["unmasked_target"] = draw(st.sampled_from(["ignore", "base_model"]))
    options["prior_target"] = draw(st.sampled_from(["base_model", "data"]))
    if options["prior_target"] == "base_model":
        options["prior_loss_weight"] = draw(st.one_of(st.just(0), st.floats(0.1, 100)))
    return Objective(**options)


@given(
    objective=objectives(),
    prediction_type=st.sampled_from(TYPES),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    seed=st.integers(0, 10**6),
    count=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_loss_equals_the_reference_written_in_loops(objective, prediction_type, schedule, seed, count):
    process = Diffusion(SCHEDULES[schedule], prediction_type)
    rng = np.random.default_rng(seed)
    masks = rng.choice([0.0, 0.25, 1.0], size=(count, 1, 2, 3)) * rng.choice([0, 1, 1], size=(count, 1, 1, 1))
    batch = batch_of(
        count,
        t=torch.from_numpy(rng.choice([0, 1, 250, 500, 998, 999], size=count)),
        role=torch.from_numpy(rng.integers(0, 2, size=count)),
        weight=torch.from_numpy(rng.uniform(0, 2, size=count)).float(),
        mask=torch.from_numpy(masks).float(),
    )
    tensors = [rng.normal(size=(count, 2, 2, 3)) for _ in range(3)]
    prediction, target, base = map(torch.from_numpy, tensors)
    needed = objective.needs_base(batch)
    given_base = base * needed.view(-1, 1, 1, 1)  # as the module hands it over: zeros where it was not asked for
    losses = objective.losses(process, prediction, target, batch, given_base if needed.any() else None)
    expected = np.array([sample_by_hand(objective, process, batch, i, tensors) for i in range(count)])
    role_weight = np.where(batch.role.numpy() == 1, objective.prior_loss_weight, 1.0)
    np.testing.assert_allclose(losses.per_sample.numpy(), expected, rtol=1e-9, atol=1e-14)
    total = (batch.weight.double().numpy() * role_weight * expected).sum() / count
    assert losses.total.item() == pytest.approx(total, rel=1e-9, abs=1e-14)


def test_half_precision_predictions_get_a_float32_loss_close_to_the_float64_one():
    process, batch = Diffusion(PLAIN, "v_prediction"), batch_of(4, t=torch.tensor([0, 300, 600, 999]))
    prediction, target = normal(2, (4, 2, 2, 3)).bfloat16(), normal(3, (4, 2, 2, 3)).bfloat16()
    objective = Objective(weighting="min_snr", loss="huber")
    half = objective.losses(process, prediction, target, batch)
    assert half.total.dtype == half.per_sample.dtype == torch.float32
    full = objective.losses(process, prediction.double(), target.double(), batch).per_sample
    torch.testing.assert_close(half.per_sample.double(), full, rtol=1e-5, atol=0)


# -- prior preservation ------------------------------------------------------------------------------------------------

ROLES = torch.tensor([0, 1, 1, 0])


def four(**options) -> tuple[Objective, Diffusion, Batch]:
    return Objective(**options), Diffusion(PLAIN), batch_of(4, t=torch.tensor([0, 300, 600, 999]), role=ROLES)


def test_regularisation_loss_is_exactly_zero_where_the_model_is_the_base():
    objective, process, batch = four()
    prediction, target = normal(2, (4, 2, 2, 3)).requires_grad_(), normal(3, (4, 2, 2, 3))
    losses = objective.losses(process, prediction, target, batch, prediction.detach().clone())
    losses.total.backward()
    assert losses.per_sample[1:3].tolist() == [0, 0]
    assert prediction.grad is not None
    assert (prediction.grad[1:3] == 0).all() and (prediction.grad[[0, 3]] != 0).all()


def test_only_regularisation_samples_need_the_base_and_only_toward_the_base():
    batch = batch_of(4, role=ROLES)
    assert Objective().needs_base(batch).tolist() == [False, True, True, False]
    assert not Objective(prior_target="data").needs_base(batch).any()
    unheld = Objective(prior_loss_weight=0)
    assert not unheld.needs_base(batch).any() and unheld.learns_photo(batch).tolist() == [True, False, False, True]


def test_prior_loss_weight_scales_regularisation_samples_alone():
    prediction, target, base = (normal(seed, (4, 2, 2, 3)) for seed in (2, 3, 4))
    totals = []
    for weight in (0.0, 1.0, 3.0):
        objective, process, batch = four(prior_loss_weight=weight)
        losses = objective.losses(process, prediction, target, batch, base)
        totals.append(losses.total.item())
    l2 = (prediction - torch.where(ROLES.view(-1, 1, 1, 1) == 1, base, target)).square().mean(dim=(1, 2, 3))
    instance, prior = l2[[0, 3]].sum().item() / 4, l2[1:3].sum().item() / 4
    assert totals == pytest.approx([instance, instance + prior, instance + 3 * prior], rel=1e-12)


def test_a_missing_base_prediction_is_an_error_not_a_loss_toward_the_photo():
    objective, process, batch = four()
    tensors = normal(2, (4, 2, 2, 3)), normal(3, (4, 2, 2, 3))
    with pytest.raises(ValueError, match="base_prediction is None"):
        objective.losses(process, *tensors, batch)
    with pytest.raises(ValueError, match=r"base_prediction is \[2, 2, 2, 3\]"):
        objective.losses(process, *tensors, batch, normal(4, (2, 2, 2, 3)))


def test_sums_separate_the_roles_and_the_class_prompts():
    losses = Losses(torch.tensor(0.0), torch.tensor([1.0, 2.0, 4.0, 5.0]), ROLES)
    assert losses.sums().tolist() == [[6, 2], [6, 2], [0, 0]]
    held = Losses(torch.tensor(0.0), torch.tensor([1.0, 2.0]), torch.tensor([0, 0]), torch.tensor([3.0, 5.0]))
    assert held.sums().tolist() == [[3, 2], [0, 0], [8, 2]]


def test_a_batch_loss_is_the_mean_of_the_losses_of_its_samples():
    """So that accumulating single samples and batching them train the same."""
    prediction, target, base = (normal(seed, (4, 2, 2, 3)) for seed in (2, 3, 4))
    objective, process, batch = four(prior_loss_weight=0.7, weighting="min_snr")
    whole = objective.losses(process, prediction, target, batch, base).total
    singles = []
    for i in range(4):
        row = slice(i, i + 1)
        one = dataclasses.replace(
            batch, t=batch.t[row], mask=batch.mask[row], role=batch.role[row], weight=batch.weight[row]
        )
        singles.append(objective.losses(process, prediction[row], target[row], one, base[row]).total)
    torch.testing.assert_close(torch.stack(singles).mean(), whole)


# -- options -----------------------------------------------------------------------------------------------------------

WRONG = [
    ({"loss": "l1"}, "loss is 'l1'; Allowed: huber, l2, smooth_l1"),
    ({"loss": None}, "loss is None"),
    ({"loss": "huber", "huber_schedule": "linear"}, "huber_schedule is 'linear'"),
    ({"weighting": "min-snr"}, "did you mean 'min_snr'"),
    ({"timesteps": "uniform"}, "Allowed: low_discrepancy, random"),
    ({"loss": "huber", "huber_c": 0}, "huber_c is 0: it must be a number above 0"),
    ({"loss": "huber", "huber_c": 2.0}, "at most 1, or set huber_schedule: constant"),
    ({"weighting": "min_snr", "snr_gamma": -1}, "snr_gamma is -1"),
    ({"offset_noise": "a lot"}, "offset_noise is 'a lot'"),
    ({"offset_noise": None}, "offset_noise is None"),
    ({"offset_noise": float("nan")}, "offset_noise is nan"),
    ({"input_perturbation": -0.1}, "input_perturbation is -0.1"),
    ({"timestep_bias": "later", "timestep_bias_strength": 1.0}, "above 1; to favour the other end"),
    ({"timestep_range": (0, 200)}, "200 of 1000 is 0.2"),
    ({"timestep_range": (0.5, 0.5)}, "first < last"),
    ({"timestep_range": (0.1,)}, "two fractions"),
    ({"timestep_range": 0.5}, "two fractions"),
    ({"prior_loss_weight": True}, "prior_loss_weight is True"),
    ({"unmasked_weight": 1.0}, "remove the masks"),
    ({"huber_c": 0.1}, "huber_c has no effect with loss: l2"),
    ({"huber_schedule": "snr"}, "huber_schedule has no effect with loss: l2"),
    ({"snr_gamma": 5.0}, "snr_gamma has no effect with weighting: none"),
    ({"weighting": "debiased", "snr_gamma": 5.0}, "snr_gamma has no effect with weighting: debiased"),
    ({"timestep_bias_strength": 2.0}, "timestep_bias_strength has no effect"),
    ({"prior_loss_weight": 0, "prior_target": "data"}, "prior_target has no effect"),
    ({"timestep_density": "sigmoid"}, "Allowed: beta, logit_normal, mode, uniform"),
    ({"timestep_density": "logit_normal", "logit_std": 0}, "logit_std is 0: it must be a number above 0"),
    ({"timestep_density": "mode", "mode_scale": 1.8}, "mode_scale is 1.8: it must be a number from -1 to 1.75"),
    ({"timestep_density": "beta", "beta_alpha": 1e6}, "beta_alpha is 1000000.0"),
    ({"timestep_density": "mode", "logit_mean": 0.5}, "logit_mean has no effect with timestep_density: mode"),
    ({"mode_scale": 0.5}, "mode_scale has no effect with timestep_density: uniform"),
    ({"timestep_density": "beta", "timestep_bias": "later"}, "remove one of them"),
]


@pytest.mark.parametrize(("options", "says"), WRONG)
def test_a_wrong_or_idle_option_is_refused_in_one_clear_line(options, says):
    with pytest.raises(ConfigError) as caught:
        Objective(**options)
    _, *lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert says in lines[0]


def test_all_faults_come_in_one_report():
    with pytest.raises(ConfigError) as caught:
        Objective(loss="l3", offset_noise=-1, snr_gamma=5.0, timestep_range=(1, 0))  # pyright: ignore
    assert len(str(caught.value).splitlines()) == 5


def test_every_option_can_be_set_from_the_command_line():
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(Objective, "objective")
    loss = {"loss": "huber", "huber_c": 0.2, "huber_schedule": "exponential", "weighting": "min_snr", "snr_gamma": 3.0}
    noise = {"offset_noise": 0.1, "input_perturbation": 0.1, "timesteps": "random", "timestep_range": (0.0, 0.2)}
    prior = {"prior_loss_weight": 0.5, "prior_target": "data"}
    masks = {"mask_normalisation": "frame", "unmasked_weight": 0.1, "unmasked_target": "base_model"}
    densities: list[dict[str, object]] = [
        {"timestep_bias": "later", "timestep_bias_strength": 2.0},
        {"timestep_density": "logit_normal", "logit_mean": -1.0, "logit_std": 0.5},
        {"timestep_density": "mode", "mode_scale": 0.8},
        {"timestep_density": "beta", "beta_alpha": 3.0, "beta_beta": 1.5},
    ]
    given = set()
    for density in densities:
        wanted: dict[str, Any] = {**loss, **noise, **prior, **masks, **density}
        arguments = [f"--objective.{k}={list(v) if isinstance(v, tuple) else v}" for k, v in wanted.items()]
        assert parser.instantiate(parser.parse_args(arguments)).objective == Objective(**wanted)
        given |= set(wanted)
    assert given == {field.name for field in dataclasses.fields(Objective)}


def test_every_option_is_explained_in_the_help():
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(Objective, "objective")
    actions = {action.dest: action.help for action in parser._actions}
    for field in dataclasses.fields(Objective):
        assert len(actions[f"objective.{field.name}"] or "") > 40
