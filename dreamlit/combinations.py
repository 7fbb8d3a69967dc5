"""Options that are right alone and do not work together: refused at start, all in one report."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from dreamlit import formats
from dreamlit.callbacks.checkpoint import RunCheckpoint
from dreamlit.class_sets import class_image_faults
from dreamlit.datamodules.dreambooth import DreamBoothData
from dreamlit.datamodules.plan import slice_size
from dreamlit.errors import CheckpointError, CombinationError, Faults, ModelError
from dreamlit.export import refuse_to_replace, written_formats
from dreamlit.families import Family
from dreamlit.families.files import read_json
from dreamlit.families.loading import component_class
from dreamlit.module import DreamBooth
from dreamlit.precision_checks import precision_faults
from dreamlit.types import Role

NO_EVALUATION = "there is neither data.hold_out nor a dataset with dataset_type: eval, so no evaluation takes place"
SHARDING = ("fsdp", "deepspeed", "modelparallel", "model_parallel")


def check_combinations(model: DreamBooth, data: DreamBoothData, trainer: pl.Trainer, training: bool = True) -> None:
    """Checks what the parts cannot know of each other, before anything is loaded.

    Raises:
        CombinationError: with a line for each fault.
    """
    faults = Faults("these options do not work together", CombinationError)
    lines = (*precision_faults(model, trainer), *trainer_faults(trainer, training), *data_faults(model, data))
    lines += *class_image_faults(model, data), *evaluation_faults(trainer, data), *best_checkpoint_faults(trainer, data)
    for line in lines:
        faults.add(line)
    try:
        formats_here = written_formats(model.adapter, model.family)
        if training and "folder" in formats_here:
            root = pathlib.Path(trainer.default_root_dir).resolve()
            for average in ("", "-ema"):
                refuse_to_replace(root / f"{root.name}{average}")
    except (CombinationError, CheckpointError) as error:
        faults.add(str(error))
    try:
        slice_size(data.batch_size, trainer.world_size)
    except CombinationError as error:
        faults.add(str(error))
    faults.raise_if_any()


def trainer_faults(trainer: pl.Trainer, training: bool) -> list[str]:
    faults = []
    timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        faults.append(sharding_fault(type(trainer.strategy).__name__))
    if getattr(trainer, "overfit_batches", 0):
        faults.append("trainer.overfit_batches replaces the plan; to train on few images, list few images")
    if getattr(trainer, "reload_dataloaders_every_n_epochs", 0):
        faults.append("trainer.reload_dataloaders_every_n_epochs would restart the plan at every reload; leave it out")
    if training and trainer.limit_train_batches == 0:
        faults.append("trainer.limit_train_batches is 0: nothing would be trained; use dreamlit prepare or validate")
    if training and isinstance(share := trainer.limit_train_batches, float) and 0 < share < 1:
        cut = "a share would cut optimizer steps short; give a number of batches"
        faults.append(f"trainer.limit_train_batches is {share}: {cut}")
    if not hasattr(trainer, "val_check_interval"):  # Lightning leaves it out where it was given a time
        faults.append("trainer.val_check_interval is a time: give a number of batches, or a share of an epoch")
    if training and trainer.max_steps == -1 and trainer.max_epochs is None and not timed:
        faults.append("nothing says how long to train: set trainer.max_steps (or max_epochs, or max_time)")
    return faults


def refuse_sharding(strategy: Any) -> None:
    """Refuses a strategy that shards parameters, before the Trainer asks for the hardware that it needs."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if name.lower().startswith(SHARDING):
        raise CombinationError(sharding_fault(name))


def refuse_without_checkpoints(trainer_options: Any) -> None:
    """A run always writes checkpoints and logs, so Lightning's switches against them cannot be honoured."""
    if trainer_options.get("barebones"):
        raise CombinationError("trainer.barebones turns off checkpoints and logs, which a run must have; leave it out")
    if trainer_options.get("enable_checkpointing") is False:
        raise CombinationError(
            "trainer.enable_checkpointing is false, but a run always keeps its last checkpoint; set "
            "checkpoint.every_n_steps to a large number and checkpoint.keep to 1"
        )


def sharding_fault(name: str) -> str:
    return (
        f"trainer.strategy is {name!r}; adapters are replicated, so use 'auto' or 'ddp' "
        "(sharded strategies would save a part of the adapter as if it were the whole)"
    )


def check_model(model: DreamBooth, build: bool = True) -> None:
    """Looks for faults of the model's files, the adapter's options and `init_from`; no weights are loaded.

    Args:
        model: The module.
        build: Also build the denoiser without its weights and ask the adapter whether it fits; this imports diffusers
            and asks the hub where the model is a hub id.

    Raises:
        ModelError: when the model's files are missing, damaged or another family's.
        DreamlitError: when the adapter matches no layer, or `init_from` cannot be read.
    """
    family: Any = model.family
    if build or not family.files.is_hub:
        family.check()
    if model.init_from:
        formats.read_header(model.init_from)
    # A family that loads in a way of its own need not have diffusers' layout; its adapter is checked when it attaches.
    if build and type(family)._load is Family._load:
        model.adapter.check(bare_denoiser(family))


def bare_denoiser(family: Family) -> Any:
    """The family's denoiser on the meta device: every layer, no weights."""
    import torch

    name = family.denoiser_name
    kind = component_class(family.files.index, name)
    with torch.device("meta"):
        return kind.from_config(read_json(family.files.configuration(f"{name}/config.json")))


def data_faults(model: DreamBooth, data: DreamBoothData) -> list[str]:
    faults = []
    drawn = data.class_images is not None
    with contextlib.suppress(ModelError):  # of a model that cannot be read; `check_model` follows and says it whole
        multiple = model.family.drawn_multiple if drawn else model.family.side_multiple
        if data.alignment % multiple:
            needed = f"{'to draw data.class_images ' if drawn else ''}this model needs a multiple of {multiple} pixels"
            faults.append(f"data.aspect_bucket_alignment is {data.alignment}; {needed}")
    objective: Any = model.objective
    of_class_ids = [spec.id for spec in data.specs if getattr(spec, "role", None) == Role.REGULARISATION]
    regularisation = drawn or bool(of_class_ids)
    masked = any(
        getattr(spec, "conditioning_data", None) or getattr(spec, "alpha", None) == "mask" for spec in data.specs
    )
    given = [key for key in ("class_prompt", "class_words") if any(getattr(spec, key, ()) for spec in data.specs)]
    prompted = bool(given)
    if prompted and objective.prior_loss_weight == 0:
        faults.append(f"{given[0]} has no effect with model.objective.prior_loss_weight: 0; remove one of them")
    if of_class_ids and objective.prior_loss_weight == 0:
        faults.append(
            f"with model.objective.prior_loss_weight: 0 nothing is learned from {', '.join(map(repr, of_class_ids))} "
            "(is_regularisation_data), but its images would take their share of every batch; remove one of them"
        )
    of_class = "data.class_images, or a dataset with is_regularisation_data: true"
    for field, wanted, present, what in (
        ("prior_loss_weight", 1.0, regularisation or prompted, f"{of_class}, class_prompt or class_words"),
        ("prior_target", "base_model", regularisation, of_class),
        ("mask_normalisation", "area", masked, "a dataset with masks (conditioning_data) or alpha: mask"),
        ("unmasked_weight", 0.0, masked, "a dataset with masks (conditioning_data) or alpha: mask"),
        ("unmasked_target", "ignore", masked, "a dataset with masks (conditioning_data) or alpha: mask"),
    ):
        value = getattr(objective, field)
        if value != wanted and not present:
            faults.append(f"model.objective.{field} is {value!r} and would do nothing: it needs {what}")
    return faults


def evaluation_faults(trainer: pl.Trainer, data: DreamBoothData) -> list[str]:
    """Options about evaluations that would never take place, or that contradict each other."""
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    if data.evaluates:
        told = [line for callback in callbacks for line in getattr(callback, "evaluation_faults", no_faults)(trainer)]
        averaged = any("validation" in getattr(callback, "use_for", ()) for callback in callbacks)
        for callback in callbacks:
            watches = str(getattr(callback, "monitor", None)).startswith("loss/val-ema")
            if watches and not averaged and not hasattr(callback, "evaluation_faults"):
                told.append(
                    f"{type(callback).__name__} monitors {callback.monitor!r}, which needs an EMA for validation"
                )
        return told
    settings = (
        ("trainer.val_check_interval", getattr(trainer, "val_check_interval", None), (None, 1.0)),
        ("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, (None, 1)),
        ("data.eval_timesteps", data.eval_timesteps, (8,)),
        ("data.eval_seeds", data.eval_seeds, (1,)),
    )
    faults = [
        f"{name} is {value} and would do nothing: {NO_EVALUATION}"
        for name, value, usual in settings
        if value not in usual
    ]
    for callback in callbacks:
        if str(monitor := getattr(callback, "monitor", None)).startswith("loss/val"):
            faults.append(f"{type(callback).__name__} monitors {monitor!r}, which is never logged: {NO_EVALUATION}")
    return faults


def best_checkpoint_faults(trainer: pl.Trainer, data: DreamBoothData) -> Iterator[str]:
    """Options of a `best.ckpt` that would never be saved: that happens only at the end of an evaluation."""
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    for keeper in callbacks:
        if not isinstance(keeper, RunCheckpoint):
            continue
        if keeper.monitor is None and keeper.mode != "min":
            yield f"checkpoint.mode is {keeper.mode!r} and would do nothing: it needs checkpoint.monitor"
        never = f"checkpoint.monitor is {keeper.monitor!r}, but best.ckpt would never be saved"
        if keeper.monitor and data.evaluates and trainer.limit_val_batches == 0:
            yield f"{never}: trainer.limit_val_batches is 0, so no evaluation takes place"
        # `evaluation_faults` names a loss of the evaluation, whoever monitors it
        if keeper.monitor and not data.evaluates and not keeper.monitor.startswith("loss/val"):
            yield f"{never}: {NO_EVALUATION}"


def no_faults(trainer: pl.Trainer) -> list[str]:
    return []
