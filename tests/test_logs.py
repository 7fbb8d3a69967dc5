"""A run's numbers: three files that agree, loggers of the user beside them, and failures that end nothing."""

import csv
import importlib.util
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import types
import warnings
import zlib

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from dreamlit import log_files
from dreamlit.curves import logged_losses
from dreamlit.log_files import RowFile, Table, append_whole, first_record, masked_crc, scalar_record
from dreamlit.logs import GIVEN_UP_AFTER, RunLogger, TensorBoard, guarded, run_loggers
from runs import assert_same_state, base_config, checkpoint, fit, merged, run, write_photos


class Kept(Logger):
    """A logger of a user's own: keeps what it is given in a file, or fails in it.

    Args:
        path: JSON lines of step and metrics.
        failing: Names of the methods that fail.
    """

    def __init__(self, path: str = os.devnull, failing: list[str] | None = None) -> None:
        super().__init__()
        self.path, self.failing = path, failing or []
        self.calls: list[str] = []

    name = version = "kept"

    @property
    def experiment(self):
        self.note("experiment")
        return self

    def note(self, what):
        self.calls.append(what)
        if what in self.failing:
            raise RuntimeError(f"the server does not like {what}")

    def log_metrics(self, metrics, step=None):
        self.note("log_metrics")
        with open(self.path, "a") as file:
            file.write(json.dumps([step, metrics]) + "\n")

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def finalize(self, status):
        self.note("finalize")


class RemovesLogs(Callback):
    """Puts a file in the place of the log folder after the first step, so that nothing can be written there."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        folder = pathlib.Path(trainer.default_root_dir) / "logs"
        if trainer.global_step == 2:
            shutil.rmtree(folder)
            folder.write_text("in the way")


# reading what was written ---------------------------------------------------------------------------------------------


def table(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def fields(data: bytes):
    """The fields of a protocol buffer: (number, value); read by the rules of the format, not by our writer's."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        yield key >> 3, data[at : at + size]
        at += size


def recorded(path: pathlib.Path) -> list[tuple[int, dict[str, float]]]:
    """Steps and scalars of an event file, whose first record must say its version."""
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        found.append(dict(fields(data[12 : 12 + size])))
        data = data[16 + size :]
    assert found[0][3] == b"brain.Event:2"
    rows = []
    for event in found[1:]:
        values = [dict(fields(value)) for _, value in fields(event[5])]
        rows.append((event[2], {value[1].decode(): struct.unpack("<f", value[2])[0] for value in values}))
    return rows


def event_file(folder: pathlib.Path) -> pathlib.Path:
    (path,) = folder.glob("events.out.tfevents.*")
    return path


# real runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_sd_model):
    folder = tmp_path_factory.mktemp("logs")
    config = base_config(folder / "run", tiny_sd_model, write_photos(folder / "photos", [(64, 64)] * 3))
    config["model"]["family"]["class_path"] = "SD"
    return merged(config, {"trainer.max_steps": 4})


@pytest.fixture(scope="module")
def plain(base):
    """A run of three steps and its resume."""
    root = fit(merged(base, {"trainer.max_steps": 3}))
    fit(base, "--ckpt_path", "last")
    return root


def test_the_three_files_say_the_same(plain):
    rows, said = table(plain / "logs" / "metrics.csv"), lines(plain / "logs" / "metrics.jsonl")
    shown = recorded(event_file(plain / "logs"))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert [line["step"] for line in said] == [step for step, _ in shown] == [0, 1, 2]
    for row, line, (_, values) in zip(rows, said, shown, strict=True):
        assert float(row["loss"]) == line["loss"] == pytest.approx(values["loss"], rel=1e-6)
        assert row["loss/prior"] == "nan" and line["loss/prior"] is None and "loss/prior" not in values


def test_a_resume_logs_apart_and_the_loss_plot_reads_both(plain):
    assert [row["step"] for row in table(plain / "logs-2" / "metrics.csv")] == ["3"]
    assert [step for step, _ in recorded(event_file(plain / "logs-2"))] == [3]
    losses = [float(row["loss"]) for name in ("logs", "logs-2") for row in table(plain / name / "metrics.csv")]
    assert logged_losses(plain, until_step=4)["loss"] == dict(enumerate(losses, 1))


def test_a_logger_of_the_user_stands_beside_the_files(base, plain, tmp_path):
    kept = {"class_path": "test_logs.Kept", "init_args": {"path": str(tmp_path / "kept")}}
    root = fit(merged(base, {"trainer.default_root_dir": str(tmp_path / "run"), "trainer.logger": kept}))
    said = lines(root / "logs" / "metrics.jsonl")
    assert [(step, row["loss"]) for step, row in lines(tmp_path / "kept")] == [
        (row["step"], row["loss"]) for row in said
    ]
    assert len(table(root / "logs" / "metrics.csv")) == 4 and not list(root.rglob("events.out*"))
    for part in ("state_dict", "optimizer_states"):  # it only looks
        assert_same_state(checkpoint(root, 4)[part], checkpoint(plain, 4)[part], part)


@pytest.mark.parametrize("logger", [False, ["test_logs.Kept", "TensorBoard"], "TensorBoard"], ids=str)
def test_a_run_that_logs_nowhere_can_go_on_and_says_so_once(base, plain, tmp_path, logger):
    callbacks = [{"class_path": "test_logs.RemovesLogs"}]
    loggers = [{"class_path": name} for name in logger] if isinstance(logger, list) else logger
    changes = {"trainer.default_root_dir": str(tmp_path / "run"), "trainer.logger": loggers}
    with pytest.warns(UserWarning, match="RunLogger failed in save") as seen:
        root = fit(merged(base, {**changes, "trainer.callbacks": callbacks}))
    told = [str(warning.message) for warning in seen if " failed " in str(warning.message)]
    failing = ["RunLogger", *(["TensorBoard"] if logger and "TensorBoard" in logger else [])]
    for name in failing:
        first, total = (line for line in told if line.startswith(name))
        assert "in save" in first and "the run goes on" in first and "times in this run" in total
    assert len(told) == 2 * len(failing)
    assert_same_state(checkpoint(root, 4)["state_dict"], checkpoint(plain, 4)["state_dict"])


@pytest.mark.parametrize("value", ["WandbLogger", ["WandbLogger"], {"class_path": "WandbLogger"}], ids=str)
def test_a_logger_whose_package_is_missing_is_an_error_with_the_command(base, tmp_path, capsys, value):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed here")
    assert run("fit", merged(base, {"trainer.logger": value, "trainer.default_root_dir": str(tmp_path / "run")})) == 2
    assert "pip install wandb" in capsys.readouterr().err and not (tmp_path / "run").exists()


class FakeRun:
    """As far as Lightning's logger asks for it: keeps the rows, or is a server that is down."""

    def __init__(self, rows):
        self.rows = rows
        self.config = types.SimpleNamespace(update=lambda *args, **kwargs: None)

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, row):
        if self.rows is None:
            raise ConnectionError("the server is down")
        self.rows.append(row)


@pytest.fixture
def wandb(monkeypatch):
    """A module that stands for an installed wandb; `rows` are what its run got, None: its server is down."""
    given = types.SimpleNamespace(asked=[], rows=[])
    module, lib, run_module = (types.ModuleType(name) for name in ("wandb", "wandb.sdk.lib", "wandb.wandb_run"))
    module.__dict__.update(run=None, init=lambda **asked: given.asked.append(asked) or FakeRun(given.rows))
    module.__dict__["require"] = lambda *args: None
    lib.__dict__["RunDisabled"] = type("RunDisabled", (), {})
    run_module.__dict__["Run"] = FakeRun
    for name, one in {"wandb": module, "wandb.sdk.lib": lib, "wandb.wandb_run": run_module}.items():
        monkeypatch.setitem(sys.modules, name, one)
    monkeypatch.setitem(sys.modules, "wandb.sdk", types.ModuleType("wandb.sdk"))
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return given


def test_wandb_gets_the_numbers_of_the_files_where_it_is_installed(base, plain, tmp_path, wandb):
    logger = {"class_path": "WandbLogger", "init_args": {"project": "dogs", "save_dir": str(tmp_path / "wandb")}}
    root = fit(merged(base, {"trainer.default_root_dir": str(tmp_path / "run"), "trainer.logger": logger}))
    assert [asked["project"] for asked in wandb.asked] == ["dogs"]
    said = lines(root / "logs" / "metrics.jsonl")
    assert [(row["trainer/global_step"], row["loss"]) for row in wandb.rows if "loss" in row] == [
        (row["step"], row["loss"]) for row in said
    ]
    assert not list(root.rglob("events.out*"))
    assert_same_state(checkpoint(root, 4)["state_dict"], checkpoint(plain, 4)["state_dict"])


def test_a_wandb_whose_server_is_down_is_a_warning(base, plain, tmp_path, wandb):
    wandb.rows = None
    logger = {"class_path": "WandbLogger", "init_args": {"save_dir": str(tmp_path / "wandb")}}
    with pytest.warns(UserWarning, match="WandbLogger failed in log_metrics.*the server is down") as caught:
        root = fit(merged(base, {"trainer.default_root_dir": str(tmp_path / "run"), "trainer.logger": logger}))
    assert len([one for one in caught if "WandbLogger failed" in str(one.message)]) == 2  # the first, and how often
    assert_same_state(checkpoint(root, 4)["state_dict"], checkpoint(plain, 4)["state_dict"])


def test_commands_that_measure_nothing_have_no_logs(base, tmp_path):
    root = tmp_path / "run"
    assert run("prepare", merged(base, {"trainer.default_root_dir": str(root)})) == 0
    assert not list(root.rglob("metrics.*")) and not list(root.rglob("events.*"))


# which loggers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, ["RunLogger", "TensorBoard"]),
        (True, ["RunLogger", "TensorBoard"]),
        (False, ["RunLogger"]),
        ([], ["RunLogger"]),
        (Kept, ["RunLogger", "Kept"]),
        ([Kept, TensorBoard], ["RunLogger", "Kept", "TensorBoard"]),
        (RunLogger, ["RunLogger"]),
    ],
)
def test_the_files_are_always_among_the_loggers(tmp_path, asked, expected):
    made = [kind() for kind in asked] if isinstance(asked, list) else asked() if isinstance(asked, type) else asked
    loggers = run_loggers(made, tmp_path, "fit")
    assert [type(logger).__name__ for logger in loggers] == expected and isinstance(loggers[0], RunLogger)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "there", "folder"),
    [
        ("fit", [], "logs"),
        ("fit", ["logs", "logs-2", "logs-4"], "logs-3"),
        ("validate", ["logs"], "logs-validate"),
        ("test", ["logs-test"], "logs-test-2"),
    ],
)
def test_each_call_has_a_folder_of_its_own(tmp_path, command, there, folder):
    for name in there:
        (tmp_path / name).mkdir()
    assert run_loggers(None, tmp_path, command)[0].save_dir == str(tmp_path / folder)


# files ----------------------------------------------------------------------------------------------------------------


def test_new_columns_keep_the_rows_that_are_there(tmp_path):
    file = Table(tmp_path / "a" / "metrics.csv")
    for row in ({"step": 0, "b": 1.5}, {"step": 1, "b": 2.5}, {"step": 2, "a": 'ä,\n"'}, {"b": 3.5, "step": 3}):
        file.waiting.append(row)
        file.write()
    assert table(file.path) == [
        {"a": "", "b": "1.5", "step": "0"},
        {"a": "", "b": "2.5", "step": "1"},
        {"a": 'ä,\n"', "b": "", "step": "2"},
        {"a": "", "b": "3.5", "step": "3"},
    ]
    assert [path.name for path in file.path.parent.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("new_column", [False, True])
def test_what_a_full_disk_refuses_is_written_whole_once_there_is_room(tmp_path, monkeypatch, new_column):
    file, text = Table(tmp_path / "metrics.csv"), RowFile(tmp_path / "metrics.jsonl")
    rows = [{"step": 0, "a": 1}, {"step": 1, "b" if new_column else "a": 2}, {"step": 2, "a": 3}]

    def write(row):
        file.waiting.append(row)
        text.waiting.append(json.dumps(row).encode() + b"\n")
        for each in (text, file):
            each.write()

    write(rows[0])
    before = file.path.read_bytes(), text.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(log_files, "append_whole", lambda path, data: cut_off(path, data))
        for each in (file, text):
            each.waiting.append(rows[1] if each is file else json.dumps(rows[1]).encode() + b"\n")
            with pytest.raises(OSError):
                each.write()
    assert (file.path.read_bytes(), text.path.read_bytes()) == before
    write(rows[2])
    assert [row["step"] for row in table(file.path)] == ["0", "1", "2"] and lines(text.path) == rows
    assert len(list(tmp_path.iterdir())) == 2


def cut_off(path, data):
    """`append_whole` where the file may grow by one byte only: a limit of the process, as a full disk has it."""
    script = (
        "import pathlib, resource, signal, sys\n"
        "from dreamlit.log_files import append_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "size = path.stat().st_size if path.exists() else 0\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1, size + 1))\n"
        "append_whole(path, sys.stdin.buffer.read())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], input=data, capture_output=True)
    assert b"no room" in done.stderr, done.stderr
    raise OSError("no room")


def test_a_folder_that_is_gone_is_made_again(tmp_path):
    logger = TensorBoard()
    logger.open(tmp_path / "logs")
    for step in range(2):
        logger.log_metrics({"loss": 0.5}, step)
        logger.save()
        found = recorded(event_file(tmp_path / "logs"))
        shutil.rmtree(tmp_path / "logs")
        assert found == [(step, {"loss": 0.5})]


def test_event_files_hold_what_was_logged():
    values = {"a": 0.5, "ü/b": -3e38, "nan": math.nan, "inf": math.inf, "large": 1e300}
    data = scalar_record(12.5, 2**40, values)
    event = dict(fields(data[12:-4]))
    assert event[1] == struct.pack("<d", 12.5) and event[2] == 2**40
    shown = [dict(fields(value))[1].decode() for _, value in fields(event[5])]
    assert shown == ["a", "ü/b"]


def test_checksums_are_castagnolis():
    """The check value of CRC-32C (RFC 3720, appendix B.4), masked as TFRecords mask it."""
    unmasked = (struct.unpack("<I", masked_crc(b"123456789"))[0] - 0xA282EAD8) & 0xFFFFFFFF
    assert (unmasked << 15 | unmasked >> 17) & 0xFFFFFFFF == 0xE3069283 != zlib.crc32(b"123456789")


def test_tensorboards_own_reader_takes_the_file(tmp_path):
    """Where one of the two packages is installed."""
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    data = first_record(1.0)[12:-4], scalar_record(2.0, 7, {"loss": 0.25})[12:-4]
    first, second = (proto.Event.FromString(part) for part in data)
    assert first.file_version == "brain.Event:2" and (second.step, second.wall_time) == (7, 2.0)
    assert [(value.tag, value.simple_value) for value in second.summary.value] == [("loss", 0.25)]


def test_an_append_makes_its_folder(tmp_path):
    append_whole(tmp_path / "a" / "b", b"1")
    append_whole(tmp_path / "a" / "b", b"2")
    assert (tmp_path / "a" / "b").read_bytes() == b"12"


# loggers that fail ----------------------------------------------------------------------------------------------------


def test_a_logger_that_fails_again_and_again_is_left_alone_after_two_warnings():
    logger = guarded(Kept(failing=["log_metrics"]))
    assert isinstance(logger, Kept) and type(logger).__name__ == "Kept"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(GIVEN_UP_AFTER + 5):
            logger.log_metrics({"loss": 1.0}, step)
            logger.save()
        logger.finalize("success")
    first, last, total = (str(warning.message) for warning in caught)
    assert "failed in log_metrics (RuntimeError: the server does not like log_metrics)" in first
    assert "nothing more" in last and f"failed {GIVEN_UP_AFTER} times" in total
    assert logger.calls.count("log_metrics") == GIVEN_UP_AFTER


def test_a_logger_that_recovers_is_used_on():
    logger = guarded(Kept(failing=["log_metrics"]))
    with warnings.catch_warnings(record=True):
        for step in range(3 * GIVEN_UP_AFTER):
            logger.failing = [] if step % 3 == 0 else ["log_metrics"]
            logger.log_metrics({"loss": 1.0}, step)
    assert logger.calls.count("log_metrics") == 3 * GIVEN_UP_AFTER


def test_a_logger_that_cannot_be_opened_is_not_opened_again():
    logger = guarded(Kept(failing=["experiment"]))
    with pytest.warns(UserWarning, match=r"failed in experiment .* nothing more"):
        logger.experiment.config.update({"goes": "nowhere"})
    logger.log_metrics({"loss": 1.0}, 0)
    assert logger.calls == ["experiment"]


def test_an_interruption_is_no_failure_of_a_logger():
    logger = guarded(Kept())
    logger.note = lambda what: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({}, 0)
