"""JSONL files with one line for each optimizer step that something was measured at."""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any


def record(path: pathlib.Path, line: dict[str, Any]) -> None:
    """Adds a line to the file, whole or not at all.

    Lines of the same or a later step are of an attempt that was given up, and go.
    """
    rows = [*(row for row in recorded(path) if row["step"] < line["step"]), line]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def recorded(path: pathlib.Path, until_step: float = math.inf) -> list[dict[str, Any]]:
    """The lines of a run up to a step; none without a file. One that cannot be read is left out."""
    if not path.is_file():
        return []
    rows = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # a file name may hold U+2028
        try:
            row = json.loads(text)
            if row["step"] <= until_step:
                rows.append(row)
        except (ValueError, KeyError, TypeError):
            continue
    return rows
