"""Shares of the optimizer's state and of the weights, each kept and moved by one worker.

ZeRO stage 1 (Rajbhandari et al. 2020): a worker gets the summed gradient of its share alone,
updates that, and the weights are brought together. The bits are those of a run in which everybody
does all: every sum is the same, and an optimizer that acts element by element gives the same where
parameters are cut at multiples of 16 floats (rules 8 and 9).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from distrain.errors import ConfigError
from distrain.numerics import NORM_BLOCK
from distrain.parallel.communicator import Communicator, gather_bytes
from distrain.parallel.gradients import FlatGradients, block_norms, norm_of_blocks
from distrain.parallel.optimizer_state import (
    Held,
    Layouts,
    OptimizerState,
    host_copy,
    load_copy,
    optimizer_tensors,
    piece_key,
    refuse_beyond_elements,
)
from distrain.parallel.transport import SharedTransport

LAST_SAVE_TIMEOUT_S = 10.0
"""So long the last save of an unfinished step waits for the other workers."""

_ONE_NUMBER = ("step", "mu_product", "eta", "mu")
"""What these keep once for a parameter: told from the rest where a parameter has no dimension."""


class ApartError(RuntimeError):
    """The workers stand at different steps, so that their parts make no whole."""


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

    def held(self) -> Held:
        """Its pieces of it."""
        return host_copy(self._optimizer)

    def optimizer_state(self, held: Held | None = None, *, apart: bool = False) -> OptimizerState:
        """A closing exchange: one vector as long as the model for each name of the state."""
        transport = self._apart if apart else self._transport
        mine = self._optimizer.state_dict()["state"] if held is None else held
        tensors: dict[str, torch.Tensor] = {}
        numbers: dict[str, float] = {}
        vectors: dict[str, set[int]] = {}
        index = {number: place for place, number in enumerate(self._numbers)}
        for described in self._describe_everywhere(mine, transport.communicator):
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
            for span, place, _ in self._placed_pieces():
                if name in mine.get(place, {}):
                    whole[span.start : span.stop] = mine[place][name]
            transport.spread(self._parts, whole)
            views = self._gradients.views(whole)
            for number in vectors[name]:
                tensors[f"{index[number]}.{name}"] = views[number].contiguous()
        return tensors, numbers

    def _placed_pieces(self) -> Iterator[tuple[range, int, int]]:
        """The own pieces: where each lies, its place in the optimizer, its parameter."""
        for number, pieces in enumerate(self._pieces):
            for place, (span, _) in zip(self._places[number], pieces, strict=True):
                yield span, place, number

    def _describe_everywhere(
        self, mine: Held, communicator: Communicator
    ) -> list[list[tuple[int, str, Any, str]]]:
        """By worker: parameter, name, the value unless it is a vector, its dtype if a tensor."""
        told: list[tuple[int, str, Any, str]] = []
        for number, pieces in enumerate(self._pieces):
            for place, (_, piece) in zip(self._places[number][:1], pieces, strict=False):
                for name, value in mine.get(place, {}).items():
                    if torch.is_tensor(value) and value.shape == piece.shape:
                        told.append((number, name, None, ""))
                    elif torch.is_tensor(value):
                        dtype = str(value.dtype).removeprefix("torch.")
                        told.append((number, name, value.item(), dtype))
                    elif value is not None:
                        told.append((number, name, value, ""))
        content = json.dumps([self._updates, told]).encode()
        everyone = [
            json.loads(blob) for blob in gather_bytes(content, communicator, self._weights.device)
        ]
        if len({updates for updates, _ in everyone}) > 1:
            raise ApartError("an update has come to its end on some workers only")
        return [described for _, described in everyone]

    def part(self, held: Held | None = None) -> OptimizerState:
        """Its pieces, and what is one number for a parameter of which it has a piece."""
        mine = self._optimizer.state_dict()["state"] if held is None else held
        index = {number: place for place, number in enumerate(self._numbers)}
        tensors: dict[str, torch.Tensor] = {}
        numbers: dict[str, float] = {}
        for span, place, number in self._placed_pieces():
            start = span.start - self._gradients.spans[number].start
            for name, value in mine.get(place, {}).items():
                key = f"{index[number]}.{name}"
                if torch.is_tensor(value) and value.shape == (len(span),):
                    tensors[piece_key(key, start)] = value
                elif torch.is_tensor(value):
                    tensors[key] = value
                elif value is not None:
                    numbers[key] = value
        return tensors, numbers

    def layouts(self) -> Layouts:
        """A parameter's elements are cut in the order of its memory."""
        parameters = [self._gradients.parameters[number] for number in self._numbers]
        return {str(n): (list(p.shape), list(p.stride())) for n, p in enumerate(parameters)}

    def own(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]) -> Held:
        """Its pieces of it.

        Raises:
            ConfigError: a state's shape is neither its parameter's nor that of one number.
        """
        state: Held = {}
        vectors: dict[str, dict[int, torch.Tensor]] = {}
        for key, value in (*tensors.items(), *numbers.items()):
            index, _, name = key.partition(".")
            number = self._numbers[int(index)]
            if torch.is_tensor(value) and not self._is_one_number(number, name, value):
                vectors.setdefault(name, {})[number] = value
            else:
                for place in self._places[number]:  # each piece counts its own steps
                    state.setdefault(place, {})[name] = value
        for name, by_number in vectors.items():
            whole = self._vector()
            views = self._gradients.views(whole)
            for number, value in by_number.items():
                views[number].copy_(value)
            for span, place, number in self._placed_pieces():
                if number in by_number:
                    state.setdefault(place, {})[name] = whole[span.start : span.stop].clone()
        return state

    def take(self, held: Held) -> None:
        """Its pieces."""
        load_copy(self._optimizer, held)

    def load_optimizer_state(
        self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]
    ) -> None:
        """Each worker takes its pieces; errors are those of `own`."""
        self.take(self.own(tensors, numbers))

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
