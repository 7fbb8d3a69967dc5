"""The commands that need no run: look into an adapter file, and look after cache folders."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable

from dreamlit.errors import DataError

CACHE_EXAMPLES = """examples:
  dreamlit cache verify cache
  dreamlit cache gc cache --keep run.yaml --keep runs/dog/config.yaml --dry-run
"""
INSPECT_EXAMPLES = """examples:
  dreamlit inspect runs/dog/dog.safetensors
  dreamlit inspect dog.safetensors --model models/sdxl

exits 1 when a key is unknown, or when the model has no place for a module
"""


def main(args: list[str]) -> int:
    """Runs `inspect` or `cache` (args[0]); returns 0 when all is well and 1 when a check failed.

    Raises:
        SystemExit: with code 2 for a wrong command line, with 0 for --help.
        DreamlitError: when a file or folder cannot be used.
    """
    parser = inspect_parser() if args[0] == "inspect" else cache_parser()
    options = parser.parse_args(args[1:])
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def inspect_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dreamlit inspect",
        description="Format, algorithm, rank, alpha and modules of an adapter file.",
        epilog=INSPECT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="a .safetensors adapter file of any tool")
    parser.add_argument(
        "--model", metavar="DIR", help="a diffusers model folder: every module must have a layer of its size there"
    )
    parser.set_defaults(command=inspect)
    return parser


def inspect(options: argparse.Namespace) -> int:
    from dreamlit.inspection import inspect_file

    report, good = inspect_file(options.file, options.model)
    print(report)
    return 0 if good else 1


def cache_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dreamlit cache",
        description="Verify or clean a folder of caches.",
        epilog=CACHE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(required=True, metavar="verify|gc")
    checks = actions.add_parser("verify", help="read every entry and compare it with its checksum; changes nothing")
    checks.set_defaults(command=cache_verify)
    cleans = actions.add_parser("gc", help="remove the entries that none of the named configurations uses")
    cleans.add_argument(
        "--keep",
        metavar="CONFIG",
        action="append",
        required=True,
        help="configuration of a run whose entries stay; give it once for each run that shares the folder",
    )
    cleans.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    cleans.set_defaults(command=cache_gc)
    for action in (checks, cleans):
        action.add_argument("folder", metavar="DIR", help="a run's data.cache_dir, or a folder of shards in it")
    return parser


def cache_verify(options: argparse.Namespace) -> int:
    from dreamlit.datamodules.cache_tools import verify

    good = True
    for folder in stores_in(options.folder):
        report = verify(folder)
        print(f"{folder}: {report}")
        good = good and report.ok
    return 0 if good else 1


def cache_gc(options: argparse.Namespace) -> int:
    from dreamlit.datamodules.cache_tools import gc

    folders = stores_in(options.folder)
    keep = set().union(*(keys_of_run(config) for config in options.keep))
    for folder in folders:
        print(f"{folder}: {gc(folder, keep, dry_run=options.dry_run)}")
    return 0


def stores_in(folder: str) -> list[pathlib.Path]:
    """The folders of shards that a cache folder is or holds.

    Raises:
        DataError: when there is none.
    """
    from dreamlit.datamodules.cache_tools import existing
    from dreamlit.datamodules.shard_format import shard_paths
    from dreamlit.datamodules.shard_parts import leftovers

    root = existing(folder)
    candidates = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    found = [path for path in candidates if shard_paths(path) or leftovers(path)]
    if not found:
        raise DataError(f"{root}: holds no shards of a cache. Give the data.cache_dir of a run, or its cache_dir_vae")
    return found


def keys_of_run(config: str) -> set[str]:
    """Every cache key that the run of a configuration file may read."""
    from dreamlit.training_cli import parts_of

    model, data = parts_of(config)
    data.attach(model)
    manifest = data.manifest(data.encoders.stride)
    return data.caches(data.encoders, manifest).keys(manifest, data.seed)
