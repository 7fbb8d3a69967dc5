"""The web server of the live page: a few addresses to read from, nothing to write to."""

from __future__ import annotations

import functools
import http.cookies
import importlib.resources
import json
import shutil
import socket
import socketserver
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dreamlit.events import warn
from dreamlit.live.access import host_is_ours, is_loopback, pass_of, same
from dreamlit.live.feed import Place, read
from dreamlit.live.files import PICTURES, RunFolder, parts_of
from dreamlit.live.stream import Stream, View

ASSETS = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/run.js": ("run.js", "text/javascript"),
    "/curves.js": ("curves.js", "text/javascript"),
    "/pictures.js": ("pictures.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
SEND_S = 10.0
"""How long a browser may take for one portion of the stream before it is cut off; it then connects again by itself."""
IDLE_S = 30.0
MOST_STREAMS = 16
MOST_CONNECTIONS = 64
PORTION = 32 * 1024
LINGER_S = 2.0


class Named:
    """Which pictures the run's events name, as far as they lie outside the usual folders."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self._place, self._names = folder, Place(), set[str]()
        self._lock = threading.Lock()

    def __contains__(self, path: str) -> bool:
        with self._lock:
            while news := read(self.folder, self._place):
                if news.again:
                    self._names.clear()
                for _, record in news.records:
                    images = record["data"].get("images")
                    told = [record["data"], *(images if isinstance(images, list) else [])]
                    paths = [one.get("path") for one in told if isinstance(one, dict)]
                    self._names |= {name for name in paths if isinstance(name, str) and name.endswith(".png")}
                self._place = news.place
                if not news.more:
                    break
            return path in self._names


@functools.cache
def asset(name: str) -> bytes:
    return importlib.resources.files("dreamlit.live").joinpath(name).read_bytes()


class PageServer(ThreadingHTTPServer):
    """Serves the page of one run until it is closed.

    Args:
        folder: Folder of the run.
        host: Address to listen at; `access_faults` says which need a token.
        port: Port, 0 for a free one. `OSError` where it is taken.
        token: What a browser must show: `?token=...`, or `Authorization: Bearer ...`. None: nothing.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: RunFolder, host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> None:
        self.folder, self.host, self.token = folder, host, token
        self.view, self.named = View(folder), Named(folder)
        self.closing = threading.Event()
        self.streams = threading.BoundedSemaphore(MOST_STREAMS)
        self.watching = 0
        """Streams that are open."""
        self._connections = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._counting = threading.Lock()
        self._failed = False
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's also asks a name server for our own name, and waits
        self.server_name, self.server_port = self.host, self.server_address[1]

    @property
    def address(self) -> str:
        """Where a browser on this machine finds the page; without the token."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def start(self) -> None:
        """Serves from a thread that does not keep the program alive."""
        threading.Thread(target=self.serve_forever, args=(0.2,), name="dreamlit live page", daemon=True).start()

    def close(self) -> None:
        """Ends the streams with what there is left to tell, gives browsers a moment for the pictures, and stops."""
        watched = self.watching > 0
        self.closing.set()
        end = time.monotonic() + LINGER_S
        while watched and time.monotonic() < end:
            time.sleep(0.05)
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def count(self, change: int) -> None:
        with self._counting:
            self.watching += change

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError) and not self._failed:  # a browser that has gone is nobody's fault
            self._failed = True
            warn(f"the live page failed once ({type(error).__name__}: {error}); it goes on")


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dreamlit", ""
    timeout = IDLE_S
    server: PageServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an address may hold the token."""

    def do_GET(self) -> None:
        try:
            url = urllib.parse.urlsplit(self.path)
        except ValueError:
            self.answer(400, b"This is no address.\n")
            return
        self.query = dict(urllib.parse.parse_qsl(url.query))
        path = urllib.parse.unquote(url.path, errors="replace")
        if is_loopback(self.server.host) and not host_is_ours(self.headers.get("Host")):
            self.answer(421, b"This page answers to the names of this machine alone: localhost or 127.0.0.1.\n")
        elif not self.may_look():
            self.answer(401, b"This page needs its token: put ?token=... behind the address.\n")
        elif path in ASSETS:
            name, kind = ASSETS[path]
            self.answer(200, asset(name), f"{kind}; charset=utf-8", self.cookie() if path == "/" else {})
        elif path in ROUTES:
            ROUTES[path](self)
        elif path.startswith("/files/"):
            self.picture(path.removeprefix("/files/"))
        else:
            self.answer(404, b"There is nothing here.\n")

    do_HEAD = do_GET

    def refuse(self) -> None:
        self.close_connection = True  # what the request carries is not read
        self.answer(405, b"This page can only be read.\n", more={"Allow": "GET, HEAD", "Connection": "close"})

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = refuse

    # who may look -------------------------------------------------------------------------------------------------

    @property
    def cookie_name(self) -> str:
        return f"dreamlit-{self.server.server_port}"  # cookies of all ports of a machine lie together

    def may_look(self) -> bool:
        token = self.server.token
        if token is None:
            return True
        kind, _, bearer = self.headers.get("Authorization", "").partition(" ")
        try:
            cookies = http.cookies.SimpleCookie(self.headers.get("Cookie", ""))
        except http.cookies.CookieError:
            cookies = http.cookies.SimpleCookie()
        shown = cookies[self.cookie_name].value if self.cookie_name in cookies else None
        ways = [same(self.query.get("token"), token), same(shown, pass_of(token))]
        return any([*ways, kind.lower() == "bearer" and same(bearer.strip(), token)])

    def cookie(self) -> dict[str, str]:
        if self.server.token is None or "token" not in self.query:
            return {}
        return {"Set-Cookie": f"{self.cookie_name}={pass_of(self.server.token)}; Path=/; HttpOnly; SameSite=Strict"}

    # what there is ------------------------------------------------------------------------------------------------

    def answer(
        self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8", more: dict[str, str] | None = None
    ) -> None:
        self.begin(code, {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def answer_json(self, content: Any) -> None:
        self.answer(200, json.dumps(content, allow_nan=False).encode(), "application/json")

    def texts(self) -> None:
        folder = self.server.folder
        self.answer_json({"config": folder.config(), "plan": folder.plan()})

    def curves(self) -> None:
        self.answer_json(self.server.view.curves())

    def picture(self, path: str) -> None:
        """A PNG of the previews or the report, or one that an event names."""
        parts, folder = parts_of(path), self.server.folder
        shown = parts and parts[-1].endswith(".png") and (parts[0] in PICTURES or path in self.server.named)
        mark = folder.mark(path) if shown else None
        file = folder.open(path) if mark else None
        if file is None or mark is None:
            self.answer(404, b"There is no such picture.\n")
            return
        with file:
            tag = f'"{mark[0]:x}-{mark[1]:x}"'
            if self.headers.get("If-None-Match") == tag:
                self.begin(304, {"ETag": tag})
                return
            size = file.seek(0, 2)
            file.seek(0)
            self.begin(200, {"Content-Type": "image/png", "Content-Length": str(size), "ETag": tag})
            if self.command != "HEAD":
                shutil.copyfileobj(file, self.wfile)

    def events(self) -> None:
        """The stream. Goes on where the browser's Last-Event-ID, or `?after=`, says."""
        if not self.server.streams.acquire(blocking=False):
            self.answer(503, b"Too many browsers look at this page.\n", more={"Retry-After": "5"})
            return
        self.server.count(+1)
        try:
            self.close_connection = True
            self.begin(200, {"Content-Type": "text/event-stream", "Connection": "close"})
            if self.command != "HEAD":
                self.connection.settimeout(SEND_S)
                place = Place.of(self.headers.get("Last-Event-ID") or self.query.get("after", ""))
                self.send_all(Stream(self.server.view, place))
        finally:
            self.server.count(-1)
            self.server.streams.release()

    def send_all(self, stream: Stream) -> None:
        """Sends small messages together, so that a long history does not go out in thousands of packets."""
        waiting = b""
        for part in stream.messages(self.server.closing):
            waiting += part or b""
            if not part or len(waiting) > PORTION:
                self.wfile.write(waiting)
                waiting = b""
        self.wfile.write(waiting)


ROUTES: dict[str, Callable[[Handler], None]] = {
    "/api/events": Handler.events,
    "/api/curves": Handler.curves,
    "/api/texts": Handler.texts,
}
