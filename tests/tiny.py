"""Tiny models for all tests, made by the script that users run, at most once for each call."""

from __future__ import annotations

import importlib
import pathlib
import shutil
import sys
import types
from typing import Any


def script(name: str = "make_tiny_models") -> types.ModuleType:
    """A file of `scripts/` as a module."""
    folder = str(pathlib.Path(__file__).resolve().parent.parent / "scripts")
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as when a user runs it
    return importlib.import_module(name)


def tiny_sd(folder: pathlib.Path, **options: object) -> pathlib.Path:
    """A tiny Stable Diffusion 1.x (`prediction_type="v_prediction"`: 2.x) in `folder`; with options of `make`."""
    return made("sd", folder, options)


def tiny_sdxl(folder: pathlib.Path, **options: object) -> pathlib.Path:
    """A tiny SDXL in `folder`; options of the script's `make`."""
    return made("sdxl", folder, options)


def hub_cache(root: pathlib.Path, name: str, folder: pathlib.Path, monkeypatch: Any) -> pathlib.Path:
    """Make `folder` the hub model `name` as far as a machine without network can tell; return the cached copy."""
    repository, commit = root / f"models--{name.replace('/', '--')}", "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repository / "snapshots" / commit


def made(family: str, folder: pathlib.Path, options: dict[str, object]) -> pathlib.Path:
    folder = pathlib.Path(folder)
    return folder if (folder / "model_index.json").exists() else script().make(family, folder, **options)
