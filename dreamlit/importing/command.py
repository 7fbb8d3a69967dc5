"""`dreamlit import`: a configuration of another trainer as a run of this one."""

from __future__ import annotations

import argparse
import pathlib
import sys

from dreamlit import __version__
from dreamlit.errors import ConfigError
from dreamlit.importing import diffusers_run, diffusers_scripts, kohya, kohya_run, reading, simpletuner_run
from dreamlit.importing.draft import Draft
from dreamlit.importing.reading import Source
from dreamlit.importing.text import reports, text_of

EXAMPLES = """examples:
  dreamlit import config/config.json --output run.yaml            # SimpleTuner: JSON, TOML or env
  dreamlit import config.json multidatabackend.json --dry-run
  dreamlit import train.sh dataset.toml                           # kohya's sd-scripts: the command and its datasets
  dreamlit import train_dreambooth.sh                             # a command of diffusers' DreamBooth scripts
  dreamlit import settings.toml --script sdxl_train_network.py    # options alone, without the command

then look at what is otherwise, and at what would be trained:
  dreamlit plan --config run.yaml

The files are only read, and nothing else is loaded. Secrets stay where they are. docs/import.md has every option.
"""


def main(args: list[str]) -> int:
    """Writes the run; returns 0.

    Raises:
        SystemExit: with code 2 for a wrong command line, with 0 for --help.
        ConfigError: when a file cannot be read, has no counterpart as a whole, or would be overwritten.
    """
    given = parser().parse_args(args[1:])
    draft = imported(given.config, given.datasets, given.script)
    text = text_of(draft, title(draft, given.config, given.datasets))
    if given.dry_run:
        print(text, end="")
        return 0
    write(given.output, text, given.force)
    for head, told in reports(draft)[: -1 if draft.idle else None]:
        print(head, *(f"  - {line}" for line in told), sep="\n", file=sys.stderr)
    used = len(draft.values) + sum(map(len, draft.callbacks.values())) + sum(map(len, draft.datasets))
    print(
        f"{given.output}: {used} values; {len(draft.unknown)} options unknown, {len(draft.refused)} without a "
        f"counterpart, {len(draft.idle)} not needed. Next: dreamlit plan --config {given.output}"
    )
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "dreamlit import",
        description="Turns a configuration of SimpleTuner, of kohya's sd-scripts or of diffusers' DreamBooth scripts "
        "into a run.yaml, whose comments say where each value comes from, what is otherwise here and what is left out.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "config", metavar="CONFIG", type=pathlib.Path, help="the configuration, or a file with the command"
    )
    made.add_argument(
        "datasets",
        metavar="DATASETS",
        type=pathlib.Path,
        nargs="?",
        help="its datasets (multidatabackend.json, dataset.toml); by default the file that it names",
    )
    made.add_argument(
        "--output", metavar="FILE", type=pathlib.Path, default=pathlib.Path("run.yaml"), help="default: %(default)s"
    )
    made.add_argument("--script", metavar="NAME", help="whose options these are, where the file does not say it")
    made.add_argument("--force", action="store_true", help="overwrite FILE")
    made.add_argument("--dry-run", "--dry_run", action="store_true", help="print the run, and write nothing")
    return made


def imported(config: pathlib.Path, datasets: pathlib.Path | None = None, script: str | None = None) -> Draft:
    """The run of a configuration, by the tool that it is of. Errors: `ConfigError`."""
    source = reading.read(config)
    if script:
        source = Source(source.path, source.options, pathlib.PurePath(script).name, source.launcher, source.tables)
    if source.script in kohya.SCRIPTS:
        return kohya_run.imported(source, datasets)
    if source.script.startswith("train_dreambooth"):
        return diffusers_run.imported(source, datasets)
    mine = {"model_family", "data_backend_config", "dataloader_config", "model_type"}
    if source.script in ("", "simpletuner", "train.py") and mine & source.options.keys():
        return simpletuner_run.imported(source, datasets)
    scripts = (*kohya.SCRIPTS, *diffusers_scripts.SCRIPTS)
    what = (
        f"{source.script} is no script"
        if source.script
        else f"{config} does not say whose configuration it is: no option"
    )
    raise ConfigError(
        f"{what} of a trainer that is known here. SimpleTuner's has model_family; of others give the command, or "
        f"--script with one of {', '.join(scripts)}"
    )


def title(draft: Draft, config: pathlib.Path, datasets: pathlib.Path | None) -> str:
    names = config.name + (f" and {datasets.name}" if datasets else "")
    return (
        f"Imported from {names} of {draft.tool}, by dreamlit {__version__}: read what is otherwise, then dreamlit plan"
    )


def write(path: pathlib.Path, text: str, force: bool) -> None:
    """Writes a file that is not there yet, or one that may be overwritten."""
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already; --force overwrites it, --output names another, --dry-run prints")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None
