"""Configurations of other trainers, in the shapes of their documentation, each with what stands beside it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

PHOTOS = "datasets/rex"
MASKS = "datasets/rex_masks"
CLASS = "datasets/dogs"
HELD = "datasets/rex_eval"


@dataclasses.dataclass(frozen=True)
class Case:
    """One import."""

    model: str
    """The tiny model of `family_cases.MODELS` that stands in for the real one."""
    args: tuple[str, ...]
    """Arguments of `dreamlit import`."""
    files: dict[str, str]
    """Path -> text."""
    holds: dict[str, Any]
    """Dotted keys of the run that must come out, with their values."""


def as_json(content: Any) -> str:
    return json.dumps(content, indent=2)


TEXT_EMBEDS = {
    "id": "text-embeds",
    "type": "local",
    "dataset_type": "text_embeds",
    "default": True,
    "cache_dir": "cache/text",
    "write_batch_size": 128,
}


def simple_photos(resolution: float, **options: Any) -> list[dict[str, Any]]:
    entry = {"id": "rex", "type": "local", "instance_data_dir": PHOTOS, "resolution": resolution}
    entry |= {"resolution_type": "pixel_area", "caption_strategy": "instanceprompt", "instance_prompt": "sks dog"}
    return [{**entry, "cache_dir_vae": "cache/vae/rex", "metadata_backend": "discovery", **options}, TEXT_EMBEDS]


MASKED = [
    {
        **{"id": "dreambooth-data", "type": "local", "dataset_type": "image", "conditioning_data": "dreambooth-masks"},
        **{"instance_data_dir": PHOTOS, "cache_dir_vae": "cache/vae", "caption_strategy": "instanceprompt"},
        **{"instance_prompt": "a photo of sks dog", "metadata_backend": "discovery", "resolution": 1024},
        **{"minimum_image_size": 32, "maximum_image_size": 1024, "target_downsample_size": 1024, "crop": True},
        **{"crop_aspect": "square", "crop_style": "center", "resolution_type": "pixel_area", "repeats": 100},
    },
    {
        **{"id": "dreambooth-masks", "type": "local", "dataset_type": "conditioning", "instance_data_dir": MASKS},
        **{"resolution": 1024, "crop": True, "crop_aspect": "square", "crop_style": "center"},
        **{"resolution_type": "pixel_area", "conditioning_type": "mask"},
    },
    {
        **{"id": "regularisation-data", "type": "local", "instance_data_dir": CLASS, "repeats": 0, "resolution": 1024},
        **{"caption_strategy": "instanceprompt", "instance_prompt": "a photo of a dog", "is_regularisation_data": True},
        **{"resolution_type": "pixel_area", "skip_file_discovery": ""},
    },
    {
        **{"id": "held", "type": "local", "dataset_type": "eval", "instance_data_dir": HELD, "resolution": 1024},
        **{"caption_strategy": "instanceprompt", "instance_prompt": "a photo of sks dog", "repeats": 0},
    },
    TEXT_EMBEDS,
]

SDXL_LORA = {
    **{"--model_family": "sdxl", "--model_flavour": "base-1.0", "--model_type": "lora", "--lora_type": "standard"},
    **{"--lora_rank": 8, "--lora_alpha": 8, "--lora_dropout": 0.0, "--seed": 42, "--output_dir": "output/rex"},
    **{"--data_backend_config": "config/multidatabackend.json", "--aspect_bucket_rounding": 2},
    **{"--resume_from_checkpoint": "latest", "--max_train_steps": 1000, "--num_train_epochs": 0},
    **{"--train_batch_size": 2, "--gradient_accumulation_steps": 1, "--gradient_checkpointing": "true"},
    **{"--learning_rate": "1e-4", "--optimizer": "adamw_bf16", "--lr_scheduler": "polynomial", "--lr_warmup_steps": 100},
    **{"--max_grad_norm": 1.0, "--grad_clip_method": "norm", "--mixed_precision": "bf16", "--snr_gamma": 5},
    **{"--checkpoint_step_interval": 500, "--checkpoints_total_limit": 5, "--caption_dropout_probability": 0.1},
    **{"--use_ema": "true", "--ema_decay": 0.99, "--ema_device": "accelerator", "--ema_update_interval": 2},
    **{"--scheduled_sampling_max_step_offset": 10, "--scheduled_sampling_probability": 1.0},
    **{"--scheduled_sampling_ramp_steps": 1000, "--scheduled_sampling_sampler": "unipc"},
    **{"--eval_steps_interval": 2, "--eval_timesteps": 4, "--num_eval_images": 25, "--evaluation_type": "clip"},
    **{"--pretrained_evaluation_model_name_or_path": "models/clip", "--webhook_config": "config/webhook.json"},
    **{"--webhook_reporting_interval": 100, "--validation_prompt": "a photo of sks dog on the beach"},
    **{"--validation_resolution": "1024x1024,1280x768", "--validation_guidance": 3.4, "--validation_seed": 42},
    **{"--validation_num_inference_steps": "20", "--validation_step_interval": 500, "--validation_preview": True},
    **{"--validation_preview_steps": 5, "--validation_negative_prompt": "blurry, cropped", "--push_to_hub": "true"},
    **{"--hub_model_id": "rex-lora", "--report_to": "none", "--tracker_run_name": "rex", "--vae_dtype": "bf16"},
}

FLUX_LYCORIS = {
    **{"model_family": "flux", "model_flavour": "dev", "model_type": "lora", "lora_type": "lycoris"},
    **{"pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev", "lycoris_config": "config/lycoris_config.json"},
    **{"base_model_precision": "int8-quanto", "text_encoder_1_precision": "no_change", "quantize_via": "cpu"},
    **{"text_encoder_2_precision": "int8-quanto", "data_backend_config": "config/multidatabackend.json"},
    **{"disable_bucket_pruning": True, "flow_schedule_shift": 3, "learning_rate": 1e-4, "lr_scheduler": "constant"},
    **{"max_train_steps": 100, "num_train_epochs": 0, "optimizer": "adamw_bf16", "output_dir": "output/flux"},
    **{"train_batch_size": 1, "seed": 42, "flux_guidance_mode": "constant", "flux_guidance_value": 1.0},
    **{"validation_prompt": "sks dog holding a sign", "user_prompt_library": "config/user_prompt_library.json"},
    **{"validation_resolution": "1024x1024", "validation_guidance": 4.0, "validation_num_inference_steps": 16},
    **{"validation_negative_prompt": "ugly", "validation_steps": 50, "gradient_checkpointing": True},
}
LOKR = {
    **{"algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1, "factor": 16},
    "apply_preset": {
        "target_module": ["Attention", "FeedForward"],
        "module_algo_map": {"Attention": {"factor": 16}, "FeedForward": {"factor": 8}},
    },
}

SD3_FULL = {
    **{"model_family": "sd3", "model_type": "full", "model_flavour": "medium", "learning_rate": 1e-5},
    **{"data_backend_config": "config/data.json", "output_dir": "output/sd3", "max_train_steps": 200},
    **{"flow_use_uniform_schedule": True, "flow_schedule_shift": 1, "train_batch_size": 2, "lr_scheduler": "cosine"},
    **{"lr_warmup_steps": 50, "optimizer": "torch-adamw", "optimizer_config": "weight_decay=0.05,eps=1e-6"},
    **{"validation_prompt": "sks dog", "validation_guidance_skip_layers": [7, 8, 9], "max_grad_norm": 0.1},
    **{"validation_num_inference_steps": 4, "validation_disable": False, "num_validation_images": 2},
}

SD15_ENV = """
export MODEL_FAMILY='sd1x'
export MODEL_TYPE='lora'
export LORA_TYPE='standard'
export MODEL_NAME="stable-diffusion-v1-5/stable-diffusion-v1-5"
export DATALOADER_CONFIG="config/data.json"
export OUTPUT_DIR="output/env"   # where it goes
export TRAINING_SEED=420420420
export MAX_NUM_STEPS=3000
export NUM_EPOCHS=0
export CHECKPOINTING_STEPS=100
export CHECKPOINTING_LIMIT=2
export LEARNING_RATE=8e-5
export LR_SCHEDULE="constant_with_warmup"
export LR_WARMUP_STEPS=2
export TRAIN_BATCH_SIZE=2
export OPTIMIZER="bnb-adamw8bit"
export MIXED_PRECISION="bf16"
export TRAINING_NUM_PROCESSES=1
export CAPTION_DROPOUT_PROBABILITY=0.1
export VALIDATION_PROMPT="sks dog"
export VALIDATION_NUM_INFERENCE_STEPS=4
export USE_EMA=false
export HF_TOKEN=hf_thisisasecret
export TRAINER_EXTRA_ARGS="--lora_rank=4 --offset_noise=true"
export TRAINER_EXTRA_ARGS="${TRAINER_EXTRA_ARGS} --noise_offset=0.05 --lora_alpha=4"
"""

SD2_TOML = """
model_family = "sd2x"
model_flavour = "2.1"
pretrained_model_name_or_path = "stabilityai/stable-diffusion-2-1"
model_type = "lora"
prediction_type = "v_prediction"
rescale_betas_zero_snr = true
data_backend_config = "config/data.json"
output_dir = "output/sd2"
num_train_epochs = 2
learning_rate = 1e-4
lr_scheduler = "linear"
train_batch_size = 2
loss_type = "huber"
huber_schedule = "snr"
huber_c = 0.1
input_perturbation = 0.1
report_to = "tensorboard"
validation_disable = true
"""

REFINER = {
    **{"model_family": "sdxl", "model_flavour": "refiner-1.0", "model_type": "lora", "lora_rank": 4},
    **{"data_backend_config": "config/data.json", "data_aesthetic_score": 5.6, "refiner_training_strength": 0.2},
    **{"max_train_steps": 50, "learning_rate": 1e-4, "train_batch_size": 2, "validation_prompt": "sks dog"},
    **{"validation_num_inference_steps": 10, "use_ema": True, "ema_validation": "ema_only", "output_dir": "output/r"},
    **{"lr_scheduler": "constant", "validation_using_datasets": True, "checkpointing_rolling_steps": 0},
}

DEEPFLOYD = {
    **{"model_family": "deepfloyd", "model_flavour": "i-medium-400m", "model_type": "lora", "lora_rank": 16},
    **{"pretrained_model_name_or_path": "DeepFloyd/IF-I-M-v1.0", "data_backend_config": "config/data.json"},
    **{"learning_rate": 1e-5, "lr_scheduler": "constant", "max_train_steps": 100, "optimizer": "optimi-lion"},
    **{"train_batch_size": 1, "validation_prompt": "sks dog", "validation_guidance": 7.0, "output_dir": "output/if"},
    **{"validation_num_inference_steps": 20, "validation_resolution": "64x64", "base_model_precision": "no_change"},
}

SDXL_SH = r"""
#!/bin/bash
# a LoRA of a dog
MODEL="/models/sd_xl_base_1.0.safetensors"
accelerate launch --num_cpu_threads_per_process 1 sdxl_train_network.py \
  --pretrained_model_name_or_path="$MODEL" \
  --dataset_config="dataset.toml" --output_dir="out" --output_name="rex" \
  --save_model_as=safetensors --network_module=networks.lora --network_dim=32 --network_alpha=16 \
  --network_train_unet_only --learning_rate=1e-4 --unet_lr 2e-4 --optimizer_type="AdamW8bit" \
  --optimizer_args weight_decay=0.1 betas=0.9,0.99 --lr_scheduler="cosine" --lr_warmup_steps=10 \
  --max_train_epochs=10 --save_every_n_steps=100 --mixed_precision="bf16" --gradient_checkpointing \
  --cache_latents --cache_text_encoder_outputs --min_snr_gamma=5 --noise_offset=0.0357 --seed=7 --xformers \
  --max_timestep=900 --no_half_vae
"""
SDXL_DATASET = f"""
[general]
caption_extension = ".txt"
keep_tokens = 1
shuffle_caption = true

[[datasets]]
resolution = 1024
batch_size = 2
enable_bucket = true
bucket_no_upscale = true

  [[datasets.subsets]]
  image_dir = "{PHOTOS}"
  num_repeats = 10
  caption_dropout_rate = 0.05
"""

DB_SH = r"""
accelerate launch train_db.py --pretrained_model_name_or_path=runwayml/stable-diffusion-v1-5 \
  --train_data_dir=train --reg_data_dir=reg --output_dir=out --output_name=db --resolution=512,512 \
  --prior_loss_weight=0.8 --train_batch_size=2 --learning_rate=1e-6 --max_train_steps=400 --use_8bit_adam \
  --mixed_precision=fp16 --save_precision=fp16 --clip_skip=2 --enable_bucket --stop_text_encoder_training=-1 \
  --lr_warmup_steps=0.1 --lr_scheduler=linear --sample_prompts=prompts.txt --sample_every_n_steps=200
"""
PROMPTS = """# of the dog
sks dog in the snow --n blurry --w 512 --h 512 --d 3 --l 7.5 --s 4
a dog in the snow --n blurry --w 512 --h 512 --d 3 --l 7.5 --s 4
"""

FLUX_SH = r"""
accelerate launch --mixed_precision bf16 --num_cpu_threads_per_process 1 flux_train_network.py ^
  --pretrained_model_name_or_path flux1-dev.safetensors --clip_l clip_l.safetensors --t5xxl t5xxl_fp16.safetensors ^
  --ae ae.safetensors --dataset_config dataset.toml --output_dir out --output_name rex-flux ^
  --network_module networks.lora_flux --network_dim 4 --network_alpha 1 --learning_rate 1e-4 ^
  --network_train_unet_only --optimizer_type AdamW --lr_scheduler constant --sdpa --max_train_steps 300 ^
  --save_every_n_epochs 1 --mixed_precision bf16 --gradient_checkpointing --guidance_scale 1.0 ^
  --timestep_sampling shift --discrete_flow_shift 3.1582 --model_prediction_type raw --blocks_to_swap 18 ^
  --masked_loss --cache_latents_to_disk --cache_text_encoder_outputs --fp8_base --seed 42
"""
FLUX_DATASET = f"""
[[datasets]]
resolution = [768, 512]
batch_size = 1
enable_bucket = false

  [[datasets.subsets]]
  image_dir = "{PHOTOS}"
  class_tokens = "sks dog"
  caption_extension = ".none"
  conditioning_data_dir = "{MASKS}"
  num_repeats = 8
"""

LYCORIS_TOML = """
[model_arguments]
pretrained_model_name_or_path = "stable-diffusion-v1-5/stable-diffusion-v1-5"

[additional_network_arguments]
network_module = "lycoris.kohya"
network_dim = 8
network_alpha = 4
network_args = ["algo=loha", "conv_dim=4", "conv_alpha=2", "preset=attn-mlp"]
unet_lr = 2e-4
text_encoder_lr = 1e-5

[training_arguments]
output_dir = "out"
max_train_steps = 60
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 1
optimizer_type = "Prodigy"
mixed_precision = "no"
seed = 1
loss_type = "smooth_l1"
validation_split = 0.34
validate_every_n_steps = 2
"""
LYCORIS_DATASET = f"""
[[datasets]]
resolution = 512
enable_bucket = true
[[datasets.subsets]]
image_dir = "{PHOTOS}"
class_tokens = "sks dog"
caption_extension = ".none"
[[datasets.subsets]]
image_dir = "{CLASS}"
class_tokens = "dog"
caption_extension = ".none"
is_reg = true
"""

DB_DIFFUSERS = f"""
export MODEL_NAME="CompVis/stable-diffusion-v1-4"
export INSTANCE_DIR="{PHOTOS}"
export CLASS_DIR="{CLASS}"
export OUTPUT_DIR="out/db"

accelerate launch train_dreambooth.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --instance_data_dir=$INSTANCE_DIR --class_data_dir=$CLASS_DIR --output_dir=$OUTPUT_DIR \\
  --with_prior_preservation --prior_loss_weight=0.5 \\
  --instance_prompt="a photo of sks dog" --class_prompt="a photo of dog" \\
  --resolution=512 --train_batch_size=1 --gradient_accumulation_steps=1 --learning_rate=5e-6 \\
  --lr_scheduler="constant" --lr_warmup_steps=0 --num_class_images=200 --max_train_steps=800 \\
  --use_8bit_adam --set_grads_to_none --train_text_encoder
"""
LORA_DIFFUSERS = f"""
export MODEL_NAME="runwayml/stable-diffusion-v1-5"
accelerate launch --num_processes=2 train_dreambooth_lora.py \\
  --pretrained_model_name_or_path=$MODEL_NAME --instance_data_dir={PHOTOS} --output_dir=out/lora \\
  --instance_prompt="a photo of sks dog" --resolution=512 --center_crop --train_batch_size=1 \\
  --gradient_accumulation_steps=2 --checkpointing_steps=100 --learning_rate=1e-4 --report_to="tensorboard" \\
  --lr_scheduler="constant" --lr_warmup_steps=0 --max_train_steps=500 --num_validation_images 2 \\
  --validation_prompt="A photo of sks dog in a bucket" --validation_epochs=50 --seed="0"
"""
SDXL_DIFFUSERS = f"""
accelerate launch train_dreambooth_lora_sdxl.py \\
  --pretrained_model_name_or_path="stabilityai/stable-diffusion-xl-base-1.0" --instance_data_dir={PHOTOS} \\
  --pretrained_vae_model_name_or_path="madebyollin/sdxl-vae-fp16-fix" --output_dir="out/sdxl" \\
  --mixed_precision="fp16" --instance_prompt="a photo of sks dog" --resolution=1024 --train_batch_size=1 \\
  --gradient_accumulation_steps=4 --learning_rate=1e-4 --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --max_train_steps=500 --snr_gamma=5.0 --rank=8 --use_dora --repeats=3 --seed="0" --push_to_hub
"""
FLUX_DIFFUSERS = f"""
accelerate launch train_dreambooth_lora_flux.py \\
  --pretrained_model_name_or_path="black-forest-labs/FLUX.1-dev" --instance_data_dir={PHOTOS} --output_dir=out/flux \\
  --mixed_precision="bf16" --instance_prompt="a photo of sks dog" --class_prompt="a photo of a dog" \\
  --with_prior_preservation --class_data_dir={CLASS} --resolution=512 --train_batch_size=1 --guidance_scale=1 \\
  --gradient_accumulation_steps=1 --optimizer="prodigy" --learning_rate=1. --lr_scheduler="constant" \\
  --lr_warmup_steps=0 --max_train_steps=500 --weighting_scheme=logit_normal --logit_mean=0.5 --seed="0"
"""

DATA = {"config/data.json": as_json(simple_photos(512, repeats=3, crop=False))}
CASES: dict[str, Case] = {
    "simpletuner-sdxl-lora": Case(
        "sdxl",
        ("config/config.json",),
        {
            "config/config.json": as_json(SDXL_LORA),
            "config/multidatabackend.json": as_json(MASKED),
            "config/webhook.json": as_json(
                {"webhook_type": "discord", "webhook_url": "https://discord.test/api/s3cret", "log_level": "info"}
            ),
        },
        {
            "model.adapter.init_args": {"rank": 8, "alpha": 8, "dropout": 0.0, "targets": ["to_k", "to_q", "to_v", "to_out.0"]},
            "trainer.gradient_clip_algorithm": "norm",
            "data.batch_size": 2,
            "data.eval_timesteps": 4,
            "model.objective": {"weighting": "min_snr", "snr_gamma": 5},
        },
    ),
    "simpletuner-flux-lycoris": Case(
        "flux_dev",
        ("config/config.json", "config/multidatabackend.json"),
        {
            "config/config.json": as_json(FLUX_LYCORIS),
            "config/multidatabackend.json": as_json(simple_photos(1024, repeats=10)),
            "config/lycoris_config.json": as_json(LOKR),
            "config/user_prompt_library.json": as_json({"chef": "sks dog as a chef", "dog": "a dog"}),
        },
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
        {"config.json": as_json(SD3_FULL), **DATA},
        {
            "model.adapter.class_path": "Full",
            "model.family.init_args.shift": 1,
            "model.optimizer.init_args": {"lr": 1e-5, "weight_decay": 0.05, "eps": 1e-6},
            "trainer.gradient_clip_algorithm": "value",
        },
    ),
    "simpletuner-sd15-env": Case(
        "sd1",
        ("config/config.env",),
        {"config/config.env": SD15_ENV, **DATA},
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
        {"config.toml": SD2_TOML, **DATA},
        {
            "trainer.max_epochs": 2,
            "model.family.init_args.zero_terminal_snr": True,
            "model.objective": {"input_perturbation": 0.1, "loss": "huber", "huber_schedule": "snr", "huber_c": 0.1},
        },
    ),
    "simpletuner-refiner": Case(
        "refiner",
        ("config.json",),
        {"config.json": as_json(REFINER), **DATA},
        {"model.family.class_path": "SDXLRefiner", "model.family.init_args.data_aesthetic_score": 5.6},
    ),
    "simpletuner-deepfloyd": Case(
        "if1",
        ("config.json",),
        {"config.json": as_json(DEEPFLOYD), "config/data.json": as_json(simple_photos(64, crop=True))},
        {"model.family.class_path": "DeepFloydI", "model.optimizer.class_path": "torch.optim.AdamW"},
    ),
    "kohya-sdxl-lora": Case(
        "sdxl",
        ("train.sh", "dataset.toml"),
        {
            "train.sh": SDXL_SH,
            "dataset.toml": SDXL_DATASET,
            **{f"{PHOTOS}/p{n}.txt": "sks dog, on grass, sunny" for n in range(3)},
        },
        {
            "model.adapter.init_args": {"targets": "attention-mlp", "rank": 32, "alpha": 16},
            "model.optimizer.init_args": {"lr": 2e-4, "weight_decay": 0.1, "betas": [0.9, 0.99]},
            "model.objective.timestep_range": [0.0, 0.9],
            "trainer.default_root_dir": "out/rex",
        },
    ),
    "kohya-sd15-dreambooth": Case(
        "sd1",
        ("train.sh",),
        {"train.sh": DB_SH, "prompts.txt": PROMPTS},
        {
            "model.lr_warmup_steps": 40,
            "model.family.init_args.clip_skip": 1,
            "model.objective": {"prior_target": "data", "prior_loss_weight": 0.8},
        },
    ),
    "kohya-flux-masked": Case(
        "flux_dev",
        ("train.bat",),
        {"train.bat": FLUX_SH, "dataset.toml": FLUX_DATASET},
        {
            "model.family.init_args.shift": 3.1582,
            "model.family.init_args.transformer": "flux1-dev.safetensors",
            "model.base_model_precision": "fp8-torchao",
        },
    ),
    "kohya-sd15-lycoris": Case(
        "sd1",
        ("settings.toml", "dataset.toml", "--script", "train_network.py"),
        {"settings.toml": LYCORIS_TOML, "dataset.toml": LYCORIS_DATASET},
        {
            "model.adapter.init_args": {
                **{"algo": "loha", "preset": "attn-mlp", "conv_rank": 4, "conv_alpha": 2, "rank": 8, "alpha": 4}
            },
            "data.hold_out": 0.34,
        },
    ),
    "diffusers-dreambooth": Case(
        "sd1",
        ("train.sh",),
        {"train.sh": DB_DIFFUSERS},
        {
            "model.adapter.class_path": "Full",
            "data.batch_size": 2,
            "model.objective": {"prior_target": "data", "prior_loss_weight": 0.5},
        },
    ),
    "diffusers-lora": Case(
        "sd1",
        ("train.sh",),
        {"train.sh": LORA_DIFFUSERS},
        {"data.batch_size": 2, "trainer.devices": 2, "model.adapter.init_args.rank": 4, "checkpoint.keep": 0},
    ),
    "diffusers-lora-sdxl": Case(
        "sdxl",
        ("train.sh",),
        {"train.sh": SDXL_DIFFUSERS},
        {"trainer.precision": "16-mixed", "model.adapter.init_args.use_dora": True},
    ),
    "diffusers-lora-flux": Case(
        "flux_dev",
        ("train.sh",),
        {"train.sh": FLUX_DIFFUSERS},
        {"model.objective.logit_mean": 0.5, "model.adapter.init_args.alpha": 4, "model.family.init_args.guidance": 1},
    ),
}
