"""Scores of previews: what they say is what the images are, they change nothing, and the front is the front."""

import itertools
import json
import math
import random
import re
import statistics
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from dreamlit.callbacks.best_of import BestOf
from dreamlit.callbacks.scores import Scores
from dreamlit.curves import score_figure
from dreamlit.encoders import ImageEncoder
from dreamlit.errors import CheckpointError, ConfigError
from dreamlit.plots import photo_files, read_photo
from dreamlit.scoring import HIGHER_IS_BETTER, Drawn, Photos, Scorer, Wording, crowding, front, nearest_photos, summary
from dreamlit.step_lines import recorded
from dreamlit.trainer import AtomicCheckpointIO
from runs import assert_same_state, base_config, checkpoint, fit, merged, run, write_config, write_photos
from tiny_encoders import make_clip, make_dino

PROMPTS = ["a photo of {subject}", "{subject} in the snow", "a photo of a dog"]
ONE_NUMBER = {"subject_fidelity", "clip_i", "prompt_fidelity", "preservation", "diversity", "class_diversity"}


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    home = tmp_path_factory.mktemp("encoders")
    return types.SimpleNamespace(clip=make_clip(home / "clip"), dino=make_dino("Dinov2", home / "dino"))


def configured(root, model, photos, scores, best_of=None, **changes):
    """A run with a preview after each step, scored, and with an average."""
    preview = {"prompts": PROMPTS, "subject": "sks dog", "sizes": ["64x64"], "seeds": [3, 4], "steps": 1}
    preview |= {"guidance_scale": 1.0, "every_n_steps": 1, "at_start": True}
    callbacks = [
        {"class_path": "BestOf", "init_args": best_of} if best_of is not None else None,
        {"class_path": "Scores", "init_args": {"photos": str(photos), **scores}} if scores is not None else None,
        {"class_path": "ValidationPreview", "init_args": preview} if scores is not None else None,
        {"class_path": "EMA", "init_args": {"decay": 0.5}},
        {"class_path": "EventLog"},
    ]
    config = base_config(root, model, photos)
    config["model"]["family"]["class_path"] = "SD"
    config["model"]["adapter"]["init_args"]["dropout"] = 0.2
    rate = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}}
    base = {"trainer.callbacks": [one for one in callbacks if one], "trainer.max_steps": 3, "model.optimizer": rate}
    return merged(config, {**base, "checkpoint.every_n_steps": 1, **changes})


@pytest.fixture(scope="module")
def loads():
    """How often weights of an encoder were read, and where a model was when it worked."""
    return types.SimpleNamespace(reads=[], devices=set())


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_sd_model, subject, models, loads):
    """A run that is scored, and the same run without."""
    home = tmp_path_factory.mktemp("scored")
    read = ImageEncoder._read_model

    def counted(self, config):
        loads.reads.append(self.path)
        return read(self, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageEncoder, "_read_model", counted)
        given = {"clip": str(models.clip), "dino": str(models.dino), "device": "model"}
        root = fit(configured(home / "run", tiny_sd_model, subject, given, {"most": 2}))
    plain = fit(configured(home / "plain" / "run", tiny_sd_model, subject, None))
    return types.SimpleNamespace(root=root, plain=plain, lines=recorded(root / "scores.jsonl"))


def told(root, kind):
    lines = (root / "events.jsonl").read_text().splitlines()
    return [record["data"] for record in map(json.loads, lines) if record["event"] == kind]


# a run ----------------------------------------------------------------------------------------------------------------


def test_training_with_scores_is_the_same_to_the_last_bit(done):
    for name in ("run.safetensors", "run-ema.safetensors"):
        assert (done.root / name).read_bytes() == (done.plain / name).read_bytes()
    for key in ("state_dict", "optimizer_states", "loops"):
        assert_same_state(checkpoint(done.root, 3)[key], checkpoint(done.plain, 3)[key])


def test_scoring_models_are_loaded_once(done, loads, models):
    assert sorted(loads.reads) == sorted([str(models.clip), str(models.dino)])


def cosines(one, two):
    """All pairs, in float64 and by loops."""
    pairs = itertools.product(np.asarray(one, np.float64), np.asarray(two, np.float64))
    return [float(a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in pairs]


@pytest.mark.parametrize("model", ["base", "raw", "ema"])
def test_scores_are_those_of_the_images_on_disk(done, models, subject, model):
    clip, dino = ImageEncoder(str(models.clip)), ImageEncoder(str(models.dino))
    photos = [read_photo(path) for path in photo_files(subject)]
    line = done.lines[-1]
    assert (line["step"], set(line["models"])) == (3, {"base", "raw", "ema"})
    of = line["models"][model]
    assert set(of) >= ONE_NUMBER
    folder = done.root / "previews" / ("base" if model == "base" else "step-000003/" + model)
    images = {row: [Image.open(folder / f"{row:03d}-{n:02d}.png") for n in range(2)] for row in range(3)}
    wanted = images[0] + images[1]
    read = ["a photo of dog"] * 2 + ["dog in the snow"] * 2  # CLIP does not know the rare word
    both = clip.embed_images(wanted), clip.embed_texts(read)
    follows = [cosines(a[None], b[None])[0] for a, b in zip(*both, strict=True)]
    photo_looks, looks = dino.embed_images(photos), dino.embed_images(wanted)
    plain = {row: dino.embed_images(images[row]) for row in range(3)}
    apart = {row: 1 - cosines(one[:1], one[1:])[0] for row, one in plain.items()}
    expected = {
        "subject_fidelity": statistics.fmean(cosines(looks, photo_looks)),
        "clip_i": statistics.fmean(cosines(both[0], clip.embed_images(photos))),
        "prompt_fidelity": statistics.fmean(follows),
        "preservation": statistics.fmean(cosines(plain[2], photo_looks)),
        "diversity": (apart[0] + apart[1]) / 2,
        "class_diversity": apart[2],
    }
    assert {name: of[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    by_prompt = of["clip_t_by_prompt"]
    assert set(by_prompt) == {"a photo of sks dog", "sks dog in the snow"}
    snow = {"min": min(follows[2:]), "mean": sum(follows[2:]) / 2, "max": max(follows[2:])}
    assert by_prompt["sks dog in the snow"] == pytest.approx({**snow, "std": np.std(follows[2:])}, abs=1e-5)
    table = np.reshape(cosines(looks, photo_looks), (4, 3))
    for row, said in zip(table, of["nearest"], strict=True):
        assert said["photo"] == photo_files(subject)[int(row.argmax())].name
        assert said["cosine"] == pytest.approx(row.max(), abs=1e-5)


def test_a_fresh_adapter_scores_as_the_base_model(done):
    first = done.lines[0]
    assert first["step"] == 0
    assert {n: first["models"]["raw"][n] for n in ONE_NUMBER} == {n: first["models"]["base"][n] for n in ONE_NUMBER}


def test_scores_are_in_log_events_and_plot(done):
    import csv

    rows = [row for path in done.root.glob("logs*/**/metrics.csv") for row in csv.DictReader(path.open())]
    logged = {int(row["step"]): row for row in rows if row.get("score/subject_fidelity")}
    last = done.lines[-1]["models"]
    assert float(logged[2]["score/subject_fidelity"]) == pytest.approx(last["raw"]["subject_fidelity"], abs=1e-6)
    assert float(logged[2]["score-ema/preservation"]) == pytest.approx(last["ema"]["preservation"], abs=1e-6)
    events = told(done.root, "scores")
    assert [event["step"] for event in events] == [0, 1, 2, 3]
    values = events[-1]["scores"]["subject_fidelity"]
    assert (values["base"], values["adapter"], values["ema"]) == tuple(
        last[model]["subject_fidelity"] for model in ("base", "raw", "ema")
    )
    assert values["photos"] == pytest.approx(done.lines[-1]["photos"]["mutual_similarity"])
    assert Image.open(done.root / "report" / "scores.png").size[0] > 500


def test_best_of_keeps_the_front_of_the_run(done):
    names = ("subject_fidelity", "prompt_fidelity", "preservation")
    kept = json.loads((done.root / "best-of" / "front.json").read_text())["steps"]
    of = {line["step"]: [line["models"]["raw"][n] * s for n, s in zip(names, (1, 1, -1), strict=True)]
          for line in done.lines if line["step"]}  # fmt: skip
    beaten = {a for a, b in itertools.permutations(of, 2) if all(x <= y for x, y in zip(of[a], of[b], strict=True))}
    assert set(map(int, kept)) <= of.keys() - beaten and len(kept) == min(2, len(of.keys() - beaten))
    files = {path.name for path in (done.root / "best-of").iterdir()}
    endings = ["", "-diffusers", "-ema", "-ema-diffusers"]
    expected = {f"run-step-{int(s):06d}{end}.safetensors" for s in kept for end in endings}
    assert files == expected | {f"step-{int(step):06d}.ckpt" for step in kept} | {"front.json"}
    step = int(max(kept))
    same = done.root / "checkpoints" / f"step-{step:06d}.ckpt"
    assert (done.root / "best-of" / f"step-{step:06d}.ckpt").samefile(same)  # no second copy on disk


def test_an_alarm_reaches_those_who_watch_from_afar(tmp_path, tiny_sd_model, subject, models):
    given = {"dino": str(models.dino), "alarm_above": -1.0}
    with pytest.warns(
        UserWarning, match=r"more alike to a photo than -1.0 \(first previews/step-000001/raw/000-00.png"
    ):
        root = fit(configured(tmp_path / "run", tiny_sd_model, subject, given, **{"trainer.max_steps": 1}))
    assert [data["step"] for data in told(root, "warning")] == [1]


# planned scores -------------------------------------------------------------------------------------------------------


def planned(monkeypatch, values):
    """Scores of the trained weights after each step as given, whatever the images are; before it, the base's."""
    left = iter(values)

    def score(self, drawn, photos, alarm_above):
        return dict(
            zip(("subject_fidelity", "preservation"), (0.1, 0.1) if alarm_above is None else next(left), strict=True)
        )

    monkeypatch.setattr(Scorer, "score", score)


def test_what_is_beaten_goes_and_a_resumed_run_goes_on_with_its_front(
    tmp_path, tiny_sd_model, subject, models, monkeypatch
):
    values = [(0.2, 0.3), (0.5, 0.6), (0.4, 0.3), (0.1, 0.9)]
    planned(monkeypatch, values)
    given = {"clip": str(models.clip)}
    changes = {"checkpoint.keep": 1, "trainer.max_steps": 4}
    config = configured(tmp_path / "run", tiny_sd_model, subject, given, {}, **changes)
    config["trainer"]["callbacks"] = [one for one in config["trainer"]["callbacks"] if one["class_path"] != "EMA"]
    root = fit(config)
    folder = root / "best-of"
    assert {path.stem for path in folder.glob("*.ckpt")} == {"step-000002", "step-000003"}  # 3 beats 1, all beat 4
    assert not (root / "checkpoints" / "step-000002.ckpt").exists()  # the run's own went, these stay
    state = torch.load(folder / "step-000002.ckpt", weights_only=True)
    assert state["global_step"] == 2
    planned(monkeypatch, [(0.5, 0.5)])
    assert run("fit", merged(config, {"trainer.max_steps": 5}), "--ckpt_path", "last") == 0
    assert {path.stem for path in folder.glob("*.ckpt")} == {"step-000003", "step-000005"}
    assert list(json.loads((folder / "front.json").read_text())["steps"]) == ["3", "5"]
    assert not list(folder.glob("run-step-000002*"))
    (folder / "front.json").write_text("{broken")
    planned(monkeypatch, [(0.9, 0.9)])
    with pytest.warns(UserWarning, match=r"front.json cannot be read"):
        assert run("fit", merged(config, {"trainer.max_steps": 6}), "--ckpt_path", "last") == 0
    assert {path.stem for path in folder.glob("*.ckpt")} == {"step-000003", "step-000005", "step-000006"}


def test_scoring_that_fails_is_one_warning_and_the_run_goes_on(tmp_path, tiny_sd_model, subject, models, monkeypatch):
    def broken(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Scorer, "score", broken)
    config = configured(tmp_path / "run", tiny_sd_model, subject, {"clip": str(models.clip)}, {})
    with pytest.warns(UserWarning, match="could not be scored.*out of memory") as caught:
        root = fit(config)
    assert len([one for one in caught if "could not be scored" in str(one.message)]) == 1
    assert "could not be scored" in told(root, "warning")[0]["message"]
    assert (root / "run.safetensors").exists() and not (root / "best-of").exists()


@pytest.mark.parametrize("what", ["checkpoint", "adapter"])
def test_a_step_that_cannot_be_kept_is_one_warning_and_the_run_goes_on(
    tmp_path, tiny_sd_model, subject, models, monkeypatch, capsys, what
):
    """The disk is full for what BestOf would keep beside the run's own checkpoints, of which there are fewer."""
    planned(monkeypatch, [(0.2, 0.3), (0.3, 0.3), (0.4, 0.3)])
    write = AtomicCheckpointIO.save_checkpoint

    def full(self, checkpoint, path, storage_options=None):
        if "best-of" in str(path):
            raise CheckpointError("no space left on device")
        write(self, checkpoint, path, storage_options)

    def full_later(trainer, module, folder, stem):
        (folder / f"{stem}.safetensors").write_bytes(b"half of it")
        if trainer.global_step < 3:
            raise OSError("no space left on device")

    if what == "checkpoint":
        monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", full)
    else:
        monkeypatch.setattr("dreamlit.callbacks.best_of.export_all", full_later)
    config = configured(tmp_path / "run", tiny_sd_model, subject, {"clip": str(models.clip)}, {})
    config = without(merged(config, {"checkpoint.every_n_steps": 3, "trainer.enable_progress_bar": True}), "EMA")
    with pytest.warns(UserWarning, match="step 1 could not be kept.*no space left") as caught:
        root = fit(config)
    lines = [str(one.message) for one in caught if "BestOf" in str(one.message)]
    assert len(lines) == 2 and "2 steps could not be kept" in lines[1]
    assert list(json.loads((root / "best-of" / "front.json").read_text())["steps"]) == ["3"]  # there is a checkpoint
    assert "scoring previews" in capsys.readouterr().err
    assert not [
        path.name for path in (root / "best-of").iterdir() if "00000" in path.name and "000003" not in path.name
    ]


@pytest.mark.slow
def test_two_processes_score_and_keep_together_though_the_first_cannot_write(tmp_path, tiny_sd_model, subject, models):
    """One image for two, beside a page that the first alone serves. Nobody waits for what was never written."""
    (tmp_path / "sabotage.py").write_text(
        "from lightning.pytorch import Callback\nfrom dreamlit.errors import CheckpointError\n"
        "from dreamlit.trainer import AtomicCheckpointIO\n\nwrite = AtomicCheckpointIO.save_checkpoint\n\n\n"
        "def full(self, checkpoint, path, storage_options=None):\n"
        "    if 'best-of' in str(path):\n        raise CheckpointError('no space left')\n"
        "    write(self, checkpoint, path, storage_options)\n\n\n"
        "class Sabotage(Callback):\n    def __init__(self):\n        AtomicCheckpointIO.save_checkpoint = full\n"
    )
    config = without(configured(tmp_path / "run", tiny_sd_model, subject, {"dino": str(models.dino)}, {}), "EMA")
    config = merged(config, {"checkpoint.every_n_steps": 2, "trainer.max_steps": 2, "trainer.strategy": "ddp"})
    config["trainer"]["devices"] = 2
    config["trainer"]["callbacks"] += [{"class_path": "LivePage"}, {"class_path": "sabotage.Sabotage"}]
    alone = {"at_start": False, "prompts": PROMPTS[:1], "seeds": [3], "models": ["raw"]}
    path = write_config(tmp_path / "two.yaml", renamed(config, **alone))
    command = [sys.executable, "-m", "dreamlit", "fit", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("live page: http://127.0.0.1:") == 1
    assert done.stderr.count("step 1 could not be kept (no space left)") == 1
    assert [line["step"] for line in recorded(tmp_path / "run" / "scores.jsonl")] == [1, 2]
    assert "2" in json.loads((tmp_path / "run" / "best-of" / "front.json").read_text())["steps"]


# before the model loads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"photos": "nowhere"}, "there is no folder nowhere"),
        ({"clip": None}, "neither clip nor dino is given"),
        ({"clip": "/no/such/clip"}, "clip: .*/no/such/clip"),
        ({"alarm_above": 2.0}, "a cosine is from -1 to 1"),
        ({"device": "gpu"}, "allowed: cpu, model"),
        ({"batch_size": 0}, "it must be at least 1"),
        ({"subject": " "}, "subject is empty"),
    ],
)
def test_wrong_options_are_refused(subject, models, options, message):
    with pytest.raises(ConfigError, match=message):
        Scores(**{"photos": str(subject), "clip": str(models.clip), **options})


def test_a_folder_without_photos_is_refused(tmp_path, models):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ConfigError, match="holds no image"):
        Scores(photos=str(tmp_path), clip=str(models.clip))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": ["fidelity"]}, "scores has 'fidelity'"),
        ({"scores": []}, "at least one"),
        ({"model": "base"}, "model is 'base'"),
        ({"most": 0}, "at least 1"),
    ],
)
def test_wrong_options_of_best_of_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        BestOf(**options)


def without(config, name):
    config["trainer"]["callbacks"] = [one for one in config["trainer"]["callbacks"] if one["class_path"] != name]
    return config


def changed(config, name, options):
    for one in config["trainer"]["callbacks"]:
        if one["class_path"] == name:
            one["init_args"].update(options)
    return config


def renamed(config, **options):
    return changed(config, "ValidationPreview", options)


def chosen(config, **options):
    return changed(config, "BestOf", options)


def scored(config, **options):
    return changed(config, "Scores", options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: without(config, "ValidationPreview"), "one ValidationPreview among the callbacks; found 0"),
        (lambda config: without(config, "Scores"), "one Scores among the callbacks; found 0"),
        (lambda config: renamed(config, prompts=["a cat"], subject=None), "subject is not given"),
        (lambda config: renamed(config, prompts=["{subject}"], subject="sks"), "has no class in it"),
        (lambda config: scored(config, subject="sks cat"), "no prompt .* has the subject 'sks cat'"),
        (lambda config: chosen(config, scores=["clip_i"]), "scores has 'clip_i', which this run does not get"),
        (lambda config: renamed(chosen(config, scores=["diversity"]), seeds=[3]), "scores has 'diversity'"),
        (
            lambda config: renamed(chosen(config, scores=["preservation"]), prompts=["a photo of {subject}"]),
            "scores has 'preservation'",
        ),
        (lambda config: without(chosen(config, model="ema"), "EMA"), "model is 'ema', which .* does not show .*raw"),
        (lambda config: renamed(config, models=["base"]), "model is 'raw', which ValidationPreview does not show"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_the_model_loads(
    tmp_path, tiny_sd_model, subject, models, change, message, capsys
):
    config = change(configured(tmp_path / "run", tiny_sd_model, subject, {"clip": str(models.clip)}, {}))
    assert run("fit", config) != 0
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_dino_named_as_clip_and_a_broken_photo_are_refused(tmp_path, tiny_sd_model, subject, models, capsys):
    config = configured(tmp_path / "run", tiny_sd_model, subject, {"clip": str(models.dino)})
    assert run("fit", config) != 0
    assert "reads no text" in capsys.readouterr().err
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    (photos / "p0.png").write_bytes((photos / "p0.png").read_bytes()[:200])
    config = configured(tmp_path / "run", tiny_sd_model, subject, {"clip": str(models.clip), "photos": str(photos)})
    assert run("fit", config) != 0
    assert "p0.png" in capsys.readouterr().err


# the parts ------------------------------------------------------------------------------------------------------------


def test_a_copy_of_a_photo_is_found_and_told(tmp_path, subject, models):
    photos = photo_files(subject)
    Image.open(photos[1]).save(tmp_path / "copy.png")
    write_photos(tmp_path / "other", [(64, 64)], seed=9)
    drawn = [
        Drawn("a photo of sks dog", tmp_path / "copy.png", "previews/copy.png"),
        Drawn("a photo of sks dog", tmp_path / "other" / "p0.png", "previews/other.png"),
    ]
    scorer = Scorer(None, ImageEncoder(str(models.dino)), Wording.of("sks dog", None))
    known = scorer.photos(photos)
    found = scorer.score(drawn, known, known.closest_pair)
    copy = found["nearest"][0]
    assert (copy["photo"], found["alarms"]) == (photos[1].name, ["previews/copy.png"])
    assert copy["cosine"] == pytest.approx(1, abs=1e-5)
    assert "prompt_fidelity" not in found and "preservation" not in found  # no CLIP, no picture of the class


def test_the_encoder_comes_home_also_after_an_exception(models):
    encoder, places = ImageEncoder(str(models.dino)), []
    encoder._model = types.SimpleNamespace(to=lambda device: places.append(str(device)))  # pyright: ignore

    def work():
        with encoder.on("meta"):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        work()
    assert places == ["meta", "cpu"] and str(encoder.device) == "cpu"


def test_wording():
    wording = Wording.of("sks dog", None)
    assert (wording.noun, wording.read("sks dog on a beach")) == ("dog", "dog on a beach")
    assert wording.is_of_subject("a sks dog") and not wording.is_of_subject("a dog")
    assert Wording.of("sks", "dog").noun == "dog"
    with pytest.raises(ValueError, match="no class in it"):
        Wording.of("sks", None)


def test_summary_is_numpys():
    values = [0.1, -0.4, 0.3, 0.3]
    said = summary(values)
    assert said == pytest.approx({"min": -0.4, "mean": np.mean(values), "max": 0.3, "std": np.std(values)})


def test_nearest_photos_by_loops():
    made, looks = torch.eye(3)[[2, 0]], torch.eye(3)
    drawn = [Drawn("x", None, name) for name in ("a", "b")]  # pyright: ignore[reportArgumentType]
    found = nearest_photos(drawn, made, Photos(("p", "q", "r"), looks, None))
    assert [(one["image"], one["photo"], one["cosine"]) for one in found] == [("a", "r", 1), ("b", "p", 1)]


def test_one_photo_has_no_pair():
    photos = Photos(("p",), torch.eye(3)[:1], None)
    assert photos.closest_pair is None and photos.mutual_similarity is None


def test_the_front_is_what_no_other_beats():
    draw = random.Random(1)
    names = ("subject_fidelity", "preservation")
    for _ in range(200):
        of = {step: {name: draw.randint(0, 3) for name in names} for step in range(1, 8)}
        kept = front(of, names)

        def better(a, b, of=of):
            """a is at least as good as b in all."""
            return of[a][names[0]] >= of[b][names[0]] and of[a][names[1]] <= of[b][names[1]]

        for step in of:
            beats = [other for other in kept if other != step and better(other, step)]
            assert bool(beats) != (step in kept)  # each one left out is beaten by one of the front, each kept by none


def test_crowding_is_that_of_the_paper():
    names = ["subject_fidelity", "preservation"]
    of = {1: (0.0, 0.0), 2: (0.1, 0.2), 3: (0.5, 0.6), 4: (1.0, 2.0)}
    found = crowding({step: dict(zip(names, values, strict=True)) for step, values in of.items()}, names)
    assert (found[1], found[4]) == (math.inf, math.inf)
    assert found[2] == pytest.approx(0.5 + 0.6 / 2)
    assert found[3] == pytest.approx(0.9 + 1.8 / 2)


def test_the_plot_shows_each_score_with_its_levels():
    of = {"subject_fidelity": 0.2, "preservation": 0.1}
    rows = [
        {"step": step, "models": {"raw": of, "base": {"subject_fidelity": 0.1}}, "photos": {"mutual_similarity": 0.4}}
        for step in (1, 2)
    ]
    figure = score_figure(rows)
    assert [len(axes.lines) for axes in figure.axes] == [3, 1]
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2]
    with pytest.raises(ValueError, match="nothing to draw"):
        score_figure([{"step": 1, "models": {"raw": {}}}])


def test_every_score_has_a_direction():
    assert set(HIGHER_IS_BETTER) == ONE_NUMBER
