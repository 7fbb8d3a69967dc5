"""What is in an adapter file, and which of it a model has a place for. Free of torch unless a model is given."""

from __future__ import annotations

import collections
import json
import pathlib
import struct
from typing import Any

from dreamlit import formats
from dreamlit.errors import CheckpointError

DENOISERS = ("unet", "transformer")


def inspect_file(path: str, model: str | None = None) -> tuple[str, bool]:
    """A report on an adapter file as text, and whether all of it is known (and matched, if a model is given).

    Args:
        path: A .safetensors adapter file.
        model: A diffusers model folder (or its unet or transformer folder); its denoiser is built from the
            configuration alone, without weights.

    Errors: `CheckpointError` if the file or the model's configuration cannot be read.
    """
    header = formats.read_header(path)
    groups, unknown = formats.grouped(header.tensors)
    shapes = {module: {part: header.tensors[key][1] for part, key in keys.items()} for module, keys in groups.items()}
    kinds = {module: formats.algorithm_of(parts) for module, parts in shapes.items()}
    lines = [f"file       {pathlib.Path(path).name}, {pathlib.Path(path).stat().st_size:,} bytes"]
    lines.append(f"format     {formats.layout_of(header.tensors)}")
    lines.append(f"algorithm  {_counts(kind or 'incomplete' for kind in kinds.values())}")
    lines.append(f"rank       {_counts(rank for rank in map(formats.rank_of, shapes.values()) if rank) or 'none'}")
    lines.append(f"alpha      {_counts(_alphas(path, header, groups, shapes)) or 'none'}")
    lines.append(f"modules    {len(groups)}, {len(header.tensors)} tensors")
    problems = [f"unknown key      {key}" for key in unknown]
    problems += [
        f"incomplete       {module}: {', '.join(groups[module])}" for module, kind in kinds.items() if not kind
    ]
    if model is not None:
        matched, unmatched = _match(shapes, model)
        lines.append(f"matched    {matched} / {len(groups)} modules of {pathlib.Path(model).name}")
        problems += unmatched
    if not groups:
        problems.append("no adapter key in this file")
    lines += [f"metadata   {key}: {_brief(value)}" for key, value in sorted(header.metadata.items())]
    return "\n".join(lines + problems), not problems


def _counts(values: Any) -> str:
    """`4 (64 modules), 8 (2 modules)`: distinct values, the most frequent first."""
    counts = collections.Counter(values)
    return ", ".join(f"{value} ({n} module{'s' * (n != 1)})" for value, n in counts.most_common())


def _brief(value: str, limit: int = 200) -> str:
    return value if len(value) <= limit else f"{value[:limit]}... ({len(value)} characters)"


def _alphas(path: str, header: formats.Header, groups: dict[str, dict[str, str]], shapes: dict[str, Any]) -> list[str]:
    """Each module's alpha: its tensor, or what peft computes from the metadata (without any: the rank)."""
    settings = formats.peft_settings(header.metadata)
    found = []
    for module, keys in groups.items():
        rank = formats.rank_of(shapes[module])
        if "alpha" in keys:
            found.append(f"{_scalar(path, header, keys['alpha']):g}")
        elif rank and formats.layout_of(keys.values()) == "diffusers":
            name = module.partition(".")[2] or module
            found.append(f"{formats.peft_scale(name, rank, settings) * rank:g}")
        elif rank:
            found.append("missing (read as the rank)")
    return found


def _scalar(path: str, header: formats.Header, key: str) -> float:
    """One number of a file; bfloat16 is the upper half of a float32."""
    kind, shape = header.tensors[key]
    start, end = header.offsets[key]
    codes = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i"}
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(end - start)
    if kind == "BF16" and len(data) == 2:
        return struct.unpack("<f", b"\0\0" + data)[0]
    if kind not in codes or len(data) != struct.calcsize(codes[kind]):
        raise CheckpointError(f"{key}: a number is needed, {kind} {list(shape)} came")
    return float(struct.unpack(codes[kind], data)[0])


def _match(shapes: dict[str, dict[str, tuple[int, ...]]], model: str) -> tuple[int, list[str]]:
    """How many modules have a layer of the right size in the model, and a line for each that has none."""
    layers = denoiser_layers(pathlib.Path(model))
    names = {name.replace(".", "_"): name for name in layers}
    matched, lines = 0, []
    for module, parts in shapes.items():
        name = formats.located(module, names)
        if name is None:
            lines.append(f"unmatched        {module}: the model has no such layer")
            continue
        size, wanted = formats.layer_size(parts), layers[name][:2]
        if size is not None and size != wanted:
            lines.append(
                f"another size     {module}: made for {list(size)}, the layer has {list(wanted)} outputs, inputs"
            )
            continue
        matched += 1
    return matched, lines


def denoiser_layers(model: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """{name: weight shape} of every linear and convolution layer of a model folder's denoiser, without its weights."""
    import diffusers
    import torch

    from dreamlit.adapters.targets import layers

    folders = [model / name for name in DENOISERS if (model / name / "config.json").is_file()]
    folder = folders[0] if folders else model
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = getattr(diffusers, config["_class_name"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{model}: no unet/config.json or transformer/config.json of diffusers ({type(error).__name__}); "
            "give the folder of a diffusers model"
        ) from None
    with torch.device("meta"):
        denoiser = kind.from_config(config)
    return {layer.name: tuple(layer.module.weight.shape) for layer in layers(denoiser)}
