"""What every model family offers: load parts, encode, decode, predict, and build a pipeline for sampling."""

from __future__ import annotations

import copy
import dataclasses
import gc
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dreamlit.errors import Faults, ModelError, nearest
from dreamlit.families import checks, fingerprints, loading, streaming, vae
from dreamlit.families.drawing import Drawing
from dreamlit.families.files import ModelFiles, read_json
from dreamlit.quantisation import NO_CHANGE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Batch, Conditioning

Dtype = Literal["float32", "bfloat16", "float16"]


class Family(Drawing, ABC):
    """One pretrained model behind few verbs. The constructor remembers, `load` loads; subclassing is registering.

    Its parts are "vae", "text_encoders" and "denoiser". All of them are frozen.
    """

    latent_channels: ClassVar[int] = 4
    patch: ClassVar[int] = 1
    """Latent cells along a side of one token of the denoiser; images must have whole tokens."""
    noise: ClassVar[str] = ""
    """The process in a few words, for people."""
    tiny_autoencoder: ClassVar[str] = ""
    """Hub id of an AutoencoderTiny that fits, for people; see `tiny_vae`."""
    export_prefix: ClassVar[str] = "lora_unet"
    """Begins the names of layers in files that ComfyUI reads, with `_` for their dots unless it ends in a dot."""
    pipeline_prefix: ClassVar[str] = "unet"
    unread_formats: ClassVar[dict[str, str]] = {}
    """Formats of adapter files that nothing reads for this family -> why."""
    pipeline_class: ClassVar[str] = ""
    """Name of the diffusers pipeline, as `model_index.json` has it."""
    denoiser_name: ClassVar[str] = "unet"
    text_encoder_names: ClassVar[tuple[tuple[str, str], ...]] = (("text_encoder", "tokenizer"),)
    """Each text encoder with its tokenizer, as `model_index.json` names them."""
    single_file_layouts: ClassVar[dict[str, str | None]] = {}
    """How a tensor's name begins that only single files of this family have -> hub id of a model with their layout.

    None where the file does not tell all; then `single_file_config` must be given.
    """

    def __init__(
        self,
        path: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        vae: str | None = None,
        tiny_vae: str | None = None,
        single_file_config: str | None = None,
        dtype: Dtype = "float32",
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        compile: bool = False,
        local_files_only: bool = False,
    ) -> None:
        """Remember what to load.

        Args:
            path: A diffusers folder, a hub id (owner/name) or one .safetensors file in the original layout.
            revision: Branch, tag or commit of a hub id.
            variant: Which weight files of a folder or hub id to take, for example "fp16".
            vae: Another autoencoder: a folder, a hub id or a .safetensors file.
            tiny_vae: Folder or hub id of an AutoencoderTiny for this model's latents, such as TAESD: it shows images in
                the making; without it they are shown by one colour for each latent cell.
            single_file_config: Folder or hub id that gives configurations and tokenizers for a single file;
                by default the model that the family's files usually follow.
            dtype: Precision of the frozen denoiser and text encoders. The autoencoder is always float32.
            gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
            channels_last: Store convolution weights channels last; faster on recent GPUs.
            compile: Compile the denoiser's repeated blocks (torch.compile); slow first steps, then faster.
            local_files_only: Never ask the hub; use only what is already on this machine.
        """
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ModelError(f"dtype {dtype!r}: {nearest(str(dtype), ('float32', 'bfloat16', 'float16'))}")
        config = str(single_file_config) if single_file_config else None
        self.files = ModelFiles(str(path), revision, variant, config, local_files_only, self.single_file_layouts)
        offline = local_files_only
        self.overrides: dict[str, ModelFiles] = {}
        """Component -> where its weights are, for those that do not come from `files`."""
        if vae:
            self.overrides["vae"] = ModelFiles(str(vae), None, variant, None, offline, option="vae")
        self.tiny_vae_files = (
            ModelFiles(str(tiny_vae), local_files_only=offline, option="tiny_vae") if tiny_vae else None
        )
        self.files = dataclasses.replace(self.files, without=tuple(self.overrides))
        self.dtype = dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.channels_last = channels_last
        self.compile = compile
        self.precisions: dict[str, str] = {}
        """Component -> a level of `dreamlit.quantisation` in which it is loaded; those that are absent as `dtype`."""
        self.remembered: dict[str, Any] = {}
        """What the text encoders say to prompts that they were asked ahead (`dreamlit.families.recall`)."""
        self._loaded: dict[str, Any] = {}
        self._told: set[str] = set()
        """Captions of which it was said that they are cut."""

    def fresh(self) -> Family:
        """The same model with nothing loaded, to compare with the one that is trained."""
        twin = copy.copy(self)
        twin._loaded = {}
        return twin

    @property
    def stride(self) -> int:
        """Pixels per latent cell along one side, as diffusers computes it: the autoencoder halves between its blocks.

        Errors: `ModelError` when the autoencoder's configuration cannot be read.
        """
        return checks.vae_stride(read_json(self.files.configuration("vae/config.json")))

    @property
    def side_multiple(self) -> int:
        """Pixels that both sides of an image must be a multiple of. Errors: as `stride`."""
        return self.stride * self.patch

    @property
    def denoiser_channels(self) -> int:
        """Channels that the denoiser's configuration names as its input."""
        return self.latent_channels

    def store(self, denoiser: str, text_encoders: Sequence[str]) -> None:
        """Have components loaded in few bits: levels of `dreamlit.quantisation` for the denoiser and each encoder."""
        names = (self.denoiser_name, *(encoder for encoder, _ in self.text_encoder_names))
        levels = zip(names, (denoiser, *text_encoders), strict=False)
        self.precisions = {name: level for name, level in levels if level != NO_CHANGE}

    # What there is -------------------------------------------------------------------------------------------------

    def text_parts(self) -> tuple[tuple[str, str], ...]:
        """`text_encoder_names` without those that this model does without. Errors: as `ModelFiles.index`."""
        return self.text_encoder_names

    def components(self, part: str) -> tuple[str, ...]:
        """The components of a part that have weights, by their names in `model_index.json`."""
        parts = {
            "vae": ("vae",),
            "text_encoders": tuple(encoder for encoder, _ in self.text_parts()),
            "denoiser": (self.denoiser_name,),
        }
        if part not in parts:
            raise ValueError(f"no part {part!r}: {nearest(part, parts)}")
        return parts[part]

    def check(self) -> None:
        """Look for faults without loading anything: files there and whole, a model of this family.

        Of a hub model only `model_index.json` is fetched. Errors: one `ModelError` with all faults.
        """
        faults = Faults(f"{type(self).__name__} cannot use this model", ModelError)
        deeper = (checks.idle_faults, checks.model_faults, type(self).option_faults)
        for fault in checks.path_faults(self) or [fault for look in deeper for fault in look(self)]:
            faults.add(fault)
        faults.raise_if_any()

    def option_faults(self) -> list[str]:
        """Faults of this family's own options, found after the model's files were found to be right."""
        return []

    def fingerprint(self, part: str) -> str:
        """A hash over the weights and configuration of a part, made from its files without loading it.

        It is the same wherever the files are. For "text_encoders" it covers the tokenizers and the precision, which
        change the embeddings; the autoencoder always runs in float32, and the denoiser's precision is the trainer's.
        """
        return fingerprints.of_part(self, part)

    def text_options(self) -> dict[str, Any]:
        """Options that change the embeddings of a prompt."""
        levels = {name: self.precisions[name] for name, _ in self.text_parts() if name in self.precisions}
        return {"dtype": self.dtype, **({"precisions": levels} if levels else {})}

    # Loading -------------------------------------------------------------------------------------------------------

    def load(self, *parts: str, device: Any = "cpu") -> None:
        """Load parts, frozen, onto a device; what is already loaded is only moved. Errors: `ModelError`."""
        import torch

        with torch.inference_mode(False):  # weights that were made or moved in it are of no use to autograd
            for name in (name for part in parts for name in self.components(part)):
                if name in self.precisions and name not in self._loaded:
                    self._loaded[name] = streaming.load_quantised(self, name, self.precisions[name], device)
                elif name not in self._loaded:
                    self._loaded[name] = self._load(name)
                self._loaded[name].to(device)
        if "text_encoders" in parts:
            self.load_tokenizers()

    def load_tokenizers(self) -> None:
        """Load the tokenizers, which come with "text_encoders", alone."""
        for name in (name for _, name in self.text_parts() if name not in self._loaded):
            self._loaded[name] = loading.load_config_object(self.files, name)

    def _load(self, name: str) -> nn.Module:
        import torch

        dtype = torch.float32 if name == "vae" else getattr(torch, self.dtype)
        if name in self.overrides:
            return loading.load_override(self.overrides[name], self.files, name, dtype)
        return loading.load_model(self.files, name, dtype)

    def unload(self, *parts: str) -> None:
        """Forget parts, so that their memory is free unless somebody else holds them.

        The model that draws before this one is forgotten whole: nothing but a pipeline needs it.
        """
        for part in parts:
            for name in self.components(part):
                self._loaded.pop(name, None)
        if self.before:
            self.before.unload("vae", "text_encoders", "denoiser")
        gc.collect()
        if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def stand_in(self, name: str, component: Any) -> None:
        """Take `component` for the loaded one of this name, to walk through the family's work without its weights."""
        self._loaded[name] = component

    def part(self, name: str) -> Any:
        """A loaded component by its name in `model_index.json`."""
        if name not in self._loaded:
            raise RuntimeError(f"{name} is not loaded: call load() with its part first")
        return self._loaded[name]

    @property
    def denoiser(self) -> nn.Module:
        """The loaded denoiser."""
        return self.part(self.denoiser_name)

    def prepare_denoiser(self) -> None:
        """Apply `gradient_checkpointing`, `channels_last` and `compile` to the loaded denoiser.

        Call it once, after the adapter is attached: only then do compiled blocks contain the adapter's layers.
        """
        import torch

        denoiser: Any = self.denoiser
        if self.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        if self.channels_last:
            denoiser.to(memory_format=torch.channels_last)
        if self.compile:
            loading.compile_blocks(denoiser)

    # Use -----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def process(self) -> Any:
        """The noise process of the model's own scheduler configuration (`dreamlit.process`)."""

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Text conditioning of B prompts: tensors with the batch first, float32 on the CPU."""

    @abstractmethod
    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        """The denoiser's prediction for latents `x_t` [B, C, h, w] at timesteps `t` [B]: float32 [B, C, h, w].

        `frame` [B, 6] has the sizes of `types.Batch`; `denoiser` replaces the loaded one.
        """

    def conditioned(self, batch: Batch, seed: int) -> Batch:
        """The batch with conditioning that this family makes from its latents; its draws are addressed by `seed`."""
        return batch

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] -> scaled latents [B, C, h, w] (mode of the posterior), float32 on the CPU.

        Errors: `ValueError` for a wrong shape or range, `ModelError` if a latent is not finite.
        """
        return vae.encode(self.part("vae"), pixels, self.stride)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] -> pixels [B, 3, H, W] near [-1, 1], float32 on the CPU."""
        return vae.decode(self.part("vae"), latents)

    def quick_decoder(self, device: Any = "cpu") -> Callable[[Tensor], Tensor]:
        """Rough and fast: scaled latents [B, C, h, w] -> pixels [B, 3, H, W] near [-1, 1], float32 on the CPU.

        By the tiny autoencoder (option `tiny_vae`), which is loaded onto `device` and lives as long as the function;
        without one by a linear map that is fitted to the autoencoder, which must be loaded. Errors: `ModelError`.
        """
        from dreamlit.families import quick

        return quick.decoder(self, device)

    def pipeline(self, denoiser: nn.Module | None = None) -> Any:
        """A diffusers pipeline of this family's parts; what is missing is loaded.

        With `denoiser` (for example the adapted one) the pipeline uses it where it is, and the other parts follow to
        its device; else everything is on the CPU. The autoencoder works in float32 whatever the precision.
        """
        from dreamlit.families import assembly

        return assembly.pipeline(self, denoiser)

    def pipeline_options(self) -> dict[str, Any]:
        """More arguments of the pipeline's constructor."""
        return {}

    def scheduler(self) -> Any:
        """The sampler that the model comes with."""
        return loading.load_config_object(self.files, "scheduler")
