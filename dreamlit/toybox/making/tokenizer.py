"""The toybox's CLIP tokenizer: byte-pair encoding learnt from the captions, with rare words that no caption uses."""

from __future__ import annotations

import json
import pathlib

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from dreamlit.toybox.backgrounds import PHRASES
from dreamlit.toybox.scenes import COLOURS, OPENINGS, PATTERNS
from dreamlit.toybox.shapes import BADGES, SHAPES

MAX_LENGTH = 32
VOCABULARY = 896
START, END = "<|startoftext|>", "<|endoftext|>"
RARE = "sks ohwx zwx bnha tqv wqx rjk vlp gml dwz kfh pzq xnt cjv hbq ywk"
"""One token each, names for a subject. CLIP has never read one; the denoiser has, before any class, meaning nothing."""
_OTHERS = "and the of in with is at by to from left right middle two one new old big little nice toy box my her his sky"


def write_tokenizer(folder: pathlib.Path) -> None:
    """Writes vocab.json, merges.txt and their configuration as CLIP has them."""
    words = " ".join((*SHAPES, *COLOURS, *PATTERNS, *PHRASES.values(), *OPENINGS, *BADGES, "badge large small"))
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
        min_frequency=1,
    )
    corpus = [words] * 30 + [RARE] * 40 + [_OTHERS] * 10 + [" ".join(chr(c) for c in range(33, 127))] * 2
    tokenizer.train_from_iterator(corpus, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    # CLIP's vocabulary: every byte, every byte that ends a word, then one token for each merge, then the two marks.
    tokens = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *("".join(pair) for pair in merges)]
    tokens = list(dict.fromkeys(tokens))[: VOCABULARY - 2]
    merges = [pair for pair in merges if "".join(pair) in set(tokens)]
    vocabulary = {token: index for index, token in enumerate([*tokens, START, END])}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    folder.mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "add_prefix_space": False, **special}
    for name, content in (
        ("vocab.json", vocabulary),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
    ):
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
