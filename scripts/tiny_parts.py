"""Parts of the tiny models that several families share: tokenizers, text encoders, autoencoders."""

from __future__ import annotations

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


def learn_merges(words: Sequence[str], count: int, end: str = "</w>") -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909): at most `count` merges, ties by alphabet."""
    pieces = [[*word[:-1], word[-1] + end] for word in words]
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


def autoencoder(scaling_factor: float, channels: int = 4, **options: Any) -> Any:
    """An AutoencoderKL of stride 8 whose latents have a mean near 0 and a spread near 1 after scaling."""
    import torch

    diffusers = library("diffusers")
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=64,
        scaling_factor=scaling_factor,
        **options,
    )
    with torch.no_grad():
        images = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, scale_factor=8.0, mode="bilinear")
        mean = vae.encode(images).latent_dist.mean
        gain = 1 / (scaling_factor * mean.std())
        last = vae.quant_conv or vae.encoder.conv_out
        last.weight[:channels] *= gain
        last.bias[:channels] = (last.bias[:channels] - mean.mean((0, 2, 3))) * gain
        last.bias[:channels] += vae.config.shift_factor or 0
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


def write_t5_tokenizer(folder: pathlib.Path) -> Any:
    """A T5 tokenizer of the words, and of single letters for all others, as `tokenizer.json`."""
    letters = [chr(code) for code in range(33, 127)]
    words = dict.fromkeys(["\u2581" + word for word in WORDS.split()] + ["\u2581", *letters])
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *((word, -2.0 - (len(word) < 2)) for word in words)]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in range(99, -1, -1)]
    tokenizer = library("transformers").T5Tokenizer(vocab=[*vocab, *sentinels], model_max_length=512)
    tokenizer.save_pretrained(folder)
    return tokenizer


def t5_encoder(tokenizer: Any, width: int = 32, kind: str = "T5") -> Any:
    """A T5 encoder with two layers, gated as those of version 1.1; kind "UMT5" has its own positions in each layer."""
    transformers = library("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        initializer_factor=1.0,
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)
