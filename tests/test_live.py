"""The live page: what it tells of a run, and that a resume, a long history or a missing file tell the truth."""

import functools
import itertools
import json
import re
import threading

import pytest
from PIL import Image

from dreamlit.event_schema import schema
from dreamlit.live import curves, feed, files
from dreamlit.live import server as servers
from dreamlit.live.curves import read_rows
from dreamlit.live.feed import Place
from dreamlit.live.files import RunFolder
from dreamlit.live.stream import View
from live_runs import ask, brief_goodbyes, emit, listen, log, picture, records, run_folder, serving, told

root = pytest.fixture(run_folder)
serve = pytest.fixture(serving)
goodbyes = pytest.fixture(scope="module", autouse=True)(brief_goodbyes)


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
        file.write(
            json.dumps({**first, "number": 1, "data": {**first["data"], "step": 2, "loss": float("nan")}}).encode()
            + b"\n"
        )
        file.write(b'{"version": 1, "half')  # killed here; the next fit goes on behind it
    second = emit(root, "run", step=2, stage="started", of=4)
    with (root / "events.jsonl").open("ab") as file:
        file.write(json.dumps({**second, "data": {**second["data"], "step": 3}}).encode())
    messages = told(root)
    assert [record["data"]["step"] for record in records(messages)] == [0, 2, 2]
    assert records(messages)[1]["data"]["loss"] is None, "a browser cannot read NaN"
    assert sum(data["lines"] for event, data, _ in messages if event == "broken") == 5
    with (root / "events.jsonl").open("ab") as file:
        file.write(b"\n")
    last = [place for event, _, place in messages if event == "record"][-1]
    assert [record["data"]["step"] for record in records(told(root, Place.of(last)))] == [3]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("status", {"of": None, "loss": "0.5", "steps_per_s": 1.0, "left_s": None}),
        ("run", {"stage": 3, "of": 4}),
        ("images", {"images": [None]}),
        ("images", {"images": {"path": "previews/a.png", "model": "both"}}),
        ("scores", {"scores": {"subject_fidelity": 0.5}}),
        ("checkpoint", {"path": "a.ckpt", "adapters": "a.safetensors"}),
        ("preview", {"prompt": {}, "seed": 1, "sampler_step": 5, "of": 20}),
        ("warning", {}),
    ],
)
def test_an_event_of_another_shape_than_documented_is_left_out_and_counted(tmp_path, event, data):
    root = tmp_path / "dog"
    emit(root, event, step=1, **data)
    emit(root, "warning", step=2, message="behind it")
    emit(root, "of a later version", step=3)
    messages = told(root)
    assert [record["data"]["step"] for record in records(messages)] == [2, 3]
    assert [data["lines"] for name, data, _ in messages if name == "broken"] == [1]


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


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_of_an_endless_log_parts_are_read_from_its_beginning_to_its_end(tmp_path, monkeypatch, kind):
    log(tmp_path, "logs", range(5000), loss=float)
    if kind == "csv":
        (tmp_path / "logs/metrics.jsonl").unlink()
        rows = "".join(f"{step + 1:.1f},{step}\n" for step in range(5000))
        (tmp_path / "logs/metrics.csv").write_text(f"loss,step\n{rows}")
    monkeypatch.setattr(files, "MOST_BYTES", 16_000)
    monkeypatch.setattr(files, "PARTS", 16)
    points = read_rows(RunFolder(tmp_path)).series["loss"]
    assert all(step == loss for step, loss in points) and points == sorted(set(points))
    assert points[0][0] == 1 and points[-1][0] == 5000 and 100 < len(points) < 2000
    assert max(after[0] - before[0] for before, after in itertools.pairwise(points)) < 2 * 5000 / 16


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
