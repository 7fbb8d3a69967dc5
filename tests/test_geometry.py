"""Properties of the resize-and-crop record."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.datamodules.geometry import crop, decide, enlargement, target_size, why_left_out


def dataset(**keys) -> ImageDataset:
    return ImageDataset(id="d", instance_data_dir="/nowhere", **keys)


@st.composite
def datasets(draw) -> ImageDataset:
    kind = draw(st.sampled_from(["pixel", "pixel_area", "area"]))
    resolution = draw(st.floats(0.05, 2) if kind == "area" else st.integers(64, 1536).map(float))
    oversize = draw(st.none() | st.floats(1, 3))
    return dataset(
        resolution=resolution,
        resolution_type=kind,
        crop=draw(st.booleans()),
        crop_aspect=draw(st.sampled_from(["square", "preserve", "closest", "random"])),
        crop_aspect_buckets=(0.5, 1.0, 1.5),
        crop_style=draw(st.sampled_from(["center", "corner", "random"])),
        maximum_image_size=None if oversize is None else resolution * oversize,
        target_downsample_size=None if oversize is None else resolution * draw(st.floats(1, oversize)),
    )


sizes = st.tuples(st.integers(1, 6000), st.integers(1, 6000))
alignments = st.sampled_from([8, 16, 32, 64])


@given(sizes, datasets(), alignments, st.integers(0, 9))
def test_window_lies_inside_the_resized_photo_and_is_aligned(size, spec, alignment, seed):
    geometry = decide(size, spec, alignment, seed, "d/a.jpg")
    assert geometry.original_size == size
    for resized, offset, target in zip(
        geometry.resized_size, geometry.crop_top_left, geometry.target_size, strict=True
    ):
        assert 0 <= offset <= resized - target
        assert target % alignment == 0 and target >= alignment


@given(sizes, datasets(), alignments)
def test_photo_keeps_its_aspect_to_within_a_pixel(size, spec, alignment):
    geometry = decide(size, spec, alignment, 0, "d/a.jpg")
    low, high = (
        [(new + half) / old for new, old in zip(geometry.resized_size, size, strict=True)] for half in (-0.5, 0.5)
    )
    assert max(low) <= min(high) + 1e-6, "one scale gives both sides, each rounded to a whole pixel"


@given(sizes, datasets(), alignments)
def test_without_a_downsample_size_nothing_but_a_sliver_is_scaled_away(size, spec, alignment):
    spec = dataclasses.replace(spec, maximum_image_size=None, target_downsample_size=None)
    geometry = decide(size, spec, alignment, 0, "d/a.jpg")
    slack = [r - t for r, t in zip(geometry.resized_size, geometry.target_size, strict=True)]
    assert min(slack) == 0, "the photo is scaled no further than to cover the target"


@given(st.floats(0.4, 2.5), st.integers(256, 2048), alignments)
def test_area_is_the_wanted_one_within_the_rounding_of_the_sides(aspect, edge, alignment):
    height, width = target_size(aspect, dataset(resolution=edge).target, alignment)
    true_h, true_w = edge / math.sqrt(aspect), edge * math.sqrt(aspect)
    assert abs(height - true_h) <= alignment / 2 + 1e-6 and abs(width - true_w) <= alignment / 2 + 1e-6


@given(st.floats(0.2, 5), st.integers(128, 2048), alignments)
def test_pixel_fixes_the_shorter_side(aspect, edge, alignment):
    height, width = target_size(aspect, dataset(resolution=edge, resolution_type="pixel").target, alignment)
    assert abs(min(height, width) - edge) <= alignment / 2 + 1e-6
    assert abs(max(height, width) - edge * max(aspect, 1 / aspect)) <= alignment / 2 + 1e-6


@pytest.mark.parametrize(
    ("aspect", "edge", "expected"),
    [
        (1.0, 1024, (1024, 1024)),
        (1.5, 1024, (832, 1280)),
        (0.5, 1024, (1472, 704)),
        (1.5, 512, (448, 640)),
        (1.0, 8, (64, 64)),
    ],
)
def test_established_buckets(aspect, edge, expected):
    assert target_size(aspect, dataset(resolution=edge).target, 64) == expected


def test_true_aspect_is_used_and_not_a_rounded_one():
    size = dataset(resolution=2048).target
    assert target_size(1.0049, size, 8) == (2040, 2056), "rounded to two decimals it would be a square"
    assert target_size(1.0, size, 8) == (2048, 2048)


@given(sizes, datasets(), alignments)
def test_transposed_photo_gets_the_transposed_size(size, spec, alignment):
    spec = dataclasses.replace(spec, crop_style="center", crop_aspect="preserve")
    geometry, turned = (decide(s, spec, alignment, 0, "d/a") for s in (size, size[::-1]))
    assume(abs(size[0] / size[1] - 1) > 1e-6)
    assert geometry.target_size == turned.target_size[::-1]
    assert geometry.resized_size == turned.resized_size[::-1]


def test_crop_false_ignores_crop_style_and_trims_the_middle():
    spec = dataset(resolution=512, crop=False, crop_style="corner")
    geometry = decide((1024, 768), spec, 64, 0, "d/a")
    assert geometry.resized_size == (597, 448) and geometry.target_size == (576, 448)
    assert geometry.crop_top_left == (10, 0)


@pytest.mark.parametrize(("aspect", "expected"), [("square", 1.0), ("preserve", 1.78), ("closest", 1.5)])
def test_crop_aspect_chooses_the_window(aspect, expected):
    spec = dataset(resolution=512, crop=True, crop_aspect=aspect, crop_aspect_buckets=(0.67, 1.0, 1.5))
    height, width = decide((900, 1600), spec, 8, 0, "d/a").target_size
    assert width / height == pytest.approx(expected, abs=0.04)


def test_random_crops_differ_between_images_and_seeds_and_reach_every_place():
    spec = dataset(resolution=64, crop=True, crop_style="random")
    places = {decide((64, 68), spec, 64, 0, f"d/{i}").crop_top_left for i in range(200)}
    assert places == {(0, left) for left in range(5)}
    assert {decide((64, 4000), spec, 64, seed, "d/a").crop_top_left for seed in range(5)} != {(0, 0)}
    assert decide((64, 4000), spec, 64, 3, "d/a") == decide((64, 4000), spec, 64, 3, "d/a")


def test_random_aspects_use_every_bucket_and_stay_with_the_image():
    spec = dataset(resolution=512, crop=True, crop_aspect="random", crop_aspect_buckets=(0.5, 1.0, 2.0))
    found = [decide((1000, 1000), spec, 64, 0, f"d/{i}").target_size for i in range(60)]
    assert len(set(found)) == 3
    assert found == [decide((1000, 1000), spec, 64, 0, f"d/{i}").target_size for i in range(60)]


def test_large_photo_is_first_scaled_down_and_then_cropped():
    keys = {"resolution": 512, "crop": True, "maximum_image_size": 2000, "target_downsample_size": 1000}
    large = decide((3000, 3000), dataset(**keys), 64, 0, "d/a")
    assert large.resized_size == (1000, 1000), "scaled to target_downsample_size, and no further"
    assert large.crop_top_left == (244, 244) and large.target_size == (512, 512)
    small = decide((1999, 1999), dataset(**keys), 64, 0, "d/a")
    assert small.resized_size == (512, 512), "not above maximum_image_size: the whole photo is used"


def test_downsampled_photo_still_covers_the_target():
    spec = dataset(resolution=1024, crop=True, maximum_image_size=1024, target_downsample_size=1024)
    geometry = decide((1280, 1920), spec, 64, 0, "d/a")  # 1024 squared is 836 x 1254 here: too low for a 1024 square
    assert geometry.resized_size == (1024, 1536) and geometry.crop_top_left == (0, 256)


@pytest.mark.parametrize(
    ("kind", "minimum", "size", "used"),
    [
        ("pixel", 512, (512, 3000), True),
        ("pixel", 512, (511, 3000), False),
        ("pixel_area", 768, (768, 768), True),
        ("pixel_area", 768, (767, 768), False),
        ("pixel_area", 768, (400, 1600), True),
        ("area", 1.0, (1000, 1000), True),
        ("area", 1.0, (999, 1000), False),
    ],
)
def test_minimum_image_size_is_measured_in_the_unit_of_the_entry(kind, minimum, size, used):
    resolution = 0.25 if kind == "area" else 256
    spec = dataset(resolution=resolution, resolution_type=kind, minimum_image_size=minimum)
    reason = why_left_out(decide(size, spec, 64, 0, "d/a"), spec)
    assert (reason is None) == used
    assert used or (f"minimum_image_size {minimum:g}" in reason and f"{size[1]} x {size[0]}" in reason)


def test_max_upscale_leaves_out_what_would_be_enlarged_more():
    spec = dataset(resolution=512, max_upscale=1.5)
    assert why_left_out(decide((342, 342), spec, 64, 0, "d/a"), spec) is None
    reason = why_left_out(decide((300, 300), spec, 64, 0, "d/a"), spec)
    assert reason is not None and "1.71 times" in reason and "max_upscale allows 1.5" in reason
    assert why_left_out(decide((2, 2), dataset(), 64, 0, "d/a"), dataset()) is None
    assert enlargement(decide((512, 512), dataset(resolution=1024), 64, 0, "d/a")) == 2


@given(
    st.integers(200, 900), st.integers(200, 900), st.sampled_from(["center", "corner", "random"]), st.integers(0, 50)
)
def test_marker_is_mapped_back_to_its_place_by_the_record(height, width, style, seed):
    """(original size, crop offset, target size) are what SDXL is conditioned on: they must tell the truth."""
    spec = dataset(resolution=128, crop=True, crop_style=style)
    geometry = decide((height, width), spec, 64, seed, "d/a")
    top, left = geometry.crop_top_left
    scale_y, scale_x = geometry.resized_size[0] / height, geometry.resized_size[1] / width
    y, x = (int((top + 64) / scale_y), int((left + 64) / scale_x))  # near the middle of the window
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = 255
    cut = crop(pixels, geometry)[..., 0].astype(float)
    rows, columns = np.nonzero(cut > cut.max() / 2)
    back_y, back_x = (rows.mean() + 0.5 + top) / scale_y, (columns.mean() + 0.5 + left) / scale_x
    assert abs(back_y - (y + 0.5)) <= 0.75 / scale_y and abs(back_x - (x + 0.5)) <= 0.75 / scale_x


def test_crop_without_scaling_copies_pixels_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 100, 3), np.uint8)
    spec = dataset(resolution=64, crop=True, crop_style="corner")
    cut = crop(pixels, decide((64, 100), spec, 64, 0, "d/a"))
    np.testing.assert_array_equal(cut, pixels[:, :64])
    assert cut.flags.c_contiguous and cut.flags.writeable


def test_crop_refuses_a_photo_of_another_size():
    geometry = decide((64, 64), dataset(resolution=64), 64, 0, "d/a")
    with pytest.raises(ValueError, match="does not belong"):
        crop(np.zeros((64, 65, 3), np.uint8), geometry)


def test_closest_aspect_is_nearest_as_a_ratio():
    spec = dataset(resolution=512, crop=True, crop_aspect="closest", crop_aspect_buckets=(0.5, 2.0))
    height, width = decide(
        (1000, 1100), spec, 64, 0, "d/a"
    ).target_size  # 1.1 is nearer to 2 as a ratio, not as a number
    assert width > height


def test_without_crop_the_whole_photo_is_kept_whatever_its_size():
    spec = dataset(resolution=512, crop=False, maximum_image_size=1024, target_downsample_size=1024)
    assert decide((3000, 3000), spec, 64, 0, "d/a").resized_size == (512, 512)
