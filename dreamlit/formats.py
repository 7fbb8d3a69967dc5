"""What is in an adapter file: header, parts, algorithms, ranks and alphas. Free of torch."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import pathlib
import struct
from typing import Any

from dreamlit.errors import CheckpointError

PEFT_PARTS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}
"""peft's part names -> the LyCORIS names used here."""
LORA_PARTS = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "dora_scale")
ALGORITHM_PARTS: dict[str, tuple[str, ...]] = {
    "lora": LORA_PARTS,
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2"),
    "glora": ("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
    "oft": ("oft_blocks", "rescale"),
}
PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_", "unet.", "transformer.")
METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers looks for the peft configuration."""
_PARTS = sorted(
    {"alpha", *PEFT_PARTS, *(part for parts in ALGORITHM_PARTS.values() for part in parts)}, key=len, reverse=True
)


@dataclasses.dataclass
class Header:
    """The head of a safetensors file: {key: (dtype, shape)} and the metadata."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str]
    offsets: dict[str, tuple[int, int]]
    """Bytes from the start of the file."""


def read_header(path: str | pathlib.Path) -> Header:
    """Read a safetensors header and check that the file is whole.

    Errors: `CheckpointError` for a missing, truncated or other kind of file, with what it looks like.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give an adapter's .safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        body = file.read(length) if 2 <= length <= min(size - 8, 100_000_000) else b""
    try:
        entries = json.loads(body)
        metadata = entries.pop("__metadata__", {}) or {}
        tensors = {key: (entry["dtype"], tuple(entry["shape"])) for key, entry in entries.items()}
        offsets = {
            key: (8 + length + e["data_offsets"][0], 8 + length + e["data_offsets"][1]) for key, e in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise CheckpointError(f"{path} is not a whole safetensors file: {_looks_like(path, size)}") from None
    needed = max((end for _, end in offsets.values()), default=8 + length)
    if needed > size:
        raise CheckpointError(f"{path} is truncated: {size} bytes of {needed}; copy or download it again")
    return Header(tensors, {str(k): str(v) for k, v in metadata.items()}, offsets)


def _looks_like(path: pathlib.Path, size: int) -> str:
    with path.open("rb") as file:
        head = file.read(256)
    if size == 0:
        return "it is empty"
    if head.lstrip()[:1] == b"<":
        return "it is a web page; the download needs another address or a login"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run `git lfs pull`"
    if head.startswith((b"PK", b"\x80")):
        return "it is a pickled PyTorch file, which can run code; convert it to safetensors first"
    return f"{size} bytes that do not begin with a readable header; copy or download it again"


def split_key(key: str) -> tuple[str, str] | None:
    """`lora_unet_x.lora_up.weight` -> (`lora_unet_x`, `lora_up.weight`); peft's parts by their LyCORIS names."""
    for part in _PARTS:
        if key.endswith(f".{part}"):
            return key[: -len(part) - 1], PEFT_PARTS.get(part, part)
    return None


def grouped(keys: Any) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Keys by module: {module as the file names it: {part: key}}, and the keys that are no known part."""
    groups: dict[str, dict[str, str]] = {}
    unknown = []
    for key in keys:
        split = split_key(key)
        if split is None:
            unknown.append(key)
        else:
            groups.setdefault(split[0], {})[split[1]] = key
    return groups, unknown


def algorithm_of(shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The algorithm that a module's parts {part: shape} belong to, or None if they belong together in no way."""
    parts = shapes.keys() - {"alpha"}
    for name, known in ALGORITHM_PARTS.items():
        if parts and parts <= set(known):
            if name == "lora":
                return _lora_kind(parts)
            if name == "oft":
                return "boft" if len(shapes.get("oft_blocks", ())) == 4 else "diag-oft"
            return name
    return None


def _lora_kind(parts: set[str]) -> str | None:
    if not {"lora_down.weight", "lora_up.weight"} <= parts:
        return None
    return "dora" if "dora_scale" in parts else "lora"


def rank_of(shapes: dict[str, tuple[int, ...]]) -> int | None:
    """The rank that alpha is divided by, or None where there is none (two full factors, orthogonal updates)."""
    for part in ("lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b", "a2.weight"):
        if part in shapes:
            return int(shapes[part][0])
    return None


def layout_of(keys: Any) -> str:
    """`diffusers` (peft part names), `kohya` (LyCORIS part names) or `unknown`."""
    known = [key for key in keys if split_key(key)]
    if not known:
        return "unknown"
    return "diffusers" if any(key.endswith(tuple(f".{part}" for part in PEFT_PARTS)) for key in known) else "kohya"


def located(module: str, names: dict[str, str]) -> str | None:
    """The model's name for a file's module name; `names` maps names with `_` for `.` to names."""
    for prefix in PREFIXES:
        if module.startswith(prefix):
            return names.get(module[len(prefix) :].replace(".", "_"))
    return names.get(module.replace(".", "_"))


def peft_settings(metadata: dict[str, str]) -> dict[str, Any] | None:
    """The peft configuration that diffusers reads, without its part prefix; None if the file has none."""
    if METADATA_KEY not in metadata:
        return None
    try:
        settings = json.loads(metadata[METADATA_KEY])
        return {key.partition(".")[2] or key: value for key, value in settings.items()}
    except (ValueError, AttributeError):
        raise CheckpointError(f"metadata {METADATA_KEY} is not a JSON object; export the adapter again") from None


def peft_scale(name: str, rank: int, settings: dict[str, Any] | None) -> float:
    """What peft multiplies B A with: alpha / rank, or alpha / sqrt(rank); without settings diffusers takes 1."""
    import re

    if settings is None:
        return 1.0
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def most_common(values: Any) -> Any:
    """The value that occurs most often; of several, the first."""
    return collections.Counter(values).most_common(1)[0][0]


def layer_size(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """(outputs, inputs) of the layer that a module's parts were made for; None where the parts do not tell both."""
    kind = algorithm_of(shapes)
    if kind in ("lora", "dora"):
        return shapes["lora_up.weight"][0], shapes["lora_down.weight"][1]
    if kind == "glora" and {"b1.weight", "b2.weight"} <= shapes.keys():
        return shapes["b1.weight"][0], shapes["b2.weight"][1]
    return None
