"""How a photo becomes a training image: one record per image, made once, from which everything else is derived.

With the photo's aspect a = width / height (or the aspect that `crop_aspect` chooses) and the target area A, the sides
are sqrt(A a) and sqrt(A / a), each rounded to a multiple of the alignment; `resolution_type: pixel` fixes the shorter
side in place of the area. The photo is resized, keeping its aspect, until it covers that window, and the window is cut.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dreamlit.seeds import address, unit
from dreamlit.types import Geometry

if TYPE_CHECKING:
    from dreamlit.datamodules.config_entries import ImageDataset, Size

Pair = tuple[int, int]


def decide(original_size: Pair, spec: ImageDataset, alignment: int, seed: int, sample_id: str) -> Geometry:
    """The geometry of one upright photo. A pure function: no image is opened.

    A photo above `maximum_image_size` is scaled down to `target_downsample_size` and cropped from there; where that
    would no longer cover the target, only as far as it still does. Both scalings are one resize in the record. Without
    `crop` the whole photo is kept, so that the two keys change nothing.

    Args:
        original_size: (height, width) of the upright photo.
        spec: The dataset's size and crop keys.
        alignment: Both target sides are multiples of this, at least one.
        seed: Seed of `crop_style: random` and `crop_aspect: random`.
        sample_id: The draws of another sample are independent.
    """
    height, width = original_size
    target = target_size(chosen_aspect(width / height, spec, seed, sample_id), spec.target, alignment)
    scale = max(target[0] / height, target[1] / width)
    if spec.crop and spec.maximum is not None and spec.maximum.measure(height, width) > spec.maximum.px:
        scale = max(scale, min(1.0, (spec.downsample or spec.maximum).scale(height, width)))
    resized = max(target[0], round(height * scale)), max(target[1], round(width * scale))
    slack = resized[0] - target[0], resized[1] - target[1]
    style = spec.crop_style if spec.crop else "center"
    return Geometry(original_size, resized, crop_offset(slack, style, seed, sample_id), target)


def chosen_aspect(own: float, spec: ImageDataset, seed: int, sample_id: str) -> float:
    """The aspect (width / height) that the training image of a photo with aspect `own` shall have."""
    if not spec.crop or spec.crop_aspect == "preserve":
        return own
    if spec.crop_aspect == "square":
        return 1.0
    if spec.crop_aspect == "random":
        return spec.crop_aspect_buckets[address(seed, "crop_aspect", sample_id) % len(spec.crop_aspect_buckets)]
    return min(spec.crop_aspect_buckets, key=lambda aspect: abs(math.log(aspect / own)))


def target_size(aspect: float, size: Size, alignment: int) -> Pair:
    """(height, width) in multiples of `alignment` nearest to `size` at this aspect (width / height)."""
    height, width = 1 / math.sqrt(aspect), math.sqrt(aspect)
    scale = size.scale(height, width)
    return _aligned(height * scale, alignment), _aligned(width * scale, alignment)


def _aligned(side: float, alignment: int) -> int:
    return max(1, math.floor(side / alignment + 0.5 + 1e-9)) * alignment  # 1e-9: sqrt(a) / a must not move a half


def crop_offset(slack: Pair, style: str, seed: int, sample_id: str) -> Pair:
    """(top, left) of the window, given by how much of the resized photo is left over in each direction.

    Args:
        slack: Resized size less target size, (height, width), none negative.
        style: `center`, `corner` (top left) or `random` (uniform over all places, by seed and sample).
    """
    if style == "corner":
        return 0, 0
    if style == "random":
        top, left = (int(unit(seed, "crop", sample_id, axis) * (slack[axis] + 1)) for axis in (0, 1))
        return top, left
    return slack[0] // 2, slack[1] // 2


def enlargement(geometry: Geometry) -> float:
    """The larger factor by which an edge of the photo was scaled; above 1 pixels had to be invented."""
    return max(new / old for new, old in zip(geometry.resized_size, geometry.original_size, strict=True))


def why_left_out(geometry: Geometry, spec: ImageDataset) -> str | None:
    """Why `minimum_image_size` or `max_upscale` leaves this photo out; None where it is used."""
    height, width = geometry.original_size
    if spec.minimum is not None and spec.minimum.measure(height, width) < spec.minimum.px:
        unit_of = {"pixel": "shorter edge, px", "pixel_area": "edge of a square of its area, px"}
        has = spec.minimum.measure(height, width)
        shown = {"pixel": f"{has:.0f}", "pixel_area": f"{math.sqrt(has):.0f}"}.get(
            spec.resolution_type, f"{has / 1e6:.3f}"
        )
        return (
            f"{width} x {height} px is below minimum_image_size {spec.minimum_image_size:g}"
            f" (it has {shown}: {unit_of.get(spec.resolution_type, 'megapixels')})"
        )
    factor = enlargement(geometry)
    if spec.max_upscale is not None and factor > spec.max_upscale + 1e-9:
        return (
            f"{width} x {height} px would be enlarged {factor:.2f} times to reach "
            f"{geometry.target_size[1]} x {geometry.target_size[0]}; max_upscale allows {spec.max_upscale:g}"
        )
    return None


def crop(pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The training image: uint8 [H, W, 3] upright photo -> uint8 [target height, target width, 3].

    Lanczos with its support widened when shrinking (antialias), as Pillow does it.

    Raises:
        ValueError: when the photo has not the size that the geometry was decided for.
    """
    if pixels.shape[:2] != geometry.original_size:
        raise ValueError(f"a photo of size {pixels.shape[:2]} does not belong to {geometry}")
    image = Image.fromarray(pixels)
    if geometry.resized_size != geometry.original_size:
        height, width = geometry.resized_size
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return window(np.asarray(image), geometry)


def window(resized: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The target window of an array [resized height, resized width, ...], as a contiguous copy."""
    top, left = geometry.crop_top_left
    height, width = geometry.target_size
    return np.array(resized[top : top + height, left : left + width], order="C")
