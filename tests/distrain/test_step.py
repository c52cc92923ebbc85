"""One step, against autograd over the whole batch and torch's own clipping."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distrain.coordinator.metrics import MetricSet
from distrain.errors import ConfigError, NonFiniteError, ProgramError
from distrain.learn.losses import SummedLoss
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.communicator import Alone
from distrain.parallel.replicas import weights_digest
from distrain.parallel.split import BatchPlan
from distrain.parallel.world import World
from distrain.step import StepResult, TrainingStep
from distrain.step_settings import StepSettings
from distrain.update import Clip

CPU = torch.device("cpu")
FEATURES, CLASSES = 6, 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def samples(num_rows: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(num_rows, FEATURES, generator=generator),
        "y": torch.randint(CLASSES, (num_rows,), generator=generator),
    }


def standard(loss: nn.Module) -> Callable[[nn.Module, Columns], MicroBatchResult]:
    summed = SummedLoss(loss, CPU)

    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        outputs = model(columns["x"])
        return *summed(outputs, columns["y"]), outputs

    return run


def row_numbers(epoch: int, start: int, stop: int) -> Any:
    return 1000 * (epoch + 1) + np.arange(start, stop)


def make_step(
    model: nn.Module,
    *,
    run: Callable[[nn.Module, Columns], MicroBatchResult] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    global_batch: int = 16,
    **options: Any,
) -> TrainingStep:
    settings: dict[str, Any] = {
        "target": "y",
        "seed": 0,
        "schedule": lambda _: 1.0,
        "clip": Clip(),
        **options,
    }
    return TrainingStep(
        model,
        optimizer or torch.optim.SGD(model.parameters(), lr=0.0),
        run or standard(nn.CrossEntropyLoss()),
        MetricSet(() if run else ("accuracy",), CLASSES),
        World(Alone(), CPU),
        StepSettings(**settings),
        global_batch=global_batch,
        rows_at=row_numbers,
    )


def first_batch(
    step: TrainingStep, columns: dict[str, torch.Tensor], *, micro_batch: int = 4
) -> StepResult:
    return step(BatchPlan(len(columns["x"]), 16, micro_batch).batch(0), columns)


def gradients(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    found = [parameter.grad for parameter in parameters]
    return [gradient for gradient in found if gradient is not None]


def plain(model: nn.Module, loss: nn.Module, columns: dict[str, torch.Tensor]) -> float:
    """The gradient of the mean loss over the whole batch, by torch alone."""
    model.zero_grad()
    value = loss(model(columns["x"]), columns["y"])
    value.backward()
    return float(value.detach())


LOSSES = {
    "plain": nn.CrossEntropyLoss(),
    "weighted": nn.CrossEntropyLoss(torch.tensor([0.1, 1.0, 5.0])),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.2),
}


@pytest.mark.parametrize("name", LOSSES)
@given(num_rows=st.integers(2, 16), micro_batch=st.sampled_from((1, 2, 4, 8, 16)))
@settings(deadline=None, max_examples=12)
def test_the_gradient_is_that_of_the_mean_loss_over_the_whole_batch(
    name: str, num_rows: int, micro_batch: int
) -> None:
    columns, loss = samples(num_rows), LOSSES[name]
    columns["y"][0] = 0  # some target that counts
    ours, theirs = net(), net()
    result = first_batch(make_step(ours, run=standard(loss)), columns, micro_batch=micro_batch)
    expected = plain(theirs, loss, columns)
    assert result.totals.loss == pytest.approx(expected, rel=1e-6)
    pairs = list(zip(gradients(ours.parameters()), gradients(theirs.parameters()), strict=True))
    assert len(pairs) == 4
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    norm = nn.utils.clip_grad_norm_(theirs.parameters(), 1e9)
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)


def test_a_step_reports_its_samples_and_metrics() -> None:
    columns, model = samples(13), net()
    result = first_batch(make_step(model), columns)
    with torch.no_grad():
        hits = (model(columns["x"]).argmax(1) == columns["y"]).sum().item()
    assert result.totals.num_samples == 13
    assert result.totals.weight == 13.0
    assert result.totals.present == (4, 4, 4, 4), "micro-batches that gave a gradient"
    scores = result.totals.scores(MetricSet(("accuracy",), CLASSES))
    assert scores["accuracy"] == pytest.approx(hits / 13)


@pytest.mark.parametrize("limit", [0.01, 0.1, 1e9])
def test_clipping_by_norm_is_torchs(limit: float) -> None:
    columns, ours, theirs = samples(16), net(), net()
    result = first_batch(make_step(ours, clip=Clip(norm=limit)), columns)
    plain(theirs, nn.CrossEntropyLoss(), columns)
    norm = float(nn.utils.clip_grad_norm_(theirs.parameters(), limit))
    assert result.grad_norm == pytest.approx(norm, rel=1e-6), "the norm before clipping"
    for mine, other in zip(
        gradients(ours.parameters()), gradients(theirs.parameters()), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("limit", [0.01, 0.1, 1e9])
@pytest.mark.parametrize("norm", [None, 0.05])
def test_clipping_by_value_is_torchs_and_comes_before_that_by_norm(
    limit: float, norm: float | None
) -> None:
    columns, ours, theirs = samples(16), net(), net()
    first_batch(make_step(ours, clip=Clip(value=limit, norm=norm)), columns)
    plain(theirs, nn.CrossEntropyLoss(), columns)
    nn.utils.clip_grad_value_(theirs.parameters(), limit)
    if norm is not None:
        nn.utils.clip_grad_norm_(theirs.parameters(), norm)
    for mine, other in zip(
        gradients(ours.parameters()), gradients(theirs.parameters()), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_the_schedule_sets_the_rate_of_every_group_from_its_own_base() -> None:
    first, last = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
    model = nn.Sequential(first, last)
    groups: list[dict[str, Any]] = [
        {"params": first.parameters(), "lr": 0.4},
        {"params": last.parameters()},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    step = make_step(model, optimizer=optimizer, schedule=lambda number: 1.0 / (number + 1))
    plan, columns = BatchPlan(16, 16, 4), samples(16)
    for number in range(3):
        before = last.bias.detach().clone()
        result = step(plan.batch(number), columns)
        factor = 1.0 / (number + 1)
        assert result.lr == pytest.approx(0.4 * factor)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.4 * factor, 0.1 * factor])
        assert last.bias.grad is not None
        expected = before - 0.1 * factor * last.bias.grad
        torch.testing.assert_close(last.bias.detach(), expected)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_schedule_that_gives_no_number_ends_the_run_before_it_costs_the_weights(
    factor: float,
) -> None:
    model = net()
    before = weights_digest(model)
    step = make_step(model, schedule=lambda _: factor)
    with pytest.raises(ProgramError, match=rf"the schedule gives the factor {factor} at step 1"):
        first_batch(step, samples(16))
    assert weights_digest(model) == before


def test_a_parameter_without_a_gradient_is_passed_over_by_the_optimizer() -> None:
    used, unused = net(), nn.Linear(2, 2)
    model = nn.ModuleList([used, unused])
    before = (weights_digest(used), weights_digest(unused))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    standard_run = standard(nn.CrossEntropyLoss())

    def run(module: nn.Module, columns: Columns) -> MicroBatchResult:
        assert isinstance(module, nn.ModuleList)
        return standard_run(module[0], columns)

    first_batch(make_step(model, run=run, optimizer=optimizer), samples(16))
    assert weights_digest(used) != before[0]
    assert weights_digest(unused) == before[1]
    assert unused.weight.grad is None


class Planted(torch.autograd.Function):
    """Passes values on; the gradient of rows whose first value is 9 is NaN."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(marked)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (marked,) = ctx.saved_tensors
        return torch.where(marked[:, None], torch.nan, grads[0]), None


def nan_loss(model: nn.Module, columns: Columns) -> MicroBatchResult:
    outputs = model(columns["x"])
    marked = columns["x"][:, 0] == 9.0
    outputs = torch.where(marked[:, None], outputs * torch.nan, outputs)
    return outputs.square().sum(), float(len(outputs)), outputs


def infinite_loss(model: nn.Module, columns: Columns) -> MicroBatchResult:
    outputs = model(columns["x"])
    marked = (columns["x"][:, 0] == 9.0).any()
    return outputs.square().sum() + (torch.inf if marked else 0.0), float(len(outputs)), outputs


def nan_gradient(model: nn.Module, columns: Columns) -> MicroBatchResult:
    marked = columns["x"][:, 0] == 9.0
    outputs = Planted.apply(model(columns["x"]), marked)  # type: ignore[no-untyped-call]
    return outputs.square().sum(), float(len(outputs)), outputs


PLANTED = {"nan loss": nan_loss, "infinite loss": infinite_loss, "nan gradient": nan_gradient}


@pytest.mark.parametrize(
    ("planted", "rows"),
    [
        ([0], [0, 1, 2, 3]),
        ([6], [4, 5, 6, 7]),
        ([3, 12], [0, 1, 2, 3, 12]),
        ([4, 5], [4, 5, 6, 7]),
    ],
)
@pytest.mark.parametrize("name", PLANTED)
def test_what_is_not_finite_names_the_rows_of_the_micro_batches_at_fault_and_moves_nothing(
    name: str, planted: list[int], rows: list[int]
) -> None:
    columns = samples(13)  # the last micro-batch has one sample, position 12
    columns["x"][planted, 0] = 9.0
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.BatchNorm1d(8).eval())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = weights_digest(model)
    step = make_step(model, run=PLANTED[name], optimizer=optimizer)
    with pytest.raises(NonFiniteError) as caught:
        step(BatchPlan(13, 16, 4).batch(2), columns)
    error = caught.value
    assert (error.step, error.epoch) == (3, 3)
    assert error.what == name.split()[1]
    assert list(error.rows) == [3000 + row for row in rows]
    assert f"the {error.what} is not finite at step 3 (epoch 3)" in str(error)
    assert weights_digest(model) == before
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


def test_running_statistics_are_those_before_a_step_that_fails() -> None:
    columns = samples(16)
    columns["x"][5, 0] = 9.0
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8))
    model(columns["x"])
    before = weights_digest(model)
    with pytest.raises(NonFiniteError):
        first_batch(make_step(model, run=nan_gradient), columns)
    assert weights_digest(model) == before


def test_a_sum_that_overflows_though_no_part_does_names_all_rows() -> None:
    def large(model: nn.Module, columns: Columns) -> MicroBatchResult:
        return model(columns["x"]).sum() * 3e38, 1.0, None

    model = nn.Linear(FEATURES, 1, bias=False)
    columns = samples(8)
    columns["x"][:] = 1.0 / 4
    step = make_step(model, run=large, global_batch=1)
    with pytest.raises(NonFiniteError) as caught:
        first_batch(step, columns)
    assert caught.value.what == "sum of the gradients"
    assert len(caught.value.rows) == 8


def test_the_message_names_32_rows_at_most() -> None:
    error = NonFiniteError(step=1, epoch=1, what="loss", rows=range(40))
    assert "30, 31, ...." in str(error)
    assert "32" not in str(error)
    assert error.rows == tuple(range(40))


def test_a_step_whose_weight_is_zero_has_no_loss_and_no_gradient() -> None:
    columns, model = samples(16), net()
    columns["y"][:] = -100
    before = weights_digest(model)
    run = standard(nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    metrics = MetricSet(("accuracy",), CLASSES, ignore_index=-100)
    step = TrainingStep(
        model,
        optimizer,
        run,
        metrics,
        World(Alone(), CPU),
        StepSettings(target="y", seed=0, schedule=lambda _: 1.0, clip=Clip(norm=1.0)),
        global_batch=16,
        rows_at=row_numbers,
    )
    result = first_batch(step, columns)
    assert math.isnan(result.totals.loss)
    assert result.grad_norm == 0.0
    assert weights_digest(model) == before


@pytest.mark.parametrize(
    ("loss_sum", "given_text"),
    [
        (lambda outputs: outputs.square(), r"of shape \(4, 3\)"),
        (lambda outputs: outputs.detach().sum(), r"of shape \(\)"),
        (lambda _: 1.5, r"1\.5"),
    ],
)
def test_a_loss_sum_that_is_no_number_to_differentiate_is_refused(
    loss_sum: Callable[[torch.Tensor], Any], given_text: str
) -> None:
    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        return loss_sum(model(columns["x"])), 4.0, None

    with pytest.raises(ProgramError, match=rf"the loss sum is {given_text}; a single number"):
        first_batch(make_step(net(), run=run), samples(16))


def test_a_batch_norm_over_a_single_sample_is_refused_with_what_to_do() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))
    with pytest.raises(ProgramError, match=r'step 1, micro-batch 3 has a single sample.*"drop"'):
        first_batch(make_step(model), samples(13))


def test_another_value_error_of_the_model_is_passed_on() -> None:
    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        raise ValueError(f"bad luck with {len(columns['x'])} samples of {type(model)}")

    with pytest.raises(ValueError, match=r"^bad luck with 4 samples"):
        first_batch(make_step(net(), run=run), samples(4))


def test_each_micro_batch_of_each_step_draws_numbers_of_its_own_that_come_again() -> None:
    def draws(seed: int) -> list[float]:
        found: list[float] = []

        def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
            found.append(torch.rand(()).item())
            return model(columns["x"]).sum(), 1.0, None

        step = make_step(net(), run=run, seed=seed)
        for number in range(3):
            step(BatchPlan(16, 16, 4).batch(number), samples(16))
        return found

    first = draws(0)
    assert len(set(first)) == 12
    assert draws(0) == first
    assert not set(draws(1)) & set(first)


def test_micro_batches_get_the_samples_of_their_positions() -> None:
    seen: list[torch.Tensor] = []

    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        seen.append(columns["x"].clone())
        return model(columns["x"]).sum(), 1.0, None

    columns = samples(13)
    first_batch(make_step(net(), run=run), columns)
    assert [len(part) for part in seen] == [4, 4, 4, 1]
    assert torch.equal(torch.cat(seen), columns["x"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.float16])
def test_a_trainable_parameter_of_another_dtype_is_refused_by_name(dtype: torch.dtype) -> None:
    model = nn.ModuleDict({"net": net(), "other": nn.Linear(2, 2, dtype=dtype)})
    with pytest.raises(ConfigError, match=rf"parameter other\.weight is {dtype}; gradients are"):
        make_step(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.int64, torch.bool])
def test_a_frozen_parameter_of_another_dtype_is_used_and_left_alone(dtype: torch.dtype) -> None:
    model = nn.ModuleDict({"net": net()})
    model.table = nn.Parameter(torch.ones(CLASSES).to(dtype), requires_grad=False)

    def run(module: Any, columns: Columns) -> MicroBatchResult:
        outputs = module["net"](columns["x"]) * (module.table != 0).float()
        return outputs.square().sum(), float(len(outputs)), outputs

    trained = [p for p in model.parameters() if p.requires_grad]
    before = weights_digest(model["net"])
    step = make_step(model, run=run, optimizer=torch.optim.SGD(trained, lr=0.1))
    first_batch(step, samples(16))
    assert weights_digest(model["net"]) != before
    assert torch.equal(model.table, torch.ones(CLASSES).to(dtype))


class Ungiving(torch.autograd.Function):
    """A product that gives its second factor no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(factor)
        return x * factor

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (factor,) = ctx.saved_tensors
        return grads[0] * factor, None


def test_a_parameter_that_an_own_function_gives_no_gradient_counts_as_unused() -> None:
    model = nn.ModuleDict({"net": net()})
    model.factor = nn.Parameter(torch.full((CLASSES,), 2.0))

    def run(module: Any, columns: Columns) -> MicroBatchResult:
        outputs = Ungiving.apply(module["net"](columns["x"]), module.factor)  # type: ignore[no-untyped-call]
        return outputs.square().sum(), float(len(outputs)), outputs

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    result = first_batch(make_step(model, run=run, optimizer=optimizer), samples(16))
    names = [name for name, _ in model.named_parameters()]
    present = dict(zip(names, result.totals.present, strict=True))
    assert present.pop("factor") == 0
    assert set(present.values()) == {4}
    assert model.factor.grad is None
    assert torch.equal(model.factor.detach(), torch.full((CLASSES,), 2.0)), "not even decayed"
