"""Faults of a model's files that can be found without loading it, one line each."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ModelError
from dreamlit.families.files import STEMS, ModelFiles, read_header, read_json, vae_folder, weight_faults
from dreamlit.families.loading import component_class, empty

if TYPE_CHECKING:
    from dreamlit.families.base import Family

WHOLE = "model.diffusion_model."
"""Begins the names of a denoiser's tensors in a file of a whole model."""
PACKED = ("I8", "U8", "I32")
SCALES = ("scale_weight", "weight_scale", "scaled_fp8", ".absmax", ".comfy_quant")
"""Tensors without which a packed weight is worth nothing, and which nobody here reads."""
TOKENIZER_FILES = ("vocab.json", "tokenizer.json", "spiece.model", "tokenizer.model")


def path_faults(family: Family) -> list[str]:
    """Faults of the paths themselves: nothing there, a pickle, a damaged file."""
    named = [files for files in (family.files, *family.overrides.values(), family.tiny_vae_files) if files]
    if family.files.is_file and family.files.config:
        named.append(family.files.layout)
    return [fault for files in named if (fault := files.fault())]


def idle_faults(family: Family) -> list[str]:
    """Options that are set and do nothing for this kind of path."""
    files, faults = family.files, []
    kind = "a single file" if files.is_file else "a hub id" if files.is_hub else "a folder"
    wanted = {"single_file_config": (files.config, files.is_file), "revision": (files.revision, files.is_hub)}
    wanted["variant"] = (files.variant, not files.is_file or "vae" in family.overrides)
    for name, (value, used) in wanted.items():
        if value and not used:
            faults.append(f"{name} {value!r} does nothing for {kind} ({files.path}); leave it out")
    return faults


def model_faults(family: Family) -> list[str]:
    """All faults of the files that the paths lead to."""
    if family.files.is_file and (faults := list(single_file_faults(family))):
        return faults
    faults = []
    try:
        index = family.files.index
    except ModelError as error:
        return [str(error)]
    if (name := index.get("_class_name")) != family.pipeline_class:
        kinds = [kind.__name__ for kind in concrete_families() if kind.pipeline_class == name]
        hint = f"set family to {kinds[0]}" if kinds else "no family loads that"
        where = family.files.layout.path
        return [f"{where}: model_index.json says {name}, not {family.pipeline_class}; {hint}"]
    if not family.files.layout.is_hub:
        for name in component_names(family):
            faults += component_faults(family, name, index.get(name))
    if (vae := family.overrides.get("vae")) and not vae.is_hub and not vae.is_file:
        faults += vae_faults(family, vae)
    if family.tiny_vae_files and not family.tiny_vae_files.is_hub:
        from dreamlit.families.quick import tiny_faults

        faults += tiny_faults(family, family.tiny_vae_files)
    return faults


def component_names(family: Family) -> list[str]:
    """Everything that a local folder must have."""
    tokenizers = [tokenizer for _, tokenizer in family.text_parts()]
    return [
        *family.components("denoiser"),
        *family.components("text_encoders"),
        *tokenizers,
        *family.components("vae"),
        "scheduler",
    ]


def component_faults(family: Family, name: str, entry: Any) -> Iterator[str]:
    """Yield the faults of one component of a local folder; a single file's layout needs no weights."""
    folder = family.files.folder / name
    if not (isinstance(entry, list) and len(entry) == 2 and entry[0] in STEMS):
        yield f"{folder}: model_index.json has {entry!r} for it, not a class of diffusers or transformers"
        return
    if name.startswith("tokenizer"):
        if not any((folder / file).is_file() for file in TOKENIZER_FILES):
            yield f"{folder}: none of {', '.join(TOKENIZER_FILES)} is there"
        return
    try:
        config = read_json(folder / ("scheduler_config.json" if name == "scheduler" else "config.json"))
    except ModelError as error:
        yield str(error)
        return
    if name == family.denoiser_name and (channels := config.get("in_channels")) != family.denoiser_channels:
        yield f"{folder}: takes {channels} channels, not {family.denoiser_channels}: a model made for another task"
    if name == "scheduler" or family.files.is_file or name in family.overrides:
        return
    yield from weight_faults(folder, entry[0], family.files.variant)


def vae_stride(config: dict[str, Any]) -> int:
    """Pixels per latent cell of an autoencoder with this configuration."""
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    blocks = blocks or config.get("dim_mult") or (64,)
    return 2 ** (len(blocks) - 1)


def vae_faults(family: Family, files: ModelFiles) -> Iterator[str]:
    """Yield the faults of a local VAE override folder."""
    try:
        folder, variant = vae_folder(files)
        config = read_json(folder / "config.json")
        channels, stride = config.get("latent_channels", config.get("z_dim")), vae_stride(config)
    except ModelError as error:
        yield str(error)
        return
    if channels != family.latent_channels:
        yield f"{folder}: an autoencoder with {channels} latent channels, not {family.latent_channels}"
    elif stride != family.stride:
        yield f"{folder}: an autoencoder of {stride} pixels a cell; this model's latents have {family.stride}"
    yield from weight_faults(folder, "diffusers", variant)


def transformer_faults(family: Family, mark: str | None) -> Iterator[str]:
    """Yield why a file of other weights for the transformer cannot be read; `mark` is a name of the original layout."""
    if (files := family.overrides.get("transformer")) is None:
        return
    if not files.is_file:
        yield f"transformer {files.path!r} must be a .safetensors file; give a whole model as path"
        return
    header = {name: entry for name, entry in read_header(files.local).items() if name != "__metadata__"}
    packed = [name for name, entry in header.items() if entry["dtype"] in PACKED or name.endswith(SCALES)]
    if packed:
        yield (
            f"{files.path}: its weights are packed in few bits ({packed[0]}); give the file in bf16 or fp16, and ask "
            "for few bits by model.base_model_precision"
        )
        return
    names = {name.removeprefix(WHOLE) for name in header}
    config = family.files.configuration("transformer/config.json")
    own = set(empty(component_class(family.files.index, "transformer"), config.parent).state_dict())
    if mark not in names and own - names:
        kinds = "diffusers' layout" + (" or the original one" if mark else "")
        sample = ", ".join(list(header)[:3])
        yield f"{files.path}: no weights of a {type(family).__name__} in {kinds}; its tensors are {sample}, ..."


def single_file_faults(family: Family) -> Iterator[str]:
    """Yield what tells that a single file holds another family's model, or no whole model."""
    names = [name for name in read_header(family.files.local) if name != "__metadata__"]

    def fits(kind: type[Family]) -> bool:
        return any(name.startswith(tuple(kind.single_file_layouts)) for name in names)

    if fits(type(family)):
        return
    if kinds := [kind.__name__ for kind in concrete_families() if fits(kind)]:
        yield f"{family.files.path}: holds a model of another family; set family to {kinds[0]}"
    else:
        sample = ", ".join(names[:3])
        yield f"{family.files.path}: not a whole {type(family).__name__} model; its tensors are {sample}, ..."


def concrete_families() -> list[type[Family]]:
    """All families that exist, the package's first and then a user's own ones."""
    from dreamlit.families.base import Family

    found, waiting = [], [Family]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        found += [] if inspect.isabstract(kind) or kind in found else [kind]
    return sorted(found, key=lambda kind: (not kind.__module__.startswith("dreamlit."), kind.__name__))
