"""What every kind of test needs: waiting for a condition instead of sleeping, free ports, and the paths."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
MODULE = ROOT / "sidecar_init.py"
CHILDREN = ROOT / "tests" / "children"
_given_ports: set[int] = set()


def wait_until(predicate: Callable[[], T], seconds: float, what: str) -> T:
    """Return the first true value of `predicate`; fail with `what` when none came in `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.005)


def free_port() -> int:
    """A port of 127.0.0.1 at which no program listens, for a server that is started later; another one each time.

    It is none of those that the kernel gives to clients. One of those could be a client's before the server is started,
    and who looks whether the server listens could be connected to itself.
    """
    first_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, max(first_of_clients, 20_000))
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_ports.add(port)
        return port
