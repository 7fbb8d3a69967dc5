"""Masks for a folder of photos, by a text: the same as `dreamlit masks`, with all its options.

python scripts/generate_dataset_masks.py --input_dir photos/dog --output_dir photos/dog_masks --text_input "dog"
"""

from __future__ import annotations

import sys

from dreamlit.cli import main

if __name__ == "__main__":
    sys.exit(main(["masks", *sys.argv[1:]]))
