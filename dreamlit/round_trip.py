"""The proof of an export: the file, loaded as its consumer loads it, does what the live adapter does."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from dreamlit import formats
from dreamlit.adapter_files import load_adapter_file, read_factors
from dreamlit.adapters.base import Adapter, shortened
from dreamlit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn


class RoundTrip(NamedTuple):
    """Largest absolute differences of predictions: reloaded file to live adapter, and live adapter to base model."""

    difference: float
    effect: float


def check_round_trip(path: str | pathlib.Path, family: Any, adapter: Adapter) -> RoundTrip:
    """Load an exported file into a fresh model as its consumer does and compare predictions, in float32.

    The diffusers layout goes through the pipeline's `load_lora_weights`, the kohya / LyCORIS layout is merged by its
    readers' formulas, a folder is loaded by `from_pretrained`. Every key must be consumed. An adapter that was trained
    on weights in few bits is compared on the model as it was published, because nothing can be merged into those.

    Args:
        path: The exported file or folder.
        family: A `Family` whose denoiser carries the adapter; another one is loaded beside it.
        adapter: The live adapter.
    """
    import torch

    path, live = pathlib.Path(path), family.denoiser
    fresh = _published(family, "denoiser", "text_encoders")
    device = next(live.parameters()).device
    sample = _sample(fresh)

    def predict(denoiser: nn.Module) -> Tensor:
        denoiser.to(device)
        return fresh.predict(*(_moved(value, device) for value in sample), denoiser=denoiser).cpu()

    with torch.no_grad():
        base = predict(fresh.denoiser)
        reloaded = predict(_reloaded(path, fresh))
        if family.denoiser_name in family.precisions:
            live, adapter = _on_published(adapter, family)
        with _evaluating(live, *adapter.modules_to_register().values()), _in_float32(live):
            wanted = predict(live)
    return RoundTrip(float((reloaded - wanted).abs().max()), float((wanted - base).abs().max()))


def _published(family: Any, *parts: str) -> Any:
    """The family's model without few bits, its denoiser in float32."""
    fresh = family.fresh()
    fresh.precisions = {}
    fresh.load(*parts)
    fresh.denoiser.float()  # after loading in the family's precision: the base is the one that was trained on
    return fresh


def _on_published(adapter: Adapter, family: Any) -> tuple[nn.Module, Adapter]:
    """The adapter's weights on another denoiser, whose weights are as published."""
    denoiser, twin = _published(family, "denoiser").denoiser, adapter.unattached()
    twin.attach(denoiser, seed=0)
    twin.load_state({name: parameter.detach().cpu() for name, parameter in adapter.parameters().items()})
    return denoiser, twin


def _sample(family: Any) -> tuple[Any, ...]:
    """Two noisy latents at different timesteps with real conditioning, and their frame."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, family.latent_channels, 16, 16, generator=generator)
    side = 16 * family.stride
    frame = torch.tensor([[side, side, 0, 0, side, side]]).repeat(2, 1)
    return x_t, torch.tensor([100, 800]), family.encode_prompts(["a photo", "a drawing of a house"]), frame


def _moved(value: Any, device: Any) -> Any:
    return {key: item.to(device) for key, item in value.items()} if isinstance(value, dict) else value.to(device)


def _reloaded(path: pathlib.Path, fresh: Any) -> nn.Module:
    if path.is_dir():
        return type(fresh.denoiser).from_pretrained(path)
    tensors, metadata = load_adapter_file(path)
    if formats.layout_of(tensors) == "diffusers":
        load_with_diffusers(path, fresh.pipeline(denoiser=fresh.denoiser), fresh.denoiser, fresh.pipeline_prefix)
    else:
        from dreamlit.adapters.targets import layers
        from dreamlit.merging import merge

        merge(fresh.denoiser, read_factors(tensors, metadata, [layer.name for layer in layers(fresh.denoiser)]))
    return fresh.denoiser


def load_with_diffusers(path: pathlib.Path, pipeline: Any, denoiser: nn.Module, prefix: str) -> None:
    """`pipeline.load_lora_weights(path)`, and an error if a key was dropped, which diffusers only logs."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns that a file without text encoder keys has no text encoder keys
    try:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="check")
    finally:
        logging.set_verbosity(level)
    marks = {".check.weight": ".weight", ".check": ""}
    got = set()
    for name, _ in denoiser.named_parameters():
        if ".lora_" in name:
            name = name.replace("magnitude_vector.check.weight", "magnitude_vector")
            for mark, plain in marks.items():
                name = name.replace(mark, plain)
            got.add(f"{prefix}.{name}")
    wanted = formats.read_header(path).tensors.keys()
    if got != wanted:
        raise CheckpointError(f"diffusers did not take these keys of {path.name}: {shortened(sorted(wanted ^ got))}")


@contextlib.contextmanager
def _in_float32(module: nn.Module) -> Iterator[None]:
    """The module's floating parameters in float32, and afterwards the very tensors that were there."""
    before = [(p, p.data) for p in module.parameters() if p.is_floating_point()]
    try:
        for parameter, data in before:
            parameter.data = data.float()
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


@contextlib.contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """No dropout inside; every submodule's own mode is put back."""
    before = [(child, child.training) for module in modules for child in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for child, mode in before:
            child.training = mode
