"""Models whose files are broken, incomplete, elsewhere or of another kind."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamlit.errors import ModelError
from dreamlit.families import SD, SDXL, Family
from tests.family_cases import (
    UNETS,
    change,
    complaint,
    loaded,
    predicted,
    stock,
    weights,
)
from tests.tiny import hub_cache

pytestmark = [pytest.mark.filterwarnings("ignore:caption"), pytest.mark.usefixtures("own_memo")]


@pytest.fixture(params=UNETS)
def folder(request: pytest.FixtureRequest, family_folders: Any) -> pathlib.Path:
    return family_folders(request.param)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"shift_factor": 0.5}, lambda mode, scale: (mode - 0.5) * scale),
        (
            {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [2.0, 2.0, 4.0, 4.0]},
            lambda mode, scale: (mode - column(1, 2, 3, 4)) * scale / column(2, 2, 4, 4),
        ),
    ],
)
def test_shift_and_statistics_of_the_autoencoder_are_honoured(own: pathlib.Path, kind: Any, config: Any, expected: Any):
    plain, pixels = kind(str(own)), torch.rand(1, 3, 64, 64) * 2 - 1
    plain.load("vae")
    scale = plain.part("vae").config.scaling_factor
    mode = plain.encode_pixels(pixels) / scale
    painted = plain.decode(mode * scale)
    change(own / "vae" / "config.json", **config)
    other = kind(str(own))
    other.load("vae")
    torch.testing.assert_close(other.encode_pixels(pixels), expected(mode, scale), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.decode(expected(mode, scale)), painted, atol=1e-4, rtol=1e-4)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 3, 60, 64), "8 divides"),
        (torch.zeros(3, 64, 64), "B, 3, H, W"),
        (torch.zeros(1, 4, 64, 64), "B, 3, H, W"),
        (torch.full((1, 3, 64, 64), 255.0), r"\[-1, 1\]"),
        (torch.full((1, 3, 64, 64), float("nan")), r"\[-1, 1\]"),
    ],
)
def test_wrong_pixels_are_refused(family: Family, pixels: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        family.encode_pixels(pixels)


def test_an_overflowing_autoencoder_is_an_error(family: Family):
    with torch.no_grad():
        family.part("vae").encoder.conv_out.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="option vae"):
        family.encode_pixels(torch.rand(1, 3, 64, 64))


def test_another_autoencoder_is_used(own: pathlib.Path, kind: Any, family: Family, tmp_path: pathlib.Path):
    for path in (own / "vae").glob("*.safetensors"):
        save_file({name: value * 1.1 for name, value in load_file(path).items()}, path)
    change(own / "vae" / "config.json", scaling_factor=0.5)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    plain = family.encode_pixels(pixels)
    results = []
    for vae in (own, own / "vae"):
        other = kind(str(family.files.path), vae=str(vae))
        other.check()
        other.load("vae")
        results.append(other.encode_pixels(pixels))
    assert torch.equal(*results)
    assert (results[0] - plain).abs().max() > 0.1


@pytest.mark.parametrize("levels", [2, 3])
def test_pixels_per_cell_are_the_autoencoders_own(own: pathlib.Path, kind: Any, folder: pathlib.Path, levels: int):
    """A model on a finer grid of latents: encoded at its own size, and no other model's autoencoder fits it."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    options: dict[str, Any] = {
        "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 4,
    }
    AutoencoderKL(**options).save_pretrained(own / "vae")
    fine = kind(str(own))
    fine.check()
    fine.load("vae")
    assert fine.stride == stock(own).vae_scale_factor == 2 ** (levels - 1) != kind(str(folder)).stride
    assert fine.encode_pixels(torch.zeros(1, 3, 64, 96)).shape == (1, 4, 64 // fine.stride, 96 // fine.stride)
    assert f"an autoencoder of {fine.stride} pixels a cell" in complaint(kind(str(folder), vae=str(own / "vae")))


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


BREAKS = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json: no such file"),
    "index is no JSON": (lambda f: (f / "model_index.json").write_text("<html>"), "not readable as JSON"),
    "index is a list": (lambda f: (f / "model_index.json").write_text("[]"), "a JSON object is expected"),
    "component missing": (
        lambda f: change(f / "model_index.json", vae=[None, None]),
        "model_index.json has [None",
    ),
    "own code": (lambda f: change(f / "model_index.json", unet=["mine", "Net"]), "not a class of diffusers"),
    "no config": (lambda f: (f / "unet" / "config.json").unlink(), "config.json: no such file"),
    "inpainting": (lambda f: change(f / "unet" / "config.json", in_channels=9), "takes 9 channels, not 4"),
    "no weights": (lambda f: weights(f / "unet").unlink(), "no diffusion_pytorch_model.safetensors"),
    "cut weights": (lambda f: cut(weights(f / "text_encoder")), "damaged or incomplete"),
    "no header": (lambda f: weights(f / "vae").write_bytes(b"\xff" * 99), "damaged or incomplete"),
    "LFS pointer": (lambda f: weights(f / "vae").write_text("version https://git-lfs.github.com"), "git lfs pull"),
    "empty weights": (lambda f: weights(f / "vae").write_bytes(b""), "damaged or incomplete"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "none of vocab.json"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json: no such file"),
    "other target": (
        lambda f: change(f / "scheduler" / "scheduler_config.json", prediction_type="sample"),
        "predicts 'sample'",
    ),
    "no shard": (
        lambda f: (
            weights(f / "unet").rename(f / "unet" / "x"),
            (f / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}'),
        ),
        "the index of the shards names it",
    ),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_a_broken_folder_is_found_before_anything_loads(own: pathlib.Path, kind: Any, fault: str):
    breaks, message = BREAKS[fault]
    breaks(own)
    family = kind(str(own))
    assert message in complaint(family)
    assert family._loaded == {}


def test_all_faults_are_in_one_report(own: pathlib.Path, kind: Any):
    for fault in ("no weights", "cut weights", "no tokenizer"):
        BREAKS[fault][0](own)
    text = complaint(kind(str(own), clip_skip=9))
    assert [text.count(BREAKS[fault][1]) for fault in ("no weights", "cut weights", "no tokenizer")] == [1, 1, 1]
    assert "clip_skip 9" in text


def test_the_right_family_is_named(family_folders: Any):
    assert "set family to SDXL" in complaint(SD(str(family_folders("sdxl"))))
    assert "set family to SD" in complaint(SDXL(str(family_folders("sd1"))))


def test_a_missing_variant_tells_what_is_there(folder: pathlib.Path, kind: Any):
    text = complaint(kind(str(folder), variant="fp16"))
    assert "no diffusion_pytorch_model.fp16.safetensors; there is diffusion_pytorch_model.safetensors" in text


def test_missing_tensors_are_an_error_not_random_numbers(own: pathlib.Path, kind: Any):
    for part in ("unet", "vae", "text_encoder"):
        path = weights(own / part)
        tensors = load_file(path)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, path, metadata={"format": "pt"})
    for part in ("vae", "text_encoders", "denoiser"):
        with pytest.raises(ModelError, match="lack 1 tensors"):
            kind(str(own)).load(part)


def test_weights_with_the_names_of_older_releases_are_loaded(own: pathlib.Path, kind: Any, family: Family):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for path in [weights(own / name) for name, _ in kind.text_encoder_names] + [weights(own / "vae")]:
        tensors = {}
        for key, value in load_file(path).items():
            for new, former in old.items() if "mid_block.attentions" in key else ():
                key = key.replace(f".{new}.", f".{former}.")
            is_clip = path.parent.name != "vae" and not key.startswith(("text_model.", "text_projection"))
            tensors[f"text_model.{key}" if is_clip else key] = value
        if path.parent.name != "vae":
            tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        save_file(tensors, path, metadata={"format": "pt"})
    aged = loaded(kind(str(own)))
    for mine, theirs in zip(
        aged.encode_prompts(["a dog"]).values(), family.encode_prompts(["a dog"]).values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs)  # where the weights lie in the file changes how some processors round
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(aged.encode_pixels(pixels), family.encode_pixels(pixels))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("./nowhere/at/all", "no such folder"),
        ("gone.safetensors", "no such file"),
        ("model.ckpt", "a pickle can run code"),
        ("someone/never-downloaded", "hf auth login"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_to_give(kind: Any, path: str, message: str, monkeypatch: Any):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert message in complaint(kind(path))


def test_a_hub_model_is_read_from_the_local_cache(
    folder: pathlib.Path, kind: Any, family: Family, tmp_path: Any, monkeypatch: Any
):
    snapshot = hub_cache(tmp_path, "me/tiny", folder, monkeypatch)
    moved = [(path, path.rename(tmp_path / str(number))) for number, path in enumerate(snapshot.rglob("*.safetensors"))]
    hub = kind("me/tiny", local_files_only=True, clip_skip=1)
    hub.check()  # asks for no weights
    with pytest.raises(ModelError, match="diffusion_pytorch_model"):
        hub.load("denoiser")
    with pytest.raises(ModelError, match=r"no diffusion_pytorch_model.safetensors; there is no weight file"):
        hub.fingerprint("vae")
    for path, place in moved:
        place.rename(path)
    hub = kind("me/tiny", local_files_only=True)
    assert torch.equal(predicted(loaded(hub)), predicted(family))
    assert hub.fingerprint("denoiser") == family.fingerprint("denoiser")
    assert kind(str(folder), vae="me/tiny", local_files_only=True).fingerprint("vae") == family.fingerprint("vae")
    with pytest.raises(ModelError, match="revision"):
        kind("me/tiny", revision="v9", local_files_only=True).load("vae")


def test_a_wrong_precision_is_refused(folder: pathlib.Path, kind: Any):
    with pytest.raises(ModelError, match="did you mean 'bfloat16'"):
        kind(str(folder), dtype="bfloat")
