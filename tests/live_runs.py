"""A run's folder made by hand, servers for it, and what a browser would ask: for the tests of the live page."""

import http.client
import itertools
import json
import pathlib
import threading
import time

import pytest
from PIL import Image

from dreamlit.live import server as servers
from dreamlit.live.feed import Place
from dreamlit.live.files import RunFolder
from dreamlit.live.server import PageServer
from dreamlit.live.stream import Stream, View

TOKEN = "a-token-of-this-test"
numbers = itertools.count()


def emit(root: pathlib.Path, event: str, fit: str = "f" * 32, **data) -> dict:
    """Appends a record to the run's events, as EventLog does."""
    level = {"warning": "warning", "error": "error", "preview": "debug"}.get(event, "info")
    record = {"version": 1, "run": root.name, "fit": fit, "number": next(numbers), "time": "2026-01-02T03:04:05.000Z"}
    record |= {"event": event, "level": level, "data": data}
    root.mkdir(parents=True, exist_ok=True)
    with (root / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return record


def picture(path: pathlib.Path, colour: int = 0) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (20 * colour % 255, 90, 160)).save(path)
    return path


def log(root: pathlib.Path, folder: str, steps: range, **values) -> None:
    path = root / folder / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for step in steps:
            row = {name: value(step + 1) if callable(value) else value for name, value in values.items()}
            at = f"2026-01-02T03:04:{step % 60:02d}.000Z"
            file.write(json.dumps({"step": step, "time": at, **row}) + "\n")


def preview_run(root: pathlib.Path) -> pathlib.Path:
    """A run at step 20 of 60, with previews at steps 0 and 20 whose pictures were streamed."""
    emit(root, "run", step=0, stage="started", of=60)
    image = {"prompt": "a photo of sks dog", "seed": 1}
    picture(root / "previews/base/a.png", 1)
    for step in (0, 20):
        folder = f"previews/step-{step:06d}"
        for number in (5, 10):
            path = f"{folder}/raw/steps/a-{number:03d}.png"
            picture(root / path, number)
            emit(root, "preview", step=step, sampler_step=number, of=10, path=path, **image)
        images = [{"path": f"{folder}/grid.png", "model": "both", "prompt": None, "seed": None}]
        for model in ("raw", "ema"):
            picture(root / f"{folder}/{model}/a.png", 2)
            images.append({"path": f"{folder}/{model}/a.png", "model": "adapter", **image})
        picture(root / f"{folder}/grid.png", 3)
        images.append({"path": "previews/base/a.png", "model": "base", **image})
        emit(root, "images", step=step, images=images)
        emit(root, "scores", step=step, scores={"subject_fidelity": {"base": 0.3, "adapter": 0.3 + step / 100}})
    emit(root, "status", step=20, of=60, loss=0.5, steps_per_s=2.0, left_s=20.0)
    emit(root, "warning", step=20, message="mind the gap")
    log(root, "logs", range(20), loss=lambda step: 1 / step, **{"loss/instance": lambda step: 2 / step})
    (root / "config.yaml").write_text("trainer:\n  max_steps: 60\ndata:\n  datasets:\n  - id: dog\n  batch_size: 1\n")
    return root


def brief_goodbyes():
    """Servers close at once: no browser still loads pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers, "LINGER_S", 0.1)
        yield


def run_folder(tmp_path):
    return preview_run(tmp_path / "dog")


def serving(tmp_path):
    """Starts servers, and closes them after the test."""
    started = []

    def start(folder=tmp_path / "dog", **options):
        started.append(PageServer(RunFolder(folder), **options))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.close()


def ask(server, path, method="GET", headers=None):
    """Status, headers and body of an answer; `headers` replaces what http.client would send."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    given = {"Host": "127.0.0.1", **(headers or {})}
    connection.putrequest(method, path, skip_host=True)
    for name, value in given.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def told(root, place=None, view=None):
    """All that a browser is told of a run at this moment: [(event, data, id)]."""
    closing = threading.Event()
    closing.set()
    text = b"".join(Stream(view or View(RunFolder(root)), place or Place()).messages(closing)).decode()
    return parsed(text)


def parsed(text):
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
    return found


def records(messages):
    return [data for event, data, _ in messages if event == "record"]


def listen(server, after="", enough=lambda text: text.endswith("event: live\ndata: {}\n\n")):
    """The stream over a real connection, until it has said enough."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", "/api/events", headers={"Last-Event-ID": after} if after else {})
    answer, text = connection.getresponse(), ""
    assert answer.status == 200 and answer.headers["Content-Type"] == "text/event-stream"
    while not enough(text):
        more = answer.readline().decode()
        assert more, text
        text += more
    connection.close()
    return parsed(text)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
