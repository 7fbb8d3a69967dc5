"""The LightningModule without a Trainer: where its weights are made, and what it measures."""

import pytest
import torch

from adapter_cases import CASES, shake
from dreamlit.adapters import LoRA, LyCORIS
from dreamlit.families import SDXL
from dreamlit.images import generate
from dreamlit.module import DreamBooth


@pytest.mark.parametrize("name", ["lora", "dora", "lokr", "full"])
def test_first_weights_do_not_depend_on_the_default_device(name, tiny_model):
    """Lightning loads the model with the accelerator as default device; "meta" stands in for a GPU here."""
    plain, elsewhere = (DreamBooth(SDXL(str(tiny_model)), CASES[name](), seed=3) for _ in range(2))
    plain.configure_model()
    with torch.device("meta"):
        elsewhere.configure_model()
    assert {value.device.type for value in (*elsewhere.parameters(), *elsewhere.buffers())} == {"cpu"}
    theirs = elsewhere.adapter.parameters()
    assert all(torch.equal(value, theirs[key]) for key, value in plain.adapter.parameters().items())


@pytest.mark.parametrize("make", [lambda: LoRA(4, dropout=0.5), lambda: LyCORIS("lokr", 4, module_dropout=0.5)])
def test_samples_are_made_without_dropout(make, tiny_model):
    module = DreamBooth(SDXL(str(tiny_model)), make())
    module.configure_model()
    shake(module.adapter)
    pipeline, options = module.pipeline(), {"num_inference_steps": 1, "width": 64, "height": 64}
    first, second = (generate(pipeline, "a dog", 0, options) for _ in range(2))
    assert first.tobytes() == second.tobytes()
