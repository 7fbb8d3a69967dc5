"""The live page's server: what it tells of a run, to whom, and that no browser and no file can harm the run."""

import functools
import http.client
import itertools
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings

import pytest
from lightning.pytorch import Callback
from PIL import Image

from dreamlit.callbacks.live_page import LivePage
from dreamlit.cli import main
from dreamlit.errors import ConfigError
from dreamlit.event_schema import schema
from dreamlit.live import curves, feed, stream
from dreamlit.live import server as servers
from dreamlit.live.feed import Place
from dreamlit.live.files import RunFolder, datasets_of, without_secrets
from dreamlit.live.server import PageServer
from dreamlit.live.stream import Stream, View
from runs import base_config, checkpoint, fit, merged, run, write_photos

TOKEN = "a-token-of-this-test"
numbers = itertools.count()


# a run's folder, made by hand -----------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module", autouse=True)
def _brief_goodbyes():
    """Servers close at once: no browser still loads pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers, "LINGER_S", 0.1)
        yield


@pytest.fixture
def root(tmp_path):
    return preview_run(tmp_path / "dog")


@pytest.fixture
def serve(tmp_path):
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


# what it tells --------------------------------------------------------------------------------------------------------


def test_the_page_and_all_it_needs_come_from_the_server_itself(root, serve):
    server = serve()
    for path, (_, kind) in servers.ASSETS.items():
        status, headers, body = ask(server, path)
        assert status == 200 and headers["Content-Type"].startswith(kind) and body
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|@import|[\"'(`]//", text), "an address of somebody else"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert ask(server, "/", "HEAD")[2] == b""


def test_the_stream_tells_the_events_of_the_run_and_goes_on_from_any_of_them(root, serve):
    lines = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    server = serve()
    messages = listen(server)
    assert records(messages) == lines
    ids = [place for event, _, place in messages if event == "record"]
    for number, place in enumerate(ids[:-1]):
        assert records(told(root, Place.of(place))) == lines[number + 1 :]
    assert records(listen(server, after=ids[2])) == lines[3:]
    assert records(listen(server, after="no place at all")) == lines


def test_an_event_reaches_an_open_stream(root, serve):
    server = serve()
    threading.Timer(0.5, functools.partial(emit, root, "warning", step=21, message="fresh")).start()
    assert (
        records(listen(server, enough=lambda text: "fresh" in text and text.endswith("\n\n")))[-1]["data"]["step"] == 21
    )


def test_lines_that_are_no_record_are_counted_and_a_line_that_is_still_written_waits(tmp_path):
    root = tmp_path / "dog"
    first = emit(root, "run", step=0, stage="started", of=4)
    with (root / "events.jsonl").open("ab") as file:
        file.write(b'{"version": 1, "run": "d\n\xff\xfe\x00\n[1, 2]\n{"event": "status"}\n' + b"[" * 100_000 + b"\n")
        file.write(json.dumps({**first, "number": 1, "data": {"step": 2, "loss": float("nan")}}).encode() + b"\n")
        file.write(b'{"version": 1, "half')  # killed here; the next fit goes on behind it
    second = emit(root, "run", step=2, stage="started", of=4)
    with (root / "events.jsonl").open("ab") as file:
        file.write(json.dumps({**second, "data": {"step": 3}}).encode())
    messages = told(root)
    assert [record["data"]["step"] for record in records(messages)] == [0, 2, 2]
    assert records(messages)[1]["data"]["loss"] is None, "a browser cannot read NaN"
    assert sum(data["lines"] for event, data, _ in messages if event == "broken") == 5
    with (root / "events.jsonl").open("ab") as file:
        file.write(b"\n")
    last = [place for event, _, place in messages if event == "record"][-1]
    assert [record["data"]["step"] for record in records(told(root, Place.of(last)))] == [3]


def test_another_file_of_events_is_read_from_its_beginning(root):
    last = told(root)[-3:]
    place = Place.of([place for _, _, place in told(root) if place][-1])
    (root / "events.jsonl").unlink()
    fresh = [emit(root, "run", step=0, stage="started", of=9), emit(root, "warning", step=1, message="x" * 20_000)]
    messages = told(root, place)
    assert [event for event, *_ in messages].count("reset") == 1 and records(messages) == fresh, last
    content = (root / "events.jsonl").read_bytes()
    (root / "events.jsonl").write_bytes(content[: content.index(b"\n") + 1])  # cut short
    assert records(told(root, Place(feed.Place.of(str(place)).file, 10**6))) == fresh[:1]


def test_a_long_history_is_told_whole_but_for_statuses_that_are_old(tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "MOST_AT_ONCE", 4096)
    root = tmp_path / "dog"
    for step in range(100):
        emit(root, "status", step=step, of=100, loss=0.1, steps_per_s=1.0, left_s=None)
        if step % 10 == 0:
            emit(root, "warning", step=step, message="w")
    with (root / "events.jsonl").open("ab") as file:
        file.write(b"x" * 10_000 + b"\n")  # longer than is ever read at once
    emit(root, "warning", step=100, message="behind it")
    found = records(told(root))
    assert [one["data"]["step"] for one in found if one["event"] == "warning"] == [*range(0, 100, 10), 100]
    statuses = [one["data"]["step"] for one in found if one["event"] == "status"]
    assert statuses[-1] == 99 and len(statuses) < 20 and statuses == sorted(statuses)


@pytest.mark.parametrize("state", ["missing", "empty", "a broken log", "gone meanwhile"])
def test_the_page_says_what_is_missing_and_nothing_fails(tmp_path, serve, state):
    root = tmp_path / "dog"
    if state != "missing":
        root.mkdir()
    if state == "a broken log":
        (root / "logs").mkdir()
        (root / "logs/metrics.jsonl").write_bytes(
            b'\xff\n{"step": "a"}\n[]\n{"step": 1, "loss": null}\n{"loss": 1}\n{"st'
        )
        (root / "evaluation.jsonl").write_text('{"step": 1, "raw": 3}\n{"raw": {"loss": 1}}\n')
        (root / "scores.jsonl").write_text('{"step": 1, "models": [1]}\n{"models": {"raw": {"a": 1}}}\n')
        (root / "config.yaml").write_text("data: [\n")
        (root / "checkpoints").write_text("no folder")
        picture(root / "report/base/000-00.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    if state == "gone meanwhile":
        root.rmdir()
    server = serve(root)
    messages = listen(server)
    notes = " ".join(next(data for event, data, _ in messages if event == "about")["notes"])
    assert {"missing": "no folder", "empty": "is empty", "gone meanwhile": "no folder"}.get(
        state, "no events.jsonl"
    ) in notes
    assert json.loads(ask(server, "/api/curves")[2])["loss"] == {}
    assert ask(server, "/api/texts")[0] == 200


def test_a_run_without_events_is_read_off_its_files(root):
    with_events = records(told(root))
    (root / "events.jsonl").unlink()
    (root / "checkpoints").mkdir()
    (root / "checkpoints/step-000020.ckpt").write_bytes(b"")
    row = {"step": 20, "models": {"raw": {"clip_t": 0.25, "alarms": ["a"]}, "base": {"clip_t": 0.2}}, "photos": {}}
    (root / "scores.jsonl").write_text(json.dumps(row) + "\n")
    messages = told(root)
    found = records(messages)
    assert "no events.jsonl" in messages[0][1]["notes"][0]
    status = next(one["data"] for one in found if one["event"] == "status")
    assert (status["step"], status["of"], status["loss"]) == (20, 60, 1 / 20)
    assert status["steps_per_s"] == pytest.approx(1) and status["left_s"] == pytest.approx(40)
    for step in (0, 20):
        paths = [
            {i["path"] for i in one["data"]["images"]}
            for one in (*found, *with_events)
            if one["event"] == "images" and one["data"]["step"] == step
        ]
        assert len(paths) == 2 and paths[0] == paths[1], "the same pictures as the events name"
    scores = next(one["data"]["scores"] for one in found if one["event"] == "scores")
    assert scores == {"clip_t": {"adapter": 0.25, "base": 0.2}}
    assert [one["data"]["path"] for one in found if one["event"] == "checkpoint"] == ["checkpoints/step-000020.ckpt"]
    for record in found:
        definition = schema()["$defs"][
            {"images": "ValidationImages", "status": "TrainingStatus"}.get(
                record["event"], record["event"].capitalize()
            )
        ]
        assert set(definition["required"]) == set(record["data"]), "as a real event has them"


def test_pictures_tell_prompt_and_seed_by_their_recipe(tmp_path):
    from dreamlit.images import save_image

    recipe = json.dumps({"prompt": "ein Hündchen", "seed": 5})
    save_image(Image.new("RGB", (8, 8)), tmp_path / "previews/step-000007/ema/000-00.png", recipe)
    (image,) = records(told(tmp_path))[0]["data"]["images"]
    assert (image["prompt"], image["seed"], image["model"]) == ("ein Hündchen", 5, "adapter")


# the curves -----------------------------------------------------------------------------------------------------------


def test_a_resume_replaces_the_part_of_the_curve_that_it_does_again(tmp_path):
    log(tmp_path, "logs", range(10), loss=1.0)
    log(tmp_path, "logs-2", range(6, 8), loss=2.0)
    log(tmp_path, "logs-10", range(7, 9), loss=3.0)
    log(tmp_path, "logs-validate", range(3), loss=9.0)
    (tmp_path / "evaluation.jsonl").write_text('{"step": 5, "raw": {"loss": 0.5}, "ema": {"loss": 0.25}}\n')
    drawn = {name: [*map(tuple, points)] for name, points in View(RunFolder(tmp_path)).curves()["loss"].items()}
    assert drawn["loss"] == [*((step, 1.0) for step in range(1, 7)), (7, 2.0), (8, 3.0), (9, 3.0)]
    assert drawn["loss/val"] == [(5, 0.5)] and drawn["loss/val-ema"] == [(5, 0.25)]


def test_a_table_alone_gives_the_curves_too(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/metrics.csv").write_text("loss,loss/prior,step\n0.5,nan,0\n0.25,0.125,1\n,,2\nbroken\n")
    drawn = View(RunFolder(tmp_path)).curves()
    assert [tuple(point) for point in drawn["loss"]["loss"]] == [(1, 0.5), (2, 0.25)]
    assert [tuple(point) for point in drawn["loss"]["loss/prior"]] == [(2, 0.125)]
    assert drawn["source"] == "logs/metrics.csv"


def test_thinning_keeps_the_mean_and_the_order(monkeypatch):
    points = [(step, float(step**2 % 7)) for step in range(1, 1801)]
    thin, size = curves.thinned(points)
    assert len(thin) <= curves.POINTS and size == 3
    assert sum(value for _, value in thin) / len(thin) == pytest.approx(sum(v for _, v in points) / len(points))
    assert thin == sorted(thin)
    assert curves.thinned(points[:600]) == (points[:600], 1)


# what it shows to nobody ----------------------------------------------------------------------------------------------

REFUSED = (
    "config.yaml", "previews/../config.yaml", "../outside.png", "/etc/passwd", "previews/..%2f..%2foutside.png",
    "previews%2f..%2f..%2foutside.png", "..%5coutside.png", "previews/.hidden.png", ".git/a.png", "previews//a.png",
    "previews/out/a.png", "previews/out.png", "previews/pipe.png", "previews/folder.png", "previews/secret.txt",
    "checkpoints/a.png", "previews/base/a.png%00", "", "previews/base/a.png/", "C:a.png", "previews/base/a.PNG",
    "previews/in.png",
)  # fmt: skip


@pytest.fixture
def traps(root):
    """A run's folder with what leads out of it and what is not to be shown."""
    outside = picture(root.parent / "outside.png")
    (root / "previews/out").symlink_to(root.parent)
    picture(root.parent / "a.png")
    (root / "previews/out.png").symlink_to(outside)
    os.mkfifo(root / "previews/pipe.png")
    (root / "previews/folder.png").mkdir()
    picture(root / "previews/.hidden.png")
    (root / "previews/in.png").symlink_to(root / "previews/.hidden.png")
    picture(root / ".git/a.png")
    picture(root / "checkpoints/a.png")
    (root / "previews/secret.txt").write_text("secret")
    return root


def test_only_pictures_inside_the_run_are_served(traps, serve):
    server = serve()
    for path in REFUSED:
        assert ask(server, f"/files/{path}")[0] == 404, path
    for path in ("/config.yaml", "/events.jsonl", "/../dog/config.yaml", "/api", "/files", "//evil.example/"):
        assert ask(server, path)[0] == 404, path
    status, headers, body = ask(server, "/files/previews/step-000020/raw/a.png")
    assert status == 200 and body == (traps / "previews/step-000020/raw/a.png").read_bytes()
    assert headers["Content-Type"] == "image/png" and headers["X-Content-Type-Options"] == "nosniff"
    again = ask(server, "/files/previews/step-000020/raw/a.png?v=1", headers={"If-None-Match": headers["ETag"]})
    assert again[0] == 304 and again[2] == b""


def test_a_picture_elsewhere_in_the_run_is_served_once_an_event_names_it(traps, serve):
    server = serve()
    picture(traps / "mine/a b.png", 5)
    assert ask(server, "/files/mine/a%20b.png")[0] == 404
    emit(traps, "images", step=20, images=[{"path": "mine/a b.png", "model": "base", "prompt": None, "seed": None}])
    for path in ("../outside.png", "previews/out.png", ".git/a.png", "config.yaml"):
        emit(traps, "images", step=20, images=[{"path": path, "model": "base", "prompt": None, "seed": None}])
    assert ask(server, "/files/mine/a%20b.png")[2] == (traps / "mine/a b.png").read_bytes()
    for path in REFUSED:
        assert ask(server, f"/files/{path}")[0] == 404, path


def test_texts_and_logs_that_are_links_out_of_the_run_are_not_read(tmp_path, serve):
    root, outside = tmp_path / "dog", tmp_path / "outside"
    (root / "logs").mkdir(parents=True)
    outside.write_text('{"step": 0, "loss": 1}\n')
    for name in ("config.yaml", "plan.txt", "events.jsonl", "logs/metrics.jsonl", "evaluation.jsonl"):
        (root / name).symlink_to(outside)
    server = serve(root)
    assert json.loads(ask(server, "/api/texts")[2]) == {"config": None, "plan": None}
    assert json.loads(ask(server, "/api/curves")[2])["loss"] == {}


def test_the_configuration_is_shown_without_what_is_secret_in_it():
    text = (
        "webhook:\n  url: https://discord.com/api/webhooks/123/abcdef\n  more: ['http://user:pw@host:81/x?y', z]\n"
        "  api_key: sk-12345\n  hf_token: 'hf_98765'\n  password: >-\n    folded away\n  url_env: DOG_CHANNEL\n"
        "  token: null\n  keep_tokens: 1\n  secret_env: NAME\n- token: '1 2'\n"
    )
    shown = without_secrets(text)
    for secret in ("abcdef", "pw", "sk-12345", "hf_98765", "1 2", "123", "folded"):
        assert secret not in shown, secret
    for kept in ("https://discord.com/...", "DOG_CHANNEL", "token: null", "keep_tokens: 1", "secret_env: NAME"):
        assert kept in shown, kept


def test_the_plan_is_the_file_that_was_kept_or_else_the_datasets(root):
    folder = RunFolder(root)
    assert folder.plan() == "  datasets:\n  - id: dog"
    assert datasets_of("data:\n  datasets: a.json\n  seed: 1\n") == "  datasets: a.json"
    (root / "plan.txt").write_text("a table\n")
    assert folder.plan() == "a table\n"


# who may look ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil", "", "[::2]"]
)
def test_a_foreign_name_for_this_machine_is_refused(root, serve, host):
    server = serve()
    for path in ("/", "/api/events", "/api/texts", "/files/previews/base/a.png"):
        assert ask(server, path, headers={"Host": host})[0] == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9000", "LOCALHOST", "[::1]:80"])
def test_the_names_of_this_machine_are_answered_whatever_the_port_of_a_tunnel(root, serve, host):
    assert ask(serve(), "/", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_with_a_token_nothing_is_shown_without_it(root, serve, host):
    server = serve(host=host, token=TOKEN)
    for path in (*servers.ASSETS, *servers.ROUTES, "/files/previews/base/a.png"):
        for wrong in ("", "?token=", f"?token={TOKEN}x", f"?token={TOKEN[:-1]}", "?token=%ff"):
            status, headers, body = ask(server, path + wrong)
            assert status == 401 and TOKEN.encode() not in body and "Set-Cookie" not in headers
        assert ask(server, path, headers={"Authorization": "Bearer wrong"})[0] == 401
        assert ask(server, path, headers={"Cookie": f"{'dreamlit'}-{server.server_port}={TOKEN}; ="})[0] == 401
        if path != "/api/events":
            assert ask(server, path, headers={"Authorization": f"Bearer {TOKEN}"})[0] == 200
    status, headers, _ = ask(server, f"/?token={TOKEN}")
    cookie, _, rules = headers["Set-Cookie"].partition(";")
    assert status == 200 and TOKEN not in cookie and "HttpOnly" in rules and "SameSite=Strict" in rules
    assert ask(server, "/api/texts", headers={"Cookie": f"other=1; {cookie}"})[0] == 200
    assert ask(serve(host=host, token="another-token-of-it"), "/api/texts", headers={"Cookie": cookie})[0] == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_page_can_only_be_read(root, serve, method):
    status, headers, _ = ask(serve(), "/api/texts", method)
    assert status == 405 and headers["Allow"] == "GET, HEAD"


# browsers that are slow, gone or many ---------------------------------------------------------------------------------


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_browser_that_does_not_read_is_cut_off_and_the_others_are_served(root, serve, monkeypatch):
    monkeypatch.setattr(servers, "SEND_S", 0.3)
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
    for step in range(40):  # more than the buffers between two sockets hold
        emit(root, "warning", step=step, message="w" * 250_000)
    server = serve()
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", server.server_port))
    deaf.sendall(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    wait_for(lambda: server.watching == 1)
    assert len(records(listen(server))) > 40
    wait_for(lambda: server.watching == 0)
    deaf.close()


def test_browsers_that_vanish_leave_no_stream_and_no_word(root, serve, monkeypatch, recwarn):
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(stream, "POLL_S", 0.02)
    server = serve()
    for _ in range(5):
        gone = socket.create_connection(("127.0.0.1", server.server_port))
        gone.sendall(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        gone.recv(100)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no goodbye
        gone.close()
    wait_for(lambda: server.watching == 0)
    assert not [one for one in recwarn if "live page" in str(one.message)]


def test_a_silent_stream_gives_signs_of_life(root, serve, monkeypatch):
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(stream, "POLL_S", 0.02)
    listen(serve(), enough=lambda text: text.count("\n: still here\n") >= 2)


def test_too_many_browsers_are_told_to_come_later(root, serve, monkeypatch):
    monkeypatch.setattr(servers, "MOST_STREAMS", 1)
    server = serve()
    with socket.create_connection(("127.0.0.1", server.server_port)) as first:
        first.sendall(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_for(lambda: server.watching == 1)
        status, headers, _ = ask(server, "/api/events")
        assert status == 503 and headers["Retry-After"]
        assert ask(server, "/")[0] == 200


def test_garbage_on_the_line_harms_nobody(root, serve, capsys):
    server = serve()
    for garbage in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /%zz%ff HTTP/1.1\r\n\r\n",
        b"GET http://[bad/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"G" * 70_000,
    ):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as one:
            one.sendall(garbage)
            one.shutdown(socket.SHUT_WR)
            one.recv(1000)
    assert ask(server, "/")[0] == 200
    assert capsys.readouterr() == ("", "")


# the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "token_env"),
        (["--token-env", "NOT_SET_ANYWHERE"], "not set"),
        (["--token-env", "SHORT"], "16"),
        (["--token-env", "s3cret-value"], "never the token"),
        (["--port", "70000"], "65535"),
        (["--host", "a b"], "address"),
    ],
)  # fmt: skip
def test_wrong_options_of_watch_say_what_is_right(root, monkeypatch, capsys, options, said):
    monkeypatch.setenv("SHORT", "tooshort")
    assert main(["watch", str(root), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and "s3cret-value" not in error and "tooshort" not in error


def test_watch_refuses_a_file_and_a_port_that_is_taken(root, serve, capsys):
    assert main(["watch", str(root / "config.yaml")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main(["watch", str(root), "--port", str(serve().server_port)]) == 2
    assert "choose another" in capsys.readouterr().err


def test_watch_serves_from_another_process_without_heavy_libraries_until_it_is_interrupted(root):
    code = (
        "import sys, threading, _thread\nfrom dreamlit.cli import main\nfrom dreamlit.live import command\n"
        "def wait():\n    sys.stdin.readline()\ncommand.wait = wait\n"
        f"main(['watch', {str(root)!r}, '--token-env', 'PAGE_TOKEN'])\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'lightning', 'numpy', 'PIL', 'yaml'}))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PAGE_TOKEN": TOKEN},
    )  # fmt: skip
    assert child.stdout and child.stdin
    address = child.stdout.readline().split()[-1]
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=20)
    connection.request("GET", f"/api/texts?token={TOKEN}")
    assert "max_steps: 60" in json.loads(connection.getresponse().read())["config"]
    child.stdin.write("\n")
    child.stdin.close()
    rest = child.stdout.read()
    child.wait(timeout=60)
    assert TOKEN not in rest and "PAGE_TOKEN" in rest and rest.endswith("[]\n")


# the callback ---------------------------------------------------------------------------------------------------------


class Looker(Callback):
    """Looks at the page in the middle of the run, and leaves one browser behind that never reads."""

    def __init__(self) -> None:
        self.seen: list[dict] = []
        self.deaf: list[socket.socket] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        page = next(one for one in trainer.callbacks if isinstance(one, LivePage))
        if page.server is None:
            return
        Looker.seen_addresses.append(page.server.address)
        self.deaf.append(socket.create_connection(("127.0.0.1", page.server.server_port)))
        self.deaf[-1].sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        Looker.seen_messages.append(listen(page.server))

    seen_addresses: list = []
    seen_messages: list = []


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_model):
    """Three runs that differ in what looks on: nothing, a LivePage that is looked at, one whose port is taken."""
    home = tmp_path_factory.mktemp("live")
    photos = write_photos(home / "photos", [(64, 64), (64, 48)])
    page = {"class_path": "LivePage", "init_args": {"status_every_n_steps": 1}}
    taken = PageServer(RunFolder(home))
    busy = {"class_path": "LivePage", "init_args": {"port": taken.server_port}}
    callbacks = {"plain": [], "watched": [page, {"class_path": "test_live.Looker"}], "busy": [busy]}
    said = {}
    for name, given in callbacks.items():
        config = base_config(home / name, tiny_model, photos)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(merged(config, {"trainer.max_steps": 3, "trainer.callbacks": given}))
        said[name] = [str(one.message) for one in caught]
    taken.server_close()
    return home, said


def test_the_page_leaves_the_training_the_same_to_the_last_bit(home):
    home, _ = home
    from runs import assert_same_state

    for name in ("watched", "busy"):
        assert_same_state(checkpoint(home / "plain", 3)["state_dict"], checkpoint(home / name, 3)["state_dict"])


def test_the_page_is_there_while_the_run_goes_on_and_gone_afterwards(home):
    import test_live  # as the configuration has imported it

    home, _ = home
    messages = test_live.Looker.seen_messages
    assert len(messages) == 3 and len(set(test_live.Looker.seen_addresses)) == 1
    for step, seen in enumerate(messages, 1):
        newest = [one["data"]["step"] for one in records(seen) if one["event"] == "status"]
        assert newest[-1:] in ([step], [step - 1] if step > 1 else []), "this step's or, before its callback, the last"
    host = test_live.Looker.seen_addresses[0].split("/")[2]
    with pytest.raises(OSError):
        http.client.HTTPConnection(host, timeout=5).request("GET", "/")
    lines = [json.loads(line) for line in (home / "watched/events.jsonl").read_text().splitlines()]
    assert [one["data"]["stage"] for one in lines if one["event"] == "run"] == ["started", "finished"]
    assert [one["data"]["step"] for one in lines if one["event"] == "status"] == [1, 2, 3]


def test_a_page_that_cannot_be_served_is_one_warning(home):
    home, said = home
    assert len([line for line in said["busy"] if "LivePage" in line and "dreamlit watch" in line]) == 1
    assert not [line for line in said["watched"] if "LivePage" in line or "live page" in line]
    assert (home / "busy/events.jsonl").exists(), "the events are written all the same"


def test_what_the_page_cannot_do_is_refused_when_it_is_made(monkeypatch):
    monkeypatch.delenv("PAGE_TOKEN", raising=False)
    with pytest.raises(
        ConfigError, match=r"(?s)port is -1.*token_env.*PAGE_TOKEN is not set.*status_every_n_steps is 0"
    ):
        LivePage(port=-1, token_env="PAGE_TOKEN", status_every_n_steps=0)
    with pytest.raises(ConfigError, match="other machines reach"):
        LivePage(host="0.0.0.0")


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        ([{"class_path": "LivePage"}, {"class_path": "LivePage", "init_args": {"port": 1}}], "two LivePages"),
        ([{"class_path": "LivePage", "init_args": {"status_every_n_steps": 5}}, {"class_path": "EventLog"}], "nothing"),
    ],
)
def test_callbacks_that_get_in_each_others_way_are_refused(home, tiny_model, capsys, callbacks, said):
    config = base_config(home[0] / "refused", tiny_model, home[0] / "photos")
    assert run("fit", merged(config, {"trainer.callbacks": callbacks})) == 2
    assert said in capsys.readouterr().err


def test_beside_an_event_log_each_event_is_written_once(tmp_path, monkeypatch):
    from dreamlit import events as bus
    from dreamlit.callbacks.webhook import EventLog
    from dreamlit.events import Warned

    class Trainer:
        is_global_zero, fast_dev_run, global_step, default_root_dir = True, False, 0, str(tmp_path / "dog")

    for others in ([], [EventLog()]):
        trainer = Trainer()
        page = LivePage()
        trainer.callbacks = [page, *others]
        trainer.default_root_dir = str(tmp_path / f"dog{len(others)}")
        for one in trainer.callbacks:
            one.setup(trainer, None, "fit")
        bus.emit(trainer, Warned(step=1, message="once"))
        page.teardown(trainer, None, "fit")
        assert len((pathlib.Path(trainer.default_root_dir) / "events.jsonl").read_text().splitlines()) == 1
        for one in others:
            one.teardown(trainer, None, "fit")


def test_a_page_that_stays_open_waits_at_the_end_of_the_program_and_not_after_a_failure(tmp_path, monkeypatch):
    import atexit

    kept = []
    monkeypatch.setattr(atexit, "register", lambda *call: kept.append(call))
    for failed in (True, False):
        page = LivePage(stay_open=True)
        page.open(tmp_path)
        server, page._ended_badly = page.server, failed
        page.close()
        assert len(kept) == (0 if failed else 1)
    call, server = kept[0]
    assert ask(server, "/")[0] == 200
    monkeypatch.setattr("dreamlit.callbacks.live_page.wait", lambda: None)
    call(server)
    with pytest.raises(OSError):
        ask(server, "/")
