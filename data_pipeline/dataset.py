"""A data set as training sees it: columns of rows that can be gathered by row number."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.gather import Blocks
from data_pipeline.manifest import Column, ColumnStatistics, Shard, check_column, read_manifest
from data_pipeline.ragged import Ragged
from data_pipeline.shards import Values, allow_open_files, map_shard, verify_shard
from data_pipeline.statistics import column_statistics


class Dataset:
    """One part of a data set folder, memory-mapped; or arrays, by `Dataset.from_arrays`.

    Attributes:
        name: The data set's name and part, for messages.
        part: The part's name; "arrays" for arrays in memory.
        columns: By name, what each column holds.
        num_rows: Rows in this part.
        digest: SHA-256 that changes with any byte of the data.
        statistics: By column, what the *training* part says of it.
    """

    name: str
    part: str
    columns: dict[str, Column]
    num_rows: int
    digest: str
    statistics: Mapping[str, ColumnStatistics]

    def __init__(self, path: str | Path, part: str = "train") -> None:
        """Opens a folder that `distrain data make` or `write_dataset` wrote.

        Raises:
            DataError: the folder, the part or a shard is missing, or a shard is not as described.
        """
        root = Path(path)
        manifest = read_manifest(root)
        if part not in manifest.parts:
            raise DataError(f"{root} has no part {part!r}; its parts are {sorted(manifest.parts)}")
        self.name = f"{root}:{part}"
        self.columns = {column.name: column for column in manifest.columns}
        self.digest = manifest.digest
        self.statistics = manifest.statistics
        self._root: Path | None = root
        self.part, self._shards = part, manifest.parts[part].shards
        if not manifest.parts[part].rows:
            raise DataError(f"part {part!r} of {root} has no rows: write the data set anew")
        allow_open_files(len(self._shards))
        mapped = [map_shard(root, shard, manifest.columns) for shard in self._shards]
        self._mapped = tuple(mapped)
        self._set_blocks({name: [shard.columns[name] for shard in mapped] for name in self.columns})

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Values | Sequence[str]],
        *,
        classes: Mapping[str, Sequence[str]] | None = None,
        name: str = "arrays",
    ) -> "Dataset":
        """A data set from arrays `(N, ...)` in memory, its statistics being those of the arrays.

        Floating columns are kept as float32, truth values as uint8. `classes` makes an integer
        column `(N,)` a label; `Ragged` rows make a sequence, a list of strings a text.

        Raises:
            DataError: the arrays differ in rows, a label lies outside of its classes, or `classes`
                names a column that is not there.
        """
        unknown = sorted(set(classes or {}) - set(arrays))
        if unknown:
            raise DataError(f"classes name {unknown}, but the columns are {list(arrays)}")
        lengths = {key: len(values) for key, values in arrays.items()}
        if not any(lengths.values()):
            raise DataError(f"a data set needs at least one row, and {name} has none")
        if len(set(lengths.values())) != 1:
            raise DataError(f"all arrays must have the same number of rows, these have {lengths}")
        dataset = cls.__new__(cls)
        described = {
            key: _described(key, values, (classes or {}).get(key)) for key, values in arrays.items()
        }
        dataset.name = name
        dataset.columns = {key: column for key, (column, _) in described.items()}
        dataset.part, dataset._root, dataset._shards = "arrays", None, ()
        dataset._mapped = ()
        dataset._set_blocks({key: [_frozen(rows)] for key, (_, rows) in described.items()})
        dataset.statistics = {
            key: column_statistics(column, rows) for key, (column, rows) in described.items()
        }
        digest = hashlib.sha256()
        for column, rows in described.values():
            digest.update(repr(column).encode())
            for array in (rows.offsets, rows.values) if isinstance(rows, Ragged) else (rows,):
                digest.update(array.tobytes())
        dataset.digest = digest.hexdigest()
        return dataset

    def _set_blocks(self, blocks: dict[str, list[Values]]) -> None:
        self._blocks = {
            name: Blocks([block for block in column if not isinstance(block, Ragged)])
            for name, column in blocks.items()
            if not self.columns[name].is_ragged
        }
        self._ragged = {
            name: [block for block in column if isinstance(block, Ragged)]
            for name, column in blocks.items()
            if self.columns[name].is_ragged
        }
        sizes = [len(block) for block in next(iter(blocks.values()), [])]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.num_rows = int(self._starts[-1])

    def __reduce__(self) -> Any:
        """Another process opens the folder anew; arrays in memory travel with it."""
        return super().__reduce__() if self._root is None else (Dataset, (self._root, self.part))

    def __len__(self) -> int:
        """The number of rows."""
        return self.num_rows

    def __repr__(self) -> str:
        """Names the part and its size."""
        return f"<Dataset {self.name}, {self.num_rows:,} rows of {', '.join(self.columns)}>"

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards of this part; none for arrays in memory."""
        return self._shards

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            DataError: there is none; the message lists what there is.
        """
        if name not in self.columns:
            raise DataError(f"{self.name} has no column {name!r}; it has {list(self.columns)}")
        return self.columns[name]

    def blocks(self, name: str, rows: NDArray[np.int64]) -> Blocks:
        """A column of fixed shape, to gather these rows from.

        Raises:
            IndexError: a row number lies outside of the data set.
            DataError: there is no such column, or its rows differ in length.
        """
        if name not in self._blocks:
            raise DataError(f"column {name!r} of {self.name} is {self.column(name).kind}")
        self._check_rows(rows)
        return self._blocks[name]

    def gather(self, name: str, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copies rows of a column of fixed shape into `out` `(len(rows), *shape)`, from the map.

        Raises:
            IndexError: a row number lies outside of the data set.
            DataError: there is no such column, or its rows differ in length.
        """
        self.blocks(name, rows).copy(rows, out)

    def ragged(
        self, name: str, rows: NDArray[np.int64]
    ) -> Iterator[tuple[Ragged, NDArray[np.int64], NDArray[np.int64]]]:
        """Rows of differing length, by shard: the shard's, row numbers in it, places in `rows`.

        Raises:
            IndexError: a row number lies outside of the data set.
            DataError: there is no such column, or its rows are all of one shape.
        """
        if name not in self._ragged:
            raise DataError(f"column {name!r} of {self.name} is {self.column(name).kind}")
        self._check_rows(rows)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shard_of):
            places = np.flatnonzero(shard_of == number)
            yield self._ragged[name][number], rows[places] - self._starts[number], places

    def _check_rows(self, rows: NDArray[np.int64]) -> None:
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_rows):
            raise IndexError(f"{self.name}: rows must lie in [0, {self.num_rows})")

    def gather_padded(
        self, name: str, rows: NDArray[np.int64], out: NDArray[Any], lengths: NDArray[np.int64]
    ) -> None:
        """Copies sequences or texts into `out` `(len(rows), T, *step)`, zeros behind each.

        `lengths` `(len(rows),)` becomes the number of steps; what is longer than T is cut.

        Raises:
            IndexError: a row number lies outside of the data set, or a shard is damaged.
            DataError: there is no such column.
        """
        for block, local, places in self.ragged(name, rows):
            block.pad_into(local, places, out, lengths)

    def encoded(self, name: str, rows: NDArray[np.int64]) -> list[memoryview]:
        """The bytes of encoded pictures, views of the map.

        Raises:
            IndexError: a row number lies outside of the data set, or a shard is damaged.
            DataError: there is no such column.
        """
        found = [memoryview(b"")] * len(rows)
        for block, local, places in self.ragged(name, rows):
            for place, row in zip(places.tolist(), local.tolist(), strict=True):
                found[place] = block.row(row).data
        return found

    def give_back(self) -> None:
        """Lets the system have the memory of what was read; reading on faults it in again."""
        for shard in self._mapped:
            shard.give_back()

    def verify(self, *, rank: int = 0, world_size: int = 1) -> None:
        """Compares every `world_size`-th shard from `rank` on with its digest.

        Raises:
            DataError: a shard is missing or damaged.
        """
        if self._root is not None:
            for shard in self._shards[rank::world_size]:
                verify_shard(self._root, shard)


def _frozen(rows: Values) -> Values:
    """As read-only as a memory map: what is written to a batch never reaches the data."""
    if isinstance(rows, Ragged):
        return Ragged(*(_frozen_array(array) for array in (rows.offsets, rows.values)))
    return _frozen_array(rows)


def _frozen_array(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.setflags(write=False)
    return view


def _described(
    name: str, values: Values | Sequence[str], classes: Sequence[str] | None
) -> tuple[Column, Values]:
    if isinstance(values, Ragged):
        longest = int(values.lengths.max(initial=0))
        column = Column(
            name=name,
            kind="sequence",
            dtype=str(values.values.dtype),
            shape=values.step,
            max_length=longest,
        )
        return column, values
    if not isinstance(values, np.ndarray) and all(isinstance(value, str) for value in values):
        texts = Ragged.of_bytes([value.encode() for value in values])
        longest = int(texts.lengths.max(initial=0))
        return Column(name=name, kind="text", dtype="uint8", max_length=longest), texts
    array = np.asarray(values)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if classes is not None:
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(
                f"label column {name!r} must be whole numbers of shape (N,), "
                f"not {array.dtype} of shape {array.shape}"
            )
        array = array.astype(np.int64)
        return Column(name=name, kind="label", dtype="int64", classes=tuple(classes)), array
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise DataError(f"column {name!r} has dtype {array.dtype}; numbers are wanted")
    kind: Literal["tensor", "number"] = "tensor" if array.ndim > 1 else "number"
    column = Column(name=name, kind=kind, dtype=str(array.dtype), shape=array.shape[1:])
    check_column(column)
    return column, array.copy(order="C")
