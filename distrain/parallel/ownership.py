"""Who holds the optimizer's state and moves which weights: every worker all, or each its share.

Shares are ZeRO stage 1 (Rajbhandari et al. 2020): a worker gets the summed gradient of its share
alone, updates that, and the weights are brought together. The bits are those of a run in which
everybody does all: every sum is the same, and an optimizer that acts element by element gives the
same where parameters are cut at multiples of 16 floats (rules 8 and 9).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from distrain.errors import ConfigError
from distrain.numerics import NORM_BLOCK
from distrain.parallel.communicator import Communicator, gather_bytes
from distrain.parallel.gradients import FlatGradients, block_norms, norm_of_blocks
from distrain.parallel.transport import SharedTransport

OptimizerState = tuple[dict[str, torch.Tensor], dict[str, float]]
"""An optimizer's state as tensors and numbers, each under `PARAMETER.NAME`."""

ELEMENT_BY_ELEMENT = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adamax, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop),
    *(torch.optim.ASGD, torch.optim.Rprop),
)
"""Torch's optimizers that look at no other element of a parameter, nor at its shape."""

LAST_SAVE_TIMEOUT_S = 10.0
"""So long the last save of an unfinished step waits for the other workers."""

_ONE_NUMBER = ("step", "mu_product", "eta", "mu")
"""What these keep once for a parameter: told from the rest where a parameter has no dimension."""


class ApartError(RuntimeError):
    """The workers stand at different steps, so that their parts make no whole."""


class Ownership(Protocol):
    """What a step does with the summed gradient; flat vectors are laid out as `FlatGradients`.

    Attributes:
        is_shared: No worker has the whole optimizer's state; all have to bring it together.
    """

    is_shared: bool

    def norm(self, gradient: torch.Tensor) -> float:
        """The 2-norm of the whole gradient, the same bits on every worker."""
        ...

    def owned(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """The pieces of the summed gradient that this worker has."""
        ...

    def whole(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """The whole gradient by parameter, to be looked at; all workers call it."""
        ...

    def assign(self, gradient: torch.Tensor, present: Sequence[int]) -> None:
        """Gives the optimizer its gradients, none where `present` is 0; the buffer lives on."""
        ...

    def share_weights(self) -> None:
        """Brings the updated weights to every worker."""
        ...

    def optimizer_state(self, *, apart: bool = False) -> OptimizerState:
        """The state of the whole optimizer; all workers call it.

        `apart`: from another thread than the training's, which may be in an exchange.
        """
        ...

    def load_optimizer_state(
        self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]
    ) -> None:
        """Sets the state from that of the whole optimizer; its groups' settings stay."""
        ...


class Replicated:
    """Every worker updates all weights."""

    is_shared = False

    def __init__(self, gradients: FlatGradients, optimizer: torch.optim.Optimizer) -> None:
        """Changes nothing."""
        self._gradients, self._optimizer = gradients, optimizer

    def norm(self, gradient: torch.Tensor) -> float:
        """Nothing has to travel."""
        return norm_of_blocks(block_norms(gradient))

    def owned(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """All of it."""
        return [vector]

    def whole(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """It is here."""
        return self._gradients.buffer_views(gradient)

    def assign(self, gradient: torch.Tensor, present: Sequence[int]) -> None:
        """By parameter."""
        self._gradients.assign(self._gradients.buffer_views(gradient), present)

    def share_weights(self) -> None:
        """Every worker has them."""

    def optimizer_state(self, *, apart: bool = False) -> OptimizerState:  # noqa: ARG002
        """This worker's own; others need not call it."""
        return optimizer_tensors(self._optimizer)

    def load_optimizer_state(
        self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]
    ) -> None:
        """As it is; in the parameters' strides, since fused optimizers look at none."""
        state: dict[int, dict[str, Any]] = {}
        for key, value in (*tensors.items(), *numbers.items()):
            parameter, _, name = key.partition(".")
            state.setdefault(int(parameter), {})[name] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        for held, loaded in self._optimizer.state.items():
            for name, value in loaded.items():
                if torch.is_tensor(value) and value.shape == held.shape:
                    # A checkpoint's tensors are contiguous.
                    same = value.stride() == held.stride()
                    like = value if same else torch.empty_like(held, dtype=value.dtype)
                    loaded[name] = value if same else like.copy_(value)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """What an optimizer holds, by its own count of parameters.

    Raises:
        ConfigError: the optimizer keeps something that is neither tensor nor number.
    """
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, float] = {}
    for parameter, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if torch.is_tensor(value):
                tensors[f"{parameter}.{name}"] = value
            elif isinstance(value, (bool, int, float)):
                numbers[f"{parameter}.{name}"] = value
            elif value is not None:
                raise ConfigError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} as {name!r}: a "
                    "checkpoint takes tensors and numbers; run without one, or with another "
                    "optimizer"
                )
    return tensors, numbers


class Sharded:
    """Each worker updates the weights of its shares."""

    is_shared = True

    def __init__(
        self,
        gradients: FlatGradients,
        optimizer: torch.optim.Optimizer,
        transport: SharedTransport,
        parts: Sequence[range],
        *,
        gradient_is_whole: bool = False,
    ) -> None:
        """Moves the weights into one flat vector, and the optimizer to this worker's pieces of it.

        `gradient_is_whole`: every worker is given the sum of all of it, and not of its shares.

        Raises:
            ConfigError: the optimizer looks beyond an element.
        """
        refuse_beyond_elements(optimizer)
        self._gradients, self._optimizer = gradients, optimizer
        self._transport, self._parts, self._is_whole = transport, parts, gradient_is_whole
        another = transport.communicator.another("last save", LAST_SAVE_TIMEOUT_S)
        self._apart = SharedTransport(another)
        self._shares = [share for part in parts if (share := transport.share(part))]
        self._weights, self._updates = self._vector(), 0
        for parameter, view in zip(
            gradients.parameters, gradients.views(self._weights), strict=True
        ):
            view.copy_(parameter.detach())
            parameter.data = view
        self._pieces = [
            [
                (piece, torch.nn.Parameter(self._weights[piece.start : piece.stop]))
                for share in self._shares
                if (piece := _overlap(span, share))
            ]
            for span in gradients.spans
        ]
        self._numbers: list[int] = []
        self._order: list[torch.nn.Parameter] = []
        self._places: dict[int, list[int]] = {}
        self._take_over()

    def _vector(self) -> torch.Tensor:
        device = self._gradients.parameters[0].device
        return torch.zeros(self._gradients.num_floats, device=device)

    def _take_over(self) -> None:
        """Gives the optimizer the pieces in place of the parameters."""
        known = {id(parameter): n for n, parameter in enumerate(self._gradients.parameters)}
        before = optimizer_tensors(self._optimizer)
        for group in self._optimizer.param_groups:
            mine = [known[id(parameter)] for parameter in group["params"]]
            group["params"] = []
            for number in mine:
                pieces = [piece for _, piece in self._pieces[number]]
                self._places[number] = [len(self._order) + i for i in range(len(pieces))]
                self._order += pieces
                group["params"] += pieces
            self._numbers += mine
        self._optimizer.state.clear()
        self.load_optimizer_state(*before)

    def norm(self, gradient: torch.Tensor) -> float:
        """A closing exchange: each worker's norms of its own blocks, then one fold."""
        if self._is_whole:
            return norm_of_blocks(block_norms(gradient))
        norms = gradient.new_zeros(-(-len(gradient) // NORM_BLOCK))
        for share in self._shares:
            found = block_norms(gradient[share.start : share.stop])
            norms[share.start // NORM_BLOCK :][: len(found)] = found
        # All but one worker have 0 there, and adding that changes no bit.
        return norm_of_blocks(self._transport.communicator.all_gather(norms).sum(0))

    def owned(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """This worker's shares; of a gradient that is whole, all of it."""
        if self._is_whole:
            return [vector]
        return [vector[share.start : share.stop] for share in self._shares]

    def whole(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """An exchange of as many bytes as the model has, unless the gradient is whole."""
        if self._is_whole:
            return self._gradients.buffer_views(gradient)
        together = gradient.clone()
        self._transport.spread(self._parts, together)
        return self._gradients.views(together)

    def assign(self, gradient: torch.Tensor, present: Sequence[int]) -> None:
        """By piece; the parameters themselves have none."""
        self._gradients.clear()
        for pieces, count in zip(self._pieces, present, strict=True):
            for span, piece in pieces:
                piece.grad = gradient[span.start : span.stop] if count else None

    def share_weights(self) -> None:
        """The other half of the exchange that left each worker its shares of the gradient."""
        with torch.no_grad():
            self._transport.spread(self._parts, self._weights)
        self._updates += 1

    def optimizer_state(self, *, apart: bool = False) -> OptimizerState:
        """A closing exchange: one vector as long as the model for each name of the state."""
        transport = self._apart if apart else self._transport
        tensors: dict[str, torch.Tensor] = {}
        numbers: dict[str, float] = {}
        vectors: dict[str, set[int]] = {}
        index = {number: place for place, number in enumerate(self._numbers)}
        for described in self._describe_everywhere(transport.communicator):
            for number, name, value, dtype in described:
                key = f"{index[number]}.{name}"
                if value is None:
                    vectors.setdefault(name, set()).add(number)
                elif dtype:
                    tensors[key] = torch.tensor(value, dtype=getattr(torch, dtype))
                else:
                    numbers[key] = value
        for name in sorted(vectors):
            whole = self._vector()
            for pieces in self._pieces:
                for span, piece in pieces:
                    if name in self._optimizer.state[piece]:
                        whole[span.start : span.stop] = self._optimizer.state[piece][name]
            transport.spread(self._parts, whole)
            views = self._gradients.views(whole)
            for number in vectors[name]:
                tensors[f"{index[number]}.{name}"] = views[number].contiguous()
        return tensors, numbers

    def _describe_everywhere(
        self, communicator: Communicator
    ) -> list[list[tuple[int, str, Any, str]]]:
        """By worker: parameter, name, the value unless it is a vector, its dtype if a tensor."""
        mine: list[tuple[int, str, Any, str]] = []
        for number, pieces in enumerate(self._pieces):
            for _, piece in pieces[:1]:
                for name, value in self._optimizer.state.get(piece, {}).items():
                    if torch.is_tensor(value) and value.shape == piece.shape:
                        mine.append((number, name, None, ""))
                    elif torch.is_tensor(value):
                        dtype = str(value.dtype).removeprefix("torch.")
                        mine.append((number, name, value.item(), dtype))
                    elif value is not None:
                        mine.append((number, name, value, ""))
        told = json.dumps([self._updates, mine]).encode()
        everyone = [
            json.loads(blob) for blob in gather_bytes(told, communicator, self._weights.device)
        ]
        if len({updates for updates, _ in everyone}) > 1:
            raise ApartError("an update has come to its end on some workers only")
        return [described for _, described in everyone]

    def load_optimizer_state(
        self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]
    ) -> None:
        """Each worker takes its pieces.

        Raises:
            ConfigError: a state's shape is neither its parameter's nor that of one number.
        """
        state: dict[int, dict[str, Any]] = {number: {} for number in range(len(self._order))}
        vectors: dict[str, dict[int, torch.Tensor]] = {}
        for key, value in (*tensors.items(), *numbers.items()):
            index, _, name = key.partition(".")
            number = self._numbers[int(index)]
            if torch.is_tensor(value) and not self._is_one_number(number, name, value):
                vectors.setdefault(name, {})[number] = value
            else:
                for place in self._places[number]:  # each piece counts its own steps
                    state[place][name] = value.clone() if torch.is_tensor(value) else value
        for name, by_number in vectors.items():
            whole = self._vector()
            views = self._gradients.views(whole)
            for number, value in by_number.items():
                views[number].copy_(value)
            for number in by_number:
                for place, (span, _) in zip(
                    self._places[number], self._pieces[number], strict=True
                ):
                    state[place][name] = whole[span.start : span.stop].clone()
        groups = self._optimizer.state_dict()["param_groups"]
        filled = {place: values for place, values in state.items() if values}
        self._optimizer.load_state_dict({"state": filled, "param_groups": groups})

    def _is_one_number(self, number: int, name: str, value: torch.Tensor) -> bool:
        """Whether it belongs to a parameter as a whole, such as a count of steps."""
        shape = self._gradients.parameters[number].shape
        if value.shape == shape and (value.ndim or name not in _ONE_NUMBER):
            return False
        if value.numel() == 1:
            return True
        raise ConfigError(
            f"{type(self._optimizer).__name__} keeps {name!r} of shape {tuple(value.shape)} for a "
            f"parameter of {tuple(shape)}, which can't be cut: use shard_optimizer = false"
        )


def _overlap(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def refuse_beyond_elements(optimizer: torch.optim.Optimizer) -> None:
    """Refuses what can't be cut (rule 15).

    Raises:
        ConfigError: the optimizer is none of those that are known to act element by element, and
            its class doesn't say so by an attribute `element_by_element = True`.
    """
    name = type(optimizer).__name__
    if type(optimizer) in ELEMENT_BY_ELEMENT or getattr(optimizer, "element_by_element", False):
        return
    known = ", ".join(sorted(one.__name__ for one in ELEMENT_BY_ELEMENT))
    raise ConfigError(
        f"shard_optimizer with {name}: a sharded optimizer sees pieces of parameters, and {name} "
        f"may look beyond an element. Use one of {known}; or, if yours does not, say so by the "
        "class attribute element_by_element = True; or shard_optimizer = false"
    )
