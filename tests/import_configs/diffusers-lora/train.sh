export MODEL_NAME="runwayml/stable-diffusion-v1-5"
accelerate launch --num_processes=2 train_dreambooth_lora.py \
  --pretrained_model_name_or_path=$MODEL_NAME --instance_data_dir=datasets/rex --output_dir=out/lora \
  --instance_prompt="a photo of sks dog" --resolution=512 --center_crop --train_batch_size=1 \
  --gradient_accumulation_steps=2 --checkpointing_steps=100 --learning_rate=1e-4 --report_to="tensorboard" \
  --lr_scheduler="constant" --lr_warmup_steps=0 --max_train_steps=500 --num_validation_images 2 \
  --validation_prompt="A photo of sks dog in a bucket" --validation_epochs=50 --seed="0"
