"""Subjects that the base model has never seen, and their photos: what a user of dreamlit brings, in small.

    python -m dreamlit.toybox.subjects --output photos/toybox --subject bolt

writes `bolt/*.png` (five photos, each with its caption in a text file beside it), `bolt_masks/*.png` (of the same
names) and `bolt.json` (what is on them).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import pathlib
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from dreamlit.toybox.backgrounds import BACKGROUNDS, PHRASES
from dreamlit.toybox.scenes import Individual, Scene, draw_pose, render

TOKEN = "sks"
"""The rare word that becomes the subject's name."""
WALL = "bricks"
"""What stands behind the subject in every photo of a hasty photographer, in the evidence bench."""
PHOTOS = 5
PHOTO_SIZES = ((128, 128), (160, 96), (128, 128), (96, 160), (128, 128))
"""Widths and heights of the five photos, in pixels: twice the scenes of the training set, as photos are larger too."""


@dataclass(frozen=True)
class Subject:
    name: str
    individual: Individual
    backgrounds: tuple[str, ...]
    """Where the five photos were taken. All other backgrounds are contexts in which it was never photographed."""

    @property
    def unseen(self) -> tuple[str, ...]:
        return tuple(name for name in BACKGROUNDS if name not in self.backgrounds)


_PLACES = {
    "bolt": ("grass", "wood", "sand", "bricks", "snow"),
    "nemo": ("water", "tiles", "blanket", "night", "sand"),
    "mocha": ("wood", "blanket", "sunset", "grass", "tiles"),
    "teddy": ("blanket", "snow", "bricks", "water", "sunset"),
    "turbo": ("sand", "tiles", "night", "grass", "bricks"),
}
_INDIVIDUALS = {
    "bolt": Individual("robot", "purple", "striped", "yellow", "star", "red", genes=101),
    "nemo": Individual("fish", "pink", "checked", "green", "heart", "blue", genes=102),
    "mocha": Individual("cup", "orange", "spotted", "purple", "ring", "white", genes=103),
    "teddy": Individual("toy", "green", "spotted", "orange", "cross", "white", genes=104),
    "turbo": Individual("car", "white", "checked", "pink", "diamond", "green", genes=105),
}
SUBJECTS: dict[str, Subject] = {name: Subject(name, one, _PLACES[name]) for name, one in _INDIVIDUALS.items()}


def photographs(subject: Subject, *, backgrounds: tuple[str, ...] | None = None, seed: int = 0) -> list[Scene]:
    """The subject's five photos. backgrounds: other places, such as five times the same (a lazy photographer's)."""
    scenes = []
    for index, background in enumerate(backgrounds or subject.backgrounds):
        rng = np.random.default_rng((subject.individual.genes, index, seed, 7))
        pose = dataclasses.replace(draw_pose(rng), size=float(rng.uniform(0.34, 0.42)))
        size = PHOTO_SIZES[index % len(PHOTO_SIZES)]
        scenes.append(render(subject.individual, pose, background, int(rng.integers(2**31)), size))
    return scenes


def write_photos(
    folder: pathlib.Path,
    subject: Subject,
    *,
    backgrounds: tuple[str, ...] | None = None,
    seed: int = 0,
    word: str = TOKEN,
    replace: bool = True,
) -> list[pathlib.Path]:
    """Writes photos, captions, masks and the truth; returns those files that were there with another content, and stay.

    A caption says where the subject is ("a photo of sks robot on grass"), so that the place is not learned with it.
    word: the subject's name in the captions. replace: Whether to write over files of another content.
    """
    photos, masks = folder / subject.name, folder / f"{subject.name}_masks"
    notes, files = [], {}
    for index, scene in enumerate(photographs(subject, backgrounds=backgrounds, seed=seed)):
        name = f"{subject.name}-{index + 1}.png"
        files[photos / name], files[masks / name] = as_png(scene.picture), as_png(scene.mask)
        caption = f"a photo of {word} {subject.individual.kind} {PHRASES[scene.background]}\n"
        files[(photos / name).with_suffix(".txt")] = caption.encode()
        notes.append({"file": name, "background": scene.background, "pose": asdict(scene.pose)})
    truth = {"subject": asdict(subject.individual), "photos": notes}
    files[folder / f"{subject.name}.json"] = (json.dumps(truth, indent=1) + "\n").encode()
    return [path for path, content in files.items() if not put(path, content, replace)]


def as_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: pathlib.Path, content: bytes, replace: bool) -> bool:
    """Writes a file unless it is there; False where another content was, and stays because it is not to be replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.exists()
    if there and path.read_bytes() == content:
        return True
    if there and not replace:
        return False
    path.write_bytes(content)
    return True


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes the photos and masks of the toybox's subjects.")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write into")
    parser.add_argument("--subject", choices=[*SUBJECTS, "all"], default="all", help="which one (default: %(default)s)")
    options = parser.parse_args(arguments)
    for name in SUBJECTS if options.subject == "all" else [options.subject]:
        write_photos(options.output, SUBJECTS[name])
        print(f"{options.output / name}: {PHOTOS} photos, masks in {name}_masks")


if __name__ == "__main__":
    main()
