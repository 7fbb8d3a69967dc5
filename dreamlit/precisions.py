"""The command `dreamlit precisions`: which levels work on this machine, found out by trying them."""

from __future__ import annotations

import argparse
import os
from typing import Any

from dreamlit.errors import ConfigError
from dreamlit.quantisation import LEVELS, NO_CHANGE, refusal

EXAMPLES = """examples:
  dreamlit precisions
  dreamlit precisions --device cpu

The names go into model.base_model_precision and model.text_encoder_1_precision (to _4_).
"""
NOTES = """One linear layer of 1024 by 1024 weights is stored, run forward and backward (256 rows, bfloat16).
Error: how far the weight moved, relative to its norm. Norms, embedders, convolutions and last layers keep the family's
dtype, so a whole model is larger than its weights times these bytes."""


def main(args: list[str]) -> int:
    """Runs `dreamlit precisions`; returns 0.

    Raises:
        SystemExit: with code 2 for a wrong command line, with 0 for --help.
        ConfigError: when there is no such device.
    """
    parser = argparse.ArgumentParser(
        "dreamlit precisions",
        description="Which precisions of a frozen model work on this machine, tried one by one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--device", help="for example cpu or cuda:1; left out, the GPU if there is one")
    options = parser.parse_args(args[1:])

    from rich.console import Console

    from dreamlit.quiet import quieten

    quieten()
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table(options.device))
    console.print(NOTES)
    return 0


def table(asked: str | None) -> Any:
    """The levels with what was measured, or why they do not work, on a device."""
    import torch
    from rich.progress import track
    from rich.table import Table

    from dreamlit.quantisation.probe import probe

    device = chosen_device(asked)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({os.cpu_count()} cores)"
    made = Table(title=title, title_justify="left")
    for name in ("level", "by"):
        made.add_column(name, no_wrap=True)
    for name in ("bytes/weight", "error", "step ms"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("works here", overflow="fold")
    for name in track((NO_CHANGE, *LEVELS), "trying", transient=True):
        level = LEVELS.get(name)
        why = level and refusal(name, device.type, capability)
        found = None if why else probe(name if level else None, device)
        why = why.removeprefix(f"{name} ") if why else found and found.fault
        by = level.library if level else "bfloat16"
        if found is None or why:
            made.add_row(name, by, "", "", "", f"no: {why}")
        else:
            figures = (f"{found.bytes_per_weight:.2f}", f"{found.weight_error:.3f}", f"{found.step_ms:.1f}")
            made.add_row(name, by, *figures, "yes")
    return made


def chosen_device(asked: str | None) -> Any:
    """The device that was asked for, or the first GPU, or the CPU. Errors: `ConfigError` where it is not there."""
    import torch

    try:
        device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {asked}: not on this machine ({str(error).splitlines()[0]})") from error
    return device
