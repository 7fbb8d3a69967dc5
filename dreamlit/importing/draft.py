"""The run that is being put together: each value with the option that it comes from, and what has no place in it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from dreamlit.importing.rules import WHEN, Misfit, Rule, Rules, is_off, rule_of

SHORT = {
    "family": "model.family.init_args",
    "adapter": "model.adapter.init_args",
    "optimizer": "model.optimizer.init_args",
    "objective": "model.objective",
}
ORDER = ("seed_everything", "trainer", "model", "checkpoint", "data")
OF_A_MODEL = ("family", "adapter", "optimizer", "objective")
OF_A_DATASET = ("id", "dataset_type", "conditioning_type", "instance_data_dir", "conditioning_data", "caption_strategy")
OF_A_DATASET += ("instance_prompt", "resolution", "resolution_type", "crop", "repeats")
SECRETS = ("token", "secret", "password", "key", "url", "webhook", "auth")
NAMED_LIKE_SECRETS = ("_tokens", "token_", "tokenizer")
"""Names that have a word of `SECRETS` in them and are none: class_tokens, keep_tokens, token_warmup_min."""
LIKE_SECRETS = re.compile(
    r"(?<=://)[^/@\s]+@|(?<=://)\S*(?:webhook|services/|[?&]\w+=)\S*|\b(?:hf_|sk-|ghp_|github_pat_|xox\w-|AKIA)[\w-]{8,}"
)
"""Values that are secrets whatever their name is: in a URL, or by how tokens begin."""


@dataclasses.dataclass(frozen=True)
class Noted:
    """A value and the comment behind it."""

    value: Any
    comment: str = ""


@dataclasses.dataclass
class Draft:
    """What was found so far."""

    tool: str
    """The other trainer's name."""
    facts: set[str] = dataclasses.field(default_factory=set)
    """What holds of this run, as in `rules.WHEN`."""
    values: dict[str, Noted] = dataclasses.field(default_factory=dict)
    """By dotted keys of the run."""
    parts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options that are mapped together with others, by the names of their rules."""
    part_names: dict[str, str] = dataclasses.field(default_factory=dict)
    """What the other trainer calls them."""
    callbacks: dict[str, dict[str, Noted]] = dataclasses.field(default_factory=dict)
    """By class name; a second one of a class has a space and a number behind it."""
    datasets: list[dict[str, Noted]] = dataclasses.field(default_factory=list)
    idle: dict[str, str] = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    unknown: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    """What the other trainer does otherwise."""

    def apply(self, rules: Rules, options: Mapping[str, Any], where: str = "", into: Any = None) -> None:
        """Takes every option of the source, and the defaults of those that are not there.

        Args:
            rules: What becomes of each.
            options: By their names.
            where: Said before the names in reports: "dataset dog, ".
            into: A dataset's entry to put the values into, instead of the run.
        """
        given = {name: value for name, value in options.items() if value is not None and value != ""}
        for name, value in given.items():
            rule = rule_of(rules, name)
            if rule is None:
                self.unknown[where + name] = shown(name, value)
            else:
                self._take(rule, where, name, value, f"{name}: {shown(name, value)}", into)
        said = {rule.key for rule in (rule_of(rules, name) for name in given) if rule}  # also by another name
        for name, rule in rules.items():
            if rule.default is not None and rule.key not in said:
                applies = rule.when is None or rule.when in self.facts
                if applies:
                    self._take(rule, where, name, rule.default, f"the default of {name} in {self.tool}", into)

    def _take(self, rule: Rule, where: str, name: str, value: Any, source: str, into: Any) -> None:
        if rule.kind == "idle":
            self.idle[where + name] = rule.why
        elif rule.kind == "refused":
            if is_off(value, rule):
                self.idle[where + name] = "it asks for nothing"
            else:
                self.refuse(where + name, value, rule.why)
        elif rule.when and rule.when not in self.facts:
            self.idle[where + name] = f"it is for {WHEN[rule.when]}"
        elif rule.key.startswith("_"):
            self.parts[rule.key[1:]] = value
            self.part_names[rule.key[1:]] = where + name
            if rule.why:
                self.note(f"{where}{source}: {rule.why}")
        else:
            self._map(rule, where, name, value, source, into)

    def _map(self, rule: Rule, where: str, name: str, value: Any, source: str, into: Any) -> None:
        try:
            converted = rule.convert(value) if rule.convert else value
        except Misfit as misfit:
            self.refuse(where + name, value, str(misfit))
            return
        if into is None:
            self.set(rule.key, converted, source)
        else:
            into[rule.key] = Noted(converted, source)
        if rule.why:
            self.note(f"{where}{source}: {rule.why}")

    def set(self, key: str, value: Any, source: str = "") -> None:
        """Puts a value at a key (see `Rule.key`), with its comment."""
        head, _, rest = key.partition(".")
        if head == "callbacks":
            name, _, option = rest.partition(".")
            self.callbacks.setdefault(name, {})[option] = Noted(value, source)
        else:
            self.values[f"{SHORT[head]}.{rest}" if head in SHORT else key] = Noted(value, source)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def refuse(self, name: str, value: Any, why: str) -> None:
        self.refused[f"{name}: {shown(name, value)}"] = why

    def take(self, name: str, usual: Any = None) -> Any:
        """An option that is mapped with others, once; `usual` where it is not there."""
        value = self.parts.pop(name, None)
        return usual if value is None else value

    def take_number(self, name: str, convert: Any, usual: Any = None) -> Any:
        """The same, converted; one that does not fit is refused, and `usual` stands in its place."""
        value = self.take(name)
        if value is None:
            return usual
        try:
            return convert(value)
        except Misfit as misfit:
            self.refuse(self.part_names.get(name, name), value, str(misfit))
            return usual

    def forget(self, *names: str, why: str = "") -> None:
        """Parts that are not asked for: read already, or, with `why`, of no use beside the others."""
        for name in names:
            if self.parts.pop(name, None) is not None and why:
                self.idle[self.part_names[name]] = why

    def tree(self) -> dict[str, Any]:
        """The configuration, with `Noted` leaves."""
        root: dict[str, Any] = {}
        for key, value in self.values.items():
            *above, last = key.split(".")
            place = root
            for name in above:
                place = place.setdefault(name, {})
            place[last] = value
        if self.callbacks:
            made = [{"class_path": name.split()[0], **entry_args(o)} for name, o in self.callbacks.items()]
            root.setdefault("trainer", {})["callbacks"] = made
        if self.datasets:
            listed = [ordered(one, OF_A_DATASET) for one in self.datasets]
            root.setdefault("data", {})["datasets"] = listed
        parts = root.get("model", {})
        for name in OF_A_MODEL:
            if isinstance(parts.get(name), dict):
                parts[name] = ordered(parts[name], ("class_path",))
        root["model"] = ordered(parts, OF_A_MODEL)
        return ordered(root, ORDER)


def ordered(node: dict[str, Any], first: tuple[str, ...]) -> dict[str, Any]:
    """A mapping with some keys in front, as a reader expects them."""
    return {name: node[name] for name in (*first, *node) if name in node}


def entry_args(options: dict[str, Noted]) -> dict[str, Any]:
    return {"init_args": options} if options else {}


def is_secret(name: str) -> bool:
    """Whether an option's name says that its value is nobody's business."""
    last = name.lower()
    return any(word in last for word in SECRETS) and not any(word in last for word in NAMED_LIKE_SECRETS)


def shown(name: str, value: Any) -> str:
    """A value on one line as reports show it; never a secret."""
    if isinstance(value, dict):
        return "{" + ", ".join(map(str, value)) + "}"
    if is_secret(name) and not isinstance(value, (bool, int, float)):
        return "(not shown)"
    if isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
        return f"a list of {len(value)}"
    line = LIKE_SECRETS.sub("(not shown)", " ".join(str(value).split()))
    return line if len(line) <= 80 else line[:77] + "..."
