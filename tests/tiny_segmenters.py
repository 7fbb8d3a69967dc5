"""Tiny CLIPSeg, Grounding DINO, SAM and foreground folders with random weights, in the transformers layout."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch

import tiny

SIDE = 32


def saved(model: Any, folder: pathlib.Path, processor: dict[str, Any], spread: float = 0.2) -> pathlib.Path:
    """Writes a model, its weights stirred so that pictures differ, and its preprocessor_config.json."""
    with torch.no_grad():  # transformers starts so small that all pictures look alike
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def make_clipseg(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    import transformers

    script = tiny.script("tiny_parts")
    vocab = script.write_tokenizer(folder, script.END)
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": vocab[script.START], "eos_token_id": vocab[script.END]}
    text = {"vocab_size": len(vocab), "max_position_embeddings": 77, **width, **ends}
    config = transformers.CLIPSegConfig(
        text_config=text,
        vision_config={**width, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[0, 1],
        conditional_layer=0,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    torch.manual_seed(seed)
    model = transformers.CLIPSegForImageSegmentation(config)
    sizes = {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2}
    return saved(model, folder, {"image_processor_type": "ViTImageProcessor", **sizes, "do_normalize": True})


def make_bert_tokenizer(folder: pathlib.Path) -> int:
    """A WordPiece vocabulary of the tiny words, letters and the full stop; returns its size."""
    words = tiny.script("tiny_parts").WORDS.split()
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = list(dict.fromkeys([*special, ".", *letters, *(f"##{letter}" for letter in letters), *words]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return len(vocab)


def make_grounding_dino(folder: pathlib.Path) -> pathlib.Path:
    import transformers

    size = make_bert_tokenizer(folder)
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    swin: Any = transformers.SwinConfig  # its parent classes hide out_indices from type checkers
    backbone = swin(
        image_size=SIDE, patch_size=2, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 1], window_size=4,
        out_indices=[1, 2, 3],
    )  # fmt: skip
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone,
        text_config={"model_type": "bert", "vocab_size": size, "max_position_embeddings": 64, **width},
        d_model=32,
        num_queries=6,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_n_points=1,
        decoder_n_points=1,
        num_feature_levels=3,
        max_text_len=32,
    )
    torch.manual_seed(1)
    sizes = {"do_resize": True, "size": {"shortest_edge": SIDE, "longest_edge": 2 * SIDE}, "do_pad": True}
    processor = {"image_processor_type": "GroundingDinoImageProcessor", "do_normalize": True, **sizes}
    return saved(transformers.GroundingDinoForObjectDetection(config), folder, processor, spread=0.05)


def make_sam(folder: pathlib.Path) -> pathlib.Path:
    import transformers

    sides = {"image_size": SIDE, "patch_size": 8}
    vision = {
        **sides, "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "mlp_dim": 16, "window_size": 2, "global_attn_indexes": [0], "num_pos_feats": 8,
    }  # fmt: skip
    prompts = {**sides, "hidden_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config={**decoder, "iou_head_hidden_dim": 16}
    )
    torch.manual_seed(2)
    pads = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    lows = {"mask_size": {"longest_edge": SIDE // 2}, "mask_pad_size": {"height": SIDE // 2, "width": SIDE // 2}}
    processor = {"image_processor_type": "SamImageProcessor", "do_pad": True, "do_normalize": True, **pads, **lows}
    return saved(transformers.SamModel(config), folder, processor, spread=0.3)


def make_foreground(folder: pathlib.Path, names: tuple[str, ...] = ("background", "foreground")) -> pathlib.Path:
    """A SegFormer with a class for each name."""
    import transformers

    config = transformers.SegformerConfig(
        depths=[1, 1], hidden_sizes=[8, 16], num_attention_heads=[1, 2], num_encoder_blocks=2, sr_ratios=[2, 1],
        patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=8,
        id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)},
    )  # fmt: skip
    torch.manual_seed(3)
    sizes = {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "do_normalize": True}
    processor = {"image_processor_type": "SegformerImageProcessor", **sizes}
    return saved(transformers.SegformerForSemanticSegmentation(config), folder, processor)
