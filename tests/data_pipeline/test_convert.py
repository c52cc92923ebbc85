"""The conversion itself, with a source that lives in memory: parts, duplicates, taking up again."""

import hashlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import DataError, Dataset, LostProcessError, StorageError, convert, write
from data_pipeline.conversion import passes
from data_pipeline.conversion.parts import by_class, by_content, duplicates, sorted_classes
from data_pipeline.conversion.workplace import Workplace
from data_pipeline.manifest import Column
from data_pipeline.sources.source import Block, Piece, Reading

X = Column(name="x", kind="number", dtype="int64")
TEXT = Column(name="text", kind="text", dtype="uint8")
LABEL = Column(name="label", kind="label", dtype="int64")


@dataclass(frozen=True)
class Numbers:
    """Rows 0 to `count` in pieces of ten; bad ones are left out, deadly ones end the process."""

    count: int
    bad: tuple[int, ...] = ()
    deadly: int | None = None
    fails: int | None = None
    parts: tuple[str | None, ...] = (None,)
    repeat: int = 10**9
    names: tuple[str, ...] = ("b", "10", "9")
    columns: tuple[Column, ...] = (X, TEXT, LABEL)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple(
            Piece(
                f"from {start}",
                (),
                self.parts[start // 10 % len(self.parts)],
                start,
                min(start + 10, self.count),
            )
            for start in range(0, self.count, 10)
        )

    def read(self, piece: Piece) -> Iterator[Block]:
        middle = (piece.start + piece.stop) // 2
        for start, stop in ((piece.start, middle), (middle, piece.stop)):
            if self.deadly is not None and start <= self.deadly < stop:
                os.kill(os.getpid(), 9)
            if self.fails is not None and start <= self.fails < stop:
                raise DataError(f"row {self.fails} cannot be read")
            rows = [row for row in range(start, stop) if row not in self.bad]
            yield Block(
                {
                    "x": np.array([row % self.repeat for row in rows], np.int64),
                    "text": [f"tëxt {row % self.repeat}" for row in rows],
                    "label": [self.names[row % len(self.names)] for row in rows],
                },
                [f"row {row}" for row in rows],
                tuple(f"row {row} is bad" for row in range(start, stop) if row in self.bad),
            )


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def column(folder: Path, name: str, part: str = "train") -> list[Any]:
    dataset = Dataset(folder, part)
    described = dataset.column(name)
    rows = np.arange(len(dataset))
    if described.kind == "text":
        return [value.tobytes().decode() for value in dataset.encoded(name, rows)]
    out = np.zeros((len(dataset), *described.shape), described.dtype)
    dataset.gather(name, rows, out)
    return list(out.tolist())


def test_rows_are_read_back_in_source_order_with_classes_sorted_as_numbers(tmp_path: Path) -> None:
    source = Numbers(47, names=("10", "9", "-1"))
    report = convert(source, tmp_path / "d", rows_per_shard=20)
    assert report.rows == {"train": 47}
    assert report.classes == {"label": ("-1", "9", "10")}
    assert column(tmp_path / "d", "x") == list(range(47))
    assert column(tmp_path / "d", "text") == [f"tëxt {row}" for row in range(47)]
    assert column(tmp_path / "d", "label") == [[2, 1, 0][row % 3] for row in range(47)]
    assert [shard.rows for shard in Dataset(tmp_path / "d").shards] == [20, 20, 7]
    assert Dataset(tmp_path / "d").column("text").max_length == 8
    statistics = Dataset(tmp_path / "d").statistics
    assert statistics["x"].mean == pytest.approx([23.0], rel=1e-15)
    assert statistics["x"].std == pytest.approx([np.arange(47).std()], rel=1e-14)
    assert (statistics["x"].least, statistics["x"].greatest) == ((0.0,), (46.0,))
    assert statistics["label"].label_counts == (15, 16, 16)
    assert names(tmp_path) == ["d"]


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    found = []
    for workers in (1, 2, 4):
        (tmp_path / str(workers)).mkdir()
        folder = tmp_path / str(workers) / "d"
        options: dict[str, Any] = {"split": {"test": 0.25}, "rows_per_shard": 7}
        convert(Numbers(95), folder, workers=workers, **options)
        found.append(hashes(folder))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 10


@given(
    some=st.sets(st.integers(0, 10**6), min_size=1, max_size=60),
    more=st.sets(st.integers(0, 10**6), max_size=60),
    share=st.floats(0.01, 0.45),
)
@settings(deadline=None, max_examples=100)
def test_rows_that_are_added_move_no_other_to_another_part(
    some: set[int], more: set[int], share: float
) -> None:
    fractions = {"validation": share, "test": share}
    before, both = sorted(some), sorted(some | more, reverse=True)
    part_before = by_content(keys_of(before), fractions)
    part_after = dict(zip(both, by_content(keys_of(both), fractions).tolist(), strict=True))
    assert part_before.tolist() == [part_after[row] for row in before]


def keys_of(rows: Sequence[int]) -> Any:
    words = [hashlib.blake2b(str(row).encode(), digest_size=16).digest() for row in rows]
    return np.frombuffer(b"".join(words), "<u8").reshape(-1, 2)


def test_a_type_that_widens_when_rows_are_added_moves_none(tmp_path: Path) -> None:
    whole = [{"x": row, "t": "a"} for row in range(200)]
    wide = [{"x": float(row), "t": "a"} for row in range(200)] + [{"x": 0.5, "t": "a"}]
    for name, rows in (("int", whole), ("float", wide)):
        write(tmp_path / name, rows, split={"test": 0.3})
    before, after = column(tmp_path / "int", "x", "test"), column(tmp_path / "float", "x", "test")
    assert before == [value for value in after if value != 0.5]


@pytest.mark.parametrize("shares", [{"test": 0.5}, {"validation": 0.1, "test": 0.2}])
def test_shares_are_about_those_asked_for(shares: dict[str, float]) -> None:
    counts = np.bincount(by_content(keys_of(range(20_000)), shares), minlength=len(shares) + 1)
    for number, share in enumerate(shares.values(), start=1):
        assert counts[number] / 20_000 == pytest.approx(share, abs=0.015)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=80))
@settings(deadline=None, max_examples=100)
def test_a_stratified_split_gives_each_class_its_exact_share(labels: list[int]) -> None:
    numbers = np.array(labels, np.int64)
    part_of = by_class(keys_of(range(len(labels))), numbers, {"validation": 0.25, "test": 0.5})
    for label in set(labels):
        counts = np.bincount(part_of[numbers == label], minlength=3)
        count = counts.sum()
        first, second = np.floor(0.25 * count + 0.5), np.floor(0.75 * count + 0.5)
        assert counts.tolist() == [count - second, first, second - first]


def test_a_stratified_split_goes_by_the_label(tmp_path: Path) -> None:
    convert(Numbers(90), tmp_path / "d", split={"test": 0.2}, stratify=True)
    assert np.bincount(column(tmp_path / "d", "label", "test")).tolist() == [6, 6, 6]
    with pytest.raises(DataError, match="needs a column of labels, and there is none among"):
        convert(Numbers(90, columns=(X, TEXT)), tmp_path / "e", split={"test": 0.2}, stratify=True)


def test_the_source_s_own_parts_are_kept_and_shares_are_taken_of_train(tmp_path: Path) -> None:
    source = Numbers(60, parts=("train", "test"))
    assert convert(source, tmp_path / "own").rows == {"train": 30, "test": 30}
    assert column(tmp_path / "own", "x", "test") == [row for row in range(60) if row // 10 % 2]
    report = convert(source, tmp_path / "more", split={"validation": 0.3})
    assert report.rows["test"] == 30
    assert report.rows["train"] + report.rows["validation"] == 30
    with pytest.raises(DataError, match=r"the split names \['test'\], but the source itself has"):
        convert(source, tmp_path / "no", split={"test": 0.3})


def test_a_column_can_say_the_parts_and_is_left_out(tmp_path: Path) -> None:
    report = convert(Numbers(30), tmp_path / "d", split_by="label")
    assert report.rows == {"b": 10, "10": 10, "9": 10}
    assert list(Dataset(tmp_path / "d", "b").columns) == ["x", "text"]
    assert column(tmp_path / "d", "x", "10") == list(range(1, 30, 3))


def test_duplicates_within_and_across_parts_are_counted_and_named(tmp_path: Path) -> None:
    # Rows 0 to 14 come twice, in the parts a, b | b, a | a, b ... of ten rows each.
    source = Numbers(30, repeat=15, parts=("a", "b"))
    report = convert(source, tmp_path / "d")
    assert (report.duplicates_within, report.duplicates_across) == (5, 10)
    assert report.named_duplicates[0] == "row 15 (b) = row 0 (a)"
    assert len(report.named_duplicates) == 5
    same_part = convert(Numbers(30, repeat=15), tmp_path / "e", split={"test": 0.3})
    assert (same_part.duplicates_within, same_part.duplicates_across) == (15, 0)


@given(rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40))
@settings(deadline=None, max_examples=150)
def test_duplicates_are_those_of_a_plain_loop(rows: list[tuple[int, int]]) -> None:
    keys = np.array([[key // 2, key] for key, _ in rows], np.uint64)
    part_of = np.array([part for _, part in rows], np.int16)
    within = across = 0
    named, first, seen = [], {}, set()
    for number, (key, part) in enumerate(rows):
        if key not in first:
            first[key] = number
        elif (key, part) in seen:
            within += 1
        else:
            across += 1
            named.append((number, first[key]))
        seen.add((key, part))
    found = duplicates(keys, part_of, most=3)
    assert (found.within, found.across, found.named) == (within, across, tuple(named[:3]))


def test_classes_are_sorted_as_numbers_where_all_are() -> None:
    assert sorted_classes(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert sorted_classes(["1.5", "10", "2"]) == ("1.5", "2", "10")
    assert sorted_classes(["b", "10", "9"]) == ("10", "9", "b")


def test_rows_that_cannot_be_read_are_left_out_up_to_a_number(tmp_path: Path) -> None:
    source = Numbers(40, bad=(3, 17, 38))
    with pytest.raises(DataError) as caught:
        convert(source, tmp_path / "d", skip_bad=1)
    assert str(caught.value) == (
        "row 3 is bad; row 17 is bad: only 1 may be left out; mend them, or allow more with "
        f"--skip-bad N; what was read is kept in {tmp_path}/.d.partial"
    )
    report = convert(source, tmp_path / "d", skip_bad=3)
    assert report.skipped == ["row 3 is bad", "row 17 is bad", "row 38 is bad"]
    assert column(tmp_path / "d", "x") == [row for row in range(40) if row not in source.bad]
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (Numbers(0), {}, "the source has no rows: a data set needs at least one"),
        (Numbers(20, fails=13), {}, "row 13 cannot be read"),
        (Numbers(3), {"split": {"test": 1e-9}}, "part 'test' would be empty: of 3 rows none"),
        (Numbers(3), {"split": {"train": 0.5}}, "the split names 'train': that is what the other"),
        (Numbers(3), {"split": {"a": 0.5, "b": 0.5}}, "leave nothing for 'train'"),
        (Numbers(3), {"split": {"a": 1.5}}, r"a share of 1.5; give one in \(0, 1\)"),
        (Numbers(3), {"split": {"a/b": 0.5}}, "'a/b' cannot be a part's name"),
        (Numbers(3), {"split": {"manifest.json": 0.5}}, "cannot be a part's name"),
        (Numbers(3), {"split": {"a": 0.5}, "split_by": "label"}, "give one or the other"),
        (Numbers(3), {"stratify": True}, "a stratified split needs shares"),
        (Numbers(3), {"split_by": "fold"}, r"goes by column 'fold', but there are \['x', 'text'"),
        (Numbers(3, columns=(LABEL,)), {}, "a data set needs at least one that is no label"),
        (Numbers(3, columns=(X, X)), {}, "column names are not unique"),
        (Numbers(3), {"workers": 0}, "workers is 0; it must be 1 or more"),
        (Numbers(3), {"skip_bad": -1}, "skip_bad is -1; it must be 0 or more"),
        (Numbers(3), {"rows_per_shard": 0}, "rows_per_shard is 0; it must be 1 or more"),
        (Numbers(9, names=("..", "a")), {"split_by": "label"}, "'..' cannot be a part's name"),
    ],
)
def test_what_makes_no_data_set_is_refused_and_leaves_nothing(
    tmp_path: Path, source: Numbers, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        convert(source, tmp_path / "d", **options)
    assert names(tmp_path) == []


def test_a_destination_that_exists_is_left_alone_and_an_empty_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    convert(Numbers(5), tmp_path / "d")
    before = hashes(tmp_path / "d")
    with pytest.raises(DataError, match="exists already: name another destination"):
        convert(Numbers(6), tmp_path / "d")
    assert hashes(tmp_path / "d") == before
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="exists already"):
        convert(Numbers(6), tmp_path / "file")
    with pytest.raises(StorageError, match="cannot write"):
        convert(Numbers(6), tmp_path / "file" / "d")
    assert names(tmp_path) == ["d", "file"]


def test_two_conversions_into_one_destination_do_not_meet(tmp_path: Path) -> None:
    with (
        Workplace(tmp_path / "d").held(),
        pytest.raises(DataError, match=r"another conversion into .*d is going on"),
    ):
        convert(Numbers(5), tmp_path / "d")


def test_finished_pieces_and_shards_are_not_done_again(tmp_path: Path) -> None:
    done: list[tuple[str, int]] = []

    def stop_at(what: str, number: int) -> Any:
        def progress(now: str, count: int, total: int) -> None:
            del total
            done.append((now, count))
            if (now, count) == (what, number):
                raise KeyboardInterrupt

        return progress

    convert(Numbers(95), tmp_path / "whole" / "d", rows_per_shard=10)
    for what, number in (("reading", 3), ("reading", 9), ("writing", 0), ("writing", 6)):
        with pytest.raises(KeyboardInterrupt):
            convert(Numbers(95), tmp_path / "d", rows_per_shard=10, progress=stop_at(what, number))
        assert names(tmp_path) == [".d.partial", "whole"]
    staged = tmp_path / ".d.partial" / "staged"
    shards = tmp_path / ".d.partial" / "result" / "train"
    before = {path: path.stat().st_mtime_ns for path in (*staged.iterdir(), *shards.iterdir())}
    assert len(before) == 20 + 6
    with pytest.raises(KeyboardInterrupt):
        convert(Numbers(95), tmp_path / "d", rows_per_shard=10, progress=stop_at("writing", 10))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    convert(Numbers(95), tmp_path / "d", rows_per_shard=10)
    assert hashes(tmp_path / "d") == hashes(tmp_path / "whole" / "d")


def test_work_under_other_options_is_thrown_away_and_that_is_said(tmp_path: Path) -> None:
    def stop(what: str, count: int, total: int) -> None:
        del total
        if (what, count) == ("writing", 1):
            raise KeyboardInterrupt

    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        convert(Numbers(50), tmp_path / "d", rows_per_shard=10, progress=stop)
    convert(Numbers(41), tmp_path / "d", rows_per_shard=10, tell=told.append)
    assert told == [
        f"{tmp_path}/.d.partial holds work on another source, or under other options: "
        "it is started anew"
    ]
    assert column(tmp_path / "d", "x") == list(range(41))


def test_what_was_broken_off_behind_the_last_step_is_told_to_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Workplace) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Workplace, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(Numbers(20), tmp_path / "d")
    assert names(tmp_path) == [".d.partial", "d"]
    assert convert(Numbers(20), tmp_path / "d").rows == {"train": 20}
    assert names(tmp_path) == ["d"]
    with pytest.raises(DataError, match="exists already"):
        convert(Numbers(20), tmp_path / "d")


def test_the_order_of_the_shares_is_an_option_too(tmp_path: Path) -> None:
    def stop(what: str, count: int, total: int) -> None:
        if what == "writing" and count == total - 1:
            raise KeyboardInterrupt

    shares = {"validation": 0.3, "test": 0.2}
    swapped = dict(reversed(shares.items()))
    options: dict[str, Any] = {"rows_per_shard": 10}
    convert(Numbers(50), tmp_path / "whole" / "d", split=swapped, **options)
    with pytest.raises(KeyboardInterrupt):
        convert(Numbers(50), tmp_path / "d", split=shares, progress=stop, **options)
    convert(Numbers(50), tmp_path / "d", split=swapped, **options)
    assert hashes(tmp_path / "d") == hashes(tmp_path / "whole" / "d")


def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    convert(Numbers(5), tmp_path / "link")
    assert column(tmp_path / "real", "x") == list(range(5))
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["link", "real"]


def test_a_worker_that_is_killed_is_told_and_the_work_is_kept(tmp_path: Path) -> None:
    with pytest.raises(LostProcessError, match="a worker process was lost") as caught:
        convert(Numbers(40, deadly=25), tmp_path / "d", workers=2)
    assert caught.value.exit_code == 69
    assert names(tmp_path) == [".d.partial"]
    assert not multiprocessing.active_children()


def test_the_first_error_in_source_order_is_told_whatever_the_number_of_workers(
    tmp_path: Path,
) -> None:
    source = Numbers(60, fails=11, bad=(3, 55))
    for workers in (1, 2):
        with pytest.raises(DataError, match="row 11 cannot be read"):
            convert(source, tmp_path / "d", workers=workers, skip_bad=5)
    assert names(tmp_path) == []
    assert not multiprocessing.active_children()


def test_shards_are_cut_at_the_usual_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "SHARD_BYTES", 1_000)
    convert(Numbers(100), tmp_path / "d")
    assert len(Dataset(tmp_path / "d").shards) > 2


def test_all_kinds_of_rows_are_written_as_they_come(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    walk = Column(name="walk", kind="sequence", dtype="float32", shape=(2,))
    columns = (X, TEXT, walk, Column(name="t", kind="tensor", dtype="uint8", shape=(1, 2, 2)))
    rows: list[dict[str, Any]] = [
        {
            "x": row,
            "text": "é" * (row % 4),
            "walk": generator.normal(size=(row % 3, 2)).astype(np.float32),
            "t": generator.integers(0, 255, (1, 2, 2), np.uint8),
        }
        for row in range(50)
    ]
    report = write(tmp_path / "d", iter(rows), columns=columns, rows_per_shard=20)
    assert report.rows == {"train": 50}
    dataset = Dataset(tmp_path / "d")
    assert dataset.column("walk").max_length == 2
    assert dataset.column("text").max_length == 6
    assert column(tmp_path / "d", "text") == [row["text"] for row in rows]
    out, lengths = np.zeros((50, 2, 2), np.float32), np.zeros(50, np.int64)
    dataset.gather_padded("walk", np.arange(50), out, lengths)
    for place, row in enumerate(rows):
        assert lengths[place] == len(row["walk"])
        assert np.array_equal(out[place, : lengths[place]], row["walk"])
    steps = np.concatenate([row["walk"] for row in rows]).astype(np.float64)
    assert dataset.statistics["walk"].mean == pytest.approx(steps.mean(axis=0), rel=1e-12)
    assert dataset.statistics["walk"].std == pytest.approx(steps.std(axis=0), rel=1e-12)


def test_the_first_row_says_what_undeclared_columns_hold(tmp_path: Path) -> None:
    rows = [{"a": 1.5, "b": np.zeros(3, np.int16), "c": "text", "y": name} for name in "bab"]
    write(tmp_path / "d", rows, label="y")
    assert list(Dataset(tmp_path / "d").columns.values()) == [
        Column(name="a", kind="number", dtype="float64"),
        Column(name="b", kind="tensor", dtype="int16", shape=(3,)),
        Column(name="c", kind="text", dtype="uint8", max_length=4),
        Column(name="y", kind="label", dtype="int64", classes=("a", "b")),
    ]
    assert column(tmp_path / "d", "y") == [1, 0, 1]


def test_rows_can_name_their_part(tmp_path: Path) -> None:
    rows = [{"a": number, "fold": "test" if number % 3 else "train"} for number in range(9)]
    assert write(tmp_path / "d", rows, split_by="fold").rows == {"train": 3, "test": 6}
    assert list(Dataset(tmp_path / "d").columns) == ["a"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "there are no rows"),
        ([{"a": 1}, {"b": 1}], {}, r"row 1 has \['b'\], but the columns are \['a'\]"),
        ([{"a": [1]}, {"a": [1, 2]}], {}, r"row 1 has int64 of shape \(2,\): declare it"),
        ([{"a": 1}, {"a": 0.5}], {}, r"shape \(\), but row 1 has float64"),
        ([{"a": None}], {}, "column 'a' has NoneType .* in row 0"),
        ([{"a": 1}], {"label": "y"}, r"the label is 'y', but row 0 has \['a'\]"),
        ([{"a": 1.0}, {"a": np.nan}], {}, "column 'a' has NaN or infinity in row 1; a missing"),
    ],
)
def test_rows_that_make_no_data_set_are_refused_and_leave_nothing(
    tmp_path: Path, rows: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path / "d", rows, **options)
    assert names(tmp_path) == []


def test_missing_values_are_counted_where_they_are_allowed(tmp_path: Path) -> None:
    rows = [{"a": value} for value in (1.0, np.nan, 3.0)]
    write(tmp_path / "d", rows, missing_allowed=True)
    statistics = Dataset(tmp_path / "d").statistics["a"]
    assert (statistics.count, statistics.missing, statistics.mean) == (3, 1, (2.0,))
    with pytest.raises(DataError, match="column 'a' has not a single value"):
        write(tmp_path / "e", [{"a": np.nan}], missing_allowed=True)


def test_rows_broken_off_by_their_maker_leave_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", rows())
    assert names(tmp_path) == []


def test_a_path_and_its_destination_must_lie_apart(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("x\n1\n")
    for folder in (tmp_path / "in", tmp_path / "in" / "out"):
        with pytest.raises(DataError, match="lies in the source"):
            convert(tmp_path / "in", folder, reading=Reading())


def test_label_indices_are_checked_with_their_origins(tmp_path: Path) -> None:
    known = Column(name="label", kind="label", dtype="int64", classes=("a", "b"))
    rows = [{"x": 1, "label": 0}, {"x": 2, "label": 2}]
    with pytest.raises(DataError, match=r"labels from 0 to 2, but 2 classes.*row 0 to row 1"):
        write(tmp_path / "d", rows, columns=(X, known))
