"""Who is missing where an exchange has failed: each worker's word, and what is made of them."""

import pytest
import torch

from distrain.errors import LostPeerError
from distrain.parallel import roll_call
from distrain.parallel.communicator import Alone
from distrain.parallel.roll_call import call_roll, explained, listening_s, loss_text, word_of
from distrain.parallel.world import World
from tests.thread_workers import ThreadCommunicator, ThreadGroup


class Board(dict[str, str]):
    """A store of torch's, as far as it is used."""

    def set(self, key: str, value: str) -> None:
        self[key] = value

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key].encode()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "LISTEN_S", {"closed": 0.0, "timeout": 0.1})
    monkeypatch.setattr(roll_call, "NOTED_S", 0.0)


@pytest.mark.usefixtures("_impatient")
def test_who_leaves_a_word_is_there_and_the_others_are_waited_for_a_moment() -> None:
    board, closed = Board(), list[int]()
    first = call_roll(board, 0, 3, "closed", lambda: closed.append(0))
    assert first == {0: "closed"}
    second = call_roll(board, 2, 3, "timeout", lambda: closed.append(2))
    assert second == {0: "closed", 2: "timeout"}
    assert closed == [0, 2], "so that the others notice"


def test_who_has_waited_too_long_waits_for_those_that_are_late_and_all_end_together() -> None:
    assert listening_s("closed", 0, 0.0) == 2.0
    assert listening_s("timeout", 0, 0.0) == 10.0
    assert listening_s("timeout", 0, 4.0) == 6.0, "as long as the first who has said it"
    assert listening_s("timeout", 0, 50.0) == 2.0
    assert listening_s("timeout", 1, 4.0) == 7.0, "rank 0 notes the end before"


@pytest.mark.usefixtures("_impatient")
def test_a_restarted_group_does_not_hear_the_words_of_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = Board()
    call_roll(board, 0, 2, "closed", lambda: None)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert call_roll(board, 1, 2, "closed", lambda: None) == {1: "closed"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({0: "closed", 2: "closed"}, "rank 1 has ended early: the others waited in an exchange"),
        ({0: "timeout"}, "ranks 1 and 2 stand still for longer than parallel.timeout_s: the"),
        ({0: "closed", 1: "timeout", 2: "closed"}, "though every worker is there: one was too"),
        ({}, "the connection to another worker was lost (rank 0, in step 8 or after step 7)"),
    ],
)
def test_the_text_names_who_is_missing_and_where(words: dict[int, str], told: str) -> None:
    text = loss_text(words, 0, 3, 7, "gloo says")
    assert told in text
    assert "in step 8 or after step 7" in text
    assert "gloo says" in text


def test_a_timeout_is_told_from_a_closed_connection() -> None:
    assert word_of("Timed out waiting 4000ms for recv operation to complete") == "timeout"
    assert word_of("Connection closed by peer [127.0.0.1]:21413") == "closed"


def test_other_errors_and_those_of_a_worker_alone_stay_as_they_are() -> None:
    cpu = torch.device("cpu")
    pair = World(ThreadCommunicator(ThreadGroup(2), 0), cpu)
    for error in (ValueError("planted"), RuntimeError("shape"), LostPeerError("said already")):
        assert explained(error, pair, 3) is error
    lost = RuntimeError("[/gloo/pair.cc:553] Connection closed by peer")
    assert explained(lost, World(Alone(), cpu), 3) is lost
    told = explained(lost, pair, 3)
    assert isinstance(told, LostPeerError)
    assert "did it end early?" in str(told)
