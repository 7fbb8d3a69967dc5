"""Precisions that do not fit the trainer, the adapter or the machine: found before a model is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch

from dreamlit.adapters import Full
from dreamlit.errors import CombinationError, Faults, ModelError, nearest
from dreamlit.module import DreamBooth
from dreamlit.quantisation import LEVELS, NO_CHANGE, refusal

PACKED = ("int2-quanto", "int4-quanto")
"""Levels whose layers take no inputs that were made in torch's inference mode."""


def precision_faults(model: DreamBooth, trainer: pl.Trainer) -> list[str]:
    """Options that contradict each other on any machine."""
    faults = []
    if str(trainer.precision) not in ("32-true", "bf16-mixed", "16-mixed"):
        faults.append(
            f"trainer.precision is {trainer.precision!r}, which would make the trained weights {trainer.precision}; "
            "dreamlit keeps them in float32. Use 32-true, bf16-mixed or 16-mixed, with model.family.dtype for the base"
        )
    if model.family.dtype != "float32" and str(trainer.precision) == "32-true":
        faults.append(
            f"model.family.dtype is {model.family.dtype!r} with trainer.precision 32-true; use bf16-mixed or 16-mixed"
        )
    if isinstance(model.adapter, Full) and model.family.dtype != "float32":
        faults.append(
            f"Full trains the model's own weights, so model.family.dtype must be float32, not {model.family.dtype}"
        )
    wanted = {"bf16-mixed": "bfloat16", "16-mixed": "float16", "32-true": "float32"}.get(str(trainer.precision))
    base = model.base_model_precision
    if base != NO_CHANGE and wanted and model.family.dtype != wanted:
        faults.append(
            f"model.base_model_precision is {base!r} with model.family.dtype {model.family.dtype!r}: its layers "
            f"compute in one precision, so with trainer.precision {trainer.precision} the dtype must be {wanted}"
        )
    if trainer.validate_loop.inference_mode and any(level in PACKED for level in asked_for(model).values()):
        faults.append(f"trainer.inference_mode does not work with {' and '.join(PACKED)}; leave it out")
    return [*faults, *stored_faults(model)]


def asked_for(model: DreamBooth) -> dict[str, str]:
    """Option -> level, where one is asked for."""
    levels = {"base_model_precision": model.base_model_precision}
    levels |= {f"text_encoder_{n}_precision": level for n, level in enumerate(model.text_encoder_precisions, start=1)}
    return {f"model.{option}": level for option, level in levels.items() if level != NO_CHANGE}


def stored_faults(model: DreamBooth) -> Iterator[str]:
    """Yield what forbids a level whatever the machine."""
    asked = asked_for(model)
    for option, level in asked.items():
        if level not in LEVELS:
            yield f"{option} is {level!r}: {nearest(level, (NO_CHANGE, *LEVELS))}"
    base = asked.get("model.base_model_precision")
    if base and isinstance(model.adapter, Full):
        yield (
            f"model.base_model_precision is {base!r}, but Full trains the model's own weights, which in few bits "
            "cannot take small steps; use LoRA or LyCORIS, or no_change"
        )
    if base == "int8-bnb" and getattr(model.adapter, "use_dora", False):
        yield "model.adapter.use_dora: peft loses the scales of int8-bnb layers; use int8-quanto or int8-torchao"
    if base in LEVELS and model.family.compile and not LEVELS[base].compiles:
        able = ", ".join(name for name, level in LEVELS.items() if level.compiles)
        yield (
            f"model.family.compile is not known to compute the same with model.base_model_precision {base!r}; it does "
            f"with {able}. Take one of these, or leave compile out"
        )
    with contextlib.suppress(ModelError):  # of a model that cannot be read; `check_model` says it whole
        names, parts = model.family.text_encoder_names, model.family.text_parts()
        for number in range(1, len(model.text_encoder_precisions) + 1):
            option = f"model.text_encoder_{number}_precision"
            if option in asked and (number > len(names) or names[number - 1] not in parts):
                yield f"{option} is {asked[option]!r} and would do nothing: this model has no such text encoder"


def check_levels(model: DreamBooth, trainer: pl.Trainer) -> None:
    """Try the levels that are asked for on the device of the run, where it is known.

    Raises:
        CombinationError: with the nearest level that works, for each that does not.
    """
    asked = asked_for(model)
    if not asked:
        return
    device: Any = trainer.strategy.root_device
    faults = Faults("this machine cannot store weights like that", CombinationError)
    for option, level in asked.items():
        if why := level_fault(level, device):
            faults.add(f"{option}: {why}")
    faults.raise_if_any()


def level_fault(level: str, device: torch.device) -> str | None:
    """Why a level does not work on a device, by the table and by trying it, with the nearest level that does."""
    from dreamlit.quantisation.probe import probe

    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if why := refusal(level, device.type, capability):
        return why
    fault = probe(level, device, size=256).fault
    if fault is None:
        return None
    others = [name for name in LEVELS[level].instead if refusal(name, device.type, capability) is None]
    working = next((name for name in others if probe(name, device, size=256).fault is None), NO_CHANGE)
    return f"{level} does not work here ({fault}); use {working}"
