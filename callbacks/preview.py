"""Previews: images of the same prompts and seeds during the training."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dreamlit import events
from dreamlit.callbacks.ema import EMA, average_for
from dreamlit.callbacks.preview_share import (
    MODELS,
    Made,
    Plan,
    Share,
    encode_ahead,
    gathered,
    refined_photos,
    smallest,
    step_folder,
)
from dreamlit.errors import CombinationError, ConfigError, DreamlitError, Faults
from dreamlit.in_the_making import as_image
from dreamlit.observing import untouched
from dreamlit.previewing import Picture, Sampling, batches, draw, parse_size, seed_faults, size_faults
from dreamlit.prompts import all_prompts
from dreamlit.seeds import address

STREAM_EVERY = 5


class ValidationPreview(Callback):
    """Makes images of the same prompts and seeds again and again while the model learns, and a grid of all of them.

    They go to `<default_root_dir>/previews/step-000250`: `grid.png`, and each image alone with its recipe inside, from
    which `dreamlit sample --from_recipe` makes it again. Those of the base model are made once. It only looks: training
    is the same to the last bit without it, and a preview that fails is a warning. Several devices share the images out.

    Args:
        prompts: What to make images of: "a photo of sks dog in snow", or with `{subject}` in it.
        library: More prompts: `objects` or `live` (25 each, after the DreamBooth paper), one of their themes `places`,
            `scenes`, `outfits`, `looks`, or a .yaml or .json file of your own (a list, or themes with lists).
        subject: What stands for `{subject}` in the prompts, as in the captions: "sks dog".
        negative_prompt: What to steer away from; needs a guidance_scale above 1.
        sizes: Width x height in pixels, such as ["768x512", "512x768"]; the model's own size by default. Each prompt is
            drawn in each size.
        seeds: Seed of each image of a prompt; left out, one that is drawn from the run's own seed.
        steps: Sampler steps.
        guidance_scale: Guidance, by default the model's usual one (7.5 for SD and SDXL); 1 turns it off where it is
            classifier-free.
        guidance_rescale: From 0 (off) to 1: takes back the glare of strong guidance (arXiv 2305.08891); 0.7 is usual.
        sampler: `ddim`, `euler`, `dpm` or `unipc`; by default the one that the model comes with.
        batch_size: Images made at once. More is faster on a GPU; an image made alone differs in the last digits.
        models: Which to show side by side: `base`, `raw` (the weights in training), `ema` (their average); by default
            base and raw, and ema where the run has an EMA with `preview` in its `use_for`.
        every_n_steps: Optimizer steps between previews; null for none on the way.
        at_start: Also before the first step.
        at_end: Also after the last step.
        validation_preview: Also show each image in the making, as rough pictures on disk and as events.
        validation_preview_steps: Sampler steps between two of them: of 20 steps, 5 shows 5, 10, 15, 20. 5 by default.
    """

    def __init__(
        self,
        prompts: list[str] | None = None,
        library: list[str] | None = None,
        subject: str | None = None,
        negative_prompt: str = "",
        sizes: list[str] | None = None,
        seeds: list[int] | None = None,
        steps: int = 30,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        sampler: str | None = None,
        batch_size: int = 1,
        models: list[str] | None = None,
        every_n_steps: int | None = 250,
        at_start: bool = False,
        at_end: bool = True,
        validation_preview: bool = False,
        validation_preview_steps: int | None = None,
    ) -> None:
        self.sampling = Sampling(steps, guidance_scale, guidance_rescale, negative_prompt, sampler)
        self.subject, self.seeds, self.batch_size, self.models = subject, seeds, batch_size, models
        self.every_n_steps, self.at_start, self.at_end = every_n_steps, at_start, at_end
        self.stream_every = (validation_preview_steps or STREAM_EVERY) if validation_preview else None
        self.sizes: list[tuple[int | None, int | None]] = []
        self.failures = 0
        """Previews that could not be made in full, so far."""
        self.previews = 0
        """Previews that were begun."""
        self.listeners: list[Callable[[Trainer, LightningModule, Made], None]] = []
        """Called after each preview, on every rank; what fails there is one warning."""
        self.listener_failures = 0
        self._planned: list[tuple[str, Picture]] = []
        faults = Faults("ValidationPreview cannot make previews with these options", ConfigError)
        with collected(faults):
            self.prompts = all_prompts(prompts, library, subject)
        for text in sizes or []:
            with collected(faults):
                self.sizes.append(parse_size(text))
        for line in (
            *self.sampling.faults(),
            *self._choice_faults(sizes),
            *self._step_faults(validation_preview_steps),
        ):
            faults.add(line)
        faults.raise_if_any()
        self.sizes = self.sizes or [(None, None)]

    # checks -------------------------------------------------------------------------------------------------------

    def _choice_faults(self, sizes: list[str] | None) -> Iterator[str]:
        if self.seeds is not None:
            yield from seed_faults(self.seeds)
        if sizes is not None and (not sizes or len(set(self.sizes)) < len(self.sizes)):
            yield f"sizes is {sizes}; give at least one, each once"
        if self.batch_size < 1:
            yield f"batch_size is {self.batch_size}; it must be at least 1"
        for name in self.models or []:
            if name not in MODELS:
                yield f"models has {name!r}; allowed: {', '.join(MODELS)}"
        if self.models is not None and (not self.models or len(set(self.models)) < len(self.models)):
            yield f"models is {self.models}; name at least one, each once"

    def _step_faults(self, stream_every: int | None) -> Iterator[str]:
        if self.every_n_steps is not None and self.every_n_steps < 1:
            yield f"every_n_steps is {self.every_n_steps}; it must be at least 1, or null for none on the way"
        if self.every_n_steps is None and not self.at_start and not self.at_end:
            yield "no preview would be made: set every_n_steps, at_start or at_end"
        if stream_every is None:
            every = self.stream_every
            if every and self.sampling.steps < every:
                yield (
                    f"validation_preview shows every {every} sampler steps, and there are {self.sampling.steps}; set "
                    "validation_preview_steps"
                )
        elif self.stream_every is None:
            yield "validation_preview_steps would do nothing: it needs validation_preview: true"
        elif not 1 <= stream_every <= self.sampling.steps:
            yield f"validation_preview_steps is {stream_every}; it must be from 1 to steps ({self.sampling.steps})"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        faults = Faults("ValidationPreview cannot make previews", CombinationError)
        family: Any = pl_module.family
        self.sampling = self.sampling.of(family)
        pictures = [Picture("", 0, *size) for size in self.sizes]
        for line in (*self.sampling.model_faults(family), *size_faults(pictures, family.drawn_multiple)):
            faults.add(line)
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        if "ema" in (self.models or []) and not any(isinstance(c, EMA) and "preview" in c.use_for for c in callbacks):
            faults.add("models has 'ema', and the run has no EMA with preview in its use_for; add one or leave it out")
        every, last = self.every_n_steps, trainer.max_steps
        if not trainer.fast_dev_run and every and 0 < last < every and not self.at_start and not self.at_end:  # pyright: ignore
            faults.add(f"no preview would be made: every_n_steps is {every} and trainer.max_steps is {last}")
        faults.raise_if_any()
        if not family.drawn_with:
            pictures = [picture for _, picture in self._pictures(pl_module)]
            own = pictures[trainer.global_rank :: trainer.world_size]
            wanted = [[smallest(pictures)], *batches(own, self.batch_size)]  # the rehearsal, and this rank's share
            encode_ahead(trainer, pl_module, wanted, self.sampling)
        # After the checkpoint callback: what is saved at this step is then safe, and its name goes into the recipes.
        trainer.callbacks = [*(c for c in callbacks if c is not self), self]  # pyright: ignore[reportAttributeAccessIssue]

    # when ---------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._seen_step, self._shown_step = trainer.global_step, -1
        if trainer.is_global_zero and pl_module.family.draws_from_photos:
            strength = pl_module.family.call_options().get("strength")
            at = f" at strength {strength}" if strength else ""
            print(f"previews: prompts and sizes are ignored; they are made of photos of the datasets{at}")
        self._planned = self._pictures(pl_module)  # once: photos of the datasets may be out of reach later
        self._rehearse(trainer, pl_module)
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        if trainer.is_global_zero:
            print(self.cost(trainer, pl_module))
        step = trainer.global_step
        if self.at_start if step == 0 else self._is_due(step):
            # A resumed run makes the one that was not finished before.
            done = trainer.strategy.broadcast((step_folder(trainer) / "grid.png").exists())
            if step == 0 or not done:
                self._preview(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen_step:
            return  # inside an accumulation window
        self._seen_step = step
        if self._is_due(step) and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            self._preview(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        new = trainer.global_step not in (0, self._shown_step)
        if self.at_end and new and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            self._preview(trainer, pl_module)
        if self.failures > 1 and trainer.is_global_zero:
            events.warned(
                trainer, f"ValidationPreview: {self.failures} of {self.previews} previews could not be made in full"
            )
        if self.listener_failures > 1 and trainer.is_global_zero:
            events.warned(
                trainer, f"ValidationPreview: who looks at the previews failed {self.listener_failures} times"
            )

    def _is_due(self, step: int) -> bool:
        return self.every_n_steps is not None and step > 0 and step % self.every_n_steps == 0

    def cost(self, trainer: Trainer, module: Any) -> str:
        """What the previews cost, in forwards of the denoiser on one image, as a line for the user."""
        pictures, shown = len(self._planned), self.shown(trainer, expected=True)
        trained = [name for name in shown if name != "base"]
        each = pictures * self.sampling.forwards(module.family)
        when = [f"every {self.every_n_steps} steps"] if self.every_n_steps else []
        when += [name for name, asked in (("at the start", self.at_start), ("at the end", self.at_end)) if asked]
        costs = [f"{len(trained) * each} forwards each time ({', '.join(trained)})"] if trained else []
        costs += [f"{each} once for the base model"] if "base" in shown else []
        return f"previews: {pictures} images of each model, {', '.join(when)}: {', '.join(costs)}"

    # one preview --------------------------------------------------------------------------------------------------

    def _pictures(self, module: Any) -> list[tuple[str, Picture]]:
        """All pictures, each with the stem of its file: prompt, then size and seed."""
        seeds = self.seeds or [address(module.seed, "preview", 0) % 2**31]
        if module.family.draws_from_photos:
            return refined_photos(module.trainer, seeds)
        return [
            (f"{row:03d}-{number:02d}", Picture(prompt, seed, *size))
            for row, prompt in enumerate(self.prompts)
            for number, (size, seed) in enumerate((size, seed) for size in self.sizes for seed in seeds)
        ]

    def shown(self, trainer: Trainer, expected: bool = False) -> list[str]:
        """The models of a preview; the average from its first update on, or where it is `expected`."""
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        kept = any(isinstance(c, EMA) and "preview" in c.use_for for c in callbacks)
        average = kept if expected else average_for(trainer, "preview") is not None
        return [name for name in self.models or MODELS if name != "ema" or average]

    def _rehearse(self, trainer: Trainer, module: Any) -> None:
        """Makes the smallest picture in the fewest sampler steps and throws it away; a wrong setting ends the run here.

        Raises:
            DreamlitError: a setting is wrong; any other failure is a warning, as in a preview.
        """
        picture = smallest([picture for _, picture in self._planned])
        try:
            with untouched(module), trainer.precision_plugin.predict_step_context():
                self._draw_one(module, picture)
        except DreamlitError:
            raise
        except Exception as error:
            self._warn(
                trainer, f"the rehearsal failed ({type(error).__name__}: {error}), and previews are likely to fail too"
            )

    def _draw_one(self, module: Any, picture: Picture) -> None:
        pipeline = module.pipeline()  # loads the autoencoder, which a decoder without a network is fitted to
        decode = module.family.quick_decoder(module.device) if self.stream_every else None

        def watch(drawn: list[Picture], number: int, x0: Any) -> None:
            if decode:
                as_image(decode(x0)[0])

        steps = next(steps for steps in itertools.count(1) if not module.family.step_faults(steps))
        list(draw(pipeline, [picture], dataclasses.replace(self.sampling, steps=steps), watch=watch))

    def _preview(self, trainer: Trainer, module: Any) -> None:
        """Makes one preview: each rank its share, and the first one the grid. All come through, whatever fails."""
        self.previews += 1
        self._shown_step = trainer.global_step
        plan = Plan(self._planned, self.shown(trainer), self.sampling, self.batch_size, self.stream_every)
        share = Share(plan, trainer, module)
        if trainer.is_global_zero:
            shutil.rmtree(share.folder, ignore_errors=True)  # of the same step, before the run went back
        trainer.strategy.barrier("preview")
        failure = None
        try:
            share.draw()
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        told, failures = gathered(trainer, (share.told, failure))
        if trainer.is_global_zero:
            for event in [event for of_rank in told[1:] for event in of_rank]:
                events.emit(trainer, event)
            failures = [reason for reason in failures if reason]
            try:
                share.show()
            except Exception as error:
                failures.append(f"the grid: {type(error).__name__}: {error}")
            if failures:
                self._failed(trainer, f"the preview of step {trainer.global_step} is not whole ({'; '.join(failures)})")
        gc.collect()  # pipelines hold themselves in circles
        for listener in self.listeners:
            try:
                listener(trainer, module, share.made())
            except Exception as error:
                self.listener_failures += 1
                if self.listener_failures == 1:
                    self._warn(trainer, f"who looks at the previews failed ({type(error).__name__}: {error})")

    def _failed(self, trainer: Trainer, what: str) -> None:
        self.failures += 1
        if self.failures == 1:
            self._warn(trainer, what)

    def _warn(self, trainer: Trainer, what: str) -> None:
        events.warned(trainer, f"ValidationPreview: {what}; the run goes on. Later failures are only counted")


@contextlib.contextmanager
def collected(faults: Faults) -> Iterator[None]:
    """Puts the error of a check among the other faults."""
    try:
        yield
    except ConfigError as error:
        for line in str(error).splitlines():
            faults.add(line.removeprefix("  - "))
