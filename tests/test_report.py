"""The report at the end of a run: what it shows is true, it changes nothing, and its failures cost nothing."""

import contextlib
import json
import random
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from PIL import Image

from dreamlit import curves, plots
from dreamlit.callbacks.report import RunReport, score_lines
from dreamlit.errors import ConfigError, DataError, ModelError
from dreamlit.export import load_into_adapter
from dreamlit.observing import base_denoiser, untouched
from dreamlit.toybox import CLIP
from dreamlit.training_cli import parts_of
from recorder import rows
from runs import assert_same_state, base_config, checkpoint, fit, merged, run, write_config, write_photos

PROMPT, CLASS = "a photo of sks dog", "a photo of a dog"
QUICK = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 1.0}
LR = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}}  # so that a few steps show


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny random DINO."""
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("encoders") / "dino"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(image_size=32, patch_size=8, **sizes)  # pyright: ignore[reportCallIssue]
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def configured(root, model, photos, report, adapter=None, **changes):
    config = base_config(root, model, photos)
    config["model"]["family"]["class_path"] = "SD"
    config["model"]["adapter"] = adapter or {"class_path": "LoRA", "init_args": {"rank": 4, "dropout": 0.2}}
    callbacks = [{"class_path": "RunReport", "init_args": {**QUICK, **report}}] if report else []
    fixed = {"model.optimizer": LR, "trainer.max_steps": 2, "trainer.callbacks": callbacks}
    return merged(config, {**fixed, "checkpoint.every_n_steps": 1, **changes})


def report_of(root, *parts):
    return root.joinpath("report", *parts)


def pixels(path):
    return np.asarray(Image.open(path))


def recipe(path):
    return json.loads(Image.open(path).info["dreamlit"])


def made_by(pipeline, prompt, seed, **options):
    options = {"width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 1.0, **options}
    return np.asarray(pipeline(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0])


# what it shows is true ------------------------------------------------------------------------------------------------


def test_images_before_are_the_base_models_and_those_after_the_exported_files(tmp_path, tiny_sd_model, photos, capsys):
    report = {"prompts": [PROMPT], "class_prompts": [CLASS], "seeds": [3, 4], "photos": str(photos)}
    config = configured(tmp_path / "run", tiny_sd_model, photos, report)
    root = fit(config)
    shown = capsys.readouterr().out
    module, _ = parts_of(str(write_config(tmp_path / "again.yaml", config)))
    base = module.family.fresh().pipeline()
    module.configure_model()
    load_into_adapter(str(root / "run.safetensors"), module.adapter)
    trained = module.pipeline()
    for row, prompt in enumerate((PROMPT, CLASS)):
        for number, seed in enumerate((3, 4)):
            name = f"{row:03d}-{number:02d}.png"
            before, after = pixels(report_of(root, "base", name)), pixels(report_of(root, "adapter", name))
            assert np.array_equal(before, made_by(base, prompt, seed))
            assert np.abs(after.astype(int) - made_by(trained, prompt, seed)).max() <= 1
            assert np.abs(after.astype(int) - before).max() > 1
            said = recipe(report_of(root, "adapter", name))
            assert (said["prompt"], said["seed"], said["adapter"]) == (prompt, seed, "run.safetensors")
            assert recipe(report_of(root, "base", name))["adapter"] == "none"
    block = shown[shown.index("report:") :]  # after the checkpoint's own lines: the file that it names is the last one
    for path in (root / "run.safetensors", report_of(root, "before-after.png"), report_of(root, "losses.png")):
        assert str(path) in block and path.is_file()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_images_of_the_base_of_full_weights_are_those_of_its_files(tmp_path, tiny_sd_model, photos, batch_size):
    report = {"prompts": [PROMPT, CLASS], "images_per_prompt": 2, "batch_size": batch_size}
    config = configured(tmp_path / "run", tiny_sd_model, photos, report, {"class_path": "Full"})
    root = fit(config)
    seed = recipe(report_of(root, "base", "001-01.png"))["seed"]
    base = parts_of(str(write_config(tmp_path / "again.yaml", config)))[0].family.pipeline()
    before, after = (pixels(report_of(root, name, "001-01.png")).astype(int) for name in ("base", "adapter"))
    assert np.abs(before - made_by(base, CLASS, seed)).max() <= 1
    assert np.abs(before - after).max() > 1


def test_the_negative_prompt_steers_both(tmp_path, tiny_sd_model, photos):
    report = {"prompts": [PROMPT], "seeds": [3], "guidance_scale": 4.0, "negative_prompt": "blurry"}
    root = fit(configured(tmp_path / "run", tiny_sd_model, photos, report))
    config = write_config(tmp_path / "again.yaml", configured(tmp_path / "run", tiny_sd_model, photos, report))
    base = parts_of(str(config))[0].family.pipeline()
    expected = made_by(base, PROMPT, 3, guidance_scale=4.0, negative_prompt="blurry")
    assert np.array_equal(pixels(report_of(root, "base", "000-00.png")), expected)
    assert not np.array_equal(expected, made_by(base, PROMPT, 3, guidance_scale=4.0))


def test_scores_are_those_of_the_images_in_the_folder(tmp_path, tiny_sd_model, photos, encoder, capsys):
    from dreamlit import encoders, metrics

    report = {"prompts": [PROMPT], "class_prompts": [CLASS], "photos": str(photos), "encoder": str(encoder)}
    root = fit(configured(tmp_path / "run", tiny_sd_model, photos, report))
    scores = json.loads(report_of(root, "scores.json").read_text())["scores"]
    read = encoders.ImageEncoder(encoder)
    real = read.embed_images([Image.open(path) for path in sorted(photos.iterdir())])
    for model in ("base", "adapter"):
        folder = report_of(root, model)
        subject, of_class = (
            read.embed_images([Image.open(path) for path in sorted(folder.glob(f"{row:03d}-*.png"))]) for row in (0, 1)
        )
        assert scores["subject_fidelity"][model] == pytest.approx(metrics.subject_fidelity(subject, real), abs=1e-6)
        assert scores["preservation"][model] == pytest.approx(metrics.preservation(of_class, real), abs=1e-6)
        assert scores["diversity"][model] == pytest.approx(metrics.diversity(subject, [PROMPT] * 2), abs=1e-6)
    assert scores["subject_fidelity"]["photos"] == pytest.approx(metrics.mutual_similarity(real), abs=1e-6)
    assert "prompt_fidelity" not in scores  # DINO reads no text
    one = scores["preservation"]
    assert f"preservation: {one['base']:.3f} -> {one['adapter']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "read"), [({}, PROMPT), ({"subject": "sks dog"}, "a photo of dog")])
def test_clip_reads_no_rare_word_where_it_is_told_the_subject(tmp_path, tiny_sd_model, photos, options, read):
    from dreamlit import encoders, metrics

    report = {"prompts": [PROMPT], "photos": str(photos), "encoder": str(CLIP), **options}
    root = fit(configured(tmp_path / "run", tiny_sd_model, photos, report))
    scores = json.loads(report_of(root, "scores.json").read_text())["scores"]["prompt_fidelity"]
    clip = encoders.ImageEncoder(CLIP)
    for model in ("base", "adapter"):
        images = clip.embed_images([Image.open(path) for path in sorted(report_of(root, model).glob("000-*.png"))])
        expected = metrics.prompt_fidelity(images, clip.embed_texts([read] * len(images)))
        assert scores[model] == pytest.approx(expected, abs=1e-6)


def test_score_lines_say_before_after_and_the_ceiling():
    lines = score_lines({"subject_fidelity": {"base": 0.25, "adapter": 0.5, "photos": 0.75}})
    assert lines == ["  subject fidelity: 0.250 -> 0.500 (photos among themselves 0.750)"]
    assert score_lines(None) == []


def test_losses_of_a_resumed_run_are_those_of_all_its_steps(tmp_path, tiny_sd_model, photos):
    record = {"class_path": "recorder.Recorder", "init_args": {"path": str(tmp_path / "seen.jsonl")}}
    config = configured(tmp_path / "run", tiny_sd_model, photos, {"prompts": [PROMPT], "seeds": [1]})
    config["trainer"]["callbacks"].append(record)
    config = merged(config, {"trainer.accumulate_grad_batches": 2})
    fit(config)
    fit(merged(config, {"trainer.max_steps": 4}), "--ckpt_path", "last")
    batches = [row["loss"] for row in rows(tmp_path / "seen.jsonl")]
    expected = {step + 1: sum(batches[2 * step : 2 * step + 2]) for step in range(4)}  # Lightning has halved each
    logged = curves.logged_losses(tmp_path / "run", until_step=4)
    assert logged["loss"] == pytest.approx(expected, rel=1e-5)
    assert logged["loss/instance"] == pytest.approx(expected, rel=1e-5) and not logged["loss/prior"]


def test_losses_are_drawn_where_nothing_is_logged(tmp_path, tiny_sd_model, photos, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "draw_losses", lambda path, root, seen, *rest: drawn.append(seen))
    record = {"class_path": "recorder.Recorder", "init_args": {"path": str(tmp_path / "seen.jsonl")}}
    config = configured(tmp_path / "run", tiny_sd_model, photos, {"prompts": [PROMPT], "seeds": [1]})
    config["trainer"]["callbacks"].append(record)
    fit(merged(config, {"trainer.logger": False, "trainer.accumulate_grad_batches": 2}))
    batches = [row["loss"] for row in rows(tmp_path / "seen.jsonl")]
    expected = {1: sum(batches[:2]), 2: sum(batches[2:])}  # Lightning has halved each
    assert drawn == [pytest.approx(expected, rel=1e-5)]


# it changes nothing ---------------------------------------------------------------------------------------------------


def test_training_with_a_report_is_the_same_to_the_last_bit(tmp_path, tiny_sd_model, photos, encoder):
    report = {"prompts": [PROMPT], "photos": str(photos), "encoder": str(encoder)}
    roots = []
    for name, options in (("without", None), ("with", report)):
        root = fit(configured(tmp_path / name / "run", tiny_sd_model, photos, options))
        roots.append(root)
    one, two = roots
    assert (one / "run.safetensors").read_bytes() == (two / "run.safetensors").read_bytes()
    for key in ("state_dict", "optimizer_states", "loops"):
        assert_same_state(checkpoint(one, 2)[key], checkpoint(two, 2)[key])
    assert report_of(two, "before-after.png").is_file() and not report_of(one).exists()


def prepared(tmp_path, model, photos):
    """A module in training with a LoRA that is not zero, and a trainer that is enough for sampling."""
    config = write_config(tmp_path / "run.yaml", configured(tmp_path / "run", model, photos, None))
    module, _ = parts_of(str(config))
    module.configure_model()
    module.train()
    module.denoiser.conv_in.eval()  # one part in another mode than the rest
    for number, parameter in enumerate(module.adapter.parameters().values()):
        parameter.data.normal_(generator=torch.Generator().manual_seed(number))
    return module, types.SimpleNamespace(progress_bar_callback=None, precision_plugin=Precision())


def outputs(module):
    """What the denoiser says, deterministically, without changing anything."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    x = torch.linspace(-1, 1, 4 * 64).reshape(1, 4, 8, 8)
    text = torch.linspace(-1, 1, 77 * module.denoiser.config.cross_attention_dim).reshape(1, 77, -1)
    with torch.no_grad():
        result = module.family.predict(x, torch.tensor([5]), {"prompt_embeds": text}, None, denoiser=module.denoiser)
    for part, training in modes.items():
        part.training = training
    return result


@pytest.mark.parametrize("fails", [None, "first", "second"])
def test_sampling_leaves_generators_modes_and_adapter_as_they_were(tmp_path, tiny_sd_model, photos, fails, monkeypatch):
    module, trainer = prepared(tmp_path, tiny_sd_model, photos)
    report = RunReport(prompts=[PROMPT], seeds=[1], **QUICK)
    draw, calls = report._draw, []

    def noisy(pipeline, *rest):
        calls.append(pipeline)
        torch.rand(3), np.random.rand(3), random.random()
        if fails == ("first" if len(calls) == 1 else "second"):
            raise RuntimeError("out of memory")
        return draw(pipeline, *rest)

    monkeypatch.setattr(report, "_draw", noisy)
    modes, before = {part: part.training for part in module.modules()}, outputs(module)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with pytest.raises(RuntimeError, match="out of memory") if fails else contextlib.nullcontext():
        report._sample(trainer, module)  # pyright: ignore[reportArgumentType]
    assert len(calls) == (1 if fails == "first" else 2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1]) and random.getstate() == states[2]
    assert {part: part.training for part in module.modules()} == modes
    assert torch.equal(outputs(module), before)
    with pytest.raises(RuntimeError, match="vae"):  # its memory is free again
        module.family.part("vae")


def test_parts_that_were_loaded_before_stay_loaded(tmp_path, tiny_sd_model, photos):
    module, _ = prepared(tmp_path, tiny_sd_model, photos)
    module.family.load("vae")
    with untouched(module):
        module.family.load("text_encoders")
    assert module.family.part("vae") is not None
    with pytest.raises(RuntimeError, match="text_encoder"):
        module.family.part("text_encoder")


def test_an_error_inside_the_base_model_is_the_callers(tmp_path, tiny_sd_model, photos):
    module, _ = prepared(tmp_path, tiny_sd_model, photos)
    before = outputs(module)
    with pytest.raises(ModelError, match="mine"), base_denoiser(module):
        raise ModelError("mine")
    assert torch.equal(outputs(module), before)


def test_a_trial_leaves_nothing_behind(tmp_path, tiny_sd_model, photos):
    config = configured(tmp_path / "run", tiny_sd_model, photos, {"prompts": [PROMPT]})
    fit(merged(config, {"trainer.fast_dev_run": True}))
    assert not report_of(tmp_path / "run").exists()


@pytest.mark.slow
def test_with_two_processes_the_first_makes_the_report_and_both_end(tmp_path, tiny_sd_model, photos):
    report = {"prompts": [PROMPT], "seeds": [3]}
    config = configured(tmp_path / "run", tiny_sd_model, photos, report)
    two = merged(config, {"trainer.devices": 2, "trainer.strategy": "ddp"})
    path = write_config(tmp_path / "run.yaml", two)
    command = [sys.executable, "-m", "dreamlit", "fit", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report:\n") == 1 and "could not be made" not in done.stderr
    base = parts_of(str(path))[0].family.pipeline()
    assert np.array_equal(pixels(report_of(tmp_path / "run", "base", "000-00.png")), made_by(base, PROMPT, 3))


# its failures cost nothing --------------------------------------------------------------------------------------------


def failing(*args, **kwargs):
    raise torch.OutOfMemoryError("no memory left")


@pytest.mark.parametrize(
    ("place", "left"),
    [
        ("dreamlit.callbacks.report.RunReport._draw", ["losses.png", "scores.json"]),
        ("dreamlit.metrics.score_subject", ["before-after.png", "losses.png", "scores.json"]),
        ("dreamlit.plots.before_after", ["losses.png", "scores.json", "base", "adapter"]),
        ("dreamlit.curves.loss_figure", ["before-after.png", "scores.json"]),
        ("dreamlit.callbacks.report.exported", []),
    ],
)
def test_a_failure_is_a_warning_and_the_rest_is_made(
    tmp_path, tiny_sd_model, photos, encoder, capsys, monkeypatch, place, left
):
    monkeypatch.setattr(place, failing)
    report = {"prompts": [PROMPT], "photos": str(photos), "encoder": str(encoder)}
    config = configured(tmp_path / "run", tiny_sd_model, photos, report)
    with pytest.warns(UserWarning, match=r"RunReport: .* could not be made .*no memory left"):
        assert run("fit", config) == 0
    assert (tmp_path / "run" / "run.safetensors").is_file()
    assert {path for path in left if not report_of(tmp_path / "run", path).exists()} == set()
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    made = [line.split(": ", 1)[1] for line in shown.out.partition("report:\n")[2].splitlines() if "/report/" in line]
    assert made == [path for path in made if report_of(tmp_path, path).is_file()]  # it names only what is there


# wrong settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": ["a dog", "  "]}, "none of them empty"),
        ({"prompts": "a dog"}, "must be a list"),
        ({"class_prompts": [""]}, r"class_prompts is \[''\]"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"images_per_prompt": 0}, "images_per_prompt is 0"),
        ({"width": -64}, "width is -64"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"seeds": []}, "give at least one"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds": [-1]}, "from 0"),
        ({"seeds": [1], "images_per_prompt": 2}, "leave one out"),
        ({"negative_prompt": "blurry", "guidance_scale": 1.0}, "negative_prompt would do nothing"),
        ({"photos": "/nowhere/p"}, "no folder /nowhere/p"),
        ({"photos": __file__}, "no folder"),
        ({"subject": "sks dog"}, "subject does nothing without an encoder"),
        ({"subject": "sks", "encoder": "e", "photos": "p"}, "subject is 'sks'; give the rare word and the class"),
        ({"subject": "ohwx dog", "encoder": "e", "photos": "p"}, "subject is 'ohwx dog'; give .* as they stand in"),
        ({"encoder": "/nowhere/e"}, "(?s)needs photos.*/nowhere/e: no such folder"),
    ],
)
def test_a_wrong_setting_is_named(options, expected):
    with pytest.raises(ConfigError, match=expected):
        RunReport(**{"prompts": [PROMPT], **options})


def test_all_faults_come_in_one_report(tmp_path):
    (tmp_path / "notes.txt").write_text("no photo")
    with pytest.raises(ConfigError) as caught:
        RunReport(prompts=[], steps=0, photos=str(tmp_path), seeds=[])
    assert [part for part in ("prompts is empty", "steps is 0", "holds no image", "seeds is []")
            if part not in str(caught.value)] == []  # fmt: skip


def test_a_wrong_setting_ends_the_command_before_anything_loads(tmp_path, tiny_sd_model, photos, capsys, monkeypatch):
    monkeypatch.setattr("dreamlit.families.base.Family.load", failing)
    config = configured(tmp_path / "run", tiny_sd_model, photos, {"prompts": [PROMPT], "steps": 0})
    assert run("fit", config) == 2
    assert "steps is 0" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_what_does_not_fit_the_model_and_broken_files_are_named_before_the_denoiser_loads(
    tmp_path, tiny_sd_model, photos, encoder, capsys, monkeypatch
):
    shutil.copytree(encoder, tmp_path / "encoder")
    weights = tmp_path / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    mine = write_photos(tmp_path / "mine", [(64, 64)] * 2)
    (mine / "p1.png").write_bytes((mine / "p1.png").read_bytes()[:60])
    monkeypatch.setattr("dreamlit.module.DreamBooth.configure_model", failing)
    report = {"prompts": [PROMPT], "width": 60, "photos": str(mine), "encoder": str(tmp_path / "encoder")}
    assert run("fit", configured(tmp_path / "run", tiny_sd_model, photos, report)) == 2
    message = capsys.readouterr().err
    for part in ("width is 60", "multiple of 8", "p1.png", "encoder: ", "cannot be loaded"):
        assert part in message


# pictures -------------------------------------------------------------------------------------------------------------


def test_a_smoothed_constant_stays_and_a_span_of_one_changes_nothing():
    assert curves.smoothed([2.0] * 5, span=4) == pytest.approx([2.0] * 5)
    assert curves.smoothed([3.0, 1.0, 2.0], span=1) == [3.0, 1.0, 2.0]


def test_smoothing_is_the_mean_with_falling_weights():
    values, decay = [3.0, -1.0, 4.0, 1.5], 0.75
    weights = [decay**age for age in (3, 2, 1, 0)]
    assert curves.smoothed(values, span=4)[-1] == pytest.approx(np.average(values, weights=weights))


def test_the_loss_figure_shows_points_line_and_both_parts():
    losses = {"loss": {1: 1.0, 2: 3.0}, "loss/instance": {1: 1.0, 2: 2.0}, "loss/prior": {2: 0.5}}
    lines = [line for axes in curves.loss_figure(losses).axes for line in axes.lines]
    assert [list(line.get_ydata()) for line in lines] == [[1.0, 2.0], [1.0, 2.0], [0.5], [0.5]]
    assert [list(line.get_xdata()) for line in lines] == [[1, 2], [1, 2], [2], [2]]
    alone = curves.loss_figure({**losses, "loss/prior": {}}).axes[0]
    assert [list(line.get_ydata()) for line in alone.lines] == [[1.0, 3.0], curves.smoothed([1.0, 3.0], span=1)]
    with pytest.raises(ValueError, match="no loss"):
        curves.loss_figure({"loss": {}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("step,loss\n0,0.5\n1,nan\n2,0.25\n", {1: 0.5, 3: 0.25}),
        ("step,loss\n0,0.5\n1\n", {1: 0.5}),
        ("step,loss\n0,0.5\nx,1\n1,bad\n7,2.0\n", {1: 0.5}),
        ("", {}),
        ("loss/val,step\n0.5,3\n", {}),
    ],
)
def test_damaged_and_foreign_rows_of_a_log_are_left_out(tmp_path, text, expected):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.csv").write_text(text)
    assert curves.logged_losses(tmp_path, until_step=4)["loss"] == expected


def test_a_later_log_stands_over_an_earlier_one_in_the_order_of_numbers(tmp_path):
    for name, loss in (("logs", 1.0), ("logs-10", 10.0), ("logs-9", 9.0), ("logs-validate", 99.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(f"step,loss\n0,{loss}\n")
    assert curves.logged_losses(tmp_path, until_step=9)["loss"] == {1: 10.0}


def test_the_grid_has_photos_first_then_before_left_and_after_right():
    red, green, blue = (Image.new("RGB", (128, 128), colour) for colour in ("red", "lime", "blue"))
    grid = plots.before_after([plots.Row("a prompt", [red, red], [green, green])], [blue] * 7)
    values = np.asarray(grid).reshape(grid.height, grid.width, 3)
    where = {name: np.argwhere((values == colour).all(-1)) for name, colour in
             (("red", (255, 0, 0)), ("lime", (0, 255, 0)), ("blue", (0, 0, 255)))}  # fmt: skip
    assert [len(where[name]) for name in ("red", "lime", "blue")] == [2 * 128**2, 2 * 128**2, 4 * 128**2]
    assert where["blue"][:, 0].max() < where["red"][:, 0].min() == where["lime"][:, 0].min()
    assert where["red"][:, 1].max() < where["lime"][:, 1].min()


def test_large_images_are_scaled_down_and_keep_their_shape():
    image = Image.new("RGB", (1000, 500))
    assert plots.fitted(image, 100).size == (100, 50)
    assert plots.fitted(image, 400, 100).size == (200, 100)
    assert plots.fitted(image, 2000).size == (1000, 500)


def test_text_is_wrapped_into_its_width_and_nothing_is_lost():
    font, text = plots.text_font(), "ein größeres Bild von sks Hund\n am Strand " + "x" * 60
    lines = plots.wrapped(text, font, 120)
    assert all(font.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert plots.wrapped("", font, 120) == [""]


def test_photos_are_listed_by_name_and_a_broken_one_is_named(tmp_path):
    write_photos(tmp_path, [(32, 32)] * 2)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".p9.png").write_bytes(b"x")
    assert [path.name for path in plots.photo_files(tmp_path)] == ["p0.png", "p1.png"]
    (tmp_path / "p1.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"p1\.png"):
        plots.read_photo(tmp_path / "p1.png")
    assert plots.photo_files(None) == []
