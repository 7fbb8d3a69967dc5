"""Measure every precision of a frozen base under LoRA: bytes, seconds a step, error of the prediction.

    python scripts/benchmark_precisions.py --shape sdxl flux --size middle [--device cpu] [--batch 1]

Models are randomly initialised with the structure of SDXL's UNet and of Flux.1's transformer: `small` (20 to 45 million
weights), `middle` (150 to 400 million) and `full` (2.6 and 11.9 billion: for a GPU). Each level gets a model of its own
from the same seed. A step is forward, backward and AdamW of a LoRA of rank 16 with gradient checkpointing. Levels that
do not work on the device are listed with the reason. The ratios are the point: it is all one process.
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import torch

from dreamlit.adapters import LoRA
from dreamlit.precision_checks import level_fault
from dreamlit.quantisation import LEVELS, NO_CHANGE
from dreamlit.quantisation.layers import is_quantised, quantise, stored_bytes
from dreamlit.quiet import quieten

WARM_UP, STEPS = 1, 3
SDXL: dict[str, dict[str, Any]] = {
    "small": {"block_out_channels": (64, 128, 256), "transformer_layers_per_block": (1, 1, 2)},
    "middle": {"block_out_channels": (128, 256, 512), "transformer_layers_per_block": (1, 2, 10)},
    "full": {"block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10)},
}
FLUX: dict[str, dict[str, Any]] = {
    "small": {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 4},
    "middle": {"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 8},
    "full": {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24},
}


def sdxl(size: str) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=tuple(channels // 64 for channels in SDXL[size]["block_out_channels"]),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        cross_attention_dim=2048,
        **SDXL[size],
    )


def flux(size: str) -> Any:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=64, attention_head_dim=128, guidance_embeds=True, joint_attention_dim=4096, **FLUX[size]
    )


def sdxl_inputs(batch: int, side: int, draw: Any) -> dict[str, Any]:
    return {
        "sample": draw(batch, 4, side, side),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": draw(batch, 77, 2048),
        "added_cond_kwargs": {"text_embeds": draw(batch, 1280), "time_ids": torch.full((batch, 6), 8.0 * side)},
    }


def flux_inputs(batch: int, side: int, draw: Any) -> dict[str, Any]:
    return {
        "hidden_states": draw(batch, (side // 2) ** 2, 64),
        "encoder_hidden_states": draw(batch, 128, 4096),
        "pooled_projections": draw(batch, 768),
        "timestep": torch.full((batch,), 0.5),
        "guidance": torch.full((batch,), 1.0),
        "img_ids": torch.zeros((side // 2) ** 2, 3),
        "txt_ids": torch.zeros(128, 3),
    }


SHAPES = {"sdxl": (sdxl, sdxl_inputs), "flux": (flux, flux_inputs)}


def moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    return value.to(device)


def model_of(shape: str, size: str, device: torch.device, level: str) -> Any:
    """A model of the seed, in bfloat16 or stored at a level, on the device."""
    torch.manual_seed(0)
    with device:
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = SHAPES[shape][0](size)
        finally:
            torch.set_default_dtype(torch.float32)
    model = model.requires_grad_(False).eval()
    return quantise(model, level) if level != NO_CHANGE else model


def size_of(model: Any) -> int:
    """Bytes of all weights as they are stored."""
    layers = [module for module in model.modules() if is_quantised(module)]
    packed = {id(module.weight) for module in layers}
    plain = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in packed)
    return plain + sum(map(stored_bytes, layers))


def measure(shape: str, options: argparse.Namespace, level: str, exact: torch.Tensor | None) -> dict[str, Any]:
    """Bytes, error against `exact`, seconds a step and, on a GPU, the peak of its memory; and the prediction."""
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *sizes: torch.randn(*sizes, generator=generator)  # noqa: E731
    inputs = moved(SHAPES[shape][1](options.batch, options.side, draw), device)
    model, adapter = model_of(shape, options.size, device, level), LoRA(16)
    stored = size_of(model)
    autocast = torch.autocast(device.type, torch.bfloat16)
    with torch.no_grad(), autocast:
        prediction = model(**inputs).sample.float()
    adapter.attach(model, seed=0)
    model.enable_gradient_checkpointing()
    model.train()
    optimizer = torch.optim.AdamW(adapter.parameters().values(), lr=1e-4)
    seconds = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        with autocast:
            loss = model(**inputs).sample.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    error = float("nan") if exact is None else float((prediction - exact).norm() / exact.norm())
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"bytes": stored, "s": min(seconds[WARM_UP:]), "error": error, "peak": peak, "prediction": prediction}


def table(shape: str, options: argparse.Namespace) -> None:
    """Print a Markdown table of all levels for one shape."""
    print(
        f"\n{shape}, {options.size}, batch {options.batch}, latents {options.side} x {options.side}, {options.device}\n"
    )
    print(
        "| level | weights MB | of bfloat16 | error | s/step | of bfloat16 | peak MB |\n|---|--:|--:|--:|--:|--:|--:|"
    )
    plain: dict[str, Any] = {}
    for level in options.levels or (NO_CHANGE, *LEVELS):
        if level != NO_CHANGE and (why := level_fault(level, torch.device(options.device))):
            print(f"| {level} | {why} | | | | | |", flush=True)
            continue
        found = measure(shape, options, level, plain.get("prediction"))
        plain = plain or found
        cells = [level, f"{found['bytes'] / 2**20:.0f}", f"{found['bytes'] / plain['bytes']:.2f}"]
        cells += [f"{found['error']:.4f}", f"{found['s']:.3f}", f"{found['s'] / plain['s']:.2f}"]
        cells += [f"{found['peak'] / 2**20:.0f}" if found["peak"] else ""]
        print(f"| {' | '.join(cells)} |", flush=True)
        gc.collect()
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--size", choices=SDXL, default="middle")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--side", type=int, default=32, help="latent cells along a side; 128 for 1024 pixels")
    parser.add_argument("--levels", nargs="+", choices=(NO_CHANGE, *LEVELS), help="begin with no_change for ratios")
    options = parser.parse_args()
    quieten()
    for shape in options.shape:
        table(shape, options)


if __name__ == "__main__":
    main()
