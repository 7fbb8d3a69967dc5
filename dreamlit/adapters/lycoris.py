"""LyCORIS adapters by lycoris-lora (Yeh et al. 2023, arXiv 2309.14859)."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dreamlit import seeds
from dreamlit.adapters.base import Adapter, Factors, cpu_generator_seeded, shortened
from dreamlit.adapters.lycoris_options import DROPOUTS, Options, Selection, algorithm, checked
from dreamlit.adapters.targets import Layer, could_match, layers
from dreamlit.errors import CheckpointError, CombinationError, ConfigError, Faults

if TYPE_CHECKING:
    from torch import Tensor, nn


class LyCORIS(Adapter):
    """Updates of many shapes by lycoris-lora, each of which starts at exactly the base model.

    Args:
        algo: `locon` (alias `lora`), `loha`, `lokr`, `glora`, `diag-oft`, or `boft` where the sizes allow it.
        rank: Rank, or a fraction in (0, 1) of each layer's smaller side; for diag-oft and boft the block size.
        alpha: Strength: the update is multiplied by alpha / rank. Left out, each module's own rank (a factor of 1).
        conv_rank: Rank on convolutions with a kernel above 1; left out, `rank`; 0 leaves them alone.
        conv_alpha: Alpha on those convolutions; left out, `alpha`.
        factor: lokr: size of the first Kronecker factor; -1 is near the square root.
        decompose_both: lokr: low rank for both factors.
        full_matrix: lokr: no low rank at all; `rank` and `alpha` then do nothing.
        use_tucker: locon, loha, lokr: Tucker decomposition of convolutions.
        dropout: locon, loha, lokr, glora: probability of dropping an element of the update's output.
        rank_dropout: locon, loha: probability of dropping a rank (locon) or an output row (loha).
        module_dropout: Probability of leaving a module out of a forward pass.
        multiplier: Strength at which it trains; folded into the exported file.
        preset: `attn-only`, `attn-mlp`, `full-lin`, `full`, `unet-convblock-only`, `all`, or a mapping with
            `target_module`, `target_name`, `module_algo_map`, `name_algo_map`, `exclude_name`, `use_fnmatch`,
            `enable_conv` as in LyCORIS.
        module_algo_map: Other options by the class name of a module, for example `{FeedForward: {factor: 4}}`.
    """

    formats = ("lycoris", "kohya", "diffusers")

    def __init__(
        self,
        algo: str = "lokr",
        rank: float = 16,
        alpha: float | None = None,
        conv_rank: float | None = None,
        conv_alpha: float | None = None,
        factor: int | None = None,
        decompose_both: bool = False,
        full_matrix: bool = False,
        use_tucker: bool = False,
        dropout: float = 0.0,
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
        multiplier: float = 1.0,
        preset: str | dict[str, Any] = "attn-mlp",
        module_algo_map: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.algo = algorithm(algo)
        given = {"rank": rank, "alpha": alpha, "conv_rank": conv_rank, "conv_alpha": conv_alpha, "factor": factor}
        given |= {"decompose_both": decompose_both, "full_matrix": full_matrix, "use_tucker": use_tucker}
        given |= {"dropout": dropout, "rank_dropout": rank_dropout, "module_dropout": module_dropout}
        wanted = {**given, "multiplier": None if multiplier == 1 else multiplier}
        checked(
            {k: v for k, v in wanted.items() if v is not None and v is not False and (v or "drop" not in k)}, self.algo
        )
        self.options = Options(algo=self.algo, **{**given, "factor": -1 if factor is None else int(factor)})
        self.multiplier, self.preset = float(multiplier), preset
        self.selection = Selection.of(preset, module_algo_map)
        for name, entry in (*self.selection.module_algo_map.items(), *self.selection.name_algo_map.items()):
            strength = {"multiplier": multiplier} if multiplier != 1 else {}
            given = {key: value for key, value in entry.items() if value} | strength
            checked(given, entry.get("algo", self.algo), f"map of {name!r}: ")
        self._modules: dict[str, Any] = {}
        self._algos: dict[str, str] = {}
        self._network: nn.Module | None = None

    def default_formats(self) -> tuple[str, ...]:
        return ("lycoris",)

    def plan(self, denoiser: nn.Module) -> list[tuple[Layer, Options]]:
        """The layers that get a module, each with its options."""
        found = []
        for layer in layers(denoiser):
            overrides = self.selection.overrides(layer)
            if overrides is None or (layer.convolution and not self.selection.enable_conv):
                continue
            options = self._options_with(overrides)
            if layer.convolution and options.conv_rank == 0:
                continue
            found.append((layer, options))
        return found

    def _options_with(self, overrides: dict[str, Any]) -> Options:
        """The adapter's options, of which another algorithm in a map inherits only what it honours."""
        if overrides.get("algo", self.algo) == self.algo:
            return dataclasses.replace(self.options, **overrides)
        neutral = {"alpha": None, "conv_alpha": None, "factor": -1, "decompose_both": False, "full_matrix": False}
        neutral |= {"use_tucker": False, **dict.fromkeys((*DROPOUTS, "rank_dropout"), 0.0)}
        return dataclasses.replace(self.options, **{**neutral, **overrides})

    def check(self, denoiser: nn.Module) -> None:
        every = layers(denoiser)
        idle = self.selection.idle(every) if isinstance(self.preset, dict) else []
        idle += [name for name in self.selection.module_algo_map if name not in {c for x in every for c in x.classes}]
        if idle:
            raise ConfigError(f"preset: nothing in this model matches {sorted(set(idle))}. {_could_be(every)}")
        plan = self.plan(denoiser)
        if not plan:
            raise ConfigError(f"preset {self.preset!r} matches no layer. {_could_be(every)}")
        if self.options.conv_rank != 0 and not any(layer.convolution for layer, _ in plan):
            for name in ("conv_rank", "conv_alpha", "use_tucker"):
                if getattr(self.options, name):
                    raise ConfigError(
                        f"{name}: the preset {self.preset!r} takes no convolution with a kernel above 1, so it would "
                        "do nothing; leave it out, or use preset full"
                    )
        faults = Faults(f"{self.algo} does not fit these layers", CombinationError)
        for layer, options in plan:
            for line in _misfits(layer, options):
                faults.add(f"{layer.name}: {line}")
        faults.lines = faults.lines[:12] + (
            [f"... and {len(faults.lines) - 12} more"] if len(faults.lines) > 12 else []
        )
        faults.raise_if_any()

    def attach(self, denoiser: nn.Module, seed: int, *, teacher_needed: bool = False) -> None:
        from torch import nn

        from dreamlit.adapters import lycoris_modules

        self._begin(denoiser)
        with lycoris_modules.quiet():
            for layer, options in self.plan(denoiser):
                with cpu_generator_seeded(seeds.address(seed, "adapter-init", layer.name)):
                    self._modules[layer.name] = lycoris_modules.build(options, layer, self.multiplier)
                self._algos[layer.name] = options.algo
        for module in self._modules.values():
            module.apply_to()
            module.requires_grad_(True)
        # A module's own path cannot be a key of a ModuleDict; these names are only for device moves and DDP.
        self._network = nn.ModuleDict({name.replace(".", "/"): module for name, module in self._modules.items()})
        self.denoiser = denoiser

    def unattached(self) -> LyCORIS:
        twin = copy.copy(self)
        twin.denoiser, twin.layer_names, twin._modules, twin._algos = None, (), {}, {}
        return twin

    def modules_to_register(self) -> dict[str, nn.Module]:
        self._attached()
        assert self._network is not None
        return {"lycoris": self._network}

    def parameters(self) -> dict[str, nn.Parameter]:
        self._attached()
        return {f"{name}.{part}": p for name, module in self._modules.items() for part, p in module.named_parameters()}

    @contextlib.contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        # A multiplier of 0 would still build the update, and is not exact for every algorithm.
        denoiser = self._attached()
        before = [(module.org_module[0], module.org_module[0].forward) for module in self._modules.values()]
        try:
            for module in self._modules.values():
                module.org_module[0].forward = module.org_forward
            yield denoiser
        finally:
            for layer, forward in before:
                layer.forward = forward

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        from dreamlit.adapters import lycoris_modules

        for name, module in self._modules.items():
            for part, tensor in lycoris_modules.exported(self._algos[name], module, self.multiplier):
                yield name, part, tensor

    def load_factors(self, factors: dict[str, Factors]) -> None:
        from dreamlit.adapters import lycoris_modules

        faults = Faults(f"the file's weights cannot start this {self.algo} adapter", CheckpointError)
        state: dict[str, Tensor] = {}
        for name, entry in factors.items():
            if name not in self._modules:
                state.update({f"{name}.{part}": tensor for part, tensor in entry.parts.items() if part != "alpha"})
                continue
            own = {part for part, _ in self._modules[name].named_parameters()}
            if own != entry.parts.keys() - {"alpha"}:
                faults.add(f"{name}: {shortened(sorted(entry.parts))} came, {shortened(sorted(own))} is needed")
                continue
            algo, module = self._algos[name], self._modules[name]
            ratio = entry.scale / (getattr(module, "scale", 1.0) * self.multiplier)
            parts = lycoris_modules.unfolded(algo, entry.parts, ratio)
            state.update({f"{name}.{part}": tensor for part, tensor in parts.items()})
        faults.raise_if_any()
        self.load_state(state)

    def describe(self) -> dict[str, Any]:
        plain = {
            k: v for k, v in dataclasses.asdict(self.options).items() if v not in (None, False, 0.0) and k != "algo"
        }
        alpha = self.options.rank if self.options.alpha is None else self.options.alpha
        return {"algorithm": self.algo, **plain, "alpha": alpha, "multiplier": self.multiplier, "targets": self.preset}

    def algorithms(self) -> dict[str, str]:
        """{module path: algorithm} of the attached modules."""
        return dict(self._algos)


def _misfits(layer: Layer, options: Options) -> Iterator[str]:
    """Why an algorithm cannot be put on a layer."""
    weight, outputs = layer.module.weight, layer.sizes[0]
    if options.algo == "diag-oft":
        from dreamlit.adapters import lycoris_modules

        if lycoris_modules.oft_block_size(outputs, options.dim_of(layer)) < 2:
            yield f"{outputs} outputs leave blocks of size 1, which cannot turn; another rank, or exclude it"
    if options.algo == "boft":
        from dreamlit.adapters import lycoris_modules

        if not lycoris_modules.boft_fits(outputs, options.dim_of(layer)):
            yield f"{outputs} outputs have no butterfly of blocks up to {options.dim_of(layer)}; use diag-oft"
    low = str(weight.dtype) in ("torch.bfloat16", "torch.float16")
    if low and not layer.linear and (options.algo == "glora" or (options.algo == "locon" and options.rank_dropout)):
        yield f"{options.algo} here needs a float32 convolution, and its weight is {weight.dtype}; use attn-mlp or lokr"


def _could_be(every: list[Layer]) -> str:
    classes = sorted({name for layer in every for name in layer.classes})
    return f"Class names: {shortened(classes, 24)}. {could_match(every)}"
