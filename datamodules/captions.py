"""Captions of a dataset's images, and which of them a draw is trained with.

All captions an image may ever be trained with are known before training (`expand`), so that their embeddings can be
cached; the draw among them (`draw_caption`) is a pure function of seed, sample and visit.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import math
import re
from collections.abc import Iterable, Sequence

from dreamlit.datamodules.captions_strategies import (
    CaptionSource,
    CaptionStrategy,
    FileName,
    InstancePrompt,
    TextFile,
    _Prepended,
    decode_text,
    variants_of,
)
from dreamlit.datamodules.captions_tables import Csv, JsonLines, Parquet
from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.errors import ConfigError, DataError, Faults, nearest
from dreamlit.seeds import unit

__all__ = [
    "CaptionSource",
    "CaptionStrategy",
    "Captions",
    "Csv",
    "FileName",
    "InstancePrompt",
    "JsonLines",
    "Parquet",
    "TextFile",
    "class_prompts",
    "decode_text",
    "draw_caption",
    "draw_class_prompt",
    "expand",
    "read_captions",
    "strategy_for",
]


@dataclasses.dataclass
class Captions:
    """The captions of a dataset's images."""

    variants: dict[str, tuple[str, ...]]
    """Image name -> its captions, at least one each."""
    skipped: dict[str, str]
    """Images left out because their caption is empty: name -> reason."""
    warnings: list[str]
    """What the user should know about captions that are used all the same."""


def strategy_for(spec: ImageDataset) -> CaptionStrategy:
    """The strategy that `caption_strategy`, `prepend_instance_prompt` and `only_instance_prompt` ask for.

    Raises:
        ConfigError: A dotted path leads to no class, or to one that is no CaptionStrategy.
    """
    if spec.only_instance_prompt:
        return InstancePrompt(spec)
    name = spec.caption_strategy
    cls = _own_class(name) if "." in name else CaptionStrategy.registry.get(name)
    if cls is None:
        raise ConfigError(f"caption_strategy: came {name!r}; {nearest(name, CaptionStrategy.registry)}")
    strategy = cls(spec)
    return _Prepended(strategy, spec) if spec.prepend_instance_prompt else strategy


def _own_class(path: str) -> type[CaptionStrategy]:
    module_name, _, class_name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"caption_strategy: {module_name!r} cannot be imported ({error}); its folder has to be on PYTHONPATH"
        ) from error
    cls = getattr(module, class_name, None)
    if cls is None:
        classes = [key for key, value in vars(module).items() if _is_strategy(value)]
        raise ConfigError(f"caption_strategy: {module_name} has no {class_name!r}; {nearest(class_name, classes)}")
    if not _is_strategy(cls):
        raise ConfigError(f"caption_strategy: {path} is no subclass of dreamlit.datamodules.captions.CaptionStrategy")
    return cls


def _is_strategy(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, CaptionStrategy) and value is not CaptionStrategy


def read_captions(spec: ImageDataset, source: CaptionSource, names: Iterable[str]) -> Captions:
    """The captions of the images `names`, with empty ones treated as `empty_caption` says.

    Raises:
        DataError: One report of all images whose caption is missing, unreadable or (by policy) empty.
    """
    strategy, found = strategy_for(spec), Captions({}, {}, [])
    faults = Faults(f"captions of dataset {spec.id!r} cannot be used", DataError)
    for name in names:
        try:
            captions = variants_of(strategy, source, name)
        except DataError as error:
            if str(error) in faults.lines:
                break  # a table that cannot be read: every image would say the same
            faults.add(str(error))
            continue
        written = tuple(dict.fromkeys(caption for caption in captions if caption.strip()))
        for caption in (caption for caption in written if spec.class_words and of_the_class(caption, spec) is None):
            faults.add(f"{name}: its caption {caption!r} has none of class_words ({', '.join(dict(spec.class_words))})")
        if written or spec.empty_caption == "allow":
            found.variants[name] = written or ("",)
        elif spec.empty_caption == "skip":
            found.skipped[name] = "its caption is empty"
        else:
            faults.add(f"{name}: its caption is empty; write one, or set empty_caption: allow or skip")
    faults.raise_if_any()
    found.warnings = list(dict.fromkeys(getattr(strategy, "warnings", ())))
    return found


def expand(variants: Sequence[str], spec: ImageDataset, seed: int) -> tuple[str, ...]:
    """All captions that an image with these variants may ever be trained with, each once: what has to be cached.

    With `caption_dropout` the empty prompt is the last of them. Shuffled orders depend on the caption and the seed
    alone, so that images that share a caption share its embeddings.
    """
    return _expanded(tuple(variants), spec, seed)


def draw_caption(variants: Sequence[str], spec: ImageDataset, seed: int, sample_id: str, visit: int) -> str:
    """The caption of one draw: always one of `expand(variants, spec, seed)`.

    In each round of visits every caption is used once, in an order of its own; dropout is drawn for each visit apart.

    Args:
        variants: The image's captions, from its strategy.
        spec: The image's dataset.
        seed: The run's seed.
        sample_id: Which image.
        visit: How often it was drawn before.
    """
    if spec.caption_dropout > 0 and unit(seed, "caption dropout", sample_id, visit) < spec.caption_dropout:
        return ""
    captions = _shuffled(tuple(variants), spec, seed)
    turn, place = divmod(visit, len(captions))
    order = sorted(range(len(captions)), key=lambda index: unit(seed, "caption", sample_id, turn, index))
    return captions[order[place]]


def of_the_class(caption: str, spec: ImageDataset) -> str | None:
    """A caption with the words of `class_words` replaced, None where it has none of them."""
    pattern = "|".join(re.escape(old) for old in sorted(dict(spec.class_words), key=len, reverse=True))
    replaced, count = re.subn(rf"(?<!\w)(?:{pattern})(?!\w)", lambda found: dict(spec.class_words)[found[0]], caption)
    return replaced if count else None


def class_prompts(captions: Sequence[str], spec: ImageDataset) -> tuple[str, ...]:
    """All class prompts of an image with these captions, as `expand` has them: what has to be cached."""
    if not spec.class_words:
        return spec.class_prompt
    return tuple(dict.fromkeys(text for text in (of_the_class(caption, spec) for caption in captions) if text))


def draw_class_prompt(caption: str, spec: ImageDataset, seed: int, sample_id: str, visit: int) -> str | None:
    """The class prompt of a draw, or None without any.

    One of the dataset's `class_prompt`, each used once in a round of visits, or what `class_words` make of the draw's
    caption; of a caption that was dropped they make nothing.
    """
    if spec.class_words:
        return of_the_class(caption, spec)
    if not spec.class_prompt:
        return None
    turn, place = divmod(visit, len(spec.class_prompt))
    order = sorted(range(len(spec.class_prompt)), key=lambda index: unit(seed, "class", sample_id, turn, index))
    return spec.class_prompt[order[place]]


@functools.lru_cache(maxsize=4096)
def _expanded(variants: tuple[str, ...], spec: ImageDataset, seed: int) -> tuple[str, ...]:
    dropped = ("",) if spec.caption_dropout > 0 else ()
    return (
        tuple(dict.fromkeys(caption for caption in _shuffled(variants, spec, seed) if caption or not dropped)) + dropped
    )


@functools.lru_cache(maxsize=4096)
def _shuffled(variants: tuple[str, ...], spec: ImageDataset, seed: int) -> tuple[str, ...]:
    if not spec.caption_shuffle.enable:
        return tuple(dict.fromkeys(variants))
    return tuple(dict.fromkeys(order for caption in variants for order in _orders(caption, spec, seed)))


def _orders(caption: str, spec: ImageDataset, seed: int) -> list[str]:
    """The caption as written, and up to `count - 1` other orders of the tags behind the kept head."""
    shuffle = spec.caption_shuffle
    prompt = _prepended_prompt(caption, spec)
    tags = [tag.strip() for tag in caption[len(prompt) :].split(shuffle.separator)]
    head, tail = tags[: shuffle.keep_tokens], tags[shuffle.keep_tokens :]
    joiner = shuffle.separator if shuffle.separator.endswith(" ") else shuffle.separator + " "
    joiner = joiner if joiner in caption else shuffle.separator
    found = {tuple(tail): caption}
    for order in _tail_orders(tail, shuffle.count, caption, seed):
        found.setdefault(order, prompt + joiner.join([*head, *order]))
    return list(found.values())[: shuffle.count]


def _prepended_prompt(caption: str, spec: ImageDataset) -> str:
    """The `instance_prompt` before a caption, with its space: it stays where it is."""
    prompts = [f"{prompt} " for prompt in spec.instance_prompt] if spec.prepend_instance_prompt else []
    return max((prompt for prompt in prompts if caption.startswith(prompt)), key=len, default="")


def _tail_orders(tail: list[str], count: int, caption: str, seed: int) -> Iterable[tuple[str, ...]]:
    if math.factorial(min(len(tail), 8)) <= 4 * count:  # few orders: all of them, in an order of their own
        key = lambda item: unit(seed, "caption shuffle", caption, item[0])  # noqa: E731
        return [order for _, order in sorted(enumerate(itertools.permutations(tail)), key=key)]
    # Many orders: repeats are rare, and 4 tries for each wanted order make too few improbable.
    return [
        tuple(
            tail[i]
            for i in sorted(range(len(tail)), key=lambda i, t=attempt: unit(seed, "caption shuffle", caption, t, i))
        )
        for attempt in range(4 * count)
    ]
