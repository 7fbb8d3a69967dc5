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
