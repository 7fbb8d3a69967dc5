"""Tiny models of further families, for `make_tiny_models.py`."""

from __future__ import annotations

import io
import pathlib
from typing import Any

from tiny_parts import WORDS, autoencoder, library, t5_encoder, unet, write_t5_tokenizer


def write_sentencepiece(folder: pathlib.Path) -> pathlib.Path:
    """A `tokenizer.model` of the words: byte pairs, and bytes for what is not among them."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    library("sentencepiece").SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS]),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        hard_vocab_limit=False,
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
    )
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


def chatglm(vocab_size: int, width: int) -> Any:
    """A ChatGLM with three layers and grouped queries, as ChatGLM3 has them."""
    import torch

    module = library("diffusers.pipelines.kolors.text_encoder")
    config = module.ChatGLMConfig(
        padded_vocab_size=vocab_size,
        num_layers=3,
        hidden_size=width,
        ffn_hidden_size=2 * width,
        kv_channels=width // 4,
        num_attention_heads=4,
        seq_length=512,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=2,
        original_rope=True,
        use_cache=True,
        tie_word_embeddings=False,
    )
    encoder = module.ChatGLMModel(config, empty_init=False)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if "layernorm" in name:
                value.fill_(1.0)  # the class leaves them as the memory was
    return encoder


def kolors_parts(folder: pathlib.Path) -> dict[str, Any]:
    """Kolors: SDXL's UNet and autoencoder, a ChatGLM that the UNet projects, 1100 timesteps."""
    diffusers = library("diffusers")
    vocabulary = write_sentencepiece(folder / "tokenizer")
    tokenizer = library("diffusers.pipelines.kolors").ChatGLMTokenizer(str(vocabulary))
    return {
        "vae": autoencoder(0.13025),
        "text_encoder": chatglm(tokenizer.vocab_size, 32),
        "tokenizer": tokenizer,
        "unet": unet(
            cross_attention_dim=48,
            encoder_hid_dim=32,
            encoder_hid_dim_type="text_proj",
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        "scheduler": diffusers.EulerDiscreteScheduler(
            num_train_timesteps=1100,
            beta_start=0.00085,
            beta_end=0.014,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
    }


def pixart_parts(folder: pathlib.Path) -> dict[str, Any]:
    """PixArt-Sigma: a transformer with one set of modulations for all blocks, a variance in the output."""
    words, diffusers = write_t5_tokenizer(folder / "tokenizer"), library("diffusers")
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        cross_attention_dim=32,
        caption_channels=24,
        use_additional_conditions=False,
    )
    return {
        "vae": autoencoder(0.13025),
        "text_encoder": t5_encoder(words, 24),
        "tokenizer": words,
        "transformer": transformer,
        "scheduler": diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    }


MORE = {
    "kolors": ("KolorsPipeline", kolors_parts),
    "pixart-sigma": ("PixArtSigmaPipeline", pixart_parts),
}
