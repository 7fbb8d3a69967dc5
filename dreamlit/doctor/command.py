"""The command `dreamlit doctor`."""

from __future__ import annotations

import argparse
import sys

from dreamlit.doctor.findings import Findings
from dreamlit.errors import ConfigError, DreamlitError

EXAMPLES = """examples:
  dreamlit doctor
  dreamlit doctor --config run.yaml
  dreamlit doctor --config run.yaml --memory 24 --data.batch_size 4

What follows --config is read as `dreamlit fit` reads it. The estimate walks through the run's training step with
tensors that have no memory; docs/doctor.md says how near it comes. The exit code is 1 where there are problems.
"""


def main(args: list[str]) -> int:
    """Runs `dreamlit doctor`; returns 0, or 1 where there are problems.

    Raises:
        SystemExit: with code 2 for a wrong command line, with 0 for --help.
    """
    parser = argparse.ArgumentParser(
        "dreamlit doctor",
        description="What this machine is, and with --config whether a run will work on it: all problems in one "
        "report.\nNothing is loaded, downloaded or trained.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", metavar="FILE", help="a run's configuration; several are layered")
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="compare the estimate with a device of so much memory, not this one"
    )
    options, others = parser.parse_known_args(args[1:])
    if others and not options.config:
        parser.error(f"{' '.join(others)}: only with --config")
    if options.memory is not None and not 0 < options.memory < 1e6:
        raise ConfigError(f"--memory is {options.memory:g}; give the gigabytes of a device, such as 24")
    if options.memory is not None and not options.config:
        raise ConfigError("--memory would do nothing without --config, whose estimate it is compared with")
    found = examined(options.config, others, options.memory)
    found.print()
    return 1 if found.problems else 0


def examined(configs: list[str] | None, others: list[str], memory: float | None) -> Findings:
    """The machine, and the run that the configurations describe."""
    from dreamlit.doctor import machine
    from dreamlit.quiet import quieten

    quieten()
    found = Findings()
    tell("looking at the machine")
    machine.examine(found)
    if not configs:
        return found
    tell("reading the configuration")
    words = [word for config in configs for word in ("--config", config)] + others
    try:
        from dreamlit.doctor.examined import examine
        from dreamlit.doctor.run import examine_run
        from dreamlit.memory.estimate import Estimator

        run = examine(words)
    except DreamlitError as error:
        found.problems.append(f"the configuration cannot be read, so nothing else of it was checked: {error}")
        return found
    examine_run(run, found, int(memory * 1024**3) if memory else None, Estimator(tell))
    return found


def tell(what: str) -> None:
    """Progress, apart from the report."""
    print(f"{what} ...", file=sys.stderr, flush=True)
