"""Layered configurations: `--config a.yaml --config b.yaml`, and `extends: [base.yaml]` inside a file."""

from __future__ import annotations

import itertools
import math
import pathlib
from typing import Any

import yaml

from dreamlit.errors import ConfigError

FLAGS = ("--check", "--dry_run")


def with_flags(args: list[str]) -> list[str]:
    """`--check` alone means `--check=true`: the parser wants a value of every option."""
    following = [*args[1:], "--"]
    return [
        f"{word}=true" if word in FLAGS and after.startswith("-") else word
        for word, after in zip(args, following, strict=True)
    ]


def expand_layers(args: list[str]) -> list[str]:
    """The command line with every configuration preceded by those that it extends (later ones win).

    A base that several configurations extend is read once, before the first of them: a second time it would undo what
    the first has changed.

    Raises:
        ConfigError: when a file is missing, is not YAML, or extends itself.
    """
    expanded: list[str] = []
    applied: set[pathlib.Path] = set()
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--config", "-c"):
            expanded.append(word)
            continue
        value = value if equals else next(words, "")
        if not value:
            raise ConfigError(f"{name} needs the path of a YAML or JSON file")
        *bases, asked = layers_of(pathlib.Path(value))
        for path in [*(base for base in dict.fromkeys(p.resolve() for p in bases) if base not in applied), asked]:
            expanded += ["--config", str(path)]
            applied.add(path.resolve())
    return expanded


def layers_of(path: pathlib.Path, below: tuple[pathlib.Path, ...] = ()) -> list[pathlib.Path]:
    """A configuration file after all those that it extends, nearest last."""
    if not path.is_file():
        named_by = f" (named by {below[-1]})" if below else ""
        raise ConfigError(f"there is no configuration file {path}{named_by}")
    here = path.resolve()
    if here in [p.resolve() for p in below]:
        raise ConfigError(
            "configurations extend each other in a circle: " + " -> ".join(str(p) for p in (*below, path))
        )
    layers = [layer for base in bases_of(path) for layer in layers_of(path.parent / base, (*below, path))]
    return [*layers, path]


def bases_of(path: pathlib.Path) -> list[str]:
    """What a configuration file names under `extends`: one path or a list of them."""
    bases = read_config(path).get("extends") or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: extends is {bases!r}; allowed: the path of a configuration, or a list of paths")
    return bases


def config_paths(args: list[str]) -> list[pathlib.Path]:
    """The configuration files of an expanded command line, in order."""
    return [pathlib.Path(value) for name, value in itertools.pairwise(args) if name == "--config"]


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The keys and values of a configuration file; an empty file has none.

    Raises:
        ConfigError: when it is not YAML, or holds something else than keys and values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable as YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(
            f"{path} must hold keys and values (model:, data:, trainer:, ...), not {type(content).__name__}"
        )
    return content or {}


def quoted(text: object) -> str:
    """A string for a configuration's text, as YAML reads it back: not every string of JSON is the same one there."""
    return yaml.safe_dump(str(text), default_style='"', allow_unicode=True, width=math.inf).rstrip("\n")


def optimizer_class(words: list[str]) -> str:
    """The optimizer class that a command line and its configurations ask for; the last one wins."""
    chosen = "torch.optim.AdamW"
    for path in config_paths(words):
        model = read_config(path).get("model") or {}
        if isinstance(model, str):  # a file of its own, named relative to this one
            model = read_config(path.parent / model)
        asked = model.get("optimizer") if isinstance(model, dict) else None
        asked = asked.get("class_path") if isinstance(asked, dict) else asked
        chosen = asked if isinstance(asked, str) else chosen
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("--model.optimizer", "--model.optimizer.class_path"):
            chosen = value if equals else following
    return chosen
