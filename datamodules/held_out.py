"""The automatic split: which photos of the subjects are kept for the evaluation and never trained on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from dreamlit.datamodules.findings import Findings
from dreamlit.datamodules.samples import Sample
from dreamlit.errors import ConfigError
from dreamlit.seeds import unit
from dreamlit.types import Role


def check_hold_out(value: int | float | None) -> None:
    """Checks `data.hold_out` as far as that is possible without the photos.

    Args:
        value: A number of images, from 1; a share of them, between 0 and 1; None for no split.

    Raises:
        ConfigError: when the value is out of range.
    """
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    share = isinstance(value, float) and 0 < value < 1
    if value is not None and not (whole or share):
        raise ConfigError(
            f"data.hold_out is {value!r}; allowed: a whole number of images from 1 (2 holds out two of each subject "
            "dataset), or a share between 0 and 1 (0.2 holds out a fifth)"
        )


class HoldOut:
    """Splits the samples of a run into those that are trained on and those that are held out.

    Each subject dataset gives the images whose seeded hash of the content comes first: a pure function of the seed and
    the image, whatever its name and place, so that two datasets with the same photos (at two resolutions, say) hold out
    the same ones. A further copy of a held-out file, in any dataset, is neither trained on nor evaluated again. Copies
    are found by the bytes of the file: one that was saved anew is another image.

    Args:
        amount: Images of each subject dataset, or a share of them (rounded, at least one image).
        seed: The run's seed.
        findings: Takes what is left out, and the faults: a dataset of which nothing would be left to train on.
    """

    def __init__(self, amount: int | float, seed: int, findings: Findings) -> None:
        self.amount, self.seed, self.findings = amount, seed, findings

    def split(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
        """The samples to train on and those held out, both in the order of `samples`."""
        datasets: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if sample.role == Role.INSTANCE:
                datasets[sample.dataset_id].append(sample)
        chosen: dict[str, Sample] = {}  # content -> the sample that was chosen first, to name it
        evaluated: set[str] = set()
        for dataset_id, members in datasets.items():
            for sample in self._chosen(dataset_id, members):
                chosen.setdefault(sample.content, sample)
                evaluated.add(sample.id)
        trained = [sample for sample in samples if sample.content not in chosen]
        self._note(samples, chosen, evaluated)
        self._require_rest(datasets, trained)
        return trained, [sample for sample in samples if sample.id in evaluated]

    def _chosen(self, dataset_id: str, members: list[Sample]) -> list[Sample]:
        first = {sample.content: sample for sample in reversed(members)}  # of several copies the first by name
        count = self.amount if isinstance(self.amount, int) else max(1, math.floor(self.amount * len(first) + 0.5))
        if count >= len(first):
            more = f"at most {len(first) - 1}" if len(first) > 1 else "it needs at least two"
            self.findings.fault(
                dataset_id,
                f"data.hold_out is {self.amount}: {count} of {len(first)} different images would be held out, which "
                f"leaves nothing to train on; {more}",
            )
            return []
        return sorted(first.values(), key=lambda sample: unit(self.seed, "hold-out", sample.content))[:count]

    def _note(self, samples: Sequence[Sample], chosen: dict[str, Sample], evaluated: set[str]) -> None:
        for sample in samples:
            if sample.content in chosen and sample.id not in evaluated:
                reason = f"it is the same picture as {chosen[sample.content].id}, which is held out for the evaluation"
                self.findings.leave_out(sample.dataset_id, sample.name, reason)

    def _require_rest(self, datasets: dict[str, list[Sample]], trained: list[Sample]) -> None:
        left = {sample.dataset_id for sample in trained}
        for dataset_id in datasets:
            if dataset_id not in left:
                self.findings.fault(
                    dataset_id,
                    f"data.hold_out is {self.amount}: every image of this dataset is also in another one, which holds "
                    "it out, so that nothing is left to train on; lower hold_out, or remove the dataset",
                )
