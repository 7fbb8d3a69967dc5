"""Whole runs of every family with everything on, and what other programs make of the files that come out."""

from __future__ import annotations

import functools
import json
import pathlib
import re
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from dreamlit.adapters import LoRA, LyCORIS
from dreamlit.adapters.base import Adapter
from dreamlit.export import export, load_into_adapter
from dreamlit.objective import Objective
from dreamlit.types import Batch, Role
from tests.family_cases import FRAME, MODELS, loaded, predicted, state, stock
from tests.runs import base_config, checkpoint, fit, merged, regularisation, write_masks, write_photos

RUNS = (
    "sd1",
    "sdxl",
    "refiner",
    "if1",
    "if2",
    "sd35",
    "flux_dev",
    "flux_schnell",
    "chroma",
    "auraflow",
    "kolors",
    "pixart",
    "sana",
    "qwen_image",
    "klein",
    "lumina2",
    "z_image",
)
IN_DIFFUSERS = tuple(name for name in RUNS if "diffusers" not in MODELS[name][0].unread_formats)
"""Whose adapters diffusers loads."""
ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA": {"rank": 4, "dropout": 0.1},
    "LyCORIS": {"algo": "lokr", "rank": 4, "factor": 4, "preset": "attn-mlp"},
}
SIZES = [(64, 64), (96, 64), (64, 96)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    home = tmp_path_factory.mktemp("parts")
    write_photos(home / "subject", SIZES, seed=1)
    write_photos(home / "class", SIZES, seed=2)
    write_masks(home / "masks", SIZES)
    return home


def configured(root, model, kind, parts, adapter) -> dict[str, Any]:
    """Class images, masks, a rollout, previews as they denoise, an average and an evaluation, in one run."""
    config = base_config(root, model, parts / "subject")
    config["model"]["family"] = {"class_path": kind.__name__, "init_args": {"path": str(model)}}
    config["model"]["adapter"] = {"class_path": adapter, "init_args": ADAPTERS[adapter]}
    config["model"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    mask = {"id": "masks", "dataset_type": "conditioning", "conditioning_type": "mask"}
    config["data"]["datasets"][0]["conditioning_data"] = "masks"
    config["data"]["datasets"] += [
        {**mask, "instance_data_dir": str(parts / "masks")},
        regularisation(parts / "class"),
    ]
    config["data"] |= {"aspect_bucket_alignment": 32, "hold_out": 1, "eval_timesteps": 2}
    preview = {"prompts": ["a photo of sks dog"], "sizes": ["64x96"], "seeds": [3], "at_end": True}
    preview["steps"] = 10 if kind.__name__ == "SDXLRefiner" else 2
    config["trainer"]["callbacks"] = [
        {"class_path": "recorder.FeatureRecorder", "init_args": {"path": str(root.parent / "features")}},
        {"class_path": "EMA", "init_args": {"decay": 0.5}},
        {"class_path": "ScheduledSampling", "init_args": {"max_step_offset": 2, "probability": 1.0}},
        {"class_path": "StableEvaluation", "init_args": {"every_n_steps": 2}},
        {
            "class_path": "ValidationPreview",
            "init_args": {**preview, "validation_preview": True, "validation_preview_steps": 1},
        },
    ]
    return merged(config, {"checkpoint.every_n_steps": 2})


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", RUNS)
def test_four_steps_with_everything_on(tmp_path, family_folders, parts, recwarn, name, adapter):
    folder, kind = family_folders(name), MODELS[name][0]
    config = configured(tmp_path / "run", folder, kind, parts, adapter)
    root = fit(config)
    before, after = (checkpoint(root, step)["state_dict"] for step in (2, 4))
    assert all(value.isfinite().all() for value in after.values())
    still = [key for key in after if not key.endswith("alpha") and torch.equal(before[key], after[key])]
    assert not still, f"no gradient reached {still[:3]}"
    seen = [json.loads(line) for line in (tmp_path / "features").read_text().splitlines()]
    assert_the_class_and_the_masks_counted(seen)
    assert_every_batch_was_rolled_out(seen)
    assert_the_average_is_exported(root, "-diffusers" if adapter == "LoRA" and "kohya" in kind.unread_formats else "")
    assert_previews_show_both(root, None if kind.drawn_with else (64, 96))
    assert (root / "evaluation.jsonl").is_file()
    if adapter == "LoRA":
        fit(merged(config, {"trainer.max_steps": 5}), "--ckpt_path", "last")
        assert checkpoint(root, 5)["global_step"] == 5
    # the resumed run encodes nothing, so that only the preview itself loads the autoencoder
    assert not [str(one.message) for one in recwarn if "ValidationPreview" in str(one.message)]


def assert_the_class_and_the_masks_counted(seen: list[dict[str, Any]]) -> None:
    """Class images come with the subject's, their loss to the base grows from 0, and only the subject is masked."""
    assert len(seen) == 4 and {role for row in seen for role in row["roles"]} == {Role.INSTANCE, Role.REGULARISATION}
    prior = [loss for row in seen for loss, role in by_role(row, "per_sample") if role == Role.REGULARISATION]
    assert prior[0] < 1e-9 and max(prior) > 1000 * prior[0]  # how far depends on the model
    for mask, role in (one for row in seen for one in by_role(row, "masks")):
        assert mask == ([1, 1] if role == Role.REGULARISATION else [0, 1])


def by_role(row: dict[str, Any], what: str) -> list[tuple[Any, int]]:
    return list(zip(row[what], row["roles"], strict=True))


def assert_every_batch_was_rolled_out(seen: list[dict[str, Any]]) -> None:
    """So many more forwards as its longest rollout has steps, beside the training's and the teacher's."""
    for row in seen:
        assert row["forwards"] == max(row["rolled"]) + 1 + (Role.REGULARISATION in row["roles"])
    assert max(offset for row in seen for offset in row["rolled"]) == 2


def assert_the_average_is_exported(root: pathlib.Path, end: str) -> None:
    raw, average = (load_file(root / f"run{middle}{end}.safetensors") for middle in ("", "-ema"))
    assert raw.keys() == average.keys()
    assert any(not torch.equal(raw[key], average[key]) for key in raw)


def assert_previews_show_both(root: pathlib.Path, size: tuple[int, int] | None) -> None:
    """Images of the base, the weights and their average, none like the other, and one in the making."""
    made = root / "previews" / "step-000004"
    files = [root / "previews" / "base" / "000-00.png", made / "raw" / "000-00.png", made / "ema" / "000-00.png"]
    images = [Image.open(path) for path in files]
    # four steps of LoRA move the tiny AuraFlow by less than a grey level
    assert len({image.tobytes() for image in images}) == 3 or "AuraFlow" in (root.parent / "run.yaml").read_text()
    assert {image.size for image in images} <= ({size} if size else set(SIZES))
    assert (made / "grid.png").is_file() and list((made / "raw" / "steps").glob("000-00-*.png"))


# gradients ------------------------------------------------------------------------------------------------------------


def shaken(adapter: Adapter, by: float = 0.05) -> Adapter:
    """With weights like those of a trained one: at its start half of a LoRA gets no gradient."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in adapter.parameters().values():
            value.add_(by * torch.randn(value.shape, generator=random))
    return adapter


def attached(kind, folder, make, **strength: float) -> tuple[Any, Adapter]:
    family, adapter = loaded(kind(str(folder))), make()
    adapter.attach(family.denoiser, 0)
    return family, shaken(adapter, **strength)


MAKES = {
    "lora": functools.partial(LoRA, 4, targets="all-linear"),
    "lokr": functools.partial(LyCORIS, algo="lokr", rank=4, factor=4, preset="full-lin"),
}


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", RUNS)
def test_a_step_of_the_objective_reaches_every_tensor_of_the_adapter(family_folders, name, make):
    family, adapter = attached(MODELS[name][0], family_folders(name), MAKES[make])
    x0, _, frame = state(channels=family.latent_channels)
    process, objective = family.process().sized(x0.shape), Objective(weighting="none")
    eps, t = torch.randn(x0.shape), torch.tensor([process.timestep(0.3), process.timestep(0.8)])
    batch = Batch(
        x0, eps, eps, t, family.encode_prompts(["a photo of sks dog on the beach", "dog"]), torch.ones(2, 1, 8, 8),
        torch.tensor([Role.INSTANCE] * 2), torch.ones(2), frame, ["a#0", "b#0"],
    )  # fmt: skip
    prediction = family.predict(process.noise(x0, eps, t), t, batch.conditioning, torch.tensor([FRAME] * 2))
    losses = objective.losses(process, prediction, process.target(x0, eps, t), batch)
    losses.total.backward()
    assert losses.total.isfinite()
    for key, value in adapter.parameters().items():
        assert value.grad is not None and value.grad.isfinite().all() and value.grad.abs().max() > 0, key


# what others make of the files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_diffusers_own_loader_makes_the_same_model_of_the_file(tmp_path, family_folders, name):
    kind, folder = MODELS[name][0], family_folders(name)
    family, adapter = attached(kind, folder, functools.partial(LoRA, 4, alpha=2), by=0.5)
    path = export(adapter, tmp_path / "a.safetensors", family=family, format="diffusers")
    pipeline = stock(folder)
    plain = getattr(pipeline, family.denoiser_name)
    other = loaded(kind(str(folder)))
    other._loaded[family.denoiser_name] = plain
    with torch.no_grad():
        base, live = predicted(other), predicted(family)
        pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
        again = predicted(other)
    torch.testing.assert_close(again, live, atol=1e-5, rtol=1e-5)
    assert (live - base).abs().max() > 1e-4


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", RUNS)
def test_a_file_is_read_back_as_it_was(tmp_path, family_folders, name, make):
    kind, folder = MODELS[name][0], family_folders(name)
    family, adapter = attached(kind, folder, MAKES[make])
    format = None if "kohya" in kind.unread_formats else "kohya"
    path = export(adapter, tmp_path / "a.safetensors", family=family, format=format)
    fresh, other = loaded(kind(str(folder))), MAKES[make]()
    other.attach(fresh.denoiser, 1)
    load_into_adapter(path, other)
    with torch.no_grad():
        torch.testing.assert_close(predicted(fresh), predicted(family), atol=1e-5, rtol=1e-5)


IN_BLOCKS = (
    r"attn2?\.to_[qkv]", r"attn\.add_[qkv]_proj", r"attn2?\.to_out\.0", r"attn\.to_add_out",
    r"norm1(_context)?\.linear", r"ff(_context)?\.net\.0\.proj", r"ff(_context)?\.net\.2",
)  # fmt: skip
UNET = [
    r"(down_blocks|up_blocks)\.\d+\.resnets\.\d+\.(conv1|conv2|time_emb_proj|conv_shortcut)",
    r"mid_block\.resnets\.[01]\.(conv1|conv2|time_emb_proj)",
    r"((down|up)_blocks\.\d+|mid_block)\.attentions\.\d+\.proj_(in|out)",
    r"((down|up)_blocks\.\d+|mid_block)\.attentions\.\d+\.transformer_blocks\.\d+\.attn[12]\.to_([qkv]|out\.0)",
    r"((down|up)_blocks\.\d+|mid_block)\.attentions\.\d+\.transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)",
    r"down_blocks\.\d+\.downsamplers\.0\.conv|up_blocks\.\d+\.upsamplers\.0\.conv",
    r"conv_in|conv_out|(time|add)_embedding\.linear_[12]",
]
UNETS = ("sd1", "sdxl", "refiner")
COMFY: dict[str, list[str]] = {
    **dict.fromkeys(UNETS, UNET),
    "sd35": [rf"transformer_blocks\.\d+\.({'|'.join(IN_BLOCKS)})"],
    "flux_dev": [
        rf"transformer_blocks\.\d+\.({'|'.join(IN_BLOCKS)})",
        r"single_transformer_blocks\.\d+\.(attn\.to_[qkv]|norm\.linear|proj_mlp|proj_out)",
    ],
    "chroma": [
        rf"transformer_blocks\.\d+\.({'|'.join(IN_BLOCKS)})",
        r"single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)",
    ],
    "auraflow": [
        r"joint_transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
        r"joint_transformer_blocks\.\d+\.(ff(_context)?\.(linear_[12]|out_projection)|norm1(_context)?\.linear)",
        r"single_transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0)|ff\.(linear_[12]|out_projection)|norm1\.linear)",
    ],
    "klein": [
        r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|ff(_context)?\.linear_(in|out))",
        r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
    ],
    "qwen_image": [
        r"transformer_blocks\.\d+\.attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)",
        r"transformer_blocks\.\d+\.(img|txt)_m(od\.1|lp\.net\.(0\.proj|2))",
        r"time_text_embed\.timestep_embedder\.linear_[12]", r"norm_out\.linear", "img_in", "txt_in", "proj_out",
    ],
    "z_image": [
        r"(layers|(noise|context)_refiner)\.\d+\.attention\.to_([qkv]|out\.0)",
        r"(layers|(noise|context)_refiner)\.\d+\.(feed_forward\.w[123]|adaLN_modulation\.0)",
        r"t_embedder\.mlp\.[02]", r"cap_embedder\.1",
        r"all_(x_embedder\.2-1|final_layer\.2-1\.(linear|adaLN_modulation\.1))",
    ],
    "pixart": [
        r"transformer_blocks\.\d+\.(attn[12]\.to_([qkv]|out\.0)|ff\.net\.(0\.proj|2))",
        r"caption_projection\.linear_[12]", r"adaln_single\.(linear|emb\.timestep_embedder\.linear_[12])", "proj_out",
    ],
}  # fmt: skip
"""Modules that ComfyUI knows (`unet_to_diffusers`, `mmdit_to_diffusers`, `flux_to_diffusers`, also for Chroma,
`auraflow_to_diffusers`, `pixart_to_diffusers`, `z_image_to_diffusers` of its comfy/utils.py), which it finds under
`transformer.` with dots; those of SD3 and Flux also under `lora_transformer_`, with underscores for dots;
those of UNets under `lora_unet_` and `unet.` (comfy/lora.py). Qwen-Image's own names are those of diffusers
(comfy/ldm/qwen_image/model.py)."""
DOTTED = ("pixart", "qwen_image", "z_image", "auraflow")
"""Whose names have dots in the kohya layout too."""
WITH_SINGLE_BLOCKS = ("flux_dev", "klein", "chroma", "auraflow")


@pytest.mark.parametrize(
    ("name", "format"), [(name, kind) for name in COMFY for kind in ("kohya", "diffusers")[: 2 - (name == "pixart")]]
)
def test_comfyui_knows_every_key(tmp_path, family_folders, name, format):
    targets = "all-linear" if name in DOTTED and name != "auraflow" else "attention-mlp"
    targets = "full" if name in UNETS else targets
    family, adapter = attached(MODELS[name][0], family_folders(name), functools.partial(LoRA, 4, targets=targets))
    path = export(adapter, tmp_path / "a.safetensors", family=family, format=format)
    layers = [key for key, module in stock_modules(family_folders(name)) if isinstance(module, LAYERS)]
    known = [key for key in layers if any(re.fullmatch(pattern, key) for pattern in COMFY[name])]
    part = "unet" if name in UNETS else "transformer"
    flat = format == "kohya" and name not in DOTTED
    names = {f"lora_{part}_{key.replace('.', '_')}" if flat else f"{part}.{key}" for key in known}
    with safe_open(path, "pt") as file:
        ends = r"\.(lora_(down|up)\.weight|alpha|lora_[AB]\.weight)$"
        modules = {re.sub(ends, "", key) for key in file.keys()}  # noqa: SIM118
    assert modules and modules <= names
    assert any("single_transformer_blocks" in key for key in modules) == (name in WITH_SINGLE_BLOCKS)


LAYERS = (torch.nn.Linear, torch.nn.Conv2d)


def stock_modules(folder) -> list[tuple[str, torch.nn.Module]]:
    pipeline = stock(folder)
    return list((pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet).named_modules())


def test_no_adapter_is_put_where_the_output_does_not_depend_on_it(family_folders):
    _, adapter = attached(MODELS["sd35"][0], family_folders("sd35"), functools.partial(LoRA, 4))
    names = {key.rpartition(".lora")[0] for key in adapter.parameters()}
    assert "transformer_blocks.0.attn.add_q_proj" in names and "transformer_blocks.1.attn.add_q_proj" not in names
    assert "transformer_blocks.1.attn.add_k_proj" in names
