"""`dreamlit class-images`: the base model's own pictures of the class, the same whatever stopped in between."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image

from dreamlit.class_images import Judge, Wish, expanded
from dreamlit.previewing import Sampling
from tests.runs import base_config, regularisation, run, write_photos
from tests.tiny_encoders import make_clip

SIZES = [(64, 64), (96, 64), (64, 96)]


@pytest.fixture
def config(tmp_path, tiny_model) -> dict[str, Any]:
    photos = write_photos(tmp_path / "subject", SIZES, seed=1)
    made = base_config(tmp_path / "run", tiny_model, photos)
    made["data"]["datasets"].append(regularisation(tmp_path / "class"))
    made["data"]["aspect_bucket_alignment"] = 32
    return made


def make(config, *options: str) -> int:
    return run("class-images", config, "--steps", "1", "--batch_size", "2", *options)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_they_have_the_prompt_the_folder_and_the_sizes_of_the_configuration(tmp_path, config, capsys):
    assert make(config, "--count", "6") == 0
    images = sorted((tmp_path / "class").glob("*.png"))
    assert len(images) == 6 and all(path.with_suffix(".txt").read_text() == "a photo of a dog\n" for path in images)
    assert sorted(Image.open(path).size for path in images) == sorted(SIZES * 2)
    assert "6 in" in capsys.readouterr().out and (tmp_path / "class-sheet.png").is_file()
    config["data"]["datasets"][1]["caption_strategy"] = "textfile"
    del config["data"]["datasets"][1]["instance_prompt"]
    assert run("fit", config) == 0  # and a run takes them as they are


@pytest.mark.parametrize("first", [1, 2, 3, 5])
def test_a_stopped_command_goes_on_to_the_very_same_files(tmp_path, config, first):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    prompt = ("--prompt", "a {red|blue} dog {on grass|}")
    assert make(config, "--count", "5", "--output", str(straight), *prompt) == 0
    assert make(config, "--count", str(first), "--output", str(broken), *prompt) == 0
    for path in list(broken.glob("*.png"))[-1:]:
        path.unlink()  # as if it had been stopped before
    assert make(config, "--count", "5", "--output", str(broken), *prompt) == 0
    assert files(broken) == files(straight)
    assert len({data for name, data in files(straight).items() if name.endswith("png")}) == 5


def test_a_command_that_was_killed_at_its_first_record_goes_on(tmp_path, config):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / ".class-images.jsonl.partial").write_text('{"count')
    assert make(config, "--count", "2") == 0
    assert sorted(path.suffix for path in (tmp_path / "class").iterdir()) == [".jsonl", ".png", ".png", ".txt", ".txt"]


def test_other_options_and_foreign_folders_are_refused_and_nothing_is_touched(tmp_path, config, capsys):
    folder = tmp_path / "class"
    assert make(config, "--count", "2") == 0
    before = files(folder)
    assert make(config, "--count", "4", "--prompt", "a cat") == 2
    assert "prompts" in capsys.readouterr().err and files(folder) == before
    foreign = write_photos(tmp_path / "mine", [(64, 64)])
    assert make(config, "--output", str(foreign)) == 2
    assert "empty folder" in capsys.readouterr().err and len(files(foreign)) == 1
    first = before["class-images.jsonl"].decode().splitlines()[0]
    for broken in ("{", "[1]", "", f"{first}\n{{}}", f"{first}\nnull"):
        (folder / "class-images.jsonl").write_text(broken)
        assert make(config, "--count", "4") == 2
        assert "damaged" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_drawn_and_writes_nothing(tmp_path, config, capsys):
    assert make(config, "--count", "4", "--prompt", "a {red|blue} dog", "--dry_run") == 0
    told = capsys.readouterr().out
    assert "4 in" in told and "a red dog" in told and "8 forwards" in told and not (tmp_path / "class").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--count", "0"), "count is 0"),
        (("--sizes", "[65x64]"), "65"),
        (("--sampler", "magic"), "magic"),
        (("--prompt", "['']"), "prompt"),
        (("--encoder", "nowhere/at-all"), "nowhere/at-all"),
    ],
)
def test_what_cannot_be_made_is_said(tmp_path, config, capsys, monkeypatch, options, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert make(config, *options) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "class").exists()


def test_without_a_regularisation_dataset_prompt_and_folder_are_asked_for(config, capsys):
    config["data"]["datasets"].pop()
    assert make(config) == 2
    assert "--prompt" in capsys.readouterr().err


def test_every_prompt_comes_once_before_any_comes_again():
    prompts = tuple(expanded(["a {red|blue|} {dog|cat}", "a house"]))
    assert len(prompts) == 7 and "a dog" in prompts
    wish = Wish(prompts, ((64, 64), (96, 64)), 3, 2, Sampling())
    pictures = [wish.picture(index) for index in range(21)]
    for start in (0, 7, 14):
        assert {picture.prompt for picture in pictures[start : start + 7]} == set(prompts)
    assert len({picture.seed for picture in pictures}) == 21
    assert {(p.prompt, p.width) for p in map(wish.picture, range(70))} == {(p, w) for p in prompts for w in (64, 96)}


@pytest.mark.parametrize("prompts", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [1, 2, 3, 4])
def test_every_size_comes_as_often_as_any_whatever_their_number(prompts, sizes):
    named = tuple(f"a dog {number}" for number in range(prompts))
    wish = Wish(named, tuple((64 + 32 * number, 64) for number in range(sizes)), 0, 2, Sampling())
    widths = [wish.picture(index).width for index in range(5 * sizes)]
    assert all(widths.count(64 + 32 * number) == 5 for number in range(sizes))


def test_near_duplicates_and_look_alikes_are_rejected(tmp_path):
    paths = [write_photos(tmp_path / str(seed), [(64, 64)], seed=seed) / "p0.png" for seed in range(3)]
    from dreamlit.encoders import ImageEncoder

    judge = Judge(ImageEncoder(make_clip(tmp_path / "clip")), paths[:2], 0.999, None)
    subject, other = judge.embed([Image.open(paths[0]), Image.open(paths[2])])
    assert "looks like the subject" in judge.why_not(subject) and "p0.png" in judge.why_not(subject)
    judge.look_alike = 1.1
    assert judge.why_not(other) == ""
    judge.kept.append(other)
    assert "nearly one that is there: 1.000" in judge.why_not(other)
    assert judge.why_not(-torch.ones_like(other)) == ""


def test_rejected_images_are_recorded_and_others_take_their_place(tmp_path, config):
    clip = str(make_clip(tmp_path / "clip"))
    options = ("--encoder", clip, "--look_alike", "2", "--near_duplicate")
    assert make(config, "--count", "2", *options, "2") == 0
    free = [json.loads(line) for line in (tmp_path / "class" / "class-images.jsonl").read_text().splitlines()[1:]]
    assert [line["kept"] for line in free] == [True, True]
    assert make(config, "--count", "2", "--output", str(tmp_path / "strict"), *options, "-0.9") == 2
    lines = [json.loads(line) for line in (tmp_path / "strict" / "class-images.jsonl").read_text().splitlines()[1:]]
    assert sum(line["kept"] for line in lines) == 1 and all(line["why"] for line in lines if not line["kept"])
