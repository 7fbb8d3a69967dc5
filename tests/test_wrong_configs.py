"""Whole-run configurations with one mistake each: exit code 2, one clear message, no traceback, no weights loaded."""

import copy
import pathlib
import sys

import pytest
import yaml

from dreamlit.cli import main
from runs import base_config, merged, regularisation, write_photos

DATASET = "data.datasets"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 2)


@pytest.fixture(autouse=True)
def no_weights(monkeypatch) -> None:
    """Nothing wrong is found as late as while weights are read."""

    def refuse(self, *parts, device="cpu"):
        raise AssertionError(f"{parts} would be loaded")

    monkeypatch.setattr("dreamlit.families.base.Family.load", refuse)
    # Lightning's log handler keeps the stderr of the first test, which pytest has closed by now.
    monkeypatch.setattr("logging.raiseExceptions", False)


def refused(tmp_path, text: str, capsys, *args: str, command: str = "fit") -> str:
    """The message of a run that is refused."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    before = sys.argv[:]
    try:
        code = main([command, "--config", str(path), *args])
    finally:
        sys.argv[:] = before
    shown = capsys.readouterr()
    assert code == 2, f"exit code {code}: {shown.err}"
    assert shown.err.startswith(f"dreamlit {command}: ")
    assert "Traceback" not in shown.err
    assert len(shown.err) < 4000
    return shown.err


def adapter(**options):
    return {"class_path": "LoRA", "init_args": options}


# what is wrong -> (changes by dotted key, what the message must say)
WRONG = {
    "misspelt top-level key": ({"trainr": {"max_steps": 3}}, ["trainr", "did you mean 'trainer'"]),
    "misspelt top-level key without a value": ({"checkpiont": None}, ["checkpiont", "'checkpoint'"]),
    "misspelt trainer key": ({"trainer.max_step": 3}, ["trainer.max_step", "'trainer.max_steps'"]),
    "misspelt model key": ({"model.adaptor": adapter()}, ["model.adaptor", "'model.adapter'"]),
    "misspelt data key": ({"data.batchsize": 2}, ["data.batchsize", "'data.batch_size'"]),
    "misspelt objective key": ({"model.objective.los": "l2"}, ["los", "'model.objective.loss'"]),
    "misspelt checkpoint key": ({"checkpoint.every": 2}, ["checkpoint.every", "checkpoint.every_n_steps"]),
    "misspelt adapter option": ({"model.adapter": adapter(ranc=4)}, ["LoRA", "ranc", "'rank'"]),
    "misspelt family option": ({"model.family.init_args.revison": "x"}, ["revison", "'revision'"]),
    "misspelt family": ({"model.family.class_path": "SDLX"}, ["model.family", "SDLX", "'SDXL'", "SD,"]),
    "misspelt adapter": ({"model.adapter.class_path": "Lora"}, ["model.adapter", "'Lora'", "'LoRA'", "LyCORIS"]),
    "misspelt callback": ({"trainer.callbacks": ["EarlyStoping"]}, ["trainer.callbacks", "'EarlyStopping'"]),
    "callback of a file that is not there": ({"trainer.callbacks": ["nowhere.Mine"]}, ["callbacks", "nowhere.Mine"]),
    "misspelt optimizer": ({"model.optimizer": {"class_path": "AdamWW"}}, ["model.optimizer", "'AdamW'"]),
    "misspelt optimizer option": (
        {"model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lrr": 1}}},
        ["AdamW", "lrr", "'lr'"],
    ),
    "a share of the batches": (
        {"trainer.limit_train_batches": 0.5},
        ["limit_train_batches is 0.5", "number of batches"],
    ),
    "a time between evaluations": ({"trainer.val_check_interval": "00:00:10:00"}, ["val_check_interval is a time"]),
    "wrong type": ({"data.batch_size": "two"}, ["data.batch_size", "two", "int"]),
    "wrong value": ({"model.objective.loss": "l3"}, ["model.objective.loss", "l3", "huber"]),
    "negative rank": ({"model.adapter": adapter(rank=-4)}, ["rank", "-4", "above 0"]),
    "seed true": ({"seed_everything": True}, ["seed_everything", "True", "whole number"]),
    "batch size 0": ({"data.batch_size": 0}, ["data.batch_size", "0", "at least 1"]),
    "alignment no multiple of the stride": (
        {"data.aspect_bucket_alignment": 20},
        ["data.aspect_bucket_alignment", "20", "multiple of 8"],
    ),
    "no length": ({"trainer.max_steps": -1}, ["how long to train", "trainer.max_steps"]),
    "weights in bfloat16": ({"trainer.precision": "bf16-true"}, ["trainer.precision", "bf16-true", "bf16-mixed"]),
    "precision that is none": ({"trainer.precision": "bf17"}, ["trainer.precision", "bf17", "bf16-mixed"]),
    "half base in full precision": (
        {"model.family.init_args.dtype": "bfloat16"},
        ["model.family.dtype", "bfloat16", "bf16-mixed"],
    ),
    "sharded strategy": ({"trainer.strategy": "fsdp"}, ["trainer.strategy", "fsdp", "ddp"]),
    "misspelt strategy": ({"trainer.strategy": "dpp"}, ["strategy", "dpp", "ddp"]),
    "no such device": ({"trainer.accelerator": "tpu"}, ["trainer", "tpu"]),
    "overfit batches": ({"trainer.overfit_batches": 1}, ["trainer.overfit_batches", "plan"]),
    "a callback that is there already": ({"trainer.callbacks": ["RunCheckpoint"]}, ["more than one", "RunCheckpoint"]),
    "reloading": ({"trainer.reload_dataloaders_every_n_epochs": 1}, ["reload_dataloaders_every_n_epochs", "plan"]),
    "prior weight without regularisation": (
        {"model.objective.prior_loss_weight": 0.5},
        ["prior_loss_weight", "0.5", "is_regularisation_data"],
    ),
    "mask option without masks": (
        {"model.objective.mask_normalisation": "frame"},
        ["mask_normalisation", "frame", "conditioning_data"],
    ),
    "warm-up of a constant schedule": ({"model.lr_warmup_steps": 5}, ["lr_warmup_steps", "constant_with_warmup"]),
    "monitor without an evaluation set": (
        {"checkpoint.monitor": "loss/val"},
        ["RunCheckpoint", "'loss/val'", "dataset_type: eval"],
    ),
    "monitor of the training without an evaluation set": (
        {"checkpoint.monitor": "loss"},
        ["checkpoint.monitor", "'loss'", "best.ckpt would never be saved", "data.hold_out"],
    ),
    "monitor with evaluations that are turned off": (
        {"checkpoint.monitor": "loss/val", "data.hold_out": 1, "trainer.limit_val_batches": 0},
        ["checkpoint.monitor", "'loss/val'", "best.ckpt would never be saved", "limit_val_batches is 0"],
    ),
    "mode without a monitor": ({"checkpoint.mode": "max"}, ["checkpoint.mode", "'max'", "needs checkpoint.monitor"]),
    "missing model folder": ({"model.family.init_args.path": "/nowhere/m"}, ["/nowhere/m", "no such folder"]),
    "missing adapter to start from": ({"model.init_from": "no.safetensors"}, ["no.safetensors", "not a file"]),
    "adapter that matches no layer": (
        {"model.adapter": adapter(targets=["to_w"])},
        ["targets", "to_w", "'to_v'", "Layers end in"],
    ),
    "missing dataset folder": ({"dataset.instance_data_dir": "/nowhere/p"}, ["subject", "/nowhere/p"]),
    "misspelt dataset key": ({"dataset.resolutoin": 64}, ["[0]", "'subject'", "resolutoin", "'resolution'"]),
    "misspelt caption strategy": ({"dataset.caption_strategy": "textfil"}, ["caption_strategy", "'textfile'"]),
    "datasets that are a number": ({"data.datasets": 3}, ["datasets", "3", "list of entries"]),
    "no datasets": ({"data.datasets": []}, ["datasets", "empty"]),
    "a datasets file that is not there": ({"data.datasets": "no.json"}, ["datasets", "no.json"]),
    "missing checkpoint": ({"ckpt_path": "no.ckpt"}, ["no checkpoint no.ckpt", "last"]),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_named_with_what_is_allowed(tmp_path, tiny_model, photos, capsys, mistake):
    changes, expected = WRONG[mistake]
    config = base_config(tmp_path / "run", tiny_model, photos)
    for key, value in changes.items():
        if key.startswith("dataset."):
            config["data"]["datasets"][0][key.partition(".")[2]] = value
        else:
            config = merged(config, {key: value})
    message = refused(tmp_path, yaml.safe_dump(config), capsys)
    assert [part for part in expected if part not in message] == [], message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: [unclosed", ["run.yaml", "YAML"]),
        ("- model\n- data\n", ["run.yaml", "keys and values", "list"]),
        ("just words\n", ["run.yaml", "keys and values", "str"]),
        ("extends: missing.yaml\n", ["missing.yaml", "named by", "run.yaml"]),
        ("extends: {a: b}\n", ["run.yaml", "extends", "list of paths"]),
        ("extends: run.yaml\n", ["circle", "run.yaml"]),
        ("trainer: {max_steps: 1}\n", ["model", "required"]),
        ("1: 2\n", ["run.yaml", "1"]),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, capsys, text, expected):
    message = refused(tmp_path, text, capsys)
    assert [part for part in expected if part not in message] == [], message


def test_two_files_that_extend_each_other_are_named_in_order(tmp_path, capsys):
    (tmp_path / "other.yaml").write_text("extends: [run.yaml]\n")
    message = refused(tmp_path, "extends: [other.yaml]\n", capsys)
    assert message.index("run.yaml") < message.index("other.yaml")
    assert "circle" in message


def test_a_missing_configuration_file_is_named(tmp_path, capsys):
    assert main(["fit", "--config", str(tmp_path / "no.yaml")]) == 2
    assert "there is no configuration file" in capsys.readouterr().err


def test_a_model_of_another_family_is_refused_with_the_family_it_is(tmp_path, tiny_sd_model, photos, capsys):
    config = base_config(tmp_path / "run", tiny_sd_model, photos)
    message = refused(tmp_path, yaml.safe_dump(config), capsys)
    assert "StableDiffusionPipeline" in message and "set family to SD" in message


def test_a_broken_adapter_to_start_from_is_refused(tmp_path, tiny_model, photos, capsys):
    (tmp_path / "broken.safetensors").write_bytes(b"<html>not found</html>")
    config = base_config(tmp_path / "run", tiny_model, photos)
    config["model"]["init_from"] = str(tmp_path / "broken.safetensors")
    assert "broken.safetensors is not a whole safetensors file" in refused(tmp_path, yaml.safe_dump(config), capsys)


def test_a_folder_with_nothing_usable_is_refused(tmp_path, tiny_model, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no photo")
    config = base_config(tmp_path / "run", tiny_model, tmp_path / "empty")
    message = refused(tmp_path, yaml.safe_dump(config), capsys)
    assert "subject" in message and "empty" in message


def test_full_weights_of_a_half_precision_base_are_refused(tmp_path, tiny_model, photos, capsys):
    config = base_config(tmp_path / "run", tiny_model, photos)
    config["model"]["adapter"] = {"class_path": "Full"}
    config["model"]["family"]["init_args"]["dtype"] = "bfloat16"
    config["trainer"]["precision"] = "bf16-mixed"
    assert "Full trains the model's own weights" in refused(tmp_path, yaml.safe_dump(config), capsys)


def test_all_faults_of_a_combination_come_in_one_report(tmp_path, tiny_model, photos, capsys):
    config = base_config(tmp_path / "run", tiny_model, photos)
    wrong = {"trainer.max_steps": -1, "trainer.precision": "bf16-true", "model.objective.prior_loss_weight": 0.5}
    message = refused(tmp_path, yaml.safe_dump(merged(config, wrong)), capsys)
    for part in ("how long to train", "bf16-true", "prior_loss_weight"):
        assert part in message


def test_regularisation_images_that_count_for_nothing_are_refused(tmp_path, tiny_model, photos, capsys):
    config = base_config(tmp_path / "run", tiny_model, photos)
    config["data"]["datasets"].append(regularisation(photos))
    message = refused(tmp_path, yaml.safe_dump(merged(config, {"model.objective.prior_loss_weight": 0})), capsys)
    for part in ("model.objective.prior_loss_weight: 0", "'class' (is_regularisation_data)", "share of every batch"):
        assert part in message
    assert "has no effect" not in message


def test_all_faults_of_the_dataset_list_come_in_one_report(tmp_path, tiny_model, photos, capsys):
    config = base_config(tmp_path / "run", tiny_model, photos)
    second = copy.deepcopy(regularisation(photos))
    second["repeets"] = 3
    config["data"]["datasets"][0]["resolutoin"] = 64
    config["data"]["datasets"].append(second)
    message = refused(tmp_path, yaml.safe_dump(config), capsys)
    for part in ("[0]", "subject", "resolutoin", "[1]", "class", "repeets"):
        assert part in message


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--trainer.max_setps", "3"], ["trainer.max_setps", "'trainer.max_steps'"]),
        (["--model.adapter.ranck", "3"], ["ranck", "'rank'"]),
        (["--modle.adapter.rank", "3"], ["modle", "'model'"]),
        (["--config"], ["--config needs the path"]),
        (["--trainer.max_steps", "many"], ["trainer.max_steps", "many", "int"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_mistake_on_the_command_line_is_named(tmp_path, tiny_model, photos, capsys, args, expected):
    config = base_config(tmp_path / "run", tiny_model, photos)
    message = refused(tmp_path, yaml.safe_dump(config), capsys, *args)
    assert [part for part in expected if part not in message] == [], message


@pytest.mark.parametrize("word", ["fitt", "--config", "trian"])
def test_a_misspelt_command_is_answered_with_the_commands(capsys, word):
    assert main([word]) == 2
    assert "fit" in capsys.readouterr().err
