"""Who may look: on this machine everybody, from elsewhere whoever has the token; and how that is checked."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Iterator

SHORTEST_TOKEN = 16


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def access_faults(host: str, port: int, token_env: str | None) -> Iterator[str]:
    """What is wrong with the options of the page, a sentence each; the token itself is in none of them."""
    if not 0 <= port <= 65535:
        yield f"port is {port}; it must be from 1 to 65535, or 0 for one that is free"
    if not re.fullmatch(r"[\w.:-]+", host):
        yield f"host is {host!r}; give an address such as 127.0.0.1 or 0.0.0.0"
    elif token_env is None and not is_loopback(host):
        yield (
            f"host is {host!r}, which other machines reach; name in token_env an environment variable with a token "
            f"that they must know ({SHORTEST_TOKEN} characters or more), or leave host at 127.0.0.1"
        )
    if token_env is None:
        return
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", token_env):  # it may be the token itself, so it is not repeated
        yield "token_env is no name of an environment variable (capitals, digits, _); it is a name, never the token"
        return
    token = read_token(token_env)
    if not token:
        yield f"token_env: {token_env} is not set in the environment, or empty"
    elif len(token) < SHORTEST_TOKEN or not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        yield (
            f"token_env: what {token_env} holds is no token; it needs {SHORTEST_TOKEN} or more letters, digits or any "
            "of . _ ~ -, for example from: openssl rand -hex 16"
        )


def read_token(token_env: str | None) -> str | None:
    """The token, from the environment; None where none is asked for."""
    return None if token_env is None else os.environ.get(token_env, "").strip()


def host_is_ours(header: str | None) -> bool:
    """Whether a request's Host header names this machine.

    A page of another site can have its own name point at 127.0.0.1 and then ask us as if we were that site (DNS
    rebinding); its Host header gives it away. The port may be another one: that of a tunnel.
    """
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::\d{1,5})?", header or "")
    return bool(found) and is_loopback(found[1] or found[2])


def same(given: str | None, expected: str) -> bool:
    """Compares in a time that does not depend on how much is right."""
    return hmac.compare_digest((given or "").encode("utf-8", "replace"), expected.encode())


def pass_of(token: str) -> str:
    """What the browser keeps in a cookie once it has shown the token: follows from it, and does not give it away."""
    return hmac.new(token.encode(), b"dreamlit live page", hashlib.sha256).hexdigest()
