"""The command `dreamlit tokens`: rare words for a subject, found in the model's own vocabularies."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """examples:
  dreamlit tokens models/sdxl
  dreamlit tokens models/sdxl --judge sks ohwx dog
"""
NOTES = """rare: share of the words that were merged into the vocabulary before it, which means seen more often.
plain: share of the words whose embedding is larger or farther from the mean of all, which means that it says more.
Score: a third of the first and two of the second, over all vocabularies. Whether a word is a name that you know, only
you can tell."""
EMBEDDINGS = ("token_embedding.weight", "shared.weight", "embed_tokens.weight", "word_embeddings.weight")
"""Ends of the names of tensors that have a row for each token."""
WHOLE_WORD = {"</w>": str.removesuffix, "\u2581": str.removeprefix, "\u0120": str.removeprefix}
"""How vocabularies mark a word by itself (CLIP; sentencepiece; byte pairs), and how to take the mark off."""
GOOD, USABLE = 0.6, 0.45


@dataclasses.dataclass
class Vocabulary:
    """One tokenizer of a model and, where its encoder has them, the embeddings of its tokens."""

    name: str
    tokenizer: Any
    words: dict[str, int]
    """Words of letters that are one token -> its number."""
    rare: dict[str, float]
    plain: dict[str, float]

    def pieces(self, word: str) -> list[str]:
        """The tokens that a word is read as."""
        return self.tokenizer.tokenize(word)

    def score(self, word: str) -> float:
        """From 0 (common and full of meaning) to 1, of a word that is one token."""
        if word not in self.plain:
            return self.rare[word]
        return (self.rare[word] + 2 * self.plain[word]) / 3  # what this model learned, before what others wrote


def main(args: list[str]) -> int:
    """Runs `dreamlit tokens`; returns 0.

    Raises:
        SystemExit: with code 2 for a wrong command line, with 0 for --help.
        DreamlitError: when the model or an option cannot be used.
    """
    parser = argparse.ArgumentParser(
        "dreamlit tokens",
        description="Words that stand for nothing yet: one token in each of the model's vocabularies, rare and plain.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a diffusers folder or a hub id (owner/name)")
    parser.add_argument(
        "--judge", nargs="+", default=[], metavar="WORD", help="say of these words whether they will do"
    )
    parser.add_argument("--count", type=int, default=20, help="words to list (default: %(default)s)")
    parser.add_argument("--shortest", type=int, default=3, help="letters at least (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=5, help="letters at most (default: %(default)s)")
    options = parser.parse_args(args[1:])
    for word in options.judge:
        if not word.strip() or len(word.split()) != 1:
            raise ConfigError(f"--judge {word!r}: give single words")
    if options.count < 1 or not 1 <= options.shortest <= options.longest:
        raise ConfigError("--count must be at least 1, and --shortest at least 1 and at most --longest")
    from dreamlit.quiet import quieten

    quieten()
    vocabularies = read_vocabularies(options.model)
    for word in options.judge:
        print(f"{word}: {verdict(word, vocabularies)}")
    if not options.judge:
        report(ranked(vocabularies, options.shortest, options.longest)[: options.count], vocabularies)
    return 0


def read_vocabularies(model: str) -> list[Vocabulary]:
    """All tokenizers that `model_index.json` names, without those that are absent. Errors: `ModelError`."""
    from dreamlit.families.files import LAYOUT, ModelFiles, hub_folder
    from dreamlit.families.loading import load_config_object

    files = ModelFiles(model)
    if fault := files.fault():
        raise ModelError(fault)
    if files.is_file:
        raise ModelError(f"{model}: a single file has no tokenizers; give the diffusers folder that has its layout")
    if files.is_hub:
        files = ModelFiles(str(hub_folder(files, [*LAYOUT, "text_encoder*/*.safetensors"])))
    names = [name for name, entry in files.index.items() if name.startswith("tokenizer") and entry != [None, None]]
    if not names:
        raise ModelError(f"{model}: its model_index.json names no tokenizer")
    found = []
    for name in names:
        try:
            tokenizer = load_config_object(files, name)
        except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{files.folder / name}: not readable as a tokenizer ({cause})") from None
        found.append(measured(name, tokenizer, embeddings(files.folder / name.replace("tokenizer", "text_encoder"))))
    return found


def embeddings(folder: pathlib.Path) -> Tensor | None:
    """The rows of a text encoder's tokens [V, D] in float32, or None where its files have none."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in sorted(file.keys()):
                    if name.endswith(EMBEDDINGS):
                        return file.get_tensor(name).float()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: damaged or incomplete ({error}); download it again") from None
    return None


def measured(name: str, tokenizer: Any, rows: Tensor | None) -> Vocabulary:
    """A vocabulary with the ranks of its whole words, each in [0, 1]."""
    words: dict[str, int] = {}
    for token, number in tokenizer.get_vocab().items():
        for mark, taken_off in WHOLE_WORD.items():
            bare = taken_off(token, mark)
            if bare != token and re.fullmatch("[a-z]+", bare):
                words[bare] = number
    words = {word: number for word, number in sorted(words.items()) if len(tokenizer.tokenize(word)) == 1}
    rare = ranks({word: float(number) for word, number in words.items()})
    if rows is None:
        return Vocabulary(name, tokenizer, words, rare, {})
    far = (rows - rows.mean(0)).norm(dim=1)
    known = {word: number for word, number in words.items() if number < len(rows)}
    sizes = [ranks({word: -float(m[number]) for word, number in known.items()}) for m in (rows.norm(dim=1), far)]
    return Vocabulary(name, tokenizer, words, rare, {word: (sizes[0][word] + sizes[1][word]) / 2 for word in known})


def ranks(values: dict[str, float]) -> dict[str, float]:
    """The share of the others that each value is above."""
    order = sorted(values, key=lambda word: (values[word], word))
    return {word: place / max(1, len(order) - 1) for place, word in enumerate(order)}


def ranked(vocabularies: list[Vocabulary], shortest: int, longest: int) -> list[tuple[float, str]]:
    """(score, word) of the words that are one token in every vocabulary, best first."""
    shared = set.intersection(*(set(vocabulary.words) for vocabulary in vocabularies))
    fitting = [word for word in shared if shortest <= len(word) <= longest]
    return sorted(((score(word, vocabularies), word) for word in fitting), key=lambda pair: (-pair[0], pair[1]))


def score(word: str, vocabularies: list[Vocabulary]) -> float:
    return sum(vocabulary.score(word) for vocabulary in vocabularies) / len(vocabularies)


def verdict(word: str, vocabularies: list[Vocabulary]) -> str:
    """Whether a word will do, and why."""
    split = {v.name: v.pieces(word) for v in vocabularies if len(v.pieces(word)) != 1}
    if split:
        readings = "; ".join(f"{' + '.join(map(repr, pieces))} in {name}" for name, pieces in split.items())
        return f"read in pieces, each with a meaning of its own: {readings}"
    if any(word not in vocabulary.words for vocabulary in vocabularies):
        return "one token, but not a word of small letters by itself; choose one of the list"
    value = score(word, vocabularies)
    shares = [v.rare[word] for v in vocabularies], [v.plain[word] for v in vocabularies if word in v.plain]
    rare, plain = (f"{sum(found) / len(found):.0%}" if found else "unknown" for found in shares)
    what = "good" if value >= GOOD else "usable" if value >= USABLE else "poor, the model knows it too well"
    return f"{what}: score {value:.2f}; rarer than {rare} of the words, plainer than {plain}"


def report(rows: list[tuple[float, str]], vocabularies: list[Vocabulary]) -> None:
    """Prints a table of words and their ranks in each vocabulary."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 120)
    if not rows:
        console.print("no word of such a length is one token in every vocabulary; allow more letters (--longest)")
        return
    table = Table()
    for heading in ("word", "score", *(f"{v.name}: rare, plain" for v in vocabularies)):
        table.add_column(heading, justify="left" if heading == "word" else "right", no_wrap=True)
    for value, word in rows:
        cells = (f"{v.rare[word]:.2f}, {v.plain.get(word, float('nan')):.2f}" for v in vocabularies)
        table.add_row(word, f"{value:.2f}", *cells)
    console.print(table)
    console.print(NOTES)
