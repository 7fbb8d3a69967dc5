"""Tensors of transformers under the names of their original releases, as those files have them."""

from __future__ import annotations

import re
from typing import Any

import torch

SWAPPED = ("norm_out.linear",)
"""Modulations whose halves, shift and scale, stand the other way round in the original layout."""

SD3 = {
    r"pos_embed\.pos_embed": "pos_embed",
    r"pos_embed\.proj": "x_embedder.proj",
    r"time_text_embed\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r"time_text_embed\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r"time_text_embed\.text_embedder\.linear_1": "y_embedder.mlp.0",
    r"time_text_embed\.text_embedder\.linear_2": "y_embedder.mlp.2",
    r"context_embedder": "context_embedder",
    r"norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"proj_out": "final_layer.linear",
    r"transformer_blocks\.(\d+)\.norm1\.linear": r"joint_blocks.\1.x_block.adaLN_modulation.1",
    r"transformer_blocks\.(\d+)\.norm1_context\.linear": r"joint_blocks.\1.context_block.adaLN_modulation.1",
    r"transformer_blocks\.(\d+)\.(attn2?)\.to_([qkv])": r"joint_blocks.\1.x_block.\2.qkv|\3",
    r"transformer_blocks\.(\d+)\.attn\.add_([qkv])_proj": r"joint_blocks.\1.context_block.attn.qkv|\2",
    r"transformer_blocks\.(\d+)\.(attn2?)\.norm_([qk])": r"joint_blocks.\1.x_block.\2.ln_\3",
    r"transformer_blocks\.(\d+)\.attn\.norm_added_([qk])": r"joint_blocks.\1.context_block.attn.ln_\2",
    r"transformer_blocks\.(\d+)\.(attn2?)\.to_out\.0": r"joint_blocks.\1.x_block.\2.proj",
    r"transformer_blocks\.(\d+)\.attn\.to_add_out": r"joint_blocks.\1.context_block.attn.proj",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": r"joint_blocks.\1.x_block.mlp.fc1",
    r"transformer_blocks\.(\d+)\.ff\.net\.2": r"joint_blocks.\1.x_block.mlp.fc2",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj": r"joint_blocks.\1.context_block.mlp.fc1",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.2": r"joint_blocks.\1.context_block.mlp.fc2",
}
FLUX = {
    r"time_text_embed\.timestep_embedder\.linear_1": "time_in.in_layer",
    r"time_text_embed\.timestep_embedder\.linear_2": "time_in.out_layer",
    r"time_text_embed\.text_embedder\.linear_1": "vector_in.in_layer",
    r"time_text_embed\.text_embedder\.linear_2": "vector_in.out_layer",
    r"time_text_embed\.guidance_embedder\.linear_1": "guidance_in.in_layer",
    r"time_text_embed\.guidance_embedder\.linear_2": "guidance_in.out_layer",
    r"context_embedder": "txt_in",
    r"x_embedder": "img_in",
    r"norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"proj_out": "final_layer.linear",
    r"transformer_blocks\.(\d+)\.norm1\.linear": r"double_blocks.\1.img_mod.lin",
    r"transformer_blocks\.(\d+)\.norm1_context\.linear": r"double_blocks.\1.txt_mod.lin",
    r"transformer_blocks\.(\d+)\.attn\.to_([qkv])": r"double_blocks.\1.img_attn.qkv|\2",
    r"transformer_blocks\.(\d+)\.attn\.add_([qkv])_proj": r"double_blocks.\1.txt_attn.qkv|\2",
    r"transformer_blocks\.(\d+)\.attn\.norm_q": r"double_blocks.\1.img_attn.norm.query_norm#",
    r"transformer_blocks\.(\d+)\.attn\.norm_k": r"double_blocks.\1.img_attn.norm.key_norm#",
    r"transformer_blocks\.(\d+)\.attn\.norm_added_q": r"double_blocks.\1.txt_attn.norm.query_norm#",
    r"transformer_blocks\.(\d+)\.attn\.norm_added_k": r"double_blocks.\1.txt_attn.norm.key_norm#",
    r"transformer_blocks\.(\d+)\.attn\.to_out\.0": r"double_blocks.\1.img_attn.proj",
    r"transformer_blocks\.(\d+)\.attn\.to_add_out": r"double_blocks.\1.txt_attn.proj",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": r"double_blocks.\1.img_mlp.0",
    r"transformer_blocks\.(\d+)\.ff\.net\.2": r"double_blocks.\1.img_mlp.2",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj": r"double_blocks.\1.txt_mlp.0",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.2": r"double_blocks.\1.txt_mlp.2",
    r"single_transformer_blocks\.(\d+)\.norm\.linear": r"single_blocks.\1.modulation.lin",
    r"single_transformer_blocks\.(\d+)\.attn\.to_([qkv])": r"single_blocks.\1.linear1|\2",
    r"single_transformer_blocks\.(\d+)\.proj_mlp": r"single_blocks.\1.linear1|w",
    r"single_transformer_blocks\.(\d+)\.attn\.norm_q": r"single_blocks.\1.norm.query_norm#",
    r"single_transformer_blocks\.(\d+)\.attn\.norm_k": r"single_blocks.\1.norm.key_norm#",
    r"single_transformer_blocks\.(\d+)\.proj_out": r"single_blocks.\1.linear2",
}
CHROMA = {
    **FLUX,
    r"distilled_guidance_layer\.(in_proj|out_proj)": r"distilled_guidance_layer.\1",
    r"distilled_guidance_layer\.layers\.(\d+)\.linear_1": r"distilled_guidance_layer.layers.\1.in_layer",
    r"distilled_guidance_layer\.layers\.(\d+)\.linear_2": r"distilled_guidance_layer.layers.\1.out_layer",
    r"distilled_guidance_layer\.norms\.(\d+)": r"distilled_guidance_layer.norms.\1#",
}
KLEIN = {
    **FLUX,
    r"time_guidance_embed\.timestep_embedder\.linear_1": "time_in.in_layer",
    r"time_guidance_embed\.timestep_embedder\.linear_2": "time_in.out_layer",
    r"(double_stream_modulation_img|double_stream_modulation_txt|single_stream_modulation)\.linear": r"\1.lin",
    r"transformer_blocks\.(\d+)\.ff\.linear_in": r"double_blocks.\1.img_mlp.0",
    r"transformer_blocks\.(\d+)\.ff\.linear_out": r"double_blocks.\1.img_mlp.2",
    r"transformer_blocks\.(\d+)\.ff_context\.linear_in": r"double_blocks.\1.txt_mlp.0",
    r"transformer_blocks\.(\d+)\.ff_context\.linear_out": r"double_blocks.\1.txt_mlp.2",
    r"single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj": r"single_blocks.\1.linear1",
    r"single_transformer_blocks\.(\d+)\.attn\.to_out": r"single_blocks.\1.linear2",
}
AURAFLOW = {
    "register_tokens": "register_tokens",
    r"time_step_proj\.linear_1": "t_embedder.mlp.0",
    r"time_step_proj\.linear_2": "t_embedder.mlp.2",
    "context_embedder": "cond_seq_linear",
    r"pos_embed\.pos_embed": "positional_encoding",
    r"pos_embed\.proj": "init_x_linear",
    r"norm_out\.linear": "modF.1",
    "proj_out": "final_linear",
    r"joint_transformer_blocks\.(\d+)\.ff\.linear_([12])": r"double_layers.\1.mlpX.c_fc\2",
    r"joint_transformer_blocks\.(\d+)\.ff\.out_projection": r"double_layers.\1.mlpX.c_proj",
    r"joint_transformer_blocks\.(\d+)\.ff_context\.linear_([12])": r"double_layers.\1.mlpC.c_fc\2",
    r"joint_transformer_blocks\.(\d+)\.ff_context\.out_projection": r"double_layers.\1.mlpC.c_proj",
    r"joint_transformer_blocks\.(\d+)\.norm1\.linear": r"double_layers.\1.modX.1",
    r"joint_transformer_blocks\.(\d+)\.norm1_context\.linear": r"double_layers.\1.modC.1",
    r"joint_transformer_blocks\.(\d+)\.attn\.to_([qkv])": r"double_layers.\1.attn.w2\2",
    r"joint_transformer_blocks\.(\d+)\.attn\.to_out\.0": r"double_layers.\1.attn.w2o",
    r"joint_transformer_blocks\.(\d+)\.attn\.add_([qkv])_proj": r"double_layers.\1.attn.w1\2",
    r"joint_transformer_blocks\.(\d+)\.attn\.to_add_out": r"double_layers.\1.attn.w1o",
    r"single_transformer_blocks\.(\d+)\.ff\.linear_([12])": r"single_layers.\1.mlp.c_fc\2",
    r"single_transformer_blocks\.(\d+)\.ff\.out_projection": r"single_layers.\1.mlp.c_proj",
    r"single_transformer_blocks\.(\d+)\.norm1\.linear": r"single_layers.\1.modCX.1",
    r"single_transformer_blocks\.(\d+)\.attn\.to_([qkv])": r"single_layers.\1.attn.w1\2",
    r"single_transformer_blocks\.(\d+)\.attn\.to_out\.0": r"single_layers.\1.attn.w1o",
}
LUMINA2 = {
    "x_embedder": "x_embedder",
    r"time_caption_embed\.caption_embedder\.(\d)": r"cap_embedder.\1",
    r"time_caption_embed\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r"time_caption_embed\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r"norm_out\.linear_1": "final_layer.adaLN_modulation.1",
    r"norm_out\.linear_2": "final_layer.linear",
    r"(.*)\.attn\.to_([qkv])": r"\1.attention.qkv|\2",
    r"(.*)\.attn\.to_out\.0": r"\1.attention.out",
    r"(.*)\.attn\.norm_([qk])": r"\1.attention.\2_norm",
    r"(.*)\.feed_forward\.linear_([123])": r"\1.feed_forward.w\2",
    r"(.*)\.norm1\.linear": r"\1.adaLN_modulation.1",
    r"(.*)\.norm1\.norm": r"\1.attention_norm1",
    r"(context_refiner\..*)\.norm1": r"\1.attention_norm1",
    r"(.*)\.norm2": r"\1.attention_norm2",
    r"(.*)\.(ffn_norm[12])": r"\1.\2",
}
Z_IMAGE = {
    r"all_final_layer\.2-1\.(.*)": r"final_layer.\1",
    r"all_x_embedder\.2-1": "x_embedder",
    r"(.*)\.attention\.to_([qkv])": r"\1.attention.qkv|\2",
    r"(.*)\.attention\.to_out\.0": r"\1.attention.out",
    r"(.*)\.attention\.norm_([qk])": r"\1.attention.\2_norm",
    r"((?!.*\.attention\.(to_|norm_)|all_).*)": r"\1",
}


def original(names: dict[str, str], state: dict[str, Any]) -> dict[str, Any]:
    """A transformer's `state` in its original layout. `|q` marks a part of a joined tensor, `#` one called scale."""
    joined: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Any] = {}
    blocks = [int(found[1]) for key in state if (found := re.match(r"transformer_blocks\.(\d+)\.", key))]
    swapped = (*SWAPPED, f"transformer_blocks.{max(blocks, default=0)}.norm1_context.linear" if names is SD3 else "-")
    for key, value in state.items():
        module, _, end = key.rpartition(".") if key.endswith((".weight", ".bias")) else (key, "", "")
        (name,) = {found.expand(to) for ours, to in names.items() if (found := re.fullmatch(ours, module))}
        if module in swapped:
            value = torch.cat(value.chunk(2)[::-1])
        name, _, part = name.partition("|")
        whole = f"{name.removesuffix('#')}.{'scale' if name.endswith('#') else end}" if end else name
        if part:
            joined.setdefault(whole, {})[part] = value
        else:
            tensors[whole] = value
    whole = {name: torch.cat([parts[key] for key in "qkvw" if key in parts]) for name, parts in joined.items()}
    return {**tensors, **whole}
