"""The memory of a run by phases: the parts of a model are never on the device at once, so the largest phase decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dreamlit.families.loading import bare
from dreamlit.memory.walk import Step, Work, code_pixels, read_caption, train
from dreamlit.memory.weights import precision_of, stored_bytes
from dreamlit.quantisation import NO_CHANGE

if TYPE_CHECKING:
    from dreamlit.module import DreamBooth


@dataclasses.dataclass(frozen=True)
class Phase:
    """What is on the device at one time: (what, bytes)."""

    name: str
    parts: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(size for _, size in self.parts)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of a run on one device, and on disk."""

    phases: tuple[Phase, ...]
    host: int
    """RAM that the largest component passes through on its way to a device."""
    caption: int
    """Cached embedding of one caption."""
    checkpoint: int
    trained: int

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)


class Estimator:
    """Estimates runs of one model; what two runs have in common is walked through once.

    Args:
        tell: Told what is being done, in a few words; may take a minute on a large model.
    """

    def __init__(self, tell: Callable[[str], None] = lambda _: None) -> None:
        self.tell = tell
        self._known: dict[Any, Any] = {}

    def _once(self, what: str, key: Any, work: Callable[[], Any]) -> Any:
        if key not in self._known:
            self.tell(what)
            self._known[key] = work()
        return self._known[key]

    def __call__(self, module: DreamBooth, work: Work, ranks: int = 1, averages: int = 0) -> Estimate:
        """Estimate a run. Errors: `ModelError` where the model cannot be read.

        Args:
            ranks: Devices of the run.
            averages: Moving averages of what is trained that are on the device.
        """
        family = module.family
        model = (type(family), family.files.path, family.dtype)
        texts, reading = self._once(
            "a caption through the text encoders", (*model, work.caption), lambda: read_caption(family, work)
        )
        coding = (*model, work.size, work.encode_batch, work.drawn, work.drawn_first)
        encoding, decoding, first = self._once(
            "an image through the autoencoder", coding, lambda: code_pixels(family, work)
        )
        level = module.base_model_precision
        step = self._step(module, work, texts, level)
        sizes = self._sizes(module)
        phases = [
            Phase("caching the latents", (("autoencoder", sizes["vae"]), ("one batch of it", encoding))),
            Phase("caching the captions", (("text encoders", sizes["text_encoders"]), ("a caption", reading))),
            self._training(module, step, ranks, averages),
        ]
        others = (("text encoders", sizes["text_encoders"]), ("autoencoder", sizes["vae"]))
        if work.drawn:
            lasting = ("denoiser, adapter, optimizer", phases[2].total - step.rest)
            at_work = ("one image being drawn", max(step.drawing, decoding))
            beside = others if family.drawn_with else others[1:]  # the others' prompts are encoded before the training
            phases.append(Phase("previews and reports", (lasting, *beside, at_work)))
        if work.drawn_first:
            at_work = ("a batch being drawn", max(step.drawing_first, first))
            phases.insert(0, Phase("drawing class images", (("denoiser", sizes["denoiser"]), *others, at_work)))
        checkpoint = step.trained + step.state
        embedding = sum(value.nbytes for value in texts.values())
        return Estimate(
            tuple(phase for phase in phases if phase.total), sizes["host"], embedding, checkpoint, step.trained
        )

    def _step(self, module: DreamBooth, work: Work, texts: Any, level: str) -> Step:
        adapter = tuple(sorted((name, repr(v)) for name, v in vars(module.adapter).items() if not name.startswith("_")))
        family = module.family
        options = (family.dtype, family.gradient_checkpointing, level, type(module.adapter), adapter, work)
        return self._once(
            f"a training step of {work.batch} images of {work.size[1]} x {work.size[0]} pixels",
            (type(family), family.files.path, *options),
            lambda: train(family, module.adapter, module.optimizer_factory, work, texts, level),
        )

    def _training(self, module: DreamBooth, step: Step, ranks: int, averages: int) -> Phase:
        from dreamlit.adapters import Full

        parts = [
            ("denoiser", step.base),
            ("trained weights", step.trained),
            ("gradients", step.gradients * (2 if ranks > 1 else 1)),  # and ddp's copy of them
            ("optimizer", step.state),
            ("activations", step.rest),
        ]
        if averages:
            parts.append(("moving averages", averages * step.trained))
        prior = module.objective.prior_target == "base_model" and module.regularised
        needed = prior or module.class_prompts or module.objective.unmasked_target == "base_model"
        if isinstance(module.adapter, Full) and needed and module.adapter.teacher in ("auto", "device"):
            parts.append(("frozen copy of the denoiser", step.base + step.trained))
        return Phase("training", tuple(parts))

    def _sizes(self, module: DreamBooth) -> dict[str, int]:
        """Stored bytes of the parts that come and go, and of the largest component as it is loaded into RAM."""
        family = module.family
        levels = dict(zip((n for n, _ in family.text_encoder_names), module.text_encoder_precisions, strict=False))
        found, host = {}, 0
        for part in ("vae", "text_encoders"):
            bytes_of = [self._stored(family, name, levels.get(name, NO_CHANGE)) for name in family.components(part)]
            host = max(host, *bytes_of, 0)
            found[part] = sum(bytes_of)
        denoiser = self._stored(family, family.denoiser_name, module.base_model_precision)
        return {**found, "denoiser": denoiser, "host": max(host, denoiser)}

    def _stored(self, family: Any, name: str, level: str) -> int:
        key = (type(family), family.files.path, family.dtype, name, level)
        dtype = precision_of(family, name)
        return self._once(f"the weights of {name}", key, lambda: stored_bytes(bare(family, name), dtype, level))
