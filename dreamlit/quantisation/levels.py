"""The one table of precisions: what each is, which machine it works on, and what to take in its place."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

NO_CHANGE = "no_change"
Precision = Literal[
    "no_change",
    "int2-quanto",
    "int4-quanto",
    "int8-quanto",
    "fp8-quanto",
    "int8-torchao",
    "int4-torchao",
    "fp8-torchao",
    "nf4-bnb",
    "int8-bnb",
]
FP8_CAPABILITY = (8, 9)
"""CUDA compute capability from which eight-bit floating point is in the hardware (Ada, Hopper and later)."""


@dataclasses.dataclass(frozen=True)
class Level:
    """One way to store the weight of a linear layer."""

    library: str
    """The package that does it."""
    kind: str
    """What the package calls it."""
    bits: int
    instead: tuple[str, ...]
    """The nearest levels, best first, for a machine where this one does not work."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    capability: tuple[int, int] | None = None
    """Lowest CUDA compute capability."""
    multiple: int = 1
    """A layer whose number of inputs is no multiple of it stays as it is."""
    compiles: bool = False
    """Whether blocks of such layers were compiled and computed the same (on a CPU)."""


LEVELS: dict[str, Level] = {
    "int2-quanto": Level("optimum.quanto", "qint2", 2, ("int4-quanto", "nf4-bnb")),
    "int4-quanto": Level("optimum.quanto", "qint4", 4, ("nf4-bnb", "int8-quanto")),
    # torch's kernel for it on a CPU (_weight_int8pack_mm of 2.13) reads past the end of other rows, or crashes.
    "int8-quanto": Level("optimum.quanto", "qint8", 8, ("int8-torchao", "int8-bnb"), multiple=16, compiles=True),
    "fp8-quanto": Level("optimum.quanto", "qfloat8", 8, ("int8-quanto", "int8-torchao"), capability=FP8_CAPABILITY),
    "int8-torchao": Level("torchao", "Int8WeightOnlyConfig", 8, ("int8-quanto", "int8-bnb"), compiles=True),
    "int4-torchao": Level(
        "torchao", "Int4WeightOnlyConfig", 4, ("nf4-bnb", "int4-quanto"), ("cuda",), (8, 0), multiple=128
    ),
    "fp8-torchao": Level(
        *("torchao", "Float8WeightOnlyConfig", 8, ("int8-torchao", "int8-quanto")),
        capability=FP8_CAPABILITY,
        compiles=True,
    ),
    "nf4-bnb": Level("bitsandbytes", "nf4", 4, ("int4-quanto", "int8-quanto"), compiles=True),
    "int8-bnb": Level("bitsandbytes", "int8", 8, ("int8-quanto", "int8-torchao")),
}


def refusal(name: str, device: str, capability: tuple[int, int] | None = None) -> str | None:
    """Why a level cannot work on a device, with the nearest one that can; None where it can.

    Args:
        name: A key of `LEVELS`.
        device: Type of the device: "cpu", "cuda", "mps".
        capability: Compute capability of a CUDA device.
    """
    why = _why_not(LEVELS[name], device, capability)
    if why is None:
        return None
    working = [other for other in LEVELS[name].instead if _why_not(LEVELS[other], device, capability) is None]
    return f"{name} {why}; use {working[0] if working else NO_CHANGE}"


def _why_not(level: Level, device: str, capability: tuple[int, int] | None) -> str | None:
    if device not in level.devices:
        return f"does not work on {device}, only on {' and '.join(level.devices)}"
    if level.capability and capability and capability < level.capability:
        needed, here = (".".join(map(str, pair)) for pair in (level.capability, capability))
        return f"needs a GPU of compute capability {needed}, and this one has {here}"
    return None


STAYS = re.compile(r"emb|^final|^all_final|(^|\.)(lora|lycoris)_")
"""Embedders and the model's last layers: small, and everything passes through them."""


def is_chosen(name: str) -> bool:
    """Whether the linear layer of this name is stored in few bits: those of the repeated blocks, without embedders."""
    parts = name.split(".")
    return any(part.isdigit() for part in parts) and not any(STAYS.search(part) for part in parts)
