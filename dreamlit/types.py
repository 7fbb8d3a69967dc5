"""What the parts of dreamlit hand to each other. Shapes: B batch, C channels, h x w latent, H x W pixels."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Conditioning = dict[str, Tensor]
    """Text conditioning by the family's own names; every tensor has the batch first."""


class Role(enum.IntEnum):
    """What a sample is trained toward: its own photo, or (regularisation) what the base model predicts for it."""

    INSTANCE = 0
    REGULARISATION = 1


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a photo became a training image, decided once: all sizes are (height, width) in pixels.

    The photo, turned upright by its EXIF orientation, has `original_size`; it is resized to `resized_size` and the
    `target_size` window at `crop_top_left` is cut out. Masks and size conditioning are derived from this record.
    """

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    target_size: tuple[int, int]


@dataclasses.dataclass
class Batch:
    """One forward's worth of samples; all share a latent size."""

    latents: Tensor
    """x0 as the denoiser sees it (scaled): [B, C, h, w], float32."""
    eps: Tensor
    """Gaussian noise that the target is made from: [B, C, h, w]."""
    input_eps: Tensor
    """The noise that makes `x_t`; differs from `eps` under input perturbation: [B, C, h, w]."""
    t: Tensor
    """Timestep of each sample: [B]."""
    conditioning: Conditioning
    mask: Tensor
    """Share of each latent cell that counts, in [0, 1]; all ones without a mask: [B, 1, h, w]."""
    role: Tensor
    """`Role` of each sample: [B], int64."""
    weight: Tensor
    """Loss weight of each sample: [B], float32."""
    frame: Tensor
    """original (h, w), crop (top, left), target (h, w) in pixels: [B, 6], int64."""
    keys: list[str]
    """Which draw each sample is: `dataset/path#visit`."""
    class_conditioning: Conditioning = dataclasses.field(default_factory=dict)
    """Text conditioning by the class prompts of K samples (`class_prompt` of a dataset)."""
    class_rows: Tensor | None = None
    """Which samples these are: [K], int64; None or empty for none."""
    position: int = 0
    """Place of the global batch in the plan; module dropout is seeded from it."""

    def moved_to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device."""
        later = device.type == "cuda"  # from pinned memory; other devices would read what has not arrived yet
        tensors = {name: value for name, value in vars(self).items() if hasattr(value, "to")}
        moved = {name: value.to(device, non_blocking=later) for name, value in tensors.items()}
        for field in ("conditioning", "class_conditioning"):
            texts = getattr(self, field).items()
            moved[field] = {name: value.to(device, non_blocking=later) for name, value in texts}
        return dataclasses.replace(self, **moved)


class DriftTerms(NamedTuple):
    """ReflexFlow's terms of a batch (`reflex`): what its loss has beside its target."""

    away: Tensor
    """x_t - x0, the direction of a flow's prediction that leads from where a sample has drifted back: [B, C, h, w]."""
    anti_drift: Tensor
    """Weight of the directional error, 0 for samples that have none: [B]."""
    emphasis: Tensor | None
    """Weight of each cell's loss: [B, C, h, w], or None for 1 everywhere."""


class Encoders(Protocol):
    """What a datamodule needs to know of a model family."""

    latent_channels: int

    @property
    def stride(self) -> int:
        """Pixels per latent cell along one side."""
        ...

    def fingerprint(self, part: str) -> str:
        """A hash over the weights and configuration of `"vae"`, `"text_encoders"` or `"denoiser"`."""
        ...

    def load(self, *parts: str, device: object = "cpu") -> None: ...

    def unload(self, *parts: str) -> None: ...

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> scaled latents [B, C, h, w], float32 on the CPU."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Conditioning: ...
