"""One HTTP request to an endpoint, and what its answer means.

Standard library only. Nothing that is shown or raised here holds more of a URL than its scheme and host.
"""

from __future__ import annotations

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
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from dreamlit import __version__

LONGEST_RETRY_AFTER_S = 3600.0
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
