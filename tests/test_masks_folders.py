"""`dreamlit masks`: nothing of the user's is lost, and a command that was stopped goes on to the same files."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dreamlit.masking import making
from dreamlit.masking.clipseg import ClipSeg
from mask_cases import SIZES, files, lines, mask_of, masks
from runs import write_photos
from tiny_segmenters import make_clipseg


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory) -> str:
    return str(make_clipseg(tmp_path_factory.mktemp("models") / "clipseg"))


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    return write_photos(tmp_path / "photos", SIZES)


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
    Image.new("RGB", (999, 2)).save(photos / "strip.png")
    before = files(photos)
    assert masks(photos, tmp_path / "out", "--text_input", "dog", "--model", clipseg, "--batch_size", "2") == 2
    told = capsys.readouterr().err
    assert all(name in told for name in ("p1.png", "p3.png", "lost.png", "strip.png")) and "p0.png" not in told
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


def test_a_stop_in_the_middle_of_remaking_a_mask_goes_on_too(tmp_path, photos, clipseg, monkeypatch, capsys):
    options, output = ("--text_input", "dog", "--model", clipseg), tmp_path / "out"
    assert masks(photos, output, *options) == 0
    write_photos(photos, SIZES[:1], seed=5)
    write = pathlib.Path.write_bytes

    def stop(path, data):
        if "p0.png" in path.name:
            raise KeyboardInterrupt
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", stop)
        assert masks(photos, output, *options) == 130
    assert masks(photos, output, *options) == 0 and masks(photos, tmp_path / "straight", *options) == 0
    assert files(output) == files(tmp_path / "straight") and "by hand" not in capsys.readouterr().out


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
    (tmp_path / "out" / "p2.png").unlink()
    batches.clear()
    assert masks(photos, tmp_path / "out", *options) == 0
    assert batches == [2]  # a photo goes with the same others again, since the photos of a batch round together


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
        assert shown[110:130, left + 75 : left + 115].mean() > 1.5 * shown[110:130, left + 125 : left + 165].mean()
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
