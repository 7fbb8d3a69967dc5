"""The manifest: every photo that a run uses, exactly how, and everything that it does not use, with the reason.

Photos, masks and captions of all datasets are looked at and paired; all faults come in one report.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

from dreamlit.datamodules.captions import read_captions
from dreamlit.datamodules.config_entries import ConditioningDataset, DatasetSpec, ImageDataset
from dreamlit.datamodules.findings import SHOWN, Findings, some
from dreamlit.datamodules.geometry import decide, enlargement, why_left_out
from dreamlit.datamodules.held_out import HoldOut
from dreamlit.datamodules.mask_pairs import MaskPairs
from dreamlit.datamodules.probes import Job, Probe, ProbeCache, probe_all
from dreamlit.datamodules.samples import OPAQUE, Manifest, MaskRef, Sample, open_sources, refuse_dataset_folders
from dreamlit.datamodules.sources import stem_of
from dreamlit.errors import DataError
from dreamlit.types import Geometry

__all__ = ["OPAQUE", "Manifest", "MaskRef", "Sample", "build_manifest"]

Usable = dict[str, tuple[Probe, Geometry]]


def build_manifest(
    specs: Sequence[DatasetSpec],
    alignment: int,
    seed: int,
    progress: bool = True,
    probe_path: str | os.PathLike | None = None,
    download_dir: str | os.PathLike | None = None,
    hold_out: int | float | None = None,
) -> Manifest:
    """Looks at every file of every dataset and decides what is used, how, and what is not.

    Each file is read and hashed; it is decoded unless `probe_path` knows its content from an earlier run.

    Args:
        specs: The dataset entries.
        alignment: Both sides of a training image are multiples of this many pixels.
        seed: The run's seed, for random crops.
        progress: Shows a bar on stderr, where that is a terminal.
        probe_path: A file to remember sizes in. Never inside a dataset folder.
        download_dir: Where shards from `http(s)` URLs are kept; the folder `shards` beside `probe_path` without it.
        hold_out: Images of each subject dataset, or the share of them, that are evaluated instead of trained on.

    Raises:
        DataError: one report of all files, masks and captions that cannot be used, or of a dataset without images.
    """
    if download_dir is None and probe_path is not None:
        download_dir = os.path.join(os.path.dirname(os.fspath(probe_path)), "shards")
    if download_dir is not None:
        refuse_dataset_folders(download_dir, specs, "the cache folder")
    if probe_path is not None:
        refuse_dataset_folders(probe_path, specs, "the cache file")
    for key, folder in [(key, getattr(spec, key, None)) for spec in specs for key in ("cache_dir_vae", "cache_dir")]:
        if folder is not None:  # the list was checked by names alone; here links are followed
            refuse_dataset_folders(folder, specs, key)
    builder = _Builder(specs, alignment, seed, download_dir, hold_out)
    return builder.build(ProbeCache(probe_path), progress)


class _Builder:
    """One use of `build`; see `build_manifest`."""

    def __init__(
        self,
        specs: Sequence[DatasetSpec],
        alignment: int,
        seed: int,
        download_dir: str | os.PathLike | None,
        hold_out: int | float | None,
    ) -> None:
        self.specs, self.alignment, self.seed, self.download_dir = specs, alignment, seed, download_dir
        self.hold_out = hold_out
        enabled = [spec for spec in specs if not spec.disabled]
        self.images = [spec for spec in enabled if isinstance(spec, ImageDataset)]
        self.masks = [spec for spec in enabled if isinstance(spec, ConditioningDataset)]
        self.sources = open_sources(specs, download_dir)
        self.probes: dict[Job, Probe | DataError] = {}
        self.findings = Findings()

    def build(self, cache: ProbeCache, progress: bool) -> Manifest:
        try:
            self.probes = probe_all(self._jobs(), cache, progress)
        finally:  # an interrupted start keeps what it has learned
            self.findings.warnings += filter(None, [cache.save()])
        pairs = MaskPairs(self.sources, self.probes, self.findings)
        for spec in self.masks:
            pairs.check_set(spec, self.images)
        samples = {spec.id: list(self._samples(spec, pairs)) for spec in self.images}
        self.findings.raise_faults()
        trained = [sample for spec in self.images if not spec.is_eval for sample in samples[spec.id]]
        evaluated = [sample for spec in self.images if spec.is_eval for sample in samples[spec.id]]
        self._require_some(trained, evaluated)
        if self.hold_out is not None:
            trained, held = HoldOut(self.hold_out, self.seed, self.findings).split(trained)
            self.findings.raise_faults()
            evaluated += held
        self._require_evaluated(evaluated)
        self.findings.warnings += filter(None, [leak(trained, evaluated)])
        ignored = [(key, name, why) for key, source in self.sources.items() for name, why in source.ignored]
        found = self.findings
        return Manifest(trained, evaluated, found.filtered, ignored, found.warnings, self.specs, self.download_dir)

    def _jobs(self) -> Iterator[Job]:
        for spec in (*self.images, *self.masks):
            kind = "photo" if isinstance(spec, ImageDataset) else "mask"
            source = self.sources[spec.id]
            yield from (Job(kind, source, name) for name in source.names())

    # -- samples ------------------------------------------------------------------------------------------------------

    def _samples(self, spec: ImageDataset, pairs: MaskPairs) -> Iterator[Sample]:
        self._note_broken(spec)
        usable = self._usable(spec)
        self._warn_of_enlargement(spec, usable)
        self._warn_of_shared_stems(spec, usable)
        masks = pairs.of(spec, {name: probe for name, (probe, _) in usable.items()})
        captions = self._captions(spec, list(masks))
        for name, (probe, geometry) in usable.items():
            if name in captions:
                alpha = spec.alpha if probe.transparent else OPAQUE
                place = (f"{spec.id}/{name}", spec.id, name)
                yield Sample(*place, spec.role, probe.content, alpha, geometry, captions[name], masks[name])

    def _note_broken(self, spec: ImageDataset) -> None:
        source = self.sources[spec.id]
        for finding in source.broken:
            self.findings.bad_file(spec, finding.name, finding.reason)
        if not source.names() and not source.broken:
            seen = "".join(f"\n      {name}: {reason}" for name, reason in source.ignored[:SHOWN])
            self.findings.fault(spec.id, f"{source.where} holds no image{'. It holds:' + seen if seen else ''}")

    def _usable(self, spec: ImageDataset) -> Usable:
        """The images that can be read and have a fitting size."""
        result: Usable = {}
        for name in self.sources[spec.id].names():
            probe = self.probes[Job("photo", self.sources[spec.id], name)]
            if isinstance(probe, DataError):
                self.findings.bad_file(spec, name, str(probe).removeprefix(f"{name}: "))
                continue
            if probe.transparent and spec.alpha == "error":
                reason = "has transparent parts, which `alpha: error` refuses. Flatten it, or choose a colour"
                self.findings.bad_file(spec, name, reason)
                continue
            geometry = decide(probe.size, spec, self.alignment, self.seed, f"{spec.id}/{name}")
            reason = why_left_out(geometry, spec)
            if reason:
                self.findings.leave_out(spec.id, name, reason)
                continue
            for note in probe.notes:
                self.findings.warn(spec.id, f"{name}: {note}")
            result[name] = probe, geometry
        return result

    def _captions(self, spec: ImageDataset, names: list[str]) -> dict[str, tuple[str, ...]]:
        """The captions of each image; an image without an entry is left out, for a reason that is noted."""
        try:
            found = read_captions(spec, self.sources[spec.id], names)
        except DataError as error:
            title, *lines = str(error).splitlines()
            for line in lines or [title]:  # its own report becomes part of this one
                self.findings.fault(spec.id, line.removeprefix("  - "))
            return {}
        for name, reason in found.skipped.items():
            self.findings.leave_out(spec.id, name, reason)
        for warning in found.warnings:
            self.findings.warn(spec.id, warning)
        return found.variants

    def _require_some(self, trained: list[Sample], evaluated: list[Sample]) -> None:
        if trained or (evaluated and all(spec.is_eval for spec in self.images)):
            used = {sample.dataset_id for sample in (*trained, *evaluated)}
            for spec in self.images:
                if spec.id not in used:
                    self.findings.warn(spec.id, "all its images are left out; nothing of it is used")
            return
        counts = [f"  {spec.id}: {len(self.sources[spec.id].names())} images, none usable" for spec in self.images]
        reasons = [f"  - {dataset_id}: {name}: {reason}" for dataset_id, name, reason in self.findings.filtered]
        if len(reasons) > SHOWN:
            reasons[SHOWN:] = [f"  ... and {len(reasons) - SHOWN} more"]
        raise DataError("\n".join(["there is no usable image to train on:", *counts, *reasons]))

    def _require_evaluated(self, evaluated: list[Sample]) -> None:
        """Where an evaluation is asked for, there is an image for it: the run would go by a loss that never comes."""
        for spec in self.images:
            if spec.is_eval and not evaluated:
                reasons = [f"{name} {reason}" for key, name, reason in self.findings.filtered if key == spec.id]
                self.findings.fault(
                    spec.id, f"nothing is left to evaluate, all its images are left out: {some(reasons)}"
                )
        self.findings.raise_faults()

    # -- warnings -----------------------------------------------------------------------------------------------------

    def _warn_of_enlargement(self, spec: ImageDataset, usable: Usable) -> None:
        factors = [(factor, name) for name, (_, found) in usable.items() if (factor := enlargement(found)) > 1]
        if factors and spec.max_upscale is None:
            factor, name = max(factors)
            self.findings.warn(
                spec.id,
                f"{len(factors)} of {len(usable)} images are enlarged to reach the training size, the most"
                f" {factor:.2f} times ({name}). `max_upscale` leaves such images out; or lower `resolution`",
            )

    def _warn_of_shared_stems(self, spec: ImageDataset, usable: Usable) -> None:
        has_files = {"caption file": spec.caption_strategy == "textfile", "mask": spec.conditioning_data is not None}
        shared = " and one ".join(what for what, is_so in has_files.items() if is_so)
        groups: dict[str, list[str]] = defaultdict(list)
        for name in usable:
            groups[stem_of(name)].append(name)
        for names in groups.values():
            if shared and len(names) > 1:
                self.findings.warn(spec.id, f"{' and '.join(names)} share one {shared}, as their stem is the same")


def leak(trained: Sequence[Sample], evaluated: Sequence[Sample]) -> str | None:
    """What to tell where images that are evaluated are trained on, too."""
    contents = {sample.content for sample in trained}
    leaked = [sample.id for sample in evaluated if sample.content in contents]
    if not leaked:
        return None
    return f"{len(leaked)} eval images are also trained on, so that their loss says nothing new: {some(leaked)}"
