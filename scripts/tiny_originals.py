"""Tensors of the tiny models under the names of the original (LDM / SGM) releases, for single files."""

from __future__ import annotations

import pathlib
from typing import Any

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
RESNET |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
UNET_ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
UNET_ENDS |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
UNET_ENDS |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
VAE_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
OPEN_CLIP |= {"self_attn.out_proj": "attn.out_proj"}


def unet_key(key: str, layers: int) -> str:
    """The original (LDM) name of a diffusers UNet tensor; `layers` is the number of resnets per down block."""
    for ours, theirs in UNET_ENDS.items():
        if key.startswith(ours + "."):
            return theirs + key.removeprefix(ours)
    side, *rest = key.split(".")
    if side == "mid_block":
        kind, index, inner = rest[0], int(rest[1]), ".".join(rest[2:])
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{resnet_key(kind, inner)}"
    block, kind, index, inner = int(rest[0]), rest[1], int(rest[2]), ".".join(rest[3:])
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{inner.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{(layers + 1) * block + layers}.UP.{inner}"
    number = (layers + 1) * block + index + (1 if side == "down_blocks" else 0)
    place = "input_blocks" if side == "down_blocks" else "output_blocks"
    return f"{place}.{number}.{int(kind == 'attentions')}.{resnet_key(kind, inner)}"


def resnet_key(kind: str, inner: str) -> str:
    """The original name inside a resnet; transformer blocks have the same names in both layouts."""
    name, _, end = inner.rpartition(".")
    return f"{RESNET[name]}.{end}" if kind == "resnets" else inner


def unet_tensors(unet: Any) -> dict[str, Any]:
    """The UNet's tensors under their original names. An upsampler's place depends on whether attention precedes it."""
    tensors = {unet_key(key, unet.config.layers_per_block): value for key, value in unet.state_dict().items()}
    placed = {}
    for key, value in tensors.items():
        head, found, tail = key.partition(".UP.")
        place = 2 if any(other.startswith(f"{head}.1.") for other in tensors) else 1
        placed[f"{head}.{place}.{tail}" if found else key] = value
    return placed


def vae_tensors(vae: Any) -> dict[str, Any]:
    """The autoencoder's tensors under their original names; its attention is made of 1x1 convolutions there."""
    last = len(vae.config.block_out_channels) - 1
    tensors = {}
    for key, value in vae.state_dict().items():
        words = key.split(".")
        if len(words) > 3 and words[1] in ("down_blocks", "up_blocks"):
            level = int(words[2]) if words[1] == "down_blocks" else last - int(words[2])
            side = words[1].removesuffix("_blocks")
            kind = {"resnets": f"block.{words[4]}"}.get(words[3], f"{side}sample")
            key = ".".join([words[0], side, str(level), kind, *words[5:]])
        elif len(words) > 3 and words[1] == "mid_block" and words[2] == "resnets":
            key = ".".join([words[0], "mid", f"block_{int(words[3]) + 1}", *words[4:]])
        elif len(words) > 3 and words[1] == "mid_block":
            inner = ".".join(words[4:-1])
            key = f"{words[0]}.mid.attn_1.{VAE_ATTENTION[inner]}.{words[-1]}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        tensors[key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")] = value
    return tensors


def clip_tensors(encoder: Any) -> dict[str, Any]:
    """A text encoder under transformers' established names, which all begin with `text_model.`."""
    return {f"text_model.{key.removeprefix('text_model.')}": value for key, value in encoder.state_dict().items()}


def open_clip_tensors(encoder: Any) -> dict[str, Any]:
    """A text encoder under OpenCLIP's names: query, key and value in one tensor, a transposed projection."""
    import torch

    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    tensors = {"token_embedding.weight": state.pop("embeddings.token_embedding.weight")}
    tensors["positional_embedding"] = state.pop("embeddings.position_embedding.weight")
    if "text_projection.weight" in state:
        tensors["text_projection"] = state.pop("text_projection.weight").T.contiguous()
    for end in ("weight", "bias"):
        tensors[f"ln_final.{end}"] = state.pop(f"final_layer_norm.{end}")
        for layer in range(encoder.config.num_hidden_layers):
            head = f"encoder.layers.{layer}.self_attn."
            parts = [state.pop(f"{head}{name}_proj.{end}") for name in "qkv"]
            tensors[f"transformer.resblocks.{layer}.attn.in_proj_{end}"] = torch.cat(parts)
    for key, value in state.items():
        key = key.replace("encoder.layers.", "transformer.resblocks.")
        for ours, theirs in OPEN_CLIP.items():
            key = key.replace(ours, theirs)
        tensors[key] = value
    return tensors


def original_tensors(pipeline: Any) -> dict[str, Any]:
    """All tensors of a pipeline in the layout of the original SD 1.x, SD 2.x and SDXL releases."""
    parts = {"model.diffusion_model.": unet_tensors(pipeline.unet), "first_stage_model.": vae_tensors(pipeline.vae)}
    if pipeline.text_encoder is None:
        parts["conditioner.embedders.0.model."] = open_clip_tensors(pipeline.text_encoder_2)
    elif hasattr(pipeline, "text_encoder_2"):
        parts["conditioner.embedders.0.transformer."] = clip_tensors(pipeline.text_encoder)
        parts["conditioner.embedders.1.model."] = open_clip_tensors(pipeline.text_encoder_2)
    elif pipeline.text_encoder.config.hidden_act == "gelu":
        parts["cond_stage_model.model."] = open_clip_tensors(pipeline.text_encoder)
    else:
        parts["cond_stage_model.transformer."] = clip_tensors(pipeline.text_encoder)
    return {prefix + key: value.contiguous() for prefix, part in parts.items() for key, value in part.items()}


def write_single_file(pipeline: Any, path: pathlib.Path) -> None:
    """Write one `.safetensors` in the original layout."""
    from safetensors.torch import save_file

    save_file(original_tensors(pipeline), path)
