"""The state of torch elastic's rendezvous as JSON: what comes over the network is not unpickled.

The clocks of machines differ, and torch compares one's heartbeats with another's time. Here each
machine takes the time at which it has seen a heartbeat change.
"""

import json
import pickle
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from torch._C._distributed_c10d import Store
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    RendezvousBackend,
    Token,
    _NodeDesc,
    _RendezvousState,
)

from launch.node_range import STORE_THREAD

T = TypeVar("T")

ANSWER_S = 10.0
"""So long a store has to answer, or it is lost."""

_KEY = "distrain/rendezvous"
_NOTHING = "-"
_FOR_WAITING = timedelta(seconds=1)


class StoreLink:
    """Calls of a store with a time limit: torch's own wait for a dead link until TCP gives up."""

    def __init__(self, store: Store, answer_s: float = ANSWER_S) -> None:
        """`store` is that of the machine that hosts the rendezvous."""
        self._store, self._answer_s = store, answer_s
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self.is_lost = False
        threading.Thread(target=self._serve, name=STORE_THREAD, daemon=True).start()

    def call(self, operation: Callable[[Store], T]) -> T:
        """What the store answers.

        Raises:
            RendezvousConnectionError: it is lost; from then on always.
        """
        if self.is_lost:
            raise RendezvousConnectionError("the store does not answer any more")
        answer: Future[T] = Future()
        self._calls.put((lambda: operation(self._store), answer))
        try:
            return answer.result(self._answer_s)
        except (RuntimeError, ValueError, OSError, TimeoutError) as error:
            self.is_lost = True
            raise RendezvousConnectionError(f"the store does not answer: {error}") from error

    def _serve(self) -> None:
        while True:
            operation, answer = self._calls.get()
            try:
                answer.set_result(operation())
            except BaseException as error:  # noqa: BLE001 - raised by the caller
                answer.set_exception(error)


class JsonBackend(RendezvousBackend):
    """Keeps the rendezvous' state in a store, as text."""

    def __init__(self, link: StoreLink) -> None:
        """Makes the entry, unless it is there."""
        self._link = link
        self._seen: dict[_NodeDesc, tuple[str, datetime]] = {}
        link.call(lambda store: store.compare_set(_KEY, "", _NOTHING))

    @property
    def name(self) -> str:
        """The rendezvous' name."""
        return "distrain"

    def get_state(self) -> tuple[bytes, Token] | None:
        """As torch's: the state, pickled by this very process, and its token."""
        return self._told(self._link.call(lambda store: store.get(_KEY)))

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        """As torch's: sets it where `token` is still that of what is there."""
        text = self._encoded(pickle.loads(state))
        expected = token.decode() if isinstance(token, bytes) else _NOTHING
        now = self._link.call(lambda store: store.compare_set(_KEY, expected, text))
        told = self._told(now)
        return None if told is None else (*told, now == text.encode())

    def _told(self, text: bytes) -> tuple[bytes, Token] | None:
        if text == _NOTHING.encode():
            return None
        return pickle.dumps(self._decoded(text)), text

    def _encoded(self, state: _RendezvousState) -> str:
        beats = []
        for node, time in sorted(state.last_heartbeats.items()):
            said, seen = self._seen.get(node, ("", None))
            if seen != time:  # this machine's own, and new
                said = time.isoformat()
                self._seen[node] = said, time
            beats.append([_listed(node), said])
        return json.dumps(
            {
                "round": state.round,
                "complete": state.complete,
                "deadline": state.deadline.isoformat() if state.deadline else None,
                "closed": state.closed,
                "participants": [
                    [_listed(node), rank] for node, rank in state.participants.items()
                ],
                "waiting": [_listed(node) for node in sorted(state.wait_list)],
                "spare": [_listed(node) for node in sorted(state.redundancy_list)],
                "heartbeats": beats,
            }
        )

    def _decoded(self, text: bytes) -> _RendezvousState:
        told, state = json.loads(text), _RendezvousState()
        state.round, state.complete = int(told["round"]), bool(told["complete"])
        deadline, state.closed = told["deadline"], bool(told["closed"])
        state.deadline = datetime.fromisoformat(deadline) if deadline else None
        state.participants = {_node(node): int(rank) for node, rank in told["participants"]}
        state.wait_list = {_node(node) for node in told["waiting"]}
        if state.deadline and state.wait_list:
            # Who waits looks every second, or is dropped as lost: a start that leaves it behind
            # would have to be broken off for it at once.
            state.deadline = max(state.deadline, datetime.now(UTC) + _FOR_WAITING)
        state.redundancy_list = {_node(node) for node in told["spare"]}
        for node, said in ((_node(node), str(said)) for node, said in told["heartbeats"]):
            if self._seen.get(node, ("",))[0] != said:
                self._seen[node] = said, datetime.now(UTC)
            state.last_heartbeats[node] = self._seen[node][1]
        return state


def _listed(node: _NodeDesc) -> list[Any]:
    return [node.addr, node.pid, node.local_id]


def _node(told: list[Any]) -> _NodeDesc:
    address, pid, number = told
    return _NodeDesc(str(address), int(pid), int(number))
