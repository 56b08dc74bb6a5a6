"""Ranks that look after each other: where one is killed, stopped or out of reach, the others end, and say which it was.

Collectives would wait for it for half an hour, or for ever. The first rank hears of every other, and these of the first, by a connection of
their own. A thread sends a beat through it now and then, whatever the main thread waits for: a disk, a compiler, a long preparation.
"""

import atexit
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait

from rwkv.errors import LOST, UserError
from rwkv.training.ranks import Ranks

BEATS = 10  # in the time after which a silent rank is lost. They are counted, not seconds: where all were suspended, none is lost
GRACE = 3.0  # seconds in which an error of communication is found to be of a lost rank
BYE = "bye"
ENDED = "has ended: killed, perhaps for want of memory, if no message of its own stands above"


class Watch:
    """While it is entered, a rank that is silent for `timeout` seconds, or ends by anything but its own decision, ends all.

    They exit with code `LOST`, at once, for no agreement can be come to. A silent rank of the same machine is killed: it may only be
    stopped, and hold the run's lock.

    say: called with what is known of it, before.
    """

    def __init__(self, ranks: Ranks, timeout: float, say: Callable[[str], None]):
        self.ranks, self.timeout, self.say = ranks, timeout, say
        self._over = ranks.world == 1
        self._links: dict[int, Connection] = {}
        self._sending = threading.Lock()

    def __enter__(self) -> None:
        ranks = self.ranks
        if self._over:
            return
        self._processes = ranks.gather((os.getpid(), socket.gethostname()))
        self._silent = dict.fromkeys(range(1, ranks.world) if ranks.first else [0], 0)  # rank -> beats since it was heard of
        where = key = None
        if ranks.first:
            listener = Listener(("", 0), backlog=ranks.world, authkey=(key := secrets.token_bytes(16)))
            where = (ranks.fabric.strategy.cluster_environment.main_address, listener.address[1])
            threading.Thread(target=self._welcome, args=(listener,), daemon=True).start()
        where, key = ranks.fabric.broadcast((where, key))
        if not ranks.first:
            self._links[0] = Client(where, authkey=key)
            self._links[0].send(ranks.rank)
        atexit.register(self._leave)
        threading.Thread(target=self._look, daemon=True).start()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._over:
            return
        if isinstance(error, Exception) and not isinstance(error, UserError):
            return time.sleep(GRACE)  # a lost rank may be the reason, which is said instead; else this one is lost
        self._over = True
        self._send(BYE)

    def _leave(self) -> None:
        """At the end of a process that has failed: behind its traceback, and before the group is left, which may take long."""
        if not self._over:
            self._over = True
            self._send((self.ranks.rank, ENDED))

    def _welcome(self, listener: Listener) -> None:
        while len(self._links) < self.ranks.world - 1:
            with suppress(AuthenticationError, OSError, EOFError):  # somebody else's
                link = listener.accept()
                self._links[link.recv()] = link

    def _look(self) -> None:
        due = time.monotonic()
        while self._silent and not self._over:
            links = {link: rank for rank, link in list(self._links.items()) if rank in self._silent}
            for link in wait(list(links), timeout=max(0.0, min(0.5, due - time.monotonic()))):  # soon again: links may have come
                self._hear(links[link], link)
            if time.monotonic() >= due:
                due = time.monotonic() + self.timeout / BEATS
                self._beat()

    def _beat(self) -> None:
        self._send(None)
        for rank in self._silent:
            self._silent[rank] += 1
            if self._silent[rank] > BEATS:
                self._end(rank, f"has not been heard of for {self.timeout:g} s (strategy.timeout): it is stopped, or its machine out of reach")

    def _hear(self, rank: int, link: Connection) -> None:
        try:
            said = link.recv()
        except (EOFError, OSError):
            said = rank, ENDED
        if said is None:
            self._silent[rank] = 0
        elif said == BYE:
            del self._silent[rank]
        else:
            self._end(*said)

    def _send(self, message: object) -> None:
        with self._sending:
            for link in list(self._links.values()):
                with suppress(OSError):  # gone, which is noticed where it is listened to
                    link.send(message)

    def _end(self, rank: int, how: str) -> None:
        if self._over:
            return
        pid, host = self._processes[rank]
        if self.ranks.first:
            self._send((rank, how))
        if self.ranks.first or rank == 0:  # of which each of the others hears by itself
            self.say(f"rank {rank} (process {pid} on {host}) {how}")
        if how != ENDED and host == socket.gethostname():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(LOST)
