"""Tiny models that read their prompts by a language model of the Qwen kind, for `make_tiny_models.py`."""

from __future__ import annotations

import pathlib
from typing import Any

from tiny_parts import WORDS, byte_symbols, learn_merges, library

INSTRUCTION = (
    "system describe Describe detailing color shape size texture quantity text spatial relationships objects "
    "background user assistant think image by of the and"
)
"""Words around a prompt; each is one token, as in the real vocabulary, because pipelines count them."""
CHAT = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
"""What Qwen3's template makes of plain messages."""


def write_qwen_tokenizer(folder: pathlib.Path) -> Any:
    """A Qwen tokenizer of the words, with and without a space before them, and of bytes for all else."""
    words = [*WORDS.split(), *INSTRUCTION.split()]
    merges = [("\u010a", "\u010a"), *learn_merges([*words, *("\u0120" + word for word in words)], 2000, end="")]
    tokens = dict.fromkeys([*byte_symbols(), *("".join(pair) for pair in merges)])
    transformers = library("transformers")
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=4096,
        chat_template=CHAT,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(folder)
    return tokenizer


def qwen_config(tokenizer: Any, width: int, layers: int) -> dict[str, Any]:
    """What the language models share: grouped queries, a spread that tells captions apart."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }


def qwen25_vl(tokenizer: Any, width: int) -> Any:
    """A Qwen2.5-VL with two layers, and a tower for images that nobody asks."""
    transformers = library("transformers")
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
        "patch_size": 4,
        "fullatt_block_indexes": [0],
    }
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [1, 1, 2]}
    text = {**qwen_config(tokenizer, width, 2), "rope_parameters": rope, "tie_word_embeddings": False}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def video_autoencoder() -> Any:
    """An AutoencoderKLQwenImage of stride 8, whose latents have a mean near 0 and a spread near 1 after scaling."""
    import torch

    vae = library("diffusers").AutoencoderKLQwenImage(
        base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    with torch.no_grad():
        images = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, scale_factor=8.0, mode="bilinear")
        latents = vae.encode(images.unsqueeze(2)).latent_dist.mean.transpose(0, 1).flatten(1)
        vae.register_to_config(latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist())
    return vae


def qwen_image_parts(folder: pathlib.Path) -> dict[str, Any]:
    """Qwen-Image: joint blocks of two streams, rotary positions around the image's middle."""
    tokenizer, diffusers = write_qwen_tokenizer(folder / "tokenizer"), library("diffusers")
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    return {
        "vae": video_autoencoder(),
        "text_encoder": qwen25_vl(tokenizer, 32),
        "tokenizer": tokenizer,
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
    }


def qwen3(tokenizer: Any, width: int) -> Any:
    """A Qwen3 deep enough for the layers whose states are read, 9, 18 and 27; the head's weight is the embedding's."""
    transformers = library("transformers")
    config = transformers.Qwen3Config(
        **{**qwen_config(tokenizer, width, 28), "initializer_range": 0.05},
        head_dim=width // 4,
        tie_word_embeddings=True,
    )
    return transformers.Qwen3ForCausalLM(config)


def normed_autoencoder() -> Any:
    """An AutoencoderKLFlux2 whose batch norm knows the latents of random pictures."""
    import torch

    vae = library("diffusers").AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=32,
        sample_size=64,
    )
    with torch.no_grad():
        images = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, scale_factor=8.0, mode="bilinear")
        mean = vae.encode(images).latent_dist.mean
        cells = torch.nn.functional.pixel_unshuffle(mean, 2).transpose(0, 1).flatten(1)
        vae.bn.running_mean.copy_(cells.mean(1))
        vae.bn.running_var.copy_(cells.var(1))
    return vae


def flux2_klein_parts(folder: pathlib.Path, distilled: bool = False) -> dict[str, Any]:
    """Flux.2 klein: modulation shared by all blocks, gated feed-forwards, four axes of rotary positions."""
    tokenizer, diffusers = write_qwen_tokenizer(folder / "tokenizer"), library("diffusers")
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=128,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return {
        "vae": normed_autoencoder(),
        "text_encoder": qwen3(tokenizer, 32),
        "tokenizer": tokenizer,
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        "is_distilled": distilled,
    }


LLM_B = {
    "qwen-image": ("QwenImagePipeline", qwen_image_parts),
    "flux2-klein": ("Flux2KleinPipeline", flux2_klein_parts),
}
