"""Names for a run's identity: the same in every process, and another for other settings."""

import datetime as dt
import enum
import functools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline import augment
from distrain.coordinator.early_stopping import EarlyStopping
from distrain.describe import describe
from distrain.learn.schedules import Cosine, Linear
from distrain.update import Clip
from tests.conftest import clean_environment


def named(value: float, limit: object = None) -> tuple[float, object]:
    return value, limit


class Plain:
    """No dataclass and no module."""

    def method(self) -> None:
        """A bound method's name is that of its class and function."""


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


class Add:
    """A transform of a user's, as any class may be."""

    def __init__(self, k: Any) -> None:
        """What it adds."""
        self.k = k

    def added(self, x: Any) -> Any:
        """The sum."""
        return x + self.k


class Slotted:
    """Keeps its values in slots, one of them private."""

    __slots__ = ("__hidden", "k")

    def __init__(self, k: object) -> None:
        """Two of them."""
        self.k = self.__hidden = k


class Scaled(nn.Module):
    """A loss of a user's with a module in it."""

    def __init__(self, by: dict[str, float], inner: nn.Module) -> None:
        """What it multiplies with."""
        super().__init__()
        self._by, self.inner = by, inner


def adding(k: Any) -> Callable[[Any], Any]:
    return lambda x: x + k


def adding_by_default(k: float) -> Callable[[float], float]:
    def add(x: float, *, k: float = k) -> float:
        return x + k

    return add


def marked(k: float) -> Callable[[float], float]:
    def add(x: float) -> float:
        return x

    add.after_scaling = k  # type: ignore[attr-defined]
    return add


HALF: Any = np.float32(0.5)
ROWS = np.arange(4, dtype=np.float32)


@dataclass(frozen=True)
class Setting:
    rate: float
    name: str = "a"


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (None, "None"),
        (True, "True"),
        (3, "3"),
        (0.1, "0.1"),
        ("a", "'a'"),
        (Clip(norm=1.0), "Clip(value=None, norm=1.0)"),
        (augment.Rescale(2.0), "Rescale(scale=2.0, offset=0.0)"),
        (Setting(0.5), "Setting(rate=0.5, name='a')"),
        (Setting, f"{__name__}.Setting"),
        ([1, ("a", None)], "(1, ('a', None))"),
        (
            functools.partial(Setting, 2.0, name="b"),
            f"partial({__name__}.Setting, 2.0, name='b')",
        ),
        (nn.functional.mse_loss, "torch.nn.functional.mse_loss"),
        (Plain, f"{__name__}.Plain"),
        (Plain(), "Plain"),
        ([].append, ".list.append of ()"),
        (np.float32(0.5), "0.5"),
        (Mode.FAST, "Mode.FAST"),
        ({"b": 1, "a": {3, 2}}, "{'a': {2, 3}, 'b': 1}"),
        (Slotted(1), "Slotted(_Slotted__hidden=1, k=1)"),
        (torch.float32, "torch.float32"),
        (math, "math"),
        (Linear, "distrain.learn.schedules.Linear"),
    ],
)
def test_plain_things_are_described_by_what_they_are(thing: object, text: str) -> None:
    assert describe(thing) == text


@pytest.mark.parametrize(
    "things",
    [
        (Clip(), Clip(norm=1.0), Clip(value=1.0)),
        (Linear(5), Linear(6), Cosine(5)),
        (EarlyStopping(), EarlyStopping(patience=1), EarlyStopping("val_f1")),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(torch.ones(3)), nn.NLLLoss()),
        (Setting(0.5), Setting(0.5, name="b"), Setting(0.6)),
        (nn.HuberLoss(), nn.HuberLoss(delta=0.5), nn.SmoothL1Loss()),
        (functools.partial(named, 1.0), functools.partial(named, 2.0), named),
        (Add(0.0), Add(100.0), Add(None), Add(Add(0.0))),
        (Add(0.0).added, Add(1.0).added),
        (Slotted(1), Slotted(2)),
        (adding(0.0), adding(1.0), adding(ROWS), adding(ROWS + 1)),
        (adding_by_default(1.0), adding_by_default(2.0)),
        (marked(True), marked(False)),
        (lambda x: x + 1, lambda x: x + 2, lambda x: x - 1, lambda x: math.exp(-x)),
        (lambda x: [lambda y: y + x + 1], lambda x: [lambda y: y + x + 2]),
        (augment.Brightness(HALF, 1), augment.Brightness(HALF / 4, 1)),
        (ROWS, ROWS[::-1], ROWS.astype(np.float64), ROWS.reshape(2, 2), ROWS[:3]),
        (np.array([Add(1)]), np.array([Add(2)])),
        (torch.ones(2), torch.zeros(2), torch.ones(2, dtype=torch.bfloat16), torch.ones(1, 2)),
        (torch.ones(2, device="meta"), torch.ones(3, device="meta")),
        ({"a": 1}, {"a": 2}, {"b": 1}, {}),
        ({1, 2}, {1, 3}, frozenset()),
        (Mode.FAST, Mode.SLOW),
        (np.datetime64(1, "ns"), np.datetime64(2, "ns"), np.longdouble(1), np.longdouble(2)),
        (dt.date(2020, 1, 1), dt.date(2020, 1, 2)),
        (np.random.default_rng(0), np.random.default_rng(1)),
        (Scaled({"a": 1}, nn.MSELoss()), Scaled({"a": 2}, nn.MSELoss()), Scaled({}, nn.L1Loss())),
        (functools.lru_cache(adding(1.0)), functools.lru_cache(adding(2.0))),
        (range(3), range(4)),
    ],
)
def test_other_settings_have_another_description(things: tuple[object, ...]) -> None:
    assert len({describe(thing) for thing in things}) == len(things)


def test_a_modules_mode_is_no_part_of_it() -> None:
    assert describe(nn.MSELoss().eval()) == describe(nn.MSELoss().train())


def test_no_description_holds_an_address(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import dataclasses, functools, torch\n"
        "from typing import Any\n"
        "from distrain.describe import describe\n"
        "from distrain.learn.losses import mean_over_samples\n"
        "class Own:\n"
        "    def __call__(self): ...\n"
        "class Module(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('w', torch.ones(2))\n"
        "        self.inner, self.call = Own(), Own().__call__\n"
        "@dataclasses.dataclass\n"
        "class Holder:\n"
        "    call: Any\n"
        "weights = [torch.nn.Parameter(torch.ones(1))]\n"
        "for thing in (Holder(Own()), Holder(lambda: 0), Own(), Own, Own().__call__, Module(),\n"
        "              lambda: 0, mean_over_samples(Own()), functools.partial(Own(), 1),\n"
        "              torch.optim.SGD(weights)):\n"
        "    print(describe(thing))\n"
    )
    run = functools.partial(subprocess.check_output, env=clean_environment(), text=True)
    text = run([sys.executable, program])
    assert len(text.splitlines()) == 10
    assert "0x" not in text


def test_equal_settings_have_one_description_whatever_their_order() -> None:
    assert describe({"a": 1, "b": 2}) == describe({"b": 2, "a": 1})
    assert describe(adding(ROWS)) == describe(adding(ROWS.copy()))
    assert describe(np.asfortranarray(ROWS.reshape(2, 2))) == describe(ROWS.reshape(2, 2))
    assert describe(augment.Brightness(HALF, 1)) == describe(augment.Brightness(0.5, 1))
    shared = Add(1)
    assert describe((shared, shared)) == describe((Add(1), Add(1)))


def test_what_holds_itself_is_described() -> None:
    around = Add([])
    around.k.append(around)
    assert describe(around) == "Add(k=(...))"
    chain = Add(None)
    for _ in range(5_000):
        chain = Add(chain)
    assert describe(chain).startswith("Add(k=Add(k=Add(")
    wide: object = Add(1)
    for _ in range(30):
        wide = (wide, wide)
    assert len(describe(wide)) < 2_100


def test_parameters_that_are_trained_are_no_part_of_a_loss() -> None:
    def linear(value: float, *, trained: bool) -> nn.Module:
        layer = nn.Linear(1, 1, bias=False).requires_grad_(trained)
        nn.init.constant_(layer.weight, value)
        return layer

    one, other = (Scaled({}, linear(value, trained=True)) for value in (1.0, 2.0))
    assert describe(one) == describe(other)
    one, other = (Scaled({}, linear(value, trained=False)) for value in (1.0, 2.0))
    assert describe(one) != describe(other)


def test_what_a_function_counts_is_no_part_of_it() -> None:
    calls, limit = 0, 3

    def counts() -> bool:
        nonlocal calls
        calls += 1
        return calls > limit

    before = describe(counts)
    counts()
    assert describe(counts) == before
    assert "limit=3" in before


def test_a_function_has_one_description_wherever_it_stands(tmp_path: Path) -> None:
    source = (
        "def make(k):\n"
        "    def f(x, y='a', *, z={'p', 'q', 'r', 's'}):\n"
        "        for _ in range(9):\n"
        "            x += (lambda v: v + k)(1) if y in {'a', 'b', 'c', 'd'} else 1.5\n"
        "        return x\n"
        "    return f\n"
        "f = make({'one', 'two', 'three'} and 2)\n"
        "before = describe(f)\n"
        "for _ in range(100):\n"
        "    f(1)\n"
        "assert describe(f) == before\n"
        "print(before)\n"
    )
    found = set()
    for number in range(4):
        program = tmp_path / f"program{number}.py"
        program.write_text("from distrain.describe import describe\n" + "\n" * number + source)
        environment = clean_environment() | {"PYTHONHASHSEED": str(number)}
        found.add(subprocess.check_output([sys.executable, program], env=environment, text=True))
    assert len(found) == 1
