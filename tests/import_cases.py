"""The configurations of `import_configs`, in the shapes of other trainers' documentation, and what comes of them."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

FILES = pathlib.Path(__file__).resolve().parent / "import_configs"
PHOTOS = "datasets/rex"
MASKS = "datasets/rex_masks"
CLASS = "datasets/dogs"
HELD = "datasets/rex_eval"


@dataclasses.dataclass(frozen=True)
class Case:
    """One import; its files are in the folder of its name."""

    model: str
    """The tiny model of `family_cases.MODELS` that stands in for the real one."""
    args: tuple[str, ...]
    """Arguments of `dreamlit import`."""
    holds: dict[str, Any]
    """Dotted keys of the run that must come out, with their values."""


CASES: dict[str, Case] = {
    "simpletuner-sdxl-lora": Case(
        "sdxl",
        ("config/config.json",),
        {
            "model.adapter.init_args": {
                "rank": 8,
                "alpha": 8,
                "dropout": 0.0,
                "targets": ["to_k", "to_q", "to_v", "to_out.0"],
            },
            "trainer.gradient_clip_algorithm": "norm",
            "data.batch_size": 2,
            "data.eval_timesteps": 4,
            "model.objective": {"weighting": "min_snr", "snr_gamma": 5},
        },
    ),
    "simpletuner-flux-lycoris": Case(
        "flux_dev",
        (
            "config/config.json",
            "config/multidatabackend.json",
        ),
        {
            "model.base_model_precision": "int8-quanto",
            "model.adapter.init_args.full_matrix": True,
            "model.family.init_args.shift": 3,
            "model.objective.timestep_density": "logit_normal",
        },
    ),
    "simpletuner-sd3-full": Case(
        "sd35",
        ("config.json",),
        {
            "model.adapter.class_path": "Full",
            "model.family.init_args.shift": 1,
            "model.optimizer.init_args": {"lr": 1e-05, "weight_decay": 0.05, "eps": 1e-06},
            "trainer.gradient_clip_algorithm": "value",
        },
    ),
    "simpletuner-sd15-env": Case(
        "sd1",
        ("config/config.env",),
        {
            "seed_everything": 420420420,
            "model.objective.offset_noise": 0.05,
            "model.optimizer.class_path": "bitsandbytes.optim.AdamW8bit",
            "model.lr_warmup_steps": 2,
        },
    ),
    "simpletuner-sd2-toml": Case(
        "sd2",
        ("config.toml",),
        {
            "trainer.max_epochs": 2,
            "model.family.init_args.zero_terminal_snr": True,
            "model.objective": {"input_perturbation": 0.1, "loss": "huber", "huber_schedule": "snr", "huber_c": 0.1},
        },
    ),
    "simpletuner-refiner": Case(
        "refiner",
        ("config.json",),
        {"model.family.class_path": "SDXLRefiner", "model.family.init_args.data_aesthetic_score": 5.6},
    ),
    "simpletuner-deepfloyd": Case(
        "if1",
        ("config.json",),
        {"model.family.class_path": "DeepFloydI", "model.optimizer.class_path": "torch.optim.AdamW"},
    ),
    "kohya-sdxl-lora": Case(
        "sdxl",
        (
            "train.sh",
            "dataset.toml",
        ),
        {
            "model.adapter.init_args": {"targets": "attention-mlp", "rank": 32, "alpha": 16},
            "model.optimizer.init_args": {"lr": 0.0002, "weight_decay": 0.1, "betas": [0.9, 0.99]},
            "model.objective.timestep_range": [0.0, 0.9],
            "trainer.default_root_dir": "out/rex",
        },
    ),
    "kohya-sd15-dreambooth": Case(
        "sd1",
        ("train.sh",),
        {
            "model.lr_warmup_steps": 40,
            "model.family.init_args.clip_skip": 1,
            "model.objective": {"prior_target": "data", "prior_loss_weight": 0.8},
        },
    ),
    "kohya-flux-masked": Case(
        "flux_dev",
        ("train.bat",),
        {
            "model.family.init_args.shift": 3.1582,
            "model.family.init_args.transformer": "flux1-dev.safetensors",
            "model.base_model_precision": "fp8-torchao",
        },
    ),
    "kohya-sd15-lycoris": Case(
        "sd1",
        (
            "settings.toml",
            "dataset.toml",
            "--script",
            "train_network.py",
        ),
        {
            "model.adapter.init_args": {
                "algo": "loha",
                "preset": "attn-mlp",
                "rank": 8,
                "alpha": 4,
            },
            "data.hold_out": 0.34,
        },
    ),
    "diffusers-dreambooth": Case(
        "sd1",
        ("train.sh",),
        {
            "model.adapter.class_path": "Full",
            "data.batch_size": 2,
            "model.objective": {"prior_target": "data", "prior_loss_weight": 0.5},
        },
    ),
    "diffusers-lora": Case(
        "sd1",
        ("train.sh",),
        {"data.batch_size": 2, "trainer.devices": 2, "model.adapter.init_args.rank": 4, "checkpoint.keep": 0},
    ),
    "diffusers-lora-sdxl": Case(
        "sdxl",
        ("train.sh",),
        {"trainer.precision": "16-mixed", "model.adapter.init_args.use_dora": True},
    ),
    "diffusers-lora-flux": Case(
        "flux_dev",
        ("train.sh",),
        {"model.objective.logit_mean": 0.5, "model.adapter.init_args.alpha": 4, "model.family.init_args.guidance": 1},
    ),
}
