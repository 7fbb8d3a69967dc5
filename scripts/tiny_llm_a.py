"""Tiny models of one stream over text and image, read by Gemma 2 or Qwen3, for `make_tiny_models.py`."""

from __future__ import annotations

import pathlib
from typing import Any

from tiny_llm_b import qwen_config, write_qwen_tokenizer
from tiny_more import gemma, write_gemma_tokenizer
from tiny_parts import autoencoder, library


def flux_autoencoder() -> Any:
    """Flux's autoencoder, which both take."""
    return autoencoder(0.3611, 16, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)


def lumina2_parts(folder: pathlib.Path) -> dict[str, Any]:
    """Lumina-Image 2.0: refiners of text and of image, then blocks over both; grouped queries."""
    tokenizer, diffusers = write_gemma_tokenizer(folder / "tokenizer"), library("diffusers")
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=16,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(300, 64, 64),
        cap_feat_dim=32,
    )
    return {
        "vae": flux_autoencoder(),
        "text_encoder": gemma(len(tokenizer), 32),
        "tokenizer": tokenizer,
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
    }


def z_image_parts(folder: pathlib.Path) -> dict[str, Any]:
    """Z-Image: refiners of text and of image, then blocks over both; text and image filled up to 32 tokens."""
    import torch

    tokenizer, diffusers = write_qwen_tokenizer(folder / "tokenizer"), library("diffusers")
    transformers = library("transformers")
    encoder = transformers.Qwen3Config(**qwen_config(tokenizer, 32, 3), head_dim=8, tie_word_embeddings=True)
    transformer = diffusers.ZImageTransformer2DModel(
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # made empty
    return {
        "vae": flux_autoencoder(),
        "text_encoder": transformers.Qwen3Model(encoder),
        "tokenizer": tokenizer,
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


LLM_A = {
    "lumina2": ("Lumina2Pipeline", lumina2_parts),
    "z-image": ("ZImagePipeline", z_image_parts),
}
