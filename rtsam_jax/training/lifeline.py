"""A connection from every process of a run to its first: the end of one ends all, at once.

JAX's own heartbeats tell of a lost process after many seconds, and of an error in Python never:
the others wait in their next collective. Here the system itself closes a dead process's connection,
and a process that fails says why before it goes. Nothing travels while all is well.
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait

_GOODBYE = b""
_WELCOME = b"welcome"
_HELLO_S = 10  # in which a caller says who it is: the others wait for it


class Lifeline:
    """Calls `on_loss(sentence)`, in a thread of its own, when another process fails or ends.

    Args:
        peers: connections by process number: to all others in process 0, to process 0 in others.
    """

    def __init__(self, peers: Mapping[int, Connection], on_loss: Callable[[str], None]):
        self._peers = dict(peers)
        self._on_loss = on_loss
        self._leaving = False
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def ignore(self) -> None:
        """From now on this process ends for a reason of its own, whatever others say."""
        self._leaving = True

    def fail(self, sentence: str) -> None:
        """Tells every process that this one is about to end, and why."""
        self.ignore()
        self._tell(sentence.encode())

    def close(self) -> None:
        """Says goodbye: from now on this process may end without loss to the others."""
        self.ignore()
        self._tell(_GOODBYE)

    def _tell(self, message: bytes, but: int | None = None) -> None:
        for number, connection in self._peers.items():
            try:
                if number != but:
                    connection.send_bytes(message)
            except OSError:  # it has ended by itself
                continue

    def _watch(self) -> None:
        left = {connection: number for number, connection in self._peers.items()}
        while left:
            for ready in wait(list(left)):
                assert isinstance(ready, Connection)
                number = left.pop(ready)
                try:
                    message = ready.recv_bytes()
                except (EOFError, OSError):
                    message = (
                        f"process {number} ended without a word: it was killed, by the "
                        "system for want of memory perhaps, or it crashed".encode()
                    )
                if message != _GOODBYE and not self._leaving:
                    self._tell(message, but=number)
                    self._on_loss(message.decode(errors="replace"))
                    return


def listen(count: int) -> tuple[int, bytes, Callable[[float], dict[int, Connection]]]:
    """The end of process 0: its port, the key to it, and a function that waits for the others.

    That is told how many seconds to wait, and raises `TimeoutError` if not all have come by then.
    """
    key = os.urandom(16)
    server = _server(count)

    def accept(seconds: float) -> dict[int, Connection]:
        deadline = time.monotonic() + seconds
        joined: dict[int, Connection] = {}
        with server:
            while missing := [index for index in range(1, count) if index not in joined]:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"not heard of: {', '.join(map(str, missing))}")
                server.settimeout(left)
                with suppress(TimeoutError):
                    connection = _connection(server.accept()[0], _HELLO_S)
                    index = _admit(connection, key)
                    if index is None:
                        connection.close()
                    else:
                        joined[index] = connection
        return joined

    return server.getsockname()[1], key, accept


def connect(
    host: str, port: int, key: bytes, index: int, seconds: float = _HELLO_S
) -> dict[int, Connection]:
    """The end of process `index`, above 0.

    Raises:
        OSError: it cannot be reached, is silent for `seconds`, or has another key.
    """
    connection = _connection(socket.create_connection((host, port), seconds), seconds)
    connection.send_bytes(key + index.to_bytes(4, "big"))
    try:
        connection.recv_bytes(len(_WELCOME))
    except EOFError as cause:
        raise ConnectionRefusedError(f"{host}:{port} is not of this run") from cause
    return {0: connection}


def _admit(connection: Connection, key: bytes) -> int | None:
    """The number of the process that calls; None of whoever else does, a scanner of ports say."""
    try:
        hello = connection.recv_bytes(len(key) + 4)
        if not hmac.compare_digest(hello[:-4], key):
            return None
        connection.send_bytes(_WELCOME)
    except (EOFError, OSError):
        return None
    return int.from_bytes(hello[-4:], "big")


def _server(backlog: int) -> socket.socket:
    """A socket on a free port, for IPv6 as well where the system has it."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
    return socket.create_server(("", 0), backlog=backlog)


def _connection(peer: socket.socket, seconds: float) -> Connection:
    """Messages over a socket; to read one that does not come is an `OSError` after `seconds`."""
    peer.setblocking(True)
    # The system's own limit, since a Connection has none; the watch reads what is there already.
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    return Connection(peer.detach())
