"""`dreamlit import`: configurations as other tools document them become runs that dreamlit plans and trains."""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import Any

import pytest
import yaml

from tests.family_cases import MODELS
from tests.import_cases import CASES, CLASS, FILES, HELD, MASKS, PHOTOS, Case
from tests.runs import command, write_masks, write_photos
from tests.tiny_encoders import make_clip

SIZES = [(96, 64), (64, 64), (64, 96)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> pathlib.Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture
def laid_out(tmp_path, monkeypatch, clip, server):
    """A case's files beside photos where it looks for them; the working folder is theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEBHOOK_URL", server.url)
    for folder, seed in ((PHOTOS, 1), (CLASS, 2), (HELD, 3), ("train/10_sks dog", 1), ("reg/1_dog", 2)):
        write_photos(tmp_path / folder, SIZES, seed=seed)
    write_masks(tmp_path / MASKS, SIZES)
    (tmp_path / "models").mkdir()
    os.symlink(clip, tmp_path / "models" / "clip")

    def lay(name: str) -> tuple[str, ...]:
        shutil.copytree(FILES / name, tmp_path, dirs_exist_ok=True)
        return CASES[name].args

    return lay


def value_at(run: dict[str, Any], key: str) -> Any:
    for name in key.split("."):
        run = run[name]
    return run


def made_small(run: dict[str, Any], case: Case, model: pathlib.Path) -> dict[str, Any]:
    """The run with the tiny model in the place of the real one, in its sizes, precision and number of steps."""
    options = run["model"]["family"]["init_args"]
    options |= {"path": str(model), "dtype": "float32"}
    options.pop("vae", None)
    if "transformer" in options:
        options["transformer"] = str(model / "transformer" / "diffusion_pytorch_model.safetensors")
    trainer = run["trainer"]
    trainer |= {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true", "max_steps": 4}
    trainer |= {"enable_progress_bar": False, "log_every_n_steps": 1}
    for entry in run["data"]["datasets"]:
        entry |= {key: 64 for key in ("resolution", "target_downsample_size") if key in entry}
        entry |= {key: 96 for key in ("maximum_image_size",) if key in entry}
    run["data"]["aspect_bucket_alignment"] = 32
    for callback in trainer.get("callbacks", []):
        if callback["class_path"] == "ValidationPreview":
            callback["init_args"] |= {"sizes": ["64x64"], "steps": 10 if case.model == "refiner" else 5}
    return run


@pytest.mark.parametrize("name", CASES)
def test_a_documented_configuration_is_planned_and_trained(name, laid_out, family_folders, server, capsys):
    case = CASES[name]
    assert command("import", *laid_out(name), "--output", "imported.yaml") == 0
    text = pathlib.Path("imported.yaml").read_text(encoding="utf-8")
    run = yaml.safe_load(text)
    assert {key: value_at(run, key) for key in case.holds} == case.holds
    assert ("UNKNOWN" in text) == (name == "simpletuner-sd15-env")  # which holds a token that is no option
    assert run["model"]["family"]["class_path"] == MODELS[case.model][0].__name__
    pathlib.Path("run.yaml").write_text(yaml.safe_dump(made_small(run, case, family_folders(case.model))))
    assert command("plan", "--config", "run.yaml") == 0, capsys.readouterr().err
    assert command("fit", "--config", "run.yaml") == 0, capsys.readouterr().err
    root = pathlib.Path(run["trainer"]["default_root_dir"])
    assert (root / "checkpoints" / "step-000004.ckpt").is_file()
    assert bool(server.requests) == ("WEBHOOK_URL" in text)
