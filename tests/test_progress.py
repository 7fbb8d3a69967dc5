"""What the progress says: numbers of the samples seen lately, whether the data keeps up, and nothing when asked."""

import collections
import io
import math
import pathlib
import re
import types
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from rich.console import Console

from dreamlit.callbacks import progress as module
from dreamlit.callbacks.progress import RunProgress, advice, recent_losses
from dreamlit.errors import ConfigError
from runs import base_config, fit, merged, run, write_photos


class ToldAfter(Callback):
    """Notes in a file whether the progress hears of everything before this callback does."""

    def __init__(self, path: str) -> None:
        self.path = pathlib.Path(path)

    def on_train_end(self, trainer: Any, pl_module):
        told = trainer.callbacks.index
        self.path.write_text(str(told(trainer.progress_bar_callback) < told(self)))


class Clock:
    """Time that passes only when told."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


class Loader:
    """What the progress asks of a loader."""

    def __init__(self, workers: int, batches: int) -> None:
        self.waited_s, self.num_workers, self.batches = 0.0, workers, batches

    def __len__(self) -> int:
        return self.batches


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def screen(monkeypatch, clock) -> io.StringIO:
    """A terminal in the place of stderr."""
    text = io.StringIO()
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=text, force_terminal=True, width=160))
    return text


def trainer_of(total: float = 100, rank_zero: bool = True, workers: int = 0, batches: int = 500):
    return types.SimpleNamespace(
        estimated_stepping_batches=total,
        global_step=0,
        is_global_zero=rank_zero,
        accumulate_grad_batches=1,
        train_dataloader=Loader(workers, batches),
    )


def step(callback, trainer, loss: float, per_sample=(1.0,), role=(0,)) -> None:
    """One batch that ends an optimizer step."""
    trainer.global_step += 1
    batch = types.SimpleNamespace(role=torch.tensor(role))
    outputs = {"loss": torch.tensor(loss), "per_sample": torch.tensor(per_sample)}
    callback.on_train_batch_end(trainer, None, outputs, batch, 0)


def started(trainer, **options) -> RunProgress:
    callback = RunProgress(**options)
    callback.on_train_start(trainer, None)  # pyright: ignore[reportArgumentType]
    return callback


@pytest.mark.parametrize(("total", "expected"), [(4, "step 2 of 4, loss"), (math.inf, "step 2, loss")])
def test_a_run_without_a_last_step_says_no_time_left(capsys, clock, total, expected):
    trainer = trainer_of(total)
    trainer.accumulate_grad_batches = 3
    callback = started(trainer, line_every_s=0)
    trainer.global_step, clock.now = 1, clock.now + 4
    step(callback, trainer, 0.5)
    line = capsys.readouterr().err
    assert f"{expected} 1.5000, 0.50 steps/s" in line  # two steps in four seconds
    assert ("4 s left" in line) == (total == 4) and "inf" not in line


def test_losses_are_means_over_recent_samples_of_each_role(capsys, clock):
    trainer = trainer_of()
    callback = started(trainer, line_every_s=0)
    clock.now += 1
    step(callback, trainer, 0.4, (0.2, 0.6), (0, 0))
    assert "loss 0.4000, 1.00 steps/s" in capsys.readouterr().err  # one role: its loss is the loss
    step(callback, trainer, 0.2, (0.1, 0.7), (1, 0))
    assert "loss 0.3000, instance 0.5000, prior 0.1000, " in capsys.readouterr().err


def test_what_is_not_finite_is_counted_and_left_out_of_the_means():
    one, bad = torch.tensor(1.0), torch.tensor(math.nan)
    sample, role = torch.tensor([2.0]), torch.tensor([0])
    batches = collections.deque([(one, sample, role), (bad, sample * bad, role)])
    assert recent_losses(batches) == ["loss 1.0000", "1 of 2 batches not finite"]
    assert recent_losses(collections.deque([(bad, sample, role)])) == ["loss nan", "1 of 1 batches not finite"]


def test_old_batches_are_forgotten(capsys, clock):
    callback = started(trainer := trainer_of(total=1000), line_every_s=0)
    for number in range(module.RECENT_BATCHES + 1):
        clock.now += 1
        step(callback, trainer, 1e6 if number == 0 else 0.5)
    assert "loss 0.5000" in capsys.readouterr().err.splitlines()[-1]


def test_lines_come_now_and_then_and_at_the_end(capsys, clock):
    callback = started(trainer := trainer_of(total=10), line_every_s=30)
    for _ in range(10):
        clock.now += 8
        step(callback, trainer, 0.5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"step {n} of 10" for n in (1, 5, 9, 10)]


def test_the_losses_are_fetched_only_when_they_are_shown(clock, monkeypatch):
    """On a GPU a fetch waits for the device."""
    fetched = []
    monkeypatch.setattr(module, "recent_losses", lambda batches: fetched.append(len(batches)) or ["loss 0"])
    callback = started(trainer := trainer_of(total=1000), line_every_s=30)
    for _ in range(50):
        clock.now += 1
        step(callback, trainer, 0.5)
    assert fetched == [1, 31]


def test_the_share_of_waiting_is_said_and_above_a_fifth_what_to_change_once(capsys, clock):
    callback = started(trainer := trainer_of(), line_every_s=0)
    for _ in range(40):
        clock.now += 1
        trainer.train_dataloader.waited_s += 0.25
        step(callback, trainer, 0.5)
    said = capsys.readouterr().err
    assert said.count("data 25%") == 40
    assert said.count("raise data.num_workers (now 0)") == 1 and "25% of the time so far" in said
    callback = started(trainer, line_every_s=0)
    for _ in range(40):
        clock.now += 1
        trainer.train_dataloader.waited_s += 0.1
        step(callback, trainer, 0.5)
    assert "num_workers" not in capsys.readouterr().err


def test_a_share_is_of_the_time_since_the_last_line(capsys, clock):
    callback = started(trainer := trainer_of(), line_every_s=0)
    for waited in (1.0, 0.0):
        clock.now += 2
        trainer.train_dataloader.waited_s += waited
        step(callback, trainer, 0.5)
    first, second = capsys.readouterr().err.splitlines()
    assert "data 50%" in first and "data 0%" in second


def test_workers_that_start_anew_in_short_epochs_are_not_asked_to_be_more():
    assert "num_workers to 0" in advice(trainer_of(workers=2, batches=8))  # pyright: ignore[reportArgumentType]
    assert "raise data.num_workers (now 2)" in advice(trainer_of(workers=2))  # pyright: ignore[reportArgumentType]


def test_on_a_terminal_the_bar_shows_the_same_numbers(screen, clock):
    callback = started(trainer := trainer_of(total=4))
    for _ in range(4):
        clock.now += 1
        step(callback, trainer, 0.4, (0.2, 0.6), (1, 0))
    callback.on_train_end(trainer, None)  # pyright: ignore[reportArgumentType]
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())  # colours and moves of the cursor
    for part in ("4/4", "loss 0.4000, instance 0.6000, prior 0.2000, 1.00 steps/s, data 0%, 0 s left"):
        assert part in shown


def test_a_narrow_terminal_cuts_nothing_off(monkeypatch, clock):
    screen = io.StringIO()
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=screen, force_terminal=True, width=60))
    callback = started(trainer := trainer_of(total=400))
    clock.now += 1
    step(callback, trainer, 0.4, (0.2, 0.6), (1, 0))
    callback.on_exception(trainer, None, KeyboardInterrupt())  # pyright: ignore[reportArgumentType]
    assert {"instance", "prior", "steps/s,", "left"} <= set(
        re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).split()
    )


def evaluated(callback, trainer, batches: int, fails: bool = False) -> None:
    callback.on_validation_start(trainer, None)
    for number in range(batches):
        callback.on_validation_batch_end(trainer, None, None, None, number)
    if not fails:
        callback.on_validation_end(trainer, None)


def tasks(callback) -> list[tuple[str, float, float | None]]:
    """The lines of the bar: title, how far, of how many."""
    return [(task.description, task.completed, task.total) for task in callback._bar.tasks] if callback._bar else []


def test_an_evaluation_has_a_line_of_its_own_while_it_goes_on(screen, clock):
    callback = started(trainer := trainer_of(total=4))
    trainer.sanity_checking, trainer.num_val_batches = False, [2, 3]
    clock.now += 1
    step(callback, trainer, 0.5)
    evaluated(callback, trainer, batches=4, fails=True)
    assert tasks(callback) == [("training", 1, 4), ("evaluation", 4, 5)]
    evaluated(callback, trainer, batches=5)  # after one that ended with an error which somebody caught
    assert tasks(callback) == [("training", 1, 4)]
    callback.on_train_end(trainer, None)  # pyright: ignore[reportArgumentType]
    assert tasks(callback) == []


def test_an_evaluation_alone_has_a_bar(screen):
    trainer = trainer_of()
    trainer.sanity_checking, trainer.num_test_batches, trainer.num_predict_batches = False, [math.inf], [3]
    callback = RunProgress()
    callback.on_test_start(trainer, None)  # pyright: ignore[reportArgumentType]
    callback.on_test_batch_end(trainer, None, None, None, 0)  # pyright: ignore[reportArgumentType]
    assert tasks(callback) == [("evaluation", 1, None)]
    callback.on_test_end(trainer, None)  # pyright: ignore[reportArgumentType]
    callback.on_predict_start(trainer, None)  # pyright: ignore[reportArgumentType]
    assert tasks(callback) == [("images", 0, 3)]
    callback.on_predict_end(trainer, None)  # pyright: ignore[reportArgumentType]
    assert tasks(callback) == [] and "images" in screen.getvalue()


def test_without_a_terminal_evaluations_say_nothing(capsys, clock):
    callback = started(trainer := trainer_of())
    trainer.sanity_checking, trainer.num_val_batches = False, [2]
    evaluated(callback, trainer, batches=2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("silenced", ["rank", "disabled"])
def test_other_ranks_and_a_disabled_bar_say_nothing(capsys, clock, silenced):
    callback = started(trainer := trainer_of(rank_zero=silenced != "rank"), line_every_s=0)
    if silenced == "disabled":
        callback.disable()
    clock.now += 1
    step(callback, trainer, 0.5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("options", [{"refresh_s": -1}, {"line_every_s": math.nan}, {"line_every_s": math.inf}])
def test_times_that_cannot_be_waited_for_are_refused(options):
    with pytest.raises(ConfigError, match="seconds from 0 on"):
        RunProgress(**options)


@pytest.mark.parametrize("shown", [True, False])
def test_a_real_run_tells_of_itself_unless_it_is_asked_not_to(tmp_path, tiny_sd_model, capsys, shown):
    config = base_config(tmp_path / "run", tiny_sd_model, write_photos(tmp_path / "photos", [(64, 64)] * 2))
    config["model"]["family"]["class_path"] = "SD"
    config = merged(config, {"trainer.enable_progress_bar": shown, "trainer.max_steps": 2})
    if not shown:  # filling caches has a bar too
        assert run("prepare", config) == 0
    else:  # a bar of another callback must not begin before this one has ended
        after = [{"class_path": "test_progress.ToldAfter", "init_args": {"path": str(tmp_path / "order")}}]
        config = merged(config, {"trainer.callbacks": after})
    fit(config)
    assert not shown or (tmp_path / "order").read_text() == "True"
    said = capsys.readouterr()
    assert ("step 2 of 2, loss" in said.err) == shown
    assert ("captions" in said.err) == shown
