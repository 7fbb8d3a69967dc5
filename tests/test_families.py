"""Every family against its own diffusers pipeline; the same tests run over all families of the package."""

from __future__ import annotations

import gc
import json
import pathlib
import shutil
import subprocess
import sys
import warnings
import weakref
from typing import Any

import huggingface_hub.constants
import jsonargparse
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamlit.errors import ModelError
from dreamlit.families import SD, SDXL, Family
from dreamlit.families.checks import concrete_families
from tests.tiny import hub_cache, script, tiny_sd, tiny_sdxl

MODELS: dict[str, tuple[type[Family], dict[str, object]]] = {
    "sd1": (SD, {}),
    "sd2": (SD, {"prediction_type": "v_prediction", "zero_terminal_snr": True}),
    "sdxl": (SDXL, {}),
}
MAKERS = {SD: tiny_sd, SDXL: tiny_sdxl}
pytestmark = pytest.mark.filterwarnings("ignore:caption")
LONG = "a photo of sks dog " * 30
PROMPTS = ["a photo of sks dog on the beach", "", "dog", LONG]
FRAME = (100, 140, 3, 7, 64, 96)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: MAKERS[kind](root / name, **options) for name, (kind, options) in MODELS.items()}


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, folders: dict[str, pathlib.Path]) -> pathlib.Path:
    return folders[request.param]


@pytest.fixture
def kind(folder: pathlib.Path) -> type[Family]:
    return MODELS[folder.name][0]


@pytest.fixture
def family(folder: pathlib.Path, kind: type[Family]) -> Family:
    return loaded(kind(str(folder)))


@pytest.fixture(autouse=True)
def own_memo(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def own(folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the model that a test may break."""
    return pathlib.Path(shutil.copytree(folder, tmp_path / folder.name))


def loaded(family: Family) -> Family:
    family.load("vae", "text_encoders", "denoiser")
    return family


def stock(folder: pathlib.Path, **options: Any) -> Any:
    """The pipeline as a user of diffusers would load it."""
    import diffusers

    pipeline = getattr(diffusers, MODELS[folder.name][0].pipeline_class).from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_embeds(pipeline: Any, prompts: list[str], **options: Any) -> list[torch.Tensor]:
    plain = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False, **options}
    embeds = pipeline.encode_prompt(prompts, **plain)
    return [embeds[0], *([embeds[2]] if len(embeds) == 4 else [])]


def size_options(family: type[Family]) -> dict[str, Any]:
    if family is not SDXL:
        return {}
    return {"original_size": FRAME[:2], "crops_coords_top_left": FRAME[2:4], "target_size": FRAME[4:]}


def state(batch: int = 2, height: int = 8, width: int = 8, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(batch, 4, height, width, generator=generator)
    return x_t, torch.tensor([999, 1, 500][:batch]), torch.tensor([FRAME] * batch)


def predicted(family: Family, **options: Any) -> torch.Tensor:
    x_t, t, frame = state(**options)
    return family.predict(x_t, t, family.encode_prompts(PROMPTS[: len(t)]), frame)


def image(pipeline: Any, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "pt", "generator": generator}
    return pipeline("a dog", **options).images.float()


def complaint(family: Family) -> str:
    with pytest.raises(ModelError) as caught:
        family.check()
    return str(caught.value)


# The contract ---------------------------------------------------------------------------------------------------------


def test_every_family_of_the_package_is_tested_here():
    ours = {kind for kind in concrete_families() if kind.__module__.startswith("dreamlit.")}
    assert ours == set(MAKERS)


def test_importing_the_families_imports_no_heavy_library():
    code = "import sys, dreamlit.families; print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_constructor_and_check_load_nothing(family: Family, folder: pathlib.Path, kind: type[Family]):
    fresh = kind(str(folder))
    fresh.check()
    with pytest.raises(RuntimeError, match="load"):
        _ = fresh.denoiser


def test_short_names_and_all_options_work_in_a_configuration(folder: pathlib.Path, kind: type[Family]):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Family, "family")
    settings = [f"--family={kind.__name__}", f"--family.path={folder}", "--family.dtype=bfloat16"]
    settings += ["--family.clip_skip=1", "--family.compile=true"]
    made: Any = parser.instantiate_classes(parser.parse_args(settings))["family"]
    assert type(made) is kind
    assert (made.dtype, vars(made)["clip_skip"], made.compile) == ("bfloat16", 1, True)


def test_everything_loaded_is_frozen(family: Family):
    names = [name for part in ("vae", "text_encoders", "denoiser") for name in family.components(part)]
    assert not any(value.requires_grad for name in names for value in family.part(name).parameters())


def test_loading_twice_keeps_the_object(family: Family):
    before = family.denoiser
    family.load("denoiser")
    assert family.denoiser is before


def test_unload_frees_the_memory(family: Family):
    names = [name for part in ("vae", "text_encoders", "denoiser") for name in family.components(part)]
    references = [weakref.ref(value) for name in names for value in family.part(name).parameters()]
    family.unload("vae", "text_encoders", "denoiser")
    gc.collect()
    assert references
    assert [reference for reference in references if reference() is not None] == []


def test_an_unknown_part_is_named(family: Family):
    with pytest.raises(ValueError, match="did you mean 'text_encoders'"):
        family.load("text_encoder")


# Prompts --------------------------------------------------------------------------------------------------------------


def test_prompts_are_encoded_as_the_pipeline_does(family: Family, folder: pathlib.Path):
    ours = list(family.encode_prompts(PROMPTS).values())
    for mine, theirs in zip(ours, stock_embeds(stock(folder), PROMPTS), strict=True):
        assert mine.dtype == torch.float32
        assert not mine.requires_grad
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_a_prompt_is_encoded_the_same_alone_and_in_company(family: Family):
    together = family.encode_prompts(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        for name, value in family.encode_prompts([prompt]).items():
            torch.testing.assert_close(value[0], together[name][row], atol=1e-5, rtol=1e-5)


def test_different_prompts_differ(family: Family):
    for value in family.encode_prompts(["a dog", "a cat"]).values():
        assert (value[0] - value[1]).abs().max() > 0.1


def test_a_long_caption_is_told_once_with_what_is_lost(family: Family):
    with pytest.warns(UserWarning, match="77") as told:
        family.encode_prompts([LONG, "dog", LONG])
    assert len(told) == 1
    assert "152 tokens" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        family.encode_prompts([LONG])
        family.encode_prompts(["dog " * 75])  # with the marks of start and end exactly 77


def test_no_prompt_is_an_error(family: Family):
    with pytest.raises(ValueError, match="no prompt"):
        family.encode_prompts([])


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_clip_skip_is_the_pipelines(folder: pathlib.Path, kind: Any, clip_skip: int):
    family = kind(str(folder), clip_skip=clip_skip)
    family.load("text_encoders")
    pipeline = stock(folder)
    if not hasattr(pipeline.text_encoder, "text_model"):  # the pipeline expects transformers' older class
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    expected = stock_embeds(pipeline, PROMPTS, clip_skip=clip_skip)
    for mine, theirs in zip(family.encode_prompts(PROMPTS).values(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_clip_skip_beyond_the_layers_is_refused(folder: pathlib.Path, kind: Any):
    assert "has only 3 layers" in complaint(kind(str(folder), clip_skip=3))
    with pytest.raises(ModelError, match="from 0 up"):
        kind(str(folder), clip_skip=-1)


# The denoiser ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64)])
def test_predict_is_the_pipelines_own_call(family: Family, folder: pathlib.Path, height: int, width: int):
    pipeline, calls = stock(folder), []

    def record(module: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        t = options["timestep"] if "timestep" in options else inputs[1]
        calls.append((inputs[0] if inputs else options["sample"], t, output[0]))

    pipeline.unet.register_forward_hook(record, with_kwargs=True)
    prompts = ["a photo of sks dog on the beach", "dog"]
    sizes = size_options(type(family))
    pipeline(
        prompts, height=height, width=width, num_inference_steps=2, guidance_scale=1.0, output_type="latent", **sizes
    )
    assert len(calls) == 2
    conditioning = family.encode_prompts(prompts)
    for x_t, t, expected in calls:
        ours = family.predict(x_t, t.expand(2), conditioning, torch.tensor([FRAME, FRAME]))
        assert ours.shape == (2, 4, height // 8, width // 8)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_predictions_of_a_batch_are_independent(family: Family):
    x_t, t, frame = state(3)
    frame[1] = torch.tensor([512, 512, 0, 0, 512, 512])
    conditioning = family.encode_prompts(PROMPTS[:3])
    together = family.predict(x_t, t, conditioning, frame)
    for row in range(3):
        one = slice(row, row + 1)
        alone = family.predict(x_t[one], t[one], {k: v[one] for k, v in conditioning.items()}, frame[one])
        torch.testing.assert_close(alone, together[one], atol=1e-5, rtol=1e-5)


def test_size_conditioning_reaches_only_sdxl(family: Family):
    x_t, t, frame = state()
    conditioning = family.encode_prompts(PROMPTS[:2])
    plain = family.predict(x_t, t, conditioning, frame)
    for place in range(6):
        other = frame.clone()
        other[:, place] += 200
        assert torch.equal(plain, family.predict(x_t, t, conditioning, other)) == (not isinstance(family, SDXL))


def test_predict_takes_another_denoiser(family: Family, folder: pathlib.Path, kind: type[Family]):
    other = kind(str(folder))
    other.load("denoiser")
    with torch.no_grad():
        other.denoiser.conv_out.bias += 1  # type: ignore[union-attr, operator]
    x_t, t, frame = state()
    conditioning = family.encode_prompts(PROMPTS[:2])
    difference = family.predict(x_t, t, conditioning, frame, denoiser=other.denoiser) - predicted(family)
    torch.testing.assert_close(difference, torch.ones_like(difference), atol=1e-5, rtol=0)


def test_lower_precision_is_near_and_comes_back_as_float32(folder: pathlib.Path, kind: type[Family], family: Family):
    low = loaded(kind(str(folder), dtype="bfloat16"))
    assert {value.dtype for value in low.denoiser.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in low.part("vae").parameters()} == {torch.float32}
    ours, exact = predicted(low), predicted(family)
    assert ours.dtype == torch.float32
    assert 0 < (ours - exact).abs().max() < 0.1 * exact.abs().max()
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(low.encode_pixels(pixels), family.encode_pixels(pixels))


def gradient(family: Family) -> torch.Tensor:
    family.denoiser.requires_grad_(True)
    predicted(family).square().mean().backward()
    return torch.cat([value.grad.flatten() for value in family.denoiser.parameters() if value.grad is not None])


def test_gradient_checkpointing_recomputes_and_changes_nothing(folder: pathlib.Path, kind: Any, family: Family):
    saving = loaded(kind(str(folder), gradient_checkpointing=True))
    saving.prepare_denoiser()
    counts = []
    for each in (family, saving):
        calls: list[int] = []
        each.denoiser.mid_block.resnets[-1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))  # type: ignore[union-attr, index]
        each.denoiser.train()
        counts.append((gradient(each), len(calls)))
    (plain, once), (again, twice) = counts
    assert (once, twice) == (1, 2)
    torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-4)


def test_channels_last_changes_the_memory_and_nothing_else(folder: pathlib.Path, kind: Any, family: Family):
    other = loaded(kind(str(folder), channels_last=True))
    other.prepare_denoiser()
    assert other.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    torch.testing.assert_close(predicted(other), predicted(family), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_blocks_change_nothing(folders: dict[str, pathlib.Path]):
    plain, compiled = (loaded(SDXL(str(folders["sdxl"]), compile=flag)) for flag in (False, True))
    compiled.prepare_denoiser()
    with torch.no_grad():
        torch.testing.assert_close(predicted(compiled), predicted(plain), atol=1e-4, rtol=1e-4)


# The process and the pipeline -----------------------------------------------------------------------------------------


def test_the_process_is_the_models_own_schedule(family: Family, folder: pathlib.Path):
    scheduler, process = stock(folder).scheduler, family.process()
    t = torch.arange(1000)
    alpha, sigma = process.alpha_sigma(t)
    torch.testing.assert_close(alpha.flatten() ** 2, scheduler.alphas_cumprod, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(sigma.flatten() ** 2, 1 - scheduler.alphas_cumprod, atol=1e-6, rtol=1e-6)
    assert process.prediction_type == scheduler.config.prediction_type
    assert (float(process.snr(torch.tensor([999]))) == 0) == (folder.name == "sd2")


def test_the_schedule_can_be_overridden(folder: pathlib.Path, kind: Any):
    family = kind(str(folder), prediction_type="v_prediction", zero_terminal_snr=True)
    assert family.process().prediction_type == "v_prediction"
    assert float(family.process().snr(torch.tensor([999]))) == 0
    config = family.scheduler().config
    assert (config.prediction_type, config.rescale_betas_zero_snr, config.timestep_spacing) == (
        "v_prediction",
        True,
        "trailing",
    )
    plain = kind(str(folder), prediction_type="epsilon", zero_terminal_snr=False).process()
    assert plain.prediction_type == "epsilon"
    assert float(plain.snr(torch.tensor([999]))) > 0


@pytest.mark.parametrize("option", ["revision", "single_file_config"])
def test_an_option_that_does_nothing_for_a_folder_is_refused(folders: dict[str, pathlib.Path], option: str):
    options: Any = {option: "x"}
    assert f"{option} 'x' does nothing" in complaint(SDXL(str(folders["sdxl"]), **options))


def test_pure_noise_needs_a_model_that_predicts_v(folders: dict[str, pathlib.Path]):
    assert "prediction_type" in complaint(SDXL(str(folders["sdxl"]), zero_terminal_snr=True))
    SDXL(str(folders["sdxl"]), zero_terminal_snr=True, prediction_type="v_prediction").check()


def test_a_model_of_another_noise_process_is_refused(folders: dict[str, pathlib.Path], tmp_path: pathlib.Path):
    """Playground 2.5 is an SDXL in all but its scheduler."""
    import diffusers

    model = pathlib.Path(shutil.copytree(folders["sdxl"], tmp_path / "edm"))
    diffusers.EDMDPMSolverMultistepScheduler().save_pretrained(model / "scheduler")
    change(model / "model_index.json", scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"])
    assert "EDMDPMSolverMultistepScheduler" in complaint(SDXL(str(model)))


def test_an_own_sampler_without_zero_snr_is_replaced(own: pathlib.Path, kind: Any):
    change(own / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler")
    change(own / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    assert type(kind(str(own), zero_terminal_snr=False).scheduler()).__name__ == "PNDMScheduler"
    assert type(kind(str(own), zero_terminal_snr=True).scheduler()).__name__ == "DDIMScheduler"


def test_the_pipeline_paints_what_the_stock_pipeline_paints(folder: pathlib.Path, kind: type[Family]):
    torch.testing.assert_close(image(kind(str(folder)).pipeline()), image(stock(folder)), atol=1e-5, rtol=1e-5)


def test_the_pipeline_uses_the_live_denoiser(family: Family):
    plain = image(family.pipeline())
    with torch.no_grad():
        family.denoiser.conv_out.weight.mul_(2)  # type: ignore[union-attr, operator]
    pipeline = family.pipeline(family.denoiser)
    assert pipeline.unet is family.denoiser
    assert (image(pipeline) - plain).abs().max() > 1e-3


def test_the_pipeline_works_in_low_precision(folder: pathlib.Path, kind: type[Family]):
    low = kind(str(folder), dtype="bfloat16")
    low.pipeline()
    painted = image(low.pipeline())
    assert painted.isfinite().all()
    assert (painted - image(stock(folder))).abs().mean() < 0.1


def test_the_pipeline_decodes_in_float32_under_autocast(folders: dict[str, pathlib.Path]):
    """SDXL's autoencoder overflows in float16: its pictures would be black."""
    pipeline, seen = SDXL(str(folders["sdxl"])).pipeline(), []
    pipeline.vae.decoder.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        image(pipeline)
    assert seen == [torch.float32]


# Pixels ---------------------------------------------------------------------------------------------------------------


def test_latents_are_the_scaled_mode_and_decode_inverts_the_scaling(family: Family, folder: pathlib.Path):
    vae, pixels = stock(folder).vae, torch.rand(2, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        mode = vae.encode(pixels).latent_dist.mode()
        painted = vae.decode(mode).sample
    latents = family.encode_pixels(pixels)
    assert (latents.dtype, latents.device.type, latents.requires_grad) == (torch.float32, "cpu", False)
    assert latents.shape == (2, family.latent_channels, 64 // family.stride, 96 // family.stride)
    torch.testing.assert_close(latents, mode * vae.config.scaling_factor)
    torch.testing.assert_close(family.decode(latents), painted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"shift_factor": 0.5}, lambda mode, scale: (mode - 0.5) * scale),
        (
            {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [2.0, 2.0, 4.0, 4.0]},
            lambda mode, scale: (mode - column(1, 2, 3, 4)) * scale / column(2, 2, 4, 4),
        ),
    ],
)
def test_shift_and_statistics_of_the_autoencoder_are_honoured(own: pathlib.Path, kind: Any, config: Any, expected: Any):
    plain, pixels = kind(str(own)), torch.rand(1, 3, 64, 64) * 2 - 1
    plain.load("vae")
    scale = plain.part("vae").config.scaling_factor
    mode = plain.encode_pixels(pixels) / scale
    painted = plain.decode(mode * scale)
    change(own / "vae" / "config.json", **config)
    other = kind(str(own))
    other.load("vae")
    torch.testing.assert_close(other.encode_pixels(pixels), expected(mode, scale), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.decode(expected(mode, scale)), painted, atol=1e-4, rtol=1e-4)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 3, 60, 64), "8 divides"),
        (torch.zeros(3, 64, 64), "B, 3, H, W"),
        (torch.zeros(1, 4, 64, 64), "B, 3, H, W"),
        (torch.full((1, 3, 64, 64), 255.0), r"\[-1, 1\]"),
        (torch.full((1, 3, 64, 64), float("nan")), r"\[-1, 1\]"),
    ],
)
def test_wrong_pixels_are_refused(family: Family, pixels: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        family.encode_pixels(pixels)


def test_an_overflowing_autoencoder_is_an_error(family: Family):
    with torch.no_grad():
        family.part("vae").encoder.conv_out.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="option vae"):
        family.encode_pixels(torch.rand(1, 3, 64, 64))


def test_another_autoencoder_is_used(own: pathlib.Path, kind: Any, family: Family, tmp_path: pathlib.Path):
    for path in (own / "vae").glob("*.safetensors"):
        save_file({name: value * 1.1 for name, value in load_file(path).items()}, path)
    change(own / "vae" / "config.json", scaling_factor=0.5)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    plain = family.encode_pixels(pixels)
    results = []
    for vae in (own, own / "vae"):
        other = kind(str(family.files.path), vae=str(vae))
        other.check()
        other.load("vae")
        results.append(other.encode_pixels(pixels))
    assert torch.equal(*results)
    assert (results[0] - plain).abs().max() > 0.1


# Faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3])
def test_pixels_per_cell_are_the_autoencoders_own(own: pathlib.Path, kind: Any, folder: pathlib.Path, levels: int):
    """A model on a finer grid of latents: encoded at its own size, and no other model's autoencoder fits it."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    options: dict[str, Any] = {
        "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 4,
    }
    AutoencoderKL(**options).save_pretrained(own / "vae")
    fine = kind(str(own))
    fine.check()
    fine.load("vae")
    assert fine.stride == stock(own).vae_scale_factor == 2 ** (levels - 1) != kind(str(folder)).stride
    assert fine.encode_pixels(torch.zeros(1, 3, 64, 96)).shape == (1, 4, 64 // fine.stride, 96 // fine.stride)
    assert f"an autoencoder of {fine.stride} pixels a cell" in complaint(kind(str(folder), vae=str(own / "vae")))


def change(path: pathlib.Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def weights(folder: pathlib.Path) -> pathlib.Path:
    return next(folder.glob("*.safetensors"))


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


BREAKS = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json: no such file"),
    "index is no JSON": (lambda f: (f / "model_index.json").write_text("<html>"), "not readable as JSON"),
    "index is a list": (lambda f: (f / "model_index.json").write_text("[]"), "a JSON object is expected"),
    "component missing": (
        lambda f: change(f / "model_index.json", vae=[None, None]),
        "model_index.json has [None",
    ),
    "own code": (lambda f: change(f / "model_index.json", unet=["mine", "Net"]), "not a class of diffusers"),
    "no config": (lambda f: (f / "unet" / "config.json").unlink(), "config.json: no such file"),
    "inpainting": (lambda f: change(f / "unet" / "config.json", in_channels=9), "takes 9 channels, not 4"),
    "no weights": (lambda f: weights(f / "unet").unlink(), "no diffusion_pytorch_model.safetensors"),
    "cut weights": (lambda f: cut(weights(f / "text_encoder")), "damaged or incomplete"),
    "no header": (lambda f: weights(f / "vae").write_bytes(b"\xff" * 99), "damaged or incomplete"),
    "LFS pointer": (lambda f: weights(f / "vae").write_text("version https://git-lfs.github.com"), "git lfs pull"),
    "empty weights": (lambda f: weights(f / "vae").write_bytes(b""), "damaged or incomplete"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "none of vocab.json"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json: no such file"),
    "other target": (
        lambda f: change(f / "scheduler" / "scheduler_config.json", prediction_type="sample"),
        "predicts 'sample'",
    ),
    "no shard": (
        lambda f: (
            weights(f / "unet").rename(f / "unet" / "x"),
            (f / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}'),
        ),
        "the index of the shards names it",
    ),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_a_broken_folder_is_found_before_anything_loads(own: pathlib.Path, kind: Any, fault: str):
    breaks, message = BREAKS[fault]
    breaks(own)
    family = kind(str(own))
    assert message in complaint(family)
    assert family._loaded == {}


def test_all_faults_are_in_one_report(own: pathlib.Path, kind: Any):
    for fault in ("no weights", "cut weights", "no tokenizer"):
        BREAKS[fault][0](own)
    text = complaint(kind(str(own), clip_skip=9))
    assert [text.count(BREAKS[fault][1]) for fault in ("no weights", "cut weights", "no tokenizer")] == [1, 1, 1]
    assert "clip_skip 9" in text


def test_the_right_family_is_named(folders: dict[str, pathlib.Path]):
    assert "set family to SDXL" in complaint(SD(str(folders["sdxl"])))
    assert "set family to SD" in complaint(SDXL(str(folders["sd1"])))


def test_a_missing_variant_tells_what_is_there(folder: pathlib.Path, kind: Any):
    text = complaint(kind(str(folder), variant="fp16"))
    assert "no diffusion_pytorch_model.fp16.safetensors; there is diffusion_pytorch_model.safetensors" in text


def test_a_variant_is_loaded(folder: pathlib.Path, kind: Any, tmp_path: pathlib.Path):
    stock(folder, torch_dtype=torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert "set variant" in complaint(kind(str(tmp_path / "half")))
    family = kind(str(tmp_path / "half"), variant="fp16")
    family.check()
    family.load("denoiser", "vae")
    assert {value.dtype for value in family.denoiser.parameters()} == {torch.float32}
    assert len(family.fingerprint("denoiser")) == 32


def test_sharded_weights_are_loaded(own: pathlib.Path, kind: Any, family: Family):
    stock(own).unet.save_pretrained(own / "unet", max_shard_size="1MB")
    (own / "unet" / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    sharded = kind(str(own))
    sharded.check()
    assert torch.equal(predicted(loaded(sharded)), predicted(family))
    assert sharded.fingerprint("denoiser") != ""


def test_missing_tensors_are_an_error_not_random_numbers(own: pathlib.Path, kind: Any):
    for part in ("unet", "vae", "text_encoder"):
        path = weights(own / part)
        tensors = load_file(path)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, path, metadata={"format": "pt"})
    for part in ("vae", "text_encoders", "denoiser"):
        with pytest.raises(ModelError, match="lack 1 tensors"):
            kind(str(own)).load(part)


def test_weights_with_the_names_of_older_releases_are_loaded(own: pathlib.Path, kind: Any, family: Family):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for path in [weights(own / name) for name, _ in kind.text_encoder_names] + [weights(own / "vae")]:
        tensors = {}
        for key, value in load_file(path).items():
            for new, former in old.items() if "mid_block.attentions" in key else ():
                key = key.replace(f".{new}.", f".{former}.")
            is_clip = path.parent.name != "vae" and not key.startswith(("text_model.", "text_projection"))
            tensors[f"text_model.{key}" if is_clip else key] = value
        if path.parent.name != "vae":
            tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        save_file(tensors, path, metadata={"format": "pt"})
    aged = loaded(kind(str(own)))
    for mine, theirs in zip(
        aged.encode_prompts(["a dog"]).values(), family.encode_prompts(["a dog"]).values(), strict=True
    ):
        assert torch.equal(mine, theirs)
    pixels = torch.rand(1, 3, 64, 64)
    assert torch.equal(aged.encode_pixels(pixels), family.encode_pixels(pixels))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("./nowhere/at/all", "no such folder"),
        ("gone.safetensors", "no such file"),
        ("model.ckpt", "a pickle can run code"),
        ("someone/never-downloaded", "hf auth login"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_to_give(kind: Any, path: str, message: str, monkeypatch: Any):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert message in complaint(kind(path))


def test_a_hub_model_is_read_from_the_local_cache(
    folder: pathlib.Path, kind: Any, family: Family, tmp_path: Any, monkeypatch: Any
):
    snapshot = hub_cache(tmp_path, "me/tiny", folder, monkeypatch)
    moved = [(path, path.rename(tmp_path / str(number))) for number, path in enumerate(snapshot.rglob("*.safetensors"))]
    hub = kind("me/tiny", local_files_only=True, clip_skip=1)
    hub.check()  # asks for no weights
    with pytest.raises(ModelError, match="diffusion_pytorch_model"):
        hub.load("denoiser")
    with pytest.raises(ModelError, match=r"no diffusion_pytorch_model.safetensors; there is no weight file"):
        hub.fingerprint("vae")
    for path, place in moved:
        place.rename(path)
    hub = kind("me/tiny", local_files_only=True)
    assert torch.equal(predicted(loaded(hub)), predicted(family))
    assert hub.fingerprint("denoiser") == family.fingerprint("denoiser")
    assert kind(str(folder), vae="me/tiny", local_files_only=True).fingerprint("vae") == family.fingerprint("vae")
    with pytest.raises(ModelError, match="revision"):
        kind("me/tiny", revision="v9", local_files_only=True).load("vae")


def test_a_wrong_precision_is_refused(folder: pathlib.Path, kind: Any):
    with pytest.raises(ModelError, match="did you mean 'bfloat16'"):
        kind(str(folder), dtype="bfloat")


# The tiny models ------------------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_bytes(folder: pathlib.Path, tmp_path: pathlib.Path):
    kind, options = MODELS[folder.name]
    again, other = (MAKERS[kind](tmp_path / str(seed), **options, seed=seed) for seed in (0, 1))
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert all((folder / path).read_bytes() == (again / path).read_bytes() for path in files)
    assert weights(folder / "unet").read_bytes() != weights(other / "unet").read_bytes()


def test_making_models_leaves_the_global_generator_alone(tmp_path: pathlib.Path):
    before = torch.get_rng_state()
    tiny_sdxl(tmp_path / "model", seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_the_tokenizer_splits_unknown_words_and_keeps_known_ones(folder: pathlib.Path):
    tokenizer = stock(folder).tokenizer
    assert tokenizer.tokenize("a photo of Dog") == ["a</w>", "photo</w>", "of</w>", "dog</w>"]
    assert tokenizer.decode(tokenizer("zürich, 12 dogs?").input_ids, skip_special_tokens=True) == "zürich , 1 2 dogs ?"
    assert tokenizer.model_max_length == 77


def test_the_script_runs_from_the_command_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    script().main(["--family", "sd", "--output", str(tmp_path / "m"), "--single-file"])
    assert (tmp_path / "m" / "model_index.json").exists()
    assert (tmp_path / "m.safetensors").exists()
    assert str(tmp_path / "m") in capsys.readouterr().out
