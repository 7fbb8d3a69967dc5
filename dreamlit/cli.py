"""The command `dreamlit`: answers at once what needs no library, and imports the rest only for who asks for it."""

from __future__ import annotations

import importlib
import os
import sys
import types

from dreamlit import __version__
from dreamlit.errors import DreamlitError, nearest
from dreamlit.imports import quick_imports

COMMANDS = {
    "new": "Write a run.yaml for your model, photos and memory, with the reasons as comments.",
    "doctor": "This machine and, with --config, whether a run will work on it: all problems in one report.",
    "fit": "Train: from a folder of photos to an adapter that other tools load.",
    "validate": "Loss on the 'eval' datasets, on a fixed grid of noise levels.",
    "test": "The same as validate, logged as loss/test.",
    "predict": "Images of data.prompts with the weights of a checkpoint.",
    "prepare": "Build all caches and stop.",
    "plan": "Print what would be seen when; --preview DIR writes the exact training pictures.",
    "sample": "Images from an exported adapter file.",
    "export": "Adapter files from a checkpoint; --check proves that they load.",
    "class-images": "Regularisation images by the base model itself, in the sizes of the subject's photos.",
    "masks": "Masks for a folder of photos, by a text, a foreground model or their alpha channels.",
    "inspect": "Format, algorithm, rank, alpha and matched modules of an adapter file.",
    "cache": "Verify or clean a cache folder: cache verify DIR, cache gc DIR.",
    "precisions": "Which precisions of a frozen model work on this machine, tried, with bytes per weight.",
    "tokens": "Rare words for a subject in the model's own vocabularies; --judge WORD says whether one will do.",
    "watch": "Show a run in the browser while it goes on, or again afterwards: watch RUN_DIR.",
    "import": "A configuration of SimpleTuner, kohya's sd-scripts or diffusers' DreamBooth scripts as a run.yaml.",
    "toybox": "Put a small trained model and photos of a subject beside you, for the quickstart.",
}
INTERRUPTED = 130
TERMINATED = 143
"""Exit code after Ctrl-C, as shells have it (128 + SIGINT)."""
TOOLS = {
    "new": "dreamlit.newrun.command",
    "doctor": "dreamlit.doctor.command",
    "inspect": "dreamlit.tools",
    "cache": "dreamlit.tools",
    "import": "dreamlit.importing.command",
    "masks": "dreamlit.masking.command",
    "precisions": "dreamlit.precisions",
    "tokens": "dreamlit.tokens",
    "watch": "dreamlit.live.command",
    "toybox": "dreamlit.toybox.command",
}

HELP = f"""usage: dreamlit COMMAND --config run.yaml [--model.adapter.rank 8 ...]

Subject-driven fine-tuning of diffusion models. Version {__version__}.

commands:
{chr(10).join(f"  {name:<12} {text}" for name, text in COMMANDS.items())}

dreamlit COMMAND --help lists the options of a command.
dreamlit fit --config run.yaml --print_config prints the resolved configuration and stops.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit code (0 done, 1 a check failed, 2 the user can mend it, 130 interrupted,
    143 terminated)."""
    if argv is None:
        _ensure_utf8()
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        print(f"dreamlit {__version__}")
        return 0
    command = args[0]
    if command not in COMMANDS:
        print(f"dreamlit: there is no command {command!r}; {nearest(command, COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return _dispatch(command, args)
    except DreamlitError as error:
        print(f"dreamlit {command}: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        return _stopped(command, stop)


def _ensure_utf8() -> None:
    """Starts again in UTF-8 mode where the locale has no accents (LC_ALL=C), or files with them could not be opened."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode and os.environ.get("DREAMLIT_UTF8") != "1":
        environment = {**os.environ, "PYTHONUTF8": "1", "DREAMLIT_UTF8": "1"}
        os.execve(sys.executable, [sys.executable, "-m", "dreamlit", *sys.argv[1:]], environment)


def _dispatch(command: str, args: list[str]) -> int:
    if command in TOOLS:
        return importlib.import_module(TOOLS[command]).main(args)
    if args[1:] in (["--help"], ["-h"]):
        print(_cached_help(command), end="")
        return 0
    _training_cli().run(args)
    return 0


def _training_cli() -> types.ModuleType:
    """The commands that need torch and Lightning."""
    with quick_imports():
        return importlib.import_module("dreamlit.training_cli")


def _stopped(command: str, stop: BaseException) -> int:
    """The exit code of a command that ended itself (--print_config, --help) or that the user interrupted."""
    hint = "; the newest checkpoint goes on with --ckpt_path last" if command == "fit" else ""
    # Lightning turns Ctrl-C into SystemExit once it has shut down.
    if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
        print(f"dreamlit {command}: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    if type(stop).__name__ == "SIGTERMException":  # Lightning's, which need not have been imported
        print(f"dreamlit {command}: terminated{hint}", file=sys.stderr)
        return TERMINATED
    code = stop.code if isinstance(stop, SystemExit) else None
    return code if isinstance(code, int) else int(code is not None)


def _cached_help(command: str) -> str:
    """The help text of a command, kept between calls: making it imports torch and Lightning, which takes seconds."""
    import pathlib

    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "dreamlit"
    path = cache / f"help-{command}-{_help_key()}.txt"
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        text = _training_cli().help_text(command)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        pass  # a home that cannot be written to only costs time
    return text


def _help_key() -> str:
    """Changes with our own sources and with the versions of the libraries whose options the help lists."""
    import hashlib
    import pathlib
    from importlib.metadata import version

    package = pathlib.Path(__file__).parent
    folders = [package, package / "families", package / "adapters"]
    folders += [pathlib.Path(path) for name in ("callbacks", "datamodules") for path in _paths_of(name)]
    stamps = [f"{f}:{f.stat().st_mtime_ns}" for folder in folders for f in sorted(folder.glob("*.py"))]
    stamps += [f"{name}=={version(name)}" for name in ("lightning", "jsonargparse", "torch")]
    return hashlib.blake2b("\n".join(stamps).encode(), digest_size=8).hexdigest()


def _paths_of(name: str) -> list[str]:
    return list(importlib.import_module(f"dreamlit.{name}").__path__)


if __name__ == "__main__":
    sys.exit(main())
