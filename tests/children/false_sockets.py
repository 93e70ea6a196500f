"""Sends PID 1 what the kernel would answer if a socket listened: false_sockets.py PORT, which needs NET_ADMIN.

For a second; then it makes /run/place/done. Each time it is another socket.
"""

import signal
import socket
import struct
import sys
import time

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20


def sockets_of_others() -> list[int]:
    with open("/proc/net/netlink") as table:
        rows = [line.split() for line in table][1:]
    return [int(port) for _, family, port, *_ in rows if int(family) == NETLINK_SOCK_DIAG and int(port)]


def main() -> None:
    port, inode = int(sys.argv[1]), 1
    mine = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        inode += 1
        answer = struct.pack("=IHHII4xH62xI", 88, SOCK_DIAG_BY_FAMILY, 0, 0, 0, socket.htons(port), inode)
        for other in sockets_of_others():
            try:
                mine.sendto(answer, (other, 0))
            except OSError as error:
                print(f"refused: {error.strerror}", flush=True)
        time.sleep(0.02)
    open("/run/place/done", "w").close()
    signal.pause()


main()
