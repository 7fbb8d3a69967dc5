"""Fixtures shared by all tests. Thread counts are set before torch is imported, so that timings and sums are steady."""

import os
import pathlib

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def photos() -> pathlib.Path:
    """The folder of real test photos, from `DREAMLIT_PHOTOS` or `../shared/photos`."""
    folder = pathlib.Path(os.environ.get("DREAMLIT_PHOTOS", ROOT.parent / "shared" / "photos"))
    if not folder.is_dir():
        pytest.skip(f"real photos are not here: {folder} (set DREAMLIT_PHOTOS)")
    return folder
