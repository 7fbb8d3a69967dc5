"""Folders that results go into."""

from __future__ import annotations

import pathlib
import tempfile

from dreamlit.errors import DataError


def writable(folder: pathlib.Path) -> None:
    """Makes a folder where there is none, and tries to write there: better told before the work than after it.

    Raises:
        DataError: when it is a file, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"--output {folder}: cannot be written ({error.strerror}); give another folder") from None
