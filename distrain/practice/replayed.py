"""What comes out of a replay, in plain values."""

from dataclasses import dataclass, field
from typing import Any

from distrain.practice.first_non_finite import NonFinite
from distrain.practice.micro_batch_watch import Layer


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of the step; labels are the data set's, before any augmentation."""

    micro_batch: int
    rows: list[int]
    labels: list[Any] | None
    loss: float | None


@dataclass(frozen=True)
class Failure:
    """How the step, or one on the way to it, failed.

    Attributes:
        step: Counted from 1.
        is_recorded: The run has failed so as well.
        micro_batch: The one that the error came from, or that was not finite first.
        first: The first place that was not finite; None where the error is another.
        first_nan: The first with a NaN, where that is another one.
        rows: The samples at fault, by number in the data set.
    """

    step: int
    kind: str
    text: str
    traceback: str
    is_recorded: bool
    micro_batch: int | None
    first: NonFinite | None
    first_nan: NonFinite | None
    rows: list[int]


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What came out.

    Attributes:
        step: Counted from 1, of `epoch`, counted from 1.
        start: The step that the walk began after; 0 for the run's begin.
        passed_over: What was wrong with newer checkpoints.
        activation_bytes: What the whole batch keeps for its backward pass, where it has to be in
            memory at once; None elsewhere.
        first_difference: The first step whose numbers are not the recorded ones; None for none.
        num_compared: Steps that there was a record of.
        recorded: Of the step; None without a record.
        numbers: Loss, gradient norm and learning rate as they came out; None where it failed.
        is_equal: Whether the step did as recorded, a failure included; None without a record.
        environment: What has changed since, by name: then and now.
        skipped: The gradient overflowed, and nothing moved.
        parameters: Norms by parameter.
        layers, gradients: Of the micro-batch that was looked at.
    """

    run: str
    step: int
    epoch: int
    start: int
    passed_over: list[str]
    activation_bytes: int | None
    first_difference: int | None
    num_compared: int
    recorded: dict[str, float | None] | None
    numbers: dict[str, float | None] | None
    is_equal: bool | None
    environment: dict[str, tuple[Any, Any]]
    skipped: bool
    parameters: dict[str, dict[str, float | None]] | None
    micro_batches: list[MicroBatch]
    layers: list[Layer] = field(default_factory=list)
    gradients: dict[str, float] = field(default_factory=dict)
    failure: Failure | None = None
