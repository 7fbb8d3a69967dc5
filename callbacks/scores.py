"""Scores of the previews while the model learns."""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dreamlit import events
from dreamlit.callbacks.checkpoint import run_name
from dreamlit.callbacks.preview import Made, ValidationPreview
from dreamlit.datamodules.fills import progress_bar
from dreamlit.errors import CombinationError, ConfigError, DataError, Faults, ModelError
from dreamlit.previewing import prompt_faults
from dreamlit.scoring import HIGHER_IS_BETTER, Drawn, Photos, Scorer, Wording
from dreamlit.step_lines import record

FILE = "scores.jsonl"
Told = Callable[[Trainer, LightningModule, int, dict[str, dict[str, Any]]], None]
"""Gets the step and the scores of each model, on every rank; they are empty where scoring failed."""


class Scores(Callback):
    """Scores what ValidationPreview has just made: the subject, the prompts, the class, and copies of photos.

    Images whose prompt has the subject in it are compared with its photos and with what was asked; images of other
    prompts show whether the class turns into the subject. Each preview adds a line to `<default_root_dir>/scores.jsonl`
    with every image's nearest photo, `score/subject_fidelity` and so on go to the loggers (`score-ema/...` for the
    average), and `<default_root_dir>/report/scores.png` shows the curves. All are cosines in [-1, 1]. It only looks:
    the training is the same to the last bit without it, and what fails there is a warning.

    Args:
        photos: Folder with photos of the subject.
        clip: Folder or hub id of a CLIP model: scores how images follow their prompts (CLIP-T) and, unless `dino` is
            given, everything else.
        dino: Folder or hub id of a DINO or DINOv2 model: compares images with the photos and with each other, as the
            DreamBooth paper does. One of the two is needed.
        subject: How the prompts name the subject: "sks dog"; by default ValidationPreview's own `subject`.
        class_noun: What CLIP reads in its place, because it does not know the rare word; by default the subject
            without its first word.
        alarm_above: Cosine to a photo above which an image is told as a copy of it; by default that of the two photos
            which are most alike.
        device: Where the scoring models work: `cpu`, or `model` (the model's device, only while they work).
        batch_size: Images scored at once.
    """

    def __init__(
        self,
        photos: str,
        clip: str | None = None,
        dino: str | None = None,
        subject: str | None = None,
        class_noun: str | None = None,
        alarm_above: float | None = None,
        device: str = "cpu",
        batch_size: int = 16,
    ) -> None:
        self.folder = pathlib.Path(photos)
        self.clip, self.dino = clip, dino
        self.subject, self.class_noun = subject, class_noun
        self.alarm_above, self.device, self.batch_size = alarm_above, device, batch_size
        self.failures = 0
        """Previews that could not be scored, so far."""
        self.listeners: list[Told] = []
        self._scorer: Scorer | None = None
        self._photos: Photos | None = None
        self._base: tuple[tuple[str, ...], dict[str, Any]] | None = None
        self._alarmed = 0
        faults = Faults("Scores cannot score with these options", ConfigError)
        for line in self._option_faults():
            faults.add(line)
        faults.raise_if_any()

    # checks -------------------------------------------------------------------------------------------------------

    def _option_faults(self) -> Iterator[str]:
        from dreamlit.plots import photo_files

        if not self.folder.is_dir():
            yield f"photos: there is no folder {self.folder}"
        elif not photo_files(self.folder):
            yield f"photos: {self.folder} holds no image that can be read"
        if not self.clip and not self.dino:
            yield "neither clip nor dino is given; one scoring model is needed"
        if self.alarm_above is not None and not -1 <= self.alarm_above <= 1:
            yield f"alarm_above is {self.alarm_above}; a cosine is from -1 to 1"
        if self.device not in ("cpu", "model"):
            yield f"device is {self.device!r}; allowed: cpu, model"
        if self.batch_size < 1:
            yield f"batch_size is {self.batch_size}; it must be at least 1"
        for name, text in (("subject", self.subject), ("class_noun", self.class_noun)):
            if text is not None and not text.strip():
                yield f"{name} is empty; leave it out or give words"
        for name, path in (("clip", self.clip), ("dino", self.dino)):
            try:
                if path:
                    self._encoder(path).check()
            except (ModelError, ConfigError) as error:
                yield f"{name}: {error}"

    def _encoder(self, path: str) -> Any:
        from dreamlit.encoders import ImageEncoder

        return ImageEncoder(path, batch_size=max(self.batch_size, 1))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        faults = Faults("Scores cannot score the previews", CombinationError)
        for line in self._combination_faults(trainer, pl_module):
            faults.add(line)
        faults.raise_if_any()
        preview = previews_of(trainer)[0]
        if self._on_preview not in preview.listeners:
            preview.listeners.append(self._on_preview)

    def _combination_faults(self, trainer: Trainer, module: Any) -> Iterator[str]:
        yield from prompt_faults(module.family)
        previews = previews_of(trainer)
        if len(previews) != 1:
            yield f"Scores scores the images of one ValidationPreview among the callbacks; found {len(previews)}"
            return
        subject = self.subject or previews[0].subject
        if not subject:
            yield "subject is not given, and ValidationPreview has none either; give it, such as 'sks dog'"
            return
        try:
            wording = Wording.of(subject, self.class_noun)
        except ValueError as error:
            yield str(error)
            return
        if not any(map(wording.is_of_subject, previews[0].prompts)):
            yield f"no prompt of ValidationPreview has the subject {subject!r} in it, so nothing could be scored"
        if trainer.is_global_zero:
            yield from self._load(wording)

    def _load(self, wording: Wording) -> Iterator[str]:
        """Loads encoders and photos now: a broken one would else be found out after the first preview."""
        from dreamlit.plots import photo_files

        clip, dino = (self._encoder(path) if path else None for path in (self.clip, self.dino))
        scorer = Scorer(clip, dino, wording)
        try:
            if clip and not clip.reads_text:
                yield f"clip: {self.clip} reads no text; give a CLIP model, or name it under dino"
                return
            self._photos = scorer.photos(photo_files(self.folder))
            self._scorer = scorer
        except (ModelError, DataError) as error:
            yield str(error)

    def expected(self, trainer: Trainer) -> dict[str, set[str]]:
        """The scores that each shown model gets when all its images are there; {} where nothing can be scored at all.

        Known from the options alone, before anything loads.
        """
        previews = previews_of(trainer)
        subject = self.subject or (previews[0].subject if previews else None)
        if len(previews) != 1 or not subject:
            return {}
        of_subject = [subject in prompt for prompt in previews[0].prompts]
        names = {"subject_fidelity": any(of_subject), "clip_i": any(of_subject) and self.clip and self.dino}
        names |= {"prompt_fidelity": any(of_subject) and self.clip, "preservation": not all(of_subject)}
        repeated = len(previews[0].sizes) * len(previews[0].seeds or [0]) > 1
        names |= {"diversity": any(of_subject) and repeated, "class_diversity": not all(of_subject) and repeated}
        found = {name for name, there in names.items() if there}
        return dict.fromkeys(previews[0].shown(trainer, expected=True), found)

    # scoring ------------------------------------------------------------------------------------------------------

    def _on_preview(self, trainer: Trainer, module: LightningModule, made: Made) -> None:
        """Every rank comes through, because those who listen may need all of them."""
        scores: dict[str, dict[str, Any]] = {}
        if trainer.is_global_zero:
            try:
                scores = self._scores(trainer, module, made)
                self._tell(trainer, made.step, scores)
            except Exception as error:
                self.failures += 1
                if self.failures == 1:
                    reason = f"{type(error).__name__}: {error}"
                    events.warned(
                        trainer,
                        f"Scores: the preview of step {made.step} could not be scored ({reason}); the run goes on. "
                        "Later failures are only counted",
                    )
        for listener in self.listeners:
            listener(trainer, module, made.step, scores)

    def _scores(self, trainer: Trainer, module: LightningModule, made: Made) -> dict[str, dict[str, Any]]:
        assert self._scorer and self._photos
        limit = self._photos.closest_pair if self.alarm_above is None else self.alarm_above
        limit = limit if made.step else None  # nothing is learned yet
        found: dict[str, dict[str, Any]] = {}
        with contextlib.ExitStack() as stack:
            if self.device == "model":
                for encoder in self._scorer.encoders:
                    stack.enter_context(encoder.on(module.device))
            drawn = {model: [Drawn(*image) for image in made.images(model)] for model in made.shown}
            total, bar = sum(map(len, drawn.values())), trainer.progress_bar_callback is not None
            advance = stack.enter_context(progress_bar("scoring previews", total, bar and total > 0))
            for model, images in drawn.items():
                found[model] = self._of_model(model, images, limit)
                advance(len(images))
        return found

    def _of_model(self, model: str, drawn: list[Drawn], limit: float | None) -> dict[str, Any]:
        """The base model's images are made once and scored once."""
        assert self._scorer and self._photos
        names = tuple(one.told for one in drawn)
        if model == "base" and self._base and self._base[0] == names:
            return self._base[1]
        scores = self._scorer.score(drawn, self._photos, limit if model != "base" else None)
        if model == "base":
            self._base = names, scores
        return scores

    # telling ------------------------------------------------------------------------------------------------------

    def _tell(self, trainer: Trainer, step: int, scores: dict[str, dict[str, Any]]) -> None:
        assert self._photos
        photos = {"mutual_similarity": self._photos.mutual_similarity, "closest_pair": self._photos.closest_pair}
        line = {"step": step, "models": scores, "photos": photos}
        root = pathlib.Path(trainer.default_root_dir)
        record(root / FILE, line)
        trained = {f"score{'-ema' if model == 'ema' else ''}/{name}": value for model, name, value in single(scores)}
        trainer.callback_metrics.update({name: as_metric(value) for name, value in trained.items()})
        for logger in trainer.loggers:
            logger.log_metrics(trained, step=max(step - 1, 0))  # Lightning's steps count from 0
        events.emit(trainer, events.Scores(step=step, scores=side_by_side(scores, photos["mutual_similarity"])))
        self._alarm(trainer, step, scores)
        from dreamlit.curves import draw_scores

        draw_scores(root / "report" / "scores.png", root / FILE, step, run_name(trainer))

    def _alarm(self, trainer: Trainer, step: int, scores: dict[str, dict[str, Any]]) -> None:
        copies = [image for of in scores.values() for image in of.get("alarms", [])]
        if len(copies) > self._alarmed:
            self._alarmed = len(copies)
            limit = f"{self.alarm_above}" if self.alarm_above is not None else "what the photos are to each other"
            events.warned(
                trainer,
                f"Scores: at step {step} {len(copies)} images are more alike to a photo than {limit} (first "
                f"{copies[0]}); the model may be learning the photos by heart. {FILE} names them",
            )


def single(scores: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, float]]:
    """(model, score, value) of the scores that are one number, of trained models."""
    for model, of in scores.items():
        if model != "base":
            yield from ((model, name, of[name]) for name in HIGHER_IS_BETTER if name in of)


def side_by_side(scores: dict[str, dict[str, Any]], photos: float | None) -> dict[str, dict[str, float | None]]:
    """As an event has them: score -> {"base", "adapter" (the trained weights), "ema", "photos": value}."""
    names = {"base": "base", "raw": "adapter", "ema": "ema"}
    told: dict[str, dict[str, float | None]] = {}
    for model, of in scores.items():
        for name in HIGHER_IS_BETTER:
            if name in of:
                told.setdefault(name, {})[names[model]] = of[name]
    if photos is not None and "subject_fidelity" in told:
        told["subject_fidelity"]["photos"] = photos
    return told


def as_metric(value: float) -> Any:
    import torch

    return torch.tensor(value if math.isfinite(value) else math.nan)


def previews_of(trainer: Trainer) -> list[ValidationPreview]:
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return [callback for callback in callbacks if isinstance(callback, ValidationPreview)]
