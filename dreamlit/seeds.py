"""Randomness with an address: every random draw is a pure function of what it is for.

A draw is addressed by plain values, for example `generator(seed, "noise", sample_id, visit)`. It never depends on
draws made before it, on worker or rank counts, or on a global generator.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Part = str | int | float | bool | None


def address(*parts: Part) -> int:
    """A 63-bit number that depends on every part, its type and its place (BLAKE2b of their `repr`)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def unit(*parts: Part) -> float:
    """A number in [0, 1) that depends on every part, uniform over addresses."""
    return (address(*parts) >> 10) / 2**53


def generator(*parts: Part) -> torch.Generator:
    """A fresh CPU generator seeded by the address."""
    import torch  # the plan and the dataset tools need seeds without torch

    return torch.Generator().manual_seed(address(*parts))


def reseed(device: torch.device, *parts: Part) -> None:
    """Seeds the global generators of the CPU and of `device`, by which module dropout is drawn."""
    import torch

    seed = address(*parts)
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    # torch.manual_seed notes a stack trace for every kind of device that is absent: a millisecond or two a step.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
