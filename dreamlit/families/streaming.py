"""Load a component straight into few bits, tensor by tensor: it never stands whole in its full precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamlit.errors import ModelError
from dreamlit.families.files import weight_files
from dreamlit.families.loading import complete, component_class, empty
from dreamlit.quantisation import LEVELS

if TYPE_CHECKING:
    import pathlib

    import torch
    from torch import nn

    from dreamlit.families.base import Family

TRIM_BYTES = 8 * 1024**2
"""Memory is given back each time that so much was read.

glibc takes blocks below 32 MB from its heap once one was freed, so the temporaries of smaller layers stay between the
packed weights: about twice this figure (measured for nf4: 60 MB at 32 MB, 28 MB at 8 MB).
"""


def load_quantised(family: Family, name: str, level: str, device: Any) -> nn.Module:
    """A component of a family, frozen, the linear layers of its blocks in few bits, on a device.

    Files whose tensors have the names of the model's own are read one tensor at a time; others (a single file in the
    original layout, a text encoder of an older layout, a family that loads in a way of its own) are loaded whole first.
    Errors: `ModelError`.
    """
    from dreamlit.quantisation.layers import quantise

    in_own_way = type(family)._load.__module__ != "dreamlit.families.base"
    elsewhere = family.files.is_file or name in family.overrides
    model = None if elsewhere or in_own_way else streamed(family, name, level, device)
    if model is None:
        model = quantise(family._load(name).to(device), level)
    return complete(model, name, family.files.path)


def streamed(family: Family, name: str, level: str, device: Any) -> nn.Module | None:
    """The component read tensor by tensor; None where its files have other names than the model."""
    import torch
    from safetensors import SafetensorError

    folder, kind = family.files.folder / name, component_class(family.files.index, name)
    files = weight_files(folder, family.files.index[name][0], family.files.variant)
    model = empty(kind, folder)
    try:
        if tensor_names(files) - model.state_dict().keys():
            return None
        fill(model, files, getattr(torch, family.dtype), level, device)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded as {level}: {error}") from error
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model.eval()


def tensor_names(files: list[pathlib.Path]) -> set[str]:
    """Names of all tensors in `.safetensors` files."""
    from safetensors import safe_open

    names: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def fill(model: nn.Module, files: list[pathlib.Path], dtype: torch.dtype, level: str, device: Any) -> None:
    """Give a model on the meta device its tensors; a layer's weight is stored in few bits as soon as it came."""
    import torch
    from safetensors import safe_open

    from dreamlit.quantisation.layers import chosen, quantised

    waiting = 0
    few_bits = {f"{name}.weight": name for name, _ in chosen(model, LEVELS[level])}
    exact = set(getattr(model, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                kind = torch.float32 if exact & set(name.split(".")) else dtype
                value = file.get_tensor(name)
                put(model, name, value, kind, device)
                if name in few_bits:
                    layer: Any = model.get_submodule(few_bits[name])
                    model.set_submodule(few_bits[name], quantised(layer, LEVELS[level]))
                    del layer
                waiting += value.nbytes
                if waiting > TRIM_BYTES:
                    waiting = 0
                    trim()


def trim() -> None:
    """Give freed memory back to the system, which glibc does not do with what lies between the packed weights."""
    import ctypes
    import sys

    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):  # musl has none
        library.malloc_trim(0)


def put(model: nn.Module, name: str, value: torch.Tensor, dtype: torch.dtype, device: Any) -> None:
    """Replace one parameter or buffer."""
    from torch import nn

    parent, _, own = name.rpartition(".")
    module = model.get_submodule(parent)
    value = value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype, copy=True)
    if own in module._buffers:
        module._buffers[own] = value
    else:
        module._parameters[own] = nn.Parameter(value, requires_grad=False)
