"""`ScheduledSampling` in complete runs: it changes what is trained on, and nothing else."""

import csv
import pathlib

import pytest
import torch

from dreamlit import module as module_file
from dreamlit.module import DreamBooth
from runs import assert_same_state, base_config, checkpoint, fit, merged, regularisation, run, write_photos

ROLLED = {"class_path": "ScheduledSampling", "init_args": {"max_step_offset": 3, "probability": 1.0}}
ADAPTERS = {
    "LoRA": {"class_path": "LoRA", "init_args": {"rank": 4, "dropout": 0.5}},
    "LoKr": {"class_path": "LyCORIS", "init_args": {"algo": "lokr", "rank": 4, "factor": 4}},
    "Full": {"class_path": "Full"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3)


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("class"), [(64, 64)] * 2, seed=1)


def configured(tmp_path, tiny, photos, others, name, callback=ROLLED, adapter="LoRA"):
    config = base_config(tmp_path / name, tiny, photos)
    config["data"]["datasets"].append(regularisation(others))
    config["model"]["adapter"] = ADAPTERS[adapter]
    return merged(config, {"trainer.callbacks": [callback] if callback else [], "checkpoint.every_n_steps": 2})


@pytest.fixture
def rollouts(monkeypatch):
    """Every rollout of a run: (offsets, x_t, the random state before and after it)."""
    seen = []
    real = module_file.rollout

    def recorded(predict, process, x0, eps, t, offsets, options):
        before = torch.default_generator.get_state()
        x_t = real(predict, process, x0, eps, t, offsets, options)
        seen.append((offsets, x_t, before, torch.default_generator.get_state()))
        return x_t

    monkeypatch.setattr(module_file, "rollout", recorded)
    return seen


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_resumed_run_rolls_out_as_it_would_have(tmp_path, tiny_model, photos, others, adapter, rollouts):
    whole = fit(configured(tmp_path, tiny_model, photos, others, "whole", adapter=adapter))
    first = [offsets.tolist() for offsets, *_ in rollouts]
    assert len(first) == 4 and any(max(offsets) > 1 for offsets in first)
    part = configured(tmp_path, tiny_model, photos, others, "part", adapter=adapter)
    root = fit(part)
    (root / "checkpoints" / "step-000004.ckpt").unlink()
    rollouts.clear()
    fit(part, "--ckpt_path", "last")
    assert [offsets.tolist() for offsets, *_ in rollouts] == first[2:]
    assert_same_state(checkpoint(whole, 4)["state_dict"], checkpoint(root, 4)["state_dict"])


def test_it_uses_no_training_randomness_and_the_base_sees_the_same_state(
    tmp_path, tiny_model, photos, others, rollouts, monkeypatch
):
    by_base = []
    real = DreamBooth.base_prediction

    def recorded(self, x_t, batch, needed):
        by_base.append(x_t)
        return real(self, x_t, batch, needed)

    monkeypatch.setattr(DreamBooth, "base_prediction", recorded)
    fit(configured(tmp_path, tiny_model, photos, others, "run"))
    assert rollouts
    for (_, x_t, before, after), of_base in zip(rollouts, by_base, strict=True):
        assert torch.equal(before, after)
        assert torch.equal(x_t, of_base)


def test_the_cost_and_the_share_are_logged(tmp_path, tiny_model, photos, others):
    root = fit(configured(tmp_path, tiny_model, photos, others, "run"))
    with (root / "logs" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("rollout/share")]
    assert len(rows) == 4
    assert {float(row["rollout/share"]) for row in rows} <= {0.5, 1.0}  # near the end of the schedule there is no room
    assert all(0 < float(row["rollout/forwards"]) <= 3 for row in rows)


def test_a_probability_of_zero_is_off_to_the_last_bit(tmp_path, tiny_model, photos, others):
    off = {"class_path": "ScheduledSampling", "init_args": {"max_step_offset": 3, "probability": 0.0}}
    one = fit(configured(tmp_path, tiny_model, photos, others, "off", off))
    two = fit(configured(tmp_path, tiny_model, photos, others, "without", None))
    three = fit(configured(tmp_path, tiny_model, photos, others, "on"))
    assert_same_state(checkpoint(one, 4)["state_dict"], checkpoint(two, 4)["state_dict"])
    pairs = zip(checkpoint(one, 4)["state_dict"].values(), checkpoint(three, 4)["state_dict"].values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_an_evaluation_is_never_rolled_out(tmp_path, tiny_model, photos, others, rollouts):
    config = configured(tmp_path, tiny_model, photos, others, "run")
    config["data"]["datasets"].append({**config["data"]["datasets"][0], "id": "held-out", "dataset_type": "eval"})
    config = merged(config, {"trainer.val_check_interval": 1, "trainer.check_val_every_n_epoch": None})
    fit(config)
    assert len(rollouts) == 4  # one for each training batch
    assert run("validate", config, "--ckpt_path", "last") == 0
    assert len(rollouts) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_step_offset": 3, "sampler": "unipcc"}, "unipcc"),
        ({"max_step_offset": 0, "sampler": "dpm"}, "no effect with max_step_offset: 0"),
        ({"max_step_offset": 3, "step_stride": 5000}, "step_stride is 5000"),
        ({}, "max_step_offset"),
    ],
)
def test_wrong_options_are_named_before_the_model_loads(tmp_path, tiny_model, photos, others, capsys, options, message):
    callback = {"class_path": "ScheduledSampling", "init_args": options}
    assert run("fit", configured(tmp_path, tiny_model, photos, others, "run", callback)) == 2
    assert message in capsys.readouterr().err
