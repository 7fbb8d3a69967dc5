"""Prompts that are encoded before the denoiser is there: the same images, and no text encoder beside it."""

from __future__ import annotations

import pytest
import torch

from dreamlit.errors import DreamlitError
from dreamlit.families import recall
from dreamlit.observing import is_loaded
from dreamlit.previewing import Picture, Sampling, ask_ahead, batches, draw
from tests.family_cases import MODELS, ONE_EACH, loaded

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


def test_a_wrong_setting_is_told_and_another_failure_is_left_to_the_drawing(family_folders, monkeypatch):
    family = MODELS["sd1"][0](str(family_folders("sd1")))
    sampling = Sampling(steps=2, guidance_scale=3.0)

    def failing(error):
        def asking(*_):
            class Pipeline:
                scheduler = family.scheduler()

                def __call__(self, **_):
                    raise error

            return recall.contextlib.nullcontext(Pipeline())

        return asking

    monkeypatch.setattr(recall, "asking", failing(DreamlitError("too long")))
    with pytest.raises(DreamlitError, match="too long"):
        ask_ahead(family, [PICTURES[:1]], sampling, "cpu")
    monkeypatch.setattr(recall, "asking", failing(RuntimeError("out of memory")))
    ask_ahead(family, [PICTURES[:1]], sampling, "cpu")
    assert not family.remembered
