"""The list of datasets of a run, as a type that jsonargparse knows.

`datasets: DatasetSpecs` as a parameter accepts a YAML list of entries, the path of a JSON or YAML file with such a
list, or the list as text on the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

from jsonargparse.typing import register_type

from dreamlit.datamodules.config_checks import folder_faults
from dreamlit.datamodules.config_entries import (
    CaptionShuffle,
    CaptionTable,
    ConditioningDataset,
    DatasetSpec,
    ImageDataset,
    Size,
    TextEmbedsDataset,
    size_of,
)
from dreamlit.datamodules.config_read import read_entries, read_list, read_text, to_mapping
from dreamlit.datamodules.config_values import shown
from dreamlit.errors import ConfigError, DataError, Faults

__all__ = [
    "CaptionShuffle",
    "CaptionTable",
    "ConditioningDataset",
    "DatasetSpec",
    "DatasetSpecs",
    "ImageDataset",
    "Size",
    "TextEmbedsDataset",
    "check_folders",
    "size_of",
]


class DatasetSpecs(Sequence[DatasetSpec]):
    """The enabled datasets of a run, checked one by one and together. It cannot be changed.

    Args:
        items: Entries as mappings (as YAML or JSON give them) or as dataclasses.

    Raises:
        ConfigError: One report of all faults, each with the index in the list and the dataset's id.
    """

    def __init__(self, items: Iterable[Any] = ()) -> None:
        items = list(items)
        self._specs = tuple(read_entries(items)) if items else ()

    def __len__(self) -> int:
        return len(self._specs)

    @overload
    def __getitem__(self, index: int) -> DatasetSpec: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[DatasetSpec, ...]: ...

    def __getitem__(self, index: int | slice) -> DatasetSpec | tuple[DatasetSpec, ...]:
        return self._specs[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DatasetSpecs) and self._specs == other._specs

    def __hash__(self) -> int:
        return hash(self._specs)

    def __repr__(self) -> str:
        return f"DatasetSpecs({list(self._specs)})"

    @classmethod
    def parse(cls, value: Any) -> DatasetSpecs:
        """Reads a list of entries, the path of a JSON or YAML file, or a list as YAML text.

        Relative paths start at the working folder, those in a file too.
        """
        if isinstance(value, str):
            is_text = value.lstrip().startswith("[")
            return cls(read_text(value, "datasets") if is_text else read_list(value))
        if not isinstance(value, Sequence):
            raise ConfigError(
                f"datasets: came {shown(value)}; allowed: a list of entries, or the path of a JSON or YAML file"
            )
        if not value:
            raise ConfigError("datasets: the list is empty; give at least one entry with id and instance_data_dir")
        return cls(value)

    def to_list(self) -> list[dict[str, Any]]:
        """The entries as plain values with absolute paths; `DatasetSpecs.parse` makes equal ones of it, in any
        folder."""
        return [to_mapping(spec) for spec in self]

    @property
    def images(self) -> list[ImageDataset]:
        """The datasets that are trained on."""
        return [spec for spec in self if isinstance(spec, ImageDataset) and not spec.is_eval]

    @property
    def evals(self) -> list[ImageDataset]:
        """The datasets that a loss is measured on."""
        return [spec for spec in self if isinstance(spec, ImageDataset) and spec.is_eval]

    def masks_of(self, spec: ImageDataset) -> ConditioningDataset | None:
        """The masks of an image dataset."""
        found = [
            other for other in self if isinstance(other, ConditioningDataset) and other.id == spec.conditioning_data
        ]
        return found[0] if found else None

    @property
    def text_cache_dir(self) -> str | None:
        """Where text embeddings are stored, if an entry says so."""
        return next((spec.cache_dir for spec in self if isinstance(spec, TextEmbedsDataset)), None)


def check_folders(specs: Iterable[DatasetSpec]) -> None:
    """Checks that the folders and caption tables of all entries are there; shards are checked when they are opened.

    Raises:
        DataError: One report of everything that is missing.
    """
    faults = Faults("dataset folders cannot be used", DataError)
    for line in folder_faults(list(specs)):
        faults.add(line)
    faults.raise_if_any()


register_type(DatasetSpecs, serializer=DatasetSpecs.to_list, deserializer=DatasetSpecs.parse)
