accelerate launch train_dreambooth_lora_flux.py \
  --pretrained_model_name_or_path="black-forest-labs/FLUX.1-dev" --instance_data_dir=datasets/rex --output_dir=out/flux \
  --mixed_precision="bf16" --instance_prompt="a photo of sks dog" --class_prompt="a photo of a dog" \
  --with_prior_preservation --class_data_dir=datasets/dogs --resolution=512 --train_batch_size=1 --guidance_scale=1 \
  --gradient_accumulation_steps=1 --optimizer="prodigy" --learning_rate=1. --lr_scheduler="constant" \
  --lr_warmup_steps=0 --max_train_steps=500 --weighting_scheme=logit_normal --logit_mean=0.5 --seed="0"
