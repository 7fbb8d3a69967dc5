"""Small complete runs of the real command: configuration files, generated photos and what a run leaves behind."""

from __future__ import annotations

import copy
import pathlib
import sys
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from dreamlit.cli import main

HERE = pathlib.Path(__file__).resolve().parent


def write_photos(
    folder: pathlib.Path, sizes: list[tuple[int, int]], seed: int = 0, suffix: str = ".png"
) -> pathlib.Path:
    """Photos of smooth random colour, one for each (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number, (width, height) in enumerate(sizes):
        coarse = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"p{number}{suffix}")
    return folder


def write_masks(folder: pathlib.Path, sizes: list[tuple[int, int]]) -> pathlib.Path:
    """Masks for `write_photos`: the left half white, the right half black."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (width, height) in enumerate(sizes):
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 2] = 255
        Image.fromarray(mask).save(folder / f"p{number}.png")
    return folder


def base_config(root: pathlib.Path, model: pathlib.Path, photos: pathlib.Path) -> dict[str, Any]:
    """A run of a few steps on tiny images, with nothing optional."""
    return {
        "seed_everything": 7,
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 4,
            "default_root_dir": str(root),
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {
            "family": {"class_path": "SDXL", "init_args": {"path": str(model)}},
            "adapter": {"class_path": "LoRA", "init_args": {"rank": 4}},
        },
        "data": {
            "cache_dir": str(root.parent / "cache"),
            "batch_size": 2,
            "datasets": [
                {
                    "id": "subject",
                    "instance_data_dir": str(photos),
                    "caption_strategy": "instanceprompt",
                    "instance_prompt": "a photo of sks dog",
                    "resolution": 64,
                    "resolution_type": "pixel",
                }
            ],
        },
    }


def regularisation(folder: pathlib.Path) -> dict[str, Any]:
    return {
        "id": "class",
        "instance_data_dir": str(folder),
        "caption_strategy": "instanceprompt",
        "instance_prompt": "a photo of a dog",
        "resolution": 64,
        "resolution_type": "pixel",
        "is_regularisation_data": True,
    }


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with dotted keys set: {"trainer.max_steps": 8}."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *above, last = key.split(".")
        place = config
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    return config


def write_config(path: pathlib.Path, config: dict[str, Any]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def command(*args: str) -> int:
    """The command line in this process."""
    before = sys.argv[:]
    try:
        return main(list(args))
    finally:
        sys.argv[:] = before


def run(name: str, config: dict[str, Any], *args: str) -> int:
    """Runs a command on a configuration in this process; returns its exit code."""
    root = pathlib.Path(config["trainer"]["default_root_dir"])
    path = write_config(root.parent / f"{root.name}.yaml", config)
    return command(name, "--config", str(path), *args)


def fit(config: dict[str, Any], *args: str) -> pathlib.Path:
    """Trains and returns the run's folder."""
    assert run("fit", config, *args) == 0
    return pathlib.Path(config["trainer"]["default_root_dir"])


def checkpoint(root: pathlib.Path, step: int) -> dict[str, Any]:
    return torch.load(root / "checkpoints" / f"step-{step:06d}.ckpt", weights_only=True)


def assert_same_state(one: Any, two: Any, where: str = "") -> None:
    """Nested state is equal to the last bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), f"{where}: differs by {(one - two).abs().max()}"
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same_state(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for place, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same_state(a, b, f"{where}[{place}]")
    else:
        assert one == two, f"{where}: {one!r} and {two!r}"
