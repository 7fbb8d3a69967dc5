"""What each LyCORIS algorithm can do, which layers a preset means, and the plan of a module. Imports no library."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from typing import Any

from dreamlit.adapters.base import check_number, check_rank
from dreamlit.adapters.targets import Layer
from dreamlit.errors import ConfigError, nearest

DROPOUTS = frozenset({"dropout", "module_dropout"})
LOW_RANK = frozenset({"alpha", "conv_rank", "conv_alpha", "use_tucker", "multiplier"})
FEATURES: dict[str, frozenset[str]] = {
    "locon": LOW_RANK | DROPOUTS | {"rank_dropout"},
    "loha": LOW_RANK | DROPOUTS | {"rank_dropout"},
    "lokr": LOW_RANK | DROPOUTS | {"factor", "decompose_both", "full_matrix"},
    "glora": (LOW_RANK | DROPOUTS) - {"use_tucker"},
    "diag-oft": frozenset({"conv_rank", "module_dropout"}),
    "boft": frozenset({"conv_rank", "module_dropout"}),
}
"""The options each algorithm honours beside `rank`; any other that is given is refused."""

REFUSED = {
    "dylora": "its checkpoints cannot be read back whole; use 'locon'",
    "ia3": "no file of it can be loaded again; use 'lokr' with a low rank, which is as small",
    "full": "a detached layer is not re-attached right; use the adapter class Full, with `targets` for a part",
    "tlora": "its rank depends on the timestep, which no reader of the file knows; use 'locon'",
    "dora": "use the adapter class LoRA with `use_dora: true`",
}
WHY_NOT = {
    "rank_dropout": "the library ignores or inverts it here; use `module_dropout`",
    "dropout": "an orthogonal update cannot drop parts and start at the base model; use `module_dropout`",
    "use_tucker": "the library ignores it here",
    "multiplier": "its file format has no strength, so only 1.0 can be exported",
    "alpha": "it has no such factor",
}

PRESETS = ("attn-only", "attn-mlp", "full-lin", "full", "unet-convblock-only", "all")
PRESET_KEYS = (
    "target_module",
    "target_name",
    "module_algo_map",
    "name_algo_map",
    "exclude_name",
    "use_fnmatch",
    "enable_conv",
)
MAP_ALIASES = {"dim": "rank", "linear_dim": "rank", "linear_alpha": "alpha", "conv_dim": "conv_rank"}

BEYOND = (
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
    "ChromaTransformerBlock",
    "ChromaSingleTransformerBlock",
    "AuraFlowJointTransformerBlock",
    "AuraFlowSingleTransformerBlock",
    "BasicTransformerBlock",
    "SanaTransformerBlock",
    "QwenImageTransformerBlock",
    "Flux2TransformerBlock",
    "Flux2SingleTransformerBlock",
    "Lumina2TransformerBlock",
    "ZImageTransformerBlock",
    "Attention",
)
"""Blocks that the library's presets do not name; the last for DeepFloyd, whose attention is in no transformer."""
_ATTENTIONS = ("FluxAttention", "Flux2Attention", "Flux2ParallelSelfAttention")
_TRANSFORMERS = ("Transformer2DModel", "JointTransformerBlock", *BEYOND)
_RESNETS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
_ENDS = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
_PRESET_TABLE: dict[str, dict[str, Any]] = {
    "attn-only": {"target_module": ("Attention", *_ATTENTIONS), "enable_conv": False},
    "attn-mlp": {"target_module": _TRANSFORMERS, "enable_conv": False},
    "full-lin": {
        "target_module": (*_TRANSFORMERS, "ResnetBlock2D"),
        "target_name": _ENDS[2:],
        "enable_conv": False,
    },
    "full": {"target_module": (*_TRANSFORMERS, *_RESNETS), "target_name": _ENDS},
    "unet-convblock-only": {"target_module": _RESNETS, "target_name": _ENDS[:2]},
    "all": {"target_module": ("Linear", "Conv2d")},
}
"""LyCORIS' own presets by the class names of diffusers. (The library's `attn-only` names classes that diffusers does
not have, and its wrapper reads none of a preset's `unet_target_*` keys, so that every preset means every layer.)"""


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of one module."""

    algo: str
    rank: float
    alpha: float | None
    conv_rank: float | None
    conv_alpha: float | None
    factor: int
    decompose_both: bool
    full_matrix: bool
    use_tucker: bool
    dropout: float
    rank_dropout: float
    module_dropout: float

    def dim_of(self, layer: Layer) -> int:
        """The rank on a layer; a fraction is of the smaller of its input and output sizes, at least 1."""
        rank = self.conv_rank if layer.convolution and self.conv_rank is not None else self.rank
        if 0 < rank < 1:
            out_size, in_size = layer.sizes
            return max(1, round(rank * min(int(out_size), int(in_size))))
        return int(rank)

    def alpha_on(self, layer: Layer) -> float:
        """The alpha on a layer; left out, the layer's own rank."""
        alpha = self.conv_alpha if layer.convolution and self.conv_alpha is not None else self.alpha
        return float(self.dim_of(layer) if alpha is None else alpha)


def algorithm(name: str) -> str:
    """The canonical name of an algorithm, or an error with the reason and the nearest thing that works."""
    lower = str(name).lower()
    if lower in REFUSED:
        raise ConfigError(f"algo: {name!r} is refused: {REFUSED[lower]}")
    canonical = {"lora": "locon", "oft": "diag-oft"}.get(lower, lower)
    if canonical not in FEATURES:
        raise ConfigError(f"algo: {name!r} came. {nearest(lower, FEATURES)}")
    return canonical


def checked(given: dict[str, Any], algo: str, where: str = "") -> None:
    """Check the values that were given, and that the algorithm honours each of them."""
    for name, value in given.items():
        if name in ("rank", "conv_rank") and not (name == "conv_rank" and value == 0):
            check_rank(where + name, value, fraction=algo not in ("diag-oft", "boft"))
        elif name in ("alpha", "conv_alpha", "multiplier"):
            check_number(where + name, value, above=0)
        elif name.endswith("dropout"):
            check_number(where + name, value, below=1)
        elif name == "factor" and (isinstance(value, bool) or int(value) != value or not (value > 0 or value == -1)):
            raise ConfigError(f"{where}factor: {value!r} came; it must be a whole number above 0, or -1 for the root")
    for name in given.keys() - FEATURES[algo] - {"rank", "algo"}:
        why = WHY_NOT.get(name, "it has no such option")
        raise ConfigError(
            f"{where}{name}: {algo} does not use it ({why}). It uses: {', '.join(sorted(FEATURES[algo]))}"
        )
    if given.get("full_matrix") and (given.get("alpha") or given.get("decompose_both")):
        raise ConfigError(
            f"{where}full_matrix: it leaves no rank, so `alpha` and `decompose_both` do nothing; drop them"
        )


def override(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """One value of a per-module map with the library's spellings turned into ours, and checked by name."""
    allowed = {field.name for field in dataclasses.fields(Options)}
    renamed = {MAP_ALIASES.get(key, key): value for key, value in entry.items()}
    for key in renamed.keys() - allowed:
        raise ConfigError(f"{where}: unknown option {key!r}. {nearest(key, allowed)}")
    if "algo" in renamed:
        renamed["algo"] = algorithm(renamed["algo"])
    return renamed


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which layers take part and with which overrides.

    A layer takes part if a class that contains it (or its own) is in `target_module` or `module_algo_map`, or if its
    name matches `target_name` or `name_algo_map` (a regular expression from the start of the name, or a glob with
    `use_fnmatch`), unless its name or that of a module around it matches `exclude_name`.
    """

    target_module: tuple[str, ...] = ()
    target_name: tuple[str, ...] = ()
    module_algo_map: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    name_algo_map: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    exclude_name: tuple[str, ...] = ()
    use_fnmatch: bool = False
    enable_conv: bool = True

    @classmethod
    def of(cls, preset: str | dict[str, Any], module_algo_map: dict[str, dict[str, Any]] | None) -> Selection:
        """From a preset's name or a mapping with the library's keys."""
        if isinstance(preset, str) and preset not in _PRESET_TABLE:
            raise ConfigError(f"preset: {preset!r} came. {nearest(preset, PRESETS)}")
        mapping = dict(_PRESET_TABLE[preset] if isinstance(preset, str) else preset)
        for key in mapping.keys() - set(PRESET_KEYS):
            raise ConfigError(f"preset: unknown key {key!r}. {nearest(key, PRESET_KEYS)}")
        for key in ("target_module", "target_name", "exclude_name"):
            value = mapping.get(key, ())
            mapping[key] = (value,) if isinstance(value, str) else tuple(value)
        maps = {**mapping.get("module_algo_map", {}), **(module_algo_map or {})}
        mapping["module_algo_map"] = {k: override(v, f"module_algo_map[{k!r}]") for k, v in maps.items()}
        names = mapping.get("name_algo_map", {})
        mapping["name_algo_map"] = {k: override(v, f"name_algo_map[{k!r}]") for k, v in names.items()}
        return cls(**mapping)

    def named(self, pattern: str, name: str) -> bool:
        if name == pattern:
            return True
        return fnmatch.fnmatchcase(name, pattern) if self.use_fnmatch else re.match(pattern, name) is not None

    def around(self, pattern: str, name: str) -> bool:
        """Whether the pattern names a layer or a module around it."""
        parts = name.split(".")
        return any(self.named(pattern, ".".join(parts[: i + 1])) for i in range(len(parts)))

    def excluded(self, name: str) -> bool:
        return any(self.around(pattern, name) for pattern in self.exclude_name)

    def overrides(self, layer: Layer) -> dict[str, Any] | None:
        """What differs from the adapter's own options on this layer, or None if the layer takes no part."""
        if self.excluded(layer.name):
            return None
        found: dict[str, Any] = {}
        chosen = any(name in self.target_module for name in layer.classes)
        for name in layer.classes:
            if name in self.module_algo_map:
                chosen, found = True, {**self.module_algo_map[name]}
        for pattern, entry in self.name_algo_map.items():
            if self.named(pattern, layer.name):
                chosen, found = True, {**found, **entry}
        chosen = chosen or any(self.named(pattern, layer.name) for pattern in self.target_name)
        return found if chosen else None

    def idle(self, every: list[Layer]) -> list[str]:
        """Entries that touch no layer."""
        classes = {name for layer in every for name in layer.classes}
        idle = [name for name in (*self.target_module, *self.module_algo_map) if name not in classes]
        for pattern in (*self.target_name, *self.name_algo_map):
            if not any(self.named(pattern, layer.name) for layer in every):
                idle.append(pattern)
        unused = [p for p in self.exclude_name if not any(self.around(p, layer.name) for layer in every)]
        return idle + unused
