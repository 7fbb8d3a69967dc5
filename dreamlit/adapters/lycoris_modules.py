"""LyCORIS modules as they are used here, and what they write into a file. Imports torch and lycoris."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

import torch

# Eager kernels give the same bits on every machine and compile nothing per layer shape; the variable still decides.
os.environ.setdefault("LYCORIS_KERNEL_BACKEND", "torch")

from lycoris.functional import factorization, power2factorization
from lycoris.logging import logger
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule

from dreamlit.adapters.lycoris_options import Options
from dreamlit.adapters.targets import Layer
from dreamlit.quantisation.layers import weight_of


class _Strength:
    """A module that is dropped works at strength 0 instead of not at all.

    The library skips it, which leaves its parameters without a gradient, and DDP takes that for an error.
    """

    def strength(self: Any) -> float:
        dropped = self.module_dropout and self.training and torch.rand(1) < self.module_dropout
        return 0.0 if dropped else self.multiplier


class _Bypass(_Strength):
    """Compute the update from the factors instead of rebuilding W + delta W.

    It is cheaper, and rebuilding rounds the sum to the base's precision: on a bfloat16 base small updates vanish.
    """

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.bypass_forward(x, self.strength())


class _Delta(_Strength):
    """Add op(x, delta W), with delta W made in float32. (The library's bypass turns the bias too; no file says so.)

    The rotation is near the identity: in the 8 bits of autocast's bfloat16 a small turn is lost in the rounding of 1.
    """

    @property
    def org_weight(self: Any) -> torch.Tensor:
        return weight_of(self.org_module[0])

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            delta = self.get_diff_weight(self.strength(), device=x.device)[0].to(x.dtype)
        return self.org_forward(x, *args, **kwargs) + self.op(x, delta, None, **self.kw_dict)


class _LoCon(_Bypass, LoConModule):
    pass


class _LoHa(_Bypass, LohaModule):
    pass


class _LoKr(_Bypass, LokrModule):
    pass


class _GLoRA(_Bypass, GLoRAModule):
    pass


class _DiagOFT(_Delta, DiagOFTModule):
    pass


class _BOFT(_Delta, ButterflyOFTModule):
    pass


CLASSES: dict[str, Any] = {
    "locon": _LoCon,
    "loha": _LoHa,
    "lokr": _LoKr,
    "glora": _GLoRA,
    "diag-oft": _DiagOFT,
    "boft": _BOFT,
}


def build(options: Options, layer: Layer, multiplier: float) -> Any:
    """A LyCORIS module for a layer: float32, on the layer's device, the layer's forward not replaced yet."""
    module = CLASSES[options.algo](
        layer.name,
        layer.module,
        multiplier,
        options.dim_of(layer),
        options.alpha_on(layer),
        options.dropout,
        options.rank_dropout,
        options.module_dropout,
        options.use_tucker,
        factor=options.factor,
        decompose_both=options.decompose_both,
        full_matrix=options.full_matrix,
        bypass_mode=options.algo not in ("diag-oft", "boft"),
    )
    return module.to(device=layer.module.weight.device, dtype=torch.float32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's lines for every module (on stdout, and informational ones in its log)."""
    level = logger.level
    logger.setLevel("WARNING")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


FOLDED = {
    "locon": ("lora_up.weight",),
    "loha": ("hada_w1_a",),
    "lokr": ("lokr_w1", "lokr_w1_a"),
    "glora": ("a2.weight", "b2.weight"),
    "diag-oft": (),
    "boft": (),
}
"""The parts that carry a factor of the whole update, of which a module has one (glora: both halves)."""


def exported(algo: str, module: Any, multiplier: float) -> Iterator[tuple[str, torch.Tensor]]:
    """A module's tensors as its file has them, the multiplier folded into one factor."""
    for part, tensor in module.named_parameters():
        yield part, tensor.detach() * multiplier if multiplier != 1 and part in FOLDED[algo] else tensor.detach()
    yield "alpha", module.alpha.detach().to(torch.float32)


def scale_in(algo: str, parts: dict[str, torch.Tensor]) -> float:
    """alpha / rank as a reader applies it; 1 where there is no rank (two full factors, orthogonal updates)."""
    shapes = {part: tensor.shape for part, tensor in parts.items()}
    rank = {
        "locon": lambda: shapes["lora_down.weight"][0],
        "loha": lambda: shapes["hada_w1_b"][0],
        "lokr": lambda: next((shapes[p][0] for p in ("lokr_w1_b", "lokr_w2_b") if p in shapes), None),
        "glora": lambda: shapes["a2.weight"][0],
    }.get(algo, lambda: None)()
    if rank is None or "alpha" not in parts:
        return 1.0
    return float(parts["alpha"]) / rank


def boft_fits(out_size: int, factor: int) -> bool:
    """Whether the butterfly decomposition exists: out_size = 2 k 2^p with an even block of at most `factor`."""
    return power2factorization(out_size, factor)[1] != 0


def oft_block_size(out_size: int, factor: int) -> int:
    """The side of diag-oft's blocks."""
    return factorization(out_size, factor)[0]


def unfolded(algo: str, parts: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """The trainable parts with the whole update multiplied by `factor`."""
    kept = {part: tensor for part, tensor in parts.items() if part != "alpha"}
    return {part: tensor * factor if factor != 1 and part in FOLDED[algo] else tensor for part, tensor in kept.items()}
