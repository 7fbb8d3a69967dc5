"""The callbacks alone: when the best checkpoint is kept, and what the progress says without a last step."""

import types

import pytest

from dreamlit.callbacks.checkpoint import RunCheckpoint, refuse_split_window
from dreamlit.callbacks.progress import RunProgress
from dreamlit.errors import CombinationError


def evaluated(scores: list[float], mode: str, monkeypatch) -> list[float]:
    """The scores at which the best checkpoint is saved."""
    callback, saved = RunCheckpoint(monitor="loss/val", mode=mode), []  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(callback, "_save", lambda *_: saved.append(callback.best_score))
    for score in scores:
        state = types.SimpleNamespace(fn="fit")
        trainer = types.SimpleNamespace(
            sanity_checking=False, training=True, state=state, should_stop=False, callback_metrics={"loss/val": score}
        )
        callback.on_validation_end(trainer, None)  # pyright: ignore[reportArgumentType]
    return saved


@pytest.mark.parametrize(("mode", "best"), [("min", [2.0, 1.0]), ("max", [2.0, 3.0])])
def test_a_metric_that_is_no_number_is_never_the_best(mode, best, monkeypatch):
    assert evaluated([float("nan"), 2.0, 1.0, float("nan"), 3.0], mode, monkeypatch) == best


def test_an_evaluation_inside_an_optimizer_step_is_refused_where_the_best_is_kept():
    refuse_split_window(6, 3)
    with pytest.raises(CombinationError, match=r"val_check_interval.* 4 .* 3: .*multiple"):
        refuse_split_window(4, 3)


def test_a_share_of_an_epoch_as_interval_is_checked_in_batches():
    trainer = types.SimpleNamespace(
        global_step=0, val_check_interval=0.5, val_check_batch=4, num_training_batches=9, accumulate_grad_batches=3
    )
    callback = RunCheckpoint(monitor="loss/val", preflight=False)
    with pytest.raises(CombinationError, match="Use a multiple"):
        callback.on_train_start(trainer, None)  # pyright: ignore[reportArgumentType]
    trainer.val_check_batch = trainer.num_training_batches = 8  # the end of an epoch ends its last optimizer step
    callback.on_train_start(trainer, None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("total", "expected"), [(4, "step 2 of 4, loss"), (float("inf"), "step 2, loss")])
def test_progress_without_a_last_step_says_no_time_left(capsys, total, expected):
    trainer = types.SimpleNamespace(
        max_steps=-1,
        estimated_stepping_batches=total,
        global_step=0,
        is_global_zero=True,
        accumulate_grad_batches=3,
    )
    progress = RunProgress(line_every_s=0)
    progress.on_train_start(trainer, None)  # pyright: ignore[reportArgumentType]
    trainer.global_step = 2
    progress.on_train_batch_end(trainer, None, {"loss": 0.5})  # pyright: ignore[reportArgumentType]
    line = capsys.readouterr().err
    assert f"{expected} 1.5000" in line
    assert ("left" in line) == (total == 4) and "inf" not in line
