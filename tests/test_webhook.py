"""Webhooks and the event log: what is sent to whom, which settings are refused, and a training that does not notice."""

import email.message
import email.policy
import hashlib
import hmac
import json
import time
import types
import warnings

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image

from dreamlit import delivery, discord, events
from dreamlit.callbacks.webhook import EventLog, Webhook
from dreamlit.cli import main
from dreamlit.errors import ConfigError
from hook_server import PATIENCE_S, SECRET, TOKEN, Server
from recorder import rows
from runs import assert_same_state, base_config, checkpoint, fit, merged, run, write_config, write_photos
from test_events import faults_of, record_of


@pytest.fixture(autouse=True)
def _secrets_and_short_waits(monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.setenv("HOOK_TOKEN", TOKEN)
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.002)
    monkeypatch.setattr(delivery, "LONGEST_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3)


# the messages ---------------------------------------------------------------------------------------------------------


def fake_trainer(root, callbacks, steps=4):
    return types.SimpleNamespace(
        default_root_dir=str(root),
        callbacks=callbacks,
        is_global_zero=True,
        fast_dev_run=False,
        global_step=0,
        estimated_stepping_batches=steps,
        state=types.SimpleNamespace(fn="fit"),
    )


def raw(url, **options):
    return Webhook(kind="raw", url=url, secret_env="HOOK_SECRET", flush_seconds=PATIENCE_S, **options)


def posted_by(callback, run_events, root):
    """Lets a webhook hear these events of a run and waits until it has posted them."""
    trainer = fake_trainer(root, [callback])
    callback.setup(trainer, None, "fit")
    for event in run_events:
        events.emit(trainer, event)
    callback.teardown(trainer, None, "fit")


def test_raw_messages_are_signed_records(server, tmp_path):
    posted_by(raw(server.url, token_env="HOOK_TOKEN"), [events.Checkpoint(step=3, path="ä.ckpt")], tmp_path / "dog")
    (request,) = server.requests
    stamp = request.headers["X-Dreamlit-Timestamp"]
    signed = hmac.new(SECRET.encode(), stamp.encode() + b"." + request.body, hashlib.sha256).hexdigest()
    assert request.headers["X-Dreamlit-Signature"] == f"v1={signed}" and abs(time.time() - int(stamp)) < PATIENCE_S
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["Content-Type"] == "application/json"
    content = json.loads(request.body)
    assert faults_of(content) == [] and (content["run"], content["data"]["path"]) == ("dog", "ä.ckpt")
    assert SECRET.encode() not in request.body and SECRET not in str(request.headers)


def test_a_raw_message_says_what_was_lost_before_it(server, tmp_path):
    server.answers.append(404)
    with pytest.warns(UserWarning, match="404"):
        posted_by(raw(server.url), [events.Checkpoint(step=n, path="a") for n in (1, 2)], tmp_path)
    first, second = server.bodies()
    assert "dropped" not in first and second["dropped"] == 1 and faults_of(second) == []


KINDS = [
    events.RunStage(step=0, stage="started", of=4),
    events.TrainingStatus(step=100, of=400, loss=0.1, steps_per_s=1.0, left_s=3.0),
    events.PreviewStep(step=1, prompt="p", seed=1, sampler_step=1, of=2),
    events.RunStage(step=2, stage="interrupted", of=4),
    events.Error(step=2, type="E", message="m"),
]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["run", "status", "run", "error"]),
        ({"level": "debug"}, ["run", "status", "preview", "run", "error"]),
        ({"level": "warning"}, ["run", "error"]),
        ({"level": "error"}, ["error"]),
        ({"events": ["error", "status"]}, ["status", "error"]),
        ({"events": ["run"], "level": "warning"}, ["run"]),
        ({"status_every_n_steps": 30}, ["run", "run", "error"]),
    ],
    ids=str,
)
def test_filters_let_through_what_they_say(server, tmp_path, options, expected):
    posted_by(raw(server.url, **options), KINDS, tmp_path)
    assert [body["event"] for body in server.bodies()] == expected


def parts_of(request):
    """The parts of a multipart form: name -> (file name, content type, content)."""
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + request.body, policy=email.policy.HTTP)
    found = {}
    for part in message.iter_parts():  # pyright: ignore[reportAttributeAccessIssue]
        name = part.get_param("name", header="content-disposition")
        found[name] = (part.get_filename(), part.get_content_type(), part.get_payload(decode=True))
    return found


def test_discord_gets_an_embed_and_the_first_ten_images(server, tmp_path, monkeypatch):
    monkeypatch.setenv("CHANNEL", server.url)
    for number in range(12):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").unlink()
    told = [events.Image(path=f"{n}.png", model="adapter", prompt=f"dog {n} @everyone", seed=n) for n in range(12)]
    posted_by(
        Webhook(kind="discord", url_env="CHANNEL"),
        [events.ValidationImages(step=5, images=tuple(told)), events.Error(step=6, type="E", message="m" * 9000)],
        tmp_path,
    )
    parts = parts_of(server.requests[0])
    payload = json.loads(parts.pop("payload_json")[2])
    assert payload["allowed_mentions"] == {"parse": []}
    (embed,) = payload["embeds"]
    assert "step 5" in embed["title"] and "dog 9" in embed["description"] and "2 more" in embed["description"]
    kept = [n for n in range(10) if n != 3]  # one is gone, the message still comes
    assert [part[2] for part in parts.values()] == [(tmp_path / f"{n}.png").read_bytes() for n in kept]
    assert list(parts) == [f"files[{n}]" for n in range(9)] and {part[1] for part in parts.values()} == {"image/png"}
    error = json.loads(server.requests[1].body)
    assert len(error["embeds"][0]["description"]) <= 4096
    assert error["embeds"][0]["color"] != embed["color"]


def test_images_of_a_discord_message_stay_below_its_limit(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(bytes(400))
    monkeypatch.setattr(discord, "MOST_IMAGE_BYTES", 1000)
    event = events.ValidationImages(step=1, images=tuple(events.Image(path=f"{n}.png", model="base") for n in range(3)))
    body, _ = discord.discord_message(record_of(event), 0, tmp_path)
    assert body.count(b"filename=") == 2


@pytest.mark.parametrize("event", KINDS, ids=lambda event: event.kind)
def test_every_event_has_words_for_discord(event, tmp_path):
    body, kind = discord.discord_message(record_of(event), 7, tmp_path)
    (embed,) = json.loads(body)["embeds"]
    assert kind == "application/json" and embed["title"] and embed["description"]
    assert str(event.step) in json.dumps(embed) or event.kind == "error"
    assert "7 messages before this one were lost" in embed["footer"]["text"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_time_left_in_words(seconds, said):
    assert discord.duration(seconds) == said


# settings -------------------------------------------------------------------------------------------------------------

GOOD = {"kind": "raw", "url": "https://example.org/hooks/1234", "secret_env": "HOOK_SECRET"}
WRONG = {
    "no url": ({"url": None}, ["no URL", "url_env"]),
    "both": ({"url_env": "HOOK_TOKEN"}, ["url and url_env are both given"]),
    "empty url": ({"url": ""}, ["must begin with https://"]),
    "kind": ({"kind": "discrod"}, ["'discrod'", "'discord'"]),
    "event": ({"events": ["runn"]}, ["'runn'", "'run'"]),
    "no event": ({"events": []}, ["events is []", "status"]),
    "twice": ({"events": ["run", "run"]}, ["each once"]),
    "level": ({"level": "warn"}, ["'warn'", "'warning'"]),
    "left out": ({"level": "error", "events": ["scores", "error"]}, ["'scores'", "leaves out"]),
    "unset token": ({"token_env": "NO_SUCH_TOKEN"}, ["token_env", "NO_SUCH_TOKEN", "not set"]),
    "unset url": ({"url": None, "url_env": "NO_SUCH_URL"}, ["url_env", "NO_SUCH_URL", "not set"]),
    "empty": ({"token_env": "EMPTY"}, ["EMPTY", "empty"]),
    "two lines": ({"token_env": "TWO_LINES"}, ["TWO_LINES", "cannot be sent"]),
    "no secret": ({"secret_env": None}, ["raw needs secret_env"]),
    "discord token": ({"kind": "discord", "secret_env": None, "token_env": "HOOK_TOKEN"}, ["would do nothing"]),
    "http": ({"url": "http://example.org/hooks/1234"}, ["plain http", "allow_http"]),
    "status": ({"events": ["run"], "status_every_n_steps": 5}, ["status_every_n_steps would do nothing"]),
    "steps": ({"status_every_n_steps": 0}, ["status_every_n_steps is 0"]),
    "timeout": ({"timeout_seconds": 0.0}, ["timeout_seconds is 0"]),
    "flush": ({"flush_seconds": float("inf")}, ["flush_seconds is inf"]),
    "waiting": ({"most_waiting": 0}, ["most_waiting is 0"]),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_setting_is_named(mistake, monkeypatch):
    monkeypatch.setenv("EMPTY", " ")
    monkeypatch.setenv("TWO_LINES", f"{TOKEN}\r\nX: y")
    changes, expected = WRONG[mistake]
    with pytest.raises(ConfigError) as refusal:
        Webhook(**{**GOOD, **changes})
    message = str(refusal.value)
    assert [part for part in expected if part not in message] == [] and message.count("\n  - ") == 1, message
    assert "1234" not in message and TOKEN not in message


def test_a_secret_in_the_place_of_a_name_is_not_repeated():
    with pytest.raises(ConfigError) as refusal:
        Webhook(**{**GOOD, "token_env": "ghp_s3cr3t", "secret_env": "Correct-Horse"})
    message = str(refusal.value)
    assert "ghp" not in message and "Horse" not in message and message.count("is a name, never the value") == 2


def test_all_wrong_settings_come_in_one_report():
    with pytest.raises(ConfigError) as refusal:
        Webhook(kind="x", events=["y"], level="z", most_waiting=0, timeout_seconds=-1)
    assert str(refusal.value).count("\n  - ") == 6


def test_a_literal_discord_url_is_warned_of_without_showing_it():
    with pytest.warns(UserWarning, match="url_env") as seen:
        Webhook(kind="discord", url="https://discord.com/api/webhooks/1/abcdef")
    assert "abcdef" not in "".join(str(one.message) for one in seen)


def test_a_wrong_setting_stops_the_command_before_anything_is_made(tmp_path, tiny_sd_model, photos, capsys):
    hook = {"class_path": "Webhook", "init_args": {"kind": "raw", "url": "https://example.org", "token_env": "NOPE"}}
    config = configured(tmp_path / "run", tiny_sd_model, photos, [hook])
    assert main(["fit", "--config", str(write_config(tmp_path / "run.yaml", config))]) == 2
    said = capsys.readouterr().err
    assert "NOPE" in said and "secret_env" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


# the run --------------------------------------------------------------------------------------------------------------


def configured(root, model, photos, callbacks, **changes):
    config = base_config(root, model, photos)
    config["model"]["family"]["class_path"] = "SD"
    config["model"]["adapter"]["init_args"] = {"rank": 2, "dropout": 0.2}
    return merged(config, {"trainer.max_steps": 3, "trainer.callbacks": callbacks, **changes})


def hook(kind, **options):
    secret = {"secret_env": "HOOK_SECRET"} if kind == "raw" else {}
    return {"class_path": "Webhook", "init_args": {"kind": kind, **secret, **options}}


def story(records):
    return [(r["event"], r["data"].get("stage"), r["data"]["step"]) for r in records]


def test_the_story_of_a_run_reaches_everyone_once(tmp_path, tiny_sd_model, photos, server, monkeypatch, capsys):
    channel = Server()
    monkeypatch.setenv("CHANNEL", channel.url)
    report = {"prompts": ["a photo of sks dog"], "seeds": [3], "width": 64, "height": 64, "steps": 2}
    callbacks = [
        hook("raw", url=server.url, status_every_n_steps=2, flush_seconds=60.0, token_env="HOOK_TOKEN"),
        {"class_path": "RunReport", "init_args": report},
        hook("discord", url_env="CHANNEL", flush_seconds=60.0, events=["images"]),
        {"class_path": "EventLog", "init_args": {"status_every_n_steps": 1}},
        {"class_path": "recorder.Recorder", "init_args": {"path": str(tmp_path / "seen.jsonl")}},
    ]
    changes = {"trainer.accumulate_grad_batches": 2, "checkpoint.every_n_steps": 2}
    root = fit(configured(tmp_path / "run", tiny_sd_model, photos, callbacks, **changes))
    logged = [json.loads(line) for line in (root / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [faults_of(record) for record in logged] == [[]] * len(logged)
    assert [record["number"] for record in logged] == list(range(len(logged)))
    status = [("status", None, step) for step in (1, 2, 3)]
    saved = [("checkpoint", None, 2), ("checkpoint", None, 3)]
    begin, end = ("run", "started", 0), ("run", "finished", 3)
    assert story(logged) == [begin, *status[:2], saved[0], status[2], saved[1], ("images", None, 3), end]
    assert server.bodies() == [r for r in logged if r["event"] != "status" or r["data"]["step"] == 2]
    losses = [row["loss"] for row in rows(tmp_path / "seen.jsonl")]  # Lightning has halved each
    for record, step in zip([r for r in logged if r["event"] == "status"], range(3), strict=True):
        assert record["data"]["loss"] == pytest.approx(sum(losses[2 * step : 2 * step + 2]), rel=1e-5)
        assert record["data"]["of"] == 3 and (record["data"]["left_s"] == 0) == (step == 2)
    told = [record["data"] for record in logged if record["event"] == "checkpoint"]
    assert [data["final"] for data in told] == [False, True]
    images = next(record["data"]["images"] for record in logged if record["event"] == "images")
    for path in (*(p for data in told for p in (data["path"], *data["adapters"])), *(i["path"] for i in images)):
        assert (root / path).exists(), path
    (request,) = channel.requests
    files = [part[2] for name, part in parts_of(request).items() if name != "payload_json"]
    assert files == [(root / image["path"]).read_bytes() for image in images] and len(files) == 3
    kept = "".join(path.read_text(errors="replace") for path in root.rglob("*.yaml"))
    kept += str(checkpoint(root, 3)) + "".join(capsys.readouterr())
    assert "HOOK_SECRET" in kept and SECRET not in kept and channel.url not in kept
    channel.close()
    goes_on = [{"class_path": "EventLog", "init_args": {"status_every_n_steps": 1}}]
    longer = {**changes, "trainer.max_steps": 4}
    fit(configured(tmp_path / "run", tiny_sd_model, photos, goes_on, **longer), "--ckpt_path", "last")
    later = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()][len(logged) :]
    story_on = [("run", "started", 3), ("status", None, 4), ("checkpoint", None, 4), ("run", "finished", 4)]
    assert story(later) == story_on and [record["number"] for record in later] == [0, 1, 2, 3]
    assert len({record["fit"] for record in logged}) == 1 and later[0]["fit"] != logged[0]["fit"]


def test_training_with_a_dead_endpoint_is_the_same_to_the_last_bit(tmp_path, tiny_sd_model, photos, dead_url):
    dead = hook("raw", url=dead_url, status_every_n_steps=1, flush_seconds=0.2)
    without = fit(configured(tmp_path / "without" / "run", tiny_sd_model, photos, []))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with_dead = fit(configured(tmp_path / "with" / "run", tiny_sd_model, photos, [dead]))
    said = [str(one.message) for one in seen if "Webhook" in str(one.message)]
    assert "not delivered within" in said[-1]
    assert len(said) == 2 and all(TOKEN not in text for text in said)  # once in this minute, and once at the end
    assert (without / "run.safetensors").read_bytes() == (with_dead / "run.safetensors").read_bytes()
    for key in ("state_dict", "optimizer_states", "loops", "lr_schedulers"):
        assert_same_state(checkpoint(without, 3)[key], checkpoint(with_dead, 3)[key])


def test_a_run_that_fails_says_why_and_names_no_path_of_the_home_folder(
    tmp_path, tiny_sd_model, photos, server, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    photo = tmp_path / "private" / "ann.png"

    def broken(self, batch, batch_idx):
        raise ValueError(f"cannot use {photo} in {tmp_path / 'run'}/checkpoints")

    monkeypatch.setattr("dreamlit.module.DreamBooth.training_step", broken)
    callbacks = [hook("raw", url=server.url, flush_seconds=60.0)]
    with pytest.raises(ValueError, match="ann"):
        run("fit", configured(tmp_path / "run", tiny_sd_model, photos, callbacks))
    assert story(server.bodies()) == [("run", "started", 0), ("error", None, 0), ("run", "failed", 0)]
    assert server.bodies()[1]["data"] == {
        "step": 0,
        "type": "ValueError",
        "message": "cannot use ~/... in <run>/checkpoints",
    }
    assert str(tmp_path) not in str(server.bodies())


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SIGTERMException()], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_run_is_no_error(server, tmp_path, stop):
    callback = raw(server.url)
    trainer = fake_trainer(tmp_path, [callback])
    callback.setup(trainer, None, "fit")
    callback.on_train_start(trainer, None)
    trainer.global_step = 2
    callback.on_exception(trainer, None, stop)
    assert story(server.bodies()) == [("run", "started", 0), ("run", "interrupted", 2)]
    assert not callback._delivery._thread.is_alive()  # pyright: ignore[reportOptionalMemberAccess]


def test_a_failure_before_the_training_reaches_every_subscriber(server, tmp_path):
    callbacks = [raw(server.url), EventLog()]  # a broken photo is found before any callback is set up
    trainer = fake_trainer(tmp_path, callbacks)
    for callback in callbacks:
        callback.on_exception(trainer, None, OSError("broken photo"))  # pyright: ignore[reportArgumentType]
    assert story(server.bodies()) == [("error", None, 0), ("run", "failed", 0)]
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("change", [{"is_global_zero": False}, {"fast_dev_run": True}], ids=["second rank", "trial"])
def test_who_must_be_silent_is(server, tmp_path, change):
    callbacks = [raw(server.url), EventLog()]
    trainer = fake_trainer(tmp_path / "run", callbacks)
    vars(trainer).update(change)
    for callback in callbacks:
        callback.setup(trainer, None, "fit")
        callback.on_train_start(trainer, None)
        callback.on_train_batch_end(trainer, None, None, None, 0)
        callback.on_fit_end(trainer, None)
        callback.teardown(trainer, None, "fit")
    assert server.requests == [] and not (tmp_path / "run").exists()


def test_an_event_log_that_cannot_be_written_is_one_warning(tmp_path):
    (tmp_path / "run").write_text("a file in the place of the folder")
    log = EventLog()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        posted_by(log, KINDS, tmp_path / "run")
    assert len(seen) == 1 and "the run goes on" in str(seen[0].message)


def test_a_log_with_impossible_steps_is_refused():
    with pytest.raises(ConfigError, match="status_every_n_steps is 0"):
        EventLog(status_every_n_steps=0)
