"""The wheel alone, without this checkout and without a network, runs the quickstart to the end."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel holds; the dependencies come from this environment."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "target"))
    for name in ("dreamlit", "callbacks", "datamodules", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(source)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def python(installed, folder, *args):
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_alone_runs_the_quickstart(installed, tmp_path):
    assert pathlib.Path(python(installed, tmp_path, "-c", "print(__import__('dreamlit').__file__)")).is_relative_to(
        installed
    )
    python(installed, tmp_path, "-m", "dreamlit", "toybox", "--class-images", "2")
    path = tmp_path / "toybox" / "quickstart.yaml"
    config = yaml.safe_load(path.read_text())
    config["trainer"]["max_steps"] = config["checkpoint"]["every_n_steps"] = 2
    (report,) = config["trainer"]["callbacks"]
    report["init_args"] |= {"steps": 2, "images_per_prompt": 1}
    path.write_text(yaml.safe_dump(config))
    said = python(installed, tmp_path, "-m", "dreamlit", "fit", "--config", "toybox/quickstart.yaml")
    run = tmp_path / "runs" / "quickstart"
    for file in ("quickstart.safetensors", "report/before-after.png", "report/losses.png", "report/scores.json"):
        assert (run / file).stat().st_size > 0
        assert file in said
