"""The environment that workers are given, as a launcher's dry run tells of it: no torch, no start.

What is known only when they start stands in angle brackets.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from distrain.config import Backend
from distrain.coordinator.generation import LAUNCH, WORKERS
from distrain.coordinator.stops import BEGAN
from launch.failure import REPORTS
from launch.horovod.host_list import Hosts
from launch.horovod.hosts import DEFAULTS
from launch.machines.node_range import NodeRange
from launch.number_range import NumberRange
from launch.output.output_pipes import SHOWN

THREADS, INTERFACE = "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"

_RANKS = "RANK", "LOCAL_RANK", "ROLE_RANK"
_LOOPBACK = "127.0.0.1"
_CLOCK = "<clock and name of this host>"
_AT_RENDEZVOUS = "<as machines meet>"


@dataclass(frozen=True)
class Group:
    """Workers that are to be started on this machine.

    Attributes:
        workers: None where there is one for each GPU, or one.
        shown: What `--logs` says; None where output goes where the launcher's does.
        takes_requests: Whether another number of them may be asked for.
        environment: The launcher's own.
    """

    workers: NumberRange | None
    backend: Backend
    nodes: NodeRange | None
    shown: str | None
    takes_requests: bool
    environment: Mapping[str, str]

    def of_all(self) -> dict[str, str]:
        """What all workers find set alike."""
        reports = f"<a new folder in {tempfile.gettempdir()}>"
        found = {
            BEGAN: _CLOCK,
            REPORTS: reports,
            **({} if self.shown is None else {SHOWN: self.shown}),
            THREADS: self.environment.get(THREADS, "1"),
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        return found | (self._horovods() if self.backend == "horovod" else self._torchs(reports))

    def of_each(self) -> list[dict[str, str]]:
        """What each worker finds set for itself; one for all where their number is not known."""
        if self.backend == "horovod":
            names: tuple[str, ...] = "HOROVOD_RANK", "HOROVOD_LOCAL_RANK"
        else:
            names = _RANKS
        if self.workers is None:
            return [dict.fromkeys(names, "<0 to N - 1>")]
        met = () if self.nodes is None else ("RANK", "ROLE_RANK")
        return [
            dict.fromkeys(names, str(rank)) | dict.fromkeys(met, _AT_RENDEZVOUS)
            for rank in range(self.workers.most)
        ]

    def _size(self) -> str:
        return "<N>" if self.workers is None else str(self.workers.most)

    def _torchs(self, reports: str) -> dict[str, str]:
        one = self.nodes is None
        size = self._size()
        world = size if one else _AT_RENDEZVOUS
        found = {
            "LOCAL_WORLD_SIZE": size,
            "WORLD_SIZE": world,
            "ROLE_WORLD_SIZE": world,
            "ROLE_NAME": "default",
            "GROUP_RANK": "0" if one else _AT_RENDEZVOUS,
            "GROUP_WORLD_SIZE": "1" if one else _AT_RENDEZVOUS,
            "MASTER_ADDR": _LOOPBACK if one else _AT_RENDEZVOUS,
            "MASTER_PORT": "<a free port>",
            "TORCHELASTIC_RUN_ID": "distrain-loopback" if one else "distrain",
            "TORCHELASTIC_MAX_RESTARTS": "1000000",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_ERROR_FILE": f"{reports}/...",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
            INTERFACE: "lo" if one else "<the one of its address>",
        }
        found |= {} if one else {LAUNCH: "<clock and name of the first machine>"}
        found |= {WORKERS: str(self.workers)} if self.takes_requests else {}
        given = {name: self.environment[name] for name in (INTERFACE,) if name in self.environment}
        return found | given

    def _horovods(self) -> dict[str, str]:
        return {
            "HOROVOD_LOCAL_SIZE": self._size(),
            "HOROVOD_CROSS_RANK": "0",
            "HOROVOD_CROSS_SIZE": "1",
            "HOROVOD_HOSTNAME": "localhost",
            **_horovods(self._size(), "lo", "lo", _LOOPBACK, self.environment),
        }


def of_all_on_hosts(hosts: Hosts, environment: Mapping[str, str]) -> dict[str, str]:
    """What Horovod's workers of several hosts find set alike."""
    names = ",".join(hosts.interfaces)
    own = names if len(hosts.interfaces) == 1 else f"<one of {names or 'those that it finds'}>"
    return {
        BEGAN: _CLOCK,
        THREADS: environment.get(THREADS, "1"),
        "PYTHONUNBUFFERED": "1",
        "TORCHELASTIC_RESTART_COUNT": "0",
        **_horovods(
            str(hosts.workers),
            own,
            names or "<those that it finds>",
            "<this host's address>",
            environment,
        ),
    }


def _horovods(
    size: str, interface: str, interfaces: str, address: str, environment: Mapping[str, str]
) -> dict[str, str]:
    return {
        "HOROVOD_SIZE": size,
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": interface,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": "<a free port>",
        "NCCL_SOCKET_IFNAME": interfaces,
        **{name: environment.get(name, value) for name, value in DEFAULTS.items()},
    }


def of_one_alone() -> dict[str, str]:
    """What a worker in its launcher's own process finds set beside what was set there."""
    return {BEGAN: _CLOCK}
