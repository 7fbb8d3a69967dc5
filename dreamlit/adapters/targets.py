"""Which layers of a denoiser an adapter is put on: presets and patterns over module names."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dreamlit.adapters.base import shortened
from dreamlit.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import nn

PRESETS = {
    "attention": "linear layers of attention blocks",
    "attention-mlp": "linear layers of attention and feed-forward blocks",
    "all-linear": "every linear layer",
    "full": "every linear and convolution layer",
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear or convolution layer of a denoiser."""

    name: str
    module: Any
    classes: tuple[str, ...]
    """Class names from the denoiser down to the layer itself."""
    convolution: bool
    """Whether it is a convolution with a kernel above 1; a 1x1 convolution counts as linear for ranks."""
    linear: bool
    """Whether it is an `nn.Linear` (or a quantised subclass)."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs, which the packed weight of a quantised layer does not show."""
        if self.linear:
            return self.module.out_features, self.module.in_features
        return tuple(self.module.weight.shape[:2])


def layers(denoiser: nn.Module) -> list[Layer]:
    """Every linear and 2-D convolution layer with the classes that contain it, in the model's own order.

    Without layers that the output does not depend on, whose update would never get a gradient, and without grouped
    convolutions, which have no rank to speak of and which peft and LyCORIS cannot adapt.
    """
    from torch import nn

    idle = idle_layers(denoiser)
    classes: dict[str, tuple[str, ...]] = {}
    found = []
    for name, module in denoiser.named_modules():
        parent = classes.get(name.rpartition(".")[0], ()) if name else ()
        classes[name] = (*parent, type(module).__name__)
        linear = isinstance(module, nn.Linear)
        if name not in idle and (linear or (isinstance(module, nn.Conv2d) and module.groups == 1)):
            kernel = 1 if linear else max(module.kernel_size)
            found.append(Layer(name, module, classes[name], kernel > 1, linear))
    return found


def idle_layers(denoiser: nn.Module) -> set[str]:
    """Layers of the last joint block that only the text's output depends on, which nobody reads.

    Those that make queries of the text (SD3, AuraFlow); in Qwen-Image also what comes after its attention.
    """
    blocks = {name for name, module in denoiser.named_modules() if getattr(module, "context_pre_only", None) is True}
    last = [name for name, module in denoiser.named_modules() if type(module).__name__ == "QwenImageTransformerBlock"]
    after = ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    return {f"{name}.add_q_proj" for name in blocks} | {f"{name}.{end}" for name in last[-1:] for end in after}


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a module: its last parts (`to_q`, `ff.net.2`) or, with `*?[`, a glob over the name."""
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}")


def select(denoiser: nn.Module, targets: str | Iterable[str]) -> list[Layer]:
    """The layers that a preset's name or a list of patterns stands for; a pattern that matches none is an error."""
    every = layers(denoiser)
    if isinstance(targets, str) and targets in PRESETS:
        chosen = [layer for layer in every if _in_preset(layer, targets)]
        if not chosen:
            raise ConfigError(f"targets: preset {targets!r} matches no layer. {could_match(every)}")
        return chosen
    patterns = [targets] if isinstance(targets, str) else list(targets)
    check_patterns("targets", patterns, every)
    return [layer for layer in every if any(matches(pattern, layer.name) for pattern in patterns)]


def _in_preset(layer: Layer, preset: str) -> bool:
    if preset == "full":
        return True
    if "GLUMBConv" in layer.classes:  # Sana's feed-forward, whose linear layers are 1x1 convolutions
        return preset == "attention-mlp" and not layer.convolution
    if not layer.linear:
        return False
    inside = any(name.endswith("Attention") for name in layer.classes)
    if preset == "attention-mlp":
        inside = inside or any(name.endswith("FeedForward") for name in layer.classes)
    return inside or preset == "all-linear"


def check_patterns(what: str, patterns: Iterable[str], every: list[Layer]) -> None:
    """Raise with the names that could match, if a pattern matches no layer."""
    idle = [pattern for pattern in patterns if not any(matches(pattern, layer.name) for layer in every)]
    if idle:
        presets = f" Presets: {', '.join(PRESETS)}." if what == "targets" else ""
        ends = {layer.name.split(".")[-1] for layer in every} | {last_parts(layer.name) for layer in every}
        hint = nearest(idle[0], ends | (set(PRESETS) if what == "targets" else set())).partition("Allowed:")[0]
        raise ConfigError(f"{what}: no layer matches {idle}. {hint}{presets} {could_match(every)}")


def could_match(every: list[Layer]) -> str:
    """A short list of name endings with their numbers: what a pattern could have been."""
    counts = collections.Counter(last_parts(layer.name) for layer in every)
    names = [f"{name} ({count})" for name, count in counts.most_common()]
    return f"Layers end in: {shortened(names, 24) or 'nothing'}"


def last_parts(name: str) -> str:
    """`...attn1.to_out.0` -> `to_out.0`: the last part, with what makes a bare number readable."""
    parts = name.split(".")
    keep = 1
    while keep < len(parts) and parts[-keep].isdigit():
        keep += 1
    return ".".join(parts[-keep:])
