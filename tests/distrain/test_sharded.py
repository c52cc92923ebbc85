"""A sharded optimizer: each worker holds its part, and no bit and no checkpoint shows it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain.errors import ConfigError
from distrain.parallel.communicator import Alone
from distrain.parallel.gradients import FlatGradients, gradient_parts
from distrain.parallel.optimizer_state import refuse_beyond_elements
from distrain.parallel.ownership import Replicated
from distrain.parallel.sharding import Sharded
from distrain.parallel.transport import SharedTransport
from tests.thread_workers import ThreadCommunicator, ThreadGroup, on_threads

Run = Callable[..., None]


@pytest.fixture(scope="module")
def unbroken(
    run_program: Run, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken")
    run_program("sharded.py", 1, digits, folder / "run", folder / "out.json", "plain")
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


def test_each_worker_holds_its_share_of_the_state_and_the_bits_are_those_of_one_worker(
    run_program: Run, digits: Path, tmp_path: Path, unbroken: dict[str, Any]
) -> None:
    (whole,) = unbroken["held"]
    for workers in (2, 3):
        run_program(
            "sharded.py", workers, digits, tmp_path / f"run{workers}", tmp_path / "out", "sharded"
        )
        found = json.loads((tmp_path / "out").read_text())
        assert found["digest"] == unbroken["digest"]
        # The counts of steps, a few numbers for each piece, come on top.
        assert len(found["held"]) == workers
        assert max(found["held"]) < whole / workers + 2 * 4 * 4096 + 100
        assert sum(found["held"]) < whole + 100 * workers


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((3, "sharded"), (2, "plain")),
        ((1, "plain"), (2, "sharded")),
        ((2, "sharded"), (3, "sharded")),
    ],
)
def test_a_checkpoint_does_not_tell_how_many_workers_shared_the_state(
    run_program: Run,
    digits: Path,
    tmp_path: Path,
    unbroken: dict[str, Any],
    first: tuple[int, str],
    then: tuple[int, str],
) -> None:
    run, out = tmp_path / "run", tmp_path / "out.json"
    run_program("sharded.py", first[0], digits, run, out, first[1], 4)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000000003"]
    run_program("sharded.py", then[0], digits, run, out, then[1])
    assert json.loads(out.read_text())["digest"] == unbroken["digest"]


def test_the_weights_are_those_of_zero_redundancy_optimizer(
    run_program: Run, tmp_path: Path
) -> None:
    run_program("against_zero.py", 2, tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["moved"] > 0.01
    assert found["differs"] < 1e-5


class Rows(nn.Module):
    """Parameters of no dimension, of one, and of two; one in two groups' way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.wide, self.bias = nn.Parameter(torch.randn(70, 90)), nn.Parameter(torch.randn(33))


def grouped(net: Rows) -> list[dict[str, Any]]:
    return [{"params": [net.bias, net.scale], "lr": 0.5}, {"params": [net.wide]}]


OPTIMIZERS: dict[str, Callable[[Rows], torch.optim.Optimizer]] = {
    "adagrad": lambda net: torch.optim.Adagrad(net.parameters(), initial_accumulator_value=0.3),
    "nadam": lambda net: torch.optim.NAdam(net.parameters()),
    "asgd": lambda net: torch.optim.ASGD(net.parameters()),
    "sgd": lambda net: torch.optim.SGD(grouped(net), lr=0.1, momentum=0.9),
}


def moved(net: Rows, ownership: Replicated | Sharded, optimizer: torch.optim.Optimizer) -> None:
    gradients = FlatGradients(net)
    for seed in range(3):
        flat = torch.randn(gradients.num_floats, generator=torch.Generator().manual_seed(seed))
        present = [1, 1, int(seed > 0)]  # one has no gradient at first, and so no state
        ownership.assign(flat, present)
        optimizer.step()
        ownership.share_weights()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_state_is_told_and_taken_whole(name: str, world_size: int) -> None:
    net = Rows()
    optimizer = OPTIMIZERS[name](net)
    whole = Replicated(FlatGradients(net), optimizer)
    moved(net, whole, optimizer)
    expected, numbers = whole.optimizer_state()

    nets = [Rows() for _ in range(2 * world_size)]
    gradients = [FlatGradients(one) for one in nets]
    optimizers = [OPTIMIZERS[name](one) for one in nets]
    parts = gradient_parts(gradients[0].num_floats, 0, 4096)

    def work(communicator: ThreadCommunicator) -> tuple[Any, ...]:
        transport = SharedTransport(communicator)
        mine, again = communicator.rank, communicator.rank + world_size
        shared = Sharded(gradients[mine], optimizers[mine], transport, parts)
        moved(nets[mine], shared, optimizers[mine])
        told = shared.optimizer_state()
        other = Sharded(gradients[again], optimizers[again], transport, parts)
        other.load_optimizer_state(*told)
        taken, held = other.optimizer_state(), other.held()
        moved(nets[again], other, optimizers[again])
        before = other.optimizer_state(held)
        other.take(held)
        return told, taken, before, other.optimizer_state()

    for same in on_threads(ThreadGroup(world_size), work):
        for tensors, plain in same:
            assert set(tensors) == set(expected)
            assert plain == numbers
            for key, tensor in tensors.items():
                assert tensor.shape == expected[key].shape, key
                assert torch.equal(tensor, expected[key]), key
    assert all(
        torch.equal(a, b) for a, b in zip(nets[0].parameters(), net.parameters(), strict=True)
    )


class Own(torch.optim.SGD):
    """A user's optimizer."""


class Vouched(torch.optim.SGD):
    """One whose author says what it looks at."""

    element_by_element = True


def test_an_optimizer_that_may_look_beyond_an_element_is_refused_by_name() -> None:
    parameters = [nn.Parameter(torch.zeros(3, 3))]
    for optimizer in (
        Own(parameters, lr=0.1),
        torch.optim.Adafactor(parameters),
        torch.optim.Muon(parameters),
    ):
        with pytest.raises(ConfigError, match=type(optimizer).__name__):
            refuse_beyond_elements(optimizer)
    refuse_beyond_elements(Vouched(parameters, lr=0.1))


def test_it_is_refused_on_one_worker_as_on_many() -> None:
    trainer = distrain.Trainer(
        model=lambda: nn.Linear(2, 2),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adafactor,
        inputs="x",
        target="y",
        shard_optimizer=True,
        progress=False,
    )
    x, y = torch.randn(8, 2).numpy(), torch.arange(8).numpy() % 2
    data = Dataset.from_arrays({"x": x, "y": y})
    with pytest.raises(ConfigError, match=r"Adafactor.*shard_optimizer = false"):
        trainer.fit(data, epochs=1, global_batch=4)


def test_alone_there_is_nobody_to_share_with() -> None:
    transport = SharedTransport(Alone())
    assert transport.share(range(10_000)) == range(10_000)
