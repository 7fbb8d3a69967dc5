"""The toybox's networks: ordinary diffusers and transformers classes, small."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from dreamlit.toybox.making.data import LABELS, NAMES
from dreamlit.toybox.making.tokenizer import MAX_LENGTH

WIDTH = 128
"""Width of the text encoder, which is what the denoiser attends to."""


def library(name: str) -> Any:
    """diffusers and transformers offer their classes lazily, which type checkers cannot see."""
    return importlib.import_module(name)


def vae() -> Any:
    return library("diffusers").AutoencoderKL(
        block_out_channels=(24, 48, 80),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=64,
        mid_block_add_attention=False,
    )


def tiny_autoencoder() -> Any:
    return library("diffusers").AutoencoderTiny(
        encoder_block_out_channels=(24, 24, 24),
        decoder_block_out_channels=(24, 24, 24),
        num_encoder_blocks=(1, 1, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=4,
    )


def denoiser() -> Any:
    return library("diffusers").UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        use_linear_projection=True,
    )


def clip(vocabulary: int, start: int, end: int) -> Any:
    transformers = library("transformers")
    shape: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
        "hidden_act": "quick_gelu",
    }
    text = {
        **shape,
        "vocab_size": vocabulary,
        "num_hidden_layers": 4,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision = {**shape, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    return transformers.CLIPModel(config)


def scheduler() -> Any:
    """v-prediction (Salimans and Ho 2022, arXiv 2202.00512) on Stable Diffusion's noise schedule."""
    return library("diffusers").DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class JudgeNetwork(nn.Module):
    """A small convolutional classifier with one head for each label of `data.LABELS`; any picture size."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for level in range(4):
            out = width * min(2**level, 4)
            layers += [nn.Conv2d(channels, out, 3, stride=1 if level == 0 else 2, padding=1), nn.GroupNorm(8, out)]
            layers += [nn.SiLU(), nn.Conv2d(out, out, 3, padding=1, groups=8), nn.GroupNorm(8, out), nn.SiLU()]
            channels = out
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * channels, len(NAMES[name])) for name in LABELS})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels: [B, 3, H, W] in [-1, 1] -> logits of each label, [B, classes]."""
        found = self.body(pixels)
        joined = torch.cat((found.mean((2, 3)), found.amax((2, 3))), 1)
        return {name: head(joined) for name, head in self.heads.items()}
