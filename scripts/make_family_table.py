"""Writes the table in docs/families.md from the families' own classes.

python scripts/make_family_table.py            # write it
python scripts/make_family_table.py --check    # exit 1 if the file is out of date
"""

from __future__ import annotations

import argparse
import pathlib
import sys

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


def row(kind: type[Family]) -> str:
    pixels = kind.latent_channels == 3
    latent = "pixels" if pixels else f"{kind.latent_channels} channels"
    latent += f", tokens of {kind.patch} x {kind.patch} cells" if kind.patch > 1 else ""
    about = (kind.__doc__ or "").split("\n")[0].rstrip(".")
    encoders = ", ".join(f"`{encoder}`" for encoder, _ in kind.text_encoder_names)
    tiny = f"`{kind.tiny_autoencoder}`" if kind.tiny_autoencoder else "not needed" if pixels else "none known"
    files = "folder, hub, single file" if kind.single_file_layouts else "folder, hub"
    if issubclass(kind, FlowTransformer):
        files += "; the transformer from a file" + (" in its original layout too" if kind.original_mark else "")
    cells = [f"`{kind.__name__}`", about, f"`{kind.pipeline_class}`", encoders, latent, kind.noise, tiny, files]
    return "| " + " | ".join([*cells, LICENCES[kind.__name__]]) + " |"


def table() -> str:
    names = ("family", "what it is", "checked against", "text encoders", "latent", "process", "tiny autoencoder")
    names += ("read from", "licence of the weights")
    ours = [kind for kind in concrete_families() if kind.__module__.startswith("dreamlit.")]
    return "\n".join(["| " + " | ".join(names) + " |", "|---" * len(names) + "|", *map(row, ours)])


def page() -> str:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    return f"{before}{START}\n{table()}\n{END}{rest.split(END)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if docs/families.md is out of date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is out of date: run python scripts/make_family_table.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
