"""Names for a run's identity: the same in every process, and another for other settings."""

import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from data_pipeline import augment
from distrain.coordinator.early_stopping import EarlyStopping
from distrain.describe import describe
from distrain.learn.schedules import Cosine, Linear
from distrain.step import Clip
from tests.conftest import clean_environment


def named(value: float, limit: object = None) -> tuple[float, object]:
    return value, limit


class Plain:
    """No dataclass and no module."""

    def method(self) -> None:
        """A bound method's name is that of its class and function."""


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
        (augment.Shift(2), "Shift(pixels=2, fill=0.0)"),
        (Setting(0.5), "Setting(rate=0.5, name='a')"),
        (Setting, f"{__name__}.Setting"),
        ([1, ("a", None)], "(1, ('a', None))"),
        (
            functools.partial(named, 2.0, limit=Clip()),
            f"partial({__name__}.named, 2.0, limit={Clip()})",
        ),
        (named, f"{__name__}.named"),
        (Plain, f"{__name__}.Plain"),
        (Plain(), "Plain"),
        (Plain().method, f"{__name__}.Plain.method"),
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
