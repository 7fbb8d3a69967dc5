"""What is special about Flux.2 klein: its shift, its guidance, its chat template."""

from __future__ import annotations

import math
from typing import Any

import pytest
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from dreamlit.families import Flux2Klein
from dreamlit.flow import EmpiricalShift
from dreamlit.previewing import Sampling
from tests.family_cases import loaded


@pytest.fixture
def folder(family_folders: Any) -> Any:
    return family_folders("klein")


@pytest.mark.parametrize("steps", [4, 10, 50, 200])
@pytest.mark.parametrize("tokens", [16, 1024, 4096, 4300, 4301, 9000])
def test_the_shift_is_the_pipelines(tokens: int, steps: int):
    assert EmpiricalShift(steps=steps).at(tokens) == pytest.approx(math.exp(compute_empirical_mu(tokens, steps)))


def test_training_meets_the_noise_of_the_usual_number_of_steps(folder: Any, family_folders: Any):
    base, distilled = Flux2Klein(str(folder)), Flux2Klein(str(family_folders("klein_distilled")))
    for family, steps in ((base, 50), (distilled, 4)):
        shift = family.process().sized((1, 32, 64, 96)).shift
        assert shift == pytest.approx(math.exp(compute_empirical_mu(32 * 48, steps)))
    assert Flux2Klein(str(folder), shift=2.0).process().sized((1, 32, 64, 96)).shift == 2.0


def test_the_distilled_model_is_drawn_without_guidance(folder: Any, family_folders: Any):
    base, distilled = Flux2Klein(str(folder)), Flux2Klein(str(family_folders("klein_distilled")))
    assert [Sampling(4).of(family).guidance_scale for family in (base, distilled)] == [4.0, 1.0]
    assert [Sampling(4).of(family).forwards(family) for family in (base, distilled)] == [8, 4]


def test_a_negative_prompt_is_refused_because_the_pipeline_takes_none(folder: Any):
    (fault,) = Sampling(4, negative_prompt="blurry").model_faults(Flux2Klein(str(folder)))
    assert "'blurry'" in fault and "Flux2KleinPipeline takes none" in fault


def test_a_long_caption_is_named_without_the_words_of_the_template(folder: Any):
    family = loaded(Flux2Klein(str(folder)))
    with pytest.warns(UserWarning, match="it will not see 'dog dog") as caught:
        family.encode_prompts(["dog " * 600])
    assert "think" not in str(caught[0].message)
