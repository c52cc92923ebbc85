"""Which failure is the cause, from reports as workers leave them."""

from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from distrain.errors import ConfigError, ExitCode, LostPeerError, exit_code_of
from launch.failure import (
    Cause,
    Report,
    first_cause,
    is_retried,
    read_reports,
    report_of,
    write_report,
)


def report(rank: int, time_ns: int, *, lost_peer: bool = False, code: int = 70) -> Report:
    return Report(rank, time_ns, code, f"error of rank {rank}", lost_peer=lost_peer)


def test_the_earliest_error_is_the_cause() -> None:
    reports = [report(0, 300), report(2, 100), report(1, 200)]
    assert first_cause(reports, {0: 70, 1: 70, 2: 70}).rank == 2


def test_the_loss_of_a_peer_is_no_cause_where_the_peer_has_said_why() -> None:
    reports = [report(0, 100, lost_peer=True, code=69), report(1, 200)]
    assert first_cause(reports, {0: 69, 1: 70}).text == "error of rank 1"


def test_a_killed_worker_is_the_cause_where_the_others_lost_their_peer() -> None:
    cause = first_cause([report(0, 100, lost_peer=True, code=69)], {0: 69, 1: -9})
    assert (cause.rank, cause.exit_code) == (1, ExitCode.WORKER_LOST)
    assert cause.text == "worker 1 was killed by SIGKILL"


def test_a_worker_that_leaves_without_a_word_is_named_with_its_code() -> None:
    lost = report(0, 100, lost_peer=True, code=69)
    cause = first_cause([lost], {0: 69, 3: 5})
    assert (cause.rank, cause.exit_code) == (3, 5)
    assert cause.text == "worker 3 ended with exit code 5 and said nothing"


def test_a_stop_is_nobodys_failure() -> None:
    reports = [report(2, 100, code=75), report(0, 101, code=75)]
    assert first_cause(reports, {0: 75, 2: 75}).rank == 0
    lost = report(1, 100, lost_peer=True, code=69)
    silent = first_cause([lost], {0: 75, 1: 69})
    assert (silent.rank, silent.exit_code) == (0, ExitCode.STOPPED)
    assert "with everything saved: run the same command to go on" in silent.text


@pytest.mark.parametrize("code", [64, 65, 70, 74, 75, 78, 130])
def test_what_would_only_happen_again_is_not_retried(code: int) -> None:
    assert not is_retried(Cause(0, code, ""))


@pytest.mark.parametrize("code", [1, 3, 69, 255])
def test_a_lost_worker_is_worth_another_start(code: int) -> None:
    assert is_retried(Cause(0, code, ""))


def test_errors_for_the_user_are_told_without_a_traceback() -> None:
    told = report_of(ConfigError("epochs is 0"), rank=1, time_ns=0)
    assert (told.text, told.exit_code) == ("epochs is 0", ExitCode.CONFIG)
    assert report_of(DataError("gone"), rank=0, time_ns=0).exit_code == ExitCode.DATA


def test_other_errors_are_told_with_their_traceback() -> None:
    def fails() -> None:
        raise ZeroDivisionError("1/0")

    with pytest.raises(ZeroDivisionError) as caught:
        fails()
    told = report_of(caught.value, rank=0, time_ns=0)
    assert told.exit_code == ExitCode.FAULT
    assert "in fails" in told.text
    assert told.text.endswith("ZeroDivisionError: 1/0")


@pytest.mark.parametrize(
    "message",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer",
        "Connection reset by peer",
        "NCCL error: remote process exited",
    ],
)
def test_a_lost_connection_is_known_as_such(message: str) -> None:
    told = report_of(RuntimeError(message), rank=0, time_ns=0)
    assert told.lost_peer
    assert told.exit_code == ExitCode.WORKER_LOST


def test_an_error_of_the_models_is_no_lost_connection() -> None:
    told = report_of(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), rank=0, time_ns=0)
    assert not told.lost_peer


def test_reports_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = [report(0, 5), report(1, 6, lost_peer=True)]
    for each in written:
        write_report(tmp_path, each)
    assert sorted(read_reports(tmp_path), key=lambda each: each.rank) == written


def test_the_loss_of_a_peer_that_a_communicator_names_is_known_without_its_words() -> None:
    told = report_of(LostPeerError("Horovod: it has been shut down"), rank=0, time_ns=0)
    assert told.lost_peer
    assert told.exit_code == exit_code_of(LostPeerError()) == ExitCode.WORKER_LOST
    assert "Traceback" not in told.text
