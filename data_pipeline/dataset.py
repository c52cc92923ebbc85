"""A data set as training sees it: columns of rows that can be gathered by row number."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import Column, ColumnStatistics, Shard, read_manifest
from data_pipeline.shards import map_shard, verify_shard
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
        mapped = [map_shard(root, shard, manifest.columns) for shard in self._shards]
        self._set_blocks({name: [shard[name] for shard in mapped] for name in self.columns})

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        *,
        classes: Mapping[str, Sequence[str]] | None = None,
        name: str = "arrays",
    ) -> "Dataset":
        """A data set from arrays `(N, ...)` in memory, its statistics being those of the arrays.

        Floating columns are kept as float32. `classes` makes an integer column `(N,)` a label.

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
            key: _described(key, np.asarray(values), (classes or {}).get(key))
            for key, values in arrays.items()
        }
        dataset.name = name
        dataset.columns = {key: column for key, (column, _) in described.items()}
        dataset.part, dataset._root, dataset._shards = "arrays", None, ()
        dataset._set_blocks({key: [rows] for key, (_, rows) in described.items()})
        dataset.statistics = {
            key: column_statistics(column, rows) for key, (column, rows) in described.items()
        }
        digest = hashlib.sha256()
        for column, rows in described.values():
            digest.update(repr(column).encode())
            digest.update(rows.tobytes())
        dataset.digest = digest.hexdigest()
        return dataset

    def _set_blocks(self, blocks: dict[str, list[NDArray[Any]]]) -> None:
        self._blocks = blocks
        sizes = [len(block) for block in next(iter(blocks.values()), [])]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.num_rows = int(self._starts[-1])

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

    def gather(self, name: str, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copies rows of a column into `out` `(len(rows), *shape)`, straight from the map.

        Raises:
            IndexError: a row number lies outside of the data set.
            DataError: there is no such column.
        """
        self.column(name)
        if not len(rows):
            return
        if rows.min() < 0 or rows.max() >= self.num_rows:
            raise IndexError(f"{self.name}: rows must lie in [0, {self.num_rows})")
        blocks = self._blocks[name]
        # mode="clip" spares NumPy a buffered copy; the rows were checked above.
        if len(blocks) == 1:
            np.take(blocks[0], rows, axis=0, out=out, mode="clip")
            return
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shard_of):
            chosen = np.flatnonzero(shard_of == number)
            local = rows[chosen] - self._starts[number]
            out[chosen] = np.take(blocks[number], local, axis=0, mode="clip")

    def verify(self, *, rank: int = 0, world_size: int = 1) -> None:
        """Compares every `world_size`-th shard from `rank` on with its digest.

        Raises:
            DataError: a shard is missing or damaged.
        """
        if self._root is not None:
            for shard in self._shards[rank::world_size]:
                verify_shard(self._root, shard)


def _described(
    name: str, values: NDArray[Any], classes: Sequence[str] | None
) -> tuple[Column, NDArray[Any]]:
    if classes is not None:
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise DataError(
                f"label column {name!r} must be whole numbers of shape (N,), "
                f"not {values.dtype} of shape {values.shape}"
            )
        values = values.astype(np.int64)
        return Column(name=name, kind="label", dtype="int64", classes=tuple(classes)), values
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    if values.dtype.kind not in "iufb":
        raise DataError(f"column {name!r} has dtype {values.dtype}; numbers are wanted")
    kind: Literal["tensor", "number"] = "tensor" if values.ndim > 1 else "number"
    column = Column(name=name, kind=kind, dtype=str(values.dtype), shape=values.shape[1:])
    return column, values.copy(order="C")
