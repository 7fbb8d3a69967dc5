"""`dreamlit new`: a configuration that plans and trains as it stands, and what it refuses."""

import pathlib
import shlex
import shutil
import sys

import pytest
import yaml

from dreamlit.errors import ConfigError
from dreamlit.newrun import choices
from dreamlit.newrun.command import write
from dreamlit.newrun.material import read_photos
from dreamlit.newrun.text import quoted, repeats
from runs import command, write_masks, write_photos
from tests.tiny import made, tiny_sd

SIZES = [(96, 64), (64, 64), (64, 96)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("new")
    write_photos(root / "photos", SIZES)
    write_masks(root / "masks", SIZES)
    write_photos(root / "class", [(64, 64)] * 5, seed=1)
    return root


@pytest.fixture(scope="module", params=["sd", "sd3"])
def written(request, photos, tmp_path_factory):
    """A configuration that was written for a tiny model: SD with class images, a flow model without."""
    root = tmp_path_factory.mktemp(request.param)
    model = tiny_sd(root / "model") if request.param == "sd" else made("sd3", root / "model", {})
    path = root / "run.yaml"
    words = ["--model", model, "--photos", photos / "photos", "--masks", photos / "masks", "--class", "ape"]
    words += ["--class-images", photos / "class"] if request.param == "sd" else []
    assert command("new", *map(str, words), "--resolution", "64", "--output", str(path)) == 0
    return path


def test_it_plans_and_trains_as_it_stands(written, monkeypatch, capsys):
    monkeypatch.chdir(written.parent)
    assert command("plan", "--config", str(written)) == 0
    assert "Run:" in capsys.readouterr().out
    few = ["--trainer.max_steps", "4", "--model.lr_warmup_steps", "1", "--trainer.callbacks", "[]"]
    assert command("fit", "--config", str(written), *few, "--trainer.enable_progress_bar", "false") == 0
    assert (written.parent / "runs" / "run" / "run.safetensors").exists()


def test_it_says_what_it_was_told_and_why(written):
    text = written.read_text()
    config = yaml.safe_load(text)
    assert config["model"]["family"]["class_path"] in ("SD", "SD3")
    subject, masks, *others = config["data"]["datasets"]
    assert subject["instance_prompt"] == "a photo of sks ape" and masks["conditioning_type"] == "mask"
    if others:
        assert others[0]["instance_prompt"] == "a photo of an ape"
    else:
        drawn = config["data"]["class_images"]
        assert drawn["prompt"].startswith("a photo of an ape {|on grass") and drawn["count"] == 24
        assert subject["repeats"] == 7  # 3 photos, 24 pictures of the class
    assert "# Memory: about" in text and "docs/evidence" in text


@pytest.mark.parametrize("captioned", [True, False])
def test_a_model_that_draws_no_class_images_is_held_by_class_prompts(tmp_path, photos, monkeypatch, captioned):
    shutil.copytree(photos / "photos", tmp_path / "photos")
    for number, photo in enumerate(sorted((tmp_path / "photos").glob("*.png")) if captioned else []):
        photo.with_suffix(".txt").write_text(f"a photo of sks ape, place {number}")
    model = made("sdxl-refiner", tmp_path / "model", {})
    words = ["--model", model, "--photos", tmp_path / "photos", "--class", "ape"]
    written = tmp_path / "run.yaml"
    assert command("new", *map(str, words), "--resolution", "64", "--output", str(written)) == 0
    data = yaml.safe_load(written.read_text())["data"]
    (subject,) = data["datasets"]
    held = {name: subject[name] for name in ("class_words", "class_prompt") if name in subject}
    assert held == ({"class_words": {"sks ape": "an ape"}} if captioned else {"class_prompt": "a photo of an ape"})
    assert "class_images" not in data and "repeats" not in subject
    monkeypatch.chdir(tmp_path)
    assert command("plan", "--config", str(written)) == 0


def test_an_existing_file_is_not_overwritten(written, photos, capsys):
    before = written.read_text()
    words = ["--model", "x", "--photos", str(photos / "photos"), "--class", "dog", "--output", str(written)]
    assert command("new", *words) == 2
    assert "--force" in capsys.readouterr().err
    assert written.read_text() == before


def test_without_a_terminal_the_missing_flags_are_named(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert command("new", "--photos", ".", "--dry-run") == 2
    shown = capsys.readouterr().err
    assert "--model" in shown and "--class" in shown and "--photos" not in shown


def test_a_terminal_is_asked_for_what_is_missing(monkeypatch):
    from dreamlit.newrun import command as new

    answers = iter(["model", "", "photos", "dog", "", ""])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    options = new.parser().parse_args(["--dry-run"])
    new.ask_for_missing(options)
    assert (options.model, options.photos, options.class_name) == ("model", "photos", "dog")
    assert options.masks is None and options.class_images is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--photos", "nowhere"], "no such folder"),
        (["--photos", "empty"], "there is no image in it"),
        (["--photos", "broken"], "bad.png"),
        (["--model", "other"], "no family loads its FancyPipeline"),
        (["--model", "nothing/there/at/all"], "no such folder"),
        (["--masks", "nowhere"], "--masks nowhere"),
        (["--memory", "0"], "--memory is 0"),
        (["--resolution", "3"], "--resolution is 3"),
        (["--subject-word", " "], "--subject-word is empty"),
        (["--photos", ""], "--photos is empty"),
        (["--model", " "], "--model is empty"),
        (["--class", "dog\nmodel: none"], "a word without line breaks"),
    ],
)
def test_bad_input_is_refused_with_its_name(words, told, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken", "other"):
        pathlib.Path(name).mkdir()
    pathlib.Path("broken/bad.png").write_bytes(b"no image")
    pathlib.Path("other/model_index.json").write_text('{"_class_name": "FancyPipeline"}')
    good = {"--model": "other", "--photos": str(photos / "photos"), "--class": "dog"}
    good |= dict([words])
    assert command("new", *(word for pair in good.items() for word in pair), "--dry-run") == 2
    assert told in capsys.readouterr().err
    assert not pathlib.Path("run.yaml").exists()


def test_nothing_is_written_among_the_photos(photos, capsys):
    folder = photos / "photos"
    before = sorted(folder.iterdir())
    words = ("--model", "m", "--photos", str(folder), "--class", "dog", "--output", str(folder / "run.yaml"))
    assert command("new", *words) == 2
    assert "lies in --photos" in capsys.readouterr().err and sorted(folder.iterdir()) == before


def test_a_closed_terminal_ends_the_questions(monkeypatch, capsys):
    def closed(question):
        raise EOFError

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", closed)
    assert command("new", "--dry-run") == 2
    assert "the questions were ended; give --model" in capsys.readouterr().err


def test_the_first_way_that_fits_is_taken_and_none_is_an_error(photos, tmp_path, monkeypatch, capsys):
    from dreamlit.memory.estimate import Estimate, Phase

    sizes = {(4, False): 40, (4, True): 30, (1, True): 20}
    seen = []

    def examined(text, estimator):
        config = yaml.safe_load(text)
        options = config["model"]["family"]["init_args"]
        key = config["data"]["batch_size"], options.get("gradient_checkpointing", False)
        seen.append((*key, config["model"].get("base_model_precision", "no_change")))
        size = sizes[key] if seen[-1][2] == "no_change" else 10
        return Estimate((Phase("training", (("all", size * 1024**3),)),), 0, 0, 0, 0)

    monkeypatch.setattr("dreamlit.newrun.command.examined", examined)
    words = [
        "--model",
        str(tiny_sd(tmp_path / "sd")),
        "--photos",
        str(photos / "photos"),
        "--class",
        "dog",
        "--dry-run",
    ]
    assert command("new", *words, "--memory", "24") == 0
    text = capsys.readouterr().out
    assert seen[-1] == (1, True, "no_change") and "accumulate_grad_batches: 4" in text
    assert command("new", *words, "--memory", "12") == 0
    assert "base_model_precision: int8-quanto" in capsys.readouterr().out
    assert command("new", *words, "--memory", "8") == 2
    assert "the most frugal needs 10.0 GB" in capsys.readouterr().err


def test_small_photos_are_not_enlarged(photos, tmp_path):
    family = choices_family(tmp_path)
    small = read_photos(str(photos / "photos"), "--photos")
    assert choices.choose_sizes(family, small, None).resolution <= small.usual_side


def test_steps_grow_with_the_photos_and_end_somewhere(photos):
    few = read_photos(str(photos / "photos"), "--photos")
    many = read_photos(str(photos / "class"), "--photos")
    assert choices.choose_steps(few, False)[0] <= choices.choose_steps(many, True)[0] <= choices.MOST


def choices_family(root):
    from dreamlit.families import SD

    return SD(str(tiny_sd(root / "sd")))


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for output in (tmp_path / "file" / "run.yaml", tmp_path / "folder"):
        with pytest.raises(ConfigError, match=f"--output {output}: cannot be written"):
            write(output, "text")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_hidden_files_are_no_photos(tmp_path, photos):
    shutil.copytree(photos / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "._a.png").write_bytes(b"of a mac")
    (tmp_path / "photos" / ".thumbnails").mkdir()
    (tmp_path / "photos" / ".thumbnails" / "a.png").write_bytes(b"small")
    assert read_photos(str(tmp_path / "photos"), "--photos").sides == read_photos(str(photos / "photos"), "").sides


@pytest.mark.parametrize(
    "text", ["a dog", 'say "sit"', "back\\slash", "\u2028 between", "dög \U0001f415", "\x7f", "a: b # c"]
)
def test_what_is_quoted_is_read_back_as_it_was(text):
    assert "\n" not in quoted(text)
    assert yaml.safe_load(f"[{quoted(text)}]   # why") == [text]


@pytest.mark.parametrize(("own", "others", "passes"), [(5, 24, 4), (24, 5, 0), (5, 5, 0), (1, 2, 1)])
def test_the_smaller_set_is_repeated(own, others, passes):
    found = yaml.safe_load(repeats(own, others))["repeats"]
    assert found == passes
    assert own * (found + 1) <= 1.5 * max(own, others)


def test_few_class_images_are_repeated_instead_of_the_photos(tmp_path, photos):
    write_photos(tmp_path / "one", [(64, 64)])
    words = ["--model", tiny_sd(tmp_path / "model"), "--photos", photos / "photos", "--class", "ape"]
    words += ["--class-images", tmp_path / "one", "--resolution", "64", "--output", tmp_path / "my run.yaml"]
    assert command("new", *map(str, words)) == 0
    text = (tmp_path / "my run.yaml").read_text()
    subject, of_class = yaml.safe_load(text)["data"]["datasets"]
    assert (subject["repeats"], of_class["repeats"]) == (0, 2)
    named = [line for line in text.splitlines() if "dreamlit fit --config" in line]
    assert [shlex.split(line)[-1] for line in named] == [str(tmp_path / "my run.yaml")]
