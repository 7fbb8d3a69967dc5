"""`dreamlit tokens`: words that are one token everywhere, rarest and plainest first."""

import json
import shutil
from typing import Any

import pytest
import torch
from PIL import Image

from dreamlit.cli import main
from dreamlit.errors import ModelError
from dreamlit.token_effects import effects
from dreamlit.tokens import USABLE, ranked, read_vocabularies, score, spread, verdict
from dreamlit.toybox import CLIP, MODEL
from dreamlit.toybox.scenes import draw_scene


@pytest.fixture(scope="module")
def toybox():
    return read_vocabularies(str(MODEL))


def test_listed_words_are_one_token_in_every_vocabulary(family_folders):
    from transformers import AutoTokenizer

    folder = family_folders("flux_dev")  # byte pairs of CLIP, and a sentencepiece of T5
    words = [word for _, word in ranked(read_vocabularies(str(folder)), 1, 12)]
    assert words
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        assert all(len(tokenizer.tokenize(word)) == 1 for word in words)


def test_rarer_and_plainer_words_come_first(toybox):
    found = ranked(toybox, 3, 5)
    assert found == sorted(found, key=lambda pair: (-pair[0], pair[1])) and len(found) > 20
    assert score("sks", toybox) > max(score(word, toybox) for word in ("robot", "fish", "grass", "red"))
    assert verdict("sks", toybox).startswith("usable") and verdict("robot", toybox).startswith("poor")


def test_a_word_in_pieces_is_told_with_its_pieces(toybox):
    said = verdict("zzyzx", toybox)
    assert "pieces" in said and " + " in said and "tokenizer" in said


def test_the_command_lists_and_judges(capsys):
    assert main(["tokens", str(MODEL), "--count", "7"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(table) == 7
    assert main(["tokens", str(MODEL), "--judge", "sks", "robot"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["sks", "robot"]


def test_a_vocabulary_without_embeddings_is_ranked_by_rarity_alone(tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    for path in (folder / "text_encoder").glob("*.safetensors"):
        path.unlink()
    (found,) = read_vocabularies(str(folder))
    assert not found.plain and "plainer than unknown" in verdict("sks", [found])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nowhere/at/all"], "no such folder"),
        ([str(MODEL), "--judge", "two words"], "single words"),
        ([str(MODEL), "--judge", " "], "single words"),
        ([str(MODEL), "--count", "0"], "--count"),
        ([str(MODEL), "--shortest", "6"], "--longest"),
        ([str(MODEL), "--candidates", "3"], "--candidates does nothing without --measure"),
        ([str(MODEL), "--device", "cpu"], "--device does nothing without --measure"),
        ([str(MODEL), "--measure", "robot", "--candidates", "0"], "--candidates is 0"),
        ([str(MODEL), "--measure", " "], "--measure is blank"),
        ([str(MODEL), "--measure", "robot", "--device", "abacus"], "--device abacus"),
        ([str(MODEL), "--photos", "photos"], "--photos does nothing without --names"),
        ([str(MODEL), "--names", "names.txt"], "--names needs --photos and --encoder"),
        ([str(MODEL), "--names", "n", "--photos", "p", "--encoder", "e", "--judge", "sks"], "leave out --judge"),
        ([str(MODEL), "--names", "no/names", "--photos", "p", "--encoder", str(CLIP)], "no/names cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(capsys, options, said):
    assert main(["tokens", *options]) == 2
    assert said in capsys.readouterr().err


def test_broken_models_are_named(tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    weights = next((folder / "text_encoder").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged"):
        read_vocabularies(str(folder))
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="not readable as a tokenizer"):
        read_vocabularies(str(folder))
    index = json.loads((folder / "model_index.json").read_text())
    index.pop("tokenizer")
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names no tokenizer"):
        read_vocabularies(str(folder))


def test_words_that_the_base_knows_move_its_prediction_more_than_words_that_say_nothing():
    found = effects(str(MODEL), "robot", ["zwx", "two", "red", "house"])
    moves = {word: effect.moves for word, effect in found.items()}
    assert max(moves["zwx"], moves["two"]) < 0.1 < 0.3 < min(moves["red"], moves["house"])
    assert effects(str(MODEL), "robot", ["two"])["two"] == pytest.approx(found["two"], rel=1e-4)


def test_apart_is_how_far_the_words_embeddings_are_from_those_of_none():
    from diffusers import StableDiffusionPipeline

    found = effects(str(MODEL), "fish", ["sks", "vlp", "a"])
    pipe: Any = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    with torch.no_grad():
        plain, *named = (
            pipe.encode_prompt(f"a photo of {word} fish", "cpu", 1, False)[0] for word in ("a", "sks", "vlp")
        )
    for word, embeds in zip(("sks", "vlp"), named, strict=True):
        assert found[word].apart == pytest.approx(float((embeds - plain).norm() / plain.norm()), rel=1e-4)
    assert found["a"] == (0, 0) and found["sks"].apart > 1.5 * found["vlp"].apart


def test_measured_words_are_ranked_by_how_far_they_are_told_apart(capsys):
    assert main(["tokens", str(MODEL), "--measure", "robot", "--judge", "red", "sks", "vlp"]) == 0
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert told["red"].startswith("poor") and told["sks"].startswith("good") and told["vlp"].startswith("slow")
    assert "farther than 98% of the measured; moves the prediction by 0.1" in told["sks"]
    assert main(["tokens", str(MODEL), "--measure", "robot", "--candidates", "9"]) == 0
    told = capsys.readouterr().out
    lines = [line.split("│")[1:-1] for line in told.splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line] for line in lines]
    apart = [float(row[1]) for row in rows]
    assert len(rows) == 9 and apart == sorted(apart, reverse=True) and "apart:" in told
    assert all(float(row[3]) >= USABLE for row in rows)


def test_measured_words_are_spread_over_all_that_say_little():
    rows = [(place / 100, str(place)) for place in range(100, 0, -1)]
    some = spread(rows, 10)
    assert some == rows[::10] and spread(rows, 200) == rows and spread([], 3) == []


def test_a_model_of_no_known_family_is_not_measured(tmp_path, capsys):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "MagicPipeline"}))
    assert main(["tokens", str(folder), "--measure", "robot"]) == 2
    assert "MagicPipeline" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sdxl", "flux_dev"])
def test_families_with_several_encoders_are_measured_too(family_folders, name):
    found = effects(str(family_folders(name)), "dog", ["cat", "sks"])
    assert set(found) == {"cat", "sks"} and all(min(effect) > 0 for effect in found.values())


def named(tmp_path, text="red house\n\n  yellow   car \nred house\nblue fish\n"):
    photos = tmp_path / "photos"
    photos.mkdir()
    fish = [scene for scene in map(draw_scene, range(300)) if "blue fish" in scene.caption]
    for number, scene in enumerate(fish[:3]):
        Image.fromarray(scene.picture).save(photos / f"{number}.png")
    (tmp_path / "names.txt").write_text(text, encoding="utf-8-sig")
    return ["--names", str(tmp_path / "names.txt"), "--photos", str(photos), "--encoder", str(CLIP)]


def test_names_are_ranked_by_how_like_the_photos_they_are(tmp_path, capsys):
    assert main(["tokens", str(MODEL), *named(tmp_path)]) == 0
    rows = [line.split("│")[1:4] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    names, likeness, pieces = ([cell.strip() for cell in column] for column in zip(*rows, strict=True))
    assert names[0] == "blue fish" and sorted(names) == ["blue fish", "red house", "yellow car"]
    assert list(likeness) == sorted(likeness, key=float, reverse=True) and set(pieces) == {"2"}


def test_names_and_photos_that_cannot_be_used_are_told(tmp_path, capsys):
    options = named(tmp_path, text=" \n")
    assert main(["tokens", str(MODEL), *options]) == 2
    assert "holds no name" in capsys.readouterr().err
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00dog")
    assert main(["tokens", str(MODEL), *options]) == 2
    assert "cannot be read" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("fish")
    for path in (tmp_path / "photos").iterdir():
        path.unlink()
    assert main(["tokens", str(MODEL), *options]) == 2
    assert "holds no image" in capsys.readouterr().err
    (tmp_path / "photos" / "torn.png").write_bytes(b"no picture")
    assert main(["tokens", str(MODEL), *options]) == 2
    assert "torn.png" in capsys.readouterr().err
