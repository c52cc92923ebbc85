"""A rendezvous for the workers of one machine that nothing outside of it can reach.

Torch elastic's c10d rendezvous and the store that it hands to the workers are TCP servers that
listen on every address, take whatever connects, and make the agent unpickle what is put there. On
one machine neither has to: the rendezvous is kept in a file, and the workers' store listens on
loopback alone.
"""

import socket
from pathlib import Path

from torch._C._distributed_c10d import FileStore, TCPStore  # where they are typed
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
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


class LoopbackRendezvous(DynamicRendezvousHandler):
    """Torch elastic's own rendezvous, with a store that is bound to loopback, new for each start.

    Torch 2.13 hands the first start's store to all later ones, and workers no longer keep theirs
    apart in it: those that start again would look for the addresses of the dead (gloo: "connection
    refused", or a wait of 30 minutes).
    """

    def next_rendezvous(self) -> RendezvousInfo:
        """As torch elastic's, with a new store."""
        self._bootstrap_store_info = None
        self._shared_tcp_store_server = None
        info: RendezvousInfo = super().next_rendezvous()
        return info

    def _create_tcp_store_server(self, master_addr: str, master_port: int) -> TCPStore:  # noqa: ARG002 - the base's signature
        listener = socket.create_server((ADDRESS, master_port))
        port = listener.getsockname()[1]
        return TCPStore(
            ADDRESS, port, is_master=True, multi_tenant=True, master_listen_fd=listener.detach()
        )


def rendezvous(path: Path) -> RendezvousHandler:
    """A rendezvous of one agent that is kept in the file `path`."""
    store = FileStore(str(path))
    handler: RendezvousHandler = LoopbackRendezvous.from_backend(
        NAME, store, FileBackend(store, NAME), min_nodes=1, max_nodes=1, local_addr=ADDRESS
    )
    return handler
