"""Masks: which share of each pixel, and of each latent cell, counts in the loss. 1 counts fully, 0 not at all.

A mask goes through the resize and crop of its image's geometry record. It is resampled by area averages, so that a
region of exact zeros stays exactly zero and nothing leaves [0, 1].
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from dreamlit.datamodules.geometry import window
from dreamlit.datamodules.images import open_upright, split_alpha
from dreamlit.types import Geometry

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in Pillow's "L"; its sum is 1, so grey maps to itself


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """A mask file as float32 [H, W] in [0, 1], upright by EXIF.

    A file with transparency is a cut-out: its alpha is the mask. Otherwise the mask is its brightness, whatever the
    storage: 1, 8 or 16 bits, palette, grey or colour.

    Raises:
        DataError: when the file cannot be read.
    """
    image, _ = open_upright(data, name)
    values, alpha = split_alpha(image, name)
    if alpha is not None:
        return _unit(alpha)
    if values.ndim == 2:
        return _unit(values)
    if (values == values[..., :1]).all():
        return _unit(values[..., 0])
    return np.clip(values @ LUMA / np.iinfo(values.dtype).max, 0, 1).astype(np.float32)


def _unit(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float64) / np.iinfo(values.dtype).max).astype(np.float32)


def aspects_agree(mask_size: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether a mask of another size has its image's aspect, to within one pixel of the mask or 1 %."""
    mask_h, mask_w = mask_size
    h, w = image_size
    fitting_h, fitting_w = mask_w * h / w, mask_h * w / h
    return abs(mask_w / fitting_w - 1) <= 0.01 or abs(mask_w - fitting_w) <= 1 or abs(mask_h - fitting_h) <= 1


def crop_mask(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """float32 [any height, any width] in [0, 1] -> float32 [target height, target width] by the image's geometry."""
    height, width = geometry.resized_size
    if mask.shape != (height, width):
        image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.float32))
        mask = np.asarray(image.resize((width, height), Image.Resampling.BOX))
    return np.clip(window(mask, geometry), 0, 1)


def at_latent_size(mask: np.ndarray, geometry: Geometry, stride: int) -> np.ndarray:
    """float32 [any height, any width] -> float32 [target height / stride, target width / stride]: exact cell averages.

    Raises:
        ValueError: when the target size is not a multiple of the stride.
    """
    return average_cells(crop_mask(mask, geometry), stride)


def average_cells(mask: np.ndarray, stride: int) -> np.ndarray:
    """float32 [H, W] -> float32 [H / stride, W / stride]: the mean of each stride x stride cell.

    Raises:
        ValueError: when a side is not a multiple of the stride.
    """
    height, width = mask.shape
    if height % stride or width % stride:
        raise ValueError(f"a mask of {height} x {width} cannot be cut into cells of {stride} x {stride}")
    cells = mask.reshape(height // stride, stride, width // stride, stride)
    return cells.mean(axis=(1, 3), dtype=np.float64).astype(np.float32)
