"""Tables of Arrow as columns of a data set: what CSV, Parquet, JSON lines and Arrow files share.

| a field of | becomes |
|---|---|
| whole numbers, floats | number; booleans one of uint8 |
| fixed-size lists, fixed-shape tensors | tensor |
| lists of numbers or of fixed-size lists | sequence |
| strings | text |
| strings, whole numbers or booleans, being the label; dictionaries of such | label |
| bytes, or a struct with `bytes`, being the picture | image |

Everything else is refused by its name, with the types that it can be read as.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.errors import DataError
from data_pipeline.manifest import Column
from data_pipeline.shards import Values
from data_pipeline.sources.arrow_values import (
    Unfit,
    number_values,
    sequence_values,
    tensor_values,
    text_values,
)
from data_pipeline.sources.checks import (
    BLOCK_BYTES,
    TYPES,
    check_named,
    is_label,
    runs,
    stack_columns,
    stack_rows,
    stacks,
)
from data_pipeline.sources.pictures import picture_column, read_pictures
from data_pipeline.sources.source import Block, Piece, Reading

TABLE_TYPES = (*TYPES, "bool", "text", "image", "grey")
"""What a table's column can be read as; `grey` pictures have one channel."""

IMAGE_NAMES = ("image",)
"""A column of bytes called so holds pictures where no column is named."""


@dataclass(frozen=True)
class Field:
    """What becomes of one field.

    Attributes:
        name: The field's.
        column: What it is in the data set.
        cast: The Arrow type it is read as, where that is another.
        inner: For a struct with `bytes`, the name of that.
    """

    name: str
    column: Column
    cast: pa.DataType | None = None
    inner: str | None = None


@dataclass(frozen=True)
class Layout:
    """What becomes of a table's fields.

    Attributes:
        fields: Those that are read, in their order.
        stack: By new tensor column, its number columns.
        missing_allowed: Whether a number that is missing becomes NaN.
    """

    fields: tuple[Field, ...]
    stack: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing_allowed: bool = False

    @property
    def names(self) -> list[str]:
        """The names of the fields that are read."""
        return [entry.name for entry in self.fields]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns; stacked ones come last."""
        return stack_columns([entry.column for entry in self.fields], self.stack)

    def block(self, table: pa.Table, origins: Sequence[str], bad: Sequence[str] = ()) -> Block:
        """The rows of a table.

        Raises:
            DataError: a value is missing, or is not of the type it is read as.
        """
        rows: dict[str, Values | Sequence[str]] = {}
        kept = np.arange(len(table))
        wrong = list(bad)
        for entry in (entry for entry in self.fields if entry.column.name in self._pictures):
            encoded = _encoded(entry, table, origins)
            _, readable, messages = read_pictures(encoded, origins, entry.column)
            kept = np.intersect1d(kept, np.array(readable, np.int64))
            wrong.extend(messages)
        if len(kept) < len(table):
            table, origins = table.take(pa.array(kept)), [origins[row] for row in kept.tolist()]
        for entry in self.fields:
            rows[entry.name] = self._values(entry, table, origins)
        return Block(stack_rows(rows, self.columns, self.stack), origins, tuple(wrong))

    @property
    def _pictures(self) -> set[str]:
        return {entry.name for entry in self.fields if entry.inner is not None}

    def _values(
        self, entry: Field, table: pa.Table, origins: Sequence[str]
    ) -> Values | Sequence[str]:
        if entry.inner is not None:
            return read_pictures(_encoded(entry, table, origins), origins, entry.column)[0]
        array = table.column(entry.name).combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks) if array.num_chunks else array.type
        column = entry.column
        if array.null_count and not (column.kind == "number" and self.missing_allowed):
            row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
            keep = ", or keep missing numbers with --missing keep" * (column.kind == "number")
            raise DataError(
                f"column {entry.name!r} has no value in {origins[row]}: fill it, take the row "
                f"out{keep}"
            )
        try:
            if entry.cast is not None and array.type != entry.cast:
                array = pc.cast(array, entry.cast)
            if column.kind == "label":
                return _label_names(entry.name, array, origins)
            if column.kind == "text":
                return text_values(array)
            if column.kind == "tensor":
                return tensor_values(array, column)
            if column.kind == "sequence":
                return sequence_values(array, column)
            return number_values(array, column.dtype)
        except (pa.ArrowException, Unfit) as error:
            raise DataError(
                f"column {entry.name!r} does not fit its type {column.kind} of {column.dtype} "
                f"somewhere from {origins[0]} to {origins[-1]}: {error}; give another with "
                f"--type {entry.name}=TYPE"
            ) from error


@dataclass(frozen=True)
class Tables:
    """A source of tables."""

    pieces: tuple[Piece, ...]
    layout: Layout

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the data set."""
        return self.layout.columns

    def blocks(
        self, table: pa.Table, origins: Sequence[str], bad: Sequence[str] = ()
    ) -> Iterator[Block]:
        """The rows of a table in blocks of the usual size; the first tells of all that is bad.

        Raises:
            DataError: a value is missing, or is not of the type it is read as.
        """
        row_bytes = table.nbytes / max(len(table), 1)
        for start, stop in runs(len(table), row_bytes, BLOCK_BYTES):
            rows = table.slice(start, stop - start)
            yield self.layout.block(rows, origins[start:stop], () if start else bad)


def layout_of(where: Path, schema: pa.Schema, reading: Reading) -> Layout:
    """What becomes of the fields of a table at `where`.

    Raises:
        DataError: an option names a column that is not there or that does not fit it, or a field
            is of a type that cannot be kept.
    """
    names = list(schema.names)
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(
            f"{where}: the names of its columns are not unique, {twice} stand there twice; "
            "give it a first line of names if it has none"
        )
    stacked = {part for parts in reading.stack.values() for part in parts if part != "*"}
    for option, given in (
        ("--label", [reading.label] if reading.label is not None else []),
        ("--image", [reading.image] if reading.image is not None else []),
        ("--type", list(reading.types)),
        ("--stack", sorted(stacked)),
        ("--split-by", [reading.split_by] if reading.split_by is not None else []),
    ):
        for name in given:
            check_named(where, option, name, names)
    fields = []
    for entry in schema:
        wanted = reading.types.get(entry.name)
        if wanted != "skip":
            fields.append(_field(where, entry, reading, wanted))
    if not fields:
        raise DataError(f"{where}: all of its columns are skipped")
    stack = stacks(where, [entry.column for entry in fields], reading)
    return Layout(tuple(fields), stack, reading.missing == "keep")


def cast_type(name: str, wanted: str | None) -> pa.DataType | None:
    """The Arrow type that a column of a type of `TABLE_TYPES` is read as, where there is one.

    Raises:
        DataError: it is none of `TABLE_TYPES`.
    """
    if wanted is not None and wanted not in TABLE_TYPES:
        raise DataError(
            f"column {name!r} cannot be read as {wanted!r}: there are {', '.join(TABLE_TYPES)}"
        )
    if wanted in ("text", "label"):
        return pa.large_string()
    if wanted in (None, "image", "grey", "skip"):
        return None
    return pa.bool_() if wanted == "bool" else pa.from_numpy_dtype(np.dtype(wanted))


def _field(where: Path, entry: pa.Field, reading: Reading, wanted: str | None) -> Field:
    name, found = entry.name, entry.type
    if name == reading.split_by:
        return Field(name, Column(name=name, kind="text", dtype="uint8"), pa.large_string())
    if _is_label(name, found, reading):
        return Field(name, _label(where, name, found))
    if (
        wanted in ("image", "grey")
        or name == reading.image
        or (reading.image is None and name in IMAGE_NAMES and _bytes_of(found) is not None)
    ):
        inner = _bytes_of(found)
        if inner is None:
            raise DataError(f"{where}: column {name!r} is {found}: pictures are encoded, as binary")
        column = picture_column(name, 1 if wanted == "grey" else 3, reading.size)
        return Field(name, column, inner=inner)
    cast = cast_type(name, wanted)
    return _plain(where, name, found if cast is None else cast, cast, reading)


def _plain(
    where: Path, name: str, found: pa.DataType, cast: pa.DataType | None, reading: Reading
) -> Field:
    """A field that is neither label nor picture."""
    if _is_text(found):
        column = Column(name=name, kind="text", dtype="uint8")
        return Field(name, column, pa.large_string())
    dtype = _dtype(found)
    if dtype is not None:
        if reading.missing == "keep" and not pa.types.is_floating(found):
            # What is missing is known only when all has been read; NaN needs a float.
            dtype, cast = "float64", pa.float64()
        return Field(name, Column(name=name, kind="number", dtype=dtype), cast)
    shape, value = _fixed(found)
    dtype = _dtype(value)
    if shape and dtype is not None:
        return Field(name, Column(name=name, kind="tensor", dtype=dtype, shape=shape))
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        shape, value = _fixed(found.value_type)
        dtype = _dtype(value)
        if dtype is not None:
            column = Column(name=name, kind="sequence", dtype=dtype, shape=shape)
            return Field(name, column)
    raise DataError(
        f"{where}: column {name!r} is {found}, which no data set holds: {_way(name, found)}"
    )


def _way(name: str, found: pa.DataType) -> str:
    skip = f"or leave it out with --type {name}=skip"
    if pa.types.is_null(found):
        return f"no value shows its type; name one with --type {name}=TYPE, {skip}"
    if _bytes_of(found) is not None:
        return f"if it holds pictures, say --image {name}, {skip}"
    if pa.types.is_decimal(found):
        return f"read it as --type {name}=float64, {skip}"
    if pa.types.is_temporal(found):
        return f"read it as --type {name}=text or --type {name}=int64, {skip}"
    return f"numbers, lists of numbers and strings go; write it as one of these, {skip}"


def _is_label(name: str, found: pa.DataType, reading: Reading) -> bool:
    fits = _is_text(found) or pa.types.is_integer(found) or pa.types.is_boolean(found)
    of_classes = pa.types.is_dictionary(found) and name not in reading.types
    return of_classes or is_label(name, reading, fits=fits)


def _label(where: Path, name: str, found: pa.DataType) -> Column:
    names = found.value_type if pa.types.is_dictionary(found) else found
    if not (_is_text(names) or pa.types.is_integer(names) or pa.types.is_boolean(names)):
        raise DataError(
            f"{where}: column {name!r} is to be the label, but is {found}: classes are strings, "
            f"whole numbers or booleans; for a number to be predicted leave --label out"
        )
    return Column(name=name, kind="label", dtype="int64")


def _label_names(name: str, array: pa.Array, origins: Sequence[str]) -> Sequence[str]:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    names: list[str] = pc.cast(array, pa.large_string()).to_pylist()
    for row, value in enumerate(names):
        if not value:
            raise DataError(
                f"label column {name!r} has no value in {origins[row]}: fill it, or take the row "
                "out"
            )
    return names


def _encoded(entry: Field, table: pa.Table, origins: Sequence[str]) -> list[bytes]:
    array = table.column(entry.name)
    if entry.inner:
        array = pc.struct_field(array, entry.inner)
    encoded: list[bytes | None] = array.to_pylist()
    for row, value in enumerate(encoded):
        if value is None:
            raise DataError(
                f"column {entry.name!r} has no picture in {origins[row]}: take the row out"
            )
    return [value for value in encoded if value is not None]


def _is_text(found: pa.DataType) -> bool:
    return found in (pa.string(), pa.large_string(), pa.string_view())


def _bytes_of(found: pa.DataType) -> str | None:
    """For bytes "", for a struct with bytes (as Hugging Face writes pictures) the name of them."""
    if pa.types.is_struct(found):
        names = [found.field(place).name for place in range(found.num_fields)]
        inside = found.field("bytes").type if "bytes" in names else None
        return "bytes" if inside is not None and _bytes_of(inside) == "" else None
    is_bytes = pa.types.is_binary(found) or pa.types.is_large_binary(found)
    return "" if is_bytes or pa.types.is_fixed_size_binary(found) else None


def _dtype(found: pa.DataType) -> str | None:
    if pa.types.is_boolean(found):
        return "uint8"
    if pa.types.is_integer(found) or pa.types.is_floating(found):
        return str(np.dtype(found.to_pandas_dtype()))
    return None


def _fixed(found: pa.DataType) -> tuple[tuple[int, ...], pa.DataType]:
    """The shape of (nested) fixed-size lists or a fixed-shape tensor, and the values' type."""
    if isinstance(found, pa.FixedShapeTensorType):
        return tuple(found.shape), found.value_type
    if pa.types.is_fixed_size_list(found):
        inner, value = _fixed(found.value_type)
        return (found.list_size, *inner), value
    return (), found
