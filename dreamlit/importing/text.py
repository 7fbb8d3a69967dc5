"""The text of an imported run: YAML in which each line says where it comes from, under a list of what is left out."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import yaml

from dreamlit.importing.draft import Draft, Noted


def text_of(draft: Draft, title: str) -> str:
    """The configuration as YAML, deterministic in what was read."""
    lines = [f"# {title}"]
    for head, told in reports(draft):
        lines += ["#", f"# {head}", *(line for one in told for line in commented(one))]
    return "\n".join([*lines, *mapping(draft.tree(), 0)]) + "\n"


def reports(draft: Draft) -> list[tuple[str, list[str]]]:
    """What the configuration cannot say itself: a title and lines, worst first."""
    found = [
        ("UNKNOWN, NOT IMPORTED:", [f"{name}: {value}" for name, value in draft.unknown.items()]),
        ("NOT IMPORTED, because there is no counterpart:", [f"{n} ({why})" for n, why in draft.refused.items()]),
        ("WHAT IS OTHERWISE HERE:", draft.notes),
        ("Not needed here:", grouped(draft.idle)),
    ]
    return [(head, told) for head, told in found if told]


def grouped(idle: dict[str, str]) -> list[str]:
    """One line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in idle.items():
        by_reason.setdefault(why, []).append(name)
    return [f"{', '.join(names)}: {why}" for why, names in by_reason.items()]


def commented(text: str) -> list[str]:
    return textwrap.wrap(text, 118, initial_indent="#   - ", subsequent_indent="#     ", break_on_hyphens=False)


def mapping(node: dict[str, Any], indent: int) -> list[str]:
    """YAML lines of nested mappings, lists of mappings and plain values."""
    lines, space = [], " " * indent
    for key, given in node.items():
        value, comment = (given.value, given.comment) if isinstance(given, Noted) else (given, "")
        told = " ".join(comment.split())  # a line of its own it may not have
        behind = f"  # {told}" if told and told != f"{key}: {value}" else ""
        if isinstance(value, dict) and value:
            lines += [f"{space}{key}:{behind}", *mapping(value, indent + 2)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{space}{key}:{behind}")
            for item in value:
                first, *rest = mapping(item, indent + 4)
                lines += [f"{space}  - {first.lstrip()}", *rest]
        else:
            lines.append(f"{space}{key}: {plain(value)}{behind}")
    return lines


def plain(value: Any) -> str:
    """A scalar or a list on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    text = text.removesuffix("...").strip()
    return json.dumps(value, ensure_ascii=False) if "\n" in text else text
