"""The checkpoints worth keeping, by the scores of their previews."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dreamlit import events
from dreamlit.callbacks.checkpoint import checkpoint_folder, export_all, run_name
from dreamlit.callbacks.scores import Scores
from dreamlit.errors import CheckpointError, CombinationError, ConfigError, Faults, nearest
from dreamlit.scoring import HIGHER_IS_BETTER, crowding, front

DEFAULT = ("subject_fidelity", "prompt_fidelity", "preservation")
MODELS = ("raw", "ema")


class BestOf(Callback):
    """Keeps the checkpoints that no other one beats in every score: more of the subject, the prompt or the class.

    There is no single best step: the subject gets better while prompts and class get worse. Of the steps that `Scores`
    has scored, those stay in `<default_root_dir>/best-of` (checkpoint and adapter of each) for which no other step is
    at least as good in all scores and better in one (the Pareto front); `front.json` says which and why.

    Args:
        scores: What counts, of subject_fidelity, clip_i, prompt_fidelity, preservation, diversity and class_diversity;
            by default the first, third and fourth of these, as far as there are any.
        model: Whose scores: `raw`, the weights in training, or `ema`, their average.
        most: How many stay at most; of a larger front those go first that are most like their neighbours.
    """

    def __init__(self, scores: list[str] | None = None, model: str = "raw", most: int = 5) -> None:
        self.scores, self.model, self.most = scores, model, most
        self.failures = 0
        """Steps that could not be kept, so far."""
        self._front: dict[int, dict[str, float]] = {}  # step -> scores, on the first rank
        faults = Faults("BestOf cannot choose with these options", ConfigError)
        for name in scores or []:
            if name not in HIGHER_IS_BETTER:
                faults.add(f"scores has {name!r}; {nearest(str(name), HIGHER_IS_BETTER)}")
        if scores is not None and (not scores or len(set(scores)) < len(scores)):
            faults.add(f"scores is {scores}; give at least one, each once")
        if model not in MODELS:
            faults.add(f"model is {model!r}; {nearest(str(model), MODELS)}")
        if most < 1:
            faults.add(f"most is {most}; it must be at least 1")
        faults.raise_if_any()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        scorers = [callback for callback in callbacks if isinstance(callback, Scores)]
        if len(scorers) != 1:
            raise CombinationError(f"BestOf chooses by one Scores among the callbacks; found {len(scorers)}")
        self._check_scores(scorers[0].expected(trainer))
        if self._on_scores not in scorers[0].listeners:
            scorers[0].listeners.append(self._on_scores)

    def _check_scores(self, expected: dict[str, set[str]]) -> None:
        """Refuses to wait for scores that never come. `expected` is empty where `Scores` itself has a fault to tell."""
        if not expected:
            return
        faults = Faults("BestOf would keep nothing", CombinationError)
        if self.model not in expected:
            faults.add(
                f"model is {self.model!r}, which ValidationPreview does not show (it shows {', '.join(expected)}); "
                "ema needs an EMA with preview in its use_for"
            )
        else:
            for name in self.scores or []:
                if name not in expected[self.model]:
                    there = ", ".join(sorted(expected[self.model]))
                    faults.add(
                        f"scores has {name!r}, which this run does not get ({there}): clip_i needs clip and dino, "
                        "prompt_fidelity clip, diversity two seeds, preservation and class_diversity a prompt without "
                        "the subject"
                    )
        faults.raise_if_any()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run goes on with what it has kept; a step whose checkpoint is gone is no longer one of them."""
        self._front = {}
        index = folder_of(trainer) / "front.json"
        if not trainer.is_global_zero or not index.is_file():
            return
        try:
            kept = json.loads(index.read_text(encoding="utf-8"))["steps"].items()
            self._front = {int(step): of for step, of in kept if checkpoint_of(trainer, int(step)).is_file()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            events.warned(
                trainer, f"BestOf: {index} cannot be read ({error}); what it names stays, and a new front is begun"
            )

    # choosing -----------------------------------------------------------------------------------------------------

    def _on_scores(
        self, trainer: Trainer, module: LightningModule, step: int, scores: dict[str, dict[str, Any]]
    ) -> None:
        """All ranks take part in a save; the first one decides."""
        learnt = step > 0 and trainer.is_global_zero  # at step 0 nothing is lost, and nothing is won
        chosen = self._choice(trainer, step, scores) if learnt else None
        chosen = trainer.strategy.broadcast(chosen)
        if chosen is None or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        path, failure = checkpoint_of(trainer, step), None
        saved = checkpoint_folder(trainer) / path.name
        if not trainer.strategy.broadcast(saved.is_file()):
            failure = self._save(trainer, path)
        if trainer.is_global_zero and not failure:
            try:
                self._keep(trainer, module, step, chosen, saved)
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
                self._clear_away(trainer, step)
        if failure:
            self.failures += 1
            if self.failures == 1:
                events.warned(
                    trainer,
                    f"BestOf: step {step} could not be kept ({failure}); the run goes on. Later failures are only "
                    "counted",
                )

    def _clear_away(self, trainer: Trainer, step: int) -> None:
        """Removes what there is of a step that could not be kept; on a full disk it would be in the way."""
        if step not in self._front:
            with contextlib.suppress(OSError):
                remove(folder_of(trainer), run_name(trainer), step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.failures > 1:
            events.warned(trainer, f"BestOf: {self.failures} steps could not be kept")

    @staticmethod
    def _save(trainer: Trainer, path: pathlib.Path) -> str | None:
        """Saves a checkpoint; returns why it could not be written, on the first rank."""
        try:
            trainer.save_checkpoint(path)
        except CheckpointError as error:  # only the first rank writes; the others wait for it behind that
            trainer.strategy.barrier("Trainer.save_checkpoint")
            return str(error)
        return None

    def _choice(
        self, trainer: Trainer, step: int, scores: dict[str, dict[str, Any]]
    ) -> dict[int, dict[str, float]] | None:
        """The new front, if `step` is on it."""
        of = scores.get(self.model, {})
        names = [name for name in self.scores or DEFAULT if name in of]
        if not names or (self.scores and len(names) < len(self.scores)):
            return None  # not all images could be made, which was told
        candidates = {**self._front, step: {name: of[name] for name in names}}
        candidates = {at: of for at, of in candidates.items() if all(name in of for name in names)}
        kept = {at: candidates[at] for at in front(candidates, names)}
        while len(kept) > self.most:
            distance = crowding(kept, names)
            kept.pop(min(kept, key=lambda at: (distance[at], -at)))
        return kept if step in kept else None

    def _keep(
        self, trainer: Trainer, module: Any, step: int, chosen: dict[int, dict[str, float]], saved: pathlib.Path
    ) -> None:
        """Puts the step's files there first, then the index, and removes what is beaten last."""
        folder, path = folder_of(trainer), checkpoint_of(trainer, step)
        folder.mkdir(exist_ok=True)
        if not path.is_file() or (saved.is_file() and not saved.samefile(path)):
            partial = path.with_name(f".{path.name}.partial")
            partial.unlink(missing_ok=True)
            try:
                link_or_copy(saved, partial)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        export_all(trainer, module, folder, f"{run_name(trainer)}-step-{step:06d}")
        beaten = self._front.keys() - chosen.keys()
        self._front = chosen
        index = folder / "front.json"
        partial = index.with_name(".front.json.partial")
        steps = {str(at): chosen[at] for at in sorted(chosen)}
        text = json.dumps({"model": self.model, "higher_is_better": HIGHER_IS_BETTER, "steps": steps}, indent=2)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, index)
        for at in beaten:
            remove(folder, run_name(trainer), at)


def folder_of(trainer: Trainer) -> pathlib.Path:
    return pathlib.Path(trainer.default_root_dir) / "best-of"


def checkpoint_of(trainer: Trainer, step: int) -> pathlib.Path:
    return folder_of(trainer) / f"step-{step:06d}.ckpt"


def link_or_copy(file: pathlib.Path, to: pathlib.Path) -> None:
    """The same file under a second name; a copy where the disk cannot do that."""
    try:
        os.link(file, to)  # no second copy on disk; the run's own may go later
    except OSError:
        shutil.copyfile(file, to)


def remove(folder: pathlib.Path, name: str, step: int) -> None:
    """Removes a step's checkpoint and adapters, which this callback has written."""
    (folder / f"step-{step:06d}.ckpt").unlink(missing_ok=True)
    stem = f"{name}-step-{step:06d}"
    for average in ("", "-ema"):
        for ending in (".safetensors", "-diffusers.safetensors", ""):
            path = folder / f"{stem}{average}{ending}"
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
