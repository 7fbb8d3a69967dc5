"""What the tables of all tools share: families and where their models are, optimizers, precisions, schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from dreamlit.importing.draft import SHORT, Draft
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
MISSING = "AdamW stands in its place, with a usual learning rate, because the package is no dependency of dreamlit. {}"


def missing(how: str) -> Optimizer:
    return Optimizer("", MISSING.format(how))


OWN = "With `pip install {}`, model.optimizer.class_path: {} takes it back."
PRODIGY = missing(OWN.format("prodigyopt", "prodigyopt.Prodigy") + " It finds its own learning rate: 1 there.")
USUAL_RATES = {"Full": 5e-6}
"""Of AdamW, in the place of an optimizer that finds its own; of adapters it is 1e-4."""
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
    "lion": Optimizer("bitsandbytes.optim.Lion", takes=("betas", "weight_decay")),
    "prodigy": PRODIGY,
    "dadaptation": missing("D-Adaptation finds its own learning rate."),
}
"""By the names that tools share, in lower case."""


def place_optimizer(draft: Draft, name: Any, known: Optimizer | None, rate: float, options: dict[str, Any]) -> None:
    """The optimizer with its learning rate and the options that it takes; the rest is refused."""
    source = "the learning rate"
    if known is None or not known.class_path:
        why = (
            known.note if known else "AdamW stands in its place. Any optimizer is named by the dotted path of its class"
        )
        draft.refuse("optimizer", name, why)
        if known:
            rate = USUAL_RATES.get(draft.values["model.adapter.class_path"].value, 1e-4)
        known, source = ADAMW, f"usual of AdamW, in the place of {name}"
    elif known.note:
        draft.note(f"optimizer: {name}: {known.note}")
    draft.set("model.optimizer.class_path", known.class_path, f"optimizer: {name}")
    draft.set("optimizer.lr", rate, source)
    for option, value in options.items():
        if option in known.takes:
            draft.set(f"optimizer.{option}", value)
        elif value is not None:
            draft.refuse(f"optimizer's {option}", value, f"{known.class_path} is not given it")


def place_losses(draft: Draft) -> None:
    """The kind of the loss and min-SNR weighting, of the parts `loss`, `huber_schedule`, `huber_c` and `snr_gamma`."""
    loss, schedule, c = draft.take("loss", "l2"), draft.take("huber_schedule"), draft.take_number("huber_c", number)
    if loss in ("huber", "smooth_l1"):
        draft.set("objective.loss", loss, f"loss_type: {loss}")
        draft.set("objective.huber_schedule", schedule or "snr", f"huber_schedule: {schedule or 'snr'}")
        draft.set("objective.huber_c", 0.1 if c is None else c, f"huber_c: {c}")
    elif loss != "l2":
        draft.refuse("loss_type", loss, "there are l2, huber and smooth_l1")
    gamma = draft.take_number("snr_gamma", number)
    if gamma:
        draft.set("objective.weighting", "min_snr", f"snr_gamma: {gamma}")
        draft.set("objective.snr_gamma", gamma, f"snr_gamma: {gamma}")


def devices_of(launcher: dict[str, Any]) -> int:
    """The number of processes that a launcher starts; 1 unless it says so."""
    value = launcher.get("num_processes")
    return value if isinstance(value, int) and value > 0 else 1


def place_devices(draft: Draft, devices: int, batch: int, source: str) -> None:
    """The global batch size, and the devices that share it."""
    draft.set("data.batch_size", batch * devices, source + (f", on {devices} devices" if devices > 1 else ""))
    if devices > 1:
        draft.set("trainer.devices", devices, f"num_processes: {devices}")
        draft.set("trainer.strategy", "ddp")


def place_betas(draft: Draft) -> dict[str, Any]:
    """Options of Adam of the parts `adam_beta1`, `adam_beta2`, `adam_weight_decay` and `adam_epsilon`."""
    found: dict[str, Any] = {}
    beta1, beta2 = draft.take_number("adam_beta1", number), draft.take_number("adam_beta2", number)
    if beta1 is not None or beta2 is not None:
        found["betas"] = [0.9 if beta1 is None else beta1, 0.999 if beta2 is None else beta2]
    for name, option in (("adam_weight_decay", "weight_decay"), ("adam_epsilon", "eps")):
        value = draft.take_number(name, number)
        if value is not None:
            found[option] = value
    return found


def place_wandb(draft: Draft, option: str) -> None:
    """The logger of Weights & Biases, with the parts `project` and `run_name`."""
    wanted = {"project": draft.take("project"), "name": draft.take("run_name")}
    draft.set("trainer.logger.class_path", "WandbLogger", f"{option}: wandb")
    draft.set("trainer.logger.init_args", {key: str(value) for key, value in wanted.items() if value})
    draft.note(f"{option} wandb: needs `pip install wandb`; metrics.csv and metrics.jsonl are written anyway")


WITHOUT_CONVOLUTIONS = ("attn-only", "attn-mlp", "full-lin")


def place_algorithm(draft: Draft, name: Any, source: str) -> str:
    """The algorithm of LyCORIS. Errors: `ConfigError` for one that is not here, with what to take instead."""
    from dreamlit.adapters.lycoris_options import algorithm

    found = algorithm(str(name))
    draft.set("adapter.algo", found, source)
    return found


def settle_lycoris(draft: Draft, algo: str) -> None:
    """Takes out options that the algorithm, or the preset, has no use for, and tells them."""
    from dreamlit.adapters.lycoris_options import FEATURES

    inside = f"{SHORT['adapter']}."
    given = draft.values.get(f"{inside}preset")
    preset = given.value if given else None
    linear = isinstance(preset, str) and preset in WITHOUT_CONVOLUTIONS
    for key in [key for key in draft.values if key.startswith(inside)]:
        option = key.removeprefix(inside)
        if option not in FEATURES[algo] | {"rank", "algo", "preset"}:
            draft.idle[f"{option} of LyCORIS"] = f"{algo} does not use it"
            del draft.values[key]
        elif linear and option in ("conv_rank", "conv_alpha", "use_tucker"):
            draft.idle[f"{option} of LyCORIS"] = f"the preset {preset} takes no convolutions"
            del draft.values[key]


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
