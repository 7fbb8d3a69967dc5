"""Prompts of a run's images, encoded before its denoiser is loaded: large text encoders and a large denoiser are then
never on the device at once, and no preview loads the encoders again."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamlit.families.base import Family


class Asked(Exception):
    """A call of the pipeline in `asking` has encoded its prompts: the denoiser would be next."""


@contextlib.contextmanager
def asking(family: Family, device: Any) -> Iterator[Any]:
    """A pipeline without a denoiser, whose text encoders are on `device`: what they say to the prompts of a call is
    remembered by the family, and the call ends with `Asked`."""
    from dreamlit.families import assembly, loading

    twin = family.fresh()
    family.load("text_encoders", device=device)
    for name in (name for pair in family.text_parts() for name in pair):
        twin.stand_in(name, family.part(name))
    for name in (*twin.components("vae"), twin.denoiser_name):
        twin.stand_in(name, loading.bare(twin, name))
    denoiser: Any = twin.denoiser
    denoiser.register_forward_pre_hook(_stop)
    made = assembly.assembled(twin, denoiser)
    _wrap(made, functools.partial(_note, family.remembered))
    yield made


def remembering(pipeline: Any, family: Family, device: Any) -> Any:
    """Lets a pipeline without text encoders take from memory what was asked ahead, and load them for anything else."""
    _wrap(pipeline, functools.partial(_recall, family, pipeline, device))
    return pipeline


def _stop(*_: Any) -> None:
    raise Asked


def _wrap(pipeline: Any, wrapper: Callable[..., Any]) -> None:
    """Passes calls of `encode_prompt`, which every pipeline has, to `wrapper(encode_prompt, question, given)`."""
    own = pipeline.encode_prompt

    @functools.wraps(own)
    def encode_prompt(*values: Any, **named: Any) -> Any:
        question = repr((values, sorted((name, value) for name, value in named.items() if name != "device")))
        return wrapper(functools.partial(own, *values, **named), question)

    pipeline.encode_prompt = encode_prompt


def _note(remembered: dict[str, Any], encode: Callable[[], Any], question: str) -> Any:
    if question not in remembered:
        remembered[question] = _moved(encode(), "cpu")
    return remembered[question]


def _recall(family: Family, pipeline: Any, device: Any, encode: Callable[[], Any], question: str) -> Any:
    if question in family.remembered:
        return _moved(family.remembered[question], device)
    family.load("text_encoders", device=device)
    for name, _ in family.text_parts():
        setattr(pipeline, name, family.part(name))
    return encode()


def _moved(said: Any, device: Any) -> Any:
    """A copy of tensors in tuples and lists: a pipeline may write into them."""
    from torch.utils import _pytree as pytree

    return pytree.tree_map(lambda value: value.to(device, copy=True) if hasattr(value, "to") else value, said)
