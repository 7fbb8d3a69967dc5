"""A step that is not finite names its samples, changes nothing, and ends the run where no more may be left out."""

import json
import math
import pathlib
import types

import pytest
import torch
from lightning.pytorch import Callback

from dreamlit import curves, events
from dreamlit.adapters import LoRA
from dreamlit.errors import ConfigError
from dreamlit.families import SDXL
from dreamlit.module import DreamBooth
from dreamlit.non_finite import NonFinite, NonFiniteError, holds_non_finite, judged_gradients, known_first, ways_out
from recorder import rows
from runs import assert_same_state, base_config, checkpoint, fit, merged, run, write_photos
from test_distributed import TWO_PROCESSES, finish, start

STEPS, ACCUMULATE, BATCH = 6, 2, 2


class Poison(Callback):
    """Makes the latent of some draws infinite, or the gradient of one optimizer step.

    Args:
        keys: Draws, as `dataset/path#visit`.
        step: Optimizer step, from 1, whose gradient is spoiled.
    """

    def __init__(self, keys: list[str], step: int = 0) -> None:
        self.keys, self.step = keys, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for row, key in enumerate(batch.keys):
            if key in self.keys:
                batch.latents[row] = math.inf

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step + 1 == self.step:
            next(iter(pl_module.adapter.parameters().values())).grad.flatten()[0] = math.nan


class KeepsWeights(Callback):
    """Writes what each rank ends with."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), f"{self.path}.{trainer.global_rank}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 5)


def configured(root: pathlib.Path, model, photos, poison: dict, **changes) -> dict:
    config = base_config(root, model, photos)
    config["model"]["family"]["class_path"] = "SD"
    callbacks = [
        {"class_path": "recorder.Recorder", "init_args": {"path": f"{root}.jsonl"}},
        {"class_path": "test_non_finite.Poison", "init_args": poison},
        {"class_path": "EMA", "init_args": {"decay": 0.9}},
        {"class_path": "EventLog"},
    ]
    fixed = {
        "trainer.max_steps": STEPS,
        "trainer.accumulate_grad_batches": ACCUMULATE,
        "trainer.callbacks": callbacks,
        "checkpoint.every_n_steps": 1,
        "checkpoint.keep": 0,
        "data.batch_size": BATCH,
        "model.lr_scheduler": "cosine",
        "model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
    }
    return merged(config, {**fixed, **changes})


def bad_steps(trace: list[dict]) -> list[int]:
    """Optimizer steps, from 1, in which a sample's loss is not finite."""
    return sorted({row["position"] // ACCUMULATE + 1 for row in trace if not math.isfinite(sum(row["per_sample"]))})


@pytest.fixture(scope="module")
def skipping(tmp_path_factory, tiny_sd_model, photos):
    """A run that leaves out two steps: one draw is in the first batch of its step, another in the second."""
    folder = tmp_path_factory.mktemp("skipping")
    clean = configured(folder / "clean", tiny_sd_model, photos, {"keys": []})
    fit(clean)
    trace = rows(folder / "clean.jsonl")
    keys = [trace[2 * ACCUMULATE]["keys"][0], trace[4 * ACCUMULATE + 1]["keys"][1]]
    config = configured(folder / "run", tiny_sd_model, photos, {"keys": keys}, **{"model.max_skipped_steps": 2})
    with pytest.warns(UserWarning, match="optimizer step 3 is not finite"):
        fit(config)
    return types.SimpleNamespace(root=folder / "run", clean=folder / "clean", keys=keys, config=config)


def test_a_step_left_out_changes_nothing_and_the_plan_goes_on(skipping):
    trace = rows(f"{skipping.root}.jsonl")
    assert [row["keys"] for row in trace] == [row["keys"] for row in rows(f"{skipping.clean}.jsonl")]
    assert bad_steps(trace) == [3, 5]
    states = {step: checkpoint(skipping.root, step) for step in range(1, STEPS + 1)}
    for step in range(2, STEPS + 1):
        before, after = states[step - 1], states[step]
        assert after["global_step"] == step
        if step in (3, 5):
            for part in ("state_dict", "optimizer_states", "lr_schedulers"):
                assert_same_state(before[part], after[part], f"{part} at {step}")
            assert_same_state(before["callbacks"]["EMA"], after["callbacks"]["EMA"], f"EMA at {step}")
        else:
            assert any(not torch.equal(w, before["state_dict"][name]) for name, w in after["state_dict"].items())
            assert after["callbacks"]["EMA"]["updates"] == before["callbacks"]["EMA"]["updates"] + 1
            assert after["lr_schedulers"] != before["lr_schedulers"]


def test_steps_before_the_first_bad_one_are_those_of_a_clean_run(skipping):
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same_state(checkpoint(skipping.root, 2)[part], checkpoint(skipping.clean, 2)[part], part)


def test_steps_left_out_are_counted_in_the_logs_and_told_as_events(skipping):
    logged = [json.loads(line) for line in (skipping.root / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in logged] == [0, 0, 1, 1, 2, 2]
    told = [json.loads(line) for line in (skipping.root / "events.jsonl").read_text().splitlines()]
    told = [record for record in told if record["event"] == "warning"]
    assert [(record["level"], record["data"]["step"]) for record in told] == [("warning", 2), ("warning", 4)]
    trace = rows(f"{skipping.root}.jsonl")
    for record, key in zip(told, skipping.keys, strict=True):
        row = next(row for row in trace if key in row["keys"])
        name, visit = key.removeprefix("subject/").split("#")
        message = record["data"]["message"]
        assert f"{name} of dataset 'subject' (visit {visit}), timestep {row['t'][row['keys'].index(key)]:g}" in message
        assert f"1 of its {ACCUMULATE * BATCH} samples" in message and message.count("timestep") == 1


def test_a_resume_counts_on_and_equals_the_uninterrupted_run(skipping, tmp_path, capsys):
    config = merged(skipping.config, {"trainer.default_root_dir": str(tmp_path / "part")})
    config["trainer"]["callbacks"][0]["init_args"]["path"] = str(tmp_path / "part.jsonl")
    stopped = merged(config, {"model.max_skipped_steps": 1})
    with pytest.warns(UserWarning, match="number 1 of at most 1"):
        assert run("fit", stopped) == 2
    assert "max_skipped_steps is 1, and as many were left out" in capsys.readouterr().err
    saved = {path.name: path.read_bytes() for path in (tmp_path / "part" / "checkpoints").iterdir()}
    assert max(saved) == "step-000004.ckpt"
    assert run("fit", stopped, "--ckpt_path", "last") == 2  # the count goes on, so the next one is too many
    assert saved == {path.name: path.read_bytes() for path in (tmp_path / "part" / "checkpoints").iterdir()}
    with pytest.warns(UserWarning, match="number 2 of at most 2"):
        fit(config, "--ckpt_path", "last")
    one, two = checkpoint(skipping.root, STEPS), checkpoint(tmp_path / "part", STEPS)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "DreamBoothData"):
        assert_same_state(one[part], two[part], part)
    assert_same_state(one["callbacks"]["EMA"], two["callbacks"]["EMA"])
    assert one["dreamlit"]["skipped_steps"] == two["dreamlit"]["skipped_steps"] == 2


def test_the_first_bad_gradient_stops_a_run_that_says_nothing_about_it(tmp_path, tiny_sd_model, photos, capsys):
    assert run("fit", configured(tmp_path / "run", tiny_sd_model, photos, {"keys": [], "step": 3})) == 2
    said = capsys.readouterr().err
    assert "optimizer step 3 is not finite: the norm of the gradient is nan" in said
    assert said.count(" of dataset 'subject' (visit ") == ACCUMULATE * BATCH and "--ckpt_path last" in said
    assert max(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == "step-000002.ckpt"


@pytest.mark.slow
def test_all_ranks_leave_out_the_same_step_and_name_the_sample_of_another(tmp_path, tiny_sd_model, skipping, photos):
    """The draw is in the second half of its batch, which rank 1 sees."""
    poison = {"keys": skipping.keys[1:]}
    two = configured(tmp_path / "two", tiny_sd_model, photos, poison, **TWO_PROCESSES, **{"model.max_skipped_steps": 1})
    keep = {"class_path": "test_non_finite.KeepsWeights", "init_args": {"path": str(tmp_path / "weights")}}
    two["trainer"]["callbacks"].append(keep)
    codes, said = finish(start(two))
    assert codes == [0], said
    name = skipping.keys[1].removeprefix("subject/").split("#")[0]
    assert f"{name} of dataset 'subject'" in said and f"1 of its {ACCUMULATE * BATCH} samples" in said
    ends = [torch.load(tmp_path / f"weights.{rank}", weights_only=True) for rank in (0, 1)]
    assert_same_state(*ends)
    assert all(torch.isfinite(weight).all() for weight in ends[0].values())
    assert_same_state(checkpoint(tmp_path / "two", 5)["state_dict"], checkpoint(tmp_path / "two", 4)["state_dict"])


# alone ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, True, 1.5, "3", None])
def test_a_number_of_steps_that_is_none_is_refused(value, tiny_model):
    with pytest.raises(ConfigError, match=r"max_skipped_steps is .* whole number"):
        DreamBooth(SDXL(str(tiny_model)), LoRA(4), max_skipped_steps=value)


def watched(most: int, losses: list[float], weight: float = 0.0):
    """A `NonFinite` that has seen one batch, with a trainer and a module to go with it."""
    watch = NonFinite(most)
    batch = types.SimpleNamespace(keys=[f"a/b/{n}.png#0" for n in range(len(losses))], t=torch.arange(len(losses)))
    watch.see(batch, torch.tensor(losses), first=True)  # pyright: ignore[reportArgumentType]
    trainer = types.SimpleNamespace(global_step=0, world_size=1, is_global_zero=True, default_root_dir="runs/none")
    adapter = types.SimpleNamespace(parameters=lambda: {"w": torch.tensor([weight])})
    return watch, trainer, types.SimpleNamespace(adapter=adapter)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_is_seen_wherever_it_is(bad, where):
    loss, gradients = torch.tensor(1.0), [torch.ones(3), torch.ones(2, 2)]
    assert NonFinite(0).is_finite(loss, gradients)
    if where == "loss":
        loss = loss * bad
    else:
        gradients[1][1, 0] = bad
    assert not NonFinite(0).is_finite(loss, gradients)


@pytest.mark.parametrize("device", ["cpu", "xpu"])  # xpu: the way of devices that may lack the kernel
def test_gradients_are_looked_at_and_left_as_they_are(device):
    gradients = [torch.tensor([1e-45, -0.0, 3e38, -1e-38]), torch.randn(3, 2, dtype=torch.float64).t()]
    if device == "xpu":
        gradients[0] = gradients[0] / 1e30  # that way goes by the norm, which must not overflow
    before = [gradient.clone() for gradient in gradients]
    assert not holds_non_finite(gradients, torch.device(device))
    for gradient, was in zip(gradients, before, strict=True):
        assert torch.equal(gradient, was) and torch.equal(gradient.signbit(), was.signbit())
    gradients[1][1, 2] = -math.inf
    assert holds_non_finite(gradients, torch.device(device))
    assert not holds_non_finite([], torch.device("cpu"))


def test_lost_weights_stop_the_run_although_steps_may_be_left_out():
    watch, trainer, module = watched(5, [math.nan], weight=math.inf)
    assert not watch.is_finite(torch.tensor(math.nan), [])
    with pytest.raises(NonFiniteError, match="1 trained weights are not finite themselves"):
        watch.skip(trainer, module)
    assert watch.skipped == 0


def test_of_many_samples_the_first_are_named_and_the_rest_counted():
    watch, trainer, module = watched(0, [math.nan] * 30)
    assert not watch.is_finite(torch.tensor(math.nan), [])
    with pytest.raises(NonFiniteError, match="and 10 more") as caught:
        watch.skip(trainer, module)
    assert str(caught.value).count("b/") == 20 and "of dataset 'a'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [("step-000002.ckpt", "--ckpt_path last"), ("best.ckpt", "--ckpt_path best"), (None, "No checkpoint was written")],
)
def test_the_way_on_is_a_checkpoint_that_is_there(tmp_path, name, said):
    """An evaluation before the first step leaves a best checkpoint, and no other."""
    (tmp_path / "checkpoints").mkdir()
    if name:
        (tmp_path / "checkpoints" / name).touch()
    assert said in ways_out(str(tmp_path)) and ways_out(str(tmp_path)).count("--ckpt_path") == bool(name)


def test_a_step_left_out_is_told_to_subscribers():
    watch, trainer, module = watched(1, [math.nan])
    told = []
    leave = events.subscribe(trainer, told.append)
    assert not watch.is_finite(torch.tensor(math.nan), [])
    with pytest.warns(UserWarning, match="left out, as number 1"):
        watch.skip(trainer, module)
    leave()
    assert [record.event.kind for record in told] == ["warning"] and "\n" in told[0].event.message


def test_a_loss_that_is_not_finite_is_no_point_of_the_loss_plot(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "loss_figure", lambda curves, title: drawn.append(curves["loss"]))
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: path)
    curves.draw_losses(tmp_path / "a.png", tmp_path, {1: 0.5, 2: math.nan, 3: 0.25}, until_step=3, title="")
    assert drawn == [{1: 0.5, 3: 0.25}]


def test_a_gradient_scaler_judges_gradients_itself():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.full((2,), math.inf)
    optimizer = torch.optim.SGD([weight])
    plain, scaled = (types.SimpleNamespace(precision_plugin=types.SimpleNamespace(scaler=s)) for s in (None, object()))
    assert judged_gradients(scaled, optimizer) == [] and len(judged_gradients(plain, optimizer)) == 1


def test_an_optimizer_that_evaluates_again_gets_another_evaluation():
    counted = iter(range(1, 10))
    closure = known_first(0, lambda: next(counted))
    assert [closure(), closure(), closure()] == [0, 1, 2]
