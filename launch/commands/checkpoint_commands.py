"""`distrain checkpoint verify` and `export`: is it whole, and its weights for others."""

import re
from pathlib import Path

from data_pipeline.durable import write_whole
from data_pipeline.errors import DataError, StorageError
from distrain.coordinator.checkpoint_export import (
    ChosenWeights,
    Which,
    chosen_weights,
    existing_step,
    removed_text,
)
from distrain.coordinator.checkpoint_verification import (
    RemovedCheckpointError,
    damages,
    verified_bytes,
)
from distrain.coordinator.run_folder import state_bytes
from distrain.coordinator.stored_checkpoints import store_of_run
from distrain.errors import DistrainError, UsageError
from distrain.practice.export_snippet import snippet
from distrain.practice.job_model import JobModel, model_of_run, with_weights
from distrain.practice.onnx_export import onnx_bytes
from launch.commands.checkpoint_list import policy_of
from launch.readable import size_text


def verify(run: Path, step: int | None) -> None:
    """Compares every byte of a run's checkpoints with the SHA-256 that was written with it.

    Raises:
        UsageError: there is no run, or no such checkpoint.
        DataError: at least one is damaged, or the one that was named has gone meanwhile.
    """
    store = store_of_run(run)
    newest = existing_step(store, step)
    steps = store.steps() if step is None else [newest]
    damaged = []
    for number in steps:
        try:
            found = damages(store, number)
            size = size_text(0 if found else verified_bytes(store, number))
        except RemovedCheckpointError as error:
            if step is not None:
                raise DataError(removed_text(number)) from error
            print(f"step {number:,}: removed by the run meanwhile")
            continue
        if not found:
            print(f"step {number:,}: good, {size}")
            continue
        damaged.append(number)
        print("\n".join([f"step {number:,}: damaged", *(f"  {what}" for what in found)]))
    if damaged:
        named = ", ".join(f"{number:,}" for number in damaged)
        raise DataError(
            f"damaged: {'step' if len(damaged) == 1 else 'steps'} {named} of {len(steps)} "
            f"checkpoint{'s' * (len(steps) > 1)} in {store.where}. A run passes over them when it "
            "goes on"
        )


def export(
    run: Path,
    out: Path,
    *,
    step: int | None,
    which: Which,
    as_onnx: bool,
    job_file: Path | None,
) -> None:
    """Writes some weights of a run to a file, with a program that loads them; or as ONNX.

    Raises:
        UsageError: OUT is there already or is misnamed; there is no such run or checkpoint.
        DataError: the checkpoint is damaged.
        ConfigError: the model can't be built, doesn't fit, or can't be exported.
        StorageError: OUT can't be written.
    """
    store = store_of_run(run)
    program = out.with_name(f"load_{re.sub(r'[^0-9A-Za-z_]', '_', out.stem)}.py")
    _check_out(out, program, ".onnx" if as_onnx else ".safetensors")
    if job_file is not None and not as_onnx:
        raise UsageError("--job goes with --format onnx: safetensors take no model")
    weights = chosen_weights(store, step, which, policy_of(run))
    told = f"{out}: {weights.described}, {len(weights.tensors):,} tensors"
    if as_onnx:
        model = model_of_run(run, job_file)
        built = with_weights(model.build(), weights.tensors)
        write_whole(out, onnx_bytes(built, model.inputs, model.column))
        print(f"{told}\n  {model.column}, as the model gets it, to outputs; any batch size")
        return
    buildable, why = _model_to_build(run, weights)
    write_whole(out, state_bytes(weights.tensors))
    write_whole(program, snippet(out.name, weights.described, buildable).encode())
    call = f"{program.stem}.load({'model' if buildable is None else ''})"
    print(f"{told}\n{program}: {call}, with torch and safetensors alone")
    if why:
        print(f"  it takes a model, and builds none: {why}")


def _check_out(out: Path, program: Path, suffix: str) -> None:
    if out.suffix != suffix:
        raise UsageError(f"OUT is {out}; give a name that ends in {suffix}")
    for path in (out, program)[: 1 if suffix == ".onnx" else 2]:
        if path.exists():
            raise UsageError(f"{path} is there already: name another, or remove it first")


def _model_to_build(run: Path, weights: ChosenWeights) -> tuple[JobModel | None, str]:
    """The model that the program can build, or why it has to be given one."""
    try:
        model = model_of_run(run, None)
        with_weights(model.build(), weights.tensors)
    except (DistrainError, DataError, StorageError) as error:
        return None, str(error)
    return model, ""
