"""Adapter files: what a consumer loads equals the live adapter; every key is used; broken files say what they are."""

import json
import os
import stat

import pytest
import torch
from safetensors import safe_open

from adapter_cases import CASES, LORA, LYCORIS, Named, layer_weights, predict, shake, unet
from dreamlit.adapters import Full, LoRA, LyCORIS
from dreamlit.errors import CheckpointError, CombinationError
from dreamlit.export import check_round_trip, export, load_adapter_file, load_into_adapter, without_paths
from dreamlit.families import SDXL
from kohya_merger import merge as merge_independently

PLAIN_LORA = [name for name in LORA if name != "dora"]
FOLDED = ["locon", "loha", "lokr", "lokr-full-matrix", "lokr-mixed", "glora", "diag-oft", "boft"]


def trained(name, seed=1):
    denoiser, adapter = unet(), CASES[name]()
    adapter.attach(denoiser, seed)
    shake(adapter)
    return denoiser, adapter


@torch.no_grad()
def compare(reloaded, denoiser):
    """Largest difference of the reloaded model and of the base model to the live one."""
    live = predict(denoiser)
    return (predict(reloaded) - live).abs().max().item(), (predict(unet()) - live).abs().max().item()


def through_diffusers(path):
    """A fresh UNet in a real SDXL pipeline (its other parts are not needed) that loads the file."""
    import diffusers

    fresh = unet()
    parts = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipeline = diffusers.StableDiffusionXLPipeline(
        **parts, unet=fresh, scheduler=diffusers.DDIMScheduler(), add_watermarker=False
    )
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    return fresh


def through_numpy(path):
    """A fresh UNet with the weights of the independent merger."""
    fresh = unet()
    merged, used = merge_independently(layer_weights(fresh), path)
    assert used == len(safe_open(path, "pt").keys())
    with torch.no_grad():
        for name, weight in merged.items():
            fresh.get_submodule(name).weight.copy_(torch.tensor(weight))
    return fresh


# what a consumer gets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LORA, "locon"])
def test_diffusers_loads_the_file_exactly(name, tmp_path):
    denoiser, adapter = trained(name)
    path = export(adapter, tmp_path / "a.safetensors", family=Named(), format="diffusers")
    difference, effect = compare(through_diffusers(path), denoiser)
    assert difference < 1e-5 < effect / 100


@pytest.mark.parametrize("name", [*PLAIN_LORA, *LYCORIS])
def test_an_independent_merger_reads_the_kohya_layout(name, tmp_path):
    denoiser, adapter = trained(name)
    path = export(adapter, tmp_path / "a.safetensors", family=Named(), format="kohya")
    difference, effect = compare(through_numpy(path), denoiser)
    assert difference < 1e-5 < effect / 100


@pytest.mark.parametrize("name", ["lora"])  # diffusers drops alphas that differ between modules, see export.py
def test_diffusers_reads_the_kohya_layout_of_attention_layers(name, tmp_path):
    denoiser, adapter = trained(name)
    path = export(adapter, tmp_path / "a.safetensors", family=Named(), format="kohya")
    difference, effect = compare(through_diffusers(path), denoiser)
    assert difference < 1e-5 < effect / 100


@pytest.mark.parametrize("name", ["lora", "rslora", "locon"])
def test_alpha_in_the_file_is_the_true_one_of_every_module(name, tmp_path):
    path = export(trained(name)[1], tmp_path / "a.safetensors", family=Named(), format="kohya")
    tensors, _ = load_adapter_file(path)
    modules = {key.rpartition(".")[0] for key in tensors if key.endswith(".alpha")}
    assert len(modules) == len({key.split(".")[0] for key in tensors})
    if name == "lora":
        assert {float(tensors[f"{module}.alpha"]) for module in modules} == {2.0}
    if name == "rslora":  # alpha / sqrt(rank) = (alpha sqrt(rank)) / rank
        assert {float(tensors[f"{module}.alpha"]) for module in modules} == {16.0}
    if name == "locon":
        assert {float(tensors[f"{module}.alpha"]) for module in modules} == {1.0, 3.0}


@pytest.mark.parametrize("name", ["lora", "dora", "lokr", "boft", "full"])
def test_the_round_trip_check_agrees_on_a_whole_model(name, tmp_path, tiny_model):
    family, adapter = SDXL(str(tiny_model)), CASES[name]()
    family.load("denoiser")
    adapter.attach(family.denoiser, 0)
    shake(adapter)
    for format in adapter.default_formats():
        path = export(adapter, tmp_path / f"{format}.safetensors", family=family, format=format)
        difference, effect = check_round_trip(path, family, adapter)
        assert difference < 1e-5 < effect / 100


def test_the_round_trip_check_compares_in_float32_and_puts_a_bfloat16_model_back(tmp_path, tiny_model):
    family, adapter = SDXL(str(tiny_model), dtype="bfloat16"), LoRA(4, dropout=0.5)
    family.load("denoiser")
    adapter.attach(family.denoiser, 0)
    shake(adapter)
    family.denoiser.train()
    before = {name: (p.data_ptr(), p.dtype) for name, p in family.denoiser.named_parameters()}
    path = export(adapter, tmp_path / "a.safetensors", family=family, format="kohya")
    assert check_round_trip(path, family, adapter).difference < 1e-5
    assert before == {name: (p.data_ptr(), p.dtype) for name, p in family.denoiser.named_parameters()}
    assert family.denoiser.training


def test_the_round_trip_check_finds_a_file_with_another_alpha(tmp_path, tiny_model):
    from safetensors.torch import save_file

    family, adapter = SDXL(str(tiny_model)), LoRA(4, alpha=2)
    family.load("denoiser")
    adapter.attach(family.denoiser, 0)
    shake(adapter)
    path = export(adapter, tmp_path / "a.safetensors", family=family, format="kohya")
    tensors, metadata = load_adapter_file(path)
    wrong = {key: value * 2 if key.endswith(".alpha") else value for key, value in tensors.items()}
    save_file(wrong, path, metadata=metadata)
    difference, effect = check_round_trip(path, family, adapter)
    assert difference > effect / 10


def test_full_weights_become_a_diffusers_folder(tmp_path):
    from diffusers import UNet2DConditionModel

    denoiser, adapter = trained("full")
    denoiser.config["_name_or_path"] = "/home/me/models/base"
    folder = export(adapter, tmp_path / "unet", family=Named())
    difference, effect = compare(UNet2DConditionModel.from_pretrained(folder), denoiser)
    assert difference == 0 < effect
    assert "/home/me" not in (folder / "config.json").read_text()
    assert sorted(os.listdir(tmp_path)) == ["unet"], "temporary files were left behind"


# what a format cannot hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LYCORIS if name != "locon"])
def test_the_diffusers_layout_refuses_what_diffusers_misreads(name, tmp_path):
    with pytest.raises(CombinationError, match="lycoris"):
        export(trained(name)[1], tmp_path / "a.safetensors", family=Named(), format="diffusers")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "format"), [("dora", "kohya"), ("lora", "folder"), ("full", "kohya"), ("lora", "ckpt")]
)
def test_a_format_that_does_not_exist_for_an_adapter_is_refused(name, format, tmp_path):
    with pytest.raises(CombinationError):
        export(trained(name)[1], tmp_path / "a.safetensors", family=Named(), format=format)


# start from a file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format"),
    [(name, "kohya") for name in ("lora", "lora-rank-pattern", "rslora", *FOLDED)]
    + [(name, "diffusers") for name in ("lora", "lora-rank-pattern", "rslora", "dora", "locon")],
)
def test_an_adapter_starts_from_its_own_file(name, format, tmp_path):
    denoiser, adapter = trained(name)
    path = export(adapter, tmp_path / "a.safetensors", family=Named(), format=format)
    again, other = unet(), CASES[name]()
    other.attach(again, seed=99)
    load_into_adapter(path, other)
    difference, effect = compare(again, denoiser)
    assert difference < 1e-5 < effect / 100


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (LoRA(4, alpha=2), LoRA(4, alpha=16, use_rslora=True)),
        (LoRA(4, alpha=2), LyCORIS("locon", 4, alpha=1, multiplier=0.5, preset="attn-only")),
        (LyCORIS("locon", 4, alpha=8, multiplier=0.3, preset="attn-only"), LoRA(4, alpha=1)),
        (LyCORIS("lokr", 2, alpha=8, factor=4), LyCORIS("lokr", 2, alpha=1, multiplier=2.0, factor=4)),
    ],
)
def test_starting_weights_keep_the_update_whatever_the_alpha(source, target, tmp_path):
    first, second = unet(), unet()
    source.attach(first, 0)
    shake(source)
    target.attach(second, 1)
    load_into_adapter(export(source, tmp_path / "a.safetensors", family=Named(), format="kohya"), target)
    difference, effect = compare(second, first)
    assert difference < 1e-5 < effect / 100


@pytest.mark.parametrize(
    ("target", "word"),
    [
        (LoRA(8), "4, 32"),
        (LoRA(4, targets="attention-mlp"), "missing"),
        (LoRA(4, targets=["to_q"]), "unexpected"),
        (LyCORIS("loha", 4, preset="attn-only"), "hada_w1_a"),
        (LoRA(4, use_dora=True), "dora_scale"),
        (Full(), "model folder"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name_and_changes_nothing(target, word, tmp_path):
    path = export(trained("lora")[1], tmp_path / "a.safetensors", family=Named(), format="kohya")
    denoiser = unet()
    target.attach(denoiser, 0)
    before = predict(denoiser)
    with pytest.raises(CheckpointError, match=word):
        load_into_adapter(path, target)
    assert torch.equal(predict(denoiser), before)


# the file itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_metadata_tells_what_it_is_and_holds_no_absolute_path(format, tmp_path):
    facts = {
        "base_model": "/home/me/models/sdxl",
        "base_fingerprint": "abc",
        "step": 40,
        "config": {"data": ["C:\\Users\\me\\dog", "~/dog", "file:///x/y", "a/b", 3]},
    }
    path = export(trained("lora")[1], tmp_path / "a.safetensors", family=Named(), format=format, metadata=facts)
    _, metadata = load_adapter_file(path)
    assert metadata["dreamlit.base_model"] == "sdxl"
    assert metadata["dreamlit.base_fingerprint"] == "abc"
    assert metadata["dreamlit.step"] == "40"
    assert json.loads(metadata["dreamlit.config"]) == {"data": ["dog", "dog", "y", "a/b", 3]}
    assert (metadata["dreamlit.algorithm"], metadata["dreamlit.rank"], metadata["dreamlit.alpha"]) == ("lora", "4", "2")
    assert not any(mark in path.read_bytes() for mark in (b"/home/me", b"Users"))


def test_paths_are_cut_wherever_they_are():
    assert without_paths(["/", "/a/b/", "x", None, True, {"k": ("/a/b",)}]) == ["", "b", "x", None, True, {"k": ["b"]}]


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    adapter = trained("lora")[1]
    path = export(adapter, tmp_path / "a.safetensors", family=Named(), format="kohya")
    before = path.read_bytes()
    shake(adapter, seed=8)

    def full_disk(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        export(adapter, path, family=Named(), format="kohya")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_an_exported_file_can_be_read_by_others_as_the_umask_says(tmp_path):
    mask = os.umask(0o022)
    try:
        path = export(trained("lora")[1], tmp_path / "a.safetensors", family=Named(), format="kohya")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_same_weights_make_the_same_bytes(tmp_path):
    paths = [export(trained("lokr")[1], tmp_path / f"{i}.safetensors", family=Named()) for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def broken(path, kind):
    whole = path.read_bytes()
    contents = {
        "truncated": whole[:-100],
        "half a header": whole[:50],
        "empty": b"",
        "html": b"\n<!DOCTYPE html><html>404</html>" * 20,
        "pickle": b"PK\x03\x04" + whole,
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "noise": bytes(range(256)) * 8,
    }
    path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("truncated", "truncated"),
        ("half a header", "whole"),
        ("empty", "empty"),
        ("html", "web page"),
        ("pickle", "pickle"),
        ("lfs", "git lfs pull"),
        ("noise", "readable header"),
    ],
)
def test_a_broken_file_says_what_it_is(kind, word, tmp_path):
    path = export(trained("lora")[1], tmp_path / "a.safetensors", family=Named(), format="kohya")
    broken(path, kind)
    with pytest.raises(CheckpointError, match=word):
        load_adapter_file(path)


def test_a_missing_file_and_a_file_of_another_kind_are_named(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match="not a file"):
        load_adapter_file(tmp_path / "none.safetensors")
    save_file({"model.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.weight"):
        load_adapter_file(tmp_path / "model.safetensors")
