"""From options to a folder of masks: what is to do, batch by batch, and what is said about it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from dreamlit.datamodules.fills import ahead, is_out_of_memory, progress_bar
from dreamlit.datamodules.images import Photo, decode
from dreamlit.datamodules.sources import LocalSource
from dreamlit.encoder_input import MAX_ASPECT
from dreamlit.errors import ConfigError, DataError, Faults
from dreamlit.masking.comparing import compare, truths_of
from dreamlit.masking.finishing import Finish, area
from dreamlit.masking.folders import apart, mask_names, photos_of
from dreamlit.masking.record import RECORD, Line, Record, digest, digest_of_file, listed, png
from dreamlit.masking.segmenters import Segmenter, choose
from dreamlit.masking.sheet import write_sheets


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dreamlit masks` was asked for; the fields are its options."""

    input_dir: str
    output_dir: str
    text_input: tuple[str, ...] = ()
    subtract: tuple[str, ...] = ()
    model: str | None = None
    sam: str | None = None
    alpha: bool = False
    threshold: float | None = None
    finish: Finish = dataclasses.field(default_factory=Finish)
    batch_size: int = 4
    device: str | None = None
    compare: str | None = None
    dry_run: bool = False

    def faults(self) -> list[str]:
        """What is wrong with the options before any file is read, one sentence each."""
        lines = self.finish.faults()
        if self.threshold is not None and not 0 < self.threshold < 1:  # true for NaN
            lines.append(f"--threshold {self.threshold} must lie between 0 and 1")
        if self.batch_size < 1:
            lines.append(f"--batch_size {self.batch_size} must be at least 1")
        prompts = [*self.text_input, *self.subtract]
        if any(not prompt.strip() for prompt in prompts):
            lines.append("a text is empty; say what counts, for example --text_input dog")
        if both := sorted(set(self.text_input) & set(self.subtract)):
            lines.append(f"{both[0]!r} is in --text_input and in --subtract: nothing would be left")
        if self.subtract and not self.text_input:
            lines.append("--subtract takes away from what --text_input finds; give both")
        if self.alpha:
            lines += self._alpha_faults()
        elif not self.text_input and not self.model:
            lines.append("say what counts: --text_input TEXT, --model a foreground model, or --alpha")
        return lines

    def _alpha_faults(self) -> list[str]:
        given = {"text_input": self.text_input, "subtract": self.subtract, "model": self.model, "sam": self.sam}
        if self.device:
            given["device"] = self.device
        idle = [f"--{name}" for name, value in given.items() if value]
        lines = [f"--alpha takes the images' own alpha channels; leave out {', '.join(idle)}"] if idle else []
        shaping = {"--padding": self.finish.padding, "--largest_only": self.finish.largest_only}
        if self.threshold is None and (wanting := [name for name, value in shaping.items() if value]):
            lines.append(f"{', '.join(wanting)} with --alpha needs --threshold: which alpha belongs to the subject")
        return lines

    def deciding(self, segmenter: Segmenter) -> dict[str, Any]:
        """All that decides the masks, as plain values; a dry run leaves out models that are not downloaded yet."""
        cut = segmenter.threshold if self.threshold is None else self.threshold
        texts = {"text_input": list(self.text_input), "subtract": list(self.subtract)}
        known = not self.dry_run or all(model.is_here() for model in segmenter.models)
        return {
            "model": segmenter.fingerprint() if known else None,
            **texts,
            "threshold": cut,
            **dataclasses.asdict(self.finish),
        }


def make_masks(options: Options) -> None:
    """Makes the masks that are not there yet and says what was found.

    Raises:
        ConfigError: when options are wrong or do not go together.
        ModelError: when a model cannot be read.
        DataError: when a folder or file cannot be used. Images that cannot be read are told at the end, after all
            others have their masks.
    """
    faults = Faults("these masks cannot be made", ConfigError)
    for line in options.faults():
        faults.add(line)
    faults.raise_if_any()
    source = photos_of(options.input_dir)
    apart(source, pathlib.Path(options.output_dir))
    names = mask_names(source)
    truths = truths_of(options.compare, list(names)) if options.compare else None
    segmenter = choose(options.alpha, options.model, options.sam, bool(options.text_input))
    record = Record(pathlib.Path(options.output_dir), options.deciding(segmenter))
    record.read()
    work = Work(options, source, names, segmenter, record)
    work.look()
    print(work.plan())
    if options.dry_run:
        return
    if work.todo:
        work.load()
        work.run()
    print(work.told())
    if truths:
        done = {name: mask for name, mask in names.items() if name in record.lines}
        print(compare(record.folder, done, truths))
    work.bad.raise_if_any()


class Work:
    """One call of the command.

    Args:
        options: What was asked for.
        source: The photos.
        names: Image name -> mask name.
        segmenter: Not loaded yet.
        record: What was made before; read already.
    """

    def __init__(
        self, options: Options, source: LocalSource, names: dict[str, str], segmenter: Segmenter, record: Record
    ) -> None:
        self.options, self.source, self.names = options, source, names
        self.segmenter, self.record = segmenter, record
        self.bad = Faults("these images have no mask; all others do", DataError)
        self.todo: set[str] = set()
        self.edited: dict[str, str] = {}
        """Images whose masks were changed by hand -> the digests of those masks."""

    def look(self) -> None:
        """Finds out which masks are to be made.

        Raises:
            DataError: when a mask that is not of this command, or was changed by hand, would be written over.
        """
        faults = Faults(f"{self.record.folder} holds masks that would be lost; move them away", DataError)
        for finding in self.source.broken:
            self.bad.add(f"{finding.name}: {finding.reason}")
        for name, mask in self.names.items():
            line, there = self.record.lines.get(name), digest_of_file(self.record.folder / mask)
            if line is None and there is not None:
                faults.add(f"{mask} was not made by this command")
                continue
            try:
                changed = line is None or line["photo"] != digest(self.source.read(name))
            except DataError as error:
                self.bad.add(str(error))
                continue
            if there is None:
                self.todo.add(name)
            elif line is not None and there != line["digest"]:
                self.edited[name] = there
                if changed:
                    faults.add(f"{mask} was changed by hand, and its image {name} is another one now")
            elif changed:
                self.todo.add(name)
        faults.raise_if_any()

    def plan(self) -> str:
        """What is there and what is to be done."""
        models = " with ".join(model.place for model in self.segmenter.models) or "the images' alpha channels"
        what = " or ".join(map(repr, self.options.text_input)) or "the subject"
        without = f" without {' or '.join(map(repr, self.options.subtract))}" if self.options.subtract else ""
        there = len(self.names) - len(self.todo)
        lines = [f"masks: {len(self.names)} images of {self.source.where}, {len(self.todo)} masks to make"]
        lines[0] += f", {there} in {self.record.folder} already" if there else f" in {self.record.folder}"
        lines.append(f"  {what}{without} by {models}")
        if self.edited:
            lines.append(f"  changed by hand and kept: {listed(self.edited)}")
        lost = [line["mask"] for name, line in self.record.lines.items() if name not in self.names]
        if lost:
            lines.append(f"  masks without an image, which a run will refuse: {listed(lost)}; remove them")
        if self.options.dry_run and self.todo:
            lines.append(f"  to make: {listed(sorted(self.todo), 10)}")
        return "\n".join(lines)

    def load(self) -> None:
        """Loads the models. Errors: as `Segmenter.load`."""
        import torch

        device = self.options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        prompts = dict.fromkeys([*self.options.text_input, *self.options.subtract])
        self.segmenter.load(list(prompts), self.options.threshold, device)

    def run(self) -> None:
        """Makes all masks that are to be made.

        Batches are cut from the list of all images, whatever is there already: the photos of one batch share the
        roundings of one forward, so that a command that was stopped goes on to the very same files.
        """
        self.record.write()
        every, size = list(self.names), self.options.batch_size
        groups = [every[start : start + size] for start in range(0, len(every), size)]
        groups = [group for group in groups if self.todo.intersection(group)]
        with progress_bar("masks", len(self.todo), shown=True) as advance:
            for group, photos in ahead(self._photos, groups, depth=1):
                for line, mask in self._masks(photos):
                    if line["image"] in self.todo:
                        self.record.add(line, mask)
                advance(len(self.todo.intersection(group)))
        self.record.lines = {name: self.record.lines[name] for name in self._order()}
        self.record.write()

    def _order(self) -> list[str]:
        """Images that have a line, in their own order; those that are gone come last."""
        gone = [name for name in self.record.lines if name not in self.names]
        return [*(name for name in self.names if name in self.record.lines), *gone]

    def _photos(self, group: list[str]) -> list[tuple[str, Photo, str]]:
        """Name, photo and digest of each image of a group that can be read."""
        found = []
        for name in group:
            try:
                data = self.source.read(name)
                photo = decode(data, name)
            except DataError as error:
                self.bad.add(str(error))
                continue
            short, long = sorted(photo.pixels.shape[:2])
            if self.segmenter.models and long > MAX_ASPECT * short:
                self.bad.add(
                    f"{name}: a strip of {photo.pixels.shape[1]} x {photo.pixels.shape[0]} pixels is no picture"
                )
                continue
            found.append((name, photo, digest(data)))
        return found

    def _masks(self, photos: list[tuple[str, Photo, str]]) -> Iterator[tuple[Line, bytes]]:
        """The line and the PNG of each photo."""
        if not photos:
            return
        try:
            found = self.segmenter.regions([photo for _, photo, _ in photos])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"memory ran out for {len(photos)} images at once; give a smaller --batch_size or another --device. "
                "All masks made so far are kept"
            ) from None
        wanted = len(dict.fromkeys(self.options.text_input)) or 1
        for (name, photo, own), regions in zip(photos, found, strict=True):
            mask, warnings = self.options.finish.mask(regions[:wanted], regions[wanted:])
            data = png(mask)
            height, width = mask.shape
            yield (
                {
                    "image": name,
                    "mask": self.names[name],
                    "width": width,
                    "height": height,
                    "area": round(area(mask), 4),
                    "found": {region.name: region.described() for region in regions},
                    "warnings": [*warnings, *photo.notes],
                    "photo": own,
                    "digest": digest(data),
                },
                data,
            )

    def told(self) -> str:
        """Where the masks are, and which are worth a look."""
        lines = [self._as_it_is(name) for name in self.names if name in self.record.lines]
        if not lines:
            return "masks: none made"
        pages, troubles = write_sheets(self.source, self.record.folder, lines)
        mean = sum(line["area"] for line in lines) / len(lines)
        said = [f"masks: {self.record.folder} ({len(lines)}; {mean:.0%} of an image counts on average), see {RECORD}"]
        said += [f"  {line['image']}: {warning}" for line in lines for warning in line["warnings"]]
        said += [f"  {trouble}" for trouble in troubles]
        if pages:
            said.append(f"look at {', '.join(map(str, pages))}")
        return "\n".join(said)

    def _as_it_is(self, name: str) -> Line:
        line = self.record.lines[name]
        if name not in self.edited:
            return line
        return {**line, "digest": self.edited[name], "warnings": ["changed by hand"]}
