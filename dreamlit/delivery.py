"""Delivery of a run's events to an HTTP endpoint by a thread of its own: in order, retried, never in anyone's way.

Standard library only. Nothing that is shown or raised here holds more of a URL than its scheme and host.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import email.utils
import functools
import hashlib
import hmac
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from dreamlit import __version__, events
from dreamlit.events import PreviewStep, Record, TrainingStatus

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 3600.0
WARN_EVERY_S = 60.0
MOST_FAULTS = 8
"""Tries of one message that an endpoint answers with HTTP 500 and the like: by then it may be the message."""
LARGE_BYTES, SLOWEST_BYTES_PER_S = 100_000, 100_000
"""A larger message may be what an endpoint cuts off or never finishes; and how much longer it may take."""
GATEWAY_CODES = (502, 503, 504, *range(520, 531))
"""Answers of a proxy that finds nobody behind it: no message is to blame."""


class Later(Exception):
    """Not delivered, worth another try. `after_s`: the wait asked for; `fault`: this message may be what is wrong."""

    def __init__(self, reason: str, after_s: float | None = None, fault: bool = False) -> None:
        super().__init__(reason)
        self.after_s, self.fault = after_s, fault


class Refused(Exception):
    """Not delivered, and no further try would help."""


# one request ----------------------------------------------------------------------------------------------------------


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the message and the token to a place that nobody named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where to post, and how to prove who posts.

    `secret` signs: the header `X-Dreamlit-Signature` is `v1=` and the hexadecimal HMAC-SHA256 (RFC 2104) of the value
    of `X-Dreamlit-Timestamp` (Unix seconds of this try), a full stop and the body. `token` is sent as it is, as
    `Authorization: Bearer` (RFC 6750).
    """

    url: str = dataclasses.field(repr=False)
    timeout_s: float = 10.0
    secret: str | None = dataclasses.field(default=None, repr=False)
    token: str | None = dataclasses.field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The URL without what may be a secret: path, query and credentials."""
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/..."

    def post(self, body: bytes, content_type: str) -> None:
        """Posts once; any 2xx answer is success.

        Raises:
            Later: when the endpoint cannot be reached, is too slow, or answers 408, 425, 429 or 5xx.
            Refused: with any other answer; redirects are not followed.
        """
        headers = {"Content-Type": content_type, "User-Agent": f"dreamlit/{__version__}"}
        if self.secret:
            headers |= signature(self.secret, body, int(time.time()))
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url, body, headers, method="POST")
        try:
            self._opener.open(request, timeout=self.timeout_s + len(body) / SLOWEST_BYTES_PER_S).close()
        except urllib.error.HTTPError as error:
            with error:
                raise answer(error.code, error.headers.get("Retry-After")) from None
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and faults of TLS are OSErrors
            cause = getattr(error, "reason", error)
            down = isinstance(cause, (ConnectionRefusedError, socket.gaierror, ssl.SSLError))
            raise Later(self._reason(cause), fault=len(body) > LARGE_BYTES and not down) from None

    @functools.cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        tls = urllib.request.HTTPSHandler(context=ssl.create_default_context())
        local = is_loopback(urllib.parse.urlsplit(self.url).hostname or "")
        proxies = urllib.request.ProxyHandler({} if local else None)  # a proxy's loopback is another machine's
        return urllib.request.build_opener(NoRedirect, tls, proxies)

    def _reason(self, cause: Any) -> str:
        text = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(cause)
        for secret in filter(None, (self.url, self.url.partition("://")[2].partition("/")[2], self.token, self.secret)):
            text = text.replace(secret, "***")
        return text


def signature(secret: str, body: bytes, timestamp: int) -> dict[str, str]:
    """The two headers that sign a body; see `Endpoint`."""
    signed = hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()
    return {"X-Dreamlit-Timestamp": str(timestamp), "X-Dreamlit-Signature": f"v1={signed}"}


def answer(code: int, retry_after: str | None) -> Exception:
    """What an answer other than 2xx means."""
    if code in (408, 425, 429) or code >= 500:
        after = retry_after_s(retry_after, time.time())
        return Later(f"HTTP {code}", after, fault=code >= 500 and code not in GATEWAY_CODES)
    return Refused(f"HTTP {code}, a redirect, which is not followed" if 300 <= code < 400 else f"HTTP {code}")


def retry_after_s(value: str | None, now: float) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3: seconds or a date), at most an hour; None if it says nothing.

    Args:
        value: The header.
        now: Unix time in seconds.
    """
    if not value:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value.strip()):
        wait = float(value)
    else:
        try:
            wait = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(wait, 0.0), LONGEST_RETRY_AFTER_S)


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_fault(url: str, allow_http: bool) -> str | None:
    """What is wrong with an endpoint's URL, without quoting it: it may be a secret."""
    if not url.isascii() or re.search(r"[\s\x00-\x20\x7f]", url):
        return "holds a space or another character that a URL cannot have"
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL: its host or port cannot be read"
    if parts.scheme not in ("https", "http") or not host:
        return "must begin with https:// and a host"
    if parts.username is not None or parts.password is not None:
        return "holds a user name or password; use token_env"
    if parts.fragment:
        return "has a part after '#', which is never sent"
    if parts.scheme == "http" and not (allow_http or is_loopback(host)):
        return "is plain http, which anyone on the way can read; use https, or allow_http: true in a network you trust"
    return None


# the thread -----------------------------------------------------------------------------------------------------------


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
