accelerate launch --mixed_precision bf16 --num_cpu_threads_per_process 1 flux_train_network.py ^
  --pretrained_model_name_or_path flux1-dev.safetensors --clip_l clip_l.safetensors --t5xxl t5xxl_fp16.safetensors ^
  --ae ae.safetensors --dataset_config dataset.toml --output_dir out --output_name rex-flux ^
  --network_module networks.lora_flux --network_dim 4 --network_alpha 1 --learning_rate 1e-4 ^
  --network_train_unet_only --optimizer_type AdamW --lr_scheduler constant --sdpa --max_train_steps 300 ^
  --save_every_n_epochs 1 --mixed_precision bf16 --gradient_checkpointing --guidance_scale 1.0 ^
  --timestep_sampling shift --discrete_flow_shift 3.1582 --model_prediction_type raw --blocks_to_swap 18 ^
  --masked_loss --cache_latents_to_disk --cache_text_encoder_outputs --fp8_base --seed 42
