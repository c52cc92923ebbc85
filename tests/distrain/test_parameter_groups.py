"""Parameters in groups: against torch's own groups, put together by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain.errors import ConfigError
from distrain.learn.optimizers import checked_optimizer
from distrain.learn.parameter_groups import ParameterGroup, split_parameters, undecayed

CLASSES = 3


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


class Net(nn.Module):
    """A body and a head, each with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.body(x))
        return outputs


def named(model: nn.Module, groups: list[dict[str, Any]]) -> list[tuple[list[str], dict[str, Any]]]:
    """Each group's parameters by name, and its settings."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        (
            [names[id(parameter)] for parameter in group["params"]],
            {name: value for name, value in group.items() if name != "params"},
        )
        for group in groups
    ]


def test_the_rest_comes_first_and_the_first_pattern_that_matches_counts() -> None:
    model = Net()
    groups = [
        ParameterGroup("head.bias", lr=0.3),
        ParameterGroup("head.*", lr=0.1, weight_decay=0.5),
    ]
    assert named(model, split_parameters(model, groups)) == [
        (["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"], {}),
        (["head.bias"], {"lr": 0.3}),
        (["head.weight"], {"lr": 0.1, "weight_decay": 0.5}),
    ]


def test_norms_and_biases_of_every_group_are_spared_the_decay() -> None:
    model = Net()
    groups = [ParameterGroup("head.*", lr=0.1, weight_decay=0.5)]
    found = named(model, split_parameters(model, groups, decay_norms_and_biases=False))
    assert found == [
        (["body.0.weight"], {}),
        (["body.0.bias", "body.1.weight", "body.1.bias"], {"weight_decay": 0.0}),
        (["head.weight"], {"lr": 0.1, "weight_decay": 0.5}),
        (["head.bias"], {"lr": 0.1, "weight_decay": 0.0}),
    ]


def test_patterns_may_leave_no_rest() -> None:
    model = Net()
    groups = [ParameterGroup("*.weight", lr=0.1), ParameterGroup("*", lr=0.2)]
    assert [settings for _, settings in named(model, split_parameters(model, groups))] == [
        {"lr": 0.1},
        {"lr": 0.2},
    ]


def test_a_tied_parameter_is_in_one_group_by_any_of_its_names() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    groups = [ParameterGroup("1.*", lr=0.1), ParameterGroup("0.*", lr=0.2)]
    assert named(model, split_parameters(model, groups)) == [
        (["0.weight", "1.bias"], {"lr": 0.1}),
        (["0.bias"], {"lr": 0.2}),
    ]


def test_a_frozen_parameter_is_in_no_group() -> None:
    model = Net()
    model.head.weight.requires_grad_(False)
    groups = [ParameterGroup("head.*", lr=0.1)]
    assert named(model, split_parameters(model, groups))[1] == (["head.bias"], {"lr": 0.1})


class OwnNorm(nn.Module):
    """A norm as people write their own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.mixing = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, 4))
        self.inner = nn.Linear(4, 4)


class TallLayerNorm(nn.LayerNorm):
    """Derives from one of torch's."""


MODULES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "batch norm": (lambda: nn.BatchNorm2d(3), {"weight", "bias"}),
    "instance norm": (lambda: nn.InstanceNorm1d(3, affine=True), {"weight", "bias"}),
    "group norm": (lambda: nn.GroupNorm(2, 4), {"weight", "bias"}),
    "RMS norm": (lambda: nn.RMSNorm(4), {"weight"}),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((3, 4)), {"weight", "bias"}),
    "derived": (lambda: TallLayerNorm(4), {"weight", "bias"}),
    "own": (OwnNorm, {"gain", "inner.bias"}),
    "LSTM": (lambda: nn.LSTM(2, 3), {"bias_ih_l0", "bias_hh_l0"}),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
        {"in_proj_bias", "out_proj.bias"},
    ),
    "bilinear": (lambda: nn.Bilinear(2, 2, 3), {"bias"}),
    "embedding": (lambda: nn.Embedding(3, 4), set()),
    "PReLU, whose weight has one dimension": (nn.PReLU, set()),
}


@pytest.mark.parametrize("name", MODULES)
def test_what_is_a_norms_and_what_is_a_bias(name: str) -> None:
    build, spared = MODULES[name]
    model, found = build(), undecayed(build())
    assert not found & {id(parameter) for parameter in model.parameters()}
    found = undecayed(model)
    assert {key for key, parameter in model.named_parameters() if id(parameter) in found} == spared


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (
            "haed.*",
            r"no parameter has a name like 'haed\.\*', which .*; did you mean head\.\*\?",
        ),
        ("head", r"like 'head', which is compared with the whole name; did you mean head\.\*"),
        ("zzz*", r"there are extra, body\.0\.bias, body\.1\.weight, body\.1\.bias, .* and 1 mo"),
        ("Head.*", r"no parameter has a name like 'Head\.\*'"),
        ("body.0.weight", r"'body\.0\.weight' matches only parameters that require no gradient"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_what_is_near(
    match: str, message: str
) -> None:
    model = Net()
    model.body[0].weight.requires_grad_(False)
    model.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match=message):
        split_parameters(model, [ParameterGroup(match, lr=0.1)])


def test_a_pattern_behind_one_that_takes_all_is_refused() -> None:
    groups = [ParameterGroup("head.*", lr=0.1), ParameterGroup("head.bias", lr=0.2)]
    with pytest.raises(ConfigError, match=r"'head\.bias' matches, such as head\.bias, is in a gro"):
        split_parameters(Net(), groups)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParameterGroup("", lr=0.1), "pattern is ''; give a text such as"),
        (lambda: ParameterGroup(3, lr=0.1), "pattern is 3; give a text such as"),  # type: ignore[arg-type]
        (lambda: ParameterGroup("a", lr=-0.1), "has lr = -0.1; give a finite number"),
        (lambda: ParameterGroup("a", lr="fast"), "has lr = 'fast'; give a finite number"),
        (lambda: ParameterGroup("a", weight_decay=float("nan")), "has weight_decay = nan; give"),
        (
            lambda: ParameterGroup("a", params=[]),
            "which are those that match the pattern: leave params out",
        ),
    ],
)
def test_a_group_that_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (
            lambda groups: torch.optim.SGD(groups, lr=0.1),
            {"wieght_decay": 0.1},
            r"sets wieght_decay, which SGD does not take; did you mean weight_decay\?",
        ),
        (
            lambda groups: torch.optim.SGD(groups, lr=0.1),
            {"momentum": -1.0},
            r"a parameter group with .*'momentum': -1\.0.*: Invalid momentum value",
        ),
        (
            lambda groups: torch.optim.SGD(groups, lr=0.1),
            {"nesterov": True},
            "Nesterov momentum requires a momentum",
        ),
        (
            lambda groups: torch.optim.AdamW([p for g in groups for p in g["params"]]),
            {"lr": 0.5},
            r"passes over a group's lr = 0\.5: give the list of groups to torch's optimizer",
        ),
        (
            lambda groups: torch.optim.AdamW(groups[:1]),
            {"lr": 0.5},
            r"passes over a group's lr = 0\.5",
        ),
    ],
)
def test_settings_that_would_be_lost_or_are_none_are_refused(
    make: Callable[[Any], torch.optim.Optimizer], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        checked_optimizer(make, Net(), [ParameterGroup("head.*", **settings)])


def arrays() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((32, 8)).astype(np.float32)
    return x, generator.integers(0, CLASSES, 32)


def data() -> Dataset:
    x, y = arrays()
    return Dataset.from_arrays({"x": x, "y": y}, classes={"y": ("a", "b", "c")})


def trainer(make: Callable[[Any], torch.optim.Optimizer], **options: Any) -> distrain.Trainer:
    return distrain.Trainer(
        model=Net,
        loss=nn.CrossEntropyLoss(),
        optimizer=make,
        inputs="x",
        target="y",
        standardize=False,
        progress=False,
        **options,
    )


def adamw(given: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(given, lr=0.01, weight_decay=0.3)


def test_training_equals_a_plain_loop_of_torch_with_the_same_groups() -> None:
    mine = trainer(
        adamw,
        groups=[ParameterGroup("head.*", lr=0.1, betas=(0.5, 0.6))],
        decay_norms_and_biases=False,
        schedule=distrain.schedules.Linear(3, final_factor=0.5),
    )
    model = Net()
    model.load_state_dict(mine.model.state_dict())
    # The whole data set is one batch and one micro-batch, whose order changes the mean alone.
    mine.fit(data(), epochs=4, global_batch=32, micro_batch=32)
    body, head = model.body, model.head
    groups: list[dict[str, Any]] = [
        {"params": [body[0].weight]},
        {"params": [body[0].bias, body[1].weight, body[1].bias], "weight_decay": 0.0},
        {"params": [head.weight], "lr": 0.1, "betas": (0.5, 0.6)},
        {"params": [head.bias], "lr": 0.1, "betas": (0.5, 0.6), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.3)
    factors = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=3)
    x, y = map(torch.from_numpy, arrays())
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        factors.step()
    for name, weights in model.state_dict().items():
        torch.testing.assert_close(mine.model.state_dict()[name], weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", ["head.*", ["head.*"], ParameterGroup("*"), [{"lr": 0.1}]])
def test_what_are_no_groups_is_refused(groups: Any) -> None:
    with pytest.raises(ConfigError, match=r"groups has .*give a list such as \[distrain\.Param"):
        trainer(adamw, groups=groups)


def test_who_is_in_which_group_belongs_to_a_runs_identity(tmp_path: Any) -> None:
    first, second = [ParameterGroup("head.*", lr=0.1)], [ParameterGroup("head.bias", lr=0.1)]

    def fit(groups: list[ParameterGroup]) -> None:
        made = trainer(adamw, groups=groups, run=tmp_path / "run")
        made.fit(data(), epochs=1, global_batch=32)

    fit(first)
    fit(first)
    with pytest.raises(ConfigError, match="belongs to another job:\n  optimizer: "):
        fit(second)
    with pytest.raises(ConfigError, match="belongs to another job:\n  optimizer: "):
        fit([])
