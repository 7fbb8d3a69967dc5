"""A run's folder: what stands there is not written over, one run at a time has it, and one that ends early says so."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from dreamlit.errors import CheckpointError
from dreamlit.export import export_full, refuse_to_replace
from dreamlit.run_folder import held, refuse_to_overwrite, write_config
from runs import assert_same_state, base_config, checkpoint, fit, merged, run, write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3)


# what stands there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "left",
    [
        *("checkpoints/best.ckpt", "checkpoints/step-000002.ckpt", "adapters/run-step-000002.safetensors"),
        *("run.safetensors", "run-diffusers.safetensors", "run-ema.safetensors", "run/dreamlit.json"),
        "best-of/front.json",
    ],
)
def test_a_new_run_keeps_off_all_that_an_older_one_left(tmp_path, left):
    root = tmp_path / "run"
    refuse_to_overwrite(root)
    for harmless in ("logs/metrics.csv", "config.yaml", "other.safetensors", "run/p0.png", "adapters"):
        path = root / harmless
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if harmless == "adapters" else path.touch()
    refuse_to_overwrite(root)
    (root / left).parent.mkdir(exist_ok=True)
    (root / left).touch()
    with pytest.raises(CheckpointError, match=r"default_root_dir"):
        refuse_to_overwrite(root)


def test_photos_where_the_weights_would_go_stop_the_run_and_stay(tmp_path, tiny_model, capsys):
    """A project `luna` with the photos in `luna/luna`, trained from inside it."""
    photos = write_photos(tmp_path / "luna" / "luna", [(64, 64)] * 3)
    before = {path: path.read_bytes() for path in photos.iterdir()}
    config = base_config(tmp_path / "luna", tiny_model, photos)
    config["model"]["adapter"] = {"class_path": "Full"}
    config["data"]["cache_dir"] = str(tmp_path / "cache")
    assert run("fit", config) == 2
    said = capsys.readouterr().err
    assert str(photos) in said and "no earlier export" in said and "move it away" in said
    assert {path: path.read_bytes() for path in photos.iterdir()} == before
    assert not (tmp_path / "cache").exists()


class Denoiser(torch.nn.Module):
    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")


@pytest.mark.parametrize("name", ["p0.png", "config.json", "diffusion_pytorch_model.safetensors"])
def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    export_full(Denoiser(), folder)  # an empty folder
    export_full(Denoiser(), folder)  # an earlier export
    other = tmp_path / "other"
    other.mkdir()
    (other / name).write_text("mine")
    with pytest.raises(CheckpointError, match="no earlier export"):
        export_full(Denoiser(), other)
    assert [path.name for path in other.iterdir()] == [name] and (other / name).read_text() == "mine"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        refuse_to_replace(folder)


# config.yaml ----------------------------------------------------------------------------------------------------------


def test_a_configuration_of_ones_own_is_never_written_over(tmp_path, tiny_model, photos, capsys):
    config = base_config(tmp_path / "run", tiny_model, photos)
    own = tmp_path / "run" / "config.yaml"
    own.parent.mkdir()
    text = "# my notes\n" + yaml.safe_dump(config)
    own.write_text(text)
    fit(config)
    assert (tmp_path / "run" / "config.1.yaml").read_text() == text
    assert "config.1.yaml now" in capsys.readouterr().out
    resolved = yaml.safe_load(own.read_text())
    assert resolved["trainer"]["max_steps"] == 4 and "notes" not in own.read_text()
    fit(merged(config, {"trainer.max_steps": 5}), "--ckpt_path", "last")  # its own file is replaced without a word
    assert not (tmp_path / "run" / "config.2.yaml").exists()
    assert yaml.safe_load(own.read_text())["trainer"]["max_steps"] == 5


def test_an_edited_configuration_is_kept_each_time(tmp_path):
    path = tmp_path / "config.yaml"
    assert write_config(path, "a: 1\n") is None and write_config(path, "a: 2\n") is None
    for number in (1, 2):
        path.write_text(path.read_text() + "# edited\n")
        edited = path.read_text()
        kept = write_config(path, "a: 3\n")
        assert kept == tmp_path / f"config.{number}.yaml" and kept.read_text() == edited
    assert yaml.safe_load(path.read_text()) == {"a": 3}


# one at a time --------------------------------------------------------------------------------------------------------


def test_a_second_run_stays_out_of_a_folder_while_the_first_is_in_it(tmp_path, tiny_model, photos, capsys):
    config = base_config(tmp_path / "run", tiny_model, photos)
    holder = "import pathlib, sys; from dreamlit.run_folder import held\n"
    holder += "with held(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", holder, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "in\n"
        assert run("fit", config) == 2
        assert "another run is writing into" in capsys.readouterr().err
        assert not list((tmp_path / "run").iterdir())
        first.communicate()
    with held(tmp_path / "run"):
        pass
    fit(config)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be made"), held(tmp_path / "run"):
        pass


# how a run ends -------------------------------------------------------------------------------------------------------


class Terminate(Callback):
    """What a job scheduler does when the time is over: SIGTERM, here in the middle of an optimizer step."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("batch", [6, 7, 8])
def test_sigterm_loses_no_step_and_is_no_success(tmp_path, tiny_model, photos, capsys, batch):
    changes = {"trainer.max_steps": 6, "trainer.accumulate_grad_batches": 3, "data.batch_size": 1}
    config = merged(base_config(tmp_path / "run", tiny_model, photos), changes)
    end = {"class_path": "test_run_folder.Terminate", "init_args": {"batch": batch}}
    assert run("fit", merged(config, {"trainer.callbacks": [end]})) == 143
    said = capsys.readouterr().err
    assert "terminated" in said and "--ckpt_path last" in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003.ckpt"]
    fit(config, "--ckpt_path", "last")
    whole = fit(merged(config, {"trainer.default_root_dir": str(tmp_path / "whole")}))
    one, two = checkpoint(tmp_path / "run", 6), checkpoint(whole, 6)
    for part in ("state_dict", "optimizer_states", "global_step", "DreamBoothData"):
        assert_same_state(one[part], two[part], part)


class TerminateEvaluation(Callback):
    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_ends_an_evaluation_too(tmp_path, tiny_model, photos, capsys):
    changes = {"data.hold_out": 2, "data.batch_size": 1}
    config = merged(base_config(tmp_path / "run", tiny_model, photos), changes)
    fit(config)
    end = {"trainer.callbacks": [{"class_path": "test_run_folder.TerminateEvaluation"}]}
    assert run("validate", merged(config, end), "--ckpt_path", "last") == 143
    assert "dreamlit validate: terminated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "said"),
    [({"trainer.max_steps": 4}, "max_steps is 4"), ({"trainer.max_time": "00:00:00:01"}, "max_time is over")],
    ids=["steps", "time"],
)
def test_a_resume_with_nothing_left_says_so(tmp_path, tiny_model, photos, capsys, limit, said):
    config = merged(base_config(tmp_path / "run", tiny_model, photos), limit)
    if "trainer.max_time" in limit:
        config["trainer"]["max_steps"] = 100_000
    fit(config)
    assert "nothing was trained" not in capsys.readouterr().out
    fit(config, "--ckpt_path", "last")
    shown = capsys.readouterr().out
    assert "nothing was trained: this run is at step" in shown and said in shown
