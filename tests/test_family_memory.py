"""Which parts of a model are in memory while a run encodes, trains and draws, and what a second run encodes again."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from PIL import Image

import recorder
from tests.runs import base_config, fit, run, write_photos

PREVIEW = {"prompts": ["a dog", "a cat"], "sizes": ["64x96"], "seeds": [1], "every_n_steps": 2}
RUNS: dict[str, tuple[str, dict[str, str], int, tuple[int, int]]] = {
    "WatchedSDXL": ("sdxl", {}, 1, (64, 96)),
    "WatchedRefiner": ("refiner", {"base": "sdxl"}, 5, (64, 96)),
    "WatchedII": ("if2", {"stage_one": "if1"}, 1, (64, 96)),
}
"""Family -> its model, the model that draws before it, sampler steps of a preview, size of its images."""


@pytest.fixture(autouse=True)
def _nothing_seen_yet():
    recorder.Watched.seen.clear()


def configured(root, kind: str, model, photos, **options: Any) -> dict[str, Any]:
    config = base_config(root, model, photos)
    config["model"]["family"] = {"class_path": f"recorder.{kind}", "init_args": {"path": str(model), **options}}
    return config


def loaded_at(verb: str) -> list[set[str]]:
    return [names for when, names in recorder.Watched.seen if when == verb]


@pytest.mark.parametrize("kind", RUNS)
def test_one_part_is_loaded_at_a_time_and_previews_leave_nothing_behind(tmp_path, family_folders, capsys, kind):
    name, before, steps, size = RUNS[kind]
    own = {option: str(family_folders(model)) for option, model in before.items()}
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    config = configured(tmp_path / "run", kind, family_folders(name), photos, **own)
    config["trainer"]["callbacks"] = [{"class_path": "ValidationPreview", "init_args": {**PREVIEW, "steps": steps}}]
    root = fit(config)
    family = getattr(recorder, kind)
    pixels = {*(["vae"] if name != "if2" else [])}
    encoders = {encoder for encoder, _ in family.text_encoder_names}
    assert loaded_at("encode_pixels") and all(names == pixels for names in loaded_at("encode_pixels"))
    assert loaded_at("encode_prompts") and all(names == encoders for names in loaded_at("encode_prompts"))
    assert len(loaded_at("predict")) == 4 and all(names == {"unet"} for names in loaded_at("predict"))
    assert len(loaded_at("pipeline")) == (4 if name == "sdxl" else 0)  # the rehearsal, the base, and two previews
    assert all(names == {"unet", "vae"} for names in loaded_at("pipeline"))  # the prompts were encoded before
    assert len(loaded_at("before")) == (len(recorder.Watched.seen) // 2 if before else 0)
    assert not any(loaded_at("before"))
    # with the model before it, images are drawn of the prompts, by both
    assert "prompts and sizes are ignored" not in capsys.readouterr().out
    for step in (2, 4):
        for row in (0, 1):
            assert Image.open(root / "previews" / f"step-{step:06d}" / "raw" / f"{row:03d}-00.png").size == size


def test_the_refiner_finds_the_latents_of_its_base_and_encodes_its_own_texts(tmp_path, family_folders, capsys):
    photos = write_photos(tmp_path / "photos", [(64, 64), (96, 64)])
    base = family_folders("sdxl")
    refiner = shutil.copytree(family_folders("refiner"), tmp_path / "refiner")
    shutil.copytree(base / "vae", refiner / "vae", dirs_exist_ok=True)  # as the published models have it
    for kind, model in (("WatchedSDXL", base), ("WatchedRefiner", refiner)):
        recorder.Watched.seen.clear()
        config = configured(tmp_path / kind, kind, model, photos)
        config["data"]["aspect_bucket_alignment"] = 32
        assert run("prepare", config) == 0
    assert not loaded_at("encode_pixels") and loaded_at("encode_prompts") == [{"text_encoder_2"}]
