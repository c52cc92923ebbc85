"""Batch norm over the whole global batch, forward and backward (rule 11).

The norms of a model and where they meet; what is computed there stands in `normalize`. Each
micro-batch has a node of its own in a graph of its own: one node for several would make their
graphs one, in which a branching net adds its gradients in another order. Numbers are the same at
any number of workers, since all of them depend on the micro-batches and their tree alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from distrain.errors import ConfigError, ProgramError
from distrain.parallel.communicator import Communicator
from distrain.parallel.lockstep import Lockstep
from distrain.parallel.meeting import Meetings
from distrain.parallel.module_copies import OTHER_MODEL, ModuleCopies
from distrain.parallel.normalize import Normalize, Phase, Whole, merge_moments, moments_of
from distrain.parallel.stacked_fold import Merge

Work = Callable[[nn.Module], None]
"""Forward and backward of one micro-batch with the module that it is given."""

_END = 1


@dataclass(frozen=True)
class _Brought:
    """What a micro-batch brings to a meeting; `row` is `(words,)`."""

    place: int
    count: int = 0
    row: torch.Tensor | None = None


class SynchronizedNorms:
    """The batch norms of a model, of which all micro-batches of a step are normalised alike."""

    def __init__(self, model: nn.Module, communicator: Communicator, device: torch.device) -> None:
        """Finds the norms.

        Raises:
            ConfigError: one is of a kind that this does not cover.
        """
        self._norms: list[_BatchNorm] = []
        self._names: list[str] = []
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                self._norms.append(module)
                self._names.append(name)
                _check_kind(name, module)
            elif isinstance(module, _NormBase) and module.running_mean is not None:
                raise ConfigError(
                    f"{name} ({type(module).__name__}) has running statistics of each micro-batch, "
                    'which batch_norm = "sync" has no rule for: use track_running_stats=False '
                    'there, or batch_norm = "micro"'
                )
        self._communicator, self._device = communicator, device
        self._copies = ModuleCopies(model)
        self._num_bound = 0
        self._modules: list[nn.Module] = []
        self._looks, self._num_meetings = False, 0
        self._spoiled: tuple[int, int, list[int]] | None = None
        self._most_words = 1 + 2 * max((norm.num_features for norm in self._norms), default=0)
        self._meetings: dict[int, Meetings] = {}
        self._step = 0
        self._meeting: Meetings | None = None
        self._lockstep: Lockstep | None = None
        self._moves: list[tuple[_BatchNorm, torch.Tensor, torch.Tensor]] = []

    def run(
        self, step: int, num_leaves: int, work: Sequence[Work], *, looks: bool = False
    ) -> list[nn.Module]:
        """Does a step's own micro-batches, in lockstep; the modules that they were done with.

        The model's own gradients have to be clear. Called on every worker, also on one that owns no
        micro-batch.

        Args:
            step: Counted from 0, for messages.
            num_leaves: Micro-batches of all workers.
            work: For each own one, what is done with it.
            looks: Note who is the first whose numbers are not finite, for `mark`.

        Raises:
            ProgramError: the micro-batches don't take the same norms in the same order, the whole
                batch has one value a channel, or another model was used; on all workers alike.
        """
        self._step, self._moves = step, []
        self._looks, self._spoiled, self._num_meetings = looks, None, 0
        if num_leaves not in self._meetings:
            self._meetings[num_leaves] = Meetings(
                num_leaves, self._most_words, self._communicator, self._device
            )
        self._meeting = self._meetings[num_leaves]
        modules = self._copies.take(len(work))
        with self._instead(modules):
            if work:
                lockstep = Lockstep(len(work), self._together, self._device)
                self._lockstep = lockstep
                lockstep.run(
                    [partial(self._do, *one) for one in enumerate(zip(work, modules, strict=True))]
                )
            while not work and self._together(()) is not None:
                pass  # it has no micro-batch, and attends until all have ended
        self._copies.check(modules)
        self._modules = modules
        return modules

    def hand_over(self, place: int) -> None:
        """Gives the model the gradients of one of the micro-batches of the last `run`."""
        self._copies.hand_over(self._modules[place])

    def apply(self) -> None:
        """Moves the running statistics as torch does, once for each use in the forward pass."""
        for norm, mean, variance in self._moves:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            share = norm.momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
                if share is None:
                    share = 1.0 / float(norm.num_batches_tracked)
            share = 0.0 if share is None else share
            for buffer, found in ((norm.running_mean, mean), (norm.running_var, variance)):
                buffer.copy_(buffer.double() * (1.0 - share) + found * share)
        self._moves = []

    def mark(self, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Notes which micro-batches, of this worker's, were the first that were not finite.

        Either `(M,)`: the meeting's number for them, counted from 1. Those of the earliest meeting
        have made all others so. Of use after a `run` with `looks`.
        """
        assert self._meeting is not None
        if self._spoiled is not None:
            number, phase, places = self._spoiled
            for place in places:
                into = gradients if phase == Phase.BACKWARD else inputs
                into[self._meeting.owned[place]] = number

    def _look(self, rows: torch.Tensor, phase: int) -> None:
        """Whose row is not finite; a look waits for a GPU, and is done where something is wrong."""
        wrong = (~torch.isfinite(rows).all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            self._spoiled = self._num_meetings, phase, wrong

    def _do(self, place: int, what: tuple[Work, nn.Module]) -> None:
        work, module = what
        work(module)
        assert self._lockstep is not None
        self._lockstep.meet(place, _Brought(_END))

    @contextmanager
    def _instead(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Has the norms of the modules, the first one being at place 0, go through this.

        An instance's `forward` comes before its class's: class, names and state stay the user's.
        """
        alone = len(modules) == 1
        for place, module in enumerate([] if alone else modules):
            if place == self._num_bound:
                self._num_bound += 1
                norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
                for index, norm in enumerate(norms):
                    norm.__dict__["forward"] = partial(self._forward, norm, index, place)
        for index, norm in enumerate(self._norms):
            norm.__dict__["forward"] = partial(self._forward, norm, index, 0 if alone else None)
        try:
            yield
        finally:
            self._lockstep = None
            for norm in self._norms:
                del norm.__dict__["forward"]

    def _forward(
        self, norm: _BatchNorm, index: int, place: int | None, x: torch.Tensor
    ) -> torch.Tensor:
        """What a norm gives at a place, `(N, C, ...)`, for `(N, C, ...)`."""
        if self._lockstep is None or self._lockstep.running != place:
            raise ProgramError(f"batch norm {self._names[index]} {OTHER_MODEL}")
        if not norm.training and norm.running_mean is not None:
            return _BatchNorm.forward(norm, x)
        norm._check_input_dim(x)  # type: ignore[no-untyped-call]
        if x.shape[1] != norm.num_features:
            raise ValueError(
                f"batch norm {self._names[index]} is of {norm.num_features} channels, and its "
                f"input has the shape {tuple(x.shape)}"
            )
        meet = partial(self._meet, self._lockstep, place, index)
        found: torch.Tensor = Normalize.apply(  # type: ignore[no-untyped-call]
            x, norm.weight, norm.bias, norm.eps, meet
        )
        return found

    def _meet(
        self,
        lockstep: Lockstep,
        place: int,
        index: int,
        phase: Phase,
        count: int,
        row: torch.Tensor,
    ) -> Whole:
        found: Whole = lockstep.meet(place, _Brought(2 + 3 * index + phase, count, row))
        return found

    def _together(self, brought: Sequence[_Brought]) -> Whole | None:
        """One meeting of all workers; None at the end of all micro-batches."""
        assert self._meeting is not None
        self._num_meetings += 1
        places, counts = [one.place for one in brought], [one.count for one in brought]
        given = [one.row for one in brought if one.row is not None]
        rows, kind = None, torch.float32
        merge: Merge = torch.add
        if given and len(set(places)) == 1:
            rows, kind = torch.stack(given), given[0].dtype
            phase = (places[0] - 2) % 3
            if self._looks and self._spoiled is None:
                self._look(rows, phase)
            if phase == Phase.BACKWARD:
                rows = rows.double()
            else:
                rows, merge = moments_of(rows, counts), merge_moments
        met = self._meeting.meet(places, counts, rows, merge)
        if len(set(met.places)) > 1:
            raise self._parted(met.places)
        if met.places[0] == _END:
            return None
        index, phase = divmod(met.places[0] - 2, 3)
        norm = self._norms[index]
        if phase == Phase.BACKWARD:
            total = self._meeting.total(2 * norm.num_features, torch.add)
            count = counts[0] if counts else 1  # of the whole batch: they know it by now
            return Whole(count, (total / count).to(kind).view(2, -1))
        return self._statistics(index, met.count, kind, moves=phase == Phase.FORWARD)

    def _statistics(self, index: int, count: int, kind: torch.dtype, *, moves: bool) -> Whole:
        """What the forward pass is given; what is computed again has moved the averages before."""
        assert self._meeting is not None
        norm = self._norms[index]
        if count < 2:
            raise ProgramError(
                f"step {self._step + 1}: the whole batch has a single value a channel at the batch "
                f"norm {self._names[index]}, and there is no variance over one: choose "
                'last_batch = "drop", or another global_batch, so that the last batch of an epoch '
                "has more samples"
            )
        total = self._meeting.total(1 + 2 * norm.num_features, merge_moments)
        mean, squares = total[1:].view(2, -1).unbind()
        if moves and norm.training and norm.running_mean is not None:
            self._moves.append((norm, mean, squares / (count - 1)))
        return Whole(count, torch.stack([mean, squares / count]).to(kind))

    def _parted(self, places: Sequence[int]) -> ProgramError:
        where: dict[int, list[str]] = {}
        for micro_batch, place in enumerate(places):
            where.setdefault(place, []).append(str(micro_batch))
        said = [
            f"{', '.join(them)} at {self._words(place)}" for place, them in sorted(where.items())
        ]
        return ProgramError(
            f"step {self._step + 1}: the micro-batches part: while {'; '.join(said)}. With "
            'batch_norm = "sync" all of them have to take the same batch norms in the same order: '
            'keep batch norms out of branches that only some take, or choose batch_norm = "micro"'
        )

    def _words(self, place: int) -> str:
        if place == _END:
            return "the end"
        index, phase = divmod(place - 2, 3)
        return f"batch norm {self._names[index]} ({Phase(phase).name.lower()})"


def _check_kind(name: str, module: _BatchNorm) -> None:
    if isinstance(module, nn.SyncBatchNorm):
        return  # refused elsewhere, with any batch_norm
    if type(module).forward is not _BatchNorm.forward or "forward" in module.__dict__:
        raise ConfigError(
            f"{name} ({type(module).__name__}) is a batch norm with a forward of its own, which "
            'batch_norm = "sync" would pass by: use BatchNorm1d, 2d or 3d, or batch_norm = "micro"'
        )
