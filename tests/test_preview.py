"""Previews: what they show is what the files hold, they change nothing, and their failures cost nothing."""

import gc
import json
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from PIL import Image

from dreamlit import in_the_making
from dreamlit.callbacks.preview import ValidationPreview
from dreamlit.errors import ConfigError, DataError, ModelError
from dreamlit.families import SD, quick
from dreamlit.images import save_image
from dreamlit.previewing import SAMPLERS, Picture, Sampling, draw, parse_size, sampler_of
from dreamlit.prompts import BUILT_IN, LISTS, THEMES, all_prompts
from dreamlit.recipes import read_recipe
from dreamlit.training_cli import parts_of
from runs import assert_same_state, base_config, checkpoint, fit, merged, run, write_config, write_photos
from tiny import script

PROMPTS = ["a photo of {subject}", "{subject} in the snow"]
QUICK = {"prompts": PROMPTS, "subject": "sks dog", "sizes": ["64x64"], "seeds": [3], "steps": 2, "guidance_scale": 1.0}
LR = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}}  # so that a few steps show
EMA = {"class_path": "EMA", "init_args": {"decay": 0.5}}
STEPS = {"checkpoint.every_n_steps": 1, "trainer.max_steps": 2, "model.optimizer": LR}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3)


@pytest.fixture(scope="module")
def toybox():
    import dreamlit.toybox

    folder = dreamlit.toybox.__path__[0] + "/weights"
    return types.SimpleNamespace(model=f"{folder}/model", taesd=f"{folder}/taesd")


def configured(root, model, photos, preview, *more, **changes):
    config = base_config(root, model, photos)
    config["model"]["family"]["class_path"] = "SD"
    config["model"]["adapter"]["init_args"]["dropout"] = 0.2
    callbacks = [{"class_path": "ValidationPreview", "init_args": {**QUICK, **preview}}] if preview is not None else []
    return merged(config, {**STEPS, "trainer.callbacks": [*callbacks, *more], **changes})


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def recipe(path):
    return json.loads(Image.open(path).info["dreamlit"])


def previews(root, *parts):
    return root.joinpath("previews", *parts)


FULL = {
    "prompts": PROMPTS[1:],
    "sizes": ["64x64", "96x64"],
    "seeds": [3, 4],
    "sampler": "dpm",
    "guidance_scale": 3.0,
    "guidance_rescale": 0.5,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_sd_model, photos):
    """A run with every option on, and the same run without a preview."""
    home = tmp_path_factory.mktemp("previewed")
    options = {**FULL, "negative_prompt": "blurry", "every_n_steps": 1, "at_start": True}
    options |= {"validation_preview": True, "validation_preview_steps": 1}
    config = configured(home / "run", tiny_sd_model, photos, options, EMA, {"class_path": "EventLog"})
    plain = configured(home / "plain" / "run", tiny_sd_model, photos, None, EMA)
    return types.SimpleNamespace(config=config, root=fit(config), plain=fit(plain))


# it changes nothing ---------------------------------------------------------------------------------------------------


def test_training_with_previews_is_the_same_to_the_last_bit(done):
    for name in ("run.safetensors", "run-ema.safetensors"):
        assert (done.root / name).read_bytes() == (done.plain / name).read_bytes()
    for key in ("state_dict", "optimizer_states", "loops"):
        assert_same_state(checkpoint(done.root, 2)[key], checkpoint(done.plain, 2)[key])
    assert not previews(done.plain).exists()


# what is shown is true ------------------------------------------------------------------------------------------------


def test_each_step_has_images_of_raw_and_average_and_the_base_is_made_once(done):
    folders = sorted(path.name for path in previews(done.root).iterdir())
    assert folders == ["base", "step-000000", "step-000001", "step-000002"]
    names = {f"000-{number:02d}.png" for number in range(4)}
    assert {path.name for path in previews(done.root, "base").glob("*.png")} == names
    assert not previews(done.root, "step-000000", "ema").exists()  # not updated yet
    for model in ("raw", "ema"):
        assert {path.name for path in previews(done.root, "step-000002", model).glob("*.png")} == names
    base, start, raw, ema = (
        pixels(previews(done.root, *folder, "000-02.png"))
        for folder in (("base",), ("step-000000", "raw"), ("step-000002", "raw"), ("step-000002", "ema"))
    )
    assert raw.shape == (64, 96, 3)
    assert np.array_equal(base, start)  # a fresh adapter changes nothing
    assert min(np.abs(raw - base).max(), np.abs(ema - base).max(), np.abs(raw - ema).max()) > 1
    said = recipe(previews(done.root, "step-000002", "raw", "000-02.png"))
    assert (said["prompt"], said["seed"], said["width"], said["height"]) == ("sks dog in the snow", 3, 96, 64)
    assert (said["adapter"], said["step"], said["sampler"]) == ("run-step-000002.safetensors", 2, "dpm")


@pytest.mark.parametrize(
    "image",
    ["step-000002/raw/000-02.png", "step-000001/ema/000-01.png", "base/000-00.png", "step-000001/raw/000-03.png"],
)
def test_sample_makes_a_preview_again_to_the_last_bit_from_the_exported_file(done, tmp_path, image):
    path = previews(done.root, image)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*another one.*")
        assert run("sample", done.config, "--from_recipe", str(path), "--output", str(tmp_path)) == 0
    assert np.array_equal(pixels(tmp_path / path.name), pixels(path))


def test_sample_with_the_options_of_a_preview_makes_the_same_images(done, tmp_path):
    options = {
        "steps": 2,
        "guidance_scale": 3.0,
        "guidance_rescale": 0.5,
        "sampler": "dpm",
        "negative_prompt": "blurry",
    }
    options |= {"width": 64, "height": 64, "seed": 3, "count": 2, "adapter": "ema", "output": str(tmp_path)}
    args = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert run("sample", done.config, "--prompt", "sks dog in the snow", *args) == 0
    for name in ("000-00.png", "000-01.png"):
        assert np.array_equal(pixels(tmp_path / name), pixels(previews(done.root, "step-000002", "ema", name)))


def test_other_weights_than_the_recipes_are_said(done, tmp_path):
    path, other = previews(done.root, "step-000001", "raw", "000-00.png"), str(done.root / "run.safetensors")
    args = ("--from_recipe", str(path), "--output", str(tmp_path), "--adapter", other)
    with pytest.warns(UserWarning, match=r"not those of the recipe"):
        assert run("sample", done.config, *args) == 0
    assert not np.array_equal(pixels(tmp_path / "000-00.png"), pixels(path))


def test_the_grid_shows_each_model_side_by_side(done):
    grid = pixels(previews(done.root, "step-000002", "grid.png"))
    places = []
    for folder in (("base",), ("step-000002", "raw"), ("step-000002", "ema")):
        image = pixels(previews(done.root, *folder, "000-02.png"))
        corners = np.argwhere((grid[:-63, :-95] == image[0, 0]).all(-1))
        found = [tuple(at) for at in corners if np.array_equal(grid[at[0] : at[0] + 64, at[1] : at[1] + 96], image)]
        assert len(found) == 1
        places += found
    assert len({row for row, _ in places}) == 1
    assert [column for _, column in places] == sorted(column for _, column in places)


# images in the making -------------------------------------------------------------------------------------------------


def told(root):
    return [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]


def test_the_grid_has_the_recipe_of_each_of_its_images_inside(done):
    path = previews(done.root, "step-000002", "grid.png")
    inside = recipe(path)["grid"]
    shown = [*previews(done.root, "step-000002").glob("*/*.png"), *previews(done.root, "base").glob("*.png")]
    assert inside == {image.relative_to(done.root).as_posix(): recipe(image) for image in shown}
    with pytest.raises(DataError, match=r"a grid of 12 images; give one of them, such as previews/base/000-00.png"):
        read_recipe(path)


def test_images_in_the_making_are_told_in_order_and_lie_on_disk(done):
    events = [record["data"] for record in told(done.root) if record["event"] == "preview"]
    made = 4 * (1 + 1 + 2 + 2)  # the base once, raw at three steps, its average at two
    assert len(events) == 2 * made
    assert [event["sampler_step"] for event in events] == [1, 2] * made
    assert {event["of"] for event in events} == {2}
    assert len({event["path"] for event in events}) == len(events)
    assert all(pixels(done.root / event["path"]).shape[2] == 3 for event in events)
    images = [record["data"]["images"] for record in told(done.root) if record["event"] == "images"]
    assert [len(shown) for shown in images] == [1 + 2 * 4, 1 + 3 * 4, 1 + 3 * 4]
    assert images[-1][0]["path"] == "previews/step-000002/grid.png"
    assert all((done.root / image["path"]).is_file() for shown in images for image in shown)


@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_twenty_steps_shown_every_five_are_5_10_15_20_and_the_last_is_the_image(tmp_path, sampler, kind):
    """The default is PNDM, which takes a call more; at the last step the predicted x0 is what is decoded."""
    model = script().make("sd", tmp_path / "model", prediction_type=kind)
    if sampler is None:
        config = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
        config |= {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": True}
        (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        index = json.loads((model / "model_index.json").read_text())
        (model / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "PNDMScheduler"]}))
    pipeline, seen = SD(str(model)).pipeline(), []
    pictures, sampling = [Picture("a dog", 1, 64, 64), Picture("a cat", 2, 64, 64)], Sampling(20, 1.0, sampler=sampler)
    watch = lambda drawn, number, x0: seen.append((number, x0))  # noqa: E731
    watched = [image for _, image in draw(pipeline, pictures, sampling, batch_size=2, watch=watch)]
    assert [number for number, _ in seen if number % 5 == 0] == [5, 10, 15, 20]
    alone = [image for _, image in draw(pipeline, pictures, sampling, batch_size=2)]
    assert [a.tobytes() for a in watched] == [a.tobytes() for a in alone]
    if sampler is not None:  # PNDM ends with a mean of several predictions
        decoded = pipeline.vae.decode(seen[-1][1] / pipeline.vae.config.scaling_factor).sample
        for image, values in zip(watched, decoded, strict=True):
            exact = np.asarray(image).astype(int)
            share = 1 if sampler in ("euler", "dpm", "unipc") else 255  # DDIM ends at the first noise level, not at 0
            assert np.abs(exact - np.asarray(in_the_making.as_image(values.detach())).astype(int)).max() <= share


def test_quick_decoders_show_the_picture(toybox):
    """On a trained model: both look like what the autoencoder itself decodes, the tiny one more so."""
    from dreamlit.toybox.scenes import draw_scene

    scenes = torch.stack([torch.from_numpy(draw_scene(seed, size=(64, 64)).picture) for seed in range(6)])
    family, tiny = SD(toybox.model), SD(toybox.model, tiny_vae=toybox.taesd)
    tiny.check()
    family.load("vae")
    latents = family.encode_pixels(scenes.permute(0, 3, 1, 2).float() / 127.5 - 1)
    exact, alike = family.decode(latents), {}
    for name, each in (("linear", family), ("tiny", tiny)):
        shown = each.quick_decoder()(latents)
        assert shown.shape == exact.shape and shown.dtype == torch.float32
        of_cells = (torch.nn.functional.avg_pool2d(values, 4).flatten(1) for values in (shown, exact))
        pairs = zip(*of_cells, strict=True)
        alike[name] = min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)
    assert alike["tiny"] > 0.9 and alike["linear"] > 0.5


def test_the_linear_map_is_exact_where_the_autoencoder_is_linear():
    true = torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.4, -0.1], [-0.6, 0.2, 0.7], [0.1, 0.2, -0.3]])

    class Linear:
        stride = 4

        def encode_pixels(self, values):
            colours = torch.nn.functional.avg_pool2d(values, 4)
            return torch.einsum("bchw,kc->bkhw", colours, torch.linalg.pinv(true).T.contiguous())

    state = torch.get_rng_state()
    weights = quick.fitted_map(Linear())  # pyright: ignore[reportArgumentType]
    colours = torch.rand(1, 3, 2, 2) * 0 + torch.tensor([0.2, -0.4, 0.6]).view(1, 3, 1, 1)
    torch.set_rng_state(state)
    shown = quick.linear_decoder(weights, 4)(
        Linear().encode_pixels(colours.repeat_interleave(4, 2).repeat_interleave(4, 3))
    )
    assert torch.allclose(shown, colours.mean((2, 3), keepdim=True).expand_as(shown), atol=1e-4)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/nowhere/taesd", "no such folder"),
        ("model/vae", "holds AutoencoderKL, not an AutoencoderTiny"),
        ("taesd", "has 4 pixels a cell; this model's latents have 8"),
        ("broken", "damaged or incomplete"),
    ],
)
def test_a_wrong_tiny_autoencoder_is_named_before_anything_loads(tmp_path, toybox, tiny_sd_model, path, expected):
    model = toybox.model if path == "broken" else tiny_sd_model
    if path == "broken":
        shutil.copytree(toybox.taesd, tmp_path / "broken")
        weights = tmp_path / "broken" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        path = str(tmp_path / "broken")
    elif not path.startswith("/"):
        path = toybox.taesd.replace("taesd", path)
    with pytest.raises(ModelError, match=expected):
        SD(str(model), tiny_vae=path).check()


# memory ---------------------------------------------------------------------------------------------------------------


def prepared(tmp_path, model, photos, **options):
    """A module in training, a preview, and a trainer that is enough for it."""
    config = write_config(tmp_path / "run.yaml", configured(tmp_path / "run", model, photos, None))
    module, _ = parts_of(str(config))
    module.configure_model()
    fixed = {"default_root_dir": str(tmp_path / "run"), "callbacks": [], "precision_plugin": Precision()}
    fixed |= {
        "global_step": 1,
        "global_rank": 0,
        "world_size": 1,
        "is_global_zero": True,
        "progress_bar_callback": None,
    }
    trainer = types.SimpleNamespace(**fixed, strategy=types.SimpleNamespace(barrier=lambda name: None))
    preview = ValidationPreview(**{**QUICK, **options})
    preview._planned = preview._pictures(module)
    return module, preview, trainer


@pytest.mark.parametrize(("cycles", "loaded"), [(50, True), (4, False)])
def test_previews_leave_nothing_in_memory(tmp_path, tiny_sd_model, photos, cycles, loaded):
    """Fifty times with the parts loaded, which is quicker, and a few times with parts that come and go."""
    options = {"validation_preview": True, "validation_preview_steps": 1, "steps": 1, "prompts": PROMPTS[:1]}
    module, preview, trainer = prepared(tmp_path, tiny_sd_model, photos, **options, models=["raw"])
    if loaded:
        module.family.load("vae", "text_encoders")
    for _ in range(2):  # what the libraries keep for good
        preview._preview(trainer, module)

    def held():
        gc.collect()
        objects = gc.get_objects()
        tensors = [each for each in objects if type(each) in (torch.Tensor, torch.nn.Parameter)]
        modules = sum(isinstance(each, torch.nn.Module) for each in objects)
        return len(tensors), sum(each.nbytes for each in tensors), modules, len(objects)

    before = held()
    for _ in range(cycles):
        preview._preview(trainer, module)
    after = held()
    assert preview.failures == 0 and preview.previews == cycles + 2
    assert after[:3] == before[:3]
    assert after[3] - before[3] < 25  # of all Python objects, fewer than one for each of fifty previews
    if not loaded:
        with pytest.raises(RuntimeError, match="vae"):
            module.family.part("vae")


# its failures cost nothing --------------------------------------------------------------------------------------------


def failing(*args, **kwargs):
    raise torch.OutOfMemoryError("no memory left")


@pytest.mark.parametrize("place", ["dreamlit.callbacks.preview_share.draw", "dreamlit.callbacks.preview_share.grid"])
def test_failing_previews_are_one_warning_and_a_counter(tmp_path, tiny_sd_model, photos, monkeypatch, place):
    monkeypatch.setattr(place, failing)
    config = configured(tmp_path / "run", tiny_sd_model, photos, {"every_n_steps": 1, "models": ["raw"]})
    with pytest.warns(UserWarning, match="ValidationPreview") as caught:
        assert run("fit", config) == 0
    lines = [str(warning.message) for warning in caught if "ValidationPreview" in str(warning.message)]
    assert len(lines) == 2 and "no memory left" in lines[0] and "2 of 2 previews" in lines[1]
    assert (tmp_path / "run" / "run.safetensors").is_file()


def test_images_in_the_making_that_cannot_be_shown_cost_no_image(tmp_path, tiny_sd_model, photos, monkeypatch):
    options = {"validation_preview": True, "validation_preview_steps": 1, "models": ["raw"]}
    module, preview, trainer = prepared(tmp_path, tiny_sd_model, photos, **options)
    monkeypatch.setattr("dreamlit.callbacks.preview_share.Share._stream", failing)
    with pytest.warns(UserWarning, match="is not whole.*no memory left"):
        preview._preview(trainer, module)
    assert {path.name for path in previews(tmp_path / "run", "step-000001").rglob("*.png")} == {
        "000-00.png", "001-00.png", "grid.png",
    }  # fmt: skip


def test_an_image_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(self, file, **options):
        file.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / "image.png")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_rehearsal_shows_at_once_and_a_wrong_setting_ends_the_run(
    tmp_path, tiny_sd_model, photos, monkeypatch, capsys
):
    seen = []

    def broken(*args, **kwargs):
        seen.append(1)
        raise ModelError("the tiny autoencoder is of another model")

    monkeypatch.setattr("dreamlit.callbacks.preview.draw", broken)
    assert run("fit", configured(tmp_path / "run", tiny_sd_model, photos, {})) == 2
    assert "tiny autoencoder" in capsys.readouterr().err and len(seen) == 1
    monkeypatch.setattr("dreamlit.callbacks.preview.draw", failing)
    with pytest.warns(UserWarning, match="rehearsal failed.*no memory left"):
        assert run("fit", configured(tmp_path / "two" / "run", tiny_sd_model, photos, {"at_end": True})) == 0
    assert previews(tmp_path / "two" / "run", "step-000002", "grid.png").is_file()


def test_a_resumed_run_reuses_the_base_images_and_makes_what_is_missing(tmp_path, tiny_sd_model, photos):
    config = configured(tmp_path / "run", tiny_sd_model, photos, {"every_n_steps": 2, "at_end": False})
    root = fit(config)
    before = {path: path.stat().st_mtime_ns for path in previews(root, "base").glob("*.png")}
    shutil.rmtree(previews(root, "step-000002"))  # as if the run had been killed in the middle of it
    fit(merged(config, {"trainer.max_steps": 3}), "--ckpt_path", "last")
    assert previews(root, "step-000002", "grid.png").is_file() and not previews(root, "step-000003").exists()
    assert before and {path: path.stat().st_mtime_ns for path in previews(root, "base").glob("*.png")} == before
    other = merged(config, {"trainer.max_steps": 4})
    other["trainer"]["callbacks"][0]["init_args"]["steps"] = 1
    fit(other, "--ckpt_path", "last")
    assert recipe(previews(root, "base", "000-00.png"))["num_inference_steps"] == 1


def test_a_trial_leaves_nothing_behind(tmp_path, tiny_sd_model, photos):
    fit(configured(tmp_path / "run", tiny_sd_model, photos, {}, **{"trainer.fast_dev_run": True}))
    assert not previews(tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_share_the_images_out_and_both_end_though_one_fails(tmp_path, tiny_sd_model, photos):
    (tmp_path / "sabotage.py").write_text(
        "from lightning.pytorch import Callback\nfrom dreamlit.callbacks import preview_share\n\n\n"
        "class Sabotage(Callback):\n    def on_train_batch_end(self, trainer, *args):\n"
        "        if (trainer.global_rank, trainer.global_step) == (1, 2):\n            preview_share.draw = None\n"
    )
    options = {"every_n_steps": 1, "at_end": False, "validation_preview": True, "validation_preview_steps": 2}
    more = [{"class_path": "EventLog"}, {"class_path": "sabotage.Sabotage"}]
    config = configured(tmp_path / "run", tiny_sd_model, photos, options, *more)
    path = write_config(tmp_path / "two.yaml", merged(config, {"trainer.devices": 2, "trainer.strategy": "ddp"}))
    command = [sys.executable, "-m", "dreamlit", "fit", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is not whole") == 1
    events = [record["data"] for record in told(tmp_path / "run") if record["event"] == "preview"]
    for step, images in ((1, {"000-00.png", "001-00.png"}), (2, {"000-00.png"})):
        folder = previews(tmp_path / "run", f"step-{step:06d}")
        assert {p.name for p in folder.glob("raw/*.png")} == images
        assert (folder / "grid.png").is_file()
        assert len({event["prompt"] for event in events if event["step"] == step}) == len(images)
    one = previews(tmp_path / "run", "step-000001", "raw", "001-00.png")
    assert run("sample", config, "--from_recipe", str(one), "--output", str(tmp_path / "again")) == 0
    assert np.array_equal(pixels(tmp_path / "again" / one.name), pixels(one))


def test_who_listens_hears_of_every_image_and_may_fail(tmp_path, tiny_sd_model, photos):
    module, preview, trainer = prepared(tmp_path, tiny_sd_model, photos, models=["raw"])
    heard = []
    preview.listeners += [failing, lambda trainer, module, made: heard.append(made)]
    with pytest.warns(UserWarning, match="who looks at the previews failed.*no memory left"):
        preview._preview(trainer, module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preview._preview(trainer, module)
    assert preview.listener_failures == 2
    ((prompt, path, told), _) = heard[1].images("raw")
    assert (heard[1].step, heard[1].shown, prompt) == (1, ("raw",), "a photo of sks dog")
    assert told == "previews/step-000001/raw/000-00.png" and path == tmp_path / "run" / told and path.is_file()


# samplers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_solves_the_equation_of_a_perfect_denoiser(name):
    """For data x0 ~ N(0, s^2) the best denoiser is known, and the exact path is x_t = x_T sqrt(var_t / var_T).

    s = 3 is larger than what DDIM clips to unless it is told that these are latents.
    """
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler

    spread, shape = 3.0, (1, 4, 8, 8)
    schedule: dict = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = sampler_of(PNDMScheduler(**schedule).config, name)
    scheduler.set_timesteps(100)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    start = float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])])
    first = x * (start**0.5 if name == "euler" else 1)  # Euler's sample is x_t / alpha
    for t in scheduler.timesteps:
        squared = float(scheduler.alphas_cumprod[int(t)])
        x_t = scheduler.scale_model_input(x, t)
        eps = (1 - squared) ** 0.5 * x_t / (squared * spread**2 + 1 - squared)
        x = scheduler.step(eps, t, x).prev_sample
    exact = first * spread / (start * spread**2 + 1 - start) ** 0.5
    assert float((x - exact).abs().max()) < 0.05 * float(exact.abs().max())


# settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"prompts": [], "subject": None}, "there are no prompts"),
        ({"prompts": [" "]}, "none of them empty"),
        ({"subject": None}, "needs subject"),
        ({"prompts": ["a dog"]}, "subject would do nothing"),
        ({"prompts": ["a {class}"]}, "only thing in braces"),
        ({"prompts": ["a {subject"]}, "only thing in braces"),
        ({"library": ["place"]}, "did you mean 'places'"),
        ({"library": ["nowhere.yaml"]}, "nowhere.yaml cannot be read"),
        ({"sizes": ["64"]}, "'64' is no size"),
        ({"sizes": ["0x64"]}, "is no size"),
        ({"sizes": []}, "give at least one"),
        ({"sizes": ["64x64", "64X64"]}, "each once"),
        ({"seeds": []}, "give at least one"),
        ({"seeds": [-1]}, "from 0"),
        ({"steps": 0}, "steps is 0"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_rescale": 2.0, "guidance_scale": 3.0}, "from 0 to 1"),
        ({"guidance_rescale": 0.5}, "guidance_rescale would do nothing"),
        ({"negative_prompt": "blurry"}, "negative_prompt would do nothing"),
        ({"sampler": "eular"}, "did you mean 'euler'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"models": ["average"]}, "allowed: base, raw, ema"),
        ({"models": []}, "name at least one"),
        ({"every_n_steps": 0}, "at least 1, or null"),
        ({"every_n_steps": None, "at_end": False}, "no preview would be made"),
        ({"validation_preview_steps": 1}, "needs validation_preview: true"),
        ({"validation_preview": True, "validation_preview_steps": 3}, "from 1 to steps"),
        ({"validation_preview": True}, "set validation_preview_steps"),
    ],
)
def test_a_wrong_setting_is_named(options, expected):
    with pytest.raises(ConfigError, match=expected):
        ValidationPreview(**{**QUICK, **options})


def test_all_faults_come_in_one_report():
    with pytest.raises(ConfigError) as caught:
        ValidationPreview(prompts=[""], steps=0, sizes=["x"], models=["average"], library=["place"])
    for part in ("none of them empty", "steps is 0", "'x' is no size", "models has", "did you mean 'places'"):
        assert part in str(caught.value)


def test_what_does_not_fit_the_run_is_named_before_the_denoiser_loads(
    tmp_path, tiny_sd_model, photos, monkeypatch, capsys
):
    monkeypatch.setattr("dreamlit.module.DreamBooth.configure_model", failing)
    options = {"sizes": ["60x64"], "models": ["raw", "ema"], "every_n_steps": 9, "at_end": False}
    assert run("fit", configured(tmp_path / "run", tiny_sd_model, photos, options)) == 2
    message = capsys.readouterr().err
    for part in ("width is 60", "has no EMA with preview", "every_n_steps is 9"):
        assert part in message


def test_a_pipeline_without_guidance_rescale_refuses_it(monkeypatch):
    import diffusers

    class Pipeline:
        def __call__(self, prompt, guidance_scale): ...

    monkeypatch.setattr(diffusers, "PlainPipeline", Pipeline, raising=False)
    family = types.SimpleNamespace(pipeline_class="PlainPipeline", guided=True, step_faults=lambda steps: [])
    assert "does not have" in next(Sampling(guidance_rescale=0.5).model_faults(family))
    assert list(Sampling().model_faults(family)) == []
    assert "no beta schedule" in next(Sampling(sampler="ddim").model_faults(family))


def test_the_library_has_both_lists_of_the_paper_and_every_prompt_names_the_subject():
    every = [text for theme in THEMES.values() for text in theme]
    assert len(every) == len(set(every)) == 35 and all(text.count("{subject}") == 1 for text in every)
    for name in LISTS:
        assert len(all_prompts(None, [name], "sks dog")) == 25
    assert not any("{" in text for name in BUILT_IN for text in all_prompts(None, [name], "sks dog"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("own.yaml", "- a photo of {subject}\n- '{subject} at sea'\n", ["a photo of x", "x at sea"]),
        ("own.json", '{"near": ["{subject}, close up"], "far": ["{subject} far away"]}', ["x, close up", "x far away"]),
        ("own.yaml", "- a {thing}\n", "only thing in braces"),
        ("own.yaml", "near: {subject}\n", "must be a list"),
        ("own.yaml", "- [", "cannot be read"),
        ("own.json", "", "must be a list"),
        ("own.json", "[]", "holds no prompts"),
        ("own.txt", "a dog", "did you mean|of your own"),
    ],
)
def test_a_library_of_ones_own_is_read_or_its_fault_named(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    if isinstance(expected, list):
        assert all_prompts(None, [str(tmp_path / name)], "x") == expected
        return
    with pytest.raises(ConfigError, match=expected):
        all_prompts(None, [str(tmp_path / name)], "x")


@pytest.mark.parametrize("text", ["64", "64x", "x64", "-64x64", "64x64x64", "64.5x64", ""])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="no size"):
        parse_size(text)
    assert parse_size(" 96 x 64 ") == (96, 64)


# recipes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error", "expected"),
    [
        ("", DataError, "holds no recipe"),
        ("{", DataError, "cannot be read"),
        ("[]", ConfigError, "no prompt(?s:.)*no seed"),
        ({"seed": "3"}, ConfigError, "seed is '3'"),
        ({"seed": True}, ConfigError, "seed is True"),
        ({"sampler": "best"}, ConfigError, "sampler is 'best'"),
        ({"num_inference_steps": 0}, ConfigError, "steps is 0"),
    ],
)
def test_a_broken_recipe_is_named(tmp_path, text, error, expected):
    whole = {"prompt": "a dog", "seed": 1, "num_inference_steps": 2, "guidance_scale": 1.0}
    text = json.dumps({**whole, **text}) if isinstance(text, dict) else text
    path = save_image(Image.new("RGB", (8, 8)), tmp_path / "image.png", text)
    with pytest.raises(error, match=expected):
        read_recipe(path)


def test_files_that_are_no_pictures_are_named(tmp_path):
    (tmp_path / "image.png").write_bytes(b"<html>")
    for path in (tmp_path / "image.png", tmp_path / "absent.png", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_recipe(path)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "give --prompt"),
        (("--prompt", "x", "--steps", "0", "--count", "0", "--sampler", "best"), "steps is 0(?s:.)*count is 0"),
        (("--prompt", "x", "--width", "60"), "width is 60"),
        (("--prompt", "x", "--negative_prompt", "y", "--guidance_scale", "1"), "negative_prompt would do nothing"),
        (("--from_recipe", "IMAGE", "--steps", "3"), "leave out --steps"),
        (("--from_recipe", "nowhere.png"), "nowhere.png"),
        (("--from_recipe", "START"), "the recipe names the adapter 'not exported'"),
        (("--from_recipe", "IMAGE", "--output", "FOLDER"), "would be overwritten"),
    ],
)
def test_sample_names_what_is_wrong_before_the_model_loads(done, monkeypatch, capsys, args, expected):
    import re

    monkeypatch.setattr("dreamlit.module.DreamBooth.configure_model", failing)
    image = previews(done.root, "step-000002", "raw", "000-00.png")
    places = {"IMAGE": image, "FOLDER": image.parent, "START": previews(done.root, "step-000000", "raw", "000-00.png")}
    assert run("sample", done.config, *(str(places.get(word, word)) for word in args)) == 2
    assert re.search(expected, capsys.readouterr().err)


def test_a_recipe_of_another_model_is_refused(done, tmp_path, capsys):
    image = previews(done.root, "base", "000-00.png")
    other = save_image(Image.open(image), tmp_path / "o.png", json.dumps({**recipe(image), "base_fingerprint": "abc"}))
    assert run("sample", done.config, "--from_recipe", str(other), "--output", str(tmp_path / "out")) == 2
    assert "another base model" in capsys.readouterr().err
