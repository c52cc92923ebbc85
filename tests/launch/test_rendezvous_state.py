"""The rendezvous' state between machines: JSON in the store, heartbeats by the reader's clock."""

import json
import pickle
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch._C._distributed_c10d import HashStore
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _RendezvousState

from launch.machines.rendezvous_state import JsonBackend, Node
from launch.machines.store_link import StoreLink, within

MINE, OTHERS = Node("10.0.0.1", 7, 0, 1), Node("10.0.0.2", 8, 0)


def backend(store: HashStore) -> JsonBackend:
    return JsonBackend(StoreLink(store))


def read(reader: JsonBackend) -> _RendezvousState:
    told = reader.get_state()
    assert told is not None
    state: _RendezvousState = pickle.loads(told[0])
    return state


def state_of(now: datetime) -> _RendezvousState:
    state = _RendezvousState()
    state.round, state.complete = 3, True
    state.participants = {MINE: 0, OTHERS: 1}
    state.redundancy_list = {Node("10.0.0.3", 9, 0, 0)}
    state.last_heartbeats = {MINE: now}
    return state


def test_a_state_comes_back_as_it_was_and_is_text_in_the_store() -> None:
    store, now = HashStore(), datetime.now(UTC)
    writer = backend(store)
    assert writer.get_state() is None
    told = writer.set_state(pickle.dumps(state_of(now)))
    assert told is not None
    assert told[2]
    assert vars(read(writer)) == vars(state_of(now))
    assert json.loads(store.get("distrain/rendezvous"))["round"] == 3


def test_a_state_is_set_only_over_the_one_that_was_read() -> None:
    store = HashStore()
    first, second = backend(store), backend(store)
    first.set_state(pickle.dumps(state_of(datetime.now(UTC))))
    lost = second.set_state(pickle.dumps(_RendezvousState()))
    assert lost is not None
    assert not lost[2]
    assert pickle.loads(lost[0]).round == 3
    won = second.set_state(pickle.dumps(_RendezvousState()), lost[1])
    assert won is not None
    assert won[2]
    assert read(first).round == 0


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_heartbeat_is_as_old_as_its_last_change_for_the_reader_whatever_the_clocks(
    hours: int,
) -> None:
    store, wrong = HashStore(), timedelta(hours=hours)
    writer, reader = backend(store), backend(store)
    before = datetime.now(UTC)
    writer.set_state(pickle.dumps(state_of(before + wrong)))
    seen = read(reader).last_heartbeats[MINE]
    assert before <= seen <= datetime.now(UTC)
    assert read(reader).last_heartbeats[MINE] == seen, "it has not changed"


def test_a_start_is_not_closed_while_a_machine_waits_for_it() -> None:
    store, now = HashStore(), datetime.now(UTC)
    state = state_of(now)
    state.complete, state.deadline, state.wait_list = False, now, {OTHERS}
    writer = backend(store)
    writer.set_state(pickle.dumps(state))
    told = read(writer).deadline
    assert told is not None
    assert told > datetime.now(UTC)


def test_a_store_that_does_not_answer_is_lost_for_good() -> None:
    link = StoreLink(HashStore(), answer_s=0.05)
    with pytest.raises(RendezvousConnectionError):
        link.call(lambda store: store.wait(["never"], timedelta(seconds=0.2)))
    with pytest.raises(RendezvousConnectionError, match="any more"):
        link.call(lambda store: store.check(["any"]))


def test_what_takes_too_long_is_left_to_itself() -> None:
    waits = HashStore()
    with pytest.raises(TimeoutError):
        within(0.05, lambda: waits.wait(["never"], timedelta(seconds=0.2)))
    assert within(5.0, lambda: waits.add("here", 1)) == 1


@given(order=st.permutations(range(5)))
def test_machines_stand_by_node_rank_and_those_without_one_by_address_behind_them(
    order: list[int],
) -> None:
    sorted_ones = [
        Node("10.0.0.9", 7, 0, 0),
        Node("10.0.0.1", 7, 1, 2),
        Node("10.0.0.2", 7, 0, 2),
        Node("10.0.0.1", 9, 0),
        Node("10.0.0.3", 1, 0),
    ]
    assert sorted(sorted_ones[at] for at in order) == sorted_ones
