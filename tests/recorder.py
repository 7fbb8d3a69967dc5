"""A callback and other classes of a user's own, outside the package: named by dotted path in test configurations."""

import json
import pathlib

from lightning.pytorch import Callback

from dreamlit.datamodules.captions import CaptionStrategy
from dreamlit.families import SDXL


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
