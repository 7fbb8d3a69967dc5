"""What `dreamlit fit` costs over a bare PyTorch loop that does the same training.

    python scripts/benchmark_overhead.py [--steps 101] [--repeats 5] [--bound 1.05]

Each repeat is a run of the real command on a tiny SDXL (random weights, 128 px), with everything at its defaults but
the logger, which writes in every pass over the 8 photos. After each of its steps a callback makes the same step with a
bare loop: `for batch in loader`, forward, `loss.backward()`, `optimizer.step()`, `zero_grad()`, with its own copy of
the same adapter and the same batches and loss. So both meet the same disturbances of the machine, step by step, and at
the end both must hold the same weights to the last bit. A run's ratio is time of fit / time of the bare loop in a pass,
epoch end and log row included, the median over its passes; printed is the median over the runs with the smallest and
the largest. Start-up is not in it, and neither are checkpoints while --steps is below the 250 steps between them.
Exit code 1 above the bound.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl

WARM_UP = 5
PHOTOS = 8
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Stopwatch:
    """Wall and CPU seconds of each step, from `start` to `stop`."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in CLOCKS}
        self._begun: dict[str, float] = {}

    def start(self) -> None:
        self._begun = {name: clock() for name, clock in CLOCKS.items()}

    def stop(self) -> None:
        for name, clock in CLOCKS.items():
            self.times[name].append(clock() - self._begun[name])


def bare_loop(module: Any, data: Any) -> Iterator[Any]:
    """The same training by hand: yields its adapter after each step."""
    from dreamlit.datamodules.loader import PlanDataset, PlanLoader

    family = type(module.family)(module.family.files.path)
    adapter = type(module.adapter)(rank=module.adapter.rank)
    family.load("denoiser")
    adapter.attach(family.denoiser, seed=module.seed)
    manifest = data.manifest(family.stride)
    caches = data.caches(family, manifest)
    dataset = PlanDataset(manifest.samples, manifest.specs, caches, module.noise_source(), module.seed)
    loader = PlanLoader(dataset, data.plan(family.stride), epoch_length=10**6)
    optimizer = module.optimizer_factory(adapter.parameters().values())
    process, objective = family.process(), module.objective
    for batch in loader:
        x_t = process.noise(batch.latents, batch.input_eps, batch.t)
        target = process.target(batch.latents, batch.eps, batch.t)
        prediction = family.predict(x_t, batch.t, batch.conditioning, batch.frame)
        objective.losses(process, prediction, target, batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield adapter


class Alternate(pl.Callback):
    """Makes a step of the bare loop after each step of fit, and writes the times of both.

    Args:
        path: JSON file for the result.
    """

    def __init__(self, path: str) -> None:
        self.path = pathlib.Path(path)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bare = bare_loop(pl_module, trainer.datamodule)  # pyright: ignore[reportAttributeAccessIssue]
        self.clocks = {"fit": Stopwatch(), "bare": Stopwatch()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if step > WARM_UP:
            self.clocks["fit"].stop()
            self.clocks["bare"].start()
        self.adapter = next(self.bare)
        if step > WARM_UP:
            self.clocks["bare"].stop()
        self.clocks["fit"].start()  # what is left to do in this step, by the loop and other callbacks, is fit's

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        own = self.adapter.parameters()
        same = all(value.equal(own[name]) for name, value in pl_module.state_dict().items())
        times = {name: clock.times for name, clock in self.clocks.items()}
        self.path.write_text(json.dumps({"same_weights": same, **times}))


def make_model(folder: pathlib.Path) -> pathlib.Path:
    """A tiny SDXL whose training step takes about a tenth of a second on one core."""
    from make_tiny_models import library, make

    make("sdxl", folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    config |= {"block_out_channels": [64, 128], "transformer_layers_per_block": [1, 3]}
    library("diffusers").UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return folder


def make_photos(folder: pathlib.Path, count: int = PHOTOS, side_px: int = 128) -> pathlib.Path:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 255, (side_px, side_px, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def configuration(root: pathlib.Path, model: pathlib.Path, photos: pathlib.Path, steps: int) -> dict[str, Any]:
    """A run in which everything that costs time in a step is at its default."""
    alternate = {"class_path": "benchmark_overhead.Alternate", "init_args": {"path": str(root) + ".json"}}
    photos_entry = {
        "id": "subject",
        "instance_data_dir": str(photos),
        "caption_strategy": "instanceprompt",
        "instance_prompt": "a photo of sks dog",
        "resolution": 128,
        "resolution_type": "pixel",
    }
    return {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": steps,
            "default_root_dir": str(root),
            "log_every_n_steps": PHOTOS,
            "callbacks": [alternate],
        },
        "model": {
            "family": {"class_path": "SDXL", "init_args": {"path": str(model)}},
            "adapter": {"class_path": "LoRA", "init_args": {"rank": 16}},
        },
        "data": {"cache_dir": str(root.parent / "cache"), "datasets": [photos_entry]},
    }


def measure(folder: pathlib.Path, model: pathlib.Path, photos: pathlib.Path, steps: int, number: int) -> dict[str, Any]:
    """Times of one run of the command; see `Alternate`."""
    root = folder / f"run-{number}"
    config = folder / f"run-{number}.yaml"
    config.write_text(json.dumps(configuration(root, model, photos, steps)))  # JSON is YAML
    here = str(pathlib.Path(__file__).resolve().parent)
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "dreamlit", "fit", "--config", str(config)]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"the run failed:\n{result.stdout}{result.stderr}")
    times = json.loads(pathlib.Path(f"{root}.json").read_text())
    if not times["same_weights"]:
        raise SystemExit("fit and the bare loop ended with different weights, so the times do not compare")
    return times


def ratio(fit: list[float], bare: list[float]) -> float:
    """Time of fit over time of the bare loop: the median over whole passes, so that one disturbance does not count."""
    starts = range(0, len(fit) - PHOTOS + 1, PHOTOS)
    return statistics.median(sum(fit[i : i + PHOTOS]) / sum(bare[i : i + PHOTOS]) for i in starts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=101, help=f"steps of a run; the first {WARM_UP} are not timed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bound", type=float, default=1.05, help="largest median ratio of wall time that passes")
    options = parser.parse_args(argv)
    if options.steps < WARM_UP + PHOTOS or options.repeats < 1:
        parser.error(f"--steps must be at least {WARM_UP + PHOTOS} and --repeats at least 1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ratios: dict[str, list[float]] = {name: [] for name in CLOCKS}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model, photos = make_model(folder / "model"), make_photos(folder / "photos")
        for number in range(options.repeats):
            times = measure(folder, model, photos, options.steps, number)
            for clock, found in ratios.items():
                found.append(ratio(times["fit"][clock], times["bare"][clock]))
            milliseconds = {loop: statistics.median(times[loop]["wall"]) * 1e3 for loop in ("fit", "bare")}
            print(
                f"run {number + 1}: fit {milliseconds['fit']:.1f} ms a step, bare loop {milliseconds['bare']:.1f}; "
                + ", ".join(f"{clock} x {found[-1]:.3f}" for clock, found in ratios.items()),
                flush=True,
            )
    for clock, found in ratios.items():
        print(f"{clock}: median x {statistics.median(found):.3f} (from {min(found):.3f} to {max(found):.3f})")
    return 1 if statistics.median(ratios["wall"]) > options.bound else 0


if __name__ == "__main__":
    sys.exit(main())
