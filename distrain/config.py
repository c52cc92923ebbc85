"""A job, as frozen dataclasses that check themselves. Nothing here imports torch.

`job_file` reads them from TOML and applies `--section.field VALUE`; `run_job` builds from them
what `Trainer` takes. The docstring under a field is its help text.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from distrain.bad_numbers import BadNumbers
from distrain.checks import check_above_zero, check_at_least, check_known
from distrain.errors import ConfigError
from distrain.metric_names import metric
from distrain.schedule_config import ScheduleConfig
from distrain.store_address import check_store_address
from distrain.update_config import AverageConfig, OptimizerConfig

PRECISIONS = ("float32", "bfloat16", "float16")

LOSSES = ("cross_entropy", "bce_with_logits", "mse", "mae", "huber")

Backend = Literal["torch", "horovod"]
"""What carries the workers' exchanges."""

MOST_BATCH = 10_000_000
MOST_PREFETCH = 1_000


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run leaves its files, and what its numbers rest on beside the model."""

    dir: str | None = None
    """The run's folder; runs/NAME for a job file NAME.toml unless given."""
    seed: int = 0
    """Seed of everything random: weights, order, augmentation, dropout."""
    compute_threads: int = 1
    """Threads a worker computes with on a CPU. Part of the result: other numbers, other bits."""
    deterministic: bool = True
    """Use deterministic kernels only; an operation that has none is an error."""
    max_time_s: float | None = None
    """Save and stop, with exit code 75, so many seconds after the launcher's start."""
    grace_s: float = 30.0
    """Seconds between a signal to stop and the end; less than the scheduler's own grace time."""
    hang_timeout_s: float | None = 480.0
    """Seconds without a sign of life after which a worker is said to hang:
    it is named, the stacks of all are kept in the run's folder, and all
    start again (or end, with 70). More than the longest micro-batch,
    compilation or checkpoint takes, and less than parallel.timeout_s. 0
    for never."""
    inspect_every: int | None = None
    """Log after every so many steps, for each parameter, the norms of
    gradient and weights, and how far the step moved them (about 0.001 of
    their norm is healthy). 0, or none, for never."""
    prometheus_port: int | None = None
    """Serve the run's numbers for Prometheus at http://127.0.0.1:PORT/metrics
    while it goes on; 0 for any free port, which is said."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_at_least("run.compute_threads", self.compute_threads, 1)
        check_above_zero("run.max_time_s", self.max_time_s)
        check_above_zero("run.grace_s", self.grace_s)
        check_at_least("run.hang_timeout_s", self.hang_timeout_s, 0)
        check_at_least("run.inspect_every", self.inspect_every, 0)
        if self.prometheus_port is not None and not 0 <= self.prometheus_port < 2**16:
            raise ConfigError(
                f"run.prometheus_port is {self.prometheus_port}; give 0 to {2**16 - 1}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read."""

    path: str
    """Folder of the data set (the one that holds manifest.json)."""
    inputs: str
    """Column that the model is given."""
    target: str
    """Column that the loss compares the model's output with."""
    train: str = "train"
    """Part to train on."""
    validation: str | tuple[str, ...] | None = "validation"
    """Part to evaluate on after each epoch, or several: the scores of a
    single one are val_..., those of several val_PART_..."""
    standardize: bool = True
    """Scale uint8 and float inputs by the training part's mean and standard deviation."""
    prepare: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Transforms of all inputs, in order, those of the validation part as
    well, such as resize."""
    augment: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Transforms of the training samples, in order, such as shift (pixels, fill) and flip."""
    sampling: Literal["shuffled", "with_replacement", "bootstrap", "balanced"] = "shuffled"
    """Each sample once an epoch; as many drawn with replacement, anew or the
    same ones in every epoch (for bagging); or all classes equally often."""
    verify: bool = True
    """Compare every shard with its SHA-256 before training."""
    prefetch: int = 2
    """Batches that the loader prepares ahead."""
    threads: int = 1
    """Threads of each worker that prepare batches; no part of the result."""

    @property
    def validation_parts(self) -> tuple[str, ...]:
        """The parts to evaluate on."""
        one = self.validation
        return (one,) if isinstance(one, str) else one or ()

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 1 <= self.prefetch <= MOST_PREFETCH:
            raise ConfigError(f"data.prefetch is {self.prefetch}; give 1 to {MOST_PREFETCH}")
        if not 1 <= self.threads <= MOST_PREFETCH:
            raise ConfigError(f"data.threads is {self.threads}; give 1 to {MOST_PREFETCH}")
        parts = self.validation_parts
        if len(set(parts)) < len(parts) or (not parts and self.validation is not None):
            raise ConfigError(
                f'data.validation is {list(parts)}; name each part once, or give "none"'
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model."""

    build: str
    """mlp, cnn, or PACKAGE.MODULE:FUNCTION, which is called with the options
    and gives a module."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the function."""
    activation_checkpointing: tuple[str, ...] = ()
    """Names of submodules, or patterns of names such as blocks.*, that keep
    their inputs alone and run again in the backward pass: less memory,
    more time, the same bits."""
    compile: bool = False
    """Compile the model by torch.compile, once for each shape: faster after
    a start of seconds to a minute. Part of the result; not with
    batch_norm sync."""
    channels_last: bool = False
    """Lay pictures and convolutions out with channels last in memory, which
    is often faster. Part of the result."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised: the mean over the samples of a global batch."""

    name: str = "cross_entropy"
    """cross_entropy, bce_with_logits, mse, mae or huber."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in cross_entropy."""
    label_smoothing: float = 0.0
    """Share of the target that cross_entropy spreads over all classes."""

    def __post_init__(self) -> None:
        """Checks names and what goes together."""
        check_known("loss.name", self.name, LOSSES)
        if self.name != "cross_entropy" and (self.class_weights or self.label_smoothing):
            raise ConfigError(
                f"loss.class_weights and loss.label_smoothing go with cross_entropy, "
                f"not with {self.name}: leave them out"
            )
        weights = self.class_weights
        if weights is not None and not (
            all(0.0 <= weight < math.inf for weight in weights) and any(weights)
        ):
            raise ConfigError(
                f"loss.class_weights is {list(weights)}; give finite numbers from 0 on, not all 0"
            )
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ConfigError(f"loss.label_smoothing is {self.label_smoothing}; give 0 to 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, and in which batches."""

    epochs: int = 10
    """Times that every sample is seen."""
    global_batch: int = 256
    """Samples of one update, over all workers."""
    micro_batch: int | None = None
    """Samples of one forward pass; the largest divisor of global_batch up to 32 unless given."""
    last_batch: Literal["keep", "drop"] = "keep"
    """What becomes of an epoch's last batch if it is short."""
    clip_norm: float | None = None
    """Scale the gradient down to this global norm."""
    clip_value: float | None = None
    """Clamp each element of the gradient to this magnitude."""
    batch_norm: Literal["micro", "sync"] = "micro"
    """micro: batch norm by the statistics of each micro-batch. sync: by
    those of the whole global batch, for more memory, and messages at each
    norm where there are several workers. Part of the result."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the forward and backward passes compute in, where torch's
    autocast deems it safe; weights, gradients and sums stay float32.
    float16 scales the loss, and skips a step whose gradient overflows.
    Part of the result."""
    metrics: tuple[str, ...] = ()
    """accuracy, balanced_accuracy, top_K (top_5), precision, recall and f1
    (macro; also with _micro or _weighted), coverage_T and
    covered_accuracy_T (share of samples with a top probability from T on,
    and accuracy on those), perplexity, mse, mae, huber (huber_DELTA), r2;
    on validation sets alone roc_auc, pr_auc (average precision) and
    confusion (a matrix, in events.jsonl)."""

    def __post_init__(self) -> None:
        """Checks ranges, names and that micro-batches fill a global batch."""
        check_at_least("training.epochs", self.epochs, 1)
        check_at_least("training.global_batch", self.global_batch, 1)
        if self.global_batch > MOST_BATCH:
            raise ConfigError(
                f"training.global_batch is {self.global_batch}; it can be {MOST_BATCH:,} at most"
            )
        check_above_zero("training.clip_norm", self.clip_norm)
        check_above_zero("training.clip_value", self.clip_value)
        for name in self.metrics:
            try:
                metric(name)
            except ConfigError as error:
                raise ConfigError(f"training.metrics: {error}") from None
        if self.micro_batch is not None:
            check_micro_batch(self.global_batch, self.micro_batch)


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """When to stop before the last epoch; off unless `monitor` is given."""

    monitor: str | None = None
    """What to watch: val_loss, loss, or a metric such as val_accuracy."""
    patience: int = 0
    """Epochs without improvement that are borne."""
    min_delta: float = 0.0
    """Change that counts as an improvement only if exceeded."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether less or more is better; auto: less for losses and errors, more for the rest."""
    restore_best: bool = False
    """End with the weights of the best epoch."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_at_least("early_stopping.patience", self.patience, 0)
        check_at_least("early_stopping.min_delta", self.min_delta, 0)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run's state is written, so that it can go on, and what is kept."""

    every_steps: int | None = None
    """Write after every so many steps."""
    every_seconds: float | None = 300.0
    """Write when so many seconds have passed since the last time."""
    snapshot_every: int | None = None
    """Copy the state to the host's shared memory after every so many steps,
    where a restart finds it; as often as takes 2% of the time unless given.
    0 for never."""
    keep_last: int = 2
    """Keep the newest so many."""
    keep_best: int = 0
    """Keep the so many best as well, taken at the ends of epochs."""
    keep_every: int | None = None
    """Write after every so many steps, too, and keep those for good."""
    monitor: str = "val_loss"
    """What makes one better: val_loss, loss, or a metric such as val_accuracy."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether less or more is better; auto: less for losses and errors, more for the rest."""
    store: str | None = None
    """Where to write, such as s3://bucket/prefix, gs://bucket/prefix or
    file:///mnt/disk; the run's folder unless given. Each run has a
    place of its own there, by its id. No part of the result."""

    def __post_init__(self) -> None:
        """Checks ranges, and the address by its form."""
        check_store_address("checkpoint.store", self.store)
        check_at_least("checkpoint.every_steps", self.every_steps, 1)
        check_at_least("checkpoint.every_seconds", self.every_seconds, 0)
        check_at_least("checkpoint.snapshot_every", self.snapshot_every, 0)
        check_at_least("checkpoint.keep_last", self.keep_last, 1)
        check_at_least("checkpoint.keep_best", self.keep_best, 0)
        check_at_least("checkpoint.keep_every", self.keep_every, 1)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the workers make one result."""

    backend: Backend = "torch"
    """What carries messages between workers: torch.distributed (NCCL on
    GPUs, gloo elsewhere), or Horovod (`make horovod`). No part of the
    result."""
    shard_optimizer: bool = False
    """Each of W workers keeps 1/W of the optimizer's state and updates 1/W
    of the weights (ZeRO stage 1). Not for optimizers that look beyond an
    element. No part of the result."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """What gradients travel as. bfloat16: half the bytes, but every sum is
    rounded to 8 significant bits. Part of the result."""
    check_every: int | None = 100
    """Compare a checksum of weights and optimizer state between the workers
    after every so many steps, before a checkpoint and at the end: a
    faulty machine ends the run and is named. 0 for never."""
    timeout_s: float = 600.0
    """Seconds, above 0, that a worker waits in one exchange for another that
    stands still (on Horovod its own 1800); give more than writing a
    checkpoint takes. A worker that dies is noticed at once."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_at_least("parallel.check_every", self.check_every, 0)
        check_above_zero("parallel.timeout_s", self.timeout_s)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A whole job."""

    data: DataConfig
    model: ModelConfig
    run: RunConfig = field(default_factory=RunConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    bad_numbers: BadNumbers = field(default_factory=BadNumbers)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


def check_micro_batch(global_batch: int, micro_batch: int) -> None:
    """Refuses a micro-batch that doesn't divide the global batch, naming the nearest that do."""
    if micro_batch < 1 or global_batch % micro_batch:
        near = [
            next((size for size in sizes if global_batch % size == 0), None)
            for sizes in (
                range(min(micro_batch - 1, global_batch), 0, -1),
                range(max(micro_batch, 0) + 1, global_batch + 1),
            )
        ]
        raise ConfigError(
            f"a micro-batch of {micro_batch} does not divide the global batch of {global_batch}: "
            f"take {' or '.join(str(size) for size in near if size)}"
        )


def default_micro_batch(global_batch: int) -> int:
    """The largest divisor of `global_batch` that is not above 32, whatever the world size."""
    return next(size for size in range(min(32, global_batch), 0, -1) if global_batch % size == 0)
