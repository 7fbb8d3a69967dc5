"""Make a tiny Stable Diffusion or SDXL model with random weights, for tests and dry runs on a CPU.

    python scripts/make_tiny_models.py --family sdxl --output models/tiny-sdxl [--seed 0] [--single-file]

The folder has the layout of a real diffusers model and stock pipelines load it; the pictures are noise. The same seed
gives the same bytes. `--single-file` also writes `<output>.safetensors` in the original (LDM / SGM) key layout.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

WORDS: str = (
    "a an the photo picture of in on with and portrait dog cat person man woman toy backpack sks subject class sitting "
    "standing running beach grass city street snow mountain forest red blue green white black small large old new "
    "painting drawing style close up front side view high quality blurry dark bright light day night water sky"
)
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77


def byte_symbols() -> list[str]:
    """One printable character for each of the 256 bytes, in the order of CLIP's vocabulary (GPT-2's byte alphabet)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len([byte for byte in range(256) if byte not in printable])
    return [chr(code) for code in printable] + [chr(256 + n) for n in range(others)]


def learn_merges(words: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909): at most `count` merges, ties by alphabet."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = collections.Counter(pair for word in pieces for pair in itertools.pairwise(word))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [merged(word, best) for word in pieces]
    return merges


def merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """`word` with every occurrence of `pair` joined."""
    joined: list[str] = []
    for symbol in word:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def write_tokenizer(folder: pathlib.Path, pad: str) -> dict[str, int]:
    """Write vocab.json, merges.txt and their configuration in CLIP's format; return the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").unlink(missing_ok=True)  # one of an earlier run would be read in place of the others
    symbols, merges = byte_symbols(), learn_merges(WORDS.split(), 400)
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in merges), START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "add_prefix_space": False, **special}
    write_json(folder / "vocab.json", vocab)
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return vocab


def library(name: str) -> Any:
    """A heavy library, imported when it is needed, so that `--help` is quick."""
    return importlib.import_module(name)


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def text_encoder(vocab: dict[str, int], width: int, activation: str, projection: bool) -> Any:
    """A CLIP text model with two layers; `projection` gives the class with a projected pooled output."""
    transformers = library("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=width // 16,
        max_position_embeddings=MAX_LENGTH,
        hidden_act=activation,
        bos_token_id=vocab[START],
        eos_token_id=vocab[END],
        pad_token_id=vocab[END],
        # wide enough that different captions give clearly different embeddings
        initializer_factor=2.0,
    )
    name = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    return getattr(transformers, name)(config)


def autoencoder(scaling_factor: float) -> Any:
    """An AutoencoderKL with stride 8 and 4 latent channels whose latents have a spread near 1 after scaling."""
    import torch

    diffusers = library("diffusers")
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )
    with torch.no_grad():
        images = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, scale_factor=8.0, mode="bilinear")
        mean = vae.encode(images).latent_dist.mean
        gain = 1 / (scaling_factor * mean.std())
        vae.quant_conv.weight[:4] *= gain
        vae.quant_conv.bias[:4] = (vae.quant_conv.bias[:4] - mean.mean((0, 2, 3))) * gain
    return vae


def unet(**special: Any) -> Any:
    """A UNet with the real models' structure: two resolutions, self and cross attention, time conditioning."""
    shared: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return library("diffusers").UNet2DConditionModel(**{**shared, **special})


def scheduler(prediction_type: str, zero_terminal_snr: bool) -> Any:
    """The schedule of the real models ("scaled linear"), as their configuration files have it."""
    return library("diffusers").DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
        timestep_spacing="trailing" if zero_terminal_snr else "leading",
        rescale_betas_zero_snr=zero_terminal_snr,
    )


def sd_parts(folder: pathlib.Path, prediction_type: str, zero_terminal_snr: bool) -> dict[str, Any]:
    """SD 1.x for "epsilon" (convolutions around attention, quick GELU), SD 2.x for "v_prediction" (linear, GELU)."""
    second = prediction_type == "v_prediction"
    vocab = write_tokenizer(folder / "tokenizer", pad="!" if second else END)
    return {
        "vae": autoencoder(0.18215),
        "text_encoder": text_encoder(vocab, 32, "gelu" if second else "quick_gelu", projection=False),
        "tokenizer": library("transformers").CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "unet": unet(cross_attention_dim=32, attention_head_dim=(2, 4) if second else 4, use_linear_projection=second),
        "scheduler": scheduler(prediction_type, zero_terminal_snr),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def sdxl_parts(folder: pathlib.Path, prediction_type: str, zero_terminal_snr: bool) -> dict[str, Any]:
    """SDXL: two encoders of different width, size conditioning, attention only at the lower resolution."""
    vocab = write_tokenizer(folder / "tokenizer", pad=END)
    write_tokenizer(folder / "tokenizer_2", pad="!")
    return {
        "vae": autoencoder(0.13025),
        "text_encoder": text_encoder(vocab, 32, "quick_gelu", projection=False),
        "text_encoder_2": text_encoder(vocab, 64, "gelu", projection=True),
        "tokenizer": library("transformers").CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "tokenizer_2": library("transformers").CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        "unet": unet(
            cross_attention_dim=96,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 64,
        ),
        "scheduler": scheduler(prediction_type, zero_terminal_snr),
        "add_watermarker": False,
    }


PARTS = {"sd": ("StableDiffusionPipeline", sd_parts), "sdxl": ("StableDiffusionXLPipeline", sdxl_parts)}


def make(
    family: str,
    output: str | pathlib.Path,
    *,
    seed: int = 0,
    prediction_type: str = "epsilon",
    zero_terminal_snr: bool = False,
    single_file: bool = False,
) -> pathlib.Path:
    """Write a tiny model of `family` ("sd" or "sdxl") as a diffusers folder and return the folder."""
    import torch

    diffusers = library("diffusers")
    folder = pathlib.Path(output)
    name, parts = PARTS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = getattr(diffusers, name)(**parts(folder, prediction_type, zero_terminal_snr))
    pipeline.save_pretrained(folder)
    if single_file:
        write_single_file(pipeline, folder.with_name(folder.name + ".safetensors"))
    return folder


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
    if hasattr(pipeline, "text_encoder_2"):
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(PARTS), required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prediction-type", choices=("epsilon", "v_prediction"), default="epsilon")
    parser.add_argument("--zero-terminal-snr", action="store_true", help="rescale the schedule (arXiv 2305.08891)")
    parser.add_argument("--single-file", action="store_true", help="also write <output>.safetensors")
    options = vars(parser.parse_args(arguments))
    print(make(options.pop("family"), options.pop("output"), **options))


if __name__ == "__main__":
    main()
