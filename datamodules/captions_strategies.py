"""Where captions come from: one class per `caption_strategy`. A class of your own outside this package works the
same."""

from __future__ import annotations

import codecs
import posixpath
import re
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.errors import ConfigError, DataError

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # starts with the mark of UTF-16 LE, so it is looked for first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class CaptionSource(Protocol):
    """What a caption strategy needs of a source of images."""

    def names(self) -> list[str]: ...

    def sidecar(self, name: str, suffix: str) -> bytes | None: ...


def decode_text(data: bytes, name: str) -> tuple[str, str | None]:
    """The text of a caption file and a warning, if there is cause for one.

    UTF-8, any encoding with a byte order mark, and cp1252 (with a warning) are read; the locale plays no part.

    Raises:
        DataError: The bytes are text in none of them.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), None
            except UnicodeDecodeError as error:
                raise DataError(f"{name}: byte {error.start} is not valid {encoding}; save the file as UTF-8") from None
    if b"\0" in data:
        place = data.index(b"\0")
        raise DataError(f"{name}: byte {place} is zero: not text, or UTF-16 without its mark; save the file as UTF-8")
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        place = error.start
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte {error.start} is neither UTF-8 nor cp1252; save the file as UTF-8") from None
    return text, f"{name}: byte {place} (0x{data[place]:02x}) is not UTF-8; read as cp1252. Save the file as UTF-8"


def caption_lines(text: str) -> tuple[str, ...]:
    """The lines of a text as caption variants, without blank and repeated ones; one empty caption if nothing is
    left."""
    lines = (line.strip() for line in re.split(r"[\r\n]+", text))
    return tuple(dict.fromkeys(line for line in lines if line)) or ("",)


class CaptionStrategy(ABC):
    """Finds the captions of an image.

    Subclassing registers the class, under `short_name` or else its name in lower case; a configuration names it so, or
    by its dotted path. Classes whose name starts with `_` are not registered.

    Args:
        spec: The dataset whose images get captions.
    """

    registry: ClassVar[dict[str, type[CaptionStrategy]]] = {}

    def __init_subclass__(cls, short_name: str = "", **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        name = short_name or cls.__name__.lower()
        if cls.__name__.startswith("_"):
            return
        taken = CaptionStrategy.registry.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"{cls.__module__}.{cls.__qualname__} would take the name {name!r} of "
                f"{taken.__module__}.{taken.__qualname__}; rename the class, or give it another short_name"
            )
        CaptionStrategy.registry[name] = cls

    def __init__(self, spec: ImageDataset) -> None:
        self.spec = spec
        self.warnings: list[str] = []
        """What the user should know about captions that were read all the same."""

    @abstractmethod
    def variants(self, source: CaptionSource, name: str) -> tuple[str, ...]:
        """All captions of the image `name` (relative, with forward slashes): at least one, possibly the empty text.

        Raises:
            DataError: The image has no caption, or it cannot be read. The message names the image or file.
        """


def variants_of(strategy: CaptionStrategy, source: CaptionSource, name: str) -> tuple[str, ...]:
    """The captions that a strategy gives; a class of the user's own may give a text, which reads as a list of letters.

    Raises:
        DataError: The image has no caption, or what came is no tuple of texts.
    """
    captions = strategy.variants(source, name)
    if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
        owner, came = type(strategy).__name__, "text" if isinstance(captions, str) else "tuple with more than texts"
        raise DataError(f"{owner}.variants gave a {came}; it has to give a tuple of texts, such as ('a dog',)")
    return captions


class InstancePrompt(CaptionStrategy):
    """The dataset's `instance_prompt`; a list of prompts gives variants."""

    def variants(self, source: CaptionSource, name: str) -> tuple[str, ...]:
        return self.spec.instance_prompt


class TextFile(CaptionStrategy):
    """A `.txt` file of the same stem beside the image; each line is a variant."""

    def variants(self, source: CaptionSource, name: str) -> tuple[str, ...]:
        data, file = source.sidecar(name, ".txt"), posixpath.splitext(name)[0] + ".txt"
        if data is None:
            raise DataError(f"{name}: there is no caption file {file}")
        text, warning = decode_text(data, file)
        if warning:
            self.warnings.append(warning)
        return caption_lines(text)


class FileName(CaptionStrategy):
    """The stem of the image's name, with `_` read as a space."""

    def variants(self, source: CaptionSource, name: str) -> tuple[str, ...]:
        stem = posixpath.splitext(posixpath.basename(name))[0]
        return (" ".join(stem.replace("_", " ").split()),)


class _Prepended(CaptionStrategy):
    """Each of the dataset's `instance_prompt` before each caption of another strategy."""

    def __init__(self, strategy: CaptionStrategy, spec: ImageDataset) -> None:
        super().__init__(spec)
        self.strategy = strategy
        self.warnings = getattr(strategy, "warnings", self.warnings)

    def variants(self, source: CaptionSource, name: str) -> tuple[str, ...]:
        captions = variants_of(self.strategy, source, name)
        return tuple(f"{prompt} {caption}".rstrip() for caption in captions for prompt in self.spec.instance_prompt)
