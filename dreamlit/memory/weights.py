"""Bytes of a component's weights, from its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamlit.quantisation import LEVELS, NO_CHANGE

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dreamlit.families import Family

SCALES = {
    "int2-quanto": (4, 128),
    "int4-quanto": (4, 128),
    "int8-quanto": (2, None),
    "fp8-quanto": (2, None),
    "int8-torchao": (5, None),
    "int4-torchao": (4, 128),
    "fp8-torchao": (4, None),
    "nf4-bnb": (1, 64),  # these in few bits too: double quantisation
    "int8-bnb": (4, None),
}
"""Level -> bytes of scales for each group of so many weights; None for a whole row."""


def precision_of(family: Family, name: str) -> torch.dtype:
    """In which a component is loaded, but for layers in few bits."""
    import torch

    return torch.float32 if name == "vae" else getattr(torch, family.dtype)


def few_bits(module: nn.Module, level: str) -> dict[str, nn.Linear]:
    """The layers that a level is put on."""
    from dreamlit.quantisation.layers import chosen

    return {} if level == NO_CHANGE else dict(chosen(module, LEVELS[level]))


def stored_bytes(module: nn.Module, dtype: torch.dtype, level: str = NO_CHANGE) -> int:
    """Bytes of a module's parameters and buffers with floating-point values as `dtype` and layers in few bits."""
    tensors: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    whole = sum(t.numel() * (dtype.itemsize if t.is_floating_point() else t.element_size()) for t in tensors.values())
    return whole - sum(saving(layer, dtype, level) for layer in few_bits(module, level).values())


def saving(layer: nn.Linear, dtype: torch.dtype, level: str) -> int:
    """Bytes by which a layer's weight is smaller in few bits."""
    outputs, inputs = layer.weight.shape
    scale, group = SCALES[level]
    stored = outputs * inputs * LEVELS[level].bits // 8 + scale * (outputs * inputs // group if group else outputs)
    return outputs * inputs * dtype.itemsize - stored
