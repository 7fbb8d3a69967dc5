"""Pictures of a run: its losses as curves, and images before and after as a labelled grid.

matplotlib is imported when a curve is drawn, and only its Figure: pyplot would choose a backend and keep every figure.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreamlit.images import save_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

Curve = Mapping[int, float]
"""Optimizer step -> loss."""

LABELS = {"loss": "loss", "loss/instance": "subject (instance)", "loss/prior": "regularisation (prior)"}
LOG_FOLDER = re.compile(r"logs(?:-(\d+))?")


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

    With both an instance and a prior loss the two are drawn, otherwise the one loss that is trained on.

    Raises:
        ValueError: when no curve has a point.
    """
    from matplotlib.figure import Figure

    parts = [name for name in ("loss/instance", "loss/prior") if curves.get(name)]
    names = parts if len(parts) == 2 else ["loss"]
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


def save_figure(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure as a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image as pillow

    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data)
    return save_image(pillow.open(data), path)


def photo_files(folder: pathlib.Path | None) -> list[pathlib.Path]:
    """The images of a folder by name; none of its subfolders, and none where there is no folder."""
    from dreamlit.datamodules.images import SUFFIXES

    found = sorted(folder.iterdir()) if folder else []
    return [path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]


def read_photo(path: pathlib.Path) -> Image:
    """A photo, upright and in sRGB, transparent parts on white.

    Raises:
        DataError: when it cannot be read whole.
    """
    from PIL import Image as pillow

    from dreamlit.datamodules.images import decode

    return pillow.fromarray(decode(path.read_bytes(), path.name).pixels)


@dataclasses.dataclass(frozen=True)
class Row:
    """Images of one prompt, of the base model and of the trained one, in the same order of seeds."""

    caption: str
    before: Sequence[Image]
    after: Sequence[Image]


MARGIN, GAP, TEXT_PX, LEAST_CELL_PX = 8, 32, 16, 112


def before_after(
    rows: Sequence[Row], photos: Sequence[Image] = (), heads: tuple[str, str] = ("before", "after"), cell_px: int = 384
) -> Image:
    """One picture: a row for each prompt with its text above, left half before, right half after, photos first.

    Args:
        rows: The prompts' images, at least one row.
        photos: The subject's photos; as many as a row holds are shown, and the caption says how many there are.
        heads: What stands over the halves.
        cell_px: Longest side of an image in the grid; larger ones are scaled down, smaller ones stay as they are.
    """
    from PIL import Image as pillow
    from PIL import ImageDraw

    half = max(max(len(row.before), len(row.after)) for row in rows)
    small = [([fitted(i, cell_px) for i in row.before], [fitted(i, cell_px) for i in row.after]) for row in rows]
    every = [image for pair in small for side in pair for image in side]
    cell = max(LEAST_CELL_PX, *(i.width for i in every)), max(i.height for i in every)
    places = columns(half, cell[0])
    width = places[-1] + cell[0] + MARGIN
    font = text_font()

    strips: list[tuple[str, list[tuple[int, Image]]]] = []
    if photos:
        shown = [fitted(photo, *cell) for photo in photos[: 2 * half]]
        count = f"{len(shown)} of {len(photos)}" if len(shown) < len(photos) else f"{len(photos)}"
        strips.append((f"photos of the subject ({count})", list(zip(places, shown, strict=False))))
    for row, (left, right) in zip(rows, small, strict=True):
        strips.append((row.caption, [*zip(places, left, strict=False), *zip(places[half:], right, strict=False)]))

    captions = [wrapped(text, font, width - 2 * MARGIN) for text, _ in strips]
    heights = [len(lines) * line_px() + cell[1] + 2 * MARGIN for lines in captions]
    picture = pillow.new("RGB", (width, line_px() + 2 * MARGIN + sum(heights)), "white")
    pen = ImageDraw.Draw(picture)
    top = MARGIN
    for number, (lines, (_, cells), height) in enumerate(zip(captions, strips, heights, strict=True)):
        if number == bool(photos):  # the photos above belong to neither half
            write(pen, [heads[0]], (places[0], top), font, "firebrick")
            write(pen, [heads[1]], (places[half], top), font, "darkgreen")
            top += line_px() + MARGIN
        write(pen, lines, (MARGIN, top), font)
        for x, image in cells:
            picture.paste(image, (x, top + len(lines) * line_px()))
        top += height
    return picture


def columns(half: int, cell_width: int) -> list[int]:
    """Left edges in pixels of `half` cells, a gap, and `half` cells again."""
    step = cell_width + MARGIN
    return [MARGIN + n * step + (GAP if n >= half else 0) for n in range(2 * half)]


def fitted(image: Image, width: int, height: int | None = None) -> Image:
    """The image as RGB, scaled down where it is larger than the box; its shape is kept."""
    from PIL import Image as pillow

    image = image.convert("RGB")
    share = min(1.0, width / image.width, (height or width) / image.height)
    if share == 1.0:
        return image
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, pillow.Resampling.LANCZOS)


def text_font() -> FreeTypeFont:
    """DejaVu Sans as matplotlib brings it: accents, Greek and Cyrillic, which Pillow's own font lacks."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", TEXT_PX)


def line_px() -> int:
    return TEXT_PX + 6


def wrapped(text: str, font: FreeTypeFont, width: int) -> list[str]:
    """The text in lines of at most `width` pixels; a word that is longer is cut. At least one line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        pieces = list(cut(word, font, width))
        lines = [*lines, *pieces] if lines[-1] else pieces
    return lines


def cut(word: str, font: FreeTypeFont, width: int) -> Iterable[str]:
    piece = ""
    for letter in word:
        if piece and font.getlength(piece + letter) > width:
            yield piece
            piece = ""
        piece += letter
    yield piece


def write(pen: ImageDraw, lines: Sequence[str], at: tuple[int, int], font: FreeTypeFont, colour: str = "black") -> None:
    for number, line in enumerate(lines):
        pen.text((at[0], at[1] + number * line_px()), line, fill=colour, font=font)
