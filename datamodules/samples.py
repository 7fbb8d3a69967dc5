"""What the manifest is made of: samples, where their masks lie, and their pixels as training sees them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence

import numpy as np

from dreamlit.datamodules.config_entries import ConditioningDataset, DatasetSpec, ImageDataset
from dreamlit.datamodules.geometry import crop
from dreamlit.datamodules.images import Photo, decode
from dreamlit.datamodules.listing import disk_path
from dreamlit.datamodules.masks import crop_mask, decode_mask
from dreamlit.datamodules.probes import content_hash
from dreamlit.datamodules.sources import Source, open_source
from dreamlit.errors import DataError
from dreamlit.types import Geometry, Role

OPAQUE = "opaque"
"""`Sample.alpha` of a photo without transparent parts: no alpha policy touches it."""


@dataclasses.dataclass(frozen=True)
class MaskRef:
    """Where a sample's mask lies.

    Args:
        dataset_id: The conditioning dataset; the image's own dataset for a mask that is its alpha channel.
        name: The file, relative to that dataset.
        content: Hash of the file's bytes. With `is_alpha` it has the prefix `alpha:`, so that it names another mask.
        is_alpha: The mask is the alpha channel of the photo itself (`alpha: mask`).
    """

    dataset_id: str
    name: str
    content: str
    is_alpha: bool = False


@dataclasses.dataclass(frozen=True)
class Sample:
    """One photo in one dataset.

    Args:
        id: `dataset_id/name`; the address of its random draws.
        dataset_id: Its dataset.
        name: Its file, relative to the dataset, with forward slashes.
        role: Instance or regularisation.
        content: Hash of the file's bytes.
        alpha: The alpha policy that made its pixels: a colour, `mask`, or `opaque` for a photo without alpha.
        geometry: How it is resized and cropped.
        captions: All captions that a draw may choose from, final but for the dropout; at least one.
        mask: Where its mask lies; None where the whole image counts.
    """

    id: str
    dataset_id: str
    name: str
    role: Role
    content: str
    alpha: str
    geometry: Geometry
    captions: tuple[str, ...]
    mask: MaskRef | None = None

    @property
    def bucket(self) -> tuple[int, int]:
        """(height, width) of the training image in pixels."""
        return self.geometry.target_size


@dataclasses.dataclass
class Manifest:
    """What a run trains on. Cheap to pickle: pixels are read when they are asked for.

    Args:
        samples: What is trained on, by dataset in the order of the list, then by name.
        eval_samples: What a loss is measured on: the samples of eval datasets, then those that are held out of others.
        filtered: Images that are left out, as (dataset id, name, reason).
        ignored: Files that are no images of the dataset, as (dataset id, name, reason).
        warnings: What is odd but allowed, one sentence each.
        specs: The dataset entries that it was made from.
        download_dir: Where shards from URLs are kept.
    """

    samples: list[Sample]
    eval_samples: list[Sample]
    filtered: list[tuple[str, str, str]]
    ignored: list[tuple[str, str, str]]
    warnings: list[str]
    specs: Sequence[DatasetSpec]
    download_dir: str | os.PathLike | None = None

    @property
    def held_out(self) -> list[Sample]:
        """The samples that `data.hold_out` took from the datasets that are trained on, for the evaluation."""
        of_eval = {spec.id for spec in self.specs if isinstance(spec, ImageDataset) and spec.is_eval}
        return [sample for sample in self.eval_samples if sample.dataset_id not in of_eval]

    def digest(self) -> str:
        """A hash of everything in the data that decides what is trained; paths and cache folders do not.

        Two runs with equal digests, seeds and batch sizes see the same batches.
        """
        parts = [_identity(sample) for sample in (*self.samples, *self.eval_samples)]
        parts += [_draws(spec) for spec in self.specs if isinstance(spec, ImageDataset)]
        parts += [repr(("held out", sample.id)) for sample in self.held_out]
        return hashlib.blake2b(repr(sorted(parts)).encode(), digest_size=16).hexdigest()

    def facts(self) -> dict[str, str]:
        """What is compared of each sample, by its id: what it is, and whether it is trained on or evaluated."""
        kinds = (("trained", self.samples), ("evaluated", self.eval_samples))
        return {sample.id: f"{kind} {_identity(sample)}" for kind, samples in kinds for sample in samples}

    def pixels(self, sample: Sample) -> np.ndarray:
        """The training image: uint8 [H, W, 3] of the bucket's size, exactly what the autoencoder is given.

        Raises:
            DataError: when the file is gone, or its content is no longer what the manifest was made from.
        """
        return crop(self._photo(sample).pixels, sample.geometry)

    def mask(self, sample: Sample) -> np.ndarray | None:
        """The sample's whole mask, upright and not yet cut: float32 [any H, any W] in [0, 1], or None without one.

        `masks.at_latent_size(mask, sample.geometry, stride)` and `target_mask` cut it as its image is cut.

        Raises:
            DataError: when the file is gone, or its content is no longer what the manifest was made from.
        """
        if sample.mask is None:
            return None
        if sample.mask.is_alpha:
            alpha = self._photo(sample).alpha
            return None if alpha is None else alpha.astype(np.float32) / 255
        data = self._read(sample.mask.dataset_id, sample.mask.name, sample.mask.content)
        return decode_mask(data, sample.mask.name)

    def target_mask(self, sample: Sample) -> np.ndarray | None:
        """The mask cut as the training image is: float32 [H, W] of the bucket's size in [0, 1], or None without one."""
        mask = self.mask(sample)
        return None if mask is None else crop_mask(mask, sample.geometry)

    def _photo(self, sample: Sample) -> Photo:
        alpha = "white" if sample.alpha == OPAQUE else sample.alpha
        return decode(self._read(sample.dataset_id, sample.name, sample.content), sample.name, alpha)

    def _read(self, dataset_id: str, name: str, content: str) -> bytes:
        data = self._sources[dataset_id].read(name)
        if content_hash(data) != content:
            raise DataError(f"{dataset_id}: {name} was changed since the run started. Start it again")
        return data

    @functools.cached_property
    def _sources(self) -> dict[str, Source]:
        return open_sources(self.specs, self.download_dir)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_sources"}


def open_sources(specs: Sequence[DatasetSpec], download_dir: str | os.PathLike | None) -> dict[str, Source]:
    """The source of each dataset; entries with the same folder share one.

    Raises:
        DataError: one report of all folders and shards that cannot be opened.
    """
    by_place: dict[tuple[str, str], Source] = {}
    result: dict[str, Source] = {}
    lines = []
    for spec in specs:
        if not isinstance(spec, (ImageDataset, ConditioningDataset)) or spec.disabled:
            continue
        place = (spec.type, os.fspath(spec.instance_data_dir))
        try:
            if place not in by_place:
                by_place[place] = open_source(spec, download_dir)
                _ = by_place[place].listing
            result[spec.id] = by_place[place]
        except DataError as error:
            lines.append(f"dataset {spec.id!r}: {error}")
    if lines:
        raise DataError("\n".join(lines))
    return result


def refuse_dataset_folders(path: str | os.PathLike, specs: Sequence[DatasetSpec], what: str) -> None:
    """Guards the rule that nothing is ever written among the photos.

    Raises:
        DataError: when `path` (called `what` in the message) is, or lies in, the folder of a dataset.
    """
    wanted = os.path.realpath(disk_path(path))
    for spec in specs:
        if isinstance(spec, (ImageDataset, ConditioningDataset)) and spec.type == "local":
            dataset = os.path.realpath(disk_path(spec.instance_data_dir))
            if os.path.join(wanted, b"").startswith(os.path.join(dataset, b"")):
                raise DataError(
                    f"{what} {os.fspath(path)} lies in the folder of dataset {spec.id!r} ({spec.instance_data_dir}),"
                    " which is never written to. Choose a folder outside of it"
                )


def _identity(sample: Sample) -> str:
    mask = None if sample.mask is None else sample.mask.content
    geometry = dataclasses.astuple(sample.geometry)
    facts = (sample.id, int(sample.role), sample.content, sample.alpha, geometry, sample.captions, mask)
    return repr(("sample", *facts))


def _draws(spec: ImageDataset) -> str:
    prompt = spec.instance_prompt if spec.prepend_instance_prompt else ()  # keeps its place under shuffling
    facts: tuple[object, ...] = (spec.id, spec.dataset_type, spec.repeats, spec.probability)
    facts += (("class", *spec.class_prompt),) if spec.class_prompt else ()
    facts += (("class words", *spec.class_words),) if spec.class_words else ()
    return repr(("dataset", *facts, spec.caption_dropout, dataclasses.astuple(spec.caption_shuffle), prompt))
