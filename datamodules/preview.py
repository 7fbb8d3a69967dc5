"""`plan --preview`: the exact pictures that training sees, as PNG files and an HTML contact sheet."""

from __future__ import annotations

import html
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image

from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.datamodules.samples import Manifest, Sample, refuse_dataset_folders
from dreamlit.errors import DataError
from dreamlit.types import Role

PICTURES = "pictures"
OWN_FILE = re.compile(r"\d{5}(-masked|-mask)?\.png")
HIDDEN = np.array([255, 0, 255])
"""What does not count in the loss is tinted in this colour on the sheet."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>What will be trained on</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff; }}
main {{ display: flex; flex-wrap: wrap; gap: 1em; }}
figure {{ margin: 0; width: 22em; border: 1px solid #ccc; padding: .5em; }}
figure img {{ max-width: 49%; max-height: 16em; }}
figcaption {{ overflow-wrap: anywhere; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0 .6em; margin: .3em 0; }}
dt {{ color: #666; }} dd {{ margin: 0; }}
</style></head><body>
<h1>What will be trained on</h1>
<p>{summary}</p>
{lists}
<main>
{figures}
</main></body></html>
"""
MARK = PAGE.splitlines()[1]
"""By this line of its page an earlier preview is known."""


def write_preview(manifest: Manifest, folder: str | os.PathLike, limit: int | None = None) -> pathlib.Path:
    """Writes the training images, with their masks, and `index.html`; returns its path.

    For image number n: `pictures/n.png` is exactly what the autoencoder is given; with a mask, `n-mask.png` is the
    mask as it is cut and `n-masked.png` the image with what does not count tinted magenta.

    Args:
        manifest: What is trained on.
        folder: Where to write; pictures of an earlier preview there are replaced. Never in a dataset folder.
        limit: At most this many images of each dataset; None for all.

    Raises:
        DataError: when the folder lies in a dataset folder or holds pictures or a page of something else, or a photo
            was changed meanwhile.
    """
    folder = pathlib.Path(folder)
    refuse_dataset_folders(folder, manifest.specs, "the preview folder")
    _refuse_foreign(folder)
    pictures = folder / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    for old in pictures.iterdir():
        if OWN_FILE.fullmatch(old.name):
            old.unlink()
    figures = [
        _figure(manifest, sample, pictures, f"{number:05d}") for number, sample in enumerate(_chosen(manifest, limit))
    ]
    page = PAGE.format(
        summary=html.escape(_summary(manifest, len(figures))),
        lists=_list("Warnings", manifest.warnings)
        + _list("Left out", [f"{dataset_id}: {name}: {reason}" for dataset_id, name, reason in manifest.filtered]),
        figures="\n".join(figures),
    )
    index = folder / "index.html"
    index.write_text(page, encoding="utf-8", errors="replace")
    return index


def _refuse_foreign(folder: pathlib.Path) -> None:
    """Only an earlier preview is replaced: pages and pictures of anything else stay as they are."""
    index = folder / "index.html"
    if index.is_file() and MARK in index.read_text(encoding="utf-8", errors="replace"):
        return
    found = [index] if index.exists() else []
    found += [path for path in (folder / PICTURES).glob("*.png") if OWN_FILE.fullmatch(path.name)]
    if found:
        raise DataError(
            f"the preview folder {folder} holds {found[0].relative_to(folder)}, which no finished preview has written "
            "and which would be replaced. Choose a new or empty folder"
        )


def _chosen(manifest: Manifest, limit: int | None) -> Iterator[Sample]:
    seen: Counter[str] = Counter()
    for sample in (*manifest.samples, *manifest.eval_samples):
        seen[sample.dataset_id] += 1
        if limit is None or seen[sample.dataset_id] <= limit:
            yield sample


def _summary(manifest: Manifest, shown: int) -> str:
    sizes = Counter(sample.bucket for sample in manifest.samples)
    buckets = ", ".join(f"{width} x {height}: {count}" for (height, width), count in sorted(sizes.items()))
    total = len(manifest.samples) + len(manifest.eval_samples)
    return (
        f"{shown} of {total} images are shown, {len(manifest.eval_samples)} of all are for evaluation only. Training"
        f" images by size (width x height): {buckets or 'none'}. Magenta does not count in the loss."
    )


def _list(title: str, lines: list[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<h2>{title} ({len(lines)})</h2>\n<ul>{items}</ul>\n" if lines else ""


def _figure(manifest: Manifest, sample: Sample, pictures: pathlib.Path, number: str) -> str:
    """Writes the pictures of one sample and gives its part of the page."""
    pixels = manifest.pixels(sample)
    names = [f"{number}.png"]
    Image.fromarray(pixels).save(pictures / names[0], compress_level=1)
    mask = manifest.target_mask(sample)
    if mask is not None:
        names.append(f"{number}-masked.png")
        Image.fromarray(np.rint(mask * 255).astype(np.uint8)).save(pictures / f"{number}-mask.png", compress_level=1)
        Image.fromarray(tinted(pixels, mask)).save(pictures / names[1], compress_level=1)
    images = "".join(f'<a href="{PICTURES}/{name}"><img loading="lazy" src="{PICTURES}/{name}"></a>' for name in names)
    facts = "".join(f"<dt>{key}</dt><dd>{html.escape(value)}</dd>" for key, value in _facts(manifest, sample, mask))
    return f"<figure>{images}<figcaption><b>{html.escape(sample.id)}</b><dl>{facts}</dl></figcaption></figure>"


def tinted(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] and a mask [H, W] in [0, 1] -> the picture with what does not count laid over in magenta."""
    share = mask[..., None]
    return np.rint(pixels * share + (0.3 * pixels + 0.7 * HIDDEN) * (1 - share)).astype(np.uint8)


def _facts(manifest: Manifest, sample: Sample, mask: np.ndarray | None) -> Iterator[tuple[str, str]]:
    geometry = sample.geometry
    evaluated = {spec.id for spec in manifest.specs if isinstance(spec, ImageDataset) and spec.is_eval}
    role = "regularisation" if sample.role == Role.REGULARISATION else "instance"
    yield "used as", "evaluation" if sample.dataset_id in evaluated else role
    yield "size", f"{sample.bucket[1]} x {sample.bucket[0]} px (width x height)"
    yield "photo", f"{geometry.original_size[1]} x {geometry.original_size[0]} px"
    scaled = f"{geometry.resized_size[1]} x {geometry.resized_size[0]}"
    yield "cut", f"at left {geometry.crop_top_left[1]}, top {geometry.crop_top_left[0]} of the photo scaled to {scaled}"
    if mask is not None and sample.mask is not None:
        name = "its alpha channel" if sample.mask.is_alpha else f"{sample.mask.dataset_id}/{sample.mask.name}"
        yield "mask", f"{name}, {mask.mean():.1%} counts"
    yield from (("caption", repr(caption)) for caption in sample.captions)
