"""The state of torch elastic's rendezvous as JSON: what comes over the network is not unpickled.

The clocks of machines differ, and torch compares one's heartbeats with another's time. Here each
machine takes the time at which it has seen a heartbeat change.
"""

import json
import pickle
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    RendezvousBackend,
    Token,
    _NodeDesc,
    _RendezvousState,
)

from launch.machines.store_link import StoreLink

_KEY = "distrain/rendezvous"
_NOTHING = "-"
_FOR_WAITING = timedelta(seconds=1)


@dataclass(frozen=True)
class Node(_NodeDesc):
    """One machine's launcher. They are sorted by node rank, so that rank 0 lives on the least.

    Attributes:
        node_rank: As it was given; those without one come last.
    """

    node_rank: int | None = None

    def __lt__(self, other: object) -> bool:
        """Whether its workers have the lower ranks."""
        return isinstance(other, Node) and self._place < other._place

    @property
    def _place(self) -> tuple[bool, int, str, int, int]:
        rank = self.node_rank
        return rank is None, rank or 0, self.addr, self.pid, self.local_id


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
    rank = node.node_rank if isinstance(node, Node) else None
    return [node.addr, node.pid, node.local_id, rank]


def _node(told: list[Any]) -> Node:
    address, pid, number, rank = told
    return Node(str(address), int(pid), int(number), None if rank is None else int(rank))
