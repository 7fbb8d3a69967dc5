"""The quickstart's configurations for any of the toybox's subjects, in any folder."""

from __future__ import annotations

import importlib.resources
import pathlib
import re

from dreamlit.layers import quoted
from dreamlit.toybox.backgrounds import PHRASES
from dreamlit.toybox.subjects import SUBJECTS, TOKEN, Subject

SHIPPED = ("quickstart.yaml", "quickstart-lora.yaml", "quickstart-full.yaml")
OF_SHIPPED = SUBJECTS["bolt"]
FOLDER = "toybox"
"""The folder that the shipped ones name; they are written for `OF_SHIPPED`."""


def configurations(subject: Subject, output: pathlib.Path, class_images: bool = True) -> dict[str, str]:
    """The texts of the quickstart's configurations by their file names; those of another subject are named after it.

    output: the folder that `dreamlit toybox` fills, with the paths of which the texts are written.
    class_images: Whether there are any; without, nothing holds the class.
    """
    stem = "quickstart" if subject is OF_SHIPPED else subject.name
    made = {}
    for name in SHIPPED:
        text = shipped(name)
        text = text.replace(f"dreamlit toybox && dreamlit fit --config configs/{name}", f"dreamlit fit --config {name}")
        text = _without_class_images(text) if not class_images else text
        file = name.replace("quickstart", stem)
        made[file] = _in_folder(_of_subject(text, subject, stem), output, file)
    return made


def shipped(name: str) -> str:
    return importlib.resources.files("dreamlit.configs").joinpath(name).read_text(encoding="utf-8")


def _of_subject(text: str, subject: Subject, stem: str) -> str:
    """Another name, class, and other places: those where this subject was not photographed."""
    one, other = OF_SHIPPED, subject
    words = {one.name: other.name, one.individual.kind: other.individual.kind}
    words |= {f"{start}quickstart": f"{start}{stem}" for start in ("runs/", "--config ", "[")}
    for here, there in zip(one.unseen, other.unseen, strict=True):
        asked = f"{TOKEN} {one.individual.kind} {PHRASES[here]}"
        words[asked] = f"{TOKEN} {other.individual.kind} {PHRASES[there]}"
    longest_first = sorted(words, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda found: words[found[0]], text)


def _in_folder(text: str, output: pathlib.Path, file: str) -> str:
    text = text.replace(f"--config {file}", f"--config {output / file}")
    if output == pathlib.Path(FOLDER):
        return text
    return re.sub(rf"(?m)(?<=: ){FOLDER}/(\S+)$", lambda found: quoted(output / found[1]), text)


def _without_class_images(text: str) -> str:
    text = re.sub(r"(?ms)^    - id: class-.*\Z", "", text)
    return re.sub(r"(?m)^  objective:\n(    .*\n)+", "", text)
