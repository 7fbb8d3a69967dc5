"""The results that a report of the evidence bench keeps, so that no finished trial is lost or run again elsewhere."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dreamlit.errors import DataError

FILE = "results.json"
SHOWN = ("steps", "time")
"""Results of the report's two tables, at equal steps and at equal time."""
OTHER = "other"
"""Results of trials that the report does not show: of other arms, or of a bench that was stopped half-way."""


def results_of(report: pathlib.Path, parts: Sequence[str] = (*SHOWN, OTHER)) -> dict[str, dict[str, Any]]:
    """The results that a report holds, by the names of their trials (which hash all that decides them).

    Raises:
        DataError: when its results.json is damaged.
    """
    path = report / FILE
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {result["folder"]: result for part in parts for result in kept.get(part, [])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no list of results ({error}): move it away, or give another --output") from None


def keep(report: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Adds a result that was just made, for the next bench; the report's tables stay as they are."""
    kept = {part: list(results_of(report, [part]).values()) for part in (*SHOWN, OTHER)}
    kept[OTHER].append(dict(result))
    write(report, kept, made_with_of(report))


def write_results(
    report: pathlib.Path, steps: Sequence[Any], time: Sequence[Any], made_with: Mapping[str, Any]
) -> None:
    """Writes what a report shows; what it held beside that is kept."""
    shown = {result["folder"] for result in [*steps, *time]}
    other = [result for name, result in results_of(report).items() if name not in shown]
    write(report, {"steps": steps, "time": time, OTHER: other}, made_with)


def made_with_of(report: pathlib.Path) -> dict[str, Any]:
    """The hash of the model's weights and the versions that the report's results were made with, if it has any."""
    return _read(report).get("made_with", {})


def costs_of(report: pathlib.Path) -> dict[str, Any]:
    """What a step of each arm costs (`steps`: arm -> multiple of the reference's) and the machine, if measured."""
    return _read(report).get("costs", {})


def keep_costs(report: pathlib.Path, steps: Mapping[str, float], machine: str) -> None:
    """Adds what a step of arms costs; all that is kept was measured in one run."""
    kept = {part: list(results_of(report, [part]).values()) for part in (*SHOWN, OTHER)}
    write(report, {"costs": {"machine": machine, "steps": dict(steps)}, **kept}, made_with_of(report))


def _read(report: pathlib.Path) -> dict[str, Any]:
    path = report / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(report: pathlib.Path, kept: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
    report.mkdir(parents=True, exist_ok=True)
    partial = report / f"{FILE}.part"
    content = {"made_with": dict(made_with), "costs": costs_of(report), **kept}
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, report / FILE)
