"""The training scenes, drawn once into a file and read from memory afterwards."""

from __future__ import annotations

import concurrent.futures
import pathlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamlit.toybox.backgrounds import BACKGROUNDS
from dreamlit.toybox.scenes import COLOURS, PATTERNS, SIZES, Scene, caption, draw_scene
from dreamlit.toybox.shapes import BADGES, SHAPES

CAPTIONS = 4
"""Captions drawn for each scene: one of them is taken at a visit."""
LABELS = ("kind", "colour", "background", "pattern", "badge")
NAMES: dict[str, tuple[str, ...]] = {
    "kind": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "pattern": PATTERNS,
    "badge": ("none", *BADGES),
}


def truth(scene: Scene) -> dict[str, str]:
    one = scene.individual
    return {
        "kind": one.kind,
        "colour": one.colour,
        "background": scene.background,
        "pattern": one.pattern,
        "badge": one.badge or "none",
    }


@dataclass(frozen=True)
class Scenes:
    """Scenes of one size.

    pictures: uint8 [N, H, W, 3]; labels: int64 [N, 5], in the order of `LABELS`; cover: uint8 [N, H / 4, W / 4], how
    much of each cell of the latents the thing covers, 255 for all of it.
    """

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]
    cover: NDArray[np.uint8]
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, rows: NDArray[np.int64]) -> Tensor:
        """[B, 3, H, W] in [-1, 1]."""
        return torch.from_numpy(self.pictures[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1


_Row = tuple[NDArray[np.uint8], list[int], NDArray[np.uint8], list[str]]


def _draw(seeds: range) -> list[_Row]:
    drawn: list[_Row] = []
    for seed in seeds:
        scene = draw_scene(seed)
        rng = np.random.default_rng((seed, 9))
        words = [caption(rng, scene.individual, scene.background, scene.pose) for _ in range(CAPTIONS)]
        labels = [NAMES[name].index(value) for name, value in truth(scene).items()]
        height, width = scene.mask.shape
        cover = scene.mask.reshape(height // 4, 4, width // 4, 4).mean((1, 3)).round().astype(np.uint8)
        drawn.append((scene.picture, labels, cover, words))
    return drawn


def draw_all(count: int, first_seed: int, workers: int) -> dict[tuple[int, int], Scenes]:
    """Scenes `first_seed` to `first_seed + count`, by size (width, height); the number of workers changes nothing."""
    chunks = [range(at, min(at + 500, first_seed + count)) for at in range(first_seed, first_seed + count, 500)]
    by_size: dict[tuple[int, int], list[_Row]] = {size: [] for size in SIZES}
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        for drawn in pool.map(_draw, chunks):
            for one in drawn:
                by_size[(one[0].shape[1], one[0].shape[0])].append(one)
    scenes = {}
    for size, rows in by_size.items():
        if rows:
            pictures, labels, cover, captions = zip(*rows, strict=True)
            scenes[size] = Scenes(np.stack(pictures), np.array(labels), np.stack(cover), list(captions))
    return scenes


def load_or_draw(folder: pathlib.Path, count: int, first_seed: int, workers: int) -> dict[tuple[int, int], Scenes]:
    path = folder / f"scenes-{first_seed}-{count}.npz"
    if not path.exists():
        by_size = draw_all(count, first_seed, workers)
        arrays: dict[str, NDArray[np.generic]] = {}
        for (width, height), scenes in by_size.items():
            name = f"{width}x{height}"
            arrays |= {f"{name}.{part}": getattr(scenes, part) for part in ("pictures", "labels", "cover")}
            arrays[f"{name}.captions"] = np.array(scenes.captions)
        part = path.with_suffix(".part.npz")
        np.savez(part, **arrays)  # type: ignore[arg-type]
        part.rename(path)
    with np.load(path) as file:
        return {
            size: Scenes(
                captions=file[f"{name}.captions"].tolist(),
                **{part: file[f"{name}.{part}"] for part in ("pictures", "labels", "cover")},
            )
            for size in SIZES
            if f"{(name := f'{size[0]}x{size[1]}')}.pictures" in file
        }
