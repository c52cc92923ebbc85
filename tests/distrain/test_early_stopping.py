"""Early stopping: a table by hand, and Keras' rule as its documentation words it."""

import math
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrain.coordinator.early_stopping import EarlyStopping, Progress, judge
from distrain.errors import ConfigError

NAN = math.nan


def run(rule: EarlyStopping | None, scores: list[float]) -> tuple[int | None, int]:
    """The epoch after which the run stops (None: after all), and the best one so far."""
    progress = Progress()
    for epoch, score in enumerate(scores, start=1):
        measured = {rule.monitor if rule else "val_loss": score, "other": 0.0}
        verdict = judge(rule, progress, epoch, measured)
        progress = verdict.progress
        assert verdict.improved == (progress.best_epoch == epoch)
        if verdict.stop:
            return epoch, progress.best_epoch
    return None, progress.best_epoch


LOSS, ACCURACY = EarlyStopping("val_loss"), EarlyStopping("val_accuracy")


@pytest.mark.parametrize(
    ("rule", "scores", "stopped", "best"),
    [
        (EarlyStopping("val_loss", 2), [5, 4, 3, 2, 1], None, 5),
        (EarlyStopping("val_loss", 2), [5, 4, 4, 4, 1], 4, 2),
        (EarlyStopping("val_loss", 2), [5, 4, 5, 3, 4, 4, 1], 6, 4),
        (EarlyStopping("val_loss", 3), [5, 4, 5, 5, 3, 4, 4], None, 5),
        (EarlyStopping("val_loss", 1), [5, 5], 2, 1),
        (LOSS, [5, 5], 2, 1),
        (LOSS, [5, 4, 4.5], 3, 2),
        (ACCURACY, [0.5, 0.6, 0.6], 3, 2),
        (ACCURACY, [0.5, 0.4], 2, 1),
        (EarlyStopping("mse"), [2, 1, 3], 3, 2),
        (EarlyStopping("val_mae"), [2, 1, 3], 3, 2),
        (EarlyStopping("f1_micro"), [0.1, 0.2, 0.1], 3, 2),
        (EarlyStopping("val_loss", mode="max"), [1, 2, 3, 2], 4, 3),
        (EarlyStopping("val_accuracy", mode="min"), [3, 2, 1, 2], 4, 3),
        # a change of exactly min_delta is none
        (EarlyStopping("val_loss", 1, min_delta=0.5), [3.0, 2.5], 2, 1),
        (EarlyStopping("val_loss", 1, min_delta=0.5), [3.0, 2.25, 2.0], 3, 2),
        (EarlyStopping("val_accuracy", 2, min_delta=0.25), [0.0, 0.25, 0.5, 0.6, 0.7], 5, 3),
        # small steps add up to one that counts, since they are measured from the best
        (EarlyStopping("val_loss", 3, min_delta=0.5), [3.0, 2.75, 2.5, 2.25, 2.0], None, 4),
        # NaN never improves, and as the first score is not the best
        (EarlyStopping("val_loss", 2), [3, NAN, NAN, 1], 3, 1),
        (EarlyStopping("val_loss", 2), [NAN, 3, NAN, 2, NAN], None, 4),
        (EarlyStopping("val_loss", 2), [NAN, NAN, 1], 2, 0),
        (ACCURACY, [NAN], 1, 0),
        (EarlyStopping("val_loss", 2), [math.inf, 3, 4, math.inf], 4, 2),
        (None, [1, 2, 3, 4], None, 0),
    ],
)
def test_a_run_stops_after_and_has_as_its_best(
    rule: EarlyStopping | None, scores: list[float], stopped: int | None, best: int
) -> None:
    assert run(rule, scores) == (stopped, best)


def keras(
    scores: list[int], patience: int, min_delta: int, mode: Literal["min", "max"]
) -> tuple[int | None, int]:
    """keras.callbacks.EarlyStopping: "stop training when a monitored metric has stopped improving".

    `patience`: "number of epochs with no improvement after which training will be stopped";
    `min_delta`: "an absolute change of less than min_delta will count as no improvement".
    """
    best, best_epoch, wait = None, 0, 0
    for epoch, score in enumerate(scores):
        wait += 1
        gain = 0 if best is None else (best - score if mode == "min" else score - best)
        if best is None or gain > min_delta:
            best, best_epoch, wait = score, epoch, 0
            continue
        if wait >= patience and epoch > 0:
            return epoch + 1, best_epoch + 1
    return None, best_epoch + 1


@given(
    scores=st.lists(st.integers(0, 12), min_size=1, max_size=15),
    patience=st.integers(0, 4),
    min_delta=st.integers(0, 3),
    mode=st.sampled_from(("min", "max")),
)
@settings(deadline=None, max_examples=200)
def test_any_scores_end_a_run_where_keras_ends_it(
    scores: list[int], patience: int, min_delta: int, mode: Literal["min", "max"]
) -> None:
    rule = EarlyStopping("val_loss", patience, float(min_delta), mode)
    assert run(rule, [float(score) for score in scores]) == keras(scores, patience, min_delta, mode)


def test_an_unknown_name_is_refused_with_the_near_ones() -> None:
    known = {"loss": True, "accuracy": False, "val_loss": True, "val_accuracy": False}
    with pytest.raises(ConfigError, match=r"watches 'val_los', .*did you mean val_loss"):
        EarlyStopping("val_los").settled(known)
    with pytest.raises(ConfigError, match="known are accuracy, loss, val_accuracy, val_loss"):
        EarlyStopping("perplexity").settled(known)
    assert EarlyStopping("val_loss").settled(known) == EarlyStopping("val_loss", mode="min")
    assert EarlyStopping("val_accuracy").settled(known).mode == "max"
    assert EarlyStopping("val_accuracy", mode="min").settled(known).mode == "min"


@pytest.mark.parametrize(
    "options", [{"patience": -1}, {"min_delta": -0.1}, {"min_delta": NAN}, {"mode": "least"}]
)
def test_what_is_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="patience and min_delta are 0 or more"):
        EarlyStopping("val_loss", **options)  # type: ignore[arg-type]
