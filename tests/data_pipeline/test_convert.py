"""The conversion itself, with a source that lives in memory: parts, duplicates, taking up again."""

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import DataError, Dataset, LostProcessError, StorageError, convert, write
from data_pipeline.conversion import passes
from data_pipeline.conversion.workplace import Workplace
from data_pipeline.manifest import Column
from data_pipeline.sources.source import Block, Piece, Reading
from tests.folders import hashes, names
from tests.read_back import column_of

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


def test_rows_are_read_back_in_source_order_with_classes_sorted_as_numbers(tmp_path: Path) -> None:
    source = Numbers(47, names=("10", "9", "-1"))
    report = convert(source, tmp_path / "d", rows_per_shard=20)
    assert report.rows == {"train": 47}
    assert report.classes == {"label": ("-1", "9", "10")}
    assert column_of(tmp_path / "d", "x") == list(range(47))
    assert column_of(tmp_path / "d", "text") == [f"tëxt {row}" for row in range(47)]
    assert column_of(tmp_path / "d", "label") == [[2, 1, 0][row % 3] for row in range(47)]
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


def test_a_stratified_split_goes_by_the_label(tmp_path: Path) -> None:
    convert(Numbers(90), tmp_path / "d", split={"test": 0.2}, stratify=True)
    assert np.bincount(column_of(tmp_path / "d", "label", "test")).tolist() == [6, 6, 6]
    with pytest.raises(DataError, match="needs a column of labels, and there is none among"):
        convert(Numbers(90, columns=(X, TEXT)), tmp_path / "e", split={"test": 0.2}, stratify=True)


def test_the_source_s_own_parts_are_kept_and_shares_are_taken_of_train(tmp_path: Path) -> None:
    source = Numbers(60, parts=("train", "test"))
    assert convert(source, tmp_path / "own").rows == {"train": 30, "test": 30}
    assert column_of(tmp_path / "own", "x", "test") == [row for row in range(60) if row // 10 % 2]
    report = convert(source, tmp_path / "more", split={"validation": 0.3})
    assert report.rows["test"] == 30
    assert report.rows["train"] + report.rows["validation"] == 30
    with pytest.raises(DataError, match=r"the split names \['test'\], but the source itself has"):
        convert(source, tmp_path / "no", split={"test": 0.3})


def test_a_column_can_say_the_parts_and_is_left_out(tmp_path: Path) -> None:
    report = convert(Numbers(30), tmp_path / "d", split_by="label")
    assert report.rows == {"b": 10, "10": 10, "9": 10}
    assert list(Dataset(tmp_path / "d", "b").columns) == ["x", "text"]
    assert column_of(tmp_path / "d", "x", "10") == list(range(1, 30, 3))


def test_duplicates_within_and_across_parts_are_counted_and_named(tmp_path: Path) -> None:
    # Rows 0 to 14 come twice, in the parts a, b | b, a | a, b ... of ten rows each.
    source = Numbers(30, repeat=15, parts=("a", "b"))
    report = convert(source, tmp_path / "d")
    assert (report.duplicates_within, report.duplicates_across) == (5, 10)
    assert report.named_duplicates[0] == "row 15 (b) = row 0 (a)"
    assert len(report.named_duplicates) == 5
    same_part = convert(Numbers(30, repeat=15), tmp_path / "e", split={"test": 0.3})
    assert (same_part.duplicates_within, same_part.duplicates_across) == (15, 0)


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
    assert column_of(tmp_path / "d", "x") == [row for row in range(40) if row not in source.bad]
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
        f"{tmp_path}/.d.partial holds work on another source, or under other options or "
        "versions: it is started anew"
    ]
    assert column_of(tmp_path / "d", "x") == list(range(41))


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
    assert column_of(tmp_path / "real", "x") == list(range(5))
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
