"""Where launchers meet: who keeps the store, who waits for it, and what is said where none is."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distrain.errors import UsageError
from launch.machines import meeting
from launch.machines.meeting import Met, NotMetError, meet
from launch.machines.node_range import NodeRange
from tests.ports import held_port
from tests.started import Started

LOOPBACK = "127.0.0.1"
ELSEWHERE = "192.0.2.1"
"""Of a block that is for documentation: no machine's address."""

JOIN_S = 0.6
"""For those whom nobody is to meet."""

MET_S = 60.0
"""For those who are to meet: a busy machine may take its time."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "SAY_AFTER_S", 0.2)
    monkeypatch.setattr(meeting, "PORT_S", 0.3)
    monkeypatch.setattr(meeting, "ANSWER_S", 0.3)


@pytest.fixture
def port() -> Iterator[int]:
    """One of loopback that nobody listens on."""
    with held_port(LOOPBACK) as port:
        yield port


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A name service of the test's own; others' names are unknown to it."""
    known: dict[str, str] = {}
    asked = socket.getaddrinfo

    def resolve(host: str, *arguments: Any, **options: Any) -> Any:
        if not host[0].isdecimal() and host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return asked(known.get(host, host), *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def met(port: int, node_rank: int | None) -> Met:
    nodes = NodeRange(1, 2, LOOPBACK, port, node_rank, MET_S)
    return meet(nodes, time.monotonic() + MET_S, lambda: None, again=False)


def why_not(
    host: str, port: int, node_rank: int | None, looks: list[None] | None = None
) -> tuple[int, str]:
    """The exit code, and what is said; `looks` gets an item for each time that it waits."""
    nodes, began = NodeRange(1, 2, host, port, node_rank, JOIN_S), time.monotonic()
    looked = [] if looks is None else looks
    with pytest.raises(NotMetError) as refused:
        meet(nodes, began + JOIN_S, lambda: looked.append(None), again=False)
    assert time.monotonic() - began < JOIN_S + 5.0, "torch's own patience has no part in it"
    assert refused.value.cause is not None
    return refused.value.cause.exit_code, refused.value.cause.text


def test_node_rank_0_listens_on_its_own_address_alone_and_another_finds_it(port: int) -> None:
    kept = met(port, 0)
    found = met(port, 1)
    assert (kept.keeps_store, found.keeps_store) == (True, False)
    assert (kept.address, found.address) == (LOOPBACK, LOOPBACK)
    kept.store.set("key", "told")
    assert found.store.get("key") == b"told"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=1.0)


def test_without_node_ranks_the_first_with_the_address_keeps_the_store(port: int) -> None:
    first, second = met(port, None), met(port, None)
    assert (first.keeps_store, second.keeps_store) == (True, False)


def test_a_name_is_waited_for_and_resolved_anew(
    port: int, names: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    names["pod-0.run"] = ELSEWHERE  # of the pod before
    first, looks = NodeRange(1, 2, "pod-0.run", port, 0, MET_S), list[None]()

    def look() -> None:
        looks.append(None)
        if len(looks) == 3:  # by then it is said what is waited for
            del names["pod-0.run"]
        elif len(looks) == 5:
            names["pod-0.run"] = LOOPBACK

    assert meet(first, time.monotonic() + MET_S, look, again=False).keeps_store
    waits, warns = capsys.readouterr().err.splitlines()
    assert waits == (
        f"distrain: --rendezvous pod-0.run:{port}: pod-0.run ({ELSEWHERE}) is no address of this "
        "machine: trying for up to 60 s"
    )
    assert warns == (
        f"distrain: pod-0.run is {LOOPBACK} here, which no other machine reaches: give "
        "--rendezvous an address of this machine instead"
    )


def test_a_name_that_nobody_knows_is_a_mistake_unless_it_may_come_and_no_answer_is_the_networks(
    port: int, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not names
    assert why_not("pod-0.run", port, 1) == (
        69,
        f"--rendezvous pod-0.run:{port}: pod-0.run can't be resolved (Name or service not known), "
        "tried for 0.6 s: give a name or an address of the machine that keeps the rendezvous",
    )
    # Without a node rank nothing says that the name will come: at once.
    at_once = why_not("pod-0.run", port, None)
    assert at_once[0] == 78
    assert ", tried" not in at_once[1]

    def away(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", away)
    assert why_not("pod-0.run", port, 1)[0] == 69


def test_node_rank_0_on_another_machine_is_refused_at_once(
    port: int, names: dict[str, str]
) -> None:
    looks = list[None]()
    assert why_not(ELSEWHERE, port, 0, looks) == (
        78,
        f"--rendezvous {ELSEWHERE}:{port}: {ELSEWHERE} is no address of this machine: "
        "--node-rank 0 keeps the rendezvous: start it on the machine that has the address, or "
        "give one of this machine",
    )
    assert not looks, "it does not wait"
    # A name may be this machine's in a moment.
    names["login"] = ELSEWHERE
    code, said = why_not("login", port, 0)
    assert code == 69
    assert f"login ({ELSEWHERE}) is no address of this machine, tried" in said


def test_a_port_that_another_program_has_is_named() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        assert why_not(LOOPBACK, port, 0) == (
            78,
            f"--rendezvous {LOOPBACK}:{port}: another program of this machine has port {port}, "
            "tried for 0.3 s: --node-rank 0 keeps the rendezvous there: end that program, or give "
            "another port",
        )


def test_what_is_no_rendezvous_is_not_waited_for_longer_than_anything_else(tmp_path: Path) -> None:
    script, held = tmp_path / "script.py", list[socket.socket]()
    script.touch()

    def serve() -> None:
        """Closes one connection, talks on the next, and is silent on all others."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            if len(held) == 1:
                connection.close()
            elif len(held) == 2:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    listener = socket.create_server((LOOPBACK, 0))
    place = f"{LOOPBACK}:{listener.getsockname()[1]}"
    more = ("--nodes", 2, "--node-rank", 1, "--rendezvous", place, "--join-timeout", 5)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with Started("launch", "--workers", 1, *more, script) as run:
        assert run.ends() == 69
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for connection in held:
        connection.close()
    assert len(held) > 2
    assert "[E" not in run.said, "torch's own words for it help nobody"
    ended = run.said.splitlines()[-1]
    assert ended.startswith(f"distrain: nobody keeps the rendezvous at {place} (")
    assert f"tried for 5 s: is the command running on {LOOPBACK} with --node-rank 0, " in ended


def test_nobody_there_is_said(port: int) -> None:
    assert why_not(LOOPBACK, port, 1) == (
        69,
        f"nobody keeps the rendezvous at {LOOPBACK}:{port} (Connection refused), tried for 0.6 s: "
        f"is the command running on {LOOPBACK} with --node-rank 0, and may this machine reach that "
        "port?",
    )


@pytest.mark.parametrize("every", ["0.0.0.0", "[::]", "[0:0::0]"])
def test_every_address_is_none_to_keep_a_rendezvous_on(
    every: str, port: int, names: dict[str, str]
) -> None:
    with pytest.raises(UsageError, match="every address"):
        NodeRange.parse("2", f"{every}:29400")
    names["all"] = "0.0.0.0"
    assert why_not("all", port, 0)[0] == 78


@pytest.mark.parametrize("given", [(-1, None), (None, 0.0), (None, float("inf")), (0, -3.0)])
def test_numbers_out_of_range_are_refused(given: tuple[int | None, float | None]) -> None:
    with pytest.raises(UsageError, match=r"--(node-rank|join-timeout) is"):
        NodeRange.parse("2", "host:29400", *given)
