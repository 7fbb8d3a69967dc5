"""What one browser gets while it looks: the run's events and what else has changed, as server-sent events."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from dreamlit.live import curves, feed, found
from dreamlit.live.curves import Rows
from dreamlit.live.feed import Place
from dreamlit.live.files import RunFolder

POLL_S = 0.4
HEARTBEAT_S = 10.0
RETRY_MS = 2000
LARGEST_SHARE = 0.03
"""Of one core, for reading the logs again and again: a long run's are large, and the run may be in this process."""


class View:
    """A run's folder with what all browsers share: the logged numbers, read once for each change."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.version = 0
        """Rises with each change of the curves."""
        self.rows = Rows({})
        self._signature: tuple[Any, ...] = ()
        self._next = 0.0
        self._lock = threading.Lock()

    def refresh(self) -> int:
        """Reads the logs again if they have changed and it is not too early; returns the version."""
        with self._lock:
            now, signature = time.monotonic(), curves.signature(self.folder)
            if signature != self._signature and now >= self._next:
                self.rows, self._signature = curves.read_rows(self.folder), signature
                self._next = now + (time.monotonic() - now) / LARGEST_SHARE
                self.version += 1
            return self.version

    def curves(self) -> dict[str, Any]:
        self.refresh()
        return {"version": self.version, **curves.curves(self.folder, self.rows)}

    def about(self) -> dict[str, Any]:
        """What there is and, in `notes`, what is missing, a sentence each."""
        return {"run": self.folder.name, "events": self.folder.mark(feed.FILE) is not None, "notes": [*self._notes()]}

    def _notes(self) -> Iterator[str]:
        folder = self.folder
        if not folder.root.is_dir():
            yield f"There is no folder {folder.root} yet. The page goes on looking for it."
        elif not folder.names():
            yield "The run's folder is empty. The page goes on looking."
        else:
            if not folder.mark(feed.FILE):
                yield (
                    "This run has no events.jsonl, so whether it still goes on, its warnings and errors, and previews "
                    "in the making are not known. The rest is read off its files. For the next run add the callback "
                    "EventLog or LivePage."
                )
            if not self.rows.series:
                yield "There are no logged numbers yet (logs/metrics.jsonl), so there are no curves of the loss."
            if not folder.mark("config.yaml"):
                yield "There is no config.yaml."


def message(event: str, data: Any, place: Place | None = None) -> bytes:
    """One server-sent event."""
    name = f"id: {place}\n" if place else ""
    return f"{name}event: {event}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode()


class Stream:
    """All that one browser is to get, from a place in the run's events on.

    The file is the queue: a browser that is slow or gone keeps nothing waiting in memory, and nobody waits for it.
    """

    def __init__(self, view: View, place: Place) -> None:
        self.view, self.place = view, place
        self._version, self._about, self._found = -1, None, None
        self._begun = False

    def messages(self, closing: threading.Event) -> Iterator[bytes]:
        """Messages as they come, heartbeats between them, b"" where all is said for now; ends when `closing` is set."""
        yield f"retry: {RETRY_MS}\n\n".encode()
        beat = time.monotonic()
        while True:
            last = closing.is_set()
            sent = False
            for part in self.news():
                sent = True
                yield part
            if last:
                yield message("closed", {})
                return
            if sent:
                beat = time.monotonic()
            elif time.monotonic() - beat > HEARTBEAT_S:
                beat = time.monotonic()
                yield b": still here\n\n"
            yield b""
            closing.wait(POLL_S)

    def news(self) -> Iterator[bytes]:
        """What has happened since the last call."""
        version = self.view.refresh()
        about = self.view.about()
        if about != self._about:
            self._about = about
            yield message("about", about)
        news = feed.read(self.view.folder, self.place)
        if news is None:
            yield from self._from_files()
        else:
            yield from self._from_events(news)
        if version != self._version:
            self._version = version
            yield message("curves", {"version": version})

    def _from_events(self, news: feed.News) -> Iterator[bytes]:
        if news.again or self._found is not None:
            self._found = None
            yield message("reset", {})
        told = False
        while True:
            for place, record in news.records:
                told = True
                yield message("record", record, place)
            if news.broken:
                yield message("broken", {"lines": news.broken})
            self.place = news.place
            more = feed.read(self.view.folder, self.place) if news.more else None
            if more is None:
                break
            news = more
        if told or not self._begun:
            self._begun = True
            yield message("live", {})

    def _from_files(self) -> Iterator[bytes]:
        signature = (found.signature(self.view.folder), self.view.version)
        if signature == self._found:
            return
        self._found, self.place = signature, Place()
        self._begun = True
        yield message("reset", {})
        for record in found.records(self.view.folder, self.view.rows):
            yield message("record", record)
        yield message("live", {})
