"""Stable Diffusion and SDXL: what CLIP prompts, UNets and DDPM schedules bring with them."""

from __future__ import annotations

import pathlib
import shutil
import warnings
from typing import Any

import jsonargparse
import pytest
import torch

from dreamlit.errors import ModelError
from dreamlit.families import SDXL, Family
from tests.family_cases import (
    LONG,
    PROMPTS,
    UNETS,
    change,
    complaint,
    image,
    loaded,
    predicted,
    state,
    stock,
    stock_embeds,
)
from tests.tiny import script

pytestmark = [pytest.mark.filterwarnings("ignore:caption"), pytest.mark.usefixtures("own_memo")]


@pytest.fixture(params=UNETS)
def folder(request: pytest.FixtureRequest, family_folders: Any) -> pathlib.Path:
    return family_folders(request.param)


def test_short_names_and_all_options_work_in_a_configuration(folder: pathlib.Path, kind: type[Family]):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Family, "family")
    settings = [f"--family={kind.__name__}", f"--family.path={folder}", "--family.dtype=bfloat16"]
    settings += ["--family.clip_skip=1", "--family.compile=true"]
    made: Any = parser.instantiate_classes(parser.parse_args(settings))["family"]
    assert type(made) is kind
    assert (made.dtype, vars(made)["clip_skip"], made.compile) == ("bfloat16", 1, True)


def test_a_long_caption_is_told_once_with_what_is_lost(family: Family):
    with pytest.warns(UserWarning, match="77") as told:
        family.encode_prompts([LONG, "dog", LONG])
    assert len(told) == 1
    assert "152 tokens" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        family.encode_prompts([LONG])
        family.encode_prompts(["dog " * 75])  # with the marks of start and end exactly 77


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


def test_size_conditioning_reaches_only_sdxl(family: Family):
    x_t, t, frame = state()
    conditioning = family.encode_prompts(PROMPTS[:2])
    plain = family.predict(x_t, t, conditioning, frame)
    for place in range(6):
        other = frame.clone()
        other[:, place] += 200
        assert torch.equal(plain, family.predict(x_t, t, conditioning, other)) == (not isinstance(family, SDXL))


def test_channels_last_changes_the_memory_and_nothing_else(folder: pathlib.Path, kind: Any, family: Family):
    other = loaded(kind(str(folder), channels_last=True))
    other.prepare_denoiser()
    assert other.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    torch.testing.assert_close(predicted(other), predicted(family), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_blocks_change_nothing(family_folders: Any):
    plain, compiled = (loaded(SDXL(str(family_folders("sdxl")), compile=flag)) for flag in (False, True))
    compiled.prepare_denoiser()
    with torch.no_grad():
        torch.testing.assert_close(predicted(compiled), predicted(plain), atol=1e-4, rtol=1e-4)


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
def test_an_option_that_does_nothing_for_a_folder_is_refused(family_folders: Any, option: str):
    options: Any = {option: "x"}
    assert f"{option} 'x' does nothing" in complaint(SDXL(str(family_folders("sdxl")), **options))


def test_pure_noise_needs_a_model_that_predicts_v(family_folders: Any):
    assert "prediction_type" in complaint(SDXL(str(family_folders("sdxl")), zero_terminal_snr=True))
    SDXL(str(family_folders("sdxl")), zero_terminal_snr=True, prediction_type="v_prediction").check()


def test_a_model_of_another_noise_process_is_refused(family_folders: Any, tmp_path: pathlib.Path):
    """Playground 2.5 is an SDXL in all but its scheduler."""
    import diffusers

    model = pathlib.Path(shutil.copytree(family_folders("sdxl"), tmp_path / "edm"))
    diffusers.EDMDPMSolverMultistepScheduler().save_pretrained(model / "scheduler")
    change(model / "model_index.json", scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"])
    assert "EDMDPMSolverMultistepScheduler" in complaint(SDXL(str(model)))


def test_an_own_sampler_without_zero_snr_is_replaced(own: pathlib.Path, kind: Any):
    change(own / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler")
    change(own / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    assert type(kind(str(own), zero_terminal_snr=False).scheduler()).__name__ == "PNDMScheduler"
    assert type(kind(str(own), zero_terminal_snr=True).scheduler()).__name__ == "DDIMScheduler"


def test_the_pipeline_decodes_in_float32_under_autocast(family_folders: Any):
    """SDXL's autoencoder overflows in float16: its pictures would be black."""
    pipeline, seen = SDXL(str(family_folders("sdxl"))).pipeline(), []
    pipeline.vae.decoder.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        image(pipeline)
    assert seen == [torch.float32]


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
