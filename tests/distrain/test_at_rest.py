"""The state that another thread reads while a step goes on: that after the last finished one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distrain.coordinator.metrics import MetricSet
from distrain.learn.averaging import Average, AveragedWeights
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.communicator import Alone
from distrain.parallel.split import BatchPlan
from distrain.parallel.world import World
from distrain.standing import NotAtRestError
from distrain.step import TrainingStep
from distrain.step_settings import StepSettings
from distrain.update import Clip

CPU = torch.device("cpu")
FEATURES = 6
PLAN = BatchPlan(64, 16, 4)
TIMEOUT_S = 20.0

State = dict[str, torch.Tensor]


def copied(state: Any) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def equal(first: State, second: State) -> bool:
    """Bit by bit; the names and their order as well."""
    return list(first) == list(second) and all(
        torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype
        for name in first
    )


class Gate:
    """Where a thread waits until the test lets it go on."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self._open.wait(TIMEOUT_S)

    def open(self) -> None:
        self._open.set()


class Passage(nn.Module):
    """Lets values through, and waits at a gate in the pass of a given number."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: Gate | None = None
        self.passes_left = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate is not None:
            self.passes_left -= 1
            if self.passes_left == 0:
                self.gate.wait()
        return x


def net() -> nn.Sequential:
    """The first batch norm has moved when the passage is reached, the second not yet."""
    torch.manual_seed(0)
    first, second = nn.BatchNorm1d(8), nn.BatchNorm1d(4, momentum=None)
    layers = (nn.Linear(FEATURES, 8), first, Passage(), nn.Linear(8, 4), second, nn.Linear(4, 1))
    return nn.Sequential(*layers)


def columns(number: int) -> State:
    generator = torch.Generator().manual_seed(number)
    return {"x": torch.randn(16, FEATURES, generator=generator)}


def run(model: nn.Module, sample: Columns) -> MicroBatchResult:
    return model(sample["x"]).square().sum(), float(len(sample["x"])), None


class StoppingAdam(torch.optim.Adam):
    """In mid-update, with some weights moved, it does what the test says."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.halfway: Callable[[], None] = lambda: None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            self.param_groups[0]["params"][0].add_(1.0)
        self.halfway()
        super().step(closure)


class Training:
    """Steps over a net, each step's state being kept."""

    def __init__(self, average: Average | None = None) -> None:
        self.model = net()
        self.optimizer = StoppingAdam(self.model.parameters())
        self.step = TrainingStep(
            self.model,
            self.optimizer,
            run,
            MetricSet((), 0),
            World(Alone(), CPU),
            StepSettings(target="y", seed=0, schedule=lambda _: 1.0, clip=Clip()),
            global_batch=16,
            rows_at=lambda _epoch, start, stop: np.arange(start, stop),
            average=AveragedWeights(self.model, average),
        )
        self.after: list[State] = [copied(self.model.state_dict())]

    def do(self, num_steps: int) -> "Training":
        for _ in range(num_steps):
            number = len(self.after) - 1
            self.step(PLAN.batch(number), columns(number))
            self.after.append(copied(self.model.state_dict()))
        return self

    @contextmanager
    def held(self, gate: Gate) -> Iterator[None]:
        """One more step in another thread, which is held at the gate while the block runs."""
        doing = threading.Thread(target=self.do, args=(1,))
        doing.start()
        try:
            assert gate.reached.wait(TIMEOUT_S)
            yield
        finally:
            gate.open()
            doing.join(TIMEOUT_S)

    def read(self, steps_done: int) -> State:
        with self.step.standing.at_rest(lambda: steps_done, TIMEOUT_S) as state:
            return copied(state)


class GivenUpError(Exception):
    """Ends a reader that would wait for ever."""


class Reader(threading.Thread):
    """Reads the state once it is handed out."""

    def __init__(self, training: Training, steps_done: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self._training, self._steps_done = training, steps_done
        self._given_up, self.refused = False, False
        self.found: State | None = None
        self.start()

    def run(self) -> None:
        try:
            with self._training.step.standing.at_rest(self._asked, TIMEOUT_S) as state:
                self.found = copied(state)
        except GivenUpError:
            pass
        except NotAtRestError:
            self.refused = True

    def _asked(self) -> int:
        if self._given_up:
            raise GivenUpError
        return self._steps_done()

    def give_up(self) -> None:
        self._given_up = True
        self.join(TIMEOUT_S)
        assert not self.is_alive()


# In the first micro-batch of the step, in a later one, in the last.
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
@pytest.mark.parametrize("steps_done", [1, 3])
def test_in_mid_forward_the_state_is_that_after_the_last_finished_step(
    micro_batch: int, steps_done: int
) -> None:
    training, gate = Training().do(steps_done), Gate()
    passage = training.model[2]
    assert isinstance(passage, Passage)
    passage.gate, passage.passes_left = gate, micro_batch
    with training.held(gate):
        now = copied(training.model.state_dict())
        assert not torch.equal(now["1.running_mean"], training.after[-1]["1.running_mean"])
        assert not torch.equal(now["1.running_var"], training.after[-1]["1.running_var"])
        assert now["1.num_batches_tracked"] == steps_done + 1
        found = training.read(steps_done)
        assert equal(found, training.after[steps_done])
        assert found["4.num_batches_tracked"] == steps_done
    assert equal(training.read(steps_done + 1), copied(training.model.state_dict()))


def test_reading_in_mid_step_changes_no_bit_of_what_follows() -> None:
    undisturbed = Training().do(4).after
    training, gate = Training().do(2), Gate()
    passage = training.model[2]
    assert isinstance(passage, Passage)
    passage.gate, passage.passes_left = gate, 3
    with training.held(gate):
        training.read(2)
    passage.gate = None
    training.do(1)
    for mine, other in zip(training.after, undisturbed, strict=True):
        assert equal(mine, other)


def test_between_two_steps_the_state_is_the_models_own() -> None:
    training = Training()
    for number in range(1, 4):
        training.do(1)
        assert equal(training.read(number), copied(training.model.state_dict()))


def test_the_state_is_not_handed_out_while_the_rest_of_the_runs_state_lags_behind() -> None:
    training, of_the_run = Training().do(2), [1]
    reader = Reader(training, lambda: of_the_run[0])
    reader.join(0.3)
    assert reader.is_alive(), "the weights are those after step 2, the run's state is not"
    of_the_run[0] = 2
    reader.join(TIMEOUT_S)
    assert reader.found is not None
    assert equal(reader.found, training.after[2])


def test_the_state_is_not_handed_out_before_a_step_is_done() -> None:
    reader = Reader(Training(), lambda: 0)
    reader.join(0.3)
    assert reader.is_alive()
    reader.give_up()
    assert reader.found is None


def test_in_mid_update_the_state_is_waited_for() -> None:
    training, gate = Training().do(2), Gate()
    training.optimizer.halfway = gate.wait
    with training.held(gate):
        assert not equal(copied(training.model.state_dict()), training.after[2])
        reader = Reader(training, lambda: 3)
        reader.join(0.3)
        assert reader.is_alive()
    reader.join(TIMEOUT_S)
    assert reader.found is not None
    assert equal(reader.found, training.after[3])


def test_neither_weights_nor_statistics_move_while_the_state_is_held() -> None:
    training = Training().do(2)
    with training.step.standing.at_rest(lambda: 2, TIMEOUT_S) as state:
        doing = threading.Thread(target=training.do, args=(1,))
        doing.start()
        time.sleep(0.3)
        assert doing.is_alive(), "it waits"
        assert equal(copied(state), training.after[2])
    doing.join(TIMEOUT_S)
    assert len(training.after) == 4
    assert not equal(training.after[3], training.after[2])


class PlantedError(Exception):
    """Ends a step."""


def fail() -> None:
    raise PlantedError


@pytest.mark.parametrize("steps_done", [2, 3])
def test_a_step_that_failed_in_mid_update_is_never_handed_out(steps_done: int) -> None:
    training = Training().do(2)
    training.optimizer.halfway = fail
    with pytest.raises(PlantedError):
        training.do(1)
    reader = Reader(training, lambda: steps_done)
    reader.join(TIMEOUT_S)
    assert reader.refused, "the weights are those of no step"
    assert reader.found is None


def test_an_update_that_does_not_end_is_waited_for_so_long_and_no_longer() -> None:
    training, gate = Training().do(2), Gate()
    training.optimizer.halfway = gate.wait
    with (
        training.held(gate),
        pytest.raises(NotAtRestError, match="does not end"),
        training.step.standing.at_rest(lambda: 3, within_s=0.2),
    ):
        raise AssertionError("the weights are those of no step")


def test_a_step_that_failed_before_its_update_leaves_the_state_of_the_one_before() -> None:
    training, gate = Training().do(2), Gate()
    passage = training.model[2]
    assert isinstance(passage, Passage)
    passage.gate, passage.passes_left = gate, 2
    gate.wait = fail  # type: ignore[method-assign]
    with pytest.raises(PlantedError):
        training.do(1)
    assert not equal(copied(training.model.state_dict()), training.after[2])
    assert equal(training.read(2), training.after[2])
