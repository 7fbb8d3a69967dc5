"""Reading dataset entries: from a file or a plain list to dataclasses, with every fault of a list in one report."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dreamlit.datamodules.config_checks import duplicate_faults, entry_faults, list_faults
from dreamlit.datamodules.config_entries import ENTRY_CLASSES, DatasetSpec
from dreamlit.datamodules.config_values import CONVERTERS, absolute, shown
from dreamlit.errors import ConfigError, Faults

ALIASES = {"is_regularization_data": "is_regularisation_data", "disable": "disabled"}

NOT_HERE = {
    "caption_dropout_probability": "here it is caption_dropout",
    "max_upscale_threshold": "here it is max_upscale, a factor: a threshold of 0.5 is max_upscale: 1.5",
    "train_batch_size": "the batch size belongs to the whole run: data.batch_size",
    "delete_unwanted_images": "dataset folders are never changed; images that are not used are listed",
    "delete_problematic_images": "dataset folders are never changed; on_bad_file: skip leaves such images out",
    "preserve_data_backend_cache": "caches are found by content and never go stale; remove the key",
    "override_dataset_config": "no copy of the settings is kept; remove the key",
    "skip_file_discovery": "the folder is always read anew; remove the key",
    "vae_cache_clear_each_epoch": "crops are fixed for each image; remove the key",
    "vae_cache_ondemand": "latents are always made before training; remove the key",
    "text_embeds": "a run has one store of text embeddings: the entry with dataset_type text_embeds",
    "write_batch_size": "it has no counterpart; remove the key",
    "text_encoder_batch_size": "it has no counterpart; remove the key",
}
"""Keys of other trainers that have nothing to do here, and what to do instead."""


@dataclasses.dataclass
class _Entry:
    """One entry of a list as far as it could be read."""

    place: str
    spec: DatasetSpec | None
    faults: list[str]
    has_unknown_keys: bool = False


def read_entries(items: Iterable[Any], source: str = "datasets") -> list[DatasetSpec]:
    """The enabled entries of a list of mappings (or of entries already read).

    Raises:
        ConfigError: One report of all faults, each with the index in the list and the dataset's id.
    """
    entries = [_entry(item, f"{source}[{index}]") for index, item in enumerate(items)]
    usable = [(entry.spec, entry.place) for entry in entries if entry.spec is not None]
    enabled = [(spec, place) for spec, place in usable if not spec.disabled]
    disabled = [spec for spec, _ in usable if spec.disabled]
    enabled = [
        (spec, place) for spec, place in enabled if not _masks_of_disabled(spec, [s for s, _ in enabled], disabled)
    ]
    specs, where = [spec for spec, _ in enabled], [place for _, place in enabled]

    faults = Faults(f"{source} cannot be used")
    for entry in entries:
        for line in entry.faults:
            faults.add(f"{entry.place}: {line}")
    for line in [*duplicate_faults(specs, where), *list_faults(specs, where, disabled, complete=not faults)]:
        faults.add(line)
    for cls in dict.fromkeys(type(entry.spec) for entry in entries if entry.spec and entry.has_unknown_keys):
        faults.add(f"options of {' and '.join(cls.dataset_types)} datasets: {', '.join(_names(cls))}")
    faults.raise_if_any()
    return specs


def _masks_of_disabled(spec: DatasetSpec, enabled: list[DatasetSpec], disabled: list[DatasetSpec]) -> bool:
    """Whether only disabled datasets name these masks: switching off a dataset switches off its masks."""
    users = [getattr(other, "conditioning_data", None) == spec.id for other in enabled]
    return not any(users) and any(getattr(other, "conditioning_data", None) == spec.id for other in disabled)


def _entry(item: Any, place: str) -> _Entry:
    if isinstance(item, ENTRY_CLASSES):
        item = to_mapping(item)
    if not isinstance(item, Mapping):
        return _Entry(place, None, [f"came {shown(item)}; allowed: a block of keys and values"])
    place = f"{place} (id {item['id']!r})" if item.get("id") is not None else f"{place} (no id)"
    raw, faults = _canonical_keys(item)
    try:
        kind = CONVERTERS["dataset_type"](raw.get("dataset_type", "image"))
    except ValueError as error:
        return _Entry(place, None, [*faults, f"dataset_type: {error}"])
    cls = next(cls for cls in ENTRY_CLASSES if kind in cls.dataset_types)
    unknown = [_unknown_key(key, cls) for key in raw if key not in _names(cls)]
    faults += unknown
    values, wrong = _convert(raw, cls)
    faults += wrong
    missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in values]
    faults += [f"{key!r} is missing: every {kind} dataset needs it" for key in missing if key not in raw]
    # An entry with faults still takes part in the checks of the list, with what could be read of it.
    blanks: dict[str, Any] = dict.fromkeys(missing, "?")
    spec = cls(**(blanks | values))
    combined = [] if faults or spec.disabled else list(entry_faults(spec))
    return _Entry(place, spec, faults + combined, bool(unknown))


def _canonical_keys(item: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The entry with every alias under its canonical key; two spellings that disagree are a fault."""
    raw = {str(key): value for key, value in item.items() if key not in ALIASES}
    faults = []
    for alias, key in ALIASES.items():
        if alias not in item:
            continue
        if key in raw and raw[key] != item[alias]:
            faults.append(f"{alias} is {item[alias]!r} and {key} is {raw[key]!r}: they mean the same; keep one")
        raw.setdefault(key, item[alias])
    return raw, faults


def _unknown_key(key: str, cls: type[DatasetSpec]) -> str:
    kind = cls.dataset_types[0]
    if key in NOT_HERE:
        return f"{kind!r} datasets have no option {key!r}: {NOT_HERE[key]}"
    close = difflib.get_close_matches(key, [*_names(cls), *ALIASES], n=1, cutoff=0.6)
    others = [other.dataset_types[0] for other in ENTRY_CLASSES if key in _names(other)]
    hint = f"; did you mean {close[0]!r}?" if close else ""
    if others:
        hint = f"; it belongs to dataset_type {' or '.join(others)}"
    return f"{kind!r} datasets have no option {key!r}{hint}"


def _convert(raw: Mapping[str, Any], cls: type[DatasetSpec]) -> tuple[dict[str, Any], list[str]]:
    """The values of an entry's known keys, and the faults of those that are wrong."""
    values, faults = {}, []
    for field in dataclasses.fields(cls):
        if field.name not in raw or (raw[field.name] is None and field.default is None):
            continue
        try:
            values[field.name] = CONVERTERS[field.name](raw[field.name])
        except ValueError as error:
            faults.append(f"{field.name}: {error}")
    return values, faults


def _names(cls: type[DatasetSpec]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def to_mapping(spec: DatasetSpec) -> dict[str, Any]:
    """An entry as plain values with absolute paths: reading it again, from any folder, gives an equal entry."""
    plain = {key: _plain(value) for key, value in dataclasses.asdict(spec).items()}
    for key in ("instance_prompt", "class_prompt"):
        if len(plain.get(key, ())) == 1:
            plain[key] = plain[key][0]
    plain["class_words"] = dict(plain.get("class_words", ())) or None
    return {key: value for key, value in plain.items() if value is not None and value != []}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_list(path: str) -> list[DatasetSpec]:
    """The entries of a JSON or YAML file; relative paths in it start where those of the command do.

    Raises:
        ConfigError: The file is not there, is not JSON or YAML, or its entries have faults.
    """
    path = absolute(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"datasets: {path} cannot be read ({reason}); allowed: a list, or the path of a JSON or YAML file with one"
        ) from None
    return read_text(content, os.path.basename(path), is_json=path.lower().endswith(".json"))


def read_text(content: str, source: str, is_json: bool = False) -> list[DatasetSpec]:
    """The entries of JSON or YAML text."""
    try:
        items = _load_json(content) if is_json else _load_yaml(content)
    except ValueError as error:
        raise ConfigError(f"{source} is not valid {'JSON' if is_json else 'YAML'}: {error}") from None
    if not isinstance(items, list):
        raise ConfigError(f"{source}: came {shown(items)}; allowed: a list of dataset entries")
    return read_entries(items, source)


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping of pairs; a key that stands twice would silently lose its first value."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):  # `? [a]: b` in YAML
            raise ValueError("a key is a list or a block; allowed: text")
        if key in found:
            raise ValueError(f"the key {key!r} stands twice in one entry; keep one")
        found[key] = value
    return found


def _load_json(content: str) -> Any:
    return json.loads(content, object_pairs_hook=_unique)


def _load_yaml(content: str) -> Any:
    import yaml  # a list in JSON, or one that is already parsed, needs no YAML

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        _unique((key.value, None) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge")
        loader.flatten_mapping(node)  # puts the keys of `<<` merges first, so that the entry's own win
        return {loader.construct_object(key, True): loader.construct_object(value, True) for key, value in node.value}

    # YAML 1.1 takes 1e-3, which JSON writes, for text.
    exponent = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(content, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
