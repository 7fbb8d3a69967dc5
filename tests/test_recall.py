"""Prompts that are encoded before the denoiser is there: the same images, and no text encoder beside it."""

from __future__ import annotations

import pytest
import torch

from dreamlit.errors import DreamlitError
from dreamlit.families import assembly, recall
from dreamlit.families.base import Family
from dreamlit.module import DreamBooth
from dreamlit.observing import is_loaded
from dreamlit.previewing import Picture, Sampling, ask_ahead, batches, draw
from tests.family_cases import MODELS, ONE_EACH, loaded
from tests.runs import base_config, command, fit, merged, run, write_config, write_photos

PROMPTED = tuple(name for name in ONE_EACH if not MODELS[name][0].drawn_with)
SIZE = (64, 64)
PICTURES = [Picture("a photo of sks dog", 0, *SIZE), Picture("a cat on the beach at night", 1, *SIZE)]


def images(family, pictures, sampling):
    return [image.tobytes() for _, image in draw(family.pipeline(family.denoiser), pictures, sampling, batch_size=2)]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", PROMPTED)
def test_what_was_asked_ahead_makes_the_same_images_without_an_encoder(family_folders, name, guidance):
    kind = MODELS[name][0]
    sampling = Sampling(steps=2, guidance_scale=guidance).of(kind(str(family_folders(name))))
    expected = images(loaded(kind(str(family_folders(name)))), PICTURES, sampling)
    family = kind(str(family_folders(name)))
    ask_ahead(family, batches(PICTURES, 2), sampling, "cpu")
    assert not {"vae", family.denoiser_name} & set(family._loaded)  # neither is needed for it
    family.unload("text_encoders")
    family.load("denoiser")
    for _ in range(2):
        assert images(family, PICTURES, sampling) == expected
    assert not is_loaded(family, "text_encoders")


def test_a_prompt_that_was_not_asked_is_encoded_when_it_is_drawn(family_folders):
    kind, sampling = MODELS["sdxl"][0], Sampling(steps=2, guidance_scale=3.0)
    others = [Picture("something else", 0, *SIZE)]
    expected = images(loaded(kind(str(family_folders("sdxl")))), others, sampling)
    family = kind(str(family_folders("sdxl")))
    ask_ahead(family, batches(PICTURES, 2), sampling, "cpu")
    family.unload("text_encoders")
    family.load("denoiser")
    assert images(family, others, sampling) == expected
    assert is_loaded(family, "text_encoders")


def test_the_same_prompts_are_encoded_once_and_a_pipeline_that_writes_into_them_harms_nobody(family_folders):
    family = MODELS["sd1"][0](str(family_folders("sd1")))
    sampling = Sampling(steps=2, guidance_scale=3.0)
    calls: list[int] = []
    family.load("text_encoders")
    family.part("text_encoder").register_forward_hook(lambda *_: calls.append(1))
    ask_ahead(family, [PICTURES[:1]], sampling, "cpu")
    once = len(calls)
    ask_ahead(family, [PICTURES[:1], [Picture(PICTURES[0].prompt, 9, *SIZE)]], sampling, "cpu")
    assert once and len(calls) == once
    (said,) = family.remembered.values()
    kept = [tensor.clone() for tensor in said if tensor is not None]
    pipeline = family.pipeline(loaded(family).denoiser)
    own = next(iter(family.remembered))
    recalled = recall._recall(family, pipeline, "cpu", lambda: None, own)
    for tensor in recalled:
        tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(said, kept, strict=True))


# in a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 2)


def previewed(tmp_path, model, photos):
    """A run with a preview and a report, whose caches are full, so that nothing but pictures needs a text encoder."""
    config = base_config(tmp_path / "run", model, photos)
    config["model"]["family"]["class_path"] = "SD"
    preview = {"prompts": ["a photo of sks dog"], "sizes": ["64x64"], "seeds": [1], "steps": 2, "at_end": True}
    report = {"prompts": ["a photo of a dog"], "width": 64, "height": 64, "steps": 2}
    callbacks = [
        {"class_path": name, "init_args": a} for name, a in (("ValidationPreview", preview), ("RunReport", report))
    ]
    config = merged(config, {"trainer.callbacks": callbacks, "trainer.max_steps": 2})
    assert command("prepare", "--config", str(write_config(tmp_path / "prepare.yaml", config))) == 0
    return config


def loads_of(monkeypatch):
    """The parts that are read from disk from now on."""
    seen = []
    real = Family._load

    def recorded(self, name):
        seen.append(name)
        return real(self, name)

    monkeypatch.setattr(Family, "_load", recorded)
    return seen


def test_preview_and_report_read_the_text_encoders_once_and_before_the_denoiser(
    tmp_path, tiny_sd_model, photos, monkeypatch
):
    config = previewed(tmp_path, tiny_sd_model, photos)
    seen = loads_of(monkeypatch)
    fit(config)
    assert seen.count("text_encoder") == 1
    assert seen.index("text_encoder") < seen.index("unet")


@pytest.mark.parametrize("place", ["loading", "asking"])
def test_a_failure_is_a_warning_and_the_drawing_encodes_for_itself(
    tmp_path, tiny_sd_model, photos, monkeypatch, recwarn, place
):
    config = previewed(tmp_path, tiny_sd_model, photos)
    failures = []

    def failing_once(real, when):
        def call(*values, **named):
            if when(values) and not failures:
                failures.append(1)
                raise RuntimeError("CUDA out of memory")
            return real(*values, **named)

        return call

    if place == "loading":
        monkeypatch.setattr(Family, "load", failing_once(Family.load, lambda values: "text_encoders" in values))
    else:
        monkeypatch.setattr(assembly, "assembled", failing_once(assembly.assembled, lambda values: True))
    root = fit(config)
    assert failures
    said = [str(one.message) for one in recwarn if "could not be encoded" in str(one.message)]
    assert len(said) == 1 and "RuntimeError: CUDA out of memory" in said[0]
    assert list(root.rglob("previews/**/grid.png")) and list(root.rglob("before-after.png"))


def test_a_wrong_setting_ends_the_run(tmp_path, tiny_sd_model, photos, monkeypatch, capsys):
    config = previewed(tmp_path, tiny_sd_model, photos)

    def refusing(*_):
        raise DreamlitError("too long for it")

    monkeypatch.setattr(recall, "asking", refusing)
    monkeypatch.setattr(DreamBooth, "configure_model", lambda self: pytest.fail("the model was loaded"))
    assert run("fit", config) != 0
    assert "too long for it" in capsys.readouterr().err


def test_a_failure_in_asking_is_told_to_who_asks(family_folders, monkeypatch):
    family = MODELS["sd1"][0](str(family_folders("sd1")))
    monkeypatch.setattr(type(family), "load", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        ask_ahead(family, [PICTURES[:1]], Sampling(steps=2, guidance_scale=3.0), "cpu")
    assert not family.remembered


def test_doctor_reads_no_weights(tmp_path, tiny_sd_model, photos, monkeypatch):
    config = previewed(tmp_path, tiny_sd_model, photos)
    seen = loads_of(monkeypatch)
    assert command("doctor", "--config", str(write_config(tmp_path / "run.yaml", config))) == 0
    assert not seen
