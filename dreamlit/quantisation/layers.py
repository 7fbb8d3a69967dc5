"""Linear layers whose weight is stored in few bits, by optimum-quanto, torchao and bitsandbytes. Imports torch.

Quantised here after loading, not through diffusers' configurations: the same code on a CPU and a GPU.
"""

from __future__ import annotations

import importlib
import pathlib
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dreamlit.quantisation.levels import LEVELS, Level, is_chosen


def quantised(layer: nn.Linear, level: Level) -> nn.Linear:
    """The layer with its weight in few bits, frozen, on the same device. The old one may be changed.

    Errors: whatever the library raises where it does not work.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated parts of torch, which the libraries use
        made = _MAKERS[level.library](layer, level.kind)
    return made.requires_grad_(False)


def _by_quanto(layer: nn.Linear, kind: str) -> nn.Linear:
    from optimum import quanto

    if kind in PACKED_BY_QUANTO and layer.weight.device.type == "cpu":
        refuse_a_lock_left_behind()
    made: Any = quanto.nn.QLinear.from_module(layer, weights=getattr(quanto, kind))
    made.freeze()
    made.register_forward_pre_hook(_as_the_kernels_want)
    return made


PACKED_BY_QUANTO = ("qint2", "qint4")
BUILD_S = 600
"""Longer than any build of quanto's kernel takes."""


def refuse_a_lock_left_behind() -> None:
    """At its first use on a CPU quanto builds a kernel, and where such a build was killed it waits without end."""
    extension: Any = importlib.import_module("optimum.quanto.library.extensions.cpp")
    lock = pathlib.Path(extension.ext.build_directory) / "lock"
    if lock.exists() and time.time() - lock.stat().st_mtime > BUILD_S:
        raise RuntimeError(f"{lock} is left of a build of its kernel that was ended; remove that file")


def _as_the_kernels_want(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs in the weight's precision, which autocast only brings about for torch's own layers, and in order.

    The kernels that quanto calls on a CPU, for four and for eight bits, refuse others.
    """
    return inputs[0].to(module.weight.dtype).contiguous(), *inputs[1:]


def _by_torchao(layer: nn.Linear, kind: str) -> nn.Linear:
    import torchao.quantization

    torchao.quantization.quantize_(layer, getattr(torchao.quantization, kind)())
    if type(layer.weight.data) is Tensor:
        raise ValueError(f"torchao left a weight of {list(layer.weight.shape)} as it is")
    return layer


def _by_bitsandbytes(layer: nn.Linear, kind: str) -> nn.Linear:
    bnb: Any = importlib.import_module("bitsandbytes")
    options: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta"}
    device, weight, bias = layer.weight.device, layer.weight.data, layer.bias
    made: Any
    if kind == "nf4":
        made = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, compute_dtype=weight.dtype, quant_type="nf4", **options
        )
        # Else it computes as its first input came, and its first evaluation on some CPUs rounds its weight again.
        made.compute_type_is_set, made.support_avx512bf16_for_cpu = True, False
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made).to(device)
    else:
        made = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False, **options)
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
        if bias is not None and bias.dtype == torch.float32 and not bias.is_meta:
            bias = nn.Parameter(bias.bfloat16())  # the layer casts it to its input's precision, for good
    made.bias = bias
    return made


_MAKERS = {"optimum.quanto": _by_quanto, "torchao": _by_torchao, "bitsandbytes": _by_bitsandbytes}


def chosen(model: nn.Module, level: Level) -> Iterator[tuple[str, nn.Linear]]:
    """The layers of a model that a level is put on, by name; also on the meta device."""
    # T5 casts its activations to the precision of `wo`, which bitsandbytes' packed weights would make integers.
    stays = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or module.in_features % level.multiple:
            continue
        if is_chosen(name) and not stays & set(name.split(".")):
            yield name, module


def quantise(model: nn.Module, level: str) -> nn.Module:
    """Put a level on a loaded model, layer by layer, in place."""
    for name, layer in chosen(model, LEVELS[level]):
        model.set_submodule(name, quantised(layer, LEVELS[level]))
    return model.requires_grad_(False)


def is_quantised(layer: nn.Module) -> bool:
    """Whether the layer's weight is stored in few bits."""
    weight: Any = getattr(layer, "weight", None)
    return weight is not None and not (type(weight.data) is Tensor and type(weight) in (nn.Parameter, Tensor))


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight as the forward pass sees it: the very tensor, or what few bits stand for, in float32."""
    weight: Any = layer.weight
    if not is_quantised(layer):
        return weight
    if type(weight).__name__ == "Params4bit":
        bnb: Any = importlib.import_module("bitsandbytes")
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    if type(weight).__name__ == "Int8Params":
        return weight.data.float() * (_scales(layer).view(-1, 1) / 127)
    return weight.dequantize().float()


def stored_bytes(layer: nn.Module) -> int:
    """Bytes that a layer's weight takes, its scales included."""
    weight: Any = layer.weight
    if type(weight).__name__ == "Params4bit":
        parts = weight.quant_state.as_dict().values()
        return weight.data.nbytes + sum(part.nbytes for part in parts if isinstance(part, Tensor))
    if type(weight).__name__ == "Int8Params":
        return weight.data.nbytes + _scales(layer).nbytes
    return _bytes_in(weight)


def _scales(layer: Any) -> Tensor:
    """Each output's scale of an eight-bit layer of bitsandbytes, which its first forward pass moves."""
    return layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB


def _bytes_in(weight: Any) -> int:
    """Bytes of a tensor, or of the tensors that a subclass is made of."""
    if not hasattr(weight, "__tensor_flatten__") or type(weight) in (Tensor, nn.Parameter):
        return weight.numel() * weight.element_size()
    names, _ = weight.__tensor_flatten__()
    return sum(_bytes_in(getattr(weight, name)) for name in names)
