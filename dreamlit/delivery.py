"""Delivery of a run's events to an HTTP endpoint by a thread of its own: in order, retried, never in anyone's way.

Standard library only. Nothing that is shown or raised here holds more of a URL than its scheme and host.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable

from dreamlit import events
from dreamlit.endpoints import Later, Refused
from dreamlit.events import PreviewStep, Record, TrainingStatus

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
WARN_EVERY_S = 60.0
MOST_FAULTS = 8
"""Tries of one message that an endpoint answers with HTTP 500 and the like: by then it may be the message."""


class Delivery:
    """Posts records one after the other from a daemon thread that starts with the first of them.

    Args:
        post: Delivers one record, told how many right before it were lost; raises `Later` or `Refused`.
        name: What warnings call the endpoint.
        most_waiting: Records that may wait. Of more, the oldest training status or preview goes first, then the oldest.
        warn: Where warnings go; at most one a minute.
    """

    def __init__(
        self,
        post: Callable[[Record, int], None],
        name: str,
        most_waiting: int = 256,
        warn: Callable[[str], None] = events.warn,
    ) -> None:
        self.post, self.name, self.most_waiting, self.warn = post, name, most_waiting, warn
        self.lost = 0
        """Records that will never be delivered, so far."""
        self._waiting: collections.deque[tuple[Record, int]] = collections.deque()  # and how many before it were lost
        self._lost_last = 0  # lost with nothing waiting behind them
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._in_hand = self._closing = self._abandoned = self._troubled = False
        self._next_warning, self._lost_told = 0.0, 0

    def put(self, record: Record) -> None:
        """Queues a record and returns at once; after `close` it does nothing."""
        with self._change:
            if self._closing:
                return
            if len(self._waiting) >= self.most_waiting:
                self._make_room()
            self._waiting.append((record, self._lost_last))
            self._lost_last = 0
            self._change.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dreamlit-delivery", daemon=True)
                self._thread.start()

    def _make_room(self) -> None:
        passing = (TrainingStatus, PreviewStep)
        place = next((i for i, (record, _) in enumerate(self._waiting) if isinstance(record.event, passing)), 0)
        _, before = self._waiting[place]
        del self._waiting[place]
        self._lose(place, before)

    def _lose(self, place: int, before: int) -> None:
        """Counts a record that stood at `place`, with those lost `before` it, as lost before the one that follows."""
        self.lost += 1
        if place < len(self._waiting):
            record, own = self._waiting[place]
            self._waiting[place] = (record, own + before + 1)
        else:
            self._lost_last += before + 1

    def close(self, timeout_s: float) -> int:
        """Delivers what waits, for at most `timeout_s` seconds; returns how many records were lost since the start.

        Waits between tries become short, unless the endpoint has asked for them. A warning says what is lost.
        """
        with self._change:
            self._closing = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        with self._change:
            self._abandoned = True
            left = len(self._waiting) + self._in_hand
            self.lost += left
            untold = self.lost - self._lost_told
            self._change.notify_all()
        if left:
            self.warn(f"{self.name}: not delivered within {timeout_s:g} s of the end: {left}; events lost: {self.lost}")
        elif untold:
            self.warn(f"{self.name}: events lost: {self.lost}")
        return self.lost

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closing)
                if self._abandoned or not self._waiting:
                    return
                record, before = self._waiting.popleft()
                self._in_hand = True
            trouble = self._deliver(record, before)
            with self._change:
                if self._abandoned:
                    return  # close has counted it
                self._in_hand = False
                if trouble:
                    self._lose(0, before)
                came_back, self._troubled = self._troubled and not trouble, bool(trouble)
            if trouble:
                self._warn(f"{trouble}; this event is left out")
            elif came_back:
                self._warn("delivery works again")

    def _deliver(self, record: Record, before: int) -> str | None:
        """Tries until the record is delivered; or returns why it was not."""
        wait_s, faults = FIRST_WAIT_S, 0
        while True:
            try:
                self.post(record, before)
                return None
            except Later as later:
                faults += later.fault
                if faults >= MOST_FAULTS:
                    return f"{later} to each of {faults} tries"
                if not self._wait(later, wait_s):
                    return "the run has ended"
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            except Refused as refused:
                return str(refused)
            except Exception as error:  # a message that cannot be made; its text might hold anything
                return type(error).__name__

    def _wait(self, later: Later, wait_s: float) -> bool:
        """Waits before another try; returns whether there is to be one."""
        with self._change:
            self._troubled = True
            waiting = len(self._waiting) + 1
        self._warn(f"{later}; the training goes on, events waiting: {waiting}")
        begin = time.monotonic()
        with self._change:
            while not self._abandoned:
                short = self._closing and later.after_s is None
                limit_s = wait_s if later.after_s is None else later.after_s
                left_s = begin + (min(limit_s, FIRST_WAIT_S) if short else limit_s) - time.monotonic()
                if left_s <= 0:
                    return True
                self._change.wait(left_s)  # until then, or until something changes: perhaps the end of the run
            return False

    def _warn(self, message: str) -> None:
        now = time.monotonic()
        if now < self._next_warning:
            return
        self._next_warning, self._lost_told = now + WARN_EVERY_S, self.lost
        with contextlib.suppress(Exception):
            self.warn(f"{self.name}: {message}" + (f"; lost so far: {self.lost}" if self.lost else ""))
