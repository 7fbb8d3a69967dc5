"""The wheel holds every package; mapped folders refuse to be imported under another name; links are relative."""

import os
import pathlib
import subprocess
import sys

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAPPED = ("callbacks", "datamodules", "configs")


def test_the_packages_list_names_every_package_on_disk():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "dreamlit").rglob("__init__.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }
    on_disk |= {f"dreamlit.{name}" for name in MAPPED if (ROOT / name / "__init__.py").is_file()}
    assert set(declared) == on_disk


@pytest.mark.parametrize("name", MAPPED)
def test_links_for_static_tools_are_relative(name):
    assert os.readlink(ROOT / "dreamlit" / name) == f"../{name}"


@pytest.mark.parametrize("name", ["callbacks", "datamodules"])
def test_a_mapped_folder_refuses_another_name(name):
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"dreamlit.{name}" in done.stderr


def test_shipped_configs_are_package_data():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "*.yaml" in data["dreamlit.configs"]
    assert list((ROOT / "configs").glob("*.yaml"))
