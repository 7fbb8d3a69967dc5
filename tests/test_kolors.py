"""What is particular about Kolors: ChatGLM's padding before the text, a library that may be absent, 1100 timesteps."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch

from dreamlit.families import Kolors
from tests.family_cases import PROMPTS, change, complaint, image, loaded, stock

pytestmark = pytest.mark.usefixtures("own_memo")


@pytest.fixture
def folder(family_folders):
    return family_folders("kolors")


def test_positions_and_mask_are_the_tokenizers_own(folder):
    family = loaded(Kolors(str(folder)))
    given = {}
    family.part("text_encoder").register_forward_pre_hook(lambda *call: given.update(call[2]), with_kwargs=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        family.encode_prompts(PROMPTS)
    theirs = stock(folder).tokenizer(
        PROMPTS, padding="max_length", max_length=256, truncation=True, return_tensors="pt"
    )
    assert torch.equal(given["position_ids"], theirs["position_ids"])
    assert torch.equal(given["attention_mask"], theirs["attention_mask"])


def test_what_is_cut_off_a_long_caption_is_named_whole(folder):
    family = loaded(Kolors(str(folder)))
    with pytest.warns(UserWarning, match="reads 256; it will not see 'cat'"):
        family.encode_prompts(["dog " * 254 + "cat"])


def test_a_missing_sentencepiece_is_found_before_anything_loads(folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else find(name))
    assert "pip install 'dreamlit[kolors]'" in complaint(Kolors(str(folder)))


def test_a_configuration_of_zeros_for_no_prompt_does_not_stop_previews(own, kind):
    change(own / "model_index.json", force_zeros_for_empty_prompt=True)
    with pytest.raises(AttributeError):
        image(stock(own))  # once diffusers can do this, `pipeline_options` need not change it
    assert image(kind(str(own)).pipeline()).isfinite().all()


def test_all_of_its_timesteps_are_trained(folder):
    process = Kolors(str(folder)).process()
    assert process.num_timesteps == 1100 and process.timestep(0.9999) == 1099
