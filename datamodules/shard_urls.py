"""Where tar shards come from: paths, folders and URLs with brace ranges; `http(s)` ones are fetched once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import secrets
import shutil
import urllib.error
import urllib.parse
import urllib.request

from braceexpand import braceexpand

from dreamlit.errors import ConfigError, DataError, Faults

TIMEOUT_S = 60
ATTEMPTS = 3


def local_shards(where: str, download_dir: str | os.PathLike | None) -> list[str]:
    """The shards that `where` means, as files on disk in a stable order.

    Args:
        where: A tar file, a folder of them, or an `http:`, `https:` or `file:` URL; with `{000..007}` ranges, and
            several of them joined by `::`.
        download_dir: Where `http(s)` shards are kept under a name made of their URL; a shard that is there is not
            fetched again (delete it to have it fetched anew).

    Raises:
        DataError: one report with all missing shards and failed downloads.
        ConfigError: for a URL of another kind, or unbalanced braces.
    """
    shards, faults = [], Faults(f"tar shards of {where} are missing", DataError)
    for url in expand(where):
        scheme = urllib.parse.urlsplit(url).scheme.lower()
        if scheme in ("http", "https"):
            try:
                shards.append(_downloaded(url, download_dir))
            except DataError as error:
                faults.add(str(error))
            continue
        path = pathlib.Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path) if scheme == "file" else url)
        shards += [str(p) for p in sorted(path.glob("*.tar"))] if path.is_dir() else [str(path)]
        if not path.exists():
            faults.add(f"{path}: no such file")
    faults.raise_if_any()
    if not shards:
        raise DataError(f"instance_data_dir {where} holds no .tar file")
    return shards


def expand(where: str) -> list[str]:
    """Brace ranges written out: `a-{00..02}.tar` -> three names.

    Raises:
        ConfigError: for unbalanced braces, and for URLs that are neither `http(s)` nor `file`.
    """
    try:
        urls = [url for part in where.split("::") for url in braceexpand(part)]
    except ValueError as error:
        raise ConfigError(f"instance_data_dir {where!r}: {error}. A range is written {{000..007}}") from error
    for url in urls:
        scheme, separator, _ = url.partition(":")
        if separator and len(scheme) > 1 and scheme.lower() not in ("http", "https", "file"):  # c:\ is a path
            raise ConfigError(
                f"instance_data_dir {url!r}: {scheme}: is not read. Allowed: paths, file:, http:, https:"
                " (no shell commands); fetch shards of other stores to a folder first"
            )
    return urls


def _downloaded(url: str, download_dir: str | os.PathLike | None) -> str:
    if download_dir is None:
        raise DataError(f"{url}: needs a folder to keep downloads in; set `cache_dir`, or download it yourself")
    name = pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name or "shard.tar"
    digest = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
    path = pathlib.Path(download_dir) / f"{digest}-{name}"
    for attempt in range(1, ATTEMPTS + 1):
        if path.exists():
            break
        try:
            _fetch(url, path)
        except (OSError, ValueError) as error:
            lasting = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
            if lasting or attempt == ATTEMPTS:
                raise DataError(f"{url}: download failed after {attempt} attempts ({error})") from error
    return str(path)


def _fetch(url: str, path: pathlib.Path) -> None:
    """Downloads to a temporary name and renames, so that a file under its own name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, open(part, "wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
            expected, got = response.headers.get("Content-Length"), file.tell()
        if expected is not None and int(expected) != got:
            raise OSError(f"got {got} of {expected} bytes")
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
