export MODEL_NAME="CompVis/stable-diffusion-v1-4"
export INSTANCE_DIR="datasets/rex"
export CLASS_DIR="datasets/dogs"
export OUTPUT_DIR="out/db"

accelerate launch train_dreambooth.py \
  --pretrained_model_name_or_path=$MODEL_NAME \
  --instance_data_dir=$INSTANCE_DIR --class_data_dir=$CLASS_DIR --output_dir=$OUTPUT_DIR \
  --with_prior_preservation --prior_loss_weight=0.5 \
  --instance_prompt="a photo of sks dog" --class_prompt="a photo of dog" \
  --resolution=512 --train_batch_size=1 --gradient_accumulation_steps=1 --learning_rate=5e-6 \
  --lr_scheduler="constant" --lr_warmup_steps=0 --num_class_images=200 --max_train_steps=800 \
  --use_8bit_adam --set_grads_to_none --train_text_encoder
