"""Leaves 10,000 zombies to PID 1 at once, and reports when the last of them is reaped.

A child makes them (each by clone with shared memory and libc's _exit for a body, which costs a few microseconds),
never waits for them, and exits: the kernel hands all of them to PID 1. Usage: orphanage.py MAILBOX COUNT
"""

import ctypes
import os
import signal
import sys
import time

CLONE_VM, CLONE_VFORK = 0x100, 0x4000


def make_zombies(count: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    stack = ctypes.create_string_buffer(1 << 16)
    top = ctypes.c_void_p((ctypes.addressof(stack) + (1 << 16)) & ~15)
    body = ctypes.cast(libc._exit, ctypes.c_void_p)
    for _ in range(count):
        if libc.clone(body, top, CLONE_VM | CLONE_VFORK | signal.SIGCHLD, None) < 0:
            os._exit(1)


def processes() -> int:
    return sum(name.isdigit() for name in os.listdir("/proc"))


def main() -> None:
    report = os.open(sys.argv[1], os.O_WRONLY)
    count = int(sys.argv[2])
    before = processes()
    ready, tell = os.pipe()
    go, allow = os.pipe()
    parent = os.fork()
    if parent == 0:
        make_zombies(count)
        os.write(tell, b"+")
        os.read(go, 1)
        os._exit(0)
    os.read(ready, 1)
    assert processes() >= before + count, "the orphans were not made"
    start = time.monotonic_ns()
    os.write(allow, b"+")
    os.waitpid(parent, 0)
    while (left := processes() - before) > 0 and time.monotonic_ns() - start < 20e9:
        time.sleep(0.0005)
    os.write(report, b"%d %d\n" % (time.monotonic_ns() - start, max(left, 0)))
    signal.pause()


main()
