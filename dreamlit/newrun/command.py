"""The command `dreamlit new`."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import shlex
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ConfigError, Faults

if TYPE_CHECKING:
    from dreamlit.memory.estimate import Estimate, Estimator
    from dreamlit.newrun.text import Wish

EXAMPLES = """examples:
  dreamlit new
  dreamlit new --model models/sdxl --photos photos/rex --masks photos/rex_masks --class dog --memory 24
  dreamlit new --model models/sd3 --photos photos/rex --class-images photos/dogs --class dog --dry-run

On a terminal it asks for what is missing. `dreamlit doctor --config run.yaml` then says what may still be wrong.
"""
ASKED = {
    "model": "the model: a diffusers folder, a .safetensors file or a hub id",
    "photos": "the folder of the subject's photos",
    "class_name": "what it is, in a word (dog, teapot, person)",
}
FLAGS = {"class_name": "--class"}


def main(args: list[str]) -> int:
    """Runs `dreamlit new`; returns 0.

    Raises:
        SystemExit: with code 2 for a wrong command line, with 0 for --help.
        DreamlitError: when the model, a folder or an option cannot be used, or nothing fits the memory.
    """
    options = parser().parse_args(args[1:])
    check(options)
    ask_for_missing(options)
    from dreamlit.quiet import quieten

    quieten()
    text = made(options)
    if options.dry_run:
        print(text, end="")
        return 0
    path = pathlib.Path(options.output)
    write(path, text)
    name = shlex.quote(str(path))
    print(f"written: {path}\nnext: dreamlit plan --config {name}, then dreamlit fit --config {name}")
    return 0


def write(path: pathlib.Path, text: str) -> None:
    """Writes the file whole or not at all. Errors: `ConfigError` where that cannot be done."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ConfigError(f"--output {path}: cannot be written ({error.strerror})") from None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "dreamlit new",
        description="Writes a run.yaml for your model, photos and memory, with the reasons as comments.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--model", metavar="MODEL", help=ASKED["model"])
    made.add_argument("--photos", metavar="DIR", help=ASKED["photos"])
    made.add_argument("--class", dest="class_name", metavar="WORD", help=ASKED["class_name"])
    made.add_argument("--subject-word", default="sks", metavar="WORD", help="the subject's name (default: %(default)s)")
    made.add_argument("--masks", metavar="DIR", help="masks of the photos' names; `dreamlit masks` makes them")
    made.add_argument(
        "--class-images", metavar="DIR", help="other things of the class; without them the run draws them"
    )
    made.add_argument("--resolution", type=int, metavar="PIXELS", help="side of a square of the training images' area")
    made.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="of the GPU; default: the one here, or without one the RAM and the CPU",
    )
    made.add_argument("--output", default="run.yaml", metavar="FILE", help="what is written (default: %(default)s)")
    made.add_argument("--force", action="store_true", help="overwrite the file")
    made.add_argument("--dry-run", action="store_true", help="print it instead")
    return made


def check(options: Any) -> None:
    """Refuse what is wrong at first sight, all of it in one report."""
    faults = Faults("dreamlit new cannot write a configuration", ConfigError)
    path = pathlib.Path(options.output)
    if not options.dry_run and path.exists() and not options.force:
        faults.add(f"--output {path} exists; give another name, or --force to overwrite it")
    if options.memory is not None and not 0 < options.memory < 1e6:
        faults.add(f"--memory is {options.memory:g}; give the gigabytes of the GPU, such as 24")
    if options.resolution is not None and options.resolution < 16:
        faults.add(f"--resolution is {options.resolution}; give pixels, such as 1024")
    for flag, given in (("--model", options.model), ("--photos", options.photos)):
        if given is not None and not given.strip():
            faults.add(f"{flag} is empty; give {ASKED[flag.removeprefix('--')]}")
    for flag, word in (("--subject-word", options.subject_word), ("--class", options.class_name)):
        if word is not None and not word.strip():
            faults.add(f"{flag} is empty; give a word")
        elif word is not None and not word.isprintable():
            faults.add(f"{flag} is {word!r}; give a word without line breaks")
    for flag, folder in (
        ("--photos", options.photos),
        ("--masks", options.masks),
        ("--class-images", options.class_images),
    ):
        if folder is not None and not options.dry_run and _inside(path, folder):
            faults.add(f"--output {path} lies in {flag} {folder}, which is only read; give a file elsewhere")
    for flag, folder in (("--masks", options.masks), ("--class-images", options.class_images)):
        if folder is not None and not pathlib.Path(folder).expanduser().is_dir():
            faults.add(f"{flag} {folder}: no such folder")
    faults.raise_if_any()


def _inside(path: pathlib.Path, folder: str) -> bool:
    return pathlib.Path(folder).expanduser().resolve() in path.expanduser().resolve().parents


def ask_for_missing(options: Any) -> None:
    """Ask on a terminal. Errors: `ConfigError` with the missing flags where there is none."""
    missing = [name for name in ASKED if getattr(options, name) is None]
    if missing and not sys.stdin.isatty():
        flags = ", ".join(FLAGS.get(name, f"--{name}") for name in missing)
        raise ConfigError(f"there is no terminal to ask on; give {flags}")
    for name in missing:
        answer = ""
        while not answer:
            try:
                answer = input(f"{ASKED[name]}: ").strip()
            except EOFError:
                raise ConfigError(f"the questions were ended; give {FLAGS.get(name, f'--{name}')}") from None
        setattr(options, name, answer)
    if missing and options.masks is None:
        options.masks = input("the folder of masks (enter: none): ").strip() or None
    if missing and options.class_images is None:
        options.class_images = input("the folder of class images (enter: the run draws them): ").strip() or None
    if missing:
        check(options)


def made(options: Any) -> str:
    """The text of the configuration that fits the memory, the least frugal of those that are tried."""
    from dreamlit.doctor.command import tell
    from dreamlit.doctor.findings import in_units
    from dreamlit.doctor.run import TIGHT
    from dreamlit.memory.estimate import Estimator
    from dreamlit.newrun.choices import savings
    from dreamlit.newrun.text import written

    memory, on_gpu = memory_of(options.memory)
    wish, estimator, smallest = wish_of(options, on_gpu), Estimator(tell), None
    for saving in savings(on_gpu):
        tell(f"trying {saving.reason()}")
        try:
            estimate = examined(written(wish, saving, []), estimator)
        except NotImplementedError as error:
            return written(wish, list(savings(on_gpu))[1], header(wish, f"not estimated: {error}"))
        peak = estimate.peak
        if peak.total <= TIGHT * memory:
            what = f"{in_units(peak.total)} of {in_units(memory)} {'of a GPU' if on_gpu else 'of free RAM'}"
            return written(wish, saving, header(wish, f"about {what} ({peak.name}): {saving.reason()}"))
        smallest = min(smallest or peak, peak, key=lambda phase: phase.total)
    assert smallest is not None
    raise ConfigError(
        f"nothing that was tried fits {in_units(memory)}: the most frugal needs {in_units(smallest.total)} "
        f"({smallest.name}); give a smaller --resolution, or a smaller model"
    )


def memory_of(asked: float | None) -> tuple[int, bool]:
    """Bytes that the run may use, and whether they are a GPU's."""
    import torch

    from dreamlit.doctor.machine import ram

    if asked is not None:
        return int(asked * 1024**3), True
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1], True
    return ram()[1], False


def wish_of(options: Any, on_gpu: bool) -> Wish:
    """What the configuration is written from. Errors: `DreamlitError`."""
    from dreamlit.newrun.choices import choose_sizes, large_encoders
    from dreamlit.newrun.material import find_family, read_photos
    from dreamlit.newrun.text import Wish

    photos = read_photos(options.photos, "--photos")
    class_images = read_photos(options.class_images, "--class-images") if options.class_images else None
    family = find_family(options.model)
    return Wish(
        family=family,
        photos=photos,
        sizes=choose_sizes(family, photos, options.resolution),
        masks=options.masks,
        class_images=class_images,
        subject_word=options.subject_word.strip(),
        class_name=options.class_name.strip(),
        output=pathlib.Path(options.output),
        on_gpu=on_gpu,
        large_encoders=tuple(large_encoders(family)) if on_gpu else (),
    )


def examined(text: str, estimator: Estimator) -> Estimate:
    """The memory of a configuration, as `dreamlit doctor` estimates it.

    Errors: `ConfigError` with all that `fit` would refuse, but a missing GPU; `NotImplementedError` where the model's
    code cannot be walked through.
    """
    from dreamlit.doctor.examined import NOT_HERE, examine
    from dreamlit.doctor.run import estimate_of

    words = sys.argv[:]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "run.yaml")
        path.write_text(text, encoding="utf-8")
        try:
            run = examine(["--config", str(path), "--data.cache_dir", str(pathlib.Path(folder, "cache"))])
        finally:
            sys.argv[:] = words
    faults = Faults("these photos and this model do not go together", ConfigError)
    for line in run.faults:
        if not line.startswith(NOT_HERE):  # the run may be for another machine
            faults.add(line)
    if run.absent:
        raise NotImplementedError(run.absent)
    faults.raise_if_any()
    return estimate_of(run, estimator)


def header(wish: Wish, memory: str) -> list[str]:
    """The comment at the top."""
    from dreamlit import __version__

    masks = "with masks" if wish.masks else "without masks (dreamlit masks makes them)"
    output = shlex.quote(str(wish.output))
    return [
        f"{wish.subject_word} {wish.class_name}: {type(wish.family).__name__} on {len(wish.photos)} photos {masks}. "
        f"Written by dreamlit new {__version__}.",
        "",
        f"  dreamlit doctor --config {output}   # what may still be wrong",
        f"  dreamlit plan --config {output}     # what would be seen when",
        f"  dreamlit fit --config {output}",
        "",
        f"Memory: {memory}.",
        "How that is estimated: docs/doctor.md.",
    ]
