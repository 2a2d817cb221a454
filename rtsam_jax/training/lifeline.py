"""A connection from every process of a run to its first: the end of one ends all, at once.

JAX's own heartbeats tell of a lost process after many seconds, and of an error in Python never:
the others wait in their next collective. Here the system itself closes a dead process's connection,
and a process that fails says why before it goes. Nothing travels while all is well.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait

_GOODBYE = b""


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

    def fail(self, sentence: str) -> None:
        """Tells every process that this one is about to end, and why."""
        self._leaving = True
        self._tell(sentence.encode())

    def close(self) -> None:
        """Says goodbye: from now on this process may end without loss to the others."""
        self._leaving = True
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


def listen(count: int) -> tuple[int, bytes, Callable[[], dict[int, Connection]]]:
    """The end of process 0: its port, the key to it, and a function that waits for the others."""
    key = os.urandom(16)
    listener = Listener(("", 0), backlog=count, authkey=key)

    def accept() -> dict[int, Connection]:
        joined: dict[int, Connection] = {}
        with listener:
            while len(joined) < count - 1:
                try:
                    connection = listener.accept()
                    joined[int.from_bytes(connection.recv_bytes(), "big")] = connection
                except (AuthenticationError, EOFError, OSError):
                    continue  # whoever knocks without the key, a scanner of ports say
        return joined

    return listener.address[1], key, accept


def connect(host: str, port: int, key: bytes, index: int) -> dict[int, Connection]:
    """The end of process `index`, above 0."""
    connection = Client((host, port), authkey=key)
    connection.send_bytes(index.to_bytes(4, "big"))
    return {0: connection}
