"""For who looks at a model in the middle or at the end of a run, and must leave it as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

from dreamlit.errors import CombinationError


@contextlib.contextmanager
def untouched(module: Any) -> Iterator[None]:
    """Puts back the generators, the training modes and the loaded parts of a module, also after an exception."""
    import numpy
    import torch

    modes = {part: part.training for part in module.modules()}
    absent = [part for part in ("vae", "text_encoders") if not is_loaded(module.family, part)]
    states = random.getstate(), numpy.random.get_state()
    devices = [module.device] if module.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        for part, training in modes.items():
            part.training = training
        module.family.unload(*absent)


def is_loaded(family: Any, part: str) -> bool:
    try:
        return all(family.part(name) is not None for name in family.components(part))
    except RuntimeError:
        return False


@contextlib.contextmanager
def base_denoiser(module: Any) -> Iterator[Any]:
    """The denoiser as it was before the training, on the module's device.

    Where the run kept none (`Full` without regularisation, or one whose weights stream in from the CPU, which a
    pipeline would take for one that runs there) it is loaded again from the model's files.
    """
    with contextlib.ExitStack() as stack:
        try:
            base = stack.enter_context(module.adapter.disabled())
        except CombinationError:
            base = None
        if base is None or next(base.parameters()).device != module.device:
            twin = module.family.fresh()
            twin.load("denoiser", device=module.device)
            base = twin.denoiser
        yield base
