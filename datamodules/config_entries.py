"""One dataclass per kind of dataset entry. A field's docstring is its reference text: `docs/datasets.md` is made of
them.

Values here are already checked and converted: `dreamlit.datamodules.config.DatasetSpecs` reads YAML and JSON into them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from dreamlit.types import Role


@dataclasses.dataclass(frozen=True)
class Size:
    """A size limit or target in pixels: the shorter edge, or (when `is_area`) the whole area."""

    px: float
    """Pixels of the shorter edge, or square pixels."""
    is_area: bool

    def measure(self, height: float, width: float) -> float:
        """What of an image of this height and width is compared with `px`."""
        return float(height * width) if self.is_area else float(min(height, width))

    def scale(self, height: float, width: float) -> float:
        """The factor for both edges that gives an image of this height and width exactly this size."""
        ratio = self.px / self.measure(height, width)
        return math.sqrt(ratio) if self.is_area else ratio


def size_of(value: float, resolution_type: str) -> Size:
    """`value` in the units of `resolution_type`: shorter edge, edge of a square of the same area, or megapixels
    (1e6)."""
    if resolution_type == "pixel":
        return Size(float(value), is_area=False)
    if resolution_type == "pixel_area":
        return Size(float(value) ** 2, is_area=True)
    return Size(float(value) * 1e6, is_area=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionShuffle:
    """Captions with their tags in other orders: a fixed set of variants per image, so that they can be cached."""

    enable: bool = False
    """Turns shuffling on."""
    keep_tokens: int = 1
    """How many tags at the head keep their place, for example the subject's name."""
    count: int = 4
    """How many orders are made of each caption. One of them is the order as written."""
    separator: str = ","
    """What stands between two tags."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionTable:
    """A file with a caption per image, for `caption_strategy` `parquet`, `csv` and `jsonl`."""

    path: str
    """The table file. A relative path starts at the working folder."""
    filename_column: str = "filename"
    """Column (in JSON lines: key) that names the image: by relative path, by file name or by stem."""
    caption_column: str = "caption"
    """Column (in JSON lines: key) of the caption. A list in a cell gives several variants."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageDataset:
    """Photos to train on (`dataset_type: image`) or to measure a loss on without training (`dataset_type: eval`)."""

    dataset_types: ClassVar[tuple[str, ...]] = ("image", "eval")

    id: str
    """Name of the dataset: unique in the list, without `/`, `\\` or `#`. It is part of every sample's key."""
    instance_data_dir: str
    """Folder of the photos, searched in depth and never written to. For `type: webdataset` the tar shards: a path or
    URL, with ranges in braces, for example `shards/{000..007}.tar`. A relative path starts at the working folder."""
    type: str = "local"
    """`local`: a folder. `webdataset`: tar shards of images with sidecar files of the same stem."""
    dataset_type: str = "image"
    """`image`: trained on. `eval`: never trained on, used for the validation loss."""
    disabled: bool = False
    """Leaves the entry out of the run. Also spelt `disable`."""

    resolution: float = 1024
    """Size that images are trained at, in the unit of `resolution_type`."""
    resolution_type: str = "pixel_area"
    """Unit of all sizes of this entry. `pixel`: the shorter edge in pixels. `pixel_area`: the edge in pixels of a
    square of the same area. `area`: megapixels (1,000,000 pixels)."""
    minimum_image_size: float | None = None
    """Images smaller than this are left out, and listed. With `pixel` the shorter edge counts, otherwise the area."""
    maximum_image_size: float | None = None
    """With `crop: true`. Images larger than this are first scaled down to `target_downsample_size`, then cropped, so
    that a crop of a very large photo still shows the subject."""
    target_downsample_size: float | None = None
    """Size that images above `maximum_image_size` are scaled down to; between `resolution` and `maximum_image_size`."""
    max_upscale: float | None = None
    """Largest factor by which an edge may be enlarged to reach the training size; images that would need more are left
    out, and listed. Without a value any enlargement is allowed, with a warning."""
    crop: bool = False
    """`true` cuts to the aspect chosen by `crop_aspect`. `false` keeps the photo's aspect and trims only the sliver
    that rounding to the alignment leaves."""
    crop_aspect: str = "square"
    """With `crop: true`. `square`: 1:1. `preserve`: the photo's own aspect. `closest`: the nearest of
    `crop_aspect_buckets`. `random`: one of `crop_aspect_buckets`, fixed for each image by the seed."""
    crop_aspect_buckets: tuple[float, ...] = ()
    """Aspects (width / height) to choose from, for `crop_aspect` `closest` and `random`."""
    crop_style: str = "center"
    """With `crop: true`, which part is kept. `center` (also `centre`), `corner`: the top left, `random`: a place fixed
    for each image by the seed."""
    alpha: str = "white"
    """What happens to transparent photos. A colour (a name or `#rrggbb`): they are laid on it. `mask`: laid on white,
    and the transparent part does not count in the loss. `error`: they are refused."""
    on_bad_file: str = "error"
    """What happens when files cannot be read as an image. `error`: all are listed and nothing starts. `skip`: they are
    left out, and listed."""

    caption_strategy: str = "instanceprompt"
    """Where captions come from. `instanceprompt`: `instance_prompt`. `textfile`: a `.txt` file of the same stem beside
    the image, each line a variant. `filename`: the file's stem with `_` read as a space. `parquet`, `csv`, `jsonl`: a
    table, see the block of that name. Or the dotted path of your own subclass of
    `dreamlit.datamodules.captions.CaptionStrategy`."""
    instance_prompt: tuple[str, ...] = ()
    """The prompt that names the subject, such as `a photo of sks dog`. A list gives variants; each draw uses one."""
    prepend_instance_prompt: bool = False
    """Puts `instance_prompt` and a space before every caption."""
    only_instance_prompt: bool = False
    """Uses `instance_prompt` in place of whatever `caption_strategy` gives."""
    class_prompt: tuple[str, ...] = ()
    """Keeps the class without class images: each draw of a photo is also trained, with this prompt in place of its
    caption, toward what the base model predicts with it (for example `a photo of a dog`, without the subject's name).
    A list gives variants; each draw uses one. Weighted by `objective.prior_loss_weight`. A step takes about twice as
    long. Where captions say more than the subject's name, use `class_words` instead."""
    class_words: tuple[tuple[str, str], ...] = ()
    """The same with class prompts made of the captions: words of a caption -> what stands there for the class, such as
    `{sks dog: a dog}`. Each caption must have such words. It is the safer of the two with captions that name places: a
    fixed prompt without any lets the model tell the subject from its class by the place alone."""
    empty_caption: str = "error"
    """What happens to images whose caption is empty. `error`: all are listed and nothing starts. `allow`: trained with
    the empty prompt. `skip`: left out, and listed."""
    caption_shuffle: CaptionShuffle = CaptionShuffle()
    """Shuffling of the tags of a caption, see below. `true` is short for `enable: true`."""
    caption_dropout: float = 0.0
    """Share of draws, from 0 to 1, that use the empty prompt in place of the caption."""
    parquet: CaptionTable | None = None
    """The table for `caption_strategy: parquet`. Needs the extra `dreamlit[parquet]`."""
    csv: CaptionTable | None = None
    """The table for `caption_strategy: csv`: UTF-8, with a header line."""
    jsonl: CaptionTable | None = None
    """The table for `caption_strategy: jsonl`: one JSON object a line."""

    repeats: float = 0.0
    """How many extra times each image is seen in an epoch: 0 is once, 9 is ten times, 0.5 is one and a half times on
    average. (Tools in which 1 means once call this number plus one.)"""
    probability: float = 1.0
    """Factor, above 0, on how often the dataset is drawn, after `repeats`."""
    is_regularisation_data: bool = False
    """These photos keep the class as it was: they are trained toward what the base model predicts. Also spelt
    `is_regularization_data`."""
    conditioning_data: str | None = None
    """`id` of the conditioning dataset with a mask for each of these images."""
    missing_mask: str = "error"
    """What happens to images without a mask, when `conditioning_data` is given. `error`: all are listed and nothing
    starts. `white`: the whole image counts."""

    cache_dir_vae: str | None = None
    """Folder for this dataset's encoded latents; without a value the run's cache folder. Entries are found by content,
    so a folder may be shared by any number of datasets and runs."""
    metadata_backend: str = "discovery"
    """Accepted for lists written for other trainers, and without effect: the folder is always read anew. `discovery`,
    `json` or `filesystem`."""

    @property
    def role(self) -> Role:
        """What the samples of this dataset are trained toward."""
        return Role.REGULARISATION if self.is_regularisation_data else Role.INSTANCE

    @property
    def is_eval(self) -> bool:
        return self.dataset_type == "eval"

    @property
    def target(self) -> Size:
        """The size that images are trained at."""
        return size_of(self.resolution, self.resolution_type)

    @property
    def minimum(self) -> Size | None:
        return self._limit(self.minimum_image_size)

    @property
    def maximum(self) -> Size | None:
        return self._limit(self.maximum_image_size)

    @property
    def downsample(self) -> Size | None:
        """The size that images above `maximum` are first scaled down to."""
        return self._limit(self.target_downsample_size)

    def _limit(self, value: float | None) -> Size | None:
        return None if value is None else size_of(value, self.resolution_type)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditioningDataset:
    """Masks for the images of another dataset, paired by relative path and stem (`dataset_type: conditioning`).

    A mask is cut exactly as its image was. Size and crop keys may therefore be left out; where they are given, they
    have to agree with an image dataset that names this one.
    """

    dataset_types: ClassVar[tuple[str, ...]] = ("conditioning",)
    shared_keys: ClassVar[tuple[str, ...]] = (
        "resolution",
        "resolution_type",
        "minimum_image_size",
        "maximum_image_size",
        "target_downsample_size",
        "crop",
        "crop_aspect",
        "crop_aspect_buckets",
        "crop_style",
    )
    """Keys whose meaning and value are those of the image dataset."""

    id: str
    """Name that an image dataset gives as its `conditioning_data`."""
    instance_data_dir: str
    """Folder (or tar shards) of the masks. Dark parts of a mask do not count in the loss; grey counts partly."""
    type: str = "local"
    """`local` or `webdataset`, as for images."""
    dataset_type: str = "conditioning"
    """`conditioning`."""
    disabled: bool = False
    """Leaves the entry out of the run. Also spelt `disable`."""
    conditioning_type: str = "mask"
    """`mask`: the only kind that is used in training."""
    metadata_backend: str = "discovery"
    """Accepted and without effect, as for images."""

    resolution: float | None = None
    """As the image dataset."""
    resolution_type: str | None = None
    """As the image dataset."""
    minimum_image_size: float | None = None
    """As the image dataset."""
    maximum_image_size: float | None = None
    """As the image dataset."""
    target_downsample_size: float | None = None
    """As the image dataset."""
    crop: bool | None = None
    """As the image dataset."""
    crop_aspect: str | None = None
    """As the image dataset."""
    crop_aspect_buckets: tuple[float, ...] | None = None
    """As the image dataset."""
    crop_style: str | None = None
    """As the image dataset."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEmbedsDataset:
    """Where text embeddings are stored (`dataset_type: text_embeds`). A run uses one store; the entry may be left
    out."""

    dataset_types: ClassVar[tuple[str, ...]] = ("text_embeds",)

    id: str
    """Name of the store."""
    type: str = "local"
    """`local`."""
    dataset_type: str = "text_embeds"
    """`text_embeds`."""
    disabled: bool = False
    """Leaves the entry out of the run. Also spelt `disable`."""
    default: bool = False
    """Marks the store that is used. With a single store it may be left out."""
    cache_dir: str | None = None
    """Folder of the embeddings; without a value the run's cache folder. Entries are found by content, so a folder may
    be shared by any number of runs."""


DatasetSpec = ImageDataset | ConditioningDataset | TextEmbedsDataset
ENTRY_CLASSES: tuple[type[DatasetSpec], ...] = (ImageDataset, ConditioningDataset, TextEmbedsDataset)
