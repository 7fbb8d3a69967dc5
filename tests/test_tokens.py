"""`dreamlit tokens`: words that are one token everywhere, rarest and plainest first."""

import json
import shutil

import pytest

from dreamlit.cli import main
from dreamlit.errors import ModelError
from dreamlit.tokens import ranked, read_vocabularies, score, verdict
from dreamlit.toybox import MODEL


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
