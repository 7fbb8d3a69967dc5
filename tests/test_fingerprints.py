"""Fingerprints depend on what a part is, and on nothing else; they are remembered, and never trusted when stale."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

from dreamlit.families import SDXL, fingerprints
from tests.tiny import tiny_sdxl

PARTS = ("vae", "text_encoders", "denoiser")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture
def model(made: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture(autouse=True)
def memo(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dreamlit" / "fingerprints.json"


def prints(model: pathlib.Path, **options: Any) -> dict[str, str]:
    family = SDXL(str(model), **options)
    return {part: family.fingerprint(part) for part in PARTS}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {part for part in PARTS if before[part] != after[part]}


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(path: pathlib.Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("vae/diffusion_pytorch_model.safetensors", "vae"),
        ("unet/diffusion_pytorch_model.safetensors", "denoiser"),
        ("text_encoder/model.safetensors", "text_encoders"),
        ("text_encoder_2/model.safetensors", "text_encoders"),
        ("tokenizer/merges.txt", "text_encoders"),
    ],
)
def test_one_bit_changes_its_part_only(model: pathlib.Path, file: str, part: str):
    before = prints(model)
    flip(model / file)
    assert changed(before, prints(model)) == {part}


@pytest.mark.parametrize(
    ("file", "values", "part"),
    [
        ("vae/config.json", {"scaling_factor": 0.5}, "vae"),
        ("unet/config.json", {"norm_eps": 0.1}, "denoiser"),
        ("text_encoder_2/config.json", {"hidden_act": "quick_gelu"}, "text_encoders"),
        ("tokenizer_2/tokenizer_config.json", {"model_max_length": 20}, "text_encoders"),
    ],
)
def test_configuration_changes_its_part_only(model: pathlib.Path, file: str, values: dict[str, Any], part: str):
    before = prints(model)
    edit(model / file, **values)
    assert changed(before, prints(model)) == {part}


def test_provenance_place_and_time_change_nothing(model: pathlib.Path, tmp_path: pathlib.Path):
    before = prints(model)
    edit(model / "vae" / "config.json", _name_or_path="/some/where", _diffusers_version="9.9")
    edit(model / "text_encoder" / "config.json", transformers_version="9.9", dtype="float16")
    edit(model / "tokenizer" / "tokenizer_config.json", name_or_path="/some/where")
    for path in model.rglob("*"):
        os.utime(path, (1, 1))
    assert prints(pathlib.Path(shutil.move(model, tmp_path / "moved"))) == before


def test_options_that_change_embeddings_change_the_text_fingerprint_only(model: pathlib.Path):
    before = prints(model)
    assert changed(before, prints(model, dtype="bfloat16")) == {"text_encoders"}
    assert changed(before, prints(model, clip_skip=1)) == {"text_encoders"}
    assert changed(before, prints(model, compile=True, channels_last=True, prediction_type="v_prediction")) == set()


def test_another_autoencoder_changes_only_the_vae_and_the_same_one_nothing(model: pathlib.Path, tmp_path: pathlib.Path):
    before = prints(model)
    other = pathlib.Path(shutil.copytree(model / "vae", tmp_path / "vae"))
    assert prints(model, vae=str(other)) == before
    flip(other / "diffusion_pytorch_model.safetensors")
    assert changed(before, prints(model, vae=str(other))) == {"vae"}
    lone = other / "diffusion_pytorch_model.safetensors"
    assert prints(model, vae=str(lone)) == prints(model, vae=str(other))


def test_parts_differ_from_each_other(model: pathlib.Path):
    assert len(set(prints(model).values())) == 3


def test_fingerprints_need_no_heavy_library(model: pathlib.Path):
    code = (
        "import sys; from dreamlit.families import SDXL; f = SDXL(sys.argv[1]); f.check();"
        "[f.fingerprint(p) for p in ('vae', 'text_encoders', 'denoiser')];"
        "print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_nothing_is_read_twice(model: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    before = prints(model)
    monkeypatch.setattr(fingerprints, "hash_file", lambda path: pytest.fail(f"{path} was read again"))
    assert prints(model) == before


def test_a_file_replaced_with_the_same_size_and_time_is_read_again(model: pathlib.Path):
    before = prints(model)
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    times = path.stat()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert changed(before, prints(model)) == {"denoiser"}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"x": 1}'])
def test_a_damaged_memo_is_made_anew(model: pathlib.Path, memo: pathlib.Path, damage: bytes):
    before = prints(model)
    memo.write_bytes(damage)
    assert prints(model) == before
    assert len(json.loads(memo.read_bytes())) >= 4


def test_a_wrong_entry_in_the_memo_is_not_used(model: pathlib.Path, memo: pathlib.Path):
    before = prints(model)
    entries = json.loads(memo.read_bytes())
    memo.write_text(json.dumps({name: [1, 2, "0" * 32] for name in entries}))
    assert prints(model) == before


def test_a_home_that_cannot_be_written_is_no_obstacle(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = prints(model)
    monkeypatch.setattr(fingerprints, "hash_file", lambda path: pytest.fail(f"{path} was read again"))
    assert prints(model) == before


def test_entries_of_deleted_files_are_dropped(model: pathlib.Path, memo: pathlib.Path, tmp_path: pathlib.Path):
    gone = tmp_path / "gone"
    gone.write_bytes(b"x")
    fingerprints.file_digest(gone)
    gone.unlink()
    prints(model)
    assert str(gone) not in json.loads(memo.read_bytes())


def test_many_at_once_never_leave_a_damaged_memo(memo: pathlib.Path, tmp_path: pathlib.Path):
    files = [tmp_path / f"{number}.bin" for number in range(16)]
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]) * 100)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(fingerprints.file_digest, files))
    assert len(set(digests)) == 16
    assert isinstance(json.loads(memo.read_bytes()), dict)
    assert [path.name for path in memo.parent.iterdir()] == [memo.name]
