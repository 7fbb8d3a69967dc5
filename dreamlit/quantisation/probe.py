"""Try a level on a device: does it train, how large is it, how far off, how fast. Imports torch."""

from __future__ import annotations

import dataclasses
import time

import torch
from torch import nn

from dreamlit.quantisation.layers import quantised, stored_bytes, weight_of
from dreamlit.quantisation.levels import LEVELS

SIZE = 1024
ROWS = 256


@dataclasses.dataclass(frozen=True)
class Probe:
    """What one linear layer of 1024 by 1024 weights, bfloat16 before, is at a level."""

    fault: str | None
    """Why it does not work; the figures are NaN then."""
    bytes_per_weight: float = float("nan")
    weight_error: float = float("nan")
    """Norm of the weight's change over the norm of the weight."""
    step_ms: float = float("nan")
    """Forward and backward of 256 rows, in milliseconds; the fastest of five."""


def probe(level: str | None, device: torch.device | str, size: int = SIZE) -> Probe:
    """Try a level (None: bfloat16 as it is) on one layer: store, forward, backward to the input.

    Takes nothing from the global random generators. Errors become the `fault`.
    """
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(size, size, device="meta")
    exact = torch.randn(size, size, generator=generator) / size**0.5
    layer.weight = nn.Parameter(exact.to(device, torch.bfloat16))
    layer.bias = nn.Parameter(torch.zeros(size, device=device, dtype=torch.bfloat16))
    x = torch.randn(ROWS, size, generator=generator).to(device, torch.bfloat16).requires_grad_(True)
    try:
        made = quantised(layer, LEVELS[level]) if level else layer.requires_grad_(False)
        times = [_step(made, x) for _ in range(5)]
        found = weight_of(made).detach().cpu().float()
        finite = x.grad is not None and bool(x.grad.isfinite().all())
    except Exception as error:  # a missing kernel shows itself in many ways
        return Probe(f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}")
    if not finite:
        return Probe("its gradients are not finite")
    return Probe(None, stored_bytes(made) / size**2, float((found - exact).norm() / exact.norm()), min(times) * 1000)


def _step(layer: nn.Module, x: torch.Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    x.grad = None
    _wait(x.device)
    start = time.perf_counter()
    layer(x).float().square().mean().backward()
    _wait(x.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
