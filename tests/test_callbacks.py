"""RunCheckpoint alone: when the best checkpoint is kept."""

import types

import pytest

from dreamlit.callbacks.checkpoint import RunCheckpoint, refuse_split_window
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
