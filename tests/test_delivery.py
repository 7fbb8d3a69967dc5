"""Delivery by a thread to a real server that misbehaves: order, losses, waits, and what a URL may be."""

import datetime
import json
import shutil
import ssl
import subprocess
import threading
import time

import pytest

from dreamlit import delivery, events
from dreamlit.delivery import Delivery
from dreamlit.endpoints import LARGE_BYTES, Endpoint, Later, retry_after_s, url_fault
from hook_server import PATIENCE_S, SECRET, TOKEN, Server
from test_events import record_of


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.002)
    monkeypatch.setattr(delivery, "LONGEST_WAIT_S", 0.01)


def posting(endpoint):
    def post(record, dropped):
        endpoint.post(json.dumps({"number": record.number, "dropped": dropped}).encode(), "application/json")

    return post


def deliveries(url, **options):
    said = []
    return Delivery(posting(Endpoint(url, timeout_s=PATIENCE_S)), "hook", warn=said.append, **options), said


def checkpoints(count, first=0):
    return [record_of(events.Checkpoint(step=n, path="a.ckpt"), n) for n in range(first, first + count)]


def statuses(count, first=0):
    made = (events.TrainingStatus(step=n, of=None, loss=0.0, steps_per_s=1.0, left_s=None) for n in range(count))
    return [record_of(event, first + n) for n, event in enumerate(made)]


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def holding(gate, arrived):
    """An answer that is given when the gate opens."""

    def answer(handler):
        arrived.set()
        gate.wait(PATIENCE_S)
        handler.send_response(204)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


# the thread -----------------------------------------------------------------------------------------------------------


def test_what_is_put_arrives_once_and_in_order(server):
    sent, said = deliveries(server.url)
    for record in checkpoints(50):
        sent.put(record)
    assert sent.close(PATIENCE_S) == 0 and said == []
    assert server.bodies() == [{"number": number, "dropped": 0} for number in range(50)]


def slammed(handler):
    handler.connection.close()


def half(handler):
    handler.wfile.write(b"HTTP/1.1 20")
    handler.connection.close()


@pytest.mark.parametrize(
    "answer",
    [500, 503, 408, (429, {"Retry-After": "0"}), slammed, half],
    ids=["500", "503", "408", "429", "cut", "half"],
)
def test_a_failed_try_is_repeated_and_the_order_kept(server, answer):
    server.answers.extend([204, answer, answer, answer, 204, answer])
    sent, said = deliveries(server.url)
    for record in checkpoints(4):
        sent.put(record)
    assert sent.close(PATIENCE_S) == 0
    assert [body["number"] for body in server.bodies()] == [0, 1, 1, 1, 1, 2, 2, 3]
    assert len(said) == 1 and "the training goes on" in said[0]


def test_a_slow_endpoint_is_given_up_and_tried_again(server):
    gate, arrived = threading.Event(), threading.Event()
    server.answers.append(holding(gate, arrived))
    said = []
    sent = Delivery(posting(Endpoint(server.url, timeout_s=0.05)), "hook", warn=said.append)
    for record in checkpoints(2):
        sent.put(record)
    until(lambda: len(server.requests) >= 3)
    gate.set()
    assert sent.close(PATIENCE_S) == 0
    assert [body["number"] for body in server.bodies()][:2] == [0, 0] and "timed out" in said[0]


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 410, 413])
def test_what_no_further_try_would_mend_is_left_out_and_counted(server, status):
    other = Server()
    server.answers.append((status, {"Location": other.url}))
    sent, said = deliveries(server.url)
    for record in checkpoints(3):
        sent.put(record)
    assert sent.close(PATIENCE_S) == 1
    assert server.bodies() == [{"number": n, "dropped": int(n == 1)} for n in range(3)]
    assert other.requests == [] and f"HTTP {status}" in said[0] and said[-1].endswith("lost so far: 1")
    other.close()


def test_a_message_that_breaks_the_endpoint_does_not_hold_up_the_others(server):
    server.answers.extend([500] * delivery.MOST_FAULTS)
    sent, _ = deliveries(server.url)
    for record in checkpoints(2):
        sent.put(record)
    assert sent.close(PATIENCE_S) == 1
    assert server.bodies()[delivery.MOST_FAULTS :] == [{"number": 1, "dropped": 1}]


def test_a_large_message_that_is_always_cut_off_does_not_hold_up_the_others(server):
    endpoint = Endpoint(server.url, timeout_s=5)
    server.answers.extend([slammed] * delivery.MOST_FAULTS)

    def post(record, dropped):
        fill = "x" * 2 * LARGE_BYTES if record.number == 0 else ""
        endpoint.post(json.dumps({"number": record.number, "fill": fill}).encode(), "application/json")

    sent = Delivery(post, "hook", warn=lambda text: None)
    for record in checkpoints(2):
        sent.put(record)
    assert sent.close(PATIENCE_S) == 1
    assert [body["number"] for body in server.bodies()] == [0] * delivery.MOST_FAULTS + [1]


def test_a_gateway_without_its_server_is_waited_for(server):
    server.answers.extend([502] * 3 * delivery.MOST_FAULTS)
    sent, _ = deliveries(server.url)
    sent.put(checkpoints(1)[0])
    assert sent.close(PATIENCE_S) == 0 and len(server.requests) == 3 * delivery.MOST_FAULTS + 1


def test_a_message_that_cannot_be_made_is_left_out(server):
    def post(record, dropped):
        if record.number == 0:
            raise KeyError(SECRET)
        posting(Endpoint(server.url))(record, dropped)

    said = []
    sent = Delivery(post, "hook", warn=said.append)
    for record in checkpoints(2):
        sent.put(record)
    assert sent.close(PATIENCE_S) == 1 and server.bodies() == [{"number": 1, "dropped": 1}]
    assert "KeyError" in said[0] and SECRET not in "".join(said)


def test_emitting_waits_for_nobody_and_what_has_no_room_is_counted_where_it_was(server):
    gate, arrived = threading.Event(), threading.Event()
    server.answers.append(holding(gate, arrived))
    sent, _ = deliveries(server.url, most_waiting=10)
    sent.put(checkpoints(1)[0])
    assert arrived.wait(PATIENCE_S)
    for record in checkpoints(1000, first=1):  # returns although the endpoint answers nothing
        sent.put(record)
    assert not gate.is_set() and len(server.requests) == 1 and sent.lost == 990
    gate.set()
    assert sent.close(PATIENCE_S) == 990
    expected = [(0, 0), (991, 990), *((number, 0) for number in range(992, 1001))]
    assert [(body["number"], body["dropped"]) for body in server.bodies()] == expected


def test_of_too_many_the_passing_ones_go_first(server):
    gate, arrived = threading.Event(), threading.Event()
    server.answers.append(holding(gate, arrived))
    sent, said = deliveries(server.url, most_waiting=4)
    sent.put(checkpoints(1)[0])
    assert arrived.wait(PATIENCE_S)
    for record in (*checkpoints(2, 1), *statuses(30, 3), *checkpoints(1, 33)):
        sent.put(record)
    gate.set()
    assert sent.close(PATIENCE_S) == 30 - 1
    assert [(b["number"], b["dropped"]) for b in server.bodies()] == [(0, 0), (1, 0), (2, 0), (32, 29), (33, 0)]
    assert said[-1] == "hook: events lost: 29"


def test_losses_at_the_end_of_the_queue_are_told_by_the_next_event(server):
    server.answers.append(404)
    sent, _ = deliveries(server.url)
    sent.put(checkpoints(1)[0])
    until(lambda: sent.lost == 1)
    sent.put(checkpoints(1, 1)[0])
    sent.close(PATIENCE_S)
    assert server.bodies()[-1] == {"number": 1, "dropped": 1}


def test_the_end_does_not_wait_longer_than_it_may(server):
    gate, arrived = threading.Event(), threading.Event()
    server.answers.append(holding(gate, arrived))
    sent, said = deliveries(server.url)
    for record in checkpoints(3):
        sent.put(record)
    assert arrived.wait(PATIENCE_S)
    assert sent.close(0.05) == 3 and not gate.is_set()
    assert said == ["hook: not delivered within 0.05 s of the end: 3; events lost: 3"]
    gate.set()
    assert sent._thread is not None
    sent._thread.join(PATIENCE_S)
    assert len(server.requests) == 1  # given up is given up


def test_at_the_end_a_long_wait_is_cut_short_but_not_one_that_was_asked_for(monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.001)
    for asked, delivered in ((None, True), (1000.0, False)):
        tries, failed = [], threading.Event()

        def post(record, dropped, asked=asked, tries=tries, failed=failed):
            tries.append(record.number)
            if len(tries) == 1:
                failed.set()
                raise Later("down", asked)

        sent = Delivery(post, "hook", warn=lambda text: None)
        monkeypatch.setattr(delivery, "FIRST_WAIT_S", 1000.0)
        sent.put(checkpoints(1)[0])
        assert failed.wait(PATIENCE_S)
        monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.001)
        lost = sent.close(PATIENCE_S if delivered else 0.05)
        assert (lost, len(tries)) == ((0, 2) if delivered else (1, 1))


def test_waits_double_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 1.0)
    monkeypatch.setattr(delivery, "LONGEST_WAIT_S", 10.0)
    waits, tries = [], []

    def post(record, dropped):
        tries.append(record)
        if len(tries) <= 6:
            raise Later("down")

    sent = Delivery(post, "hook", warn=lambda text: None)
    monkeypatch.setattr(sent, "_wait", lambda later, wait_s: waits.append(wait_s) or True)
    sent.put(checkpoints(1)[0])
    assert sent.close(PATIENCE_S) == 0 and waits == [1, 2, 4, 8, 10, 10]


def test_retry_after_is_seconds_or_a_date():
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc).timestamp()
    expected = {
        "7": 7.0,
        "0.35": 0.35,
        "Thu, 01 Jan 2026 00:01:00 GMT": 60.0,
        "Thu, 01 Jan 2015 00:00:00 GMT": 0.0,
        "99999": 3600.0,
        "soon": None,
        "-3": None,
        "": None,
        None: None,
    }
    assert {value: retry_after_s(value, now) for value in expected} == expected


def test_the_wait_that_the_endpoint_asks_for_is_kept(server):
    server.answers.append((429, {"Retry-After": "0.3"}))
    sent, _ = deliveries(server.url)
    begin = time.monotonic()
    sent.put(checkpoints(1)[0])
    assert sent.close(PATIENCE_S) == 0 and time.monotonic() - begin >= 0.3


def test_trouble_is_told_once_a_minute(monkeypatch, server):
    server.answers.extend([404] * 40)
    sent, said = deliveries(server.url)
    for record in checkpoints(20):
        sent.put(record)
    until(lambda: sent.lost == 20)
    assert len(said) == 1
    sent._next_warning -= delivery.WARN_EVERY_S
    for record in checkpoints(20, 20):
        sent.put(record)
    until(lambda: sent.lost == 40)
    assert len(said) == 2 and "lost so far: 2" in said[1]  # 20 or 21
    assert sent.close(PATIENCE_S) == 40 and said[2:] == ["hook: events lost: 40"]


# the endpoint ---------------------------------------------------------------------------------------------------------


def test_tls_that_does_not_hold_delivers_nothing(server, tmp_path):
    """A server without TLS, and one whose certificate nobody has signed."""
    plain = Endpoint(server.url.replace("http:", "https:"), timeout_s=5)
    with pytest.raises(Later, match="SSL"):
        plain.post(b"{}", "application/json")
    assert server.requests == []
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    secure = Server(context)
    with pytest.raises(Later, match="certificate"):
        Endpoint(secure.url.replace("http:", "https:"), timeout_s=5).post(b"{}", "application/json")
    assert secure.requests == []
    secure.close()


def test_failures_show_no_more_of_the_url_than_its_host(dead_url):
    endpoint = Endpoint(f"{dead_url}?key={TOKEN}", token=TOKEN, secret=SECRET)
    with pytest.raises(Later) as failure:
        endpoint.post(b"{}", "application/json")
    for text in (str(failure.value), repr(endpoint), endpoint.shown):
        assert TOKEN not in text and SECRET not in text and "hooks" not in text
    assert endpoint.shown == dead_url.partition("/hooks")[0] + "/..."


def test_a_proxy_is_not_asked_for_this_machine(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    Endpoint(server.url, timeout_s=5).post(b"{}", "application/json")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("https://example.org/a?b=c", None),
        ("http://127.0.0.1:80/a", None),
        ("http://[::1]/a", None),
        ("http://localhost", None),
        ("http://example.org", "plain http"),
        ("http://127.0.0.1.example.org", "plain http"),
        ("ftp://example.org", "https://"),
        ("file:///etc/passwd", "https://"),
        ("example.org/a", "https://"),
        ("https://", "host"),
        ("https://ann:pw@example.org", "token_env"),
        ("https://example.org:port/", "port"),
        ("https://example.org/a b", "space"),
        ("https://example.org/a\r\nHost: b", "space"),
        ("https://exämple.org", "character"),
        ("https://example.org/#a", "#"),
    ],
)
def test_urls_that_are_refused(url, fault):
    said = url_fault(url, allow_http=False)
    assert (said is None) == (fault is None) and (fault is None or fault in str(said))
    assert said is None or "pw" not in said
    assert url_fault("http://example.org", allow_http=True) is None
