"""Checks and conversions of single values in a dataset entry: one converter per key, the same for every kind of
dataset.

A converter takes what YAML or JSON gave and returns the value that the entry's dataclass holds. It raises ValueError
with what came and what is allowed.
"""

from __future__ import annotations

import contextvars
import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dreamlit.datamodules.config_entries import CaptionShuffle, CaptionTable
from dreamlit.errors import nearest

Converter = Callable[[Any], Any]

base_folder: contextvars.ContextVar[str | None] = contextvars.ContextVar("base_folder", default=None)
"""Where relative paths start; None is the working folder. Commands set it to the folder they were called in, because
jsonargparse changes the working folder while it reads a file, and paths of other options start where the user stands.
"""

URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")  # two letters or more: C:\photos is a path
DOTTED = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
STRATEGIES = ("instanceprompt", "textfile", "filename", "parquet", "csv", "jsonl")


def shown(value: object) -> str:
    """A value as an error message quotes it: its text, and its type where that may be the fault."""
    if value is None:
        return "nothing (null)"
    text = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return f"{text} ({type(value).__name__})"


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"came {shown(value)}; allowed: text (quote it if it looks like a number)")
    if not value.strip():
        raise ValueError(f"came {value!r}; it may not be blank")
    return value


def identifier(value: Any) -> str:
    if re.search(r"[/\\#\x00-\x1f]", text(value)) or value != value.strip():
        raise ValueError(f"came {value!r}; allowed: text without '/', '\\', '#', line breaks or outer spaces")
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"came {shown(value)}; allowed: true or false, without quotes")
    return value


def choice(
    *names: str, spellings: Mapping[str, str] | None = None, reasons: Mapping[str, str] | None = None
) -> Converter:
    """One of `names`. `spellings` maps other spellings to a name; `reasons` says why a value known elsewhere is
    refused."""

    def convert(value: Any) -> str:
        value = (spellings or {}).get(value, value) if isinstance(value, str) else value
        if value in names:
            return value
        reason = (reasons or {}).get(str(value))
        raise ValueError(f"came {shown(value)}; {reason + '. ' if reason else ''}{nearest(str(value), names)}")

    return convert


def number(
    low: float = -math.inf, high: float = math.inf, *, open_low: bool = False, whole: bool = False, unit: str = ""
) -> Converter:
    """A finite number from `low` (excluded when `open_low`) to `high`; a whole one becomes an int."""
    bounds = f"{'above' if open_low else 'at least'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")
    allowed = f"{'a whole number' if whole else 'a number'} {bounds}{unit}"

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"came {shown(value)}; allowed: {allowed}")
        if value < low or value > high or (open_low and value == low) or (whole and value != int(value)):
            raise ValueError(f"came {value!r}; allowed: {allowed}")
        return int(value) if whole else float(value)

    return convert


def optional(convert: Converter) -> Converter:
    return lambda value: None if value is None else convert(value)


def path(value: Any) -> str:
    """An absolute path; a relative one starts at `base_folder`, `~` is the home folder, and URLs stay as they are."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else text(value)
    if URL.match(value):
        return value
    return absolute(value)


def absolute(value: str) -> str:
    """The absolute path of `value`; a relative one starts at `base_folder`, and `~` is the home folder."""
    return os.path.abspath(os.path.join(base_folder.get() or os.getcwd(), os.path.expanduser(value)))


def prompts(value: Any) -> tuple[str, ...]:
    """One prompt or a list of them, without blank or repeated ones."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"came {shown(value)}; allowed: a prompt or a list of prompts")
    if any(not item.strip() for item in items):
        raise ValueError(f"came {shown(value)}; a prompt may not be blank")
    return tuple(dict.fromkeys(item.strip() for item in items))


def words(value: Any) -> tuple[tuple[str, str], ...]:
    """Words and what replaces them, neither blank."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"came {shown(value)}; allowed: words and what replaces them, such as {{sks dog: a dog}}")
    pairs = tuple((old, new) for old, new in value.items())
    if not all(isinstance(text, str) and text.strip() for pair in pairs for text in pair):
        raise ValueError(f"came {shown(value)}; each must be words, and their replacement too, not blank")
    same = next((old for old, new in pairs if old.strip() == new.strip()), None)
    if same is not None:
        raise ValueError(f"{same!r} would be replaced by itself")
    return tuple((old.strip(), new.strip()) for old, new in pairs)


def aspects(value: Any) -> tuple[float, ...]:
    """Aspects (width / height) as plain numbers."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(
            f"came {shown(value)}; allowed: a list of aspects (width / height), for example [0.75, 1.0, 1.5]"
        )
    convert = number(0.1, 10, unit=" (width / height)")
    found = tuple(float(convert(item)) for item in value)
    if len(set(found)) < len(found):
        raise ValueError(f"came {shown(value)}; each aspect may stand once")
    return found


def alpha(value: Any) -> str:
    """`mask`, `error` or a colour, written as `white` or `#rrggbb`."""
    if value in ("mask", "error", "white"):
        return value
    if (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(isinstance(v, int) and 0 <= v <= 255 for v in value)
    ):
        return "#{:02x}{:02x}{:02x}".format(*value)
    from PIL import ImageColor  # only entries that name a colour pay for Pillow

    try:
        red, green, blue = ImageColor.getrgb(str(value))[:3]
    except ValueError:
        raise ValueError(
            f"came {shown(value)}; allowed: mask, error, or a colour (a name, '#rrggbb' or three numbers from 0 to 255)"
        ) from None
    return f"#{red:02x}{green:02x}{blue:02x}"


def strategy(value: Any) -> str:
    """A registered caption strategy (in any case, `_` may stand between the words), or the dotted path of a class."""
    from dreamlit.datamodules.captions import CaptionStrategy

    if isinstance(value, str) and DOTTED.match(value):
        return value
    name = value.lower().replace("_", "") if isinstance(value, str) else value
    if name in CaptionStrategy.registry:
        return name
    own = "or the dotted path of your own CaptionStrategy"
    raise ValueError(f"came {shown(value)}; {nearest(str(value), CaptionStrategy.registry)}, {own}")


def one_id(value: Any) -> str:
    """The id of another dataset; a list of one is the same."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, (list, tuple)):
        raise ValueError(f"came {shown(value)}; allowed: the id of one conditioning dataset, an image has one mask")
    return text(value)


def block(cls: type, converters: Mapping[str, Converter], required: tuple[str, ...] = ()) -> Converter:
    """A nested mapping, as a `cls`; all its faults are in one message."""
    names = [field.name for field in dataclasses.fields(cls)]

    def convert(value: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"came {shown(value)}; allowed: a block with {', '.join(names)}")
        faults = [f"no option {str(key)!r}; {nearest(str(key), names)}" for key in value if key not in names]
        faults += [f"{key!r} is missing" for key in required if key not in value]
        found = {}
        for key in names:
            if key in value:
                try:
                    found[key] = converters[key](value[key])
                except ValueError as error:
                    faults.append(f"{key}: {error}")
        if faults:
            raise ValueError("; ".join(faults))
        return cls(**found)

    return convert


def separator(value: Any) -> str:
    if not isinstance(value, str) or not value or "\n" in value:
        raise ValueError(f"came {shown(value)}; allowed: the text between two tags, for example ','")
    return value


_shuffle_block = block(
    CaptionShuffle,
    {
        "enable": boolean,
        "keep_tokens": number(0, whole=True),
        "count": number(1, 64, whole=True),
        "separator": separator,
    },
)


def shuffle(value: Any) -> CaptionShuffle:
    return CaptionShuffle(enable=value) if isinstance(value, bool) else _shuffle_block(value)


table = block(CaptionTable, {"path": path, "filename_column": text, "caption_column": text}, required=("path",))
no_cloud = "images are read from a folder or from webdataset shards"
size = number(0, open_low=True)  # the bounds depend on resolution_type: see config_checks

CONVERTERS: dict[str, Converter] = {
    "id": identifier,
    "instance_data_dir": path,
    "type": choice(
        "local", "webdataset", reasons=dict.fromkeys(("aws", "csv", "huggingface", "webshart", "memory"), no_cloud)
    ),
    "dataset_type": choice("image", "eval", "conditioning", "text_embeds"),
    "disabled": boolean,
    "resolution": size,
    "resolution_type": choice("pixel", "pixel_area", "area"),
    "minimum_image_size": size,
    "maximum_image_size": size,
    "target_downsample_size": size,
    "max_upscale": number(1, unit=" (1 refuses all enlargement)"),
    "crop": boolean,
    "crop_aspect": choice("square", "preserve", "closest", "random"),
    "crop_aspect_buckets": aspects,
    "crop_style": choice(
        "center",
        "corner",
        "random",
        spellings={"centre": "center"},
        reasons={"face": "faces are not looked for; crop by hand, or use center"},
    ),
    "alpha": alpha,
    "on_bad_file": choice("error", "skip"),
    "caption_strategy": strategy,
    "instance_prompt": prompts,
    "class_prompt": prompts,
    "class_words": words,
    "prepend_instance_prompt": boolean,
    "only_instance_prompt": boolean,
    "empty_caption": choice("error", "allow", "skip"),
    "caption_shuffle": shuffle,
    "caption_dropout": number(0, 1),
    "parquet": table,
    "csv": table,
    "jsonl": table,
    "repeats": number(0, unit=" (0 is once, 1 is twice)"),
    "probability": number(0, open_low=True, unit=" (disabled: true leaves a dataset out)"),
    "is_regularisation_data": boolean,
    "conditioning_data": one_id,
    "conditioning_type": choice(
        "mask", reasons=dict.fromkeys(("controlnet", "segmentation"), "only masks are used in training")
    ),
    "missing_mask": choice("error", "white"),
    "cache_dir_vae": path,
    "cache_dir": path,
    "default": boolean,
    "metadata_backend": choice(
        "discovery",
        "json",
        "filesystem",
        reasons={name: f"captions of a table: caption_strategy: {name}" for name in ("parquet", "csv")},
    ),
}
"""How each key of an entry is read. Null is allowed where the dataclass's default is null."""
