"""Writes the table in docs/families.md from the families' own classes and from tiny models of them.

python scripts/make_family_table.py            # write it
python scripts/make_family_table.py --check    # exit 1 if the file is out of date
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import tempfile
from collections.abc import Callable

from make_tiny_models import PARTS, make

from dreamlit.adapters import LoRA
from dreamlit.adapters.targets import last_parts, select
from dreamlit.combinations import bare_denoiser
from dreamlit.families import Family
from dreamlit.families.checks import concrete_families
from dreamlit.families.flow_transformer import FlowTransformer

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "families.md"
START, END = "<!-- table: made by scripts/make_family_table.py -->", "<!-- end of the table -->"

LICENCES = {
    "AuraFlow": "Apache-2.0",
    "Chroma": "Apache-2.0",
    "QwenImage": "Apache-2.0",
    "Sana": "NVIDIA NSCL v2-custom (not commercial), and Gemma's terms of use",
    "SD": "CreativeML Open RAIL-M (1.x), Open RAIL++-M (2.x)",
    "SDXL": "CreativeML Open RAIL++-M",
    "SDXLRefiner": "CreativeML Open RAIL++-M",
    "SD3": "Stability AI Community License",
    "Flux": "dev: FLUX.1 [dev] Non-Commercial; schnell: Apache-2.0",
    "Flux2Klein": "4B: Apache-2.0; 9B: FLUX Non-Commercial",
    "DeepFloydI": "DeepFloyd IF License",
    "DeepFloydII": "DeepFloyd IF License",
    "PixArtSigma": "CreativeML Open RAIL++-M",
    "Lumina2": "Apache-2.0, and Gemma's terms of use",
    "ZImage": "Apache-2.0",
    "Kolors": "Kolors Model License (research free; commercial use after registration)",
}
"""Of the weights, as their model cards name it; read yours before you publish an adapter."""


Folders = Callable[[type[Family]], pathlib.Path]
"""The folder of a tiny model of a family."""


def default_layers(kind: type[Family], folder: pathlib.Path) -> str:
    """How the names of the layers end that LoRA is put on unless it is told otherwise."""
    chosen = select(bare_denoiser(kind(str(folder))), LoRA().targets)
    return ", ".join(f"`{end}`" for end in dict.fromkeys(last_parts(layer.name) for layer in chosen))


def row(kind: type[Family], folder: pathlib.Path) -> str:
    pixels = kind.latent_channels == 3
    latent = "pixels" if pixels else f"{kind.latent_channels} channels"
    latent += f", tokens of {kind.patch} x {kind.patch} cells" if kind.patch > 1 else ""
    about = (kind.__doc__ or "").split("\n")[0].rstrip(".")
    encoders = ", ".join(f"`{encoder}`" for encoder, _ in kind.text_encoder_names)
    tiny = f"`{kind.tiny_autoencoder}`" if kind.tiny_autoencoder else "not needed" if pixels else "none known"
    files = "folder, hub, single file" if kind.single_file_layouts else "folder, hub"
    if issubclass(kind, FlowTransformer):
        files += "; the transformer from a file" + (" in its original layout too" if kind.original_mark else "")
    cells = [f"`{kind.__name__}`", about, f"`{kind.pipeline_class}`", encoders, latent, kind.noise]
    return "| " + " | ".join([*cells, default_layers(kind, folder), tiny, files, LICENCES[kind.__name__]]) + " |"


def table(folders: Folders) -> str:
    names = ("family", "what it is", "checked against", "text encoders", "latent", "process", "layers of LoRA")
    names += ("tiny autoencoder", "read from", "licence of the weights")
    ours = [kind for kind in concrete_families() if kind.__module__.startswith("dreamlit.")]
    rows = [row(kind, folders(kind)) for kind in ours]
    return "\n".join(["| " + " | ".join(names) + " |", "|---" * len(names) + "|", *rows])


def page(folders: Folders) -> str:
    """The page with the table as it must be."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    return f"{before}{START}\n{table(folders)}\n{END}{rest.split(END)[1]}"


def made(root: pathlib.Path, kind: type[Family]) -> pathlib.Path:
    name = next(name for name, (pipeline, _) in PARTS.items() if pipeline == kind.pipeline_class)
    return make(name, root / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if docs/families.md is out of date")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as root:
        wanted = page(functools.partial(made, pathlib.Path(root)))
    if not check:
        PAGE.write_text(wanted, encoding="utf-8")
    if PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{PAGE} is out of date: run python scripts/make_family_table.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
