"""How much a word moves what a model draws: the difference that it makes to the denoiser's prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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


def effects(model: str, class_word: str, words: Sequence[str], device: str = "cpu") -> dict[str, float]:
    """Word -> how far "a photo of WORD class" moves the prediction from that for "a photo of a class".

    The root of the mean square of the difference over that of the prediction itself, at fixed noises and levels:
    0 where the word changes nothing.

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
        moved = (ask(conditioning) for conditioning in track(named, "words", transient=True))
        return {word: float((m - still).norm() / still.norm()) for word, m in zip(words, moved, strict=True)}


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
