"""A callback and other classes of a user's own, outside the package: named by dotted path in test configurations."""

import json
import pathlib
from typing import Any, ClassVar

from lightning.pytorch import Callback

from dreamlit.datamodules.captions import CaptionStrategy
from dreamlit.families import SDXL, DeepFloydII, SDXLRefiner


class Recorder(Callback):
    """Appends one JSON line for each batch: which draws it held and their losses."""

    def __init__(self, path: str) -> None:
        self.path = pathlib.Path(path)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        row = {
            "position": batch.position,
            "keys": batch.keys,
            "t": batch.t.tolist(),
            "per_sample": outputs["per_sample"].tolist(),
            "loss": float(outputs["loss"]),
            "rank": trainer.global_rank,
        }
        with self.path.with_name(f"{self.path.name}.{trainer.global_rank}").open("a") as file:
            file.write(json.dumps(row) + "\n")


class FeatureRecorder(Callback):
    """Appends one JSON line for each batch: what of masks, roles and rollouts it had, and what that cost."""

    def __init__(self, path: str) -> None:
        self.path, self.forwards = pathlib.Path(path), 0

    def on_train_start(self, trainer, pl_module):
        pl_module.denoiser.register_forward_pre_hook(self._count)

    def _count(self, module, inputs):
        self.forwards += 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.forwards = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        row = {
            "forwards": self.forwards,
            "rolled": outputs["offsets"].tolist(),
            "roles": batch.role.tolist(),
            "masks": [[float(mask.min()), float(mask.max())] for mask in batch.mask],
            "per_sample": outputs["per_sample"].tolist(),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class StopAfter(Callback):
    """Asks for the end of the run after a number of batches, as `max_time` does."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches -= 1
        trainer.should_stop = self.batches <= 0


def rows(path: pathlib.Path, rank: int = 0) -> list[dict]:
    """What a `Recorder` wrote."""
    return [json.loads(line) for line in pathlib.Path(f"{path}.{rank}").read_text().splitlines()]


class ShoutingCaptions(CaptionStrategy):
    """A caption strategy of a user's own: the file name in capitals."""

    def variants(self, source, name):
        return (pathlib.PurePosixPath(name).stem.upper(),)


class OwnSDXL(SDXL):
    """A family of a user's own."""


class Watched:
    """A family that notes which components with weights are loaded, each time that it works itself."""

    seen: ClassVar[list[tuple[str, set[str]]]] = []

    def _note(self, verb: str) -> None:
        own: Any = self
        for when, family in ((verb, own), ("before", own.before)):
            if family:
                loaded = family._loaded.items()
                self.seen.append((when, {name for name, part in loaded if hasattr(part, "parameters")}))

    def encode_pixels(self, pixels):
        self._note("encode_pixels")
        return super().encode_pixels(pixels)  # pyright: ignore[reportAttributeAccessIssue]

    def encode_prompts(self, prompts):
        self._note("encode_prompts")
        return super().encode_prompts(prompts)  # pyright: ignore[reportAttributeAccessIssue]

    def predict(self, *args, **options):
        self._note("predict")
        return super().predict(*args, **options)  # pyright: ignore[reportAttributeAccessIssue]


class WatchedSDXL(Watched, SDXL):
    """See `Watched`; it also notes what is there to draw with."""

    def pipeline(self, denoiser=None):
        made = super().pipeline(denoiser)
        self._note("pipeline")
        return made


class WatchedRefiner(Watched, SDXLRefiner):
    """See `Watched`."""


class WatchedII(Watched, DeepFloydII):
    """See `Watched`."""
