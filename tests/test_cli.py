"""The command line itself: help, layers, overrides, what it imports, and how it ends when it is stopped."""

import contextlib
import multiprocessing
import multiprocessing.process
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from dreamlit.cli import COMMANDS, TOOLS
from dreamlit.datamodules.cache import ShardStore
from runs import base_config, checkpoint, command, merged, run, write_config, write_photos

TESTS = pathlib.Path(__file__).resolve().parent
RUNS = [name for name in COMMANDS if name not in TOOLS]


@pytest.fixture(autouse=True)
def quiet_handlers(monkeypatch) -> None:
    # Lightning's log handler keeps the stderr of the first test, which pytest has closed by now.
    monkeypatch.setattr("logging.raiseExceptions", False)


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    return write_photos(tmp_path / "photos", [(64, 64)] * 2)


def resolved(capsys, *args: str) -> dict:
    """What `fit --print_config` prints."""
    capsys.readouterr()
    assert command("fit", *args, "--print_config") == 0
    return yaml.safe_load(capsys.readouterr().out)


# help -----------------------------------------------------------------------------------------------------------------


def cpu_s(*args: str) -> float:
    """User CPU seconds of the command in a process of its own, the best of five: a loaded machine does not count."""

    def once() -> float:
        child = subprocess.Popen([sys.executable, "-m", "dreamlit", *args], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        return usage.ru_utime

    return min(once() for _ in range(5))


def test_the_top_help_answers_within_a_tenth_of_a_second():
    assert cpu_s("--help") < 0.1


def test_the_help_of_fit_answers_within_half_a_second_once_cached(capsys):
    assert command("fit", "--help") == 0
    first = capsys.readouterr().out
    assert command("fit", "--help") == 0
    assert capsys.readouterr().out == first
    assert cpu_s("fit", "--help") < 0.5


def test_the_top_help_names_every_command(capsys):
    assert command("--help") == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +[A-Z]", text, re.MULTILINE) for name in COMMANDS)


def option_texts(text: str) -> dict[str, str]:
    """Option -> its help text, joined into one line."""
    found: dict[str, list[str]] = {}
    name = None
    for line in text.partition("\noptions:")[2].splitlines():
        option = re.match(r"  (?:-\w [\w{},]*, )?--([\w.]+)", line)
        if option:
            name = option[1]
            rest = re.split(r"\s{2,}", line.strip(), maxsplit=1)[1:]
            found[name] = rest
        elif name and line.startswith(" " * 20):
            found[name].append(line.strip())
        else:
            name = None
    return {key: " ".join(lines) for key, lines in found.items()}


@pytest.mark.parametrize("name", RUNS)
def test_every_option_says_what_it_means(capsys, name):
    assert command(name, "--help") == 0
    texts = option_texts(capsys.readouterr().out)
    assert {"model.family", "data.datasets", "checkpoint.keep", "trainer.max_steps", "seed_everything"} <= texts.keys()
    assert {key: text for key, text in texts.items() if not re.match(r"[A-Z`\"]", text)} == {}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["fit", "--model.adapter.help", "LoRA"], ["--model.adapter.rank RANK", "Rank of the update"]),
        (["fit", "--model.family.help", "SDXL"], ["--model.family.dtype", "Precision of the frozen"]),
        (["plan", "--help"], ["--preview", "contact sheet"]),
        (["export", "--help"], ["--check", "largest difference"]),
        (["sample", "--help"], ["--prompt", "--guidance_scale"]),
        (["fit", "--help"], ["--ckpt_path", "`auto`"]),
    ],
)
def test_help_tells_the_options_of_a_class_and_of_a_command(capsys, args, expected):
    assert command(*args) == 0
    text = capsys.readouterr().out
    assert [part for part in expected if part not in text] == []


# layers and overrides -------------------------------------------------------------------------------------------------


def test_layers_override_each_other_in_order_and_the_command_line_last(tmp_path, tiny_model, photos, capsys):
    config = base_config(tmp_path / "run", tiny_model, photos)
    config["model"]["adapter"]["init_args"] = {"rank": 4, "alpha": 2.0}
    write_config(tmp_path / "shared" / "base.yaml", config)
    write_config(tmp_path / "shared" / "more.yaml", {"trainer": {"max_steps": 9}, "seed_everything": 3})
    top = {"extends": ["shared/base.yaml", "shared/more.yaml"], "trainer": {"log_every_n_steps": 5}}
    one = write_config(tmp_path / "one.yaml", top)
    two = write_config(tmp_path / "two.yaml", {"model": {"adapter": {"init_args": {"alpha": 1.0}}}})
    found = resolved(capsys, "--config", str(one), f"--config={two}", "--model.adapter.rank", "8")
    assert found["trainer"]["max_steps"] == 9
    assert found["trainer"]["log_every_n_steps"] == 5
    assert found["seed_everything"] == 3
    adapter = found["model"]["adapter"]["init_args"]
    assert (adapter["rank"], adapter["alpha"]) == (8, 1.0)


def test_a_base_may_extend_another_and_is_found_from_any_folder(tmp_path, tiny_model, photos, capsys, monkeypatch):
    write_config(tmp_path / "a" / "base.yaml", base_config(tmp_path / "run", tiny_model, photos))
    write_config(tmp_path / "a" / "middle.yaml", {"extends": "base.yaml", "data": {"batch_size": 5}})
    top = write_config(tmp_path / "b" / "top.yaml", {"extends": "../a/middle.yaml"})
    monkeypatch.chdir(tmp_path / "photos")
    assert resolved(capsys, "--config", str(top))["data"]["batch_size"] == 5


def test_short_names_and_dotted_paths_name_the_same_class(tmp_path, tiny_model, photos, capsys):
    config = base_config(tmp_path / "run", tiny_model, photos)
    found = resolved(capsys, "--config", str(write_config(tmp_path / "short.yaml", config)))
    config["model"]["family"]["class_path"] = "dreamlit.families.SDXL"
    config["model"]["adapter"]["class_path"] = "dreamlit.adapters.LoRA"
    assert resolved(capsys, "--config", str(write_config(tmp_path / "short.yaml", config))) == found
    config["model"]["adapter"] = "LyCORIS"
    config["trainer"]["callbacks"] = [{"class_path": "EarlyStopping", "init_args": {"monitor": "loss"}}]
    found = resolved(capsys, "--config", str(write_config(tmp_path / "short.yaml", config)))
    assert found["model"]["adapter"]["class_path"].endswith("LyCORIS")
    assert found["trainer"]["callbacks"][0]["class_path"] == "lightning.pytorch.callbacks.EarlyStopping"


def test_datasets_may_be_a_file_beside_the_configuration(tmp_path, tiny_model, photos, capsys, monkeypatch):
    config = base_config(tmp_path / "run", tiny_model, photos)
    entries = config["data"]["datasets"]
    config["data"]["datasets"] = "data.yaml"
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(entries))
    top = write_config(tmp_path / "top.yaml", config)
    monkeypatch.chdir(tmp_path)
    assert resolved(capsys, "--config", str(top))["data"]["datasets"][0]["id"] == "subject"


# what is imported -----------------------------------------------------------------------------------------------------


def modules_of(*args: str) -> set[str]:
    """The modules that a command has imported when it is done."""
    script = (
        f"import sys\nsys.path.append({str(TESTS)!r})\nfrom dreamlit.cli import main\nargs = {list(args)!r}\n"
        "sys.argv[1:] = args\nassert main(args) == 0\nprint('\\nMODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES ")[2].split())


def test_the_plan_imports_no_model_library(tmp_path, tiny_model, photos):
    config = write_config(tmp_path / "run.yaml", base_config(tmp_path / "run", tiny_model, photos))
    loaded = modules_of("plan", "--config", str(config))
    assert not loaded & {"diffusers", "peft", "lycoris", "torchao", "bitsandbytes", "webdataset"}
    # The bare package comes in through Lightning's metrics; a model of it would be ours.
    assert not {name for name in loaded if name.startswith("transformers.models.clip")}


def test_looking_into_a_file_or_a_cache_imports_no_torch(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    parts = {"up": torch.zeros(4, 2), "down": torch.zeros(2, 4)}
    save_file({f"lora_unet_x.lora_{part}.weight": tensor for part, tensor in parts.items()}, path)
    assert not modules_of("inspect", str(path)) & {"torch", "lightning", "diffusers", "jsonargparse"}
    with ShardStore(tmp_path / "cache").writer() as writer:
        writer.add("a" * 32, b"x")
    assert not modules_of("cache", "verify", str(tmp_path / "cache")) & {"torch", "lightning", "diffusers"}


# being stopped --------------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, so that a start does not cost seconds")


def started(log: pathlib.Path, *args: str) -> multiprocessing.process.BaseProcess:
    """The command in a forked process that writes what it prints into a file."""

    def child() -> None:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = file, file
            sys.exit(command(*args))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def entries(folder: pathlib.Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every entry of the shard folders in a cache folder."""
    found = {}
    for store in (ShardStore(folder / name) for name in ("latents", "text")):
        for key in store.keys():  # noqa: SIM118
            found[key] = store.get(key)
    return found


def size_of(folder: pathlib.Path) -> int:
    """Bytes in the files of a folder that another process may be changing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@linux
def test_prepare_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path, tiny_model):
    photos = write_photos(tmp_path / "photos", [(64 + 64 * (n % 3), 64) for n in range(24)])
    config = base_config(tmp_path / "run", tiny_model, photos)
    assert run("prepare", merged(config, {"data.cache_dir": str(tmp_path / "calm")})) == 0
    whole = size_of(tmp_path / "calm")
    path = write_config(tmp_path / "run.yaml", merged(config, {"data.cache_dir": str(tmp_path / "killed")}))
    moment, killed = random.Random(0), 0
    for _ in range(5):
        # Progress instead of time, so that a slow machine kills at the same kind of moment.
        until = size_of(tmp_path / "killed") + moment.uniform(0, 0.3) * whole
        process = started(tmp_path / "log", "prepare", "--config", str(path))
        while size_of(tmp_path / "killed") <= until and process.is_alive():
            time.sleep(0.002)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 3, "the kills came too late to mean anything"
    assert run("prepare", merged(config, {"data.cache_dir": str(tmp_path / "killed")})) == 0
    calm, disturbed = entries(tmp_path / "calm"), entries(tmp_path / "killed")
    assert calm.keys() == disturbed.keys() and len(calm) == 25
    for key, tensors in calm.items():
        assert all(torch.equal(tensor, disturbed[key][name]) for name, tensor in tensors.items())
    assert command("cache", "verify", str(tmp_path / "killed")) == 0


@linux
def test_ctrl_c_ends_with_one_line_and_the_run_goes_on_from_its_newest_checkpoint(tmp_path, tiny_model, photos):
    config = base_config(tmp_path / "run", tiny_model, photos)
    config = merged(config, {"trainer.max_steps": 100_000, "checkpoint.every_n_steps": 2})
    assert run("prepare", config) == 0
    saved = tmp_path / "run" / "checkpoints" / "step-000004.ckpt"
    words = [sys.executable, "-m", "dreamlit", "fit", "--config", str(tmp_path / "run.yaml")]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            while not saved.exists() and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            process.wait(120)
        finally:
            process.kill()
    text = (tmp_path / "log").read_text()
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert text.splitlines()[-1] == "dreamlit fit: interrupted; the newest checkpoint goes on with --ckpt_path last"
    step = max(int(path.stem[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*.ckpt"))
    more = merged(config, {"trainer.max_steps": step + 2})
    assert run("fit", more, "--ckpt_path", "last") == 0
    assert checkpoint(tmp_path / "run", step + 2)["global_step"] == step + 2
