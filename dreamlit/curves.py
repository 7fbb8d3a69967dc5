"""What a run has measured on the way, as curves over its optimizer steps: losses, evaluations, scores.

matplotlib is imported when a curve is drawn, and only its Figure: pyplot would choose a backend and keep every figure.
"""

from __future__ import annotations

import csv
import io
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreamlit.images import save_image
from dreamlit.step_lines import recorded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Mapping[int, float]
"""Optimizer step -> loss."""

LABELS = {
    "loss": "loss",
    "loss/instance": "subject (instance)",
    "loss/prior": "regularisation (prior)",
    "loss/class": "class prompts",
}
LOG_FOLDER = re.compile(r"logs(?:-(\d+))?")
TITLES = {
    "subject_fidelity": "subject fidelity (higher is better)",
    "clip_i": "CLIP-I (higher is better)",
    "prompt_fidelity": "CLIP-T (higher is better)",
    "preservation": "PRES: the class turning into the subject (lower is better)",
    "diversity": "diversity of the subject's images",
    "class_diversity": "DIV: diversity of the class (higher is better)",
}
MODELS = {"raw": ("C0", "weights"), "ema": ("C1", "average")}


def save_figure(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure as a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image as pillow

    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data)
    return save_image(pillow.open(data), path)


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
    return save_figure(score_figure(recorded(file, until_step), title), path)


def logged_losses(root: pathlib.Path, until_step: int) -> dict[str, dict[int, float]]:
    """What a run and its resumes have logged into `root/logs`, `root/logs-2`, ...: {name: {optimizer step: loss}}.

    Steps count from 1. Where a resume repeated a step its value stands; steps after `until_step` are of an attempt
    that was given up. Values that are not finite (no sample of that role in the batch) are left out.
    """
    folders = {int(found[1] or 1): path for path in root.glob("logs*") if (found := LOG_FOLDER.fullmatch(path.name))}
    curves: dict[str, dict[int, float]] = {name: {} for name in LABELS}
    for _, folder in sorted(folders.items()):
        for row in rows_of(folder / "metrics.csv"):
            step = int(row["step"]) + 1  # Lightning counts from 0
            for name, curve in curves.items():
                value = number(row.get(name))
                if step <= until_step and math.isfinite(value):
                    curve[step] = value
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a metrics file that name a step; none without a file. A line cut off by a crash is dropped."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and (row.get("step") or "").isdigit()]


def number(text: str | None) -> float:
    """The number that a cell holds; NaN for an empty or damaged one."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def smoothed(values: Sequence[float], span: float) -> list[float]:
    """The exponential moving average with decay `1 - 1 / span`, divided by the sum of its weights.

    That correction (Kingma and Ba, arXiv 1412.6980, section 3) makes the first values an honest mean of what there is
    instead of pulling them towards 0. `span` is in steps and at least 1, which returns the values as they are.
    """
    decay, average, weight, result = 1 - 1 / span, 0.0, 0.0, []
    for value in values:
        average = decay * average + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result.append(average / weight)
    return result


def loss_figure(curves: Mapping[str, Curve], title: str = "") -> Figure:
    """The losses over the optimizer steps: points as they came, faint, and a smoothed line for each curve.

    With a loss of the class beside that of the subject each is drawn, otherwise the one loss that is trained on.

    Raises:
        ValueError: when no curve has a point.
    """
    from matplotlib.figure import Figure

    parts = [name for name in LABELS if name != "loss" and curves.get(name)]
    names = parts if len(parts) > 1 else ["loss"]
    if not any(curves.get(name) for name in names):
        raise ValueError("no loss was recorded, so there is nothing to draw")
    figure = Figure(figsize=(9, 4 + 2 * (len(names) - 1)), layout="constrained")
    every = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]  # a prior loss is far below the other
    for number, (name, axes) in enumerate(zip(names, every, strict=True)):
        steps, values = list(curves[name]), list(curves[name].values())
        span = max(1.0, len(values) / 10)
        axes.plot(steps, values, ".", color=f"C{number}", alpha=0.35, markersize=4)
        axes.plot(steps, smoothed(values, span), color=f"C{number}", label=f"{LABELS[name]}, mean of about {span:.0f}")
        axes.set_ylabel("loss")
        axes.grid(alpha=0.3)
        axes.legend()
    every[-1].set_xlabel("optimizer step")
    every[0].set_title(title)
    return figure


def draw_losses(path: pathlib.Path, root: pathlib.Path, seen: Curve, until_step: int, title: str) -> pathlib.Path:
    """Draws the losses of a run in `root`: what was seen in this process and, over it, what it and earlier ones logged.

    Args:
        path: The PNG to write.
        root: The run's folder, with `logs`, `logs-2` ...
        seen: Loss of each optimizer step, on this rank.
        until_step: Where the run stands.
        title: What stands over the picture.

    Raises:
        ValueError: when no loss is known.
    """
    curves = logged_losses(root, until_step)
    finite = {step: loss for step, loss in seen.items() if math.isfinite(loss)}  # of steps that were left out, say
    curves["loss"] = dict(sorted({**finite, **curves["loss"]}.items()))
    return save_figure(loss_figure(curves, title), path)


def lowest(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[int, float] | None:
    """(step, loss) of the evaluation with the lowest loss, the first of equals; None where no loss is finite.

    Args:
        rows: Lines of a run's `evaluation.jsonl`.
        name: `raw`, the weights, or `ema`, their average.
    """
    found = [(row["step"], row[name]["loss"]) for row in rows if row.get(name) and row[name]["loss"] is not None]
    return min(found, key=lambda pair: pair[1], default=None)


def evaluation_figure(rows: Sequence[Mapping[str, Any]], title: str = "", name: str = "raw") -> Figure:
    """The loss on held-out photos over the optimizer steps, above; below, in each band of timesteps, against the first.

    Args:
        rows: Lines of a run's `evaluation.jsonl`, at least one.
        title: What stands over the picture.
        name: Whose lowest value is marked and whose bands are drawn: `raw` or `ema`.

    Raises:
        ValueError: when no loss in `rows` is finite.
    """
    from matplotlib.figure import Figure

    best = lowest(rows, name)
    if best is None:
        raise ValueError("no evaluation has a finite loss, so there is nothing to draw")
    bands = list(dict.fromkeys(band for row in rows for band in (row.get(name) or {}).get("bands", {})))
    figure = Figure(figsize=(9, 7 if bands else 4), layout="constrained")
    every = figure.subplots(2 if bands else 1, sharex=True, squeeze=False)[:, 0]
    for colour, (which, label) in zip(("C0", "C1"), (("raw", "weights"), ("ema", "average")), strict=True):
        if curve := {row["step"]: row[which]["loss"] for row in rows if row.get(which)}:
            every[0].plot(*as_line(curve), ".-", color=colour, label=label)
    every[0].plot(*best, "o", color="firebrick", fillstyle="none", markersize=11, label=f"lowest: step {best[0]}")
    every[0].set_ylabel("loss on held-out photos")
    every[0].set_title(title)
    if bands:
        draw_bands(every[1], rows, name, bands)
    for axes in every:
        axes.grid(alpha=0.3)
        axes.legend()
        axes.axvline(best[0], color="firebrick", alpha=0.3)
    every[-1].set_xlabel("optimizer step")
    return figure


def draw_bands(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, bands: Sequence[str]) -> None:
    """Each band's loss divided by its first: bands differ in size by more than they change."""
    for band in bands:
        curve = {row["step"]: row[name]["bands"].get(band) for row in rows if row.get(name)}
        if first := next((value for value in curve.values() if value), None):
            relative = {step: None if value is None else value / first for step, value in curve.items()}
            axes.plot(*as_line(relative), ".-", label=f"timesteps {band}")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set_ylabel("against the first evaluation")


def as_line(curve: Mapping[int, float | None]) -> tuple[list[int], list[float]]:
    """Steps and values to draw; a value that is missing leaves a gap."""
    return list(curve), [math.nan if value is None else value for value in curve.values()]


def draw_evaluation(
    path: pathlib.Path, rows: Sequence[Mapping[str, Any]], title: str, name: str = "raw"
) -> pathlib.Path:
    """Draws `evaluation_figure` into a PNG.

    Raises:
        ValueError: when no loss in `rows` is finite.
    """
    return save_figure(evaluation_figure(rows, title, name), path)
