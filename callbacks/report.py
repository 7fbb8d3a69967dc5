"""A report to look at when the run is over: images before and after, the losses, and scores."""

from __future__ import annotations

import json
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dreamlit import events
from dreamlit.callbacks.checkpoint import run_name
from dreamlit.callbacks.ema import average_for, averaged
from dreamlit.callbacks.preview_share import encode_ahead
from dreamlit.errors import CombinationError, ConfigError, DataError, Faults, ModelError
from dreamlit.observing import base_denoiser, untouched
from dreamlit.previewing import Picture, Sampling, batches, draw, prompt_faults, seed_faults, size_faults
from dreamlit.prompts import text_faults
from dreamlit.report_scores import score_lines, scores_of, subject_faults
from dreamlit.scoring import Wording
from dreamlit.seeds import address

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from dreamlit.report_scores import Images, Scores


class RunReport(Callback):
    """Makes images of the base model and of the trained one with the same seeds, and draws what the run did.

    It works once, after the final export, and writes into `<default_root_dir>/report`: `before-after.png` (a row for
    each prompt), each image alone in `base` and `adapter` with its recipe inside, `losses.png` and `scores.json`. It
    only looks: the training is the same to the last bit without it. What fails there is a warning, and the run is done.
    Under ddp the first rank makes the report and the others end. Where the run has an EMA with `report` in its
    `use_for`, the trained model is the average.

    Args:
        prompts: What to make images of, with the subject's name in it as in the captions: "a photo of sks dog in snow".
        class_prompts: The same without the subject, such as "a photo of a dog": shows whether the rest of the class
            has begun to look like the subject.
        negative_prompt: What to steer away from; needs a guidance_scale above 1.
        images_per_prompt: Images of each prompt, 2 unless `seeds` says which.
        seeds: Seed of each image of a prompt; left out, drawn from the run's own seed.
        width: Pixels; the model's own size by default.
        height: Pixels; the model's own size by default.
        steps: Sampler steps.
        guidance_scale: Guidance, by default the model's usual one (7.5 for SD and SDXL); 1 turns it off where it is
            classifier-free.
        batch_size: Images made at once. More is faster on a GPU and needs more memory.
        photos: Folder with photos of the subject: shown in the grid, and what the scores compare with.
        encoder: Folder or hub id of a CLIP or DINO model (transformers layout) that scores the images; needs `photos`.
            CLIP also scores how well images follow their prompts.
        subject: The subject's name in the prompts, "sks dog". CLIP, which does not know the rare word, reads it without
            its first word, as `Scores` does.
    """

    def __init__(
        self,
        prompts: list[str],
        class_prompts: list[str] | None = None,
        negative_prompt: str = "",
        images_per_prompt: int | None = None,
        seeds: list[int] | None = None,
        width: int | None = None,
        height: int | None = None,
        steps: int = 30,
        guidance_scale: float | None = None,
        batch_size: int = 1,
        photos: str | None = None,
        encoder: str | None = None,
        subject: str | None = None,
    ) -> None:
        self.prompts, self.class_prompts = prompts, class_prompts or []
        self.images_per_prompt, self.seeds = images_per_prompt, seeds
        self.batch_size = batch_size
        self.photos = pathlib.Path(photos) if photos else None
        self.encoder, self.subject = encoder, subject
        self.sampling = Sampling(steps, guidance_scale, negative_prompt=negative_prompt)
        self.size: dict[str, Any] = {
            name: value for name, value in (("width", width), ("height", height)) if value is not None
        }
        self._losses: dict[int, list[Tensor]] = {}
        faults = Faults("RunReport cannot make a report with these options", ConfigError)
        for line in (*self._text_faults(), *self._number_faults(), *self._path_faults()):
            faults.add(line)
        faults.raise_if_any()

    # checks -------------------------------------------------------------------------------------------------------

    def _text_faults(self) -> Iterator[str]:
        yield from text_faults("prompts", self.prompts)
        yield from text_faults("class_prompts", self.class_prompts)
        yield from subject_faults(self.subject, self.prompts, self.encoder)
        if self.prompts == []:
            yield "prompts is empty; give at least one, such as 'a photo of sks dog on a beach'"

    def _number_faults(self) -> Iterator[str]:
        yield from self.sampling.faults()
        numbers = {"batch_size": self.batch_size, **self.size}
        if self.images_per_prompt is not None:
            numbers["images_per_prompt"] = self.images_per_prompt
        for name, value in numbers.items():
            if value < 1:
                yield f"{name} is {value}; it must be at least 1"
        if self.seeds is None:
            return
        if self.images_per_prompt is not None:
            yield "seeds and images_per_prompt are both given; one image is made for each seed, so leave one out"
        yield from seed_faults(self.seeds)

    def _path_faults(self) -> Iterator[str]:
        from dreamlit.plots import photo_files

        if self.photos and not self.photos.is_dir():
            yield f"photos: there is no folder {self.photos}"
        elif self.photos and not photo_files(self.photos):
            yield f"photos: {self.photos} holds no image that can be read"
        if self.encoder and not self.photos:
            yield "encoder needs photos: without them there is nothing to compare the images with"
        try:
            if self.encoder:
                image_encoder(self.encoder).check()
        except ModelError as error:
            yield f"encoder: {error}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        from dreamlit.plots import photo_files, read_photo

        if stage != "fit":
            return
        faults = Faults("RunReport cannot make a report", CombinationError)
        family: Any = pl_module.family
        self.sampling = self.sampling.of(family)
        for line in (
            *prompt_faults(family),
            *self.sampling.model_faults(family),
            *size_faults([Picture("", 0, **self.size)], family.drawn_multiple),
        ):
            faults.add(line)
        for path in photo_files(self.photos):
            try:
                read_photo(path)
            except DataError as error:
                faults.add(f"photos: {error}")
        try:
            if self.encoder and trainer.is_global_zero:
                image_encoder(self.encoder).load()  # a broken one would else be found out after hours of training
        except ModelError as error:
            faults.add(f"encoder: {error}")
        faults.raise_if_any()
        if trainer.is_global_zero and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            wanted = batches(self._wanted(self._seeds(pl_module)), self.batch_size)
            encode_ahead(trainer, pl_module, wanted, self.sampling)
        # After the checkpoint callback, which writes the final adapter in the same hook and stands last by itself.
        others = [callback for callback in trainer.callbacks if callback is not self]  # pyright: ignore
        trainer.callbacks = [*others, self]  # pyright: ignore[reportAttributeAccessIssue]

    # the run ------------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        within = (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch
        step = trainer.global_step + bool(within)  # the step that the batch is a part of, from 1
        self._losses.setdefault(step, []).append(outputs["loss"].detach())  # on the device: nothing waits for it

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            attempt("the report", self._report, trainer, pl_module)  # other ranks have nothing to wait for

    def _report(self, trainer: Trainer, module: Any) -> None:
        """Makes what can be made and says where it is."""
        from dreamlit.curves import draw_losses

        root = pathlib.Path(trainer.default_root_dir)
        average = average_for(trainer, "report")
        adapter = exported(trainer, "-ema" if average else "")
        folder, step, seeds = root / "report", trainer.global_step, self._seeds(module)
        base = {"base_fingerprint": module.family.fingerprint("denoiser"), "step": step}
        if average:
            base["average"] = average.describe()
        facts = {**base, "adapter": adapter.name if adapter else "not exported"}
        made: dict[str, Any] = {"adapter": adapter}
        scores = None
        if images := attempt("the images", self._sample, trainer, module):
            made["before and after"] = attempt("the grid", self._save_images, folder, images, seeds, facts)
            if made["before and after"]:
                events.emit(trainer, events.ValidationImages(step=step, images=self._told_images(seeds)))
            scores = attempt("the scores", self._scores, images, module, seeds) if self.encoder else None
            if scores:
                events.emit(trainer, events.Scores(step=step, scores=scores))
        for logger in trainer.loggers:
            logger.save()  # the last rows may still be in memory
        # Lightning has divided the loss of each batch by the number of batches in the step.
        seen = {at: float(sum(parts)) for at, parts in self._losses.items()}
        losses = folder / "losses.png", root, seen, step, run_name(trainer)
        made["losses"] = attempt("the loss plot", draw_losses, *losses)
        settings = self.sampling.recipe(Picture("", 0, **self.size))
        settings |= {"prompts": self.prompts, "class_prompts": self.class_prompts, "seeds": seeds}
        content = {**facts, **{k: v for k, v in settings.items() if k not in ("prompt", "seed")}, "scores": scores}
        made["scores" if scores else "settings"] = attempt("scores.json", save_json, folder / "scores.json", content)
        print("report:", *(f"  {name}: {path}" for name, path in made.items() if path), *score_lines(scores), sep="\n")

    def _seeds(self, module: Any) -> list[int]:
        count = self.images_per_prompt or 2
        return self.seeds or [address(module.seed, "report", number) % 2**31 for number in range(count)]

    def _sample(self, trainer: Trainer, module: Any) -> Images:
        """Images of the trained model and of the base, which afterwards are what they were."""
        from dreamlit.datamodules.fills import progress_bar

        seeds = self._seeds(module)
        total = 2 * len(seeds) * len(self.prompts + self.class_prompts)
        shown = trainer.progress_bar_callback is not None
        with untouched(module), progress_bar("report images", total, shown) as advance:
            with averaged(trainer, module, "report"), trainer.precision_plugin.predict_step_context():
                adapted = self._draw(module.pipeline(), seeds, advance)
            with base_denoiser(module) as base, trainer.precision_plugin.predict_step_context():
                before = self._draw(module.family.pipeline(denoiser=base.eval()), seeds, advance)
        return {"base": before, "adapter": adapted}

    def _wanted(self, seeds: list[int]) -> list[Picture]:
        return [Picture(prompt, seed, **self.size) for prompt in self.prompts + self.class_prompts for seed in seeds]

    def _draw(self, pipeline: Any, seeds: list[int], advance: Callable[[int], None]) -> list[list[Image]]:
        images: list[Image] = []
        for _, image in draw(pipeline, self._wanted(seeds), self.sampling, batch_size=self.batch_size):
            images.append(image)
            advance(1)
        return [images[start : start + len(seeds)] for start in range(0, len(images), len(seeds))]

    # what is written ----------------------------------------------------------------------------------------------

    def _save_images(
        self, folder: pathlib.Path, images: Images, seeds: list[int], facts: dict[str, Any]
    ) -> pathlib.Path:
        from dreamlit.images import save_image
        from dreamlit.plots import Row, before_after, photo_files, read_photo

        of_base = {name: value for name, value in facts.items() if name != "average"}
        weights = {"base": {**of_base, "adapter": "none"}, "adapter": facts}
        for model, rows in images.items():
            for older in (folder / model).glob("[0-9]*-[0-9]*.png"):  # of a report with more prompts
                older.unlink()
            for index, (prompt, row) in enumerate(zip(self.prompts + self.class_prompts, rows, strict=True)):
                for number, (seed, image) in enumerate(zip(seeds, row, strict=True)):
                    recipe = self.sampling.recipe(Picture(prompt, seed, **self.size))
                    text = json.dumps({**recipe, **weights[model]})
                    save_image(image, folder / image_name(model, index, number), text)
        captions = self.prompts + [f"class: {prompt}" for prompt in self.class_prompts]
        rows = [Row(*parts) for parts in zip(captions, images["base"], images["adapter"], strict=True)]
        photos = [read_photo(path) for path in photo_files(self.photos)]
        trained = "average of the training" if "average" in facts else "trained"
        grid = before_after(rows, photos, heads=("base model", f"{trained}, step {facts['step']}"))
        return save_image(grid, folder / "before-after.png")

    def _told_images(self, seeds: list[int]) -> tuple[events.Image, ...]:
        """The images as an event has them: the grid, then the trained model's, then the base model's."""
        told = [events.Image(path="report/before-after.png", model="both")]
        for model in ("adapter", "base"):
            for index, prompt in enumerate(self.prompts + self.class_prompts):
                for number, seed in enumerate(seeds):
                    path = f"report/{image_name(model, index, number)}"
                    told.append(events.Image(path=path, model=model, prompt=prompt, seed=seed))
        return tuple(told)

    def _scores(self, images: Images, module: Any, seeds: list[int]) -> Scores:
        from dreamlit.plots import photo_files, read_photo

        assert self.encoder is not None
        encoder = image_encoder(self.encoder, device=module.device)
        photos = [read_photo(path) for path in photo_files(self.photos)]
        read = list(map(Wording.of(self.subject, None).read, self.prompts)) if self.subject else self.prompts
        return scores_of(images, encoder, photos, read, self.class_prompts, len(seeds))


def image_encoder(path: str, device: Any = "cpu") -> Any:
    from dreamlit.encoders import ImageEncoder

    return ImageEncoder(path, device=device)


def image_name(model: str, prompt: int, number: int) -> str:
    return f"{model}/{prompt:03d}-{number:02d}.png"


def attempt(what: str, make: Callable[..., Any], *args: Any) -> Any:
    """What `make` returns; None and a warning where it fails, because the run itself is done and whole."""
    try:
        return make(*args)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"RunReport: {what} could not be made ({reason}); the trained adapter is whole", stacklevel=2)
        return None


def save_json(path: pathlib.Path, content: dict[str, Any]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def exported(trainer: Trainer, ending: str = "") -> pathlib.Path | None:
    """The final adapter's file (`Full`: its folder), the one for ComfyUI where there are several."""
    root, name = pathlib.Path(trainer.default_root_dir), run_name(trainer) + ending
    paths = [root / f"{name}{suffix}" for suffix in (".safetensors", "-diffusers.safetensors", "")]
    return next((path for path in paths if path.exists()), None)
