"""SimpleTuner's options about averages, rollouts, looking and telling; and those that nothing here needs or has."""

from __future__ import annotations

from dreamlit.importing.rules import Rule, above_zero, each, flag, idle, number, part, refused, text, to

EMA: dict[str, Rule] = {
    "use_ema": part("ema", "`EMA`"),
    "ema_decay": part("ema_decay", "`EMA.decay`"),
    "ema_update_interval": part("ema_interval", "`EMA.update_every_n_steps`"),
    "ema_device": part("ema_device", "`EMA.device`: `cpu`, or `model` for `accelerator`"),
    "ema_validation": part("ema_validation", "`EMA.use_for`, `ValidationPreview.models`"),
    "ema_cpu_only": idle("with device: cpu the average never leaves the CPU"),
    "ema_foreach_disable": idle("how the average is computed is no option"),
    "ema_warmup_steps": refused("the ramp (1 + n) / (10 + n) stands in its place"),
}

ROLLOUT: dict[str, Rule] = {
    "scheduled_sampling_max_step_offset": part("offset_steps", "`ScheduledSampling.max_step_offset`"),
    "scheduled_sampling_probability": part("rollout_p", "`ScheduledSampling.probability`"),
    "scheduled_sampling_prob_start": part("rollout_p_start", "0: the ramp begins there"),
    "scheduled_sampling_prob_end": part("rollout_p_end", "`ScheduledSampling.probability`, with a ramp"),
    "scheduled_sampling_ramp_steps": part("rollout_ramp", "`ScheduledSampling.ramp_steps`"),
    "scheduled_sampling_start_step": part("rollout_start", "`ScheduledSampling.start_step`"),
    "scheduled_sampling_ramp_shape": part("rollout_shape", "`ScheduledSampling.ramp_shape`"),
    "scheduled_sampling_sampler": part("rollout_sampler", "`ScheduledSampling.sampler`"),
    "scheduled_sampling_order": part("rollout_order", "`ScheduledSampling.order`, at most what the sampler has"),
    "scheduled_sampling_strategy": refused(
        "there it says how far samples are rolled out, here which timesteps are; uniform is taken", "uniform"
    ),
    "scheduled_sampling_reflexflow": part("reflex", "on unless it is false, as there", when="flow"),
    "scheduled_sampling_reflexflow_alpha": part(
        "reflex_alpha", "`ScheduledSampling.frequency_compensation`", when="flow"
    ),
    "scheduled_sampling_reflexflow_beta1": part("reflex_beta1", "`ScheduledSampling.anti_drift`", when="flow"),
    "scheduled_sampling_reflexflow_beta2": part("reflex_beta2", "1 alone: it scales the loss itself", when="flow"),
}

LOOKING: dict[str, Rule] = {
    "eval_steps_interval": part("eval_steps", "`StableEvaluation.every_n_steps`"),
    "eval_epoch_interval": part("eval_epochs", "`StableEvaluation.every_n_epochs`, where there are no steps"),
    "eval_timesteps": part("eval_timesteps", "`data.eval_timesteps`"),
    "eval_loss_disable": part("eval_off", "no `StableEvaluation`"),
    "eval_dataset_id": refused("give that dataset dataset_type: eval, or set data.hold_out"),
    "eval_dataset_pooling": idle("loss/val is the mean over all; evaluation.jsonl has every photo's own"),
    "num_eval_images": idle("every photo of the eval datasets is measured"),
    "evaluation_type": part("scores", "`Scores`"),
    "pretrained_evaluation_model_name_or_path": part("clip_model", "`Scores.clip`"),
    "validation_disable": part("preview_off", "no `ValidationPreview`"),
    "validation_prompt": part("prompt", "`ValidationPreview.prompts`"),
    "user_prompt_library": part("library", "`ValidationPreview.prompts`: those of the file"),
    "validation_prompt_library": refused("its prompts are others; library: [objects] or [live] has 25 of DreamBooth's"),
    "validation_negative_prompt": to("callbacks.ValidationPreview.negative_prompt", text, when="guided"),
    "num_validation_images": part("preview_count", "`ValidationPreview.seeds`: so many, from `validation_seed` on"),
    "validation_seed": part("preview_seed", "`ValidationPreview.seeds`"),
    "validation_resolution": part("preview_sizes", "`ValidationPreview.sizes`"),
    "validation_guidance": to("callbacks.ValidationPreview.guidance_scale", number),
    "validation_guidance_rescale": part("preview_rescale", "`ValidationPreview.guidance_rescale`"),
    "validation_num_inference_steps": to("callbacks.ValidationPreview.steps", above_zero),
    "validation_step_interval": to("callbacks.ValidationPreview.every_n_steps", above_zero, default=100),
    "validation_steps": to("callbacks.ValidationPreview.every_n_steps", above_zero),
    "validation_epoch_interval": refused("previews are counted in steps: ValidationPreview.every_n_steps"),
    "validation_on_startup": to("callbacks.ValidationPreview.at_start", flag),
    "disable_benchmark": part("no_base", "`ValidationPreview.models` without `base`"),
    "validation_noise_scheduler": part("preview_sampler", "`ValidationPreview.sampler`"),
    "validation_preview": part("stream", "`ValidationPreview.validation_preview`"),
    "validation_preview_steps": part("stream_steps", "`ValidationPreview.validation_preview_steps`"),
    "webhook_config": part("webhook", "`Webhook`, without its secrets: they go into environment variables"),
    "webhook_reporting_interval": part("webhook_steps", "`Webhook.status_every_n_steps`"),
    "report_to": part("report_to", "`trainer.logger`"),
    "tracker_project_name": part("project", "`WandbLogger`'s `project`"),
    "tracker_run_name": part("run_name", "`WandbLogger`'s `name`"),
    **each(refused("previews begin with the run"), "validate_after_step validate_after_epoch"),
    "validation_randomize": refused("the seeds of a preview are fixed, so that only the weights differ"),
    "validation_guidance_skip_layers": refused("skip-layer guidance is not here"),
    "validation_guidance_skip_*": idle("it belongs to validation_guidance_skip_layers"),
    "validation_using_datasets": idle("what starts from photos is shown on photos of the datasets"),
    "validation_method": refused("previews are made by the run itself", "simpletuner-local"),
    "validation_external_script": refused("listen to a Webhook or the EventLog"),
    **each(refused("a preview shows the run's own weights"), "validation_adapter_path validation_adapter_config"),
    "validation_input": refused("previews start from prompts, or from photos of the datasets"),
    "*_validation_pipeline_mode": refused(
        "`base` or `stage_one` of the family draws by both stages", "trained-stage", "auto"
    ),
}

REST: dict[str, Rule] = {
    # other things to train or to train with
    "train_text_encoder": refused("text encoders are not trained"),
    **each(
        idle("it belongs to train_text_encoder"),
        "text_encoder_lr freeze_encoder_* save_text_encoder text_encoder_limit",
    ),
    **each(refused("ControlNets and control images are not trained"), "controlnet control"),
    "controlnet_*": idle("it belongs to controlnet"),
    "layer_freeze_strategy": refused("name what is trained: model.adapter.init_args.targets"),
    **each(
        refused("this technique is not here"),
        "tread_config diffusion_blocks_config crepa_enabled irepa_enabled urepa_enabled layersync_enabled "
        "nextlat_enabled twinflow_enabled xm_enabled mixflow_enabled diff2flow_enabled internal_guidance_enabled "
        "distillation_method hidream_use_load_balancing_loss flux_attention_masked_training krea2_reference_latents",
    ),
    **each(
        idle("it belongs to a technique that is not here"),
        "crepa_* irepa_* urepa_* layersync_* nextlat_* twinflow_* xm_* mixflow_* diff2flow_* internal_guidance_* "
        "validation_internal_guidance_scale distillation_config hidream_*",
    ),
    **each(
        idle("it is about video, sound or a model that is not here"),
        "ltx* minimax* cosmos* ideogram_* audio_* wan_* krea2_* acestep_* lyrics_* framerate "
        "validation_num_video_frames validation_audio* validation_lyrics validation_ltx2_* max_grounding_entities "
        "pretrained_grounding_model_name_or_path",
    ),
    "pretrained_unet_model_name_or_path": refused("give the whole model as a folder, hub id or single file"),
    **each(
        refused("encoders come with the model"),
        "pretrained_t5_model_name_or_path pretrained_gemma_model_name_or_path qwen_text_encoder_model_name_or_path",
    ),
    "quantization_config": refused("name levels by part: base_model_precision, text_encoder_1_precision ..."),
    "quantize_activations": refused("weights alone are stored in few bits"),
    "gradient_precision": refused("gradients of the trained weights are float32", "unmodified", "fp32"),
    # memory and speed
    **each(
        refused("weights are not swapped; base_model_precision stores them in few bits"),
        "ramtorch enable_group_offload musubi_blocks_to_swap optimizer_cpu_offload_method enable_model_cpu_offload",
    ),
    **each(idle("it belongs to swapped weights"), "ramtorch_* group_offload_* musubi_block_swap_device offload_*"),
    **each(refused("adapters are replicated: ddp"), "fsdp_enable deepspeed_config"),
    "context_parallel_size": refused("an image stays on one device", 1, "1"),
    **each(
        idle("it is about how SimpleTuner computes, not what"),
        "fsdp_* context_parallel_* dynamo_* accelerate_* base_model_default_dtype quantize_via sdnq_* "
        "attention_mechanism sageattention_usage sla_config disable_tf32 allow_tf32 set_grads_to_none "
        "gradient_checkpointing_* vae_enable_* vae_dtype keep_vae_loaded unet_attention_slice fuse_qkv_projections "
        "fused_qkv_projections fuse_optimizer optimizer_release_gradients optimizer_offload_gradients "
        "enable_chunked_feed_forward feed_forward_chunk_size enable_xformers_memory_efficient_attention "
        "accelerator_cache_clear_interval delete_model_after_load fully_unload_text_encoder main_process_ip "
        "main_process_port machine_rank same_network find_unused_parameters multi_gpu local_rank torch_num_threads "
        "max_workers aws_max_pool_connections enable_multiprocessing dataloader_prefetch* *_batch_size "
        "aspect_bucket_worker_count seed_for_each_device validation_torch_compile* validation_multigpu "
        "trust_remote_code training_scheduler_timestep_spacing *_subfolder offload_during_startup "
        "validation_noise_scheduler_config inference_scheduler_timestep_spacing disable_segmented_timestep_sampling",
    ),
    # data
    "resolution": part("resolution", "each dataset's `resolution`, where it has none"),
    "resolution_type": part("resolution_type", "each dataset's `resolution_type`, where it has none"),
    **{
        name: part(name, f"each dataset's `{name}`, where it has none")
        for name in ("minimum_image_size", "maximum_image_size", "target_downsample_size", "caption_strategy")
    },
    "instance_prompt": part("instance_prompt", "each dataset's `instance_prompt`, where it has none"),
    **each(
        idle("each dataset says so of itself"), "prepend_instance_prompt only_instance_prompt disable_multiline_split"
    ),
    "data_backend_config": part("datasets", "`data.datasets`"),
    "data_backend_sampling": refused("datasets are mixed by their repeats and probability, evenly", "auto-weighting"),
    "max_upscale_threshold": refused("set max_upscale of the datasets"),
    **each(
        idle("caches are found by content, dataset folders are only read, and every photo waits for its batch"),
        "cache_dir cache_dir_* aspect_bucket_* text_cache_* text_embed_full_cache vae_cache_* compress_disk_cache "
        "skip_file_discovery preserve_data_backend_cache override_dataset_config metadata_update_interval "
        "delete_unwanted_images delete_problematic_images ignore_missing_files disable_bucket_pruning parquet_* "
        "allow_dataset_oversubscription conditioning_multidataset_sampling tokenizer_max_length ignore_final_epochs "
        "strict_epoch_limit",
    ),
    **each(refused("pictures are not judged"), "enable_nsfw_check delete_nsfw_images"),
    "nsfw_check_*": idle("it belongs to enable_nsfw_check"),
    # publishing and telling
    **each(
        refused("nothing is uploaded: the exported files are in the run's folder"),
        "push_to_hub push_checkpoints_to_hub publishing_config post_checkpoint_script post_upload_script",
    ),
    **each(
        idle("it is about uploading, logs or watching SimpleTuner"),
        "hub_* push_to_hub_background model_card_* modelspec_comment logging_dir custom_tracker tracker_image_layout "
        "merge_environment_config print_* debug_* disk_low_* enable_watermark checkpointing_use_tempdir configs_dir "
        "delete_invalid_checkpoints checkpoints_rolling_total_limit i_know_what_i_am_doing validation_image_* "
        "validation_external_background validation_stitch_input_location validation_seed_source prodigy_steps "
        "validation_disable_unconditional validation_adapter_* validation_lycoris_strength validation_guidance_real "
        "validation_no_cfg_until_timestep flux_guidance_min flux_guidance_max t5_padding "
        "sana_complex_human_instruction sd3_* pixart_validation_* sdxl_refiner_uses_full_range sdxl_validation_* "
        "deepfloyd_validation_* custom_text_encoder_intermediary_layers flow_timesteps_mode accelerate_config",
    ),
}

RULES: dict[str, Rule] = {**EMA, **ROLLOUT, **LOOKING, **REST}

WEBHOOK: dict[str, Rule] = {
    "webhook_type": part("kind", "`Webhook.kind`"),
    **each(idle("put it into the environment variable that url_env names"), "webhook_url callback_url"),
    "auth_token": idle("put it into the environment variable that token_env names, for a bearer header"),
    "log_level": part("level", "`Webhook.level`"),
    "message_prefix": refused("messages say which run they are of"),
    "ssl_no_verify": refused("certificates are checked"),
}
"""Keys of a webhook's own configuration."""
LEVELS = {"critical": "error", "error": "error", "warning": "warning", "info": "info", "debug": "debug"}
SAMPLERS = {"ddim": "ddim", "euler": "euler", "dpm": "dpm", "unipc": "unipc"}
ENV = {
    "resume_checkpoint": "resume_from_checkpoint",
    "dataloader_config": "data_backend_config",
    "training_seed": "seed",
    "accelerate_config_path": "accelerate_config",
    "use_xformers": "enable_xformers_memory_efficient_attention",
    "minimum_resolution": "minimum_image_size",
    "push_checkpoints": "push_checkpoints_to_hub",
    "max_num_steps": "max_train_steps",
    "num_epochs": "num_train_epochs",
    "checkpointing_steps": "checkpoint_step_interval",
    "checkpointing_limit": "checkpoints_total_limit",
    "hub_model_name": "hub_model_id",
    "model_name": "pretrained_model_name_or_path",
    "use_gradient_checkpointing": "gradient_checkpointing",
    "validation_steps": "validation_step_interval",
    "lr_schedule": "lr_scheduler",
    "training_num_processes": "num_processes",
    "training_num_machines": "num_machines",
    "trainer_dynamo_backend": "dynamo_backend",
    "training_dynamo_backend": "dynamo_backend",
}
"""Environment variables, in lower case, whose option has another name."""
