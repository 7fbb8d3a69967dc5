"""DeepFloyd IF: pixels in place of latents, the small image that stage II is told of, and both stages in a row."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from dreamlit.families import DeepFloydI, DeepFloydII
from dreamlit.previewing import Picture, Sampling, draw
from dreamlit.types import Batch
from tests.family_cases import complaint, stock
from tests.runs import base_config, fit, run, write_photos

PROMPT = "a photo of sks dog"


@pytest.fixture
def first(family_folders):
    return family_folders("if1")


@pytest.fixture
def second(family_folders):
    return family_folders("if2")


def batch(keys: list[str], pixels: torch.Tensor) -> Batch:
    count, shape = len(keys), pixels.shape
    ones = torch.ones(count)
    return Batch(
        pixels, torch.zeros(shape), torch.zeros(shape), ones.long(), {}, ones.view(-1, 1, 1, 1),
        ones.long(), ones, torch.zeros(count, 6), keys,
    )  # fmt: skip


def pixels(count: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# pixels ---------------------------------------------------------------------------------------------------------------


def test_pixels_are_their_own_latents(first):
    family, given = DeepFloydI(str(first)), pixels(2)
    assert torch.equal(family.encode_pixels(given), given)
    assert torch.equal(family.decode(given), given) and torch.equal(family.quick_decoder()(given), given)
    assert (family.stride, family.side_multiple) == (1, 2)
    for wrong in (torch.zeros(1, 4, 8, 8), torch.full((1, 3, 8, 8), 255.0), torch.full((1, 3, 8, 8), float("nan"))):
        with pytest.raises(ValueError, match="expected"):
            family.encode_pixels(wrong)


def test_an_autoencoder_does_nothing_and_is_refused(first):
    assert "vae does nothing" in complaint(DeepFloydI(str(first), vae=str(first)))


def test_prompts_are_read_in_lower_case(first):
    family = DeepFloydI(str(first))
    family.load("text_encoders")
    one, two = (
        family.encode_prompts([text])["prompt_embeds"] for text in ("A Photo of SKS dog ", "a photo of sks dog")
    )
    assert torch.equal(one, two) and one.shape[1] == 77


# the small image ------------------------------------------------------------------------------------------------------


def test_the_noise_on_the_small_image_belongs_to_the_sample_alone(second):
    family, given = DeepFloydII(str(second)), pixels(3)
    whole = family.conditioned(batch(["a#0", "b#0", "b#1"], given), seed=7).conditioning
    alone = family.conditioned(batch(["b#0"], given[1:2]), seed=7).conditioning
    for name, value in alone.items():
        assert torch.equal(value[0], whole[name][1])
    other = family.conditioned(batch(["b#0"], given[1:2]), seed=8).conditioning
    assert not torch.equal(other["low_resolution"], alone["low_resolution"])
    assert whole["noise_level"][1] != whole["noise_level"][2]


def test_levels_cover_the_schedule_and_the_image_under_the_noise_is_the_photo_made_small(second):
    family, given = DeepFloydII(str(second)), pixels(1).expand(400, -1, -1, -1)
    told = family.conditioned(batch([f"a#{visit}" for visit in range(400)], given), seed=0).conditioning
    level = told["noise_level"]
    assert level.min() < 30 and level.max() > 970
    assert np.histogram(level.numpy(), bins=4, range=(0, 1000))[0].min() > 70
    small = functional.interpolate(given[:1], (8, 8), mode="bilinear", antialias=True, align_corners=False)
    large = functional.interpolate(small, (32, 32), mode="bilinear", align_corners=True)
    alpha, sigma = family.noising().alpha_sigma(level)
    noise = (told["low_resolution"] - alpha * large) / sigma
    assert abs(float(noise.mean())) < 0.01 and float(noise.std()) == pytest.approx(1, abs=0.01)


def test_training_meets_what_sampling_shows(second):
    """At the same level, the pipeline's enlarged image and ours have the same signal."""
    family = DeepFloydII(str(second))
    scheduler = stock(second).image_noising_scheduler
    alpha, sigma = family.noising().alpha_sigma(torch.tensor([0, 250, 999]))
    torch.testing.assert_close(alpha.flatten().square(), scheduler.alphas_cumprod[[0, 250, 999]], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(sigma.square() + alpha.square(), torch.ones_like(alpha))


def test_the_small_image_reaches_the_denoiser(second):
    family = DeepFloydII(str(second))
    family.load("denoiser", "text_encoders")
    given = batch(["a#0", "b#0"], pixels(2))
    texts = family.encode_prompts([PROMPT] * 2)
    told = family.conditioned(dataclasses.replace(given, conditioning=texts), seed=1).conditioning
    x_t, t = pixels(2, seed=5), torch.tensor([10, 900])
    with torch.no_grad():
        answer = family.predict(x_t, t, told, given.frame)
        for name in ("low_resolution", "noise_level"):
            other = {**told, name: told[name].flip(0)}
            assert (family.predict(x_t, t, other, given.frame) - answer).abs().max() > 1e-3


# images ---------------------------------------------------------------------------------------------------------------


def test_both_stages_draw_as_the_stock_pipelines_do_in_a_row(first, second):
    family = DeepFloydII(str(second), stage_one=str(first))
    family.check()
    assert family.side_multiple == 8
    ((_, ours),) = draw(family.pipeline(), [Picture(PROMPT, 3, 64, 96)], Sampling(3).of(family))
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 3, "guidance_scale": 4.0, "clean_caption": False, "generator": generator}
    small = stock(first)(PROMPT, width=16, height=24, output_type="pt", **options).images
    theirs = stock(second)(PROMPT, image=small, width=64, height=96, **options).images[0]
    assert ours.size == (64, 96)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_previews_of_stage_two_enlarge_photos_that_were_made_small(tmp_path, second, capsys):
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    config = base_config(tmp_path / "run", second, photos)
    config["model"]["family"]["class_path"] = "DeepFloydII"
    preview = {"prompts": ["never drawn"], "steps": 2, "seeds": [1]}
    config["trainer"]["callbacks"] = [{"class_path": "ValidationPreview", "init_args": preview}]
    root = fit(config)
    made = root / "previews" / "step-000004" / "raw" / "000-00.png"
    assert Image.open(made).size == (64, 64)
    assert json.loads(Image.open(made).info["dreamlit"])["noise_level"] == 250
    config["trainer"]["callbacks"] = []
    assert run("sample", config, "--prompt", PROMPT) == 2
    assert "set model.family.stage_one" in capsys.readouterr().err


def test_wrong_options_are_refused(second):
    assert "noise_level 1000" in complaint(DeepFloydII(str(second), noise_level=1000))
    assert "stage_one: " in complaint(DeepFloydII(str(second), stage_one="/nowhere/at/all"))
    assert "set family to DeepFloydII" in complaint(DeepFloydI(str(second)))
