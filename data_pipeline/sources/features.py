"""What the features of a Hugging Face data set say, and Arrow arrays of them as rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import DTYPES, Column
from data_pipeline.ragged import Ragged
from data_pipeline.shards import Values
from data_pipeline.sources.checks import as_type, is_label
from data_pipeline.sources.pictures import array_column, read_arrays
from data_pipeline.sources.source import Reading

Kind = Literal["number", "text", "label", "picture", "array", "sequence"]

_LISTS = ("List", "Sequence", "LargeList")
_ARRAYS = ("Array2D", "Array3D", "Array4D", "Array5D")
_TEXTS = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")


@dataclass(frozen=True)
class Feature:
    """One column as the data set describes it.

    Attributes:
        dtype: Of numbers, arrays and sequences; bool is uint8.
        shape: Of a row, or of a sequence's step.
        classes: Of a label.
    """

    name: str
    kind: Kind
    dtype: str = "uint8"
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether its rows are whole numbers."""
        return self.kind == "number" and "int" in self.dtype

    def is_label(self, reading: Reading) -> bool:
        """Whether it is read as a label.

        Raises:
            DataError: it is to be one, but holds something else than whole numbers or strings.
        """
        fits = self.is_whole or self.kind == "text"
        if self.kind == "label" and self.name != reading.split_by:
            if reading.types.get(self.name, "label") != "label":
                raise DataError(
                    f"column {self.name!r} is a ClassLabel: it can have no other --type"
                )
            return True
        asked = is_label(self.name, reading, fits=fits)
        if asked and not fits:
            raise DataError(
                f"column {self.name!r} is to be the label, but it is a feature of {self.kind}, "
                f"{self.dtype} {self.shape}: labels are whole numbers or strings"
            )
        return asked


def parse_feature(name: str, described: Any, reading: Reading) -> Feature:
    """A feature from its description in `dataset_info.json`.

    The names of classes are kept for a label, not for a sequence of labels, whose numbers are read.

    Raises:
        DataError: it is none that is read; the message names the column and its feature.
    """
    if isinstance(described, list) and len(described) == 1:  # as older versions write a list
        described = {"_type": "List", "feature": described[0]}
    kind = described.get("_type") if isinstance(described, Mapping) else None
    if kind == "Value" and described.get("dtype") in _BYTES:
        if name == reading.image:
            return Feature(name, "picture")
        raise DataError(
            f"column {name!r} holds bytes: name it with --image if they are pictures, or leave it "
            f"out with --type {name}=skip"
        )
    if kind == "Value":
        return _value(name, str(described.get("dtype")))
    if kind == "ClassLabel":
        return Feature(name, "label", "int64", classes=tuple(map(str, described.get("names", []))))
    if kind == "Image":
        return Feature(name, "picture")
    if kind in _ARRAYS:
        length, *rest = described["shape"]
        return _list(name, length, _value(name, str(described["dtype"])), rest, kind)
    if kind in _LISTS:
        length = described.get("length", -1)
        inner = parse_feature(name, described.get("feature"), reading)
        return _list(name, None if length == -1 else length, inner, inner.shape, kind)
    raise _refused(name, f"of the feature {kind or 'of several fields'}")


def _value(name: str, dtype: str) -> Feature:
    if dtype in _TEXTS:
        return Feature(name, "text")
    if dtype == "bool":
        return Feature(name, "number")
    if dtype in DTYPES:
        return Feature(name, "number", dtype)
    raise _refused(name, f"a value of {dtype}")


def _list(name: str, length: Any, inner: Feature, rest: Any, kind: Any) -> Feature:
    sizes = [*([] if length is None else [length]), *rest]
    if inner.kind not in ("number", "label", "array") or not all(
        isinstance(size, int) and size > 0 for size in sizes
    ):
        what = "of any length or size 0" if inner.kind == "number" else f"of {inner.kind}"
        raise _refused(name, f"a {kind} {what} within")
    return Feature(name, "sequence" if length is None else "array", inner.dtype, tuple(sizes))


def _refused(name: str, what: str) -> DataError:
    return DataError(
        f"column {name!r} is {what}, which is not read: numbers, bool, strings, ClassLabel, Image, "
        "Array2D to Array5D and lists of numbers are; leave it out with "
        f"--type {name}=skip, or cast it"
    )


def plain_column(feature: Feature, reading: Reading) -> Column:
    """The column of what is neither a label nor an encoded picture.

    Raises:
        DataError: it cannot be read as `reading` wants it.
    """
    name, kind = feature.name, feature.kind
    if kind == "text" or name == reading.split_by:
        if name in reading.types or name == reading.image:
            raise DataError(f"column {name!r} holds strings: neither numbers nor pictures")
        return Column(name=name, kind="text", dtype="uint8")
    if name == reading.image:
        if kind == "array":
            return array_column(name, feature.dtype, feature.shape, reading.size)
        if kind == "sequence" and reading.size is not None:
            return array_column(name, feature.dtype, (1, *feature.shape), reading.size)
        what = "pictures of different heights" if kind == "sequence" else f"a {kind} each"
        raise DataError(
            f"column {name!r} holds {what}: a column of pictures holds arrays of one shape, or of "
            "one width where a size is given that they are resized to"
        )
    shapes: dict[Kind, Literal["number", "tensor", "sequence"]]
    shapes = {"number": "number", "array": "tensor", "sequence": "sequence"}
    dtype = reading.types.get(name, feature.dtype)
    return Column(name=name, kind=shapes[kind], dtype=dtype, shape=feature.shape)


def rows_of(
    feature: Feature, column: Column, array: pa.Array, reading: Reading
) -> Values | Sequence[str]:
    """The rows of any column but one of encoded pictures.

    Raises:
        DataError: a value is missing, is none of the column's type, or a label of no class.
    """
    if feature.kind == "text" or column.kind == "text":
        found = texts(array, feature.classes)
        return found if column.kind == "label" else Ragged.of_bytes([t.encode() for t in found])
    allowed = reading.missing == "keep" and column.kind != "label" and "float" in column.dtype
    if feature.kind == "sequence":
        return _sequence_rows(feature, column, array, allowed)
    values = arrays(array, feature.shape, missing_allowed=allowed)
    if column.kind == "label":
        return _labels(values, column)
    if column.name == reading.image:
        return read_arrays(values, column)
    return as_type(values, column.dtype, "it")


def _sequence_rows(
    feature: Feature, column: Column, array: pa.Array, missing_allowed: bool
) -> Values:
    steps = sequences(array, feature.shape, missing_allowed=missing_allowed)
    if column.kind == "tensor":  # pictures of any height
        out = np.empty((len(steps), *column.shape), column.dtype)
        for row, picture in enumerate(out):
            picture[:] = read_arrays(steps.row(row)[None], column)[0]
        return out
    return Ragged(steps.offsets, as_type(steps.values, column.dtype, "it"))


def storage(array: pa.Array) -> pa.Array:
    """The plain array of one whose type another library has registered."""
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def numbers(array: pa.Array, *, missing_allowed: bool) -> NDArray[Any]:
    """Numbers `(N,)`; missing ones are NaN, whole numbers are then float64.

    Raises:
        DataError: one is missing and that is not allowed.
    """
    if array.null_count and not missing_allowed:
        raise DataError(
            "a value is missing: fill it in, drop the row, or keep missing numbers "
            "with --missing keep"
        )
    plain = array.cast(pa.uint8()) if pa.types.is_boolean(array.type) else array
    values: NDArray[Any] = plain.to_numpy(zero_copy_only=False)
    return values


def arrays(array: pa.Array, shape: tuple[int, ...], *, missing_allowed: bool) -> NDArray[Any]:
    """Nested lists of fixed lengths as `(N, *shape)`.

    Raises:
        DataError: a list is missing or of another length, or a value is missing.
    """
    num_rows, level = len(array), storage(array)
    for size in shape:
        if level.null_count:
            raise DataError("a list is missing: fill it in, or drop the row")
        lengths = pc.list_value_length(level).to_numpy(zero_copy_only=False)
        if (lengths != size).any():
            other = int(lengths[lengths != size][0])
            raise DataError(f"a list is of length {other}, but its feature says {size}")
        level = storage(level.flatten())
    return numbers(level, missing_allowed=missing_allowed).reshape(num_rows, *shape)


def sequences(array: pa.Array, shape: tuple[int, ...], *, missing_allowed: bool) -> Ragged:
    """Lists of any length, of steps of one shape.

    Raises:
        DataError: a list or a value is missing.
    """
    level = storage(array)
    if level.null_count:
        raise DataError("a list is missing: fill it in, or drop the row")
    lengths = pc.list_value_length(level).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return Ragged(offsets, arrays(level.flatten(), shape, missing_allowed=missing_allowed))


def texts(array: pa.Array, classes: Sequence[str] = ()) -> list[str]:
    """Strings; numbers as strings, those of classes as their names.

    Raises:
        DataError: one is missing, or is the number of no class.
    """
    if array.null_count:
        raise DataError("a text is missing, and no text stands for that: fill it in, or drop it")
    found = array.to_pylist()
    if classes and any(not 0 <= number < len(classes) for number in found):
        raise DataError(f"a label is outside of the {len(classes)} classes")
    return [classes[value] if classes else str(value) for value in found]


def _labels(values: NDArray[Any], column: Column) -> NDArray[np.int64]:
    outside = values[(values < 0) | (values >= len(column.classes))]
    if outside.size:
        raise DataError(
            f"the label {outside[0]} is outside of the {len(column.classes)} classes, which are "
            "numbered from 0; `datasets` writes -1 where a label is not known: drop such rows"
        )
    return values.astype(np.int64)
