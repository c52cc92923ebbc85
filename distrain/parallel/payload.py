"""What travels along the tree: one block of bytes, read as float32, float64 and int64 words.

    | float64 words | int64 words | flag | gap | float32 words                  | gap |
      the ledger      the ledger                 gradients, running statistics

Both gaps pad to 64 bytes. The flag is the sending worker's (a signal, a time limit): it is read by
rank and never summed, so that nothing of the outside gets into a sum.

float64 and int64 words never lose precision on the way (rules 6 and 7): float32 counts stop
at 2^24.
"""

from dataclasses import dataclass

import torch

_ALIGNMENT = 64


@dataclass(frozen=True)
class PayloadLayout:
    """How many words of each kind a payload has."""

    num_float64: int
    num_int64: int
    num_float32: int

    @property
    def flag_start(self) -> int:
        """Where the flag stands, in bytes."""
        return 8 * (self.num_float64 + self.num_int64)

    @property
    def float32_start(self) -> int:
        """Where the float32 words begin, in bytes."""
        return _padded(self.flag_start + 8)

    @property
    def num_bytes(self) -> int:
        """Size in bytes, a multiple of 64 and never 0."""
        return max(_ALIGNMENT, _padded(self.float32_start + 4 * self.num_float32))


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class Payload:
    """Views of one block of bytes.

    Attributes:
        data: `(num_bytes,)`, uint8.
        float64: `(num_float64,)`.
        int64: `(num_int64,)`.
        flag: `(1,)`, int64; no part of any sum.
        float32: `(num_float32,)`.
    """

    __slots__ = ("data", "flag", "float32", "float64", "int64")

    def __init__(self, data: torch.Tensor, layout: PayloadLayout) -> None:
        """Views the bytes; copies nothing."""
        first, second = 8 * layout.num_float64, layout.flag_start
        third = layout.float32_start
        self.data = data
        self.float64 = data[:first].view(torch.float64)
        self.int64 = data[first:second].view(torch.int64)
        self.flag = data[second : second + 8].view(torch.int64)
        self.float32 = data[third : third + 4 * layout.num_float32].view(torch.float32)

    def add_(self, right: "Payload") -> "Payload":
        """Adds the right sibling word by word, in place: a merge of the tree."""
        self.float64 += right.float64
        self.int64 += right.int64
        self.float32 += right.float32
        return self


def new_payload(layout: PayloadLayout, device: torch.device) -> Payload:
    """A payload of zeros."""
    return Payload(torch.zeros(layout.num_bytes, dtype=torch.uint8, device=device), layout)
