"""`dreamlit watch`, and the page as a callback of a run."""

import http.client
import json
import os
import pathlib
import socket
import subprocess
import sys
import warnings

import pytest
from lightning.pytorch import Callback

from dreamlit.callbacks.live_page import LivePage
from dreamlit.cli import main
from dreamlit.errors import ConfigError
from dreamlit.live.files import RunFolder
from dreamlit.live.server import PageServer
from live_runs import TOKEN, ask, brief_goodbyes, listen, records, run_folder, serving
from runs import base_config, checkpoint, fit, merged, run, write_photos

root = pytest.fixture(run_folder)
serve = pytest.fixture(serving)
goodbyes = pytest.fixture(scope="module", autouse=True)(brief_goodbyes)


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
    callbacks = {"plain": [], "watched": [page, {"class_path": "test_live_command.Looker"}], "busy": [busy]}
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
    import test_live_command  # as the configuration has imported it

    home, _ = home
    messages = test_live_command.Looker.seen_messages
    assert len(messages) == 3 and len(set(test_live_command.Looker.seen_addresses)) == 1
    for step, seen in enumerate(messages, 1):
        newest = [one["data"]["step"] for one in records(seen) if one["event"] == "status"]
        assert newest[-1:] in ([step], [step - 1] if step > 1 else []), "this step's or, before its callback, the last"
    host = test_live_command.Looker.seen_addresses[0].split("/")[2]
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
