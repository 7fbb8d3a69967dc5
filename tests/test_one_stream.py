"""What is special about Lumina-Image 2.0 and Z-Image: the instruction, the template, guidance, files."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dreamlit.adapters import LoRA
from dreamlit.errors import CombinationError
from dreamlit.export import export
from dreamlit.families import Lumina2, ZImage
from dreamlit.families.lumina2 import TOKENS, instruction
from dreamlit.previewing import Picture, Sampling, draw
from tests.family_cases import loaded, stock

LONG = "dog " * 400


@pytest.fixture
def lumina(family_folders: Any) -> Any:
    return family_folders("lumina2")


@pytest.fixture
def z_image(family_folders: Any) -> Any:
    return family_folders("z_image")


@pytest.mark.filterwarnings("ignore:caption")
def test_luminas_instruction_stands_before_a_caption_but_not_before_none(lumina: Any):
    family, texts = loaded(Lumina2(str(lumina))), []

    def read(module: Any, inputs: Any) -> None:
        texts.extend(family.part("tokenizer").batch_decode(inputs[0], skip_special_tokens=True))

    family.part("text_encoder").register_forward_pre_hook(read)
    family.encode_prompts(["a dog", "", " "])
    assert (texts[0], texts[-2:]) == (instruction() + "a dog", ["", ""])
    assert instruction().startswith("You are an assistant") and instruction().endswith(" <Prompt Start> ")


def test_of_a_caption_that_luminas_instruction_leaves_no_room_for_the_rest_is_named(lumina: Any):
    family = loaded(Lumina2(str(lumina)))
    room = TOKENS - len(family.part("tokenizer").encode(instruction()))
    with pytest.warns(UserWarning, match=f"the text encoder reads {room}; it will not see 'dog") as caught:
        family.encode_prompts([LONG])
    assert "assistant" not in str(caught[0].message)


def test_luminas_adapters_are_not_written_in_a_layout_that_nothing_reads(lumina: Any, tmp_path: Any):
    family, adapter = loaded(Lumina2(str(lumina))), LoRA(4)
    adapter.attach(family.denoiser, 0)
    with pytest.raises(CombinationError, match=r"fused layers.*Write it as 'diffusers'"):
        export(adapter, tmp_path / "a.safetensors", family=family, format="kohya")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_z_images_guidance_means_what_it_means_elsewhere(z_image: Any, scale: float):
    """x = free + scale (told - free), and none at 1; the pipeline's own number is less by 1."""
    family, forwards = ZImage(str(z_image)), []
    pipeline = family.pipeline()
    hook = lambda module, inputs, output: forwards.append([len(inputs[0]), torch.stack(output[0])])  # noqa: E731
    pipeline.transformer.register_forward_hook(hook)
    sampling = Sampling(1, guidance_scale=scale).of(family)
    assert sampling.forwards(family) == (1 if scale == 1 else 2)
    assert len(list(draw(pipeline, [Picture("a dog", 3, 64, 64)], sampling))) == 1
    ((count, output),) = forwards
    assert count == sampling.forwards(family)
    guided = output[0] if scale == 1 else output[1] + scale * (output[0] - output[1])
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    stepped = stock(z_image)(
        prompt=["a dog"], num_inference_steps=1, height=64, width=64, guidance_scale=scale - 1, output_type="latent",
        latents=noise,
    ).images  # fmt: skip
    torch.testing.assert_close(stepped, noise + guided.squeeze(1)[None], atol=1e-4, rtol=1e-4)


def test_a_long_caption_is_named_without_the_words_of_z_images_template(z_image: Any):
    family = loaded(ZImage(str(z_image)))
    with pytest.warns(UserWarning, match="it will not see 'dog dog") as caught:
        family.encode_prompts(["dog " * 600])
    assert "im_start" not in str(caught[0].message)


def test_z_images_text_encoder_may_come_with_its_head(z_image: Any, tmp_path: Any):
    """Model folders name it `Qwen3ForCausalLM` or `Qwen3Model`; both give the same."""
    import json
    import shutil

    from transformers import Qwen3ForCausalLM

    with_head = tmp_path / "model"
    shutil.copytree(z_image, with_head)
    plain = loaded(ZImage(str(z_image)))
    headed = Qwen3ForCausalLM(plain.part("text_encoder").config)
    headed.model.load_state_dict(plain.part("text_encoder").state_dict())
    headed.save_pretrained(with_head / "text_encoder")
    index = json.loads((with_head / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "Qwen3ForCausalLM"]
    (with_head / "model_index.json").write_text(json.dumps(index))
    ours, theirs = (f.encode_prompts(["a dog"])["prompt_embeds"] for f in (loaded(ZImage(str(with_head))), plain))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
