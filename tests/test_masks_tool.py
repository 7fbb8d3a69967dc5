"""`dreamlit masks`: masks that the trainer takes as they are, and options that do what they say."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from dreamlit.cli import main
from dreamlit.datamodules.images import decode
from mask_cases import SIZES, cutouts, files, lines, mask_of, masks
from runs import base_config, fit, write_photos
from tiny_segmenters import make_clipseg


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory) -> str:
    return str(make_clipseg(tmp_path_factory.mktemp("models") / "clipseg"))


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    return write_photos(tmp_path / "photos", SIZES)


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
    scores = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("  0.", "  1."))]
    told = {name: float(score) for score, name, *_ in scores}
    assert told["s0.png"] == 1
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


def test_help_has_an_example_and_the_page_has_every_option(capsys):
    assert main(["masks", "--help"]) == 0
    told = capsys.readouterr().out
    assert "dreamlit masks --input_dir" in told and "conditioning_data: masks" in told
    page = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "masks.md").read_text()
    options = set(re.findall(r"--[a-z_]+", told)) - {"--help"}
    assert len(options) > 12 and options <= set(re.findall(r"--[a-z_]+", page))
