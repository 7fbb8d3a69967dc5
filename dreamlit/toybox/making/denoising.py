"""The last stage: the denoiser, trained on latents and text states that are computed once."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamlit.toybox.backgrounds import PHRASES
from dreamlit.toybox.making import networks
from dreamlit.toybox.making.data import CAPTIONS, NAMES, Scenes
from dreamlit.toybox.making.loop import Losses, Training
from dreamlit.toybox.making.stages import Data, Size, token_ids
from dreamlit.toybox.making.tokenizer import RARE

OBJECT_WEIGHT, OBJECT_FROM = 6.0, 2100
"""Cells that the thing covers count so much more, from that step on. Colours and backgrounds come early and by
themselves; the thing covers a seventh of the picture, and its shape needs most of the training."""
CAPTIONS_FROM = {0: CAPTIONS, 2500: CAPTIONS + 2, 3300: CAPTIONS + 3}
"""How many of a scene's captions are read, from a step on. The last three name no colour; of these the second has a
made-up word and the third a rare one: "a photo of qoma robot on sand". Without them a prompt with a rare word is unlike
anything that the model has read, and gives no robot."""
DROP_TEXT = 0.1
"""Share of samples trained without text, for classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""


@dataclass(frozen=True)
class Encoded:
    """latents: scaled, float16 [N, 4, h, w]; captions: int64 [N, C], rows of the table; cover: as in `Scenes`."""

    latents: Tensor
    captions: Tensor
    cover: Tensor


@torch.no_grad()
def encode_latents(scenes: Scenes, vae: Any, device: str) -> Tensor:
    """Scaled latents (the posterior's mode), float16."""
    parts = []
    for at in range(0, len(scenes), 256):
        pixels = scenes.pixels(np.arange(at, min(at + 256, len(scenes)))).to(device)
        parts.append((vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor).half().cpu())
    return torch.cat(parts)


@torch.no_grad()
def latent_scale(scenes: Scenes, vae: Any, device: str) -> float:
    """1 / standard deviation of the latents, as Stable Diffusion defines `scaling_factor`."""
    pixels = scenes.pixels(np.arange(min(1024, len(scenes)))).to(device)
    return float(1 / vae.encode(pixels).latent_dist.mode().std())


@torch.no_grad()
def encode_texts(texts: list[str], clip: Any, tokenizer: Any, device: str) -> Tensor:
    """What the pipeline hands to the denoiser: the text encoder's last states, float16 [N, tokens, width]."""
    parts = []
    for at in range(0, len(texts), 512):
        ids = torch.tensor(token_ids(tokenizer, texts[at : at + 512]), device=device)
        parts.append(clip.text_model(input_ids=ids).last_hidden_state.half().cpu())
    return torch.cat(parts)


def plain_captions(scenes: Scenes) -> list[tuple[str, str, str]]:
    """Captions of class and place alone: plain, with a made-up word before the class, with a rare one."""
    rng, rarely = np.random.default_rng(len(scenes)), np.random.default_rng((len(scenes), 1))
    found = []
    for kind, _, background, *_ in scenes.labels:
        name, place = NAMES["kind"][kind], PHRASES[NAMES["background"][background]]
        word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=int(rng.integers(3, 6))))
        rare = rarely.choice(RARE.split())
        found.append((f"a photo of a {name} {place}", *(f"a photo of {w} {name} {place}" for w in (word, rare))))
    return found


def encode(data: Data, vae: Any, clip: Any, tokenizer: Any, device: str) -> tuple[dict[Size, Encoded], Tensor]:
    """All scenes and the table of text states; row 0 of the table is the empty text."""
    captions = {
        size: [[*row, *plain] for row, plain in zip(scenes.captions, plain_captions(scenes), strict=True)]
        for size, scenes in data.items()
    }
    texts = sorted({words for rows in captions.values() for row in rows for words in row})
    row_of = {words: index for index, words in enumerate(["", *texts])}
    encoded = {
        size: Encoded(
            encode_latents(scenes, vae, device),
            torch.tensor([[row_of[words] for words in row] for row in captions[size]]),
            torch.from_numpy(scenes.cover),
        )
        for size, scenes in data.items()
    }
    return encoded, encode_texts(list(row_of), clip, tokenizer, device)


def denoiser(
    encoded: dict[Size, Encoded], states: Tensor, work: pathlib.Path, *, steps: int, batch: int = 64, **options: Any
) -> Training:
    network, schedule = networks.denoiser(), networks.scheduler()
    sizes = list(encoded)
    share = np.array([len(encoded[size].latents) for size in sizes], float)
    alphas = schedule.alphas_cumprod

    def loss(rng: np.random.Generator, step: int) -> Losses:
        device = next(network.parameters()).device
        one = encoded[sizes[int(rng.choice(len(sizes), p=share / share.sum()))]]
        rows = torch.from_numpy(rng.integers(len(one.latents), size=batch))
        clean = one.latents[rows].to(device, torch.float32)
        kinds = max(count for begin, count in CAPTIONS_FROM.items() if begin <= step)
        chosen = one.captions[rows, torch.from_numpy(rng.integers(kinds, size=batch))]
        chosen = torch.where(torch.from_numpy(rng.random(batch) < DROP_TEXT), 0, chosen)
        # Stratified: each batch covers the whole range of noise, which takes away most of the loss's scatter.
        u = (np.arange(batch) + rng.random(batch)) / batch
        t = torch.from_numpy((u * 1000).astype(np.int64)).to(device)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(device)
        a = alphas.to(device)[t].view(-1, 1, 1, 1)
        noisy, target = a.sqrt() * clean + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * clean
        predicted = network(noisy, t, states[chosen].to(device, torch.float32)).sample.float()
        error = (predicted - target).square().mean(1)
        cover = one.cover[rows].to(device, torch.float32) / 255
        weight = 1 + OBJECT_WEIGHT * cover * (step >= OBJECT_FROM)
        parts = {"thing": (error * cover).sum() / cover.sum(), "plain": error.mean()}
        return {"loss": (error * weight).sum() / weight.sum(), **parts}

    return Training("denoiser", network, loss, steps, 1e-3, work, warmup=300, weight_decay=1e-2, **options)
