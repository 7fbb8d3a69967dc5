"""A folder of 30 kinds of bad file: each has its clear line in one report, and nothing in the folder changes."""

import dataclasses
import hashlib
import io
import os
import pathlib
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, features

from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.datamodules.manifest import build_manifest
from dreamlit.errors import DataError

# pytest turns warning filters of the program off; Pillow's own limit is lower than ours.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
GOOD = ("IMG_1.JPG", "good.jpg", "png named.jpg", "sub/c.jpeg")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def encoded(kind: str, image: Image.Image = NOISE, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def several(kind: str) -> bytes:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    return encoded(kind, frames[0], save_all=True, append_images=frames[1:])


def spoilt(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 40]) + data[middle + 40 :]


def png_of_size(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, b"IDAT" + rows)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def a_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "x")
    return buffer.getvalue()


def bad_contents() -> dict[str, tuple[bytes, str]]:
    """File name -> its bytes, and words of the line that it deserves."""
    kinds = {
        "empty.jpg": (b"", "is empty (0 bytes)"),
        "blank.png": (b"  \n", "is not an image"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        "page2.png": (b"\xef\xbb\xbf\n <html>", "web page"),
        "drawing.png": (b"<?xml version='1.0'?><svg/>", "SVG"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        "document.jpg": (b"%PDF-1.7 ...", "PDF"),
        "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "HEIC"),
        "film.png": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(50), "video"),
        "text.jpg": (b"just some words\n", "is not an image"),
        "json.webp": (b'{"error": 403}', "is not an image"),
        "noise.png": (os.urandom(500), "is not an image"),
        "archive.webp": (a_zip(), "is not an image"),
        "photoshop.png": (b"8BPS\0\1" + bytes(60), "is not an image"),
        "cut.jpg": (encoded("JPEG")[:1500], "damaged or cut off"),
        "header only.jpg": (encoded("JPEG")[:200], "cut off"),
        "cut.png": (encoded("PNG")[:3000], "damaged or cut off"),
        "cut.webp": (encoded("WEBP")[:400], "cut off"),
        "cut.bmp": (encoded("BMP")[:2000], "damaged or cut off"),
        "cut.tif": (encoded("TIFF")[:2000], "cut off"),
        "spoilt.png": (spoilt(encoded("PNG")), "damaged or cut off"),
        "nothing.png": (png_of_size(0, 10), "damaged or cut off"),
        "bomb.png": (png_of_size(20000, 20000), "megapixels"),
        "large.png": (png_of_size(13000, 13000), "169 megapixels, the limit is 160"),
        "moving.gif": (several("GIF"), "3 frames (animated)"),
        "moving.webp": (several("WEBP"), "3 frames (animated)"),
        "moving.png": (several("PNG"), "3 frames (animated)"),
        "pages.tiff": (several("TIFF"), "3 pages"),
        "float.tiff": (encoded("TIFF", Image.new("F", (8, 8), 0.5)), "pixels of kind 'F'"),
        "integer.tiff": (encoded("TIFF", Image.new("I", (8, 8), 70000)), "pixels of kind 'I'"),
        "lab.tiff": (encoded("TIFF", Image.new("LAB", (8, 8))), "pixels of kind 'LAB'"),
    }
    if features.check("avif"):
        kinds["cut.avif"] = (encoded("AVIF")[:300], "cut off")
        kinds["moving.avif"] = (several("AVIF"), "3 frames (animated)")
    return kinds


BAD = bad_contents()
JUNK = (".DS_Store", "._good.jpg", "Thumbs.db", ".hidden.jpg", ".ipynb_checkpoints/good.png", "__MACOSX/good.jpg")
OTHER = {"raw.heic": "save it as JPEG or PNG", "film.mp4": "no image suffix", "LICENSE": "no image suffix"}


def tree_hash(folder: pathlib.Path) -> str:
    """A hash over every name, kind, time and byte in the folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=os.fsencode):
        info = path.lstat()
        digest.update(repr((os.fsencode(path), info.st_mode, info.st_size, info.st_mtime_ns)).encode())
        if stat.S_ISREG(info.st_mode):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """The bad files, junk, and four good photos."""
    root = tmp_path / "photos"
    for name, data in {
        **{name: data for name, (data, _) in BAD.items()},
        **dict.fromkeys([*JUNK, *OTHER], b"junk"),
        **{name: encoded("PNG" if name.startswith("png") else "JPEG") for name in GOOD},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "sub" / "back").symlink_to(root)
    return root


@pytest.fixture
def links(folder) -> dict[str, str]:
    """Things with an image's name that are no files, and the words they deserve."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs POSIX links and pipes")
    (folder / "dangling.jpg").symlink_to(folder / "gone.jpg")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    os.mkfifo(folder / "pipe.jpg")
    return {"dangling.jpg": "leads nowhere", "itself.jpg": "leads to itself", "pipe.jpg": "is a pipe"}


def dataset(folder: pathlib.Path, **keys) -> ImageDataset:
    return ImageDataset(id="d", instance_data_dir=str(folder), instance_prompt=("a dog",), resolution=64, **keys)


def test_there_are_thirty_kinds():
    assert len(BAD) >= 30


def test_each_bad_file_has_one_clear_line_in_one_report(folder, links):
    before = tree_hash(folder)
    with pytest.raises(DataError) as caught:
        build_manifest([dataset(folder)], 64, 0)
    lines = str(caught.value).splitlines()
    expected = {**{name: words for name, (_, words) in BAD.items()}, **links}
    assert f"{len(expected)} faults" in lines[0] and "on_bad_file: skip" in lines[0]
    assert len(lines) == 1 + len(expected), "a line each, and none for good files or junk"
    for name, words in expected.items():
        (line,) = (line for line in lines if line.startswith(f"  - {name}: "))
        assert words in line, line
    assert tree_hash(folder) == before


def test_skip_leaves_bad_files_out_and_lists_them(folder, links, tmp_path):
    before = tree_hash(folder)
    manifest = build_manifest([dataset(folder, on_bad_file="skip")], 64, 0, probe_path=tmp_path / "cache" / "probes")
    assert sorted(sample.name for sample in manifest.samples) == sorted(GOOD)
    assert {name for _, name, _ in manifest.filtered} == {*BAD, *links}
    assert all(not reason.startswith(name) for _, name, reason in manifest.filtered)
    assert tree_hash(folder) == before


def test_junk_and_foreign_files_are_ignored_with_a_reason(folder):
    manifest = build_manifest([dataset(folder, on_bad_file="skip")], 64, 0)
    ignored = {name: reason for _, name, reason in manifest.ignored}
    # A hidden folder is named once and not entered.
    assert set(ignored) == {*JUNK[:4], ".ipynb_checkpoints", "__MACOSX", *OTHER, "sub/back"}
    for name, words in OTHER.items():
        assert words in ignored[name]
    assert "already read" in ignored["sub/back"], "a loop of folders ends"


def test_name_that_is_not_utf8_is_reported(folder):
    name = os.fsencode(folder) + b"/caf\xe9.jpg"
    try:
        with open(name, "wb") as file:
            file.write(encoded("JPEG"))
    except OSError:
        pytest.skip("this file system only takes UTF-8 names")
    manifest = build_manifest([dataset(folder, on_bad_file="skip")], 64, 0)
    assert ("d", "caf?.jpg", "its name is not UTF-8. Rename it") in manifest.filtered


def test_bad_file_that_two_datasets_share_has_one_line(folder):
    first = dataset(folder)
    with pytest.raises(DataError) as caught:
        build_manifest([first, dataclasses.replace(first, id="d2", resolution=128)], 64, 0)
    lines = [line for line in str(caught.value).splitlines() if "- empty.jpg" in line]
    assert len(lines) == 1 and lines[0].endswith("[d, d2]")


def test_folder_without_any_good_photo_says_so_on_one_screen(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        build_manifest([dataset(tmp_path, on_bad_file="skip")], 64, 0)
    text = str(caught.value)
    assert text.startswith("there is no usable image") and "40 images, none usable" in text
    assert len(text.splitlines()) < 20 and "and 30 more" in text


def test_folder_without_images_shows_what_it_holds(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"(?s)holds no image.*a\.heic: \.heic is not read here"):
        build_manifest([dataset(tmp_path)], 64, 0)
