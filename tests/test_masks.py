"""Masks mean the same in every storage, and follow their image to the latent."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.datamodules.geometry import crop, decide
from dreamlit.datamodules.masks import aspects_agree, at_latent_size, average_cells, crop_mask, decode_mask
from dreamlit.errors import DataError

GREY = np.random.default_rng(0).integers(0, 256, (6, 9), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(grey: np.ndarray, how: str) -> bytes:
    image = Image.fromarray(grey)
    if how == "16-bit":
        return encoded(Image.fromarray(grey.astype(np.uint16) * 257))
    if how == "palette":
        image = Image.fromarray(grey).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    if how == "alpha of a cut-out":
        colours = np.random.default_rng(1).integers(0, 256, (*grey.shape, 3), np.uint8)
        image = Image.fromarray(np.dstack([colours, grey]))
    if how == "grey with alpha":
        image = Image.merge("LA", [Image.new("L", image.size, 255), image])
    if how in ("RGB", "RGBA"):
        image = image.convert(how)
    return encoded(image, "TIFF" if how == "TIFF" else "PNG")


@pytest.mark.parametrize(
    "how", ["8-bit", "16-bit", "palette", "RGB", "RGBA", "alpha of a cut-out", "grey with alpha", "TIFF"]
)
def test_the_same_mask_in_every_storage(how):
    mask = decode_mask(stored(GREY, how), "m.png")
    assert mask.dtype == np.float32 and mask.shape == GREY.shape
    np.testing.assert_array_equal(mask, (GREY / 255).astype(np.float32))


def test_one_bit_mask_is_black_and_white():
    bits = GREY > 127
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(bits)), "m"), bits.astype(np.float32))


def test_sixteen_bit_mask_keeps_its_greys():
    values = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    mask = decode_mask(encoded(Image.fromarray(values)), "m")
    np.testing.assert_allclose(mask, values / 65535, atol=1e-7)


def test_coloured_mask_counts_by_its_brightness():
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8))
    np.testing.assert_allclose(decode_mask(encoded(image), "m"), [[0.299, 0.587, 0.114, 1]], atol=1e-6)


def test_mask_is_turned_upright_like_a_photo():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_mask(encoded(Image.fromarray(GREY), exif=exif), "m").shape == (9, 6)


def test_damaged_mask_is_named():
    with pytest.raises(DataError, match=r"m\.png: is damaged"):
        decode_mask(stored(GREY, "8-bit")[:60], "m.png")


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 8]), st.integers(0, 99))
def test_cells_hold_exact_area_means(height, width, stride, seed):
    mask = np.random.default_rng(seed).random((height * stride, width * stride), np.float32)
    cells = average_cells(mask, stride)
    expected = [
        [mask[y : y + stride, x : x + stride].mean(dtype=np.float64) for x in range(0, width * stride, stride)]
        for y in range(0, height * stride, stride)
    ]
    np.testing.assert_allclose(cells, expected, rtol=1e-6)


def test_size_that_the_stride_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="cells of 8 x 8"):
        average_cells(np.zeros((12, 16), np.float32), 8)


@given(st.integers(70, 400), st.integers(70, 400), st.booleans(), st.integers(0, 20), st.integers(1, 3))
def test_mask_lies_where_its_image_lies(height, width, cut, seed, finer):
    """A picture that is its own mask: after the same geometry both agree, at any mask resolution."""
    spec = ImageDataset(id="d", instance_data_dir="/x", resolution=64, crop=cut, crop_style="random")
    geometry = decide((height, width), spec, 32, seed, "d/a")
    ys, xs = np.mgrid[:height, :width]
    shape = (((ys // 35) + (xs // 35)) % 2).astype(np.float32)
    image = crop(np.repeat((shape * 255).astype(np.uint8)[..., None], 3, 2), geometry)[..., 0] / 255
    mask = crop_mask(np.kron(shape, np.ones((finer, finer), np.float32)), geometry)
    assert mask.shape == geometry.target_size
    assert np.abs(average_cells(mask, 8) - average_cells(image.astype(np.float32), 8)).max() < 0.2
    assert abs(mask.mean() - image.mean()) < 0.03


@given(st.integers(40, 300), st.integers(40, 300), st.integers(0, 20))
def test_what_is_black_stays_exactly_zero_and_nothing_leaves_the_unit_range(height, width, seed):
    spec = ImageDataset(id="d", instance_data_dir="/x", resolution=128, crop=True, crop_style="random")
    geometry = decide((height, width), spec, 64, seed, "d/a")
    mask = np.random.default_rng(seed).random((height, width), np.float32)
    mask[:, : width // 2] = 0
    cells = at_latent_size(mask, geometry, 8)
    assert cells.min() >= 0 and cells.max() <= 1
    border = ((width // 2) / width * geometry.resized_size[1] - geometry.crop_top_left[1]) / 8
    black = max(0, int(np.floor(border)))
    assert not cells[:, :black].any(), "cells that lie wholly in the black half"
    assert (at_latent_size(np.ones_like(mask), geometry, 8) == 1).all()


@pytest.mark.parametrize(
    ("mask", "image", "agree"),
    [
        ((512, 512), (1280, 1280), True),
        ((100, 67), (1500, 1000), True),
        ((1024, 683), (1023, 683), True),
        ((683, 1024), (1024, 683), False),
        ((512, 512), (512, 640), False),
        ((1000, 1000), (1000, 1009), True),
        ((1000, 1000), (1000, 1020), False),
    ],
)
def test_aspects_agree_within_a_pixel_or_one_percent(mask, image, agree):
    assert aspects_agree(mask, image) == agree
