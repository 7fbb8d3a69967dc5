"""Fixtures shared by all tests. Thread counts are set before torch is imported, so that timings and sums are steady."""

import gc
import itertools
import os
import pathlib
import shutil
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))  # helper modules of the tests, and classes "of a user"

from dreamlit.imports import quick_imports

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Test files import the libraries as the command does: later runs do not walk over their objects for garbage."""
    with quick_imports():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _own_cache_home(tmp_path_factory) -> None:
    """Fingerprints and help texts of the tests stay out of the user's cache; subprocesses inherit it."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache-home"))


@pytest.fixture(autouse=True)
def _collections_of_what_is_new(_tests=itertools.count(1)) -> None:  # noqa: B008  (one count for all tests)
    """Garbage collections pass over what was there before the test: a whole one takes half a second, a run six of them.

    Every twentieth time the garbage of earlier tests goes too.
    """
    if next(_tests) % 20 == 0:
        gc.unfreeze()
        gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def photos() -> pathlib.Path:
    """The folder of real test photos, from `DREAMLIT_PHOTOS` or `../shared/photos`."""
    folder = pathlib.Path(os.environ.get("DREAMLIT_PHOTOS", ROOT.parent / "shared" / "photos"))
    if not folder.is_dir():
        pytest.skip(f"real photos are not here: {folder} (set DREAMLIT_PHOTOS)")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> pathlib.Path:
    """A tiny SDXL in the diffusers layout."""
    import tiny

    return tiny.tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny-sdxl")


@pytest.fixture(scope="session")
def tiny_other_model(tmp_path_factory) -> pathlib.Path:
    """A tiny SDXL of other weights."""
    import tiny

    return tiny.tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny-sdxl-2", seed=1)


@pytest.fixture(scope="session")
def tiny_sd_model(tmp_path_factory) -> pathlib.Path:
    """A tiny Stable Diffusion 1.x."""
    import tiny

    return tiny.tiny_sd(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture
def server():
    """A server on this machine that records what it gets, and misbehaves as it is told."""
    from hook_server import Server

    one = Server()
    yield one
    one.close()


@pytest.fixture
def dead_url() -> str:
    """The address of a server that is gone."""
    from hook_server import Server

    one = Server()
    one.close()
    return one.url


# model families: a file of tests says by a fixture `folder` which models it runs over ---------------------------------


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory):
    """Name of a model in `family_cases.MODELS` -> its folder, made when it is first asked for."""
    import family_cases

    root = tmp_path_factory.mktemp("families")
    return lambda name: family_cases.make(name, root / name)


@pytest.fixture
def kind(folder):
    """The family of the model."""
    import family_cases

    return family_cases.MODELS[folder.name][0]


@pytest.fixture
def family(folder, kind):
    """The model, loaded."""
    import family_cases

    return family_cases.loaded(kind(str(folder)))


@pytest.fixture
def own(folder, tmp_path) -> pathlib.Path:
    """A copy of the model that a test may break."""
    return pathlib.Path(shutil.copytree(folder, tmp_path / folder.name))


@pytest.fixture
def own_memo(tmp_path, monkeypatch) -> None:
    """Fingerprints of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
