"""Of a log that is sent again from a second on, what was read before is known."""

from hypothesis import given
from hypothesis import strategies as st

from launch.kubernetes.pod_logs import LogPlace

Line = tuple[int, int, str]


def written(line: Line, zone: str = "Z") -> bytes:
    """A line as a node's log has it: seconds of a minute, nanoseconds, text."""
    second, nanos, text = line
    fraction = f".{nanos:09}".rstrip("0") if nanos else ""
    return f"2026-11-23T07:05:{second:02}{fraction}{zone} {text}\n".encode()


@st.composite
def logs(draw: st.DrawFn) -> list[Line]:
    """Lines in order, many of the same second, some of the very same time."""
    nanos = st.sampled_from([0, 1, 5, 100_000_000, 999_999_999])
    times = draw(st.lists(st.tuples(st.integers(0, 3), nanos), max_size=12))
    return [(*time, f"line {at}") for at, time in enumerate(sorted(times))]


@given(logs(), st.lists(st.integers(0, 12), max_size=6), st.sampled_from(["Z", "+00:00"]))
def test_each_line_comes_once_wherever_the_log_breaks(
    log: list[Line], breaks: list[int], zone: str
) -> None:
    place, told = LogPlace(), []
    for sent in [*breaks, len(log)]:
        (since,) = [value for _, value in place.begin()] or ["2026-11-23T07:05:00+00:00"]
        answered = [line for line in log if f"2026-11-23T07:05:{line[0]:02}" >= since[:19]]
        skipped = len(log) - len(answered)
        for line in answered[: max(0, sent - skipped)]:
            text = place.new(written(line, zone))
            told += [] if text is None else [text]
    assert told == [text for _, _, text in log]


def test_times_of_other_zones_are_asked_for_as_one() -> None:
    place = LogPlace()
    assert place.new(b"2026-11-23T09:05:01.5+02:00 step 1\n") == "step 1"
    assert place.begin() == [("sinceTime", "2026-11-23T07:05:01+00:00")]
    assert place.new(b"2026-11-23T09:05:01.500000000+02:00 step 1\n") is None
    assert place.new(b"2026-11-23T07:05:01.6Z step 2\n") == "step 2"


def test_what_the_node_itself_says_has_no_time_and_is_shown() -> None:
    place = LogPlace()
    told = "unable to retrieve container logs for containerd://5"
    assert place.new(told.encode()) == told
    assert place.begin() == []


def test_bytes_that_are_no_text_and_empty_lines_pass() -> None:
    place = LogPlace()
    assert place.new(b"2026-11-23T07:05:01Z \xff\xfe done\n") == "\ufffd\ufffd done"
    assert place.new(b"2026-11-23T07:05:02Z \n") == ""
    assert place.new(b"2026-11-23T07:05:03Z 7%\r100%\n") == "7%\r100%"
