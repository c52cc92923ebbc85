"""Ports for those whom a test starts: nobody else of this machine gets them meanwhile."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port(address: str = "127.0.0.1") -> Iterator[int]:
    """A port on which nobody listens, for whoever is told of it, until the block ends.

    A socket is bound to it and does not listen. So Linux gives it to nobody who asks for any port,
    nor to a connection, also not to one to this very port; who asks for it by its number, with
    SO_REUSEADDR as servers do, may listen.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((address, 0))
        yield int(holder.getsockname()[1])
