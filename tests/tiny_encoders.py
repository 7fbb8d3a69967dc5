"""Tiny CLIP and DINO folders with random weights, in the transformers layout."""

import pathlib

import torch

import tiny

SIDE = 32
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}


def make_clip(folder: pathlib.Path) -> pathlib.Path:
    import transformers

    script = tiny.script("tiny_parts")
    vocab = script.write_tokenizer(folder, script.END)
    ends = {"bos_token_id": vocab[script.START], "eos_token_id": vocab[script.END]}
    text = {"vocab_size": len(vocab), "max_position_embeddings": 77, **ends}
    text |= {name: VISION[name] for name in VISION if name not in ("image_size", "patch_size")}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return saved(transformers.CLIPModel, config, folder)


def saved(kind, config, folder: pathlib.Path, **options) -> pathlib.Path:
    torch.manual_seed(0)
    model = kind(config, **options)
    with torch.no_grad():  # transformers starts so small that all pictures look alike
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def make_dino(name: str, folder: pathlib.Path) -> pathlib.Path:
    import transformers

    kind = getattr(transformers, f"{name}Model")
    options = {"add_pooling_layer": False} if name == "ViT" else {}
    return saved(kind, getattr(transformers, f"{name}Config")(**VISION), folder, **options)
