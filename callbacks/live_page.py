"""The run as a page in the browser, served from inside the run."""

from __future__ import annotations

import atexit
import pathlib
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from dreamlit import events as bus
from dreamlit.callbacks.webhook import EventLog
from dreamlit.errors import CombinationError, ConfigError, DreamlitError, Faults
from dreamlit.events import Record
from dreamlit.live.access import access_faults
from dreamlit.live.command import served, told, wait
from dreamlit.live.server import PageServer

STATUS_EVERY = 10


class LivePage(EventLog):
    """Serves a page that shows the run while it goes on: progress, curves, previews in the making, warnings.

    The address is printed once. It is the page of `dreamlit watch RUN_DIR`, which shows the run from another process
    and afterwards (`docs/live.md`). What it shows is read off the run's files; events are written to
    `<default_root_dir>/events.jsonl` as by EventLog, unless the run has that too. Browsers never hold the training up,
    which is the same to the last bit without the page; a page that cannot be served is a warning. Under ddp the first
    rank serves.

    Args:
        port: Port; 0 for one that is free.
        host: Address to listen at. By default this machine alone can look; any other needs `token_env`.
        token_env: Environment variable with a token of 16 or more letters and digits that browsers must show.
        stay_open: Keep the page and the program open when the run is done, until Ctrl-C.
        status_every_n_steps: Optimizer steps between two lines on how the training goes, 10 by default; with an
            EventLog in the run that one says it.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        token_env: str | None = None,
        stay_open: bool = False,
        status_every_n_steps: int | None = None,
    ) -> None:
        self.port, self.host, self.token_env, self.stay_open = port, host, token_env, stay_open
        faults = Faults("LivePage cannot serve a page with these options", ConfigError)
        for line in (*access_faults(host, port, token_env), *status_faults(status_every_n_steps)):
            faults.add(line)
        faults.raise_if_any()
        super().__init__(status_every_n_steps or STATUS_EVERY)
        self.server: PageServer | None = None
        self._asked, self._logged_elsewhere, self._ended_badly = status_every_n_steps, False, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._ended_badly = False
            faults = Faults("LivePage cannot serve the page of this run", CombinationError)
            for line in self._combination_faults(trainer):
                faults.add(line)
            faults.raise_if_any()
        super().setup(trainer, pl_module, stage)

    def _combination_faults(self, trainer: Trainer) -> Iterator[str]:
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        if sum(isinstance(other, LivePage) for other in callbacks) > 1:
            yield "there are two LivePages; one page shows all of a run, so leave one out"
        self._logged_elsewhere = any(
            isinstance(other, EventLog) and not isinstance(other, LivePage) for other in callbacks
        )
        if self._logged_elsewhere and self._asked is not None:
            yield "status_every_n_steps would do nothing: the run's EventLog writes the events; set it there"
        if self._logged_elsewhere:
            self.status_every = None

    def open(self, root: pathlib.Path) -> None:
        super().open(root)
        if self._ended_badly:
            return  # the run is over before it began: there is an error to write down, and nothing to look at
        try:
            self.server = served(root, self.host, self.port, self.token_env)
        except (DreamlitError, OSError) as error:
            bus.warn(f"LivePage: {error}. The run goes on without its page; `dreamlit watch {root}` shows it")
            return
        self.server.start()
        print(*told(self.server, self.token_env), sep="\n", flush=True)

    def receive(self, record: Record) -> None:
        if not self._logged_elsewhere:
            super().receive(record)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._ended_badly = True
        super().on_exception(trainer, pl_module, exception)

    def close(self) -> None:
        server, self.server = self.server, None
        if server is None:
            return
        if self.stay_open and not self._ended_badly:
            # At the end of the program, not here: other ranks, callbacks and commands still have work to do.
            atexit.register(stay, server)
        else:
            server.close()


def status_faults(every: int | None) -> Iterator[str]:
    if every is not None and every < 1:
        yield f"status_every_n_steps is {every}; it must be at least 1"


def stay(server: PageServer) -> None:
    """Keeps the page up until Ctrl-C."""
    print(f"the run is done; its page stays at {server.address} until Ctrl-C", flush=True)
    wait()
    server.close()
