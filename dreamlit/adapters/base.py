"""The interface of every adapter, and the checks they share."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from dreamlit.errors import CheckpointError, CombinationError, ConfigError, Faults

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor, nn


@dataclasses.dataclass
class Factors:
    """One module's share of an adapter file: its tensors by their LyCORIS part names, and what multiplies the product.

    `scale` is alpha / rank as a reader of the file applies it.
    """

    parts: dict[str, Tensor]
    scale: float


class Adapter(ABC):
    """Something small (or the whole denoiser) that is trained on a frozen base model.

    A constructor remembers and checks scalars. `attach` freezes the denoiser, adds float32 parameters and keeps a
    reference to the denoiser. The same object is attached once.
    """

    formats: ClassVar[tuple[str, ...]]
    """Formats that `dreamlit.export.export` writes for this adapter."""

    denoiser: nn.Module | None = None

    layer_names: tuple[str, ...] = ()
    """Names of the denoiser's linear and convolution layers before the adapter was attached (peft renames them)."""

    @abstractmethod
    def check(self, denoiser: nn.Module) -> None:
        """Raise if the options do not fit the denoiser, which may be on the meta device and is not changed."""

    @abstractmethod
    def attach(self, denoiser: nn.Module, seed: int, *, teacher_needed: bool = False) -> None:
        """Freeze `denoiser` and add trainable float32 parameters that depend on `seed` and module names alone.

        Args:
            denoiser: The base model; kept by reference.
            seed: Seed of the initialisation. Global generators are neither used nor moved.
            teacher_needed: Whether `disabled` will be asked for; only `Full` pays for it.
        """

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by stable names (`<module path>.<part>`): what a checkpoint holds."""

    @abstractmethod
    def disabled(self) -> AbstractContextManager[nn.Module]:
        """Yield a denoiser that is exactly the base model; afterwards everything is exactly as it was.

        May be nested. With gradient checkpointing the context must be left before the backward pass.
        """

    def default_formats(self) -> tuple[str, ...]:
        """The formats to write when none is asked for."""
        return self.formats

    def modules_to_register(self) -> dict[str, nn.Module]:
        """Modules that must be registered beside the denoiser so that device moves and DDP see them."""
        return {}

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """(module path, LyCORIS part name, tensor) of every exported tensor; `alpha` is the true one of that module.

        Tensors carry the multiplier, so that a reader at strength 1.0 gets the live adapter.
        """

    @abstractmethod
    def load_factors(self, factors: dict[str, Factors]) -> None:
        """Start from the weights of an adapter file: {module path: Factors}. The delta is kept whatever the alpha."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain facts for a file's metadata: algorithm, rank, alpha, targets ..."""

    def unattached(self) -> Adapter:
        """An adapter with the same options that is attached to nothing yet."""
        twin = copy.copy(self)
        twin.denoiser, twin.layer_names = None, ()
        return twin

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Copy a checkpoint's tensors into `parameters()`; names and shapes must agree exactly."""
        import torch

        own = self.parameters()
        faults = Faults(f"these weights do not fit this {type(self).__name__} adapter", CheckpointError)
        for title, names in (("missing", own.keys() - tensors.keys()), ("unexpected", tensors.keys() - own.keys())):
            if names:
                faults.add(f"{len(names)} {title}: {shortened(sorted(names))}")
        shapes = {name: (list(tensors[name].shape), list(own[name].shape)) for name in own.keys() & tensors.keys()}
        wrong = [name for name, (came, needed) in sorted(shapes.items()) if came != needed]
        for name in wrong[:8]:
            faults.add("{}: shape {} came, {} is needed".format(name, *shapes[name]))
        if len(wrong) > 8:
            faults.add(f"... and {len(wrong) - 8} more of another shape")
        faults.raise_if_any()
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    def _begin(self, denoiser: nn.Module) -> None:
        if self.denoiser is not None:
            raise CombinationError("this adapter is attached already; make a new one for another denoiser")
        from dreamlit.adapters.targets import layers

        self.check(denoiser)
        self.layer_names = tuple(layer.name for layer in layers(denoiser))
        denoiser.requires_grad_(False)

    def _attached(self) -> nn.Module:
        if self.denoiser is None:
            raise CombinationError(f"this {type(self).__name__} adapter is not attached to a denoiser yet")
        return self.denoiser


@contextlib.contextmanager
def cpu_generator_seeded(address: int | None) -> Iterator[None]:
    """Seed torch's global CPU generator for code that knows no other, and put back its state.

    `None` only guards the state. (`torch.manual_seed` would move the generators of all devices as well.)
    """
    import torch

    generator = torch.default_generator
    state = generator.get_state()
    if address is not None:
        generator.manual_seed(address)
    try:
        yield
    finally:
        generator.set_state(state)


def shortened(names: list[str], limit: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    more = f" ... and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def check_number(name: str, value: float | None, *, above: float | None = None, below: float | None = None) -> None:
    """Raise unless `value` is a number in the open or half-open range: above < value, 0 <= value < below."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}: {value!r} came; a number is needed")
    if above is not None and not (value > above and value != float("inf")):
        raise ConfigError(f"{name}: {value} came; it must be finite and above {above:g}")
    if below is not None and not 0 <= value < below:
        raise ConfigError(f"{name}: {value} came; it must be at least 0 and below {below:g}")


def check_rank(name: str, value: float, *, fraction: bool = False) -> None:
    """A rank is a whole number of at least 1, or, with `fraction`, a share in (0, 1) of a layer's smaller side."""
    check_number(name, value, above=0)
    if value != int(value) and not (fraction and value < 1):
        also = ", or a fraction in (0, 1) of each layer's smaller side" if fraction else ""
        raise ConfigError(f"{name}: {value} came; it must be a whole number of at least 1{also}")
