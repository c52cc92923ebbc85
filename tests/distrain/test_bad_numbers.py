"""Steps whose numbers are bad are skipped, gone back from or end the run: alike at any W."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain.bad_numbers import Intervention, NumbersState, StepLimits
from distrain.coordinator.event_log import recorded_epochs
from distrain.coordinator.run_layout import steps_in
from distrain.coordinator.run_status import read_status
from distrain.errors import (
    BadStepError,
    ConfigError,
    ExitCode,
    NonFiniteError,
    RuinedWeightsError,
    SpikeError,
    exit_code_of,
)
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.replicas import weights_digest
from tests.programs.bad_numbers import CASES, NAN, cut_off, train
from tests.run_folders import events, named, outcome, status, told

BadNumbers = distrain.BadNumbers
Unbroken = dict[str, tuple[str, Path]]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """By case, the digest and the folder of the run on one worker that was never cut off."""
    folder = tmp_path_factory.mktemp("unbroken")
    return {
        name: (weights_digest(train(folder / name, **options).model), folder / name)
        for name, options in CASES.items()
    }


def test_every_case_is_what_its_name_says(unbroken: Unbroken) -> None:
    for name, (_, folder) in unbroken.items():
        assert bool(named(folder, "skip")) == ("skipped" in name), name
        assert bool(named(folder, "go_back")) == ("back" in name), name
    assert len({digest for digest, _ in unbroken.values()}) == len(CASES)


def test_weights_are_bit_equal_at_any_w_also_where_a_run_is_cut_off_and_goes_on_at_another(
    unbroken: Unbroken, run_program: Callable[..., None], tmp_path: Path
) -> None:
    ends = tmp_path / "ends.json"
    run_program("bad_numbers.py", 2, tmp_path, ends, 8)
    assert json.loads(ends.read_text()) == {name: [end] for name, (end, _) in unbroken.items()}
    run_program("bad_numbers.py", 3, tmp_path, ends)
    assert json.loads(ends.read_text()) == {name: [end] * 2 for name, (end, _) in unbroken.items()}
    for name, (_, folder) in unbroken.items():
        for other in ("run", "whole-2", "whole-3"):
            assert told(tmp_path / other / name) == told(folder), (name, other)


@pytest.mark.parametrize("name", ["skipped_sync", "back", "back_and_skipped"])
@pytest.mark.parametrize("call", [1, 2, 4, 7, 8, 11])
def test_a_run_cut_off_anywhere_does_the_same_again(
    unbroken: Unbroken, tmp_path: Path, name: str, call: int
) -> None:
    cut_off(tmp_path / "run", call, CASES[name])
    assert "end" in {event["event"] for event in events(tmp_path / "run")}, "it was cut off"
    train(tmp_path / "run", **CASES[name])
    assert outcome(tmp_path / "run") == outcome(unbroken[name][1])
    fields = ("event", "step", "bad_step", "rows", "problem", "times_back", "lr_factor")
    both = [
        [
            {field: event.get(field) for field in fields}
            for event in events(folder)
            if event["event"] in ("skip", "go_back")
        ]
        for folder in (tmp_path / "run", unbroken[name][1])
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize("call", [2, 4, 8])
def test_a_run_cut_off_after_going_back_can_go_back_to_there_again(
    tmp_path: Path, call: int
) -> None:
    """Its checkpoint is of a state that steps are left out after."""
    options = CASES["back"] | {
        "bad_numbers": distrain.BadNumbers(non_finite="go_back", every_steps=50),
        "checkpoint": distrain.Checkpoint(every_seconds=None, snapshot_every=0),
    }
    train(tmp_path / "whole", **options)
    cut_off(tmp_path / "run", call, options)
    train(tmp_path / "run", **options)
    assert len(named(tmp_path / "whole", "go_back")) > 1
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_run_that_has_gone_back_tells_each_reader_of_the_time_that_counts(
    unbroken: Unbroken,
) -> None:
    folder = unbroken["back"][1]
    assert [event["epoch"] for event in named(folder, "epoch")] == [1, 2, 2, 3, 3, 4]
    records = recorded_epochs(folder / "events.jsonl")
    assert [record.epoch for record in records] == [1, 2, 3, 4]
    assert [math.isnan(record.scores["loss"]) for record in records] == [False, False, False, True]
    assert steps_in(folder / "checkpoints") == [8, 12]
    assert [line["step"] for line in named(folder, "step")] == [2, 3, 4, 6, 8, 9, 10, 11]
    assert read_status(folder).step == 12, "steps that were left out are behind as well"
    curves = EventAccumulator(str(folder / "tensorboard"))
    curves.Reload()
    assert curves.Scalars("train/loss") == [], "the run has gone back from step 10"


def test_a_status_between_going_back_and_the_next_step_is_that_of_the_state(
    tmp_path: Path,
) -> None:
    lines: list[dict[str, Any]] = [
        {"event": "epoch", "epoch": 1, "step": 3, "loss": 2.0},
        {"event": "step", "step": 4, "epoch": 2, "loss": 1.5, "time": 1.0},
        {"event": "epoch", "epoch": 2, "step": 6, "loss": 1.0},
        {"event": "go_back", "step": 4, "epoch": 3, "times_back": 1, "time": 3.0},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "steps": 12}))
    found = read_status(tmp_path)
    assert (found.step, found.scores) == (4, {"loss": 2.0})


# By hand: one micro-batch a step, and plain torch beside it.

FEATURES, BATCH, STEPS = 3, 4, 8


def numbered(bad_rows: Iterable[int] = ()) -> Dataset:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((BATCH * STEPS, FEATURES)).astype(np.float32)
    row = np.arange(BATCH * STEPS)
    y = (x @ np.array([1.0, -2.0, 0.5], np.float32))[:, None]
    return Dataset.from_arrays(
        {"x": x, "y": y, "row": row, "bad": np.isin(row, list(bad_rows)).astype(np.int64)}
    )


class Seen:
    """The rows of each forward pass in training."""

    rows: list[list[int]]


def squared(model: nn.Module, columns: Columns) -> MicroBatchResult:
    Seen.rows.append(columns["row"].tolist())
    outputs = model(columns["x"])
    loss = (outputs - columns["y"]).square().sum()
    return loss * (torch.nan if columns["bad"].any() else 1.0), len(outputs), outputs


def linear() -> nn.Module:
    return nn.Linear(FEATURES, 1)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def fit(data: Dataset, run: Path | None = None, **options: Any) -> distrain.Trainer:
    Seen.rows = []
    settings: dict[str, Any] = {"micro_batch_step": squared, "optimizer": momentum, **options}
    trainer = distrain.Trainer(
        model=linear,
        loss=nn.MSELoss(),
        inputs="x",
        target="y",
        run=run,
        standardize=False,
        progress=False,
        schedule=distrain.schedules.Linear(tau_steps=20, final_factor=0.1),
        **settings,
    )
    trainer.fit(data, epochs=1, global_batch=BATCH, micro_batch=BATCH)
    return trainer


def by_hand(steps: list[tuple[int, float]], batches: list[list[int]]) -> nn.Module:
    """Some steps, each with a factor on its learning rate."""
    data = numbered()
    columns = {name: np.empty((BATCH * STEPS, n), np.float32) for name, n in (("x", 3), ("y", 1))}
    for name, out in columns.items():
        data.gather(name, np.arange(BATCH * STEPS), out)
    x, y = torch.from_numpy(columns["x"]), torch.from_numpy(columns["y"])
    torch.manual_seed(0)
    model = fresh()
    optimizer = momentum(model.parameters())
    schedule = distrain.schedules.Linear(tau_steps=20, final_factor=0.1)
    for step, factor in steps:
        optimizer.param_groups[0]["lr"] = 0.1 * schedule(step) * factor
        optimizer.zero_grad()
        rows = batches[step]
        loss = nn.functional.mse_loss(model(x[rows])[:, 0], y[rows][:, 0])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def fresh() -> nn.Module:
    """The weights that a run begins with: of one whose learning rate is 0."""
    model = linear()
    begin = fit(numbered(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0)).model
    model.load_state_dict(begin.state_dict())
    return model


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def batches() -> list[list[int]]:
    """The rows of each step."""
    fit(numbered())
    assert len(Seen.rows) == STEPS
    return Seen.rows


def test_a_skip_is_a_loop_without_that_batch(batches: list[list[int]]) -> None:
    trainer = fit(numbered(batches[3][:1]), bad_numbers=BadNumbers(non_finite="skip"))
    assert_same_weights(trainer.model, by_hand([(n, 1.0) for n in range(8) if n != 3], batches))


def test_going_back_is_a_loop_without_the_batches_from_there_and_with_lower_rates(
    batches: list[list[int]],
) -> None:
    rule = BadNumbers(non_finite="go_back", every_steps=3, lr_factor=0.25)
    trainer = fit(numbered([batches[5][2]]), bad_numbers=rule)
    done = [(0, 1.0), (1, 1.0), (2, 1.0), (6, 0.25), (7, 0.25)]
    assert_same_weights(trainer.model, by_hand(done, batches))
    rates = trainer.optimizer.param_groups[0]["lr"] if trainer.optimizer else 0.0
    assert rates == 0.1 * (distrain.schedules.Linear(tau_steps=20, final_factor=0.1)(7) * 0.25)


def test_with_the_batches_again_a_lower_rate_alone_leads_past_a_spike(tmp_path: Path) -> None:
    """A rate under which the loss grows with each step."""
    rule = BadNumbers(
        spike="go_back",
        every_steps=100,
        skip_batches=False,
        lr_factor=0.125,
        least_steps=2,
        window_steps=3,
        deviations=4.0,
    )
    fast = {"optimizer": lambda p: torch.optim.SGD(p, lr=2.0)}
    trainer = fit(numbered(), tmp_path / "run", bad_numbers=rule, **fast)
    (back,) = named(tmp_path / "run", "go_back")
    assert (back["step"], back["lr_factor"], back["steps_left_out"]) == (0, 0.125, 0)
    assert back["kind"] == "spike"
    second = named(tmp_path / "run", "step")[back["bad_step"] - 1 :]
    assert [line["step"] for line in second] == list(range(1, STEPS + 1))
    assert second[-1]["loss"] < second[0]["loss"]
    slow = fit(numbered(), optimizer=lambda p: torch.optim.SGD(p, lr=0.25))
    assert_same_weights(trainer.model, slow.model)


def test_an_update_that_ruins_weights_is_gone_back_from(batches: list[list[int]]) -> None:
    class Ruining(torch.optim.SGD):
        calls = 0

        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            Ruining.calls += 1
            if Ruining.calls == 4:
                self.param_groups[0]["params"][0].data.fill_(torch.inf)

    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    for every_steps, last in ((2, 3), (3, 4)):
        # Seen before it is kept; or in the next step, whose loss it makes infinite.
        Ruining.calls = 0
        rule = BadNumbers(non_finite="go_back", every_steps=every_steps)
        trainer = fit(numbered(), optimizer=lambda p: Ruining(p, **options), bad_numbers=rule)
        begin = last // every_steps * every_steps
        kept = [n for n in range(8) if not begin <= n <= last]
        assert_same_weights(trainer.model, by_hand([(n, 1.0) for n in kept], batches))
    Ruining.calls = 0
    with pytest.raises(BadStepError, match="not finite"):
        fit(numbered(), optimizer=lambda p: Ruining(p, **options))
    assert RuinedWeightsError(step=3, epoch=1, name="a").kind == "non_finite"


def test_a_spike_is_the_step_that_it_says_and_names_the_worst_rows(tmp_path: Path) -> None:
    options = CASES["skipped_sharded"] | {
        "bad_numbers": BadNumbers(
            spike="skip", watch="grad_norm", least_steps=2, window_steps=5, most=1
        )
    }
    with pytest.raises(SpikeError) as caught:
        train(tmp_path / "run", **options)
    error = caught.value
    assert error.step == 7
    norms = [line["grad_norm"] for line in named(tmp_path / "run", "step")]
    assert len(norms) == 6
    moved = norms[:3] + norms[4:]  # the fourth was skipped
    middle = np.median(moved)
    spread = max(median_abs_deviation(moved, scale="normal"), 0.01 * middle)
    assert error.above == pytest.approx(middle + 10 * spread, rel=1e-12)
    assert error.value > error.above
    assert 30 in error.rows
    assert len(error.rows) == 4
    assert exit_code_of(error) == ExitCode.FAULT
    assert "Before it, step 4 (the gradient's norm jumps to " in str(error)
    last = events(tmp_path / "run")[-1]
    assert (last["event"], last["exit_code"], last["rows"]) == ("end", 70, list(error.rows))
    assert status(tmp_path / "run")["reason"] == str(error)


@pytest.mark.parametrize("workers_rule", ["skip", "go_back"])
def test_after_so_many_the_run_ends_and_names_them_all(tmp_path: Path, workers_rule: Any) -> None:
    rule = BadNumbers(non_finite=workers_rule, most=2, every_steps=3)
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path / "run", bad_numbers=rule)
    done = "skipped" if workers_rule == "skip" else "gone back from, to step 0"
    assert f"step 1 (the loss is not finite) was {done}; step 5 " in str(caught.value)
    assert caught.value.step == 7


def test_what_stopped_at_a_bad_step_goes_on_from_there_once_it_may_skip_it(
    tmp_path: Path, unbroken: Unbroken
) -> None:
    options = {"average": CASES["skipped"]["average"]}
    never = distrain.Checkpoint(every_seconds=None)
    for most, step in ((None, 1), (2, 7)):
        rule = BadNumbers() if most is None else BadNumbers(non_finite="skip", most=most)
        with pytest.raises(NonFiniteError) as caught:
            train(tmp_path / "run", bad_numbers=rule, checkpoint=never, **options)
        assert caught.value.step == step
        assert NAN in caught.value.rows
    assert steps_in(tmp_path / "run" / "checkpoints")[-1] == 6, "the state before the bad step"
    with pytest.raises(ConfigError, match=r'step 1 by bad_numbers.non_finite = "skip"'):
        train(tmp_path / "run", checkpoint=never, **options)
    train(tmp_path / "run", checkpoint=never, **CASES["skipped"])
    assert outcome(tmp_path / "run") == outcome(unbroken["skipped"][1])


def test_another_rule_for_going_back_makes_another_run(tmp_path: Path) -> None:
    cut_off(tmp_path / "run", 3, CASES["back"])
    other = CASES["back"] | {"bad_numbers": BadNumbers(non_finite="go_back", every_steps=5)}
    with pytest.raises(ConfigError, match="bad_numbers"):
        train(tmp_path / "run", **other)


def test_float16_skips_an_overflow_by_its_scale_and_counts_no_intervention(tmp_path: Path) -> None:
    rule = BadNumbers(non_finite="skip", most=1)
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path / "run", bad_numbers=rule, precision="float16")
    assert caught.value.step == 5
    scales = [line["loss_scale"] for line in named(tmp_path / "run", "step")]
    assert scales == [65536.0] * 4, "a loss that is not finite is no overflow"


# The rule, without a run.


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30),
    deviations=st.floats(0.1, 50),
    window=st.integers(2, 12),
)
def test_the_limit_is_median_and_scaled_deviation_of_the_last_steps(
    values: list[float], deviations: float, window: int
) -> None:
    rule = BadNumbers(spike="skip", least_steps=2, window_steps=window, deviations=deviations)
    state = NumbersState()
    for value in values:
        state = rule.after_step(state, value, math.nan)
    recent = values[-window:]
    assert list(state.recent) == recent
    middle = np.median(recent)
    spread = max(median_abs_deviation(recent, scale="normal"), 0.01 * abs(middle))
    found = rule.limits(state).spike_above
    if spread:
        assert found == pytest.approx(middle + deviations * spread, rel=1e-12, abs=1e-9)
    else:
        assert found == math.inf


def test_there_is_no_limit_before_enough_steps_nor_where_spikes_are_ignored() -> None:
    rule = BadNumbers(spike="stop", watch="grad_norm", least_steps=3, window_steps=3)
    state = NumbersState()
    for norm in (1.0, 2.0, math.inf):
        state = rule.after_step(state, 7.0, norm)
    assert state.recent == (1.0, 2.0)
    assert rule.limits(state) == StepLimits(watch="grad_norm")
    assert rule.limits(rule.after_step(state, 7.0, 3.0)).spike_above < math.inf
    assert BadNumbers().after_step(NumbersState(), 1.0, 1.0) == NumbersState()
    assert BadNumbers().spike_above([1.0] * 100) == math.inf


@given(
    recent=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5),
    factor=st.floats(0.001, 1.0),
)
def test_the_state_comes_back_from_json_bit_for_bit(recent: list[float], factor: float) -> None:
    done = (Intervention(3, "spike", "a jump"), Intervention(5, "non_finite", "nan", 4))
    state = NumbersState(tuple(recent), factor, 5, done)
    assert NumbersState.from_json(json.loads(json.dumps(state.to_json()))) == state
    assert state.times_back == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"non_finite": "ignore"}, "bad_numbers.non_finite is 'ignore'"),
        ({"spike": "skipp"}, "did you mean skip"),
        ({"watch": "accuracy"}, "bad_numbers.watch"),
        ({"deviations": 0.0}, "bad_numbers.deviations is 0.0; it must be above 0"),
        ({"least_steps": 1}, "it must be 2 or more"),
        ({"window_steps": 5}, "window_steps is 5; it must be 20 or more"),
        ({"lr_factor": 1.5}, "lr_factor is 1.5; it must be above 0, and 1 at most"),
        ({"most": 0}, "bad_numbers.most is 0"),
        ({"every_steps": 0}, "bad_numbers.every_steps is 0"),
        ({"spike": "go_back", "skip_batches": False}, "comes to the same numbers again"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BadNumbers(**options)


def test_a_trainer_wants_the_rule_itself() -> None:
    with pytest.raises(ConfigError, match=r"give distrain.BadNumbers"):
        fit(numbered(), bad_numbers="skip")
