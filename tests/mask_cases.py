"""Calls of `dreamlit masks` on generated photos, and what they leave behind."""

from __future__ import annotations

import json
import pathlib

import numpy as np
from PIL import Image

from dreamlit.cli import main
from dreamlit.datamodules.masks import decode_mask
from dreamlit.toybox.scenes import draw_scene

SIZES = [(90, 60), (60, 90), (64, 64), (120, 40), (80, 80)]


def masks(photos, output, *options: str) -> int:
    return main(["masks", "--input_dir", str(photos), "--output_dir", str(output), *options])


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def lines(folder: pathlib.Path) -> dict[str, dict]:
    told = (folder / "masks.jsonl").read_text().splitlines()[1:]
    return {line["image"]: line for line in map(json.loads, told)}


def mask_of(folder: pathlib.Path, name: str) -> np.ndarray:
    return decode_mask((folder / name).read_bytes(), name)


def cutouts(folder: pathlib.Path, count: int = 4) -> pathlib.Path:
    """Toybox scenes with their true masks as alpha channels; the masks themselves in `folder`_true."""
    truth = folder.with_name(f"{folder.name}_true")
    for place in (folder, truth):
        place.mkdir()
    for seed in range(count):
        scene = draw_scene(seed)
        Image.fromarray(np.dstack([scene.picture, scene.mask])).save(folder / f"s{seed}.png")
        Image.fromarray(scene.mask).save(truth / f"s{seed}.png")
    return folder
