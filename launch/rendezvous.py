"""Torch elastic's rendezvous, with stores that listen on one address and hold no pickles.

Torch elastic's c10d rendezvous and the store that it hands to the workers are TCP servers that
listen on every address, and make the agent unpickle what is put there. Here the workers' store
listens where the machines reach each other, and between the workers of one machine, whose
rendezvous is kept in a file, on loopback alone.
"""

import socket
from pathlib import Path

from torch._C._distributed_c10d import FileStore, TCPStore  # where they are typed
from torch.distributed.elastic.rendezvous import RendezvousInfo
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

NAME = "distrain-loopback"
ADDRESS = "127.0.0.1"


class FileBackend(C10dRendezvousBackend):
    """Torch elastic's own state keeping, under the name by which it is asked for here."""

    @property
    def name(self) -> str:
        """The rendezvous' name."""
        return NAME


class BoundRendezvous(DynamicRendezvousHandler):
    """Torch elastic's own, with a workers' store that is bound to one address, new for each start.

    Torch 2.13 hands the first start's store to all later ones, and workers no longer keep theirs
    apart in it: those that start again would look for the addresses of the dead (gloo: "connection
    refused", or a wait of 30 minutes).
    """

    @property
    def start(self) -> int:
        """Which start this is, from 0: the same on all machines."""
        number: int = self._state_holder.state.round
        return number

    def next_rendezvous(self) -> RendezvousInfo:
        """As torch elastic's, with a new store."""
        self._bootstrap_store_info = None
        self._shared_tcp_store_server = None
        info: RendezvousInfo = super().next_rendezvous()
        return info

    def _create_tcp_store_server(self, master_addr: str, master_port: int) -> TCPStore:
        listener = listen(master_addr, master_port)
        port = listener.getsockname()[1]
        return TCPStore(
            master_addr, port, is_master=True, multi_tenant=True, master_listen_fd=listener.detach()
        )


def listen(address: str, port: int) -> socket.socket:
    """A listening socket of that address alone; OSError where it can't be had."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)


def of_one_machine(path: Path) -> BoundRendezvous:
    """A rendezvous of one agent that is kept in the file `path`."""
    store = FileStore(str(path))
    handler: BoundRendezvous = BoundRendezvous.from_backend(
        NAME, store, FileBackend(store, NAME), min_nodes=1, max_nodes=1, local_addr=ADDRESS
    )
    return handler
