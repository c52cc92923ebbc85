"""Running statistics of batch norm, updated once a step whatever the number of workers (rule 10).

Each micro-batch starts from the statistics of the step's begin; what it makes of them travels
along the tree, weighted by samples:  running <- mean_j ((1 - m) running + m stat_j). A norm in
evaluation mode is frozen: nothing of it moves.
"""

import torch
from torch.nn.modules.batchnorm import _NormBase

from distrain.errors import ConfigError


class RunningStatistics:
    """The buffers that a training step changes by a known rule.

    Attributes:
        covered: Their `id`s.
        has_batch_norm: Whether there is a batch norm among the modules.
        num_floats: float32 words that they take in a payload.
    """

    def __init__(self, model: torch.nn.Module, *, synchronized: bool = False) -> None:
        """Finds the buffers; not those of batch norms where these are synchronized.

        Raises:
            ConfigError: the model has torch's SyncBatchNorm, which would talk past the tree.
        """
        self.has_batch_norm = False
        self._means: list[torch.Tensor] = []
        self._mean_owners: list[_NormBase] = []
        self._counters: list[torch.Tensor] = []
        self._counter_owners: list[_NormBase] = []
        known: set[int] = set()
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.SyncBatchNorm):
                raise ConfigError(
                    f"{name} is torch's SyncBatchNorm, whose sums depend on the number of workers: "
                    'use BatchNorm with batch_norm = "sync", for statistics of the whole batch'
                )
            is_batch_norm = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            self.has_batch_norm |= is_batch_norm
            if not isinstance(module, _NormBase) or (is_batch_norm and synchronized):
                continue
            for buffer in (module.running_mean, module.running_var):
                if buffer is not None and id(buffer) not in known:
                    known.add(id(buffer))
                    self._means.append(buffer)
                    self._mean_owners.append(module)
            # Instance norm has a count too, and never moves it.
            if is_batch_norm and module.num_batches_tracked is not None:
                known.add(id(module.num_batches_tracked))
                self._counters.append(module.num_batches_tracked)
                self._counter_owners.append(module)
        self.covered = frozenset(known)
        self._at_begin: list[torch.Tensor] = []
        self.num_floats = sum(buffer.numel() for buffer in self._means)

    def begin(self) -> None:
        """Remembers the statistics at the begin of a step."""
        self._at_begin = [buffer.clone() for buffer in (*self._means, *self._counters)]

    def restore(self) -> None:
        """Sets the statistics back to those at the begin of the step."""
        if self._at_begin:
            torch._foreach_copy_([*self._means, *self._counters], self._at_begin)

    def collect(self, out: torch.Tensor, share: float) -> None:
        """Writes what one micro-batch made of them, times its share of the step's samples.

        `out` is `(num_floats,)`. A share of 1 changes no bit, so that a step of one micro-batch
        updates as torch does.
        """
        if self._means:
            torch.cat([buffer.reshape(-1) for buffer in self._means], out=out)
            out *= share

    def standing(self) -> dict[int, torch.Tensor]:
        """By buffer's `id`, the values at the step's begin: in mid-step the buffers hold others."""
        return {
            id(buffer): value
            for buffer, value in zip((*self._means, *self._counters), self._at_begin, strict=False)
        }

    def apply(self, total: torch.Tensor) -> None:
        """Sets the statistics from the sum over all micro-batches; one update is counted."""
        if not self._at_begin:
            return
        at = 0
        for module, buffer in zip(self._mean_owners, self._means, strict=True):
            if module.training:
                buffer.copy_(total[at : at + buffer.numel()].view_as(buffer))
            at += buffer.numel()
        starts = self._at_begin[len(self._means) :]
        for module, counter, start in zip(
            self._counter_owners, self._counters, starts, strict=True
        ):
            if module.training:
                counter.copy_(start + 1)
        self._at_begin = []
