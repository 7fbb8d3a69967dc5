"""Errors about names in a configuration: the nearest right one, and what is allowed in that place."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer

from dreamlit.adapters import Adapter
from dreamlit.datamodules.class_options import ClassImages
from dreamlit.errors import DreamlitError, nearest
from dreamlit.families import Family
from dreamlit.layers import read_config

CLASSES: dict[str, type] = {
    "model.family": Family,
    "model.adapter": Adapter,
    "model.optimizer": Optimizer,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}
"""Which classes a key accepts; a dotted path reaches any other of the same kind."""

CLASS_IMAGES = "data.class_images"
"""A mapping with options of its own."""

LINKED = ("model.seed", "data.seed")
"""Set from `seed_everything`; jsonargparse lists them and then refuses them."""

FEW = 6


def explained(message: str, parser: ArgumentParser, words: list[str]) -> str:
    """An error of the parser, with the nearest right name and the allowed ones where it is about a name.

    Args:
        message: What the parser says.
        parser: The parser that says it.
        words: The command line; it and the files that it names tell where a wrong name stands.
    """
    key = next((k for k in CLASSES if re.search(rf"(?:key \"|'|--){re.escape(k)}\b", message)), None)
    wrong_class = re.search(r"Expected a dot import path string: (\S+)", message)
    if key and wrong_class:
        names = closest(wrong_class[1], concrete_names(CLASSES[key]))
        return f"{key}: there is no class {wrong_class[1]!r}; {names}, or the dotted path of a class of your own"
    wrong_option = re.search(r"Option '([\w.]+)' is not accepted", message)
    if wrong_option:
        place, class_name = locate(wrong_option[1], words)
        if place == CLASS_IMAGES:
            names = [field.name for field in dataclasses.fields(ClassImages)]
            return f"{CLASS_IMAGES} has no option {wrong_option[1]!r}; {nearest(wrong_option[1], names)}"
        place = place if place in CLASSES else key
        hint = option_hint(wrong_option[1], place, class_name)
        return (
            f"{place or 'a class'}{f' ({class_name})' if class_name else ''} has no option {wrong_option[1]!r}; {hint}"
        )
    wrong_key = re.search(
        r"does not accept (?:option|nested key|key) '([\w.]+)'|[Uu]nrecognized arguments?: --([\w.]+)", message
    )
    if wrong_key:
        wrong = wrong_key[1] or wrong_key[2]
        return f"{message}\n  {closest(*misspelt(parser, wrong))}"
    return message


def locate(wrong: str, words: list[str]) -> tuple[str | None, str | None]:
    """The key under which a wrong option stands on the command line or in its files, and the class named there."""
    for word in words:
        if word.startswith("--") and word.partition("=")[0].endswith("." + wrong):
            return word[2:].partition("=")[0].rpartition(".")[0].removesuffix(".init_args"), None
    for i, word in enumerate(words[:-1]):
        if word == "--config" and (found := _locate_in(read_config(pathlib.Path(words[i + 1])), wrong, "")):
            return found
    return None, None


def _locate_in(content: Any, wrong: str, path: str) -> tuple[str, str | None] | None:
    if isinstance(content, list):
        return next((found for item in content if (found := _locate_in(item, wrong, path))), None)
    if not isinstance(content, dict):
        return None
    if path == CLASS_IMAGES and wrong in content:
        return path, None
    options = content.get("init_args")
    if isinstance(options, dict) and wrong in options:
        return path, str(content.get("class_path", "")).rpartition(".")[2] or None
    nested = ((f"{path}.{key}".strip("."), value) for key, value in content.items())
    return next((found for key, value in nested if (found := _locate_in(value, wrong, key))), None)


def option_hint(wrong: str, key: str | None, class_name: str | None) -> str:
    """The options of the named class, or of each class that the key accepts where they are few."""
    kinds = subclasses(CLASSES[key]) if key else [kind for base in CLASSES.values() for kind in subclasses(base)]
    kinds = [kind for kind in kinds if kind.__name__ == class_name] or kinds
    if len(kinds) == 1:
        return nearest(wrong, options_of(kinds[0]))
    hint = nearest(wrong, {name for kind in kinds for name in options_of(kind)}).partition(" Allowed")[0]
    if len(kinds) > FEW:
        return hint
    return f"{hint} Allowed: " + "; ".join(f"{kind.__name__}: {', '.join(sorted(options_of(kind)))}" for kind in kinds)


def subclasses(base: type) -> list[type]:
    """All concrete classes of a kind that are imported, each once."""
    found: dict[type, None] = {}
    pending = list(base.__subclasses__())
    while pending:
        kind = pending.pop(0)
        pending += kind.__subclasses__()
        if not inspect.isabstract(kind) and not kind.__name__.startswith("_"):
            found[kind] = None
    return list(found)


def concrete_names(base: type) -> set[str]:
    return {kind.__name__ for kind in subclasses(base)}


def options_of(kind: type) -> set[str]:
    """The constructor options of a class, those of its parents included where it passes them on."""
    names: set[str] = set()
    for parent in kind.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(parent.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}


def option_names(parser: ArgumentParser) -> set[str]:
    """Dotted names of all options of a parser and of its subcommands."""
    subcommands = getattr(parser, "_subcommands_action", None)
    parsers = [parser, *(subcommands.choices.values() if subcommands else ())]
    names = {action.dest for one in parsers for action in one._actions}
    return {name for name in names if name not in (*LINKED, "help", "subcommand") and not name.startswith("print_")}


def misspelt(parser: ArgumentParser, wrong: str) -> tuple[str, set[str]]:
    """The dotted name up to the first part that means nothing, and the names allowed in that place."""
    names = [name.split(".") for name in option_names(parser)]
    parts = wrong.split(".")
    allowed: set[str] = set()
    for depth in range(1, len(parts) + 1):
        below = {".".join(name[:depth]) for name in names if name[: depth - 1] == parts[: depth - 1]}
        if not below:
            break
        allowed = below
        if ".".join(parts[:depth]) not in below:
            return ".".join(parts[:depth]), allowed
    return wrong, allowed


def closest(name: str, allowed: Iterable[str]) -> str:
    """`nearest`, to which another spelling of capitals is the nearest of all."""
    allowed = set(allowed)
    same = sorted(word for word in allowed if word.lower() == name.lower())
    return f"did you mean {same[0]!r}? Allowed: {', '.join(sorted(allowed))}" if same else nearest(name, allowed)


def cause_of(error: BaseException) -> DreamlitError | None:
    """Our own error inside one that a library wrapped around it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DreamlitError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
