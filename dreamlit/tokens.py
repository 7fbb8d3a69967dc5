"""The command `dreamlit tokens`: rare words for a subject, found in the model's own vocabularies."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ConfigError, Faults, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from dreamlit.token_effects import Effect

EXAMPLES = """examples:
  dreamlit tokens models/sdxl
  dreamlit tokens models/sdxl --judge sks ohwx dog
  dreamlit tokens models/sdxl --measure dog --device cuda
  dreamlit tokens models/sdxl --names names.txt --photos photos/rex --encoder models/clip
"""
NOTES = """rare: share of the words that were merged into the vocabulary before it, which means seen more often.
plain: share of the words whose embedding is larger or farther from the mean of all, which means that it says more.
Score: a third of the first and two of the second, over all vocabularies. Whether a word is a name that you know, only
you can tell."""
UNMEASURED = "Of such words the model may tell some apart from no word at all and hardly others: --measure CLASS."
EMBEDDINGS = ("token_embedding.weight", "shared.weight", "embed_tokens.weight", "word_embeddings.weight")
"""Ends of the names of tensors that have a row for each token."""
WHOLE_WORD = {"</w>": str.removesuffix, "\u2581": str.removeprefix, "\u0120": str.removeprefix}
"""How vocabularies mark a word by itself (CLIP; sentencepiece; byte pairs), and how to take the mark off."""
MEASURED = """apart: how far the word moves the text conditioning of a photo of the class. The farther, the better a
subject is learned by it, so it is the order. moves: how far it moves the prediction, which is what it says already."""
USABLE = 0.45
"""The score from which on a word says little enough."""
FAR, NEAR = 0.75, 0.4
"""Shares of the measured words that a good word, and a usable one, is farther apart than."""
CANDIDATES = 100
"""Words that are measured, spread evenly over those that say little enough."""


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
    parser.add_argument(
        "--measure",
        metavar="CLASS",
        help="load the model, and rank by how far it tells words apart from 'a photo of a CLASS'",
    )
    parser.add_argument(
        "--candidates", type=int, metavar="N", help=f"with --measure: of how many words (default: {CANDIDATES})"
    )
    parser.add_argument("--device", help="with --measure: where the model runs, such as cuda (default: cpu)")
    parser.add_argument("--names", type=pathlib.Path, metavar="FILE", help="rank names, one on each line, instead")
    parser.add_argument("--photos", type=pathlib.Path, metavar="DIR", help="with --names: what they should be like")
    parser.add_argument("--encoder", metavar="CLIP", help="with --names: folder or hub id of a CLIP that compares them")
    parser.add_argument("--shortest", type=int, default=3, help="letters at least (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=5, help="letters at most (default: %(default)s)")
    options = parser.parse_args(args[1:])
    check(options)
    from dreamlit.quiet import quieten

    quieten()
    vocabularies = read_vocabularies(options.model)
    if options.names:
        report_names(options, vocabularies)
        return 0
    rows = ranked(vocabularies, options.shortest, options.longest)
    found: dict[str, Effect] = {}
    if options.measure:
        from dreamlit.token_effects import effects

        rows = spread([row for row in rows if row[0] >= USABLE], options.candidates or CANDIDATES)
        words = list(dict.fromkeys([*(word for _, word in rows), *options.judge]))
        found = effects(options.model, options.measure, words, options.device or "cpu")
        rows.sort(key=lambda row: (-found[row[1]].apart, row[1]))
    for word in options.judge:
        print(f"{word}: {verdict(word, vocabularies, found)}")
    if not options.judge:
        report(rows[: options.count], vocabularies, found)
    return 0


def check(options: argparse.Namespace) -> None:
    """Errors: `ConfigError` with everything that is wrong on the command line."""
    faults = Faults("these options cannot be used", ConfigError)
    for word in options.judge:
        if not word.strip() or len(word.split()) != 1:
            faults.add(f"--judge {word!r}: give single words")
    if options.count < 1 or not 1 <= options.shortest <= options.longest:
        faults.add("--count must be at least 1, and --shortest at least 1 and at most --longest")
    if options.candidates is not None and options.candidates < 1:
        faults.add(f"--candidates is {options.candidates}; it must be at least 1")
    if options.measure is not None and not options.measure.strip():
        faults.add("--measure is blank; give the subject's class, such as dog")
    for needed, others in (("measure", ("candidates", "device")), ("names", ("photos", "encoder"))):
        for other in others:
            if getattr(options, needed) is None and getattr(options, other) is not None:
                faults.add(f"--{other} does nothing without --{needed}")
    if options.names:
        faults_of_names = [f"--{name}" for name in ("photos", "encoder") if getattr(options, name) is None]
        if faults_of_names:
            faults.add(f"--names needs {' and '.join(faults_of_names)}")
        if options.judge or options.measure:
            faults.add("--names ranks names by photos alone; leave out --judge and --measure")
    faults.raise_if_any()


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
    """From 0 to 1: how little a word says, by the vocabularies alone."""
    return sum(vocabulary.score(word) for vocabulary in vocabularies) / len(vocabularies)


def spread(rows: list[tuple[float, str]], count: int) -> list[tuple[float, str]]:
    """At most `count` of the rows, evenly over their order: the plainest words are told apart the least."""
    if len(rows) <= count:
        return list(rows)
    return [rows[place * len(rows) // count] for place in range(count)]


def verdict(word: str, vocabularies: list[Vocabulary], found: Mapping[str, Effect] = MappingProxyType({})) -> str:
    """Whether a word will do, and why. found: what words do to the model, where it was measured."""
    split = {v.name: v.pieces(word) for v in vocabularies if len(v.pieces(word)) != 1}
    if split:
        readings = "; ".join(f"{' + '.join(map(repr, pieces))} in {name}" for name, pieces in split.items())
        return f"read in pieces, each with a meaning of its own: {readings}"
    if any(word not in vocabulary.words for vocabulary in vocabularies):
        return "one token, but not a word of small letters by itself; choose one of the list"
    value = score(word, vocabularies)
    shares = [v.rare[word] for v in vocabularies], [v.plain[word] for v in vocabularies if word in v.plain]
    rare, plain = (f"{sum(of) / len(of):.0%}" if of else "unknown" for of in shares)
    told = f"score {value:.2f}; rarer than {rare} of the words, plainer than {plain}"
    what = "usable" if value >= USABLE else "poor, the model knows it too well"
    if not found:
        return f"{what}: {told}"
    nearer = sum(other.apart < found[word].apart for other in found.values()) / max(1, len(found) - 1)
    if value >= USABLE:
        what = "good" if nearer >= FAR else "usable" if nearer >= NEAR else "slow, the model hardly tells it apart"
    return (
        f"{what}: {told}; apart by {found[word].apart:.3f}, farther than {nearer:.0%} of the measured; moves the "
        f"prediction by {found[word].moves:.3f}"
    )


def report(rows: list[tuple[float, str]], vocabularies: list[Vocabulary], found: Mapping[str, Effect]) -> None:
    """Prints a table of words, their ranks in each vocabulary, and what they do to the model where it was asked."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 120)
    if not rows:
        console.print(
            "no word of such a length is one token everywhere and says little; allow more letters (--longest)"
        )
        return
    table = Table()
    measures = ["apart", "moves"] if found else []
    for heading in ("word", *measures, "score", *(f"{v.name}: rare, plain" for v in vocabularies)):
        table.add_column(heading, justify="left" if heading == "word" else "right", no_wrap=True)
    for value, word in rows:
        cells = (f"{v.rare[word]:.2f}, {v.plain.get(word, float('nan')):.2f}" for v in vocabularies)
        table.add_row(word, *(f"{number:.3f}" for number in found.get(word, ())), f"{value:.2f}", *cells)
    console.print(table)
    console.print(f"{MEASURED}\n{NOTES}" if found else f"{NOTES}\n{UNMEASURED}")


def report_names(options: argparse.Namespace, vocabularies: list[Vocabulary]) -> None:
    """Prints a table of names, how like the photos they are, and as how many tokens the model reads each."""
    from rich.console import Console
    from rich.table import Table

    from dreamlit.name_matches import matched, read_names

    table = Table()
    for heading in ("name", "like the photos", *(f"{v.name}: tokens" for v in vocabularies)):
        table.add_column(heading, justify="left" if heading == "name" else "right", no_wrap=True)
    for cosine, name in matched(read_names(options.names), options.photos, options.encoder)[: options.count]:
        table.add_row(name, f"{cosine:.3f}", *(str(len(v.pieces(name))) for v in vocabularies))
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    console.print('like the photos: mean cosine of "a photo of NAME" with each of them, by the encoder.')
