"""A run's events on their way out: into a file of the run, to a Discord channel, to an endpoint of your own."""

from __future__ import annotations

import abc
import contextlib
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dreamlit import events as bus
from dreamlit.delivery import Delivery
from dreamlit.discord import discord_message
from dreamlit.endpoints import Endpoint, url_fault
from dreamlit.errors import ConfigError, Faults, nearest
from dreamlit.events import KINDS, LEVELS, Record, RunStage, Stage, TrainingStatus

MESSAGES = ("discord", "raw")
STATUS_EVERY = 100


class Subscriber(Callback, abc.ABC):
    """Hears the events of a fit on the first rank; the first subscriber of a trainer also tells how the training goes.

    That is: the stages of the run, the error that ended it, and the status at every step that a subscriber asks for.
    Others emit their own: see `dreamlit.events.emit`.
    """

    def __init__(self, status_every_n_steps: int | None) -> None:
        self.status_every = status_every_n_steps
        self._leave: Callable[[], None] | None = None
        self._of: int | None = None
        self._begin, self._first_step, self._seen_step = time.monotonic(), 0, 0
        self._losses: list[Any] = []  # of the batches of one optimizer step, on the device

    @abc.abstractmethod
    def open(self, root: pathlib.Path) -> None:
        """Gets ready for the events of a run in the folder `root`."""

    @abc.abstractmethod
    def receive(self, record: Record) -> None:
        """Takes one event and returns at once."""

    def close(self) -> None:
        """The run has ended, in whatever way."""

    def _heard(self, record: Record) -> None:
        """Leaves out the status that only another subscriber has asked for."""
        if not isinstance(record.event, TrainingStatus) or is_due(record.event.step, self.status_every):
            self.receive(record)

    # joining and leaving ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._join(trainer)

    def _join(self, trainer: Trainer) -> None:
        if self._leave or not trainer.is_global_zero or trainer.fast_dev_run:  # pyright: ignore
            return
        self._of = None
        self.open(pathlib.Path(trainer.default_root_dir))
        self._leave = bus.subscribe(trainer, self._heard)

    def _part(self) -> None:
        if self._leave:
            self._leave()
            self._leave = None
            self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._part()

    # telling ------------------------------------------------------------------------------------------------------

    def _tells(self, trainer: Trainer) -> bool:
        return self._leave is not None and subscribers(trainer)[0] is self

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._tells(trainer):
            steps = trainer.estimated_stepping_batches  # infinite where only max_time ends the run
            self._of = None if math.isinf(steps) else int(steps)
            self._begin, self._first_step = time.monotonic(), trainer.global_step
            self._seen_step = trainer.global_step
            self._losses.clear()
            self._tell_stage(trainer, "started")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._tells(trainer):
            return
        self._losses.append(outputs["loss"].detach())  # on the device: nothing waits for it
        step = trainer.global_step
        if step == self._seen_step:
            return  # inside an accumulation window
        self._seen_step = step
        if any(is_due(step, other.status_every) for other in subscribers(trainer)):
            bus.emit(trainer, self._status(step))
        self._losses.clear()

    def _status(self, step: int) -> TrainingStatus:
        loss = float(sum(self._losses))  # Lightning has divided each by the number of batches in the step
        speed = (step - self._first_step) / max(time.monotonic() - self._begin, 1e-9)
        left_s = None if self._of is None else max(self._of - step, 0) / speed
        loss = loss if math.isfinite(loss) else None
        return TrainingStatus(step=step, of=self._of, loss=loss, steps_per_s=speed, left_s=left_s)

    def _tell_stage(self, trainer: Trainer, stage: Stage) -> None:
        bus.emit(trainer, RunStage(step=trainer.global_step, stage=stage, of=self._of))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._tells(trainer):
            self._tell_stage(trainer, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tells that the run has ended, also where it never got as far as training."""
        if trainer.state.fn != "fit":
            return
        with contextlib.suppress(Exception):  # what went wrong before is what the user must see
            if subscribers(trainer)[0] is self:
                for other in subscribers(trainer):
                    other._join(trainer)
                self._tell_end(trainer, exception)
        self._part()

    def _tell_end(self, trainer: Trainer, exception: BaseException) -> None:
        if isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
            self._tell_stage(trainer, "interrupted")
            return
        message = bus.scrubbed(str(exception), trainer.default_root_dir)
        bus.emit(trainer, bus.Error(step=trainer.global_step, type=type(exception).__name__, message=message))
        self._tell_stage(trainer, "failed")


def subscribers(trainer: Trainer) -> list[Subscriber]:
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return [callback for callback in callbacks if isinstance(callback, Subscriber)]


def is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


class EventLog(Subscriber):
    """Appends every event of the run to `<default_root_dir>/events.jsonl`, a line of JSON each (`docs/events.md`).

    Args:
        status_every_n_steps: Optimizer steps between two lines on how the training goes.
    """

    def __init__(self, status_every_n_steps: int = 50) -> None:
        if status_every_n_steps < 1:
            raise ConfigError(f"EventLog: status_every_n_steps is {status_every_n_steps}; it must be at least 1")
        super().__init__(status_every_n_steps)

    def open(self, root: pathlib.Path) -> None:
        self._path = root / "events.jsonl"

    def receive(self, record: Record) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n")


class Webhook(Subscriber):
    """Posts the run's events to a Discord channel or, as signed JSON, to an endpoint of your own (`docs/events.md`).

    A thread of its own delivers them, in order, and tries again where the endpoint is down: training neither waits for
    it nor notices it. Several webhooks may stand side by side. Under ddp the first rank speaks.

    Args:
        kind: `discord` (a message for each event, with up to ten images) or `raw` (JSON, signed with `secret_env`).
        url: Where to post; https, or http on this machine. It is kept in config.yaml and in each checkpoint.
        url_env: Environment variable that holds the URL, instead of `url`. A Discord URL is a secret: use this.
        events: Kinds to send: run, status, checkpoint, preview, images, scores, warning, error; all by default.
        level: The least important level to send: debug, info, warning or error. Only `preview` is debug.
        status_every_n_steps: Optimizer steps between two messages on how the training goes; 100 by default.
        secret_env: Environment variable with the secret that signs each message; `raw` needs it, `discord` has none.
        token_env: Environment variable with a bearer token to send along; for `raw`.
        allow_http: Post to another machine without encryption.
        timeout_seconds: How long one try may wait for the endpoint.
        flush_seconds: How long the end of the run waits for messages that are still to be delivered.
        most_waiting: Messages that may wait while the endpoint is down; of more, the least telling are lost.
    """

    def __init__(
        self,
        kind: str,
        url: str | None = None,
        url_env: str | None = None,
        events: list[str] | None = None,
        level: str = "info",
        status_every_n_steps: int | None = None,
        secret_env: str | None = None,
        token_env: str | None = None,
        allow_http: bool = False,
        timeout_seconds: float = 10.0,
        flush_seconds: float = 10.0,
        most_waiting: int = 256,
    ) -> None:
        self.kind, self.level = kind, level
        self.events = tuple(KINDS) if events is None else tuple(events)
        self.timeout_seconds, self.flush_seconds, self.most_waiting = timeout_seconds, flush_seconds, most_waiting
        faults = Faults("Webhook cannot work with these options", ConfigError)
        for line in (*self._kind_faults(secret_env, token_env), *self._choice_faults(events)):
            faults.add(line)
        for line in self._number_faults(status_every_n_steps):
            faults.add(line)
        secrets = {"url_env": url_env, "secret_env": secret_env, "token_env": token_env}
        values = {name: read_variable(name, variable, faults) for name, variable in secrets.items()}
        if (url is None) == (url_env is None):
            faults.add(
                "url and url_env are both given; leave one out" if url_env else "there is no URL; give url_env (or url)"
            )
        address = (values["url_env"] or None) if url is None else url
        if address is not None and (fault := url_fault(address, allow_http)):
            faults.add(f"{'url' if url else 'url_env'}: the URL {fault}")
        faults.raise_if_any()
        super().__init__((status_every_n_steps or STATUS_EVERY) if "status" in self._wanted() else None)
        self._endpoint = Endpoint(str(address), timeout_seconds, values["secret_env"], values["token_env"])
        if kind == "discord" and url:
            bus.warn(
                "Webhook: whoever has a Discord URL can post with it, and config.yaml and checkpoints keep what the "
                "configuration says. Put it into an environment variable and name that one in url_env"
            )

    # checks -------------------------------------------------------------------------------------------------------

    def _kind_faults(self, secret_env: str | None, token_env: str | None) -> Iterator[str]:
        if self.kind not in MESSAGES:
            yield f"kind is {self.kind!r}; {nearest(str(self.kind), MESSAGES)}"
        if self.kind == "raw" and not secret_env:
            yield "kind raw needs secret_env: each message is signed, so that the endpoint knows who speaks"
        for name, value in (("secret_env", secret_env), ("token_env", token_env)):
            if self.kind == "discord" and value:
                yield f"{name} would do nothing: Discord knows who may post by the URL alone"

    def _wanted(self) -> set[str]:
        """Kinds of events that pass both filters."""
        least = LEVELS.index(self.level)
        return {kind for kind in self.events if any(LEVELS.index(of) >= least for of in KINDS[kind].levels)}

    def _choice_faults(self, asked: list[str] | None) -> Iterator[str]:
        unknown = [name for name in self.events if name not in KINDS]
        for name in unknown:
            yield f"events has {name!r}; {nearest(str(name), KINDS)}"
        if not self.events or len(set(self.events)) < len(self.events):
            yield f"events is {list(self.events)}; name at least one, each once: {', '.join(KINDS)}"
        if self.level not in LEVELS:
            yield f"level is {self.level!r}; {nearest(str(self.level), LEVELS)}"
        elif asked and not unknown:
            for name in sorted(set(self.events) - self._wanted()):
                yield f"events has {name!r}, which level {self.level!r} leaves out"

    def _number_faults(self, status_every: int | None) -> Iterator[str]:
        known = self.level in LEVELS and set(self.events) <= set(KINDS)
        if status_every is not None and status_every < 1:
            yield f"status_every_n_steps is {status_every}; it must be at least 1"
        elif status_every is not None and known and "status" not in self._wanted():
            yield "status_every_n_steps would do nothing: events or level leaves out status"
        if not 0 < self.timeout_seconds < math.inf:
            yield f"timeout_seconds is {self.timeout_seconds}; it must be above 0 and finite"
        if not 0 <= self.flush_seconds < math.inf:
            yield f"flush_seconds is {self.flush_seconds}; it must be finite and not negative"
        if self.most_waiting < 1:
            yield f"most_waiting is {self.most_waiting}; it must be at least 1"

    # the run ------------------------------------------------------------------------------------------------------

    def open(self, root: pathlib.Path) -> None:
        self._root = root
        name = f"Webhook ({self.kind}, {self._endpoint.shown})"
        self._delivery = Delivery(self._post, name, self.most_waiting)

    def receive(self, record: Record) -> None:
        event = record.event
        if event.kind in self.events and LEVELS.index(event.level) >= LEVELS.index(self.level):
            self._delivery.put(record)

    def close(self) -> None:
        self._delivery.close(self.flush_seconds)

    def _post(self, record: Record, dropped: int) -> None:
        if self.kind == "discord":
            self._endpoint.post(*discord_message(record, dropped, self._root))
            return
        content = {**record.to_json(), **({"dropped": dropped} if dropped else {})}
        body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
        self._endpoint.post(body, "application/json")


def read_variable(option: str, variable: str | None, faults: Faults) -> str | None:
    """The value of an environment variable; what is wrong with it goes to `faults`, the value never does."""
    if variable is None:
        return None
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):  # it may be the secret itself
        shown = f"the variable that {option} names"
    else:
        shown = f"{option}: {variable}"
    value = os.environ.get(variable, "").strip()
    if not value:
        faults.add(f"{shown} is not set in the environment, or empty; {option} is a name, never the value itself")
    elif not re.fullmatch(r"[\x21-\x7e]+", value):
        faults.add(f"{shown} holds a space or another character that cannot be sent")
    return value
