"""Regularisation images by the base model itself: `dreamlit class-images`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.errors import ConfigError, DataError, Faults
from dreamlit.images import save_grid, save_image
from dreamlit.previewing import Picture, Sampling, draw, parse_size, prompt_faults, size_faults
from dreamlit.prompts import text_faults
from dreamlit.seeds import address, generator
from dreamlit.types import Role

if TYPE_CHECKING:
    from torch import Tensor

    from dreamlit.datamodules.dreambooth import DreamBoothData
    from dreamlit.datamodules.samples import Sample
    from dreamlit.encoders import ImageEncoder
    from dreamlit.families import Family
    from dreamlit.module import DreamBooth

RECORD = "class-images.jsonl"
PARTIAL = f".{RECORD}.partial"
"""What a process that was killed may leave of the record."""
CHOICE = re.compile(r"\{([^{}]*)\}")
MOST_REJECTED = 4
"""Times as many images as are asked for may be rejected before the command gives up."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is to be drawn. Image number `index` is the same whatever the count, and whoever stopped in between."""

    prompts: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    """(width, height) of the subject's training images, one for each."""
    seed: int
    batch_size: int
    sampling: Sampling

    def picture(self, index: int) -> Picture:
        """Every prompt, and every size, once before any comes again, each in another order each time."""
        width, height = self.sizes[self._turn("class-sizes", index, len(self.sizes))]
        prompt = self.prompts[self._turn("class-prompts", index, len(self.prompts))]
        return Picture(prompt, address(self.seed, "class-image", index) % 2**31, width, height)

    def _turn(self, purpose: str, index: int, count: int) -> int:
        import torch

        turn, place = divmod(index, count)
        return int(torch.randperm(count, generator=generator(self.seed, purpose, turn))[place])

    def file(self, index: int) -> str:
        """Its name in the folder."""
        return f"{index:05d}.png"

    def described(self) -> dict[str, Any]:
        """All that decides the images, as plain values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


class Judge:
    """Rejects images that are nearly one that was kept, or look like the subject itself, by an image encoder."""

    def __init__(
        self, encoder: ImageEncoder, photos: Sequence[pathlib.Path], near_duplicate: float, look_alike: float | None
    ) -> None:
        self.encoder, self.near_duplicate = encoder, near_duplicate
        self.names = [path.name for path in photos]
        self.photos = encoder.embed_images(list(opened(photos))) if photos else None
        if look_alike is None and self.photos is not None and len(photos) > 1:
            pairs = (self.photos @ self.photos.T).fill_diagonal_(-1.0)
            look_alike = float(pairs.max())
        self.look_alike = near_duplicate if look_alike is None else look_alike
        self.kept: list[Tensor] = []

    def embed(self, images: Sequence[Any]) -> list[Tensor]:
        """A vector of length 1 for each image."""
        return list(self.encoder.embed_images(images)) if images else []

    def why_not(self, vector: Tensor) -> str:
        """Why an image is rejected, or an empty text; cosines."""
        if self.photos is not None and float((near := self.photos @ vector).max()) > self.look_alike:
            return f"looks like the subject: {float(near.max()):.3f} to {self.names[int(near.argmax())]}"
        alike = max((float(other @ vector) for other in self.kept), default=-1.0)
        return f"nearly one that is there: {alike:.3f}" if alike > self.near_duplicate else ""


def expanded(prompts: Iterable[str]) -> list[str]:
    """Prompts with every combination of the alternatives in braces: "a {red|blue} dog" gives two."""
    found = []
    for prompt in prompts:
        parts = [part.split("|") if place % 2 else [part] for place, part in enumerate(CHOICE.split(prompt))]
        found += [" ".join("".join(choice).split()) for choice in itertools.product(*parts)]
    return list(dict.fromkeys(found))


def class_images(
    trainer: Any, model: DreamBooth, data: DreamBoothData, count: int, output: str | None, given: dict[str, Any]
) -> None:
    """Draws the images that are not there yet; with `dry_run` only says what would be drawn.

    Args:
        given: Options that were given, by their names on the command line.
    """
    folder, wish = asked_for(model, data, count, output, given)
    sampling = wish.sampling
    refuse_misfits(model, wish, count)
    done = read_record(folder, wish)
    kept = [line for line in done if line["kept"]]
    sizes = ", ".join(f"{width} x {height}" for width, height in sorted(set(wish.sizes)))
    print(f"class images: {count} in {folder}, {len(kept)} of them there already; {len(wish.prompts)} prompts, {sizes}")
    print(f"  {max(0, count - len(kept)) * sampling.forwards(model.family)} forwards of the denoiser to come")
    if given.get("dry_run") or len(kept) >= count:
        print("\n".join(f"  {prompt}" for prompt in wish.prompts[:10]))
        return
    rejected = draw_missing(trainer, model.family, folder, wish, count, done, judge_of(data, given))
    images = sorted(folder.glob("*.png"))[:64]
    sheet = save_grid(list(opened(images)), folder.with_name(f"{folder.name}-sheet.png"), columns=8)
    print(f"class images: {folder} ({count}, {rejected} rejected, see {RECORD}); {sheet}")


def asked_for(
    model: DreamBooth, data: DreamBoothData, count: int, output: str | None, given: dict[str, Any]
) -> tuple[pathlib.Path, Wish]:
    """The folder and the wish: what is not given comes from the configuration's one regularisation dataset."""
    settings = {field.name: given[field.name] for field in dataclasses.fields(Sampling) if field.name in given}
    own = [spec for spec in data.specs.images if spec.role == Role.REGULARISATION and spec.type == "local"]
    only: Any = own[0] if len(own) == 1 else None
    prompts = given.get("prompt") or (only.instance_prompt if only else None) or []
    output = output or (only.instance_data_dir if only else None)
    if not prompts or not output:
        what = "prompt" if not prompts else "output"
        raise ConfigError(
            f"give --{what}: the configuration has {len(own)} local regularisation datasets to take it from"
        )
    sizes = [parse_size(text) for text in given.get("sizes") or ()]
    # (width, height) of each of the subject's images: class images then fill the same buckets.
    sizes = sizes or [(sample.bucket[1], sample.bucket[0]) for sample in subject_samples(data)]
    prompts = expanded([prompts] if isinstance(prompts, str) else prompts)
    seed, batch_size = given.get("seed", data.seed), given.get("batch_size", 4)
    sampling = Sampling(**settings).of(model.family)
    return pathlib.Path(output), Wish(tuple(prompts), tuple(sizes), seed, batch_size, sampling)


def subjects(data: DreamBoothData) -> list[ImageDataset]:
    return [spec for spec in data.specs.images if spec.role != Role.REGULARISATION]


def subject_samples(data: DreamBoothData) -> list[Sample]:
    """The subject's training images; the folder of the class need not be there yet."""
    from dreamlit.datamodules.config import check_folders
    from dreamlit.datamodules.manifest import build_manifest

    specs = [spec for spec in data.specs if spec not in data.specs.images or spec in subjects(data)]
    check_folders(specs)
    probes = data.cache_dir / "probes.jsonl"
    return build_manifest(specs, data.alignment, data.seed, progress=False, probe_path=probes).samples


def refuse_misfits(model: DreamBooth, wish: Wish, count: int) -> None:
    faults = Faults("these class images cannot be made", ConfigError)
    drawn = [Picture("", 0, width, height) for width, height in sorted(set(wish.sizes))]
    lines = (*prompt_faults(model.family), *wish.sampling.faults(), *wish.sampling.model_faults(model.family))
    for line in (*lines, *text_faults("prompt", list(wish.prompts)), *size_faults(drawn, model.family.drawn_multiple)):
        faults.add(line)
    for name, value in {"count": count, "batch_size": wish.batch_size}.items():
        if value < 1:
            faults.add(f"{name} is {value}; it must be at least 1")
    faults.raise_if_any()


def read_record(
    folder: pathlib.Path, wish: Wish, otherwise: str = "give --output another, empty folder"
) -> list[dict[str, Any]]:
    """What was drawn here before, in order, up to the first image that is missing. otherwise: what to do if not.

    Raises:
        DataError: when the folder holds something else, or images of another wish.
    """
    path = folder / RECORD
    if not path.is_file():
        if folder.is_dir() and any(path.name != PARTIAL for path in folder.iterdir()):
            raise DataError(f"{folder} holds files that were not drawn; {otherwise}")
        return []
    try:
        first, *lines = (dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
        whole = itertools.takewhile(lambda line: not line["kept"] or (folder / line["file"]).is_file(), lines)
        done = list(whole)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error!r}); {otherwise}") from None
    now = wish.described()
    other = [f"{name} {first.get(name)!r} then, {now[name]!r} now" for name in now if first.get(name) != now[name]]
    if other:
        raise DataError(f"{folder} holds images of other options ({'; '.join(other)}); {otherwise}")
    return done


def judge_of(data: DreamBoothData, given: dict[str, Any]) -> Judge | None:
    """Who rejects images, if an encoder is named."""
    if not given.get("encoder"):
        return None
    from dreamlit.encoders import ImageEncoder

    folders = {spec.id: pathlib.Path(str(spec.instance_data_dir)) for spec in subjects(data)}
    named = [folders[sample.dataset_id] / sample.name for sample in subject_samples(data)]
    photos = list(dict.fromkeys(path for path in named if path.is_file()))  # not those in shards
    return Judge(ImageEncoder(given["encoder"]), photos, given.get("near_duplicate", 0.97), given.get("look_alike"))


def draw_missing(
    trainer: Any,
    family: Family,
    folder: pathlib.Path,
    wish: Wish,
    count: int,
    done: list[dict[str, Any]],
    judge: Judge | None = None,
    progress: bool = True,
) -> int:
    """Loads the base model, in the Trainer's precision on its device, and fills the folder; see `fill`."""
    family.load("denoiser", device=trainer.strategy.root_device)
    pipeline = family.pipeline(denoiser=family.denoiser.eval())
    with trainer.precision_plugin.predict_step_context():
        return fill(folder, wish, count, done, pipeline, judge, progress)


def fill(
    folder: pathlib.Path,
    wish: Wish,
    count: int,
    done: list[dict[str, Any]],
    pipeline: Any,
    judge: Judge | None,
    progress: bool,
) -> int:
    """Draw batch by batch until `count` images are kept; returns how many were rejected.

    A batch that was not recorded whole is drawn again whole: images of one batch round together.
    """
    from rich.progress import Progress

    done = done[: len(done) // wish.batch_size * wish.batch_size]
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, wish, done)
    kept = [line["file"] for line in done if line["kept"]]
    if judge:
        judge.kept = judge.embed(list(opened([folder / name for name in kept])))
    index, rejected = len(done), len(done) - len(kept)
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("class images", total=count, completed=len(kept))
        while len(kept) < count:
            if rejected > MOST_REJECTED * count:
                raise DataError(f"{rejected} images were rejected and {len(kept)} kept ({folder / RECORD} says why)")
            batch = [wish.picture(number) for number in range(index, index + wish.batch_size)]
            images = [image for _, image in draw(pipeline, batch, wish.sampling, batch_size=wish.batch_size)]
            vectors = judge.embed(images) if judge else [None] * len(images)
            for picture, image, vector in zip(batch, images, vectors, strict=True):
                if len(kept) == count:
                    break
                why = judge.why_not(vector) if judge and vector is not None else ""
                line = keep(folder, index, picture, image, wish, why)
                done.append(line)
                if not why:
                    kept.append(line["file"])
                    if judge and vector is not None:
                        judge.kept.append(vector)
                rejected, index = rejected + bool(why), index + 1
            write_record(folder, wish, done)
            bar.update(task, completed=len(kept))
    return rejected


def keep(folder: pathlib.Path, index: int, picture: Picture, image: Any, wish: Wish, why: str) -> dict[str, Any]:
    """Write an image with its caption, unless it is rejected; returns its line of the record."""
    name = wish.file(index)
    if not why:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).with_suffix(".txt").write_text(picture.prompt + "\n", encoding="utf-8")
        save_image(image, folder / name, json.dumps(wish.sampling.recipe(picture)))
    return {"file": name, "kept": not why, "why": why, "prompt": picture.prompt, "seed": picture.seed, **picture.size}


def write_record(folder: pathlib.Path, wish: Wish, done: Sequence[dict[str, Any]]) -> None:
    """The record: the wish, then a line for each image."""
    partial = folder / PARTIAL
    lines = [wish.described(), *done]
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    partial.replace(folder / RECORD)


def opened(paths: Sequence[pathlib.Path]) -> Iterator[Any]:
    from PIL import Image

    for path in paths:
        with Image.open(path) as image:
            yield image.convert("RGB")
