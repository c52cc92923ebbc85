"""Parts of a sharded run's state, as workers have left them: which make a whole, and that whole.

Every worker copies its part of the optimizer's state; rank 0 also what all hold alike. Only the
parts of one start, and of one step, belong together.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from distrain.coordinator.checkpoint import CheckpointContents
from distrain.coordinator.checkpointing import MODEL, OPTIMIZER
from distrain.coordinator.host_memory import Part
from distrain.coordinator.return_point import OPTIMIZER as RETURN_OPTIMIZER
from distrain.parallel.optimizer_state import Layouts, OptimizerState, joined

LAYOUTS = "layouts"
"""Among rank 0's values: how pieces of the optimizer's state are put together."""


def whole_sets(held: Sequence[Sequence[Part]]) -> list[dict[Part, int]]:
    """The sets that lack no part, the newest step first, each part with a worker that can read it.

    `held` says by worker which parts that one can read.
    """
    sets: dict[tuple[int, str, int], dict[Part, int]] = defaultdict(dict)
    for holder, parts in enumerate(held):
        for part in parts:
            sets[part.step, part.start, part.num_parts].setdefault(part, holder)
    return [
        {part: sets[key][part] for part in sorted(sets[key])}
        for key in sorted(sets, reverse=True)
        if len(sets[key]) == key[2]
    ]


def joined_contents(parts: Sequence[CheckpointContents]) -> CheckpointContents:
    """The state that a checkpoint would hold, from all parts of it."""
    (rest,) = (part for part in parts if MODEL in part.tensors)
    values = dict(rest.state)
    layouts: Layouts = values.pop(LAYOUTS)
    tensors = dict(rest.tensors)
    tensors[OPTIMIZER], values["optimizer"] = joined(
        [_state_in(OPTIMIZER, part, part.state) for part in parts], layouts
    )
    if point := values["return_point"]:
        points = [_state_in(RETURN_OPTIMIZER, part, part.state["return_point"]) for part in parts]
        tensors[RETURN_OPTIMIZER], numbers = joined(points, layouts)
        values["return_point"] = {**point, "optimizer": numbers}
    return CheckpointContents(tensors, values)


def _state_in(
    group: str, part: CheckpointContents, values: Mapping[str, Mapping[str, float]]
) -> OptimizerState:
    return dict(part.tensors.get(group, {})), dict(values["optimizer"])
