"""The folder of a run: one run at a time writes there, and none takes away what another one or the user left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator

from dreamlit.errors import CheckpointError

MARK = "# The configuration of this run, resolved by dreamlit; what follows has the hash "


def refuse_to_overwrite(root: pathlib.Path) -> None:
    """A new run never starts on top of an older one's checkpoints or results.

    Raises:
        CheckpointError: with the first thing that would be written over, or be mixed up with the new run's own.
    """
    from dreamlit.callbacks.checkpoint import step_checkpoints
    from dreamlit.export import EXPORT_MARK

    folder = root / "checkpoints"
    older = [path for path in (folder / "best.ckpt",) if path.exists()] + step_checkpoints(folder)
    own = "or give the new run its own --trainer.default_root_dir"
    if older:
        raise CheckpointError(
            f"{root} already holds a run (newest checkpoint: {older[-1].name}). Resume it with --ckpt_path last, {own}"
        )
    name = root.resolve().name
    ends = (".safetensors", "-diffusers.safetensors")
    results = [root / f"{name}{average}{end}" for average in ("", "-ema") for end in ends]
    results += [root / name / EXPORT_MARK, *root.glob("adapters/*"), *root.glob("best-of/*")]
    if found := [str(path.relative_to(root)) for path in results if path.exists()]:
        raise CheckpointError(f"{root} holds {found[0]}, which a run would write over. Move what is there away, {own}")


@contextlib.contextmanager
def held(root: pathlib.Path) -> Iterator[None]:
    """The folder of a run while it writes there; where a file system has no locks, nothing is held.

    Raises:
        CheckpointError: while another run has the folder.
    """
    new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"the run's folder cannot be made: {error}") from error
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(
                    f"another run is writing into {root}: give this one its own --trainer.default_root_dir"
                ) from None
        yield
    finally:
        os.close(handle)
        if new:
            with contextlib.suppress(OSError):  # a run that was refused leaves nothing; any other, something
                root.rmdir()


def write_config(path: pathlib.Path, text: str) -> pathlib.Path | None:
    """Writes the resolved configuration, whole or not at all. What stood there and is no such file, or was edited, is
    kept beside it as `config.1.yaml` (or 2, ...), which is returned."""
    kept = None
    if path.exists() and not written_here(path.read_bytes()):
        number = next(n for n in range(1, 10**6) if not path.with_name(f"{path.stem}.{n}{path.suffix}").exists())
        kept = path.with_name(f"{path.stem}.{number}{path.suffix}")
        path.rename(kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(MARK.encode() + digest(text.encode()) + b"\n" + text.encode())
    os.replace(partial, path)
    return kept


def written_here(content: bytes) -> bool:
    """Whether `write_config` wrote this, and nobody has changed it since."""
    head, _, text = content.partition(b"\n")
    return head == MARK.encode() + digest(text)


def digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()
