"""What a word does to a model: how far its text encoders tell it apart, and how far it moves the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dreamlit.errors import ConfigError, ModelError
from dreamlit.seeds import generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dreamlit.families import Family
    from dreamlit.types import Conditioning

LEVELS = (0.6, 0.75, 0.9)
"""Shares of the noise schedule at which it is measured: where the text decides what becomes of the noise."""
SEEDS = 2
USUAL_SIDE = 64
"""Latent cells along a side, of a denoiser that is made for no size of its own."""


class Effect(NamedTuple):
    """What a word does beside a class: 0 is nothing."""

    apart: float
    """How far it moves the conditioning: what an adapter can tell the subject from its class by."""
    moves: float
    """How far it moves the denoiser's prediction: what the word says already."""


def effects(model: str, class_word: str, words: Sequence[str], device: str = "cpu") -> dict[str, Effect]:
    """Word -> what "a photo of WORD class" changes against "a photo of a class".

    Each is the norm of the difference over that of what it is compared with: of the text conditioning (the mean over
    its tensors), and of predictions at fixed noises and levels.

    Raises:
        ModelError: when the model cannot be read, or no family is of its kind.
        ConfigError: when there is no such device.
    """
    import torch
    from rich.progress import track

    family, place = family_of(model), device_of(device)
    family.load("text_encoders", device=place)
    plain, *named = (
        family.encode_prompts([text])
        for text in (f"a photo of a {class_word}", *(f"a photo of {word} {class_word}" for word in words))
    )
    family.unload("text_encoders")
    family.load("denoiser", device=place)
    family.denoiser.eval()
    ask = States(family, place)
    with torch.no_grad():
        still = ask(plain)
        moved = (change(ask(conditioning), still) for conditioning in track(named, "words", transient=True))
        return {w: Effect(told_apart(c, plain), m) for w, c, m in zip(words, named, moved, strict=True)}


def told_apart(conditioning: Conditioning, plain: Conditioning) -> float:
    """The mean change of the tensors that are embeddings (not masks)."""
    found = [change(conditioning[name], value) for name, value in plain.items() if value.is_floating_point()]
    return sum(found) / len(found)


def change(value: Tensor, before: Tensor) -> float:
    """The norm of the difference over that of `before`; where one has more tokens, those are part of it."""
    import torch

    if value.shape != before.shape:
        longest = max(value.shape[1], before.shape[1])
        value, before = (
            torch.cat([x, x.new_zeros(len(x), longest - x.shape[1], *x.shape[2:])], dim=1) for x in (value, before)
        )
    return float((value - before).norm() / before.norm())


class States:
    """Noise at a few levels, the same for every word. Called with conditioning of one prompt, it gives predictions."""

    def __init__(self, family: Family, device: torch.device) -> None:
        import torch

        self.family, self.device = family, device
        side: Any = getattr(family.denoiser.config, "sample_size", None) or USUAL_SIDE
        side = side if isinstance(side, int) else min(side)
        side = max(side // family.patch, 1) * family.patch
        shape = (family.latent_channels, side, side)
        process = family.process().sized(shape)
        noises = [torch.randn(shape, generator=generator(0, "word", seed)) for seed in range(SEEDS)]
        eps = torch.stack([noise for noise in noises for _ in LEVELS])
        self.t = torch.tensor([process.timestep(level) for _ in noises for level in LEVELS], device=device)
        self.x_t = process.noise(torch.zeros_like(eps), eps, self.t.cpu()).to(device)
        pixels = side * family.stride
        self.frame = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * len(eps), device=device)

    def __call__(self, conditioning: Conditioning) -> Tensor:
        count = len(self.t)
        rows = {name: value.expand(count, *value.shape[1:]).to(self.device) for name, value in conditioning.items()}
        return self.family.predict(self.x_t, self.t, rows, self.frame)


def family_of(model: str) -> Family:
    """The model in a folder or on the hub, by what its `model_index.json` names; nothing is loaded."""
    from dreamlit.families.checks import concrete_families
    from dreamlit.families.files import ModelFiles

    name = ModelFiles(model).index.get("_class_name")
    kinds = [kind for kind in concrete_families() if kind.pipeline_class == name]
    if not kinds:
        raise ModelError(f"{model}: its model_index.json names {name!r}, which no family is; leave out --measure")
    family = kinds[0](model)
    family.check()
    return family


def device_of(name: str) -> torch.device:
    import torch

    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: {error}") from None
