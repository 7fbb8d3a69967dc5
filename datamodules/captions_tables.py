"""Captions from a table: parquet, CSV or JSON lines."""

from __future__ import annotations

import csv
import functools
import io
import json
import pathlib
import posixpath
import re
import unicodedata
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dreamlit.datamodules.captions_strategies import CaptionSource, CaptionStrategy, caption_lines, decode_text
from dreamlit.datamodules.config_entries import CaptionTable, ImageDataset
from dreamlit.errors import ConfigError, DataError, nearest

IMAGE_SUFFIX = re.compile(r"\.(jpe?g|jfif|png|webp|avif|bmp|tiff?|gif)$", re.IGNORECASE)
Row = tuple[str, Any]


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    return IMAGE_SUFFIX.sub("", name)


MATCHES: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    _nfc,
    lambda name: _stem(_nfc(name)),
    lambda name: posixpath.basename(_nfc(name)),
    lambda name: _stem(posixpath.basename(_nfc(name))),
)
"""Ways to compare an image's name with a row's, strictest first."""


class _Table(CaptionStrategy):
    """Captions of a table with a row, or several for variants, per image. The first kind of match that finds a row
    counts.

    A row names its image by relative path, by path without suffix, by file name or by stem.
    """

    block: str

    def __init__(self, spec: ImageDataset) -> None:
        super().__init__(spec)
        self.table: CaptionTable = getattr(spec, self.block)
        self._image_index: list[dict[str, list[str]]] | None = None

    @abstractmethod
    def rows(self) -> Iterable[Row]:
        """(image name, caption or list of captions) of each row."""

    def variants(self, source: CaptionSource, name: str) -> tuple[str, ...]:
        for level, rows in enumerate(self._by_match):
            key = MATCHES[level](name)
            found = rows.get(key)
            if found:
                self._check_unique(name, found, self._images(source)[level][key])
                captions = [caption for item in found.values() for caption in item]
                return tuple(dict.fromkeys(caption for caption in captions if caption)) or ("",)
        raise DataError(f"{name}: {self.table.path} has no row for it (column {self.table.filename_column!r})")

    def _check_unique(self, name: str, found: dict[str, list[str]], images: list[str]) -> None:
        if len(found) > 1:
            raise DataError(
                f"{name}: {self.table.path} has several rows for it: {', '.join(found)}; use relative paths"
            )
        row = next(iter(found))
        if len(images) > 1 and row != name:
            raise DataError(
                f"{name}: the row {row!r} also fits {_others(images, name)}; use relative paths with suffixes"
            )

    def _images(self, source: CaptionSource) -> list[dict[str, list[str]]]:
        """For each kind of match: key -> the images that have it."""
        if self._image_index is None:
            self._image_index = [defaultdict(list) for _ in MATCHES]
            for image in source.names():
                for match, images in zip(MATCHES, self._image_index, strict=True):
                    images[match(image)].append(image)
        return self._image_index

    @functools.cached_property
    def _by_match(self) -> list[dict[str, dict[str, list[str]]]]:
        """For each kind of match: key -> row name -> captions."""
        found: list[dict[str, dict[str, list[str]]]] = [defaultdict(dict) for _ in MATCHES]
        for name, caption in self.rows():
            name = posixpath.normpath(str(name).replace("\\", "/"))
            captions = self._captions(name, caption)
            for match, rows in zip(MATCHES, found, strict=True):
                rows[match(name)].setdefault(name, []).extend(captions)
        return found

    def _captions(self, name: str, value: Any) -> list[str]:
        items = value if isinstance(value, list) else [value]
        if not all(item is None or isinstance(item, str) for item in items):
            raise DataError(f"{self.table.path}: the caption of {name} is {value!r}; allowed: text or a list of texts")
        return [line for item in items for line in caption_lines(item or "")]

    def _check_columns(self, columns: Iterable[str]) -> None:
        columns = list(columns)
        for column in (self.table.filename_column, self.table.caption_column):
            if column not in columns:
                raise DataError(f"{self.table.path}: there is no column {column!r}; {nearest(column, columns)}")

    def _text(self) -> str:
        path = self.table.path
        try:
            text, warning = decode_text(pathlib.Path(path).read_bytes(), path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        if warning:
            self.warnings.append(warning)
        return text


def _others(images: list[str], name: str) -> str:
    others = [image for image in images if image != name]
    return ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")


class Csv(_Table):
    """A CSV file with a header line; a `.tsv` file is separated by tabs."""

    block = "csv"

    def rows(self) -> Iterator[Row]:
        delimiter = "\t" if self.table.path.lower().endswith(".tsv") else ","
        reader = csv.DictReader(io.StringIO(self._text(), newline=""), delimiter=delimiter, strict=True)
        try:
            self._check_columns(reader.fieldnames or ())
            for row in reader:
                name, caption = row[self.table.filename_column], row[self.table.caption_column]
                if caption is None or None in row:
                    raise DataError(
                        f"{self.table.path}: line {reader.line_num} has not as many cells as the header line"
                    )
                yield name, caption
        except csv.Error as error:
            raise DataError(f"{self.table.path}: the row after line {reader.line_num}: {error}") from None


class JsonLines(_Table, short_name="jsonl"):
    """A file with a JSON object on each line."""

    block = "jsonl"

    def rows(self) -> Iterator[Row]:
        for number, line in enumerate(re.split(r"\r\n|\r|\n", self._text()), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{self.table.path}: line {number} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise DataError(f"{self.table.path}: line {number} is {row!r}; allowed: an object such as {{...}}")
            for column in (self.table.filename_column, self.table.caption_column):
                if column not in row:
                    raise DataError(f"{self.table.path}: line {number} has no {column!r}; {nearest(column, row)}")
            yield row[self.table.filename_column], row[self.table.caption_column]


class Parquet(_Table):
    """A parquet file; needs pyarrow."""

    block = "parquet"

    def rows(self) -> Iterator[Row]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ConfigError(
                "caption_strategy parquet needs pyarrow, which is not installed: pip install 'dreamlit[parquet]', "
                "or save the table as csv or jsonl"
            ) from None
        name, caption = self.table.filename_column, self.table.caption_column
        try:
            self._check_columns(pyarrow.parquet.read_schema(self.table.path).names)
            table = pyarrow.parquet.read_table(self.table.path, columns=[name, caption])
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{self.table.path}: cannot be read as parquet ({error})") from None
        yield from zip(table[name].to_pylist(), table[caption].to_pylist(), strict=True)
