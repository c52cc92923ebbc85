"""What defines a run's result (rule 1): the same identity gives the same bits at any world size."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from data_pipeline.dataset import Dataset
from data_pipeline.random import DRAWS_VERSION
from data_pipeline.recipe import Recipe
from distrain.describe import describe, described
from distrain.micro_batch_work import MicroBatchWork
from distrain.parallel.replicas import weights_digest
from distrain.parallel.split import BatchPlan
from distrain.reading import Reading
from distrain.step_settings import StepSettings
from distrain.validation import ValidationSets


def run_identity(
    model: torch.nn.Module,
    plan: BatchPlan,
    recipe: Recipe,
    *,
    train: Dataset,
    validation: ValidationSets,
) -> dict[str, Any]:
    """The part of a run's identity that comes from its objects, as plain values for TOML.

    Epochs are not in it: where the schedule doesn't use them they only say when to stop.
    """
    return {
        "data": f"{train.part}@{train.digest}",
        "validation": validation.identity,
        "draws": DRAWS_VERSION,
        "sampling": recipe.sampling,
        "augment": [describe(transform) for transform in recipe.transforms],
        "model": hashlib.sha256(repr(model).encode()).hexdigest(),
        "initial_weights": weights_digest(model),
        "global_batch": plan.global_batch,
        "micro_batch": plan.micro_batch,
        "last_batch": plan.last_batch,
    }


def settings_identity(work: MicroBatchWork, reading: Reading, step: StepSettings) -> dict[str, Any]:
    """The part that comes from what is done with a micro-batch, and with a step."""
    return {
        "seed": step.seed,
        "inputs": work.inputs,
        "target": work.target,
        "prepare": [describe(transform) for transform in reading.prepare],
        "standardize": reading.standardize,
        "loss": work.loss.description,
        **work.precision.settings(),
        "gradient_dtype": step.sums.gradient_dtype,
        "batch_norm": step.batch_norm,
    } | described(micro_batch_step=work.own, schedule=step.schedule, clip=step.clip)


def describe_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> str:
    """Its groups' settings; who is in which group is said where not all are in one."""
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    groups: Sequence[dict[str, Any]] = optimizer.param_groups
    settings = []
    for group in groups:
        given = {name: value for name, value in sorted(group.items()) if name != "params"}
        inside = [names[id(parameter)] for parameter in group["params"]]
        if inside != list(names.values()):
            # A digest, since a message shows it: a large model's names would fill pages.
            digest = hashlib.sha256("\n".join(inside).encode()).hexdigest()[:16]
            given["parameters"] = f"{len(inside)}: {digest}"
        settings.append(given)
    return f"{type(optimizer).__name__}({settings})"
