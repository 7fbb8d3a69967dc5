"""What the tables of all tools share: families and where their models are, optimizers, precisions, schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from dreamlit.importing.draft import Draft
from dreamlit.importing.rules import Misfit, number

FLOW = frozenset(("SD3", "Flux", "Chroma", "AuraFlow", "Sana", "QwenImage", "Flux2Klein", "Lumina2", "ZImage"))
"""Families of flow matching; a test compares with the classes."""
PIXELS = frozenset(("DeepFloydI", "DeepFloydII"))
PROMPTED = frozenset(("SDXLRefiner", "DeepFloydII"))
"""Those that do not draw from a prompt alone."""
UNGUIDED = frozenset(("Flux", "SDXLRefiner", "DeepFloydII", "Flux2Klein"))
"""Those whose previews take no negative prompt."""
DTYPES = {"bf16-mixed": "bfloat16", "16-mixed": "float16", "32-true": "float32"}


def facts_of(family: str, adapter: str, model: str = "") -> set[str]:
    """What holds of a run, as in `rules.WHEN`."""
    found = {adapter, "flow" if family in FLOW else "diffusion"}
    found |= {"refiner"} if family == "SDXLRefiner" else set()
    found |= {"sd"} if family in ("SD", "SDXL", "SDXLRefiner", "Kolors") else set()
    found |= {"flux"} if family == "Flux" and "schnell" not in model.lower() else set()
    found |= {"autoencoder"} if family not in PIXELS else set()
    found |= {"prompted"} if family not in PROMPTED else set()
    found |= {"guided"} if family not in UNGUIDED else set()
    return found


def place_model(draft: Draft, family: str, path: str, precision: str, source: str) -> None:
    """The family, where its model is, and the precision of the run."""
    draft.set("model.family.class_path", family, source)
    draft.set("family.path", path)
    draft.set("trainer.precision", precision)
    draft.set("family.dtype", DTYPES[precision])


def precision_of(value: Any) -> str:
    """The Trainer's precision for what accelerate calls mixed precision."""
    names = {"bf16": "bf16-mixed", "fp16": "16-mixed", "no": "32-true", "fp32": "32-true", "fp8": "bf16-mixed"}
    return names.get(str(value), "32-true")


SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


def place_schedule(draft: Draft, name: Any, warmup: int) -> None:
    """The learning rate's schedule; a warm-up that a constant rate has no use for is left out."""
    if str(name) not in SCHEDULES:
        draft.refuse("lr_scheduler", name, f"there are {', '.join(SCHEDULES)}; constant stands in its place")
        name = "constant"
    draft.set("model.lr_scheduler", str(name), f"lr_scheduler: {name}")
    if warmup and name == "constant":
        draft.idle["lr_warmup_steps"] = "a constant learning rate has no warm-up, there and here"
    elif warmup:
        draft.set("model.lr_warmup_steps", warmup, f"lr_warmup_steps: {warmup}")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer of this project's dependencies, or what to say of one that is not."""

    class_path: str
    note: str = ""
    takes: tuple[str, ...] = ("betas", "weight_decay", "eps")
    """The options that are carried over."""


ADAMW = Optimizer("torch.optim.AdamW")
IN_FLOAT32 = "the weights that are trained are float32 here, so that AdamW needs no tricks against rounding"
MISSING = "AdamW stands in its place, because the package is no dependency of dreamlit. {} Look at the learning rate"


def missing(how: str) -> Optimizer:
    return Optimizer("", MISSING.format(how))


OWN = "With `pip install {}`, model.optimizer.class_path: {} takes it back."
PRODIGY = missing(OWN.format("prodigyopt", "prodigyopt.Prodigy"))
LION = missing("bitsandbytes.optim.Lion8bit is there, for a learning rate three to ten times smaller.")
OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": ADAMW,
    "adam": Optimizer("torch.optim.Adam"),
    "sgd": Optimizer("torch.optim.SGD", takes=("weight_decay",)),
    "radam": Optimizer("torch.optim.RAdam"),
    "nadam": Optimizer("torch.optim.NAdam"),
    "adafactor": Optimizer("torch.optim.Adafactor", takes=("weight_decay",)),
    "rmsprop": Optimizer("torch.optim.RMSprop", takes=("weight_decay", "eps")),
    "adagrad": Optimizer("torch.optim.Adagrad", takes=("weight_decay", "eps")),
    "adadelta": Optimizer("torch.optim.Adadelta", takes=("weight_decay", "eps")),
    "adamax": Optimizer("torch.optim.Adamax"),
    "asgd": Optimizer("torch.optim.ASGD", takes=("weight_decay",)),
    "adamw8bit": Optimizer("bitsandbytes.optim.AdamW8bit"),
    "pagedadamw": Optimizer("bitsandbytes.optim.PagedAdamW"),
    "pagedadamw8bit": Optimizer("bitsandbytes.optim.PagedAdamW8bit"),
    "adam8bit": Optimizer("bitsandbytes.optim.Adam8bit"),
    "sgdnesterov8bit": Optimizer("bitsandbytes.optim.SGD8bit", takes=("weight_decay",)),
    "lion8bit": Optimizer("bitsandbytes.optim.Lion8bit", takes=("betas", "weight_decay")),
    "pagedlion8bit": Optimizer("bitsandbytes.optim.PagedLion8bit", takes=("betas", "weight_decay")),
    "ademamix8bit": Optimizer("bitsandbytes.optim.AdEMAMix8bit", takes=("weight_decay", "eps")),
    "lion": LION,
    "prodigy": PRODIGY,
    "dadaptation": missing("D-Adaptation finds its own learning rate."),
}
"""By the names that tools share, in lower case."""


def place_optimizer(draft: Draft, name: Any, known: Optimizer | None, rate: float, options: dict[str, Any]) -> None:
    """The optimizer with its learning rate and the options that it takes; the rest is refused."""
    if known is None or not known.class_path:
        why = (
            known.note if known else "AdamW stands in its place. Any optimizer is named by the dotted path of its class"
        )
        draft.refuse("optimizer", name, why)
        known = ADAMW
    elif known.note:
        draft.note(f"optimizer: {name}: {known.note}")
    draft.set("model.optimizer.class_path", known.class_path, f"optimizer: {name}")
    draft.set("optimizer.lr", rate, "the learning rate")
    for option, value in options.items():
        if option in known.takes:
            draft.set(f"optimizer.{option}", value)
        elif value is not None:
            draft.refuse(f"optimizer's {option}", value, f"{known.class_path} is not given it")


def keywords(pairs: Iterable[str]) -> dict[str, Any]:
    """Optimizer options of texts such as `weight_decay=0.01`, `betas=0.9,0.99`. A text without `=` is a misfit."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = str(pair).partition("=")
        if not equals:
            raise Misfit(f"{pair!r} is not of the form name=value")
        items = [one for one in value.strip("()[] ").split(",") if one.strip()]
        given = [number(one) if is_number(one) else one.strip() for one in items]
        found[name.strip()] = given if name.strip() == "betas" else given[0] if len(given) == 1 else given
    return found


def is_number(value: str) -> bool:
    try:
        number(value)
    except Misfit:
        return False
    return True
