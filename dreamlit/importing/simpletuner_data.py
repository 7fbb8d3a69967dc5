"""SimpleTuner's dataset entries (multidatabackend.json), key by key."""

from __future__ import annotations

from typing import Any

from dreamlit.importing import entries
from dreamlit.importing.draft import Draft, Noted
from dreamlit.importing.rules import (
    Misfit,
    Rule,
    above_zero,
    each,
    flag,
    idle,
    number,
    one_of,
    only,
    part,
    refused,
    text,
    to,
)


def places(value: Any) -> list[float]:
    """Aspects, also where each is a mapping with a weight."""
    found = value if isinstance(value, list) else [value]
    if any(isinstance(one, dict) for one in found):
        raise Misfit("aspects have no weights here: give a list of numbers")
    return [number(one) for one in found]


def shuffle(value: Any) -> dict[str, Any]:
    """`caption_shuffle`: separators and counts have other names."""
    if not isinstance(value, dict):
        return {"enable": flag(value)}
    left = set(value) - {"enable", "count", "seed", "split_on", "position_start", "include_original"}
    if left:
        raise Misfit(f"there is no {', '.join(sorted(left))}")
    separators = {"comma": ",", "space": " ", "period": "."}
    return {
        "enable": flag(value.get("enable", False)),
        "keep_tokens": int(number(value.get("position_start", 0))),
        "count": above_zero(value.get("count", 1)) + 1,
        "separator": separators.get(str(value.get("split_on", "comma")), str(value.get("split_on"))),
    }


def table(value: Any) -> dict[str, Any]:
    """The `parquet` block."""
    if not isinstance(value, dict) or "path" not in value:
        raise Misfit("it needs path, filename_column and caption_column")
    return {name: str(value[name]) for name in ("path", "filename_column", "caption_column") if name in value}


def prompt(value: Any) -> str | list[str]:
    return [text(one) for one in value] if isinstance(value, list) else text(value)


MANY = "a crop is decided once for each image, in one piece with its mask"
IMAGES: dict[str, Rule] = {
    "id": part("id", "`id`"),
    "type": part("backend", "`type`"),
    "dataset_type": part("dataset_type", "`dataset_type`"),
    "instance_data_dir": to("instance_data_dir", text),
    **{name: to("disabled", flag) for name in ("disabled", "disable")},
    "resolution": to("resolution", number),
    "resolution_type": to("resolution_type", only("pixel", "area", "pixel_area", instead="pixel_area is taken")),
    "minimum_image_size": part("minimum", "`minimum_image_size`, where it is not 0"),
    "maximum_image_size": part("maximum", "`maximum_image_size`, where there is a crop and a larger resolution"),
    "target_downsample_size": part("downsample", "`target_downsample_size`, with the one above"),
    "crop": to("crop", flag),
    "crop_aspect": part("crop_aspect", "`crop_aspect`, where there is a crop"),
    "crop_aspect_buckets": part("crop_buckets", "`crop_aspect_buckets`, where they are chosen from"),
    "crop_style": part("crop_style", "`crop_style`, where there is a crop"),
    "caption_strategy": to(
        "caption_strategy",
        one_of(
            "caption strategy",
            {
                **{n: n for n in ("instanceprompt", "textfile", "filename", "parquet")},
                "instance_prompt": "instanceprompt",
            },
        ),
        default="filename",
    ),
    "instance_prompt": to("instance_prompt", prompt),
    "prepend_instance_prompt": to("prepend_instance_prompt", flag),
    "only_instance_prompt": to("only_instance_prompt", flag),
    "caption_shuffle": to("caption_shuffle", shuffle),
    "caption_dropout_probability": to("caption_dropout", number),
    "parquet": to("parquet", table),
    "repeats": to("repeats", number),
    "probability": to("probability", number),
    "is_regularisation_data": to("is_regularisation_data", flag),
    "is_regularization_data": to("is_regularisation_data", flag),
    "conditioning_data": part("conditioning", "`conditioning_data`"),
    "max_upscale_threshold": to("max_upscale", lambda value: 1 + number(value)),
    "metadata_backend": idle("the folder is read anew in each run"),
    "train_batch_size": refused("the batch size is the run's: data.batch_size"),
    "max_num_samples": refused("make a folder of those you want"),
    **each(refused("a dataset is there for the whole run"), "start_step end_step end_epoch"),
    "start_epoch": refused("a dataset is there for the whole run", 1),
    **each(refused("photos are filtered by size alone"), "minimum_aspect_ratio maximum_aspect_ratio"),
    "timestep_sampling_offset": refused("timesteps are drawn alike for all datasets: model.objective.logit_mean"),
    "conditioning": refused("masks are made beforehand: dreamlit masks"),
    **each(refused("only masks are paired with photos"), "source_dataset_id slider_strength video audio"),
    "caption_filter_list": refused("captions are read as they are"),
    "disable_multiline_split": refused("each line of a caption file is a variant"),
    "vae_cache_clear_each_epoch": refused(MANY),
    **each(refused("pictures are not judged"), "delete_nsfw_images"),
    **each(
        idle("caches are found by content, and dataset folders are only read"),
        "cache_dir_vae cache_dir_* cache_dir text_embeds image_embeds conditioning_image_embeds vae_cache_* "
        "disable_vae_cache text_cache_* skip_file_discovery preserve_data_backend_cache override_dataset_config "
        "delete_unwanted_images delete_problematic_images metadata_update_interval hash_filenames shorten_filenames "
        "compress_cache ignore_epochs disable_validation *_batch_size",
    ),
    **each(
        idle("it belongs to storage that is not here"),
        "aws_* csv_* huggingface webshart* hf_* dataset_name split auto_load buffer_size max_file_size num_proc "
        "parallel_downloads shard_cache_gb source streaming subfolder video_column image_column caption_column "
        "fallback_caption_column filter_func revision conditioning_config",
    ),
}
OF_PHOTOS = (
    "resolution resolution_type minimum_image_size maximum_image_size target_downsample_size crop crop_aspect "
    "crop_aspect_buckets crop_style caption_strategy caption_shuffle caption_dropout_probability instance_prompt "
    "prepend_instance_prompt only_instance_prompt repeats probability parquet max_upscale_threshold "
    "is_regularisation_data is_regularization_data conditioning_data"
)
MASKS: dict[str, Rule] = {
    **IMAGES,
    "conditioning_type": part("conditioning_type", "`conditioning_type: mask`"),
    **each(idle("a mask is cut and seen exactly as its photo"), OF_PHOTOS),
}
STORES = ("text_embeds", "image_embeds", "conditioning_image_embeds", "distillation_cache")
GLOBALS = ("minimum_image_size", "maximum_image_size", "target_downsample_size", "caption_strategy", "instance_prompt")
SIZES = ("resolution", "resolution_type")


def place_datasets(draft: Draft, listed: list[dict[str, Any]]) -> None:
    """Every entry of the list: photos, eval photos and masks; what else there is, is told."""
    usual = {name: draft.take(name) for name in (*SIZES, *GLOBALS)}
    usual = {name: value for name, value in usual.items() if value is not None}
    dropout = draft.take_number("dropout", number, 0.0)
    if dropout and "sd" in draft.facts:
        draft.note("caption dropout zeroes SDXL's size conditioning there; here it empties the caption alone")
    masks = {str(one.get("id")) for one in listed if is_mask(one)}
    for place, entry in enumerate(listed):
        where = f"dataset {entry.get('id', place)}, "
        kind = str(entry.get("dataset_type", "image"))
        if kind in STORES:
            draft.idle[where.rstrip(", ")] = "caches are found by content: one folder holds them all (data.cache_dir)"
        elif is_mask(entry):
            place_masks(draft, entry, where)
        elif "conditioning_type" in entry:
            draft.refuse(where + "conditioning_type", entry["conditioning_type"], "only masks are paired with photos")
        elif kind not in ("image", "eval"):
            draft.refuse(where + "dataset_type", kind, "photos (image, eval) and masks are trained with")
        elif entry.get("type", "local") != "local":
            draft.refuse(where + "type", entry["type"], "fetch the photos into a folder: type local")
        else:
            place_images(draft, {**usual, **entry}, where, masks, dropout)


def is_mask(entry: dict[str, Any]) -> bool:
    kind = entry.get("conditioning_type", "mask" if entry.get("dataset_type") == "conditioning" else None)
    return kind in ("mask", "segmentation")


def place_masks(draft: Draft, entry: dict[str, Any], where: str) -> None:
    found: dict[str, Noted] = {"id": Noted(str(entry.get("id", "masks"))), "dataset_type": Noted("conditioning")}
    found["conditioning_type"] = Noted("mask")
    draft.apply(MASKS, entry, where, found)
    if draft.take("conditioning_type") == "segmentation":
        draft.note(f"{where}segmentation: there every grey counts in full; here grey counts in part")
    entries.note_masks(draft)
    forget_entry(draft)
    draft.datasets.append(found)


def place_images(draft: Draft, entry: dict[str, Any], where: str, masks: set[str], dropout: float) -> None:
    found: dict[str, Noted] = {"id": Noted(str(entry.get("id", "photos")))}
    draft.apply(IMAGES, entry, where, found)
    if draft.take("dataset_type") == "eval":
        found["dataset_type"] = Noted("eval")
    elif dropout and "caption_dropout" not in found:
        found["caption_dropout"] = Noted(dropout, f"caption_dropout_probability: {dropout}")
    place_crop(draft, found, where)
    place_limits(draft, found, where)
    place_conditioning(draft, found, where, masks)
    entries.settle(draft, found, where)
    if "repeats" in found and found["repeats"].value:
        draft.note("repeats: extra passes, there too: 0 is once")
    if found.get("is_regularisation_data", Noted(False)).value:
        draft.note(
            "regularisation: there each batch is of one dataset, drawn by its length, and with full-rank training such "
            "photos are trained like any other; here both share batches by repeats and probability, and all adapters "
            "are held where the base model is"
        )
    forget_entry(draft)
    draft.datasets.append(found)


def forget_entry(draft: Draft) -> None:
    """Parts of one entry that had no use."""
    for name in (
        "id",
        "backend",
        "dataset_type",
        "crop_aspect",
        "crop_buckets",
        "crop_style",
        "minimum",
        "conditioning",
    ):
        draft.take(name)


def place_crop(draft: Draft, found: dict[str, Noted], where: str) -> None:
    aspect, buckets, style = draft.take("crop_aspect"), draft.take("crop_buckets"), draft.take("crop_style")
    if not found.get("crop", Noted(False)).value:
        if style:
            draft.idle[f"{where}crop_style"] = "without a crop a sliver is trimmed, in the middle"
        return
    if aspect in ("closest", "random", "preserve"):
        found["crop_aspect"] = Noted(aspect)
    if aspect in ("closest", "random") and buckets is not None:
        try:
            found["crop_aspect_buckets"] = Noted(places(buckets))
        except Misfit as misfit:
            draft.refuse(f"{where}crop_aspect_buckets", buckets, str(misfit))
            del found["crop_aspect"]
    if style == "face":
        draft.refuse(f"{where}crop_style", style, "faces are not looked for: center is taken")
        style = "center"
    style = style or "random"
    found["crop_style"] = Noted(style, f"crop_style: {style}")
    if style == "random":
        draft.note(f"{where}crop_style random: {MANY}")


def place_limits(draft: Draft, found: dict[str, Noted], where: str) -> None:
    """Sizes that leave photos out, or scale very large ones down first."""
    smallest = draft.take_number("minimum", number)
    if smallest:
        found["minimum_image_size"] = Noted(smallest, f"minimum_image_size: {smallest}")
    largest, reduced = draft.take_number("maximum", number), draft.take_number("downsample", number)
    if not largest or not reduced:
        return
    size = found.get("resolution", Noted(1024)).value
    if found.get("crop", Noted(False)).value and size <= reduced < largest:
        found["maximum_image_size"] = Noted(largest, f"maximum_image_size: {largest}")
        found["target_downsample_size"] = Noted(reduced, f"target_downsample_size: {reduced}")
    else:
        draft.idle[f"{where}maximum_image_size"] = "every photo is scaled to its resolution, as it would be there"


def place_conditioning(draft: Draft, found: dict[str, Noted], where: str, masks: set[str]) -> None:
    named = draft.take("conditioning")
    if named is None:
        return
    wanted = [str(one) for one in (named if isinstance(named, list) else [named])]
    pairs = [one for one in wanted if one in masks]
    if pairs:
        found["conditioning_data"] = Noted(pairs[0], f"conditioning_data: {named}")
    for left in [one for one in wanted if one not in pairs[:1]]:
        draft.refuse(f"{where}conditioning_data", left, "one dataset of masks is paired with photos")
