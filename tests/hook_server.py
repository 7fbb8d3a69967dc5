"""An HTTP server on this machine that records what it gets and misbehaves as it is told."""

import collections
import http.server
import json
import threading
import types

SECRET, TOKEN = "a-secret-for-signing", "a-token-to-show"
PATIENCE_S = 60  # how long a test waits for what must come; far more than it takes


class Server:
    """An HTTP server on this machine. `answers` are the next ones (then 204): a status, a (status, headers), or a call
    that gets the handler and answers itself, or not."""

    def __init__(self, tls=None):
        self.answers, self.requests = collections.deque(), []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = outer.answers.popleft() if outer.answers else 204
                outer.requests.append(types.SimpleNamespace(path=self.path, headers=self.headers, body=body))
                if callable(answer):
                    answer(self)
                    return
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *args: None  # a client that went away
        if tls:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True)
        self.url = f"http://127.0.0.1:{self.http.server_port}/hooks/{TOKEN}-path"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def bodies(self):
        return [json.loads(request.body) for request in self.requests]

    def close(self):
        self.http.shutdown()
        self.http.server_close()
