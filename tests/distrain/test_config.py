"""The checks of a job's sections: what can't be run is refused with what would do."""

import inspect
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distrain.checks import near_names
from distrain.config import (
    DataConfig,
    EarlyStoppingConfig,
    LossConfig,
    RunConfig,
    TrainingConfig,
    check_micro_batch,
    default_micro_batch,
)
from distrain.errors import ConfigError, ExitCode
from distrain.schedule_config import SCHEDULES, ScheduleConfig
from distrain.update_config import OPTIMIZERS, OptimizerConfig, OptimizerGroupConfig

FIELD_VALUES = {"betas": (0.9, 0.99), "nesterov": True}


def grouped(name: str = "sgd", **fields: float) -> OptimizerConfig:
    group = OptimizerGroupConfig(match="head.*", **fields)  # type: ignore[arg-type]
    return OptimizerConfig(name=name, groups={"head": group})


def training(**fields: object) -> object:
    return TrainingConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RunConfig(compute_threads=0), "run.compute_threads is 0; it must be 1 or more"),
        (
            lambda: DataConfig(path="p", inputs="x", target="y", prefetch=0),
            "data.prefetch is 0; give 1 to 1000",
        ),
        (
            lambda: DataConfig(path="p", inputs="x", target="y", threads=0),
            "data.threads is 0; give 1 to 1000",
        ),
        (
            lambda: DataConfig(path="p", inputs="x", target="y", validation=("a", "b", "a")),
            r"data.validation is \['a', 'b', 'a'\]; name each part once",
        ),
        (
            lambda: DataConfig(path="p", inputs="x", target="y", validation=()),
            r'data.validation is \[\]; name each part once, or give "none"',
        ),
        (
            lambda: LossConfig(name="crossentropy"),
            r"loss.name is 'crossentropy', .*did you mean cross_entropy\?",
        ),
        (lambda: LossConfig(name="hinge"), "known are bce_with_logits, cross_entropy, huber, ma"),
        (
            lambda: LossConfig(name="mse", class_weights=(1.0, 2.0)),
            "go with cross_entropy, not with mse: leave them out",
        ),
        (lambda: LossConfig(name="huber", label_smoothing=0.1), "not with huber: leave them out"),
        (lambda: LossConfig(label_smoothing=1.5), "loss.label_smoothing is 1.5; give 0 to 1"),
        (lambda: LossConfig(label_smoothing=-0.1), "loss.label_smoothing is -0.1; give 0 to 1"),
        (lambda: OptimizerConfig(name="adan"), r"optimizer.name is 'adan'.*did you mean adam"),
        (lambda: OptimizerConfig(lr=0.0), "optimizer.lr is 0.0; it must be above 0"),
        (lambda: OptimizerConfig(lr=float("nan")), "optimizer.lr is nan; it must be above 0"),
        (
            lambda: OptimizerConfig(weight_decay=-1e-4),
            "optimizer.weight_decay is -0.0001; it must be 0 or more",
        ),
        (
            lambda: OptimizerConfig(name="adam", momentum=0.9),
            "optimizer.momentum is not for adam, which takes lr, weight_decay, betas, eps",
        ),
        (
            lambda: grouped(name="adam", momentum=0.9),
            "optimizer.groups.head.momentum is not for adam, which takes lr, weight_decay, betas",
        ),
        (lambda: grouped(lr=-0.1), "optimizer.groups.head.lr is -0.1; it must be 0 or more"),
        (
            lambda: grouped(weight_decay=float("nan")),
            "optimizer.groups.head.weight_decay is nan; it must be 0 or more",
        ),
        (
            lambda: OptimizerConfig(nesterov=True),
            "give a momentum above 0, or leave nesterov out",
        ),
        (
            lambda: OptimizerConfig(nesterov=True, momentum=0.0),
            "give a momentum above 0, or leave nesterov out",
        ),
        (lambda: ScheduleConfig(name="cosin"), r"schedule.name is 'cosin'.*did you mean cosine\?"),
        (
            lambda: ScheduleConfig(decay=0.1),
            "schedule.decay is not for constant, which takes no fields",
        ),
        (
            lambda: ScheduleConfig(name="cosine", tau_steps=3),
            "schedule.tau_steps is not for cosine, which takes warmup_steps, total_steps, final",
        ),
        (
            lambda: ScheduleConfig(name="linear"),
            "schedule.tau_steps is missing: the schedule linear needs it",
        ),
        (
            lambda: ScheduleConfig(name="step"),
            "schedule.every_steps is missing: the schedule step needs it",
        ),
        (
            lambda: ScheduleConfig(name="plateau", decay=0.5),
            "schedule.decay is not for plateau, which takes monitor, mode, factor, patience",
        ),
        (
            lambda: ScheduleConfig(name="cosine", patience=3),
            "schedule.patience is not for cosine, which takes warmup_steps, total_steps",
        ),
        (lambda: training(epochs=0), "training.epochs is 0; it must be 1 or more"),
        (lambda: training(global_batch=0), "training.global_batch is 0; it must be 1 or more"),
        (lambda: training(clip_norm=0.0), "training.clip_norm is 0.0; it must be above 0"),
        (lambda: training(clip_value=-1.0), "training.clip_value is -1.0; it must be above 0"),
        (
            lambda: training(metrics=("accuracy", "acuracy")),
            r"training.metrics: there is no metric 'acuracy'; did you mean accuracy",
        ),
        (
            lambda: training(global_batch=100, micro_batch=33),
            "a micro-batch of 33 does not divide the global batch of 100: take 25 or 50",
        ),
        (
            lambda: EarlyStoppingConfig(patience=-1),
            "early_stopping.patience is -1; it must be 0 or more",
        ),
        (
            lambda: EarlyStoppingConfig(min_delta=-0.5),
            "early_stopping.min_delta is -0.5; it must be 0 or more",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_bad_job_ends_with_exit_code_78() -> None:
    assert ConfigError("x").exit_code is ExitCode.CONFIG
    assert int(ExitCode.CONFIG) == 78


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("field", ["momentum", "nesterov", "betas", "eps", "alpha", "rho"])
def test_an_optimizer_takes_the_fields_that_torchs_takes_and_no_other(
    name: str, field: str
) -> None:
    given_fields = {field: FIELD_VALUES.get(field, 0.5)}
    if field == "nesterov":
        given_fields["momentum"] = 0.9
    (kind,) = (
        found
        for key, found in vars(torch.optim).items()
        if key.lower() == name and inspect.isclass(found)
    )
    if field in OPTIMIZERS[name]:
        assert field in inspect.signature(kind).parameters
        OptimizerConfig(name=name, **given_fields)  # type: ignore[arg-type]
    else:
        with pytest.raises(ConfigError, match=f"is not for {name}, which takes lr, weight_decay"):
            OptimizerConfig(name=name, **given_fields)  # type: ignore[arg-type]


def test_every_schedule_takes_its_fields() -> None:
    values = {"final_factor": 0.5, "decay": 0.5}
    for name, fields in SCHEDULES.items():
        ScheduleConfig(name=name, **{field: values.get(field, 3) for field in fields})  # type: ignore[arg-type]


@given(global_batch=st.integers(1, 3_000))
def test_the_default_micro_batch_is_the_largest_divisor_up_to_32(global_batch: int) -> None:
    divisors = [size for size in range(1, 33) if global_batch % size == 0]
    assert default_micro_batch(global_batch) == max(divisors)


@pytest.mark.parametrize(
    ("global_batch", "size"), [(256, 32), (100, 25), (1, 1), (37, 1), (37 * 2, 2)]
)
def test_the_default_micro_batch_by_hand(global_batch: int, size: int) -> None:
    assert default_micro_batch(global_batch) == size


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "advice"),
    [
        (256, 30, "take 16 or 32"),
        (256, 300, "take 256"),
        (256, 0, "take 1"),
        (256, -5, "take 1"),
        (7, 5, "take 1 or 7"),
        (1, 2, "take 1"),
    ],
)
def test_a_micro_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(
    global_batch: int, micro_batch: int, advice: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_micro_batch(global_batch, micro_batch)
    assert str(caught.value).endswith(f"global batch of {global_batch}: {advice}")


@given(global_batch=st.integers(1, 500), micro_batch=st.integers(1, 600))
def test_a_divisor_is_accepted_and_nothing_else(global_batch: int, micro_batch: int) -> None:
    if global_batch % micro_batch == 0:
        check_micro_batch(global_batch, micro_batch)
    else:
        with pytest.raises(ConfigError) as caught:
            check_micro_batch(global_batch, micro_batch)
        advice = str(caught.value).rpartition(": take ")[2]
        divisors = [size for size in range(1, global_batch + 1) if global_batch % size == 0]
        below = [size for size in divisors if size < micro_batch]
        above = [size for size in divisors if size > micro_batch]
        assert [int(size) for size in advice.split(" or ")] == below[-1:] + above[:1]


def test_near_names_are_hinted_and_all_names_where_none_is_near() -> None:
    known = ("recall", "precision", "precision_micro", "recall_micro", "f1")
    assert near_names("recal", known) == "did you mean recall?"
    assert (
        near_names("precison_micr", known)
        == "did you mean precision_micro or precision or recall_micro?"
    )
    assert near_names("zzz", ("b", "a")) == "known are a, b"


def test_sections_cannot_be_changed_after_their_check() -> None:
    config = TrainingConfig()
    with pytest.raises(AttributeError):
        config.epochs = 0  # type: ignore[misc]
