"""kohya's datasets: the TOML of --dataset_config, or folders named `10_sks dog` under --train_data_dir."""

from __future__ import annotations

import pathlib
import re
from typing import Any, TypeGuard

from dreamlit.errors import ConfigError
from dreamlit.importing import entries
from dreamlit.importing.draft import Draft, Noted, shown
from dreamlit.importing.reading import Source
from dreamlit.importing.rules import Misfit, Rule, each, flag, idle, number, part, refused, text, to, whole

SUBSETS: dict[str, Rule] = {
    "image_dir": to("instance_data_dir", text),
    "num_repeats": part("repeats", "`repeats`, one less: 0 is once here"),
    "class_tokens": part("tokens", "`instance_prompt`, where no caption files are used"),
    "caption_extension": part("extension", "`caption_strategy: textfile` where there are such files (.txt alone)"),
    "is_reg": to("is_regularisation_data", flag),
    "conditioning_data_dir": part("masks", "a dataset of masks, and `conditioning_data`"),
    "alpha_mask": part("alpha", "`alpha: mask`"),
    "shuffle_caption": part("shuffle", "`caption_shuffle.enable`"),
    "keep_tokens": part("keep", "`caption_shuffle.keep_tokens`"),
    "caption_separator": part("separator", "`caption_shuffle.separator`"),
    "caption_prefix": part("prefix", "`instance_prompt` with `prepend_instance_prompt`, or a part of it"),
    "caption_suffix": part("suffix", "a part of `instance_prompt`, where no caption files are used"),
    "caption_dropout_rate": to("caption_dropout", number),
    "caption_dropout_every_n_epochs": refused("captions are dropped by a share: caption_dropout"),
    "caption_tag_dropout_rate": refused("captions are dropped whole"),
    **each(refused("captions are read as they are"), "enable_wildcard keep_tokens_separator secondary_separator"),
    "token_warmup_step": refused("captions are whole from the first step"),
    "token_warmup_min": idle("it belongs to token_warmup_step"),
    **each(refused("photos are trained as they are, cut once"), "flip_aug color_aug face_crop_aug_range"),
    "random_crop": part("random_crop", "`crop_style: random`, where there is a crop"),
    "metadata_file": refused("metadata files are not read: captions as .txt files, or caption_strategy jsonl"),
    "resize_interpolation": refused("photos are scaled one way"),
    "custom_attributes": idle("it is for code of one's own"),
    "cache_info": idle("what photos are is remembered by content"),
}
DATASETS: dict[str, Rule] = {
    "resolution": part("resolution", "`resolution`: the edge of a square of the same area", default=512),
    "batch_size": part("batch_size", "`data.batch_size`"),
    "enable_bucket": part("buckets", "`crop: false` with it, `crop: true` without"),
    "bucket_reso_steps": part("steps_of_buckets", "`data.aspect_bucket_alignment`"),
    "bucket_no_upscale": part("no_upscale", "said where it matters; `max_upscale` leaves small photos out"),
    **each(idle("sizes follow from the photos and the resolution"), "min_bucket_reso max_bucket_reso"),
    "validation_split": part("hold_out", "`data.hold_out`"),
    **each(idle("held-out photos are measured on a fixed grid"), "validation_seed"),
    "network_multiplier": refused("an adapter trains at one strength", 1, 1.0),
    "debug_dataset": idle("it only prints"),
}
KEYS = (*SUBSETS, *DATASETS)
ONE_SUBSET = tuple(name for name in SUBSETS if name not in ("image_dir", "is_reg", "metadata_file", "num_repeats"))


def place_datasets(draft: Draft, options: dict[str, Any], tables: Source | None) -> None:
    """All subsets as entries. Errors: `ConfigError` where there is none."""
    usual = {name: options[name] for name in (*ONE_SUBSET, *DATASETS) if name in options}
    for dataset in listed(options, tables):
        place_dataset(draft, {**usual, **dataset}, dataset["subsets"])
    if not draft.datasets:
        raise ConfigError("there is no dataset: give --dataset_config, or --train_data_dir")
    masked = any("conditioning_data" in one or "alpha" in one for one in draft.datasets)
    if masked:
        entries.note_masks(draft)
    draft.note("num_repeats: 1 is once there, repeats: 0 here; a bucket's remainder waits for its next batch")
    if entries.has_regularisation(draft):
        draft.set("objective.prior_target", "data", "regularisation images are trained as they are there")
        draft.note(
            "regularisation: there its images are repeated until they are as many as the others, here by their own "
            "repeats (or probability); prior_target: base_model holds the class better (docs/objective.md)"
        )


def listed(options: dict[str, Any], tables: Source | None) -> list[dict[str, Any]]:
    """The datasets with their subsets: of the file, or of the folders that the command line names."""
    if tables is not None:
        return of_file(tables)
    subsets = []
    for name, is_reg in (("train_data_dir", False), ("reg_data_dir", True)):
        if options.get(name):
            subsets += numbered_folders(pathlib.Path(str(options[name])).expanduser(), name, is_reg)
    return [{"subsets": subsets}] if subsets else []


def of_file(source: Source) -> list[dict[str, Any]]:
    """The datasets of TOML tables or of JSON, those keys of `general` filled in."""
    content = {**source.options, **source.tables}
    found, general = content.get("datasets"), content.get("general", {})
    if content.keys() - {"general", "datasets"} or not are_tables(found) or not isinstance(general, dict):
        raise ConfigError(f"{source.path} must hold [[datasets]] and may hold [general]; it has {sorted(content)}")
    made = [{**general, **one} for one in found]
    if not all(are_tables(one.get("subsets")) for one in made):
        raise ConfigError(f"{source.path}: each of [[datasets]] needs [[datasets.subsets]] with an image_dir")
    return made


def are_tables(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def numbered_folders(folder: pathlib.Path, option: str, is_reg: bool) -> list[dict[str, Any]]:
    """The subsets of `10_sks dog`, `1_dog` ... below a folder."""
    if not folder.is_dir():
        raise ConfigError(
            f"{option} is {folder}, and there is no such folder; its sub-folders name repeats and prompts"
        )
    found = []
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"(\d+)_(.+)", path.name)
        if path.is_dir() and match:
            subset = {"image_dir": str(path), "num_repeats": int(match[1]), "class_tokens": match[2]}
            found.append({**subset, "is_reg": True} if is_reg else subset)
    if not found:
        raise ConfigError(f"{option} is {folder}, which has no sub-folder named like '10_sks dog'")
    return found


def place_dataset(draft: Draft, options: dict[str, Any], subsets: list[dict[str, Any]]) -> None:
    own = {name: value for name, value in options.items() if name in DATASETS and name != "subsets"}
    for name in options.keys() - set(KEYS) - {"subsets"}:
        draft.unknown[f"dataset {name}"] = shown(name, options[name])
    draft.apply({**DATASETS}, own, "dataset ")
    batch, steps = draft.take("batch_size"), draft.take("steps_of_buckets", 64)
    if batch is not None:
        if draft.parts.get("batches", batch) != batch:
            draft.refuse("dataset batch_size", batch, "one batch size is for all datasets: data.batch_size")
        draft.parts.setdefault("batches", batch)
    draft.parts.setdefault("alignment", steps)
    if draft.take("no_upscale"):
        draft.note(
            "bucket_no_upscale: small photos are enlarged here, with a warning; max_upscale: 1.0 leaves them out"
        )
    sizes = sizes_of(draft)
    shared = {name: options[name] for name in ONE_SUBSET if name in options}
    if "num_repeats" in options:
        shared["num_repeats"] = options["num_repeats"]
    for subset in subsets:
        place_subset(draft, {**shared, **subset}, sizes)


def sizes_of(draft: Draft) -> dict[str, Noted]:
    """Resolution and crop of a dataset's entries."""
    given, buckets = draft.take("resolution"), draft.take("buckets", False)
    sides = given if isinstance(given, list) else str(given).split(",")
    try:
        edges = [whole(side) for side in sides]
    except Misfit as misfit:
        raise ConfigError(f"resolution is {given!r}: {misfit}") from None
    width, height = edges[0], edges[-1]
    found = {"resolution": Noted(round((width * height) ** 0.5), f"resolution: {given}")}
    found["resolution_type"] = Noted("pixel_area")
    if str(buckets).lower() not in ("true", "1"):
        found["crop"] = Noted(True, "without enable_bucket")
        if width != height:
            found["crop_aspect"] = Noted("closest")
            found["crop_aspect_buckets"] = Noted([round(width / height, 3)], f"resolution: {given}")
    return found


def place_subset(draft: Draft, subset: dict[str, Any], sizes: dict[str, Noted]) -> None:
    folder = pathlib.Path(str(subset.get("image_dir", "")))
    name = entries.unique_id(draft, folder.name)
    found: dict[str, Noted] = {"id": Noted(name)}
    where = f"dataset {name}, "
    draft.apply(SUBSETS, subset, where, found)
    if "instance_data_dir" not in found:
        draft.take("masks")
        draft.refuse(f"{where}image_dir", subset.get("image_dir"), "a dataset is a folder of photos")
        return
    found |= sizes
    if draft.take("random_crop") and "crop" in found:
        found["crop_style"] = Noted("random", "random_crop")
    place_captions(draft, found, where, folder)
    repeats = draft.take_number("repeats", number, 1)
    if repeats != 1:
        found["repeats"] = Noted(repeats - 1, f"num_repeats: {repeats}")
    if draft.take("alpha"):
        found["alpha"] = Noted("mask", "alpha_mask")
    masks = draft.take("masks")
    if masks:
        named = entries.unique_id(draft, f"{name}-masks")
        found["conditioning_data"] = Noted(named, "conditioning_data_dir")
        entry = {"id": Noted(named), "dataset_type": Noted("conditioning"), "conditioning_type": Noted("mask")}
        draft.datasets.append({**entry, "instance_data_dir": Noted(str(masks), "conditioning_data_dir")})
    entries.settle(draft, found, where)
    draft.datasets.append(found)


def place_captions(draft: Draft, found: dict[str, Noted], where: str, folder: pathlib.Path) -> None:
    """Caption files where there are any (or where there is nothing else); else the class tokens."""
    tokens, extension = draft.take("tokens"), str(draft.take("extension", ".caption"))
    prefix, suffix = str(draft.take("prefix", "")), str(draft.take("suffix", ""))
    shuffle, keep, separator = (
        draft.take("shuffle"),
        draft.take_number("keep", whole, 0),
        str(draft.take("separator", ",")),
    )
    files = folder.is_dir() and next(folder.glob(f"*{extension}"), None) is not None
    if files or (not tokens and not folder.is_dir()) or (extension == ".txt" and not folder.is_dir()):
        found["caption_strategy"] = Noted("textfile", f"caption_extension: {extension}")
        if extension != ".txt":
            draft.note(f"{where}caption files end in .txt here: rename {extension}")
        if tokens:
            draft.note(f"{where}class_tokens stand in for missing caption files there; here each photo needs its file")
        if prefix:
            found["prepend_instance_prompt"] = Noted(True)
            found["instance_prompt"] = Noted(prefix.strip(), "caption_prefix")
        if suffix:
            draft.refuse(f"{where}caption_suffix", suffix, "put it into the caption files")
    elif tokens:
        found["caption_strategy"] = Noted("instanceprompt")
        found["instance_prompt"] = Noted(f"{prefix}{tokens}{suffix}".strip(), f"class_tokens: {tokens}")
    else:
        raise ConfigError(f"{where}there are neither class_tokens nor caption files *{extension} in {folder}")
    if shuffle and found["caption_strategy"].value == "textfile":
        options = {"enable": True, "keep_tokens": keep, "separator": separator}
        found["caption_shuffle"] = Noted(options, f"shuffle_caption, keep_tokens: {keep}")
        draft.note(
            f"{where}shuffle_caption: a few orders of each caption are made and cached here, not a new one each time"
        )
