"""Load one component of a pretrained model from its files; every tensor must come from them."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ModelError
from dreamlit.families.files import MODULES, STEMS, ModelFiles, read_header, read_json, vae_folder
from dreamlit.imports import quick_imports
from dreamlit.quiet import no_weight_bars

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dreamlit.families.base import Family

SINGLE_FILE_PREFIXES = {
    "vae": ("first_stage_model.",),
    "unet": ("model.diffusion_model.",),
    "transformer": ("model.diffusion_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders."),
}


def component_class(index: dict[str, Any], name: str) -> type[Any]:
    """The class that `model_index.json` names for a component."""
    library, class_name = map(str, index[name])
    module = MODULES.get(library, library)
    with quick_imports():
        found = getattr(importlib.import_module(module), class_name, None) if library in STEMS else None
    if found is None:
        raise ModelError(f"model_index.json names {library}.{class_name} for {name!r}, which is not available here")
    return found


def empty(kind: type[Any], folder: pathlib.Path) -> Any:
    """A model of its configuration: parameters on the meta device, buffers that are in no file as they must be."""
    import accelerate

    with accelerate.init_empty_weights(include_buffers=False):
        if hasattr(kind, "from_config"):  # of diffusers
            return kind.from_config(read_json(folder / "config.json"))
        return kind(kind.config_class.from_pretrained(folder, local_files_only=True))


def bare(family: Family, name: str) -> nn.Module:
    """A component of a family with all its layers, frozen, parameters on the meta device. Errors: `ModelError`."""
    folder = family.files.configuration(f"{name}/config.json").parent
    override = family.overrides.get(name)
    if override is not None and name == "vae" and not override.is_file:
        folder, _ = vae_folder(override)
    return empty(component_class(family.files.index, name), folder).requires_grad_(False).eval()


def compile_blocks(denoiser: Any) -> None:
    """Compiles the denoiser's repeated blocks; not all models of diffusers name them as such."""
    if not getattr(denoiser, "_repeated_blocks", None):
        denoiser._repeated_blocks = [name for name in denoiser._no_split_modules if name.endswith("Block")]
    denoiser.compile_repeated_blocks()


def load_config_object(files: ModelFiles, name: str) -> Any:
    """A component without weights (tokenizer, scheduler)."""
    return component_class(files.index, name).from_pretrained(files.folder / name, local_files_only=True)


def load_model(files: ModelFiles, name: str, dtype: torch.dtype) -> nn.Module:
    """A component with weights, on the CPU. Errors: `ModelError` if a tensor is missing."""
    if files.is_file:
        model = load_from_single_file(files, name, dtype)
    else:
        model = load_from_folder(files.folder / name, component_class(files.index, name), files.variant, dtype)
    return complete(model, name, files.path)


def load_from_folder(folder: pathlib.Path, kind: type[Any], variant: str | None, dtype: torch.dtype) -> nn.Module:
    """A component from its folder in the diffusers layout."""
    of_transformers = any(base.__module__.startswith("transformers.") for base in kind.__mro__)
    dtype_name = "dtype" if of_transformers else "torch_dtype"
    options = {"variant": variant, "use_safetensors": True, "local_files_only": True, dtype_name: dtype}
    try:
        with no_weight_bars():
            model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded as {kind.__name__}: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder}: the weights lack {len(missing)} tensors, the first is {missing[0]!r}")
    return model


def load_from_single_file(files: ModelFiles, name: str, dtype: torch.dtype) -> nn.Module:
    """A component from a file in the original (LDM / SGM) layout; its configuration comes from the layout folder."""
    kind = component_class(files.index, name)
    prefixes = SINGLE_FILE_PREFIXES[name.removesuffix("_2")]
    tensors = read_tensors(files.local, prefixes, dtype)
    if not tensors:
        raise ModelError(f"{files.path}: holds no {name}: no tensor begins with {' or '.join(prefixes)}")
    return from_original(kind, tensors, files, files.folder, name, dtype)


def from_original(
    kind: type[Any], tensors: dict[str, Any], files: ModelFiles, layout: pathlib.Path, name: str, dtype: torch.dtype
) -> nn.Module:
    """Let diffusers rename the tensors of `files` and fill a model that the configuration in `layout` describes."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    is_text = name.startswith("text_encoder")
    load = functools.partial(clip_from_original, kind) if is_text else kind.from_single_file
    options = {"config": str(layout), "subfolder": name, "torch_dtype": dtype, "local_files_only": True}
    try:
        with quiet("diffusers.models.modeling_utils"):  # warns of an empty list of modules
            return load(tensors, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SingleFileComponentError) as error:
        raise ModelError(
            f"{files.path}: its {name} lacks tensors or does not fit the configuration in {layout} ({error}); "
            f"{'path' if files.option == 'transformer' else 'single_file_config'} must name a model of the same kind"
        ) from error


@contextlib.contextmanager
def quiet(logger_name: str) -> Iterator[None]:
    """Only errors of one logger inside."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def clip_from_original(kind: type[Any], tensors: dict[str, Any], **options: Any) -> nn.Module:
    """A CLIP text model; diffusers tells the encoders of SD 1.x, SD 2.x and SDXL apart by their keys and widths."""
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    return create_diffusers_clip_model_from_ldm(kind, tensors, **options)


def load_override(files: ModelFiles, model: ModelFiles, name: str, dtype: torch.dtype) -> nn.Module:
    """A component from elsewhere: a `.safetensors` file; for a VAE also a folder of it or of a model, or a hub id.

    A lone file has no configuration, so it is read as a component of the model's own layout.
    """
    kind = component_class(model.index, name)
    if not files.is_file:
        folder, variant = vae_folder(files)
        return complete(load_from_folder(folder, kind, variant, dtype), name, files.path)
    prefixes = SINGLE_FILE_PREFIXES[name]
    tensors = read_tensors(files.local, prefixes, dtype) or read_tensors(files.local, ("",), dtype)
    if name == "transformer":  # diffusers takes the prefix off for some models only
        tensors = {key.removeprefix(prefixes[0]): value for key, value in tensors.items()}
    return complete(from_original(kind, tensors, files, model.folder, name, dtype), name, files.path)


def read_tensors(path: pathlib.Path, prefixes: tuple[str, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a file whose names begin with one of `prefixes`, as `dtype`; the rest is not read."""
    from safetensors import safe_open

    names = [name for name in read_header(path) if name != "__metadata__" and name.startswith(prefixes)]
    with safe_open(path, framework="pt") as file:  # one after the other: never a second copy of all
        return {name: converted(file.get_tensor(name), dtype) for name in names}


def converted(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Numbers with a fraction as `dtype`; others as they are."""
    return value.to(dtype) if value.is_floating_point() else value


def complete(model: nn.Module, name: str, path: str) -> nn.Module:
    """`model` frozen, if every parameter has a value; the libraries leave those without weights on "meta"."""
    if lacking := [key for key, value in model.named_parameters() if value.is_meta]:
        raise ModelError(f"{path}: the weights of {name} lack {len(lacking)} tensors, the first is {lacking[0]!r}")
    return model.requires_grad_(False)
