"""The text of a new run.yaml: values, and their reasons as comments."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dreamlit.layers import quoted
from dreamlit.newrun.choices import Saving, Sizes, article, choose_steps, class_images_to_draw
from dreamlit.quantisation import NO_CHANGE

if TYPE_CHECKING:
    from dreamlit.families import Family
    from dreamlit.newrun.material import Photos


PLACES = "{|on grass|on a beach|in a room|in a street|in the snow}"
"""Where the class images are: what holds the class holds the places with it."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a run.yaml is written from."""

    family: Family
    photos: Photos
    sizes: Sizes
    masks: str | None
    class_images: Photos | None
    subject_word: str
    class_name: str
    output: pathlib.Path
    on_gpu: bool
    large_encoders: tuple[int, ...]

    @property
    def root(self) -> str:
        return f"runs/{self.output.stem}"

    @property
    def subject(self) -> str:
        return f"a photo of {self.subject_word} {self.class_name}"

    @property
    def to_draw(self) -> int:
        """How many class images the run draws for itself."""
        draws = self.class_images is None and not self.family.draws_from_photos
        return class_images_to_draw(self.photos) if draws else 0

    @property
    def of_class(self) -> int:
        """How many class images there are, or will be."""
        return self.to_draw if self.class_images is None else len(self.class_images)

    @property
    def plain(self) -> str:
        return f"a photo of {article(self.class_name)}"


def written(wish: Wish, saving: Saving, header: list[str]) -> str:
    """The whole file."""
    head = [f"# {line}".rstrip() for line in header]
    return "\n".join([*head, *trainer(wish, saving), *model(wish, saving), *data(wish, saving)]) + "\n"


def trainer(wish: Wish, saving: Saving) -> Iterator[str]:
    steps, why = choose_steps(wish.photos, wish.of_class > 0)
    yield "seed_everything: 0"
    yield "trainer:"
    yield f"  accelerator: {'gpu' if wish.on_gpu else 'cpu'}"
    yield "  devices: 1"
    if wish.on_gpu:
        yield "  precision: bf16-mixed   # the trained weights stay float32"
    yield f"  max_steps: {steps}   # {why}; look at the previews and stop earlier if they are good"
    if saving.accumulate > 1:
        yield f"  accumulate_grad_batches: {saving.accumulate}   # {saving.accumulate} batches make one step"
    yield "  gradient_clip_val: 1.0"
    yield f"  default_root_dir: {quoted(wish.root)}"
    if not wish.family.draws_from_photos:
        yield from previews(wish)


def previews(wish: Wish) -> Iterator[str]:
    side = wish.sizes.resolution
    yield "  callbacks:"
    yield "    - class_path: ValidationPreview"
    yield "      init_args:"
    yield "        prompts:"
    yield f"          - {quoted(f'{wish.subject} on the beach')}"
    yield f"          - {quoted(wish.plain)}   # must stay what it was"
    yield f"        sizes: [{side}x{side}]"
    yield "        seeds: [1]"
    yield "        every_n_steps: 250"
    yield "        at_end: true"


def model(wish: Wish, saving: Saving) -> Iterator[str]:
    family = wish.family
    yield "model:"
    yield "  family:"
    yield f"    class_path: {type(family).__name__}   # as the model's own files say"
    yield "    init_args:"
    yield f"      path: {quoted(family.files.path)}"
    if wish.on_gpu:
        yield "      dtype: bfloat16"
    if saving.checkpointing:
        yield "      gradient_checkpointing: true   # recompute activations: less memory, more time"
    if saving.level != NO_CHANGE:
        yield f"  base_model_precision: {saving.level}   # or it would not fit; docs/precisions.md has its error"
        for number in wish.large_encoders:
            yield f"  text_encoder_{number}_precision: {saving.level}"
    yield "  # LoRA: every tool loads it. On the toybox its subject fidelity was 0.366 and LoKr's 0.329 at equal steps"
    yield "  # (+0.037 ± 0.032); the background was right in 89 % and 97 % of the pictures: docs/evidence."
    yield "  adapter:"
    yield "    class_path: LoRA"
    yield "    init_args:"
    yield "      rank: 16"
    yield "      targets: attention-mlp"
    yield "  optimizer:"
    yield "    class_path: torch.optim.AdamW"
    yield "    init_args:"
    yield "      lr: 1.0e-4   # usual for LoRA; not measured here on a model of this size. Too weak a subject: raise it"
    yield "  lr_scheduler: cosine"
    yield "  lr_warmup_steps: 20"
    yield "  # The base model teaches the class. On the toybox, at this weight and with class images, PRES (how like"
    yield "  # the subject the plain class became: lower is better) was 0.188, without it 0.373, at the start 0.167."
    if not wish.of_class:
        yield "  # Below, that loss is taken on the photos themselves instead (measured: docs/objective.md)."
    yield "  objective:"
    yield "    prior_loss_weight: 30"
    yield "checkpoint:"
    yield "  every_n_steps: 250"


def data(wish: Wish, saving: Saving) -> Iterator[str]:
    photos, sizes = wish.photos, wish.sizes
    yield "data:"
    yield "  cache_dir: cache"
    yield f"  batch_size: {saving.batch}"
    yield f"  aspect_bucket_alignment: {sizes.alignment}"
    if wish.to_draw:
        yield from class_images(wish, saving)
    yield "  datasets:"
    yield "    - id: subject"
    yield f"      instance_data_dir: {quoted(photos.folder)}"
    if photos.captioned:
        yield "      caption_strategy: textfile   # each photo has a text beside it; it must name the subject"
    else:
        asked = f"dreamlit tokens MODEL --measure {shlex.quote(wish.class_name)} --judge {wish.subject_word}"
        yield f"      instance_prompt: {quoted(wish.subject)}   # is that a good word? `{asked}`"
    if wish.masks:
        yield "      conditioning_data: subject-masks"
    if not wish.of_class:
        yield "      # Keeps the class without class images; a step takes twice as long."
        if photos.captioned:
            yield "      # The captions with the class in the subject's place; give the words that yours name it with."
            named = f"{wish.subject_word} {wish.class_name}"
            yield f"      class_words: {{{quoted(named)}: {quoted(article(wish.class_name))}}}"
        else:
            yield f"      class_prompt: {quoted(wish.plain)}"
    yield f"      resolution: {sizes.resolution}   # {sizes.reason}"
    if wish.of_class:
        yield repeats(len(photos), wish.of_class)
    if wish.masks:
        yield "    # Toybox, the same wall behind every photo: 92 % of the subject's pictures had it, with masks 17 %."
        yield "    - id: subject-masks"
        yield "      dataset_type: conditioning"
        yield "      conditioning_type: mask"
        yield f"      instance_data_dir: {quoted(wish.masks)}"
    if wish.class_images is not None:
        yield "    - id: class"
        yield f"      instance_data_dir: {quoted(wish.class_images.folder)}"
        if wish.class_images.captioned:
            yield "      caption_strategy: textfile"
        else:
            yield f"      instance_prompt: {quoted(wish.plain)}"
        yield repeats(len(wish.class_images), len(photos))
        yield "      is_regularisation_data: true"
        yield f"      resolution: {sizes.resolution}"


def class_images(wish: Wish, saving: Saving) -> Iterator[str]:
    """The class images that the run draws for itself."""
    yield "  # Drawn by the base model before it trains; --class-images DIR takes images of yours instead. With class"
    yield "  # images a subject of the toybox was in the right place in 97 % of its pictures; in 61 % where its own"
    yield "  # captions held the class, with the class in its place (class_words): docs/evidence."
    yield "  class_images:"
    yield f"    prompt: {quoted(f'{wish.plain} {PLACES}')}"
    yield f"    count: {wish.to_draw}"
    yield f"    batch_size: {saving.batch}"


def repeats(own: int, others: int) -> str:
    """The passes of a dataset of `own` images beside one of `others`."""
    extra = max(0, round(others / own) - 1)
    return f"      repeats: {extra}   # extra passes, so that about half of what is seen is the subject"
