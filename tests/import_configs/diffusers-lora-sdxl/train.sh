accelerate launch train_dreambooth_lora_sdxl.py \
  --pretrained_model_name_or_path="stabilityai/stable-diffusion-xl-base-1.0" --instance_data_dir=datasets/rex \
  --pretrained_vae_model_name_or_path="madebyollin/sdxl-vae-fp16-fix" --output_dir="out/sdxl" \
  --mixed_precision="fp16" --instance_prompt="a photo of sks dog" --resolution=1024 --train_batch_size=1 \
  --gradient_accumulation_steps=4 --learning_rate=1e-4 --lr_scheduler="constant" --lr_warmup_steps=0 \
  --max_train_steps=500 --snr_gamma=5.0 --rank=8 --use_dora --repeats=3 --seed="0" --push_to_hub
