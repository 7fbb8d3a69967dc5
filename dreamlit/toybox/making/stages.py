"""What each network of the toybox learns. Every function returns the `Training` of one stage, ready to run."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dreamlit.toybox.making import networks
from dreamlit.toybox.making.data import LABELS, Scenes
from dreamlit.toybox.making.loop import Losses, Training

Size = tuple[int, int]
Data = dict[Size, Scenes]
SQUARE: Size = (64, 64)


def _size(data: Data, rng: np.random.Generator) -> Size:
    """A size, as often as the data has it."""
    sizes = list(data)
    share = np.array([len(data[size]) for size in sizes], float)
    return sizes[int(rng.choice(len(sizes), p=share / share.sum()))]


def _rows(data: Scenes, batch: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
    return rng.integers(len(data), size=batch)


def _edges(a: Tensor, b: Tensor) -> Tensor:
    """L1 of the horizontal and vertical differences: keeps outlines sharp where plain L1 would blur them."""
    wide = (a.diff(dim=-1) - b.diff(dim=-1)).abs().mean()
    return wide + (a.diff(dim=-2) - b.diff(dim=-2)).abs().mean()


def vae(data: Data, work: pathlib.Path, *, steps: int, batch: int = 4, **options: Any) -> Training:
    network = networks.vae()

    def loss(rng: np.random.Generator, _step: int) -> Losses:
        scenes = data[_size(data, rng)]
        pixels = scenes.pixels(_rows(scenes, batch, rng)).to(next(network.parameters()).device)
        posterior = network.encode(pixels).latent_dist
        decoded = network.decode(posterior.sample()).sample.float()
        l1, edges = (decoded - pixels).abs().mean(), _edges(decoded, pixels)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": l1 + 0.5 * edges + 2e-4 * divergence, "l1": l1, "edges": edges, "kl": divergence}

    return Training("vae", network, loss, steps, 1e-3, work, weight_decay=0.0, **options)


def decoder(data: Data, vae: Any, work: pathlib.Path, *, steps: int, batch: int = 6, **options: Any) -> Training:
    """The VAE's decoder alone, further: the latents stay as they are, while the denoiser already learns them."""
    network = copy.deepcopy(vae)
    network.requires_grad_(False)
    network.decoder.requires_grad_(True)
    network.post_quant_conv.requires_grad_(True)

    def loss(rng: np.random.Generator, _step: int) -> Losses:
        scenes = data[_size(data, rng)]
        pixels = scenes.pixels(_rows(scenes, batch, rng)).to(next(network.parameters()).device)
        with torch.no_grad():
            latents = network.encode(pixels).latent_dist.mode()
            # A denoiser's latents are never exact: the decoder must not depend on their last digits.
            latents = latents + torch.randn_like(latents) * 0.03 * latents.std()
        decoded = network.decode(latents).sample.float()
        l1, edges = (decoded - pixels).abs().mean(), _edges(decoded, pixels)
        return {"loss": l1 + 0.5 * edges, "l1": l1, "edges": edges}

    return Training("decoder", network, loss, steps, 1e-3, work, weight_decay=0.0, **options)


def tiny_autoencoder(
    data: Data, teacher: Any, work: pathlib.Path, *, steps: int, batch: int = 4, **options: Any
) -> Training:
    """Learns the VAE's scaled latents in both directions (the way of TAESD: a fast stand-in for previews)."""
    network = networks.tiny_autoencoder()
    scale = teacher.config.scaling_factor

    def loss(rng: np.random.Generator, _step: int) -> Losses:
        scenes = data[_size(data, rng)]
        pixels = scenes.pixels(_rows(scenes, batch, rng)).to(next(network.parameters()).device)
        with torch.no_grad():
            latents = teacher.encode(pixels).latent_dist.mode() * scale
        decoded, encoded = network.decode(latents).sample, network.encode(pixels).latents
        l1 = (decoded - pixels).abs().mean()
        matched = functional.mse_loss(encoded, latents)
        return {"loss": l1 + 0.5 * _edges(decoded, pixels) + 0.2 * matched, "l1": l1, "latents": matched}

    return Training("taesd", network, loss, steps, 1e-3, work, weight_decay=0.0, **options)


def clip(data: Data, tokenizer: Any, work: pathlib.Path, *, steps: int, batch: int = 96, **options: Any) -> Training:
    """Contrastive text and image encoders (Radford et al. 2021, arXiv 2103.00020)."""
    network = networks.clip(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    scenes = data[SQUARE]
    ids = torch.from_numpy(np.array([token_ids(tokenizer, words) for words in scenes.captions]))
    # The text encoder is causal: what stands behind the longest caption's end changes nothing.
    ids = ids[..., : int((ids != tokenizer.eos_token_id).sum(-1).max()) + 1]

    def loss(rng: np.random.Generator, _step: int) -> Losses:
        rows = _rows(scenes, batch, rng)
        device = next(network.parameters()).device
        words = ids[torch.from_numpy(rows), torch.from_numpy(rng.integers(ids.shape[1], size=batch))].to(device)
        # Each scene is seen a little brighter, darker or noisier: what the encoder must not depend on.
        pixels = normalised(scenes.pixels(rows).to(device)) * float(rng.uniform(0.9, 1.1))
        pixels = pixels + torch.randn_like(pixels) * 0.05
        scores = network(input_ids=words, pixel_values=pixels).logits_per_image
        labels = torch.arange(batch, device=device)
        value = (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)) / 2
        return {"loss": value, "right": (scores.argmax(1) == labels).float().mean()}

    return Training("clip", network, loss, steps, 1e-3, work, warmup=200, weight_decay=1e-3, **options)


def judge(data: Data, work: pathlib.Path, *, steps: int, batch: int = 64, **options: Any) -> Training:
    network = networks.JudgeNetwork()

    def loss(rng: np.random.Generator, _step: int) -> Losses:
        scenes = data[_size(data, rng)]
        rows = _rows(scenes, batch, rng)
        device = next(network.parameters()).device
        pixels = scenes.pixels(rows).to(device)
        if rng.random() < 0.5:  # generated pictures are softer than drawn ones
            soft = functional.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
            pixels = torch.lerp(pixels, soft, float(rng.uniform(0, 0.9)))
        pixels = pixels * float(rng.uniform(0.9, 1.1)) + torch.randn_like(pixels) * float(rng.uniform(0, 0.1))
        logits = network(pixels)
        labels = torch.from_numpy(scenes.labels[rows]).to(device)
        out: Losses = {}
        total = torch.zeros((), device=device)
        for column, name in enumerate(LABELS):
            total = total + functional.cross_entropy(logits[name], labels[:, column])
            out[name] = (logits[name].argmax(1) == labels[:, column]).float().mean()
        return {"loss": total, **out}

    return Training("judge", network, loss, steps, 2e-3, work, weight_decay=1e-2, **options)


def token_ids(tokenizer: Any, words: list[str]) -> list[list[int]]:
    return tokenizer(words, padding="max_length", truncation=True).input_ids


CLIP_MEAN, CLIP_STD = 0.5, 0.25


def normalised(pixels: Tensor) -> Tensor:
    """[-1, 1] -> what the image encoder reads."""
    return ((pixels + 1) / 2 - CLIP_MEAN) / CLIP_STD
