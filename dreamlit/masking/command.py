"""The command `dreamlit masks`: masks for a folder of photos."""

from __future__ import annotations

import argparse
import re

EXAMPLES = """examples:
  dreamlit masks --input_dir photos/dog --output_dir photos/dog_masks --text_input dog --subtract collar
  dreamlit masks --input_dir photos/dog --output_dir photos/dog_masks --text_input dog \\
      --model IDEA-Research/grounding-dino-tiny --sam facebook/sam-vit-base --padding 0.02 --blur 0.005
  dreamlit masks --input_dir photos/cutouts --output_dir photos/cutouts_masks --alpha

then, in a run's datasets:
  - {id: dog, instance_data_dir: photos/dog, instance_prompt: a photo of sks dog, conditioning_data: masks}
  - {id: masks, dataset_type: conditioning, instance_data_dir: photos/dog_masks}
"""


def main(args: list[str]) -> int:
    """Runs `dreamlit masks`; returns 0.

    Raises:
        SystemExit: with code 2 for a wrong command line, with 0 for --help.
        DreamlitError: when a model, folder, image or option cannot be used.
    """
    # --largest-only is as good as --largest_only
    spelled = [re.sub(r"^--[a-z_-]+", lambda found: "--" + found[0][2:].replace("-", "_"), arg) for arg in args[1:]]
    given = vars(parser().parse_args(spelled))
    from dreamlit.masking.finishing import Finish
    from dreamlit.masking.making import Options, make_masks
    from dreamlit.quiet import quieten

    quieten()
    finish = Finish(**{name: given.pop(name) for name in ("padding", "blur", "largest_only", "invert")})
    for name in ("text_input", "subtract"):
        given[name] = tuple(dict.fromkeys(given[name]))
    make_masks(Options(finish=finish, **given))
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "dreamlit masks",
        description="Masks for a folder of photos: which part of each counts in the loss.\n"
        "One grey PNG for each photo, of its name and size, in a folder of their own; white counts.\n"
        "A command that was stopped goes on where it was.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--input_dir", metavar="DIR", required=True, help="the photos, searched in depth; only read")
    made.add_argument("--output_dir", metavar="DIR", required=True, help="the masks: another folder, new or of masks")
    add_finding(made.add_argument_group("what counts"))
    add_shaping(made.add_argument_group("the shape of it (lengths are shares of the photo's longer side)"))
    made.add_argument("--batch_size", type=int, default=4, metavar="N", help="photos at once (default: %(default)s)")
    made.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: cuda where there is one)")
    made.add_argument("--compare", metavar="DIR", help="true masks: report the intersection over union of each mask")
    made.add_argument("--dry_run", action="store_true", help="say what would be made, and write nothing")
    return made


def add_finding(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--text_input", nargs="+", default=[], metavar="TEXT", help="what counts, in a few words; several are united"
    )
    group.add_argument("--subtract", nargs="+", default=[], metavar="TEXT", help="what is in it and does not count")
    group.add_argument(
        "--model",
        metavar="MODEL",
        help="folder or hub id: a clipseg or (with --sam) a grounding-dino for --text_input; or without a text a model "
        "of foreground and background (default: CIDAS/clipseg-rd64-refined)",
    )
    group.add_argument("--sam", metavar="MODEL", help="folder or hub id of a SAM, for what is in the boxes")
    group.add_argument("--alpha", action="store_true", help="the photos' own alpha channels, and no model")
    group.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="how sure the model must be of a pixel, or grounding-dino of a box, from 0 to 1 (default: clipseg 0.3, "
        "grounding-dino 0.35, foreground 0.5; --alpha: as grey as it is)",
    )


def add_shaping(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--padding", type=float, default=0.0, metavar="X", help="grow the mask by this, as 0.02; negative shrinks it"
    )
    group.add_argument(
        "--blur", type=float, default=0.0, metavar="X", help="soften its edge by a Gaussian of this width, as 0.005"
    )
    group.add_argument("--largest_only", action="store_true", help="keep the largest connected part alone")
    group.add_argument("--invert", action="store_true", help="everything counts but what was found")
