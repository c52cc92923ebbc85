"""A schedule that goes by a score: torch's ReduceLROnPlateau, and a state that a restart keeps."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain.coordinator.plateau import Fall, Plateau
from distrain.errors import ConfigError
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.replicas import weights_digest
from tests.run_folders import named, told


def torchs(rule: Plateau, scores: list[float], lr: float = 1.0) -> list[float]:
    """The rate after each of the scores."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="min" if rule.mode == "min" else "max",
        factor=rule.factor,
        patience=rule.patience,
        threshold=rule.threshold,
        threshold_mode=rule.threshold_mode,
        cooldown=rule.cooldown,
        min_lr=rule.min_factor * lr,
        eps=0.0,
    )
    rates = []
    for score in scores:
        schedule.step(score)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


SCORES = st.floats(-3, 3).map(lambda x: round(x, 1)) | st.sampled_from(
    [math.nan, math.inf, -math.inf]
)


@given(
    scores=st.lists(SCORES, max_size=30),
    mode=st.sampled_from(["min", "max"]),
    threshold_mode=st.sampled_from(["rel", "abs"]),
    patience=st.integers(0, 3),
    cooldown=st.integers(0, 3),
    threshold=st.sampled_from([0.0, 1e-4, 0.1, 0.5]),
    min_factor=st.sampled_from([0.0, 0.1]),
    factor=st.sampled_from([0.1, 0.5]),
)
@settings(deadline=None, max_examples=150)
def test_any_scores_lower_the_rate_where_torch_lowers_it(
    scores: list[float], mode: Literal["min", "max"], **options: Any
) -> None:
    rule = Plateau("val_loss", mode=mode, **options)
    fall, factors = Fall(), []
    for score in scores:
        fall = fall.after(rule, {"val_loss": score, "other": 0.0})
        # What a checkpoint keeps is all there is.
        fall = Fall.from_json(json.loads(json.dumps(fall.to_json())))
        factors.append(fall.factor)
    assert factors == torchs(rule, scores)


def test_the_direction_is_that_of_the_score() -> None:
    known = {"val_loss": True, "val_accuracy": False}
    assert Plateau("val_loss").settled(known).mode == "min"
    assert Plateau("val_accuracy").settled(known).mode == "max"
    with pytest.raises(ConfigError, match="the plateau schedule goes by 'val_los', which"):
        Plateau("val_los").settled(known)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, "factor lies between 0 and 1"),
        ({"factor": 0.0}, "factor lies between 0 and 1"),
        ({"min_factor": 1.5}, r"min_factor in \[0, 1\]"),
        ({"patience": -1}, "patience, cooldown and threshold are 0 or more"),
        ({"cooldown": -1}, "patience, cooldown and threshold are 0 or more"),
        ({"threshold": math.nan}, "patience, cooldown and threshold are 0 or more"),
        ({"threshold_mode": "both"}, 'threshold_mode is "rel" or "abs"'),
        ({"mode": "least"}, 'mode "auto", "min" or "max"'),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plateau(**options)


EPOCHS, STEPS_PER_EPOCH = 8, 3


class PowerCutError(Exception):
    """Ends a run in mid-step."""


def noise(num_rows: int, seed: int) -> Dataset:
    """Nothing to learn: validation stops improving soon."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((num_rows, 4)).astype(np.float32)
    return Dataset.from_arrays({"x": x, "y": draw.integers(0, 2, num_rows)}, classes={"y": "ab"})


def fit(
    folder: Path, monitor: str = "val_roc_auc", cut_at: int | None = None
) -> tuple[distrain.Trainer, distrain.History]:
    left = math.inf if cut_at is None else cut_at

    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        nonlocal left
        if model.training:
            left -= 1
            if left < 0:
                raise PowerCutError
        outputs = model(columns["x"])
        loss = nn.functional.cross_entropy(outputs, columns["y"], reduction="sum")
        return loss, len(outputs), outputs

    trainer = distrain.Trainer(
        model=lambda: nn.Linear(4, 2),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        schedule=Plateau(monitor, factor=0.5, patience=0, cooldown=1, threshold=0.01),
        inputs="x",
        target="y",
        metrics=["roc_auc", "accuracy"],
        run=folder,
        checkpoint=distrain.Checkpoint(every_steps=2, every_seconds=None),
        micro_batch_step=run,
        progress=False,
    )
    history = trainer.fit(
        noise(96, 0), noise(40, 1), epochs=EPOCHS, global_batch=32, micro_batch=32
    )
    return trainer, history


@pytest.mark.parametrize("monitor", ["val_roc_auc", "loss"])
def test_a_runs_rates_are_those_of_torch_for_its_scores(monitor: str, tmp_path: Path) -> None:
    _, history = fit(tmp_path / "run", monitor)
    rates = [event["lr"] for event in named(tmp_path / "run", "step")]
    rule = Plateau(
        monitor,
        factor=0.5,
        patience=0,
        cooldown=1,
        threshold=0.01,
        mode="min" if monitor == "loss" else "max",
    )
    after = torchs(rule, history[monitor], lr=0.5)
    assert len(set(after)) > 1, "the rate never fell"
    expected = [rate for rate in [0.5, *after[:-1]] for _ in range(STEPS_PER_EPOCH)]
    assert rates == expected
    falls = [event["step"] for event in named(tmp_path / "run", "plateau")]
    before = [0.5, *after]
    assert falls == [
        STEPS_PER_EPOCH * (epoch + 1)
        for epoch in range(EPOCHS)
        if before[epoch + 1] < before[epoch]
    ]


@pytest.mark.parametrize("cut_at", [3, 10, 17, 23])
def test_a_run_that_was_cut_off_goes_on_with_the_rate_and_the_bits_it_had(
    cut_at: int, tmp_path: Path
) -> None:
    whole, _ = fit(tmp_path / "whole")
    with pytest.raises(PowerCutError):
        fit(tmp_path / "cut", cut_at=cut_at)
    resumed, _ = fit(tmp_path / "cut")
    assert weights_digest(resumed.model) == weights_digest(whole.model)
    assert told(tmp_path / "cut") == told(tmp_path / "whole")
