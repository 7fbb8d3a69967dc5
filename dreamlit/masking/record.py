"""masks.jsonl: by which options the masks of a folder were made, and what was found in each photo."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from dreamlit.datamodules.listing import why_junk
from dreamlit.errors import DataError

RECORD = "masks.jsonl"
Line = dict[str, Any]


class Record:
    """The record of a folder of masks. Its first line has the options, each further one a photo.

    A line is written before its mask, so that a mask without a line is never one of ours.

    Args:
        folder: Where the masks lie; it need not be there yet.
        options: All that decides the masks, as plain values; `model` is None while it is not known.
    """

    def __init__(self, folder: pathlib.Path, options: dict[str, Any]) -> None:
        self.folder, self.options = folder, options
        self.lines: dict[str, Line] = {}
        """Image name -> its line."""

    def read(self) -> None:
        """Reads what is there.

        Raises:
            DataError: when the folder holds something else, or masks of other options.
        """
        path = self.folder / RECORD
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"--output_dir {self.folder} is a file; give a folder")
        try:
            if not path.is_file():
                if self.folder.is_dir() and any(not why_junk(name) for name in os.listdir(self.folder)):
                    raise DataError(
                        f"{self.folder} holds files that this command did not make; give --output_dir an empty folder"
                    )
                return
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError as error:
            raise damaged(path, error) from None
        self._parse(path, text)

    def _parse(self, path: pathlib.Path, text: str) -> None:
        whole = text.splitlines()[: text.count("\n")]  # a line without an end was cut off when the command was killed
        try:
            first, *lines = (dict(json.loads(line)) for line in whole)
            self.lines = {str(line["image"]): line for line in lines if (line["mask"], line["photo"], line["digest"])}
        except (ValueError, TypeError, KeyError) as error:
            raise damaged(path, error) from None
        names = dict.fromkeys([*first, *self.options])
        if self.options["model"] is None:
            del names["model"]
        other = [
            f"{name} {first.get(name)!r} then, {self.options.get(name)!r} now"
            for name in names
            if first.get(name) != self.options.get(name)
        ]
        if other:
            raise DataError(
                f"{self.folder} holds masks of other options ({'; '.join(other)}); give --output_dir another folder"
            )

    def write(self) -> None:
        """Writes the record anew. Errors: `DataError` if the disk refuses."""
        lines = [self.options, *self.lines.values()]
        write_file(self.folder / RECORD, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def add(self, line: Line, mask: bytes) -> None:
        """Notes a mask and writes it. Errors: `DataError` if the disk refuses; what was written before stays."""
        self.lines[line["image"]] = line
        path = self.folder / RECORD
        try:
            # the mask of an earlier photo beside the new line would look as if it had been changed by hand
            (self.folder / line["mask"]).unlink(missing_ok=True)
            with path.open("ab") as file:
                file.write((json.dumps(line) + "\n").encode())
        except OSError as error:
            raise refused(path, error) from None
        write_file(self.folder / line["mask"], mask)


def damaged(path: pathlib.Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged ({error!r}); give --output_dir another folder")


def refused(path: pathlib.Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be written ({error.strerror or error}); all masks made before are kept")


def write_file(path: pathlib.Path, data: bytes) -> None:
    """Writes a file whole or not at all. Errors: `DataError`."""
    partial = path.with_name(f".{path.name}.partial"[-200:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error says more
            partial.unlink(missing_ok=True)
        raise refused(path, error) from None


def png(mask: np.ndarray) -> bytes:
    """uint8 [H, W] as a grey PNG, which the trainer reads back to the last bit."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of_file(path: pathlib.Path) -> str | None:
    """The digest of a file, or None if it is not there. Errors: `DataError`."""
    try:
        return digest(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names for a message: the first few, and how many more."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
