"""The curves of a run: its logged numbers over the steps, from the files of all its fits."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from dreamlit.events import plain
from dreamlit.live.files import RunFolder, lines_of

POINTS = 600
"""Points of a curve at most: more than a screen shows."""
LOSSES = ("loss", "loss/instance", "loss/prior", "loss/class", "loss/val", "loss/val-ema")
RECENT = 50
Point = tuple[int, float]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The numbers of a run by complete optimizer steps: name -> points; those that are not finite are left out."""

    series: dict[str, list[Point]]
    source: str | None = None
    steps_per_s: float | None = None

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.series.get("loss", [])]

    @property
    def last_loss(self) -> float | None:
        points = self.series.get("loss")
        return points[-1][1] if points else None


def rows_of(folder: RunFolder, path: str) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines; lines that hold none are left out."""
    file = folder.open(path)
    if file is None:
        return
    with file:
        for line in lines_of(file):
            with contextlib.suppress(ValueError, RecursionError):
                row = plain(json.loads(line))
                if isinstance(row, dict):
                    yield row


def table_of(folder: RunFolder, path: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV table with numbers for what is one."""
    file = folder.open(path)
    if file is None:
        return
    with file, contextlib.suppress(csv.Error):
        lines = (line.decode("utf-8", "replace").replace("\0", "").rstrip("\r") for line in lines_of(file))
        for row in csv.DictReader(lines):
            numbers = {name: number_of(value) for name, value in row.items() if name and isinstance(value, str)}
            step = numbers.get("step")
            if step is not None:
                yield {**numbers, "step": int(step)}


def number_of(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        value = float(text)
        return value if math.isfinite(value) else None
    return None


def read_rows(folder: RunFolder) -> Rows:
    """All that the fits of a run have logged. A fit that goes on from an earlier step replaces what came after it."""
    series: dict[str, list[Point]] = {}
    sources, speed = folder.logs("jsonl"), None
    known = {path.rpartition("/")[0] for path in sources}
    older = [path for path in folder.logs("csv") if path.rpartition("/")[0] not in known]
    for path in sorted([*sources, *older], key=lambda path: int(path.partition("/")[0].partition("-")[2] or 1)):
        rows = list(rows_of(folder, path) if path.endswith("jsonl") else table_of(folder, path))
        if add(series, rows):
            speed = speed_of(rows)
    series.update(evaluated(folder))
    return Rows(series, (sources or older or [None])[-1], speed)


def add(series: dict[str, list[Point]], rows: list[dict[str, Any]]) -> bool:
    """Adds the rows of one fit; returns whether there were any."""
    rows = [row for row in rows if type(row.get("step")) is int]
    if not rows:
        return False
    first = min(row["step"] for row in rows) + 1
    for points in series.values():
        points[:] = [point for point in points if point[0] < first]
    for row in rows:
        for name, value in row.items():
            if type(value) in (int, float) and name not in ("step", "epoch"):
                series.setdefault(name, []).append((row["step"] + 1, value))  # logged steps count from 0
    return True


def evaluated(folder: RunFolder) -> dict[str, list[Point]]:
    """The loss on held-out photos from `evaluation.jsonl`, whose steps are those of the evaluations."""
    series: dict[str, list[Point]] = {}
    for row in rows_of(folder, "evaluation.jsonl"):
        for model, name in (("raw", "loss/val"), ("ema", "loss/val-ema")):
            measured = row.get(model)
            loss = measured.get("loss") if isinstance(measured, dict) else None
            if isinstance(loss, (int, float)) and type(row.get("step")) is int:
                series.setdefault(name, []).append((row["step"], loss))
    return {name: sorted(points) for name, points in series.items()}


def speed_of(rows: list[dict[str, Any]]) -> float | None:
    """Steps a second over the newest rows that say when they were written."""
    timed = [(row["step"], row["time"]) for row in rows[-RECENT:] if isinstance(row.get("time"), str) and "step" in row]
    if len(timed) < 2:
        return None
    with contextlib.suppress(ValueError, TypeError):
        (first, begin), (last, end) = timed[0], timed[-1]
        seconds = (moment(end) - moment(begin)).total_seconds()
        return (last - first) / seconds if seconds > 0 else None
    return None


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def thinned(points: Iterable[Point]) -> tuple[list[tuple[float, float]], int]:
    """At most `POINTS` points, each the mean of as many neighbours (of the second result)."""
    points = list(points)
    size = max(1, math.ceil(len(points) / POINTS))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = [tuple(math.fsum(values) / len(group) for values in zip(*group, strict=True)) for group in groups]
    return [(round(step, 1), value) for step, value in means], size


def curves(folder: RunFolder, rows: Rows) -> dict[str, Any]:
    """What the page draws: losses by name, points [step, value], and how many logged rows each point stands for."""
    drawn, most = {}, 1
    for name in LOSSES:
        if rows.series.get(name):
            drawn[name], size = thinned(rows.series[name])
            most = max(most, size)
    return {"loss": drawn, "rows_per_point": most, "source": rows.source}


def signature(folder: RunFolder) -> tuple[Any, ...]:
    """Changes when the curves may."""
    return tuple(map(folder.mark, [*folder.logs("jsonl"), *folder.logs("csv"), "evaluation.jsonl"]))
