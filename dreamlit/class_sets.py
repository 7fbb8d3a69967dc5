"""The class images that a run draws for itself: the option `data.class_images`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dreamlit.class_images import Wish, draw_missing, expanded, read_record, subject_samples
from dreamlit.datamodules.class_options import ID, OWN_ID
from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.errors import DataError, ModelError
from dreamlit.families.files import read_json
from dreamlit.previewing import Sampling, prompt_faults
from dreamlit.prompts import text_faults

if TYPE_CHECKING:
    from dreamlit.datamodules.class_options import ClassImages
    from dreamlit.datamodules.dreambooth import DreamBoothData
    from dreamlit.families import Family
    from dreamlit.module import DreamBooth

LAYOUT = 1
"""Part of every address: raised when the same options give other pictures."""
NOT_DRAWN = ("gradient_checkpointing", "channels_last", "compile")
"""Plain options of a family that no picture depends on."""


class SortedWish(Wish):
    """Pictures of each size in a folder of their own, which a dataset of exactly that size can name."""

    def file(self, index: int) -> str:
        picture = self.picture(index)
        return f"{picture.width}x{picture.height}/{super().file(index)}"


class ClassSet:
    """What one run wants drawn, where it lies, and what of it is there.

    Args:
        family: The run's model, of which nothing is loaded here.
        data: The run's data, with `class_images`.
        precision: The Trainer's, in which the pictures are drawn.
    """

    def __init__(self, family: Family, data: DreamBoothData, precision: str) -> None:
        assert data.class_images is not None
        self.family, self.options, self.precision = family, data.class_images, precision
        sizes = [(sample.bucket[1], sample.bucket[0]) for sample in subject_samples(data)]
        prompts, batch_size = tuple(expanded(self.options.prompts)), self.options.batch_size
        sampling = sampling_of(self.options).of(family)
        self.wish = SortedWish(prompts, tuple(sizes), self.options.seed, batch_size, sampling)
        self.root = data.cache_dir / ID

    @functools.cached_property
    def folder(self) -> pathlib.Path:
        """Addressed by everything that decides its pictures: they cannot be stale, and runs share them."""
        facts = {"layout": LAYOUT, "count": self.options.count, "precision": self.precision, **self.wish.described()}
        text = json.dumps([facts, drawn_by(self.family)], sort_keys=True, default=str)
        return self.root / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def done(self) -> list[dict[str, Any]]:
        """The record of what is drawn. Errors: `DataError` when it is damaged."""
        return read_record(self.folder, self.wish, "remove that folder, and its images are drawn again")

    @property
    def missing(self) -> int:
        return self.options.count - sum(line["kept"] for line in self.done())

    def described(self, missing: int) -> str:
        """One line for people."""
        sizes = ", ".join(f"{number} of {size}" for size, number in sorted(self.counts().items()))
        forwards = missing * self.wish.sampling.forwards(self.family)
        return (
            f"class images: {missing} of {self.options.count} are to be drawn ({len(self.wish.prompts)} prompts; "
            f"{sizes}), {forwards} forwards of the denoiser"
        )

    def counts(self) -> Counter[str]:
        """Pictures of each size, by the name of its folder."""
        return Counter(str(pathlib.PurePath(self.wish.file(index)).parent) for index in range(self.options.count))

    def make(self, trainer: Any, progress: bool) -> None:
        """Draws what is missing with the base model, which is freed again; who finds another at it waits for it."""
        if not self.missing:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.folder.with_suffix(".lock")):
            if not (missing := self.missing):
                return
            print(f"{self.described(missing)}: {self.folder}")
            twin = self.family.fresh()  # the run's own parts are loaded later, as if nothing had been drawn
            try:
                draw_missing(trainer, twin, self.folder, self.wish, self.options.count, self.done(), progress=progress)
            finally:
                twin.unload("denoiser", "text_encoders", "vae")

    def datasets(self) -> list[ImageDataset]:
        """The pictures as datasets, one for each size: an area of its own keeps every picture as it was drawn.

        Raises:
            DataError: when some are not drawn yet.
        """
        if missing := self.missing:
            raise DataError(
                f"{missing} of the {self.options.count} pictures of data.class_images are not drawn yet; "
                "`dreamlit prepare` (or `fit`) with this configuration draws them"
            )
        return self.entries(self.folder)

    def entries(self, folder: pathlib.Path) -> list[ImageDataset]:
        made = []
        for size in sorted(self.counts()):
            width, height = map(int, size.split("x"))
            place = {"id": f"{ID}-{size}", "instance_data_dir": str(folder.resolve() / size)}
            area: Any = {"resolution_type": "area", "resolution": width * height / 1e6}
            seen: Any = {"repeats": self.options.repeats, "probability": self.options.probability}
            kind: Any = {"caption_strategy": "textfile", "is_regularisation_data": True}
            made.append(ImageDataset(**place, **area, **seen, **kind))
        return made

    def stand_ins(self, folder: pathlib.Path) -> StandIns:
        """Blank pictures of the same names, sizes and captions, for a plan of what is not drawn yet."""
        from PIL import Image

        for index in range(self.options.count):
            picture, path = self.wish.picture(index), folder / self.wish.file(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (picture.width or 0, picture.height or 0), "grey").save(path)
            path.with_suffix(".txt").write_text(picture.prompt + "\n", encoding="utf-8")
        return StandIns(self.entries(folder))


@dataclasses.dataclass(frozen=True)
class StandIns:
    """In place of a `ClassSet` whose pictures are not to be drawn."""

    entries: list[ImageDataset]

    def datasets(self) -> list[ImageDataset]:
        return self.entries


def sampling_of(options: ClassImages) -> Sampling:
    names = ("steps", "guidance_scale", "guidance_rescale", "negative_prompt", "sampler")
    return Sampling(**{name: getattr(options, name) for name in names})


def drawn_by(family: Family) -> dict[str, Any]:
    """All of a model that decides its pictures, as plain values; it is read off the files, and nothing is loaded."""
    plain = {name: value for name, value in vars(family).items() if isinstance(value, (str, int, float, tuple))}
    before = getattr(family, family.drawn_with) if family.drawn_with else None
    return {
        "parts": {part: family.fingerprint(part) for part in ("denoiser", "text_encoders", "vae")},
        "scheduler": read_json(family.files.configuration("scheduler/scheduler_config.json")),
        "options": {name: value for name, value in plain.items() if name not in NOT_DRAWN},
        "precisions": family.precisions,
        "before": drawn_by(before) if before else None,
    }


def class_image_faults(model: DreamBooth, data: DreamBoothData) -> Iterator[str]:
    """Why `data.class_images` cannot be with the rest of a configuration; no weights are loaded."""
    options = data.class_images
    if options is None:
        return
    own = [spec.id for spec in data.specs if OWN_ID.fullmatch(spec.id)]
    if own:
        yield f"data.class_images makes datasets of such an id itself; rename the dataset {', '.join(map(repr, own))}"
    if model.objective.prior_loss_weight == 0:
        yield "data.class_images has no effect with model.objective.prior_loss_weight: 0; remove one of them"
    sampling = sampling_of(options)
    lines = [*sampling.faults(), *text_faults("prompt", expanded(options.prompts))]
    with contextlib.suppress(ModelError):  # of a model that cannot be read; `check_model` follows and says it whole
        lines += [*prompt_faults(model.family), *sampling.of(model.family).model_faults(model.family)]
    yield from (f"data.class_images: {line}" for line in lines)


@contextlib.contextmanager
def one_at_a_time(path: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a file, and waits for whoever has it; where there are no locks, nothing is held."""
    with path.open("a") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
