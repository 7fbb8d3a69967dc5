"""The options of kohya's sd-scripts, and what becomes of each. `kohya_run` puts joint ones together."""

from __future__ import annotations

from dreamlit.importing.rules import Rule, above_zero, each, flag, idle, number, part, refused, text, to, whole

SCRIPTS: dict[str, tuple[str, str]] = {
    "train_network.py": ("SD", "lora"),
    "train_db.py": ("SD", "full"),
    "fine_tune.py": ("SD", "full"),
    "sdxl_train_network.py": ("SDXL", "lora"),
    "sdxl_train.py": ("SDXL", "full"),
    "sd3_train_network.py": ("SD3", "lora"),
    "sd3_train.py": ("SD3", "full"),
    "flux_train_network.py": ("Flux", "lora"),
    "flux_train.py": ("Flux", "full"),
    "lumina_train_network.py": ("Lumina2", "lora"),
    "lumina_train.py": ("Lumina2", "full"),
}
"""Scripts -> the family and what is trained."""
HOMES = {
    "Flux": "black-forest-labs/FLUX.1-dev",
    "Chroma": "lodestones/Chroma1-HD",
    "SD3": "stabilityai/stable-diffusion-3.5-medium",
    "Lumina2": "Alpha-VLLM/Lumina-Image-2.0",
}
"""Where encoders and autoencoder of a model are whose transformer is a file."""
SHIFTS = {"Flux": 3.0, "Chroma": 3.0, "SD3": 1.0, "Lumina2": 6.0}
"""How far training is moved toward the noise where nothing says it."""

MODEL: dict[str, Rule] = {
    "pretrained_model_name_or_path": part("model", "`model.family.init_args.path`; of flow models `transformer`"),
    "model_type": part("model_type", "`model.family`: `Flux` or `Chroma`"),
    "vae": to("family.vae", text, when="sd"),
    "v2": idle("the model's own configuration says so"),
    "v_parameterization": part("v_prediction", "`model.family.init_args.prediction_type: v_prediction`"),
    "zero_terminal_snr": to("family.zero_terminal_snr", flag, when="diffusion"),
    "clip_skip": part("clip_skip", "`model.family.init_args.clip_skip`, one less", when="sd"),
    "gradient_checkpointing": to("family.gradient_checkpointing", flag),
    "mixed_precision": part("mixed_precision", "`trainer.precision`, and the family's `dtype`", default="no"),
    "fp8_base": part("fp8", "`model.base_model_precision: fp8-torchao`"),
    "fp8_base_unet": part("fp8", "`model.base_model_precision: fp8-torchao`"),
    "torch_compile": to("family.compile", flag),
    "discrete_flow_shift": part("shift", "`model.family.init_args.shift`", when="flow"),
    "training_shift": part("shift", "`model.family.init_args.shift`", when="flow"),
    "timestep_sampling": part("sampling", "`model.objective.timestep_density`, `shift`", when="flow"),
    "sigmoid_scale": part("sigmoid", "`model.objective.logit_std`", when="flow"),
    "weighting_scheme": part("scheme", "`model.objective.timestep_density`", when="flow"),
    "logit_mean": part("logit_mean", "`model.objective.logit_mean`", when="flow"),
    "logit_std": part("logit_std", "`model.objective.logit_std`", when="flow"),
    "mode_scale": part("mode_scale", "`model.objective.mode_scale`", when="flow"),
    "guidance_scale": to("family.guidance", number, default=3.5, when="flux"),
    "model_prediction_type": part("prediction", "always `raw`: the velocity's error, each sigma alike", when="flow"),
    "network_module": part("module", "`model.adapter`"),
    "network_dim": part("dim", "`model.adapter.init_args.rank`"),
    "network_alpha": part("alpha", "`model.adapter.init_args.alpha`", default=1),
    "network_dropout": to("adapter.dropout", number, when="lora"),
    "network_args": part("network_args", "`model.adapter.init_args`"),
    "network_weights": to("model.init_from", text),
    "base_weights": refused("merge them into the model first"),
    "scale_weight_norms": refused("norms are not limited; a lower learning rate or alpha holds them"),
    **each(
        idle("it belongs to another option, or the adapter's file says it"), "dim_from_weights base_weights_multiplier"
    ),
}
LENGTH: dict[str, Rule] = {
    "seed": to("seed_everything", whole),
    "output_dir": part("output", "`trainer.default_root_dir`, with `output_name` behind it"),
    "output_name": part("name", "`trainer.default_root_dir`"),
    "max_train_steps": part("steps", "`trainer.max_steps`", default=1600),
    "max_train_epochs": part("epochs", "`trainer.max_epochs`, before a number of steps"),
    "train_batch_size": part("batch", "`data.batch_size`, times the number of processes"),
    "gradient_accumulation_steps": to("trainer.accumulate_grad_batches", above_zero),
    "max_grad_norm": part("clip", "`trainer.gradient_clip_val`, by the norm", default=1.0),
    "learning_rate": part("rate", "`model.optimizer.init_args.lr`", default=2e-6),
    "unet_lr": part("unet_rate", "`model.optimizer.init_args.lr`, before `learning_rate`"),
    "optimizer_type": part("optimizer", "`model.optimizer`", default="AdamW"),
    "use_8bit_adam": part("eight_bit", "`model.optimizer: bitsandbytes.optim.AdamW8bit`"),
    "use_lion_optimizer": refused("name an optimizer: optimizer_type"),
    "optimizer_args": part("optimizer_args", "`model.optimizer.init_args`"),
    "lr_scheduler": part("schedule", "`model.lr_scheduler`"),
    "lr_warmup_steps": part("warmup", "`model.lr_warmup_steps`; below 1 it is a share of the steps"),
    "lr_scheduler_num_cycles": refused("one cycle is made", 1, "1"),
    "lr_scheduler_power": refused("the polynomial schedule here has the power 1", 1, 1.0, "1"),
    **each(refused("the schedules are those of lr_scheduler"), "lr_scheduler_type lr_scheduler_args lr_decay_steps"),
    **each(idle("it belongs to a schedule that is not here"), "lr_scheduler_timescale lr_scheduler_min_lr_ratio"),
    "save_every_n_steps": to("checkpoint.every_n_steps", above_zero),
    "save_every_n_epochs": refused("checkpoints are counted in steps: checkpoint.every_n_steps, 250 without it"),
    "save_last_n_steps": refused("checkpoint.keep is a number of checkpoints, 3 without it"),
    "save_last_n_epochs": to("checkpoint.keep", above_zero),
    "vae_batch_size": to("data.encode_batch_size", above_zero),
    "resume": idle("said where it is resumed: dreamlit fit --config run.yaml --ckpt_path auto"),
}
LOSS: dict[str, Rule] = {
    "loss_type": part("loss", "`model.objective.loss`"),
    "huber_schedule": part("huber_schedule", "`model.objective.huber_schedule`, where the loss is not l2"),
    "huber_c": part("huber_c", "`model.objective.huber_c`, where the loss is not l2"),
    "huber_scale": refused("huber_c says the size alone", 1, 1.0),
    "min_snr_gamma": part("snr_gamma", "`model.objective.snr_gamma`, with `weighting: min_snr`", when="diffusion"),
    "debiased_estimation_loss": part("debiased", "`model.objective.weighting: debiased`", when="diffusion"),
    "noise_offset": to("objective.offset_noise", number, when="diffusion"),
    "ip_noise_gamma": to("objective.input_perturbation", number),
    "min_timestep": part("first", "`model.objective.timestep_range`, as a share"),
    "max_timestep": part("last", "`model.objective.timestep_range`, as a share"),
    "prior_loss_weight": part("prior", "`model.objective.prior_loss_weight`, with `prior_target: data`"),
    "masked_loss": idle("masks count where a dataset has them: conditioning_data, or alpha: mask"),
    **each(
        refused("other noise than offset_noise and input_perturbation is not here"),
        "multires_noise_iterations perlin_noise adaptive_noise_scale noise_offset_random_strength "
        "ip_noise_gamma_random_strength",
    ),
    "multires_noise_discount": idle("it belongs to multires_noise_iterations"),
    **each(
        refused("weights by noise level are min_snr and debiased"), "scale_v_pred_loss_like_noise_pred v_pred_like_loss"
    ),
}
LOOKING: dict[str, Rule] = {
    "sample_prompts": part("prompts", "`ValidationPreview.prompts`, with sizes, seeds and guidance of its lines"),
    "sample_every_n_steps": to("callbacks.ValidationPreview.every_n_steps", above_zero),
    "sample_every_n_epochs": refused("previews are counted in steps: ValidationPreview.every_n_steps, 250 without it"),
    "sample_at_first": to("callbacks.ValidationPreview.at_start", flag),
    "sample_sampler": part("sampler", "`ValidationPreview.sampler`"),
    "validate_every_n_steps": part("eval_steps", "`StableEvaluation.every_n_steps`"),
    "validate_every_n_epochs": part("eval_epochs", "`StableEvaluation.every_n_epochs`"),
    "validation_split": part("hold_out", "`data.hold_out`"),
    **each(idle("held-out photos are measured on a fixed grid"), "max_validation_steps validation_seed"),
    "log_with": part("log_with", "`trainer.logger`"),
    "log_tracker_name": part("project", "`WandbLogger`'s `project`"),
    "wandb_run_name": part("run_name", "`WandbLogger`'s `name`"),
}
REST: dict[str, Rule] = {
    "dataset_config": part("datasets", "`data.datasets`"),
    "config_file": part("config_file", "its options, where the command line has none"),
    "dataset_class": refused("a class of kohya's own cannot be called"),
    "in_json": refused("metadata files are not read: captions as .txt files, or caption_strategy jsonl"),
    "network_train_unet_only": part("unet_only", "as it is here in any case"),
    **each(
        refused("text encoders are not trained"),
        "network_train_text_encoder_only text_encoder_lr train_text_encoder learning_rate_te learning_rate_te1 "
        "learning_rate_te2 learning_rate_te3 train_t5xxl",
    ),
    "stop_text_encoder_training": idle("text encoders are not trained"),
    "num_last_block_to_freeze": refused("targets of LoRA name what is trained"),
    "controlnet_model_name_or_path": refused("ControlNets are not trained"),
    "block_lr": refused("one learning rate is for all"),
    **each(
        refused("weights are not swapped; base_model_precision stores them in few bits"),
        "blocks_to_swap double_blocks_to_swap single_blocks_to_swap cpu_offload_checkpointing",
    ),
    **each(refused("the weights that are trained are float32"), "full_fp16 full_bf16"),
    "deepspeed": refused("adapters are replicated: ddp"),
    "weighted_captions": refused("captions are read as they are"),
    **each(
        refused("encoders drop no captions of their own: caption_dropout"), "clip_l_dropout_rate clip_g_dropout_rate"
    ),
    "t5_dropout_rate": refused("encoders drop no captions of their own: caption_dropout"),
    "pos_emb_random_crop_rate": refused("positions are those of the pipeline"),
    **each(refused("nothing is uploaded: the exported files are in the run's folder"), "huggingface_repo_id"),
    **each(
        idle("encoders and autoencoder come with the diffusers folder that stands as path"),
        "clip_l clip_g t5xxl ae gemma2 t5xxl_device t5xxl_dtype disable_mmap_load_safetensors",
    ),
    **each(
        idle("texts are read as the pipeline reads them"),
        "max_token_length *_max_token_length apply_*_attn_mask tokenizer_cache_dir no_token_padding system_prompt",
    ),
    **each(
        idle("latents and texts are always cached, found by content"),
        "cache_latents* cache_text_encoder_outputs* text_encoder_batch_size skip_cache_check "
        "skip_latents_validity_check use_t5xxl_cache_only cache_info",
    ),
    **each(
        idle("it is about how sd-scripts computes, not what"),
        "xformers sdpa mem_eff_attn diffusers_xformers use_flash_attn use_sage_attn lowram highvram no_half_vae "
        "max_data_loader_n_workers persistent_data_loader_workers dynamo_* ddp_* fused_* zero_* zero3_* offload_* "
        "fp16_master_weights_and_gradients split_mode sample_batch_size optimizer_schedulefree_wrapper "
        "schedulefree_wrapper_args bucket_selection_mode mem_eff_save blockwise_fused_optimizers "
        "enable_scaled_pos_embed",
    ),
    **each(
        idle("files are safetensors, in the layouts of diffusers and kohya, and checkpoints resume exactly"),
        "save_model_as save_precision use_safetensors save_state* save_last_n_*_state save_n_epoch_ratio no_metadata "
        "training_comment metadata_* skip_until_initial_step initial_epoch initial_step save_clip save_t5xxl",
    ),
    **each(
        idle("it is about logs, uploads or a rehearsal"),
        "logging_dir log_prefix log_config log_tracker_config wandb_api_key huggingface_* async_upload "
        "resume_from_huggingface save_state_to_huggingface output_config debug_dataset console_* support_*",
    ),
}
RULES: dict[str, Rule] = {**MODEL, **LENGTH, **LOSS, **LOOKING, **REST}

NETWORK: dict[str, Rule] = {
    "algo": part("algo", "`algo` of `LyCORIS`"),
    "preset": part("preset", "`preset` of `LyCORIS`"),
    "conv_dim": part("conv_dim", "`conv_rank` of `LyCORIS`, whose `locon` is the same"),
    "conv_alpha": part("conv_alpha", "`conv_alpha`"),
    "factor": to("adapter.factor", whole, when="lycoris"),
    "decompose_both": to("adapter.decompose_both", flag, when="lycoris"),
    "full_matrix": to("adapter.full_matrix", flag, when="lycoris"),
    "use_tucker": to("adapter.use_tucker", flag, when="lycoris"),
    "dropout": to("adapter.dropout", number),
    "rank_dropout": to("adapter.rank_dropout", number, when="lycoris"),
    "module_dropout": to("adapter.module_dropout", number, when="lycoris"),
    "dora_wd": refused("the class LoRA has use_dora"),
    **each(
        refused("ranks and rates by block are not here: rank_pattern of LoRA"), "block_* down_lr_weight mid_lr_weight"
    ),
    "up_lr_weight": refused("ranks and rates by block are not here: rank_pattern of LoRA"),
    **each(refused("targets or rank_pattern of LoRA name what is trained"), "train_blocks train_*_block_indices *_dim"),
    **each(refused("LoRA+ is not here: one learning rate is for all"), "loraplus_*"),
    **each(idle("how the update is computed is no option"), "bypass_mode rescaled constraint split_qkv train_norm"),
    "train_t5xxl": refused("text encoders are not trained"),
    "verbose": idle("it only prints"),
}
"""Keywords of network_args."""
