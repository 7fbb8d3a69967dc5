"""The choices of a new run and the reason of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dreamlit.families.files import read_json
from dreamlit.quantisation import NO_CHANGE

if TYPE_CHECKING:
    from dreamlit.families import Family
    from dreamlit.newrun.material import Photos

STEP_SAMPLES = 4
"""Samples of one optimizer step, however the memory divides them."""
VIEWS = 200
"""How often each photo is seen: the toybox's five photos were learned in 240 views each (docs/evidence)."""
FEWEST, MOST = 400, 3000
LARGE = 10**9
"""Bytes from which on a text encoder is worth storing in few bits."""


@dataclasses.dataclass(frozen=True)
class Saving:
    """One way to spend memory, from lavish to frugal."""

    batch: int
    checkpointing: bool
    level: str

    @property
    def accumulate(self) -> int:
        return STEP_SAMPLES // self.batch

    def reason(self) -> str:
        what = [f"batches of {self.batch}", f"{'with' if self.checkpointing else 'without'} gradient checkpointing"]
        return ", ".join([*what, *([] if self.level == NO_CHANGE else [f"the base in {self.level}"])])


def savings(on_gpu: bool) -> Iterator[Saving]:
    """Yield what may be tried, the fastest and most exact first."""
    yield Saving(STEP_SAMPLES, False, NO_CHANGE)
    yield Saving(STEP_SAMPLES, True, NO_CHANGE)
    yield Saving(1, True, NO_CHANGE)
    if on_gpu:
        # bitsandbytes keeps nothing more for the backward pass; quanto keeps each layer's input
        yield Saving(1, True, "int8-quanto")
        yield Saving(1, True, "nf4-bnb")


def native_side(family: Family) -> int:
    """The side of the square images that the model was made for, in pixels."""
    config = read_json(family.files.configuration(f"{family.denoiser_name}/config.json"))
    side = config.get("sample_size")
    return side * family.stride if isinstance(side, int) and side * family.stride >= 64 else 1024


@dataclasses.dataclass(frozen=True)
class Sizes:
    resolution: int
    alignment: int
    reason: str


def choose_sizes(family: Family, photos: Photos, asked: int | None) -> Sizes:
    """The training size: the model's own, or the photos' where they are smaller."""
    native, multiple = native_side(family), family.drawn_multiple
    if asked:
        side, reason = asked, "as asked for"
    elif photos.usual_side < native:
        side = max(multiple, photos.usual_side // multiple * multiple)
        reason = (
            f"the photos' own: half of them have at most {photos.usual_side} pixels a side; the model's is {native}"
        )
    else:
        side, reason = native, f"the model's own; the photos have {photos.sides[0]} pixels a side or more"
    coarse = 64 if side >= 512 and 64 % multiple == 0 else multiple
    return Sizes(side, coarse, reason)


def choose_steps(photos: Photos, with_class: bool) -> tuple[int, str]:
    """Optimizer steps of the run, and why."""
    share = 2 if with_class else 1
    wanted = len(photos) * VIEWS * share / STEP_SAMPLES
    steps = int(min(MOST, max(FEWEST, -(-wanted // 50) * 50)))
    views = steps * STEP_SAMPLES / share / len(photos)
    return steps, f"each of the {len(photos)} photos is seen about {views:.0f} times"


def class_images_to_draw(photos: Photos) -> int:
    """How many pictures of the class the base model is to draw: five for each photo, 24 to 100."""
    return min(100, max(24, 5 * len(photos)))


def article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def large_encoders(family: Family) -> list[int]:
    """Numbers, from 1, of the text encoders that are large in the family's precision."""
    from dreamlit.families.loading import bare
    from dreamlit.memory.weights import precision_of, stored_bytes

    here = [name for name, _ in family.text_parts()]
    sizes: dict[str, Any] = {name: stored_bytes(bare(family, name), precision_of(family, name)) for name in here}
    return [n for n, (name, _) in enumerate(family.text_encoder_names, start=1) if sizes.get(name, 0) > LARGE]
