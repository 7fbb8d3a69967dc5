"""What must hold between the values of one dataset entry, and between the entries of a list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from dreamlit.datamodules.config_entries import ConditioningDataset, DatasetSpec, ImageDataset, TextEmbedsDataset
from dreamlit.datamodules.config_values import STRATEGIES
from dreamlit.errors import nearest

TABLES = ("parquet", "csv", "jsonl")
SIZE_KEYS = ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size")
EDGE_LIMITS_PX = (8, 16384)
AREA_LIMITS_MP = (64e-6, 268)


def entry_faults(spec: DatasetSpec) -> Iterator[str]:
    """Faults of one entry that its values show together, a sentence each."""
    if isinstance(spec, ImageDataset):
        yield from _size_faults(spec)
        yield from _crop_faults(spec)
        yield from _caption_faults(spec)
        yield from _role_faults(spec)
    if isinstance(spec, TextEmbedsDataset) and spec.type != "local":
        yield f"type: came {spec.type!r}; text embeddings are stored in a folder. Allowed: local"


def _size_faults(spec: ImageDataset) -> Iterator[str]:
    kind = spec.resolution_type
    low, high = AREA_LIMITS_MP if kind == "area" else EDGE_LIMITS_PX
    unit = "megapixels (for pixels give resolution_type: pixel_area)" if kind == "area" else "pixels"
    for key in SIZE_KEYS:
        value = getattr(spec, key)
        if value is None:
            continue
        if not low <= value <= high:
            yield f"{key}: came {value:g}; allowed with resolution_type {kind}: {low:g} to {high:g} {unit}"
        elif kind == "pixel" and value != int(value):
            yield f"{key}: came {value:g}; resolution_type pixel counts whole pixels"
    yield from _downsample_faults(spec)


def _downsample_faults(spec: ImageDataset) -> Iterator[str]:
    minimum, maximum, downsample = spec.minimum_image_size, spec.maximum_image_size, spec.target_downsample_size
    if maximum is not None and downsample is None:
        yield "maximum_image_size needs target_downsample_size: the size that larger images are scaled down to"
    if maximum is None and downsample is not None:
        yield "target_downsample_size does nothing without maximum_image_size: add it, or remove this key"
    if minimum is not None and maximum is not None and minimum > maximum:
        yield f"minimum_image_size {minimum:g} is above maximum_image_size {maximum:g}"
    if maximum is not None and downsample is not None and downsample > maximum:
        yield f"target_downsample_size {downsample:g} is above maximum_image_size {maximum:g}; it must scale down"
    if downsample is not None and downsample < spec.resolution:
        yield f"target_downsample_size {downsample:g} is below resolution {spec.resolution:g}; it must be at least that"


def _crop_faults(spec: ImageDataset) -> Iterator[str]:
    chooses = spec.crop_aspect in ("closest", "random")
    if not spec.crop:
        unused = {
            "crop_aspect": chooses,
            "crop_style": spec.crop_style != "center",
            "maximum_image_size": spec.maximum_image_size is not None,
        }
        for key in (key for key, given in unused.items() if given):
            yield f"{key}: came {_plain(getattr(spec, key))}, which does nothing without crop: true"
    if chooses and not spec.crop_aspect_buckets:
        yield f"crop_aspect {spec.crop_aspect!r} needs crop_aspect_buckets, for example [0.75, 1.0, 1.5]"
    if not chooses and spec.crop_aspect_buckets:
        yield f"crop_aspect_buckets does nothing with crop_aspect {spec.crop_aspect!r}; use closest or random"


def _caption_faults(spec: ImageDataset) -> Iterator[str]:
    prompt = bool(spec.instance_prompt)
    if spec.caption_strategy == "instanceprompt" and not prompt:
        others = ", ".join(name for name in STRATEGIES if name != "instanceprompt")
        yield f"caption_strategy instanceprompt (the default) needs instance_prompt; other strategies: {others}"
    if spec.prepend_instance_prompt and spec.only_instance_prompt:
        yield "prepend_instance_prompt and only_instance_prompt exclude each other: keep one"
    for key in ("prepend_instance_prompt", "only_instance_prompt"):
        if not getattr(spec, key):
            continue
        if spec.caption_strategy == "instanceprompt" and key == "prepend_instance_prompt":
            yield f"{key} does nothing with caption_strategy instanceprompt: there is no caption to stand before"
        elif not prompt and spec.caption_strategy != "instanceprompt":
            yield f"{key} needs instance_prompt"
    if prompt and spec.caption_strategy in STRATEGIES[1:] and not uses_prompt(spec):
        yield (
            f"instance_prompt does nothing with caption_strategy {spec.caption_strategy!r}: "
            "set prepend_instance_prompt: true or only_instance_prompt: true, or remove it"
        )
    yield from _table_faults(spec)


def uses_prompt(spec: ImageDataset) -> bool:
    """Whether `instance_prompt` is part of the captions."""
    return spec.caption_strategy == "instanceprompt" or spec.prepend_instance_prompt or spec.only_instance_prompt


def _table_faults(spec: ImageDataset) -> Iterator[str]:
    for name in TABLES:
        given = getattr(spec, name) is not None
        if spec.caption_strategy == name and not given and not spec.only_instance_prompt:
            yield f"caption_strategy {name} needs a block '{name}' with path, filename_column and caption_column"
        if spec.caption_strategy in STRATEGIES and spec.caption_strategy != name and given:
            yield f"the block '{name}' does nothing with caption_strategy {spec.caption_strategy!r}"


def _role_faults(spec: ImageDataset) -> Iterator[str]:
    if spec.conditioning_data is None and spec.missing_mask != "error":
        yield "missing_mask does nothing without conditioning_data"
    if spec.conditioning_data is not None and spec.alpha == "mask":
        yield "alpha: mask and conditioning_data give each image two masks: keep one"
    if spec.class_prompt and spec.class_words:
        yield "class_prompt and class_words both say what the class prompts are: keep one"
    for key in (key for key in ("class_prompt", "class_words") if getattr(spec, key) and spec.is_regularisation_data):
        yield f"{key} does nothing for is_regularisation_data: its images are held at the base model's prediction"
    if not spec.is_eval:
        return
    unused = {
        "class_prompt": bool(spec.class_prompt),
        "class_words": bool(spec.class_words),
        "is_regularisation_data": spec.is_regularisation_data,
        "repeats": spec.repeats != 0,
        "probability": spec.probability != 1,
        "caption_dropout": spec.caption_dropout != 0,
        "caption_shuffle": spec.caption_shuffle.enable,
    }
    for key in (key for key, given in unused.items() if given):
        yield f"{key} does nothing in an eval dataset: each image is seen once, with its first caption"


def duplicate_faults(specs: Sequence[DatasetSpec], where: Sequence[str]) -> Iterator[str]:
    """Ids that stand more than once."""
    for name in dict.fromkeys(spec.id for spec in specs):
        places = [place for spec, place in zip(specs, where, strict=True) if spec.id == name]
        if len(places) > 1:
            yield f"{', '.join(places)}: {len(places)} datasets have the same id; give each its own"


def list_faults(
    specs: Sequence[DatasetSpec], where: Sequence[str], disabled: Sequence[DatasetSpec], complete: bool = True
) -> Iterator[str]:
    """Faults between the enabled entries of a list.

    Args:
        specs: The enabled entries.
        where: How a message names each of them.
        disabled: The disabled entries, which nothing may refer to.
        complete: Whether every entry was read without faults. Only then is it reported that something is absent.
    """
    pairs = list(zip(specs, where, strict=True))
    images = [(spec, place) for spec, place in pairs if isinstance(spec, ImageDataset)]
    masks = {spec.id: spec for spec in specs if isinstance(spec, ConditioningDataset)}
    if complete:
        yield from _training_faults([spec for spec, _ in images if not spec.is_eval])
    for spec, place in images:
        yield from (f"{place}: {fault}" for fault in _conditioning_faults(spec, specs, masks, disabled))
    for spec, place in pairs:
        users = [image for image, _ in images if image.conditioning_data == spec.id]
        if isinstance(spec, ConditioningDataset) and (users or complete):
            yield from (f"{place}: {fault}" for fault in _mask_set_faults(spec, users))
    yield from _store_faults(pairs)
    yield from _cache_faults(pairs)


def _training_faults(images: Sequence[ImageDataset]) -> Iterator[str]:
    if not images:
        yield "no enabled entry has dataset_type image: there is nothing to train on"
    elif all(spec.is_regularisation_data for spec in images):
        yield "every image dataset has is_regularisation_data: there is no subject to learn"


def _conditioning_faults(
    spec: ImageDataset,
    specs: Sequence[DatasetSpec],
    masks: dict[str, ConditioningDataset],
    disabled: Sequence[DatasetSpec],
) -> Iterator[str]:
    name = spec.conditioning_data
    if name is None or name in masks:
        return
    if any(other.id == name for other in disabled):
        yield f"conditioning_data names {name!r}, which is disabled"
    elif other := next((other for other in specs if other.id == name), None):
        yield f"conditioning_data names {name!r}, whose dataset_type is {other.dataset_type!r}; allowed: conditioning"
    else:
        hint = nearest(name, masks) if masks else "the list has no dataset of dataset_type conditioning"
        yield f"conditioning_data names {name!r}, which is not in the list; {hint}"


def _mask_set_faults(spec: ConditioningDataset, users: Sequence[ImageDataset]) -> Iterator[str]:
    if not users:
        yield f"no image dataset has conditioning_data: {spec.id}; add it there, or remove these masks"
        return
    for key in ConditioningDataset.shared_keys:
        value, theirs = getattr(spec, key), {getattr(user, key): user.id for user in users}
        if value is not None and value not in theirs:
            names = "; ".join(f"{other!r} has {_plain(found)}" for found, other in theirs.items())
            yield f"{key}: came {_plain(value)}, but a mask is cut as its image, and {names}; remove the key here"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _store_faults(pairs: Sequence[tuple[DatasetSpec, str]]) -> Iterator[str]:
    stores = [(spec, place) for spec, place in pairs if isinstance(spec, TextEmbedsDataset)]
    if sum(spec.default for spec, _ in stores) > 1:
        places = ", ".join(place for spec, place in stores if spec.default)
        yield f"{places}: more than one text_embeds entry has default: true; keep one"
    elif len(stores) > 1:
        idle = [place for spec, place in stores if not spec.default]
        yield f"{', '.join(idle)}: a run stores its text embeddings in one place; keep one text_embeds entry"


def _cache_faults(pairs: Sequence[tuple[DatasetSpec, str]]) -> Iterator[str]:
    folders = [
        spec.instance_data_dir
        for spec, _ in pairs
        if isinstance(spec, (ImageDataset, ConditioningDataset)) and spec.type == "local"
    ]
    for spec, place in pairs:
        key = "cache_dir" if isinstance(spec, TextEmbedsDataset) else "cache_dir_vae"
        cache = getattr(spec, key, None)
        if cache and any(os.path.join(cache, "").startswith(os.path.join(folder, "")) for folder in folders):
            yield f"{place}: {key}: {cache} is in a dataset folder, and those are never written to; choose another"


def folder_faults(specs: Sequence[DatasetSpec]) -> Iterator[str]:
    """Local folders and caption tables that are not there."""
    for spec in specs:
        place = f"dataset {spec.id!r}"
        if isinstance(spec, (ImageDataset, ConditioningDataset)) and spec.type == "local":
            yield from (f"{place}: {fault}" for fault in _folder_fault("instance_data_dir", spec.instance_data_dir))
        if isinstance(spec, ImageDataset):
            for name in TABLES:
                block = getattr(spec, name)
                if block is not None and not os.path.isfile(block.path):
                    yield f"{place}: {name}.path: {block.path} is not a file"


def _folder_fault(key: str, folder: str) -> Iterator[str]:
    if not os.path.exists(folder):
        yield f"{key}: {folder} is not there; relative paths start at the working folder"
    elif not os.path.isdir(folder):
        yield f"{key}: {folder} is a file; allowed: a folder (tar shards need type: webdataset)"
    elif not os.access(folder, os.R_OK | os.X_OK):
        yield f"{key}: {folder} may not be read: check its permissions"
