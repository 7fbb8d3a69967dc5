"""LoRA by peft: low-rank updates of linear and convolution layers (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dreamlit import seeds
from dreamlit.adapters.base import Adapter, Factors, check_number, check_rank, cpu_generator_seeded, shortened
from dreamlit.adapters.targets import Layer, check_patterns, matches, select
from dreamlit.errors import CheckpointError, ConfigError, Faults, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "default"
INITS = ("default", "gaussian")


class LoRA(Adapter):
    """Low-rank updates by peft: W + alpha / rank * B A, with B = 0 at the start.

    Args:
        rank: Rank of the update.
        alpha: Strength of the update; left out, each module's own rank, so that the factor alpha / rank is 1.
        dropout: Probability of dropping an input element of the update, in [0, 1).
        targets: `attention`, `attention-mlp`, `all-linear`, `full` (with convolutions), or a list of patterns: last
            parts of module names (`to_q`, `ff.net.2`) or globs over whole names (`mid_block.*`).
        rank_pattern: Other ranks for some modules, by such patterns; the last one that matches wins.
        alpha_pattern: Other alphas for some modules.
        use_dora: Train the magnitude of each output apart from its direction (DoRA, Liu et al. 2024, arXiv 2402.09353).
        use_rslora: Divide by the square root of the rank (Kalajdzievski 2023, arXiv 2312.03732).
        init: `default` (Kaiming uniform) or `gaussian` (standard deviation 1 / rank) for A.
    """

    formats = ("diffusers", "kohya")

    def __init__(
        self,
        rank: int = 16,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: str | list[str] = "attention",
        rank_pattern: dict[str, int] | None = None,
        alpha_pattern: dict[str, float] | None = None,
        use_dora: bool = False,
        use_rslora: bool = False,
        init: str = "default",
    ) -> None:
        check_rank("rank", rank)
        check_number("alpha", alpha, above=0)
        check_number("dropout", dropout, below=1)
        for pattern, value in (rank_pattern or {}).items():
            check_rank(f"rank_pattern[{pattern!r}]", value)
        for pattern, value in (alpha_pattern or {}).items():
            check_number(f"alpha_pattern[{pattern!r}]", value, above=0)
        if not targets:
            raise ConfigError("targets: nothing came; give a preset such as 'attention' or a list of patterns")
        if init not in INITS:
            raise ConfigError(f"init: {init!r} came. {_refused_init(init)}{nearest(init, INITS)}")
        self.rank, self.alpha, self.dropout, self.targets = int(rank), alpha, float(dropout), targets
        self.rank_pattern, self.alpha_pattern = rank_pattern or {}, alpha_pattern or {}
        self.use_dora, self.use_rslora, self.init = use_dora, use_rslora, init
        self._layers: dict[str, Any] = {}

    def default_formats(self) -> tuple[str, ...]:
        return ("diffusers",) if self.use_dora else self.formats

    def check(self, denoiser: nn.Module) -> None:
        chosen = select(denoiser, self.targets)
        check_patterns("rank_pattern", self.rank_pattern, chosen)
        check_patterns("alpha_pattern", self.alpha_pattern, chosen)

    def attach(self, denoiser: nn.Module, seed: int, *, teacher_needed: bool = False) -> None:
        import peft
        import torch

        self._begin(denoiser)
        chosen = select(denoiser, self.targets)
        config = peft.LoraConfig(
            target_modules="|".join(re.escape(layer.name) for layer in chosen),
            **{**self.peft_config(chosen), "lora_dropout": self.dropout},
        )
        with cpu_generator_seeded(None):
            peft.inject_adapter_in_model(config, denoiser, NAME)
        self.denoiser = denoiser
        self._layers = {layer.name: denoiser.get_submodule(layer.name) for layer in chosen}
        for name, layer in self._layers.items():
            self._initialise(layer, seeds.generator(seed, "adapter-init", name))
            for parameter in self._of(layer).values():
                parameter.data = parameter.data.to(torch.float32)
                parameter.requires_grad_(True)
            if self.use_dora:
                _measure_magnitude(layer)

    def _initialise(self, layer: Any, generator: Any) -> None:
        """A from its own generator on the CPU, so that neither device nor other modules change it; B stays 0."""
        import torch

        weight = layer.lora_A[NAME].weight
        fresh = torch.empty(weight.shape, dtype=torch.float32)
        if self.init == "gaussian":
            torch.nn.init.normal_(fresh, std=1 / layer.r[NAME], generator=generator)
        else:
            torch.nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
        weight.data = fresh.to(weight.device)

    def rank_of(self, name: str) -> int:
        return int(_last_match(self.rank_pattern, name, self.rank))

    def alpha_of(self, name: str) -> float:
        fallback = self.rank_of(name) if self.alpha is None else self.alpha
        return float(_last_match(self.alpha_pattern, name, fallback))

    def scale_of(self, name: str) -> float:
        """What B A is multiplied with."""
        rank = self.rank_of(name)
        return self.alpha_of(name) / (math.sqrt(rank) if self.use_rslora else rank)

    def peft_config(self, chosen: list[Layer] | None = None) -> dict[str, Any]:
        """The fields of `peft.LoraConfig` that decide the update; patterns are exact module names."""
        names = [layer.name for layer in chosen] if chosen is not None else list(self._layers)
        alpha = self.rank if self.alpha is None else self.alpha
        exact = {name: f"^{re.escape(name)}" for name in names}
        return {
            "r": self.rank,
            "lora_alpha": alpha,
            "rank_pattern": {exact[n]: self.rank_of(n) for n in names if self.rank_of(n) != self.rank},
            "alpha_pattern": {exact[n]: self.alpha_of(n) for n in names if self.alpha_of(n) != alpha},
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        }

    def _of(self, layer: Any) -> dict[str, nn.Parameter]:
        found = {"lora_A.weight": layer.lora_A[NAME].weight, "lora_B.weight": layer.lora_B[NAME].weight}
        if self.use_dora:
            found["lora_magnitude_vector"] = layer.lora_magnitude_vector[NAME].weight
        return found

    def parameters(self) -> dict[str, nn.Parameter]:
        self._attached()
        return {f"{name}.{part}": p for name, layer in self._layers.items() for part, p in self._of(layer).items()}

    @contextlib.contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        denoiser = self._attached()
        before = [(layer, layer._disable_adapters) for layer in self._layers.values()]
        try:
            for layer, _ in before:
                layer._disable_adapters = True
            yield denoiser
        finally:
            # peft's own switch would also touch requires_grad; the flag alone sends forward through the base layer.
            for layer, state in before:
                layer._disable_adapters = state

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        import torch

        for name, layer in self._layers.items():
            parts = self._of(layer)
            yield name, "lora_down.weight", parts["lora_A.weight"].detach()
            yield name, "lora_up.weight", parts["lora_B.weight"].detach()
            yield name, "alpha", torch.tensor(self.scale_of(name) * self.rank_of(name), dtype=torch.float32)
            if self.use_dora:
                magnitude = parts["lora_magnitude_vector"].detach()
                shape = [-1] + [1] * (layer.get_base_layer().weight.dim() - 1)
                yield name, "dora_scale", magnitude.reshape(shape)

    def load_factors(self, factors: dict[str, Factors]) -> None:
        wanted = {"lora_down.weight", "lora_up.weight"} | ({"dora_scale"} if self.use_dora else set())
        faults = Faults("the file's weights cannot start this LoRA", CheckpointError)
        for name, entry in factors.items():
            if entry.parts.keys() - {"alpha"} != wanted:
                faults.add(f"{name}: {shortened(sorted(entry.parts))} came, {shortened(sorted(wanted))} is needed")
        faults.raise_if_any()
        state = {}
        own = self.parameters()
        for name, entry in factors.items():
            state[f"{name}.lora_A.weight"] = entry.parts["lora_down.weight"]
            state[f"{name}.lora_B.weight"] = entry.parts["lora_up.weight"] * (entry.scale / self.scale_of(name))
            if self.use_dora:
                key = f"{name}.lora_magnitude_vector"
                state[key] = entry.parts["dora_scale"].reshape(own[key].shape if key in own else -1)
        self.load_state(state)

    def describe(self) -> dict[str, Any]:
        return {
            "algorithm": "dora" if self.use_dora else "lora",
            "rank": self.rank,
            "alpha": self.rank if self.alpha is None else self.alpha,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "use_rslora": self.use_rslora,
            "targets": self.targets,
        }


def _measure_magnitude(layer: Any) -> None:
    """The magnitude as the forward pass will measure it, in float32; peft measures it in the base's precision."""
    magnitude = layer.lora_magnitude_vector[NAME]
    from dreamlit.quantisation.layers import weight_of

    weight = weight_of(layer.get_base_layer()).detach().float()
    magnitude.weight.data = magnitude.get_weight_norm(weight, weight.new_zeros(weight.shape), 1.0)


def _last_match(patterns: dict[str, Any], name: str, fallback: Any) -> Any:
    found = [value for pattern, value in patterns.items() if matches(pattern, name)]
    return found[-1] if found else fallback


def _refused_init(init: str) -> str:
    if init.startswith(("pissa", "olora", "loftq", "corda", "eva")):
        return f"{init} changes the base weights at the start, so the base model could not be recovered exactly. "
    return ""
