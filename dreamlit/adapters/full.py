"""Full-rank training of the denoiser itself, with a frozen copy as the base model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from dreamlit.adapters.base import Adapter, Factors
from dreamlit.adapters.targets import could_match, layers, matches
from dreamlit.errors import CheckpointError, CombinationError, ConfigError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TEACHERS = ("auto", "device", "cpu", "int8")
ACTIVATIONS_BYTES = 2 * 1024**3


class Full(Adapter):
    """Train the denoiser's own weights in float32.

    Args:
        targets: Train only parameters of modules with these names (last parts, or globs over whole names), for
            example `[attn2]`; left out, everything.
        teacher: Where the frozen copy of the base model lives, if the run needs one: `device`; `cpu` (each layer's
            weights visit the device while it runs: exact, little memory, slower); `int8` (linear layers of the
            blocks in eight bits: approximate, so that the regularisation loss does not start at 0); `auto`: `device`
            where it fits beside the weights, gradients and two optimiser moments, otherwise `cpu`.
    """

    formats = ("folder",)

    def __init__(
        self,
        targets: list[str] | None = None,
        teacher: Literal["auto", "device", "cpu", "int8"] = "auto",
    ) -> None:
        if teacher not in TEACHERS:
            raise ConfigError(f"teacher: {teacher!r} came. {nearest(str(teacher), TEACHERS)}")
        if targets is not None and not targets:
            raise ConfigError("targets: an empty list came; leave it out to train everything")
        self.targets, self.teacher = targets, teacher
        self._teacher: nn.Module | None = None
        self._placed: str | None = None
        self._trained: dict[str, nn.Parameter] = {}

    def _chosen(self, denoiser: nn.Module) -> dict[str, nn.Parameter]:
        named = dict(denoiser.named_parameters())
        if self.targets is None:
            return named
        return {name: p for name, p in named.items() if any(_inside(target, name) for target in self.targets)}

    def check(self, denoiser: nn.Module) -> None:
        names = [name for name, _ in denoiser.named_parameters()]
        idle = [target for target in self.targets or [] if not any(_inside(target, name) for name in names)]
        if idle:
            raise ConfigError(f"targets: no parameter matches {idle}. {could_match(layers(denoiser))}")

    def attach(self, denoiser: nn.Module, seed: int, *, teacher_needed: bool = False) -> None:
        self._begin(denoiser)
        if teacher_needed:
            self._teacher = copy.deepcopy(denoiser).requires_grad_(False)
        denoiser.float()
        self._trained = self._chosen(denoiser)
        for parameter in self._trained.values():
            parameter.requires_grad_(True)
        self.denoiser = denoiser

    def parameters(self) -> dict[str, nn.Parameter]:
        self._attached()
        return dict(self._trained)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        denoiser = self._attached()
        if self._teacher is None:
            raise CombinationError("the base model was not kept: attach Full with teacher_needed=True to ask for it")
        self._place(next(denoiser.parameters()).device)
        self._teacher.train(denoiser.training)
        yield self._teacher

    def _place(self, device: torch.device) -> None:
        """Bring the teacher where it is to live; its choice waits for the first use, when the device is known."""
        assert self._teacher is not None
        if self._placed == str(device):
            return
        choice = self.teacher
        if choice == "auto":
            trained = sum(parameter.numel() * 4 for parameter in self._trained.values())
            choice = "device" if fits(_bytes(self._teacher), trained, _free_bytes(device)) else "cpu"
        if choice == "int8" and self._placed is None:
            from dreamlit.quantisation.layers import quantise

            quantise(self._teacher, "int8-torchao")
        if choice == "cpu" and device.type != "cpu":
            stream_weights(self._teacher, device)
        else:
            self._teacher.to(device)
        self._placed = str(device)

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        raise CombinationError("Full is exported as a diffusers folder; use dreamlit.export.export_full")
        yield  # an iterator like its siblings'

    def load_factors(self, factors: dict[str, Factors]) -> None:
        raise CheckpointError("Full starts from a model folder, not from an adapter file; give it as the family's path")

    def describe(self) -> dict[str, Any]:
        return {"algorithm": "full", "targets": self.targets or "everything"}


def fits(teacher_bytes: int, trained_bytes: int, free_bytes: int | None) -> bool:
    """Whether the teacher fits on the device with gradients, two moments and some activations still to come."""
    return free_bytes is None or teacher_bytes + 3 * trained_bytes + ACTIVATIONS_BYTES <= free_bytes


def _free_bytes(device: torch.device) -> int | None:
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def stream_weights(module: nn.Module, device: torch.device) -> None:
    """Keep the parameters on the CPU; each submodule's own ones visit `device` while its forward runs."""
    for child in module.modules():
        for name, buffer in child.named_buffers(recurse=False):
            child._buffers[name] = buffer.to(device)
        own = [(parameter, parameter.data) for parameter in child.parameters(recurse=False)]
        if own:
            _stream(child, own, device)


def _stream(child: nn.Module, own: list[tuple[nn.Parameter, Tensor]], device: torch.device) -> None:
    def bring(*_: object) -> None:
        for parameter, at_home in own:
            parameter.data = at_home.to(device, non_blocking=True)

    def take_back(*_: object) -> None:
        for parameter, at_home in own:
            parameter.data = at_home

    child.register_forward_pre_hook(bring)
    child.register_forward_hook(take_back, always_call=True)


def _inside(target: str, parameter_name: str) -> bool:
    """Whether a parameter, or a module around it, has a name that the pattern matches."""
    parts = parameter_name.split(".")
    return any(matches(target, ".".join(parts[:end])) for end in range(len(parts), 0, -1))
