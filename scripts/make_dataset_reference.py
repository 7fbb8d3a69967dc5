"""Writes docs/datasets.md, the reference of all dataset keys, from the docstrings in datamodules/config_entries.py.

python scripts/make_dataset_reference.py            # write it
python scripts/make_dataset_reference.py --check    # exit 1 if the file is out of date
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import json
import pathlib
import sys
from typing import Any

from dreamlit.datamodules import config_entries
from dreamlit.datamodules.config_read import ALIASES, NOT_HERE

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "datasets.md"

INTRODUCTION = """\
<!-- Made by scripts/make_dataset_reference.py from datamodules/config_entries.py: edit that, then run the script. -->
# Datasets

`data.datasets` is a list of entries, or the path of a JSON or YAML file with such a list. The smallest one:

```yaml
data:
  datasets:
    - id: dog
      instance_data_dir: photos/dog
      instance_prompt: a photo of sks dog
```

Relative paths start at the folder of the file they stand in; on the command line, at the working folder. A key that an
entry does not know, a value that is not allowed and an option that would do nothing are refused, all in one report.
Dataset folders are only read.

With regularisation photos and masks:

```yaml
data:
  datasets:
    - {id: dog, instance_data_dir: photos/dog, instance_prompt: a photo of sks dog, conditioning_data: masks}
    - {id: masks, dataset_type: conditioning, instance_data_dir: photos/dog_masks}
    - {id: dogs, instance_data_dir: photos/dogs, instance_prompt: a photo of a dog, is_regularisation_data: true}
```

`data.class_images` stands beside the list and makes such a dataset: the run draws the pictures itself, before its
caches are filled ([class_images.md](class_images.md)).

```yaml
data:
  class_images: {prompt: a photo of a dog, count: 100}
```
"""

SECTIONS = (
    ("Images: `dataset_type: image` and `eval`", config_entries.ImageDataset),
    ("The block `caption_shuffle`", config_entries.CaptionShuffle),
    ("The blocks `parquet`, `csv` and `jsonl`", config_entries.CaptionTable),
    ("Masks: `dataset_type: conditioning`", config_entries.ConditioningDataset),
    ("Text embeddings: `dataset_type: text_embeds`", config_entries.TextEmbedsDataset),
)


def attribute_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, on one line."""
    tree = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, following in itertools.pairwise(tree.body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def default_of(field: dataclasses.Field[Any]) -> str:
    """A field's default as YAML would have it."""
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None or field.default == ():
        return "none"
    if dataclasses.is_dataclass(field.default):
        return "see below"
    return f"`{json.dumps(field.default)}`" if not isinstance(field.default, str) else f"`{field.default}`"


def section(title: str, cls: type) -> str:
    docs = attribute_docs(cls)
    rows = [f"| `{field.name}` | {default_of(field)} | {docs[field.name]} |" for field in dataclasses.fields(cls)]
    head = [f"## {title}\n", inspect.cleandoc(cls.__doc__ or ""), "", "| key | default | meaning |", "|---|---|---|"]
    return "\n".join([*head, *rows])


def page() -> str:
    other = ["## Keys of other trainers\n", "Refused, with what to do instead:\n", "| key | instead |", "|---|---|"]
    other += [f"| `{key}` | {reason} |" for key, reason in sorted(NOT_HERE.items())]
    spellings = ["## Other spellings\n", *(f"- `{alias}` is `{key}`" for alias, key in sorted(ALIASES.items()))]
    parts = [INTRODUCTION.rstrip(), *(section(*item) for item in SECTIONS), "\n".join(spellings), "\n".join(other)]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if docs/datasets.md is out of date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is out of date: run python scripts/make_dataset_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
