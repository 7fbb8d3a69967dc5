"""All that `fit` would check before it loads a model, with every fault noted instead of raised at the first."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from dreamlit.callbacks.best_of import BestOf
from dreamlit.callbacks.checkpoint import RunCheckpoint
from dreamlit.callbacks.ema import EMA
from dreamlit.callbacks.preview import ValidationPreview
from dreamlit.callbacks.prior_control import PriorControl
from dreamlit.callbacks.report import RunReport
from dreamlit.callbacks.scheduled_sampling import ScheduledSampling
from dreamlit.callbacks.scores import Scores
from dreamlit.commands import stand_in_for_class_images
from dreamlit.datamodules.samples import Manifest, refuse_dataset_folders
from dreamlit.errors import DreamlitError, ModelError
from dreamlit.training_cli import DreamlitCLI, made

CHECKED = (RunCheckpoint, EMA, ValidationPreview, RunReport, Scores, BestOf, PriorControl, ScheduledSampling)
"""Callbacks whose `setup` does nothing but look; that of others opens files or ports."""

NOT_HERE = "this machine has not the devices that the trainer asks for"


class Examined(DreamlitCLI):
    """The parts of a run with their faults. Nothing is loaded, downloaded or written but the cache of photo sizes."""

    def __init__(self, run_command: bool = False) -> None:
        self.faults: list[str] = []
        self.absent: str | None = None
        """Why nothing can be said of the model, where it has not been downloaded."""
        self.manifest: Manifest | None = None
        self.to_draw = ""
        """What of `data.class_images` the run would draw first."""
        super().__init__(run_command)

    def note(self, check: Callable[[], Any]) -> None:
        """Run a check and remember what it raises; the same is said once."""
        try:
            check()
        except (DreamlitError, MisconfigurationException) as error:
            if str(error) not in self.faults:
                self.faults.append(str(error))

    def _parse_ckpt_path(self) -> None:
        self.note(super()._parse_ckpt_path)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        config = self._get(self.config_init, "trainer")
        try:
            return super().instantiate_trainer(**kwargs)
        except DreamlitError as error:
            self.faults.append(str(error))
        config["strategy"], config["barebones"], config["enable_checkpointing"] = "auto", False, None
        return super().instantiate_trainer(**kwargs)

    def trainer_with(self, config: Any, options: dict[str, Any]) -> Any:
        try:
            return super().trainer_with(config, options)
        except MisconfigurationException as error:
            asked = f"accelerator {config.get('accelerator')!r}, devices {config.get('devices')!r}"
            advice = "set trainer.accelerator to cpu or auto, or run it where they are"
            self.faults.append(f"{NOT_HERE}: {asked} ({str(error).rstrip('!.')}); {advice}")
            raise

    def after_instantiate_classes(self) -> None:
        self.describe_run()
        model: Any = self.model
        if model.family.files.is_hub:
            model.family.files = dataclasses.replace(model.family.files, local_files_only=True)
            try:
                _ = model.family.files.folder
            except ModelError:
                self.absent = f"{model.family.files.path} is no folder here, nor in this machine's hub cache"
        for check in self.checks(runs=self.absent is None):
            self.note(check)
        self.note(self._look_at_data)
        for callback in self.trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, CHECKED) and self.absent is None:
                self.note(lambda callback=callback: callback.setup(self.trainer, model, "fit"))

    def _look_at_data(self) -> None:
        data: Any = self.datamodule
        data.attach(self.model)
        self.note(lambda: refuse_dataset_folders(self.trainer.default_root_dir, data.specs, "trainer.default_root_dir"))
        with tempfile.TemporaryDirectory() as folder:
            if data.class_images is not None:
                self.to_draw = stand_in_for_class_images(self.model, data, pathlib.Path(folder))  # pyright: ignore
            manifest = data.manifest(self._stride())
        data.tell_roles(manifest)
        self.manifest = manifest

    def _stride(self) -> int:
        """The model's, or one that every alignment is a multiple of, where the model cannot be read."""
        try:
            return self.model.family.stride  # pyright: ignore[reportAttributeAccessIssue]
        except ModelError:
            return 1


def examine(words: list[str]) -> Examined:
    """The examined run of a command line (`--config run.yaml ...`). Errors: `ConfigError` where it cannot be read."""
    return made(["fit", *words], run_command=False, kind=Examined)
