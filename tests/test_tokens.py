"""`dreamlit tokens`: words that are one token everywhere, rarest and plainest first."""

import json
import shutil

import pytest
from PIL import Image

from dreamlit.cli import main
from dreamlit.errors import ModelError
from dreamlit.token_effects import effects
from dreamlit.tokens import ranked, read_vocabularies, score, verdict
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
    assert verdict("sks", toybox).startswith("good") and verdict("robot", toybox).startswith("poor")


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
    moved = effects(str(MODEL), "robot", ["zwx", "two", "red", "house"])
    assert max(moved["zwx"], moved["two"]) < 0.1 < 0.3 < min(moved["red"], moved["house"])
    assert effects(str(MODEL), "robot", ["two"]) == {"two": pytest.approx(moved["two"], rel=1e-4)}


def test_measured_words_are_ranked_by_how_little_they_move_the_model_too(capsys):
    assert main(["tokens", str(MODEL), "--measure", "robot", "--candidates", "6", "--judge", "red", "zwx"]) == 0
    red, zwx = (line for line in capsys.readouterr().out.splitlines() if line.startswith(("red", "zwx")))
    assert red.startswith("red: poor") and "less than 0% of the measured" in red
    assert zwx.startswith("zwx: good") and "moves the prediction by 0.0" in zwx
    assert main(["tokens", str(MODEL), "--measure", "robot", "--candidates", "6"]) == 0
    told = capsys.readouterr().out
    lines = [line.split("│")[1:-1] for line in told.splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line] for line in lines]
    plain = {word: value for value, word in ranked(read_vocabularies(str(MODEL)), 3, 5)[:6]}
    moves = {row[0]: float(row[2]) for row in rows}
    assert moves.keys() == plain.keys() and "moves:" in told
    for word, value, *_ in rows:
        still = sum(other > moves[word] for other in moves.values()) / 5
        assert float(value) == pytest.approx((plain[word] + still) / 2, abs=0.006)
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)


def test_a_model_of_no_known_family_is_not_measured(tmp_path, capsys):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "MagicPipeline"}))
    assert main(["tokens", str(folder), "--measure", "robot"]) == 2
    assert "MagicPipeline" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sdxl", "flux_dev"])
def test_families_with_several_encoders_are_measured_too(family_folders, name):
    moved = effects(str(family_folders(name)), "dog", ["cat", "sks"])
    assert set(moved) == {"cat", "sks"} and all(value > 0 for value in moved.values())


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
