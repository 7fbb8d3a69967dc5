"""SimpleTuner's options, version 4: what becomes of each. Joint ones are put together in `simpletuner_run`."""

from __future__ import annotations

from typing import Any

from dreamlit.importing.rules import (
    Misfit,
    Rule,
    above_zero,
    each,
    flag,
    idle,
    number,
    one_of,
    only,
    part,
    refused,
    text,
    to,
    whole,
    words,
)

PRECISIONS = {
    **{name: name for name in ("no_change", "int2-quanto", "int4-quanto", "int8-quanto", "fp8-quanto")},
    **{name: name for name in ("int8-torchao", "int4-torchao", "fp8-torchao", "nf4-bnb")},
    "fp8uz-quanto": "fp8-quanto",
    "fp8wo-torchao": "fp8-torchao",
    **dict.fromkeys(("bf16", "fp16", "fp32"), "no_change"),
}
"""Names of quantised levels there -> here."""


def shift(value: Any) -> float:
    if number(value) <= 0:
        raise Misfit(
            "no shift at all would be 1 here; without the option the model's own is taken, as its sampler does"
        )
    return number(value)


def weights_file(value: Any) -> str:
    if not str(value).endswith(".safetensors"):
        raise Misfit(
            "here it is a .safetensors file (model.family.init_args.transformer); folders are given as the model"
        )
    return str(value)


precision = one_of("precision", PRECISIONS)

MODEL: dict[str, Rule] = {
    "model_family": part("family", "`model.family`"),
    "model_flavour": part("flavour", "`model.family.init_args.path`"),
    "pretrained_model_name_or_path": part("model", "`model.family.init_args.path`"),
    "model_type": part("type", "`model.adapter`", default="full"),
    "lora_type": part("lora_type", "`model.adapter`"),
    "revision": to("family.revision", text),
    "variant": to("family.variant", text),
    "pretrained_vae_model_name_or_path": to("family.vae", text, when="autoencoder"),
    "pretrained_transformer_model_name_or_path": to("family.transformer", weights_file, when="flow"),
    "prediction_type": to(
        "family.prediction_type",
        only("epsilon", "v_prediction", instead="leave it out to take the model's own"),
        when="diffusion",
    ),
    "rescale_betas_zero_snr": to("family.zero_terminal_snr", flag, when="diffusion"),
    "gradient_checkpointing": to("family.gradient_checkpointing", flag, default=True),
    "use_gradient_checkpointing": to("family.gradient_checkpointing", flag),
    "mixed_precision": part("mixed_precision", "`trainer.precision`, and the family's `dtype`", default="bf16"),
    "base_model_precision": to("model.base_model_precision", precision),
    **{f"text_encoder_{n}_precision": to(f"model.text_encoder_{n}_precision", precision) for n in (1, 2, 3, 4)},
    "refiner_training": part("refiner", "`model.family: SDXLRefiner`"),
    "refiner_training_strength": to("family.refiner_training_strength", number, when="refiner"),
    "refiner_training_invert_schedule": to("family.refiner_training_invert", flag, when="refiner"),
    "data_aesthetic_score": to("family.data_aesthetic_score", number, when="refiner"),
    "flow_schedule_shift": part("shift", "`model.family.init_args.shift`", default=3.0, when="flow"),
    "flow_schedule_auto_shift": part(
        "auto_shift", "no `shift`: the model's own, by the size of the image", when="flow"
    ),
    "flux_guidance_value": part("guidance", "`model.family.init_args.guidance`", when="flux"),
    "flux_guidance_mode": part("guidance_mode", "`constant` alone", when="flux"),
}

ADAPTER: dict[str, Rule] = {
    "lora_rank": to("adapter.rank", above_zero, default=16, when="lora"),
    "lora_alpha": to("adapter.alpha", number, when="lora"),
    "lora_dropout": to("adapter.dropout", number, default=0.1, when="lora"),
    "lora_init_type": to(
        "adapter.init",
        only("default", "gaussian", instead="default is taken: loftq, olora and pissa would change the base"),
        when="lora",
    ),
    "use_dora": to("adapter.use_dora", flag, when="lora"),
    "peft_lora_target_modules": to("adapter.targets", words, when="lora"),
    "flux_lora_target": part("flux_target", "`model.adapter.init_args.targets`", when="lora"),
    "peft_lora_mode": refused("SingLoRA is not here", "standard"),
    "lycoris_config": part("lycoris", "`model.adapter.init_args` of `LyCORIS`", when="lycoris"),
    "init_lora": to("model.init_from", text),
    "lora_format": idle("both diffusers' and kohya's layouts are written, where the adapter has them"),
    "init_lokr_norm": refused("every adapter starts at exactly the base model"),
    **each(refused("one file is started from: init_from"), "init_lora_step init_lora_ema"),
    **each(
        refused("a second LoRA beside the one that is trained is not here"), "assistant_lora_path slider_lora_target"
    ),
    **each(idle("it belongs to assistant_lora_path"), "assistant_lora_* disable_assistant_lora"),
    "singlora_ramp_up_steps": idle("it belongs to SingLoRA"),
}

LENGTH: dict[str, Rule] = {
    "seed": to("seed_everything", whole),
    "output_dir": to("trainer.default_root_dir", text, default="simpletuner-results"),
    "max_train_steps": part("steps", "`trainer.max_steps`"),
    "num_train_epochs": part("epochs", "`trainer.max_epochs`, where no number of steps is given"),
    "train_batch_size": part("batch", "`data.batch_size`, times `num_processes`", default=4),
    "num_processes": part("devices", "`trainer.devices`"),
    "gradient_accumulation_steps": to("trainer.accumulate_grad_batches", above_zero),
    "max_grad_norm": part("clip", "`trainer.gradient_clip_val`", default=2.0),
    "grad_clip_method": part("clip_method", "`trainer.gradient_clip_algorithm`", default="value"),
    "num_machines": to("trainer.num_nodes", above_zero),
    "optimizer": part("optimizer", "`model.optimizer`", default="adamw_bf16"),
    "optimizer_config": part("optimizer_config", "`model.optimizer.init_args`"),
    "learning_rate": part("rate", "`model.optimizer.init_args.lr`", default=4e-7),
    **{f"adam_{name}": part(f"adam_{name}", "`model.optimizer.init_args`") for name in ("beta1", "beta2", "epsilon")},
    "adam_weight_decay": part("adam_weight_decay", "`model.optimizer.init_args.weight_decay`"),
    "optimizer_beta1": part("adam_beta1", "`model.optimizer.init_args.betas`"),
    "optimizer_beta2": part("adam_beta2", "`model.optimizer.init_args.betas`"),
    "lr_scheduler": part("schedule", "`model.lr_scheduler`", default="constant_with_warmup"),
    "lr_warmup_steps": part("warmup", "`model.lr_warmup_steps`"),
    "lr_end": refused("the schedules here end at 0 (polynomial: at 1e-7)", 4e-7, "4e-7"),
    "lr_power": refused("the polynomial schedule here has the power 1", 1, 0.8, "0.8", 1.0),
    "lr_num_cycles": refused("one cycle is made", 1, "1"),
    **each(refused("set the learning rate that comes out of it"), "lr_scale lr_scale_sqrt"),
    "resume_from_checkpoint": idle("said where it is resumed: dreamlit fit --config run.yaml --ckpt_path auto"),
    "checkpoint_step_interval": to("checkpoint.every_n_steps", above_zero, default=500),
    "checkpointing_steps": to("checkpoint.every_n_steps", above_zero),
    "checkpoints_total_limit": to("checkpoint.keep", whole, default=5),
    "checkpoint_epoch_interval": refused("checkpoints are counted in steps: checkpoint.every_n_steps"),
    "checkpointing_rolling_steps": refused("there is one kind of checkpoint: lower checkpoint.every_n_steps"),
    "vae_batch_size": to("data.encode_batch_size", above_zero),
    "aspect_bucket_alignment": part("alignment", "`data.aspect_bucket_alignment`"),
    "dynamo_backend": to("family.compile", lambda value: str(value).lower() not in ("no", "none", "")),
}

LOSS: dict[str, Rule] = {
    "loss_type": part("loss", "`model.objective.loss`"),
    "huber_schedule": part("huber_schedule", "`model.objective.huber_schedule`, where the loss is not l2"),
    "huber_c": part("huber_c", "`model.objective.huber_c`, where the loss is not l2"),
    "snr_gamma": part("snr_gamma", "`model.objective.snr_gamma`, with `weighting: min_snr`", when="diffusion"),
    "offset_noise": part("offset", "`model.objective.offset_noise`", when="diffusion"),
    "noise_offset": part("offset_strength", "`model.objective.offset_noise`", when="diffusion"),
    "noise_offset_probability": part(
        "offset_share", "said where it matters: here all samples get it", when="diffusion"
    ),
    "input_perturbation": to("objective.input_perturbation", number),
    "input_perturbation_steps": refused("the perturbation stays as strong as it is"),
    "timestep_bias_strategy": part("bias", "`model.objective.timestep_bias`", when="diffusion"),
    "timestep_bias_multiplier": part("bias_strength", "`model.objective.timestep_bias_strength`", when="diffusion"),
    **each(
        idle("the favour for one end is log-linear here"), "timestep_bias_portion timestep_bias_begin timestep_bias_end"
    ),
    "flow_sigmoid_scale": part("sigmoid", "`model.objective.logit_std`", default=1.0, when="flow"),
    "flow_use_uniform_schedule": part("uniform", "`model.objective.timestep_density: uniform`", when="flow"),
    "flow_use_beta_schedule": part("beta", "`model.objective.timestep_density: beta`", when="flow"),
    "flow_beta_schedule_alpha": part("beta_alpha", "`model.objective.beta_alpha`", when="flow"),
    "flow_beta_schedule_beta": part("beta_beta", "`model.objective.beta_beta`", when="flow"),
    **each(
        refused("there is logit_normal, mode, beta or uniform: model.objective.timestep_density"),
        "flow_cubic_schedule_weights flow_custom_timesteps flux_fast_schedule",
    ),
    "snr_weight": refused("the loss is weighted by noise level alone: model.objective.weighting", 1, 1.0, "1.0"),
    "masked_loss_probability": refused(
        "a mask counts in every step; model.objective.unmasked_weight softens it", 1, 1.0
    ),
    "use_soft_min_snr": refused("there too it is given to no loss; weighting: min_snr is near"),
    "soft_min_snr_sigma_data": idle("it belongs to use_soft_min_snr"),
    "caption_dropout_probability": part("dropout", "each dataset's `caption_dropout`", default=0.1),
}

RULES: dict[str, Rule] = {**MODEL, **ADAPTER, **LENGTH, **LOSS}
