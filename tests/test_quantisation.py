"""Weights in few bits: what a layer computes, which layers, and every adapter on top of them."""

import copy
import functools
import os
import time

import pytest
import torch
from torch import nn

from dreamlit.adapter_files import load_adapter_file, read_factors
from dreamlit.adapters.targets import layers
from dreamlit.cli import main
from dreamlit.errors import CheckpointError, CombinationError
from dreamlit.export import export, load_into_adapter
from dreamlit.merging import merge
from dreamlit.precision_checks import level_fault
from dreamlit.quantisation import LEVELS, refusal
from dreamlit.quantisation.layers import (
    chosen,
    is_quantised,
    quantise,
    quantised,
    refuse_a_lock_left_behind,
    stored_bytes,
    weight_of,
)
from dreamlit.quantisation.levels import is_chosen
from dreamlit.quantisation.probe import probe
from tests.adapter_cases import CASES, Named, predict, shake, unet

HERE = [name for name, level in LEVELS.items() if "cpu" in level.devices]
COMPILES = [name for name in HERE if LEVELS[name].compiles]
INDUCTOR = pytest.param("int8-torchao", "inductor", marks=pytest.mark.slow)
AT_MOST = {2: 0.36, 4: 0.105, 8: 0.03}
"""Bits -> norm of the change of a uniform weight over its norm, at most."""


def linear(dtype=torch.float32, size=128, outputs=256):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(1, 1)
    layer.in_features, layer.out_features = size, outputs
    layer.weight = nn.Parameter((torch.rand(outputs, size, generator=generator) * 2 - 1).to(dtype))
    layer.bias = nn.Parameter(torch.randn(outputs, generator=generator).to(dtype))
    return layer


@pytest.mark.parametrize("level", HERE)
def test_a_layer_computes_with_the_weight_that_it_says_it_has(level):
    before = linear()
    wanted, bias = before.weight.detach().clone(), before.bias.detach().bfloat16().float()
    layer = quantised(before, LEVELS[level])
    weight = weight_of(layer)
    error = float((weight - wanted).norm() / wanted.norm())
    assert 0 < error < AT_MOST[LEVELS[level].bits]
    x = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(1))
    by_hand = x @ weight.T + bias
    assert (layer(x) - by_hand).norm() / by_hand.norm() < 0.006  # int8-bnb rounds its input too


@pytest.mark.parametrize("level", HERE)
def test_few_bits_take_few_bytes_and_the_gradient_goes_through(level):
    layer = quantised(linear(torch.bfloat16, 1024, 1024), LEVELS[level])
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    per_weight = stored_bytes(layer) / 1024**2
    assert per_weight < LEVELS[level].bits / 8 * 1.15
    x = torch.randn(4, 1024, dtype=torch.bfloat16, requires_grad=True)
    layer(x).float().sum().backward()
    by_hand = weight_of(layer).sum(0).expand(4, -1)
    assert x.grad is not None
    assert (x.grad.float() - by_hand).norm() / by_hand.norm() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", HERE)
def test_looking_at_a_layer_never_changes_it(level, dtype):
    """An evaluation in another mode and precision first: the training that follows computes the same bits."""
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)

    def trained(layer):
        with autocast():
            return layer.train()(x.clone().requires_grad_(True))

    layer = quantised(linear(dtype), LEVELS[level])
    wanted = trained(quantised(linear(dtype), LEVELS[level]))
    with torch.no_grad(), autocast():  # a layer norm hands on float32, a linear layer bfloat16
        for seen in (torch.float32, dtype):
            layer.eval()(x.to(seen))
    assert torch.equal(trained(layer), wanted)


@pytest.mark.parametrize("size", [20, 24, 40])
@pytest.mark.parametrize("level", HERE)
def test_layers_of_odd_sizes_are_right_or_left_alone(level, size):
    model = nn.ModuleDict({"0": linear(torch.bfloat16, size)})
    x = torch.randn(7, size, generator=torch.Generator().manual_seed(1)).bfloat16()
    quantise(model, level)
    by_hand = x.float() @ weight_of(model["0"]).float().T + model["0"].bias.float()
    assert (model["0"](x).float() - by_hand).norm() / by_hand.norm() < 0.02


@pytest.mark.parametrize("size", [128, 1024])
@pytest.mark.parametrize("level", HERE)
def test_transposed_and_uncast_inputs_are_taken_in_mixed_precision(level, size):
    """A layer norm hands on float32 under autocast; other sizes mean other kernels."""
    x = torch.randn(size, 6, generator=torch.Generator().manual_seed(1)).bfloat16().T
    layer = quantised(linear(torch.bfloat16, size), LEVELS[level])
    with torch.autocast("cpu", torch.bfloat16):
        wanted = layer(x.contiguous())
        assert torch.equal(layer(x), wanted)
        torch.testing.assert_close(layer(x.float()).float(), wanted.float(), atol=0.2, rtol=0.02)


def test_the_layers_of_blocks_are_stored_and_embedders_and_last_layers_are_not():
    stays = ("time_embedding.linear_1", "add_embedding.linear_2", "x_embedder", "context_embedder", "proj_out")
    stays += ("norm_out.linear", "down_blocks.0.resnets.0.time_emb_proj", "text_projection", "t_embedder.mlp.0")
    stored = ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", "transformer_blocks.3.ff.net.0.proj")
    stored += ("encoder.block.0.layer.1.DenseReluDense.wi_0", "text_model.encoder.layers.11.mlp.fc1")
    assert not any(map(is_chosen, stays)) and all(map(is_chosen, stored))
    model = unet()
    names = {name for name, _ in chosen(model, LEVELS["nf4-bnb"])}
    quantise(model, "nf4-bnb")
    assert names == {name for name, module in model.named_modules() if is_quantised(module)} and len(names) > 8


ADAPTERS = [name for name in CASES if not name.startswith("full")]


@pytest.mark.parametrize(
    ("name", "level"), [(n, at) for n in ADAPTERS for at in HERE if (n, at) != ("dora", "int8-bnb")]
)
def test_every_adapter_on_every_level(tmp_path, name, level):
    """It starts at the base, trains, resumes bit for bit, is exported, and the base is exactly there below it."""
    denoiser, adapter = quantise(unet(), level).eval(), CASES[name]()
    with torch.no_grad():
        base = predict(denoiser)
    adapter.attach(denoiser, seed=0)
    with torch.no_grad():
        start = predict(denoiser)
    assert (start - base).abs().max() <= 2e-3 * base.abs().max()
    saved = train(adapter, denoiser, optimizer_of(adapter))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters().values())
    with torch.no_grad(), adapter.disabled() as below:
        assert torch.equal(predict(below), base)
    with torch.no_grad():
        assert not torch.equal(predict(denoiser), base)
    train(adapter, denoiser, optimizer_of(adapter, saved))

    other, again = quantise(unet(), level).eval(), adapter.unattached()
    again.attach(other, seed=1)
    again.load_state(saved["state_dict"])
    train(again, other, optimizer_of(again, saved))
    for key, value in adapter.parameters().items():
        assert torch.equal(value, again.parameters()[key]), f"{key} went another way after it was resumed"

    path = export(adapter, tmp_path / "a.safetensors", family=Named())
    shake(again)
    load_into_adapter(path, again)
    with torch.no_grad():
        wanted = predict(denoiser)
        assert (predict(other) - wanted).abs().max() < 1e-2 * (wanted - base).abs().max()


def optimizer_of(adapter, saved=None):
    optimizer = torch.optim.AdamW(adapter.parameters().values(), lr=1e-2)
    if saved:
        optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    return optimizer


def train(adapter, denoiser, optimizer):
    """A step toward zero; returns what a checkpoint would hold."""
    optimizer.zero_grad()
    predict(denoiser).float().square().mean().backward()
    optimizer.step()
    state = {key: value.detach().clone() for key, value in adapter.parameters().items()}
    return {"state_dict": state, "optimizer": copy.deepcopy(optimizer.state_dict())}


@pytest.mark.parametrize(("level", "backend"), [*((level, "aot_eager") for level in COMPILES), INDUCTOR])
def test_compiled_blocks_on_few_bits_compute_the_same(level, backend):
    """The whole way through torch's compiler for one level; what is traced, for all."""
    found = []
    for compiled in (False, True):
        denoiser, adapter = quantise(unet(), level).eval(), CASES["lora"]()
        adapter.attach(denoiser, seed=0)
        shake(adapter)
        if compiled:
            torch._dynamo.reset()
            denoiser.compile_repeated_blocks(backend=backend, fullgraph=True)
        prediction = predict(denoiser)
        prediction.square().mean().backward()
        found.append([prediction.detach(), *(value.grad for value in adapter.parameters().values())])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    for plain, compiled in zip(*found, strict=True):
        assert (compiled - plain).norm() <= 1e-4 * plain.norm()


@pytest.mark.parametrize("level", HERE)
def test_nothing_is_merged_into_few_bits(tmp_path, level):
    adapter = CASES["lora"]()
    adapter.attach(unet(), seed=0)
    shake(adapter)
    path = export(adapter, tmp_path / "a.safetensors", family=Named(), format="kohya")
    plain, stored = unet(), quantise(unet(), level)
    tensors, metadata = load_adapter_file(path)
    factors = read_factors(tensors, metadata, [layer.name for layer in layers(plain)])
    with torch.no_grad():
        before = predict(stored)
    with pytest.raises(CheckpointError, match="in few bits"):
        merge(stored, factors)
    with torch.no_grad():
        assert torch.equal(predict(stored), before)


@pytest.mark.parametrize("name", ["lora", "lokr"])
def test_an_adapter_of_the_same_options_starts_afresh(name):
    first = CASES[name]()
    first.attach(unet(), seed=0)
    second = first.unattached()
    assert first.parameters()
    with pytest.raises(CombinationError, match="not attached"):
        second.parameters()
    second.attach(unet(1), seed=0)
    for mine, other in zip(first.parameters().values(), second.parameters().values(), strict=True):
        assert mine is not other and torch.equal(mine, other)


def test_the_table_says_what_to_take_instead():
    assert refusal("int4-torchao", "cpu") == "int4-torchao does not work on cpu, only on cuda; use nf4-bnb"
    assert "compute capability 8.9, and this one has 8.6; use int8-quanto" in str(refusal("fp8-quanto", "cuda", (8, 6)))
    assert refusal("fp8-quanto", "cuda", (9, 0)) is None and refusal("fp8-torchao", "cpu") is None
    assert str(refusal("nf4-bnb", "mps")).endswith("use no_change")
    for name, level in LEVELS.items():
        assert all(LEVELS[other].bits >= level.bits or level.devices == ("cuda",) for other in level.instead), name


@pytest.mark.parametrize("level", [None, *HERE])
def test_the_probe_measures_a_level(level):
    state = torch.random.get_rng_state()
    found = probe(level, "cpu", size=256)
    assert found.fault is None and found.step_ms > 0
    bits = LEVELS[level].bits if level else 16
    assert bits / 8 <= found.bytes_per_weight < bits / 8 * 1.15
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_lock_that_a_killed_build_has_left_is_said_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("optimum.quanto.library.extensions.cpp.ext.build_directory", str(tmp_path))
    lock = tmp_path / "lock"
    lock.touch()
    refuse_a_lock_left_behind()  # of a build that may still go on
    os.utime(lock, (time.time() - 3600,) * 2)
    assert f"{lock} is left of a build" in str(probe("int4-quanto", "cpu").fault)
    assert level_fault("int2-quanto", torch.device("cpu")).endswith("use nf4-bnb")


def test_the_probe_says_why_a_level_does_not_work():
    assert "mslk" in str(probe("int4-torchao", "cpu").fault)


def test_the_command_tells_what_works_here(capsys):
    assert main(["precisions", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[1]: line for line in lines if line.startswith("│")}
    assert rows.keys() == {"no_change", *LEVELS}
    assert all("yes" in rows[name] for name in HERE) and "only on cuda; use nf4-bnb" in rows["int4-torchao"]


def test_a_device_that_is_not_there_is_said(capsys):
    assert main(["precisions", "--device", "cuda:77"]) == 2
    assert "not on this machine" in capsys.readouterr().err
