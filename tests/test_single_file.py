"""One `.safetensors` file in the original layout is the same model as its diffusers folder, without the network."""

from __future__ import annotations

import pathlib
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamlit.errors import ModelError
from dreamlit.families import SD, SDXL, Family, loading
from tests.tiny import hub_cache, tiny_sd, tiny_sdxl

MODELS: dict[str, tuple[type[Family], Any, dict[str, Any]]] = {
    "sd1": (SD, tiny_sd, {}),
    "sd2": (SD, tiny_sd, {"prediction_type": "v_prediction"}),
    "sdxl": (SDXL, tiny_sdxl, {}),
}
PARTS = ("vae", "text_encoders", "denoiser")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: make(root / name, single_file=True, **options) for name, (_, make, options) in MODELS.items()}


@pytest.fixture(autouse=True)
def offline(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, folders: dict[str, pathlib.Path]) -> pathlib.Path:
    return folders[request.param]


def single(folder: pathlib.Path, **options: Any) -> Any:
    kind = MODELS[folder.name][0]
    return kind(f"{folder}.safetensors", **{"single_file_config": str(folder), **options})


def complaint(family: Family) -> str:
    with pytest.raises(ModelError) as caught:
        family.check()
    return str(caught.value)


def test_every_tensor_equals_the_folders(folder: pathlib.Path):
    whole, file = MODELS[folder.name][0](str(folder)), single(folder)
    file.check()
    for family in (whole, file):
        family.load(*PARTS)
    for name in [name for part in PARTS for name in file.components(part)]:
        ours, theirs = file.part(name).state_dict(), whole.part(name).state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
        assert not any(value.requires_grad for value in file.part(name).parameters())


def test_prompts_process_and_pictures_equal_the_folders(folder: pathlib.Path):
    whole, file = MODELS[folder.name][0](str(folder)), single(folder)
    pictures = []
    for family in (whole, file):
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "pt", "generator": generator}
        pictures.append(family.pipeline()("a photo of sks dog", **options).images)
    torch.testing.assert_close(*pictures, atol=1e-6, rtol=0)
    assert whole.process().prediction_type == file.process().prediction_type
    for mine, theirs in zip(file.encode_prompts(["dog"]).values(), whole.encode_prompts(["dog"]).values(), strict=True):
        assert torch.equal(mine, theirs)


def test_tensors_that_releases_have_besides_do_no_harm(folder: pathlib.Path, tmp_path: pathlib.Path):
    tensors = load_file(f"{folder}.safetensors")
    besides = {
        "alphas_cumprod": torch.ones(1000),
        "model_ema.decay": torch.ones(()),
        "model_ema.num_updates": torch.ones(()),
    }
    for prefix in ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."):
        if any(key.startswith(prefix) for key in tensors):
            besides[prefix + "text_model.embeddings.position_ids"] = torch.arange(77)[None]
    for prefix in ("cond_stage_model.model.", "conditioner.embedders.1.model."):
        if any(key.startswith(prefix) for key in tensors):
            besides[prefix + "logit_scale"] = torch.ones(())
    save_file({**tensors, **besides}, tmp_path / "more.safetensors")
    plain, more = (
        single(folder),
        MODELS[folder.name][0](str(tmp_path / "more.safetensors"), single_file_config=str(folder)),
    )
    for family in (plain, more):
        family.load(*PARTS)
    for name in [name for part in PARTS for name in plain.components(part)]:
        ours, theirs = more.part(name).state_dict(), plain.part(name).state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_precision_is_the_one_asked_for(folder: pathlib.Path, dtype: str):
    family = single(folder, dtype=dtype)
    family.load(*PARTS)
    expected = {name: getattr(torch, dtype) for part in PARTS for name in family.components(part)}
    for name, wanted in {**expected, "vae": torch.float32}.items():
        assert {value.dtype for value in family.part(name).parameters()} == {wanted}


def test_a_part_is_loaded_without_reading_the_others(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    read, original = [], loading.read_tensors

    def recording(*arguments: Any) -> dict[str, torch.Tensor]:
        read.append(original(*arguments))
        return read[-1]

    monkeypatch.setattr(loading, "read_tensors", recording)
    single(folder).load("vae")
    assert {name.partition(".")[0] for name in read[0]} == {"first_stage_model"}


def test_fingerprints_follow_the_file_and_its_layout(folder: pathlib.Path, tmp_path: pathlib.Path):
    plain = single(folder)
    before = [plain.fingerprint(part) for part in PARTS]
    assert len(set(before)) == 3
    path = tmp_path / "other.safetensors"
    data = bytearray(pathlib.Path(f"{folder}.safetensors").read_bytes())
    path.write_bytes(data)
    copy = type(plain)(str(path), single_file_config=str(folder))
    assert [copy.fingerprint(part) for part in PARTS] == before
    data[-1] ^= 1
    path.write_bytes(data)
    assert all(new != old for new, old in zip([copy.fingerprint(part) for part in PARTS], before, strict=True))


def test_a_lone_autoencoder_file_replaces_the_models(folder: pathlib.Path, tmp_path: pathlib.Path):
    kind = MODELS[folder.name][0]
    tensors = load_file(f"{folder}.safetensors")
    prefix = "first_stage_model."
    bare = {key.removeprefix(prefix): value * 1.1 for key, value in tensors.items() if key.startswith(prefix)}
    save_file(bare, tmp_path / "bare.safetensors")
    save_file({prefix + key: value for key, value in bare.items()}, tmp_path / "prefixed.safetensors")
    pixels, results = torch.rand(1, 3, 64, 64) * 2 - 1, []
    for name in ("bare", "prefixed"):
        family = kind(str(folder), vae=str(tmp_path / f"{name}.safetensors"))
        family.check()
        family.load("vae")
        results.append(family.encode_pixels(pixels))
    plain = kind(str(folder))
    plain.load("vae")
    assert torch.equal(*results)
    assert not torch.equal(results[0], plain.encode_pixels(pixels))


def test_a_file_that_is_no_autoencoder_is_refused(folders: dict[str, pathlib.Path], tmp_path: pathlib.Path):
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 4)}, tmp_path / "lora.safetensors")
    family = SDXL(str(folders["sdxl"]), vae=str(tmp_path / "lora.safetensors"))
    with pytest.raises(ModelError, match="its vae lacks tensors"):
        family.load("vae")


def test_the_right_family_is_named(folders: dict[str, pathlib.Path]):
    assert "set family to SDXL" in complaint(SD(f"{folders['sdxl']}.safetensors"))
    assert "set family to SD" in complaint(SDXL(f"{folders['sd1']}.safetensors"))


def test_an_adapter_file_is_not_a_model(folders: dict[str, pathlib.Path], tmp_path: pathlib.Path):
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 4)}, tmp_path / "lora.safetensors")
    text = complaint(SDXL(str(tmp_path / "lora.safetensors"), single_file_config=str(folders["sdxl"])))
    assert "not a whole SDXL model; its tensors are lora_unet_x.lora_down.weight" in text


def test_a_cut_file_is_found_by_its_size(folders: dict[str, pathlib.Path], tmp_path: pathlib.Path):
    data = pathlib.Path(f"{folders['sdxl']}.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-1])
    text = complaint(SDXL(str(tmp_path / "cut.safetensors"), single_file_config=str(folders["sdxl"])))
    assert f"it has {len(data) - 1:,} bytes, its header promises {len(data):,}" in text


def test_without_a_layout_the_network_is_needed_and_that_is_said(folders: dict[str, pathlib.Path]):
    text = complaint(SDXL(f"{folders['sdxl']}.safetensors"))
    assert "stable-diffusion-xl-base-1.0" in text
    assert "single_file_config" in text


def test_the_usual_layout_in_the_local_cache_is_enough(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    cached = hub_cache(tmp_path, "stabilityai/stable-diffusion-xl-base-1.0", folders["sdxl"], monkeypatch)
    for path in cached.rglob("*.safetensors"):
        path.unlink()
    family = SDXL(f"{folders['sdxl']}.safetensors", local_files_only=True)
    family.check()
    family.load(*PARTS)
    assert [family.fingerprint(part) for part in PARTS] == [single(folders["sdxl"]).fingerprint(part) for part in PARTS]


def test_an_sd2_file_needs_its_layout_named(folders: dict[str, pathlib.Path]):
    assert "set single_file_config" in complaint(SD(f"{folders['sd2']}.safetensors"))


def test_the_layout_of_another_family_is_refused(folders: dict[str, pathlib.Path]):
    assert "not StableDiffusionXLPipeline" in complaint(single(folders["sdxl"], single_file_config=str(folders["sd1"])))


def test_a_layout_of_another_size_is_an_error(folders: dict[str, pathlib.Path], tmp_path: pathlib.Path):
    family = single(folders["sd1"], single_file_config=str(folders["sd2"]))
    with pytest.raises(ModelError):
        family.load(*PARTS)


def test_missing_tensors_are_an_error_not_random_numbers(folder: pathlib.Path, tmp_path: pathlib.Path):
    tensors = load_file(f"{folder}.safetensors")
    for prefix in ("first_stage_model.", "model.diffusion_model.", "cond"):
        tensors.pop(next(key for key in sorted(tensors, reverse=True) if key.startswith(prefix)))
    save_file(tensors, tmp_path / "part.safetensors")
    family = MODELS[folder.name][0](str(tmp_path / "part.safetensors"), single_file_config=str(folder))
    for part in PARTS:
        with pytest.raises(ModelError, match="lack"):
            family.load(part)
