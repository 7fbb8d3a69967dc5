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


def write_gemma_tokenizer(folder: pathlib.Path) -> Any:
    """A Gemma tokenizer of single letters, and of bytes for what is not among them."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [*(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *(chr(code) for code in range(33, 127))]
    vocab = {token: index for index, token in enumerate([*special, *letters])}
    tokenizer = library("transformers").GemmaTokenizer(vocab=vocab, add_bos_token=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def gemma(vocab_size: int, width: int) -> Any:
    """A Gemma 2 with two layers: one with a sliding window, one without."""
    transformers = library("transformers")
    config = transformers.Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        query_pre_attn_scalar=width // 4,
        initializer_range=0.2,  # wide enough that different captions give clearly different embeddings
    )
    return transformers.Gemma2Model(config)


def deep_autoencoder() -> Any:
    """An AutoencoderDC of stride 32, whose latents have a spread near 1 after scaling."""
    import torch

    vae = library("diffusers").AutoencoderDC(
        latent_channels=32,
        attention_head_dim=8,
        encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        encoder_block_out_channels=(8, 8, 8, 16, 16, 32),
        decoder_block_out_channels=(8, 8, 8, 16, 16, 32),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="conv",
    )
    with torch.no_grad():
        images = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, scale_factor=16.0, mode="bilinear")
        latent = vae.encode(images).latent
        vae.register_to_config(scaling_factor=float(1 / latent.std()))
    return vae


def sana_parts(folder: pathlib.Path, qk_norm: str | None = None) -> dict[str, Any]:
    """Sana: linear attention, a feed-forward of convolutions, a sampler of steps on a flow; 1.5 with `qk_norm`."""
    tokenizer, diffusers = write_gemma_tokenizer(folder / "tokenizer"), library("diffusers")
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=32,
        qk_norm=qk_norm,
    )
    return {
        "vae": deep_autoencoder(),
        "text_encoder": gemma(len(tokenizer), 32),
        "tokenizer": tokenizer,
        "transformer": transformer,
        "scheduler": diffusers.DPMSolverMultistepScheduler(
            beta_start=0.0001,
            beta_end=0.02,
            beta_schedule="linear",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=3.0,
        ),
    }


MORE = {
    "kolors": ("KolorsPipeline", kolors_parts),
    "pixart-sigma": ("PixArtSigmaPipeline", pixart_parts),
    "sana": ("SanaPipeline", sana_parts),
}
