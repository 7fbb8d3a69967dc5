"""Walks through what a run does on its device, without memory: encoding, one training step, drawing an image."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils.checkpoint import checkpoint

from dreamlit.families import vae
from dreamlit.families.loading import bare, load_config_object
from dreamlit.memory.live import Kernels, LiveBytes, emptied, without_memory
from dreamlit.memory.weights import few_bits, precision_of, saving
from dreamlit.quantisation import NO_CHANGE
from dreamlit.types import Batch

if TYPE_CHECKING:
    from dreamlit.adapters import Adapter
    from dreamlit.families import Family

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device has to do at once; sizes in pixels as (height, width)."""

    batch: int
    size: tuple[int, int]
    """Of the largest training image."""
    caption: str = "a photo"
    """The longest one."""
    encode_batch: int = 1
    precision: str = "32-true"
    """The trainer's."""
    device: str = "cpu"
    """Type of the device."""
    class_prompts: bool = False
    """Whether each sample has a second forward, by its class prompt."""
    drawn: tuple[tuple[int, tuple[int, int]], ...] = ()
    """Images drawn at once during the run, and their size."""
    drawn_first: tuple[tuple[int, tuple[int, int]], ...] = ()
    """The same before the run, by the base model: class images."""


@dataclasses.dataclass(frozen=True)
class Step:
    """Bytes of one training step."""

    base: int
    trained: int
    gradients: int
    state: int
    """Of the optimizer."""
    rest: int
    """What is alive beside them at the fullest moment: activations, and what the optimizer makes on the way."""
    drawing: int
    """The same while the denoiser draws."""
    drawing_first: int
    """The same while it draws before the run."""

    @property
    def lasting(self) -> int:
        return self.base + self.trained + self.gradients + self.state


def read_caption(family: Family, work: Work) -> tuple[dict[str, Tensor], int]:
    """Conditioning of one caption ([1, ...]; on the meta device where only its shape is known) and the bytes it takes
    beside the encoders' weights."""
    twin = family.fresh()
    for _, tokenizer in twin.text_parts():
        twin.stand_in(tokenizer, load_config_object(twin.files, tokenizer))
    names = twin.components("text_encoders")
    modules = {name: bare(twin, name) for name in names}
    with without_memory(work.device) as live:
        for name, module in modules.items():
            twin.stand_in(name, emptied(module, precision_of(twin, name)))
        weights = live.live
        with torch.no_grad():
            found = twin.encode_prompts([work.caption])
        shapes = {name: described(value) for name, value in found.items()}
        return shapes, live.peak - weights


def described(value: Tensor) -> Tensor:
    """The tensor itself where it has values, otherwise its shape on the meta device."""
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, FakeTensor) else value


def code_pixels(family: Family, work: Work) -> tuple[int, int, int]:
    """Bytes beside the autoencoder's weights while it encodes training images, and while it decodes those that are
    drawn during the run, and before it."""
    if not family.components("vae"):
        return 0, 0, 0
    module: Any = bare(family, "vae")
    with without_memory(work.device) as live, torch.no_grad():
        emptied(module, torch.float32)
        weights = live.live
        module.encode(vae.frames(module, torch.empty(work.encode_batch, 3, *work.size)))
        taken = [live.peak - weights]
        for drawn in (work.drawn, work.drawn_first):
            live.peak = live.live
            for count, (height, width) in drawn:
                latents = torch.empty(count, family.latent_channels, height // family.stride, width // family.stride)
                module.decode(vae.frames(module, latents))
            taken.append(live.peak - weights)
        return taken[0], taken[1], taken[2]


def train(
    family: Family,
    adapter: Adapter,
    optimizer: Callable[[Any], Any],
    work: Work,
    conditioning: dict[str, Tensor],
    level: str = NO_CHANGE,
) -> Step:
    """One optimizer step of an adapter on a family's denoiser, whose layers are stored in a level of few bits."""
    twin, adapter, dtype = family.fresh(), adapter.unattached(), precision_of(family, family.denoiser_name)
    denoiser: Any = bare(twin, twin.denoiser_name)
    packed = few_bits(denoiser, level)
    adapter.attach(denoiser, seed=0)
    own = adapter.modules_to_register().values()
    stored: dict[int, str] = {}
    if twin.gradient_checkpointing:  # what is computed anew in the backward pass, where no mode of functions holds
        again = functools.partial(Kernels, work.device, stored)
        options: dict[str, Any] = {"use_reentrant": False, "context_fn": lambda: (contextlib.nullcontext(), again())}
        denoiser.enable_gradient_checkpointing(functools.partial(checkpoint, **options))
    with without_memory(work.device, stored) as live:
        for module in (denoiser, *own):
            emptied(module, dtype)
        stored.update({id(layer.weight): level for layer in packed.values()})
        twin.stand_in(twin.denoiser_name, denoiser)
        saved = sum(saving(layer, dtype, level) for layer in packed.values())
        parameters = trained_of(denoiser, *own)
        trained, before = sum(p.nbytes for p in parameters), live.live
        kept, state = optimizer_state(optimizer, parameters, live)
        with autocast_of(work):
            loss_of(twin, work, conditioning).backward()
        step = live.peak
        gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
        lasting = before + gradients + state
        drawing, first = (draw(twin, work, drawn, conditioning, live) for drawn in (work.drawn, work.drawn_first))
        del kept
    return Step(before - trained - saved, trained, gradients, state, max(0, step - lasting), drawing, first)


def trained_of(*modules: nn.Module) -> list[nn.Parameter]:
    found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return list(found.values())


def optimizer_state(
    optimizer: Callable[[Any], Any], parameters: list[nn.Parameter], live: LiveBytes
) -> tuple[Any, int]:
    """What the optimizer keeps, and its bytes; its first step is taken, so that its way there counts in the peak.

    The gradients stay: in a run they are there during the next forward, and where batches are accumulated to its end.
    Where its code cannot be walked through, two moments in float32 are taken, as of Adam.
    """
    usual = 2 * sum(parameter.nbytes for parameter in parameters)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    before = live.live
    try:
        made = optimizer(parameters)
        made.step()
    except Exception:  # kernels of its own, values that it asks for
        return torch.empty(usual, dtype=torch.uint8), usual
    return made, live.live - before


def loss_of(family: Family, work: Work, conditioning: dict[str, Tensor]) -> Tensor:
    loss = family.predict(*asked(family, work.batch, work.size, conditioning)).square().mean()
    if work.class_prompts:
        loss = loss + family.predict(*asked(family, work.batch, work.size, conditioning)).square().mean()
    return loss


def draw(family: Family, work: Work, drawn: Any, conditioning: dict[str, Tensor], live: LiveBytes) -> int:
    """Bytes beside the weights while the denoiser draws (count, size) after (count, size)."""
    before = live.peak = live.live
    with torch.no_grad(), autocast_of(work):
        for count, size in drawn:
            rows = count * (2 if family.guided else 1)
            family.predict(*asked(family, rows, size, conditioning))
    return live.peak - before


def asked(family: Family, count: int, size: tuple[int, int], conditioning: dict[str, Tensor]) -> tuple[Any, ...]:
    """The arguments of `Family.predict`."""
    height, width = (side // family.stride for side in size)
    x = torch.empty(count, family.latent_channels, height, width)
    with unset_fake_temporarily():
        t, frame = torch.full((count,), 500.0), torch.tensor([[*size, 0, 0, *size]] * count)
        role = torch.zeros(count, dtype=torch.int64)
    texts = {n: torch.empty(v.shape, dtype=v.dtype) if v.is_meta else v for n, v in conditioning.items()}
    texts = {name: value.expand(count, *value.shape[1:]) for name, value in texts.items()}
    keys = [f"image#{number}" for number in range(count)]
    batch = Batch(x, x, x, t, texts, x[:, :1], role, role.float(), frame, keys)
    batch = family.conditioned(batch, 0)
    return batch.latents, batch.t, batch.conditioning, batch.frame


@contextlib.contextmanager
def autocast_of(work: Work) -> Iterator[None]:
    dtype = AUTOCAST.get(work.precision)
    with torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext():
        yield
