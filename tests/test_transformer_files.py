"""A transformer from one `.safetensors` file: the model that its diffusers folder is, or a clear error."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamlit.errors import ModelError
from dreamlit.families import SD3, Flux, QwenImage, ZImage
from dreamlit.families.loading import component_class, empty
from tests.family_cases import MODELS, complaint, loaded, predicted
from tests.original_layouts import AURAFLOW, CHROMA, FLUX, KLEIN, LUMINA2, Z_IMAGE, original
from tests.original_layouts import SD3 as SD3_NAMES
from tests.tiny import hub_cache

pytestmark = [pytest.mark.filterwarnings("ignore:caption"), pytest.mark.usefixtures("own_memo")]
CASES: dict[str, dict[str, str] | None] = {
    "sd3": SD3_NAMES,
    "sd35": SD3_NAMES,
    "z_image": Z_IMAGE,
    "klein": KLEIN,
    "auraflow": AURAFLOW,
    "qwen_image": None,
    "lumina2": None,
    "sana": None,
}
"""Model -> names of its original layout, or None for a file in the layout of diffusers."""


def changed(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """The transformer's tensors, each another than in the folder."""
    state = load_file(next((folder / "transformer").glob("*.safetensors")))
    return {name: value * 0.9 + 0.01 if value.is_floating_point() else value for name, value in state.items()}


def written(path: pathlib.Path, tensors: dict[str, torch.Tensor], prefix: str = "") -> pathlib.Path:
    save_file({prefix + name: value.contiguous() for name, value in tensors.items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", CASES)
def test_every_tensor_comes_from_the_file(tmp_path, family_folders, name, prefix):
    folder, names = family_folders(name), CASES[name]
    kind: Any = MODELS[name][0]
    state = changed(folder)
    more = {"first_stage_model.decoder.conv_in.bias": torch.zeros(3)} if prefix else {}
    tensors = original(names, state) if names else state
    path = written(tmp_path / "model.safetensors", {**{prefix + key: value for key, value in tensors.items()}, **more})
    family = kind(str(folder), transformer=str(path))
    family.check()
    loaded(family)
    for key, value in family.denoiser.state_dict().items():
        assert torch.equal(value, state[key]), key
    own = loaded(kind(str(folder)))
    assert family.fingerprint("denoiser") != own.fingerprint("denoiser")
    assert family.fingerprint("text_encoders") == own.fingerprint("text_encoders")
    assert not torch.equal(predicted(family), predicted(own))


WIDE_FLUX = {
    "num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 1, "num_single_layers": 1,
    "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
WIDE: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "flux_dev": (FLUX, WIDE_FLUX),
    "chroma": (CHROMA, WIDE_FLUX),
    "lumina2": (LUMINA2, {
        "hidden_size": 2304, "num_layers": 1, "num_attention_heads": 24, "num_kv_heads": 8,
        "axes_dim_rope": [32, 32, 32], "multiple_of": 256, "ffn_dim_multiplier": 0.05,
    }),
}  # fmt: skip
"""Models that diffusers reads from the original layout in their real width alone; they have few layers here."""


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_a_file_of_the_real_width_is_read(tmp_path, family_folders, name):
    folder, (names, config) = tmp_path / "model", WIDE[name]
    kind: Any = MODELS[name][0]
    shutil.copytree(family_folders(name), folder)
    next((folder / "transformer").glob("*.safetensors")).unlink()
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    shapes = empty(component_class(kind(str(folder)).files.index, "transformer"), path.parent).state_dict()
    state = {}
    for place, (key, like) in enumerate(shapes.items()):
        rows = (torch.arange(like.shape[0]) % 251 + place).to(torch.bfloat16)
        state[key] = rows.view(-1, *[1] * (like.ndim - 1)).expand_as(like)
    file = written(tmp_path / "file.safetensors", original(names, state))
    family: Any = kind(str(folder), transformer=str(file), dtype="bfloat16")
    family.check()
    family.load("denoiser")
    for key, value in family.denoiser.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_of_a_hub_model_the_transformer_is_not_fetched(tmp_path, family_folders, monkeypatch):
    folder = family_folders("z_image")
    path = written(tmp_path / "z.safetensors", original(Z_IMAGE, changed(folder)))
    cached = hub_cache(tmp_path / "hub", "someone/z-image", folder, monkeypatch)
    next((cached / "transformer").glob("*.safetensors")).unlink()
    family = ZImage("someone/z-image", transformer=str(path), local_files_only=True)
    family.check()
    loaded(family)
    state = changed(folder)
    assert all(torch.equal(value, state[name]) for name, value in family.denoiser.state_dict().items())


def test_a_file_stored_in_few_bits_is_the_folders_stored_in_few_bits(tmp_path, family_folders):
    folder = family_folders("sd3")
    state = load_file(next((folder / "transformer").glob("*.safetensors")))
    path = written(tmp_path / "a.safetensors", original(SD3_NAMES, state))
    families = [SD3(str(folder), dtype="bfloat16", transformer=file) for file in (None, str(path))]
    for family in families:
        family.store("int8-quanto", [])
        loaded(family)
    assert torch.equal(*(predicted(family) for family in families))


# what cannot be read --------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_damaged_or_no_file_is_named(tmp_path, family_folders):
    folder = str(family_folders("sd3"))
    assert "no such file" in complaint(SD3(folder, transformer=str(tmp_path / "none.safetensors")))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert "download it again" in complaint(SD3(folder, transformer=str(broken)))
    assert "must be a .safetensors file" in complaint(SD3(folder, transformer=folder))
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"x")
    assert "pickle" in complaint(SD3(folder, transformer=str(pickle)))


def test_weights_of_another_model_are_refused_before_anything_loads(tmp_path, family_folders):
    path = written(tmp_path / "z.safetensors", original(Z_IMAGE, changed(family_folders("z_image"))))
    said = complaint(Flux(str(family_folders("flux_dev")), transformer=str(path)))
    assert "no weights of a Flux in diffusers' layout or the original one" in said and "its tensors are" in said
    said = complaint(QwenImage(str(family_folders("qwen_image")), transformer=str(path)))
    assert "no weights of a QwenImage in diffusers' layout; its tensors" in said


@pytest.mark.parametrize("more", ["double_blocks.0.img_attn.qkv.scale_weight", "scaled_fp8", "x.absmax"])
def test_packed_weights_are_refused_with_what_to_do(tmp_path, family_folders, more):
    path = written(
        tmp_path / "a.safetensors", {"double_blocks.0.img_attn.qkv.weight": torch.ones(2), more: torch.ones(1)}
    )
    said = complaint(Flux(str(family_folders("flux_dev")), transformer=str(path)))
    assert "packed in few bits" in said and "base_model_precision" in said


def test_a_file_of_another_size_says_what_must_fit(tmp_path, family_folders):
    state = original(Z_IMAGE, changed(family_folders("z_image")))
    state["cap_embedder.1.weight"] = torch.zeros(3, 3)
    path = written(tmp_path / "z.safetensors", state)
    family = ZImage(str(family_folders("z_image")), transformer=str(path))
    family.check()
    with pytest.raises(ModelError, match="path must name a model of the same kind"):
        family.load("denoiser")
