"""Run code on tensors that have shapes and no memory, and count the bytes that would be alive at each moment."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from types import MethodWrapperType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreamlit.quantisation import LEVELS

KEPT_FOR_BACKWARD = {"optimum.quanto": "input", "torchao": "weight", "bitsandbytes": ""}
"""What a layer in few bits keeps for the backward pass, by library: its input, its weight unpacked, or nothing.

Seen with torch.autograd.graph.saved_tensors_hooks: a plain frozen layer keeps its own weight alone.
"""
IN_FLOAT32 = {F.layer_norm, F.group_norm, torch.layer_norm, torch.group_norm, F.softmax, torch.softmax, Tensor.softmax}
"""What autocast widens on a GPU and not on a CPU; it then keeps the wide input."""
MAKES_SMALL = {torch.tensor, torch.as_tensor, torch.from_numpy}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that exist inside, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen[key] = weakref.ref(storage, lambda _: self._gone(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        self.live -= size


class Attention(torch.autograd.Function):
    """A fused attention kernel as far as its memory goes: what it makes and what it keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, mask, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return *(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None


class StoredLinear(torch.autograd.Function):
    """A linear layer in few bits as far as its memory goes: its weight is unpacked for each use."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kept: str) -> Tensor:
        unpacked = torch.empty(weight.shape, dtype=x.dtype)
        ctx.save_for_backward(weight, {"input": x, "weight": unpacked}.get(kept))
        ctx.shape, ctx.kept = x.shape, kept
        return x.new_empty(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        unpacked = None if ctx.kept == "weight" else torch.empty(ctx.saved_tensors[0].shape, dtype=grads[0].dtype)
        made = grads[0].new_empty(ctx.shape)
        del unpacked
        return made, None, None


class Kernels(TorchFunctionMode):
    """Calls as the device's kernels would take them, where that decides memory.

    Args:
        device: Type of the device that is thought of.
        stored: id of a weight -> the level that it is stored in.
    """

    def __init__(self, device: str, stored: dict[int, str] | None = None) -> None:
        super().__init__()
        self.device, self.stored = device, {} if stored is None else stored

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if type(func) is MethodWrapperType:  # a shape, a dtype: asked for all the time
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if func is F.linear and id(args[1]) in self.stored:
            return self._stored_linear(*args, **kwargs)
        if func in IN_FLOAT32 and self.device == "cuda" and torch.is_autocast_enabled("cpu"):
            return func(args[0].float(), *args[1:], **kwargs)
        if is_known(func, args, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _stored_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kept = KEPT_FOR_BACKWARD[LEVELS[self.stored[id(weight)]].library]
        return StoredLinear.apply(autocast(x), weight, kept)


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Any:
    """In place of torch's `scaled_dot_product_attention`."""
    return Attention.apply(autocast(query), autocast(key), autocast(value), attn_mask)


def autocast(tensor: Tensor) -> Tensor:
    """The tensor in autocast's precision, where it is on."""
    return tensor.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else tensor


def is_known(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call concerns values that are there (token ids, masks, sizes), whose content code may ask for."""
    if func in MAKES_SMALL:
        return True
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    return bool(tensors) and not any(isinstance(tensor, (FakeTensor, nn.Parameter)) for tensor in tensors)


@contextlib.contextmanager
def without_memory(device: str, stored: dict[int, str] | None = None) -> Iterator[LiveBytes]:
    """Inside, what is made has no memory, and the bytes that it would have on a device of this type are counted."""
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live, Kernels(device, stored):
        yield live


def emptied(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Inside `without_memory`: gives a module of the meta device parameters and buffers without memory.

    Args:
        dtype: Of all floating-point values but those that are trained, which stay as they are.
    """
    made: dict[int, Any] = {}
    for child in module.modules():
        for name, value in child._parameters.items():
            if value is not None:
                made.setdefault(id(value), nn.Parameter(empty_like(value, dtype), requires_grad=value.requires_grad))
                child._parameters[name] = made[id(value)]
        for name, value in child._buffers.items():
            if value is not None:
                made.setdefault(id(value), empty_like(value, dtype))
                child._buffers[name] = made[id(value)]
    return module


def empty_like(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the same shape, without memory; frozen floating-point values as `dtype`."""
    frozen = value.is_floating_point() and not value.requires_grad
    return torch.empty(value.shape, dtype=dtype if frozen else value.dtype, device="cpu")
