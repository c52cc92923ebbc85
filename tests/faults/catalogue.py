"""All faults, and which of them a test run draws."""

import random
import signal

from tests.faults import clocks, deaths, network, sizes, stops, storage
from tests.faults.trial import Fault

KILLED = "SIGKILL of"

FAULTS = (
    Fault(f"{KILLED} each rank while it loads data", deaths.each_rank_killed_in("loading")),
    Fault(f"{KILLED} each rank in the forward pass", deaths.each_rank_killed_in("forward")),
    Fault(f"{KILLED} each rank in the backward pass", deaths.each_rank_killed_in("backward")),
    Fault(f"{KILLED} each rank in a reduction", deaths.each_rank_killed_in("sum")),
    Fault(f"{KILLED} each rank in the update", deaths.each_rank_killed_in("update")),
    Fault(f"{KILLED} each rank in an evaluation", deaths.each_rank_killed_in("evaluation")),
    Fault(f"{KILLED} who copies the state to memory, in the middle", deaths.killed_in_a_copy),
    Fault(f"{KILLED} a rank while all start again", deaths.killed_while_restarting),
    Fault(
        f"{KILLED} who writes a checkpoint, in the middle of a file",
        deaths.killed_in_a_write("checkpoint write", 9),
    ),
    Fault(
        f"{KILLED} who writes a checkpoint, between fsync and rename",
        deaths.killed_in_a_write("checkpoint rename", 3),
    ),
    Fault(
        f"{KILLED} who writes a checkpoint, between rename and fsync",
        deaths.killed_in_a_write("checkpoint folder sync", 3),
    ),
    Fault(
        f"{KILLED} who removes an old checkpoint, between two files",
        deaths.killed_in_a_write("checkpoint removal", 3),
    ),
    Fault(
        f"{KILLED} who writes the result, between fsync and rename",
        deaths.killed_as_the_result_is_renamed,
    ),
    Fault(f"{KILLED} a drawn rank, 30 times in one run", deaths.killed_thirty_times),
    Fault(f"{KILLED} the process that workers are forked from", deaths.fork_server_killed),
    Fault(f"{KILLED} the launcher", deaths.launcher_killed),
    Fault(f"{KILLED} all processes at once", deaths.everything_killed),
    Fault("SIGSTOP of a drawn rank, for a while and for good", deaths.stood_still),
    Fault("SIGTERM at any moment", stops.stopped_by(signal.SIGTERM)),
    Fault("SIGINT at any moment", stops.stopped_by(signal.SIGINT)),
    Fault("a disk of 20 MB that is full for a while", storage.full_for_a_while),
    Fault("a disk of 20 MB that is full to the end", storage.full_to_the_end),
    Fault("a folder of checkpoints that is read-only for a while", storage.read_only),
    Fault("a bit flipped in a file of the newest checkpoint", storage.damaged(storage.bit_flipped)),
    Fault("a byte cut from a file of the newest checkpoint", storage.damaged(storage.byte_cut)),
    Fault("the link between two machines cut for a while", network.link_cut_for_a_while),
    Fault("the link between two machines cut for good", network.link_cut_for_good),
    Fault("the machine that keeps the rendezvous lost", network.rendezvous_lost),
    Fault("the clock of one worker set an hour ahead", clocks.set_off(3600)),
    Fault("the clock of one worker set an hour back", clocks.set_off(-3600)),
    Fault("1, 2, then 4 workers: stopped in mid-epoch", sizes.resized((1, 2, 4), killed=False)),
    Fault("4, 3, then 1 worker: stopped in mid-epoch", sizes.resized((4, 3, 1), killed=False)),
    Fault("1, 2, then 4 workers: all killed in mid-epoch", sizes.resized((1, 2, 4), killed=True)),
    Fault("4, 3, then 1 worker: all killed in mid-epoch", sizes.resized((4, 3, 1), killed=True)),
    Fault("1, 2, 3 and 4 workers in turn, by `distrain resize`", sizes.asked_for),
)
"""In the order of the table."""


def drawn(seed: int, number: int) -> list[Fault]:
    """Some of the faults, in an order, as the seed has it."""
    return random.Random(seed).sample(FAULTS, number)
