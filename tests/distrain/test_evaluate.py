"""Evaluation and prediction over every row once, whatever the number of workers (threads here)."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import nn

from data_pipeline import Dataset
from data_pipeline.recipe import Recipe
from distrain.coordinator.ledger import LedgerTotals
from distrain.coordinator.metrics import MetricSet
from distrain.coordinator.stops import StopAskedError
from distrain.evaluate import ROWS, Evaluation
from distrain.learn.losses import SummedLoss
from distrain.micro_batch import Columns, MicroBatchResult, MicroBatchStep
from distrain.parallel.communicator import Alone
from distrain.parallel.world import World
from tests.thread_workers import ThreadCommunicator, ThreadGroup, on_threads

CPU = torch.device("cpu")
FEATURES, CLASSES = 6, 4
RECIPE = Recipe(columns=("x", "y"))


ALONE = World(Alone(), CPU)


def on_workers(world_size: int, work: Callable[[World], Any]) -> list[Any]:
    """What each worker's call returns, by rank."""
    return on_threads(ThreadGroup(world_size), lambda end: work(World(end, CPU)))


def build() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, CLASSES)
        )


MODEL = build()


def net() -> nn.Sequential:
    """A copy for each worker: they are threads here, and set the model's mode."""
    return copy.deepcopy(MODEL)


def rows(num_rows: int) -> tuple[Dataset, torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((num_rows, FEATURES)).astype(np.float32)
    y = draw.integers(0, CLASSES, num_rows)
    data = Dataset.from_arrays({"x": x, "y": y}, classes={"y": list("abcd")})
    return data, torch.from_numpy(x), torch.from_numpy(y)


LOSS = SummedLoss(nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0, 0.5])), CPU)
METRICS = MetricSet(("accuracy", "f1", "f1_micro"), CLASSES)


def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
    outputs = model(columns["x"])
    return *LOSS(outputs, columns["y"]), outputs


def totals_of(data: Dataset, world: World = ALONE) -> LedgerTotals:
    return Evaluation(net(), run, world, 0).totals(data, RECIPE, METRICS, target="y")


@pytest.mark.parametrize("num_rows", [1, ROWS - 1, ROWS, ROWS + 1, 300])
def test_loss_and_metrics_are_those_of_one_pass_over_all_rows(num_rows: int) -> None:
    data, x, y = rows(num_rows)
    totals = totals_of(data)
    with torch.inference_mode():
        outputs = net().eval()(x)
        loss = nn.functional.cross_entropy(outputs, y, torch.tensor([0.2, 1.0, 3.0, 0.5]))
    predicted = outputs.argmax(1)
    assert totals.num_samples == num_rows
    assert totals.scores(METRICS, prefix="val_") == pytest.approx(
        {
            "val_loss": loss.item(),
            "val_accuracy": accuracy_score(y, predicted),
            "val_f1": f1_score(y, predicted, average="macro"),
            "val_f1_micro": f1_score(y, predicted, average="micro"),
        },
        rel=1e-6,
    )


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_every_worker_has_the_totals_of_one_to_the_bit(world_size: int) -> None:
    data, _, _ = rows(300)  # three pieces, so that of five workers two have none
    alone = totals_of(data)
    for found in on_workers(world_size, lambda world: totals_of(data, world)):
        assert (found.loss_sum, found.weight, found.num_samples) == (
            alone.loss_sum,
            alone.weight,
            300,
        )
        assert torch.equal(found.metric_counts, alone.metric_counts)


def predicted_by(
    data: Dataset, world: World = ALONE, kind: torch.dtype = torch.float32
) -> torch.Tensor:
    def outputs_only(model: nn.Module, columns: Columns) -> MicroBatchResult:
        return torch.zeros(()), 0.0, model(columns["x"]).mul(100).to(kind)

    return Evaluation(net(), outputs_only, world, 0).outputs(data, RECIPE)


@pytest.mark.parametrize("num_rows", [1, ROWS, 300])
def test_predictions_are_the_models_outputs_in_the_order_of_the_rows(num_rows: int) -> None:
    data, x, _ = rows(num_rows)
    with torch.inference_mode():
        expected = net().eval()(x) * 100
    torch.testing.assert_close(predicted_by(data), expected)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("world_size", [2, 5])
def test_every_worker_has_the_predictions_of_one_to_the_bit(
    world_size: int, kind: torch.dtype
) -> None:
    data, _, _ = rows(300)
    alone = predicted_by(data, kind=kind)
    assert (len(alone), alone.dtype) == (300, kind)
    for found in on_workers(world_size, lambda world: predicted_by(data, world, kind)):
        assert found.dtype == kind
        assert torch.equal(found, alone)


def predicted_with(step: MicroBatchStep, data: Dataset, world: World) -> torch.Tensor:
    return Evaluation(net(), step, world, 0).outputs(data, RECIPE)


def test_predictions_may_have_any_shape() -> None:
    data, _, _ = rows(300)

    def flat(model: nn.Module, columns: Columns) -> MicroBatchResult:
        return torch.zeros(()), 0.0, model(columns["x"])[:, 0]

    def deep(model: nn.Module, columns: Columns) -> MicroBatchResult:
        return torch.zeros(()), 0.0, model(columns["x"]).view(-1, 2, 1, 2)

    for step, shape in ((flat, (300,)), (deep, (300, 2, 1, 2))):
        alone = predicted_with(step, data, ALONE)
        assert alone.shape == shape
        predict = partial(predicted_with, step, data)
        assert all(torch.equal(found, alone) for found in on_workers(4, predict))


def test_every_modules_own_mode_comes_back() -> None:
    data, _, _ = rows(10)
    model = net().train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    seen: list[bool] = []

    def watching(module: nn.Module, columns: Columns) -> MicroBatchResult:
        seen.extend(part.training for part in module.modules())
        return run(module, columns)

    Evaluation(model, watching, ALONE, 0).totals(data, RECIPE, METRICS, target="y")
    assert not any(seen)
    assert (
        [module.training for module in model.modules()] == before == [True, True, False, True, True]
    )


def test_the_modes_come_back_after_an_error_too() -> None:
    data, _, _ = rows(10)
    model = net().train()

    def failing(module: nn.Module, columns: Columns) -> MicroBatchResult:
        raise RuntimeError(f"out of memory for {len(columns['x'])} rows of {type(module)}")

    with pytest.raises(RuntimeError, match="out of memory for 10 rows"):
        Evaluation(model, failing, ALONE, 0).outputs(data, RECIPE)
    assert all(module.training for module in model.modules())


def test_evaluating_changes_no_weight_and_no_statistic() -> None:
    data, _, _ = rows(300)
    model = net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Evaluation(model, run, ALONE, 0).totals(data, RECIPE, METRICS, target="y")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_random_in_evaluation_comes_again() -> None:
    data, _, _ = rows(300)

    def noisy(model: nn.Module, columns: Columns) -> MicroBatchResult:
        return torch.zeros(()), 0.0, torch.rand(len(model(columns["x"])), 2)

    evaluation = Evaluation(net(), noisy, ALONE, 0)
    first = evaluation.outputs(data, RECIPE)
    assert torch.equal(evaluation.outputs(data, RECIPE), first)
    assert len(set(first.flatten().tolist())) > 590


POLL = "distrain.evaluate.POLL_EVERY_S"
AT_EVERY_TURN = 0.0


def most_turns(num_rows: int, world_size: int) -> int:
    """Chunks of the worker that has the most."""
    return math.ceil(math.ceil(num_rows / ROWS) / world_size)


def same(first: LedgerTotals, second: LedgerTotals) -> bool:
    sums = [(found.loss_sum, found.weight, found.num_samples) for found in (first, second)]
    return sums[0] == sums[1] and torch.equal(first.metric_counts, second.metric_counts)


# Chunks of 128 rows: as many for each worker, one more for some, none for some.
@pytest.mark.parametrize(
    ("world_size", "num_rows"), [(1, 300), (2, 500), (2, 300), (3, 700), (5, 300)]
)
@pytest.mark.parametrize("poll_every_s", [AT_EVERY_TURN, 1.0])
def test_asking_whether_to_stop_changes_no_bit_of_the_totals(
    world_size: int, num_rows: int, poll_every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(POLL, poll_every_s)
    data, _, _ = rows(num_rows)
    alone, asked = totals_of(data), [0] * world_size

    def work(world: World) -> LedgerTotals:
        def raised() -> int:
            asked[world.rank] += 1
            return 0

        evaluation = Evaluation(net(), run, world, 0, raised)
        return evaluation.totals(data, RECIPE, METRICS, target="y")

    assert all(same(found, alone) for found in on_workers(world_size, work))
    most = most_turns(num_rows, world_size)
    assert len(set(asked)) == 1, "all workers take part in as many exchanges"
    assert 1 <= asked[0] <= most
    assert asked[0] == most or poll_every_s


@pytest.mark.parametrize(
    ("world_size", "num_rows"), [(1, 300), (2, 300), (2, 500), (3, 500), (5, 300)]
)
@pytest.mark.parametrize("turn", [1, 2])
def test_all_workers_leave_an_evaluation_alike_when_one_is_asked_to_stop(
    world_size: int, num_rows: int, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(POLL, AT_EVERY_TURN)
    data, _, _ = rows(num_rows)
    most = most_turns(num_rows, world_size)
    for asked in range(world_size):

        def work(world: World, asked: int = asked) -> tuple[tuple[int, ...], int, bool]:
            calls, model = 0, net().train()

            def raised() -> int:
                nonlocal calls
                calls += 1
                return 15 if world.rank == asked and calls >= min(turn, most) else 0

            evaluation = Evaluation(model, run, world, 0, raised)
            with pytest.raises(StopAskedError) as left:
                evaluation.totals(data, RECIPE, METRICS, target="y")
            return left.value.flags, calls, model.training

        flags = tuple(15 if rank == asked else 0 for rank in range(world_size))
        assert on_workers(world_size, work) == [(flags, min(turn, most), True)] * world_size


def test_without_somebody_to_ask_there_is_one_exchange_for_the_totals() -> None:
    data, _, _ = rows(500)

    def work(world: World, **options: Any) -> int:
        Evaluation(net(), run, world, 0, **options).totals(data, RECIPE, METRICS, target="y")
        assert isinstance(world.communicator, ThreadCommunicator)
        return world.communicator.num_exchanges

    assert on_workers(2, work) == [1, 1]
    assert on_workers(2, partial(work, raised=lambda: 0)) == [2, 2], "fast ones are asked once"
