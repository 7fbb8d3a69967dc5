"""The machine: system, devices, memory, versions, precisions, and traps of its environment."""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
from importlib import metadata
from typing import Any

from dreamlit.doctor.findings import Findings, in_units

MIN_OPEN_FILES = 1024
MIN_SHARED_MEMORY = 256 * 1024**2
FLAGS_OF_TRUTH = {"1", "on", "yes", "true"}


def examine(found: Findings) -> None:
    """All that does not depend on a configuration."""
    system(found)
    devices(found)
    versions(found)
    precisions(found)
    traps(found)


def system(found: Findings) -> None:
    from dreamlit import __version__

    found.fact("machine", "dreamlit", __version__)
    found.fact("machine", "system", platform.platform())
    found.fact("machine", "Python", platform.python_version())
    if platform.system() not in ("Linux", "Darwin"):
        found.problems.append(f"{platform.system()} is not supported: the caches need POSIX reads (Linux, macOS)")
    total, free = ram()
    found.fact("machine", "CPU cores", usable_cores())
    found.fact("machine", "RAM", f"{in_units(total)}, {in_units(free)} free")


def devices(found: Findings) -> None:
    import torch

    cuda, hip = torch.version.cuda, getattr(torch.version, "hip", None)
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "without CUDA"
    found.fact("machine", "torch", f"{torch.__version__}, built {'for ' if cuda or hip else ''}{build}")
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        memory = f"{in_units(total)}, {in_units(free)} free"
        found.fact(
            "machine", f"GPU {number}", f"{facts.name}, {memory}, compute capability {facts.major}.{facts.minor}"
        )
        if free < 0.9 * total:
            found.notes.append(f"GPU {number} has {in_units(total - free)} in use already; nvidia-smi tells by whom")
    if not torch.cuda.device_count():
        here = torch.backends.mps.is_available()
        found.fact("machine", "GPU", "Apple's (MPS), which shares the RAM" if here else "none that torch can use")
        if pathlib.Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
            why = "this torch is built without CUDA" if not cuda else "its driver does not work with this torch's CUDA"
            found.problems.append(
                f"there is an NVIDIA card and torch cannot use it: {why}; install torch anew as pytorch.org says"
            )


def ram() -> tuple[int, int]:
    """Total and free bytes that this process may use: a container's limit counts."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = free = os.sysconf("SC_PHYS_PAGES") * page
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass  # macOS: what is free is not told so
    limit, used = (read_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit is not None and limit < total:
        total, free = limit, min(free, limit - (used or 0))
    return total, free


def read_number(path: str) -> int | None:
    try:
        return int(pathlib.Path(path).read_text())
    except (OSError, ValueError):
        return None


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(found: Findings) -> None:
    """The libraries of the run against the ranges that the package names."""
    try:
        required = metadata.requires("dreamlit") or []
    except metadata.PackageNotFoundError:
        found.notes.append("dreamlit is not installed (pip install -e .), so the versions it needs are not known here")
        return
    for text in required:
        examine_requirement(text, found)


def examine_requirement(text: str, found: Findings) -> None:
    from packaging.requirements import Requirement

    need = Requirement(text)
    if need.marker and not need.marker.evaluate({"extra": ""}):
        return
    wanted = str(need.specifier) or "any"
    try:
        here = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        found.problems.append(f"{need.name} is not installed; pip install '{text}'")
        return
    fits = need.specifier.contains(here, prereleases=True)
    found.fact("versions", need.name, f"{here:<14} {wanted}{'' if fits else '   <- outside'}")
    if not fits:
        found.problems.append(f"{need.name} is {here}; dreamlit is tested with {wanted}: pip install '{text}'")


def precisions(found: Findings) -> None:
    """Which precisions work, by the table and, where that is quick, by trying them."""
    import torch

    from dreamlit.precisions import chosen_device
    from dreamlit.quantisation import LEVELS, refusal

    device = chosen_device(None)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    found.fact("precisions", "bf16-mixed", "yes" if bfloat16 else "no: use 16-mixed")
    for name, level in LEVELS.items():
        why = refusal(name, device.type, capability) or missing(level, device)
        found.fact("precisions", name, f"no: {why.removeprefix(name + ' ')}" if why else "yes")


def missing(level: Any, device: Any) -> str | None:
    """Why a layer cannot be stored at a level; the compiled kernels of quanto are not built for that."""
    import torch

    from dreamlit.quantisation.layers import quantised

    if level.library == "optimum.quanto" and level.bits < 8:
        return None  # its kernels would be compiled now, which takes minutes; `dreamlit precisions` tries them
    try:
        quantised(torch.nn.Linear(128, 128, device=device, dtype=torch.bfloat16), level)
    except Exception as error:  # as in `dreamlit.quantisation.probe`
        return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    return None


def traps(found: Findings) -> None:
    """What goes wrong later, and elsewhere."""
    files = open_files()
    found.fact("environment", "open files at most", files)
    if files < MIN_OPEN_FILES:
        found.notes.append(f"only {files} files may be open at once; raise it by `ulimit -n 4096` for many workers")
    threads, cores = os.environ.get("OMP_NUM_THREADS", ""), usable_cores()
    found.fact("environment", "OMP_NUM_THREADS", threads or "not set")
    if threads.isdigit() and int(threads) > cores:
        found.notes.append(f"OMP_NUM_THREADS is {threads} on {cores} cores, which makes everything slower; unset it")
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        if (value := os.environ.get(name)) and not pathlib.Path(value).expanduser().is_dir():
            found.notes.append(f"{name} is {value}, which is no folder (yet): models will be downloaded to it anew")
    if offline():
        found.fact("environment", "HF_HUB_OFFLINE", "set: no model is downloaded")


def open_files() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in FLAGS_OF_TRUTH


def shared_memory() -> int | None:
    """Free bytes of /dev/shm, through which loader processes hand over batches; None where there is none."""
    return shutil.disk_usage("/dev/shm").free if pathlib.Path("/dev/shm").is_dir() else None
