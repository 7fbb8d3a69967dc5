"""The example in docs/callbacks.md is run as it stands there, and the table names what exists."""

import csv
import importlib
import pathlib
import re

import yaml

from runs import assert_same_state, base_config, checkpoint, fit, merged, write_photos

TEXT = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "callbacks.md").read_text(encoding="utf-8")


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return found


def test_the_example_logs_and_changes_nothing(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(block("python"))
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    plain = fit(base_config(tmp_path / "plain", tiny_model, photos))
    callbacks = yaml.safe_load(block("yaml"))["trainer"]["callbacks"]
    root = fit(merged(base_config(tmp_path / "run", tiny_model, photos), {"trainer.callbacks": callbacks}))
    with (root / "logs" / "metrics.csv").open() as file:
        norms = [float(row["gradient_norm"]) for row in csv.DictReader(file) if row.get("gradient_norm")]
    assert len(norms) == 2 and min(norms) > 0  # of four steps, every second
    assert_same_state(checkpoint(plain, 4)["state_dict"], checkpoint(root, 4)["state_dict"])


def test_every_shipped_callback_is_in_the_table():
    folder = pathlib.Path(importlib.import_module("dreamlit.callbacks").__path__[0])
    public = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(r"^class (\w+)\((?:Callback|Subscriber)\)", path.read_text(), re.MULTILINE)
    }
    assert {"RunReport", "EMA", "ScheduledSampling", "Webhook", "EventLog"} <= public
    assert all(f"`{name}`" in TEXT for name in public)
