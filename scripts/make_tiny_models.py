"""Make a tiny model of any family with random weights, for tests and dry runs on a CPU.

    python scripts/make_tiny_models.py --family sdxl --output models/tiny-sdxl [--seed 0] [--single-file]

The folder has the layout of a real diffusers model and stock pipelines load it; the pictures are noise. The same seed
gives the same bytes. `--single-file` also writes `<output>.safetensors` in the original (LDM / SGM) key layout, for
families with a UNet.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from typing import Any

from tiny_llm_a import LLM_A
from tiny_llm_b import LLM_B
from tiny_more import MORE
from tiny_originals import write_single_file
from tiny_parts import END, autoencoder, library, t5_encoder, text_encoder, unet, write_t5_tokenizer, write_tokenizer


def scheduler(prediction_type: str, zero_terminal_snr: bool) -> Any:
    """The schedule of the real models ("scaled linear"), as their configuration files have it."""
    return library("diffusers").DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
        timestep_spacing="trailing" if zero_terminal_snr else "leading",
        rescale_betas_zero_snr=zero_terminal_snr,
    )


def sd_parts(folder: pathlib.Path, prediction_type: str = "epsilon", zero_terminal_snr: bool = False) -> dict[str, Any]:
    """SD 1.x for "epsilon" (convolutions around attention, quick GELU), SD 2.x for "v_prediction" (linear, GELU)."""
    second = prediction_type == "v_prediction"
    vocab = write_tokenizer(folder / "tokenizer", pad="!" if second else END)
    return {
        "vae": autoencoder(0.18215),
        "text_encoder": text_encoder(vocab, 32, "gelu" if second else "quick_gelu", projection=False),
        "tokenizer": library("transformers").CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "unet": unet(cross_attention_dim=32, attention_head_dim=(2, 4) if second else 4, use_linear_projection=second),
        "scheduler": scheduler(prediction_type, zero_terminal_snr),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def sdxl_parts(
    folder: pathlib.Path, prediction_type: str = "epsilon", zero_terminal_snr: bool = False
) -> dict[str, Any]:
    """SDXL: two encoders of different width, size conditioning, attention only at the lower resolution."""
    vocab = write_tokenizer(folder / "tokenizer", pad=END)
    write_tokenizer(folder / "tokenizer_2", pad="!")
    return {
        "vae": autoencoder(0.13025),
        "text_encoder": text_encoder(vocab, 32, "quick_gelu", projection=False),
        "text_encoder_2": text_encoder(vocab, 64, "gelu", projection=True),
        "tokenizer": library("transformers").CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "tokenizer_2": library("transformers").CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        "unet": unet(
            cross_attention_dim=96,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 64,
        ),
        "scheduler": scheduler(prediction_type, zero_terminal_snr),
        "add_watermarker": False,
    }


def refiner_parts(folder: pathlib.Path) -> dict[str, Any]:
    """SDXL's refiner: the second encoder alone, five time ids, attention at both resolutions."""
    vocab = write_tokenizer(folder / "tokenizer_2", pad="!")
    return {
        "vae": autoencoder(0.13025),
        "text_encoder": None,
        "tokenizer": None,
        "text_encoder_2": text_encoder(vocab, 64, "gelu", projection=True),
        "tokenizer_2": library("transformers").CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        "unet": unet(
            cross_attention_dim=64,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 1),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=5 * 8 + 64,
        ),
        "scheduler": scheduler("epsilon", False),
        "add_watermarker": False,
        "requires_aesthetics_score": True,
        "force_zeros_for_empty_prompt": False,
    }


def sd3_parts(folder: pathlib.Path, version: str = "3", t5: bool = True) -> dict[str, Any]:
    """SD3: joint blocks, two CLIPs and a T5. Version 3.5 adds a second attention and normalised queries and keys."""
    vocab = write_tokenizer(folder / "tokenizer", pad=END)
    write_tokenizer(folder / "tokenizer_2", pad="!")
    clip = library("transformers").CLIPTokenizer
    words = write_t5_tokenizer(folder / "tokenizer_3") if t5 else None
    newer: dict[str, Any] = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"} if version == "3.5" else {}
    transformer = library("diffusers").SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=48,
        pos_embed_max_size=24,
        **newer,
    )
    return {
        "vae": autoencoder(1.5305, 16, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": text_encoder(vocab, 16, "quick_gelu", projection=True),
        "text_encoder_2": text_encoder(vocab, 32, "gelu", projection=True),
        "text_encoder_3": t5_encoder(words, 64) if t5 else None,
        "tokenizer": clip.from_pretrained(folder / "tokenizer"),
        "tokenizer_2": clip.from_pretrained(folder / "tokenizer_2"),
        "tokenizer_3": words,
        "transformer": transformer,
        "scheduler": library("diffusers").FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def flux_parts(folder: pathlib.Path, guidance: bool = True) -> dict[str, Any]:
    """Flux.1: packed latents, rotary positions, double and single blocks; dev with its guidance, schnell without."""
    vocab, words = write_tokenizer(folder / "tokenizer", pad=END), write_t5_tokenizer(folder / "tokenizer_2")
    diffusers = library("diffusers")
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    shifts: dict[str, Any] = {"use_dynamic_shifting": True, "shift": 3.0} if guidance else {"shift": 1.0}
    return {
        "vae": autoencoder(0.3611, 16, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": text_encoder(vocab, 32, "quick_gelu", projection=False),
        "text_encoder_2": t5_encoder(words, 32),
        "tokenizer": library("transformers").CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "tokenizer_2": words,
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**shifts),
    }


def deepfloyd_parts(folder: pathlib.Path, stage: int = 1) -> dict[str, Any]:
    """DeepFloyd IF: pixels, T5, attention to text beside the image's own, a variance in the output."""
    words, diffusers = write_t5_tokenizer(folder / "tokenizer"), library("diffusers")
    second: dict[str, Any] = {"in_channels": 6, "class_embed_type": "timestep"} if stage == 2 else {"in_channels": 3}
    net = unet(
        out_channels=6,
        sample_size=16 * stage**2,
        cross_attention_dim=32,
        encoder_hid_dim=24,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        attention_head_dim=16,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        act_fn="gelu",
        resnet_time_scale_shift="scale_shift",
        resnet_skip_time_act=True,
        resnet_out_scale_factor=2**0.5,
        **second,
    )
    schedule: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
    learned: dict[str, Any] = {"variance_type": "learned_range", "thresholding": True, "sample_max_value": 1.5}
    parts = {
        "text_encoder": t5_encoder(words, 24),
        "tokenizer": words,
        "unet": net,
        "scheduler": diffusers.DDPMScheduler(**schedule, **learned),
        **dict.fromkeys(("safety_checker", "feature_extractor", "watermarker")),
        "requires_safety_checker": False,
    }
    return {**parts, "image_noising_scheduler": diffusers.DDPMScheduler(**schedule)} if stage == 2 else parts


def chroma_parts(folder: pathlib.Path) -> dict[str, Any]:
    """Chroma: Flux's blocks, modulated by a small network of their own."""
    words, diffusers = write_t5_tokenizer(folder / "tokenizer"), library("diffusers")
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return {
        "vae": autoencoder(0.3611, 16, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": t5_encoder(words, 32),
        "tokenizer": words,
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def auraflow_parts(folder: pathlib.Path) -> dict[str, Any]:
    """AuraFlow: one joint block, then a single one, and register tokens."""
    words, diffusers = write_t5_tokenizer(folder / "tokenizer"), library("diffusers")
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return {
        "vae": autoencoder(0.13025),
        "text_encoder": t5_encoder(words, 32, "UMT5"),
        "tokenizer": words,
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    }


PARTS = {
    "chroma": ("ChromaPipeline", chroma_parts),
    "auraflow": ("AuraFlowPipeline", auraflow_parts),
    "deepfloyd-1": ("IFPipeline", functools.partial(deepfloyd_parts, stage=1)),
    "deepfloyd-2": ("IFSuperResolutionPipeline", functools.partial(deepfloyd_parts, stage=2)),
    "sd": ("StableDiffusionPipeline", sd_parts),
    "sdxl": ("StableDiffusionXLPipeline", sdxl_parts),
    "sdxl-refiner": ("StableDiffusionXLImg2ImgPipeline", refiner_parts),
    "sd3": ("StableDiffusion3Pipeline", sd3_parts),
    "flux": ("FluxPipeline", flux_parts),
    **MORE,
    **LLM_B,
    **LLM_A,
}
SINGLE_FILES = ("sd", "sdxl", "sdxl-refiner")


def make(
    family: str, output: str | pathlib.Path, *, seed: int = 0, single_file: bool = False, **options: Any
) -> pathlib.Path:
    """Write a tiny model of `family` as a diffusers folder and return the folder; `options` of the family's parts."""
    import torch

    diffusers = library("diffusers")
    folder = pathlib.Path(output)
    name, parts = PARTS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = getattr(diffusers, name)(**parts(folder, **options))
    pipeline.save_pretrained(folder)
    if single_file:
        write_single_file(pipeline, folder.with_name(folder.name + ".safetensors"))
    return folder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(PARTS), required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prediction-type", choices=("epsilon", "v_prediction"), help="of sd and sdxl")
    parser.add_argument("--zero-terminal-snr", action="store_true", help="of sd and sdxl (arXiv 2305.08891)")
    parser.add_argument("--single-file", action="store_true", help="also write <output>.safetensors")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value not in (None, False)}
    for option, families in FAMILIES_OF.items():
        if option in given and given["family"] not in families:
            parser.error(f"--{option.replace('_', '-')} is for {' and '.join(families)}")
    print(make(given.pop("family"), given.pop("output"), **given))


FAMILIES_OF = {"prediction_type": ("sd", "sdxl"), "zero_terminal_snr": ("sd", "sdxl"), "single_file": SINGLE_FILES}


if __name__ == "__main__":
    main()
