"""Tiny models of all families, and diffusers' own pipelines on them, for the tests that run over families."""

from __future__ import annotations

import inspect
import json
import pathlib
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from dreamlit.errors import ModelError
from dreamlit.families import (
    SD,
    SD3,
    SDXL,
    AuraFlow,
    Chroma,
    DeepFloydI,
    DeepFloydII,
    Family,
    Flux,
    Flux2Klein,
    Kolors,
    Lumina2,
    PixArtSigma,
    QwenImage,
    Sana,
    SDXLRefiner,
    ZImage,
)
from dreamlit.families.deepfloyd_two import TwoStages
from dreamlit.families.flux import unpacked
from tests.tiny import made

MODELS: dict[str, tuple[type[Family], str, dict[str, Any]]] = {
    "sd1": (SD, "sd", {}),
    "sd2": (SD, "sd", {"prediction_type": "v_prediction", "zero_terminal_snr": True}),
    "sdxl": (SDXL, "sdxl", {}),
    "refiner": (SDXLRefiner, "sdxl-refiner", {}),
    "if1": (DeepFloydI, "deepfloyd-1", {}),
    "if2": (DeepFloydII, "deepfloyd-2", {}),
    "sd3": (SD3, "sd3", {}),
    "sd3_no_t5": (SD3, "sd3", {"t5": False}),
    "sd35": (SD3, "sd3", {"version": "3.5"}),
    "chroma": (Chroma, "chroma", {}),
    "auraflow": (AuraFlow, "auraflow", {}),
    "kolors": (Kolors, "kolors", {}),
    "pixart": (PixArtSigma, "pixart-sigma", {}),
    "sana": (Sana, "sana", {}),
    "qwen_image": (QwenImage, "qwen-image", {}),
    "sana15": (Sana, "sana", {"qk_norm": "rms_norm_across_heads"}),
    "klein": (Flux2Klein, "flux2-klein", {}),
    "klein_distilled": (Flux2Klein, "flux2-klein", {"distilled": True}),
    "lumina2": (Lumina2, "lumina2", {}),
    "z_image": (ZImage, "z-image", {}),
    "flux_dev": (Flux, "flux", {}),
    "flux_schnell": (Flux, "flux", {"guidance": False}),
}
"""Name of the test's model -> its family, and how `scripts/make_tiny_models.py` makes it."""
UNETS = ("sd1", "sd2", "sdxl")
ONE_EACH = tuple({kind: name for name, (kind, _, _) in reversed(MODELS.items())}.values())
"""The first model of each family."""
LONG = "a photo of sks dog " * 30
PROMPTS = ["a photo of sks dog on the beach", "", "dog", LONG]
FRAME = (100, 140, 3, 7, 64, 96)


def make(name: str, folder: pathlib.Path, **options: Any) -> pathlib.Path:
    """The tiny model `name` of `MODELS` in `folder`."""
    _, family, own = MODELS[name]
    if name == "kolors":
        pytest.importorskip("sentencepiece", reason="its tokenizer needs it, and it is an extra")
    return made(family, folder, {**own, **options})


def loaded(family: Family) -> Family:
    family.load("vae", "text_encoders", "denoiser")
    return family


def stock(folder: pathlib.Path, **options: Any) -> Any:
    """The pipeline as a user of diffusers would load it."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = {
        name: None
        for name, entry in index.items()
        if entry == [None, None] and name.endswith(("_3", "encoder", "tokenizer"))
    }
    kind = getattr(diffusers, index["_class_name"])
    pipeline = kind.from_pretrained(folder, **absent, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()  # with gradients torch takes another kernel for T5's attention
def stock_embeds(pipeline: Any, prompts: list[str], **options: Any) -> list[torch.Tensor]:
    """What the pipeline makes of prompts: embeddings, and pooled ones where there are any."""
    plain = {"device": "cpu", "num_images_per_prompt": 1, **options}
    if isinstance(pipeline, diffusers.FluxPipeline):
        return list(pipeline.encode_prompt(prompts, None, **plain)[:2])
    if isinstance(pipeline, diffusers.ChromaPipeline):
        embeds = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, **plain)
        return [embeds[0], embeds[2]]
    others: dict[str, Any] = {}
    if isinstance(pipeline, diffusers.IFPipeline | diffusers.IFSuperResolutionPipeline):
        return [pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, **plain)[0]]
    if isinstance(pipeline, diffusers.PixArtSigmaPipeline):
        embeds, mask, *_ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, **plain)
        return [embeds, mask.float()]
    if isinstance(pipeline, diffusers.SanaPipeline):
        return sana_embeds(pipeline, prompts, **plain)
    if isinstance(pipeline, diffusers.Flux2KleinPipeline):
        return [pipeline.encode_prompt(prompts, "cpu")[0]]
    if isinstance(pipeline, diffusers.QwenImagePipeline):
        return qwen_embeds(pipeline, prompts)
    if isinstance(pipeline, diffusers.Lumina2Pipeline):
        return lumina_embeds(pipeline, prompts, **plain)
    if isinstance(pipeline, diffusers.ZImagePipeline):
        return z_image_embeds(pipeline, prompts)
    if isinstance(pipeline, diffusers.StableDiffusion3Pipeline):
        others = {"prompt_2": None, "prompt_3": None}
    embeds = pipeline.encode_prompt(prompts, **others, do_classifier_free_guidance=False, **plain)
    pooled = len(embeds) == 4 and not isinstance(pipeline, diffusers.AuraFlowPipeline)
    return [embeds[0], *([embeds[2]] if pooled else [])]


def sana_embeds(pipeline: Any, prompts: list[str], **options: Any) -> list[torch.Tensor]:
    """With the instruction of the pipeline's call; an empty prompt as it reads an empty negative one."""
    told = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
    embeds, mask, *negative = pipeline.encode_prompt(prompts, complex_human_instruction=told, **options)
    for row in [row for row, prompt in enumerate(prompts) if not prompt]:
        embeds[row], mask[row] = negative[0][row], negative[1][row]
    return [embeds, mask.float()]


def qwen_embeds(pipeline: Any, prompts: list[str]) -> list[torch.Tensor]:
    """At the length of the pipeline's call, with zeros up to it."""
    length = inspect.signature(pipeline.__call__).parameters["max_sequence_length"].default
    embeds, mask = pipeline.encode_prompt(prompts, "cpu", max_sequence_length=length)
    more = length - embeds.shape[1]
    mask = torch.ones(embeds.shape[:2]) if mask is None else mask.float()
    return [torch.nn.functional.pad(embeds, (0, 0, 0, more)), torch.nn.functional.pad(mask, (0, more))]


def lumina_embeds(pipeline: Any, prompts: list[str], **options: Any) -> list[torch.Tensor]:
    """An empty prompt as the pipeline reads an empty negative one."""
    embeds, mask, *negative = pipeline.encode_prompt(prompts, **options)
    for row in [row for row, prompt in enumerate(prompts) if not prompt]:
        embeds[row], mask[row] = negative[0][row], negative[1][row]
    return [embeds, mask.float()]


def z_image_embeds(pipeline: Any, prompts: list[str]) -> list[torch.Tensor]:
    """With zeros up to the length of the pipeline's call, which gives each prompt alone and changes the list."""
    length = inspect.signature(pipeline.__call__).parameters["max_sequence_length"].default
    alone = pipeline.encode_prompt(list(prompts), "cpu", do_classifier_free_guidance=False)[0]
    embeds = [torch.nn.functional.pad(one, (0, 0, 0, length - len(one))) for one in alone]
    mask = [(torch.arange(length) < len(one)).float() for one in alone]
    return [torch.stack(embeds), torch.stack(mask)]


@torch.no_grad()
def stock_latents(pipeline: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents as the pipeline scales them, and what its autoencoder makes of them."""
    vae = pipeline.vae
    if isinstance(pipeline, diffusers.QwenImagePipeline):  # of videos: [B, C, 1, H, W]
        mode = vae.encode(pixels[:, :, None]).latent_dist.mode()
        mean, std = (torch.tensor(vae.config[f"latents_{name}"]).view(1, -1, 1, 1) for name in ("mean", "std"))
        return (mode[:, :, 0] - mean) / std, vae.decode(mode).sample[:, :, 0]
    if isinstance(pipeline, diffusers.Flux2KleinPipeline):
        scaled = pipeline._encode_vae_image(pixels, torch.Generator())
        return pipeline._unpatchify_latents(scaled), vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    encoded = vae.encode(pixels)
    mode = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    shift = getattr(vae.config, "shift_factor", None) or 0
    return (mode - shift) * vae.config.scaling_factor, vae.decode(mode).sample


def size_options(family: type[Family], height: int, width: int) -> dict[str, Any]:
    """What the pipeline is told of sizes, as `FRAME` has them."""
    conditioned = {"original_size": FRAME[:2], "crops_coords_top_left": FRAME[2:4], "target_size": FRAME[4:]}
    if family in (SDXL, Kolors):
        return {"height": height, "width": width, **conditioned}
    if family is SDXLRefiner:
        return {"image": torch.rand(2, 3, height, width), "strength": 0.4, "aesthetic_score": 7.0, **conditioned}
    if family is DeepFloydII:
        return {"height": height, "width": width, "image": torch.rand(2, 3, height // 4, width // 4) * 2 - 1}
    return {"height": height, "width": width}


def calls_of(pipeline: Any, prompts: list[str], **options: Any) -> list[Any]:
    """The pipeline's own calls of its denoiser in sampling: x_t [B, C, h, w], t [B], output [B, C, h, w].

    And what else it is told of each sample, by the names of `Family.encode_prompts` and `conditioned`.
    """
    calls: list[Any] = []
    packing = ("FluxPipeline", "ChromaPipeline", "QwenImagePipeline", "Flux2KleinPipeline")
    packs = type(pipeline).__name__ in packing
    scale = 1000 if packs or isinstance(pipeline, diffusers.AuraFlowPipeline) else 1

    turned = isinstance(pipeline, diffusers.Lumina2Pipeline | diffusers.ZImagePipeline)  # time from noise to image
    unguided = 0.0 if isinstance(pipeline, diffusers.ZImagePipeline) else 1.0

    def record(module: Any, inputs: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        x_t = inputs[0] if inputs else given.get("hidden_states", given.get("sample"))
        t = given["timestep"] if "timestep" in given else inputs[1]
        t = 1000 * (1 - t) if turned else t * scale
        if isinstance(x_t, list):
            x_t, output = (torch.stack(frames).squeeze(2) for frames in (x_t, output[0]))
            output = (output,)
        output = (-output[0],) if turned else output
        if packs:
            size = options["height"] // 8, options["width"] // 8
            calls.append((unpacked(x_t, *size), t, unpacked(output[0], *size), {}))
            return
        more, channels = {}, x_t.shape[1]
        if isinstance(pipeline, diffusers.IFSuperResolutionPipeline):
            more, channels = {"low_resolution": x_t[:, 3:], "noise_level": given["class_labels"]}, 3
        calls.append((x_t[:, :channels], t.expand(len(x_t)), output[0][:, :channels], more))

    denoiser = pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet
    denoiser.register_forward_hook(record, with_kwargs=True)
    steps = 5 if "strength" in options else 2
    if off := switched_off(pipeline):
        options |= off
    else:
        options["output_type"] = "latent"
    pipeline(prompt=list(prompts), num_inference_steps=steps, guidance_scale=unguided, **options)
    return calls


def switched_off(pipeline: Any) -> dict[str, bool]:
    """What a pipeline does to captions and sizes unless it is told not to."""
    taken = inspect.signature(pipeline.__call__).parameters
    return {name: False for name in ("clean_caption", "use_resolution_binning") if name in taken}


def state(
    batch: int = 2, height: int = 8, width: int = 8, seed: int = 0, channels: int = 4
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(batch, channels, height, width, generator=generator)
    return x_t, torch.tensor([999, 1, 500][:batch]), torch.tensor([FRAME] * batch)


def predicted(family: Family, **options: Any) -> torch.Tensor:
    x_t, t, frame = state(channels=family.latent_channels, **options)
    return family.predict(x_t, t, family.encode_prompts(PROMPTS[: len(t)]), frame)


def image(pipeline: Any, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"height": 64, "width": 64}
    if isinstance(pipeline, TwoStages):
        options["image"] = [Image.new("RGB", (64, 64), (90, 120, 30))]
    if isinstance(pipeline, diffusers.IFSuperResolutionPipeline):
        options["image"] = [Image.new("RGB", (16, 16), (90, 120, 30))]
    if isinstance(pipeline, diffusers.IFSuperResolutionPipeline | TwoStages):
        options["noise_level"] = 250
    if isinstance(pipeline, diffusers.StableDiffusionXLImg2ImgPipeline):
        options = {"image": torch.full((1, 3, 64, 64), 0.5), "strength": 1.0}
    if isinstance(pipeline, TwoStages):
        options["clean_caption"] = False
    options |= switched_off(pipeline)
    options |= {"num_inference_steps": 2, "output_type": "pt", "generator": generator}
    return pipeline(prompt="a dog", **options).images.float()


def complaint(family: Family) -> str:
    with pytest.raises(ModelError) as caught:
        family.check()
    return str(caught.value)


def change(path: pathlib.Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def weights(folder: pathlib.Path) -> pathlib.Path:
    return next(folder.glob("*.safetensors"))
