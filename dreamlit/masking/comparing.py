"""How well masks agree with true ones: `--compare`."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from dreamlit.datamodules.listing import stem_of
from dreamlit.datamodules.masks import aspects_agree, decode_mask
from dreamlit.datamodules.sources import LocalSource
from dreamlit.errors import DataError, Faults
from dreamlit.masking.folders import photos_of
from dreamlit.masking.record import listed
from dreamlit.masking.shapes import intersection_over_union


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Intersection over union of each image that has a true mask; and those that have none."""

    scores: dict[str, float]
    without: list[str]

    def __str__(self) -> str:
        lines = [f"  {score:.4f}  {name}" for name, score in self.scores.items()]
        mean = sum(self.scores.values()) / len(self.scores)
        missing = f"; no true mask for {listed(self.without)}" if self.without else ""
        return "\n".join(["intersection over union:", *lines, f"  {mean:.4f}  mean of {len(lines)} images{missing}"])


def truths_of(folder: str, images: list[str]) -> tuple[LocalSource, dict[str, str]]:
    """The folder of true masks, and the name of each image's, paired as the trainer pairs masks.

    Raises:
        DataError: when there is no folder, an image has two true masks, or none has any.
    """
    source = photos_of(folder, "--compare")
    faults, stems = Faults("the true masks cannot be used", DataError), {stem_of(name) for name in images}
    by_stem: dict[str, str] = {}
    for name in source.names():
        stem = stem_of(name)
        if stem in by_stem and stem in stems:
            faults.add(f"{by_stem[stem]} and {name} belong to one image; keep one")
        by_stem.setdefault(stem, name)
    pairs = {name: by_stem[stem_of(name)] for name in images if stem_of(name) in by_stem}
    if not pairs:
        faults.add(f"none of {folder} has the name of an image ({listed(images)})")
    faults.raise_if_any()
    return source, pairs


def compare(folder: pathlib.Path, masks: dict[str, str], truths: tuple[LocalSource, dict[str, str]]) -> Agreement:
    """Compares the masks of images (image name -> mask name in a folder) with the true ones.

    A true mask of another size is brought to the mask's by area averages, as the trainer would.

    Raises:
        DataError: when a file cannot be read, or has another aspect than its mask.
    """
    source, pairs = truths
    faults, scores = Faults("the true masks cannot be used", DataError), {}
    for image, name in pairs.items():
        if image not in masks:  # the image itself could not be read
            continue
        try:
            mask = decode_mask(LocalSource(str(folder)).read(masks[image]), masks[image])
            truth = decode_mask(source.read(name), name)
        except DataError as error:
            faults.add(str(error))
            continue
        if not aspects_agree(truth.shape, mask.shape):
            (h, w), (mask_h, mask_w) = truth.shape, mask.shape
            faults.add(f"{name} is {w} x {h}, the mask of {image} {mask_w} x {mask_h}: another aspect")
            continue
        scores[image] = intersection_over_union(mask, at_size(truth, mask.shape))
    faults.raise_if_any()
    return Agreement(scores, [name for name in masks if name not in pairs])


def at_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 [any height, any width] -> float32 of `size`, in [0, 1]."""
    if mask.shape == size:
        return mask
    resized = Image.fromarray(np.ascontiguousarray(mask)).resize((size[1], size[0]), Image.Resampling.BOX)
    return np.clip(np.asarray(resized), 0, 1)
