"""Photo files as pixels: upright, in sRGB, with a stated policy for transparency; or an error that names what is wrong.

Colours: a photo with an embedded colour profile other than sRGB (Display P3, Adobe RGB, CMYK) is converted to sRGB with
perceptual intent. Where that profile is broken, or fits 16-bit grey, the values are taken as they are, with a note.
"""

from __future__ import annotations

import dataclasses
import io
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError, features

from dreamlit.errors import ConfigError, DataError

MAX_PIXELS = 160_000_000
"""Larger pictures are taken for decompression bombs: 160 megapixels, above every camera of 2025."""
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
    + ((".avif",) if features.check("avif") else ())
)

# Pillow warns from 89 megapixels on; the limit above is checked for every file before it is decoded.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A decoded photo.

    Args:
        pixels: uint8 [H, W, 3], sRGB, upright, transparent parts laid on the background.
        alpha: uint8 [H, W], 255 where opaque; None for a photo without transparent parts.
        notes: What a user may want to know about the file, one sentence each.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    notes: tuple[str, ...] = ()


def decode(data: bytes, name: str, alpha: str = "white") -> Photo:
    """One photo file.

    Args:
        data: The file's bytes. Its content decides how it is read, not its suffix.
        name: How the file is called in errors.
        alpha: A colour (a name or `#rrggbb`) that transparent photos are laid on; `mask` lays them on white, `error`
            refuses them.

    Raises:
        DataError: when the file is not a still image that can be read whole, or is transparent under `error`.
        ConfigError: when `alpha` is not a colour.
    """
    background = background_colour(alpha)
    image, notes = open_upright(data, name)
    image, colour_notes = _to_srgb(image)
    values, opacity = split_alpha(image, name)
    if opacity is not None and alpha == "error":
        raise DataError(f"{name}: has transparent parts, which `alpha: error` refuses. Flatten it, or choose a colour")
    pixels = _eight_bits(values)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if opacity is not None:
        opacity = _eight_bits(opacity)
        pixels = _composite(pixels, opacity, background)
    return Photo(np.ascontiguousarray(pixels), opacity, (*notes, *colour_notes))


def background_colour(alpha: str) -> tuple[int, int, int]:
    """The colour that an alpha policy lays transparent photos on.

    Raises:
        ConfigError: when the policy is neither `mask` nor `error` nor a colour.
    """
    if alpha in ("mask", "error"):
        return 255, 255, 255
    try:
        return ImageColor.getcolor(alpha, "RGB")  # pyright: ignore[reportReturnType]
    except ValueError:
        raise ConfigError(
            f"alpha: {alpha!r} is not a colour. Allowed: a colour name or #rrggbb, `mask`, `error`"
        ) from None


def open_upright(data: bytes, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    """A fully decoded still image, turned upright by its EXIF orientation, and notes about the file.

    Raises:
        DataError: what is wrong with the file, and what to do about it.
    """
    refusal = _not_an_image(data)
    if refusal:
        raise DataError(f"{name}: {refusal}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_header(image, name)
        image.load()
    except DataError:
        raise
    except UnidentifiedImageError:
        if data.startswith(MAGIC) or data[4:12] == b"ftypavif":
            raise DataError(f"{name}: is damaged or cut off in its header. Replace it") from None
        raise DataError(f"{name}: is not an image of a kind that can be read ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: has more than {MAX_PIXELS / 1e6:.0f} megapixels. Scale it down first") from None
    except Exception as error:  # a decoder fed with damaged bytes may raise anything
        raise DataError(f"{name}: is damaged or cut off ({error or type(error).__name__}). Replace it") from error
    return _turn_upright(image)


def _check_header(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: {width} x {height} is {width * height / 1e6:.0f} megapixels, the limit is {MAX_PIXELS / 1e6:.0f}."
            " Scale it down first"
        )
    frames = getattr(image, "n_frames", 1)
    # Phones store a gain map or a second view behind the photo (MPO); the first frame is the photo by definition.
    if frames > 1 and image.format != "MPO":
        kind = "pages" if image.format == "TIFF" else "frames (animated)"
        raise DataError(f"{name}: has {frames} {kind}. Save the one to train on as a file of its own")


def _turn_upright(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    try:
        return ImageOps.exif_transpose(image), ()
    except Exception as error:  # the pixels are whole; only the metadata beside them cannot be read
        return image, (f"its EXIF data cannot be read and is taken as upright ({error or type(error).__name__})",)


def _not_an_image(data: bytes) -> str | None:
    """What a file that is certainly no picture is instead: the common accidents, named."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "is empty (0 bytes). Replace it"
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg")):
        return "is a web page or drawing (HTML, XML, SVG), not a photo. Download the picture itself"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the picture. Run `git lfs pull`"
    if head.startswith(b"%pdf"):
        return "is a PDF. Save the page as PNG or JPEG"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"):
        return "is a HEIC photo, which is not read. Save it as JPEG or PNG"
    if data[4:8] == b"ftyp" and data[8:12] in (b"isom", b"mp41", b"mp42", b"qt  ", b"M4V "):
        return "is a video. Save the frame to train on as PNG or JPEG"
    return None


def split_alpha(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(values, alpha): uint8 or uint16 [H, W] or uint8 [H, W, 3], and alpha uint8 [H, W] or None if all is opaque.

    Pillow's own `convert` cuts 16-bit grey off at 255, so that it is read as numbers here.

    Raises:
        DataError: for pixel kinds without a defined white (32-bit integers, floating point).
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        transparent = image.info.get("transparency")
        hidden = values == transparent if isinstance(transparent, int) else np.zeros(values.shape, bool)
        return values, np.where(hidden, 0, 255).astype(np.uint8) if hidden.any() else None
    if image.mode in ("I", "F", "LAB", "HSV"):
        raise DataError(f"{name}: pixels of kind {image.mode!r} are not read. Save it as an 8- or 16-bit PNG")
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return np.asarray(image.convert("L")), None
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB")), None
    rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[..., 3]
    return rgba[..., :3], None if (alpha == 255).all() else alpha


def _eight_bits(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.uint8 else ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _composite(pixels: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Lays the picture on a colour; what stands under alpha 0 has no influence, not even by rounding."""
    a = alpha.astype(np.uint32)[..., None]
    blend = pixels.astype(np.uint32) * a + np.array(background, np.uint32) * (255 - a)
    return ((blend + 127) // 255).astype(np.uint8)


def _to_srgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The image converted to sRGB by its embedded profile, and a note where that failed."""
    profile = image.info.get("icc_profile")
    if not profile or not features.check("littlecms2"):
        return image, ()
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image, ()
        return _convert_profile(image, source), ()
    except Exception as error:  # littlecms reports through PyCMSError, OSError or ValueError
        return image, (f"its colour profile cannot be used and is ignored ({error})",)


def _convert_profile(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha, image = image.getchannel("A"), image.convert("RGB")
    elif image.mode in ("P", "YCbCr"):
        image = image.convert("RGB")
    result = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert result is not None  # only the in-place form returns nothing
    if alpha is not None:
        result.putalpha(alpha)
    return result
