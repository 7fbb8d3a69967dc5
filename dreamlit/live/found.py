"""What the files of a run without events tell, as the records that its events would have been."""

from __future__ import annotations

import datetime
import functools
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from dreamlit.live.curves import Rows, rows_of
from dreamlit.live.files import RunFolder, recipe_of

FIT = "0" * 32
MODELS = {"raw": "adapter", "adapter": "adapter", "ema": "adapter", "base": "base"}
MOST_PICTURES = 2000


def signature(folder: RunFolder) -> tuple[Any, ...]:
    """Changes when `records` may."""
    watched = ["previews", "previews/base", "report", "checkpoints", "scores.jsonl", "config.yaml"]
    watched += [f"previews/{name}" for name in steps_in(folder)]
    return tuple(map(folder.mark, watched + folder.logs("jsonl") + folder.logs("csv")))


def records(folder: RunFolder, rows: Rows) -> list[dict[str, Any]]:
    """Records in the order of their steps. Stages, errors and warnings are in no file but `events.jsonl`.

    Args:
        folder: Folder of the run.
        rows: Its logged numbers.
    """
    found = [*statuses(folder, rows), *checkpoints(folder), *previews(folder), *report(folder, rows), *scores(folder)]
    found.sort(key=lambda record: record["data"]["step"])
    return [{**record, "number": number} for number, record in enumerate(found)]


def record(folder: RunFolder, event: str, file: str | None, **data: Any) -> dict[str, Any]:
    """A record with the time of the file that it was read off."""
    mark = folder.mark(file) if file else None
    moment = datetime.datetime.fromtimestamp(mark[0] / 1e9 if mark else 0, datetime.timezone.utc)
    time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"run": folder.name, "fit": FIT, "time": time, "event": event, "level": "info", "data": data}


def statuses(folder: RunFolder, rows: Rows) -> Iterator[dict[str, Any]]:
    if rows.steps:
        of, step, speed = folder.max_steps(), rows.steps[-1], rows.steps_per_s
        left = max(of - step, 0) / speed if of and speed else None
        status = {"step": step, "of": of, "loss": rows.last_loss, "steps_per_s": speed, "left_s": left}
        yield record(folder, "status", rows.source, **status)


def checkpoints(folder: RunFolder) -> Iterator[dict[str, Any]]:
    for name in folder.names("checkpoints"):
        if found := re.fullmatch(r"step-(\d{1,12})\.ckpt", name):
            path = f"checkpoints/{name}"
            yield record(folder, "checkpoint", path, step=int(found[1]), path=path, adapters=[], final=False)


def steps_in(folder: RunFolder) -> list[str]:
    return [name for name in folder.names("previews") if re.fullmatch(r"step-\d{1,12}", name)]


def pictures(folder: RunFolder, path: str, kind: str) -> list[dict[str, Any]]:
    """The pictures in a folder, with prompt and seed as their recipes say."""
    images = []
    for name in folder.names(path)[:MOST_PICTURES]:
        if name.endswith(".png") and (mark := folder.mark(f"{path}/{name}")):
            recipe = recipe_at(folder, f"{path}/{name}", mark)
            prompt, seed = recipe.get("prompt"), recipe.get("seed")
            prompt = prompt if isinstance(prompt, str) else pathlib.PurePosixPath(name).stem
            seed = seed if isinstance(seed, int) else None
            images.append({"path": f"{path}/{name}", "model": kind, "prompt": prompt, "seed": seed})
    return images


@functools.lru_cache(maxsize=2 * MOST_PICTURES)
def recipe_at(folder: RunFolder, path: str, mark: tuple[int, int]) -> dict[str, Any]:
    """The recipe of a picture, read once for each time that it was written (`mark`)."""
    file = folder.open(path)
    if file is None:
        return {}
    with file:
        return recipe_of(file)


def previews(folder: RunFolder) -> Iterator[dict[str, Any]]:
    base = pictures(folder, "previews/base", "base")
    for name in steps_in(folder):
        path = f"previews/{name}"
        images = [image for kind in ("raw", "ema") for image in pictures(folder, f"{path}/{kind}", MODELS[kind])]
        grid = [{"path": f"{path}/grid.png", "model": "both", "prompt": None, "seed": None}]
        grid = grid if "grid.png" in folder.names(path) else []
        if images or grid:
            yield record(folder, "images", path, step=int(name.partition("-")[2]), images=[*grid, *images, *base])


def report(folder: RunFolder, rows: Rows) -> Iterator[dict[str, Any]]:
    images = [image for kind in ("adapter", "base") for image in pictures(folder, f"report/{kind}", kind)]
    if "before-after.png" in folder.names("report"):
        images.insert(0, {"path": "report/before-after.png", "model": "both", "prompt": None, "seed": None})
    if images:
        step = rows.steps[-1] if rows.steps else 0
        yield record(folder, "images", images[0]["path"], step=step, images=images)


def scores(folder: RunFolder) -> Iterator[dict[str, Any]]:
    names = {"base": "base", "raw": "adapter", "ema": "ema"}
    for row in rows_of(folder, "scores.jsonl"):
        told: dict[str, dict[str, Any]] = {}
        models = row.get("models")
        for model, of in models.items() if isinstance(models, dict) else ():
            for name, value in of.items() if isinstance(of, dict) and model in names else ():
                if type(value) in (int, float):
                    told.setdefault(name, {})[names[model]] = value
        if told and type(row.get("step")) is int:
            yield record(folder, "scores", "scores.jsonl", step=row["step"], scores=told)
