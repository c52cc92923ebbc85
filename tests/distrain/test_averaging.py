"""Averages of the weights: against torch's AveragedModel over the same weights, step by step."""

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

import distrain
from data_pipeline import Dataset
from distrain.errors import ConfigError
from distrain.learn.averaging import Average, AveragedWeights, Moments
from distrain.run_job import make_average
from distrain.update_config import AverageConfig
from tests.alone import script_alone
from tests.distrain.test_at_rest import Training, copied, equal
from tests.run_folders import named, outcome

CLASSES, ROWS = 3, 40
STEPS_PER_EPOCH, EPOCHS = 3, 4
LAST = STEPS_PER_EPOCH * EPOCHS

State = dict[str, torch.Tensor]

EMA, SWA = distrain.ExponentialAverage, distrain.StochasticAverage

RULES: dict[str, tuple[Average, list[int]]] = {
    "ema": (EMA(0.9), list(range(1, 13))),
    "ema, every other step from the fifth on": (EMA(0.75, 2, 4), [6, 8, 10, 12]),
    "swa": (SWA(start_epoch=2), [6, 9, 12]),
    "swa, every other step": (SWA(start_epoch=3, every_steps=2), [8, 10, 12]),
    "swa from the first step on": (SWA(start_epoch=1, every_steps=1), list(range(1, 13))),
}
"""Each with the steps whose weights are averaged, written down by hand."""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def build_net() -> nn.Module:
    """With batch norm, a tied weight and dropout."""
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    layers = (first, nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), second, nn.Tanh())
    return nn.Sequential(*layers, nn.Linear(8, CLASSES))


def data(seed: int = 0) -> Dataset:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((ROWS, 8)).astype(np.float32)
    y = generator.integers(0, CLASSES, ROWS)
    return Dataset.from_arrays({"x": x, "y": y}, classes={"y": ("a", "b", "c")})


class Watched(torch.optim.SGD):
    """Keeps the model's whole state after each update; batch norm's statistics move before it."""

    def __init__(self, parameters: Any, model: nn.Module, seen: list[State]) -> None:
        super().__init__(parameters, lr=0.3, momentum=0.5)
        self._model, self._seen = model, seen

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self._seen.append(copied(self._model.state_dict()))
        return loss


def fit(
    average: Average | None, *, epochs: int = EPOCHS, **options: Any
) -> tuple[distrain.Trainer, distrain.History, list[State]]:
    """A trainer after its run, the history, and the weights that the steps left."""
    seen: list[State] = []
    trainer = distrain.Trainer(
        model=build_net,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda p: Watched(p, trainer.model, seen),
        inputs="x",
        target="y",
        average=average,
        progress=False,
        **options,
    )
    history = trainer.fit(data(), data(1), epochs=epochs, global_batch=16, micro_batch=4)
    return trainer, history, seen


def averaged(rule: Average, seen: list[State], due: list[int]) -> nn.Module:
    """Torch's own average over the weights after those steps, counted from 1."""
    ema = isinstance(rule, EMA)
    arithmetic = get_ema_multi_avg_fn(rule.decay) if ema else get_swa_multi_avg_fn()  # type: ignore[no-untyped-call, union-attr]

    def of_floats(averages: Any, *more: Any) -> None:
        """Torch 2.13's fails over whole numbers, such as batch norm's count."""
        if averages[0].is_floating_point():
            arithmetic(averages, *more)

    model = build_net()
    theirs = AveragedModel(model, multi_avg_fn=of_floats, use_buffers=True)
    for step in due:
        model.load_state_dict(seen[step - 1])
        theirs.update_parameters(model)
    found: nn.Module = theirs.module
    return found


def floats(state: State) -> State:
    return {name: state[name] for name in sorted(state) if state[name].is_floating_point()}


@pytest.mark.parametrize("name", RULES)
def test_the_result_is_bit_equal_to_torchs_averaged_model_over_the_same_steps(name: str) -> None:
    rule, due = RULES[name]
    trainer, _, seen = fit(rule)
    assert len(seen) == LAST
    mine, theirs = trainer.model.state_dict(), averaged(rule, seen, due).state_dict()
    assert equal(floats(mine), floats(theirs))
    assert not equal(floats(mine), floats(seen[-1]))
    assert mine["1.num_batches_tracked"] == due[-1]


@pytest.mark.parametrize("name", RULES)
def test_the_result_is_what_the_formula_says(name: str) -> None:
    rule, due = RULES[name]
    trainer, _, seen = fit(rule)
    for key, found in floats(trainer.model.state_dict()).items():
        values = [seen[step - 1][key].double() for step in due]
        if isinstance(rule, SWA):
            wanted = torch.stack(values).mean(0)
        else:
            shares = [rule.decay ** (len(due) - 1)]
            shares += [(1 - rule.decay) * rule.decay**k for k in range(len(due) - 1)][::-1]
            assert sum(shares) == pytest.approx(1.0)
            wanted = sum(share * value for share, value in zip(shares, values, strict=True))  # type: ignore[assignment]
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_training_goes_on_with_the_raw_weights_and_the_average_is_what_is_evaluated(
    name: str,
) -> None:
    rule, due = RULES[name]
    plain, plain_history, plain_seen = fit(None)
    trainer, history, seen = fit(rule)
    assert all(equal(mine, other) for mine, other in zip(seen, plain_seen, strict=True))
    assert history["loss"] == plain_history["loss"]
    for epoch in range(1, EPOCHS + 1):
        so_far = [step for step in due if step <= epoch * STEPS_PER_EPOCH]
        state = averaged(rule, seen, so_far).state_dict() if so_far else seen[epoch * 3 - 1]
        plain.model.load_state_dict(state)
        assert history["val_loss"][epoch - 1] == plain.evaluate(data(1))["loss"]
        assert (history["val_loss"][epoch - 1] == plain_history["val_loss"][epoch - 1]) == (
            not so_far or so_far == [epoch * 3]
        )
    assert trainer.evaluate(data(1))["loss"] == history["val_loss"][-1]


def test_restoring_the_best_restores_the_average_of_its_epoch() -> None:
    # The mode takes the worst for the best, so that it is not the last epoch.
    rule = EMA(0.9)
    early = distrain.EarlyStopping("val_loss", patience=9, mode="max", restore_best=True)
    trainer, history, seen = fit(rule, early_stopping=early)
    assert history.best_epoch is not None
    assert history.best_epoch < EPOCHS
    due = list(range(1, 3 * history.best_epoch + 1))
    theirs = averaged(rule, seen, due).state_dict()
    assert equal(floats(trainer.model.state_dict()), floats(theirs))


def test_a_checkpoint_holds_the_raw_weights_and_an_average_that_torchs_own_loads(
    tmp_path: Path,
) -> None:
    rule = EMA(0.9)
    checkpoint = distrain.Checkpoint(every_steps=6, every_seconds=None, keep_last=9)
    trainer, _, seen = fit(rule, run=tmp_path / "run", checkpoint=checkpoint)
    folder = tmp_path / "run" / "checkpoints" / "step-000000006"
    assert equal(floats(load_file(folder / "model.safetensors")), floats(seen[5]))
    theirs = AveragedModel(build_net(), use_buffers=True)
    theirs.load_state_dict(load_file(folder / "average.safetensors"))
    assert int(theirs.n_averaged) == 6
    wanted = averaged(rule, seen, list(range(1, 7))).state_dict()
    assert equal(floats(theirs.module.state_dict()), floats(wanted))
    result = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(result[k], v) for k, v in trainer.model.state_dict().items())


def test_before_averaging_begins_a_checkpoint_has_no_average(tmp_path: Path) -> None:
    checkpoint = distrain.Checkpoint(every_steps=3, every_seconds=None, keep_last=9)
    fit(SWA(start_epoch=3), run=tmp_path / "run", checkpoint=checkpoint)
    there = [
        (tmp_path / "run" / "checkpoints" / f"step-{step:09}" / "average.safetensors").exists()
        for step in (3, 6, 9, 12)
    ]
    assert there == [False, False, True, True]


def test_the_average_belongs_to_a_runs_identity(tmp_path: Path) -> None:
    fit(EMA(0.9), run=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"belongs to another job:\n  average: .*0\.9.*0\.8"):
        fit(EMA(0.8), run=tmp_path / "run")


@given(left_out=st.integers(0, 20), every=st.integers(1, 9))
def test_moments_are_every_so_many_steps_after_those_left_out(left_out: int, every: int) -> None:
    moments, steps = Moments(left_out, every), range(1, 80)
    due = [step for step in steps if moments.due(step)]
    assert due == list(range(left_out + every, 80, every))
    assert moments.count(79) == len(due)
    assert all(second - first == every for first, second in pairwise(due))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMA(1.0), "decay is 1.0; it must lie between 0 and 1"),
        (lambda: EMA(0.0), "decay is 0.0; it must lie between 0 and 1"),
        (lambda: EMA(float("nan")), "decay is nan; it must lie between 0 and 1"),
        (lambda: EMA(0.9, 0), "every_steps is 0; give a whole number, 1 or more"),
        (lambda: EMA(0.9, 1, -1), "start_step is -1; give a whole number, 0 or more"),
        (lambda: SWA(0), "start_epoch is 0; give a whole number, 1 or more"),
        (lambda: SWA(1.5), r"start_epoch is 1\.5; give a whole number, 1 or more"),  # type: ignore[arg-type]
        (lambda: SWA(1, 0), "every_steps is 0; give a whole number, 1 or more"),
        (
            lambda: fit("ema"),  # type: ignore[arg-type]
            r"average is 'ema'; give distrain\.ExponentialAverage\(\.\.\.\) or",
        ),
        (
            lambda: fit(SWA(start_epoch=5)),
            r"start_epoch=5.*the run has 12 steps, and the first .* after step 15: let averaging",
        ),
        (lambda: fit(EMA(start_step=12)), "the first weights would be averaged after step 13"),
    ],
)
def test_an_average_that_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "emma"}, r"average\.name is 'emma'.*did you mean ema\?"),
        ({"decay": 0.9}, r"average\.decay is given, and average\.name is not: name ema or swa"),
        (
            {"name": "swa", "decay": 0.9},
            r"average\.decay is not for swa, which takes start_epoch, every_steps",
        ),
        ({"name": "ema", "start_epoch": 2}, r"average\.start_epoch is not for ema, which takes d"),
        ({"name": "swa"}, r"average\.start_epoch is missing: swa needs the first epoch"),
    ],
)
def test_a_table_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AverageConfig(**fields)


def test_a_table_names_one_of_the_two_or_none() -> None:
    assert make_average(AverageConfig()) is None
    assert make_average(AverageConfig(name="ema")) == EMA()
    ema = AverageConfig(name="ema", decay=0.5, every_steps=2, start_step=3)
    assert make_average(ema) == EMA(0.5, 2, 3)
    assert make_average(AverageConfig(name="swa", start_epoch=2)) == SWA(2)
    assert make_average(AverageConfig(name="swa", start_epoch=2, every_steps=5)) == SWA(2, 5)


def averaging_training() -> Training:
    return Training(EMA(0.5))


def test_another_thread_reads_the_weights_while_the_average_stands_in_the_model() -> None:
    training = averaging_training().do(3)
    average = copied(training.step.average.state())
    with training.step.standing.averaged():
        now = copied(training.model.state_dict())
        assert not equal(now, training.after[3])
        assert all(torch.equal(average[f"module.{name}"], now[name]) for name in now)
        assert equal(training.read(3), training.after[3])
        assert equal(copied(training.step.average.state()), average)
    assert equal(copied(training.model.state_dict()), training.after[3])
    assert equal(training.read(3), training.after[3])
    assert equal(copied(training.step.average.state()), average)


def test_an_error_in_an_evaluation_leaves_the_weights_in_the_model() -> None:
    training = averaging_training().do(2)
    with pytest.raises(KeyError), training.step.standing.averaged():
        raise KeyError
    assert equal(copied(training.model.state_dict()), training.after[2])


def test_the_average_is_never_read_apart_from_the_weights_that_it_goes_with() -> None:
    undisturbed = [copied(averaging_training().do(n).step.average.state()) for n in range(1, 9)]
    training = averaging_training().do(1)
    stop, wrong = threading.Event(), list[int]()

    def read() -> None:
        while not stop.is_set():
            asked = len(training.after) - 1
            with training.step.standing.at_rest(lambda: len(training.after) - 1, 20.0):
                number = training.step.standing.steps_done
                if not equal(training.step.average.state(), undisturbed[number - 1]):
                    wrong.append(asked)

    reader = threading.Thread(target=read)
    reader.start()
    training.do(7)
    stop.set()
    reader.join(20)
    assert not reader.is_alive()
    assert not wrong


def test_without_an_average_nothing_is_kept_beside_the_model() -> None:
    training = Training().do(2)
    assert training.step.average.state() == {}
    with training.step.standing.averaged():
        assert equal(copied(training.model.state_dict()), training.after[2])


def test_an_update_of_weights_that_are_not_due_changes_nothing() -> None:
    model = nn.Linear(2, 2)
    average = AveragedWeights(model, EMA(0.5, every_steps=2))
    average.update(1)
    assert not average.has_begun
    average.update(2)
    kept = copied(average.state())
    average.update(3)
    assert equal(copied(average.state()), kept)


HANGING = """
import os, signal, sys, time
import distrain, torch
from tests.distrain.test_averaging import EMA, build_net, data

way, *folders = sys.argv[1:]
evaluations = 0

def run(model, columns):
    global evaluations
    evaluations += not model.training
    if not model.training and evaluations == 2 and way == "hang":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    outputs = model(columns["x"])
    loss = torch.nn.functional.cross_entropy(outputs, columns["y"], reduction="sum")
    return loss, len(outputs), outputs

for folder in folders:
    trainer = distrain.Trainer(
        model=build_net, loss=torch.nn.CrossEntropyLoss(), micro_batch_step=run,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.3), inputs="x", target="y",
        average=EMA(0.9), progress=False, run=folder, grace_s=1.0,
        checkpoint=distrain.Checkpoint(every_seconds=None),
    )
    trainer.fit(data(), data(1), epochs=4, global_batch=16, micro_batch=4)
"""


def test_a_run_that_is_given_up_in_an_evaluation_is_saved_with_the_weights_and_their_average(
    tmp_path: Path,
) -> None:
    (tmp_path / "program.py").write_text(HANGING)

    def run(*arguments: object) -> int:
        done = script_alone(tmp_path / "program.py", *arguments)
        assert done.returncode in (0, 75), done.stderr
        return done.returncode

    assert run("hang", tmp_path / "run") == 75
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == "step-000000006"
    assert len(named(tmp_path / "run", "epoch")) == 1, "the second evaluation was given up"
    assert run("go", tmp_path / "run", tmp_path / "whole") == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
