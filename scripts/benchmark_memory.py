"""Compare the estimate of `dreamlit doctor` with the memory that a training step takes on the CPU.

    python scripts/benchmark_memory.py [--models sd-medium sd3-medium ...] [--work /tmp/memory]

Makes random models with wide denoisers, estimates one training step without memory, then takes it:
forward, backward and AdamW twice, in this process, the second time with PyTorch's profiler recording each allocation.
Compared is the peak of that step: weights, gradients, optimizer state and activations together.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import pathlib
from typing import Any

import torch
from make_tiny_models import make
from torch.profiler import ProfilerActivity, profile

from dreamlit.adapters import Adapter, Full, LoRA, LyCORIS
from dreamlit.families import SD, SD3, Family, Flux
from dreamlit.families.files import read_json
from dreamlit.families.loading import component_class
from dreamlit.memory.walk import AUTOCAST, Work, asked, read_caption, train
from dreamlit.quantisation import NO_CHANGE
from dreamlit.quantisation.layers import is_quantised, stored_bytes
from dreamlit.quiet import quieten

MODELS: dict[str, tuple[type[Family], str, dict[str, Any]]] = {
    "sd-medium": (SD, "sd", {"block_out_channels": [128, 256], "norm_num_groups": 32, "attention_head_dim": 8}),
    "sd3-medium": (SD3, "sd3", {"num_attention_heads": 16, "attention_head_dim": 32, "num_layers": 4}),
    "flux-medium": (Flux, "flux", {"num_attention_heads": 16, "num_layers": 2, "num_single_layers": 4}),
}
"""Name -> family, which tiny model, and what is changed in its denoiser's configuration."""
CASES: list[tuple[str, Any, dict[str, Any], str, str]] = [
    ("LoRA, float32", lambda: LoRA(rank=16), {}, "32-true", NO_CHANGE),
    ("LoRA, bfloat16", lambda: LoRA(rank=16), {"dtype": "bfloat16"}, "bf16-mixed", NO_CHANGE),
    (
        "LoRA, bfloat16, checkpointing",
        lambda: LoRA(rank=16),
        {"dtype": "bfloat16", "gradient_checkpointing": True},
        "bf16-mixed",
        NO_CHANGE,
    ),
    ("LoRA, int8-torchao", lambda: LoRA(rank=16), {"dtype": "bfloat16"}, "bf16-mixed", "int8-torchao"),
    ("LoRA, nf4-bnb", lambda: LoRA(rank=16), {"dtype": "bfloat16"}, "bf16-mixed", "nf4-bnb"),
    ("LoKr, float32", lambda: LyCORIS(algo="lokr", factor=8), {}, "32-true", NO_CHANGE),
    ("all weights, float32", Full, {}, "32-true", NO_CHANGE),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--work", default="/tmp/memory", help="folder for the random models")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=256, help="pixels of the square images")
    options = parser.parse_args()
    quieten()
    print("| model | run | estimated MB | measured MB | estimated / measured |\n|---|---|--:|--:|--:|")
    for name in options.models:
        folder = medium(name, pathlib.Path(options.work))
        for title, adapter, family_options, precision, level in CASES:
            family = MODELS[name][0](str(folder), **family_options)
            work = Work(options.batch, (options.side, options.side), precision=precision)
            texts, _ = read_caption(family, work)
            step = train(family, adapter(), adam, work, texts, level)
            estimated, taken = step.lasting + step.rest, measured(family, adapter(), work, texts, level)
            figures = f"{estimated / 1e6:.1f} | {taken / 1e6:.1f} | {estimated / taken:.2f}"
            print(f"| {name} | {title} | {figures} |", flush=True)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4)


def medium(name: str, root: pathlib.Path) -> pathlib.Path:
    """A tiny model whose denoiser was made anew with a larger configuration."""
    kind, tiny, changes = MODELS[name]
    folder = root / name
    if (folder / "done").exists():
        return folder
    make(tiny, folder)
    family = kind(str(folder))
    place = folder / family.denoiser_name
    config = {**read_json(place / "config.json"), **changes}
    (place / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    made: Any = component_class(family.files.index, family.denoiser_name).from_config(config)
    made.save_pretrained(place)
    (folder / "done").touch()
    return folder


def measured(family: Family, adapter: Adapter, work: Work, texts: dict[str, Any], level: str) -> int:
    """Most bytes that are held in the second of two training steps: what was there before it, and what it allocates."""
    family = family.fresh()
    family.store(level, [])
    family.load("denoiser")
    adapter.attach(family.denoiser, seed=0)
    family.prepare_denoiser()
    optimizer = adam(list(adapter.parameters().values()))
    texts = {n: torch.randn(v.shape).to(v.dtype) if v.is_meta else v for n, v in texts.items()}

    def step() -> None:
        dtype = AUTOCAST.get(work.precision)
        with torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext():
            loss = family.predict(*asked(family, work.batch, work.size, texts)).square().mean()
            optimizer.zero_grad()  # after the forward, as Lightning does
            loss.backward()
        optimizer.step()

    step()
    gc.collect()
    held = held_by(family.denoiser, *adapter.modules_to_register().values())
    held += sum(p.grad.nbytes for p in adapter.parameters().values() if p.grad is not None)
    held += sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    return held + peak_of(profiler)


def held_by(*modules: torch.nn.Module) -> int:
    """Bytes of the weights and buffers of modules, layers in few bits as they are stored."""
    packed = {id(part.weight): part for module in modules for part in module.modules() if is_quantised(part)}
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    whole = sum(tensor.nbytes for key, tensor in tensors.items() if key not in packed)
    return whole + sum(stored_bytes(layer) for layer in packed.values())


def peak_of(profiler: Any) -> int:
    """The largest sum of allocations less releases, in bytes."""
    records = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for record in sorted(records, key=lambda event: event.start_ns()):
        live += record.nbytes()
        peak = max(peak, live)
    return peak


if __name__ == "__main__":
    main()
