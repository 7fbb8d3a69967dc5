"""What becomes of an option of another trainer: it is mapped, needed by nobody here, or refused."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, Literal

Fact = Literal[
    "lora", "lycoris", "full", "flow", "diffusion", "refiner", "flux", "sd", "autoencoder", "prompted", "guided"
]
WHEN: dict[str, str] = {
    "lora": "a LoRA",
    "lycoris": "LyCORIS",
    "full": "full-rank training",
    "flow": "models of flow matching",
    "diffusion": "models of epsilon or v prediction",
    "refiner": "SDXL's refiner",
    "flux": "Flux.1 dev",
    "sd": "SD, SDXL, its refiner and Kolors",
    "autoencoder": "models with an autoencoder",
    "prompted": "models that draw from a prompt alone",
    "guided": "models with a negative prompt",
}
"""Facts about a run on which options depend, in words."""


class Misfit(Exception):
    """A value that has no counterpart; the text says why, and the nearest thing that works."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What happens to one option."""

    kind: Literal["to", "idle", "refused"]
    key: str = ""
    """Where the value goes: a dotted key of the run, with `family.`, `adapter.`, `optimizer.`, `objective.` short for
    their options, and `callbacks.NAME.option`; of a dataset a key of its entry. What starts with `_` is kept for the
    code that puts several options together."""
    convert: Callable[[Any], Any] | None = None
    why: str = ""
    """The reason; of a mapped option what is different here, if anything is."""
    off: tuple[Any, ...] = ()
    """Values with which a refused option asks for nothing."""
    default: Any = None
    """What the other trainer takes where the option is not given and this project would take something else."""
    when: Fact | None = None
    """The option means something only where this holds."""
    here: str = ""
    """Where an option that is put together with others ends up, in words for the table of the docs."""


Rules = Mapping[str, Rule]
"""By the option's name; a name with `*` stands for all that match and have no rule of their own."""


def to(
    key: str,
    convert: Callable[[Any], Any] | None = None,
    note: str = "",
    default: Any = None,
    when: Fact | None = None,
) -> Rule:
    """Mapped; a `convert` may raise `Misfit`."""
    return Rule("to", key, convert, note, default=default, when=when)


def part(name: str, here: str, note: str = "", default: Any = None, when: Fact | None = None) -> Rule:
    """Mapped together with others; `here` says to what."""
    return Rule("to", f"_{name}", None, note, default=default, when=when, here=here)


def idle(why: str) -> Rule:
    """Nothing here needs it."""
    return Rule("idle", why=why)


def refused(why: str, *off: Any) -> Rule:
    """Has no counterpart, unless its value is one of `off` (or false, null, 0, empty)."""
    return Rule("refused", why=why, off=off)


def each(rule: Rule, names: str) -> dict[str, Rule]:
    """The same rule for several names."""
    return dict.fromkeys(names.split(), rule)


def rule_of(rules: Rules, name: str) -> Rule | None:
    """The rule of an option: its own, or the first with a `*` that matches."""
    if name in rules:
        return rules[name]
    return next(
        (rule for pattern, rule in rules.items() if "*" in pattern and fnmatch.fnmatchcase(name, pattern)), None
    )


def is_on(value: Any) -> bool:
    """Whether a switch is on, also where it is written as text."""
    return str(value).lower() in ("true", "1")


def is_off(value: Any, rule: Rule) -> bool:
    """Whether a refused option asks for nothing."""
    nothing = (*rule.off, None, False, 0, "", "none", "None", "false", "0", [], {})
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in nothing)


# values ---------------------------------------------------------------------------------------------------------------


def one_of(what: str, names: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A converter of names; one that is not there is a misfit."""

    def convert(value: Any) -> Any:
        if str(value) in names:
            return names[str(value)]
        raise Misfit(f"no {what} {value!r} here; there are {', '.join(dict.fromkeys(map(str, names.values())))}")

    return convert


def only(*names: str, instead: str) -> Callable[[Any], Any]:
    """A converter that lets these names through and says of any other what to do."""

    def convert(value: Any) -> Any:
        if str(value) in names:
            return str(value)
        raise Misfit(f"{value!r} is not here; {instead}")

    return convert


def whole(value: Any) -> int:
    """A whole number."""
    found = number(value)
    if found != int(found):
        raise Misfit(f"{value!r} is not a whole number")
    return int(found)


def number(value: Any) -> float:
    """A finite number."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise Misfit(f"{value!r} is not a number") from None
    if isinstance(value, bool) or not abs(found) < float("inf"):
        raise Misfit(f"{value!r} is not a number")
    return int(value) if isinstance(value, int) else found


def flag(value: Any) -> bool:
    """A switch, also where it is written as text."""
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "1", "yes", "on"):
        return True
    if str(value).lower() in ("false", "0", "no", "off", "none", ""):
        return False
    raise Misfit(f"{value!r} is neither true nor false")


def text(value: Any) -> str:
    """Text; a number that stands for a name becomes one."""
    if isinstance(value, (dict, list)):
        raise Misfit(f"{value!r} is not text")
    return str(value)


def words(value: Any) -> list[str]:
    """A list, also where it is written as text with commas."""
    found = value if isinstance(value, list) else str(value).split(",")
    return [str(one).strip() for one in found if str(one).strip()]


def above_zero(value: Any) -> int:
    """A whole number above 0."""
    found = whole(value)
    if found < 1:
        raise Misfit(f"{value!r} is not above 0")
    return found
