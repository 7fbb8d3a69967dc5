"""How images are drawn to be looked at: with which settings, and what they look like on the way."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ConfigError, nearest
from dreamlit.in_the_making import tell_unpacked, unwatched, watched

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    Watch = Callable[[list["Picture"], int, Tensor], None]
    """Gets the pictures in the making, the sampler step from 1, and what the model takes the clean latents for."""

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Samplers by name, with diffusers' class."""
MOST_SEED = 2**63


@dataclasses.dataclass(frozen=True)
class Picture:
    """What is drawn; width and height in pixels, None the model's own."""

    prompt: str
    seed: int
    width: int | None = None
    height: int | None = None
    photo: str | None = None
    """Path of the image that it is made of, for families that draw from photos; its size is the photo's."""

    @property
    def size(self) -> dict[str, int]:
        """The pipeline's arguments for it."""
        given = {"width": self.width, "height": self.height}
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How it is drawn. `faults` and `model_faults` say what is wrong; nothing else checks.

    A `guidance_scale` of None stands for the model's usual one; `of` puts that in, which must be done before drawing.
    """

    steps: int = 30
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    negative_prompt: str = ""
    sampler: str | None = None
    own: tuple[tuple[str, Any], ...] = ()
    """The family's own arguments; `of` puts them in."""
    guidance_name: str = "guidance_scale"
    guidance_offset: float = 0.0
    led_away_from: str = ""
    """As `Drawing` has them; `of` puts them in."""

    def of(self, family: Any) -> Sampling:
        """These settings for a model of this family."""
        scale = family.usual_guidance if self.guidance_scale is None else self.guidance_scale
        names = {name: getattr(family, name) for name in ("guidance_name", "guidance_offset", "led_away_from")}
        return dataclasses.replace(self, guidance_scale=scale, own=tuple(family.call_options().items()), **names)

    @property
    def unguided(self) -> bool:
        """Whether guidance is turned off on purpose."""
        return self.guidance_scale is not None and self.guidance_scale <= 1

    def faults(self) -> Iterator[str]:
        """Settings that are wrong whatever the model, one line each."""
        if self.steps < 1:
            yield f"steps is {self.steps}; it must be at least 1"
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < math.inf:
            yield f"guidance_scale is {self.guidance_scale}; it must be finite and not negative"
        if not 0 <= self.guidance_rescale <= 1:
            yield f"guidance_rescale is {self.guidance_rescale}; it must be from 0 to 1"
        for name in ("negative_prompt", "guidance_rescale"):
            if getattr(self, name) and self.unguided:
                yield f"{name} would do nothing: it needs a guidance_scale above 1"
        if self.sampler is not None and self.sampler not in SAMPLERS:
            yield f"sampler is {self.sampler!r}; {nearest(str(self.sampler), SAMPLERS)}"

    def model_faults(self, family: Any) -> Iterator[str]:
        """Settings that do not fit the model; no weights are loaded."""
        import diffusers

        name = family.pipeline_class
        call = inspect.signature(getattr(diffusers, name).__call__).parameters
        if self.guidance_rescale and "guidance_rescale" not in call:
            yield f"guidance_rescale is {self.guidance_rescale}, which {name} does not have; leave it out"
        yield from family.step_faults(self.steps)
        if self.negative_prompt and not family.guided:
            yield f"negative_prompt would do nothing: {name} takes its guidance as a number; leave it out"
        elif self.negative_prompt and "negative_prompt" not in call:
            yield f"negative_prompt is {self.negative_prompt!r}, and {name} takes none: it leads away from an empty one"
        if self.sampler and not {"beta_start", "trained_betas"} & getattr(family, "schedule", dict)().keys():
            yield f"sampler is {self.sampler!r}, and this model's own sampler has no beta schedule; leave it out"

    def forwards(self, family: Any) -> int:
        """Forwards of the denoiser for one image."""
        return self.steps * (2 if family.guided and not self.unguided else 1)

    def arguments(self) -> dict[str, Any]:
        """The pipeline's arguments that are the same for all images.

        An empty negative prompt is left out: SDXL then takes zeros, as it was trained, not the embedding of "".
        """
        given = {"guidance_rescale": self.guidance_rescale} if self.guidance_rescale else {}
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale, **given, **dict(self.own)}

    def call(self, count: int) -> dict[str, Any]:
        """The arguments of a call for so many images, by the pipeline's own names."""
        given = self.arguments()
        given[self.guidance_name] = given.pop("guidance_scale") - self.guidance_offset
        away = self.negative_prompt or ("" if self.unguided else self.led_away_from)
        return {**given, **({"negative_prompt": [away] * count} if away else {})}

    def recipe(self, picture: Picture) -> dict[str, Any]:
        """All that decides an image, but the weights, as plain values."""
        given = {"negative_prompt": self.negative_prompt, "sampler": self.sampler}
        named = {name: value for name, value in given.items() if value}
        if picture.photo:
            named["photo"] = pathlib.PurePath(picture.photo).name
        return {"prompt": picture.prompt, "seed": picture.seed, **named, **self.arguments(), **picture.size}


def prompt_faults(family: Any) -> Iterator[str]:
    """Why a model cannot draw from prompts alone."""
    if family.draws_from_photos:
        yield (
            f"{type(family).__name__} draws from photos, not from prompts alone: set model.family.{family.drawn_with} "
            "to the model before it, or look at the previews of ValidationPreview, made of the datasets' photos"
        )


# settings that are checked alike wherever they are given --------------------------------------------------------------


def seed_faults(seeds: Sequence[int]) -> Iterator[str]:
    if not seeds or len(set(seeds)) < len(seeds):
        yield f"seeds is {seeds}; give at least one, each once: the same seed makes the same image"
    if any(not 0 <= seed < MOST_SEED for seed in seeds):
        yield f"seeds is {seeds}; each must be from 0 to 2^63 - 1"


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "768x512". Errors: `ConfigError`."""
    found = re.fullmatch(r"([1-9]\d*)\s*[xX]\s*([1-9]\d*)", str(text).strip())
    if not found:
        raise ConfigError(f"{text!r} is no size; give width x height in pixels, such as 768x512")
    return int(found[1]), int(found[2])


def size_faults(pictures: Iterable[Picture], stride: int) -> Iterator[str]:
    """Sizes that the model's latents cannot have."""
    sides = dict.fromkeys(side for picture in pictures for side in picture.size.items())
    for name, value in sides:
        if value % stride:
            yield f"{name} is {value}; this model needs a multiple of {stride}"


# drawing --------------------------------------------------------------------------------------------------------------


def draw(
    pipeline: Any,
    pictures: Sequence[Picture],
    sampling: Sampling,
    *,
    batch_size: int = 1,
    watch: Watch | None = None,
) -> Iterator[tuple[Picture, Image]]:
    """Draws the pictures in their order and yields each as soon as it is there.

    Noise comes from the CPU and from each image's own seed: the same on every device. Images of one size and batch are
    made together; their sums round differently from those of an image alone. Watching changes nothing.
    """
    import torch

    if sampling.sampler:
        pipeline.scheduler = sampler_of(pipeline.scheduler.config, sampling.sampler)
    for batch in batches(pictures, batch_size):
        noise = [torch.Generator().manual_seed(picture.seed) for picture in batch]
        scheduler = pipeline.scheduler
        if watch:
            watched(scheduler, sampling.steps, functools.partial(tell_unpacked, watch, pipeline, batch))
        photos = {"image": [opened(batch[0].photo)]} if batch[0].photo else {}  # then the only one of its batch
        given = {**sampling.call(len(batch)), **batch[0].size, **photos}
        try:
            made = pipeline(prompt=[picture.prompt for picture in batch], generator=noise, **given).images
        finally:
            unwatched(scheduler)
        yield from zip(batch, made, strict=True)


def batches(pictures: Sequence[Picture], batch_size: int) -> Iterator[list[Picture]]:
    """At most `batch_size` neighbours of one size."""
    batch: list[Picture] = []
    for picture in pictures:
        if batch and (len(batch) == batch_size or picture.size != batch[0].size or picture.photo):
            yield batch
            batch = []
        batch.append(picture)
    if batch:
        yield batch


def opened(path: str) -> Image:
    """A photo as the pipelines take it."""
    from PIL import Image as pillow

    with pillow.open(path) as image:
        return image.convert("RGB")


def sampler_of(config: Any, name: str) -> Any:
    """diffusers' sampler of this name with the model's own schedule."""
    import diffusers

    # Samplers that draw pixels clip them to [-1, 1], which is DDIM's default; latents are larger.
    own = {"clip_sample": False} if name == "ddim" else {}
    return getattr(diffusers, SAMPLERS[name]).from_config(config, **own)


def ask_ahead(family: Any, wanted: Iterable[list[Picture]], sampling: Sampling, device: Any) -> None:
    """Encodes what `draw` will ask for in a run, so that the text encoders need not stand beside the denoiser.

    wanted: the `batches` in which the pictures will be drawn.

    A model that draws from the images of another, or from photos, encodes its prompts when it draws. Errors:
    `DreamlitError`, and whatever fails in loading or encoding.
    """
    import dreamlit.families.recall as recall

    if family.drawn_with:
        return
    with recall.asking(family, device) as pipeline:
        for batch in wanted:
            try:
                list(draw(pipeline, batch, sampling, batch_size=len(batch)))
            except recall.Asked:
                continue
