"""Torch elastic's agent, set up for the workers of this machine, alone or with other machines'."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from distrain.errors import ExitCode
from launch import fork_server, rendezvous
from launch.agent import MOST_STARTS, Agent
from launch.failure import Cause, is_retried, tell
from launch.machines.meeting import NotMetError
from launch.machines.node_range import NodeRange
from launch.machines.nodes import Nodes
from launch.number_range import NumberRange
from launch.output.worker_output import WorkerOutput
from launch.places import Places
from launch.resizing import Requests
from launch.worker import work

TURN_S = 0.001
"""Torch's agent sleeps so long between two looks; ours waits in each look until a worker ends."""


@dataclass(frozen=True)
class ElasticGroup:
    """Workers to be run by torch elastic.

    Attributes:
        arguments: Of `launch.worker`.
        workers: How many on this machine.
        max_restarts: How often all are started again when one is lost.
        grace_s: Those that were asked to stop are killed after so long.
        folder: Takes the workers' reports.
        run: The run's folder, in which requests for other numbers of workers come; None without.
        output: Takes what the workers write.
    """

    arguments: Sequence[str]
    workers: NumberRange
    max_restarts: int
    grace_s: float
    folder: Path
    run: Path | None
    output: WorkerOutput | None = None

    def run_alone(self) -> Cause | None:
        """Runs them on this machine alone; the cause of a failure."""
        meeting = rendezvous.of_one_machine(self.folder / "rendezvous")
        agent = self._agent(meeting, rendezvous.ADDRESS, None)
        try:
            return _outcome(agent.run(), agent)
        finally:
            meeting.shutdown()

    def run_with_others(self, range_: NodeRange) -> Cause | None:
        """Runs them with those of other machines; the cause of a failure, on whichever it was."""
        try:
            nodes = Nodes(range_, self.run)
        except NotMetError as error:
            return error.cause
        with ExitStack() as stack:
            stack.callback(nodes.leave)
            agent = self._agent(nodes.rendezvous, nodes.address, nodes)
            try:
                result = agent.run()
            except NotMetError as error:
                return error.cause
            except (
                RendezvousClosedError,
                RendezvousConnectionError,
                RendezvousTimeoutError,
            ) as error:
                return nodes.cause_of(error)
            if result is None:
                tell("distrain: this machine was a spare one, and was not needed\n", sys.stderr)
                return nodes.ended()
            cause = _outcome(result, agent)
            if cause is None:  # who was done, and was asked to go before the others were, just goes
                ends_all = not agent.is_stopping
            else:
                ends_all = agent.is_stopping or not is_retried(cause)
            if ends_all:
                nodes.end(cause)
            return cause

    def _agent(
        self, meeting: rendezvous.BoundRendezvous, address: str, nodes: Nodes | None
    ) -> Agent:
        # The cause is shown once, by us; torch's would log it, and what follows from it, again.
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        arguments: tuple[Any, ...] = (
            list(self.arguments),
            os.getpid(),
            list(sys.path),
            fork_server.settings(),
        )
        spec = WorkerSpec(
            role="default",
            local_world_size=self.workers.most,
            entrypoint=work,
            args=arguments,
            rdzv_handler=meeting,
            max_restarts=MOST_STARTS,
            monitor_interval=TURN_S,
            local_addr=address,
        )
        # With other machines the run grows and shrinks by machines that come and go.
        takes_requests = self.workers.is_elastic and nodes is None
        return Agent(
            spec,
            self.folder,
            Places(self.workers),
            Requests(self.run) if self.run is not None and takes_requests else None,
            nodes,
            self.output,
            grace_s=self.grace_s,
            max_restarts=self.max_restarts,
        )


def _outcome(result: RunResult | None, agent: Agent) -> Cause | None:
    if result is not None and not result.is_failed():
        return None
    return agent.cause or Cause(0, ExitCode.WORKER_LOST, "the workers failed without a word")
