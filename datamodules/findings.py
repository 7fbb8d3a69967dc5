"""What building the manifest finds out besides samples: faults in one report, what is left out, warnings."""

from __future__ import annotations

from collections import defaultdict

from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.errors import DataError

SHOWN = 10
"""How many names or reasons a message lists where the rest is of the same kind."""


class Findings:
    """Collects faults, images left out and warnings over all datasets."""

    def __init__(self) -> None:
        self.filtered: list[tuple[str, str, str]] = []
        self.warnings: list[str] = []
        self._faults: defaultdict[str, list[str]] = defaultdict(list)

    def fault(self, dataset_id: str, line: str) -> None:
        """Notes a fault. One line stands for all datasets that share the file."""
        self._faults[line].append(dataset_id)

    def leave_out(self, dataset_id: str, name: str, reason: str) -> None:
        self.filtered.append((dataset_id, name, reason))

    def bad_file(self, spec: ImageDataset, name: str, reason: str) -> None:
        """Notes an image that cannot be used, as `on_bad_file` says."""
        if spec.on_bad_file == "skip":
            self.leave_out(spec.id, name, reason)
        else:
            self.fault(spec.id, f"{name}: {reason}")

    def warn(self, dataset_id: str, line: str) -> None:
        self.warnings.append(f"{dataset_id}: {line}")

    def raise_faults(self) -> None:
        """Raises one report of all faults, if there are any."""
        if self._faults:
            lines = [f"  - {line}  [{', '.join(dict.fromkeys(ids))}]" for line, ids in self._faults.items()]
            count = f"{len(lines)} fault{'s' if len(lines) > 1 else ''}"
            hint = "Mend them, or set `on_bad_file: skip` to leave out files that cannot be read as an image"
            raise DataError(f"the data cannot be used as it is: {count}. {hint}:\n" + "\n".join(lines))


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
