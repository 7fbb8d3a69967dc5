"""The manifest: pairing of photos, masks and captions, what is left out, and what its digest depends on."""

import dataclasses
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dreamlit.datamodules import probes
from dreamlit.datamodules.config_entries import CaptionShuffle, ConditioningDataset, ImageDataset, TextEmbedsDataset
from dreamlit.datamodules.manifest import build_manifest
from dreamlit.datamodules.preview import write_preview
from dreamlit.errors import DataError
from dreamlit.types import Role


def save(path: pathlib.Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def photo(seed: int, size=(96, 80)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


@pytest.fixture
def images(tmp_path) -> ImageDataset:
    """Three photos of 96 x 80, one of them in a sub-folder."""
    for seed, name in enumerate(("a.png", "b.png", "sub/a.png")):
        save(tmp_path / "images" / name, photo(seed))
    return ImageDataset(
        id="d", instance_data_dir=str(tmp_path / "images"), instance_prompt=("a dog",), resolution=64, max_upscale=4
    )


@pytest.fixture
def masks(tmp_path) -> ConditioningDataset:
    """A mask for each of the photos: the left half counts."""
    half = Image.fromarray(np.repeat(np.arange(96)[None] < 48, 80, 0))
    for name in ("a.png", "b.bmp", "sub/a.webp"):
        save(tmp_path / "masks" / name, half.convert("L"))
    return ConditioningDataset(id="m", instance_data_dir=str(tmp_path / "masks"))


def masked(spec: ImageDataset, **keys) -> ImageDataset:
    return dataclasses.replace(spec, conditioning_data="m", **keys)


def test_samples_are_all_photos_in_a_stable_order(images):
    manifest = build_manifest([images], 16, 0)
    assert [s.id for s in manifest.samples] == ["d/a.png", "d/b.png", "d/sub/a.png"]
    assert {s.captions for s in manifest.samples} == {("a dog",)}
    assert {s.role for s in manifest.samples} == {Role.INSTANCE} and {s.mask for s in manifest.samples} == {None}
    assert {s.bucket for s in manifest.samples} == {(64, 64)}
    assert manifest.filtered == manifest.warnings == manifest.eval_samples == []


def test_pixels_are_those_of_the_photo_in_the_bucket(images):
    spec = dataclasses.replace(images, resolution=80, crop=True, crop_style="corner")
    manifest = build_manifest([spec], 16, 0)
    np.testing.assert_array_equal(manifest.pixels(manifest.samples[1]), np.asarray(photo(1))[:, :80])


def test_manifest_is_small_to_pickle_and_works_after_it(images, masks):
    manifest = build_manifest([masked(images), masks], 16, 0)
    first = manifest.pixels(manifest.samples[0])
    data = pickle.dumps(manifest)
    assert len(data) < 6000
    copy = pickle.loads(data)
    np.testing.assert_array_equal(copy.pixels(copy.samples[0]), first)
    assert copy.digest() == manifest.digest()


def test_photo_changed_after_the_start_is_noticed(images):
    manifest = build_manifest([images], 16, 0)
    save(pathlib.Path(images.instance_data_dir) / "b.png", photo(99))
    manifest.pixels(manifest.samples[0])
    with pytest.raises(DataError, match=r"d: b\.png was changed"):
        manifest.pixels(manifest.samples[1])


def test_roles_and_eval_datasets(images, tmp_path):
    save(tmp_path / "eval" / "x.png", photo(0))
    specs = [
        images,
        dataclasses.replace(images, id="reg", is_regularisation_data=True),
        dataclasses.replace(images, id="e", dataset_type="eval", instance_data_dir=str(tmp_path / "eval")),
        dataclasses.replace(images, id="off", disabled=True, instance_data_dir="/nowhere"),
    ]
    manifest = build_manifest(specs, 16, 0)
    assert [s.role for s in manifest.samples] == [Role.INSTANCE] * 3 + [Role.REGULARISATION] * 3
    assert [s.id for s in manifest.eval_samples] == ["e/x.png"]
    assert (
        len(manifest.warnings) == 1 and "also trained on" in manifest.warnings[0] and "e/x.png" in manifest.warnings[0]
    )


# -- masks ------------------------------------------------------------------------------------------------------------


def test_masks_pair_by_relative_path_and_stem_whatever_the_suffix(images, masks):
    manifest = build_manifest([masked(images), masks], 16, 0)
    assert [s.mask.name for s in manifest.samples] == ["a.png", "b.bmp", "sub/a.webp"]
    mask = manifest.target_mask(manifest.samples[0])
    assert mask.shape == (64, 64) and mask[:, :28].min() == 1 and mask[:, 36:].max() == 0
    assert manifest.mask(manifest.samples[0]).shape == (80, 96), "whole and not yet cut"


def test_all_mask_faults_are_in_one_report(images, masks, tmp_path):
    root = tmp_path / "masks"
    (root / "a.png").unlink()
    save(root / "b.png", Image.new("L", (96, 80)))
    save(root / "sub" / "a.webp", Image.new("L", (80, 96)))
    save(root / "c.png", Image.new("L", (96, 80)))
    with pytest.raises(DataError) as caught:
        build_manifest([masked(images), masks], 16, 0)
    text = str(caught.value)
    assert "4 faults" in text
    assert "a.png: has no mask a.*" in text and "missing_mask: white" in text
    assert "b.png: has 2 masks: b.bmp, b.png" in text
    assert "mask sub/a.webp: is 80 x 96 and its image sub/a.png, upright, 96 x 80: another aspect" in text
    assert "mask c.png: there is no image c.*" in text


def test_missing_mask_white_lets_the_whole_image_count(images, masks, tmp_path):
    (tmp_path / "masks" / "a.png").unlink()
    manifest = build_manifest([masked(images, missing_mask="white"), masks], 16, 0)
    assert [s.mask is None for s in manifest.samples] == [True, False, False]
    assert manifest.mask(manifest.samples[0]) is None


def test_damaged_mask_leaves_its_image_out_under_skip_and_is_a_fault_otherwise(images, masks, tmp_path):
    (tmp_path / "masks" / "b.bmp").write_bytes(b"BM")
    with pytest.raises(DataError, match=r"mask b\.bmp: "):
        build_manifest([masked(images), masks], 16, 0)
    manifest = build_manifest([masked(images, on_bad_file="skip"), masks], 16, 0)
    assert [s.name for s in manifest.samples] == ["a.png", "sub/a.png"]
    assert manifest.filtered[0][:2] == ("d", "b.png") and "its mask b.bmp" in manifest.filtered[0][2]


def test_mask_of_another_resolution_is_the_same_mask(images, masks, tmp_path):
    before = build_manifest([masked(images), masks], 16, 0)
    first = before.target_mask(before.samples[0])
    large = Image.open(tmp_path / "masks" / "a.png").resize((960, 800), Image.Resampling.NEAREST)
    save(tmp_path / "masks" / "a.png", large)
    after = build_manifest([masked(images), masks], 16, 0)
    np.testing.assert_allclose(after.target_mask(after.samples[0]), first, atol=1e-6)


def test_black_mask_is_warned_of(images, masks, tmp_path):
    save(tmp_path / "masks" / "a.png", Image.new("L", (96, 80)))
    warnings = build_manifest([masked(images), masks], 16, 0).warnings
    assert len(warnings) == 1 and "mask of a.png is black everywhere" in warnings[0]


def test_alpha_channel_as_mask(tmp_path):
    cut_out = photo(0)
    cut_out.putalpha(Image.fromarray(np.repeat((np.arange(96)[None] < 48) * np.uint8(255), 80, 0)))
    save(tmp_path / "images" / "cut.png", cut_out)
    save(tmp_path / "images" / "full.png", photo(1))
    keys = {"instance_data_dir": str(tmp_path / "images"), "instance_prompt": ("x",), "resolution": 64, "alpha": "mask"}
    manifest = build_manifest([ImageDataset(id="d", **keys)], 16, 0)
    cut, full = manifest.samples
    assert cut.alpha == "mask" and full.alpha == "opaque" and full.mask is None
    assert manifest.target_mask(cut)[:, :28].min() == 1 and manifest.target_mask(cut)[:, 36:].max() == 0
    assert manifest.pixels(cut)[:, 40:].min() > 250, "the transparent part is white"
    assert cut.content in cut.mask.content, "two cut-outs have two masks"
    assert ["full.png" in warning for warning in manifest.warnings] == [False, True] or "full.png" in manifest.warnings[
        0
    ]


# -- what is left out, warnings ---------------------------------------------------------------------------------------


def test_small_images_are_left_out_with_a_reason_and_need_no_mask(images, masks, tmp_path):
    save(tmp_path / "images" / "tiny.png", photo(5, (20, 20)))
    manifest = build_manifest([masked(images, minimum_image_size=64), masks], 16, 0)
    assert [s.name for s in manifest.samples] == ["a.png", "b.png", "sub/a.png"]
    ((dataset_id, name, reason),) = manifest.filtered
    assert (dataset_id, name) == ("d", "tiny.png") and "minimum_image_size 64" in reason


def test_enlargement_is_warned_of_only_when_it_happens(images):
    assert not build_manifest([dataclasses.replace(images, max_upscale=None)], 16, 0).warnings
    (warning,) = build_manifest([dataclasses.replace(images, max_upscale=None, resolution=160)], 16, 0).warnings
    assert "3 of 3 images are enlarged" in warning and "1.84 times" in warning


def test_dataset_that_is_all_left_out_is_warned_of_beside_a_good_one(images):
    manifest = build_manifest([images, dataclasses.replace(images, id="big", minimum_image_size=999)], 16, 0)
    assert len(manifest.samples) == 3 and len(manifest.filtered) == 3
    assert manifest.warnings == ["big: all its images are left out; nothing of it is used"]


def test_pictures_that_share_a_caption_file_are_warned_of(images, tmp_path):
    save(tmp_path / "images" / "a.jpg", photo(7))
    for name in ("a.txt", "b.txt", "sub/a.txt"):
        (tmp_path / "images" / name).write_text("a caption")
    manifest = build_manifest([dataclasses.replace(images, caption_strategy="textfile")], 16, 0)
    assert manifest.warnings == ["d: a.jpg and a.png share one caption file, as their stem is the same"]
    assert len({s.id for s in manifest.samples}) == 4


def test_bad_captions_and_bad_files_come_in_one_report(images, tmp_path):
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    (tmp_path / "images" / "a.txt").write_text("a caption")
    with pytest.raises(DataError) as caught:
        build_manifest([dataclasses.replace(images, caption_strategy="textfile")], 16, 0)
    lines = str(caught.value).splitlines()[1:]
    assert [next(n for n in ("bad.png", "sub/a", "b.") if n in line) for line in lines] == ["bad.png", "b.", "sub/a"]


def test_all_missing_folders_are_in_one_report(images):
    gone = [dataclasses.replace(images, id=i, instance_data_dir=f"/gone/{i}") for i in ("x", "y")]
    with pytest.raises(DataError, match=r"(?s)'x'.*/gone/x.*'y'.*/gone/y"):
        build_manifest(gone, 16, 0)


def test_cache_file_among_the_photos_is_refused(images):
    with pytest.raises(DataError, match="never written to"):
        build_manifest([images], 16, 0, probe_path=pathlib.Path(images.instance_data_dir) / "cache" / "probes.jsonl")
    assert not (pathlib.Path(images.instance_data_dir) / "cache").exists()


@pytest.mark.parametrize("key", ["cache_dir_vae", "cache_dir"])
def test_cache_folder_that_a_link_puts_among_the_photos_is_refused(images, tmp_path, key):
    (tmp_path / "link").symlink_to(images.instance_data_dir)
    cache = str(tmp_path / "link" / "cache")
    texts = TextEmbedsDataset(id="t", cache_dir=cache if key == "cache_dir" else None)
    spec = dataclasses.replace(images, cache_dir_vae=cache if key == "cache_dir_vae" else None)
    with pytest.raises(DataError, match=f"{key} .*never written to"):
        build_manifest([spec, texts], 16, 0)


def test_fault_of_one_line_from_a_caption_strategy_is_in_the_report(images, monkeypatch):
    def refuse(*_):
        raise DataError("the caption server does not answer")

    monkeypatch.setattr("dreamlit.datamodules.captions.strategy_for", refuse)
    with pytest.raises(DataError, match="the caption server does not answer"):
        build_manifest([images], 16, 0)


# -- digest -----------------------------------------------------------------------------------------------------------


def test_digest_depends_on_what_is_trained_and_on_nothing_else(images, masks, tmp_path):
    spec = masked(images, crop=True, resolution=32, crop_style="random")
    base = build_manifest([spec, masks], 16, 0).digest()
    shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "-moved"), copy_function=shutil.copy)
    moved = [
        dataclasses.replace(s, instance_data_dir=s.instance_data_dir.replace(tmp_path.name, tmp_path.name + "-moved"))
        for s in (spec, masks)
    ]
    assert build_manifest(moved, 16, 0).digest() == base, "another folder, other times"
    assert build_manifest([dataclasses.replace(spec, cache_dir_vae="/x"), masks], 16, 0).digest() == base
    changes = [
        {"repeats": 3},
        {"probability": 0.5},
        {"instance_prompt": ("a cat",)},
        {"is_regularisation_data": True},
        {"resolution": 48},
        {"crop_style": "center"},
        {"caption_dropout": 0.1},
        {"caption_shuffle": CaptionShuffle(enable=True)},
        {"conditioning_data": None},
        {"id": "other"},
    ]
    digests = [build_manifest([dataclasses.replace(spec, **change), masks], 16, 0).digest() for change in changes]
    assert len({base, *digests}) == len(changes) + 1
    assert build_manifest([spec, masks], 16, 1).digest() != base, "the seed decides the crops"
    save(tmp_path / "masks" / "a.png", Image.new("L", (96, 80), 200))
    redrawn = build_manifest([spec, masks], 16, 0).digest()
    save(tmp_path / "images" / "a.png", photo(50))
    assert len({base, redrawn, build_manifest([spec, masks], 16, 0).digest()}) == 3


def test_alpha_policy_matters_only_to_transparent_photos(images):
    policies = [build_manifest([dataclasses.replace(images, alpha=a)], 16, 0) for a in ("white", "black")]
    assert policies[0].digest() == policies[1].digest()


# -- probe cache ------------------------------------------------------------------------------------------------------


def test_second_start_decodes_nothing_and_finds_the_same(images, masks, tmp_path, monkeypatch):
    path = tmp_path / "cache" / "probes.jsonl"
    first = build_manifest([masked(images), masks], 16, 0, probe_path=path)
    monkeypatch.setattr(probes, "look_at", lambda *args: pytest.fail("decoded again"))
    for file in pathlib.Path(images.instance_data_dir).rglob("*.png"):
        os.utime(file, (1, 1))
    assert build_manifest([masked(images), masks], 16, 0, probe_path=path).samples == first.samples


def test_damaged_probe_file_does_no_harm(images, tmp_path):
    path = tmp_path / "cache" / "probes.jsonl"
    first = build_manifest([images], 16, 0, probe_path=path)
    lines = path.read_bytes().splitlines()
    record = json.loads(lines[1])
    wrong = [
        {**record, "size": [0, 1]},
        {**record, "size": None},
        {"made_by": 3},
        [],
        7,
        {**record, "made_by": "x", "size": [1, 1]},
    ]
    path.write_bytes(b"\xff\x00\n{\n" + b"\n".join(json.dumps(w).encode() for w in wrong) + b"\n" + lines[2][:40])
    assert build_manifest([images], 16, 0, probe_path=path).samples == first.samples
    assert build_manifest([images], 16, 0, probe_path=path).samples == first.samples


def test_changed_photo_is_decoded_again_though_name_size_and_time_are_the_same(images, tmp_path):
    path, file = tmp_path / "cache" / "probes.jsonl", tmp_path / "images" / "a.png"
    before = build_manifest([images], 16, 0, probe_path=path)
    stat = file.stat()
    photo(0, (80, 96)).save(file)
    file.write_bytes(file.read_bytes() + bytes(max(0, stat.st_size - file.stat().st_size)))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = build_manifest([images], 16, 0, probe_path=path)
    assert after.samples[0].content != before.samples[0].content
    assert after.samples[0].geometry.original_size == (96, 80)


def test_probe_file_that_cannot_be_written_is_a_warning(images, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    manifest = build_manifest([images], 16, 0, probe_path=tmp_path / "file" / "probes.jsonl")
    assert len(manifest.samples) == 3 and "cannot be written" in manifest.warnings[0]


# -- preview ----------------------------------------------------------------------------------------------------------


def test_preview_holds_the_exact_pictures_and_a_page_whose_links_work(images, masks, tmp_path):
    spec = masked(images, instance_prompt=("<script>alert('x')</script>",), crop=True, crop_style="random")
    manifest = build_manifest([spec, masks], 16, 0)
    for _ in range(2):
        index = write_preview(manifest, tmp_path / "preview")
    text = index.read_text(encoding="utf-8")
    for number, sample in enumerate(manifest.samples):
        picture = tmp_path / "preview" / "pictures" / f"{number:05d}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(picture)), manifest.pixels(sample))
        mask = np.asarray(Image.open(picture.with_name(f"{number:05d}-mask.png")))
        np.testing.assert_allclose(mask / 255, manifest.target_mask(sample), atol=0.51 / 255)
        assert sample.id in text
    assert "<script>" not in text and "&lt;script&gt;" in text
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert links and all((tmp_path / "preview" / link).is_file() for link in links)


def test_preview_limits_each_dataset_and_clears_older_pictures(images, tmp_path):
    manifest = build_manifest([images, dataclasses.replace(images, id="second")], 16, 0)
    write_preview(manifest, tmp_path / "preview")
    (tmp_path / "preview" / "pictures" / "mine.png").write_bytes(b"keep")
    index = write_preview(manifest, tmp_path / "preview", limit=1)
    assert sorted(os.listdir(tmp_path / "preview" / "pictures")) == ["00000.png", "00001.png", "mine.png"]
    assert "2 of 6 images are shown" in index.read_text(encoding="utf-8")


def test_preview_among_the_photos_is_refused(images, tmp_path):
    manifest = build_manifest([images], 16, 0)
    (tmp_path / "link").symlink_to(images.instance_data_dir)
    for folder in (images.instance_data_dir, tmp_path / "link" / "preview"):
        with pytest.raises(DataError, match="never written to"):
            write_preview(manifest, folder)


@pytest.mark.parametrize("name", ["index.html", "pictures/12345.png"])
def test_preview_replaces_nothing_that_is_no_preview(images, tmp_path, name):
    manifest = build_manifest([images], 16, 0)
    mine = tmp_path / "home" / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DataError, match=rf"{name}.*new or empty folder"):
        write_preview(manifest, tmp_path / "home")
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == [mine]
    assert mine.read_bytes() == b"mine"


# -- real photos, and the whole under a bare locale -------------------------------------------------------------------


def test_one_folder_at_two_resolutions_with_masks(photos):
    keys = {"instance_data_dir": str(photos / "dog6" / "images"), "instance_prompt": ("a dog",), "crop": True}
    specs = [
        ImageDataset(id="small", resolution=256, conditioning_data="m", crop_style="random", **keys),
        ImageDataset(id="large", resolution=512, conditioning_data="m", minimum_image_size=512, **keys),
        ConditioningDataset(id="m", instance_data_dir=str(photos / "dog6" / "masks")),
    ]
    manifest = build_manifest(specs, 64, 0)
    assert [s.bucket for s in manifest.samples] == [(256, 256)] * 5 + [(512, 512)] * 5
    assert len({s.id for s in manifest.samples}) == 10 and len({s.content for s in manifest.samples}) == 5
    shares = [manifest.target_mask(s).mean() for s in manifest.samples]
    np.testing.assert_allclose(shares[:5], shares[5:], atol=0.01)
    assert manifest.warnings == manifest.filtered == []


def test_varied_aspects_get_their_buckets(photos):
    spec = ImageDataset(
        id="r", instance_data_dir=str(photos / "robot_toy" / "images"), instance_prompt=("x",), resolution=512
    )
    buckets = {s.name: s.bucket for s in build_manifest([spec], 64, 0).samples}
    assert list(buckets.values()) == [(512, 512), (448, 576), (576, 448), (384, 704), (640, 448)]


def test_names_and_prompts_outside_ascii_work_under_a_bare_locale(tmp_path):
    save(tmp_path / "photos" / "café ☕.png", photo(0))
    code = (
        "import sys; from dreamlit.datamodules.config_entries import ImageDataset\n"
        "from dreamlit.datamodules.manifest import build_manifest\n"
        "from dreamlit.datamodules.preview import write_preview\n"
        "spec = ImageDataset(id='d', instance_data_dir=sys.argv[1], instance_prompt=(chr(224),), resolution=64)\n"
        "m = build_manifest([spec], 16, 0, probe_path=sys.argv[2] + '/p'); write_preview(m, sys.argv[2] + '/preview')\n"
        "assert m.samples[0].name == 'caf' + chr(233) + ' ' + chr(9749) + '.png', ascii(m.samples)\n"
        "assert 'torch' not in sys.modules, 'no torch to look at photos'"
    )
    bare = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(tmp_path / "photos"), str(tmp_path / "out")]
    done = subprocess.run(command, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
