"""ReflexFlow's terms against their equations in float64, and in runs of flow models."""

import functools
from typing import Any

import pytest
import torch

from dreamlit import weighting
from dreamlit.errors import ConfigError
from dreamlit.flow import FlowMatching
from dreamlit.objective import Objective
from dreamlit.reflex import compensation, drift_terms
from dreamlit.rollout import rollout, rollout_target
from dreamlit.rollout_options import RolloutOptions
from dreamlit.types import Batch, DriftTerms, Role
from tests.family_cases import MODELS
from tests.runs import assert_same_state, base_config, checkpoint, fit, merged, regularisation, run, write_photos

SHAPE = (3, 2, 4, 5)
FLOW = FlowMatching(3.0)


def normal(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_batch(**changes: Any) -> Batch:
    noise, count = normal(1), SHAPE[0]
    given: dict[str, Any] = {
        "latents": normal(0),
        "eps": noise,
        "input_eps": noise,
        "t": torch.tensor([200.0, 500.0, 800.0], dtype=torch.float64),
        "conditioning": {},
        "mask": torch.ones(count, 1, *SHAPE[2:], dtype=torch.float64),
        "role": torch.zeros(count, dtype=torch.int64),
        "weight": torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64),
        "frame": torch.zeros(count, 6, dtype=torch.int64),
        "keys": [f"a#{i}" for i in range(count)],
    }
    return Batch(**{**given, **changes})


# the equations --------------------------------------------------------------------------------------------------------


def test_the_directional_error_is_that_of_the_paper_and_of_the_angle():
    v, away = normal(2), normal(3)
    errors = weighting.directional_error(v, away)
    for one, other, error in zip(v, away, errors, strict=True):
        a, b = one.flatten(), other.flatten()
        cosine = float(a @ b / (a.norm() * b.norm()))
        assert float(error) == pytest.approx(2 - 2 * cosine, abs=1e-12)
    assert weighting.directional_error(7 * away, away).abs().max() < 1e-24
    torch.testing.assert_close(weighting.directional_error(-away, away), torch.full((3,), 4.0, dtype=torch.float64))


def test_its_gradient_turns_the_prediction_and_leaves_its_length():
    v, away = normal(2).requires_grad_(), normal(3)
    weighting.directional_error(v, away).sum().backward()
    assert v.grad is not None
    for gradient, vector, goal in zip(v.grad, v.detach(), away, strict=True):
        assert abs(float((gradient * vector).sum())) < 1e-12
        assert float((gradient * goal).sum()) < 0  # a step against it comes nearer


def test_a_vector_of_zeros_has_a_finite_gradient():
    v = torch.zeros(SHAPE, requires_grad=True)
    error = weighting.directional_error(v, normal(3).float())
    error.sum().backward()
    assert v.grad is not None and v.grad.isfinite().all()
    torch.testing.assert_close(error.detach(), torch.ones(3))


def test_the_corrected_target_has_no_directional_error_and_the_original_has():
    batch, offsets = a_batch(), torch.tensor([2, 3, 1])

    def wrong(x, t, rows):
        return 0.5 * FLOW.target_at(x, batch.latents[rows], t) + 0.3 * normal(5)[rows]

    options = RolloutOptions(3, anti_drift=10)
    x_t = rollout(wrong, FLOW, batch.latents, batch.eps, batch.t, offsets, options)
    places = FLOW, batch.latents, batch.eps, batch.t, x_t, offsets
    away = x_t - batch.latents
    assert weighting.directional_error(rollout_target(*places, options), away).abs().max() < 1e-20
    original = RolloutOptions(3, target="original")
    assert weighting.directional_error(rollout_target(*places, original), away).min() > 1e-6


@pytest.mark.parametrize("alpha", [1.0, 20.0])
def test_the_compensation_is_that_of_the_paper(alpha):
    on_path, drifted = normal(2), normal(3)
    weights = compensation(on_path, drifted, alpha)
    for b in range(SHAPE[0]):
        bias = (on_path[b] - drifted[b]).tolist()
        size = sum(abs(x) for channel in bias for row in channel for x in row)
        for c, channel in enumerate(bias):
            for y, row in enumerate(channel):
                for x, value in enumerate(row):
                    assert float(weights[b, c, y, x]) == pytest.approx(max(0.0, 1 + alpha * value / size), abs=1e-12)
    assert torch.equal(compensation(drifted, drifted, alpha), torch.ones(SHAPE, dtype=torch.float64))


def test_an_alpha_of_1_changes_the_weights_of_a_real_latent_by_next_to_nothing():
    """What the documentation says of the paper's value, for the 16 x 64 x 64 latent of a photo of 512 pixels."""
    weights = compensation(normal(2, (1, 16, 64, 64)), normal(3, (1, 16, 64, 64)), 1.0)
    assert 1e-5 < float((weights - 1).abs().max()) < 1e-4


# in the loss ----------------------------------------------------------------------------------------------------------


def terms_of(batch: Batch, chosen: list[bool], anti_drift=10.0, alpha=0.0, beyond=0.0) -> DriftTerms | None:
    """beyond: how much larger predictions are where the mask is black."""

    def predict(x, t, rows):
        outside = 1 + beyond * (1 - batch.mask[rows])
        return (x * (1 + t.view(-1, 1, 1, 1) / 1000) + batch.latents[rows]) * outside

    options = RolloutOptions(2, anti_drift=anti_drift, frequency_compensation=alpha)
    drifted = FLOW.noise(batch.latents, batch.eps, batch.t) + normal(6) / 4
    on_path = FLOW.noise(batch.latents, batch.eps, batch.t)
    return drift_terms(predict, on_path, drifted, batch, torch.tensor(chosen), options)


def test_the_loss_is_that_without_them_and_the_terms():
    batch, prediction, objective = a_batch(), normal(4), Objective()
    target = FLOW.target(batch.latents, batch.eps, batch.t)
    plain = objective.losses(FLOW, prediction, target, batch)
    drift = terms_of(batch, [True, False, True])
    assert drift is not None and drift.emphasis is None
    found = objective.losses(FLOW, prediction, target, batch, drift=drift)
    extra = 10 * weighting.directional_error(prediction, drift.away) * torch.tensor([1, 0, 1])
    torch.testing.assert_close(found.per_sample, plain.per_sample + extra)
    torch.testing.assert_close(found.total, (batch.weight * (plain.per_sample + extra)).mean())

    both = terms_of(batch, [True, False, True], alpha=50.0)
    assert both is not None and both.emphasis is not None
    assert torch.equal(both.emphasis[1], torch.ones(SHAPE[1:], dtype=torch.float64))
    found = objective.losses(FLOW, prediction, target, batch, drift=both)
    weighed = ((prediction - target).square() * both.emphasis).mean(dim=(1, 2, 3))
    torch.testing.assert_close(found.per_sample, weighed + extra)
    assert not torch.allclose(weighed[0], plain.per_sample[0])


def test_masked_cells_turn_nothing():
    mask = torch.zeros(SHAPE[0], 1, *SHAPE[2:], dtype=torch.float64)
    mask[..., :2] = 1
    batch, target = a_batch(mask=mask), normal(7)
    drift = terms_of(batch, [True] * 3)
    prediction = normal(4).requires_grad_()
    Objective().losses(FLOW, prediction, target, batch, drift=drift).total.backward()
    assert prediction.grad is not None
    assert prediction.grad[..., 2:].abs().max() == 0 and prediction.grad[..., :2].abs().min() > 0


def test_what_is_masked_out_does_not_dilute_the_compensation():
    mask = torch.zeros(SHAPE[0], 1, *SHAPE[2:], dtype=torch.float64)
    mask[..., :2] = 1
    batch = a_batch(mask=mask)
    near, far = (terms_of(batch, [True] * 3, alpha=20.0, beyond=beyond) for beyond in (0.0, 9.0))
    assert near is not None and far is not None and near.emphasis is not None and far.emphasis is not None
    torch.testing.assert_close(near.emphasis, far.emphasis)
    assert torch.equal(near.emphasis[..., 2:], torch.ones_like(near.emphasis[..., 2:]))
    assert (near.emphasis[..., :2] - 1).abs().min() > 0


def test_no_sample_no_terms():
    assert terms_of(a_batch(), [False] * 3) is None
    assert terms_of(a_batch(), [True] * 3, anti_drift=0.0) is None


# in a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    home = tmp_path_factory.mktemp("parts")
    return write_photos(home / "subject", [(64, 64)] * 3), write_photos(home / "class", [(64, 64)] * 2, seed=1)


def configured(root, family_folders, name, parts, **options) -> dict[str, Any]:
    folder, kind = family_folders(name), MODELS[name][0]
    config = base_config(root, folder, parts[0])
    config["model"]["family"] = {"class_path": kind.__name__, "init_args": {"path": str(folder)}}
    config["model"]["adapter"]["init_args"]["dropout"] = 0.5
    config["model"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    config["data"]["datasets"].append(regularisation(parts[1]))
    callback = {"class_path": "ScheduledSampling", "init_args": {"max_step_offset": 2, "probability": 1.0, **options}}
    return merged(config, {"trainer.callbacks": [callback], "checkpoint.every_n_steps": 2})


BOTH = {"anti_drift": 10.0, "frequency_compensation": 1000.0}


@pytest.mark.parametrize("name", ["sd35", "flux_dev"])
def test_each_term_changes_what_is_learned_and_a_resume_goes_on_as_it_would_have(tmp_path, family_folders, parts, name):
    build = functools.partial(configured, family_folders=family_folders, name=name, parts=parts)
    states = []
    for place, options in enumerate(({}, {"anti_drift": 10.0}, {"frequency_compensation": 1000.0}, BOTH)):
        root = fit(build(tmp_path / str(place), **options))
        states.append(checkpoint(root, 4)["state_dict"])
    for place, state in enumerate(states):
        assert all(value.isfinite().all() for value in state.values())
        for other in states[:place]:
            assert any(not torch.equal(state[key], other[key]) for key in state)
    part = build(tmp_path / "part", **BOTH)
    root = fit(part)
    (root / "checkpoints" / "step-000004.ckpt").unlink()
    fit(part, "--ckpt_path", "last")
    assert_same_state(states[-1], checkpoint(root, 4)["state_dict"])


def test_class_images_have_no_terms(tmp_path, family_folders, parts, monkeypatch):
    """They learn what the base predicts at the drifted state, not their own photo."""
    seen = []
    real = Objective.losses

    def recorded(self, process, prediction, target, batch, *others):
        *_, drift = others
        if drift is not None:
            seen.extend(zip(batch.role.tolist(), drift.anti_drift.tolist(), strict=True))
        return real(self, process, prediction, target, batch, *others)

    monkeypatch.setattr(Objective, "losses", recorded)
    fit(configured(tmp_path / "run", family_folders, "sd35", parts, anti_drift=10.0))
    assert {weight for role, weight in seen if role == Role.REGULARISATION} == {0.0}
    assert 10.0 in {weight for role, weight in seen if role == Role.INSTANCE}


@pytest.mark.parametrize("name", ["anti_drift", "frequency_compensation"])
def test_a_model_without_a_flow_is_told_before_it_loads(tmp_path, family_folders, parts, capsys, name):
    assert run("fit", configured(tmp_path / "run", family_folders, "sd1", parts, **{name: 1.0})) == 2
    assert "terms for flow matching" in capsys.readouterr().err


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True])
def test_weights_that_make_no_sense_are_named(value):
    with pytest.raises(ConfigError, match="anti_drift is"):
        RolloutOptions(3, anti_drift=value)
    with pytest.raises(ConfigError, match="anti_drift has no effect with max_step_offset: 0"):
        RolloutOptions(0, anti_drift=1.0)
