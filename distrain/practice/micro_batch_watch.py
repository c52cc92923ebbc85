"""The micro-batches of one step, watched while they are computed: nothing of them is changed."""

import math
import pdb
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray

from distrain.micro_batch import Columns, MicroBatchResult, MicroBatchStep
from distrain.parallel.split import GlobalBatch
from distrain.practice.first_non_finite import NonFinite, looking

Rows = Callable[[GlobalBatch, int], NDArray[Any]]
"""The rows of a micro-batch's samples."""


@dataclass(frozen=True)
class Layer:
    """What one call of a module gave in the micro-batch that is looked at.

    Attributes:
        name: The module's; empty for the model itself.
        kind: Its class.
        shape: Of its output.
        rms: The root mean square of its output's elements.
        largest: The largest magnitude among them.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    rms: float
    largest: float


@dataclass
class StepWatch:
    """Watches one step: losses by micro-batch, where one fails, where numbers are not finite.

    Attributes:
        step: Counted from 0; others are left alone.
        looked_at: The micro-batch whose layers are measured.
        stops_at: The micro-batch before whose forward pass the debugger opens.
        stops_at_faults: Whether it opens where numbers first are not finite, too.
        began: Whether the step has begun.
        losses: Loss sum and weight by micro-batch.
        failed_in: The micro-batch that an error came from.
        forward: The first place in a forward pass that was not finite.
        forward_nan: The first of those with a NaN; a mask's infinities may be meant.
        backward: The first place in a backward pass.
        layers: What the modules of the micro-batch looked at gave, in the order of their ends.
        gradients: By parameter, norms of the gradient of that micro-batch's mean loss.
    """

    step: int
    rows: Rows
    looked_at: int | None = None
    stops_at: int | None = None
    stops_at_faults: bool = False
    began: bool = False
    losses: dict[int, tuple[float, float]] = field(default_factory=dict)
    failed_in: int | None = None
    forward: NonFinite | None = None
    forward_nan: NonFinite | None = None
    backward: NonFinite | None = None
    layers: list[Layer] = field(default_factory=list)
    gradients: dict[str, float] = field(default_factory=dict)

    def __call__(
        self,
        run: MicroBatchStep,
        batch: GlobalBatch,
        micro_batch: int,
        module: torch.nn.Module,
        columns: Columns,
    ) -> AbstractContextManager[MicroBatchStep]:
        """Stands round the forward and backward pass of a micro-batch."""
        if batch.step != self.step or micro_batch in self.losses:
            return nullcontext(run)  # another step, or this one done again to find a fault
        self.began = True
        return self._watching(run, batch, micro_batch, module, columns)

    @contextmanager
    def _watching(
        self,
        run: MicroBatchStep,
        batch: GlobalBatch,
        micro_batch: int,
        module: torch.nn.Module,
        columns: Columns,
    ) -> Iterator[MicroBatchStep]:
        report = partial(self._report, module, columns, batch)
        measures = _Measures(self.layers, self.gradients)

        def watched(model: torch.nn.Module, given: Columns) -> MicroBatchResult:
            if micro_batch == self.stops_at:
                rows = self.rows(batch, micro_batch)
                result = stopped_before(run, model, given, batch, micro_batch, rows)
            else:
                result = run(model, given)
            self._note(micro_batch, result, report)
            if micro_batch == self.looked_at:
                measures.scaled_by(result)
            return result

        with ExitStack() as stack:
            stack.enter_context(looking(module, micro_batch, columns, report))
            if micro_batch == self.looked_at:
                stack.enter_context(measures.taken(module))
            try:
                yield watched
            except Exception:
                if self.failed_in is None:
                    self.failed_in = micro_batch
                raise

    def _note(self, micro_batch: int, result: object, report: Callable[[NonFinite], None]) -> None:
        """Keeps the loss; what is no result is refused by the step itself."""
        if not (isinstance(result, tuple) and len(result) == 3 and torch.is_tensor(result[0])):
            return
        if result[0].numel() != 1:
            return
        loss_sum = float(result[0].detach())
        self.losses[micro_batch] = (loss_sum, _number(result[1]))
        if not math.isfinite(loss_sum):
            report(NonFinite(micro_batch, "loss", "", is_nan=math.isnan(loss_sum)))

    def _report(
        self,
        module: torch.nn.Module,
        columns: Columns,
        batch: GlobalBatch,
        found: NonFinite,
    ) -> None:
        is_first = self.forward is None and self.backward is None
        if not found.is_forward:
            self.backward = self.backward or found
        else:
            self.forward = self.forward or found
            if found.is_nan:
                self.forward_nan = self.forward_nan or found
        if is_first and self.stops_at_faults:
            rows = self.rows(batch, found.micro_batch)
            stopped_at(found, module, columns, batch, rows)


def _number(value: torch.Tensor | float) -> float:
    return float(value.detach() if torch.is_tensor(value) else value)


def stopped_before(
    run: MicroBatchStep,
    model: torch.nn.Module,
    columns: Columns,
    batch: GlobalBatch,
    micro_batch: int,
    rows: NDArray[Any],  # noqa: ARG001 - for who looks
) -> MicroBatchResult:
    """Opens the debugger before a micro-batch's forward pass; `s` steps into it."""
    print(f"step {batch.step + 1}, before micro-batch {micro_batch}: model, columns, batch, rows")
    pdb.set_trace()
    return run(model, columns)


def stopped_at(
    found: NonFinite,
    model: torch.nn.Module,
    columns: Columns,  # noqa: ARG001 - for who looks, as the others
    batch: GlobalBatch,
    rows: NDArray[Any],  # noqa: ARG001
) -> torch.nn.Module | None:
    """Opens the debugger where numbers are not finite; `w` shows the way there, `u` goes up it."""
    layer = dict(model.named_modules()).get(found.owner)
    print(f"step {batch.step + 1}: {found}; layer, model, columns, batch, rows")
    pdb.set_trace()
    return layer


def post_mortem(error: Exception) -> None:
    """Opens the debugger where an error was raised; `u` goes up to who called."""
    print(f"{type(error).__name__}: {error}")
    pdb.post_mortem(error.__traceback__)


class _Measures:
    """Of one micro-batch: what its modules give, and the gradients of its mean loss."""

    def __init__(self, layers: list[Layer], gradients: dict[str, float]) -> None:
        self._layers, self._gradients = layers, gradients
        self._weight, self._scale = 1.0, 1.0

    def scaled_by(self, result: MicroBatchResult) -> None:
        """The backward pass starts from the loss sum with a constant of the step's."""
        loss_sum, weight, _ = result
        self._weight = _number(weight)
        if loss_sum.requires_grad:
            loss_sum.register_hook(self._note_scale)  # type: ignore[no-untyped-call]

    def _note_scale(self, gradient: torch.Tensor) -> None:
        self._scale = float(gradient)

    @contextmanager
    def taken(self, module: torch.nn.Module) -> Iterator[None]:
        """Measures what is done with the module within."""
        handles = []
        if module._compiled_call_impl is None:
            handles += [
                inner.register_forward_hook(partial(self._note_output, name))
                for name, inner in module.named_modules()
                if not isinstance(inner, torch.jit.ScriptModule)
            ]
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                hook = partial(self._note_gradient, name)
                handles.append(parameter.register_hook(hook))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note_output(self, name: str, module: torch.nn.Module, _: Any, output: Any) -> None:
        is_again = torch._C._current_graph_task_id() != -1
        if is_again or not (torch.is_tensor(output) and output.is_floating_point()):
            return
        numbers = output.detach().double()
        if numbers.numel():
            rms, largest = float(numbers.square().mean().sqrt()), float(numbers.abs().max())
            kind = type(module).__name__
            self._layers.append(Layer(name, kind, tuple(output.shape), rms, largest))

    def _note_gradient(self, name: str, gradient: torch.Tensor) -> None:
        numbers = gradient._values() if gradient.is_sparse else gradient
        norm = float(torch.linalg.vector_norm(numbers.detach().double()))
        divisor = self._scale * self._weight
        self._gradients[name] = norm / divisor if divisor else math.nan
