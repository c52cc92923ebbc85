"""The model of a run that a job file has described, built anew without its trainer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipeline.standardize import Standardization, standardization
from distrain.coordinator.run_layout import JOB
from distrain.errors import ConfigError, UsageError
from distrain.job_file import describes_a_model, read_job
from distrain.run_job import MODELS, job_datasets, job_inputs, job_model


@dataclass(frozen=True)
class JobModel:
    """What a run's model is made of, and what it is fed with.

    Attributes:
        build: Builds the module, with weights of its own.
        inputs: Zeros as the model gets them, `(2, *shape)`.
        column: The name of the inputs' column.
        scaling: From the stored column to the inputs; None where it is taken as it is.
        is_prepared: Whether transforms (`data.prepare`) come before the scaling.
    """

    build: Callable[[], torch.nn.Module]
    inputs: torch.Tensor
    column: str
    scaling: Standardization | None
    is_prepared: bool


def model_of_run(run: Path, job_file: Path | None) -> JobModel:
    """The model of the run in a folder.

    A function of the user's own is imported only where the user names the job file: what stands in
    a run's folder has no code executed.

    Args:
        run: The run's folder.
        job_file: A job file to go by, in place of the folder's own `job.toml`.

    Raises:
        UsageError: no job describes the model, or the job file has to be named for it.
        ConfigError, DataError: the job or its data are not as they should be.
    """
    path = run / JOB if job_file is None else job_file
    if job_file is None and not describes_a_model(path):
        raise UsageError(f"the run in {run} was made by a script, which alone can build its model")
    job = read_job(path)
    if job_file is None and job.model.build not in MODELS:
        raise UsageError(
            f"the model is built by {job.model.build}, and the word of the folder {run} alone "
            "imports no code: for ONNX, name the job file with --job"
        )
    train, _ = job_datasets(job)
    return JobModel(
        build=job_model(job, train),
        inputs=job_inputs(job, train, 2),
        column=job.data.inputs,
        scaling=standardization(train, job.data.inputs, scaled=job.data.standardize),
        is_prepared=bool(job.data.prepare),
    )


def with_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The model with these weights.

    Raises:
        ConfigError: they are another model's.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"the weights don't fit the model that the job builds: {error}"
        ) from error
    return model
