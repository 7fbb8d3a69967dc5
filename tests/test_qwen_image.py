"""What is special about Qwen-Image: its template, its guidance, its sampler, layers that nobody reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dreamlit.adapters.targets import idle_layers
from dreamlit.families import QwenImage
from dreamlit.families.qwen_image import TOKENS, template
from dreamlit.previewing import Picture, Sampling, draw
from tests.family_cases import loaded, state


@pytest.fixture
def folder(family_folders: Any) -> Any:
    return family_folders("qwen_image")


def calls(folder: Any, **settings: Any) -> list[dict[str, Any]]:
    """What the pipeline is told when a picture is drawn."""
    told: list[dict[str, Any]] = []
    family = QwenImage(str(folder))
    pipeline = family.pipeline()

    def record(*, prompt: list[str], **given: Any) -> Any:
        told.append(given)
        return type(pipeline).__call__(pipeline, prompt, **given)

    record.vae_scale_factor, record.default_sample_size = 8, 128  # pyright: ignore[reportFunctionMemberAccess]
    record.scheduler = pipeline.scheduler  # pyright: ignore[reportFunctionMemberAccess]
    sampling = Sampling(2, **settings).of(family)
    assert len(list(draw(record, [Picture("a dog", 3, 64, 64)], sampling))) == 1
    return told


def test_the_guidance_is_the_pipelines_true_one_and_leads_away_from_nothing_in_particular(folder: Any):
    (told,) = calls(folder)
    assert told["true_cfg_scale"] == 4.0 and told["negative_prompt"] == [" "] and "guidance_scale" not in told
    (told,) = calls(folder, guidance_scale=2.5, negative_prompt="blurry")
    assert told["true_cfg_scale"] == 2.5 and told["negative_prompt"] == ["blurry"]
    (told,) = calls(folder, guidance_scale=1.0)
    assert told["true_cfg_scale"] == 1.0 and "negative_prompt" not in told


def test_one_step_is_refused_because_the_sampler_divides_by_zero(folder: Any):
    family = QwenImage(str(folder))
    assert "shift_terminal" in family.step_faults(1)[0] and not family.step_faults(2)


def test_a_long_caption_is_named_without_the_words_of_the_template(folder: Any):
    family = loaded(QwenImage(str(folder)))
    with pytest.warns(UserWarning, match=rf"and the text encoder reads {TOKENS}; it will not see 'dog dog") as caught:
        family.encode_prompts(["dog " * (TOKENS + 20)])
    assert "assistant" not in str(caught[0].message)


def test_the_template_and_its_dropped_tokens_are_the_pipelines(folder: Any):
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

    ahead, behind, dropped = template()
    pipeline = QwenImagePipeline.from_pretrained(str(folder))
    assert ahead + "{}" + behind == pipeline.prompt_template_encode
    assert dropped == pipeline.prompt_template_encode_start_idx == len(pipeline.tokenizer.encode(ahead))


def test_padding_beyond_the_longest_caption_changes_nothing(folder: Any):
    """Captions are cached at full length; what nobody in the batch needs is left out."""
    family = loaded(QwenImage(str(folder)))
    x_t, t, frame = state(2, channels=16)
    conditioning = family.encode_prompts(["a photo of sks dog on the beach", "dog"])
    shuffled = dict(conditioning)
    padding = conditioning["prompt_mask"][..., None] == 0
    shuffled["prompt_embeds"] = torch.where(padding, torch.randn(1), conditioning["prompt_embeds"])
    with torch.no_grad():
        plain, other = (family.predict(x_t, t, each, frame) for each in (conditioning, shuffled))
    torch.testing.assert_close(plain, other, atol=1e-6, rtol=1e-6)


def test_what_only_the_last_text_depends_on_gets_no_adapter(folder: Any):
    family = loaded(QwenImage(str(folder)))
    family.denoiser.requires_grad_(True)
    x_t, t, frame = state(2, channels=16)
    family.predict(x_t, t, family.encode_prompts(["a dog", "cat"]), frame).square().mean().backward()
    dead = {
        name.removesuffix(".weight")
        for name, value in family.denoiser.named_parameters()
        if name.endswith(".weight") and value.ndim == 2 and (value.grad is None or not value.grad.any())
    }
    assert idle_layers(family.denoiser) == dead
