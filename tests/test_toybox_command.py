"""`dreamlit toybox`: what it writes, and what it says when it cannot."""

import pathlib
import re
import shlex

import pytest
import yaml
from PIL import Image

from dreamlit import cli
from dreamlit.combinations import data_faults
from dreamlit.toybox import CLIP, MODEL, command, quality
from dreamlit.toybox.backgrounds import PHRASES
from dreamlit.toybox.subjects import SUBJECTS
from dreamlit.training_cli import parts_of

ROOT = pathlib.Path(__file__).parent.parent


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


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """An empty working folder, for what a command writes beside it; the model and its class images are not made."""

    def class_images(folder, subject, *_):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("a", "b"):
            Image.new("RGB", (64, 64)).save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text("a photo of one")

    def link(output):
        for source in (MODEL, CLIP):
            if not (output / source.name).exists():
                (output / source.name).symlink_to(source)

    monkeypatch.setattr(command, "copy_model", link)
    monkeypatch.setattr(command, "write_class_images", class_images)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toybox").mkdir()
    (tmp_path / "in a folder: mine").mkdir()
    return tmp_path


@pytest.mark.parametrize("file", range(3))
@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("output", ["toybox", "in a folder: mine"])
@pytest.mark.parametrize("name", ["bolt", "nemo"])
def test_every_subject_has_configurations_that_run_where_it_was_put(beside, capsys, name, output, count, file):
    given = ["--output", output, "--subject", name, "--class-images", str(count)]
    assert cli.main(["toybox", *given]) == 0
    paths = sorted((beside / output).glob("*.yaml"), key=lambda path: len(path.name))
    assert shlex.quote(f"{output}/{paths[0].name}") in capsys.readouterr().out
    text = paths[file].read_text()
    module, data = parts_of(str(paths[file].relative_to(beside)))
    assert not data_faults(module, data)
    subject = data.specs[0]
    captions = [path.read_text() for path in pathlib.Path(subject.instance_data_dir).glob("*.txt")]
    kind = SUBJECTS[name].individual.kind
    assert len(captions) == 5 and all(f"sks {kind}" in caption for caption in captions)
    config = yaml.safe_load(paths[0].read_text())
    [report] = config["trainer"]["callbacks"]
    asked = {prompt.removeprefix(f"a photo of sks {kind} ") for prompt in report["init_args"]["prompts"]}
    assert asked == {PHRASES[place] for place in SUBJECTS[name].unseen}
    assert pathlib.Path(report["init_args"]["photos"]).is_dir()
    others = {"bolt", "robot"} if name == "nemo" else {"nemo", "fish"}
    assert not [word for word in others if word in text]
    assert (len(data.specs) == 3) == (count > 0)


def test_the_documented_run_that_overfits_is_accepted(beside):
    assert cli.main(["toybox"]) == 0
    [text] = re.findall(r"(?s)```yaml\n(extends: toybox.*?)```", (ROOT / "docs" / "evaluation.md").read_text())
    (beside / "overfit.yaml").write_text(text)
    module, data = parts_of("overfit.yaml")
    assert not data_faults(module, data) and len(data.specs) == 2


def test_what_was_changed_is_kept_unless_all_is_made_again(beside, capsys):
    assert cli.main(["toybox"]) == 0
    changed = [beside / "toybox" / "quickstart.yaml", beside / "toybox" / "photos" / "bolt" / "bolt-1.txt"]
    before = [path.read_text() for path in changed]
    for path in changed:
        path.write_text("mine")
    capsys.readouterr()
    assert cli.main(["toybox"]) == 0
    said = capsys.readouterr().out
    assert all(path.read_text() == "mine" and str(path.relative_to(beside)) in said for path in changed)
    assert cli.main(["toybox", "--again"]) == 0
    assert [path.read_text() for path in changed] == before


def test_less_than_no_class_images_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["toybox", "--output", str(tmp_path / "toybox"), "--class-images", "-5"])
    assert stop.value.code == 2 and not (tmp_path / "toybox").exists()
    assert "allowed: 0 for none, or more" in capsys.readouterr().err


def test_class_images_that_lack_a_caption_are_completed(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "base_pipeline", lambda: None)
    monkeypatch.setattr(quality, "sample", lambda pipeline, texts, seed: [Image.new("RGB", (8, 8))] * len(texts))
    for _ in range(2):
        command.write_class_images(tmp_path, SUBJECTS["nemo"], 2, 0, False)
        (tmp_path / "fish-0-000.png").write_bytes(b"mine")
        (tmp_path / "fish-0-001.txt").unlink(missing_ok=True)
    command.write_class_images(tmp_path, SUBJECTS["nemo"], 2, 0, False)
    assert (tmp_path / "fish-0-001.txt").read_text() == "a photo of a fish on grass\n"
    assert (tmp_path / "fish-0-000.png").read_bytes() == b"mine"


def test_the_scoring_model_and_the_tiny_autoencoder_come_along(tmp_path):
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    command.copy_model(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "clip", "taesd"}
    assert AutoencoderTiny.from_pretrained(tmp_path / "taesd").config["latent_channels"] == 4
