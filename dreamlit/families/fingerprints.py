"""Hashes over the files of a model, made without loading it and remembered between runs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ModelError
from dreamlit.families.files import ModelFiles, read_json, vae_folder, weight_faults, weight_files

if TYPE_CHECKING:
    from dreamlit.families.base import Family

CHUNK_BYTES = 1 << 22
PROVENANCE = {"name_or_path", "transformers_version", "torch_dtype", "dtype", "tokenizer_file"}
"""Configuration keys that tell where a model came from, not what it is (so do those that begin with "_")."""


def memo_path() -> pathlib.Path:
    """Where digests are remembered: `dreamlit/fingerprints.json` in `XDG_CACHE_HOME` or `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "dreamlit" / "fingerprints.json"


def of(content: Any) -> str:
    """32 hexadecimal digits that depend on `content` (any JSON value), not on the order of its keys."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def of_part(family: Family, part: str) -> str:
    """See `Family.fingerprint`."""
    content: dict[str, Any] = {"part": part}
    if part != "vae":  # families with the same autoencoder share their latents
        content["family"] = type(family).__name__
    names = family.components(part)
    content["components"] = {name: component(family.files, name, family.overrides.get(name)) for name in names}
    if part == "text_encoders":
        tokenizers = [name for _, name in family.text_parts()]
        content["tokenizers"] = {name: tokenizer(family.files.folder / name) for name in tokenizers}
        content["options"] = family.text_options()
    return of(content)


def of_schedules(family: Family) -> str:
    """A hash over the configurations of the model's schedulers, which say what it predicts and at which noise.

    Errors: `ModelError` when one cannot be read.
    """
    files = family.files
    names = [name for name in files.index if name.endswith("scheduler")]
    return of({name: clean(read_json(files.configuration(f"{name}/scheduler_config.json"))) for name in names})


def component(files: ModelFiles, name: str, override: ModelFiles | None = None) -> list[Any]:
    """Class, configuration and digests of the weights of one component of a model, or of what replaces it."""
    folder, variant = files.folder / name, files.variant
    library, class_name = files.index[name]
    if override and not override.is_file:
        folder, variant = vae_folder(override)
    whole = override if override and override.is_file else files if files.is_file and not override else None
    digests = [file_digest(whole.local)] if whole else weight_digests(folder, library, variant)
    return [class_name, clean(read_json(folder / "config.json")), digests]


def weight_digests(folder: pathlib.Path, library: str, variant: str | None) -> list[str]:
    """Digests of a component's weight files. Errors: `ModelError` if one is missing or damaged."""
    for fault in weight_faults(folder, library, variant):
        raise ModelError(fault)
    return [file_digest(path) for path in weight_files(folder, library, variant)]


def tokenizer(folder: pathlib.Path) -> list[Any]:
    """Names and contents of all files of a tokenizer, JSON without its provenance."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [[path.name, clean(read_json(path)) if path.suffix == ".json" else file_digest(path)] for path in files]


def clean(config: Any) -> Any:
    """A configuration without the keys that only tell where it came from."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key not in PROVENANCE and not key.startswith("_")}
        return {key: clean(value) for key, value in kept.items()}
    return [clean(value) for value in config] if isinstance(config, list) else config


def file_digest(path: pathlib.Path) -> str:
    """BLAKE2b of a file's bytes; remembered by its true path, size and times, since weights have gigabytes."""
    path = path.resolve()
    stat = path.stat()
    # the time of the last status change cannot be set by hand, so a file that was replaced in place is read again
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    known = read_memo().get(str(path))
    if isinstance(known, list) and known[:-1] == state and isinstance(known[-1], str):
        return known[-1]
    digest = hashed(path, tuple(state))
    remember(str(path), [*state, digest])
    return digest


@functools.lru_cache(maxsize=256)
def hashed(path: pathlib.Path, state: tuple[int, ...]) -> str:
    """A file's digest, made once in a process: each checkpoint asks for it, also where nothing can be remembered."""
    return hash_file(path)


def hash_file(path: pathlib.Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_memo() -> dict[str, Any]:
    """What is remembered; nothing if the file is missing or damaged."""
    try:
        content = json.loads(memo_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(key: str, value: list[Any]) -> None:
    """Add an entry in one atomic step. A read-only home costs time, not the run; a lost entry is hashed again."""
    path = memo_path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: entry for name, entry in read_memo().items() if pathlib.Path(name).exists()}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({**kept, key: value}, file)
            os.replace(temporary, path)
        except OSError:
            pathlib.Path(temporary).unlink(missing_ok=True)
