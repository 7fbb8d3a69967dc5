"""The caches of a run: latents, masks at latent size and text embeddings, found by what they were made from.

The key of an entry is a hash of everything it depends on, so a stale entry cannot be found, only what changed is
encoded again, and one folder may serve any number of datasets and runs. Names, places and dates of files are in no key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamlit.datamodules.fills import Fill, FillReport, Job, filled, loaded
from dreamlit.datamodules.shards import ShardFolder
from dreamlit.errors import DataError, ModelError

if TYPE_CHECKING:
    from dreamlit.datamodules.manifest import Manifest, Sample
    from dreamlit.types import Conditioning, Encoders

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUT = 1
"""Part of every key: raised when the meaning of an entry changes."""


class ShardStore(ShardFolder):
    """A folder of shards as a mapping from key to named tensors."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a key, on the CPU; None where they are missing or damaged."""
        from safetensors.torch import load

        data = self.read(key)
        return None if data is None else load(data)


# --- keys -----------------------------------------------------------------------------------------------------------


def _key(*parts: object) -> str:
    return hashlib.blake2b(repr((LAYOUT, *parts)).encode(), digest_size=16).hexdigest()


def latent_key(sample: Sample, vae_fingerprint: str, dtype: str = "float32") -> str:
    """The key of a latent: the photo's bytes, its alpha policy and geometry, the VAE and the stored precision."""
    geometry = dataclasses.astuple(sample.geometry)
    return _key("latent", sample.content, sample.alpha, geometry, vae_fingerprint, dtype)


def mask_key(sample: Sample, stride: int) -> str | None:
    """The key of a mask at latent size: the mask's bytes, the image's geometry, the stride; None without a mask."""
    if sample.mask is None:
        return None
    return _key("mask", sample.mask.content, dataclasses.astuple(sample.geometry), stride)


def text_key(caption: str, text_encoders_fingerprint: str) -> str:
    """The key of a text embedding: the final caption, and the text encoders with their tokenizers."""
    return _key("text", caption, text_encoders_fingerprint)


# --- what a run reads -----------------------------------------------------------------------------------------------


class Caches:
    """Which folder holds what, and the readers that the loader uses. Small, and safe to send to worker processes.

    Args:
        root: Folder of the run's caches: `root/latents` and `root/text` are used where an entry names none of its own.
        specs: The dataset entries, for their `cache_dir_vae` and the text store's `cache_dir`.
        encoders: Asked for fingerprints and sizes only, and not kept.
        dtype: Precision of stored latents: `float32`, `bfloat16` or `float16`.
    """

    def __init__(
        self, root: str | os.PathLike[str], specs: Iterable[Any], encoders: Encoders, dtype: str = "float32"
    ) -> None:
        if dtype not in DTYPES:
            raise DataError(f"the precision of stored latents is {dtype!r}. Allowed: {', '.join(DTYPES)}")
        self.dtype = dtype
        self.stride, self.latent_channels = encoders.stride, encoders.latent_channels
        self.vae_fingerprint = encoders.fingerprint("vae")
        self.text_fingerprint = encoders.fingerprint("text_encoders")
        stores: dict[pathlib.Path, ShardStore] = {}

        def store_at(folder: str | os.PathLike[str]) -> ShardStore:
            path = pathlib.Path(folder).expanduser().resolve()
            return stores.setdefault(path, ShardStore(path))

        specs = list(specs)
        texts = [spec for spec in specs if spec.dataset_type == "text_embeds"]
        text_spec = next((spec for spec in texts if spec.default), texts[0] if texts else None)
        self.text_store = store_at((text_spec and text_spec.cache_dir) or pathlib.Path(root) / "text")
        self._latent_stores = {
            spec.id: store_at(spec.cache_dir_vae or pathlib.Path(root) / "latents")
            for spec in specs
            if spec.dataset_type in ("image", "eval")
        }

    def latent_store(self, dataset_id: str) -> ShardStore:
        """The store of a dataset's latents and masks."""
        return self._latent_stores[dataset_id]

    def stores(self) -> list[ShardStore]:
        """Every store, each once."""
        return list(dict.fromkeys([*self._latent_stores.values(), self.text_store]))

    def latent_key(self, sample: Sample) -> str:
        return latent_key(sample, self.vae_fingerprint, self.dtype)

    def mask_key(self, sample: Sample) -> str | None:
        return mask_key(sample, self.stride)

    def text_key(self, caption: str) -> str:
        return text_key(caption, self.text_fingerprint)

    def latent(self, sample: Sample) -> Tensor:
        """x0 of a sample, scaled as the denoiser sees it: [C, h, w], float32."""
        store = self.latent_store(sample.dataset_id)
        return _found(store.get(self.latent_key(sample)), f"the latent of {sample.id}", store)["latent"].float()

    def mask(self, sample: Sample) -> Tensor | None:
        """Share of each latent cell that counts: [1, h, w], float32 in [0, 1]; None where everything counts."""
        key = self.mask_key(sample)
        if key is None:
            return None
        store = self.latent_store(sample.dataset_id)
        return _found(store.get(key), f"the mask of {sample.id}", store)["mask"]

    def text(self, caption: str, dataset_id: str | None = None) -> Conditioning:
        """The embedding of a caption under the family's own names, without a batch dimension.

        One store serves all datasets; `dataset_id` says in a message who asked.
        """
        asked = f" for dataset {dataset_id!r}" if dataset_id else ""
        what = f"the embedding of {caption!r}{asked}"
        return _found(self.text_store.get(self.text_key(caption)), what, self.text_store)

    def keys(self, manifest: Manifest, seed: int) -> set[str]:
        """Every key that a run over this manifest and seed may read: what `gc` keeps."""
        samples = all_samples(manifest)
        keys = {self.latent_key(sample) for sample in samples} | set(map(self.text_key, captions_of(manifest, seed)))
        return keys | {key for sample in samples if (key := self.mask_key(sample)) is not None}


def _found(entry: dict[str, Tensor] | None, what: str, store: ShardStore) -> dict[str, Tensor]:
    if entry is None:
        raise DataError(
            f"{store.folder}: {what} is missing or damaged. Run `dreamlit prepare` again: only what is "
            "missing is encoded"
        )
    return entry


def all_samples(manifest: Manifest) -> list[Sample]:
    """Samples to train on and samples to evaluate on."""
    return [*manifest.samples, *manifest.eval_samples]


# --- fills ----------------------------------------------------------------------------------------------------------


def fill_latents(
    caches: Caches,
    manifest: Manifest,
    encoders: Encoders,
    device: Any = "cpu",
    batch_size: int = 1,
    progress: bool = True,
) -> FillReport:
    """Encode the latents that the caches lack. The VAE is loaded only if there are any, and freed before returning.

    With a batch size of 1 a latent does not depend on what else was missing, to the last bit; larger batches differ by
    rounding on most devices.

    Raises:
        DataError: a photo cannot be read or its latent is not finite, memory runs out, or the folder cannot be written.
        ModelError: the VAE's latents have another shape than the family says.
    """
    jobs = [
        Job(caches.latent_store(s.dataset_id), caches.latent_key(s), s, s.id, s.geometry.target_size)
        for s in all_samples(manifest)
    ]

    def encode(photos: list[Tensor]) -> list[bytes | None]:
        pixels = torch.stack(photos)
        with torch.no_grad():
            latents = encoders.encode_pixels(pixels.to(device))
        _check_latents(latents, pixels, caches)
        return [pack({"latent": latent.to(DTYPES[caches.dtype])}) for latent in latents]

    def build(todo: list[Job]) -> int:
        with loaded(encoders, "vae", device):
            return Fill("latents", lambda s: as_input(manifest.pixels(s)), encode, batch_size, release, progress).run(
                todo
            )

    return filled("latents", jobs, build)


def pack(tensors: dict[str, Tensor]) -> bytes | None:
    """Tensors as safetensors bytes; None where a value is not finite."""
    from safetensors.torch import save

    if any(tensor.is_floating_point() and not tensor.isfinite().all() for tensor in tensors.values()):
        return None
    # clone: a slice of a batch would drag the whole batch's storage along
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def release() -> None:
    """Give the memory that the allocator holds for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def as_input(pixels: Any) -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1.0


def _check_latents(latents: Tensor, pixels: Tensor, caches: Caches) -> None:
    count, _, height, width = pixels.shape
    expected = (count, caches.latent_channels, height // caches.stride, width // caches.stride)
    if tuple(latents.shape) != expected:
        raise ModelError(
            f"the VAE made latents of shape {tuple(latents.shape)} from {height} x {width} pixels; this model "
            f"needs {expected}. Use the VAE that belongs to the model"
        )


def fill_masks(caches: Caches, manifest: Manifest, progress: bool = True) -> FillReport:
    """Bring the masks that the caches lack to latent size; no model is needed."""
    from dreamlit.datamodules.masks import at_latent_size

    jobs = [
        Job(caches.latent_store(s.dataset_id), key, s, f"mask of {s.id}")
        for s in all_samples(manifest)
        if (key := caches.mask_key(s)) is not None
    ]

    def load(sample: Sample) -> Tensor:
        mask = manifest.mask(sample)
        if mask is None:
            raise DataError(f"{sample.id}: its mask is gone since the run started. Start it again")
        return torch.from_numpy(at_latent_size(mask, sample.geometry, caches.stride)).unsqueeze(0)

    def build(todo: list[Job]) -> int:
        return Fill("masks", load, lambda masks: [pack({"mask": mask}) for mask in masks], progress=progress).run(todo)

    return filled("masks", jobs, build)


def captions_of(manifest: Manifest, seed: int) -> list[str]:
    """Every text that a draw can ask for under this seed, each once."""
    from dreamlit.datamodules.captions import class_prompts, expand

    specs: dict[str, Any] = {spec.id: spec for spec in manifest.specs}
    samples = all_samples(manifest)
    captions = [expand(sample.captions, specs[sample.dataset_id], seed) for sample in samples]
    trained = [(specs[sample.dataset_id], sample.captions) for sample in manifest.samples]
    captions += [class_prompts(expand(variants, spec, seed), spec) for spec, variants in trained]
    return list(dict.fromkeys(caption for group in captions for caption in group))


def fill_texts(
    caches: Caches,
    manifest: Manifest,
    encoders: Encoders,
    device: Any = "cpu",
    batch_size: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> FillReport:
    """Encode every text that a run with this seed can ask for and the cache lacks; see `fill_captions`."""
    return fill_captions(caches, captions_of(manifest, seed), encoders, device, batch_size, progress)


def fill_captions(
    caches: Caches,
    captions: Iterable[str],
    encoders: Encoders,
    device: Any = "cpu",
    batch_size: int = 1,
    progress: bool = True,
) -> FillReport:
    """Encode each distinct caption that the cache lacks, once. The text encoders are freed before returning."""
    jobs = [Job(caches.text_store, caches.text_key(caption), caption, repr(caption)) for caption in captions]

    def encode(prompts: list[str]) -> list[bytes | None]:
        with torch.no_grad():  # inference mode would be the end of quanto's packed layers
            conditioning = encoders.encode_prompts(prompts)
        return [pack(entry) for entry in split_conditioning(conditioning, prompts)]

    def build(todo: list[Job]) -> int:
        with loaded(encoders, "text_encoders", device):
            return Fill("captions", lambda caption: caption, encode, batch_size, release, progress).run(todo)

    return filled("captions", jobs, build)


def split_conditioning(conditioning: Conditioning, prompts: Sequence[str]) -> list[Conditioning]:
    """One entry for each prompt out of a batch; every tensor must have the batch first."""
    for name, tensor in conditioning.items():
        if tensor.ndim == 0 or len(tensor) != len(prompts):
            raise ModelError(
                f"the text encoders gave {name!r} of shape {tuple(tensor.shape)} for {len(prompts)} prompts; the "
                "first side has to be the number of prompts"
            )
    return [{name: tensor[i] for name, tensor in conditioning.items()} for i in range(len(prompts))]
