"""The estimate of a run's memory: against the allocator, against stored layers, and what its parts must add up to."""

import dataclasses

import pytest
import torch

from dreamlit.adapters import Full, LoRA
from dreamlit.families import SD
from dreamlit.families.loading import bare
from dreamlit.memory.live import without_memory
from dreamlit.memory.walk import Work, code_pixels, read_caption, train
from dreamlit.memory.weights import SCALES, saving, stored_bytes
from dreamlit.quantisation import LEVELS
from dreamlit.quantisation.layers import quantised
from dreamlit.quantisation.layers import stored_bytes as bytes_of_layer
from tests.tiny import script, tiny_sd

WORK = Work(2, (64, 64), precision="32-true")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return SD(str(tiny_sd(tmp_path_factory.mktemp("memory") / "sd")))


@pytest.fixture(scope="module")
def texts(family):
    return read_caption(family, WORK)[0]


@pytest.fixture(scope="module")
def step(family, texts):
    return train(family, LoRA(rank=4), adam, WORK, texts)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-4)


def test_a_caption_has_the_shape_that_the_encoders_give(family, texts):
    twin = family.fresh()
    twin.load("text_encoders")
    real = twin.encode_prompts(["a photo"])
    assert {name: value.shape for name, value in texts.items()} == {name: value.shape for name, value in real.items()}


def test_weights_are_counted_as_they_are_loaded(family):
    twin = family.fresh()
    twin.load("denoiser")
    real = sum(tensor.nbytes for tensor in (*twin.denoiser.parameters(), *twin.denoiser.buffers()))
    assert stored_bytes(bare(family, "unet"), torch.float32) == real


def test_the_estimate_of_a_step_is_near_what_the_allocator_gave(family, texts, step):
    real = script("benchmark_memory").measured(family, LoRA(rank=4), WORK, texts, "no_change")
    assert 0.8 < (step.lasting + step.rest) / real < 1.25


def test_adam_keeps_two_moments_of_what_is_trained(step):
    assert step.trained == step.gradients
    assert 2 * step.trained <= step.state <= 2.1 * step.trained


def test_checkpointing_and_a_smaller_batch_need_less(family, texts, step):
    frugal = SD(family.files.path, gradient_checkpointing=True)
    less = train(frugal, LoRA(rank=4), adam, WORK, texts)
    assert less.rest < 0.9 * step.rest
    assert less.base == step.base


def test_gradients_of_the_last_step_are_there_during_the_next_forward(family, texts):
    """Lightning frees them after the forward, and where batches are accumulated they stay."""
    step = train(family, Full(), adam, WORK, texts)
    lora = train(family, LoRA(rank=1), adam, WORK, texts)
    assert step.gradients > 0.9 * lora.base
    assert step.rest > 0.8 * lora.rest  # beside its gradients, all of them, what a forward keeps for the backward pass


def test_what_is_drawn_before_the_run_is_counted_apart(family, texts, step):
    drawing = dataclasses.replace(WORK, drawn=((1, (64, 64)),), drawn_first=((4, (64, 64)),))
    found = train(family, LoRA(rank=4), adam, drawing, texts)
    assert found.drawing_first > found.drawing > 0 == step.drawing_first
    _, during, first = code_pixels(family, drawing)
    assert first > during > 0


@pytest.mark.parametrize("level", ["int8-quanto", "int8-torchao", "nf4-bnb", "int8-bnb"])
def test_a_stored_layer_has_the_bytes_that_the_table_says(level):
    layer = torch.nn.Linear(512, 1024, dtype=torch.bfloat16)
    whole, saved = layer.weight.nbytes, saving(layer, torch.bfloat16, level)
    made = quantised(layer, LEVELS[level])
    assert whole - saved == pytest.approx(bytes_of_layer(made), rel=0.01)


def test_every_level_has_its_scales():
    assert SCALES.keys() == LEVELS.keys()


def test_what_is_freed_no_longer_counts():
    with without_memory("cpu") as live:
        one = torch.empty(1000)
        two = one + 1
        del one
        three = torch.empty(250)
    assert live.peak == 8000 and live.live == 5000
    assert two.shape == (1000,) and three.shape == (250,)


def test_attention_takes_no_square_matrix():
    with without_memory("cpu") as live:
        query = torch.empty(1, 1, 1000, 8, requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
    assert live.peak < 4 * 1000 * 1000
    assert query.grad is not None
