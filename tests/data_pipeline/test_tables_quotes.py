"""Quotes in CSV and TSV: cut into pieces, a file has the rows that pyarrow finds in the whole."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import DataError, Dataset, convert
from data_pipeline.sources import csv_files, lines
from data_pipeline.sources.lines import spans
from data_pipeline.sources.source import Reading

MANY = "".join(f'"multi\nline {row}",{row}\n' for row in range(60))


def rows_of(content: bytes, delimiter: str) -> list[str]:
    """The text of each row, as pyarrow reads it; rows may have any number of values."""
    odd: list[str] = []

    def keep(row: pyarrow.csv.InvalidRow) -> str:
        odd.append(row.text)
        return "skip"

    table = pyarrow.csv.read_csv(
        pa.BufferReader(content),
        read_options=pyarrow.csv.ReadOptions(column_names=["a", "b"], use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=keep
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={"a": pa.string(), "b": pa.string()}
        ),
    )
    return sorted([*map(str, table.to_pylist()), *odd])


def whole(content: bytes, delimiter: str) -> list[str] | None:
    try:
        return rows_of(content, delimiter)
    except pa.ArrowInvalid:
        return None


@given(
    text=st.text(st.sampled_from('ab,\t"\n\r'), max_size=60),
    size=st.integers(1, 30),
    buffer=st.integers(1, 8),
    name=st.sampled_from(["a.csv", "a.tsv"]),
)
@settings(deadline=None, max_examples=500)
def test_pieces_have_the_rows_of_the_whole_whatever_the_quotes(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: int, buffer: int, name: str
) -> None:
    delimiter = "," if name == "a.csv" else "\t"
    # Two values a line at least, since an empty line is no row.
    content = f"x{delimiter}{text}{delimiter}y\n".encode()
    file = tmp_path_factory.mktemp("quotes") / name
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BUFFER", buffer)
        try:
            found = [content[span.start : span.stop] for span in spans(file, size, quoted=True)]
        except DataError:
            assert is_open_at_the_end(content.decode(), delimiter)
            return
    assert not is_open_at_the_end(content.decode(), delimiter)
    assert b"".join(found) == content
    expected = whole(content, delimiter)
    pieces = [piece for piece in found if piece.strip(b"\r\n")]
    if expected is not None:
        assert sorted(row for piece in pieces for row in rows_of(piece, delimiter)) == expected


def is_open_at_the_end(text: str, delimiter: str) -> bool:
    """Sign by sign: a quote opens at the start of a value, and closes unless written twice."""
    inside, before, place = False, "\n", 0
    while place < len(text):
        sign = text[place]
        if inside and text[place : place + 2] == '""':
            place += 1
        elif sign == '"' and (inside or before in ("\n", "\r", delimiter)):
            inside = not inside
        before = text[place]
        place += 1
    return inside


def counted(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """The pieces, the rows and the bad rows."""
    path.write_text(text)
    monkeypatch.setattr(csv_files, "PIECE_BYTES", 200)
    source = csv_files.open_source(path, Reading())
    blocks = [block for piece in source.pieces for block in source.read(piece)]
    found = sum(len(block.origins) for block in blocks), sum(len(block.bad) for block in blocks)
    return len(source.pieces), *found


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (f'a,b\n5" pipe,1\n{MANY}6" pipe,2\n', 62),
        (f'a,b\n5" pipe,1\n{MANY}', 61),
        (f'a,b\n"5"" pipe",1\n{MANY}', 61),
        ("a,b\n" + '5" pipe,1\n' * 61, 61),
        (f'\ufeff"a\nb",c\n{MANY}', 60),
    ],
)
def test_an_inch_mark_is_no_quote(
    tmp_path: Path, text: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, found, bad = counted(tmp_path / "a.csv", text, monkeypatch)
    assert pieces > 2
    assert (found, bad) == (rows, 0)


def test_a_quote_opens_behind_a_carriage_return_and_behind_the_mark_of_utf_8(
    tmp_path: Path,
) -> None:
    for first in (b'a\r"b\nc",d\n', b'\xef\xbb\xbf"b\nc",d\n'):
        (tmp_path / "a.csv").write_bytes(first + b"1,2\n")
        found = [(span.start, span.stop) for span in spans(tmp_path / "a.csv", 1, quoted=True)]
        assert found == [(0, len(first)), (len(first), len(first) + 4)]


def test_a_quote_that_never_closes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n5" pipe,"1\n')
    with pytest.raises(DataError, match="a double quote that opens in line 1 or behind it"):
        list(spans(tmp_path / "a.csv", 100, quoted=True))


def test_lines_that_end_with_a_carriage_return_are_refused_by_that_name(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"a,b\r1,2\r3,4\r")
    with pytest.raises(DataError, match=r"ends its lines with CR \(\\r\) alone, not with LF"):
        csv_files.open_source(file, Reading())
    file.write_bytes(b'a,b\r\n1,"2\r"\r\n')
    assert len(list(spans(file, 100, quoted=True))) == 1
    file.write_bytes(b'"a\r",b')
    assert len(list(spans(file, 100, quoted=True))) == 1


@given(
    cells=st.lists(st.text(st.sampled_from('ab,"\n\r é'), max_size=6), min_size=1, max_size=30),
    size=st.integers(1, 60),
)
@settings(deadline=None, max_examples=150)
def test_a_text_file_is_cut_at_ends_of_rows_only(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], size: int
) -> None:
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    file = tmp_path_factory.mktemp("lines") / "a.csv"
    file.write_bytes("\n".join(quoted).encode())
    found = list(spans(file, size, quoted=True))
    content = file.read_bytes()
    assert b"".join(content[span.start : span.stop] for span in found) == content
    line = 1
    for span in found:
        piece = content[span.start : span.stop]
        assert piece.count(b'"') % 2 == 0
        assert span.first_line == line
        ends = piece.count(b"\n")
        assert span.num_lines == ends + (not piece.endswith(b"\n"))
        line += ends


def test_a_quote_within_a_column_s_name_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('size 5",b\n1,2\n3,4\n')
    convert(tmp_path / "a.csv", tmp_path / "d")
    assert list(Dataset(tmp_path / "d").columns) == ['size 5"', "b"]
