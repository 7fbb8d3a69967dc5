"""The live page: to whom it shows what, and that no browser and no file can harm the run."""

import json
import os
import socket
import struct

import pytest

from dreamlit.live import server as servers
from dreamlit.live import stream
from dreamlit.live.files import RunFolder, datasets_of, without_secrets
from live_runs import TOKEN, ask, brief_goodbyes, emit, listen, picture, records, run_folder, serving, wait_for

root = pytest.fixture(run_folder)
serve = pytest.fixture(serving)
goodbyes = pytest.fixture(scope="module", autouse=True)(brief_goodbyes)


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
