"""One small UNet, one call of it, and every adapter that is accepted, for the tests of adapters and their files."""

import pathlib
from typing import ClassVar

import torch
from diffusers import UNet2DConditionModel

from dreamlit.adapters import Full, LoRA, LyCORIS

CASES = {
    "lora": lambda: LoRA(4, alpha=2),
    "lora-all-layers": lambda: LoRA(4, targets="full", init="gaussian"),
    "lora-rank-pattern": lambda: LoRA(4, rank_pattern={"to_k": 2, "to_q": 8}, alpha_pattern={"to_v": 1.0}),
    "rslora": lambda: LoRA(4, alpha=8, targets="full", use_rslora=True),
    "dora": lambda: LoRA(4, alpha=2, targets="full", use_dora=True),
    "locon": lambda: LyCORIS("locon", 4, alpha=1, preset="full", conv_rank=2, conv_alpha=3, multiplier=0.5),
    "locon-tucker": lambda: LyCORIS("locon", 4, preset="full", use_tucker=True, multiplier=0.7),
    "loha": lambda: LyCORIS("loha", 3, alpha=2.5, preset="full", multiplier=1.5),
    "loha-tucker": lambda: LyCORIS("loha", 3, preset="full", use_tucker=True),
    "lokr": lambda: LyCORIS("lokr", 2, alpha=1, factor=4, preset="full", multiplier=0.5),
    "lokr-full-matrix": lambda: LyCORIS("lokr", factor=4, full_matrix=True, preset="full", multiplier=0.3),
    "lokr-both": lambda: LyCORIS("lokr", 1, alpha=3, decompose_both=True, preset="full"),
    "lokr-tucker": lambda: LyCORIS("lokr", 2, factor=4, use_tucker=True, preset="full"),
    "lokr-mixed": lambda: LyCORIS("lokr", 0.1, module_algo_map={"FeedForward": {"algo": "loha", "dim": 2}}),
    "glora": lambda: LyCORIS("glora", 4, alpha=2, preset="attn-mlp", multiplier=2.0),
    "diag-oft": lambda: LyCORIS("diag-oft", 2, preset="full"),
    "boft": lambda: LyCORIS("boft", 4, preset="full"),
    "full": lambda: Full(),
    "full-part": lambda: Full(targets=["attn2"]),
}
LYCORIS = [name for name, make in CASES.items() if isinstance(make(), LyCORIS)]
LORA = [name for name, make in CASES.items() if isinstance(make(), LoRA)]


def unet(seed: int = 0, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """A UNet with SDXL's conditioning: 0.2 million parameters, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=1,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,
        )
    return model.to(dtype)


def predict(model: torch.nn.Module) -> torch.Tensor:
    """The model's output for fixed inputs in its own precision."""
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    added = {"text_embeds": draw(2, 32), "time_ids": draw(2, 6)}
    return model(draw(2, 4, 8, 8), torch.tensor([5, 700]), draw(2, 6, 32), added_cond_kwargs=added).sample


def shake(adapter, seed: int = 3, size: float = 0.05) -> None:
    """Moves every trainable parameter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def train(adapter, denoiser: torch.nn.Module, steps: int = 2) -> None:
    """Optimizer steps toward zero; gradients of the last step stay."""
    optimizer = torch.optim.AdamW(adapter.parameters().values(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        predict(denoiser).float().square().mean().backward()
        optimizer.step()


def state(denoiser: torch.nn.Module, exclude: set[int]) -> dict[str, torch.Tensor]:
    """Copies of the parameters that are not excluded (by id)."""
    return {name: p.detach().clone() for name, p in denoiser.named_parameters() if id(p) not in exclude}


class Named:
    """The naming of SD and SDXL files."""

    export_prefix = "lora_unet"
    pipeline_prefix = "unet"
    unread_formats: ClassVar[dict[str, str]] = {}


def layer_weights(denoiser: torch.nn.Module) -> dict:
    """{name: float32 array} of every linear and convolution layer."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {n: m.weight.detach().clone().numpy() for n, m in denoiser.named_modules() if isinstance(m, kinds)}


def folder_of(root: pathlib.Path, name: str) -> pathlib.Path:
    path = root / name
    path.mkdir(parents=True, exist_ok=True)
    return path
