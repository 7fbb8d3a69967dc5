"""The arguments of diffusers' DreamBooth scripts, and what becomes of each. `diffusers_run` puts them together."""

from __future__ import annotations

from typing import Any

from dreamlit.importing.rules import (
    Rule,
    above_zero,
    each,
    flag,
    idle,
    number,
    one_of,
    part,
    refused,
    text,
    to,
    whole,
    words,
)

ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]
JOINT = [f"attn.{name}" for name in (*ATTENTION, "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")]
JOINT += ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]
SCRIPTS: dict[str, tuple[str, str, Any, float]] = {
    "train_dreambooth.py": ("SD", "full", None, 5e-6),
    "train_dreambooth_lora.py": ("SD", "lora", ATTENTION, 5e-4),
    "train_dreambooth_lora_sdxl.py": ("SDXL", "lora", ATTENTION, 1e-4),
    "train_dreambooth_sd3.py": ("SD3", "full", None, 1e-4),
    "train_dreambooth_lora_sd3.py": ("SD3", "lora", "attention", 1e-4),
    "train_dreambooth_flux.py": ("Flux", "full", None, 1e-4),
    "train_dreambooth_lora_flux.py": ("Flux", "lora", JOINT, 1e-4),
    "train_dreambooth_lora_flux2_klein.py": ("Flux2Klein", "lora", "attention", 1e-4),
    "train_dreambooth_lora_lumina2.py": ("Lumina2", "lora", ATTENTION, 1e-4),
    "train_dreambooth_lora_sana.py": ("Sana", "lora", ["to_k", "to_q", "to_v"], 1e-4),
    "train_dreambooth_lora_qwen_image.py": ("QwenImage", "lora", ATTENTION, 1e-4),
    "train_dreambooth_lora_z_image.py": ("ZImage", "lora", ATTENTION, 1e-4),
}
"""Scripts -> family, what is trained, the layers of a LoRA, and the learning rate that is the default there."""
ALPHA_OF_ITS_OWN = ("flux", "flux2_klein", "sana", "qwen_image", "z_image")
"""Endings of the scripts whose lora_alpha is 4 unless it is given; in the others it is the rank."""
UNSHIFTED = ("Flux", "Flux2Klein", "QwenImage")
"""Families whose sampler shifts by the size of the image, which the scripts do not in training."""
SEVENTY_SEVEN = "texts are read as the pipeline reads them"

MODEL: dict[str, Rule] = {
    "pretrained_model_name_or_path": part("model", "`model.family.init_args.path`"),
    "pretrained_vae_model_name_or_path": to("family.vae", text, when="autoencoder"),
    "revision": to("family.revision", text),
    "variant": to("family.variant", text),
    "mixed_precision": part("mixed_precision", "`trainer.precision`, and the family's `dtype`"),
    "gradient_checkpointing": to("family.gradient_checkpointing", flag),
    "guidance_scale": to("family.guidance", number, default=3.5, when="flux"),
    "rank": to("adapter.rank", above_zero, default=4, when="lora"),
    "lora_alpha": part("alpha", "`model.adapter.init_args.alpha`", when="lora"),
    "lora_dropout": to("adapter.dropout", number, when="lora"),
    "lora_layers": to("adapter.targets", words, when="lora"),
    "lora_blocks": refused("targets may be globs over whole names: transformer_blocks.7.attn.*"),
    "use_dora": to("adapter.use_dora", flag, when="lora"),
    "weighting_scheme": to(
        "objective.timestep_density",
        one_of("density", {"none": "uniform", "logit_normal": "logit_normal", "mode": "mode"}),
        when="flow",
    ),
    "logit_mean": part("logit_mean", "`model.objective.logit_mean`, where the density has one", when="flow"),
    "logit_std": part("logit_std", "`model.objective.logit_std`, where the density has one", when="flow"),
    "mode_scale": part("mode_scale", "`model.objective.mode_scale`, where the density has one", when="flow"),
    "bnb_quantization_config_path": refused("name the level: model.base_model_precision: nf4-bnb"),
    "do_fp8_training": refused("weights alone may be in eight bits: model.base_model_precision"),
}
LENGTH: dict[str, Rule] = {
    "seed": to("seed_everything", whole),
    "output_dir": to("trainer.default_root_dir", text),
    "max_train_steps": part("steps", "`trainer.max_steps`"),
    "num_train_epochs": part("epochs", "`trainer.max_epochs`, where no number of steps is given"),
    "train_batch_size": part("batch", "`data.batch_size`, times the number of processes", default=4),
    "gradient_accumulation_steps": part("accumulate", "`trainer.accumulate_grad_batches`"),
    "max_grad_norm": to("trainer.gradient_clip_val", number, default=1.0),
    "learning_rate": part("rate", "`model.optimizer.init_args.lr`"),
    "scale_lr": part("scale_lr", "the learning rate, multiplied as it is there"),
    "lr_scheduler": part("schedule", "`model.lr_scheduler`"),
    "lr_warmup_steps": part("warmup", "`model.lr_warmup_steps`", default=500),
    "lr_num_cycles": refused("one cycle is made", 1),
    "lr_power": refused("the polynomial schedule here has the power 1", 1, 1.0),
    "optimizer": part("optimizer", "`model.optimizer`"),
    "use_8bit_adam": part("eight_bit", "`model.optimizer: bitsandbytes.optim.AdamW8bit`"),
    **{f"adam_{name}": part(f"adam_{name}", "`model.optimizer.init_args`") for name in ("beta1", "beta2", "epsilon")},
    "adam_weight_decay": part("adam_weight_decay", "`model.optimizer.init_args.weight_decay`"),
    "checkpointing_steps": to("checkpoint.every_n_steps", above_zero, default=500),
    "checkpoints_total_limit": part("keep", "`checkpoint.keep`; 0, which keeps all, without it"),
    "snr_gamma": part("snr_gamma", "`model.objective.snr_gamma`, with `weighting: min_snr`", when="diffusion"),
    "offset_noise": part("offset", "`model.objective.offset_noise: 0.1`", when="diffusion"),
    "dataloader_num_workers": to("data.num_workers", whole),
    "resume_from_checkpoint": idle("said where it is resumed: dreamlit fit --config run.yaml --ckpt_path auto"),
}
DATA: dict[str, Rule] = {
    "instance_data_dir": part("photos", "a dataset's `instance_data_dir`"),
    "instance_prompt": part("prompt", "its `instance_prompt`"),
    "repeats": part("repeats", "its `repeats`, one less: 0 is once here"),
    "caption_dropout": part("dropout", "its `caption_dropout`"),
    "resolution": part("resolution", "`resolution` in the unit `pixel`, cut to a square"),
    "center_crop": part("center", "`crop_style`: `center`, or `random` without it"),
    "with_prior_preservation": part("prior", "a dataset with `is_regularisation_data`, `prior_target: data`"),
    "class_data_dir": part("class_photos", "its `instance_data_dir`"),
    "class_prompt": part("class_prompt", "its `instance_prompt`"),
    "prior_loss_weight": part("prior_weight", "`model.objective.prior_loss_weight`"),
    "num_class_images": part("class_count", "`dreamlit class-images --count`"),
    "dataset_name": refused("fetch the photos into a folder: instance_data_dir"),
    "caption_column": refused("captions are .txt files beside the photos, or caption_strategy jsonl"),
    "random_flip": refused("photos are trained as they are, cut once"),
    "use_aspect_ratio_buckets": refused("set crop: false, and each photo keeps its aspect"),
    **each(
        idle("it belongs to dataset_name or to buckets"),
        "dataset_config_name image_column cache_dir aspect_ratio_buckets",
    ),
}
LOOKING: dict[str, Rule] = {
    "validation_prompt": part("preview", "`ValidationPreview.prompts`"),
    "num_validation_images": part("preview_count", "`ValidationPreview.seeds`"),
    "validation_steps": to("callbacks.ValidationPreview.every_n_steps", above_zero),
    "validation_epochs": part(
        "preview_epochs", "previews are counted in steps: at the end alone, until every_n_steps is set"
    ),
    "final_validation_prompt": part("final_preview", "`ValidationPreview.prompts`"),
    "validation_images": refused("previews start from prompts, or from photos of the datasets"),
    "skip_final_inference": idle("ValidationPreview.at_end says whether there is one at the end"),
    "validation_scheduler": idle("the model's own sampler is taken: ValidationPreview.sampler"),
    "report_to": part("report_to", "`trainer.logger`"),
}
REST: dict[str, Rule] = {
    "train_text_encoder": refused("text encoders are not trained"),
    **each(
        idle("text encoders are not trained"), "text_encoder_lr adam_weight_decay_text_encoder skip_save_text_encoder"
    ),
    "do_edm_style_training": refused("the model's own process is trained"),
    "precondition_outputs": refused("a flow's velocity is predicted, as it is", 0, 1),
    "class_labels_conditioning": refused("the noise level of DeepFloyd's second stage is told anyway", "timesteps"),
    "push_to_hub": refused("nothing is uploaded: the exported files are in the run's folder"),
    **each(idle("it belongs to push_to_hub"), "hub_token hub_model_id"),
    **each(idle("it belongs to Prodigy"), "prodigy_*"),
    "output_kohya_format": idle("the layouts of diffusers and kohya are both written"),
    **each(
        idle(SEVENTY_SEVEN),
        "max_sequence_length tokenizer_name tokenizer_max_length text_encoder_use_attention_mask "
        "complex_human_instruction system_prompt text_encoder_out_layers pretrained_tokenizer_* "
        "pretrained_text_encoder_*",
    ),
    **each(
        idle("it is about how the script computes, not what"),
        "allow_tf32 enable_xformers_memory_efficient_attention set_grads_to_none pre_compute_text_embeddings "
        "cache_latents prior_generation_precision sample_batch_size local_rank upcast_before_saving offload "
        "logging_dir enable_npu_flash_attention enable_vae_tiling image_interpolation_mode remote_text_encoder "
        "fsdp_text_encoder",
    ),
}
RULES: dict[str, Rule] = {**MODEL, **LENGTH, **DATA, **LOOKING, **REST}
