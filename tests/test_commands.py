"""Each command on a tiny model, as a user gives it: what it writes, prints and answers."""

import collections
import json
import pathlib
import re
import sys

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from recorder import rows
from runs import base_config, checkpoint, command, merged, regularisation, run, write_config, write_photos

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def quiet_handlers(monkeypatch) -> None:
    # Lightning's log handler keeps the stderr of the first test, which pytest has closed by now.
    monkeypatch.setattr("logging.raiseExceptions", False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model) -> dict:
    """The configuration of a finished run: two buckets, regularisation, an evaluation set, three batches a step."""
    home = tmp_path_factory.mktemp("trained")
    photos = write_photos(home / "photos", [(64, 64)] * 3 + [(128, 64)] * 2)
    others = write_photos(home / "others", [(64, 64)] * 2, seed=1)
    seen = write_photos(home / "eval", [(64, 64)], seed=2)
    config = base_config(home / "run", tiny_model, photos)
    subject = config["data"]["datasets"][0]
    subject["repeats"] = 1
    evaluation = {**subject, "id": "unseen", "dataset_type": "eval", "instance_data_dir": str(seen), "repeats": 0}
    config["data"]["datasets"] += [regularisation(others), evaluation]
    record = {"class_path": "recorder.Recorder", "init_args": {"path": str(home / "trace.jsonl")}}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}}
    changes = {
        "trainer.accumulate_grad_batches": 3,
        "trainer.callbacks": [record],
        "trainer.max_steps": 5,
        "model.optimizer": optimizer,
        "data.prompts": ["a photo of sks dog", "a photo of a dog"],
        "data.eval_timesteps": 2,
    }
    config = merged(config, changes)
    assert run("fit", config) == 0
    return config


def root_of(config) -> pathlib.Path:
    return pathlib.Path(config["trainer"]["default_root_dir"])


# fit and its configuration --------------------------------------------------------------------------------------------


def test_fit_leaves_a_checkpoint_adapters_logs_and_its_configuration(trained):
    root = root_of(trained)
    assert checkpoint(root, 5)["global_step"] == 5
    assert load_file(root / "run.safetensors").keys() and load_file(root / "run-diffusers.safetensors").keys()
    assert (root / "logs" / "metrics.csv").read_text().startswith("epoch,loss,")
    assert (root / "config.yaml").is_file()


def resolved(capsys, *args: str) -> dict:
    capsys.readouterr()
    assert command(*args, "--print_config") == 0
    content = yaml.safe_load(capsys.readouterr().out)
    return {key: value for key, value in content.items() if key not in ("extends", "ckpt_path", "config")}


def test_the_saved_configuration_gives_the_same_run_again(trained, capsys, tmp_path, monkeypatch):
    written = write_config(tmp_path / "run.yaml", trained)
    first = resolved(capsys, "fit", "--config", str(written))
    monkeypatch.chdir(tmp_path)
    assert resolved(capsys, "fit", "--config", str(root_of(trained) / "config.yaml")) == first


@pytest.mark.parametrize("name", ["validate", "prepare", "plan", "export"])
def test_the_saved_configuration_serves_the_other_commands(trained, capsys, name):
    saved = resolved(capsys, name, "--config", str(root_of(trained) / "config.yaml"))
    assert saved["model"]["adapter"]["init_args"]["rank"] == 4


# evaluation -----------------------------------------------------------------------------------------------------------


def test_validate_and_test_measure_the_weights_of_the_checkpoint(trained, capsys):
    logged = (root_of(trained) / "logs" / "metrics.csv").read_bytes()
    values = {}
    for name, args in (("validate", ["--ckpt_path", "last"]), ("test", ["--ckpt_path", "last"]), ("validate", [])):
        capsys.readouterr()
        assert run(name, trained, *args) == 0
        metric = "loss/val" if name == "validate" else "loss/test"
        line = next(line for line in capsys.readouterr().out.splitlines() if metric in line)
        values[name, bool(args)] = float(line.split("│")[2])
    assert values["validate", True] == values["test", True]
    assert values["validate", True] != values["validate", False]
    assert (root_of(trained) / "logs" / "metrics.csv").read_bytes() == logged


def test_predict_makes_an_image_of_each_prompt_twice_the_same(trained):
    folder = root_of(trained) / "predictions"
    assert run("predict", trained, "--ckpt_path", "last") == 0
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(first) == ["000.png", "001.png"]
    assert run("predict", trained, "--ckpt_path", "last") == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert run("predict", trained) == 0
    assert (folder / "000.png").read_bytes() != first["000.png"]


def test_a_checkpoint_never_overrides_the_configuration(trained, capsys):
    asked = merged(trained, {"model.adapter.init_args.rank": 8})
    for name in ("fit", "validate", "export"):
        assert run(name, asked, "--ckpt_path", "last") == 2
        message = capsys.readouterr().err
        assert "rank" in message or "shape" in message, message
    assert checkpoint(root_of(trained), 5)["global_step"] == 5


# prepare and plan -----------------------------------------------------------------------------------------------------


def test_prepare_finds_everything_that_a_run_has_cached(trained, capsys):
    assert run("prepare", trained) == 0
    text = capsys.readouterr().out
    assert "latents: 0 encoded, 8 found" in text
    assert "captions: 0 encoded, 2 found" in text


def table(text: str, title: str) -> list[dict[str, str]]:
    """A printed table as rows by column name."""
    lines = text[text.index(title) :].splitlines()
    cells = [[cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in lines]
    start = next(i for i, line in enumerate(lines) if line.startswith("┃"))
    end = next(i for i, line in enumerate(lines) if line.startswith("└"))
    return [dict(zip(cells[start], row, strict=True)) for row in cells[start + 2 : end]]


def test_the_plan_agrees_with_the_trace_of_the_run(trained, capsys):
    assert run("plan", trained) == 0
    text = capsys.readouterr().out
    trace = rows(root_of(trained).parent / "trace.jsonl")
    draws = [key.partition("#")[0] for row in trace for key in row["keys"]]
    wide = ("subject/p3.png", "subject/p4.png")
    seen = collections.Counter(("128 x 64" if d in wide else "64 x 64", d.partition("/")[0]) for d in draws)
    times = collections.Counter(draws)
    batches = collections.Counter("128 x 64" if row["keys"][0].startswith(wide) else "64 x 64" for row in trace)
    found = table(text, "what is seen")
    assert {(r["bucket"], r["dataset"]): int(r["draws in the run"]) for r in found} == seen
    assert {r["bucket"]: int(r["batches"]) for r in found} == batches
    assert f"Run: 5 optimizer steps, {len(trace)} batches, {len(draws)} images drawn" in text
    share = 100 * sum(d.startswith("class/") for d in draws) / len(draws)
    assert f"{share:.1f} % of them regularisation" in text
    for row in found:
        width = row["bucket"].startswith("128")
        members = [n for d, n in times.items() if d.startswith(row["dataset"]) and (d in wide) == width]
        said = [int(word) for word in re.findall(r"\d+", row["each image seen"])]
        assert (min(members), max(members)) == (said[0], said[-1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_a_run_for_a_gpu_is_planned_without_one(trained, capsys):
    elsewhere = merged(trained, {"trainer.accelerator": "gpu", "trainer.devices": 2})
    assert run("plan", elsewhere) == 0
    assert "Run: 5 optimizer steps" in capsys.readouterr().out
    assert run("validate", elsewhere) == 2
    assert "gpu" in capsys.readouterr().err.lower()


def test_plan_previews_the_training_pictures_and_never_in_a_dataset_folder(trained, tmp_path, capsys):
    assert run("plan", trained, "--preview", str(tmp_path / "preview")) == 0
    assert "p3.png" in (tmp_path / "preview" / "index.html").read_text()
    sizes = collections.Counter(Image.open(p).size for p in (tmp_path / "preview" / "pictures").glob("*.png"))
    assert sizes == {(64, 64): 6, (128, 64): 2}
    photos = trained["data"]["datasets"][0]["instance_data_dir"]
    before = sorted(pathlib.Path(photos).rglob("*"))
    assert run("plan", trained, "--preview", f"{photos}/preview") == 2
    assert "never written to" in capsys.readouterr().err
    assert sorted(pathlib.Path(photos).rglob("*")) == before


# export, sample, inspect ----------------------------------------------------------------------------------------------


def test_export_check_proves_each_file_and_prints_the_differences(trained, tmp_path, capsys):
    assert run("export", trained, "--output", str(tmp_path / "out"), "--check") == 0
    text = capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "run-step-000005-diffusers.safetensors",
        "run-step-000005.safetensors",
    ]
    found = re.findall(r"live adapter: (\S+); to the base model: (\S+)", text)
    assert len(found) == 2
    for difference, effect in found:
        assert float(difference) < 1e-5 < float(effect)
    final = load_file(root_of(trained) / "run.safetensors")
    again = load_file(tmp_path / "out" / "run-step-000005.safetensors")
    assert final.keys() == again.keys()
    assert all(torch.equal(final[key], again[key]) for key in final)


def test_sample_makes_the_same_picture_twice_and_writes_its_recipe(trained, tmp_path):
    args = ("--prompt", "a photo of sks dog", "--steps", "2", "--width", "64", "--height", "64")
    for name in ("one", "two"):
        assert run("sample", trained, *args, "--output", str(tmp_path / name), "--count", "2") == 0
    pictures = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert pictures == ["000-00.png", "000-01.png", "grid.png"]
    for name in pictures:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one = (tmp_path / "one" / "000-00.png").read_bytes()
    assert one != (tmp_path / "one" / "000-01.png").read_bytes()
    recipe = json.loads(Image.open(tmp_path / "one" / "000-00.png").info["dreamlit"])  # pyright: ignore
    assert recipe["prompt"] == "a photo of sks dog" and recipe["num_inference_steps"] == 2
    assert recipe["adapter"].startswith("run") and recipe["seed"] >= 0
    assert run("sample", trained, *args, "--output", str(tmp_path / "base"), "--adapter", "none") == 0
    other = ("--prompt", "a photo of a dog", *args[2:], "--output", str(tmp_path / "one"))
    assert run("sample", trained, *other) == 0  # goes beside the images that are there
    assert (tmp_path / "one" / "000-00.png").read_bytes() == one and (tmp_path / "one-2" / "grid.png").is_file()
    base = Image.open(tmp_path / "base" / "000-00.png")
    assert base.tobytes() != Image.open(tmp_path / "one" / "000-00.png").tobytes()


def test_sample_without_a_trained_adapter_says_what_to_do(trained, tmp_path, capsys):
    fresh = merged(trained, {"trainer.default_root_dir": str(tmp_path / "fresh")})
    assert run("sample", fresh, "--prompt", "x") == 2
    assert "--adapter" in capsys.readouterr().err


def test_inspect_counts_the_matched_modules_and_fails_on_another_model(trained, tiny_model, tiny_sd_model, capsys):
    path = str(root_of(trained) / "run.safetensors")
    assert command("inspect", path, "--model", str(tiny_model)) == 0
    text = capsys.readouterr().out
    assert "kohya" in text and "64 / 64" in text
    assert command("inspect", path, "--model", str(tiny_sd_model)) == 1
    assert "unmatched" in capsys.readouterr().out
    assert command("inspect", str(root_of(trained) / "config.yaml")) == 2


# the cache ------------------------------------------------------------------------------------------------------------


def test_cache_verify_finds_damage_and_gc_keeps_what_a_configuration_uses(trained, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    config = merged(trained, {"trainer.default_root_dir": str(tmp_path / "run"), "data.cache_dir": str(tmp_path / "c")})
    config["data"]["datasets"] = [{**trained["data"]["datasets"][0], "instance_data_dir": str(photos)}]
    del config["data"]["eval_timesteps"]  # its dataset went
    assert run("prepare", config) == 0
    write_photos(photos, [(64, 64)] * 2, seed=9)
    assert run("prepare", config) == 0
    used = str(tmp_path / "run.yaml")
    capsys.readouterr()
    assert command("cache", "verify", str(tmp_path / "c")) == 0
    assert command("cache", "gc", str(tmp_path / "c"), "--keep", used, "--dry-run") == 0
    assert "2 entries (0.0 MiB) would be removed, 2 kept" in capsys.readouterr().out
    assert command("cache", "gc", str(tmp_path / "c"), "--keep", used, "--keep", used) == 0
    assert run("prepare", config) == 0
    assert "latents: 0 encoded, 2 found" in capsys.readouterr().out
    assert command("cache", "gc", str(tmp_path / "c"), "--keep", used) == 0
    assert "0 entries (0.0 MiB) removed, 2 kept" in capsys.readouterr().out
    shard = next((tmp_path / "c" / "latents").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    shard.write_bytes(content)
    assert command("cache", "verify", str(tmp_path / "c")) == 1
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["cache", "verify", "/nowhere"], 2, "/nowhere"),
        (["cache", "gc", "."], 2, "--keep"),
        (["cache", "tidy", "."], 2, "verify"),
        (["cache"], 2, "verify"),
        (["cache", "--help"], 0, "dreamlit cache gc cache --keep run.yaml"),
        (["cache", "gc", "--help"], 0, "--dry-run"),
        (["inspect", "--help"], 0, "dreamlit inspect runs/dog/dog.safetensors"),
        (["inspect"], 2, "FILE"),
        (["inspect", "/nowhere.safetensors"], 2, "nowhere.safetensors"),
    ],
)
def test_a_tool_answers_a_wrong_call_with_what_is_right(capsys, args, code, expected):
    assert command(*args) == code
    shown = capsys.readouterr()
    assert expected in shown.out + shown.err


def test_verify_of_a_folder_without_a_cache_is_not_all_well(tmp_path, capsys):
    assert command("cache", "verify", str(tmp_path)) == 2
    assert "no shards" in capsys.readouterr().err


# classes of a user's own ----------------------------------------------------------------------------------------------


def test_callback_captions_and_family_of_a_users_own_are_named_by_dotted_path(tmp_path, tiny_model):
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    config = base_config(tmp_path / "run", tiny_model, photos)
    config["model"]["family"]["class_path"] = "recorder.OwnSDXL"
    subject = config["data"]["datasets"][0]
    subject["caption_strategy"] = "recorder.ShoutingCaptions"
    del subject["instance_prompt"]
    record = {"class_path": "recorder.Recorder", "init_args": {"path": str(tmp_path / "trace")}}
    assert run("fit", merged(config, {"trainer.callbacks": [record], "trainer.max_steps": 2})) == 0
    assert len(rows(tmp_path / "trace")) == 2
    assert run("plan", config, "--preview", str(tmp_path / "preview")) == 0
    assert "P0" in (tmp_path / "preview" / "index.html").read_text()


@pytest.mark.parametrize("place", ["beside the configuration", "in the current folder"])
def test_a_file_of_ones_own_is_found(trained, tmp_path, monkeypatch, capsys, place):
    name = f"mine_{place.split()[0]}"
    home = tmp_path / "home"
    (tmp_path / "elsewhere").mkdir()
    config = write_config(home / "run.yaml", merged(trained, {"trainer.callbacks": [f"{name}.Mine"]}))
    folder = home if place.startswith("beside") else tmp_path / "elsewhere"
    (folder / f"{name}.py").write_text("from lightning.pytorch import Callback\n\n\nclass Mine(Callback):\n    pass\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert resolved(capsys, "fit", "--config", str(config))["trainer"]["callbacks"][0]["class_path"] == f"{name}.Mine"
