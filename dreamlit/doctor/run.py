"""A configuration against this machine: its faults, its memory by phases, and what it will write."""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import Any

from dreamlit.callbacks.checkpoint import RunCheckpoint
from dreamlit.callbacks.ema import EMA
from dreamlit.callbacks.preview import ValidationPreview
from dreamlit.callbacks.report import RunReport
from dreamlit.datamodules.cache import all_samples, captions_of
from dreamlit.datamodules.plan_report import PlanReport
from dreamlit.doctor.examined import NOT_HERE, Examined
from dreamlit.doctor.findings import Findings, in_units
from dreamlit.doctor.machine import MIN_SHARED_MEMORY, offline, ram, shared_memory
from dreamlit.errors import DreamlitError
from dreamlit.memory.estimate import Estimate, Estimator
from dreamlit.memory.walk import Work

ENTRY = 2048
"""Bytes around an entry of a cache: its header and its place in a tar file."""
TIGHT = 0.9
"""Share of a device's memory from which on an estimate is called tight: fragments and the driver take the rest."""


def examine_run(run: Examined, found: Findings, memory: int | None, estimator: Estimator) -> None:
    """Note everything of a run.

    Args:
        memory: Bytes of the device that the run is for; None for the one that it would run on here.
    """
    found.problems += run.faults
    if run.absent:
        found.notes.append(f"{run.absent}: its files were not checked, and there is no estimate of its memory")
        if offline():
            found.problems.append(f"{run.absent}, and HF_HUB_OFFLINE forbids to download it")
    loader_traps(run, found)
    if run.manifest is None or run.absent:
        if run.manifest is None:
            found.notes.append("no estimate of memory and disk: the datasets must be mended first")
        return
    found.notes += [f"datasets: {warning}" for warning in run.manifest.warnings]
    found.notes += [run.to_draw] if run.to_draw else []
    if not run.manifest.samples:
        return
    try:
        estimate = estimate_of(run, estimator)
    except (DreamlitError, NotImplementedError) as error:
        found.notes.append(f"no estimate of memory: {error}")
        return
    report_memory(estimate, work_of(run).device, found, memory)
    report_disk(run, estimate, found)


def estimate_of(run: Examined, estimator: Estimator) -> Estimate:
    """The memory of an examined run. Errors: `NotImplementedError` where the model's code cannot be walked through."""
    try:
        return estimator(run.model, work_of(run), ranks_of(run), averages_of(run, on_device=True))  # pyright: ignore
    except DreamlitError:
        raise
    except Exception as error:  # it asks for values, or calls what has no shapes
        cause = (str(error).strip() or "no message").splitlines()[0]
        raise NotImplementedError(
            f"this model's code cannot be walked through without its weights ({type(error).__name__}: {cause})"
        ) from error


def loader_traps(run: Examined, found: Findings) -> None:
    workers, room = run.datamodule.num_workers, shared_memory()  # pyright: ignore
    if workers and room is not None and room < MIN_SHARED_MEMORY:
        found.problems.append(
            f"data.num_workers is {workers}, and /dev/shm has only {in_units(room)} free, through which they hand over "
            "batches; set num_workers: 0, or give the container more (docker run --shm-size 2g)"
        )
    cores = os.cpu_count() or 1
    if workers > cores:
        found.notes.append(f"data.num_workers is {workers} on {cores} cores; more than the cores is no faster")
    entries = [spec.instance_data_dir for spec in run.datamodule.specs if getattr(spec, "instance_data_dir", None)]  # pyright: ignore
    for folder in dict.fromkeys(map(pathlib.Path, map(str, entries))):
        broken = [path for path in folder.glob("*") if path.is_symlink() and not path.exists()]
        if broken:
            found.problems.append(f"{folder}: {len(broken)} links lead nowhere, the first is {broken[0].name}")


def work_of(run: Examined) -> Work:
    """What one device of the run does at once."""
    data, trainer, model = run.datamodule, run.trainer, run.model
    assert run.manifest is not None
    sizes = [sample.geometry.target_size for sample in all_samples(run.manifest)]
    largest = max(sizes, key=lambda size: (size[0] * size[1], size))
    config = run._get(run.config_init, "trainer")
    gpu = config.get("accelerator") in ("gpu", "cuda")
    return Work(
        batch=max(1, data.batch_size // ranks_of(run)),  # pyright: ignore
        size=largest,
        caption=max(captions_of(run.manifest, data.seed), key=len),  # pyright: ignore
        encode_batch=data.encode_batch_size,  # pyright: ignore
        precision=str(trainer.precision),
        device="cuda" if gpu else trainer.strategy.root_device.type,  # pyright: ignore
        class_prompts=model.class_prompts,  # pyright: ignore
        drawn=tuple(drawn_by(trainer.callbacks, model.family)),  # pyright: ignore
        drawn_first=((data.class_images.batch_size, largest),) if run.to_draw else (),  # pyright: ignore
    )


def ranks_of(run: Examined) -> int:
    """Devices of the run, those that this machine lacks included."""
    if not any(line.startswith(NOT_HERE) for line in run.faults):
        return run.trainer.world_size
    config = run._get(run.config_init, "trainer")
    devices = config.get("devices")
    devices = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    return max(1, devices) * (config.get("num_nodes") or 1)


def drawn_by(callbacks: Any, family: Any) -> Any:
    """Yield (images at once, size) of all callbacks that draw."""
    for callback in callbacks:
        if isinstance(callback, ValidationPreview):
            for width, height in callback.sizes:
                yield callback.batch_size, own_size(family, height, width)
        elif isinstance(callback, RunReport):
            yield callback.batch_size, own_size(family, callback.size.get("height"), callback.size.get("width"))


def own_size(family: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """A size as asked for, or as the pipeline of the model takes it."""
    from dreamlit.families.files import read_json

    config = read_json(family.files.configuration(f"{family.denoiser_name}/config.json"))
    side = config.get("sample_size")
    usual = side * family.stride if isinstance(side, int) else 1024
    return height or usual, width or usual


def averages_of(run: Examined, on_device: bool = False) -> int:
    """Moving averages that the run keeps, one for each width; `on_device`: only those on the model's device."""
    callbacks: list[Any] = run.trainer.callbacks  # pyright: ignore
    kept = [c for c in callbacks if isinstance(c, EMA) and (c.device == "model" or not on_device)]
    return sum(max(1, len(callback.widths)) for callback in kept)


def report_memory(estimate: Estimate, device: str, found: Findings, memory: int | None) -> None:
    """The phases, and whether the largest fits."""
    section = "memory of the run, by phases (estimated; the largest counts)"
    for phase in estimate.phases:
        parts = ", ".join(f"{name} {in_units(size)}" for name, size in phase.parts if size)
        found.fact(section, phase.name, f"{in_units(phase.total):>8}: {parts}")
    room, where = (memory, "the memory asked for") if memory else room_on(device)
    peak = estimate.peak
    if room is None:
        found.notes.append(f"the run needs about {in_units(peak.total)} on its GPU, and there is none here to compare")
        return
    found.fact(section, "the largest", f"{in_units(peak.total):>8} of {in_units(room)} ({where}): {peak.name}")
    advice = "lower data.batch_size or the resolution, set gradient_checkpointing or a base_model_precision"
    if peak.name.startswith("previews"):
        advice = "give the callbacks that draw a smaller size or batch_size"
    if peak.total > room:
        found.problems.append(
            f"{peak.name} needs about {in_units(peak.total)}, and {where} is {in_units(room)}; {advice}"
        )
    elif peak.total > TIGHT * room:
        found.notes.append(
            f"{peak.name} needs about {in_units(peak.total)} of {in_units(room)}, which is tight; {advice}"
        )
    if device != "cpu" and estimate.host > ram()[1]:
        found.problems.append(
            f"the largest part passes through RAM on its way: {in_units(estimate.host)}, and {in_units(ram()[1])} "
            "is free"
        )


def room_on(device: str) -> tuple[int | None, str]:
    """Bytes of the device, and how to call it."""
    import torch

    if device == "cuda":
        count = torch.cuda.device_count()
        room = min((torch.cuda.mem_get_info(number)[1] for number in range(count)), default=None)
        return room, "the GPU's memory"
    return ram()[1], "free RAM"


def report_disk(run: Examined, estimate: Estimate, found: Findings) -> None:
    """What the caches and checkpoints will take, and whether there is room; what is cached already is counted too."""
    assert run.manifest is not None
    data, root = run.datamodule, pathlib.Path(run.trainer.default_root_dir)
    stride, channels = run.model.family.stride, run.model.family.latent_channels  # pyright: ignore
    samples = all_samples(run.manifest)
    cells = sum(s.geometry.target_size[0] * s.geometry.target_size[1] // stride**2 for s in samples)
    masks = sum(s.mask is not None for s in samples)
    captions = captions_of(run.manifest, data.seed)  # pyright: ignore
    cache = cells * 4 * (channels + bool(masks)) + len(captions) * estimate.caption
    cache += ENTRY * (len(samples) + masks + len(captions))
    report_room(f"cache of {len(samples)} images, {len(captions)} captions", cache, data.cache_dir, found)  # pyright: ignore
    kept = checkpoints_of(run)
    size = estimate.checkpoint + estimate.trained * averages_of(run)
    report_room(f"{kept} checkpoints", kept * size, root, found)


def checkpoints_of(run: Examined) -> int:
    """How many checkpoints the run will have at its end."""
    data, trainer = run.datamodule, run.trainer
    assert run.manifest is not None
    plan = data.plan(run.model.family.stride)  # pyright: ignore
    limits: Any = {"max_steps": trainer.max_steps, "max_epochs": trainer.max_epochs}
    steps = PlanReport(run.manifest, plan, trainer.accumulate_grad_batches, **limits).steps
    saves = next(c for c in trainer.callbacks if isinstance(c, RunCheckpoint))  # pyright: ignore
    kept = -(-steps // saves.every_n_steps)
    return (min(kept, saves.keep) if saves.keep else kept) + bool(saves.monitor)


def report_room(name: str, size: int, folder: pathlib.Path, found: Findings) -> None:
    """Whether a folder, which need not be there yet, can take so many bytes."""
    free = shutil.disk_usage(existing(folder)).free
    found.fact("disk", name, f"{in_units(size):>8} in {folder} ({in_units(free)} free)")
    if size > free:
        found.problems.append(f"{name} needs {in_units(size)} in {folder}, where {in_units(free)} is free")
    elif not os.access(existing(folder), os.W_OK):
        found.problems.append(f"{folder} cannot be written to")


def existing(folder: pathlib.Path) -> pathlib.Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())
