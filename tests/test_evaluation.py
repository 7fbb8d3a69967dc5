"""Evaluations that compare: the split, the fixed grid, what is written and kept, and that training never notices."""

import collections
import csv
import inspect
import json
import math
import pathlib
import re
import shutil
import types
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from dreamlit.callbacks.checkpoint import RunCheckpoint
from dreamlit.callbacks.ema import EMA
from dreamlit.callbacks.evaluation import StableEvaluation
from dreamlit.curves import draw_evaluation, evaluation_figure, lowest
from dreamlit.datamodules.config import DatasetSpecs
from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.datamodules.dreambooth import DreamBoothData
from dreamlit.datamodules.manifest import build_manifest
from dreamlit.errors import CombinationError, ConfigError, DataError
from dreamlit.evaluating import Cell, Evaluation, Measured
from dreamlit.quiet import quieten
from dreamlit.step_lines import record, recorded
from dreamlit.types import Role
from runs import assert_same_state, base_config, checkpoint, fit, merged, run, write_photos
from test_distributed import OPTIMIZER, TWO_PROCESSES, fit_on_ranks

FAST = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}}
EMA_ON = {"class_path": "EMA", "init_args": {"decay": 0.5}}

# the split ------------------------------------------------------------------------------------------------------------


def photos_in(folder: pathlib.Path, seeds: dict[str, int]) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in seeds.items():
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def dataset(folder: pathlib.Path, id: str = "d", **keys) -> ImageDataset:
    keys = {"instance_prompt": ("a dog",), "resolution": 64, **keys}
    return ImageDataset(id=id, instance_data_dir=str(folder), **keys)


def split(specs, hold_out, seed=0):
    manifest = build_manifest(specs, 16, seed, hold_out=hold_out)
    return manifest, {s.content for s in manifest.samples}, {s.content for s in manifest.eval_samples}


@pytest.fixture
def ten(tmp_path):
    return photos_in(tmp_path / "ten", {f"{n}.png": n for n in range(10)})


@pytest.mark.parametrize(("hold_out", "count"), [(1, 1), (9, 9), (0.2, 2), (0.25, 3), (0.01, 1)])
def test_the_split_holds_out_as_many_as_asked_and_trains_on_the_rest(ten, hold_out, count):
    manifest, trained, held = split([dataset(ten)], hold_out)
    assert (len(held), len(trained)) == (count, 10 - count)
    assert not trained & held
    assert [sample.id for sample in manifest.held_out] == [sample.id for sample in manifest.eval_samples]


def test_the_split_depends_on_the_seed_and_the_image_alone(ten, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(ten.iterdir(), reverse=True)):
        shutil.copy(path, renamed / f"x{number}.png")
    chosen = {seed: split([dataset(ten)], 3, seed)[2] for seed in range(8)}
    assert all(split([dataset(renamed, id="other")], 3, seed)[2] == held for seed, held in chosen.items())
    assert len({frozenset(held) for held in chosen.values()}) > 4
    more = split([dataset(ten)], 4)[2]
    assert chosen[0] < more  # another number keeps the choice


def test_no_copy_of_a_held_out_photo_is_trained_on(ten, tmp_path):
    others = tmp_path / "others"
    shutil.copytree(ten, others)
    photos_in(others, {"own.png": 99})
    for path in sorted(ten.iterdir()):
        shutil.copy(path, ten / f"copy-{path.name}")
    specs = [
        dataset(ten),
        dataset(others, id="class", is_regularisation_data=True),
        dataset(others, id="again", resolution=128, max_upscale=4),
    ]
    manifest, trained, held = split(specs, 3)
    assert not trained & held
    counts = collections.Counter(s.dataset_id for s in manifest.eval_samples)
    assert counts == {"d": 3, "again": 3}
    assert all(s.role == Role.INSTANCE for s in manifest.eval_samples)
    reasons = [why for _, name, why in manifest.filtered if name.startswith("copy-")]
    assert len(reasons) >= 3 and all("same picture as d/" in why and "held out" in why for why in reasons)
    total = len(manifest.samples) + len(manifest.eval_samples) + len(manifest.filtered)
    assert total == 20 + 11 + 11  # nothing is lost without a word


def test_eval_datasets_and_the_split_stand_together(ten, tmp_path):
    unseen = photos_in(tmp_path / "unseen", {"u.png": 50})
    manifest, _, _ = split([dataset(ten), dataset(unseen, id="e", dataset_type="eval")], 2)
    assert [s.dataset_id for s in manifest.eval_samples] == ["e", "d", "d"]
    assert {s.dataset_id for s in manifest.held_out} == {"d"}


@pytest.mark.parametrize("hold_out", [10, 11, 0.96])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(ten, tmp_path, hold_out):
    single = photos_in(tmp_path / "single", {"s.png": 70})
    with pytest.raises(DataError, match=r"of 10 different images would be held out.*at most 9") as error:
        split([dataset(ten), dataset(single, id="one")], hold_out)
    assert "needs at least two  [one]" in str(error.value)  # both in one report


def test_a_dataset_whose_photos_another_one_holds_out_is_refused(tmp_path):
    """The two photos of the second dataset are those that the first one holds out."""
    first = photos_in(tmp_path / "first", {"a.png": 0, "b.png": 1, "c.png": 2})
    second = tmp_path / "second"
    second.mkdir()
    for sample in split([dataset(first)], 0.6)[0].held_out:
        shutil.copy(first / sample.name, second)
    with pytest.raises(DataError, match=r"every image of this dataset is also in another one.*\[two\]"):
        split([dataset(first), dataset(second, id="two")], 0.6)


def test_the_digest_tells_a_split_from_the_same_photos_without_one(ten):
    digests = {split([dataset(ten)], hold_out)[0].digest() for hold_out in (None, 1, 2, 3)}
    assert len(digests) == 4


def test_an_eval_dataset_of_which_nothing_is_left_is_refused_unless_something_else_is_evaluated(ten, tmp_path):
    """Otherwise a run would be steered by an evaluation that never takes place."""
    unseen = photos_in(tmp_path / "unseen", {"u.png": 50})
    small = dataset(unseen, id="e", dataset_type="eval", resolution=512, max_upscale=1.0)
    with pytest.raises(DataError, match=r"nothing is left to evaluate.*u\.png .*enlarged.*\[e\]"):
        split([dataset(ten), small], None)
    assert len(split([dataset(ten), small], 2)[2]) == 2


@pytest.mark.parametrize("value", [0, -1, 0.0, 1.0, 1.5, True, math.nan])
def test_a_wrong_number_to_hold_out_says_what_is_allowed(ten, value):
    with pytest.raises(ConfigError, match=r"data.hold_out is .*number of images from 1.*share between 0 and 1"):
        DreamBoothData(DatasetSpecs([dataset(ten)]), hold_out=value)


# the arithmetic -------------------------------------------------------------------------------------------------------


def test_bands_and_images_are_means_of_their_cells():
    random = np.random.default_rng(0)
    levels, noises = 8, 3
    loss = {(i, n, name): float(random.random()) for i in range(levels) for n in range(noises) for name in ("a@1", "b")}
    t = {i: int((i + 0.5) / levels * 1000) for i in range(levels)}
    cells = [Cell(f"d/{name}@{i}.{n}", t[i], value) for (i, n, name), value in loss.items()]
    random.shuffle(cells)  # pyright: ignore[reportArgumentType]
    measured = Measured(tuple(cells))
    assert measured.mean == pytest.approx(np.mean(list(loss.values())))
    bands = measured.bands(4, (0, 1000))
    assert list(bands) == ["0-250", "250-500", "500-750", "750-1000"]
    for number, value in enumerate(bands.values()):
        assert value == pytest.approx(np.mean([v for (i, _, _), v in loss.items() if i // 2 == number]))
    assert np.mean(list(bands.values())) == pytest.approx(measured.mean)
    assert measured.images() == {
        f"d/{name}": pytest.approx(np.mean([v for (_, _, of), v in loss.items() if of == name]))
        for name in ("a@1", "b")
    }
    alone = Measured((Cell("d/a@0.0", 999, 1.0),))
    assert list(alone.bands(3, (0, 1000))) == ["667-1000"]  # a band without a cell is no 0
    refined = Measured((Cell("d/a@0.0", 49, 1.0), Cell("d/a@1.0", 199, 3.0)))
    assert refined.bands(4, (0, 200)) == {"0-50": 1.0, "150-200": 3.0}  # a model of a part of the schedule


def test_a_sample_that_does_not_count_is_left_out_and_the_order_does_not_matter():
    one = types.SimpleNamespace(keys=["a@0.0", "a@1.0"], t=torch.tensor([10, 20]), weight=torch.ones(2))
    padding = types.SimpleNamespace(keys=["b@0.0"], t=torch.tensor([10]), weight=torch.zeros(1))
    parts = [(one, torch.tensor([0.1, 0.7])), (padding, torch.tensor([9.0]))]
    found = []
    for order in (parts, parts[::-1]):
        evaluation = Evaluation(("", "-ema"))
        for batch, losses in order:
            evaluation.add(0, batch, losses)  # pyright: ignore[reportArgumentType]
        found.append(evaluation.measured()[""])
    assert found[0] == found[1] and len(found[0].cells) == 2
    assert found[0].mean == (float(torch.tensor(0.1)) + float(torch.tensor(0.7))) / 2
    assert math.isnan(evaluation.measured()["-ema"].mean)


# options --------------------------------------------------------------------------------------------------------------


def test_wrong_options_come_in_one_report():
    with pytest.raises(ConfigError) as error:
        StableEvaluation(every_n_steps=0, every_n_epochs=-1.0, bands=1, monitor="loss/vall", patience=0)
    for part in (
        "both given",
        "every_n_steps is 0",
        "every_n_epochs is -1",
        "bands is 1",
        "'loss/vall'",
        "patience is 0",
    ):
        assert part in str(error.value)


def trainer_with(callback, *others, **changes):
    usual = {"fast_dev_run": False, "max_steps": 100, "accumulate_grad_batches": 2, "limit_val_batches": 1.0}
    usual |= {"val_check_interval": 1.0, "check_val_every_n_epoch": 1, "callbacks": [callback, *others]}
    usual |= {"max_epochs": None, "datamodule": types.SimpleNamespace(epoch_batches=80)}
    return types.SimpleNamespace(**{**usual, **changes})


@pytest.mark.parametrize(
    ("options", "others", "changes", "message"),
    [
        ({"every_n_steps": 5}, [], {"val_check_interval": 5}, r"so does trainer.val_check_interval \(5\)"),
        ({"every_n_steps": 5}, [], {"val_check_interval": 1}, r"so does trainer.val_check_interval \(1\)"),
        ({"every_n_epochs": 0.5}, [], {"val_check_interval": 0.5}, "so does trainer.val_check_interval"),
        ({}, [], {"val_check_interval": None, "_val_check_time_interval": 60.0}, r"\(60 s\)"),
        ({}, [], {"check_val_every_n_epoch": 2}, r"trainer.check_val_every_n_epoch \(2\)"),
        ({}, [], {"limit_val_batches": 0}, "limit_val_batches is 0"),
        ({}, [], {"limit_val_batches": 1}, "limit_val_batches is 1"),
        ({"every_n_steps": 500}, [], {}, "every_n_steps is 500, but trainer.max_steps is 100"),
        ({"every_n_steps": 90}, [], {"max_epochs": 2}, r"is 90, but trainer.max_epochs is 2, which are 80 optimizer"),
        ({"every_n_epochs": 3}, [], {"max_epochs": 2, "max_steps": -1}, "3 epochs are 120 .*max_epochs is 2"),
        ({"monitor": "loss/val-ema"}, [EMA(use_for=["export"])], {}, "needs an EMA"),
        ({}, [RunCheckpoint(monitor="loss")], {}, r"checkpoint.monitor is 'loss' \(min\)"),
    ],
)
def test_what_contradicts_the_rest_of_the_run_is_refused(options, others, changes, message):
    callback = StableEvaluation(**options)
    keeper = [] if any(isinstance(other, RunCheckpoint) for other in others) else [RunCheckpoint()]
    with pytest.raises(CombinationError, match=message):
        callback.setup(trainer_with(callback, *others, *keeper, **changes), None, "fit")  # pyright: ignore


def test_the_interval_is_in_optimizer_steps_and_the_same_one_is_no_contradiction():
    callback = StableEvaluation(every_n_steps=5)
    trainer = trainer_with(callback, RunCheckpoint(), val_check_interval=10, check_val_every_n_epoch=None)
    callback.setup(trainer, None, "fit")  # pyright: ignore[reportArgumentType]
    callback.setup(trainer, None, "fit")  # pyright: ignore[reportArgumentType]
    assert trainer.val_check_interval == 10 and trainer.check_val_every_n_epoch is None


def test_epochs_longer_than_the_run_are_refused():
    callback = StableEvaluation(every_n_epochs=3)
    trainer = trainer_with(callback, RunCheckpoint(), datamodule=types.SimpleNamespace(epoch_batches=80))
    with pytest.raises(CombinationError, match=r"3 epochs are 120 optimizer steps, but trainer.max_steps is 100"):
        callback.setup(trainer, None, "fit")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("epochs", "steps"), [(None, 7), (0.5, 4), (2.0, 14), (0.01, 1)])
def test_epochs_become_whole_optimizer_steps(epochs, steps):
    callback = StableEvaluation(every_n_epochs=epochs)
    trainer = trainer_with(callback, RunCheckpoint(), datamodule=types.SimpleNamespace(epoch_batches=14))
    callback.setup(trainer, None, "fit")  # pyright: ignore[reportArgumentType]
    assert trainer.val_check_interval == 2 * steps


def test_evaluations_that_nobody_would_make_are_refused_before_the_model_loads(tmp_path, tiny_sd_model, capsys):
    config = base_config(tmp_path / "run", tiny_sd_model, write_photos(tmp_path / "photos", [(64, 64)] * 2))
    config["model"]["family"]["class_path"] = "SD"
    callback = {"class_path": "StableEvaluation", "init_args": {"every_n_steps": 2}}
    changed = merged(config, {"trainer.callbacks": [callback], "data.eval_seeds": 2})
    assert run("fit", changed) == 2
    said = capsys.readouterr().err
    assert "StableEvaluation monitors 'loss/val'" in said and "data.hold_out" in said and "data.eval_seeds is 2" in said
    doubled = merged(changed, {"data.hold_out": 1, "trainer.val_check_interval": 3})
    assert run("fit", doubled) == 2
    assert "so does trainer.val_check_interval (3)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# runs -----------------------------------------------------------------------------------------------------------------


def configured(root, model, photos, evaluation, *others, **changes):
    """Six optimizer steps of two batches on three photos, two held out, LoRA with dropout."""
    config = base_config(root, model, photos)
    config["model"]["family"]["class_path"] = "SD"
    config["model"]["adapter"] = {"class_path": "LoRA", "init_args": {"rank": 4, "dropout": 0.5}}
    callbacks = list(others)
    if evaluation is not None:
        callbacks.append({"class_path": "StableEvaluation", "init_args": evaluation})
    fixed = {"trainer.callbacks": callbacks, "trainer.max_steps": 6, "trainer.accumulate_grad_batches": 2}
    fixed |= {"model.optimizer": FAST, "data.hold_out": 2, "data.eval_timesteps": 2, "data.eval_seeds": 2}
    return merged(config, {**fixed, "data.batch_size": 1, "checkpoint.every_n_steps": 2, **changes})


def rows_of(root):
    return recorded(root / "evaluation.jsonl")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 4 + [(128, 64)])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, tiny_sd_model, photos):
    """The configuration and the folder of a run with evaluations of weights and average."""
    home = tmp_path_factory.mktemp("evaluated")
    config = configured(home / "run", tiny_sd_model, photos, {"every_n_steps": 2}, EMA_ON)
    return config, fit(config)


def test_training_is_the_same_to_the_last_bit(evaluated, tmp_path, tiny_sd_model, photos):
    _, root = evaluated
    bare = fit(configured(tmp_path / "run", tiny_sd_model, photos, None, **{"trainer.limit_val_batches": 0}))
    for part in ("state_dict", "optimizer_states"):
        assert_same_state(checkpoint(root, 6)[part], checkpoint(bare, 6)[part], part)
    names = ("run.safetensors", "run-diffusers.safetensors")
    assert [(root / name).read_bytes() for name in names] == [(bare / name).read_bytes() for name in names]


def test_what_is_written_is_what_was_measured(evaluated):
    _, root = evaluated
    rows = rows_of(root)
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    for row in rows:
        for part in (row["raw"], row["ema"]):
            assert part["cells"] == 2 * 2 * 2 and list(part["bands"]) == ["250-500", "750-1000"]
            assert np.mean(list(part["bands"].values())) == pytest.approx(part["loss"])
            assert np.mean(list(part["images"].values())) == pytest.approx(part["loss"])
    assert rows[0]["raw"] == rows[0]["ema"]  # before the first update
    assert all(row["raw"]["loss"] != row["ema"]["loss"] for row in rows[1:])
    with (root / "logs" / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("loss/val")]
    assert [float(row["loss/val"]) for row in logged] == pytest.approx([row["raw"]["loss"] for row in rows])
    names = {"loss/val-ema": ("ema", None), "loss/val/250-500": ("raw", "250-500")}
    names["loss/val-ema/750-1000"] = ("ema", "750-1000")
    for name, (part, band) in names.items():
        expected = [row[part]["bands"][band] if band else row[part]["loss"] for row in rows]
        assert [float(row[name]) for row in logged] == pytest.approx(expected)
    assert Image.open(root / "report" / "evaluation.png").size[0] > 600


def test_the_best_checkpoint_is_the_one_of_the_lowest_loss(evaluated):
    _, root = evaluated
    best = torch.load(root / "checkpoints" / "best.ckpt", weights_only=True)
    step, _ = lowest(rows_of(root), "raw")  # pyright: ignore[reportGeneralTypeIssues]
    assert best["global_step"] == step
    if step:
        assert_same_state(best["state_dict"], checkpoint(root, step)["state_dict"])


def test_a_grid_of_other_levels_is_told_although_it_has_as_many_cells(evaluated, tmp_path):
    config, root = evaluated
    again = pathlib.Path(shutil.copytree(root, tmp_path / "run"))
    changes = {"trainer.default_root_dir": str(again), "trainer.max_steps": 8}
    with pytest.warns(UserWarning, match=r"from step 6 on other .* noise levels .* the losses do not compare"):
        fit(merged(config, {**changes, "data.eval_timesteps": 4, "data.eval_seeds": 1}), "--ckpt_path", "last")
    assert [row["raw"]["cells"] for row in rows_of(again)] == [8] * 5


def test_two_evaluations_are_the_same_to_the_bit_whatever_the_workers(evaluated, capsys):
    config, root = evaluated
    found = []
    for workers in (0, 0, 2):
        assert run("validate", merged(config, {"data.num_workers": workers}), "--ckpt_path", "last") == 0
        log = max(root.glob("logs-validate*/metrics.csv"), key=lambda path: path.stat().st_mtime_ns)
        with log.open() as file:
            found.append(list(csv.DictReader(file))[-1])
    assert found[0] == found[1] == found[2]
    assert float(found[0]["loss/val"]) == np.float32(rows_of(root)[-1]["raw"]["loss"])
    assert float(found[0]["loss/val-ema"]) == np.float32(rows_of(root)[-1]["ema"]["loss"])


def test_a_resumed_run_has_the_same_evaluations(evaluated, tmp_path):
    """From a checkpoint that was saved just before its evaluation, with lines of steps that are then done again."""
    config, root = evaluated
    again = tmp_path / "run"
    shutil.copytree(root, again)
    for path in (again / "checkpoints").iterdir():
        if path.name != "step-000004.ckpt":
            path.unlink()
    fit(merged(config, {"trainer.default_root_dir": str(again)}), "--ckpt_path", "last")
    assert (again / "evaluation.jsonl").read_bytes() == (root / "evaluation.jsonl").read_bytes()
    assert_same_state(checkpoint(again, 6)["state_dict"], checkpoint(root, 6)["state_dict"])
    before, after = (checkpoint(folder, 6)["callbacks"] for folder in (root, again))
    assert [state["best_score"] for key, state in before.items() if "RunCheckpoint" in key] == [
        state["best_score"] for key, state in after.items() if "RunCheckpoint" in key
    ]


def test_a_run_goes_on_from_its_best_checkpoint_and_evaluates_nothing_twice(evaluated, tmp_path):
    config, root = evaluated
    part = merged(config, {"trainer.default_root_dir": str(tmp_path / "run"), "trainer.max_steps": 4})
    again = fit(part)
    assert torch.load(again / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 4
    for path in (again / "checkpoints").glob("step-*"):
        path.unlink()
    (again / "evaluation.jsonl").unlink()
    fit(merged(part, {"trainer.max_steps": 6}), "--ckpt_path", "best")
    assert rows_of(again) == rows_of(root)[-1:]
    assert_same_state(checkpoint(again, 6)["state_dict"], checkpoint(root, 6)["state_dict"])
    with pytest.warns(UserWarning, match=r"from step 6 on other .* than before: the losses do not compare") as seen:
        fit(merged(part, {"trainer.max_steps": 8, "data.eval_seeds": 1}), "--ckpt_path", "last")
    assert len([w for w in seen if "do not compare" in str(w.message)]) == 1


def test_patience_ends_the_run_and_a_resume_of_its_best_ends_alike(tmp_path, tiny_sd_model, photos, capsys):
    """At a learning rate that breaks the model each value is worse than the first."""
    broken = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3.0}}
    changes = {"model.optimizer": broken, "trainer.max_steps": 40}
    config = configured(
        tmp_path / "run", tiny_sd_model, photos, {"every_n_steps": 1, "patience": 3, "bands": 0}, **changes
    )
    root = fit(config)
    rows = rows_of(root)
    step, value = lowest(rows, "raw")  # pyright: ignore[reportGeneralTypeIssues]
    assert step == 0 and [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["raw"]["bands"] == {} for row in rows)
    assert torch.load(root / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 0
    said = capsys.readouterr().out
    assert f"lowest loss/val {value:.5f} at step 0" in said and "stopped early at step 3" in said
    last = checkpoint(root, 3)
    for path in (root / "checkpoints").glob("step-*"):
        path.unlink()
    fit(config, "--ckpt_path", "best")
    assert rows_of(root) == rows
    assert_same_state(checkpoint(root, 3)["state_dict"], last["state_dict"])


class LosesOne(Callback):
    """Makes one evaluation NaN."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == self.step:
            batch.latents[0] = math.inf


def test_one_evaluation_that_is_not_finite_does_not_end_a_run_with_patience(tmp_path, tiny_sd_model, photos):
    lost = {"class_path": "test_evaluation.LosesOne", "init_args": {"step": 1}}
    steady = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}  # no value is lower than the first
    config = configured(tmp_path / "run", tiny_sd_model, photos, {"every_n_steps": 1, "patience": 3}, lost)
    root = fit(merged(config, {"model.optimizer": steady, "trainer.max_steps": 9}))
    assert [(row["step"], row["raw"]["loss"] is None) for row in rows_of(root)] == [
        (0, False),
        (1, True),
        (2, False),
        (3, False),
    ]


def test_plan_names_what_is_held_out(evaluated, capsys):
    config, root = evaluated
    capsys.readouterr()
    assert run("plan", config) == 0
    said = capsys.readouterr().out
    for name in rows_of(root)[0]["raw"]["images"]:
        assert f"held out: {name}: evaluated, never trained on" in said
    assert "held out" in said.splitlines()[1] + said.splitlines()[2]


def test_a_run_says_that_it_evaluates_what_it_trains_on(tmp_path, tiny_sd_model, photos):
    config = configured(tmp_path / "run", tiny_sd_model, photos, {"every_n_steps": 1}, **{"data.hold_out": None})
    (entry,) = config["data"]["datasets"]
    config["data"]["datasets"].append({**entry, "id": "seen", "dataset_type": "eval"})
    with pytest.warns(UserWarning, match="5 eval images are also trained on.*seen/p0.png"):
        fit(merged(config, {"trainer.max_steps": 1}))


def test_a_file_that_cannot_be_written_never_ends_the_run(tmp_path, tiny_sd_model, photos):
    (tmp_path / "run" / "evaluation.jsonl").mkdir(parents=True)
    (tmp_path / "run" / "evaluation.jsonl" / "x").touch()
    log = {"class_path": "EventLog"}
    config = configured(tmp_path / "run", tiny_sd_model, photos, {"every_n_steps": 1, "save_best": False}, log)
    with pytest.warns(
        UserWarning, match=r"its line in evaluation.jsonl could not be written .*training goes on"
    ) as seen:
        fit(merged(config, {"trainer.max_steps": 2}))
    said = [str(w.message) for w in seen if "StableEvaluation" in str(w.message)]
    assert len(said) == 2 and "writing lines or the plot failed 3 times" in said[1]
    told = [json.loads(text) for text in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert len([record for record in told if record["event"] == "warning"]) == 2
    assert checkpoint(tmp_path / "run", 2)["global_step"] == 2
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    assert not list((tmp_path / "run").glob(".evaluation*"))


@pytest.mark.filterwarnings("error:StableEvaluation")
def test_lines_wait_for_room_and_a_warning_never_ends_the_run(tmp_path, monkeypatch):
    callback, trainer = StableEvaluation(), types.SimpleNamespace(default_root_dir=tmp_path, global_step=0)
    for step, full in ((0, False), (10, True), (20, True), (30, False)):
        with monkeypatch.context() as disk:
            if full:
                disk.setattr(pathlib.Path, "write_text", lambda *args, **kwargs: no_room())
            callback._attempt(trainer, "its line", callback._record, line(step, 0.5))  # pyright: ignore
        assert len(rows_of(tmp_path)) == {0: 1, 10: 1, 20: 1, 30: 4}[step]
    assert callback.failures == 2 and [row["step"] for row in rows_of(tmp_path)] == [0, 10, 20, 30]


def no_room():
    raise OSError(28, "No space left on device")


def test_what_lightning_says_of_ranks_is_silent_for_every_loss_of_an_evaluation(monkeypatch):
    said = "It is recommended to use `self.log({!r}, ..., sync_dist=True)` when logging on epoch level"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quieten()
        for name in ("loss/val", "loss/val-ema", "loss/val/0-250", "loss/test-ema/750-1000", "loss/validated"):
            warnings.warn(said.format(name), stacklevel=1)
    assert ["loss/validated" in str(w.message) for w in seen] == [True]


# the file and the plot ------------------------------------------------------------------------------------------------


def line(step, raw, ema=None):
    def part(value):
        return {"loss": value, "cells": 4, "bands": {"0-500": value, "500-1000": value}, "images": {"d/a": value}}

    return {"step": step, "raw": part(raw), **({} if ema is None else {"ema": part(ema)})}


def test_a_line_takes_the_place_of_what_was_given_up(tmp_path):
    path = tmp_path / "run" / "evaluation.jsonl"
    for step in (0, 10, 20, 30):
        record(path, line(step, 1.0 + step))
    record(path, line(20, 5.0))
    before = path.read_text()
    odd = line(40, 1.0)
    odd["raw"]["images"] = {"d/line\u2028separator\x85.png": 1.0}
    record(path, odd)
    assert recorded(path)[-1] == odd
    path.write_text(before)
    assert [(row["step"], row["raw"]["loss"]) for row in recorded(path)] == [(0, 1.0), (10, 11.0), (20, 5.0)]
    assert [row["step"] for row in recorded(path, 10)] == [0, 10]


def test_a_damaged_file_keeps_its_good_lines(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    good = json.dumps(line(10, 0.5)).encode()
    path.write_bytes(
        b"\n".join([good, b'{"step": 20, "raw"', b"\xff\xfe", b"[1]", b'{"step": "x", "raw": {}}', b"null"])
    )
    assert recorded(path) == [line(10, 0.5)]
    assert recorded(tmp_path / "none") == []


def test_the_plot_marks_the_lowest_and_bears_gaps(tmp_path):
    values = [1.0, 0.5, None, 0.25, 0.75]
    rows = [line(10 * n, value, 0.3) for n, value in enumerate(values)]
    assert (
        lowest(rows, "raw") == (30, 0.25) and lowest(rows, "ema") == (0, 0.3) and lowest([line(0, None)], "raw") is None
    )
    top, bottom = evaluation_figure(rows, "a run").axes
    drawn = {str(curve.get_label()): curve for curve in top.get_lines()}
    assert list(drawn["weights"].get_xdata()) == [0, 10, 20, 30, 40]
    np.testing.assert_array_equal(drawn["weights"].get_ydata(), [1.0, 0.5, np.nan, 0.25, 0.75])
    assert (list(drawn["lowest: step 30"].get_xdata()), list(drawn["lowest: step 30"].get_ydata())) == ([30], [0.25])
    assert {"timesteps 0-500", "timesteps 500-1000"} <= {curve.get_label() for curve in bottom.get_lines()}
    assert Image.open(draw_evaluation(tmp_path / "plot.png", rows, "a run")).width > 600
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_evaluation(tmp_path / "none.png", [line(0, None)], "a run")


def test_the_page_names_every_option():
    text = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \| (?:`?([^`|]*?)`? )?\|", text.partition("## Options")[2], re.MULTILINE)
    options = inspect.signature(StableEvaluation).parameters
    assert [name for name, _ in table] == list(options)
    shown = {"every_n_epochs": None}  # left out, it is 1 unless there is every_n_steps
    for name, default in table:
        given = {"": None, "true": True}.get(default, int(default) if default.isdigit() else default)
        assert shown.get(name, given) == options[name].default, name


@pytest.mark.slow
def test_two_processes_measure_what_one_does_though_one_has_no_photo(tmp_path, tiny_sd_model, photos):
    """One photo is held out: the second process has none of its own, and takes part all the same."""
    no_dropout = {"class_path": "LoRA", "init_args": {"rank": 4}}  # each rank has dropout of its own
    changes = {"data.batch_size": 2, "data.hold_out": 1, "model.adapter": no_dropout, "model.optimizer": OPTIMIZER}
    alone, together = (
        configured(tmp_path / name, tiny_sd_model, photos, {"every_n_steps": 3, "patience": 9}, EMA_ON, **changes)
        for name in ("alone", "together")
    )
    one, two = rows_of(fit(alone)), rows_of(fit_on_ranks(merged(together, TWO_PROCESSES)))
    assert one[0] == two[0]  # before the training the weights are the same, and so is every number
    assert [row["step"] for row in two] == [0, 3, 6]
    for a, b in zip(one, two, strict=True):
        for part in ("raw", "ema"):
            assert b[part]["loss"] == pytest.approx(a[part]["loss"], rel=1e-6)
