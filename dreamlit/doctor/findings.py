"""What an examination found: facts, problems that would stop a run, and notes."""

from __future__ import annotations

import dataclasses

UNITS = ("B", "KB", "MB", "GB", "TB")


@dataclasses.dataclass
class Findings:
    """Facts by section, in order."""

    facts: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    """(section, what, value)"""
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def fact(self, section: str, what: str, value: object) -> None:
        self.facts.append((section, what, str(value)))

    def print(self) -> None:
        section = ""
        for own, what, value in self.facts:
            if own != section:
                print(f"\n{own}" if section else own)
                section = own
            print(f"  {what:<28} {value}".rstrip())
        print()
        for note in self.notes:
            print(f"note: {note}")
        for problem in self.problems:
            print(f"problem: {problem}")
        count = len(self.problems)
        print("no problems found" if not count else f"{count} problem{'s' if count > 1 else ''} found")


def in_units(size: float) -> str:
    """A number of bytes for people; 1 GB is 1024^3 bytes, as cards are sold."""
    for unit in UNITS:
        if size < 1024 or unit == UNITS[-1]:
            return f"{size:.0f} {unit}" if unit in ("B", "KB", "MB") else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
