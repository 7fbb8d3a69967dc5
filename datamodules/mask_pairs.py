"""Which mask belongs to which photo: by relative path and stem, or the photo's own alpha channel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from dreamlit.datamodules.config_entries import ConditioningDataset, ImageDataset
from dreamlit.datamodules.findings import Findings, some
from dreamlit.datamodules.masks import aspects_agree
from dreamlit.datamodules.probes import Job, Probe
from dreamlit.datamodules.samples import MaskRef
from dreamlit.datamodules.sources import Source, stem_of
from dreamlit.errors import DataError

Masks = dict[str, MaskRef | None]
"""Image name -> its mask, None where the whole image counts; images that are left out are missing."""


class MaskPairs:
    """Finds the masks of all datasets.

    Args:
        sources: The source of each dataset id.
        probes: What is known of each file.
        findings: Where faults and warnings go.
    """

    def __init__(
        self, sources: Mapping[str, Source], probes: Mapping[Job, Probe | DataError], findings: Findings
    ) -> None:
        self.sources, self.probes, self.findings = sources, probes, findings

    def of(self, spec: ImageDataset, photos: Mapping[str, Probe]) -> Masks:
        """The masks of a dataset's photos, given by name."""
        if spec.alpha == "mask":
            return self._of_alpha(spec, photos)
        if spec.conditioning_data is None:
            return dict.fromkeys(photos)
        return self._of_files(spec, photos, spec.conditioning_data)

    def check_set(self, spec: ConditioningDataset, images: Sequence[ImageDataset]) -> None:
        """Notes masks that are no files, and masks that belong to no image of the datasets that name this one."""
        for finding in self.sources[spec.id].broken:
            self.findings.fault(spec.id, f"mask {finding.name}: {finding.reason}")
        users = [image for image in images if image.conditioning_data == spec.id]
        stems = {stem_of(name) for image in users for name in self.sources[image.id].names()}
        for stem, names in self._by_stem(spec.id).items():
            if users and stem not in stems:
                where = ", ".join(image.id for image in users)
                line = f"mask {', '.join(names)}: there is no image {stem}.* in {where}. Remove or rename it"
                self.findings.fault(spec.id, line)

    def _of_files(self, spec: ImageDataset, photos: Mapping[str, Probe], mask_set: str) -> Masks:
        files, result = self._by_stem(mask_set), {}
        for name, photo in photos.items():
            candidates = files.get(stem_of(name), [])
            if len(candidates) > 1:
                self.findings.fault(spec.id, f"{name}: has {len(candidates)} masks: {', '.join(candidates)}. Keep one")
            elif candidates:
                self._take(spec, name, photo, mask_set, candidates[0], result)
            elif spec.missing_mask == "white":
                result[name] = None
            else:
                where = self.sources[mask_set].where
                line = f"{name}: has no mask {stem_of(name)}.* in {where} (or set `missing_mask: white`)"
                self.findings.fault(spec.id, line)
        return result

    def _take(self, spec: ImageDataset, name: str, photo: Probe, mask_set: str, mask: str, result: Masks) -> None:
        """Checks one mask against its photo."""
        probe = self.probes[Job("mask", self.sources[mask_set], mask)]
        if isinstance(probe, DataError):
            if spec.on_bad_file == "skip":
                self.findings.leave_out(spec.id, name, f"its mask {probe}")
            else:
                self.findings.fault(mask_set, f"mask {probe}")
        elif not aspects_agree(probe.size, photo.size):
            line = (
                f"mask {mask}: is {probe.size[1]} x {probe.size[0]} and its image {name}, upright, "
                f"{photo.size[1]} x {photo.size[0]}: another aspect. Make the mask from the upright photo"
            )
            self.findings.fault(mask_set, line)
        else:
            if probe.black:
                self._warn_of_black(spec, name)
            result[name] = MaskRef(mask_set, mask, probe.content)

    def _of_alpha(self, spec: ImageDataset, photos: Mapping[str, Probe]) -> Masks:
        """Alpha channels as masks; a photo without one counts whole."""
        opaque = [name for name, photo in photos.items() if not photo.transparent]
        if opaque:
            of = f"{len(opaque)} of {len(photos)} photos have no transparent parts and count whole"
            self.findings.warn(spec.id, f"alpha: mask, but {of}: {some(opaque)}")
        result: Masks = {}
        for name, photo in photos.items():
            if photo.black:
                self._warn_of_black(spec, name)
            alpha = MaskRef(spec.id, name, f"alpha:{photo.content}", is_alpha=True)
            result[name] = alpha if photo.transparent else None
        return result

    def _warn_of_black(self, spec: ImageDataset, name: str) -> None:
        self.findings.warn(spec.id, f"the mask of {name} is black everywhere: nothing of the image counts in the loss")

    def _by_stem(self, mask_set: str) -> dict[str, list[str]]:
        result: dict[str, list[str]] = defaultdict(list)
        for name in self.sources[mask_set].names():
            result[stem_of(name)].append(name)
        return result
