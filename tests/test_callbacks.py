"""RunCheckpoint alone: when the best checkpoint is kept."""

import types
import warnings

import pytest

from dreamlit.callbacks.checkpoint import RunCheckpoint, refuse_split_window
from dreamlit.errors import CombinationError


def trainer_with(**facts):
    usual = {"sanity_checking": False, "training": True, "should_stop": False, "global_step": 0}
    usual |= {"state": types.SimpleNamespace(fn="fit"), "is_global_zero": True, "val_check_batch": None}
    usual |= {"default_root_dir": "run"}
    return types.SimpleNamespace(**{**usual, **facts})


def evaluated(scores: list[float], mode: str, monkeypatch, monitor="loss/val", state=None):
    """The scores at which the best checkpoint is saved, by a run that may resume another's state; and its own state."""
    callback, saved = RunCheckpoint(monitor=monitor, mode=mode, preflight=False), []  # pyright: ignore
    monkeypatch.setattr(callback, "_save", lambda *_: saved.append(callback.best_score))
    if state is not None:
        callback.load_state_dict(state)
    callback.on_train_start(trainer_with(), None)  # pyright: ignore[reportArgumentType]
    for score in scores:
        trainer = trainer_with(callback_metrics={monitor: score})
        callback.on_validation_end(trainer, None)  # pyright: ignore[reportArgumentType]
    return saved, callback.state_dict()


@pytest.mark.parametrize(("mode", "best"), [("min", [2.0, 1.0]), ("max", [2.0, 3.0])])
def test_a_metric_that_is_no_number_is_never_the_best(mode, best, monkeypatch):
    assert evaluated([float("nan"), 2.0, 1.0, float("nan"), 3.0], mode, monkeypatch)[0] == best


@pytest.mark.parametrize(
    ("monitor", "mode", "kept"), [("clip", "min", [0.3, 0.2]), ("loss/val", "max", [0.3, 0.4]), ("loss/val", "min", [])]
)
def test_a_resume_compares_only_scores_of_one_kind(monitor, mode, kept, monkeypatch):
    state = evaluated([0.1], "min", monkeypatch)[1]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        saved, later = evaluated([0.3, 0.2, 0.4], mode, monkeypatch, monitor, state)
    assert saved == kept
    told = [str(one.message) for one in seen]
    words = f"by loss/val (min) so far and is now by {monitor} ({mode})"
    assert [words in one for one in told] == ([True] if kept else [])
    assert evaluated([0.5], mode, monkeypatch, monitor, later)[0] == ([0.5] if mode == "max" else [])


def test_a_score_of_a_checkpoint_that_does_not_say_of_what_counts(monkeypatch):
    assert evaluated([0.3, 0.1], "min", monkeypatch, state={"best_score": 0.2})[0] == [0.1]


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
