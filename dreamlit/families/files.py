"""Where a pretrained model's files are: a diffusers folder, a hub id or one `.safetensors` file. Nothing is loaded."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dreamlit.errors import ModelError

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model", "kolors": "model"}
"""Names of weight files by the library that wrote them; other libraries would mean to run a model's own code."""
MODULES = {"kolors": "diffusers.pipelines.kolors"}
"""Where the classes of a library of `STEMS` are, if not in a module of its name: those of one pipeline of diffusers."""
PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LAYOUT = ["*.json", "*.txt", "*.model"]
"""What a hub model's folder needs when its weights come from elsewhere (the patterns reach subfolders)."""


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """A pretrained model by its name: `path` is a folder, a `.safetensors` file or a hub id."""

    path: str
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    """Folder or hub id with the layout of a single file."""
    local_files_only: bool = False
    layouts: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    """For a single file without `config`: how a tensor's name begins -> hub id with the layout."""
    option: str = "path"
    """The option that a user sets to name another place."""
    without: tuple[str, ...] = ()
    """Components of a hub model whose weights come from elsewhere and need not be fetched."""

    @functools.cached_property
    def local(self) -> pathlib.Path:
        return pathlib.Path(self.path).expanduser()

    @property
    def is_file(self) -> bool:
        return self.local.suffix == ".safetensors" or self.local.is_file()

    @property
    def is_hub(self) -> bool:
        return not self.local.exists() and not self.is_file and bool(HUB_ID.fullmatch(self.path))

    def fault(self) -> str | None:
        """What is wrong with the path itself, before anything is asked of the hub."""
        if self.local.suffix in PICKLES:
            return f"{self.path}: a pickle can run code when it is read; convert it to .safetensors"
        if self.is_file:
            return f"{self.path}: no such file" if not self.local.is_file() else header_fault(self.local)
        if not self.local.exists() and not self.is_hub:
            return f"{self.path}: no such folder; give a diffusers folder, a .safetensors file or a hub id (owner/name)"
        return None

    @functools.cached_property
    def layout(self) -> ModelFiles:
        """Where the configurations and tokenizers are: these files themselves unless they are a single file."""
        if not self.is_file:
            return self
        config = self.config or self._usual_layout()
        if config is None:
            raise ModelError(
                f"{self.path}: the file does not tell its configuration; set single_file_config to the diffusers "
                "folder or hub id of the model that it was made from"
            )
        return ModelFiles(config, local_files_only=self.local_files_only, option="single_file_config")

    def _usual_layout(self) -> str | None:
        names = tuple(read_header(self.local))
        return next((hub for mark, hub in self.layouts.items() if any(name.startswith(mark) for name in names)), None)

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        """The content of `model_index.json`. Errors: `ModelError` if there is none or it cannot be read."""
        return read_json(self.configuration("model_index.json"))

    def configuration(self, name: str) -> pathlib.Path:
        """Local path of one configuration file, for example "vae/config.json"; no weights are fetched."""
        return hub_file(self.layout, name) if self.layout.is_hub else self.layout.local / name

    @functools.cached_property
    def folder(self) -> pathlib.Path:
        """The local diffusers folder; a hub model is downloaded with its weights, a single file's layout without."""
        layout = self.layout
        if not layout.is_hub:
            return layout.local
        return hub_folder(layout, LAYOUT) if self.is_file else hub_pipeline(self)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file. Errors: `ModelError` that says what is wrong with the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; is {path.parent} a complete diffusers folder?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a JSON object is expected, this is a {type(content).__name__}")
    return content


def read_header(path: pathlib.Path) -> dict[str, Any]:
    """The header of a `.safetensors` file: name -> dtype, shape and place of each tensor."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000:
            raise ValueError("it does not begin with a safetensors header")
        header = json.loads(file.read(length))
    ends = [value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if path.stat().st_size != expected:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, its header promises {expected:,}")
    return header


def header_fault(path: pathlib.Path) -> str | None:
    """What is wrong with a `.safetensors` file as far as its header and its size tell."""
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-l"):
            return f"{path}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
    try:
        read_header(path)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return f"{path}: damaged or incomplete ({error}); download it again"
    return None


def weight_files(folder: pathlib.Path, library: str, variant: str | None) -> list[pathlib.Path]:
    """The `.safetensors` files of one component, sharded or not; empty when there are none of this variant."""
    stem, middle = STEMS[library], f".{variant}" if variant else ""
    whole = folder / f"{stem}{middle}.safetensors"
    if whole.is_file():
        return [whole]
    index = folder / f"{stem}.safetensors.index{middle}.json"
    if index.is_file():
        return sorted({folder / name for name in read_json(index)["weight_map"].values()})
    return []


def weight_faults(folder: pathlib.Path, library: str, variant: str | None) -> Iterable[str]:
    """Yield what is wrong with the weight files of one component."""
    files = weight_files(folder, library, variant)
    if not files:
        present = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES | {".safetensors"})
        wanted = f"{STEMS[library]}{f'.{variant}' if variant else ''}.safetensors"
        hint = "leave variant out or name another" if variant else "set variant, or convert a pickle to .safetensors"
        yield f"{folder}: no {wanted}; there is {', '.join(present) or 'no weight file'} ({hint})"
    for path in files:
        if not path.is_file():
            yield f"{path}: missing, though the index of the shards names it; download it again"
        elif fault := header_fault(path):
            yield fault


def hub_error(files: ModelFiles, error: Exception) -> ModelError:
    """The hub client's many errors as one that says what to do."""
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"{files.path!r} is not a folder or file here, and the hub did not give it ({type(error).__name__}: {cause}). "
        "Check the spelling and revision; log in with `hf auth login` if the model is private or gated; without "
        f"network, download it beforehand or set {files.option} to a local folder."
    )


def hub_file(files: ModelFiles, name: str) -> pathlib.Path:
    """Path of one file of a hub model in the local hub cache, downloaded if missing."""
    import huggingface_hub

    options = {"revision": files.revision, "local_files_only": files.local_files_only}
    try:
        return pathlib.Path(huggingface_hub.hf_hub_download(files.path, name, **options))
    except Exception as error:  # the client lets errors of several HTTP libraries through
        raise hub_error(files, error) from None


def hub_folder(files: ModelFiles, patterns: list[str]) -> pathlib.Path:
    """Folder of a hub model in the local hub cache with the files that match `patterns`."""
    import huggingface_hub

    options = {"revision": files.revision, "local_files_only": files.local_files_only}
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(files.path, allow_patterns=patterns, **options))
    except Exception as error:  # as above
        raise hub_error(files, error) from None


def hub_pipeline(files: ModelFiles) -> pathlib.Path:
    """Folder of a whole hub model in the local hub cache; diffusers chooses the weight files of the variant."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        folder = DiffusionPipeline.download(
            files.path,
            revision=files.revision,
            variant=files.variant,
            local_files_only=files.local_files_only,
            use_safetensors=True,
            **dict.fromkeys(("safety_checker", *files.without)),
        )
    except Exception as error:  # as above
        raise hub_error(files, error) from None
    for name in files.without:
        hub_file(files, f"{name}/config.json")
    return pathlib.Path(folder)


def vae_folder(vae: ModelFiles) -> tuple[pathlib.Path, str | None]:
    """The folder of another autoencoder (its own or a whole model's) and the variant of its weight files.

    `variant` concerns the base model, so plain weights serve where the autoencoder has no such variant.
    """
    root = hub_folder(vae, ["*config.json", "*diffusion_pytorch_model*.safetensors"]) if vae.is_hub else vae.local
    folder = root / "vae" if (root / "vae").is_dir() else root
    read_json(folder / "config.json")
    return folder, vae.variant if vae.variant and weight_files(folder, "diffusers", vae.variant) else None
