"""`PriorControl`: the weight of the prior follows the drift, and comes to rest."""

from __future__ import annotations

import math
import pathlib
import types
import warnings
from typing import Any

import pytest
import torch

from dreamlit.callbacks.prior_control import PriorControl
from dreamlit.errors import ConfigError
from runs import fit, merged, write_photos
from tests.prior_runs import configured, control, logged


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3)


@pytest.mark.parametrize(("target", "bound"), [(1e-3, 5.0), (10.0, 0.1)])
def test_the_weight_follows_the_drift(tmp_path, tiny_model, photos, target, bound):
    options: dict[str, Any] = {"target": target, "every_n_steps": 2, "gain": 1.0, "max_weight": 5.0, "min_weight": 0.1}
    changes = {"trainer.max_steps": 16, "trainer.callbacks": control(**options)}
    root = fit(configured(tmp_path, tiny_model, photos, "run", **changes))
    weights, losses = logged(root, "prior/weight"), logged(root, "loss/class")
    assert len(weights) == len(losses) == 16
    weight = 1.0
    for step in range(1, 17):
        if step % 2 == 0:
            drift = sum(losses[step - 2 : step]) / 2
            weight = min(max(weight * min(max(drift / target, 0.1), 10.0) ** 0.2, 0.1), 5.0)
        assert weights[step - 1] == pytest.approx(weight, rel=1e-4)
    assert weights[-1] == pytest.approx(bound)


def test_the_drift_comes_to_its_target(tmp_path, tiny_model, photos):
    reached = {}
    for target in (1e-4, 1e-3):
        changes = {
            "trainer.max_steps": 160,
            "trainer.callbacks": control(target=target, every_n_steps=5, gain=1.0, max_weight=1000.0),
        }
        config = configured(tmp_path, tiny_model, photos, f"run{target}", "a dog", **changes)
        config["model"]["optimizer"]["init_args"]["lr"] = 0.002
        root = fit(merged(config, {"checkpoint.every_n_steps": 160}))
        last = logged(root, "loss/class")[-80:]
        reached[target] = sum(last) / len(last)
    for target, drift in reached.items():
        assert target / 2 < drift < target * 2, reached


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": 0.0}, "target is 0.0"),
        ({"target": math.nan}, "target is nan"),
        ({"target": 1.0, "every_n_steps": 0}, "every_n_steps is 0"),
        ({"target": 1.0, "gain": 1.5}, "gain is 1.5"),
        ({"target": 1.0, "min_weight": 2.0, "max_weight": 1.0}, "min_weight is 2.0, above max_weight 1.0"),
    ],
)
def test_wrong_options_are_named(options, said):
    with pytest.raises(ConfigError, match=said):
        PriorControl(**options)


# how it comes to rest -------------------------------------------------------------------------------------------------


def steered(
    tmp_path, weight: float, steps: int, floor: float = 0.001, noise: float = 0.0, resumed: int = 0, **options: Any
) -> list[float]:
    """The weights of a run whose drift follows the weight as the toybox's does: by some 50 steps, down to a floor.

    noise: of the log of each measured drift. resumed: every so many steps.
    """
    callback = PriorControl(target=0.003, **options)
    trainer: Any = types.SimpleNamespace(
        global_step=0, log_every_n_steps=0, default_root_dir=str(tmp_path), is_global_zero=True
    )
    random = torch.Generator().manual_seed(0)
    objective = types.SimpleNamespace(prior_loss_weight=weight)
    module: Any = types.SimpleNamespace(objective=objective, device=torch.device("cpu"), step_skipped=False)
    module.prior_loss_weight = weight
    callback.on_train_start(trainer, module)
    weights, drift = [], 0.0
    for step in range(1, steps + 1):
        drift += (0.025 / (1 + module.prior_loss_weight / 3) + floor - drift) / 50
        seen = drift * math.exp(noise * float(torch.randn((), generator=random)))
        module.step_sums = types.SimpleNamespace(held=torch.tensor([seen, 1.0], dtype=torch.float64))
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, None, step)
        weights.append(module.prior_loss_weight)
        if resumed and step % resumed == 0:
            state = callback.state_dict()
            callback = PriorControl(target=0.003, **options)
            callback.load_state_dict(state)
            callback.on_train_start(trainer, module)
    return weights


@pytest.mark.parametrize("every", [1, 10, 20])
@pytest.mark.parametrize("start", [1.0, 30.0])
def test_by_default_the_weight_comes_to_rest_without_swinging(tmp_path, start, every):
    weights = steered(tmp_path, start, 800, every_n_steps=every)
    rest = 34.5  # 0.025 / (1 + 34.5 / 3) + 0.001 = 0.003
    assert weights[-1] == pytest.approx(rest, rel=0.02)
    assert max(weights) < 1.1 * rest and min(weights) > 0.5 * start
    swinging = steered(tmp_path, start, 800, gain=0.5, max_weight=1000.0)
    assert max(swinging) > 2 * rest  # what the default is for


def test_a_drift_of_nothing_at_the_start_does_not_throw_the_weight_away(tmp_path):
    callback_weights = steered(tmp_path, 30.0, 10, floor=-0.0024)  # at a weight of 30 this drift is below 0
    assert callback_weights[-1] == pytest.approx(30 * 0.1**0.1)


@pytest.mark.parametrize("resumed", [0, 90])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_target_that_no_weight_reaches_is_said_once(tmp_path, noise, resumed):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weights = steered(tmp_path, 90.0, 4000, floor=0.004, noise=noise, resumed=resumed)
    said = [str(one.message) for one in caught if "PriorControl" in str(one.message)]
    assert weights.count(100.0) > 2000
    assert len(said) == 1 and "stays above its target of 0.003" in said[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steered(tmp_path, 30.0, 2000, noise=noise / 4, resumed=resumed)
    assert not [one for one in caught if "PriorControl" in str(one.message)]
