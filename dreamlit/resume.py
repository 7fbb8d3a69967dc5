"""Which checkpoint to resume from, and what may differ between it and what the user asks for now."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pathlib
import sys
from typing import Any

import yaml

from dreamlit.errors import CheckpointError, Faults, ModelError
from dreamlit.families import Family, fingerprints
from dreamlit.trainer import read_checkpoint

MAY_CHANGE = (
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.max_time",
    "trainer.min_",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.log_every_n_steps",
    "trainer.enable_",
    "trainer.profiler",
    "trainer.default_root_dir",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.accelerator",
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.limit_",
    "trainer.num_sanity_val_steps",
    "trainer.detect_anomaly",
    "trainer.barebones",
    "checkpoint.",
    "model.optimizer.init_args.lr",
    "model.max_skipped_steps",
    "data.cache_dir",
    "data.num_workers",
    "data.encode_batch_size",
    "data.eval_timesteps",
    "data.eval_seeds",
    "data.prompts",
    "data.datasets",  # what matters of it is in the manifest's digest, which is compared when the data is read
    "extends",
    "config",
    "ckpt_path",
    "allow_changes",
)
"""Keys that a resumed run may change: more steps, the learning rate, logging, callbacks, where and on what it runs."""


CALLBACKS_THAT_TRAIN = ("ScheduledSampling", "PriorControl")
"""Callbacks whose options decide what is learned: to add, change or leave out one makes another run of it."""
OPTIONS_THAT_AVERAGE = ("EMA.decay", "EMA.update_every_n_steps")
"""Options that decide what the average of a run is, where it has one before and after. `EMA` itself compares widths."""
BESIDE = {
    "vae": "autoencoder",
    "text_encoders": "text encoders, their tokenizers or their precision",
    "schedule": "scheduler configuration",
}
"""What decides beside the denoiser what a run is trained toward, in words for people."""
NEVER_CHANGE = ("model.optimizer.class_path", "model.adapter.class_path")


def find_checkpoint(asked: str | None, root: pathlib.Path) -> str | None:
    """The path that `last`, `best`, `auto` or a path stands for.

    `last` is the newest checkpoint of the run in `root`, and it is an error when there is none; `auto` is the same but
    starts a new run when there is none.

    Raises:
        CheckpointError: when there is no such checkpoint.
    """
    if asked is None:
        return None
    folder = root / "checkpoints"
    if asked in ("last", "auto"):
        newest = newest_readable(folder)
        if newest is None and asked == "last":
            raise CheckpointError(
                f"--ckpt_path last: {folder} holds no complete checkpoint; leave it out to start a run"
            )
        return str(newest) if newest else None
    path = folder / "best.ckpt" if asked == "best" else pathlib.Path(asked)
    if not path.is_file():
        hint = "; set checkpoint.monitor to a metric to keep one" if asked == "best" else ". Or use last, best or auto"
        raise CheckpointError(f"there is no checkpoint {path}{hint}")
    return str(path)


def newest_readable(folder: pathlib.Path) -> pathlib.Path | None:
    """The newest checkpoint that can be read; a damaged one is passed over with a line."""
    from dreamlit.callbacks.checkpoint import step_checkpoints

    for path in reversed(step_checkpoints(folder)):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            print(f"passed over: {error}", file=sys.stderr)
            continue
        return path
    return None


def refuse_to_branch(path: pathlib.Path, step: int, root: pathlib.Path) -> None:
    """A run does not go on from `step` in a folder that holds later ones: both would end under the same names.

    Later checkpoints that cannot be read are in nobody's way.
    """
    from dreamlit.callbacks.checkpoint import step_checkpoints, step_of

    folder = root / "checkpoints"
    if not any(step_of(other) > step for other in step_checkpoints(folder)):
        return
    newest = newest_readable(folder)
    if newest is not None and step_of(newest) > step:
        raise CheckpointError(
            f"{path} is of step {step}, but {root} has gone on to {newest.name}: the two would be mixed up and in part "
            f"overwritten. Resume with --ckpt_path last, move the later checkpoints away, or give the branch its own "
            f"folder: --ckpt_path {path} --trainer.default_root_dir ..."
        )


def refuse_other_base(checkpoint: dict[str, Any], fingerprint: str, allowed: list[str]) -> None:
    """An adapter trained on one base model is not resumed on another unless `base` is among `allowed`."""
    saved = checkpoint["dreamlit"]["base_fingerprint"]
    if saved != fingerprint and "base" not in allowed:
        raise CheckpointError(
            f"the checkpoint was trained on another base model (fingerprint {saved[:12]}, here {fingerprint[:12]}). "
            "Give model.family.path of that model, or pass --allow_changes+=base"
        )


def beside(family: Family) -> dict[str, str]:
    """Hashes of the parts in `BESIDE`, made from a model's files; the caches have asked for the large ones anyway."""
    parts = {part: family.fingerprint(part) for part in ("vae", "text_encoders")}
    with contextlib.suppress(ModelError):  # a family of one's own need not have diffusers' layout
        parts["schedule"] = fingerprints.of_schedules(family)
    return parts


def refuse_other_targets(checkpoint: dict[str, Any], parts: dict[str, str], allowed: list[str]) -> None:
    """A run is not resumed toward other latents, embeddings or noise unless `base` is among `allowed`.

    Args:
        checkpoint: The checkpoint; an older one does not say, and is resumed.
        parts: `beside` of the model that is here.
        allowed: What the user lets differ.
    """
    saved = checkpoint["dreamlit"].get("beside", {})
    other = [words for part, words in BESIDE.items() if saved.get(part) not in (None, parts.get(part))]
    if other and "base" not in allowed:
        raise CheckpointError(
            f"these parts of the model have changed since the checkpoint: {'; '.join(other)}. The run would go on "
            "toward other targets. Put the model's files back (or name their revision), start a new run with "
            "model.init_from, or pass --allow_changes+=base"
        )


def refuse_other_data(checkpoint: dict[str, Any], digest: str, allowed: list[str]) -> None:
    """A run is not resumed on changed photos, captions or dataset entries unless `data` is among `allowed`."""
    saved = checkpoint["dreamlit"].get("manifest_digest")
    if saved != digest and "data" not in allowed:
        raise CheckpointError(
            "the datasets are not those of the checkpoint: a photo, mask, caption, dataset entry or data.hold_out has "
            "changed. Put them back, start a new run with model.init_from, or pass --allow_changes+=data"
        )


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay whole."""
    if not isinstance(config, dict) or not config:
        return {prefix.rstrip("."): config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}{key}."))
    return flat


def callback_options(config: dict[str, Any]) -> dict[str, Any]:
    """The options of the callbacks, as dotted keys: {"ScheduledSampling.probability": 0.5}."""
    found: dict[str, Any] = {}
    for callback in config.get("trainer", {}).get("callbacks") or []:
        if isinstance(callback, dict):
            name = str(callback.get("class_path", "")).rpartition(".")[2]
            found.update(flatten(callback.get("init_args") or {}, f"{name}."))
    return found


def newer_defaults(config: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """Options at their default, of callbacks that `then` (`callback_options`) has as well, but without these options:
    a newer version brought them, and they change nothing."""
    found: dict[str, Any] = {}
    here = {key.partition(".")[0] for key in then}
    for callback in config.get("trainer", {}).get("callbacks") or []:
        path = str(callback.get("class_path", "")) if isinstance(callback, dict) else ""
        module, _, name = path.rpartition(".")
        if name not in here or not module:
            continue
        kind = getattr(importlib.import_module(module), name, None)
        known = inspect.signature(kind).parameters if kind else {}
        for option, value in (callback.get("init_args") or {}).items():
            key = f"{name}.{option}"
            if key not in then and option in known and known[option].default == value:
                found[key] = value
    return found


def decisive(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Of the options of one run's callbacks those that must be the same in the `other` run."""
    averages = OPTIONS_THAT_AVERAGE if any(key.partition(".")[0] == "EMA" for key in other) else ()
    return {k: value for k, value in mine.items() if k.partition(".")[0] in CALLBACKS_THAT_TRAIN or k in averages}


def compare_configs(path: pathlib.Path, config: dict[str, Any], allowed: list[str]) -> list[str]:
    """Shows how the configuration differs from the checkpoint's and refuses what would make another run of it.

    Args:
        path: The checkpoint.
        config: The resolved configuration of now.
        allowed: Further prefixes of keys that the user lets differ.

    Returns:
        One line for each difference.

    Raises:
        CheckpointError: when a key differs that must not, all in one report, or the run has gone on from there.
    """
    checkpoint = read_checkpoint(path)
    refuse_to_branch(path, checkpoint["global_step"], pathlib.Path(config["trainer"]["default_root_dir"]))
    saved = yaml.safe_load(checkpoint["dreamlit"]["config"])
    then, today = callback_options(saved), callback_options(config)
    then |= newer_defaults(config, then)
    before, now = {**flatten(saved), **decisive(then, today)}, {**flatten(config), **decisive(today, then)}
    refused = Faults(f"{path} was made by another configuration", CheckpointError)
    lines = []
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key):
            continue
        line = f"{key}: {before.get(key)!r} in the checkpoint, {now.get(key)!r} now"
        lines.append(line)
        if key.startswith(NEVER_CHANGE):
            refused.add(f"{line} (its saved state fits no other; start a new run with model.init_from)")
        elif not key.startswith((*MAY_CHANGE, *allowed)):
            refused.add(f"{line} (to resume all the same: --allow_changes+={key})")
    refused.raise_if_any()
    for line in lines:
        if not line.startswith(("ckpt_path", "config:", "extends", "allow_changes", "data.datasets")):
            print(f"resume: {line}", file=sys.stderr)
    return lines
