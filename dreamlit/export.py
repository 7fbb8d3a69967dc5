"""Adapter files that other tools load: written whole or not at all, read strictly, and proved by a round trip.

Formats: `diffusers` (peft names with the peft configuration in the metadata: what `load_lora_weights` reads exactly),
`kohya` = `lycoris` (`lora_unet_...` names with the true alpha of every module: ComfyUI, A1111), `folder` (full
weights).

diffusers reads the kohya layout too, but not all of it: it drops the alphas of modules whose alpha is not the most
common one, and misplaces some layers outside attention, without an error. Give it the diffusers layout.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dreamlit import formats
from dreamlit.adapter_files import load_adapter_file, load_into_adapter
from dreamlit.adapters.base import Adapter
from dreamlit.errors import CheckpointError, CombinationError, nearest
from dreamlit.round_trip import RoundTrip, check_round_trip

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "RoundTrip",
    "check_round_trip",
    "export",
    "export_full",
    "load_adapter_file",
    "load_into_adapter",
]

EXPORT_MARK = "dreamlit.json"
EXPORTED = re.compile(r"config\.json|dreamlit\.json|diffusion_pytorch_model.*\.(safetensors|json)")
"""The files of an exported folder."""
FORMATS = ("diffusers", "kohya", "lycoris", "folder")


def export(
    adapter: Adapter,
    path: str | pathlib.Path,
    *,
    family: Any,
    format: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Write an attached adapter; returns the path.

    Args:
        adapter: The attached adapter.
        path: File to write (a folder for `Full`); replaced whole if it exists.
        family: Gives the prefixes of keys: `export_prefix` (`lora_unet`) and `pipeline_prefix` (`unet`).
        format: One of `FORMATS`; left out, the first of `adapter.default_formats()`.
        metadata: Facts to record, such as the base model, its fingerprint and the training step. Absolute paths are
            cut to their last part.

    Errors: `CombinationError` if the format cannot hold this adapter; `OSError` if the disk fails.
    """
    path = pathlib.Path(path)
    format = format or written_formats(adapter, family)[0]
    if format not in FORMATS:
        raise CombinationError(f"format {format!r}: {nearest(format, FORMATS)}")
    if format not in adapter.formats:
        raise CombinationError(f"{type(adapter).__name__} has no format {format!r}: {nearest(format, adapter.formats)}")
    if format in family.unread_formats:
        others = " or ".join(repr(name) for name in adapter.formats if name not in family.unread_formats)
        raise CombinationError(f"format {format!r}: {family.unread_formats[format]}. Write it as {others}")
    facts = file_metadata(adapter, metadata or {})
    if format == "folder":
        assert adapter.denoiser is not None
        return export_full(adapter.denoiser, path, facts)
    if format == "diffusers":
        tensors, more = _diffusers(adapter, family.pipeline_prefix)
    else:
        tensors, more = _kohya(adapter, family.export_prefix)
    write_atomically(path, tensors, {"format": "pt", **facts, **more})
    return path


def written_formats(adapter: Adapter, family: Any) -> tuple[str, ...]:
    """The adapter's formats that something reads for this family. Errors: `CombinationError` if there is none."""
    found = adapter.default_formats()
    if read := tuple(format for format in found if format not in family.unread_formats):
        return read
    what = "DoRA" if getattr(adapter, "use_dora", False) else type(adapter).__name__
    raise CombinationError(
        f"{what} is written as {' or '.join(found)} alone, which nothing reads for {type(family).__name__}: "
        f"{family.unread_formats[found[0]]}. Use LoRA without DoRA, or LyCORIS"
    )


def file_metadata(adapter: Adapter, metadata: Mapping[str, Any]) -> dict[str, str]:
    """`dreamlit.*` entries, values as JSON unless they are text, and without absolute paths."""
    import dreamlit

    facts = {"version": getattr(dreamlit, "__version__", "unknown"), **adapter.describe(), **metadata}
    cut = {key: without_paths(value) for key, value in facts.items()}
    return {f"dreamlit.{k}": v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in cut.items()}


def without_paths(value: Any) -> Any:
    """The value with every absolute path in it (POSIX, home, Windows) cut to its last part."""
    if isinstance(value, Mapping):
        return {str(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [without_paths(item) for item in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and re.match(r"(file:/|/|~|\\\\|[A-Za-z]:[\\/])", value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _kohya(adapter: Adapter, prefix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {}
    for name, part, tensor in adapter.tensors():
        if part == "dora_scale":
            raise CombinationError("DoRA is not written as kohya: readers disagree about its norm; use diffusers")
        module = name if prefix.endswith(".") else f"_{name.replace('.', '_')}"
        tensors[f"{prefix}{module}.{part}"] = on_cpu(tensor)
    facts = adapter.describe()
    kind = "networks.lora" if facts["algorithm"] == "lora" else "lycoris.kohya"
    args = {} if kind == "networks.lora" else {"algo": facts["algorithm"]}
    return tensors, {
        "ss_network_module": kind,
        "ss_network_dim": str(facts.get("rank")),
        "ss_network_alpha": str(facts.get("alpha")),
        "ss_network_args": json.dumps(args),
    }


def _diffusers(adapter: Adapter, prefix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    names = {ours: theirs for theirs, ours in formats.PEFT_PARTS.items()}
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for name, part, tensor in adapter.tensors():
        if part == "alpha":
            alphas[name] = float(tensor)
            continue
        if part not in names:
            what = adapter.describe()["algorithm"] + (" in Tucker form" if part == "lora_mid.weight" else "")
            raise CombinationError(
                f"the diffusers format holds plain LoRA only, not {what}; export it as 'lycoris', which ComfyUI reads"
            )
        if part == "lora_down.weight":
            ranks[name] = tensor.shape[0]
        if part == "dora_scale":  # peft: [out] for linear layers, [1, out, 1, 1] for convolutions
            tensor = tensor.reshape(-1) if tensor.dim() == 2 else tensor.transpose(0, 1)
        tensors[f"{prefix}.{name}.{names[part]}"] = on_cpu(tensor)
    settings = _peft_settings(ranks, alphas, any(key.endswith("magnitude_vector") for key in tensors))
    packed = {f"{prefix}.{key}": value for key, value in settings.items()}
    return tensors, {formats.METADATA_KEY: json.dumps(packed, sort_keys=True)}


def _peft_settings(ranks: dict[str, int], alphas: dict[str, float], dora: bool) -> dict[str, Any]:
    rank, alpha = formats.most_common(ranks.values()), formats.most_common(alphas.values())
    exact = {name: f"^{re.escape(name)}" for name in ranks}  # anchored: one name may be the end of another
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {exact[name]: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {exact[name]: value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(ranks),
        "use_dora": dora,
        "use_rslora": False,  # the square root is in the alphas
        "lora_bias": False,
    }


def on_cpu(tensor: Tensor) -> Tensor:
    """A float32 copy on the CPU that shares no memory."""
    import torch

    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def write_atomically(path: pathlib.Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file under a temporary name, flush it to disk and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        _write_safetensors(temporary, tensors, metadata)
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system can flush a folder
        _flush(path.parent)


def _write_safetensors(path: pathlib.Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """float32 tensors in the safetensors layout; the library's own writer orders metadata differently each time."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * 4
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # so that the numbers are aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for tensor in tensors.values():
            file.write(tensor.numpy().astype("<f4", copy=False).tobytes())


def _flush(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_to_replace(folder: pathlib.Path) -> None:
    """An exported folder takes the place of an earlier one, or of nothing: it could be the user's photos.

    Errors: `CheckpointError` if anything else is there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    other = [path.name for path in folder.iterdir() if not EXPORTED.fullmatch(path.name)] if folder.is_dir() else []
    if other or not (folder / EXPORT_MARK).is_file():
        what = f"{folder} (with {other[0]})" if other else f"{folder}"
        raise CheckpointError(
            f"the exported weights would go to {what}, which is no earlier export of dreamlit: move it away, or give "
            "the run another trainer.default_root_dir (export: --output)"
        )


def export_full(
    denoiser: nn.Module, folder: str | pathlib.Path, metadata: Mapping[str, str] | None = None
) -> pathlib.Path:
    """Write the denoiser as a diffusers folder (configuration and safetensors), whole or not at all; returns it.

    Errors: `CheckpointError` if something else than an earlier export stands at its place.
    """
    folder = pathlib.Path(folder)
    refuse_to_replace(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        new = temporary / "new"
        denoiser.save_pretrained(new)  # pyright: ignore[reportCallIssue]
        config = json.loads((new / "config.json").read_text(encoding="utf-8"))
        config = {key: without_paths(value) for key, value in config.items()}
        (new / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        facts = json.dumps(dict(metadata or {}), indent=2)
        (new / EXPORT_MARK).write_text(facts + "\n", encoding="utf-8")  # by it an export knows an earlier one
        for path in new.iterdir():
            _flush(path)
        if folder.exists():
            folder.replace(temporary / "old")
        new.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
