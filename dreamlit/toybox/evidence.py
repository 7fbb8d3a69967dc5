"""The evidence bench: trains every arm on the toybox, with several subjects and seeds, and writes down what came out.

    python -m dreamlit.toybox.evidence --work evidence --output docs/evidence --jobs 2

A trial takes about five and a half minutes of one core (up to eleven), and there are (arms) x (subjects) x (seeds) of
them, and those of `--equal-time`; what is done is kept by the hash of its configuration and not done again: results of
`--work`, and those that the report in `--output` already has, which each finished trial is added to at once. `--costs`
measures what a step of each arm costs, on one machine and in one run; by that, `--equal-time` gives arms the time that
the quickstart's arm takes instead of its number of steps.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import yaml
from tqdm import tqdm

from dreamlit.errors import DataError
from dreamlit.toybox import MODEL, weights_hash
from dreamlit.toybox.arms import ARMS, Trial
from dreamlit.toybox.command import write_class_images
from dreamlit.toybox.configurations import shipped
from dreamlit.toybox.costs import machine, measure
from dreamlit.toybox.evidence_report import write_report
from dreamlit.toybox.evidence_results import costs_of, keep, keep_costs, results_of
from dreamlit.toybox.folders import writable
from dreamlit.toybox.subjects import SUBJECTS, WALL, write_photos

REFERENCE = "lokr"
CLASS_IMAGES = 24
MINUTES_A_TRIAL = 5.5
"""Of one core: the mean of those that were run, to train, and then to sample and score for a minute and a half."""


def quickstart() -> dict[str, Any]:
    config = yaml.safe_load(shipped("quickstart.yaml"))
    config["model"]["family"]["init_args"]["path"] = str(MODEL)
    return config


def facts() -> dict[str, Any]:
    """What decides a result beside the configuration: the weights, and the versions of what computes."""
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "lycoris-lora", "peft")}
    return {"weights": weights_hash(), **versions}


def prepare(work: pathlib.Path, subjects: list[str], arms: list[str]) -> None:
    """The photos of each arm (on five places, or all on the same; the subject by its word), masks and class images."""
    for name in subjects:
        subject = SUBJECTS[name]
        for arm in {ARMS[arm].photos: ARMS[arm] for arm in arms}.values():
            backgrounds = (WALL,) * 5 if arm.busy else None
            write_photos(work / arm.photos, subject, backgrounds=backgrounds, word=arm.word)
        write_class_images(work / "class" / subject.individual.kind, subject, CLASS_IMAGES, 0, False)


def run_trial(trial: Trial, name: str, work: pathlib.Path, base: Mapping[str, Any]) -> dict[str, Any]:
    """The trial's result, from its folder if it was run before; one that was broken off there begins anew.

    Raises:
        DataError: with the end of its log, when the trial fails.
    """
    folder = work / "trials" / name
    kept = folder / "result.json"
    if not kept.exists():
        if folder.exists():
            shutil.rmtree(folder)  # `fit` writes over no run, and seconds of half a run would not be the trial's
        folder.mkdir(parents=True)
        config = trial.config(base, work)
        config["trainer"]["default_root_dir"] = str(folder / "run")
        (folder / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        note = {
            "arm": trial.arm.name,
            "subject": trial.subject,
            "seed": trial.seed,
            "steps": trial.steps,
            "word": trial.arm.word,
        }
        (folder / "trial.json").write_text(json.dumps({**note, "trained": trial.arm.trained}), encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            command = [sys.executable, "-m", "dreamlit.toybox.trial", str(folder)]
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
        if done.returncode or not kept.exists():
            tail = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
            raise DataError(f"{name} failed with code {done.returncode}:\n{tail}")
    return {**json.loads(kept.read_text(encoding="utf-8")), "folder": name}


def run_all(trials: list[Trial], work: pathlib.Path, jobs: int, output: pathlib.Path) -> list[dict[str, Any]]:
    """The results of the trials; those that the report in `output` has not are made, and kept there one by one.

    Raises:
        DataError: when a trial fails: those that wait are dropped, those that run are waited for and kept.
    """
    base, known, reported = quickstart(), facts(), results_of(output)
    names = {trial.name(base, known): trial for trial in trials}
    results = [reported[name] for name in names if name in reported]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        left = {name: trial for name, trial in names.items() if name not in reported}
        waiting = [pool.submit(run_trial, trial, name, work, base) for name, trial in left.items()]
        failures = []
        try:
            for one in tqdm(concurrent.futures.as_completed(waiting), "trials", total=len(waiting)):
                if one.cancelled():
                    continue
                if one.exception():
                    failures.append(one)
                    for other in waiting:
                        other.cancel()
                    continue
                results.append(one.result())
                keep(output, results[-1])
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what is running ends by itself, and is found again in `work`
            raise
    for one in failures:
        one.result()  # raises
    order = {(t.arm.name, t.subject, t.seed): i for i, t in enumerate(trials)}
    return sorted(results, key=lambda r: order[(r["arm"], r["subject"], r["seed"])])


def equal_time(trials: list[Trial], costs: Mapping[str, float], most: int) -> list[Trial]:
    """The same trials with as many steps as fit into the reference arm's time, by what a step of each arm costs."""
    chosen = []
    for trial in trials:
        ratio = 1 / costs[trial.arm.name] if trial.arm.trained else 1.0
        steps = min(most, max(10, round(trial.steps * ratio / 10) * 10))
        chosen.append(Trial(trial.arm, trial.subject, trial.seed, steps))
    return chosen


def left_to_do(
    trials: list[Trial], timed: list[Trial], most: int, work: pathlib.Path, output: pathlib.Path, measure_again: bool
) -> int:
    """How many trials have a result neither in `work` nor in the report; of `timed`, those of equal time.

    Where it is not known yet what a step of an arm costs, its number of steps is not either, and its trials count.
    """
    costs = {} if measure_again else costs_of(output).get("steps", {})
    if not {trial.arm.name for trial in timed if trial.arm.trained} <= costs.keys():
        costs = {REFERENCE: 1.0}  # by definition
    sure = [trial for trial in timed if not trial.arm.trained or trial.arm.name in costs]
    base, known, reported = quickstart(), facts(), results_of(output)
    names = {trial.name(base, known) for trial in [*trials, *equal_time(sure, costs, most)]}
    done = {name for name in names if name in reported or (work / "trials" / name / "result.json").exists()}
    return len(names - done) + len(timed) - len(sure)


def measured_costs(
    trials: list[Trial], work: pathlib.Path, output: pathlib.Path, asked: bool, needed: bool
) -> dict[str, float]:
    """What a step of each arm costs: as the report has it, measured again where asked, or needed and not whole."""
    known = costs_of(output).get("steps", {})
    one_each = {trial.arm.name: trial for trial in reversed(trials) if trial.arm.trained}
    if asked or (needed and not one_each.keys() <= known.keys()):
        known = measure(list(reversed(one_each.values())), quickstart(), work, REFERENCE)
        keep_costs(output, known, machine())
    return known


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--work", type=pathlib.Path, default=pathlib.Path("evidence"), help="folder of the trials")
    made.add_argument("--output", type=pathlib.Path, help="folder for the table, plots and sheets")
    made.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="default: all")
    made.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS)[:3], metavar="NAME")
    made.add_argument("--seeds", type=int, default=3, help="seeds 0 to N-1 (default: %(default)s)")
    made.add_argument("--steps", type=int, default=quickstart()["trainer"]["max_steps"])
    made.add_argument("--jobs", type=int, default=2, help="trials at a time, one core each (default: %(default)s)")
    made.add_argument("--costs", action="store_true", help="measure what a step of each arm costs, a minute an arm")
    made.add_argument(
        "--equal-time",
        nargs="*",
        choices=ARMS,
        metavar="ARM",
        help=f"also run these arms (default: all of --arms) for the time that {REFERENCE} takes",
    )
    made.add_argument("--list", action="store_true", help="say what would be run, and stop")
    return made


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options; `equal_time` are the names of the arms that are run for equal time, with the reference's."""
    made = parser()
    options = made.parse_args(arguments)
    if min(options.seeds, options.steps, options.jobs) < 1:
        made.error("--seeds, --steps and --jobs must be at least 1")
    options.arms = [name for name in ARMS if name in options.arms]
    asked = options.equal_time
    if (asked is not None or options.costs) and REFERENCE not in options.arms:
        made.error(f"--equal-time and --costs need the arm {REFERENCE}")
    if absent := set(asked or ()) - set(options.arms):
        made.error(f"--equal-time: {', '.join(sorted(absent))} is not among --arms")
    wanted = (REFERENCE, *asked) if asked else options.arms
    options.equal_time = [] if asked is None else [name for name in options.arms if name in wanted]
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    trials = [
        Trial(ARMS[name], subject, seed, options.steps)
        for name in options.arms
        for subject in options.subjects
        for seed in range(options.seeds)
    ]
    timed = [trial for trial in trials if trial.arm.name in options.equal_time]
    work, most = options.work.resolve(), 4 * options.steps
    output = options.output or work / "report"
    # Reads the report's results: a damaged file is told before hours of work, not after.
    left = left_to_do(trials, timed, most, work, output, options.costs)
    count = f"{len(trials)} trials of {len(options.arms)} arms{f', {len(timed)} of equal time' if timed else ''}"
    print(f"{count}; {left} are left to do: about {left * MINUTES_A_TRIAL / options.jobs:.0f} minutes")
    if options.list:
        for name in options.arms:
            print(f"  {name:20} {ARMS[name].what}")
        return
    writable(output)
    prepare(work, options.subjects, options.arms)
    costs = measured_costs(trials if options.costs else timed, work, output, options.costs, bool(timed))
    results = run_all(trials, work, options.jobs, output)
    of_equal_time = run_all(equal_time(timed, costs, most), work, options.jobs, output) if timed else []
    given = sys.argv[1:] if arguments is None else arguments
    words = [pathlib.Path(word).name if pathlib.Path(word).is_absolute() else word for word in given]
    command = "python -m dreamlit.toybox.evidence " + " ".join(words)
    write_report(results, of_equal_time, output, work, command, facts())


if __name__ == "__main__":
    main()
