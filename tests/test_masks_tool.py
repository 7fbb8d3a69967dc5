"""`dreamlit masks`: masks that the trainer takes as they are, the same whatever stopped in between."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dreamlit.cli import main
from dreamlit.datamodules.images import decode
from dreamlit.datamodules.masks import decode_mask
from dreamlit.masking import making
from dreamlit.masking.clipseg import ClipSeg
from dreamlit.toybox.scenes import draw_scene
from tests.runs import base_config, fit, write_photos
from tests.tiny_segmenters import make_clipseg

SIZES = [(90, 60), (60, 90), (64, 64), (120, 40), (80, 80)]


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory) -> str:
    return str(make_clipseg(tmp_path_factory.mktemp("models") / "clipseg"))


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    return write_photos(tmp_path / "photos", SIZES)


def masks(photos, output, *options: str) -> int:
    return main(["masks", "--input_dir", str(photos), "--output_dir", str(output), *options])


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def lines(folder: pathlib.Path) -> dict[str, dict]:
    told = (folder / "masks.jsonl").read_text().splitlines()[1:]
    return {line["image"]: line for line in map(json.loads, told)}


def mask_of(folder: pathlib.Path, name: str) -> np.ndarray:
    return decode_mask((folder / name).read_bytes(), name)


def cutouts(folder: pathlib.Path, count: int = 4) -> pathlib.Path:
    """Toybox scenes with their true masks as alpha channels; the masks themselves in `folder`_true."""
    truth = folder.with_name(f"{folder.name}_true")
    for place in (folder, truth):
        place.mkdir()
    for seed in range(count):
        scene = draw_scene(seed)
        Image.fromarray(np.dstack([scene.picture, scene.mask])).save(folder / f"s{seed}.png")
        Image.fromarray(scene.mask).save(truth / f"s{seed}.png")
    return folder


# what a run makes of them ---------------------------------------------------------------------------------------------


def test_a_masked_run_takes_them_as_they_are_also_of_rotated_photos_in_folders(tmp_path, tiny_model, clipseg):
    photos = write_photos(tmp_path / "photos", SIZES[:2])
    write_photos(photos / "in a folder", [(96, 64)], suffix=".jpg")
    sideways = Image.open(photos / "p0.png")
    sideways.getexif()[0x0112] = 6  # as a phone stores a photo that was taken upright
    sideways.save(photos / "turned.jpg", exif=sideways.getexif())
    output = tmp_path / "masks"
    assert masks(photos, output, "--text_input", "dog", "--model", clipseg) == 0
    for name, line in lines(output).items():
        upright = decode((photos / name).read_bytes(), name).pixels.shape[:2]
        assert mask_of(output, line["mask"]).shape == upright == (line["height"], line["width"])
    assert lines(output)["turned.jpg"]["height"] == 90 and (output / "in a folder" / "p0.png").is_file()
    config = base_config(tmp_path / "run", tiny_model, photos)
    config["trainer"]["max_steps"] = 2
    config["data"]["datasets"][0]["conditioning_data"] = "masks"
    config["data"]["datasets"].append({"id": "masks", "dataset_type": "conditioning", "instance_data_dir": str(output)})
    assert (fit(config) / "checkpoints" / "step-000002.ckpt").is_file()


def test_alpha_channels_are_taken_to_the_last_bit(tmp_path, capsys):
    photos = cutouts(tmp_path / "toys")
    assert masks(photos, tmp_path / "out", "--alpha", "--compare", str(tmp_path / "toys_true")) == 0
    for name in files(tmp_path / "toys_true"):
        assert (mask_of(tmp_path / "out", name) == mask_of(tmp_path / "toys_true", name)).all()
    assert capsys.readouterr().out.count("1.0000") == 5  # four scenes and their mean
    assert masks(photos, tmp_path / "hard", "--alpha", "--threshold", "0.5") == 0
    for name in files(photos):
        hard, soft = mask_of(tmp_path / "hard", name), mask_of(tmp_path / "out", name)
        assert set(np.unique(hard)) == {0.0, 1.0} and ((hard == 1) == (soft >= 0.5)).all()


def test_compare_tells_each_image_and_the_mean_and_whose_truth_is_missing(tmp_path, capsys):
    photos = cutouts(tmp_path / "toys", 3)
    truth = tmp_path / "toys_true"
    (truth / "s2.png").unlink()
    half = np.asarray(Image.open(truth / "s1.png")).copy()
    rows = np.nonzero(half.sum(1))[0]
    half[: int(rows.mean())] = 0
    Image.fromarray(half).save(truth / "s1.png")
    large = Image.open(truth / "s0.png")  # another size, the same aspect
    large.resize((large.width * 3, large.height * 3), Image.Resampling.NEAREST).save(truth / "s0.png")
    assert masks(photos, tmp_path / "out", "--alpha", "--compare", str(truth)) == 0
    told = {line.split()[1]: float(line.split()[0]) for line in capsys.readouterr().out.splitlines() if "  0." in line}
    told["s0.png"] = 1.0
    whole = np.asarray(Image.open(photos / "s1.png"))[..., 3]
    assert told["s1.png"] == pytest.approx(half.sum() / whole.sum(), abs=1e-4)
    assert told["mean"] == pytest.approx((1 + told["s1.png"]) / 2, abs=1e-4)
    assert masks(photos, tmp_path / "out", "--alpha", "--compare", str(truth)) == 0  # all there: it only compares
    assert "no true mask for s2.png" in capsys.readouterr().out
    Image.new("L", (200, 10)).save(truth / "s0.png")
    assert masks(photos, tmp_path / "out", "--alpha", "--compare", str(truth)) == 2
    assert "another aspect" in capsys.readouterr().err


# options --------------------------------------------------------------------------------------------------------------


def test_texts_are_united_and_subtracted(tmp_path, photos, clipseg):
    common = ("--model", clipseg, "--threshold", "0.9")
    made = {}
    for name, options in {
        "dog": ("--text_input", "dog"),
        "sky": ("--text_input", "night sky"),
        "both": ("--text_input", "dog", "night sky"),
        "without": ("--text_input", "dog", "--subtract", "night sky"),
    }.items():
        assert masks(photos, tmp_path / name, *options, *common) == 0
        made[name] = np.concatenate([mask_of(tmp_path / name, f"p{n}.png").ravel() > 0 for n in range(len(SIZES))])
    assert (made["dog"] != made["sky"]).any() and made["dog"].any()
    assert (made["both"] == (made["dog"] | made["sky"])).all()
    assert (made["without"] == (made["dog"] & ~made["sky"])).all()
    found = lines(tmp_path / "both")["p0.png"]["found"]
    assert list(found) == ["dog", "night sky"] and all(0.9 <= told["best"] <= 1 for told in found.values())


def test_padding_blur_largest_and_invert_change_the_shape_as_they_say(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    alpha = np.zeros((100, 200), np.uint8)
    alpha[20:60, 40:80], alpha[80:84, 150:160] = 255, 255  # a large and a small part
    Image.fromarray(np.dstack([np.full((100, 200, 3), 90, np.uint8), alpha])).save(photos / "a.png")

    def made(name: str, *options: str) -> np.ndarray:
        assert masks(photos, tmp_path / name, "--alpha", "--threshold", "0.5", *options) == 0
        return mask_of(tmp_path / name, "a.png")

    plain, large, grown = made("plain"), made("large", "--largest-only"), made("grown", "--padding", "0.05")
    assert plain[82, 155] == 1 and large[82, 155] == 0 and large[30, 50] == 1
    assert grown[30, 30] == 1 and grown[30, 29] == 0  # 0.05 of 200 pixels is 10
    assert made("small", "--padding=-0.05")[30:50, 50:70].all() and made("small", "--padding=-0.05").sum() == 400
    assert (made("inverted", "--invert") == 1 - plain).all()
    soft = made("soft", "--blur", "0.02")
    assert len(np.unique(soft)) > 10 and np.abs(soft.mean() - plain.mean()) < 0.01
    assert soft[40, 60] == 1 and 0.4 < soft[40, 79] < 0.6
    all_of_it = made("all", "--largest_only", "--padding", "0.05", "--invert")
    assert all_of_it[30, 31] == 0 and all_of_it[82, 155] == 1


@pytest.mark.parametrize("options", [("--threshold", "0.999"), ("--threshold", "0.0001", "--invert")])
def test_where_nothing_is_found_the_whole_image_counts_and_that_is_said(tmp_path, photos, clipseg, capsys, options):
    assert masks(photos, tmp_path / "out", "--text_input", "dog", "--model", clipseg, *options) == 0
    told = capsys.readouterr().out
    for name, line in lines(tmp_path / "out").items():
        assert (mask_of(tmp_path / "out", line["mask"]) == 1).all() and line["area"] == 1
        assert f"{name}: nothing" in told and "the whole image counts" in line["warnings"][0]


def test_photos_without_transparent_parts_count_whole(tmp_path, photos, capsys):
    assert masks(photos, tmp_path / "out", "--alpha") == 0
    assert (mask_of(tmp_path / "out", "p0.png") == 1).all()
    assert "no transparent parts" in capsys.readouterr().out


def test_a_dry_run_says_what_would_be_made_and_writes_nothing(tmp_path, photos, clipseg, capsys):
    assert masks(photos, tmp_path / "out", "--text_input", "dog", "--model", clipseg, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "5 masks to make" in told and "'dog'" in told and "p3.png" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "say what counts"),
        (("--text_input", " "), "a text is empty"),
        (("--text_input", "dog", "--subtract", "dog"), "nothing would be left"),
        (("--alpha", "--subtract", "dog"), "--subtract takes away"),
        (("--alpha", "--text_input", "dog"), "leave out --text_input"),
        (("--alpha", "--model", "x/y"), "leave out --model"),
        (("--alpha", "--sam", "x/y"), "leave out --sam"),
        (("--alpha", "--device", "cpu"), "leave out --device"),
        (("--alpha", "--padding", "0.1"), "needs --threshold"),
        (("--alpha", "--largest_only"), "needs --threshold"),
        (("--alpha", "--threshold", "1"), "between 0 and 1"),
        (("--alpha", "--threshold", "nan"), "between 0 and 1"),
        (("--alpha", "--padding", "20"), "share of the longer side"),
        (("--alpha", "--padding", "nan"), "share of the longer side"),
        (("--alpha", "--blur", "-1"), "share of the longer side"),
        (("--alpha", "--batch_size", "0"), "at least 1"),
        (("--alpha", "--compare", "nowhere"), "--compare nowhere"),
        (("--text_input", "dog", "--model", "nowhere/at/all"), "no such folder"),
        (("--text_input", "dog", "--model", "nowhere/at-all"), "nowhere/at-all"),
        (("--text_input", "dog", "--model", "{clipseg}", "--sam", "x/y"), "--sam has no use"),
        (("--model", "{clipseg}"), "give --text_input"),
        (("--text_input", "dog " * 99, "--model", "{clipseg}"), "say it shorter"),
        (("--text_input", "dog", "--model", "{clipseg}", "--device", "abacus"), "--device abacus"),
    ],
)
def test_what_cannot_be_made_is_said_and_nothing_is_written(tmp_path, photos, clipseg, capsys, options, said):
    before = files(photos)
    assert masks(photos, tmp_path / "out", *(option.replace("{clipseg}", clipseg) for option in options)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and files(photos) == before


# folders --------------------------------------------------------------------------------------------------------------


def test_the_folder_of_masks_has_nothing_to_do_with_that_of_photos(tmp_path, photos, capsys):
    (tmp_path / "link").symlink_to(photos)
    shared = tmp_path / "elsewhere"
    shared.mkdir()
    (photos / "linked").symlink_to(shared)
    write_photos(shared, [(64, 64)])
    before = files(photos)
    for output in (photos, photos / "masks", tmp_path, tmp_path / "link" / "masks", shared):
        assert masks(photos, output, "--alpha") == 2
        assert "overlap" in capsys.readouterr().err
    assert files(photos) == before and sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "link", "photos"]


@pytest.mark.parametrize("kind", ["missing", "a file", "empty", "texts"])
def test_a_folder_without_photos_is_refused(tmp_path, capsys, kind):
    folder = tmp_path / "photos"
    if kind == "a file":
        folder.write_text("x")
    elif kind != "missing":
        folder.mkdir()
    if kind == "texts":
        (folder / "notes.xyz").write_text("x")
    assert masks(folder, tmp_path / "out", "--alpha") == 2
    assert "--input_dir" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_two_images_of_one_name_are_refused(tmp_path, photos, capsys):
    shutil.copy(photos / "p0.png", photos / "p0.webp")
    assert masks(photos, tmp_path / "out", "--alpha") == 2
    assert "p0.png, p0.webp" in capsys.readouterr().err


def test_broken_images_are_told_at_the_end_and_all_others_have_masks(tmp_path, photos, clipseg, capsys):
    (photos / "p1.png").write_bytes((photos / "p1.png").read_bytes()[:200])
    (photos / "p3.png").write_bytes(b"")
    (photos / "lost.png").symlink_to(tmp_path / "nowhere.png")
    before = {name: data for name, data in files(photos).items()}
    assert masks(photos, tmp_path / "out", "--text_input", "dog", "--model", clipseg, "--batch_size", "2") == 2
    told = capsys.readouterr().err
    assert all(name in told for name in ("p1.png", "p3.png", "lost.png")) and "p0.png" not in told
    assert set(files(tmp_path / "out")) == {"masks.jsonl", "p0.png", "p2.png", "p4.png"} and files(photos) == before


def test_files_of_others_are_never_written_over(tmp_path, photos, capsys):
    output = write_photos(tmp_path / "out", [(64, 64)])
    before = files(output)
    assert masks(photos, output, "--alpha") == 2
    assert "empty folder" in capsys.readouterr().err and files(output) == before
    assert masks(photos, output / "p0.png", "--alpha") == 2
    assert "is a file" in capsys.readouterr().err
    (output / "p0.png").unlink()
    assert masks(photos, output, "--alpha") == 0
    write_photos(tmp_path / "more", [(64, 64)]).joinpath("p0.png").rename(output / "extra.png")
    write_photos(tmp_path / "more", [(64, 64)]).joinpath("p0.png").rename(photos / "extra.png")
    before = files(output)
    assert masks(photos, output, "--alpha") == 2
    assert "extra.png was not made by this command" in capsys.readouterr().err and files(output) == before


def test_a_sheet_of_that_name_by_someone_else_stays(tmp_path, photos, capsys):
    mine = tmp_path / "out-sheet.png"
    shutil.copy(photos / "p0.png", mine)
    before = mine.read_bytes()
    assert masks(photos, tmp_path / "out", "--alpha") == 0
    assert "no contact sheet" in capsys.readouterr().out and mine.read_bytes() == before


def test_a_full_disk_ends_in_one_message_and_what_is_made_stays(tmp_path, photos, clipseg, capsys, monkeypatch):
    options = ("--text_input", "dog", "--model", clipseg, "--batch_size", "2")
    assert masks(photos, tmp_path / "straight", *options) == 0
    write, left = pathlib.Path.write_bytes, [3]

    def until_full(path, data):
        left[0] -= 1
        if left[0] < 0:
            write(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", until_full)
        assert masks(photos, tmp_path / "out", *options) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(files(tmp_path / "out")) == ["masks.jsonl", "p0.png", "p1.png"]  # and no halves
    assert masks(photos, tmp_path / "out", *options) == 0
    assert files(tmp_path / "out") == files(tmp_path / "straight")


# going on -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_a_stopped_command_goes_on_to_the_very_same_files(tmp_path, photos, clipseg, monkeypatch, stopped_after):
    options = ("--text_input", "dog", "--model", clipseg, "--batch_size", "2", "--threshold", "0.7")
    assert masks(photos, tmp_path / "straight", *options) == 0
    add, calls = making.Record.add, [0]

    def stop(record, line, mask):
        calls[0] += 1
        if calls[0] > stopped_after:
            raise KeyboardInterrupt
        add(record, line, mask)

    with monkeypatch.context() as patch:
        patch.setattr(making.Record, "add", stop)
        assert masks(photos, tmp_path / "broken", *options) == 130
    assert len(list((tmp_path / "broken").glob("*.png"))) == stopped_after
    with (tmp_path / "broken" / "masks.jsonl").open("a") as file:
        file.write('{"image": "p4.p')  # killed in the middle of a line
    assert masks(photos, tmp_path / "broken", *options) == 0
    assert files(tmp_path / "broken") == files(tmp_path / "straight")


def test_what_is_there_is_kept_and_only_what_is_new_or_changed_is_made(tmp_path, photos, clipseg, capsys):
    options = ("--text_input", "dog", "--model", clipseg, "--batch_size", "1")
    output = tmp_path / "out"
    assert masks(photos, output, *options) == 0
    stamps = {path.name: path.stat().st_mtime_ns for path in output.glob("*.png")}
    write_photos(tmp_path / "other", SIZES[:1], seed=9)
    shutil.copy(tmp_path / "other" / "p0.png", photos / "new.png")
    shutil.copy(tmp_path / "other" / "p0.png", photos / "p1.png")
    (output / "p2.png").unlink()
    (photos / "p4.png").unlink()
    capsys.readouterr()
    assert masks(photos, output, *options) == 0
    told = capsys.readouterr().out
    assert "5 images" in told and "3 masks to make" in told and "without an image" in told and "p4.png" in told
    kept = {name for name, stamp in stamps.items() if (output / name).stat().st_mtime_ns == stamp}
    assert kept == {"p0.png", "p3.png", "p4.png"} and list(lines(output))[-1] == "p4.png"
    assert mask_of(output, "p1.png").shape == (60, 90)


def test_a_mask_that_was_changed_by_hand_is_never_lost(tmp_path, photos, clipseg, capsys):
    options, output = ("--text_input", "dog", "--model", clipseg), tmp_path / "out"
    assert masks(photos, output, *options) == 0
    Image.new("L", SIZES[0], 77).save(output / "p0.png")
    mine = (output / "p0.png").read_bytes()
    (output / "p1.png").unlink()
    assert masks(photos, output, *options) == 0
    assert "changed by hand and kept: p0.png" in capsys.readouterr().out and (output / "p0.png").read_bytes() == mine
    write_photos(photos, SIZES[:1], seed=5)
    assert masks(photos, output, *options) == 2
    assert "p0.png was changed by hand" in capsys.readouterr().err and (output / "p0.png").read_bytes() == mine


@pytest.mark.parametrize(
    "other",
    [
        ("--text_input", "cat"),
        ("--subtract", "cat"),
        ("--threshold", "0.5"),
        ("--padding", "0.01"),
        ("--blur", "0.01"),
        ("--invert",),
        ("--largest_only",),
        ("--model", "{other}"),
    ],
)
def test_masks_of_other_options_are_refused(tmp_path, photos, clipseg, capsys, other):
    options = ("--text_input", "dog", "--model", clipseg)
    assert masks(photos, tmp_path / "out", *options) == 0
    before = files(tmp_path)
    weights = make_clipseg(tmp_path / "other", seed=4) if "{other}" in other else ""
    changed = [option.replace("{other}", str(weights)) for option in other]
    assert masks(photos, tmp_path / "out", *options, *changed) == 2
    assert f"other options ({other[0].strip('-')}" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    assert files(tmp_path) == before
    moved = shutil.copytree(clipseg, tmp_path / "elsewhere")  # the same model at another place is no other option
    assert masks(photos, tmp_path / "out", "--text_input", "dog", "--model", str(moved)) == 0


def test_a_damaged_record_is_said(tmp_path, photos, capsys):
    assert masks(photos, tmp_path / "out", "--alpha") == 0
    record = tmp_path / "out" / "masks.jsonl"
    first = record.read_text().splitlines()[0]
    for broken in (b"{\n", b"[1]\n", b"", f"{first}\n{{}}\n".encode(), f"{first}\nnull\n".encode(), b"\xff\n"):
        record.write_bytes(broken)
        assert masks(photos, tmp_path / "out", "--alpha") == 2
        assert "damaged" in capsys.readouterr().err


# work -----------------------------------------------------------------------------------------------------------------


def test_models_are_loaded_once_and_photos_go_through_in_batches(tmp_path, photos, clipseg, monkeypatch):
    loads, batches = [], []
    load, regions = ClipSeg.load, ClipSeg.regions
    monkeypatch.setattr(ClipSeg, "load", lambda *given: loads.append(1) or load(*given))
    monkeypatch.setattr(ClipSeg, "regions", lambda self, group: batches.append(len(group)) or regions(self, group))
    options = ("--text_input", "dog", "--model", clipseg, "--batch_size", "2")
    assert masks(photos, tmp_path / "out", *options) == 0
    assert len(loads) == 1 and batches == [2, 2, 1]
    assert masks(photos, tmp_path / "out", *options) == 0
    assert len(loads) == 1  # nothing to do, nothing loaded


def test_when_memory_runs_out_the_batch_size_is_named(tmp_path, photos, clipseg, capsys, monkeypatch):
    def full(self, group):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(ClipSeg, "regions", full)
    assert masks(photos, tmp_path / "out", "--text_input", "dog", "--model", clipseg) == 2
    assert "--batch_size" in capsys.readouterr().err


def test_the_sheet_shows_every_photo_with_the_rest_darkened_and_is_redrawn_only_when_masks_change(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "b"):
        alpha = np.zeros((100, 100), np.uint8)
        alpha[:, :50] = 255
        Image.fromarray(np.dstack([np.full((100, 100, 3), 200, np.uint8), alpha])).save(photos / f"{name}.png")
    assert masks(photos, tmp_path / "out", "--alpha") == 0
    sheet = tmp_path / "out-sheet.png"
    shown = np.asarray(Image.open(sheet).convert("L"), float)
    for left in (0, 240):
        assert shown[110:130, left + 75 : left + 115].mean() > 2 * shown[110:130, left + 125 : left + 165].mean()
    stamp = sheet.stat().st_mtime_ns
    assert masks(photos, tmp_path / "out", "--alpha") == 0 and sheet.stat().st_mtime_ns == stamp
    Image.new("L", (100, 100), 255).save(tmp_path / "out" / "a.png")
    assert masks(photos, tmp_path / "out", "--alpha") == 0 and sheet.stat().st_mtime_ns != stamp


def test_many_photos_fill_several_sheets(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamlit.masking.sheet.PER_PAGE", 2)
    photos = write_photos(tmp_path / "photos", SIZES)
    assert masks(photos, tmp_path / "out", "--alpha") == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["out-sheet-2.png", "out-sheet-3.png", "out-sheet.png"]


def test_the_script_makes_the_same_masks(tmp_path, photos, clipseg):
    options = ("--text_input", "person", "--model", clipseg)
    assert masks(photos, tmp_path / "one", *options) == 0
    script = pathlib.Path(__file__).resolve().parent.parent / "scripts" / "generate_dataset_masks.py"
    folders = ("--input_dir", str(photos), "--output_dir", str(tmp_path / "two"))
    subprocess.run([sys.executable, str(script), *folders, *options], check=True, timeout=300)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_help_has_an_example(capsys):
    assert main(["masks", "--help"]) == 0
    told = capsys.readouterr().out
    assert "dreamlit masks --input_dir" in told and "conditioning_data: masks" in told
