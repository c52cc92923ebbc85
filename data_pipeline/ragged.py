"""Rows of differing length, as Arrow keeps them: all values in one array, and where each begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.compiled import compiled

LENGTHS = "_lengths"
"""What the column with a sequence's lengths is called, behind the sequence's name."""


@dataclass(frozen=True)
class Ragged:
    """`num_rows` rows; row i is `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
        offsets: `(num_rows + 1,)`, int64, never falling.
        values: `(total, *step_shape)`: sequence steps, or the bytes (uint8) of texts and pictures.
    """

    offsets: NDArray[np.int64]
    values: NDArray[Any]

    @classmethod
    def of(cls, rows: Sequence[NDArray[Any]], dtype: str, step_shape: tuple[int, ...]) -> "Ragged":
        """Rows `(length, *step_shape)` put one behind the other."""
        lengths = [len(row) for row in rows]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        values = np.empty((int(offsets[-1]), *step_shape), dtype=dtype)
        for row, start, stop in zip(rows, offsets, offsets[1:], strict=False):
            values[start:stop] = row
        return cls(offsets, values)

    @classmethod
    def of_bytes(cls, rows: Sequence[bytes]) -> "Ragged":
        """Texts in UTF-8 or encoded pictures."""
        return cls.of([np.frombuffer(row, np.uint8) for row in rows], "uint8", ())

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of values and offsets."""
        return self.offsets.nbytes + self.values.nbytes

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Steps of each row, `(num_rows,)`."""
        return np.diff(self.offsets)

    def row(self, number: int) -> NDArray[Any]:
        """One row `(length, *step_shape)`, a view.

        Raises:
            IndexError: the row's offsets lie outside of the values, as in a damaged file.
        """
        start, stop = int(self.offsets[number]), int(self.offsets[number + 1])
        if not 0 <= start <= stop <= len(self.values):
            raise IndexError(f"row {number} has the offsets [{start}, {stop})")
        return self.values[start:stop]

    def take(self, rows: NDArray[np.int64]) -> "Ragged":
        """A copy of some rows, in the order given."""
        return Ragged.of([self.row(int(row)) for row in rows], str(self.values.dtype), self.step)

    def slice(self, start: int, stop: int) -> "Ragged":
        """A copy of the rows [start, stop)."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(offsets - offsets[0], self.values[offsets[0] : offsets[-1]].copy())

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the values."""
        return self.values.dtype

    @property
    def step(self) -> tuple[int, ...]:
        """The shape of one step."""
        return self.values.shape[1:]

    def pad_into(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        out: NDArray[Any],
        lengths: NDArray[np.int64],
    ) -> None:
        """Copies `rows` to `out[places]` `(B, T, *step)`, zeros behind them; cut at T steps.

        Raises:
            IndexError: a row's offsets lie outside of the values, as in a damaged file.
        """
        if out.shape[0] != len(lengths) or out.shape[2:] != self.step or out.dtype != self.dtype:
            raise ValueError(
                f"steps of {self.dtype} and shape {self.step} go to (B, T, *step), with lengths "
                f"(B,), not to {out.dtype} of shape {out.shape} with {lengths.shape}"
            )
        width = int(np.prod(self.step, dtype=np.int64))
        flat = self.values.reshape(len(self.values), width)
        if self.dtype == np.float16:  # compiled code knows no such numbers
            flat, out = flat.view(np.uint16), out.view(np.uint16)
        steps = out.shape[1]
        if _pad(self.offsets, flat, rows, places, out.reshape(len(out), steps, width), lengths):
            raise IndexError("a row's offsets lie outside of its values: the shard is damaged")


@compiled
def _pad(
    offsets: NDArray[np.int64],
    values: NDArray[Any],
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    out: NDArray[Any],
    lengths: NDArray[np.int64],
) -> int:
    steps = out.shape[1]
    for number in range(len(rows)):
        start, stop = offsets[rows[number]], offsets[rows[number] + 1]
        if start < 0 or start > stop or stop > len(values):
            return 1
        length = min(stop - start, steps)
        place = places[number]
        out[place, :length] = values[start : start + length]
        out[place, length:] = 0
        lengths[place] = length
    return 0
