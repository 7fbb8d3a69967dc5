"""`dreamlit toybox`: what it writes, and what it says when it cannot."""

import pytest

from dreamlit import cli
from dreamlit.toybox import command


def test_without_weights_it_says_how_to_make_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "MODEL", tmp_path / "nothing")
    assert cli.main(["toybox", "--output", str(tmp_path / "toybox")]) == 2
    assert "holds no weights; scripts/make_toybox.py" in capsys.readouterr().err


def test_an_unknown_subject_is_refused_with_the_known_ones(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["toybox", "--output", str(tmp_path / "toybox"), "--subject", "rex"])
    assert stop.value.code == 2 and not (tmp_path / "toybox").exists()
    assert "there are bolt, nemo, mocha, teddy, turbo" in capsys.readouterr().err


def test_a_file_in_the_way_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "copy_model", lambda output: None)
    (tmp_path / "toybox").write_text("mine")
    assert cli.main(["toybox", "--output", str(tmp_path / "toybox"), "--class-images", "0"]) == 2
    assert "toybox cannot be written" in capsys.readouterr().err
    assert (tmp_path / "toybox").read_text() == "mine"


def test_photos_and_configurations_are_written_and_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "copy_model", lambda output: None)
    for _ in range(2):
        assert cli.main(["toybox", "--output", str(tmp_path), "--subject", "nemo", "--class-images", "0"]) == 0
    assert len(list((tmp_path / "photos" / "nemo").glob("*.png"))) == 5
    assert len(list((tmp_path / "photos" / "nemo_masks").glob("*.png"))) == 5
    assert {path.name for path in tmp_path.glob("*.yaml")} == set(command.CONFIGS)


def test_the_scoring_model_and_the_tiny_autoencoder_come_along(tmp_path):
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    command.copy_model(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "clip", "taesd"}
    assert AutoencoderTiny.from_pretrained(tmp_path / "taesd").config["latent_channels"] == 4
