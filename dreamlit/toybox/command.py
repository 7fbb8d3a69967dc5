"""`dreamlit toybox`: puts the small trained world beside you, ready for the quickstart."""

from __future__ import annotations

import argparse
import pathlib
import shlex
import shutil
from typing import TYPE_CHECKING

from dreamlit.errors import DataError, ModelError
from dreamlit.toybox import CLIP, MODEL, TAESD, WEIGHTS

if TYPE_CHECKING:
    from dreamlit.toybox.subjects import Subject

EXAMPLES = """example:
  dreamlit toybox
  dreamlit fit --config toybox/quickstart.yaml

writes toybox/model (Stable Diffusion's layout), toybox/clip, toybox/taesd (a tiny autoencoder), toybox/photos,
toybox/class and the quickstart's configurations. Nothing is downloaded. What exists already is kept, unless it is to be
made --again.
"""


def main(args: list[str]) -> int:
    """Runs `dreamlit toybox` (args[0]); returns 0.

    Raises:
        DataError: when the folder cannot be written, or holds something else under one of the names.
        ModelError: when the installed package lacks the weights.
    """
    parser = argparse.ArgumentParser(
        "dreamlit toybox",
        description="A small trained model, photos of a subject it has never seen, and class images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("toybox"), help="folder (default: toybox)")
    parser.add_argument("--subject", default="bolt", help="whose photos: bolt, nemo, mocha, teddy, turbo")
    parser.add_argument("--class-images", type=int, default=24, help="how many (default: %(default)s; 0 for none)")
    parser.add_argument("--seed", type=int, default=0, help="of the class images (default: %(default)s)")
    parser.add_argument(
        "--again", action="store_true", help="make the class images again, and write over what was changed"
    )
    options = parser.parse_args(args[1:])
    from dreamlit.quiet import quieten
    from dreamlit.toybox.configurations import configurations
    from dreamlit.toybox.subjects import SUBJECTS, put, write_photos

    quieten()
    if options.class_images < 0:
        parser.error(f"--class-images is {options.class_images}; allowed: 0 for none, or more")
    if options.subject not in SUBJECTS:
        parser.error(f"there is no subject {options.subject!r}; there are {', '.join(SUBJECTS)}")
    subject, output = SUBJECTS[options.subject], options.output
    try:
        copy_model(output)
        kept = write_photos(output / "photos", subject, replace=options.again)
        print(f"photos: {output / 'photos' / subject.name}, masks beside them")
        if options.class_images:
            folder = output / "class" / subject.individual.kind
            write_class_images(folder, subject, options.class_images, options.seed, options.again)
        configs = configurations(subject, output, bool(options.class_images))
        for name, text in configs.items():
            if not put(output / name, text.encode(), options.again):
                kept.append(output / name)
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error}") from error
    if kept:
        print(f"kept as they are, though not what is written here: {', '.join(map(str, kept))}")
    print(f"now: dreamlit fit --config {shlex.quote(str(output / next(iter(configs))))}")
    return 0


def copy_model(output: pathlib.Path) -> None:
    """Copies the shipped weights; files of another content, such as half a copy, are written anew."""
    for source in (MODEL, CLIP, TAESD):
        if not (source / "model_index.json").exists() and not (source / "config.json").exists():
            raise ModelError(f"{source} holds no weights; scripts/make_toybox.py --output {WEIGHTS} makes them")
        shutil.copytree(source, output / source.name, dirs_exist_ok=True)
        print(f"model: {output / source.name}")


def write_class_images(folder: pathlib.Path, subject: Subject, count: int, seed: int, again: bool) -> None:
    """Pictures of the subject's class by the base model itself, on every background in turn, captions beside them."""
    from dreamlit.images import save_image
    from dreamlit.toybox.backgrounds import PHRASES
    from dreamlit.toybox.quality import base_pipeline, sample

    names = [f"{subject.individual.kind}-{seed}-{index:03d}.png" for index in range(count)]
    if not again and all((folder / name).with_suffix(end).exists() for name in names for end in (".png", ".txt")):
        print(f"class images: {folder} (there already)")
        return
    places = list(PHRASES.values())
    texts = [f"a photo of a {subject.individual.kind} {places[index % len(places)]}" for index in range(count)]
    for name, text, image in zip(names, texts, sample(base_pipeline(), texts, seed=seed), strict=True):
        picture, caption = folder / name, (folder / name).with_suffix(".txt")
        if again or not picture.exists():
            save_image(image, picture)
        if again or not caption.exists():
            caption.write_text(text + "\n", encoding="utf-8")
    print(f"class images: {folder} ({count}, by the base model)")
