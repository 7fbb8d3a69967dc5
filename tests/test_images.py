"""Photo files of every kind become the same upright sRGB pixels; transparency follows its policy."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from dreamlit.datamodules import images
from dreamlit.datamodules.images import decode
from dreamlit.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def raw_png(values: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG written by hand, since Pillow cannot write 16-bit colour. `values`: uint16 [H, W, channels]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "AVIF"])
def test_lossless_formats_give_the_pixels_that_were_saved(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    photo = decode(encoded(Image.fromarray(smooth), kind, **options), "a")
    assert photo.pixels.dtype == np.uint8 and photo.alpha is None and photo.notes == ()
    assert np.abs(photo.pixels.astype(int) - smooth).max() <= (3 if kind == "AVIF" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GREY16"])
def test_every_exif_orientation_is_turned_upright(orientation, kind):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 250  # bright top left corner; everything else dark, the picture lies on its long side
    undo = {  # how a camera would have stored the upright picture under this orientation (EXIF 2.3, tag 0x0112)
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo))
    if kind == "GREY16":
        stored = Image.fromarray(np.ascontiguousarray(undo[..., 0]).astype(np.uint16) * 257)
    pixels = decode(encoded(stored, "PNG" if kind == "GREY16" else kind, exif=exif), "a").pixels
    assert pixels.shape == (16, 32, 3)
    assert np.abs(pixels.astype(int) - upright).mean() < 12, "the corner is where the photographer saw it"


def test_sixteen_bit_grey_is_scaled_and_not_cut_off():
    values = np.linspace(0, 65535, 35).astype(np.uint16).reshape(5, 7)
    photo = decode(raw_png(values[..., None], 0), "a")
    np.testing.assert_array_equal(photo.pixels[..., 0], np.rint(values / 257))
    assert (photo.pixels == photo.pixels[..., :1]).all()


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4)])
def test_sixteen_bit_colour_is_scaled_to_within_one_level(colour_type, channels):
    values = RNG.integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    values[..., 3:] = 65535
    photo = decode(raw_png(values, colour_type), "a")
    assert np.abs(photo.pixels - values[..., :3] / 257).max() <= 1 and photo.alpha is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LA", "RGBA"])
def test_a_black_and_white_picture_is_the_same_in_every_mode(mode):
    grey = np.kron(RNG.integers(0, 2, (4, 4)), np.ones((8, 8))).astype(np.uint8) * 255
    image = Image.fromarray(grey).convert("RGB").convert(mode)
    photo = decode(encoded(image, "TIFF" if mode == "CMYK" else "PNG"), "a")
    np.testing.assert_array_equal(photo.pixels, np.repeat(grey[..., None], 3, 2))
    assert photo.alpha is None


def test_cmyk_jpeg_of_print_shops_is_not_inverted():
    red = Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK")
    mean = decode(encoded(red, "JPEG", quality=95), "a").pixels.mean(axis=(0, 1))
    assert np.abs(mean - (220, 30, 30)).max() < 6


def test_pixels_under_full_transparency_have_no_influence():
    alpha = RNG.integers(0, 256, (5, 7), np.uint8)
    alpha[1:3] = 0
    other = PIXELS.copy()
    other[alpha == 0] = 255 - other[alpha == 0]
    first, second = (decode(encoded(Image.fromarray(np.dstack([p, alpha]))), "a") for p in (PIXELS, other))
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert (first.pixels[alpha == 0] == 255).all(), "white by default"
    np.testing.assert_array_equal(first.alpha, alpha)
    share = alpha[..., None] / 255
    np.testing.assert_allclose(first.pixels, PIXELS * share + 255 * (1 - share), atol=0.51)


@pytest.mark.parametrize(("policy", "colour"), [("white", 255), ("black", 0), ("#204060", (32, 64, 96)), ("mask", 255)])
def test_transparent_photos_are_laid_on_the_colour_of_the_policy(policy, colour):
    clear = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    assert (decode(encoded(clear), "a", policy).pixels == np.array(colour)).all()


def test_palette_transparency_and_grey_alpha_follow_the_policy():
    palette = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    photo = decode(encoded(palette, transparency=5), "a", "#ff00ff")
    assert photo.alpha is not None and (photo.alpha == 0).sum() == 1
    assert (photo.pixels[photo.alpha == 0] == (255, 0, 255)).all()
    grey = Image.merge("LA", [Image.new("L", (2, 2), 10), Image.new("L", (2, 2), 0)])
    assert (decode(encoded(grey), "a", "black").pixels == 0).all()


def test_alpha_error_refuses_transparent_photos_only():
    with pytest.raises(DataError, match=r"a\.png: has transparent parts"):
        decode(encoded(Image.new("RGBA", (2, 2))), "a.png", "error")
    assert decode(encoded(Image.new("RGBA", (2, 2), (1, 2, 3, 255))), "a.png", "error").alpha is None


def test_alpha_that_is_no_colour_names_what_is_allowed():
    with pytest.raises(ConfigError, match=r"'whit' is not a colour.*#rrggbb.*mask.*error"):
        decode(encoded(Image.fromarray(PIXELS)), "a", "whit")


def test_wide_gamut_photo_is_converted_to_srgb_and_srgb_is_left_alone():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tagged = encoded(Image.fromarray(PIXELS), icc_profile=lab)
    np.testing.assert_array_equal(decode(tagged, "a").pixels, PIXELS)
    wide = decode(encoded(Image.new("RGB", (4, 4), (0, 200, 0)), icc_profile=swapped_srgb(lab)), "a")
    assert wide.pixels[0, 0, 0] > 150 > wide.pixels[0, 0, 1], "red and green change places in this profile"


def swapped_srgb(profile: bytes) -> bytes:
    """An sRGB profile under another name with its red and green primaries exchanged."""
    swapped = bytearray(profile)
    count = struct.unpack(">I", swapped[128:132])[0]
    tags = {bytes(swapped[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    swapped[red + 4 : red + 12], swapped[green + 4 : green + 12] = (
        swapped[green + 4 : green + 12],
        swapped[red + 4 : red + 12],
    )
    for word in (b"sRGB", "sRGB".encode("utf-16-be")):
        while (at := bytes(swapped).find(word)) >= 0:
            swapped[at : at + len(word)] = b"x" * len(word) if len(word) == 4 else "xxxx".encode("utf-16-be")
    return bytes(swapped)


def test_broken_colour_profile_is_noted_and_the_photo_used():
    photo = decode(encoded(Image.fromarray(PIXELS), icc_profile=b"not a profile"), "a")
    np.testing.assert_array_equal(photo.pixels, PIXELS)
    assert len(photo.notes) == 1 and "colour profile" in photo.notes[0]


def test_phone_photo_with_a_second_picture_inside_is_read(tmp_path):
    first, second = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 200))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    pixels = decode((tmp_path / "a.jpg").read_bytes(), "a.jpg").pixels
    assert pixels[..., 0].mean() > 150 > pixels[..., 2].mean(), "the first picture is the photo"


def test_content_decides_and_not_the_suffix():
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(PIXELS)), "a.jpg").pixels, PIXELS)


def test_limit_of_pixels_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 30)
    with pytest.raises(DataError, match="limit"):
        decode(encoded(Image.fromarray(PIXELS)), "a.png")
