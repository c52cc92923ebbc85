"""The trainer: what a person gives, checked and put together for the loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from data_pipeline.augment import Transform
from data_pipeline.dataset import Dataset
from data_pipeline.recipe import training_transforms
from data_pipeline.sampling import Kind, Sampling
from distrain.arguments import check_arguments
from distrain.assembly import Assembly, check_datasets
from distrain.bad_numbers import BadNumbers
from distrain.config import Backend, ParallelConfig, RunConfig
from distrain.coordinator.checkpointing import Checkpoint
from distrain.coordinator.early_stopping import EarlyStopping
from distrain.coordinator.history import History
from distrain.coordinator.metrics import MetricSet
from distrain.coordinator.plateau import Plateau
from distrain.coordinator.rules import Rules
from distrain.coordinator.torch_metric import TorchMetric
from distrain.describe import described
from distrain.errors import ConfigError
from distrain.evaluate import Evaluation, Scores
from distrain.identity import describe_optimizer, run_identity, settings_identity
from distrain.learn.averaging import Average, AveragedWeights
from distrain.learn.losses import SummedLoss, refuse_trainable
from distrain.learn.optimizers import OptimizerFactory, checked_optimizer
from distrain.learn.parameter_groups import ParameterGroup
from distrain.learn.schedules import Constant, Schedule
from distrain.micro_batch import MicroBatchStep
from distrain.micro_batch_work import MicroBatchWork
from distrain.numerics import fix_kernels
from distrain.parallel import world as worlds
from distrain.parallel.replicas import ModelSource, build_model
from distrain.parallel.split import BatchPlan, plan_batches
from distrain.parallel.summing import SumOptions
from distrain.practice.replay import Replay, ReplayedError, asked_of
from distrain.precision import make_precision
from distrain.reading import Reading
from distrain.step import TrainingStep
from distrain.step_settings import StepSettings
from distrain.training_run import RunSettings, TrainingRun
from distrain.update import Clip
from distrain.validation import Validation, ValidationSets


class Trainer:
    """Trains a model with synchronous data parallelism; any number of workers gives the same bits.

    Attributes:
        model: The module; after `fit` it holds the result.
        optimizer: Torch's own object, made by the last `fit`.
    """

    optimizer: Optimizer | None = None

    def __init__(
        self,
        *,
        model: ModelSource,
        loss: Callable[..., Any],
        optimizer: OptimizerFactory,
        groups: Sequence[ParameterGroup] = (),
        decay_norms_and_biases: bool = True,
        inputs: str,
        target: str,
        run: str | Path | None = None,
        seed: int = 0,
        metrics: Sequence[str | TorchMetric] = (),
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        average: Average | None = None,
        early_stopping: EarlyStopping | None = None,
        bad_numbers: BadNumbers = BadNumbers(),  # noqa: B008 - it is frozen
        checkpoint: Checkpoint | None = Checkpoint(),  # noqa: B008 - it is frozen
        micro_batch_step: MicroBatchStep | None = None,
        prepare: Sequence[Transform] = (),
        standardize: bool = True,
        precision: str = "float32",
        activation_checkpointing: Sequence[str] = (),
        compile: bool = False,  # noqa: A002 - torch's own word
        channels_last: bool = False,
        shard_optimizer: bool = False,
        gradient_dtype: Literal["float32", "bfloat16"] = "float32",
        batch_norm: Literal["micro", "sync"] = "micro",
        compute_threads: int = 1,
        deterministic: bool = True,
        max_time_s: float | None = None,
        grace_s: float = 30.0,
        hang_timeout_s: float | None = RunConfig.hang_timeout_s,
        inspect_every: int | None = None,
        prometheus_port: int | None = None,
        check_every: int | None = ParallelConfig.check_every,
        timeout_s: float = ParallelConfig.timeout_s,
        backend: Backend = "torch",
        fresh: bool = False,
        progress: bool = True,
        job: Mapping[str, Any] | None = None,
    ) -> None:
        """Joins the group of workers, if there is one, and builds the model.

        Args:
            model: A function that builds any `nn.Module`, called once the seed is set; or a
                module, which gets rank 0's weights.
            loss: One of torch's loss modules, run as a sum with its weight; or a function of
                (outputs, target) that returns (sum, weight), see `distrain.mean_over_samples`.
            optimizer: Makes a torch optimizer from the trainable parameters; where there are
                `groups`, or not all are decayed, from a list of groups as torch takes it.
            groups: Parameters with settings of their own; of several that match, the first counts.
            decay_norms_and_biases: False: `weight_decay` is 0 for norms and biases.
            inputs: The column that the model is called with.
            target: The column that the loss and the metrics compare with.
            run: The run's folder; None leaves no files.
            seed: Of weights, order, augmentation and everything drawn while training.
            metrics: Names as in docs/metrics.md, and torchmetrics' by `distrain.TorchMetric`.
            schedule: From the step, counted from 0, to a factor on the learning rates; or
                `distrain.Plateau`, which goes by a score.
            clip_norm: The gradient is scaled down to this global norm.
            clip_value: Each element of the gradient is clamped to this magnitude first.
            average: Whether an average of the weights is what is evaluated, and the result:
                `distrain.ExponentialAverage` or `distrain.StochasticAverage`.
            early_stopping: When to stop before the last epoch.
            bad_numbers: What a loss or gradient that is not finite, or a spike, leads to.
            checkpoint: When the run's state is written to its folder; None for never.
            micro_batch_step: `(model, columns) -> (loss sum, weight, outputs)` instead of
                `loss(model(columns[inputs]), columns[target])`; it gets all columns.
            prepare: Transforms of all inputs, those that are evaluated or predicted as well.
            standardize: Scale uint8 and float inputs by the training part's mean and std.
            precision: "float32"; or "bfloat16" or "float16", by autocast; weights stay float32.
            activation_checkpointing: Names of submodules (`blocks.*`) to run again for gradients.
            compile: Compile the model, for static shapes; names of parameters stay as they are.
            channels_last: Lay the model and 4-D inputs out with channels last.
            shard_optimizer: Each worker has a share of the optimizer's state (ZeRO stage 1).
            gradient_dtype: What gradients travel as; part of the result.
            batch_norm: Normalises by a micro-batch's own statistics, or by the whole batch's.
            compute_threads: Threads of a worker on a CPU; part of the result.
            deterministic: Deterministic kernels only; an operation that has none is an error.
            max_time_s: Save and stop after so long, counted from the launcher's start.
            grace_s: Seconds from a signal to the end; after half, the last finished step is saved.
            hang_timeout_s: A worker that gives no sign of life for longer is named, stacks kept,
                and all start again, or end; 0 or None for never.
            inspect_every: Log norms of gradients, weights and updates every so many steps.
            prometheus_port: Serve numbers for Prometheus on loopback; 0 for any free port.
            check_every: Compare the workers' states every so many steps; None for never.
            timeout_s: So long a worker waits for the others.
            backend: What carries the workers' exchanges; no part of the result.
            fresh: Move a run that stands in the folder aside.
            progress: Show on rank 0 how it goes.
            job: Tables of a job file, kept in the run's `job.toml`.

        Raises:
            UsageError: the environment describes no group, half a group, or another backend's.
            ConfigError: the model or the loss can't keep the promise; the message names why.
        """
        saves = run is not None and checkpoint is not None
        check_arguments(
            metrics=metrics,
            groups=groups,
            average=average,
            max_time_s=max_time_s,
            saves=saves,
        )
        self._world = worlds.join(backend, timeout_s).marked()
        self._fix_kernels = partial(fix_kernels, compute_threads, deterministic=deterministic)
        self._fix_kernels()
        self.model = build_model(model, seed, self._world)
        device = self._world.device
        summed = SummedLoss(loss, device)
        forward = make_precision(precision, activation_checkpointing, compile, channels_last)
        forward.prepare(self.model, device, batch_norm)
        self._work = MicroBatchWork(summed, inputs, target, micro_batch_step, forward, device)
        refuse_trainable(loss, self.model)
        self._make_optimizer = partial(
            checked_optimizer,
            optimizer,
            self.model,
            groups,
            decay_norms_and_biases=decay_norms_and_biases,
        )
        self._seed, self._metrics, self._average = seed, tuple(metrics), average
        self._reading = Reading(self._work, seed, prepare, standardize=standardize)
        self._step_settings = StepSettings(
            target=target,
            seed=seed,
            schedule=schedule or Constant(),
            clip=Clip(clip_value, clip_norm),
            sums=SumOptions(shard_optimizer=shard_optimizer, gradient_dtype=gradient_dtype),
            batch_norm=batch_norm,
            scales_loss=forward.scales_loss,
            inspect_every=inspect_every,
            check_every=check_every,
        )
        self._rules = Rules(
            early_stopping=early_stopping,
            checkpoint=checkpoint if saves else None,
            bad_numbers=bad_numbers,
            plateau=schedule if isinstance(schedule, Plateau) else None,
        )
        self._run_settings = RunSettings(
            folder=run,
            fresh=fresh,
            show=progress,
            job=job or {},
            max_time_s=max_time_s,
            grace_s=grace_s,
            prometheus_port=prometheus_port,
            hang_timeout_s=hang_timeout_s,
        )
        self._settings = settings_identity(self._work, self._reading, self._step_settings) | {
            "compute_threads": compute_threads,
            "deterministic": deterministic,
            **described(average=average, early_stopping=early_stopping),
            "bad_numbers": bad_numbers.identity,
        }

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return self._world.rank

    @property
    def world_size(self) -> int:
        """The number of workers."""
        return self._world.size

    def fit(
        self,
        train: Dataset,
        validation: Validation = None,
        *,
        epochs: int,
        global_batch: int,
        micro_batch: int | None = None,
        last_batch: Literal["keep", "drop"] = "keep",
        augment: Sequence[Transform] = (),
        sampling: Kind = "shuffled",
        verify: bool = True,
        prefetch: int = 2,
        threads: int = 1,
    ) -> History:
        """Trains for some epochs, evaluating after each; returns what the epochs brought.

        A run that has ended in the folder already is not done again: its result is loaded. One
        that was cut off goes on after its newest checkpoint, at any number of workers.

        Args:
            train: What is learned from.
            validation: What `val_...` is measured on; several by name, `{"shifted": ...}`, give
                `val_shifted_...`.
            epochs: Times that every sample is seen.
            global_batch: Samples of one update, over all workers.
            micro_batch: Samples of one forward pass, part of the result; by default up to 32.
            last_batch: What becomes of an epoch's last batch if it is short.
            augment: Transforms of training samples after `prepare`; a crop first replaces its.
            sampling: Each sample once an epoch ("shuffled"); as many drawn with replacement, anew
                or once for all ("with_replacement", "bootstrap"); or by class alike ("balanced").
            verify: Compare all shards with their digests first.
            prefetch: Batches that the loader prepares ahead.
            threads: Threads that prepare them; no part of the result.

        Raises:
            ConfigError: the sizes don't fit each other, the data or the number of workers.
            DataError: a column is missing, or a shard is damaged.
            StorageError: the run's folder can't be written.
            BadStepError: numbers are not finite, or jump; on all workers at the same step.
            StoppedError: a signal or the time limit ended the run, all saved; `SystemExit` with 75.
        """
        if epochs < 1:
            raise ConfigError(f"epochs is {epochs}; it must be 1 or more")
        parts = self.assemble(
            train,
            validation,
            global_batch=global_batch,
            micro_batch=micro_batch,
            last_batch=last_batch,
            augment=augment,
            sampling=sampling,
            verify=verify,
        )
        identity = self._settings | run_identity(
            self.model, parts.plan, parts.recipe, train=train, validation=ValidationSets(validation)
        )
        replay_asked = asked_of(self._run_settings.folder)
        if replay_asked is not None:
            replay = Replay(replay_asked, self.model, parts)
            raise ReplayedError(replay.run(identity, epochs, prefetch=prefetch, threads=threads))
        run = TrainingRun(self.model, parts, self._run_settings)
        return run.to_end(identity, epochs, prefetch=prefetch, threads=threads)

    def assemble(
        self,
        train: Dataset,
        validation: Validation = None,
        *,
        global_batch: int,
        micro_batch: int | None = None,
        last_batch: Literal["keep", "drop"] = "keep",
        augment: Sequence[Transform] = (),
        sampling: Kind = "shuffled",
        verify: bool = True,
    ) -> Assembly:
        """Puts a training's parts together, not started yet; arguments and errors are `fit`'s."""
        if global_batch < 1:
            raise ConfigError(f"global_batch is {global_batch}; it must be 1 or more")
        self._fix_kernels()  # another trainer of this process may have set others
        plan = plan_batches(train.num_rows, global_batch, micro_batch, last_batch)
        plan.check_world_size(self._world.size)
        self._reading.fit(train)
        metrics, sets = self._work.metric_set(self._metrics, train), ValidationSets(validation)
        rules = self._rules.settled(sets.directions(metrics))
        datasets = (train, *sets.by_prefix.values())
        check_datasets(datasets, (self._work.inputs, self._work.target), self._world, verify=verify)
        self.optimizer = self._make_optimizer()
        # They move no weight, but the sums of an epoch in hand are theirs.
        self._settings["metrics"] = list(metrics.given)
        # Before a sharded one is given pieces in place of parameters.
        self._settings["optimizer"] = describe_optimizer(self.optimizer, self.model)
        recipe = replace(
            self._reading.recipe(train),
            sampling=sampling,
            transforms=training_transforms(self._reading.prepare, augment),
            micro_batch=plan.micro_batch,
        )
        return Assembly(
            world=self._world,
            train=train,
            plan=plan,
            recipe=recipe.fitted(train),
            metrics=metrics.in_training(),
            step=self._training_step(
                self.optimizer, plan, metrics.in_training(), recipe.sampled(train)
            ),
            evaluate=partial(sets.measure, partial(self._evaluate, metrics))
            if sets.by_prefix
            else None,
            rules=rules,
        )

    def evaluate(self, dataset: Dataset) -> Scores:
        """The mean loss and all metrics over a whole data set, exact at any number of workers.

        A confusion matrix that was asked for is the result's `confusion`, `(C, C)`.
        Inputs are scaled as in the last `fit`; before one, by the data set's own statistics.
        """
        metrics = self._work.metric_set(self._metrics, dataset)
        return self._evaluate(metrics, dataset)

    def predict(self, dataset: Dataset) -> torch.Tensor:
        """The model's outputs `(N, ...)` for all rows in their order, on every worker's host."""
        target = (self._work.target,) if self._work.target in dataset.columns else ()
        recipe = self._reading.recipe(dataset, columns=(self._work.inputs, *target))
        return Evaluation(self.model, self._work.prediction, self._world, self._seed).outputs(
            dataset, recipe
        )

    def _evaluate(
        self, metrics: MetricSet, dataset: Dataset, raised: Callable[[], int] | None = None
    ) -> Scores:
        evaluation = Evaluation(self.model, self._work.step, self._world, self._seed, raised)
        return evaluation.scores(
            dataset, self._reading.recipe(dataset), metrics, target=self._work.target
        )

    def _training_step(
        self, optimizer: Optimizer, plan: BatchPlan, metrics: MetricSet, sampling: Sampling
    ) -> TrainingStep:
        return TrainingStep(
            self.model,
            optimizer,
            self._work.step,
            metrics,
            self._world,
            self._step_settings,
            global_batch=plan.global_batch,
            rows_at=lambda epoch, start, stop: sampling.order(epoch).rows(start, stop),
            average=AveragedWeights(self.model, self._average, plan.steps_per_epoch),
        )
