"""The shipped configurations: each is whole, says what it is, and runs with a tiny model in place of the real one."""

from __future__ import annotations

import pathlib
import re
import shutil
from typing import Any

import pytest
import yaml

from dreamlit.training_cli import made
from tests.family_cases import MODELS
from tests.runs import command, write_masks, write_photos

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
MODEL_OF = {"sd": "sd1", "sdxl": "sdxl", "sdxl-refiner": "refiner", "sd3": "sd35", "flux": "flux_dev"}
MODEL_OF |= {"deepfloyd-1": "if1", "deepfloyd-2": "if2"}
CARDS = ("24gb", "12gb", "8x80gb")
FILES = [f"{family}-{card}" for family in MODEL_OF for card in CARDS]
SIZES = [(96, 64), (64, 64), (64, 96)]


def test_every_required_family_has_a_file_for_every_card():
    assert {path.stem for path in CONFIGS.glob("*gb.yaml")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_its_header_gives_the_command_and_the_memory(name):
    head = (CONFIGS / f"{name}.yaml").read_text().partition("\nseed_everything" if "24" in name else "\nextends")[0]
    assert f"dreamlit fit --config configs/{name}.yaml" in head and re.search(r"Weights: [\d.]+ GB", head)


@pytest.fixture
def here(tmp_path, family_folders, monkeypatch):
    """A folder with copies of the files for a family, made small, and photos where they look for them."""
    write_photos(tmp_path / "photos" / "subject", SIZES, seed=1)
    write_masks(tmp_path / "photos" / "subject_masks", SIZES)
    write_photos(tmp_path / "photos" / "class", SIZES, seed=2)
    monkeypatch.chdir(tmp_path)

    def copied(name: str) -> pathlib.Path:
        family = name.rpartition("-")[0]
        shutil.copytree(CONFIGS, tmp_path / "configs", dirs_exist_ok=True)
        whole = tmp_path / "configs" / f"{family}-24gb.yaml"
        whole.write_text(yaml.safe_dump(made_small(yaml.safe_load(whole.read_text()))))
        small: dict[str, Any] = {"extends": [f"configs/{name}.yaml"], "trainer": {"accelerator": "cpu", "devices": 1}}
        small["trainer"] |= {"max_steps": 2, "strategy": "auto", "enable_progress_bar": False}
        small["model"] = {"family": {"init_args": {"path": str(family_folders(MODEL_OF[family])), "tiny_vae": None}}}
        small["model"]["family"]["class_path"] = MODELS[MODEL_OF[family]][0].__name__
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(small))
        return tmp_path / "run.yaml"

    return copied


def made_small(config: dict[str, Any]) -> dict[str, Any]:
    """Tiny pictures; models that work on pixels instead of latents get smaller ones, with cells enough all the same."""
    side = 32 if config["model"]["family"]["class_path"].startswith("DeepFloyd") else 64
    for entry in config["data"]["datasets"]:
        entry |= {"resolution": side} if "resolution" in entry else {}
    config["data"]["aspect_bucket_alignment"] = min(32, config["data"]["aspect_bucket_alignment"])
    preview = config["trainer"]["callbacks"][0]["init_args"]
    preview |= {
        "sizes": [f"{side}x{side}"],
        "steps": 10 if config["model"]["family"]["class_path"] == "SDXLRefiner" else 2,
    }
    return config


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("8x80gb")])
def test_a_file_for_eight_cards_is_understood(here, name):
    cli = made(["fit", "--config", str(here(name))], run_command=False)
    assert cli.datamodule.batch_size % 8 == 0 and cli.config.fit.trainer.max_steps == 2
    assert "devices: 8" in (CONFIGS / f"{name}.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith("8x80gb")])
def test_a_file_for_one_card_trains(here, name, tmp_path):
    assert command("fit", "--config", str(here(name))) == 0
    root = tmp_path / "runs" / (name.removesuffix("-24gb"))
    assert list(root.glob("*.safetensors")) and (root / "previews" / "step-000002" / "grid.png").is_file()


def test_the_files_say_how_many_gigabytes_the_weights_take():
    """The figures of the headers are those of the published configurations, not of the models of this machine."""
    heads = {name: (CONFIGS / f"{name}.yaml").read_text() for name in FILES}
    sizes = {name: float(re.findall(r"Weights: ([\d.]+) GB", text)[0]) for name, text in heads.items()}
    for family in MODEL_OF:
        assert sizes[f"{family}-12gb"] <= sizes[f"{family}-24gb"] <= sizes[f"{family}-8x80gb"]
        assert sizes[f"{family}-12gb"] < 12 and sizes[f"{family}-24gb"] < 24
