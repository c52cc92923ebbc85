"""Autocast, the loss scale and the memory layout, against torch's own recipes by hand."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain.errors import ConfigError, NonFiniteError
from distrain.learn.loss_scale import LossScale
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.replicas import weights_digest
from distrain.precision import Precision, make_precision
from tests.run_folders import named, told

CPU = torch.device("cpu")
ROWS, FEATURES, CLASSES, BATCH, EPOCHS = 64, 8, 3, 16, 3
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


TARGET = torch.from_numpy(np.random.default_rng(1).integers(0, CLASSES, ROWS))


def make_data(*shape: int) -> Dataset:
    inputs = np.random.default_rng(0).standard_normal((ROWS, *(shape or (FEATURES,))))
    columns = {"x": inputs.astype(np.float32), "y": TARGET.numpy()}
    return Dataset.from_arrays(columns, classes={"y": ("a", "b", "c")})


def loud(model: nn.Module, columns: Columns) -> MicroBatchResult:
    """A loss whose gradient overflows float16 at the scales that a run begins with."""
    outputs = model(columns["x"])
    loss = nn.functional.cross_entropy(outputs, columns["y"], reduction="sum")
    return loss * 1000.0, float(len(outputs)), outputs


def by_hand(
    batches: list[dict[str, torch.Tensor]], dtype: torch.dtype
) -> tuple[nn.Module, list[float]]:
    """torch's recipe: autocast, and for float16 a GradScaler; the scale after each step."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
    scales = []
    for columns in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss_sum, weight, _ = loud(model, columns)
        scaler.scale(loss_sum / weight).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return model, scales


@pytest.mark.parametrize("precision", DTYPES)
def test_a_run_is_torchs_own_autocast_and_grad_scaler_loop(precision: str, tmp_path: Path) -> None:
    batches: list[dict[str, torch.Tensor]] = []

    def noting(model: nn.Module, columns: Columns) -> MicroBatchResult:
        batches.append({name: column.clone() for name, column in columns.items()})
        return loud(model, columns)

    trainer = distrain.Trainer(
        model=net(),
        run=tmp_path / "run",
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.01),
        inputs="x",
        target="y",
        standardize=False,
        precision=precision,
        micro_batch_step=noting,
        progress=False,
    )
    trainer.fit(make_data(), epochs=EPOCHS, global_batch=BATCH, micro_batch=BATCH)
    model, scales = by_hand(batches, DTYPES[precision])
    ours, theirs = trainer.model.state_dict(), model.state_dict()
    # Where a step is skipped, torch's loop has moved the running statistics already.
    skipped = [event["step"] for event in named(tmp_path / "run", "overflow")]
    for name in ours:
        if not (skipped and "running" in name) and "num_batches" not in name:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    steps = named(tmp_path / "run", "step")
    assert len(steps) == len(scales) == EPOCHS * ROWS // BATCH
    if precision == "float16":
        assert [step["loss_scale"] for step in steps] == scales
        halved = [a > b for a, b in zip([65536.0, *scales], scales, strict=False)]
        assert skipped == [number for number, less in enumerate(halved, 1) if less]
        assert 2 < len(skipped) < len(steps) - 2
        assert [step["step"] for step in steps if step["grad_norm"] is None] == skipped
        counted = len(steps) - len(skipped)
        assert int(ours["1.num_batches_tracked"]) == counted
    else:
        assert not skipped
        assert all("loss_scale" not in step for step in steps)


class Flagged(torch.autograd.Function):
    """Passes values on; gradients are infinite as long as a flag is set."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, flag: bool) -> torch.Tensor:
        ctx.flag = flag
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0] * (torch.inf if ctx.flag else 1.0), None


def planted(bad: Callable[[int], bool]) -> Callable[[nn.Module, Columns], MicroBatchResult]:
    """A step whose micro-batches of some numbers, counted from 0, overflow."""
    seen = 0

    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        nonlocal seen
        outputs = model(columns["x"])
        passed = Flagged.apply(outputs, bad(seen))  # type: ignore[no-untyped-call]
        seen += 1
        loss = nn.functional.cross_entropy(passed, columns["y"], reduction="sum")
        return loss, float(len(outputs)), outputs

    return run


def trainer_with(bad: Callable[[int], bool], **options: Any) -> distrain.Trainer:
    settings: dict[str, Any] = {"precision": "float16", "progress": False, **options}
    return distrain.Trainer(
        model=net,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        inputs="x",
        target="y",
        micro_batch_step=planted(bad),
        **settings,
    )


def test_a_step_that_overflows_moves_nothing_and_counts_as_a_step() -> None:
    trainer = trainer_with(lambda number: number == 6, schedule=distrain.schedules.Linear(10, 0.1))
    parts = trainer.assemble(make_data(), global_batch=BATCH, micro_batch=4)
    trainer.model.train()
    optimizer, scale = parts.step.optimizer, None
    with parts.batches(range(3), 1) as batches:
        for number in range(3):
            before = weights_digest(trainer.model)
            momentum = [s["momentum_buffer"].clone() for s in optimizer.state.values()]
            result = parts.step(parts.plan.batch(number), next(batches).columns, loss_scale=scale)
            scale = result.loss_scale
            assert math.isfinite(result.totals.loss)
            assert result.totals.num_samples == BATCH
            assert result.skipped == (number == 1)
            assert (weights_digest(trainer.model) == before) == result.skipped
            if result.skipped:
                after = [s["momentum_buffer"] for s in optimizer.state.values()]
                assert all(map(torch.equal, momentum, after))
                assert not math.isfinite(result.grad_norm)
                assert scale == LossScale(32768.0, 0)
                with parts.step.standing.at_rest(lambda: 2, 1.0) as state:
                    assert all(
                        torch.equal(state[name], value)
                        for name, value in trainer.model.state_dict().items()
                    )
    assert scale == LossScale(32768.0, 1)
    assert result.lr == pytest.approx(0.1 * (1.0 - 0.9 * 2 / 10)), "the schedule goes on"


def test_a_gradient_that_overflows_at_every_scale_is_an_error_that_names_rows(
    tmp_path: Path,
) -> None:
    trainer = trainer_with(lambda number: number >= 4, run=tmp_path / "run")
    with pytest.raises(NonFiniteError, match="The loss scale is down at 1") as caught:
        trainer.fit(make_data(), epochs=9, global_batch=BATCH, micro_batch=BATCH)
    # 4 good steps, then 16 that halve 65536 down to 1, then the one that ends it.
    assert caught.value.step == 21
    assert caught.value.what == "gradient"
    assert len(caught.value.rows) == BATCH
    overflows = named(tmp_path / "run", "overflow")
    assert [event["step"] for event in overflows] == list(range(5, 21))
    assert overflows[-1]["loss_scale"] == 1.0
    assert overflows[0]["text"] == (
        "step 5 is skipped: the gradient overflowed; the loss scale is 32768 now"
    )


def test_a_loss_that_is_not_finite_is_an_error_at_once() -> None:
    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        return model(columns["x"]).sum() * torch.inf, 4.0, None

    trainer = distrain.Trainer(
        model=net,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD,
        inputs="x",
        target="y",
        precision="float16",
        micro_batch_step=run,
        progress=False,
    )
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 1") as caught:
        trainer.fit(make_data(), epochs=1, global_batch=BATCH)
    assert "loss scale" not in str(caught.value)


class PowerCutError(Exception):
    """Ends a run in mid-step."""


def test_a_float16_run_that_was_cut_off_goes_on_with_the_same_bits_and_scales(
    tmp_path: Path,
) -> None:
    def fit(folder: str, cut_at: int | None = None) -> str:
        left = math.inf if cut_at is None else cut_at

        def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
            nonlocal left
            left -= 1
            if left < 0:
                raise PowerCutError
            return loud(model, columns)

        trainer = distrain.Trainer(
            model=net,
            run=tmp_path / folder,
            loss=nn.CrossEntropyLoss(),
            optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
            inputs="x",
            target="y",
            precision="float16",
            micro_batch_step=run,
            checkpoint=distrain.Checkpoint(every_steps=1, every_seconds=None),
            progress=False,
        )
        trainer.fit(make_data(), epochs=EPOCHS, global_batch=BATCH, micro_batch=4)
        return weights_digest(trainer.model)

    whole = fit("whole")
    skipped = [event["step"] for event in named(tmp_path / "whole", "overflow")]
    assert skipped, "some steps are skipped"
    # Cut off in the first step, in one that follows a skipped one, in the last one.
    for cut_at in (2, 4 * skipped[1] + 1, 4 * EPOCHS * ROWS // BATCH - 1):
        folder = f"cut_{cut_at}"
        with pytest.raises(PowerCutError):
            fit(folder, cut_at)
        assert fit(folder) == whole
        assert told(tmp_path / folder) == told(tmp_path / "whole")
        again = [event["step"] for event in named(tmp_path / folder, "overflow")]
        assert again == skipped


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_without_a_scale_a_gradient_that_is_not_finite_is_an_error(precision: str) -> None:
    trainer = trainer_with(lambda number: number >= 1, precision=precision)
    with pytest.raises(NonFiniteError, match="the gradient is not finite at step 2"):
        trainer.fit(make_data(), epochs=1, global_batch=BATCH, micro_batch=BATCH)


def test_the_scale_grows_in_a_run_and_changes_no_bit_of_the_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """float16 without the scale's range being of matter: all scales give the same weights."""

    def final(interval: int) -> str:
        monkeypatch.setattr("distrain.learn.loss_scale.GROWTH_INTERVAL", interval)
        # The loss is that of float32 layers, so that nothing is rounded to float16 on the way.
        trainer = distrain.Trainer(
            model=nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Flatten()),
            loss=nn.CrossEntropyLoss(),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            inputs="x",
            target="y",
            precision="float16",
            progress=False,
        )
        trainer.fit(make_data(), epochs=2, global_batch=BATCH)
        return weights_digest(trainer.model)

    assert final(1) == final(2000)


@pytest.mark.parametrize("precision", DTYPES)
def test_training_evaluation_and_prediction_compute_alike_and_give_float32(precision: str) -> None:
    seen: set[tuple[torch.dtype, bool]] = set()

    class Noting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs = super().forward(x)
            seen.add((outputs.dtype, self.training))
            return outputs

    data = make_data()
    trainer = distrain.Trainer(
        model=lambda: Noting(FEATURES, CLASSES),
        loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        inputs="x",
        target="y",
        metrics=["accuracy"],
        precision=precision,
        progress=False,
    )
    trainer.fit(data, data, epochs=1, global_batch=BATCH)
    assert seen == {(DTYPES[precision], True), (DTYPES[precision], False)}
    predictions = trainer.predict(data)
    assert predictions.dtype == torch.float32
    assert torch.equal(predictions, predictions.to(DTYPES[precision]).float())
    scores = trainer.evaluate(data)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    assert scores["loss"] == pytest.approx(float(loss(predictions, TARGET)))
    assert len(seen) == 2


def test_autocast_works_in_any_thread_and_leaves_no_trace() -> None:
    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        found.append(torch.is_autocast_enabled("cpu"))
        assert not torch.is_autocast_cache_enabled()
        return model(columns["x"]).sum(), 1.0, None

    found: list[bool] = []
    wrapped = Precision("bfloat16").wrapped(run, CPU)
    threads = [
        threading.Thread(target=wrapped, args=(net(), {"x": torch.randn(4, FEATURES)}))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True, True]
    assert not torch.is_autocast_enabled("cpu")


def test_a_weight_used_twice_gets_both_gradients_in_float32() -> None:
    """With autocast's cache they would be added in bfloat16, or not, as other threads please."""
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8, bias=False), torch.randn(4, 8)

    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        return (model(columns["x"]).float() + model(3.0 * columns["x"]).float()).sum(), 4.0, None

    loss, _, _ = Precision("bfloat16").wrapped(run, CPU)(layer, {"x": x})
    loss.backward()  # type: ignore[no-untyped-call]
    ones = torch.ones(4, 8)
    single = [ones.T @ part.bfloat16().float() for part in (x, 3.0 * x)]
    expected = single[0].bfloat16().float() + single[1].bfloat16().float()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, expected)


def test_float32_alone_leaves_the_step_as_it_is() -> None:
    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        return model(columns["x"]).sum(), 1.0, None

    assert Precision().wrapped(run, CPU) is run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, r"precision is 'fp16', which is not known; .*float16"),
        ({"precision": torch.float16}, "precision is torch.float16"),
        ({"compile": "max-autotune"}, "compile is 'max-autotune'; it is True or False: .* trial"),
        ({"channels_last": 1}, "channels_last is 1; it is True or False"),
    ],
)
def test_what_is_not_known_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distrain.Trainer(
            model=net,
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD,
            inputs="x",
            target="y",
            **options,
        )


def test_each_choice_is_part_of_a_runs_identity(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {"precision": "bfloat16"},
        {"activation_checkpointing": ["0"]},
        {"channels_last": True},
    ]

    def fit(**chosen: Any) -> None:
        distrain.Trainer(
            model=net,
            run=tmp_path / "run",
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD,
            inputs="x",
            target="y",
            progress=False,
            **chosen,
        ).fit(make_data(), epochs=1, global_batch=BATCH)

    fit()
    for chosen in options:
        with pytest.raises(ConfigError, match=next(iter(chosen))):
            fit(**chosen)


def picture_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * 16, CLASSES),
    )


def pictures(channels_last: bool, optimizer: Any, run: Path | None = None, epochs: int = 2) -> Any:
    data = make_data(3, 6, 6)
    trainer = distrain.Trainer(
        model=picture_net,
        run=run,
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        inputs="x",
        target="y",
        channels_last=channels_last,
        checkpoint=distrain.Checkpoint(every_steps=1, every_seconds=None),
        progress=False,
    )
    trainer.fit(data, data, epochs=epochs, global_batch=BATCH, micro_batch=8)
    return trainer


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_channels_last_trains_the_same_model(name: str) -> None:
    """A fused optimizer that is given a gradient of other strides mixes the weights up silently."""
    plain, last = (pictures(chosen, OPTIMIZERS[name]).model for chosen in (False, True))
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not last[0].weight.is_contiguous()
    for mine, other in zip(last.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.contiguous(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_channels_last_run_goes_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = pictures(True, OPTIMIZERS[name], tmp_path / "whole")
    pictures(True, OPTIMIZERS[name], tmp_path / "parts", epochs=1)
    status = tmp_path / "parts" / "status.json"
    content = json.loads(status.read_text())
    status.write_text(json.dumps({**content, "state": "failed"}))
    went_on = pictures(True, OPTIMIZERS[name], tmp_path / "parts")
    assert weights_digest(went_on.model) == weights_digest(whole.model)


def test_the_model_and_its_pictures_are_laid_out_alike() -> None:
    strides: list[tuple[int, ...]] = []

    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        strides.append(columns["x"].stride())
        return model(columns["x"]).sum(), 1.0, None

    wrapped = make_precision("float32", (), False, True).wrapped(run, CPU)
    wrapped(picture_net(), {"x": torch.randn(2, 3, 6, 6), "y": torch.zeros(2)})
    assert strides == [(108, 1, 18, 3)]
