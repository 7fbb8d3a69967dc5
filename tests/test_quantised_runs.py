"""Whole runs on a base in few bits: resumed bit for bit, exported, refused where something does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from dreamlit.families import SDXL
from dreamlit.quantisation import LEVELS
from dreamlit.quantisation.layers import is_quantised, quantise
from tests.family_cases import MODELS, ONE_EACH, predicted
from tests.runs import assert_same_state, base_config, checkpoint, fit, merged, regularisation, run, write_photos

HERE = [name for name, level in LEVELS.items() if "cpu" in level.devices]
ADAPTERS: tuple[dict[str, Any], ...] = (
    {"class_path": "LoRA", "init_args": {"rank": 4, "dropout": 0.1}},
    {"class_path": "LyCORIS", "init_args": {"algo": "lokr", "rank": 4, "factor": 4}},
)
SIZES = [(64, 64), (96, 64)]
ALSO = ("int8-quanto", "int8-torchao", "nf4-bnb")
"""Levels with both adapters and both shapes; the others with one of each."""
MATRIX = [(level, ("sdxl", "flux_dev")[n % 2], n // 2 % 2) for n, level in enumerate(HERE)]
MATRIX += [(level, name, which) for level in ALSO for name in ("sdxl", "flux_dev") for which in (0, 1)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    home = tmp_path_factory.mktemp("photos")
    write_photos(home / "subject", SIZES, seed=1)
    write_photos(home / "class", SIZES, seed=2)
    return home


def configured(root, model, name, photos, level, adapter=ADAPTERS[0]) -> dict[str, Any]:
    config = base_config(root, model, photos / "subject")
    options = {"path": str(model), "dtype": "bfloat16"}
    config["model"] |= {"base_model_precision": level, "text_encoder_2_precision": level, "adapter": adapter}
    config["model"]["family"] = {"class_path": MODELS[name][0].__name__, "init_args": options}
    config["model"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    config["data"]["datasets"].append(regularisation(photos / "class"))
    preview = {"prompts": ["a dog"], "sizes": ["64x64"], "seeds": [3], "steps": 2, "every_n_steps": 2}
    config["trainer"]["callbacks"] = [{"class_path": "ValidationPreview", "init_args": preview}]
    return merged(config, {"trainer.precision": "bf16-mixed", "data.aspect_bucket_alignment": 32})


@pytest.mark.slow
@pytest.mark.parametrize(("level", "name", "which"), sorted(set(MATRIX)))
def test_a_run_resumes_bit_for_bit_and_its_file_is_right(tmp_path, family_folders, photos, capsys, level, name, which):
    asked = (family_folders(name), name, photos, level, ADAPTERS[which])
    straight = fit(configured(tmp_path / "straight", *asked))
    config = configured(tmp_path / "broken", *asked)
    fit(merged(config, {"trainer.max_steps": 2}))
    broken = fit(config, "--ckpt_path", "last")
    one, two = (checkpoint(root, 4) for root in (straight, broken))
    assert_same_state(one["state_dict"], two["state_dict"])
    assert_same_state(one["optimizer_states"], two["optimizer_states"])
    assert (broken / "previews" / "step-000004").is_dir()
    capsys.readouterr()
    assert run("export", config, "--ckpt_path", "last", "--check", "--output", str(tmp_path / "out")) == 0
    assert capsys.readouterr().out.count("largest difference to the live adapter") >= 1
    size = sum(path.stat().st_size for path in (broken / "checkpoints").glob("step-000004.ckpt"))
    assert size < 4_000_000  # the base in few bits is not in it


def test_the_teacher_is_the_base_in_few_bits(family_folders):
    """On a mixed batch the prior starts at 0: the teacher has the same few bits."""
    from dreamlit.adapters import LoRA

    family = SDXL(str(family_folders("sdxl")))
    family.store("int8-quanto", ())
    family.load("denoiser", "text_encoders", "vae")
    adapter = LoRA(4)
    adapter.attach(family.denoiser, seed=0)
    live = predicted(family)
    with adapter.disabled():
        assert torch.equal(predicted(family), live)


@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize("level", ["int8-torchao", "nf4-bnb", "int8-quanto"])
def test_streaming_gives_the_same_bits_as_loading_whole(family_folders, name, level):
    kind, folder = MODELS[name][0], str(family_folders(name))
    plain, streamed = kind(folder), kind(folder)
    plain.load("denoiser", "text_encoders")
    quantise(plain.denoiser, level)
    encoders = [encoder for encoder, _ in plain.text_parts()]
    for encoder in encoders:
        quantise(plain.part(encoder), level)
    streamed.store(level, [level] * len(encoders))
    streamed.load("denoiser", "text_encoders")
    assert torch.equal(predicted(streamed), predicted(plain))
    for name in (plain.denoiser_name, *encoders):
        part, whole = streamed.part(name), plain.part(name)
        stored = [is_quantised(module) for module in part.modules()]
        assert stored == [is_quantised(module) for module in whole.modules()] and not part.training
        assert any(stored) or whole.config.d_model % LEVELS[level].multiple
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in part.parameters())


def test_a_single_file_is_stored_in_few_bits_too(tmp_path):
    from tests.tiny import script

    folder = script().make("sdxl", tmp_path / "model", single_file=True)
    whole, file = SDXL(str(folder)), SDXL(f"{folder}.safetensors", single_file_config=str(folder))
    for family in (whole, file):
        family.store("int8-quanto", ("int8-quanto", "int8-quanto"))
        family.load("denoiser", "text_encoders")
    assert torch.equal(predicted(whole), predicted(file))


def test_a_family_that_loads_in_its_own_way_is_asked_to(family_folders):
    class Own(SDXL):
        def _load(self, name):
            return super()._load(name).train()  # a mark that this was called

    plain, own = SDXL(str(family_folders("sdxl"))), Own(str(family_folders("sdxl")))
    for family in (plain, own):
        family.store("int8-quanto", ())
        family.load("denoiser", "text_encoders")
    assert own.denoiser.training and not plain.denoiser.training
    own.denoiser.eval()
    assert torch.equal(own.denoiser.state_dict()["conv_in.weight"], plain.denoiser.state_dict()["conv_in.weight"])
    assert sum(map(is_quantised, own.denoiser.modules())) == sum(map(is_quantised, plain.denoiser.modules())) > 0


def test_embeddings_of_other_precisions_are_kept_apart(family_folders):
    prints = set()
    for levels in ((), ("int8-quanto",), ("no_change", "int8-quanto"), ("nf4-bnb",)):
        family = SDXL(str(family_folders("sdxl")))
        family.store("no_change", levels)
        prints.add(family.fingerprint("text_encoders"))
    assert len(prints) == 4


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    changes = dict(changes)
    adapter = changes.pop("adapter", None)
    config = merged(config, changes)
    if adapter:
        config["model"]["adapter"] = adapter
    return config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": {"class_path": "Full"}, "model.family.init_args.dtype": "float32"}, "use LoRA or LyCORIS"),
        ({"model.base_model_precision": "int4-torchao"}, "only on cuda; use nf4-bnb"),
        ({"model.text_encoder_3_precision": "int8-quanto"}, "this model has no such text encoder"),
        (
            {"model.family.init_args.compile": True, "model.base_model_precision": "int8-bnb"},
            "it does with int8-quanto, int8-torchao, fp8-torchao, nf4-bnb",
        ),
        ({"model.family.init_args.dtype": "float32"}, "the dtype must be bfloat16"),
        ({"model.base_model_precision": "int3-quanto"}, "int2-quanto"),
        ({"model.base_model_precision": "int4-quanto", "trainer.inference_mode": True}, "leave it out"),
        (
            {
                "adapter": {"class_path": "LoRA", "init_args": {"use_dora": True}},
                "model.base_model_precision": "int8-bnb",
            },
            "use int8-quanto or int8-torchao",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    tmp_path, family_folders, photos, capsys, changes, said
):
    config = configured(tmp_path / "run", family_folders("sdxl"), "sdxl", photos, "int8-quanto")
    assert run("fit", changed(config, changes)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run" / "checkpoints").exists()


def test_a_package_that_does_not_work_here_is_found_before_the_start(
    tmp_path, family_folders, photos, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = configured(tmp_path / "run", family_folders("sdxl"), "sdxl", photos, "nf4-bnb")
    assert run("fit", config) == 2
    error = capsys.readouterr().err
    assert "nf4-bnb does not work here" in error and "use int4-quanto" in error


def test_a_damaged_shard_is_an_error_that_names_the_folder(tmp_path, family_folders):
    import shutil

    from dreamlit.errors import ModelError

    folder = shutil.copytree(family_folders("sdxl"), tmp_path / "model")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    family = SDXL(str(folder))
    family.store("int8-quanto", ())
    with pytest.raises(ModelError, match="unet"):
        family.load("denoiser")


MEASURE = """
import json, sys, threading, time, warnings
warnings.simplefilter("ignore")
import torch, diffusers, accelerate
from dreamlit.families import SDXL
from dreamlit.families.loading import component_class
from dreamlit.quantisation.layers import is_quantised, quantised, stored_bytes
from dreamlit.quantisation import LEVELS

level, folder = sys.argv[1:]
if level in LEVELS:
    quantised(torch.nn.Linear(64, 64, dtype=torch.bfloat16), LEVELS[level])  # imports

def own_bytes():
    text = open("/proc/self/status").read()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024

family = SDXL(folder, dtype="bfloat16")
family.store(level, ())
component_class(family.files.index, "unet")
before, peak, over = own_bytes(), 0, threading.Event()
def watch():
    global peak
    while not over.is_set():
        peak = max(peak, own_bytes()); time.sleep(0.001)
watcher = threading.Thread(target=watch); watcher.start()
family.load("denoiser")
over.set(); watcher.join()
layers = [m for m in family.denoiser.modules() if is_quantised(m)]
stored = {id(m.weight): stored_bytes(m) for m in layers}
plain = [p for p in family.denoiser.parameters() if id(p) not in stored]
size = sum(stored.values()) + sum(p.numel() * p.element_size() for p in plain)
linear = [m for m in family.denoiser.modules() if isinstance(m, torch.nn.Linear)]
largest = max([m.in_features * m.out_features * 4 for m in linear])
print(json.dumps({"peak": peak - before, "size": size, "largest": largest}))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory, family_folders):
    """A denoiser of 60 million weights, nearly all in its blocks: 240 MB in its file."""
    import shutil

    import diffusers

    folder = tmp_path_factory.mktemp("wide") / "model"
    shutil.copytree(family_folders("sdxl"), folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    config |= {"block_out_channels": (64, 512), "cross_attention_dim": 96, "transformer_layers_per_block": (1, 6)}
    diffusers.UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return folder


@pytest.mark.parametrize("level", ["no_change", "int8-quanto", "int8-torchao", "nf4-bnb"])
def test_the_whole_model_is_never_in_memory_in_full_precision(wide, level):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, level, str(wide)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] < 1.5 * found["size"] + found["largest"], found
