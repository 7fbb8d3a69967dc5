"""Errors that say what came, what is allowed and what to do; and one report for all faults of a kind."""

from __future__ import annotations

from collections.abc import Iterable


class DreamlitError(Exception):
    """Base of every error that a user can cause and mend. The command prints it without a traceback and exits 2."""


class ConfigError(DreamlitError):
    """A key, value or class in a configuration is wrong."""


class DataError(DreamlitError):
    """A file, caption, mask or dataset folder cannot be used."""


class ModelError(DreamlitError):
    """A model folder or weight file is missing, incomplete or of another kind."""


class CombinationError(DreamlitError):
    """Options that are right alone do not work together."""


class CheckpointError(DreamlitError):
    """A checkpoint or adapter file cannot be used for what was asked."""


class Faults:
    """Collects faults of one kind, so that a user sees all of them at once.

    >>> faults = Faults("2 masks cannot be used", DataError)
    >>> faults.add("a.png: another aspect ratio")
    >>> faults.raise_if_any()
    """

    def __init__(self, title: str, error: type[DreamlitError] = ConfigError) -> None:
        self.title = title
        self.error = error
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(line)

    def __bool__(self) -> bool:
        return bool(self.lines)

    def raise_if_any(self) -> None:
        if self.lines:
            raise self.error(f"{self.title}:\n" + "\n".join(f"  - {line}" for line in self.lines))


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of an error sentence about a wrong name: the nearest right one and the whole list."""
    import difflib  # here, so that `dreamlit --help` does not pay for it

    names = sorted(str(item) for item in allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(names) or 'nothing'}"
