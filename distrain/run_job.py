"""From a job's tables to a trainer, and the run: what each worker of `distrain train` does."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from data_pipeline.augment.registry import TRANSFORMS
from data_pipeline.augment.transform import Fitting, Transform
from data_pipeline.batches import BatchBuilder
from data_pipeline.dataset import Dataset
from data_pipeline.manifest import Column
from data_pipeline.recipe import Recipe, training_transforms
from data_pipeline.standardize import standardization
from distrain.checks import near_names
from distrain.config import Job
from distrain.coordinator.checkpointing import Checkpoint
from distrain.coordinator.early_stopping import EarlyStopping
from distrain.coordinator.history import History
from distrain.coordinator.plateau import Plateau
from distrain.errors import ConfigError
from distrain.job_file import job_tables
from distrain.learn import averaging, models, schedules
from distrain.learn.parameter_groups import Groups, ParameterGroup
from distrain.parallel.split import plan_batches
from distrain.schedule_config import ScheduleConfig
from distrain.trainer import Trainer
from distrain.update_config import AverageConfig, OptimizerConfig, given_settings
from distrain.validation import Validation

MODELS: dict[str, Callable[..., torch.nn.Module]] = {"mlp": models.mlp, "cnn": models.cnn}
"""What `model.build` names without importing code of the user's."""

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
}

_FUSED = ("sgd", "adagrad", "adam", "adamw")
"""These have one kernel for all parameters, on CPUs as well; a few ulp from the others."""


def run_job(job: Job, *, fresh: bool = False) -> History:
    """Trains as the job says; called on every worker.

    Raises:
        What `Trainer` and `Trainer.fit` raise; ConfigError where names or options don't fit.
    """
    train, validation = job_datasets(job)
    return job_trainer(job, train, fresh=fresh).fit(
        train,
        validation,
        epochs=job.training.epochs,
        prefetch=job.data.prefetch,
        threads=job.data.threads,
        **job_batches(job),
    )


def job_datasets(job: Job) -> tuple[Dataset, Validation]:
    """The job's parts for training and for validation."""
    train, parts = Dataset(job.data.path, job.data.train), job.data.validation
    if isinstance(parts, str):
        return train, Dataset(job.data.path, parts)
    return train, {part: Dataset(job.data.path, part) for part in parts} if parts else None


def job_batches(job: Job) -> dict[str, Any]:
    """What `Trainer.fit` and `Trainer.assemble` are to know of the batches."""
    return {
        "global_batch": job.training.global_batch,
        "micro_batch": job.training.micro_batch,
        "last_batch": job.training.last_batch,
        "augment": make_transforms("data.augment", job.data.augment),
        "sampling": job.data.sampling,
        "verify": job.data.verify,
    }


def job_trainer(job: Job, train: Dataset, *, fresh: bool = False) -> Trainer:
    """The job's trainer.

    Raises:
        What `Trainer` raises; ConfigError where names or options don't fit.
    """
    inputs, target = train.column(job.data.inputs), train.column(job.data.target)
    early = job.early_stopping
    return Trainer(
        model=job_model(job, train),
        loss=_loss(job, target),
        optimizer=partial(make_optimizer, job.optimizer),
        groups=[
            ParameterGroup(group.match, **given_settings(group))
            for group in job.optimizer.groups.values()
        ],
        decay_norms_and_biases=job.optimizer.decay_norms_and_biases,
        inputs=inputs.name,
        target=target.name,
        run=job.run.dir,
        seed=job.run.seed,
        metrics=job.training.metrics,
        schedule=make_schedule(job.schedule, _total_steps(job, train)),
        clip_norm=job.training.clip_norm,
        clip_value=job.training.clip_value,
        average=make_average(job.average),
        early_stopping=None
        if early.monitor is None
        else EarlyStopping(
            early.monitor, early.patience, early.min_delta, early.mode, early.restore_best
        ),
        bad_numbers=job.bad_numbers,
        checkpoint=Checkpoint(**dataclasses.asdict(job.checkpoint)),
        prepare=make_transforms("data.prepare", job.data.prepare),
        standardize=job.data.standardize,
        precision=job.training.precision,
        activation_checkpointing=job.model.activation_checkpointing,
        compile=job.model.compile,
        channels_last=job.model.channels_last,
        shard_optimizer=job.parallel.shard_optimizer,
        gradient_dtype=job.parallel.gradient_dtype,
        batch_norm=job.training.batch_norm,
        compute_threads=job.run.compute_threads,
        deterministic=job.run.deterministic,
        max_time_s=job.run.max_time_s,
        grace_s=job.run.grace_s,
        hang_timeout_s=job.run.hang_timeout_s,
        inspect_every=job.run.inspect_every,
        prometheus_port=job.run.prometheus_port,
        check_every=job.parallel.check_every,
        timeout_s=job.parallel.timeout_s,
        backend=job.parallel.backend,
        fresh=fresh,
        job=job_tables(job),
    )


def make_optimizer(
    config: OptimizerConfig, parameters: Iterable[torch.nn.Parameter] | Groups
) -> torch.optim.Optimizer:
    """Torch's optimizer of that name, with its own defaults for what is not given.

    Raises:
        ConfigError: torch refuses a value.
    """
    options = given_settings(config)
    if config.name in _FUSED:
        options["fused"] = True
    try:
        return _OPTIMIZERS[config.name](parameters, **options)
    except ValueError as error:
        raise ConfigError(f"[optimizer] {config.name}: {error}") from error


def make_schedule(config: ScheduleConfig, total_steps: int) -> schedules.Schedule:
    """The schedule of that name; `total_steps` is the run's length."""
    given = config.given
    match config.name:
        case "linear":
            return schedules.Linear(**given)
        case "step":
            return schedules.Step(**given)
        case "cosine":
            return schedules.Cosine(**{"total_steps": total_steps, **given})
        case "plateau":
            return Plateau(**given)
    return schedules.Constant()


def make_average(config: AverageConfig) -> averaging.Average | None:
    """The average of that name; None where none is named."""
    kinds: dict[str, Callable[..., averaging.Average]] = {
        "ema": averaging.ExponentialAverage,
        "swa": averaging.StochasticAverage,
    }
    return None if config.name is None else kinds[config.name](**config.given)


def make_transforms(where: str, config: dict[str, dict[str, Any]]) -> list[Transform]:
    """The transforms that `[data.augment.NAME]` or `[data.prepare.NAME]` tables name, in order.

    Raises:
        ConfigError: a name is unknown, or an option is not one of the transform's.
    """
    made: list[Transform] = []
    for name, options in config.items():
        if name not in TRANSFORMS:
            raise ConfigError(f"unknown transform {where}.{name}: {near_names(name, TRANSFORMS)}")
        made.append(_call(f"{where}.{name}", TRANSFORMS[name], options))
    return made


def _total_steps(job: Job, train: Dataset) -> int:
    training = job.training
    plan = plan_batches(
        train.num_rows, training.global_batch, training.micro_batch, training.last_batch
    )
    return plan.steps_per_epoch * job.training.epochs


def _loss(job: Job, target: Column) -> torch.nn.Module:
    match job.loss.name:
        case "cross_entropy":
            weights = job.loss.class_weights
            if weights is not None and len(weights) != len(target.classes):
                raise ConfigError(
                    f"loss.class_weights has {len(weights)} entries, but {target.name} has "
                    f"{len(target.classes)} classes: give one for each"
                )
            return torch.nn.CrossEntropyLoss(
                weight=None if weights is None else torch.tensor(weights),
                label_smoothing=job.loss.label_smoothing,
            )
        case "bce_with_logits":
            return torch.nn.BCEWithLogitsLoss()
        case "mae":
            return torch.nn.L1Loss()
        case "huber":
            return torch.nn.HuberLoss()
    return torch.nn.MSELoss()


def job_model(job: Job, train: Dataset) -> Callable[[], torch.nn.Module]:
    """The function that builds the job's model, for the data that it is trained on.

    Raises:
        ConfigError: names or options don't fit.
    """
    shape = tuple(job_inputs(job, train, 1).shape[1:])
    return _model_source(job, shape, train.column(job.data.target))


def job_inputs(job: Job, train: Dataset, rows: int) -> torch.Tensor:
    """Zeros of the shape and dtype that the model gets: a crop or a resize changes the column's.

    What has to be fitted first is left out: it keeps the shape.
    """
    name, target = job.data.inputs, job.data.target
    transforms = training_transforms(
        make_transforms("data.prepare", job.data.prepare),
        make_transforms("data.augment", job.data.augment),
    )
    scaling = standardization(train, name, scaled=job.data.standardize)
    recipe = Recipe(
        columns=tuple(dict.fromkeys((name, target))),
        inputs=name,
        target=target,
        transforms=tuple(one for one in transforms if not isinstance(one, Fitting)),
        standardized={} if scaling is None else {name: scaling},
    )
    return BatchBuilder(train, recipe).buffers(rows).tensors[name]


def _model_source(
    job: Job, input_shape: tuple[int, ...], target: Column
) -> Callable[[], torch.nn.Module]:
    function = MODELS.get(job.model.build) or _imported(job.model.build)
    one_number = job.loss.name != "cross_entropy"
    offered = {
        "input_shape": input_shape,
        "num_outputs": None if one_number else len(target.classes),
    }
    if not one_number and not target.classes:
        raise ConfigError(
            f"loss cross_entropy needs a class label, but {target.name} is a {target.kind}: choose "
            "loss.name mse, mae or huber, or another data.target"
        )
    takes = inspect.signature(function).parameters
    options = {name: value for name, value in offered.items() if name in takes}
    return lambda: _call("model.options", function, options | job.model.options)


def _imported(name: str) -> Callable[..., torch.nn.Module]:
    """The function PACKAGE.MODULE:FUNCTION; the job file's user vouches for its code."""
    module_name, separator, function_name = name.partition(":")
    if not separator:
        raise ConfigError(
            f"model.build is {name!r}; {near_names(name, MODELS)}; "
            "one of your own is named PACKAGE.MODULE:FUNCTION"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"model.build is {name!r}, and {error.name} can't be imported: start where it lies, or "
            "install it"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value)]
        raise ConfigError(
            f"{module_name} has no function {function_name!r}; {near_names(function_name, names)}"
        )
    found: Callable[..., torch.nn.Module] = function
    return found


def _call(where: str, function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Calls with options from a job, naming those that the function does not take."""
    takes = inspect.signature(function).parameters
    for name in options:
        if name not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            raise ConfigError(f"unknown option {where}.{name}: {near_names(name, takes)}")
    try:
        return function(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} = {options}: {error}") from error
