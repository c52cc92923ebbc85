import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError, StorageError
from data_pipeline.manifest import (
    FILE_NAME,
    Column,
    ColumnStatistics,
    Manifest,
    Part,
    Shard,
    read_manifest,
    write_manifest,
)

IMAGE = Column(name="image", kind="tensor", dtype="uint8", shape=(1, 8, 8))
LABEL = Column(name="label", kind="label", dtype="int64", classes=("cat", "dog"))
FIRST = Shard(path="train/00000.arrow", rows=5, size_bytes=700, sha256="ab" * 32)
SECOND = Shard(path="train/00001.arrow", rows=3, size_bytes=500, sha256="cd" * 32)
OTHER = Shard(path="validation/00000.arrow", rows=2, size_bytes=400, sha256="ef" * 32)
IMAGE_STATISTICS = ColumnStatistics(count=8, mean=(0.1,), std=(1.0 / 3.0,))
LABEL_STATISTICS = ColumnStatistics(count=8, label_counts=(5, 3))
MANIFEST = Manifest(
    name="pets",
    columns=(IMAGE, LABEL),
    parts={"train": Part(shards=(FIRST, SECOND)), "validation": Part(shards=(OTHER,))},
    statistics={"image": IMAGE_STATISTICS, "label": LABEL_STATISTICS},
)


def changed(instance: Any, **fields: Any) -> Any:
    return dataclasses.replace(instance, **fields)


def with_shards(*shards: Shard) -> Manifest:
    return dataclasses.replace(MANIFEST, parts={**MANIFEST.parts, "train": Part(shards=shards)})


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    assert read_manifest(tmp_path).digest == MANIFEST.digest
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5),
    name=st.text(st.characters(exclude_categories=["Cs"])),
)
@settings(deadline=None, max_examples=30)
def test_every_bit_of_a_number_and_every_letter_of_a_name_comes_back(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], name: str
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    statistics = {name: ColumnStatistics(count=1, mean=tuple(values), std=tuple(values))}
    manifest = Manifest(name=name, columns=(), parts={}, statistics=statistics)
    write_manifest(folder, manifest)
    found = read_manifest(folder)
    assert found == manifest
    assert [value.hex() for value in found.statistics[name].mean] == [v.hex() for v in values]


def test_a_manifest_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    text = (tmp_path / FILE_NAME).read_text()
    assert json.loads(text)["manifest"]["parts"]["validation"]["shards"] == [
        {"path": OTHER.path, "rows": 2, "size_bytes": 400, "sha256": OTHER.sha256}
    ]
    assert text.count("\n") > 20
    assert text.endswith("}\n")


def test_a_part_has_the_rows_of_its_shards() -> None:
    assert MANIFEST.parts["train"].rows == 8
    assert Part(shards=()).rows == 0


def test_the_digest_changes_with_anything_in_the_manifest() -> None:
    parts = MANIFEST.parts
    others: list[Manifest] = [
        changed(MANIFEST, name="pet"),
        changed(MANIFEST, columns=(LABEL, IMAGE)),
        changed(MANIFEST, columns=(IMAGE,)),
        changed(MANIFEST, columns=(IMAGE, changed(LABEL, classes=("dog", "cat")))),
        changed(MANIFEST, columns=(IMAGE, changed(LABEL, name="labels"))),
        changed(MANIFEST, columns=(IMAGE, changed(LABEL, kind="number"))),
        changed(MANIFEST, columns=(IMAGE, changed(LABEL, max_length=1))),
        changed(MANIFEST, columns=(changed(IMAGE, shape=(1, 64)), LABEL)),
        changed(MANIFEST, columns=(changed(IMAGE, dtype="int8"), LABEL)),
        changed(MANIFEST, parts={"train": parts["train"]}),
        changed(MANIFEST, parts={"train": parts["train"], "test": parts["validation"]}),
        with_shards(SECOND, FIRST),
        with_shards(FIRST),
        with_shards(changed(FIRST, path="train/0.arrow"), SECOND),
        with_shards(changed(FIRST, rows=4), SECOND),
        with_shards(changed(FIRST, size_bytes=701), SECOND),
        with_shards(changed(FIRST, sha256="ac" + "ab" * 31), SECOND),
        *(
            changed(
                MANIFEST, statistics={"image": statistics, "label": MANIFEST.statistics["label"]}
            )
            for statistics in (
                changed(IMAGE_STATISTICS, count=9),
                changed(IMAGE_STATISTICS, mean=(0.1 + 2**-56,)),
                changed(IMAGE_STATISTICS, std=(0.3,)),
                changed(IMAGE_STATISTICS, label_counts=(1,)),
                changed(IMAGE_STATISTICS, least=(0.0,)),
                changed(IMAGE_STATISTICS, greatest=(0.0,)),
                changed(IMAGE_STATISTICS, missing=1),
            )
        ),
    ]
    digests = [MANIFEST.digest, *(other.digest for other in others)]
    assert len(set(digests)) == len(digests)


def test_the_digest_does_not_depend_on_the_order_in_which_parts_were_named() -> None:
    backwards: Manifest = changed(
        MANIFEST,
        parts=dict(reversed(MANIFEST.parts.items())),
        statistics=dict(reversed(MANIFEST.statistics.items())),
    )
    assert backwards.digest == MANIFEST.digest


def test_a_missing_folder_is_named_with_what_would_make_it(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    with pytest.raises(DataError) as caught:
        read_manifest(folder)
    assert str(caught.value) == (
        f"no data set at {folder}: the folder does not exist; "
        f"`distrain data convert SRC {folder}` makes one of files, and "
        f"`distrain data make NAME {folder}` writes a bundled one"
    )


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == (
        f"no data set at {tmp_path}: it holds no manifest.json; name the folder that holds one"
    )


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "digits"
    file.touch()
    with pytest.raises(DataError) as caught:
        read_manifest(file)
    assert str(caught.value) == (
        f"no data set at {file}: it is not a folder; name the folder that holds one"
    )


def refusal(folder: Path, content: bytes) -> str:
    (folder / FILE_NAME).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_manifest(folder)
    message = str(caught.value)
    assert message.startswith(str(folder / FILE_NAME))
    return message.removeprefix(str(folder / FILE_NAME))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"name": "\xff"}', b"{}", b"[" * 100_000],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    assert refusal(tmp_path, content).startswith(" is not a valid manifest: ")


@pytest.mark.parametrize("num_bytes_kept", [1, 100, 400, -3])
def test_a_cut_manifest_is_refused(tmp_path: Path, num_bytes_kept: int) -> None:
    write_manifest(tmp_path, MANIFEST)
    content = (tmp_path / FILE_NAME).read_bytes()[:num_bytes_kept]
    assert refusal(tmp_path, content).startswith(" is not a valid manifest: ")


def edited(*path: str | int, value: Any) -> bytes:
    """The file with the value at a path of the manifest replaced, and sealed again."""
    manifest = json.loads(json.dumps(dataclasses.asdict(MANIFEST)))
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return sealed({"manifest": manifest, "version": 2})


def sealed(content: dict[str, Any]) -> bytes:
    """JSON that ends with the SHA-256 of itself, whose own digits count as zeros."""
    blank = json.dumps({**content, "sha256": "0" * 64})
    return blank.replace("0" * 64, hashlib.sha256(blank.encode()).hexdigest()).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), 5),
        (("columns",), "image"),
        (("columns", 0, "kind"), "picture"),
        (("columns", 0, "shape"), ["8"]),
        (("columns", 1, "classes"), [1]),
        (("parts",), []),
        (("parts", "train", "shards", 0, "rows"), "5"),
        (("parts", "train", "shards", 0, "rows"), 5.5),
        (("parts", "train", "shards", 0, "sha256"), None),
        (("statistics", "image", "mean"), [None]),
    ],
)
def test_values_of_the_wrong_type_are_refused(
    tmp_path: Path, path: tuple[str | int, ...], value: Any
) -> None:
    message = refusal(tmp_path, edited(*path, value=value))
    assert message.startswith(" is not a valid manifest: ")
    assert f"$.manifest.{path[0]}" in message


@pytest.mark.parametrize("content", [{"version": 1, "parts": {}}, {"version": 3, "more": 1}])
def test_another_format_version_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    assert refusal(tmp_path, json.dumps(content).encode()) == (
        f" has format version {content['version']}, this program reads 2: "
        "use a matching version of distrain, or write the data set anew"
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("manifest")
    write_manifest(folder, MANIFEST)
    return folder, (folder / FILE_NAME).read_bytes()


@given(data=st.data(), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=300)
def test_a_single_flipped_bit_anywhere_is_found(
    written: tuple[Path, bytes], data: st.DataObject, bit: int
) -> None:
    folder, content = written
    damaged = bytearray(content)
    damaged[data.draw(st.integers(0, len(content) - 1))] ^= 1 << bit
    (folder / FILE_NAME).write_bytes(damaged)
    with pytest.raises(DataError, match="manifest"):
        read_manifest(folder)


def test_a_changed_value_is_told_from_a_broken_file(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    content = (tmp_path / FILE_NAME).read_bytes().replace(b'"rows": 5', b'"rows": 6')
    assert refusal(tmp_path, content).startswith(" was changed after it was written, or is damaged")


def test_names_that_look_like_the_seal_do_no_harm(tmp_path: Path) -> None:
    column = Column(name='"sha256": "', kind="number", dtype="int8")
    manifest: Manifest = changed(MANIFEST, name='"sha256": "' + "0" * 64, columns=(column,))
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize(
    "shard_path", ["../other/0.arrow", "train/../../0.arrow", "/etc/passwd", "..", "/"]
)
def test_a_shard_outside_of_the_folder_is_refused(tmp_path: Path, shard_path: str) -> None:
    content = edited("parts", "train", "shards", 0, "path", value=shard_path)
    assert refusal(tmp_path, content) == (
        f": part train: shard path {shard_path!r} leaves the folder"
    )


def test_a_name_with_two_dots_in_it_is_no_way_out(tmp_path: Path) -> None:
    content = edited("parts", "train", "shards", 0, "path", value="train/a..b.arrow")
    (tmp_path / FILE_NAME).write_bytes(content)
    assert read_manifest(tmp_path).parts["train"].shards[0].path == "train/a..b.arrow"


@pytest.mark.parametrize("key", ["rows", "size_bytes"])
def test_a_negative_size_is_refused(tmp_path: Path, key: str) -> None:
    content = edited("parts", "train", "shards", 0, key, value=-1)
    assert refusal(tmp_path, content) == (
        ": part train: shard 'train/00000.arrow' has a negative size"
    )


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    content = edited("columns", 1, "name", value="image")
    assert refusal(tmp_path, content) == ": column names are not unique: ['image', 'image']"


@pytest.mark.parametrize(
    ("key", "value"), [("dtype", "float99"), ("dtype", "bool"), ("shape", [0]), ("shape", [-1, 2])]
)
def test_a_column_that_no_shard_can_hold_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    message = refusal(tmp_path, edited("columns", 0, key, value=value))
    assert message.startswith(f": column 'image' has {key} ")


def test_a_manifest_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*missing/manifest\.json: "):
        write_manifest(tmp_path / "missing", MANIFEST)


def test_who_has_a_manifest_open_reads_on_in_the_old_one_when_it_is_replaced(
    tmp_path: Path,
) -> None:
    write_manifest(tmp_path, MANIFEST)
    before = (tmp_path / FILE_NAME).read_bytes()
    with (tmp_path / FILE_NAME).open("rb") as reader:
        write_manifest(tmp_path, dataclasses.replace(MANIFEST, name="cats"))
        assert reader.read() == before
    assert read_manifest(tmp_path).name == "cats"
