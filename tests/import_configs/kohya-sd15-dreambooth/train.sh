accelerate launch train_db.py --pretrained_model_name_or_path=runwayml/stable-diffusion-v1-5 \
  --train_data_dir=train --reg_data_dir=reg --output_dir=out --output_name=db --resolution=512,512 \
  --prior_loss_weight=0.8 --train_batch_size=2 --learning_rate=1e-6 --max_train_steps=400 --use_8bit_adam \
  --mixed_precision=fp16 --save_precision=fp16 --clip_skip=2 --enable_bucket --stop_text_encoder_training=-1 \
  --lr_warmup_steps=0.1 --lr_scheduler=linear --sample_prompts=prompts.txt --sample_every_n_steps=200
