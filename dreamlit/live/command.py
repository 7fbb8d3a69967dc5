"""`dreamlit watch`: the live page of a run that goes on in another process, or is over."""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
import webbrowser

from dreamlit.errors import ConfigError, DataError, Faults
from dreamlit.live.access import access_faults, is_loopback, read_token
from dreamlit.live.files import RunFolder
from dreamlit.live.server import PageServer

EXAMPLES = """examples:
  dreamlit watch runs/dog
  dreamlit watch runs/dog --port 8080 --open
  PAGE_TOKEN=$(openssl rand -hex 16) dreamlit watch runs/dog --host 0.0.0.0 --token-env PAGE_TOKEN

Ctrl-C ends it; the run does not notice. From another machine an SSH tunnel is safer than --host:
  ssh -L 8080:127.0.0.1:8080 trainer dreamlit watch runs/dog --port 8080
"""


def main(args: list[str]) -> int:
    """Serves the page until it is interrupted; returns 0.

    Raises:
        ConfigError: with all faults of the options, or when the port is taken.
        DataError: when the run's folder is a file.
    """
    parser = argparse.ArgumentParser(
        "dreamlit watch",
        description="A page in the browser that shows a run while it goes on, or again afterwards. It only reads.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN_DIR", type=pathlib.Path, help="the run's trainer.default_root_dir")
    parser.add_argument("--port", type=int, default=0, help="default: 0, one that is free")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine alone)"
    )
    parser.add_argument(
        "--token-env", metavar="NAME", help="environment variable with a token that browsers must show (?token=...)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    options = parser.parse_args(args[1:])
    server = served(options.run, options.host, options.port, options.token_env)
    for line in told(server, options.token_env):
        print(line, flush=True)
    if not options.run.is_dir():
        print(f"dreamlit watch: there is no folder {options.run} yet; the page waits for it", file=sys.stderr)
    server.start()
    if options.open:
        webbrowser.open(server.address + (f"?token={server.token}" if server.token else ""))
    wait()
    server.close()
    return 0


def wait() -> None:
    """Until Ctrl-C."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()


def served(run: pathlib.Path, host: str, port: int, token_env: str | None) -> PageServer:
    """A server that holds its port and does not serve yet. Errors: as `main`."""
    faults = Faults("this page cannot be served", ConfigError)
    for line in access_faults(host, port, token_env):
        faults.add(line)
    faults.raise_if_any()
    if run.exists() and not run.is_dir():
        raise DataError(f"{run} is a file; give the folder of a run (its trainer.default_root_dir)")
    try:
        return PageServer(RunFolder(run), host, port, read_token(token_env))
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}, port {port} ({error}); choose another, or --port 0") from error


def told(server: PageServer, token_env: str | None) -> list[str]:
    """What the user must know to open the page; never the token."""
    lines = [f"live page: {server.address}"]
    if server.token:
        lines.append(f"  put ?token=... behind it, with what {token_env} holds")
    if not is_loopback(server.host):
        lines.append("  other machines reach it by this one's own address; what they load is not encrypted")
    return lines
