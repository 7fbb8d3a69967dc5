"""Runs with class prompts, and what they logged."""

from __future__ import annotations

import csv
import pathlib
from typing import Any

from runs import base_config, merged

PROMPTS = ["a photo of a dog", "a dog"]


def configured(tmp_path, tiny, photos, name, prompt: Any = PROMPTS, **changes) -> dict[str, Any]:
    config = base_config(tmp_path / name, tiny, photos)
    if prompt:
        config["data"]["datasets"][0]["class_prompt"] = prompt
    config["model"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    return merged(config, {"checkpoint.every_n_steps": 1, **changes})


def control(**options) -> list[dict[str, Any]]:
    return [{"class_path": "PriorControl", "init_args": options}]


def logged(root: pathlib.Path, name: str) -> list[float]:
    (path,) = root.rglob("metrics.csv")
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
