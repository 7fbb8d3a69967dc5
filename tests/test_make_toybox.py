"""The script that makes the toybox's model: it goes on where it stopped, and mixes nothing that does not belong."""

import functools
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from dreamlit.toybox.making import denoising, stages
from dreamlit.toybox.making.loop import Training
from tests.tiny import script

STAGES = ("clip", "vae", "judge", "decoder", "tiny_autoencoder")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """The script with one step of two pictures a stage."""
    maker = script("make_toybox")
    monkeypatch.setattr(maker, "STEPS", dict.fromkeys(maker.STAGES, 1))
    for module, name in [(stages, name) for name in STAGES] + [(denoising, "denoiser")]:
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), batch=2))

    def run(*words):
        common = ["--work", tmp_path / "work", "--scenes", 20, "--threads", torch.get_num_threads()]
        monkeypatch.setattr(sys, "argv", ["make_toybox.py", *map(str, [*common, *words])])
        maker.main()

    return run


def refused(make, capsys, *words):
    with pytest.raises(SystemExit):
        make(*words)
    return " ".join(capsys.readouterr().err.split())


def test_an_output_that_cannot_be_written_is_told_before_the_work(make, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "file: cannot be written" in refused(make, capsys, "--output", tmp_path / "file")
    assert not (tmp_path / "work").exists()


def half_of(name):
    """`torch.save` that is killed while it writes that file."""

    def save(content, path, save=torch.save):
        if path.name.startswith(name):
            path.write_bytes(b"half of it")
            raise KeyboardInterrupt
        save(content, path)

    return save


def test_a_model_is_written_from_nothing_and_what_does_not_fit_it_is_refused(make, tmp_path, monkeypatch, capsys):
    work, output = tmp_path / "work", tmp_path / "weights"
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", half_of("encoded"))
        with pytest.raises(KeyboardInterrupt):
            make("--stage", "denoiser")
    make("--stage", "denoiser", "--output", output)  # all others are made on the way; fewer than 50 steps leave no log
    for path in ("model/unet", "model/vae", "model/text_encoder", "clip", "taesd", "judge"):
        (file,) = (output / path).glob("*.safetensors")
        assert {value.dtype for value in load_file(file).values() if value.is_floating_point()} == {torch.float16}
    assert "clip.pt was made with seed 0, not 1" in refused(make, capsys, "--seed", 1)
    assert "clip.pt was made with scenes 20, not 16" in refused(make, capsys, "--scenes", 16)
    made = torch.load(work / "denoiser.pt", weights_only=True)
    make("--stage", "denoiser")  # there is nothing to do
    make("--stage", "clip", "--steps", 2)
    said = refused(make, capsys)
    assert "denoiser.pt was made with clip" in said and "move the file away" in said
    old = {key: value for key, value in made.items() if key != "made_of"}
    torch.save(old, work / "denoiser.pt")  # as earlier versions left it: they did not say
    make("--stage", "denoiser")
    assert torch.load(work / "denoiser.pt", weights_only=True).keys() == old.keys()


def test_steps_that_are_made_again_are_logged_once(tmp_path):
    network = torch.nn.Linear(1, 1)

    def training(until):
        def loss(rng, step):
            if step == until:
                raise KeyboardInterrupt
            return {"loss": network(torch.ones(1, 1)).square().sum() * 0 + step}

        return Training("line", network, loss, 300, 1e-3, tmp_path)

    with pytest.raises(KeyboardInterrupt):
        training(160).run()  # 150 is logged, and 100 is where the next run goes on
    training(None).run()
    rows = [json.loads(line) for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100, 150, 200, 250, 300]
    assert [row["loss"] for row in rows] == [24.5 + at for at in range(0, 300, 50)]
