"""One rank's part in a preview: drawing its share of the images, and the grid of all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning.pytorch import Trainer

from dreamlit import events
from dreamlit.callbacks.checkpoint import adapter_folder, run_name
from dreamlit.callbacks.ema import average_for, averaged
from dreamlit.datamodules.fills import progress_bar
from dreamlit.errors import DreamlitError
from dreamlit.images import recipe_text, save_image
from dreamlit.in_the_making import as_image
from dreamlit.observing import base_denoiser, untouched
from dreamlit.preview_grid import Line, grid
from dreamlit.previewing import Picture, Sampling, ask_ahead, draw, opened
from dreamlit.recipes import weights_digest

if TYPE_CHECKING:
    from torch import Tensor

MODELS = {"base": "base model", "raw": "trained", "ema": "average of the training"}
"""What images are made of: its name in options and folders, and what stands over its column."""


class Plan(NamedTuple):
    """What one preview shows.

    pictures: each with the stem of its file.
    shown: the models, of `MODELS`.
    stream_every: sampler steps between two pictures of an image in the making, None for none.
    """

    pictures: list[tuple[str, Picture]]
    shown: list[str]
    sampling: Sampling
    batch_size: int
    stream_every: int | None


@dataclasses.dataclass(frozen=True)
class Made:
    """A preview that was just made, on every rank: the step, and the models that are shown."""

    step: int
    shown: tuple[str, ...]
    share: Share

    def images(self, model: str) -> list[tuple[str, pathlib.Path, str]]:
        """Of each image that is there: prompt, file, and its path as events tell it."""
        own = [(picture.prompt, self.share.path(model, stem)) for stem, picture in self.share.plan.pictures]
        root = self.share.trainer.default_root_dir
        return [(prompt, path, events.within(path, root)) for prompt, path in own if path.exists()]


def smallest(pictures: list[Picture]) -> Picture:
    """The one that is rehearsed."""
    return min(pictures, key=lambda picture: (picture.width or 0) * (picture.height or 0))


def encode_ahead(trainer: Any, module: Any, wanted: Iterable[list[Picture]], sampling: Sampling) -> None:
    """Has the prompts of pictures encoded right before the denoiser is loaded, with those of other callbacks at once.

    wanted: the batches in which they will be drawn.
    """
    asked = next((one for one in module.before_loading if isinstance(one, Ahead)), None)
    if asked is None:
        asked = Ahead(trainer, module)
        module.before_loading.append(asked)
    asked.wanted.append((list(wanted), sampling))


class Ahead:
    """What the pictures of a run ask the text encoders; calling it encodes all of it.

    A failure is a warning: what was not encoded is encoded when it is drawn. Errors: `DreamlitError` of a setting.
    """

    def __init__(self, trainer: Any, module: Any) -> None:
        self.trainer, self.module = trainer, module
        self.wanted: list[tuple[list[list[Picture]], Sampling]] = []

    def __call__(self) -> None:
        trainer, module = self.trainer, self.module
        try:
            with untouched(module), trainer.precision_plugin.predict_step_context():
                for wanted, sampling in self.wanted:
                    ask_ahead(module.family, wanted, sampling, trainer.strategy.root_device)
        except DreamlitError:
            raise
        except Exception as error:
            events.warned(
                trainer,
                f"prompts of previews could not be encoded before the denoiser is loaded ({type(error).__name__}: "
                f"{error}); the text encoders will be loaded beside it when pictures are drawn",
            )


def refined_photos(trainer: Any, seeds: list[int]) -> list[tuple[str, Picture]]:
    """Pictures of the first photos of the subject, as they are trained on, put into `previews/photos`."""
    from dreamlit.types import Role

    manifest = trainer.datamodule.manifest(trainer.lightning_module.family.stride)
    samples = [sample for sample in manifest.samples if sample.role == Role.INSTANCE][:MOST_PHOTOS]
    folder, pictures = pathlib.Path(trainer.default_root_dir) / "previews" / "photos", []
    for row, sample in enumerate(samples):
        path = folder / f"{row:03d}.png"
        if trainer.is_global_zero:
            keep_photo(manifest.pixels(sample), path)
        for number, seed in enumerate(seeds):
            pictures.append((f"{row:03d}-{number:02d}", Picture(sample.captions[0], seed, photo=str(path))))
    trainer.strategy.barrier("photos to refine")
    return pictures


def keep_photo(pixels: Any, path: pathlib.Path) -> None:
    """Writes pixels [H, W, 3] as an image, unless it is there already."""
    import numpy
    from PIL import Image as pillow

    if not path.exists() or not numpy.array_equal(pixels, numpy.asarray(opened(str(path)))):
        save_image(pillow.fromarray(pixels), path)


MOST_PHOTOS = 4
"""So many photos are refined in a preview."""


class Share:
    """One rank's part in one preview; on the first rank also the grid of all parts."""

    def __init__(self, plan: Plan, trainer: Trainer, module: Any) -> None:
        self.plan, self.trainer, self.module = plan, trainer, module
        self.previews = pathlib.Path(trainer.default_root_dir) / "previews"
        self.folder = step_folder(trainer)
        self.told: list[events.PreviewStep] = []
        """What was emitted here, where on other ranks nobody hears it."""
        self._blind: Exception | None = None  # why images in the making cannot be shown

    def path(self, model: str, stem: str) -> pathlib.Path:
        return (self.previews if model == "base" else self.folder) / model / f"{stem}.png"

    def _facts(self, model: str) -> dict[str, Any]:
        """What the recipe says of the weights."""
        facts = {"model": model, "base_fingerprint": self.module.family.fingerprint("denoiser")}
        if model == "base":
            return {**facts, "adapter": "none"}
        average = average_for(self.trainer, "preview") if model == "ema" else None
        if average:
            facts["average"] = average.describe()
        step = self.trainer.global_step
        stem = f"{run_name(self.trainer)}-step-{step:06d}{'-ema' if average else ''}"
        names = [stem + ending for ending in (".safetensors", "-diffusers.safetensors", "")]
        saved = next((name for name in names if (adapter_folder(self.trainer) / name).exists()), "not exported")
        return {**facts, "adapter": saved, "weights": weights_digest(self.module.adapter), "step": step}

    def made(self) -> Made:
        return Made(self.trainer.global_step, tuple(self.plan.shown), self)

    # drawing ------------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Draws this rank's share, every n-th picture of each model, into files."""
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        own = dict.fromkeys(self.plan.shown, self.plan.pictures[rank::ranks])
        own["base"] = [named for named in own.get("base", []) if not self._is_there(*named)]
        total = sum(map(len, own.values()))
        bar = self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None
        with untouched(self.module), progress_bar("preview images", total, bar and total > 0) as advance:
            for model, pictures in own.items():
                if pictures:
                    with self._weights_of(model) as pipeline:
                        self._draw_model(model, pipeline, pictures, advance)
                    del pipeline
        if self._blind:
            raise self._blind  # only now: the images themselves are there

    def _is_there(self, stem: str, picture: Picture) -> bool:
        """Whether an earlier preview has made this image of the base model with the same recipe."""
        with contextlib.suppress(DreamlitError, OSError):
            return recipe_text(self.path("base", stem)) == self._recipe(picture, self._facts("base"))
        return False

    def _recipe(self, picture: Picture, facts: dict[str, Any]) -> str:
        return json.dumps({**self.plan.sampling.recipe(picture), **facts})

    @contextlib.contextmanager
    def _weights_of(self, model: str) -> Iterator[Any]:
        """A pipeline of the base model, of the weights or of their average."""
        with contextlib.ExitStack() as stack:
            if model == "base":
                base = stack.enter_context(base_denoiser(self.module))
                pipeline = self.module.family.pipeline(denoiser=base.eval())
            else:
                if model == "ema":
                    stack.enter_context(averaged(self.trainer, self.module, "preview"))
                pipeline = self.module.pipeline()
            stack.enter_context(self.trainer.precision_plugin.predict_step_context())
            yield pipeline

    def _draw_model(
        self, model: str, pipeline: Any, pictures: list[tuple[str, Picture]], advance: Callable[[int], None]
    ) -> None:
        facts, watch = self._facts(model), None
        stems = {picture: stem for stem, picture in pictures}
        if self.plan.stream_every:
            decode = self.module.family.quick_decoder(self.module.device)
            watch = lambda drawn, number, x0: self._try_stream(model, stems, decode, drawn, number, x0)  # noqa: E731
        wanted = [picture for _, picture in pictures]
        for picture, image in draw(pipeline, wanted, self.plan.sampling, batch_size=self.plan.batch_size, watch=watch):
            save_image(image, self.path(model, stems[picture]), self._recipe(picture, facts))
            advance(1)

    def _try_stream(self, *what: Any) -> None:
        """Shows images in the making until that fails once, which must not cost the images."""
        if self._blind:
            return
        try:
            self._stream(*what)
        except Exception as error:
            self._blind = error

    def _stream(
        self,
        model: str,
        stems: dict[Picture, str],
        decode: Callable[[Tensor], Tensor],
        drawn: list[Picture],
        number: int,
        x0: Tensor,
    ) -> None:
        """Writes and tells what the images look like after `number` sampler steps, where it is time to."""
        plan = self.plan
        if not plan.stream_every or number % plan.stream_every:
            return
        for picture, pixels in zip(drawn, decode(x0), strict=True):
            path = self.path(model, stems[picture]).parent / "steps" / f"{stems[picture]}-{number:03d}.png"
            save_image(as_image(pixels), path)
            event = events.PreviewStep(
                step=self.trainer.global_step,
                prompt=picture.prompt,
                seed=picture.seed,
                sampler_step=number,
                of=plan.sampling.steps,
                path=events.within(path, self.trainer.default_root_dir),
            )
            self.told.append(event)
            events.emit(self.trainer, event)

    # showing ------------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Makes the grid of what all ranks have drawn and tells of the images."""
        lines: dict[tuple[str, int | None, int | None], Line] = {}
        for stem, picture in self.plan.pictures:
            strength = dict(self.plan.sampling.own).get("strength") if picture.photo else None
            size = f"  ({picture.width} x {picture.height})" if picture.width else ""
            size += f"  (a photo refined at strength {strength})" if strength else ""
            line = lines.setdefault((picture.prompt, picture.width, picture.height), Line(picture.prompt + size, {}))
            for model in self.plan.shown:
                line.files.setdefault(model, []).append(self.path(model, stem))
        step = self.trainer.global_step
        heads = {name: MODELS[name] + (f", step {step}" if name != "base" else "") for name in self.plan.shown}
        picture = grid(list(lines.values()), heads)
        path = save_image(picture, self.folder / "grid.png", self._recipe_of_all())
        root = self.trainer.default_root_dir
        images = [events.Image(path=events.within(path, root), model="both")]
        for model in sorted(self.plan.shown, key=["raw", "ema", "base"].index):
            kind = "base" if model == "base" else "adapter"
            for stem, picture in self.plan.pictures:
                if (own := self.path(model, stem)).exists():
                    where = events.within(own, root)
                    images.append(events.Image(path=where, model=kind, prompt=picture.prompt, seed=picture.seed))
        events.emit(self.trainer, events.ValidationImages(step=step, images=tuple(images)))

    def _recipe_of_all(self) -> str:
        """The recipes of the images in the grid, by the path of each."""
        root, found = self.trainer.default_root_dir, {}
        for path in (self.path(model, stem) for model in self.plan.shown for stem, _ in self.plan.pictures):
            with contextlib.suppress(DreamlitError, OSError, ValueError):  # an image that is not there stays blank
                found[events.within(path, root)] = json.loads(recipe_text(path))
        return json.dumps({"grid": found})


def step_folder(trainer: Trainer) -> pathlib.Path:
    return pathlib.Path(trainer.default_root_dir) / "previews" / f"step-{trainer.global_step:06d}"


def gathered(trainer: Trainer, own: tuple[Any, Any]) -> tuple[list[Any], list[Any]]:
    """Both values of all ranks, in their order; every rank must call it."""
    if trainer.world_size == 1:
        return [own[0]], [own[1]]
    import torch

    ranks: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(ranks, own)
    return [rank[0] for rank in ranks], [rank[1] for rank in ranks]
