"""The average of the trained weights: its arithmetic, where it stands in, and that training does not notice it."""

import json
import pathlib
import types
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreamlit.adapters import Adapter
from dreamlit.averaging import Snapshot, gamma_of, mixing, profile, read_snapshots, reconstruct, sigma_rel_of
from dreamlit.callbacks.ema import EMA, average_for
from dreamlit.commands import newest_adapter
from dreamlit.errors import CheckpointError, CombinationError, ConfigError
from dreamlit.export import load_into_adapter
from dreamlit.training_cli import parts_of
from runs import assert_same_state, base_config, checkpoint, fit, merged, run, write_config, write_photos

ADAPTERS = {
    "LoRA": {"class_path": "LoRA", "init_args": {"rank": 2, "dropout": 0.2}},
    "LoKr": {"class_path": "LyCORIS", "init_args": {"algo": "lokr", "rank": 2, "factor": 4}},
    "Full": {"class_path": "Full"},
}
LR = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}  # so that a few steps show
PROMPT = "a photo of sks dog"


class Toy:
    """An adapter of two tensors, and enough of a module and a trainer around it."""

    load_state = Adapter.load_state

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.weights = {"a": torch.randn(3, 2, generator=generator), "b": torch.randn(4, generator=generator)}
        self.weights = {name: torch.nn.Parameter(value) for name, value in self.weights.items()}
        self.adapter, self.device, self.eval_passes = self, torch.device("cpu"), ("", "-ema")
        self.trainer = types.SimpleNamespace(global_step=0, fast_dev_run=False, is_global_zero=True, callbacks=[])
        self.history = [self.now()]

    def parameters(self):
        return self.weights

    def now(self):
        return {name: weight.detach().double() for name, weight in self.weights.items()}

    def step(self, ema, inside_window=False):
        """One batch, which completes an optimizer step unless it is inside its accumulation window."""
        if not inside_window:
            self.trainer.global_step += 1
            for number, weight in enumerate(self.weights.values()):
                generator = torch.Generator().manual_seed(2 * self.trainer.global_step + number)
                weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
            self.history.append(self.now())
        ema.on_train_batch_end(self.trainer, self, None, None, 0)


def trained(ema, steps, toy=None):
    toy = toy or Toy()
    ema.on_fit_start(toy.trainer, toy)
    ema.on_train_start(toy.trainer, toy)
    for _ in range(steps):
        toy.step(ema)
    return toy


def assert_is(average, weights, history):
    """The average is the sum of `history` with these weights, to float32."""
    for name, tensor in average.items():
        expected = sum(weight * state[name] for weight, state in zip(weights, history, strict=True))
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


# the arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("steps", [5, 20, 61])
@pytest.mark.parametrize("decay", [0.0, 0.05, 0.6, 0.9, 0.9999])
def test_the_average_is_the_closed_form(decay, steps, every):
    ema = EMA(decay=decay, update_every_n_steps=every)
    toy = trained(ema, steps)
    seen = toy.history[::every]
    count = len(seen) - 1
    assert ema.updates == count
    betas = np.minimum(decay**every, np.arange(1, count + 1) / np.arange(10, count + 10))
    kept = np.append(np.cumprod(betas[::-1])[::-1], 1.0)  # what of each state is still there at the end
    assert_is(ema.average, [kept[0], *((1 - betas) * kept[1:])], seen)


def test_where_the_ramp_does_not_bind_it_is_the_geometric_series():
    ema, n = EMA(decay=0.1), 12
    toy = trained(ema, n)
    assert_is(ema.average, [0.1**n, *(0.9 * 0.1 ** (n - i) for i in range(1, n + 1))], toy.history)


def test_the_decay_of_rare_updates_is_that_of_as_many_steps():
    """With weights that stand still from the start, only what is left of the first state counts."""
    left = []
    for every in (1, 4):
        ema, toy = EMA(decay=0.08, update_every_n_steps=every), Toy()  # below the ramp at every update
        ema.on_fit_start(toy.trainer, toy)
        ema.on_train_start(toy.trainer, toy)
        toy.weights["a"].data += 1
        for toy.trainer.global_step in range(1, 9):
            ema.on_train_batch_end(toy.trainer, toy, None, None, 0)
        left.append(float((toy.weights["a"] - ema.average["a"]).detach().double().mean()))
    assert left[0] == pytest.approx(0.08**8, abs=1e-6) and left[1] == pytest.approx(0.08**8, abs=1e-6)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("sigma_rel", [0.02, 0.1, 12**-0.5])
def test_the_power_average_weighs_by_its_profile(sigma_rel, every):
    ema = EMA(sigma_rel=sigma_rel, update_every_n_steps=every)
    toy = trained(ema, 45)
    seen = toy.history[every::every]
    gamma = gamma_of(sigma_rel)
    edges = np.linspace(0, 1, len(seen) + 1) ** (gamma + 1)  # the integral of (gamma + 1) tau^gamma
    assert_is(ema.average, np.diff(edges), seen)


def test_exponents_are_the_papers_and_give_their_widths():
    assert [gamma_of(width) for width in (0.05, 0.10)] == pytest.approx([16.97, 6.94], abs=0.005)
    for width in (0.001, 0.05, 0.2, 12**-0.5):
        assert sigma_rel_of(gamma_of(width)) == pytest.approx(width, rel=1e-9)
        grid = (np.arange(200_000) + 0.5) / 200_000
        weight = (gamma_of(width) + 1) * grid ** gamma_of(width) / 200_000
        mean = (weight * grid).sum()
        assert (weight * (grid - mean) ** 2).sum() ** 0.5 == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize("width", [0, -0.1, 0.29, float("nan")])
def test_a_width_that_no_profile_has_is_refused(width):
    with pytest.raises(ConfigError, match="sigma_rel"):
        gamma_of(width)


def test_batches_inside_a_window_are_not_averaged():
    plain, windowed = EMA(decay=0.5), EMA(decay=0.5)
    toy = trained(plain, 4)
    other = trained(windowed, 0)
    for _ in range(4):
        other.step(windowed, inside_window=True)
        other.step(windowed, inside_window=True)
        other.step(windowed)
    assert windowed.updates == 4
    assert_same_state(plain.average, windowed.average)
    assert_same_state(toy.now(), other.now())


class Event:
    """Stands in for a CUDA event: the copy is there when someone has waited for it."""

    def record(self):
        self.waited = 0

    def synchronize(self):
        self.waited += 1


def test_an_update_on_its_way_from_a_gpu_is_finished_by_whoever_reads(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    direct, late = EMA(decay=0.7), EMA(decay=0.7)
    toy = trained(direct, 5)
    other = trained(late, 0)
    late._arrived = [torch.full_like(weight, torch.nan) for weight in other.weights.values()]
    for _ in range(5):
        other.step(late)
        assert late._on_the_way is not None
    event = late._on_the_way
    for weight in other.weights.values():
        weight.data.add_(1)  # the next optimizer step, which the copy in flight must not see
    assert_same_state(late.state_dict(), direct.state_dict())
    assert event.waited == 1 and late.updates == direct.updates == 5
    assert toy.trainer.global_step == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_averages_of_a_gpus_weights_are_those_on_the_cpu():
    results = []
    for place, device in (("cpu", "cpu"), ("cuda", "cpu"), ("cuda", "model")):
        toy, ema = Toy(), EMA(decay=0.7, device=device)
        toy.device = torch.device(place)
        for weight in toy.weights.values():
            weight.data = weight.data.to(place)
        ema.on_fit_start(toy.trainer, toy)
        for step in range(1, 30):
            toy.trainer.global_step = step
            for weight in toy.weights.values():
                weight.data += 0.1 * step
            ema.on_train_batch_end(toy.trainer, toy, None, None, 0)
        with ema.swapped_in(toy):
            results.append({name: weight.detach().cpu() for name, weight in toy.weights.items()})
    for other in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-5)


# averages after the run -----------------------------------------------------------------------------------------------


def trajectory(updates):
    """Weights that settle while they are shaken, [updates, 50]: a stand-in for a training run."""
    random = np.random.default_rng(0)
    t = np.arange(1, updates + 1)[:, None] / updates
    return (
        np.exp(-3 * t) * random.normal(size=50)
        + np.sin(4 * t + random.normal(size=50))
        + random.normal(size=(updates, 50)) * 0.2 / (0.1 + t)
    )


def tracked(states, width, end):
    return {"w": torch.from_numpy(profile(width, end) @ states[:end]).float()}


def test_an_average_that_was_kept_is_found_exactly():
    states = trajectory(400)
    snapshots = [Snapshot(w, end, tracked(states, w, end)) for w in (0.05, 0.1) for end in range(50, 401, 50)]
    for snapshot in (snapshots[7], snapshots[15], snapshots[9]):
        again = reconstruct(snapshots, snapshot.sigma_rel, snapshot.updates)
        torch.testing.assert_close(again["w"], snapshot.weights["w"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [0.06, 0.075, 0.09])
def test_two_tracks_give_a_third_length(width):
    states = trajectory(400)
    snapshots = [Snapshot(w, end, tracked(states, w, end)) for w in (0.05, 0.1) for end in range(50, 401, 50)]
    wanted = tracked(states, width, 400)["w"]
    error = float((reconstruct(snapshots, width)["w"] - wanted).norm() / wanted.norm())
    nearest = min(float((s.weights["w"] - wanted).norm() / wanted.norm()) for s in snapshots)
    assert error < 4e-3
    assert nearest > 4 * error  # no snapshot is that near by itself


def test_factors_tend_to_the_papers_closed_form():
    """Appendix C of Karras et al. 2024: A x = b with the inner products of continuous profiles."""

    def inner(a, b):
        (ga, ta), (gb, tb) = sorted((a, b), key=lambda pair: pair[1])
        return (ga + 1) * (gb + 1) * ta**gb / ((ga + gb + 1) * tb ** (gb + 1))

    known = [(w, end) for w in (0.05, 0.1) for end in (1000, 2000, 4000)]
    pairs = [(gamma_of(w), float(end)) for w, end in known]
    wanted = (gamma_of(0.075), 4000.0)
    paper = np.linalg.solve([[inner(p, q) for q in pairs] for p in pairs], [inner(p, wanted) for p in pairs])
    assert mixing(known, 0.075, 4000) == pytest.approx(paper, abs=0.01)
    assert abs(paper).max() > 0.1


def test_snapshots_that_cannot_be_used_are_named(tmp_path):
    one = {"w": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="no snapshots"):
        reconstruct([], 0.1)
    with pytest.raises(ConfigError, match=r"updates is 9.* 1 to 4"):
        reconstruct([Snapshot(0.1, 4, one)], 0.1, updates=9)
    with pytest.raises(CheckpointError, match=r"not of one run.*\n.*update 8: w"):
        reconstruct([Snapshot(0.1, 4, one), Snapshot(0.1, 8, {"w": torch.zeros(2)})], 0.1)
    with pytest.raises(CheckpointError, match="holds no snapshots"):
        read_snapshots(tmp_path)
    (tmp_path / "step-000004-sigma-0.1.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"step-000004-sigma-0\.1"):
        read_snapshots(tmp_path)


# in the place of the weights ------------------------------------------------------------------------------------------


def test_the_weights_come_back_to_the_last_bit_also_after_an_exception():
    ema = EMA(decay=0.5)
    toy = trained(ema, 3)
    before = toy.now()
    shown = []

    def look():
        with ema.swapped_in(toy) as swapped:
            with ema.swapped_in(toy):
                pass
            shown.append((swapped, {name: weight.detach().clone() for name, weight in toy.weights.items()}))
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        look()
    assert_same_state(shown, [(True, ema.average)])
    assert_same_state(toy.now(), before)


def test_an_evaluation_that_fails_gives_the_weights_back():
    ema = EMA(decay=0.5)
    toy = trained(ema, 3)
    before = toy.now()
    with torch.inference_mode():
        ema.on_validation_batch_start(toy.trainer, toy, None, 0, 1)
        saved = {"state_dict": {name: weight.detach() for name, weight in toy.weights.items()}}
    ema.on_save_checkpoint(toy.trainer, toy, saved)  # a checkpoint in the middle has the weights all the same
    assert_same_state({name: tensor.double() for name, tensor in saved["state_dict"].items()}, before)
    assert float((toy.now()["a"] - before["a"]).abs().max()) > 0.01
    ema.on_exception(toy.trainer, toy, RuntimeError())
    assert_same_state(toy.now(), before)
    toy.step(ema)  # and training goes on
    assert ema.updates == 4


def test_before_the_first_update_the_weights_are_used():
    ema = EMA(update_every_n_steps=5)
    toy = trained(ema, 4)
    toy.trainer.callbacks = [ema]
    with ema.swapped_in(toy) as swapped:
        assert not swapped
        assert_same_state(toy.now(), toy.history[-1])
    assert average_for(toy.trainer, "export") is None
    toy.step(ema)
    assert average_for(toy.trainer, "export") is ema


# wrong settings -------------------------------------------------------------------------------------------------------

WRONG = [
    ({"decay": 1.0}, "decay is 1.0; it must be at least 0 and below 1"),
    ({"decay": -0.1}, "decay is -0.1"),
    ({"decay": float("nan")}, "decay is nan"),
    ({"decay": 0.9, "sigma_rel": 0.1}, "leave one out"),
    ({"sigma_rel": 0.5}, "sigma_rel is 0.5.*0.2887"),
    ({"sigma_rel": []}, "at least one"),
    ({"sigma_rel": [0.1, 0.1], "snapshots_every_n_steps": 5}, "each once"),
    ({"sigma_rel": [0.05, 0.1]}, "set snapshots_every_n_steps"),
    ({"snapshots_every_n_steps": 10}, "needs sigma_rel"),
    ({"sigma_rel": 0.1, "snapshots_every_n_steps": 3, "update_every_n_steps": 2}, "a multiple of"),
    ({"sigma_rel": 0.1, "snapshots_every_n_steps": 0}, "snapshots_every_n_steps is 0"),
    ({"update_every_n_steps": 0}, "update_every_n_steps is 0; it must be at least 1"),
    ({"use_for": ["exports"]}, "did you mean 'export'"),
    ({"use_for": ["export", "export"]}, "each use once"),
    ({"use_for": []}, "of no use"),
    ({"device": "gpu"}, "device is 'gpu'.*cpu, model"),
]


@pytest.mark.parametrize(("options", "expected"), WRONG)
def test_a_wrong_setting_is_named(options, expected):
    with pytest.raises(ConfigError, match=expected):
        EMA(**options)


def test_all_faults_come_in_one_report_before_anything_loads(tmp_path, tiny_sd_model, photos, capsys, monkeypatch):
    monkeypatch.setattr("dreamlit.families.base.Family.load", None)
    options = {"decay": 2.0, "update_every_n_steps": 0, "use_for": ["nothing"], "device": "tpu"}
    assert run("fit", configured(tmp_path / "run", tiny_sd_model, photos, options)) == 2
    said = capsys.readouterr().err
    for part in ("decay is 2.0", "update_every_n_steps is 0", "use_for has 'nothing'", "device is 'tpu'"):
        assert part in said
    assert not (tmp_path / "run").exists()


def test_an_average_that_would_never_be_updated_is_refused():
    trainer, module = types.SimpleNamespace(max_steps=4, fast_dev_run=0), types.SimpleNamespace()
    EMA(update_every_n_steps=4).setup(trainer, module, "fit")  # pyright: ignore[reportArgumentType]
    with pytest.raises(CombinationError, match=r"never be updated.* 5, .* 4"):
        EMA(update_every_n_steps=5).setup(trainer, module, "fit")  # pyright: ignore[reportArgumentType]
    trainer.fast_dev_run = 1  # a trial of one step says nothing about the run
    EMA(update_every_n_steps=5).setup(trainer, module, "fit")  # pyright: ignore[reportArgumentType]


def test_a_run_too_short_for_an_update_says_so():
    ema = EMA(update_every_n_steps=5)
    toy = trained(ema, 4)
    with pytest.warns(UserWarning, match=r"not updated once.* step 4 .* is 5"):
        ema.on_train_end(toy.trainer, toy)  # pyright: ignore[reportArgumentType]


# in a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3)


def configured(root, model, photos, ema, adapter="LoRA", **changes):
    """A run of six steps, a checkpoint after every third; `ema` None: without."""
    config = base_config(root, model, photos)
    config["model"]["family"]["class_path"] = "SD"
    config["model"]["adapter"] = ADAPTERS[adapter]
    callbacks = [] if ema is None else [{"class_path": "EMA", "init_args": ema}]
    fixed = {"model.optimizer": LR, "trainer.max_steps": 6, "trainer.callbacks": callbacks, "data.batch_size": 1}
    return merged(config, {**fixed, "checkpoint.every_n_steps": 3, **changes})


def evaluated(config, photos):
    """The same with an evaluation after every batch."""
    config["data"]["datasets"].append({**config["data"]["datasets"][0], "id": "eval", "dataset_type": "eval"})
    return merged(config, {"trainer.val_check_interval": 1, "data.eval_timesteps": 1})


def files(root, pattern="run*"):
    found = [path for path in root.glob(pattern) if path.is_dir() or path.suffix == ".safetensors"]
    parts = [part for path in found for part in (path.rglob("*") if path.is_dir() else [path]) if part.is_file()]
    return {str(part.relative_to(root)): part.read_bytes() for part in parts}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_training_is_the_same_to_the_last_bit_and_a_resume_repeats_the_average(
    tmp_path, tiny_sd_model, photos, adapter
):
    ema = {"decay": 0.7, "update_every_n_steps": 2}
    bare = evaluated(configured(tmp_path / "bare" / "run", tiny_sd_model, photos, None, adapter), photos)
    config = evaluated(configured(tmp_path / "ema" / "run", tiny_sd_model, photos, ema, adapter), photos)
    without, root = fit(bare), fit(config)
    whole, raw = checkpoint(root, 6), checkpoint(without, 6)
    for state in (whole, raw):  # an evaluation measures the average in a pass of its own, so it has twice the batches
        del state["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    for part in ("state_dict", "optimizer_states", "loops"):
        assert_same_state(whole[part], raw[part], part)
    exported, plain = files(root), files(without)
    assert plain.items() < exported.items()  # the raw files are as they were
    averages = {name for name in exported.keys() - plain.keys() if "-ema" in name}
    assert len(averages) == len(plain) and {name.replace("-ema", "", 1) for name in averages} == plain.keys()
    assert all(exported[name] != plain[name.replace("-ema", "", 1)] for name in averages if name.endswith("tensors"))
    (root / "checkpoints" / "step-000006.ckpt").unlink()
    for name in averages:
        (root / name).unlink()
    fit(config, "--ckpt_path", "last")
    assert_same_state(checkpoint(root, 6)["callbacks"]["EMA"], whole["callbacks"]["EMA"])
    assert files(root) == exported


def test_the_average_of_a_run_is_that_of_its_weights_and_the_file_holds_it(tmp_path, tiny_sd_model, photos):
    options = {"checkpoint.every_n_steps": 1, "checkpoint.keep": 0, "trainer.accumulate_grad_batches": 2}
    ema = {"decay": 0.3, "device": "model"}
    config = configured(tmp_path / "run", tiny_sd_model, photos, ema, **options)
    root = fit(config)
    module, _ = parts_of(str(write_config(tmp_path / "again.yaml", config)))
    module.configure_model()
    history = [{name: weight.detach().double() for name, weight in module.adapter.parameters().items()}]
    history += [{n: t.double() for n, t in checkpoint(root, s)["state_dict"].items()} for s in range(1, 7)]
    betas = np.minimum(0.3, np.arange(1, 7) / np.arange(10, 16))
    kept = np.append(np.cumprod(betas[::-1])[::-1], 1.0)
    state = checkpoint(root, 6)["callbacks"]["EMA"]
    assert state["updates"] == 6
    assert_is(state["averages"]["decay"], [kept[0], *((1 - betas) * kept[1:])], history)
    load_into_adapter(str(root / "run-ema.safetensors"), module.adapter)
    for name, weight in module.adapter.parameters().items():
        torch.testing.assert_close(weight.detach(), state["averages"]["decay"][name], rtol=1e-6, atol=1e-7)
    assert newest_adapter(root).name == "run.safetensors"  # `dreamlit sample` goes on taking the weights


def test_old_averages_go_with_their_checkpoints(tmp_path, tiny_sd_model, photos):
    options = {"checkpoint.every_n_steps": 1, "checkpoint.keep": 1, "trainer.max_steps": 2}
    root = fit(configured(tmp_path / "run", tiny_sd_model, photos, {}, **options))
    left = sorted(path.name for path in (root / "adapters").iterdir())
    stem = "run-step-000002"
    assert left == sorted(f"{stem}{end}.safetensors" for end in ("", "-diffusers", "-ema", "-ema-diffusers"))


def test_evaluations_measure_the_average_where_they_are_asked_to(tmp_path, tiny_sd_model, photos, capsys):
    def measured(config, path):
        capsys.readouterr()
        assert run("validate", config, "--ckpt_path", str(path)) == 0
        log = sorted(tmp_path.glob("run/logs-validate*/metrics.csv"), key=lambda file: file.stat().st_mtime_ns)[-1]
        head, *lines = [line.split(",") for line in log.read_text().splitlines()]
        return [float(lines[-1][head.index(f"loss/val{what}")]) for what in ("", "-ema") if f"loss/val{what}" in head]

    config = evaluated(configured(tmp_path / "run", tiny_sd_model, photos, {"decay": 0.9}), photos)
    faster = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}  # or the two losses are nearly the same
    changes = {"trainer.val_check_interval": 3, "checkpoint.monitor": "loss/val", "model.optimizer": faster}
    config = merged(config, changes)
    root = fit(config)
    best = torch.load(root / "checkpoints" / "best.ckpt", weights_only=True)
    assert_same_state(best["state_dict"], checkpoint(root, best["global_step"])["state_dict"])  # never the average
    last = root / "checkpoints" / "step-000006.ckpt"
    content = checkpoint(root, 6)
    content["state_dict"] = content["callbacks"].pop("EMA")["averages"]["decay"]
    torch.save(content, tmp_path / "average.ckpt")
    without = merged(config, {"trainer.callbacks": []})
    (average,), (raw,) = measured(without, tmp_path / "average.ckpt"), measured(without, last)
    assert average != pytest.approx(raw, rel=1e-4)
    assert measured(config, last) == [raw, average]
    elsewhere = merged(config, {"trainer.callbacks": [{"class_path": "EMA", "init_args": {"use_for": ["export"]}}]})
    assert measured(elsewhere, last) == [raw]
    head, *lines = [line.split(",") for line in (root / "logs" / "metrics.csv").read_text().splitlines()]
    for name, value in (("loss/val", raw), ("loss/val-ema", average)):
        assert [float(line[head.index(name)]) for line in lines if line[head.index(name)]][-1] == value


def test_a_checkpoint_without_an_average_starts_one_with_a_warning(tmp_path, tiny_sd_model, photos):
    root = fit(configured(tmp_path / "run", tiny_sd_model, photos, None, **{"trainer.max_steps": 3}))
    config = configured(tmp_path / "run", tiny_sd_model, photos, {"decay": 0.1}, **{"trainer.max_steps": 4})
    with pytest.warns(UserWarning, match="no average .* starts from its weights"):
        fit(config, "--ckpt_path", "last")
    three, four = ({n: t.double() for n, t in checkpoint(root, s)["state_dict"].items()} for s in (3, 4))
    state = checkpoint(root, 4)["callbacks"]["EMA"]
    assert state["updates"] == 1
    assert_is(state["averages"]["decay"], [0.1, 0.9], [three, four])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the checkpoint holds no average")
        fit(merged(config, {"trainer.max_steps": 5}), "--ckpt_path", "last")


def test_an_average_that_does_not_fit_is_named(tmp_path, tiny_sd_model, photos, capsys):
    config = configured(tmp_path / "run", tiny_sd_model, photos, {"sigma_rel": 0.1}, **{"trainer.max_steps": 3})
    root = fit(config)
    path = root / "checkpoints" / "step-000003.ckpt"
    whole, more = path.read_bytes(), merged(config, {"trainer.max_steps": 4})
    name = next(iter(checkpoint(root, 3)["state_dict"]))

    def refused(config, change):
        content = checkpoint(root, 3)
        change(content["callbacks"]["EMA"]["averages"]["sigma_rel 0.1"])
        torch.save(content, path)
        capsys.readouterr()
        assert run("fit", config, "--ckpt_path", "last") == 2
        path.write_bytes(whole)
        return capsys.readouterr().err

    said = refused(more, lambda average: average.update({name: torch.zeros(1)}))
    assert "EMA does not fit" in said and f"{name}: shape [1] came" in said
    said = refused(more, lambda average: average.update(other=average.pop(name)))
    assert f"1 missing: {name}" in said and "1 unexpected: other" in said
    wider = merged(more, {"trainer.callbacks": [{"class_path": "EMA", "init_args": {"sigma_rel": 0.2}}]})
    said = refused(wider, lambda average: None)
    assert "has sigma_rel 0.1, but EMA is asked for sigma_rel 0.2" in said
    fit(more, "--ckpt_path", "last")


@pytest.mark.parametrize("shown", [True, False])
def test_the_report_shows_the_average_and_says_so(tmp_path, tiny_sd_model, photos, shown):
    quick = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 1.0, "prompts": [PROMPT], "seeds": [3]}
    ema = {"decay": 0.9, "use_for": ["report", "export"] if shown else ["export"]}
    config = configured(tmp_path / "run", tiny_sd_model, photos, ema, **{"trainer.max_steps": 3})
    config["trainer"]["callbacks"].insert(0, {"class_path": "RunReport", "init_args": quick})
    root = fit(config)
    file = "run-ema.safetensors" if shown else "run.safetensors"
    image = Image.open(root / "report" / "adapter" / "000-00.png")
    said = json.loads(image.info["dreamlit"])
    assert said["adapter"] == file
    assert said.get("average") == ({"decay": 0.9, "update_every_n_steps": 1, "updates": 3} if shown else None)
    assert "average" not in json.loads(Image.open(root / "report" / "base" / "000-00.png").info["dreamlit"])
    module, _ = parts_of(str(write_config(tmp_path / "again.yaml", config)))
    module.configure_model()
    differences = {}
    for name in ("run.safetensors", "run-ema.safetensors"):
        load_into_adapter(str(root / name), module.adapter)
        noise = torch.Generator().manual_seed(3)
        options = {"width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 1.0}
        made = module.pipeline()(PROMPT, generator=noise, **options).images[0]
        differences[name] = np.abs(np.asarray(made).astype(int) - np.asarray(image)).max()
    assert differences.pop(file) <= 1 < min(differences.values())


def test_snapshots_are_written_where_they_are_asked_for_and_give_other_lengths(tmp_path, tiny_sd_model, photos):
    ema = {"sigma_rel": [0.05, 0.2], "snapshots_every_n_steps": 2, "use_for": []}
    root = fit(configured(tmp_path / "run", tiny_sd_model, photos, ema, **{"trainer.max_steps": 5}))
    folder = pathlib.Path(root) / "checkpoints" / "ema-snapshots"
    names = {path.name for path in folder.iterdir()}
    assert names == {f"step-00000{step}-sigma-{width}.safetensors" for step in (2, 4, 5) for width in (0.05, 0.2)}
    assert not list(root.rglob("*-ema*.safetensors"))
    averages = checkpoint(root, 5)["callbacks"]["EMA"]["averages"]
    for width in (0.05, 0.2):
        kept = averages[f"sigma_rel {width}"]
        assert_same_state(load_file(str(folder / f"step-000005-sigma-{width}.safetensors")), kept)
        for name, tensor in reconstruct(read_snapshots(folder), width).items():
            torch.testing.assert_close(tensor, kept[name], rtol=1e-5, atol=1e-6)


def test_a_trial_leaves_no_snapshot_behind(tmp_path, tiny_sd_model, photos):
    ema = {"sigma_rel": 0.1, "snapshots_every_n_steps": 1}
    fit(configured(tmp_path / "run", tiny_sd_model, photos, ema, **{"trainer.fast_dev_run": 2}))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_step_left_out_does_not_take_the_others_of_its_window_with_it():
    """Of two steps between updates the second is left out: the average follows the first."""
    toy, ema = Toy(), EMA(decay=0.5, update_every_n_steps=2)
    ema._place(toy)
    ema.on_train_start(toy.trainer, toy)
    for skipped, updates in ((False, 0), (True, 1), (True, 1), (True, 1), (True, 1), (False, 2)):
        toy.step_skipped = skipped
        toy.step(ema)
        assert ema.updates == updates
