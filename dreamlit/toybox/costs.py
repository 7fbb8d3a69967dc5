"""What a step of each arm costs: the arms are trained one after the other for some steps, and only the ratios are kept.

Seconds of trials that ran on different machines, or beside other work, cannot be compared; ratios of one run can.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from lightning.pytorch import Callback
from tqdm import tqdm

from dreamlit.errors import DataError
from dreamlit.toybox.arms import Trial

STEPS, WARM, ROUNDS = 30, 5, 2
"""Steps of a run, the first of which do not count, and how often each arm is run."""


class StepTimes(Callback):
    """Writes the mean CPU seconds of a step after the first `WARM` into a file.

    Args:
        path: The file, one number.
    """

    def __init__(self, path: str) -> None:
        self.path = pathlib.Path(path)
        self._ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self._ends.append(time.process_time())

    def on_train_end(self, *_: Any) -> None:
        if len(self._ends) > WARM:
            seconds = (self._ends[-1] - self._ends[WARM - 1]) / (len(self._ends) - WARM)
            self.path.write_text(json.dumps(seconds), encoding="utf-8")


def measure(trials: Sequence[Trial], base: Mapping[str, Any], work: pathlib.Path, reference: str) -> dict[str, float]:
    """Cost of a step by arm, as a multiple of the reference arm's, which must be among the trials (one for each arm).

    Every round runs all arms, so that what changes on the machine meanwhile touches them alike. Errors: `DataError`.
    """
    sums = dict.fromkeys((trial.arm.name for trial in trials), 0.0)
    rounds = [(number, trial) for number in range(ROUNDS) for trial in trials]
    for number, trial in tqdm(rounds, "costs of a step"):
        sums[trial.arm.name] += step_seconds(trial, base, work, work / "costs" / f"{trial.arm.name}-{number}")
    return {name: round(seconds / sums[reference], 3) for name, seconds in sums.items()}


def machine() -> str:
    """The processor's name and the number of its cores, for people."""
    name = platform.processor() or platform.machine()
    cpus = pathlib.Path("/proc/cpuinfo")
    if cpus.exists():
        lines = [
            line.split(":", 1)[1].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")
        ]
        name = lines[0] if lines else name
    return f"{name}, {os.cpu_count()} cores"


def step_seconds(trial: Trial, base: Mapping[str, Any], work: pathlib.Path, folder: pathlib.Path) -> float:
    """CPU seconds of a step, on one thread, of `STEPS` steps of a trial; its run is left in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "seconds.json"
    written.unlink(missing_ok=True)
    config = Trial(trial.arm, trial.subject, trial.seed, STEPS).config(base, work)
    config["trainer"]["default_root_dir"] = str(folder / "run")
    times = {"class_path": "dreamlit.toybox.costs.StepTimes", "init_args": {"path": str(written)}}
    config["trainer"]["callbacks"] = [*config["trainer"].get("callbacks", []), times]
    (folder / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "dreamlit", "fit", "--config", str(folder / "run.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode or not written.exists():
        raise DataError(f"{trial.arm.name} failed with code {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return json.loads(written.read_text(encoding="utf-8"))
