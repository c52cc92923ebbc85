"""What a replay has found, for a person: lines of 80 columns."""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distrain.practice.first_non_finite import NonFinite
    from distrain.practice.replayed import Failure, MicroBatch, Replayed

COLUMNS = 80
INDENT = " " * 10
FEW_SAMPLES = 8
"""So many of each micro-batch are shown, where none is asked for by number."""


def replayed_lines(found: "Replayed") -> list[str]:
    """What came out; from where it was walked has been told by then."""
    lines: list[str] = []
    if found.failure is not None:
        lines += _failure_lines(found.failure)
    if found.numbers is not None:
        lines += _number_lines(found)
    if found.num_compared or found.failure is None:
        lines += _paragraph("walked", _walk_text(found))
    if found.environment:
        lines += _paragraph("changed", f"since the run: {_changes(found.environment)}")
    if found.parameters:
        lines += ["", *_parameter_lines(found.parameters)]
    if found.layers or found.gradients:
        lines += ["", *_layer_lines(found)]
    return [*lines, "", *_sample_lines(found.micro_batches)]


def difference_text(found: "Replayed") -> str:
    """What is not as it was recorded, for the end of all."""
    if found.failure is not None:
        what = f"step {found.failure.step} fails here, and the run has not failed so"
    elif found.recorded is None:
        what = f"the run has failed in step {found.step}, and here it does not fail"
    else:
        what = f"step {found.step} did not come out as recorded"
        if found.first_difference != found.step:
            what += f": the first that differs is step {found.first_difference}"
    if found.environment:
        return f"{what}. The environment is another one: {_changes(found.environment)}"
    return (
        f"{what}. The environment is the recorded one, so code that the run's identity doesn't "
        "tell apart has changed (functions of one's own are known by name), or a device is at fault"
    )


def _paragraph(head: str, text: str) -> list[str]:
    lines = wrap(text, COLUMNS - len(INDENT), break_on_hyphens=False) or [""]
    return [head.ljust(len(INDENT)) + lines[0], *(INDENT + line for line in lines[1:])]


def _number_lines(found: "Replayed") -> list[str]:
    lines = []
    for name, value in (found.numbers or {}).items():
        head = {"loss": "loss", "grad_norm": "gradient", "lr": "rate"}[name]
        shown = "not finite" if value is None else repr(value)
        if found.recorded is None:
            said = "nothing is recorded"
        elif found.recorded[name] == value:
            said = "as recorded, bit for bit"
        else:
            said = f"recorded: {found.recorded[name]!r}"
        lines.append(f"{head:<10}{shown:<24}{said}")
    if found.skipped:
        lines += _paragraph(
            "skipped", "the gradient overflowed: neither weights nor statistics have moved"
        )
    return lines


def _walk_text(found: "Replayed") -> str:
    if not found.num_compared:
        return "there is no record of these steps"
    steps = f"{found.num_compared} step{'s' * (found.num_compared > 1)} held against the record: "
    if found.first_difference is None:
        return steps + "all the same, bit for bit"
    return f"{steps}the first that differs is step {found.first_difference}"


def _failure_lines(failure: "Failure") -> list[str]:
    again = "as recorded" if failure.is_recorded else "not as recorded"
    lines = _paragraph("failed", f"in step {failure.step}, {again}: {failure.text}")
    if failure.first is not None:
        lines += _paragraph("first", place_text(failure.first))
        if failure.first_nan is not None:
            lines += _paragraph("NaN", place_text(failure.first_nan))
    elif failure.micro_batch is not None:
        lines += _paragraph("in", f"micro-batch {failure.micro_batch}")
    if failure.rows:
        lines += _paragraph("rows", ", ".join(map(str, failure.rows)))
    return [*lines, *failure.traceback.splitlines()]


def place_text(at: "NonFinite") -> str:
    """Where numbers were first not finite, in words."""
    what = "a NaN" if at.is_nan else "an infinite number"
    layer = f"layer {at.layer} ({at.kind})" if at.layer else f"the model ({at.kind})"
    said = {
        "column": f"column {at.layer} of the samples has {what} before any layer sees it",
        "input": f"the input of {layer} has {what}, and what any layer before gave has none: code "
        f"before it in {_around(at)} made it",
        "output": f"{layer} gives {what}, and what goes into it is finite",
        "loss": f"the loss is {what}, and what each layer gives is finite",
        "gradient of the input": f"the backward pass of {layer} gives {what}, and the gradients "
        "that came to it were finite",
        "gradient of the output": f"the gradient that comes to {layer} has {what}: the loss, or "
        f"code behind that layer in {_around(at)}, gives it",
        "gradient of the parameter": f"the gradient of the parameter {at.layer} ({at.kind}) has "
        f"{what}, and those before it were finite",
    }[at.place]
    if at.weights:
        said += f"; its {', '.join(at.weights)} was not finite before the step already"
    return f"{said}; in micro-batch {at.micro_batch}"


def _around(at: "NonFinite") -> str:
    outer = at.layer.rpartition(".")[0]
    return f"layer {outer}" if outer else "the model"


def _parameter_lines(parameters: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    gradients, weights = parameters["gradient_norm"], parameters["weight_norm"]
    updates, ratios = parameters["update_norm"], parameters["update_ratio"]
    lines = [
        f"{'2-norms of parameters':<34}{'gradient':>11}{'weight':>11}{'update':>11}"
        f"{'of weight':>12}"
    ]
    for name in gradients:
        lines += _row(name, [gradients[name], weights[name], updates[name], ratios[name]])
    return lines


def _row(name: str, values: Sequence[float | None]) -> list[str]:
    columns = "".join(f"{_short(value):>11}" for value in values)
    head = f"{name:<34}"
    return [name, " " * 34 + columns] if len(name) > 33 else [head + columns]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _layer_lines(found: "Replayed") -> list[str]:
    number = found.micro_batches[0].micro_batch
    lines = [f"{f'layers in micro-batch {number}':<40}{'rms':>11}{'largest':>11}  shape"]
    for layer in found.layers:
        head = f"{layer.name or 'the model'} ({layer.kind})"
        shape = "x".join(map(str, layer.shape)) or "one number"
        row = f"{layer.rms:>11.4g}{layer.largest:>11.4g}  {shape}"
        lines += [head, " " * 40 + row] if len(head) > 39 else [f"{head:<40}{row}"]
    lines += ["", f"{'its gradients, of its mean loss':<40}{'2-norm':>11}"]
    for name, norm in found.gradients.items():
        lines += [name, f"{norm:>51.4g}"] if len(name) > 39 else [f"{name:<40}{norm:>11.4g}"]
    return lines


def _sample_lines(micro_batches: Sequence["MicroBatch"]) -> list[str]:
    lines = ["micro-batches: mean loss, and the rows of their samples with their labels"]
    shown = None if len(micro_batches) == 1 else FEW_SAMPLES
    for one in micro_batches:
        loss = "-" if one.loss is None else f"{one.loss:.4f}"
        rows = [_sample(one, place) for place in range(len(one.rows))][:shown]
        left = len(one.rows) - len(rows)
        text = ", ".join(rows) + (f" and {left} more" if left else "")
        lines += _paragraph(f"{one.micro_batch:>3} {loss}"[:9], text)
    return lines


def _sample(one: "MicroBatch", place: int) -> str:
    label = one.labels[place] if one.labels is not None else None
    return f"{one.rows[place]}" + ("" if label is None else f"\u00a0({label})")


def _changes(environment: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(
        f"{name} {'nothing' if then is None else then} -> {'nothing' if now is None else now}"
        for name, (then, now) in environment.items()
    )
