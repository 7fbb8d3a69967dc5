"""Every family against its own diffusers pipeline; the same tests run over all families of the package."""

from __future__ import annotations

import gc
import pathlib
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch

from dreamlit.families import Family
from dreamlit.families.checks import concrete_families
from tests.family_cases import (
    FRAME,
    MODELS,
    ONE_EACH,
    PROMPTS,
    calls_of,
    complaint,
    image,
    loaded,
    make,
    predicted,
    size_options,
    state,
    stock,
    stock_embeds,
    stock_latents,
    weights,
)
from tests.tiny import script, tiny_sdxl

pytestmark = [pytest.mark.filterwarnings("ignore:caption"), pytest.mark.usefixtures("own_memo")]


EVERY_MODEL = pytest.mark.parametrize("folder", MODELS, indirect=True)


@pytest.fixture(params=ONE_EACH)
def folder(request: pytest.FixtureRequest, family_folders: Any) -> pathlib.Path:
    return family_folders(request.param)


def test_every_family_of_the_package_is_tested_here():
    ours = {kind for kind in concrete_families() if kind.__module__.startswith("dreamlit.")}
    assert ours == {kind for kind, _, _ in MODELS.values()}


def test_importing_the_families_imports_no_heavy_library():
    code = "import sys, dreamlit.families; print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_constructor_and_check_load_nothing(family: Family, folder: pathlib.Path, kind: type[Family]):
    fresh = kind(str(folder))
    fresh.check()
    with pytest.raises(RuntimeError, match="load"):
        _ = fresh.denoiser


def test_everything_loaded_is_frozen(family: Family):
    names = [name for part in ("vae", "text_encoders", "denoiser") for name in family.components(part)]
    assert not any(value.requires_grad for name in names for value in family.part(name).parameters())


def test_loading_twice_keeps_the_object(family: Family):
    before = family.denoiser
    family.load("denoiser")
    assert family.denoiser is before


def test_unload_frees_the_memory(family: Family):
    names = [name for part in ("vae", "text_encoders", "denoiser") for name in family.components(part)]
    references = [weakref.ref(value) for name in names for value in family.part(name).parameters()]
    family.unload("vae", "text_encoders", "denoiser")
    gc.collect()
    assert references
    assert [reference for reference in references if reference() is not None] == []


def test_an_unknown_part_is_named(family: Family):
    with pytest.raises(ValueError, match="did you mean 'text_encoders'"):
        family.load("text_encoder")


@EVERY_MODEL
def test_prompts_are_encoded_as_the_pipeline_does(family: Family, folder: pathlib.Path):
    ours = list(family.encode_prompts(PROMPTS).values())
    for mine, theirs in zip(ours, stock_embeds(stock(folder), PROMPTS), strict=True):
        assert mine.dtype == torch.float32
        assert not mine.requires_grad
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_a_prompt_is_encoded_the_same_alone_and_in_company(family: Family):
    together = family.encode_prompts(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        for name, value in family.encode_prompts([prompt]).items():
            torch.testing.assert_close(value[0], together[name][row], atol=1e-5, rtol=1e-5)


def test_different_prompts_differ(family: Family):
    embeds = {name: value for name, value in family.encode_prompts(["a dog", "a cat"]).items() if "mask" not in name}
    for value in embeds.values():
        assert (value[0] - value[1]).abs().max() > 0.1


def test_no_prompt_is_an_error(family: Family):
    with pytest.raises(ValueError, match="no prompt"):
        family.encode_prompts([])


@EVERY_MODEL
@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64)])
def test_predict_is_the_pipelines_own_call(family: Family, folder: pathlib.Path, height: int, width: int):
    prompts = ["a photo of sks dog on the beach", "dog"]
    calls = calls_of(stock(folder), prompts, **size_options(type(family), height, width))
    assert len(calls) == 2
    conditioning = family.encode_prompts(prompts)
    for x_t, t, expected, more in calls:
        ours = family.predict(x_t, t, {**conditioning, **more}, torch.tensor([FRAME, FRAME]))
        assert ours.shape == (2, family.latent_channels, height // family.stride, width // family.stride)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_predictions_of_a_batch_are_independent(family: Family):
    x_t, t, frame = state(3, channels=family.latent_channels)
    frame[1] = torch.tensor([512, 512, 0, 0, 512, 512])
    conditioning = family.encode_prompts(PROMPTS[:3])
    together = family.predict(x_t, t, conditioning, frame)
    for row in range(3):
        one = slice(row, row + 1)
        alone = family.predict(x_t[one], t[one], {k: v[one] for k, v in conditioning.items()}, frame[one])
        torch.testing.assert_close(alone, together[one], atol=1e-5, rtol=1e-5)


def test_predict_takes_another_denoiser(family: Family, folder: pathlib.Path, kind: type[Family]):
    other = kind(str(folder))
    other.load("denoiser")
    with torch.no_grad():
        for value in last_layer(other.denoiser).parameters():
            value *= 2
        x_t, t, frame = state(channels=family.latent_channels)
        doubled = family.predict(x_t, t, family.encode_prompts(PROMPTS[:2]), frame, denoiser=other.denoiser)
        torch.testing.assert_close(doubled, 2 * predicted(family), atol=1e-5, rtol=1e-5)


def test_lower_precision_is_near_and_comes_back_as_float32(folder: pathlib.Path, kind: type[Family], family: Family):
    low = loaded(kind(str(folder), dtype="bfloat16"))
    assert {value.dtype for value in low.denoiser.parameters()} == {torch.bfloat16}
    assert {v.dtype for name in low.components("vae") for v in low.part(name).parameters()} <= {torch.float32}
    ours, exact = predicted(low), predicted(family)
    assert ours.dtype == torch.float32
    assert 0 < (ours - exact).abs().max() < 0.1 * exact.abs().max()
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(low.encode_pixels(pixels), family.encode_pixels(pixels))


def last_layer(denoiser: Any) -> Any:
    ends = ("conv_out", "proj_out", "norm_out.linear_2", "all_final_layer.2-1.linear")
    names = dict(denoiser.named_modules())
    return next(names[end] for end in ends if end in names)


def inside(denoiser: Any) -> Any:
    """A layer whose activations are recomputed."""
    if hasattr(denoiser, "down_blocks"):
        return denoiser.down_blocks[0].resnets[0]
    block = first_block(denoiser)
    return next(getattr(block, name) for name in ("norm1", "img_norm1", "attention_norm1") if hasattr(block, name))


def first_block(denoiser: Any) -> Any:
    names = ("joint_transformer_blocks", "transformer_blocks", "layers")
    return next(getattr(denoiser, name)[0] for name in names if hasattr(denoiser, name))


def gradient(family: Family) -> torch.Tensor:
    family.denoiser.requires_grad_(True)
    predicted(family).square().mean().backward()
    return torch.cat([value.grad.flatten() for value in family.denoiser.parameters() if value.grad is not None])


def test_gradient_checkpointing_recomputes_and_changes_nothing(folder: pathlib.Path, kind: Any, family: Family):
    saving = loaded(kind(str(folder), gradient_checkpointing=True))
    saving.prepare_denoiser()
    counts = []
    for each in (family, saving):
        calls: list[int] = []
        inside(each.denoiser).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        each.denoiser.train()
        counts.append((gradient(each), len(calls)))
    (plain, once), (again, twice) = counts
    assert (once, twice) == (1, 2)
    torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-4)


@EVERY_MODEL
def test_the_pipeline_paints_what_the_stock_pipeline_paints(folder: pathlib.Path, kind: type[Family]):
    torch.testing.assert_close(image(kind(str(folder)).pipeline()), image(stock(folder)), atol=1e-5, rtol=1e-5)


def test_the_pipeline_uses_the_live_denoiser(family: Family):
    plain = image(family.pipeline())
    with torch.no_grad():
        last_layer(family.denoiser).weight.mul_(2)
    pipeline = family.pipeline(family.denoiser)
    assert getattr(pipeline, family.denoiser_name) is family.denoiser
    assert (image(pipeline) - plain).abs().max() > 1e-3


def test_the_pipeline_works_in_low_precision(folder: pathlib.Path, kind: type[Family]):
    low = kind(str(folder), dtype="bfloat16")
    low.pipeline()
    painted = image(low.pipeline())
    assert painted.isfinite().all()
    assert (painted - image(stock(folder))).abs().mean() < 0.1


def test_latents_are_the_scaled_mode_and_decode_inverts_the_scaling(family: Family, folder: pathlib.Path):
    if not family.components("vae"):
        pytest.skip("it works on pixels, see test_deepfloyd")
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    expected, painted = stock_latents(stock(folder), pixels)
    latents = family.encode_pixels(pixels)
    assert (latents.dtype, latents.device.type, latents.requires_grad) == (torch.float32, "cpu", False)
    assert latents.shape == (2, family.latent_channels, 64 // family.stride, 96 // family.stride)
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(family.decode(latents), painted, atol=1e-5, rtol=1e-4)


def test_a_variant_is_loaded(folder: pathlib.Path, kind: Any, tmp_path: pathlib.Path):
    stock(folder, torch_dtype=torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert "set variant" in complaint(kind(str(tmp_path / "half")))
    family = kind(str(tmp_path / "half"), variant="fp16")
    family.check()
    family.load("denoiser", "vae")
    assert {value.dtype for value in family.denoiser.parameters()} == {torch.float32}
    assert len(family.fingerprint("denoiser")) == 32


def test_sharded_weights_are_loaded(own: pathlib.Path, kind: Any, family: Family):
    pipeline, name = stock(own), kind.denoiser_name
    getattr(pipeline, name).save_pretrained(own / name, max_shard_size="100KB")
    (own / name / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    sharded = kind(str(own))
    sharded.check()
    assert torch.equal(predicted(loaded(sharded)), predicted(family))
    assert sharded.fingerprint("denoiser") != ""


def test_the_same_seed_makes_the_same_bytes(folder: pathlib.Path, tmp_path: pathlib.Path):
    again, other = (make(folder.name, tmp_path / str(seed), seed=seed) for seed in (0, 1))
    name = MODELS[folder.name][0].denoiser_name
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert all((folder / path).read_bytes() == (again / path).read_bytes() for path in files)
    assert weights(folder / name).read_bytes() != weights(other / name).read_bytes()


def test_making_models_leaves_the_global_generator_alone(tmp_path: pathlib.Path):
    before = torch.get_rng_state()
    tiny_sdxl(tmp_path / "model", seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_the_table_in_the_documentation_is_up_to_date(family_folders: Any):
    names = {MODELS[name][0]: name for name in ONE_EACH}
    table = script("make_family_table")
    assert table.page(lambda kind: family_folders(names[kind])) == table.PAGE.read_text(encoding="utf-8")
