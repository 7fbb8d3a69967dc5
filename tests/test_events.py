"""What a run tells: its form is the documented one, its order is one, and nobody who listens can disturb it."""

import datetime
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import types
import warnings

import pytest

from dreamlit import event_schema, events

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs" / "events.md"
EXAMPLES = [
    events.RunStage(step=0, stage="started", of=None),
    events.RunStage(step=9, stage="interrupted", of=10),
    events.TrainingStatus(step=3, of=10, loss=0.25, steps_per_s=2.0, left_s=3.5),
    events.TrainingStatus(step=3, of=None, loss=math.nan, steps_per_s=2.0, left_s=math.inf),
    events.Checkpoint(step=4, path="checkpoints/step-000004.ckpt", adapters=("adapters/a.safetensors",), final=True),
    events.PreviewStep(step=4, prompt="a dog", seed=1, sampler_step=2, of=30),
    events.ValidationImages(
        step=4,
        images=(
            events.Image(path="report/grid.png", model="both"),
            events.Image(path="report/a.png", model="adapter", prompt="a dög", seed=2**40),
        ),
    ),
    events.Scores(step=4, scores={"subject_fidelity": {"base": 0.5, "adapter": math.nan}}),
    events.Warned(step=4, message="a step was left out"),
    events.Error(step=4, type="ValueError", message="no"),
    events.Error(step=4, type="ValueError", message="a broken name: \udcff"),
]


RULES = {
    "required": lambda wanted, value: set(wanted) <= set(value),
    "const": lambda wanted, value: value == wanted,
    "enum": lambda wanted, value: value in wanted,
    "minimum": lambda wanted, value: value >= wanted,
    "pattern": lambda wanted, value: re.search(wanted, value) is not None,
}


def trainer(folder="runs/dog"):
    return types.SimpleNamespace(default_root_dir=str(folder))


def record_of(event, number=0):
    time = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, datetime.timezone.utc)
    return events.Record(run="dog", fit="0" * 32, number=number, time=time, event=event)


def through_json(event):
    return json.loads(json.dumps(record_of(event).to_json(), allow_nan=False))


def faults(value, rule, root):
    """What of a value breaks a schema, for the keywords that ours uses; any other keyword is a KeyError."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    found = []
    for keyword, wanted in rule.items():
        if keyword == "$ref":
            found += faults(value, root["$defs"][wanted.rpartition("/")[2]], root)
        elif keyword == "type":
            names = wanted if isinstance(wanted, list) else [wanted]
            right = any(value is None if n == "null" else isinstance(value, kinds[n]) for n in names)
            bad = not right or (isinstance(value, bool) and "boolean" not in names)
            found += [f"{value!r} is not {wanted}"] if bad else []
        elif keyword == "properties":
            found += [fault for name in wanted if name in value for fault in faults(value[name], wanted[name], root)]
        elif keyword == "additionalProperties":
            found += [fault for item in value.values() for fault in faults(item, wanted, root)]
        elif keyword == "items":
            found += [fault for item in value for fault in faults(item, wanted, root)]
        elif keyword == "oneOf":
            fitting = [each for each in wanted if not faults(value, each, root)]
            found += [] if len(fitting) == 1 else [f"{len(fitting)} of oneOf fit"]
        elif keyword not in ("$schema", "$defs", "format"):
            right = RULES[keyword](wanted, value)
            found += [] if right else [f"{value!r} breaks {keyword} {wanted}"]
    return found


def faults_of(record):
    found = faults(record, event_schema.schema(), event_schema.schema())
    if importlib.util.find_spec("jsonschema"):
        import jsonschema

        validator = jsonschema.Draft202012Validator(event_schema.schema())
        assert validator.is_valid(record) == (not found)
    return found


# the form -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.kind)
def test_every_event_fits_the_schema(event):
    record = through_json(event)
    assert faults_of(record) == []
    assert record["event"] == event.kind and record["data"]["step"] == event.step
    assert record["level"] in event.levels


def test_there_is_an_example_of_every_event():
    assert {event.kind for event in EXAMPLES} == set(events.KINDS)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"event": "party"},
        {"event": "scores"},  # with the data of another
        {"level": "fatal"},
        {"number": -1},
        {"number": True},
        {"dropped": 0},
        {"data": {}},
        {"data": {"step": 0, "stage": "asleep", "of": None}},
        {"data": {"step": "0", "stage": "started", "of": None}},
    ],
    ids=str,
)
def test_a_record_of_another_form_breaks_the_schema(change):
    assert faults_of({**through_json(EXAMPLES[0]), **change})


def test_values_in_json_are_those_of_the_event():
    record = through_json(EXAMPLES[6])
    assert record["time"] == "2026-01-02T03:04:05.678Z" and record["version"] == events.VERSION
    assert record["data"]["images"][1] == {"path": "report/a.png", "model": "adapter", "prompt": "a dög", "seed": 2**40}
    status = through_json(EXAMPLES[3])["data"]
    assert status["loss"] is None and status["left_s"] is None and status["steps_per_s"] == 2.0
    record_of(EXAMPLES[9]).to_json()["data"]["message"].encode("utf-8")  # can be written
    assert through_json(EXAMPLES[7])["data"]["scores"] == {"subject_fidelity": {"base": 0.5, "adapter": None}}


def test_the_documented_schema_is_the_programs():
    block = re.search(r"```json\n(\{\s*\"\$schema\".*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert block and json.loads(block[1]) == event_schema.schema()


def test_the_recorded_quickstart_is_what_the_schema_says():
    """What a webhook got of a whole run, previews in the making included."""
    lines = (DOCS.parent / "events" / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    assert [fault for record in told for fault in faults_of(record)] == []
    numbers = [record["number"] for record in told]
    assert numbers == sorted(set(numbers)) and len({record["fit"] for record in told}) == 1
    assert {record["event"] for record in told} == set(events.KINDS) - {"error", "warning"}
    assert [record["data"]["stage"] for record in told if record["event"] == "run"] == ["started", "finished"]
    made: dict[tuple, list[int]] = {}
    for data in (record["data"] for record in told if record["event"] == "preview"):
        where = data["path"].rsplit("-", 1)[0]
        made.setdefault((data["step"], data["prompt"], data["seed"], where), []).append(data["sampler_step"])
    assert {steps for steps, *_ in made} == {0, 100, 200, 300, 400}
    assert all(steps == [5, 10, 15, 20] for steps in made.values())


def test_the_documents_name_every_field_of_every_event():
    text = DOCS.read_text(encoding="utf-8").partition("| `event` | level |")[2].partition("Paths are relative")[0]
    for name, rule in event_schema.schema()["$defs"].items():
        kind = events.KINDS.get(getattr(getattr(events, name), "kind", ""))
        row = next((line for line in text.splitlines() if kind and line.startswith(f"| `{kind.kind}`")), text)
        for field in set(rule["properties"]) - {"step"}:
            assert f"`{field}`" in row, f"{name}.{field}"


def test_levels_are_what_a_filter_may_rely_on():
    for event in EXAMPLES:
        assert event.level in event.levels and set(event.levels) <= set(events.LEVELS)
    stages = ("started", "finished", "interrupted", "failed")
    assert [events.RunStage(step=0, of=1, stage=stage).level for stage in stages] == [
        *("info", "info", "warning", "error"),
    ]


# the stream -----------------------------------------------------------------------------------------------------------


def test_all_subscribers_hear_the_same_records_in_the_order_of_emission():
    run, first, second = trainer(), [], []
    events.subscribe(run, first.append)
    events.subscribe(run, second.append)
    for event in EXAMPLES:
        events.emit(run, event)
    assert [record.event for record in first] == EXAMPLES and first == second
    assert [record.number for record in first] == list(range(len(EXAMPLES)))
    assert {record.run for record in first} == {"dog"} and len({record.fit for record in first}) == 1


def test_without_a_subscriber_nothing_happens():
    run = trainer()
    events.emit(run, EXAMPLES[0])
    assert vars(run) == {"default_root_dir": "runs/dog"}


def test_runs_in_one_process_hear_nothing_of_each_other():
    one, two = trainer("runs/one"), trainer("runs/two")
    heard = {"one": [], "two": []}
    events.subscribe(one, heard["one"].append)
    events.subscribe(two, heard["two"].append)
    events.emit(one, EXAMPLES[0])
    assert [record.run for record in heard["one"]] == ["one"] and heard["two"] == []


def test_a_second_fit_of_a_trainer_is_another_fit_and_counts_from_zero():
    run, earlier, later = trainer(), [], []
    leave = events.subscribe(run, earlier.append)
    events.emit(run, EXAMPLES[0])
    leave()
    leave()  # once more is no error
    events.subscribe(run, later.append)
    events.emit(run, EXAMPLES[1])
    assert len(earlier) == 1 and [record.number for record in later] == [0]
    assert later[0].fit != earlier[0].fit


@pytest.mark.parametrize("strict", [False, True], ids=["warnings", "warnings are errors"])
def test_a_failing_subscriber_reaches_neither_the_emitter_nor_the_others(strict):
    run, heard = trainer(), []

    def broken(record):
        raise OSError("disk full")

    events.subscribe(run, broken)
    events.subscribe(run, heard.append)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("error" if strict else "always")
        for _ in range(5):
            events.emit(run, EXAMPLES[0])
    assert len(heard) == 5
    assert [str(one.message) for one in seen if "disk full" in str(one.message)] == [
        "a subscriber to the run's events failed (OSError: disk full); the run goes on"
    ] * (not strict)


# what may be told -----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home" / "ann"
    (folder / "runs" / "dog").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    return folder


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{home}/runs/dog/checkpoints/last.ckpt is broken", "<run>/checkpoints/last.ckpt is broken"),
        ("{home}/runs/dog", "<run>"),
        ("{home}/runs/dog2/x is broken", "~/... is broken"),
        ("{home}/photos/ann.png is broken", "~/... is broken"),
        ("no file '{home}/My Photos/the ann.png': give one", "no file '~/...': give one"),
        ("{home}/My Photos/ann.png is broken", "~/... is broken"),
        ("{home}, {home}: twice", "~/..., ~/...: twice"),
        ("{home}a/x stays, /data/x stays", "{home}a/x stays, /data/x stays"),
        ("first\n{home}/a\nlast", "first\n~/...\nlast"),
    ],
)
def test_messages_name_no_path_of_the_home_folder_but_the_runs(home, said, told):
    assert events.scrubbed(said.format(home=home), home / "runs" / "dog") == told.format(home=home)


def test_a_run_given_by_a_relative_path_is_known_in_messages(home, monkeypatch):
    monkeypatch.chdir(home)
    assert events.scrubbed(f"{home}/runs/dog/a.ckpt", "runs/dog") == "<run>/a.ckpt"


def test_long_messages_are_cut(home):
    told = events.scrubbed("x" * 5000, home)
    assert len(told) == events.LONGEST_MESSAGE and told.endswith("x...")


def test_paths_are_told_relative_to_the_run(home, monkeypatch):
    root = home / "runs" / "dog"
    assert events.within(root / "adapters" / "a.safetensors", root) == "adapters/a.safetensors"
    assert events.within(home / "secret" / "b.png", root) == "b.png"
    monkeypatch.chdir(home)
    assert events.within(root / "a.ckpt", os.path.join("runs", "dog")) == "a.ckpt"
    (home / "disk").mkdir()
    (root / "checkpoints").symlink_to(home / "disk")
    assert events.within(root / "checkpoints" / "a.ckpt", root) == "checkpoints/a.ckpt"
    (home / "link").symlink_to(root)
    assert events.within(root / "a.ckpt", home / "link") == "a.ckpt"


def test_events_need_no_library():
    script = "import sys, dreamlit.events, dreamlit.delivery, dreamlit.discord\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "lightning", "numpy", "PIL", "yaml"} & set(loaded)
