"""What travels along the tree: one block of bytes, read as words of several kinds.

    | flags | float64 | int64 | gap | float32            | gap | gradient |
      int64   the ledger            running statistics            float32 or bfloat16
    |<------------------- head ------------------------------>|

The gaps pad to 64 bytes. A worker writes its flags (a signal, a time limit, a digest) at places of
its own, and adding leaves them as they are: they are read by rank, and nothing of the outside gets
into a sum.

float64 and int64 words never lose precision on the way (rules 6 and 7): float32 counts stop
at 2^24. A gradient of bfloat16 words is rounded in every leaf and at every node, whoever adds, so
that this too is free of W.
"""

from dataclasses import dataclass, replace

import torch

_ALIGNMENT = 64


@dataclass(frozen=True)
class PayloadLayout:
    """How many words of each kind a payload has; `num_flags` for all workers together."""

    num_float64: int
    num_int64: int
    num_float32: int
    num_gradient: int = 0
    gradient_dtype: torch.dtype = torch.float32
    num_flags: int = 0

    @property
    def float32_start(self) -> int:
        """Where the float32 words begin, in bytes."""
        return _padded(8 * (self.num_flags + self.num_float64 + self.num_int64))

    @property
    def gradient_start(self) -> int:
        """Where the gradient begins, in bytes: the head's size, never 0."""
        return max(_ALIGNMENT, _padded(self.float32_start + 4 * self.num_float32))

    @property
    def num_bytes(self) -> int:
        """Size in bytes, a multiple of 64 and never 0."""
        return self.gradient_start + _padded(self.gradient_dtype.itemsize * self.num_gradient)

    @property
    def head(self) -> "PayloadLayout":
        """The layout without the gradient, which stands last."""
        return replace(self, num_gradient=0)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class Payload:
    """Views of one block of bytes.

    Attributes:
        data: `(num_bytes,)`, uint8.
        flags: `(num_flags,)`, int64.
        float64: `(num_float64,)`.
        int64: `(num_int64,)`.
        float32: `(num_float32,)`.
        gradient: `(num_gradient,)`.
    """

    __slots__ = ("_head", "data", "flags", "float32", "float64", "gradient", "int64")

    def __init__(self, data: torch.Tensor, layout: PayloadLayout) -> None:
        """Views the bytes; copies nothing."""
        first = 8 * layout.num_flags
        second = first + 8 * layout.num_float64
        third = second + 8 * layout.num_int64
        self.data = data
        self.flags = data[:first].view(torch.int64)
        self.float64 = data[first:second].view(torch.float64)
        self.int64 = data[second:third].view(torch.int64)
        at = layout.float32_start
        self.float32 = data[at : at + 4 * layout.num_float32].view(torch.float32)
        size = layout.gradient_dtype.itemsize * layout.num_gradient
        at = layout.gradient_start
        self.gradient = data[at : at + size].view(layout.gradient_dtype)
        views = (self.flags, self.float64, self.int64, self.float32)
        self._head = [view for view in views if len(view)]

    def add_(self, other: "Payload") -> "Payload":
        """Adds a sibling word by word, in place: a merge of the tree; a + b and b + a are alike."""
        self.add_head_(other)
        if len(self.gradient):
            self.gradient += other.gradient
        return self

    def add_head_(self, other: "Payload") -> "Payload":
        """Adds all but the gradient."""
        for mine, theirs in zip(self._head, other._head, strict=True):
            mine.add_(theirs)
        return self


def new_payload(layout: PayloadLayout, device: torch.device) -> Payload:
    """A payload of zeros."""
    return Payload(torch.zeros(layout.num_bytes, dtype=torch.uint8, device=device), layout)
