"""What `dreamlit plan` prints: images found and filtered, draws, shares, batches, and how often each image is seen."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from rich.console import Console
from rich.table import Table

from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.datamodules.plan import Plan, Stream
from dreamlit.datamodules.samples import Manifest
from dreamlit.types import Role


class PlanReport:
    """The run's plan in numbers; every number is computed from the plan itself, so it is what the run does.

    Args:
        manifest: What is used and what is not.
        plan: What is seen when.
        accumulate: Batches in one optimizer step.
        max_steps: Optimizer steps of the run; -1 for no limit.
        max_epochs: Passes over the plan's epoch; None or -1 for no limit. What is reached first ends the run.
    """

    def __init__(
        self, manifest: Manifest, plan: Plan, accumulate: int = 1, max_steps: int = -1, max_epochs: int | None = None
    ) -> None:
        self.manifest = manifest
        self.plan = plan
        self.epoch_batches = plan.batches_per_epoch(accumulate)
        self.steps_per_epoch = self.epoch_batches // accumulate
        limits = [max_steps] if max_steps > 0 else []
        limits += [max_epochs * self.steps_per_epoch] if max_epochs and max_epochs > 0 else []
        self.steps = min(limits, default=self.steps_per_epoch)
        self.batches = self.steps * accumulate
        self.draws = plan.draws_of_streams(self.batches)

    def is_regularisation(self, stream: Stream) -> bool:
        return self.manifest.samples[stream.members[0]].role == Role.REGULARISATION

    def regularisation_share(self) -> Fraction:
        """Draws of regularisation images among all draws of the run."""
        regularisation = sum(n for s, n in zip(self.plan.streams, self.draws, strict=True) if self.is_regularisation(s))
        return Fraction(regularisation, max(1, sum(self.draws)))

    def print(self, console: Console) -> None:
        console.print(self._datasets())
        console.print(self._buckets())
        for sample in self.manifest.held_out:
            line = f"held out: {sample.id}: evaluated, never trained on"
            console.print(line, markup=False, highlight=False)
        for dataset_id, name, reason in self.manifest.filtered:
            console.print(f"not used: {dataset_id}/{name}: {reason}", markup=False, highlight=False)
        for dataset_id, name, reason in self.manifest.ignored:
            console.print(f"ignored: {dataset_id}/{name}: {reason}", markup=False, highlight=False)
        for warning in self.manifest.warnings:
            console.print(f"warning: {warning}", markup=False, highlight=False)
        console.print(
            f"epoch: {self.epoch_batches} batches of {self.plan.batch_size} = {self.steps_per_epoch} optimizer "
            f"steps. Run: {self.steps} optimizer steps, {self.batches} batches, {sum(self.draws)} images drawn, "
            f"{100 * float(self.regularisation_share()):.1f} % of them regularisation",
            highlight=False,
        )

    def _datasets(self) -> Table:
        used = Counter(s.dataset_id for s in self.manifest.samples)
        evaluated = Counter(s.dataset_id for s in self.manifest.eval_samples)
        filtered = Counter(dataset_id for dataset_id, _, _ in self.manifest.filtered)
        held_out = Counter(s.dataset_id for s in self.manifest.held_out)
        heads = ("dataset", "role", "found", "used", *(["held out"] if held_out else []), "not used", "repeats")
        table = Table(*heads, "probability", title="datasets")
        for spec in self.manifest.specs:
            if not isinstance(spec, ImageDataset):
                continue
            n = used[spec.id] + evaluated[spec.id]
            held = held_out[spec.id]
            role = "evaluation" if spec.is_eval else spec.role.name.lower()
            found = (n + filtered[spec.id], n - held, *([held] if held_out else []), filtered[spec.id])
            row = (*found, f"{spec.repeats:g}", f"{spec.probability:g}")
            table.add_row(spec.id, role, *(str(cell) for cell in row))
        return table

    def _buckets(self) -> Table:
        table = Table(
            *("bucket", "dataset", "images", "draws a pass", "share", "draws in the run", "batches", "each image seen"),
            title="what is seen",
        )
        batches = self.plan.batches_of_buckets(self.batches)
        total = max(1, sum(self.draws))
        for stream, draws in zip(self.plan.streams, self.draws, strict=True):
            height, width = stream.bucket
            times, more = divmod(draws, len(stream.members))
            table.add_row(
                f"{width} x {height}",
                stream.dataset_id,
                str(len(stream.members)),
                f"{float(stream.rate):g}",
                f"{100 * draws / total:.1f} %",
                str(draws),
                str(batches[stream.bucket]),
                f"{times} to {times + 1} times" if more else f"{times} times",
            )
        return table
