"""Adapter files merged into plain weights, by the formulas that readers of the kohya / LyCORIS layout use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamlit import formats
from dreamlit.errors import CheckpointError, Faults

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.adapters.base import Factors


def delta(parts: dict[str, Tensor], scale: float, weight: Tensor) -> Tensor:
    """The update of a layer's weight [out, in, ...] in float32 from one module's parts; `scale` is alpha / rank."""
    kind = formats.algorithm_of({part: tuple(tensor.shape) for part, tensor in parts.items()})
    parts = {part: tensor.float() for part, tensor in parts.items()}
    weight = weight.detach().float()
    if kind == "lora":
        product = _lora(parts)
    elif kind == "loha":
        product = _factor(parts, "hada_w1", "hada_t1") * _factor(parts, "hada_w2", "hada_t2")
    elif kind == "lokr":
        product = _kronecker(parts)
    elif kind == "glora":
        product = _glora(parts, weight)
    elif kind in ("diag-oft", "boft"):
        return _orthogonal(kind, parts, weight)
    else:
        raise CheckpointError(f"no delta can be made of {sorted(parts)}" + (" (DoRA needs peft)" if kind else ""))
    return product.reshape(weight.shape) * scale


def _lora(parts: dict[str, Tensor]) -> Tensor:
    import torch

    up, down = parts["lora_up.weight"].flatten(1), parts["lora_down.weight"]
    if "lora_mid.weight" in parts:
        return torch.einsum("o r, r s ..., s i -> o i ...", up, parts["lora_mid.weight"], down.flatten(1))
    return up @ down.flatten(1)


def _factor(parts: dict[str, Tensor], name: str, core: str) -> Tensor:
    """A matrix or convolution kernel given whole, as a product, or in Tucker form."""
    import torch

    if name in parts:
        return parts[name]
    if core in parts:
        return torch.einsum("i j ..., i p, j r -> p r ...", parts[core], parts[f"{name}_a"], parts[f"{name}_b"])
    return parts[f"{name}_a"] @ parts[f"{name}_b"]


def _kronecker(parts: dict[str, Tensor]) -> Tensor:
    import torch

    first, second = _factor(parts, "lokr_w1", "lokr_t1"), _factor(parts, "lokr_w2", "lokr_t2")
    first = first.reshape(*first.shape, *[1] * (second.dim() - first.dim()))
    return torch.kron(first, second.contiguous())  # kron views its arguments


def _glora(parts: dict[str, Tensor], weight: Tensor) -> Tensor:
    import torch

    a1, a2, b1, b2 = (parts[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    turned = torch.einsum("o i ..., i r, r j -> o j ...", weight, a1.flatten(1), a2.flatten(1))
    return turned.flatten(1) + b1.flatten(1) @ b2.flatten(1)


def _orthogonal(kind: str, parts: dict[str, Tensor], weight: Tensor) -> Tensor:
    from lycoris.functional import boft, diag_oft

    function = boft.diff_weight if kind == "boft" else diag_oft.diff_weight
    return function(weight, parts["oft_blocks"], parts.get("rescale"), constraint=0)


def merge(denoiser: nn.Module, factors: dict[str, Factors]) -> None:
    """Add the updates {module path: Factors} to the denoiser's weights, in place.

    On low-precision weights the sum is rounded to them, as it is for every reader that merges.
    """
    import torch

    from dreamlit.quantisation.layers import is_quantised

    faults = Faults("the file does not fit this model", CheckpointError)
    with torch.no_grad():
        for name, entry in factors.items():
            layer = denoiser.get_submodule(name)
            if is_quantised(layer):
                faults.add(f"{name}: its weight is in few bits, into which nothing can be merged; load the model whole")
                continue
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            parts = {part: tensor.to(weight.device) for part, tensor in entry.parts.items()}
            try:
                update = delta(parts, entry.scale, weight)
            except RuntimeError as error:
                faults.add(f"{name}: shapes do not fit a weight of {list(weight.shape)} ({error})")
                continue
            weight.copy_((weight.float() + update).to(weight.dtype))
    faults.raise_if_any()
