"""Adapter files read strictly: every key must belong to a layer of the model."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dreamlit import formats
from dreamlit.adapters.base import Adapter, Factors, shortened
from dreamlit.errors import CheckpointError, CombinationError, Faults

if TYPE_CHECKING:
    from torch import Tensor


def load_adapter_file(path: str | pathlib.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors on the CPU and metadata of an adapter file. Errors: `CheckpointError`, see `formats.read_header`."""
    from safetensors.torch import load_file

    header = formats.read_header(path)
    if formats.layout_of(header.tensors) == "unknown":
        keys = shortened(sorted(header.tensors), 4) or "no tensors"
        raise CheckpointError(f"{path} is no adapter file that is known here; it has {keys}")
    return load_file(str(path)), header.metadata


def read_factors(tensors: dict[str, Tensor], metadata: dict[str, str], layers: Iterable[str]) -> dict[str, Factors]:
    """An adapter file's modules by the model's names, each with its parts and alpha / rank.

    Errors: `CheckpointError` naming every key that belongs to none of `layers`.
    """
    groups, unknown = formats.grouped(tensors)
    names = {name.replace(".", "_"): name for name in layers}
    faults = Faults("the file does not fit this model", CheckpointError)
    if unknown:
        faults.add(f"{len(unknown)} keys of no known kind: {shortened(sorted(unknown))}")
    settings = formats.peft_settings(metadata)
    found, lost = {}, []
    for module, keys in groups.items():
        name = formats.located(module, names)
        parts = {part: tensors[key] for part, key in keys.items()}
        if name is None:
            lost.append(module)
            continue
        found[name] = Factors(parts, _scale(name, parts, settings, peft=_is_peft(keys.values())))
    if lost:
        faults.add(f"{len(lost)} modules that the model does not have: {shortened(sorted(lost))}")
    faults.raise_if_any()
    return found


def _is_peft(keys: Any) -> bool:
    return any(key.endswith(tuple(formats.PEFT_PARTS)) for key in keys)


def _scale(name: str, parts: dict[str, Tensor], settings: dict[str, Any] | None, *, peft: bool) -> float:
    rank = formats.rank_of({part: tuple(tensor.shape) for part, tensor in parts.items()})
    if rank is None:
        return 1.0
    if "alpha" in parts:
        return float(parts["alpha"]) / rank
    return formats.peft_scale(name, rank, settings) if peft else 1.0


def load_into_adapter(path: str | pathlib.Path, adapter: Adapter) -> None:
    """Start an attached adapter from a file of either layout: same modules, parts and shapes, whatever the alpha."""
    if adapter.denoiser is None:
        raise CombinationError("attach the adapter to a denoiser before loading a file into it")
    tensors, metadata = load_adapter_file(path)
    adapter.load_factors(read_factors(tensors, metadata, adapter.layer_names))
