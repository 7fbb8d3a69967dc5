"""Writes the tables in docs/import.md from the rules of `dreamlit import`.

python scripts/make_import_table.py            # write them
python scripts/make_import_table.py --check    # exit 1 if the file is out of date
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from dreamlit.importing import (
    diffusers_scripts,
    kohya,
    kohya_data,
    simpletuner,
    simpletuner_data,
    simpletuner_lycoris,
    simpletuner_more,
)
from dreamlit.importing.draft import SHORT
from dreamlit.importing.rules import WHEN, Rule, Rules

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "import.md"
START, END = "<!-- tables: made by scripts/make_import_table.py -->", "<!-- end of the tables -->"
SECTIONS: dict[str, dict[str, Rules]] = {
    "SimpleTuner": {
        "Model and precision": simpletuner.MODEL,
        "Adapter": simpletuner.ADAPTER,
        "lycoris_config.json": simpletuner_lycoris.LYCORIS,
        "Length, optimizer, schedule, checkpoints": simpletuner.LENGTH,
        "Loss and noise": simpletuner.LOSS,
        "Average": simpletuner_more.EMA,
        "Scheduled sampling": simpletuner_more.ROLLOUT,
        "Evaluation, previews, webhook, logs": simpletuner_more.LOOKING,
        "A webhook's own configuration": simpletuner_more.WEBHOOK,
        "All else": simpletuner_more.REST,
        "Datasets": simpletuner_data.IMAGES,
    },
    "kohya's sd-scripts": {
        "Model and adapter": kohya.MODEL,
        "network_args": kohya.NETWORK,
        "Length, optimizer, schedule, checkpoints": kohya.LENGTH,
        "Loss and noise": kohya.LOSS,
        "Samples, validation, logs": kohya.LOOKING,
        "All else": kohya.REST,
        "`[[datasets]]`": kohya_data.DATASETS,
        "`[[datasets.subsets]]`": kohya_data.SUBSETS,
    },
    "diffusers' DreamBooth scripts": {
        "Model and adapter": diffusers_scripts.MODEL,
        "Length, optimizer, schedule, checkpoints": diffusers_scripts.LENGTH,
        "Photos and class images": diffusers_scripts.DATA,
        "Previews, logs": diffusers_scripts.LOOKING,
        "All else": diffusers_scripts.REST,
    },
}
"""Tool -> title of a table -> its rules. A test holds that no rule of a tool is left out."""


def place(rule: Rule) -> str:
    """Where a mapped option ends up."""
    if rule.key.startswith("_"):
        return rule.here
    head, _, rest = rule.key.partition(".")
    return f"`{rest if head == 'callbacks' else f'{SHORT[head]}.{rest}' if head in SHORT else rule.key}`"


def remark(rule: Rule) -> str:
    told = [rule.why] if rule.why else []
    told += [f"for {WHEN[rule.when]}"] if rule.when else []
    told += [f"`{rule.default}` where it is not given, as there"] if rule.default is not None else []
    return "; ".join(told)


def table(rules: Rules) -> list[str]:
    """A row for each mapped option; then those that are refused, and those that are not needed, by their reasons."""
    lines = ["| there | here | |", "|---|---|---|"]
    lines += [f"| `{name}` | {place(rule)} | {remark(rule)} |" for name, rule in rules.items() if rule.kind == "to"]
    for kind, what in (("refused", "refused"), ("idle", "not needed")):
        reasons: dict[tuple[str, tuple[object, ...]], list[str]] = {}
        for name, rule in rules.items():
            if rule.kind == kind:
                reasons.setdefault((rule.why, rule.off), []).append(f"`{name}`")
        for (why, off), names in reasons.items():
            usual = f"; `{off[0]}` asks for nothing" if off else ""
            lines.append(f"| {', '.join(names)} | {what} | {why}{usual} |")
    return lines


def tables() -> str:
    lines: list[str] = []
    for tool, sections in SECTIONS.items():
        lines += [f"## {tool}"]
        for title, rules in sections.items():
            lines += [f"### {title}", *table(rules), ""]
    return "\n".join(lines).rstrip()


def page() -> str:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    return f"{before}{START}\n{tables()}\n{END}{rest.split(END)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if docs/import.md is out of date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is out of date: run python scripts/make_import_table.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
