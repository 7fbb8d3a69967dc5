"""What a run has measured on the way, as curves over its optimizer steps."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreamlit.plots import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "subject_fidelity": "subject fidelity (higher is better)",
    "clip_i": "CLIP-I (higher is better)",
    "prompt_fidelity": "CLIP-T (higher is better)",
    "preservation": "PRES: the class turning into the subject (lower is better)",
    "diversity": "diversity of the subject's images",
    "class_diversity": "DIV: diversity of the class (higher is better)",
}
MODELS = {"raw": ("C0", "weights"), "ema": ("C1", "average")}


def read_lines(path: pathlib.Path, until_step: int) -> list[dict[str, Any]]:
    """The lines of a JSONL file whose `step` is at most `until_step`, by step; of one step the last.

    A resumed run repeats steps, and what lies after `until_step` is of an attempt that was given up. A line that a
    crash has cut off is left out.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= until_step:
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def score_figure(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """One plot for each score: the weights and their average over the steps, the base model and the photos as levels.

    Args:
        rows: Lines of a run's `scores.jsonl`.
        title: What stands over the picture.

    Raises:
        ValueError: when no trained model has a score.
    """
    from matplotlib.figure import Figure

    names = [name for name in TITLES if any(name in row["models"].get(m, {}) for row in rows for m in MODELS)]
    if not names:
        raise ValueError("no preview was scored, so there is nothing to draw")
    figure = Figure(figsize=(9, 1 + 2.4 * len(names)), layout="constrained")
    for name, axes in zip(names, figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], strict=True):
        for model, (colour, label) in MODELS.items():
            curve = {row["step"]: row["models"][model][name] for row in rows if name in row["models"].get(model, {})}
            if curve:
                axes.plot(list(curve), list(curve.values()), ".-", color=colour, label=label)
        levels = (base_level(rows, name), "--", "base model"), (photo_level(rows, name), ":", "photos")
        for level, style, label in levels:
            if level is not None:
                axes.axhline(level, color="grey", linestyle=style, label=label)
        axes.set_title(TITLES[name], fontsize="medium")
        axes.grid(alpha=0.3)
        axes.legend()
        bottom = axes
    bottom.set_xlabel("optimizer step")
    figure.suptitle(title)
    return figure


def base_level(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The base model's score, as it was last made."""
    return next((row["models"]["base"][name] for row in reversed(rows) if name in row["models"].get("base", {})), None)


def photo_level(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The photos' own similarity, which a perfect subject would have."""
    return rows[-1].get("photos", {}).get("mutual_similarity") if name == "subject_fidelity" else None


def draw_scores(path: pathlib.Path, file: pathlib.Path, until_step: int, title: str) -> pathlib.Path:
    """Draws `score_figure` of a run's `scores.jsonl` into a PNG.

    Raises:
        ValueError: when nothing is scored.
    """
    return save_figure(score_figure(read_lines(file, until_step), title), path)
